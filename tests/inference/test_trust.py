"""No estimate is called good that is off by more than half a nat, on densities made to deceive."""

import math
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

import volform as vf
from volform.errors import VolformError
from volform.inference import Automatic
from volform.results import Level, Trust

from .adversaries import ADVERSARIES

KEY = jax.random.key(0)
ESTIMATORS = {
    "Laplace": vf.Laplace(),
    "Importance": vf.Importance(draws=4000),
    "Bridge": vf.Bridge(draws=1000, warmup=300),
    "Automatic": Automatic(),
}
# Where NUTS goes through long trees, or twice, the second time with sixteen thousand draws; and
# what adds little to the others.
SLOW = {
    "wells, wide prior": ("Bridge",),
    "wells, flat prior": ("Automatic",),
    "wells at a distance of 400": ("Importance", "Bridge"),
    "wells in 6-D, flat prior": ("Importance", "Bridge", "Automatic"),
    "spike and slab": ("Importance", "Bridge", "Automatic"),
    "three labels": ("Importance", "Bridge", "Automatic"),
    "banana": ("Bridge", "Automatic"),
    "funnel": ("Importance", "Bridge", "Automatic"),
}


@cache
def target(name: str) -> vf.inference.MAP | vf.models.Posterior:
    posterior = ADVERSARIES[name].posterior()
    try:
        return vf.find_map(posterior, key=KEY, starts=8)
    except VolformError:
        return posterior


@cache
def estimate(name: str, by: str) -> vf.results.Evidence | VolformError:
    try:
        return vf.evidence(target(name), by=ESTIMATORS[by], allow_improper=True, key=KEY)
    except VolformError as error:
        return error


def cases() -> list[Any]:
    return [
        pytest.param(name, by, marks=[pytest.mark.slow] * (by in SLOW.get(name, ())))
        for name in ADVERSARIES
        for by in ESTIMATORS
    ]


# Where an estimator can do it, it has to: distrust of everything would pass the test above.
ABLE = [
    ("boundary", "Bridge"),
    ("boundary, log x", "Importance"),
    ("boundary, log x", "Bridge"),
    ("wells, wide prior", "Importance"),
    ("wells, wide prior", "Automatic"),
    ("banana", "Automatic"),
    ("Cauchy", "Automatic"),
]


@pytest.mark.standard_promotion
@pytest.mark.parametrize(("name", "by"), cases())
def test_good_is_right(name: str, by: str) -> None:
    found = estimate(name, by)
    if isinstance(found, VolformError):
        assert (name, by) not in ABLE
        return  # to refuse is honest
    off = abs(float(found.log_z) - ADVERSARIES[name].log_z)
    if (name, by) in ABLE:
        assert found.trust.level is Level.GOOD
        assert off < max(4.0 * float(found.error), 1e-6)
    # Not a number is off too.
    assert off < 0.5 or found.trust.level is not Level.GOOD, (off, found)


def test_what_the_search_could_not_see_is_said() -> None:
    found = estimate("wells, flat prior", "Importance")
    assert isinstance(found, vf.results.Evidence)
    assert found.trust.level is Level.FAIR
    assert "far modes may be missing: x has no proper prior" in found.trust.reason


def test_copies_that_were_not_found_are_said() -> None:
    fit = vf.find_map(ADVERSARIES["three labels"].posterior(), key=KEY, starts=1)
    found = vf.evidence(fit, by=ESTIMATORS["Importance"])
    assert found.trust.level is not Level.GOOD
    assert "1 of 6 equivalent modes were found; log Z may lack up to 1.792" in found.trust.reason
    laplace = vf.evidence(fit, by=vf.Laplace())
    assert abs(float(laplace.log_z)) < 1e-6


def test_far_modes_are_found_by_quadrature() -> None:
    found = vf.evidence(target("wells at a distance of 400"), by=vf.Quadrature())
    assert found.trust.level is Level.GOOD
    assert abs(float(found.log_z)) < 1e-9


def test_copies_that_overlap_are_said() -> None:
    """Components that the data do not tell apart have one mode, not 20!."""

    def alike(y: Any) -> None:
        infer = {"equivalent_modes": math.factorial(20)}
        w = numpyro.sample("w", dist.Normal(jnp.zeros(20), 1.0).to_event(1), infer=infer)
        numpyro.sample("y", dist.Normal(w.sum(), 1.0), obs=y)

    posterior = vf.condition(alike, jnp.array([0.3, -0.2]))
    found = vf.evidence(posterior, by=vf.Laplace())
    assert found.trust.level is Level.POOR
    assert "10^18.4 equivalent modes are not counted: with them log Z would be 3" in found.note
    one = vf.evidence(posterior, by=vf.Laplace(), equivalent_modes=1)
    assert one.trust.level is Level.FAIR
    assert float(one.log_z) == float(found.log_z)


def test_a_correction_under_a_monte_carlo_metric_is_no_check() -> None:
    def counts(y: Any) -> None:
        rate = numpyro.sample("rate", dist.LogNormal(0.0, 1.0))
        each = dist.Poisson(rate * jnp.array([1.0, 3.0]))
        numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), each), obs=y)

    model = vf.attach(counts, vf.LikelihoodFisher(key=KEY, draws=200))
    posterior = vf.condition(model, jnp.array([0, 1, 3, 2, 6, 1, 0, 4, 2]))
    found = vf.evidence(posterior, by=vf.Laplace())
    assert found.trust.level is Level.UNCHECKED
    assert "noise of a Monte Carlo metric" in found.trust.reason
    assert "log volume by Monte Carlo" in found.note


def test_a_reservation_is_never_good() -> None:
    levels = {level: Trust(level, "a").but(["b", "c"]) for level in Level}
    assert str(levels[Level.GOOD]) == "fair: a; b; c"
    assert str(levels[Level.POOR]) == "poor: a; b; c"
    assert str(levels[Level.UNCHECKED]) == "unchecked: a; b; c"
    assert Trust(Level.GOOD, "a").but([]) == Trust(Level.GOOD, "a")


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_a_draw_in_a_mode_that_the_search_missed_is_not_forgotten(seed: int) -> None:
    key = jax.random.key(seed)
    fit = vf.find_map(ADVERSARIES["wells, wide prior"].posterior(), key=key, starts=1)
    assert len(fit.modes) == 1
    found = vf.evidence(fit, by=vf.Importance(), key=key)
    assert found.trust.level is not Level.GOOD, found
