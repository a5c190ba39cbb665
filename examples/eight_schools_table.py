"""Eight schools written in two ways, by NumPyro's Laplace approximation and by the invariant one.

The centered and the non-centered spelling are one model. NumPyro's Laplace approximation gives
two different evidences for them, or none; under the joint Fisher metric there is one.

    python examples/eight_schools_table.py
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer.reparam import LocScaleReparam
from peers import auto_laplace
from rich.console import Console
from rich.table import Table

import volform as vf

jax.config.update("jax_enable_x64", True)
# Compiling is nearly all the time of models this small.
jax.config.update("jax_disable_most_optimizations", True)

EFFECTS = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
PRIORS = {"HalfCauchy(5)": dist.HalfCauchy(5.0), "LogNormal(1, 1)": dist.LogNormal(1.0, 1.0)}


def centered(prior: dist.Distribution) -> Callable:
    """The model as it is usually written, with a prior on tau."""

    def eight_schools(sigma, y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", prior)
        with numpyro.plate("school", 8):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Normal(theta, sigma), obs=y)

    return eight_schools


def non_centered(prior: dist.Distribution) -> Callable:
    """The same model in terms of (theta - mu) / tau."""
    config = {"theta": LocScaleReparam(centered=0)}
    return numpyro.handlers.reparam(centered(prior), config=config)


SPELLINGS = {"centered": centered, "non-centered": non_centered}


@dataclasses.dataclass(frozen=True)
class Row:
    """Modes of tau and log evidences of one spelling under one prior."""

    prior: str
    spelling: str
    exact: float
    peer_tau: float
    peer_log_z: float
    peer_warning: str
    tau: float
    log_z: float
    second_order: float | None


def exact_log_z(prior: dist.Distribution) -> float:
    """By quadrature over log tau; mu and theta are integrated in closed form."""
    u = np.linspace(-25.0, 25.0, 20_001)
    variance = np.asarray(ERRORS) ** 2 + np.exp(2 * u)[:, None]  # of y given mu and tau
    weight, y = 1 / variance, np.asarray(EFFECTS)
    precision = weight.sum(1) + 1 / 5.0**2
    center = (weight * y).sum(1) / precision
    square = (weight * y**2).sum(1) - precision * center**2
    log_p = -0.5 * (square + np.log(2 * np.pi * variance).sum(1) + np.log(25.0 * precision))
    log_p += np.asarray(prior.log_prob(jnp.exp(u))) + u
    return float(np.logaddexp.reduce(log_p) + np.log(u[1] - u[0]))


def fit(prior: str, spelling: str, second_order: bool = True, out: Path | None = None) -> Row:
    """Both approximations of one spelling under one prior; pictures too if `out` is given."""
    law = PRIORS[prior]
    model = SPELLINGS[spelling](law)
    peer = auto_laplace(model, ERRORS, y=EFFECTS)

    metric = vf.JointFisher(reference=centered(law))  # read off the centered spelling in any case
    posterior = vf.condition(vf.attach(model, metric), ERRORS, y=EFFECTS)
    approx = vf.laplace(posterior, key=jax.random.key(0), second_order=second_order)
    evidence = approx.evidence
    if out is not None:
        vf.plot.density(approx, "tau").savefig(out / f"tau-{spelling}.png", dpi=150)
        vf.plot.spectrum(approx).figure.savefig(out / "eight-schools-spectrum.png", dpi=150)
    second = evidence.log_z_second_order
    return Row(
        prior,
        spelling,
        exact_log_z(law),
        float(peer.values["tau"]),
        peer.log_z,
        peer.warning,
        float(approx.values["tau"]),
        float(evidence.log_z),
        None if second is None else float(second),
    )


def table(rows: list[Row]) -> Table:
    """The table of the rows."""
    made = Table(title="Eight schools, mu ~ Normal(0, 5): log evidence", title_justify="left")
    for name in (
        "prior of tau",
        "exact",
        "spelling",
        "AutoLaplace",
        "its tau",
        "volform",
        "second order",
        "its tau",
    ):
        made.add_column(name, justify="left" if name in {"prior of tau", "spelling"} else "right")
    for row in rows:
        first = row.spelling == rows[0].spelling
        made.add_row(
            row.prior if first else "",
            f"{row.exact:.5f}" if first else "",
            row.spelling,
            f"{row.peer_log_z:.2f}",
            f"{row.peer_tau:.2g}",
            f"{row.log_z:.5f}",
            "" if row.second_order is None else f"{row.second_order:.5f}",
            f"{row.tau:.4f}",
            end_section=row is rows[-1] or not first,
        )
    made.caption = "\n".join(
        dict.fromkeys(
            f"{row.spelling}, {row.prior}: NumPyro warns: {row.peer_warning.partition('.')[0]}; "
            f"the density has no mode, it rises without bound as tau goes to 0."
            for row in rows
            if row.peer_warning
        )
    )
    made.caption_justify = "left"
    return made


def check(rows: list[Row]) -> None:
    """The figures that this table is known to have."""
    known = {  # exact, NumPyro's of the non-centered spelling, first and second order
        "HalfCauchy(5)": (-31.31135, -37.08, -31.44528, -31.31917),
        "LogNormal(1, 1)": (-31.04614, -32.02, -31.16497, -31.03137),
    }
    by_prior: dict[str, list[Row]] = {}
    for row in rows:
        by_prior.setdefault(row.prior, []).append(row)
        exact, peer, first, second = known[row.prior]
        assert abs(row.exact - exact) < 1e-5
        assert abs(row.log_z - first) < 1e-4, row
        assert row.second_order is None or abs(row.second_order - second) < 1e-4, row
        if row.spelling == "centered":  # no mode, or one that no optimizer agrees on
            assert not abs(row.peer_log_z - row.exact) < 5.0, row
        else:
            assert abs(row.peer_log_z - peer) < 0.01, row
    for same in by_prior.values():
        for name in ("tau", "log_z", "second_order"):
            found = [getattr(row, name) for row in same if getattr(row, name) is not None]
            assert not found or np.ptp(found) < 1e-8 * max(map(abs, found)), (name, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one prior, first order only")
    quick = parser.parse_args().quick
    priors = list(PRIORS)[:1] if quick else list(PRIORS)
    rows = [fit(prior, spelling, not quick) for prior in priors for spelling in SPELLINGS]
    Console(width=110).print(table(rows))
    check(rows)


if __name__ == "__main__":
    main()
