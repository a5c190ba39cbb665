"""Networks of digits by what their Laplace approximation keeps: scores, processor time and memory.

Two networks on scikit-learn's digits, a plain function of a dict of arrays and one of equinox, both
trained by Adam; then a Laplace approximation of each structure at the same weights, the prior
scale of each layer by the evidence (`vf.tune`), each in a process of its own: first call and a
later one of approximation, tuning and linearized predictive, and memory.

    python benchmarks/study.py --out folder
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from jaxtyping import Array
from sklearn.datasets import load_digits

import volform as vf
from volform import networks as nn
from volform.inference import (
    AtMode,
    Full,
    FunctionSpace,
    Kronecker,
    LaplaceBridge,
    LastLayer,
    Linearized,
    Nystrom,
    PerLayer,
    Probit,
)

WIDTHS = 64, 40, 10
HELD_OUT = 500
PRIOR = dist.Normal(0.0, 1.0)
STRUCTURES = {
    "weights alone": None,
    "`Full()`": Full(),
    "`FunctionSpace()`": FunctionSpace(),
    "`Nystrom(300)`": Nystrom(300),
    "`Nystrom(300, leverage=True)`": Nystrom(300, leverage=True),
    "`Kronecker()`": Kronecker(),
    "`Kronecker(corrected=True)`": Kronecker(corrected=True),
    "`LastLayer()`": LastLayer(),
}


def plain() -> tuple[Any, dict[str, Array]]:
    """A multilayer perceptron as a function of a dict of arrays, and the values to start from."""
    params = {}
    keys = jax.random.split(jax.random.key(1), len(WIDTHS))
    for k, (rows, columns) in enumerate(pairwise(WIDTHS)):
        params[f"w{k}"] = jax.random.normal(keys[k], (rows, columns)) / np.sqrt(rows)
        params[f"b{k}"] = jnp.zeros(columns)

    def apply(params: dict[str, Array], x: Array) -> Array:
        for k in range(len(WIDTHS) - 1):
            x = x @ params[f"w{k}"] + params[f"b{k}"]
            x = jax.nn.relu(x) if k < len(WIDTHS) - 2 else x
        return x

    network = nn.from_function(apply, params, PRIOR)
    return network, network.values(params)


def equinox() -> tuple[Any, dict[str, Array]]:
    """The same shape by equinox, with tanh."""
    net = eqx.nn.MLP(64, 10, 40, 1, activation=jnp.tanh, key=jax.random.key(1))
    network = nn.from_function(lambda net, x: jax.vmap(net)(x), net, PRIOR)
    return network, network.values(net)


NETWORKS = {"plain": plain, "equinox": equinox}


def digits(train: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Pixels from 0 to 1 and labels, for training and held out."""
    x, y = load_digits(return_X_y=True)
    order = np.asarray(jax.random.permutation(jax.random.key(0), len(y)))
    x, y = jnp.asarray(x[order] / 16.0), jnp.asarray(y[order])
    return (x[:train], y[:train]), (x[-HELD_OUT:], y[-HELD_OUT:])


def trained(posterior: vf.models.Posterior, start: Array, steps: int) -> Array:
    """The end of Adam on -log q^G, with a step that falls to zero."""
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        u, state = carry
        slope = jax.grad(lambda u: -posterior.log_density(u))(u)
        change, state = optimizer.update(slope, state, u)
        return (u + change, state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, None, steps)[0][0])
    return run((start, optimizer.init(start)))


def peak() -> float:
    """MiB that this process has held at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def one(name: str, structure: str, train: int, weights: str) -> dict[str, Any]:
    """Scores, processor seconds of the first call and a later one, and memory of one row."""
    network, _ = NETWORKS[name]()
    (x, y), (x_new, y_new) = digits(train)
    posterior = vf.condition(nn.classification(network), x, y)
    at = posterior.values(jnp.load(weights))
    kept, seconds, log_z, before = STRUCTURES[structure], [], None, peak()
    predicted: Any = None
    link = AtMode() if kept is None else Probit()
    for _ in range(2):
        begin = time.process_time()
        approx = vf.laplace(posterior, at=at, curvature=vf.GGN(), structure=kept or LastLayer())
        if kept is not None:
            tuned = vf.tune(approx, scales=PerLayer())
            approx, log_z = tuned.approx, tuned.log_z[1]
        predicted = approx.predictive(x_new, by=Linearized(link=link))["y"]
        jax.block_until_ready(predicted.logits)
        seconds.append(time.process_time() - begin)
    several = {"probit": predicted}
    if kept is not None:
        by = Linearized(link=LaplaceBridge())
        several["bridge"] = approx.predictive(x_new, by=by)["y"]
    found = vf.inference.class_scores(several, y_new)
    scores = {f"{key} {n}": str(getattr(found[n], key)) for n in several for key in ("nll", "ece")}
    times = {"first": seconds[0], "later": seconds[-1], "memory": peak() - before}
    return {"log_z": log_z, **scores, **(times if kept is not None else {})}


def row(name: str, structure: str, train: int, weights: str) -> str:
    """A row of the table, by a process of its own."""
    words = [sys.executable, __file__, "--one", json.dumps([name, structure, train, weights])]
    found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    numbers = [
        "" if found["log_z"] is None else f"{found['log_z']:,.1f}".replace("-", "−"),
        *(found.get(f"{key} {n}", "") for n in ("probit", "bridge") for key in ("nll", "ece")),
        *(f"{found[key]:.2g}" if key in found else "" for key in ("first", "later")),
        f"{found['memory']:.0f}" if "memory" in found else "",
    ]
    return f"| {name} | {structure} | {' | '.join(numbers)} |"


def table(train: int, steps: int) -> str:
    """The table in Markdown."""
    scores = [f"{key}, {link}" for link in ("probit", "bridge") for key in ("NLL", "ECE")]
    heads = ["network", "kept", "log Z", *scores, "first, s", "later, s", "MiB"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    with tempfile.TemporaryDirectory() as folder:
        for name, build in NETWORKS.items():
            network, start = build()
            posterior = vf.condition(nn.classification(network), *digits(train)[0])
            weights = str(Path(folder) / f"{name}.npy")
            jnp.save(weights, trained(posterior, posterior.unconstrain(start), steps))
            for structure in STRUCTURES:
                lines.append(row(name, structure, train, weights))
                print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table, and write it to study.md."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--train", type=int, default=300, help="digits that are trained on")
    parser.add_argument("--steps", type=int, default=1500, help="of Adam")
    parser.add_argument("--out", type=Path, help="folder of study.md")
    parser.add_argument("--one", help="one row, for the process that asks")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if args.one:
        print(json.dumps(one(*json.loads(args.one))))
        return
    found = table(args.train, args.steps)
    if args.out:
        (args.out / "study.md").write_text(found)


if __name__ == "__main__":
    main()
