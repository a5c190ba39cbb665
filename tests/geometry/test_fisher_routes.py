"""Batches, wrappers and routes: how the information of a NumPyro distribution is put together."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import volform as vf
from volform.errors import MetricError
from volform.geometry import (
    MonteCarlo,
    NoInformation,
    ScoreTangents,
    choose_route,
    dependence,
    tangent_like,
)
from volform.geometry.fisher_routes import (
    ClosedForm,
    DivergenceHessian,
    Enumeration,
    InUnconstrainedCoordinate,
)
from volform.geometry.score_quadrature import ScoreQuadrature
from volform.geometry.split_routes import AtZero, Censored

from .laws import close

KEY = jax.random.key(3)
Z = jnp.array([0.3, 1.7])


def fisher(family, z=Z, key=None):
    metric = vf.Fisher(lambda z: family(*z), key=key)
    return jax.jit(lambda z: metric(z).as_matrix())(z)


def joint(family, x, z):
    """S in the coordinates (x, z) of a latent site with value x."""
    size = jnp.size(x)

    def site(at):
        return at[:size].reshape(jnp.shape(x)), family(*at[size:])

    @jax.jit
    def gram(at):
        def tangent(direction):
            (_, fn), (dx, dfn) = jax.jvp(site, (at,), (direction,))
            return dx, tangent_like(fn, dfn)

        (value, fn), (dx, dfn) = site(at), jax.vmap(tangent)(jnp.eye(at.size))
        route = choose_route(fn, latent=True, moving=dependence(lambda at: site(at)[1], at))
        return route.gram(ScoreTangents(value, dx, None, fn, dfn).reduced())

    return gram(jnp.concatenate([jnp.ravel(x), z]))


def route_of(family, z=Z, sampler=None):
    moving = dependence(lambda z: family(*z), z)
    return choose_route(family(*z), latent=False, moving=moving, sampler=sampler)


# --- Batches and wrappers. For Normal(m, s), F = diag(1, 2) / s^2.

SHIFTS, FACTORS = jnp.array([0.5, -1.0, 4.0]), jnp.array([1.0, 2.0, 0.5])
MASK = jnp.array([True, False, True])
ONE = np.diag([1.0, 2.0]) / 1.7**2


def covariate(m, s):
    return dist.Normal(m * FACTORS + SHIFTS, s)


WRAPPED = {
    "batch": (lambda m, s: dist.Normal(m + SHIFTS, s), 3.0 * ONE),
    "covariate": (covariate, np.diag([FACTORS @ FACTORS, 6.0]) / 1.7**2),
    "broadcast": (
        lambda m, s: dist.Normal(m, s * jnp.ones((2, 1)) * FACTORS),
        np.diag([10.5, 12.0]) / 1.7**2,
    ),
    "expand": (lambda m, s: dist.Normal(m, s).expand([4]), 4.0 * ONE),
    "expand of expand": (lambda m, s: dist.Normal(m, s).expand([4]).expand([3, 4]), 12.0 * ONE),
    "expand of a batch": (lambda m, s: dist.Normal(m + SHIFTS, s).expand([2, 3]), 6.0 * ONE),
    "expand of ones": (lambda m, s: dist.Normal(m * jnp.ones((3, 1)), s).expand([3, 5]), 15 * ONE),
    "to_event": (lambda m, s: dist.Normal(m + SHIFTS, s).to_event(1), 3.0 * ONE),
    "expand to_event": (lambda m, s: dist.Normal(m, s).expand([2, 3]).to_event(1), 6.0 * ONE),
    "to_event expand": (lambda m, s: dist.Normal(m + SHIFTS, s).to_event(1).expand([2]), 6.0 * ONE),
    "mask": (lambda m, s: dist.Normal(m + SHIFTS, s).mask(MASK), 2.0 * ONE),
    "mask of a scalar": (lambda m, s: dist.Normal(m, s).mask(MASK), 2.0 * ONE),
    "mask to_event": (lambda m, s: dist.Normal(m + SHIFTS, s).mask(MASK).to_event(1), 2.0 * ONE),
    "mask expand": (lambda m, s: dist.Normal(m + SHIFTS, s).mask(MASK).expand([2, 3]), 4.0 * ONE),
    "expand mask": (lambda m, s: dist.Normal(m, s).expand([2, 3]).mask(MASK), 4.0 * ONE),
    "mask False": (lambda m, s: dist.Normal(m, s).mask(False), 0.0 * ONE),
}


@pytest.mark.parametrize(("family", "expected"), WRAPPED.values(), ids=WRAPPED)
@pytest.mark.rank_promotion  # NumPyro: parameters of batches
def test_observed(family, expected):
    close(fisher(family), expected)


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.rank_promotion  # likewise
def test_latent(name):
    """Elements add up: (dx - dloc)^2 / scale^2 + 2 dscale^2 / scale^2, each with its own value."""
    family, _ = WRAPPED[name]
    shape = family(*Z).shape()
    x = jnp.arange(1.0, 1.0 + np.prod(shape)).reshape(shape)
    weight = False if name == "mask False" else MASK if "mask" in name else True

    def residuals(at):
        fn = family(*at[-2:])
        scale = jnp.sqrt(fn.variance)
        shift = (at[:-2].reshape(shape) - fn.mean) / jax.lax.stop_gradient(scale)
        stretch = jnp.sqrt(2.0) * jnp.log(scale)
        return jnp.where(weight, jnp.stack(jnp.broadcast_arrays(shift, stretch)), 0.0).ravel()

    j = jax.jit(jax.jacobian(residuals))(jnp.concatenate([x.ravel(), Z]))
    close(joint(family, x, Z), j.T @ j)


TRANSFORMED = {
    "affine": dist.transforms.AffineTransform(3.0, -2.0),
    "exp": dist.transforms.ExpTransform(),
    "chain": [dist.transforms.ExpTransform(), dist.transforms.AffineTransform(1.0, 5.0)],
}


@pytest.mark.parametrize("transforms", TRANSFORMED.values(), ids=TRANSFORMED)
def test_transformed_distributions_have_the_information_of_their_base(transforms):
    close(fisher(lambda m, s: dist.TransformedDistribution(dist.Normal(m, s), transforms)), ONE)


def test_transformed_latent_value():
    """x = 3 - 2 y in x has a quarter of the information about y."""
    affine = TRANSFORMED["affine"]

    def family(m, s):
        return dist.TransformedDistribution(dist.Normal(m, s), affine)

    expected = np.array([[0.25, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 2.0]]) / 1.7**2
    close(joint(family, jnp.array(0.4), Z), expected)


def test_named_relatives():
    positive = jnp.array([2.5, 0.7])
    close(fisher(dist.LogNormal), ONE)
    close(fisher(dist.InverseGamma, positive), fisher(dist.Gamma, positive))
    by_df = fisher(lambda a: dist.Chi2(2.0 * a), positive[:1])
    close(by_df, fisher(dist.Gamma, positive)[:1, :1])
    pareto = fisher(lambda a: dist.Pareto(3.0, a), positive[:1])
    close(pareto, [[1.0 / 2.5**2]])


def test_moving_transforms_go_by_quadrature():
    def family(m, s):
        affine = dist.transforms.AffineTransform(m, s)
        return dist.TransformedDistribution(dist.Normal(0.0, 1.0), affine)

    assert isinstance(route_of(family), ScoreQuadrature)
    close(fisher(family), ONE, rtol=1e-10)


def test_folding_loses_information():
    """|x| tells nothing of the sign of m: at m = 0 the information about m is zero."""

    def folded(m, s):
        return dist.FoldedDistribution(dist.Normal(m, s))

    assert isinstance(route_of(folded), ScoreQuadrature)
    close(fisher(folded, jnp.array([0.0, 1.0])), np.diag([0.0, 2.0]), rtol=1e-8)


def test_counts_are_data():
    for counts in (np.array([3, 4]), jnp.array([3, 4]), np.array([3.0, 4.0])):

        def information(p, counts=counts):
            metric = vf.Fisher(lambda p: dist.MultinomialProbs(jnp.stack([p, 1.0 - p]), counts))
            return metric(p).as_matrix()[0, 0]

        assert_allclose(jax.jit(information)(0.3), 7.0 / 0.21, rtol=1e-12)
        assert_allclose(jax.jit(jax.grad(information))(0.3), -7.0 * 0.4 / 0.21**2, rtol=1e-12)


WITH_INTEGERS = {
    "Normal": (lambda s: dist.Normal(0, s), 2.0 / 1.5**2),
    "Gamma": (lambda rate: dist.Gamma(2, rate), 2.0 / 1.5**2),
    "StudentT": (lambda m: dist.StudentT(5, m, 2), 6.0 / 8.0 / 4.0),
    "NegativeBinomial2": (lambda m: dist.NegativeBinomial2(m, 5), 1.0 / (1.5 + 1.5**2 / 5.0)),
    "Laplace": (lambda m: dist.Laplace(m, 2), 0.25),
    "Dirichlet": (lambda _: dist.Dirichlet(jnp.array([1, 2])), 0.0),
}


@pytest.mark.standard_promotion
@pytest.mark.parametrize(("family", "expected"), WITH_INTEGERS.values(), ids=WITH_INTEGERS)
def test_integer_parameters_are_constants(family, expected):
    close(fisher(family, jnp.array([1.5])), np.array([[expected]]))


# --- Routes


class Rayleigh(dist.Distribution):
    """A family that NumPyro does not have."""

    support = dist.constraints.positive
    pytree_data_fields = ("scale",)

    def __init__(self, scale):
        self.scale = scale
        super().__init__(batch_shape=jnp.shape(scale))

    def log_prob(self, value):
        return jnp.log(value) - 2.0 * jnp.log(self.scale) - 0.5 * (value / self.scale) ** 2

    def sample(self, key, sample_shape=()):
        shape = sample_shape + self.batch_shape
        return self.scale * jnp.sqrt(2.0 * jax.random.exponential(key, shape))


class KnownRayleigh(Rayleigh):
    """The same, with a registered divergence."""


def _divergence(p, q):
    return 2.0 * jnp.log(q.scale / p.scale) + (p.scale / q.scale) ** 2 - 1.0


dist.kl_divergence.add((KnownRayleigh, KnownRayleigh), _divergence)


def test_route_by_divergence():
    def family(m, s):
        return KnownRayleigh(s * FACTORS)

    assert isinstance(route_of(family), DivergenceHessian)
    close(fisher(family), np.diag([0.0, 12.0 / 1.7**2]))
    close(fisher(lambda m, s: family(m, s).mask(MASK)), np.diag([0.0, 8.0 / 1.7**2]))
    close(fisher(lambda m, s: family(m, s).expand([2, 3])), np.diag([0.0, 24.0 / 1.7**2]))
    close(fisher(lambda m, s: family(m, s).to_event(1)), np.diag([0.0, 12.0 / 1.7**2]))
    slope = jax.jit(jax.grad(lambda s: fisher(family, jnp.stack([s, s]))[1, 1]))(1.7)
    assert_allclose(slope, -24.0 / 1.7**3, rtol=1e-10)


def weibull(scale, concentration):
    return dist.Weibull(scale, concentration)


class Pair(dist.Distribution):
    """Two equal draws of a family on the line: neither on a line nor in closed form."""

    pytree_data_fields = ("one",)

    def __init__(self, one):
        self.one = one
        super().__init__(batch_shape=one.batch_shape, event_shape=(2,))

    @property
    def support(self):
        return dist.constraints.independent(self.one.support, 1)

    def log_prob(self, value):
        return self.one.log_prob(value[..., 0]) + self.one.log_prob(value[..., 1])

    def sample(self, key, sample_shape=()):
        return jnp.moveaxis(self.one.sample(key, (2, *sample_shape)), 0, -1)


def pair(a, b):
    return Pair(weibull(a, b))


def weibull_information(scale, k):
    gamma = np.euler_gamma
    cross = -(1.0 - gamma) / scale
    return np.array(
        [[(k / scale) ** 2, cross], [cross, (np.pi**2 / 6.0 + (1.0 - gamma) ** 2) / k**2]]
    )


def normals(a, b):
    return dist.MultivariateNormal(jnp.stack([-b, b])[:, None], 0.49 * jnp.eye(1))


def mixture(a, b):
    return dist.MixtureSameFamily(dist.CategoricalProbs(jnp.stack([a, 1.0 - a])), normals(a, b))


def scalar_mixture(a, b):
    return dist.MixtureSameFamily(
        dist.CategoricalProbs(jnp.stack([a, 1.0 - a])), dist.Normal(jnp.stack([-b, b]), 0.7)
    )


def score_moments(family, z, nodes, value_of):
    """E[s_i s_j], and its standard deviation for one draw."""
    u, du = nodes

    def at(u):
        x = value_of(u)
        log_p = family(*z).log_prob(x) + jnp.log(jax.grad(value_of)(u))
        return log_p, jax.grad(lambda z: family(*z).log_prob(x))(z)

    log_p, scores = map(np.asarray, jax.jit(jax.vmap(at))(u))
    pairs = scores[:, :, None] * scores[:, None, :]
    p = np.exp(log_p) * du
    mean, second = (np.einsum("n,nij->ij", p, pairs**k) for k in (1, 2))
    return mean, np.sqrt(second - mean**2)


def trapezoid(low, high):
    """Nodes and weights for a smooth density that is negligible at both ends."""
    return np.linspace(low, high, 2001), (high - low) / 2000


WEIBULL = (weibull, jnp.array([2.0, 1.5]), trapezoid(-25.0, 4.0), jnp.exp)
MIXTURE = (scalar_mixture, jnp.array([0.3, 1.0]), trapezoid(-9.0, 9.0), lambda u: u)
# A family of vectors, and the family on the line whose moments it has, so many times.
SAMPLED = {"pair": (pair, 2.0, WEIBULL), "mixture": (mixture, 1.0, MIXTURE)}


@pytest.mark.parametrize(("family", "times", "moments"), SAMPLED.values(), ids=SAMPLED)
@pytest.mark.rank_promotion  # NumPyro: draws
def test_route_by_monte_carlo(family, times, moments):
    z = moments[1]
    expected, deviation = score_moments(*moments)
    assert isinstance(route_of(family, z, MonteCarlo(KEY)), MonteCarlo)
    for seed in range(3):
        metric = vf.Fisher(lambda z: family(*z), key=jax.random.key(seed), draws=20_000)
        estimate = jax.jit(lambda z, metric=metric: metric(z).as_matrix())(z)
        assert np.all(np.abs(estimate / times - expected) < 4.0 * deviation / np.sqrt(20_000))


def test_expectation_of_weibull():
    expected, _ = score_moments(*WEIBULL)
    close(expected, weibull_information(2.0, 1.5), rtol=1e-9)


@pytest.mark.rank_promotion  # NumPyro: draws
def test_monte_carlo_is_smooth_in_the_parameters():
    """Fixed draws: the derivative is that of finite differences."""
    for family, _, (_, z, *_) in SAMPLED.values():
        gram = jax.jit(lambda z, family=family: fisher(family, z, KEY))
        step = jnp.array([1e-5, 0.0])
        change = (gram(z + step) - gram(z - step)) / 2e-5
        slope = jax.jit(jax.jacobian(gram))(z)[..., 0]
        assert_allclose(slope, change, rtol=1e-6, atol=1e-7)


@pytest.mark.rank_promotion  # NumPyro: draws
def test_monte_carlo_of_a_batch():
    one = fisher(pair, jnp.array([2.0, 1.5]), KEY)
    batch = fisher(lambda a, b: pair(a * jnp.ones(3), b).mask(MASK), jnp.array([2.0, 1.5]), KEY)
    assert_allclose(batch, 2.0 * one, rtol=0.2, atol=0.3)


def test_monte_carlo_needs_a_key():
    with pytest.raises(MetricError, match=r"observed family `Pair` at `family` has no.*key="):
        fisher(pair)


SILENT = {
    "Unit": lambda m, s: dist.Unit(m),
    "Delta": lambda m, s: dist.Delta(m),
    "constant in closed form": lambda m, s: dist.Normal(0.0, 1.0),
    "constant": lambda m, s: dist.Weibull(1.0, 2.0),
    "without a parameter": lambda m, s: dist.ImproperUniform(dist.constraints.real, (), ()),
}


@pytest.mark.parametrize("family", SILENT.values(), ids=SILENT)
def test_no_information(family):
    assert isinstance(route_of(family), NoInformation)
    assert not np.any(fisher(family))


def test_names_of_routes():
    names = [str(r) for r in (ClosedForm(), DivergenceHessian(), Enumeration(), NoInformation())]
    assert names == ["closed form", "Hessian of the KL divergence", "enumeration", "none"]
    assert str(MonteCarlo(KEY, 100)) == "Monte Carlo, 100 draws"
    assert str(ScoreQuadrature(100)) == "quadrature, 100 nodes"
    assert str(InUnconstrainedCoordinate()) == "unconstrained coordinate"
    assert str(AtZero(ClosedForm())) == "two parts, zero or not and closed form"
    assert str(Censored(ClosedForm(), "y")) == "two parts, censored or not and closed form"


# --- Fisher as a metric


@pytest.mark.parametrize(
    ("family", "point", "expected"),
    [
        (lambda m, s: dist.Normal(m, s), {"m": Z[0], "s": Z[1]}, ONE),
        (lambda m, s: dist.Normal(m, s), (Z[0], Z[1]), ONE),
        (lambda s: dist.Normal(0.0, s), Z[1], ONE[1:, 1:]),
    ],
    ids=["named", "group", "one"],
)
def test_points_are_spread_like_those_of_every_metric(family, point, expected):
    close(jax.jit(lambda point: vf.Fisher(family)(point).as_matrix())(point), expected)


def test_chain_rule():
    """Fisher of a reparametrized family is the pull-back of its Fisher metric."""

    def inner(t):
        return t[0] * t[1], jnp.exp(t[1])

    direct = vf.Fisher(lambda t: dist.Normal(*inner(t)))
    pulled = vf.pullback(vf.Fisher(dist.Normal), inner)
    close(
        *jax.jit(lambda t: (direct(t).as_matrix(), pulled(t).as_matrix()))(jnp.array([0.2, -0.4]))
    )


def test_repr():
    assert repr(vf.Fisher(dist.Normal)) == "Fisher(Normal)"
