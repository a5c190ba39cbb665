"""A NumPyro model with its data: traced at given values, as a pure function of arrays."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.infer.util import log_density

from volform.errors import DataError, ModelError


class ById:
    """Hashes an object by identity, so that it can be static under `jit`."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and self.value is other.value


class Program(eqx.Module):
    """A model with its arguments: arrays are leaves, everything else is static.

    A model that needs its arrays as constants (for shapes or Python control flow) gets them so.
    """

    model: Callable = eqx.field(static=True)
    data: Any

    def arguments(self) -> tuple[tuple, dict[str, Any]]:
        """`(args, kwargs)` as the model takes them."""
        data = self.data.value if isinstance(self.data, ById) else self.data
        is_wrapped = lambda leaf: isinstance(leaf, ById)  # noqa: E731
        return jax.tree.map(lambda x: x.value if is_wrapped(x) else x, data, is_leaf=is_wrapped)

    def run(self, values: dict[str, Any]) -> dict[str, Any]:
        """The trace of the model with its latent sites set to `values`."""
        return self.run_with_density(values)[1]

    def run_with_density(
        self, values: dict[str, Any]
    ) -> tuple[Float[Array, ""], dict[str, Any]]:
        """Log joint density with respect to Lebesgue measure on the values, and the trace."""
        args, kwargs = self.arguments()
        fixed = handlers.substitute(self.model, data=values)
        # The seed is for `numpyro.prng_key` and plates; latent sites are set before it sees them.
        return log_density(handlers.seed(fixed, rng_seed=0), args, kwargs, {})

    def first_trace(self, model: Callable, initial: Callable) -> dict[str, Any]:
        """One concrete trace with latent sites set by `initial(site)`."""
        args, kwargs = self.arguments()
        seeded = handlers.seed(handlers.substitute(model, substitute_fn=initial), rng_seed=0)
        try:
            return handlers.trace(seeded).get_trace(*args, **kwargs)
        except (TypeError, ValueError) as error:
            if isinstance(error, ModelError | DataError):
                raise
            shapes = jax.tree.map(np.shape, (args, kwargs))
            raise DataError(
                f"`model` could not be run on its data, of shapes {shapes}: {error}. Check that "
                "every argument is there and that lengths agree."
            ) from error


def make_program(model: Callable, args: tuple, kwargs: dict[str, Any]) -> Program:
    """The model with its data, arrays turned into JAX arrays.

    Raises:
        DataError: when an argument holds an array of floating-point NaN.
    """
    return Program(model, jax.tree.map(_leaf, (args, kwargs)))


def with_constant_data(program: Program) -> Program:
    """The same program with its arrays as compile-time constants."""
    return Program(program.model, ById(jax.tree.map(_constant, program.arguments())))


def _leaf(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray | jax.Array | np.generic):
        return jnp.asarray(leaf)
    try:
        hash(leaf)
    except TypeError:
        return ById(leaf)
    return leaf


def _constant(leaf: Any) -> Any:
    return np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf
