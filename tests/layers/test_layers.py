"""Metrics through layers: against end-to-end matrices, closed forms and an independent program."""

import json
import math
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import volform as vf
from volform import networks as nn
from volform.errors import DataError, MetricError, NetworkError, SingularMetricError, TrustWarning
from volform.layers import LayerField, layerwise, mean_metric, momentum, plane, principal

REFERENCE = json.loads((Path(__file__).parent / "layers_reference.json").read_text())
SOFTMAX = vf.Fisher(lambda z: dist.Categorical(logits=z))
X = jnp.asarray(np.random.default_rng(0).normal(size=(7, 2)))


def residual(key, width=2, depth=4):
    keys = jax.random.split(key, depth)
    weights = [0.4 * jax.random.normal(k, (width, width)) for k in keys]
    return [lambda x, w=w: x + jnp.tanh(w @ x) for w in weights]


def tanh_layers(case):
    """Of the reference: tanh behind all layers but, for classes, not the last."""
    arrays = [(jnp.array(w), jnp.array(b)) for w, b in zip(case["W"], case["b"], strict=True)]
    return [lambda x, w=w, b=b: jnp.tanh(w @ x + b) for w, b in arrays[:-1]], arrays[-1]


@pytest.mark.parametrize("case", REFERENCE["mlp"], ids=["classes", "widths"])
def test_an_independent_program(case):
    maps, (w, b) = tanh_layers(case)
    last = lambda x: w @ x + b  # noqa: E731
    if not np.allclose(layerwise([*maps, last])(jnp.array(case["x"])), case["states"][-1]):
        last = lambda x: jnp.tanh(w @ x + b)  # noqa: E731
    sequence = layerwise([*maps, last])
    metric = SOFTMAX if case["metric_out"] == "softmax-Fisher" else vf.Euclidean()
    field = sequence.pull_back(metric, jnp.array(case["x"])[None])
    assert field.rank[:, 0].tolist() == case["ranks"]
    np.testing.assert_allclose(field.log_volume[:, 0], case["log_pseudo_volume"], rtol=1e-10)
    for gram, points, state, expected in zip(
        field.gram, field.points, case["states"], case["metrics"], strict=True
    ):
        np.testing.assert_allclose(points[0], state, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(gram[0], expected, rtol=1e-10, atol=1e-14)
    singular = field.rank[:, 0] < case["widths"]
    assert np.array_equal(np.isinf(field.condition[:, 0]), singular)
    for layer in np.flatnonzero(singular):
        with pytest.raises(SingularMetricError, match=rf"`layer` {layer} has .* rank"):
            field.inverse(layer)


def test_momentum_is_a_metric_at_the_input_only():
    case = REFERENCE["c2"]
    arrays = [(jnp.array(w), jnp.array(b)) for w, b in zip(case["W"], case["b"], strict=True)]
    sequence = momentum([lambda x, w=w, b=b: jnp.tanh(w @ x + b) for w, b in arrays])
    x = jnp.array(case["x"])
    np.testing.assert_allclose(sequence(x), case["output"], rtol=1e-13)
    field = sequence.pull_back(vf.Euclidean(), x[None])
    np.testing.assert_allclose(field.gram[0][0], case["metric_at_input"], rtol=1e-12)
    inner = field.rank[1:-1, 0]
    assert (inner == case["rank_in_phase_space"]).all()
    assert {rows.shape[2] for rows in field.rows[1:-1]} == {4}


def test_every_layer_is_end_to_end():
    sequence = layerwise(residual(jax.random.key(0)))
    for metric in (vf.Euclidean(), SOFTMAX):
        field = sequence.pull_back(metric, X)
        for layer, points in enumerate(field.points):
            pulled = vf.pullback(metric, sequence.behind(layer))
            for point, gram in zip(points, field.gram[layer], strict=True):
                np.testing.assert_allclose(gram, pulled(point).as_matrix(), rtol=1e-11, atol=1e-13)
    jacobians = jax.vmap(jax.jacfwd(sequence))(X)
    field = sequence.pull_back(vf.Euclidean(), X)
    volume = np.log(np.abs(np.linalg.det(jacobians)))
    np.testing.assert_allclose(field.log_volume[0], volume, rtol=1e-12, atol=1e-13)
    # Balls carried from the input are those of the inverse of G_l.
    _, frames = sequence.carry(X, jnp.eye(2))
    inner = np.linalg.inv(field.gram[0])
    for layer, frame in enumerate(frames):
        carried = np.einsum("nia,nij,njb->nab", frame, inner, frame)
        np.testing.assert_allclose(carried, field.inverse(layer), rtol=1e-10, atol=1e-12)


def test_other_coordinates_at_every_layer_are_the_same_metric():
    """Layers `chart . f . chart^-1`: matrices change by the chart, volumes by its determinant."""
    maps = residual(jax.random.key(1))
    chart = lambda x: x + x**3  # noqa: E731

    def inverse(y):  # of x + x^3, by Cardano
        root = jnp.sqrt(y**2 / 4 + 1 / 27)
        return jnp.cbrt(y / 2 + root) + jnp.cbrt(y / 2 - root)

    ends = [lambda x: inverse(maps[0](x)), *[lambda x, f=f: inverse(f(chart(x))) for f in maps[1:]]]
    other = layerwise([*ends, chart])
    field = layerwise(maps).pull_back(vf.Euclidean(), X)
    moved = other.pull_back(vf.Euclidean(), X)
    np.testing.assert_allclose(moved.gram[0], field.gram[0], rtol=1e-8)
    for layer in range(1, len(maps) + 1):
        slopes = 1 + 3 * np.asarray(moved.points[layer]) ** 2
        expected = field.gram[layer] * slopes[:, :, None] * slopes[:, None]
        np.testing.assert_allclose(moved.gram[layer], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("metric", "width", "expected"),
    [(vf.Euclidean(), 2, 0.0), (SOFTMAX, 3, 0.5), (SOFTMAX, 4, 1.5)],
    ids=["flat", "3 classes", "4 classes"],
)
def test_curvature(metric, width, expected):
    """Of K classes the sphere of radius 2 in K - 1 dimensions, (K - 1)(K - 2) / 4."""
    inputs = width - 1 if metric is SOFTMAX else width
    w = jax.random.normal(jax.random.key(2), (width, inputs))
    sequence = layerwise([lambda x: x + 0.3 * jnp.tanh(x[::-1]), lambda x: w @ x])
    x = 0.3 * jax.random.normal(jax.random.key(3), (2, inputs))
    np.testing.assert_allclose(
        sequence.pull_back(metric, x).curvature(), expected, rtol=1e-9, atol=1e-9
    )


def test_networks_of_all_kinds():
    x = jax.random.normal(jax.random.key(0), (5, 3))
    net = nn.serial(nn.Dense(4), nn.Relu(), nn.Dense(2))
    params = net.init(jax.random.key(1), x.shape)
    sequence = layerwise(net, params)
    np.testing.assert_allclose(jax.vmap(sequence)(x), net.apply(params, x), rtol=1e-14)
    assert repr(sequence) == "LayerSequence of 3: Dense, ABRelu, Dense"

    network = nn.MLP((4, 3), 2, activation=jnp.tanh)
    weights = network.init(jax.random.key(2), 3)
    sequence = layerwise(network, weights, inputs=3)
    np.testing.assert_allclose(jax.vmap(sequence)(x), network.apply(weights, x), rtol=1e-14)

    theirs = eqx.nn.Sequential(
        [eqx.nn.Linear(3, 4, key=jax.random.key(3)), eqx.nn.Lambda(jnp.tanh)]
    )
    sequence = layerwise(theirs)
    np.testing.assert_allclose(jax.vmap(sequence)(x), jax.vmap(theirs)(x), rtol=1e-14)
    assert sequence.pull_back(vf.Euclidean(), x).rank.tolist() == [[3] * 5, [4] * 5, [4] * 5]

    images = jax.random.normal(jax.random.key(4), (2, 4, 4, 1))
    net = nn.serial(nn.Conv(2, (3, 3)), nn.Relu(), nn.Flatten(), nn.Dense(3))
    sequence = layerwise(net, net.init(jax.random.key(5), images.shape))
    field = sequence.pull_back(SOFTMAX, images)
    assert field.rank.tolist() == [[2, 2]] * 5
    restricted = principal(jnp.concatenate([images, -2.0 * images + images**2]))
    pulled = vf.pullback(SOFTMAX, lambda point: sequence(restricted(point)))
    frame = restricted.frame.reshape(2, -1)
    whole = sequence.pull_back(SOFTMAX, restricted(jnp.zeros(2))[None]).gram[0][0]
    expected = frame @ whole @ frame.T
    np.testing.assert_allclose(pulled(jnp.zeros(2)).as_matrix(), expected, rtol=1e-9, atol=1e-14)


def test_the_expected_metric():
    draws = {"w": jax.random.normal(jax.random.key(0), (6, 2, 2))}
    metric = mean_metric(SOFTMAX, lambda p, x: jnp.tanh(p["w"] @ x), draws)
    each = [
        vf.pullback(SOFTMAX, lambda x, w=w: jnp.tanh(w @ x))(X[0]).as_matrix() for w in draws["w"]
    ]
    np.testing.assert_allclose(metric(X[0]).as_matrix(), np.mean(each, 0), rtol=1e-12)


def test_geodesic_of_a_diffeomorphism_is_a_chord():
    sequence = layerwise(residual(jax.random.key(4)))
    a, b = X[0], X[1]
    found = vf.geometry.distance(vf.pullback(vf.Euclidean(), sequence), a, b)
    np.testing.assert_allclose(found, jnp.linalg.norm(sequence(a) - sequence(b)), rtol=1e-9)


def test_planes():
    a, b, c = jax.random.normal(jax.random.key(0), (3, 5))
    found = plane(a, b, c)
    for point in (a, b, c):
        np.testing.assert_allclose(found(found.coordinates(point[None])[0]), point, rtol=1e-12)
    assert found.coordinates(b[None])[0, 1] == pytest.approx(0.0, abs=1e-14)
    data = np.random.default_rng(0).normal(size=(40, 3)) * [5.0, 0.1, 1.0]
    assert np.abs(principal(data).frame[0, 0]) > 0.99
    with pytest.raises(DataError, match="`a`, `b` and `c` lie on one line"):
        plane(a, b, 2 * b - a)
    with pytest.raises(DataError, match="shapes"):
        plane(a, b, c[:2])
    with pytest.raises(DataError, match=r"`data` .* on one line"):
        principal(jnp.outer(jnp.arange(4.0), jnp.ones(3)))


def test_eigenpairs_of_two_coordinates():
    """By rotations, against LAPACK: of all scales, with a condition of 1e12, and of lost rank."""
    random = np.random.default_rng(0)
    for rows in (2, 3):
        w = random.normal(size=(50, rows, 2)) * 10.0 ** random.uniform(-6, 6, (50, 1, 2))
        w[0, :, 1] = 2.0 * w[0, :, 0]
        w[1], w[2, :, 0], w[3] = 0.0, 0.0, np.eye(rows, 2)
        found = LayerField(layerwise([jnp.tanh]), vf.Euclidean(), (X,), (jnp.asarray(w),))
        _, values, vectors = np.linalg.svd(w)
        exact = np.where(values > 1e-14 * values[:, :1], values**2, 0.0)
        np.testing.assert_allclose(found.eigenvalues[0], exact, rtol=1e-8)
        overlap = np.abs(np.einsum("nij,nij->ni", found.eigenvectors[0], vectors))
        np.testing.assert_allclose(overlap[4:], 1.0, atol=1e-10)
        assert found.rank[0][:4].tolist() == [1, 0, 1, 2]
        np.testing.assert_allclose(found.eigenvectors[0] @ found.eigenvectors[0].swapaxes(1, 2),
                                   np.broadcast_to(np.eye(2), (50, 2, 2)), atol=1e-14)  # fmt: skip


def test_bad_input():
    net = nn.serial(nn.Dense(2))
    with pytest.raises(NetworkError, match="`params` or `inputs` of layerwise is missing"):
        layerwise(net)
    with pytest.raises(NetworkError, match="`network` is a int"):
        layerwise(3)
    with pytest.raises(NetworkError, match=r"`network` is a MLP; .* activations included"):
        layerwise(eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(0)))
    with pytest.raises(NetworkError, match="`layer` is 9; layers go from 0 to 1"):
        layerwise([jnp.tanh]).behind(9)
    with pytest.raises(NetworkError, match=r"of shape \(2,\), and layer 1, .* of shape \(2,\)"):
        layerwise([lambda x: jnp.ones(3) @ x]).pull_back(vf.Euclidean(), X)
    with pytest.raises(MetricError, match="`metric` of pull_back holds"):
        layerwise([jnp.tanh]).pull_back(dist.Categorical, X)
    with pytest.raises(MetricError, match="`metric` of mean_metric holds"):
        mean_metric(lambda p, x: x, vf.Euclidean(), jnp.ones(3))
    with pytest.raises(NetworkError, match="`functions`"):
        momentum([])
    sequence = layerwise([jnp.tanh])
    with pytest.raises(DataError, match="`x` has shape"):
        sequence.pull_back(vf.Euclidean(), jnp.ones(3))
    with pytest.raises(NetworkError, match=r"`metric` .* no matrix at outputs of shape \(2,\)"):
        sequence.pull_back(vf.geometry.MatrixField(lambda z: jnp.eye(3)), X)
    with pytest.raises(NetworkError, match=r"`layer` 0 .* shape \(2, 2\)"):
        sequence.pull_back(vf.Euclidean(), jnp.ones((1, 2, 2))).curvature()
    flat = layerwise([lambda x: x[:1] * jnp.ones(2)]).pull_back(vf.Euclidean(), X)
    with pytest.raises(SingularMetricError, match="rank 1 at most: no metric, and no curvature"):
        flat.curvature()
    with pytest.raises(NetworkError, match=r"`functions` of momentum takes \(2,\) to \(3,\)"):
        momentum([lambda x: jnp.ones(3) * x[0]])(jnp.ones(2))
    with pytest.raises(DataError, match="`draws`"):
        mean_metric(vf.Euclidean(), lambda p, x: x, {"a": jnp.ones(2), "b": jnp.ones(3)})
    with pytest.raises(NetworkError, match=r"`x` leads to .* in 1 of 2 examples, .* number 1\."):
        layerwise([lambda x: 1 / x]).pull_back(vf.Euclidean(), jnp.array([[1.0, 1.0], [0.0, 2.0]]))
    assert math.isinf(layerwise([lambda x: 0 * x]).pull_back(vf.Euclidean(), X).condition[0, 0])


def test_curvature_where_rank_is_lost_at_some_examples():
    folded = layerwise([lambda x: jnp.stack([x[0], x[0] * x[1]])])
    x = jnp.array([[1.0, 0.3], [0.0, 0.3]])
    with pytest.warns(TrustWarning, match="is NaN at 1 of 2 examples"):
        found = folded.pull_back(vf.Euclidean(), x).curvature()
    np.testing.assert_allclose(found, [0.0, np.nan], atol=1e-10)
