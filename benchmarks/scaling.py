"""Time of trace and log det against the number of parameters and of data, and peak memory.

    python benchmarks/scaling.py

A dense network of two layers, the Gauss-Newton matrix of the mean squared error, float32, chunks of
100 examples at most, 2 probes and depth 4: the same at every size, so that the slopes of the
logarithms mean something; for an answer of any accuracy both would be larger, and the time in
proportion. Each size runs in a process of its own, whose largest resident set is the memory;
compilation is left out of the time and part of the memory.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

PARAMETERS = (10**4, 10**5, 10**6, 10**7)  # with 100 examples
EXAMPLES = (10**3, 10**4, 10**5, 10**6)  # with 10^3 parameters
FEW_EXAMPLES, FEW_PARAMETERS = 100, 10**3
INPUTS, PROBES, DEPTH, CHUNK, ROUNDS = 98, 2, 4, 100, 3


def measure(parameters: int, examples: int) -> None:
    """Print the actual number of parameters, two times in seconds and the peak memory in GiB."""
    import jax
    import jax.numpy as jnp
    import numpyro.distributions as dist

    from volform.linalg import Krylov, logdet, trace
    from volform.operators import ggn

    units = parameters // (INPUTS + 2)
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "w": jax.random.normal(keys[0], (INPUTS, units)) / INPUTS**0.5,
        "b": jnp.zeros(units),
        "v": jax.random.normal(keys[1], (units,)) / units**0.5,
    }
    x = jax.random.normal(keys[2], (examples, INPUTS))
    y = jax.random.normal(keys[3], (examples,))

    def network(params: dict, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"]

    def normal(z: jax.Array) -> dist.Distribution:
        return dist.Normal(z, 1.0)

    by = Krylov(jax.random.key(0), probes=PROBES, depth=DEPTH)
    operator = ggn(network, normal, params, (x, y), chunk=CHUNK) / examples
    times = []
    for functional, of in ((trace, operator), (logdet, operator + 1.0)):
        found = []
        for _ in range(ROUNDS + 1):
            start = time.process_time()
            jax.block_until_ready(functional(of, by=by).value)
            found.append(time.process_time() - start)
        times.append(statistics.median(found[1:]))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps([size, *times, peak]))


def slope(sizes: list[float], times: list[float]) -> float:
    """Of log time against log size, by least squares."""
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, type=int, metavar=("PARAMETERS", "EXAMPLES"))
    args = parser.parse_args()
    if args.one:
        measure(*args.one)
        return
    series = {
        "parameters": [(size, FEW_EXAMPLES) for size in PARAMETERS],
        "examples": [(FEW_PARAMETERS, count) for count in EXAMPLES],
    }
    for name, sizes in series.items():
        rows = []
        print(f"{'parameters':>12}{'examples':>12}{'trace, s':>12}{'log det, s':>12}{'GiB':>8}")
        for parameters, examples in sizes:
            command = [sys.executable, __file__, "--one", str(parameters), str(examples)]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            size, *times, peak = json.loads(out)
            rows.append((size if name == "parameters" else examples, *times))
            print(
                f"{size:12,d}{examples:12,d}{times[0]:12.4f}{times[1]:12.4f}{peak:8.2f}", flush=True
            )
        columns = [list(column) for column in zip(*rows, strict=True)]
        slopes = [slope(columns[0], times) for times in columns[1:]]
        last = [slope(columns[0][-2:], times[-2:]) for times in columns[1:]]
        print(f"slope in {name}: trace {slopes[0]:.2f}, log det {slopes[1]:.2f};", end=" ")
        print(f"of the last two {last[0]:.2f}, {last[1]:.2f}\n", flush=True)


if __name__ == "__main__":
    main()
