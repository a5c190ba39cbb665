"""Learning coefficients and evidence along powers of the likelihood, against exact ones.

Reduced-rank regression `y = A B x`, A (n, h), B (h, m), entries N(0, 1), truth 0,
`K = |A B|^2 / 2`: n b E[K] = -d log Z / d log(n b), exact by quadrature over the eigenvalues of
Wishart matrices by an independent program; lambda and its multiplicity by Aoyagi & Watanabe (2005).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.integrate import quad
from scipy.stats import multivariate_normal

import volform as vf
from volform.errors import ConvergenceError, ModelError
from volform.inference import TemperedNUTS, Thermodynamic, learning_coefficient
from volform.results import Level

KEY = jax.random.key(0)
# by (m, n, h): lambda, its multiplicity, n b E[K] at n b = 100 and 10,000
REDUCED_RANK = {
    (1, 1, 1): (0.5, 2, (0.3387677770862447, 0.4066766861509311)),
    (2, 1, 1): (0.5, 1, (0.4618691264234533, 0.49602869179961456)),
    (3, 5, 2): (3.0, 1, (2.874243319460257, 2.9874540086457473)),
    (3, 3, 2): (2.5, 1, (2.2974356528012585, 2.4670560686953595)),
}


def reduced_rank(n, m, h, y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0).expand([n, h]).to_event(2))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0).expand([h, m]).to_event(2))
    numpyro.sample("y", dist.Normal(a @ b, 1.0), obs=y)


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1),
        pytest.param((2, 1, 1), marks=pytest.mark.slow),
        pytest.param((3, 5, 2), marks=pytest.mark.slow),
        pytest.param((3, 3, 2), marks=pytest.mark.slow),
    ],
)
def test_reduced_rank_regression(sizes):
    m, n, h = sizes
    lam, multiplicity, exact = REDUCED_RANK[sizes]
    posterior = vf.condition(reduced_rank, n, m, h, jnp.zeros((n, m)))
    by = TemperedNUTS(KEY, powers=(100.0, 10_000.0), draws=2000, warmup=500)
    at = {"a": jnp.zeros((n, h)), "b": jnp.zeros((h, m))}
    found = learning_coefficient(posterior, at=at, by=by)
    assert np.all(np.abs(found.mean - exact) < 4.0 * found.error)
    assert np.all(found.error < 0.1)
    assert np.all(found.r_hat < 1.05)
    assert found.parameters == n * h + h * m
    # lambda - (m - 1) / log(n b), which the exact numbers keep to within .1 at 10,000
    limit = lam - (multiplicity - 1) / math.log(1e4)
    assert abs(found.mean[1] - limit) < 4.0 * found.error[1] + 0.1
    assert repr(found).splitlines()[1].startswith(f"learning coefficient {found.mean[1]:.3f} ±")


@pytest.mark.slow
def test_a_truth_of_rank_one():
    a, b = np.zeros((3, 2)), np.zeros((2, 3))
    a[:, 0], b[0] = [1.0, 0.5, -0.5], [0.8, -0.3, 0.6]
    posterior = vf.condition(reduced_rank, 3, 3, 2, jnp.asarray(a @ b))
    by = TemperedNUTS(KEY, powers=(1_000.0, 10_000.0))
    found = learning_coefficient(posterior, at={"a": a, "b": b}, by=by)
    limit = 3.5 - 1.0 / np.log([1e3, 1e4])  # lambda = 7/2, m = 2
    assert np.all(np.abs(found.mean - limit) < 4.0 * found.error)


def tanh_unit(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    c = numpyro.sample("c", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(c * jnp.tanh(w * x), 1.0), obs=y)


def test_a_tanh_unit_that_is_not_needed():
    x = jnp.linspace(-2.0, 2.0, 20)
    posterior = vf.condition(tanh_unit, x, jnp.zeros(20))
    by = TemperedNUTS(KEY, powers=(1.0, 100.0), draws=2000, warmup=500)
    found = learning_coefficient(posterior, at={"w": 0.0, "c": 0.0}, by=by)

    def log_z(power):  # c integrated out: a Gaussian with precision 1 + power s(w)
        def density(w):
            s = np.sum(np.tanh(w * np.asarray(x)) ** 2)
            return math.exp(-(w**2) / 2.0) / math.sqrt(2.0 * math.pi * (1.0 + power * s))

        return math.log(2.0 * quad(density, 0.0, 12.0, epsabs=0.0, epsrel=1e-12, limit=500)[0])

    for power, mean, error in zip(by.powers, found.mean, found.error, strict=True):
        up, down = power * 1.001, power / 1.001
        exact = -(log_z(up) - log_z(down)) / (math.log(up) - math.log(down))
        assert abs(mean - exact) < 4.0 * error
    assert found.mean[1] < 0.5 - 1.0 / (2.0 * math.log(2000.0))  # m = 2: from below, slowly


@pytest.mark.slow
def test_the_coefficient_does_not_depend_on_the_chart():
    def direct(y):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(scale * shift, 1.0), obs=y)

    def by_logarithm(y):
        log_scale = numpyro.sample("log_scale", dist.Normal(0.0, 1.0))
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(jnp.exp(log_scale) * shift, 1.0), obs=y)

    y = jnp.zeros(50)
    by = TemperedNUTS(KEY, powers=(1.0,))
    first = learning_coefficient(vf.condition(direct, y), at={"scale": 1.0, "shift": 0.0}, by=by)
    at = {"log_scale": 0.0, "shift": 0.0}
    second = learning_coefficient(vf.condition(by_logarithm, y), at=at, by=by)
    gap = abs(first.mean[0] - second.mean[0])
    assert gap < 4.0 * math.hypot(first.error[0], second.error[0])


def regression(x, y):
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0).expand([x.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ beta, 0.7), obs=y)


def conjugate(d):
    """Data, the exact log Z, and the exact mean of log L at a power of the likelihood."""
    rng = np.random.default_rng(d)
    x = rng.normal(size=(30, d))
    y = x @ rng.normal(size=d) + rng.normal(size=30)
    log_z = multivariate_normal(np.zeros(30), 0.49 * np.eye(30) + 4.0 * x @ x.T).logpdf(y)

    def mean_fit(power):
        covariance = np.linalg.inv(np.eye(d) / 4.0 + power * x.T @ x / 0.49)
        residual = y - x @ (power * covariance @ x.T @ y / 0.49)
        square = residual @ residual + np.trace(x @ covariance @ x.T)
        return -0.5 * square / 0.49 - 15.0 * math.log(2.0 * math.pi * 0.49)

    return x, y, log_z, mean_fit


@pytest.mark.parametrize("d", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_thermodynamic_integration_of_a_conjugate_model(d):
    x, y, log_z, mean_fit = conjugate(d)
    by = Thermodynamic(draws=2000)
    found = vf.evidence(vf.condition(regression, x, y), by=by, key=KEY)
    assert abs(found.log_z - log_z) < 4.0 * found.error
    assert found.error < 0.06 * math.sqrt(d)
    assert found.trust.level in {Level.GOOD, Level.FAIR}
    power = 1.0 / math.log(30.0)
    spread = math.sqrt(d / 2.0) / power  # of log L, whose effective draws are 500 or more
    assert abs(found.diagnostics["wbic"] - mean_fit(power)) < 4.0 * spread / math.sqrt(500.0)
    coefficients = [v for name, v in found.diagnostics.items() if name.startswith("learning")]
    assert abs(coefficients[-1] - d / 2.0) < 0.15 * d  # regular, up to the prior's pull
    assert found.draws is not None
    np.testing.assert_allclose(
        np.asarray(found.draws.u).mean(0),
        np.linalg.solve(np.eye(d) / 4.0 + x.T @ x / 0.49, x.T @ y / 0.49),
        atol=0.05,
    )


def test_thermodynamic_integration_where_laplace_fails():
    def product(y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(a * b, 1.0), obs=y)

    y = np.random.default_rng(0).normal(size=100)

    def density(b):  # a integrated out
        covariance_times = b * b * y.sum() ** 2 / (1.0 + 100.0 * b * b)
        log_fit = 0.5 * covariance_times - 0.5 * math.log1p(100.0 * b * b)
        return math.exp(log_fit - b * b / 2.0) / math.sqrt(2.0 * math.pi)

    rest = -0.5 * (y @ y) - 50.0 * math.log(2.0 * math.pi)
    exact = rest + math.log(2.0 * quad(density, 0.0, 12.0, epsabs=0.0, epsrel=1e-11)[0])
    found = vf.evidence(vf.condition(product, jnp.asarray(y)), by=Thermodynamic(), key=KEY)
    assert abs(found.log_z - exact) < 4.0 * found.error
    assert found.error < 0.12


def flat(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_bad_input():
    posterior = vf.condition(flat, jnp.arange(50.0) / 50.0)
    by = TemperedNUTS(KEY, draws=400, warmup=100)
    with pytest.raises(ConvergenceError, match=r"no stationary point: log L is .*find_map"):
        learning_coefficient(posterior, at={"mu": 2.0}, by=by)
    with pytest.raises(ConvergenceError, match=r"R-hat of log L is .* above 1\.05.*warmup"):
        learning_coefficient(
            posterior, at={"mu": 0.49}, by=TemperedNUTS(KEY, draws=16, chains=2, warmup=1)
        )
    with pytest.raises(ModelError, match=r"`by` of learning_coefficient is .*Thermodynamic"):
        learning_coefficient(posterior, at={"mu": 0.49}, by=Thermodynamic())
    with pytest.raises(ModelError, match=r"`at` of learning_coefficient is a float"):
        learning_coefficient(posterior, at=0.49, by=by)
    with pytest.raises(ModelError, match=r"2 observations .* give `powers`"):
        learning_coefficient(vf.condition(flat, jnp.ones(2)), at={"mu": 1.0}, by=by)
    for powers in ((0.0, 1.0), (-1.0,), (), (math.inf,)):
        with pytest.raises(ModelError, match=r"`powers` of TemperedNUTS is .* positive"):
            TemperedNUTS(KEY, powers=powers)
    with pytest.raises(ModelError, match=r"`chains`, `draws` and `target_accept`"):
        TemperedNUTS(KEY, chains=1)
    with pytest.raises(ModelError, match="`key` of TemperedNUTS"):
        TemperedNUTS(0)
    with pytest.raises(ModelError, match=r"`draws` and `chains` of Thermodynamic are 1,500"):
        Thermodynamic(draws=1500)
    with pytest.raises(ModelError, match="`target_accept` of Thermodynamic"):
        Thermodynamic(target_accept=1.0)

    def improper(y):
        mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ModelError, match=r"`vf.inference.Thermodynamic` begins with draws from"):
        vf.evidence(vf.condition(improper, jnp.ones(3)), by=Thermodynamic(), allow_improper=True)
