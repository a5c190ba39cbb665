"""The invariant maximum a posteriori: the mode of q^G."""

import warnings
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.errors import PrecisionWarning, SizeError
from volform.inference.modes import verdicts
from volform.inference.modes.expansion import (
    FirstOrder,
    OnOrbit,
    SecondOrder,
)
from volform.inference.summary import element_labels
from volform.limits import DENSE_GIB
from volform.linalg.operator import fits, gib_of
from volform.models.posterior import Posterior
from volform.results import Cost, Regime, html_table, in_words


class Mode(eqx.Module):
    """One of several modes that the starts ended in.

    Attributes:
        at: expansion of -log q^G at the mode.
        starts: how many starts ended here.
    """

    at: SecondOrder
    starts: int

    @property
    def u(self) -> Float[Array, " d"]:
        """The mode in unconstrained coordinates."""
        return self.at.u

    @property
    def log_density(self) -> float:
        """Log q^G there."""
        return -float(self.at.value)


# Of the evidence, in modes that one start alone found: above it there are likely to be others. Of
# a sinusoid's frequency, where nothing is missing, it is 0; of a mixture with 5 of 24 modes missing
# .2 to .6. The share of such *starts* (Good & Turing) is .2 to .4 in both.
SEEN_ONCE = 0.05
MODES_SHOWN = 12  # in print(fit)


def seen_once(modes: Sequence[Mode]) -> float:
    """Share of the evidence, by Laplace's method, of the modes that one start alone found."""
    if not modes:
        return 1.0
    heights = np.array([mode.log_density - 0.5 * float(mode.at.log_det) for mode in modes])
    shares = np.exp(heights - np.logaddexp.reduce(heights))
    return float(shares[[mode.starts == 1 for mode in modes]].sum())


class ExpansionPoint(eqx.Module):
    """A point of the posterior's manifold that values were given for, without its Hessian.

    Attributes:
        posterior: the posterior.
        at: -log q^G there to first order.
        verdict: what kind of point it is, with the reason.
        cost: evaluations of the search.
        regime: how it was searched, which the number of parameters may decide.
    """

    posterior: Posterior
    at: FirstOrder
    verdict: verdicts.Verdict
    cost: Cost
    regime: Regime = eqx.field(static=True, kw_only=True)

    @property
    def values(self) -> dict[str, Any]:
        """Values of the latent sites at the mode, by name."""
        return self.posterior.values(self.at.u)

    @property
    def log_density(self) -> float:
        """log q^G at the mode: log joint density with respect to dV_G."""
        return -float(self.at.value)

    @property
    def gradient_norm(self) -> float:
        """Norm of d log q^G in the metric; invariant."""
        return float(self.at.gradient_norm)

    @property
    def converged(self) -> bool:
        """Tell whether this is a local maximum of q^G, strict or along an orbit, to tolerance."""
        return isinstance(self.verdict, verdicts.Minimum)

    @property
    def orbit(self) -> verdicts.Orbit | None:
        """The orbit along which this is a mode; None of a strict one."""
        return self.at.orbit if isinstance(self.at, OnOrbit) else None

    def __repr__(self) -> str:
        return "\n".join(self.described())

    def described(self, table: Sequence[str] | None = None) -> list[str]:
        """Lines of print, with a table of the parameters in place of their values if given."""
        values = [f"{name:<12} {_short(value)}" for name, value in self.values.items()]
        return [
            f"{'MAP' if isinstance(self, MAP) else 'Point'} under {self.posterior.metric_name}",
            *(f"  {line}" for line in (values if table is None else table)),
            f"  log q^G      {self.log_density:.6f}",
            f"  |gradient|   {self.gradient_norm:.1e} in the metric's norm",
            *self._facts(),
        ]

    def to_dataframe(self) -> Any:
        """A pandas DataFrame of the mode, one row for each element of each site."""
        import pandas as pd  # noqa: PLC0415 - comes with arviz, and takes long to import

        labels = [label for name, v in self.values.items() for label in element_labels(name, v)]
        mode = np.concatenate([np.ravel(value) for value in self.values.values()])
        return pd.DataFrame({"mode": mode}, index=labels)

    def _repr_html_(self) -> str:
        title, *lines = self.described([])
        values = [[name, _short(value)] for name, value in self.values.items()]
        return html_table([["", "mode"], *values], [title, *(line.strip() for line in lines)])

    def _facts(self) -> list[str]:
        """The verdict, and the regime where the number of parameters decided it."""
        return [f"  {text}" for text in (str(self.verdict), in_words([self.regime])) if text]


class MAP(ExpansionPoint):
    """The invariant maximum a posteriori; built by `find_map`.

    Attributes:
        posterior: the posterior that was maximized.
        at: expansion of -log q^G at the mode: gradient, Hessian, metric, spectrum of E = G^-1 H.
        verdict: what kind of point it is, with the reason.
        cost: evaluations of the search.
        regime: how it was searched, which the number of parameters may decide.
        modes: the distinct strict modes that the starts ended in, the best first.
        starts: how many starts there were.
        steps: steps of BFGS, or gradients and Hessian products above 1,000 parameters (all starts
            together; none up to 60), and steps of Newton.
        tolerance: bound on the gradient norm, or on the Newton decrement, that was asked for.
    """

    at: SecondOrder  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen)
    modes: tuple[Mode, ...]
    starts: int
    steps: tuple[int, int]
    tolerance: float

    @property
    def eigenvalues(self) -> Float[Array, " d"]:
        """Eigenvalues of E = G^-1 H in ascending order; invariant.

        Along an orbit its k directions have 2 pi / Vol^(2/k), by which a Gaussian has its volume.
        """
        return self.at.eigenvalues

    def _facts(self) -> list[str]:
        rows = [
            f"  E = G^-1 H   smallest eigenvalue {np.asarray(self.eigenvalues)[0]:.4g}, "
            f"largest {np.asarray(self.eigenvalues)[-1]:.4g}",
            *super()._facts(),
        ]
        if len(self.modes) > 1:
            rows += self._mode_rows()
        lost = self.starts - sum(mode.starts for mode in self.modes)
        if lost and self.modes:
            rows.append(
                f"  {lost} of {self.starts} starts ended at no strict mode: a singular metric, "
                "the edge of the support, or not converged"
            )
        return rows

    def _mode_rows(self) -> list[str]:
        once = [mode for mode in self.modes if mode.starts == 1]
        title = f"  {len(self.modes)} distinct modes"
        if once:
            title += f", seen once {len(once)}, holding {self.seen_once:.0%} of the evidence"
        best, shown = self.modes[0].log_density, self.modes[:MODES_SHOWN]
        rows = [f"{title}; log q^G less the best's (starts):"]
        rows += [f"    {mode.log_density - best:+.3f} ({mode.starts})" for mode in shown]
        more = len(self.modes) - len(shown)
        return rows + ([f"    and {more} more"] if more else [])

    @property
    def seen_once(self) -> float:
        """Share of the evidence, by Laplace's method, of the modes that one start alone found."""
        return seen_once(self.modes)


def require_room(posterior: Posterior) -> None:
    """Raises SizeError where the Hessian of all parameters would take too much memory."""
    if not fits(posterior.dim, posterior.dim, float):
        gib = gib_of(posterior.dim, posterior.dim, float)
        raise SizeError(
            f"`posterior` has {posterior.dim:,} parameters, whose Hessian would take {gib:.0f} GiB "
            f"where {DENSE_GIB:.0f} are allowed. `vf.laplace(posterior, curvature=GGN(), "
            "structure=Kronecker())` forms no matrix of all parameters: it searches a mode by "
            "itself, or takes the end of a training, `at=values`."
        )


def default_tolerance(dtype: Any) -> float:
    """Gradient norm that a mode is found to: what the precision allows."""
    # The square root of the precision: below it differences of l are rounding, and the gradient
    # of a sum of many terms soon is.
    return 1e-8 if dtype == jnp.float64 else 1e-3


def warn_of_precision(at: SecondOrder) -> None:
    """One warning where float32 cannot hold the Hessian's conditioning."""
    if at.u.dtype == jnp.float64:
        return
    spread = float(jnp.max(jnp.abs(at.eigenvalues)) / jnp.min(jnp.abs(at.eigenvalues)))
    # Eigenvalues hold the matrix's precision times their spread: here less than four digits.
    if not spread * float(jnp.finfo(at.u.dtype).eps) < 1e-4:
        warnings.warn(
            f"The eigenvalues of E spread over a factor {spread:.1e}, too much for "
            f"`{at.u.dtype}`: mode, Hessian and evidence are accurate to a few digits at best. "
            'Use float64: `jax.config.update("jax_enable_x64", True)` before any array is made.',
            PrecisionWarning,
            stacklevel=3,
        )


def _short(value: Any) -> str:
    return np.array2string(np.asarray(value), precision=4, threshold=12, edgeitems=3)
