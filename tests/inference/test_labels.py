"""Names and labels of the axes of data, from `condition` to the ArviZ object."""

import pickle
import warnings
from typing import Any

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray as xr
from numpy.testing import assert_allclose
from numpyro.handlers import scope
from tests.compilations import compilations

import volform as vf
from volform.errors import TrustWarning
from volform.models import with_arguments, with_model, with_sites_fixed
from volform.models.labels import axis_of

NAMES = ["Uppsala", "Lund", "Visby"]
FRAME = pd.DataFrame(
    {"sigma": [1.0, 2.0, 1.5], "y": [2.0, -1.0, 0.5]}, index=pd.Index(NAMES, name="town")
)


def towns(sigma: Any, y: Any = None) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    theta = numpyro.sample("theta", dist.Normal(mu, 1.0).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def levels(y: Any, z: Any = None) -> None:
    """Observes one or two arrays of any shape, in a plate where they have one axis."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    for name, value in (("y", y), ("z", z)):
        if value is not None:
            numpyro.sample(name, dist.Normal(mu, 1.0), obs=value)


def plated(y: Any, z: Any = None) -> None:
    with numpyro.plate("site", 3):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        if z is not None:
            numpyro.sample("z", dist.Normal(mu, 1.0), obs=z)


def exported(posterior: Any, **given: Any) -> Any:
    fit = vf.find_map(posterior, starts=1)
    return vf.to_arviz(vf.laplace(fit, second_order=False), draws=10, **given)


def labels(data: Any, group: str, dim: str) -> list[Any]:
    return data[group].coords[dim].values.tolist()


def test_a_column_keeps_its_index_in_every_group() -> None:
    posterior = vf.condition(towns, FRAME["sigma"], y=FRAME["y"])
    data = exported(posterior, predictive=True)
    for group in ("observed_data", "log_likelihood", "posterior_predictive"):
        assert data[group]["y"].dims[-1] == "town"
        assert labels(data, group, "town") == NAMES
    assert data["constant_data"]["sigma"].dims == ("town",)
    assert float(data["constant_data"]["sigma"].sel(town="Lund")) == 2.0
    # As long as the data, and nothing says that it is along the towns.
    assert data["posterior"]["theta"].dims == ("chain", "draw", "theta_dim_0")
    said = exported(posterior, dims={"theta": ["town"]})
    assert said["posterior"]["theta"].dims == ("chain", "draw", "town")
    assert labels(said, "posterior", "town") == NAMES


def test_the_data_are_drawn_again() -> None:
    posterior = vf.condition(towns, FRAME["sigma"], y=FRAME["y"])
    data = vf.to_arviz(vf.laplace(posterior), draws=20_000, predictive=True)
    again = data["posterior_predictive"]["y"].values[0]
    # All is Gaussian: y = theta + sigma e, given by conditioning the joint Gaussian.
    sigma, y = FRAME["sigma"].to_numpy(), FRAME["y"].to_numpy()
    prior = 25.0 + np.eye(3)
    gain = prior @ np.linalg.inv(prior + np.diag(sigma**2))
    covariance = prior - gain @ prior + np.diag(sigma**2)
    assert_allclose(again.mean(0), gain @ y, atol=5.0 * 2.5 / np.sqrt(20_000))
    assert_allclose(np.cov(again.T), covariance, atol=5.0 * 10.0 / np.sqrt(20_000))
    assert "posterior_predictive" not in exported(posterior)


def test_axes_of_xarray_and_of_tables() -> None:
    y = np.arange(6.0).reshape(2, 3)
    array = xr.DataArray(y, dims=("day", "town"), coords={"town": NAMES})
    data = exported(vf.condition(levels, array))
    assert data["observed_data"]["y"].dims == ("day", "town")
    assert labels(data, "observed_data", "town") == NAMES
    assert labels(data, "observed_data", "day") == [0, 1]
    table = pd.DataFrame(y, columns=pd.Index(NAMES, name="town"), index=["mon", "tue"])
    data = exported(vf.condition(levels, xr.DataArray(table)))
    assert data["observed_data"]["y"].dims == ("y_dim_0", "town")
    assert labels(data, "observed_data", "y_dim_0") == ["mon", "tue"]
    assert labels(data, "observed_data", "town") == NAMES


def slope(data: Any) -> None:
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a * data["x"], 1.0), obs=data["y"])


def test_columns_inside_of_an_argument() -> None:
    table = FRAME.assign(x=1.0)
    for columns in (dict(table), xr.Dataset.from_dataframe(table)):
        data = exported(vf.condition(slope, columns))
        assert data["observed_data"]["y"].dims == ("town",)
        assert labels(data, "observed_data", "town") == NAMES


def test_an_event_is_without_its_axis_in_the_likelihood() -> None:
    def model(y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.MultivariateNormal(mu * jnp.ones(3), jnp.eye(3)), obs=y)

    array = xr.DataArray(np.ones((2, 3)), dims=("day", "town"), coords={"town": NAMES})
    data = exported(vf.condition(model, array))
    assert data["observed_data"]["y"].dims == ("day", "town")
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "day")


def test_labels_without_a_name() -> None:
    column = pd.Series([2.0, -1.0, 0.5], index=NAMES)
    data = exported(vf.condition(levels, column))
    assert data["observed_data"]["y"].dims == ("y_dim_0",)
    assert labels(data, "observed_data", "y_dim_0") == NAMES
    # Those of a plate are those of all that is in it.
    data = exported(vf.condition(plated, column))
    assert data["observed_data"]["y"].dims == ("site",)
    assert labels(data, "posterior", "site") == NAMES
    data = exported(vf.condition(plated, pd.Series([2.0, -1.0, 0.5])[::-1]))
    assert labels(data, "posterior", "site") == [2, 1, 0]


def test_a_plate_is_called_as_the_data_along_it() -> None:
    posterior = vf.condition(plated, FRAME["y"])
    data = exported(posterior)
    assert data["observed_data"]["y"].dims == ("town",)
    assert data["posterior"]["mu"].dims == ("chain", "draw", "town")
    assert labels(data, "posterior", "town") == NAMES
    # Not where two columns call it by two names, nor against what the user says.
    data = exported(vf.condition(plated, FRAME["y"], column("place", list("abc"))))
    assert data["posterior"]["mu"].dims == ("chain", "draw", "site")
    data = exported(posterior, dims={"mu": ["unit"]}, coords={"unit": [4, 5, 6]})
    assert data["posterior"]["mu"].dims == ("chain", "draw", "unit")


def test_labels_along_another_plate_are_not_those_of_it() -> None:
    """A column whose index is called like a plate that it is not along, and of its length."""

    def rasch(y: Any, which: Any) -> None:
        with numpyro.plate("town", 3):
            b = numpyro.sample("b", dist.Normal(0.0, 100.0))
        with numpyro.plate("answer", 3):
            numpyro.sample("y", dist.Normal(b[which], 1.0), obs=y)

    data = exported(vf.condition(rasch, FRAME["y"], np.array([2, 0, 1])))
    assert data["posterior"]["b"].dims == ("chain", "draw", "town")
    assert labels(data, "posterior", "town") == [0, 1, 2]
    assert data["observed_data"]["y"].dims == ("y_dim_0",)
    assert labels(data, "observed_data", "y_dim_0") == NAMES
    which = pd.Series([2, 0, 1], index=pd.Index(["p", "q", "r"], name="town"))
    data = exported(vf.condition(rasch, FRAME["y"].to_numpy(), which))
    assert labels(data, "posterior", "town") == [0, 1, 2]
    assert data["constant_data"]["which"].dims == ("which_dim_0",)


def test_axes_that_plates_call_the_other_way_round() -> None:
    def flows(y: Any) -> None:
        with numpyro.plate("origin", 3, dim=-1):
            a = numpyro.sample("a", dist.Normal(0.0, 1.0))
            with numpyro.plate("destination", 3, dim=-2):
                numpyro.sample("y", dist.Normal(a, 1.0), obs=y)

    names = {"origin": NAMES, "destination": NAMES[::-1]}
    table = xr.DataArray(np.arange(9.0).reshape(3, 3), dims=tuple(names), coords=names)
    data = exported(vf.condition(flows, table))
    assert data["observed_data"]["y"].dims == ("y_dim_0", "y_dim_1")
    assert labels(data, "observed_data", "y_dim_0") == NAMES
    assert labels(data, "observed_data", "y_dim_1") == NAMES[::-1]
    assert labels(data, "posterior", "origin") == [0, 1, 2]


def test_names_within_a_scope() -> None:
    """Slashes are groups to the tree of ArviZ 1.x, and letters to the object of 0.x."""

    def model(y: Any) -> None:
        with numpyro.plate("site", 3):
            numpyro.sample("y_mu", dist.Normal(0.0, 1.0))
            inner = numpyro.sample("y/mu", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(inner, 1.0), obs=y)

    data = exported(vf.condition(scope(model, prefix="a"), FRAME["y"]))
    names = [{"a/y_mu", "a/y/mu"}, {"a_y_mu", "a_y_mu_"}]
    assert set(data["posterior"].data_vars) in names
    name = next(iter(data["observed_data"].data_vars))
    assert data["observed_data"][name].dims == ("town",)


def test_what_the_user_gives_wins() -> None:
    posterior = vf.condition(towns, FRAME["sigma"], y=FRAME["y"])
    data = exported(posterior, coords={"town": ["u", "l", "v"]})
    assert labels(data, "observed_data", "town") == ["u", "l", "v"]
    data = exported(posterior, dims={"y": ["place"]})
    assert data["observed_data"]["y"].dims == ("place",)
    assert labels(data, "observed_data", "place") == NAMES
    assert labels(data, "constant_data", "town") == NAMES
    data = exported(posterior, dims={"y": ["place"]}, coords={"place": [7, 8, 9]})
    assert labels(data, "observed_data", "place") == [7, 8, 9]


def column(name: str, index: list[str]) -> pd.Series:
    return pd.Series(np.arange(1.0, len(index) + 1.0), pd.Index(index, name=name))


@pytest.mark.parametrize(
    ("y", "z", "dims", "found"),
    [
        # One name for two axes: of other labels, or of another length.
        (
            "town",
            column("town", ["a", "b"]),
            ("z_dim_0",),
            ["a", "b"],
        ),
        (
            "town",
            column("town", list("abc")),
            ("z_dim_0",),
            list("abc"),
        ),
        ("town", xr.DataArray(np.ones((2, 2)), dims=("town", "day")), ("z_dim_0", "day"), [0, 1]),
        ("town", xr.DataArray(np.ones(3), dims="town"), ("town",), NAMES),
        # Names that ArviZ or another variable has.
        (
            "town",
            column("draw", ["a", "b"]),
            ("z_dim_0",),
            ["a", "b"],
        ),
        ("town", column("y", ["a", "b"]), ("z_dim_0",), ["a", "b"]),
        # No names at all.
        ("dim_0", xr.DataArray(np.ones(2)), ("z_dim_0",), [0, 1]),
    ],
)
def test_names_that_are_taken_give_way(y: str, z: Any, dims: Any, found: Any) -> None:
    first = xr.DataArray([2.0, -1.0, 0.5], dims=y, coords={y: NAMES})
    data = exported(vf.condition(levels, first, z))
    own = "y_dim_0" if y == "dim_0" else y
    assert data["observed_data"]["y"].dims == (own,)
    assert labels(data, "observed_data", own) == NAMES
    assert data["observed_data"]["z"].dims == dims
    assert labels(data, "observed_data", dims[0]) == found


def test_two_columns_of_one_plate_with_other_labels() -> None:
    other = pd.Series([1.0, 2.0, 3.0], index=list("abc"))
    data = exported(vf.condition(plated, pd.Series([2.0, -1.0, 0.5], index=NAMES), other))
    assert data["observed_data"]["z"].dims == ("site",)
    assert labels(data, "observed_data", "site") == NAMES


def test_equal_data_are_told_apart_by_name_or_not_at_all() -> None:
    y, z = (xr.DataArray(np.zeros(3), dims=dim) for dim in ("a", "b"))
    data = exported(vf.condition(levels, y, z))
    assert data["observed_data"]["y"].dims == ("a",)
    assert data["observed_data"]["z"].dims == ("b",)

    def renamed(one: Any, two: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(two.sum(), 1.0))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=one)

    data = exported(vf.condition(renamed, y, z))
    assert data["observed_data"]["y"].dims == ("y_dim_0",)
    # What is computed from an argument is not the argument.
    data = exported(vf.condition(lambda y: levels(2.0 * y), FRAME["y"]))
    assert data["observed_data"]["y"].dims == ("y_dim_0",)


@pytest.mark.parametrize(
    ("index", "found"),
    [
        (pd.date_range("2026-01-01", periods=3, name="when"), None),
        (pd.period_range("2026-01", periods=3, freq="M", name="when"), "2026-02"),
        (pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)]), "('a', 2)"),
        (pd.CategoricalIndex(["u", "v", "w"], name="when"), "v"),
        (pd.Index([1.5, np.nan, 2.5], name="when"), None),
        (pd.Index(["u", None, 3], name="when"), "None"),
    ],
)
def test_labels_of_any_kind_go_into_a_file(index: Any, found: Any, tmp_path: Any) -> None:
    data = exported(vf.condition(levels, pd.Series([1.0, 2.0, 3.0], index=index)))
    data.to_netcdf(str(tmp_path / "draws.nc"))
    dim = index.name or "y_dim_0"
    with xr.open_dataset(tmp_path / "draws.nc", group="observed_data") as read:
        assert read["y"].dims == (dim,)
        np.testing.assert_array_equal(read[dim].values, data["observed_data"][dim].values)
        assert found is None or read[dim].values[1] == found


# --- Nothing else depends on them


@pytest.mark.standard_promotion
@pytest.mark.parametrize(
    "by",
    [
        vf.Importance(draws=1000),
        vf.Quadrature(),
        vf.Tempered(particles=1000),
        vf.Bridge(draws=400, warmup=100, repeats=1),
    ],
    ids=lambda by: type(by).__name__,
)
def test_posteriors_that_differ_in_labels_alone_share_their_programs(by: Any) -> None:
    def posterior(index: Any) -> Any:
        return vf.condition(levels, pd.Series([2.0, -1.0, 0.5], pd.Index(index, name="town")))

    first, second = posterior(NAMES), posterior(list("abc"))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    found = vf.evidence(first, by=by)
    assert labels(vf.to_arviz(found, draws=10), "observed_data", "town") == NAMES
    with compilations() as programs:
        again = vf.evidence(second, by=by)
    assert labels(vf.to_arviz(again, draws=10), "observed_data", "town") == list("abc")
    assert float(again.log_z) == float(found.log_z)
    assert programs == []


def test_labels_go_with_the_posterior() -> None:
    posterior = vf.condition(towns, FRAME["sigma"], y=FRAME["y"])
    u = jnp.zeros(posterior.dim)
    density = jax.jit(posterior.log_density)(u)
    mapped = jax.tree.map(lambda leaf: leaf, posterior)
    for same in (
        pickle.loads(pickle.dumps(posterior)),
        mapped,
        with_model(posterior, numpyro.handlers.reparam(towns, config={})),
        with_arguments(posterior, {"sigma": jnp.array([1.0, 2.0, 1.5])}),
    ):
        assert float(same.log_density(u)) == float(density)
        data = exported(same)
        assert labels(data, "observed_data", "town") == NAMES
        assert labels(data, "constant_data", "town") == NAMES
    fixed = with_sites_fixed(posterior, u, ["mu"])
    assert labels(exported(fixed), "observed_data", "town") == NAMES
    assert hash(posterior.labels) == hash(mapped.labels)
    # Of other shapes no label is true.
    longer = with_arguments(posterior, {"sigma": jnp.ones((2, 3)), "y": jnp.ones((2, 3))})
    assert exported(longer)["observed_data"]["y"].dims == ("y_dim_0", "y_dim_1")


def test_tables_and_pictures_name_elements_by_their_labels() -> None:
    """As ArviZ does, where a plate has the labels of the data; else by numbers."""
    posterior = vf.condition(plated, FRAME["y"])
    approx = vf.laplace(posterior, second_order=False)
    expected = [f"mu[{name}]" for name in NAMES]
    assert list(approx.summary().to_dataframe().index) == expected
    assert "mu[Lund]" in repr(approx)
    assert list(approx.sample(jax.random.key(0), 50).summary().to_dataframe().index) == expected
    ax = vf.plot.forest(approx, sites=["mu[Lund]", "mu[2]"])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == expected[1:]
    assert list(approx.summary()["mu"].to_dataframe().index) == expected
    plain = vf.laplace(vf.condition(plated, FRAME["y"].to_numpy()), second_order=False)
    assert list(plain.summary().to_dataframe().index) == ["mu[0]", "mu[1]", "mu[2]"]


def test_the_outer_of_two_plates_has_the_labels_of_its_axis() -> None:
    """Its sites have an axis of length one for the inner plate."""

    def model(y: Any) -> None:
        with numpyro.plate("outer", 3, dim=-2):
            a = numpyro.sample("a", dist.Normal(0.0, 1.0))
            with numpyro.plate("inner", 2, dim=-1):
                numpyro.sample("y", dist.Normal(a, 1.0), obs=y)

    table = xr.DataArray(
        np.arange(6.0).reshape(3, 2), dims=("town", "year"), coords={"town": NAMES}
    )
    posterior = vf.condition(model, table)
    data = exported(posterior)
    assert data["posterior"]["a"].dims == ("chain", "draw", "town", "a_dim_1")
    assert labels(data, "posterior", "town") == NAMES
    assert data["observed_data"]["y"].dims == ("town", "year")
    index = vf.laplace(posterior, second_order=False).summary().to_dataframe().index
    assert list(index) == [f"a[{name}, 0]" for name in NAMES]


def test_labels_in_another_order_are_said() -> None:
    """Data are taken by their place: of Lund in x and Visby in y."""
    turned = FRAME["y"].iloc[::-1]
    with pytest.warns(TrustWarning, match=r"'sigma'.* and .*'y'.* along 'town' in another order"):
        vf.condition(towns, FRAME["sigma"], y=turned)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vf.condition(towns, FRAME["sigma"], y=FRAME["y"])


def test_labels_that_come_again_are_numbered() -> None:
    """ArviZ's summary raises an error of NumPy's where two are alike."""
    index = pd.Index(["Lund", "Visby", "Lund", "Lund (2)"], name="town")
    frame = pd.DataFrame({"y": [1.0, 2.0, 0.5, 0.1]}, index=index)

    def model(y: Any) -> None:
        with numpyro.plate("town", 4):
            theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    approx = vf.laplace(vf.condition(model, frame["y"]))
    names = [f"theta[{name}]" for name in ("Lund", "Visby", "Lund (3)", "Lund (2)")]
    assert list(approx.summary().to_dataframe().index) == names
    table: Any = arviz.summary(vf.to_arviz(approx, draws=200, key=jax.random.key(0)))
    assert list(table.index) == names


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (pd.MultiIndex.from_tuples([("a", 1), ("a", 2)]), ["a, 1", "a, 2"]),
        (pd.Index([0, 1, 0]), ["0", "1", "0 (2)"]),
    ],
    ids=["levels", "numbers"],
)
def test_labels_of_an_index(index: Any, expected: list[str]) -> None:
    found = axis_of(None, index).labels
    assert found is not None
    assert found.tolist() == expected
