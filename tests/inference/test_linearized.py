"""Predictions of the linearized model, against Jacobians and the covariance written out."""

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
from volform import networks as nn
from volform.errors import DataError, ModelError
from volform.inference import GGN, Full, FunctionSpace, Kronecker, Linearized

RNG = np.random.default_rng(5)
X, NEW = jnp.asarray(RNG.normal(size=(9, 2))), jnp.asarray(RNG.normal(size=(4, 2)))
CLASSES = jnp.asarray(RNG.integers(0, 3, size=9))
NET = nn.MLP(widths=(3,), outputs=3, b_std=1.0)
AT = NET.init(jax.random.key(0), 2)


def variance(approx: Any, function: Any) -> Any:
    J = jax.jacfwd(function)(approx.at.u)
    return jnp.einsum("...i,ij,...j->...", J, approx.covariance, J)


@cache
def classified() -> vf.models.Posterior:
    return vf.condition(nn.classification(NET), X, CLASSES)


@pytest.mark.parametrize("structure", [None, Kronecker()], ids=repr)
def test_probit_of_classes(structure: Any) -> None:
    posterior = classified()
    approx = vf.laplace(posterior, at=AT, curvature=GGN(), structure=structure)
    of_u = lambda u: NET.apply(posterior.values(u), NEW)  # noqa: E731
    spread = variance(approx, of_u)
    found = approx.predictive(NEW, by=Linearized(chunk=3))["y"]
    assert_allclose(
        found.logits, of_u(approx.at.u) / jnp.sqrt(1.0 + jnp.pi / 8.0 * spread), rtol=1e-9
    )


@pytest.mark.standard_promotion
def test_examples_that_see_each_other() -> None:
    """Inputs are centered by the mean of the batch, so that no example may be taken alone."""

    def model(x: Any, y: Any = None) -> None:
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))
        numpyro.sample("y", dist.Normal((x - x.mean(0)) @ w, noise), obs=y)

    posterior = vf.condition(model, X, X[:, 0] + 0.3 * X[:, 1] ** 2)
    approx = vf.laplace(vf.find_map(posterior, key=jax.random.key(0)))
    centered = NEW - NEW.mean(0)
    spread = variance(approx, lambda u: centered @ posterior.values(u)["w"])
    found = approx.predictive(NEW, by=Linearized())["y"]
    assert_allclose(found.variance, spread + approx.values["noise"] ** 2, rtol=1e-9)
    assert_allclose(found.mean, centered @ approx.values["w"], rtol=1e-12)


@pytest.mark.standard_promotion
def test_bernoulli_agrees_with_the_integral() -> None:
    def model(x: Any, y: Any = None) -> None:
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    approx = vf.laplace(vf.condition(model, X, jnp.where(CLASSES > 0, 1.0, 0.0)))
    found = approx.predictive(NEW, by=Linearized())["y"].mean
    draws = approx.sample(jax.random.key(1), 20_000).values["w"]
    assert_allclose(found, jax.nn.sigmoid(draws @ NEW.T).mean(0), atol=0.01)


@pytest.mark.standard_promotion
def test_what_has_no_closed_form() -> None:
    def model(x: Any, y: Any = None) -> None:
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Poisson(jnp.exp(w * x)), obs=y)

    approx = vf.laplace(vf.condition(model, X[:, 0], CLASSES), at={"w": 0.1})
    with pytest.raises(ModelError, match="has no closed form for Poisson, the distribution of `y`"):
        approx.predictive(NEW[:, 0], by=Linearized())
    with pytest.raises(ModelError, match="`predictive` got ArrayImpl where draws need a key first"):
        approx.predictive(NEW[:, 0])
    with pytest.raises(DataError, match="`chunk` of Linearized is 0"):
        Linearized(chunk=0)


@pytest.mark.parametrize("structure", [Kronecker(), FunctionSpace(), Full()], ids=repr)
def test_all_examples_together(structure: Any) -> None:
    """Covariance between examples, beside the variances of each."""
    y = jnp.sin(X @ jnp.ones((2, 3)))
    posterior = vf.condition(nn.regression(NET, 0.3), X, y)
    approx = vf.laplace(posterior, at=AT, curvature=GGN(), structure=structure)
    found = approx.predictive(NEW, by=Linearized(joint=True))["y"]
    each = approx.predictive(NEW, by=Linearized())["y"]
    J = jax.jacfwd(lambda u: NET.apply(posterior.values(u), NEW).ravel())(approx.at.u)
    expected = J @ approx.covariance @ J.T + 0.09 * jnp.eye(len(J))
    assert_allclose(found.covariance_matrix, expected, rtol=1e-10, atol=1e-12)
    assert_allclose(found.mean, each.mean.ravel(), rtol=1e-12)
    assert_allclose(found.variance, each.variance.ravel(), rtol=1e-10)


def test_together_are_normals_alone() -> None:
    approx = vf.laplace(classified(), at=AT, curvature=GGN())
    with pytest.raises(ModelError, match="`joint=True` of Linearized is for a Normal, and `y` is"):
        approx.predictive(NEW, by=Linearized(joint=True))
    with pytest.raises(ModelError, match="`joint` of Linearized is 'yes'"):
        Linearized(joint="yes")  # pyright: ignore[reportArgumentType]
