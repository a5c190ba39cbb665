"""The functional dimension, against exact ranks and counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.equivalence.networks import RANKS, TWO_UNITS, X, dense, split, tanh_units, units

from volform.equivalence import functional_dimension, on_inputs
from volform.errors import DataError, NetworkError


def of_reference(case):
    params = [(jnp.array(w), jnp.array(b)) for w, b in zip(case["W"], case["b"], strict=True)]
    return params, jnp.array(case["x"])


class Scalings:
    """Tangents of the positive scalings of ReLU units: rows and bias of a layer, columns behind."""

    def generators(self, params):
        found = []
        for i in range(len(params) - 1):
            for unit in range(len(params[i][1])):
                zero = [(jnp.zeros_like(w), jnp.zeros_like(b)) for w, b in params]
                (w, b), (v, _) = params[i], params[i + 1]
                zero[i] = (
                    jnp.zeros_like(w).at[unit].set(w[unit]),
                    jnp.zeros_like(b).at[unit].set(b[unit]),
                )
                zero[i + 1] = (
                    jnp.zeros_like(v).at[:, unit].set(-v[:, unit]),
                    zero[i + 1][1],
                )
                found.append(zero)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


@pytest.mark.parametrize("case", RANKS)
def test_exact_ranks_of_relu_networks(case):
    params, x = of_reference(case)
    found = functional_dimension(dense, params, x, group=Scalings())
    assert (found.rank, found.parameters) == (case["rank"], case["d"])
    assert found.by_group == case["scalings"]
    assert found.hidden == case["hidden"]
    assert found.is_clear
    assert found.gap > 1e9
    assert "hidden; gap" in repr(found)


def test_no_output_changes_along_the_null_basis():
    params, x = of_reference(RANKS[2])
    found = functional_dimension(dense, params, x)
    for number in (0, found.nullity - 1):
        _, moved = jax.jvp(lambda p: dense(p, x), (params,), (found.direction(number),))
        assert np.max(np.abs(moved)) < 1e-13
    flat = np.concatenate(
        [np.reshape(leaf, (found.nullity, -1)) for leaf in jax.tree.leaves(found.null_basis)], 1
    )
    np.testing.assert_allclose(flat @ flat.T, np.eye(found.nullity), atol=1e-13)


@pytest.mark.parametrize("case", TWO_UNITS)
def test_two_units(case):
    found = functional_dimension(units, split(case["star"]), X)
    assert found.nullity == case["nullity_at_star"]
    assert found.is_clear


def test_analytic_activations_have_no_gap():
    keys = jax.random.split(jax.random.key(1), 2)
    params = {"w": jax.random.normal(keys[0], (1, 50)), "c": jax.random.normal(keys[1], (50, 1))}
    found = functional_dimension(tanh_units, params, jnp.linspace(-3.0, 3.0, 200)[:, None])
    assert not found.is_clear
    assert found.rank_above(1e-3) < found.rank_above(1e-6) < found.rank_above(1e-9) < found.rank
    assert "no gap" in repr(found)


def test_softmax_adds_a_translation_for_each_input_of_the_last_layer():
    keys = jax.random.split(jax.random.key(2), 4)
    shapes = ((3, 4), (4,), (4, 3), (3,))
    params = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
    x = jax.random.normal(jax.random.key(3), (60, 3))

    def logits(p, x):
        return jnp.tanh(x @ p[0] + p[1][None]) @ p[2] + p[3][None]

    assert functional_dimension(logits, params, x).nullity == 0
    found = functional_dimension(lambda p, x: jax.nn.softmax(logits(p, x)), params, x)
    assert found.nullity == 5
    assert found.is_clear


def test_linear_networks_lose_general_linear_groups():
    x = jax.random.normal(jax.random.key(3), (60, 4))
    params = [
        jax.random.normal(jax.random.key(0), (4, 2)),
        jax.random.normal(jax.random.key(1), (2, 3)),
    ]
    found = functional_dimension(lambda p, x: x @ p[0] @ p[1], params, x)
    assert found.nullity == 4  # of GL(2)


def test_rows_in_blocks_have_the_same_spectrum(monkeypatch):
    params, x = of_reference(RANKS[2])
    whole = functional_dimension(dense, params, x)
    monkeypatch.setattr(on_inputs, "BLOCK", 40 * whole.parameters)
    parts = functional_dimension(dense, params, x)
    assert len(on_inputs.function_on(dense, params, x, "a test").parts()) > 2
    assert parts.rank == whole.rank
    np.testing.assert_allclose(
        parts.singular_values, whole.singular_values, atol=1e-13 * whole.singular_values[0]
    )

    def centered(p, x):  # by the batch: not to be split
        found = dense(p, x)
        return found - jnp.mean(found, axis=0, keepdims=True)

    assert len(on_inputs.function_on(centered, params, x, "a test").parts()) == 1


def test_bad_input():
    params, x = of_reference(RANKS[0])
    with pytest.raises(DataError, match=r"`x` gives 5 outputs and `params` has 13 numbers.*Give"):
        functional_dimension(dense, params, x[:5])
    with pytest.raises(DataError, match=r"`x` of functional_dimension has the shapes .*at least"):
        functional_dimension(dense, params, x[:0])
    with pytest.raises(NetworkError, match=r"`params\[0\]\[0\]` .*int64.*closure"):
        functional_dimension(dense, [(jnp.ones((3, 2), int), params[0][1]), *params[1:]], x)
    with pytest.raises(NetworkError, match="has 0 numbers"):
        functional_dimension(dense, [], x)
    random = np.random.default_rng(0)
    with pytest.raises(NetworkError, match=r"other outputs at a second call.*dropout"):
        functional_dimension(lambda p, x: dense(p, x) + random.normal(), params, x)
    with pytest.raises(NetworkError, match=r"cannot be traced by JAX.*jax\.numpy"):
        functional_dimension(lambda p, x: x if p[0][1][0] > 0 else -x, params, x)
    with pytest.raises(DataError, match="NaN or infinite"):
        functional_dimension(dense, params, x.at[0, 0].set(jnp.nan))
    other = jax.tree.map(lambda leaf: leaf[:1], params)
    with pytest.raises(NetworkError, match="the group of another network"):
        functional_dimension(dense, params, x, group=Fixed(other))
    with pytest.raises(NetworkError, match="is no symmetry of `f`"):
        functional_dimension(dense, params, x, group=Fixed(params))
    with pytest.raises(NetworkError, match=r"traced arrays.*outside"):
        jax.jit(lambda p: functional_dimension(dense, p, x).rank)(params)


class Fixed:
    def __init__(self, params):
        self.params = params

    def generators(self, _):
        return jax.tree.map(lambda leaf: leaf[None], self.params)


def test_small_units_are_no_symmetry():
    x = 1e-11 * jnp.linspace(-1.0, 1.0, 101)
    params = {"a": jnp.array(1.0), "b": jnp.array(1.0)}
    found = functional_dimension(lambda p, x: p["a"] * x + p["b"] * x**2, params, x)
    assert (found.rank, found.is_clear) == (2, False)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda p, x: None, "should return arrays of numbers"),
        (lambda p, x: p["z"] * x, "KeyError: 'z'"),
        (lambda p, x: x > 0.0, "outputs of dtype bool"),
        (lambda p, x: (p["a"] * x).astype(int), "outputs of dtype int"),
    ],
)
def test_functions_that_fail(f, message):
    with pytest.raises(NetworkError, match=message):
        functional_dimension(f, {"a": jnp.array(1.0)}, jnp.linspace(-1.0, 1.0, 9))
