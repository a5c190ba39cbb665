"""Tables of parameters: of Laplace approximations, and of the draws of every estimator."""

import math
import pickle
from functools import cache
from typing import Any

import arviz
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from numpy.testing import assert_allclose
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS

import volform as vf
from volform.errors import DataError, ModelError, UnknownSiteError
from volform.inference import LaplaceApproximation, Samples, Summary
from volform.results import Evidence

KEY = jax.random.key(0)
Z_90 = scipy.stats.norm.ppf(0.95)


def fitted(model: Any, metric: Any, *data: Any) -> LaplaceApproximation:
    posterior = vf.condition(vf.attach(model, metric), *data)
    return vf.laplace(vf.find_map(posterior, key=KEY, starts=1), second_order=False)


def integrated(f: Any, mean: float, sd: float) -> tuple[float, float]:
    """Mean and standard deviation of f of a Gaussian number, by adaptive quadrature."""

    def moment(g: Any) -> float:
        density = scipy.stats.norm(mean, sd).pdf
        ends = mean - 12.0 * sd, mean + 12.0 * sd
        return scipy.integrate.quad(lambda u: g(u) * density(u), *ends, epsabs=1e-13, limit=200)[0]

    first = moment(f)
    return first, math.sqrt(moment(lambda u: (f(u) - first) ** 2))


# --- Laplace approximations


def line(x: Any, y: Any) -> None:
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(beta[0] + beta[1] * x, 1.0), obs=y)


LINE = jnp.array([0.0, 1.0, 2.0, 4.0]), jnp.array([0.3, 1.4, 1.7, 4.5])


def exact_line() -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and covariance: conjugate."""
    x = np.stack([np.ones(4), np.asarray(LINE[0])], 1)
    covariance = np.linalg.inv(x.T @ x + np.eye(2) / 4.0)
    return covariance @ x.T @ np.asarray(LINE[1]), covariance


def test_a_gaussian_posterior_is_exact() -> None:
    approx = fitted(line, vf.Euclidean(), *LINE)
    mean, covariance = exact_line()
    sd = np.sqrt(np.diag(covariance))
    table = approx.summary(0.8)
    reach = scipy.stats.norm.ppf(0.9) * sd
    for found, exact in (
        (table.mode, mean),
        (table.mean, mean),
        (table.sd, sd),
        (table.lower, mean - reach),
        (table.upper, mean + reach),
    ):
        assert_allclose(found["beta"], exact, rtol=1e-8)
    assert np.isnan(table.error["beta"]).all()
    assert_allclose(approx.mean["beta"], mean, rtol=1e-8)
    assert_allclose(approx.std["beta"], sd, rtol=1e-8)
    assert_allclose(approx.interval()["beta"], [mean - Z_90 * sd, mean + Z_90 * sd], rtol=1e-8)


def positive(shape: Any) -> None:
    with numpyro.plate("element", len(shape)):
        numpyro.sample("x", dist.Gamma(shape, 1.0))


def test_exponentials_are_log_normal() -> None:
    # log x has the density exp(a u - e^u), mode log a and curvature a.
    shape = np.array([2.0, 7.0])
    table = fitted(positive, vf.Unconstrained(), jnp.asarray(shape)).summary()
    law = scipy.stats.lognorm(1.0 / np.sqrt(shape), scale=shape)
    assert_allclose(table.mode["x"], shape, rtol=1e-8)
    assert_allclose(table.mean["x"], law.mean(), rtol=1e-8)
    assert_allclose(table.sd["x"], law.std(), rtol=1e-8)
    assert_allclose(table.lower["x"], law.ppf(0.05), rtol=1e-8)
    assert_allclose(table.upper["x"], law.ppf(0.95), rtol=1e-8)


def test_what_lies_outside_the_support_is_cut_off() -> None:
    # In x the density has mode a - 1 and curvature 1 / (a - 1); elements are independent.
    shape = np.array([2.0, 3.0])
    table = fitted(positive, vf.Euclidean(), jnp.asarray(shape)).summary()
    law = scipy.stats.truncnorm(-np.sqrt(shape - 1), np.inf, shape - 1, np.sqrt(shape - 1))
    assert_allclose(table.mean["x"], law.mean(), rtol=1e-8)
    assert_allclose(table.sd["x"], law.std(), rtol=1e-8)
    assert_allclose(table.lower["x"], law.ppf(0.05), rtol=1e-8)
    assert_allclose(table.upper["x"], law.ppf(0.95), rtol=1e-8)
    draws = fitted(positive, vf.Euclidean(), jnp.asarray(shape)).sample(KEY, 20_000)["x"]
    assert np.all(np.abs(draws.mean(0) - law.mean()) < 4.0 * law.std() / math.sqrt(20_000))


def coupled() -> None:
    x = numpyro.sample("x", dist.TruncatedNormal(0.5, 1.0, low=0.0))
    numpyro.sample("y", dist.Normal(x, 1.0))
    numpyro.sample("z", dist.Normal(1.0, 2.0))


def test_correlated_with_what_is_cut_off() -> None:
    table = fitted(coupled, vf.Euclidean()).summary()
    law = scipy.stats.truncnorm(-0.5, np.inf, 0.5, 1.0)
    assert_allclose([table.mean["x"], table.sd["x"]], [law.mean(), law.std()], rtol=1e-8)
    assert_allclose([table.mean["z"], table.sd["z"]], [1.0, 2.0], rtol=1e-8)
    # y given x is N(x, 1), whatever is cut off of x.
    sd = math.hypot(law.std(), 1.0)
    assert float(table.error["y"]) == pytest.approx(sd / 100.0, rel=0.05)
    assert abs(table.mean["y"] - law.mean()) < 4.0 * table.error["y"]
    assert table.sd["y"] == pytest.approx(sd, rel=0.03)
    assert np.isnan(table.error["x"])
    assert "y: by 10,000 draws" in repr(table)


BOUNDED = {
    "sigmoid": (dist.Beta(3.0, 2.0), scipy.special.expit),
    "greater": (
        dist.TransformedDistribution(
            dist.LogNormal(0.5, 0.8),
            dist.transforms.AffineTransform(3.0, 1.0, constraints.positive),
        ),
        lambda u: 3.0 + np.exp(u),
    ),
    "less": (
        dist.TransformedDistribution(
            dist.LogNormal(0.5, 0.8),
            dist.transforms.AffineTransform(3.0, -1.0, constraints.positive),
        ),
        lambda u: 3.0 - np.exp(u),
    ),
}


@pytest.mark.parametrize("name", ["sigmoid", "greater", "less"])
def test_functions_of_a_gaussian_number_are_integrated(name: str) -> None:
    law, f = BOUNDED[name]

    def model() -> None:
        numpyro.sample("x", law)

    approx = fitted(model, vf.Unconstrained())
    mean, sd = float(approx.mode.at.u[0]), float(approx.covariance[0, 0]) ** 0.5
    table = approx.summary()
    first, second = integrated(f, mean, sd)
    assert_allclose([table.mean["x"], table.sd["x"]], [first, second], rtol=1e-9)
    ends = sorted([f(mean - Z_90 * sd), f(mean + Z_90 * sd)])
    assert_allclose([table.lower["x"], table.upper["x"]], ends, rtol=1e-9)
    assert_allclose(table.mode["x"], f(mean), rtol=1e-9)


def test_a_simplex_takes_draws() -> None:
    def model() -> None:
        numpyro.sample("p", dist.Dirichlet(jnp.array([3.0, 4.0, 5.0])))
        numpyro.sample("x", dist.Normal(0.0, 1.0))

    approx = fitted(model, vf.Unconstrained())
    table = approx.summary()
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    root = np.linalg.cholesky(np.asarray(approx.covariance)[:2, :2])
    z = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
    mass = np.outer(weights, weights).ravel() / weights.sum() ** 2
    u = np.asarray(approx.mode.at.u)[:2] + z @ root.T
    p = np.asarray(approx.posterior.layout.site("p").chart(jnp.asarray(u)))
    mean = mass @ p
    sd = np.sqrt(mass @ (p - mean) ** 2)
    assert np.all(np.abs(table.mean["p"] - mean) < 4.0 * table.error["p"])
    assert_allclose(table.error["p"], sd / 100.0, rtol=0.1)
    assert_allclose(table.sd["p"], sd, rtol=0.04)
    assert_allclose(table.sd["x"], 1.0, rtol=1e-8)
    assert table.notes == ("p: by 10,000 draws",)


@pytest.mark.parametrize("metric", [vf.Unconstrained(), vf.Euclidean()], ids=repr)
def test_an_angle_is_not_torn_at_pi(metric: Any) -> None:
    def model() -> None:
        numpyro.sample("phi", dist.VonMises(3.1, 50.0))

    approx = fitted(model, metric)
    draws = approx.sample(KEY, 20_000)
    for table in (approx.summary(), draws.summary()):
        assert table.mean["phi"] == pytest.approx(3.1, abs=0.01)
        assert table.sd["phi"] == pytest.approx(50.0**-0.5, rel=0.03)
        assert table.upper["phi"] > math.pi > table.lower["phi"]
    assert draws["phi"].min() < -3.0


def test_density_of_the_approximation() -> None:
    approx = fitted(line, vf.Euclidean(), *LINE)
    law = scipy.stats.multivariate_normal(*exact_line())
    draws = approx.sample(KEY, 50)
    assert_allclose(approx.log_prob(draws.values), law.logpdf(draws["beta"]), rtol=1e-8)
    assert_allclose(approx.log_prob({"beta": jnp.zeros(2)}), law.logpdf(np.zeros(2)), rtol=1e-8)
    assert approx.log_prob({"beta": jnp.zeros((3, 4, 2))}).shape == (3, 4)
    # The posterior is Gaussian: every draw has the same weight, Z.
    log_z = float(approx.evidence.log_z)
    assert_allclose(draws.log_p - draws.log_q, log_z, rtol=1e-9)


@pytest.mark.parametrize("metric", [vf.Unconstrained(), vf.Euclidean()], ids=repr)
def test_density_carries_the_jacobian(metric: Any) -> None:
    shape = np.array([20.0, 7.0])
    approx = fitted(positive, metric, jnp.asarray(shape))
    x = np.array([[10.0, 5.0], [25.0, 8.0], [-1.0, 2.0]])
    in_values = isinstance(metric, vf.Euclidean)
    laws = (
        scipy.stats.norm(shape - 1, np.sqrt(shape - 1))
        if in_values
        else scipy.stats.lognorm(1 / np.sqrt(shape), scale=shape)
    )
    found = approx.log_prob({"x": jnp.asarray(x)})
    assert_allclose(found[:2], laws.logpdf(x[:2]).sum(1), rtol=1e-8)
    assert found[2] == -np.inf
    draws = approx.sample(KEY, 20)
    jacobian = np.log(draws["x"]).sum(1)  # x du = dx
    assert_allclose(draws.log_q - jacobian, approx.log_prob(draws.values), rtol=1e-8)
    density = jax.vmap(approx.posterior.log_density_lebesgue)(jnp.asarray(draws.u))
    assert_allclose(draws.log_p, density, rtol=1e-10)


def test_bad_values_are_refused() -> None:
    approx = fitted(line, vf.Euclidean(), *LINE)
    with pytest.raises(UnknownSiteError, match="lacks the latent sites"):
        approx.log_prob({"slope": jnp.zeros(2)})
    with pytest.raises(DataError, match=r"\{'beta': \(3,\)\}"):
        approx.log_prob({"beta": jnp.zeros(3)})
    for probability in (0.0, 1.0, 90, math.nan, "0.9", None):
        with pytest.raises(ModelError, match="`probability` of summary is"):
            approx.summary(probability)
        with pytest.raises(ModelError, match="`probability` of summary is"):
            approx.sample(KEY, 10).summary(probability)
    with pytest.raises(UnknownSiteError, match="no site 'slope'; it has 'beta'"):
        approx.summary()["slope"]


# --- The table


def test_print_is_aligned_and_has_three_digits_of_each_sd() -> None:
    values = {"a": np.array(12345.678), "theta": np.array([[0.012345, -1.5]])}
    sd = {"a": np.array(123.4), "theta": np.array([[0.00123, 0.5]])}
    table = Summary(values, sd, values, values, {n: 0.1 * s for n, s in sd.items()}, 0.5, "Title")
    assert repr(table).splitlines() == [
        "Title",
        "                    mean         sd          25%          75%  mcse_mean",
        "a            12346        123        12346        12346         12",
        "theta[0, 0]      0.01235    0.00123      0.01235      0.01235    0.00012",
        "theta[0, 1]     -1.500      0.500       -1.500       -1.500      0.05",
    ]


def many() -> None:
    numpyro.sample("x", dist.Normal(0.0, 1.0).expand([25]).to_event(1))
    numpyro.sample("<b>", dist.Normal(0.0, 1.0))


def test_long_sites_are_cut_in_print_and_not_in_data() -> None:
    approx = fitted(many, vf.Euclidean())
    table = approx.summary()
    lines = repr(table).splitlines()
    assert lines[11].startswith("x[9] ")
    assert lines[12] == "x: 15 more"
    frame = table.to_dataframe()
    assert list(frame.index) == [*(f"x[{i}]" for i in range(25)), "<b>"]
    assert list(frame.columns) == ["mode", "mean", "sd", "5%", "95%"]
    assert_allclose(frame["95%"], Z_90, rtol=1e-8)
    for shown in (table, approx, approx.mode, approx.posterior):
        assert "<th>&lt;b&gt;</th>" in shown._repr_html_()
    assert approx._repr_html_().startswith(table._repr_html_())
    assert "a strict local maximum" in approx._repr_html_()
    assert list(table["<b>"].to_dataframe().index) == ["<b>"]


def test_print_of_the_approximation_has_the_table() -> None:
    approx = fitted(line, vf.Euclidean(), *LINE)
    mean, covariance = exact_line()
    row = next(line for line in repr(approx).splitlines() if "beta[1]" in line).split()
    assert row == ["beta[1]", *[f"{mean[1]:.3f}"] * 2, f"{covariance[1, 1] ** 0.5:.3f}", *row[4:]]
    assert "log q^G" in repr(approx)


# --- Draws of every estimator

PRIOR = np.array([[2.0, 1.2], [1.2, 1.0]])


def conjugate(counts: Any, heads: Any, total: Any) -> None:
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    p = numpyro.sample("p", dist.Beta(1.0, 1.0))
    x = numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(2), jnp.asarray(PRIOR)))
    numpyro.sample("counts", dist.Poisson(rate), obs=counts)
    numpyro.sample("heads", dist.Binomial(9, p), obs=heads)
    numpyro.sample("total", dist.Normal(x[0] + x[1], 1.0), obs=total)


RATE, CHANCE = scipy.stats.gamma(16.0, scale=1 / 5), scipy.stats.beta(7.0, 4.0)


def exact() -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of rate, p and x: four conjugate posteriors."""
    covariance = np.linalg.inv(np.linalg.inv(PRIOR) + np.ones((2, 2)))
    mean = covariance @ np.ones(2) * 1.3
    return np.r_[RATE.mean(), CHANCE.mean(), mean], np.r_[
        RATE.std(), CHANCE.std(), np.sqrt(np.diag(covariance))
    ]


@cache
def posterior() -> Any:
    data = jnp.array([3.0, 5.0, 2.0, 4.0]), jnp.array(6), jnp.array(1.3)
    return vf.condition(vf.attach(conjugate, vf.Unconstrained()), *data)


BY = {
    "importance": (vf.Importance(draws=1000), 10),
    "bridge": (vf.Bridge(draws=800, warmup=300, repeats=1), 5),
    "tempered": (vf.Tempered(runs=2), 1),
}


@cache
def estimated(name: str) -> list[Evidence]:
    by, keys = BY[name]
    return [vf.evidence(posterior(), by=by, key=jax.random.key(key)) for key in range(keys)]


def flat(columns: dict[str, Any]) -> np.ndarray:
    return np.concatenate([np.ravel(columns[name]) for name in ("rate", "p", "x")])


@pytest.mark.standard_promotion
@pytest.mark.parametrize("name", BY)
def test_means_are_within_their_errors(name: str) -> None:
    mean, sd = exact()
    tables = [found.summary() for found in estimated(name)]
    z = np.array([(flat(t.mean) - mean) / flat(t.error) for t in tables])
    assert np.abs(z).max() < 4.0
    if len(z) > 1:  # a chi-square of 40 or 20 degrees of freedom
        low, high = scipy.stats.chi2(z.size).ppf([1e-4, 1 - 1e-4])
        assert low < (z**2).sum() < high
    n = len(estimated(name)[0].draws.points)
    for table in tables:
        assert_allclose(flat(table.sd) / sd, 1.0, atol=6.0 / math.sqrt(n))
        assert_allclose(table.lower["rate"], RATE.ppf(0.05), atol=0.2 * RATE.std())
        assert_allclose(table.upper["p"], CHANCE.ppf(0.95), atol=0.2 * CHANCE.std())


@pytest.mark.standard_promotion
@pytest.mark.parametrize("name", BY)
def test_every_draw_carries_its_density(name: str) -> None:
    found = estimated(name)[0]
    draws = found.draws
    some = jnp.asarray(draws.u[:20])
    assert_allclose(draws.log_p[:20], jax.vmap(posterior().log_density_lebesgue)(some), rtol=1e-9)
    if name == "importance":
        weights = np.exp(draws.log_p - draws.log_q - float(found.log_z))
        assert weights.mean() == pytest.approx(1.0, abs=0.05)
        assert draws.k_hat == found.diagnostics["k_hat"]
    else:
        assert draws.log_q is None
    assert draws.weights.sum() == pytest.approx(1.0, rel=1e-12)
    assert len(repr(found).splitlines()) <= 3
    assert "array" not in repr(draws)


def gamma_poisson(y: Any) -> None:
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    numpyro.sample("y", dist.Poisson(rate), obs=y)


def correlated(total: Any) -> None:
    x = numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(2), jnp.asarray(PRIOR)))
    numpyro.sample("total", dist.Normal(x[0] + x[1], 1.0), obs=total)


@cache
def by_quadrature(name: str) -> Evidence:
    model, data = {
        "rate": (gamma_poisson, jnp.array([3.0, 5.0, 2.0, 4.0])),
        "x": (correlated, jnp.array(1.3)),
    }[name]
    return vf.evidence(vf.condition(model, data))  # Automatic, which ends with quadrature


def test_nodes_of_quadrature_are_weighted_draws() -> None:
    mean, sd = exact()
    for name, part in (("rate", slice(0, 1)), ("x", slice(2, 4))):
        found = by_quadrature(name)
        assert found.method == "quadrature"
        table = found.summary()
        assert_allclose(np.ravel(table.mean[name]), mean[part], rtol=1e-8)
        assert_allclose(np.ravel(table.sd[name]), sd[part], rtol=1e-8)
        assert np.isnan(table.error[name]).all()
        law = [RATE] if name == "rate" else list(map(scipy.stats.norm, mean[part], sd[part]))
        for p in (0.5, 0.9, 0.99):
            found_ends = np.reshape(found.summary(p).interval[name], (2, -1))
            ends = np.array([one.ppf([0.5 - 0.5 * p, 0.5 + 0.5 * p]) for one in law]).T
            assert_allclose((found_ends - ends) / sd[part], 0.0, atol=0.005 if p < 0.95 else 0.02)


def unknown_scale(y: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    scale = numpyro.sample("scale", dist.HalfNormal(5.0))
    numpyro.sample("y", dist.Normal(mu, scale), obs=y)


def test_columns_of_a_grid_are_no_steps_of_quantiles() -> None:
    y = np.array([1.0, 2.0, 3.0, 4.5])
    model = vf.attach(unknown_scale, vf.Unconstrained())
    found = vf.evidence(vf.condition(model, jnp.asarray(y)), by=vf.Quadrature(nodes=300_000))
    # The marginals on a lattice of mu and log scale, sums of smooth functions that vanish.
    mu, log_scale = np.linspace(-50.0, 55.0, 4201), np.linspace(-4.0, 5.0, 601)
    scale = np.exp(log_scale)
    squares = ((y - mu[:, None]) ** 2).sum(1)[:, None]
    logs = -0.005 * mu[:, None] ** 2 - 0.02 * scale**2 - 3.0 * log_scale - 0.5 * squares / scale**2
    density = np.exp(logs - logs.max())
    table = found.summary()
    for name, x, mass in (("mu", mu, density.sum(1)), ("scale", scale, density.sum(0))):
        mass /= mass.sum()
        mean = mass @ x
        sd = math.sqrt(mass @ (x - mean) ** 2)
        below = np.cumsum(mass) - 0.5 * mass
        assert table.mean[name] == pytest.approx(mean, rel=1e-6)
        assert table.sd[name] == pytest.approx(sd, rel=1e-6)
        ends = np.interp([0.05, 0.95], below, x)
        assert_allclose((np.array(table.interval[name]) - ends) / sd, 0.0, atol=0.005)


def test_an_estimator_without_draws_says_what_to_do() -> None:
    found = vf.evidence(posterior(), by=vf.Laplace())
    assert found.draws is None
    with pytest.raises(ModelError, match=r"vf\.laplace\(posterior\)\.summary\(\)"):
        found.summary()
    with pytest.raises(ModelError, match="by Laplace, which has no draws"):
        vf.to_arviz(found)


def test_doubt_is_under_the_table() -> None:
    found = estimated("importance")[0]
    assert found.trust.level.value == "fair"
    assert repr(found.summary()).splitlines()[-1] == f"trust {found.trust}"
    assert "Posterior by importance sampling (1,000 draws)" in repr(found.summary())


def test_resampled_draws_count_alike() -> None:
    draws = estimated("importance")[0].draws
    again = draws.resampled(KEY, 4000)
    assert again.log_weights is None
    _, sd = exact()
    # Against the weighted mean, which they are drawn from.
    gap = (flat(again.summary().mean) - flat(draws.summary().mean)) / sd
    assert np.abs(gap).max() < 4.0 / math.sqrt(4000)
    assert_allclose(again.log_p, jax.vmap(posterior().log_density_lebesgue)(again.u), rtol=1e-9)
    fresh = Samples(draws.posterior, draws.chart, draws.points, log_weights=draws.log_weights)
    assert_allclose(fresh.resampled(KEY, 4000).u, again.u, rtol=1e-12)
    for number in (0, -1, 2.5):
        with pytest.raises(ModelError, match="`draws` of resampled is"):
            draws.resampled(KEY, number)
    with pytest.raises(ModelError, match="`key` of resampled is"):
        draws.resampled(0)


@pytest.mark.standard_promotion
@pytest.mark.parametrize("name", ["importance", "bridge"])
def test_pickled_draws_keep_what_they_are(name: str) -> None:
    found = estimated(name)[0]
    back = pickle.loads(pickle.dumps(found))
    assert repr(back.summary()) == repr(found.summary())
    assert_allclose(back.draws.log_p, found.draws.log_p, rtol=0)
    assert_allclose(back.draws.resampled(KEY, 10)["x"], found.draws.resampled(KEY, 10)["x"])
    assert repr(back.draws) == repr(found.draws)
    with pytest.raises(ModelError, match="was pickled, without its model"):
        vf.to_arviz(back)


def test_an_evidence_with_draws_is_a_pytree() -> None:
    found = estimated("importance")[0]
    same = jax.tree.map(lambda leaf: leaf, found)
    assert repr(same.summary()) == repr(found.summary())
    doubled = eqx.filter_jit(lambda e: 2.0 * e.log_z)(found)
    assert float(doubled) == pytest.approx(2.0 * float(found.log_z))
    assert "<th>log Z</th>" in found._repr_html_()
    assert "<th>&lt;a&gt;</th>" in vf.compare({"<a>": found}, loo=False)._repr_html_()


# --- ArviZ


def schools(sigma: Any, y: Any = None) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("school", len(sigma)):
        theta = numpyro.sample("theta", dist.MultivariateNormal(mu * jnp.ones(2), jnp.eye(2)))
        numpyro.deterministic("gap", theta[:, 0] - theta[:, 1])
        numpyro.sample("y", dist.Normal(theta[:, 0] + slope.sum(), sigma), obs=y)


SCHOOLS = jnp.array([1.0, 2.0, 1.5]), jnp.array([2.0, -1.0, 0.5])


@cache
def school_posterior() -> Any:
    return vf.condition(vf.attach(schools, vf.Euclidean()), SCHOOLS[0], y=SCHOOLS[1])


NAMES = ["a", "b", "c"]


def test_export_of_weighted_draws() -> None:
    found = vf.evidence(school_posterior(), by=vf.Importance(draws=2000))
    data = vf.to_arviz(
        found,
        draws=500,
        coords={"school": NAMES, "covariate": ["x", "z"], "part": [0, 1]},
        dims={"slope": ["covariate"], "theta": ["part"]},
    )
    draws = data["posterior"]
    assert draws["theta"].dims == ("chain", "draw", "school", "part")
    assert draws["slope"].dims == ("chain", "draw", "covariate")
    assert draws["gap"].dims == ("chain", "draw", "school")
    assert list(draws["school"].values) == NAMES
    assert draws["theta"].shape == (1, 500, 3, 2)
    assert draws.attrs["k_hat"] == found.diagnostics["k_hat"]
    assert draws.attrs["log_z"] == float(found.log_z)
    assert draws.attrs["effective_draws"] == pytest.approx(found.draws.effective)
    stats = data["sample_stats"]
    assert stats["lp"].shape == stats["log_q"].shape == (1, 500)
    again = found.draws.resampled(KEY, 500)
    assert_allclose(stats["lp"][0], again.log_p, rtol=1e-10)
    assert_allclose(draws["mu"][0], again["mu"], rtol=1e-12)
    assert_allclose(data["constant_data"]["sigma"], SCHOOLS[0])
    assert "y" not in data["constant_data"]
    assert_allclose(data["observed_data"]["y"], SCHOOLS[1])
    index = list(arviz.summary(data, var_names=["mu", "theta"], kind="stats").index)
    assert index[:3] == ["mu", "theta[a, 0]", "theta[a, 1]"]
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "school")


@pytest.mark.standard_promotion
def test_export_of_chains_and_of_the_approximation() -> None:
    found = vf.evidence(school_posterior(), by=vf.Bridge(draws=400, warmup=200, repeats=1))
    data = vf.to_arviz(found)
    assert data["posterior"]["theta"].shape == (4, 100, 3, 2)
    assert_allclose(data["posterior"]["mu"].values.ravel(), found.draws["mu"])
    assert data["sample_stats"]["lp"].shape == (4, 100)
    assert "log_q" not in data["sample_stats"]
    assert data["log_likelihood"]["y"].shape == (4, 100, 3)
    assert data["posterior"].attrs["r_hat"] == found.diagnostics["r_hat"]
    table = found.summary()
    summary = arviz.summary(data, var_names=["mu", "theta"])
    assert_allclose(summary["mean"]["mu"], table.mean["mu"], atol=0.002)
    assert_allclose(summary["sd"]["mu"], table.sd["mu"], atol=0.002)
    approx = vf.laplace(school_posterior())
    exported = vf.to_arviz(approx, draws=50)
    # The posterior is Gaussian, and this its Laplace approximation.
    gap = exported["sample_stats"]["lp"] - exported["sample_stats"]["log_q"]
    assert_allclose(gap, float(approx.evidence.log_z), rtol=1e-9)


def pair(y: Any) -> None:
    with numpyro.plate("school", 2):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


@pytest.mark.standard_promotion
def test_export_of_numpyro_chains() -> None:
    mcmc = MCMC(NUTS(pair), num_warmup=20, num_samples=20, progress_bar=False)
    mcmc.run(KEY, jnp.array([1.0, 2.0]))
    data = vf.to_arviz(mcmc, coords={"school": ["a", "b"]}, dims={"theta": ["school"]})
    assert_allclose(data["posterior"]["theta"][0], mcmc.get_samples()["theta"])
    assert list(data["posterior"]["theta"]["school"].values) == ["a", "b"]


def test_labels_that_do_not_fit_are_refused() -> None:
    approx = vf.laplace(school_posterior(), second_order=False)
    for error, message, given in (
        (DataError, "2 labels of 'school', which has 3", {"coords": {"school": ["a", "b"]}}),
        (DataError, "'shcool', which is no dimension", {"coords": {"shcool": NAMES}}),
        (UnknownSiteError, "names 'slop', which is none of", {"dims": {"slop": ["a"]}}),
        (DataError, r"has the shape \(2,\)", {"dims": {"slope": ["a", "b", "c"]}}),
        (DataError, r"has the shape \(2,\)", {"dims": {"slope": "covariate"}}),
    ):
        with pytest.raises(error, match=message):
            vf.to_arviz(approx, draws=10, **given)
    with pytest.raises(ModelError, match="`target` of to_arviz has no model"):
        vf.to_arviz({"mu": 0.0})


@pytest.mark.standard_promotion
def test_an_angle_beyond_the_cut_and_a_constant_are_told() -> None:
    def model(y: Any) -> None:
        a = numpyro.sample("a", dist.VonMises(0.0, 0.5))
        factor = numpyro.sample("L", dist.LKJCholesky(2, 2.0))
        numpyro.sample("y", dist.VonMises(a + 0.0 * factor[0, 0], 3.0), obs=y)

    posterior = vf.condition(model, jnp.array([3.1, -3.1, 2.9]))
    found = vf.evidence(posterior, by=vf.Importance(draws=4000))
    for summary in (vf.laplace(posterior).summary(), found.summary()):
        assert "a: angles around their mean direction, to be taken modulo 2 pi" in repr(summary)
        assert float(summary.upper["a"]) > np.pi
        assert summary.sd["L"][0, 0] == 0.0
        row = next(line for line in repr(summary).split("\n") if line.startswith("L[0, 0]"))
        assert "e-" not in row
    assert np.abs(found.draws["a"]).max() <= np.pi


# --- Data frames of results


def test_every_result_is_a_data_frame() -> None:
    def model(y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        scale = numpyro.sample("scale", dist.Gamma(3.0, 1.0))
        numpyro.sample("y", dist.Normal(mu.sum(), scale), obs=y)

    posterior = vf.condition(model, jnp.array([0.5, 1.5, 0.7]))
    sites = posterior.to_dataframe()
    assert sites.index.tolist() == ["mu", "scale"]
    assert sites["shape"].tolist() == [(2,), ()]
    assert sites["parameters"].tolist() == [2, 1]
    fit = vf.find_map(posterior)
    mode = fit.to_dataframe()["mode"]
    assert mode.index.tolist() == ["mu[0]", "mu[1]", "scale"]
    assert_allclose(mode, [*fit.values["mu"], fit.values["scale"]], rtol=1e-15)
    approx = vf.laplace(fit)
    frame = approx.to_dataframe()
    assert frame.equals(approx.summary().to_dataframe())
    assert_allclose(frame["mode"], mode, rtol=1e-15)
    found = vf.evidence(fit, by=vf.Importance()).to_dataframe()
    table = vf.compare({"one": vf.evidence(fit, by=vf.Importance())}).to_dataframe()
    assert found.shape[0] == 1
    assert_allclose(found["log_z"], table["log_z"], rtol=1e-15)
    assert set(found.columns) <= set(table.columns)
