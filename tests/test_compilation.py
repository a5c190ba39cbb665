"""Options of the compiler: where they are allowed, and where a trace has none."""

import gc

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from volform.compilation import cached_by_identity, safe, steady


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


class Squared(eqx.Module):
    """A number, and how often its square was computed."""

    number: jax.Array
    counts: list[int] = eqx.field(static=True)

    @cached_by_identity
    def square(self):
        self.counts.append(1)
        return self.number**2


def test_what_is_cached_by_identity_leaves_a_module_as_it_was():
    one, counts = Squared(jnp.array(3.0), []), []
    two = Squared(jnp.array(4.0), counts)
    before = jax.tree.structure(one)
    assert [float(one.square), float(one.square), float(two.square)] == [9.0, 9.0, 16.0]
    assert (len(one.counts), len(counts)) == (1, 1)
    assert jax.tree.structure(one) == before
    moved = jax.tree.map(lambda x: x + 1.0, one)  # another object, another value
    assert float(moved.square) == 16.0
    kept = type(one).__dict__["square"]._found
    assert len(kept) == 3
    del one, two, moved
    gc.collect()
    assert not kept
