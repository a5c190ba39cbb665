"""Curvature and density summed over chunks of the examples: the same numbers in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import volform as vf
from volform import networks as nn
from volform.errors import ModelError, StructureError
from volform.inference import (
    BySite,
    Diagonal,
    EmpiricalFisher,
    ExpectedFisher,
    Full,
    Kronecker,
    LastLayer,
    LowRank,
    MonteCarloFisher,
    Subset,
)

X = jax.random.normal(jax.random.key(0), (11, 2))
LABELS = jnp.arange(11) % 3
NETWORK = nn.Network(nn.serial(nn.Dense(3), nn.Erf(), nn.Dense(3)))


@pytest.fixture(scope="module")
def posterior():
    return vf.condition(nn.classification(NETWORK), X, LABELS)


@pytest.fixture(scope="module")
def at():
    return NETWORK.init(jax.random.key(1), 2)


def require_equal(posterior, at, curvature, chunked, structure):
    whole = vf.laplace(posterior, at=at, curvature=curvature, structure=structure)
    found = vf.laplace(posterior, at=at, curvature=chunked, structure=structure)
    matrix = whole.precision.as_matrix()
    np.testing.assert_allclose(found.precision.as_matrix(), matrix, atol=1e-12 * jnp.max(matrix))
    np.testing.assert_allclose(found.evidence.log_z, whole.evidence.log_z, rtol=1e-12)
    for name in ("value", "gradient", "gradient_norm", "log_volume"):
        one, other = getattr(found.mode.at, name), getattr(whole.mode.at, name)
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "structure",
    [
        Kronecker(),
        Full(),
        BySite(),
        Diagonal(),
        Kronecker(reduce=True),
        Kronecker(corrected=True),
        LastLayer(Kronecker()),
        Subset(("layer0.w",)),
        LowRank(4),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "curvature", [vf.GGN, ExpectedFisher, EmpiricalFisher], ids=lambda kind: kind.__name__
)
def test_the_same_numbers(posterior, at, curvature, structure):
    """Of 11 examples in chunks of 4, of which the last has 3."""
    require_equal(posterior, at, curvature(), curvature(chunk=4), structure)


@pytest.mark.parametrize("chunk", [1, 11, 1000])
def test_chunks_of_any_size(posterior, at, chunk):
    require_equal(posterior, at, vf.GGN(), vf.GGN(chunk=chunk), Kronecker())


def test_tokens_that_are_padding(at):
    """Positions of a table are counted over all chunks, of which some have fewer than others."""

    def model(x, y):
        table = numpyro.sample("table", dist.Normal(0.0, 1.0).expand([5, 2]).to_event(2))
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        logits = jnp.take(table, x, axis=0, fill_value=0.0).mean(1) @ w
        numpyro.sample("y", dist.Categorical(logits=logits), obs=y)

    x = np.arange(33).reshape(11, 3) % 5
    x[:4, 1:] = 7  # beyond the table
    posterior = vf.condition(model, jnp.asarray(x), LABELS)
    keys = jax.random.split(jax.random.key(2))
    at = {"table": jax.random.normal(keys[0], (5, 2)), "w": jax.random.normal(keys[1], (2, 3))}
    require_equal(posterior, at, vf.GGN(), vf.GGN(chunk=4), Kronecker())


def test_tuning_and_predictions_go_on_from_chunks(posterior, at):
    whole, found = (
        vf.laplace(posterior, at=at, curvature=curvature, structure=Kronecker())
        for curvature in (vf.GGN(), vf.GGN(chunk=4))
    )
    assert vf.tune(found).factors == pytest.approx(vf.tune(whole).factors, rel=1e-8)
    one, other = (a.predictive(X[:3], by=vf.Linearized())["y"].probs for a in (whole, found))
    np.testing.assert_allclose(one, other, rtol=1e-10)


def test_each_chunk_has_its_own_draws():
    def model(y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(a, 1.0).expand(y.shape), obs=y)

    posterior = vf.condition(model, jnp.zeros(1000))
    fisher = MonteCarloFisher(jax.random.key(0), chunk=1)
    # sum of 1,000 squares of normals, and one of the prior; of equal draws 1,000 times one square
    assert 850 < fisher.matrix(posterior, jnp.zeros(1)).item() < 1150


def normalized(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    out = x @ w
    numpyro.sample("y", dist.Normal(out - out.mean(), 1.0), obs=y)


def closed(y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(X @ w, 1.0), obs=y)


def by_data(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, jnp.std(x)).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "data"), [(normalized, (X, X[:, 0])), (closed, (X[:, 0],)), (by_data, (X, X[:, 0]))]
)
def test_examples_that_are_not_independent(model, data):
    posterior = vf.condition(model, *data)
    with pytest.raises(StructureError, match="`chunk=4` needs 11 independent examples"):
        vf.laplace(posterior, at={"w": jnp.ones(2)}, curvature=vf.GGN(chunk=4))


def test_sites_of_other_lengths():
    def model(x, y):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(w, 1.0), obs=x)
        numpyro.sample("y", dist.Normal(w, 1.0), obs=y)

    posterior = vf.condition(model, jnp.ones(3), jnp.ones(4))
    with pytest.raises(StructureError, match=r"the sites \['x', 'y'\] have the lengths \[3, 4\]"):
        vf.laplace(posterior, at={"w": 0.5}, curvature=vf.GGN(chunk=2))


@pytest.mark.parametrize("chunk", [0, -1, 2.0, True, "all"])
def test_no_number(chunk):
    with pytest.raises(ModelError, match="`chunk` of GGN is"):
        vf.GGN(chunk=chunk)


def test_repr():
    assert repr(vf.GGN()) == "GGN()"
    assert repr(vf.GGN(chunk=256)) == "GGN(chunk=256)"
