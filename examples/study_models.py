"""Eight models on small public data, and their log evidences by other means than Laplace's method.

Where all but one or two parameters integrate in closed form, the rest is a quadrature on a fine
grid; up to five parameters are summed on a lattice; one model is left to a long bridge run.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import eight_schools_table as schools
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import regression_table as linear
from sklearn.datasets import load_breast_cancer, load_iris, load_linnerud

import volform as vf

jax.config.update("jax_enable_x64", True)

# Luteinizing hormone in a woman's blood, every ten minutes (Diggle 1990; `lh` of R).
HORMONE = (
    "2.4 2.4 2.4 2.2 2.1 1.5 2.3 2.3 2.5 2.0 1.9 1.7 2.2 1.8 3.2 3.2 2.7 2.2 2.2 1.9 1.9 1.8 2.7 "
    "3.0 2.3 2.0 2.0 2.9 2.9 2.7 2.7 2.3 2.6 2.4 1.8 1.7 1.5 1.4 2.1 3.3 3.5 3.5 3.1 2.6 2.1 3.4 "
    "3.0 2.9"
)
# Days since 1968-12-31 and circumference in mm of tree 4 (Draper & Smith; `Orange` of R).
AGES = (118.0, 484.0, 664.0, 1004.0, 1231.0, 1372.0, 1582.0)
CIRCUMFERENCES = (32.0, 62.0, 112.0, 167.0, 179.0, 209.0, 214.0)


@dataclasses.dataclass(frozen=True)
class Exact:
    """A log evidence to compare with.

    Attributes:
        log_z: the value.
        error: what is known of its error: two lattices compared, or a standard error.
        how: in words.
    """

    log_z: float
    error: float
    how: str


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with its data.

    Attributes:
        model: a NumPyro model.
        args: its arguments.
        y: the observed data, its keyword argument `y`.
        closed: the exact log evidence, where it reduces to one or two dimensions.
        step: distance in posterior standard deviations of the lattice's points, where it does not
            and a lattice is affordable.
        reach: half the width of the lattice in standard deviations.
        key: key of the Fisher information that has no closed form.
    """

    model: Callable
    args: tuple
    y: Any
    closed: Callable[[], float] | None = None
    step: float | None = None
    reach: float = 7.0
    key: jax.Array | None = None

    def posterior(self, metric: vf.Metric) -> vf.models.Posterior:
        """The posterior under a metric."""
        return vf.condition(vf.attach(self.model, metric), *self.args, y=self.y)


def eight_schools() -> Case:
    """Centered, with a half-Cauchy prior on tau."""
    prior = schools.PRIORS["HalfCauchy(5)"]
    model = schools.centered(prior)
    return Case(
        model,
        (schools.ERRORS,),
        schools.EFFECTS,
        closed=lambda: schools.exact_log_z(prior),
    )


def diabetes() -> Case:
    """Progression of diabetes on body mass index, blood pressure, HDL and log triglycerides."""
    x, y = linear.diabetes(60)
    x = x[:, jnp.array([2, 3, 6, 8])]
    return Case(
        linear.regression("sigma"),
        (x,),
        y,
        closed=lambda: linear.exact_log_z(x, y),
    )


def autoregression() -> Case:
    """AR(3) with an intercept, given the first three values."""
    y = jnp.array([float(word) for word in HORMONE.split()])
    lags = jnp.stack([y[3 - k : len(y) - k] for k in (1, 2, 3)], 1)

    def model(lags, y=None):
        intercept = numpyro.sample("intercept", dist.Normal(0, 2))
        phi = numpyro.sample("phi", dist.Normal(0, 0.5).expand([3]).to_event(1))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(intercept + lags @ phi, sigma), obs=y)

    # In units of the priors' scales all coefficients are standard normal a priori.
    design = jnp.concatenate([jnp.full((len(lags), 1), 2.0), 0.5 * lags], 1)
    return Case(model, (lags,), y[3:], closed=lambda: linear.exact_log_z(design, y[3:]))


def mixture() -> Case:
    """Petal lengths of three species of iris as a mixture of two normals, their means ordered."""
    lengths = jnp.asarray(load_iris().data[:, 2])

    def model(count, y=None):
        weight = numpyro.sample("weight", dist.Beta(2.0, 2.0))
        lower = numpyro.sample("lower", dist.Normal(2.0, 2.0))
        gap = numpyro.sample("gap", dist.HalfNormal(3.0))
        scales = numpyro.sample("scales", dist.HalfNormal(1.0).expand([2]).to_event(1))
        means = numpyro.deterministic("means", jnp.stack([lower, lower + gap]))
        which = dist.Categorical(probs=jnp.stack([weight, 1.0 - weight]))
        law = dist.MixtureSameFamily(which, dist.Normal(means, scales))
        with numpyro.plate("flower", count):
            numpyro.sample("y", law, obs=y)

    return Case(model, (len(lengths),), lengths, step=1.0, key=jax.random.key(1))


def counts() -> Case:
    """Chin-ups of twenty men, a Gaussian process of the waist in inches, whitened."""
    data = load_linnerud()
    waists, group = np.unique(data.target[:, 1], return_inverse=True)
    gaps = jnp.asarray(waists[:, None] - waists)
    group = jnp.asarray(group)

    def model(gaps, group, y=None):
        mean = numpyro.sample("mean", dist.Normal(2.0, 1.0))
        amplitude = numpyro.sample("amplitude", dist.HalfNormal(1.0))
        length = numpyro.sample("length", dist.LogNormal(math.log(3.0), 0.5))
        z = numpyro.sample("z", dist.Normal(0, 1).expand([len(gaps)]).to_event(1))
        covariance = jnp.exp(-0.5 * (gaps / length) ** 2) + 1e-4 * jnp.eye(len(gaps))
        f = mean + amplitude * jnp.linalg.cholesky(covariance) @ z
        numpyro.sample("y", dist.Poisson(jnp.exp(f[group])), obs=y)

    return Case(model, (gaps, group), jnp.asarray(data.data[:, 0], dtype=int))


def logistic() -> Case:
    """Malignant or benign on radius, texture and smoothness, the first sixty patients."""
    data = load_breast_cancer()
    x = data.data[:, [0, 1, 4]]
    x = jnp.asarray(((x - x.mean(0)) / x.std(0))[:60])

    def model(x, y=None):
        intercept = numpyro.sample("intercept", dist.Normal(0, 2.5))
        beta = numpyro.sample("beta", dist.Normal(0, 2.5).expand([3]).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=intercept + x @ beta), obs=y)

    y = jnp.asarray(1 - data.target[:60])
    return Case(model, (x,), y, step=0.7, reach=9.0)


def hierarchy() -> Case:
    """Sepal length on petal length, an intercept for each of three species of iris."""
    data = load_iris()
    length, species, y = data.data[:, 2], data.target, data.data[:, 0]
    length = length - length.mean()

    def model(length, species, y=None):
        mu = numpyro.sample("mu", dist.Normal(6.0, 2.0))
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        with numpyro.plate("species", 3):
            intercept = numpyro.sample("intercept", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(intercept[species] + slope * length, sigma), obs=y)

    return Case(
        model,
        (jnp.asarray(length), jnp.asarray(species)),
        jnp.asarray(y),
        closed=lambda: _hierarchy_log_z(length, species, y),
    )


def _hierarchy_log_z(length: np.ndarray, species: np.ndarray, y: np.ndarray) -> float:
    """By quadrature over log tau and log sigma; the rest is Gaussian and integrated."""
    u, v = np.linspace(-22.0, 3.0, 501)[:, None], np.linspace(-4.0, 2.0, 301)[None]
    tau, sigma = np.exp(u), np.exp(v)
    # y = 6 + B(tau) w + noise with w ~ N(0, I): three species, their mean, and the slope.
    base = np.column_stack([np.eye(3)[species], np.full(len(y), 2.0), length])
    scales = np.ones((len(u), 5))
    scales[:, :3] = tau
    gram = scales[:, :, None] * (base.T @ base) * scales[:, None, :]
    eigenvalues, vectors = np.linalg.eigh(gram)
    projected = np.einsum("tij,tj->ti", vectors.mT, scales * (base.T @ (y - 6.0)))
    variance = sigma[..., None] ** 2
    total = eigenvalues[:, None] + variance
    square = np.sum((y - 6.0) ** 2) - (projected[:, None] ** 2 / total).sum(-1)
    log_det = np.log(total).sum(-1) + (len(y) - 5) * np.log(variance[..., 0])
    log_p = -0.5 * (square / variance[..., 0] + log_det + len(y) * math.log(2.0 * math.pi))
    log_p += math.log(2.0 / math.pi) - 0.5 * (tau**2 + sigma**2) + u + v
    return float(np.logaddexp.reduce(log_p, axis=None) + np.log(0.05 * 0.02))


def growth() -> Case:
    """Logistic growth of one orange tree."""

    def model(age, y=None):
        size = numpyro.sample("size", dist.LogNormal(math.log(200.0), 0.5))
        midpoint = numpyro.sample("midpoint", dist.LogNormal(math.log(700.0), 0.5))
        scale = numpyro.sample("scale", dist.LogNormal(math.log(350.0), 0.5))
        sigma = numpyro.sample("sigma", dist.HalfNormal(20.0))
        mean = size * jax.nn.sigmoid((age - midpoint) / scale)
        numpyro.sample("y", dist.Normal(mean, sigma), obs=y)

    y = jnp.array(CIRCUMFERENCES)
    return Case(model, (jnp.array(AGES),), y, step=0.7, reach=12.0)


CASES: dict[str, Callable[[], Case]] = {
    "eight schools": eight_schools,
    "linear regression": diabetes,
    "AR(3)": autoregression,
    "mixture": mixture,
    "Poisson GP": counts,
    "logistic regression": logistic,
    "hierarchical": hierarchy,
    "growth curve": growth,
}


def exact(case: Case, draws: int) -> Exact:
    """The log evidence of a case by the best means there is."""
    if case.closed is not None:
        return Exact(case.closed(), 0.0, "closed form and quadrature")
    posterior = case.posterior(vf.Unconstrained())
    if case.step is None:
        found = vf.evidence(posterior, by=vf.Bridge(draws=draws, chains=8), key=jax.random.key(9))
        return Exact(float(found.log_z), float(found.error), f"bridge, {draws:,} draws")
    return lattice(posterior, case.step, case.reach)


def lattice(posterior: vf.models.Posterior, step: float, reach: float) -> Exact:
    """The trapezoidal rule on a lattice in standard deviations around the unconstrained mode.

    On all of space it converges like exp(-2 pi^2 / step^2) for a density near a Gaussian. A second
    lattice, half a step aside, shows the error.
    """
    at = vf.find_map(posterior, key=jax.random.key(0), starts=8).at
    log_scale = float(jnp.linalg.slogdet(at.whitener)[1]) + posterior.dim * math.log(step)

    @jax.jit
    def log_sum(z: jax.Array) -> jax.Array:
        terms = jax.vmap(lambda z: posterior.log_density_lebesgue(at.u + at.whitener @ z))(z)
        return jax.nn.logsumexp(jnp.where(jnp.isnan(terms), -jnp.inf, terms))

    count = math.floor(reach / step)
    found = []
    for shift in (0.0, 0.5):
        axis = step * (np.arange(-count, count + 1 - int(shift > 0.0)) + shift)
        rest = np.stack(np.meshgrid(*[axis] * (posterior.dim - 2), indexing="ij"), -1)
        rest = rest.reshape(-1, posterior.dim - 2)
        slabs = [
            log_sum(jnp.asarray(np.column_stack([np.full((len(rest), 2), (a, b)), rest])))
            for a in axis
            for b in axis
        ]
        found.append(float(np.logaddexp.reduce(np.array(slabs))) + log_scale)
    mean, gap = 0.5 * (found[0] + found[1]), abs(found[0] - found[1])
    return Exact(mean, gap, f"lattice of {(2 * count + 1) ** posterior.dim:,} points")
