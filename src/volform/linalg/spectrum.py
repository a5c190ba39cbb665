"""The spectrum of an operator: its top, its density, its condition number."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PyTree

from volform.checks import require_whole
from volform.errors import IndefiniteError, OperatorError
from volform.linalg.by_matrix import all_eigenvalues, finite, indefinite, without_xtrace
from volform.linalg.checkpoint import quadratures
from volform.linalg.lanczos import Decomposition, averaged, lanczos
from volform.linalg.methods import Estimate, Krylov, Method, chosen
from volform.linalg.operator import is_known, require_dense
from volform.linalg.pencil import Pencil, pencil
from volform.linalg.stepping import decompositions, runs_in_steps


class Eigenpairs(eqx.Module):
    """Largest eigenvalues of an operator with their eigenvectors.

    Attributes:
        values: shape (k,), in descending order.
        vectors: a pytree like the parameters with a leading axis k: tangent vectors v with
            `E v = value v` and `v^T G v = 1`.
        residuals: shape (k,), `|E v - value v|` in the norm of G. Within that distance of each
            value there is an eigenvalue.
    """

    values: Float[Array, " k"]
    vectors: PyTree
    residuals: Float[Array, " k"]

    def __repr__(self) -> str:
        if not is_known(self.values, self.residuals):
            return f"Eigenpairs(values={self.values}, residuals={self.residuals})"
        pairs = zip(np.asarray(self.values), np.asarray(self.residuals), strict=True)
        return f"Eigenpairs({', '.join(f'{value:.7g} ± {size:.1g}' for value, size in pairs)})"


def eigenvalues(
    operator: lx.AbstractLinearOperator, k: int = 6, *, by: Method | None = None
) -> Eigenpairs:
    """The k largest eigenvalues, of a symmetric operator or of the pencil (H, G).

    The smallest ones are those of `-operator`, negated.

    Args:
        operator: symmetric, or self-adjoint in a metric; sums and multiples.
        k: how many.
        by: `Exact()`: all eigenvalues of the matrix; `Krylov(key, depth)`: Lanczos' method with
            full re-orthogonalization from one random vector, of depth at least 2 k + 16. It finds a
            repeated eigenvalue once. By default `Exact()` up to 2048 coordinates.

    Returns:
        Eigenvalues, eigenvectors and residuals; raise `depth` where a residual is too large.

    Raises:
        OperatorError: for k < 1 or more than there are, and as for `trace`.

    References:
        Parlett (1998), The Symmetric Eigenvalue Problem, chapters 4 and 13.

    >>> import jax.numpy as jnp, volform as vf
    >>> H = vf.operators.hessian(lambda x: x[0] ** 2 - 3 * x[1] ** 2, jnp.ones(2))
    >>> vf.linalg.eigenvalues(H, k=2).values.tolist()
    [2.0, -6.0]
    """
    require_whole(k, "k", "eigenvalues")
    form = pencil(operator, "eigenvalues")
    if k > form.size():
        raise OperatorError(
            f"`k` of eigenvalues is {k}, but the operator has {form.size()} eigenvalues; ask for "
            "at most that many."
        )
    method = without_xtrace(chosen(by, form.size()), "eigenvalues")
    if isinstance(method, Krylov):
        by_lanczos = _step_by_step if runs_in_steps(form) else _by_lanczos
        values, vectors, residuals = finite(by_lanczos(form, method, k), "eigenvalues")
    else:
        require_dense(form.size(), form.size(), form.dtype())
        values, vectors, residuals = finite(_by_matrix(form, k), "eigenvalues")
    return Eigenpairs(values, jax.vmap(form.unravel)(vectors), residuals)


@eqx.filter_jit
def _by_lanczos(form: Pencil, by: Krylov, k: int) -> tuple[Array, Array, Array]:
    start = _start(form, by)
    return _top(form, lanczos(form.mv(), start, _depth(form, by, k), by.key), k)


def _step_by_step(form: Pencil, by: Krylov, k: int) -> tuple[Array, Array, Array]:
    found = decompositions(form, by.key, _start(form, by)[None], _depth(form, by, k))
    return eqx.filter_jit(_top)(form, jax.tree.map(lambda leaf: leaf[0], found), k)


def _start(form: Pencil, by: Krylov) -> Float[Array, " n"]:
    return jax.random.normal(by.key, (form.size(),), form.dtype())


def _depth(form: Pencil, by: Krylov, k: int) -> int:
    return min(max(by.depth, 2 * k + 16), form.size())


def _top(form: Pencil, found: Decomposition, k: int) -> tuple[Array, Array, Array]:
    values, small = found.ritz()
    vectors = (small.T @ found.basis)[::-1][:k]
    return _with_residuals(form, values[::-1][:k], vectors, jax.vmap(form.mv())(vectors))


@eqx.filter_jit
def _by_matrix(form: Pencil, k: int) -> tuple[Array, Array, Array]:
    matrix = form.matrix()
    values, vectors = jnp.linalg.eigh(matrix)
    top = vectors[:, ::-1][:, :k].T
    return _with_residuals(form, values[::-1][:k], top, top @ matrix)


def _with_residuals(
    form: Pencil, values: Array, vectors: Array, images: Array
) -> tuple[Array, Array, Array]:
    residuals = jnp.linalg.norm(images - values[:, None] * vectors, axis=1)
    return values, jax.vmap(form.root()[1])(vectors), residuals


def condition_number(operator: lx.AbstractLinearOperator, *, by: Method | None = None) -> Estimate:
    """Largest over smallest eigenvalue of a positive-definite operator, or of the pencil (H, G).

    Args:
        operator: symmetric, or self-adjoint in a metric; sums and multiples.
        by: `Exact()`, or `Krylov(key, depth)`: a lower bound by Lanczos' method, whose error is
            what the residuals of the two eigenvalues allow.

    Returns:
        The condition number with its error.

    Raises:
        IndefiniteError: where the operator is not positive definite.
        OperatorError: as for `trace`.

    >>> import jax.numpy as jnp, volform as vf
    >>> H = vf.operators.hessian(lambda x: x[0] ** 2 + 8 * x[1] ** 2, jnp.ones(2))
    >>> vf.linalg.condition_number(H)
    Estimate(8)
    """
    form = pencil(operator, "condition_number")
    method = without_xtrace(chosen(by, form.size()), "condition_number")
    if isinstance(method, Krylov):
        values, residuals = finite(_extremes(form, method), "condition_number")
    else:
        values = finite(all_eigenvalues(form), "condition_number").nodes[0]
        residuals = jnp.zeros_like(values)
    low, high = values[0], values[-1]
    rounding = len(values) * jnp.finfo(values.dtype).eps
    positive = low > rounding * high
    if is_known(positive) and not positive:
        if not isinstance(method, Krylov):
            raise indefinite(values, "condition_number")
        raise IndefiniteError(
            f"`operator` of condition_number is not positive definite: its smallest Ritz value is "
            f"{float(low):.3g}, its largest {float(high):.3g}; add damping as in `operator + 0.1`."
        )
    value = jnp.where(positive, high / low, jnp.nan)
    return Estimate(value, value * (residuals[0] / low + residuals[-1] / high))


@eqx.filter_jit
def _extremes(form: Pencil, by: Krylov) -> tuple[Array, Array]:
    start = jax.random.normal(by.key, (form.size(),), form.dtype())
    depth = min(max(by.depth, 2), form.size())
    product = form.mv()
    found = lanczos(product, start, depth, by.key)
    values, small = found.ritz()
    ends = jnp.array([0, -1])
    vectors = (small.T @ found.basis)[ends]
    residuals = _with_residuals(form, values[ends], vectors, jax.vmap(product)(vectors))[2]
    return values[ends], residuals


class SpectralDensity(eqx.Module):
    """The eigenvalues of an operator as a measure of total mass one.

    Attributes:
        nodes: shape (p, k): all eigenvalues (p = 1), or Ritz values for each of p probes.
        weights: shape (p, k), summing to one along the last axis.
    """

    nodes: Float[Array, "p k"]
    weights: Float[Array, "p k"]

    def __call__(self, at: Float[Array, " m"], *, width: Any) -> Estimate:
        """The density at the points `at`, smoothed by a Gaussian of standard deviation `width`."""
        if is_known(width) and not width > 0:
            raise OperatorError(
                f"`width` of a spectral density is {width}; it should be positive, in the units of "
                "the eigenvalues."
            )
        z = (jnp.asarray(at)[:, None, None] - self.nodes[None]) / width
        bumps = jnp.exp(-0.5 * z**2) / (width * np.sqrt(2.0 * np.pi))
        samples = jnp.sum(bumps * self.weights[None], -1).T
        if len(samples) == 1:
            return Estimate(samples[0], jnp.zeros_like(samples[0]))
        return Estimate(*averaged(samples))


def spectral_density(
    operator: lx.AbstractLinearOperator, *, by: Method | None = None
) -> SpectralDensity:
    """Distribution of the eigenvalues, of a symmetric operator or of the pencil (H, G).

    Args:
        operator: symmetric, or self-adjoint in a metric; sums and multiples.
        by: `Exact()`: all eigenvalues; `Krylov(key, probes, depth)`: Lanczos quadrature, which
            resolves as many features as its depth.

    Returns:
        A measure; call it with points and a width for a smooth density with its standard error.

    Raises:
        OperatorError: as for `trace`.

    References:
        Lin, Saad & Yang (2016), Approximating spectral densities of large matrices.

    >>> import jax.numpy as jnp, volform as vf
    >>> H = vf.operators.hessian(lambda x: jnp.sum(x**2), jnp.ones(3))
    >>> density = vf.linalg.spectral_density(H)
    >>> density(jnp.array([2.0]), width=0.5).value.round(4).tolist()
    [0.7979]
    """
    form = pencil(operator, "spectral_density")
    method = without_xtrace(chosen(by, form.size()), "spectral_density")
    found = quadratures(form, method) if isinstance(method, Krylov) else all_eigenvalues(form)
    return SpectralDensity(*finite(found, "spectral_density"))
