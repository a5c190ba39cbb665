"""Score covariances of every family in closed form, against quadrature and summation."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import volform as vf
from volform.geometry import ScoreTangents, choose_route, coframes, dependence, tangent_like
from volform.geometry.fisher_routes import ClosedForm
from volform.linalg import exact_logdet

from .expectations import (
    identity,
    line,
    moments,
    negative_binomial_dispersion,
    score_covariances,
    summed_covariances,
)
from .test_matrix_coframes import MATRICES

# NumPyro mixes integers and floats in Bernoulli, Geometric and others.
pytestmark = pytest.mark.standard_promotion


def joint_gram(family: Callable[..., Any], z: Any, u: Any, value_of: Callable[[Any], Any]) -> Any:
    """E[s s^T] in the coordinates (u, z) as the package has it, for a latent x = value_of(u)."""
    at = jnp.append(jnp.ravel(u), z)
    size = jnp.size(u)

    def site(at: Any) -> Any:
        return value_of(at[:size].reshape(jnp.shape(u))), family(*at[size:])

    def tangent(direction: Any) -> Any:
        (_, fn), (dx, dfn) = jax.jvp(site, (at,), (direction,))
        return dx, tangent_like(fn, dfn)

    (x, fn), (dx, dfn) = site(at), jax.vmap(tangent)(jnp.eye(at.size))
    route = choose_route(fn, latent=True, moving=dependence(lambda at: site(at)[1], at))
    assert isinstance(route, ClosedForm)
    return route.gram(ScoreTangents(x, dx, None, fn, dfn).reduced())


def fisher_gram(family: Callable[..., Any], z: Any) -> Any:
    return vf.Fisher(lambda z: family(*z))(z).as_matrix()


def with_derivatives(gram: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """z -> the Gram matrix, its reverse-mode derivatives, and those of finite differences."""

    def computed(z: Any) -> Any:
        steps = 1e-5 * jnp.where(z == 0.0, 1.0, jnp.abs(z))
        change = jax.vmap(lambda h: gram(z + h) - gram(z - h))(jnp.diag(steps))
        return gram(z), jax.jacrev(gram)(z) * steps[None, None], 0.5 * jnp.moveaxis(change, 0, -1)

    return computed


def check(gram: Any, expected: Any) -> None:
    """Gram matrices are the expected ones to 1e-8 of the deviations of the two scores concerned."""
    for actual, desired in zip(np.asarray(gram), expected, strict=True):
        scale = scale_of(desired)
        assert_allclose(actual / scale, desired / scale, rtol=0.0, atol=1e-8)


def check_with_derivatives(computed: Any, expected: Any) -> None:
    """The same, and derivatives are those of finite differences, hence finite."""
    gram, slope, change = map(np.asarray, computed)
    check(gram, expected)
    for actual, desired, matrix in zip(slope, change, expected, strict=True):
        scale = scale_of(matrix)[..., None]
        # Rounding and truncation of the differences, which span 1e-5 of each parameter.
        assert_allclose(actual / scale, desired / scale, rtol=1e-3, atol=2e-11)


def scale_of(matrix: np.ndarray) -> np.ndarray:
    deviation = np.sqrt(np.diag(matrix))
    deviation = np.where(deviation > 0.0, deviation, 1.0)
    return np.outer(deviation, deviation)


# --- Continuous families


@dataclass(frozen=True)
class Case:
    """A family, its parameters, and how its value is laid on the real line for quadrature.

    Attributes:
        family: called as family(*z).
        frame: center and width of u, called as frame(*z).
        points: values of z.
        value_of: the value x as a function of u.
        in_value: whether the x-row is the score in x, else that in u.
    """

    family: Callable[..., Any]
    frame: Callable[..., tuple[float, float]]
    points: list[tuple[float, ...]]
    value_of: Callable[[Any], Any] = identity
    in_value: bool = True


def loc_scale(loc, scale):
    return loc, scale


def log_scale(scale):
    return np.log(scale), 1.0


def log_gamma(a, b=0.5):
    return np.log(a / b), np.sqrt(1 / a + 1 / a**2)


COMMON = [(0.3, 0.7), (-100.0, 1e-3), (5.0, 1e4)]
SCALES = [(0.7,), (1e4,), (1e-3,)]
SHAPES = [(0.05, 1.0), (1.0, 0.3), (20.0, 4.0), (999.0, 1.0), (1001.0, 1.0), (1e6, 10.0)]

CONTINUOUS = {
    "Normal": Case(dist.Normal, loc_scale, COMMON),
    "Cauchy": Case(dist.Cauchy, loc_scale, COMMON),
    "Laplace": Case(dist.Laplace, loc_scale, COMMON),
    "Logistic": Case(dist.Logistic, loc_scale, COMMON),
    "Gumbel": Case(dist.Gumbel, loc_scale, COMMON),
    "SoftLaplace": Case(dist.SoftLaplace, loc_scale, COMMON),
    "AsymmetricLaplace": Case(
        dist.AsymmetricLaplace,
        lambda loc, scale, asymmetry: (loc, scale),
        [(0.3, 0.7, 2.0), (-10.0, 1e-2, 0.3)],
    ),
    "AsymmetricLaplaceQuantile": Case(
        dist.AsymmetricLaplaceQuantile, lambda loc, scale, _: (loc, scale), [(0.3, 0.7, 0.2)]
    ),
    "Levy": Case(
        dist.Levy, lambda _, scale: (np.log(scale), 1.0), [(0.0, 0.7), (0.0, 1e3)], jnp.exp
    ),
    "Weibull": Case(
        dist.Weibull,
        lambda scale, shape: (np.log(scale), 1.0 / shape),
        [(0.7, 0.3), (1e3, 1.5), (2.0, 40.0)],
        jnp.exp,
        in_value=False,
    ),
    "VonMises": Case(
        dist.VonMises,
        lambda loc, kappa: (np.tan(0.5 * loc), 1.0 / np.sqrt(kappa)),
        [(0.3, 0.1), (0.3, 30.0), (-1.0, 99.0), (-1.0, 101.0)],
        lambda u: 2.0 * jnp.arctan(u),
    ),
    "StudentT": Case(
        dist.StudentT,
        lambda df, loc, scale: (loc, scale),
        [(0.5, 0.3, 0.7), (30.0, -2.0, 0.01), (99.0, 1.0, 2.0), (101.0, 1.0, 2.0), (1e4, 1.0, 2.0)],
    ),
    "HalfNormal": Case(dist.HalfNormal, log_scale, SCALES, jnp.exp),
    "HalfCauchy": Case(dist.HalfCauchy, log_scale, SCALES, jnp.exp),
    "Exponential": Case(dist.Exponential, lambda rate: (-np.log(rate), 1.0), SCALES, jnp.exp),
    "LogNormal": Case(
        dist.LogNormal, loc_scale, [(0.3, 0.7), (0.0, 2.0), (-2.0, 1e-2), (3.0, 1e-4)], jnp.exp
    ),
    "Gamma": Case(dist.Gamma, log_gamma, SHAPES, jnp.exp, in_value=False),
    "Chi2": Case(
        dist.Chi2, lambda df: log_gamma(df / 2), [(0.5,), (7.0,)], jnp.exp, in_value=False
    ),
    "InverseGamma": Case(
        dist.InverseGamma,
        lambda a, b: log_gamma(a, a * a / b),
        [(0.2, 1.0), (20.0, 4.0)],
        jnp.exp,
        in_value=False,
    ),
}


@pytest.mark.parametrize("case", CONTINUOUS.values(), ids=CONTINUOUS)
def test_continuous_family(case):
    points = np.array(case.points)
    frames = [case.frame(*z) for z in points]
    expected = score_covariances(
        lambda x, *z: case.family(*z).log_prob(x),
        points,
        [line(*frame) for frame in frames],
        case.value_of,
        case.in_value,
    )

    def gram(z: Any, u: Any) -> Any:
        row = 1.0 / jax.grad(case.value_of)(u) if case.in_value else 1.0
        rows = jnp.ones(1 + z.size).at[0].set(row)
        return joint_gram(case.family, z, u, case.value_of) * jnp.outer(rows, rows)

    def latent(z: Any, u: Any) -> Any:
        return with_derivatives(lambda z: gram(z, u))(z)

    u = np.array([center + 0.3 * width for center, width in frames])
    check_with_derivatives(jax.jit(jax.vmap(latent))(points, u), expected)
    observed = jax.jit(jax.vmap(lambda z: fisher_gram(case.family, z)))(points)
    check(observed, [matrix[1:, 1:] for matrix in expected])


# --- Families of several coordinates


def hermite(dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of a standard normal vector: exact for polynomials up to degree 9."""
    t, w = np.polynomial.hermite_e.hermegauss(5)
    nodes = np.array(list(itertools.product(t, repeat=dimensions)))
    weights = np.prod(list(itertools.product(w, repeat=dimensions)), -1)
    return nodes, weights / weights.sum()


def triangle(entries: Any, d: int) -> Any:
    return jnp.zeros((d, d)).at[np.tril_indices(d)].set(jnp.stack(entries))


def normal_by_scale(*z):
    return dist.MultivariateNormal(jnp.stack(z[:3]), scale_tril=triangle(z[3:], 3))


def normal_by_covariance(*z):
    root = triangle(z[2:], 2)
    return dist.MultivariateNormal(jnp.stack(z[:2]), covariance_matrix=root @ root.T)


def normal_by_precision(*z):
    root = triangle(z[2:], 2)
    return dist.MultivariateNormal(jnp.stack(z[:2]), precision_matrix=root @ root.T)


def normal_of_low_rank(*z):
    factor, diagonal = jnp.stack(z[3:6])[:, None], jnp.stack(z[6:9])
    return dist.LowRankMultivariateNormal(jnp.stack(z[:3]), factor, diagonal)


@pytest.mark.parametrize(
    ("family", "z"),
    [
        (normal_by_scale, (0.1, -2.0, 30.0, 1.5, 0.4, 0.6, -7.0, 0.2, 25.0)),
        (normal_by_covariance, (0.1, -2.0, 1.5, 0.4, 0.6)),
        (normal_by_precision, (0.1, -2.0, 1.5, 0.4, 0.6)),
        (normal_of_low_rank, (0.1, -2.0, 3.0, 1.0, -0.5, 2.0, 0.3, 1.0, 0.1)),
    ],
    ids=["scale_tril", "covariance_matrix", "precision_matrix", "low rank"],
)
def test_multivariate_normal(family, z):
    z = jnp.asarray(z)
    d = jax.eval_shape(lambda z: family(*z), z).event_shape[0]
    nodes, weights = hermite(d)

    def log_density(xz):
        return family(*xz[d:]).log_prob(xz[:d])

    @jax.jit
    def at_nodes(z):
        fn = family(*z)
        values = fn.mean[None] + nodes @ jnp.linalg.cholesky(fn.covariance_matrix).T
        return jax.vmap(lambda x: jax.grad(log_density)(jnp.concatenate([x, z])))(values)

    scores = np.asarray(at_nodes(z))
    expected = scores.T @ (weights[:, None] * scores)
    latent = with_derivatives(lambda z: joint_gram(family, z, jnp.ones(d), identity))
    check_with_derivatives(jax.jit(jax.vmap(latent))(z[None]), [expected])


def simplex_of(ratios: Any) -> Any:
    return jax.nn.softmax(jnp.append(ratios, 0.0))


def dirichlet(*alpha):
    return dist.Dirichlet(jnp.stack(alpha))


@pytest.mark.parametrize("alpha", [(1.0, 1.0, 1.0), (2.0, 3.0, 0.5), (0.3, 5.0, 40.0)])
def test_dirichlet(alpha):
    """In log-ratios and concentrations, over stick-breaking coordinates."""
    a, b, c = alpha
    t = np.linspace(-4.0, 4.0, 150)
    logits, weight = np.pi * np.sinh(t), (t[1] - t[0]) * np.pi * np.cosh(t)
    first, second = np.meshgrid(np.log(a / (b + c)) + logits, np.log(b / c) + logits)
    # x = (s1, (1 - s1) s2, (1 - s1)(1 - s2)), so that the log-ratios are:
    ratios = np.stack([np.logaddexp(first, second + first), second], -1).reshape(-1, 2)
    area = np.outer(weight, weight).ravel()  # d ratios = d first d second

    def log_density(ratios, alpha):
        x = simplex_of(ratios)
        return dirichlet(*alpha).log_prob(x) + jnp.sum(jnp.log(x))

    def at(ratios):
        first, rest = jax.grad(log_density, argnums=(0, 1))(ratios, jnp.asarray(alpha))
        return log_density(ratios, alpha), jnp.concatenate([first, rest])

    log_p, scores = jax.jit(jax.vmap(at))(ratios)
    expected = moments(np.array(log_p), np.array(scores), area)
    z, here = jnp.array([alpha]), jnp.array([0.3, -1.0])
    latent = with_derivatives(lambda z: joint_gram(dirichlet, z, here, simplex_of))
    check_with_derivatives(jax.jit(jax.vmap(latent))(z), [expected])
    check(jax.jit(jax.vmap(lambda z: fisher_gram(dirichlet, z)))(z), [expected[2:, 2:]])


def beta_by_proportion(a, b):
    return dist.BetaProportion(a / (a + b), a + b)


@pytest.mark.parametrize("family", [dist.Beta, beta_by_proportion])
def test_beta_is_the_dirichlet_of_two(family):
    """With the same log-ratio, logit x; NumPyro's own density loses digits where x is near 1."""
    points = jnp.array([(0.05, 0.3), (1.0, 1.0), (2.0, 300.0)])
    one = jnp.array([0.3])
    expected = jax.jit(jax.vmap(lambda z: joint_gram(dirichlet, z, one, simplex_of)))(points)
    latent = with_derivatives(lambda z: joint_gram(family, z, 0.3, jax.nn.sigmoid))
    check_with_derivatives(jax.jit(jax.vmap(latent))(points), expected)


def test_uniform():
    """The logit of the place between the bounds is standard logistic, and all that is measured."""

    def value_of(u):
        return -2.0 + 7.0 * jax.nn.sigmoid(u)

    def log_density(x):
        return dist.Uniform(-2.0, 5.0).log_prob(x)

    (expected,) = score_covariances(
        log_density, np.zeros((1, 0)), [line(0.0, 1.0)], value_of, in_value=False
    )
    z = jnp.array([-2.0, 5.0])
    gram = jax.jit(lambda z: joint_gram(dist.Uniform, z, 0.4, value_of))(z)
    assert_allclose(expected, 1.0 / 3.0, rtol=1e-9)

    def place(v):  # of u and the bounds
        return jax.scipy.special.logit((value_of(v[0]) - v[1]) / (v[2] - v[1]))

    slope = np.asarray(jax.grad(place)(jnp.array([0.4, -2.0, 5.0])))
    assert_allclose(slope[0], 1.0)
    assert_allclose(gram, np.outer(slope, slope) / 3.0, rtol=1e-9, atol=1e-12)


def test_volume_of_the_gamma_family():
    """det F = a (psi'(a) - 1/a) / b^2, where the difference loses all its digits for large a."""
    shapes = np.array([0.05, 1.0, 999.0, 1001.0, 1e4, 1e6])
    # psi'(a) - 1/a = sum_k 1 / ((a + k)^2 (a + k + 1)); the tail by the midpoint rule.
    terms = shapes + np.arange(20_000.0)[:, None]
    end = shapes + 19_999.5
    excess = np.sum(1.0 / (terms**2 * (terms + 1.0)), 0) + 1.0 / end - np.log1p(1.0 / end)
    metric = vf.Fisher(dist.Gamma)
    actual = jax.jit(jax.vmap(lambda a: exact_logdet(metric((a, jnp.ones_like(a))))))(shapes)
    assert_allclose(actual, np.log(shapes * excess), rtol=0.0, atol=1e-8)


# --- Discrete families


def categorical_probs(p, q):
    return dist.CategoricalProbs(jnp.stack([p, q, 1.0 - p - q]))


def categorical_logits(*logits):
    return dist.CategoricalLogits(jnp.stack(logits))


def multinomial_probs(p, q):
    return dist.MultinomialProbs(jnp.stack([p, q, 1.0 - p - q]), 3)


def multinomial_logits(*logits):
    return dist.MultinomialLogits(jnp.stack(logits), 3)


def ordered(predictor, first, gap):
    return dist.OrderedLogistic(predictor, jnp.stack([first, first + gap]))


BITS, TENS, LONG = np.arange(2.0), np.arange(11.0), np.arange(3000.0)
THREE = np.arange(3)
TRIPLES = np.array([k for k in itertools.product(range(4), repeat=3) if sum(k) == 3])

DISCRETE = {
    "BernoulliProbs": (dist.BernoulliProbs, [(0.3,), (1e-6,), (0.999,)], BITS),
    "BernoulliLogits": (dist.BernoulliLogits, [(0.3,), (-8.0,), (20.0,)], BITS),
    "BinomialProbs": (lambda p: dist.BinomialProbs(p, 10), [(0.3,), (1e-4,), (0.999,)], TENS),
    "BinomialLogits": (lambda t: dist.BinomialLogits(t, 10), [(0.3,), (-8.0,), (9.0,)], TENS),
    "CategoricalProbs": (categorical_probs, [(0.2, 0.5), (1e-6, 0.1)], THREE),
    "CategoricalLogits": (categorical_logits, [(0.2, 0.5, -1.0), (5.0, -9.0, 300.0)], THREE),
    "OrderedLogistic": (ordered, [(0.3, -1.0, 2.0), (-3.0, 0.0, 0.1)], THREE),
    "MultinomialProbs": (multinomial_probs, [(0.2, 0.5), (1e-3, 0.1)], TRIPLES),
    "MultinomialLogits": (multinomial_logits, [(0.2, 0.5, -1.0), (5.0, -1.0, 2.0)], TRIPLES),
    "Poisson": (dist.Poisson, [(0.01,), (3.0,), (1e3,)], LONG),
    "GeometricProbs": (dist.GeometricProbs, [(0.02,), (0.5,), (0.99,)], LONG),
    "GeometricLogits": (dist.GeometricLogits, [(-3.5,), (0.5,), (6.0,)], LONG),
}


@pytest.mark.parametrize(("family", "points", "support"), DISCRETE.values(), ids=DISCRETE)
def test_discrete_family(family, points, support):
    points = np.array(points)
    expected = summed_covariances(lambda k, *z: family(*z).log_prob(k), points, support)
    gram = with_derivatives(lambda z: fisher_gram(family, z))
    check_with_derivatives(jax.jit(jax.vmap(gram))(points), expected)


NEGATIVE_BINOMIALS = {
    "NegativeBinomial2": (dist.NegativeBinomial2, lambda mean, c: (mean, c)),
    "GammaPoisson": (dist.GammaPoisson, lambda mean, c: (c, c / mean)),
    "NegativeBinomialProbs": (dist.NegativeBinomialProbs, lambda mean, c: (c, mean / (mean + c))),
    "NegativeBinomialLogits": (dist.NegativeBinomialLogits, lambda mean, c: (c, jnp.log(mean / c))),
}
CORNERS = np.array(list(itertools.product([0.1, 1.0, 30.0, 1e3], [0.05, 1.0, 80.0, 1e4])))


@pytest.mark.parametrize(("family", "of_mean"), NEGATIVE_BINOMIALS.values(), ids=NEGATIVE_BINOMIALS)
def test_negative_binomial(family, of_mean):
    """In mean and concentration, which are orthogonal; NumPyro's own density has 7 digits only."""
    expected = [
        np.diag([1.0 / (mean + mean**2 / c), negative_binomial_dispersion(c, mean)])
        for mean, c in CORNERS
    ]
    gram = with_derivatives(lambda z: fisher_gram(lambda *z: family(*of_mean(*z)), z))
    check_with_derivatives(jax.jit(jax.vmap(gram))(CORNERS), expected)


def test_every_closed_form_is_tested():
    tested = {*CONTINUOUS, *DISCRETE, *NEGATIVE_BINOMIALS, "Dirichlet", "Beta", "Uniform"}
    tested |= {"MultivariateNormal", "LowRankMultivariateNormal", *MATRICES}
    registered = {family.__name__ for family in coframes.coframe.registry if family is not object}
    assert registered <= tested
