"""Geodesics round a wall between the points, against shortest paths on a fine grid."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

import volform as vf
from volform.errors import TrustWarning
from volform.geometry import DiagonalField, distance, geodesic, geodesics, shooting


class Wall(vf.Metric):
    """Flat but for a conformal factor `1 + height exp(-|x|^2 / (2 width^2))`."""

    height: jax.Array
    width: jax.Array

    def factor(self, square):
        return 1.0 + self.height * jnp.exp(-0.5 * square / self.width**2)

    def __call__(self, x):
        return DiagonalField(lambda x: self.factor(x @ x) * jnp.ones_like(x))(x)


def wall(height, width):
    return Wall(jnp.asarray(float(height)), jnp.asarray(float(width)))


SIDE, COUNT = 8.0, 161
STEPS = [
    (i, j) for i in range(-4, 5) for j in range(-4, 5) if np.gcd(i, j) == 1 and (i, j) > (0, 0)
]
NODES = np.moveaxis(np.indices((COUNT, COUNT)), 0, -1) * (2.0 * SIDE / (COUNT - 1)) - SIDE


def by_grid(height, width, start, end):
    """Length by Dijkstra's method in the plane, 32 directions: at most .7 % too long."""
    number, rows, columns, lengths = np.arange(COUNT**2).reshape(COUNT, COUNT), [], [], []
    for i, j in STEPS:
        here = number[: COUNT - i, max(0, -j) : COUNT - max(0, j)].ravel()
        there = here + i * COUNT + j
        a, b = NODES.reshape(-1, 2)[here], NODES.reshape(-1, 2)[there]
        nodes, weights = np.polynomial.legendre.leggauss(3)
        squares = [((0.5 * (a + b) + 0.5 * t * (b - a)) ** 2).sum(1) for t in nodes]
        speeds = [np.sqrt(1.0 + height * np.exp(-0.5 * s / width**2)) for s in squares]
        rows.append(here)
        columns.append(there)
        lengths.append(0.5 * np.tensordot(weights, speeds, 1) * np.linalg.norm(b - a, axis=1))
    entries = np.concatenate(lengths), (np.concatenate(rows), np.concatenate(columns))
    graph = sp.csr_matrix(entries, shape=(COUNT**2, COUNT**2))
    ends = [
        number[tuple(np.round((p + SIDE) / (2 * SIDE) * (COUNT - 1)).astype(int))]
        for p in (start, end)
    ]
    return sp.csgraph.dijkstra(graph, directed=False, indices=ends[0])[ends[1]]


@pytest.mark.parametrize("d", [2, 3, 4, 5])
def test_the_shortest_way_round_a_wall(d):
    """It lies in the plane of both points and the middle of the wall, whatever d."""
    for seed in range(3):
        random = np.random.default_rng(100 * d + seed)
        height, width = random.choice([3.0, 30.0, 300.0]), random.choice([0.5, 1.0, 2.0])
        start, end = np.array([-4.0, 0.1 * random.integers(-2, 9)]), np.array([4.0, 0.3])
        plane = np.linalg.qr(random.normal(size=(d, 2)))[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TrustWarning)
            found = distance(
                wall(height, width), jnp.asarray(plane @ start), jnp.asarray(plane @ end)
            )
        shortest = by_grid(height, width, start, end)
        assert 0.993 * shortest < found < (1.0 + 1e-9) * shortest


def test_both_ways_round_a_wall_are_told():
    a, b = jnp.array([-4.0, 0.1]), jnp.array([4.0, 0.1])
    with pytest.warns(TrustWarning, match=r"of the lengths .* cut locus"):
        path = geodesic(wall(100, 1), a, b)
    assert path(0.5)[1] > 2.0  # on the nearer side
    assert path.residual < 1e-8


def test_a_shorter_path_that_is_no_geodesic_is_told(monkeypatch):
    """Where Newton's method fails beside a path, as it may where many geodesics are as long."""

    def shoot(metric, start, end):
        found = shooting.shoot(metric, start, end)
        return eqx.tree_at(lambda found: found.seen, found, 0.5 * found.seen)

    monkeypatch.setattr(geodesics, "_shoot", shoot)
    with pytest.warns(TrustWarning, match=r"a path of 0\.5.* was seen, along which no geodesic"):
        distance(vf.Euclidean(), jnp.zeros(2), jnp.array([1.0, 0.0]))


def test_where_no_wall_is_nothing_is_told():
    path = geodesic(wall(0.3, 2), jnp.array([-4.0, 0.1, 0.0]), jnp.array([4.0, 0.1, 1.0]))
    assert path.residual < 1e-10
