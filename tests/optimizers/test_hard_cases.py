"""Cases in which a step is easily wrong: dicts, saddles, batches without a gradient, rounding."""

from collections import OrderedDict, defaultdict

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from numpy.testing import assert_allclose

import volform as vf
from volform.errors import ConvergenceError, OptimizerError, SingularMetricError
from volform.optimizers import (
    AdaptiveDamping,
    Bregman,
    KullbackLeibler,
    PulledBack,
    SquaredDistance,
    along_geodesics,
    damped_newton,
    log_sum_exp,
    mirror_descent,
    natural_gradient,
    negative_entropy,
    output_space_descent,
    proximal_point,
    trust_region,
)
from volform.optimizers.newton_steps import region_step

FLAT = vf.Euclidean()
X = jnp.array([1.0, 2.0])


def bowl(x):
    return jnp.sum(x**2)


# --- pytrees


@pytest.mark.parametrize(
    "kind", [OrderedDict, lambda p: defaultdict(list, p)], ids=["ordered", "default"]
)
def test_entries_stay_in_their_places(kind):
    params = kind({"w": X, "b": 10.0 * X})
    grads = kind({"w": X, "b": 1000.0 * X})
    for tx in (natural_gradient(FLAT, 0.1), along_geodesics(optax.sgd(0.1), FLAT)):
        found, _ = tx.update(grads, tx.init(params), params)
        assert type(found) is type(params)
        assert jax.tree.structure(found) == jax.tree.structure(params)
        jax.tree.map(lambda u, g: assert_allclose(u, -0.1 * g), found, grads)


def test_empty_entries_reach_the_loss():
    params = {"a": X, "b": {}, "c": None}
    fn = lambda p: bowl(p["a"]) + 1.0 * (p["b"] == {} and p["c"] is None)  # noqa: E731
    tx = trust_region(FLAT, 10.0)
    found, _ = tx.update(jax.grad(fn)(params), tx.init(params), params, value_fn=fn)
    assert_allclose(found["a"], -X)
    assert found["b"] == {}
    assert found["c"] is None


def test_a_loss_of_the_masked_part():
    params = {"a": X, "b": X}
    tx = optax.masked(damped_newton(), {"a": True, "b": False})
    grads = jax.tree.map(lambda x: 2.0 * x, params)
    loss = lambda p: bowl(p["a"]) + bowl(p["b"])  # noqa: E731
    with pytest.raises(OptimizerError, match="the others put in"):
        tx.update(grads, tx.init(params), params, value_fn=loss)
    part = lambda p: loss({**params, **p})  # noqa: E731
    assert_allclose(tx.update(grads, tx.init(params), params, value_fn=part)[0]["a"], -X)


# --- the region of trust


@pytest.fixture(scope="module")
def solve():
    return jax.jit(region_step)


@pytest.mark.parametrize("slope", [1e-5, 1e-17, 1e-200, 0.0])
def test_a_slope_that_is_nothing_beside_the_curvature(solve, slope):
    """At a saddle the step goes to the edge, and solves its equation."""
    form, w = jnp.diag(jnp.array([-100.0, 50.0])), jnp.full(2, slope)
    step, multiplier = solve(form, jnp.eye(2), w, jnp.array(1.0))
    assert_allclose(np.linalg.norm(step), 1.0, rtol=1e-12)
    assert_allclose(multiplier, 100.0, rtol=1e-6)
    assert_allclose((form @ step)[1] + multiplier * step[1], -slope, rtol=1e-12)
    assert slope == 0.0 or step[0] < 0.0


def test_random_regions(solve):
    rng = np.random.default_rng(0)
    scales = 10.0 ** rng.uniform([-2, -9, -2], [2, 2, 2], (100, 3))
    for size, slope, radius in scales:
        root = size * rng.normal(size=(2, 2))
        form, w = jnp.asarray(root + root.T), jnp.asarray(slope * rng.normal(size=2))
        step, multiplier = solve(form, jnp.eye(2), w, jnp.array(radius))
        length = np.linalg.norm(step)
        edge = multiplier > 1e-12 * size
        assert length <= radius * (1 + 1e-10)
        assert not edge or length >= radius * (1 - 1e-10)


@pytest.mark.float32
def test_away_from_a_saddle():
    fn = lambda w: 100 * w[0] * w[1] + 15 * w[1] ** 2 + jnp.sum(w**4)  # noqa: E731
    tx = trust_region(FLAT, 1.0)

    @jax.jit
    def improved(w, state):
        updates, state = tx.update(jax.grad(fn)(w), state, w, value_fn=fn)
        return w + updates, state

    w = jnp.full(2, 1e-6)
    state = tx.init(w)
    for _ in range(21):
        w, state = improved(w, state)
    assert fn(w) < -900.0


# --- batches without a gradient, and ones that are not finite

WITH_STATE = {
    "adaptive": natural_gradient(FLAT, damping=AdaptiveDamping(FLAT)),
    "region": trust_region(FLAT, 1.0),
}
OTHERS = {
    "natural": natural_gradient(vf.geometry.DiagonalField(lambda x: 1.0 + x**2), 0.1),
    "proximal": proximal_point(SquaredDistance(), 1.0),
    "outputs": output_space_descent(lambda x: 2.0 * x, bowl, 0.1),
}


@pytest.mark.parametrize("name", WITH_STATE)
def test_a_batch_without_a_gradient_says_nothing(name):
    tx, flat = WITH_STATE[name], lambda x: 0.0 * jnp.sum(x)
    start = state = tx.init(X)
    for _ in range(6):
        updates, state = tx.update(jnp.zeros(2), state, X, value_fn=flat)
        assert_allclose(updates, 0.0)
    assert jax.tree.leaves(state)[0] == jax.tree.leaves(start)[0]


@pytest.mark.parametrize("name", [*WITH_STATE, *OTHERS])
def test_what_is_not_finite_is_nan_under_jit_and_leaves_the_state(name):
    tx = (WITH_STATE | OTHERS)[name]
    run = jax.jit(lambda w, state, x: tx.update(w, state, x, value_fn=bowl))
    start = tx.init(X)
    for w, x in ((jnp.array([jnp.nan, 1.0]), X), (X, jnp.array([1.0, jnp.inf]))):
        updates, state = run(w, start, x)
        assert np.isnan(updates).all()
        assert name not in WITH_STATE or jax.tree.leaves(state)[0] == jax.tree.leaves(start)[0]
        with pytest.raises(OptimizerError, match="holds NaN or infinity"):
            tx.update(w, start, x, value_fn=bowl)


@pytest.mark.standard_promotion
@pytest.mark.parametrize("name", [*WITH_STATE, "outputs"])
def test_data_of_another_precision(name):
    """Parameters and state stay in single precision, as `scan` needs it."""
    wanted = jnp.array([0.3, 0.4])
    fn = lambda x: jnp.sum((3.0 * x - wanted) ** 2)  # noqa: E731
    outputs = output_space_descent(lambda x: 3.0 * x - wanted, bowl, 0.5)
    tx = WITH_STATE.get(name, outputs)

    def one(carry, _):
        updates, state = tx.update(jax.grad(fn)(carry[0]), carry[1], carry[0], value_fn=fn)
        return (carry[0] + updates, state), None

    x = jnp.ones(2, jnp.float32)
    (end, _), _ = jax.lax.scan(one, (x, tx.init(x)), None, 12)
    assert end.dtype == jnp.float32
    assert fn(end) < 1e-3 * fn(x)


def test_the_strength_has_a_least_value():
    tx = natural_gradient(2.0 * FLAT, damping=AdaptiveDamping(FLAT, 2e-16))
    updates, (state, _) = tx.update(2.0 * X, tx.init(X), X, value_fn=bowl)
    assert float(state.strength) == 1e-16
    assert_allclose(updates, -X, rtol=1e-12)


# --- metrics that are singular but for rounding


def test_a_metric_that_is_singular_but_for_rounding():
    logits = vf.Fisher(lambda z: dist.Categorical(logits=z))
    tx = natural_gradient(logits, 0.1)
    with pytest.raises(SingularMetricError, match="singular"):
        tx.init(jnp.array([0.1, 0.2, 0.3]))
    start, slope = natural_gradient(FLAT).init(X), jnp.array([1.0, 0.0, 0.0])
    for z in (jnp.array([0.1, 0.2, 0.3]), jnp.array([0.3, -0.1, 1.0]), jnp.zeros(3)):
        assert np.isnan(jax.jit(tx.update)(slope, start, z)[0]).all()
    units = vf.geometry.DiagonalField(lambda x: jnp.array([1e-30, 1e30]))  # is not singular
    natural_gradient(units, 0.1).init(X)


def test_products_that_go_uphill():
    metric = vf.geometry.MatrixField(lambda x: jnp.diag(jnp.array([1.0, -1.0])))
    tx = natural_gradient(metric, 1.0, solve=lx.CG(rtol=1e-8, atol=1e-8))
    with pytest.raises(SingularMetricError, match="indefinite"):
        tx.update(X, tx.init(X), X)


# --- mirror descent


@pytest.mark.parametrize("slope", [2.0, 3.0, 10.0, -50.0])
def test_a_scale_stays_positive(slope):
    """`s - 1 / s = -slope` for the divergence of Normal(0, s) from Normal(0, 1)."""
    rho = KullbackLeibler(lambda s: dist.Normal(0.0, s))
    found = rho.move(jnp.array(1.0), jnp.array(-slope))
    assert_allclose(found, 0.5 * (-slope + np.sqrt(slope**2 + 4.0)), rtol=1e-10)


def test_newton_stays_in_the_domain_of_a_generator():
    logarithm = Bregman(lambda x: -jnp.sum(jnp.log(x)))
    found = logarithm.move(jnp.array([1.0, 1e-3]), jnp.array([-2.0, 0.0]))
    assert_allclose(found, [1.0 / 3.0, 1e-3], rtol=1e-10)


def test_a_start_outside_of_the_domain():
    for rho, params in (
        (KullbackLeibler(dist.Normal), {"loc": jnp.array(0.0), "scale": jnp.array(-1.0)}),
        (Bregman(lambda x: -jnp.sum(jnp.log(x))), -X),
        (negative_entropy(), X),
        (negative_entropy(), jnp.full((2, 2), 0.25)),
    ):
        with pytest.raises(OptimizerError, match="outside of the domain"):
            mirror_descent(rho, 0.1).init(params)


def test_probabilities_that_underflow():
    tx, cost = mirror_descent(negative_entropy(), 1.0), jnp.array([1.0, 0.0, 0.5])
    p, state = jnp.full(3, 1.0 / 3.0), tx.init(jnp.full(3, 1.0 / 3.0))
    run = jax.jit(lambda p, state: tx.update(300.0 * cost, state, p))
    for _ in range(4):
        updates, state = run(p, state)
        p = p + updates
    assert_allclose(p, [0.0, 1.0, 0.0], atol=1e-15)
    corner = jnp.array([0.0, 0.5, 0.5])
    tx.init(corner)
    moved = corner + tx.update(cost, state, corner)[0]
    assert_allclose(moved, [0.0, *np.array([1.0, np.exp(-0.5)]) / (1.0 + np.exp(-0.5))], rtol=1e-14)


def test_logits_move_up_to_a_constant():
    z, covector = jnp.array([0.3, -0.1, 1.0]), jnp.array([0.05, -0.02, -0.03])
    found = log_sum_exp().move(z, covector)
    assert_allclose(jax.nn.softmax(found), jax.nn.softmax(z) + covector, rtol=1e-10)
    assert np.isnan(log_sum_exp().move(z, jnp.array([0.1, 0.0, 0.0]))).all()  # not a change of it


def test_closed_forms_need_no_matrix():
    mirror_descent(SquaredDistance(), 0.1).init(jnp.ones(60_000))


# --- proximal points that are none


@pytest.mark.parametrize(
    ("loss", "strength", "start"),
    [
        (lambda x: -jnp.sum(jnp.exp(x)), 1.0, X),  # no minimum
        (lambda x: jnp.sum(x**3), 0.01, -X),
        (lambda x: jnp.sum(jnp.abs(x)), 1.0, jnp.array([3.0, 0.5])),  # a kink
        (lambda x: jnp.sum((x**2 - 1.0) ** 2), 0.01, jnp.zeros(2)),  # a maximum
    ],
)
def test_there_is_no_proximal_point(loss, strength, start):
    tx = proximal_point(SquaredDistance(), strength)
    with pytest.raises(ConvergenceError, match="bounded below"):
        tx.update(jax.grad(loss)(start), tx.init(start), start, value_fn=loss)


def test_directions_along_which_nothing_changes_are_no_saddle():
    rho = PulledBack(SquaredDistance(), jnp.sum)
    tx, loss = proximal_point(rho, 1.0), lambda x: jnp.sum(x) ** 2
    found = X + tx.update(jax.grad(loss)(X), tx.init(X), X, value_fn=loss)[0]
    assert_allclose(jnp.sum(found), 1.0, rtol=1e-10)
