"""Information of a NumPyro distribution along given tangents: which route, and the Gram matrix.

Every route gives the same thing: the (d, d) matrix G_ij = E[(s . t_i)(s . t_j)] of the joint score
s = d log p(x | z) / d(x, z) along d tangents t_i, summed over the batch. In order of preference:
closed form, Hessian of NumPyro's Kullback-Leibler divergence, enumeration of a finite support, two
parts, quadrature, Monte Carlo with a given key, and for a latent value its unconstrained
coordinate.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import biject_to

from volform.errors import MetricError
from volform.geometry import coframes, matrix_coframes  # noqa: F401  (registers its rules)
from volform.geometry.dependence import moves
from volform.geometry.score_quadrature import ScoreQuadrature, has_quadrature
from volform.geometry.scores import (
    CENSORED,
    Route,
    ScoreTangents,
    root_of,
    shifted,
    square,
    unwrapped,
    weighted,
)
from volform.geometry.split_routes import AtZero, Censored


class ClosedForm(Route):
    """The coframe of `volform.geometry.coframes`."""

    in_unconstrained: ClassVar[bool] = False

    def gram(self, move: ScoreTangents) -> Float[Array, "d d"]:
        """Gram matrix of the coframe."""
        return square(self.root(move))

    def root(self, move: ScoreTangents) -> Float[Array, "d m"]:
        """The coframe along each tangent."""
        e = jax.vmap(lambda dx, dfn: _coframe(move.fn, move.x, dx, dfn))(move.dx, move.dfn)
        return weighted(e, move.weight)

    def __str__(self) -> str:
        return "closed form"


class DivergenceHessian(Route):
    """Hessian of `numpyro.distributions.kl_divergence` in its second argument."""

    def gram(self, move: ScoreTangents) -> Float[Array, "d d"]:
        """Hessian in t at 0 of the sum of KL(fn || fn + sum_i t_i dfn_i)."""

        def divergence(t: Float[Array, " d"]) -> Float[Array, ""]:
            moved = shifted(move.fn, jax.tree.map(lambda v: jnp.tensordot(t, v, 1), move.dfn))
            return jnp.sum(move.weight * dist.kl_divergence(move.fn, moved))

        d = jax.tree.leaves(move.dfn)[0].shape[0]
        return jax.hessian(divergence)(jnp.zeros(d, jnp.result_type(float)))

    def root(self, move: ScoreTangents) -> Float[Array, "d d"]:
        """Root by the eigenvectors of G."""
        return root_of(self.gram(move))

    def __str__(self) -> str:
        return "Hessian of the KL divergence"


class Enumeration(Route):
    """Exact sum over a finite support; over 0, ..., `largest` for counts that may differ."""

    largest: int | None = eqx.field(static=True, default=None)

    def gram(self, move: ScoreTangents) -> Float[Array, "d d"]:
        """Gram matrix of the scores, weighted by the probabilities of the support."""
        return square(self.root(move))

    def root(self, move: ScoreTangents) -> Float[Array, "d m"]:
        """Scores along each tangent, by the roots of the probabilities of the support."""
        fn: Any = move.fn
        if self.largest is None:
            support, beyond = fn.enumerate_support(expand=True), False
        else:
            count = jnp.broadcast_to(fn.total_count, fn.batch_shape)[None]
            k = jnp.arange(self.largest + 1, dtype=count.dtype)
            k = k.reshape(-1, *(1 for _ in fn.batch_shape))
            support, beyond = jnp.minimum(k, count), k > count
        weights = jnp.exp(jax.vmap(fn.log_prob)(support))
        return _score_root(move, support, jnp.where(beyond, 0.0, weights))

    def __str__(self) -> str:
        return "enumeration"


class MonteCarlo(Route):
    """Average over `draws` draws made with `key`: deterministic, smooth in the parameters."""

    key: PRNGKeyArray
    draws: int = eqx.field(static=True, default=1024)

    def gram(self, move: ScoreTangents) -> Float[Array, "d d"]:
        """Gram matrix of the scores at the draws."""
        return square(self.root(move))

    def root(self, move: ScoreTangents) -> Float[Array, "d m"]:
        """Scores along each tangent at the draws."""
        points, weights = _draws(move.fn, self.key, self.draws)
        return _score_root(move, points, weights)

    def __str__(self) -> str:
        return f"Monte Carlo, {self.draws} draws"


class InUnconstrainedCoordinate(Route):
    """The flat metric of a latent value in NumPyro's unconstrained coordinates, |dt|^2.

    The last resort: it measures the value where nothing is known of its scores, and says nothing of
    the parameters of its family.
    """

    def gram(self, move: ScoreTangents) -> Float[Array, "d d"]:
        """Gram matrix of the tangents."""
        return square(self.root(move))

    def root(self, move: ScoreTangents) -> Float[Array, "d m"]:
        """The tangents, by the roots of the weights."""
        fn: Any = move.fn
        weight = jnp.broadcast_to(move.weight, fn.batch_shape)
        return weighted(move.dt.reshape(len(move.dt), *fn.batch_shape, -1), weight)

    def __str__(self) -> str:
        return "unconstrained coordinate"


class NoInformation(Route):
    """No information: factors, improper priors, point masses, parameters that do not move."""

    def gram(self, move: ScoreTangents) -> Float[Array, "d d"]:
        """Zeros."""
        return square(self.root(move))

    def root(self, move: ScoreTangents) -> Float[Array, "d 0"]:
        """No columns."""
        d = jax.tree.leaves((move.dx, move.dfn))[0].shape[0]
        return jnp.zeros((d, 0))

    def __str__(self) -> str:
        return "none"


def choose_route(
    fn: dist.Distribution,
    *,
    latent: bool,
    moving: Any,
    sampler: MonteCarlo | None = None,
    name: str = "family",
) -> Route:
    """The most exact route for `fn`.

    Args:
        fn: the distribution.
        latent: whether its value moves too.
        moving: `dependence` of `fn`: the same pytree with a bool for each leaf.
        sampler: the Monte Carlo route to fall back on.
        name: what to call the distribution in an error.

    Raises:
        MetricError: of an observed family, when only Monte Carlo would do and no `sampler` is
            given.
    """
    core = unwrapped(fn)
    if isinstance(core, dist.Unit | dist.ImproperUniform | dist.Delta):
        return NoInformation()
    if not latent and not moves(moving):
        return NoInformation()
    if _closed(fn, moving):
        return ClosedForm()
    if not latent and _has_divergence(fn):
        return DivergenceHessian()
    enumeration = None if latent else _enumeration(fn)
    if enumeration is not None:
        return enumeration
    if not latent and isinstance(core, _IN_PARTS):
        inner = choose_route(
            core.base_dist,
            latent=False,
            moving=unwrapped(moving).base_dist,
            sampler=sampler,
            name=name,
        )
        return Censored(inner, name) if isinstance(core, CENSORED) else AtZero(inner)
    if not isinstance(core, _IN_PARTS) and has_quadrature(fn):
        return ScoreQuadrature()
    if sampler is not None:
        return sampler
    if latent and fn.support is not None and not fn.support.is_discrete:
        return InUnconstrainedCoordinate()
    raise MetricError(
        f"The Fisher information of the observed family `{type(core).__name__}` at `{name}` has no "
        "closed form here, and its values are not on a line, where quadrature would do; "
        "give a key for Monte Carlo: `Fisher(..., key=jax.random.key(0))`, likewise for "
        "`LikelihoodFisher` and `JointFisher`, or register a KL divergence with NumPyro."
    )


_IN_PARTS = (dist.ZeroInflatedProbs, dist.HurdleProbs, *CENSORED)


def _closed(fn: Any, moving: Any) -> bool:
    fn, moving = unwrapped(fn), unwrapped(moving)
    if coframes.in_closed_form(fn):
        return True
    if isinstance(fn, dist.TransformedDistribution):
        is_chart = not moves(moving.transforms) and not _folds(fn)
        return is_chart and _closed(fn.base_dist, moving.base_dist)
    return False


def _folds(fn: dist.TransformedDistribution) -> bool:
    # NumPyro's only transform that is not injective, so that it loses information
    return any(isinstance(t, dist.transforms.AbsTransform) for t in fn.transforms)


def _has_divergence(fn: dist.Distribution) -> bool:
    try:
        jax.eval_shape(lambda p, q: dist.kl_divergence(p, q), fn, fn)
    except NotImplementedError:
        return False
    return True


def _enumeration(fn: dist.Distribution) -> Enumeration | None:
    if not fn.has_enumerate_support:
        return None
    core = unwrapped(fn)
    if isinstance(core, dist.BetaBinomial) and not fn.event_shape:
        # NumPyro enumerates equal counts only, and none that are arguments of a compiled function
        count = core.total_count
        return None if isinstance(count, Tracer) else Enumeration(int(np.asarray(count).max()))
    try:
        fn.enumerate_support(expand=True)
    except (NotImplementedError, jax.errors.ConcretizationTypeError):
        return None
    return Enumeration()


def _coframe(fn: Any, x: Any, dx: Any, dfn: Any) -> Float[Array, "*batch m"]:
    match fn:
        case dist.ExpandedDistribution():
            e = _coframe(fn.base_dist, x, dx, dfn.base_dist)
            return jnp.broadcast_to(e, (*fn.batch_shape, e.shape[-1]))
        case dist.MaskedDistribution():
            e = _coframe(fn.base_dist, x, dx, dfn.base_dist)
            return jnp.where(jnp.asarray(fn._mask)[..., None], e, 0.0)
        case dist.Independent():
            e = _coframe(fn.base_dist, x, dx, dfn.base_dist)
            e = jnp.broadcast_to(e, (*fn.base_dist.batch_shape, e.shape[-1]))
            return e.reshape(*fn.batch_shape, -1)
        case dist.TransformedDistribution() if not coframes.in_closed_form(fn):
            return _coframe(fn.base_dist, *_pulled_through(fn.transforms, x, dx), dfn.base_dist)
        case _:
            return coframes.coframe(fn, x, dx, dfn)


def _pulled_through(transforms: Any, x: Any, dx: Any) -> tuple[Any, Any]:
    if dx is None:
        return x, None
    for transform in reversed(transforms):
        x, dx = jax.jvp(transform.inv, (x,), (dx,))
    return x, dx


def _score_root(move: ScoreTangents, points: Any, weights: Any) -> Float[Array, "d m"]:
    def score(dt: Any, dfn: Any) -> Float[Array, "n *batch"]:
        def at(x: Any) -> Array:
            return jax.jvp(*_log_density_along(move.fn, x, dt, dfn))[1]

        return jax.vmap(at)(points)

    s = jax.vmap(score)(move.dt, move.dfn)
    e = jnp.sqrt(weights)[None] * s
    return weighted(e[..., None], move.weight)


def _log_density_along(fn: Any, x: Any, dt: Any, dfn: Any) -> tuple[Any, tuple, tuple]:
    if dt is None:
        return (lambda eps: _shift_and_score(fn, dfn, eps, x)), (0.0,), (1.0,)
    chart = biject_to(fn.support)
    t = chart.inv(x)

    def log_density(eps: Any) -> Array:
        moved = t + eps * dt
        y = chart(moved)
        jacobian = chart.log_abs_det_jacobian(moved, y)
        extra = tuple(range(len(fn.batch_shape), jnp.ndim(jacobian)))
        return _shift_and_score(fn, dfn, eps, y) + jnp.sum(jacobian, extra)

    return log_density, (0.0,), (1.0,)


def _shift_and_score(fn: Any, dfn: Any, eps: Any, x: Any) -> Array:
    return shifted(fn, jax.tree.map(lambda v: eps * v, dfn)).log_prob(x)


def _draws(fn: Any, key: PRNGKeyArray, count: int) -> tuple[Any, Any]:
    """Draws with weights that sum to one; mixtures are stratified, so that draws stay smooth."""
    if isinstance(fn, dist.MixtureSameFamily):
        core = fn
        x = core.component_distribution.sample(key, (count,))  # (count, *batch, k, *event)
        x = jnp.moveaxis(x, core.mixture_dim, 1)
        probs = jnp.moveaxis(jnp.asarray(core.mixing_distribution.probs), -1, 0)
        weights = jnp.broadcast_to(probs / count, (count, *probs.shape))
        return _merge(x), _merge(weights)
    return fn.sample(key, (count,)), jnp.full((count,) + (1,) * len(fn.batch_shape), 1.0 / count)


def _merge(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])
