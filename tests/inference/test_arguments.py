"""Arguments that cannot be, in the order of a first session: each is one sentence, or works."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import volform as vf
from volform.errors import DataError, ModelError, OperatorError

Y = np.array([0.3, -0.5, 0.9])
KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 3)


def normal(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def slope(d):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    numpyro.sample("y", dist.Normal(mu * d["x"], 1.0), obs=d["y"])


POSTERIOR = vf.condition(normal, Y)
U = jnp.array([0.2])


@pytest.fixture(scope="module")
def approx() -> Any:
    return vf.laplace(POSTERIOR)


CALLS: dict[str, Callable[[Any], Any]] = {
    "find_map": lambda **k: vf.find_map(POSTERIOR, **k),
    "laplace": lambda **k: vf.laplace(POSTERIOR, **k),
    "evidence": lambda **k: vf.evidence(POSTERIOR, **k),
    "compare": lambda **k: vf.compare({"a": POSTERIOR}, **k),
    "maximize_evidence": lambda **k: vf.maximize_evidence(lambda h: POSTERIOR, {"h": 1.0}, **k),
}


@pytest.mark.parametrize("key", [0, "a", KEYS], ids=["number", "text", "batch"])
@pytest.mark.parametrize("function", CALLS)
def test_keys(function, key):
    with pytest.raises(ModelError, match=f"`key` of {function} is .* one random key"):
        CALLS[function](key=key)


@pytest.mark.parametrize("number", [0, -1, 2.5, True, "4"], ids=repr)
def test_numbers(number, approx):
    for argument in ("starts", "max_steps"):
        with pytest.raises(ModelError, match=f"`{argument}` of find_map is .* whole number"):
            vf.find_map(POSTERIOR, **{argument: number})
    for call in (
        lambda: approx.sample(KEY, number),
        lambda: approx.predictive(KEY, draws=number),
        lambda: vf.to_arviz(approx, draws=number),
    ):
        with pytest.raises(ModelError, match=r"`draws` of sample is .* whole number"):
            call()


def test_keys_of_draws(approx):
    for key in (None, 0, KEYS):
        with pytest.raises(ModelError, match="`key` of sample is"):
            approx.sample(key, 10)
        with pytest.raises(OperatorError, match="`key` of Krylov is"):
            vf.Krylov(key)
    with pytest.raises(ModelError, match="`key` of predictive is a batch"):
        approx.predictive(KEYS)


@pytest.mark.parametrize("tolerance", [0.0, -1e-8, np.nan, "1"], ids=repr)
def test_tolerances(tolerance):
    with pytest.raises(ModelError, match=r"`tolerance` is .* positive number"):
        vf.find_map(POSTERIOR, tolerance=tolerance)


BOUND = ("log_density", "log_likelihood", "values", "trace")


POINTS = {
    "long": jnp.zeros(4),
    "empty": jnp.zeros(0),
    "matrix": jnp.zeros((1, 1)),
    "whole": jnp.zeros(1, int),
    "list": [0.0],
}


@pytest.mark.parametrize("u", POINTS.values(), ids=POINTS)
def test_points_of_another_shape(u):
    methods = ("log_density", "log_density_lebesgue", "values", "metric", "log_volume")
    for method in (
        *(getattr(POSTERIOR, name) for name in methods),
        *(getattr(POSTERIOR.bound_model, name) for name in BOUND),
    ):
        with pytest.raises(DataError, match=r"`u` has shape .* floating-point vector of shape \(1"):
            method(u)


def test_methods_under_jit():
    traced = []

    def model(y):
        traced.append(0)
        normal(y)

    posterior = vf.condition(model, Y)
    exact = -0.5 * ((Y - 0.2) ** 2).sum() - 1.5 * np.log(2 * np.pi)
    exact += -0.5 * 0.2**2 / 100.0 - 0.5 * np.log(200 * np.pi)
    density = jax.jit(posterior.log_density)
    assert float(density(U)) == pytest.approx(exact, rel=1e-12)
    count = len(traced)
    density(U + 1.0)
    assert len(traced) == count
    assert jax.jit(posterior.values)(U)["mu"] == U[0]
    assert jax.jit(posterior.bound_model.log_density)(U) == density(U)
    other = vf.condition(model, Y + 1.0)
    assert jax.jit(other.log_density)(U) != density(U)


def test_columns_and_arrays_of_other_libraries():
    pd, xr = pytest.importorskip("pandas"), pytest.importorskip("xarray")
    exact = float(POSTERIOR.log_density(U))
    for y in (
        pd.Series(Y),
        xr.DataArray(Y),
        pd.Series(Y, dtype="Float64"),
        pd.DataFrame({"y": Y})["y"],
    ):
        assert float(vf.condition(normal, y).log_density(U)) == exact
        assert float(vf.condition(normal, y=y).log_density(U)) == exact
    table = pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": Y})
    exact = float(vf.condition(slope, {"x": np.array([1.0, 2.0, 3.0]), "y": Y}).log_density(U))
    for columns in (dict(table), xr.Dataset.from_dataframe(table)):
        assert float(vf.condition(slope, columns).log_density(U)) == exact


def test_data_that_are_no_arrays_of_numbers():
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"x": Y, "y": Y})
    cases = {
        "is a table, DataFrame of shape \\(3, 2\\)": lambda: vf.condition(slope, table),
        "`y` has a list for data": lambda: vf.condition(normal, [1.0, 2.0]),
        "`y` has data of the type <U1": lambda: vf.condition(normal, np.array(["a", "b"])),
        "`y` has data of the type object": lambda: vf.condition(normal, pd.Series([1.0, "b"])),
    }
    for message, call in cases.items():
        with pytest.raises(DataError, match=message):
            call()


def test_names_are_text_before_any_work():
    for name in (1, None, ""):
        with pytest.raises(ModelError, match="`models` of compare has the name"):
            vf.compare({"a": "not looked at", name: POSTERIOR})


@pytest.mark.parametrize(
    "transform", [jax.vmap, lambda f: lambda y: jax.jit(f)(y[0])], ids=["vmap", "jit"]
)
@pytest.mark.parametrize(
    "function",
    [vf.evidence, vf.find_map, vf.laplace, lambda p: vf.compare({"a": p})],
    ids=["evidence", "find_map", "laplace", "compare"],
)
def test_searches_are_not_traced(transform, function):
    data = jnp.stack([Y, Y + 1.0])
    with pytest.raises(ModelError, match=r"holds traced arrays.*for y in data.*maximize_evidence"):
        transform(lambda y: function(vf.condition(normal, y)))(data)
    densities = jax.vmap(lambda y: vf.condition(normal, y).log_density(U))(data)  # which can be
    assert densities[0] == pytest.approx(float(POSTERIOR.log_density(U)))


@pytest.mark.parametrize(
    ("data", "devices", "message"),
    [
        ((np.ones(4), np.ones(3)), None, "holds arrays of 3, 4 examples"),
        ((np.ones(4), 1.0), None, r"holds a leaf of shape \(\)"),
        (np.array(["a"]), None, "dtype <U1"),
        ((), None, r"is \(\), which holds no array"),
        (np.ones(4), [], r"`devices` of sharded is \[\]"),
        (np.ones(4), [1], r"`devices` of sharded is \[1\]"),
    ],
    ids=["lengths", "scalar", "text", "nothing", "no device", "number"],
)
def test_data_that_cannot_be_spread(data, devices, message):
    with pytest.raises(DataError, match=message):
        vf.operators.sharded(data, devices)


@pytest.mark.standard_promotion
def test_ranks_are_not_promoted():
    """By our own code; NumPyro promotes them where it draws vectors."""
    with jax.numpy_rank_promotion("raise"):
        approx = vf.laplace(POSTERIOR, second_order=False)
        assert approx.sample(KEY, 8).u.shape == (8, 1)
        vf.laplace(approx.fit, structure=vf.inference.Diagonal())
        found = vf.evidence(approx, by=vf.Importance(draws=500, rounds=2))
    assert found.log_z == pytest.approx(float(approx.evidence.log_z), abs=0.1)  # a Gaussian


@pytest.mark.standard_promotion
def test_ranks_of_many_parameters_and_of_a_covariance():
    def model(x, y):
        w = numpyro.sample("w", dist.Normal(jnp.zeros(12), jnp.ones(12)).to_event(1))
        numpyro.sample("y", dist.Normal(x @ w, jnp.ones(3)), obs=y)

    def share(y):
        p = numpyro.sample("p", dist.Beta(2.0, 3.0))
        numpyro.sample("y", dist.Beta(2.0 * p, jnp.ones(3)), obs=y)

    x = np.sin(np.arange(36.0)).reshape(3, 12)
    with jax.numpy_rank_promotion("raise"):
        posterior = vf.condition(model, x, Y)
        approx = vf.laplace(posterior, at={"w": jnp.zeros(12)}, curvature=vf.GGN())
        metric = vf.condition(vf.attach(share, vf.JointFisher()), np.array([0.1, 0.5, 0.9]))
        assert jnp.isfinite(metric.log_density(U))
    exact = np.linalg.slogdet(np.eye(3) + x @ x.T)[1]
    assert float(approx.evidence.terms["-1/2 log det(G^-1 H)"]) == pytest.approx(
        -0.5 * exact, rel=1e-9
    )
