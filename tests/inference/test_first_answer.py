"""The first answer: few programs are compiled, and the next data of the same shape need none."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from tests.compilations import compilations
from tests.schools import SIGMA, Y, eight_schools

import volform as vf
from volform.inference.evidence.estimator import problem_of
from volform.inference.laplace import slices
from volform.inference.laplace.log_evidence import exact_correction
from volform.inference.laplace.slices import gap_of_expansion
from volform.inference.laplace.stencil import correction_by_differences
from volform.inference.modes.starts import starting_points

pytestmark = pytest.mark.standard_promotion


def flow(y: Any) -> list[Any]:
    """What the README shows: a fit, its evidence in print, and two estimators."""
    posterior = vf.condition(vf.attach(eight_schools, vf.JointFisher()), SIGMA, y=y)
    fit = vf.find_map(posterior, key=jax.random.key(0))
    evidence = vf.laplace(fit).evidence
    assert str(fit)
    assert str(evidence)
    return [evidence, vf.evidence(fit, by=vf.Importance()), vf.evidence(fit, by=vf.Bridge())]


def test_the_flow_of_the_readme_compiles_few_programs() -> None:
    jax.clear_caches()
    with compilations() as first:
        flow(Y)
    assert 0 < len(first) <= 18, first
    large = [n for n in first if any(part in n for part in ("_each", "chain", "draws"))]
    assert sorted(large) == sorted(set(large)), large  # each of them once
    with compilations() as again:
        flow(Y[::-1].copy())
    assert not again


def families() -> dict[str, Any]:
    random = np.random.default_rng(0)
    x = random.normal(size=(40, 4))
    at = x @ np.array([1.0, -1.0, 0.5, 0.0])
    noisy = at + random.standard_t(4, 40)
    counts, classes = random.poisson(np.exp(0.3 * at)), random.uniform(size=40) < 0.5

    def weights(scale: float) -> Any:
        return numpyro.sample("w", dist.Normal(0, scale).expand([4]).to_event(1))

    def poisson() -> None:
        numpyro.sample("y", dist.Poisson(jnp.exp(x @ weights(1.0))), obs=counts)

    def student() -> None:
        scale = numpyro.sample("scale", dist.HalfNormal(2.0))
        numpyro.sample("y", dist.StudentT(4.0, x @ weights(2.0), scale), obs=noisy)

    def logistic() -> None:
        numpyro.sample("y", dist.Bernoulli(logits=x @ weights(2.0)), obs=classes.astype(float))

    def cauchy() -> None:
        at = numpyro.sample("at", dist.Normal(0, 10))
        scale = numpyro.sample("scale", dist.HalfNormal(5.0))
        numpyro.sample("y", dist.Cauchy(at, scale), obs=jnp.array([-1.2, 0.4, 3.1, 14.0]))

    def negative_binomial() -> None:
        mean = numpyro.sample("mean", dist.LogNormal(1.0, 1.0))
        spread = numpyro.sample("spread", dist.Exponential(0.5))
        numpyro.sample("y", dist.NegativeBinomial2(mean, spread), obs=counts)

    def simplex() -> None:
        p = numpyro.sample("p", dist.Dirichlet(jnp.ones(4)))
        numpyro.sample("y", dist.Multinomial(40, p), obs=jnp.array([12.0, 9.0, 4.0, 15.0]))

    return {f.__name__: f for f in (poisson, student, logistic, cauchy, negative_binomial, simplex)}


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("cauchy", vf.JointFisher()),
        ("student", vf.Euclidean()),
        ("logistic", vf.Euclidean()),
        *(
            pytest.param(name, vf.JointFisher(), marks=pytest.mark.slow)
            for name in ("poisson", "simplex", "student", "negative_binomial")
        ),
    ],
)
def test_differences_give_the_exact_second_order(name: str, metric: Any) -> None:
    """Nested derivatives, of a program of their own, are the independent computation."""
    fit = vf.find_map(vf.condition(vf.attach(families()[name], metric)), starts=4)
    found = correction_by_differences(fit.posterior, fit.at)
    exact = float(exact_correction(fit.posterior, fit.at.u, fit.at.whitener))
    assert found.is_accurate
    assert_allclose(found.c, exact, rtol=0, atol=1e-10 * (1.0 + abs(exact)))
    assert_allclose(vf.laplace(fit).evidence.correction, found.c, rtol=1e-12)


@pytest.mark.parametrize("at", [0.1, 0.45])
def test_a_kink_beside_the_mode_is_seen_and_the_exact_program_takes_over(at: float) -> None:
    """The third derivative jumps within the reach of the differences, and is right at the mode."""

    def model() -> None:
        x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.factor("bend", -0.5 * x**2 - jnp.where(x > at, (x - at) ** 3, 0.0))

    fit = vf.find_map(vf.condition(model), starts=4)
    # With their step halved they do not reach as far as the second.
    assert correction_by_differences(fit.posterior, fit.at).is_accurate == (at > 0.42)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = vf.laplace(fit, allow_improper=True).evidence
    assert found.correction is not None
    assert_allclose(found.correction, 0.0, atol=1e-12)  # of the Gaussian, which is all at the mode


def test_gaps_by_hessians_are_those_by_densities(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the values that differences of the Hessian found are those at their points."""
    fit = vf.find_map(vf.condition(vf.attach(families()["student"], vf.Euclidean())), starts=4)
    differences = correction_by_differences(fit.posterior, fit.at)
    shared = gap_of_expansion(fit.posterior, fit.at, differences.c, differences.losses)
    by_hessians = gap_of_expansion(fit.posterior, fit.at, differences.c)
    monkeypatch.setattr(slices, "has_quick_hessians", lambda _: False)
    by_densities = gap_of_expansion(fit.posterior, fit.at, differences.c)
    assert shared.nats > 1e-5
    assert_allclose([shared.nats, by_hessians.nats], by_densities.nats, rtol=1e-6)
    assert (shared.cost.densities, by_densities.cost.densities) == (1000, 1000 + 26 * 5)
    assert by_hessians.cost.gradients == 26 * 5 * 6


def test_rounds_of_starts_share_a_program() -> None:
    posterior = vf.condition(vf.attach(eight_schools, vf.JointFisher()), SIGMA, y=Y)
    starting_points(posterior, jax.random.key(0), 0, 40)
    with compilations() as more:
        again = starting_points(posterior, jax.random.key(0), 1, 40)
    assert not more
    assert not np.array_equal(again, starting_points(posterior, jax.random.key(0), 0, 40))


def test_weighted_draws_of_a_problem_are_drawn_once() -> None:
    problem = problem_of(vf.find_map(vf.condition(families()["logistic"]), starts=4))
    drawn = vf.Importance().weighted(problem)
    assert vf.Importance().weighted(problem) is drawn
    assert len(vf.Importance(draws=500).weighted(problem).log_weights) == 500
