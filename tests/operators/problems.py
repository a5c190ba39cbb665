"""Losses, networks and likelihoods that the tests of operators run over."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

X = jnp.linspace(-1.0, 2.0, 14).reshape(7, 2)
KEYS = jax.random.split(jax.random.key(7), 3)
PARAMS = {
    "hidden": 0.7 * jax.random.normal(KEYS[0], (2, 3)),
    "out": 0.7 * jax.random.normal(KEYS[1], (3, 2)),
    "shift": jnp.array([0.3, -0.2]),
}


def loss(params):
    """No quadratic, no symmetry, indefinite at PARAMS."""
    z = jnp.tanh(X @ params["hidden"]) @ params["out"] + params["shift"][None]
    return jnp.sum(jnp.sin(z) * z) + 0.5 * jnp.sum(params["shift"] ** 4)


def network(params, x):
    return jnp.tanh(x @ params["hidden"]) @ params["out"] + params["shift"]


def scalar(params, x):
    return network(params, x)[0]


def pair(params, x):
    z = network(params, x)
    return z[0], z[1]


COUNTS = jnp.array([0.0, 1.0, 3.0, 0.0, 2.0, 5.0, 1.0])
REAL = jnp.sin(jnp.arange(7.0))
PAIRS = jnp.stack([REAL, jnp.cos(REAL)], -1)
LABELS = jnp.array([0, 1, 1, 0, 1, 0, 0])

# name: network, likelihood, y, whether Gauss-Newton is Fisher
FAMILIES = {
    "Normal": (scalar, lambda z: dist.Normal(z, 0.5), REAL, True),
    "Normal, two outputs": (network, lambda z: dist.Normal(z, 0.5).to_event(1), PAIRS, True),
    "Bernoulli": (
        scalar,
        lambda z: dist.BernoulliLogits(z, validate_args=False),
        LABELS.astype(float),
        True,
    ),
    "Categorical": (network, lambda z: dist.CategoricalLogits(z), LABELS, True),
    "Poisson of log rate": (scalar, lambda z: dist.Poisson(jnp.exp(z)), COUNTS, True),
    "Poisson of rate": (scalar, lambda z: dist.Poisson(jax.nn.softplus(z)), COUNTS, False),
    "Student t": (scalar, lambda z: dist.StudentT(3.0, z, 0.5), REAL, False),
    "Normal, location and scale": (pair, lambda m, s: dist.Normal(m, jnp.exp(s)), REAL, False),
}
