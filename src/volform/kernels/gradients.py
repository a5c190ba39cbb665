"""Gradients of outputs of single examples in factors, and sums of products of them."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jax.extend.core import ClosedJaxpr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from volform.kernels.linear_layers import (
    LinearLayer,
    activations,
    linear_layers,
    slopes,
    times_factors,
)
from volform.linalg.structured import whiten
from volform.networks.programs import evaluate, outputs_of, written_out

_HIGHEST = jax.lax.Precision.HIGHEST


class OutputPairs(enum.Enum):
    """Pairs of outputs of which an empirical kernel is made.

    Attributes:
        MEAN: the mean over the outputs of each with itself, shape (n1, n2).
        TRACE: the sum of the same.
        EACH: each output with itself: (n1, n2, k) for outputs (n, k).
        ALL: each with each: (n1, n2, k, k).
    """

    MEAN = enum.auto()
    TRACE = enum.auto()
    EACH = enum.auto()
    ALL = enum.auto()


# Sums over parameters of rows of gradients, and of slopes over fan-out: i and j are examples, o and
# p outputs, b the batch of a layer, s and t its positions.
_ROWS = {
    OutputPairs.TRACE: "iox,jox->ij",
    OutputPairs.EACH: "iox,jox->oij",
    OutputPairs.ALL: "iox,jpx->iojp",
}
_SLOPES = {
    OutputPairs.TRACE: "iobsm,jobtm->bisjt",
    OutputPairs.EACH: "iobsm,jobtm->boisjt",
    OutputPairs.ALL: "iobsm,jpbtm->biosjpt",
}


class Gradients(NamedTuple):
    """Rows of `L^-1 dF`, `G = L L^T`, of a list of examples: some as they are, some in factors.

    Attributes:
        rows: gradients in the parameters that are not in factors, by leaf.
        factors: for each layer its activations h and slopes b; the gradient is `sum_s h_s b_s^T`
            for each entry of the batch.
    """

    rows: tuple[Float[Array, "n outputs parameters"], ...]
    factors: tuple[
        tuple[
            Float[Array, "n batch positions fan_in"],
            Float[Array, "n outputs batch positions fan_out"],
        ],
        ...,
    ]


@dataclass(frozen=True)
class Differentiated:
    """The function of one example as a jaxpr, with its weight layers found.

    Attributes:
        closed: maps the leaves of the parameters and an example to the leaves of the outputs.
        params: the parameters.
        layers: weight layers, for each whether its gradients stay in factors.
        metric: root of the inverse metric of each leaf where it is a multiple of the identity, else
            the metric's operator.
    """

    closed: ClosedJaxpr
    params: Any
    layers: tuple[tuple[LinearLayer, bool], ...]
    metric: list[Any] | lx.AbstractLinearOperator

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return sum(v.aval.size for v in self.closed.jaxpr.outvars)

    @property
    def kept(self) -> int:
        """Numbers that the gradients of an example are."""
        count = len(jax.tree.leaves(self.params))
        sizes = {i: v.aval.size for i, v in enumerate(self.closed.jaxpr.invars[:count])}
        factors = [layer for layer, is_factored in self.layers if is_factored]
        formed = sum(sizes.values()) - sum(sizes[i] for layer in factors for i in layer.leaves)
        return self.outputs * formed + sum(map(self._in_factors, factors))

    @property
    def worked(self) -> int:
        """Numbers that are held while they are computed."""
        passed = [v.aval.size for eqn in self.closed.jaxpr.eqns for v in eqn.outvars]
        formed = [layer for layer, is_factored in self.layers if not is_factored]
        return (
            self.kept + sum(map(self._in_factors, formed)) + self.outputs * max(passed, default=0)
        )

    def block(self, outputs: OutputPairs) -> int:
        """Numbers that are held of a pair of examples, in the product of their gradients."""
        pairs = {OutputPairs.EACH: self.outputs, OutputPairs.ALL: self.outputs**2}.get(outputs, 1)
        sizes = [layer.sizes for layer, is_factored in self.layers if is_factored]
        return pairs * max((many * positions**2 for many, positions, _, _ in sizes), default=1)

    def _in_factors(self, layer: LinearLayer) -> int:
        many, positions, fan_in, fan_out = layer.sizes
        return many * positions * (fan_in + self.outputs * fan_out)

    def gradients(self, x: Float[Array, "n ..."]) -> Gradients:
        """Gradients of each output of each example."""
        return jax.vmap(self._of_one)(x)

    def _of_one(self, example: Array) -> Gradients:
        leaves, structure = jax.tree.flatten(self.params)
        layered = {leaf for layer, _ in self.layers for leaf in layer.leaves}
        lasts = {layer.last for layer, _ in self.layers}

        def run(others: dict[int, Array], added: dict[int, Array]) -> tuple[Array, Any]:
            inputs = [others.get(number, leaf) for number, leaf in enumerate(leaves)]
            values = evaluate(self.closed, [*inputs, example], added)
            h = [self._activations(layer, values, dtype) for layer, _ in self.layers]
            return ravel_pytree(outputs_of(self.closed, values))[0], h

        dtype = jnp.result_type(*leaves)
        others = {i: leaf for i, leaf in enumerate(leaves) if i not in layered}
        results = {i: self.closed.jaxpr.eqns[i].outvars[0].aval for i in lasts}
        zeros = {i: jnp.zeros(result.shape, result.dtype) for i, result in results.items()}
        outputs, pull, h = jax.vjp(run, others, zeros, has_aux=True)
        rows, dz = jax.vmap(pull)(jnp.eye(outputs.size, dtype=outputs.dtype))
        if not isinstance(self.metric, list):
            covectors = jax.tree.unflatten(structure, [rows[i] for i in sorted(rows)])
            return Gradients((jax.vmap(lambda w: whiten(self.metric, w))(covectors),), ())
        parts, factors = [], []
        for i, row in rows.items():
            parts.append(_scaled(row.reshape(outputs.size, -1), self.metric[i], dtype))
        for (layer, is_factored), own in zip(self.layers, h, strict=True):
            b = jax.vmap(lambda dz, layer=layer: slopes(self.closed, layer, dz))(
                dz[layer.last]
            ).astype(dtype)
            if is_factored:
                factors.append((own, b))
            else:
                formed = jnp.einsum("bsc,obsm->obcm", own, b, precision=_HIGHEST)
                parts.append(formed.reshape(outputs.size, -1))
        return Gradients(tuple(parts), tuple(factors))

    def _activations(self, layer: LinearLayer, values: Any, dtype: Any) -> Array:
        """Those of a layer under the metric, with the constant that its bias is multiplied with."""
        assert isinstance(self.metric, list)
        h = _scaled(activations(self.closed, layer, values), self.metric[layer.leaf], dtype)
        if layer.bias is None:
            return h
        leaf, factors = layer.bias
        one = times_factors(factors, values, _scaled(jnp.ones((), dtype), self.metric[leaf], dtype))
        return jnp.concatenate([h, jnp.broadcast_to(one, (*h.shape[:2], 1))], 2)


def _scaled(x: Array, root: Any, dtype: Any) -> Array:
    x = x.astype(dtype)
    return x if root is None else x * jnp.asarray(root, dtype)


def differentiate(
    function: Callable[[Any, Array], Any],
    params: Any,
    example: Float[Array, "..."],
    metric: list[Any] | lx.AbstractLinearOperator,
    outputs: OutputPairs,
    partners: float,
) -> Differentiated:
    """Trace the function of one example, and choose which gradients stay in factors.

    Of a layer with B entries of the batch, S positions, C inputs and M outputs, products of
    gradients in factors take `B S^2 (C + r M)` multiplications, r being the number of pairs of
    outputs; gradients `B S C M` for each of k outputs, and their products `r B C M`.

    Args:
        function: maps the parameters and a batch to a pytree of outputs.
        params: the parameters.
        example: one example.
        metric: as of `Differentiated`.
        outputs: pairs of outputs.
        partners: number of examples with which the gradients of an example are multiplied.
    """

    def of_one(params: Any, example: Array) -> list[Array]:
        return jax.tree.leaves(function(params, example[None]))

    closed = written_out(of_one, params, example)
    count = len(jax.tree.leaves(params))
    found = linear_layers(closed, count) if isinstance(metric, list) else []
    k = sum(v.aval.size for v in closed.jaxpr.outvars)
    r = k**2 if outputs is OutputPairs.ALL else k

    def is_cheaper(many: int, positions: int, fan_in: int, fan_out: int) -> bool:
        factored = partners * many * positions**2 * (fan_in + r * fan_out)
        formed = many * fan_in * fan_out * (positions * k + partners * r)
        return factored <= formed

    layers = tuple((layer, is_cheaper(*layer.sizes)) for layer in found)
    return Differentiated(closed, params, layers, metric)


def inner_products(
    outputs: OutputPairs, left: Gradients, right: Gradients
) -> Float[Array, "n1 n2 ..."]:
    """Sum over the parameters, (n1, n2), (n1, n2, k) or (n1, n2, k, k)."""
    count = jax.tree.leaves(left)[-1].shape[1]
    kind = OutputPairs.TRACE if outputs is OutputPairs.MEAN else outputs
    pairs = zip(left.rows, right.rows, strict=True)
    parts = [jnp.einsum(_ROWS[kind], *pair, precision=_HIGHEST) for pair in pairs]
    for (h1, b1), (h2, b2) in zip(left.factors, right.factors, strict=True):
        h = jnp.einsum("ibsc,jbtc->bisjt", h1, h2, precision=_HIGHEST)
        b = jnp.einsum(_SLOPES[kind], b1, b2, precision=_HIGHEST)
        match kind:
            case OutputPairs.TRACE:
                parts.append(jnp.sum(h * b, (0, 2, 4)))
            case OutputPairs.EACH:
                parts.append(jnp.sum(h[:, None] * b, (0, 3, 5)))
            case _:
                parts.append(jnp.sum(h[:, :, None, :, :, None] * b, (0, 3, 6)))
    total = sum(parts[1:], parts[0])
    match outputs:
        case OutputPairs.MEAN:
            return total / count
        case OutputPairs.TRACE:
            return total
        case OutputPairs.EACH:
            return jnp.moveaxis(total, 0, -1)
        case OutputPairs.ALL:
            return jnp.swapaxes(total, 1, 2)
