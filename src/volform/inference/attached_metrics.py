"""The metric of a posterior as a value: what was attached to the model."""

from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx

from volform.models.posterior import Posterior

_Sites = str | tuple[str, ...]


class SiteMetrics(eqx.Module, Mapping):
    """A metric for each site or group of sites: a mapping that `attach` takes.

    Attributes:
        sites: names of sites, or tuples of them.
        metrics: a metric for each.
        title: all of it in words.
    """

    sites: tuple[_Sites, ...] = eqx.field(static=True)
    metrics: tuple[Any, ...]
    title: str = eqx.field(static=True)

    def __getitem__(self, sites: _Sites) -> Any:
        """The metric of a site or of a group of sites."""
        return dict(zip(self.sites, self.metrics, strict=True))[sites]

    def __iter__(self) -> Iterator[_Sites]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __repr__(self) -> str:
        return self.title


def metric_of_model(posterior: Posterior) -> Any:
    """The metric that was attached to the model, or a `SiteMetrics` where it stands by site.

    A site without a metric of its own has the default one; where that is all, it is the metric.

    >>> import numpyro, numpyro.distributions as dist, volform as vf
    >>> def model():
    ...     numpyro.sample("a", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("b", dist.Normal(0.0, 1.0))
    >>> attached = vf.attach(model, {"a": vf.Euclidean(2.0)})
    >>> metric = metric_of_model(vf.condition(attached))
    >>> metric, metric["b"]
    (a: Euclidean(scale=2.0), Euclidean() elsewhere, Euclidean())
    """
    by_site: dict[_Sites, Any] = {}
    for attachment in posterior.attachments:
        if attachment.sites is not None:
            by_site[attachment.sites] = attachment.metric
        elif len(posterior.attachments) == 1:
            return attachment.metric
    covered = {name for sites in by_site for name in _names(sites)}
    for term in posterior.parts:  # from `infer`, and by default
        names = term.pulled_from if term.site is None else (term.site,)
        sites: _Sites = names[0] if len(names) == 1 else names
        if not covered & set(names):
            is_whole = isinstance(term.weight, float) and term.weight == 1.0
            own = term.metric if is_whole else term.weight * term.metric
            by_site[sites] = by_site[sites] + own if sites in by_site else own
    if {repr(metric) for metric in by_site.values()} == {posterior.metric_name}:
        return next(iter(by_site.values()))
    return SiteMetrics(tuple(by_site), tuple(by_site.values()), posterior.metric_name)


def _names(sites: _Sites) -> tuple[str, ...]:
    return sites if isinstance(sites, tuple) else (sites,)
