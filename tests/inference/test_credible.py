"""Credible regions: level sets of q^G, against closed forms, ArviZ, and another spelling."""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import chi2
from tests.schools import SIGMA, Y, eight_schools

import volform as vf
from volform.geometry import DiagonalField


def normal(scales):
    numpyro.sample("x", dist.Normal(0.0, scales).to_event(1))


def gamma():
    numpyro.sample("x", dist.Gamma(3.0, 1.0))


def non_centered(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 8):
        z = numpyro.sample("z", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def log_ellipsoid(scales, probability):
    d, square = len(scales), chi2.ppf(probability, len(scales))
    unit = {1: 2.0, 2: np.pi, 3: 4.0 / 3.0 * np.pi}[d]
    return np.log(unit) + 0.5 * d * np.log(square) + np.log(scales).sum()


@pytest.mark.parametrize("probability", [0.5, 0.9])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_ellipsoid_of_a_normal(d, probability):
    scales = np.array([0.5, 2.0, 7.0])[:d]
    posterior = vf.condition(normal, jnp.asarray(scales))
    region = vf.credible_region(vf.laplace(posterior), probability)
    assert region.log_volume == pytest.approx(log_ellipsoid(scales, probability), abs=1e-10)
    radius = np.sqrt(chi2.ppf(probability, d))
    inside = np.zeros((2, d))
    inside[:, -1] = scales[-1] * radius * np.array([1 - 1e-9, 1 + 1e-9])
    assert region.contains({"x": inside}).tolist() == [True, False]

    draws = {"x": np.random.default_rng(d).normal(size=(20_000, d)) * scales}
    drawn = vf.credible_region(draws, probability, posterior=posterior)
    assert drawn.log_volume is None
    assert drawn.contains(draws).mean() == pytest.approx(probability, abs=1e-3)
    assert abs(drawn.threshold - region.threshold) < 0.05
    assert drawn.error == pytest.approx(np.sqrt(probability * (1 - probability) / 20_000), rel=0.1)


def test_volume_from_an_evidence():
    scales = np.array([0.5, 2.0])
    found = vf.evidence(vf.condition(normal, jnp.asarray(scales)), by=vf.Importance())
    region = vf.credible_region(found, 0.9)
    assert region.log_volume == pytest.approx(log_ellipsoid(scales, 0.9), abs=0.03)


@pytest.fixture(scope="module")
def of_schools():
    posterior = vf.condition(vf.attach(eight_schools, vf.JointFisher()), SIGMA, y=Y)
    return posterior, vf.laplace(posterior).sample(jax.random.key(1), 2000)


@pytest.mark.parametrize("probability", [0.5, 0.9])
def test_no_draw_changes_sides_between_two_spellings(of_schools, probability):
    posterior, draws = of_schools
    other = vf.condition(
        vf.attach(non_centered, vf.JointFisher(reference=eight_schools)), SIGMA, y=Y
    )
    mu, tau, theta = (draws[name] for name in ("mu", "tau", "theta"))
    moved = {"mu": mu, "tau": tau, "z": (theta - mu[:, None]) / tau[:, None]}
    here = vf.credible_region(draws, probability)
    there = vf.credible_region(moved, probability, posterior=other)
    assert there.threshold == pytest.approx(here.threshold, abs=1e-8)
    assert (here.contains(draws.values) == there.contains(moved)).all()

    def lebesgue(posterior, values):
        u = jax.vmap(posterior.unconstrain)(values)
        density = np.asarray(jax.vmap(posterior.log_density_lebesgue)(u))
        return density >= np.quantile(density, 1 - probability)

    if probability == 0.5:  # what the volume is for
        assert (lebesgue(posterior, draws.values) != lebesgue(other, moved)).mean() > 0.1


def test_intervals_have_a_measure():
    draws = {"x": np.random.default_rng(0).gamma(3.0, size=4000)}
    region = vf.credible_region(draws, 0.8, posterior=vf.condition(gamma))
    lower, upper = region.interval("x")
    assert [lower, upper] == pytest.approx(np.quantile(draws["x"], [0.1, 0.9]), rel=2e-3)
    flat = region.interval("x", vf.Euclidean())
    assert flat == pytest.approx(tuple(az.hdi(draws["x"], 0.8)), rel=1e-2)
    of_log = region.interval("x", vf.pullback(vf.Euclidean(), jnp.log))
    assert np.log(of_log) == pytest.approx(az.hdi(np.log(draws["x"]), 0.8), abs=1e-2)
    assert flat[0] < of_log[0]
    assert flat[1] < of_log[1]


def test_intervals_of_every_element(of_schools):
    region = vf.credible_region(of_schools[1], 0.9)
    lower, upper = region.interval("theta", vf.Euclidean())
    assert lower.shape == upper.shape == (8,)
    assert (lower < upper).all()


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"probability": 1.0}, vf.errors.ModelError, r"`probability` of credible_region is 1.0"),
        ({"target": {"x": np.ones(5)}}, vf.errors.ModelError, r"give `posterior=`"),
        ({"target": 3.0}, vf.errors.ModelError, r"got float"),
        ({"target": {"y": np.ones(5)}, "posterior": True}, vf.errors.UnknownSiteError, "'x'"),
        (
            {"target": {"x": -np.ones(5)}, "posterior": True},
            vf.errors.ModelError,
            "5 of 5 draws outs",
        ),
        ({"target": {"x": 1.0}, "posterior": True}, vf.errors.ModelError, "got one value of each"),
        ({"target": {"x": np.ones(0)}, "posterior": True}, vf.errors.ModelError, "got none of"),
        ({"target": {"x": "a"}, "posterior": True}, vf.errors.DataError, "should be numbers"),
    ],
)
def test_refused(arguments, error, match):
    posterior = vf.condition(gamma)
    target = arguments.get("target", {"x": np.ones(5)})
    given = (
        {"posterior": posterior} if "posterior" in arguments or "target" not in arguments else {}
    )
    with pytest.raises(error, match=match):
        vf.credible_region(target, arguments.get("probability", 0.9), **given)


def test_refused_measures():
    draws = {"x": np.random.default_rng(0).gamma(3.0, size=100)}
    region = vf.credible_region(draws, posterior=vf.condition(gamma))
    with pytest.raises(vf.errors.MetricError, match="no metric of one number"):
        region.interval("x", vf.Fisher(lambda loc, scale: dist.Normal(loc, scale)))
    with pytest.raises(vf.errors.MetricError, match=r"should be a metric such as `Euclidean\(\)`"):
        region.interval("x", jnp.log)
    with pytest.raises(vf.errors.MetricError, match="not positive or not finite at"):
        region.interval("x", DiagonalField(lambda x: x - 2.0))
    with pytest.raises(vf.errors.UnknownSiteError):
        region.interval("z")


def test_evidence_without_draws():
    found = vf.evidence(vf.condition(gamma), by=vf.Laplace())
    with pytest.raises(vf.errors.ModelError, match="has no draws"):
        vf.credible_region(found)


def test_angles_are_taken_around_their_direction():
    draws = {"a": np.random.default_rng(0).vonmises(3.1, 20.0, size=4000)}
    posterior = vf.condition(lambda: numpyro.sample("a", dist.VonMises(3.1, 20.0)))
    for measure in (None, vf.Euclidean()):
        lower, upper = vf.credible_region(draws, 0.9, posterior=posterior).interval("a", measure)
        assert upper - lower == pytest.approx(2 * 1.645 / np.sqrt(20.0), rel=0.05)
        assert lower < 3.1 < upper


def test_a_plateau_has_no_region():
    posterior = vf.condition(lambda: numpyro.sample("x", dist.Uniform(0, 1)))
    draws = {"x": np.random.default_rng(0).uniform(size=2000)}
    with pytest.raises(vf.errors.ModelError, match="at 100% of the draws"):
        vf.credible_region(draws, 0.5, posterior=posterior)


@pytest.mark.parametrize(("count", "probability"), [(1, 0.9), (3, 0.5), (400, 0.999)])
def test_too_few_draws(count, probability):
    draws = {"x": np.linspace(1.0, 2.0, count)}
    with pytest.raises(vf.errors.ModelError, match="give more draws"):
        vf.credible_region(draws, probability, posterior=vf.condition(gamma))
