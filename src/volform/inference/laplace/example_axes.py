"""Axes along which the arrays of a program carry the examples, followed back from its outputs."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from volform.compilation import parts_of_scan

# Of arrays that hold the examples in a way that no axis tells, or in two ways.
MIXED = -1

Axis = int | None  # an axis on which the examples are the major factor, MIXED, or none
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def example_axes(jaxpr: Jaxpr, outputs: Sequence[Axis], count: int) -> dict[Any, int]:
    """The axis of each variable that the examples of the outputs come from.

    An array that is the same for all examples has none, even if it is one of weights with as many
    units as there are examples: no size is compared where the equations tell.

    Args:
        jaxpr: the program.
        outputs: for each output the axis of the examples.
        count: number of the examples.
    """
    axes: dict[Any, int] = {}

    def mark(variable: Any, axis: Axis) -> None:
        if axis is not None and not isinstance(variable, Literal):
            axes[variable] = axis if axes.get(variable, axis) == axis else MIXED

    for variable, axis in zip(jaxpr.outvars, outputs, strict=True):
        mark(variable, axis)
    for eqn in reversed(jaxpr.eqns):
        found = [axes.get(variable) for variable in eqn.outvars]
        if any(axis is not None for axis in found):
            for variable, axis in zip(eqn.invars, input_axes(eqn, found, count), strict=True):
                mark(variable, axis)
    return axes


def input_axes(eqn: JaxprEqn, outputs: list[Axis], count: int) -> list[Axis]:
    """The axis of each input that the examples of the outputs come from."""
    if all(axis is None for axis in outputs):
        return [None] * len(eqn.invars)
    called = _body(eqn)
    if called is not None:
        if eqn.primitive.name == "scan":
            return _through_scan(eqn, called, outputs, count)
        axes = example_axes(called, outputs, count)
        return [axes.get(variable) for variable in called.invars]
    axis = next(axis for axis in outputs if axis is not None)
    rule = _RULES.get(eqn.primitive.name, _same_axis)
    if axis == MIXED or any(other not in (axis, None) for other in outputs):
        return [MIXED] * len(eqn.invars)
    return rule(eqn, axis, count)


def _body(eqn: JaxprEqn) -> Jaxpr | None:
    for inner in (eqn.params.get(name) for name in _INNER):
        body = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
        if isinstance(body, Jaxpr) and len(body.invars) == len(eqn.invars):
            return body if len(body.outvars) == len(eqn.outvars) else None
    return None


def _through_scan(eqn: JaxprEqn, body: Jaxpr, outputs: list[Axis], count: int) -> list[Axis]:
    consts, carries = parts_of_scan(eqn)
    of_body = [*outputs[:carries], *map(_without_first, outputs[carries:])]
    axes = example_axes(body, of_body, count)
    found = [axes.get(variable) for variable in body.invars]
    for i, after in enumerate(outputs[:carries], consts):
        found[i] = after if found[i] in (after, None) else MIXED
    sliced = consts + carries
    later = [axis if axis in (MIXED, None) else axis + 1 for axis in found[sliced:]]
    return [*found[:sliced], *later]


def _without_first(axis: Axis) -> Axis:
    return axis if axis is None or axis == MIXED else axis - 1 if axis > 0 else MIXED


def shape_of(variable: Any) -> tuple[int, ...]:
    """The shape of a variable or literal."""
    return tuple(getattr(variable.aval, "shape", ()))


def _same_axis(eqn: JaxprEqn, axis: int, count: int) -> list[Axis]:
    """Of operations that leave the axes where they are, entry by entry or along other axes."""
    along = {"axis", "dimension"} & eqn.params.keys()
    if any(eqn.params[name] == axis for name in along):
        return [MIXED] * len(eqn.invars)
    output = shape_of(eqn.outvars[0])

    def of(variable: Any) -> Axis:
        shape = shape_of(variable)
        if math.prod(shape) == 1 and math.prod(output) > 1:
            return None
        if len(shape) != len(output):
            return MIXED
        return axis if shape[axis] == output[axis] else None if shape[axis] == 1 else MIXED

    return [of(variable) for variable in eqn.invars]


def _broadcast(eqn: JaxprEqn, axis: int, count: int) -> list[Axis]:
    places = list(map(int, eqn.params["broadcast_dimensions"]))
    size, others = shape_of(eqn.outvars[0])[axis], [None] * (len(eqn.invars) - 1)
    own = places.index(axis) if axis in places else None
    if own is not None and shape_of(eqn.invars[0])[own] != size:
        own = None
    return [own, *others]


def _reshape(eqn: JaxprEqn, axis: int, count: int) -> list[Axis]:
    before = math.prod(shape_of(eqn.outvars[0])[:axis])
    outer = 1
    for own, size in enumerate(shape_of(eqn.invars[0])):
        if outer == before and size % count == 0:
            return [own]
        outer *= size
    return [MIXED]


def _transpose(eqn: JaxprEqn, axis: int, count: int) -> list[Axis]:
    return [int(eqn.params["permutation"][axis])]


def _reduced(eqn: JaxprEqn, axis: int, count: int) -> list[Axis]:
    axes = {int(a) for a in eqn.params.get("axes", eqn.params.get("dimensions", ()))}
    kept = [own for own in range(len(shape_of(eqn.invars[0]))) if own not in axes]
    return [kept[axis]] * len(eqn.invars)


def _product(eqn: JaxprEqn, axis: int, count: int) -> list[Axis]:
    (contracted, batch) = eqn.params["dimension_numbers"]
    if axis < len(batch[0]):
        return [batch[0][axis], batch[1][axis]]
    left, right = (
        [a for a in range(len(shape_of(v))) if a not in (*contracted[i], *batch[i])]
        for i, v in enumerate(eqn.invars)
    )
    place = axis - len(batch[0])
    return [left[place], None] if place < len(left) else [None, right[place - len(left)]]


def _convolution(eqn: JaxprEqn, axis: int, count: int) -> list[Axis]:
    numbers = eqn.params["dimension_numbers"]
    is_plain = axis == numbers.out_spec[0] and eqn.params["batch_group_count"] == 1
    return [numbers.lhs_spec[0], None] if is_plain else [MIXED, MIXED]


def _gather(eqn: JaxprEqn, axis: int, count: int) -> list[Axis]:
    numbers = eqn.params["dimension_numbers"]
    if axis in numbers.offset_dims:
        gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        kept = [a for a in range(len(shape_of(eqn.invars[0]))) if a not in gone]
        own = kept[numbers.offset_dims.index(axis)]
        is_whole = shape_of(eqn.invars[0])[own] == shape_of(eqn.outvars[0])[axis]
        return [own if is_whole else MIXED, None]
    batch = [a for a in range(len(shape_of(eqn.outvars[0]))) if a not in numbers.offset_dims]
    place = batch.index(axis)
    if place in numbers.start_indices_batching_dims:
        pairs = zip(numbers.start_indices_batching_dims, numbers.operand_batching_dims, strict=True)
        return [dict(pairs)[place], place]
    return [None, place]


def _joined(eqn: JaxprEqn, axis: int, count: int) -> list[Axis]:
    return [MIXED if eqn.params["dimension"] == axis else axis] * len(eqn.invars)


def _cut(eqn: JaxprEqn, axis: int, count: int) -> list[Axis]:
    """Of slices and pads, whose other inputs are numbers."""
    is_whole = shape_of(eqn.invars[0])[axis] == shape_of(eqn.outvars[0])[axis]
    return [axis if is_whole else MIXED, *[None] * (len(eqn.invars) - 1)]


def _reversed(eqn: JaxprEqn, axis: int, count: int) -> list[Axis]:
    return [MIXED if axis in eqn.params["dimensions"] else axis]


_RULES: dict[str, Callable[[JaxprEqn, int, int], list[Axis]]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _reduced,
    "argmax": _reduced,
    "argmin": _reduced,
    **{f"reduce_{n}": _reduced for n in ("sum", "max", "min", "prod", "and", "or")},
    "dot_general": _product,
    "conv_general_dilated": _convolution,
    "gather": _gather,
    "concatenate": _joined,
    "slice": _cut,
    "dynamic_slice": _cut,
    "pad": _cut,
    "rev": _reversed,
}
