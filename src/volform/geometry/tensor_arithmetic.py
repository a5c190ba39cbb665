"""Sums and multiples of tensors at a point, and the refusals that tensors of all kinds share."""

import abc
from typing import Any, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from volform.errors import TensorError
from volform.geometry.tensor_checks import is_alike, is_real, nan_unless, point_in_words
from volform.geometry.tensors import Typed
from volform.linalg.structured import Point

# Keyed by the kind that was given and the one that was needed.
_REMEDIES = {
    ("TangentVector", "Covector"): "a metric is missing, `vector.flat(metric)` is a covector",
    ("Covector", "TangentVector"): "a metric is missing, `covector.sharp(metric)` is a vector",
    ("BilinearForm", "Endomorphism"): "a metric is missing, `form.under(metric)` is an operator",
    ("Endomorphism", "BilinearForm"): "a metric is missing that would make a form of it",
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
        self.components = self.checked(space, components)

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
        helps = _REMEDIES.get((kind, "TangentVector"), "only a TangentVector is one")
        raise TensorError(
            f"`{kind}` is no step from a point, since in other units or charts it would be another "
            f"step: {helps}."
        )

    def __rsub__(self, point: Any) -> Any:
        return point + -self

    def __mul__(self, factor: Any) -> Self:
        if isinstance(factor, Typed):
            _no_product(self, factor)
        if not is_real(factor) or np.ndim(factor):
            raise TensorError(
                f"`{type(self).__name__}` can be multiplied and divided by one real number, and "
                f"`factor` is {factor!r}."
            )
        scaled = jax.tree.map(lambda c: c * jnp.asarray(factor, c.dtype), self.components)
        return type(self)(self.space, scaled)

    __rmul__ = __mul__

    def __truediv__(self, factor: Any) -> Self:
        return self * (1.0 / factor if is_real(factor) else factor)

    def __matmul__(self, other: Any) -> Any:
        _no_product(self, other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({point_in_words(self.components)}){self.space}"


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
    if there.chart != space.chart or there.shapes != space.shapes or layouts[0] != layouts[1]:
        raise TensorError(
            f"{argument} lives{there}, and should live{space}: numbers of two charts do not meet. "
            "`.to(phi, chart)` carries points and tensors from one chart to another."
        )
    return nan_unless(
        is_alike(space.point, there.point),
        thing.components,
        lambda: (
            f"{argument} lives{there}, and should live{space}: between two points a metric is "
            "missing, whose `vf.geometry.transport(metric, path, vector)` carries a vector "
            "along a geodesic."
        ),
    )


def _no_product(left: Tensor, right: Any) -> NoReturn:
    raise TensorError(
        f"`*` and `@` of {type(left).__name__} and {type(right).__name__} are not defined. "
        "Without a metric there are `covector(vector)`, `form(v, w)`, `operator(vector)` and "
        "`operator @ operator`; a metric is missing for two vectors, `v.flat(metric)(w)`, and for "
        "two covectors, `a(b.sharp(metric))`."
    )
