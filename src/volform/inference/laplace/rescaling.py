"""Normal priors and noise of a model, and the model with their scales multiplied."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.primitives import Messenger

from volform.compilation import steady
from volform.inference.laplace.gauss_newton import DataPriorSplit
from volform.inference.laplace.sums import over_batches, without_data
from volform.models.conditioned_again import with_model
from volform.models.data_checks import core_of
from volform.models.posterior import Posterior

# Of the log of a factor; e^(4 * 15) times the squares is a number of single precision.
FAR_FACTOR = 15.0
ARGUMENT = "volform_factors"  # of a rescaled model; new data come without it


class ScaleFactors(eqx.Module):
    """Factors of the scales of a model's Normal distributions, and a power of the likelihood.

    Attributes:
        scales: of priors and noise, by site.
        power: of the likelihood, 1 / temperature; None for one.
    """

    scales: dict[str, Array]
    power: Array | None = None


class Rescaled(Messenger):
    """A NumPyro model with the scales of Normal sites multiplied.

    Args:
        fn: the model.
        factors: of the scales, where the call brings none. Those of the call are arrays like data,
            so that models of other factors run by the same programs.
    """

    def __init__(self, fn: Callable, factors: ScaleFactors):
        self.factors, self.__name__ = factors, getattr(fn, "__name__", "model")
        super().__init__(fn)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model."""
        factors = kwargs.pop(ARGUMENT, self.factors)
        return _Rescaling(self.fn, factors)(*args, **kwargs)


class _Rescaling(Messenger):
    def __init__(self, fn: Callable | None, factors: ScaleFactors):
        self.factors = factors
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        if msg["type"] != "sample":
            return
        factor = self.factors.scales.get(msg["name"])
        if factor is not None:
            msg["fn"] = rescaled(msg["fn"], factor)
        if msg["is_observed"] and self.factors.power is not None:
            before = 1.0 if msg["scale"] is None else msg["scale"]
            msg["scale"] = before * self.factors.power


def rescaled(fn: Any, factor: Array) -> Any:
    """A Normal, under whatever wrappers, with its scale multiplied."""
    return eqx.tree_at(lambda fn: core_of(fn).scale, fn, replace_fn=lambda s: factor * s)


def with_factors(posterior: Posterior, factors: ScaleFactors) -> Posterior:
    """The posterior of the model with these factors."""
    model = Rescaled(posterior.model, factors)
    return with_model(posterior, model, **{ARGUMENT: factors})


class NormalPriors(NamedTuple):
    """The latent sites that have independent Normal priors of a scale that nothing moves.

    Attributes:
        names: the sites.
        scales: their scales, as the model gives them: numbers, or one for each entry.
        squares: sums of ((value - mean) / scale)^2.
    """

    names: tuple[str, ...]
    scales: dict[str, np.ndarray]
    squares: dict[str, Array]


def normal_priors(split: DataPriorSplit, rest: Float[Array, " d"]) -> NormalPriors:
    """The sites whose diagonal of the rest is `1 / scale^2`, and nothing else.

    Not so where the prior is masked or weighed, where the metric is no constant, or where the mean
    or the scale is another latent site's.
    """
    found, layout = _normals(without_data(split)), split.posterior.layout
    names, eps = [], float(jnp.finfo(split.u.dtype).eps)
    for site in layout.sites:
        if site.name in found and not site.circular:
            (_, scale), _, is_moved = found[site.name]
            own = np.broadcast_to(np.asarray(scale) ** -2.0, site.shape).ravel()
            close = np.allclose(np.asarray(rest[site.segment]), own, rtol=1e4 * eps, atol=0.0)
            names += [site.name] if close and not bool(is_moved) else []
    return NormalPriors(
        tuple(names),
        {name: np.asarray(found[name][0][1]) for name in names},
        {name: found[name][1] for name in names},
    )


@steady
def _normals(split: DataPriorSplit) -> dict[str, Any]:
    """Mean and scale, the sum of squares, and whether other sites move them, of Normal sites."""
    posterior = split.posterior
    values = posterior.values(split.u)

    def parameters(u: Float[Array, " d"]) -> dict[str, tuple[Array, Array]]:
        trace = posterior.program.run(posterior.values(u))
        cores = {site.name: core_of(trace[site.name]["fn"]) for site in posterior.layout.sites}
        normal = {name: fn for name, fn in cores.items() if type(fn) is dist.Normal}
        return {
            name: (jnp.asarray(fn.loc, u.dtype), jnp.asarray(fn.scale, u.dtype))
            for name, fn in normal.items()
        }

    probe = jax.random.normal(jax.random.key(0), split.u.shape, split.u.dtype)
    found, along = jax.jvp(parameters, (split.u,), (probe,))
    return {
        name: (
            (loc, scale),
            jnp.sum(((values[name] - loc) / scale) ** 2),
            jnp.any(along[name][0] != 0.0) | jnp.any(along[name][1] != 0.0),
        )
        for name, (loc, scale) in found.items()
    }


class NoiseFit(NamedTuple):
    """Likelihoods as functions of a factor k of their scales: `-squares / (2 k^2) - number log k`.

    Attributes:
        squares: sum of the squared residuals in units of the scales.
        number: of data, weighed as the model weighs them.
        scales: of the observed sites, numbers where all data have the same.
    """

    squares: Float[Array, ""]
    number: Float[Array, ""]
    scales: dict[str, np.ndarray]


def noise_fit(split: DataPriorSplit) -> tuple[NoiseFit, dict[str, bool]] | None:
    """The fit, and for each observed site whether its scale is one that nothing moves.

    None where a site is not Normal.
    """
    is_normal = _are_normal(without_data(split))
    if not all(is_normal.values()):
        return None
    squares, count, scales, moved = over_batches(split, _noise, _with_more)
    # NumPyro gives the scale the axes of the mean: one number again, where all are the same.
    arrays = {name: np.asarray(scale) for name, scale in scales.items()}
    held = {n: a if uniform_scale(a) is None else a.ravel()[0] for n, a in arrays.items()}
    return NoiseFit(squares, count, held), {name: not bool(moved[name]) for name in split.names}


_Noise = tuple[Array, Array, dict[str, Array], dict[str, Array]]


def _with_more(one: _Noise, other: _Noise) -> _Noise:
    """Sums over both, the scales of one after the other, and what moves in either."""
    scales = {
        n: jnp.concatenate([jnp.atleast_1d(s[n]) for s in (one[2], other[2])]) for n in one[2]
    }
    moved = {name: one[3][name] | other[3][name] for name in one[3]}
    return one[0] + other[0], one[1] + other[1], scales, moved


def _are_normal(split: DataPriorSplit) -> dict[str, bool]:
    found: dict[str, bool] = {}

    def look(u: Float[Array, " d"]) -> None:
        trace = split.posterior.program.run(split.posterior.values(u))
        for name in split.names:
            found[name] = type(core_of(trace[name]["fn"])) is dist.Normal

    jax.eval_shape(look, split.u)
    return found


@steady
def _noise(split: DataPriorSplit) -> _Noise:
    observed, z = split.observed(), split.parameters(split.u)

    def loss(log_factor: Float[Array, ""]) -> Float[Array, ""]:
        factor = jnp.exp(log_factor)
        parts = [
            jnp.asarray(observed.weight(name) * jnp.sum(rescaled(fn, factor).log_prob(value)))
            for name, (fn, value) in observed.sites(z).items()
        ]
        return -sum(parts, jnp.zeros((), split.u.dtype))

    # With k the factor the slope in log k is count - squares / k^2. Far below 1 the squares are all
    # of it, and keep their digits where the fit is perfect; far above the count is.
    low, high = (jax.grad(loss)(jnp.full((), x, split.u.dtype)) for x in (-FAR_FACTOR, FAR_FACTOR))
    squares = (high - low) / (2.0 * math.sinh(2.0 * FAR_FACTOR))

    def scales(u: Float[Array, " d"]) -> dict[str, Array]:
        trace = split.posterior.program.run(split.posterior.values(u))
        cores = {name: core_of(trace[name]["fn"]) for name in split.names}
        return {name: jnp.asarray(fn.scale, u.dtype) for name, fn in cores.items()}

    probe = jax.random.normal(jax.random.key(0), split.u.shape, split.u.dtype)
    found, along = jax.jvp(scales, (split.u,), (probe,))
    count = high + math.exp(-2.0 * FAR_FACTOR) * squares
    return squares, count, found, {name: jnp.any(move != 0.0) for name, move in along.items()}


def uniform_scale(scale: np.ndarray) -> float | None:
    """The scale where all entries have the same, else None."""
    return float(scale.flat[0]) if (scale == scale.flat[0]).all() else None


def factors_of(scales: Mapping[str, float], temperature: float, dtype: Any) -> ScaleFactors:
    """Factors as arrays."""
    arrays = {name: jnp.asarray(factor, dtype) for name, factor in scales.items()}
    power = None if temperature == 1.0 else jnp.asarray(1.0 / temperature, dtype)
    return ScaleFactors(arrays, power)
