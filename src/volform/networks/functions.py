"""Networks of other libraries, and plain functions, as NumPyro models."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, PRNGKeyArray, PyTree

from volform.checks import require_key
from volform.equivalence.copies import copies
from volform.errors import NetworkError
from volform.networks.network import require_real

Prior = (
    float
    | dist.Distribution
    | Mapping[str, dist.Distribution]
    | Callable[[str, tuple[int, ...]], dist.Distribution]
)


class Function(eqx.Module):
    """A function of a pytree of parameters as a NumPyro model; built by `from_function`.

    Attributes:
        function: `function(params, x)`.
        rest: what of the pytree is no array, which stays as it is.
        priors: the prior of each array, by the name of its site, in the order of the pytree.
    """

    function: Callable[[Any, Any], Array] = eqx.field(static=True)
    rest: PyTree
    priors: dict[str, dist.Distribution]
    names: tuple[str, ...] = eqx.field(static=True)
    treedef: Any = eqx.field(static=True)

    def __call__(self, x: Any) -> Array:
        """Samples the parameters as NumPyro sites; the value of the function."""
        params = {
            name: jnp.asarray(numpyro.sample(name, prior, infer={"equivalent_modes": copies}))
            for name, prior in self.priors.items()
        }
        return self.apply(params, x)

    def apply(self, params: Mapping[str, Array], x: Any) -> Array:
        """The function of its parameters by site.

        Raises:
            NetworkError: when a site is missing from `params`.
        """
        missing = [name for name in self.names if name not in params]
        if missing:
            raise NetworkError(
                f"`params` lacks {missing}; it should hold every site of the network, as "
                "`network.init(key)` returns them."
            )
        arrays = jax.tree.unflatten(self.treedef, [params[name] for name in self.names])
        return self.function(eqx.combine(arrays, self.rest), x)

    def values(self, params: PyTree) -> dict[str, Array]:
        """Parameters by site, of a pytree like the one that the network was made of.

        The end of a training elsewhere becomes the point of `vf.laplace(posterior, at=...)`.

        Raises:
            NetworkError: when the pytree has other arrays.
        """
        leaves, treedef = jax.tree.flatten(eqx.filter(params, eqx.is_array))
        expected = [self.priors[name].shape() for name in self.names]
        if treedef != self.treedef or [leaf.shape for leaf in leaves] != expected:
            raise NetworkError(
                f"`params` has arrays of shapes {[leaf.shape for leaf in leaves]}; it should be a "
                f"pytree like that of `from_function`, with arrays of shapes {expected}."
            )
        return dict(zip(self.names, leaves, strict=True))

    def init(self, key: PRNGKeyArray) -> dict[str, Array]:
        """Parameters drawn from the prior."""
        require_key(key, "key", "init", NetworkError)
        keys = jax.random.split(key, len(self.names))
        pairs = zip(self.names, keys, strict=True)
        return {name: jnp.asarray(self.priors[name].sample(k)) for name, k in pairs}


def from_function(
    function: Callable[[Any, Any], Array], params: PyTree, prior: Prior = 1.0
) -> Function:
    """A NumPyro model of any function `function(params, x)`: a site for each array of `params`.

    Sites are called by their place in the pytree, `layers.0.weight`. What is no array (activation
    functions, sizes) stays as it is. The metric of each site is the default, `Euclidean()`.

    - equinox: `from_function(lambda net, x: jax.vmap(net)(x), net)`;
    - flax.nnx: `graph, state, rest = nnx.split(net, nnx.Param, ...)`, then
      `from_function(lambda state, x: nnx.merge(graph, state, rest)(x), state)`, with `net.eval()`
      before where it has dropout or batch norm.

    Args:
        function: from parameters and inputs to outputs.
        params: any pytree with float32 or float64 arrays: gives shapes and names, not values.
        prior: standard deviation of an independent Normal prior; or, as in
            `numpyro.contrib.module`, a distribution of each entry, such as `dist.Normal(0, 1)`, a
            dict of these for every site by name, or a function `prior(name, shape)` that returns
            one, of an entry or of the whole site.

    Returns:
        A network for `regression`, `classification` and `supervised`, with `apply` and `init`.

    Raises:
        NetworkError: when `params` has no array, or one that is not float32 or float64; when
            `prior` is none of these, lacks a site or names another one, or is of another shape.

    >>> import jax.numpy as jnp, volform as vf
    >>> line = lambda p, x: p["slope"] * x + p["offset"]
    >>> net = vf.networks.from_function(line, {"slope": jnp.ones(1), "offset": jnp.zeros(1)})
    >>> vf.condition(vf.networks.regression(net), jnp.ones((4, 1)), jnp.zeros((4, 1))).names
    ('offset', 'slope')
    """
    arrays, rest = eqx.partition(params, eqx.is_array)
    found, treedef = jax.tree_util.tree_flatten_with_path(arrays)
    if not callable(function) or not found:
        raise NetworkError(
            f"`function` should be a function of `params` and inputs, and `params` a pytree with "
            f"arrays; got {function!r} and {len(found)} arrays."
        )
    leaves = {}
    for path, leaf in found:
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "params"
        require_real(leaf, name)
        leaves[name] = leaf
    if isinstance(prior, Mapping) and set(prior) != set(leaves):
        raise NetworkError(
            f"`prior` has distributions of {sorted(prior)}; it should have one of every site, "
            f"{sorted(leaves)}."
        )
    priors = {name: _prior_of(prior, name, leaf) for name, leaf in leaves.items()}
    return Function(function, rest, priors, tuple(priors), treedef)


def _prior_of(prior: Prior, name: str, leaf: Array) -> dist.Distribution:
    match prior:
        case float() | int() if prior > 0:
            return dist.Normal(0.0, prior).expand(leaf.shape).to_event(leaf.ndim)
        case Mapping():
            return _expanded(prior[name], name, leaf.shape)
        case dist.Distribution():  # which is callable
            return _expanded(prior, name, leaf.shape)
        case Callable():
            return _expanded(prior(name, leaf.shape), name, leaf.shape)
        case _:
            raise NetworkError(
                f"`prior` is {prior!r}; it should be a positive standard deviation, a NumPyro "
                "distribution, a dict of these by site, or a function `prior(name, shape)` that "
                "returns one."
            )


def _expanded(fn: Any, name: str, shape: tuple[int, ...]) -> dist.Distribution:
    """The distribution of a site, of one of its entries or of trailing axes of it."""
    if isinstance(fn, dist.Distribution):
        if fn.shape() == shape:
            return fn
        lead = shape[: len(shape) - fn.event_dim]
        if fn.event_shape == shape[len(lead) :] and _broadcasts(fn.batch_shape, lead):
            return fn.expand(lead).to_event(len(lead))
    raise NetworkError(
        f"`prior` of `{name}` is {fn!r}; it should be a NumPyro distribution of an entry, or of "
        f"shape {shape}, for example `dist.Normal(0, 1).expand(shape).to_event(len(shape))`."
    )


def _broadcasts(batch: tuple[int, ...], lead: tuple[int, ...]) -> bool:
    try:
        return jnp.broadcast_shapes(batch, lead) == lead
    except ValueError:
        return False
