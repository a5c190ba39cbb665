"""Architectures by evidence, at finite and infinite width, against independent computations."""

import dataclasses
import math
import multiprocessing
import os
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from numpy.polynomial import hermite_e
from tests.kernels.nets import X2, X, around

import volform as vf
from volform import kernels as k, networks as nn
from volform.architectures import rank
from volform.architectures.finite_width import _log_density
from volform.errors import (
    ConvergenceError,
    DataError,
    KernelError,
    ModelError,
    NetworkError,
    OperatorError,
    TrustWarning,
)

Y = np.cos(2.0 * np.arange(6))
NET = around(nn.Relu(), nn.Erf())
ONE = vf.architectures.Architecture(1, nn.Erf(), 1.4, 0.3)


# --- Exact evidence


def test_exact_evidence():
    found = k.evidence(NET, X, Y, noise=0.3)
    law = scipy.stats.multivariate_normal(np.zeros(6), k.kernel(NET, X).nngp + 0.09 * np.eye(6))
    np.testing.assert_allclose(found.log_z, law.logpdf(Y), rtol=1e-12)
    assert (float(found.error), found.dim, found.trust.level.value) == (0.0, 0, "good")
    assert repr(found).startswith(f"log Z {float(found.log_z):.3f}, exact, 0 parameters\n")


def test_compare_takes_exact_evidence(recwarn):
    wide = {
        name: k.evidence(net, X, Y, noise=0.3) for name, net in (("a", NET), ("b", nn.Dense(1)))
    }
    table = vf.compare(wide)
    gap = abs(float(wide["a"].log_z - wide["b"].log_z))
    assert table.rows[1].log_bayes_factor == pytest.approx(gap)
    assert table.rows[0].probability == pytest.approx(1 / (1 + math.exp(-gap)))
    assert table.cautions == ()
    posterior = vf.condition(nn.regression(nn.MLP((1,)), 0.3), X, Y[:, None])
    provenance = posterior.provenance._replace(equivalent_modes=None)
    assert provenance == wide["a"].provenance  # (n,) and (n, 1) are the same data
    finite = dataclasses.replace(wide["a"], metric="Euclidean()", provenance=provenance)
    assert vf.compare({**wide, "c": finite}).cautions == ()
    assert len(recwarn) == 0


def test_traced_data_have_no_fingerprint():
    found = jax.jit(lambda y: k.evidence(NET, X, y, noise=0.3))(Y)
    assert found.provenance.data == ()
    assert k.evidence(NET, X, Y, noise=0.3).provenance.data[0][0] == (6,)


# --- Finite width


@pytest.mark.parametrize("units", [3, 9])
def test_density_by_either_matrix(units):
    features = np.sin(np.arange(6)[:, None] * np.arange(1, units + 1))
    y = np.stack([Y, Y**2], 1)
    law = scipy.stats.multivariate_normal(np.zeros(6), features @ features.T + 0.09 * np.eye(6))
    expected = law.logpdf(Y) + law.logpdf(Y**2)
    np.testing.assert_allclose(_log_density(features, y, 0.3), expected, rtol=1e-11)


def test_finite_evidence_of_one_unit():
    """One hidden unit, one feature: its weight by quadrature over Normal(0, 1)."""
    x = X[:, :1]
    nodes, weights = hermite_e.hermegauss(120)
    features = scipy.special.erf(1.4 * nodes[:, None] * x[:, 0])
    each = [
        scipy.stats.multivariate_normal(np.zeros(6), 1.96 * np.outer(f, f) + np.eye(6)).pdf(Y)
        for f in features
    ]
    exact = np.log(weights @ each / weights.sum())
    net = vf.architectures.Architecture(1, nn.Erf(), 1.4).network(1)
    for seed in range(3):
        found = vf.architectures.finite_evidence(
            net, x, Y, noise=1.0, key=jax.random.key(seed), draws=4000
        )
        assert abs(float(found.log_z) - exact) < 4 * float(found.error)
        assert float(found.error) < 0.02
    assert found.dim == 2


def test_finite_meets_infinite():
    exact = k.evidence(ONE.layers(), X, Y, noise=0.5).log_z
    gaps, errors = [], []
    for width in (8, 512):
        found = vf.architectures.finite_evidence(ONE.network(width), X, Y, noise=0.5)
        gaps.append(abs(float(found.log_z - exact)))
        errors.append(float(found.error))
    assert gaps[1] < 4 * errors[1] + 0.01
    assert gaps[1] < gaps[0] / 4
    small = vf.architectures.finite_evidence(ONE.network(64, nn.MuP()), X, Y, noise=0.5)
    assert abs(float(small.log_z - exact)) > 10 * float(small.error)  # another prior


@pytest.mark.slow
def test_one_prior_has_one_evidence():
    sp, ntp = (ONE.network(3, p) for p in (nn.SP(), nn.NTP()))
    finite = [vf.architectures.finite_evidence(net, X, Y, noise=0.5).log_z for net in (sp, ntp)]
    np.testing.assert_allclose(finite[0], finite[1], rtol=1e-12)
    here = sp.init(jax.random.key(1), X.shape[1])
    there = {
        p.name: here[p.name] * p.scaling.multiplier / q.scaling.multiplier
        for p, q in zip(sp.parameters(4), ntp.parameters(4), strict=True)
    }
    log_z = [
        vf.laplace(
            vf.condition(nn.regression(net, 0.5), X, Y[:, None]),
            at=values,
            curvature=vf.GGN(),
        ).evidence.log_z
        for net, values in ((sp, here), (ntp, there))
    ]
    np.testing.assert_allclose(log_z[0], log_z[1], rtol=1e-10)


@pytest.mark.parametrize("draws", [99, 200.0])
def test_too_few_draws(draws):
    with pytest.raises(KernelError, match="`draws` of finite_evidence is"):
        vf.architectures.finite_evidence(ONE.network(2), X, Y, noise=0.5, draws=draws)


# --- The tangent kernel by layer


@pytest.mark.parametrize("scaling", [nn.SP(), nn.NTP(), nn.MuP()], ids=repr)
def test_layers_add_up_to_the_kernel(scaling):
    parts = vf.architectures.ntk_by_layer(NET, X, parametrization=scaling)
    np.testing.assert_allclose(
        parts.sum(0), k.kernel(NET, X, parametrization=scaling).ntk, rtol=1e-13
    )
    assert len(parts) == 3
    last = k.kernel(nn.serial(*NET.layers[:4]), X).nngp  # of what the last layer sees
    if scaling == nn.SP():
        np.testing.assert_allclose(parts[2], 8 * last + 1, rtol=1e-13)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [(nn.SP(), [0, 1, 1]), (nn.NTP(), [0, 0, 0]), (nn.MuP(), [0, 0, 0])],
    ids=["SP", "NTP", "MuP"],
)
def test_growth(scaling, expected):
    deep = vf.architectures.Architecture(2, nn.Relu(), 1.4, 0.3)
    np.testing.assert_allclose(
        vf.architectures.ntk_growth(deep, X, parametrization=scaling), expected, atol=1e-5
    )


def test_layers_of_what_has_none():
    with pytest.raises(NetworkError, match="`net` is a Dense, which has no layers"):
        vf.architectures.ntk_by_layer(nn.Dense(1), X)


# --- Held-out rows, hyperparameters


def test_held_out_rows_one_by_one():
    net = ONE.layers()
    found = k.held_out(partial(k.predict, net, noise=0.3), X, Y, noise=0.3, folds=6)
    kernel = np.asarray(k.kernel(net, X).nngp) + 0.09 * np.eye(6)
    inverse = np.linalg.inv(kernel)
    residual, variance = inverse @ Y / np.diag(inverse), 1 / np.diag(inverse)
    np.testing.assert_allclose(found.rmse, np.sqrt(np.mean(residual**2)), rtol=1e-10)
    density = scipy.stats.norm.logpdf(residual, scale=np.sqrt(variance)).mean()
    np.testing.assert_allclose(found.log_density, density, rtol=1e-10)
    with pytest.raises(KernelError, match="`folds` is 7; it should be an integer from 2 to"):
        k.held_out(partial(k.predict, net, noise=0.3), X, Y, noise=0.3, folds=7)


def test_learned_values_are_a_maximum():
    x = np.linspace(-2.0, 2.0, 12)[:, None]
    y = 2.0 + np.sin(x[:, 0]) + 0.3 * (-1.0) ** np.arange(12)
    start = vf.architectures.Architecture(1, nn.Erf(), 1.4, 1.0)
    found = vf.architectures.learn(start.at, start.values, x, y)

    def at(w_std, b_std, noise):
        net = vf.architectures.Architecture(1, nn.Erf(), w_std, b_std).layers()
        return float(k.evidence(net, x, y, noise=noise).log_z)

    best = (*found.values.values(), found.noise)
    highest = at(*best)
    assert found.log_z == pytest.approx(highest, rel=1e-10)
    net = vf.architectures.Architecture(1, nn.Erf(), *best[:2]).layers()
    np.testing.assert_allclose(k.kernel(found.network, x).nngp, k.kernel(net, x).nngp, rtol=1e-12)
    for i in range(3):
        moved = [value * (1.1 if j == i else 1.0) for j, value in enumerate(best)]
        back = [value / (1.1 if j == i else 1.0) for j, value in enumerate(best)]
        assert max(at(*moved), at(*back)) < highest


def test_no_maximum_of_the_evidence():
    start = vf.architectures.Architecture(1, nn.Erf(), 1.0)
    with pytest.raises(ConvergenceError, match=r"`network` reached no maximum.*'w_std': .*'noise'"):
        vf.architectures.learn(start.at, start.values, X, 0.0 * Y)  # the noise goes to zero


def test_hyperparameters_that_run_off_are_said():
    """A bias that a line through the origin has no use for goes to zero, with a slope of zero."""
    x = np.linspace(-2.0, 2.0, 8)[:, None]
    y = x[:, 0] + 0.1 * (-1.0) ** np.arange(8)

    def network(h):
        return nn.serial(nn.Dense(1, h["w"], h["b"]), nn.Relu(), nn.Dense(1))

    with pytest.warns(TrustWarning, match=r"no maximum in `b`, .* a smaller or larger value does"):
        found = vf.architectures.learn(network, {"w": 1.0, "b": 1.0}, x, y)
    assert found.values["b"] < 1e-3


def one_weight(h):
    return nn.serial(nn.Dense(1, h["w"]), nn.Erf(), nn.Dense(1, h["w"]))


def test_one_value_may_enter_many_layers_and_the_best_start_counts():
    x = np.linspace(-2.0, 2.0, 12)[:, None]
    y = np.sin(2.0 * x[:, 0]) + 0.1 * (-1.0) ** np.arange(12)
    found = vf.architectures.learn(one_weight, {"w": 0.5}, x, y, starts=6)
    grid = np.geomspace(0.05, 20.0, 40)
    value = jax.jit(lambda w, s: k.evidence(one_weight({"w": w}), x, y, noise=s).log_z)
    assert found.log_z >= max(float(value(w, s)) for w in grid for s in np.geomspace(0.02, 2, 20))
    again = vf.architectures.learn(one_weight, {"w": 0.5}, x, y, starts=6)
    assert again.values == found.values
    assert float(found.network.layers[0].w_std) == found.values["w"]


@pytest.mark.parametrize(
    ("network", "start", "message"),
    [
        (one_weight, {"w": -1.0}, r"`start\['w'\]` is -1.0"),
        (one_weight, {"w": 1.0, "noise": 0.1}, r"`start` holds 'noise'.*`noise=0.1`"),
        (lambda h: h["w"], {"w": 1.0}, r"`network` returned 1.0; it should return a network"),
        (vf.architectures.Architecture(1, nn.Erf()), {"w": 1.0}, "they should be a function from"),
        (one_weight, [1.0], "they should be a function from"),
    ],
)
def test_learn_tells_mistakes(network, start, message):
    with pytest.raises(KernelError, match=message):
        vf.architectures.learn(network, start, X, Y)


# --- The survey


@pytest.fixture(scope="module")
def survey() -> vf.architectures.Survey:
    x = np.linspace(-2.0, 2.0, 12)[:, None]
    return vf.architectures.survey(
        x,
        np.sin(x[:, 0]),
        activations={"erf": nn.Erf()},
        depths=(1,),
        widths=(4, math.inf),
        learned=False,
        by_laplace=False,
        draws=200,
        folds=3,
    )


def test_survey(survey):
    by = {(type(e.parametrization).__name__, e.width): e for e in survey.entries}
    assert len(by) == 6
    sp, ntp, mup = (by[name, 4] for name in ("SP", "NTP", "MuP"))
    assert sp.evidence is ntp.evidence is not mup.evidence
    assert by["SP", math.inf].evidence is by["NTP", math.inf].evidence
    assert by["MuP", math.inf].evidence is None  # no Gaussian process
    assert by["SP", math.inf].ntk is None  # no limit of the tangent kernel
    assert sp.ntk is not None is ntp.ntk
    assert by["MuP", math.inf].ntk is not None is by["MuP", math.inf].nngp
    assert (sp.cells["NTK growth"], ntp.cells["NTK growth"]) == ("0 1", "0 0")
    assert sp.laplace is None  # not asked for
    assert [rank(e) for e in survey.entries] == sorted(rank(e) for e in survey.entries)
    assert len(survey.comparison.rows) == 3
    assert "erf, depth 1: w_std 1.4, b_std 0.3, noise 0.5" in repr(survey)


GIVEN = {
    "activations": {"erf": nn.Erf(), "relu": nn.Relu()},
    "depths": (1,),
    "widths": (4,),
    "parametrizations": (nn.SP(), nn.NTP()),
    "learned": False,
    "by_laplace": False,
    "draws": 200,
    "folds": 2,
}


def require_same(one, other):
    assert str(one) == str(other)
    for here, there in zip(one.entries, other.entries, strict=True):
        for name, value in here.record.items():
            assert there.record[name] == (
                pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
            )
    evidences = [{id(e.evidence) for e in survey.entries} for survey in (one, other)]
    assert len(evidences[0]) == len(evidences[1])  # parametrizations of one prior share theirs


def test_threads_give_the_same_numbers():
    here = vf.architectures.survey(X, Y, **GIVEN)
    with ThreadPoolExecutor(2) as pool:
        there = vf.architectures.survey(X, Y, **GIVEN, executor=pool)
    require_same(here, there)
    assert len(there.comparison.rows) == len(here.comparison.rows) == 2


@pytest.mark.slow
def test_other_processes_give_the_same_numbers():
    given = GIVEN | {"widths": (4, math.inf), "learned": True, "by_laplace": True}
    here = vf.architectures.survey(X, Y, **given)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        there = vf.architectures.survey(X, Y, **given, executor=pool)
    require_same(here, there)


class FirstIsLost:
    """An executor whose first worker dies."""

    def __init__(self, pool):
        self.pool, self.submitted = pool, 0

    def submit(self, run, *args):
        self.submitted += 1
        if self.submitted > 1:
            return self.pool.submit(run, *args)
        lost = Future()
        lost.set_exception(RuntimeError("out of memory"))
        return lost


def test_an_architecture_that_fails_there_is_left_out():
    given = GIVEN | {"activations": {"relu": nn.Relu(), "erf": nn.Erf()}}
    with ThreadPoolExecutor(1) as pool:
        found = vf.architectures.survey(X, Y, **given, executor=FirstIsLost(pool))
    assert {str(entry.candidate) for entry in found.entries} == {"erf, depth 1"}
    assert found.notes == ("relu, depth 1: left out. out of memory",)
    alone = GIVEN | {"activations": {"relu": nn.Relu()}}
    with pytest.raises(RuntimeError, match="out of memory"), ThreadPoolExecutor(1) as pool:
        vf.architectures.survey(X, Y, **alone, executor=FirstIsLost(pool))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(os._exit, 3)
        with pytest.raises(ModelError, match="a worker of `executor` died"):
            vf.architectures.survey(X, Y, **alone, executor=pool)


class NotSent(nn.Erf):
    def __reduce__(self):
        raise TypeError("a lock")


def test_an_architecture_that_cannot_be_sent():
    given = GIVEN | {"activations": {"own": NotSent()}}
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(ModelError, match=r"architecture 'own, depth 1' of survey .* sent .* a lock"),
    ):
        vf.architectures.survey(X, Y, **given, executor=pool)


@pytest.mark.slow
def test_laplace_in_a_survey(monkeypatch):
    given = {"depths": (1,), "learned": False, "draws": 100, "folds": 2}
    given |= {"activations": {"erf": nn.Erf()}, "parametrizations": (nn.SP(), nn.NTP())}
    found = vf.architectures.survey(X, Y, widths=(40, math.inf), **given)
    by = {(type(e.parametrization).__name__, e.width): e for e in found.entries}
    sp = by["SP", 40].laplace
    assert sp is by["NTP", 40].laplace
    assert by["NTP", math.inf].laplace is None
    network = vf.architectures.Architecture(1, nn.Erf(), 1.4, 0.3).network(40)
    posterior = vf.condition(nn.regression(network, 0.5), X, Y[:, None])
    own = vf.laplace(posterior, curvature=vf.GGN()).evidence
    np.testing.assert_allclose(sp.log_z, own.log_z, rtol=1e-8)
    assert by["SP", 40].cells["Laplace"] == f"{float(own.log_z):.2f} ({own.trust.level.value})"
    monkeypatch.setattr("volform.linalg.operator.DENSE_GIB", 1e-6)
    found = vf.architectures.survey(X, Y, widths=(40,), **given)
    assert found.entries[0].laplace is None
    assert found.notes == (
        "erf, depth 1, SP, width 40: no Laplace evidence, it would take too much memory",
    )


@pytest.mark.slow
def test_architectures_whose_evidence_has_no_maximum():
    """Without noise in the data that of erf rises on and on; that of relu does not."""
    x = np.linspace(-2.0, 2.0, 20)[:, None]
    given = {"depths": (1,), "widths": (math.inf,), "parametrizations": (nn.NTP(),)}
    found = vf.architectures.survey(x, np.sin(2.0 * x[:, 0]), **given)
    assert [entry.candidate.activation for entry in found.entries] == ["relu"]
    assert found.notes[0].startswith("erf, depth 1: left out. `network` reached no")
    with pytest.raises(ConvergenceError, match="reached no maximum of the evidence"):
        vf.architectures.survey(x, np.sin(2.0 * x[:, 0]), activations={"erf": nn.Erf()}, **given)


def test_poor_rows_come_behind(survey):
    trust = vf.architectures.finite_evidence(ONE.network(2), X, 9 * Y, noise=0.1, draws=100).trust
    assert trust.level.value == "poor"
    best = survey.entries[0]
    poor = dataclasses.replace(best.evidence, trust=trust)
    assert rank(best) < rank(survey.entries[1])
    assert rank(dataclasses.replace(best, evidence=poor)) > max(
        rank(e) for e in survey.entries if e.evidence is not None
    )


def test_pictures_of_a_survey(survey):
    ax = vf.plot.evidence_by_width(survey)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["4", "∞"]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["erf, depth 1, SP = NTP"]  # MuP has no limit
    assert len(vf.plot.tangent_growth(ONE, X, widths=(4, 16))) == 3


def test_picture_of_the_limit():
    ax = vf.plot.kernel_convergence(ONE, X, widths=(16, 256), draws=50)
    for line in ax.get_lines()[:2]:
        first, last = line.get_ydata()
        assert abs(np.log(last / first) / np.log(16) + 0.5) < 0.1
    with pytest.raises(DataError, match="`x` holds 24 entries that are NaN"):
        vf.plot.kernel_convergence(ONE, np.nan * X)
    with pytest.raises(KernelError, match=r"`widths` is \(\); it should hold at least one"):
        vf.plot.kernel_convergence(ONE, X, widths=())
    with pytest.raises(OperatorError, match="`draws` of kernel_convergence is 0"):
        vf.plot.kernel_convergence(ONE, X, draws=0)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"widths": (0,)}, KernelError, "`widths` holds 0; each should be a positive integer"),
        ({"executor": 2}, KernelError, "`executor` of survey is 2; it should be an executor"),
        ({"depths": ()}, KernelError, r"`depths` is \(\); it should hold at least one"),
        ({"depths": (0,)}, NetworkError, "`depth` is 0; it should be a positive integer"),
        ({"activations": {"f": jnp.tanh}}, NetworkError, "`activation` is .*`Elementwise"),
    ],
)
def test_misuse(arguments, error, match):
    with pytest.raises(error, match=match):
        vf.architectures.survey(X2, Y[:3], learned=False, **arguments)
