"""Weight normalization as a chart, and as it is coded."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.reparam import LocScaleReparam

import volform as vf
from volform import networks as nn
from volform.errors import DataError, NetworkError, SingularMetricError
from volform.inference.modes.expansion import expand_second

CHARTS = {"polar": nn.PolarTransform, "log-polar": nn.log_polar}
GENERATOR = np.random.default_rng(0)
X = jnp.asarray(GENERATOR.normal(size=(10, 2)))
Y = jnp.sin(2.0 * X[:, :1]) + 0.5 * X[:, 1:]
NET = nn.MLP((2,), w_std=1.5)


@pytest.mark.parametrize("make", CHARTS.values(), ids=CHARTS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_chart(make, n):
    pole = jnp.asarray(GENERATOR.normal(size=(4, n)))
    w = jnp.asarray(GENERATOR.normal(size=(4, n)))
    w = jnp.abs(w) * jnp.sign(pole) if n == 1 else w
    chart = make(pole)
    z = chart.inv(w)
    assert z.shape == w.shape  # as many coordinates as weights
    assert_allclose(chart(z), w, rtol=1e-12)
    jacobians = jax.vmap(lambda i: jax.jacfwd(lambda z: chart(z)[i])(z)[:, i])(jnp.arange(4))
    expected = jnp.linalg.slogdet(jacobians)[1]
    assert_allclose(chart.log_abs_det_jacobian(z, chart(z)), expected, rtol=1e-10, atol=1e-13)
    assert_allclose(chart.inv(pole)[:, 1:], 0.0, atol=1e-14)  # the pole is the origin of s


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_poles_on_the_axis(sign):
    pole = jnp.array([0.0, 0.0, sign])
    chart = nn.PolarTransform(pole)
    assert_allclose(chart(jnp.array([2.0, 0.0, 0.0])), 2.0 * pole, atol=1e-15)
    assert_allclose(chart(chart.inv(jnp.array([0.3, -1.0, 0.2]))), [0.3, -1.0, 0.2], rtol=1e-13)


def test_metric_is_conformal_on_the_sphere():
    """`dr^2 + r^2 (2 / (1 + |s|^2))^2 |ds|^2`."""
    chart, z = nn.PolarTransform(jnp.array([1.0, -2.0, 0.5])), jnp.array([1.7, 0.4, -0.3])
    sphere = 1.7**2 * 4.0 / (1.0 + 0.25) ** 2
    matrix = vf.pullback(vf.Euclidean(), chart)(z).as_matrix()
    assert_allclose(matrix, jnp.diag(jnp.array([1.0, sphere, sphere])), atol=1e-14)


def test_unconstrained_coordinates_have_the_logarithm():
    chart = biject_to(nn.PolarTransform(jnp.ones(3)).domain)
    z = jnp.array([0.5, -1.0, 2.0])
    assert_allclose(chart(z), [np.exp(0.5), -1.0, 2.0])
    assert_allclose(chart.inv(chart(z)), z)


def test_charts_are_equal_where_their_poles_are():
    one, two = nn.PolarTransform(jnp.ones(3)), nn.PolarTransform(2.0 * jnp.ones(3))
    assert one == two
    assert one != nn.PolarTransform(jnp.arange(3.0))
    assert one != nn.PolarTransform(jnp.ones(2))
    assert jax.jit(lambda chart: chart)(one) == one


@pytest.fixture(scope="module")
def cartesian():
    posterior = vf.condition(nn.regression(NET, 0.3), X, Y)
    initial = NET.init(jax.random.key(3), 2)
    fit = vf.find_map(posterior, key=jax.random.key(0), initial=initial, starts=1)
    return posterior, fit, vf.laplace(fit, second_order=False).evidence.log_z


def in_chart(make, fit):
    """The posterior in a chart, whose poles are not at the mode, and the mode's coordinates."""
    poles = {name: w + 0.3 * jnp.sign(w[:, ::-1]) for name, w in fit.values.items()}
    posterior = vf.condition(nn.weight_norm(nn.regression(NET, 0.3), poles, make), X, Y)
    return posterior, {f"{n}.polar": make(poles[n]).inv(w) for n, w in fit.values.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [nn.PolarTransform, pytest.param(nn.log_polar, marks=pytest.mark.slow)],
    ids=CHARTS,
)
def test_mode_and_evidence_are_those_of_the_weights(make, cartesian):
    plain, fit, log_z = cartesian
    posterior, start = in_chart(make, fit)
    assert posterior.dim == plain.dim == 6
    at = jax.jit(lambda u: expand_second(posterior, u))(posterior.unconstrain(start))
    assert at.gradient_norm < 1e-8  # the mode of the weights is a mode here
    assert_allclose(-at.value, fit.log_density, rtol=1e-10)
    assert_allclose(at.eigenvalues, fit.eigenvalues, rtol=1e-8)
    found = -at.value + 3.0 * np.log(2.0 * np.pi) - 0.5 * np.sum(np.log(at.eigenvalues))
    assert_allclose(found + np.log(8), log_z, rtol=1e-8)  # 8 equivalent modes


@pytest.mark.slow
@pytest.mark.parametrize("make", CHARTS.values(), ids=CHARTS)
def test_search_in_the_chart(make, cartesian):
    _, fit, log_z = cartesian
    posterior, start = in_chart(make, fit)
    start = {name: 1.1 * z for name, z in start.items()}
    found = vf.find_map(posterior, key=jax.random.key(0), initial=start, starts=1)
    approx = vf.laplace(found, second_order=False)
    assert_allclose(approx.evidence.log_z, log_z, rtol=1e-8)
    assert_allclose(found.eigenvalues, fit.eigenvalues, rtol=1e-8)
    for name, value in posterior.values(found.at.u, ("layer0.w", "layer1.w")).items():
        assert_allclose(value, fit.values[name], rtol=1e-8)


def test_density_is_carried(cartesian):
    """q^G is a function, the same at every point."""
    plain, fit, _ = cartesian
    posterior, _ = in_chart(nn.PolarTransform, fit)

    @jax.jit
    def both(u):
        weights = posterior.values(u, ("layer0.w", "layer1.w"))
        flat = jnp.concatenate([w.ravel() for w in weights.values()])
        return posterior.log_density(u), plain.log_density(flat)

    for seed in range(3):
        here, there = both(0.5 * jax.random.normal(jax.random.key(seed), (6,)))
        assert_allclose(here, there, rtol=1e-10)


def test_equivalent_modes_are_carried(cartesian):
    model = nn.weight_norm(nn.regression(NET, 0.3), cartesian[1].values)
    assert vf.condition(model, X, Y).provenance.equivalent_modes == 2 * 2**2


def test_reparam_inside_of_a_model_is_not_counted():
    def model(x, y):
        with handlers.reparam(config={"layer0.w": LocScaleReparam(0.0)}):
            nn.regression(NET, 0.3)(x, y)

    provenance = vf.condition(model, X, Y).provenance
    assert "layer0.w" in provenance.uncounted
    assert provenance.equivalent_modes in {1, None}


def test_biases_stay_as_they_are(key):
    net = nn.MLP((2,), b_std=1.0)
    posterior = vf.condition(nn.weight_norm(nn.regression(net), net.init(key, 2)), X, Y)
    assert posterior.names == ("layer0.w.polar", "layer0.b", "layer1.w.polar", "layer1.b")


def test_single_weights_keep_their_sign(key):
    net = nn.MLP((2,))
    params = {"layer0.w": jnp.array([[-1.0], [2.0]])}
    posterior = vf.condition(nn.weight_norm(nn.regression(net), params), X[:, :1], Y)
    z = {"layer0.w.polar": jnp.array([[3.0], [5.0]]), "layer1.w": jnp.ones((1, 2))}
    weights = posterior.values(posterior.unconstrain(z), ("layer0.w",))["layer0.w"]
    assert_allclose(weights, [[-3.0], [5.0]])
    with pytest.raises(DataError, match=r"`layer0.w.polar` in `values` is not inside its support"):
        posterior.unconstrain({**z, "layer0.w.polar": jnp.array([[-3.0], [5.0]])})


def test_as_coded_is_no_chart():
    model = nn.naive_weight_norm(nn.regression(NET), ["layer0.w"])
    message = (
        r"`layer0.w` is singular: the sites `layer0.w.g`, `layer0.w.v` .* have 6 coordinates, "
        r"of which it measures rank 4 of 6. Write them as a chart"
    )
    with pytest.raises(SingularMetricError, match=message):
        vf.condition(model, X, Y)


def test_as_coded_is_the_same_function(key):
    model = nn.naive_weight_norm(NET, ["layer0.w"])
    trace = handlers.trace(handlers.seed(model, key)).get_trace(X)
    g, v = trace["layer0.w.g"]["value"], trace["layer0.w.v"]["value"]
    rows = [g[i] * v[i] / np.sqrt(v[i] @ v[i]) for i in range(2)]
    assert_allclose(trace["layer0.w"]["value"], np.array(rows), rtol=1e-13)


@pytest.mark.parametrize("write", [
    lambda model: nn.weight_norm(model, {"w": jnp.ones((1, 2))}),
    lambda model: nn.naive_weight_norm(model, ["w"]),
], ids=["chart", "as coded"])  # fmt: skip
def test_observed_weights_are_refused(write, key):
    def model():
        numpyro.sample("w", dist.Normal(jnp.zeros((1, 2)), 1.0), obs=jnp.ones((1, 2)))

    with pytest.raises(NetworkError, match="The site `w` is observed; only weights that are inf"):
        handlers.seed(write(model), key)()


def test_zero_rows_have_no_direction():
    with pytest.raises(NetworkError, match="`pole` holds a zero vector, which has no direction"):
        nn.PolarTransform(jnp.zeros((2, 3)))
