"""Links for classes against quadrature and draws; scores against loops; the temperature."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpy.polynomial.hermite_e import hermegauss
from numpy.testing import assert_allclose

import volform as vf
from volform.errors import DataError, ModelError
from volform.inference import (
    GGN,
    AtMode,
    Full,
    HeldOut,
    LaplaceBridge,
    Linearized,
    LogitDraws,
    MeanField,
    Probit,
    class_scores,
)

RNG = np.random.default_rng(2)
ROOT = RNG.normal(size=(4, 3, 3))
COVARIANCE = jnp.asarray(ROOT @ np.swapaxes(ROOT, 1, 2))
VARIANCE = jnp.einsum("nkk->nk", COVARIANCE)
LOGITS = jnp.asarray(2.0 * RNG.normal(size=(4, 3)))


def exact() -> Any:
    """The integral of softmax by a tensor grid of Gauss-Hermite nodes."""
    nodes, weights = hermegauss(60)
    grid = np.stack(np.meshgrid(nodes, nodes, nodes), -1).reshape(-1, 3)
    weight = np.prod(np.stack(np.meshgrid(weights, weights, weights), -1).reshape(-1, 3), 1)
    roots = np.linalg.cholesky(np.asarray(COVARIANCE))
    each = jax.nn.softmax(LOGITS[:, None] + jnp.asarray(grid @ np.swapaxes(roots, 1, 2)), axis=-1)
    return np.einsum("ngk,g->nk", each, weight) / weight.sum()


def test_monte_carlo_against_quadrature() -> None:
    draws = 20_000
    found = LogitDraws(jax.random.key(0), draws).classes(LOGITS, COVARIANCE).probs
    assert_allclose(found, exact(), atol=4.0 * 0.5 / np.sqrt(draws))
    binary = LogitDraws(jax.random.key(0), draws).binary(LOGITS[:, 0], VARIANCE[:, 0]).probs
    nodes, weights = hermegauss(60)
    at = np.asarray(LOGITS[:, :1]) + np.sqrt(np.asarray(VARIANCE[:, :1])) * nodes
    want = (weights / (1.0 + np.exp(-at))).sum(1) / weights.sum()
    assert_allclose(binary, want, atol=4.0 * 0.5 / np.sqrt(draws))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_mean_field_by_loops(order: int) -> None:
    given = COVARIANCE if order == 2 else VARIANCE
    found = MeanField(order).classes(LOGITS, given).probs
    want = np.zeros((4, 3))
    for n in range(4):
        C, m = np.asarray(COVARIANCE[n]), np.asarray(LOGITS[n])
        for k in range(3):
            each = 2.0 - 3.0  # 2 - K
            for i in set(range(3)) - {k}:
                v = C[k, k] + (order > 0) * C[i, i] - (order > 1) * 2.0 * C[k, i]
                each += 1.0 + np.exp(-(m[k] - m[i]) / np.sqrt(1.0 + np.pi / 8.0 * v))
            want[n, k] = 1.0 / each
    assert_allclose(found, want / want.sum(1, keepdims=True), rtol=1e-12)


def test_second_order_is_best_and_does_not_see_a_common_shift() -> None:
    gaps = [
        float(np.abs(MeanField(order).classes(LOGITS, given).probs - exact()).mean())
        for order, given in ((0, VARIANCE), (2, COVARIANCE))
    ]
    assert gaps[1] < gaps[0]
    for link in (MeanField(2), LaplaceBridge(), LaplaceBridge(normalized=True)):
        one = link.classes(LOGITS, COVARIANCE).probs
        other = link.classes(LOGITS + 3.0, COVARIANCE + 25.0).probs
        assert_allclose(one, other, rtol=1e-6)


def test_bridge_is_the_inverse_of_laplace_for_a_dirichlet() -> None:
    """MacKay's Laplace approximation of a Dirichlet distribution in the softmax basis, back."""
    a = np.array([3.0, 1.5, 7.0, 2.0])
    size, inverse = len(a), 1.0 / a
    mean = np.log(a) - np.log(a).mean()
    share = inverse[:, None] + inverse[None]
    covariance = np.diag(inverse) - share / size + inverse.sum() / size**2
    assert_allclose(covariance.sum(0), 0.0, atol=1e-15)
    found = LaplaceBridge().classes(jnp.asarray(mean), jnp.asarray(covariance)).probs
    assert_allclose(found, a / a.sum(), rtol=1e-10)
    # Another covariance of the same logits, up to what they have in common.
    moved = LaplaceBridge().classes(jnp.asarray(mean + 1.0), jnp.asarray(covariance + 2.0)).probs
    assert_allclose(moved, a / a.sum(), rtol=1e-10)


def test_normalized_bridge() -> None:
    """The bridge of logits and covariance that were brought to a common size by hand."""
    P = jnp.eye(3) - 1.0 / 3.0
    mean, own = LOGITS @ P, P @ COVARIANCE @ P
    v = (jnp.einsum("nkk->n", own) / 3.0 / jnp.sqrt(1.5))[:, None]
    want = LaplaceBridge().classes(mean / jnp.sqrt(v), own / v[:, None]).probs
    found = LaplaceBridge(normalized=True).classes(LOGITS, COVARIANCE).probs
    assert_allclose(found, want, rtol=1e-8)


def test_extreme_logits_stay_probabilities() -> None:
    logits = jnp.array([[2000.0, -2000.0, 0.0]])
    for link in (Probit(), LaplaceBridge(), MeanField(0), MeanField(1), MeanField(2), AtMode()):
        found = link.classes(logits, COVARIANCE[:1] if link.is_joint else VARIANCE[:1]).probs
        assert_allclose(found.sum(), 1.0, rtol=1e-10)
        assert bool(jnp.all(jnp.isfinite(found)))


@pytest.mark.standard_promotion
def test_of_a_model() -> None:
    def model(x: Any, y: Any = None) -> None:
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        numpyro.sample("y", dist.CategoricalLogits(x @ w), obs=y)

    x = jnp.asarray(RNG.normal(size=(8, 2)))
    posterior = vf.condition(model, x, jnp.array([0, 1, 2, 0, 1, 2, 0, 1]))
    at = {"w": jnp.asarray(RNG.normal(size=(2, 3)))}
    approx = vf.laplace(posterior, at=at, curvature=GGN())
    J = jax.jacfwd(lambda u: x @ u.reshape(2, 3))(approx.at.u)
    C = jnp.einsum("nki,ij,nlj->nkl", J, approx.covariance, J)
    for link in (MeanField(2), MeanField(1), LaplaceBridge(), LogitDraws(jax.random.key(1), 50)):
        found = approx.predictive(x, by=Linearized(link=link))["y"].probs
        given = C if link.is_joint else jnp.einsum("nkk->nk", C)
        assert_allclose(found, link.classes(x @ at["w"], given).probs, rtol=1e-6)
    found = approx.predictive(x, by=Linearized(link=AtMode()))["y"].logits
    assert_allclose(found, x @ at["w"], rtol=1e-12)


def test_bad_links() -> None:
    with pytest.raises(ModelError, match="`order` of MeanField is 3"):
        MeanField(3)
    with pytest.raises(ModelError, match="`draws` of LogitDraws is 0"):
        LogitDraws(jax.random.key(0), 0)
    with pytest.raises(ModelError, match="`key` of LogitDraws is 1"):
        LogitDraws(1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ModelError, match="`link` of Linearized is 'probit'"):
        Linearized(link="probit")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ModelError, match="is for classes with a logit each"):
        LaplaceBridge().binary(LOGITS[:, 0], VARIANCE[:, 0])
    assert_allclose(
        MeanField(2).binary(LOGITS, VARIANCE).logits, Probit().binary(LOGITS, VARIANCE).logits
    )


# --- scores

PROBS = RNG.dirichlet([0.5, 1.0, 2.0], size=60)
LABELS = np.array([RNG.choice(3, p=p) for p in PROBS])
OUTSIDE = RNG.dirichlet([3.0, 3.0, 3.0], size=40)


def test_scores_by_loops() -> None:
    found = class_scores(PROBS, LABELS, outside=OUTSIDE, bins=10)
    confidence, hit = PROBS.max(1), PROBS.argmax(1) == LABELS
    nll = [-np.log(p[y]) for p, y in zip(PROBS, LABELS, strict=True)]
    brier = [
        sum((p[k] - (k == y)) ** 2 for k in range(3)) for p, y in zip(PROBS, LABELS, strict=True)
    ]
    ece = 0.0
    for b in range(10):
        inside = (confidence >= b / 10) & (confidence < (b + 1) / 10)
        if inside.any():
            ece += inside.mean() * abs(confidence[inside].mean() - hit[inside].mean())
    assert_allclose([found.nll.value, found.brier.value], [np.mean(nll), np.mean(brier)])
    assert_allclose(found.nll.error, scipy.stats.sem(nll))
    assert_allclose(found.brier.error, scipy.stats.sem(brier))
    assert_allclose(found.ece.value, ece, rtol=1e-12)
    assert_allclose(found.accuracy, [hit.mean(), scipy.stats.sem(hit)])
    away = OUTSIDE.max(1)
    above = (confidence[:, None] > away) + 0.5 * (confidence[:, None] == away)
    assert found.auroc is not None
    assert_allclose(found.auroc.value, above.mean())
    variance = above.mean(1).var(ddof=1) / 60 + above.mean(0).var(ddof=1) / 40
    assert_allclose(found.auroc.error, np.sqrt(variance))


def test_errors_are_those_of_repetitions() -> None:
    """Standard errors against the spread over data drawn anew."""
    found, errors = [], []
    for seed in range(300):
        random = np.random.default_rng(seed)
        probs = random.dirichlet([0.5, 1.0, 2.0], size=200)
        wrong = np.array([random.choice(3, p=0.6 * p + 0.4 / 3.0) for p in probs])  # overconfident
        scores = class_scores(probs, wrong, outside=random.dirichlet([2.0, 2.0, 2.0], size=100))
        assert scores.auroc is not None
        parts = scores.nll, scores.brier, scores.ece, scores.auroc
        found.append([part.value for part in parts])
        errors.append([part.error for part in parts])
    assert_allclose(np.mean(errors, 0), np.std(found, 0), rtol=0.15)


def test_side_by_side() -> None:
    fn = dist.CategoricalProbs(jnp.asarray(PROBS))
    even = np.full((60, 3), 1.0 / 3.0)
    outside = {"one": OUTSIDE, "even": even[:40]}
    table = class_scores({"one": fn, "even": even}, LABELS, outside=outside)
    assert_allclose(table["one"].nll, class_scores(PROBS, LABELS).nll, rtol=1e-6)
    assert table["even"].auroc == (0.5, 0.0)
    assert "AUROC" in repr(table)
    assert "<table" in table._repr_html_()
    bernoulli = class_scores(dist.BernoulliProbs(jnp.array([0.2, 0.9])), [0, 1])
    assert_allclose(bernoulli.nll.value, -(np.log(0.8) + np.log(0.9)) / 2.0, rtol=1e-6)


def test_bad_scores() -> None:
    with pytest.raises(DataError, match="rows that are no probabilities"):
        class_scores(np.ones((2, 2)), [0, 1])
    with pytest.raises(DataError, match="rows that are no probabilities"):
        class_scores(np.full((2, 2), np.nan), [0, 1])
    with pytest.raises(DataError, match=r"has shape \(3,\); it should be \(n, classes\)"):
        class_scores(np.ones(3), [0, 1, 2])
    with pytest.raises(DataError, match="whole numbers from 0 to 2"):
        class_scores(PROBS, LABELS + 1)
    with pytest.raises(DataError, match="`bins` of class_scores is 0"):
        class_scores(PROBS, LABELS, bins=0)
    with pytest.raises(DataError, match="a predictive for each of"):
        class_scores({"a": PROBS}, LABELS, outside=OUTSIDE)
    with pytest.raises(DataError, match="`predictives` of class_scores is empty"):
        class_scores({}, LABELS)
    with pytest.raises(DataError, match="is Normal; it should be a Categorical"):
        class_scores(dist.Normal(jnp.zeros(2), 1.0), [0, 1])


# --- temperature


def line(x: Any, y: Any = None) -> None:
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)


@pytest.mark.standard_promotion
def test_temperature_by_held_out_data() -> None:
    x, new = jnp.asarray(RNG.normal(size=(5, 2))), jnp.asarray(RNG.normal(size=(30, 2)))
    y = x @ jnp.array([1.0, -1.0])
    y_new = new @ jnp.array([1.4, -0.5])  # the training says too much of too little
    posterior, at = vf.condition(line, x, y), {"w": jnp.array([0.9, -0.9])}
    approx = vf.laplace(posterior, at=at, curvature=GGN())
    tuned = vf.tune(approx, temperature=HeldOut(new, y_new))
    weight = tuned.factors["w"] ** -2.0

    def density(log_t: float) -> float:
        P = np.asarray(x.T @ x) / 0.09 / np.exp(log_t) + weight * np.eye(2)
        spread = np.einsum("ni,ij,nj->n", new, np.linalg.inv(P), new)
        residual = np.asarray(y_new - new @ at["w"])
        scale = np.sqrt(0.09 + spread)
        return float(scipy.stats.norm.logpdf(residual, scale=scale).mean())

    grid = np.linspace(-6.0, 6.0, 4001)
    best = grid[np.argmax([density(t) for t in grid])]
    assert_allclose(np.log(tuned.temperature), best, atol=0.01)
    assert "by data that were held out" in repr(tuned)

    def cold(x: Any, y: Any) -> None:
        w = numpyro.sample("w", dist.Normal(0.0, tuned.factors["w"]).expand([2]).to_event(1))
        with numpyro.handlers.scale(scale=1.0 / tuned.temperature):
            numpyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)

    again = vf.laplace(vf.condition(cold, x, y), at=at, curvature=GGN(), structure=Full())
    assert_allclose(tuned.approx.evidence.log_z, again.evidence.log_z, rtol=1e-10)
    assert_allclose(tuned.approx.covariance, again.covariance, rtol=1e-9)
    with pytest.raises(DataError, match="`temperature` of tune has data of log density nan"):
        vf.tune(approx, temperature=HeldOut(new, jnp.full(30, jnp.nan)))


@pytest.mark.standard_promotion
def test_temperature_of_two_sites() -> None:
    def model(x: Any, y: Any) -> None:
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x * w, 0.3), obs=y)
        numpyro.sample("z", dist.Normal(x * w, 0.3), obs=y)

    x = jnp.ones(3)
    approx = vf.laplace(vf.condition(model, x, x), at={"w": 1.0}, curvature=GGN())
    with pytest.raises(ModelError, match="is chosen by the density of one observed site"):
        vf.tune(approx, temperature=HeldOut(x, x))
