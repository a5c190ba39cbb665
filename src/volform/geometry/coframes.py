"""Joint score covariances of NumPyro families in closed form, as coframes.

For a distribution p(x | z) the joint score is s = d log p(x | z) / d(x, z). A *coframe* is a
linear map of tangent vectors, (dx, dz) -> e, with |e|^2 = E_{x ~ p(. | z)}[(s . (dx, dz))^2]. With
dx = 0 this is the Fisher metric of the family (Rao 1945); with dx it is the metric that the
latent value and its parameters share. Sums of squares keep every metric positive semi-definite
to rounding.

The x-row is the score of the log density with respect to Lebesgue measure in the value's own
coordinate, except for Gamma, Beta, Dirichlet and Uniform: there E[(d log p / dx)^2] is infinite
or empty for part of the family, and the coordinate is log x, logit x or the log-ratios. The value
row of a TransformedDistribution without a form of its own lives in the coordinate of its base.
"""

from functools import singledispatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import i0e, i1e, polygamma
from jaxtyping import Array, Float

from volform.geometry.scores import elementwise

_EULER_GAMMA = 0.5772156649015329


@singledispatch
def coframe(fn: dist.Distribution, x: Any, dx: Any, dfn: Any) -> Float[Array, "*batch m"]:
    """Coframe of the family of `fn`, shape (*batch_shape, m), or NotImplemented.

    Args:
        fn: a NumPyro distribution; its parameters are z.
        x: value at which the tangent `dx` lives; unused where `dx` is None.
        dx: tangent of the value, in value coordinates, or None where the value is observed.
        dfn: tangent of `fn`: the same pytree with the tangents of its parameters as leaves.

    Returns:
        e with sum(e**2, -1) = E[(s . (dx, dz))^2] for each element of the batch.
    """
    return NotImplemented


def register_coframe(*families: type) -> Any:
    """Decorator: registers one coframe for several families."""

    def decorate(rule: Any) -> Any:
        for family in families:
            coframe.register(family)(rule)
        return rule

    return decorate


def in_closed_form(fn: dist.Distribution) -> bool:
    """Tell whether `coframe` knows the family of `fn`."""
    return coframe.dispatch(type(fn)) is not coframe.dispatch(object)


def stacked(*parts: Any) -> Float[Array, "*batch m"]:
    """Entries of a coframe, broadcast to one batch."""
    return jnp.stack(jnp.broadcast_arrays(*parts), axis=-1)


def or_zero(dx: Any) -> Any:
    """The tangent of a value, zero where it is observed."""
    return 0.0 if dx is None else dx


def _apply_transposed_cholesky(form: Array, vector: Array) -> Array:
    # |L^T v|^2 = v^T S v for S = L L^T
    return jnp.einsum("...ij,...i->...j", jnp.linalg.cholesky(form), vector)


# E[psi^2], E[z psi^2], E[(1 + z psi)^2] for the standard density f, psi = (log f)'.
_LOCATION_SCALE = {
    dist.Normal: (1.0, 0.0, 2.0),
    dist.Cauchy: (0.5, 0.0, 0.5),
    dist.Laplace: (1.0, 0.0, 1.0),
    dist.Logistic: (1.0 / 3.0, 0.0, (3.0 + np.pi**2) / 9.0),
    dist.Gumbel: (1.0, _EULER_GAMMA - 1.0, np.pi**2 / 6.0 + (1.0 - _EULER_GAMMA) ** 2),
    dist.SoftLaplace: (0.5, 0.0, np.pi**2 / 8.0),
    dist.Levy: (10.5, 1.5, 0.5),
}


@register_coframe(*_LOCATION_SCALE)
def _location_scale(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    a, b, c = _LOCATION_SCALE[type(fn)]
    xi, sigma = (or_zero(dx) - dfn.loc) / fn.scale, dfn.scale / fn.scale
    return stacked(np.sqrt(a) * xi - b / np.sqrt(a) * sigma, np.sqrt(c - b * b / a) * sigma)


@register_coframe(dist.Weibull)
def _weibull(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    # log x is a mirrored Gumbel variable of location log scale and scale 1 / concentration
    dt = 0.0 if dx is None else dx / x
    xi = fn.concentration * (dt - dfn.scale / fn.scale)
    sigma = -dfn.concentration / fn.concentration
    return stacked(xi - (1.0 - _EULER_GAMMA) * sigma, np.pi / np.sqrt(6.0) * sigma)


@register_coframe(dist.AsymmetricLaplace)
def _asymmetric_laplace(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    # On each side of loc the score is a + b (y - 1) with y standard exponential.
    k, dk = jnp.asarray(fn.asymmetry), dfn.asymmetry / fn.asymmetry
    xi, sigma = (or_zero(dx) - dfn.loc) / fn.scale, dfn.scale / fn.scale
    left, right = k / jnp.sqrt(1.0 + k**2), 1.0 / jnp.sqrt(1.0 + k**2)  # roots of probabilities
    drift = (1.0 - k**2) / (1.0 + k**2) * dk
    return stacked(
        left * (xi / k + drift + dk),
        left * (sigma + dk),
        right * (-k * xi + drift - dk),
        right * (sigma - dk),
    )


@register_coframe(dist.AsymmetricLaplaceQuantile)
def _asymmetric_laplace_quantile(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    def classic(loc: Array, scale: Array, quantile: Array) -> dist.AsymmetricLaplace:
        asymmetry = jnp.sqrt(quantile / (1.0 - quantile))
        return dist.AsymmetricLaplace(loc, scale * asymmetry / quantile, asymmetry)

    primals = [jnp.asarray(v) for v in (fn.loc, fn.scale, fn.quantile)]
    inner, dinner = jax.jvp(classic, primals, [dfn.loc, dfn.scale, dfn.quantile])
    return _asymmetric_laplace(inner, x, dx, dinner)


@register_coframe(dist.VonMises)
def _von_mises(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    kappa = jnp.asarray(fn.concentration)
    ratio = i1e(kappa) / i0e(kappa)  # the mean resultant length
    w = 1.0 / jnp.maximum(kappa, 100.0)  # beyond 100 the difference cancels
    series = w**2 * (0.5 + w * (0.25 + w * (0.375 + w * (25 / 32 + w * (65 / 32)))))
    small = jnp.minimum(kappa, 100.0)
    inner = i1e(small) / i0e(small)
    slope = jnp.where(kappa > 100.0, series, 1.0 - inner / small - inner**2)
    shift = or_zero(dx) - dfn.loc
    return stacked(jnp.sqrt(kappa * ratio) * shift, jnp.sqrt(slope) * dfn.concentration)


# E[s_x^2], E[s_x s_scale], E[s_scale^2] at scale 1.
_SCALE = {
    dist.HalfNormal: (1.0, -np.sqrt(2.0 / np.pi), 2.0),
    dist.HalfCauchy: (0.5, 0.0, 0.5),
}


@register_coframe(*_SCALE)
def _scale(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    a, b, c = _SCALE[type(fn)]
    xi, sigma = or_zero(dx) / fn.scale, dfn.scale / fn.scale
    return stacked(np.sqrt(c) * sigma + b / np.sqrt(c) * xi, np.sqrt(a - b * b / c) * xi)


@register_coframe(dist.StudentT)
def _student_t(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    nu = jnp.asarray(fn.df)
    xi, sigma = (or_zero(dx) - dfn.loc) / fn.scale, dfn.scale / fn.scale
    cross = -2.0 / ((nu + 1.0) * (nu + 3.0))
    diagonal = 2.0 * nu / (nu + 3.0)
    # The exact expression cancels to nu^-4; beyond 100 its own expansion is the accurate form.
    small = jnp.minimum(nu, 100.0)
    exact = (
        0.25 * (polygamma(1, small / 2.0) - polygamma(1, (small + 1.0) / 2.0))
        - (small + 5.0) / (2.0 * small * (small + 1.0) * (small + 3.0))
        - 2.0 / (small * (small + 1.0) ** 2 * (small + 3.0))
    )
    large = _student_t_series(1.0 / jnp.maximum(nu, 100.0))
    rest = jnp.where(nu > 100.0, large, exact)
    return stacked(
        jnp.sqrt((nu + 1.0) / (nu + 3.0)) * xi,
        jnp.sqrt(diagonal) * sigma + cross / jnp.sqrt(diagonal) * dfn.df,
        jnp.sqrt(rest) * dfn.df,
    )


def _student_t_series(w: Array) -> Array:
    # I_nu_nu less what sigma explains, expanded in w = 1/nu.
    return w**4 * (1.5 + w * (-3.0 + w * (3.5 + w * (-3.0 + w * (5.5 + w * (-15.0 + 7.5 * w))))))


@register_coframe(dist.Exponential)
def _exponential(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    return stacked(fn.rate * or_zero(dx), dfn.rate / fn.rate)


def trigamma_excess(a: Array) -> Array:
    """psi'(a) - 1/a, by its expansion where the difference would cancel."""
    w = 1.0 / jnp.maximum(a, 1e3)
    series = w**2 * (0.5 + w / 6.0 - w**3 / 30.0)
    small = jnp.minimum(a, 1e3)
    return jnp.where(a > 1e3, series, polygamma(1, small) - 1.0 / small)


@register_coframe(dist.Gamma)
def _gamma(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    a, b = jnp.asarray(fn.concentration), fn.rate
    dt = 0.0 if dx is None else dx / x
    first = jnp.sqrt(a) * (dt + dfn.rate / b - dfn.concentration / a)
    return stacked(first, jnp.sqrt(trigamma_excess(a)) * dfn.concentration)


@register_coframe(dist.LogNormal)
def _log_normal(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    s, sigma = fn.scale, dfn.base_dist.scale / fn.scale
    loc = dfn.base_dist.loc / s
    if dx is None:
        return stacked(loc, np.sqrt(2.0) * sigma)
    unit = jnp.exp(s**2 / 2.0 - fn.loc) * dx
    excess = jnp.expm1(s**2)
    rest = jnp.sqrt(excess + (excess - s**2) / s**2)  # E[s_x^2] less what loc and scale explain
    return stacked(loc - unit / s, np.sqrt(2.0) * (sigma + unit), rest * unit)


@register_coframe(dist.Dirichlet)
def _dirichlet(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    return _log_ratio(fn.concentration, dfn.concentration, None if dx is None else dx / x)


@register_coframe(dist.Beta)
def _beta(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    alpha = stacked(fn.concentration1, fn.concentration0)
    dalpha = stacked(dfn.concentration1, dfn.concentration0)
    return _log_ratio(alpha, dalpha, None if dx is None else stacked(dx / x, -dx / (1.0 - x)))


def _log_ratio(alpha: Array, dalpha: Array, dlog: Array | None) -> Array:
    """Dirichlet: Cov[alpha - alpha0 x, log x] in log-ratio coordinates and concentrations."""
    k, total = alpha.shape[-1], alpha.sum(-1, keepdims=True)[..., None]
    eye = jnp.broadcast_to(jnp.eye(k, dtype=alpha.dtype), (*alpha.shape, k))
    trigamma = polygamma(1, alpha)[..., None] * eye - polygamma(1, total)
    if dlog is None:
        return _apply_transposed_cholesky(trigamma, dalpha)
    mean = alpha / total[..., 0]
    own = total**2 / (total + 1.0) * (mean[..., None] * eye - mean[..., None] * mean[..., None, :])
    cross = mean[..., None] - eye
    own, cross = own[..., :-1, :-1], cross[..., :-1, :]
    form = jnp.concatenate(
        [
            jnp.concatenate([own, cross], -1),
            jnp.concatenate([jnp.swapaxes(cross, -1, -2), trigamma], -1),
        ],
        -2,
    )
    ratios = dlog[..., :-1] - dlog[..., -1:]
    shape = jnp.broadcast_shapes(ratios.shape[:-1], dalpha.shape[:-1])
    both = [jnp.broadcast_to(v, (*shape, v.shape[-1])) for v in (ratios, dalpha)]
    return _apply_transposed_cholesky(form, jnp.concatenate(both, -1))


@register_coframe(dist.Uniform)
def _uniform(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    # The bounds carry no Fisher information (the support moves); the logit of the place between
    # them is standard logistic.
    if dx is None:
        return jnp.zeros((*fn.batch_shape, 0))
    above, below = x - fn.low, fn.high - x
    return stacked(((dx - dfn.low) / above + (dx - dfn.high) / below) / np.sqrt(3.0))


@register_coframe(dist.BernoulliLogits)
def _bernoulli_logits(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    return stacked(dfn.logits * _sd_of_logit(fn.logits))


@register_coframe(dist.BernoulliProbs)
def _bernoulli_probs(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    return stacked(dfn.probs / jnp.sqrt(fn.probs * (1.0 - fn.probs)))


@register_coframe(dist.BinomialLogits)
def _binomial_logits(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    return stacked(_root_count(fn, fn.logits) * dfn.logits * _sd_of_logit(fn.logits))


@register_coframe(dist.BinomialProbs)
def _binomial_probs(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    deviation = jnp.sqrt(fn.probs * (1.0 - fn.probs))
    return stacked(_root_count(fn, fn.probs) * dfn.probs / deviation)


def _root_count(fn: Any, like: Any) -> Array:
    # square root of the number of trials, in the dtype of the parameters
    return jnp.sqrt(jnp.asarray(fn.total_count, jnp.result_type(like)))


def _sd_of_logit(logits: Any) -> Array:
    # sqrt(p (1 - p)) without forming 1 - p
    return jnp.exp(0.5 * (jax.nn.log_sigmoid(logits) + jax.nn.log_sigmoid(-logits)))


def _categorical_from_logits(logits: Array, dlogits: Array) -> Array:
    probs = jax.nn.softmax(logits, -1)
    return jnp.sqrt(probs) * (dlogits - jnp.sum(probs * dlogits, -1, keepdims=True))


def _categorical_from_probs(probs: Array, dprobs: Array) -> Array:
    total = probs.sum(-1, keepdims=True)
    q, dq = probs / total, (dprobs - probs / total * dprobs.sum(-1, keepdims=True)) / total
    present = q > 0
    return jnp.where(present, dq / jnp.sqrt(jnp.where(present, q, 1.0)), 0.0)


@register_coframe(dist.CategoricalLogits)
def _categorical_logits(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    return _categorical_from_logits(fn.logits, dfn.logits)


@register_coframe(dist.CategoricalProbs)
def _categorical_probs(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    return _categorical_from_probs(fn.probs, dfn.probs)


@register_coframe(dist.MultinomialLogits)
def _multinomial_logits(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    count = _root_count(fn, fn.logits)[..., None]
    return count * _categorical_from_logits(fn.logits, dfn.logits)


@register_coframe(dist.MultinomialProbs)
def _multinomial_probs(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    count = _root_count(fn, fn.probs)[..., None]
    return count * _categorical_from_probs(fn.probs, dfn.probs)


@register_coframe(dist.Poisson)
def _poisson(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    return stacked(dfn.rate / jnp.sqrt(fn.rate))


@register_coframe(dist.GeometricProbs)
def _geometric_probs(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    return stacked(dfn.probs / (fn.probs * jnp.sqrt(1.0 - fn.probs)))


@register_coframe(dist.GeometricLogits)
def _geometric_logits(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    return stacked(dfn.logits * jnp.exp(0.5 * jax.nn.log_sigmoid(-fn.logits)))


@register_coframe(dist.GammaPoisson)
def _gamma_poisson(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    c, rate = jnp.asarray(fn.concentration), fn.rate
    mean = c / rate
    dmean = dfn.concentration / rate - mean * dfn.rate / rate
    information = elementwise(_negative_binomial_dispersion)(*jnp.broadcast_arrays(c, mean))
    informed = information > 0  # below rounding in the Poisson limit
    root = jnp.where(informed, jnp.sqrt(jnp.where(informed, information, 1.0)), 0.0)
    return stacked(dmean / jnp.sqrt(mean + mean**2 / c), root * dfn.concentration)


def _double_exponential_nodes(count: int = 121, reach: float = 3.6) -> tuple[np.ndarray, ...]:
    t = np.linspace(-reach, reach, count)
    arg = np.pi / 2 * np.sinh(t)
    weight = (t[1] - t[0]) * np.pi / 4 * np.cosh(t) / np.cosh(arg) ** 2
    return -np.logaddexp(0.0, -2 * arg), weight  # log s and ds on (0, 1)


_LOG_S, _DS = _double_exponential_nodes()


def _negative_binomial_dispersion(c: Array, mean: Array) -> Array:
    """Fisher information of the concentration c at fixed mean, by 121-point quadrature.

    I = psi'(c) - E[psi'(c + x)] - q / c with q = mean / (mean + c). With u = 1 - e^-t, r = mean / c
    and M = E(e^(-t x)) = (1 + r u)^-c this is the integral, taken in s = e^(-c t), of

        e^(-c t) [(t / u - 1) (1 - M) - M r u / (1 + r u)],

    whose terms are c times smaller than those of I and so cancel less.
    """
    c, mean = c[..., None], mean[..., None]
    log_s, ds = _LOG_S.astype(c.dtype), _DS.astype(c.dtype)
    t, r = -log_s / c, mean / c
    u = -jnp.expm1(-t)
    log_m = -c * jnp.log1p(r * u)
    terms = -_stretch(t) * jnp.expm1(log_m) - jnp.exp(log_m) * r * u / (1.0 + r * u)
    return jnp.sum(ds * terms, -1) / c[..., 0]


def _stretch(t: Any) -> Array:
    # t / (1 - e^-t) - 1, by its expansion where the difference would cancel.
    near, far = jnp.minimum(t, 0.25), jnp.maximum(t, 0.25)
    w = near**2
    series = w * (1 / 12 - w * (1 / 720 - w * (1 / 30240 - w * (1 / 1209600 - w / 47900160))))
    return jnp.where(t < 0.25, 0.5 * near + series, -far / jnp.expm1(-far) - 1.0)
