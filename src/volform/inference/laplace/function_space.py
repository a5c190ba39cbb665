"""Laplace's method in the space of functions: the Gaussian process of the linearized model."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from volform.checks import require_key, require_whole
from volform.compilation import steady
from volform.errors import SizeError, StructureError
from volform.inference.laplace.gauss_newton import DataPriorSplit, rest_diagonal
from volform.inference.laplace.jacobian_rows import (
    JacobianRows,
    JacobianUpdate,
    factorization_error,
    jacobian_update,
    kernel_between,
    number_of_rows,
    squared_lengths,
)
from volform.inference.laplace.layer_kernel import uniform_sites
from volform.inference.laplace.output_roots import require_roots
from volform.inference.laplace.pieces import scattered
from volform.inference.laplace.structure import Structure
from volform.inference.laplace.sums import comes_in_batches, over_chunks, some_of, stacked_chunks
from volform.linalg.operator import fits, gib_of
from volform.results import Regime

# In float32 it was .0005, .0056 and .05 where variances were off by 2e-4, 1.5e-3 and 2e-2, and 10
# where they were negative (40 examples of a network with 25 parameters, noise .1 to .001).
MOST_ROUNDING = 0.01


class FunctionSpace(Structure):
    """All of it, as `Full()`, by the kernel of the outputs in place of a matrix of parameters.

    The linearized model is a Gaussian process whose kernel is `J R^-1 J^T`, with R the diagonal of
    the priors. With `L = S S^T` and `K = S^T J R^-1 J^T S`, a row for each example and output,

        log det(R + J^T L J) = log det R + log det(I + K),
        J* P^-1 J*^T = J* R^-1 J*^T - J* R^-1 J^T S (I + K)^-1 S^T J R^-1 J*^T:

    exact, and invariant under every reparametrization in which the rest stays diagonal. Of dense
    layers K is a sum of products of what flows forth and back, at a cost of O(m^2 (units +
    fan_in)) for m rows, of convolutions of their gradients; of other models by a product with J and
    one with J^T for each row. The factor of `I + K` takes O(m^3), and no array is larger than K and
    what flows through the layers; with `GGN(chunk=)` through those of a chunk. Draws and
    `Linearized()` at inputs of another kind take two passes through the data each.

    A variance is the difference of two, so that in single precision it has fewer digits than that
    of `Full()`: 1e-5 against 2e-6, relatively, with 200 data and 100 units. K may be too large for
    its factor there, which is an error.

    References:
        Khan et al. (2019), Approximate inference turns deep networks into Gaussian processes;
        Immer, Korzepa & Bauer (2021), Improving predictions of Bayesian neural nets via local
        linearization.

    >>> import jax, jax.numpy as jnp, volform as vf
    >>> network, x = vf.networks.MLP(widths=(64,)), jnp.array([[0.5], [1.0], [2.0]])
    >>> posterior = vf.condition(vf.networks.regression(network, 0.1), x, jnp.sin(x))
    >>> at, structure = network.init(jax.random.key(0), 1), vf.inference.FunctionSpace()
    >>> approx = vf.laplace(posterior, at=at, curvature=vf.GGN(), structure=structure)
    >>> approx.posterior.dim, approx.precision.factor.shape
    (128, (3, 3))
    >>> full = vf.laplace(posterior, at=at, curvature=vf.GGN())
    >>> bool(abs(approx.evidence.log_z - full.evidence.log_z) < 1e-8)
    True
    """

    def precision(self, split: DataPriorSplit) -> JacobianUpdate:
        """The priors, with a direction for each row of the Jacobian."""
        rest, uniform = _prepared(self, split)
        count, columns = number_of_rows(split)
        _require_room(self, count * columns, split)
        return _definite(self, jacobian_update(rest, JacobianRows(split, None, uniform)))

    def regime(self, precision: lx.AbstractLinearOperator) -> Regime:
        """The kernel of the outputs."""
        return Regime("matrix by the kernel of the outputs")


class Nystrom(Structure):
    """Curvature of the data along some rows of the Jacobian: `FunctionSpace()` for many examples.

    A row is the gradient of one column of the root S of L, as of `FunctionSpace`, at one example.
    With `C = S^T J R^(-1/2)` and V an orthonormal basis of some of its rows,

        P = R^(1/2) (I + V V^T C^T C V V^T) R^(1/2).

    All data are in it, once through the kernel between all rows and the chosen ones. The priors are
    taken as they are, where ELLA drops what is outside of V: along directions outside of V the
    variance is that of the prior, which is too large near the data, and right far from them. log Z
    is an upper bound of that of `Full()` and falls with each further row (a projection has a
    smaller determinant); with all rows both are exact. There is no bound on the error of a
    variance. It falls with the eigenvalues of K that are left out: compare two numbers of features.

    Args:
        features: number M of rows, at a cost of O(M^3), and O(N M) for all N rows.
        key: key of the choice; `jax.random.key(0)` if left out.
        leverage: whether rows are chosen by their ridge leverage, the part of a row that the data
            determine beside the prior, and not uniformly. It is estimated from as many uniform
            ones, for twice the time (Musco & Musco 2017).

    References:
        Deng, Zhou & Zhu (2022), Accelerated linearized Laplace approximation for Bayesian deep
        learning (ELLA); Musco & Musco (2017), Recursive sampling for the Nystrom method.

    >>> import jax, jax.numpy as jnp, volform as vf
    >>> network, x = vf.networks.MLP(widths=(64,)), jnp.linspace(-1.0, 1.0, 200)[:, None]
    >>> posterior = vf.condition(vf.networks.regression(network, 0.1), x, jnp.sin(3.0 * x))
    >>> at, structure = network.init(jax.random.key(0), 1), vf.inference.Nystrom(20)
    >>> approx = vf.laplace(posterior, at=at, curvature=vf.GGN(), structure=structure)
    >>> full = vf.laplace(posterior, at=at, curvature=vf.GGN())
    >>> bool(0 < approx.evidence.log_z - full.evidence.log_z < 0.01)
    True
    """

    features: int = eqx.field(static=True)
    key: PRNGKeyArray | None = None
    leverage: bool = eqx.field(static=True, default=False)

    def __check_init__(self) -> None:
        require_whole(self.features, "features", "Nystrom", StructureError)
        if self.key is not None:
            require_key(self.key, "key", "Nystrom", StructureError)
        if not isinstance(self.leverage, bool):
            raise StructureError(
                f"`leverage` of Nystrom is {self.leverage!r}; it should be True or False: whether "
                "rows are chosen by their leverage."
            )

    def precision(self, split: DataPriorSplit) -> JacobianUpdate:
        """The priors, with the directions of the chosen rows."""
        rest, uniform = _prepared(self, split)
        count, columns = number_of_rows(split)
        number = min(self.features, count * columns)
        _require_room(self, number, split)
        _require_examples(self, number, split)
        first, second = jax.random.split(jax.random.key(0) if self.key is None else self.key)
        chosen = jax.random.choice(first, count * columns, (number,), replace=False)
        found = _projected(rest, split, uniform, chosen, columns)
        if self.leverage and number < count * columns:
            scores = _leverages(_definite(self, found), split)
            noise = jax.random.gumbel(second, scores.shape, scores.dtype)
            _, chosen = jax.lax.top_k(jnp.log(scores) + noise, number)
            found = _projected(rest, split, uniform, chosen, columns)
        return _definite(self, found)

    def regime(self, precision: lx.AbstractLinearOperator) -> Regime:
        """The kernel of some rows."""
        return Regime("matrix by the kernel of some outputs")


def _prepared(
    structure: Structure, split: DataPriorSplit
) -> tuple[Float[Array, " d"], frozenset[str] | None]:
    """The diagonal of the priors, and the sites of layers."""
    if not split.names:
        raise StructureError(
            f"`structure={structure}` needs `curvature=GGN()`, or a Fisher matrix, which takes the "
            "data apart from the rest; of the Hessian, which the curvature is here, all would be "
            "rest."
        )
    if comes_in_batches(split):
        raise StructureError(
            f"`structure={structure}` takes the kernel between all data, which `Batches` do not "
            "have at hand; condition on the data whole, in memory or as a memory map, with "
            "`GGN(chunk=)`, or use `Kronecker()`."
        )
    rest = rest_diagonal(split)
    if rest is None or not bool(jnp.all(rest > 0.0)):
        raise StructureError(
            f"`structure={structure}` needs priors and a metric whose covariant Hessian is "
            "diagonal and positive, as of independent Normal priors under the flat metric; here it "
            "is not. Use `Full()`, or `LowRank(k)`."
        )
    require_roots(_error_of(split))
    return rest, uniform_sites(split, rest)


@steady
def _error_of(split: DataPriorSplit) -> Float[Array, " 3"]:
    return over_chunks(split, factorization_error, jnp.maximum)


def _require_room(structure: Structure, rows: int, split: DataPriorSplit) -> None:
    if not fits(rows, rows, split.u.dtype):
        raise SizeError(
            f"`structure={structure}` has a kernel of {rows:,} rows, a number for each example and "
            f"output, which takes {gib_of(rows, rows, split.u.dtype):.3g} GiB. Use "
            "`Nystrom(features)` with fewer."
        )


def _require_examples(structure: Structure, number: int, split: DataPriorSplit) -> None:
    reason, found = "it gives all of them", -1
    try:
        found, _ = number_of_rows(some_of(split, jnp.zeros(number, int)))
    except Exception as error:  # whatever a model raises that insists on its number of rows
        reason = f"it raises {type(error).__name__}: {error}".rstrip(".")
    if found != number:
        raise StructureError(
            f"`structure={structure}` runs the model on some of its {split.count} examples, the "
            f"rows of those arguments that have as many, and here {reason}. Give the data as "
            "arguments of the model, or use `FunctionSpace()`."
        )


def _definite(structure: Structure, found: JacobianUpdate) -> JacobianUpdate:
    if float(_rounding_of(found.factor)) < MOST_ROUNDING:
        return found
    raise StructureError(
        f"`structure={structure}`: the kernel of the outputs is beyond the digits of "
        f"{found.rest.dtype}. Its eigenvalues, the precision of the data beside that of the "
        "priors, are too large for the rounding, or not finite. Use double precision, "
        "`jax.config.update('jax_enable_x64', True)`, or `Kronecker()`."
    )


@steady
def _rounding_of(factor: Float[Array, "k k"]) -> Float[Array, ""]:
    """Rounding relative to 1 of a matrix `1 + K`, by its largest eigenvalue; infinite of NaN."""

    def step(_: Any, v: Float[Array, " k"]) -> Float[Array, " k"]:
        moved = factor @ (v @ factor)
        return moved / jnp.sqrt(moved @ moved)

    # Ones are at right angles to an odd eigenvector, as of inputs on both sides of zero.
    first = scattered(1, len(factor), factor.dtype)[0]
    v = jax.lax.fori_loop(0, 8, step, first)
    largest = jnp.sum((v @ factor) ** 2) / (v @ v)
    rounding = largest * jnp.finfo(factor.dtype).eps
    return jnp.where(jnp.isfinite(rounding), rounding, jnp.inf)


@steady
def _projected(
    rest: Float[Array, " d"],
    split: DataPriorSplit,
    uniform: frozenset[str] | None,
    chosen: Int[Array, " k"],
    columns: int,
) -> JacobianUpdate:
    """R and the data along some rows: `C' = F S_M^T J_M R^(-1/2)` with `F^T F = K_M^+ G K_M^+`.

    `G = sum_n K_Mn K_nM`. With the eigenvectors U and values of K_M, V is `C_M^T U values^(-1/2)`.
    """
    own = JacobianRows(some_of(split, chosen // columns), chosen % columns, uniform)
    values, axes = jnp.linalg.eigh(kernel_between(own, own, 1.0 / rest))
    least = len(values) * jnp.finfo(values.dtype).eps * values[-1]
    is_there = values > least
    shrunk = jnp.where(is_there, jax.lax.rsqrt(jnp.where(is_there, values, 1.0)), 0.0)
    basis = axes * shrunk[None]

    def squares(part: DataPriorSplit) -> Float[Array, "k k"]:
        cross = basis.T @ kernel_between(own, JacobianRows(part, None, uniform), 1.0 / rest)
        return cross @ cross.T

    along, turned = jnp.linalg.eigh(over_chunks(split, squares))
    mix = jnp.sqrt(jnp.maximum(along, 0.0))[:, None] * (basis @ turned).T
    return jacobian_update(rest, own, mix)


@steady
def _leverages(found: JacobianUpdate, split: DataPriorSplit) -> Float[Array, " m"]:
    """`diag(K (I + K)^-1)` of all rows: the variances that a model of some of them leaves."""

    def taken(part: DataPriorSplit) -> Float[Array, "n o"]:
        rows = JacobianRows(part, None, found.rows.uniform)
        cross = kernel_between(found.rows, rows, 1.0 / found.rest)
        return jnp.sum(found.solved(cross) ** 2, 0).reshape(number_of_rows(part)[0], -1)

    squares = squared_lengths(JacobianRows(split, None, found.rows.uniform), 1.0 / found.rest)
    left = squares - stacked_chunks(split, taken).ravel()
    return jnp.maximum(left, jnp.finfo(left.dtype).eps * squares)
