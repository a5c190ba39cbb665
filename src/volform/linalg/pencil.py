"""Every operator that the functionals take, brought to the form `shift I + sum_k c_k G^-1 F_k`."""

from collections.abc import Callable
from functools import singledispatch
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from volform.errors import OperatorError
from volform.linalg.generalized import whitened_form
from volform.linalg.operator import Combination, dtype_of, flattened, zeros
from volform.linalg.squared_rows import SquaredRows
from volform.linalg.under_metric import UnderMetric, diagonal_of, whitening_maps

Term = tuple[Array, lx.AbstractLinearOperator]


class Pencil(eqx.Module):
    """The operator `shift I + sum_k c_k G^-1 F_k`, with F_k symmetric and one G for all.

    With `G = L L^T` and x = L^T v it is the symmetric `shift I + sum_k c_k L^-1 F_k L^-T`, which
    has the same trace, determinant and eigenvalues.

    Attributes:
        shift: multiple of the identity.
        terms: pairs (c_k, F_k).
        gram: G, None where it is the identity.
        like: an operator of the same structure.
    """

    shift: Float[Array, ""]
    terms: tuple[Term, ...]
    gram: lx.AbstractLinearOperator | None
    like: lx.AbstractLinearOperator

    def size(self) -> int:
        """Number n of coordinates."""
        return self.like.in_size()

    def dtype(self) -> Any:
        """The dtype of flat vectors."""
        return dtype_of(self.like)

    def unravel(self, vector: Float[Array, " n"]) -> PyTree:
        """A flat vector as a pytree like the parameters."""
        return ravel_pytree(zeros(self.like.in_structure()))[1](vector)

    def root(self) -> tuple[Callable, Callable]:
        """The maps L^-1 and L^-T on flat vectors."""
        if self.gram is None:
            return (lambda x: x), (lambda x: x)
        return whitening_maps(self.gram)

    def mv(self) -> Callable[[Float[Array, " n"]], Float[Array, " n"]]:
        """Product with the symmetric form; all that is fixed is computed when this is called."""
        (down, up), weighed = self.root(), self._weighed()
        return lambda x: self.shift * x + down(weighed(up(x)))

    def tangent_mv(self) -> Callable[[Float[Array, " n"]], Float[Array, " n"]]:
        """Product with the operator itself, from tangent vectors to tangent vectors."""
        (down, up), weighed = self.root(), self._weighed()
        return lambda v: self.shift * v + up(down(weighed(v)))

    def _weighed(self) -> Callable[[Float[Array, " n"]], Float[Array, " n"]]:
        products = [(c, flattened(lx.linearise(form))[0]) for c, form in self.terms]
        return lambda v: sum((c * mv(v) for c, mv in products), jnp.zeros_like(v))

    def diagonal(self) -> Float[Array, " n"]:
        """The diagonal of the operator itself, by n products at most."""
        total = jnp.full(self.size(), self.shift, self.dtype())
        for c, form in self.terms:
            term = form if self.gram is None else UnderMetric(form, self.gram)
            entries = diagonal_of(term)
            total = total + c * (lx.diagonal(term) if entries is None else entries)
        return total

    def matrix(self) -> Float[Array, "n n"]:
        """The symmetric form as a matrix, symmetric to the last bit."""
        n = self.size()
        total = sum((c * f.as_matrix() for c, f in self.terms), jnp.zeros((n, n), self.dtype()))
        return whitened_form(total, self.root()[0]) + self.shift * jnp.eye(n, dtype=self.dtype())

    def grams(self) -> list[tuple[Array, SquaredRows]]:
        """The terms that are sums of squares of known rows."""
        return [(c, form) for c, form in self.terms if isinstance(form, SquaredRows)]

    def is_diagonal_and_grams(self) -> bool:
        """Tell whether it is a diagonal plus sums of squares, so that its dual form exists."""
        others = [form for _, form in self.terms if not isinstance(form, SquaredRows)]
        diagonal_metric = self.gram is None or diagonal_of(self.gram) is not None
        flat = all(diagonal_of(form) is not None for form in others)
        return flat and (diagonal_metric or not others)

    def diagonal_part(self) -> Float[Array, " n"]:
        """The diagonal of which `is_diagonal_and_grams` speaks."""
        total = jnp.full(self.size(), self.shift, self.dtype())
        weights = None if self.gram is None else diagonal_of(self.gram)
        for c, form in self.terms:
            entries = diagonal_of(form)
            if entries is not None:
                total = total + c * (entries if weights is None else entries / weights)
        return total

    def rows(self) -> Float[Array, "r n"]:
        """A with `A^T A` = the sum of the Gram terms, in the symmetric form."""
        down = jax.vmap(self.root()[0])
        return jnp.concatenate([jnp.sqrt(c) * down(gram.rows()) for c, gram in self.grams()])


def pencil(operator: lx.AbstractLinearOperator, function: str) -> Pencil:
    """Bring a sum of multiples of operators to one form.

    Raises:
        OperatorError: for a term that is not self-adjoint, and for terms under different metrics.
    """
    if not isinstance(operator, lx.AbstractLinearOperator):
        raise OperatorError(
            f"`operator` of {function} is {type(operator).__name__}; it should be a lineax "
            "operator, such as `hessian(loss, params)`."
        )
    dtype = dtype_of(operator)
    terms = [(jnp.asarray(c, dtype), term) for c, term in terms_of(operator)]
    shift, rest = jnp.zeros((), dtype), []
    for c, term in terms:
        if isinstance(term, lx.IdentityLinearOperator):
            shift = shift + c
        else:
            rest.append((c, term))
    grams = [term.gram for _, term in rest if isinstance(term, UnderMetric)]
    if not grams:
        forms = [(c, form) for c, form in rest]
        gram = None
    else:
        gram = grams[0]
        if len(grams) < len(rest) or not all(_is_same(gram, other) for other in grams):
            raise OperatorError(
                f"`operator` of {function} is a sum of terms under different metrics, which is "
                "self-adjoint in none; add the forms first: `under_metric(H1 + H2, metric, "
                "params)`."
            )
        forms = [
            (c * jnp.asarray(inner, dtype), form)
            for c, term in rest
            for inner, form in terms_of(term.form)
        ]
    for _, form in forms:
        if not lx.is_symmetric(form):
            raise OperatorError(
                f"`operator` of {function} has the term {type(form).__name__}, which is not "
                "symmetric; for E = G^-1 H use `under_metric(H, metric, params)`, or tag it with "
                "`lineax.symmetric_tag` if it is symmetric."
            )
    return Pencil(shift, tuple(forms), gram, operator)


def _is_same(left: Any, right: Any) -> bool:
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=False)
    same = jax.tree.structure(left) == jax.tree.structure(right)
    return same and all(a is b for a, b in pairs)


@singledispatch
def terms_of(operator: lx.AbstractLinearOperator) -> list[tuple[Any, lx.AbstractLinearOperator]]:
    """An operator as a list of multiples: sums, multiples and quotients are taken apart."""
    return [(1.0, operator)]


@terms_of.register
def _(operator: Combination) -> list:
    return terms_of(operator.expression)


@terms_of.register
def _(operator: lx.AddLinearOperator) -> list:
    return terms_of(operator.operator1) + terms_of(operator.operator2)


@terms_of.register
def _(operator: lx.MulLinearOperator) -> list:
    return [(c * operator.scalar, term) for c, term in terms_of(operator.operator)]


@terms_of.register
def _(operator: lx.DivLinearOperator) -> list:
    return [(c / operator.scalar, term) for c, term in terms_of(operator.operator)]


@terms_of.register
def _(operator: lx.NegLinearOperator) -> list:
    return [(-c, term) for c, term in terms_of(operator.operator)]
