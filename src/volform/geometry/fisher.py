"""The Fisher metric of a parametric family given as a function to a NumPyro distribution."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from volform.geometry.dependence import dependence
from volform.geometry.fisher_routes import (
    MonteCarlo,
    NoInformation,
    choose_route,
)
from volform.geometry.metric import Metric, call_at
from volform.geometry.questions import is_symmetric, name_of
from volform.geometry.scores import Route, ScoreTangents, tangent_like
from volform.linalg.structured import DenseOperator, Point, size_of


class Fisher(Metric):
    """The Fisher metric `F(v) = E_{y ~ family(v)}[s s^T]`, s = d log p(y | v) / dv.

    The chain rule is automatic: with z the parameters of the distribution, `F = J_z^T F_z J_z`.
    F_z comes in closed form for the common families, else as the Hessian of NumPyro's
    `kl_divergence` in its second argument, else by enumeration of a finite support, in two parts
    (zero-inflated and hurdle families), by quadrature for families on the line, else by Monte
    Carlo. Independent elements of the distribution's batch are summed.

    Args:
        family: maps a point to a NumPyro distribution: `family(value)` for one site,
            `family(a, b)` for a group of sites (in the group's order), `family(a=..., b=...)` for
            named values.
        key: key for the Monte Carlo route; not used by the others.
        draws: number of Monte Carlo draws.

    Raises:
        MetricError: at evaluation, when only Monte Carlo would do and `key` was not given.

    References:
        Rao (1945); Amari (2016), Information Geometry and Its Applications, section 2.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, volform as vf
    >>> g = vf.Fisher(dist.Normal)
    >>> g((jnp.array(0.0), jnp.array(2.0))).as_matrix().tolist()
    [[0.25, 0.0], [0.0, 0.5]]
    """

    family: Callable[..., dist.Distribution]
    key: PRNGKeyArray | None = None
    draws: int = eqx.field(static=True, default=1024)

    def __call__(self, point: Point) -> lx.AbstractLinearOperator:
        """`F(point)`."""
        route, move = self._along_axes(point)
        if move is None:
            n = size_of(point)
            return DenseOperator(jnp.zeros((n, n), ravel_pytree(point)[0].dtype), point)
        return DenseOperator(route.gram(move), point)

    def root(self, point: Point) -> Float[Array, "m n"]:
        """C with `C^T C = F(point)`, n the number of coordinates in `ravel_pytree` order.

        In closed form wherever F is; m depends on the family and is at most n only for some.

        >>> import jax.numpy as jnp, numpyro.distributions as dist, volform as vf
        >>> vf.Fisher(dist.Normal).root((jnp.array(0.0), jnp.array(2.0))).round(4).tolist()
        [[-0.5, -0.0], [0.0, 0.7071]]
        """
        route, move = self._along_axes(point)
        if move is None:
            return jnp.zeros((0, size_of(point)), ravel_pytree(point)[0].dtype)
        return route.root(move).T

    def _along_axes(self, point: Point) -> tuple[Route, ScoreTangents | None]:
        """The route, and the move along each coordinate; None where nothing moves."""
        flat, unravel = ravel_pytree(point)

        def fn_at(x: Any) -> dist.Distribution:
            return call_at(self.family, unravel(x))

        fn = fn_at(flat)
        sampler = None if self.key is None else MonteCarlo(self.key, self.draws)
        route = choose_route(fn, latent=False, moving=dependence(fn_at, flat), sampler=sampler)
        if isinstance(route, NoInformation):  # which may have no leaf to read a dimension off
            return route, None

        def tangent(direction: Any) -> Any:
            return tangent_like(*jax.jvp(fn_at, (flat,), (direction,)))

        dfn = jax.vmap(tangent)(jnp.eye(flat.size, dtype=flat.dtype))
        return route, ScoreTangents(None, None, None, fn, dfn).reduced()

    def __repr__(self) -> str:
        return f"Fisher({name_of(self.family)})"


@is_symmetric.register
def _(metric: Fisher) -> bool:
    return True
