"""Operators of curvature beside plain JAX and matfree: what each is timed on.

    python benchmarks/curvature.py

prints the best of alternating rounds, in milliseconds. Compilation is left out.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from matfree import decomp, funm, stochtrace

from volform.linalg import Krylov, logdet, trace
from volform.operators import fisher, ggn, hessian

ROUNDS = 5  # at least
Pair = tuple[Callable[[], Any], Callable[[], Any]]


def lenet(params: dict, images: Any) -> Any:
    """LeNet-5 on images of 28 by 28: 61,706 parameters, ten logits."""
    x = images[..., None]
    for name, padding in (("one", "SAME"), ("two", "VALID")):
        kernel, bias = params[name]
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jnp.tanh(x + bias)
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    x = x.reshape(len(x), -1)
    for name in ("three", "four"):
        x = jnp.tanh(x @ params[name][0] + params[name][1])
    return x @ params["five"][0] + params["five"][1]


def lenet_loss(count: int) -> tuple[Callable, dict]:
    """Cross-entropy of LeNet on synthetic images, and its parameters."""
    shapes = {
        "one": (5, 5, 1, 6),
        "two": (5, 5, 6, 16),
        "three": (400, 120),
        "four": (120, 84),
        "five": (84, 10),
    }
    rng = np.random.default_rng(0)
    params = {
        name: (
            jnp.asarray(rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])), jnp.float32),
            jnp.zeros(shape[-1], jnp.float32),
        )
        for name, shape in shapes.items()
    }
    images = jnp.asarray(rng.normal(size=(count, 28, 28)), jnp.float32)
    labels = jnp.asarray(rng.integers(10, size=count))

    def loss(params: dict) -> Any:
        return -jnp.mean(jax.nn.log_softmax(lenet(params, images))[jnp.arange(count), labels])

    return loss, params


def hessian_vector() -> Pair:
    """A Hessian-vector product at LeNet's size, 512 images, against jvp of grad."""
    loss, params = lenet_loss(512)
    vector = jax.tree.map(jnp.ones_like, params)
    H = hessian(loss, params)
    bare = jax.jit(lambda p, v: jax.jvp(jax.grad(loss), (p,), (v,))[1])
    return (lambda: H.mv(vector)), (lambda: bare(params, vector))


def _flat_product(loss: Callable, params: Any) -> tuple[Callable, Any]:
    flat, unravel = ravel_pytree(params)
    gradient = jax.grad(lambda flat: loss(unravel(flat)))
    return (lambda v, p: jax.jvp(gradient, (p,), (v,))[1]), flat


def trace_by_probes() -> Pair:
    """Trace from 100 probes, LeNet on 16 images, against matfree's estimator."""
    loss, params = lenet_loss(16)
    product, flat = _flat_product(loss, params)
    sampler = stochtrace.sampler_signs(flat, num=100)
    integrand = stochtrace.monte_carlo_trace()
    estimate = stochtrace.estimator_monte_carlo_mean_and_sem(integrand, sampler)
    theirs = jax.jit(lambda key, p: estimate(product, key, p))
    H, key = hessian(loss, params), jax.random.key(0)
    return (lambda: trace(H, by=Krylov(key, probes=100)).value), (lambda: theirs(key, flat))


def logdet_by_quadrature() -> Pair:
    """log det by Lanczos quadrature, 10 probes of depth 20, against matfree's."""
    loss, params = lenet_loss(16)
    product, flat = _flat_product(loss, params)
    integrand = funm.monte_carlo_funm_sym_logdet(decomp.tridiag_sym(20))
    sampler = stochtrace.sampler_signs(flat, num=10)
    estimate = stochtrace.estimator_monte_carlo_mean_and_sem(integrand, sampler)
    theirs = jax.jit(lambda key, p: estimate(lambda v, p: product(v, p) + 10.0 * v, key, p))
    total, key = hessian(loss, params) + 10.0, jax.random.key(0)
    by = Krylov(key, probes=10, depth=20)
    return (lambda: logdet(total, by=by).value), (lambda: theirs(key, flat))


def _toy(width: int) -> tuple[dict, Any, Any]:
    rng = np.random.default_rng(width)
    params = {
        "w": jnp.asarray(rng.normal(size=width)),
        "b": jnp.asarray(rng.normal(size=width)),
        "v": jnp.asarray(rng.normal(size=width) / np.sqrt(width)),
        "c": jnp.zeros(()),
    }
    x = jnp.linspace(0.0, 8.0, 150)
    return params, x, jnp.sin(x)


def _net(params: dict, x: Any) -> Any:
    return jnp.tanh(params["w"] * x + params["b"]) @ params["v"] + params["c"]


def _normal(z: Any) -> dist.Distribution:
    return dist.Normal(z, 0.3)


def evidence_of(width: int) -> Callable[[], Pair]:
    """Laplace evidence of a one-layer net, 150 points, prior precision one, under `jit`."""

    def make() -> Pair:
        params, x, y = _toy(width)

        def log_joint(params: dict) -> Any:
            residuals = y - jax.vmap(_net, (None, 0))(params, x)
            flat, _ = ravel_pytree(params)
            return -0.5 * residuals @ residuals / 0.09 - 0.5 * flat @ flat

        @jax.jit
        def ours(params: dict) -> Any:
            total = ggn(_net, _normal, params, (x, y)) + 1.0
            return log_joint(params) - 0.5 * logdet(total).value

        @jax.jit
        def bare(params: dict) -> Any:
            rows = jax.vmap(lambda x: ravel_pytree(jax.grad(_net)(params, x))[0])(x) / 0.3
            small = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
            chol = jnp.linalg.cholesky(small + jnp.eye(len(small)))
            return log_joint(params) - jnp.sum(jnp.log(jnp.diagonal(chol)))

        return (lambda: ours(params)), (lambda: bare(params))

    return make


def eager_evidence() -> Pair:
    """The same at width 200 without `jit` of one's own: what an interactive user waits for."""
    params, x, y = _toy(200)
    prior = lx.DiagonalLinearOperator(jax.tree.map(jnp.ones_like, params))
    operator = fisher(_net, _normal, params, (x, y))
    _, bare = evidence_of(200)()
    return (lambda: logdet(prior + operator).value), bare


CASES = {
    "Hessian-vector product, LeNet, 512 images": hessian_vector,
    "trace, 100 probes, LeNet": trace_by_probes,
    "log det by quadrature, LeNet": logdet_by_quadrature,
    "evidence, width 10": evidence_of(10),
    "evidence, width 50": evidence_of(50),
    "evidence, width 200": evidence_of(200),
    "evidence, width 200, not compiled as a whole": eager_evidence,
}


def seconds(run: Callable[[], Any]) -> float:
    """Time of one run."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def main() -> None:
    print(f"{'':46}{'volform':>10}{'other':>10}{'ratio':>8}")
    for name, make in CASES.items():
        pair = make()
        jax.block_until_ready([run() for run in pair])
        rounds = max(ROUNDS, min(500, int(1.0 / seconds(pair[1]))))
        found = [[seconds(run) for run in pair] for _ in range(rounds)]
        ours, theirs = (min(column) for column in zip(*found, strict=True))
        print(f"{name:46}{1e3 * ours:10.3f}{1e3 * theirs:10.3f}{ours / theirs:8.2f}", flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
