"""A latent space of digits: shortest paths and means as the decoder's likelihood measures them.

A variational autoencoder with two latent coordinates is trained on the digits 0 to 4 of
scikit-learn, with counts of 0 to 16 in each pixel as a binomial likelihood. Its Fisher metric,
pulled back by the decoder, tells how far apart decoded digits are. After Arvanitidis et al. (2022),
Pulling back information geometry.

    python examples/latent_digits.py --out folder
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
from sklearn.datasets import load_digits

import volform as vf

HIDDEN, STEPS, SHOWN = 32, 1500, 7
# Of the likelihood: neighboring pixels repeat each other.
TEMPER = 0.25


def network(params, x):
    """One hidden layer."""
    (w, b), (v, c) = params
    return jnp.tanh(x @ w + b) @ v + c


def start(key):
    """Parameters of encoder and decoder."""
    widths = [(64, HIDDEN), (HIDDEN, 4), (2, HIDDEN), (HIDDEN, 64)]
    drawn = zip(jax.random.split(key, 4), widths, strict=True)
    made = [(jax.random.normal(k, w) / np.sqrt(w[0]), jnp.zeros(w[1])) for k, w in drawn]
    return made[:2], made[2:]


def encode(params, counts):
    """Mean and log scale of the latent coordinates."""
    return jnp.split(network(params[0], counts / 16.0 - 0.5), 2, -1)


def trained(counts):
    """Parameters after steps of Adam on the evidence lower bound."""
    optimizer = optax.adam(5e-3)

    def loss(params, key):
        mean, log_scale = encode(params, counts)
        z = mean + jnp.exp(log_scale) * jax.random.normal(key, mean.shape)
        log_p = dist.Binomial(16, logits=network(params[1], z)).log_prob(counts).sum(-1)
        kl = 0.5 * (jnp.exp(2.0 * log_scale) + mean**2 - 1.0 - 2.0 * log_scale).sum(-1)
        return jnp.mean(kl - TEMPER * log_p)

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = start(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), STEPS)
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[0][0])
    return run((params, optimizer.init(params)))


def draw(folder, decoder, metric, z, labels, means, paths):
    """The map with both ways, and digits along them; returns the file."""
    figure = plt.figure(figsize=(10.5, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1))
    ax = left.subplots()
    vf.plot.distinguishable(decoder, z, labels, metric=metric, lines=paths, ax=ax)
    for digit, mean in means.items():
        box = {"boxstyle": "circle", "facecolor": "white", "edgecolor": "black"}
        ax.text(*mean, str(digit), fontsize=9, ha="center", va="center", bbox=box, zorder=6)
    ax.set_title("Circles: Fréchet means. Ellipses: equally far")
    ax.title.set_fontsize(9)
    grid = right.subplots(len(paths), SHOWN)
    for row, (name, path) in zip(grid, paths.items(), strict=True):
        steps = np.linspace(0, len(path) - 1, SHOWN).round().astype(int)
        for ax, point in zip(row, path[steps], strict=True):
            ax.imshow(jax.nn.sigmoid(decoder(point)).reshape(8, 8), cmap="Greys", vmin=0, vmax=1)
            ax.set_axis_off()
        row[SHOWN // 2].set_title(name, fontsize=10)
    picture = folder / "latent_digits.png"
    figure.savefig(picture, dpi=110)
    return picture


def main(arguments=None):
    """Train, measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("latent-out"))
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    digits = load_digits()
    kept = digits.target < 5
    counts, labels = jnp.asarray(digits.data[kept]), digits.target[kept]
    params = trained(counts)
    z = encode(params, counts)[0]

    def decoder(point):
        return network(params[1], point)

    metric = vf.Fisher(lambda logits: dist.Binomial(16, logits=logits))
    means = {}
    for digit in range(5):
        own = z[labels == digit][:12]
        means[digit] = vf.layers.frechet_mean(metric, decoder, own, segments=8)
        moved = vf.layers.shortest_path(metric, decoder, own.mean(0), means[digit])
        print(f"{digit}: Fréchet mean {np.round(means[digit], 3)}, {moved.length:.2f} from the "
              "mean of coordinates")  # fmt: skip
    ends = pairs(means)
    path = vf.layers.shortest_path(metric, decoder, *ends, segments=64)
    assert path.length < path.straight
    print(path)
    line = ends[0] + jnp.linspace(0.0, 1.0, 65)[:, None] * (ends[1] - ends[0])
    paths = {"shortest path": path.points, "straight line": line}
    print(f"picture: {draw(given.out, decoder, metric, z, labels, means, paths)}")


def pairs(means):
    """The two means that are farthest apart."""
    found = [(a, b) for a in means.values() for b in means.values()]
    return max(found, key=lambda pair: float(jnp.linalg.norm(pair[0] - pair[1])))


if __name__ == "__main__":
    main()
