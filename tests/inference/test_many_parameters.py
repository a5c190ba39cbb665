"""Laplace's method where a matrix of all parameters is not formed: the search, and the evidence."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose
from tests.inference.spellings import Spelled

import volform as vf
from volform import kernels as k, networks as nn
from volform.errors import ConvergenceError, SingularMetricError, SizeError
from volform.inference import GGN, Linearized, LowRank
from volform.inference.laplace.gauss_newton import gauss_newton, rest_diagonal
from volform.inference.laplace.woodbury import woodbury_precision
from volform.inference.modes.newton_cg import newton_cg
from volform.inference.modes.search import stationary_point
from volform.linalg import DenseOperator, exact_logdet, whitening_maps
from volform.results import Level

RNG = np.random.default_rng(5)
KEY = jax.random.key(0)
X, Y = RNG.normal(size=(20, 3)), RNG.normal(size=20)

# --- By the rows of the Jacobian


@cache
def case(name: str) -> tuple[vf.models.Posterior, Any]:
    return network(*CASES[name])


def network(likelihood: Callable, y: Any, outputs: int = 1) -> tuple[vf.models.Posterior, Any]:
    net = nn.MLP(widths=(60,), outputs=outputs, activation=jnp.tanh)
    posterior = vf.condition(nn.supervised(net, likelihood), jnp.asarray(X), jnp.asarray(y))
    return posterior, posterior.unconstrain(net.init(jax.random.key(1), 3))


CASES = {
    "normal": (lambda z: dist.Normal(z, 0.3), Y[:, None], 1),
    "classes": (dist.CategoricalLogits, RNG.integers(3, size=20), 3),
    "counts": (lambda z: dist.Poisson(jnp.exp(z)), RNG.integers(5, size=(20, 1)), 1),
    "correlated": (
        lambda z: dist.MultivariateNormal(z, jnp.array([[1.0, 0.5], [0.5, 2.0]])),
        RNG.normal(size=(20, 2)),
        2,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_give_the_whole_matrix(name: str) -> None:
    posterior, u = case(name)
    split = GGN().split(posterior, u)
    rest = rest_diagonal(split)
    assert rest is not None
    found = woodbury_precision(split, rest)
    assert found is not None
    exact = gauss_newton(split)
    assert_allclose(found.as_matrix(), exact, rtol=1e-9, atol=1e-9)
    assert_allclose(exact_logdet(found), np.linalg.slogdet(exact)[1], rtol=1e-11)
    root = jax.vmap(whitening_maps(found)[1])(jnp.eye(posterior.dim))
    assert_allclose(root.T @ root, np.linalg.inv(exact), rtol=1e-8, atol=1e-8)


def test_where_rows_do_not_help() -> None:
    """Outputs of negative curvature; as many rows as parameters; a prior that is no density."""
    heavy, u = network(lambda z: dist.StudentT(3.0, z, 0.1), 9 * Y[:, None])
    split = GGN().split(heavy, u)
    rest = rest_diagonal(split)
    assert rest is not None
    assert woodbury_precision(split, rest) is None
    posterior, u = case("normal")
    split = GGN().split(posterior, u)
    assert woodbury_precision(split, jnp.zeros(posterior.dim)) is None
    small = nn.MLP(widths=(2,))
    posterior = vf.condition(nn.regression(small, 0.3), jnp.asarray(X), jnp.asarray(Y)[:, None])
    split = GGN().split(posterior, jnp.ones(posterior.dim))
    assert woodbury_precision(split, jnp.ones(posterior.dim)) is None


def linear(x: Any, y: Any = None, *, is_tied: bool = False) -> None:
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    if is_tied:
        numpyro.factor("tie", -jnp.sum(jnp.diff(w) ** 2))
    numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def test_of_many_parameters_no_matrix_is_formed() -> None:
    """40,000 weights, whose Hessian would take 12 GiB; one datum, so that all is closed form."""
    x = jnp.asarray(RNG.normal(size=(1, 40_000)))
    posterior = vf.condition(linear, x, jnp.array([2.0]))
    spread = 1.0 + float(x[0] @ x[0])
    exact = dist.Normal(0.0, spread**0.5).log_prob(2.0)
    mode = {"w": 2.0 * x[0] / spread}
    for found in (
        vf.laplace(posterior, curvature=GGN()),
        vf.laplace(posterior, at=mode, curvature=GGN(), structure=LowRank(1)),
    ):
        assert_allclose(found.values["w"], mode["w"], atol=1e-12)
        assert_allclose(found.evidence.log_z, exact, rtol=1e-9)
        predicted = found.predictive(x, by=Linearized())["y"]
        assert_allclose(predicted.variance, 1.0 + (spread - 1.0) / spread, rtol=1e-9)
        assert "stationary; the Hessian was not formed" in repr(found)
        assert found.evidence.trust.level is Level.UNCHECKED


def test_matrices_that_would_be_too_large() -> None:
    x = jnp.ones((1, 40_000))
    tied = vf.condition(linear, x, jnp.array([2.0]), is_tied=True)
    for refused in (
        lambda: vf.find_map(tied, key=KEY),
        lambda: vf.laplace(tied, at={"w": jnp.zeros(40_000)}, curvature=GGN()),
    ):
        with pytest.raises(SizeError, match="40,000 parameters, whose Hessian would take 12 GiB"):
            refused()


@cache
def wide(parametrization: nn.Parametrization) -> tuple[nn.Network, Any]:
    """1,501 parameters, 20 examples."""
    net = nn.MLP(widths=(300,), activation=jnp.tanh, parametrization=parametrization, b_std=1.0)
    x, y = jnp.asarray(X), jnp.asarray(X[:, :1] - X[:, 1:2])
    return net, vf.laplace(vf.condition(nn.regression(net, 0.3), x, y), curvature=GGN())


def test_evidence_is_that_of_every_parametrization() -> None:
    values = []
    for parametrization in (nn.NTP(), nn.SP()):
        _, found = wide(parametrization)
        assert not isinstance(found.precision, DenseOperator)
        values.append(float(found.evidence.log_z))
    assert_allclose(values[1:], values[0], rtol=1e-8)


def test_evidence_is_that_of_the_network_linearized() -> None:
    """At a stationary point: of a Gaussian process whose kernel is the empirical tangent kernel."""
    net, found = wide(nn.NTP())
    x, y = jnp.asarray(X), jnp.asarray(X[:, :1] - X[:, 1:2])
    values = found.values
    output, moved = jax.jvp(lambda params: net.apply(params, x), (values,), (values,))
    assert jnp.max(jnp.abs(moved)) > 0.5  # not the network that is zero
    kernel = k.empirical_ntk(net.apply, values, x) + 0.09 * jnp.eye(20)
    exact = dist.MultivariateNormal(jnp.zeros(20), kernel).log_prob((y - output + moved)[:, 0])
    assert_allclose(found.evidence.log_z, exact, rtol=1e-10)


def in_a_chart(x: Any, y: Any, chart: Spelled) -> None:
    prior = dist.Normal(0.0, 1.0).expand(chart.w0.shape).to_event(1)
    z = numpyro.sample("z", dist.TransformedDistribution(prior, chart.inv))
    w = numpyro.deterministic("w", chart(z))
    numpyro.sample("y", dist.Normal(jnp.tanh(x @ w), 0.5), obs=y)


IN_A_CHART = vf.attach(in_a_chart, {"w": vf.Euclidean()})  # one model, so one program


@settings(max_examples=5)
@given(bend=st.floats(0.0, 0.8), seed=st.integers(0, 2**16))
def test_rows_and_search_in_any_coordinates(bend: float, seed: int) -> None:
    """`w = w0 + A (f(z) - f(z0))`, A diagonal: at any point, and where the search ends."""
    rng = np.random.default_rng(seed)
    x, w0 = jnp.asarray(rng.normal(size=(6, 40)) / 6), jnp.asarray(rng.normal(size=40))
    plain = Spelled(w0, jnp.eye(40), jnp.zeros(()))
    bent = Spelled(w0, jnp.diag(jnp.asarray(rng.uniform(0.3, 3.0, 40))), jnp.asarray(bend))
    found = []
    for chart in (plain, bent):
        posterior = vf.condition(IN_A_CHART, x, jnp.tanh(x @ w0), chart)
        split = GGN().split(posterior, jnp.full(40, 0.5))
        rest = rest_diagonal(split)
        assert rest is not None
        rows = woodbury_precision(split, rest)
        assert rows is not None
        end = newton_cg(posterior, split.u, 1e-8, 200)
        volume = exact_logdet(posterior.metric(split.u))
        found.append([exact_logdet(rows) - volume, end.value])
        assert jnp.linalg.norm(end.gradient) < 1e-8
    assert_allclose(found[1], found[0], rtol=1e-8)


# --- The search


def logistic(x: Any, y: Any = None) -> None:
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    scale = numpyro.sample("scale", dist.Gamma(3.0, 1.0))
    numpyro.sample("y", dist.Bernoulli(logits=scale * x @ w), obs=y)


@pytest.mark.standard_promotion  # NumPyro's Bernoulli
@pytest.mark.parametrize(
    "metric", [vf.Euclidean(), pytest.param(vf.Unconstrained(), marks=pytest.mark.slow)]
)
def test_search_ends_at_the_mode(metric: Any) -> None:
    x = jnp.asarray(RNG.normal(size=(40, 30)))
    posterior = vf.condition(vf.attach(logistic, metric), x, x[:, 0] > 0.2)
    found = stationary_point(posterior, KEY, progress=False)
    fit = vf.find_map(posterior, key=KEY)
    assert fit.converged
    assert found.converged is False  # no Hessian, no verdict
    assert found.gradient_norm < 1e-8
    assert 10 < found.cost.gradients < 1000
    assert_allclose(found.at.u, fit.at.u, atol=1e-8)


def test_search_leaves_saddles() -> None:
    def two_wells(y: Any) -> None:
        a = numpyro.sample("a", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(a[0] ** 2 + 0.1 * a[1], 1.0), obs=y)

    posterior = vf.condition(two_wells, jnp.array([4.0]))
    end = newton_cg(posterior, jnp.array([1e-3, 0.0]), 1e-8, 200)
    assert end.u[0] > 1.9
    assert jnp.linalg.norm(end.gradient) < 1e-8


def test_search_says_where_it_ended() -> None:
    def kinked() -> None:
        numpyro.sample("a", dist.Laplace(0.3, 1.0).expand([201]).to_event(1))
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=jnp.array(0.5))

    posterior = vf.condition(kinked)
    with pytest.raises(ConvergenceError, match="it may have a kink there"):
        vf.laplace(posterior, curvature=GGN(), progress=False)
    found = vf.laplace(posterior, curvature=GGN(), refuse=False, progress=False)
    assert "not converged" in repr(found)


def test_search_says_where_it_cannot_begin() -> None:
    def nowhere(y: Any) -> None:
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([300]).to_event(1))
        numpyro.factor("edge", jnp.log(-1.0 - w[0] ** 2))
        numpyro.sample("y", dist.Normal(jnp.sum(w), 1.0), obs=y)

    with pytest.raises(ConvergenceError, match=r"at every one of 3 starts.*'edge': nan"):
        vf.laplace(vf.condition(nowhere, jnp.array([1.0])), curvature=GGN())


def test_a_singular_metric_is_named_at_given_values() -> None:
    def model(y: Any) -> None:
        a = numpyro.sample("a", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(a.sum(), 1.0), obs=y)

    flat = vf.condition(vf.attach(model, vf.LikelihoodFisher()), jnp.array([1.0]))
    for chosen in ({}, {"curvature": GGN()}):
        with pytest.raises(SingularMetricError, match="rank 1 of 2"):
            vf.laplace(flat, at={"a": jnp.zeros(2)}, **chosen)
