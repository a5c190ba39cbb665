"""The terms of an evidence and the parts of the sites sum to it, whatever metric and curvature."""

import math
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import volform as vf
from volform.errors import ModelError
from volform.geometry import MatrixField
from volform.inference import (
    Automatic,
    BySite,
    Diagonal,
    Kronecker,
    LastLayer,
    LowRank,
    Structure,
    Subset,
)
from volform.inference.evidence import automatic
from volform.inference.evidence.estimator import problem_of
from volform.inference.laplace import explanation
from volform.linalg import exact_logdet
from volform.results import Level

KEY = jax.random.key(0)
SIGMA = jnp.array([15.0, 10.0, 16.0, 11.0])
Y = jnp.array([28.0, 8.0, -3.0, 7.0])


def schools(sigma: Any, y: Any = None) -> None:
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", len(sigma)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def mixed(y: Any) -> None:
    """A simplex, a positive and a real site, a factor, and a plate with a scale."""
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.array([3.0, 2.0, 4.0])))
    rate = numpyro.sample("rate", dist.Gamma(3.0, 1.0))
    a = numpyro.sample("a", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.factor("tie", -((a[0] - weights[0]) ** 2))
    with numpyro.handlers.scale(scale=2.0):
        numpyro.sample("y", dist.Normal(a.sum() * rate, 1.0), obs=y)


METRICS = {
    "default": {},
    "by site": {"rate": vf.Fisher(dist.Exponential)},
    "dense": MatrixField(lambda **v: jnp.eye(6) + 0.3 * jnp.ones((6, 6))),
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("default", "by site")]


@cache
def approx(name: str) -> vf.inference.LaplaceApproximation:
    if name == "schools":
        posterior = vf.condition(vf.attach(schools, vf.JointFisher()), SIGMA, Y)
    else:
        posterior = vf.condition(vf.attach(mixed, METRICS[name]), jnp.array([0.5, 1.5]))
    return vf.laplace(vf.find_map(posterior, key=KEY, starts=2))


def check_terms(evidence: vf.results.Evidence) -> None:
    terms = dict(evidence.terms)
    assert list(terms)[:3] == ["log q^G at the mode", "d/2 log 2 pi", "-1/2 log det(G^-1 H)"]
    correction = terms.pop("log(1 + c)", None)
    assert_allclose(sum(terms.values()), evidence.log_z, rtol=1e-12)
    if evidence.correction is None:
        assert correction is None
    else:
        total = sum(evidence.terms.values())
        assert_allclose(total, evidence.log_z_second_order, rtol=1e-12)


def require_sites(found: vf.inference.Explanation, at: Any, log_det: Any) -> None:
    """The columns sum to the terms, and to what they are the parts of."""
    terms = found.evidence.terms
    assert_allclose(sum(s.log_q for s in found.sites), terms["log q^G at the mode"], rtol=1e-10)
    parts = sum(s.half_log_det for s in found.sites)
    assert_allclose(parts, terms["-1/2 log det(G^-1 H)"], rtol=1e-9, atol=1e-10)
    volume = sum(s.half_log_det_metric for s in found.sites)
    assert_allclose(volume, at.log_volume, rtol=1e-9, atol=1e-12)
    assert_allclose(2 * sum(s.half_log_det_precision for s in found.sites), log_det, rtol=1e-9)


@pytest.mark.parametrize("name", ["schools", "dense", *SLOW])
def test_terms_and_sites_sum_to_the_evidence(name: str) -> None:
    one = approx(name)
    check_terms(one.evidence)
    found = one.explain()
    require_sites(found, one.at, exact_logdet(one.precision))
    assert tuple(s.name for s in found.sites if s.has_coordinates) == one.posterior.names
    assert found["y"].role == "likelihood"
    assert not found["y"].has_coordinates


def test_parts_are_those_of_the_model() -> None:
    found = approx("by site").explain()
    values = approx("by site").values
    prior = dist.Gamma(3.0, 1.0).log_prob(values["rate"])
    assert_allclose(found["rate"].log_density, prior, rtol=1e-12)
    assert_allclose(found["rate"].log_jacobian, jnp.log(values["rate"]), rtol=1e-12)
    # The Fisher metric of a rate is d(log rate)^2, flat in u; that of the block of `a` is flat.
    assert_allclose(found["rate"].half_log_det_metric, 0.0, atol=1e-12)
    assert found["tie"].role == "factor"
    mean = values["a"].sum() * values["rate"]
    likelihood = 2.0 * dist.Normal(mean, 1.0).log_prob(jnp.array([0.5, 1.5])).sum()
    assert_allclose(found["y"].log_density, likelihood, rtol=1e-12)
    assert "log det G: the block of each site, exact" in repr(found)
    assert "log det H: each site given those above it, by Cholesky in this order" in repr(found)


def test_sites_that_are_coupled_are_divided_in_order() -> None:
    """A site's part is the log determinant of its Schur complement."""
    one = approx("dense")
    gram = np.asarray(one.posterior.metric(one.at.u).as_matrix())
    found, before = one.explain(), 0
    for site in one.posterior.layout.sites:
        upto = np.linalg.slogdet(gram[: site.segment.stop, : site.segment.stop])[1]
        assert_allclose(2 * found[site.name].half_log_det_metric, upto - before, atol=1e-10)
        before = upto
    assert "log det G and log det H: each site given those above it" in repr(found)


@cache
def network() -> tuple[vf.models.Posterior, Any]:
    net = vf.networks.MLP(widths=(3,), activation=jnp.tanh)
    x = jnp.array([[0.5], [1.0], [2.0]])
    return vf.condition(vf.networks.regression(net, 0.1), x, jnp.sin(x)), net.init(KEY, 1)


@pytest.mark.parametrize(
    "structure", [BySite(), Diagonal(), Kronecker(), LowRank(2), LastLayer(), Subset(("layer1.w",))]
)
def test_under_every_structure(structure: Structure) -> None:
    posterior, at = network()
    one = vf.laplace(posterior, at=at, curvature=vf.GGN(), structure=structure)
    check_terms(one.evidence)
    assert list(one.evidence.terms)[3:] in ([], ["equivalent modes"])
    require_sites(one.explain(), one.at, exact_logdet(one.precision))


def test_a_matrix_that_is_not_formed_is_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanation, "EXPLAINED_UP_TO", 1)

    def model(y: Any) -> None:
        a = numpyro.sample("a", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
        numpyro.sample("y", dist.Normal(a.sum(), 1.0), obs=y)

    posterior, at = vf.condition(model, jnp.array([1.5])), {"a": jnp.full(3, 0.375)}
    one = vf.laplace(posterior, at=at, curvature=vf.GGN(), structure=LowRank(1))
    found = one.explain()
    assert math.isnan(found["a"].half_log_det_precision)
    assert found["a"].half_log_det_metric == 0.0
    assert "not divided: above 1 parameters no matrix is formed for it; 1/2 log det is 0.693" in (
        repr(found)
    )
    assert "?: not a number, or not divided among the sites" in repr(found)


# --- Several modes


def wells(y: Any) -> None:
    a = numpyro.sample("a", dist.Normal(0.3, 1.0))
    numpyro.sample("y", dist.Normal(a**2, 0.3), obs=y)


def symmetric(y: Any) -> None:
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a**2, 0.3), obs=y)


def test_other_modes() -> None:
    fit = vf.find_map(vf.condition(wells, jnp.array([1.5])), key=KEY, starts=8)
    assert len(fit.modes) == 2
    both = vf.evidence(fit, by=vf.Laplace())
    check_terms(both)
    assert list(both.terms)[3:] == ["other modes", "log(1 + c)"]
    one = vf.laplace(fit).evidence
    assert_allclose(both.terms["other modes"], both.log_z - one.log_z, rtol=1e-10)
    assert "other modes" not in one.terms
    assert "  other modes  " not in repr(vf.laplace(fit).explain())


def test_equivalent_modes() -> None:
    posterior = vf.condition(symmetric, jnp.array([0.6, 1.1, -0.1, 0.4]))
    one = vf.find_map(posterior, key=KEY, starts=1)  # one of the two, so that none is alike
    found = vf.evidence(one, by=vf.Laplace(), equivalent_modes=2)
    check_terms(found)
    assert_allclose(found.terms["equivalent modes"], math.log(2.0), rtol=1e-12)


# --- What has no terms, and what is no number


def test_other_estimators_have_no_terms() -> None:
    posterior = vf.condition(wells, jnp.array([1.5]))
    assert not vf.evidence(posterior, by=vf.Quadrature()).terms
    assert not vf.evidence(posterior, by=vf.Importance(draws=500)).terms


def test_at_a_saddle() -> None:
    def saddle() -> None:
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.factor("hill", a**2 - a**4)

    one = vf.laplace(vf.condition(saddle), at={"a": 0.0}, refuse=False)
    found = one.explain()
    assert math.isnan(found.evidence.terms["-1/2 log det(G^-1 H)"])
    assert_allclose(found.evidence.terms["log q^G at the mode"], one.mode.log_density)
    assert "nan" not in repr(found)
    assert "?: not a number, or not divided among the sites (not a mode: 1 negative" in repr(found)


def test_where_the_second_order_is_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else could be had: log Z holds the correction, and is not corrected again."""
    monkeypatch.setattr(automatic, "_ladder", lambda dim: iter([vf.Laplace()]))

    def model(y: Any) -> None:
        rate = numpyro.sample("rate", dist.Gamma(3.0, 1.0))
        numpyro.sample("y", dist.Gamma(4.0, rate), obs=y)

    fit = vf.find_map(vf.condition(model, jnp.array([2.0, 1.0])), key=KEY, starts=1)
    first = vf.laplace(fit).evidence
    found = Automatic().estimate(problem_of(fit))
    assert found.trust.level is Level.FAIR
    assert_allclose(found.log_z, first.log_z_second_order, rtol=1e-12)
    assert found.log_z_second_order is None
    assert list(found.terms)[-1] == "log(1 + c)"
    assert_allclose(sum(found.terms.values()), found.log_z, rtol=1e-12)


@pytest.mark.standard_promotion
def test_a_good_bridge_above_the_tolerance_gets_the_draws_that_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(automatic, "_ladder", lambda dim: iter([vf.Bridge(draws=1000, warmup=500)]))

    def model(y: Any) -> None:
        rate = numpyro.sample("rate", dist.Gamma(jnp.array([3.0, 5.0]), 1.0).to_event(1))
        numpyro.sample("y", dist.Gamma(4.0, rate), obs=y)

    problem = problem_of(vf.condition(model, jnp.array([2.0, 1.0])))
    first = Automatic(tolerance=1.0).estimate(problem)
    assert first.trust.level is Level.GOOD
    assert "1,000 draws" in str(first)
    found = Automatic(tolerance=0.6 * float(first.error)).estimate(problem)
    assert found.trust.level is Level.GOOD
    assert float(found.error) < 0.6 * float(first.error)
    count = math.ceil(1.25 * 1000 / 0.6**2)
    assert f"({4 * (count // 4):,} draws)" in str(found).splitlines()[0]
    assert f"bridge sampling (1,000 draws) {float(first.log_z):.3f} (good)" in found.note


def test_an_improper_prior_is_refused_as_in_the_evidence() -> None:
    def model(y: Any) -> None:
        mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    one = vf.laplace(vf.condition(model, jnp.array([1.0])))
    with pytest.raises(ModelError, match="The prior of `mu` is improper"):
        one.explain()


# --- What is printed


def test_the_table_is_aligned() -> None:
    lines = repr(approx("schools").explain()).splitlines()
    assert lines[0] == "log Z by Laplace under JointFisher(), 6 parameters"
    start = next(i for i, line in enumerate(lines) if line.startswith("site"))
    table = lines[start : start + 6]
    assert [line.split()[0] for line in table] == ["site", "mu", "tau", "theta", "y", "sum"]
    width = len(table[0])
    assert {len(line) for line in table} - {width} <= {len(table[4])}
    assert table[4].rstrip() == table[4]
    ends = table[0].index("log q^G") + len("log q^G")
    assert all(
        line[ends - 1].isdigit() and line[ends : ends + 1].strip() == "" for line in table[1:]
    )


def test_many_sites() -> None:
    def many(y: Any) -> None:
        values = [numpyro.sample(f"a_{i}", dist.Normal(0.0, 1.0)) for i in range(12)]
        numpyro.sample("y", dist.Normal(sum(values, jnp.zeros(())), 1.0), obs=y)

    posterior = vf.condition(many, jnp.array([1.5]))
    one = vf.laplace(posterior, at=dict.fromkeys(posterior.names, 1.5 / 13), second_order=False)
    found = one.explain()
    assert len(found.sites) == 13
    require_sites(found, one.at, exact_logdet(one.precision))
    assert max(map(len, repr(found).splitlines())) < 120
