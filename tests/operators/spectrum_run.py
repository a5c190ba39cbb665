"""A log-determinant that is written down as it goes: python spectrum_run.py FILE [BATCHES]

With BATCHES the program kills itself after that many batches are on disk.
"""

import os
import signal
import sys
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402

import volform as vf  # noqa: E402
from volform.operators import checkpoint  # noqa: E402

path, *batches = sys.argv[1:]
left = int(batches[0]) if batches else -1
write = checkpoint._write


def counted(*arguments):
    global left
    write(*arguments)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


checkpoint._write = counted
H = vf.operators.hessian(
    lambda x: jnp.sum(jnp.cosh(x) + 0.01 * x[0] * x), jnp.linspace(0.0, 2.0, 30)
)
by = vf.operators.Krylov(jax.random.key(0), probes=8, depth=12, batch=2, checkpoint=str(Path(path)))
print(repr(float(vf.operators.logdet(H, by=by).value)))
