"""The smooth absolute value of a symmetric matrix, and its derivatives."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from numpy.testing import assert_allclose

from volform.linalg import exact_logdet, soft_absolute

RNG = np.random.default_rng(0)
BASIS = np.linalg.qr(RNG.normal(size=(4, 4)))[0]
MOVES = RNG.normal(size=(3, 4, 4))
MOVES = MOVES + MOVES.transpose(0, 2, 1)
SPECTRA = [
    [0.0, 0.0, 0.0, 0.0],
    [1.0, 1.0, -1.0, -1.0],
    [5.0, 1e-3, 0.0, -7.0],
    [1e6, 1e-6, -3.0, -3.0],
]
value = jax.jit(soft_absolute)


def in_basis(eigenvalues):
    matrix = BASIS * np.asarray(eigenvalues) @ BASIS.T
    return jnp.asarray(0.5 * (matrix + matrix.T), jnp.result_type(float))


def softened(eigenvalues, alpha):
    x = alpha * np.asarray(eigenvalues)
    return np.where(x == 0.0, 1.0, x / np.tanh(np.where(x == 0.0, 1.0, x))) / alpha


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("eigenvalues", SPECTRA, ids=str)
def test_eigenvalues_in_closed_form(eigenvalues, alpha):
    found = np.asarray(value(in_basis(eigenvalues), alpha))
    expected = softened(eigenvalues, alpha)
    assert np.array_equal(found, found.T)
    assert_allclose(found, BASIS * expected @ BASIS.T, atol=1e-13 * expected.max())
    assert np.linalg.eigvalsh(found).min() > 0.0 or expected.max() > 1e12 * expected.min()


def test_extreme_sizes():
    matrix = jnp.diag(jnp.array([1e50, -1e50]))
    assert_allclose(value(matrix, 1e6), jnp.abs(matrix), rtol=1e-12, atol=1e35)
    assert_allclose(value(jnp.zeros((2, 2)), 1e-300), 1e300 * np.eye(2))
    assert np.isnan(value(jnp.full((2, 2), jnp.nan), 1.0)).all()


def along(t, eigenvalues, alpha=1.3):
    """log det of f at a matrix that moves in three directions."""
    matrix = in_basis(eigenvalues) + jnp.tensordot(t, jnp.asarray(MOVES), 1)
    return exact_logdet(lx.MatrixLinearOperator(soft_absolute(matrix, alpha)))


@pytest.mark.parametrize("eigenvalues", [[1.0, 1.0, 0.0, 0.0], [2.0, 0.0, -2.0, -2.0]], ids=str)
def test_derivatives_at_repeated_eigenvalues(eigenvalues):
    """By central differences, each derivative of the one before, up to the fourth."""
    direction, step = jnp.array([0.5, -0.3, 0.2]), 1e-4

    def gradient(t):
        return jax.grad(along)(t, eigenvalues)

    def derivative(f):
        return lambda t: jax.jvp(f, (t,), (direction,))[1]

    second = derivative(gradient)
    third = derivative(second)
    fourth = derivative(third)

    @jax.jit
    def all_of(t):
        return along(t, eigenvalues), gradient(t), second(t), third(t), fourth(t)

    here, low, high = (all_of(t * direction) for t in (0.0, -step, step))
    slope = (high[0] - low[0]) / (2 * step)
    assert_allclose(here[1] @ direction, slope, rtol=1e-6)
    for order in (1, 2, 3):
        difference = (high[order] - low[order]) / (2 * step)
        size = float(jnp.abs(here[order + 1]).max())
        assert_allclose(here[order + 1], difference, atol=1e-5 * (1.0 + size))


def test_under_vmap():
    stack = jnp.stack([in_basis(spectrum) for spectrum in SPECTRA])
    found = jax.jit(jax.vmap(lambda m: soft_absolute(m, 2.0)))(stack)
    for one, matrix in zip(found, stack, strict=True):
        assert_allclose(one, value(matrix, 2.0), rtol=1e-12, atol=1e-12 * np.abs(one).max())


def test_derivative_in_alpha():
    matrix = in_basis([1.0, 0.0, -2.0, 0.5])
    slope = jax.jit(jax.jacfwd(soft_absolute, argnums=1))(matrix, 1.3)
    difference = (value(matrix, 1.3 + 1e-5) - value(matrix, 1.3 - 1e-5)) / 2e-5
    assert_allclose(slope, difference, atol=1e-9)


@pytest.mark.float32
def test_in_float32():
    found = value(in_basis([5.0, 1e-3, 0.0, -7.0]), 10.0)
    expected = BASIS * softened([5.0, 1e-3, 0.0, -7.0], 10.0) @ BASIS.T
    assert found.dtype == jnp.float32
    assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("ratio", [1e5, 1e20, 1e40])
def test_a_large_eigenvalue_leaves_the_small_ones_alone(ratio, alpha):
    eigenvalues = np.array([ratio, 1.0, -2.0, 0.0])
    found = soft_absolute(jnp.diag(jnp.asarray(eigenvalues)), alpha)
    assert_allclose(np.diagonal(found), softened(eigenvalues, alpha), rtol=1e-13)
    slope = jax.grad(lambda t: exact_logdet_of(t * jnp.diag(jnp.asarray(eigenvalues)), alpha))(1.0)
    x = alpha * eigenvalues
    small = np.abs(x) < 300
    each = np.where(
        x == 0,
        0.0,
        1.0
        - np.where(small, x, 0)
        / np.sinh(np.where(small & (x != 0), x, 1))
        / np.cosh(np.where(small, x, 0)),
    )
    assert_allclose(slope, each.sum(), rtol=1e-10)


def exact_logdet_of(matrix, alpha):
    found = soft_absolute(matrix, alpha)
    return 2.0 * jnp.sum(jnp.log(jnp.diagonal(jnp.linalg.cholesky(found))))


def test_beyond_its_reach_it_is_nan_and_not_another_number():
    assert jnp.isnan(soft_absolute(jnp.diag(jnp.array([1e80, 1.0])), 1.0)).all()


def test_of_no_coordinates():
    assert soft_absolute(jnp.zeros((0, 0)), 1.0).shape == (0, 0)
