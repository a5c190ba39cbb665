"""Trace, diagonal, log-determinant and other numbers of an operator, each with its error."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float
from matfree import stochtrace

from volform.errors import IndefiniteError, OperatorError
from volform.linalg.by_matrix import (
    REMEDY,
    all_eigenvalues,
    finite,
    indefinite,
    logdet_by_cholesky,
    without_xtrace,
)
from volform.linalg.checkpoint import quadratures
from volform.linalg.generalized import capacitance_root
from volform.linalg.lanczos import LanczosQuadrature, averaged
from volform.linalg.methods import Estimate, Krylov, Method, XTrace, chosen
from volform.linalg.operator import is_known, require_dense
from volform.linalg.pencil import Pencil, pencil
from volform.linalg.stepping import over_probes


def trace(operator: lx.AbstractLinearOperator, *, by: Method | None = None) -> Estimate:
    """Trace of a symmetric operator, or of `E = G^-1 H`.

    Args:
        operator: symmetric, or self-adjoint in a metric (`under_metric`); sums and multiples.
        by: `Exact()`: n products; `Krylov(key, probes)`: Hutchinson's estimate; `XTrace(key)`. By
            default `Exact()` up to 2048 coordinates, else `Krylov(jax.random.key(0))`.

    Returns:
        The trace with its standard error.

    Raises:
        OperatorError: for an operator that is not self-adjoint or whose products are not finite.

    References:
        Hutchinson (1990); Epperly, Tropp & Webber (2024).

    >>> import jax, jax.numpy as jnp, volform as vf
    >>> H = vf.operators.hessian(lambda x: jnp.sum(x**4), jnp.arange(3.0))
    >>> vf.linalg.trace(H)
    Estimate(60)
    >>> vf.linalg.trace(H, by=vf.Krylov(jax.random.key(0), probes=8))  # of a diagonal
    Estimate(60)
    """
    form = pencil(operator, "trace")
    method = chosen(by, form.size())
    match method:
        case Krylov():
            value, error = averaged(over_probes(jnp.vdot, Pencil.mv, form, method))
        case XTrace() if 2 * method.probes < form.size():
            value, error = _xtrace(form, method)
        case _:
            value = jnp.sum(_exact_diagonal(form))
            error = jnp.zeros_like(value)
    return finite(Estimate(value, error), "trace")


@eqx.filter_jit
def _xtrace(form: Pencil, by: XTrace) -> tuple[Array, Array]:
    product = form.mv()
    like = jnp.zeros(form.size(), form.dtype())
    # matfree compares with an absolute tolerance, so it is given an operator of size one.
    sampler = stochtrace.sampler_sphere(like, num=by.probes)
    first = sampler(by.key)[0]
    scale = jnp.linalg.norm(product(first)) / jnp.linalg.norm(first)
    scale = jnp.where(scale > 0, scale, 1.0)
    integrand = stochtrace.leave_one_out_xtrace()
    value, error = averaged(integrand(lambda v: product(v) / scale, sampler(by.key)))
    return scale * value, scale * error


@eqx.filter_jit
def _exact_diagonal(form: Pencil) -> Float[Array, " n"]:
    return form.diagonal()


def diagonal(operator: lx.AbstractLinearOperator, *, by: Method | None = None) -> Estimate:
    """Diagonal of an operator, in the coordinates of the parameters.

    No invariant: it depends on the coordinates, as the trace of `E` does not.

    Args:
        operator: as for `trace`.
        by: `Exact()`: n products; `Krylov(key, probes)`: averages of `z * (A z)`.

    Returns:
        An `Estimate` whose value and error are pytrees like the parameters.

    Raises:
        OperatorError: as for `trace`; and for `XTrace`, which gives a trace only.

    References:
        Bekas, Kokiopoulou & Saad (2007), An estimator for the diagonal of a matrix.

    >>> import jax.numpy as jnp, volform as vf
    >>> H = vf.operators.hessian(lambda x: jnp.sum(x**4), jnp.arange(3.0))
    >>> vf.linalg.diagonal(H).value.tolist()
    [0.0, 12.0, 48.0]
    """
    form = pencil(operator, "diagonal")
    method = without_xtrace(chosen(by, form.size()), "diagonal")
    if isinstance(method, Krylov):
        value, error = averaged(over_probes(jnp.multiply, Pencil.tangent_mv, form, method))
    else:
        value = _exact_diagonal(form)
        error = jnp.zeros_like(value)
    return finite(Estimate(form.unravel(value), form.unravel(error)), "diagonal")


def logdet(operator: lx.AbstractLinearOperator, *, by: Method | None = None) -> Estimate:
    """`log det A` of a positive-definite operator, with its sign: below zero for small A.

    For a diagonal plus Gram matrices, as in "prior precision + Gauss-Newton", `Exact()` takes the
    smaller of two matrices: that of the n parameters or, since
    `det(P + A^T A) = det(P) det(I + A P^-1 A^T)`, that of the rows of A.

    Args:
        operator: symmetric, or self-adjoint in a metric; sums and multiples.
        by: `Exact()`: Cholesky; `Krylov(key, probes, depth)`: stochastic Lanczos quadrature. By
            default `Exact()` up to a matrix of 2048 rows.

    Returns:
        The log-determinant with its standard error. Under `jit` it is NaN where it does not exist.

    Raises:
        IndefiniteError: where A is singular or has negative eigenvalues: log |det A| is no
            substitute. `Krylov` sees this only where a Ritz value falls to zero.
        OperatorError: as for `trace`.
        SizeError: where `Exact()` would need more than 8 GiB.

    References:
        Ubaru, Chen & Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos quadrature.

    >>> import jax.numpy as jnp, volform as vf
    >>> H = vf.operators.hessian(lambda x: 0.25 * jnp.sum(x**2), jnp.ones(2))
    >>> vf.linalg.logdet(H)
    Estimate(-1.386294)
    >>> vf.linalg.logdet(H + 0.5)
    Estimate(0)
    """
    form = pencil(operator, "logdet")
    rows = _rows_of_dual(form)
    method = without_xtrace(chosen(by, form.size() if rows is None else rows), "logdet")
    if isinstance(method, Krylov):
        nodes = finite(quadratures(form, method), "logdet")
        _require_definite(nodes, "logdet")
        value, error = _averaged_function(form.size(), nodes, jnp.log)
        return Estimate(jnp.where(_is_positive(nodes), value, jnp.nan), error)
    value = logdet_by_cholesky(form) if rows is None else _by_rows(form, rows)
    return Estimate(value, jnp.zeros_like(value))


def _rows_of_dual(form: Pencil) -> int | None:
    """Number of rows of the dual form, None where the primal one is smaller or the only one."""
    if not form.is_diagonal_and_grams():
        return None
    rows = sum(gram.row_count() for _, gram in form.grams())
    if rows >= form.size():
        return None
    usable = _is_usable_dual(form)
    return rows if not is_known(usable) or usable else None


@eqx.filter_jit
def _is_usable_dual(form: Pencil) -> Bool[Array, ""]:
    factors = jnp.asarray([c for c, _ in form.grams()])
    return jnp.all(form.diagonal_part() > 0) & jnp.all(factors >= 0)


def _by_rows(form: Pencil, rows: int) -> Float[Array, ""]:
    require_dense(rows, form.size(), form.dtype())
    return finite(_dual_logdet(form), "logdet")


@eqx.filter_jit
def _dual_logdet(form: Pencil) -> Float[Array, ""]:
    entries = form.diagonal_part()
    value = jnp.sum(jnp.log(entries))
    if form.grams():
        half = form.rows() / jnp.sqrt(entries)[None]
        value = value + 2.0 * jnp.sum(jnp.log(jnp.diagonal(capacitance_root(half))))
    return value


def effective_dimension(
    operator: lx.AbstractLinearOperator, damping: Any, *, by: Method | None = None
) -> Estimate:
    """Effective number of parameters, `tr(A (A + damping I)^-1)`: directions that data determine.

    With E = G^-1 H it is `tr(H (H + damping G)^-1)`, an invariant.

    Args:
        operator: positive semi-definite, or self-adjoint in a metric: Gauss-Newton or Fisher, or
            a Hessian at a minimum.
        damping: a positive number, the precision of the prior in units of the metric.
        by: as for `logdet`.

    Returns:
        A number between 0 and n, with its standard error; under `jit` NaN where it does not exist.

    Raises:
        IndefiniteError: where `A + damping I` is not positive definite.
        OperatorError: for a `damping` that is not positive, and as for `trace`.

    References:
        MacKay (1992), Bayesian interpolation, Eq. (4.9).

    >>> import jax.numpy as jnp, volform as vf
    >>> H = vf.operators.hessian(lambda x: x[0] ** 2 + 50 * x[1] ** 2, jnp.ones(2))
    >>> vf.linalg.effective_dimension(H, 1.0)
    Estimate(1.656766)
    """
    if is_known(damping) and not damping > 0:
        raise OperatorError(
            f"`damping` of effective_dimension is {damping}; it should be positive: the precision "
            "of the prior."
        )
    form = pencil(operator, "effective_dimension")
    method = without_xtrace(chosen(by, form.size()), "effective_dimension")
    found = quadratures(form, method) if isinstance(method, Krylov) else all_eigenvalues(form)
    nodes = finite(found, "effective_dimension")
    shifted = LanczosQuadrature(nodes.nodes + damping, nodes.weights)
    _require_definite(shifted, "effective_dimension")
    value, error = _averaged_function(form.size(), nodes, lambda x: x / (x + damping))
    return Estimate(jnp.where(_is_positive(shifted), value, jnp.nan), error)


def _averaged_function(size: int, nodes: LanczosQuadrature, function: Any) -> tuple[Array, Array]:
    # A node that rounding puts at zero or below may only be there with weight zero.
    values = jnp.where(nodes.weights > 0, function(nodes.nodes), 0.0)
    samples = size * jnp.sum(nodes.weights * values, -1)
    if len(samples) == 1:
        return samples[0], jnp.zeros_like(samples[0])
    return averaged(samples)


def _is_positive(nodes: LanczosQuadrature) -> Array:
    rounding = 10.0 * jnp.finfo(nodes.nodes.dtype).eps
    return nodes.nodes.min() > rounding * nodes.nodes.max()


def _require_definite(nodes: LanczosQuadrature, function: str) -> None:
    if not is_known(nodes) or _is_positive(nodes):
        return
    if len(nodes.nodes) == 1:
        raise indefinite(nodes.nodes[0], function)
    raise IndefiniteError(
        f"`operator` of {function} is not positive definite: its smallest Ritz value is "
        f"{float(nodes.nodes.min()):.3g}, its largest {float(nodes.nodes.max()):.3g}. {REMEDY}"
    )
