"""Numbers of a pencil by its matrix, and the errors where it has none."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from volform.errors import IndefiniteError, OperatorError
from volform.linalg.lanczos import LanczosQuadrature
from volform.linalg.methods import Method, XTrace
from volform.linalg.operator import is_known, require_dense
from volform.linalg.pencil import Pencil

REMEDY = (
    "Use `ggn` or `fisher` in place of a Hessian that is no minimum's, or add damping as in "
    "`operator + 0.1`."
)


def logdet_by_cholesky(form: Pencil) -> Float[Array, ""]:
    """Log det of the pencil; raises IndefiniteError where it is not positive definite."""
    require_dense(form.size(), form.size(), form.dtype())
    value, matrix = _primal_logdet(form)
    if is_known(value) and not jnp.isfinite(value):
        finite(matrix, "logdet")
        raise indefinite(jnp.linalg.eigvalsh(matrix), "logdet")
    return value


@eqx.filter_jit
def _primal_logdet(form: Pencil) -> tuple[Float[Array, ""], Float[Array, "n n"]]:
    matrix = form.matrix()
    pivots = jnp.diagonal(jnp.linalg.cholesky(matrix))
    # What is left of a diagonal entry after elimination is rounding where the matrix is singular.
    rounding = len(matrix) * jnp.finfo(matrix.dtype).eps
    regular = jnp.all(pivots**2 > rounding * jnp.diagonal(matrix))
    return jnp.where(regular, 2.0 * jnp.sum(jnp.log(pivots)), jnp.nan), matrix


def all_eigenvalues(form: Pencil) -> LanczosQuadrature:
    """All eigenvalues, as a quadrature whose weights are equal."""
    require_dense(form.size(), form.size(), form.dtype())
    values = _spectrum(form)[None]
    return LanczosQuadrature(values, jnp.full_like(values, 1.0 / form.size()))


@eqx.filter_jit
def _spectrum(form: Pencil) -> Float[Array, " n"]:
    return jnp.linalg.eigvalsh(form.matrix())


def indefinite(values: Float[Array, " n"], function: str) -> IndefiniteError:
    """The error for an operator with these eigenvalues."""
    rounding = len(values) * jnp.finfo(values.dtype).eps * jnp.abs(values).max()
    negative, zero = int((values < -rounding).sum()), int((jnp.abs(values) <= rounding).sum())
    return IndefiniteError(
        f"`operator` of {function} is not positive definite: of its {len(values)} eigenvalues "
        f"{negative} are negative and {zero} are zero to rounding; the smallest is "
        f"{float(values.min()):.3g}. {REMEDY}"
    )


def without_xtrace(by: Method, function: str) -> Method:
    """`by`, unless it is a method for traces only."""
    if isinstance(by, XTrace):
        raise OperatorError(
            f"`by` of {function} is `XTrace`, which estimates traces only; use `Krylov(key)` or "
            "`Exact()`."
        )
    return by


def finite(result: Any, function: str) -> Any:
    """`result`, unless it holds a number that is known and not finite."""
    leaves = jax.tree.leaves(result)
    if is_known(leaves) and not all(bool(jnp.isfinite(leaf).all()) for leaf in leaves):
        raise OperatorError(
            f"`operator` of {function} gives products that are not finite; check that the loss or "
            "network and its second derivatives are finite at `params`."
        )
    return result
