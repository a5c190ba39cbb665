"""Symmetries of a density, and the number of distinct images of a point under them."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import volform as vf
from volform.models.symmetries import count_images, find_symmetries, images, is_fixed_point

KEY = jax.random.key(0)
Y = jnp.array([-1.3, 0.2, 0.9, 2.4])


def weights(*shape: int) -> Any:
    return dist.Normal(jnp.zeros(shape), 1.0).to_event(len(shape))


def mixture(y: Any) -> None:
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))
    mu = numpyro.sample("mu", dist.Normal(0.5, 5.0).expand([3]).to_event(1))
    s = numpyro.sample("s", dist.HalfNormal(1.0).expand([3]).to_event(1))
    numpyro.sample(
        "y", dist.MixtureSameFamily(dist.Categorical(probs=w), dist.Normal(mu, s)), obs=y
    )


def network(y: Any) -> None:
    a, b, c = (numpyro.sample(n, weights(*s)) for n, s in (("a", (2, 3)), ("b", (3,)), ("c", (3,))))
    x = jnp.array([[0.1, 1.0], [0.5, -1.0], [2.0, 0.3], [-0.7, 0.4]])
    numpyro.sample("y", dist.Normal(jnp.tanh(x @ a + b[None]) @ c, 0.1), obs=y)


def answers(y: Any) -> None:
    ability, slope = numpyro.sample("ability", weights(4)), numpyro.sample("slope", weights(1))
    numpyro.sample("y", dist.Normal(ability * slope, 1.0), obs=y)


def regression(y: Any) -> None:
    slope, scale = (
        numpyro.sample("slope", dist.Normal(0, 1)),
        numpyro.sample("scale", dist.Gamma(2, 2)),
    )
    numpyro.sample("y", dist.Normal(slope * jnp.arange(4.0), scale), obs=y)


CASES = {
    "mixture": (mixture, ["exchange of w, mu, s"], math.factorial(3)),
    "network": (
        network,
        ["exchange of a, b, c", "change of sign of a, b, c"],
        math.factorial(3) * 2**3,
    ),
    "answers": (answers, ["change of sign of ability, slope"], 2),
    "regression": (regression, [], 1),
}


@pytest.mark.parametrize("name", CASES)
def test_symmetries_and_images(name: str) -> None:
    model, expected, count = CASES[name]
    posterior = vf.condition(model, Y)
    bound = posterior.bound_model
    found = find_symmetries(bound, KEY)
    assert [str(symmetry) for symmetry in found] == expected
    u = jax.random.normal(jax.random.key(1), (posterior.dim,))
    assert count_images(bound, found, u) == count
    orbit = images(bound, found, u, 100)
    assert len(orbit) == count
    heights = [float(posterior.log_density(jnp.asarray(point))) for point in orbit]
    np.testing.assert_allclose(heights, heights[0], rtol=1e-9)


def test_a_unit_that_is_idle_has_fewer_images() -> None:
    bound = vf.condition(network, Y).bound_model
    found = find_symmetries(bound, KEY)
    values = {
        "a": jnp.ones((2, 3)),
        "b": jnp.array([1.0, 2.0, 0.0]),
        "c": jnp.array([1.0, 3.0, 0.0]),
    }
    values["a"] = values["a"].at[:, 2].set(0.0)
    u = bound.layout.unconstrain(values)
    assert count_images(bound, found, u) == len(images(bound, found, u, 100)) == 24


def test_a_fixed_point_is_said() -> None:
    bound = vf.condition(answers, Y).bound_model
    (sign,) = find_symmetries(bound, KEY)
    assert is_fixed_point(bound, sign, jnp.zeros(5))
    assert not is_fixed_point(bound, sign, jnp.ones(5))
