"""Questions to a metric or a map, each a function with an answer for every type.

Each is a `functools.singledispatch` function, and a new type answers where it is defined. The
answer for a type that has none is the careful one: what is not known does not hold.

>>> import jax.numpy as jnp, volform as vf
>>> from volform.geometry import is_symmetric
>>> class Twice(vf.Metric):
...     metric: vf.Metric
...     def __call__(self, point):
...         return (2.0 * self.metric)(point)
>>> is_symmetric(Twice(vf.Euclidean()))
False
>>> @is_symmetric.register
... def _(metric: Twice) -> bool:
...     return is_symmetric(metric.metric)
>>> is_symmetric(Twice(vf.Euclidean()))
True
"""

import enum
from functools import singledispatch
from typing import Any

from numpyro.distributions.transforms import IndependentTransform

from volform.geometry.flow_coordinates import FlowCoordinates


class Coordinates(enum.Enum):
    """The two kinds of coordinates of a latent site."""

    VALUE = enum.auto()
    """The site's own value."""
    UNCONSTRAINED = enum.auto()
    """NumPyro's unconstrained coordinates of it, `biject_to(support).inv(value)`."""


@singledispatch
def is_flat_in(metric: Any, coordinates: Coordinates) -> bool:
    """True where the components of a metric are known to be constant in these coordinates.

    A Gaussian in such coordinates is a Gaussian of the metric, so that a Laplace approximation is
    drawn from there. False where it is not known.

    Args:
        metric: a metric on the value of one site.
        coordinates: those that are asked about.

    >>> import volform as vf
    >>> from volform.geometry import Coordinates, is_flat_in
    >>> is_flat_in(3.0 * vf.Euclidean(), Coordinates.VALUE)
    True
    >>> is_flat_in(vf.Unconstrained(), Coordinates.VALUE)
    False
    """
    return False


@singledispatch
def flat_coordinates(metric: Any) -> FlowCoordinates | None:
    """Coordinates of u in which a metric read off a whole model is Euclidean; None if not known.

    Args:
        metric: a metric, bound to a model.

    >>> import volform as vf
    >>> from volform.geometry import flat_coordinates
    >>> flat_coordinates(vf.Euclidean()) is None  # of one site: `is_flat_in`
    True
    """
    return None


@singledispatch
def is_symmetric(metric: Any) -> bool:
    """True where a metric is symmetric by construction, so that no matrix need be looked at.

    `condition` evaluates the matrix of any other metric once, and refuses one that is not.

    Args:
        metric: a metric.

    >>> import volform as vf
    >>> from volform.geometry import MatrixField, is_symmetric
    >>> is_symmetric(vf.Euclidean()), is_symmetric(MatrixField(lambda x: x))
    (True, False)
    """
    return False


@singledispatch
def is_elementwise(f: Any) -> bool:
    """True where a map is known to act on each coordinate by itself.

    The pull-back of a diagonal metric by such a map is diagonal. NumPyro's transforms tell it by
    their domain and codomain; a plain function does not.

    Args:
        f: a map, usually a NumPyro `Transform`.

    >>> from numpyro.distributions.transforms import ExpTransform, StickBreakingTransform
    >>> from volform.geometry import is_elementwise
    >>> is_elementwise(ExpTransform()), is_elementwise(StickBreakingTransform())
    (True, False)
    """
    if getattr(f, "parts", None) == []:  # NumPyro's composition of nothing, the identity
        return True
    domain, codomain = getattr(f, "domain", None), getattr(f, "codomain", None)
    if domain is None or codomain is None:
        return False
    return domain.event_dim == 0 and codomain.event_dim == 0


@is_elementwise.register
def _(f: IndependentTransform) -> bool:  # of a site with `to_event`
    return is_elementwise(f.base_transform)


@singledispatch
def name_of(thing: Any) -> str:
    """The name of a metric or a function, as results and errors show it.

    Args:
        thing: a metric, shown as its `repr`, or a function, shown as its `__name__`.

    >>> import volform as vf
    >>> from volform.geometry import name_of
    >>> name_of(2.0 * vf.Euclidean())
    '2.0 * Euclidean()'
    """
    return getattr(thing, "__name__", None) or repr(thing)
