"""Options of the compiler: where they are allowed, and where a trace has none."""

import copy
import functools
import pickle
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from volform.compilation import Compiled, Remembering, remembered, safe, steady
from volform.inference.laplace.samples import Samples
from volform.models import Posterior


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


def test_options_that_this_compiler_does_not_know_are_left_out():
    options = {"xla_backend_optimization_level": 2, "xla_no_such_option": 1}
    assert float(Compiled(lambda x: 2.0 * x, options)(jnp.ones(()))) == 2.0


def test_errors_of_the_function_are_its_own():
    @steady
    def fails(x):
        raise ValueError("of the function")

    with pytest.raises(ValueError, match="of the function"):
        fails(jnp.ones(2))


class Sum(Remembering):
    x: Array
    count: list[int] = eqx.field(static=True, default_factory=list)

    @remembered
    def total(self) -> Array:
        """Sum of x."""
        self.count.append(1)
        return jnp.sum(self.x)


def test_what_is_remembered_is_computed_once_and_changes_no_tree():
    of = Sum(jnp.ones(3))
    before = jax.tree.structure(of)
    assert (float(of.total), float(of.total), len(of.count)) == (3.0, 3.0, 1)
    assert jax.tree.structure(of) == before
    assert float(eqx.tree_at(lambda s: s.x, of, jnp.zeros(3)).total) == 0.0
    assert float(jax.grad(lambda s: s.total)(of).x.sum()) == 3.0


def test_copies_find_by_themselves_what_is_remembered():
    of = Sum(np.ones(3))  # pyright: ignore[reportArgumentType]
    assert of.total == 3.0
    for other in (copy.copy(of), copy.deepcopy(of), pickle.loads(pickle.dumps(of))):
        count = len(other.count)
        assert other.total == 3.0
        assert len(other.count) == count + 1


def _modules(of: Any = eqx.Module) -> set[type]:
    return {of}.union(*map(_modules, of.__subclasses__()))


def test_no_module_of_ours_keeps_values_among_its_fields():
    """By which all compiled functions of it would be compiled again."""
    ours = {of for of in _modules() if of.__module__.startswith("volform.")}
    assert Posterior in ours
    for of in ours - {Samples}:  # draws in NumPy, which no program takes
        kept = [v for v in vars(of).values() if isinstance(v, functools.cached_property)]
        assert all(isinstance(v, remembered) for v in kept), of
        assert not kept or issubclass(of, Remembering), of
