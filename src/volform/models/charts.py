"""A chart of the sphere, which NumPyro leaves without one."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import ParameterFreeTransform


class StereographicTransform(ParameterFreeTransform):
    """Stereographic projection from the south pole, a chart of the unit sphere less that point.

    `x = (2 u, 1 - |u|^2) / (1 + |u|^2)` maps R^(n-1) into the sphere of R^n, the origin to the
    north pole. It is conformal, `J^T J = 4 / (1 + |u|^2)^2 I`, and
    `log_abs_det_jacobian` is its area element `(n - 1) log(2 / (1 + |u|^2))`: densities are with
    respect to the area of the sphere, as that of `ProjectedNormal` is.

    Registered with NumPyro's `biject_to` for `constraints.sphere`, so that a site on the sphere
    also runs under NumPyro's own inference.

    >>> import jax.numpy as jnp
    >>> StereographicTransform()(jnp.array([1.0, 0.0])).tolist()
    [1.0, 0.0, 0.0]
    """

    domain = constraints.real_vector  # pyright: ignore
    codomain = constraints.sphere  # pyright: ignore

    def __call__(self, x: Float[Array, "*batch m"]) -> Float[Array, "*batch n"]:
        """The point of the sphere."""
        square = jnp.sum(x**2, -1, keepdims=True)
        return jnp.concatenate([2.0 * x, 1.0 - square], -1) / (1.0 + square)

    def _inverse(self, y: Float[Array, "*batch n"]) -> Float[Array, "*batch m"]:
        return y[..., :-1] / (1.0 + y[..., -1:])

    def log_abs_det_jacobian(
        self, x: Float[Array, "*batch m"], y: Any, intermediates: Any = None
    ) -> Float[Array, "*batch"]:
        """Log of the area element."""
        return x.shape[-1] * (jnp.log(2.0) - jnp.log1p(jnp.sum(x**2, -1)))

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """One more coordinate than the chart."""
        return (*shape[:-1], shape[-1] + 1)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """One coordinate less than the space around the sphere."""
        return (*shape[:-1], shape[-1] - 1)


def _register() -> None:
    try:
        biject_to(constraints.sphere)
    except NotImplementedError:
        biject_to.register(constraints.sphere, lambda _: StereographicTransform())


_register()
