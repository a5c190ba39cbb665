"""Scales moved by the evidence: against evidences of models written with them, and oracles."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose

import volform as vf
from volform import networks as nn
from volform.errors import ModelError, StructureError
from volform.inference import (
    GGN,
    BySite,
    Diagonal,
    ExpectedFisher,
    Full,
    Kronecker,
    LastLayer,
    LowRank,
    OneScale,
    PerLayer,
    PerSite,
    PriorScales,
    Structure,
)
from volform.inference.laplace.gauss_newton import rest_diagonal
from volform.inference.laplace.log_evidence import first_order
from volform.inference.laplace.moving import log_determinants, moved
from volform.inference.laplace.woodbury import woodbury_precision
from volform.linalg import exact_logdet

RNG = np.random.default_rng(7)
X = jnp.asarray(RNG.normal(size=(12, 2)))
Y = jnp.sin(X @ jnp.array([[2.0], [-1.0]])) + 0.1 * jnp.asarray(RNG.normal(size=(12, 1)))
PARAMS = {
    "a": {"w": jnp.asarray(RNG.normal(size=(2, 4))), "b": jnp.asarray(RNG.normal(size=4))},
    "c": {"w": jnp.asarray(0.5 * RNG.normal(size=(4, 1))), "b": jnp.asarray(RNG.normal(size=1))},
}
SCALES = {"a.b": 0.7, "a.w": 1.3, "c.b": 2.0, "c.w": 0.9}


def function(params: Any, x: Any) -> Any:
    hidden = jnp.tanh(x @ params["a"]["w"] + params["a"]["b"][None])
    return hidden @ params["c"]["w"] + params["c"]["b"][None]


def posterior_of(scales: Any, noise: float) -> vf.models.Posterior:
    """A model of these scales, written anew."""

    def prior(name: str, shape: tuple[int, ...]) -> Any:
        return dist.Normal(0.0, scales[name]).expand(shape).to_event(len(shape))

    return vf.condition(nn.regression(nn.from_function(function, PARAMS, prior), noise), X, Y)


AT = {f"{a}.{b}": PARAMS[a][b] for a in "ac" for b in "bw"}
POSTERIOR = posterior_of(SCALES, 0.4)


def laplace(structure: Structure, posterior: Any = POSTERIOR) -> Any:
    return vf.laplace(posterior, at=AT, curvature=GGN(), structure=structure)


def one_mode(approx: Any) -> Any:
    return first_order(approx.at, exact_logdet(approx.precision))


def rest_of(split: Any) -> Any:
    return rest_diagonal(split)


STRUCTURES = {
    "full": Full(),
    "by site": BySite(),
    "diagonal": Diagonal(),
    "kronecker": Kronecker(),
    "ekfac": Kronecker(corrected=True),
}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize(("scales", "noise"), [(PerSite(), True), (OneScale(), False)], ids=repr)
def test_log_z_is_that_of_the_model_with_the_new_scales(
    name: str, scales: PriorScales, noise: bool
) -> None:
    tuned = vf.tune(laplace(STRUCTURES[name]), scales=scales, noise=noise)
    assert tuned.converged
    assert tuned.log_z[1] > tuned.log_z[0]
    new = {site: float(scale) for site, scale in tuned.scales.items()}
    again = laplace(STRUCTURES[name], posterior_of(new, 0.4 * tuned.noise))
    assert_allclose(tuned.log_z[1], one_mode(again), rtol=1e-10)
    assert_allclose(tuned.approx.precision.as_matrix(), again.precision.as_matrix(), rtol=1e-9)
    assert_allclose(tuned.approx.evidence.log_z, again.evidence.log_z, rtol=1e-10)


@cache
def written_out() -> tuple[Any, Any, Any]:
    """Parameters, Jacobian and residuals."""
    flat, unravel = ravel_pytree(PARAMS)
    J = jax.jacfwd(lambda flat: function(unravel(flat), X)[:, 0])(flat)
    return np.asarray(flat), np.asarray(J), np.asarray(Y - function(PARAMS, X))[:, 0]


def dense_log_z(logs: Any, groups: Any) -> float:
    """By the Jacobian written out, in the logs of the precisions of the groups and of the noise."""
    flat, J, residuals = written_out()
    names = np.concatenate([np.full(AT[name].size, name) for name in AT])  # in the order of ravel
    weights = {name: np.exp(logs[g]) for g, names in enumerate(groups) for name in names}
    prior = np.array([weights[name] / SCALES[name] ** 2 for name in names])
    noise = 0.16 * np.exp(-logs[-1])
    log_joint = -0.5 * np.sum(residuals**2 / noise + np.log(2 * np.pi * noise))
    log_joint += 0.5 * np.sum(-prior * flat**2 + np.log(prior / (2 * np.pi)))
    P = J.T @ J / noise + np.diag(prior)
    return log_joint + 0.5 * len(prior) * np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(P)[1]


@pytest.mark.parametrize("scales", [OneScale(), PerLayer(), PerSite()], ids=repr)
def test_against_a_dense_oracle(scales: PriorScales) -> None:
    groups = scales.groups(POSTERIOR.names)
    start = np.zeros(len(groups) + 1)
    best = scipy.optimize.minimize(
        lambda logs: -dense_log_z(logs, groups), start, method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 20_000, "maxfev": 20_000},
    )  # fmt: skip
    tuned = vf.tune(laplace(Full()), scales=scales, noise=True)
    assert_allclose(tuned.log_z, [dense_log_z(start, groups), -best.fun], rtol=1e-11)
    for log, names in zip(best.x, groups, strict=False):
        for name in names:
            assert_allclose(tuned.factors[name], np.exp(-0.5 * log), rtol=1e-5)
    assert_allclose(tuned.noise, np.exp(-0.5 * best.x[-1]), rtol=1e-5)


@pytest.mark.parametrize("rank", [5, 17])
def test_directions_across_groups(rank: int) -> None:
    approx = laplace(LowRank(rank))
    rest = rest_of(approx.curvature.split(POSTERIOR, approx.at.u))
    groups = np.concatenate(
        [np.full(site.size, n) for n, site in enumerate(POSTERIOR.layout.sites)]
    )
    weights, c = jnp.array([0.5, 2.0, 1.5, 3.0]), jnp.asarray(0.6)
    data = approx.precision.as_matrix() - jnp.diag(rest)
    want = c * data + jnp.diag(weights[groups] * rest)
    parts = log_determinants(approx.precision, rest, groups, 4)
    found = sum(part.at(weights, c) for part in parts) + jnp.sum(jnp.log(rest))
    assert_allclose(found, jnp.linalg.slogdet(want)[1], rtol=1e-10)
    other = moved(approx.precision, rest, weights[groups], c)
    assert_allclose(other.as_matrix(), want, rtol=1e-8, atol=1e-9)
    assert_allclose(exact_logdet(other), jnp.linalg.slogdet(want)[1], rtol=1e-9)
    tuned = vf.tune(approx, scales=PerSite())
    assert_allclose(tuned.log_z[1], one_mode(tuned.approx), rtol=1e-9)


def test_rows_of_the_jacobian_where_they_are_few() -> None:
    split = GGN().split(POSTERIOR, POSTERIOR.unconstrain(AT))
    few = vf.condition(POSTERIOR.model, X[:4], Y[:4])
    split = GGN().split(few, split.u)
    rest = rest_of(split)
    precision = woodbury_precision(split, rest)
    assert precision is not None
    (part,) = log_determinants(precision, rest, np.zeros(17, int), 1)
    w, c = jnp.array([0.3]), jnp.asarray(1.7)
    want = c * (precision.as_matrix() - jnp.diag(rest)) + 0.3 * jnp.diag(rest)
    assert_allclose(part.at(w, c) + jnp.log(rest).sum(), jnp.linalg.slogdet(want)[1], rtol=1e-10)


@pytest.mark.parametrize("name", ["full", "kronecker"])
def test_derivatives_are_those_of_automatic_differentiation(name: str) -> None:
    approx = laplace(STRUCTURES[name])
    rest = rest_of(approx.curvature.split(POSTERIOR, approx.at.u))
    groups = np.concatenate(
        [np.full(site.size, n) for n, site in enumerate(POSTERIOR.layout.sites)]
    )
    logs = jnp.array([0.3, -0.5, 0.2, 1.0, 0.4])
    for part in log_determinants(approx.precision, rest, groups, 4):
        at = lambda logs, part=part: part.at(jnp.exp(logs[:-1]), jnp.exp(logs[-1]))  # noqa: E731
        slope, curved = part.derivatives(logs)
        assert_allclose(slope, jax.grad(at)(logs), rtol=1e-10)
        assert_allclose(curved, jax.hessian(at)(logs), rtol=1e-9, atol=1e-12)


def test_the_last_layer_with_a_structure_and_twice() -> None:
    approx = laplace(LastLayer(Kronecker()))
    tuned = vf.tune(approx, scales=PerSite(), noise=True)
    assert set(tuned.factors) == {"c.b", "c.w", "y"}
    once_more = vf.tune(tuned.approx, scales=PerSite(), noise=True)
    assert_allclose(once_more.log_z, tuned.log_z[1], rtol=1e-10)
    assert_allclose([*once_more.factors.values(), once_more.noise], 1.0, rtol=1e-5)


@pytest.mark.standard_promotion
def test_sites_with_other_priors_stay() -> None:
    def model(x: Any, y: Any) -> None:
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        v = numpyro.sample("v", dist.Normal(0.0, tau))
        noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x @ w + v, noise), obs=y)

    def flat(x: Any, y: Any) -> None:
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x @ w, noise), obs=y)

    at = {"w": jnp.array([1.0, -1.0]), "tau": 1.0, "v": 1.2, "noise": 0.5}
    coupled = vf.laplace(vf.condition(model, X, Y[:, 0]), at=at, curvature=ExpectedFisher())
    with pytest.raises(StructureError, match="covariant Hessian is diagonal and positive"):
        vf.tune(coupled)
    approx = vf.laplace(vf.condition(flat, X, Y[:, 0]), at=at, curvature=ExpectedFisher())
    tuned = vf.tune(approx)
    assert tuned.unmoved == ("noise",)
    assert "left as they are: noise" in repr(tuned)
    assert_allclose(tuned.log_z[1], one_mode(tuned.approx), rtol=1e-10)
    with pytest.raises(ModelError, match=r"`noise=True` of tune .* of \['y'\] the likelihood"):
        vf.tune(approx, noise=True)


def test_no_maximum_is_said() -> None:
    at = {**AT, "c.b": jnp.zeros(1)}
    approx = vf.laplace(POSTERIOR, at=at, curvature=GGN(), structure=Diagonal())
    tuned = vf.tune(approx, scales=PerSite())
    assert not tuned.converged
    assert "the evidence has no maximum in the scale of c.b" in repr(tuned)


def test_what_cannot_be_tuned() -> None:
    with pytest.raises(ModelError, match="`approx` of tune is dict"):
        vf.tune({})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ModelError, match=r"`scales` of tune is 'one'; it should be `OneScale\(\)`"):
        vf.tune(laplace(Diagonal()), scales="one")  # pyright: ignore[reportArgumentType]
    with pytest.raises(StructureError, match="the Hessian is not that of a mode"):
        vf.tune(vf.laplace(POSTERIOR, at=AT, structure=Diagonal(), refuse=False))

    def model(y: Any) -> None:
        a = numpyro.sample("a", dist.LogNormal(0.0, 1.0))
        numpyro.sample("y", dist.Poisson(a), obs=y)

    counts = vf.condition(model, jnp.array([1.0, 2.0]))
    approx = vf.laplace(counts, at={"a": 0.3}, curvature=GGN())
    with pytest.raises(ModelError, match=r"none of the sites \['a'\] has one"):
        vf.tune(approx)
