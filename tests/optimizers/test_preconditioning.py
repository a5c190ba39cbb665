"""Preconditioned gradients against dense algebra, with the transformations of optax around them."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose
from tests.geometry.laws import CURVED, PHI, close, law

import volform as vf
from volform.geometry import pushforward
from volform.optimizers import AdaptiveDamping, natural_gradient, precondition

from .problems import START, loss, loss_there

SPREAD = vf.geometry.DiagonalField(lambda x: 2.0 + jnp.sin(x))


def preconditioned(metric, w, x, **options):
    tx = precondition(metric, **options)
    return tx.update(w, tx.init(x), x)[0]


@pytest.mark.parametrize("metric", [vf.Euclidean(0.5), SPREAD, CURVED, CURVED + SPREAD])
def test_it_solves_with_the_matrix(metric):
    w = jnp.array([0.3, -2.0])
    exact = np.linalg.solve(metric(START).as_matrix() + 0.7 * SPREAD(START).as_matrix(), w)
    assert_allclose(preconditioned(metric, w, START, damping=0.7 * SPREAD), exact, rtol=1e-13)
    cg = lx.CG(rtol=1e-12, atol=1e-12)
    assert_allclose(
        preconditioned(metric, w, START, damping=0.7 * SPREAD, solve=cg), exact, rtol=1e-11
    )


def test_blocks_and_dicts():
    params = {"sigma": jnp.array(2.0), "w": jnp.arange(1.0, 4.0)}
    metric = vf.geometry.Product({"sigma": vf.Euclidean(0.5), "w": SPREAD})
    found = preconditioned(metric, jax.tree.map(jnp.ones_like, params), params)
    assert_allclose(found["sigma"], 0.25)
    assert_allclose(found["w"], 1.0 / (2.0 + np.sin(params["w"])), rtol=1e-14)


@law(rtol=1e-9)
def test_it_is_a_vector_with_damping_and_all(setting):
    """(G + D)^-1 dL in the coordinates of f is J of it, since the damping is a metric."""
    base = vf.Euclidean()
    w = jax.grad(setting.function)(setting.x)
    here = preconditioned(setting.metric, w, setting.x, damping=0.1 * base)
    slope = jax.grad(setting.carried_function)(setting.y)
    damping = 0.1 * vf.pullback(base, setting.f.inv)
    there = preconditioned(setting.carried_metric, slope, setting.y, damping=damping)
    return there, pushforward(setting.f, setting.x, here)


def test_damping_that_is_not_carried_is_another():
    here = preconditioned(CURVED, jax.grad(loss)(START), START, damping=0.1 * vf.Euclidean())
    there = preconditioned(
        vf.pullback(CURVED, PHI.inv),
        jax.grad(loss_there)(PHI(START)),
        PHI(START),
        damping=0.1 * vf.Euclidean(),
    )
    assert np.abs(there - pushforward(PHI, START, here)).max() > 1e-3


# --- matrix-free metrics of a network

X = jnp.linspace(-1.0, 1.0, 40)[:, None]
Y = jnp.sin(3.0 * X[:, 0])


def network(params, x):
    return params["v"] @ jnp.tanh(params["w"] @ x + params["b"])


def likelihood(z):
    return dist.Normal(z, 0.1)


def net_loss(params, x=X, y=Y):
    return 50.0 * jnp.sum((jax.vmap(lambda x: network(params, x))(x) - y) ** 2)


def gauss_newton(params, x=X, y=Y):
    return vf.operators.ggn(network, likelihood, params, (x, y))


@pytest.fixture(scope="module")
def params():
    w, b, v = (0.5 * jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(8, 1), 8, 8]))
    return {"w": w, "b": b, "v": v}


def test_products_only(params):
    slope = jax.grad(net_loss)(params)
    cg = lx.CG(rtol=1e-10, atol=1e-10)
    found = preconditioned(gauss_newton, slope, params, damping=1e-2 * vf.Euclidean(), solve=cg)
    matrix = np.asarray(gauss_newton(params).as_matrix()) + 1e-2 * np.eye(24)
    exact = np.linalg.solve(matrix, ravel_pytree(slope)[0])
    close(ravel_pytree(found)[0], exact, 1e-6)


@pytest.mark.slow
def test_what_conjugate_gradients_have_after_few_products_is_downhill(params):
    slope = jax.grad(net_loss)(params)
    few = lx.CG(rtol=1e-10, atol=1e-10, max_steps=3)
    rough = preconditioned(gauss_newton, slope, params, damping=1e-2 * vf.Euclidean(), solve=few)
    assert sum(map(jnp.vdot, *map(jax.tree.leaves, (rough, slope)))) > 0.0


def test_the_metric_of_a_batch(params):
    batch = (X[:5], Y[:5])
    slope = jax.grad(net_loss)(params, *batch)
    tx = precondition(gauss_newton, damping=vf.Euclidean())
    found, _ = tx.update(slope, tx.init(params), params, metric=lambda p: gauss_newton(p, *batch))
    exact = preconditioned(lambda p: gauss_newton(p, *batch), slope, params, damping=vf.Euclidean())
    close(found, exact, 1e-13)


def test_adaptive_damping_fits_a_network(params):
    """Thirty steps of the Levenberg-Marquardt method, none uphill."""
    tx = natural_gradient(gauss_newton, damping=AdaptiveDamping(vf.Euclidean()))

    def step(carry, _):
        params, state = carry
        value, slope = jax.value_and_grad(net_loss)(params)
        updates, state = tx.update(slope, state, params, value_fn=net_loss)
        return (optax.apply_updates(params, updates), state), (value, state[0])

    _, (values, states) = jax.lax.scan(step, (params, tx.init(params)), None, length=30)
    assert np.all(np.diff(values) <= 0.0)
    assert values[-1] < 1e-3 * values[0]
    assert np.isfinite(states.gain_ratio).all()


@pytest.mark.slow
def test_adaptive_damping_is_the_same_in_affine_charts():
    matrix = jnp.array([[3.0, 1.0], [0.2, 0.05]])
    there = lambda p: loss(jnp.linalg.solve(matrix, p))  # noqa: E731
    runs = []
    for fn, x, to in ((loss, 3.0 * START, None), (there, matrix @ (3.0 * START), matrix)):
        inverse = jnp.eye(2) if to is None else jnp.linalg.inv(to)
        metric = vf.pullback(CURVED, lambda x, m=inverse: m @ x)
        flat = vf.pullback(vf.Euclidean(), lambda x, m=inverse: m @ x)
        tx = natural_gradient(metric, damping=AdaptiveDamping(flat, start=1e-3))
        state, strengths = tx.init(x), []
        for _ in range(6):
            updates, state = tx.update(jax.grad(fn)(x), state, x, value_fn=fn)
            x = x + updates
            strengths.append([float(state[0].strength), float(state[0].gain_ratio)])
        runs.append(strengths)
    assert_allclose(runs[0], runs[1], rtol=1e-7)
    assert np.ptp(np.array(runs[0])[:, 0]) > 0.0


def test_a_step_uphill_is_refused():
    fn = lambda x: jnp.sum(jnp.cosh(3.0 * x))  # noqa: E731
    tx = natural_gradient(0.01 * vf.Euclidean(), damping=AdaptiveDamping(vf.Euclidean(), 1e-6))
    x = jnp.array([0.5])
    updates, (state, _) = tx.update(jax.grad(fn)(x), tx.init(x), x, value_fn=fn)
    assert float(updates[0]) == 0.0
    assert float(state.strength) == 2e-6
    assert float(state.gain_ratio) < 0.0


# --- inside of optax


@pytest.mark.standard_promotion  # optax counts in integers
def test_chains_with_clipping_and_schedules():
    schedule = optax.exponential_decay(0.5, 1, 0.5)
    tx = optax.chain(
        precondition(CURVED),
        optax.clip_by_global_norm(0.1),
        optax.scale_by_learning_rate(schedule),
    )
    x, state = START, tx.init(START)
    for rate in (0.5, 0.25):
        v = np.linalg.solve(CURVED(x).as_matrix(), jax.grad(loss)(x))
        updates, state = jax.jit(tx.update)(jax.grad(loss)(x), state, x)
        assert_allclose(updates, -rate * 0.1 * v / np.linalg.norm(v), rtol=1e-12)
        x = x + updates


def test_masks_and_multi_transform():
    params = {"a": jnp.array([1.0, 2.0]), "b": {"c": jnp.array(3.0)}, "n": jnp.array(4)}
    grads = {"a": jnp.ones(2), "b": {"c": jnp.array(1.0)}, "n": jnp.array(0)}
    labels = {"a": "natural", "b": "plain", "n": "none"}
    metric = vf.geometry.Product({"a": vf.Euclidean(0.5)})
    transforms = {
        "natural": natural_gradient(metric, 1.0),
        "plain": optax.sgd(1.0),
        "none": optax.set_to_zero(),
    }
    tx = optax.multi_transform(transforms, labels)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert updates["a"].tolist() == [-0.25, -0.25]
    assert float(updates["b"]["c"]) == -1.0
    masked = optax.masked(precondition(vf.Euclidean(0.5)), {"a": True, "b": True, "n": False})
    updates, _ = masked.update(grads, masked.init(params), params)
    assert updates["a"].tolist() == [0.25, 0.25]
    assert float(updates["b"]["c"]) == 0.25


def test_steps_that_are_not_finite_are_left_out_under_jit():
    tx = optax.apply_if_finite(natural_gradient(CURVED, 0.1), max_consecutive_errors=3)
    updates, _ = jax.jit(tx.update)(jnp.array([jnp.nan, 1.0]), tx.init(START), START)
    assert updates.tolist() == [0.0, 0.0]


def test_minutes_to_seconds():
    """A time in minutes or seconds: the gradient 60 times, its update 3,600, the natural one 1."""
    minutes, per = jnp.array(2.0), 60.0
    cost = lambda m: (m - 5.0) ** 2  # noqa: E731
    slope = jax.grad(cost)(minutes)
    of_seconds = jax.grad(lambda s: cost(s / per))(minutes * per)
    assert_allclose(slope / of_seconds, 60.0, rtol=1e-12)
    assert_allclose(slope / (of_seconds / per), 3600.0, rtol=1e-12)  # both updates in minutes
    natural = preconditioned(vf.Euclidean(), slope, minutes)
    there = preconditioned(vf.Euclidean(scale=per), of_seconds, minutes * per)
    assert_allclose(natural / (there / per), 1.0, rtol=1e-12)


@pytest.mark.float32
def test_products_of_many_parameters_in_single_precision():
    """lineax alone takes a curvature below 100 n eps for a singular one: NaN."""
    scale = jnp.linspace(1e-3, 1.0, 50_000)
    metric = vf.geometry.DiagonalField(lambda x: scale)
    cg = lx.CG(rtol=1e-4, atol=1e-8, max_steps=50)
    damping = 1e-2 * vf.Euclidean()
    w = jnp.sin(jnp.arange(50_000.0)).at[:7].set(0.0)
    found = preconditioned(metric, w, jnp.zeros_like(scale), damping=damping, solve=cg)
    assert_allclose(found, w / (scale + 1e-2), rtol=1e-2, atol=1e-2)


@pytest.mark.float32
def test_single_precision_stays_single():
    tx = natural_gradient(CURVED, damping=AdaptiveDamping(vf.Euclidean()))
    x = jnp.array([0.7, -0.4])
    updates, (state, _) = tx.update(jax.grad(loss)(x), tx.init(x), x, value_fn=loss)
    assert updates.dtype == state.strength.dtype == jnp.float32
