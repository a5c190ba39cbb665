"""Gauss-Newton and Fisher operators against dense Jacobians and independent output-space forms."""

import functools

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose
from tests.operators.problems import COUNTS, FAMILIES, PARAMS, REAL, X, network, pair, scalar

import volform as vf
from volform.operators import Gram, OutputHessian, empirical_fisher, fisher, ggn, monte_carlo_fisher

FLAT, UNRAVEL = ravel_pytree(PARAMS)
pytestmark = pytest.mark.standard_promotion  # NumPyro's Bernoulli of logits mixes dtypes
# As another of their kind, "Categorical".
RARE = ("Normal", "Normal, two outputs", "Bernoulli", "Poisson of log rate")
every = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in RARE)) for n in FAMILIES]
)
several = pytest.mark.parametrize(
    "name", ["Bernoulli", "Categorical", "Poisson of rate", "Normal, location and scale"]
)


@functools.cache
def outputs(net):
    """Flat outputs of all examples, and their Jacobian (N, o, n)."""

    def of(flat):
        return jax.vmap(lambda x: ravel_pytree(net(UNRAVEL(flat), x))[0])(X)

    return jax.jit(lambda flat: (of(flat), jax.jacobian(of)(flat)))(FLAT)


def log_prob(net, likelihood, z, y):
    tree = ravel_pytree(net(PARAMS, X[0]))[1](z)
    return jnp.sum((likelihood(*tree) if isinstance(tree, tuple) else likelihood(tree)).log_prob(y))


def summed(jacobian, forms):
    return np.einsum("nai,nab,nbj->ij", jacobian, forms, jacobian)


def output_hessians(net, likelihood, y):
    z, _ = outputs(net)
    second = jax.vmap(jax.hessian(lambda z, y: log_prob(net, likelihood, z, y)))
    return -jax.jit(second)(z, y)


stacked = jax.jit(jax.vmap(UNRAVEL))
raveled = jax.jit(jax.vmap(lambda tree: ravel_pytree(tree)[0]))


def check(operator, expected):
    """Products, matrix, diagonal, a batch of products, structure."""
    scale = np.abs(expected).max()
    assert_allclose(operator.as_matrix(), expected, rtol=1e-10, atol=1e-11 * scale)
    assert_allclose(lx.diagonal(operator), np.diag(expected), rtol=1e-10, atol=1e-11 * scale)
    v = np.sin(np.arange(3 * FLAT.size)).reshape(3, -1)
    images = operator.mm(stacked(v))
    flat = raveled(images)
    assert_allclose(flat, v @ expected, rtol=1e-10, atol=1e-11 * scale)
    assert lx.is_symmetric(operator)
    assert operator.T is operator
    assert jax.tree.structure(operator.mv(PARAMS)) == jax.tree.structure(PARAMS)


@every
def test_ggn_is_the_output_hessian_between_jacobians(name):
    net, likelihood, y, canonical = FAMILIES[name]
    operator = ggn(net, likelihood, PARAMS, (X, y), chunk=3)
    assert isinstance(operator, Gram if canonical else OutputHessian)
    check(operator, summed(outputs(net)[1], output_hessians(net, likelihood, y)))


@several
def test_ggn_is_the_hessian_for_a_linear_network(name):
    net, likelihood, y, _ = FAMILIES[name]
    design = jnp.cos(jnp.arange(7 * 2 * 3.0)).reshape(7, 2, 3)

    def linear(w, a):
        z = a @ w
        return {network: z, scalar: z[0], pair: tuple(z)}[net]

    w = jnp.array([0.2, -0.5, 0.4])

    def loss(w):
        def one(a, y):
            z = linear(w, a)
            return jnp.sum((likelihood(*z) if isinstance(z, tuple) else likelihood(z)).log_prob(y))

        return -jnp.sum(jax.vmap(one)(design, y))

    operator = ggn(linear, likelihood, w, (design, y))
    assert_allclose(operator.as_matrix(), jax.jit(jax.hessian(loss))(w), rtol=1e-9, atol=1e-12)


@several
def test_fisher_is_the_fisher_metric_between_jacobians(name):
    net, likelihood, y, _ = FAMILIES[name]
    z, jacobian = outputs(net)
    unravel = ravel_pytree(net(PARAMS, X[0]))[1]
    forms = jax.jit(jax.vmap(lambda one: vf.Fisher(likelihood)(unravel(one)).as_matrix()))(z)
    check(fisher(net, likelihood, PARAMS, (X, y), chunk=2), summed(jacobian, forms))


@several
def test_fisher_is_the_expected_score_product(name, key):
    """Independently of every closed form: an average over labels drawn by NumPyro."""
    net, likelihood, y, _ = FAMILIES[name]
    draws = 4000
    exact = fisher(net, likelihood, PARAMS, (X, y)).as_matrix()
    drawn = monte_carlo_fisher(net, likelihood, PARAMS, (X, y), key=key, draws=draws).as_matrix()
    assert np.abs(drawn - exact).max() < 8.0 / np.sqrt(draws) * np.abs(exact).max()


@several
def test_empirical_fisher_is_the_sum_of_score_products(name):
    net, likelihood, y, _ = FAMILIES[name]

    def per_example(flat):
        z = jax.vmap(lambda x: ravel_pytree(net(UNRAVEL(flat), x))[0])(X)
        return jax.vmap(lambda z, y: log_prob(net, likelihood, z, y))(z, y)

    scores = jax.jit(jax.jacobian(per_example))(FLAT)
    check(empirical_fisher(net, likelihood, PARAMS, (X, y), chunk=3), scores.T @ scores)


def test_labels_drawn_do_not_depend_on_the_chunks(key):
    def likelihood(z):
        return dist.Poisson(jnp.exp(z))

    matrices = [
        monte_carlo_fisher(
            scalar, likelihood, PARAMS, (X, COUNTS), key=key, draws=2, chunk=chunk
        ).as_matrix()
        for chunk in (None, 1, 3, 7, 100)
    ]
    for matrix in matrices[1:]:
        assert_allclose(matrix, matrices[0], rtol=1e-10, atol=1e-12)


def test_numbers_of_rows():
    """No rows of zeros, which would square the size of the dual form."""
    rows = {
        name: fisher(net, likelihood, PARAMS, (X, y)).row_count() // 7
        for name, (net, likelihood, y, _) in FAMILIES.items()
    }
    assert rows == {name: 1 if y_of is scalar else 2 for name, (y_of, *_) in FAMILIES.items()}
    operator = fisher(
        *FAMILIES["Categorical"][:2], PARAMS, (X, FAMILIES["Categorical"][2]), chunk=3
    )
    rows = operator.rows()
    assert rows.shape == (14, FLAT.size)
    assert_allclose(rows.T @ rows, operator.as_matrix(), rtol=1e-10, atol=1e-12)


def test_families_by_other_routes(key):
    """A family without a coframe, and one that only Monte Carlo can do."""

    def weibull(z):
        return dist.Weibull(jnp.exp(z), 1.5)

    y = jnp.exp(REAL)
    expected = summed(outputs(scalar)[1], 1.5**2 * np.ones((7, 1, 1)))
    found = fisher(scalar, weibull, PARAMS, (X, y), key=key, draws=20_000).as_matrix()
    assert_allclose(found, expected, rtol=0.05, atol=0.02 * np.abs(expected).max())


def test_pytrees_of_inputs():
    def likelihood(z):
        return dist.Normal(z, 0.5)

    x = {"a": X[:, 0], "b": (X[:, 1],)}
    operator = fisher(
        lambda p, x: scalar(p, jnp.stack([x["a"], x["b"][0]])), likelihood, PARAMS, (x, REAL)
    )
    same = fisher(scalar, likelihood, PARAMS, (X, REAL))
    assert_allclose(operator.as_matrix(), same.as_matrix(), rtol=1e-12)


def test_under_jit_the_kind_of_operator_stays():
    """Known at trace time, unless the likelihood itself is traced; the numbers agree anyway."""
    kinds = []

    @jax.jit
    def matrix(params, scale):
        fixed = ggn(scalar, lambda z: dist.Normal(z, 0.5), params, (X, REAL))
        traced = ggn(scalar, lambda z: dist.Normal(z, scale), params, (X, REAL))
        kinds.append((type(fixed), type(traced)))
        return fixed.as_matrix(), traced.as_matrix()

    one, other = matrix(PARAMS, 0.5)
    assert kinds == [(Gram, OutputHessian)]
    assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def test_an_operator_is_a_pytree():
    operator = fisher(scalar, lambda z: dist.Normal(z, 0.5), PARAMS, (X, REAL), chunk=2)
    passed = jax.tree.map(lambda leaf: leaf, operator)
    assert_allclose(passed.as_matrix(), operator.as_matrix())
    assert operator.in_structure() == operator.out_structure()


def test_derivative_of_a_product():
    """Against finite differences, in the parameters."""

    def value(shift):
        operator = fisher(
            network, dist.CategoricalLogits, {**PARAMS, "shift": shift}, (X, jnp.zeros(7, int))
        )
        return jnp.sum(ravel_pytree(operator.mv(PARAMS))[0] ** 2)

    at, step = PARAMS["shift"], jnp.array([1e-5, 0.0])
    above, below = jax.jit(jax.vmap(value))(jnp.stack([at + step, at - step]))
    slope = (above - below) / 2e-5
    assert_allclose(jax.grad(value)(at)[0], slope, rtol=1e-6)
