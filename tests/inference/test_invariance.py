"""Mode, q^G, evidence and spectrum are the same in randomly composed coordinates."""

import pytest
from hypothesis import Phase, given, settings, strategies as st
from numpy.testing import assert_allclose

import volform as vf

from .scalars import assert_other_coordinates, assert_same, scalars_of
from .spellings import (
    in_positive_theta,
    in_psi,
    in_psi_for_positive_theta,
    in_theta,
    random_metric,
    random_problem,
)

SPELLINGS = dict.fromkeys(range(1, 9), (in_theta, in_psi))
SPELLINGS[3] = (in_positive_theta, in_psi_for_positive_theta)


# The others show nothing else, at ten seconds each.
DIMENSIONS = [pytest.param(d, marks=[pytest.mark.slow] * (d not in (3, 8))) for d in SPELLINGS]


@pytest.mark.parametrize("d", DIMENSIONS)
@settings(max_examples=4, phases=[Phase.explicit, Phase.generate])  # a seed does not shrink
@given(seed=st.integers(0, 2**31 - 1))
def test_every_scalar_is_the_same_in_both_spellings(d: int, seed: int) -> None:
    problem, metric = random_problem(d, seed), random_metric(d, seed + 1)
    models = (vf.attach(model, {"theta": metric}) for model in SPELLINGS[d])
    in_theta, in_psi = (scalars_of(model, ["theta"], problem) for model in models)
    assert_other_coordinates(in_theta, in_psi)
    assert_same(in_theta, in_psi)


@pytest.mark.parametrize("d", [2])
@settings(max_examples=2, phases=[Phase.explicit, Phase.generate])
@given(seed=st.integers(0, 2**31 - 1))
def test_evidence_by_any_estimator_is_the_same_in_both_spellings(d: int, seed: int) -> None:
    problem, metric = random_problem(d, seed), random_metric(d, seed + 1)
    for by in (vf.Laplace(), vf.Quadrature()):
        one, other = (
            vf.evidence(
                vf.condition(vf.attach(m, {"theta": metric}), problem), by=by, allow_improper=True
            )
            for m in SPELLINGS[d]
        )
        assert_allclose(other.log_z, one.log_z, rtol=1e-8)
