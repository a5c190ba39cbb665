"""Metrics read off a model: SoftAbs, observed information, and those that users write."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.distributions import constraints
from tests.code_blocks import code_of

import volform as vf
from volform.errors import MetricError, ModelError, SingularMetricError, UnknownSiteError
from volform.models import ModelMetric, ObservedInformation, SoftAbs

X = jnp.array([[0.5, -1.0], [1.5, 0.3], [-0.7, 0.8], [0.2, 0.1]])
COUNTS = jnp.array([1, 0, 3, 2])
Y = jnp.array([0.3, -0.5, 1.9])


class EmpiricalFisher(ModelMetric):
    """The sum of the squared scores of the data."""

    weight: float = 1.0

    def gram(self, model, u):
        def log_likelihoods(u):
            sites = model.trace(u)
            each = [sites[name]["fn"].log_prob(sites[name]["value"]) for name in model.observed]
            return jnp.concatenate([jnp.ravel(found) for found in each])

        scores = jax.jacfwd(log_likelihoods)(u)
        return self.weight * scores.T @ scores


def hierarchy(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.5))
    theta = numpyro.sample("theta", dist.Normal(mu, tau))
    numpyro.sample("y", dist.Normal(theta, 0.7), obs=y)


def hierarchy_not_centered(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    log_tau = numpyro.sample("log_tau", dist.ImproperUniform(constraints.real, (), ()))
    tau = numpyro.deterministic("tau", jnp.exp(log_tau))
    numpyro.factor("prior", dist.HalfNormal(1.5).log_prob(tau) + log_tau)
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    theta = numpyro.deterministic("theta", mu + tau * z)
    numpyro.sample("y", dist.Normal(theta, 0.7), obs=y)


def regression(counts):
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Poisson(jnp.exp(X @ weights)), obs=counts)


def quadric(matrix):
    """A quadratic log density of any signature; the box makes it proper."""
    v = numpyro.sample("v", dist.ImproperUniform(constraints.real_vector, (), (len(matrix),)))
    numpyro.factor("form", -0.5 * v @ matrix @ v)


def matrix(posterior, u):
    return jax.jit(lambda u: posterior.metric(u).as_matrix())(u)


def attached(model, metric, *data):
    return vf.condition(vf.attach(model, metric), *data)


# --- Closed forms


def test_soft_abs_of_a_gaussian_is_its_precision():
    factor = jnp.array([[2.0, 0.0, 0.0], [0.5, 1.0, 0.0], [-1.0, 0.3, 0.7]])
    posterior = attached(quadric, SoftAbs(1e4), factor @ factor.T)
    assert_allclose(matrix(posterior, jnp.ones(3)), factor @ factor.T, rtol=1e-10)


@pytest.mark.parametrize("alpha", [0.1, 3.0, 1e5])
def test_soft_abs_of_known_eigenvalues(alpha):
    """Two of them repeated, one zero, one negative; at large alpha their absolute values."""
    eigenvalues = np.array([2.0, 2.0, 0.0, -3.0])
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    posterior = attached(quadric, SoftAbs(alpha), jnp.asarray(basis * eigenvalues @ basis.T))
    x = np.where(eigenvalues == 0.0, 1e-12, eigenvalues)
    soft = x / np.tanh(alpha * x)
    found = matrix(posterior, jnp.ones(4))
    assert_allclose(found, basis * soft @ basis.T, atol=1e-11 * soft.max())


def test_against_the_dense_computation():
    u = jnp.array([0.3, -0.5, 0.8])
    plain = vf.condition(hierarchy, Y)
    model = plain.bound_model
    hessian = jax.jit(jax.hessian(lambda u: -plain.log_density_lebesgue(u)))(u)
    eigenvalues, vectors = np.linalg.eigh(hessian)
    expected = vectors * (eigenvalues / np.tanh(2.0 * eigenvalues)) @ vectors.T
    assert eigenvalues[0] < 0.0
    found = matrix(attached(hierarchy, SoftAbs(2.0), Y), u)
    assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    likelihood = jax.jit(jax.hessian(model.log_likelihood))(u)
    found = matrix(attached(hierarchy, ObservedInformation(), Y), u)
    assert_allclose(found, -likelihood, atol=1e-14)


def test_observed_information_of_normal_data():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(mu, scale), obs=y)

    mu, scale = 0.2, 0.8
    gap = np.asarray(Y) - mu
    mixed = 2.0 * gap.sum() / scale**2
    expected = [[3.0 / scale**2, mixed], [mixed, 2.0 * (gap**2).sum() / scale**2]]
    u = jnp.array([mu, np.log(scale)])
    assert_allclose(matrix(attached(model, ObservedInformation(), Y), u), expected, rtol=1e-12)


def test_with_a_canonical_link_it_is_the_expected_information():
    u = jnp.array([0.3, -0.4])
    observed, expected = (
        matrix(attached(regression, metric, COUNTS), u)
        for metric in (ObservedInformation(), vf.LikelihoodFisher())
    )
    assert_allclose(observed, expected, rtol=1e-12)


def test_a_metric_of_ones_own():
    u = jnp.array([0.3, -0.4])
    residuals = np.asarray(COUNTS) - np.exp(X @ u)
    expected = (X * residuals[:, None] ** 2).T @ X
    total = 0.5 * EmpiricalFisher(2.0) + 3.0 * vf.Euclidean()
    posterior = attached(regression, total, COUNTS)
    assert_allclose(matrix(posterior, u), expected + 3.0 * np.eye(2), rtol=1e-12)
    assert posterior.metric_name == "0.5 * EmpiricalFisher(weight=2.0) + 3.0 * Euclidean()"


def test_masks_and_scales_enter_the_likelihood():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with (
            numpyro.handlers.scale(scale=2.0),
            numpyro.handlers.mask(mask=jnp.array([1, 0, 1]) > 0),
        ):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    assert_allclose(matrix(attached(model, ObservedInformation(), Y), jnp.zeros(1)), [[4.0]])


# --- Spellings

METRICS = [vf.JointFisher, lambda **kw: SoftAbs(2.0, **kw), ObservedInformation, EmpiricalFisher]


@pytest.mark.parametrize("metric", METRICS, ids=["joint", "soft abs", "observed", "own"])
def test_a_reference_gives_the_same_tensor(metric):
    there = attached(hierarchy, metric(), Y)
    here = attached(hierarchy_not_centered, metric(reference=hierarchy), Y)

    @jax.jit
    def both(u):
        move = lambda u: here.bound_model.point_in(there.bound_model, u)  # noqa: E731
        jacobian = jax.jacfwd(move)(u)
        expected = jacobian.T @ there.metric(move(u)).as_matrix() @ jacobian
        return here.metric(u).as_matrix(), expected

    actual, expected = both(jnp.array([0.3, -0.5, 0.8]))
    assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)


def plain_spelling(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(x, 0.5), obs=y)


def stretched_spelling(y):
    stretched = dist.TransformedDistribution(dist.Normal(0.0, 1.0), Arcsinh())
    s = numpyro.sample("s", stretched)
    x = numpyro.deterministic("x", jnp.sinh(s))
    numpyro.sample("y", dist.Normal(x, 0.5), obs=y)


class Arcsinh(dist.transforms.Transform):
    domain = constraints.real
    codomain = constraints.real

    def __call__(self, x):
        return jnp.arcsinh(x)

    def _inverse(self, y):
        return jnp.sinh(y)

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        return -jnp.log(jnp.cosh(y))

    def tree_flatten(self):
        return (), ((), {})

    def __eq__(self, other):
        return isinstance(other, Arcsinh)


def mode_of(model, metric):
    fit = vf.find_map(attached(model, metric, 1.5), key=jax.random.key(0), starts=1)
    assert fit.converged
    return float(fit.posterior.values(fit.at.u, ("x",))["x"])


def test_the_mode_under_second_derivatives_depends_on_the_spelling():
    """The caveat: the Hessian of a density is no tensor. The Fisher metric is one."""
    assert_allclose(mode_of(plain_spelling, SoftAbs(10.0)), 1.2, rtol=1e-10)
    assert abs(mode_of(stretched_spelling, SoftAbs(10.0)) - 1.2) > 0.05
    total = ObservedInformation() + vf.JointFisher(plain_spelling)
    assert abs(mode_of(stretched_spelling, total) - 1.2) > 0.02
    total = ObservedInformation(plain_spelling) + vf.JointFisher(plain_spelling)
    assert_allclose(mode_of(stretched_spelling, total), 1.2, rtol=1e-8)
    # The cure: name the spelling; or a tensor.
    assert_allclose(mode_of(stretched_spelling, SoftAbs(10.0, plain_spelling)), 1.2, rtol=1e-8)
    assert_allclose(mode_of(plain_spelling, vf.JointFisher()), 1.2, rtol=1e-10)
    assert_allclose(mode_of(stretched_spelling, vf.JointFisher()), 1.2, rtol=1e-8)


# --- The main job

FITTED = {
    "soft abs": SoftAbs(10.0),
    "observed": ObservedInformation() + vf.JointFisher(),
    "own": EmpiricalFisher() + vf.JointFisher(),
}


@pytest.mark.parametrize(
    "name", ["soft abs", *(pytest.param(n, marks=pytest.mark.slow) for n in ("observed", "own"))]
)
def test_mode_and_evidence_of_a_hierarchy(name):
    posterior = attached(hierarchy, FITTED[name], Y)
    fit = vf.find_map(posterior, key=jax.random.key(0), starts=2)
    assert fit.converged
    gradient = jax.jit(jax.grad(lambda u: posterior.log_density(u)))(fit.at.u)
    assert_allclose(gradient, np.zeros(3), atol=1e-6)
    evidence = vf.laplace(fit).evidence
    assert np.isfinite([evidence.log_z, evidence.correction]).all()
    exact = vf.evidence(fit, by=vf.Quadrature(nodes=400_000))
    assert exact.diagnostics["change_at_last_refinement"] < 0.5
    assert abs(evidence.log_z - exact.log_z) < 3.0


def test_laplace_of_a_gaussian_under_soft_abs_is_exact():
    approx = vf.laplace(attached(plain_spelling, SoftAbs(100.0), 1.5))
    exact = dist.Normal(0.0, np.sqrt(1.25)).log_prob(1.5)
    assert_allclose(approx.evidence.log_z, exact, rtol=1e-10)
    assert_allclose(approx.evidence.correction, 0.0, atol=1e-10)


# --- Misuse


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf"), "1", None, jnp.ones(2)])
def test_alpha_that_cannot_be(alpha):
    with pytest.raises(MetricError, match="`alpha` of SoftAbs should be a positive, finite number"):
        SoftAbs(alpha)


@pytest.mark.parametrize("metric", [SoftAbs(1.0), ObservedInformation(), EmpiricalFisher()])
def test_on_a_site(metric):
    with pytest.raises(MetricError, match="attached to `mu`; it is read off the whole model"):
        attached(hierarchy, {"mu": metric}, Y)
    with pytest.raises(MetricError, match="has no matrix at a bare point"):
        metric(jnp.zeros(2))


def test_observed_information_without_data():
    def model():
        numpyro.sample("mu", dist.Normal(0.0, 1.0))

    with pytest.raises(MetricError, match=r"`ObservedInformation`.*`model` has no observed site"):
        attached(model, ObservedInformation())


def test_observed_information_of_a_reference_without_data():
    def reference(y):
        numpyro.sample("mu", dist.Normal(0.0, 1.0))

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(MetricError, match="its `reference` `reference` has no observed site"):
        attached(model, ObservedInformation(reference=reference), Y)


def test_indefinite_information_is_named():
    """The likelihood says nothing of mu and tau."""
    with pytest.raises(SingularMetricError, match=r"`ObservedInformation\(\)` is singular: rank 1"):
        vf.find_map(attached(hierarchy, ObservedInformation(), Y), key=jax.random.key(0))


def test_a_reference_that_is_none():
    with pytest.raises(ModelError, match="`reference` should be a NumPyro model"):
        attached(hierarchy, SoftAbs(1.0, reference=3), Y)
    with pytest.raises(UnknownSiteError, match="`reference` model has latent sites"):
        attached(hierarchy, EmpiricalFisher(reference=hierarchy_not_centered), Y)


class Returning(ModelMetric):
    """A metric whose `gram` returns what it is told to."""

    result: object

    def __init__(self, result):
        self.result = result

    def gram(self, model, u):
        return self.result(u)


def fails(u):
    raise ValueError("no such thing")


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda u: u, r"`gram` of the metric `Returning.* array of shape \(3,\).* shape \(3, 3\)"),
        (lambda u: None, r"`gram` of the metric `Returning.* returned NoneType"),
        (lambda u: jnp.eye(3).at[0, 1].set(1.0), r"on `the whole model` is not symmetric"),
        (
            lambda u: jnp.eye(3).astype(complex),
            r"returned an array of dtype complex128; a metric is .* real",
        ),
        (lambda u: jnp.eye(3) > 0.0, r"returned an array of dtype bool; a metric is .* real"),
        (fails, r"on `the whole model` could not be evaluated.*no such thing"),
    ],
    ids=["vector", "nothing", "not symmetric", "complex", "bool", "error"],
)
def test_a_gram_that_is_none(result, message):
    with pytest.raises(MetricError, match=message):
        attached(hierarchy, Returning(result), Y)


# --- Appearance, guide, float32


def test_repr():
    assert repr(SoftAbs(2.0)) == "SoftAbs(alpha=2.0)"
    assert repr(ObservedInformation(hierarchy)) == "ObservedInformation(reference=hierarchy)"
    posterior = attached(hierarchy_not_centered, SoftAbs(2.0, reference=hierarchy), Y)
    assert "  SoftAbs(alpha=2.0, reference=hierarchy)" in repr(posterior)


@pytest.mark.slow
def test_the_guide_runs(capsys):
    names = {}
    for block in code_of("docs/metrics.md"):
        exec(block, names)
    assert "metric EmpiricalFisher + JointFisher" in capsys.readouterr().out


@pytest.mark.float32
@pytest.mark.parametrize("metric", [SoftAbs(2.0), ObservedInformation(), EmpiricalFisher()])
def test_in_float32(metric):
    u = jnp.array([0.3, -0.4], jnp.float32)
    found = matrix(attached(regression, metric, COUNTS), u)
    rate = np.exp(np.asarray(X) @ np.asarray(u))
    weights = (np.asarray(COUNTS) - rate) ** 2 if isinstance(metric, EmpiricalFisher) else rate
    expected = (np.asarray(X) * weights[:, None]).T @ np.asarray(X)
    if isinstance(metric, SoftAbs):
        eigenvalues, vectors = np.linalg.eigh(expected + np.eye(2))
        expected = vectors * (eigenvalues / np.tanh(2.0 * eigenvalues)) @ vectors.T
    assert found.dtype == jnp.float32
    assert_allclose(found, expected, rtol=1e-5)
