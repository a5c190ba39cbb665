"""Gauss-Newton in place of the Hessian: against matrices written out, and in other coordinates."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose

import volform as vf
from volform import networks as nn
from volform.errors import ConvergenceError, ModelError, SaddleError, UnknownSiteError
from volform.inference import GGN
from volform.inference.laplace.log_evidence import log_evidence
from volform.results import Level

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(12, 2)))
NET = nn.MLP(widths=(3,), b_std=1.0)
AT = NET.init(jax.random.key(1), 2)


def flat(posterior: vf.models.Posterior) -> Any:
    """The network's output as a function of u: the coordinates of real sites are their values."""
    return lambda u: NET.apply(posterior.values(u), X)


def test_network_of_regression() -> None:
    posterior = vf.condition(nn.regression(NET, 0.5), X, jnp.sin(X[:, :1]))
    u = posterior.unconstrain(AT)
    J = jax.jacfwd(lambda u: flat(posterior)(u).ravel())(u)
    scales = {p.name: jnp.full(p.shape, p.scaling.deviation) for p in NET.parameters(2)}
    precision = np.diag(1.0 / ravel_pytree([scales[n] for n in posterior.names])[0] ** 2)
    assert_allclose(
        GGN().matrix(posterior, u), J.T @ J / 0.5**2 + precision, rtol=1e-10, atol=1e-10
    )


@pytest.mark.standard_promotion
def test_rates_that_are_no_canonical_parameter() -> None:
    """L = y / z^2 for Poisson of the rate z, and a factor that is taken exactly."""

    def model(y: Any) -> None:
        a = numpyro.sample("a", dist.Normal(jnp.zeros(2), 2.0).to_event(1))
        numpyro.factor("pull", -(a[0] ** 4))
        numpyro.sample("y", dist.Poisson(2.0 + jnp.sin(X @ a)), obs=y)

    y = jnp.arange(12.0)
    a = jnp.array([0.3, -0.5])
    J = jax.jacfwd(lambda a: 2.0 + jnp.sin(X @ a))(a)
    L = np.diag(y / (2.0 + jnp.sin(X @ a)) ** 2)
    rest = np.diag([0.25 + 12.0 * 0.3**2, 0.25])
    assert_allclose(GGN().matrix(vf.condition(model, y), a), J.T @ L @ J + rest, rtol=1e-10)


@pytest.mark.standard_promotion
def test_of_a_linear_map_it_is_the_hessian() -> None:
    def logistic(x: Any, y: Any) -> None:
        b = numpyro.sample("b", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)

    y = jnp.where(X[:, 0] > 0.2, 1.0, 0.0)
    fit = vf.find_map(vf.condition(logistic, X, y), key=jax.random.key(0))
    approx = vf.laplace(fit, curvature=GGN())
    assert_allclose(approx.at.hessian, fit.at.hessian, rtol=1e-10)
    assert_allclose(approx.evidence.log_z, vf.laplace(fit).evidence.log_z, rtol=1e-12)
    assert approx.evidence.log_z_second_order is None
    assert "by Laplace with GGN()" in repr(approx.evidence)
    assert "curvature GGN()" in repr(approx)


@pytest.mark.parametrize(
    "chart", [nn.PolarTransform, pytest.param(nn.log_polar, marks=pytest.mark.slow)]
)
def test_evidence_is_the_same_in_other_coordinates_at_any_point(chart: Any) -> None:
    model = nn.regression(NET, 0.5)
    data = X, jnp.sin(X[:, :1])
    poles = jax.tree.map(lambda w: w + 0.3, AT)  # the point is not where the chart is flat
    charted = nn.weight_norm(model, poles, chart)
    weights = vf.condition(model, *data)
    polar = vf.condition(charted, *data)
    matrices = {f"{n}.polar": chart(poles[n]).inv(v) for n, v in AT.items() if v.ndim == 2}
    biases = {n: v for n, v in AT.items() if v.ndim == 1}
    one = vf.laplace(weights, at=AT, curvature=GGN())
    other = vf.laplace(polar, at=matrices | biases, curvature=GGN())
    assert "the point was given, and its gradient norm" in one.note
    assert_allclose(other.at.eigenvalues, one.at.eigenvalues, rtol=1e-8)
    assert_allclose(log_evidence(other.at), log_evidence(one.at), rtol=1e-8)


@pytest.mark.slow  # examples/weight_norm.py has the same numbers
def test_fifty_units_of_the_paper() -> None:
    """Kristiadi, Dangel & Hennig (2023), Table 1: -212.7 +- 3.4, of which the first fit alone."""
    with np.load(Path(__file__).parents[2] / "examples" / "weight_norm.npz") as stored:
        data = {name: jnp.asarray(stored[name]) for name in stored}
    w0, b0, w1, b1 = jnp.split(data["fits"][0], (50, 100, 150))
    at = {"layer0.w": w0[:, None], "layer0.b": b0, "layer1.w": w1[None], "layer1.b": b1}
    unit = nn.WithPrior(nn.SP(), nn.NTP())
    net = nn.MLP(widths=(50,), parametrization=unit, w_std=1.0, b_std=1.0)
    found = vf.laplace(
        vf.condition(nn.regression(net), data["x"], data["y"]), at=at, curvature=GGN()
    ).evidence
    gram = vf.operators.ggn(
        lambda p, x: net.apply(p, x[None])[0], lambda z: dist.Normal(z, 1.0), at,
        (data["x"], data["y"]),
    )  # fmt: skip
    residual = data["y"] - net.apply(at, data["x"])
    squares = jnp.sum(residual**2) + jnp.sum(data["fits"][0] ** 2)
    log_joint = -0.5 * (squares + 150 * np.log(2.0 * np.pi))  # those of the prior cancel
    log_det = vf.linalg.logdet(gram + 1.0).value
    assert_allclose(found.log_z, log_joint - 0.5 * log_det, rtol=1e-10)
    assert found.trust.level is Level.POOR
    assert "10^79.5 equivalent modes are not counted" in found.note


# --- What is refused


def two_wells(y: Any) -> None:
    a = numpyro.sample("a", dist.Normal(0.0, 3.0))
    numpyro.sample("y", dist.Normal(a**2, 1.0), obs=y)


def test_saddle_is_refused_and_gauss_newton_offered() -> None:
    posterior = vf.condition(two_wells, jnp.array([4.0]))
    with pytest.raises(SaddleError, match=r"1 negative eigenvalues.*`curvature=GGN\(\)`"):
        vf.laplace(posterior, at={"a": jnp.array(0.0)})
    found = vf.laplace(posterior, at={"a": jnp.array(0.0)}, curvature=GGN()).evidence
    assert found.trust.level is Level.UNCHECKED
    assert "the Hessian was not formed" in found.note


def test_indefinite_gauss_newton_is_refused() -> None:
    def scale(y: Any) -> None:
        s = numpyro.sample("s", dist.LogNormal(3.0, 1.0))
        numpyro.sample("y", dist.Normal(0.0, s), obs=y)

    posterior = vf.condition(scale, jnp.zeros(5) + 0.1)
    with pytest.raises(
        SaddleError, match=r"GGN\(\).* is not positive definite at the mode: 1 of 1"
    ):
        vf.laplace(posterior, at={"s": jnp.array(20.0)}, curvature=GGN())


def test_nothing_observed() -> None:
    with pytest.raises(ModelError, match="needs an observed site"):
        vf.laplace(vf.condition(lambda: numpyro.sample("x", dist.Normal())), curvature=GGN())


def test_points_that_are_none() -> None:
    posterior = vf.condition(two_wells, jnp.array([4.0]))
    with pytest.raises(ModelError, match="`curvature` should be a value"):
        vf.laplace(posterior, curvature=GGN)  # pyright: ignore
    with pytest.raises(ModelError, match="`at` is for a Posterior"):
        vf.laplace(vf.find_map(posterior, key=jax.random.key(0)), at={"a": jnp.array(1.0)})
    with pytest.raises(UnknownSiteError, match="lacks the latent sites"):
        vf.laplace(posterior, at={})

    def impossible(y: Any) -> None:
        two_wells(y)
        numpyro.factor("positive", jnp.array(-jnp.inf))

    with pytest.raises(ConvergenceError, match="`log q\\^G` is -inf at the values"):
        vf.laplace(vf.condition(impossible, jnp.array([4.0])), at={"a": jnp.array(1.0)})
