"""What the number of parameters decides is said, on both sides of each threshold."""

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

import volform as vf
from volform.inference import GGN, Diagonal, LastLayer
from volform.inference.samplers.nuts import run_nuts
from volform.results import Regime, in_words

KEY = jax.random.key(0)
DENSE = Regime("dense Hessian")
BFGS = Regime("BFGS from every start, dense Hessian at distinct ends", 60)
GRADIENTS = Regime(
    "conjugate gradients from every start, dense Hessian at the best, other modes not seen", 1000
)
NO_HESSIAN = Regime("conjugate gradients, no Hessian", 200)
ROWS = Regime("matrix by the rows of the Jacobian", 1000)


def gaussian(d: int, y: Any) -> None:
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([d]).to_event(1))
    numpyro.sample("y", dist.Normal(jnp.sum(w), 1.0), obs=y)


@cache
def posterior_of(d: int) -> vf.models.Posterior:
    return vf.condition(gaussian, d, jnp.array([1.5]))


@pytest.mark.parametrize("d", [60, 61])
def test_correction(d: int) -> None:
    found = vf.laplace(posterior_of(d), at={"w": jnp.full(d, 1.5 / (d + 1))}).evidence
    assert (found.correction is None) == (d > 60)
    assert (
        "no second-order correction: 61 parameters, it is computed up to 60" in repr(found)
    ) == (d > 60)
    assert ("log(1 + c)" in found.terms) == (d <= 60)
    assert found.regimes == (DENSE,)


@pytest.mark.parametrize(("d", "regime"), [(60, DENSE), (61, BFGS)])
def test_starts(d: int, regime: Regime) -> None:
    posterior = posterior_of(d)
    fit = vf.find_map(posterior, key=KEY, starts=2)
    assert fit.regime == regime
    assert fit.starts == fit.modes[0].starts == 2
    approx = vf.laplace(fit, second_order=False)
    assert approx.regimes == approx.evidence.regimes == (regime,)
    for shown in (repr(fit), repr(approx), repr(approx.evidence)):
        assert (f"{BFGS}" in shown) == (d > 60)
        assert shown.count("above") == (d > 60)
    diagonal = vf.laplace(fit, structure=Diagonal())
    assert diagonal.regimes == (regime, Regime("matrix with Diagonal()"))


@pytest.mark.parametrize(("d", "regime"), [(200, BFGS), (201, NO_HESSIAN)])
def test_search_with_a_curvature(d: int, regime: Regime) -> None:
    approx = vf.laplace(posterior_of(d), curvature=GGN())
    assert approx.mode.regime == regime
    assert approx.regimes == approx.evidence.regimes == (regime, Regime("dense matrix"))
    assert str(regime) in repr(approx)
    assert str(regime) in repr(approx.evidence)


@pytest.mark.parametrize("d", [1000, 1001])
def test_matrix(d: int) -> None:
    approx = vf.laplace(posterior_of(d), curvature=GGN())
    assert approx.mode.regime == NO_HESSIAN
    assert approx.regimes[1] == (ROWS if d > 1000 else Regime("dense matrix"))
    for shown in (repr(approx), repr(approx.evidence)):
        assert ("matrix by the rows of the Jacobian (above 1,000 parameters)" in shown) == (
            d > 1000
        )


@pytest.mark.parametrize(("d", "regime"), [(1000, BFGS), (1001, GRADIENTS)])
def test_descent(d: int, regime: Regime) -> None:
    fit = vf.find_map(posterior_of(d), key=KEY, starts=2)
    assert fit.regime == regime
    assert str(regime) in repr(fit)


@pytest.mark.standard_promotion  # NUTS
@pytest.mark.parametrize("d", [200, 201])
def test_mass_matrix(d: int) -> None:
    chains = run_nuts(posterior_of(d), KEY, jnp.zeros((1, d)), jnp.eye(d), 1, 2, 0.9, print)
    assert chains.regimes == ((Regime("NUTS with a diagonal mass matrix", 200),) if d > 200 else ())


def test_values_that_were_given() -> None:
    posterior, at = posterior_of(3), {"w": jnp.full(3, 0.375)}
    assert vf.laplace(posterior, at=at).regimes == (DENSE,)
    approx = vf.laplace(posterior, at=at, curvature=GGN())
    assert approx.regimes == (Regime("no Hessian"), Regime("dense matrix"))
    assert in_words(approx.regimes) == ""
    assert "no Hessian\n" not in repr(approx)


def test_the_regime_of_the_search_stays_when_sites_are_held() -> None:
    network, x = vf.networks.MLP(widths=(3,)), jnp.array([[0.5], [1.0], [2.0]])
    posterior = vf.condition(vf.networks.regression(network, 0.5), x, jnp.sin(x))
    fit = dataclasses.replace(vf.find_map(posterior, key=KEY, starts=1), regime=BFGS)
    approx = vf.laplace(fit, curvature=GGN(), structure=LastLayer(), refuse=False)
    assert approx.regimes == (BFGS, Regime("dense matrix"))


def test_other_estimators_tell_the_search() -> None:
    found = vf.evidence(posterior_of(3), by=vf.Importance(draws=200))
    assert found.regimes == (DENSE,)
    assert (
        vf.kernels.evidence(vf.networks.Dense(1), jnp.eye(2), jnp.ones(2), noise=1.0).regimes == ()
    )
