"""The temperature of a likelihood, by the predictive density of data that were held out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from volform.errors import DataError, ModelError
from volform.inference.laplace.linearized import Linearized
from volform.models.data_checks import require_in_support, require_observed

HOTTEST = 1e3  # of temperatures that are tried; the coldest is its inverse


class HeldOut(eqx.Module):
    """Data that choose the temperature, as a value: `vf.tune(..., temperature=HeldOut(x, y))`.

    Args:
        x: inputs of the model, its first argument.
        y: what was observed there, of the one observed site, in the shape of its predictions.
        by: the predictive that is scored.
    """

    x: Any
    y: Any
    by: Linearized = Linearized()

    def __check_init__(self) -> None:
        if not isinstance(self.by, Linearized):
            raise ModelError(
                f"`by` of HeldOut is {self.by!r}; it should be a value `Linearized(link=...)`."
            )


class BestTemperature(NamedTuple):
    """The temperature of the highest density, and whether it lies inside of the range."""

    value: float
    is_inside: bool


def require_held_out(temperature: Any, names: tuple[str, ...]) -> None:
    """Check that the data are a `HeldOut`, and that there is one observed site.

    Raises:
        ModelError: otherwise.
    """
    if not isinstance(temperature, HeldOut):
        raise ModelError(
            f"`temperature` of tune is {_in_words(temperature)}; it should be `HeldOut(x, y)`, "
            "data that were held out and choose it. The evidence cannot."
        )
    if len(names) != 1:
        raise ModelError(
            f"`temperature` of tune is chosen by the density of one observed site; the model has "
            f"{list(names)}."
        )


def _in_words(given: Any) -> str:
    is_short = isinstance(given, bool | float | int | str)
    return repr(given) if is_short else f"of the type {type(given).__name__}"


def best_temperature(
    predictive: Callable[[float], dict[str, Any]], held_out: HeldOut
) -> BestTemperature:
    """The temperature of the highest mean log density of data that were held out.

    Args:
        predictive: from a temperature to the predictive distribution of the observed site.
        held_out: the data.

    Raises:
        DataError: for labels of another shape than the predictions, outside of their support, or
            that are not finite.
    """
    ((name, fn),) = predictive(1.0).items()
    _require_labels(name, fn, held_out.y)
    y = jnp.asarray(held_out.y)

    def cost(log_temperature: float) -> float:
        (fn,) = predictive(float(np.exp(log_temperature))).values()
        return -float(jnp.mean(fn.log_prob(y)))

    ends = -np.log(HOTTEST), np.log(HOTTEST)
    best = scipy.optimize.minimize_scalar(
        cost, bounds=ends, method="bounded", options={"xatol": 1e-3}
    )
    if not np.isfinite(best.fun):
        raise DataError(
            f"`temperature` of tune has data of log density {-best.fun}; give inputs and labels "
            "like those of the training, without NaN."
        )
    # Far out the density flattens, and a search ends anywhere: it has to be below both ends.
    at_ends = [cost(end) for end in ends]
    nearest = int(np.argmin(at_ends))
    rounding = 16.0 * float(jnp.finfo(jnp.result_type(float)).eps) * (1.0 + abs(best.fun))
    is_inside = best.fun < at_ends[nearest] - rounding
    return BestTemperature(float(np.exp(best.x if is_inside else ends[nearest])), is_inside)


def _require_labels(name: str, fn: Any, y: Any) -> None:
    try:
        require_observed(name, fn, y)
        require_in_support(name, fn, y)
    except DataError as error:
        raise DataError(f"`y` of HeldOut does not fit its `x`. {error}") from error
    if fn.shape() and np.shape(y) != fn.shape():
        raise DataError(
            f"`y` of HeldOut has shape {np.shape(y)}, but the predictions of `{name}` for its `x` "
            f"have shape {fn.shape()}; they should be the same, as in the training."
        )
