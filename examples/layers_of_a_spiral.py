"""Two spirals, untangled by ten layers: what each layer does to distances.

A residual network `x + tanh(W x + b)` ("C1") is trained for 200 steps. It is then a diffeomorphism:
the volume of the pulled-back metric vanishes nowhere, and the geodesic between two data points has
the length of the chord of the last layer. Trained on, a layer may fold the plane, and the chord is
no distance any more. A network with momentum, `x_{l+1} = 2 x_l - x_{l-1} + tanh(W x_l + b)` ("C2"),
is carried beside it: between its layers the metric is one of pairs and has rank two of four, so
that the balls, drawn at the input, are measured once at the output. After Hauser & Ray (2017),
Principles of Riemannian geometry in neural networks.

    python examples/layers_of_a_spiral.py --out folder
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import volform as vf

DEPTH, COUNT = 10, 400


def spiral(key):
    """Points of two arms, shape (400, 2), and their arms."""
    labels = np.arange(COUNT) % 2
    uniform, noise = jax.random.split(key)
    t = 2.0 * np.pi * np.sqrt(np.asarray(jax.random.uniform(uniform, (COUNT,))))
    arm = (2.0 * t + np.pi)[:, None] * np.stack([np.cos(t), np.sin(t)], 1)
    scatter = 0.2 * np.asarray(jax.random.normal(noise, (COUNT, 2)))
    return jnp.asarray(np.where(labels[:, None] == 1, arm, -arm) + scatter), labels


def steps_of(params):
    """What each layer adds."""
    w, b, _, _ = params
    return [lambda x, w=w, b=b: jnp.tanh(w @ x + b) for w, b in zip(w, b, strict=True)]


def residual(params):
    """The layers of C1 as functions of one point."""
    return vf.layers.layerwise([lambda x, f=f: x + f(x) for f in steps_of(params)])


def with_momentum(params):
    """Those of C2, on pairs of points."""
    return vf.layers.momentum(steps_of(params))


def logit(params):
    """The linear classifier behind the last layer."""
    return lambda h: jnp.vdot(params[2], h) + params[3]


def trained(network: Callable, x, labels, steps, key):
    """Parameters after steps of AdamW on all data, and the loss."""
    first, second = jax.random.split(key)
    w = 0.001 * jax.random.normal(first, (DEPTH, 2, 2))
    params = (w, jnp.zeros((DEPTH, 2)), jax.random.normal(second, (2,)), jnp.zeros(()))
    optimizer = optax.adamw(0.005, weight_decay=0.05)

    def loss(params):
        logits = jax.vmap(lambda x: logit(params)(network(params)(x)))(x)
        return optax.sigmoid_binary_cross_entropy(logits, labels.astype(x.dtype)).mean()

    def step(carry, _):
        params, state = carry
        value, slope = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(slope, state, params)
        return (optax.apply_updates(params, updates), state), value

    start = (params, optimizer.init(params))
    (params, _), losses = jax.jit(lambda c: jax.lax.scan(step, c, length=steps))(start)
    return params, float(losses[-1])


def measured(network: Callable, x, labels, steps, picture):
    """Train, measure and draw one network; returns its parameters, and what is printed of it."""
    params, loss = trained(network, x, jnp.asarray(labels), steps, jax.random.key(12))
    sequence = network(params)
    right = np.asarray(jax.vmap(logit(params))(sequence.activations(x)[-1])) > 0.0
    found = {
        "accuracy": float(np.mean(right == labels)),
        "folded": int(np.sum(np.linalg.det(jax.vmap(jax.jacfwd(sequence))(x)) < 0.0)),
        "largest": float(np.max(np.linalg.norm(params[0], ord=2, axis=(1, 2)))),
    }
    print(f"{network.__name__.replace('_', ' ')}, {steps} steps: loss {loss:.3f}, accuracy "
          f"{found['accuracy']:.3f}, largest |W| {found['largest']:.2f}, "
          f"turned over at {found['folded']} of {COUNT} points")  # fmt: skip
    axes = vf.plot.layers(
        sequence, x, labels, metric=vf.Euclidean(), logits=logit(params), show=(0, 3, 6, DEPTH)
    )
    vf.plot.figure_of(axes[0]).savefig(picture, dpi=110)
    print(f"  picture: {picture}")
    return params, found


def main(arguments=None):
    """Train, measure and draw; returns what is printed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("layers-out"))
    parser.add_argument("--steps", type=int, nargs="+", default=[200, 6000])
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    x, labels = spiral(jax.random.key(0))
    found = {}
    for steps in given.steps:
        params, found[steps] = measured(
            residual, x, labels, steps, given.out / f"layers_{steps}.png"
        )
        if found[steps]["largest"] < 1.0:  # then every layer is one to one
            sequence, (a, b) = residual(params), x[jnp.array([0, 101])]
            length = float(vf.geometry.distance(vf.pullback(vf.Euclidean(), sequence), a, b))
            chord = float(jnp.linalg.norm(sequence(a) - sequence(b)))
            print(f"  geodesic {length:.8f}, chord of the last layer {chord:.8f}, at the input "
                  f"{float(jnp.linalg.norm(a - b)):.4f}")  # fmt: skip
            found["geodesic"], found["chord"] = length, chord
    params, found["momentum"] = measured(
        with_momentum, x, labels, given.steps[0], given.out / "layers_momentum.png"
    )
    ranks = with_momentum(params).pull_back(vf.Euclidean(), x).rank
    print(f"  rank at the input {ranks[0].min()} of 2, between layers {ranks[1:-1].max()} of 4")
    return found


if __name__ == "__main__":
    main()
