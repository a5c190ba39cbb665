"""Covariance of outputs by the factors of layers, against Jacobians and matrices written out."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import volform as vf
from volform import networks as nn
from volform.inference import GGN, BySite, Diagonal, Kronecker, LastLayer, Linearized, Structure
from volform.inference.laplace import linearized
from volform.inference.laplace.linearized import _covariance, _Outputs
from volform.inference.laplace.output_covariance import rotated_blocks
from volform.models.model_with_data import ById, make_program

RNG = np.random.default_rng(11)


class Case:
    """A classifier with data, and new inputs."""

    def __init__(self, function: Any, params: Any, x: Any, new: Any, classes: int):
        self.function, self.params, self.x, self.new = function, params, x, new
        self.y = jnp.asarray(RNG.integers(0, classes, size=len(x)))

    @functools.cached_property
    def net(self) -> nn.Network:
        return nn.from_function(self.function, self.params, 0.8)

    @functools.cached_property
    def posterior(self) -> vf.models.Posterior:
        return vf.condition(nn.classification(self.net), self.x, self.y)

    @functools.cached_property
    def at(self) -> Any:
        return self.net.init(jax.random.key(3))

    def laplace(self, structure: Structure) -> Any:
        return vf.laplace(self.posterior, at=self.at, curvature=GGN(), structure=structure)


def normal(*shape: int) -> Any:
    return jnp.asarray(RNG.normal(size=shape))


def dense(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["w"] + p["b"][None]) @ (0.5 * p["v"]).T + p["c"][None]


def convolved(p: Any, x: Any) -> Any:
    z = jax.lax.conv_general_dilated(
        x, p["filter"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.tanh(z * p["gain"][None, None, None]).reshape(len(x), -1) @ p["w"]


def embedded(p: Any, x: Any) -> Any:
    rows = p["table"][x]  # positions, some with the same word
    return jnp.tanh(rows @ p["w"]).mean(1) @ p["v"]


CASES = {
    "dense": Case(
        dense, {"w": normal(2, 3), "b": normal(3), "v": normal(4, 3), "c": normal(4)},
        normal(9, 2), normal(5, 2), 4,
    ),
    "convolution": Case(
        convolved, {"filter": normal(2, 2, 2, 3), "gain": normal(3), "w": normal(27, 2)},
        normal(4, 4, 4, 2), normal(3, 4, 4, 2), 2,
    ),
    "table": Case(
        embedded, {"table": normal(5, 3), "w": normal(3, 2), "v": normal(2, 3)},
        jnp.asarray(RNG.integers(0, 5, size=(6, 4))), jnp.asarray([[0, 0, 3, 1], [2, 2, 2, 4]]), 3,
    ),
}  # fmt: skip


def covariance(case: Case, approx: Any, chunk: int = 2, route: Any = None) -> Any:
    """The joint covariance, shape (n, k, k)."""
    posterior = approx.posterior
    data = make_program(posterior.model, (case.new,), {}).data
    outputs = _Outputs(posterior, approx.at.u, ById(posterior.model), data, "y")
    precision = rotated_blocks(approx.precision)
    whole = outputs.at(outputs.u)
    if route is not None:
        found = route(outputs, precision, chunk, whole.shape[-1])
        assert found is not None
        assert bool(found[2])
        return found[0][:, 0]
    return _covariance(outputs, precision, whole, chunk, is_joint=True)


def oracle(case: Case, approx: Any) -> Any:
    posterior = approx.posterior
    held = {name: value for name, value in case.at.items() if name not in posterior.names}

    def outputs(u: Any) -> Any:
        return case.net.apply({**held, **posterior.values(u)}, case.new)

    J = jax.jacfwd(outputs)(approx.at.u)
    return jnp.einsum("nki,ij,nlj->nkl", J, jnp.linalg.inv(approx.precision.as_matrix()), J)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "structure", [Kronecker(), Kronecker(corrected=True), Diagonal(), BySite()], ids=repr
)
def test_against_the_jacobian(name: str, structure: Structure) -> None:
    case = CASES[name]
    approx = case.laplace(structure)
    found = covariance(case, approx, route=linearized._by_factors)
    assert_allclose(found, oracle(case, approx), rtol=1e-9, atol=1e-12)


def test_the_last_layer() -> None:
    case = CASES["dense"]
    approx = case.laplace(LastLayer(Kronecker()))
    found = covariance(case, approx, route=linearized._by_factors)
    assert_allclose(found, oracle(case, approx), rtol=1e-9)


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_chunks_do_not_matter(chunk: int) -> None:
    case = CASES["dense"]
    approx = case.laplace(Kronecker())
    assert_allclose(covariance(case, approx, chunk), oracle(case, approx), rtol=1e-9)


def test_variances_are_the_diagonal_and_rows_agree() -> None:
    case = CASES["dense"]
    approx = case.laplace(Kronecker())
    rows = covariance(case, approx, route=linearized._by_example)
    assert_allclose(rows, oracle(case, approx), rtol=1e-9)
    logits = approx.predictive(case.new, by=Linearized())["y"].logits
    spread = jnp.einsum("nkk->nk", oracle(case, approx))
    center = case.net.apply(case.at, case.new)
    assert_allclose(logits, center / jnp.sqrt(1.0 + jnp.pi / 8.0 * spread), rtol=1e-9)


@pytest.mark.standard_promotion
def test_sites_that_are_no_layers_are_not_forgotten() -> None:
    """A scale that multiplies the outputs, and a weight that is squared before it is used."""

    def model(x: Any, y: Any = None) -> None:
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        scale = numpyro.sample("scale", dist.Normal(0.0, 1.0))
        v = numpyro.sample("v", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
        numpyro.sample("y", dist.CategoricalLogits(scale * (jnp.tanh(x @ w) @ v**2)), obs=y)

    x, new = normal(6, 2), normal(3, 2)
    posterior = vf.condition(model, x, jnp.array([0, 1, 1, 0, 1, 0]))
    at = {"w": normal(2, 3), "scale": 0.7, "v": normal(3, 2)}
    approx = vf.laplace(posterior, at=at, curvature=GGN(), structure=Kronecker())

    def outputs(u: Any) -> Any:
        p = posterior.values(u)
        return p["scale"] * (jnp.tanh(new @ p["w"]) @ p["v"] ** 2)

    J, inverse = jax.jacfwd(outputs)(approx.at.u), jnp.linalg.inv(approx.precision.as_matrix())
    spread = jnp.einsum("nki,ij,nkj->nk", J, inverse, J)
    want = outputs(approx.at.u) / jnp.sqrt(1.0 + jnp.pi / 8.0 * spread)
    assert_allclose(approx.predictive(new, by=Linearized())["y"].logits, want, rtol=1e-9)


def test_another_model_of_the_same_program_has_its_own_predictions() -> None:
    """What a model does on new data is not in its recording."""

    def model_of(shift: float) -> Any:
        def model(x: Any, y: Any = None) -> None:
            w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2))
            away = shift if y is None else 0.0
            numpyro.sample("y", dist.CategoricalLogits(x @ w + away * x), obs=y)

        return model

    x, at = normal(4, 2), {"w": normal(2, 2)}
    found = []
    for shift in (0.0, 1.0):
        posterior = vf.condition(model_of(shift), x, jnp.array([0, 1, 1, 0]))
        approx = vf.laplace(posterior, at=at, curvature=GGN(), structure=Diagonal())
        found.append(approx.predictive(x, by=Linearized())["y"].logits)
    assert float(jnp.abs(found[0] - found[1]).max()) > 0.1


def test_no_row_of_all_parameters_is_formed() -> None:
    """1,048,576 weights, 40 images, 10 classes: rows of the Jacobian would take 3 GiB."""
    params = {"w": 0.01 * normal(1024, 1024), "v": 0.1 * normal(1024, 10)}
    x = normal(40, 1024)

    def function(p: Any, x: Any) -> Any:
        return jnp.tanh(x @ p["w"]) @ p["v"]

    net = nn.from_function(function, params)
    posterior = vf.condition(nn.classification(net), x, jnp.zeros(40, int))
    approx = vf.laplace(posterior, at=net.values(params), curvature=GGN(), structure=Diagonal())
    data = make_program(posterior.model, (x,), {}).data
    outputs = _Outputs(posterior, approx.at.u, ById(posterior.model), data, "y")
    arrays, static = eqx.partition((outputs, approx.precision), eqx.is_array)

    def run(arrays: Any) -> Any:
        outputs, precision = eqx.combine(arrays, static)
        return linearized._by_factors(outputs, precision, 32, 10)[:2]

    sizes = _sizes(jax.make_jaxpr(run)(arrays).jaxpr)
    assert max(sizes) < 4 * approx.at.u.size


def _sizes(jaxpr: Any) -> list[int]:
    """Numbers of entries of all values of a program."""
    found = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars if hasattr(v.aval, "size")]
    for eqn in jaxpr.eqns:
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            found += _sizes(inner) if hasattr(inner, "eqns") else []
    return found
