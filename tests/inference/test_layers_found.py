"""Layers that are found in a program: against sums written out, and against the package's own."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import volform as vf
from volform import networks as nn
from volform.errors import NetworkError, SaddleError, SizeError, StructureError
from volform.inference import (
    GGN,
    BySite,
    Diagonal,
    EmpiricalFisher,
    ExpectedFisher,
    Full,
    Kronecker,
    LastLayer,
    MonteCarloFisher,
    Structure,
)
from volform.linalg import FlatBlocks, KroneckerSum, exact_logdet, whitening_maps
from volform.linalg.structured import DenseOperator

RNG = np.random.default_rng(5)
FISHERS = ExpectedFisher(), MonteCarloFisher(jax.random.key(0)), EmpiricalFisher()
TOKENS = jnp.asarray(RNG.integers(0, 5, (4, 3)))
LABELS = jnp.array([0, 2, 1, 1])


def drawn(**shapes: Any) -> dict[str, Any]:
    return {name: jnp.asarray(0.5 * RNG.normal(size=shape)) for name, shape in shapes.items()}


def blocks_of(structure: Structure, split: Any) -> dict[str, Any]:
    """The blocks of a precision by site, where there is one for each."""
    precision: Any = structure.precision(split)
    return dict(zip(split.posterior.names, precision.blocks, strict=True))


def diagonal(split: Any) -> Any:
    return jnp.diag(Diagonal().precision(split).as_matrix())


# --- A transformer, with what it multiplies written beside it

AT = drawn(
    table=(5, 4), position=(3, 4), gain=(4,), shift=(4,), qkv=(4, 3, 2, 2), out=(2, 2, 4),
    twice=(4, 4), head=(3, 4), bias=(3,),
)  # fmt: skip


def transformer(p: Any, tokens: Any, added: Any = None, noted: Any = None) -> Any:
    """Logits; `noted` gets the features of each matrix, and `added` is added to its products."""

    def tap(name: str, features: Any, z: Any) -> Any:
        if noted is not None:
            noted[name] = features
        return z if added is None else z + added[name].reshape(z.shape)

    h = tap("table", jax.nn.one_hot(tokens, 5, dtype=float), p["table"][tokens]) + p["position"]
    h = p["gain"] * (h - h.mean(-1, keepdims=True)) / (1.0 + h.std(-1, keepdims=True)) + p["shift"]
    qkv = tap("qkv", h, jnp.einsum("npd,dshk->npshk", h, p["qkv"]))
    q, k, v = (qkv[:, :, i] for i in range(3))
    attention = jax.nn.softmax(jnp.einsum("nphk,nqhk->nhpq", q, k))
    mixed = jnp.einsum("nhpq,nqhk->nphk", attention, v)
    flat = mixed.reshape(*mixed.shape[:2], -1)
    h = h + tap("out", flat, jnp.einsum("nphk,hkd->npd", mixed, p["out"]))
    h = jnp.tanh(tap("twice", h, h @ p["twice"]))
    h = jnp.tanh(tap("again", h, h @ p["twice"]))
    pooled = h.mean(1)
    return tap("head", pooled[:, None], pooled @ p["head"].T) + p["bias"]


UNITS = {"table": 4, "qkv": 12, "out": 4, "twice": 4, "again": 4, "head": 3}
POSITIONS = {name: 1 if name == "head" else 3 for name in UNITS}


def classifier(function: Any, params: Any) -> Any:
    network = nn.from_function(function, params)
    return lambda x, y: numpyro.sample("y", dist.CategoricalLogits(network(x)), obs=y)


@pytest.fixture(scope="module")
def split() -> Any:
    posterior = vf.condition(classifier(transformer, AT), TOKENS, LABELS)
    return GGN().split(posterior, posterior.unconstrain(AT))


def softmax_curvature(z: Any) -> Any:
    p = jax.nn.softmax(z)
    return jnp.diag(p) - jnp.outer(p, p)


@jax.jit
def by_hand(tokens: Any) -> tuple[Any, Any, Any]:
    """Features, slopes in a root of L, and `sum_n J^T L J`, example by example."""

    def of_one(tokens: Any) -> tuple[Any, Any, Any]:
        noted: dict[str, Any] = {}
        zero = {name: jnp.zeros((POSITIONS[name], units)) for name, units in UNITS.items()}
        z = transformer(AT, tokens[None], zero, noted)[0]
        root = jnp.linalg.cholesky(softmax_curvature(z) + 1e-14 * jnp.eye(3)).T
        slopes = jax.jacrev(lambda added: root @ transformer(AT, tokens[None], added)[0])(zero)
        J = jax.jacrev(lambda p: root @ transformer(p, tokens[None])[0])(AT)
        rows = jnp.concatenate([J[name].reshape(3, -1) for name in sorted(AT)], 1)
        return {n: f[0] for n, f in noted.items()}, slopes, rows.T @ rows

    features, slopes, whole = jax.vmap(of_one)(tokens)
    return features, slopes, whole.sum(0)


@pytest.mark.parametrize("reduce", [False, True])
def test_kronecker_of_a_transformer(split: Any, reduce: bool) -> None:
    features, slopes, whole = by_hand(TOKENS)
    a = {name: np.asarray(f).reshape(4, POSITIONS[name], -1) for name, f in features.items()}
    d = {name: np.asarray(s) for name, s in slopes.items()}  # n, o, p, units
    a["twice"] = np.concatenate([a["twice"], a.pop("again")], 1)
    d["twice"] = np.concatenate([d["twice"], d.pop("again")], 2)
    precision = Kronecker(reduce=reduce).precision(split)
    found, sites = precision.as_matrix(), split.posterior.layout
    for site in sites.sites:
        expected = whole[site.segment, site.segment]
        if site.name in a:
            h, delta = a[site.name], d[site.name]
            if reduce:
                h, delta = h.mean(1, keepdims=True), delta.sum(2, keepdims=True)
            left = np.einsum("nopi,nopj->ij", delta, delta) / (h.shape[0] * h.shape[1])
            right = np.einsum("npi,npj->ij", h, h)
            units_first = site.name == "head"
            expected = np.kron(left, right) if units_first else np.kron(right, left)
        expected = expected + np.eye(site.size)
        assert_allclose(
            found[site.segment, site.segment], expected, rtol=1e-8, atol=1e-11, err_msg=site.name
        )
    assert_allclose(exact_logdet(precision), jnp.linalg.slogdet(found)[1], rtol=1e-10)


def test_corrected_eigenvalues_are_those_of_the_blocks(split: Any) -> None:
    """EKFAC: in the eigenvectors of the factors the diagonal is exact, and nothing is beside it."""
    _, _, whole = by_hand(TOKENS)
    plain, found = blocks_of(Kronecker(), split), blocks_of(Kronecker(corrected=True), split)
    for name in ("table", "twice", "head"):
        segment = split.posterior.layout.site(name).segment
        block, matrix = whole[segment, segment], found[name].as_matrix()
        factors = [np.asarray(f) for f in (plain[name].left, plain[name].right)]
        turn = np.kron(*(np.eye(len(f)) if f.ndim == 1 else np.linalg.eigh(f)[1] for f in factors))
        expected = (turn * np.diag(turn.T @ block @ turn)) @ turn.T + np.eye(len(block))
        assert_allclose(matrix, expected, rtol=1e-8, atol=1e-11, err_msg=name)
        assert_allclose(exact_logdet(found[name]), np.linalg.slogdet(expected)[1], rtol=1e-10)
        down, up = whitening_maps(found[name])
        inverse = jax.jit(jax.vmap(lambda v, down=down, up=up: up(down(v))))(np.eye(len(block)))
        assert_allclose(inverse, np.linalg.inv(expected), rtol=1e-8, atol=1e-12)
        gaps = [
            np.linalg.norm(m - block - np.eye(len(block)))
            for m in (matrix, plain[name].as_matrix())
        ]
        assert gaps[0] < gaps[1]
    with pytest.raises(StructureError, match="`corrected` of Kronecker is 1"):
        Kronecker(corrected=1)  # pyright: ignore[reportArgumentType]


def test_diagonal_of_a_transformer_in_closed_form(split: Any) -> None:
    _, _, whole = by_hand(TOKENS)
    assert_allclose(diagonal(split), 1.0 + jnp.diag(whole), rtol=1e-9)


def test_last_layer_of_a_transformer(split: Any) -> None:
    approx = vf.laplace(split.posterior, at=AT, curvature=GGN(), structure=LastLayer(Kronecker()))
    assert approx.posterior.names == ("bias", "head")
    assert isinstance(approx.precision, FlatBlocks)
    assert [type(block) for block in approx.precision.blocks] == [DenseOperator, KroneckerSum]


# --- The same network in other words

IMAGES = jnp.asarray(RNG.normal(size=(3, 4, 4, 2)))
OWN = nn.Network(
    nn.serial(nn.Conv(2, (2, 3), b_std=1.0), nn.Elementwise(jnp.tanh), nn.Flatten(), nn.Dense(2)),
    nn.SP(),
)


def test_equinox_has_the_factors_of_the_package() -> None:
    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        dense: eqx.nn.Linear

        def __call__(self, x: Any) -> Any:
            h = jnp.tanh(self.conv(jnp.moveaxis(x, -1, 0)))
            return self.dense(jnp.moveaxis(h, 0, -1).ravel())

    at = OWN.init(jax.random.key(0), IMAGES.shape[1:])
    keys = jax.random.split(jax.random.key(1))
    net = Net(
        eqx.nn.Conv2d(2, 2, (2, 3), padding="SAME", key=keys[0]),
        eqx.nn.Linear(32, 2, use_bias=False, key=keys[1]),
    )
    filters = jnp.moveaxis(at["layer0.w"].reshape(2, 2, 3, 2), -1, 1)
    values = filters, at["layer0.b"].reshape(2, 1, 1), at["layer1.w"]
    places = lambda net: (net.conv.weight, net.conv.bias, net.dense.weight)  # noqa: E731
    net = eqx.tree_at(places, net, values)
    deviations = {p.name: p.scaling.deviation for p in OWN.parameters(IMAGES.shape[1:])}
    names = {"conv.weight": "layer0.w", "conv.bias": "layer0.b", "dense.weight": "layer1.w"}

    def prior(name: str, shape: tuple[int, ...]) -> Any:
        return dist.Normal(0.0, deviations[names[name]]).expand(shape).to_event(len(shape))

    other = nn.from_function(lambda net, x: jax.vmap(net)(x), net, prior)
    blocks = []
    for network, point in ((OWN, at), (other, other.values(net))):
        posterior = vf.condition(nn.classification(network), IMAGES, jnp.array([0, 1, 1]))
        split = GGN().split(posterior, posterior.unconstrain(point))
        blocks.append(blocks_of(Kronecker(), split))
    for name, own in names.items():
        assert_allclose(exact_logdet(blocks[1][name]), exact_logdet(blocks[0][own]), rtol=1e-12)
    order = np.moveaxis(np.arange(24).reshape(2, 2, 3, 2), -1, 1).ravel()
    expected = blocks[0]["layer0.w"].as_matrix()[np.ix_(order, order)]
    assert_allclose(blocks[1]["conv.weight"].as_matrix(), expected, rtol=1e-12)
    with pytest.raises(NetworkError, match="pytree like that of `from_function`"):
        other.values({"conv": jnp.ones(3)})


X = jnp.asarray(RNG.normal(size=(5, 2)))
Y = jnp.asarray(RNG.normal(size=(5, 1)))
PARTS = drawn(w=(2, 2, 3), v=(3, 1))


def parts(w: list[Any], v: Any, x: Any) -> Any:
    return jnp.tanh(x @ w[0]) * jnp.cos(x @ w[1]) @ v


def regressed(function: Any, at: Any) -> Any:
    posterior = vf.condition(nn.regression(nn.from_function(function, at), 0.5), X, Y)
    return GGN().split(posterior, posterior.unconstrain(at))


def test_slices_of_one_array_are_matrices_of_their_own() -> None:
    w = PARTS["w"]
    apart = regressed(
        lambda p, x: parts([p["a"], p["b"]], p["v"], x), {"a": w[0], "b": w[1], "v": PARTS["v"]}
    )
    rows = regressed(lambda p, x: parts(p["w"], p["v"], x), {"w": w, "v": PARTS["v"]})
    expected = Kronecker().precision(apart).as_matrix()
    found: Any = Kronecker().precision(rows)
    order = np.r_[12:15, :12] if rows.posterior.names[0] == "v" else np.arange(15)
    assert_allclose(found.as_matrix(), expected[np.ix_(order, order)], rtol=1e-12)
    assert len(found.blocks) == 3
    columns = regressed(
        lambda p, x: parts([p["w"][:, :3], p["w"][:, 3:]], p["v"], x),
        {"w": jnp.concatenate([*w], 1), "v": PARTS["v"]},
    )
    found = Kronecker().precision(columns).as_matrix()
    place = np.concatenate([*np.arange(12).reshape(2, 2, 3)], 1).ravel()
    order = np.r_[12:15, place] if columns.posterior.names[0] == "v" else np.r_[place, 12:15]
    assert_allclose(found, expected[np.ix_(order, order)], rtol=1e-12, atol=1e-14)


def test_what_is_read_in_two_ways_has_an_exact_block() -> None:
    """A table that is its own last layer, and a matrix that is compared with activations."""
    at = drawn(table=(5, 4), bend=(4,), w=(4, 4))

    def tied(p: Any, tokens: Any) -> Any:
        h = jnp.maximum(p["table"][tokens[:, 0]], p["bend"]) @ p["w"]
        return jnp.tanh(h) @ p["table"].T

    posterior = vf.condition(classifier(tied, at), TOKENS, LABELS)
    split = GGN().split(posterior, posterior.unconstrain(at))
    exact, found = blocks_of(BySite(), split), blocks_of(Kronecker(), split)
    for name in ("table", "bend"):
        assert_allclose(found[name].as_matrix(), exact[name].as_matrix(), rtol=1e-10, atol=1e-12)
    assert isinstance(found["w"], KroneckerSum)


def test_before_examples_meet_blocks_are_exact() -> None:
    """Normalization over the batch, and an example that looks at the others."""
    at = drawn(w=(2, 3), gain=(3,), mix=(3, 3), v=(3, 1))

    def coupled(p: Any, x: Any) -> Any:
        h = x @ p["w"]
        h = jnp.tanh(p["gain"] * (h - h.mean(0)) / (1.0 + h.std(0)))
        key = h @ p["mix"]
        return jax.nn.softmax(key @ key.T) @ h @ p["v"]

    split = regressed(coupled, at)
    exact, found = blocks_of(BySite(), split), blocks_of(Kronecker(), split)
    for name in ("w", "gain", "mix"):
        assert_allclose(found[name].as_matrix(), exact[name].as_matrix(), rtol=1e-9, atol=1e-12)
    assert isinstance(found["v"], KroneckerSum)
    whole = jnp.concatenate([jnp.diag(exact[name].as_matrix()) for name in split.posterior.names])
    assert_allclose(diagonal(split), whole, rtol=1e-9)


def test_a_block_that_does_not_fit_names_the_site() -> None:
    at = {"long": jnp.zeros(40_000), "w": jnp.ones((1, 1))}
    function = lambda p, x: jnp.maximum(x[:, :1], p["long"]).sum(1)[:, None] @ p["w"]  # noqa: E731
    with pytest.raises(SizeError, match=r"no factors for the site `long` of 40,000"):
        Kronecker().precision(regressed(function, at))


# --- Curvatures


class Wide(eqx.Module):
    """Location and scale of a datum."""

    first: Any
    second: Any

    def __call__(self, x: Any) -> tuple[Any, Any]:
        z = jnp.tanh(x @ self.first) @ self.second
        return z[:, 0], jnp.exp(z[:, 1])


WIDE = Wide(jnp.asarray(RNG.normal(size=(2, 3))), jnp.asarray(RNG.normal(size=(3, 2))))


@pytest.fixture(scope="module")
def noisy() -> Any:
    network = nn.from_function(lambda net, x: net(x), WIDE)

    def model(x: Any, y: Any) -> None:
        numpyro.sample("y", dist.Normal(*network(x)), obs=y)

    return vf.condition(model, X, 3.0 * Y[:, 0])


POINT = {"first": WIDE.first, "second": WIDE.second}


def rows_of(function: Any) -> Any:
    """The Jacobian of what is computed of location and scale, in flat coordinates."""
    J = jax.jacrev(lambda p: function(*Wide(p["first"], p["second"])(X)))(POINT)
    return np.concatenate([np.asarray(J[n]).reshape(*J[n].shape[:-2], -1) for n in POINT], -1)


def test_expected_fisher_of_location_and_scale(noisy: Any) -> None:
    _, s = WIDE(X)
    J = rows_of(lambda loc, scale: jnp.stack([loc, scale], 1))
    F = np.einsum("nki,nk,nkj->ij", J, jnp.stack([1.0 / s**2, 2.0 / s**2], 1), J)
    u = noisy.unconstrain(POINT)
    assert_allclose(ExpectedFisher().matrix(noisy, u), F + np.eye(12), rtol=1e-10, atol=1e-12)
    split = ExpectedFisher().split(noisy, u)
    assert_allclose(diagonal(split), 1.0 + np.diag(F), rtol=1e-10)


def test_empirical_fisher_is_that_of_the_scores(noisy: Any) -> None:
    g = rows_of(lambda loc, scale: dist.Normal(loc, scale).log_prob(3.0 * Y[:, 0]))
    split = EmpiricalFisher().split(noisy, noisy.unconstrain(POINT))
    found = Full().precision(split).as_matrix()
    assert_allclose(found, g.T @ g + np.eye(12), rtol=1e-10, atol=1e-12)
    assert_allclose(diagonal(split), 1.0 + np.sum(g**2, 0), rtol=1e-10)


def test_monte_carlo_fisher_tends_to_the_expected(noisy: Any) -> None:
    u = noisy.unconstrain(POINT)
    split = MonteCarloFisher(jax.random.key(0), 20_000).split(noisy, u)
    expected = ExpectedFisher().matrix(noisy, u)
    found = Full().precision(split).as_matrix()
    assert_allclose(found, expected, atol=0.05 * float(jnp.abs(expected).max()))
    few = MonteCarloFisher(jax.random.key(1), 2).split(noisy, u)
    assert_allclose(diagonal(few), jnp.diag(Full().precision(few).as_matrix()), rtol=1e-10)


def test_heteroscedastic_regression_is_refused_by_one_and_definite_by_the_other(
    noisy: Any,
) -> None:
    with pytest.raises(StructureError, match=r"ExpectedFisher\(\)"):
        vf.laplace(noisy, at=POINT, curvature=GGN(), structure=Kronecker())
    for curvature in FISHERS:
        approx = vf.laplace(noisy, at=POINT, curvature=curvature, structure=Kronecker())
        assert np.isfinite(approx.evidence.log_z)
        assert type(curvature).__name__ in approx.evidence.method


def test_hessian_where_it_is_indefinite_is_refused(noisy: Any) -> None:
    with pytest.raises(SaddleError, match=r"The Hessian .* is not positive definite.*GGN\(\)"):
        vf.laplace(noisy, at=POINT)


@pytest.mark.parametrize("mode", ["fill", "clip"])
def test_rows_beyond_the_table_count_where_the_program_reads_them(mode):
    """Padding: rows that are not there have no part in the curvature; those clipped have."""
    numbers = jnp.array([[0, 1], [1, 3], [2, 3], [3, 3]])

    def model(x, y):
        table = numpyro.sample("E", dist.Normal(0.0, 1.0).expand([3, 1]).to_event(2))
        found = table.at[x].get(mode=mode, fill_value=0.0).sum((1, 2))
        numpyro.sample("y", dist.Normal(found, 0.5), obs=y)

    posterior = vf.condition(model, numbers, jnp.ones(4))
    at = {"E": jnp.array([[0.3], [0.2], [0.1]])}
    exact, *others = (
        vf.laplace(posterior, at=at, curvature=vf.GGN(), structure=structure).precision.as_matrix()
        for structure in (Full(), Diagonal(), vf.Kronecker(corrected=True))
    )
    for matrix in others:
        assert_allclose(np.diag(matrix), np.diag(exact), rtol=1e-10)


def test_last_layer_keeps_its_factors() -> None:
    """512 features and 120 classes: as a matrix of 61,440 rows it would take 28 GiB."""
    size, hidden, classes = 6, 512, 120
    random = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(random.normal(size=(3, hidden))),
        "v": jnp.asarray(0.05 * random.normal(size=(hidden, classes))),
    }
    net = nn.from_function(lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"], params)
    x = jnp.asarray(random.normal(size=(size, 3)))
    posterior = vf.condition(nn.classification(net), x, jnp.arange(size))
    at, curvature = net.values(params), MonteCarloFisher(jax.random.key(0))
    last = LastLayer(Kronecker())
    approx = vf.laplace(posterior, at=at, curvature=curvature, structure=last)
    assert approx.posterior.names == ("v",)
    assert max(leaf.size for leaf in jax.tree.leaves(approx.precision)) == hidden**2
    features = jnp.tanh(x @ params["w"])
    (block,) = approx.precision.blocks  # pyright: ignore[reportAttributeAccessIssue]
    right = block.left if len(block.left) == hidden else block.right
    assert_allclose(right, features.T @ features, rtol=1e-10)
    assert approx.sample(jax.random.key(1), 2).values["v"].shape == (2, hidden, classes)
    assert bool(jnp.isfinite(approx.evidence.log_z))
    tuned = vf.tune(approx)
    assert tuned.log_z[1] > tuned.log_z[0]
