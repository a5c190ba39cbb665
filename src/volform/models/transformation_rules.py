"""Tells by which rule a statistic of a posterior changes when the parameters are spelled anew."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions.transforms import Transform
from numpyro.infer.reparam import Reparam

from volform.checks import key_of, require_whole
from volform.errors import DataError, ModelError, UnknownSiteError
from volform.geometry.metric import Euclidean
from volform.models.attaching import Sites, attach
from volform.models.model_metric import ModelMetric
from volform.models.posterior import Posterior, condition
from volform.models.prior_draws import tempered, weighed_draws

HOLDS_BELOW = 1e-6  # relative; searches stop at 1e-8 of their scale, closed forms at rounding
IN_CHART = "{}_in_chart"  # the site that is sampled in place of one that has a chart


@dataclasses.dataclass(frozen=True)
class Invariance:
    """The rule that a statistic obeys, and by how much it fails the others.

    Attributes:
        rule: the rule that is failed least: "function", "point", "vector", "covector", "bilinear
            form", "operator", "inverse form", "density" or "log density".
        defects: by rule, the largest relative difference between the statistic in the other chart
            and what the rule makes of it in this.
        points: number of points at which it was computed.
    """

    rule: str
    defects: dict[str, float]
    points: int

    @property
    def holds(self) -> bool:
        """True if the rule is obeyed to a millionth."""
        return self.defects[self.rule] < HOLDS_BELOW

    @property
    def obeyed(self) -> tuple[str, ...]:
        """Rules that are obeyed to a millionth: several where `phi` does not tell them apart."""
        return tuple(rule for rule, defect in self.defects.items() if defect < HOLDS_BELOW)

    def __repr__(self) -> str:
        word = ", ".join(self.obeyed) if self.holds else f"none; nearest is that of a {self.rule}"
        rows = [f"Rule obeyed: {word}, at {self.points} points"]
        if len(self.obeyed) > 1:
            rows.append(
                "  phi does not tell these apart: is it linear in unconstrained coordinates?"
            )
        return "\n".join([*rows, *(f"  {n:<14}{d:9.1e}" for n, d in self.defects.items())])


def check_invariance(
    statistic: Callable[[Posterior, Float[Array, " d"]], Any],
    posterior: Posterior,
    phi: Mapping[str, Transform],
    *,
    at: Mapping[str, Any] | None = None,
    points: int = 3,
    key: PRNGKeyArray | None = None,
) -> Invariance:
    """Name the transformation rule that a statistic obeys, and by how much it fails the others.

    The model is spelled anew: `psi = phi(site)` is sampled, and the site is `phi^-1(psi)`, with
    the metric carried along. With u and w the unconstrained points of the two spellings,
    J = dw/du, and s(u), t(w) what the statistic is in each:

    | rule | t(w) | of this kind are |
    |---|---|---|
    | function | s | log q^G, evidences, eigenvalues of G^-1 H |
    | point | w(s) | modes of q^G |
    | vector | J s | natural gradients |
    | covector | J^-T s | differentials |
    | bilinear form | J^-T s J^-1 | metrics, Hessians of functions at their modes |
    | operator | J s J^-1 | G^-1 H |
    | inverse form | J s J^T | covariances of tangent vectors |
    | density, log density | s / det J, s - log det J | densities against Lebesgue measure |

    Args:
        statistic: called as `statistic(posterior, u)` in both spellings: a number, d or d x d of
            them for tensors at u, or any array of functions. One that asks for no point, such as a
            mode, leaves u unused.
        posterior: the posterior.
        phi: bijection of NumPyro by latent site, on its values; others stay as they are.
        at: values of the latent sites to compute it at, in place of draws.
        points: number of points, drawn from the prior where the likelihood is high.
        key: key of those draws; `jax.random.key(0)` by default.

    Returns:
        An `Invariance`: `.rule`, `.holds`, `.defects`. A metric such as `Unconstrained()`, which is
        of the coordinates themselves, cannot be carried, and its statistics fail.

    Raises:
        UnknownSiteError: when `phi` names no latent site, or `at` lacks one.
        ModelError: when `phi` holds no bijection.
        DataError: when the statistic is no array of finite numbers, of one shape in both spellings.

    Source: Kristiadi, Dangel & Hennig (2023), section 2.2 and Figure 2(b).

    >>> import jax, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model():
    ...     numpyro.sample("x", dist.Gamma(3.0, 1.0))
    >>> posterior = vf.condition(model)
    >>> phi = {"x": dist.transforms.PowerTransform(3.0)}
    >>> check_invariance(lambda p, u: p.log_density(u), posterior, phi).rule
    'function'
    >>> check_invariance(lambda p, u: p.log_density_lebesgue(u), posterior, phi).rule
    'log density'
    >>> check_invariance(lambda p, u: jax.grad(p.log_density)(u), posterior, phi).rule
    'covector'
    """
    require_whole(points, "points", "check_invariance", ModelError)
    other = _in_charts(posterior, phi)

    def carried(u: Float[Array, " d"]) -> Float[Array, " d"]:
        values = posterior.values(u)
        moved = {IN_CHART.format(name): chart(values[name]) for name, chart in phi.items()}
        return other.unconstrain(values | moved)

    if at is None:
        where = _points(posterior, key_of(key, "check_invariance", ModelError), points)
    else:
        where = [posterior.unconstrain(at)]
    defects: dict[str, float] = {}
    for u in where:
        jacobian = np.asarray(jax.jacfwd(carried)(u))
        here, there = (_array(statistic(p, v)) for p, v in ((posterior, u), (other, carried(u))))
        if here.shape != there.shape:
            raise DataError(
                f"`statistic` has the shape {here.shape} in one spelling and {there.shape} in the "
                "other; it should be of the coordinates alone."
            )
        expectations = _by_rule(here, jacobian, carried)
        magnitude = max(np.abs(here).max(initial=0.0), np.abs(there).max(initial=0.0), 1e-300)
        for rule, expected in expectations.items():
            # Relative to what tells it from the next rule: of a large constant with a log density
            # on top, those are the last digits.
            others = (e for name, e in expectations.items() if name != rule)
            nearest = min((np.abs(e - expected).max(initial=0.0) for e in others), default=0.0)
            size = nearest if 1e-10 * magnitude < nearest < magnitude else magnitude
            defect = float(np.abs(expected - there).max(initial=0.0) / size)
            defects[rule] = max(defects.get(rule, 0.0), defect)
    return Invariance(min(defects, key=defects.__getitem__), defects, len(where))


def _by_rule(
    s: np.ndarray, jacobian: Float[np.ndarray, "d d"], carried: Callable[[Any], Any]
) -> dict[str, np.ndarray]:
    """The statistic in the other coordinates, by each rule that fits its shape."""
    d, inverse = len(jacobian), np.linalg.inv(jacobian)
    found = {"function": s}
    if s.ndim == 0:
        log_det = np.linalg.slogdet(jacobian)[1]
        found |= {"density": s * np.exp(-log_det), "log density": s - log_det}
    if s.shape == (d,):
        point = np.asarray(carried(jnp.asarray(s)))
        if np.isfinite(point).all():
            found["point"] = point
        found |= {"vector": jacobian @ s, "covector": inverse.T @ s}
    if s.shape == (d, d):
        found |= {
            "bilinear form": inverse.T @ s @ inverse,
            "operator": jacobian @ s @ inverse,
            "inverse form": jacobian @ s @ jacobian.T,
        }
    return found


def _array(found: Any) -> np.ndarray:
    try:
        array = np.asarray(found, float)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if not np.isfinite(array).all():
        raise DataError(
            "`statistic` of check_invariance should be an array of finite numbers; got "
            f"{found!r}. Take one part of a result, such as `.log_z`."
        )
    return array


def _points(posterior: Posterior, key: PRNGKeyArray, count: int) -> list[Float[Array, " d"]]:
    draws, fit = map(np.asarray, weighed_draws(posterior.bound_model, key))
    weights = np.exp(tempered(fit))
    if not weights.sum() > 0.0:
        raise ModelError(
            "No draw of the prior has a finite likelihood; give `at=` to check_invariance."
        )
    chosen = np.random.default_rng(0).choice(len(draws), count, p=weights / weights.sum())
    return [jnp.asarray(draws[i]) for i in chosen]


class _InChart(Reparam):
    """Samples phi of a site, of which the site becomes a function."""

    def __init__(self, phi: Transform):
        self.phi = phi

    def __call__(self, name: str, fn: Any, obs: Any) -> tuple[None, Any]:
        moved = numpyro.sample(IN_CHART.format(name), dist.TransformedDistribution(fn, self.phi))
        return None, self.phi.inv(moved)


def _in_charts(posterior: Posterior, phi: Mapping[str, Transform]) -> Posterior:
    """The posterior of the model with other parameters, under the same metric."""
    if not isinstance(phi, Mapping):
        raise ModelError(f"`phi` should be a dictionary of bijections by site; got {phi!r}.")
    for name, chart in phi.items():
        if name not in posterior.names:
            raise UnknownSiteError(
                f"`phi` names {name!r}, which is none of the latent sites {posterior.names}."
            )
        if not isinstance(chart, Transform):
            raise ModelError(
                f"`phi` of {name!r} should be a bijection of NumPyro such as "
                f"`dist.transforms.ExpTransform()`; got {chart!r}."
            )
        value = posterior.values(jnp.full(posterior.dim, -0.3))[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPyro, about just this
            try:
                back = chart.inv(chart(value))
            except NotImplementedError:
                back = None
        if back is None or not np.allclose(back, value, rtol=1e-6, atol=1e-12):
            raise ModelError(
                f"`phi` of {name!r}, {chart!r}, is no bijection there: it has no inverse."
            )
    if not phi:
        raise ModelError("`phi` is empty; it should hold a bijection for some latent site.")
    metrics: dict[Sites, Any] = {}
    model = numpyro.handlers.reparam(posterior.model, {n: _InChart(c) for n, c in phi.items()})
    for attachment in posterior.attachments:
        metric = attachment.metric
        if attachment.sites is not None:
            metrics[attachment.sites] = metric
        elif isinstance(metric, ModelMetric) and metric.reference is None:
            model = attach(model, dataclasses.replace(metric, reference=posterior.model))
        else:
            model = attach(model, metric)
    grouped = {n for sites in metrics for n in (sites if isinstance(sites, tuple) else (sites,))}
    if all(a.sites is not None for a in posterior.attachments):
        metrics |= {name: Euclidean() for name in phi if name not in grouped}
    args, kwargs = posterior.program.arguments()
    return condition(attach(model, metrics) if metrics else model, *args, **kwargs)
