"""Matrix-free natural gradient beside Adam on 85,002 parameters, by the time of gradients.

A network 64-256-256-10 on the 1,797 digits of scikit-learn, all of them in each step. A step counts
as the gradients that it takes the time of, both measured here in turns.

    python benchmarks/natural_gradient.py
"""

import argparse
import time

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import numpyro.distributions as dist
import optax
from sklearn.datasets import load_digits

import volform as vf

SIZES, DECAY = (64, 256, 256, 10), 1e-4
BUDGETS = (100, 200, 400, 1000)


def network(params, x):
    for w, b in params[:-1]:
        x = jnp.tanh(w @ x + b)
    w, b = params[-1]
    return w @ x + b


def likelihood(z):
    return dist.Categorical(logits=z)


def problem():
    """Loss, Gauss-Newton matrix as a function of the parameters, and first parameters."""
    digits = load_digits()
    x, y = jnp.asarray(digits.data / 16.0, jnp.float32), jnp.asarray(digits.target)
    keys = jax.random.split(jax.random.key(0), len(SIZES) - 1)
    params = [
        (jax.random.normal(key, (n, m)) / np.sqrt(m).astype(np.float32), jnp.zeros(n))
        for key, m, n in zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    ]

    def loss(params):
        logits = jax.vmap(lambda x: network(params, x))(x)
        fit = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return fit + 0.5 * DECAY * optax.tree.norm(params, squared=True)

    def curvature(params):
        total = vf.operators.fisher(network, likelihood, params, (x, y))
        return total / len(y) + DECAY

    return loss, curvature, params


def seconds(*programs):
    """The least time of each of some programs, called in turns."""
    times = [[] for _ in programs]
    for _ in range(6):
        for program, spent in zip(programs, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(program())
            spent.append(time.perf_counter() - start)
    return [min(spent) for spent in times]


def run(tx, loss, params, one=None):
    """The loss after each budget of gradients, and the gradients that a step takes the time of."""

    @jax.jit
    def step(params, state):
        slope = jax.grad(loss)(params)
        updates, state = tx.update(slope, state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    state, spent, found, cost = tx.init(params), 0.0, [], 1.0
    if one is not None:
        of_step, of_gradient = seconds(lambda: step(params, state), lambda: one(params))
        cost = of_step / of_gradient
    for budget in BUDGETS:
        while spent + cost <= budget:
            params, state = step(params, state)
            spent += cost
        found.append(float(loss(params)))
    assert all(np.isfinite(found))
    return found, cost


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    loss, curvature, params = problem()
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == 85_002
    one = jax.jit(jax.grad(loss))
    print(f"{count:,} parameters; loss after the time of so many gradients")
    print(f"{'':32}" + "".join(f"{budget:>10,}" for budget in BUDGETS))
    for rate in (1e-3, 3e-3, 1e-2):
        found, _ = run(optax.with_extra_args_support(optax.adam(rate)), loss, params)
        print(f"{f'Adam, rate {rate:g}':32}" + "".join(f"{value:10.4f}" for value in found))
    for products in (10, 30):
        solve = lx.CG(rtol=1e-3, atol=1e-8, max_steps=products)
        damping = vf.optimizers.AdaptiveDamping(vf.Euclidean(), start=1e-2)
        tx = vf.optimizers.natural_gradient(curvature, damping=damping, solve=solve)
        found, cost = run(tx, loss, params, one)
        name = f"natural gradient, {products} products"
        print(f"{name:32}" + "".join(f"{value:10.4f}" for value in found), f"({cost:.0f} a step)")


if __name__ == "__main__":
    main()
