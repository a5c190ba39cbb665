"""A NumPyro model with data and metric: densities and geometry on R^d."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import lineax as lx
from jaxtyping import Array, Float
from numpyro.distributions import Unit

from volform.compilation import Remembering, remembered
from volform.errors import ModelError, TrustWarning
from volform.geometry.metric import Euclidean, Metric
from volform.geometry.questions import name_of
from volform.linalg.structured import exact_logdet
from volform.models.attaching import (
    Attached,
    Sites,
    attach,
    attached_metrics,
    require_model,
)
from volform.models.batches import first_batch
from volform.models.binding import MetricTerm, TermBinder, assemble, bind
from volform.models.bound_model import BoundModel
from volform.models.circles import centered_on_circles
from volform.models.counting import Counted
from volform.models.data_checks import core_of
from volform.models.fingerprint import provenance_of
from volform.models.inspection import inspect_model
from volform.models.labels import Labels, labels_of, named_arguments
from volform.models.layout import Layout
from volform.models.metric_sites import find_metric_sites
from volform.models.model_with_batches import (
    ModelWithBatches,
    first_of,
    given_arguments,
    in_batches,
)
from volform.models.model_with_data import ModelWithData, make_program
from volform.models.prior_draws import weighed_draws
from volform.models.signature import Signature, signature_of
from volform.progress import waiting
from volform.results import Provenance, html_table, notes_on_held

NO_LABELS = Labels()


class Attachment(eqx.Module):
    """A metric and the sites that it was attached to; None for the whole model."""

    sites: Sites | None = eqx.field(static=True)
    metric: Metric


class Posterior(Remembering):
    """A model, its data and a metric, as functions on unconstrained points u in R^d.

    Built by `condition`. u is flat: the latent sites in the order in which the model samples
    them, each in NumPyro's `biject_to` coordinates. Densities are unnormalized posteriors, that
    is, joint densities p(data, parameters).

    Attributes:
        layout: latent sites and their charts.
        program: the model with its data.
        parts: the summands of the metric.
        observed: names of observed sites.
        known: names of all values that a metric may be attached to.
        metric_name: the metric in words, shown with every result.
        attachments: the metrics that were attached to the model from outside.
        held: what the density depends on and is held: `numpyro.param` sites, `numpyro.prng_key`.
        labels: names and labels of the axes of the data, for `to_arviz`.
    """

    layout: Layout
    program: ModelWithData
    parts: tuple[MetricTerm, ...]
    observed: tuple[str, ...] = eqx.field(static=True)
    known: tuple[str, ...] = eqx.field(static=True)
    metric_name: str = eqx.field(static=True)
    attachments: tuple[Attachment, ...] = ()
    held: tuple[str, ...] = eqx.field(static=True, default=())
    labels: Labels = eqx.field(static=True, default=NO_LABELS)

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates d."""
        return self.layout.dim

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the latent sites."""
        return self.layout.names

    @property
    def model(self) -> Callable:
        """The NumPyro model."""
        return self.program.model

    @property
    def in_batches(self) -> bool:
        """Tell whether the data come in `Batches`, so that there is no density as one function."""
        return isinstance(self.program, ModelWithBatches)

    @property
    def numbers_read(self) -> float:
        """Numbers that a run reads besides its arguments; infinite in a loop of unknown length."""
        return self.program.source.numbers_read

    @property
    def bound_model(self) -> BoundModel:
        """The model with its data and without its metric, as metrics are given it to read."""
        return BoundModel(self.program, self.layout, self.observed, self.known)

    @property
    def _first(self) -> BoundModel:
        """As `bound_model`, of the first batch where data come in batches."""
        return BoundModel(first_of(self.program), self.layout, self.observed, self.known)

    @remembered
    def data_sites(self) -> tuple[str, ...]:
        """Observed sites with a distribution: all but those of `numpyro.factor`."""
        found: list[str] = []

        def look(u: Float[Array, " d"]) -> None:
            trace = self._first.trace(u)
            found.extend(n for n in self.observed if not isinstance(core_of(trace[n]["fn"]), Unit))

        jax.eval_shape(look, self.layout.point)
        return tuple(found)

    @property
    def provenance(self) -> Provenance:
        """Provenance of the evidence: of which data, proper and normalized or not, copies of modes.

        Found when it is first asked for: a network's copies take some ten densities.

        Raises:
            ModelError: when a declared number of equivalent modes is no positive integer.
        """
        return self._origin[0]

    @property
    def counted(self) -> Counted | None:
        """The equivalent modes of a network, by its symmetries; None where no site leaves them."""
        return self._origin[1]

    @remembered
    def _origin(self) -> tuple[Provenance, Counted | None]:
        return provenance_of(self.bound_model, self.held)

    def values(self, u: Float[Array, " d"], names: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Named values at u, of the latent sites or of any sites, deterministic ones included.

        Args:
            u: unconstrained point, shape (d,).
            names: sites; all latent sites by default.
        """
        return self.bound_model.values(u, names)

    def unconstrain(self, values: Mapping[str, Any]) -> Float[Array, " d"]:
        """The point u with the given latent values.

        Args:
            values: value of every latent site, inside its support.

        Raises:
            UnknownSiteError: when a latent site is missing.
        """
        return self.layout.unconstrain(values)

    def log_density(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log joint density at u with respect to the volume form dV_G.

        `log q^G(u) = log p_u(u) - 1/2 log det G_u(u)`. It transforms as a function: its value at a
        point of the manifold is the same in all coordinates.

        Args:
            u: unconstrained point, shape (d,).
        """
        return self.log_density_lebesgue(u) - self.log_volume(u)

    def log_density_lebesgue(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log joint density at u with respect to Lebesgue measure du, NumPyro's own.

        `log p_u(u) = log p(v(u)) + log |det dv/du|`, which depends on the coordinates.

        Args:
            u: unconstrained point, shape (d,).
        """
        return self.bound_model.log_density(u)

    def metric(self, u: Float[Array, " d"]) -> lx.AbstractLinearOperator:
        """The metric in u, `G_u = J_uv^T G_v J_uv`: an operator on flat vectors, shape (d, d).

        Identity, diagonal and block-diagonal metrics stay so.
        """
        self.layout.require_point(u)
        return assemble(self.parts, self._first, u)

    def log_volume(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """`1/2 log det G_u(u)`: the volume element against Lebesgue measure in u."""
        return 0.5 * exact_logdet(self.metric(u))

    def __reduce__(self) -> tuple[Any, ...]:
        # A recording holds what cannot be pickled: the model does not, and is recorded again.
        model = with_attached(self.model, self.attachments)
        arguments = given_arguments(self.program)
        return _unpickled, (model, *arguments, signature_of(self), self.labels)

    def __copy__(self, memo: Any = None) -> "Posterior":
        return self

    __deepcopy__ = __copy__
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType] - `jax.jit` of methods asks

    def to_dataframe(self) -> Any:
        """A pandas DataFrame of the latent sites: shapes and numbers of parameters."""
        return self.layout.to_dataframe()

    def _repr_html_(self) -> str:
        title, *notes = repr(self).split("\n")
        return html_table(self.layout.rows(), [title, *map(str.strip, notes)])

    def __repr__(self) -> str:
        sites = ", ".join(f"{site.name}{list(site.shape) or ''}" for site in self.layout.sites)
        parts = "\n  ".join(part.label() for part in self.parts)
        return (
            f"Posterior of {self.program.name}: {self.dim} parameters "
            f"({sites}), observed {', '.join(self.observed) or 'nothing'}\n"
            f"metric {self.metric_name}\n  {parts}"
        ) + "".join(f"\n{note}" for note in self._notes())

    def _notes(self) -> list[str]:
        given = [p.given.in_words() for p in [self.program] if isinstance(p, ModelWithBatches)]
        return [*notes_on_held(self.held), *given]


def condition(model: Callable, *args: Any, **kwargs: Any) -> Posterior:
    """Condition a NumPyro model on data, with the metrics attached to it.

    Args:
        model: a NumPyro model, usually from `attach`; without metrics every site has
            `Euclidean()` in its own value coordinates.
        *args: the model's arguments.
        **kwargs: the model's keyword arguments, the data among them: arrays of NumPy or JAX, or
            what `np.asarray` makes one of, such as a column of pandas or polars, or an xarray
            `DataArray`. Names and labels of their axes are kept for `to_arviz`. Data that do not
            fit into memory are given as `Batches`.

    The model is recorded: its Python runs here and, for draws from the prior and densities, never
    again. What globals, closures, objects and tables hold now is what the posterior is of.

    Returns:
        A `Posterior`: densities and metric as functions of an unconstrained point.

    Warns:
        TrustWarning: the density depends on a `numpyro.param` or a `numpyro.prng_key`, or labels of
            two arguments are the same in another order.

    Raises:
        ModelError: discrete or subsampled latent sites, no latent site; a model
            that is another function each time, by random numbers of NumPy or counters.
        UnknownSiteError: a metric attached to a site that the model does not have.
        DataError: observed data that are NaN, infinite, empty, of unequal length or no numbers; a
            table, which may be meant as a matrix or by columns.
        MetricError: a metric that cannot be bound to the model.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    ...     numpyro.sample("y", dist.Normal(0.0, sigma), obs=y)
    >>> posterior = vf.condition(vf.attach(model, vf.LikelihoodFisher()), jnp.array([0.3, -0.5]))
    >>> posterior
    Posterior of model: 1 parameters (sigma), observed y
    metric LikelihoodFisher()
      LikelihoodFisher() [y: closed form]
    """
    require_model(model)
    with waiting("condition", show=True):
        labels = labels_of(named_arguments(model, args, kwargs))
        posterior = conditioned(model, args, kwargs, frozenset(), labels)
    for note in (*notes_on_held(posterior.held), *labels.conflicts()):
        warnings.warn(f"`{posterior.program.name}`: {note}", TrustWarning, stacklevel=2)
    return posterior


def conditioned(
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    fixed: frozenset[str],
    labels: Labels = NO_LABELS,
) -> Posterior:
    """As `condition`, without the metrics of values that are known to be constants."""
    by_site, wide = attached_metrics(model)
    if fixed:
        by_site = {sites: m for sites, m in by_site.items() if not set(names_in(sites)) <= fixed}
    attachments = tuple(Attachment(sites, metric) for sites, metric in by_site.items())
    if wide is not None:
        attachments += (Attachment(None, wide),)
    batches, (first, named) = first_batch(args, kwargs)
    program = make_program(_unwrapped(model), first, named)
    inspection = inspect_model(program)
    layout, program, observed = inspection.layout, inspection.program, inspection.observed
    known = inspection.known
    layout = centered_on_circles(BoundModel(program, layout, observed, known), weighed_draws)
    inspection = dataclasses.replace(inspection, layout=layout)
    if wide is None:
        outside = _named_in(by_site)  # which wins, also where it is a group
        found = inspection.metrics.items()
        by_site = {
            **{n: m for n, m in found if n in known and n not in outside | fixed},
            **by_site,
        }

    def metric_sites() -> tuple[str, ...]:
        return find_metric_sites(inspection, by_site)

    binder = TermBinder(BoundModel(program, layout, observed, known), metric_sites)
    parts, title = _bind_all(binder, by_site, wide)
    for part in parts:
        binder.require_valid(part)
    held = inspection.held
    if batches is not None:
        _require_free_of_data(parts)
        program = in_batches(program, batches, kwargs, layout, observed)
    return Posterior(layout, program, parts, observed, known, title, attachments, held, labels)


def _require_free_of_data(parts: tuple[MetricTerm, ...]) -> None:
    """Check that no part of the metric holds data of the first batch."""

    def is_model(node: Any) -> bool:
        return isinstance(node, ModelWithData)

    if any(map(is_model, jax.tree.leaves(parts, is_leaf=is_model))):
        raise ModelError(
            "A metric with `reference=` is read off the data, which come in batches; attach one "
            "to the sites, or condition on the data whole."
        )


def with_attached(model: Callable, attachments: Sequence[Attachment]) -> Callable:
    """The model with the metrics that were attached to another spelling of it."""
    for a in attachments:
        model = attach(model, a.metric if a.sites is None else {a.sites: a.metric})
    return model


def _unpickled(
    model: Callable, args: tuple, kwargs: dict[str, Any], signature: Signature, labels: Labels
) -> Posterior:
    """The posterior of a model in another process; raises ModelError where it is another one."""
    posterior = conditioned(model, args, kwargs, frozenset(), labels)
    signature.require(posterior, "the pickled one")
    return posterior


def _named_in(by_site: dict[Sites, Metric]) -> set[str]:
    return {n for sites in by_site for n in names_in(sites)}


def names_in(sites: Sites) -> tuple[str, ...]:
    """Names of one site or of several."""
    return sites if isinstance(sites, tuple) else (sites,)


def _unwrapped(model: Callable) -> Callable:
    # Attached only annotates; without it, equal models are equal keys of the compilation cache.
    while isinstance(model, Attached) and model.fn is not None:
        model = model.fn
    return model


def _bind_all(
    binder: TermBinder, by_site: dict[Sites, Metric], wide: Metric | None
) -> tuple[tuple[MetricTerm, ...], str]:
    for sites in by_site:
        binder.require_sites(sites)
    named = _named_in(by_site)
    parts = tuple(p for sites, m in by_site.items() for p in bind(m, sites, binder, 1.0))
    if wide is not None and not by_site:
        return bind(wide, None, binder, 1.0), name_of(wide)
    default = Euclidean() if wide is None else wide
    if not isinstance(default, Euclidean):
        raise ModelError(
            f"The model-wide metric `{name_of(default)}` and metrics on {list(by_site)} are both "
            "attached; a model-wide metric already covers every site. Attach one of the two."
        )
    rest = tuple(name for name in binder.metric_sites if name not in named)
    parts += tuple(p for name in rest for p in bind(default, name, binder, 1.0))
    own = {sites: name_of(m) for sites, m in by_site.items() if name_of(m) != name_of(default)}
    labels = [f"{sites}: {metric}" for sites, metric in own.items()]
    if rest or len(own) < len(by_site):
        labels.append(f"{name_of(default)} elsewhere" if labels else name_of(default))
    return parts, ", ".join(labels)
