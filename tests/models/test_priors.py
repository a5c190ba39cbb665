"""Priors given by densities with respect to a volume form."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.diagnostics import effective_sample_size
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS
from scipy.special import betaln
from scipy.stats import beta, gamma, kstest, t

import volform as vf
from volform.errors import ModelError
from volform.geometry import MatrixField

BERNOULLI = vf.Fisher(dist.Bernoulli)
SCALE = vf.Fisher(lambda sigma: dist.Normal(0.0, sigma))
POINTS = jnp.array([0.1, 0.4, 0.9])


def test_jeffreys_of_a_probability_is_beta():
    prior = vf.Jeffreys(BERNOULLI, constraints.unit_interval)
    assert_allclose(
        prior.log_prob(POINTS), dist.Beta(0.5, 0.5).log_prob(POINTS) + np.log(np.pi), rtol=1e-13
    )


def test_jeffreys_of_a_scale():
    prior = vf.Jeffreys(SCALE, constraints.positive)
    assert_allclose(prior.log_prob(POINTS), jnp.log(np.sqrt(2.0) / POINTS), rtol=1e-13)


def test_jeffreys_of_a_vector():
    """Location and log scale of a normal: sqrt(det F) = sqrt(2) / sigma."""
    metric = vf.Fisher(lambda v: dist.Normal(v[0], jnp.exp(v[1])))
    prior = vf.Jeffreys(metric, constraints.real_vector, event_shape=(2,))
    values = jnp.array([[0.0, 0.3], [1.0, -0.4]])
    assert prior.log_prob(values).shape == (2,)
    assert_allclose(prior.log_prob(values), 0.5 * np.log(2.0) - values[:, 1], rtol=1e-13)
    flat = vf.Jeffreys(metric, constraints.real, event_shape=(2,))
    assert_allclose(flat.log_prob(values), prior.log_prob(values), rtol=1e-13)


@pytest.mark.parametrize("density", [lambda s: -2.0 * s, dist.Exponential(2.0)])
def test_volume_density(density):
    prior = vf.VolumeDensity(density, SCALE, constraints.positive)
    of = density.log_prob if isinstance(density, dist.Distribution) else density
    assert_allclose(prior.log_prob(POINTS), of(POINTS) + jnp.log(np.sqrt(2.0) / POINTS), rtol=1e-13)


def test_density_is_uniform_in_every_chart():
    """With the same metric attached, log q^G is the likelihood: the mode is the MLE."""

    def model(y):
        p = numpyro.sample("p", vf.Jeffreys(BERNOULLI, constraints.unit_interval))
        numpyro.sample("y", dist.Binomial(10, p), obs=y)

    posterior = vf.condition(vf.attach(model, {"p": BERNOULLI}), 3)
    u = jnp.array([0.4])
    expected = dist.Binomial(10, jax.nn.sigmoid(0.4)).log_prob(3)
    assert_allclose(posterior.log_density(u), expected, rtol=1e-12)


def test_joint_fisher_does_not_hear_an_improper_prior():
    def model(y):
        sigma = numpyro.sample("sigma", vf.Jeffreys(SCALE, constraints.positive))
        numpyro.sample("y", dist.Normal(0.0, sigma), obs=y)

    for metric in (vf.JointFisher(), vf.LikelihoodFisher()):
        posterior = vf.condition(vf.attach(model, metric), POINTS)
        assert_allclose(posterior.metric(jnp.zeros(1)).as_matrix(), [[6.0]], rtol=1e-13)


# --- As NumPyro distributions


def test_plates_and_batches():
    def model():
        with numpyro.plate("rows", 2), numpyro.handlers.scale(scale=3.0):
            numpyro.sample("p", vf.Jeffreys(BERNOULLI, constraints.unit_interval))
        wide = vf.Jeffreys(SCALE, constraints.positive).expand([2, 3]).to_event(1)
        numpyro.sample("sigma", wide)

    posterior = vf.condition(model)
    assert posterior.dim == 8
    values = posterior.values(jnp.zeros(8))
    assert values["sigma"].shape == (2, 3)
    expected = 3.0 * 2.0 * np.log(2.0) + 6.0 * np.log(np.sqrt(2.0))
    assert_allclose(posterior.log_density(jnp.zeros(8)), expected, rtol=1e-12)


@pytest.mark.parametrize("density", [lambda s: -s, dist.Exponential(1.0)])
def test_distribution_is_a_pytree(density):
    """It goes into `jit`, is mapped over, and does not compile again for the same functions."""
    compiled = 0

    @jax.jit
    def log_prob(prior, x):
        nonlocal compiled
        compiled += 1
        return prior.log_prob(x)

    def scaled(scale):
        return vf.VolumeDensity(density, vf.Euclidean(scale), constraints.positive)

    for scale in (0.5, 2.0):
        prior = scaled(jnp.array(scale))
        assert_allclose(log_prob(prior, 1.3), -1.3 - np.log(scale), rtol=1e-13)
    assert compiled == 1
    both = jax.vmap(lambda scale: scaled(scale).log_prob(1.3))(jnp.array([0.5, 2.0]))
    assert_allclose(both, -1.3 - np.log([0.5, 2.0]), rtol=1e-13)
    stacked = jax.vmap(scaled)(jnp.array([0.5, 2.0]))
    assert_allclose(jax.vmap(lambda prior: prior.log_prob(1.3))(stacked), both, rtol=1e-13)


def test_metric_of_a_function_inside_jit():
    prior = vf.Jeffreys(MatrixField(lambda s: jnp.eye(1) / s**2), constraints.positive)
    assert_allclose(jax.jit(lambda prior, x: prior.log_prob(x))(prior, 2.0), -np.log(2.0))


# --- Normalized


def test_jeffreys_of_a_probability_is_proper():
    """It is Beta(1/2, 1/2), with the evidence of a beta-binomial."""
    prior = vf.Jeffreys(BERNOULLI, constraints.unit_interval).normalized()
    assert_allclose(prior.log_integral, np.log(np.pi), rtol=1e-10)
    exact = dist.Beta(0.5, 0.5)
    assert_allclose(prior.log_prob(POINTS), exact.log_prob(POINTS), rtol=1e-9)
    drawn = np.asarray(prior.sample(jax.random.key(0), (2, 2000)))
    assert drawn.shape == (2, 2000)
    assert kstest(drawn.ravel(), beta(0.5, 0.5).cdf).pvalue > 1e-3

    def model(y):
        p = numpyro.sample("p", prior)
        numpyro.sample("y", dist.Bernoulli(p), obs=y)

    posterior = vf.condition(vf.attach(model, {"p": BERNOULLI}), jnp.array([1] * 3 + [0] * 7))
    found = vf.evidence(posterior, by=vf.Quadrature())
    assert_allclose(found.log_z, betaln(3.5, 7.5) - betaln(0.5, 0.5), atol=1e-9)


@pytest.mark.parametrize(
    ("density", "metric", "support", "exact"),
    [
        (lambda s: 2.0 * jnp.log(s) - s, SCALE, constraints.positive, gamma(2.0)),
        (dist.StudentT(3.0, 100.0, 0.01), vf.Euclidean(), constraints.real, t(3.0, 100.0, 0.01)),
    ],
    ids=["scale", "line"],
)
def test_normalized_density_of_one_number(density, metric, support, exact):
    prior = vf.VolumeDensity(density, metric, support).normalized()
    values = jnp.asarray(exact.ppf([0.1, 0.5, 0.9]))
    assert_allclose(prior.log_prob(values), exact.logpdf(values), rtol=1e-10)
    assert kstest(np.asarray(prior.sample(jax.random.key(0), (2000,))), exact.cdf).pvalue > 1e-3


@pytest.mark.parametrize("family", [dist.CategoricalProbs, dist.MultinomialProbs])
def test_jeffreys_of_several_probabilities_is_dirichlet(family):
    """Though they are three numbers on a surface; its volume is that of an octant, 2 pi."""
    arguments = (1,) if family is dist.MultinomialProbs else ()
    metric = vf.Fisher(lambda p: family(p, *arguments))
    prior = vf.Jeffreys(metric, constraints.simplex, (3,)).normalized(float(np.log(2.0 * np.pi)))
    p = jnp.array([[0.2, 0.3, 0.5], [0.01, 0.01, 0.98]])
    assert_allclose(prior.log_prob(p), dist.Dirichlet(jnp.ones(3) / 2).log_prob(p), rtol=1e-9)


def test_jeffreys_of_exponential_regression():
    """Slope b of rates exp(b x): the information is the sum of x^2, and the prior flat."""
    x = jnp.array([0.5, 1.0, 3.0])
    metric = vf.Fisher(lambda b: dist.Exponential(jnp.exp(b * x)))
    prior = vf.Jeffreys(metric, constraints.real)
    assert_allclose(prior.log_prob(POINTS), 0.5 * np.log(np.sum(np.square(x))), rtol=1e-13)


def test_mistakes_of_normalization():
    with pytest.raises(ModelError, match="integral of the density over `support` is infinite"):
        vf.Jeffreys(SCALE, constraints.positive).normalized()
    several = vf.Jeffreys(vf.Euclidean(), constraints.real, (2,))
    with pytest.raises(ModelError, match=r"normalized\(log_integral=...\)"):
        several.normalized()
    with pytest.raises(ModelError, match="`log_integral` of normalized is inf"):
        several.normalized(np.inf)
    with pytest.raises(NotImplementedError, match="has no sampler"):
        several.normalized(0.0).sample(jax.random.key(0))
    with pytest.raises(ModelError, match="traced arrays"):
        jax.jit(lambda p: p.normalized())(vf.Jeffreys(vf.Euclidean(jnp.ones(())), constraints.real))


def normal(loc, scale):
    return dist.Normal(loc, scale).log_prob


TWO = dist.MixtureSameFamily(
    dist.Categorical(probs=jnp.array([0.5, 0.5])),
    dist.Normal(jnp.array([0.0, 3.3]), jnp.array([1.0, 1e-4])),
)


def far_apart(x):
    return jnp.logaddexp(normal(0.0, 0.01)(x), normal(300.0, 0.001)(x))


def pole(x):
    """Gamma(1/2) on both sides of zero, less its constant."""
    return -0.5 * jnp.log(jnp.abs(x)) - jnp.abs(x)


@pytest.mark.parametrize(
    ("density", "exact"),
    [
        (far_apart, np.log(2.0)),
        (normal(3.3, 0.001), 0.0),
        (normal(1e4, 0.01), 0.0),
        (dist.Laplace(7.0, 1e-5), 0.0),
        (TWO, 0.0),
        (lambda x: jnp.where(jnp.abs(x - 0.123) < 0.5, 0.0, -jnp.inf), 0.0),
        (lambda x: jnp.where(x > 0.3, -x, -jnp.inf), -0.3),
        (pole, np.log(2.0 * np.sqrt(np.pi))),
    ],
    ids=["far apart", "narrow", "far", "kink", "mixture", "box", "step", "pole"],
)
def test_integrals_of_what_is_narrow_or_ends(density, exact):
    prior = vf.VolumeDensity(density, vf.Euclidean(), constraints.real).normalized()
    assert_allclose(prior.log_integral, exact, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize(
    ("density", "support", "message"),
    [
        (
            lambda x: -jnp.log(x) - 2.0 * jnp.log(jnp.log(x)),
            constraints.greater_than(2.0),
            "not settled by quadrature: the tails towards 2 and 7.2",
        ),
        (normal(0.0, 1e-30), constraints.real, "mass between the nodes"),
        (normal(1e4, 1e-9), constraints.real, "mass between the nodes"),
        (normal(1e12, 1.0), constraints.real, "it still grows at 3.6"),
        (lambda x: jnp.where(x > 1.0, jnp.nan, -(x**2)), constraints.real, "its log is nan at 1.0"),
        (lambda x: jnp.full_like(x, -jnp.inf), constraints.real, "zero at all nodes"),
        (lambda x: -0.9 * jnp.log(jnp.abs(x - 1.3)) - x**2, constraints.real, "half the step"),
    ],
    ids=["slow tail", "point", "rounded", "beyond", "nan", "zero", "strong pole"],
)
def test_integrals_that_are_not_settled(density, support, message):
    prior = vf.VolumeDensity(density, vf.Euclidean(), support)
    with pytest.raises(ModelError, match=rf"{message}.*`normalized\(log_integral=...\)`"):
        prior.normalized()
    assert np.isfinite(prior.normalized(0.5).log_integral)


def test_draws_of_what_is_narrow():
    exact = dist.Normal(300.0, 0.001)
    prior = vf.VolumeDensity(exact, vf.Euclidean(), constraints.real).normalized()
    drawn = np.asarray(prior.sample(jax.random.key(0), (1000,)))
    assert kstest(drawn, lambda x: np.asarray(exact.cdf(x))).pvalue > 1e-3


@pytest.mark.float32
def test_in_float32():
    """Cells are halved down to rounding only, and draws take memory of a thousand at a time."""
    prior = vf.Jeffreys(BERNOULLI, constraints.unit_interval).normalized()
    assert prior.log_integral.dtype == jnp.float32
    assert_allclose(prior.log_integral, np.log(np.pi), rtol=1e-3)
    assert prior._law.edges.size < 20_000
    drawn = np.asarray(prior.sample(jax.random.key(0), (20_000,)))
    assert kstest(drawn, beta(0.5, 0.5).cdf).pvalue > 1e-3


# --- Supports


def test_discrete_values_have_no_volume():
    with pytest.raises(ModelError, match=r"`support` of a volume density .* no volume"):
        vf.VolumeDensity(lambda x: -x, vf.Euclidean(), constraints.nonnegative_integer)


@pytest.mark.parametrize("shape", [(), 3, (3.0,)])
def test_shape_of_a_simplex(shape):
    metric = vf.Fisher(lambda p: dist.Categorical(probs=p))
    with pytest.raises(
        ModelError, match=r"`event_shape` of a volume density .* event_shape=\(3,\)"
    ):
        vf.Jeffreys(metric, constraints.simplex, shape)


# --- Under stock NUTS


def draws(model, *args):
    kernel = NUTS(model)
    mcmc = MCMC(kernel, num_warmup=300, num_samples=1500, progress_bar=False)
    mcmc.run(jax.random.key(0), *args)
    return {name: np.asarray(value) for name, value in mcmc.get_samples().items()}


def require_mean(x, expected):
    error = x.std() / np.sqrt(effective_sample_size(x[None]))
    assert abs(x.mean() - expected) < 4.0 * error


@pytest.mark.slow  # that of a scale is the same law
@pytest.mark.standard_promotion
def test_nuts_with_jeffreys_of_a_probability():
    """3 of 10 successes: the posterior is Beta(3.5, 7.5)."""

    def model(y):
        p = numpyro.sample("p", vf.Jeffreys(BERNOULLI, constraints.unit_interval))
        numpyro.sample("y", dist.Bernoulli(p), obs=y)

    p = draws(model, jnp.array([1] * 3 + [0] * 7))["p"]
    exact = dist.Beta(3.5, 7.5)
    require_mean(p, exact.mean)
    require_mean((p - exact.mean) ** 2, exact.variance)


@pytest.mark.standard_promotion
def test_nuts_with_jeffreys_of_a_scale():
    """The posterior of 1 / sigma^2 is Gamma(n / 2, sum of squares / 2)."""
    y = jnp.array([0.3, -0.5, 1.2, 0.4, -0.9, 0.1])

    def model(y):
        sigma = numpyro.sample("sigma", vf.Jeffreys(SCALE, constraints.positive))
        numpyro.sample("y", dist.Normal(0.0, sigma), obs=y)

    precision = draws(model, y)["sigma"] ** -2.0
    exact = dist.Gamma(3.0, float(jnp.sum(y**2)) / 2.0)
    require_mean(precision, exact.mean)
    require_mean((precision - exact.mean) ** 2, exact.variance)
