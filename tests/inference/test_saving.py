"""Results in files and in pickles: equal again, and refused by another posterior."""

import json
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import volform as vf
from volform.errors import DataError, ModelError
from volform.inference import LastLayer
from volform.networks import MLP, regression

SCALE = 1.0
Y = jnp.array([0.3, -0.5, 1.2, 0.9])


def level(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(SCALE))
    numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def levels(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(mu[0] + mu[1], 1.0), obs=y)


@pytest.fixture(scope="module")
def posterior():
    return vf.condition(vf.attach(level, vf.JointFisher()), Y)


@pytest.fixture(scope="module")
def approx(posterior):
    return vf.laplace(posterior)


def equal(found, expected):
    assert type(found) is type(expected)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert type(one) is type(other)
        np.testing.assert_array_equal(one, other)
    assert repr(found) == repr(expected)


def test_a_laplace_approximation_is_the_same_again(posterior, approx, tmp_path):
    again = vf.load(vf.save(approx, tmp_path / "new folder" / "fit.vf"), posterior)
    equal(again, approx)
    equal(again.evidence, approx.evidence)
    np.testing.assert_array_equal(
        again.sample(jax.random.key(1)).values["sigma"],
        approx.sample(jax.random.key(1)).values["sigma"],
    )
    equal(vf.load(vf.save(approx.mode, tmp_path / "map.vf"), posterior), approx.mode)


def test_what_has_no_posterior_needs_none(posterior, approx, tmp_path):
    found = vf.evidence(posterior, by=vf.Importance(2000))
    again = vf.load(vf.save(found, tmp_path / "evidence.vf"))
    equal(again.terms, found.terms)
    assert repr(again) == repr(found)
    assert repr(again.draws) == repr(found.draws)
    assert repr(again.summary()) == repr(found.summary())
    assert again.provenance == found.provenance
    assert again.metric == vf.JointFisher()
    table = vf.compare({"a": found, "b": approx.evidence})
    assert repr(vf.load(vf.save(table, tmp_path / "table.vf"))) == repr(table)
    summary = approx.summary()
    assert repr(vf.load(vf.save(summary, tmp_path / "summary.vf"))) == repr(summary)


def test_a_file_holds_no_code(approx, tmp_path):
    with zipfile.ZipFile(vf.save(approx, tmp_path / "fit.vf")) as archive:
        header = json.loads(archive.read("result.json"))
        arrays = [name for name in archive.namelist() if name != "result.json"]
        for name in arrays:
            np.load(archive.open(name), allow_pickle=False)
    assert header["format"] == 1
    assert header["posterior"]["fields"]["model"] == "level"


@pytest.mark.parametrize("kind", ["sites", "metric", "data", "code"])
def test_another_posterior_is_refused(kind, approx, tmp_path, monkeypatch):
    path = vf.save(approx, tmp_path / "fit.vf")
    metric, model, y = vf.JointFisher(), level, Y
    if kind == "sites":
        model = levels
    elif kind == "metric":
        metric = vf.Unconstrained()
    elif kind == "data":
        y = Y + 1e-9
    else:
        monkeypatch.setitem(globals(), "SCALE", 1.1)
    words = {
        "sites": r"`posterior` of `levels` has latent sites mu\[2\] and .*`level`, has mu",
        "metric": r"has metric Unconstrained\(\) and .* has JointFisher\(\)",
        "data": r"`posterior` .* has data",
        "code": r"`posterior` .* has log q\^G .* a global",
    }
    with pytest.raises(ModelError, match=words[kind]):
        vf.load(path, vf.condition(vf.attach(model, metric), y))


def test_bad_input(approx, tmp_path):
    path = vf.save(approx, tmp_path / "fit.vf")
    with pytest.raises(
        ModelError, match=r"`path` .* holds a result of `level` \(mu, sigma; metric"
    ):
        vf.load(path)
    with pytest.raises(DataError, match=r"`path` .*no file that `vf.save` wrote"):
        vf.load(tmp_path / "none.vf")
    (tmp_path / "text.vf").write_text("text")
    with pytest.raises(DataError, match=r"`path` .*no file that `vf.save` wrote"):
        vf.load(tmp_path / "text.vf")
    with pytest.raises(ModelError, match="`result` of save is of type Posterior"):
        vf.save(approx.posterior, path)
    for name in ("os:system", "volform.errors:DataErrors"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(
                "result.json", json.dumps({"format": 1, "result": {"class": name, "fields": {}}})
            )
        with pytest.raises(DataError, match=r"`path` .*names the class"):
            vf.load(path)
    whole = vf.save(approx, path).read_bytes()
    for broken in (whole[:200], whole[:60] + b"!!!!" + whole[64:], whole[:-400] + whole[-399:]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"`path` .*damaged"):
            vf.load(path, approx.posterior)
    with pytest.raises(ModelError, match=r"`posterior` of load is of type function"):
        vf.load(path, level)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("result.json", '{"format": 2}')
    with pytest.raises(DataError, match=r"`path` .*format 2"):
        vf.load(path)


def test_a_metric_that_calls_a_function_is_kept_in_words(tmp_path):
    metric = vf.pullback(vf.Euclidean(), lambda x: x**3 + x)
    found = vf.evidence(vf.condition(vf.attach(level, {"mu": metric}), Y), by=vf.Quadrature())
    again = vf.load(vf.save(found, tmp_path / "evidence.vf"))
    assert repr(again) == repr(found)
    assert again.metric_name == found.metric_name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"curvature": vf.GGN(), "structure": vf.Kronecker()},
        {"curvature": vf.GGN(), "structure": LastLayer()},
    ],
    ids=["hessian", "kronecker", "last layer"],
)
def test_networks(options, tmp_path):
    x = jnp.linspace(-1.0, 1.0, 6)[:, None]
    model = regression(MLP((2,)), noise=0.3)
    posterior = vf.condition(model, x, Y[:1] * x)
    approx = vf.laplace(posterior, at=vf.find_map(posterior, starts=2).values, **options)
    again = vf.load(vf.save(approx, tmp_path / "fit.vf"), posterior)
    np.testing.assert_array_equal(again.evidence.log_z, approx.evidence.log_z)


def test_pickles(posterior, approx, monkeypatch):
    again = pickle.loads(pickle.dumps(approx))
    equal(again.evidence, approx.evidence)
    assert again.posterior is not posterior
    u = approx.at.u + 0.1
    assert again.posterior.log_density(u) == posterior.log_density(u)
    kept = pickle.dumps(posterior)
    monkeypatch.setitem(globals(), "SCALE", 1.1)
    with pytest.raises(ModelError, match=r"the pickled one has -.*a global"):
        pickle.loads(kept)
