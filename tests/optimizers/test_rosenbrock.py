"""Rows of the table of steps on Rosenbrock's function; all of them by `examples/`."""

import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import volform as vf

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import rosenbrock_table as table

sys.path.pop(0)

CHEAP = [
    "gradient descent",
    "natural gradient",
    "Newton",
    "Newton damped by I",
    "Newton damped by G",
    "Gauss-Newton damped by I",
    "descent of the outputs",
]


@pytest.mark.parametrize("method", CHEAP)
def test_rows(method):
    assert table.steps_of(method) == table.TABLE[method][2]


@pytest.mark.slow
def test_all_rows(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rosenbrock_table.py"])
    table.main()
    assert "41 rows, all as expected" in capsys.readouterr().out


def test_the_closed_form_of_the_proximal_point():
    """The loss falls by (1 + 2 / lambda)^2 in each step: ceil(ln(h0 / tol) / 2 ln(1 + 2 / lam))."""
    start = table.loss(jnp.array(table.START))
    for strength, steps in table.TABLE["proximal point in z"][2].items():
        rate = 2.0 * math.log1p(2.0 / strength)
        assert steps == math.ceil(math.log(float(start) / table.STOP) / rate)
    assert table.TABLE["proximal point in z"][2] == table.TABLE["Newton by exp"][2]


@pytest.fixture(scope="module")
def proximal_and_geodesic():
    """One step from the start, compiled for all strengths, by two optimizers."""

    def one(build):
        def step(strength):
            tx, x = build(strength), jnp.array(table.START)
            updates = tx.update(jax.grad(table.loss)(x), tx.init(x), x, value_fn=table.loss)[0]
            return x + updates

        return jax.jit(step)

    rows = table.TABLE
    return one(rows["proximal point in z"][1]), one(rows["Newton by exp"][1])


@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0, 1000.0])
def test_newton_by_exp_is_the_proximal_point(proximal_and_geodesic, strength):
    """Exactly, since the covariant Hessian is 2 G and geodesics are straight lines of z."""
    proximal, geodesic = (step(jnp.array(strength)) for step in proximal_and_geodesic)
    start = jnp.array(table.START)
    z = table.outputs(start) * strength / (2.0 + strength)  # argmin |z|^2 + lam/2 |z - z0|^2
    exact = jnp.stack([1.0 + z[0], z[1] / 10.0 + (1.0 + z[0]) ** 2])
    assert_allclose(proximal, exact, rtol=0, atol=1e-11)
    assert_allclose(geodesic, exact, rtol=0, atol=1e-11)


def test_straight_newton_steps_are_not():
    x = jnp.array(table.START)
    tx = vf.optimizers.damped_newton(damping=1.0 * table.PULLED, connection=table.PULLED)
    updates, _ = tx.update(jax.grad(table.loss)(x), tx.init(x), x, value_fn=table.loss)
    z = table.outputs(x + updates)
    assert np.abs(z - table.outputs(x) / 3.0).max() > 0.1
