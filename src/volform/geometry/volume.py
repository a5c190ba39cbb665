"""Volume forms, and densities with respect to them."""

from jaxtyping import Array, Float

from volform.geometry.metric import Metric
from volform.geometry.structure import Point, logdet


def log_volume(metric: Metric, point: Point) -> Float[Array, ""]:
    """`1/2 log det G(point)`: log of the volume element dV_G against Lebesgue measure.

    If log p is a log density with respect to Lebesgue measure in the coordinates of `point`, then
    `log p - log_volume` is the log density q^G with respect to dV_G, which transforms as a
    function (Kristiadi et al. 2023, Eqs. 3-4).

    >>> import jax.numpy as jnp, volform as vf
    >>> float(vf.geometry.log_volume(vf.Euclidean(0.5), jnp.zeros(2)))
    1.386...
    """
    return 0.5 * logdet(metric(point))
