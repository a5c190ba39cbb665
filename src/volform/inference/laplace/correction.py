"""Second-order term of the invariant Laplace expansion, by contraction."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from volform.inference.modes.expansion import objective
from volform.models.posterior import Posterior

ScalarFunction = Callable[[Float[Array, " d"]], Float[Array, ""]]


def correction(
    posterior: Posterior, u: Float[Array, " d"], whitener: Float[Array, "d d"], batch: int = 16
) -> Float[Array, ""]:
    """The coefficient c of `log Z = log Z_1 + log(1 + c)` at the mode of q^G.

    With l = -log q^G, b = 1/2 log det G, T and Q the third and fourth derivatives of l,
    K = H^-1, and summation over repeated indices,

        c = - 1/8 Q_ijkl K_ij K_kl
            + 1/8 T_ijk T_lmn K_ij K_kl K_mn + 1/12 T_ijk T_lmn K_il K_jm K_kn
            + 1/2 (b_ij + b_i b_j) K_ij - 1/2 b_i T_jkl K_ij K_kl.

    In coordinates z with H = I every K is a Kronecker delta. Q is contracted by nested
    Jacobian-vector products, d^2 of them in all; the largest array held has d^3 / d * `batch`
    entries. c is the coefficient of a coordinate-free expansion, hence invariant.

    Args:
        posterior: densities and metric in u.
        u: mode of q^G, shape (d,).
        whitener: W with W^T H W = I there, shape (d, d).
        batch: directions treated at once; bounds the memory.
    """

    def loss(z: Float[Array, " d"]) -> Float[Array, ""]:
        return objective(u + whitener @ z, posterior)

    def b(z: Float[Array, " d"]) -> Float[Array, ""]:
        return posterior.log_volume(u + whitener @ z)

    origin = jnp.zeros_like(u)
    eye = jnp.eye(u.size, dtype=u.dtype)

    def laplacian(z: Float[Array, " d"]) -> Float[Array, ""]:
        return jnp.sum(jax.vmap(lambda a: _second(loss, z, a))(eye))

    def along(direction: Float[Array, " d"]) -> tuple[Array, Array, Array]:
        traced, curved = _first_and_second(laplacian, origin, direction)
        third = jax.jvp(jax.hessian(loss), (origin,), (direction,))[1]
        return traced, curved, jnp.sum(third**2)

    t, q, t_squared = jax.lax.map(along, eye, batch_size=min(batch, u.size))
    b_gradient, b_hessian = jax.grad(b)(origin), jax.hessian(b)(origin)
    return (
        -q.sum() / 8.0
        + t @ t / 8.0
        + t_squared.sum() / 12.0
        + 0.5 * (jnp.trace(b_hessian) + b_gradient @ b_gradient)
        - 0.5 * b_gradient @ t
    )


def _first_and_second(f: ScalarFunction, z: Any, direction: Any) -> tuple[Array, Array]:
    def slope(z: Float[Array, " d"]) -> Float[Array, ""]:
        return jax.jvp(f, (z,), (direction,))[1]

    return jax.jvp(slope, (z,), (direction,))


def _second(f: ScalarFunction, z: Any, direction: Any) -> Float[Array, ""]:
    return _first_and_second(f, z, direction)[1]
