"""Attaching metrics to the sites of a NumPyro model, as an effect handler."""

from collections.abc import Callable, Container, Mapping
from typing import Any

from numpyro.primitives import Messenger

from volform.errors import MetricError, ModelError
from volform.geometry.metric import Metric

Sites = str | tuple[str, ...]


class Attached(Messenger):
    """A NumPyro model with metrics attached; built by `attach`.

    A NumPyro effect handler: it runs, traces, samples and nests like the model it wraps.
    """

    def __init__(self, fn: Callable | None, metrics: "Mapping[Sites, Metric] | Metric"):
        self.metrics = metrics
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        """Puts the metric of a site where NumPyro keeps per-site settings: `infer`."""
        if msg["type"] == "sample" and isinstance(self.metrics, Mapping):
            metric = self.metrics.get(msg["name"])
            if metric is not None:
                msg["infer"] = {**msg["infer"], "metric": metric}

    def __repr__(self) -> str:
        return f"attach({getattr(self.fn, '__name__', self.fn)}, {self.metrics})"


class FixedSites(Messenger):
    """A NumPyro model in which some sample sites are constants, without a density.

    Args:
        fn: the model.
        values: of the sites that are held.
        shown: names of those that are to be deterministic sites; the others are none any more.
    """

    def __init__(self, fn: Callable, values: Mapping[str, Any], shown: Container[str]):
        self.values, self.shown = values, shown
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        """Takes the site off the list of samples."""
        if msg["type"] == "sample" and msg["name"] in self.values:
            msg["type"] = "deterministic"
            msg["value"] = self.values[msg["name"]]
            msg["stop"] = msg["name"] not in self.shown


def attach(model: Callable, metrics: "Mapping[Sites, Metric] | Metric") -> Attached:
    """Attach Riemannian metrics to a NumPyro model.

    Three ways, which may be nested (an outer `attach` wins):

    - by site, `{"sigma": metric}`: the metric lives on the site's value. The site may be a
      `numpyro.deterministic` one; the metric is pulled back through the model's own trace, and
      takes the place of the default metric of the latent site that it is computed from;
    - by group, `{("mu", "sigma"): metric}`: a metric on the tuple of values;
    - model-wide, `metric`: `JointFisher()`, `LikelihoodFisher()`, `Unconstrained()`,
      `Euclidean()` for every site, or a metric on the dict of all named values.

    Inside a model, `numpyro.sample(..., infer={"metric": metric})` does the same as by-site.
    Sites without a metric have `Euclidean()` in their own value coordinates: the assumption that
    a mode of the density as written makes tacitly.

    Args:
        model: a NumPyro model, with effect handlers or without.
        metrics: a dict from site (or tuple of sites) to metric, or one metric for the whole model.

    Returns:
        A NumPyro model.

    Raises:
        MetricError: when a value is no `Metric`.
        ModelError: when `model` is not callable.

    >>> import numpyro, numpyro.distributions as dist, volform as vf
    >>> def model():
    ...     numpyro.sample("sigma", dist.HalfNormal(1.0))
    >>> vf.attach(model, {"sigma": vf.Euclidean()})
    attach(model, {'sigma': Euclidean()})
    """
    require_model(model)
    values = list(metrics.values()) if isinstance(metrics, Mapping) else [metrics]
    for value in values:
        require_metric(value, "`metrics` of attach")
    return Attached(model, metrics)


def require_model(model: Any, argument: str = "model") -> None:
    """Raises ModelError when `model` is not callable."""
    if not callable(model):
        raise ModelError(
            f"`{argument}` should be a NumPyro model, a function that calls `numpyro.sample`; got "
            f"{model!r}."
        )


def require_metric(value: Any, where: str) -> None:
    """Raises MetricError when `value` is no `Metric`."""
    if not isinstance(value, Metric):
        raise MetricError(
            f"{where} holds {value!r} of type {type(value).__name__}; it should hold metrics, for "
            "example `vf.Euclidean()` or `vf.Fisher(dist.Normal)`."
        )


def attached_metrics(model: Callable) -> tuple[dict[Sites, Metric], Metric | None]:
    """By-site and model-wide metrics along the chain of handlers; the outermost wins."""
    by_site: dict[Sites, Metric] = {}
    wide: Metric | None = None
    while isinstance(model, Messenger) and model.fn is not None:
        if isinstance(model, Attached):
            if isinstance(model.metrics, Metric):
                return by_site, model.metrics
            by_site = {**model.metrics, **by_site}
        model = model.fn
    return by_site, wide


def without_handlers(model: Any) -> Any:
    """The function that effect handlers are around."""
    while isinstance(model, Messenger) and model.fn is not None:
        model = model.fn
    return model
