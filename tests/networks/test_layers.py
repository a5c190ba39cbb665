"""One value read in several ways: function, maps, NumPyro model, Laplace, copies, kernel."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import volform as vf
from volform import architectures, kernels as k, networks as nn
from volform.errors import KernelError, MovedError, NetworkError
from volform.inference import GGN, Diagonal, Full

RNG = np.random.default_rng(7)
VECTORS, SEQUENCES = jnp.asarray(RNG.normal(size=(4, 3))), jnp.asarray(RNG.normal(size=(3, 4, 2)))
IMAGES = jnp.asarray(RNG.normal(size=(3, 5, 4, 2)))
TOKENS = jnp.asarray(RNG.integers(0, 5, size=(4, 3)))
STD = 1.4, 0.3
NETS: dict[str, tuple[nn.Layer, Any]] = {
    "residual": (
        nn.serial(nn.Dense(3, *STD), nn.residual(nn.Erf(), nn.Dense(3)), nn.Dense(2)),
        VECTORS,
    ),
    "normalized": (
        nn.serial(nn.Dense(3, *STD), nn.LayerNorm(), nn.Gelu(), nn.Dropout(0.5), nn.Dense(2)),
        VECTORS,
    ),
    "gated": (
        nn.serial(nn.multiplied(nn.Dense(3), nn.serial(nn.Dense(3), nn.Erf())), nn.Dense(2)),
        VECTORS,
    ),
    "attention": (
        nn.serial(nn.GlobalSelfAttention(3, 2, 2, 2, *STD), nn.GlobalAvgPool(), nn.Dense(2)),
        SEQUENCES,
    ),
    "images": (
        nn.serial(
            nn.concatenated(nn.Conv(2, (2, 2), *STD), nn.Conv(1, (3, 3))),
            nn.Erf(),
            nn.AvgPool((2, 2)),
            nn.Conv(2, (2, 1), strides=(2, 1), padding=nn.Padding.CIRCULAR),
            nn.Erf(),
            nn.Flatten(),
            nn.Dense(2),
        ),
        IMAGES,
    ),
    "decoder": (
        nn.serial(
            nn.ConvTranspose(2, (3, 2), *STD, strides=(2, 1), padding=nn.Padding.CIRCULAR),
            nn.Erf(),
            nn.ConvTranspose(2, (2, 2), strides=(1, 3), padding=nn.Padding.VALID),
            nn.Erf(),
            nn.GlobalSumPool(),
            nn.Dense(2),
        ),
        IMAGES[:, :2, :2],
    ),
    "local": (
        nn.serial(
            nn.ConvLocal(2, (2, 2), *STD, strides=(2, 1)),
            nn.Erf(),
            nn.SumPool((2, 2), strides=(1, 2)),
            nn.Flatten(),
            nn.Dense(2),
        ),
        IMAGES[:, :, :3],
    ),
    "tokens": (
        nn.serial(
            nn.summed(nn.Embedding(5, 3, 1.4), nn.Embedding(5, 3)),
            nn.Aggregate(((0.0, 1.0, 0.5), (1.0, 0.0, 0.0), (0.5, 0.0, 1.0))),
            nn.multiplied(nn.Conv(2, (2,)), nn.serial(nn.Conv(2, (1,)), nn.Softmax())),
            nn.GlobalAvgPool(),
            nn.Dense(2),
        ),
        TOKENS,
    ),
}
CASES = pytest.mark.parametrize("name", NETS)


@CASES
def test_maps_compose_to_the_function(name: str) -> None:
    net, x = NETS[name]
    params = net.init(jax.random.key(1), x.shape, parametrization=nn.MuP())
    z = x
    maps = net.maps(params, parametrization=nn.MuP())
    for f in maps:
        z = f(z)
    assert len(maps) == len(net.layers)  # pyright: ignore[reportAttributeAccessIssue]
    assert_allclose(z, net.apply(params, x, parametrization=nn.MuP()), rtol=1e-14)


@CASES
def test_a_network_is_its_layers_by_site(name: str) -> None:
    """The same function; and the prior of each site is the law that `init` draws from."""
    net, x = NETS[name]
    for scaling in (nn.SP(), nn.NTP(), nn.MuP()):
        model = nn.Network(net, scaling)
        params = model.init(jax.random.key(2), x.shape[1:])
        tree = net.init(jax.random.key(0), x.shape, parametrization=scaling)
        arrays = iter(params.values())
        same = _in_order(tree, lambda _, arrays=arrays: next(arrays))
        assert_allclose(
            model.apply(params, x), net.apply(same, x, parametrization=scaling), rtol=1e-14
        )
        posterior = vf.condition(nn.classification(model), x, jnp.arange(len(x)) % 2)
        assert set(posterior.names) == set(params)
        u = posterior.unconstrain(params)
        prior = sum(
            float(dist.Normal(0.0, p.scaling.deviation).log_prob(params[p.name]).sum())
            for p in model.parameters(x.shape[1:])
        )
        fit = jax.nn.log_softmax(model.apply(params, x))
        likelihood = sum(float(fit[i, i % 2]) for i in range(len(x)))
        assert_allclose(posterior.log_density_lebesgue(u), prior + likelihood, rtol=1e-12)


def _in_order(tree: Any, f: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _in_order(part, f) for key, part in tree.items()}
    return tuple(_in_order(part, f) for part in tree) if isinstance(tree, tuple) else f(tree)


@CASES
def test_curvature_by_layers_is_that_of_the_matrix(name: str) -> None:
    """Features and what flows back, at every position, give the diagonal of the dense GGN."""
    net, x = NETS[name]
    posterior = vf.condition(nn.classification(net), x, jnp.arange(len(x)) % 2)
    u = jnp.asarray(np.random.default_rng(3).normal(size=posterior.dim))
    split = GGN().split(posterior, u)
    whole = Full().precision(split).as_matrix()
    assert_allclose(
        Diagonal().precision(split).as_matrix(), np.diag(np.diag(whole)), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.ConvTranspose(2, (3,), 1.4, strides=(2,)), SEQUENCES),
        (nn.ConvLocal(2, (3,), 1.4, strides=(2,)), SEQUENCES),
        (nn.Embedding(5, 2, 1.4), TOKENS),
    ],
)
def test_one_linear_layer_has_exact_factors(layer: nn.Layer, x: jax.Array) -> None:
    """Outputs that are linear in weights, with Gaussian noise: the evidence is that of a Normal."""
    net = nn.serial(layer, nn.Flatten())
    params = net.init(jax.random.key(0), x.shape)
    (slopes,) = jax.tree.leaves(jax.jacrev(lambda p: net.apply(p, x).ravel())(params))
    slopes = slopes.reshape(len(slopes), -1)
    y = jnp.sin(jnp.arange(1.0, len(slopes) + 1))
    law = dist.MultivariateNormal(0 * y, slopes @ slopes.T + 0.25 * jnp.eye(len(y)))
    posterior = vf.condition(nn.regression(net, 0.5), x, y.reshape(len(x), -1))
    found = vf.laplace(posterior, curvature=GGN(), structure=vf.Kronecker()).evidence
    assert_allclose(found.log_z, law.log_prob(y), rtol=1e-9)


# --- Copies


def _copies(*layers: nn.Layer, x: jax.Array = VECTORS) -> int | None:
    model = nn.regression(nn.Network(nn.serial(*layers)), 0.5)
    provenance = vf.condition(model, x, jnp.ones((len(x), 1))).provenance
    assert not provenance.uncounted
    return provenance.equivalent_modes


LAST = nn.Dense(1)
FAR = nn.Elementwise(lambda u: jnp.where(jnp.abs(u) > 4.0, u, jnp.tanh(u) ** 2))
POOLED = nn.Conv(3, (2, 2)), nn.Erf(), nn.AvgPool((2, 2)), nn.Flatten(), LAST


@pytest.mark.parametrize(
    ("layers", "count"),
    [
        ((nn.Dense(3), nn.Erf(), LAST), 6 * 8),
        ((nn.Dense(3), nn.Relu(), nn.Dense(3), nn.Cos(), LAST), 6 * 48),
        ((nn.Dense(3), nn.LayerNorm(), nn.Erf(), LAST), 6 * 2),
        ((nn.Dense(3), nn.LayerNorm(), nn.Relu(), LAST), 6),
        ((nn.Dense(3), nn.Cos(), nn.LayerNorm(), LAST), 48),
        ((nn.Dense(3), FAR, LAST), 6),
        ((nn.Dense(3), nn.Elementwise(lambda u: 1e-8 * jnp.exp(u)), LAST), 6),
        ((nn.Dense(3), nn.Elementwise(lambda u: jnp.clip(u, -7.0, 10.0)), LAST), 6),
        ((nn.Dense(3), nn.Erf(), nn.Identity(), LAST), 48),
        ((nn.Dense(3), LAST), 1),  # a continuum, of which none counts
        ((nn.Dense(3), nn.residual(nn.Erf(), nn.Dense(3)), nn.Erf(), LAST), 48),
    ],
)
def test_copies_of_units(layers: tuple[nn.Layer, ...], count: int) -> None:
    assert _copies(*layers) == count


def test_copies_are_counted_on_few_of_many_examples_and_hold_for_all() -> None:
    """The second of 600 sees the signs of the units, and is none of the few."""
    x = jax.random.normal(jax.random.key(0), (600, 3))
    x = x.at[:, 2].set(0.0)
    body = nn.serial(nn.Dense(3), nn.Erf(), nn.Dense(1))
    params = body.init(jax.random.key(1), (1, 2))

    def apply(params, x):
        return body.apply(params, x[:, :2]) + x[:, 2:] * params[0]["w"].sum()

    model = nn.regression(nn.from_function(apply, params))
    counts = []
    for data in (x, x.at[1, 2].set(1.0)):
        posterior = vf.condition(model, data, jnp.sin(data[:, :1]))
        counts.append(posterior.provenance.equivalent_modes)
    assert counts == [48, 6]


def test_few_examples_that_see_nothing_or_too_little() -> None:
    """Doses given in turn; inputs that are zero but for three; and units that saturate far out."""
    turns = jnp.asarray((np.arange(631) % 10) / 10.0)[:, None]
    zeros = jnp.zeros((600, 1)).at[jnp.array([1, 77, 301])].set(jnp.array([[0.3], [-0.5], [0.9]]))
    first = vf.condition(nn.regression(nn.MLP((3,), activation=jnp.tanh)), turns, turns)
    second = vf.condition(nn.regression(nn.MLP((3,), activation=jnp.tanh)), zeros, zeros)
    clipped = nn.MLP((3,), activation=lambda z: jnp.clip(z, -1.0, 1.0), b_std=1.0)
    third = vf.condition(nn.regression(clipped), 0.01 * turns, turns)
    assert [p.provenance.equivalent_modes for p in (first, second, third)] == [48, 48, 48]


def test_a_model_that_insists_on_its_rows() -> None:
    net = nn.MLP((3,), activation=jnp.tanh)

    def model(x, y):
        if len(x) != 600:
            raise RuntimeError("rows")
        nn.regression(net)(x, y)

    x = jnp.linspace(-1.0, 1.0, 600)[:, None]
    assert vf.condition(model, x, x).provenance.equivalent_modes == 48


def test_copies_of_channels_and_heads() -> None:
    assert _copies(*POOLED, x=IMAGES[..., :1]) == 48
    attention = nn.GlobalSelfAttention(3, 2, 2, 2), nn.GlobalAvgPool(), LAST
    # Heads change places; what lies within one can be rotated, and the last units too.
    assert _copies(*attention, x=SEQUENCES) == 2


def test_copies_of_transposed_and_pooled_channels() -> None:
    decoder = nn.ConvTranspose(3, (3,), strides=(2,)), nn.Erf(), nn.GlobalSumPool(), LAST
    assert _copies(*decoder, x=SEQUENCES) == 48
    assert _copies(nn.Embedding(5, 3), nn.Erf(), nn.Flatten(), LAST, x=TOKENS) == 48


def test_exchanges_of_taps_are_said_not_to_be_counted() -> None:
    """Where windows do not overlap, taps before a mean over pixels change places: 2 for each unit.

    Pixels that are the same in all examples are none: the data see the mean of their weights.
    """
    up = nn.ConvTranspose(2, (2,), strides=(2,)), nn.Erf(), nn.GlobalAvgPool(), LAST
    posterior = vf.condition(nn.regression(nn.serial(*up), 0.5), SEQUENCES, jnp.ones((3, 1)))
    assert posterior.provenance.uncounted == ("layer0.w", "layer1.w")
    evidence = vf.laplace(
        posterior, at=posterior.values(jnp.ones(posterior.dim)), curvature=vf.GGN()
    ).evidence
    assert "further copies by symmetries of a network are not counted" in evidence.note
    blank = IMAGES[..., :1].at[:, :2].set(0.0)
    flat = nn.Conv(3, (2, 2)), nn.Erf(), nn.Flatten(), LAST
    assert _copies(*flat, x=blank) == 48


def test_exchanges_at_one_pixel_are_said_not_to_be_counted() -> None:
    """They are copies: of 48 for each of two pixels, 48 at both at once are counted."""
    net = nn.serial(nn.ConvLocal(3, (2,), strides=(2,)), nn.Erf(), nn.Flatten(), LAST)
    first, *middle, last = net.init(jax.random.key(4), SEQUENCES.shape)
    other = first["w"].at[0].set(first["w"][0, ::-1])
    moved = last["w"].at[:, :3].set(last["w"][:, 2::-1])
    wanted = net.apply((first, *middle, last), SEQUENCES)
    assert_allclose(net.apply(({"w": other}, *middle, {"w": moved}), SEQUENCES), wanted, rtol=1e-12)
    posterior = vf.condition(nn.regression(net, 0.5), SEQUENCES, jnp.ones((3, 1)))
    assert posterior.provenance.equivalent_modes == 48
    assert posterior.provenance.uncounted == ("layer0.w", "layer1.w")


def test_layer_norm_leaves_places_and_not_signs() -> None:
    net = nn.serial(nn.Dense(3), nn.LayerNorm(), nn.Erf(), nn.Dense(1))
    first, *rest, last = net.init(jax.random.key(4), VECTORS.shape)
    order, sign = jnp.array([2, 0, 1]), jnp.array([1.0, -1.0, 1.0])
    placed = {"w": first["w"][order]}, *rest, {"w": last["w"][:, order]}
    turned = {"w": sign[:, None] * first["w"]}, *rest, {"w": sign * last["w"]}
    together = {"w": -first["w"]}, *rest, {"w": -last["w"]}
    wanted = net.apply((first, *rest, last), VECTORS)
    assert_allclose(net.apply(placed, VECTORS), wanted, rtol=1e-12)
    assert_allclose(net.apply(together, VECTORS), wanted, rtol=1e-12)
    assert np.abs(net.apply(turned, VECTORS) - wanted).max() > 1e-3


def test_all_copies_are_counted() -> None:
    y = jnp.sin(VECTORS[:, :1])
    plain = nn.serial(nn.Dense(2), nn.Erf(), nn.Dense(1))
    skip = nn.serial(nn.Dense(2), nn.residual(nn.Erf(), nn.Dense(2)), nn.Dense(1))
    network = nn.Network(plain)
    params = network.init(jax.random.key(0), 3)
    function = nn.from_function(lambda p, x: network.apply(p, x), params)
    notes = []
    for net in (plain, skip, function):
        posterior = vf.condition(nn.regression(net, 0.5), VECTORS, y)
        found = vf.laplace(posterior, curvature=vf.GGN(), refuse=False).evidence
        notes.append("copies by symmetries of a network are not counted" in found.note)
    assert notes == [False, False, False]


def test_of_copies_as_high_as_each_other_the_one_that_converged_counts() -> None:
    """The highest by 10^-14 of 88 ended at a gradient of 9e-7, and was called a kink."""
    x = jax.random.normal(jax.random.key(0), (12, 2))
    net = nn.serial(nn.Dense(3, 2.0, 1.0), nn.residual(nn.Erf(), nn.Dense(3)), nn.Dense(1))
    fit = vf.find_map(vf.condition(nn.regression(net, noise=0.1), x, jnp.sin(x[:, :1])))
    assert fit.converged
    assert len(fit.modes) > 10
    assert_allclose([float(mode.at.value) for mode in fit.modes[:10]], fit.at.value, rtol=1e-8)


# --- Questions that have no answer


class Softplus(nn.Activation):
    def __call__(self, u: Any) -> Any:
        return jax.nn.softplus(u)


class Doubled(nn.Pointwise):
    def forward(self, params: Any, x: Any, place: nn.Place) -> Any:
        return 2.0 * x


def test_layers_of_ones_own() -> None:
    """Functions and NumPyro models at once; a kernel when one is registered."""
    for layer in (Softplus(), Doubled()):
        net = nn.serial(nn.Dense(4), layer, nn.Dense(1))
        posterior = vf.condition(nn.regression(net), VECTORS, jnp.ones((4, 1)))
        assert posterior.dim == 16
        with pytest.raises(NetworkError, match=f"`{type(layer).__name__}` has no kernel .*regist"):
            k.kernel(net, VECTORS)
    k.propagate.register(Doubled, lambda layer, state, context: state)
    assert_allclose(
        k.kernel(nn.serial(nn.Dense(4), Doubled(), nn.Dense(1)), VECTORS).nngp,
        k.kernel(nn.serial(nn.Dense(4), nn.Dense(1)), VECTORS).nngp,
    )


def test_parameters_of_another_network_are_told() -> None:
    net = nn.serial(nn.Dense(4), nn.Relu(), nn.Dense(1))
    params = net.init(jax.random.key(0), VECTORS.shape)
    for wrong in ({}, {"a": 1}, params[:2], None):
        with pytest.raises(NetworkError, match=r"`params` is a .* 3 parts, .*`init`"):
            net.apply(wrong, VECTORS)
    with pytest.raises(NetworkError, match=r"`params` of `Dense\(4\)` is .*'w'"):
        net.apply(({}, *params[1:]), VECTORS)


def test_mistakes_are_told() -> None:
    net = nn.serial(nn.Dense(4), nn.Relu())
    probabilities = nn.serial(net, nn.serial(nn.Dense(2), nn.Softmax()))
    for network in (probabilities, nn.Network(probabilities)):
        with pytest.raises(NetworkError, match=r"`network` ends in Softmax.*`supervised\("):
            nn.classification(network)
    with pytest.raises(MovedError, match=r"`net.kernel\(x\)` is now `volform.kernels.kernel"):
        _ = net.kernel
    with pytest.raises(MovedError, match=r"is now `volform.networks.Dense`"):
        k.Dense  # noqa: B018  # pyright: ignore
    with pytest.raises(NetworkError, match=r"`layers` is 3; it should be a layer"):
        nn.Network(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(NetworkError, match=r"`network` ends in ABRelu.*Dense\(1\)\)`"):
        architectures.finite_evidence(nn.Network(net), VECTORS, jnp.ones(4), noise=0.1)
    with pytest.raises(KernelError, match="`noise`"):
        architectures.finite_evidence(nn.MLP((3,)), VECTORS, jnp.ones(4), noise=0.0)


def test_residual_is_a_sum() -> None:
    layers = nn.Erf(), nn.Dense(3)
    spelled = nn.summed(nn.Identity(), nn.serial(*layers))
    params = spelled.init(jax.random.key(0), VECTORS.shape)
    assert_allclose(
        nn.residual(*layers).apply(params, VECTORS), spelled.apply(params, VECTORS), rtol=0
    )
    assert math.isclose(float(nn.residual(*layers).apply(params, 0.0 * VECTORS).sum()), 0.0)
