"""Metrics on sites, groups of sites, deterministic sites and whole models."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.reparam import LocScaleReparam, TransformReparam

import volform as vf
from volform.geometry import DiagonalField, MatrixField, Product

Y = jnp.array([0.3, -0.5, 1.2])


def sites(y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
    numpyro.deterministic("spread", sigma * weights[:2])
    numpyro.sample("y", dist.Normal(mu + weights, sigma), obs=y)


def gram(posterior, u, names, matrix):
    """J^T G J with J the Jacobian of the named values and G a formula for the matrix there."""

    def values(u):
        found = posterior.values(u, names)
        return ravel_pytree([found[name] for name in names])[0]

    jacobian = jax.jacfwd(values)(u)
    return jacobian.T @ matrix(*posterior.values(u, names).values()) @ jacobian


def euclidean(*values):
    return jnp.eye(sum(jnp.size(value) for value in values))


def normal_fisher(mu, sigma):
    return jnp.diag(jnp.stack([1.0 / sigma**2, 2.0 / sigma**2]))


def sloped(value):
    return jnp.eye(value.size) + jnp.outer(value, value)


FISHER, SLOPED = vf.Fisher(dist.Normal), MatrixField(sloped)
OTHERS = {"mu": euclidean, "sigma": euclidean, "weights": euclidean}

# name: what is attached, and the same as formulas for tuples of sites
ATTACHED = {
    "site": ({"weights": SLOPED}, OTHERS | {"weights": sloped}),
    "scaled site": ({"sigma": vf.Euclidean(0.5)}, OTHERS | {"sigma": lambda s: 4.0 * jnp.eye(1)}),
    "diagonal site": (
        {"weights": DiagonalField(lambda w: 1.0 / w)},
        OTHERS | {"weights": lambda w: jnp.diag(1.0 / w)},
    ),
    "group": (
        {("mu", "sigma"): FISHER},
        {("mu", "sigma"): normal_fisher, "weights": euclidean},
    ),
    "group out of order": (
        {("weights", "mu"): MatrixField(lambda w, mu: sloped(jnp.append(w, mu)))},
        {("weights", "mu"): lambda w, mu: sloped(jnp.append(w, mu)), "sigma": euclidean},
    ),
    "deterministic": (
        {"spread": SLOPED},
        {"mu": euclidean, "sigma": euclidean, "spread": sloped},
    ),
    "sum on a site": (
        {"weights": 2.0 * SLOPED + 0.1 * (vf.Euclidean() + SLOPED)},
        OTHERS | {"weights": lambda w: 2.1 * sloped(w) + 0.1 * jnp.eye(3)},
    ),
    "deterministic, given another metric": (
        {"weights": vf.Euclidean(), "spread": SLOPED},
        {"mu": euclidean, "weights": euclidean, "spread": sloped},
    ),
    "everything": (
        MatrixField(lambda mu, sigma, weights: sloped(jnp.hstack([mu, sigma, weights]))),
        {("mu", "sigma", "weights"): lambda *v: sloped(jnp.hstack(v))},
    ),
    "product": (
        Product({"mu": vf.Euclidean(2.0), "sigma": vf.Euclidean(), "weights": SLOPED}),
        {"mu": lambda mu: jnp.eye(1) / 4.0, "sigma": euclidean, "weights": sloped},
    ),
    "sum everywhere": (
        vf.Euclidean() + 3.0 * vf.Euclidean(2.0),
        {name: lambda v: 1.75 * jnp.eye(v.size) for name in OTHERS},
    ),
}


@pytest.mark.parametrize("name", ATTACHED)
def test_metric_in_u(name):
    metrics, formulas = ATTACHED[name]
    posterior = vf.condition(vf.attach(sites, metrics), Y)
    u = jnp.asarray(np.random.default_rng(0).uniform(-1.0, 1.0, posterior.dim))

    @jax.jit
    def both(u):
        expected = sum(
            gram(posterior, u, names if isinstance(names, tuple) else (names,), matrix)
            for names, matrix in formulas.items()
        )
        return posterior.metric(u).as_matrix(), expected, posterior.log_volume(u)

    actual, expected, log_volume = both(u)
    assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)
    assert_allclose(log_volume, 0.5 * np.linalg.slogdet(expected)[1], rtol=1e-12)


def test_unconstrained_is_the_identity_in_u():
    posterior = vf.condition(vf.attach(sites, vf.Unconstrained()), Y)
    assert isinstance(posterior.metric(jnp.ones(4)), lx.IdentityLinearOperator)
    group = vf.condition(vf.attach(sites, {("mu", "weights"): vf.Unconstrained()}), Y)
    alone = {name: vf.Unconstrained() for name in ("mu", "weights")}
    same_metric(group, vf.condition(vf.attach(sites, alone), Y))
    sums = {"sigma": vf.Unconstrained() + 2.0 * vf.Euclidean()}
    posterior = vf.condition(vf.attach(sites, sums), Y)
    sigma = jnp.exp(0.3)
    assert_allclose(
        posterior.metric(jnp.full(4, 0.3)).as_matrix()[1, 1], 1.0 + 2.0 * sigma**2, rtol=1e-14
    )


def test_structure_is_kept():
    """Diagonal metrics on a million parameters stay diagonal; blocks stay blocks."""

    def model():
        numpyro.sample("scale", dist.LogNormal(0.0, 1.0).expand([1_000_000]))
        numpyro.sample("loc", dist.Normal(0.0, 1.0).expand([5]))

    metrics = {"scale": DiagonalField(lambda s: 2.0 / s**2)}
    posterior = vf.condition(vf.attach(model, metrics))
    operator = jax.eval_shape(posterior.metric, jnp.zeros(1_000_005))
    assert isinstance(operator, lx.DiagonalLinearOperator)
    assert_allclose(posterior.log_volume(jnp.zeros(1_000_005)), 500_000 * np.log(2.0))


# --- Where a metric comes from


def same_metric(*posteriors):
    u = jnp.asarray(np.random.default_rng(1).uniform(-1.0, 1.0, posteriors[0].dim))
    first, *others = [posterior.metric(u).as_matrix() for posterior in posteriors]
    for other in others:
        assert_allclose(other, first, rtol=1e-14)


def test_infer_is_attach_from_inside():
    def inside(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0), infer={"metric": vf.Euclidean(3.0)})
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)

    bare = handlers.infer_config(inside, lambda site: {"metric": None})
    attached = vf.attach(bare, {"sigma": vf.Euclidean(3.0)})
    same_metric(vf.condition(inside, Y), vf.condition(attached, Y))
    assert vf.condition(bare, Y).metric_name == "Euclidean()"
    outside = vf.attach(inside, {"sigma": vf.Euclidean(2.0)})
    assert vf.condition(outside, Y).metric_name.startswith("sigma: Euclidean(scale=2.0)")
    wide = vf.condition(vf.attach(inside, vf.Euclidean()), Y)
    assert wide.metric_name == "Euclidean()"
    observed = handlers.condition(inside, {"sigma": 1.0})
    assert vf.condition(observed, Y).metric_name == "Euclidean()"


def test_outer_group_takes_the_place_of_infer():
    def model():
        for name in ("a", "b", "c"):
            numpyro.sample(name, dist.Normal(0.0, 1.0), infer={"metric": vf.Euclidean(0.5)})

    joint = vf.geometry.MatrixField(lambda a, b: jnp.array([[2.0, 1.0], [1.0, 3.0]]))
    posterior = vf.condition(vf.attach(model, {("a", "b"): joint}))
    expected = [[2.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 4.0]]
    assert posterior.metric(jnp.zeros(3)).as_matrix().tolist() == expected


def test_outer_attach_wins():
    inner = vf.attach(sites, {"mu": vf.Euclidean(5.0), "sigma": vf.Euclidean(5.0)})
    nested = vf.attach(handlers.seed(inner, 0), {"sigma": vf.Euclidean(2.0)})
    flat = vf.attach(sites, {"mu": vf.Euclidean(5.0), "sigma": vf.Euclidean(2.0)})
    same_metric(vf.condition(nested, Y), vf.condition(flat, Y))
    wide = vf.attach(inner, vf.Unconstrained())
    assert vf.condition(wide, Y).metric_name == "Unconstrained()"


def hierarchy(y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = numpyro.sample("tau", dist.LogNormal(0.0, 0.5))
    metric = {"metric": vf.Euclidean(2.0)}
    with numpyro.plate("n", 3):
        theta = numpyro.sample("theta", dist.Normal(mu, tau), infer=metric)
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def hierarchy_rewritten_inside(y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with handlers.reparam(config={"tau": TransformReparam(), "theta": LocScaleReparam(0.0)}):
        tau = numpyro.sample("tau", dist.LogNormal(0.0, 0.5))
        with numpyro.plate("n", 3):
            metric = {"metric": vf.Euclidean(2.0)}
            theta = numpyro.sample("theta", dist.Normal(mu, tau), infer=metric)
    with numpyro.plate("n", 3):
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def hierarchy_scanned(y=None, reparam=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = numpyro.sample("tau", dist.LogNormal(0.0, 0.5))

    def step(carry, y):
        with handlers.reparam(config={"theta": reparam} if reparam else {}):
            metric = {"metric": vf.Euclidean(2.0)}
            theta = numpyro.sample("theta", dist.Normal(mu, tau), infer=metric)
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)
        return carry, None

    scan(step, None, y, length=3)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (handlers.reparam(hierarchy, {"theta": LocScaleReparam(0.0)}), {}),
        (hierarchy_rewritten_inside, {}),
        (hierarchy_scanned, {}),
        (hierarchy_scanned, {"reparam": LocScaleReparam(0.0)}),
    ],
    ids=["reparam outside", "reparam inside", "scan", "reparam in scan"],
)
def test_infer_is_read_through_every_handler(model, options):
    """NumPyro drops `infer` of a site that it makes deterministic; the metric stays."""
    plain, other = vf.condition(hierarchy, Y), vf.condition(model, Y, **options)
    assert other.metric_name == plain.metric_name
    values = {"mu": 0.3, "tau": 1.7, "theta": jnp.array([0.1, 0.9, -0.4])}
    other_values = {
        **values,
        "tau_base": jnp.log(1.7) if "tau_base" in other.names else None,
        "theta_decentered": (values["theta"] - 0.3) / 1.7,
    }
    assert_allclose(
        other.log_density(other.unconstrain(other_values)),
        plain.log_density(plain.unconstrain(values)),
        rtol=1e-12,
    )


# --- The attached model is a NumPyro model


@pytest.mark.standard_promotion
def test_attached_models_run_under_stock_inference():
    model = vf.attach(hierarchy, vf.JointFisher())
    model = vf.attach(handlers.reparam(model, {"theta": LocScaleReparam(0.0)}), {})
    kernel = NUTS(vf.attach(model, {"mu": vf.Euclidean()}), max_tree_depth=3)
    mcmc = MCMC(kernel, num_warmup=5, num_samples=10, progress_bar=False)
    mcmc.run(jax.random.key(0), Y)
    assert mcmc.get_samples()["theta"].shape == (10, 3)
    prior = Predictive(vf.attach(sites, {"sigma": FISHER}), num_samples=2)(jax.random.key(0))
    assert prior["y"].shape == (2, 3)


def test_repr_of_an_attached_model():
    assert repr(vf.attach(sites, {"mu": vf.Euclidean()})) == "attach(sites, {'mu': Euclidean()})"
