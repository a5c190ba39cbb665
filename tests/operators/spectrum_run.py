"""A log-determinant that is written down as it goes: python spectrum_run.py FILE [BATCHES]

With BATCHES the program kills itself after that many batches are on disk.
"""

import os
import signal
import sys
from typing import Any


def main(path: str, batches: str = "0") -> None:
    import jax
    import jax.numpy as jnp

    import volform as vf
    from volform.linalg import checkpoint

    jax.config.update("jax_enable_x64", True)
    write, left = checkpoint._write, int(batches)

    def counted(*arguments: Any) -> None:
        nonlocal left
        write(*arguments)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint._write = counted

    def loss(x: Any) -> Any:
        return jnp.sum(jnp.cosh(x) + 0.01 * x[0] * x)

    H = vf.operators.hessian(loss, jnp.linspace(0.0, 2.0, 30))
    by = vf.Krylov(jax.random.key(0), probes=8, depth=12, batch=2, checkpoint=path)
    print(repr(float(vf.linalg.logdet(H, by=by).value)))


if __name__ == "__main__":
    main(*sys.argv[1:])
