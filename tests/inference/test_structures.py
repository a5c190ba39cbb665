"""Structures of the precision: against matrices written out, and which charts leave them alone."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose
from tests.inference.spellings import Spelled

import volform as vf
from volform import networks as nn
from volform.errors import ModelError, StructureError, UnknownSiteError
from volform.inference import (
    GGN,
    BySite,
    Diagonal,
    Full,
    Kronecker,
    LastLayer,
    LowRank,
    Structure,
    Subset,
)
from volform.inference.laplace.gauss_newton import DataPriorSplit
from volform.linalg import exact_logdet, whitening_maps
from volform.results import Level

RNG = np.random.default_rng(3)


class Case:
    """A network with data, its posterior, and what Gauss-Newton is made of, by hand."""

    def __init__(self, net: nn.Network, model: Any, x: Any, y: Any):
        self.net, self.model, self.x, self.y = net, model, jnp.asarray(x), jnp.asarray(y)

    @functools.cached_property
    def posterior(self) -> vf.models.Posterior:
        return vf.condition(self.model(self.net), self.x, self.y)

    @functools.cached_property
    def at(self) -> Any:
        return self.net.init(jax.random.key(1), self.x.shape[1:])

    @functools.cached_property
    def u(self) -> Any:
        return self.posterior.unconstrain(self.at)

    @functools.cached_property
    def split(self) -> Any:
        return GGN().split(self.posterior, self.u)

    def outputs(self, u: Any) -> Any:
        return self.net.apply(self.posterior.values(u), self.x)

    def whole(self, weigh: Callable) -> Any:
        """`sum_n J_n^T L_n J_n` plus the precision of the priors, from `jacfwd`."""
        J = jax.jit(jax.jacfwd(self.outputs))(self.u)
        L = jax.jit(jax.vmap(weigh))(self.outputs(self.u))
        return np.einsum("noi,nop,npj->ij", J, L, J) + self.prior()

    def prior(self) -> Any:
        deviations = {p.name: p.scaling.deviation for p in self.net.parameters(self.x.shape[1:])}
        sites = self.posterior.layout.sites
        return jnp.diag(
            jnp.concatenate([jnp.full(s.size, deviations[s.name]) for s in sites]) ** -2
        )


def softmax_curvature(z: Any) -> Any:
    p = jax.nn.softmax(z)
    return jnp.diag(p) - jnp.outer(p, p)


DENSE = Case(
    nn.MLP(widths=(2, 3), outputs=3, b_std=1.0), nn.classification,
    RNG.normal(size=(5, 2)), [0, 2, 1, 1, 0],
)  # fmt: skip


CONVOLUTION = nn.Network(
    nn.serial(
        nn.Conv(2, (2, 3), padding=nn.Padding.VALID),
        nn.Elementwise(jnp.tanh),
        nn.Flatten(),
        nn.Dense(2),
    )
)
IMAGES = Case(CONVOLUTION, nn.classification, RNG.normal(size=(3, 4, 4, 2)), [0, 1, 1])


def masked(matrix: Any, sites: Any) -> Any:
    mask = np.zeros(matrix.shape)
    for site in sites:
        mask[site.segment, site.segment] = 1.0
    return matrix * mask


@pytest.fixture(scope="module")
def whole() -> Any:
    return DENSE.whole(softmax_curvature)


@pytest.mark.parametrize(
    ("structure", "of"),
    [
        (Full(), lambda m: m),
        (BySite(), lambda m: masked(m, DENSE.posterior.layout.sites)),
        (Diagonal(), lambda m: jnp.diag(jnp.diag(m))),
        (LowRank(40), lambda m: m),
    ],
    ids=["full", "by site", "diagonal", "low rank"],
)
def test_against_the_matrix_written_out(structure: Structure, of: Any, whole: Any) -> None:
    precision = structure.precision(DENSE.split)
    assert_allclose(precision.as_matrix(), of(whole), rtol=1e-10, atol=1e-12)
    assert_allclose(exact_logdet(precision), jnp.linalg.slogdet(of(whole))[1], rtol=1e-12)


def test_low_rank_keeps_what_the_data_say_most(whole: Any) -> None:
    prior = DENSE.prior()
    values = jnp.linalg.eigvals(jnp.linalg.solve(prior, whole - prior)).real
    most = jnp.sort(values)[-3:]
    found = LowRank(3).precision(DENSE.split)
    assert_allclose(
        exact_logdet(found), jnp.linalg.slogdet(prior)[1] + jnp.log1p(most).sum(), rtol=1e-10
    )


def stages_of(net: Any) -> list[list[Any]]:
    """Each layer with weights, and the functions that follow it."""
    found: list[list[Any]] = []
    for layer in net.layers.layers:
        if layer.has_weights:
            found.append([layer])
        else:
            found[-1].append(partial(layer.forward, (), place=None))
    return found


def factors(case: Case, weigh: Callable) -> dict[str, Any]:
    """KFAC of each layer by loops over examples and positions, without what flows through."""
    stages, found, hidden = stages_of(case.net), {}, case.x
    scaling = {p.name: p.scaling for p in case.net.parameters(case.x.shape[1:])}
    arrays = {name: scaling[name].multiplier * value for name, value in case.at.items()}

    def after(i: int, z: Any) -> Any:
        for follow in stages[i][1:]:
            z = follow(z)
        return z if i + 1 == len(stages) else after(i + 1, outputs(i + 1, z))

    def outputs(i: int, x: Any) -> Any:
        return stages[i][0].product(arrays[f"layer{i}.w"], x) + arrays.get(f"layer{i}.b", 0.0)

    for i, (layer, *following) in enumerate(stages):
        name, z = f"layer{i}.w", outputs(i, hidden)
        units, fan_in = arrays[name].shape
        left, right, count = jnp.zeros((units, units)), jnp.zeros((fan_in, fan_in)), 0
        for n in range(len(z)):
            J = jax.jacrev(lambda z, i=i: after(i, z[None])[0])(z[n]).reshape(
                -1, z[n].size // units, units
            )
            of_weights = jax.jacrev(lambda w, n=n, h=hidden, f=layer.product: f(w, h[n : n + 1]))
            features = of_weights(arrays[name]).reshape(-1, units, units, fan_in)[:, 0, 0]
            L = weigh(after(i, z[n : n + 1])[0])
            for p, row in enumerate(features):
                left += J[:, p].T @ L @ J[:, p]
                right += jnp.outer(row, row)
                count += 1
        found[name] = scaling[name].multiplier ** 2 * jnp.kron(left / count, right)
        hidden = z
        for follow in following:
            hidden = follow(hidden)
    return found


@pytest.mark.parametrize(
    "case", [DENSE, pytest.param(IMAGES, marks=pytest.mark.slow)], ids=["dense", "convolution"]
)
def test_kronecker_factors_by_loops(case: Case) -> None:
    precision = Kronecker().precision(case.split)
    whole = case.whole(softmax_curvature)
    expected = np.array(masked(whole, case.posterior.layout.sites))
    blocks = jax.jit(lambda: factors(case, softmax_curvature))()
    for name, block in blocks.items():
        s = case.posterior.layout.site(name).segment
        expected[s, s] = block + case.prior()[s, s]
    assert_allclose(precision.as_matrix(), expected, rtol=1e-10, atol=1e-12)
    assert_allclose(exact_logdet(precision), jnp.linalg.slogdet(expected)[1], rtol=1e-12)
    down, up = whitening_maps(precision)
    inverse = jax.jit(jax.vmap(lambda v: up(down(v))))(jnp.eye(len(expected)))
    assert_allclose(inverse, jnp.linalg.inv(expected), rtol=1e-8, atol=1e-12)
    diagonal = Diagonal().precision(case.split)
    assert_allclose(diagonal.as_matrix(), np.diag(np.diag(whole)), rtol=1e-10)


# --- Which reparametrizations leave them alone


SMALL = nn.MLP(widths=(2,), b_std=1.0)
SHAPES = {p.name: p.shape for p in SMALL.parameters(2)}
X, Y = jnp.asarray(RNG.normal(size=(6, 2))), jnp.asarray(RNG.normal(size=(6, 1)))
START = SMALL.init(jax.random.key(2), 2)


def by_site(x: Any, y: Any, charts: Any) -> None:
    values = {}
    for name, chart in charts.items():
        prior = dist.Normal(0.0, 1.0).expand(chart.w0.shape).to_event(1)
        z = numpyro.sample(f"{name}.z", dist.TransformedDistribution(prior, chart.inv))
        values[name] = jnp.reshape(numpyro.deterministic(name, chart(z)), SHAPES[name])
    numpyro.sample("y", dist.Normal(SMALL.apply(values, x), 0.5), obs=y)


def in_one(x: Any, y: Any, chart: Any) -> None:
    prior = dist.Normal(0.0, 1.0).expand(chart.w0.shape).to_event(1)
    z = numpyro.sample("z", dist.TransformedDistribution(prior, chart.inv))
    values = ravel_pytree(START)[1](numpyro.deterministic("w", chart(z)))
    numpyro.sample("y", dist.Normal(SMALL.apply(values, x), 0.5), obs=y)


# One model, so that the spellings of its sites share their programs.
BY_SITE = vf.attach(by_site, {name: vf.Euclidean() for name in SHAPES})


def spelled(matrix: Callable, c: float) -> tuple[Any, Any]:
    """Each site as `Spelled`, with the metric on its value, and the point in its coordinates."""
    charts = {n: Spelled(START[n].ravel(), jnp.asarray(matrix(n)), jnp.asarray(c)) for n in SHAPES}
    at = {f"{n}.z": jnp.full(chart.w0.shape, 0.5) for n, chart in charts.items()}
    return vf.condition(BY_SITE, X, Y, charts), at


def jointly() -> tuple[Any, Any]:
    flat = ravel_pytree(START)[0]
    chart = Spelled(flat, jnp.asarray(RNG.normal(size=(flat.size, flat.size))), 0.4)
    model = vf.attach(in_one, {"w": vf.Euclidean()})
    return vf.condition(model, X, Y, chart), {"z": jnp.full(flat.size, 0.5)}


def of_layer(name: str) -> Any:
    """`W = A Z B` for weights, and `b = A c` for the biases of the same units."""
    rng = np.random.default_rng(int(name[5]))
    units, *fan_in = SHAPES[name]
    left = rng.normal(size=(units, units))
    return np.kron(left, rng.normal(size=(*fan_in, *fan_in))) if fan_in else left


def any_matrix(name: str) -> Any:
    size = START[name].size
    return np.random.default_rng(size + len(name)).normal(size=(size, size))


SPELLINGS: dict[str, Callable] = {
    "plain": lambda: spelled(lambda n: np.eye(START[n].size), 0.0),
    "each coordinate": lambda: spelled(lambda n: np.eye(START[n].size), 0.4),
    "each layer, affine": lambda: spelled(of_layer, 0.0),
    "each site": lambda: spelled(any_matrix, 0.4),
    "all together": jointly,
}
INVARIANT: dict[Structure, tuple[bool, bool, bool, bool]] = {
    Full(): (True, True, True, True),
    LowRank(4): (True, True, True, True),
    Kronecker(): (True, True, True, True),
    BySite(): (True, True, True, False),
    Diagonal(): (True, False, False, False),
}


@pytest.fixture(scope="module")
def splits() -> dict[str, DataPriorSplit]:
    made = {}
    for name, make in SPELLINGS.items():
        posterior, at = make()
        made[name] = GGN().split(posterior, posterior.unconstrain(at))
    return made


@eqx.filter_jit
def log_det_of_metric(split: DataPriorSplit) -> Any:
    return exact_logdet(split.posterior.metric(split.u))


def volume_of(structure: Structure, split: DataPriorSplit) -> float:
    """`log det P - log det G`, all of the evidence that the structure enters."""
    return float(exact_logdet(structure.precision(split)) - log_det_of_metric(split))


SLOW = dict.fromkeys((Full(), LowRank(4), Kronecker()), pytest.mark.slow)


@pytest.mark.parametrize(
    "structure", [pytest.param(s, marks=SLOW.get(s, ())) for s in INVARIANT], ids=repr
)
def test_table_of_invariance(structure: Structure, splits: dict[str, DataPriorSplit]) -> None:
    plain, *others = (volume_of(structure, split) for split in splits.values())
    gaps = [abs(other - plain) / abs(plain) for other in others]
    assert [gap < 1e-8 for gap in gaps] == list(INVARIANT[structure]), gaps
    assert all(gap < 1e-8 or gap > 1e-4 for gap in gaps)


@pytest.mark.slow
@pytest.mark.parametrize("structure", [LastLayer(), Subset(("layer1.w.z", "layer1.b.z"))], ids=repr)
def test_of_some_sites_others_may_be_written_in_any_way(structure: Structure) -> None:
    found = [
        vf.laplace(posterior, at=at, curvature=GGN(), structure=structure).evidence.log_z
        for posterior, at in (SPELLINGS["plain"](), SPELLINGS["each site"]())
    ]
    assert_allclose(found[1], found[0], rtol=1e-8)


@pytest.mark.slow
def test_damping_is_not_invariant_and_the_prior_is(splits: dict[str, DataPriorSplit]) -> None:
    """A multiple of the identity in u, as optimizers add it (SEEDS K37), and the prior's own."""
    found = []
    for name in ("plain", "each coordinate"):
        split = splits[name]
        data = Diagonal().precision(split).as_matrix() - split.rest_matrix()
        gram = exact_logdet(split.posterior.metric(split.u))
        found.append(jnp.linalg.slogdet(data + jnp.eye(len(data)))[1] - gram)
    assert abs(found[0] - found[1]) > 1e-2


# --- What is refused


@pytest.mark.parametrize(
    ("structure", "curvature", "error", "message"),
    [
        (Kronecker(), None, StructureError, r"`structure=Kronecker\(\)` needs `curvature=GGN\(\)`"),
        (
            LowRank(1),
            None,
            StructureError,
            r"`structure=LowRank\(rank=1\)` needs `curvature=GGN\(\)`",
        ),
        (LastLayer(), GGN(), StructureError, "needs a model with layers"),
        (Subset(("b",)), GGN(), UnknownSiteError, r"`sites` of Subset names \['b'\]"),
        (Subset(()), GGN(), UnknownSiteError, "names nothing"),
        ("kron", GGN(), ModelError, r"`structure` should be a value such as `Kronecker\(\)`"),
    ],
)
def test_structures_that_a_model_does_not_have(
    structure: Any, curvature: Any, error: type, message: str
) -> None:
    def line(y: Any) -> None:
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(a, 1.0), obs=y)

    posterior = vf.condition(line, jnp.array([0.5, 1.0]))
    with pytest.raises(error, match=message):
        vf.laplace(posterior, at={"a": 0.5}, curvature=curvature, structure=structure)


def test_what_is_no_real_value_does_not_stand_in_the_way() -> None:
    def model(y: Any) -> None:
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Normal(a, 1.0))
        numpyro.deterministic("is_positive", a > 0.0)
        numpyro.sample("y", dist.Normal(b, 1.0), obs=y)

    posterior = vf.condition(model, jnp.array([0.5, 1.0]))
    at = {"a": jnp.array(0.3), "b": jnp.array(0.6)}
    found = vf.laplace(posterior, at=at, curvature=GGN(), structure=Subset(("a",)))
    assert_allclose(found.precision.as_matrix(), [[1.0]])
    with pytest.raises(StructureError, match=r"here no array of parameters is such a matrix"):
        vf.laplace(posterior, at=at, curvature=GGN(), structure=Kronecker())


@pytest.mark.parametrize("rank", [0, 2.0, True])
def test_ranks_that_are_none(rank: Any) -> None:
    with pytest.raises(StructureError, match="`rank` of LowRank is"):
        LowRank(rank)


def test_likelihood_that_is_not_log_concave() -> None:
    net = nn.MLP(widths=(2,))
    heavy = nn.supervised(net, lambda f: dist.StudentT(1.0, f, 0.1))
    posterior = vf.condition(heavy, X, 10.0 + Y)
    at = net.init(jax.random.key(0), 2)
    with pytest.raises(StructureError, match="log-concave in its parameters"):
        vf.laplace(posterior, at=at, curvature=GGN(), structure=Kronecker())


def test_points_that_are_not_level_say_so() -> None:
    approx = vf.laplace(DENSE.posterior, at=DENSE.at, curvature=GGN(), structure=Kronecker())
    assert approx.evidence.trust.level is Level.POOR
    assert "the point was given, and its gradient norm is" in approx.evidence.note
    assert "Kronecker()" in approx.evidence.method
    with pytest.raises(ModelError, match="Hessian was not formed"):
        _ = approx.fit
