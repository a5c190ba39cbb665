"""The ELBO of a Normal guide at points of a random rule, exact for quadratic log densities."""

from collections.abc import Callable
from functools import singledispatch
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro import handlers
from numpyro.infer.elbo import ELBO, Trace_ELBO
from numpyro.primitives import Messenger

from volform.checks import require_whole
from volform.errors import OptimizerError
from volform.optimizers.guides import is_random


class CubatureELBO(ELBO):
    """The ELBO of a guide of Normals at the points of a random rule, for NumPyro's `SVI`.

    With z = T(phi, e), e ~ Normal(0, I) in d dimensions, f(e) = log p(y, z) - log q(z), a random
    rotation Q and rho^2 ~ chi^2 with d + 2 degrees of freedom,

        ELBO = (1 - d / rho^2) f(0) + sum_i (f(rho q_i) + f(-rho q_i)) / (2 rho^2)

    Unbiased, and exact with its gradient where f is a polynomial of the third degree at most: of a
    Normal posterior it has no noise. `Trace_ELBO` has, and far from the mode so much that the
    curvature in the gradient is lost in it.

    Args:
        pairs: pairs of points out of the d; all if left out. Of fewer the rule is unbiased only.

    Raises:
        OptimizerError: for a guide with a random site that is no Normal, under whatever transforms.

    Cost: 2 d + 1 densities a step and O(d^3) for the rotation.

    References:
        Genz & Monahan (1998), Stochastic integration rules for infinite regions.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> from numpyro.infer import SVI
    >>> from numpyro.infer.autoguide import AutoNormal
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> guide = AutoNormal(model)
    >>> optimizer = vf.optimizers.natural_variational_inference(guide, 1.0)
    >>> svi = SVI(model, guide, optimizer, vf.optimizers.CubatureELBO())
    >>> y = jnp.array([1.0, 2.0, 6.0])
    >>> found = svi.run(jax.random.key(0), 1, y, progress_bar=False).params  # one step
    >>> round(float(found["mu_auto_loc"]), 6), round(float(found["mu_auto_scale"]) ** -2, 6)
    (2.990033, 3.01)
    """

    def __init__(self, pairs: int | None = None):
        if pairs is not None:
            require_whole(pairs, "pairs", "CubatureELBO", OptimizerError)
        self.pairs = pairs
        super().__init__(num_particles=1)

    def loss(
        self,
        rng_key: PRNGKeyArray,
        param_map: dict[str, Any],
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Minus the ELBO."""
        rotation, radius, own = jax.random.split(rng_key, 3)
        center, unravel = ravel_pytree(_numbers(guide, param_map, args, kwargs))
        points, weights = _rule(rotation, radius, center, self.pairs)

        def at(point: Float[Array, " d"]) -> Any:
            placed = _Placed(guide, unravel(point))
            return Trace_ELBO().loss(own, param_map, model, placed, *args, **kwargs)

        return jnp.vdot(weights, jax.vmap(at)(points))


def _rule(
    rotation: PRNGKeyArray, radius: PRNGKeyArray, center: Float[Array, " d"], pairs: int | None
) -> tuple[Float[Array, "k d"], Float[Array, " k"]]:
    """Points and weights."""
    d, dtype = center.size, center.dtype
    square = 2.0 * jax.random.gamma(radius, 0.5 * (d + 2.0), dtype=dtype)
    pairs = d if pairs is None else min(pairs, d)
    directions, _ = jnp.linalg.qr(jax.random.normal(rotation, (d, pairs), dtype))
    points = jnp.sqrt(square) * directions.T
    weight = d / (2.0 * pairs * square)
    weights = jnp.full(2 * pairs, weight).astype(dtype)
    total = jnp.concatenate([(1.0 - d / square)[None], weights])
    return jnp.concatenate([center[None], points, -points]), total


def _numbers(
    guide: Callable[..., Any], params: dict[str, Any], args: tuple, kwargs: dict[str, Any]
) -> dict[str, Float[Array, "..."]]:
    """The standard Normal numbers of each random site at the center, zeros."""
    seeded = handlers.seed(handlers.substitute(guide, data=params), rng_seed=0)
    trace = handlers.trace(seeded).get_trace(*args, **kwargs)
    dtype, numbers = jnp.result_type(float, *jax.tree.leaves(params)), {}
    for name, site in trace.items():
        if not is_random(site):
            continue
        base = _base(site["fn"])
        if not isinstance(base, dist.Normal | dist.MultivariateNormal):
            raise OptimizerError(
                f"The site `{name}` of the guide is {type(base).__name__}; CubatureELBO needs "
                "Normal or MultivariateNormal ones, as automatic guides have. Use "
                "`numpyro.infer.Trace_ELBO`."
            )
        numbers[name] = jnp.zeros(_shape(site["fn"]), dtype)
    if not numbers:
        raise OptimizerError(
            "`guide` of CubatureELBO has no random site; its ELBO needs no points. Use "
            "`numpyro.infer.Trace_ELBO`."
        )
    return numbers


class _Placed(Messenger):
    """A guide with its random sites at given standard Normal numbers."""

    def __init__(self, fn: Callable[..., Any], numbers: dict[str, Array]):
        self.numbers = numbers
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "sample" and msg["name"] in self.numbers:
            msg["value"] = _value(msg["fn"], self.numbers[msg["name"]])


def _base(fn: Any) -> Any:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def _shape(fn: Any) -> tuple[int, ...]:
    """Shape of the standard Normal numbers: those of a plate or a mask are numbers of their own."""
    if isinstance(fn, dist.ExpandedDistribution | dist.MaskedDistribution):
        inner = _shape(fn.base_dist)
        return (*fn.batch_shape, *inner[len(fn.base_dist.batch_shape) :])
    return _shape(fn.base_dist) if hasattr(fn, "base_dist") else tuple(fn.shape())


@singledispatch
def _value(fn: Any, numbers: Array) -> Array:
    """The value of a distribution that is made of standard Normal numbers."""
    return _value(fn.base_dist, numbers)  # a mask, an expansion, reinterpreted axes


@_value.register
def _(fn: dist.Normal, numbers: Array) -> Array:
    return jnp.asarray(fn.loc) + jnp.asarray(fn.scale) * numbers


@_value.register
def _(fn: dist.MultivariateNormal, numbers: Array) -> Array:
    return jnp.asarray(fn.loc) + (jnp.asarray(fn.scale_tril) @ numbers[..., None])[..., 0]


@_value.register
def _(fn: dist.TransformedDistribution, numbers: Array) -> Array:
    value = _value(fn.base_dist, numbers)
    for transform in fn.transforms:
        value = jnp.asarray(transform(value))
    return value
