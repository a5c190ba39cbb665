"""Metrics read off a NumPyro model by tracing it: likelihood Fisher and joint Fisher."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import biject_to

from volform.checks import require_key, require_whole
from volform.errors import MetricError
from volform.geometry.dependence import dependence, moves
from volform.geometry.fisher_routes import (
    MonteCarlo,
    NoInformation,
    choose_route,
)
from volform.geometry.jacobians import along_coordinates
from volform.geometry.questions import is_symmetric, name_of
from volform.geometry.scores import CENSORED, Route, ScoreTangents, tangent_like
from volform.models.bound_model import BoundModel
from volform.models.data_checks import core_of
from volform.models.model_metric import ModelMetric, respelled
from volform.models.priors import VolumeDensity
from volform.models.spelled_out import Trace, spelled_out


class SiteFisher(ModelMetric):
    """A sum of Fisher informations over sites of the model."""

    key: eqx.AbstractVar[PRNGKeyArray | None]
    draws: eqx.AbstractVar[int]

    def __check_init__(self) -> None:
        """Check the key and the number of draws."""
        if self.key is not None:
            require_key(self.key, "key", type(self).__name__, MetricError)
        require_whole(self.draws, "draws", type(self).__name__, MetricError)

    @abc.abstractmethod
    def counts(self, site: dict[str, Any]) -> bool:
        """Tell whether a sample site of the trace enters the sum."""

    def gram(self, model: BoundModel, u: Float[Array, " d"]) -> Float[Array, "d d"]:
        """The sum of the sites' Gram matrices, their routes chosen anew."""
        return bind_information(self, model, None).gram(model, u)

    def bind(self, model: BoundModel) -> "BoundFisher":
        """The routes of the sites, chosen once; a reference is read at the model's own u."""
        spelling = None if self.reference is None else respelled(model, self.reference)
        return bind_information(self, model, spelling)

    def __repr__(self) -> str:
        of = "" if self.reference is None else f"reference={name_of(self.reference)}"
        return f"{type(self).__name__}({of})"


class LikelihoodFisher(SiteFisher):
    """The Fisher metric of the observed sites, `G = sum_s J_s^T F_s J_s`.

    J_s is the Jacobian of the parameters of the observed site s, as the model computes them from
    its latent values, and F_s the Fisher information of its family. It is singular where some
    latent site does not move the likelihood, as the scale of a hierarchical prior; use
    `JointFisher()` there, or `LikelihoodFisher() + eps * Euclidean()`.

    Args:
        reference: another spelling of the same model to read the geometry from; its sites must be
            sites (sampled or deterministic) of the model that the metric is attached to.
        key: key for families that only Monte Carlo can do.
        draws: number of Monte Carlo draws.

    Raises:
        MetricError: at `condition`, when no site is observed or a family needs `key`.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    ...     numpyro.sample("y", dist.Poisson(rate), obs=y)
    >>> data = jnp.array([1, 2, 4])
    >>> posterior = vf.condition(vf.attach(model, vf.LikelihoodFisher()), data)
    >>> u = posterior.unconstrain({"rate": 2.0})
    >>> posterior.metric(u).as_matrix().tolist()  # n rate, the Fisher information of log rate
    [[6.0]]
    """

    reference: Callable | None = eqx.field(static=True, default=None)
    key: PRNGKeyArray | None = None
    draws: int = eqx.field(static=True, default=1024)

    def counts(self, site: dict[str, Any]) -> bool:
        """Observed sites."""
        return site["is_observed"]


class JointFisher(SiteFisher):
    """The metric of the joint score over all sites, `G = sum_s D_s^T S_s D_s`.

    D_s is the Jacobian of the pair (value x_s, parameters z_s) of the site s with respect to the
    latent values, and `S_s = E_{x ~ p(. | z)}[s s^T]` with s = d log p(x | z) / d(x, z); rows of x
    only where the site is latent. For Normal(loc, scale) in the order (x, loc, scale) S is
    [[1, -1, 0], [-1, 1, 0], [0, 0, 2]] / scale^2. Positive definite for proper hierarchical
    models. The x-row is in the value's own coordinate, except for Gamma, Beta, Dirichlet, Uniform,
    Weibull, LKJ, Wishart and families without a closed form, where it is in log x, logit x,
    log-ratios or NumPyro's unconstrained coordinates: there the score in x itself need not be
    square-integrable. A latent value for whose family nothing is known has the flat metric of its
    unconstrained coordinate. The `repr` of the posterior tells the route of each site.

    Args:
        reference: another spelling of the same model to read the geometry from; then centered and
            non-centered spellings get one and the same metric.
        key: key for families that only Monte Carlo can do.
        draws: number of Monte Carlo draws.

    Raises:
        MetricError: at `condition`, when an observed family needs `key`.

    >>> import numpyro, numpyro.distributions as dist, volform as vf
    >>> def model():
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    ...     numpyro.sample("x", dist.Normal(mu, 0.5))
    >>> posterior = vf.condition(vf.attach(model, vf.JointFisher()))
    >>> posterior.metric(posterior.unconstrain({"mu": 0.0, "x": 0.0})).as_matrix().tolist()
    [[4.25, -4.0], [-4.0, 4.0]]
    """

    reference: Callable | None = eqx.field(static=True, default=None)
    key: PRNGKeyArray | None = None
    draws: int = eqx.field(static=True, default=1024)

    def counts(self, site: dict[str, Any]) -> bool:
        """Every sample site."""
        return True


class BoundFisher(ModelMetric):
    """A `SiteFisher` bound to a model: a route for every site that enters the sum.

    Attributes:
        metric: the metric.
        spelling: the model that it is read off, None for the one that it is attached to.
        routes: the route of each site.
        moving: the sites whose value moves with u: latent ones, and those observed at a value
            that the model computes, as in a soft constraint.
    """

    metric: SiteFisher
    spelling: BoundModel | None
    routes: dict[str, Route]
    moving: frozenset[str] = eqx.field(static=True)

    def gram(self, model: BoundModel, u: Float[Array, " d"]) -> Float[Array, "d d"]:
        """The sum of the sites' Gram matrices in unconstrained coordinates."""
        trace_at = _trace_of(model, self.spelling)
        found = along_coordinates(lambda u: self._states(trace_at(u)), u)
        return self._gram(*found, jnp.zeros((u.size, u.size), u.dtype))

    def along(self, trace_at: Callable[[Any], Trace], point: Any, tangent: Any) -> Float[Array, ""]:
        """`t^T G t` along one tangent, of sites that are functions of something else than u.

        Args:
            trace_at: the sites, as in a trace of NumPyro.
            point: where.
            tangent: a pytree like the point.
        """
        states = lambda point: self._states(spelled_out(trace_at(point)))  # noqa: E731
        value, moved = jax.jvp(states, (point,), (tangent,))
        moved = jax.tree.map(lambda leaf: leaf[None], tangent_like(value, moved))
        dtype = jnp.result_type(*jax.tree.leaves(tangent))
        return self._gram(value, moved, jnp.zeros((1, 1), dtype))[0, 0]

    def _states(self, trace: Trace) -> dict[str, Any]:
        return {
            name: site_state(trace[name], name in self.moving, route.in_unconstrained)
            for name, route in self.routes.items()
        }

    def _gram(self, states: Any, moved: Any, total: Float[Array, "d d"]) -> Float[Array, "d d"]:
        for name, route in self.routes.items():
            state, tangent = states[name], moved[name]
            dx = tangent["x"] if name in self.moving else None
            move = ScoreTangents(
                state["x"], dx, tangent["t"], state["fn"], tangent["fn"], state["weight"]
            )
            total += route.gram(move.reduced())
        return total

    def __repr__(self) -> str:
        routes = ", ".join(f"{name}: {route}" for name, route in self.routes.items())
        return f"{name_of(self.metric)} [{routes}]"


@is_symmetric.register
def _(metric: SiteFisher | BoundFisher) -> bool:
    return True


def _trace_of(model: BoundModel, spelling: BoundModel | None) -> Callable[[Array], Trace]:
    """The trace that the metric is read off, as a function of the model's own u."""
    if spelling is None:
        return lambda u: spelled_out(model.trace(u))
    return lambda u: spelled_out(spelling.program.run(model.values(u, spelling.names)))


def site_state(
    site: dict[str, Any], moving: bool, in_unconstrained: bool = False
) -> dict[str, Any]:
    """Moving parts of a site: value, distribution (of the value's batch), unconstrained value.

    The last only where the route asks for it: the inverse of a chart is a third of the program.
    """
    fn, value = site["fn"], site["value"]
    weight = jnp.asarray(1.0) if site["scale"] is None else site["scale"]
    shape = jnp.shape(value)
    batch = jnp.broadcast_shapes(shape[: len(shape) - len(fn.event_shape)], fn.batch_shape)
    if site["is_observed"] and batch != fn.batch_shape:
        fn = fn.expand(batch)
    if not moving:
        needed = value if isinstance(core_of(fn), CENSORED) else None
        return {"x": needed, "t": None, "fn": fn, "weight": weight}
    t = biject_to(fn.support).inv(value) if in_unconstrained else None
    return {"x": value, "t": t, "fn": fn, "weight": weight}


def _has_family(site: dict[str, Any]) -> bool:
    """Tell whether it is a sample site with a family to draw from, not only a density."""
    return site["type"] == "sample" and not isinstance(core_of(site["fn"]), VolumeDensity)


def bind_information(
    metric: SiteFisher, model: BoundModel, spelling: BoundModel | None
) -> BoundFisher:
    """Choose a route for every site of the trace, once, from what moves with u.

    Args:
        metric: which sites enter the sum.
        model: the model that the metric is attached to.
        spelling: its reference, None where the metric has none.

    Raises:
        MetricError: when no site of the sum carries information, or a family needs a key.
    """
    trace_at, u = _trace_of(model, spelling), model.layout.point
    sampler = None if metric.key is None else MonteCarlo(metric.key, metric.draws)

    def sites(u: Float[Array, " d"]) -> dict[str, Trace]:
        return {
            name: {"fn": site_state(site, False)["fn"], "value": site["value"]}
            for name, site in trace_at(u).items()
            if _has_family(site) and metric.counts(site)
        }

    flags = dependence(sites, u)
    moving = frozenset(name for name in flags if moves(flags[name]["value"]))
    routes: dict[str, Route] = {}

    def choose(u: Float[Array, " d"]) -> Float[Array, " d"]:
        for name, site in sites(u).items():
            routes[name] = choose_route(
                site["fn"],
                latent=name in moving,
                moving=flags[name]["fn"],
                sampler=sampler,
                name=name,
            )
        return u

    # A second trace: families choose by their types and constants, and none outlives its trace.
    jax.eval_shape(choose, u)
    heard = {name: route for name, route in routes.items() if not isinstance(route, NoInformation)}
    if not heard:
        found = f"only {list(routes)}, without information" if routes else "no such site"
        raise MetricError(
            f"`{type(metric).__name__}` is read off sites with information on the parameters, and "
            f"found {found}: it needs an observed `numpyro.sample(..., obs=...)` whose "
            "distribution depends on the parameters. A `numpyro.factor` has no distribution."
        )
    return BoundFisher(metric, spelling, heard, moving & set(heard))
