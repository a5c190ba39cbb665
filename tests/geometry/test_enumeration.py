"""Information by enumeration of a finite support, against a sum over it by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy.special import digamma
from scipy.stats import betabinom

import volform as vf
from volform.errors import MetricError
from volform.geometry import choose_route, dependence
from volform.geometry.fisher_routes import Enumeration

pytestmark = pytest.mark.standard_promotion  # BetaBinomial mixes its counts with floats

A, B = 1.5, 4.0
COUNTS = np.array([3, 10, 0])
MASK = jnp.array([True, False, True])
RTOL = 1e-6  # NumPyro's log_prob has 7 digits
ARRAYS = pytest.mark.parametrize("array", [np.array, jnp.array], ids=["numpy", "jax"])


def by_hand(n, a=A, b=B):
    k = np.arange(n + 1.0)
    common = digamma(a + b) - digamma(n + a + b)
    scores = np.stack(
        [digamma(k + a) - digamma(a) + common, digamma(n - k + b) - digamma(b) + common], -1
    )
    return scores.T @ (betabinom.pmf(k, n, a, b)[:, None] * scores)


def fisher(family):
    z = jnp.array([A, B])
    return jax.jit(lambda z: vf.Fisher(lambda z: family(*z))(z).as_matrix())(z)


def test_equal_counts():
    def family(a, b):
        return dist.BetaBinomial(a, b, 10)

    moving = dependence(lambda z: family(*z), jnp.ones(2))
    assert isinstance(choose_route(family(A, B), latent=False, moving=moving), Enumeration)
    assert_allclose(fisher(family), by_hand(10), rtol=RTOL)
    assert_allclose(fisher(lambda a, b: family(a, b).expand([3])), 3.0 * by_hand(10), rtol=RTOL)
    masked = fisher(lambda a, b: dist.BetaBinomial(a * jnp.ones(3), b, 10).mask(MASK))
    assert_allclose(masked, 2.0 * by_hand(10), rtol=RTOL)


@ARRAYS
@pytest.mark.parametrize("ones", [1.0, jnp.ones(3)], ids=["scalar", "batch"])
def test_counts_that_differ(array, ones):
    counts = array(COUNTS)

    def family(a, b):
        return dist.BetaBinomial(a * ones, b, counts)

    total = sum(by_hand(n) for n in COUNTS)
    assert_allclose(fisher(family), total, rtol=RTOL)
    assert_allclose(fisher(lambda a, b: family(a, b).mask(MASK)), by_hand(3), rtol=RTOL)
    assert_allclose(fisher(lambda a, b: family(a, b).expand([2, 3])), 2.0 * total, rtol=RTOL)


def counts_of_successes(n, y):
    a = numpyro.sample("a", dist.HalfNormal(1.0))
    b = numpyro.sample("b", dist.HalfNormal(1.0))
    with numpyro.plate("trial", 3):
        numpyro.sample("y", dist.BetaBinomial(a, b, n), obs=y)


@pytest.mark.parametrize(
    "n", [10, jnp.array(10), COUNTS, jnp.array(COUNTS)], ids=lambda n: f"{type(n).__name__} {n}"
)
def test_counts_that_are_data_of_a_model(n):
    model = vf.attach(counts_of_successes, vf.LikelihoodFisher())
    posterior = vf.condition(model, n, jnp.zeros(3, int))
    u = posterior.unconstrain({"a": A, "b": B})
    found = jax.jit(lambda posterior, u: posterior.metric(u).as_matrix())(posterior, u)
    expected = sum(by_hand(count) for count in np.broadcast_to(n, 3))
    assert_allclose(found, expected * np.outer([A, B], [A, B]), rtol=RTOL)  # in the logarithms


def test_traced_counts_need_a_key():
    def information(count):
        return vf.Fisher(lambda a: dist.BetaBinomial(a, B, count))(jnp.array(A)).as_matrix()

    with pytest.raises(MetricError, match=r"`BetaBinomial` at `family` has no closed form.*key="):
        jax.jit(information)(jnp.array([3, 4]))
