"""Methods for functionals of an operator: exact, or from products with random vectors."""

from os import PathLike
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from volform.checks import require_key, require_whole
from volform.errors import OperatorError
from volform.limits import EXACT_UP_TO
from volform.linalg.operator import is_known


class Method(eqx.Module):
    """Method for a functional: `Exact()`, `Krylov(key)` or `XTrace(key)`."""


class Exact(Method):
    """By the matrix: Cholesky, eigenvalues, n products for a trace. No error but rounding.

    A matrix of more than 8 GiB is refused with a `SizeError`.

    >>> import jax.numpy as jnp, lineax as lx, volform as vf
    >>> D = lx.DiagonalLinearOperator(jnp.array([0.5, 0.5]))
    >>> vf.linalg.logdet(D, by=vf.Exact())
    Estimate(-1.386294)
    """


class Krylov(Method):
    """By products with random vectors of signs: Hutchinson's estimate, and Lanczos quadrature.

    The standard error is that of the probes. Quadrature has another error, which falls
    exponentially in `depth` and which the standard error does not see: raise `depth` until the
    answer stays, above all where eigenvalues reach down to zero.

    Args:
        key: key of the vectors. The same key gives the same vectors, so that differences and
            ratios of operators of the same structure have far less noise than each.
        probes: number of vectors, at least two.
        depth: products for each vector in Lanczos' method; cut off at the size of the operator.
        batch: vectors worked on at once, which bounds the memory; by default ten for traces and
            diagonals, all of them for Lanczos quadrature.
        checkpoint: path of a file (npz) that Lanczos quadrature writes after each batch, and goes
            on from: a log-determinant or spectral density of hours survives being killed. A file
            of another operator or other settings is refused.

    References:
        Hutchinson (1990); Ubaru, Chen & Saad (2017), Fast estimation of tr(f(A)) via stochastic
        Lanczos quadrature.
    """

    key: PRNGKeyArray
    probes: int = eqx.field(static=True, default=64)
    depth: int = eqx.field(static=True, default=48)
    batch: int | None = eqx.field(static=True, default=None)
    checkpoint: str | PathLike | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        """Check the numbers."""
        require_key(self.key, "key", "Krylov")
        _require_probes(self.probes, "Krylov")
        require_whole(self.depth, "depth", "Krylov")
        if self.batch is not None:
            require_whole(self.batch, "batch", "Krylov")
        if not isinstance(self.checkpoint, str | PathLike | None):
            raise OperatorError(
                f"`checkpoint` of Krylov is {self.checkpoint!r}; it should be a path, or None to "
                "keep no file."
            )


class XTrace(Method):
    """Trace by projection on a random subspace, and probes of what is left of the operator.

    Far smaller an error than Hutchinson's where few eigenvalues make up most of the trace, as for
    a Hessian of a network. Takes twice as many products as `probes`.

    Args:
        key: key of the vectors.
        probes: number of vectors, at least two. From half the number of coordinates on, the trace
            is exact.

    References:
        Epperly, Tropp & Webber (2024), XTrace: Making the most of every sample in stochastic trace
        estimation.
    """

    key: PRNGKeyArray
    probes: int = eqx.field(static=True, default=32)

    def __check_init__(self) -> None:
        """Check the numbers."""
        require_key(self.key, "key", "XTrace")
        _require_probes(self.probes, "XTrace")


def _require_probes(probes: Any, method: str) -> None:
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 2:
        raise OperatorError(
            f"`probes` of {method} is {probes!r}; a standard error needs a whole number of at "
            "least two."
        )


def chosen(by: Method | None, size: int) -> Method:
    """`by`, or the default for an operator on `size` coordinates."""
    if by is None:
        return Exact() if size <= EXACT_UP_TO else Krylov(jax.random.key(0))
    if not isinstance(by, Method):
        raise OperatorError(
            f"`by` is {by!r}; it should be a method such as `Exact()` or "
            "`Krylov(jax.random.key(0))`."
        )
    return by


class Estimate(eqx.Module):
    """A number, or a pytree of numbers, with its error.

    Attributes:
        value: the estimate.
        error: its standard error for a random method, zero for an exact one. For a condition
            number by `Krylov`: the bound that the residuals of the eigenvalues imply.
    """

    value: PyTree[Float[Array, "..."]]
    error: PyTree[Float[Array, "..."]]

    def __repr__(self) -> str:
        if not is_known(self.value, self.error) or np.ndim(self.value) != 0:
            return f"Estimate(value={self.value}, error={self.error})"
        value, error = float(self.value), float(self.error)
        return f"Estimate({value:.7g} ± {error:.2g})" if error > 0 else f"Estimate({value:.7g})"
