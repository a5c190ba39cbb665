"""Tuning with wrong arguments, masked data, and where there is no maximum."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import volform as vf
from volform import networks as nn
from volform.errors import DataError, ModelError
from volform.inference import (
    GGN,
    AtMode,
    Diagonal,
    EmpiricalFisher,
    ExpectedFisher,
    Full,
    HeldOut,
    Linearized,
    MeanField,
    PerSite,
    class_scores,
)

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(12, 3)))
W = jnp.array([1.0, -0.5, 0.2])
Y = X @ W + 0.3 * jnp.asarray(RNG.normal(size=12))
Z = jnp.asarray(RNG.normal(size=(20, 3)))
ZY = Z @ W + 0.6 * jnp.asarray(RNG.normal(size=20))
LABELS = jnp.arange(12) % 3


def linear(outputs: int) -> Any:
    return nn.from_function(lambda p, x: x @ p["w"], {"w": jnp.zeros((3, outputs))})


def regression(y: Any = Y, at: Any = W) -> Any:
    posterior = vf.condition(nn.regression(linear(1), 0.3), X[: len(y)], y[:, None])
    return vf.laplace(posterior, at={"w": at[:, None]}, curvature=GGN(), structure=Full())


@functools.cache
def of_classes() -> Any:
    posterior = vf.condition(nn.classification(linear(3)), X, LABELS)
    return vf.laplace(posterior, at={"w": jnp.eye(3)}, curvature=GGN())


of_numbers = functools.cache(regression)


def mean_log_density(temperature: float, y: Any) -> float:
    """Of the held-out data, by the matrices written out."""
    scale = vf.tune(of_numbers()).scales["w"].item()
    P = X.T @ X / 0.09 / temperature + jnp.eye(3) / scale**2
    variance = 0.09 + jnp.einsum("ni,ij,nj->n", Z, jnp.linalg.inv(P), Z)
    return float(jnp.mean(dist.Normal(Z @ W, jnp.sqrt(variance)).log_prob(y)))


def test_temperature_of_data_held_out() -> None:
    tuned = vf.tune(of_numbers(), temperature=HeldOut(Z, ZY[:, None]))
    assert tuned.converged
    found = tuned.temperature
    assert_allclose(found, 5.236, rtol=1e-3)
    best = mean_log_density(found, ZY)
    assert best > max(mean_log_density(f * found, ZY) for f in (0.98, 1.02))


def test_temperature_at_an_end_is_no_maximum() -> None:
    noisy = ZY + 9.0 * jnp.sign(ZY)
    for y, end in [(Z @ W, 1e-3), (noisy, 1e3)]:
        tuned = vf.tune(of_numbers(), temperature=HeldOut(Z, y[:, None]))
        assert_allclose(tuned.temperature, end)
        assert not tuned.converged
        assert "no maximum of their density in the temperature, from 0.001 to 1000" in repr(tuned)
    flat = vf.tune(of_classes(), temperature=HeldOut(X, LABELS, Linearized(link=AtMode())))
    assert not flat.converged  # that link does not see the temperature


@pytest.mark.parametrize(
    ("approx", "held_out", "message"),
    [
        (of_numbers, (Z, ZY), r"of shape \(20,\), but its distribution has shape \(20, 1\)"),
        (of_numbers, (Z, ZY[:3, None]), r"of shape \(3, 1\), but its distribution has shape"),
        (of_numbers, (Z, ZY[:1, None]), r"shape \(1, 1\), but the predictions of `y`"),
        (
            of_numbers,
            (Z, ZY[:, None].at[1].set(jnp.nan)),
            r"NaN or infinite, the first at index \(1,",
        ),
        (of_numbers, (Z[:, :2], ZY[:, None]), r"could not run `model` with `x` of shape \(20, 2\)"),
        (of_numbers, (Z[:0], ZY[:0, None]), r"`predictive` has no examples"),
        (
            of_classes,
            (X, LABELS[:, None]),
            r"of shape \(12, 1\), but its distribution has shape \(12,",
        ),
        (of_classes, (X, jax.nn.one_hot(LABELS, 3)), "of the type float"),
        (of_classes, (X, LABELS + 1), r"4 values outside the support .* index \(2,\)"),
    ],
    ids=["row", "few", "one", "NaN", "columns", "none", "column", "one-hot", "outside"],
)
def test_held_out_data_are_checked_as_in_training(approx: Any, held_out: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        vf.tune(approx(), temperature=HeldOut(*held_out))


def test_a_column_of_labels_for_a_model_without() -> None:
    def model(x: Any, y: Any = None) -> None:
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        numpyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)

    approx = vf.laplace(vf.condition(model, X, Y), at={"w": W}, curvature=GGN())
    with pytest.raises(DataError, match=r"`y` of HeldOut does not fit .* shape \(20, 1\)"):
        vf.tune(approx, temperature=HeldOut(Z, ZY[:, None]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": 0.1}, "`noise` of tune is 0.1; it should be True or False"),
        ({"temperature": 2.0}, r"`temperature` of tune is 2.0; it should be `HeldOut\(x, y\)`"),
        ({"temperature": (Z, ZY)}, "`temperature` of tune is of the type tuple"),
    ],
    ids=["noise", "number", "tuple"],
)
def test_arguments_of_another_kind(arguments: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        vf.tune(of_numbers(), **arguments)


def test_values_of_another_kind() -> None:
    with pytest.raises(ModelError, match="`by` of HeldOut is 'probit'"):
        HeldOut(Z, ZY, "probit")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ModelError, match=r"`order` of MeanField is 1\.0"):
        MeanField(1.0)  # pyright: ignore[reportArgumentType]
    two = vf.condition(two_sites, X, Y, Y)
    approx = vf.laplace(two, at={"w": W}, curvature=GGN())
    with pytest.raises(ModelError, match=r"one observed site; the model has \['y', 'z'\]"):
        vf.tune(approx, temperature=HeldOut(Z, ZY))


def two_sites(x: Any, y: Any = None, z: Any = None) -> None:
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)
    numpyro.sample("z", dist.Normal(x @ w, 0.6), obs=z)


def test_linearized_predictions_that_are_not_known() -> None:
    by = Linearized()
    with pytest.raises(DataError, match=r"1 of the 12 .* NaN, the first at index \(2, 0\)"):
        of_numbers().predictive(X.at[2, 1].set(jnp.nan), by=by)
    with pytest.raises(DataError, match=r"NaN, .* `x` of shape \(12, 3\) and 1 NaN"):
        of_classes().predictive(X.at[2, 1].set(jnp.nan), by=by)
    with pytest.raises(DataError, match=r"could not run `model` with `x` of shape \(0, 3\)"):
        of_classes().predictive(X[:0], by=by)
    with pytest.raises(DataError, match=r"no examples, with `x` of shape \(0, 3\)"):
        of_numbers().predictive(X[:0], by=by)
    with pytest.raises(DataError, match=r"could not run `model` with `x` of shape \(12, 2\)"):
        of_numbers().predictive(X[:, :2], by=by)


@pytest.mark.parametrize("kind", ["float32", "bool"])
def test_labels_that_cannot_count(kind: str) -> None:
    with pytest.raises(DataError, match=f"labels of classes of the type {kind}; .* integers"):
        vf.condition(nn.classification(linear(3)), X, LABELS.astype(kind))


def masked(mask: Any) -> Callable:
    def model(x: Any, y: Any = None) -> None:
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        fn = dist.Normal(x @ w, 0.3)
        numpyro.sample("y", fn if mask is None else fn.mask(mask), obs=y)

    return model


@pytest.mark.parametrize("curvature", [GGN(), ExpectedFisher(), EmpiricalFisher()], ids=repr)
@pytest.mark.parametrize("structure", [Full(), Diagonal()], ids=repr)
def test_masked_data_are_those_that_are_left_out(curvature: Any, structure: Any) -> None:
    def tuned(mask: Any, x: Any, y: Any) -> Any:
        posterior = vf.condition(masked(mask), x, y)
        approx = vf.laplace(posterior, at={"w": W}, curvature=curvature, structure=structure)
        return vf.tune(approx, noise=True)

    want = tuned(None, X[:6], Y[:6])
    found = tuned(jnp.arange(12) < 6, X, Y)
    assert found.converged
    assert_allclose(found.log_z, want.log_z, rtol=1e-10)
    assert_allclose(found.factors["y"], want.factors["y"], rtol=1e-10)
    assert_allclose(found.factors["w"], want.factors["w"], rtol=1e-10)
    matrices = [t.approx.precision.as_matrix() for t in (found, want)]
    assert_allclose(*matrices, rtol=1e-10)


@pytest.mark.parametrize(("weights", "data"), [(1, 1), (100, 1), (100, 100)])
def test_convergence_does_not_depend_on_the_units(weights: float, data: float) -> None:
    approx = regression(data * Y, weights * W)
    for noise in (False, True):
        tuned = vf.tune(approx, scales=PerSite(), noise=noise)
        assert tuned.converged
        assert tuned.gradient_norm < 1e-11
        scale = tuned.scales["w"].item()
        noise_scale = np.ravel(tuned.scales["y"])[0] if noise else 0.3
        shrinkage = np.linalg.inv(X.T @ X / noise_scale**2 * scale**2 + np.eye(3))
        # MacKay's fixed point: |w|^2 / scale^2 is the number of weights that the data determine.
        determined = 3.0 - np.trace(shrinkage)
        assert_allclose(np.sum((weights * W) ** 2) / scale**2, determined, rtol=1e-8)
        if noise:
            residual = np.sum((data * Y - weights * X @ W) ** 2) / noise_scale**2
            assert_allclose(residual, 12.0 - determined, rtol=1e-8)


@pytest.mark.parametrize("count", [12, 3])
def test_a_perfect_fit_has_no_maximum_in_the_noise(count: int) -> None:
    tuned = vf.tune(regression((X @ W)[:count]), noise=True)
    assert not tuned.converged
    assert "the evidence has no maximum in the noise of y" in repr(tuned)


def test_the_noise_has_its_entries_and_its_row() -> None:
    tuned = vf.tune(of_numbers(), noise=True)
    again = vf.tune(tuned.approx, noise=True)
    for found in (tuned, again):
        assert set(found.factors) == set(found.scales) == {"w", "y"}
        assert_allclose(found.scales["y"], 0.3 * tuned.noise, rtol=1e-8)
        assert "noise of y" in repr(found)
    assert set(vf.tune(of_numbers()).factors) == {"w"}
    assert "noise" not in repr(vf.tune(of_numbers()))


def test_equivalent_modes_are_said() -> None:
    network = nn.MLP(widths=(2,))
    posterior = vf.condition(nn.regression(network, 0.3), X, Y[:, None])
    at = network.init(jax.random.key(0), 3)
    tuned = vf.tune(vf.laplace(posterior, at=at, curvature=GGN(), structure=Diagonal()))
    assert "`approx.evidence` adds 2.079 for equivalent modes" in repr(tuned)
    assert "equivalent modes" not in repr(vf.tune(of_numbers()))


PAIRS = np.array([[0.5, 0.5], [0.2, 0.8], [1.0, 0.0]])


def test_scores_of_other_classes_and_types() -> None:
    three = np.array([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1]])
    with pytest.raises(DataError, match="`outside` of class_scores has 3 classes and `predictives"):
        class_scores(PAIRS, [0, 1, 0], outside=three)
    with pytest.raises(DataError, match="2 are none, the first 7 at index 1"):
        class_scores(PAIRS, [0, 7, -1])
    half = jnp.asarray([[0.123, 0.877], [0.3, 0.7], [0.1, 0.9]]).astype(jnp.bfloat16)
    rounded = np.asarray(half, float)
    want = -np.log(rounded[[0, 1, 2], [0, 1, 1]]).mean()
    assert_allclose(class_scores(half, [0, 1, 1]).nll.value, want, rtol=1e-12)
    with pytest.raises(DataError, match="rows that are no probabilities"):
        class_scores(rounded, [0, 1, 1])  # whose sums are off by .002


@pytest.mark.filterwarnings("error")
def test_a_label_of_probability_zero() -> None:
    found = class_scores(PAIRS, [0, 1, 1])
    assert found.nll.value == np.inf
    assert np.isnan(found.nll.error)
