"""Information by quadrature and in two parts, against dense grids, sums and the literature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.distributions import biject_to

import volform as vf
from volform.errors import MetricError
from volform.geometry import ScoreTangents, choose_route, dependence, tangent_like
from volform.geometry.fisher_routes import InUnconstrainedCoordinate
from volform.geometry.score_quadrature import ScoreQuadrature

from .expectations import line, moments

# NumPyro mixes ranks and types in truncated families, mixtures and others.
pytestmark = [pytest.mark.rank_promotion, pytest.mark.standard_promotion]


def two(a):
    return dist.CategoricalProbs(jnp.stack([a, 1.0 - a]))


def normals(a, m, s):
    return dist.MixtureSameFamily(two(a), dist.Normal(jnp.stack([m, -m]), s))


def weibull_or_gamma(a, b):
    return dist.MixtureGeneral(two(0.3), [dist.Weibull(a, b), dist.Gamma(b, a)])


def student(m, s):
    return dist.LeftTruncatedDistribution(dist.StudentT(3.0, m, s), low=0.5)


def laplaces(a, s):
    return dist.MixtureSameFamily(two(a), dist.Laplace(jnp.zeros(2), jnp.stack([s, 4.0 * s])))


def moved(m, s):
    return dist.TransformedDistribution(
        dist.Normal(0.0, 1.0), dist.transforms.AffineTransform(m, s)
    )


# Family, parameters, and where on the line of the unconstrained value its mass lies.
FAMILIES = {
    "truncated below": (lambda m, s: dist.TruncatedNormal(m, s, low=0.5), (1.2, 0.7), 0.0),
    "truncated far out": (lambda m, s: dist.TruncatedNormal(m, s, low=6.0), (0.3, 1.0), -2.0),
    "truncated twice": (lambda m, s: dist.TruncatedNormal(m, s, low=0.5, high=2.0), (1.2, 0.7), 0),
    "truncated Cauchy": (lambda m, s: dist.TruncatedCauchy(m, s, high=2.0), (1.2, 0.7), 0.0),
    "truncated Student t": (student, (1.2, 0.7), 0.0),
    "truncated gamma": (lambda a, b: dist.TruncatedGamma(a, b, low=0.5), (2.2, 0.7), 0.0),
    "power law": (lambda a: dist.DoublyTruncatedPowerLaw(a, 0.5, 4.0), (-1.7,), 0.0),
    "Gompertz": (dist.Gompertz, (1.3, 0.8), -1.0),
    "Kumaraswamy": (dist.Kumaraswamy, (2.0, 3.0), 0.0),
    "Dagum": (dist.Dagum, (1.3, 0.8, 2.0), 0.0),
    "folded": (lambda m, s: dist.FoldedDistribution(dist.Normal(m, s)), (0.6, 1.2), 0.0),
    "location and scale": (moved, (0.6, 1.2), 0.6),
    "mixture": (normals, (0.3, 1.2, 0.7), 0.0),
    "mixture of two families": (weibull_or_gamma, (1.2, 1.7), 0.0),
    "mixture of Laplace": (laplaces, (0.3, 0.7), 0.0),
}


def gram_in(family, n):
    """(t, z) -> S of a latent value with unconstrained coordinates t, shape (n,)."""

    def gram(at):
        def site(at):
            fn = family(*at[n:])
            x = biject_to(fn.support)(at[:n].reshape(fn.shape()))
            return x, biject_to(fn.support).inv(x), fn

        def tangent(direction):
            return tangent_like(*jax.jvp(site, (at,), (direction,)))

        dx, dt, dfn = jax.vmap(tangent)(jnp.eye(at.size))
        x, _, fn = site(at)
        route = choose_route(fn, latent=True, moving=dependence(lambda z: family(*z), at[n:]))
        assert isinstance(route, ScoreQuadrature)
        return route.gram(ScoreTangents(x, dx, dt, fn, dfn).reduced())

    return gram


@functools.cache
def dense(family, z, center):
    """The same by 1200 nodes on the line, from NumPyro's own densities."""

    def log_density(at, t):
        fn = family(*at[1:])
        x = biject_to(fn.support)(t + at[0])
        jacobian = biject_to(fn.support).log_abs_det_jacobian(t + at[0], x)
        return fn.log_prob(x) + jacobian

    t, dt = line(center, 0.7)
    at = jnp.append(0.0, jnp.asarray(z))
    log_p, scores = jax.jit(jax.vmap(lambda t: jax.value_and_grad(log_density)(at, t)))(t)
    log_p = np.where(np.asarray(log_p) > -600.0, log_p, np.nan)
    return moments(log_p, np.array(scores), dt)


@pytest.mark.parametrize(("family", "z", "center"), FAMILIES.values(), ids=FAMILIES)
def test_family(family, z, center):
    expected = dense(family, z, center)
    gram = gram_in(family, 1)
    at = jnp.append(0.3, jnp.asarray(z))
    step = jnp.zeros(at.size).at[1].set(1e-5)

    @jax.jit
    def computed(at):
        ends = jax.vmap(gram)(jnp.stack([at, at + step, at - step]))
        slope = jax.jvp(gram, (at,), (step,))[1]
        return ends[0], slope, 0.5 * (ends[1] - ends[2])

    found, slope, change = computed(at)
    deviation = np.sqrt(np.diag(expected))
    scale = np.outer(deviation, deviation)
    assert_allclose(found / scale, expected / scale, rtol=0.0, atol=1e-8)
    assert_allclose(slope / scale, change / scale, rtol=1e-4, atol=1e-10)


def fisher(family, *z):
    return jax.jit(lambda z: vf.Fisher(lambda z: family(*z))(z).as_matrix())(jnp.asarray(z))


def test_observed_information_is_that_block_and_reverse_mode_agrees():
    for family, z, center in (FAMILIES["truncated below"], FAMILIES["truncated gamma"]):

        def log_det(z, family=family):
            gram = vf.Fisher(lambda z: family(*z))(z).as_matrix()
            return jnp.linalg.slogdet(gram)[1], gram

        @jax.jit
        def derivatives(z, log_det=log_det):
            forward, gram = jax.jacfwd(log_det, has_aux=True)(z)
            return gram, forward, jax.grad(log_det, has_aux=True)(z)[0]

        gram, forward, reverse = derivatives(jnp.asarray(z))
        assert_allclose(gram, dense(family, z, center)[1:, 1:], rtol=1e-8)
        assert_allclose(forward, reverse, rtol=1e-9)


def test_bounds_of_an_observed_value_carry_no_information():
    """As those of Uniform: of a Pareto variable the scale tells nothing by its score."""
    close = np.diag([0.0, 1.0 / 2.5**2])
    assert_allclose(fisher(dist.Pareto, 1.3, 2.5), close, atol=1e-10)


MASK = jnp.array([True, False, True])
SHIFTS = jnp.array([0.2, 0.5, 1.0])
ONES = {
    "batch": lambda m: dist.TruncatedNormal(m + SHIFTS, 1.0, low=0.0),
    "expand": lambda m: dist.TruncatedNormal(m, 1.0, low=0.0).expand([2, 3]),
    "to_event": lambda m: dist.TruncatedNormal(m + SHIFTS, 1.0, low=0.0).to_event(1),
    "mask": lambda m: dist.TruncatedNormal(m + SHIFTS, 1.0, low=0.0).mask(MASK),
    "expand to_event": lambda m: dist.TruncatedNormal(m, 1.0, low=0.0).expand([3]).to_event(1),
}


@pytest.mark.parametrize("name", ONES)
def test_wrappers(name):
    """Elements add up, observed and latent ones."""
    family = ONES[name]
    fn = family(0.7)
    size = int(np.prod(fn.shape()))
    means = 0.7 + (np.zeros(size) if "expand" in name else np.asarray(SHIFTS))
    alone = jax.jit(jax.vmap(gram_in(lambda m: dist.TruncatedNormal(m, 1.0, low=0.0), 1)))
    each = np.asarray(alone(jnp.stack([jnp.zeros(size), means], -1)))
    each = each * np.asarray(MASK if name == "mask" else np.ones(size))[:, None, None]
    expected = np.zeros((size + 1, size + 1))
    expected[range(size), range(size)] = each[:, 0, 0]
    expected[range(size), -1] = expected[-1, range(size)] = each[:, 0, 1]
    expected[-1, -1] = each[:, 1, 1].sum()
    found = jax.jit(gram_in(family, size))(jnp.append(jnp.zeros(size), 0.7))
    assert_allclose(found, expected, rtol=1e-10, atol=1e-13)
    assert_allclose(fisher(family, 0.7), expected[-1:, -1:], rtol=1e-10)


def test_float32():
    for name in ("truncated below", "truncated gamma", "mixture"):
        family, z, center = FAMILIES[name]
        expected = dense(family, z, center)[1:, 1:]
        single = jnp.asarray(z, jnp.float32)
        with jax.enable_x64(False):

            def total(z, family=family):
                gram = vf.Fisher(lambda z: family(*z))(z).as_matrix()
                return gram.sum(), gram

            slope, gram = jax.jit(jax.grad(total, has_aux=True))(single)
        assert gram.dtype == jnp.float32
        assert np.all(np.isfinite(slope))
        assert_allclose(gram, expected, rtol=2e-3, atol=2e-4)


# --- Two parts


def by_counts(family, z, reach=400):
    """E[s s^T] by summation over 0, ..., reach."""
    k = jnp.arange(reach)

    def at(k):
        return jax.value_and_grad(lambda z: family(*z).log_prob(k))(jnp.asarray(z))

    log_p, s = map(np.asarray, jax.jit(jax.vmap(at))(k))
    return s.T @ (np.exp(log_p)[:, None] * s)


ZEROS = {
    "ZeroInflatedPoisson": (dist.ZeroInflatedPoisson, (0.3, 2.5)),
    "small rate": (dist.ZeroInflatedPoisson, (0.3, 1e-3)),
    "logits": (
        lambda a, r: dist.ZeroInflatedDistribution(dist.Poisson(r), gate_logits=a),
        (-0.7, 2.5),
    ),
    "HurdlePoisson": (lambda g, r: dist.HurdlePoisson(g, r), (0.3, 2.5)),
    "hurdle logits": (
        lambda a, r: dist.HurdleDistribution(dist.Poisson(r), gate_logits=a),
        (0.7, 2.5),
    ),
    "hurdle geometric": (
        lambda g, p: dist.HurdleDistribution(dist.GeometricProbs(p), gate=g),
        (0.3, 0.4),
    ),
}


@pytest.mark.parametrize(("family", "z"), ZEROS.values(), ids=ZEROS)
def test_zeros(family, z):
    assert_allclose(fisher(family, *z), by_counts(family, z), rtol=1e-8, atol=1e-10)


def test_zero_inflated_negative_binomial():
    def family(mean, c, gate):
        return dist.ZeroInflatedNegativeBinomial2(mean, c, gate=gate)

    z = (2.5, 2.0, 0.3)
    assert_allclose(fisher(family, *z), by_counts(family, z, 1000), rtol=1e-5, atol=1e-6)


def test_hurdle_of_a_density():
    gram = fisher(lambda g, a, b: dist.HurdleGamma(g, a, b), 0.3, 2.0, 1.5)
    gamma = fisher(dist.Gamma, 2.0, 1.5)
    assert_allclose(gram[1:, 1:], 0.7 * gamma, rtol=1e-12)
    assert_allclose(gram[0], [1.0 / 0.21, 0.0, 0.0], rtol=1e-12)


def test_rate_of_zero_inflation_far_from_zero():
    gram = fisher(dist.ZeroInflatedPoisson, 0.3, 1e4)
    assert_allclose(gram, np.diag([1.0 / 0.21, 0.7e-4]), rtol=1e-10)
    slope = jax.jit(jax.grad(lambda r: fisher(lambda r: dist.ZeroInflatedPoisson(0.3, r), r)[0, 0]))
    assert_allclose(slope(1e4), -0.7e-8, rtol=1e-8)


def test_a_censored_family_needs_its_data():
    with pytest.raises(MetricError, match=r"censored datum of `family`.*LikelihoodFisher"):
        fisher(lambda a: dist.LeftCensoredDistribution(dist.Exponential(a), jnp.array([0, 1])), 1.0)


# --- The last resort


def test_a_latent_value_without_a_route_is_measured_in_its_unconstrained_coordinate():
    fn = dist.GaussianCopulaBeta(jnp.ones(2), jnp.ones(2), correlation_matrix=jnp.eye(2))
    still = jax.tree.map(lambda _: False, fn)
    route = choose_route(fn, latent=True, moving=still)
    assert isinstance(route, InUnconstrainedCoordinate)
    dt = jnp.array([[1.0, 2.0], [0.0, 3.0]])
    assert_allclose(route.gram(ScoreTangents(None, dt, dt, fn, None)), dt @ dt.T)
    moving = jax.tree.map(lambda _: True, fn)
    with pytest.raises(MetricError, match="observed family `GaussianCopulaBeta` at `family`"):
        choose_route(fn, latent=False, moving=moving)
