"""Score covariances of vectors and matrices: Gaussian ones by their equals, others by draws."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.distributions import biject_to

import volform as vf
from volform.geometry import ScoreTangents, choose_route, dependence, tangent_like
from volform.geometry.fisher_routes import ClosedForm

MATRICES = {"GaussianRandomWalk", "CAR", "MultivariateStudentT", "WishartCholesky", "LKJCholesky"}
NEIGHBORS = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
# NumPyro mixes ranks and types in Wishart and LKJ.
pytestmark = [pytest.mark.rank_promotion, pytest.mark.standard_promotion]


def joint_gram(family, z, t):
    """S in the coordinates (t, z), t the unconstrained value."""
    z = jnp.asarray(z)

    def site(at):
        x = biject_to(family(*at[t.size :]).support)(at[: t.size])
        return x, family(*at[t.size :])

    @jax.jit
    def gram(at):
        def tangent(direction):
            return tangent_like(*jax.jvp(site, (at,), (direction,)))

        dx, dfn = jax.vmap(tangent)(jnp.eye(at.size))
        x, fn = site(at)
        route = choose_route(fn, latent=True, moving=dependence(lambda z: family(*z), z))
        assert isinstance(route, ClosedForm)
        return route.gram(ScoreTangents(x, dx, None, fn, dfn).reduced())

    return gram(jnp.append(t, z))


def fisher(family, *z):
    return jax.jit(lambda z: vf.Fisher(lambda z: family(*z))(z).as_matrix())(jnp.asarray(z))


def car(loc, correlation, precision):
    return dist.CAR(loc * jnp.arange(1.0, 4.0), correlation, precision, NEIGHBORS)


def car_as_normal(loc, correlation, precision):
    q = precision * (np.diag([1.0, 2.0, 1.0]) - correlation * NEIGHBORS)
    return dist.MultivariateNormal(loc * jnp.arange(1.0, 4.0), precision_matrix=q)


def walk_as_normal(scale):
    return dist.MultivariateNormal(jnp.zeros(4), scale_tril=scale * np.tril(np.ones((4, 4))))


GAUSSIAN = {
    "CAR": (car, car_as_normal, (0.3, 0.4, 1.7), 3),
    "random walk": (lambda s: dist.GaussianRandomWalk(s, 4), walk_as_normal, (0.7,), 4),
}


@pytest.mark.parametrize(("family", "normal", "z", "n"), GAUSSIAN.values(), ids=GAUSSIAN)
def test_gaussian(family, normal, z, n):
    t = jnp.linspace(-1.0, 0.5, n)
    assert_allclose(joint_gram(family, z, t), joint_gram(normal, z, t), rtol=1e-9, atol=1e-12)


def tril(*entries):
    n = int(np.sqrt(2 * len(entries)))
    return jnp.zeros((n, n)).at[np.tril_indices(n)].set(jnp.stack(entries))


def student(df, loc, *entries):
    return dist.MultivariateStudentT(df, loc * jnp.arange(1.0, 3.0), tril(*entries))


def wishart(df, *entries):
    return dist.Wishart(df, scale_tril=tril(*entries))


DRAWN = {
    "MultivariateStudentT": (student, (4.5, 0.3, 1.2, 0.3, 0.8), 2),
    "Wishart": (wishart, (4.5, 1.2, 0.3, 0.8, -0.4, 0.5, 1.5), 6),
    "LKJ": (lambda c: dist.LKJ(3, c), (1.4,), 3),
}


@pytest.mark.parametrize(("family", "z", "n"), DRAWN.values(), ids=DRAWN)
def test_by_draws(family, z, n):
    draws = 20_000
    chart = biject_to(family(*jnp.asarray(z)).support)

    def log_density(at, t):
        fn, moved = family(*at[n:]), t + at[:n]
        y = chart(moved)
        return fn.log_prob(y) + jnp.sum(chart.log_abs_det_jacobian(moved, y))

    @jax.jit
    def scores(z):
        x = family(*z).sample(jax.random.key(0), (draws,))
        at = jnp.append(jnp.zeros(n), z)
        return jax.vmap(lambda x: jax.grad(log_density)(at, chart.inv(x)))(x)

    s = np.asarray(scores(jnp.asarray(z)))
    pairs = s[:, :, None] * s[:, None, :]
    error = pairs.std(0) / np.sqrt(draws)
    gram = joint_gram(family, z, jnp.linspace(-0.5, 0.8, n))
    assert np.all(np.abs(gram - pairs.mean(0)) < 4.5 * error + 1e-9)


@pytest.mark.parametrize("df", [2.5, 90.0, 150.0, 3e3])
def test_wishart_against_the_literature(df):
    """F of S: nu / 2 tr (S^-1 dS)^2, of nu: 1/4 psi_p'(nu / 2), across: 1/2 tr S^-1 dS."""
    gram = fisher(lambda df, a: dist.WishartCholesky(df, jnp.diag(jnp.stack([a, 2.0]))), df, 1.3)
    trigamma = jax.scipy.special.polygamma(1, jnp.array([0.5 * df, 0.5 * df - 0.5]))
    expected = [[0.25 * trigamma.sum(), 0.5 / 1.3], [0.5 / 1.3, 0.5 * df / 1.3**2]]
    assert_allclose(gram, expected, rtol=1e-9)


def test_of_one_dimension():
    one = jnp.ones((1, 1))
    gram = joint_gram(lambda a, s: dist.WishartCholesky(a, scale_tril=s * one), (3.3, 0.7), one[0])
    t, df, scale = np.array([2.0, 0.0, -2.0 / 0.7]), np.array([0.0, 0.5, 0.0]), 1.65
    trigamma = jax.scipy.special.polygamma(1, scale)
    expected = scale * np.outer(t, t) - np.outer(t, df) - np.outer(df, t)
    assert_allclose(gram, expected + trigamma * np.outer(df, df), rtol=1e-9, atol=1e-12)
    for df in (0.7, 30.0, 99.0, 101.0, 1e4):
        vector = fisher(
            lambda v, m, s: dist.MultivariateStudentT(v, m[None], s * one), df, 0.3, 2.0
        )
        assert_allclose(vector, fisher(dist.StudentT, df, 0.3, 2.0), rtol=1e-8, atol=1e-18)


@pytest.mark.parametrize("n", [2, 5])
def test_lkj_of_the_determinant(n):
    """log det R is sufficient: E (d log p / d eta)^2 is the variance of log det R = -d^2 log c."""
    b = 1.4 + 0.5 * (n - 2 - np.arange(n - 1))  # column j has n - 1 - j partial correlations
    polygamma = jax.scipy.special.polygamma
    spread = 2.0 * polygamma(1, b) - 4.0 * polygamma(1, 2.0 * b)
    gram = fisher(lambda c: dist.LKJCholesky(n, c), 1.4)
    assert_allclose(gram, [[np.sum((n - 1 - np.arange(n - 1)) * spread)]], rtol=1e-10)

    def log_density(c):
        factor = dist.LKJCholesky(n, 1.0).sample(jax.random.key(1))
        return dist.LKJCholesky(n, c).log_prob(factor)

    assert_allclose(gram, [[-jax.jit(jax.hessian(log_density))(1.4)]], rtol=1e-8)
