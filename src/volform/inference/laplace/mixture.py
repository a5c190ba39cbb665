"""Proposals in the tangent space at the modes: mixtures of Gaussians or Student t."""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PRNGKeyArray

from volform.inference.laplace.gaussian_chart import GaussianChart
from volform.inference.modes.expansion import SecondOrder
from volform.models.posterior import Posterior


class Proposal(eqx.Module):
    """A mixture in the coordinates w of a chart, one component at each mode.

    Attributes:
        chart: the coordinates.
        centers: the modes, shape (m, d).
        factors: lower triangular L with L L^T = H^-1 in w, shape (m, d, d).
        whiteners: their inverses. Products with them need no triangular solve, of which XLA may
            run two batches at once, and jaxlib then deadlocks.
        log_weights: log weights of the components, shape (m,).
        df: degrees of freedom of Student's t; infinite for Gaussians.
    """

    chart: GaussianChart
    centers: Float[Array, "m d"]
    factors: Float[Array, "m d d"]
    whiteners: Float[Array, "m d d"]
    log_weights: Float[Array, " m"]
    df: float = eqx.field(static=True)

    def sample(self, key: PRNGKeyArray, draws: int) -> Float[Array, "n d"]:
        """Draws in w."""
        which, inner = jax.random.split(key)
        if len(self.centers) == 1:
            # NumPyro adds the center, a vector, to the draws, a matrix.
            with jax.numpy_rank_promotion("allow"):
                return jnp.asarray(self._component(0).sample(inner, (draws,)))
        chosen = jax.random.categorical(which, self.log_weights, shape=(draws,))
        keys = jax.random.split(inner, draws)
        each = jax.vmap(lambda key, m: jnp.asarray(self._component(m).sample(key)))
        return each(keys, chosen)

    def log_prob(self, w: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density at w with respect to Lebesgue measure in w."""
        return jax.nn.logsumexp(self.log_shares(w))

    def log_shares(self, w: Float[Array, " d"]) -> Float[Array, " m"]:
        """Log density of each component at w, times its weight."""
        z = jnp.einsum("mij,mj->mi", self.whiteners, w[None] - self.centers)
        squares, d = jnp.sum(z**2, axis=1), w.size
        if math.isinf(self.df):
            standard = -0.5 * squares - 0.5 * d * math.log(2.0 * math.pi)
        else:
            half = 0.5 * (self.df + d)
            constant = math.lgamma(half) - math.lgamma(0.5 * self.df)
            constant -= 0.5 * d * math.log(self.df * math.pi)
            standard = constant - half * jnp.log1p(squares / self.df)
        log_det = jnp.sum(jnp.log(jnp.diagonal(self.factors, axis1=1, axis2=2)), axis=1)
        return jax.nn.log_softmax(self.log_weights) + standard - log_det

    def _component(self, m: Array | int) -> dist.Distribution:
        if math.isinf(self.df):
            return dist.MultivariateNormal(self.centers[m], scale_tril=self.factors[m])
        return dist.MultivariateStudentT(self.df, self.centers[m], self.factors[m])


@eqx.filter_jit
def proposal_at(
    posterior: Posterior,
    chart: GaussianChart,
    modes: Sequence[SecondOrder],
    log_weights: Float[Array, " m"],
    df: float,
) -> Proposal:
    """The mixture with one component for each expansion, of covariance H^-1 (for t, scale)."""

    def component(at: SecondOrder) -> tuple[Array, Array]:
        center = chart.flatten(posterior, at.u)[0]
        push = jax.jacfwd(lambda u: chart.flatten(posterior, u)[0])(at.u)
        whitener = push @ at.whitener
        # L from the QR factors of W^T: no product W W^T loses half of the digits.
        upper = jnp.linalg.qr(whitener.T, mode="r")
        return center, upper.T * jnp.sign(jnp.diagonal(upper))[None]

    centers, factors = zip(*map(component, modes), strict=True)
    centers, factors = jnp.stack(centers), jnp.stack(factors)
    return Proposal(chart, centers, factors, _inverses(factors), log_weights, df)


def _inverses(factors: Float[Array, "m d d"]) -> Float[Array, "m d d"]:
    eye = jnp.eye(factors.shape[-1], dtype=factors.dtype)
    return jax.lax.map(lambda factor: solve_triangular(factor, eye, lower=True), factors)


class WeightedMoments(eqx.Module):
    """Sums over weighted draws from which a mixture is fitted, each component in its own units.

    Draws in parts give the sums of the parts, so that one program serves any number of rounds.

    Attributes:
        share: sum of the weights of each component, shape (m,).
        square: sum of their squares, shape (m,).
        mass: sum of weight times pull, shape (m,); pull is 1 for Gaussians, and small at far draws
            for t.
        mean: sum of weight times pull times z, shape (m, d).
        scatter: sum of weight times pull times z z^T, shape (m, d, d).
    """

    share: Float[Array, " m"]
    square: Float[Array, " m"]
    mass: Float[Array, " m"]
    mean: Float[Array, "m d"]
    scatter: Float[Array, "m d d"]

    def __add__(self, other: "WeightedMoments") -> "WeightedMoments":
        """Those of both sets of draws."""
        return jax.tree.map(jnp.add, self, other)


@eqx.filter_jit
def moments_of(
    proposal: Proposal, w: Float[Array, "n d"], weights: Float[Array, " n"]
) -> WeightedMoments:
    """The sums over draws w, given their weights, which each component takes its share of."""
    shares = weights[:, None] * jax.nn.softmax(jax.vmap(proposal.log_shares)(w), axis=1)
    d = w.shape[1]

    def component(shares: Array, center: Array, whitener: Array) -> WeightedMoments:
        z = (w - center[None]) @ whitener.T
        # Student t is a scale mixture of Gaussians: far draws count for less.
        pull = 1.0 if math.isinf(proposal.df) else (proposal.df + d) / (proposal.df + (z**2).sum(1))
        pulled = shares * pull
        scatter = z.T @ (pulled[:, None] * z)
        return WeightedMoments(shares.sum(), (shares**2).sum(), pulled.sum(), pulled @ z, scatter)

    return jax.vmap(component, (1, 0, 0))(shares, proposal.centers, proposal.whiteners)


@eqx.filter_jit
def adapted(proposal: Proposal, moments: WeightedMoments) -> Proposal:
    """One step of EM of the mixture toward weighted draws.

    The covariance is shrunk toward the one before by what the effective number of draws of each
    component leaves undecided: as a Wishart prior of as many draws as it has free numbers, and the
    mean has. With d + 2 of them, which a covariance needs to exist, importance sampling in 40 and
    more dimensions was off by its proposal's noise.

    References:
        Cappe, Douc, Guillin, Marin & Robert (2008), adaptive importance sampling in general
        mixture classes, sections 3.2 and 4.
    """
    d = proposal.centers.shape[1]
    undecided = 0.5 * d * (d + 3)

    def component(of: tuple[WeightedMoments, Array, Array]) -> tuple[Array, Array]:
        sums, center, factor = of
        mean = sums.mean / sums.mass
        scatter = (sums.scatter - jnp.outer(sums.mean, mean)) / sums.share
        kept = undecided / (sums.share**2 / sums.square + undecided)
        scale = (1.0 - kept) * scatter + kept * jnp.eye(d, dtype=center.dtype)
        return center + factor @ mean, factor @ jnp.linalg.cholesky(scale)

    fitted = moments, proposal.centers, proposal.factors
    centers, factors = jax.lax.map(component, fitted)
    log_shares = jnp.log(moments.share + 1e-3 / len(moments.share))
    inverses = _inverses(factors)
    return Proposal(proposal.chart, centers, factors, inverses, log_shares, proposal.df)
