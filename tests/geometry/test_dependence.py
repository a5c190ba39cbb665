import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax

from volform.geometry import dependence, moves, numbers_computed

X = jnp.array([0.3, 1.7])
DATA = jnp.arange(3.0)

CASES = {
    "constant": (lambda x: 1.0, False),
    "data": (lambda x: jnp.sum(DATA), False),
    "itself": (lambda x: x, True),
    "shape only": (lambda x: jnp.zeros_like(x), False),
    "times zero": (lambda x: 0.0 * x, True),
    "arithmetic": (lambda x: jnp.sin(x) + 1.0, True),
    "stopped gradient": (lambda x: lax.stop_gradient(x), True),
    "jit": (jax.jit(lambda x: jnp.exp(x)), True),
    "jit of data": (lambda x: jax.jit(lambda a, b: a * 2.0)(DATA, x), False),
    "custom derivative": (lambda x: jax.nn.relu(x), True),
    "custom derivative of data": (lambda x: jax.nn.relu(DATA), False),
    "branch": (lambda x: lax.cond(x[0] > 0, lambda: 1.0, lambda: 2.0), True),
    "loop": (lambda x: lax.fori_loop(0, 3, lambda i, c: c + x[0], 0.0), True),
    "loop of data": (lambda x: lax.fori_loop(0, 3, lambda i, c: c + 1.0, 0.0), False),
    "scan": (lambda x: lax.scan(lambda c, d: (c + d, d), x[0], DATA)[0], True),
    "vmap": (lambda x: jax.vmap(lambda d: d * x[0])(DATA), True),
    "derivative": (lambda x: jax.grad(lambda y: jnp.sum(y**3))(x), True),
}


@pytest.mark.parametrize(("f", "expected"), CASES.values(), ids=CASES)
def test_dependence(f, expected):
    assert moves(dependence(f, X)) == expected


def test_leaf_by_leaf():
    flags = dependence(lambda x: {"a": x[0], "b": (DATA, jnp.exp(x))}, X)
    assert flags == {"a": True, "b": (False, True)}


def test_through_a_function_that_passes_some_arguments_on():
    def f(x):
        doubled, data = jax.jit(lambda a, b: (2.0 * a, b + 1.0))(x, DATA)
        return doubled, data

    assert dependence(f, X) == (True, False)


def test_through_a_scan():
    """The carry c becomes what d was a step before; e never hears of x."""

    def f(x):
        def step(carry, data):
            c, d, e = carry
            return (d, d + x[0], e + data), (c, data)

        (c, d, e), (cs, datas) = lax.scan(step, (0.0, 0.0, 0.0), DATA)
        return {"c": c, "d": d, "e": e, "cs": cs, "data": datas}

    flags = dependence(f, X)
    assert flags == {"c": True, "d": True, "e": False, "cs": True, "data": False}
    start = dependence(lambda x: lax.scan(lambda c, d: (c, d), x[0], DATA), X)
    assert start == (True, False)


def test_distributions_are_pytrees():
    flags = dependence(lambda x: dist.Normal(x[0], 2.0), X)
    assert isinstance(flags, dist.Normal)
    assert (flags.loc, flags.scale) == (True, False)


def test_arrays_in_the_tree_definition():
    """NumPyro keeps the counts of a multinomial where they cannot be compared."""
    counts = np.array([3, 4])
    flags = dependence(lambda x: dist.MultinomialProbs(jnp.ones(3) / 3.0, counts), X)
    assert not moves(flags)
    flags = jax.jit(lambda x: dependence(lambda x: dist.MultinomialProbs(x, counts), x).probs)(X)
    assert flags


def test_under_jit():
    def f(x):
        assert dependence(lambda y: (y, x), x) == (True, False)
        return x

    jax.jit(f)(X)


def test_nothing_is_evaluated():
    def f(x):
        assert isinstance(x, jax.core.Tracer)
        return x

    assert dependence(f, X)


def test_numbers_that_a_program_computes():
    """Each element of each result once, and those in a loop at each of its steps."""

    def f(x):
        y = jnp.sin(x) + 1.0  # 2 + 2

        def step(c, _):
            return jax.jit(jnp.cos)(c * 2.0), c  # 1 + 1, five times

        return y, lax.scan(step, 0.5, None, length=5)[0]

    assert numbers_computed(jax.make_jaxpr(f)(X).jaxpr) == 2 + 2 + 5 * 2
