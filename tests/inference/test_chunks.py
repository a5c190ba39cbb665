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


def linear(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def normalized(x, y):
    linear(x - x.mean(0), y)


def closed(y):
    linear(X, y)


def of_the_largest(x, y):
    linear(x / x.max(), y)


def of_neighbors(x, y):
    a = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))[0]
    numpyro.sample("y", dist.Normal(jnp.append(0.0, a * y[:-1]), 1.0), obs=y)


def of_groups(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    group = jnp.arange(len(y)) // 4
    covariance = jnp.eye(len(y)) + jnp.where(group[:, None] == group, 0.5, 0.0)
    numpyro.sample("y", dist.MultivariateNormal(x @ w, covariance), obs=y)


def of_eleven(x, y):
    if len(x) != 11:
        raise RuntimeError("eleven")
    linear(x, y)


LARGE = jnp.abs(X).at[0].set(9.0).at[5].set(9.0)  # the largest of two chunks, and not of the third


@pytest.mark.parametrize("at", [0.0, 1.0])
@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (normalized, (X, X[:, 0]), "is not the sum"),
        (closed, (X[:, 0],), "is not the sum"),
        (of_the_largest, (LARGE, X[:, 0]), "is not the sum"),
        (of_neighbors, (X, X[:, 0]), "is not the sum"),  # at a = 0 there is no difference
        (of_groups, (X, X[:, 0]), "each with a likelihood of its own"),
        (of_eleven, (X, X[:, 0]), "RuntimeError: eleven"),
    ],
)
def test_examples_that_are_not_independent(model, data, message, at):
    posterior = vf.condition(model, *data)
    with pytest.raises(StructureError, match=f"`chunk.*{message}"):
        vf.laplace(posterior, at={"w": jnp.full(2, at)}, curvature=vf.GGN(chunk=4))


@pytest.mark.float32
def test_statistics_of_all_data_are_seen_in_single_precision():
    x = jax.random.normal(jax.random.key(0), (20_000, 2))
    y = x @ jnp.ones(2) + 0.1
    posterior = vf.condition(normalized, x, y)
    at = {"w": jnp.ones(2)}
    with pytest.raises(StructureError, match="is not the sum"):
        vf.laplace(posterior, at=at, curvature=vf.GGN(chunk=2048))
    require = vf.laplace(vf.condition(linear, x, y), at=at, curvature=vf.GGN(chunk=2048))
    whole = vf.laplace(vf.condition(linear, x, y), at=at, curvature=vf.GGN())
    np.testing.assert_allclose(require.evidence.log_z, whole.evidence.log_z, rtol=1e-5)


def test_metrics_and_priors_of_all_data():
    """The rest is taken of all data: Fisher's volume of a chunk is not needed."""
    for metric in (vf.LikelihoodFisher(), vf.JointFisher()):
        posterior = vf.condition(vf.attach(linear, metric), X, X[:, 0])
        require_equal(posterior, {"w": jnp.ones(2)}, vf.GGN(), vf.GGN(chunk=4), Full())


def test_a_global_that_has_changed():
    scale = [1.0]

    def model(x, y):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(x @ w, scale[0]), obs=y)

    posterior = vf.condition(model, X, X[:, 0])
    scale[0] = 2.0
    with pytest.raises(ModelError, match=r"is another function than at `vf.condition`"):
        vf.laplace(posterior, at={"w": jnp.ones(2)}, curvature=vf.GGN(chunk=4))


@pytest.mark.parametrize("structure", [Kronecker(), Diagonal()], ids=str)
def test_a_chunk_that_is_masked(posterior, at, structure):
    def model(x, y, is_there):
        logits = NETWORK(x)
        with numpyro.handlers.mask(mask=is_there):
            numpyro.sample("y", dist.Categorical(logits=logits), obs=y)

    masked = vf.condition(model, X, LABELS, jnp.arange(11) < 8)
    require_equal(masked, at, vf.GGN(), vf.GGN(chunk=4), structure)


def test_weights_of_examples(at):
    """An array as `handlers.scale`: a datum counts as often."""

    def model(x, y, weights):
        logits = NETWORK(x)
        with numpyro.handlers.scale(scale=weights):
            numpyro.sample("y", dist.Categorical(logits=logits), obs=y)

    counts = jnp.arange(11) % 3 + 1
    weighted = vf.condition(model, X, LABELS, counts.astype(X.dtype))
    repeated = vf.condition(
        nn.classification(NETWORK), jnp.repeat(X, counts, axis=0), jnp.repeat(LABELS, counts)
    )
    one, other = (vf.laplace(p, at=at, curvature=vf.GGN()) for p in (weighted, repeated))
    np.testing.assert_allclose(one.evidence.log_z, other.evidence.log_z, rtol=1e-12)


def test_sites_that_have_no_examples():
    def model(x, y):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(w, 1.0), obs=x)
        numpyro.sample("y", dist.Normal(w, 1.0), obs=y)

    for x, shapes in ((jnp.ones(3), r"\(3,\), \(4,\)"), (1.0, r"\(\), \(4,\)")):
        posterior = vf.condition(model, x, jnp.ones(4))
        with pytest.raises(StructureError, match=f"the sites .* have the shapes .{shapes}"):
            vf.laplace(posterior, at={"w": 0.5}, curvature=vf.GGN(chunk=2))


@pytest.mark.parametrize("chunk", [0, -1, 2.0, True, "all"])
def test_no_number(chunk):
    with pytest.raises(ModelError, match="`chunk` of GGN is"):
        vf.GGN(chunk=chunk)


def test_repr():
    assert repr(vf.GGN()) == "GGN()"
    assert repr(vf.GGN(chunk=256)) == "GGN(chunk=256)"
