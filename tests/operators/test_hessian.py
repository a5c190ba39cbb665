"""The Hessian and operators under a metric, against dense matrices and changes of coordinates."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose
from tests.operators.problems import PARAMS, X, loss

import volform as vf
from volform.geometry import DiagonalField, MatrixField, Product
from volform.linalg import eigenvalues, logdet, trace, under_metric
from volform.operators import hessian

FLAT, UNRAVEL = ravel_pytree(PARAMS)
N = FLAT.size
DENSE = jax.jit(jax.hessian(lambda flat: loss(UNRAVEL(flat))))(FLAT)
ROOT = jnp.sin(jnp.arange(N * N)).reshape(N, N) + 3.0 * jnp.eye(N)
METRICS = {
    "identity": vf.Euclidean(),
    "scaled": vf.Euclidean(0.3),
    "diagonal": DiagonalField(lambda **p: jax.tree.map(lambda a: 1.0 + a**2, p)),
    "dense": MatrixField(lambda **p: ROOT @ ROOT.T),
    "blocks": Product(
        {
            "hidden": vf.Euclidean(2.0),
            "out": MatrixField(lambda out: jnp.diag(1.0 + out.ravel() ** 2) + 0.1),
            "shift": vf.Euclidean(),
        }
    ),
    "diagonal blocks": Product(
        {"hidden": vf.Euclidean(2.0), "out": vf.Euclidean(0.5), "shift": vf.Euclidean()}
    ),
    "a matrix of lineax's": lambda p: lx.TaggedLinearOperator(
        vf.linalg.DenseOperator(ROOT @ ROOT.T, p), lx.positive_semidefinite_tag
    ),
}
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


def tangents(count):
    return np.cos(np.arange(count * N)).reshape(count, N)


def flat(trees):
    return jax.vmap(lambda tree: ravel_pytree(tree)[0])(trees)


def test_hessian():
    H = hessian(loss, PARAMS)
    v = tangents(5)
    assert_allclose(H.as_matrix(), DENSE, rtol=1e-10, atol=1e-12)
    assert_allclose(flat(H.mm(jax.vmap(UNRAVEL)(v))), v @ DENSE, rtol=1e-10, atol=1e-12)
    assert_allclose(flat(H.mm(jax.vmap(UNRAVEL)(v), batch=2)), v @ DENSE, rtol=1e-10, atol=1e-12)
    assert_allclose(lx.diagonal(H), jnp.diag(DENSE), rtol=1e-10, atol=1e-12)
    assert H.T is H
    assert lx.is_symmetric(H)
    assert not lx.is_positive_semidefinite(H)
    assert H.in_structure() == H.out_structure()


def test_lineax_takes_them_as_they_are():
    H = hessian(loss, PARAMS)
    v = UNRAVEL(tangents(1)[0])
    expected = ravel_pytree(H.mv(v))[0]
    for same in (lx.linearise(H), lx.materialise(H), lx.conj(H)):
        assert_allclose(ravel_pytree(same.mv(v))[0], expected, rtol=1e-10)
    solved = lx.linear_solve(H, v, solver=lx.AutoLinearSolver(well_posed=True)).value
    assert_allclose(ravel_pytree(solved)[0], np.linalg.solve(DENSE, ravel_pytree(v)[0]), rtol=1e-8)


@every_metric
def test_under_metric(metric):
    E = under_metric(hessian(loss, PARAMS), metric, PARAMS)
    expected = np.linalg.solve(metric(PARAMS).as_matrix(), DENSE)
    v = tangents(3)
    size = np.abs(expected).max()
    assert_allclose(E.as_matrix(), expected, rtol=1e-9, atol=1e-11 * size)
    assert_allclose(flat(E.mm(jax.vmap(UNRAVEL)(v))), v @ expected.T, rtol=1e-9, atol=1e-10 * size)
    assert_allclose(lx.diagonal(E), np.diag(expected), rtol=1e-9, atol=1e-11 * size)
    assert_allclose(lx.linearise(E).as_matrix(), expected, rtol=1e-9, atol=1e-11 * size)
    w = UNRAVEL(v[0])
    assert_allclose(ravel_pytree(E.T.mv(w))[0], expected.T @ v[0], rtol=1e-9, atol=1e-10 * size)
    assert not lx.is_symmetric(E)


@every_metric
def test_functionals_are_those_of_the_pencil(metric):
    """And those of `geometry.eigenvalues`, which is another program."""
    E = under_metric(hessian(loss, PARAMS), metric, PARAMS)
    gram = metric(PARAMS).as_matrix()
    values = np.linalg.eigvals(np.linalg.solve(gram, DENSE)).real
    assert_allclose(trace(E).value, values.sum(), rtol=1e-9)
    assert_allclose(eigenvalues(E, k=N).values, np.sort(values)[::-1], rtol=1e-9, atol=1e-9)
    damping = 0.1 - values.min()
    assert_allclose(logdet(E + damping).value, np.log(values + damping).sum(), rtol=1e-9)


def test_eigenvectors_are_tangent_vectors_of_length_one():
    E = under_metric(hessian(loss, PARAMS), METRICS["dense"], PARAMS)
    found = eigenvalues(E, k=3)
    v, gram = flat(found.vectors), METRICS["dense"](PARAMS).as_matrix()
    assert_allclose(v @ gram @ v.T, np.eye(3), atol=1e-10)
    assert_allclose(flat(E.mm(found.vectors)), found.values[:, None] * v, atol=1e-9)
    assert (found.residuals < 1e-10 * abs(found.values).max()).all()


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_invariant_under_changes_of_coordinates(seed):
    """psi = phi(theta) at a critical point, where the Hessian is a tensor."""
    rng = np.random.default_rng(seed)
    a, b = jnp.asarray(rng.normal(size=(4, 4)) + 3 * np.eye(4)), jnp.asarray(rng.normal(size=4))
    target = jnp.asarray(rng.normal(size=4))

    def in_theta(theta):
        return jnp.sum(jnp.cosh(a @ (theta - target))) + jnp.sum((theta - target) ** 4)

    def back(psi):  # theta of psi: a shear after a stretch
        theta = jnp.sinh(psi)
        return theta.at[1].add(0.3 * jnp.sin(theta[0])).at[3].add(b[0] * theta[2] ** 2)

    metric = MatrixField(lambda theta: a.T @ a + jnp.diag(1.0 + theta**2))
    step = lambda psi: psi - jnp.linalg.solve(jax.jacobian(back)(psi), back(psi) - target)  # noqa: E731
    newton = jax.jit(lambda psi: jax.lax.fori_loop(0, 50, lambda _, psi: step(psi), psi))
    psi = newton(jnp.arcsinh(target))
    E = under_metric(hessian(in_theta, target), metric, target)
    hat = under_metric(
        hessian(lambda psi: in_theta(back(psi)), psi), vf.pullback(metric, back), psi
    )
    assert_allclose(trace(hat).value, trace(E).value, rtol=1e-8)
    assert_allclose(logdet(hat).value, logdet(E).value, rtol=1e-8)
    assert_allclose(eigenvalues(hat, k=4).values, eigenvalues(E, k=4).values, rtol=1e-8)
    assert_allclose(logdet(hat + 0.3).value, logdet(E + 0.3).value, rtol=1e-8)


def test_products_are_compiled_once():
    traces = []

    def counted(x):
        traces.append(1)
        return jnp.sum(x**3)

    for scale in (1.0, 2.0, 3.0):
        hessian(counted, scale * jnp.ones(3)).mv(jnp.ones(3))
    assert len(traces) <= 4  # the shape of the value, and once each for the product


def of_example(params, example):
    x, scale = example
    z = jnp.tanh(x @ params["hidden"]) @ params["out"] + params["shift"]
    return scale * jnp.sum(jnp.sin(z) * z)


def test_sum_over_examples_in_chunks():
    data = (X, jnp.arange(1.0, 8.0))
    whole = jax.hessian(
        lambda flat: sum(of_example(UNRAVEL(flat), (x, s)) for x, s in zip(*data, strict=True))
    )(FLAT)
    v, size = tangents(3), np.abs(whole).max()
    for chunk in (None, 1, 3, 100):
        H = hessian(of_example, PARAMS, data, chunk=chunk)
        assert_allclose(H.as_matrix(), whole, rtol=1e-12, atol=1e-12 * size)
        assert_allclose(flat(H.mm(jax.vmap(UNRAVEL)(v))), v @ whole, rtol=1e-12, atol=1e-11 * size)
        assert lx.is_symmetric(H)
        assert H.T is H
    mean = under_metric(H / 7.0, vf.Euclidean(2.0), PARAMS) + 1.0
    assert_allclose(trace(mean).value, 4.0 * np.trace(whole) / 7.0 + N, rtol=1e-10)


def test_memory_of_a_product_is_that_of_a_chunk():
    x, params = jnp.ones((4096, 8)), jnp.ones((8, 256))

    def wide(w, x):
        return jnp.sum(jnp.tanh(x @ w) ** 2)

    def memory(chunk):
        H = hessian(wide, params, x, chunk=chunk)
        lowered = jax.jit(lambda v: H.mv(v)).lower(params)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert memory(64) < memory(None) / 20


ALGEBRA = {
    "sum": (lambda A: A + 0.5, lambda a, one: a + 0.5 * one),
    "sum from the right": (lambda A: 0.5 + A, lambda a, one: a + 0.5 * one),
    "two sums": (lambda A: (A + 0.1) + 0.2, lambda a, one: a + 0.3 * one),
    "mean and sum": (lambda A: A / 4 + 0.5, lambda a, one: a / 4 + 0.5 * one),
    "multiples": (lambda A: 2.0 * (A * 3.0 + 1.0) - A / 4.0, lambda a, one: 5.75 * a + 2.0 * one),
    "differences": (lambda A: 1.0 - (A - 0.5) - A, lambda a, one: 1.5 * one - 2 * a),
    "negative": (lambda A: -(A + 0.5) - 0.5, lambda a, one: -a - one),
    "a lineax operator": (
        lambda A: 0.1 + (A + lx.IdentityLinearOperator(A.in_structure())),
        lambda a, one: a + 1.1 * one,
    ),
}


@pytest.mark.parametrize("under", [False, True], ids=["H", "E"])
@pytest.mark.parametrize("name", ALGEBRA)
def test_arithmetic_with_numbers(name, under):
    H, dense = hessian(loss, PARAMS), DENSE
    if under:
        H = under_metric(H, METRICS["diagonal"], PARAMS)
        dense = H.as_matrix()
    ours, expected = ALGEBRA[name]
    total, matrix = ours(H), expected(dense, np.eye(N))
    v = tangents(2)
    assert_allclose(total.as_matrix(), matrix, rtol=1e-9, atol=1e-11)
    assert_allclose(flat(total.mm(jax.vmap(UNRAVEL)(v))), v @ matrix.T, rtol=1e-9, atol=1e-10)
    assert_allclose(total.T.as_matrix(), matrix.T, rtol=1e-9, atol=1e-11)
    assert_allclose(lx.diagonal(total), np.diag(matrix), rtol=1e-9, atol=1e-11)
    assert_allclose(lx.linearise(total).as_matrix(), matrix, rtol=1e-9, atol=1e-11)
    assert_allclose(trace(total).value, np.trace(matrix), rtol=1e-10)
    assert lx.is_symmetric(total) == (not under)


@pytest.mark.parametrize("d", [1, 3, 10])
def test_closed_form_of_a_stretch(d):
    """L = |theta|^2 with psi = 3 theta: det H is 2^d, then (2/9)^d; det E is 2^d in both."""

    def back(psi):
        return psi / 3.0

    def in_psi(psi):
        return jnp.sum(back(psi) ** 2)

    at = jnp.ones(d)
    assert_allclose(logdet(hessian(lambda x: jnp.sum(x**2), at)).value, d * np.log(2), rtol=1e-10)
    assert_allclose(logdet(hessian(in_psi, at)).value, d * np.log(2 / 9), rtol=1e-10)
    E = under_metric(hessian(in_psi, at), vf.pullback(vf.Euclidean(), back), at)
    assert_allclose(logdet(E).value, d * np.log(2), rtol=1e-10)


@pytest.mark.leaks
def test_damping_may_be_traced():
    H = vf.operators.hessian(lambda x: jnp.sum(x**4), jnp.arange(1.0, 5.0))
    slope = jax.jit(jax.grad(lambda c: vf.linalg.logdet(2.0 * H + c).value))(3.0)
    assert_allclose(slope, jnp.sum(1.0 / (24.0 * jnp.arange(1.0, 5.0) ** 2 + 3.0)), rtol=1e-12)
