"""Empirical tangent kernels beside the contraction of Jacobians that JAX's users write by hand.

    python benchmarks/empirical_ntk.py

Each precision in a process of its own, with x64 on for float64 only. Each solver runs once to warm
up (the first column, with compilation), then all take turns; medians of seven, processor time of
all threads. Dtype, shape and value of what both return are asserted.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from volform import kernels as k

ROUNDS = 7
Net = tuple[Callable[[Any, jax.Array], jax.Array], Any, jax.Array]


def arrays(dtype: str, *shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    drawn = [rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])) for shape in shapes]
    return [jnp.asarray(array, dtype) for array in drawn]


def dense(n: int, outputs: int, dtype: str) -> Net:
    shapes = (784, 512), (512,), (512, 512), (512,), (512, outputs), (outputs,)
    params = arrays(dtype, *shapes)

    def f(p: Any, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(x @ p[0] + p[1])
        return jax.nn.relu(x @ p[2] + p[3]) @ p[4] + p[5]

    return f, params, 28 * arrays(dtype, (n, 784))[0]


def convolved(x: jax.Array, w: jax.Array, padding: str = "VALID", stride: int = 1) -> jax.Array:
    layout, strides = ("NHWC", "HWIO", "NHWC"), (stride, stride)
    return jax.lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=layout)


def pooled(x: jax.Array) -> jax.Array:
    sums = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return sums / 4


def lenet(n: int, outputs: int, dtype: str) -> Net:
    shapes = (5, 5, 1, 6), (6,), (5, 5, 6, 16), (16,), (256, 120), (120,), (120, 84), (84,)
    params = arrays(dtype, *shapes, (84, outputs), (outputs,))

    def f(p: Any, x: jax.Array) -> jax.Array:
        x = pooled(jnp.tanh(convolved(x, p[0]) + p[1]))
        x = pooled(jnp.tanh(convolved(x, p[2]) + p[3])).reshape(len(x), -1)
        return jnp.tanh(jnp.tanh(x @ p[4] + p[5]) @ p[6] + p[7]) @ p[8] + p[9]

    return f, params, 10 * arrays(dtype, (n, 28, 28, 1))[0]


def residual(n: int, outputs: int, dtype: str) -> Net:
    """Four blocks of two convolutions of 64 channels, of 8 by 8 pixels."""
    params = arrays(dtype, (3, 3, 3, 64), *[(3, 3, 64, 64)] * 8, (64, outputs))

    def f(p: Any, x: jax.Array) -> jax.Array:
        x = convolved(x, p[0], "SAME", 2)
        for a, b in zip(p[1:9:2], p[2:9:2], strict=True):
            x = x + convolved(jax.nn.relu(convolved(jax.nn.relu(x), a, "SAME")), b, "SAME")
        return jnp.mean(x, (1, 2)) @ p[-1]

    return f, params, 10 * arrays(dtype, (n, 16, 16, 3))[0]


def recurrent(n: int, outputs: int, dtype: str) -> Net:
    """A scan over 20 times: no layer to be found."""
    params = arrays(dtype, (8, 64), (64, 64), (64, outputs))

    def f(p: Any, x: jax.Array) -> jax.Array:
        def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(x @ p[0] + h @ p[1]), None

        start = jnp.zeros((len(x), 64), x.dtype)
        return jax.lax.scan(step, start, jnp.swapaxes(x, 0, 1))[0] @ p[2]

    return f, params, 10 * arrays(dtype, (n, 20, 8))[0]


@partial(jax.jit, static_argnums=0)
def contracted(f: Callable[[Any, jax.Array], jax.Array], params: Any, x: jax.Array) -> jax.Array:
    """The mean over outputs by the Jacobian of each example."""
    jacobian = jax.vmap(jax.jacrev(lambda p, x: f(p, x[None])[0]), (None, 0))(params, x)
    leaves = jax.tree.leaves(jacobian)
    outputs = leaves[0].shape[1]
    rows = [leaf.reshape(len(x), outputs, -1) for leaf in leaves]
    return sum(jnp.einsum("iop,jop->ij", row, row) for row in rows) / outputs


def milliseconds(run: Callable[[], jax.Array]) -> float:
    start = time.process_time()
    jax.block_until_ready(run())
    return 1e3 * (time.process_time() - start)


def measure(dtype: str) -> None:
    jax.config.update("jax_enable_x64", dtype == "float64")
    for net, n, outputs in (
        (dense, 100, 1),
        (dense, 20, 10),
        (lenet, 100, 1),
        (lenet, 100, 10),
        (residual, 20, 10),
        (recurrent, 100, 5),
    ):
        f, params, x = net(n, outputs, dtype)
        runs = {
            "volform": partial(k.empirical_ntk, f, params, x),
            "jacrev": partial(contracted, f, params, x),
        }
        first = {name: milliseconds(run) for name, run in runs.items()}
        found = [run() for run in runs.values()]
        for one in found:
            assert (one.dtype, one.shape) == (jnp.dtype(dtype), (n, n)), (one.dtype, one.shape)
        tolerance = 1e-4 if dtype == "float32" else 1e-11
        size = float(jnp.abs(found[1]).max())
        np.testing.assert_allclose(found[0], found[1], atol=tolerance * size, rtol=tolerance)
        turns = [{name: milliseconds(run) for name, run in runs.items()} for _ in range(ROUNDS)]
        times = {name: statistics.median(turn[name] for turn in turns) for name in runs}
        cells = "".join(f"{first[name]:10.0f}{times[name]:10.1f}" for name in runs)
        ratio = times["jacrev"] / times["volform"]
        print(f"{dtype} {net.__name__:10}{n:5}{outputs:4}{cells}{ratio:8.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--one", choices=["float32", "float64"], help="the precision of this process"
    )
    args = parser.parse_args()
    if args.one:
        measure(args.one)
        return
    print(f"{'':28}{'first':>8}{'volform':>10}{'first':>10}{'jacrev':>10}{'ratio':>8}", flush=True)
    for dtype in ("float32", "float64"):
        subprocess.run([sys.executable, *sys.argv, "--one", dtype], check=True)


if __name__ == "__main__":
    main()
