"""Losses in two charts of the plane, as the laws of optimizers need them."""

import functools

import jax
import jax.numpy as jnp
import optax
from tests.geometry.laws import PHI

import volform as vf

START = jnp.array([0.7, -0.4])


def loss(t):
    """With no symmetry and one minimum."""
    quadratic = 0.5 * (1.3 * t[0] ** 2 + 0.8 * t[0] * t[1] + 0.9 * t[1] ** 2)
    return quadratic + 0.1 * t[0] ** 4 + 0.3 * jnp.sin(t[1])


def loss_there(p):
    """The same function of psi = PHI(theta)."""
    return loss(PHI.inv(p))


def carried(metric):
    """A metric of theta, in psi."""
    return vf.pullback(metric, PHI.inv)


def step(tx, fn, x, state=None):
    """The point after one update, and the state."""
    tx = optax.with_extra_args_support(tx)
    state = tx.init(x) if state is None else state
    updates, state = tx.update(_gradient(fn)(x), state, x, value_fn=fn)
    return jax.tree.map(jnp.add, x, updates), state


@functools.cache
def _gradient(fn):
    return jax.jit(jax.grad(fn))


def walker(tx, fn, steps):
    """Compiled: from a point to those after each of some updates, itself in front."""
    tx = optax.with_extra_args_support(tx)

    def one(carry, _):
        x, state = carry
        updates, state = tx.update(jax.grad(fn)(x), state, x, value_fn=fn)
        return (x + updates, state), x + updates

    @jax.jit
    def run(x):
        return jnp.concatenate([x[None], jax.lax.scan(one, (x, tx.init(x)), None, steps)[1]])

    return run


@functools.cache
def least():
    """The minimum in theta, by Newton's method."""

    def newton(_, x):
        return x - jnp.linalg.solve(jax.hessian(loss)(x), jax.grad(loss)(x))

    return jax.jit(lambda x: jax.lax.fori_loop(0, 30, newton, x))(START)
