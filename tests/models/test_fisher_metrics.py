"""LikelihoodFisher and JointFisher against expectations of scores by brute force."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro import handlers

import volform as vf

from .scores import expected_gram

KEY = jax.random.key(0)
X = jnp.array([[0.5, -1.0], [1.5, 0.3], [-0.7, 0.8], [0.2, 0.1]])
Y = jnp.array([0.3, -0.5, 1.2, 0.4])
G = jnp.array([0, 1, 1, 0])


def hierarchical_normal(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.5))
    with numpyro.plate("groups", 2):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
    with numpyro.plate("n", 4):
        numpyro.sample("y", dist.Normal(theta[G], 0.7), obs=y)


def heavy_tails(y):
    tau = numpyro.sample("tau", dist.HalfCauchy(1.5))
    loc = numpyro.sample("loc", dist.Cauchy(0.0, tau))
    df = numpyro.sample("df", dist.LogNormal(1.0, 0.5))
    scale = numpyro.sample("scale", dist.Exponential(0.8))
    numpyro.sample("y", dist.StudentT(df, loc, scale), obs=y)


def logistic_regression(y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, scale).expand([2]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=X @ beta), obs=y)


def counts(y):
    shape = numpyro.sample("shape", dist.LogNormal(0.5, 0.3))
    rate = numpyro.sample("rate", dist.Gamma(shape, 2.0).expand([2]))
    numpyro.sample("y", dist.Poisson(rate[G]), obs=y)


def overdispersed_counts(y):
    mean = numpyro.sample("mean", dist.Gamma(2.0, 0.5))
    concentration = numpyro.sample("concentration", dist.InverseGamma(3.0, 4.0))
    numpyro.sample("y", dist.NegativeBinomial2(mean, concentration), obs=y)


def variances(y):
    alpha = numpyro.sample("alpha", dist.Gamma(3.0, 1.0))
    beta = numpyro.sample("beta", dist.LogNormal(0.0, 0.4))
    variance = numpyro.sample("variance", dist.InverseGamma(alpha, beta))
    numpyro.sample("y", dist.LogNormal(0.0, jnp.sqrt(variance)), obs=jnp.exp(y))


def proportions(y):
    a = numpyro.sample("a", dist.LogNormal(0.7, 0.3))
    p = numpyro.sample("p", dist.Beta(a, 2.0))
    q = numpyro.sample("q", dist.Uniform(0.0, 0.8))
    with numpyro.plate("n", 4):
        numpyro.sample("successes", dist.Binomial(jnp.array([5, 8, 3, 4]), p), obs=y)
        numpyro.sample("tails", dist.Geometric(q), obs=y)


def softmax_regression(y):
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    numpyro.sample("y", dist.Categorical(logits=X @ weights), obs=y)


def class_probabilities(y):
    scale = numpyro.sample("scale", dist.LogNormal(1.0, 0.3))
    p = numpyro.sample("p", dist.Dirichlet(scale * jnp.array([1.0, 1.5, 2.0])))
    numpyro.sample("y", dist.Categorical(probs=p), obs=y)


def ordered_levels(y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    cuts = numpyro.sample(
        "cuts",
        dist.TransformedDistribution(
            dist.Normal(0.0, 1.0).expand([2]), dist.transforms.OrderedTransform()
        ),
    )
    numpyro.sample("y", dist.OrderedLogistic(slope * X[:, 0], cuts), obs=y)


def covariance(y):
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    factor = numpyro.sample("factor", dist.LKJCholesky(2, 1.5))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.4).expand([2]).to_event(1))
    tril = scale[:, None] * factor
    numpyro.sample("y", dist.MultivariateNormal(loc, scale_tril=tril), obs=y)


def gaussian_process(y):
    length = numpyro.sample("length", dist.InverseGamma(3.0, 2.0))
    kernel = jnp.exp(-0.5 / length**2) * jnp.ones((2, 2)) + 0.5 * jnp.eye(2)
    f = numpyro.sample("f", dist.MultivariateNormal(jnp.zeros(2), kernel))
    numpyro.sample("y", dist.Normal(f[G], 0.5), obs=y)


def mixture(y):
    weight = numpyro.sample("weight", dist.Beta(2.0, 2.0))
    gap = numpyro.sample("gap", dist.LogNormal(0.5, 0.2))
    components = dist.Normal(jnp.stack([-gap, gap]), 1.0)
    mixing = dist.Categorical(probs=jnp.stack([weight, 1.0 - weight]))
    numpyro.sample("y", dist.MixtureSameFamily(mixing, components), obs=y)


def directions(y):
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
    kappa = numpyro.sample("kappa", dist.LogNormal(0.5, 0.3))
    numpyro.sample("y", dist.VonMises(loc, kappa), obs=y)


EXACT = {
    hierarchical_normal: Y,
    heavy_tails: Y,
    logistic_regression: jnp.array([1, 0, 1, 1]),
    counts: jnp.array([1, 0, 3, 2]),
    overdispersed_counts: jnp.array([1, 0, 3, 2]),
    variances: Y,
    proportions: jnp.array([1, 0, 3, 2]),
    softmax_regression: jnp.array([2, 0, 1, 1]),
    class_probabilities: jnp.array([2, 0, 1, 1]),
    ordered_levels: jnp.array([2, 0, 1, 1]),
    gaussian_process: Y,
}
# Sites for which there is no closed form, and how far draws may be off.
BY_DRAWS = {
    covariance: (X, 0.05),
    mixture: (Y, 0.1),
    directions: (Y, 0.1),
}
STANDARD = {logistic_regression, proportions, covariance}


def cases(models):
    mixing = pytest.mark.standard_promotion
    return [
        pytest.param(model, id=model.__name__, marks=mixing if model in STANDARD else ())
        for model in models
    ]


def matrix(posterior, u):
    """The metric at u: compiled at once, not operation by operation."""
    return jax.jit(lambda u: posterior.metric(u).as_matrix())(u)


def both(model, data, metric, *, latent):
    """The metric at a random u, and by brute force."""
    posterior = vf.condition(vf.attach(model, metric), data)
    u = jnp.asarray(np.random.default_rng(1).uniform(-0.7, 0.7, posterior.dim))
    expected = expected_gram(posterior, model, (data,), latent=latent)
    return jax.jit(lambda u: (posterior.metric(u).as_matrix(), expected(u)))(u)


@pytest.mark.parametrize("model", cases(EXACT))
def test_joint_and_likelihood_fisher(model):
    data = EXACT[model]
    actual, expected = both(model, data, vf.JointFisher(), latent=True)
    assert_allclose(actual, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    assert np.linalg.eigvalsh(actual).min() > 0
    actual, expected = both(model, data, vf.LikelihoodFisher(), latent=False)
    assert_allclose(actual, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("model", cases(BY_DRAWS))
def test_by_draws(model):
    data, off = BY_DRAWS[model]
    metric = vf.JointFisher(key=KEY, draws=4096)
    actual, expected = both(model, data, metric, latent=True)
    assert_allclose(actual, expected, atol=off * np.abs(expected).max())


# --- How often a datum counts


def observed(shape, data=None, mask=None, scale=1.0, plates=()):
    """A model with `mu` and Normal(mu, 1) of the given batch shape: each datum is worth one."""

    def model():
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        fn = dist.Normal(mu, 1.0).expand(shape) if shape else dist.Normal(mu, 1.0)
        with contextlib.ExitStack() as stack:
            for axis, size in enumerate(plates):
                stack.enter_context(numpyro.plate(f"axis{axis}", size, dim=axis - len(plates)))
            if mask is not None:
                stack.enter_context(handlers.mask(mask=mask))
            stack.enter_context(handlers.scale(scale=scale))
            numpyro.sample("y", fn, obs=jnp.zeros(data))

    return model


SOME = np.array([True, False, True, True])
COUNTED = {
    "one": (observed((), ()), 1.0),
    "replicates of a scalar": (observed((), (7,)), 7.0),
    "replicates of a vector": (observed((3,), (5, 3)), 15.0),
    "table of replicates": (observed((), (5, 3)), 15.0),
    "plate": (observed((), (4,), plates=(4,)), 4.0),
    "nested plates": (observed((), (2, 3), plates=(2, 3)), 6.0),
    "one datum for all": (observed((4,), ()), 4.0),
    "singleton axis": (observed((4, 1), (4, 3)), 12.0),
    "mask": (observed((), (4,), mask=SOME), 3.0),
    "mask of rows": (observed((4, 2), (4, 2), mask=SOME[:, None]), 6.0),
    "mask of a replicated row": (observed((2,), (4, 2), mask=SOME[:, None]), 6.0),
    "scale": (observed((), (4,), scale=2.5), 10.0),
    "scale by element": (observed((4,), (4,), scale=jnp.array([1.0, 2.0, 3.0, 4.0])), 10.0),
    "all together": (observed((), (2, 4), mask=SOME, scale=0.5, plates=(2, 4)), 3.0),
}


@pytest.mark.parametrize("name", COUNTED)
def test_every_datum_counts(name):
    model, count = COUNTED[name]
    posterior = vf.condition(vf.attach(model, vf.LikelihoodFisher()))
    assert_allclose(matrix(posterior, jnp.zeros(1)), [[count]], rtol=1e-14)
    curvature = jax.hessian(lambda u: -posterior.log_density_lebesgue(u))
    curvature = jax.jit(curvature)(jnp.zeros(1))
    assert_allclose(curvature, [[1.0 + count]], rtol=1e-14)


def test_imputation():
    """With `obs_mask` a datum is either observed, or latent and worth as much to `mu`."""

    def model():
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", 4):
            numpyro.sample("y", dist.Normal(mu, 0.5), obs=jnp.zeros(4), obs_mask=SOME)

    likelihood, joint = (
        matrix(vf.condition(vf.attach(model, metric)), jnp.zeros(5))
        for metric in (vf.LikelihoodFisher(), vf.JointFisher())
    )
    assert_allclose(likelihood[0, 0], 12.0)
    assert_allclose(joint[0], [17.0, 0.0, -4.0, 0.0, 0.0], atol=1e-14)


def test_an_observed_value_that_the_model_computes():
    """A soft constraint on the sum informs of it: the value moves, so it has its row."""

    def model():
        a = numpyro.sample("a", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        numpyro.sample("constraint", dist.Normal(0.0, 0.1), obs=a.sum())
        numpyro.sample("y", dist.Normal(a[0], scale), obs=1.0)

    posterior = vf.condition(vf.attach(model, vf.LikelihoodFisher()))
    expected = [[101.0, 100.0, 0.0], [100.0, 100.0, 0.0], [0.0, 0.0, 2.0]]
    assert_allclose(matrix(posterior, jnp.zeros(3)), expected, rtol=1e-12)


# --- As a tensor field


def not_centered(y):
    log_tau = numpyro.sample("log_tau", dist.Normal(0.0, 1.0))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]))
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = numpyro.deterministic("tau", jnp.exp(log_tau))
    theta = numpyro.deterministic("theta", mu + tau * z)
    numpyro.sample("y", dist.Normal(theta[G], 0.7), obs=y)


@pytest.mark.parametrize("metric", [vf.JointFisher, vf.LikelihoodFisher])
def test_reference_gives_the_same_tensor(metric):
    """G in the coordinates of one spelling is J^T G J of the other, J = du / du'."""
    there = vf.condition(vf.attach(hierarchical_normal, metric()), Y)
    here = vf.condition(vf.attach(not_centered, metric(reference=hierarchical_normal)), Y)

    def move(u):
        return there.unconstrain(here.values(u, ("mu", "tau", "theta")))

    @jax.jit
    def both(u):
        jacobian = jax.jacfwd(move)(u)
        expected = jacobian.T @ there.metric(move(u)).as_matrix() @ jacobian
        return here.metric(u).as_matrix(), expected

    actual, expected = both(jnp.array([0.3, -0.5, 0.8, 0.2]))
    assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


def test_metric_is_differentiable_and_maps():
    posterior = vf.condition(vf.attach(hierarchical_normal, vf.JointFisher()), Y)
    u, direction = jnp.array([0.3, -0.5, 0.8, 0.2]), jnp.array([1.0, -0.3, 0.5, 0.7])
    points = jnp.stack([u - 1e-5 * direction, u + 1e-5 * direction])
    low, high = jax.jit(jax.vmap(posterior.log_volume))(points)
    slope = jax.jit(jax.grad(posterior.log_volume))(u)
    assert_allclose(slope @ direction, (high - low) / 2e-5, rtol=1e-8)


def test_sums_with_other_metrics():
    joint, likelihood = vf.JointFisher(), vf.LikelihoodFisher()
    parts = (joint, likelihood, vf.Euclidean(), vf.Unconstrained())
    u = jnp.array([0.3, -0.5, 0.8, 0.2])
    alone = [matrix(vf.condition(vf.attach(hierarchical_normal, part), Y), u) for part in parts]
    total = joint + 2.0 * likelihood + 0.5 * (vf.Euclidean() + vf.Unconstrained())
    posterior = vf.condition(vf.attach(hierarchical_normal, total), Y)
    expected = alone[0] + 2.0 * alone[1] + 0.5 * (alone[2] + alone[3])
    assert_allclose(matrix(posterior, u), expected, rtol=1e-13)


# --- Routes


def every_route(y):
    shape = numpyro.sample("shape", dist.Gamma(2.0, 1.0))
    rate = numpyro.sample("rate", dist.HalfNormal(1.0))
    numpyro.factor("nothing", -shape)
    numpyro.sample("closed", dist.Gamma(shape, rate), obs=1.0)
    numpyro.sample("parts", dist.ZeroInflatedPoisson(0.5, rate), obs=1)
    numpyro.sample("line", dist.Gompertz(rate, shape), obs=1.0)
    numpyro.sample("enumeration", dist.BetaBinomial(shape, rate, 3), obs=1)
    gaps = dist.MultivariateNormal(rate * jnp.array([[1.0], [2.0]]), jnp.eye(1))
    two = dist.CategoricalProbs(jnp.array([0.3, 0.7]))
    numpyro.sample("draws", dist.MixtureSameFamily(two, gaps), obs=jnp.array([0.5]))
    numpyro.sample("fixed", dist.Normal(0.0, 1.0), obs=0.5)


@pytest.mark.standard_promotion
def test_repr_tells_the_routes_apart():
    metric = vf.LikelihoodFisher(key=KEY, draws=100)
    text = repr(vf.condition(vf.attach(every_route, metric), Y))
    parts = "parts: two parts, zero or not and closed form, line: quadrature, 101 nodes"
    assert f"  LikelihoodFisher() [closed: closed form, {parts}, " in text
    assert "enumeration: enumeration, draws: Monte Carlo, 100 draws]" in text
    joint = repr(vf.condition(vf.attach(every_route, vf.JointFisher(key=KEY, draws=100)), Y))
    assert "JointFisher() [shape: closed form, rate: closed form, closed: closed form" in joint


def censored(y):
    rate = numpyro.sample("rate", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("n", 4):
        fn = dist.LeftCensoredDistribution(dist.Exponential(rate), jnp.array([0, 1, 1, 0]))
        numpyro.sample("y", fn, obs=y)


def censored_in_intervals(y):
    rate = numpyro.sample("rate", dist.LogNormal(0.0, 1.0))
    none, right = jnp.zeros(4, int), jnp.array([0, 0, 0, 1])
    ends = jnp.stack([y, jnp.array([0.5, 1.5, 2.5, 9.0])], -1)
    fn = dist.IntervalCensoredDistribution(dist.Exponential(rate), none, right)
    numpyro.sample("y", fn, obs=ends)


@pytest.mark.standard_promotion
@pytest.mark.rank_promotion  # NumPyro: flags
def test_censored_data():
    """A datum that is seen has 1 / rate^2, an event of probability P has dP^2 / P (1 - P)."""
    y, rate = np.array([0.5, 0.7, 1.9, 2.2]), 1.3
    posterior = vf.condition(vf.attach(censored, vf.LikelihoodFisher()), y)
    told = y**2 * np.exp(-rate * y) / -np.expm1(-rate * y)  # of P = 1 - exp(-rate y)
    expected = rate**2 * (2.0 / rate**2 + told[1] + told[2])
    assert_allclose(matrix(posterior, jnp.log(jnp.array([rate]))), [[expected]], rtol=1e-10)

    low, high = np.array([0.5, 1.0, 1.5]), np.array([0.5, 1.5, 2.5])
    posterior = vf.condition(
        vf.attach(censored_in_intervals, vf.LikelihoodFisher()), np.append(low, 2.0)
    )
    p = np.exp(-rate * low[1:]) - np.exp(-rate * high[1:])
    dp = high[1:] * np.exp(-rate * high[1:]) - low[1:] * np.exp(-rate * low[1:])
    total = np.sum(dp**2 / (p * (1.0 - p)))
    total += 1.0 / rate**2 + 4.0 * np.exp(-2.0 * rate) / -np.expm1(-2.0 * rate)
    found = matrix(posterior, jnp.log(jnp.array([rate])))
    assert_allclose(found, [[rate**2 * total]], rtol=1e-6)  # NumPyro adds 1e-16 to P


def drift(y):
    pull = numpyro.sample("pull", dist.LogNormal(0.0, 1.0))

    def sde(x, t):
        return -pull * x, 0.5

    path = dist.EulerMaruyama(jnp.arange(3.0), sde, dist.Normal(0.0, 1.0))
    x = numpyro.sample("x", path)
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def drift_in_a_loop(y):
    pull = numpyro.sample("pull", dist.LogNormal(0.0, 1.0))
    x = [numpyro.sample("x0", dist.Normal(0.0, 1.0))]
    for i in (1, 2):
        x.append(numpyro.sample(f"x{i}", dist.Normal(x[-1] - pull * x[-1], 0.5)))
    numpyro.sample("y", dist.Normal(jnp.stack(x), 1.0), obs=y)


def test_a_diffusion_is_a_loop_of_its_steps():
    u = jnp.array([0.3, -0.5, 0.8, 0.2])
    both = [
        matrix(vf.condition(vf.attach(model, vf.JointFisher()), Y[:3]), u)
        for model in (drift, drift_in_a_loop)
    ]
    assert_allclose(*both, rtol=1e-12)


def test_a_process_of_tinygp_is_a_normal():
    tinygp = pytest.importorskip("tinygp")
    kernel, x = tinygp.kernels.ExpSquared, jnp.linspace(0.0, 1.0, 4)

    def process(y):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        gp = tinygp.GaussianProcess(kernel(scale), x, diag=0.1)
        numpyro.sample("y", gp.numpyro_dist(), obs=y)

    def normal(y):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        covariance = kernel(scale)(x, x) + 0.1 * jnp.eye(4)
        numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(4), covariance), obs=y)

    both = [
        matrix(vf.condition(vf.attach(model, vf.JointFisher()), Y), jnp.array([0.3]))
        for model in (process, normal)
    ]
    assert_allclose(*both, rtol=1e-10)


def bounded(y):
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
    x = numpyro.sample("x", dist.TruncatedNormal(loc, 1.0, low=0.0))
    numpyro.sample("y", dist.Normal(x, 0.7), obs=y)


def bounded_elsewhere(y):
    twisted = numpyro.sample("twisted", dist.Normal(0.0, 1.0))
    v = numpyro.sample("v", dist.HalfNormal(1.0))
    loc = numpyro.deterministic("loc", jnp.sinh(twisted) + 0.3 * twisted)
    x = numpyro.deterministic("x", v + 0.2 * v**3)
    numpyro.sample("y", dist.Normal(x + 0.0 * loc, 0.7), obs=y)


@pytest.mark.standard_promotion
def test_quadrature_is_a_tensor():
    """Read off one spelling, in the coordinates of another: J^T G J."""
    there = vf.condition(vf.attach(bounded, vf.JointFisher()), Y)
    here = vf.condition(vf.attach(bounded_elsewhere, vf.JointFisher(reference=bounded)), Y)

    @jax.jit
    def both(u):
        def move(u):
            return there.unconstrain(here.values(u, ("loc", "x")))

        jacobian = jax.jacfwd(move)(u)
        expected = jacobian.T @ there.metric(move(u)).as_matrix() @ jacobian
        return here.metric(u).as_matrix(), expected

    actual, expected = both(jnp.array([0.3, -0.5]))
    assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)


def test_repr_names_the_reference():
    metric = 0.5 * vf.JointFisher(reference=hierarchical_normal)
    posterior = vf.condition(vf.attach(not_centered, metric), Y)
    assert posterior.metric_name == "0.5 * JointFisher(reference=hierarchical_normal)"
