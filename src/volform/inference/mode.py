"""The invariant maximum a posteriori: the mode of q^G."""

import warnings
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from volform.errors import ConvergenceError, ModelError, PrecisionWarning, SizeError
from volform.inference import diagnosis
from volform.inference.evidence import Cost
from volform.inference.local import Expansion, Point, expand, locate, objective
from volform.inference.progress import waiting
from volform.inference.search import End, descend, prior_draws, refine, starting_points
from volform.inference.truncated import Position, settle
from volform.models import Posterior
from volform.operators.base import DENSE_GIB, fits, gib_of

LARGE = 200  # parameters, up to which a Hessian costs little
STARTS, STEPS = 3, 500  # of a search without Hessians


class Mode(eqx.Module):
    """One of several modes that the starts ended in.

    Attributes:
        at: expansion of -log q^G at the mode.
        starts: how many starts ended here.
    """

    at: Expansion
    starts: int

    @property
    def u(self) -> Float[Array, " d"]:
        """The mode in unconstrained coordinates."""
        return self.at.u

    @property
    def log_density(self) -> float:
        """Log q^G there."""
        return -float(self.at.value)


class Place(eqx.Module):
    """A point of the posterior's manifold that values were given for, without its Hessian.

    Attributes:
        posterior: the posterior.
        at: -log q^G there to first order.
        verdict: what kind of point it is, with the reason.
        cost: evaluations of the search.
    """

    posterior: Posterior
    at: Point
    verdict: diagnosis.Verdict
    cost: Cost

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
        """Whether this is a strict local maximum of q^G, to tolerance."""
        return isinstance(self.verdict, diagnosis.Minimum)

    def __repr__(self) -> str:
        return "\n".join([*self._rows("Point"), f"  {self.verdict}"])

    def _rows(self, title: str) -> list[str]:
        values = [f"  {name:<12} {_short(value)}" for name, value in self.values.items()]
        return [
            f"{title} under {self.posterior.metric_name}",
            *values,
            f"  log q^G      {self.log_density:.6f}",
            f"  |gradient|   {self.gradient_norm:.1e} in the metric's norm",
        ]


class MAP(Place):
    """The invariant maximum a posteriori; built by `find_map`.

    Attributes:
        posterior: the posterior that was maximized.
        at: expansion of -log q^G at the mode: gradient, Hessian, metric, spectrum of E = G^-1 H.
        verdict: what kind of point it is, with the reason.
        cost: evaluations of the search.
        modes: the distinct strict modes that the starts ended in, the best first.
        starts: how many searches there were that ended at a finite density.
        steps: steps of BFGS, or gradients and Hessian products above 1,000 parameters (all starts
            together), and steps of Newton.
        tolerance: bound on the gradient norm, or on the Newton decrement, that was asked for.
    """

    at: Expansion  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen)
    modes: tuple[Mode, ...]
    starts: int
    steps: tuple[int, int]
    tolerance: float

    @property
    def eigenvalues(self) -> Float[Array, " d"]:
        """Eigenvalues of E = G^-1 H in ascending order; invariant."""
        return self.at.eigenvalues

    def __repr__(self) -> str:
        rows = self._rows("MAP")
        rows += [
            f"  E = G^-1 H   smallest eigenvalue {float(self.eigenvalues[0]):.4g}, "
            f"largest {float(self.eigenvalues[-1]):.4g}",
            f"  {self.verdict}",
        ]
        if len(self.modes) > 1:
            rows.append(f"  {len(self.modes)} distinct modes, log q^G less the best's (starts):")
            best = self.modes[0].log_density
            rows += [f"    {mode.log_density - best:+.3f} ({mode.starts})" for mode in self.modes]
        lost = self.starts - sum(mode.starts for mode in self.modes)
        if lost and self.modes:
            rows.append(
                f"  {lost} of {self.starts} searches ended at no strict mode: a singular metric, "
                "the edge of the support, or not converged"
            )
        return "\n".join(rows)


def find_map(
    posterior: Posterior,
    *,
    key: PRNGKeyArray,
    starts: int = 4,
    initial: dict[str, Any] | None = None,
    tolerance: float | None = None,
    max_steps: int = 200,
    progress: bool = True,
) -> MAP:
    """Find the mode of q^G = p / sqrt(det G), the invariant maximum a posteriori.

    BFGS (optimistix) from several starts at once, above 1,000 parameters Newton's method by
    conjugate gradients; then Newton's method with the exact Hessian of -log q^G in a trust region.
    The mode is one and the same point of the parameter manifold however the model is parametrized.
    Compiled once for each model and shape of data.

    Args:
        posterior: from `condition`.
        key: key of the random starts.
        starts: number of starts: the origin of u, uniform on (-2, 2)^d, and prior draws.
        initial: values of the latent sites to start from as well.
        tolerance: bound on the gradient norm in the metric's norm, or on the Newton decrement
            (the distance to the mode in standard deviations), whichever is met first; 1e-8 in
            float64, 1e-3 in float32.
        max_steps: bound on the steps of each method.
        progress: whether to show a spinner when it takes long.

    Returns:
        A `MAP`. Where no strict maximum was reached it says so (`converged`, `verdict`), and
        `laplace` refuses it.

    Raises:
        ModelError: when `posterior` is none.
        ConvergenceError: when log q^G is NaN or infinite at every start; names the sites.
        SingularMetricError: when the metric is not positive definite; names sites and rank.
        UnknownSiteError: when `initial` lacks a latent site.
        SizeError: when the Hessian would take more than 8 GiB, from 32,768 parameters on.

    References:
        Kristiadi, Dangel & Hennig (2023), section 3.3.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model():
    ...     numpyro.sample("x", dist.Gamma(3.0, 1.0))
    >>> fit = vf.find_map(vf.condition(model), key=jax.random.key(0))
    >>> round(float(fit.values["x"]), 4)  # in any chart; the mode of log x would be 3
    2.0
    """
    if not isinstance(posterior, Posterior):
        raise ModelError(
            f"`posterior` should be a Posterior from `vf.condition(model, *data)`; got "
            f"{type(posterior).__name__}."
        )
    require_room(posterior)
    with waiting("find_map", progress) as phase:
        points = starting_points(posterior, key, starts)
        if initial is not None:
            points = jnp.concatenate(
                [posterior.layout.unconstrain(initial, "initial")[None], points]
            )
        tolerance = default_tolerance(points.dtype) if tolerance is None else tolerance
        phase(f"descent from {len(points)} starts in {posterior.dim} dimensions")
        ends, counts = descend(posterior, points, max_steps)
        values = np.asarray(_objectives(posterior, ends))
        if not np.any(np.isfinite(values)):
            diagnosis.explain_no_start(posterior, points)
        phase("Newton")
        ends = ends[np.isfinite(values)]
        if posterior.dim > 64:  # a dense Hessian for each start would cost too much
            ends = ends[np.nanargmin(values[np.isfinite(values)])][None]
        found = refine(posterior, ends, tolerance, max_steps)
    ends, modes = _ranked(found), []
    for end in ends:
        _gather(modes, posterior, end)
    best = next((end for end in ends if modes and bool(jnp.all(end.at.u == modes[0].u))), ends[0])
    verdict = diagnosis.judge(posterior, best, tolerance, max_steps)
    warn_of_precision(best.at)
    steps = int(counts.sum()), int(found.steps.sum())
    cost = Cost(0, steps[0] + steps[1] * (posterior.dim + 1))
    return MAP(posterior, best.at, verdict, cost, tuple(modes), len(ends), steps, tolerance)


def stationary_point(posterior: Posterior, key: PRNGKeyArray, *, progress: bool) -> Place:
    """A point where the gradient of log q^G vanishes, the highest that was found.

    Starts are the origin of u and draws from the prior. Memory O(d): no Hessian is formed, so that
    the point is not known for a mode.

    Args:
        posterior: from `condition`.
        key: key of the random starts.
        progress: whether to show a spinner when it takes long.

    Raises:
        ConvergenceError: when log q^G is NaN or infinite at every start; names the sites.
    """
    with waiting("laplace", progress) as phase:
        draws = prior_draws(posterior, key, STARTS - 1)
        points = jnp.concatenate([jnp.zeros_like(draws[:1]), draws])
        tolerance = default_tolerance(points.dtype)
        ends = []
        for number, point in enumerate(points, 1):
            phase(f"start {number} of {STARTS} in {posterior.dim:,} dimensions")
            ends.append(settle(posterior, point, tolerance, STEPS))
        finite = [end for end in ends if bool(jnp.isfinite(end.value))]
        if not finite:
            diagnosis.explain_no_start(posterior, points)
        end = min(finite, key=lambda end: float(end.value))
        at = locate(posterior, end.u)
    cost = Cost(0, sum(int(end.gradients) for end in ends))
    return Place(posterior, at, _judged(end, float(at.gradient_norm), tolerance), cost)


def _judged(end: Position, gradient_norm: float, tolerance: float) -> diagnosis.Verdict:
    if min(gradient_norm, float(end.attempt.decrement)) < tolerance:
        return diagnosis.Stationary()
    size = f"its gradient norm is {gradient_norm:.2g}"
    if end.u.dtype != jnp.float64:
        size += f" in `{end.u.dtype}`, which may hold too few digits"
    if int(end.attempt.steps) >= STEPS:
        return diagnosis.Unfinished(f"{STEPS} steps of Newton's method taken, and {size}")
    return diagnosis.Unfinished(
        f"no step improves log q^G, though {size}; it may have a kink there"
    )


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


def map_at(posterior: Posterior, values: Mapping[str, Any]) -> MAP:
    """The point with the given latent values, judged as the end of a search would be.

    Raises:
        UnknownSiteError: when a latent site is missing.
        ConvergenceError: when log q^G is not finite there.
    """
    require_room(posterior)
    u = posterior.layout.unconstrain(values, "at")
    at = eqx.filter_jit(expand)(posterior, u)
    _require_density(posterior, at)
    tolerance = default_tolerance(u.dtype)
    verdict = diagnosis.judge(posterior, End(at, jnp.array(0)), tolerance, max_steps=1)
    if isinstance(verdict, diagnosis.Unfinished):
        verdict = _not_level(at)
    warn_of_precision(at)
    cost = Cost(0, posterior.dim + 1)
    return MAP(posterior, at, verdict, cost, (), 1, (0, 0), tolerance)


def place_at(posterior: Posterior, values: Mapping[str, Any]) -> Place:
    """The point with the given latent values; its Hessian, and so whether it is a mode, is open.

    Raises:
        UnknownSiteError: when a latent site is missing.
        ConvergenceError: when log q^G is not finite there.
    """
    at = locate(posterior, posterior.layout.unconstrain(values, "at"))
    _require_density(posterior, at)
    if float(at.gradient_norm) < default_tolerance(at.u.dtype):
        return Place(posterior, at, diagnosis.Stationary(), Cost(0, 1))
    return Place(posterior, at, _not_level(at), Cost(0, 1))


def _not_level(at: Point) -> diagnosis.Unfinished:
    gradient = f"its gradient norm is {float(at.gradient_norm):.2g}"
    return diagnosis.Unfinished(f"the point was given, and {gradient}")


def _require_density(posterior: Posterior, at: Point) -> None:
    if not bool(jnp.isfinite(at.value)):
        diagnosis.require_metric_at(posterior, at.u)
        raise ConvergenceError(
            f"`log q^G` is {-float(at.value)} at the values that were given in `at`; give values "
            "inside the support, where the density is positive."
        )


def _ranked(found: End) -> list[End]:
    """The ends of the searches, the highest q^G first."""
    values = np.asarray(found.at.value)
    order = np.argsort(np.where(np.isnan(values), np.inf, values))
    return [jax.tree.map(lambda leaf, i=i: leaf[i], found) for i in order]


def _gather(modes: list[Mode], posterior: Posterior, end: End) -> None:
    """Count `end` to its mode, if it is a strict one.

    Toward points where the metric is singular q^G is unbounded (a mixture with equal components
    under its Fisher metric); ends there, and at the edge of the support, are no modes. Ends within
    1e-3 posterior standard deviations of each other are one.
    """
    at = end.at
    is_strict = bool(jnp.isfinite(at.log_det)) and float(at.decrement) < 1e-3
    if not is_strict or not diagnosis.is_regular(np.asarray(at.gram), at.u.dtype):
        return
    if diagnosis.at_the_edge(posterior, at.u):
        return
    for position, mode in enumerate(modes):
        gap = mode.u - at.u
        if float(gap @ at.hessian @ gap) < 1e-6:
            modes[position] = Mode(mode.at, mode.starts + 1)
            return
    modes.append(Mode(at, 1))


def default_tolerance(dtype: Any) -> float:
    """Gradient norm that a mode is found to: what the precision allows."""
    return 1e-8 if dtype == jnp.float64 else 1e-3


def warn_of_precision(at: Expansion) -> None:
    """One warning where float32 cannot hold the Hessian's conditioning."""
    if at.u.dtype == jnp.float64:
        return
    spread = float(jnp.max(jnp.abs(at.eigenvalues)) / jnp.min(jnp.abs(at.eigenvalues)))
    if not spread * float(jnp.finfo(at.u.dtype).eps) < 1e-4:
        warnings.warn(
            f"The eigenvalues of E spread over a factor {spread:.1e}, too much for "
            f"`{at.u.dtype}`: mode, Hessian and evidence are accurate to a few digits at best. "
            'Use float64: `jax.config.update("jax_enable_x64", True)` before any array is made.',
            PrecisionWarning,
            stacklevel=3,
        )


@eqx.filter_jit
def _objectives(posterior: Posterior, points: Float[Array, "n d"]) -> Float[Array, " n"]:
    return jax.vmap(lambda u: objective(u, posterior))(points)


def _short(value: Any) -> str:
    return np.array2string(np.asarray(value), precision=4, threshold=12, edgeitems=3)
