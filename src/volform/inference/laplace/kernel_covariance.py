"""Covariance of the outputs of a linearized model by the kernel between new and old examples."""

import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float

from volform.inference.laplace.gauss_newton import DataPriorSplit
from volform.inference.laplace.jacobian_rows import JacobianUpdate
from volform.inference.laplace.layer_kernel import PieceFlow, layer_kernel, root_flow
from volform.inference.laplace.output_covariance import backward_of, covariance_by_factors
from volform.inference.laplace.pieces import ValuedOutputs
from volform.inference.laplace.sums import in_chunks


def covariance_by_kernel(
    outputs: ValuedOutputs, precision: JacobianUpdate, of_training: PieceFlow | None, group: int
) -> tuple[Float[Array, "n t k k"], Float[Array, "n t k"], Bool[Array, ""]] | None:
    """`J P^-1 J^T` of groups of outputs of each example; the outputs; whether this is all of it.

    That of the prior less what the data say. None where the layers are not those of the data.

    Args:
        outputs: of a batch of examples.
        precision: P, of a model of layers.
        of_training: what flows through the layers at the data; None in chunks.
        group: number k of outputs whose covariance is asked for; t groups follow each other.
    """
    flow = backward_of(outputs, group)
    prior = covariance_by_factors(outputs, lx.DiagonalLinearOperator(precision.rest), group, flow)
    if prior is None:
        return None
    covariance, values, is_all = prior
    n, t, k = values.shape
    deltas = {number: d.reshape(t * k, *d.shape[2:]) for number, d in flow.deltas.items()}
    multipliers = [pair[0] for pair in flow.multipliers if pair]
    new = PieceFlow(flow.layers, flow.activations, deltas, multipliers)
    cross = _cross(new, precision, of_training)
    if cross is None:
        return None
    solved = precision.solved(cross.reshape(n * t * k, -1).T).reshape(-1, n, t, k)
    return covariance - jnp.einsum("rnti,rntj->ntij", solved, solved), values, is_all


def _cross(
    new: PieceFlow, precision: JacobianUpdate, of_training: PieceFlow | None
) -> Float[Array, "n q m r"] | None:
    rows, weights = precision.rows, 1.0 / precision.rest
    layout = rows.split.posterior.layout
    assert rows.uniform is not None  # checked before
    if of_training is not None:
        return layer_kernel(new, of_training, layout, weights, rows.uniform)
    uniform, is_other = rows.uniform, []

    def of_chunk(split: DataPriorSplit) -> Float[Array, "m r n q"]:
        found = layer_kernel(new, root_flow(split, rows.columns), layout, weights, uniform)
        is_other.append(found is None)
        return jnp.zeros(()) if found is None else jnp.transpose(found, (2, 3, 0, 1))

    found = in_chunks(rows.split, of_chunk)
    return None if any(is_other) else jnp.transpose(found, (2, 3, 0, 1))
