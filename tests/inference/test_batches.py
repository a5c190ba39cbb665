"""Data in batches: the same posterior as of the data whole, with one batch in memory."""

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

import volform as vf
from volform import networks as nn
from volform.errors import DataError, ModelError, StructureError, UnknownSiteError
from volform.inference import (
    BySite,
    Diagonal,
    EmpiricalFisher,
    ExpectedFisher,
    Full,
    LastLayer,
    LowRank,
    MonteCarloFisher,
    Subset,
)

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(23, 3))
LABELS = RANDOM.integers(0, 3, 23)
NET = nn.MLP(widths=(4,), outputs=3)
CLASSES = nn.classification(NET)
AT = NET.init(jax.random.key(0), 3)
FEATURES, Y = RANDOM.normal(size=(20, 2)), RANDOM.normal(size=20)
W = {"w": np.array([0.3, -0.2])}


def linear(x, y, noise=1.0):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, noise), obs=y)


class Loader:
    """Batches in another order each time, as of a data loader that shuffles."""

    def __init__(self, *arrays: np.ndarray, size: int = 6):
        self.arrays, self.size, self.random = arrays, size, np.random.default_rng(1)

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        order = self.random.permutation(len(self.arrays[0]))
        for start in range(0, len(order), self.size):
            yield [array[order[start : start + self.size]] for array in self.arrays]


STRUCTURES = [
    Full(),
    Diagonal(),
    BySite(),
    vf.Kronecker(),
    vf.Kronecker(corrected=True),
    vf.Kronecker(reduce=True),
    LastLayer(vf.Kronecker()),
    Subset(("layer1.w",)),
]


@pytest.mark.parametrize(
    "curvature",
    [vf.GGN(), ExpectedFisher(), EmpiricalFisher()],
    ids=["ggn", "fisher", "empirical"],
)
@pytest.mark.parametrize("structure", STRUCTURES, ids=repr)
def test_the_approximation_is_that_of_the_whole(structure, curvature):
    whole, parts = (
        vf.laplace(vf.condition(CLASSES, *data), at=AT, curvature=curvature, structure=structure)
        for data in ((X, LABELS), (vf.Batches.of(X, LABELS, size=6),))
    )
    exact = whole.precision.as_matrix()
    np.testing.assert_allclose(
        parts.precision.as_matrix(), exact, rtol=0.0, atol=1e-12 * np.abs(exact).max()
    )
    assert abs(parts.evidence.log_z - whole.evidence.log_z) < 1e-10 * abs(whole.evidence.log_z)
    assert parts.evidence.note == whole.evidence.note
    assert parts.evidence.provenance == whole.evidence.provenance
    assert parts.at.gradient == pytest.approx(np.asarray(whole.at.gradient), abs=1e-10)


@pytest.mark.parametrize("size", [1, 7, 20, 50])
def test_evidence_of_a_linear_regression(size):
    precision = np.eye(2) + FEATURES.T @ FEATURES
    mode = {"w": np.linalg.solve(precision, FEATURES.T @ Y)}
    posterior = vf.condition(linear, vf.Batches.of(FEATURES, Y, size=size))
    found = vf.laplace(posterior, at=mode, curvature=vf.GGN()).evidence
    covariance = np.eye(20) + FEATURES @ FEATURES.T
    exact = scipy.stats.multivariate_normal.logpdf(Y, np.zeros(20), covariance)
    assert abs(found.log_z - exact) < 1e-10 * abs(exact)


@pytest.mark.parametrize(
    "batches",
    [
        vf.Batches([(FEATURES[:9], Y[:9]), [FEATURES[9:], Y[9:]]]),
        vf.Batches([{"x": FEATURES[:9], "y": Y[:9]}, {"y": Y[9:], "x": FEATURES[9:]}]),
        vf.Batches(Loader(FEATURES, Y)),
        vf.Batches(lambda k: (FEATURES[4 * k : 4 * k + 4], Y[4 * k : 4 * k + 4]), count=5),
        vf.Batches([(jnp.asarray(FEATURES), jnp.asarray(Y))]),
    ],
    ids=["list", "by name", "shuffled", "function", "one of JAX"],
)
def test_sources(batches):
    posterior = vf.condition(linear, batches, noise=0.5)
    whole = vf.condition(linear, FEATURES, Y, noise=0.5)
    found, exact = (
        vf.laplace(p, at=W, curvature=vf.GGN()).evidence.log_z for p in (posterior, whole)
    )
    assert abs(found - exact) < 1e-10 * abs(exact)
    assert repr(posterior).endswith(f"data in {len(list(batches))} batches, 20 examples")


class Rows:
    """Rows of a file, of which it is noted how many were in memory at once."""

    def __init__(self, array: np.ndarray):
        self.array, self.shape, self.most = array, array.shape, 0

    def __getitem__(self, rows: slice) -> np.ndarray:
        found = self.array[rows]
        self.most = max(self.most, len(found))
        return found


def test_files_are_read_batch_by_batch(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, FEATURES)
    x = Rows(np.load(path, mmap_mode="r"))
    posterior = vf.condition(linear, vf.Batches.of(x, Y, size=3))
    found = vf.laplace(posterior, at=W, curvature=vf.GGN())
    assert x.most == 3
    exact = np.eye(2) + FEATURES.T @ FEATURES
    np.testing.assert_allclose(found.precision.as_matrix(), exact, rtol=1e-12)


def test_draws_of_a_monte_carlo_fisher_differ_by_batch():
    many = np.zeros((4000, 1)), np.zeros(4000)
    fisher = MonteCarloFisher(jax.random.key(0))

    def mean(x, y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(a + x[:, 0], 1.0), obs=y)

    posterior = vf.condition(mean, vf.Batches.of(*many, size=100))
    found = vf.laplace(posterior, at={"a": 0.0}, curvature=fisher).precision.as_matrix()
    # The sum of 4,000 squares of standard normals; of the same 100, 40 times, it is 566 off.
    assert abs(found.item() - 4001.0) < 4.0 * np.sqrt(2.0 * 4000.0)


def test_masks_and_powers_are_counted_over_all_batches():
    def masked(x, y, is_there):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with numpyro.handlers.scale(scale=0.5), numpyro.handlers.mask(mask=is_there):
            numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    is_there = np.arange(20) % 3 > 0
    data = np.where(is_there, Y, np.nan)
    whole = vf.condition(masked, FEATURES, data, is_there)
    parts = vf.condition(masked, vf.Batches.of(FEATURES, data, is_there, size=6))
    assert parts.provenance == whole.provenance
    assert parts.provenance.masked == (("y", "7 of 20"),)
    found, exact = (vf.laplace(p, at=W, curvature=vf.GGN()).evidence for p in (parts, whole))
    assert abs(found.log_z - exact.log_z) < 1e-10 * abs(exact.log_z)


def both(**settings: Any) -> list[vf.inference.LaplaceApproximation]:
    return [
        vf.laplace(posterior, at=W, curvature=vf.GGN(), **settings)
        for posterior in (
            vf.condition(linear, vf.Batches.of(FEATURES, Y, size=6)),
            vf.condition(linear, FEATURES, Y),
        )
    ]


def test_what_follows_from_the_approximation():
    parts, whole = both()
    found, exact = (
        a.predictive(FEATURES[:3], None, by=vf.Linearized())["y"] for a in (parts, whole)
    )
    np.testing.assert_allclose(found.variance, exact.variance, rtol=1e-12)
    np.testing.assert_allclose(parts.summary().sd["w"], whole.summary().sd["w"], rtol=1e-12)
    assert str(parts.explain()) == str(whole.explain())
    drawn = parts.predictive(jax.random.key(0), FEATURES[:3], None, draws=10)
    assert drawn["y"].shape == (10, 3)
    data = vf.to_arviz(parts, draws=50)
    assert data["posterior"]["w"].shape == (1, 50, 2)
    assert "observed_data" not in data


def test_tuning_follows():
    parts, whole = (vf.tune(approx, noise=True) for approx in both())
    assert abs(parts.log_z[1] - whole.log_z[1]) < 1e-10 * abs(whole.log_z[1])
    assert parts.noise == pytest.approx(whole.noise, rel=1e-10)
    found, exact = parts.approx.evidence.log_z, whole.approx.evidence.log_z
    assert abs(found - exact) < 1e-10 * abs(exact)


def test_saving_and_pickling(tmp_path):
    parts, _ = both()
    vf.save(parts, tmp_path / "approx")
    assert vf.load(tmp_path / "approx", parts.posterior).evidence.log_z == parts.evidence.log_z
    others = vf.condition(linear, vf.Batches.of(FEATURES, Y + 1.0, size=6))
    with pytest.raises(ModelError, match="data of digest"):
        vf.load(tmp_path / "approx", others)
    again = pickle.loads(pickle.dumps(vf.condition(linear, vf.Batches([(FEATURES, Y)]))))
    assert again.provenance == parts.posterior.provenance


def batch_norm(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    z = x @ w
    numpyro.sample("y", dist.Normal(z - z.mean(), 1.0), obs=y)


def scaled_up(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with numpyro.handlers.scale(scale=20 / len(x)):
        numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def g_prior(x, y):
    precision = jnp.eye(2) + x.T @ x
    w = numpyro.sample("w", dist.MultivariateNormal(jnp.zeros(2), precision_matrix=precision))
    numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def with_factor(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)
    numpyro.factor("penalty", -jnp.sum(y) * jnp.sum(w**2))


@pytest.mark.parametrize(
    "model",
    [
        batch_norm,
        scaled_up,
        g_prior,
        with_factor,
        vf.attach(linear, vf.LikelihoodFisher()),
    ],
    ids=["statistics", "scale", "prior", "factor", "metric"],
)
def test_what_is_no_sum_over_batches_is_refused(model):
    posterior = vf.condition(model, vf.Batches.of(FEATURES, Y, size=6))
    with pytest.raises(StructureError, match="`Batches` need independent examples"):
        vf.laplace(posterior, at=W, curvature=vf.GGN())


@pytest.mark.parametrize(
    "ask",
    [
        vf.find_map,
        vf.laplace,
        vf.evidence,
        lambda posterior: vf.laplace(posterior, at=W),
        lambda posterior: vf.laplace(posterior, curvature=vf.GGN(), structure=Diagonal()),
        lambda posterior: vf.laplace(posterior, at=W, structure=Diagonal()),
        lambda posterior: posterior.log_density(jnp.zeros(2)),
    ],
    ids=["map", "laplace", "evidence", "Hessian", "search", "structure", "density"],
)
def test_what_needs_a_density_as_one_function_is_refused(ask):
    with pytest.raises(ModelError, match="`linear` come in batches, so that the posterior has no"):
        ask(vf.condition(linear, vf.Batches.of(FEATURES, Y, size=6)))


def test_what_needs_all_data_at_once_is_refused():
    parts, _ = both()
    for ask in (
        lambda: parts.predictive(by=vf.Linearized()),
        lambda: parts.predictive(jax.random.key(0)),
        parts.guide,
    ):
        with pytest.raises(DataError, match="come in batches, and this needs arguments"):
            ask()
    with pytest.raises(StructureError, match="would be read again"):
        vf.laplace(parts.posterior, at=W, curvature=vf.GGN(), structure=LowRank(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vf.Batches(part for part in [(FEATURES, Y)]), "is a generator, which gives"),
        (lambda: vf.Batches(3), "is int and `count` None"),  # pyright: ignore
        (lambda: vf.Batches([(FEATURES, Y)], count=1), "is list and `count` 1"),
        (lambda: vf.Batches(lambda k: k), "`count` of Batches is None"),
        (lambda: vf.Batches.of(FEATURES, Y[:3], size=2), "should have one number of rows"),
        (lambda: vf.Batches.of(FEATURES, Y, size=0), "`size` of Batches.of is 0"),
        (lambda: vf.Batches.of(np.zeros((0, 2)), size=2), "examples, and at least one"),
        (lambda: vf.Batches([]), "gave no batch"),
        (lambda: vf.Batches([(FEATURES, Y), (FEATURES, Y * np.nan)]), r"Batch 1 .* NaN or infin"),
        (lambda: vf.Batches([(FEATURES, Y), (FEATURES[:, :1], Y)]), "Batch 1 of `Batches` is with"),
        (lambda: vf.Batches([(FEATURES, Y), (FEATURES[:0], Y[:0])]), "at least one"),
        (lambda: vf.Batches([(FEATURES, Y), (FEATURES[:4], Y)]), r"Batch 1 .* shape"),
        (lambda: vf.Batches([(FEATURES,)]), "could not be run"),
    ],
)
def test_batches_that_do_not_fit(make: Callable[[], vf.Batches], message):
    with pytest.raises(DataError, match=message):
        vf.condition(linear, make())


def test_batches_stand_for_all_arguments_without_keyword():
    with pytest.raises(DataError, match="only argument without a keyword"):
        vf.condition(linear, vf.Batches([(FEATURES,)]), Y)


def test_labels_outside_of_the_classes():
    with pytest.raises(DataError, match=r"Batch 1 .* outside the support"):
        vf.condition(CLASSES, vf.Batches([(X, LABELS), (X, LABELS + 3)]))


def test_a_source_that_ends_early_the_next_time():
    class Ending:
        def __init__(self) -> None:
            self.times = 0

        def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            self.times += 1
            return iter([(FEATURES, Y), (FEATURES, Y)][: 2 if self.times < 4 else 1])

    posterior = vf.condition(linear, vf.Batches(Ending()))
    with pytest.raises(DataError, match="other data than before, 1 batches where there were"):
        vf.laplace(posterior, at=W, curvature=vf.GGN())


def test_a_model_that_reads_its_data_in_python():
    def branching(y):
        scale = 2.0 if float(y[0]) > 0.0 else 1.0
        a = numpyro.sample("a", dist.Normal(0.0, scale))
        numpyro.sample("y", dist.Normal(a, 1.0), obs=y)

    with pytest.raises(ModelError, match="reads values of its data in Python"):
        vf.condition(branching, vf.Batches([(Y[:5],), (Y[5:],)]))


def evidence_of(posterior, at=W, **settings):
    settings = {"curvature": vf.GGN()} | settings
    return float(vf.laplace(posterior, at=at, **settings).evidence.log_z)


def test_a_model_that_was_changed_is_another_one():
    scale = [1.0]

    def model(x, y):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(x @ w, scale[0]), obs=y)

    before = vf.condition(model, vf.Batches.of(FEATURES, Y, size=6))
    approx = vf.laplace(before, at=W, curvature=vf.GGN())
    scale[0] = 2.0
    found = evidence_of(vf.condition(model, vf.Batches.of(FEATURES, Y, size=6)))
    assert abs(found - evidence_of(vf.condition(model, FEATURES, Y))) < 1e-10 * abs(found)
    for ask in (approx.explain, lambda: evidence_of(before)):
        with pytest.raises(ModelError, match="is another function than at"):
            ask()


def test_sites_that_are_read_off_all_data_are_refused():
    def model(x, y):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.deterministic("rms", jnp.sqrt(jnp.mean((x @ w) ** 2)))
        numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    posterior = vf.condition(model, vf.Batches.of(FEATURES, Y, size=6))
    with pytest.raises(ModelError, match="no site that is read off all data"):
        posterior.values(jnp.asarray(W["w"]), ("rms",))
    approx = vf.laplace(posterior, at=W, curvature=vf.GGN())
    assert list(vf.to_arviz(approx, draws=10)["posterior"].data_vars) == ["w"]


def test_metrics_with_a_reference_and_angles_are_refused():
    for kind in (vf.LikelihoodFisher, vf.JointFisher):
        model = vf.attach(linear, kind(reference=linear))
        with pytest.raises(ModelError, match="metric with `reference=` is read off the data"):
            vf.condition(model, vf.Batches.of(FEATURES, Y, size=6))

    def circular(y):
        mean = numpyro.sample("mean", dist.VonMises(0.0, 0.1))
        numpyro.sample("y", dist.VonMises(mean, 3.0), obs=y)

    with pytest.raises(ModelError, match=r"sites \['mean'\] are angles"):
        vf.condition(circular, vf.Batches.of(Y, size=6))


def test_saved_approximations_hold_inputs_and_arguments(tmp_path):
    parts, _ = both()
    vf.save(parts, tmp_path / "approx")
    shuffled = vf.condition(linear, vf.Batches(Loader(FEATURES, Y)))
    assert vf.load(tmp_path / "approx", shuffled).evidence.log_z == parts.evidence.log_z
    for batches, noise in (
        (vf.Batches.of(3.0 * FEATURES, Y, size=6), 1.0),
        (vf.Batches.of(FEATURES, Y, size=6), 5.0),
    ):
        with pytest.raises(ModelError, match=r"of digest|log q"):
            vf.load(tmp_path / "approx", vf.condition(linear, batches, noise=noise))


def test_a_temperature_is_said():
    held_out = vf.inference.HeldOut(RANDOM.normal(size=(30, 2)), RANDOM.normal(size=30))

    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    parts, whole = (
        vf.tune(
            vf.laplace(vf.condition(model, *data), at=W, curvature=vf.GGN()), temperature=held_out
        ).approx.posterior.provenance
        for data in ((vf.Batches.of(FEATURES, Y, size=6),), (FEATURES, Y))
    )
    assert parts.powers == whole.powers != ()


class Refilled:
    """Batches in the same two arrays, filled again and again."""

    def __init__(self, x: np.ndarray, y: np.ndarray):
        self.x, self.y = x, y

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        x, y = np.empty((5, *self.x.shape[1:])), np.empty(5)
        for start in range(0, len(self.y), 5):
            x[:], y[:] = self.x[start : start + 5], self.y[start : start + 5]
            yield x, y


def test_a_loader_may_fill_the_same_arrays_again():
    found = evidence_of(vf.condition(linear, vf.Batches(Refilled(FEATURES, Y))))
    exact = evidence_of(vf.condition(linear, FEATURES, Y))
    assert abs(found - exact) < 1e-10 * abs(exact)
    with pytest.raises(StructureError, match="need independent examples"):
        evidence_of(vf.condition(batch_norm, vf.Batches(Refilled(FEATURES, Y))))


def test_a_prior_that_only_a_later_batch_changes():
    def model(x, y):
        scale = 1.0 + jnp.max(jnp.abs(x))
        w = numpyro.sample("w", dist.Normal(0.0, scale).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    x = np.clip(FEATURES, -0.5, 0.5)
    x[0, 0], x[6, 0], x[19, 0] = 0.5, 0.5, 5.0
    with pytest.raises(StructureError, match="need independent examples"):
        evidence_of(vf.condition(model, vf.Batches.of(x, Y, size=6)))


def test_under_jit_data_are_not_those_of_its_trace():
    posterior = vf.condition(linear, vf.Batches.of(FEATURES, Y, size=6))
    matrix = jax.jit(lambda u: vf.GGN().matrix(posterior, u))
    with pytest.raises(StructureError, match="and not under `jit`"):
        matrix(jnp.asarray(W["w"]))
    with pytest.raises(DataError, match="are read on the host, and have traced arrays"):
        jax.grad(lambda x: evidence_of(vf.condition(linear, vf.Batches([(x, Y)]))))(FEATURES)
    with pytest.raises(StructureError, match="make the batches smaller"):
        evidence_of(posterior, curvature=vf.GGN(chunk=2))


def test_copies_are_counted_on_examples_of_many_batches():
    x = np.concatenate([np.zeros((4, 3)), RANDOM.normal(size=(20, 3))])
    labels = RANDOM.integers(0, 3, 24)
    whole = vf.condition(CLASSES, x, labels).provenance.equivalent_modes
    parts = vf.condition(CLASSES, vf.Batches.of(x, labels, size=4)).provenance
    assert parts.equivalent_modes == whole > 1


def test_arguments_in_batches_cannot_be_changed_by_name():
    posterior = vf.condition(linear, vf.Batches.of(FEATURES, Y, size=6), noise=1.0)
    with pytest.raises(UnknownSiteError, match=r"arguments \['x'\] in `Batches`"):
        vf.models.with_arguments(posterior, {"x": FEATURES})
    named = vf.Batches([{"x": FEATURES, "y": Y}])
    with pytest.raises(DataError, match="in the batches too"):
        vf.condition(linear, named, x=FEATURES)


def test_data_that_change_are_found():
    x = FEATURES.copy()
    posterior = vf.condition(linear, vf.Batches.of(x, Y, size=6))
    x[7] *= 2.0
    with pytest.raises(DataError, match="other data than before"):
        evidence_of(posterior)


def test_masks_of_matrices_have_one_fingerprint():
    def model(y, mask):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with numpyro.handlers.mask(mask=mask):
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    y, mask = RANDOM.normal(size=(20, 3)), np.ones((20, 3), bool)
    mask[9, 1] = False
    parts = vf.condition(model, vf.Batches.of(y, mask, size=6)).provenance
    assert parts == vf.condition(model, y, mask).provenance


def test_a_support_that_parameters_bound():
    def model(y):
        end = numpyro.sample("end", dist.Pareto(1.0, 2.0))
        numpyro.sample("y", dist.Uniform(0.0, end), obs=y)

    y = RANDOM.uniform(0.0, 2.5, 20)
    at = {"end": 3.0}
    found, exact = (
        vf.laplace(vf.condition(model, *data), at=at, curvature=ExpectedFisher(), refuse=False)
        for data in ((vf.Batches.of(y, size=6),), (y,))
    )
    assert found.at.value == pytest.approx(float(exact.at.value), rel=1e-10)


def test_a_batch_that_the_network_is_sure_of():
    sure = NET.init(jax.random.key(3), 3)
    sure = {name: 30.0 * value if "layer1" in name else value for name, value in sure.items()}
    matrices = [
        vf.laplace(
            vf.condition(CLASSES, *data), at=sure, curvature=vf.GGN(), structure=vf.Kronecker()
        ).precision.as_matrix()
        for data in ((vf.Batches.of(X, LABELS, size=1),), (X, LABELS))
    ]
    np.testing.assert_allclose(*matrices, atol=1e-10 * np.abs(matrices[1]).max())


def test_sites_of_two_lengths_and_an_array_that_is_no_example():
    def model(table, x, y, z):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(x @ (table * w), 1.0), obs=y)
        numpyro.sample("z", dist.Normal(w[0], 1.0), obs=z)

    z, table = RANDOM.normal(size=10), np.array([1.0, 2.0])
    slices = [slice(6 * k, 6 * k + 6) for k in range(4)]
    several = [(table, FEATURES[s], Y[s], z[3 * k : 3 * k + 3]) for k, s in enumerate(slices)]
    found = evidence_of(vf.condition(model, vf.Batches(several)))
    exact = evidence_of(vf.condition(model, table, FEATURES, Y, z))
    assert abs(found - exact) < 1e-10 * abs(exact)


def test_failures_of_a_loader_are_its_own():
    class Failing:
        def __init__(self) -> None:
            self.times = 0

        def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            self.times += 1
            yield FEATURES[:10], Y[:10]
            if self.times > 2:
                raise OSError("the disk is gone")
            yield FEATURES[10:], Y[10:]

    with pytest.raises(OSError, match="the disk is gone"):
        evidence_of(vf.condition(linear, vf.Batches(Failing())))
    x = FEATURES.copy()
    x[13] = np.nan
    for size in (6, 10):
        with pytest.raises(DataError, match="log likelihood of a batch of `Batches` is nan"):
            evidence_of(vf.condition(linear, vf.Batches.of(x, Y, size=size)))
    with pytest.raises(DataError, match="of types"):
        vf.condition(linear, vf.Batches([(FEATURES, Y), (FEATURES.astype(np.float32), Y)]))
    for source in (FEATURES, {"x": FEATURES, "y": Y}):
        with pytest.raises(DataError, match="iterated over row by row, or name by name"):
            vf.Batches(source)
    assert repr(pickle.loads(pickle.dumps(vf.Batches.of(Y, size=3)))).startswith("Batches(")


def test_a_network_in_place_of_its_values():
    with pytest.raises(DataError, match=r"`at` is Network; it should be a dict .* `network.values"):
        vf.laplace(vf.condition(CLASSES, X, LABELS), at=NET, curvature=vf.GGN())
