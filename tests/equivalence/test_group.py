"""Groups of functions: found by tracing, proven by evaluation, acting on parameters."""

import functools
import itertools
import math
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose

import volform as vf
from volform import equivalence as eq, networks as nn
from volform.errors import NetworkError

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (6, 3))
TOKENS = jax.random.normal(KEY, (5, 12))


class Convolutional(eqx.Module):
    """Convolution, flattened, and a linear layer."""

    conv: eqx.nn.Conv2d
    linear: eqx.nn.Linear

    def __init__(self, key: Any):
        self.conv = eqx.nn.Conv2d(1, 4, 3, key=key)
        self.linear = eqx.nn.Linear(4 * 6 * 6, 3, key=key)

    def __call__(self, x: Any) -> Any:
        return self.linear(jax.nn.relu(self.conv(x)).ravel())


class Residual(eqx.Module):
    """A stream of width 8 that a block of width 5 reads through a layer norm, and adds to."""

    first: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, key: Any):
        keys = jax.random.split(key, 4)
        self.first, self.norm = eqx.nn.Linear(3, 8, key=keys[0]), eqx.nn.LayerNorm(8)
        self.up, self.down = eqx.nn.Linear(8, 5, key=keys[1]), eqx.nn.Linear(5, 8, key=keys[2])
        self.last = eqx.nn.Linear(8, 2, key=keys[3])

    def __call__(self, x: Any) -> Any:
        h = self.first(x)
        return self.last(h + self.down(jnp.tanh(self.up(self.norm(h)))))


def _mapped(net: Any, x: Any) -> Any:
    return jax.vmap(net)(x)


def _layers(activation: Any, *widths: int) -> tuple[Any, dict[str, jax.Array]]:
    """Linear layers without volform, with biases."""
    keys = jax.random.split(KEY, len(widths))
    sizes = list(itertools.pairwise(widths))
    params = {f"w{i}": jax.random.normal(keys[i], (b, a)) for i, (a, b) in enumerate(sizes)}
    params |= {f"b{i}": jnp.full(b, 0.3) for i, (_, b) in enumerate(sizes)}

    def f(p: Any, x: Any) -> Any:
        for i in range(len(sizes)):
            x = (activation(x) if i else x) @ p[f"w{i}"].T + p[f"b{i}"][None]
        return x

    return f, params


MLP = nn.MLP(widths=(5, 4), outputs=2, b_std=1.0)
IMAGES = jax.random.normal(KEY, (4, 1, 8, 8))
SHOWN = {
    "mlp": "S5 x S4, a sign a unit: 1,474,560 elements",
    "equinox mlp": "S6 x S6, a scaling a unit: 518",
    "convolution": "S4, a scaling a unit: 24 elements and 4 dimensions",
    "residual": "S8 x S5, a sign a unit, a sign of all of first",
    "attention": "S4 x S3 x S3, a sign a unit",
}


@functools.cache
def case(name: str) -> tuple[Any, Any, Any]:
    """The function, its parameters and its inputs."""
    if name == "mlp":
        return MLP.apply, MLP.init(KEY, 3), X
    if name == "attention":
        return lambda m, x: m(x, x, x), eqx.nn.MultiheadAttention(4, 12, key=KEY), TOKENS
    if name == "convolution":
        return _mapped, Convolutional(KEY), IMAGES
    return _mapped, Residual(KEY) if name == "residual" else eqx.nn.MLP(3, 2, 6, 2, key=KEY), X


@pytest.fixture(scope="module")
def groups() -> dict[str, eq.Group]:
    return {name: eq.symmetry(*case(name)) for name in SHOWN}


@pytest.mark.parametrize("name", SHOWN)
def test_groups_of_architectures(groups: dict[str, eq.Group], name: str) -> None:
    f, params, x = case(name)
    group = groups[name]
    assert str(group).startswith(SHOWN[name])
    assert group.defect < 1e-13
    moved = group.draw(jax.random.key(3))(params)
    gap = max(
        float(jnp.max(jnp.abs(a - b)))
        for a, b in zip(
            jax.tree.leaves(eqx.filter(moved, eqx.is_array)),
            jax.tree.leaves(eqx.filter(params, eqx.is_array)),
            strict=True,
        )
    )
    assert gap > 0.1
    assert_allclose(f(moved, x), f(params, x), rtol=0, atol=1e-12)


def test_attention_has_gl_of_each_head(groups: dict[str, eq.Group]) -> None:
    """The nullity of the Jacobian is that of two GL(3) in each of four heads."""
    f, params, _ = case("attention")
    arrays, rest = eqx.partition(params, eqx.is_array)
    flat, unravel = ravel_pytree(arrays)
    x = jax.random.normal(KEY, (40, 5, 12))

    def outputs(u: Any) -> Any:
        return jax.vmap(lambda x: f(eqx.combine(unravel(u), rest), x))(x).ravel()

    values = np.linalg.svd(np.asarray(jax.jacobian(outputs)(flat)), compute_uv=False)
    group = groups["attention"]
    assert group.dimension == int(np.sum(values < 1e-9 * values[0])) == 4 * 2 * 9
    fields = jax.vmap(lambda t: ravel_pytree(eqx.filter(t, eqx.is_array))[0])(
        eqx.filter(group.generators(params), eqx.is_array)
    )
    assert np.linalg.matrix_rank(np.asarray(fields)) == 72
    assert len(group.labels()) == 72


@pytest.mark.parametrize(
    ("activation", "count", "orbit"),
    [
        (jax.nn.relu, 2, 2),
        (jnp.tanh, 0, 0),
        (jnp.square, 2, 2),
        (jnp.exp, 2, 2),
        (lambda u: u, 6, 5),
    ],
)
def test_affine_algebra_of_two_units(activation: Any, count: int, orbit: int) -> None:
    f, params = _layers(activation, 1, 2, 1)
    group = eq.symmetry(f, params, X[:, :1])
    assert group.dimension == count
    fields = jax.vmap(lambda t: ravel_pytree(t)[0])(group.generators(params))
    assert np.linalg.matrix_rank(np.asarray(fields)) == orbit if count else fields.size == 0
    for key in range(3):
        moved = group.draw(jax.random.key(key))(params)
        assert_allclose(f(moved, X[:, :1]), f(params, X[:, :1]), rtol=0, atol=1e-12)


def test_softmax_is_translated_and_products_are_scaled() -> None:
    f, params = _layers(jnp.tanh, 3, 4, 3)
    assert eq.symmetry(f, params, X).dimension == 0
    assert eq.symmetry(lambda p, x: jax.nn.softmax(f(p, x)), params, X).dimension == 5
    square = eq.symmetry(lambda p, x: p["a"] @ p["a"].T, {"a": X}, X)
    assert square.labels() == [f"rotation of a, unit {i}, {j}" for i, j in ((0, 1), (0, 2), (1, 2))]


def test_generators_can_be_traced() -> None:
    f, params = _layers(jax.nn.relu, 3, 4, 2)
    group = eq.symmetry(f, params, X)
    fields = jax.jit(group.generators)(params)
    for number in range(group.dimension):
        move = jax.tree.map(lambda t, n=number: t[n], fields)
        assert np.abs(jax.jvp(lambda p: f(p, X), (params,), (move,))[1]).max() < 1e-13
    assert group.labels()[1] == "scaling of b0, unit 1"


def test_group_of_lenet() -> None:
    net = nn.LeNet()
    params, x = net.init(KEY, (28, 28, 1)), jax.random.normal(KEY, (2, 28, 28, 1))
    start = time.process_time()
    group = eq.symmetry(net.apply, params, x)
    assert time.process_time() - start < 20.0  # two seconds alone, with XLA's optimizations
    assert str(group).startswith("S6 x S16 x S120 x S84, a sign a unit: 10^409.6 elements")
    assert_allclose(group.log_order / math.log(10.0), 409.5565089296899, rtol=1e-12)


@pytest.mark.slow
def test_scalings_of_lenet() -> None:
    net = nn.LeNet(activation=jax.nn.relu)
    params, x = net.init(KEY, (28, 28, 1)), jax.random.normal(KEY, (2, 28, 28, 1))
    assert eq.symmetry(net.apply, params, x).dimension == 226


def test_dead_units_fake_nothing() -> None:
    """At its own parameters a dead unit may be turned, scaled and moved; the group knows none."""
    f, params = _layers(jax.nn.relu, 3, 4, 2)
    dead = params | {"b0": params["b0"].at[0].set(-1e3)}
    assert repr(eq.symmetry(f, dead, X)).startswith("S4, a scaling a unit: 24 elements")
    assert eq.symmetry(f, dead, X).dimension == 4


def test_what_is_not_understood_is_named() -> None:
    def f(p: Any, x: Any) -> Any:
        return jnp.sort(jnp.tanh(x @ p["w0"].T)) @ p["w1"].T

    group = eq.symmetry(f, {"w0": jnp.ones((4, 3)), "w1": jnp.ones((2, 4))}, X)
    assert group.units == ()
    assert group.unknown == ("sort",)
    assert "a subgroup, as 'sort' is not understood" in str(group)


def test_loops_and_branches_are_followed() -> None:
    def f(p: Any, x: Any) -> Any:
        def step(h: Any, u: Any) -> Any:
            h = jnp.tanh(p["v"] @ u + p["w"] @ h)
            return h, h.sum()

        h, _ = jax.lax.scan(step, jnp.zeros(4), x)
        h = jax.lax.cond(x.sum() > 0.0, lambda h: 2.0 * h, lambda h: h, h)
        h = jax.lax.fori_loop(0, 3, lambda i, h: h + p["b"] * i, h)
        return jax.checkpoint(lambda h: p["o"] @ h)(h)

    keys = jax.random.split(KEY, 4)
    shapes = {"v": (4, 3), "w": (4, 4), "b": (4,), "o": (2, 4)}
    params = {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}
    group = eq.symmetry(f, params, X)
    assert [units.size for units in group.units] == [4]
    assert len(group.units[0].members) == 5


@given(seed=st.integers(0, 1000))
def test_copies_have_one_canonical_form(groups: dict[str, eq.Group], seed: int) -> None:
    group, params = groups["mlp"], case("mlp")[1]
    moved = group.draw(jax.random.key(seed))(params)
    one, other = group.canonical(params), group.canonical(moved)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert_allclose(MLP.apply(one, X), MLP.apply(params, X), rtol=0, atol=1e-13)


def test_stabilizer(groups: dict[str, eq.Group]) -> None:
    group, params = groups["mlp"], dict(case("mlp")[1])
    assert group.stabilizer(params).log_order == 0.0
    w, b, v = params["layer0.w"], params["layer0.b"], params["layer1.w"]
    alike = params | {
        "layer0.w": w.at[3].set(-w[1]),
        "layer0.b": b.at[3].set(-b[1]),
        "layer1.w": v.at[:, 3].set(-v[:, 1]),
    }
    found = group.stabilizer(alike)
    assert found.alike == (("layer0", (1, 3)),)
    assert_allclose(found.log_order, math.log(2.0))
    idle = params | {
        "layer0.w": w.at[2].set(0.0),
        "layer0.b": b.at[2].set(0.0),
        "layer1.w": v.at[:, 2].set(0.0),
    }
    assert group.stabilizer(idle).idle == (("layer0", (2,)),)
    linear = {"w0": X[:4], "w1": X[:2] @ X[:4].T}
    group = eq.symmetry(lambda p, x: x @ p["w0"].T @ p["w1"].T, linear, X)
    assert (group.dimension, group.stabilizer(linear).dimension) == (16, 2)


# --- Input that no group is found of


def test_bad_input_is_refused(groups: dict[str, eq.Group]) -> None:
    f, params = _layers(jnp.tanh, 3, 4, 2)
    random = np.random.default_rng(0)
    for wrong, x, words in (
        (lambda p, x: f(p, x) * random.normal(), X, "another function each time"),
        (lambda p, x: f(p, x) if p["w0"].sum() > 0 else x, X, "in Python"),
        (lambda p, x: 0.0 * f(p, x), X, "does not change with its parameters"),
        (lambda p, x: jnp.argmax(f(p, x)), X, "no floating-point array"),
        (lambda p, x: jnp.log(f(p, x)), X, "not finite at random parameters"),
        (f, X[:0], "without an entry"),
    ):
        with pytest.raises(NetworkError, match=words):
            eq.symmetry(wrong, params, x)
    with pytest.raises(NetworkError, match="`n` in `params` of symmetry is of dtype int"):
        eq.symmetry(lambda p, x: x * p["n"], {"n": jnp.arange(3)}, X)
    with pytest.raises(NetworkError, match="holds no array"):
        eq.symmetry(lambda p, x: x, {}, X)
    with pytest.raises(NetworkError, match="this group is of a network with"):
        groups["mlp"].canonical(params)
    with pytest.raises(NetworkError, match="`key` of draw"):
        groups["mlp"].draw(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(NetworkError, match="holds traced arrays"):
        jax.jit(lambda p: eq.symmetry(f, p, X).log_order)(params)


def test_one_network_has_one_evidence() -> None:
    """`from_function` left log 8 out."""
    net = nn.MLP(widths=(2,))
    prior = lambda name, shape: net_prior(shape)  # noqa: E731

    def net_prior(shape: tuple[int, ...]) -> Any:
        return vf.networks.network.dist.Normal(0.0, shape[-1] ** -0.5).expand(shape).to_event(2)

    function = nn.from_function(net.apply, net.init(KEY, 3), prior)
    y = jnp.sin(X[:, :1])
    posteriors = [vf.condition(nn.regression(n, 0.3), X, y) for n in (net, function)]
    one, other = (vf.laplace(posterior, key=KEY).evidence for posterior in posteriors)
    assert [p.provenance.equivalent_modes for p in posteriors] == [8, 8]
    # At the mode the two units are alike.
    assert "times 4 equivalent modes (+1.386), of 8 by the symmetries" in one.note
    assert one.note == other.note
    assert_allclose(one.log_z, other.log_z, rtol=1e-9)


def test_inputs_that_are_all_alike_stay_in_place() -> None:
    f, params = _layers(jnp.tanh, 3, 4, 2)
    group = eq.symmetry(f, params, jnp.ones((6, 3)))
    assert [units.size for units in group.units] == [4]
