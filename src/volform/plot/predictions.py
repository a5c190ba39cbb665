"""Bands of predictions over one input: of numbers, and of the probabilities of classes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Float

from volform.errors import DataError
from volform.inference.summary import require_probability
from volform.plot import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INNER = 0.5  # probability of the darker band
DRAWS = 4000  # where there is no quantile function


def predictive_band(
    x: Any,
    predicted: Any,
    *,
    data: tuple[Any, Any] | None = None,
    classes: Sequence[str] | None = None,
    probability: float = 0.9,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw predictions over one input, with the data.

    Of numbers the median and two bands between quantiles at each input. With `classes` the mean
    probability of each class, with a band where draws of probabilities are given: of labels the
    share at each input.

    Args:
        x: inputs of the predictions, shape (m,).
        predicted: draws at them, shape (n, m), as of `approx.predictive(key, x)["y"]`, or a NumPyro
            distribution of shape (m,), as of `by=vf.Linearized()`. Of classes draws of labels
            (whole numbers from 0) or of probabilities, shape (n, m, k), or (n, m) of the second of
            two; or a Bernoulli or categorical distribution.
        data: inputs and outputs that were observed, each of shape (n,).
        classes: names of the classes, the first for the label 0.
        probability: of the lighter band.
        ax: matplotlib axes to draw on; by default a new figure.

    Returns:
        The axes.

    Raises:
        DataError: inputs, predictions or data of other shapes, or not finite.
        ModelError: a probability that is none.

    >>> import numpy as np, volform as vf
    >>> x = np.linspace(0.0, 1.0, 20)
    >>> draws = x + np.random.default_rng(0).normal(size=(500, 20))
    >>> ax = vf.plot.predictive_band(x, draws, data=([0.5], [0.4]))
    >>> ax.get_title(loc="left")
    'predicted: median, 50 % and 90 %'
    """
    require_probability(probability, "plot.predictive_band")
    inputs = np.asarray(x, float)
    if inputs.ndim != 1 or not inputs.size or not np.isfinite(inputs).all():
        raise DataError(
            f"`x` of plot.predictive_band has the shape {inputs.shape}; it should hold one finite "
            "number for each prediction. Of several inputs vary one, and hold the others."
        )
    order = np.argsort(inputs)
    ax = canvas.new_axes(1, 4.6, 3.2)[0] if ax is None else ax
    tails = [0.5 - 0.5 * probability, 0.5 - 0.5 * INNER, 0.5, 0.5 + 0.5 * INNER]
    tails.append(0.5 + 0.5 * probability)
    if classes is None:
        bands = _quantiles(predicted, tails, len(inputs))[:, order]
        _band(ax, inputs[order], bands, canvas.BLUE)
        text = f"predicted: median, {100 * INNER:g} % and {100 * probability:g} %"
    else:
        chances = _chances(predicted, len(classes), len(inputs))
        # Two classes are one curve: that of the first is its mirror image.
        for number in range(len(classes) == 2, len(classes)):
            color = canvas.COLORS[number % len(canvas.COLORS)]
            of_class = chances[:, order, number]
            bands = np.quantile(of_class, tails, axis=0)
            bands[2] = of_class.mean(0)  # that of a new datum
            _band(ax, inputs[order], bands, color, label=classes[number])
        ax.set_ylim(-0.1, 1.1)
        ax.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])
        two = f"probability of {classes[-1]}" if len(classes) == 2 else "probability of each class"
        text = two + (f", {100 * probability:g} % of draws" if len(chances) > 1 else "")
        if len(classes) > 2:
            ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    if data is not None:
        _observed(ax, data, classes)
    canvas.plain(ax)
    ax.margins(x=0.02)
    canvas.title(ax, text)
    return ax


def _band(
    ax: "Axes", x: Any, bands: Float[np.ndarray, "5 m"], color: Any, label: Any = None
) -> None:
    lowest, low, middle, high, highest = bands
    ax.fill_between(x, lowest, highest, color=color, alpha=0.18, linewidth=0)
    ax.fill_between(x, low, high, color=color, alpha=0.25, linewidth=0)
    ax.plot(x, middle, color=color, linewidth=1.6, label=label)


def _quantiles(predicted: Any, at: Sequence[float], count: int) -> Float[np.ndarray, "q m"]:
    if isinstance(predicted, dist.Distribution):
        _require_shape(predicted.batch_shape + predicted.event_shape, (count,), "a distribution")
        if isinstance(predicted, dist.MultivariateNormal):
            predicted = dist.Normal(predicted.mean, predicted.variance**0.5)
        try:
            return np.stack([np.asarray(predicted.icdf(np.full(count, q))) for q in at])
        except NotImplementedError:
            predicted = predicted.sample(jax.random.key(0), (DRAWS,))
    draws = _finite(predicted)
    if draws.ndim != 2:
        _require_shape(draws.shape, ("n", count), "draws")
    _require_shape(draws.shape[1:], (count,), "draws")
    return np.quantile(draws, at, axis=0)


def _chances(predicted: Any, classes: int, count: int) -> Float[np.ndarray, "n m k"]:
    """Probabilities of the classes by draw; one draw of what has no draws of probabilities."""
    if isinstance(predicted, dist.Distribution):
        chances = np.asarray(getattr(predicted, "probs", np.nan), float)
        if not np.isfinite(chances).all():
            name = type(predicted).__name__
            raise DataError(
                f"`predicted` of plot.predictive_band is a {name}, which has no `probs`; of "
                "classes give a Bernoulli or categorical distribution, or leave `classes` out."
            )
        chances = chances[None]
    else:
        chances = np.asarray(predicted)
        if chances.dtype.kind in "biu":
            chances = _shares(chances, classes)
    chances = _finite(chances)
    if classes == 2 and chances.ndim == 2:
        chances = np.stack([1.0 - chances, chances], -1)
    _require_shape(chances.shape[1:], (count, classes), "probabilities of the classes")
    if chances.min() < 0.0 or abs(chances.sum(-1) - 1.0).max() > 1e-3:
        raise DataError(
            "`predicted` of plot.predictive_band should hold labels, which are whole numbers, or "
            "probabilities whose sum over the classes is one; got numbers from "
            f"{chances.min():.4g} to {chances.max():.4g}."
        )
    return chances


def _shares(labels: np.ndarray, classes: int) -> Float[np.ndarray, "1 m k"]:
    whole = labels.astype(int)
    if not whole.size or whole.min() < 0 or whole.max() >= classes:
        raise DataError(
            f"`predicted` of plot.predictive_band holds labels that are not below {classes}, the "
            "number of `classes`, or none; name all classes, the first for the label 0."
        )
    return (whole[..., None] == np.arange(classes)).mean(0)[None]


def _observed(ax: "Axes", data: tuple[Any, Any], classes: Sequence[str] | None) -> None:
    try:
        x, y = (np.asarray(part, float) for part in data)
    except (TypeError, ValueError):
        x, y = np.zeros(0), np.zeros(1)
    if x.ndim != 1 or x.shape != y.shape or not np.isfinite([x, y]).all():
        raise DataError(
            f"`data` of plot.predictive_band has the shapes {x.shape} and {y.shape}; it should be "
            "inputs and outputs, `(x, y)`, one finite number for each datum."
        )
    if classes is None:
        ax.plot(x, y, "o", color=canvas.INK, markersize=3.5, alpha=0.8)
        return
    for number in range(len(classes)):
        own = x[y == number]
        color = canvas.COLORS[number % len(canvas.COLORS)]
        if len(classes) == 2:
            height, color = -0.05 + 1.1 * number, canvas.INK
        else:
            height = -0.03 - 0.05 * number / len(classes)
        ax.plot(own, np.full(len(own), height), "|", color=color, markersize=7)


def _finite(draws: Any) -> np.ndarray:
    found = np.asarray(draws)
    if found.dtype.kind not in "fiub" or not found.size or not np.isfinite(found).all():
        raise DataError(
            f"`predicted` of plot.predictive_band, of the shape {found.shape}, is empty or not "
            "finite everywhere; give draws such as `approx.predictive(key, x)['y']`."
        )
    return found.astype(float)


def _require_shape(shape: tuple, expected: tuple, what: str) -> None:
    if shape != expected:
        raise DataError(
            f"`predicted` of plot.predictive_band is {what} of the shape {shape}; expected was "
            f"{expected}, for the inputs in `x`, after the axis of draws if there is one."
        )
