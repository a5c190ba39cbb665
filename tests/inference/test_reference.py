"""Eight models of posteriordb against evidence computed by independent programs.

The models, their data and the numbers are in the folder of reference numbers, which is not part
of the repository; `pytest -m reference` runs them where it is.
"""

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

import volform as vf
from volform.inference import Automatic
from volform.results import Level

pytestmark = [pytest.mark.reference, pytest.mark.standard_promotion]

KEY = jax.random.key(0)
UNCONSTRAINED = vf.Unconstrained()
EUCLIDEAN = vf.Euclidean()
LIKELIHOOD = vf.LikelihoodFisher()
JOINT = vf.JointFisher()


@pytest.fixture(scope="module")
def problems(reference: Path) -> dict[str, tuple[Any, dict]]:
    """Model and numbers by name."""
    folder = reference / "evidence"
    source = importlib.util.spec_from_file_location("reference_models", folder / "models.py")
    assert source is not None
    assert source.loader is not None
    module = importlib.util.module_from_spec(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its data file open
        source.loader.exec_module(module)
    numbers = json.loads((folder / "evidence.json").read_text("utf-8"))
    return {name: (spec, numbers[name]) for name, spec in module.SPECS.items()}


def evidence(problem: tuple[Any, dict], metric: vf.Metric) -> vf.results.Evidence:
    posterior = vf.condition(vf.attach(problem[0].model, metric), *problem[0].args)
    return vf.laplace(vf.find_map(posterior, key=KEY), allow_improper=True).evidence


def best(numbers: dict) -> float:
    """The exact log evidence, or where there is none, that of bridge sampling."""
    exact = numbers["exact_by_quadrature"]
    return numbers["bridge"] if exact is None else exact


@pytest.mark.parametrize(
    ("name", "key", "metric"),
    [
        ("eight_schools_noncentered", "laplace_unconstrained", UNCONSTRAINED),
        ("sblri_blr", "laplace_unconstrained", UNCONSTRAINED),
        ("sblri_blr", "laplace_constrained", EUCLIDEAN),
        ("sblri_blr", "laplace_likelihood_fisher", LIKELIHOOD),
        ("arK", "laplace_unconstrained", UNCONSTRAINED),
        ("arK", "laplace_constrained", EUCLIDEAN),
        ("arK", "laplace_likelihood_fisher", LIKELIHOOD),
        ("low_dim_gauss_mix", "laplace_unconstrained", UNCONSTRAINED),
        ("low_dim_gauss_mix", "laplace_constrained", EUCLIDEAN),
        ("gp_regr", "laplace_unconstrained", UNCONSTRAINED),
        ("gp_regr", "laplace_constrained", EUCLIDEAN),
        ("gp_pois_regr", "laplace_unconstrained", UNCONSTRAINED),
        ("gp_pois_regr", "laplace_constrained", EUCLIDEAN),
        ("kidscore_momiq", "laplace_unconstrained", UNCONSTRAINED),
        ("kidscore_momiq", "laplace_constrained", EUCLIDEAN),
        ("kidscore_momiq", "laplace_likelihood_fisher", LIKELIHOOD),
    ],
)
def test_first_order_is_that_of_an_independent_program(
    problems: Any, name: str, key: str, metric: vf.Metric
) -> None:
    # The Poisson model's jitter of 1e-10 leaves its own density no more than nine digits.
    assert_allclose(evidence(problems[name], metric).log_z, problems[name][1][key], rtol=1e-8)


# Bounds on |error| of first and of second order in nats, above the errors that were measured.
ERRORS = [
    ("eight_schools_centered", JOINT, 0.14, 0.01),
    ("sblri_blr", LIKELIHOOD, 0.002, 1e-4),
    ("sblri_blr", UNCONSTRAINED, 0.1, 0.01),
    ("arK", LIKELIHOOD, 0.001, 1e-4),
    ("arK", UNCONSTRAINED, 0.07, 0.005),
    ("low_dim_gauss_mix", UNCONSTRAINED, 0.01, 0.002),
    ("gp_regr", JOINT, 0.01, 0.005),
    ("gp_regr", LIKELIHOOD, 0.02, 0.01),
    ("gp_pois_regr", JOINT, 0.13, 0.03),  # the reference has an error of 0.017 itself
    ("kidscore_momiq", LIKELIHOOD, 5e-4, 1e-4),
]


@pytest.mark.parametrize(("name", "metric", "first", "second"), ERRORS)
def test_errors(problems: Any, name: str, metric: vf.Metric, first: float, second: float) -> None:
    found = evidence(problems[name], metric)
    exact = best(problems[name][1])
    assert abs(float(found.log_z) - exact) < first
    assert found.log_z_second_order is not None
    assert abs(float(found.log_z_second_order) - exact) < second
    assert abs(float(found.log_z_second_order) - exact) < abs(float(found.log_z) - exact)


def test_where_laplace_is_bad_the_correction_says_so(problems: Any) -> None:
    found = evidence(problems["eight_schools_noncentered"], UNCONSTRAINED)
    assert abs(float(found.log_z) - best(problems["eight_schools_noncentered"][1])) > 5.0
    assert found.correction is not None
    assert float(found.correction) > 1.0
    assert "|c| is large" in found.trust.reason


def test_the_metric_of_one_spelling_serves_the_other(problems: Any) -> None:
    centered, noncentered = (
        problems[f"eight_schools_{name}"][0] for name in ("centered", "noncentered")
    )
    values = [
        vf.laplace(vf.condition(vf.attach(spec.model, metric), *spec.args)).evidence.log_z
        for spec, metric in [
            (centered, JOINT),
            (noncentered, vf.JointFisher(reference=centered.model)),
        ]
    ]
    assert np.ptp(values) < 1e-8


METRICS = {
    "eight_schools_centered": JOINT,
    "gp_pois_regr": JOINT,
    "low_dim_gauss_mix": UNCONSTRAINED,
}
NAMES = [
    "eight_schools_noncentered",
    "eight_schools_centered",
    "sblri_blr",
    "arK",
    "low_dim_gauss_mix",
    "gp_regr",
    "gp_pois_regr",
    "kidscore_momiq",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_automatic_evidence_is_right_and_its_error_honest(problems: Any, name: str) -> None:
    spec, numbers = problems[name]
    metric = METRICS.get(name, LIKELIHOOD)
    if name == "eight_schools_noncentered":
        metric = vf.JointFisher(reference=problems["eight_schools_centered"][0].model)
    fit = vf.find_map(vf.condition(vf.attach(spec.model, metric), *spec.args), key=KEY)
    found = [
        vf.evidence(fit, by=Automatic(), key=jax.random.key(seed), allow_improper=True)
        for seed in range(20)
    ]
    gaps = np.array([abs(float(e.log_z) - best(numbers)) for e in found])
    own = np.array([float(e.error) for e in found])
    errors = own if numbers["exact_by_quadrature"] else np.hypot(own, numbers["bridge_se"])
    assert np.all(gaps < np.maximum(0.05, 3.0 * errors))
    assert np.sum(gaps < 2.0 * errors) >= 17
    good = np.array([e.trust.level is Level.GOOD for e in found])
    assert np.all(gaps[good] < 0.5)
