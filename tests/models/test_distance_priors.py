"""Priors that are exponential in the distance from a simpler model, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.distributions import constraints
from scipy.integrate import quad
from scipy.special import digamma, gammaln, polygamma
from scipy.stats import expon, kstest

import volform as vf
from volform.errors import ModelError
from volform.models.distance_tables import TabulatedDistance
from volform.models.model_distances import ModelDistance, divergence

LINE = constraints.interval(-1.0, 1.0)


def scale(sigma):
    return dist.Normal(0.0, sigma)


def correlated(rho):
    swapped = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    return dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2) + rho * swapped)


def student(nu):
    """Student's t of variance one."""
    return dist.StudentT(nu, 0.0, jnp.sqrt((nu - 2.0) / nu))


def prior_of_scale():
    return vf.PCPrior(scale, 0.0, 2.0, 0.05)


def prior_of_correlation():
    return vf.PCPrior(correlated, 0.0, 0.7, 0.1, support=LINE)


# --- Closed forms


def test_scale_of_a_normal_is_exponential():
    """Simpson et al. (2017), section 3.3."""
    sigma = jnp.array([1e-8, 0.1, 1.0, 5.0, 50.0])
    exact = dist.Exponential(-np.log(0.05) / 2.0)
    assert_allclose(prior_of_scale().log_prob(sigma), exact.log_prob(sigma), rtol=1e-12)


def test_correlation():
    """Distance `sqrt(-log(1 - rho^2))`, and half of the mass on either side."""
    rho = np.array([-0.999999, -0.9, -0.05, -1e-3, 1e-12, 1e-3, 0.02, 0.5, 0.99])
    distance = np.sqrt(-np.log1p(-(rho**2)))
    rate = -np.log(0.1) / np.sqrt(-np.log1p(-0.49))
    slope = np.abs(rho) / ((1.0 - rho**2) * distance)
    exact = np.log(0.5 * rate * slope) - rate * distance
    found = prior_of_correlation()
    assert_allclose(found.log_prob(jnp.array(rho)), exact, rtol=1e-12)
    # At the base the slope is the root of the Fisher information, which is one.
    assert_allclose(found.log_prob(0.0), np.log(0.5 * rate), rtol=1e-12)


def divergence_of_student(nu):
    """Entropies: that of a normal of variance one, less that of Student's t."""
    half = 0.5 * (nu + 1.0)
    entropy = half * (digamma(half) - digamma(0.5 * nu)) + 0.5 * np.log(nu - 2.0)
    entropy += gammaln(0.5 * nu) + gammaln(0.5) - gammaln(half)
    return 0.5 * np.log(2.0 * np.pi) + 0.5 - entropy


def test_degrees_of_freedom():
    """Distance from the normal of the same variance, in closed form."""
    prior = vf.PCPrior(
        student, dist.Normal(0.0, 1.0), 10.0, 0.5, support=constraints.greater_than(2.0)
    )
    nu = np.array([2.05, 2.5, 4.0, 10.0, 30.0])
    distance = np.sqrt(2.0 * divergence_of_student(nu))
    rate = -np.log(0.5) / np.sqrt(2.0 * divergence_of_student(10.0))
    step = 1e-4 * (nu - 2.0)
    away = [divergence_of_student(nu + k * step) for k in (-2, -1, 1, 2)]
    slope = (away[0] - 8.0 * away[1] + 8.0 * away[2] - away[3]) / (12.0 * step) / distance
    exact = np.log(rate * np.abs(slope)) - rate * distance
    assert_allclose(prior.log_prob(jnp.array(nu)), exact, atol=1e-8)
    assert_allclose(prior.transforms[0].inv(jnp.array(nu)), distance, rtol=1e-11)


def test_divergence_keeps_its_digits_where_models_are_close():
    """Of the next order in 1 / nu, `KL = 3 / (4 nu^2)`: at 1e5 it is 7.5e-11."""
    found = jax.jit(lambda nu: divergence(student(nu), dist.Normal(0.0, 1.0)))(1e5)
    assert_allclose(found, 0.75e-10, rtol=1e-4)


def test_exponential_family_by_quadrature():
    """`log r + 1 / r - 1` of rates with the ratio r, which NumPyro does not know."""
    found = jax.jit(lambda rate: divergence(dist.Exponential(rate), dist.Exponential(0.5)))(2.0)
    assert_allclose(found, np.log(4.0) + 0.25 - 1.0, rtol=1e-12)


# --- Invariance


@pytest.mark.parametrize("law", [dist.Normal, dist.LogNormal], ids=["normal", "lognormal"])
def test_same_law_of_a_precision(law):
    """Also of a one-to-one function of the data."""
    sigma = jnp.array([0.01, 0.7, 3.0])
    prior = vf.PCPrior(lambda t: law(0.0, t**-0.5), jnp.inf, 0.25, 0.05)
    expected = prior_of_scale().log_prob(sigma) + np.log(0.5) + 3.0 * jnp.log(sigma)
    assert_allclose(prior.log_prob(sigma**-2), expected, rtol=1e-12)


def test_same_law_in_another_chart():
    """Fisher's z of a correlation, far from the base and at it."""
    z = jnp.array([-3.0, -0.2, -1e-5, 1e-9, 0.1, 2.0])
    prior = vf.PCPrior(
        lambda z: correlated(jnp.tanh(z)), 0.0, np.arctanh(0.7), 0.1, support=constraints.real
    )
    expected = prior_of_correlation().log_prob(jnp.tanh(z)) + jnp.log1p(-(jnp.tanh(z) ** 2))
    assert_allclose(prior.log_prob(z), expected, rtol=1e-8)


def test_evidence_does_not_hear_the_parametrization():
    y = jnp.array([0.3, -1.2, 0.8, 2.0])

    def of_scale(y):
        sigma = numpyro.sample("sigma", prior_of_scale())
        numpyro.sample("y", scale(sigma), obs=y)

    def of_log(y):
        prior = vf.PCPrior(
            lambda t: scale(jnp.exp(t)), -jnp.inf, np.log(2.0), 0.05, support=constraints.real
        )
        numpyro.sample("y", scale(jnp.exp(numpyro.sample("t", prior))), obs=y)

    found = []
    for model in (of_scale, of_log):
        posterior = vf.condition(vf.attach(model, vf.JointFisher()), y)
        found.append(vf.laplace(posterior).evidence)
    assert_allclose(found[0].log_z, found[1].log_z, rtol=1e-8)
    rate, squares = -np.log(0.05) / 2.0, float(jnp.sum(y**2))
    exact = quad(
        lambda s: rate * np.exp(-rate * s - squares / (2 * s * s)) / (2 * np.pi * s * s) ** 2,
        0.0,
        np.inf,
    )[0]
    assert_allclose(found[0].log_z_second_order, np.log(exact), atol=0.05)


# --- Bounded distances, draws


def distance_of_probability(p):
    return np.sqrt(2.0 * (p * np.log(p / 0.3) + (1.0 - p) * np.log((1.0 - p) / 0.7)))


def test_bounded_distance_is_truncated():
    """A probability with base 0.3: one law of mass one, and the tail that was asked for."""
    prior = vf.PCPrior(dist.Bernoulli, 0.3, 0.6, 0.1, support=constraints.unit_interval)
    density = jax.jit(lambda p: jnp.exp(prior.log_prob(p)))
    beyond = distance_of_probability(0.6)
    low = next(p for p in np.linspace(0.3, 1e-4, 20001) if distance_of_probability(p) >= beyond)
    parts = [quad(density, *ends)[0] for ends in ((0.0, low), (low, 0.3), (0.3, 0.6), (0.6, 1.0))]
    assert_allclose(sum(parts), 1.0, rtol=1e-6)
    assert_allclose(parts[0] + parts[3], 0.1, rtol=1e-3)
    sides = [density(0.3 - 1e-9), density(0.3 + 1e-9)]
    assert_allclose(*sides, rtol=1e-6)


def test_draws_are_of_the_law():
    rate = -np.log(0.05) / 2.0
    sigma = prior_of_scale().sample(jax.random.key(0), (4000,))
    assert kstest(np.asarray(sigma), expon(scale=1.0 / rate).cdf).pvalue > 1e-3
    rho = np.asarray(prior_of_correlation().sample(jax.random.key(1), (4000,)))
    rate = -np.log(0.1) / np.sqrt(-np.log1p(-0.49))
    assert kstest(np.sqrt(-np.log1p(-(rho**2))), expon(scale=1.0 / rate).cdf).pvalue > 1e-3
    assert abs(np.mean(rho > 0.0) - 0.5) < 4.0 * 0.5 / np.sqrt(4000)


def test_forwards_and_back():
    transform = prior_of_correlation().transforms[0]
    rho = jnp.array([-0.99, -1e-3, 0.4])
    assert_allclose(transform(transform.inv(rho)), rho, rtol=1e-10)
    slope = jax.grad(lambda x: transform(x))(0.5)
    there = transform(0.5)
    assert_allclose(jnp.log(slope), transform.log_abs_det_jacobian(0.5, there), rtol=1e-10)


def test_under_jit_with_hyperparameters():
    """The derivative in `upper` is that of the exponential."""

    def log_prob(upper):
        return vf.PCPrior(scale, 0.0, upper, 0.05).log_prob(1.0)

    def exact(upper):
        return dist.Exponential(-jnp.log(0.05) / upper).log_prob(1.0)

    for upper in (0.5, 3.0):
        assert_allclose(jax.jit(log_prob)(upper), exact(upper), rtol=1e-12)
        assert_allclose(jax.jit(jax.grad(log_prob))(upper), jax.grad(exact)(upper), rtol=1e-10)


@pytest.mark.float32
def test_in_float32():
    prior = prior_of_scale()
    assert prior.log_prob(jnp.array(1.0)).dtype == jnp.float32
    assert_allclose(prior.log_prob(1.0), -1.0938, rtol=1e-4)
    assert_allclose(prior_of_correlation().log_prob(0.3), -0.4521897, rtol=1e-4)


# --- Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tail": 1.0}, "`tail` of PCPrior is 1.0"),
        ({"base": "normal"}, "`base` of PCPrior is 'normal'"),
        ({"tail": jnp.nan}, "`tail` of PCPrior is nan"),
        ({"upper": -1.0}, "`upper` of PCPrior is -1.0"),
        ({"upper": jnp.ones(2)}, "should be one number inside the support"),
        ({"family": dist.Normal(0.0, 1.0)}, "`family` of PCPrior is"),
        ({"support": constraints.real_vector}, "`support` of PCPrior is"),
        ({"base": dist.Normal(0.0, 1.0)}, "not monotone"),
        ({"base": 2.0}, "The distance of `upper` from the base of PCPrior is 0.0"),
        ({"family": lambda s: dist.Laplace(0.0, s)}, "from the base of PCPrior is"),
        (
            {
                "family": lambda s: dist.Dirichlet(s * jnp.ones(2)),
                "base": dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
            },
            "no closed form in NumPyro",
        ),
        (
            {
                "family": dist.Bernoulli,
                "base": 0.5,
                "upper": 0.6,
                "tail": 0.95,
                "support": constraints.unit_interval,
            },
            "an even law of it has",
        ),
    ],
    ids=[*"abcdefghijkl"],
)
def test_bad_input(options, message):
    given = {"family": scale, "base": 0.0, "upper": 2.0, "tail": 0.05, **options}
    with pytest.raises(ModelError, match=message):
        vf.PCPrior(**given)


# --- By quadrature and by closed forms that cancel


def gamma_of_mean_one(v):
    return dist.Gamma(v, v)


def distance_of_gamma(v):
    """Of Gamma(v, v) from Exponential(1), and its derivative."""
    kl = v * np.log(v) - gammaln(v) + (v - 1.0) * (digamma(v) - np.log(v)) - v + 1.0
    return np.sqrt(2.0 * kl), (v - 1.0) * (polygamma(1, v) - 1.0 / v) / np.sqrt(2.0 * kl)


def distance_of_rate(v):
    kl = np.log(v) + 1.0 / v - 1.0
    return np.sqrt(2.0 * kl), (1.0 / v - 1.0 / v**2) / np.sqrt(2.0 * kl)


ON_BOTH_SIDES = np.array([0.1, 0.5, 1.5, 4.0, 30.0])


@pytest.mark.parametrize(
    ("family", "options", "distance", "values"),
    [
        (gamma_of_mean_one, {"base": 1.0}, distance_of_gamma, ON_BOTH_SIDES),
        (dist.Exponential, {"base": 1.0}, distance_of_rate, ON_BOTH_SIDES),
        (
            gamma_of_mean_one,
            {"base": dist.Exponential(1.0), "support": constraints.greater_than(1.0)},
            distance_of_gamma,
            np.array([1.1, 1.5, 4.0, 30.0]),
        ),
    ],
    ids=["gamma", "quadrature", "end"],
)
def test_distances_of_positive_families(family, options, distance, values):
    prior = vf.PCPrior(family, **options, upper=4.0, tail=0.05)
    rate = -np.log(0.05) / distance(4.0)[0]
    sides = 1.0 if "support" in options else 2.0
    d, slope = distance(values)
    exact = np.log(rate / sides * np.abs(slope)) - rate * d
    assert_allclose(prior.log_prob(jnp.asarray(values)), exact, rtol=1e-9)


@pytest.mark.parametrize("value", [0.5, 2.0])
def test_derivative_of_a_signed_distance(value):
    """It increases through the base, and draws move with hyperparameters as it says."""
    found = ModelDistance(gamma_of_mean_one, jnp.ones(()), False).signed(jnp.asarray(value))
    distance, slope = distance_of_gamma(value)
    assert_allclose(found, (np.sign(value - 1.0) * distance, np.abs(slope)), rtol=1e-10)


def test_divergence_is_infinite_where_the_base_has_no_density():
    base = dist.Uniform(0.0, 1.0)
    found = jax.vmap(lambda b: divergence(dist.Uniform(0.0, b), base))(jnp.array([0.5, 2.0]))
    assert_allclose(found, [np.log(2.0), np.inf], rtol=1e-6)


def test_distance_is_finite_on_both_sides():
    with pytest.raises(ModelError, match=r"is inf with slope nan at 1.28.* on both sides"):
        vf.PCPrior(lambda b: dist.Uniform(0.0, b), base=1.0, upper=0.5, tail=0.05)


# --- Distances in a table


def tabulated_student(upper=10.0):
    return vf.PCPrior(
        student, dist.Normal(0.0, 1.0), upper, 0.5, support=constraints.greater_than(2.0)
    )


def test_distances_by_quadrature_are_tabulated():
    """The distance in closed form; of the slope's logarithm, by quadratures, two derivatives."""
    found = tabulated_student().transforms[0].distance
    assert isinstance(found, TabulatedDistance)
    nu = jnp.array([2.0001, 2.05, 2.5, 4.0, 10.0, 30.0])  # beyond, the closed form cancels
    exact = np.sqrt(2.0 * divergence_of_student(np.asarray(nu)))
    assert_allclose(jax.jit(jax.vmap(found.quick))(nu), exact, rtol=1e-10)
    by_quadrature = ModelDistance(student, dist.Normal(0.0, 1.0), False)

    def bend(distance):
        log_slope = lambda nu: jnp.log(-distance.signed(nu)[1])  # noqa: E731
        return jax.jit(jax.vmap(jax.grad(jax.grad(log_slope))))(nu)

    assert_allclose(bend(found), bend(by_quadrature), rtol=1e-6)


def test_beyond_the_table_the_distance_is_a_power():
    """`KL = 3 / (4 nu^2)` for many degrees of freedom, where quadrature has lost its digits."""
    found = tabulated_student().transforms[0].distance
    nu = jnp.array([1e5, 1e7, 1e9])
    assert_allclose(jax.vmap(found.quick)(nu), np.sqrt(1.5) / nu, rtol=1e-3)


def test_a_base_inside_the_support_is_tabulated_too():
    """Rates of an exponential law around one, `KL = log v + 1 / v - 1`, on both sides."""
    prior = vf.PCPrior(dist.Exponential, 1.0, 3.0, 0.1)
    assert isinstance(prior.transforms[0].distance, TabulatedDistance)
    v = np.array([0.05, 0.5, 0.999, 1.0, 1.001, 2.0, 30.0])
    distance = np.sign(v - 1.0) * np.sqrt(2.0 * (np.log(v) + 1.0 / v - 1.0).clip(0.0))
    apart = np.abs(v - 1.0) > 0.01
    found = np.asarray(prior.transforms[0].inv(jnp.array(v)))
    assert_allclose(found[apart], distance[apart], rtol=1e-9)
    assert_allclose(found[~apart], v[~apart] - 1.0, atol=1e-6)  # the Fisher information is one


def test_no_table_of_what_is_traced():
    """The numbers are those of the table, and the derivative is that of the rate."""
    of_upper = lambda upper: tabulated_student(upper).log_prob(5.0)  # noqa: E731
    found, slope = jax.jit(jax.value_and_grad(of_upper))(10.0)
    assert_allclose(found, of_upper(10.0), rtol=1e-9)
    # log p = log rate - rate d(5) + ..., rate = log 2 / d(upper).
    near, at = np.sqrt(2.0 * divergence_of_student(np.array([5.0, 10.0])))
    step = 1e-3
    beside = np.sqrt(2.0 * divergence_of_student(np.array([10.0 - step, 10.0 + step])))
    of_log = np.diff(np.log(beside))[0] / (2.0 * step)
    assert_allclose(slope, -of_log * (1.0 - np.log(2.0) * near / at), rtol=1e-6)
