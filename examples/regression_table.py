"""Linear regression on the diabetes data: the noise scale written in four ways.

The prior of the noise is one law, HalfNormal(1) for sigma, written for sigma, log sigma, the
variance or the precision. A mode and a Laplace evidence in the coordinates of the writing change
with it; under the Fisher metric of the likelihood they do not.

    python examples/regression_table.py
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
from numpyro.distributions import transforms
from peers import auto_delta
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_diabetes

import volform as vf

jax.config.update("jax_enable_x64", True)
# Compiling is nearly all the time of models this small.
jax.config.update("jax_disable_most_optimizations", True)

SPELLINGS = {  # name of the site: sigma -> its value
    "sigma": transforms.IdentityTransform(),
    "log_sigma": transforms.ExpTransform().inv,
    "variance": transforms.PowerTransform(2.0),
    "precision": transforms.PowerTransform(-2.0),
}


def regression(site: str) -> Callable:
    """y ~ Normal(x beta, sigma), with the law of sigma written for another site."""
    to_site = SPELLINGS[site]

    def model(x, y=None):
        beta = numpyro.sample("beta", dist.Normal(0, 1).expand([x.shape[1]]).to_event(1))
        law = dist.HalfNormal(1.0)
        value = numpyro.sample(
            site, law if site == "sigma" else dist.TransformedDistribution(law, to_site)
        )
        scale = value if site == "sigma" else numpyro.deterministic("sigma", to_site.inv(value))
        numpyro.sample("y", dist.Normal(x @ beta, scale), obs=y)

    return model


def diabetes(patients: int) -> tuple[jax.Array, jax.Array]:
    """Ten features and the response of the first patients, in units of their standard deviations
    over all 442."""
    x, y = load_diabetes(return_X_y=True)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    return jnp.asarray(x[:patients]), jnp.asarray(y[:patients])


@dataclasses.dataclass(frozen=True)
class Row:
    """Modes of sigma and log evidences of one spelling."""

    spelling: str
    exact: float
    peer_sigma: float
    peer_log_z: float
    sigma: float
    log_z: float
    second_order: float | None


def exact_log_z(x: jax.Array, y: jax.Array) -> float:
    """By quadrature over log sigma; beta is integrated in closed form."""
    eigenvalues, vectors = np.linalg.eigh(np.asarray(x @ x.T))
    u = np.linspace(-8.0, 8.0, 8001)
    variance = np.maximum(eigenvalues, 0.0) + np.exp(2 * u)[:, None]  # of y's components
    log_p = -0.5 * (np.log(2 * np.pi * variance) + (vectors.T @ y) ** 2 / variance).sum(1)
    log_p += np.asarray(dist.HalfNormal(1.0).log_prob(jnp.exp(u))) + u
    return float(np.logaddexp.reduce(log_p) + np.log(u[1] - u[0]))


def fit(
    spelling: str, patients: int = 40, second_order: bool = True, out: Path | None = None
) -> Row:
    """Both approximations of one spelling; a picture too if `out` is given."""
    x, y = diabetes(patients)
    model = regression(spelling)
    peer = auto_delta(model, x, y)

    posterior = vf.condition(vf.attach(model, vf.LikelihoodFisher()), x, y)
    approx = vf.laplace(posterior, key=jax.random.key(0), second_order=second_order)
    evidence = approx.evidence
    if out is not None:
        vf.plot.density(approx, spelling).savefig(out / f"noise-{spelling}.png", dpi=150)
    second = evidence.log_z_second_order
    return Row(
        spelling,
        exact_log_z(x, y),
        float(SPELLINGS[spelling].inv(peer.values[spelling])),
        peer.log_z,
        float(posterior.values(approx.mode.at.u, ("sigma",))["sigma"]),
        float(evidence.log_z),
        None if second is None else float(second),
    )


def table(rows: list[Row], patients: int = 40) -> Table:
    """The table of the rows."""
    made = Table(
        title=f"Linear regression, diabetes data, {patients} patients: exact log evidence "
        f"{rows[0].exact:.5f}",
        title_justify="left",
    )
    for name in (
        "noise written as",
        "AutoDelta: sigma",
        "log Z by its Hessian",
        "volform: sigma",
        "log Z",
        "second order",
    ):
        made.add_column(name, justify="left" if name == "noise written as" else "right")
    for row in rows:
        made.add_row(
            row.spelling,
            f"{row.peer_sigma:.5f}",
            f"{row.peer_log_z:.5f}",
            f"{row.sigma:.5f}",
            f"{row.log_z:.5f}",
            "" if row.second_order is None else f"{row.second_order:.5f}",
        )
    return made


def check(rows: list[Row], patients: int) -> None:
    """One answer under the metric, near the exact one; as many others as spellings without."""
    for name in ("sigma", "log_z", "second_order"):
        found = [getattr(row, name) for row in rows if getattr(row, name) is not None]
        assert not found or np.ptp(found) < 1e-8 * max(map(abs, found)), (name, found)
    for row in rows:
        assert abs(row.log_z - row.exact) < 0.5 / patients, row
        assert abs(row.log_z - row.exact) < 0.05 * abs(row.peer_log_z - row.exact), row
        assert row.second_order is None or abs(row.second_order - row.exact) < 0.02 / patients, row
    if patients == 40:
        known = {"sigma": 0.54547, "log_sigma": 0.55239, "variance": 0.53879, "precision": 0.56707}
        for row in rows:
            assert abs(row.peer_sigma - known[row.spelling]) < 1e-4, row
            assert abs(row.sigma - 0.63985) < 1e-5, row
            assert abs(row.exact - -55.36634) < 1e-5, row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=40, help="the first of 442 (default: 40)")
    parser.add_argument("--quick", action="store_true", help="two spellings, first order only")
    options = parser.parse_args()
    spellings = ("sigma", "precision") if options.quick else tuple(SPELLINGS)
    rows = [fit(name, options.patients, not options.quick) for name in spellings]
    Console(width=110).print(table(rows, options.patients))
    check(rows, options.patients)


if __name__ == "__main__":
    main()
