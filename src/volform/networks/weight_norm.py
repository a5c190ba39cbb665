"""Weight normalization: as a chart of the weights, and as it is usually coded."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import (
    ComposeTransform,
    ParameterFreeTransform,
    Transform,
)
from numpyro.infer.reparam import Reparam

from volform.errors import NetworkError
from volform.models.charts import StereographicTransform

_SPHERE = StereographicTransform()


class _PositiveRadius(constraints.Constraint):
    """Vectors whose first entry is positive."""

    event_dim = 1

    def __call__(self, x: Any) -> Any:
        return x[..., 0] > 0.0

    def feasible_like(self, prototype: Any) -> Any:
        return jnp.ones_like(prototype)

    def tree_flatten(self) -> tuple:
        return (), ((), {})


positive_radius = _PositiveRadius()


class LogRadiusTransform(ParameterFreeTransform):
    """`(rho, s) -> (exp rho, s)`: takes the first entry of a vector to a positive one."""

    domain = constraints.real_vector  # pyright: ignore
    codomain = positive_radius  # pyright: ignore

    def __call__(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """The vector with a positive first entry."""
        return jnp.concatenate([jnp.exp(x[..., :1]), x[..., 1:]], -1)

    def _inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        return jnp.concatenate([jnp.log(y[..., :1]), y[..., 1:]], -1)

    def log_abs_det_jacobian(
        self, x: Float[Array, "*batch n"], y: Any, intermediates: Any = None
    ) -> Float[Array, "*batch"]:
        """`rho`."""
        return x[..., 0]


biject_to.register(_PositiveRadius, lambda _: LogRadiusTransform())


class PolarTransform(Transform):
    """Polar coordinates of vectors, `(r, s) -> w = r x(s)`: n coordinates for n weights.

    `r = |w| > 0`, and s in R^(n-1) is the stereographic coordinate of the direction x(s) about a
    given pole: s = 0 there. A chart of R^n less the ray opposite to the pole. The flat metric
    pulls back to `dr^2 + r^2 (2 / (1 + |s|^2))^2 |ds|^2`. For n = 1 the direction is only a sign,
    the pole's, and the chart covers one half of the line.

    Args:
        pole: a vector in the direction of the pole, shape (..., n); not zero.

    Raises:
        NetworkError: when `pole` is zero.

    References:
        Salimans & Kingma (2016), Weight normalization, whose (g, v) has n + 1 coordinates.

    >>> import jax.numpy as jnp
    >>> from volform.networks import PolarTransform
    >>> chart = PolarTransform(jnp.array([3.0, 4.0]))
    >>> chart(jnp.array([10.0, 0.0])).round(6).tolist()
    [6.0, 8.0]
    """

    domain = positive_radius  # pyright: ignore
    codomain = constraints.real_vector  # pyright: ignore

    def __init__(self, pole: Float[Array, "*batch n"]):
        norm = jnp.linalg.norm(pole, axis=-1, keepdims=True)
        if not isinstance(norm, Tracer) and not bool(jnp.all(norm > 0.0)):
            raise NetworkError(
                "`pole` holds a zero vector, which has no direction; give weights of units that "
                "are not idle, or leave these out of weight normalization."
            )
        self.pole = pole / norm

    def __call__(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """The vector with radius `x[..., 0]` and direction `x[..., 1:]`."""
        return x[..., :1] * self._turned(_SPHERE(x[..., 1:]))

    def _inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        radius = jnp.linalg.norm(y, axis=-1, keepdims=True)
        return jnp.concatenate([radius, _SPHERE.inv(self._turned(y / radius))], -1)

    def _turned(self, x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        """An orthogonal map that is its own inverse and exchanges pole and last unit vector.

        A reflection, times the sign for which its mirror is far from both.
        """
        sign = jnp.where(self.pole[..., -1:] < 0.0, -1.0, 1.0).astype(self.pole.dtype)
        mirror = self.pole.at[..., -1:].add(sign)
        along = jnp.sum(mirror * x, -1, keepdims=True) / jnp.sum(mirror**2, -1, keepdims=True)
        return -sign * (x - 2.0 * along * mirror)

    def log_abs_det_jacobian(
        self, x: Float[Array, "*batch n"], y: Any, intermediates: Any = None
    ) -> Float[Array, "*batch"]:
        """`(n - 1) log(2 r / (1 + |s|^2))`."""
        s = x[..., 1:]
        return s.shape[-1] * jnp.log(x[..., 0]) + _SPHERE.log_abs_det_jacobian(s, None)

    def tree_flatten(self) -> tuple:
        """The pole is the only leaf."""
        return (self.pole,), (("pole",), {})

    def eq(self, other: object, static: bool = False) -> Any:
        """Tell whether it is a polar transform about the same pole."""
        if not isinstance(other, PolarTransform) or self.pole.shape != other.pole.shape:
            return False
        same = jnp.all(self.pole == other.pole)
        return bool(same) if static else same


def log_polar(pole: Float[Array, "*batch n"]) -> ComposeTransform:
    """Polar coordinates with `log r` for r: the whole of R^n is their domain.

    >>> import jax.numpy as jnp
    >>> from volform.networks import log_polar
    >>> log_polar(jnp.array([3.0, 4.0]))(jnp.zeros(2)).round(6).tolist()
    [0.6, 0.8]
    """
    return ComposeTransform([LogRadiusTransform(), PolarTransform(pole)])


class _Charted(Reparam):
    """Samples the chart's coordinates of a site, with the prior of its value carried there."""

    def __init__(self, chart: Transform):
        self.chart = chart

    def __call__(self, name: str, fn: Any, obs: Any) -> tuple[None, Array]:
        """The site `{name}.polar`, and the value made of it."""
        _require_latent(name, obs)
        carried = dist.TransformedDistribution(fn, self.chart.inv)
        return None, jnp.asarray(self.chart(numpyro.sample(f"{name}.polar", carried)))


class _ScaleAndDirection(Reparam):
    """Samples a scale and an unnormalized direction for each row, with priors of their own."""

    def __init__(self, std: float):
        self.std = std

    def __call__(self, name: str, fn: Any, obs: Any) -> tuple[None, Array]:
        """The sites `{name}.g` and `{name}.v`, and the value made of them."""
        _require_latent(name, obs)
        shape = fn.shape()
        prior = dist.Normal(0.0, self.std)
        scale = numpyro.sample(f"{name}.g", prior.expand(shape[:-1]).to_event(len(shape) - 1))
        v = numpyro.sample(f"{name}.v", prior.expand(shape).to_event(len(shape)))
        return None, jnp.asarray(scale)[..., None] * v / jnp.linalg.norm(v, axis=-1, keepdims=True)


def weight_norm(
    model: Callable,
    at: Mapping[str, Float[Array, "units fan_in"]],
    chart: Callable[[Any], Transform] = PolarTransform,
) -> Callable:
    """Write weights in polar coordinates: a chart, with prior and metric carried along.

    Each site `layer0.w` becomes a site `layer0.w.polar` of the same number of coordinates, with
    the prior of the weights carried to it, and a deterministic site `layer0.w`, on which the metric
    stays. So mode, spectrum and evidence are those of the model as it was written.

    A row of a single weight has a sign for a direction, which stays that of `at`. Nothing changes
    at a mode; integrals over all of the posterior are over the weights with that sign only.

    Args:
        model: a NumPyro model.
        at: weights by site, shape (units, fan_in), whose rows are the poles of the charts: the
            trained weights, or any with rows that are not zero. Sites with fewer axes (biases)
            stay as they are.
        chart: from poles to a transform: `PolarTransform` or `log_polar`.

    Returns:
        A NumPyro model, by `numpyro.handlers.reparam`.

    Raises:
        NetworkError: when a row of `at` is zero.

    References:
        Kristiadi, Dangel & Hennig (2023), example 1(b).

    >>> import jax, jax.numpy as jnp, volform as vf
    >>> net = vf.networks.MLP(widths=(2,))
    >>> model = vf.networks.weight_norm(
    ...     vf.networks.regression(net), net.init(jax.random.key(0), 3)
    ... )
    >>> vf.condition(model, jnp.ones((4, 3)), jnp.zeros((4, 1))).names
    ('layer0.w.polar', 'layer1.w.polar')
    """
    matrices = {name: value for name, value in at.items() if jnp.ndim(value) >= 2}
    return handlers.reparam(
        model, config={name: _Charted(chart(w)) for name, w in matrices.items()}
    )


def naive_weight_norm(model: Callable, sites: Iterable[str], std: float = 1.0) -> Callable:
    """Write weights as `w = g v / |v|`, as weight normalization is coded; no chart.

    There is one coordinate too many for each row, and a new prior, `Normal(0, std)` on g and v.
    Prior and metric of the weights cannot be carried: a metric on the weights is singular here, and
    `vf.condition` says so with SingularMetricError. For comparison only; use `weight_norm`.

    Args:
        model: a NumPyro model.
        sites: names of the sites to rewrite, `layer0.w` as `layer0.w.g` and `layer0.w.v`.
        std: standard deviation of the new priors.

    Returns:
        A NumPyro model, by `numpyro.handlers.reparam`.
    """
    return handlers.reparam(model, config={name: _ScaleAndDirection(std) for name in sites})


def _require_latent(name: str, obs: Any) -> None:
    if obs is not None:
        raise NetworkError(
            f"The site `{name}` is observed; only weights that are inferred can be written in "
            "other coordinates. Leave it out."
        )
