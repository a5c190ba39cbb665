"""Functions that are traced once, and evaluated again without their Python."""

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.core import ShapedArray, Tracer, eval_jaxpr
from jax.extend.core import ClosedJaxpr
from jax.interpreters.partial_eval import dce_jaxpr

from volform.compilation import QUICK, Compiled
from volform.models.digests import digest_of

# Seconds of XLA for a program of n equations in a chain, as a loop of Python makes them, by n^2: .5
# for 200, a minute for 1,600; and for each kind of equation, where one after the other is run.
TOGETHER, ALONE = 2e-5, 0.035


class Slot:
    """The place of an output of the jaxpr in the function's value."""

    def __init__(self, index: int):
        self.index = index


class Recording:
    """One abstract trace of a function of arrays.

    What the function computes from its arguments is a jaxpr; what it returns besides, constants,
    names and functions, is kept as it was. Two recordings with one digest stand for one function,
    whatever its Python has become since.

    Args:
        jaxpr: from the leaves of the arguments to those leaves of the value that were traced.
        structures: of the arguments, and of the value.
        leaves: leaves of the value, with a `Slot` in place of each that was traced.
    """

    def __init__(self, jaxpr: ClosedJaxpr, structures: tuple[Any, Any], leaves: tuple[Any, ...]):
        self.jaxpr, self.leaves = jaxpr, leaves
        self.arguments, self.structure = structures
        self._parts: dict[tuple[int, ...], ClosedJaxpr] = {}

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recording) and self.digest == other.digest

    @cached_property
    def digest(self) -> str:
        """Text that two recordings of the same function have in common."""
        return digest_of(*self._contents)

    @cached_property
    def kind(self) -> str:
        """As `digest`, without the identity of objects, which a trace may make anew each time."""
        return digest_of(*self._contents, by_identity=False)

    @property
    def _contents(self) -> tuple[Any, ...]:
        kept = [leaf.index if isinstance(leaf, Slot) else (leaf,) for leaf in self.leaves]
        return self.jaxpr, str(self.arguments), self.structure, kept

    def fits(self, *args: Any) -> bool:
        """Tell whether arguments have the shapes and dtypes of those that were traced."""
        leaves, structure = jax.tree.flatten(args)
        return structure == self.arguments and all(
            np.shape(leaf) == aval.shape and leaf.dtype == aval.dtype
            for leaf, aval in zip(leaves, self.jaxpr.in_avals, strict=True)
        )

    def __call__(self, select: Callable[[Any], Any], *args: Any) -> Any:
        """`select` of the function's value, and nothing evaluated that it does not need."""
        wanted, structure = jax.tree.flatten(select(self.structure.unflatten(self.leaves)))
        indices = sorted({leaf.index for leaf in wanted if isinstance(leaf, Slot)})
        part = self._part(tuple(indices))
        outputs = eval_jaxpr(part.jaxpr, part.consts, *jax.tree.leaves(args))
        return _filled(structure, wanted, dict(zip(indices, outputs, strict=True)))

    def evaluated(self, *args: Any) -> Any:
        """The function's value, by one program, which equal recordings share.

        Long ones that repeat themselves are evaluated equation by equation.
        """
        eqns = self._whole.eqns
        kinds = {
            (e.primitive, e.params.get("name"), *(str(v.aval) for v in e.invars)) for e in eqns
        }
        is_short = TOGETHER * len(eqns) ** 2 <= ALONE * len(kinds)
        outputs = (_compiled if is_short else _evaluated)(self, jax.tree.leaves(args))
        return _filled(self.structure, self.leaves, dict(enumerate(outputs)))

    def is_of(self, arrays: Any) -> bool:
        """Tell whether the arrays, the last of the arguments, are laid out as in the recording."""
        return self.arguments.children()[-1] == jax.tree.structure(arrays)

    def again(self, f: Callable[..., Any]) -> "Recording | None":
        """A recording of `f` on arguments of the same shapes."""
        return recorded(f, *jax.tree.unflatten(self.arguments, self.jaxpr.in_avals))

    @property
    def _whole(self) -> ClosedJaxpr:
        """All of the value, without what a trace computes for nothing, as NumPyro's checks."""
        return self._part(tuple(range(len(self.jaxpr.jaxpr.outvars))))

    def _part(self, indices: tuple[int, ...]) -> ClosedJaxpr:
        if indices not in self._parts:
            used = [i in indices for i in range(len(self.jaxpr.jaxpr.outvars))]
            jaxpr, _ = dce_jaxpr(self.jaxpr.jaxpr, used, instantiate=True)
            self._parts[indices] = ClosedJaxpr(jaxpr, self.jaxpr.consts)
        return self._parts[indices]


def _filled(structure: Any, leaves: Iterable[Any], found: Mapping[int, Any]) -> Any:
    """A value with what was found in its slots."""
    return structure.unflatten([found[x.index] if isinstance(x, Slot) else x for x in leaves])


def _evaluated(recording: Recording, leaves: list[Any]) -> list[Any]:
    return eval_jaxpr(recording._whole.jaxpr, recording._whole.consts, *leaves)


_compiled = Compiled(_evaluated, QUICK)


def recorded(f: Callable[..., Any], *args: Any) -> Recording | None:
    """Trace `f` on abstract values of its arguments; None where the trace cannot be kept.

    Arguments may be abstract themselves, `jax.ShapeDtypeStruct`.

    It cannot where it holds values of a trace further out, as under `jit` of a function that makes
    the model, or values of its own in places that are no leaves.
    """
    flat, arguments = jax.tree.flatten(args)
    # Without the devices that arrays lie on, which are no part of the function.
    flat = [_shape_of(leaf) for leaf in flat]
    found: list[tuple[Any, tuple[Any, ...]]] = []

    def traced(*flat: Any) -> list[Any]:
        value = f(*jax.tree.unflatten(arguments, flat))
        try:
            leaves, structure = jax.tree.flatten(value)
        except (TypeError, ValueError):  # keys of a dict that cannot be sorted
            return []
        if holds_tracer(structure) or any(_has_tracer(x) for x in leaves if callable(x)):
            return []
        moving = [leaf for leaf in leaves if isinstance(leaf, Tracer)]
        places = iter(range(len(moving)))
        kept = (Slot(next(places)) if isinstance(x, Tracer) else _copied(x) for x in leaves)
        found.append((structure, tuple(kept)))
        return moving

    jaxpr = jax.make_jaxpr(traced)(*flat)
    if not found or any(isinstance(const, Tracer) for const in jaxpr.consts):
        return None
    structure, kept = found[-1]
    consts = [c if isinstance(c, jax.Array) else np.array(c, c.dtype) for c in jaxpr.consts]
    return Recording(ClosedJaxpr(jaxpr.jaxpr, consts), (arguments, structure), kept)


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    aval: Any = leaf if isinstance(leaf, ShapedArray) else jax.typeof(leaf)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)


def _copied(leaf: Any) -> Any:
    """A leaf as it is now: what the user changes in place later stays out of the recording."""
    return np.array(leaf) if isinstance(leaf, np.ndarray) else leaf


def holds_tracer(structure: Any) -> bool:
    """Tell whether a treedef has traced values among its static data, as NumPyro's counts."""
    data = structure.node_data()
    return (data is not None and _has_tracer(data[1])) or any(
        holds_tracer(child) for child in structure.children()
    )


def _has_tracer(data: Any) -> bool:
    if isinstance(data, tuple | list):
        return any(_has_tracer(part) for part in data)
    if isinstance(data, functools.partial):
        return _has_tracer((data.func, *data.args, *data.keywords.values()))
    if isinstance(data, types.FunctionType):  # such as the drift of a diffusion
        return any(_has_tracer(value) for value in inspect.getclosurevars(data).nonlocals.values())
    return isinstance(data, Tracer)
