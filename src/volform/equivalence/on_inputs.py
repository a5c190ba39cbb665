"""A function on given inputs, as a map of a flat vector of parameters."""

import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from volform.checks import require_untraced
from volform.errors import DataError, NetworkError

BLOCK = 2**23  # numbers of a Jacobian at once, 64 MiB of float64
BESIDE = 1e-6  # relative change of an output that other inputs beside it may make, by rounding


class OnInputs(eqx.Module):
    """The map from flat parameters to flat outputs on x; made by `function_on`, which checks it.

    Attributes:
        f: the function of parameters and inputs.
        x: inputs, arrays with one leading axis.
        unravel: from flat parameters to those of f.
        point: the parameters that were given, flat.
        target: the outputs there, flat.
    """

    f: Callable[[Any, Any], Any]
    x: Any
    unravel: Callable[[Array], Any] = eqx.field(static=True)
    point: Float[Array, " d"]
    target: Float[Array, " m"]

    def __call__(self, flat: Float[Array, " d"]) -> Float[Array, " m"]:
        """The outputs on all inputs."""
        return _flat(self.f(self.unravel(flat), self.x))

    def change(self, flat: Float[Array, " d"]) -> Float[Array, " m"]:
        """Residuals whose sum of squares is the relative loss, `mean |f - f*|^2 / mean |f*|^2`."""
        return (self(flat) - self.target) / jnp.linalg.norm(self.target)

    def relative_loss(self, flat: Float[Array, " d"]) -> Float[Array, ""]:
        """Mean squared change of the outputs over their own mean square."""
        return jnp.sum(self.change(flat) ** 2)

    @eqx.filter_jit
    def jacobian(self, flat: Float[Array, " d"]) -> Float[Array, "m d"]:
        """Derivatives of the outputs, by the shorter side."""
        forward = flat.size <= self.target.size
        return (jax.jacfwd if forward else jax.jacrev)(self.__call__)(flat)

    def parts(self) -> list["OnInputs"]:
        """The same function on parts of the inputs whose Jacobians are small.

        All inputs are one part where the outputs of one depend on the others.
        """
        count = len(jax.tree.leaves(self.x)[0])
        number = min(count, -(-self.point.size * self.target.size // BLOCK))
        bounds = np.linspace(0, count, number + 1).astype(int)
        pairs = itertools.pairwise(bounds)
        xs = [jax.tree.map(lambda leaf, a=a, b=b: leaf[a:b], self.x) for a, b in pairs]
        if number <= 1:
            return [self]
        found = [_flat(self.f(self.unravel(self.point), x)) for x in xs]
        joined = jnp.concatenate(found)
        size = BESIDE * jnp.max(jnp.abs(self.target))
        if joined.shape != self.target.shape or jnp.any(jnp.abs(joined - self.target) > size):
            return [self]
        return [
            OnInputs(self.f, x, self.unravel, self.point, target)
            for x, target in zip(xs, found, strict=True)
        ]

    def require_outputs(self, function: str) -> None:
        """Refuse a function that is zero on all inputs.

        Raises:
            DataError: then a loss relative to its mean square is not defined.
        """
        if not jnp.any(self.target != 0.0):
            raise DataError(
                f"`f` is zero on all inputs of {function}, as behind a dead output unit, so that "
                "no loss is small relative to it. Give other `params` or `x`."
            )


def _flat(outputs: Any) -> Float[Array, " m"]:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(outputs)])


def flat_params(params: Any, argument: str, function: str) -> tuple[Array, Callable]:
    """Parameters as one vector, and the way back.

    Raises:
        NetworkError: no arrays, leaves that are no floating-point numbers, or not finite ones.
    """
    require_untraced(params, argument, function, "call it outside of them", NetworkError)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, leaf in leaves:
        dtype = getattr(leaf, "dtype", np.asarray(leaf).dtype)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise NetworkError(
                f"`{argument}{jax.tree_util.keystr(path)}` of {function} is of dtype {dtype}; "
                "parameters should be floating-point arrays: pass others to `f` by a closure, "
                "with `equinox.partition(params, equinox.is_inexact_array)`."
            )
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, params))
    if flat.size == 0 or not bool(jnp.all(jnp.isfinite(flat))):
        raise NetworkError(
            f"`{argument}` of {function} has {flat.size} numbers, and some that are not finite "
            "if any; give a pytree of finite arrays, such as `net.init(key, x.shape)`."
        )
    return flat, unravel


def function_on(f: Callable[[Any, Any], Any], params: Any, x: Any, function: str) -> OnInputs:
    """The function on x as a map of flat parameters.

    Raises:
        NetworkError: a function that is not the same at each call, or that JAX cannot trace;
            parameters that are no floating-point arrays.
        DataError: inputs that are empty or of unequal length; outputs that are not finite.
    """
    flat, unravel = flat_params(params, "params", function)
    x = jax.tree.map(jnp.asarray, x)
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(x)}
    if len(lengths) != 1 or lengths <= {0, None}:
        raise DataError(
            f"`x` of {function} has the shapes {[leaf.shape for leaf in jax.tree.leaves(x)]}; it "
            "should hold inputs, as many in each array along its first axis, and at least one."
        )
    try:
        first, second = _flat(f(unravel(flat), x)), _flat(f(unravel(flat), x))
        jax.eval_shape(f, unravel(flat), x)
    except (jax.errors.JAXTypeError, jax.errors.UnexpectedTracerError) as error:
        raise NetworkError(
            f"`f` of {function} cannot be traced by JAX: {str(error).splitlines()[0]} Write it "
            "with `jax.numpy`, without Python conditions on values."
        ) from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise NetworkError(
            f"`f` of {function} failed on `params` and `x`: {type(error).__name__}: {error} It is "
            "called as `f(params, x)`, and should return arrays of numbers."
        ) from error
    if not jnp.issubdtype(first.dtype, jnp.floating):
        raise NetworkError(
            f"`f` of {function} gives outputs of dtype {first.dtype}; they should be real numbers, "
            "such as logits in place of classes, whose derivatives tell something."
        )
    if not np.array_equal(first, second, equal_nan=True):
        raise NetworkError(
            f"`f` of {function} gives other outputs at a second call with the same arguments: it "
            "draws random numbers or keeps a state. Pass a fixed key, or switch dropout off."
        )
    if not bool(jnp.all(jnp.isfinite(first))):
        raise DataError(
            f"`f` of {function} gives outputs on `x` that are NaN or infinite; give finite inputs."
        )
    return OnInputs(f, x, unravel, flat, first)
