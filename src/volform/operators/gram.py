"""Sums over examples of `J_n^T M_n J_n`, as operators.

J_n is the Jacobian of the network's output z_n in the parameters, and M_n a small matrix in the
space of outputs, given by a root C_n or by its products.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from volform.geometry.fisher import Fisher
from volform.geometry.metric import call_at
from volform.linalg.operator import Operator, dtype_of, linearized, register_operator, require_dense
from volform.linalg.squared_rows import SquaredRows
from volform.linalg.structured import structure_of
from volform.operators.per_example import (
    Family,
    NetworkFunction,
    count_of,
    in_chunks,
    log_likelihood,
    structure_of_one,
    sum_over,
)


class Root(eqx.Module):
    """Maps the output of an example, its label and its number to C with `C^T C = M_n`."""

    likelihood: eqx.AbstractVar[Family]

    @abc.abstractmethod
    def __call__(self, z: Any, y: Any, number: Array) -> Float[Array, "m o"]:
        """C in the `ravel_pytree` order of z."""


class FisherRoot(Root):
    """`M_n = E_{y ~ p(.|z)}[s s^T]`, s = d log p(y | z) / dz."""

    likelihood: Family
    key: PRNGKeyArray | None = None
    draws: int = eqx.field(static=True, default=1024)

    def __call__(self, z: Any, y: Any, number: Array) -> Float[Array, "m o"]:
        """In closed form where `volform.Fisher` is, with at most o rows."""
        c = Fisher(self.likelihood, self.key, self.draws).root(z)
        if c.shape[0] <= c.shape[1]:
            return c
        if c.shape[1] == 1:
            return jnp.linalg.norm(c, axis=0, keepdims=True)
        return jnp.linalg.qr(c, mode="r")


class ScoreRoot(Root):
    """`M_n = s s^T` with the score s of the label of the data."""

    likelihood: Family

    def __call__(self, z: Any, y: Any, number: Array) -> Float[Array, "1 o"]:
        """One row."""
        return _score(self.likelihood, z, y)[None]


class DrawnRoot(Root):
    """`M_n`: the average of `s s^T` over labels drawn from the likelihood."""

    likelihood: Family
    key: PRNGKeyArray
    draws: int = eqx.field(static=True)

    def __call__(self, z: Any, y: Any, number: Array) -> Float[Array, "m o"]:
        """One row a draw."""
        key = jax.random.fold_in(self.key, number)
        drawn = jax.lax.stop_gradient(call_at(self.likelihood, z).sample(key, (self.draws,)))
        scores = jax.vmap(lambda y: _score(self.likelihood, z, y))(drawn)
        return scores / np.sqrt(self.draws).astype(scores.dtype)


def _score(likelihood: Family, z: Any, y: Any) -> Float[Array, " o"]:
    return ravel_pytree(jax.grad(lambda z: log_likelihood(likelihood, z, y))(z))[0]


class OverExamples(Operator):
    """A sum over examples of `J_n^T M_n J_n`."""

    network: eqx.AbstractVar[NetworkFunction]
    params: eqx.AbstractVar[PyTree]
    data: eqx.AbstractVar[tuple[PyTree, PyTree]]
    chunk: eqx.AbstractVar[int | None]

    @abc.abstractmethod
    def weigh(self, z: Array, dz: Array, y: Any, number: Array) -> Float[Array, " o"]:
        """`M_n dz` of one example, on flat outputs."""

    def mv(self, vector: PyTree) -> PyTree:
        """`sum_n J_n^T M_n J_n v`, a chunk of examples at a time."""
        return _through_outputs(self, vector)

    def linearize(self) -> lx.AbstractLinearOperator:
        """Linearized once, unless in chunks: that would hold what chunks are there to save."""
        if self.chunk is not None and self.chunk < count_of(self.data):
            return self
        tag = lx.positive_semidefinite_tag if isinstance(self, Gram) else lx.symmetric_tag
        return linearized(self, tag)

    def transpose(self) -> "OverExamples":
        """Itself: it is symmetric."""
        return self

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Structure of the parameters."""
        return structure_of(self.params)

    def numbered(self) -> tuple[PyTree, PyTree, Array]:
        """The data with the number of each example."""
        return (*self.data, jnp.arange(count_of(self.data)))

    def output(self, params: PyTree, x: Any) -> Float[Array, " o"]:
        """The flat output for one example."""
        return ravel_pytree(self.network(params, x))[0]

    def unravel_output(self, z: Float[Array, " o"]) -> Any:
        """A flat output as the network gives it."""
        like = jax.eval_shape(self.network, self.params, structure_of_one(self.data[0]))
        return ravel_pytree(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like))[1](z)


@eqx.filter_jit
def _through_outputs(operator: OverExamples, vector: PyTree) -> PyTree:
    def part(examples: Any, weights: Float[Array, " b"]) -> PyTree:
        x, y, number = examples

        def outputs(params: PyTree) -> Float[Array, "b o"]:
            return jax.vmap(lambda x: operator.output(params, x))(x)

        z, push = jax.linearize(outputs, operator.params)
        weighed = jax.vmap(operator.weigh)(z, push(vector), y, number)
        return jax.linear_transpose(push, operator.params)(weights[:, None] * weighed)[0]

    return sum_over(part, operator.numbered(), dtype_of(operator), operator.chunk)


class Gram(OverExamples, SquaredRows):
    """`A^T A` with the rows `A_n = C_n J_n` of each example: positive semi-definite to rounding.

    Made by `fisher`, `empirical_fisher`, `monte_carlo_fisher`, and by `ggn` where it is the Fisher
    matrix. With a diagonal added, its log-determinant goes through the rows where they are fewer
    than the parameters.
    """

    network: NetworkFunction
    params: PyTree
    data: tuple[PyTree, PyTree]
    root: Root
    chunk: int | None = eqx.field(static=True, default=None)

    def weigh(self, z: Array, dz: Array, y: Any, number: Array) -> Float[Array, " o"]:
        """`C^T C dz`."""
        c = self.root(self.unravel_output(z), y, number)
        return c.T @ (c @ dz)

    def rows(self) -> Float[Array, "r n"]:
        """A, in `ravel_pytree` order of the parameters; r rows for all examples together."""
        stacked = in_chunks(lambda part: _rows(self, part), self.numbered(), self.chunk)
        return stacked.reshape(-1, stacked.shape[-1])

    def row_count(self) -> int:
        """Number of rows of A."""
        return _first_rows(self).shape[1] * count_of(self.data)

    def as_matrix(self) -> Float[Array, "n n"]:
        """`A^T A`, a chunk of examples at a time; refused beyond 8 GiB."""
        require_dense(self.in_size(), self.in_size(), dtype_of(self))
        return _squared_rows(self)


@eqx.filter_jit
def _first_rows(gram: Gram) -> Float[Array, "1 m n"]:
    # Compiled, since a shape takes longer to trace each time than these rows to compute.
    return _rows(gram, jax.tree.map(lambda leaf: leaf[:1], gram.numbered()))


@eqx.filter_jit
def _squared_rows(gram: Gram) -> Float[Array, "n n"]:
    def part(examples: Any, weights: Float[Array, " b"]) -> Float[Array, "n n"]:
        rows = _rows(gram, examples) * weights[:, None, None]
        flat = rows.reshape(-1, rows.shape[-1])
        return flat.T @ flat

    return sum_over(part, gram.numbered(), dtype_of(gram), gram.chunk)


@eqx.filter_jit
def _diagonal(gram: Gram) -> Float[Array, " n"]:
    def part(examples: Any, weights: Float[Array, " b"]) -> Float[Array, " n"]:
        return jnp.sum(weights[:, None, None] * _rows(gram, examples) ** 2, (0, 1))

    return sum_over(part, gram.numbered(), dtype_of(gram), gram.chunk)


def _rows(gram: Gram, examples: Any) -> Float[Array, "b m n"]:
    def of_one(x: Any, y: Any, number: Array) -> Float[Array, "m n"]:
        z, pull = jax.vjp(lambda params: gram.output(params, x), gram.params)
        c = gram.root(gram.unravel_output(z), y, number)
        return jax.vmap(lambda row: ravel_pytree(pull(row)[0])[0])(c)

    return jax.vmap(of_one)(*examples)


class OutputHessian(OverExamples):
    """`sum_n J_n^T L_n J_n`, L_n the Hessian of `-log p(y_n | z)`; made by `ggn`."""

    network: NetworkFunction
    params: PyTree
    data: tuple[PyTree, PyTree]
    likelihood: Family
    chunk: int | None = eqx.field(static=True, default=None)

    def weigh(self, z: Array, dz: Array, y: Any, number: Array) -> Float[Array, " o"]:
        """`L_n dz`."""

        def slope(z: Array) -> Array:
            return -_score(self.likelihood, self.unravel_output(z), y)

        return jax.jvp(slope, (z,), (dz,))[1]


register_operator(Gram, symmetric=True, semidefinite=True)
register_operator(OutputHessian, symmetric=True)
lx.diagonal.register(Gram)(_diagonal)
