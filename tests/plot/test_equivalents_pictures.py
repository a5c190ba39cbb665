"""Pictures of parameters of one function, by the numbers of what is drawn."""

import jax.numpy as jnp
import numpy as np
import pytest
from tests.equivalence.networks import units

import volform as vf
from volform.equivalence import FunctionalDimension, functional_dimension, through
from volform.errors import DataError, NetworkError
from volform.inference import LearningCoefficient
from volform.plot.profiles import surface

X = jnp.array([1.0, -2.0, 0.5])
A, B = jnp.array([1.0, 2.0]), jnp.array([2.0, 1.0])
MIDDLE = jnp.full(2, 2.0**0.5)


def product(params, x):
    return params[0] * params[1] * x


def test_contours_of_the_relative_loss():
    plane = through(A, B, MIDDLE)
    ax = vf.plot.equivalents(product, A, X, plane=plane, names=("first", "second"), side=61)
    (filled,) = [c for c in ax.collections if hasattr(c, "levels")]
    number = filled.levels.tolist().index(-1.0)
    band = filled.get_paths()[number].vertices  # between -1.25 and -1; number 0 is below all levels
    params = np.stack([plane(jnp.asarray(point)) for point in band])
    exact = np.log10((params[:, 0] * params[:, 1] / 2.0 - 1.0) ** 2)
    assert np.all((exact > -1.28) & (exact < -0.97))
    assert np.min(np.abs(exact + 1.0)) < 0.01
    ends = np.stack(ax.lines[-1].get_data(), 1)
    np.testing.assert_allclose(ends, [[-(0.5**0.5), 0.0], [0.5**0.5, 0.0]])
    assert ax.get_xlabel() == "from first to second"
    assert [text.get_text() for text in ax.texts] == ["first", "second"]


def test_the_path_is_drawn_in_the_plane():
    t = np.linspace(1.0, 2.0, 11)
    plane = through(A, B, jnp.asarray(np.stack([t, 2.0 / t], 1)))
    ax = vf.plot.equivalents(product, A, X, plane=plane, side=21)
    path = np.stack(ax.lines[0].get_data(), 1)
    back = np.stack([plane(jnp.asarray(point)) for point in path])
    np.testing.assert_allclose(back, np.stack([t, 2.0 / t], 1), atol=1e-12)


def test_ranks():
    found = functional_dimension(product, A, X)
    ax = vf.plot.rank(found)
    kept, lost = ax.lines[0], ax.lines[1]
    assert (len(kept.get_xdata()), len(lost.get_xdata())) == (1, 1)
    assert ax.texts[0].get_text().startswith("a gap of 1")
    full = functional_dimension(lambda p, x: p[0] * x + p[1] * x**2, A, X)
    assert vf.plot.rank(full).texts[0].get_text() == "no direction is lost"
    values = 10.0 ** -np.arange(8.0)
    vague = FunctionalDimension(8, 8, 10.0, False, 1e-14, values, None)
    assert "no gap" in vf.plot.rank(vague).texts[0].get_text()


def test_parameters_that_the_data_see():
    one = np.ones(2)
    mean, error = np.array([1.5, 2.4]), np.array([0.1, 0.2])
    found = LearningCoefficient(np.array([0.1, 1.0]), mean, error, one, one, 12, 0.0)
    ax = vf.plot.learning(found)
    (bars,) = ax.containers
    np.testing.assert_allclose(bars.lines[0].get_ydata(), [3.0, 4.8])
    (segments,) = bars.lines[2]
    np.testing.assert_allclose([np.ptp(s[:, 1]) for s in segments.get_segments()], 8.0 * error)
    assert "12 parameters" in ax.texts[0].get_text()


def test_the_surface_of_a_sphere():
    ticks = np.linspace(-1.2, 1.2, 60)
    grid = np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij"), -1)
    triangles, pieces = surface(np.linalg.norm(grid, axis=-1) - 1.0, ticks)
    sides = triangles[:, 1:] - triangles[:, :1]
    area = 0.5 * np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1).sum()
    normals = np.cross(sides[:, 0], sides[:, 1])
    assert np.all(np.sum(normals * triangles.mean(1), axis=1) >= 0.0)  # outward
    np.testing.assert_allclose(area, 4.0 * np.pi, rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(triangles, axis=-1), 1.0, atol=1e-3)
    assert set(pieces.tolist()) == {1}


def test_profiles_show_the_pieces():
    """Of c ReLU(a x) + d ReLU(b x): two sheets, or one piece where both units see one side."""
    x = jnp.array([-1.0, -0.5, 0.5, 1.0])[:, None]
    for theta, pieces in (((1.0, -0.7, 0.8, -0.7), 2), ((-0.9, -0.4, 0.6, 0.3), 1)):
        params = {"w": jnp.array(theta[:2]), "c": jnp.array(theta[2:])}
        ax = vf.plot.profile(units, params, x, coordinates=(2, 3, 0), level=-0.8, side=24)
        assert len(ax.collections) == pieces


def test_bad_input():
    plane = through(A, B, MIDDLE)
    with pytest.raises(NetworkError, match="a plane of other parameters than the 3"):
        vf.plot.equivalents(lambda p, x: p[0] * x, jnp.ones(3), X, plane=plane)
    with pytest.raises(DataError, match="zero on all inputs of equivalents"):
        vf.plot.equivalents(product, jnp.zeros(2), X, plane=plane)
    with pytest.raises(NetworkError, match="`side` of equivalents"):
        vf.plot.equivalents(product, A, X, plane=plane, side=0)
    with pytest.raises(NetworkError, match="three different numbers below 2"):
        vf.plot.profile(product, A, X, coordinates=(0, 1, 1))
