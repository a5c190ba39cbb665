"""Natural gradients of guides: the same path in all charts, one step for a Normal posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.distributions import biject_to, constraints
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

import volform as vf
from volform.errors import MetricError, OptimizerError
from volform.optimizers import CubatureELBO, GuideFisher, natural_variational_inference

pytestmark = [pytest.mark.standard_promotion, pytest.mark.rank_promotion]

RANDOM = np.random.default_rng(0)
X = jnp.asarray(RANDOM.normal(size=(12, 3)) * np.array([1.0, 10.0, 0.1]))
Y = jnp.asarray(RANDOM.normal(size=12))
HESSIAN = np.asarray(X.T @ X / 0.25 + np.eye(3) / 100.0)
MEAN = np.linalg.solve(HESSIAN, np.asarray(X.T @ Y / 0.25))


def regression(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 10.0).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def skewed(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    numpyro.sample("y", dist.StudentT(4.0, mu, sigma), obs=y)


def trained(model, guide, optimizer, steps, *data, loss=None):
    svi = SVI(model, guide, optimizer, CubatureELBO() if loss is None else loss)
    return svi.run(jax.random.key(0), steps, *data, progress_bar=False).params


def test_one_step_is_exact_for_a_normal_posterior():
    guide = AutoMultivariateNormal(regression)
    found = trained(regression, guide, natural_variational_inference(guide, 1.0), 1, X, Y)
    posterior = guide.get_posterior(found)
    np.testing.assert_allclose(posterior.mean, MEAN, rtol=1e-9)
    np.testing.assert_allclose(posterior.covariance_matrix @ HESSIAN, np.eye(3), atol=1e-8)


@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal])
def test_independent_normals_have_the_best_variances_after_one_step(kind):
    guide = kind(regression)
    found = trained(regression, guide, natural_variational_inference(guide, 1.0), 1, X, Y)
    (scale,) = (value for name, value in found.items() if name.endswith("scale"))
    np.testing.assert_allclose(scale**-2.0, np.diag(HESSIAN), rtol=1e-9)
    # The mean is that of Newton's step with the diagonal, from where it began.
    start = SVI(regression, guide, optax.sgd(0.1), Trace_ELBO())
    began = start.get_params(start.init(jax.random.key(0), X, Y))
    (before,) = (value for name, value in began.items() if name.endswith("loc"))
    (after,) = (value for name, value in found.items() if name.endswith("loc"))
    slope = HESSIAN @ (np.asarray(before) - MEAN)
    np.testing.assert_allclose(before - after, slope / np.diag(HESSIAN), rtol=1e-8)


class LogScale(AutoNormal):
    scale_constraint = constraints.positive


class WholeCholesky(AutoMultivariateNormal):
    scale_tril_constraint = constraints.lower_cholesky


class SoftplusCholesky(AutoMultivariateNormal):
    scale_tril_constraint = constraints.softplus_lower_cholesky


def path(guide, optimizer, steps=4):
    svi = SVI(skewed, guide, optimizer, CubatureELBO())
    state, found = svi.init(jax.random.key(0), Y), []
    update = jax.jit(svi.update)
    for _ in range(steps):
        state, _ = update(state, Y)
        params = svi.get_params(state)
        found += [params[name] for name in sorted(params)]
    return found


@pytest.mark.parametrize(
    ("kind", "others"),
    [(AutoNormal, [LogScale]), (AutoMultivariateNormal, [WholeCholesky, SoftplusCholesky])],
    ids=["independent", "whole"],
)
def test_the_path_is_the_same_in_all_charts_of_the_scale(kind, others):
    def natural(kind):
        guide = kind(skewed)
        return path(guide, natural_variational_inference(guide, 0.7))

    exact = natural(kind)
    for other in others:
        for one, same in zip(natural(other), exact, strict=True):
            np.testing.assert_allclose(one, same, rtol=1e-9, atol=1e-12)
    plain, carried = (path(k(skewed), optax.sgd(1e-2)) for k in (kind, others[0]))
    gap = max(
        float(jnp.max(jnp.abs(a - b) / jnp.abs(a))) for a, b in zip(plain, carried, strict=True)
    )
    assert gap > 1e-4


def test_a_step_is_that_of_mirror_descent_in_the_natural_parameters():
    """`eta' = eta - r dL/dm` with m = (mean, S + mean mean^T), by automatic differentiation."""

    def loss(mean, covariance):  # any function of the two
        return jnp.sum(jnp.sin(mean)) + jnp.sum(covariance**2) + mean @ covariance @ mean

    def of_moments(m):
        return loss(m[0], m[1] - jnp.outer(m[0], m[0]))

    rate, mean = 0.05, jnp.array([0.3, -0.2])
    lower = jnp.array([[0.8, 0.0], [0.3, 0.5]])
    covariance = lower @ lower.T
    first, second = jax.grad(of_moments)((mean, covariance + jnp.outer(mean, mean)))
    precision = jnp.linalg.inv(covariance)
    linear = precision @ mean - rate * first
    after = precision + 2.0 * rate * 0.5 * (second + second.T)

    guide = AutoMultivariateNormal(regression)
    chart = biject_to(guide.scale_tril_constraint)
    params = {"auto_loc": mean, "auto_scale_tril": chart.inv(lower)}

    def of_params(params):
        root = chart(params["auto_scale_tril"])
        return loss(params["auto_loc"], root @ root.T)

    optimizer = natural_variational_inference(guide, rate)
    updates, _ = optimizer.update(jax.grad(of_params)(params), optimizer.init(params), params)
    found = optax.apply_updates(params, updates)
    root = chart(found["auto_scale_tril"])
    np.testing.assert_allclose(jnp.linalg.inv(root @ root.T), after, rtol=1e-9)
    np.testing.assert_allclose(after @ found["auto_loc"], linear, rtol=1e-9)


def divergence(guide, params, other):
    """KL(q at params, q at other), both unconstrained, in closed form."""
    loc, scale = sorted(params)
    chart = biject_to(guide.scale_tril_constraint)
    one, two = (
        dist.MultivariateNormal(p[loc], scale_tril=chart(p[scale])) for p in (params, other)
    )
    return dist.kl_divergence(one, two)


def test_metric_is_the_hessian_of_the_divergence():
    guide = AutoMultivariateNormal(regression)
    svi = SVI(regression, guide, optax.sgd(0.1), Trace_ELBO())
    params = svi.optim.get_params(svi.init(jax.random.key(0), X, Y).optim_state)
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.cos(jnp.arange(leaf.size)), params)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    exact = jax.hessian(lambda other: divergence(guide, params, unravel(other)))(flat)
    found = GuideFisher(guide)(params).as_matrix()
    np.testing.assert_allclose(found, exact, rtol=1e-8, atol=1e-8)


def test_diagonal_is_the_matrix_of_the_guide_written_out():
    guide = AutoNormal(skewed)
    svi = SVI(skewed, guide, optax.sgd(0.1), Trace_ELBO())
    params = svi.optim.get_params(svi.init(jax.random.key(0), Y).optim_state)

    def written_out():
        for name in ("mu", "sigma"):
            loc = numpyro.param(f"{name}_auto_loc", 0.0)
            positive = constraints.softplus_positive
            scale = numpyro.param(f"{name}_auto_scale", 1.0, constraint=positive)
            numpyro.sample(name, dist.Normal(loc, scale))

    found = GuideFisher(guide)(params)
    exact = GuideFisher(written_out)(params)
    np.testing.assert_allclose(found.as_matrix(), exact.as_matrix(), rtol=1e-12, atol=1e-12)
    step = vf.optimizers.natural_gradient(GuideFisher(guide), 0.1)
    gradient = jax.tree.map(jnp.ones_like, params)
    updates, _ = step.update(gradient, step.init(params), params)
    for name, update in updates.items():
        expected = -0.1 / np.asarray(found.diagonal[name])
        np.testing.assert_allclose(update, expected, rtol=1e-12)


def polynomial(degree):
    def model():
        x = numpyro.sample("x", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.factor("tilt", -0.1 * (x[0] * x[1]) ** (degree // 2) * x[0] ** (degree % 2))

    return model


def losses(loss, model, keys):
    guide = AutoMultivariateNormal(model, init_scale=0.7)
    svi = SVI(model, guide, optax.sgd(0.1), Trace_ELBO())
    params = svi.get_params(svi.init(jax.random.key(1)))
    return np.asarray(jax.vmap(lambda key: loss.loss(key, params, model, guide))(keys))


@pytest.mark.parametrize("degree", [2, 3])
def test_cubature_has_no_noise_up_to_the_third_degree(degree):
    found = losses(CubatureELBO(), polynomial(degree), jax.random.split(jax.random.key(2), 10))
    assert np.ptp(found) < 1e-10 * np.abs(found).max()
    many = losses(
        Trace_ELBO(num_particles=1000),
        polynomial(degree),
        jax.random.split(jax.random.key(3), 100),
    )
    assert abs(found[0] - many.mean()) < 4.0 * many.std() / 10.0


def test_each_element_of_a_plate_has_numbers_of_its_own():
    def model():
        with numpyro.plate("three", 3):
            x = numpyro.sample("x", dist.Normal(1.0, 2.0))
        numpyro.factor("coupled", -0.1 * jnp.sum(x) ** 2)
        numpyro.sample("rate", dist.LogNormal(jnp.zeros(2), 1.0).to_event(1))

    def guide():
        with numpyro.plate("three", 3):
            numpyro.sample("x", dist.Normal(numpyro.param("loc", 0.5), 1.5))
        numpyro.sample("rate", dist.LogNormal(0.3, 0.8).expand([2]).to_event(1))

    keys = jax.random.split(jax.random.key(0), 5)
    found = [CubatureELBO().loss(key, {"loc": jnp.array(0.5)}, model, guide) for key in keys]
    exact = 0.1 * (3.0 * 1.5**2 + 1.5**2)  # of the variance and the mean of the sum
    exact += 3.0 * dist.kl_divergence(dist.Normal(0.5, 1.5), dist.Normal(1.0, 2.0))
    exact += 2.0 * dist.kl_divergence(dist.Normal(0.3, 0.8), dist.Normal(0.0, 1.0))
    np.testing.assert_allclose(found, float(exact), rtol=1e-10)


@pytest.mark.parametrize("pairs", [None, 1])
def test_cubature_is_unbiased_beyond(pairs):
    model, count = polynomial(4), 4000
    found = losses(CubatureELBO(pairs), model, jax.random.split(jax.random.key(2), count))
    many = losses(Trace_ELBO(num_particles=1000), model, jax.random.split(jax.random.key(3), 200))
    error = np.hypot(found.std() / np.sqrt(count), many.std() / np.sqrt(200.0))
    assert abs(found.mean() - many.mean()) < 4.0 * error


def test_schedules_and_other_parameters():
    guide = AutoNormal(regression)
    rates = optax.exponential_decay(1.0, 1, 0.5)
    found = trained(regression, guide, natural_variational_inference(guide, rates), 3, X, Y)
    assert np.isfinite(found["w_auto_loc"]).all()

    def with_param(x, y):
        noise = numpyro.param("noise", 1.0, constraint=constraints.positive)
        w = numpyro.sample("w", dist.Normal(0.0, 10.0).expand([3]).to_event(1))
        numpyro.sample("y", dist.Normal(x @ w, noise), obs=y)

    guide = AutoNormal(with_param)
    optimizer = optax.multi_transform(
        {"guide": natural_variational_inference(guide, 0.5), "model": optax.adam(0.01)},
        lambda params: {name: "model" if name == "noise" else "guide" for name in params},
    )
    found = trained(with_param, guide, optimizer, 20, X, Y)
    assert found["noise"] != 1.0
    alone = natural_variational_inference(guide, 0.5)
    with pytest.raises(OptimizerError, match=r"has the entries \['noise', 'w_auto_loc'"):
        trained(with_param, guide, alone, 1, X, Y)


@pytest.mark.float32
def test_in_single_precision():
    guide = AutoMultivariateNormal(regression)
    optimizer = natural_variational_inference(guide, 1.0)
    found = trained(regression, guide, optimizer, 2, X.astype(jnp.float32), Y.astype(jnp.float32))
    assert found["auto_loc"].dtype == jnp.float32
    np.testing.assert_allclose(found["auto_loc"], MEAN, rtol=1e-2, atol=1e-3)


def test_guides_of_another_kind():
    with pytest.raises(OptimizerError, match="is AutoLowRankMultivariateNormal; it should be"):
        natural_variational_inference(AutoLowRankMultivariateNormal(regression))  # pyright: ignore

    def chained():
        a = numpyro.sample("a", dist.Normal(numpyro.param("loc", 0.0), 1.0))
        numpyro.sample("b", dist.Normal(a, 1.0))

    with pytest.raises(MetricError, match=r"sites \['b'\] of the guide depend on others"):
        GuideFisher(chained)({"loc": jnp.zeros(())})
    with pytest.raises(MetricError, match="has the entries"):
        GuideFisher(lambda: None)({"loc": jnp.zeros(())})
    with pytest.raises(MetricError, match="is not set up"):
        GuideFisher(AutoMultivariateNormal(regression))({"auto_loc": jnp.zeros(3)})
    assert repr(GuideFisher(AutoNormal(regression))) == "GuideFisher(AutoNormal)"


def test_cubature_needs_normals():
    def gamma():
        rate = numpyro.param("rate", 1.0, constraint=constraints.positive)
        numpyro.sample("sigma", dist.Gamma(2.0, rate))

    def model():
        numpyro.sample("sigma", dist.Gamma(3.0, 1.0))

    with pytest.raises(OptimizerError, match="site `sigma` of the guide is Gamma"):
        trained(model, gamma, optax.sgd(0.1), 1)
    with pytest.raises(OptimizerError, match="has no random site"):
        trained(model, AutoDelta(model), optax.sgd(0.1), 1)
    with pytest.raises(OptimizerError, match="`pairs` of CubatureELBO is 0"):
        CubatureELBO(0)
