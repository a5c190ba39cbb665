"""Options of the compiler: where they are allowed, and where a trace has none."""

import jax
import jax.numpy as jnp
import pytest

from volform.compilation import safe, steady


@pytest.mark.parametrize("compiled", [safe, steady])
def test_within_a_trace(compiled):
    """Also of a function that closes over a traced value, of arguments that are none."""
    double = compiled(lambda x: 2.0 * x)

    @jax.jit
    def traced(x):
        with jax.ensure_compile_time_eval():
            known = double(jnp.ones(2))
            shifted = compiled(lambda y: x + y)(jnp.ones(2))
        return double(x) + known + shifted

    assert double(jnp.ones(2)).tolist() == [2.0, 2.0]
    assert traced(jnp.ones(2)).tolist() == [6.0, 6.0]
    assert jax.vmap(double)(jnp.ones(2)).tolist() == [2.0, 2.0]


def test_errors_of_the_function_are_its_own():
    @steady
    def fails(x):
        raise ValueError("of the function")

    with pytest.raises(ValueError, match="of the function"):
        fails(jnp.ones(2))
