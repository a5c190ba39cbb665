"""A NumPyro model with its data: traced at given values, as a pure function of arrays."""

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.infer.util import compute_log_probs, log_density

from volform.errors import DataError, ModelError, VolformError


class ById:
    """Hashes an object by identity, so that it can be static under `jit`."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and self.value is other.value


class ModelWithData(eqx.Module):
    """A model with its arguments: arrays are leaves, everything else is static.

    A model that needs its arrays as constants (for shapes or Python control flow) gets them so.
    """

    model: Callable = eqx.field(static=True)
    data: Any

    @property
    def name(self) -> str:
        """The name of the model's function, under whatever handlers."""
        return model_name(self.model)

    def arguments(self) -> tuple[tuple, dict[str, Any]]:
        """`(args, kwargs)` as the model takes them."""
        data = self.data.value if isinstance(self.data, ById) else self.data
        is_wrapped = lambda leaf: isinstance(leaf, ById)  # noqa: E731
        return jax.tree.map(lambda x: x.value if is_wrapped(x) else x, data, is_leaf=is_wrapped)

    def run(self, values: dict[str, Any]) -> dict[str, Any]:
        """The trace of the model with its latent sites set to `values`."""
        return self.run_with_density(values)[1]

    def run_with_density(self, values: dict[str, Any]) -> tuple[Float[Array, ""], dict[str, Any]]:
        """Log joint density with respect to Lebesgue measure on the values, and the trace."""
        args, kwargs = self.arguments()
        fixed = handlers.substitute(self.model, data=values)
        with self.staging():
            # The seed is for `numpyro.prng_key`; latent sites are set before it sees them.
            density, trace = log_density(handlers.seed(fixed, rng_seed=0), args, kwargs, {})
        return jnp.asarray(density), trace

    def site_densities(self, values: dict[str, Any]) -> dict[str, Float[Array, ""]]:
        """Log density of each sample site, its elements summed."""
        args, kwargs = self.arguments()
        with self.staging():
            return compute_log_probs(handlers.seed(self.model, 0), args, kwargs, values)[0]

    def trace(self, model: Callable) -> dict[str, Any]:
        """The trace of `model`, this one with handlers around it, on the same arguments."""
        args, kwargs = self.arguments()
        with self.staging():
            return handlers.trace(model).get_trace(*args, **kwargs)

    def staging(self) -> contextlib.AbstractContextManager:
        """Context to run the model in: constants stay concrete under `jit` and `lax.map`."""
        is_constant = isinstance(self.data, ById)
        return jax.ensure_compile_time_eval() if is_constant else contextlib.nullcontext()

    def first_trace(self, model: Callable, initial: Callable) -> dict[str, Any]:
        """One concrete trace with latent sites set by `initial(site)`.

        Raises:
            DataError: when the model cannot be run on its data.
        """
        seeded = handlers.seed(handlers.substitute(model, substitute_fn=initial), rng_seed=0)
        try:
            return self.trace(seeded)
        except VolformError:
            raise
        except AssertionError as error:
            raise ModelError(
                f"NumPyro refuses the model `{self.name}` as it is written: {error}"
            ) from error
        except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise DataError(
                f"`{self.name}` could not be run {self.data_in_words()}. "
                f"{type(error).__name__}: {str(error).rstrip('.')}. Check that every argument is "
                "there, without NaN, and that lengths agree."
            ) from error

    def data_in_words(self) -> str:
        """The arguments by name with their shapes, and how many of their values are NaN."""
        args, kwargs = self.arguments()
        try:
            bound = inspect.signature(self.model).bind_partial(*args, **kwargs).arguments
        except (TypeError, ValueError):
            bound = {"args": args, "kwargs": kwargs}
        if not bound:
            return "without arguments"
        return "with " + ", ".join(f"`{name}` {_in_words(value)}" for name, value in bound.items())


def _in_words(value: Any) -> str:
    shapes = jax.tree.map(lambda x: np.shape(x) if hasattr(x, "shape") else x, value)
    bad = sum(int(np.sum(~np.isfinite(leaf))) for leaf in jax.tree.leaves(value) if _is_real(leaf))
    if not hasattr(value, "shape"):
        return str(shapes)
    return f"of shape {shapes}" + (f" and {bad} NaN or infinite values" if bad else "")


def _is_real(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and np.issubdtype(leaf.dtype, np.floating)


def model_name(model: Callable) -> str:
    """The name of the model's function, under whatever handlers and partial applications."""
    while isinstance(model, functools.partial):
        model = model.func
    return getattr(model, "__name__", None) or type(model).__name__


def make_program(model: Callable, args: tuple, kwargs: dict[str, Any]) -> ModelWithData:
    """The model with its data, arrays turned into JAX arrays."""
    return ModelWithData(_static(model), jax.tree.map(_leaf, (args, kwargs)))


def with_constant_data(program: ModelWithData) -> ModelWithData:
    """The same program with its arrays as compile-time constants."""
    return ModelWithData(program.model, ById(program.arguments()))


def _static(model: Callable) -> Callable:
    """The model as something that is hashed by identity: a pytree or dataclass may not be."""
    try:
        hash(model)
    except TypeError:
        return functools.partial(model)
    leaves = jax.tree.leaves(model)
    is_leaf = len(leaves) == 1 and leaves[0] is model
    return model if is_leaf else functools.partial(model)


def _leaf(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return leaf
    if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind in "biufc":
        return jnp.asarray(leaf)
    try:
        hash(leaf)
    except TypeError:
        return ById(leaf)
    return leaf
