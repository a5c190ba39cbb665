"""The solver of neural-tangents, for kernels.py: reads settings from stdin, writes times to stdout.

Needs neural-tangents 0.6.5 and jax 0.5.3, nothing of volform. The argument is the precision, one
for the process: where x64 is on, neural-tangents casts inputs of float32 to float64.
"""

import json
import sys
from functools import cache, partial
from typing import Any

from peers_data import turn


@cache
def prepared(n: int, depth: int, dtype: str) -> Any:
    import jax
    import numpy as np
    from neural_tangents import stax

    jax.config.update("jax_enable_x64", dtype == "float64")
    x = jax.numpy.asarray(np.random.default_rng(0).normal(size=(n, 784)).astype(dtype))
    layers = [layer for _ in range(depth) for layer in (stax.Dense(512, 1.4, 0.2), stax.Relu())]
    kernel_fn = stax.serial(*layers, stax.Dense(1, 1.4, 0.2))[2]
    kernel = jax.jit(lambda x: kernel_fn(x, None, ("nngp", "ntk")))
    for part in kernel(x):
        assert (part.dtype, part.shape) == (x.dtype, (n, n)), (part.dtype, part.shape)
    return kernel, x


def entry(kernel: Any, x: Any) -> float:
    return float(kernel(x).ntk[0, 1])


def main() -> None:
    dtype = sys.argv[1]
    for line in sys.stdin:
        print(json.dumps(turn(partial(entry, *prepared(*json.loads(line), dtype)))), flush=True)


if __name__ == "__main__":
    main()
