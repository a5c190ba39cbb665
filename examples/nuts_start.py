"""What NUTS saves in gradient evaluations when it starts from the Laplace approximation.

NumPyro's NUTS warms up for 1000 steps, in which it adapts the step size and a mass matrix,
diagonal by default or dense. `vf.nuts` begins at the mode of q^G with the inverse mass matrix H^-1
and adapts the step size alone, in 100 steps. All then draw 1000 samples in each of four chains.
Gradient evaluations are leapfrog steps, those of the warm-up included.

    python examples/nuts_start.py
"""

import argparse
import dataclasses
from collections.abc import Callable

import eight_schools_table as schools
import jax
import numpy as np
import numpyro.distributions as dist
import regression_table as regression
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS
from rich.console import Console
from rich.table import Table

import volform as vf


@dataclasses.dataclass(frozen=True)
class Row:
    """Cost and yield of one run, all chains together."""

    model: str
    kernel: str
    laplace: int
    warmup: int
    sampling: int
    smallest_ess: float
    divergences: int

    @property
    def gradients(self) -> int:
        return self.laplace + self.warmup + self.sampling

    @property
    def ess_per_thousand(self) -> float:
        return 1000 * self.smallest_ess / self.gradients


def run(kernel: NUTS, warmup: int, samples: int, *args, **kwargs) -> tuple[int, int, float, int]:
    """Gradients of warm-up and of sampling, smallest effective sample size, divergences."""
    mcmc = MCMC(
        kernel,
        num_warmup=warmup,
        num_samples=samples,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    counted = ("num_steps", "diverging")
    mcmc.warmup(jax.random.key(0), *args, extra_fields=counted, collect_warmup=True, **kwargs)
    before = int(mcmc.get_extra_fields()["num_steps"].sum())
    mcmc.run(jax.random.key(1), *args, extra_fields=counted, **kwargs)
    fields = mcmc.get_extra_fields()
    draws = mcmc.get_samples(group_by_chain=True).values()
    sizes = [np.min(effective_sample_size(np.asarray(value))) for value in draws]
    return before, int(fields["num_steps"].sum()), min(sizes), int(fields["diverging"].sum())


def gradients_of(fit: vf.inference.MAP) -> int:
    """What the Laplace approximation cost: a Hessian counts as one gradient for each column."""
    descents, newtons = fit.steps
    return descents + newtons * (1 + fit.posterior.dim)


def compare(
    name: str, model: Callable, metric: vf.Metric, samples: int, *args, **kwargs
) -> list[Row]:
    """One model by the three kernels."""
    plain = {"default": NUTS(model), "dense": NUTS(model, dense_mass=True)}
    rows = [
        Row(name, kind, 0, *run(kernel, 1000, samples, *args, **kwargs))
        for kind, kernel in plain.items()
    ]
    posterior = vf.condition(vf.attach(model, metric), *args, **kwargs)
    approx = vf.laplace(posterior, key=jax.random.key(0), second_order=False)
    started = run(vf.nuts(approx), 100, samples, *args, **kwargs)
    return [*rows, Row(name, "vf.nuts", gradients_of(approx.mode), *started)]


def table(rows: list[Row]) -> Table:
    """The table of the rows."""
    made = Table(title="NUTS, four chains: gradient evaluations", title_justify="left")
    for name in (
        "model",
        "NUTS",
        "Laplace",
        "warm-up",
        "sampling",
        "smallest ESS",
        "ESS / 1000 gradients",
        "divergent",
    ):
        made.add_column(name, justify="left" if name in {"model", "NUTS"} else "right")
    for row in rows:
        first = row.kernel == rows[0].kernel
        last = row.kernel == rows[-1].kernel
        made.add_row(
            row.model if first else "",
            row.kernel,
            f"{row.laplace:,}",
            f"{row.warmup:,}",
            f"{row.sampling:,}",
            f"{row.smallest_ess:,.0f}",
            f"{row.ess_per_thousand:.1f}",
            str(row.divergences),
            end_section=last,
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the regression only, few draws")
    quick = parser.parse_args().quick
    x, y = regression.diabetes(442)
    rows = compare(
        "regression",
        regression.regression("sigma"),
        vf.LikelihoodFisher(),
        200 if quick else 1000,
        x,
        y=y,
    )
    if not quick:
        law = dist.HalfCauchy(5.0)
        rows += compare(
            "eight schools",
            schools.non_centered(law),
            vf.JointFisher(reference=schools.centered(law)),
            1000,
            schools.ERRORS,
            y=schools.EFFECTS,
        )
    Console(width=110).print(table(rows))
    for name in dict.fromkeys(row.model for row in rows):
        *plain, started = (row.ess_per_thousand for row in rows if row.model == name)
        ratios = " and ".join(f"{started / other:.1f}" for other in plain)
        print(f"{name}: {ratios} times the effective draws per gradient of default and dense NUTS")


if __name__ == "__main__":
    main()
