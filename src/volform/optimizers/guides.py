"""Variational inference in the geometry of the guide: its Fisher metric, natural parameters."""

from collections.abc import Callable, Iterator, Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, PyTree
from numpyro import handlers
from numpyro.distributions import Delta, biject_to, constraints
from numpyro.distributions.transforms import Transform
from numpyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal

from volform.compilation import is_traced
from volform.errors import MetricError, OptimizerError
from volform.geometry import Fisher, Metric, dependence, is_symmetric, moves
from volform.linalg import DenseOperator
from volform.optimizers.update_checks import pair, require_finite_leaves, update_from

# Of the precision, what a step of rate 1 leaves of it in any direction. Where the log density is
# concave more is left, up to the noise of the gradient, which may ask for a negative precision.
LEAST = 1e-3
Params = dict[str, Any]


class GuideFisher(Metric):
    """The Fisher metric of a guide of NumPyro, in the parameters that its optimizer sees.

    These are unconstrained, as `SVI` has them: with phi = T(u) of the guide's constraints
    `G_u = J_T^T F(phi) J_T`, F the Fisher information of the guide's distributions. The natural
    gradient of the ELBO under it follows one path in all charts of the parameters. Diagonal for
    `AutoNormal` and `AutoDiagonalNormal`; else a matrix.

    Args:
        guide: an automatic guide that `svi.init` or a call has set up, or a function whose sites do
            not depend on each other.
        *args: what the guide takes, for a function.
        **kwargs: its keyword arguments.

    Raises:
        MetricError: for a guide that is not set up, or whose sites depend on each other; at
            parameters that the guide does not have.

    References:
        Amari (1998), Natural gradient works efficiently in learning; Hoffman et al. (2013),
        Stochastic variational inference.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def guide():
    ...     loc = numpyro.param("loc", 0.0)
    ...     scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
    ...     numpyro.sample("x", dist.Normal(loc, scale))
    >>> fisher = vf.optimizers.GuideFisher(guide)
    >>> fisher({"loc": jnp.array(3.0), "scale": jnp.log(2.0)}).as_matrix().tolist()  # 1/s^2 and 2
    [[0.25, 0.0], [0.0, 2.0]]
    """

    guide: Callable[..., Any] = eqx.field(static=True)
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __init__(self, guide: Callable[..., Any], *args: Any, **kwargs: Any):
        self.guide, self.args, self.kwargs = guide, args, kwargs

    def __call__(self, params: Any) -> lx.AbstractLinearOperator:
        """The metric at unconstrained parameters."""
        factors = list(_factors(self.guide))
        if not factors or any(factor.is_whole for factor in factors):
            return self._dense(params)
        _require_known(factors, params, "GuideFisher")
        entries = dict(params)
        for loc, scale, chart, _ in factors:  # 1 / s^2 and 2 (ds/du)^2 / s^2
            s, slope = jax.jvp(chart, (params[scale],), (jnp.ones_like(params[scale]),))
            entries[loc], entries[scale] = s**-2.0, 2.0 * (slope / s) ** 2
        return lx.DiagonalLinearOperator(type(params)(entries))

    def _dense(self, params: Params) -> lx.AbstractLinearOperator:
        trace = self._trace({}, {})
        charts = {n: _chart(site) for n, site in trace.items() if site["type"] == "param"}
        unknown = sorted(set(params) ^ set(charts))
        if unknown:
            raise MetricError(
                f"`params` of GuideFisher has the entries {sorted(params)}, and the guide the "
                f"parameters {sorted(charts)}; give those of the guide, others by "
                "`optax.multi_transform`."
            )

        def distributions(params: Params, values: dict[str, Any]) -> dict[str, Any]:
            phi = {name: chart(params[name]) for name, chart in charts.items()}
            return {n: s["fn"] for n, s in self._trace(phi, values).items() if is_random(s)}

        values = {name: site["value"] for name, site in trace.items() if is_random(site)}
        flags = dependence(lambda values: distributions(params, values), values)
        coupled = [name for name, flag in flags.items() if moves(flag)]
        if coupled:
            raise MetricError(
                f"The sites {coupled} of the guide depend on others, so that its Fisher metric is "
                "a mean over draws of them; give a guide of independent sites, such as "
                "`AutoMultivariateNormal`."
            )
        metrics = [Fisher(_OfSite(distributions, values, name)) for name in values]
        total = sum(metric((params,)).as_matrix() for metric in metrics)
        return DenseOperator(jnp.asarray(total), params)

    def _trace(self, phi: Params, values: dict[str, Any]) -> dict[str, Any]:
        if getattr(self.guide, "prototype_trace", self) is None and not (self.args or self.kwargs):
            raise MetricError(
                f"`guide` of GuideFisher, {type(self.guide).__name__}, is not set up; call "
                "`svi.init(key, *data)` before, or the guide with the data."
            )
        given = handlers.substitute(self.guide, data={**phi, **values})
        return handlers.trace(handlers.seed(given, rng_seed=0)).get_trace(*self.args, **self.kwargs)

    def __repr__(self) -> str:
        return f"GuideFisher({getattr(self.guide, '__name__', type(self.guide).__name__)})"


@is_symmetric.register
def _(metric: GuideFisher) -> bool:
    return True


class _OfSite(NamedTuple):
    distributions: Callable[..., dict[str, Any]]
    values: dict[str, Any]
    name: str

    def __call__(self, params: Params) -> Any:
        return self.distributions(params, self.values)[self.name]


def is_random(site: dict[str, Any]) -> bool:
    """Tell whether a site of a guide is drawn: not a parameter, nor a function of other sites."""
    return (
        site["type"] == "sample" and not site["is_observed"] and not isinstance(site["fn"], Delta)
    )


def _chart(site: dict[str, Any]) -> Transform:
    return biject_to(site["kwargs"].get("constraint", constraints.real))


class _Normal(NamedTuple):
    """Independent Normals of a guide, or one with a whole covariance.

    By the names of the parameters for mean and scale; the latter is triangular where it is whole.
    """

    loc: str
    scale: str
    chart: Transform
    is_whole: bool = False


@singledispatch
def _factors(guide: Any) -> Iterator[_Normal]:
    """The Normals that a guide is a product of; none where it is of another kind."""
    yield from ()


@_factors.register
def _(guide: AutoNormal) -> Iterator[_Normal]:
    trace: Any = guide.prototype_trace or {}
    for name in [n for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]]:
        prefix = f"{name}_{guide.prefix}"
        yield _Normal(f"{prefix}_loc", f"{prefix}_scale", biject_to(guide.scale_constraint))


@_factors.register
def _(guide: AutoDiagonalNormal) -> Iterator[_Normal]:
    loc, scale = f"{guide.prefix}_loc", f"{guide.prefix}_scale"
    yield _Normal(loc, scale, biject_to(guide.scale_constraint))


@_factors.register
def _(guide: AutoMultivariateNormal) -> Iterator[_Normal]:
    loc, scale = f"{guide.prefix}_loc", f"{guide.prefix}_scale_tril"
    yield _Normal(loc, scale, biject_to(guide.scale_tril_constraint), is_whole=True)


def natural_variational_inference(
    guide: AutoNormal | AutoDiagonalNormal | AutoMultivariateNormal,
    learning_rate: optax.ScalarOrSchedule = 0.1,
) -> optax.GradientTransformationExtraArgs:
    """Descend along the natural gradient of the ELBO in the natural parameters of a Normal guide.

    With L = -ELBO, covariance S and precision P = S^-1 of the guide, and the rate r,

        P' = P + 2 r dL/dS,    mean' = mean - r P'^-1 dL/dmean

    the step of the natural gradient in the parameters (P mean, -P / 2), which is Newton's of a
    smoothed posterior. Invariant: the chart of the guide's scale does not matter, for any rate,
    nor do affine maps of the latent values for `AutoMultivariateNormal`. Of a Normal posterior a
    single step with r = 1 is exact, up to the noise of the gradient: none with `CubatureELBO`.
    A precision stays positive: noise, or a density that is not log-concave, may ask for a negative
    one, and then a step of rate r leaves 1 - r of it.

    Args:
        guide: `AutoMultivariateNormal`, `AutoNormal` or `AutoDiagonalNormal` of NumPyro.
        learning_rate: r, in (0, 1], or a schedule of optax; .1 if left out. Small or falling where
            the gradient of few particles is noisy.

    Returns:
        An optimizer of optax, for `numpyro.infer.SVI(model, guide, optimizer, Trace_ELBO())`.

    Raises:
        OptimizerError: for another guide; for gradients that are not finite or of other parameters,
            which other optimizers may take by `optax.multi_transform`.

    Cost: O(d) a step, and O(d^3) for `AutoMultivariateNormal`, whose Fisher matrix of d (d + 3) / 2
    parameters is never formed.

    References:
        Khan & Lin (2017), Conjugate-computation variational inference; Salimbeni, Eleftheriadis &
        Hensman (2018), Natural gradients in practice.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> from numpyro.infer import SVI, Trace_ELBO
    >>> from numpyro.infer.autoguide import AutoNormal
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> y, guide = jnp.array([1.0, 2.0, 6.0]), AutoNormal(model)
    >>> optimizer = vf.optimizers.natural_variational_inference(guide, 0.5)
    >>> svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=100))
    >>> found = svi.run(jax.random.key(0), 20, y, progress_bar=False).params
    >>> abs(found["mu_auto_loc"] - 3.0) < 0.1, abs(found["mu_auto_scale"] - 3**-0.5) < 0.05
    (Array(True, dtype=bool), Array(True, dtype=bool))
    """
    name = "natural_variational_inference"
    if not isinstance(guide, AutoNormal | AutoDiagonalNormal | AutoMultivariateNormal):
        raise OptimizerError(
            f"`guide` of {name} is {type(guide).__name__}; it should be `AutoMultivariateNormal`, "
            "`AutoNormal` or `AutoDiagonalNormal`. Guides of your own, of independent sites, go by "
            "`natural_gradient(GuideFisher(guide), rate)`."
        )

    def init(params: PyTree) -> Any:
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> Any:
        gradient, at = pair(updates, params, name)
        factors = list(_factors(guide))
        _require_known(factors, at, name)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        moved = type(at)(at)
        for factor in factors:
            step = _whole_step if factor.is_whole else _independent_step
            loc, scale = factor.loc, factor.scale
            moved[loc], moved[scale] = step(
                (at[loc], at[scale]), (gradient[loc], gradient[scale]), factor.chart, rate
            )
        steps = jax.tree.map(jnp.subtract, moved, at)
        if not is_traced(steps):
            require_finite_leaves(steps, "updates", name)
        return update_from(steps, updates, params), optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)


_Pair = tuple[Array, Array]


def _independent_step(at: _Pair, gradient: _Pair, chart: Transform, rate: Any) -> _Pair:
    scale = jnp.asarray(chart(at[1]))
    slope = jax.vjp(chart.inv, scale)[1](gradient[1])[0]  # of L in the scale
    variance = scale**2 / (1.0 + rate * jnp.maximum(scale * slope, LEAST - 1.0))
    return at[0] - rate * variance * gradient[0], jnp.asarray(chart.inv(jnp.sqrt(variance)))


def _whole_step(at: _Pair, gradient: _Pair, chart: Transform, rate: Any) -> _Pair:
    """In units of the covariance S = T T^T: `T^T P' T = I + r B` with `B = 2 T^T dL/dS T`.

    The gradient in T is the lower triangle of `2 dL/dS T`, and the lower triangle of B that of
    `T^T dL/dT`, since the product of it with T^T reads no other entry.
    """
    lower = jnp.asarray(chart(at[1]))
    slope = jnp.tril(jax.vjp(chart.inv, lower)[1](gradient[1])[0])
    half = jnp.tril(lower.T @ slope)
    change = half + jnp.tril(half, -1).T
    values, vectors = jnp.linalg.eigh(change)
    shrunk = 1.0 / (1.0 + rate * jnp.maximum(values, LEAST - 1.0))
    inverse = (vectors * shrunk[None]) @ vectors.T
    root = lower @ jnp.linalg.cholesky(inverse)
    return at[0] - rate * root @ (root.T @ gradient[0]), jnp.asarray(chart.inv(root))


def _require_known(factors: Sequence[_Normal], params: Any, function: str) -> None:
    known = {name for factor in factors for name in (factor.loc, factor.scale)}
    given = set(params) if isinstance(params, dict) else set()
    if known != given or not known:
        raise OptimizerError(
            f"`params` of {function} has the entries {sorted(given)}, and the guide the parameters "
            f"{sorted(known)}; give those of the guide, and let others be moved by "
            "`optax.multi_transform`. A guide knows them once `svi.init` has run."
        )
