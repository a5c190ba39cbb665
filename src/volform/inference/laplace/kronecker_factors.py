"""Curvature of the layers of networks, from what flows through them: factors and squares."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float

from volform.errors import StructureError
from volform.geometry.dependence import dependence
from volform.inference.laplace.gauss_newton import (
    DataPriorSplit,
    SiteOutputs,
    blocks_of_data,
    columns_of,
)
from volform.linalg.operator import mapped
from volform.linalg.precision import KroneckerSum
from volform.linalg.structured import DenseOperator
from volform.models.layout import Site
from volform.networks.hooks import LayerRecord

_TOGETHER = 16  # columns of the root of L that are pulled back at once


class LayerCurvature(eqx.Module):
    """Curvature in one array of a layer: its weights, or its biases."""

    @abc.abstractmethod
    def added_to(self, rest: Float[Array, " s"], multiplier: Any) -> lx.AbstractLinearOperator:
        """The block of the site that the array is a multiple of, beside a diagonal rest."""

    @abc.abstractmethod
    def pulled_back(self, jacobian: Float[Array, "d s"]) -> Float[Array, "d d"]:
        """`T F T^T` with the rows of T the derivatives of the array."""

    @abc.abstractmethod
    def adds_to(self, rest: Float[Array, " s"]) -> bool:
        """Tell whether `added_to` can be exact for this rest."""


class Weights(LayerCurvature):
    """The Kronecker product of two factors, in the matrix that multiplies the features.

    Attributes:
        left: second moments of the gradients at the outputs, summed over the columns of a root of
            L and averaged over examples and positions, shape (units, units).
        right: second moments of the features, summed, shape (fan_in, fan_in).
    """

    left: Float[Array, "m m"]
    right: Float[Array, "n n"]

    def added_to(self, rest: Float[Array, " mn"], multiplier: Any) -> lx.AbstractLinearOperator:
        """Both Kronecker products; the rest is a multiple of the identity."""
        m, n = (jnp.eye(len(factor), dtype=rest.dtype) for factor in (self.left, self.right))
        return KroneckerSum(multiplier**2 * self.left, self.right, rest[0] * m, n)

    def pulled_back(self, jacobian: Float[Array, "d mn"]) -> Float[Array, "d d"]:
        """`T (B x A) T^T`."""
        rows = jacobian.reshape(-1, len(self.left), len(self.right))
        weighed = jnp.einsum("ipq,pm,qn->imn", rows, self.left, self.right)
        return jacobian @ weighed.reshape(jacobian.shape).T

    def adds_to(self, rest: Float[Array, " mn"]) -> bool:
        """Tell whether the rest is a multiple of the identity."""
        return bool(jnp.all(rest == rest[0]))


class Biases(LayerCurvature):
    """The block of biases, exact.

    Attributes:
        matrix: shape (units, units).
    """

    matrix: Float[Array, "m m"]

    def added_to(self, rest: Float[Array, " m"], multiplier: Any) -> lx.AbstractLinearOperator:
        """The sum."""
        return DenseOperator(multiplier**2 * self.matrix + jnp.diag(rest), rest)

    def pulled_back(self, jacobian: Float[Array, "d m"]) -> Float[Array, "d d"]:
        """`T F T^T`."""
        return jacobian @ self.matrix @ jacobian.T

    def adds_to(self, rest: Float[Array, " m"]) -> bool:
        """Always."""
        return True


class SiteMultiple(NamedTuple):
    """The site that an array of a layer is a multiple of."""

    site: Site
    multiplier: Float[Array, ""]


def kronecker_blocks(
    split: DataPriorSplit, arrays: list[LayerCurvature], rest: Float[Array, " d"] | None
) -> list[lx.AbstractLinearOperator] | None:
    """The blocks of all sites in the order of u, or None where they do not keep apart.

    They do where every array of a layer is a multiple of a site of its own, and where the rest is
    diagonal, and the same for all weights of a layer.
    """
    held = holders(split)
    if rest is None or any(h is None for h in held):
        return None
    forms = {h.site.name: (form, h) for form, h in zip(arrays, held, strict=True) if h}
    if len(forms) < len(held):
        return None
    if not all(form.adds_to(rest[h.site.segment]) for form, h in forms.values()):
        return None
    blocks = {
        name: form.added_to(rest[h.site.segment], h.multiplier) for name, (form, h) in forms.items()
    }
    others = tuple(site for site in split.posterior.layout.sites if site.name not in blocks)
    for site, block in zip(others, blocks_of_data(split, others), strict=True):
        own = rest[site.segment]
        blocks[site.name] = DenseOperator(block + jnp.diag(own), own)
    return [blocks[name] for name in split.posterior.names]


def kronecker_matrix(split: DataPriorSplit, arrays: list[LayerCurvature]) -> Float[Array, "d d"]:
    """The blocks of all layers, pulled back from their arrays to u, and blocks of other sites."""
    total = jnp.zeros((split.u.size, split.u.size), split.u.dtype)
    moved = np.zeros(split.u.size, bool)
    jacobians = _jacobians(split)
    for form, jacobian in zip(arrays, jacobians, strict=True):
        total += form.pulled_back(jacobian)
        moved |= np.asarray(jnp.any(jacobian != 0.0, 1))
    sites = split.posterior.layout.sites
    others = tuple(site for site in sites if not moved[site.segment].any())
    for site, block in zip(others, blocks_of_data(split, others), strict=True):
        total = total.at[site.segment, site.segment].add(block)
    return total


def squares_of_layers(split: DataPriorSplit) -> list[tuple[Site, Float[Array, " s"]]]:
    """The diagonal of `J^T L J` for the sites that are arrays of layers, in closed form."""
    held = holders(split)
    if (
        not held
        or any(h is None for h in held)
        or len({h.site.name for h in held if h}) < len(held)
    ):
        return []
    squares = _checked(_squares(split))
    pairs = zip(held, squares, strict=True)
    return [(h.site, h.multiplier**2 * part.ravel()) for h, part in pairs if h is not None]


def forms_of(split: DataPriorSplit) -> list[LayerCurvature]:
    """Curvature of all layers in their weights and biases, layer after layer.

    Raises:
        StructureError: for a model without layers, and where the loss is no sum over examples.
    """
    lacking = "" if split.names else "the curvature is the Hessian"
    if split.names and not split.outputs(split.u)[1]:
        lacking = "the model runs no layer; use `Diagonal()`, `BySite()` or `LowRank(k)`"
    if lacking:
        raise StructureError(
            "`structure=Kronecker()` needs `curvature=GGN()` and a model with layers, such as "
            f"`vf.networks.MLP` inside a NumPyro model; here {lacking}."
        )
    return _checked(_forms(split))


def holders(split: DataPriorSplit) -> list[SiteMultiple | None]:
    """For each array of each layer the site that it is a multiple of, None where there is none."""
    if not split.names:
        return []
    sites = split.posterior.layout.sites
    found = _multipliers(split)
    held: list[SiteMultiple | None] = []
    for candidates in found:
        fitting = [SiteMultiple(sites[i], c) for i, (c, fits) in candidates.items() if bool(fits)]
        held.append(fitting[0] if fitting else None)
    return held


def last_sites(split: DataPriorSplit) -> list[str]:
    """Names of the latent sites that the last layer's arrays depend on."""
    sites = split.posterior.layout.sites
    return [site.name for site, moves in zip(sites, _moves_last(split), strict=True) if moves]


@eqx.filter_jit
def _moves_last(split: DataPriorSplit) -> list[Array]:
    def last(u: Float[Array, " d"]) -> list[Array]:
        return _arrays(split.outputs(u)[1][-1:])

    _, push = jax.linearize(last, split.u)
    probe = jax.random.normal(jax.random.key(0), split.u.shape, split.u.dtype)
    moved = []
    for site in split.posterior.layout.sites:
        pushed = push(jnp.zeros_like(probe).at[site.segment].set(probe[site.segment]))
        moved.append(jnp.any(jnp.stack([jnp.any(a != 0.0) for a in pushed] or [jnp.array(False)])))
    return moved


def _arrays(layers: list[LayerRecord]) -> list[Array]:
    return [a for layer in layers for a in (layer.weight, layer.bias) if a is not None]


@eqx.filter_jit
def _multipliers(split: DataPriorSplit) -> list[dict[int, tuple[Array, Array]]]:
    arrays, push = jax.linearize(lambda u: _arrays(split.outputs(u)[1]), split.u)
    probes = jax.random.normal(jax.random.key(0), (2, split.u.size), split.u.dtype)
    moves = [push(probe) for probe in probes]
    found: list[dict[int, tuple[Array, Array]]] = []
    for k, array in enumerate(arrays):
        found.append({})
        for i, site in enumerate(split.posterior.layout.sites):
            if site.size != array.size:
                continue
            pairs = [
                (move[k].ravel(), p[site.segment]) for move, p in zip(moves, probes, strict=True)
            ]
            c = (pairs[0][0] @ pairs[0][1]) / (pairs[0][1] @ pairs[0][1])
            small = 1e3 * jnp.finfo(c.dtype).eps * jnp.abs(c)
            fits = [jnp.all(jnp.abs(to - c * v) <= small * jnp.abs(v).max()) for to, v in pairs]
            found[-1][i] = c, jnp.all(jnp.stack(fits)) & (c != 0.0)
    return found


@eqx.filter_jit
def _jacobians(split: DataPriorSplit) -> list[Float[Array, "d s"]]:
    _, push = jax.linearize(lambda u: _arrays(split.outputs(u)[1]), split.u)
    sizes = [a.size for a in _arrays(split.outputs(split.u)[1])]
    rows = columns_of(
        lambda v: jnp.concatenate([a.ravel() for a in push(v)]), split.u, 0, split.u.size
    )
    return jnp.split(rows, np.cumsum(sizes)[:-1], axis=1)


class Backpropagated(NamedTuple):
    """Derivatives that flow back through the layers.

    Attributes:
        layers: as they were run.
        deltas: from a column of the root of L at all examples to gradients at the layers' outputs.
        roots: the columns, shape (o, n, o).
        factorization_error: smallest eigenvalue of the L_n over the largest, and how far L is
            from a sum over examples, relative to it.
    """

    layers: list[LayerRecord]
    deltas: Any
    roots: Float[Array, "o n o"]
    factorization_error: Float[Array, " 2"]


def _flow(split: DataPriorSplit) -> Backpropagated:
    loss = split.losses()
    layers = split.outputs(split.u)[1]
    zero = [jnp.zeros_like(layer.z) for layer in layers]
    z, pull = jax.vjp(lambda added: split.outputs(split.u, added)[0], zero)
    flags = dependence(lambda added: split.outputs(split.u, added)[0], zero)
    n = len(layers[0].x)
    leaves, treedef = jax.tree.flatten(z)
    moving = [leaf for leaf, flag in zip(leaves, jax.tree.leaves(flags), strict=True) if flag]
    for leaf in moving:
        if leaf.shape[:1] != (n,):
            raise StructureError(
                f"`structure` takes a layer's examples along the first axis, {n} of them; the "
                f"likelihood has a parameter of shape {leaf.shape} that the layers move. Use "
                "`BySite()` or `LowRank(k)`."
            )

    def laid_out(flat: Float[Array, "n o"]) -> SiteOutputs:
        parts = iter(jnp.split(flat, np.cumsum([leaf[0].size for leaf in moving])[:-1], axis=1))
        filled = [
            next(parts).reshape(leaf.shape) if flag else jnp.zeros_like(leaf)
            for leaf, flag in zip(leaves, jax.tree.leaves(flags), strict=True)
        ]
        return jax.tree.unflatten(treedef, filled)

    def flat(z: SiteOutputs) -> Float[Array, "n o"]:
        pairs = zip(jax.tree.leaves(z), jax.tree.leaves(flags), strict=True)
        return jnp.concatenate([leaf.reshape(n, -1) for leaf, flag in pairs if flag], axis=1)

    _, output_hessian = jax.linearize(jax.grad(loss), z)
    weigh = lambda v: flat(output_hessian(laid_out(v)))  # noqa: E731
    like = flat(z)
    size = like.shape[1]
    columns = jax.vmap(lambda o: weigh(jnp.zeros_like(like).at[:, o].set(1.0)))(jnp.arange(size))
    each = jnp.moveaxis(columns, 0, 2)  # [n, o, o']
    values, vectors = jnp.linalg.eigh(0.5 * (each + jnp.swapaxes(each, 1, 2)))
    probe = jax.random.normal(jax.random.key(0), like.shape, like.dtype)
    product = jnp.einsum("nij,nj->ni", each, probe)
    largest = jnp.max(jnp.abs(values))
    factorization_error = (
        jnp.stack([jnp.min(values), jnp.max(jnp.abs(weigh(probe) - product))]) / largest
    )
    roots = jnp.moveaxis(vectors * jnp.sqrt(jnp.maximum(values, 0.0))[:, None], 2, 0)
    return Backpropagated(layers, lambda root: pull(laid_out(root))[0], roots, factorization_error)


def _checked(result: tuple[Any, Float[Array, " 2"]]) -> Any:
    found, factorization_error = result
    lowest, gap = (float(s) for s in factorization_error)
    bound = float(jnp.sqrt(jnp.finfo(factorization_error.dtype).eps))
    if not gap < bound:
        raise StructureError(
            "`structure` needs a likelihood that is a product over the examples along the first "
            "axis; here the examples are coupled. Use `Full()`, `BySite()` or `LowRank(k)`."
        )
    if not lowest > -bound:
        raise StructureError(
            "`structure` needs a likelihood that is log-concave in its parameters (logits, log "
            f"rates, the mean of a normal); here L has eigenvalues down to {lowest:.2g} of the "
            "largest. Use `Full()` or `BySite()`."
        )
    return found


@eqx.filter_jit
def _forms(split: DataPriorSplit) -> tuple[list[LayerCurvature], Float[Array, " 2"]]:
    flow = _flow(split)

    def moments(root: Float[Array, "n o"]) -> list[tuple[Array, Array]]:
        deltas = [_by_position(delta) for delta in flow.deltas(root)]
        summed = [delta.sum(1) for delta in deltas]
        return [
            (jnp.einsum("npi,npj->ij", delta, delta), whole.T @ whole)
            for delta, whole in zip(deltas, summed, strict=True)
        ]

    forms: list[LayerCurvature] = []
    found = mapped(moments, flow.roots, _TOGETHER)
    for layer, (left, bias) in zip(flow.layers, found, strict=True):
        features = layer.layer.features(layer.x)
        n, positions, _ = features.shape
        right = jnp.einsum("npi,npj->ij", features, features)
        forms.append(Weights(left.sum(0) / (n * positions), right))
        if layer.bias is not None:
            forms.append(Biases(bias.sum(0)))
    return forms, flow.factorization_error


@eqx.filter_jit
def _squares(split: DataPriorSplit) -> tuple[list[Float[Array, "..."]], Float[Array, " 2"]]:
    flow = _flow(split)

    def of_root(root: Float[Array, "n o"]) -> list[Array]:
        found = []
        for layer, delta in zip(flow.layers, flow.deltas(root), strict=True):
            features, delta = layer.layer.features(layer.x), _by_position(delta)
            found.append(_square(features, delta))
            if layer.bias is not None:
                found.append(jnp.sum(delta.sum(1) ** 2, 0))
        return found

    each = mapped(of_root, flow.roots, _TOGETHER)
    return [part.sum(0) for part in each], flow.factorization_error


def _square(
    features: Float[Array, "n p fan_in"], delta: Float[Array, "n p units"]
) -> Float[Array, "units fan_in"]:
    """`sum_n (sum_p delta_np a_np^T)^2`, entry by entry."""
    if features.shape[1] == 1:
        return (delta[:, 0] ** 2).T @ features[:, 0] ** 2
    each = lambda pair: (pair[1].T @ pair[0]) ** 2  # noqa: E731
    return jax.lax.map(each, (features, delta), batch_size=min(32, len(features))).sum(0)


def _by_position(delta: Float[Array, "n ... units"]) -> Float[Array, "n p units"]:
    return delta.reshape(len(delta), -1, delta.shape[-1])
