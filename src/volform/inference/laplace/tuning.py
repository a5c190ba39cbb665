"""Prior scales and noise moved to the highest evidence after a training, the curvature held."""

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.compilation import Remembering, remembered
from volform.errors import ModelError, StructureError
from volform.inference.laplace.acceptance import note_on
from volform.inference.laplace.approximation import LaplaceApproximation
from volform.inference.laplace.gauss_newton import DataPriorSplit, rest_diagonal
from volform.inference.laplace.linearized import linearized_predictive
from volform.inference.laplace.log_evidence import first_order
from volform.inference.laplace.moving import log_determinants, moved
from volform.inference.laplace.output_covariance import rotated_blocks
from volform.inference.laplace.rescaling import (
    NoiseFit,
    NormalPriors,
    factors_of,
    noise_fit,
    normal_priors,
    uniform_scale,
    with_factors,
)
from volform.inference.laplace.scaled_evidence import FURTHEST, ScaledEvidence, ascend
from volform.inference.laplace.tempering import (
    HOTTEST,
    HeldOut,
    best_temperature,
    require_held_out,
)
from volform.inference.modes.given_point import place_at


class PriorScales(eqx.Module):
    """Sites whose prior scales have a factor in common, as a value: `vf.tune(..., scales=)`."""

    @abc.abstractmethod
    def groups(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        """The sites of each factor.

        Args:
            names: sites that have a Normal prior.
        """


class OneScale(PriorScales):
    """One factor for all sites."""

    def groups(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        """All of them together."""
        return (names,)


class PerSite(PriorScales):
    """A factor for each site."""

    def groups(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        """Each by itself."""
        return tuple((name,) for name in names)


class PerLayer(PriorScales):
    """A factor for each layer: the sites whose names agree up to the last dot.

    Such as `layer0.w` and `layer0.b`, or `layers.0.weight` and `layers.0.bias`.

    >>> import volform as vf
    >>> vf.inference.PerLayer().groups(("layer0.w", "layer0.b", "layer1.w"))
    (('layer0.w', 'layer0.b'), ('layer1.w',))
    """

    def groups(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        """By the part of the name before the last dot."""
        found: dict[str, list[str]] = {}
        for name in names:
            found.setdefault(name.rpartition(".")[0] or name, []).append(name)
        return tuple(map(tuple, found.values()))


class Tuned(Remembering):
    """Scales of highest evidence at the point and curvature of an approximation; built by `tune`.

    Attributes:
        start: the approximation that was tuned.
        scales: the new scale of each site that was moved, as the model gives it.
        factors: by which they are multiplied, by site; with `noise=True` of observed sites, too.
        noise: the factor of the scale of the observed Normal, 1 where it was not moved.
        temperature: T of the likelihood `p(y | theta)^(1/T)`, 1 where it was not moved.
        log_z: first-order log evidence at one mode, before and after; `approx.evidence` counts the
            equivalent modes of a network, too.
        gradient_norm: norm of its gradient in the logs of the precisions, in nats.
        steps: steps of Newton's method.
        converged: whether the gradient vanishes, and a temperature lies inside of those tried.
        unmoved: latent sites that were left as they are.
    """

    start: LaplaceApproximation
    scales: dict[str, np.ndarray]
    factors: dict[str, float]
    noise: float
    temperature: float
    log_z: tuple[float, float]
    gradient_norm: float
    steps: int
    converged: bool
    unmoved: tuple[str, ...]

    @remembered
    def approx(self) -> LaplaceApproximation:
        """The approximation with these scales, at the same point and with the same curvature.

        Its posterior is that of the model with the scales multiplied; nothing of the curvature is
        computed again.
        """
        start = self.start
        assert start.curvature is not None  # checked by `tune`
        factors = factors_of(self.factors, self.temperature, start.at.u.dtype)
        place = place_at(
            with_factors(start.posterior, factors), start.values, start.curvature.expand
        )
        note = note_on(place, start.curvature, given=True, refuse=True)
        precision = self._precision(start.precision, self.temperature)
        return LaplaceApproximation(
            place, precision, False, start.allow_improper, start.curvature, start.structure, note
        )

    def _precision(self, before: Any, temperature: float) -> Any:
        start = self.start
        weights = _of_coordinates(start, {n: f**-2.0 for n, f in self.factors.items()})
        c = jnp.asarray(self.noise**-2.0 / temperature, weights.dtype)
        return moved(before, self._rest, weights, c)

    @remembered
    def _rest(self) -> Float[Array, " d"]:  # of which each temperature that is tried makes use
        return _rest_of(self.start)

    def __repr__(self) -> str:
        before, after = self.log_z
        rows = [f"Tuned by the evidence: log Z {after:.3f} at one mode, before {before:.3f}"]
        for name, factor in self.factors.items():
            scale = uniform_scale(self.scales[name])
            shown = "" if scale is None else f"scale {scale:.4g}, "
            title = f"noise of {name}" if name in self.start.posterior.observed else name
            rows.append(f"  {title:<12} {shown}{factor:.4g} times what it was")
        if self.temperature != 1.0:
            rows.append(f"  temperature  {self.temperature:.4g}, by data that were held out")
        added = self.start.evidence.terms.get("equivalent modes", 0.0)
        if added:
            rows.append(f"  `approx.evidence` adds {added:.3f} for equivalent modes")
        rows += [f"  left as they are: {', '.join(self.unmoved)}"] if self.unmoved else []
        end = "converged" if self.converged else self._why_not()
        return "\n".join([*rows, f"  |gradient|   {self.gradient_norm:.1e}, {end}"])

    def _why_not(self) -> str:
        observed = self.start.posterior.observed
        far = [n for n, f in self.factors.items() if abs(2.0 * np.log(f)) > 0.9 * FURTHEST]
        titles = [f"noise of {name}" if name in observed else f"scale of {name}" for name in far]
        if far:
            return f"not converged: the evidence has no maximum in the {', '.join(titles)}"
        if not 1.01 / HOTTEST < self.temperature < 0.99 * HOTTEST:
            return (
                "not converged: the data that were held out have no maximum of their density in "
                f"the temperature, from {1 / HOTTEST:g} to {HOTTEST:g}"
            )
        return f"not converged after {self.steps} steps"


def tune(
    approx: LaplaceApproximation,
    *,
    scales: PriorScales | None = None,
    noise: bool = False,
    temperature: HeldOut | None = None,
) -> Tuned:
    """Move prior scales and noise to the highest Laplace evidence, with the curvature held.

    With D = J^T L J of the data, R = diag(1 / scale^2) of the Normal priors, and factors f_g of the
    prior scales of the groups g and k of the noise,

        log Z(f, k) = log p(y | theta; k) + log p(theta; f) + d/2 log(2 pi)
                      - 1/2 log det(D / k^2 + sum_g R_g / f_g^2)

    at the point theta and the curvature D of `approx`, which stay. The determinant is that of the
    eigenvalues of the factors, blocks or entries that the structure keeps; of a full matrix with
    several factors, and of directions, it is taken anew. Minus log Z is convex in the logs of the
    precisions 1 / f^2 and 1 / k^2: Newton's method ends in the only maximum. It is the evidence of
    `vf.laplace` with the new scales, `at` the same point; train on from there, and tune again,
    where the point should follow.

    Args:
        approx: a Laplace approximation with `GGN()` or a Fisher matrix.
        scales: which sites share a factor: `OneScale()` if left out, `PerLayer()`, `PerSite()`.
            Sites with another prior than independent Normal stay as they are.
        noise: whether the scale of the observed Normal is multiplied, too.
        temperature: data by whose predictive density the temperature is chosen afterwards. The
            evidence cannot choose it: `p(y | theta)^(1/T)` is no density of y, and log Z grows with
            T wherever it is negative. With T it is that of a power of the likelihood.

    Returns:
        A `Tuned`: factors, scales and log Z, and the approximation with them in `approx`.

    Raises:
        ModelError: when `approx` is none, `scales` is none or there are none to move; when `noise`
            is asked for and the likelihood is no Normal of a scale that nothing moves.
        StructureError: when the curvature is the Hessian, or priors and volume are not diagonal.

    References:
        MacKay (1992), Bayesian interpolation; Immer et al. (2021), Scalable marginal likelihood
        estimation for model selection in deep learning.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(a, 1.0), obs=y)
    >>> posterior = vf.condition(model, jnp.array([3.0]))
    >>> approx = vf.laplace(posterior, at={"a": 2.0}, curvature=vf.GGN())
    >>> tuned = vf.tune(approx)
    >>> round(tuned.factors["a"] ** 2, 6)  # v with a^2 (1 + 1 / v) = v
    4.828427
    >>> bool(abs(tuned.approx.evidence.log_z - tuned.log_z[1]) < 1e-12)
    True
    """
    chosen = _require_approximation(approx, scales)
    if not isinstance(noise, bool | np.bool_):
        raise ModelError(
            f"`noise` of tune is {noise!r}; it should be True or False: whether the scale of the "
            "observed Normal is multiplied by a factor, too. It starts from the model's own scale."
        )
    if temperature is not None:
        require_held_out(temperature, approx.posterior.observed)
    split = approx.curvature.split(approx.posterior, approx.at.u)  # pyright: ignore
    rest = _rest_of(approx)
    priors = normal_priors(split, rest)
    groups = chosen.groups(priors.names) if priors.names else ()
    if not groups and not noise:
        raise ModelError(
            "`tune` moves the scales of independent Normal priors that nothing else moves, under "
            f"the flat metric; none of the sites {list(approx.posterior.names)} has one. Learn "
            "hyperparameters of a model of your own by `vf.inference.train_by_evidence`."
        )
    fit = _noise_of(split) if noise else None
    problem = _problem(approx, rest, priors, groups, fit)
    x = jnp.zeros(len(groups) + (fit is not None), rest.dtype)
    found = ascend(problem, x)
    logs = np.asarray(found.x, float)
    pairs = zip(groups, logs[: len(groups)], strict=True)
    factors = {n: float(np.exp(-0.5 * t)) for names, t in pairs for n in names}
    noises = {} if fit is None else dict.fromkeys(fit.scales, float(np.exp(-0.5 * logs[-1])))
    start = priors.scales if fit is None else {**priors.scales, **fit.scales}
    factors |= noises
    before = float(first_order(approx.at, found.log_det + jnp.sum(jnp.log(rest))))
    tuned = Tuned(
        approx,
        {name: np.asarray(start[name] * factor) for name, factor in factors.items()},
        factors,
        next(iter(noises.values()), 1.0),
        1.0,
        (before, before + float(found.gain)),
        float(found.gradient_norm),
        int(found.steps),
        bool(found.converged),
        tuple(name for name in approx.posterior.names if name not in factors),
    )
    return tuned if temperature is None else _tempered(tuned, temperature)


def _tempered(tuned: Tuned, held_out: HeldOut) -> Tuned:
    """The same with the temperature under which data that were held out are most likely."""
    approx, rotated = tuned.approx, rotated_blocks(tuned.start.precision)

    def predictive(temperature: float) -> dict[str, Any]:
        precision = tuned._precision(rotated, temperature)
        arguments = (held_out.x,), {}
        return linearized_predictive(
            approx.posterior, approx.at.u, precision, arguments, held_out.by
        )

    best = best_temperature(predictive, held_out)
    tuned = eqx.tree_at(lambda t: t.temperature, tuned, best.value)
    return tuned if best.is_inside else eqx.tree_at(lambda t: t.converged, tuned, replace=False)


def _require_approximation(approx: Any, scales: Any) -> PriorScales:
    if not isinstance(approx, LaplaceApproximation):
        raise ModelError(
            f"`approx` of tune is {type(approx).__name__}; it should be a Laplace approximation, "
            "`vf.laplace(posterior, at=values, curvature=vf.GGN())`."
        )
    if approx.curvature is None:
        raise StructureError(
            "`tune` takes the curvature of the data apart from that of the priors, and holds it; "
            "the Hessian is not that of a mode once a scale is moved. Give `laplace` a "
            "`curvature=GGN()`, or a Fisher matrix; or use `vf.maximize_evidence`, which goes "
            "through the mode."
        )
    scales = OneScale() if scales is None else scales
    if not isinstance(scales, PriorScales):
        raise ModelError(
            f"`scales` of tune is {scales!r}; it should be `OneScale()`, `PerLayer()` or "
            "`PerSite()`."
        )
    return scales


def _rest_of(approx: LaplaceApproximation) -> Float[Array, " d"]:
    """The diagonal of priors and volume."""
    assert approx.curvature is not None  # checked before
    rest = rest_diagonal(approx.curvature.split(approx.posterior, approx.at.u))
    if rest is None or not bool(jnp.all(rest > 0.0)):
        raise StructureError(
            "`tune` needs priors and a metric whose covariant Hessian is diagonal and positive, as "
            "of independent Normal priors under the flat metric; here it is not. Learn "
            "hyperparameters by `vf.inference.train_by_evidence`."
        )
    return rest


def _noise_of(split: DataPriorSplit) -> NoiseFit:
    found = noise_fit(split)
    fit, is_held = (None, {}) if found is None else found
    if fit is None or not all(is_held.values()):
        moving = [name for name, held in is_held.items() if not held] or list(split.names)
        raise ModelError(
            f"`noise=True` of tune multiplies the scale of observed Normal sites; of {moving} "
            "the likelihood is another one, or its scale is a latent site's or a network's own. "
            "Leave `noise` out."
        )
    return fit


def _problem(
    approx: LaplaceApproximation,
    rest: Float[Array, " d"],
    priors: NormalPriors,
    groups: Sequence[Sequence[str]],
    fit: NoiseFit | None,
) -> ScaledEvidence:
    layout, dtype = approx.posterior.layout, rest.dtype
    numbers = np.full(rest.size, len(groups))
    counts = np.zeros(len(groups))
    for number, names in enumerate(groups):
        for site in map(layout.site, names):
            numbers[site.segment] = number
            counts[number] += site.size
    squares = [sum(float(priors.squares[name]) for name in names) for names in groups]
    parts = log_determinants(approx.precision, rest, numbers, len(groups) + 1)
    return ScaledEvidence(parts, jnp.asarray(squares, dtype), jnp.asarray(counts, dtype), fit)


def _of_coordinates(approx: LaplaceApproximation, weights: dict[str, float]) -> Float[Array, " d"]:
    """A weight for each site, one where there is none, for each coordinate."""
    sites = approx.posterior.layout.sites
    each = [np.full(site.size, weights.get(site.name, 1.0)) for site in sites]
    return jnp.asarray(np.concatenate(each), approx.at.u.dtype)
