"""Probabilities of classes whose logits are Gaussian, as values: links."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray

from volform.checks import require_key, require_whole
from volform.errors import ModelError

# The logistic function is near the probit function of its argument times this root (MacKay 1992).
PROBIT = jnp.pi / 8.0


class Link(eqx.Module):
    """Predictive probabilities of classes with logits `f ~ Normal(m, C)`, as a value.

    `approx.predictive(x, by=Linearized(link=...))`. None is exact but `LogitDraws` in the limit.
    """

    @property
    @abc.abstractmethod
    def is_joint(self) -> bool:
        """Tell whether it asks for the covariance of the logits, and not only their variances."""

    @abc.abstractmethod
    def classes(self, logits: Float[Array, "... k"], covariance: Float[Array, "..."]) -> Any:
        """The distribution of a class.

        Args:
            logits: their means m.
            covariance: C, shape (..., k, k), or the variances (..., k) where it is not joint.
        """

    @abc.abstractmethod
    def binary(self, logits: Float[Array, "..."], variance: Float[Array, "..."]) -> Any:
        """The distribution of zero or one.

        Args:
            logits: of one.
            variance: of the logits.
        """


class AtMode(Link):
    """`softmax(m)`: the weights alone, to compare with."""

    @property
    def is_joint(self) -> bool:
        """Nothing of it is used."""
        return False

    def classes(self, logits: Float[Array, "... k"], covariance: Float[Array, "... k"]) -> Any:
        """The logits at the mode."""
        return dist.CategoricalLogits(logits)

    def binary(self, logits: Float[Array, "..."], variance: Float[Array, "..."]) -> Any:
        """The logit at the mode."""
        return dist.BernoulliLogits(logits)


class Probit(Link):
    """`softmax(m / sqrt(1 + pi C_kk / 8))`, by each logit's own variance.

    Of two classes MacKay's approximation of the integral, to .02; of more it keeps no promise: as
    all variances grow it tends to equal probabilities whatever the logits have in common.

    References:
        MacKay (1992), The evidence framework applied to classification networks; Gibbs (1997).
    """

    @property
    def is_joint(self) -> bool:
        """Variances only."""
        return False

    def classes(self, logits: Float[Array, "... k"], covariance: Float[Array, "... k"]) -> Any:
        """Logits moderated one by one."""
        return dist.CategoricalLogits(_moderated(logits, covariance))

    def binary(self, logits: Float[Array, "..."], variance: Float[Array, "..."]) -> Any:
        """The logit moderated."""
        return dist.BernoulliLogits(_moderated(logits, variance))


class LaplaceBridge(Link):
    """The mean of the Dirichlet distribution whose Laplace approximation the logits have.

    With m and C those of the logits less their mean, which `softmax` does not see (`P m`, `P C P`
    with `P = 1 - 1 1^T / K`), the concentrations are

        a_k = (1 - 2/K + e^(m_k) sum_l e^(-m_l) / K^2) / C_kk

    and the probabilities `a / sum a`. They do not tend to `softmax(m)` as C vanishes;
    of two classes they are `softmax(m)`, whatever C is. With
    `normalized` means and variances are first brought to a common size, `m / sqrt(v)` and `C / v`
    with `v = mean(C_kk) / sqrt(K / 2)`: with many classes of large variances the bridge is poor.
    The sources condition the logits on the sum zero in place of `P`: another distribution, with
    other probabilities, wherever the sum and the differences of logits vary together.

    Args:
        normalized: whether they are.

    References:
        MacKay (1998), Choice of basis for Laplace approximation; Hobbhahn, Kristiadi & Hennig
        (2022), Fast predictive uncertainty for classification with Bayesian deep networks.
    """

    normalized: bool = eqx.field(static=True, default=False)

    @property
    def is_joint(self) -> bool:
        """The covariance, for that of the differences."""
        return True

    def classes(self, logits: Float[Array, "... k"], covariance: Float[Array, "... k k"]) -> Any:
        """The mean of the Dirichlet distribution."""
        row = covariance.mean(-1)
        mean = logits - logits.mean(-1, keepdims=True)
        own = jnp.diagonal(covariance, axis1=-2, axis2=-1)
        variance = own - 2.0 * row + row.mean(-1, keepdims=True)
        # Of a class whose logit does not move the concentration is as large as can be.
        variance = jnp.maximum(variance, jnp.finfo(variance.dtype).tiny)
        size = logits.shape[-1]
        if self.normalized:
            common = variance.mean(-1, keepdims=True) / jnp.sqrt(size / 2.0)
            mean, variance = mean / jnp.sqrt(common), variance / common
        opposite = jax.nn.logsumexp(-mean, axis=-1, keepdims=True) - 2.0 * jnp.log(size)
        logs = jnp.logaddexp(jnp.log(1.0 - 2.0 / size), mean + opposite) - jnp.log(variance)
        return dist.CategoricalProbs(jax.nn.softmax(logs, axis=-1))

    def binary(self, logits: Float[Array, "..."], variance: Float[Array, "..."]) -> Any:
        """Not defined."""
        raise ModelError(
            "`link=LaplaceBridge()` is for classes with a logit each; of a Bernoulli, which has "
            "one, take `Probit()` or `LogitDraws(key)`."
        )


class MeanField(Link):
    """`p_k = 1 / sum_l exp(-(m_k - m_l) / sqrt(1 + pi V_kl / 8))`, then normalized.

    With V_kl the variance of `f_k - f_l` as the order has it: of order 0 `C_kk`, as if all other
    logits stood still; of order 1 `C_kk + C_ll`, as if they were independent; of order 2
    `C_kk + C_ll - 2 C_kl`, which does not change where a number is added to all logits.

    Args:
        order: 0, 1 or 2.

    References:
        Lu, Ie & Sha (2020), Mean-field approximation to Gaussian-softmax integral with application
        to uncertainty estimation.
    """

    order: int = eqx.field(static=True, default=2)

    def __check_init__(self) -> None:
        if type(self.order) is not int or self.order not in {0, 1, 2}:
            raise ModelError(
                f"`order` of MeanField is {self.order!r}; it should be 0 (variances of one logit), "
                "1 (of two, independent) or 2 (with their covariance)."
            )

    @property
    def is_joint(self) -> bool:
        """The covariance for order 2 only."""
        return self.order == 2

    def classes(self, logits: Float[Array, "... k"], covariance: Float[Array, "..."]) -> Any:
        """Sigmoids of all pairs."""
        own = jnp.diagonal(covariance, axis1=-2, axis2=-1) if self.is_joint else covariance
        spread = jnp.broadcast_to(own[..., :, None], (*own.shape, own.shape[-1]))
        if self.order > 0:
            spread = spread + own[..., None, :]
        if self.is_joint:
            spread = jnp.maximum(spread - 2.0 * covariance, 0.0)
        gaps = _moderated(logits[..., :, None] - logits[..., None, :], spread)
        return dist.CategoricalProbs(jax.nn.softmax(-jax.nn.logsumexp(-gaps, axis=-1), axis=-1))

    def binary(self, logits: Float[Array, "..."], variance: Float[Array, "..."]) -> Any:
        """The logit moderated, whatever the order: the other one is zero."""
        return dist.BernoulliLogits(_moderated(logits, variance))


class LogitDraws(Link):
    """The mean of `softmax(f)` over draws of the logits, with their joint covariance.

    The same normal numbers for each example, so that examples can be compared.

    Args:
        key: key of the draws.
        draws: number of them; the error falls as one over its root.
    """

    key: PRNGKeyArray
    draws: int = eqx.field(static=True, default=1000)

    def __check_init__(self) -> None:
        require_key(self.key, "key", "LogitDraws", ModelError)
        require_whole(self.draws, "draws", "LogitDraws", ModelError)

    @property
    def is_joint(self) -> bool:
        """The covariance."""
        return True

    def classes(self, logits: Float[Array, "... k"], covariance: Float[Array, "... k k"]) -> Any:
        """Means over draws."""
        size = logits.shape[-1]
        normal = jax.random.normal(self.key, (self.draws, size), logits.dtype)

        def of_example(pair: tuple[Array, Array]) -> Float[Array, " k"]:
            mean, own = pair
            values, axes = jnp.linalg.eigh(own)
            root = axes * jnp.sqrt(jnp.maximum(values, 0.0))[None]
            return jax.nn.softmax(mean[None] + normal @ root.T, axis=-1).mean(0)

        flat = logits.reshape(-1, size), covariance.reshape(-1, size, size)
        found = jax.lax.map(of_example, flat, batch_size=min(32, max(1, len(flat[0]))))
        return dist.CategoricalProbs(found.reshape(logits.shape))

    def binary(self, logits: Float[Array, "..."], variance: Float[Array, "..."]) -> Any:
        """Means over draws."""
        normal = jax.random.normal(self.key, (self.draws,), logits.dtype)
        each = jax.nn.sigmoid(logits[..., None] + jnp.sqrt(variance)[..., None] * normal)
        return dist.BernoulliProbs(each.mean(-1))


def _moderated(logits: Float[Array, "..."], variance: Float[Array, "..."]) -> Float[Array, "..."]:
    return logits / jnp.sqrt(1.0 + PROBIT * variance)
