"""Digests of jaxprs, of their constants, and of what else a trace leaves behind."""

import dataclasses
import enum
import functools
import hashlib
import re
import types
from collections.abc import Iterable, Mapping, Set as AbstractSet
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray, Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Primitive

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, np.dtype, enum.Enum, Primitive)


def digest_of(*objects: Any, by_identity: bool = True) -> str:
    """A text that is equal for equal contents.

    Jaxprs go by their equations, arrays by their bytes, functions by their code and what they
    close over; objects of which nothing is known but that they are, by their address.

    Args:
        *objects: anything.
        by_identity: whether addresses count; without, such objects go by their types alone.
    """
    writer = _Writer(by_identity)
    writer.write(objects)
    return writer.hexdigest()


class _Writer:
    """Feeds objects to a hash."""

    def __init__(self, by_identity: bool):
        self._hash = hashlib.blake2b(digest_size=16)
        self._by_identity = by_identity
        self._jaxprs: dict[int, str] = {}
        self._parameters: dict[Any, bytes] = {}
        self._open: set[int] = set()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def write(self, thing: Any) -> None:
        """Adds one object, with its type, so that 1 and 1.0 and "1" are three."""
        if isinstance(thing, _PLAIN):
            self._text(thing)
        elif id(thing) in self._open:
            self._hash.update(b"again")
        else:
            self._open.add(id(thing))
            self._compound(thing)
            self._open.discard(id(thing))

    def _text(self, thing: Any) -> None:
        self._hash.update(f"{type(thing).__qualname__} {thing!r};".encode())

    def _many(self, name: str, things: Iterable[Any]) -> None:
        self._hash.update(f"{name}(".encode())
        for thing in things:
            self.write(thing)
        self._hash.update(b")")

    def _compound(self, thing: Any) -> None:
        name = type(thing).__qualname__
        if isinstance(thing, Jaxpr):  # before the other: from JAX 0.12 on they are one class
            self._hash.update(self._of_jaxpr(thing).encode())
            return self._many("constants", getattr(thing, "consts", ()))
        if isinstance(thing, ClosedJaxpr):
            return self._many(name, (thing.jaxpr, *thing.consts))
        if isinstance(thing, jax.tree_util.PyTreeDef):
            return self._many(name, (thing.node_data(), *thing.children()))
        if isinstance(thing, ShapedArray):
            return self._hash.update(f"{thing.str_short()}{thing.weak_type};".encode())
        if isinstance(thing, Tracer):
            return self._many(name, (thing.aval,))
        if isinstance(thing, jax.Array) and jnp.issubdtype(thing.dtype, jax.dtypes.prng_key):
            return self._many(str(thing.dtype), (jax.random.key_data(thing),))
        if hasattr(thing, "dtype") and hasattr(thing, "__array__"):
            return self._array(thing)
        if isinstance(thing, Mapping):
            return self._many(name, (part for item in thing.items() for part in item))
        if isinstance(thing, AbstractSet):
            return self._many(name, sorted(thing, key=repr))
        if isinstance(thing, tuple | list):
            return self._many(name, thing)
        if isinstance(thing, functools.partial):
            return self._many(name, (thing.func, thing.args, thing.keywords))
        if isinstance(thing, types.MethodType):
            return self._many(name, (thing.__func__, thing.__self__))
        if isinstance(thing, types.FunctionType):
            return self._function(thing)
        if isinstance(thing, types.CodeType):
            return self._many(name, (thing.co_code, thing.co_names, thing.co_consts))
        if dataclasses.is_dataclass(thing):
            fields = [getattr(thing, field.name, None) for field in dataclasses.fields(thing)]
            return self._many(f"{type(thing).__module__}.{name}", fields)
        return self._unknown(thing)

    def _array(self, thing: Any) -> None:
        if isinstance(thing, jax.Array) and not thing.is_fully_addressable:
            self._text((thing.shape, thing.dtype, id(thing)))  # spread over processes
            return
        array = np.asarray(thing)
        self._hash.update(f"{array.shape}{array.dtype}{getattr(thing, 'weak_type', '')}".encode())
        if array.dtype == object:
            self._many("objects", array.ravel().tolist())
        else:
            self._hash.update(array.tobytes())

    def _function(self, thing: types.FunctionType) -> None:
        cells = []
        for cell in thing.__closure__ or ():
            try:
                cells.append(cell.cell_contents)
            except ValueError:  # not yet filled
                cells.append(None)
        held = (thing.__module__, thing.__qualname__, thing.__code__)
        self._many("function", (*held, thing.__defaults__, thing.__kwdefaults__, cells))

    def _unknown(self, thing: Any) -> None:
        self._hash.update(f"{type(thing).__module__}.{type(thing).__qualname__}".encode())
        if type(thing).__repr__ is not object.__repr__:
            self._hash.update(_ADDRESS.sub("", repr(thing)).encode())
        elif self._by_identity:
            self._hash.update(str(id(thing)).encode())

    def _of_jaxpr(self, jaxpr: Jaxpr) -> str:
        """The digest of a jaxpr: those of compiled functions stand in it again and again."""
        if id(jaxpr) not in self._jaxprs:
            outer, self._hash = self._hash, hashlib.blake2b(digest_size=16)
            self._equations(jaxpr)
            self._jaxprs[id(jaxpr)], self._hash = self._hash.hexdigest(), outer
        return self._jaxprs[id(jaxpr)]

    def _equations(self, jaxpr: Jaxpr) -> None:
        numbers: dict[Any, int] = {}

        def name(var: Any) -> str:
            return str(numbers.setdefault(var, len(numbers)))

        for var in (*jaxpr.constvars, *jaxpr.invars):
            self._hash.update(name(var).encode())
            self.write(var.aval)
        for eqn in jaxpr.eqns:
            self._hash.update(f"{eqn.primitive.name}[".encode())
            for param, value in eqn.params.items():
                self._parameter(param, value)
            self._hash.update(b"]")
            self._operands(eqn.invars, name)
            self._hash.update(f"->{','.join(map(name, eqn.outvars))};".encode())
        self._operands(jaxpr.outvars, name)

    def _parameter(self, name: str, value: Any) -> None:
        # Most equations are calls of compiled functions, with the same dozen of parameters each.
        try:
            known = self._parameters.get((name, value))
        except TypeError:
            return self.write(value)
        if known is None:
            outer, self._hash = self._hash, hashlib.blake2b(digest_size=16)
            self._hash.update(name.encode())
            self.write(value)
            known = self._parameters[name, value] = self._hash.digest()
            self._hash = outer
        return self._hash.update(known)

    def _operands(self, operands: Iterable[Any], name: Any) -> None:
        for atom in operands:
            if isinstance(atom, Literal):
                self.write(atom.val)
                self.write(atom.aval)
            else:
                self._hash.update(f"{name(atom)},".encode())
