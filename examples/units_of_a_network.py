"""A network of three tanh units: its draws as they are sampled, and one representative of each.

Exchanges of units and their signs make 3! 2^3 = 48 copies of every mode. Chains visit some of them,
so that r-hat and means of weights say nothing; of representatives they do.

    python examples/units_of_a_network.py --out folder
"""

import argparse
from pathlib import Path

import arviz
import jax
import matplotlib
import numpy as np

import volform as vf
from volform import equivalence as eq

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SITES = "layer0.b", "layer0.w", "layer1.w"


def stored():
    """Draws by NUTS, 5 chains of 500, and the inputs."""
    with np.load(Path(__file__).parents[1] / "tests" / "equivalence" / "draws_tanh3.npz") as file:
        return file["x"], {name: file[name] for name in file if name.startswith("layer")}


def diagnosed(draws):
    """Largest r-hat and smallest effective size of the weights and biases of the units."""
    data = arviz.from_dict(posterior={name: draws[name] for name in SITES})
    rhat, ess = arviz.rhat(data), arviz.ess(data)
    largest = max(float(rhat[name].max()) for name in SITES)
    return largest, min(float(ess[name].min()) for name in SITES)


def main():
    """Align the draws, and draw both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path())
    given = parser.parse_args()
    network = vf.networks.MLP(widths=(3,), w_std=2.0, b_std=1.0)
    x, draws = stored()
    group = eq.symmetry(network.apply, network.init(jax.random.key(0), 1), x)
    aligned = eq.representatives(group, draws)
    print(group)
    print(aligned)
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.9), layout="constrained", sharex=True,
                                sharey=True)  # fmt: skip
    for ax, values, title in (
        (axes[0], draws, "as sampled"),
        (axes[1], aligned, "one representative of each copy"),
    ):
        vf.plot.units(values, "layer0.w", "layer1.w", ax=ax)
        rhat, ess = diagnosed(values)
        print(f"{title}: r-hat {rhat:.3f}, {ess:.0f} effective draws")
        ax.set_title(f"{title}\n$\\hat{{r}}$ = {rhat:.2f}, {ess:.0f} effective draws", fontsize=10)
    axes[0].get_legend().remove()
    axes[1].set_ylabel("")
    figure.suptitle(
        "Posterior of a network of three tanh units: 3! 2\u00b3 = 48 copies of a mode", fontsize=11
    )
    figure.savefig(given.out / "units_of_a_network.png", dpi=150)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
