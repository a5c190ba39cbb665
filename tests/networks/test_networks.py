"""Networks as functions and as NumPyro models."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.testing import assert_allclose
from numpyro import handlers
from numpyro.infer.util import log_density

import volform as vf
from volform import networks as nn
from volform.errors import DataError, NetworkError

SAME_LAW = [nn.SP(), nn.NTP(), nn.ImprovedSP(2)]
ALL = [*SAME_LAW, nn.MuP(), nn.WithPrior(nn.SP(), nn.NTP())]
RELU = {"activation": jax.nn.relu, "w_std": 1.3}
X = jnp.asarray(np.random.default_rng(0).normal(size=(10, 2)))
Y = jnp.sin(2.0 * X[:, :1]) + 0.5 * X[:, 1:]
AT, OTHER = jnp.array([[1.0, 0.5, -0.3]]), jnp.array([[0.2, 1.0, 0.4]])


# --- The function


@pytest.mark.parametrize("parametrization", ALL, ids=lambda p: type(p).__name__)
def test_mlp_by_hand(parametrization, key):
    net = nn.MLP((4, 3), 2, jnp.tanh, parametrization, w_std=1.3, b_std=0.7)
    params = net.init(key, 2)
    z = np.asarray(X)
    for i, (fan_in, units) in enumerate([(2, 4), (4, 3), (3, 2)]):
        fans = nn.Fans(fan_in, units, i == 0, i == 2)
        weight = parametrization.weight(fans, 1.3).multiplier * params[f"layer{i}.w"]
        bias = parametrization.bias(fans, 0.7).multiplier * params[f"layer{i}.b"]
        z = z @ np.asarray(weight).T + np.asarray(bias)
        z = np.tanh(z) if i < 2 else z
    assert_allclose(net.apply(params, X), z, rtol=1e-13)
    assert_allclose(jax.jit(net.apply)(params, X), z, rtol=1e-13)
    one = jax.vmap(lambda x: net.apply(params, x[None])[0])(X)
    assert_allclose(one, z, rtol=1e-13)


def test_lenet_by_hand(key):
    net = nn.LeNet(outputs=3)
    x = jax.random.normal(key, (2, 13, 12, 2))
    params = {n: np.asarray(p) for n, p in net.init(key, (13, 12, 2)).items()}

    def conv(x, i):
        windows = sliding_window_view(x, (5, 5), axis=(1, 2))  # (n, h, w, c, 5, 5)
        kernel = params[f"layer{i}.w"].reshape(-1, 5, 5, x.shape[-1])
        return np.tanh(np.einsum("nhwcij,oijc->nhwo", windows, kernel) + params[f"layer{i}.b"])

    def pool(x):
        h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
        return sum(x[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)) / 4

    z = pool(conv(np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))), 0))
    z = pool(conv(z, 1)).reshape(2, -1)
    for i in (2, 3, 4):
        z = z @ params[f"layer{i}.w"].T + params[f"layer{i}.b"]
        z = np.tanh(z) if i < 4 else z
    assert_allclose(net.apply(params, x), z, rtol=1e-12)


def test_lenet_has_the_size_of_lenet():
    shapes = {p.name: p.shape for p in nn.LeNet().parameters((28, 28, 1))}
    sizes = [math.prod(shapes[f"layer{i}.w"]) + shapes[f"layer{i}.b"][0] for i in range(5)]
    assert sizes == [156, 2416, 48120, 10164, 850]


def test_one_key_is_one_function_where_the_law_is_one(key):
    nets = [nn.MLP((5,), parametrization=p, w_std=1.3, b_std=0.7) for p in SAME_LAW]
    outputs = [net.apply(net.init(key, 2), X) for net in nets]
    for other in outputs[1:]:
        assert_allclose(other, outputs[0], rtol=1e-12)


# --- Its prior: figures for relu, w_std 1.3, three inputs


def output_variance(net, draws=20_000):
    keys = jax.random.split(jax.random.key(1), draws)
    squares = jax.vmap(lambda key: net.apply(net.init(key, 3), AT)[0, 0] ** 2)(keys)
    return float(squares.mean()), float(squares.std() / draws**0.5)


class AsPrinted(nn.Parametrization):
    """Appendix E.1: the first layer too has the multiplier sigma / sqrt(h), h the width."""

    def weight(self, fans, std):
        width = fans.fan_out if fans.is_first else fans.fan_in
        return nn.Scaling(std / math.sqrt(width), 1.0)

    def bias(self, fans, std):
        return nn.Scaling(1.0, std)


@pytest.mark.parametrize(
    ("parametrization", "width", "expected"),
    [
        (nn.SP(), 8, 0.63786),
        (nn.NTP(), 8, 0.63786),
        (nn.MuP(), 8, 0.63786 / 8),  # no Gaussian process but 0 in the limit
        (nn.MuP(), 64, 0.63786 / 64),
        (AsPrinted(), 8, 0.23920),
        (AsPrinted(), 64, 0.02990),
        (nn.WithPrior(nn.NTP(), nn.SP()), 8, 0.63786 * 1.69**2 / (3 * 8)),
    ],
)
def test_prior_variance_of_outputs(parametrization, width, expected):
    net = nn.MLP((width,), parametrization=parametrization, **RELU)
    variance, error = output_variance(net)
    assert abs(variance - expected) < 4 * error
    assert error < 0.04 * expected


# --- Its neural tangent kernel, df G^-1 df'


def kernels(net, geometry, seeds):
    """The kernel's summand of each layer, one row for each draw of the parameters."""
    scales = [metric.scale for metric in net.metric(geometry, 3).values()]

    def summands(key):
        params = net.init(key, 3)
        left, right = (jax.grad(lambda p, x=x: net.apply(p, x)[0, 0])(params) for x in (AT, OTHER))
        pairs = zip(left.values(), right.values(), scales, strict=True)
        return jnp.stack([scale**2 * jnp.sum(a * b) for a, b, scale in pairs])

    return np.asarray(jax.lax.map(summands, jax.random.split(jax.random.key(2), seeds)))


@pytest.mark.parametrize("coordinates", SAME_LAW, ids=lambda p: type(p).__name__)
def test_neural_tangent_kernel_belongs_to_the_metric(coordinates):
    """The limits 0.17979 + 0.35066 = 0.53045, in any coordinates, under NTP's metric."""
    net = nn.MLP((4096,), parametrization=coordinates, **RELU)
    rows = kernels(net, nn.NTP(), seeds=20)
    error = rows.std(0, ddof=1) / 20**0.5
    assert np.all(np.abs(rows.mean(0) - [0.17979, 0.35066]) < 4 * error)
    assert_allclose(rows.mean(0), [0.17979, 0.35066], rtol=0.03)
    assert_allclose(rows.sum(1).mean(), 0.53045, rtol=0.03)
    own = kernels(nn.MLP((4096,), parametrization=nn.NTP(), **RELU), nn.NTP(), seeds=20)
    assert_allclose(rows, own, rtol=1e-10)


def test_standard_metric_has_a_kernel_that_grows_with_the_width():
    found = {}
    for width in (64, 1024, 16384):
        rows = kernels(nn.MLP((width,), **RELU), nn.SP(), seeds=20)[:, 1]
        assert abs(rows.mean() - 0.20749 * width) < 4 * rows.std(ddof=1) / 20**0.5
        found[width] = rows.mean()
    slope = math.log(found[16384] / found[64]) / math.log(256)
    assert_allclose(slope, 1.0, atol=0.05)


def test_improved_standard_kernel():
    """Its own metric: base width times E[a a'] in the last layer, that of SP in the first."""
    own = nn.ImprovedSP(16)
    rows = kernels(nn.MLP((4096,), parametrization=own, **RELU), own, seeds=20)
    expected = np.array([0.17979 * 3 / 1.69, 16 * 0.20749])
    assert np.all(np.abs(rows.mean(0) - expected) < 4 * rows.std(0, ddof=1) / 20**0.5)
    assert_allclose(rows.mean(0), expected, rtol=0.03)


def test_maximal_update_has_a_kernel_in_every_layer():
    """First, hidden and last layer keep their size from width 32 to 256."""
    rows = [
        kernels(nn.MLP((width, width), parametrization=nn.MuP(), **RELU), nn.MuP(), seeds=100)
        for width in (32, 256)
    ]
    narrow, wide = (row.mean(0) for row in rows)
    error = np.sqrt(sum(row.var(0, ddof=1) for row in rows) / 100)
    assert np.all(np.abs(narrow - wide) < 4 * error)
    assert np.all(error < 0.25 * np.abs(wide))


# --- The NumPyro model


@pytest.mark.parametrize("parametrization", ALL, ids=lambda p: type(p).__name__)
def test_model_is_the_function_with_its_prior(parametrization, key):
    net = nn.MLP((3,), parametrization=parametrization, w_std=1.3, b_std=0.7)
    params = net.init(key, 2)
    density, trace = log_density(nn.regression(net, 0.3), (X, Y), {}, params)
    expected = dist.Normal(net.apply(params, X), 0.3).log_prob(Y).sum()
    for parameter in net.parameters(2):
        prior = dist.Normal(0.0, parameter.scaling.deviation)
        expected += prior.log_prob(params[parameter.name]).sum()
    assert_allclose(density, expected, rtol=1e-12)
    assert [name for name in trace if name != "y"] == list(params)


def test_noise_may_have_a_prior():
    posterior = vf.condition(nn.regression(nn.MLP((2,)), dist.HalfNormal(1.0)), X, Y)
    assert posterior.names == ("layer0.w", "layer1.w", "noise")


def test_width_of_the_prior_may_be_sampled():
    def model(x, y):
        w_std = numpyro.sample("w_std", dist.HalfNormal(1.0))
        return nn.regression(nn.MLP((2,), parametrization=nn.NTP(), w_std=w_std))(x, y)

    assert vf.condition(model, X, Y).dim == 7


def test_classification(key):
    net = nn.MLP((3,), outputs=3)
    params, labels = net.init(key, 2), jnp.arange(10) % 3
    density, _ = log_density(nn.classification(net), (X, labels), {}, params)
    logits = jax.nn.log_softmax(net.apply(params, X))
    prior, _ = log_density(nn.classification(net), (X[:1], labels[:1]), {}, params)
    expected = sum(float(logits[i, labels[i]]) for i in range(1, 10))
    assert_allclose(density - prior, expected, rtol=1e-12)


def test_any_likelihood():
    counts = jnp.arange(10)[:, None]
    model = nn.supervised(nn.MLP((2,)), lambda outputs: dist.Poisson(jnp.exp(outputs)))
    assert vf.condition(model, X, counts).observed == ("y",)


def test_two_networks_in_one_model():
    def model(x, y):
        mean = handlers.scope(nn.MLP((2,)), "mean")(x)
        log_scale = handlers.scope(nn.MLP((1,), parametrization=nn.MuP()), "scale")(x)
        numpyro.sample("y", dist.Normal(mean, jnp.exp(log_scale)), obs=y)

    names = vf.condition(model, X, Y).names
    assert names == tuple(f"{net}/layer{i}.w" for net in ("mean", "scale") for i in range(2))


def test_network_of_ones_own(key):
    """A convolution, averaged over the image."""
    body = nn.Conv(4, (3, 2), padding=nn.Padding.VALID), nn.Elementwise(jnp.tanh)
    net = nn.Network(nn.serial(*body, nn.GlobalAvgPool(), nn.Dense(1)))
    params = net.init(key, (5, 5, 2))
    assert [p.shape for p in params.values()] == [(4, 12), (1, 4)]
    x = jax.random.normal(key, (3, 5, 5, 2))
    windows = sliding_window_view(np.asarray(x), (3, 2), axis=(1, 2))
    kernel = np.asarray(params["layer0.w"]).reshape(4, 3, 2, 2) / 12**0.5
    hidden = np.tanh(np.einsum("nhwcij,oijc->nhwo", windows, kernel)).mean((1, 2))
    expected = hidden @ np.asarray(params["layer1.w"]).T / 2.0
    assert_allclose(net.apply(params, x), expected, rtol=1e-12)


def test_lenet_has_a_diagonal_metric(key):
    """Not 48,000 x 48,000 entries for its largest layer."""
    net = nn.LeNet(parametrization=nn.NTP())
    posterior = vf.condition(nn.classification(net), jnp.ones((2, 28, 28, 1)), jnp.arange(2))
    assert isinstance(posterior.metric(jnp.ones(61706)), lx.DiagonalLinearOperator)
    assert float(posterior.log_volume(jnp.ones(61706))) == 0.0


def test_prior_predictive(key):
    model = nn.regression(nn.MLP((2,)))
    draw = handlers.trace(handlers.seed(model, key)).get_trace(X)
    assert draw["y"]["value"].shape == (10, 1)


# --- Evidence: one model, two metrics


@pytest.fixture(scope="module")
def carried():
    """Laplace under the Fisher metric of the likelihood and NTP's flat metric, carried."""
    found = []
    for parametrization in (nn.SP(), nn.NTP()):
        net = nn.MLP((2,), parametrization=parametrization, w_std=1.5)
        flat = vf.geometry.Product(net.metric(nn.NTP(), 2))
        model = vf.attach(nn.regression(net, 0.3), vf.LikelihoodFisher() + flat)
        fit = vf.find_map(
            vf.condition(model, X, Y),
            key=jax.random.key(0),
            initial=net.init(jax.random.key(3), 2),
            starts=1,
        )
        found.append((net, vf.laplace(fit, second_order=False)))
    return found


def test_evidence_with_the_metric_carried(carried):
    (sp, one), (ntp, two) = carried
    assert_allclose(two.evidence.log_z, one.evidence.log_z, rtol=1e-8)
    assert_allclose(two.mode.log_density, one.mode.log_density, rtol=1e-8)
    assert_allclose(two.mode.eigenvalues, one.mode.eigenvalues, rtol=1e-8)
    left, right = (net.apply(a.mode.values, X) for net, a in ((sp, one), (ntp, two)))
    assert_allclose(left, right, rtol=1e-8)


def test_own_flat_metrics():
    """Flat metrics of affine coordinates: one evidence, but other densities and spectra."""
    found = []
    for parametrization in (nn.SP(), nn.NTP()):
        net = nn.MLP((2,), parametrization=parametrization, w_std=1.5)
        fit = vf.find_map(
            vf.condition(nn.regression(net, 0.3), X, Y),
            key=jax.random.key(0),
            initial=net.init(jax.random.key(3), 2),
            starts=1,
        )
        found.append(vf.laplace(fit, second_order=False))
    one, two = found
    assert_allclose(two.evidence.log_z, one.evidence.log_z, rtol=1e-8)
    # Both layers have fan_in 2: NTP's metric is 2 / 1.5^2 times that of SP.
    assert_allclose(two.mode.eigenvalues, one.mode.eigenvalues * 1.5**2 / 2, rtol=1e-8)
    gap = two.mode.log_density - one.mode.log_density
    assert_allclose(gap, -0.5 * 6 * math.log(2 / 1.5**2), rtol=1e-7)


def test_own_flat_metrics_where_the_factor_is_sampled():
    """Then the coordinates are not affine in each other: one model, but two evidences."""
    found = []
    for parametrization in (nn.SP(), nn.NTP()):

        def model(x, y, parametrization=parametrization):
            w_std = numpyro.sample("w_std", dist.LogNormal(0.5, 0.2))
            net = nn.MLP((1,), parametrization=parametrization, w_std=w_std)
            return nn.regression(net, 0.3)(x, y)

        fit = vf.find_map(vf.condition(model, X, Y), key=jax.random.key(0), starts=2)
        found.append(vf.laplace(fit, second_order=False).evidence.log_z)
    assert abs(found[0] - found[1]) > 0.01


# --- Equivalent parameters


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (jnp.tanh, 6 * 8 * 2 * 4),
        (jax.nn.relu, 6 * 2),
        (jax.nn.gelu, 12),
        (jnp.cos, 6 * 8 * 2 * 4),
        (lambda x: 2 * x, 1),
    ],
)
def test_equivalent_modes_are_declared(activation, expected):
    model = nn.regression(nn.MLP((3, 2), activation=activation))
    assert vf.condition(model, X, Y).provenance.equivalent_modes == expected


def test_equivalent_parameters_are_equivalent(key):
    net = nn.MLP((3, 2), b_std=0.7)
    posterior = vf.condition(nn.regression(net), X, Y)
    params = net.init(key, 2)
    order, signs = jnp.array([2, 0, 1]), jnp.array([1.0, -1.0, -1.0])
    turned = {
        **params,
        "layer0.w": (signs[:, None] * params["layer0.w"])[order],
        "layer0.b": (signs * params["layer0.b"])[order],
        "layer1.w": (signs * params["layer1.w"])[:, order],
    }
    density = jax.jit(lambda u: posterior.log_density(u))
    one, two = (density(posterior.unconstrain(p)) for p in (params, turned))
    assert_allclose(two, one, rtol=1e-13)


def test_scaling_of_relu_units_changes_the_prior(key):
    net = nn.MLP((2,), activation=jax.nn.relu)
    params = net.init(key, 2)
    scaled = {"layer0.w": 2.0 * params["layer0.w"], "layer1.w": 0.5 * params["layer1.w"]}
    assert_allclose(net.apply(scaled, X), net.apply(params, X), rtol=1e-13)
    posterior = vf.condition(nn.regression(net), X, Y)
    density = jax.jit(lambda u: posterior.log_density(u))
    one, two = (density(posterior.unconstrain(p)) for p in (params, scaled))
    assert abs(one - two) > 0.1


# --- Networks of other libraries


def test_equinox_network(key):
    module = eqx.nn.MLP(2, 1, 3, 1, jnp.tanh, dtype=float, key=key)
    net = nn.from_function(lambda module, x: jax.vmap(module)(x), module)
    values = net.init(key)
    assert {n: v.shape for n, v in values.items()} == {
        "layers.0.weight": (3, 2), "layers.0.bias": (3,),
        "layers.1.weight": (1, 3), "layers.1.bias": (1,),
    }  # fmt: skip
    # The same function and, with unit priors, the same density as the network of this package.
    own = nn.MLP((3,), parametrization=nn.WithPrior(nn.SP(), nn.NTP()), b_std=1.0)
    ours = {"layers.0.weight": "layer0.w", "layers.0.bias": "layer0.b",
            "layers.1.weight": "layer1.w", "layers.1.bias": "layer1.b"}  # fmt: skip
    params = {ours[name]: value for name, value in values.items()}
    assert_allclose(net.apply(values, X), own.apply(params, X), rtol=1e-13)
    one = log_density(nn.regression(net), (X, Y), {}, values)[0]
    two = log_density(nn.regression(own), (X, Y), {}, params)[0]
    assert_allclose(one, two, rtol=1e-13)


def test_flax_network(key):
    nnx = pytest.importorskip("flax.nnx")
    graph, state = nnx.split(nnx.Linear(2, 1, rngs=nnx.Rngs(0), param_dtype=float))
    net = nn.from_function(lambda state, x: nnx.merge(graph, state)(x), state)
    assert net.apply(net.init(key), X).shape == (10, 1)


def test_function_with_priors_of_its_own():
    prior = lambda name, shape: dist.Gamma(2.0, 1.0).expand(shape).to_event(1)  # noqa: E731
    line = nn.from_function(lambda w, x: x @ w[:, None], jnp.ones(2), prior)
    assert vf.condition(nn.regression(line), X, Y).names == ("params",)
    half = nn.from_function(lambda w, x: x @ w[:, None], jnp.ones(2), 0.5)
    assert_allclose(half.priors["params"].variance, 0.25)


def test_function_with_priors_of_numpyros_modules():
    """One distribution for every entry, or one by site, as in `numpyro.contrib.module`."""
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    net = nn.from_function(lambda p, x: x @ p["w"] + p["b"], params, dist.Normal(0.0, 2.0))
    assert {name: fn.event_shape for name, fn in net.priors.items()} == {"w": (2, 3), "b": (3,)}
    assert_allclose(net.priors["w"].variance, jnp.full((2, 3), 4.0))
    wide = dist.Normal(jnp.zeros(3), jnp.array([1.0, 2.0, 3.0]))  # broadcast, as NumPyro does
    net = nn.from_function(lambda p, x: x, params, {"w": wide, "b": wide.to_event(1)})
    expected = dist.Normal(0.0, jnp.array([1.0, 2.0, 3.0])).expand([2, 3]).log_prob(1.0).sum()
    assert_allclose(net.priors["w"].log_prob(jnp.ones((2, 3))), expected)
    assert net.priors["b"].event_shape == (3,)


# --- Bad input

NET = nn.MLP((3,))
FINE = {"layer0.w": jnp.ones((3, 2)), "layer1.w": jnp.ones((1, 3))}
LABELS = nn.classification(nn.MLP((2,), outputs=3))
MISTAKES = {
    "no hidden layer": (NetworkError, r"`widths` is \(\).*`\(50,\)`", lambda: nn.MLP(())),
    "widths a number": (NetworkError, r"`widths` is 50; .* tuple", lambda: nn.MLP(50)),  # pyright: ignore
    "no unit": (NetworkError, r"`widths` holds 0; .* positive integer", lambda: nn.MLP((3, 0))),
    "no output": (NetworkError, r"`outputs` holds 0; ", lambda: nn.LeNet(outputs=0)),
    "w_std zero": (NetworkError, r"`w_std` is 0.0; .* positive", lambda: nn.MLP(w_std=0.0)),
    "w_std array": (NetworkError, r"`w_std` is Array", lambda: nn.MLP(w_std=jnp.ones(2))),
    "b_std negative": (NetworkError, r"`b_std` is -1; .* or None", lambda: nn.MLP(b_std=-1)),
    "activation": (NetworkError, r"`activation` is 'tanh'", lambda: nn.LeNet(activation="tanh")),  # pyright: ignore
    "parametrization": (
        NetworkError, r"`parametrization` is 'NTP', .*`NTP\(\)`",
        lambda: nn.MLP(parametrization="NTP"),  # pyright: ignore
    ),
    "another's metric": (
        NetworkError, "`parametrization` is None", lambda: NET.metric(None, 2)  # pyright: ignore
    ),
    "features": (NetworkError, r"`params\['layer0.w'\]` has shape \(3, 2\).*\(3, 5\).*features",
                 lambda: NET.apply(FINE, jnp.ones((4, 5)))),
    "rank of x": (DataError, r"`x` has shape \(4,\); .*`x\[:, None\]`",
                  lambda: NET.apply(FINE, jnp.ones(4))),
    "x a number": (DataError, r"`x` has shape \(\); it should have one row",
                   lambda: NET.apply(FINE, 1.0)),  # pyright: ignore
    "integer x": (DataError, "`x` has dtype int64; .* `x / 255.0`",
                  lambda: NET.apply(FINE, jnp.ones((4, 2), int))),
    "no channel": (NetworkError, r"`Conv\(6\)` .* shape \(28, 28\); .*`x\[..., None\]`",
                   lambda: nn.LeNet().parameters((28, 28))),
    "small image": (NetworkError, r"`Conv\(16\)` .* larger than images of \(4, 4\)",
                    lambda: nn.LeNet().parameters((8, 8, 1))),
    "integer params": (NetworkError, r"`params\['layer1.w'\]` is of dtype int64; .*astype",
                       lambda: NET.apply({**FINE, "layer1.w": jnp.ones((1, 3), int)}, X)),
    "half precision": (
        NetworkError, "is of dtype float16; parameters should be float32 or",
        lambda: NET.apply({**FINE, "layer1.w": jnp.ones((1, 3), jnp.float16)}, X),
    ),
    "missing": (NetworkError, r"`params` lacks `layer1.w`; it has \['layer0.w'\]",
                lambda: NET.apply({"layer0.w": FINE["layer0.w"]}, X)),
    "y flat": (DataError, r"`y` has shape \(10,\), .*\(10, 1\).*`y\[:, None\]`",
               lambda: vf.condition(nn.regression(NET), X, Y[:, 0])),
    "y short": (DataError, r"`y` has shape \(9, 1\)",
                lambda: vf.condition(nn.regression(NET), X, Y[:9])),
    "one-hot labels": (DataError, r"`y` has shape \(10, 3\).*shape \(n,\)",
                       lambda: vf.condition(LABELS, X, jnp.ones((10, 3), int))),
    "label too large": (DataError, "`y` holds 8 values outside the support",
                        lambda: vf.condition(LABELS, X, jnp.arange(10) + 1)),
    "one class": (NetworkError, "`network` of a classification has 1 output",
                  lambda: vf.condition(nn.classification(NET), X, jnp.zeros(10, int))),
    "noise": (NetworkError, "`noise` is 0.0; it should be a positive",
              lambda: nn.regression(NET, 0.0)),
    "network": (NetworkError, "`network` is None, which cannot be called",
                lambda: nn.regression(None)),  # pyright: ignore
    "likelihood": (NetworkError, "`likelihood` returned .*; it should return a NumPyro",
                   lambda: nn.supervised(NET, lambda f: f)(X)),  # pyright: ignore
    "no arrays": (NetworkError, "`function` should be a function .* and 0 arrays",
                  lambda: nn.from_function(jnp.dot, {"a": "b"})),
    "integer arrays": (NetworkError, "`a` is of dtype int64; parameters",
                       lambda: nn.from_function(jnp.dot, {"a": jnp.ones(2, int)})),
    "prior": (NetworkError, "`prior` is -1.0; it should be a positive",
              lambda: nn.from_function(jnp.dot, jnp.ones(2), -1.0)),
    "prior's shape": (
        NetworkError, r"`prior` of `params` is .*shape \(2,\)",
        lambda: nn.from_function(jnp.dot, jnp.ones(2), lambda *_: dist.Normal(jnp.zeros(3), 1.0)),
    ),
    "prior of no site": (
        NetworkError, r"`prior` has distributions of \['a'\]; .*\['params'\]",
        lambda: nn.from_function(jnp.dot, jnp.ones(2), {"a": dist.Normal(0.0, 1.0)}),
    ),
    "other params": (NetworkError, r"`params` lacks \['params'\]",
                     lambda: nn.from_function(jnp.dot, jnp.ones(2)).apply({}, X)),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(name, key):
    error, message, mistake = MISTAKES[name]
    with pytest.raises(error, match=message):
        handlers.seed(mistake, key)()


@pytest.mark.float32
def test_single_precision(key):
    net = nn.MLP((3,), parametrization=nn.MuP(), b_std=1.0)
    params = net.init(key, 2)
    x = jnp.ones((4, 2), jnp.float32)
    assert net.apply(params, x).dtype == jnp.float32
    wide = {n: np.asarray(p, np.float64) for n, p in params.items()}
    z = np.tanh(np.ones((4, 2)) @ wide["layer0.w"].T * 3**0.5 + wide["layer0.b"] * 3**0.5)
    expected = z @ wide["layer1.w"].T / 3**0.5 + wide["layer1.b"]
    assert_allclose(net.apply(params, x), expected, rtol=1e-5)
