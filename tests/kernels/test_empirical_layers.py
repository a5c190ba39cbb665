"""Empirical tangent kernels of many architectures against products of whole Jacobians."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from tests.kernels.finite_nets import CASES, VECTORS, full_kernel, leafwise, normal

import volform as vf
from volform import kernels as k, networks as nn
from volform.errors import NetworkError, OperatorError
from volform.geometry import DiagonalField, MatrixField, Product
from volform.kernels import OutputPairs, empirical_blocks
from volform.kernels.gradients import differentiate, inner_products
from volform.kernels.linear_layers import linear_layers
from volform.networks.programs import written_out

# Entries of the parameters that are multiplied into activations, and those that are their biases.
FOUND = {
    "lenet": ({"c1", "c2", "w3", "w4"}, {"b1", "b2", "b3"}),
    "strided": ({"c1", "c3"}, {"b"}),
    "residual": ({"in", "a", "b", "out"}, set()),
    "transformer": ({"q", "k", "v", "o", "up", "down"}, set()),
    "batched weights": ({"a", "b"}, set()),
    "shared": ({"u"}, set()),
    "not linear": (set(), set()),
    "scaled": ({"w", "v", "b"}, set()),
    "biases": ({"w", "v", "u", "t", "z"}, {"turned", "zero"}),
    "images out": ({"c"}, {"b"}),
    "control flow": ({"w", "v"}, set()),
}


@pytest.fixture(autouse=True)
def functions_as_users_write_them():
    with jax.numpy_rank_promotion("allow"):
        yield


def close(found, expected, rtol=1e-12):
    expected = np.asarray(expected)
    found = np.asarray(found).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


def reduced(full, outputs):
    each = np.einsum("...oo->...o", full)
    return {
        OutputPairs.MEAN: each.mean(-1), OutputPairs.TRACE: each.sum(-1), OutputPairs.EACH: each,
        OutputPairs.ALL: full,
    }[outputs]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_equals_the_product_of_jacobians(name):
    f, params, x = CASES[name]()
    expected = full_kernel(f, params, x, x[:3])
    close(k.empirical_ntk(f, params, x, x[:3], outputs=OutputPairs.ALL, chunk=2), expected)
    own = k.empirical_ntk(f, params, x)
    close(own, reduced(full_kernel(f, params, x, x), OutputPairs.MEAN))
    np.testing.assert_array_equal(own, own.T)


@pytest.mark.parametrize("is_factored", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_in_factors_and_by_gradients(name, is_factored):
    f, params, x = CASES[name]()
    x, params = jnp.asarray(x), jax.tree.map(jnp.asarray, params)
    roots = [jnp.asarray(0.5 + i) for i in range(len(jax.tree.leaves(params)))]
    found = differentiate(f, params, x[0], roots, OutputPairs.MEAN, 1)
    layers = tuple((layer, is_factored) for layer, _ in found.layers)
    found = dataclasses.replace(found, layers=layers)
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    inverse = np.repeat([float(root) ** 2 for root in roots], sizes)
    metric = MatrixField(lambda *_, **__: jnp.diag(1 / inverse))
    expected = full_kernel(f, params, x, x[:2], lambda p: metric(ravel_pytree(p)[0]))
    gradients = jax.jit(found.gradients)(x)
    kept = sum(leaf[0].size for leaf in jax.tree.leaves(gradients))
    biased = [layer.sizes[:2] for layer, _ in layers if layer.bias is not None]
    assert kept == found.kept + (sum(a * b for a, b in biased) if is_factored else 0)
    for outputs in OutputPairs:
        pair = gradients, jax.tree.map(lambda leaf: leaf[:2], gradients)
        close(inner_products(outputs, *pair), reduced(expected, outputs))


@pytest.mark.parametrize("name", FOUND)
def test_layers_that_are_found(name):
    f, params, x = CASES[name]()
    closed = written_out(lambda p, x: f(p, x[None]), params, jnp.asarray(x[0]))
    layers = linear_layers(closed, len(params))
    names = sorted(params)
    weights = {names[layer.leaf] for layer in layers}
    assert (weights, {names[layer.bias[0]] for layer in layers if layer.bias}) == FOUND[name]


@pytest.mark.parametrize("name", ["plain", "NTP", "equinox"])
def test_dense_networks_are_in_factors_altogether(name):
    f, params, x = CASES[name]()
    closed = written_out(lambda p, x: f(p, x[None]), params, jnp.asarray(x[0]))
    count = len(jax.tree.leaves(params))
    assert set.union(*(layer.leaves for layer in linear_layers(closed, count))) == set(range(count))


@pytest.mark.parametrize("name", ["lenet", "transformer", "batched weights", "biases"])
@pytest.mark.parametrize(
    "metric",
    [
        leafwise,
        lambda _: vf.Euclidean(0.3) * 2.0,
        lambda p: DiagonalField(lambda **v: jax.tree.map(lambda w: 1.0 + w**2, v)),
        lambda p: vf.Euclidean() + leafwise(p),
        lambda p: leafwise(p) * 0.1 + DiagonalField(lambda **v: jax.tree.map(jnp.exp, v)),
    ],
    ids=["leafwise", "scaled", "diagonal", "sum", "sum with a diagonal"],
)
def test_metrics(name, metric):
    f, params, x = CASES[name]()
    chosen = metric(params)
    expected = full_kernel(f, params, x[:3], x[3:], chosen)
    for outputs in (OutputPairs.MEAN, OutputPairs.ALL):
        found = k.empirical_ntk(f, params, x[:3], x[3:], metric=chosen, outputs=outputs)
        close(found, reduced(expected, outputs), 1e-11)


def test_product_of_a_number_and_a_matrix():
    f, params, x = CASES["biases"]()
    size = params["v"].size
    root = np.random.default_rng(0).normal(size=(size, size))
    matrix = jnp.asarray(root @ root.T + np.eye(size))
    metrics = {name: vf.Euclidean(2.0) for name in params}
    metric = Product(metrics | {"v": MatrixField(lambda _: matrix)})
    found = k.empirical_ntk(f, params, x, metric=metric)
    close(found, reduced(full_kernel(f, params, x, x, metric), OutputPairs.MEAN), 1e-10)


@pytest.mark.parametrize("kept", [empirical_blocks.KEPT_ENTRIES, 0])
@pytest.mark.parametrize(
    ("name", "outputs", "chunks"),
    [
        ("lenet", OutputPairs.ALL, (None, 3)),
        ("plain", OutputPairs.MEAN, (None, 1, 2, 3, 4, 7, 10)),
        ("plain", OutputPairs.EACH, (None, 4)),
    ],
)
def test_chunks_that_are_kept_and_that_are_not(name, outputs, chunks, kept, monkeypatch):
    f, params, x = CASES[name]()
    x = np.concatenate([x, 0.5 * x[:2]])
    full = full_kernel(f, params, x, x)
    monkeypatch.setattr(empirical_blocks, "KEPT_ENTRIES", kept)
    monkeypatch.setattr(empirical_blocks, "CHUNK_ENTRIES", 600)
    monkeypatch.setattr(empirical_blocks, "_TILE", 3)

    def g(p, x):  # compiled anew, as the limits are others
        return f(p, x)

    for chunk in chunks:
        own = k.empirical_ntk(g, params, x, outputs=outputs, chunk=chunk)
        close(own, reduced(full, outputs))
        if chunk in (None, 4):
            pair = k.empirical_ntk(g, params, x, x[:5], outputs=outputs, chunk=chunk)
            close(pair, reduced(full[:, :5], outputs))
            diagonal = k.empirical_ntk_diagonal(g, params, x, outputs=outputs, chunk=chunk)
            close(diagonal, reduced(np.einsum("nnop->nop", full), outputs))


@pytest.mark.parametrize("name", ["plain", "transformer", "shared"])
@pytest.mark.parametrize("outputs", OutputPairs)
def test_diagonal_over_examples(name, outputs):
    f, params, x = CASES[name]()
    full = np.einsum("nnop->nop", full_kernel(f, params, x, x))
    found = k.empirical_ntk_diagonal(f, params, x, outputs=outputs, metric=vf.Euclidean(2.0))
    close(found, 4 * reduced(full, outputs))


def test_layout_of_images_and_pytrees():
    f, params, x = CASES["images out"]()

    def g(p, x):
        z = f(p, x)
        return {"image": z, "sum": jnp.sum(z, (1, 2, 3))}

    image = k.empirical_ntk(f, params, x, x[:2], outputs=OutputPairs.ALL)
    assert image.shape == (5, 2, 2, 2, 3, 2, 2, 3)
    close(image, full_kernel(f, params, x, x[:2]))
    tree = k.empirical_ntk(g, params, x, x[:2], outputs=OutputPairs.ALL)
    close(tree["image"]["image"], image)
    assert tree["image"]["sum"].shape == (5, 2, 2, 2, 3)
    close(tree["image"]["sum"], image.sum((5, 6, 7)))
    close(tree["sum"]["image"], image.sum((2, 3, 4)))
    close(tree["sum"]["sum"], image.sum((2, 3, 4, 5, 6, 7)))
    each = k.empirical_ntk(g, params, x, outputs=OutputPairs.EACH)
    assert (each["image"].shape, each["sum"].shape) == ((5, 5, 2, 2, 3), (5, 5))
    close(each["image"][:, :2], np.einsum("ijabcabc->ijabc", image))
    own = k.empirical_ntk_diagonal(g, params, x, outputs=OutputPairs.ALL)
    every = k.empirical_ntk(g, params, x, outputs=OutputPairs.ALL)
    close(own["image"]["sum"], every["image"]["sum"][np.arange(5), np.arange(5)])
    single = k.empirical_ntk(lambda p, x: g(p, x)["sum"], params, x, outputs=OutputPairs.ALL)
    assert single.shape == (5, 5)


@pytest.mark.parametrize("name", ["lenet", "transformer"])
def test_single_precision(name):
    f, params, x = CASES[name]()
    params32 = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    x32 = jnp.asarray(x, jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        found = k.empirical_ntk(f, params32, x32, outputs=OutputPairs.EACH)
    assert found.dtype == jnp.float32
    close(found, reduced(full_kernel(f, params, x, x), OutputPairs.EACH), 2e-4)


def test_numbers_and_data_are_not_compiled_anew():
    f, params, x = CASES["lenet"]()
    traces = SimpleNamespace(count=0)

    def g(p, x):
        traces.count += 1
        return p["scale"] * f(p["net"], x)

    def run(scale, x, unit):
        return k.empirical_ntk(g, {"net": params, "scale": scale}, x, metric=vf.Euclidean(unit))

    first, before = run(2.0, x, 0.5), traces.count
    second = run(3.0, x + 0.1, 0.7)
    assert traces.count == before > 0
    assert not np.allclose(first, second)
    k.empirical_ntk_diagonal(g, {"net": params, "scale": 2.0}, x)
    before = traces.count
    k.empirical_ntk_diagonal(g, {"net": params, "scale": 3.0}, x)
    assert traces.count == before


def test_slopes_of_networks_are_not_compiled_anew(monkeypatch):
    count = SimpleNamespace(traced=0)
    original = empirical_blocks.differentiate

    def counted(*args):
        count.traced += 1
        return original(*args)

    monkeypatch.setattr(empirical_blocks, "differentiate", counted)
    for w_std in (1.1, 1.2, 1.3):
        net = nn.serial(nn.Dense(4, w_std, 0.1), nn.Erf(), nn.Dense(2, w_std))
        k.empirical_ntk(net.apply, net.init(jax.random.key(0), VECTORS.shape), VECTORS)
    assert count.traced == 1


def test_derivatives_and_maps():
    """Kernels have derivatives in the parameters and inputs, under `jit` and `vmap`."""
    f, params, x = CASES["lenet"]()
    x = jnp.asarray(x[:2])

    def total(scale, shift):
        scaled = jax.tree.map(lambda leaf: scale * leaf, params)
        return jnp.sum(jnp.sin(k.empirical_ntk(f, scaled, x + shift, chunk=1) / 100))

    point = jnp.asarray(0.9), jnp.asarray(0.1)
    found = jax.jit(jax.grad(total, (0, 1)))(*point)
    for i, slope in enumerate(found):
        step = np.eye(2)[i] * 1e-5
        ends = [float(total(*(np.array(point) + sign * step))) for sign in (1, -1)]
        assert float(slope) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)
    many = jax.vmap(total, (0, None))(jnp.array([0.9, 0.5]), point[1])
    assert float(many[0]) == pytest.approx(float(total(*point)), rel=1e-12)


@pytest.mark.parametrize(("name", "chunk"), [("lenet", 2), ("images out", None), ("plain", 1)])
def test_operator(name, chunk):
    f, params, x = CASES[name]()
    metric = leafwise(params) if isinstance(params, dict) else vf.Euclidean(2.0)
    kernel = k.empirical_ntk_operator(f, params, x, metric=metric, chunk=chunk)
    full = np.swapaxes(full_kernel(f, params, x, x, metric), 1, 2)
    size = full.shape[0] * full.shape[1]
    matrix = full.reshape(size, size)
    vector = jax.tree.map(lambda s: normal(9, *s.shape), kernel.in_structure())
    product = matrix @ np.asarray(vector).ravel()
    close(kernel.mv(vector), product)
    close(kernel.linearize().mv(vector), product)
    close(kernel.as_matrix(), matrix)
    expected = np.linalg.slogdet(matrix + 0.1 * np.eye(size))[1]
    assert float(vf.linalg.logdet(kernel + 0.1).value) == pytest.approx(expected, rel=1e-9)


def test_operator_of_a_pytree_of_outputs():
    f, params, x = CASES["images out"]()

    def g(p, x):
        return {"sum": jnp.sum(f(p, x), (1, 2, 3)), "image": f(p, x)}

    kernel = k.empirical_ntk_operator(g, params, x)
    flat, unravel = ravel_pytree(jax.tree.map(lambda s: normal(9, *s.shape), kernel.in_structure()))
    matrix = kernel.as_matrix()
    close(ravel_pytree(kernel.mv(unravel(flat)))[0], matrix @ flat)
    np.testing.assert_array_equal(matrix, matrix.T)


def test_flax():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Sequential(
        nnx.Linear(6, 5, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(5, 2, rngs=nnx.Rngs(1))
    )
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    found = k.empirical_ntk(lambda p, x: nnx.merge(graph, p, rest)(x), params, VECTORS)
    close(
        found,
        reduced(
            full_kernel(lambda p, x: nnx.merge(graph, p, rest)(x), params, VECTORS, VECTORS),
            OutputPairs.MEAN,
        ),
        1e-5,
    )


def test_misuse():
    f, params, x = CASES["plain"]()
    with pytest.raises(
        NetworkError, match=r"`outputs` of empirical_ntk is 'trace'; .* OutputPairs.MEAN"
    ):
        k.empirical_ntk(f, params, x, outputs="trace")
    for chunk in (0, 1.5, -1):
        with pytest.raises(
            NetworkError, match=f"`chunk` is {chunk}; it should be a positive number"
        ):
            k.empirical_ntk_diagonal(f, params, x, chunk=chunk)
    with pytest.raises(OperatorError, match=r"`params\['step'\]` of empirical_ntk has dtype int"):
        k.empirical_ntk(lambda p, x: f(p["w"], x), {"w": params, "step": jnp.array(1)}, x)
    with pytest.raises(OperatorError, match="holds no array"):
        k.empirical_ntk(lambda p, x: x, {}, x)
    with pytest.raises(NetworkError, match=r"`function` returned dtype int.* at `\['class'\]`"):
        k.empirical_ntk(lambda p, x: {"class": jnp.argmax(f(p, x), 1)}, params, x)
    with pytest.raises(NetworkError, match=r"`function` returned \(\); it should return an array"):
        k.empirical_ntk(lambda p, x: (), params, x)
    with pytest.raises(NetworkError, match=r"returned shape \(3, 5\) for 5 examples"):
        k.empirical_ntk_operator(lambda p, x: f(p, x).T, params, x)
