"""Sensitivity of the evidence to hyperparameters: one gradient."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from volform.checks import ONE_BY_ONE, key_of, require_untraced
from volform.errors import ModelError
from volform.inference.evidence.empirical_bayes import evidence_at
from volform.inference.laplace.approximation import LaplaceApproximation, laplace
from volform.inference.laplace.samples import Samples
from volform.inference.modes.mode import MAP
from volform.inference.modes.search import find_map
from volform.inference.summary import element_labels
from volform.models.conditioned_again import with_arguments
from volform.models.posterior import Posterior
from volform.results import Evidence, html_table, text_table

GRADIENTS_AT_ONCE = 100  # bounds the memory
AS_BEFORE = 1e-6  # relative difference of log p, up to which two posteriors are the same


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Derivatives of log Z by hyperparameters; built by `vf.sensitivity`.

    Attributes:
        values: of the hyperparameters, where the derivatives are taken.
        gradient: d log Z / d h, by name, each of the shape of its value.
        error: standard errors of these, NaN where there is none to be had.
        method: the estimator in words.
    """

    values: dict[str, Float[np.ndarray, "..."]]
    gradient: dict[str, Float[np.ndarray, "..."]]
    error: dict[str, Float[np.ndarray, "..."]]
    method: str

    @property
    def elasticity(self) -> dict[str, Float[np.ndarray, "..."]]:
        """`h d log Z / d h = d log Z / d log h`: nats for a change of h by its own size."""
        return {name: self.values[name] * self.gradient[name] for name in self.values}

    def to_dataframe(self) -> Any:
        """A pandas DataFrame, one row for each number."""
        import pandas as pd  # noqa: PLC0415 - comes with arviz, and takes long to import

        columns = {
            "value": self.values,
            "gradient": self.gradient,
            "error": self.error,
            "elasticity": self.elasticity,
        }
        flat = {
            title: np.concatenate([np.ravel(part[name]) for name in self.values])
            for title, part in columns.items()
        }
        labels = [label for name, v in self.values.items() for label in element_labels(name, v)]
        return pd.DataFrame(flat, index=labels)

    def __repr__(self) -> str:
        lines = text_table(self._rows(), to_the_right=True)
        return "\n".join([f"Sensitivity of log Z by {self.method}", *lines])

    def _repr_html_(self) -> str:
        return html_table(self._rows(), [f"Sensitivity of log Z by {self.method}"])

    def _rows(self) -> list[list[str]]:
        rows = [["", "value", "d log Z / dh", "error", "d log Z / d log h"]]
        for name, value in self.values.items():
            parts = (value, self.gradient[name], self.error[name], self.elasticity[name])
            numbers = zip(*map(np.ravel, parts), strict=True)
            for label, (at, slope, error, change) in zip(
                element_labels(name, value), numbers, strict=True
            ):
                shown = "" if np.isnan(error) else f"{error:.2g}"
                rows.append([label, f"{at:.4g}", f"{slope:.4f}", shown, f"{change:.4f}"])
        return rows


def sensitivity(
    target: Posterior | MAP | LaplaceApproximation | Evidence,
    hyperparameters: Mapping[str, Any],
    *,
    second_order: bool = False,
    key: PRNGKeyArray | None = None,
) -> Sensitivity:
    """Derivatives of log Z by hyperparameters: how much a conclusion hangs on each.

    Of a posterior by the exact gradient of the Laplace evidence, through the mode. Of an evidence
    with draws by Fisher's identity, `d log Z / dh = E[d log p(data, u; h) / dh]` over the
    posterior, with a standard error; it needs neither a mode nor a metric. Of a scale or a rate
    look at `elasticity`, which has no unit: at .5 a prior that is 10 % wider adds .05 nats.

    Args:
        target: a posterior, its MAP or Laplace approximation; or an evidence with draws.
        hyperparameters: arguments of the model by name, with the values at which the derivatives
            are taken: numbers or arrays. Of an evidence with draws those that it was had with.
        second_order: whether that of the second-order evidence is taken, up to some ten parameters.
        key: key of the search for the mode; `jax.random.key(0)` by default.

    Returns:
        A `Sensitivity`: `.gradient`, `.elasticity`, `.error`, `.to_dataframe()`.

    Raises:
        UnknownSiteError: when the model has no argument of a name.
        ModelError: an improper prior, values that are no finite numbers, or that are not those of
            the draws; a model that cannot be traced in them.
        ConvergenceError: no strict mode.

    Cost: one gradient, after the search for the mode; or one for each draw.

    References:
        Fisher's identity: Dempster, Laird & Rubin (1977), discussion.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y, scale):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, scale))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> posterior = vf.condition(model, jnp.array([3.0]), 2.0)
    >>> found = vf.sensitivity(posterior, {"scale": 2.0})
    >>> found.gradient["scale"].round(6).item()  # s y^2 / (1 + s^2)^2 - s / (1 + s^2)
    0.32
    """
    values = _numbers(hyperparameters)
    if isinstance(target, Evidence):
        return _by_draws(target, values)
    fit = target.mode if isinstance(target, LaplaceApproximation) else target
    posterior = fit if isinstance(fit, Posterior) else getattr(fit, "posterior", None)
    if not isinstance(posterior, Posterior):
        raise ModelError(
            "`target` of sensitivity should be a posterior from `vf.condition`, a result of "
            f"`vf.find_map` or `vf.laplace`, or an evidence; got {type(target).__name__}."
        )
    require_untraced(posterior, "target", "sensitivity", ONE_BY_ONE, ModelError)
    there = with_arguments(posterior, values)
    there.provenance.require_proper(allow_improper=False)
    start = fit.values if isinstance(fit, MAP) else None
    key = key_of(key, "sensitivity", ModelError)
    mode = laplace(find_map(there, key=key, initial=start)).fit
    flat, unravel = ravel_pytree(values)

    def log_z(flat: Float[Array, " k"]) -> Float[Array, ""]:
        return evidence_at(with_arguments(posterior, unravel(flat)), mode.at.u, second_order)

    gradient = jax.jit(jax.grad(log_z))(flat)
    if not np.isfinite(gradient).all():
        raise ModelError(
            f"The derivative of log Z by `hyperparameters` {list(values)} is {gradient}; it should "
            "be finite. Give values inside of their range, at which the density is smooth."
        )
    return _named(values, unravel(gradient), None, "Laplace" + ", second order" * second_order)


def _by_draws(found: Evidence, values: dict[str, Array]) -> Sensitivity:
    samples: Samples | None = found.draws
    if samples is None or samples.posterior is None:
        raise ModelError(
            f"`target` of sensitivity is an evidence by {found.method}, without draws or without "
            "its model; give the posterior, or an evidence by `vf.Importance()`."
        )
    posterior = samples.posterior
    flat, unravel = ravel_pytree(values)
    kept = samples.weights > 0.0
    u = np.where(kept[:, None], samples.u, samples.u[np.argmax(kept)])

    @jax.jit
    def at_draws(flat: Float[Array, " k"], u: Float[Array, "n d"]) -> Any:
        def log_p(flat: Float[Array, " k"], u: Float[Array, " d"]) -> Float[Array, ""]:
            return with_arguments(posterior, unravel(flat)).log_density_lebesgue(u)

        return jax.lax.map(
            lambda u: jax.value_and_grad(log_p)(flat, u), u, batch_size=GRADIENTS_AT_ONCE
        )

    log_p, slopes = map(np.asarray, at_draws(flat, jnp.asarray(u, flat.dtype)))
    known = samples.log_p[kept]
    if not np.allclose(
        log_p[kept], known, rtol=AS_BEFORE, atol=AS_BEFORE * max(1.0, np.ptp(known))
    ):
        raise ModelError(
            f"`hyperparameters` of sensitivity are {_shown(values)}, and the draws are not of the "
            "posterior with these: log p differs by up to "
            f"{np.max(np.abs(log_p[kept] - known)):.3g}. Give the values that the model was "
            "conditioned on, or the posterior in place of the evidence."
        )
    mean, error = samples.expectation(slopes.astype(float))
    return _named(values, unravel(jnp.asarray(mean)), unravel(jnp.asarray(error)), found.method)


def _numbers(hyperparameters: Any) -> dict[str, Array]:
    """Values as arrays of floating-point numbers.

    Raises:
        ModelError: for none, and for what is no finite number.
    """
    if not isinstance(hyperparameters, Mapping) or not hyperparameters:
        raise ModelError(
            "`hyperparameters` of sensitivity should be a dict of values by the names of the "
            f"model's arguments, such as {{'scale': 1.0}}; got {hyperparameters!r}."
        )
    found = {}
    for name, value in hyperparameters.items():
        try:
            array = np.asarray(value, jnp.result_type(float))
        except (TypeError, ValueError):
            array = np.array(np.nan)
        if not array.size or not np.isfinite(array).all():
            raise ModelError(
                f"`hyperparameters` of sensitivity has {value!r} for `{name}`; it should be a "
                "finite number, or an array of them, to differentiate by."
            )
        found[name] = jnp.asarray(array)
    return found


def _named(values: Any, gradient: Any, error: Any, method: str) -> Sensitivity:
    if error is None:
        error = {name: np.full_like(value, np.nan) for name, value in values.items()}
    # Not by `jax.tree.map`, which would sort them.
    parts = [{n: np.asarray(part[n]) for n in values} for part in (values, gradient, error)]
    return Sensitivity(parts[0], parts[1], parts[2], method)


def _shown(values: dict[str, Array]) -> str:
    return ", ".join(
        f"{n} {np.array2string(np.asarray(v), threshold=6)}" for n, v in values.items()
    )
