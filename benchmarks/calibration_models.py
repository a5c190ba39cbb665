"""Models whose log evidence is known: closed forms, converged quadrature, or by construction."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.integrate import quad
from scipy.special import betaln, gammaln, log_ndtr, logsumexp
from scipy.stats import multivariate_normal, norm, poisson

CONSTANT = 1.5  # of densities normalized by construction, that log Z = 0 be no special case


class Case(NamedTuple):
    """A model, its data, and the exact log of its evidence.

    Attributes:
        kind: the family it is of.
        dim: number of parameters.
        model: a NumPyro model.
        args: its arguments.
        log_z: log evidence.
    """

    kind: str
    dim: int
    model: Callable
    args: tuple[Any, ...]
    log_z: float


# --- Conjugate models


def beta_binomial(n: int, k: int) -> Case:
    def model(k: Any) -> None:
        p = numpyro.sample("p", dist.Beta(2.0, 2.0))
        numpyro.sample("k", dist.Binomial(n, probs=p), obs=k)

    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return Case("conjugate", 1, model, (k,), ways + betaln(2 + k, 2 + n - k) - betaln(2, 2))


def _log_gamma_poisson(y: np.ndarray, a: float, b: float) -> float:
    s, n = y.sum(), len(y)
    posterior = gammaln(a + s) - (a + s) * math.log(b + n)
    return float(posterior + a * math.log(b) - gammaln(a) - gammaln(y + 1).sum())


def gamma_poisson(n: int) -> Case:
    y = np.random.default_rng(n).poisson(3.0, n)

    def model(y: Any) -> None:
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        numpyro.sample("y", dist.Poisson(rate), obs=y)

    return Case("conjugate", 1, model, (y,), _log_gamma_poisson(y, 2.0, 1.0))


def exponential_gamma(n: int) -> Case:
    y = np.random.default_rng(n).exponential(0.5, n)

    def model(y: Any) -> None:
        rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0))
        numpyro.sample("y", dist.Exponential(rate), obs=y)

    exact = gammaln(3 + n) - gammaln(3) + 3 * math.log(2.0) - (3 + n) * math.log(2.0 + y.sum())
    return Case("conjugate", 1, model, (y,), exact)


def beta_geometric(n: int) -> Case:
    y = np.random.default_rng(n).geometric(0.3, n) - 1.0

    def model(y: Any) -> None:
        p = numpyro.sample("p", dist.Beta(1.0, 2.0))
        numpyro.factor("y", jnp.sum(jnp.log(p) + y * jnp.log1p(-p)))

    return Case("conjugate", 1, model, (y,), betaln(1 + n, 2 + y.sum()) - betaln(1, 2))


def normal_normal(n: int) -> Case:
    y = np.random.default_rng(n).normal(1.0, 2.0, n)

    def model(y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
        numpyro.sample("y", dist.Normal(mu, 2.0), obs=y)

    exact = multivariate_normal.logpdf(y, np.zeros(n), 4.0 * np.eye(n) + 9.0)
    return Case("conjugate", 1, model, (y,), exact)


def normal_inverse_gamma(n: int) -> Case:
    y = np.random.default_rng(n).normal(1.0, 2.0, n)

    def model(y: Any) -> None:
        variance = numpyro.sample("variance", dist.InverseGamma(3.0, 4.0))
        mu = numpyro.sample("mu", dist.Normal(0.0, jnp.sqrt(variance / 0.5)))
        numpyro.sample("y", dist.Normal(mu, jnp.sqrt(variance)), obs=y)

    k, a, mean = 0.5 + n, 3.0 + n / 2, y.mean()
    b = 4.0 + 0.5 * ((y - mean) ** 2).sum() + 0.5 * 0.5 * n * mean**2 / k
    exact = gammaln(a) - gammaln(3) + 3 * math.log(4.0) - a * math.log(b)
    exact += 0.5 * math.log(0.5 / k) - 0.5 * n * math.log(2.0 * math.pi)
    return Case("conjugate", 2, model, (y,), exact)


def dirichlet_multinomial(counts: Sequence[int]) -> Case:
    y, d = np.array(counts), len(counts)
    n = int(y.sum())

    def model(y: Any) -> None:
        p = numpyro.sample("p", dist.Dirichlet(jnp.ones(d)))
        numpyro.sample("y", dist.Multinomial(n, p), obs=y)

    # Each of the ways to divide n among d is as likely as the others.
    exact = gammaln(n + 1) + gammaln(d) - gammaln(n + d)
    return Case("conjugate", d - 1, model, (y,), exact)


def regression(d: int, n: int) -> Case:
    random = np.random.default_rng(d)
    x = random.normal(size=(n, d))
    y = x @ random.normal(size=d) + 0.5 * random.normal(size=n)

    def model(x: Any, y: Any) -> None:
        b = numpyro.sample("b", dist.Normal(0.0, 1.0).expand([d]).to_event(1))
        numpyro.sample("y", dist.Normal(x @ b, 0.5), obs=y)

    exact = multivariate_normal.logpdf(y, np.zeros(n), 0.25 * np.eye(n) + x @ x.T)
    return Case("regression", d, model, (x, y), exact)


# --- Normalized by construction


def reweighted(kind: str, d: int, prior: Any, log_density: Callable) -> Case:
    """A density as it stands, whatever the prior that the search begins with."""
    each = prior.expand([d]).to_event(1)

    def model() -> None:
        x = numpyro.sample("x", each)
        numpyro.factor("density", log_density(x) - each.log_prob(x) + CONSTANT)

    return Case(kind, d, model, (), CONSTANT)


def gaussian(d: int) -> Case:
    """Of a random covariance with standard deviations between .1 and 2."""
    random = np.random.default_rng(d)
    basis = np.linalg.qr(random.normal(size=(d, d)))[0]
    root = jnp.asarray(np.linalg.cholesky(basis * np.geomspace(0.1, 2.0, d) ** 2 @ basis.T))
    target = dist.MultivariateNormal(jnp.asarray(random.normal(size=d)), scale_tril=root)
    return reweighted("Gaussian", d, dist.Normal(0.0, 3.0), target.log_prob)


def log_gamma(d: int) -> Case:
    """Logarithms of Gamma(2, 1): skewed."""

    def log_density(x: Any) -> Any:
        return jnp.sum(2.0 * x - jnp.exp(x))

    return reweighted("skewed", d, dist.Normal(0.0, 3.0), log_density)


def student(d: int, df: float) -> Case:
    target = dist.MultivariateStudentT(df, jnp.zeros(d), jnp.eye(d))
    return reweighted("heavy tails", d, dist.StudentT(2.0, 0.0, 3.0), target.log_prob)


def students(d: int, df: float) -> Case:
    """A product, in place of one radius."""
    target = dist.StudentT(df, 0.0, 1.0).expand([d]).to_event(1)
    return reweighted("heavy tails", d, dist.StudentT(2.0, 0.0, 3.0), target.log_prob)


def two_modes(d: int, distance: float) -> Case:
    """0.3 of standard deviation 1, and 0.7 of 0.5."""
    far = distance / math.sqrt(d)

    def log_density(x: Any) -> Any:
        wide = jnp.sum(dist.Normal(0.0, 1.0).log_prob(x))
        narrow = jnp.sum(dist.Normal(far, 0.5).log_prob(x))
        return jnp.logaddexp(math.log(0.3) + wide, math.log(0.7) + narrow)

    return reweighted("two modes", d, dist.Normal(0.0, max(3.0, far)), log_density)


def scale_mixture(d: int, width: float) -> Case:
    """A narrow mode and a wide one at the same place."""

    def log_density(x: Any) -> Any:
        narrow, wide = (jnp.sum(dist.Normal(0.0, s).log_prob(x)) for s in (width, 1.0))
        return jnp.logaddexp(math.log(0.2) + narrow, math.log(0.8) + wide)

    return reweighted("scale mixture", d, dist.Normal(0.0, 2.0), log_density)


def bananas(d: int) -> Case:
    """Pairs of which the second is near the square of the first."""

    def log_density(x: Any) -> Any:
        first, second = x[::2], x[1::2]
        bent = dist.Normal(first**2, 0.5).log_prob(second)
        return jnp.sum(dist.Normal(0.0, 1.0).log_prob(first)) + jnp.sum(bent)

    return reweighted("banana", d, dist.Normal(0.0, 3.0), log_density)


def betas(d: int, a: float, b: float) -> Case:
    target = dist.Beta(a, b).expand([d]).to_event(1)
    return reweighted("bounded", d, dist.Uniform(0.0, 1.0), target.log_prob)


# --- Funnels and hierarchies: all but one parameter in closed form


def _log_integral(log_density: Callable, ends: tuple[float, float]) -> float:
    """Log of an integral over one parameter, by adaptive quadrature around the largest value."""
    grid = np.linspace(*ends, 2001)[1:-1]
    values = np.array([log_density(t) for t in grid])
    top = values.max()
    inside = grid[values > top - 40.0]
    breaks = [ends[0], *np.linspace(inside[0], inside[-1], 9), ends[1]]
    parts = [
        quad(lambda t: math.exp(log_density(t) - top), a, b, epsabs=1e-13, epsrel=1e-12)
        for a, b in itertools.pairwise(breaks)
        if b > a
    ]
    total = sum(part[0] for part in parts)
    assert sum(part[1] for part in parts) < 1e-8 * total, "the quadrature did not converge"
    return top + math.log(total)


def funnel(d: int) -> Case:
    def model() -> None:
        v = numpyro.sample("v", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(0.0, jnp.exp(0.5 * v)).expand([d - 1]).to_event(1))
        numpyro.factor("constant", CONSTANT)

    return Case("funnel", d, model, (), CONSTANT)


def funnel_with_data(d: int) -> Case:
    y = np.random.default_rng(d).normal(0.0, 1.5, d - 1)

    def model(y: Any) -> None:
        v = numpyro.sample("v", dist.Normal(0.0, 3.0))
        x = numpyro.sample("x", dist.Normal(0.0, jnp.exp(0.5 * v)).expand([d - 1]).to_event(1))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    def marginal(v: float) -> float:
        scale = math.sqrt(1.0 + math.exp(v))
        return float(norm.logpdf(v, 0.0, 3.0) + norm.logpdf(y, 0.0, scale).sum())

    return Case("funnel", d, model, (y,), _log_integral(marginal, (-40.0, 40.0)))


def hierarchical(groups: int, noise: float, centered: bool) -> Case:
    y = np.random.default_rng(groups).normal(1.0, math.hypot(2.0, noise), groups)

    def model(y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfNormal(5.0))
        with numpyro.plate("group", groups):
            if centered:
                theta = numpyro.sample("theta", dist.Normal(mu, tau))
            else:
                theta = mu + tau * numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(theta, noise), obs=y)

    def marginal(tau: float) -> float:
        covariance = (noise**2 + tau**2) * np.eye(groups) + 25.0
        half_normal = math.log(2.0) + norm.logpdf(tau, 0.0, 5.0)
        return float(half_normal + multivariate_normal.logpdf(y, np.zeros(groups), covariance))

    exact = _log_integral(marginal, (0.0, 60.0))
    return Case("hierarchical", groups + 2, model, (y,), exact)


# --- Kinks and bounds: by the error function


def lasso(d: int) -> Case:
    """Laplace's distribution of scale 1 as the prior, normal data of scale .7."""
    y, s = np.random.default_rng(d).normal(0.0, 1.2, d), 0.7

    def model(y: Any) -> None:
        x = numpyro.sample("x", dist.Laplace(0.0, 1.0).expand([d]).to_event(1))
        numpyro.sample("y", dist.Normal(x, s), obs=y)

    right, left = -y + log_ndtr(y / s - s), y + log_ndtr(-y / s - s)
    exact = np.sum(np.logaddexp(right, left) + 0.5 * s**2 - math.log(2.0))
    return Case("kink", d, model, (y,), float(exact))


def at_a_bound(d: int) -> Case:
    """Positive numbers, half of which the data want to be negative."""
    y, s = np.resize([-1.0, 0.8], d), 0.6

    def model(y: Any) -> None:
        x = numpyro.sample("x", dist.Exponential(1.0).expand([d]).to_event(1))
        numpyro.sample("y", dist.Normal(x, s), obs=y)

    exact = np.sum(0.5 * s**2 - y + log_ndtr(y / s - s))
    return Case("bounded", d, model, (y,), float(exact))


# --- Few parameters: by lattices and sums


def logistic(d: int) -> Case:
    random = np.random.default_rng(d)
    x = random.normal(size=(12, d))
    y = (random.uniform(size=12) < 1.0 / (1.0 + np.exp(-1.5 * x[:, 0]))).astype(float)

    def model(x: Any, y: Any) -> None:
        b = numpyro.sample("b", dist.Normal(0.0, 2.0).expand([d]).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)

    def lattice(count: int) -> float:
        axis, step = np.linspace(-20.0, 20.0, count, retstep=True)
        b = np.stack(np.meshgrid(*[axis] * d), -1).reshape(-1, d)
        likelihood = -np.logaddexp(0.0, np.where(y > 0, -1.0, 1.0) * (b @ x.T)).sum(1)
        return logsumexp(norm.logpdf(b, 0.0, 2.0).sum(1) + likelihood) + d * math.log(step)

    exact = float(lattice(801))
    assert abs(exact - lattice(601)) < 1e-9, "the lattice did not converge"
    return Case("logistic", d, model, (x, y), exact)


def change_point(n: int) -> Case:
    """Counts before and after a change at any place with the same probability."""
    random = np.random.default_rng(n)
    y = np.concatenate([random.poisson(2.0, n // 2), random.poisson(4.0, n - n // 2)])
    before = jnp.arange(n)[None, :] < jnp.arange(1, n)[:, None]

    def model(y: Any) -> None:
        rate = numpyro.sample("rate", dist.Gamma(2.0, 0.7).expand([2]).to_event(1))
        first, second = (dist.Poisson(rate[i]).log_prob(y) for i in (0, 1))
        each = jnp.sum(jnp.where(before, first, second), 1)
        numpyro.factor("y", jax.nn.logsumexp(each) - math.log(n - 1))

    each = [
        _log_gamma_poisson(y[:k], 2.0, 0.7) + _log_gamma_poisson(y[k:], 2.0, 0.7)
        for k in range(1, n)
    ]
    exact = float(logsumexp(each)) - math.log(n - 1)
    return Case("change point", 2, model, (y,), exact)


def poisson_mixture(n: int) -> Case:
    """A share of 2 against 6 as the mean of counts; one parameter, by quadrature."""
    y = np.random.default_rng(n).poisson(np.resize([2.0, 6.0], n))

    def model(y: Any) -> None:
        w = numpyro.sample("w", dist.Uniform(0.0, 1.0))
        two, six = (dist.Poisson(rate).log_prob(y) for rate in (2.0, 6.0))
        numpyro.factor("y", jnp.sum(jnp.logaddexp(jnp.log(w) + two, jnp.log1p(-w) + six)))

    def density(w: float) -> float:
        return float(np.log(w * poisson.pmf(y, 2.0) + (1.0 - w) * poisson.pmf(y, 6.0)).sum())

    return Case("mixture", 1, model, (y,), _log_integral(density, (0.0, 1.0)))


CASES: dict[str, Callable[[], Case]] = {
    "beta-binomial, 9": lambda: beta_binomial(9, 3),
    "beta-binomial, 50,000": lambda: beta_binomial(50_000, 20_100),
    "beta-binomial, no success": lambda: beta_binomial(20, 0),
    "gamma-Poisson, 5": lambda: gamma_poisson(5),
    "gamma-Poisson, 2,000": lambda: gamma_poisson(2000),
    "exponential-gamma, 3": lambda: exponential_gamma(3),
    "exponential-gamma, 500": lambda: exponential_gamma(500),
    "beta-geometric, 10": lambda: beta_geometric(10),
    "normal-normal, 4": lambda: normal_normal(4),
    "normal-normal, 1,000": lambda: normal_normal(1000),
    "normal-inverse-gamma, 3": lambda: normal_inverse_gamma(3),
    "normal-inverse-gamma, 100": lambda: normal_inverse_gamma(100),
    "Dirichlet-multinomial, 4": lambda: dirichlet_multinomial([3, 0, 7, 2]),
    "Dirichlet-multinomial, 12": lambda: dirichlet_multinomial(
        [3, 0, 7, 2, 0, 0, 1, 15, 4, 0, 2, 6]
    ),
    **{f"regression, d = {d}": lambda d=d: regression(d, 2 * d + 10) for d in (3, 20, 60)},
    **{f"Gaussian, d = {d}": lambda d=d: gaussian(d) for d in (2, 5, 20, 60, 100)},
    **{f"log-gamma, d = {d}": lambda d=d: log_gamma(d) for d in (1, 2, 5, 20, 60, 100)},
    **{f"Student t(3), d = {d}": lambda d=d: student(d, 3.0) for d in (1, 2, 5, 20)},
    **{f"t(5) each, d = {d}": lambda d=d: students(d, 5.0) for d in (2, 20, 60)},
    "two modes, d = 1, 20 apart": lambda: two_modes(1, 20.0),
    "two modes, d = 2, 4 apart": lambda: two_modes(2, 4.0),
    "two modes, d = 5, 10 apart": lambda: two_modes(5, 10.0),
    "two modes, d = 20, 8 apart": lambda: two_modes(20, 8.0),
    "two modes, d = 60, 12 apart": lambda: two_modes(60, 12.0),
    **{f"scale mixture, d = {d}": lambda d=d: scale_mixture(d, 0.2) for d in (1, 2, 5, 20)},
    **{f"bananas, d = {d}": lambda d=d: bananas(d) for d in (2, 20, 60)},
    **{f"Beta(2, 5) each, d = {d}": lambda d=d: betas(d, 2.0, 5.0) for d in (2, 20, 60)},
    "Beta(1/2, 1/2) each, d = 2": lambda: betas(2, 0.5, 0.5),
    **{f"at a bound, d = {d}": lambda d=d: at_a_bound(d) for d in (1, 2, 20)},
    **{f"funnel, d = {d}": lambda d=d: funnel(d) for d in (2, 10)},
    "funnel with data, d = 10": lambda: funnel_with_data(10),
    "hierarchy, centered": lambda: hierarchical(8, 2.0, True),
    "hierarchy, non-centered": lambda: hierarchical(8, 2.0, False),
    "hierarchy, noisy, centered": lambda: hierarchical(20, 4.0, True),
    **{f"lasso, d = {d}": lambda d=d: lasso(d) for d in (1, 5, 20, 60)},
    **{f"logistic, d = {d}": lambda d=d: logistic(d) for d in (1, 2)},
    "change point, d = 2": lambda: change_point(30),
    "Poisson mixture, d = 1": lambda: poisson_mixture(15),
}
