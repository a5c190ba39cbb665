"""Laplace's method along an orbit of rotations, against closed forms and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.stats

import volform as vf
from volform.inference.modes import Flat, Orbit
from volform.inference.modes.turning import turned_draws


def sphere(y, d, noise=1.0):
    t = numpyro.sample("t", dist.Normal(0, 1).expand([d]).to_event(1))
    numpyro.sample("y", dist.Normal(jnp.sum(t**2), noise), obs=y)


def radial(y, d, noise):
    """Laplace's method in the radius, times the area of the sphere, and the exact log Z."""

    def log_q(r):
        prior = -0.5 * d * np.log(2 * np.pi) - 0.5 * r**2
        return prior + scipy.stats.norm.logpdf(y[:, None], r**2, noise).sum(0)

    found = scipy.optimize.minimize_scalar(
        lambda r: -log_q(np.array([r]))[0], (0.5, 1.5), tol=1e-14
    )
    r = found.x
    curvature = 1.0 + np.sum(4 * r**2 - 2 * (y - r**2)) / noise**2  # -d^2 log q / dr^2
    area = np.log(2.0) + 0.5 * d * np.log(np.pi) - scipy.special.gammaln(0.5 * d)
    laplace = log_q(np.array([r]))[0] + 0.5 * np.log(2 * np.pi) - 0.5 * np.log(curvature)
    nodes = np.linspace(1e-6, 5.0, 200_001)
    values = log_q(nodes) + (d - 1) * np.log(nodes)
    exact = np.log(np.trapezoid(np.exp(values - values.max()), nodes)) + values.max() + area
    return laplace + area + (d - 1) * np.log(r), exact


def data(n, d):
    z = np.random.default_rng(d).normal(size=n)
    return 2.25 + 0.3 / np.sqrt(n) + (z - z.mean()) / z.std()


@pytest.mark.parametrize("d", [2, 3, 5])
def test_sphere(d):
    errors = []
    y = np.array([2.3])
    for n in (10, 40, 160):
        noise = np.asarray(n**-0.5)
        fit = vf.find_map(vf.condition(lambda y, noise: sphere(y, d, noise), y, noise))
        assert isinstance(fit.verdict, Orbit)
        assert fit.converged
        assert fit.orbit.dimension == d - 1
        evidence = vf.laplace(fit).evidence
        laplace, exact = radial(y, d, noise)
        assert float(evidence.log_z) == pytest.approx(laplace, abs=1e-8)
        assert sum(map(float, evidence.terms.values())) == pytest.approx(laplace, abs=1e-8)
        assert evidence.correction is None
        errors.append(n * (float(evidence.log_z) - exact))
    assert max(map(abs, errors)) < 0.15  # of order 1/n
    if d > 2:  # where it is exact
        assert min(map(abs, errors)) > 1e-4


def test_sphere_reference():
    # an independent program: n = 10, d = 3
    fit = vf.find_map(vf.condition(lambda y: sphere(y, 3), data(10, 3)))
    log_z = float(vf.laplace(fit).evidence.log_z)
    assert log_z == pytest.approx(-16.085274308829938, abs=1e-9)


def gram_matrix(s, noise):
    m = numpyro.sample("m", dist.Normal(0, 1).expand([3, 2]).to_event(2))
    numpyro.sample("s", dist.Normal((m.T @ m)[np.triu_indices(2)], noise).to_event(1), obs=s)


def test_group_with_a_finite_stabilizer():
    # O(3) on the rows of a matrix of rank 2; its Gram matrix is Wishart, whose density at s is what
    # log Z is for small noise
    s = np.array([2.0, 0.4, 1.3])
    wishart = scipy.stats.wishart.logpdf([[s[0], s[1]], [s[1], s[2]]], df=3, scale=np.eye(2))
    fit = vf.find_map(vf.condition(gram_matrix, s, noise=1e-4))
    assert fit.orbit.dimension == 3
    assert float(vf.laplace(fit).evidence.log_z) == pytest.approx(wishart, abs=1e-6)


X = np.random.default_rng(0).normal(size=(20, 3))
W = np.random.default_rng(1).normal(size=(3, 3))[:, :2] @ np.random.default_rng(2).normal(
    size=(2, 3)
)
Y = X @ W + 0.5 * np.random.default_rng(3).normal(size=(20, 3))


def factorization(scale=1.0):
    a = numpyro.sample("a", dist.Normal(0, scale).expand([3, 2]).to_event(2))
    b = numpyro.sample("b", dist.Normal(0, 1).expand([2, 3]).to_event(2))
    numpyro.sample("y", dist.Normal(X @ (a / scale) @ b, 0.5).to_event(2), obs=Y)


@pytest.fixture(scope="module")
def factorized():
    return vf.find_map(vf.condition(factorization))


def test_factorization(factorized):
    log_z = float(vf.laplace(factorized).evidence.log_z)
    # a integrated out: y given b is Gaussian in each draw of b
    b = np.random.default_rng(0).normal(size=(40_000, 2, 3))
    features = np.einsum("ni,krj->knjir", X, b).reshape(len(b), 60, 6)
    residual = Y.reshape(60)
    precision = np.eye(6) + np.einsum("kna,knb->kab", features, features) / 0.25
    right = features.transpose(0, 2, 1) @ residual / 0.25
    quadratic = np.einsum("ka,ka->k", right, np.linalg.solve(precision, right[..., None])[..., 0])
    log_det = np.linalg.slogdet(precision)[1]
    base = -0.5 * residual @ residual / 0.25 - 30 * np.log(2 * np.pi * 0.25)
    each = base + 0.5 * quadratic - 0.5 * log_det
    exact = scipy.special.logsumexp(each) - np.log(len(b))
    assert log_z == pytest.approx(exact, abs=0.6)  # of an expansion to first order
    assert factorized.orbit.dimension == 1
    # the length of both circles of a and b in R^12
    radius = np.sqrt(sum(np.sum(np.square(v)) for v in factorized.values.values()))
    assert factorized.orbit.log_volume == pytest.approx(np.log(4 * np.pi * radius), abs=1e-8)


def test_factorization_in_other_units(factorized):
    # a in units of 1/3, with the metric of the first spelling
    carried = vf.attach(lambda: factorization(3.0), {"a": vf.Euclidean() * (1.0 / 9.0)})
    other = vf.find_map(vf.condition(carried))
    one, two = (float(vf.laplace(fit).evidence.log_z) for fit in (factorized, other))
    assert two == pytest.approx(one, rel=1e-8)


def test_draws_are_turned(factorized):
    approx = vf.laplace(factorized)
    draws = approx.sample(jax.random.key(0), 4000)
    norms = np.linalg.norm(draws["a"], axis=1)  # of both columns
    assert norms[:, 0].mean() == pytest.approx(norms[:, 1].mean(), rel=0.03)
    assert abs(draws["a"].mean(0)).max() < 4 * draws["a"].std() / np.sqrt(4000) * 1.5
    posterior, u = factorized.posterior, np.asarray(factorized.at.u)
    groups, gram = factorized.orbit.rotations, factorized.at.gram
    points, random = np.tile(u, (5, 1)), np.random.default_rng(0)
    images = turned_draws(posterior, groups, u, gram, points, random)
    heights = jax.vmap(posterior.log_density)(jnp.asarray(images))
    assert np.asarray(heights) == pytest.approx(factorized.log_density, abs=1e-10)
    assert np.ptp(images[:, 0]) > 0.1
    assert "turned along the orbit" in str(approx.summary())
    with pytest.raises(vf.errors.ModelError, match="no closed form along an orbit"):
        approx.log_prob(factorized.values)


def test_estimator_and_file(factorized, tmp_path):
    posterior = factorized.posterior
    evidence = vf.evidence(factorized, by=vf.Laplace())
    assert evidence.log_z == vf.laplace(factorized).evidence.log_z
    assert "orbit of dimension 1" in str(factorized)
    assert vf.load(vf.save(factorized, tmp_path / "fit.vf"), posterior).orbit == factorized.orbit


def test_a_metric_that_is_not_invariant_has_no_orbit():
    def metric(t):
        return 1.0 + t[0] ** 2 * jnp.ones_like(t)

    posterior = vf.condition(
        vf.attach(lambda y: sphere(y, 2), {"t": vf.geometry.DiagonalField(metric)}), data(10, 2)
    )
    fit = vf.find_map(posterior)
    assert fit.orbit is None
    assert len(fit.modes) > 1


def test_other_flat_directions_ask_for_a_symmetry():
    def scaled(y):
        a = numpyro.sample("a", dist.ImproperUniform(dist.constraints.positive, (), ()))
        b = numpyro.sample("b", dist.ImproperUniform(dist.constraints.positive, (), ()))
        numpyro.sample("y", dist.Normal(a * b, 1.0), obs=y)

    posterior = vf.condition(vf.attach(scaled, vf.Unconstrained()), np.array([2.0, 3.0]))
    fit = vf.find_map(posterior, starts=4)
    assert isinstance(fit.verdict, Flat)
    with pytest.raises(vf.errors.SaddleError, match="A continuous symmetry"):
        vf.laplace(fit)


def ring(radius, width, center, spread):
    """A ring, and a Gaussian in its middle."""
    x = numpyro.sample("x", dist.Normal(0, 2.0).expand([2]).to_event(1))
    r = jnp.sqrt(jnp.sum(x**2) + 1e-12)
    parts = -0.5 * ((r - radius) / width) ** 2, center - 0.5 * (r / spread) ** 2
    numpyro.factor("f", jnp.logaddexp(*parts))


@pytest.mark.parametrize(
    "numbers", [(4.0, 0.02, -2.5, 0.5), (4.0, 0.1, 1.0, 0.1), (4.0, 0.1, 4.0, 0.1)]
)
def test_orbits_beside_isolated_modes(numbers):
    radius, width, center, spread = numbers
    r = np.linspace(1e-9, 12.0, 400_001)
    parts = -0.5 * ((r - radius) / width) ** 2, center - 0.5 * (r / spread) ** 2
    exact = np.log(np.trapezoid(r / 4 * np.exp(-(r**2) / 8 + np.logaddexp(*parts)), r))
    evidence = vf.evidence(vf.condition(ring, *numbers), by=vf.Laplace())
    assert float(evidence.log_z) == pytest.approx(exact, abs=5e-3)
    assert "sum over 2 modes" in evidence.note


def test_a_continuum_that_rotations_do_not_explain_is_refused():
    def plates(y):
        with numpyro.plate("k", len(y)):
            x = numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))
            numpyro.sample("y", dist.Normal(jnp.sum(x**2, -1), 0.3), obs=y)

    fit = vf.find_map(vf.condition(plates, np.array([9.0, 4.0, 5.0])))
    assert isinstance(fit.verdict, Flat)
    assert fit.verdict.count == 3
    assert not fit.modes
    with pytest.raises(vf.errors.SaddleError, match="each slice of a plate by itself"):
        vf.laplace(fit)


@pytest.mark.parametrize("probability", [0.5, 0.9])
def test_credible_region_along_an_orbit(probability):
    posterior = vf.condition(ring, 4.0, 0.1, -1000.0, 0.1)
    region = vf.credible_region(vf.laplace(posterior), probability)
    r = np.linspace(3.0, 5.0, 20_001)
    weights = r * np.exp(-(r**2) / 8 - 0.5 * ((r - 4.0) / 0.1) ** 2)
    inside = region.contains({"x": np.stack([r, 0 * r], 1)})
    assert weights @ inside / weights.sum() == pytest.approx(probability, abs=2e-3)
    area = np.pi * (r[inside].max() ** 2 - r[inside].min() ** 2)
    assert region.log_volume == pytest.approx(np.log(area), abs=0.01)
