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
        log_weights: log weights of the components, shape (m,).
        df: degrees of freedom of Student's t; infinite for Gaussians.
    """

    chart: GaussianChart
    centers: Float[Array, "m d"]
    factors: Float[Array, "m d d"]
    log_weights: Float[Array, " m"]
    df: float = eqx.field(static=True)

    def sample(self, key: PRNGKeyArray, draws: int) -> Float[Array, "n d"]:
        """Draws in w."""
        which, inner = jax.random.split(key)
        if len(self.centers) == 1:
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
        each = [jnp.asarray(self._component(m).log_prob(w)) for m in range(len(self.centers))]
        return jax.nn.log_softmax(self.log_weights) + jnp.stack(each)

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
        return center, upper.T * jnp.sign(jnp.diagonal(upper))

    centers, factors = zip(*map(component, modes), strict=True)
    return Proposal(chart, jnp.stack(centers), jnp.stack(factors), log_weights, df)


@eqx.filter_jit
def adapted(
    proposal: Proposal, w: Float[Array, "n d"], log_weights: Float[Array, " n"]
) -> Proposal:
    """One step of EM of the mixture toward weighted draws from it.

    The covariance is shrunk toward the one before by what the effective number of draws of each
    component leaves undecided.

    References:
        Cappe, Douc, Guillin, Marin & Robert (2008), adaptive importance sampling in general
        mixture classes, sections 3.2 and 4.
    """
    d = w.shape[1]
    weights = jax.nn.softmax(log_weights)[:, None] * jax.nn.softmax(
        jax.vmap(proposal.log_shares)(w), axis=1
    )

    def component(weights: Array, center: Array, factor: Array) -> tuple[Array, Array]:
        share, effective = weights.sum(), weights.sum() ** 2 / (weights**2).sum()
        z = solve_triangular(factor, (w - center).T, lower=True).T
        # Student t is a scale mixture of Gaussians: far draws count for less.
        pull = 1.0 if math.isinf(proposal.df) else (proposal.df + d) / (proposal.df + (z**2).sum(1))
        mean = (weights * pull) @ z / (weights * pull).sum()
        scatter = (z - mean).T @ ((weights * pull / share)[:, None] * (z - mean))
        # As a Wishart prior of the fewest degrees of freedom with a mean, at the scale before.
        kept = (d + 2.0) / (effective + d + 2.0)
        scale = (1.0 - kept) * scatter + kept * jnp.eye(d, dtype=w.dtype)
        return center + factor @ mean, factor @ jnp.linalg.cholesky(scale)

    centers, factors = jax.vmap(component, (1, 0, 0))(weights, proposal.centers, proposal.factors)
    log_shares = jnp.log(weights.sum(0) + 1e-3 / weights.shape[1])
    return Proposal(proposal.chart, centers, factors, log_shares, proposal.df)
