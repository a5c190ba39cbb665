"""Laws of all optimizers: descent, fixed points, invariance as claimed, jit and scan."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from numpy.testing import assert_allclose
from tests.geometry.laws import CURVED, PHI, law

import volform as vf
from volform.geometry import pushforward
from volform.optimizers import (
    AdaptiveDamping,
    KullbackLeibler,
    PulledBack,
    SquaredDistance,
    along_geodesics,
    damped_newton,
    implicit_gradient_descent,
    mirror_descent,
    natural_gradient,
    output_space_descent,
    proximal_point,
    trust_region,
)
from volform.optimizers.newton_steps import region_step

from .problems import START, carried, least, loss, loss_there, step, walker

FLAT = vf.Euclidean()
FAMILY = lambda x: dist.Normal(x[0], jnp.exp(x[1]))  # noqa: E731


def outputs(x):
    return jnp.stack([jnp.sinh(x[0]), x[1] + 0.1 * x[0] ** 2, x[0]])


def of_outputs(z):
    """The loss, of three outputs."""
    return loss(jnp.stack([z[2], z[1] - 0.1 * z[2] ** 2]))


OPTIMIZERS = {
    "natural": natural_gradient(CURVED, 0.3),
    "damped": natural_gradient(CURVED, 0.3, damping=0.1 * FLAT),
    "adaptive": natural_gradient(CURVED, damping=AdaptiveDamping(FLAT)),
    "Newton": damped_newton(),
    "Newton, damped": damped_newton(damping=3.0 * CURVED),
    "Newton, adaptive": damped_newton(damping=AdaptiveDamping(CURVED)),
    "Newton, covariant": damped_newton(damping=3.0 * CURVED, connection=CURVED),
    "trust region": trust_region(CURVED, 0.1),
    "trust region, covariant": trust_region(CURVED, 0.1, connection=CURVED),
    "proximal": proximal_point(SquaredDistance(CURVED), 2.0),
    "implicit": implicit_gradient_descent(1.0),
    "mirror": mirror_descent(KullbackLeibler(FAMILY), 0.3),
    "outputs": output_space_descent(outputs, of_outputs, 0.2),
    "geodesic": along_geodesics(natural_gradient(CURVED, 0.3), CURVED),
}


DEFAULT = ("natural", "Newton, adaptive", "trust region", "implicit")


def some(names, default):
    """All names, those that are not run by default marked as slow."""
    return [pytest.param(n, marks=() if n in default else pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", some(OPTIMIZERS, DEFAULT))
def test_descent_and_fixed_points(name):
    """Down at every step, and far down in the end; the minimum stays. Under `jit` and `scan`."""
    run = walker(OPTIMIZERS[name], loss, 40)
    path = run(START)
    values = jax.vmap(loss)(path)
    assert np.all(np.diff(values) <= 1e-13)
    best = loss(least())
    assert values[-1] - best < 1e-3 * (values[0] - best)
    assert_allclose(run(least()), jnp.broadcast_to(least(), path.shape), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", some(OPTIMIZERS, ()))
def test_a_step_by_hand_is_that_under_jit(name):
    first, _ = step(OPTIMIZERS[name], loss, START)
    assert_allclose(first, walker(OPTIMIZERS[name], loss, 1)(START)[1], rtol=0, atol=1e-10)


# --- invariance

STEEP = 0.8  # of one step, far beyond the first order

# The optimizer in theta, and with everything carried into psi.
EXACT = {
    "natural by exp": lambda metric, to: along_geodesics(natural_gradient(metric, STEEP), metric),
    "Newton by exp": lambda metric, to: along_geodesics(
        damped_newton(damping=0.5 * metric, connection=metric), metric
    ),
    "proximal": lambda metric, to: proximal_point(
        PulledBack(SquaredDistance(), lambda x: outputs(to(x))), 0.5
    ),
    "outputs": lambda metric, to: output_space_descent(lambda x: outputs(to(x)), of_outputs, 0.2),
}
FIRST_ORDER = {
    "natural": lambda metric, to, h: natural_gradient(metric, h),
    "mirror": lambda metric, to, h: mirror_descent(KullbackLeibler(lambda x: FAMILY(to(x))), h),
    "Newton, covariant": lambda metric, to, h: damped_newton(
        h, damping=0.5 * metric, connection=metric
    ),
    "trust region, covariant": lambda metric, to, h: trust_region(metric, h, connection=metric),
}


def in_both_charts(here, there):
    x, _ = step(here, loss, START)
    p, _ = step(there, loss_there, PHI(START))
    return np.abs(PHI(x) - p).max()


@pytest.mark.parametrize("name", some(EXACT, ("proximal",)))
def test_exactly_invariant(name):
    build = EXACT[name]
    defect = in_both_charts(build(CURVED, lambda x: x), build(carried(CURVED), PHI.inv))
    assert defect < 1e-9


@pytest.mark.parametrize("name", some(FIRST_ORDER, ("natural",)))
def test_invariant_to_the_first_order(name):
    build = FIRST_ORDER[name]
    here, there = (CURVED, lambda x: x), (carried(CURVED), PHI.inv)
    defects = [in_both_charts(build(*here, h), build(*there, h)) for h in (0.02, 0.01)]
    assert_allclose(np.log2(defects[0] / defects[1]), 2.0, atol=0.1)


def test_not_invariant_where_the_metric_stays_behind():
    naive = [in_both_charts(*[natural_gradient(FLAT, h)] * 2) for h in (0.01, 0.005)]
    assert_allclose(np.log2(naive[0] / naive[1]), 1.0, atol=0.1)  # wrong at the first order


@pytest.mark.slow
def test_newton_without_a_connection_is_not_invariant():
    """Second derivatives are no form: not even with the steps along geodesics."""
    newton = damped_newton()
    pair = along_geodesics(newton, CURVED), along_geodesics(newton, carried(CURVED))
    assert in_both_charts(*pair) > 1e-2


@law(dimensions=(3,), rtol=1e-8)
def test_newton_is_affine_invariant(setting):
    """Undamped, whatever the metric; and the covariant step is a vector in all charts."""
    tx = damped_newton(damping=20.0 * setting.metric, connection=setting.metric)
    there = damped_newton(damping=20.0 * setting.carried_metric, connection=setting.carried_metric)
    x, y = setting.x, setting.y
    v = tx.update(jax.grad(setting.function)(x), tx.init(x), x, value_fn=setting.function)[0]
    slope = jax.grad(setting.carried_function)(y)
    w = there.update(slope, there.init(y), y, value_fn=setting.carried_function)[0]
    affine = setting.f.parts[1]
    moved = lambda y: setting.function(affine.inv(y))  # noqa: E731
    plain = damped_newton()
    a = plain.update(jax.grad(setting.function)(x), plain.init(x), x, value_fn=setting.function)[0]
    z = affine(x)
    b = plain.update(jax.grad(moved)(z), plain.init(z), z, value_fn=moved)[0]
    return (w, b), (pushforward(setting.f, x, v), affine.matrix @ a)


# --- the region of trust


def problem(kind):
    """A form, definite for kind 0, a metric and a covector."""
    rng = np.random.default_rng(kind)
    root = rng.normal(size=(4, 4))
    form = rng.normal(size=(4, 4))
    form = form @ form.T if kind == 0 else form + form.T
    return (
        jnp.asarray(form),
        jnp.asarray(root @ root.T + np.eye(4)),
        jnp.asarray(rng.normal(size=4)),
    )


@pytest.fixture(scope="module")
def solve():
    return jax.jit(region_step)


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("radius", [1e-3, 0.3, 50.0])
def test_conditions_of_the_trust_region(solve, kind, radius):
    form, gram, w = problem(kind)
    d, multiplier = map(np.asarray, solve(form, gram, w, jnp.array(radius)))
    total = form + multiplier * gram
    assert multiplier >= 0.0
    assert_allclose(total @ d, -w, atol=1e-8)
    assert np.linalg.eigvalsh(total)[0] > -1e-10
    length = np.sqrt(d @ gram @ d)
    assert length <= radius * (1 + 1e-10)
    assert multiplier * abs(length - radius) < 1e-8 * max(1.0, multiplier) * radius


def test_the_hard_case():
    form, w = jnp.diag(jnp.array([-1.0, 2.0])), jnp.array([0.0, 1.0])
    d, multiplier = jax.jit(region_step)(form, jnp.eye(2), w, jnp.array(2.0))
    assert_allclose(multiplier, 1.0)
    assert_allclose(np.linalg.norm(d), 2.0)
    assert_allclose(d[1], -1.0 / 3.0)


def test_the_trust_region_step_is_the_damped_newton_step():
    tx = trust_region(CURVED, 0.05)
    x, state = step(tx, loss, START)
    newton, _ = step(damped_newton(damping=float(state.multiplier) * CURVED), loss, START)
    assert_allclose(x, newton, rtol=0, atol=1e-10)
    assert float(state.radius) in (0.05, pytest.approx(0.1))


def test_damping_from_newton_to_the_natural_gradient():
    lengths = []
    for strength in (1e-9, 0.1, 1.0, 10.0, 1e6):
        x, _ = step(damped_newton(damping=strength * CURVED), loss, START)
        lengths.append(float(vf.geometry.norm(CURVED, START, x - START)))
    assert np.all(np.diff(lengths) < 0.0)
    newton, _ = step(damped_newton(), loss, START)
    assert_allclose(step(damped_newton(damping=1e-9 * CURVED), loss, START)[0], newton, atol=1e-8)
    natural, _ = step(natural_gradient(CURVED, 1e-6), loss, START)
    assert_allclose((x - START) / (natural - START), 1.0, rtol=1e-5)


def test_geodesic_steps_are_straight_where_the_metric_is_flat():
    assert jnp.array_equal(
        step(along_geodesics(optax.sgd(0.3), FLAT), loss, START)[0],
        START - 0.3 * jax.grad(loss)(START),
    )
