"""Normal coordinates at a mode, in which draws follow the geodesics of the metric."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from volform.compilation import steady
from volform.errors import ConvergenceError
from volform.geometry.geodesic_motion import REACHED, framed, spread
from volform.geometry.metric import MatrixField
from volform.geometry.shooting import shoot
from volform.inference.laplace.gaussian_chart import (
    GaussianChart,
    UnconstrainedChart,
    sampling_chart,
)
from volform.models.posterior import Posterior

MOST_STEPS_OF_DRAWS = 256  # eight schools takes 20; those that run off to infinity take all
GEODESICS_AT_ONCE = 50  # geodesics: of more, some 100 numbers each in 14 stages leave the cache
STOPS = 8  # along a geodesic, where its Jacobi fields are looked at: a turn of pi/2 at 4 lengths


class ExponentialMap(eqx.Module):
    """Draws of a tangent Gaussian carried along geodesics: `u = exp_mode(v)`, as a value.

    The Gaussian is one in the tangent space at the mode of q^G, where the point is no better in one
    coordinate than in another. `exp` brings its draws v to the parameters, by `det D exp` with
    their exact density: the same law, whatever the coordinates. It is the argument `along` of
    `approx.sample`, `approx.log_prob` and `vf.Importance`. Where the metric is known to be flat,
    geodesics are straight in the chart that draws are Gaussian in anyway, and nothing changes.

    Attributes:
        tolerance: of the integration, relative to the length.

    Draws whose geodesic leaves the chart, or passes a conjugate point, where the density has no
    single preimage, are replaced (of weight zero in importance sampling) and counted with those
    outside of the support. Cost: of each draw a differential equation of d (d + 2) numbers.

    References:
        Bergamin, Moreno-Muñoz, Hauberg & Arvanitidis (2023), Riemannian Laplace approximations for
        Bayesian neural networks.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    ...     sigma = numpyro.sample("sigma", dist.HalfNormal(3.0))
    ...     numpyro.sample("y", dist.Normal(mu, sigma), obs=y)
    >>> model = vf.attach(model, vf.LikelihoodFisher())
    >>> approx = vf.laplace(vf.condition(model, jnp.array([0.5, 1.5, 2.5])))
    >>> approx.sample(jax.random.key(0), 100, along=ExponentialMap())
    100 draws (mu (100,), sigma (100,)), 0 replaced outside the support
    """

    tolerance: float = eqx.field(static=True, default=1e-6)

    def chart(self, posterior: Posterior, u: Float[Array, " d"]) -> GaussianChart:
        """Coordinates in which the draws around u are Gaussian."""
        flat = sampling_chart(posterior)
        return NormalChart(u, self.tolerance) if isinstance(flat, UnconstrainedChart) else flat


class NormalChart(GaussianChart):
    """Riemannian normal coordinates: w is the tangent vector with `exp_origin(w) = u`."""

    origin: Float[Array, " d"]
    tolerance: float = eqx.field(static=True)

    def placed(
        self, posterior: Posterior, w: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Float[Array, ""], Bool[Array, ""]]:
        """u at w, `log |det dw/du|`, and whether its geodesic is regular all the way."""
        frame = framed(_metric_of(posterior), self.origin, w)
        s, v = self.origin / frame.scale, w / frame.scale
        eye = jnp.eye(w.size, dtype=w.dtype)
        ends, fields, time = spread(
            frame,
            s,
            v,
            eye,
            derivatives=False,
            stops=STOPS,
            tolerance=self.tolerance,
            most=MOST_STEPS_OF_DRAWS,
        )
        u, log_det = frame.scale * ends[-1], -jnp.linalg.slogdet(fields[-1])[1]
        gram = jax.vmap(lambda s: frame.gram(s, eye))(jnp.concatenate([s[None], ends]))
        regular = (time >= 1.0) & jnp.isfinite(log_det) & _is_regular(gram, fields)
        return u, log_det, regular & jnp.all(jnp.isfinite(u))

    def flatten(
        self, posterior: Posterior, u: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """w at u by the shortest geodesic that is found, NaN if there is none."""
        found = shoot(_metric_of(posterior), self.origin, u)
        w = jnp.where(found.miss <= REACHED * found.flow.length, found.velocity, jnp.nan)
        _, log_det, regular = self.placed(posterior, w)
        return w, jnp.where(regular, log_det, jnp.nan)

    def unflatten(
        self, posterior: Posterior, w: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Bool[Array, ""]]:
        """The exponential map."""
        u, _, regular = self.placed(posterior, w)
        return u, regular

    def tangent(self, posterior: Posterior, u: Float[Array, " d"]) -> tuple:
        """At the origin: zero, where the derivatives are the identity."""
        return jnp.zeros_like(u), lambda v: v, lambda v: v, jnp.zeros((), u.dtype)

    def pushed(
        self, posterior: Posterior, u: Float[Array, " d"]
    ) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
        """w at u, and the Jacobian dw/du, by the logarithm where u is another mode.

        Raises:
            ConvergenceError: when no geodesic leads there.
        """
        if np.array_equal(u, self.origin):
            return np.zeros(u.size), np.eye(u.size)
        w, slope = map(np.asarray, _pushed_from(posterior, self, u))
        if not np.isfinite(slope).all():
            raise ConvergenceError(
                "No regular geodesic leads from the best mode to another one at u = "
                f"{np.array2string(np.asarray(u), precision=3, threshold=6)}, so that draws "
                "`along` geodesics of one chart do not reach it; leave `along` out."
            )
        return w, slope

    def __str__(self) -> str:
        return "draws Gaussian in normal coordinates, along geodesics"


def _metric_of(posterior: Posterior) -> MatrixField:
    return MatrixField(lambda u: posterior.metric(u).as_matrix())


def _is_regular(
    gram: Float[Array, "stops1 d d"], fields: Float[Array, "stops d d"]
) -> Bool[Array, ""]:
    """Tell whether no conjugate point was passed, by what the fields do from stop to stop.

    Between two stops that are near they are multiplied by the identity and a little that is
    symmetric, in orthonormal frames; past a conjugate point an eigenvalue of that is negative. The
    determinant alone sees none of two that are passed at once, as on a sphere in three dimensions.
    """
    lower = jnp.linalg.cholesky(gram)
    columns = jnp.swapaxes(fields, 1, 2)
    first = jnp.eye(columns.shape[1], dtype=columns.dtype)[None] / STOPS
    framed_fields = jnp.swapaxes(lower, 1, 2) @ jnp.concatenate([first, columns])
    before, after = framed_fields[:-1], framed_fields[1:]
    factor = jnp.swapaxes(
        jnp.linalg.solve(jnp.swapaxes(before, 1, 2), jnp.swapaxes(after, 1, 2)), 1, 2
    )
    return jnp.all(jnp.isfinite(jnp.linalg.cholesky(factor + jnp.swapaxes(factor, 1, 2))))


def placed_at(
    posterior: Posterior, chart: GaussianChart, w: Float[np.ndarray, "n d"]
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """u at points w of a chart, `log |det dw/du|`, and which are inside of it.

    One program of a fixed number of points, since it takes long to compile. Points outside are put
    to the first inside, where densities are finite.
    """
    found = []
    for start in range(0, len(w), GEODESICS_AT_ONCE):
        now = np.asarray(w[start : start + GEODESICS_AT_ONCE], jnp.result_type(float))
        filled = np.concatenate([now, np.repeat(now[:1], GEODESICS_AT_ONCE - len(now), axis=0)])
        found.append(
            [np.asarray(part)[: len(now)] for part in _placed_at(posterior, chart, filled)]
        )
    u, log_det, inside = map(np.concatenate, zip(*found, strict=True))
    safe = u[inside][:1] if inside.any() else np.zeros_like(u[:1])
    return np.where(inside[:, None], u, safe), np.where(inside, log_det, 0.0), inside


@steady
def _placed_at(posterior: Posterior, chart: GaussianChart, w: Float[Array, "n d"]) -> tuple:
    return jax.vmap(lambda w: chart.placed(posterior, w))(w)


@steady
def _pushed_from(
    posterior: Posterior, chart: NormalChart, u: Float[Array, " d"]
) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    w, log_det = chart.flatten(posterior, u)
    frame = framed(_metric_of(posterior), chart.origin, w)
    turns = jnp.diag(1.0 / frame.scale)
    s, v = chart.origin / frame.scale, w / frame.scale
    fields = frame.scale[None] * spread(frame, s, v, turns, derivatives=False)[1]
    return w, jnp.where(jnp.isfinite(log_det), jnp.linalg.inv(fields.T), jnp.nan)
