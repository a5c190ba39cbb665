"""Representatives of draws, matching, isometries, balance and quotients."""

from pathlib import Path
from typing import Any

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import volform as vf
from volform import equivalence as eq, networks as nn
from volform.errors import DataError, MetricError, ModelError, NetworkError
from volform.inference.arviz_compat import built

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (9, 3))
TANH = nn.MLP(widths=(3,), w_std=2.0, b_std=1.0)
RELU = nn.MLP(widths=(4, 3), activation=jax.nn.relu, b_std=1.0)
Draws = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def stored() -> Draws:
    """NUTS draws of TANH, 5 chains of 500, by NumPyro, with r-hat and ESS by ArviZ 0.23."""
    with np.load(Path(__file__).with_name("draws_tanh3.npz")) as file:
        return {name: file[name] for name in file if name.startswith("layer")}


@pytest.fixture(scope="module")
def tanh() -> eq.Group:
    return eq.symmetry(TANH.apply, TANH.init(KEY, 1), X[:, :1])


@pytest.fixture(scope="module")
def relu() -> eq.Group:
    return eq.symmetry(RELU.apply, RELU.init(KEY, 3), X)


def _diagnosed(draws: Any) -> tuple[float, float]:
    hidden = {name: np.asarray(draws[name]) for name in ("layer0.b", "layer0.w", "layer1.w")}
    data = built({"posterior": hidden}, {}, {})
    rhat, ess = arviz.rhat(data), arviz.ess(data)
    largest = max(float(rhat[name].max()) for name in hidden)
    return largest, min(float(ess[name].min()) for name in hidden)


def test_representatives_of_stored_draws(tanh: eq.Group, stored: Draws) -> None:
    assert_allclose(_diagnosed(stored), (2.157, 6.5), atol=0.5)
    aligned = eq.representatives(tanh, stored)
    rhat, ess = _diagnosed(aligned)
    assert_allclose(rhat, 1.008, atol=5e-4)
    assert_allclose(ess, 478, atol=1.0)
    assert aligned.ambiguous == ()
    assert "every unit has its place" in repr(aligned)
    for index in ((0, 3), (4, 499)):
        pair = ({n: jnp.asarray(v[index]) for n, v in d.items()} for d in (stored, aligned))
        one, other = (TANH.apply(params, X[:, :1]) for params in pair)
        assert_allclose(one, other, rtol=0, atol=1e-12)
    again = eq.representatives(tanh, aligned.draws)
    assert all(np.array_equal(again[name], aligned[name]) for name in aligned)


def test_representatives_are_those_of_copies(tanh: eq.Group, stored: Draws) -> None:
    """Copies of the draws, each another one, have the same representatives up to one element."""
    few = {name: draws[:, :40] for name, draws in stored.items()}
    copies = {name: draws.copy() for name, draws in few.items()}
    for chain in range(5):
        for i in range(40):
            element = tanh.draw(jax.random.key(100 * chain + i))
            for name, value in element({n: d[chain, i] for n, d in few.items()}).items():
                copies[name][chain, i] = value
    one, other = (eq.representatives(tanh, draws) for draws in (few, copies))
    means = [{n: np.asarray(a[n]).mean((0, 1)) for n in few} for a in (one, other)]
    found = eq.match(tanh, *means)
    assert found.distance < 1e-12
    again = eq.representatives(tanh, {n: np.asarray(one[n]) for n in few} | {"noise": np.ones(5)})
    assert list(again["noise"]) == [1.0] * 5


def test_what_is_stuck_stays_so(tanh: eq.Group, stored: Draws) -> None:
    """Three more chains in another mode: alignment does not bring r-hat down."""
    moved = {name: draws[:3].copy() for name, draws in stored.items()}
    moved["layer0.w"] += 1.5
    moved["layer0.b"] *= -0.3
    both = {name: np.concatenate([stored[name], moved[name]]) for name in stored}
    rhat, _ = _diagnosed(eq.representatives(tanh, both))
    assert rhat > 1.5


def test_ambiguous_units_are_named(tanh: eq.Group) -> None:
    random = np.random.default_rng(0)
    centers = {"layer0.w": [[3.0], [3.0], [0.0]], "layer0.b": [0.1, 0.1, 0.0]}
    centers |= {"layer1.w": [[2.0, 2.0, 0.0]], "layer1.b": [0.0]}
    draws = {n: np.array(c) + 0.1 * random.normal(size=(2, 200, *np.shape(c)))
             for n, c in centers.items()}  # fmt: skip
    found = eq.representatives(tanh, draws).ambiguous
    assert [(unit.other is None) for unit in found].count(True) == 1
    assert len(found) == 3
    assert {str(unit).split(" is ")[1][:4] for unit in found} == {"idle", "like"}


def test_draws_that_do_not_fit_are_refused(tanh: eq.Group, stored: Draws) -> None:
    with pytest.raises(DataError, match="should be draws of the arrays of the group"):
        eq.representatives(tanh, {n: d[..., :1] for n, d in stored.items()})
    with pytest.raises(DataError, match="should be draws of the arrays of the group"):
        eq.representatives(tanh, {"layer0.w": stored["layer0.w"]})
    with pytest.raises(DataError, match="are not finite"):
        eq.representatives(tanh, stored | {"layer1.b": np.full((5, 500, 1), np.nan)})
    with pytest.raises(DataError, match="`deviations` is"):
        eq.representatives(tanh, stored, deviations={"layer0.w": 1.0})


def test_match_recovers_planted_elements() -> None:
    net = nn.MLP(widths=(16, 12), outputs=2)
    params = net.init(KEY, 3)
    group = eq.symmetry(net.apply, params, X)
    for seed in range(10):
        planted = group.draw(jax.random.key(seed))(params)
        noise = {n: jax.random.normal(jax.random.key(99), v.shape) for n, v in planted.items()}
        found = eq.match(group, params, {n: v + 0.02 * noise[n] for n, v in planted.items()})
        gaps = [float(jnp.abs(found.params[n] - params[n]).max()) for n in params]
        assert max(gaps) < 0.1
        assert_allclose(
            net.apply(found.element(planted), X), net.apply(planted, X), rtol=0, atol=1e-12
        )
    with pytest.raises(NetworkError, match="`b` has the arrays"):
        eq.match(group, params, {"w": jnp.ones(3)})


# --- Metrics and densities


def _squares(p: Any) -> Any:
    return -0.5 * sum(jnp.sum(w**2) for w in p.values())


def test_isometries(relu: eq.Group) -> None:
    params = RELU.init(KEY, 3)
    flat = eq.is_isometry(vf.Euclidean(), relu, params)
    assert not flat.holds
    assert flat.worst.startswith("scaling of layer")
    assert flat.parts["exchange of layer0"] < 1e-14
    assert "worst='scaling of layer" in repr(flat)
    scale_free = vf.geometry.DiagonalField(lambda **p: {n: w**-2 for n, w in p.items()})
    assert eq.is_isometry(scale_free, relu, params).defect < 1e-13
    outputs = vf.pullback(vf.Euclidean(), lambda **p: RELU.apply(p, X))
    assert eq.is_isometry(outputs, relu, params).defect < 1e-13
    broken = vf.geometry.DiagonalField(lambda **p: {n: jnp.nan * w for n, w in p.items()})
    with pytest.raises(MetricError, match="is not finite"):
        eq.is_isometry(broken, relu, params)


def test_invariance_of_a_density(relu: eq.Group) -> None:
    params = RELU.init(KEY, 3)
    found = eq.is_invariant(_squares, relu, params)
    assert not found.holds
    assert found.parts["exchange of layer1"] < 1e-15
    with pytest.raises(ModelError, match="inside its support"):
        eq.is_invariant(lambda p: jnp.inf, relu, params)  # pyright: ignore[reportArgumentType]


def test_rotations_preserve_a_gaussian() -> None:
    params = {"w0": X[:4], "w1": X[:2] @ X[:4].T}
    group = eq.symmetry(lambda p, x: x @ p["w0"].T @ p["w1"].T, params, X)
    rows = eq.preserving(_squares, group, params)
    assert rows.shape == (6, 16)  # O(4) in GL(4)
    fields = group.generators(params)
    slope = jax.grad(_squares)(params)
    changes = sum(jnp.einsum("kij,ij->k", fields[n], slope[n]) for n in params)
    assert_allclose(rows @ np.asarray(changes), 0.0, atol=1e-12)


def test_balance_in_closed_form(relu: eq.Group) -> None:
    params = RELU.init(KEY, 3)
    found = eq.balance(relu, params)
    assert_allclose(RELU.apply(found.params, X), RELU.apply(params, X), rtol=0, atol=1e-13)
    assert found.energy < found.before
    assert_allclose(-_squares(found.params), found.energy, rtol=1e-12)
    slope = jax.vmap(lambda t: sum(jnp.vdot(t[n], found.params[n]) for n in t))(
        relu.generators(found.params)
    )
    assert np.abs(slope).max() < 1e-6  # no scaling lowers it
    one = nn.MLP(widths=(3,), activation=jax.nn.relu)
    params = one.init(KEY, 3)
    group = eq.symmetry(one.apply, params, X)
    into, out = (params["layer0.w"] / 0.5) ** 2, (params["layer1.w"] / 2.0) ** 2
    expected = jnp.sum(jnp.sqrt(into.sum(1) * out.sum(0)))
    deviations = {"layer0.w": 0.5, "layer1.w": 2.0}
    assert_allclose(eq.balance(group, params, deviations).energy, expected, rtol=1e-12)
    with pytest.raises(NetworkError, match="has no scalings"):
        eq.balance(eq.symmetry(TANH.apply, TANH.init(KEY, 1), X[:, :1]), TANH.init(KEY, 1))


def test_quotient_metric_of_a_product() -> None:
    scale_free = vf.geometry.DiagonalField(lambda a, c: {"a": a**-2, "c": c**-2})
    start = {"a": jnp.array(1.0), "c": jnp.array(0.8)}
    group = eq.symmetry(lambda p, x: p["a"] * p["c"] * x, start, X)
    product = lambda p: p["a"] * p["c"]  # noqa: E731
    for a, c in ((1.0, 0.8), (2.0, 0.4), (4.0, 0.2)):
        params = {"a": jnp.array(a), "c": jnp.array(c)}
        assert_allclose(eq.quotient(scale_free, group, product, params), [[0.78125]], rtol=1e-12)
    with pytest.raises(MetricError, match=r"changes by .* under the scaling of a and c"):
        eq.quotient(vf.Euclidean(), group, product, start)
    with pytest.raises(NetworkError, match="`invariants` of quotient change"):
        eq.quotient(scale_free, group, lambda p: p["a"], start)


# --- Draws in ArviZ, and in a picture


def test_draws_in_arviz_are_representatives(tanh: eq.Group) -> None:
    y = jnp.sin(2.0 * X[:, :1])
    posterior = vf.condition(nn.regression(TANH, 0.3), X[:, :1], y)
    samples = vf.laplace(posterior, refuse=False).sample(KEY, 50)
    element = tanh.draw(jax.random.key(1))
    plain, data = vf.to_arviz(samples), vf.to_arviz(samples, symmetry=tanh)
    for i in (0, 20):
        pair = ({n: jnp.asarray(d["posterior"][n].values[0, i]) for n in tanh.names}
                for d in (plain, data))  # fmt: skip
        one, other = (TANH.apply(params, X[:, :1]) for params in pair)
        assert_allclose(one, other, rtol=0, atol=1e-12)
    aligned = {n: data["posterior"][n].values for n in tanh.names}
    again = eq.representatives(tanh, aligned, {n: np.sqrt(4.0 / np.shape(v)[-1]) if n.endswith("w")
                                               else 1.0 for n, v in aligned.items()})  # fmt: skip
    assert all(np.array_equal(again[n], aligned[n]) for n in aligned)
    assert element.group is tanh
    with pytest.raises(DataError, match="should be draws of the arrays"):
        vf.to_arviz(samples, symmetry=eq.symmetry(lambda p, x: x * p["a"], {"a": X[0]}, X))


def test_picture_of_units(stored: Draws) -> None:
    ax = vf.plot.units(stored, "layer0.w", "layer1.w")
    offsets = np.asarray(ax.collections[1].get_offsets())
    assert offsets.shape == (2500, 2)
    assert_allclose(offsets[:, 0], stored["layer0.w"][..., 1, 0].ravel())
    assert_allclose(offsets[:, 1], stored["layer1.w"][..., 0, 1].ravel())
    with pytest.raises(DataError, match="lacks"):
        vf.plot.units(stored, "layer0.w", "layer2.w")
    with pytest.raises(DataError, match="should end in"):
        vf.plot.units(stored, "layer0.w", "layer0.b")
