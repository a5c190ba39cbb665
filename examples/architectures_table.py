"""Which network the diabetes data prefer: evidence at finite and infinite width, in one table.

Relu and erf units, one hidden layer, in three parametrizations; hyperparameters at the maximum of
the exact evidence of the infinitely wide network.

    python examples/architectures_table.py [--patients 442] [--out folder]
"""

import argparse
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from sklearn.datasets import load_diabetes

import volform as vf
from volform import networks as nn

jax.config.update("jax_enable_x64", True)


def survey(
    patients: int, learned: bool = True, out: Path | None = None, quick: bool = False
) -> vf.architectures.Survey:
    """Architectures on the first patients, standardized; a picture in `out`."""
    x, y = load_diabetes(return_X_y=True)
    x, y = x[:patients], y[:patients]
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    found = vf.architectures.survey(
        jnp.asarray(x),
        jnp.asarray(y),
        activations={"erf": nn.Erf()} if quick else None,
        depths=(1,),
        widths=(32, math.inf),
        noise=0.7,
        learned=learned,
        by_laplace=not quick,
        draws=200,
        progress=False,
    )
    if out is not None:
        ax = vf.plot.evidence_by_width(found)
        ax.figure.savefig(out / "architectures-evidence.png", dpi=150)
        plt.close(ax.figure)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=60)
    parser.add_argument("--out", type=Path, help="folder of the picture")
    options = parser.parse_args()
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    print(survey(options.patients, out=options.out))


if __name__ == "__main__":
    main()
