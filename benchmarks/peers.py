"""Evidence, trace and log-determinant beside laplace-torch, curvlinops and matfree.

The peers of PyTorch live in an environment of their own:

    python -m venv .venv-peers
    .venv-peers/bin/python -m pip install torch laplace-torch==0.3 \\
        curvlinops-for-pytorch==3.0.1 backpack-for-pytorch asdfghjkl
    python benchmarks/peers.py --peer-python .venv-peers/bin/python

Each solver runs once to warm up (compilation is left out), then all take turns of a tenth of a
second or one run; medians of five rounds, of one where a run takes longer than 20 seconds. The
ratio is that of the processor time of all threads, which other programs on the machine disturb less
than the clock; OMP_NUM_THREADS=1, OPENBLAS_NUM_THREADS=1 and XLA_FLAGS with
--xla_cpu_multi_thread_eigen=false make both sides use one. Values stand beside the times: the
evidences are equal, and the estimates differ by their random probes.

- evidence: full Gauss-Newton matrix and Laplace evidence of a network with one hidden layer, 150
  points, float64. `eager` is what an interactive user waits for, without a `jit` of one's own.
- trace: of the Hessian of the mean cross-entropy, 512 images, 100 probes, float32.
- log det: of the Gauss-Newton matrix of the same plus 0.1, Lanczos quadrature, 10 probes, depth 20;
  for LeNet only where it is named, since volform and matfree take many minutes on a CPU: XLA runs
  the gradients of convolutions in compiled loops over thirty times slower than outside.

matfree is given products written in plain JAX.
"""

import argparse
import json
import statistics
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import peers_data as data
from curvature import lenet
from jax.flatten_util import ravel_pytree
from matfree import decomp, funm, stochtrace

from volform.linalg import Krylov, logdet, trace
from volform.operators import ggn, hessian

ROUNDS, LONG = 5, 20.0  # one round only where a run takes longer than LONG seconds
Run = Callable[[], Any]


def regression(width: int) -> tuple[Any, jax.Array, jax.Array, Callable]:
    """Parameters, data and the network for one example."""
    layers, x, y = data.regression(width)

    def network(params: Any, x: jax.Array) -> jax.Array:
        (w, b), (v, c) = params
        return (jnp.tanh(x @ w + b) @ v + c)[0]

    return jax.tree.map(jnp.asarray, layers), jnp.asarray(x), jnp.asarray(y[:, 0]), network


def normal(z: jax.Array) -> dist.Distribution:
    return dist.Normal(z, data.NOISE)


def evidence(width: int) -> dict[str, Run]:
    """Ours, as one compiled program and not."""
    params, x, y, network = regression(width)

    def log_joint(params: Any) -> jax.Array:
        z = jax.vmap(network, (None, 0))(params, x)
        flat, _ = ravel_pytree(params)
        return jnp.sum(normal(z).log_prob(y)) - 0.5 * flat @ flat

    def log_z(params: Any) -> jax.Array:
        total = ggn(network, normal, params, (x, y)) + 1.0
        return log_joint(params) - 0.5 * logdet(total).value

    return {"volform": partial(jax.jit(log_z), params), "volform, eager": partial(log_z, params)}


def dense(params: Any, x: jax.Array) -> jax.Array:
    z = x.reshape(len(x), -1)
    for weight, bias in params[:-1]:
        z = jnp.tanh(z @ weight + bias)
    return z @ params[-1][0] + params[-1][1]


def named(params: list) -> dict[str, Any]:
    return dict(zip(("one", "two", "three", "four", "five"), params, strict=False))


def classifier(name: str) -> tuple[Any, Callable]:
    """Parameters, and logits for many images."""
    if name == "LeNet":
        return jax.tree.map(jnp.asarray, named(data.lenet())), lenet
    return jax.tree.map(jnp.asarray, data.dense()), dense


def mean_loss(z: jax.Array, y: jax.Array) -> jax.Array:
    return -jnp.mean(jax.nn.log_softmax(z)[jnp.arange(len(y)), y])


def traces(name: str) -> dict[str, Run]:
    """Ours and matfree's."""
    params, logits = classifier(name)
    x, y = map(jnp.asarray, data.images())
    loss = lambda params: mean_loss(logits(params, x), y)  # noqa: E731
    flat, unravel = ravel_pytree(params)
    gradient = jax.grad(lambda flat: loss(unravel(flat)))
    estimate = stochtrace.estimator_monte_carlo_mean_and_sem(
        stochtrace.monte_carlo_trace(), stochtrace.sampler_signs(flat, num=data.PROBES)
    )
    theirs = jax.jit(
        lambda key, at: estimate(lambda v, at: jax.jvp(gradient, (at,), (v,))[1], key, at)[0]
    )
    H, by = hessian(loss, params), Krylov(jax.random.key(0), probes=data.PROBES)
    return {
        "volform": lambda: trace(H, by=by).value,
        "matfree": lambda: theirs(jax.random.key(0), flat),
    }


def log_dets(name: str) -> dict[str, Run]:
    """Ours and matfree's."""
    params, logits = classifier(name)
    x, y = map(jnp.asarray, data.images())
    flat, unravel = ravel_pytree(params)

    def product(v: jax.Array, at: jax.Array) -> jax.Array:
        z, push = jax.linearize(lambda flat: logits(unravel(flat), x), at)
        weighed = jax.jvp(jax.grad(lambda z: mean_loss(z, y)), (z,), (push(v),))[1]
        return jax.linear_transpose(push, at)(weighed)[0] + data.DAMPING * v

    estimate = stochtrace.estimator_monte_carlo_mean_and_sem(
        funm.monte_carlo_funm_sym_logdet(decomp.tridiag_sym(data.DEPTH)),
        stochtrace.sampler_signs(flat, num=data.LANCZOS_PROBES),
    )
    theirs = jax.jit(lambda key, at: estimate(product, key, at)[0])

    def one(params: Any, image: jax.Array) -> jax.Array:
        return logits(params, image[None])[0]

    G = ggn(one, lambda z: dist.CategoricalLogits(z), params, (x, y)) / len(x) + data.DAMPING
    by = Krylov(jax.random.key(0), probes=data.LANCZOS_PROBES, depth=data.DEPTH)
    return {
        "volform": lambda: logdet(G, by=by).value,
        "matfree": lambda: theirs(jax.random.key(0), flat),
    }


BACKENDS = tuple(f"laplace-torch, {name}" for name in ("BackPACK", "ASDL", "curvlinops"))
CASES = {
    "evidence, width 10": (partial(evidence, 10), BACKENDS),
    "evidence, width 50": (partial(evidence, 50), BACKENDS),
    "evidence, width 200": (partial(evidence, 200), BACKENDS),
    "trace, dense": (partial(traces, "dense"), ("curvlinops",)),
    "log det, dense": (partial(log_dets, "dense"), ("curvlinops",)),
    "trace, LeNet": (partial(traces, "LeNet"), ("curvlinops",)),
    "log det, LeNet": (partial(log_dets, "LeNet"), ("curvlinops",)),
}


class Timed(NamedTuple):
    """Time of one run, on the clock and of all processors together, and its result."""

    seconds: float
    processor: float
    value: float


class Peer:
    """The process that runs peers_torch.py."""

    def __init__(self, python: str) -> None:
        script = str(Path(__file__).with_name("peers_torch.py"))
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([python, script], stdin=pipe, stdout=pipe, text=True)

    def timed(self, case: str, solver: str) -> Timed:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{case}\t{solver}\n")
        self.process.stdin.flush()
        return Timed(*json.loads(self.process.stdout.readline()))


def timed(run: Run) -> Timed:
    return Timed(*data.turn(lambda: float(jax.block_until_ready(run()))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="interpreter of the peers")
    parser.add_argument(
        "cases", nargs="*", choices=[[], *CASES], help="by default all but the last"
    )
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    peer = Peer(args.peer_python)
    print(f"{'':50}{'seconds':>10}{'CPU':>10}{'ratio':>8}{'value':>14}")
    for case in args.cases or list(CASES)[:-1]:
        make, solvers = CASES[case]
        runs = {name: partial(timed, run) for name, run in make().items()}
        runs |= {name: partial(peer.timed, case, name) for name in solvers}
        for run in runs.values():
            run()
        rounds = [{name: run() for name, run in runs.items()}]
        if max(one.seconds for one in rounds[0].values()) < LONG:
            rounds += [{name: run() for name, run in runs.items()} for _ in range(ROUNDS - 1)]
        ours = None
        for name in runs:
            clock, cpu = (statistics.median(r[name][i] for r in rounds) for i in (0, 1))
            ours = ours or cpu
            cells = f"{clock:10.4f}{cpu:10.4f}{cpu / ours:8.2f}{rounds[0][name].value:14.5f}"
            print(f"{case:20}{name:30}{cells}", flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main()
