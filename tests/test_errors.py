"""Bad input gets a typed error that names the site or argument and says what helps."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions import constraints

import volform as vf
from volform.errors import (
    ConvergenceError,
    DataError,
    MetricError,
    ModelError,
    PrecisionWarning,
    SaddleError,
    SingularMetricError,
    UnknownSiteError,
    VolformError,
)
from volform.geometry import DiagonalField, MatrixField
from volform.inference.modes import map_at

KEY = jax.random.key(0)
Y = np.array([0.3, -0.5, 1.2])


def model(y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def attached(metrics):
    return vf.condition(vf.attach(model, metrics), Y)


def find_map(posterior, **options):
    return vf.find_map(posterior, key=KEY, progress=False, **options)


def test_every_error_is_a_value_error():
    assert issubclass(VolformError, ValueError)


# --- attach


@pytest.mark.parametrize("sites", ["sigm", ("mu", "sigm"), "y"])
def test_unknown_site(sites):
    with pytest.raises(UnknownSiteError, match=r"`(sigm|y)`.*it has \['mu', 'sigma'\]"):
        attached({sites: vf.Euclidean()})


@pytest.mark.parametrize("metrics", [{"mu": 3.0}, {"mu": vf.Euclidean}, [vf.Euclidean()]])
def test_attached_what_is_no_metric(metrics):
    with pytest.raises(MetricError, match=r"`metrics` of attach holds .*`vf.Euclidean\(\)`"):
        vf.attach(model, metrics)


def test_metric_inside_the_model_is_no_metric():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0), infer={"metric": "flat"})
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(MetricError, match="`infer` of the site `mu` holds 'flat' of type str"):
        vf.condition(model, Y)


def test_metric_inside_the_model_depends_on_parameters():
    def model(y):
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        mu = numpyro.sample("mu", dist.Normal(0.0, tau), infer={"metric": vf.Euclidean(tau)})
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(MetricError, match=r"in `infer` of `mu` depends on parameters.*group"):
        vf.condition(model, Y)


def test_attached_to_what_is_no_real_value():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.deterministic("sign", mu > 0)
        numpyro.deterministic("fixed", jnp.ones(3))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(MetricError, match="`sign`, whose values are bool"):
        vf.condition(vf.attach(model, {"sign": vf.Euclidean()}), Y)
    with pytest.raises(MetricError, match="`fixed`, which does not depend on the parameters"):
        vf.condition(vf.attach(model, {"fixed": vf.Euclidean()}), Y)
    with pytest.raises(UnknownSiteError, match=r"`\(\)`, which is no latent"):
        vf.condition(vf.attach(model, {(): vf.Euclidean()}), Y)


def test_attached_to_what_is_no_model():
    with pytest.raises(ModelError, match=r"`model` should be a NumPyro model.*got 3"):
        vf.attach(3, {"mu": vf.Euclidean()})
    with pytest.raises(ModelError, match="`model` should be a NumPyro model"):
        vf.condition("eight_schools", Y)


def test_both_model_wide_and_by_site():
    wide = vf.attach(model, vf.JointFisher())
    with pytest.raises(ModelError, match=r"`JointFisher\(\)` and metrics on \['mu'\] are both"):
        vf.condition(vf.attach(wide, {"mu": vf.Euclidean()}), Y)


def test_model_metric_on_one_site():
    with pytest.raises(MetricError, match=r"`LikelihoodFisher` was attached to `mu`.*whole model"):
        attached({"mu": vf.LikelihoodFisher()})
    with pytest.raises(MetricError, match="`JointFisher` is read off a whole model"):
        vf.JointFisher()(jnp.zeros(2))


def test_unconstrained_where_there_are_no_such_coordinates():
    def derived():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.deterministic("square", x**2)

    with pytest.raises(MetricError, match="`Unconstrained` was attached to `square`"):
        vf.condition(vf.attach(derived, {"square": vf.Unconstrained()}))
    with pytest.raises(MetricError, match=r"`Unconstrained` is flat .* only a model knows"):
        vf.Unconstrained()(jnp.zeros(2))


# --- What a metric returns


class Matrix(vf.Metric):
    def __call__(self, point):
        return jnp.eye(1)


WRONG = {
    "matrix of another size": (
        {"mu": MatrixField(lambda mu: jnp.eye(2))},
        r"on `mu`.*shape \(2, 2\).*1 coordinates.*\(1, 1\)",
    ),
    "weights of another shape": (
        {"mu": DiagonalField(lambda mu: jnp.ones(2))},
        r"on `mu`.*weights of shape \[\(2,\)\]",
    ),
    "operator of another size": (
        {"sigma": vf.pullback(vf.Euclidean(jnp.ones(3)), lambda s: jnp.stack([s, s]))},
        r"on `sigma` could not be evaluated at a value of shape \(\): ",
    ),
    "array": ({"mu": Matrix()}, "on `mu` returned .*lineax operator.*MatrixField"),
    "too few arguments": (
        {("mu", "sigma"): MatrixField(lambda mu: jnp.eye(2))},
        r"on `mu`, `sigma` could not be evaluated at a value of shape \(\(\), \(\)\): TypeError",
    ),
    "other names": (
        MatrixField(lambda a, b: jnp.eye(2)),
        r"on `mu`, `sigma` could not be evaluated .* unexpected keyword argument 'mu'",
    ),
    "not symmetric": (
        {("mu", "sigma"): MatrixField(lambda mu, sigma: jnp.array([[1.0, 0.5], [0.0, 1.0]]))},
        r"on `mu`, `sigma` is not symmetric: entry \(0, 1\) is 0.5, entry \(1, 0\) is 0.*m.T",
    ),
    "not symmetric, in a sum": (
        {("mu", "sigma"): vf.Euclidean() + MatrixField(lambda *v: jnp.array([[1.0, 2], [0, 1]]))},
        "is not symmetric",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_metric_that_is_none_on_its_values(name):
    metrics, message = WRONG[name]
    with pytest.raises(MetricError, match=message):
        attached(metrics)


def test_metric_is_not_finite():
    posterior = attached({"mu": DiagonalField(lambda mu: jnp.nan * mu)})
    with pytest.raises(MetricError, match="NaN or infinite in the rows of `mu`"):
        find_map(posterior)


def test_metric_is_not_positive_definite():
    posterior = attached({("mu", "sigma"): MatrixField(lambda *v: jnp.array([[1.0, 1], [1, 1]]))})
    with pytest.raises(SingularMetricError, match=r"rank 1 of 2 at the point {'mu'.*`mu`, `sigma`"):
        find_map(posterior)


def weight_norm(y):
    g = numpyro.sample("g", dist.HalfNormal(1.0))
    v = numpyro.sample("v", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    w = numpyro.deterministic("w", g * v / jnp.linalg.norm(v))
    numpyro.sample("y", dist.Normal(w, 1.0), obs=y)


def test_singular_pull_back_to_more_coordinates_than_values():
    message = r"on `w` is singular: the sites `g`, `v` .*rank 3 of 4.*chart.*sums of metrics"
    with pytest.raises(SingularMetricError, match=message):
        vf.condition(vf.attach(weight_norm, {"w": vf.Euclidean()}), Y)


def test_likelihood_that_does_not_depend_on_a_direction():
    posterior = vf.condition(vf.attach(weight_norm, vf.LikelihoodFisher()), Y)
    message = r"`LikelihoodFisher\(\)` is singular: rank 3 of 4.*`v`.*`JointFisher\(\)`"
    with pytest.raises(SingularMetricError, match=message):
        find_map(posterior)


# --- Models


def discrete(y):
    z = numpyro.sample("z", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(1.0 * z, 1.0), obs=y)


def subsampled(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", 3, subsample_size=2) as index:
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])


def python_control_flow(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu if mu > 0 else -mu, 1.0), obs=y)


def point_mass(y):
    mu = numpyro.sample("mu", dist.Delta(0.3))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


class Disk(constraints.ParameterFreeConstraint):
    event_dim = 1

    def __call__(self, x):
        return jnp.sum(x**2, -1) < 1.0


def no_coordinates(y):
    x = numpyro.sample("x", dist.ImproperUniform(Disk(), (), (2,)))
    numpyro.sample("y", dist.Normal(x[0], 1.0), obs=y)


def same_name_twice(y):
    numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("mu", dist.Normal(0.0, 1.0))


MODELS = [
    (discrete, "`z` is discrete .*MixtureSameFamily"),
    (subsampled, "plate `n` draws 2 of 3 elements.*Remove `subsample_size`"),
    (python_control_flow, "`python_control_flow` uses the value of a latent site.*jnp.where"),
    (point_mass, "`mu` is a point mass.*numpyro.deterministic"),
    (no_coordinates, "no unconstrained coordinates for the support of the latent site `x`"),
    (same_name_twice, "`same_name_twice` .*: all sites must have unique names.*`mu`"),
    (handlers.condition(model, {"mu": 0.0, "sigma": 1.0}), r"no latent site.*\['mu', 'sigma', 'y'"),
]


@pytest.mark.parametrize(
    ("model", "message"), MODELS, ids=lambda case: getattr(case, "__name__", "")
)
def test_model_without_a_density(model, message):
    with pytest.raises(ModelError, match=message):
        vf.condition(model, Y)


def test_no_observed_site_for_the_likelihood():
    message = r"`LikelihoodFisher` .*found no such site.*`numpyro.sample\(..., obs=...\)`"
    with pytest.raises(MetricError, match=message):
        vf.condition(vf.attach(model, vf.LikelihoodFisher()))


def test_likelihood_without_parameters():
    def fixed(y):
        numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with pytest.raises(MetricError, match=r"found only \['y'\], without information"):
        vf.condition(vf.attach(fixed, vf.LikelihoodFisher()), Y)


def test_family_that_needs_a_key():
    def counts(y):
        kappa = numpyro.sample("kappa", dist.HalfNormal(1.0))
        each = dist.Poisson(kappa * jnp.array([1.0, 3.0]))
        numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), each), obs=y)

    with pytest.raises(MetricError, match=r"`MixtureSameFamily` at `y` .*key=jax.random.key"):
        vf.condition(vf.attach(counts, vf.LikelihoodFisher()), jnp.array([0, 2, 1]))


# --- References


def of_other_shape(y):
    numpyro.sample("mu", dist.Normal(0.0, 1.0).expand([2]))
    numpyro.sample("y", dist.Normal(0.0, numpyro.sample("sigma", dist.HalfNormal(1.0))), obs=y)


def of_other_sites(y):
    numpyro.sample("y", dist.Normal(numpyro.sample("nu", dist.Normal(0.0, 1.0)), 1.0), obs=y)


REFERENCES = [
    (of_other_sites, UnknownSiteError, r"`reference` .*\['nu'\].*it has \['mu', 'sigma'\]"),
    (of_other_shape, ModelError, r"`mu` has shape \(\) in the model and \(2,\) in its `reference`"),
    (lambda y, z: None, DataError, "could not be run with `y` of shape .*missing 1 required"),
    ("model", ModelError, "`reference` should be a NumPyro model.*got 'model'"),
]


@pytest.mark.parametrize(("reference", "error", "message"), REFERENCES)
def test_reference_that_is_another_model(reference, error, message):
    with pytest.raises(error, match=message):
        attached(vf.JointFisher(reference=reference))


# --- Data


def regression(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def positive(y):
    rate = numpyro.sample("rate", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Exponential(rate), obs=y)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_observed_values_are_not_finite(bad):
    message = r"`y` holds 1 values that are NaN or infinite, the first at index \(1,\).*mask"
    with pytest.raises(DataError, match=message):
        vf.condition(model, np.array([0.3, bad, 1.2]))


def test_observed_values_outside_the_support():
    with pytest.raises(DataError, match=r"`y` holds 2 values outside the support.*Exponential"):
        vf.condition(positive, np.array([0.3, -0.5, -1.2]))


def test_empty_data():
    with pytest.raises(DataError, match=r"`y` is empty, of shape \(0,\)"):
        vf.condition(model, np.zeros(0))


LENGTHS = [
    ((4,), (3,), r"shape \(3,\), but its distribution has shape \(4,\)"),
    ((8, 1), (8,), r"shape \(8,\).*shape \(8, 1\).*Broadcast to \(8, 8\), each datum"),
    ((8,), (8, 1), r"shape \(8, 1\).*shape \(8,\).*Broadcast to \(8, 8\), each datum"),
]


@pytest.mark.parametrize(("x", "y", "message"), LENGTHS)
def test_lengths_of_data_differ(x, y, message):
    with pytest.raises(DataError, match="`y` has data of " + message):
        vf.condition(regression, np.ones(x), np.ones(y))


def test_lengths_differ_inside_the_model():
    def weighted(x, weights, y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(slope * x * weights, 1.0), obs=y)

    message = r"`weighted` could not be run with `x` of shape \(3,\), `weights` of shape \(4,\)"
    with pytest.raises(DataError, match=message):
        vf.condition(weighted, np.ones(3), np.ones(4), Y)


def test_length_of_one_event():
    def pair(y):
        loc = numpyro.sample("loc", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.MultivariateNormal(loc, jnp.eye(2)), obs=y)

    with pytest.raises(DataError, match=r"`y` has data of shape \(\), .* shape \(2,\)"):
        vf.condition(pair, 1.0)


def test_missing_argument():
    with pytest.raises(DataError, match=r"`regression` could not be run .*argument: 'y'"):
        vf.condition(regression, Y)


def test_covariate_with_nan():
    with pytest.raises(DataError, match=r"`x` of shape \(3,\) and 1 NaN or infinite values"):
        vf.condition(regression, np.array([0.3, np.nan, 1.2]), Y)


def test_log_density_is_nan_at_every_start():
    def model(x):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.factor("penalty", jnp.sum(x) * mu)

    message = r"at every one of 40 starts.*'penalty': nan.*`x` of shape \(3,\) and 1 NaN.*`initial="
    with pytest.raises(ConvergenceError, match=message):
        find_map(vf.condition(model, np.array([0.3, np.nan, 1.2])))


# --- Points


@pytest.fixture(scope="module")
def posterior():
    return vf.condition(model, Y)


def test_values_that_are_no_point(posterior):
    with pytest.raises(UnknownSiteError, match=r"`values` lacks the latent sites \['sigma'\]"):
        posterior.unconstrain({"mu": 0.0})
    with pytest.raises(DataError, match=r"`sigma` in `initial` is not inside its support.*-1"):
        find_map(posterior, initial={"mu": 0.0, "sigma": -1.0})
    with pytest.raises(DataError, match=r"`mu` in `values` has shape \(3,\).*shape \(\)"):
        posterior.unconstrain({"mu": jnp.zeros(3), "sigma": 1.0})


def test_simplex_that_does_not_add_up():
    posterior = vf.condition(lambda: numpyro.sample("p", dist.Dirichlet(jnp.ones(3))))
    with pytest.raises(DataError, match="`p` in `values` is not inside its support"):
        posterior.unconstrain({"p": jnp.array([0.2, 0.2, 0.2])})


@pytest.mark.parametrize("u", [jnp.zeros(3), jnp.zeros(()), jnp.zeros((1, 2)), jnp.zeros(2, int)])
def test_point_of_another_shape(posterior, u):
    for function in (posterior.log_density, posterior.log_density_lebesgue, posterior.values):
        with pytest.raises(DataError, match=r"`u` has shape .* of shape \(2,\)"):
            function(u)


def test_names(posterior):
    with pytest.raises(UnknownSiteError, match=r"`names` holds \['nu'\].*\['mu', 'sigma', 'y'\]"):
        posterior.values(jnp.zeros(2), ("nu",))


# --- find_map and laplace


def double_well():
    x = numpyro.sample("x", dist.ImproperUniform(constraints.real, (), ()))
    numpyro.factor("well", x**2 - x**4)


def ridge():
    a = numpyro.sample("a", dist.ImproperUniform(constraints.real, (), ()))
    b = numpyro.sample("b", dist.ImproperUniform(constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(a + b, 1.0), obs=0.5)


def test_not_converged():
    fit = find_map(vf.condition(model, Y), max_steps=1)
    assert not fit.converged
    with pytest.raises(ConvergenceError, match=r"not converged.*`max_steps=`.*`refuse=False`"):
        vf.laplace(fit)
    approx = vf.laplace(fit, refuse=False)
    assert "not converged" in repr(approx.evidence)
    assert "not converged" in repr(approx)


def test_saddle():
    fit = map_at(vf.condition(double_well), {"x": 0.0})
    with pytest.raises(SaddleError, match=r"1 negative eigenvalues of E.*along x.*`starts=`"):
        vf.laplace(fit)
    evidence = vf.laplace(fit, refuse=False, allow_improper=True).evidence
    assert jnp.isnan(evidence.log_z)
    assert "not a mode" in repr(evidence)
    modes = find_map(vf.condition(double_well))
    np.testing.assert_allclose(abs(modes.values["x"]), np.sqrt(0.5), rtol=1e-8)


def test_flat_direction():
    fit = find_map(vf.condition(ridge))
    with pytest.raises(SaddleError, match=r"not a strict mode: 1 flat directions, along a, b"):
        vf.laplace(fit)
    evidence = vf.laplace(fit, refuse=False, allow_improper=True).evidence
    assert not jnp.isfinite(evidence.log_z)
    assert "not a strict mode" in repr(evidence)


def stretched():
    numpyro.sample("x", dist.Normal(0.0, jnp.array([1.0, 1e-3], jnp.result_type(float))))


@pytest.mark.float32
def test_float32_is_too_coarse():
    posterior = vf.condition(stretched)
    with pytest.warns(PrecisionWarning, match=r"`float32`.*jax_enable_x64") as caught:
        find_map(posterior)
    assert len(caught) == 1


def test_float64_is_fine():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_map(vf.condition(stretched)).converged


# --- Priors


def test_prior_without_a_metric():
    with pytest.raises(MetricError, match=r"`metric` should be a volform metric.*got None"):
        vf.Jeffreys(None, constraints.positive)


def test_prior_without_a_sampler():
    with pytest.raises(NotImplementedError, match="`VolumeDensity` has no sampler"):
        vf.Jeffreys(vf.Euclidean(), constraints.positive).sample(KEY)
