"""Ten small models with data of their own, as people write them first."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

RANDOM = np.random.default_rng(1)
SIGMA = jnp.array([15.0, 10, 16, 11, 9, 11, 10, 18])
SCHOOLS = jnp.array([28.0, 8, -3, 7, -1, 1, 18, 12])
X = RANDOM.normal(size=(60, 6))
T = X[:, :3] @ np.array([1.0, -0.5, 0.2]) + RANDOM.standard_t(4, 60)
CLASS = (RANDOM.uniform(size=60) < 1 / (1 + np.exp(-X @ np.linspace(-1, 1, 6)))).astype(float)
PAIRS = RANDOM.multivariate_normal(np.zeros(3), 0.5 + 0.5 * np.eye(3), 30)
COUNTS = RANDOM.poisson(4.0, 20)
CLUSTERS = np.concatenate([RANDOM.normal(-2, 0.7, 25), RANDOM.normal(2, 1.0, 35)])


def eight_schools(sigma: Any, y: Any = None) -> None:
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def gamma_poisson(y: Any) -> None:
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    numpyro.sample("y", dist.Poisson(rate), obs=y)


def beta_binomial(y: Any) -> None:
    p = numpyro.sample("p", dist.Beta(2.0, 2.0))
    numpyro.sample("y", dist.Binomial(9, p), obs=y)


def student_t(x: Any, y: Any) -> None:
    b = numpyro.sample("b", dist.Normal(0, 2).expand([3]).to_event(1))
    scale = numpyro.sample("scale", dist.HalfNormal(2.0))
    numpyro.sample("y", dist.StudentT(4.0, x @ b, scale), obs=y)


def logistic(x: Any, y: Any) -> None:
    b = numpyro.sample("b", dist.Normal(0, 2).expand([6]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)


def correlated(y: Any) -> None:
    mean = numpyro.sample("mean", dist.Normal(0, 1).expand([3]).to_event(1))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0).expand([3]).to_event(1))
    root = numpyro.sample("root", dist.LKJCholesky(3, 2.0))
    numpyro.sample("y", dist.MultivariateNormal(mean, scale_tril=scale[:, None] * root), obs=y)


def negative_binomial(y: Any) -> None:
    mean = numpyro.sample("mean", dist.LogNormal(1.0, 1.0))
    spread = numpyro.sample("spread", dist.Exponential(0.5))
    numpyro.sample("y", dist.NegativeBinomial2(mean, spread), obs=y)


def dirichlet(y: Any) -> None:
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(4)))
    numpyro.sample("y", dist.Multinomial(40, p), obs=y)


def cauchy(y: Any) -> None:
    at = numpyro.sample("at", dist.Normal(0, 10))
    scale = numpyro.sample("scale", dist.HalfNormal(5.0))
    numpyro.sample("y", dist.Cauchy(at, scale), obs=y)


def mixture(y: Any) -> None:
    share = numpyro.sample("share", dist.Beta(2.0, 2.0))
    at = numpyro.sample("at", dist.Normal(0, 3).expand([2]).to_event(1))
    scale = numpyro.sample("scale", dist.HalfNormal(2.0).expand([2]).to_event(1))
    shares = dist.Categorical(jnp.stack([share, 1.0 - share]))
    numpyro.sample("y", dist.MixtureSameFamily(shares, dist.Normal(at, scale)), obs=y)


MODELS: dict[str, tuple[Callable, tuple[Any, ...]]] = {
    "eight schools": (eight_schools, (SIGMA, SCHOOLS)),
    "gamma-Poisson": (gamma_poisson, (jnp.asarray(COUNTS),)),
    "beta-binomial": (beta_binomial, (jnp.array([6.0, 3.0, 7.0]),)),
    "Student t regression": (student_t, (jnp.asarray(X[:, :3]), jnp.asarray(T))),
    "logistic regression": (logistic, (jnp.asarray(X), jnp.asarray(CLASS))),
    "correlation (LKJ)": (correlated, (jnp.asarray(PAIRS),)),
    "negative binomial": (negative_binomial, (jnp.asarray(COUNTS),)),
    "Dirichlet": (dirichlet, (jnp.array([12.0, 9.0, 4.0, 15.0]),)),
    "Cauchy, 4 data": (cauchy, (jnp.array([-1.2, 0.4, 3.1, 14.0]),)),
    "mixture": (mixture, (jnp.asarray(CLUSTERS),)),
}


def six_multinomials(counts: Any) -> None:
    """Twelve parameters, written with a Python loop."""
    for i in range(6):
        a = numpyro.sample(f"a{i}", dist.Normal(0, 1))
        b = numpyro.sample(f"b{i}", dist.Normal(0, 1))
        p = jnp.exp(jnp.array([0.0, 1.0, 2.0]) * a + b * jnp.array([0.0, 1.0, 0.0]))
        numpyro.sample(f"y{i}", dist.Multinomial(30, p / p.sum()), obs=counts[i])


SIX_COUNTS = jnp.asarray(RANDOM.multinomial(30, [0.5, 0.3, 0.2], 6))
