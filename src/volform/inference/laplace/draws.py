"""Draws from the Laplace approximation, and its density."""

import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro import handlers
from numpyro.infer import Predictive

from volform.checks import require_key
from volform.compilation import steady
from volform.errors import ConvergenceError, DataError, ModelError, UnknownSiteError
from volform.generators import generator
from volform.inference.laplace.gaussian_chart import LEBESGUE, GaussianChart
from volform.inference.laplace.geodesic_chart import ExponentialMap, NormalChart, placed_at
from volform.inference.laplace.samples import Samples
from volform.inference.modes.turning import turned_draws
from volform.inference.modes.verdicts import Orbit, gram_at
from volform.linalg.operator import require_dense
from volform.linalg.structured import exact_logdet
from volform.linalg.under_metric import whitening_maps
from volform.models.layout import Layout
from volform.models.posterior import Posterior

TURNS = 3  # of a key, whose other streams are those of the draws themselves


class TangentGaussian(eqx.Module):
    """The Gaussian of a precision matrix in the tangent space at u, in coordinates w.

    Attributes:
        posterior: the posterior.
        chart: the coordinates w.
        u: the center.
        precision: an operator on flat tangent vectors at u.
        orbit: that which u is a point of, if it is one of a mode along an orbit.
    """

    posterior: Posterior
    chart: GaussianChart
    u: Float[Array, " d"]
    precision: lx.AbstractLinearOperator
    orbit: Orbit | None = None

    def carried(self, along: ExponentialMap | None) -> "TangentGaussian":
        """With draws along geodesics, or as it is."""
        if along is None:
            return self
        chart = along.chart(self.posterior, self.u)
        return TangentGaussian(self.posterior, chart, self.u, self.precision, self.orbit)

    def sample(
        self, key: PRNGKeyArray, draws: int
    ) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        """Draws in w, and the log density at them with respect to dw."""
        normal = jax.random.normal(key, (draws, self.u.size), self.u.dtype)
        _, up = whitening_maps(self.precision)
        center, push, _, _ = self.chart.tangent(self.posterior, self.u)
        w = center[None] + jax.vmap(lambda z: push(up(z)))(normal)
        return w, self._log_height - 0.5 * jnp.sum(normal**2, 1)

    @property
    def _log_height(self) -> Float[Array, ""]:
        """Log density at the center with respect to dw."""
        *_, log_det = self.chart.tangent(self.posterior, self.u)
        half_log_2_pi = 0.5 * self.u.size * math.log(2.0 * math.pi)
        return 0.5 * exact_logdet(self.precision) - half_log_2_pi - log_det

    @property
    def covariance(self) -> Float[Array, "d d"]:
        """The inverse of the precision matrix, in u.

        Raises:
            SizeError: when it would take more than 8 GiB.
        """
        require_dense(self.u.size, self.u.size, self.u.dtype)
        _, up = whitening_maps(self.precision)
        root = jax.vmap(up)(jnp.eye(self.u.size, dtype=self.u.dtype))
        return root.T @ root

    def log_prob(self, u: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Log density at points u with respect to du; its mass outside the support is in it."""
        # The tangent vector of w is by the inverse of the chart's derivative.
        center, _, pull, _ = self.chart.tangent(self.posterior, self.u)
        height = self._log_height

        def at(u: Float[Array, " d"]) -> Float[Array, ""]:
            w, own = self.chart.flatten(self.posterior, u)
            v = pull(w - center)
            return height + own - 0.5 * jnp.vdot(v, self.precision.mv(v))

        return jax.vmap(at)(u)


def log_prob_of_values(tangent: TangentGaussian, values: Mapping[str, Any]) -> Any:
    """Log density at values of all latent sites, with axes of draws before the sites' own.

    With respect to the measure of NumPyro's own densities, so that it is of the kind of
    `sum of site.log_prob`. Minus infinity outside of the support.

    Raises:
        UnknownSiteError: when a latent site is missing.
        DataError: when a value has the wrong shape.
        ModelError: along an orbit, where the density has no closed form.
    """
    if tangent.orbit is not None:
        raise ModelError(
            "`log_prob` has no closed form along an orbit: the draws are turned at random. Take "
            "`vf.evidence(posterior, by=vf.Tempered())` for weighted draws."
        )
    flat, lead = draws_of_sites(tangent.posterior.layout, values)
    if unknown := [name for name, value in flat.items() if np.isnan(np.asarray(value)).any()]:
        raise DataError(f"`values` of {unknown} hold NaN, which has no density; give numbers.")
    found = np.asarray(_log_prob_of_values(tangent, flat))
    if np.isnan(found).any():
        raise ConvergenceError(
            f"`values` hold {int(np.isnan(found).sum())} of {found.size} points that no regular "
            "geodesic from the mode was found to, so that they have no density `along` geodesics; "
            "leave them out."
        )
    return found.reshape(lead)


def draws_of_sites(
    layout: Layout, values: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], tuple[int, ...]]:
    """Draws of all latent sites along one axis, and the shape of the axes that they came in.

    Raises:
        UnknownSiteError: when a latent site is missing.
        DataError: when a value has the wrong shape.
    """
    sites = layout.sites
    missing = [site.name for site in sites if site.name not in values]
    if missing:
        raise UnknownSiteError(
            f"`values` lacks the latent sites {missing}; it should hold all of "
            f"{[site.name for site in sites]}."
        )
    try:
        found = {s.name: np.asarray(values[s.name], jnp.result_type(float)) for s in sites}
    except (TypeError, ValueError) as error:
        raise DataError(f"`values` of the sites should be numbers: {error}") from error
    shapes = {s.name: found[s.name].shape for s in sites}
    first = sites[0]
    lead = shapes[first.name][: found[first.name].ndim - len(first.shape)]
    if any(shapes[s.name] != (*lead, *s.shape) for s in sites):
        raise DataError(
            f"`values` have the shapes {shapes}; they should be the sites' own, "
            f"{ {s.name: s.shape for s in sites} }, after the same axes of draws, if any."
        )
    return {s.name: found[s.name].reshape(-1, *s.shape) for s in sites}, lead


def located(layout: Layout, values: dict[str, Any]) -> tuple[Array, Array, Array]:
    """The point u of values, `log |det dv/du|`, and whether they are in the support."""
    u = layout.unconstrain(values)
    back, log_det = layout.constrain_with_log_det(u)
    same = jnp.all(jnp.isfinite(u))
    for site in layout.sites:
        if not site.circular:  # which are the same by whole turns
            gap = jnp.max(jnp.abs(back[site.name] - values[site.name]), initial=0.0)
            same &= gap <= 1e-6 * jnp.max(jnp.abs(values[site.name]), initial=1e-30)
    return u, log_det, same


@steady
def _log_prob_of_values(tangent: TangentGaussian, values: dict[str, Any]) -> Float[Array, " n"]:
    layout = tangent.posterior.layout
    u, log_det, same = jax.vmap(lambda values: located(layout, values))(values)
    return jnp.where(same, tangent.log_prob(u) - log_det, -jnp.inf)


def draw(posterior: Posterior, proposal: TangentGaussian, key: PRNGKeyArray, draws: int) -> Samples:
    """`draws` draws of a Gaussian inside the support, with a count of those that were not.

    Raises:
        ConvergenceError: when fewer than one in a thousand falls inside the support.
    """
    kept, outside, tried = [], 0, 0
    while sum(len(u) for u, _ in kept) < draws:
        key, now = jax.random.split(key)
        u, log_q, inside = map(np.asarray, _located_draws(posterior, proposal, now, draws))
        kept.append((u[inside], log_q[inside]))
        outside += int(draws - inside.sum())
        tried += draws
        if tried > 1000 * (sum(len(u) for u, _ in kept) + 1):
            raise ConvergenceError(
                f"Fewer than one in a thousand of {tried} draws lies inside the support; the "
                "Gaussian in `chart` does not fit it. Use a metric such as `Unconstrained()`."
            )
    u, log_q = (np.concatenate(part)[:draws] for part in zip(*kept, strict=True))
    if proposal.orbit is not None:
        center, random = proposal.u, generator(key, TURNS)
        gram = gram_at(posterior, center)
        u = turned_draws(posterior, proposal.orbit.rotations, center, gram, u, random)
        return Samples(posterior, LEBESGUE, u, outside=outside)
    return Samples(posterior, LEBESGUE, u, outside=outside, log_q_points=log_q)


def _located_draws(
    posterior: Posterior, proposal: TangentGaussian, key: PRNGKeyArray, draws: int
) -> Any:
    if not isinstance(proposal.chart, NormalChart):
        return _points(posterior, proposal, key, draws)
    w, log_q = _drawn(proposal, key, draws)
    u, log_det, inside = placed_at(posterior, proposal.chart, np.asarray(w))
    return u, np.asarray(log_q) + log_det, inside


@steady
def _drawn(proposal: TangentGaussian, key: PRNGKeyArray, draws: int) -> Any:
    return proposal.sample(key, draws)


@steady
def _points(posterior: Posterior, proposal: TangentGaussian, key: PRNGKeyArray, draws: int) -> Any:
    """Draws in u, their log density with respect to du, and which are inside the support."""

    def place(w: Float[Array, " d"], log_q: Float[Array, ""]) -> tuple[Array, Array, Array]:
        u, log_det, inside = proposal.chart.placed(posterior, w)
        return u, log_q + log_det, inside

    return jax.vmap(place)(*proposal.sample(key, draws))


def predicted(
    posterior: Posterior, values: dict[str, Any], key: PRNGKeyArray, args: tuple, kwargs: dict
) -> dict[str, Any]:
    """Draws of the observed and deterministic sites at draws of the latent ones, by NumPyro."""
    model = handlers.uncondition(posterior.model)
    with posterior.program.staging():
        return Predictive(model, values)(key, *args, **kwargs)


def key_and_arguments(args: tuple) -> tuple[Any, tuple]:
    """Take the key of `predictive(key, *args)` off its arguments; a ModelError without one."""
    if args:
        first = args[0]
        is_typed = isinstance(first, Array) and jnp.issubdtype(first.dtype, jax.dtypes.prng_key)
        if is_typed or (isinstance(first, Array) and first.dtype == jnp.uint32):
            require_key(first, "key", "predictive", ModelError)
            return first, args[1:]
    raise ModelError(
        f"`predictive` got {'no argument' if not args else type(args[0]).__name__} where draws "
        "need a key first: `predictive(jax.random.key(0), x)`, or give `by=Linearized()`."
    )
