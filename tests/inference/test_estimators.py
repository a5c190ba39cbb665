"""Every estimator of the evidence against exact ones."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import beta, cauchy, chi2, multivariate_normal, norm

import volform as vf
from volform.inference import Automatic, Estimator, arviz_compat, log_mean

KEY = jax.random.key(0)
RNG = np.random.default_rng(3)
X = np.column_stack([np.ones(12), RNG.normal(size=12)])
Y = X @ [0.5, -1.0] + RNG.normal(size=12)
COUNTS = np.array([2, 0, 1, 4, 3, 0, 1, 0, 2, 1, 5, 0])


def regression(x: Any, y: Any) -> None:
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ beta, 0.7), obs=y)


def _regression_exact() -> float:
    return multivariate_normal(np.zeros(12), 0.49 * np.eye(12) + 4.0 * X @ X.T).logpdf(Y)


def noisy_regression(x: Any, y: Any) -> None:
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    precision = numpyro.sample("precision", dist.Gamma(2.0, 1.0))
    numpyro.sample("y", dist.Normal(x @ beta, jax.lax.rsqrt(precision)), obs=y)


def _noisy_regression_exact() -> float:
    def density(precision: float) -> float:
        covariance = np.eye(12) / precision + 4.0 * X @ X.T
        likelihood = multivariate_normal(np.zeros(12), covariance).pdf(Y)
        return precision * np.exp(-precision) * likelihood

    return math.log(quad(density, 0.0, 20.0, epsabs=0.0, epsrel=1e-11, limit=200)[0])


def poisson(x: Any, y: Any) -> None:
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.StudentT(4.0, 0.0, 1.0))
    numpyro.sample("y", dist.Poisson(jnp.exp(a + x[:, 1] * b)), obs=y)


def _poisson_exact() -> float:
    nodes, weights = np.polynomial.legendre.leggauss(300)
    a, b = 4.0 * nodes[:, None, None], 4.0 * nodes[:, None]
    rate = a + X[:, 1] * b
    log_likelihood = np.sum(COUNTS * rate - np.exp(rate) - _log_factorial(COUNTS), -1)
    log_prior = norm.logpdf(a) + np.log(0.375) - 2.5 * np.log1p(b**2 / 4.0)
    area = 16.0 * weights[:, None] * weights
    return logsumexp(log_prior[..., 0] + log_likelihood, b=area)


def _log_factorial(counts: Any) -> Any:
    return np.array([math.lgamma(count + 1.0) for count in counts])


class Case(NamedTuple):
    model: Callable
    data: tuple
    exact: Callable[[], float]


CASES = {
    "conjugate": Case(regression, (X, Y), _regression_exact),
    "unknown precision": Case(noisy_regression, (X, Y), _noisy_regression_exact),
    "Poisson": Case(poisson, (X, COUNTS), _poisson_exact),
}


@cache
def fitted(name: str) -> vf.inference.MAP:
    case = CASES[name]
    posterior = vf.condition(case.model, *(jnp.asarray(a, float) for a in case.data))
    return vf.find_map(posterior, key=KEY, starts=2)


# --- Quadrature


def quadrature(model: Callable, *data: Any, **options: Any) -> vf.results.Evidence:
    found = vf.evidence(vf.condition(model, *data), by=vf.Quadrature(**options))
    assert found.trust.level.value == "good"
    assert found.correction is None
    return found


def gaussian(y: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(1.0, 3.0))
    numpyro.sample("y", dist.Normal(mu, 0.1), obs=y)


def test_quadrature_of_a_gaussian() -> None:
    found = quadrature(gaussian, jnp.array(2.0))
    assert_allclose(found.log_z, norm.logpdf(2.0, 1.0, math.hypot(3.0, 0.1)), atol=1e-8)


def heavy(y: Any) -> None:
    mu = numpyro.sample("mu", dist.Cauchy(0.0, 1.0))
    numpyro.sample("y", dist.Cauchy(mu, 1.0), obs=y)


def test_quadrature_of_power_tails() -> None:
    found = quadrature(heavy, jnp.array(1.5))
    assert_allclose(found.log_z, cauchy.logpdf(1.5, 0.0, 2.0), atol=1e-8)


def waiting_time(y: Any) -> None:
    rate = numpyro.sample("rate", dist.Exponential(1.0))
    numpyro.sample("y", dist.Exponential(rate), obs=y)


@pytest.mark.slow
def test_quadrature_on_a_half_line() -> None:
    found = quadrature(waiting_time, jnp.array(2.0))  # integral of x e^(-3x)
    assert_allclose(found.log_z, -2.0 * math.log(3.0), atol=1e-8)


def correlated(precision: Any) -> None:
    theta = numpyro.sample("theta", dist.ImproperUniform(constraints.real_vector, (), (2,)))
    numpyro.factor("density", -0.5 * theta @ precision @ theta)


@pytest.mark.slow
def test_quadrature_of_correlated_parameters() -> None:
    precision = np.array([[100.0, 29.0], [29.0, 9.0]])
    posterior = vf.condition(correlated, jnp.asarray(precision))
    found = vf.evidence(posterior, by=vf.Quadrature(), allow_improper=True)
    exact = math.log(2.0 * math.pi) - 0.5 * np.linalg.slogdet(precision)[1]
    assert_allclose(found.log_z, exact, atol=1e-8)
    assert "formal integral: the prior of theta is improper" in found.note


@pytest.mark.parametrize("name", ["conjugate", "Poisson"])
def test_quadrature_in_two_dimensions(name: str) -> None:
    found = vf.evidence(fitted(name), by=vf.Quadrature())
    assert_allclose(found.log_z, CASES[name].exact(), atol=1e-8)
    assert found.trust.level.value == "good"


def test_quadrature_in_three_dimensions() -> None:
    found = vf.evidence(fitted("unknown precision"), by=vf.Quadrature(tolerance=0.01))
    assert_allclose(found.log_z, CASES["unknown precision"].exact(), atol=1e-3)
    assert found.cost.densities < 200_000


def test_quadrature_that_ran_out_of_nodes_says_so() -> None:
    found = vf.evidence(fitted("Poisson"), by=vf.Quadrature(nodes=700))
    assert found.trust.level.value != "good"
    assert found.cost.densities <= 700


# --- Monte Carlo

SHORT = vf.Bridge(draws=1000, warmup=200)
DRAWN = {"importance": vf.Importance(draws=2000), "bridge": SHORT}


@pytest.mark.standard_promotion
@pytest.mark.parametrize(
    ("name", "by"),
    [
        # Of bridge sampling one is enough: each compiles NUTS.
        pytest.param(name, by, marks=[pytest.mark.slow] * (by == "bridge" and name != "conjugate"))
        for name in CASES
        for by in DRAWN
    ],
)
def test_within_four_standard_errors(name: str, by: str) -> None:
    found = vf.evidence(fitted(name), by=DRAWN[by], key=jax.random.key(1))
    assert found.trust.level.value in {"good", "fair"}
    assert abs(float(found.log_z) - CASES[name].exact()) < 4.0 * float(found.error)
    assert float(found.error) < 0.1
    again = vf.evidence(fitted(name), by=DRAWN[by], key=jax.random.key(1))
    assert float(again.log_z) == float(found.log_z)
    assert float(again.error) == float(found.error)
    other = vf.evidence(fitted(name), by=DRAWN[by], key=jax.random.key(2))
    assert float(other.log_z) != float(found.log_z)


@pytest.mark.standard_promotion
@pytest.mark.parametrize("by", DRAWN.values(), ids=DRAWN.keys())
def test_errors_are_honest(by: Estimator) -> None:
    exact = CASES["unknown precision"].exact()
    runs = [
        vf.evidence(fitted("unknown precision"), by=by, key=jax.random.key(s)) for s in range(10)
    ]
    scores = [(float(run.log_z) - exact) / float(run.error) for run in runs]
    low, high = chi2(10).ppf([1e-4, 1.0 - 1e-4])
    # Bridge sampling states the largest of three errors, so that its own may be too wide.
    assert (low if isinstance(by, vf.Importance) else low / 4.0) < np.square(scores).sum() < high


@pytest.mark.parametrize("df", [3.0, math.inf])
def test_importance_from_other_proposals(df: float) -> None:
    found = vf.evidence(fitted("Poisson"), by=vf.Importance(draws=2000, df=df))
    assert abs(float(found.log_z) - CASES["Poisson"].exact()) < 4.0 * float(found.error)
    assert "k_hat" in found.diagnostics
    assert 100.0 < found.diagnostics["effective_draws"] <= 2000.0


def test_importance_of_a_gaussian_from_its_own_gaussian_has_no_error() -> None:
    found = vf.evidence(fitted("conjugate"), by=vf.Importance(draws=200, df=math.inf, rounds=0))
    assert_allclose(found.log_z, CASES["conjugate"].exact(), atol=1e-10)
    assert float(found.error) < 1e-6


def test_equal_weights_have_no_tail() -> None:
    log_weights, k_hat = arviz_compat.smoothed(np.full(1000, -3.0))
    assert_allclose(log_weights, -3.0)
    assert k_hat == -math.inf


# --- Draws that are at hand


@pytest.mark.standard_promotion
def test_bridge_takes_draws_from_numpyro_arviz_and_dicts() -> None:
    fit = fitted("unknown precision")
    mcmc = MCMC(
        NUTS(noisy_regression), num_warmup=200, num_samples=500, num_chains=4,
        chain_method="vectorized", progress_bar=False,
    )  # fmt: skip
    mcmc.run(KEY, jnp.asarray(X), jnp.asarray(Y))
    draws = mcmc.get_samples(group_by_chain=True)
    plain = {name: np.asarray(values) for name, values in draws.items()}
    by_hand = arviz_compat.built({"posterior": plain}, {}, {})
    sources = [mcmc, draws, plain, arviz.from_numpyro(mcmc), by_hand]
    found = [vf.evidence(fit, by=vf.Bridge(samples=s), key=KEY) for s in sources]
    assert_allclose([e.log_z for e in found], float(found[0].log_z), rtol=1e-12)
    exact = CASES["unknown precision"].exact()
    assert abs(float(found[0].log_z) - exact) < 4.0 * float(found[0].error)
    assert found[0].trust.level.value == "good"
    assert found[0].cost.gradients == 2000  # of the check of the draws


# --- Several modes


def two_wells() -> None:
    x = numpyro.sample("x", dist.Normal(0.0, 10.0))
    low, high = (dist.Normal(center, 0.3).log_prob(x) for center in (-1.5, 1.5))
    wells = jnp.logaddexp(jnp.log(0.2) + low, jnp.log(0.8) + high)
    numpyro.factor("wells", wells - dist.Normal(0.0, 10.0).log_prob(x))


WELLS = [vf.Laplace(), vf.Importance(draws=4000), vf.Quadrature(tolerance=1e-8)]


@pytest.fixture(scope="module")
def in_two_wells() -> vf.inference.MAP:
    fit = vf.find_map(vf.condition(two_wells), key=KEY, starts=8)
    assert len(fit.modes) == 2
    return fit


@pytest.mark.parametrize("by", WELLS, ids=lambda by: type(by).__name__)
def test_both_wells_count(in_two_wells: vf.inference.MAP, by: Estimator) -> None:
    found = vf.evidence(in_two_wells, by=by)
    allowed = 1e-6 if not isinstance(by, vf.Importance) else 4.0 * float(found.error)
    assert abs(float(found.log_z)) < allowed
    assert "integral of a density that wells may leave unnormalized" in found.note


def test_laplace_shows_the_weights_of_the_modes(in_two_wells: vf.inference.MAP) -> None:
    found = vf.evidence(in_two_wells, by=vf.Laplace())
    assert "sum over 2 modes, weights 0.800, 0.200" in repr(found)
    assert_allclose(found.diagnostics["weight of mode 2"], 0.2, atol=1e-6)
    one = vf.laplace(in_two_wells).evidence
    assert_allclose(one.log_z, math.log(0.8), atol=1e-6)
    assert "1 other mode is not counted; `vf.evidence` sums them" in one.note


CLUSTERS = jnp.array([-2.4, -2.1, -1.8, -1.9, 2.2, 1.9, 2.3, 1.7, 2.0])


def mixture(y: Any, infer: dict) -> None:
    prior = dist.Normal(0.0, 3.0).expand([2]).to_event(1)
    mu = numpyro.sample("mu", prior, infer=infer)
    each = dist.Normal(mu[:, None], 0.5).log_prob(y) - math.log(2.0)
    numpyro.factor("y", jnp.sum(jax.nn.logsumexp(each, axis=0)))


def test_exchangeable_components_count_once_each() -> None:
    fits = [
        vf.find_map(vf.condition(mixture, CLUSTERS, infer), key=KEY, starts=8)
        for infer in ({}, {"equivalent_modes": 2})
    ]
    plain, declared = fits
    assert len(plain.modes) == 2
    summed = vf.evidence(plain, by=vf.Laplace())
    one = vf.laplace(plain).evidence
    assert "1 other mode is not counted" in one.note
    assert "not counted" not in vf.laplace(declared).evidence.note  # the copy is, by its number
    assert_allclose(summed.log_z, one.log_z + math.log(2.0), rtol=1e-9)
    for by_number in (
        vf.evidence(declared, by=vf.Laplace()),
        vf.evidence(plain, by=vf.Laplace(), equivalent_modes=2),
    ):
        assert_allclose(by_number.log_z, summed.log_z, rtol=1e-9)
        # The exchange is found, and the copies summed as modes: what is declared is not needed.
        assert "symmetries found: exchange of mu; sum over 2 modes" in by_number.note
    exact = vf.evidence(plain, by=vf.Importance(draws=4000), equivalent_modes=2)
    assert summed.log_z_second_order is not None
    assert abs(float(exact.log_z - summed.log_z_second_order)) < 4.0 * float(exact.error) + 1e-3


# --- Costs


def test_costs_are_those_of_the_model() -> None:
    calls: list[int] = []

    def counted(y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        jax.debug.callback(lambda _: calls.append(1), mu)
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit = vf.find_map(vf.condition(counted, jnp.array([0.3, 1.1])), key=KEY, starts=2)
    draws = {"mu": 0.45 + 0.6 * jax.random.normal(KEY, (2, 50))}
    searched = vf.evidence(fit, by=vf.Laplace(second_order=False)).cost
    jax.effects_barrier()
    for by in (vf.Importance(draws=100), vf.Bridge(samples=draws)):
        calls.clear()
        found = vf.evidence(fit, by=by)
        jax.effects_barrier()
        checked = 100 if isinstance(by, vf.Bridge) else 0  # draws, whose gradients are taken
        # `posterior.provenance` traces the model once or twice on the way.
        assert found.cost.densities <= len(calls) - checked <= found.cost.densities + 2
        if isinstance(by, vf.Importance):
            assert found.cost.gradients == searched.gradients > 0


@pytest.mark.parametrize(("k", "naive"), [(0.3, 0.95), (0.7, 0.75)])
def test_error_of_importance_holds_for_heavy_tails(k: float, naive: float) -> None:
    """Weights 1 + Pareto(k) have the mean 1 + 1 / (1 - k)."""
    rng, inside, inside_naive = np.random.default_rng(0), [], []
    for _ in range(100):
        raw = np.log1p((rng.uniform(size=2000) ** -k - 1.0) / k)
        log_weights, k_hat = arviz_compat.smoothed(raw)
        gap = abs(log_mean(log_weights)[0] - math.log1p(1.0 / (1.0 - k)))
        inside.append(gap < 2.0 * log_mean(log_weights, k_hat)[1])
        inside_naive.append(gap < 2.0 * log_mean(log_weights)[1])
    assert np.mean(inside) >= 0.85
    assert np.mean(inside_naive) <= naive


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_warmup_costs_too() -> None:
    short, long = (
        vf.evidence(fitted("conjugate"), by=vf.Bridge(draws=100, chains=2, warmup=warmup)).cost
        for warmup in (0, 300)
    )
    assert short.densities == long.densities
    assert long.gradients > short.gradients + 2 * 300


def test_costs_add_up() -> None:
    found = vf.evidence(fitted("Poisson"), by=vf.Quadrature())
    assert found.cost.densities == found.diagnostics["nodes"]
    automatic = vf.evidence(fitted("conjugate"), by=Automatic())
    laplace = vf.evidence(fitted("conjugate"), by=vf.Laplace())
    assert automatic.method == "quadrature"
    # One search for the mode, whatever the number of estimators that use it.
    assert automatic.cost.gradients == laplace.cost.gradients
    nodes = automatic.diagnostics["nodes"]
    assert automatic.cost.densities == nodes + laplace.cost.densities


@pytest.mark.parametrize("shape", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("d", [1, 2])
def test_what_a_chart_of_an_interval_cuts_off_is_claimed(d: int, shape: float) -> None:
    """Mass beyond u = 36.7, where values round to the edge: 2e-8 of each Beta(1/2, 1/2)."""

    def model():
        numpyro.sample("p", dist.Beta(shape, shape).expand([d]).to_event(1))

    found = vf.evidence(vf.condition(model), by=vf.Quadrature())
    assert abs(float(found.log_z)) < 3.0 * float(found.error) + 1e-12
    lost = d * beta(shape, shape).cdf(np.exp(-36.7))
    beyond = math.exp((36.7 - 30.0) * shape)  # what lies beyond 30, of which the rest is lost
    assert float(found.error) < 3.0 * max(beyond * lost, 1e-9)
