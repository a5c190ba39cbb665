"""Flows in two charts: carried, naive, and against numbers of an independent integration."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from tests.geometry.laws import CURVED, PHI

import volform as vf
from volform.geometry import implied_metric
from volform.optimizers import (
    along_geodesics,
    compare_paths,
    gradient_flow,
    natural_gradient,
    precondition,
)

from .problems import START, carried, loss, loss_there, walker

TIMES = jnp.array([0.0, 0.25, 0.5, 1.0, 2.0, 4.0])
# By scipy-free scripts of JAX: Dopri8 at a tolerance of 1e-12, of the same loss, chart and times.
EUCLIDEAN = [
    [0.7, -0.4],
    [0.5228281980286335, -0.4345802255006334],
    [0.40727137643028677, -0.4487972151351183],
    [0.2735580605107253, -0.4476763567795078],
    [0.16859489928558755, -0.41543574465015787],
    [0.12133299209123301, -0.3753282973738721],
]
NAIVE = [
    [0.6517744973074048, -0.4107523258028154],
    [0.4969351297901937, -0.4106537633110744],
    [0.37361111757209575, -0.4081947765902111],
    [0.20580843967652473, -0.400493716670084],
    [0.06167077039167119, -0.3861613863265362],
    [0.009402138374955293, -0.3730674448792213],
]
# Distance of one Euler step in theta from one in psi, the metric carried.
STEPS = [0.04, 0.02, 0.01, 0.005]
DEFECTS = [4.1657178382714655e-4, 1.0383672592650939e-4, 2.5919297278576e-5, 6.474742756612528e-6]


@pytest.fixture(scope="module")
def euclidean():
    return gradient_flow(loss, vf.Euclidean(), START, TIMES)


@pytest.fixture(scope="module")
def naive():
    """What everyone does in psi: gradient descent there."""
    return gradient_flow(loss_there, vf.Euclidean(), PHI(START), TIMES)


def test_numbers_of_another_integration(euclidean, naive):
    assert_allclose(euclidean.path, EUCLIDEAN, atol=1e-10)
    assert_allclose(naive.path, NAIVE, atol=1e-10)


def test_the_loss_falls_by_the_square_of_the_speed(euclidean):
    assert np.all(np.diff(euclidean.values) < 0.0)
    assert_allclose(euclidean.values, jax.vmap(loss)(euclidean.path), rtol=1e-14)
    assert_allclose(
        euclidean.speeds, jnp.linalg.norm(jax.vmap(jax.grad(loss))(euclidean.path), axis=1)
    )


RANDOM = vf.geometry.MatrixField(
    lambda x: jnp.array([[2.0, 0.5], [0.5, 1.0]]) + jnp.outer(jnp.sin(x), jnp.sin(x))
)
DIAGONAL = vf.geometry.DiagonalField(lambda x: 1.0 + x**2)


@pytest.fixture(scope="module")
def implied():
    return gradient_flow(loss, implied_metric(PHI), START, TIMES)


def test_carried_paths_agree():
    there = gradient_flow(loss_there, carried(CURVED), PHI(START), TIMES)
    here = gradient_flow(loss, CURVED, START, TIMES)
    assert float(compare_paths(here, there, through=PHI).largest) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("metric", [vf.Euclidean(), DIAGONAL, RANDOM, implied_metric(PHI)])
def test_carried_paths_agree_in_any_metric(metric):
    there = gradient_flow(loss_there, carried(metric), PHI(START), TIMES)
    here = gradient_flow(loss, metric, START, TIMES)
    assert float(compare_paths(here, there, through=PHI).largest) < 1e-10


def test_naive_paths_are_the_flow_of_the_implied_metric(euclidean, naive, implied):
    apart = compare_paths(euclidean, naive, through=PHI)
    assert_allclose(apart.largest, 0.0803, atol=1e-4)
    worst = int(np.argmax(apart.distances))
    assert_allclose(  # with the independent numbers, and phi inverted by hand
        apart.largest,
        np.linalg.norm(PHI.inv(jnp.array(NAIVE[worst])) - np.array(EUCLIDEAN[worst])),
        rtol=1e-8,
    )
    assert float(compare_paths(implied, naive, through=PHI).largest) < 1e-10


def test_distances_are_those_of_the_metric(euclidean, naive):
    doubled = eqx.tree_at(lambda flow: flow.metric, euclidean, 4.0 * vf.Euclidean())
    pair = [compare_paths(flow, naive, through=PHI) for flow in (doubled, euclidean)]
    assert_allclose(pair[0].largest, 2.0 * pair[1].largest, rtol=1e-12)
    assert_allclose(pair[0].length, 2.0 * pair[1].length, rtol=1e-12)
    same = compare_paths(euclidean, euclidean)
    assert float(same.largest) == 0.0
    assert "0 apart" in repr(same)


def test_an_euler_step_is_invariant_to_the_first_order():
    found = []
    for h in STEPS:
        here = START - h * jax.grad(loss)(START)
        tx = natural_gradient(carried(vf.Euclidean()), h)
        p = PHI(START)
        there = p + tx.update(jax.grad(loss_there)(p), tx.init(p), p)[0]
        found.append(np.abs(PHI.inv(there) - here).max())
    assert_allclose(found, DEFECTS, rtol=1e-9)
    assert_allclose(np.polyfit(np.log(STEPS), np.log(found), 1)[0], 2.0025013602, rtol=1e-6)


def test_a_geodesic_step_is_invariant():
    """Where a straight one is off by .064."""
    here = START - 0.5 * jax.grad(loss)(START)
    metric, p = carried(vf.Euclidean()), PHI(START)
    straight = natural_gradient(metric, 0.5)
    defects = []
    for tx in (straight, along_geodesics(straight, metric)):
        there = p + tx.update(jax.grad(loss_there)(p), tx.init(p), p)[0]
        defects.append(np.abs(PHI.inv(there) - here).max())
    assert_allclose(defects[0], 0.06434470949031051, rtol=1e-9)
    assert defects[1] < 1e-11


def test_a_path_of_euler_steps_is_off_by_the_first_power():
    defects = []
    for count in (64, 128):
        here = walker(natural_gradient(CURVED, 1.0 / count), loss, count)(START)
        there = natural_gradient(carried(CURVED), 1.0 / count)
        there = walker(there, loss_there, count)(PHI(START))
        defects.append(np.abs(jax.vmap(PHI)(here) - there).max())
    assert_allclose(np.log2(defects[0] / defects[1]), 1.0, atol=0.1)
    assert defects[0] > 1e-4


@pytest.mark.slow
def test_a_path_of_runge_kutta_steps_is_off_by_the_fourth():
    """The vector field is that of `precondition`, so that any integrator of it will do."""

    def path(metric, fn, x, count):
        tx, h = precondition(metric), 1.0 / count

        def field(x):
            return -tx.update(jax.grad(fn)(x), tx.init(x), x)[0]

        def step(x, _):
            a = field(x)
            b = field(x + h / 2 * a)
            c = field(x + h / 2 * b)
            x = x + h / 6 * (a + 2 * b + 2 * c + field(x + h * c))
            return x, x

        return jax.jit(lambda x: jax.lax.scan(step, x, None, length=count)[1])(x)

    defects = []
    for count in (8, 16):
        here = path(CURVED, loss, START, count)
        there = path(carried(CURVED), loss_there, PHI(START), count)
        defects.append(np.abs(jax.vmap(PHI)(here) - there).max())
    assert_allclose(np.log2(defects[0] / defects[1]), 4.0, atol=0.4)


@pytest.mark.slow
def test_points_are_pytrees():
    there = gradient_flow(
        lambda p: loss(jnp.stack([p["a"], jnp.log(p["b"])])),
        vf.geometry.Product({"a": vf.Euclidean(), "b": vf.pullback(vf.Euclidean(), jnp.log)}),
        {"a": 0.7, "b": jnp.exp(-0.4)},
        TIMES,
    )
    assert_allclose(there.path["a"], np.array(EUCLIDEAN)[:, 0], atol=1e-10)
    assert_allclose(jnp.log(there.end["b"]), EUCLIDEAN[-1][1], atol=1e-10)
    assert repr(there).startswith("FlowPath under Product(a: Euclidean(), b: pullback(")
    assert "loss 0.185684 to -0.0552064" in repr(there)
