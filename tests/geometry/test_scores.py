"""Derivatives along tangents, with what they share computed once."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from volform.geometry.coframes import _negative_binomial_dispersion
from volform.geometry.scores import along, elementwise

# NumPyro mixes ranks in mixtures, as the integral over nodes does.
pytestmark = pytest.mark.rank_promotion


def _slopes(f, z, dz, points, step=1e-6):
    def moved(i, by):
        shift = lambda leaf, move: leaf + by * move[i]  # noqa: E731
        return jax.vmap(lambda point: f(jax.tree.map(shift, z, dz), point))(points)

    d = len(jax.tree.leaves(dz)[0])
    return np.stack([(moved(i, step) - moved(i, -step)) / (2 * step) for i in range(d)])


def test_slopes_of_one_number_at_a_point_are_those_by_differences():
    fn = dist.MixtureSameFamily(
        dist.Categorical(logits=jnp.array([0.2, -0.3])),
        dist.Normal(jnp.array([-1.0, 2.0]), jnp.array([0.5, 1.5])),
    )
    random = np.random.default_rng(0)
    dfn = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=(3, *leaf.shape))), fn)
    points = jnp.linspace(-2.0, 3.0, 7)
    values, slopes = along(lambda fn, x: fn.log_prob(x), fn, dfn, points)
    np.testing.assert_allclose(values, fn.log_prob(points), rtol=1e-14)
    expected = _slopes(lambda fn, x: fn.log_prob(x), fn, dfn, points)
    np.testing.assert_allclose(slopes, expected, rtol=1e-8, atol=1e-8)


def test_slopes_of_a_batch_are_those_by_differences():
    z = {"loc": jnp.array([0.1, -0.2]), "scale": jnp.array(1.3)}
    dz = {"loc": jnp.array([[1.0, 0.5], [0.0, 2.0]]), "scale": jnp.array([0.3, -1.0])}
    points = jnp.array([[0.0, 1.0], [2.0, -1.0], [0.5, 0.25]])

    def f(z, x):
        return dist.Normal(z["loc"], z["scale"]).log_prob(x)

    values, slopes = along(f, z, dz, points)
    assert values.shape == (3, 2)
    np.testing.assert_allclose(slopes, _slopes(f, z, dz, points), rtol=1e-8, atol=1e-8)


def test_integers_among_parameters_stay():
    z, dz = (jnp.array(0.4), 3), (jnp.array([1.0, 2.0]), jnp.zeros(2))
    _, slopes = along(lambda z, x: x * z[0] ** z[1], z, dz, jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(slopes, np.outer([1.0, 2.0], [1.0, 2.0]) * 3 * 0.4**2, rtol=1e-14)


def test_partial_derivatives_are_those_of_the_function_to_second_order():
    c, mean = jnp.array([0.7, 3.0, 40.0]), jnp.array([2.0, 0.5, 9.0])
    f, g = _negative_binomial_dispersion, elementwise(_negative_binomial_dispersion)
    of = [lambda a, f=f: jnp.sum(f(c * jnp.exp(a[0]), mean * jnp.exp(a[1]))) for f in (f, g)]
    start = jnp.zeros(2)
    for order in range(3):
        plain, partial = (jax.jit(h)(start) for h in of)
        np.testing.assert_allclose(partial, plain, rtol=1e-9, atol=1e-12, err_msg=str(order))
        of = [jax.jacrev(h) if order == 0 else jax.jacfwd(h) for h in of]


def _largest(jaxpr):
    inner = [p for eqn in jaxpr.eqns for p in jax.tree.leaves(eqn.params) if hasattr(p, "jaxpr")]
    sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
    return max([*sizes, *(_largest(part.jaxpr) for part in inner)], default=0)


def test_tangents_do_not_enter_the_function():
    def work(wrap):
        f = wrap(lambda x: jnp.sum(jnp.sin(x[:, None] * jnp.arange(100.0)), -1))
        column = jax.grad(lambda x: jnp.sum(f(x) ** 2))
        return _largest(jax.make_jaxpr(jax.jacfwd(column))(jnp.ones(6)).jaxpr)

    assert work(elementwise) <= 6 * 100 < work(lambda f: f)
