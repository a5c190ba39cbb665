"""Metrics that are read off a whole model."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import lineax as lx
from jaxtyping import Array, Float

from volform.errors import MetricError, ModelError, UnknownSiteError
from volform.geometry.jacobians import along_coordinates
from volform.geometry.metric import Metric
from volform.geometry.questions import is_symmetric, name_of
from volform.models.attaching import Sites, require_model
from volform.models.binding import MetricTerm, MovingValues, TermBinder, bind, weighted_name
from volform.models.bound_model import BoundModel
from volform.models.inspection import inspect_model
from volform.models.metric_checks import require_valid_gram
from volform.models.model_with_data import ModelWithData


class ModelMetric(Metric):
    """A metric that is read off a whole model; it has no meaning on a single value.

    To define your own, subclass and write `gram`: from a `BoundModel` and an unconstrained point to
    a symmetric matrix. Attach it with `vf.attach(model, metric)`; sums and positive multiples are
    metrics, as of all others.

    Args:
        reference: another spelling of the same model to read the geometry from; its latent sites
            must be sites (sampled or deterministic) of the model that the metric is attached to.
            The matrix is that of the reference, pulled back: then all spellings get one metric.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> class PriorCurvature(vf.models.ModelMetric):
    ...     def gram(self, model, u):
    ...         return jax.hessian(lambda u: model.log_likelihood(u) - model.log_density(u))(u)
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> posterior = vf.condition(vf.attach(model, PriorCurvature()), 0.3)
    >>> posterior.metric(jnp.zeros(1)).as_matrix().tolist()
    [[0.25]]
    """

    reference: Callable | None = eqx.field(static=True, default=None, kw_only=True)

    @abc.abstractmethod
    def gram(self, model: BoundModel, u: Float[Array, " d"]) -> Float[Array, "d d"]:
        """The matrix of the metric in u, symmetric and positive definite.

        Args:
            model: the model that the metric is read off; its reference, if it has one.
            u: unconstrained point of that model, shape (d,).
        """

    def bind(self, model: BoundModel) -> "ModelMetric":
        """The metric on one model: with all that need be found out about the model only once.

        Called by `vf.condition`. The default reads off the reference, if there is one.

        Args:
            model: the model that the metric is attached to.

        Raises:
            MetricError: when the metric cannot be read off the model.
        """
        if self.reference is None:
            return self
        return Respelled(self, respelled(model, self.reference))

    def __call__(self, point: Any) -> lx.AbstractLinearOperator:
        """Not defined: the metric needs a model."""
        raise MetricError(
            f"`{type(self).__name__}` is read off a whole model and has no matrix at a bare "
            "point; attach it with `vf.attach(model, metric)` and use `vf.condition`."
        )

    def __repr__(self) -> str:
        ordered = sorted(dataclasses.fields(self), key=lambda field: field.name == "reference")
        fields = ((f.name, getattr(self, f.name), f.default) for f in ordered)
        shown = [f"{name}={name_of(v)}" for name, v, default in fields if v is not default]
        return f"{type(self).__name__}({', '.join(shown)})"


class Respelled(ModelMetric):
    """A metric read off another spelling of the model, `J^T G J` with J = du'/du.

    Attributes:
        metric: the metric.
        spelling: the other spelling, with coordinates u'.
    """

    metric: ModelMetric
    spelling: BoundModel

    def gram(self, model: BoundModel, u: Float[Array, " d"]) -> Float[Array, "d d"]:
        """The matrix of the other spelling, pulled back to u."""
        point, moved = along_coordinates(lambda u: model.point_in(self.spelling, u), u)
        matrix = moved @ self.metric.gram(self.spelling, point) @ moved.T
        return 0.5 * (matrix + matrix.T)

    def __repr__(self) -> str:
        return repr(self.metric)


@is_symmetric.register
def _(metric: Respelled) -> bool:
    return is_symmetric(metric.metric)


class ModelTerm(MetricTerm):
    """A metric read off the model, or off a reference spelling of it."""

    metric: ModelMetric  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen)

    def in_u(self, model: BoundModel, u: Float[Array, " d"], moved: MovingValues) -> Any:
        """The matrix that the metric reads off the model."""
        return self.weight * self.metric.gram(model, u)

    def require_valid(self, model: BoundModel, u: Float[Array, " d"]) -> None:
        """Checks the matrix that the metric reads off the model."""
        require_valid_gram(self.metric, lambda u: self.metric.gram(model, u), u)

    def label(self) -> str:
        """The metric, as it is bound to the model."""
        return weighted_name(self.weight, self.metric)


@bind.register
def _(
    metric: ModelMetric, sites: Sites | None, binder: TermBinder, weight: Any
) -> tuple[MetricTerm, ...]:
    if sites is not None:
        raise MetricError(
            f"`{type(metric).__name__}` was attached to `{sites}`; it is read off the whole "
            "model: use `vf.attach(model, metric)` without naming sites."
        )
    return (ModelTerm(metric.bind(binder.model), weight=weight),)


def respelled(model: BoundModel, reference: Callable) -> BoundModel:
    """Another spelling of a model, on the same data and with coordinates of its own.

    Args:
        model: the model; `model.point_in(other, u)` is the other's point with the same values.
        reference: a NumPyro model whose latent sites are sites of `model`, latent or deterministic.

    Raises:
        ModelError: when the reference is no model, or a site has another shape there.
        UnknownSiteError: when `model` does not compute a latent site of the reference.
    """
    require_model(reference, "reference")
    found = inspect_model(ModelWithData(reference, model.program.data))
    other = BoundModel(found.program, found.layout, found.observed, found.known)
    missing = [name for name in other.names if name not in model.known]
    if missing:
        raise UnknownSiteError(
            f"The `reference` model has latent sites {missing} that the model does not "
            f"compute; it has {sorted(model.known)}. Name them with `numpyro.deterministic`."
        )
    values = jax.eval_shape(lambda u: model.values(u, other.names), model.layout.point)
    for site in other.layout.sites:
        if values[site.name].shape != site.shape:
            raise ModelError(
                f"The site `{site.name}` has shape {values[site.name].shape} in the model and "
                f"{site.shape} in its `reference`; they should be one and the same value."
            )
    return other
