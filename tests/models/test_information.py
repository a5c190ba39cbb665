"""LikelihoodFisher and JointFisher against expectations of scores by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro import handlers

import volform as vf

from .scores import expected_gram

KEY = jax.random.key(0)
X = jnp.array([[0.5, -1.0], [1.5, 0.3], [-0.7, 0.8], [0.2, 0.1]])
Y = jnp.array([0.3, -0.5, 1.2, 0.4])
G = jnp.array([0, 1, 1, 0])


def hierarchical_normal(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.5))
    with numpyro.plate("groups", 2):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(theta[G], 0.7), obs=y)


def heavy_tails(y):
    tau = numpyro.sample("tau", dist.HalfCauchy(1.5))
    loc = numpyro.sample("loc", dist.Cauchy(0.0, tau))
    df = numpyro.sample("df", dist.LogNormal(1.0, 0.5))
    scale = numpyro.sample("scale", dist.Exponential(0.8))
    numpyro.sample("y", dist.StudentT(df, loc, scale), obs=y)


def logistic_regression(y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, scale).expand([2]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=X @ beta), obs=y)


def counts(y):
    shape = numpyro.sample("shape", dist.LogNormal(0.5, 0.3))
    rate = numpyro.sample("rate", dist.Gamma(shape, 2.0).expand([2]))
    numpyro.sample("y", dist.Poisson(rate[G]), obs=y)


def overdispersed_counts(y):
    mean = numpyro.sample("mean", dist.Gamma(2.0, 0.5))
    concentration = numpyro.sample("concentration", dist.InverseGamma(3.0, 4.0))
    numpyro.sample("y", dist.NegativeBinomial2(mean, concentration), obs=y)


def variances(y):
    alpha = numpyro.sample("alpha", dist.Gamma(3.0, 1.0))
    beta = numpyro.sample("beta", dist.LogNormal(0.0, 0.4))
    variance = numpyro.sample("variance", dist.InverseGamma(alpha, beta))
    numpyro.sample("y", dist.LogNormal(0.0, jnp.sqrt(variance)), obs=jnp.exp(y))


def proportions(y):
    a = numpyro.sample("a", dist.LogNormal(0.7, 0.3))
    p = numpyro.sample("p", dist.Beta(a, 2.0))
    q = numpyro.sample("q", dist.Uniform(0.0, 0.8))
    with numpyro.plate("n", 4):
        numpyro.sample("successes", dist.Binomial(jnp.array([5, 8, 3, 4]), p), obs=y)
        numpyro.sample("tails", dist.Geometric(q), obs=y)


def softmax_regression(y):
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    numpyro.sample("y", dist.Categorical(logits=X @ weights), obs=y)


def class_probabilities(y):
    scale = numpyro.sample("scale", dist.LogNormal(1.0, 0.3))
    p = numpyro.sample("p", dist.Dirichlet(scale * jnp.array([1.0, 1.5, 2.0])))
    numpyro.sample("y", dist.Categorical(probs=p), obs=y)


def ordered_levels(y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    cuts = numpyro.sample(
        "cuts",
        dist.TransformedDistribution(
            dist.Normal(0.0, 1.0).expand([2]), dist.transforms.OrderedTransform()
        ),
    )
    numpyro.sample("y", dist.OrderedLogistic(slope * X[:, 0], cuts), obs=y)


def covariance(y):
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    factor = numpyro.sample("factor", dist.LKJCholesky(2, 1.5))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.4).expand([2]).to_event(1))
    tril = scale[:, None] * factor
    numpyro.sample("y", dist.MultivariateNormal(loc, scale_tril=tril), obs=y)


def gaussian_process(y):
    length = numpyro.sample("length", dist.InverseGamma(3.0, 2.0))
    kernel = jnp.exp(-0.5 / length**2) * jnp.ones((2, 2)) + 0.5 * jnp.eye(2)
    f = numpyro.sample("f", dist.MultivariateNormal(jnp.zeros(2), kernel))
    numpyro.sample("y", dist.Normal(f[G], 0.5), obs=y)


def mixture(y):
    weight = numpyro.sample("weight", dist.Beta(2.0, 2.0))
    gap = numpyro.sample("gap", dist.LogNormal(0.5, 0.2))
    components = dist.Normal(jnp.stack([-gap, gap]), 1.0)
    mixing = dist.Categorical(probs=jnp.stack([weight, 1.0 - weight]))
    numpyro.sample("y", dist.MixtureSameFamily(mixing, components), obs=y)


def directions(y):
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
    kappa = numpyro.sample("kappa", dist.LogNormal(0.5, 0.3))
    numpyro.sample("y", dist.VonMises(loc, kappa), obs=y)


EXACT = {
    hierarchical_normal: Y,
    heavy_tails: Y,
    logistic_regression: jnp.array([1, 0, 1, 1]),
    counts: jnp.array([1, 0, 3, 2]),
    overdispersed_counts: jnp.array([1, 0, 3, 2]),
    variances: Y,
    proportions: jnp.array([1, 0, 3, 2]),
    softmax_regression: jnp.array([2, 0, 1, 1]),
    class_probabilities: jnp.array([2, 0, 1, 1]),
    gaussian_process: Y,
}
# Sites for which there is no closed form, and how far draws may be off.
BY_DRAWS = {
    covariance: (X, 0.05),
    mixture: (Y, 0.1),
    directions: (Y, 0.1),
    ordered_levels: (jnp.array([2, 0, 1, 1]), 0.1),
}
STANDARD = {logistic_regression, proportions, covariance}


def cases(models):
    mixing = pytest.mark.standard_promotion
    return [
        pytest.param(model, id=model.__name__, marks=mixing if model in STANDARD else ())
        for model in models
    ]


def both(model, data, metric, *, latent):
    """The metric at a random u, and by brute force."""
    posterior = vf.condition(vf.attach(model, metric), data)
    u = jnp.asarray(np.random.default_rng(1).uniform(-0.7, 0.7, posterior.dim))
    expected = expected_gram(posterior, model, (data,), latent=latent)
    return jax.jit(lambda u: (posterior.metric(u).as_matrix(), expected(u)))(u)


@pytest.mark.parametrize("model", cases(EXACT))
def test_joint_and_likelihood_fisher(model):
    data = EXACT[model]
    actual, expected = both(model, data, vf.JointFisher(), latent=True)
    assert_allclose(actual, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    assert np.linalg.eigvalsh(actual).min() > 0
    actual, expected = both(model, data, vf.LikelihoodFisher(), latent=False)
    assert_allclose(actual, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("model", cases(BY_DRAWS))
def test_by_draws(model):
    data, off = BY_DRAWS[model]
    metric = vf.JointFisher(key=KEY, draws=4096)
    actual, expected = both(model, data, metric, latent=True)
    assert_allclose(actual, expected, atol=off * np.abs(expected).max())
