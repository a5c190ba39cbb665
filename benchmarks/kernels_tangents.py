"""The solver of neural-tangents, for kernels.py: reads settings from stdin, writes times to stdout.

Needs neural-tangents 0.6.5 and jax 0.5.3, nothing of volform.
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

    jax.config.update("jax_enable_x64", True)
    x = jax.numpy.asarray(np.random.default_rng(0).normal(size=(n, 784)).astype(dtype))
    layers = [layer for _ in range(depth) for layer in (stax.Dense(512, 1.4, 0.2), stax.Relu())]
    kernel_fn = stax.serial(*layers, stax.Dense(1, 1.4, 0.2))[2]
    return jax.jit(lambda x: kernel_fn(x, None, ("nngp", "ntk"))), x


def entry(kernel: Any, x: Any) -> float:
    return float(kernel(x).ntk[0, 1])


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(turn(partial(entry, *prepared(*json.loads(line))))), flush=True)


if __name__ == "__main__":
    main()
