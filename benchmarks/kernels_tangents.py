"""The solver of neural-tangents, for kernels.py: reads settings from stdin, writes times to stdout.

Needs neural-tangents 0.6.5 and jax 0.5.3, nothing of volform.
"""

import json
import sys
import time
from functools import cache
from typing import Any


@cache
def prepared(n: int, depth: int, dtype: str) -> Any:
    import jax
    import numpy as np
    from neural_tangents import stax

    jax.config.update("jax_enable_x64", True)
    x = jax.numpy.asarray(np.random.default_rng(0).normal(size=(n, 784)).astype(dtype))
    layers = [layer for _ in range(depth) for layer in (stax.Dense(512, 1.4, 0.2), stax.Relu())]
    kernel_fn = stax.serial(*layers, stax.Dense(1, 1.4, 0.2))[2]
    return jax.jit(lambda x: kernel_fn(x, None, ("nngp", "ntk"))), x


def main() -> None:
    for line in sys.stdin:
        import jax

        n, depth, dtype = json.loads(line)
        kernel, x = prepared(n, depth, dtype)
        start = time.perf_counter(), time.process_time()
        found = jax.block_until_ready(kernel(x))
        seconds = time.perf_counter() - start[0], time.process_time() - start[1]
        print(json.dumps([*seconds, float(found.ntk[0, 1])]), flush=True)


if __name__ == "__main__":
    main()
