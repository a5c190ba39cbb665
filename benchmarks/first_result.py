"""Time to the first result in a fresh process, beside NumPyro's own first results.

    python benchmarks/first_result.py [part of a row's name ...]

Each measurement is a process of its own without a compilation cache, the rows by turns; medians of
five rounds. Seconds are processor seconds of the call that a user makes, the first trace and
compilation included and imports left out; "again" is the same call on other data of the same
shapes, in seconds of the clock. Programs are those that XLA compiled.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

ROUNDS = 5
DRAWS, WARMUP, CHAINS = 1000, 1000, 4
STEPS = 1000  # of AutoLaplace's Adam

Call = Callable[[Any], Any]  # of data; what it prints is not timed


def rows() -> dict[str, Callable[[], tuple[Call, Any]]]:
    """For each row a function that gives the call to be timed, and its data."""
    from small_models import MODELS

    flows = {f"fit, second order, print: {name}": _fit_of(name) for name in MODELS}
    return flows | {
        "fit, second order, print: twelve parameters, six multinomials": _six,
        "NumPyro AutoLaplace, 1,000 steps: eight schools": _auto_laplace,
        "NumPyro NUTS, 500 + 500 draws: eight schools": _nuts(500, 500, 1),
        "Importance() after the fit": _estimator("Importance"),
        "Bridge() after the fit": _estimator("Bridge"),
        "NumPyro NUTS, 4 x (1,000 + 1,000) draws": _nuts(WARMUP, DRAWS, CHAINS),
        "compare, README's three models": _compare,
        "NNGP kernel of three layers, 100 examples": _kernel(100),
        "NNGP kernel again, 103 examples": _kernel_again,
    }


def _fit_of(name: str) -> Callable[[], tuple[Call, Any]]:
    def prepare() -> tuple[Call, Any]:
        from small_models import MODELS

        model, data = MODELS[name]
        return _flow(model), data

    return prepare


def _six() -> tuple[Call, Any]:
    from small_models import SIX_COUNTS, six_multinomials

    return _flow(six_multinomials), (SIX_COUNTS,)


def _flow(model: Any) -> Call:
    import jax

    import volform as vf

    def run(data: Any) -> Any:
        posterior = vf.condition(vf.attach(model, vf.JointFisher()), *data)
        fit = vf.find_map(posterior, key=jax.random.key(0))
        evidence = vf.laplace(fit).evidence
        text = f"{fit}\n{evidence}"
        assert evidence.correction is not None, text
        return float(evidence.log_z)

    return run


def _auto_laplace() -> tuple[Call, Any]:
    import jax
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoLaplaceApproximation
    from small_models import MODELS

    model, data = MODELS["eight schools"]

    def run(data: Any) -> Any:
        guide = AutoLaplaceApproximation(model)
        svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
        found = svi.run(jax.random.key(0), STEPS, *data, progress_bar=False)
        return guide.get_posterior(found.params).scale_tril[0, 0]

    return run, data


def _nuts(warmup: int, draws: int, chains: int) -> Callable[[], tuple[Call, Any]]:
    def prepare() -> tuple[Call, Any]:
        import jax
        from numpyro.infer import MCMC, NUTS
        from small_models import MODELS

        model, data = MODELS["eight schools"]

        def run(data: Any) -> Any:
            mcmc = MCMC(
                NUTS(model),
                num_warmup=warmup,
                num_samples=draws,
                num_chains=chains,
                chain_method="vectorized",
                progress_bar=False,
            )
            mcmc.run(jax.random.key(0), *data)
            assert mcmc.get_samples()["mu"].shape == (draws * chains,)
            return float(mcmc.get_samples()["mu"].mean())

        return run, data

    return prepare


def _estimator(name: str) -> Callable[[], tuple[Call, Any]]:
    def prepare() -> tuple[Call, Any]:
        import jax
        from small_models import MODELS

        import volform as vf

        model, data = MODELS["eight schools"]
        fit = vf.find_map(vf.condition(vf.attach(model, vf.JointFisher()), *data))

        def run(data: Any) -> Any:
            found = vf.evidence(fit, by=getattr(vf, name)(), key=jax.random.key(1))
            return float(found.log_z)

        return run, data

    return prepare


def _compare() -> tuple[Call, Any]:
    import numpyro
    import numpyro.distributions as dist
    from small_models import SCHOOLS, SIGMA, eight_schools

    import volform as vf

    def pooled(sigma: Any, y: Any = None) -> None:
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)

    def separate(sigma: Any, y: Any = None) -> None:
        with numpyro.plate("school", 8):
            theta = numpyro.sample("theta", dist.Normal(0, 15))
            numpyro.sample("y", dist.Normal(theta, sigma), obs=y)

    models = {"pooled": pooled, "separate": separate, "hierarchical": eight_schools}

    def run(data: Any) -> Any:
        table = vf.compare(
            {n: vf.condition(vf.attach(m, vf.JointFisher()), *data) for n, m in models.items()}
        )
        assert str(table)
        return float(table.rows[0].evidence.log_z)

    return run, (SIGMA, SCHOOLS)


def _network() -> Any:
    from volform import networks as nn

    hidden = (nn.Dense(512), nn.Relu())
    return nn.serial(*hidden, *hidden, *hidden, nn.Dense(1))


def _kernel(count: int) -> Callable[[], tuple[Call, Any]]:
    def prepare() -> tuple[Call, Any]:
        import numpy as np

        from volform import kernels as k

        net = _network()
        x = np.random.default_rng(0).normal(size=(count, 10))
        return lambda x: float(k.kernel(net, x).nngp[0, 0]), x

    return prepare


def _kernel_again() -> tuple[Call, Any]:
    import numpy as np

    from volform import kernels as k

    net = _network()
    x = np.random.default_rng(0).normal(size=(103, 10))
    k.kernel(net, x[:100])
    return lambda x: float(k.kernel(net, x).nngp[0, 0]), x


def measure(name: str) -> None:
    """Print processor seconds of the first call, seconds of the second, programs and the value."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import numpyro.infer  # noqa: F401 - imports are not timed

    run, data = rows()[name]()
    programs: list[float] = []

    def heard(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            programs.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(heard)
    start = time.process_time()
    value = jax.block_until_ready(run(data))
    first, count = time.process_time() - start, len(programs)
    moved = jax.tree.map(lambda x: x + 0, data)
    start = time.perf_counter()
    jax.block_until_ready(run(moved))
    print(first, time.perf_counter() - start, count, float(value))


def main(parts: list[str]) -> None:
    """Print the table."""
    environment = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k}
    names = [name for name in rows() if not parts or any(part in name for part in parts)]
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name in names:
            command = [sys.executable, __file__, "--row", name]
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env=environment
            )
            found[name].append([float(x) for x in done.stdout.split()])
    print(f"{'':68}{'first, s':>10}{'again, s':>10}{'programs':>10}{'value':>12}")
    for name, measured in found.items():
        first, again, count, value = (
            statistics.median(column) for column in zip(*measured, strict=True)
        )
        print(f"{name:68}{first:10.2f}{again:10.3f}{count:10.0f}{value:12.4f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--row"]:
        measure(sys.argv[2])
    else:
        main(sys.argv[1:])
