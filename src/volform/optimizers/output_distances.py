"""Curvature and distances in the space of a network's outputs, as products and numbers."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, PyTree

from volform.linalg import Point
from volform.optimizers.dissimilarities import Dissimilarity, PulledBack


def pullback_mvp(
    f: Callable[[Any], Any], dissimilarity: Dissimilarity, params: Point, vector: PyTree
) -> PyTree:
    """Product `J^T G_z J v` with the metric of a dissimilarity of outputs, pulled back by f.

    It is the Hessian of `rho(f(u), f(w))` in u at u = w, without second derivatives of f: positive
    semi-definite, and of a rank no larger than the number of outputs.

    Args:
        f: the outputs of the parameters, for all examples at once.
        dissimilarity: rho, of outputs; a mean over examples stands in it, and not in f.
        params: w.
        vector: tangent vector v, laid out like `params`.

    Returns:
        A covector laid out like `params`. Costs about three evaluations of f.

    >>> import jax.numpy as jnp, volform as vf
    >>> rho = vf.optimizers.SquaredDistance()
    >>> float(vf.optimizers.pullback_mvp(jnp.square, rho, jnp.array(3.0), jnp.array(1.0)))
    36.0
    """
    return _through(f, lambda z: jax.grad(lambda u: dissimilarity(u, z)), params, vector)


def gn_hvp(
    f: Callable[[Any], Any],
    loss: Callable[[Any], Float[Array, ""]],
    params: Point,
    vector: PyTree,
) -> PyTree:
    """Product `J^T (d^2 L / dz^2) J v` with the Gauss-Newton matrix of `loss(f(params))`.

    The Hessian without the curvature of f; with the loss a divergence of Bregman it is
    `pullback_mvp` of that. For a network and a likelihood see `volform.operators.ggn`.

    Args:
        f: as for `pullback_mvp`.
        loss: L, of the outputs.
        params: w.
        vector: tangent vector v, laid out like `params`.

    Returns:
        A covector laid out like `params`.

    References:
        Schraudolph (2002), Fast curvature matrix-vector products.

    >>> import jax.numpy as jnp, volform as vf
    >>> loss = lambda z: 0.5 * (z - 9.0) ** 2
    >>> float(vf.optimizers.gn_hvp(jnp.square, loss, jnp.array(3.0), jnp.array(1.0)))
    36.0
    """
    return _through(f, lambda _: jax.grad(loss), params, vector)


def _through(
    f: Callable[[Any], Any],
    slope_at: Callable[[Any], Callable[[Any], Any]],
    params: Point,
    vector: PyTree,
) -> PyTree:
    """`J^T (d slope / dz) J v`."""
    z, push = jax.linearize(f, params)
    curved = jax.jvp(slope_at(z), (z,), (push(vector),))[1]
    return jax.linear_transpose(push, params)(curved)[0]


def function_space_distance(
    f: Callable[[Any, Any], Any],
    dissimilarity: Dissimilarity,
    params: Point,
    other: Point,
    inputs: PyTree,
) -> Float[Array, ""]:
    """Dissimilarity of two networks: the mean of `rho(f(params, x), f(other, x))` over inputs.

    To the second order it is `1/2 v^T G v` with v the difference of the parameters and G the
    metric of `PulledBack(dissimilarity, f, inputs)`, which is this as a value.

    Args:
        f: `f(params, x)`, the output for *one* input.
        dissimilarity: rho, of outputs.
        params: parameters of the one.
        other: parameters of the other.
        inputs: examples along each leading axis.

    Returns:
        A number, the same in all coordinates of the parameters.

    References:
        Benjamin, Rolnick & Kording (2019), Measuring and regularizing networks in function space.

    >>> import jax.numpy as jnp, volform as vf
    >>> rho, x = vf.optimizers.SquaredDistance(), jnp.array([1.0, 2.0])
    >>> f = lambda w, x: w * x
    >>> float(vf.optimizers.function_space_distance(f, rho, jnp.array(3.0), jnp.array(1.0), x))
    5.0
    """
    return PulledBack(dissimilarity, f, inputs)(params, other)
