"""Hyperparameters learned during a training: where there is a mode, those of highest evidence."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpy.testing import assert_allclose
from numpyro.distributions import constraints

import volform as vf
from volform import networks as nn
from volform.errors import ConvergenceError, ModelError, OperatorError, UnknownSiteError
from volform.inference import train_by_evidence

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(20, 3)))
Y = jnp.asarray(X @ np.array([1.0, -2.0, 0.5]) + 0.5 * RNG.normal(size=20))
POSITIVE = {"scale": constraints.positive, "noise": constraints.positive}


def regression(x: Any, y: Any, h: Any) -> None:
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(x.shape[1]), h["scale"]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ beta, h["noise"]), obs=y)


def linear(h: Any) -> vf.models.Posterior:
    return vf.condition(regression, X, Y, h)


@pytest.mark.standard_promotion  # optax counts steps in integers
def test_of_a_linear_model_it_is_the_highest_evidence() -> None:
    start = {"scale": 1.0, "noise": 1.0}
    best = vf.maximize_evidence(linear, start, supports=POSITIVE)
    found = train_by_evidence(
        linear,
        start,
        {"beta": jnp.zeros(3)},
        supports=POSITIVE,
        optimizer=optax.adam(0.03),
        outer=optax.adam(0.03),
        rounds=100,
        steps=20,
    )
    for name, value in best.hyperparameters.items():
        assert_allclose(found.hyperparameters[name], value, rtol=1e-3)
    assert_allclose(found.approx.evidence.log_z, best.approx.evidence.log_z, atol=1e-4)
    assert found.converged
    assert found.history is not None
    assert found.history.shape == (100,)


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_scales_of_layers_and_noise_of_a_network() -> None:
    net = nn.MLP(widths=(5,), b_std=1.0)
    x = jnp.linspace(-1.5, 1.5, 40)[:, None]
    y = jnp.sin(2.0 * x) + 0.2 * jnp.asarray(RNG.normal(size=(40, 1)))
    shapes = {p.name: p.shape for p in net.parameters(1)}

    def model(x: Any, y: Any, h: Any) -> None:
        params = {
            name: numpyro.sample(name, dist.Normal(0.0, scale).expand(shape).to_event(len(shape)))
            for (name, shape), scale in zip(shapes.items(), h["scale"], strict=True)
        }
        numpyro.sample("y", dist.Normal(net.apply(params, x), h["noise"]), obs=y)

    found = train_by_evidence(
        lambda h: vf.condition(model, x, y, h),
        {"scale": jnp.ones(4), "noise": 1.0},
        net.init(jax.random.key(0), 1),
        supports=POSITIVE,
        rounds=60,
    )
    assert found.history is not None
    assert found.history[-1] > found.history[0] + 10.0
    assert 0.15 < float(found.hyperparameters["noise"]) < 0.25
    assert "noise" in repr(found)


@pytest.mark.standard_promotion
def test_what_is_refused() -> None:
    at = {"beta": jnp.zeros(3)}
    start = {"scale": 1.0, "noise": 1.0}
    with pytest.raises(UnknownSiteError, match="`at` lacks the latent sites"):
        train_by_evidence(linear, start, {}, supports=POSITIVE)
    with pytest.raises(ModelError, match=r"`supports` names \['width'\]"):
        train_by_evidence(linear, start, at, supports={"width": constraints.positive})
    with pytest.raises(OperatorError, match="`rounds` of train_by_evidence is 0"):
        train_by_evidence(linear, start, at, supports=POSITIVE, rounds=0)
    with pytest.raises(ConvergenceError, match="log Z is nan with `hyperparameters`"):
        train_by_evidence(linear, start, at, outer=optax.sgd(1e6), rounds=2)
