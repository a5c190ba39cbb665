"""Data as examples: checks, sums in chunks of bounded memory, outputs and their likelihood."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from volform.checks import require_whole
from volform.errors import DataError, MetricError, OperatorError
from volform.geometry.fisher import Fisher
from volform.geometry.metric import call_at
from volform.linalg.operator import require_params

Family = Callable[..., dist.Distribution]
NetworkFunction = Callable[[Any, Any], Any]


def sum_over(
    fn: Callable[[Any, Float[Array, " b"]], Any], data: PyTree, like: Any, chunk: int | None
) -> Any:
    """Sum of `fn(examples, weights)` over chunks; the last is filled up with weights of zero."""
    count = count_of(data)
    if chunk is None or chunk >= count:
        return fn(data, jnp.ones(count, like))

    chunks = -(-count // chunk)
    each = jnp.arange(chunk) * chunks

    def step(total: Any, number: Array) -> tuple[Any, None]:
        weights = (number + each < count).astype(like)
        value = fn(_taken(data, number, chunk, chunks), weights)
        return jax.tree.map(jnp.add, total, value), None

    first = _taken(data, jnp.array(0), chunk, chunks)
    shapes = jax.eval_shape(fn, first, jnp.ones(chunk, like))
    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(step, start, jnp.arange(chunks))[0]


def in_chunks(fn: Callable[[Any], Any], data: PyTree, chunk: int | None) -> Any:
    """`fn(examples)` for each chunk, the leading axes of the results joined again."""
    count = count_of(data)
    if chunk is None or chunk >= count:
        return fn(data)
    chunks = -(-count // chunk)
    numbers = jnp.arange(chunks)
    parts = jax.lax.map(lambda number: fn(_taken(data, number, chunk, chunks)), numbers)
    in_order = lambda a: jnp.swapaxes(a, 0, 1).reshape(-1, *a.shape[2:])[:count]  # noqa: E731
    return jax.tree.map(in_order, parts)


def _taken(data: PyTree, number: Array, chunk: int, chunks: int) -> PyTree:
    """Every `chunks`-th example from `number` on.

    Data that are spread over devices in consecutive blocks are in each chunk from every device: all
    of them work at once, and no example leaves its own.
    """

    def of_leaf(leaf: Array) -> Array:
        if chunk * chunks == len(leaf):
            return leaf.reshape(chunk, chunks, *leaf.shape[1:])[:, number]
        # The fill is made of true examples, so that nothing computed from it is infinite.
        return leaf[jnp.minimum(number + jnp.arange(chunk) * chunks, len(leaf) - 1)]

    return jax.tree.map(of_leaf, data)


def count_of(data: PyTree) -> int:
    """Number of examples."""
    return jax.tree.leaves(data)[0].shape[0]


def structure_of_one(data: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of one example."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), data)


def log_likelihood(likelihood: Family, z: Any, y: Any) -> Float[Array, ""]:
    """`log p(y | z)`, summed over the elements of one example."""
    return jnp.sum(call_at(likelihood, z).log_prob(y))


def checked(
    function: str,
    network: NetworkFunction,
    likelihood: Family,
    params: PyTree,
    data: Any,
    chunk: int | None,
) -> tuple[PyTree, tuple[Any, Any]]:
    """Parameters and data as arrays, after checks of everything that can be checked.

    Raises:
        OperatorError: for parameters, a network or a likelihood that do not fit.
        DataError: for data that are empty, of unequal length, or no pair.
    """
    require_params(params, function)
    if chunk is not None:
        require_whole(chunk, "chunk", function)
    params = jax.tree.map(jnp.asarray, params)
    x, y = _checked_data(function, data)
    z = _output(function, network, params, structure_of_one(x))
    try:
        family = jax.eval_shape(lambda z: call_at(likelihood, z), z)
    except Exception as error:
        raise OperatorError(
            f"`likelihood` of {function} does not take the output of `network`, {_shapes(z)} for "
            f"one example: {error}"
        ) from error
    if not isinstance(family, dist.Distribution):
        raise OperatorError(
            f"`likelihood` of {function} returned {type(family).__name__}; it should return a "
            "NumPyro distribution, as in `lambda z: dist.Normal(z, 1.0)`."
        )
    shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(y)]
    if shapes != [family.shape()]:
        raise OperatorError(
            f"`likelihood` of {function} gives one example the shape {family.shape()} for the "
            f"network's output {_shapes(z)}, while `y` has {shapes} for each example; they should "
            "be the same: the network maps one example to the parameters of one label."
        )
    return params, (x, y)


def _checked_data(function: str, data: Any) -> tuple[Any, Any]:
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise DataError(
            f"`data` of {function} should be a pair `(x, y)` of arrays with one example along each "
            f"leading axis; got {type(data).__name__}."
        )
    x, y = as_examples(tuple(data), function)
    return x, y


def as_examples(data: PyTree, function: str) -> PyTree[Array]:
    """`data` as arrays, with as many examples, and at least one, along each leading axis."""
    data = jax.tree.map(jnp.asarray, data)
    counts = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(data)}
    if len(counts) != 1 or None in counts or 0 in counts:
        raise DataError(
            f"`data` of {function} has leading axes of length {sorted(counts, key=str)}; all its "
            "arrays should hold the same number of examples, and at least one."
        )
    return data


def _output(function: str, network: NetworkFunction, params: PyTree, x: Any) -> Any:
    try:
        z = jax.eval_shape(network, params, x)
    except Exception as error:
        raise OperatorError(
            f"`network` of {function} should map `(params, x)` for one example x, here "
            f"{_shapes(x)}, to an output; it failed: {error}"
        ) from error
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(z)):
        raise OperatorError(
            f"`network` of {function} returned {_shapes(z)}; its output should be real numbers, "
            "the parameters of the likelihood."
        )
    return z


def _shapes(tree: PyTree) -> Any:
    return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree)


def is_canonical(likelihood: Family, z: PyTree[jax.ShapeDtypeStruct]) -> bool:
    """Tell whether `-d^2 log p(y | z) / dz^2` equals its expectation whatever y is.

    Then Gauss-Newton is Fisher, and a Gram matrix. Found by comparing the two at 16 random outputs
    with labels drawn from the likelihood; False where that depends on traced values.
    """
    with jax.ensure_compile_time_eval():
        try:
            return bool(_hessians_are_fisher(likelihood, z))
        except (MetricError, NotImplementedError, jax.errors.ConcretizationTypeError):
            return False


@eqx.filter_jit
def _hessians_are_fisher(likelihood: Family, z: PyTree[jax.ShapeDtypeStruct]) -> Bool[Array, ""]:
    flat, unravel = ravel_pytree(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), z))
    fisher = Fisher(likelihood)

    def agree(key: Array, z: Float[Array, " o"]) -> Bool[Array, ""]:
        y = jax.lax.stop_gradient(call_at(likelihood, unravel(z)).sample(key))
        observed = -jax.hessian(lambda z: log_likelihood(likelihood, unravel(z), y))(z)
        root = fisher.root(unravel(z))
        expected = root.T @ root
        tolerance = jnp.sqrt(jnp.finfo(flat.dtype).eps) * jnp.abs(expected).max()
        return jnp.all(jnp.abs(observed - expected) <= tolerance)

    # NumPy's draws are constants of the program, which JAX's would take longer to compile.
    drawn = np.random.default_rng(0).normal(size=(16, flat.size)) * np.repeat([[1.0], [3.0]], 8, 0)
    keys = jax.random.split(jax.random.key(0), 16)
    return jnp.all(jax.vmap(agree)(keys, jnp.asarray(drawn, flat.dtype)))
