"""Times on either side of each size at which another method takes over (`volform.limits`).

    python benchmarks/limits.py [--only newton,bfgs,...]

Processor seconds of one process: the first call, with its compilation, and the median of three
more. The model is a logistic regression of 200 rows with d standard normal coefficients. Run it on
a machine that does nothing else.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpyro
import numpyro.distributions as dist
from numpyro.infer.reparam import LocScaleReparam

import volform as vf
from volform import limits
from volform.inference.laplace.gauss_newton import gauss_newton, rest_diagonal
from volform.inference.laplace.log_evidence import exact_correction
from volform.inference.laplace.stencil import correction_by_differences
from volform.inference.laplace.woodbury import woodbury_precision
from volform.inference.modes.bfgs import bfgs_from
from volform.inference.modes.newton import newton_from
from volform.inference.modes.newton_cg import newton_cg_from
from volform.inference.samplers import nuts
from volform.models import prior_draws

Row = tuple[str, int, float, float]
KEY = jax.random.key(0)


def timed(name: str, size: int, call: Callable[[], Any]) -> Row:
    """Processor seconds of the first call and of later ones."""
    spent = []
    for _ in range(4):
        start = time.process_time()
        jax.block_until_ready(jax.tree.leaves(call()))
        spent.append(time.process_time() - start)
    return name, size, spent[0], statistics.median(spent[1:])


def regression(d: int, n: int = 200) -> Any:
    """Logistic regression with d coefficients."""
    x = jax.random.normal(KEY, (n, d)) / jnp.sqrt(d)
    y = jax.random.bernoulli(jax.random.key(1), jax.nn.sigmoid(x.sum(1))).astype(int)

    def model(x: Any, y: Any) -> None:
        w = numpyro.sample("w", dist.Normal(0, 1).expand([d]).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    return vf.condition(model, x, y)


def quadrature() -> Iterator[Row]:
    for d in (1, 2, 3):
        yield timed(
            "quadrature", d, lambda d=d: vf.evidence(posterior_of(d), by=vf.Quadrature()).log_z
        )


def second_order() -> Iterator[Row]:
    for d in (10, 30, 60):
        fit = vf.find_map(posterior_of(d), progress=False)
        both = {
            "by differences": lambda fit: correction_by_differences(fit.posterior, fit.at).c,
            "exactly": lambda fit: exact_correction(fit.posterior, fit.at.u, fit.at.whitener),
        }
        for how, run in both.items():
            yield timed(
                f"second order {how}",
                d,
                lambda run=run, fit=fit: run(fit),
            )


def newton() -> Iterator[Row]:
    for d in (32, 64, 128, 256):
        starts = prior_draws(posterior_of(d).bound_model, KEY, 4)
        for count in (4, 1):
            yield timed(
                f"Newton from {count} starts",
                d,
                lambda d=d, s=starts[:count]: newton_from(posterior_of(d), s, 1e-8, 200),
            )


def bfgs() -> Iterator[Row]:
    for d in (200, 1000, 2000):
        starts = prior_draws(posterior_of(d).bound_model, KEY, 4)
        yield timed("BFGS", d, lambda d=d, s=starts: bfgs_from(posterior_of(d), s, 200))
        yield timed(
            "conjugate gradients",
            d,
            lambda d=d, s=starts: newton_cg_from(posterior_of(d), s, 1e-4, 200),
        )


def rows() -> Iterator[Row]:
    for d in (500, 1000, 2000):
        posterior = posterior_of(d)
        split = vf.GGN().split(posterior, jnp.zeros(d))
        yield timed(
            "Gauss-Newton matrix, Cholesky", d, lambda s=split: jnp.linalg.cholesky(gauss_newton(s))
        )
        yield timed(
            "rows of the Jacobian", d, lambda s=split: woodbury_precision(s, rest_diagonal(s))
        )


def mass() -> Iterator[Row]:
    for d in (200, 400):
        starts = jnp.zeros((2, d))
        for how, bound in (("dense", 10**9), ("diagonal", 0)):
            nuts.DENSE_MASS_UP_TO = bound
            jax.clear_caches()
            yield timed(
                f"NUTS, {how} mass matrix, 100 + 100",
                d,
                lambda d=d, s=starts: (
                    nuts.run_nuts(posterior_of(d), KEY, s, jnp.eye(d), 100, 100, 0.9, print).u
                ),
            )
    nuts.DENSE_MASS_UP_TO = limits.DENSE_MASS_UP_TO


def jacobians() -> Iterator[Row]:
    def model(d: int) -> None:
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("n", d):
            numpyro.sample("theta", dist.Normal(mu, 1.0))

    centered = numpyro.handlers.reparam(model, config={"theta": LocScaleReparam(0)})
    for d in (256, 512):
        yield timed(
            "condition a reparametrized model", d, lambda d=d: [vf.condition(centered, d).dim]
        )


def metric_check() -> Iterator[Row]:
    for d in (256, 512, 1024):
        metric = vf.geometry.MatrixField(lambda x: jnp.eye(x.size) + jnp.outer(x, x))

        def model(d: int = d) -> None:
            numpyro.sample("x", dist.Normal(0, 1).expand([d]).to_event(1))

        attached = vf.attach(model, {"x": metric})
        yield timed(
            "condition with a metric to look at", d, lambda m=attached: [vf.condition(m).dim]
        )


def logdet() -> Iterator[Row]:
    for n in (1024, 2048, 4096):
        a = jax.random.normal(KEY, (n, n))
        of = lx.MatrixLinearOperator(a @ a.T / n + jnp.eye(n), lx.symmetric_tag)
        yield timed("log det, Exact()", n, lambda of=of: vf.linalg.logdet(of, by=vf.Exact()).value)
        yield timed(
            "log det, Krylov(key)", n, lambda of=of: vf.linalg.logdet(of, by=vf.Krylov(KEY)).value
        )


STUDIES = (quadrature, second_order, newton, bfgs, rows, mass, jacobians, metric_check, logdet)
_MADE: dict[int, Any] = {}


def posterior_of(d: int) -> Any:
    """One posterior a size, so that programs are found again."""
    if d not in _MADE:
        _MADE[d] = regression(d)
    return _MADE[d]


def main() -> None:
    """Print a row for each method and size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="names of studies, with commas")
    only = set(filter(None, parser.parse_args().only.split(",")))
    jax.config.update("jax_enable_x64", True)
    print(f"{'method':<42}{'size':>6}{'first':>9}{'again':>9}  processor seconds")
    for study in STUDIES:
        if not only or study.__name__ in only:
            for name, size, first, again in study():
                print(f"{name:<42}{size:>6}{first:>9.2f}{again:>9.3f}", flush=True)


if __name__ == "__main__":
    main()
