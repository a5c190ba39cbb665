"""Equations of a function's jaxpr that multiply one of its parameters into activations.

For `z = h W` the gradient of an output in W is `h^T (df/dz)`: of two examples the product of
gradients is that of the h times that of the df/dz, and no gradient is ever formed.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jaxtyping import Array, Float

from volform.networks.programs import read, windows

# They move the entries of one array, so products of two arrays stay what they are.
_MOVES = {"reshape", "transpose", "squeeze", "expand_dims", "rev", "neg", "copy", "copy_p"}
_REPEATS = {"broadcast_in_dim", "convert_element_type", "reshape", "copy", "copy_p"}
_GROUPS = "feature_group_count", "batch_group_count"


Factors = tuple[tuple[Any, bool], ...]


@dataclass(frozen=True)
class LinearLayer:
    """The only equation that reads a parameter: it multiplies a multiple of it into activations.

    Attributes:
        leaf: number of the parameter.
        equation: number of the equation.
        operand: position of the parameter in it.
        factors: variables of numbers that it was multiplied with, and whether as a divisor.
        sizes: (batch, positions, fan-in, fan-out), after which activations are laid out as
            (batch, positions, fan-in) and their slopes as (batch, positions, fan-out).
        bias: number and factors of a parameter that is added to the result at each position, and
            is read nowhere else.
        last: number of the equation before which the result is multiplied with numbers only, and
            keeps its layout: slopes are those in what it gives.
    """

    leaf: int
    equation: int
    operand: int
    factors: Factors
    sizes: tuple[int, int, int, int]
    bias: tuple[int, Factors] | None
    last: int

    @property
    def leaves(self) -> set[int]:
        """Numbers of its parameters."""
        return {self.leaf} if self.bias is None else {self.leaf, self.bias[0]}


def linear_layers(closed: ClosedJaxpr, leaves: int) -> list[LinearLayer]:
    """Those of the first inputs that no other equation reads; all others are left out."""
    reading = _Reading(closed.jaxpr)
    found, seen = list[LinearLayer](), set[int]()
    paths = [reading.path(v) for v in closed.jaxpr.invars[:leaves]]
    for leaf, path in enumerate(paths):
        is_whole = path.variable.aval.size == closed.jaxpr.invars[leaf].aval.size  # no copies of it
        sizes = _sizes(path.end, path.variable) if is_whole and path.end is not None else None
        if path.end is None or sizes is None:
            continue
        number = reading.read_by[path.variable]
        operand = path.end.invars.index(path.variable)
        found.append(LinearLayer(leaf, number, operand, path.factors, sizes, None, number))
    for place, layer in enumerate(found):
        if layer.equation in seen:  # a product of two parameters
            continue
        seen.add(layer.equation)
        result = reading.path(closed.jaxpr.eqns[layer.equation].outvars[0])
        for leaf, path in enumerate(paths):
            if result.end is not None and path.end is result.end:
                found[place] = _with_bias(closed, layer, leaf, path, result, reading)
    return found


@dataclass(frozen=True)
class _Path:
    """From a variable to the equation that does more to it than to move or multiply its entries.

    Attributes:
        variable: as that equation reads it.
        steps: the equations before.
        factors: as of `LinearLayer`.
        end: that equation; None where there is none, or several.
    """

    variable: Any
    steps: tuple[JaxprEqn, ...]
    factors: Factors
    end: JaxprEqn | None

    def moved(self, entries: np.ndarray) -> np.ndarray:
        """The entries of the first variable as the end reads them."""
        for eqn in self.steps:
            shape = _kind(eqn.outvars[0]).shape
            if eqn.primitive.name == "transpose":
                entries = entries.transpose(eqn.params["permutation"])
            elif eqn.primitive.name == "rev":
                entries = np.flip(entries, eqn.params["dimensions"])
            elif eqn.primitive.name == "broadcast_in_dim":
                kept = dict(zip(eqn.params["broadcast_dimensions"], entries.shape, strict=True))
                entries = entries.reshape([kept.get(axis, 1) for axis in range(len(shape))])
                entries = np.broadcast_to(entries, shape)
            else:
                entries = entries.reshape(shape)
        return entries


class _Reading:
    """The equations that read and make each variable of a jaxpr."""

    def __init__(self, jaxpr: Jaxpr):
        self.jaxpr, self.uses = jaxpr, Counter[Any]()
        self.read_by, self.made_by = dict[Any, int](), dict[Any, int]()
        for number, eqn in enumerate(jaxpr.eqns):
            variables = [v for v in eqn.invars if not isinstance(v, Literal)]
            self.uses.update(variables)
            self.read_by.update(dict.fromkeys(variables, number))
            self.made_by.update(dict.fromkeys(eqn.outvars, number))
        self.uses.update(v for v in jaxpr.outvars if not isinstance(v, Literal))

    def path(self, variable: Any) -> _Path:
        """The path of a variable."""
        steps, factors = [], []
        while self.uses[variable] == 1 and variable in self.read_by:
            eqn = self.jaxpr.eqns[self.read_by[variable]]
            step = self._multiple(eqn, variable)
            if step is None:
                return _Path(variable, tuple(steps), tuple(factors), eqn)
            steps.append(eqn)
            factors += step
            variable = eqn.outvars[0]
        return _Path(variable, tuple(steps), tuple(factors), None)

    def _multiple(self, eqn: JaxprEqn, variable: Any) -> list[tuple[Any, bool]] | None:
        """Numbers by which the equation multiplies the variable, None if it does something else."""
        name, shape = eqn.primitive.name, variable.aval.shape
        if name in _MOVES:
            return []
        output = _kind(eqn.outvars[0])
        if name == "convert_element_type":
            return [] if jnp.issubdtype(output.dtype, jnp.floating) else None
        if name == "broadcast_in_dim":
            return []
        if name not in {"mul", "div"} or output.shape != shape:
            return None
        position = eqn.invars.index(variable)
        number = self._number(eqn.invars[1 - position])
        if number is None or (name == "div" and position == 1):
            return None
        return [(number, name == "div")]

    def _number(self, variable: Any) -> Any:
        """A variable that holds the one number which all entries of this one are, else None."""
        while variable.aval.size != 1:
            number = None if isinstance(variable, Literal) else self.made_by.get(variable)
            if number is None or self.jaxpr.eqns[number].primitive.name not in _REPEATS:
                return None
            variable = self.jaxpr.eqns[number].invars[0]
        return variable


def _with_bias(
    closed: ClosedJaxpr,
    layer: LinearLayer,
    leaf: int,
    path: _Path,
    result: _Path,
    reading: _Reading,
) -> LinearLayer:
    """With a parameter as its bias if each entry of it is added to one output, at all positions.

    That is found by moving the numbers of the entries of both.
    """
    own, target = closed.jaxpr.invars[leaf], closed.jaxpr.eqns[layer.equation].outvars[0]
    is_sum = path.end is not None and path.end.primitive.name == "add"
    if not is_sum or layer.sizes[0] != 1 or own.aval.size != layer.sizes[3]:
        return layer
    entries, places = (
        p.moved(np.arange(v.aval.size).reshape(v.aval.shape))
        for p, v in ((path, own), (result, target))
    )
    is_kept = places.shape == target.aval.shape and (np.diff(places.ravel()) == 1).all()
    if places.size != target.aval.size or (result.factors and not is_kept):
        return layer
    try:
        entries = np.broadcast_to(entries, places.shape)
    except ValueError:
        return layer
    laid = np.empty(target.aval.size, int)
    laid[places.ravel()] = entries.ravel()
    laid = slopes(closed, layer, laid.reshape(target.aval.shape))[0]
    if not (laid == laid[:1]).all() or len(set(laid[0])) != own.aval.size:
        return layer
    last = reading.made_by[result.variable] if is_kept else layer.equation
    factors = (*layer.factors, *result.factors)
    return replace(layer, bias=(leaf, path.factors), factors=factors, last=last)


def _sizes(eqn: JaxprEqn, variable: Any) -> tuple[int, int, int, int] | None:
    name, weights = eqn.primitive.name, variable.aval
    if name == "dot_general":
        own = eqn.invars.index(variable)
        (contracted, batch) = eqn.params["dimension_numbers"]
        fan_in = _product(weights, contracted[own])
        many = _product(weights, batch[own])
        other = _kind(eqn.invars[1 - own]).size // (fan_in * many)
        return many, other, fan_in, weights.size // (fan_in * many)
    if name == "conv_general_dilated" and eqn.invars[1] is variable:
        if any(eqn.params[group] != 1 for group in _GROUPS) or eqn.invars[0] is variable:
            return None
        fan_out = weights.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
        return 1, _kind(eqn.outvars[0]).size // fan_out, weights.size // fan_out, fan_out
    return None


def activations(
    closed: ClosedJaxpr, layer: LinearLayer, values: Mapping[Any, Any]
) -> Float[Array, "batch positions fan_in"]:
    """The h of `z = h W`, times the numbers that W was multiplied with.

    Of a convolution its windows, of which it is the product with W.
    """
    eqn = closed.jaxpr.eqns[layer.equation]
    h = read(values, eqn.invars[1 - layer.operand])
    if eqn.primitive.name == "dot_general":
        contracted, batch = (pair[1 - layer.operand] for pair in eqn.params["dimension_numbers"])
        free = [axis for axis in range(h.ndim) if axis not in (*contracted, *batch)]
        h = jnp.transpose(h, (*batch, *free, *contracted))
    else:
        h = windows(eqn, h)
    h = h.reshape(layer.sizes[:3])
    return times_factors(layer.factors, values, h)


def times_factors(factors: Factors, values: Mapping[Any, Any], h: Array) -> Array:
    """Numbers times the factors of a parameter."""
    for variable, is_divisor in factors:
        number = jnp.reshape(read(values, variable), ()).astype(h.dtype)
        h = h / number if is_divisor else h * number
    return h


def slopes(
    closed: ClosedJaxpr, layer: LinearLayer, slope: Any
) -> Float[Array, "batch positions fan_out"]:
    """The derivative of an output in the result of the equation, laid out like `activations`."""
    eqn = closed.jaxpr.eqns[layer.equation]
    many, positions, _, fan_out = layer.sizes
    if eqn.primitive.name != "dot_general":
        last = eqn.params["dimension_numbers"].out_spec[1]
        order = [axis for axis in range(slope.ndim) if axis != last]
        return slope.transpose([*order, last]).reshape(many, positions, fan_out)
    if layer.operand == 0:
        return slope.reshape(many, fan_out, positions).swapaxes(1, 2)
    return slope.reshape(many, positions, fan_out)


def _kind(variable: Any) -> Any:
    """Shape and dtype."""
    return variable.aval


def _product(aval: Any, axes: Sequence[int]) -> int:
    return math.prod(aval.shape[axis] for axis in axes)
