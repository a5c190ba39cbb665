"""A program to run on several devices, or in several processes: what it prints should not differ.

python tests/operators/devices.py DEVICES [PROCESS PROCESSES PORT]
"""

import json
import os
import sys
from typing import Any


def measured() -> dict[str, Any]:
    """Numbers of data that are spread over all devices."""
    import jax
    import numpy as np
    import numpyro.distributions as dist

    import volform as vf
    from volform import linalg, networks as nn, operators as ops
    from volform.inference import GGN, Kronecker

    net = nn.MLP(widths=(4,), outputs=3, b_std=1.0)
    rng = np.random.default_rng(0)
    x, y = ops.sharded((rng.normal(size=(24, 5)), rng.integers(0, 3, size=24)))
    params = net.init(jax.random.key(0), 5)

    def network(params: Any, x: Any) -> Any:
        return net.apply(params, x[None])[0]

    def loss(params: Any, example: Any) -> Any:
        x, y = example
        return -dist.CategoricalLogits(network(params, x)).log_prob(y)

    G = ops.ggn(network, dist.CategoricalLogits, params, (x, y), chunk=8)
    H = ops.hessian(loss, params, (x, y))
    posterior = vf.condition(nn.classification(net), x, y)
    approx = vf.laplace(posterior, at=params, curvature=GGN(), structure=Kronecker())
    return {
        "shards": len(x.sharding.device_set),
        "log det": float(linalg.logdet(G + 1.0, by=linalg.Exact()).value),
        "trace": float(linalg.trace(H, by=linalg.Krylov(jax.random.key(0), probes=8)).value),
        "log Z": float(approx.evidence.log_z),
        **of_kernels(),
    }


def of_kernels() -> dict[str, Any]:
    """Numbers of kernels of data that are spread over all devices."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from volform import kernels as k, linalg, networks as nn, operators as ops

    net = nn.serial(nn.Dense(8), nn.Dropout(0.9), nn.Dense(1))  # entries differ on the diagonal
    rng = np.random.default_rng(0)
    x, y, v = rng.normal(size=(40, 34)), rng.normal(size=40), jnp.arange(40.0)
    x[3] = x[21]
    x, y = ops.sharded((x, y))
    kernel, cross = k.kernel(net, x, tile=4), k.kernel(net, x, np.ones((5, 34)), tile=3)
    matrix = k.ntk_operator(net, x, tile=4)
    estimate = k.evidence(net, x, y, noise=0.3, by=linalg.Krylov(jax.random.key(0), probes=4))
    return {
        "shards of kernels": len(kernel.nngp.sharding.device_set),
        "symmetric": float(jnp.max(jnp.abs(kernel.nngp - kernel.nngp.T))),
        "nngp": float(v @ jnp.sin(kernel.nngp) @ v),
        "ntk": float(v @ kernel.ntk @ v**2),
        "cross": float(jnp.sum(v @ cross.ntk)),
        "product": float(v**2 @ matrix.mv(v)),
        "evidence": float(estimate.log_z),
    }


def main(devices: int, process: int = 0, processes: int = 1, port: int = 0) -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}"
    import jax

    jax.config.update("jax_enable_x64", True)
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
    print(json.dumps(measured()))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
