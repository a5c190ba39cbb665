"""NNGP and neural tangent kernels of a relu network beside neural-tangents and a plain recursion.

neural-tangents lives in an environment of its own, with the newest JAX that it runs on:

    python -m venv .venv-tangents
    .venv-tangents/bin/python -m pip install neural-tangents==0.6.5 jax==0.5.3
    python benchmarks/kernels.py --peer-python .venv-tangents/bin/python

Each precision is measured in processes of its own, with x64 on for float64 only: where it is on,
neural-tangents casts inputs of float32 to float64. Dtype and shape of what each side returns are
asserted, and that the values agree.

Three hidden layers, 784 features, the Gram matrices of N examples with themselves. Each solver runs
once to warm up (compilation is left out), then all take turns of a tenth of a second or one run;
medians of five rounds. The ratios are those of the processor time of all threads, which other
programs on the machine disturb less than the clock. `recursion` is the textbook formula by hand,
jitted, a scan over the layers.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from peers_data import turn

from volform import kernels as k, networks as nn

FEATURES, ROUNDS, DEPTH = 784, 5, 3
W, B = 1.4, 0.2
PEER = "neural-tangents"


class Timed(NamedTuple):
    """Time of one run, on the clock and of all processors together, and an entry of the NTK."""

    seconds: float
    processor: float
    value: float


def inputs(n: int, dtype: str) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(n, FEATURES)).astype(dtype))


def network(depth: int) -> nn.Layer:
    layers = [layer for _ in range(depth) for layer in (nn.Dense(512, W, B), nn.Relu())]
    return nn.serial(*layers, nn.Dense(1, W, B))


@partial(jax.jit, static_argnums=1)
def recursion(x: jax.Array, depth: int) -> tuple[jax.Array, jax.Array]:
    K = W**2 * jnp.matmul(x, x.T, precision="highest") / x.shape[1] + B**2

    def layer(state: Any, _: None) -> tuple[Any, None]:
        K, T = state
        variance = jnp.diagonal(K)
        scale = jnp.sqrt(variance[:, None] * variance)
        cosine = jnp.clip(K / scale, -1, 1)
        angle = jnp.arccos(cosine)
        sine = jnp.sqrt(1 - cosine**2)
        slope = (math.pi - angle) / (2 * math.pi)
        K = W**2 * scale * (sine / (2 * math.pi) + slope * cosine) + B**2
        return (K, K + W**2 * T * slope), None

    return jax.lax.scan(layer, (K, K), None, length=depth)[0]


def timed(run: Callable[[], Any]) -> Timed:
    return Timed(*turn(lambda: float(jax.block_until_ready(run())[1][0, 1])))


def checked(run: Callable[[], Any], x: jax.Array) -> Callable[[], Timed]:
    for part in run():
        assert (part.dtype, part.shape) == (x.dtype, (len(x), len(x))), (part.dtype, part.shape)
    return lambda: timed(run)


def solvers(n: int, depth: int, dtype: str) -> dict[str, Callable[[], Timed]]:
    x, net = inputs(n, dtype), network(depth)
    return {
        "volform": checked(lambda: k.kernel(net, x), x),
        "recursion": checked(lambda: recursion(x, depth), x),
    }


class Peer:
    """The process that runs kernels_tangents.py."""

    def __init__(self, python: str, dtype: str) -> None:
        script = str(Path(__file__).with_name("kernels_tangents.py"))
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [python, script, dtype], stdin=pipe, stdout=pipe, stderr=None, text=True
        )

    def timed(self, *settings: Any) -> Timed:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{json.dumps(settings)}\n")
        self.process.stdin.flush()
        return Timed(*json.loads(self.process.stdout.readline()))


def medians(runs: dict[str, Callable[[], Timed]], dtype: str) -> dict[str, Timed]:
    values = [run().value for run in runs.values()]
    tolerance = 1e-4 if dtype == "float32" else 1e-10
    assert np.allclose(values, values[0], rtol=tolerance), values
    rounds = [{name: run() for name, run in runs.items()} for _ in range(ROUNDS)]
    return {
        name: Timed(*map(statistics.median, zip(*(r[name] for r in rounds), strict=True)))
        for name in runs
    }


def peak(*settings: Any) -> int:
    """MiB of kernels of N examples at most, in a process of its own, above those of 16."""
    words = [sys.executable, __file__, "--peak", json.dumps(settings)]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def print_peak(n: int, depth: int, dtype: str, name: str) -> None:
    solvers(16, depth, dtype)[name]()
    before = most_resident()
    solvers(n, depth, dtype)[name]()
    print(round(most_resident() - before))


def most_resident() -> float:
    """MiB. Of the program alone: what `getrusage` says holds that of the process it came from."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def slope(first: Timed, last: Timed, ratio: float) -> float:
    return math.log(last.processor / first.processor) / math.log(ratio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="interpreter of neural-tangents")
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    parser.add_argument(
        "--one", choices=["float32", "float64"], help="the precision of this process"
    )
    parser.add_argument("--peak", help="settings of one run whose memory to print")
    args = parser.parse_args()
    if args.peak:
        settings = json.loads(args.peak)
        jax.config.update("jax_enable_x64", "float64" in settings)
        print_peak(*settings)
    elif args.one:
        jax.config.update("jax_enable_x64", args.one == "float64")
        measure(args.one, args.sizes, args.peer_python)
    else:
        print(f"{'':30}{'seconds':>10}{'CPU':>10}{'ratio':>8}{'MiB':>8}{'value':>12}", flush=True)
        for dtype in args.dtypes:
            subprocess.run([sys.executable, *sys.argv, "--one", dtype], check=True)


def measure(dtype: str, counts: list[int], peer_python: str | None) -> None:
    peer = Peer(peer_python, dtype) if peer_python else None
    own = {}
    for n in counts:
        runs = solvers(n, DEPTH, dtype)
        if peer:
            runs[PEER] = partial(peer.timed, n, DEPTH)
        found = medians(runs, dtype)
        own[n] = found["volform"]
        for name, one in found.items():
            ratio = one.processor / own[n].processor
            memory = ""
            if name != PEER and n == counts[-1]:
                memory = str(peak(n, DEPTH, dtype, name))
            cells = f"{one.seconds:10.4f}{one.processor:10.4f}{ratio:8.2f}{memory:>8}"
            print(f"{dtype} {n:6} {name:16}{cells}{one.value:12.6f}", flush=True)
    sizes = counts[0], counts[-1]
    growth = slope(own[sizes[0]], own[sizes[1]], sizes[1] / sizes[0])
    n = min(1000, sizes[1])
    depths = [medians({"volform": solvers(n, d, dtype)["volform"]}, dtype) for d in (2, 4, 8)]
    each = [one["volform"].processor for one in depths]
    print(f"{dtype}: cost ~ N^{growth:.2f}; N = {n}, depth 2, 4, 8: {np.round(each, 4)}")


if __name__ == "__main__":
    main()
