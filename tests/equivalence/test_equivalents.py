"""Search, walks, barriers and planes among parameters of one function, against closed forms."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.equivalence.networks import TWO_UNITS, X, sides, split, tanh_units, units

from volform.equivalence import (
    Line,
    String,
    barrier,
    function_on,
    functional_dimension,
    search,
    through,
    walk,
)
from volform.errors import ConvergenceError, DataError, NetworkError

GENERIC, JOINED, PUBLISHED = TWO_UNITS
KEY = jax.random.key(0)
BARRIERS = {  # of theta and its units in reverse order: theory, by p and q
    "two islands": ([1.0, -0.7, 0.8, -0.5 / 0.7], 0.125),
    "one side": ([1.0, -0.8, 0.8, 0.5], 0.08),
    "joined": (JOINED["star"], 0.0),
}


def reversed_units(params):
    return jax.tree.map(lambda leaf: leaf[::-1], params)


class Loss(eqx.Module):
    target: jax.Array

    def __call__(self, params):
        return jnp.mean((units(params, X) - self.target) ** 2)


def loss_of(params):
    return Loss(units(params, X))


@pytest.mark.parametrize("case", TWO_UNITS)
def test_the_loss_has_its_closed_form(case):
    outputs = function_on(units, split(case["star"]), X, "a test")
    for point in case["points"]:
        theta = split(point["theta"])
        np.testing.assert_allclose(sides(theta), [point["p"], point["q"]], rtol=1e-12)
        flat = jnp.concatenate([theta["c"], theta["w"]])  # the order of the names
        np.testing.assert_allclose(outputs.relative_loss(flat), point["relative"], rtol=1e-12)
        np.testing.assert_allclose(loss_of(split(case["star"]))(theta), point["J"], rtol=1e-12)


@pytest.mark.parametrize("case", TWO_UNITS)
def test_search_finds_the_sheets_of_the_closed_form(case):
    params = split(case["star"])
    found = search(units, params, X, key=KEY)
    p, q = sides(params)
    np.testing.assert_allclose(sides(found.params)[0], p, rtol=1e-10, atol=1e-10 * abs(q))
    np.testing.assert_allclose(sides(found.params)[1], q, rtol=1e-10)
    assert found.relative_loss.max() < 1e-20
    clear = found.is_clear
    signs = np.sign(np.asarray(found.params["w"]))
    mixed = signs.prod(1) < 0
    if case is GENERIC:  # one sheet for each order of the units
        assert np.all(mixed)
        assert {tuple(row) for row in signs.tolist()} == {(1.0, -1.0), (-1.0, 1.0)}
        assert set(found.dimension[clear].tolist()) == {2}
    else:  # both on one side: a sheet of dimension 3; the whiskers of mixed signs are thinner
        assert set(found.dimension[clear & ~mixed].tolist()) == {3}
        assert set(found.dimension[clear & mixed].tolist()) == {2}
    assert f"{len(found)} distinct points" in repr(found)


class Signs:
    """Signs and order of tanh units: outgoing weights positive and descending."""

    def canonical(self, params):
        sign = jnp.sign(params["c"][:, 0])
        w, c = params["w"] * sign[None], params["c"] * sign[:, None]
        order = jnp.argsort(-c[:, 0])
        return {"w": w[:, order], "c": c[order]}


def test_tanh_units_are_isolated_and_copies_are_removed():
    params = {"w": jnp.array([[0.9, -1.7]]), "c": jnp.array([[1.2], [0.6]])}
    found = search(tanh_units, params, X, key=KEY)
    orbit = []
    for order, turned in itertools.product([(0, 1), (1, 0)], itertools.product([1, -1], repeat=2)):
        sign = np.array(turned)
        orbit.append(
            [*(np.array([1.2, 0.6]) * sign)[[*order]], *(np.array([0.9, -1.7]) * sign)[[*order]]]
        )
    seen = np.concatenate([found.params["c"][..., 0], found.params["w"][:, 0]], 1)
    assert len(found) == 8  # 2^h h!
    np.testing.assert_allclose(np.sort(seen, axis=0), np.sort(orbit, axis=0), atol=1e-9)
    assert found.dimension.tolist() == [0] * 8
    once = search(tanh_units, params, X, key=KEY, group=Signs())
    assert len(once) == 1
    assert once.copies.tolist() == [found.copies.sum()]


def test_a_walk_stays_in_the_class():
    params = split(GENERIC["star"])
    away = functional_dimension(units, params, X).direction(0)
    found = walk(units, params, X, away, length=4.0)
    p, q = sides(found.params)
    np.testing.assert_allclose(p, GENERIC["p_star"], rtol=1e-13)
    np.testing.assert_allclose(q, GENERIC["q_star"], rtol=1e-13)
    assert found.relative_loss.max() < 1e-28
    assert found.is_complete
    np.testing.assert_allclose(found.length, 4.0, rtol=1e-3)


def test_a_walk_ends_where_the_surface_ends():
    params = split(JOINED["star"])  # both units see x < 0; beyond w = 0 one sees x > 0
    away = {"w": jnp.array([1.0, 0.0]), "c": jnp.array([0.0, 0.0])}
    found = walk(units, params, X, away, length=4.0)
    assert not found.is_complete
    assert found.relative_loss.max() < 1e-24
    assert "the surface ends there" in repr(found)


def test_barriers_of_exchanged_units():
    for theta, theory in BARRIERS.values():  # one test: one program
        a = split(theta)
        found = barrier(loss_of(a), a, reversed_units(a), by=String(KEY))
        assert theory - 1e-12 <= found.height <= theory * 1.01 + 1e-5
        assert found.tried[0] <= found.height <= found.tried[0] + 1e-4  # the shortest of equals
        line = barrier(loss_of(a), a, reversed_units(a), by=Line())
        assert line.height > found.height + 1e-3
        np.testing.assert_allclose(line.points["w"][20], np.mean(theta[:2]), rtol=1e-12)


def test_the_straight_line_between_exchanged_units():
    w1, w2, c1, c2 = GENERIC["star"]
    t = np.linspace(0.0, 1.0, 401)[:, None]
    theta = (1.0 - t) * np.array([w1, w2, c1, c2]) + t * np.array([w2, w1, c2, c1])
    p, q = sides({"w": theta[:, :2], "c": theta[:, 2:]})
    exact = ((p - GENERIC["p_star"]) ** 2 + (q - GENERIC["q_star"]) ** 2) / 2
    a = split(GENERIC["star"])
    found = barrier(loss_of(a), a, reversed_units(a), by=Line())
    np.testing.assert_allclose(found.height, exact.max(), rtol=1e-10)
    np.testing.assert_allclose(found.losses, exact[::10], atol=1e-12)
    assert "on the straight line" in repr(found)


def test_a_spare_unit_joins_the_orders():
    a = split([1.0, -0.7, 0.3, 0.8, -0.5 / 0.7, 0.2])
    found = barrier(loss_of(a), a, reversed_units(a), by=String(KEY, starts=4))
    assert found.height < 1e-5
    assert functional_dimension(units, a, X).nullity == 4


def test_the_height_is_above_the_higher_end():
    bowl = lambda p: jnp.sum(p**2) + 3.0  # noqa: E731
    found = barrier(bowl, jnp.array([1.0, 0.0]), jnp.array([0.0, -2.0]), by=Line())
    assert found.height == 0.0
    assert found.losses[[0, -1]].tolist() == [4.0, 7.0]


def test_a_plane_holds_its_points_and_the_middle_of_the_path():
    a = split(JOINED["star"])
    b = reversed_units(a)
    path = barrier(loss_of(a), a, b, by=String(KEY, starts=2))
    plane = through(a, b, path)
    for point, params in zip(plane.ends, (a, b), strict=True):
        for found, given in zip(
            jax.tree.leaves(plane(jnp.asarray(point))), jax.tree.leaves(params), strict=True
        ):
            np.testing.assert_allclose(found, given, atol=1e-14)
    np.testing.assert_allclose(plane.frame @ plane.frame.T, np.eye(2), atol=1e-14)
    top = plane.path[np.argmax(plane.path[:, 1])]
    middle = plane.flat(jnp.asarray(top))
    points = np.concatenate([path.points["c"], path.points["w"]], 1)
    assert np.min(np.linalg.norm(points - middle[None], axis=1)) < 1e-12
    third = through(a, b, jax.tree.map(jnp.ones_like, a))
    assert third.path.shape == (1, 2)


def test_bad_input():
    a = split(GENERIC["star"])
    b, loss = reversed_units(a), loss_of(a)
    dead = split([1.0, -0.7, 0.0, 0.0])
    with pytest.raises(DataError, match=r"`f` is zero on all inputs of search.*dead output"):
        search(units, dead, X, key=KEY)
    with pytest.raises(DataError, match="tells of `x` and not of `f`"):
        search(units, a, X[:1], key=KEY)
    steep = {"w": jnp.array([[0.9]]), "c": jnp.array([[1.2]])}
    with pytest.raises(ConvergenceError, match=r"None of 1 starts .* smallest relative loss"):
        search(tanh_units, steep, X, key=KEY, starts=1, spread=1e9)
    with pytest.raises(NetworkError, match="`starts` of search is 0"):
        search(units, a, X, key=KEY, starts=0)
    with pytest.raises(NetworkError, match="`key` of search"):
        search(units, a, X, key=0)
    across = {"w": jnp.array([0.8, 0.0]), "c": jnp.array([1.0, 0.0])}  # the slope of p
    with pytest.raises(NetworkError, match="no part in the null space"):
        walk(units, a, X, across, length=1.0)
    with pytest.raises(NetworkError, match="`direction` has 2 numbers"):
        walk(units, a, X, a["w"], length=1.0)
    with pytest.raises(NetworkError, match="`length` is -1"):
        walk(units, a, X, b, length=-1.0)
    with pytest.raises(NetworkError, match="`a` and `b` of barrier are equal"):
        barrier(loss, a, a, by=Line())
    with pytest.raises(NetworkError, match="differ in their arrays"):
        barrier(loss, a, {**b, "c": jnp.ones(3)}, by=Line())
    with pytest.raises(NetworkError, match=r"`by` of barrier is .*Line\(\)"):
        barrier(loss, a, b, by=Line)
    with pytest.raises(NetworkError, match=r"`loss` of barrier has shape \(80,\)"):
        barrier(lambda p: units(p, X), a, b, by=Line())
    with pytest.raises(NetworkError, match="`nodes` of Line is 2"):
        Line(2)
    with pytest.raises(NetworkError, match="`rate` is 0"):
        String(KEY, rate=0.0)
    with pytest.raises(NetworkError, match="`a` and `b` of through are equal"):
        through(a, a, b)
    with pytest.raises(NetworkError, match="lies on the line"):
        through(a, b, barrier(loss, a, b, by=Line()))
    with pytest.raises(NetworkError, match="`path` of through has arrays of shapes"):
        through(a, b, jnp.ones((5, 3)))


def test_a_solution_at_zero_is_one_point():
    found = search(
        lambda p, x: (1.0 + p["a"]) * x,
        {"a": jnp.array(0.0)},
        jnp.linspace(-1.0, 1.0, 50),
        key=jax.random.key(0),
        starts=10,
    )
    assert len(found) == 1
