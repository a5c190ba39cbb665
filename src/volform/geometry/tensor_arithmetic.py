"""Sums and multiples of tensors at a point, and the refusals that tensors of all kinds share."""

import abc
from typing import Any, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from volform.errors import TensorError
from volform.geometry.tensor_checks import (
    is_alike,
    is_derivative,
    is_real,
    is_zero,
    nan_unless,
    point_in_words,
)
from volform.geometry.tensors import Typed
from volform.linalg.structured import Point

# Keyed by the kind that was given and the one that was needed.
_REMEDIES = {
    ("TangentVector", "Covector"): "a metric is missing, `vector.flat(metric)` is a covector",
    ("Covector", "TangentVector"): "a metric is missing, `covector.sharp(metric)` is a vector",
    ("BilinearForm", "Endomorphism"): "a metric is missing, `form.under(metric)` is an operator",
    ("Endomorphism", "BilinearForm"): "a metric is missing that would make a form of it",
    ("BilinearForm", "Covector"): "a form makes one of a vector, `form(vector)`, and a metric an "
    "operator of a form, `form.under(metric)`",
    ("BilinearForm", "TangentVector"): "a metric makes an operator of a form, "
    "`form.under(metric)`, and that a vector of a vector",
    ("Endomorphism", "TangentVector"): "an operator makes one of a vector, `operator(vector)`",
    ("Endomorphism", "Covector"): "an operator makes a vector of a vector, `operator(vector)`",
}
_MAKERS = {
    "TangentVector": "vector",
    "Covector": "covector",
    "BilinearForm": "form",
    "Endomorphism": "operator",
}


class Tensor(Typed):
    """A tensor at a point: sums with those of its kind there, and multiples by numbers.

    Attributes:
        space: where it lives, a `TangentSpace`.
        components: its numbers in the chart.
    """

    space: Any
    components: PyTree

    __array_ufunc__ = None  # an array and a tensor meet here, and not entry by entry

    def __init__(self, space: Any, components: PyTree):
        if isinstance(space, Tensor) or not isinstance(space, Typed):
            raise TensorError(
                f"`space` of {type(self).__name__} is {space!r}; it should be a tangent space, "
                "`vf.geometry.TangentSpace(point, chart)`."
            )
        space.space.require_single()
        self.space = space
        # Known not to be zero by now, unless traced.
        whole = ~is_zero(self.space.witness)
        self.components = nan_unless(whole, self.checked(space, components), lambda: "")

    @classmethod
    @abc.abstractmethod
    def checked(cls, space: Any, components: Any) -> PyTree:
        """Components as arrays that fit the point."""

    @property
    def point(self) -> Point:
        """The point at which it lives."""
        return self.space.point

    @property
    def chart(self) -> str | None:
        """Name of the coordinates of its components."""
        return self.space.chart

    def __add__(self, other: Any) -> Self:
        held = components_at(
            self.space, type(self), other, f"What is added to `{type(self).__name__}`"
        )
        return type(self)(self.space, jax.tree.map(jnp.add, self.components, held))

    def __sub__(self, other: Any) -> Self:
        return self + (-other if isinstance(other, Tensor) else other)

    def __neg__(self) -> Self:
        return -1.0 * self

    def __radd__(self, point: Any) -> Any:
        kind = type(self).__name__
        missing = _REMEDIES["Covector", "TangentVector"]
        helps = missing if kind == "Covector" else "only a TangentVector is one"
        raise TensorError(
            f"`{kind}` is no step from a point, since in other units or charts it would be another "
            f"step: {helps}."
        )

    def __rsub__(self, point: Any) -> Any:
        return point + -self

    def __mul__(self, factor: Any) -> Self:
        if isinstance(factor, Typed):
            _no_product(self, factor)
        self._require_factor(factor)
        scaled = jax.tree.map(lambda c: c * jnp.asarray(factor, c.dtype), self.components)
        return type(self)(self.space, scaled)

    __rmul__ = __mul__

    def __truediv__(self, factor: Any) -> Self:
        if isinstance(factor, Typed):
            _no_product(self, factor)
        self._require_factor(factor, divides=True)
        return self * (1.0 / factor)

    def _require_factor(self, factor: Any, *, divides: bool = False) -> None:
        is_number = is_real(factor) and not np.ndim(factor)
        if is_number and not isinstance(factor, Tracer):
            is_number = bool(np.isfinite(factor)) and not (divides and factor == 0)
        if not is_number:
            raise TensorError(
                f"`{type(self).__name__}` can be multiplied by one finite real number, and divided "
                f"where that is not 0, and `factor` is {factor!r}."
            )

    def __matmul__(self, other: Any) -> Any:
        _no_product(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        _no_product(other, self)

    def __rtruediv__(self, other: Any) -> NoReturn:
        self._refuse("1 / tensor")

    def __pow__(self, exponent: Any) -> NoReturn:
        self._refuse(f"tensor ** {exponent!r}")

    def __abs__(self) -> NoReturn:
        self._refuse("abs(tensor)")

    def _refuse(self, what: str) -> NoReturn:
        raise TensorError(
            f"`{what}` of {type(self).__name__} is not defined: for the square of the length of a "
            "vector a metric is missing, `vector.flat(metric)(vector)`, and for the length, "
            "`vf.geometry.norm(metric, space, vector)`."
        )

    def __repr__(self) -> str:
        if is_derivative(self.space.witness):
            return f"<derivative by the components of a {type(self).__name__}, and none itself>"
        return f"{type(self).__name__}({point_in_words(self.components)}){self.space.where}"


def components_at(space: Any, kind: type[Tensor], thing: Any, argument: str) -> PyTree:
    """Components of what should be a tensor of a kind at a point.

    Args:
        space: the tangent space there.
        kind: class of the tensor.
        thing: what was given.
        argument: its name, for errors.

    Raises:
        TensorError: for any other kind, layout, chart or point. Points that are traced are compared
            as the program runs, and the components NaN where they differ.
    """
    given, wanted = type(thing).__name__, kind.__name__
    if not isinstance(thing, Tensor):
        raise TensorError(
            f"{argument} is {given} where `{wanted}` should be: say where it lives, by "
            f"`space.{_MAKERS[wanted]}(...)` of a `vf.geometry.TangentSpace`."
        )
    if not isinstance(thing, kind):
        helps = _REMEDIES.get((given, wanted), "the two do not meet")
        raise TensorError(f"{argument} is {given} where `{wanted}` should be: {helps}.")
    there = thing.space
    for each in (space, there):
        each.require_single()
    layouts = [jax.tree.structure(each.point) for each in (space, there)]

    def lives() -> str:
        return f"{argument} lives{there.where}, and should live{space.where}"

    if there.chart != space.chart or there.shapes != space.shapes or layouts[0] != layouts[1]:
        raise TensorError(
            f"{lives()}: numbers of two charts do not meet. `.to(phi, chart)` carries points and "
            "tensors from one chart to another."
        )
    held = nan_unless(
        is_alike(space.point, there.point),
        thing.components,
        lambda: (
            f"{lives()}: between two points a metric is missing, whose "
            "`vf.geometry.transport(metric, path, vector)` carries a vector along a geodesic."
        ),
    )
    if not (space.is_named_by_map and there.is_named_by_map):
        return held
    return nan_unless(
        is_alike(space.witness, there.witness),
        held,
        lambda: (
            f"{lives()}, and the two charts are not the same: maps of one name led there, of which "
            "the derivatives differ at this point. Name the charts, `.to(phi, chart)`."
        ),
    )


def applied_to(tensor: Tensor, kind: type[Tensor], vector: Any) -> PyTree:
    """The matrix of a tensor times a vector of a kind, laid out like the point."""
    held = components_at(tensor.space, kind, vector, f"The argument of `{type(tensor).__name__}`")
    numbers, unravel = ravel_pytree(held)
    return unravel(tensor.components @ numbers)


def _no_product(left: Any, right: Any) -> NoReturn:
    raise TensorError(
        f"`*` and `@` of {type(left).__name__} and {type(right).__name__} are not defined. "
        "Without a metric there are `covector(vector)`, `form(v, w)`, `operator(vector)` and "
        "`operator @ operator`; a metric is missing for two vectors, `v.flat(metric)(w)`, and for "
        "two covectors, `a(b.sharp(metric))`."
    )
