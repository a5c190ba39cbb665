"""The ELBO of a guide of NumPyro, and whether its draws can stand for the posterior."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro import handlers
from numpyro.distributions import Delta, biject_to
from numpyro.infer.util import log_density

from volform.checks import key_of, require_whole
from volform.compilation import steady
from volform.errors import ConvergenceError, ModelError
from volform.inference.arviz_compat import smoothed
from volform.inference.evidence.importance import (
    FEWEST_DRAWS,
    SmoothedWeights,
    log_mean,
    trust_of,
)
from volform.results import Trust

_AT_ONCE = 128  # draws whose densities are held in memory together
_ROUNDINGS = 64  # in sums of log densities: 2 to 8 of them in those of two numbers to ten


class GuideCheck(eqx.Module):
    """The ELBO of a guide, its k-hat, and log Z by importance sampling from it.

    Attributes:
        elbo: mean of `log p(y, z) - log q(z)` over draws z of the guide, a lower bound of log Z;
            minus infinity where a draw has density zero.
        elbo_error: its standard error.
        k_hat: Pareto's shape of the tail of `p / q`: below .5 means of the posterior by weighted
            draws are good, above .7 the guide is no stand-in for it. Minus infinity where p / q is
            constant to rounding: the guide is the posterior, with all its copies.
        log_z: log of the mean of p / q, with the tail smoothed.
        log_z_error: its standard error.
        trust: the verdict on log Z, and on means by weighted draws.
        draws: their number.
    """

    elbo: float
    elbo_error: float
    k_hat: float
    log_z: float
    log_z_error: float
    trust: Trust
    draws: int

    def __str__(self) -> str:
        return (
            f"ELBO {self.elbo:.3f} ± {self.elbo_error:.2g}, k-hat {self.k_hat:.2f}, "
            f"log Z {self.log_z:.3f} ± {self.log_z_error:.2g} ({self.draws:,} draws)\n"
            f"trust {self.trust}"
        )


def check_guide(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    params: Mapping[str, Any],
    *args: Any,
    key: PRNGKeyArray | None = None,
    draws: int = 10_000,
    **kwargs: Any,
) -> GuideCheck:
    """Estimate the ELBO of a trained guide, and the k-hat of its draws as those of the posterior.

    With z from the guide q, `w = log p(y, z) - log q(z)`, both with respect to Lebesgue measure of
    the sites' values: the ELBO is the mean of w, log Z that of exp(w) with its tail smoothed, and
    k-hat the shape of that tail. No parametrization changes w. What the guide does not reach at
    all, such as another mode, no draw of it shows.

    Args:
        model: the model of NumPyro, with latent values that are continuous.
        guide: automatic or your own, or `approx.guide()`.
        params: constrained parameters of the guide (and of the model if it has any), such as
            `svi.run(...).params` or `svi.get_params(state)`.
        *args: what model and guide take.
        key: key of the draws; `jax.random.key(0)` by default.
        draws: number of draws, at least 100.
        **kwargs: keyword arguments of model and guide.

    Returns:
        A `GuideCheck`.

    Raises:
        ModelError: for parameters that are missing, unknown or not finite; for a guide that lacks a
            latent site, or is a point in one; for discrete sites and data that a plate subsamples.
        ConvergenceError: where p / q is NaN, or zero at all draws.

    Cost: as many densities of model and guide as draws, 128 in memory at once.

    References:
        Yao, Vehtari, Simpson & Gelman (2018), Yes, but did it work?: evaluating variational
        inference; Vehtari et al. (2024), Pareto smoothed importance sampling.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax, volform as vf
    >>> from numpyro.infer import SVI
    >>> from numpyro.infer.autoguide import AutoNormal
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> y, guide = jnp.array([1.0, 2.0, 6.0]), AutoNormal(model)
    >>> optimizer = vf.optimizers.natural_variational_inference(guide, 1.0)
    >>> svi = SVI(model, guide, optimizer, vf.optimizers.CubatureELBO())
    >>> found = svi.run(jax.random.key(0), 1, y, progress_bar=False).params
    >>> check = vf.inference.check_guide(model, guide, found, y)
    >>> round(check.elbo, 6), check.k_hat < 0.5  # the guide is the posterior, the ELBO log Z
    (-12.655221, True)
    """
    key = key_of(key, "check_guide", ModelError)
    require_whole(draws, "draws", "check_guide", ModelError)
    if draws < FEWEST_DRAWS:
        raise ModelError(
            f"`draws` of check_guide is {draws}: too few to fit the tail of the weights; give at "
            f"least {FEWEST_DRAWS}."
        )
    _require_fit(model, guide, params, args, kwargs)
    weights = _Weights(model, guide, args, kwargs)
    found = np.asarray(_in_chunks(weights, dict(params), jax.random.split(key, draws)))
    raw = _without_rounding(found.astype(float), float(jnp.finfo(found.dtype).eps))
    undefined, zeros = int(np.isnan(raw).sum()), int(np.isneginf(raw).sum())
    if undefined or zeros == draws:
        counts = f"NaN at {undefined:,}" if undefined else "zero at all"
        raise ConvergenceError(
            f"The density of the model over that of the `guide` is {counts} of {draws:,} draws: "
            "the guide lies outside of the support, or has diverged. Look at `params`, and train "
            "by a lower rate."
        )
    log_weights, k_hat = smoothed(raw)
    log_z, error, effective = log_mean(log_weights, k_hat)
    smoothing = log_mean(raw)[0] - log_z
    drawn = SmoothedWeights(log_weights, k_hat, zeros, 0, smoothing)
    spread = math.nan if zeros else float(raw.std(ddof=1)) / math.sqrt(draws)
    trust = trust_of(drawn, error, effective)
    return GuideCheck(float(raw.mean()), spread, k_hat, log_z, error, trust, draws)


class _Weights(eqx.Module):
    """`log p(y, z) - log q(z)` of a draw, as in NumPyro's `Trace_ELBO`, with p = 0 where it is.

    NumPyro's densities give numbers outside of their support, of `Uniform` the same as inside.
    """

    model: Callable[..., Any] = eqx.field(static=True)
    guide: Callable[..., Any] = eqx.field(static=True)
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, params: dict[str, Any], key: PRNGKeyArray) -> Float[Array, ""]:
        """The value for a key."""
        of_guide, of_model = jax.random.split(key)
        data = self.args, self.kwargs, params
        log_q, drawn = log_density(handlers.seed(self.guide, of_guide), *data)
        replayed = handlers.replay(handlers.seed(self.model, of_model), drawn)
        log_p, trace = log_density(replayed, *data)
        inside = [jnp.all(s["fn"].support(s["value"])) for s in _latent(trace).values()]
        return jnp.where(jnp.stack(inside).all(), log_p, -jnp.inf) - log_q


@steady
def _in_chunks(weights: _Weights, params: dict[str, Any], keys: PRNGKeyArray) -> Float[Array, " n"]:
    return jax.lax.map(lambda key: weights(params, key), keys, batch_size=_AT_ONCE)


def _without_rounding(raw: Float[np.ndarray, " n"], eps: float) -> Float[np.ndarray, " n"]:
    """The values, all alike where they differ by rounding: the tail of that is no Pareto's."""
    if not np.isfinite(raw).all() or np.ptp(raw) > _ROUNDINGS * eps * np.abs(raw).max():
        return raw
    return np.full_like(raw, raw.mean())


def _require_fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    params: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Check that a guide with parameters is a density of all latent values of a model."""
    for name, given in (("model", model), ("guide", guide)):
        if not callable(given):
            raise ModelError(
                f"`{name}` of check_guide is {given!r}; it should be a function with sites of "
                "NumPyro, as the `guide` that `SVI` was given, and not what its run returned."
            )
    leaves = jax.tree.leaves(params)
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        raise ModelError(
            "`params` of check_guide are not all finite: the training has diverged. Train by a "
            "lower rate."
        )
    of_guide = _trace(guide, params, args, kwargs)
    drawn: Any = of_guide
    replayed = handlers.replay(model, drawn)
    of_model = _trace(replayed, params, args, kwargs)
    names = {n for t in (of_guide, of_model) for n, s in t.items() if s["type"] == "param"}
    if not isinstance(params, Mapping) or names != set(params):
        given = sorted(params) if isinstance(params, Mapping) else type(params).__name__
        raise ModelError(
            f"`params` of check_guide are {given}, and guide and model have {sorted(names)}; give "
            "`svi.run(...).params`, or `guide.params` of `approx.guide()`."
        )
    plates = {n: s for n, s in of_model.items() if s["type"] == "plate"}
    sampled = [n for n, s in plates.items() if np.size(s["value"]) < s["args"][0]]
    if sampled:
        raise ModelError(
            f"The plate `{sampled[0]}` takes a part of the data at random, so that no draw has the "
            "density of all of them; give `model` without `subsample_size`."
        )
    _require_density(_latent(of_model), _latent(of_guide))


def _trace(fn: Any, params: Mapping[str, Any], args: Any, kwargs: Any) -> dict[str, Any]:
    data: Any = params if isinstance(params, Mapping) else {}
    seeded = handlers.seed(handlers.substitute(fn, data=data), rng_seed=0)
    return handlers.trace(seeded).get_trace(*args, **kwargs)


def _latent(trace: dict[str, Any]) -> dict[str, Any]:
    return {n: s for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}


def _require_density(latent: dict[str, Any], of_guide: dict[str, Any]) -> None:
    for name, site in (latent | of_guide).items():
        if site["fn"].support is not None and site["fn"].support.is_discrete:
            raise ModelError(
                f"The site `{name}` is discrete, and has no gradient that would train a guide; sum "
                "it out, as NumPyro's `TraceEnum_ELBO` does."
            )
    if not latent:
        raise ModelError(
            "`model` of check_guide has no latent site, so that there is nothing for a guide to "
            "draw; give the model that the guide was trained for."
        )
    auxiliary = {n for n, s in of_guide.items() if s["infer"].get("is_auxiliary")}
    lacking = sorted(set(latent) ^ (set(of_guide) - auxiliary))
    if lacking:
        raise ModelError(
            f"The site `{lacking[0]}` is not in both `model` and `guide` of check_guide; a guide "
            "has all latent sites of its model, and others marked as auxiliary."
        )
    drawn = [site for site in of_guide.values() if not isinstance(site["fn"], Delta)]
    sizes = [sum(map(_dimensions, sites)) for sites in (latent.values(), drawn)]
    if sizes[1] < sizes[0]:
        raise ModelError(
            f"`guide` of check_guide draws {sizes[1]} numbers, and the model has {sizes[0]} latent "
            "ones: a guide that is a point in some of them, as `AutoDelta`, has no density, and "
            "its loss is no bound of log Z."
        )


def _dimensions(site: dict[str, Any]) -> int:
    """Number of unconstrained coordinates of a site."""
    shape = jnp.shape(site["value"])
    support = site["fn"].support
    return math.prod(shape if support is None else biject_to(support).inverse_shape(shape))
