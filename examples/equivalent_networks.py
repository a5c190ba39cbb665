"""Two ReLU units seen by all parameters that give the same function, and by the data.

`f(x) = c ReLU(a x) + d ReLU(b x)` has two slopes, `p` above zero and `q` below. If the units see
one side each, the parameters of a function are two sheets, one for each order of the units, behind
a barrier of min(p^2, q^2) / 2; if they see one side both, the orders are joined. After Lengyel et
al. (2020), GENNI, whose slices through two solutions do not show that. The last picture is reduced-
rank regression, whose learning coefficient is known (Aoyagi & Watanabe 2005).

    python examples/equivalent_networks.py --out folder
"""

import argparse
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import volform as vf
from volform import equivalence

KEY = jax.random.key(0)
TARGETS = {  # a, b, c, d
    "one unit on either side: two islands": (1.0, -0.7, 0.8, -0.5 / 0.7),
    "both units on one side: the orders are joined": (-0.9, -0.4, 0.6, 0.3),
}


def units(params, x):
    """The two units on inputs x, shape (n,)."""
    return jnp.maximum(x[:, None] * params["w"][None], 0.0) @ params["c"]


def planes(x, out):
    """The barrier between the orders of the units, and the plane through the path."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.3), layout="constrained")
    found = {}
    for ax, (title, theta) in zip(axes, TARGETS.items(), strict=True):
        a = {"w": jnp.array(theta[:2]), "c": jnp.array(theta[2:])}
        b = jax.tree.map(lambda leaf: leaf[::-1], a)
        target = units(a, x)

        def loss(params, target=target):
            return jnp.mean((units(params, x) - target) ** 2)

        print(title)
        print(" ", equivalence.functional_dimension(units, a, x))
        same = equivalence.search(units, a, x, key=KEY)
        print(" ", str(same).replace("\n", "\n  "))
        path = equivalence.barrier(loss, a, b, by=equivalence.String(KEY))
        print(" ", path)
        found[title] = {"height": path.height, "points": len(same)}
        plane = equivalence.through(a, b, path)
        vf.plot.equivalents(units, a, x, plane=plane, names=("θ", "units exchanged"), ax=ax)
        height = f"{path.height:.3f}" if path.height > 1e-3 else "0"
        ax.set_title(f"{title}, barrier {height}", fontsize=10.5)
    figure.savefig(out / "equivalent_networks.png", dpi=110)
    plt.close(figure)
    return found


def sheets(x, out):
    """All parameters of the two functions, in three coordinates."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(10.5, 4.6), layout="constrained")
    names = ("weight into unit 1", "weight into unit 2", "weight out of unit 1")
    for number, (title, theta) in enumerate(TARGETS.items(), 1):
        params = {"w": jnp.array(theta[:2]), "c": jnp.array(theta[2:])}  # flat: c, then w
        ax = figure.add_subplot(1, 2, number, projection="3d")
        vf.plot.profile(units, params, x, coordinates=(2, 3, 0), names=names, ax=ax)
        ax.set_title(title, fontsize=10.5)
    figure.savefig(out / "equivalent_sheets.png", dpi=110)
    plt.close(figure)


def deep(widths, key, activation):
    """Random parameters and inputs of a network, and the network."""
    keys = jax.random.split(key, len(widths))
    sizes = zip(keys[1:], widths[:-1], widths[1:], strict=True)
    params = [
        (jax.random.normal(k, (n, m)), 0.5 * jax.random.normal(jax.random.fold_in(k, 1), (m,)))
        for k, n, m in sizes
    ]

    def network(params, x):
        for i, (w, b) in enumerate(params):
            x = x @ w + b
            x = activation(x) if i < len(params) - 1 else x
        return x

    return network, params, jax.random.normal(keys[0], (300, widths[0]))


def ranks(out):
    """Directions that change a function: a clear gap for ReLU units, none for analytic ones."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    nets = {
        "2-4-3-1, ReLU": ((2, 4, 3, 1), jax.nn.relu),
        "1-20-1, tanh": ((1, 20, 1), jnp.tanh),
    }
    found = {}
    for ax, (title, (widths, activation)) in zip(axes, nets.items(), strict=True):
        dimension = equivalence.functional_dimension(*deep(widths, jax.random.key(2), activation))
        print(f"{title}: {dimension}")
        vf.plot.rank(dimension, ax=ax)
        ax.set_title(f"{title}: {ax.get_title()}", fontsize=10)
        found[title] = dimension.is_clear
    figure.savefig(out / "functional_dimension.png", dpi=110)
    plt.close(figure)
    return found


def product(y):
    """A 3 x 3 matrix by a product of rank 2."""
    a = numpyro.sample("a", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    numpyro.sample("y", dist.Normal(a @ b, 1.0), obs=y)


def exact_coefficient(power):
    """`-d log Z / d log b` of that product: with `a` integrated out, by the eigenvalues of b b^T.

    They have the density |l - k| exp(-(l + k) / 2), and Z = E prod (1 + b l)^(-3/2).
    """
    logs = np.linspace(-25.0, 6.0, 800)
    l = np.exp(logs)
    k = l[:, None]
    weights = np.abs(l - k) * np.exp(-0.5 * (l + k)) * l * k  # of the logarithms
    weights = weights * ((1.0 + power * l) * (1.0 + power * k)) ** -1.5
    slopes = 1.5 * power * (l / (1.0 + power * l) + k / (1.0 + power * k))
    return float((weights * slopes).sum() / weights.sum())


def coefficient(out, draws):
    """The learning coefficient of a zero matrix, at amounts of data from 1 to 100,000."""
    posterior = vf.condition(product, jnp.zeros((3, 3)))
    by = vf.inference.TemperedNUTS(KEY, powers=(1.0, 10.0, 1e2, 1e3, 1e4), draws=draws)
    at = {"a": jnp.zeros((3, 2)), "b": jnp.zeros((2, 3))}
    found = vf.inference.learning_coefficient(posterior, at=at, by=by)
    print(found)
    ax = vf.plot.learning(found)
    data = np.geomspace(0.3, 3e4, 60)
    ax.plot(data, [2.0 * exact_coefficient(b) for b in data], color=vf.plot.canvas.BLUE,
            label="exact")  # fmt: skip
    ax.axhline(5.0, color=vf.plot.canvas.BLUE, linewidth=1, linestyle=":")
    ax.annotate("2λ = 5: what the evidence pays for (theory)", (1.0, 5.0), xytext=(0, 4),
                textcoords="offset points", fontsize=9, color=vf.plot.canvas.BLUE)  # fmt: skip
    ax.set_xlabel("amount of data, as a power of the likelihood")
    ax.set_title("A product of rank 2 for a 3 × 3 matrix that is zero", fontsize=10.5)
    ax.legend(loc="lower right", frameon=False, fontsize=9)
    vf.plot.figure_of(ax).savefig(out / "learning_coefficient.png", dpi=110)
    return found


def main(arguments=None):
    """Search, lay paths, sample and draw; returns what is printed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("equivalence-out"))
    parser.add_argument("--draws", type=int, default=4000, help="of the learning coefficient")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    side = np.random.default_rng(0).uniform(0.2, 2.0, 60)
    side = side / math.sqrt(np.mean(side**2))  # mean squares of 1/2 on either side, as of N(0, 1)
    x = jnp.asarray(np.concatenate([side, -side]))
    found = {"planes": planes(x, given.out), "ranks": ranks(given.out)}
    sheets(jnp.array([-1.0, -0.5, -0.25, 0.25, 0.5, 1.0]), given.out)
    return found | {"coefficient": coefficient(given.out, given.draws)}


if __name__ == "__main__":
    main()
