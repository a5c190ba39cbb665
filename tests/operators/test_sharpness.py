"""Sharpness in the metric of an optimizer, and what does and does not depend on coordinates."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose
from tests.operators.problems import PARAMS, loss

import volform as vf
from volform.linalg import Krylov, trace, under_metric
from volform.operators import hessian, optimizer_metric, sharpness

KRYLOV = Krylov(jax.random.key(3), probes=8, depth=6)
# optax mixes weak and integer types
pytestmark = pytest.mark.standard_promotion


def stepped(optimizer, steps=3):
    """The state after some steps, the parameters there, and the gradients on the way."""
    params, state, gradients = PARAMS, optimizer.init(PARAMS), []
    for _ in range(steps):
        gradients.append(jax.grad(loss)(params))
        updates, state = optimizer.update(gradients[-1], state, params)
        params = optax.apply_updates(params, updates)
    return state, params, gradients


def averaged_squares(gradients, decay):
    total = jax.tree.map(jnp.zeros_like, PARAMS)
    for g in gradients:
        total = jax.tree.map(lambda t, g: decay * t + (1 - decay) * g**2, total, g)
    return total


def adam_weights(gradients, decay=0.999, eps=1e-8):
    unbiased = 1 - decay ** len(gradients)
    squares = averaged_squares(gradients, decay)
    return jax.tree.map(lambda v: jnp.sqrt(v / unbiased) + eps, squares)


ADAM = {
    "adam": optax.adam(1e-2),
    "adamw": optax.adamw(1e-2),
    "chain": optax.chain(optax.clip_by_global_norm(1e9), optax.adam(1e-2)),
    "schedule": optax.adam(optax.exponential_decay(1e-2, 10, 0.9)),
    "MultiSteps": optax.MultiSteps(optax.adam(1e-2), 1),
    "masked": optax.masked(optax.adam(1e-2), True),
    "apply_if_finite": optax.apply_if_finite(optax.adam(1e-2), 3),
}


@pytest.mark.parametrize("name", ADAM)
def test_metric_of_adam(name):
    state, params, gradients = stepped(ADAM[name])
    found = optimizer_metric(state)(params).diagonal
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-8), found, adam_weights(gradients))


def test_settings_of_adam():
    state, params, gradients = stepped(optax.adam(1e-2, b2=0.9, eps=1e-3))
    expected = adam_weights(gradients, 0.9, 1e-3)
    found = optimizer_metric(state, decay=0.9, eps=1e-3)(params).diagonal
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-8), found, expected)
    state, params, gradients = stepped(optax.inject_hyperparams(optax.adam)(1e-2, b2=0.9, eps=1e-3))
    found = optimizer_metric(state)(params).diagonal
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-6), found, expected)


@pytest.mark.parametrize(
    ("optimizer", "eps"),
    [
        (optax.adam(0.1, b1=0.0), 1e-8),
        (optax.yogi(0.1, b1=0.0), 1e-3),
        (optax.amsgrad(0.1, b1=0.0), 1e-8),
        (optax.adabelief(0.1, b1=0.0, eps_root=0.0), 1e-16),
        (optax.adagrad(0.1), 1e-7),
        (optax.rmsprop(0.1), 1e-8),
    ],
    ids=["adam", "yogi", "amsgrad", "adabelief", "adagrad", "rmsprop"],
)
def test_metric_is_that_of_the_step(optimizer, eps):
    """update = -learning rate G^-1 (corrected momentum), read back from optax itself."""
    state, params, _ = stepped(optimizer, steps=2)
    gradient = jax.grad(loss)(params)
    updates, state = optimizer.update(gradient, state, params)
    weights = optimizer_metric(state, eps=eps)(params).diagonal
    expected = jax.tree.map(lambda g, w: -0.1 * g / w, gradient, weights)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-6), updates, expected)


def test_metric_of_rmsprop():
    state, params, gradients = stepped(optax.rmsprop(1e-2))
    squares = averaged_squares(gradients, 0.9)
    expected = jax.tree.map(lambda v: jnp.sqrt(v + 1e-8), squares)
    found = optimizer_metric(state)(params).diagonal
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-8), found, expected)


@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.1), optax.sgd(0.1, momentum=0.9), optax.sgd(lambda step: 0.1)],
    ids=["plain", "momentum", "schedule"],
)
def test_metric_of_gradient_descent(optimizer):
    state, params, _ = stepped(optimizer)
    assert isinstance(optimizer_metric(state)(params), lx.IdentityLinearOperator)


def test_trace_of_the_hessian_depends_on_the_units_and_trace_of_e_does_not():
    """psi = theta / 2: with the same probes tr H is four times as large, exactly."""
    metric = vf.geometry.DiagonalField(lambda **p: jax.tree.map(lambda a: 1 + a**2, p))
    double = lambda **psi: jax.tree.map(lambda a: 2 * a, psi)  # noqa: E731
    psi = jax.tree.map(lambda a: a / 2, PARAMS)
    in_psi = lambda psi: loss(double(**psi))  # noqa: E731
    for by in (None, KRYLOV):
        plain = [trace(hessian(f, p), by=by).value for f, p in ((loss, PARAMS), (in_psi, psi))]
        assert_allclose(plain[1], 4 * plain[0], rtol=1e-12)
    under = [
        sharpness(f, p, metric=m, learning_rate=0.1, by=KRYLOV)
        for f, p, m in ((loss, PARAMS, metric), (in_psi, psi, vf.pullback(metric, double)))
    ]
    for a, b in zip(*map(jax.tree.leaves, under), strict=True):
        if jnp.isfinite(a) and abs(a) > 1e-9:  # not the residuals, which are rounding
            assert_allclose(a, b, rtol=1e-8)


def test_a_common_scale_of_metric_and_learning_rate_changes_nothing():
    one = sharpness(loss, PARAMS, metric=vf.Euclidean(), learning_rate=0.1)
    other = sharpness(loss, PARAMS, metric=7.0 * vf.Euclidean(), learning_rate=0.7)
    assert_allclose(one.stability.value, other.stability.value, rtol=1e-10)
    assert_allclose(one.trace.value, 7 * other.trace.value, rtol=1e-10)


def test_sharpness_is_the_threshold_of_gradient_descent():
    """Steps of gradient descent grow if learning rate x top exceeds 2, else they shrink."""
    matrix = jnp.diag(jnp.array([1.0, 10.0]))
    for rate, grows in ((0.19, False), (0.21, True)):
        found = sharpness(lambda x: 0.5 * x @ matrix @ x, jnp.zeros(2), learning_rate=rate)
        assert (found.stability.value > 2) == grows
        x = np.linalg.matrix_power(np.eye(2) - rate * np.asarray(matrix), 200) @ np.ones(2)
        assert (np.abs(x).max() > 1) == grows


def test_at_a_saddle_the_log_det_is_undefined():
    found = sharpness(lambda x: x[0] ** 2 - x[1] ** 2, jnp.zeros(2))
    assert jnp.isnan(found.logdet.value)
    assert "undefined: H is not positive definite" in repr(found)
    assert_allclose([found.trace.value, found.top.value], [0.0, 2.0], atol=1e-12)
    assert found.stability is None


def test_under_jit():
    shown = []

    @jax.jit
    def at(x):
        found = sharpness(lambda x: jnp.sum(x**4), x, learning_rate=0.5)
        shown.append(repr(found))
        return found

    value = at(jnp.ones(3))
    assert shown[0].startswith("Sharpness(trace=")
    assert_allclose(value.trace.value, 36.0)
    assert_allclose(value.stability.value, 6.0)


def test_adam_finds_sharper_minima_by_the_raw_trace():
    """The trace under Adam's metric is in its own units: its size alone says nothing."""
    state, params, _ = stepped(optax.adam(1e-2), steps=5)
    raw = trace(hessian(loss, params)).value
    metric = optimizer_metric(state)
    scaled = trace(under_metric(hessian(loss, params), metric, params)).value
    weights = jnp.concatenate([w.ravel() for w in jax.tree.leaves(metric(params).diagonal)])
    assert_allclose(scaled, jnp.sum(lx.diagonal(hessian(loss, params)) / weights), rtol=1e-9)
    assert not np.isclose(raw, scaled)
