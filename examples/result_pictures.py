"""Pictures of results: marginals of eight schools by three methods, and a band of predictions.

The marginals show where Laplace's method, importance sampling and NUTS agree, beside the prior. The
band is of a regression on a curve, whose noise is learned too; it widens where there are no data.

    python examples/result_pictures.py --out pictures
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import LocScaleReparam

import volform as vf

EFFECTS = jnp.array([28.0, 8, -3, 7, -1, 1, 18, 12])
SIGMA = jnp.array([15.0, 10, 16, 11, 9, 11, 10, 18])
DEGREE = 6


def eight_schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def curve(x, y=None):
    weights = numpyro.sample("weights", dist.Normal(jnp.zeros(DEGREE), 1.0).to_event(1))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    mean = jnp.vander(x, DEGREE, increasing=True) @ weights
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(mean, noise), obs=y)


def draw_marginals(path: Path) -> None:
    """Of mu, tau and the first school; NUTS without the funnel, by the non-centered spelling."""
    posterior = vf.condition(vf.attach(eight_schools, vf.JointFisher()), SIGMA, y=EFFECTS)
    approx = vf.laplace(posterior)
    spelled = numpyro.handlers.reparam(eight_schools, config={"theta": LocScaleReparam(centered=0)})
    mcmc = MCMC(NUTS(spelled), num_warmup=500, num_samples=4000, progress_bar=False)
    mcmc.run(jax.random.key(0), SIGMA, y=EFFECTS)
    results = {
        "Laplace": approx,
        "importance": vf.evidence(approx, by=vf.Importance()),
        "NUTS": mcmc,
    }
    axes = vf.plot.marginals(results, ["mu", "tau", "theta[0]"], prior=True)
    vf.plot.figure_of(axes[0]).savefig(path, dpi=110)


def draw_band(path: Path) -> None:
    random = np.random.default_rng(0)
    x = np.sort(random.uniform(-2.0, 2.0, 40))
    y = np.sin(2.0 * x) + 0.3 * random.normal(size=40)
    approx = vf.laplace(vf.condition(vf.attach(curve, vf.JointFisher()), x, y=y))
    grid = jnp.linspace(-2.4, 2.4, 150)
    drawn = approx.predictive(jax.random.key(0), grid, draws=4000)["y"]
    ax = vf.plot.predictive_band(grid, drawn, data=(x, y))
    ax.set_ylim(-2.5, 2.5)
    ax.set_xlabel("x")
    ax.set_ylabel("y")
    vf.plot.figure_of(ax).savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder of pictures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    mpl.use("Agg")
    jax.config.update("jax_enable_x64", True)
    draw_marginals(options.out / "marginals.png")
    draw_band(options.out / "predictive_band.png")
    print(f"marginals.png and predictive_band.png in {options.out.resolve()}")


if __name__ == "__main__":
    main()
