"""The metric that is flat in the coordinates of a trained normalizing flow."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.infer.autoguide import AutoContinuous

from volform.errors import MetricError
from volform.geometry.flow_coordinates import FlowCoordinates
from volform.geometry.questions import flat_coordinates, is_symmetric
from volform.models.bound_model import BoundModel
from volform.models.model_metric import ModelMetric


class FlowMetric(ModelMetric):
    """`G = J^T J` with J = dz/du, z the base coordinates of a flow: Euclidean in z.

    Built by `flow_metric`. q^G is the density of z, so that Laplace approximations and importance
    sampling are Gaussian in z: where the flow has learned the posterior, it is Gaussian there.

    Attributes:
        transform: of NumPyro, from z to the guide's flat vector of unconstrained values.
        guide: the guide, which knows their order.
    """

    transform: Any
    guide: AutoContinuous = eqx.field(static=True)

    def bind(self, model: BoundModel) -> "BoundFlow":
        """The metric in the order of the model's u."""
        layout = model.layout
        places: Any = self.guide._unpack_latent(jnp.arange(float(self.guide.latent_dim)))
        own = {name: np.size(place) for name, place in places.items()}
        if own != {site.name: site.size for site in layout.sites}:
            raise MetricError(
                f"`guide` of flow_metric has the unconstrained sizes {own} by latent site, and the "
                f"model { {site.name: site.size for site in layout.sites} }; train the guide on "
                "this model."
            )
        order = np.argsort(np.concatenate([np.ravel(places[s.name]) for s in layout.sites]))
        return BoundFlow(FlowCoordinates(self.transform, tuple(order.tolist())), repr(self))

    def gram(self, model: BoundModel, u: Float[Array, " d"]) -> Float[Array, "d d"]:
        """`J^T J`, from the inverse of the derivative of the flow."""
        return self.bind(model).gram(model, u)

    def __repr__(self) -> str:
        return f"FlowMetric({type(self.guide).__name__})"


class BoundFlow(ModelMetric):
    """A flow on the coordinates u of one model."""

    flow: FlowCoordinates
    name: str = eqx.field(static=True)

    def gram(self, model: BoundModel, u: Float[Array, " d"]) -> Float[Array, "d d"]:
        """`J^T J` at u, with J the inverse of du/dz."""
        jacobian = jnp.linalg.inv(self.flow.derivative(self.flow.base(u)))
        return jacobian.T @ jacobian

    def __repr__(self) -> str:
        return self.name


@flat_coordinates.register
def _(metric: BoundFlow) -> FlowCoordinates:
    return metric.flow


@is_symmetric.register(FlowMetric)
@is_symmetric.register(BoundFlow)
def _(metric: Any) -> bool:
    return True


def flow_metric(guide: AutoContinuous, params: dict[str, Any]) -> FlowMetric:
    """The metric that is flat in the base coordinates of a trained flow.

    A normalizing flow chi from z ~ Normal(0, I) to u learns a metric, `G_u = J^T J` with
    J = dz/du: that in which the posterior is the round Gaussian that chi was trained to make of it.
    Attached to the model, `vf.laplace` and `vf.Importance()` work in z: NeuTra
    (Hoffman et al. 2019) for evidence. What they give is right for every flow, trained or not; a
    good one makes it precise.

    Args:
        guide: `AutoIAFNormal`, or another automatic guide of NumPyro whose transform has an
            inverse, of the same model.
        params: its trained parameters, `svi_result.params`.

    Returns:
        A metric for `vf.attach(model, metric)`.

    Raises:
        MetricError: when the guide has no flow, or none with an inverse, as `AutoBNAFNormal`: its
            values are bounded, and beyond them there is no metric (of a banana log Z came out as
            -.39 +- .04 for 0). At `condition`, when it is of another model.

    Cost: d passes of an autoregressive network for the inverse, and O(d^3), for each density.

    Source: Kristiadi, Dangel & Hennig (2023), section 4, remark on normalizing flows.

    >>> import jax, numpyro, numpyro.distributions as dist, volform as vf
    >>> from numpyro.infer import SVI, Trace_ELBO
    >>> from numpyro.infer.autoguide import AutoIAFNormal
    >>> def banana():
    ...     x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(x**2, 0.3))
    >>> guide = AutoIAFNormal(banana)
    >>> svi = SVI(banana, guide, numpyro.optim.Adam(1e-2), Trace_ELBO())
    >>> trained = svi.run(jax.random.key(0), 100, progress_bar=False)
    >>> metric = vf.models.flow_metric(guide, trained.params)
    >>> vf.condition(vf.attach(banana, metric)).metric_name
    'FlowMetric(AutoIAFNormal)'
    """
    try:
        transform = guide.get_transform(params)
    except (AttributeError, AssertionError, KeyError, NotImplementedError) as error:
        raise MetricError(
            "`guide` of flow_metric should be an automatic guide of NumPyro with a flow, such as "
            f"`AutoIAFNormal`, and `params` its trained parameters; got {guide!r} and "
            f"{sorted(params) if isinstance(params, dict) else params!r}."
        ) from error
    try:
        jax.eval_shape(transform.inv, jnp.zeros(guide.latent_dim))
    except NotImplementedError as error:
        raise MetricError(
            f"The flow of {type(guide).__name__} has no inverse, so that it has no metric on the "
            "whole of R^d; take `AutoIAFNormal`."
        ) from error
    return FlowMetric(transform, guide)
