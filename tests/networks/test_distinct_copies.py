"""Copies of a mode whose units are alike or idle, and of networks of one unit."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import volform as vf
from volform import networks as nn
from volform.inference.laplace import count_copies
from volform.models import Posterior
from volform.results import Level

X = np.linspace(-2.0, 2.0, 12)[:, None]


def _posterior(*layers: nn.Layer, y: np.ndarray | None = None) -> Posterior:
    return vf.condition(nn.regression(nn.serial(*layers), 0.5), X, np.tanh(X) if y is None else y)


def _images(first: np.ndarray, last: np.ndarray) -> int:
    """Distinct ones among all exchanges and changes of sign, by going through them."""
    found, h = set[tuple[float, ...]](), first.shape[0]
    for order in itertools.permutations(range(h)):
        for signs in itertools.product((1.0, -1.0), repeat=h):
            moved = [np.array(signs)[:, None] * first[[*order]], np.array(signs) * last[:, order]]
            # The sign of a zero is none.
            found.add(tuple(np.concatenate([np.ravel(part) for part in moved]) + 0.0))
    return len(found)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("h", [2, 3, 4])
def test_count_of_distinct_copies_against_enumeration(h: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    first, last = random.normal(size=(h, 1)), random.normal(size=(1, h))
    for unit in range(1, h):
        kind = random.integers(4)
        sign = random.choice([-1.0, 1.0])
        if kind == 0:  # alike, up to the sign
            first[unit], last[:, unit] = sign * first[0], sign * last[:, 0]
        elif kind == 1:  # idle
            first[unit], last[:, unit] = 0.0, 0.0
        elif kind == 2:  # alike in one layer only
            first[unit] = first[0]
    posterior = _posterior(nn.Dense(h), nn.Erf(), nn.Dense(1))
    u = posterior.unconstrain({"layer0.w": first, "layer1.w": last})
    declared = posterior.provenance.equivalent_modes
    assert declared == math.factorial(h) * 2**h
    assert count_copies(posterior, u, declared) == _images(first, last)


@pytest.mark.parametrize(
    ("layers", "count"),
    [
        ((nn.Dense(1), nn.Erf(), nn.Dense(1)), 2),
        ((nn.Dense(1, b_std=1.0), nn.Erf(), nn.Dense(2)), 2),
        ((nn.Dense(1), nn.Erf(), nn.Dense(1), nn.Erf(), nn.Dense(1)), 4),
        ((nn.Dense(1), nn.Relu(), nn.Dense(1)), 1),
        ((nn.Dense(1), nn.Dense(1)), 2),  # w v = c, a hyperbola, has two branches
        ((nn.Dense(3), nn.Erf(), nn.Dense(1), nn.Erf(), nn.Dense(1)), 48 * 2),
        ((nn.Dense(1), nn.Cos(), nn.Dense(1)), 2),
    ],
)
def test_layers_of_one_unit_have_signs_too(layers: tuple[nn.Layer, ...], count: int) -> None:
    outputs = layers[-1]
    assert isinstance(outputs, nn.Dense)
    posterior = _posterior(*layers, y=np.exp(X) + np.zeros(outputs.width))
    assert posterior.provenance.equivalent_modes == count
    assert not posterior.provenance.uncounted


def test_two_hundred_units_that_are_all_zero_are_one_mode() -> None:
    posterior = _posterior(nn.Dense(200), nn.Erf(), nn.Dense(1))
    declared = posterior.provenance.equivalent_modes
    assert declared == math.factorial(200) * 2**200
    assert count_copies(posterior, jnp.zeros(posterior.dim), declared) == 1


def _branch(n: int) -> nn.Layer:
    return nn.serial(nn.Dense(n), nn.Erf(), nn.Dense(1))


@pytest.mark.parametrize(
    ("layers", "count"),
    [
        ((nn.summed(_branch(2), _branch(2)),), 64),  # of 384
        ((nn.concatenated(nn.Dense(2), nn.Dense(2)), nn.Erf(), nn.Dense(1)), 2),
        ((nn.multiplied(nn.Dense(2), nn.Dense(2)), nn.Dense(1)), 32),  # of 128
    ],
    ids=["summed", "concatenated", "multiplied"],
)
def test_exchanges_of_branches_are_said_not_to_be_counted(
    layers: tuple[nn.Layer, ...], count: int
) -> None:
    posterior = _posterior(*layers, y=np.exp(X))
    assert posterior.provenance.equivalent_modes == count
    assert posterior.provenance.uncounted


def test_arrays_that_are_added_are_no_branches() -> None:
    """Of the two the data see the sum alone: their exchange leaves the mode in place."""
    network = nn.from_function(
        lambda p, x: (p["a"] + p["b"]) * x, {"a": np.ones(()), "b": np.ones(())}
    )
    posterior = vf.condition(nn.regression(network, 0.5), X, X)
    assert not posterior.provenance.uncounted


def test_one_tanh_unit_by_laplace_and_by_a_grid() -> None:
    """Two weights: log Z by the rule of trapezoids."""
    y = np.tanh(3.0 * X) + 0.1 * np.sin(40.0 * X)
    posterior = _posterior(nn.Dense(1), nn.Erf(), nn.Dense(1), y=y)
    grid = jnp.linspace(-9.0, 9.0, 181)
    points = jnp.stack(jnp.meshgrid(grid, grid), -1).reshape(-1, 2)
    logs = jax.vmap(posterior.log_density)(points)  # flat in u, which is the two weights
    exact = jax.scipy.special.logsumexp(logs) + 2.0 * math.log(grid[1] - grid[0])
    evidence = vf.laplace(vf.find_map(posterior)).evidence
    assert_allclose(evidence.log_z_second_order, exact, atol=0.05)


def test_units_that_are_nearly_alike_overlap() -> None:
    """Of two units for one edge the copies by their exchange lie within the same Gaussian."""
    random = np.random.default_rng(2)
    y = np.tanh(3.0 * X) + 0.1 * random.normal(size=X.shape)
    posterior = _posterior(nn.Dense(2), nn.Erf(), nn.Dense(1), y=y)
    evidence = vf.laplace(vf.find_map(posterior)).evidence
    assert evidence.trust.level is Level.POOR
    assert "equivalent modes" in evidence.trust.reason
