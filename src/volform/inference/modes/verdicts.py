"""Kinds of points that searches end in, and reasons why one could not begin."""

import abc
from typing import Any, NoReturn

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from volform.compilation import steady
from volform.errors import ConvergenceError, MetricError, SingularMetricError
from volform.linalg.generalized import is_above, singular_below, unit_diagonal
from volform.linalg.operator import fits
from volform.models.posterior import Posterior
from volform.models.rotations import Rotations

_Matrix = Any


class Verdict(eqx.Module):
    """Kind of a point: a minimum of -log q^G, a saddle, a ridge, or no stationary point."""

    @abc.abstractmethod
    def __str__(self) -> str:
        """One line for the reader."""


class Minimum(Verdict):
    """A strict local minimum of -log q^G."""

    def __str__(self) -> str:
        return "converged: a strict local maximum of q^G"


class Orbit(Minimum):
    """A mode along an orbit of rotations, strict in all other directions.

    Attributes:
        dimension: k, that of the orbit.
        log_volume: its log volume in the metric, all components together.
        rotations: the groups.
    """

    dimension: int
    log_volume: float
    rotations: tuple[Rotations, ...]

    def __str__(self) -> str:
        groups = ", ".join(map(str, self.rotations))
        return (
            f"converged: a mode along an orbit of dimension {self.dimension}, of log volume "
            f"{self.log_volume:.3f}, by {groups}"
        )


class Saddle(Verdict):
    """Stationary, with directions of negative curvature."""

    count: int
    lowest: float
    sites: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"not a mode: {self.count} negative eigenvalues of E, the lowest {self.lowest:.3g}, "
            f"along {', '.join(self.sites)}"
        )


class Flat(Verdict):
    """Stationary, with directions along which q^G does not change."""

    count: int
    sites: tuple[str, ...]

    def __str__(self) -> str:
        return f"not a strict mode: {self.count} flat directions, along {', '.join(self.sites)}"


class NotConverged(Verdict):
    """Not stationary."""

    reason: str

    def __str__(self) -> str:
        return f"not converged: {self.reason}"


class Edge(NotConverged):
    """A search that rises toward an edge of the parameter space, in some sites."""

    sites: tuple[str, ...]


class Stationary(Verdict):
    """A stationary point whose Hessian was not formed."""

    def __str__(self) -> str:
        return "stationary; the Hessian was not formed, which tells a mode from a saddle"


def classify(posterior: Posterior, state: Any, tolerance: float, max_steps: int) -> Verdict:
    """The verdict on the end of a search.

    Raises:
        SingularMetricError: when the metric is singular at that point.
        ConvergenceError: when nothing there is finite.
    """
    at = state.at
    require_positive_definite(posterior, at.u, np.asarray(at.gram))
    # The decrement is the distance to the mode in standard deviations, in any metric's units.
    stationary = min(float(at.gradient_norm), float(at.decrement)) < tolerance
    curvature = curvature_verdict(posterior, at)
    if stationary and isinstance(curvature, Minimum):
        return curvature
    # A mode at the edge itself, of a scale that is 0 with all that it scales, is come to in ever
    # smaller steps, and rounding stops them on the way: at tau = e^-10.6 of non-centered schools.
    edge = running_off(posterior, at.u) or at_the_edge(posterior, at, beyond=5.0)
    if edge:
        where = ", ".join(f"{name} = {value}" for name, value in edge.items())
        return Edge(
            f"log q^G rises toward an edge of the parameter space, {where}: under this metric it "
            "has no mode there",
            tuple(edge),
        )
    level = float(at.gradient_norm) < max(tolerance, 1e-5)
    if stationary or (level and isinstance(curvature, Flat)):
        return curvature
    if int(state.steps) >= max_steps:
        rise = "log q^G is still rising; it may be unbounded, or `max_steps` too small"
        return NotConverged(f"{max_steps} Newton steps taken, {rise}")
    size = f"no step improves log q^G, though its gradient norm is {float(at.gradient_norm):.2g}"
    return NotConverged(f"{size}; {_cause(at)}")


def _cause(at: Any) -> str:
    """Likely cause of a search that stalls."""
    if at.u.dtype != jnp.float64:
        return f"{at.u.dtype} may hold too few digits: `jax.config.update('jax_enable_x64', True)`"
    if float(at.decrement) ** 2 < 1e-8 * (1.0 + abs(float(at.value))):
        lowest = float(np.min(np.asarray(at.eigenvalues)))
        return (
            "rounding hides what is left to gain, and E = G^-1 H has an eigenvalue of "
            f"{lowest:.2g} there: it may be flat, as along a continuous symmetry"
        )
    return "the density may have a kink there"


def at_the_edge(posterior: Posterior, at: Any, beyond: float = 12.0) -> dict[str, str]:
    """Sites at an edge of the support, or at infinity, that a search took for a mode.

    Where l rises toward an edge as `c exp(a u)`, its Newton decrement is the root of that, and
    small far out: but then the standard deviation in u is 1 / (a decrement), hundreds in logarithms
    of the value. A mode at a small scale, of `s = e^-14` say, has one of about 1.
    """
    deviations = np.linalg.norm(np.asarray(at.whitener), axis=1)
    return running_off(posterior, at.u, ~(deviations < 100.0) | posterior.layout.lines, beyond)


def running_off(
    posterior: Posterior, u: Any, among: Any = True, beyond: float = 12.0
) -> dict[str, str]:
    """Sites that ran off, `among` coordinates: bent ones to e^-beyond of the edge, any to 10^12."""
    # e^-12 is 6 x 10^-6 of an interval; a search that rises toward the edge passes it in a few
    # steps. 10^12 is no scale of a parameter in any unit.
    far = among & (np.abs(np.asarray(u)) > np.where(posterior.layout.lines, 1e12, beyond))
    if not far.any():
        return {}
    values = posterior.values(u)
    return {
        site.name: np.array2string(np.asarray(values[site.name]), precision=3, threshold=6)
        for site in posterior.layout.sites
        if far[site.segment].any()
    }


def curvature_verdict(posterior: Posterior, at: Any) -> Verdict:
    """Minimum, saddle or flat, from the inertia of the Hessian scaled to unit diagonal.

    The scaling makes the threshold for "flat" independent of the units of the parameters.
    """
    hessian = np.asarray(at.hessian, dtype=float)
    # Second derivatives of a density hold about 10^-12 in float64, ten thousand roundings.
    scaled, flat = unit_diagonal(hessian), 1e4 * len(hessian) * float(jnp.finfo(at.u.dtype).eps)
    if is_above(scaled, flat):
        return Minimum()
    eigenvalues, vectors = np.linalg.eigh(scaled)
    negative = eigenvalues < -flat
    if negative.any():
        sites = involved_sites(posterior, vectors[:, negative])
        return Saddle(int(negative.sum()), float(at.eigenvalues[0]), sites)
    level = np.abs(eigenvalues) <= flat
    if level.any():
        return Flat(int(level.sum()), involved_sites(posterior, vectors[:, level]))
    return Minimum()


def involved_sites(posterior: Posterior, vectors: _Matrix) -> tuple[str, ...]:
    """Sites that hold more than a tenth of some column's square."""
    squares = np.asarray(vectors) ** 2
    shares = {
        site.name: (squares[site.segment].sum(0) / squares.sum(0)).max()
        for site in posterior.layout.sites
    }
    return tuple(name for name, share in shares.items() if share > 0.1)


def require_positive_definite(posterior: Posterior, u: Any, gram: _Matrix) -> None:
    """Check that the metric at u is one.

    Raises:
        MetricError: not finite or not symmetric.
        SingularMetricError: not positive definite; names sites and rank.
    """
    if not np.all(np.isfinite(gram)):
        bad = ~np.isfinite(gram).all(0)
        sites = [s.name for s in posterior.layout.sites if bad[s.segment].any()]
        raise MetricError(
            f"The metric `{posterior.metric_name}` is NaN or infinite in the rows of "
            f"`{'`, `'.join(sites)}` at {_at(posterior, u)}. Check it there."
        )
    scaled = unit_diagonal(gram)
    if not np.allclose(scaled, scaled.T, atol=1e-6 if u.dtype == jnp.float32 else 1e-10):
        raise MetricError(
            f"The metric `{posterior.metric_name}` is not symmetric at {_at(posterior, u)}; a "
            "metric is a symmetric bilinear form. Return (m + m.T) / 2 if you mean its symmetric "
            "part."
        )
    if is_above(scaled, singular_below(gram, u.dtype)):
        return
    eigenvalues, vectors = np.linalg.eigh(scaled)
    null = eigenvalues <= singular_below(gram, u.dtype)
    if (eigenvalues < -singular_below(gram, u.dtype)).any():
        sites = "`, `".join(involved_sites(posterior, vectors[:, :1]))
        raise SingularMetricError(
            f"The metric `{posterior.metric_name}` is not positive definite at "
            f"{_at(posterior, u)}: scaled to unit diagonal its lowest eigenvalue is "
            f"{eigenvalues[0]:.3g}, along `{sites}`. A metric gives every tangent vector a "
            "positive square; check the sign and the order of its rows there."
        )
    if null.any():
        sites = "`, `".join(involved_sites(posterior, vectors[:, null]))
        rank = len(gram) - int(null.sum())
        raise SingularMetricError(
            f"The metric `{posterior.metric_name}` is singular: rank {rank} of {len(gram)} at "
            f"{_at(posterior, u)}. It does not measure some directions of `{sites}`: they have "
            "more coordinates than the values that carry the metric, or the likelihood does not "
            "depend on them. Use a chart (as many coordinates as values), `JointFisher()`, or add "
            "a multiple of `Euclidean()`: sums of metrics are metrics."
        )


def require_positive_definite_at(posterior: Posterior, u: Any) -> None:
    """`require_positive_definite`, unless its matrix would be too large to form."""
    if fits(posterior.dim, posterior.dim, u.dtype):
        require_positive_definite(posterior, u, np.asarray(gram_at(posterior, u)))


def is_regular(gram: _Matrix, dtype: Any) -> bool:
    """Tell whether a symmetric matrix is positive definite to the precision of `dtype`."""
    if not np.all(np.isfinite(gram)):
        return False
    return is_above(unit_diagonal(gram), singular_below(gram, dtype))


def explain_no_start(posterior: Posterior, points: Any) -> NoReturn:
    """Raise the error that says why log q^G is not finite at any start."""
    bad: dict[str, float] = {}
    for u in points:
        log_probs = _densities(posterior, u)
        bad = {name: float(p) for name, p in log_probs.items() if not np.isfinite(p)}
        if not bad:
            require_positive_definite_at(posterior, u)
    raise ConvergenceError(
        f"`log q^G` is NaN or infinite at every one of {len(points)} starts; at the last, the "
        f"sites with such log densities are {bad}. The model ran "
        f"{posterior.program.data_in_words()}. Check the data and the scales of the model, or pass "
        "`initial=` values where its density is positive."
    )


@steady  # outside of it NumPyro's validation raises an error of its own at NaN
def _densities(posterior: Posterior, u: Any) -> dict[str, Any]:
    return posterior.program.site_densities(posterior.values(u))


@steady
def gram_at(posterior: Posterior, u: Any) -> _Matrix:
    """The matrix of the metric at u, by one program."""
    return posterior.metric(u).as_matrix()


def _at(posterior: Posterior, u: Any) -> str:
    values = posterior.values(u)
    shown = {
        k: np.asarray(v).round(4).tolist() if np.size(v) < 5 else "..." for k, v in values.items()
    }
    return f"the point {shown}"
