"""Precision matrices `R + J^T L J` by the kernel of the outputs: no row of J is held."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int

from volform.compilation import steady
from volform.geometry.dependence import dependence
from volform.inference.laplace.gauss_newton import DataPriorSplit
from volform.inference.laplace.layer_kernel import (
    PieceFlow,
    layer_kernel,
    layer_squares,
    root_flow,
)
from volform.inference.laplace.output_covariance import (
    Covariance,
    OutputPrecision,
    backward_of,
    covariance_by_factors,
)
from volform.inference.laplace.output_roots import OutputRoots, output_roots, picked
from volform.inference.laplace.pieces import ValuedOutputs
from volform.inference.laplace.sums import over_rows, some_of, stacked_chunks
from volform.linalg.operator import linearized, register_operator
from volform.linalg.structured import exact_logdet, whiten

_AT_ONCE = 2**22  # numbers of the rows of J that are held
_Maps = tuple[Callable[[Array], Array], Callable[[Array], Array]]


class JacobianRows(eqx.Module):
    """The rows of `S^T J` with `L = S S^T`: one for each example and column of the root S.

    Attributes:
        split: the model and where.
        columns: the column of each example, where there is only one; None for all.
        uniform: sites in which the precision of the prior is a number, of a model that is made of
            layers; None where rows are taken by products.
    """

    split: DataPriorSplit
    columns: Int[Array, " n"] | None = None
    uniform: frozenset[str] | None = eqx.field(static=True, default=None)

    def maps(self) -> _Maps:
        """`v -> S^T J v`, flat, and `w -> J^T S w`."""
        if self.split.chunk is None:
            to_rows, back = _maps(self.split, self.columns)
            shape = jax.eval_shape(to_rows, self.split.u).shape
            return lambda v: to_rows(v).ravel(), lambda w: back(w.reshape(shape))
        split, count = self.split, self.split.count

        def push(v: Array) -> Array:
            return stacked_chunks(split, lambda own: _maps(own, None)[0](v)).ravel()

        def pull(w: Array) -> Array:
            rows = w.reshape(count, -1)
            return over_rows(split, lambda own, cut: _maps(own, None)[1](cut(rows)))

        return push, pull

    def flow(self) -> PieceFlow:
        """Flow back through the layers from the rows, with all of them in memory."""
        return root_flow(dataclasses.replace(self.split, chunk=None), self.columns)


def _maps(split: DataPriorSplit, columns: Int[Array, " n"] | None) -> _Maps:
    """To rows (n, o) of the examples and back."""
    z, push = jax.linearize(split.parameters, split.u)
    found = _roots_at(split, z)
    roots = picked(found.roots, columns)

    def to_rows(v: Float[Array, " d"]) -> Float[Array, "n o"]:
        return jnp.einsum("onk,nk->no", roots, found.flat(push(v)))

    back = jax.linear_transpose(to_rows, split.u)
    return to_rows, lambda w: back(w)[0]


def _roots_at(split: DataPriorSplit, z: object) -> OutputRoots:
    lengths = split.of_values(split.posterior.values(split.u))[1]
    return output_roots(
        split, z, dependence(split.parameters, split.u), lengths[0] if lengths else 0
    )


@steady
def factorization_error(split: DataPriorSplit) -> Float[Array, " 3"]:
    """That of the root of L, as of `OutputRoots`."""
    return _roots_at(split, split.parameters(split.u)).factorization_error


def number_of_rows(split: DataPriorSplit) -> tuple[int, int]:
    """Numbers of examples and of columns of the root of L.

    Raises:
        StructureError: where the likelihood has no axis of examples first.
    """
    own = dataclasses.replace(split, chunk=None)
    roots = eqx.filter_eval_shape(lambda s: _roots_at(s, s.parameters(s.u)).roots, own)
    return roots.shape[1], roots.shape[0]


def kernel_between(
    left: JacobianRows, right: JacobianRows, weights: Float[Array, " d"]
) -> Float[Array, "l r"]:
    """`S^T J W J'^T S'` with W diagonal; of many rows those on the right."""
    if left.uniform is None:
        return _by_products(left, right, weights)
    uniform, layout = left.uniform, left.split.posterior.layout
    known = right.flow() if _is_whole(right) else None
    same = known if right is left else None

    def of_left(split: DataPriorSplit) -> Float[Array, "n q m r"]:
        ours = same or root_flow(split, left.columns)

        def of_right(split: DataPriorSplit) -> Float[Array, "m r n q"]:
            theirs = known or root_flow(split, right.columns)
            found = layer_kernel(ours, theirs, layout, weights, uniform)
            assert found is not None  # of examples of one model
            return jnp.transpose(found, (2, 3, 0, 1))

        return jnp.transpose(stacked_chunks(right.split, of_right), (2, 3, 0, 1))

    found = stacked_chunks(left.split, of_left)
    return found.reshape(found.shape[0] * found.shape[1], -1)


def _is_whole(rows: JacobianRows) -> bool:
    return rows.split.chunk is None or rows.split.chunk >= rows.split.count


def _by_products(
    left: JacobianRows, right: JacobianRows, weights: Float[Array, " d"]
) -> Float[Array, "l r"]:
    """By a row of J at a time, back through the examples on the left and forth on the right."""
    (own, pull), (push, _) = left.maps(), right.maps()
    like = jax.eval_shape(own, weights)

    def row(number: Array) -> Float[Array, " r"]:
        return push(weights * pull(jnp.zeros(like.shape, like.dtype).at[number].set(1.0)))

    batch = max(1, min(64, _AT_ONCE // weights.size, like.size))
    return jax.lax.map(row, jnp.arange(like.size), batch_size=batch)


def squared_lengths(rows: JacobianRows, weights: Float[Array, " d"]) -> Float[Array, " m"]:
    """The diagonal of `S^T J W J^T S`, by layers or by the gradients of one example at a time."""
    uniform, layout = rows.uniform, rows.split.posterior.layout
    if uniform is not None:
        own = lambda split: layer_squares(root_flow(split, None), layout, weights, uniform)  # noqa: E731
        return stacked_chunks(rows.split, own).ravel()
    count, columns = number_of_rows(rows.split)

    def of_example(number: Array) -> Float[Array, " o"]:
        _, pull = JacobianRows(some_of(rows.split, number[None])).maps()  # which clears the chunk
        of_column = lambda unit: jnp.sum(weights * pull(unit) ** 2)  # noqa: E731
        return jax.vmap(of_column)(jnp.eye(columns, dtype=weights.dtype))

    batch = max(1, min(64, _AT_ONCE // (columns * weights.size), count))
    return jax.lax.map(of_example, jnp.arange(count), batch_size=batch).ravel()


class JacobianUpdate(OutputPrecision):
    """`P = R + c J^T S F^T F S^T J` on flat vectors, with R diagonal, by the kernel of the rows.

    With `C = c^(1/2) F S^T J R^(-1/2)` and `I + C C^T = L L^T`: `log det P = log det R + 2 log det
    L`, and a root of the inverse of `I + C^T C` is `I - C^T L^-T (L + I)^-1 C` (Andrews 1968), so
    that nothing but L is larger than the rows themselves.

    Attributes:
        rest: R, positive.
        rows: `S^T J`, as products.
        mix: F, shape (k, m); None for the identity.
        weight: c.
        factor: L, shape (k, k).
    """

    rest: Float[Array, " d"]
    rows: JacobianRows
    mix: Float[Array, "k m"] | None
    weight: Float[Array, ""]
    factor: Float[Array, "k k"]

    def maps(self) -> _Maps:
        """`v -> C R^(1/2) v`, and back."""
        push, pull = self.rows.maps()
        root, mix = jnp.sqrt(self.weight), self.mix
        if mix is None:
            return lambda v: root * push(v), lambda w: root * pull(w)
        return lambda v: root * (mix @ push(v)), lambda w: root * pull(mix.T @ w)

    def mv(self, vector: Float[Array, " d"]) -> Float[Array, " d"]:
        """The product, once forth and once back through the model."""
        push, pull = self.maps()
        return self.rest * vector + pull(push(vector))

    def linearize(self) -> lx.AbstractLinearOperator:
        """With the model linearized once, but in chunks."""
        if self.rows.split.chunk is not None:
            return self
        return linearized(self, lx.positive_semidefinite_tag)

    def transpose(self) -> "JacobianUpdate":
        """Itself: it is symmetric."""
        return self

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """A flat vector."""
        return jax.ShapeDtypeStruct(self.rest.shape, self.rest.dtype)

    def solved(self, cross: Float[Array, "m ..."]) -> Float[Array, "k ..."]:
        """`L^-1 C R^(-1/2) j` of `S^T J R^-1 j`, whose square the data take from a variance."""
        mixed = cross if self.mix is None else self.mix @ cross
        return solve_triangular(self.factor, jnp.sqrt(self.weight) * mixed, lower=True)

    def prepared(self) -> PieceFlow | None:
        """Flow through the layers at the data, but in chunks."""
        is_held = self.rows.uniform is None or self.rows.split.chunk is not None
        return None if is_held else self.rows.flow()

    def covariance_of(
        self, outputs: ValuedOutputs, known: PieceFlow | None, group: int
    ) -> Covariance | None:
        """That of the priors less what the data take, by the kernel between new and old examples.

        None where the layers are not those of the data.
        """
        if self.rows.uniform is None:
            return None
        flow = backward_of(outputs, group)
        of_prior = lx.DiagonalLinearOperator(self.rest)
        prior = covariance_by_factors(outputs, of_prior, group, flow)
        if prior is None:
            return None
        covariance, values, is_all = prior
        n, t, k = values.shape
        deltas = {number: d.reshape(t * k, *d.shape[2:]) for number, d in flow.deltas.items()}
        multipliers = [pair[0] for pair in flow.multipliers if pair]
        cross = self._cross(PieceFlow(flow.layers, flow.activations, deltas, multipliers), known)
        if cross is None:
            return None
        solved = self.solved(cross.reshape(n * t * k, -1).T).reshape(-1, n, t, k)
        return covariance - jnp.einsum("rnti,rntj->ntij", solved, solved), values, is_all

    def _cross(self, new: PieceFlow, known: PieceFlow | None) -> Float[Array, "n q m r"] | None:
        uniform, layout = self.rows.uniform, self.rows.split.posterior.layout
        assert uniform is not None  # checked before
        if known is not None:
            return layer_kernel(new, known, layout, 1.0 / self.rest, uniform)
        is_other = []

        def of_chunk(split: DataPriorSplit) -> Float[Array, "m r n q"]:
            old = root_flow(split, self.rows.columns)
            found = layer_kernel(new, old, layout, 1.0 / self.rest, uniform)
            is_other.append(found is None)
            if found is None:
                return jnp.zeros((old.layers.count, 1, 1, 1), self.rest.dtype)
            return jnp.transpose(found, (2, 3, 0, 1))

        found = stacked_chunks(self.rows.split, of_chunk)
        return None if any(is_other) else jnp.transpose(found, (2, 3, 0, 1))


register_operator(JacobianUpdate, symmetric=True, semidefinite=True)


@steady
def jacobian_update(
    rest: Float[Array, " d"],
    rows: JacobianRows,
    mix: Float[Array, "k m"] | None = None,
    weight: Float[Array, ""] | None = None,
) -> JacobianUpdate:
    """The operator, with the factor L of the kernel; NaN where rounding makes it indefinite."""
    weight = jnp.ones((), rest.dtype) if weight is None else weight
    inner = weight * _mixed(kernel_between(rows, rows, 1.0 / rest), mix)
    factor = jnp.linalg.cholesky(inner + jnp.eye(len(inner), dtype=rest.dtype))
    return JacobianUpdate(rest, rows, mix, weight, factor)


def group_grams(operator: JacobianUpdate, members: Float[Array, "g d"]) -> Float[Array, "g k k"]:
    """`C C^T` with nothing but the coordinates of a group in it, for each group."""
    rows = operator.rows
    of_group = lambda own: kernel_between(rows, rows, own / operator.rest)  # noqa: E731
    return jnp.stack([operator.weight * _mixed(of_group(own), operator.mix) for own in members])


def _mixed(gram: Float[Array, "m m"], mix: Float[Array, "k m"] | None) -> Float[Array, "k k"]:
    return gram if mix is None else mix @ gram @ mix.T


@exact_logdet.register
def _(operator: JacobianUpdate) -> Float[Array, ""]:
    return jnp.sum(jnp.log(operator.rest)) + 2.0 * jnp.sum(jnp.log(jnp.diagonal(operator.factor)))


@whiten.register
def _(operator: JacobianUpdate, covector: Float[Array, " d"]) -> Float[Array, " d"]:
    push, pull = operator.maps()
    root, lower = jax.lax.rsqrt(operator.rest), operator.factor
    whitened = root * covector
    inner = solve_triangular(lower, push(root * whitened), lower=True)
    outer = solve_triangular(lower.T + jnp.eye(len(lower), dtype=lower.dtype), inner)
    return whitened - root * pull(outer)
