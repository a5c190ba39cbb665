"""Pictures of layers, by the numbers of what is drawn."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import volform as vf
from volform.errors import DataError, NetworkError

X = jnp.asarray(np.random.default_rng(0).normal(size=(30, 2)))
LABELS = np.asarray(X[:, 0] > 0).astype(int)


def test_balls_are_of_one_radius_at_the_output():
    shear = jnp.array([[1.0, 0.7], [0.0, 1.5]])
    sequence = vf.layers.layerwise([lambda x: shear @ x, lambda x: x - 1.0])
    metric, logits = vf.Euclidean(), lambda z: z
    axes = vf.plot.layers(sequence, X, LABELS, metric=metric, logits=logits, show=(0, 2))
    first, last = ([patch.get_xy() for patch in ax.patches] for ax in axes)
    assert len(first) == len(last) == 12 * 10  # as far apart upward as across
    radii = [np.linalg.norm(ball - (ball[0] + ball[20]) / 2, axis=1) for ball in last]
    whole = [r for r, patch in zip(radii, axes[1].patches, strict=True) if patch.get_facecolor()[3]]
    assert len(whole) == 120
    np.testing.assert_allclose(np.concatenate(whole), whole[0][0], rtol=1e-9)
    ball = first[0] - (first[0][0] + first[0][20]) / 2
    np.testing.assert_allclose(np.linalg.norm(ball @ shear.T, axis=1), whole[0][0], rtol=1e-9)
    # Of outputs (z0, z1) the boundary is z0 = z1 behind the last layer.
    boundary = [line for line in axes[1].lines if line.get_color() == "black"]
    assert boundary
    for line in boundary:
        np.testing.assert_allclose(*line.get_data(), atol=1e-9)


def test_folds_are_dashed_only_where_there_are_some():
    folded = vf.layers.layerwise([lambda x: jnp.stack([x[0] ** 2, x[1]])])
    axes = vf.plot.layers(folded, X, metric=vf.Euclidean())
    dashed = [line for line in axes[0].lines if line.get_linestyle() == "--"]
    assert dashed
    np.testing.assert_allclose(dashed[0].get_xdata(), 0.0, atol=1e-9)
    smooth = vf.layers.layerwise([lambda x: 2.0 * x])
    (ax, _) = vf.plot.layers(smooth, X, metric=vf.Euclidean())
    assert not [line for line in ax.lines if line.get_linestyle() == "--"]
    (ax, _) = vf.plot.layers(smooth, X, LABELS, metric=vf.Euclidean())
    assert not [line for line in ax.lines if line.get_color() == "black"]  # no logits were given
    w = jnp.array([[0.3, 0.7], [0.1, 0.7 / 3.0]])  # one direction is lost, but for rounding
    (ax, _, _) = vf.plot.layers(
        vf.layers.layerwise([lambda x: w @ x, jnp.tanh]), X, metric=vf.Euclidean()
    )
    assert not [line for line in ax.lines if line.get_linestyle() == "--"]


def test_one_direction_is_seen():
    """Of x + y the volume is the length sqrt(2), and inputs are as far on segments across it."""
    ax = vf.plot.distinguishable(
        lambda x: jnp.sinh(x.sum()[None]), X, LABELS, metric=vf.Euclidean()
    )
    assert ax.get_title() == "Segments: equally far from their center"
    assert "lambda" in ax.figure.axes[1].get_ylabel()
    segments = [np.stack(line.get_data(), 1) for line in ax.lines if len(line.get_xdata()) == 41]
    lengths = []
    for segment in segments:
        center = segment[:-1].mean(0)
        np.testing.assert_allclose(*(segment - center).T, atol=1e-12)
        lengths.append(np.linalg.norm(np.ptp(segment, axis=0)) * np.cosh(center.sum()))
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-9)
    sequence = vf.layers.layerwise([lambda x: x.sum()[None]])
    axes = vf.plot.layers(sequence, X, metric=vf.Euclidean())
    assert all(patch.get_facecolor()[3] == 0.0 for patch in axes[0].patches)  # cut off


@pytest.mark.filterwarnings("error")
def test_a_single_example():
    assert vf.plot.distinguishable(jnp.sinh, X[:1], metric=vf.Euclidean()).get_xlim()[0] < X[0, 0]
    vf.plot.layers(vf.layers.layerwise([jnp.sinh]), X[:1], metric=vf.Euclidean())


def test_magnification():
    """Of sinh the volume is cosh x cosh y, and the ellipses have axes in proportion."""
    metric, ends = vf.Euclidean(), np.array([[-1.0, 0.0], [1.0, 0.5]])
    ax = vf.plot.distinguishable(jnp.sinh, X, LABELS, metric=metric, lines={"straight": ends})
    (line,) = [line for line in ax.lines if line.get_label() == "straight"]
    np.testing.assert_allclose(np.stack(line.get_data(), 1), ends)
    ellipses = [np.stack(line.get_data(), 1) for line in ax.lines if len(line.get_xdata()) == 41]
    assert ellipses
    for ellipse in ellipses:
        center = ellipse[:-1].mean(0)
        low, high = np.ptp(ellipse, axis=0)
        np.testing.assert_allclose(low / high, np.cosh(center[1]) / np.cosh(center[0]), rtol=1e-3)


def test_more_coordinates_and_bad_input():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(20, 4)))
    w = jnp.asarray(np.random.default_rng(2).normal(size=(3, 4)))
    sequence = vf.layers.layerwise([lambda x: jnp.tanh(w @ x)])
    softmax = vf.Fisher(lambda z: dist.Categorical(logits=z))
    labels = np.zeros(20, int)
    axes = vf.plot.layers(sequence, x, labels, metric=softmax, show=(0, 1))
    assert [ax.get_title() for ax in axes] == ["input", "layer 1"]
    with pytest.raises(DataError, match="`labels` has shape"):
        vf.plot.layers(sequence, x, labels[:3], metric=softmax)
    with pytest.raises(NetworkError, match="`show`"):
        vf.plot.layers(sequence, x, metric=softmax, show=(0, 5))
