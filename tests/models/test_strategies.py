"""One model, one metric, every spelling: log q^G at the same values is the same number."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro import handlers
from numpyro.distributions import transforms
from numpyro.infer import SVI, Trace_ELBO, autoguide
from numpyro.infer.reparam import (
    CircularReparam,
    DiscreteCosineReparam,
    ExplicitReparam,
    HaarReparam,
    LocScaleReparam,
    NeuTraReparam,
    ProjectedNormalReparam,
    TransformReparam,
)

import volform as vf
from volform.errors import SingularMetricError
from volform.geometry import MatrixField

Y = jnp.array([0.3, -0.5, 1.2])
VALUES = ("mu", "tau", "theta")


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = numpyro.sample("tau", dist.LogNormal(0.5, 0.5))
    theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=y)


def by_hand(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    log_tau = numpyro.sample("log_tau", dist.Normal(0.5, 0.5))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    tau = numpyro.deterministic("tau", jnp.exp(log_tau))
    theta = numpyro.deterministic("theta", mu + tau * z)
    numpyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=y)


def by_hand_at_once(y):
    """All three values in one latent site, and a latent site in the way of none of them."""
    all_of = numpyro.sample("all_of", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
    mu = numpyro.deterministic("mu", all_of[0])
    tau = numpyro.deterministic("tau", jnp.exp(0.5 + 0.5 * all_of[1]))
    theta = numpyro.deterministic("theta", mu + tau * all_of[2:])
    numpyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=y)


def rotated(value):
    return jnp.eye(value.size) + jnp.outer(value, value)


METRICS = {
    "Euclidean": {},
    "on sites": {
        "mu": vf.Euclidean(),
        "tau": vf.Fisher(lambda tau: dist.Normal(0.0, tau)),
        "theta": MatrixField(rotated) + 0.5 * vf.Euclidean(2.0),
    },
    "on a group": {
        ("theta", "tau"): MatrixField(lambda *values: rotated(jnp.hstack(values))),
        "mu": vf.Euclidean(3.0),
    },
    "on all values": MatrixField(lambda mu, tau, theta: rotated(jnp.hstack([mu, tau, theta]))),
    "joint": vf.JointFisher(reference=model),
}
# Without a word of the user's, only `handlers.reparam` tells what a value is computed from.
BY_HAND = ["on sites", "on a group", "joint"]


def neutra(spelling):
    guide = autoguide.AutoDiagonalNormal(spelling)
    svi = SVI(spelling, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
    state = svi.init(jax.random.key(0), Y)
    params = jax.tree.map(lambda leaf: leaf + 0.3, svi.get_params(state))
    return NeuTraReparam(guide, params).reparam(spelling)


SOFTPLUS = ExplicitReparam(transforms.SoftplusTransform().inv)
BEND = ExplicitReparam(transforms.AffineTransform(1.0, 2.0))
STRATEGIES = {
    "centered 0": lambda: handlers.reparam(model, {"theta": LocScaleReparam(0.0)}),
    "centered 0.5": lambda: handlers.reparam(model, {"theta": LocScaleReparam(0.5)}),
    "centered by a parameter": lambda: handlers.reparam(model, {"theta": LocScaleReparam()}),
    "transform": lambda: handlers.reparam(model, {"tau": TransformReparam()}),
    "explicit": lambda: handlers.reparam(model, {"tau": SOFTPLUS, "theta": BEND}),
    "haar": lambda: handlers.reparam(model, {"theta": HaarReparam()}),
    "cosine": lambda: handlers.reparam(model, {"theta": DiscreteCosineReparam()}),
    "two at once": lambda: handlers.reparam(
        model, {"tau": TransformReparam(), "theta": LocScaleReparam(0.3)}
    ),
    "neutra": lambda: neutra(model),
    "neutra of a reparam": lambda: neutra(handlers.reparam(model, {"tau": TransformReparam()})),
    "by hand": lambda: by_hand,
}


WHICH = {"centered 0": METRICS, "neutra": METRICS, "by hand": BY_HAND}


def require_same_density(native, rewritten):
    """log q^G of the rewritten models at random points, and of the native ones at their values."""
    some, other = rewritten["joint"], native["joint"]
    u = jnp.asarray(np.random.default_rng(0).uniform(-1.0, 1.0, (2, some.dim)))

    @eqx.filter_jit
    @eqx.filter_vmap
    def both(u):
        there = other.unconstrain(some.values(u, VALUES))
        return {
            name: (rewritten[name].log_density(u), native[name].log_density(there))
            for name in rewritten
        }

    for name, (actual, expected) in both(u).items():
        assert_allclose(actual, expected, rtol=1e-10, err_msg=name)


def attached(spelling, names):
    return {name: vf.condition(vf.attach(spelling, METRICS[name]), Y) for name in names}


@pytest.fixture(scope="module")
def native():
    return attached(model, METRICS)


@pytest.mark.filterwarnings("ignore:.*numpyro.param:volform.errors.TrustWarning")  # of a chart
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_same_density(native, strategy):
    names = WHICH.get(strategy, ["Euclidean", "joint"])
    require_same_density(native, attached(STRATEGIES[strategy](), names))


def test_one_latent_site_for_several_values(native):
    """A chart of (mu, tau, theta) together: covered by metrics on all of them, as NeuTra's is."""
    require_same_density(native, attached(by_hand_at_once, BY_HAND))


# --- Other supports


def angle():
    numpyro.sample("x", dist.VonMises(1.0, 2.0))


def simplex():
    base = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    numpyro.sample("x", dist.TransformedDistribution(base, transforms.StickBreakingTransform()))


def shifted():
    low = numpyro.sample("low", dist.Normal(0.0, 1.0))
    with handlers.reparam(config={"x": TransformReparam()}):
        shift = transforms.AffineTransform(low, 1.0)
        numpyro.sample("x", dist.TransformedDistribution(dist.Exponential(2.0), shift))


@pytest.mark.parametrize(
    ("native", "strategy"), [(angle, CircularReparam()), (simplex, TransformReparam())]
)
@pytest.mark.parametrize("metric", [vf.Euclidean(), MatrixField(lambda x: rotated(jnp.ravel(x)))])
def test_same_density_on_other_supports(native, strategy, metric):
    rewritten = handlers.reparam(native, {"x": strategy})
    here, there = (
        vf.condition(vf.attach(spelling, {"x": metric})) for spelling in (rewritten, native)
    )
    u = jnp.linspace(0.3, 1.0, here.dim)
    expected = there.log_density(there.unconstrain(here.values(u, ("x",))))
    assert_allclose(here.log_density(u), expected, rtol=1e-10)


def test_moving_support_in_a_chart_that_does_not_move():
    """The remedy of NumPyro's manual for a support that depends on parameters."""
    posterior = vf.condition(shifted)
    u = jnp.array([0.3, -0.2])
    values = posterior.values(u, ("low", "x"))
    expected = dist.Normal(0.0, 1.0).log_prob(values["low"])
    expected += dist.Exponential(2.0).log_prob(values["x"] - values["low"])
    assert_allclose(posterior.log_density(u), expected, rtol=1e-12)


# --- What is no chart


def direction(y):
    v = numpyro.sample("v", dist.ProjectedNormal(jnp.array([1.0, 2.0, 3.0])))
    numpyro.sample("y", dist.Normal(v, 1.0).to_event(1), obs=y)


@pytest.mark.standard_promotion
def test_projected_normal_is_no_chart():
    """Three coordinates for a point of the sphere: a metric on it is singular, and said so."""
    rewritten = handlers.reparam(direction, {"v": ProjectedNormalReparam()})
    assert "v_normal: Euclidean()" in repr(vf.condition(rewritten, Y))
    with pytest.raises(SingularMetricError, match=r"`v_normal`.*rank 2 of 3.*`constraints.sphere`"):
        vf.condition(vf.attach(rewritten, {"v": vf.Euclidean()}), Y)


def weight_norm(y, prior):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    v = numpyro.sample("v", prior)
    w = numpyro.deterministic("w", scale * v / jnp.linalg.norm(v))
    numpyro.sample("y", dist.Normal(w, 1.0).to_event(1), obs=y)


def test_weight_norm_in_a_chart():
    """With the direction on the sphere, (scale, v) is a chart of w: the remedy of the error."""
    prior = dist.ImproperUniform(dist.constraints.sphere, (), event_shape=(3,))
    posterior = vf.condition(vf.attach(weight_norm, {"w": vf.Euclidean()}), Y, prior)
    u = jnp.array([0.3, 0.2, -0.5])
    values = posterior.values(u, ("scale", "w"))
    # dw = scale^2 dscale dv
    expected = dist.HalfNormal(1.0).log_prob(values["scale"]) - 2.0 * jnp.log(values["scale"])
    expected += dist.Normal(values["w"], 1.0).log_prob(Y).sum()
    assert_allclose(posterior.log_density(u), expected, rtol=1e-12)


def test_weight_norm_with_a_metric_on_the_free_coordinate():
    """A metric of its own for one of the sites makes the sum regular."""
    metrics = {"w": vf.Euclidean(), "v": 0.1 * vf.Euclidean()}
    prior = dist.Normal(0.0, 1.0).expand([3]).to_event(1)
    posterior = vf.condition(vf.attach(weight_norm, metrics), Y, prior)
    assert jnp.isfinite(posterior.log_density(jnp.array([0.3, 0.2, -0.5, 0.4])))
