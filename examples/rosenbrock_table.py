"""Steps of optimizers on Rosenbrock's function, each row asserted.

`L(x, y) = (1 - x)^2 + 100 (y - x^2)^2` is `|z|^2` of the outputs `z = (x - 1, 10 (y - x^2))`, which
is a diffeomorphism of the plane: in the coordinates z everything is a circle. The metric of the
outputs, pulled back, knows it. Counted are the steps from (-1.2, 1) to a loss below 1e-8. The
functions and step counts are those of R. Grosse's lecture on metrics (CSC 2541, 2022).

    python examples/rosenbrock_table.py
"""

import argparse

import jax
import jax.numpy as jnp
import optax

import volform as vf

START, STOP, NEVER = (-1.2, 1.0), 1e-8, 30_000


def outputs(w):
    """z, whose squared length is the loss."""
    return jnp.stack([w[0] - 1.0, 10.0 * (w[1] - w[0] ** 2)])


def of_outputs(z):
    return jnp.sum(z**2)


def loss(w):
    return of_outputs(outputs(w))


FLAT = vf.Euclidean()
PULLED = vf.pullback(FLAT, outputs)
NEAR = vf.optimizers.SquaredDistance()
BEHIND = vf.optimizers.PulledBack(NEAR, outputs)


def newton_by_exp(strength):
    step = vf.optimizers.damped_newton(damping=strength * PULLED, connection=PULLED)
    return vf.optimizers.along_geodesics(step, PULLED)


# name of the number, optimizer of it, and the steps for each of its values; None is never.
TABLE = {
    "gradient descent": (
        "rate",
        optax.sgd,
        {1e-3: 20_829, 2e-3: 10_373, 3e-3: None},  # stable up to 2 / 1001.6
    ),
    "heavy ball, momentum .99": ("rate", lambda rate: optax.sgd(rate, 0.99), {5e-4: 1_107}),
    "natural gradient": (
        "rate",
        lambda rate: vf.optimizers.natural_gradient(PULLED, rate),
        {0.5: 2, 0.25: 20, 0.1: 54, 0.05: 110, 1.0: None},
    ),
    "Newton": ("", lambda _: vf.optimizers.damped_newton(), {0.0: 5}),
    "Newton damped by I": (
        "damping",
        lambda strength: vf.optimizers.damped_newton(damping=strength * FLAT),
        {0.1: 11, 1.0: 33, 10.0: 219, 100.0: 2_094},
    ),
    "Newton damped by G": (
        "damping",
        lambda strength: vf.optimizers.damped_newton(damping=strength * PULLED),
        {0.01: 11, 0.1: 17, 1.0: 27, 10.0: 82, 100.0: 575},
    ),
    "Gauss-Newton damped by I": (
        "damping",
        lambda strength: vf.optimizers.natural_gradient(2.0 * PULLED, damping=strength * FLAT),
        {0.1: 7, 1.0: 27, 10.0: 214, 100.0: 2_089},
    ),
    "Newton by exp": ("damping", newton_by_exp, {0.01: 3, 0.1: 4, 1.0: 10, 10.0: 60, 100.0: 546}),
    "proximal point in z": (
        "strength",
        lambda strength: vf.optimizers.proximal_point(BEHIND, strength),
        {0.01: 3, 0.1: 4, 1.0: 10, 10.0: 60, 100.0: 546},
    ),
    "proximal point": (
        "strength",
        lambda strength: vf.optimizers.proximal_point(NEAR, strength),
        {0.01: 3, 0.1: 6, 1.0: 25, 10.0: 214, 100.0: 2_090},
    ),
    "descent of the outputs": (
        "rate",
        lambda rate: vf.optimizers.output_space_descent(outputs, of_outputs, rate),
        {0.5: 1, 0.25: 16, 0.1: 49},
    ),
}


def counter(build):
    """Compiled: number of the optimizer to (steps taken, last loss)."""

    @jax.jit
    def count(number):
        tx = optax.with_extra_args_support(build(number))
        start = jnp.array(START)

        def goes_on(carry):
            w, _, steps = carry
            return (loss(w) >= STOP) & (steps < NEVER) & jnp.isfinite(loss(w))

        def step(carry):
            w, state, steps = carry
            updates, state = tx.update(jax.grad(loss)(w), state, w, value_fn=loss)
            return optax.apply_updates(w, updates), state, steps + 1

        w, _, steps = jax.lax.while_loop(goes_on, step, (start, tx.init(start), 0))
        return steps, loss(w)

    return count


def steps_of(method):
    """The steps for each value of a method's number; None where it does not get there."""
    _, build, expected = TABLE[method]
    count = counter(build)
    found = {number: count(jnp.asarray(number)) for number in expected}
    return {number: int(n) if value < STOP else None for number, (n, value) in found.items()}


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    jax.config.update("jax_enable_x64", True)
    print(f"{'method':28}{'':10}{'steps':>8}")
    rows = 0
    for method, (name, _, expected) in TABLE.items():
        found = steps_of(method)
        for number, steps in found.items():
            shown = f"{name} {number:g}" if name else ""
            print(f"{method:28}{shown:14}{'never' if steps is None else f'{steps:,}':>8}")
            rows += 1
        assert found == expected, (method, found, expected)
    print(f"{rows} rows, all as expected")


if __name__ == "__main__":
    main()
