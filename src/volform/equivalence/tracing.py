"""Axes of a function's parameters that may be permuted, read off its program."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.interpreters.partial_eval import dce_jaxpr

from volform.compilation import as_closed, parts_of_scan
from volform.equivalence.axes import Axis, Factor, atoms, fix, new_axes, new_axis, tie

Axes = tuple[Axis, ...]
Rule = Callable[["_Walk", JaxprEqn, list[Axes]], list[Axes]]


class Traced(NamedTuple):
    """Factors of the axes of each array of parameters, and primitives that nobody knows.

    Attributes:
        factors: by array, in its order, the factors of all its axes, none of length one.
        unknown: names of the primitives that fixed what they touch.
    """

    factors: tuple[tuple[Factor, ...], ...]
    unknown: tuple[str, ...]


def traced(program: ClosedJaxpr, count: int) -> Traced:
    """The axes of the first `count` inputs of a program; the other inputs are fixed.

    An array that the outputs do not depend on is fixed: nothing tells its entries apart, and no
    symmetry of it means anything.

    Args:
        program: the equations.
        count: number of arrays of parameters.
    """
    jaxpr, _ = dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars), instantiate=True)
    needed = {v for eqn in jaxpr.eqns for v in eqn.invars if not isinstance(v, Literal)}
    needed |= {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    inputs = [
        new_axes(_shape(v), fixed=number >= count or v not in needed)
        for number, v in enumerate(jaxpr.invars)
    ]
    walk = _Walk()
    for axes in walk.run(jaxpr, [_of_constant(value) for value in program.consts], inputs):
        fix(*axes)
    found = tuple(tuple(f for axis in axes for f in atoms(axis)) for axes in inputs[:count])
    return Traced(found, tuple(sorted(walk.unknown)))


class _Walk:
    """The equations of a program one after the other, those of inner programs in their place."""

    def __init__(self):
        self.unknown: set[str] = set()

    def run(self, jaxpr: Jaxpr, constants: Sequence[Axes], inputs: Sequence[Axes]) -> list[Axes]:
        """Axes of the outputs."""
        known = dict[Any, Axes](zip(jaxpr.constvars, constants, strict=True))
        known.update(zip(jaxpr.invars, inputs, strict=True))

        def of(variable: Any) -> Axes:
            return _of_constant(variable.val) if isinstance(variable, Literal) else known[variable]

        for eqn in jaxpr.eqns:
            given = [of(variable) for variable in eqn.invars]
            known.update(zip(eqn.outvars, self._through(eqn, given), strict=True))
        return [of(variable) for variable in jaxpr.outvars]

    def _through(self, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
        name = eqn.primitive.name
        if name in _RULES:
            return _RULES[name](self, eqn, given)
        if name in _ELEMENTWISE:
            return _elementwise(self, eqn, given)
        body = _body(eqn)
        return self.fixed(eqn, given) if body is None else self.run_closed(body, given)

    def run_closed(self, body: ClosedJaxpr, given: Sequence[Axes]) -> list[Axes]:
        """Axes of the outputs of an inner program."""
        return self.run(body.jaxpr, [_of_constant(value) for value in body.consts], given)

    def fixed(self, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
        """Of an equation that is not understood: all that it touches stays where it is."""
        if any(not f.fixed for axes in given for axis in axes for f in atoms(axis)):
            self.unknown.add(eqn.primitive.name)
        for axes in given:
            fix(*axes)
        return [new_axes(_shape(v), fixed=True) for v in eqn.outvars]


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(getattr(variable.aval, "shape", ()))


def _of_constant(value: Any) -> Axes:
    """Fixed, unless all entries are the same."""
    shape = np.shape(value)
    if not shape or math.prod(shape) == 0:
        return new_axes(shape)
    if isinstance(value, Tracer) or getattr(value.dtype, "kind", "") not in set("biufc"):
        return new_axes(shape, fixed=True)
    array = np.asarray(value)
    return new_axes(shape, fixed=not np.all(array == array.flat[0]))


def _body(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The program that an equation calls with its own inputs and outputs, as `jit` does."""
    for inner in (eqn.params.get(name) for name in ("jaxpr", "call_jaxpr", "fun_jaxpr")):
        body = as_closed(inner) if isinstance(inner, Jaxpr | ClosedJaxpr) else None
        if body is not None and len(body.jaxpr.invars) == len(eqn.invars):
            return body if len(body.jaxpr.outvars) == len(eqn.outvars) else None
    return None


# --- One rule for each primitive that is not elementwise


def _elementwise(walk: _Walk, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
    shape = _shape(eqn.outvars[0])
    sizes = [_shape(v) for v in eqn.invars]
    if len(eqn.outvars) > 1 or any(len(own) not in (0, len(shape)) for own in sizes):
        return walk.fixed(eqn, given)
    found = list[Axis]()
    for axis, size in enumerate(shape):
        same = [g[axis] for g, own in zip(given, sizes, strict=True) if own and own[axis] == size]
        for other in same[1:]:
            tie(same[0], other)
        found.append(same[0] if same else new_axis(size))
    return [tuple(found)]


def _tie_all(some: Sequence[Axis], others: Sequence[Axis]) -> None:
    for one, other in zip(some, others, strict=True):
        tie(one, other)


def _passed(walk: _Walk, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
    return given


def _broadcast(walk: _Walk, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
    shape, own = _shape(eqn.outvars[0]), _shape(eqn.invars[0])
    found = list(new_axes(shape))
    for axis, place in enumerate(eqn.params["broadcast_dimensions"]):
        if own[axis] == shape[place]:
            found[place] = given[0][axis]
    return [tuple(found)]


def _iota(walk: _Walk, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
    shape, along = _shape(eqn.outvars[0]), eqn.params["dimension"]
    return [tuple(new_axis(size, fixed=axis == along) for axis, size in enumerate(shape))]


def _reshape(walk: _Walk, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
    found = new_axes(_shape(eqn.outvars[0]))
    tie(tuple(f for axis in given[0] for f in axis), tuple(f for axis in found for f in axis))
    return [found]


def _transpose(walk: _Walk, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
    return [tuple(given[0][axis] for axis in eqn.params["permutation"])]


def _squeeze(walk: _Walk, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
    gone = eqn.params["dimensions"]
    return [tuple(axis for number, axis in enumerate(given[0]) if number not in gone)]


def _reduced(walk: _Walk, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
    gone = eqn.params["axes"]
    if eqn.primitive.name in {"argmax", "argmin"}:
        fix(*(given[0][axis] for axis in gone))
    return [tuple(axis for n, axis in enumerate(given[0]) if n not in gone)] * len(eqn.outvars)


def _along_one(walk: _Walk, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
    """Of what runs along an axis in its order: cumulative sums, reversals."""
    along = eqn.params["dimensions"] if "dimensions" in eqn.params else [eqn.params["axis"]]
    fix(*(given[0][axis] for axis in along))
    return given


def _cut(walk: _Walk, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
    """Of slices, pads, windows, joints and updates: axes that stay whole pass, others are fixed."""
    shape = _shape(eqn.outvars[0])
    whole = [axes for axes in given if len(axes) == len(shape)] if shape else []
    sizes = [_shape(v) for v in eqn.invars if len(_shape(v)) == len(shape)]
    found = list[Axis]()
    for axis, size in enumerate(shape):
        mixed = any(own[axis] != size for own in sizes) or _is_moved(eqn, axis)
        if mixed:
            joined = [f for axes in whole for f in atoms(axes[axis]) if not f.fixed]
            if joined and eqn.primitive.name == "concatenate":  # units side by side: not followed
                walk.unknown.add("concatenate")
            fix(*(axes[axis] for axes in whole))
        for other in [] if mixed else whole[1:]:
            tie(whole[0][axis], other[axis])
        found.append(new_axis(size, fixed=True) if mixed else whole[0][axis])
    return [tuple(found)]


def _is_moved(eqn: JaxprEqn, axis: int) -> bool:
    """Tell whether entries move along an axis whose length stays."""
    params = eqn.params
    padding = params.get("padding", params.get("padding_config", ()))
    sizes = [
        params[name][axis] for name in ("window_dimensions", "window_strides") if name in params
    ]
    return bool(padding and any(padding[axis])) or any(size != 1 for size in sizes)


def _split(walk: _Walk, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
    along = eqn.params["axis"]
    fix(given[0][along])
    return [
        (*given[0][:along], new_axis(size, fixed=True), *given[0][along + 1 :])
        for size in eqn.params["sizes"]
    ]


def _stack(walk: _Walk, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
    for other in given[1:]:
        _tie_all(given[0], other)
    along = eqn.params["axis"]
    return [(*given[0][:along], new_axis(len(given), fixed=True), *given[0][along:])]


def _unstack(walk: _Walk, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
    along = eqn.params["axis"]
    fix(given[0][along])
    return [(*given[0][:along], *given[0][along + 1 :]) for _ in eqn.outvars]


def _tile(walk: _Walk, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
    pairs = zip(eqn.params["reps"], given[0], strict=True)
    return [tuple((*new_axis(times), *axis) for times, axis in pairs)]


def _product(walk: _Walk, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
    pairs, batches = eqn.params["dimension_numbers"]
    for one, other in (*zip(*pairs, strict=True), *zip(*batches, strict=True)):
        tie(given[0][one], given[1][other])
    free = [
        axis
        for side in (0, 1)
        for number, axis in enumerate(given[side])
        if number not in (*pairs[side], *batches[side])
    ]
    return [(*(given[0][axis] for axis in batches[0]), *free)]


def _convolution(walk: _Walk, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    if eqn.params["batch_group_count"] != 1:
        return walk.fixed(eqn, given)
    (batch, features, *pixels), (outputs, inputs, *window) = numbers.lhs_spec, numbers.rhs_spec
    fix(*(given[0][axis] for axis in pixels), *(given[1][axis] for axis in window))
    group = new_axis(groups)
    tie(given[0][features], (*group, *given[1][inputs]))
    width = _shape(eqn.invars[1])[outputs] // groups
    units = (*group, *new_axis(width))
    tie(given[1][outputs], units)
    found = list(new_axes(_shape(eqn.outvars[0]), fixed=True))
    found[numbers.out_spec[0]], found[numbers.out_spec[1]] = given[0][batch], units
    return [tuple(found)]


def _gather(walk: _Walk, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [axis for axis in range(len(sizes)) if axis not in gone]
    own, shape = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    rows = iter(given[1][:-1])
    found = list[Axis]()
    for axis, size in enumerate(shape):
        if axis not in numbers.offset_dims:
            found.append(next(rows))
            continue
        place = kept[numbers.offset_dims.index(axis)]
        found.append(given[0][place] if own[place] == size else new_axis(size, fixed=True))
    cut = [axis for axis in range(len(own)) if axis in gone or sizes[axis] != own[axis]]
    fix(*(given[0][axis] for axis in cut), given[1][-1])
    for operand, row in zip(
        numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
    ):
        tie(given[0][operand], given[1][row])
    return [tuple(found)]


def _scan(walk: _Walk, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
    consts, carries = parts_of_scan(eqn)
    later = given[consts + carries :]
    fix(*(axes[0] for axes in later))
    inner = [*given[: consts + carries], *(axes[1:] for axes in later)]
    outputs = walk.run_closed(eqn.params["jaxpr"], inner)
    for before, after in zip(given[consts : consts + carries], outputs[:carries], strict=True):
        _tie_all(before, after)
    stacked = new_axis(eqn.params["length"], fixed=True)
    return [*outputs[:carries], *((stacked, *axes) for axes in outputs[carries:])]


def _while(walk: _Walk, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
    of_test, of_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carries = given[of_test + of_body :]
    walk.run_closed(eqn.params["cond_jaxpr"], [*given[:of_test], *carries])
    inner = given[of_test : of_test + of_body]
    for before, after in zip(
        carries, walk.run_closed(eqn.params["body_jaxpr"], [*inner, *carries]), strict=True
    ):
        _tie_all(before, after)
    return carries


def _branches(walk: _Walk, eqn: JaxprEqn, given: list[Axes]) -> list[Axes]:
    first, *others = (walk.run_closed(body, given[1:]) for body in eqn.params["branches"])
    for outputs in others:
        for one, other in zip(first, outputs, strict=True):
            _tie_all(one, other)
    return first


_RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "iota": _iota,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    **{f"reduce_{n}": _reduced for n in ("sum", "max", "min", "prod", "and", "or", "xor")},
    **dict.fromkeys(("argmax", "argmin"), _reduced),
    **{f"cum{n}": _along_one for n in ("sum", "prod", "max", "min", "logsumexp")},
    "rev": _along_one,
    **dict.fromkeys(("slice", "dynamic_slice", "dynamic_update_slice", "pad"), _cut),
    **{f"reduce_window{n}": _cut for n in ("", "_sum", "_max", "_min")},
    "concatenate": _cut,
    "split": _split,
    "stack": _stack,
    "unstack": _unstack,
    "tile": _tile,
    "dot_general": _product,
    "conv_general_dilated": _convolution,
    "gather": _gather,
    "scan": _scan,
    "while": _while,
    "cond": _branches,
    **dict.fromkeys(("optimization_barrier", "device_put", "name"), _passed),
}
_ELEMENTWISE = frozenset(
    re.findall(
        r"\w+",
        """
        abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
    clamp clz conj convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp
    exp2 expm1 floor ge gt igamma igammac integer_pow is_finite le lgamma log log1p logistic lt max
    min mul ne neg nextafter not or polygamma population_count pow reduce_precision
    regularized_incomplete_beta rem round rsqrt select_n sharding_constraint shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh
    xor zeta""",
    )
)
