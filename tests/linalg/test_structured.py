"""Linear operators: one suite of laws over every structure, against the dense matrix."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose
from tests.geometry.laws import close

from volform.linalg import (
    BlockDiagonal,
    DenseOperator,
    FlatBlocks,
    added,
    exact_logdet,
    flat_blocks,
    identity,
    scaled,
    size_of,
    whiten,
)

POINT = {"b": jnp.array([0.3, -1.2]), "a": jnp.array(2.0)}
PAIR = jnp.array([[2.0, 0.5], [0.5, 1.0]])
TRIPLE = jnp.array([[3.0, 1.0, 0.2], [1.0, 2.0, -0.4], [0.2, -0.4, 1.5]])
SCALAR = lx.DiagonalLinearOperator(jnp.array(0.25))

OPERATORS = {
    "identity": identity(POINT),
    "diagonal": lx.DiagonalLinearOperator({"a": jnp.array(2.0), "b": jnp.array([0.1, 4.0])}),
    "dense": DenseOperator(TRIPLE, POINT),
    "dense, det below 1": DenseOperator(1e-3 * TRIPLE, POINT),
    "blocks of a dict": BlockDiagonal({"b": DenseOperator(PAIR, POINT["b"]), "a": SCALAR}),
    "blocks of a tuple": BlockDiagonal(
        (SCALAR, DenseOperator(PAIR, POINT["b"]), identity(jnp.ones(2)))
    ),
    "blocks of blocks": BlockDiagonal(
        {"z": SCALAR, "y": BlockDiagonal({"v": DenseOperator(PAIR, POINT["b"]), "u": SCALAR})}
    ),
    "diagonal blocks": BlockDiagonal({"b": identity(POINT["b"]), "a": SCALAR}),
    "flat_blocks": FlatBlocks(
        (DenseOperator(PAIR, POINT["b"]), SCALAR, identity(jnp.ones((2, 2))))
    ),
}
every = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def a_vector(operator):
    like = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), operator.in_structure())
    flat, unravel = ravel_pytree(like)
    return unravel(jnp.linspace(-1.0, 2.0, flat.size))


def flat(tree):
    return ravel_pytree(tree)[0]


@every
def test_mv_is_the_matrix(operator):
    v = a_vector(operator)
    close(flat(operator.mv(v)), operator.as_matrix() @ flat(v))


@every
def test_symmetric(operator):
    close(operator.as_matrix(), operator.as_matrix().T)
    close(operator.T.as_matrix(), operator.as_matrix())
    assert lx.is_symmetric(operator)


@every
def test_solves(operator):
    v = a_vector(operator)
    solved = lx.linear_solve(operator, v).value
    assert jax.tree.structure(solved) == jax.tree.structure(v)
    close(flat(solved), np.linalg.solve(operator.as_matrix(), flat(v)))


@every
def test_diagonal(operator):
    close(lx.diagonal(operator), jnp.diag(operator.as_matrix()))


@every
def test_structures(operator):
    assert operator.in_structure() == operator.out_structure()
    assert operator.in_size() == len(operator.as_matrix()) == size_of(operator.in_structure())


@every
def test_lineax_takes_them_as_they_are(operator):
    v = a_vector(operator)
    for same in (lx.linearise(operator), lx.materialise(operator), lx.conj(operator)):
        close(flat(same.mv(v)), flat(operator.mv(v)))
    total = operator + 2.0 * operator
    close(flat(total.mv(v)), 3.0 * flat(operator.mv(v)))
    assert not lx.is_negative_semidefinite(operator)


@every
def test_logdet(operator):
    """With its sign: below zero where the determinant is below one."""
    sign, expected = np.linalg.slogdet(operator.as_matrix())
    assert sign == 1.0
    assert_allclose(exact_logdet(operator), expected, rtol=1e-12, atol=1e-14)


def test_logdets_of_both_signs_are_tested():
    signs = {int(np.sign(exact_logdet(operator))) for operator in OPERATORS.values()}
    assert signs == {-1, 0, 1}


@every
def test_whiten(operator):
    """A root of the cometric."""
    w = a_vector(operator)
    root = whiten(operator, w)
    assert_allclose(root @ root, flat(w) @ np.linalg.solve(operator.as_matrix(), flat(w)))


@every
def test_scaled(operator):
    close(scaled(0.3, operator).as_matrix(), 0.3 * operator.as_matrix())


@every
def test_added(operator):
    for other in OPERATORS.values():
        if other.in_structure() == operator.in_structure():
            total = added(operator, other)
            assert total.in_structure() == operator.in_structure()
            close(total.as_matrix(), operator.as_matrix() + other.as_matrix())


@every
def test_under_jit_and_vmap(operator):
    v = a_vector(operator)
    close(jax.jit(lambda o, v: o.mv(v))(operator, v), operator.mv(v))
    leaving = jax.jit(lambda o: scaled(2.0, o))(operator)
    close(leaving.as_matrix(), 2.0 * operator.as_matrix())
    factors = jnp.array([1.0, 3.0])
    values = jax.jit(jax.vmap(lambda c: exact_logdet(scaled(c, operator))))(factors)
    assert_allclose(values[1] - values[0], operator.in_size() * np.log(3.0))


# --- Derivatives of the log-determinant


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_derivatives_of_logdet(order):
    """To the fourth order, against the log-determinant of LU."""

    def along(of):
        def value(t):
            return of(TRIPLE + t * jnp.eye(3) + t**2 * TRIPLE @ TRIPLE + jnp.sin(t) * TRIPLE)

        for _ in range(order):
            value = jax.grad(value)
        return jax.jit(value)(0.3)

    actual = along(lambda matrix: exact_logdet(DenseOperator(matrix, POINT)))
    assert_allclose(actual, along(lambda matrix: jnp.linalg.slogdet(matrix)[1]), rtol=1e-10)


def test_derivatives_at_repeated_eigenvalues():
    """d log det = tr, d2 log det = -tr of the square, at the identity."""
    slope = jax.grad(lambda m: exact_logdet(DenseOperator(m, POINT)))(jnp.eye(3))
    close(slope, np.eye(3))
    second = jax.jvp(
        jax.grad(lambda m: exact_logdet(DenseOperator(m, POINT))), (jnp.eye(3),), (TRIPLE,)
    )[1]
    close(second, -TRIPLE)


@pytest.mark.parametrize("kind", ["dense", "diagonal", "blocks"])
def test_indefinite_operators_have_no_logdet(kind):
    indefinite = {
        "dense": DenseOperator(jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.ones(2)),
        "diagonal": lx.DiagonalLinearOperator(jnp.array([-1.0, -1.0])),
        "blocks": BlockDiagonal((SCALAR, lx.DiagonalLinearOperator(jnp.array(-1.0)))),
    }
    assert jnp.isnan(exact_logdet(indefinite[kind]))


# --- Segments of a flat vector


def test_segments_are_as_simple_as_they_can_be():
    eye, pair = identity(jnp.ones((2, 2))), DenseOperator(PAIR, POINT["b"])
    assert isinstance(flat_blocks([eye, eye]), lx.IdentityLinearOperator)
    assert isinstance(flat_blocks([eye, SCALAR]), lx.DiagonalLinearOperator)
    assert isinstance(flat_blocks([eye, pair]), FlatBlocks)
    for blocks in ([eye, eye], [eye, SCALAR], [eye, pair], [pair, SCALAR, pair]):
        together = flat_blocks(blocks)
        expected = jax.scipy.linalg.block_diag(*(block.as_matrix() for block in blocks))
        close(together.as_matrix(), expected)
        assert together.in_structure().shape == (len(expected),)


def test_order_of_a_dict_is_that_of_ravel_pytree():
    """Sorted by name, whatever the order in which the blocks were given."""
    operator = OPERATORS["blocks of a dict"]
    close(operator.as_matrix()[0], [0.25, 0.0, 0.0])
    v = {"a": jnp.array(4.0), "b": jnp.array([1.0, 0.0])}
    close(flat(operator.mv(v)), [1.0, 2.0, 0.5])
