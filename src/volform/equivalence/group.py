"""Groups of maps of the parameters that leave a function as it is, and their elements."""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from volform.checks import require_key
from volform.equivalence.canonical import Stabilizer, element_to_canonical, nearest, stabilizer_of
from volform.equivalence.flows import FlowFamily, typed
from volform.errors import NetworkError
from volform.generators import generator

_ELEMENTS = 23  # stream of a key that elements are drawn from


class Member(NamedTuple):
    """A factor of an axis of one array: the number of the array, and of the factor in it."""

    leaf: int
    place: int


@dataclass(frozen=True)
class Units:
    """Units that may be exchanged, in all arrays that they are an axis of.

    Attributes:
        name: the array or layer that they first occur in.
        size: number of units.
        members: axes that run over them.
        signs: independent changes of sign of each unit: numbers of the members that they turn.
        together: likewise of all units at once.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    signs: tuple[tuple[int, ...], ...] = ()
    together: tuple[tuple[int, ...], ...] = ()

    def arrays(self, pattern: Sequence[int]) -> frozenset[int]:
        """The arrays that turn their sign as a whole where all units do."""
        leaves = [self.members[member].leaf for member in pattern]
        return frozenset(leaf for leaf in leaves if leaves.count(leaf) % 2)


@dataclass(frozen=True)
class Group:
    """Symmetries of a function of parameters; found by `symmetry`.

    Attributes:
        names: of the arrays, in the order of the pytree.
        shapes: of the arrays.
        factors: lengths of the factors of the axes of each array.
        treedef: structure of the pytree of arrays.
        units: sets of units that may be exchanged.
        flows: families of continuous symmetries.
        defect: largest relative change of the function under random elements.
        unknown: primitives that were not understood, whose arrays stay as they are: the group is
            a subgroup of all.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    factors: tuple[tuple[int, ...], ...]
    treedef: Any
    units: tuple[Units, ...] = ()
    flows: tuple[FlowFamily, ...] = ()
    defect: float = 0.0
    unknown: tuple[str, ...] = ()

    @property
    def order(self) -> int:
        """Number of exchanges and changes of sign, continuous symmetries apart."""
        return math.prod(math.factorial(units.size) for units in self.units) * 2**self._turns

    @property
    def log_order(self) -> float:
        """Log of the number of exchanges and changes of sign, continuous symmetries apart."""
        exchanges = (math.lgamma(units.size + 1) for units in self.units)
        return math.fsum(exchanges) + self._turns * math.log(2.0)

    @property
    def _turns(self) -> int:
        """Number of independent changes of sign.

        Signs of the units of one set, and of those of another, in the same arrays are the same
        only where all of them turn.
        """
        whole = [units.arrays(pattern) for units in self.units for pattern in units.signs]
        each = sum(units.size * len(units.signs) + len(units.together) for units in self.units)
        return each - len(whole) + len(independent(whole))

    @property
    def dimension(self) -> int:
        """Number of generators of continuous symmetries."""
        return sum(flow.count for flow in self.flows)

    @property
    def identity(self) -> "Element":
        """The element that moves nothing."""
        return Element(
            self,
            tuple(np.arange(units.size) for units in self.units),
            tuple(np.ones((len(units.signs), units.size)) for units in self.units),
            tuple(np.ones(len(units.together)) for units in self.units),
        )

    def draw(self, key: PRNGKeyArray) -> "Element":
        """A random element: a map of parameters that leaves the function as it is.

        Exchanges and signs are uniform; continuous symmetries are near the identity.

        Raises:
            NetworkError: when `key` is no random key.
        """
        require_key(key, "key", "draw", NetworkError)
        return self.drawn(generator(key, _ELEMENTS))

    def drawn(self, random: np.random.Generator) -> "Element":
        """A random element, by a generator of NumPy."""
        orders = tuple(random.permutation(units.size) for units in self.units)
        signs = tuple(
            2.0 * random.integers(2, size=(len(u.signs), u.size)) - 1.0 for u in self.units
        )
        together = tuple(2.0 * random.integers(2, size=len(u.together)) - 1.0 for u in self.units)
        return Element(self, orders, signs, together, tuple(f.amounts(random) for f in self.flows))

    def canonical(self, params: PyTree) -> PyTree:
        """The one of all copies by exchanges and changes of sign whose units are in order.

        Copies of generic parameters have one canonical form; continuous symmetries are not used.

        Raises:
            NetworkError: when the parameters are not of this group's network.
        """
        return element_to_canonical(self, params)(params)

    def stabilizer(self, params: PyTree, within: float = 1e-9) -> Stabilizer:
        """The elements that leave `params` where they are.

        Args:
            params: parameters of the network.
            within: difference up to which entries are the same, by the largest entry of a set.

        Raises:
            NetworkError: when the parameters are not of this group's network.
        """
        return stabilizer_of(self, params, within)

    def nearest(self, params: PyTree, most: int, beyond: float = 1e-9) -> list[PyTree]:
        """Copies of `params` by one exchange, or change of sign of a unit, the nearest first.

        Args:
            params: parameters of the network.
            most: number of copies.
            beyond: difference, by the largest entry of a set of units, up to which it is no copy.

        Raises:
            NetworkError: when the parameters are not of this group's network.
        """
        return nearest(self, params, most, beyond)

    def generators(self, params: PyTree) -> PyTree:
        """Vector fields of the continuous symmetries at `params`, stacked along a first axis.

        `f` does not change along any of them; each is affine in the parameters. Under `jit`,
        `vmap` and derivatives too.

        Args:
            params: parameters of the network.

        Returns:
            A pytree like `params` whose arrays have a leading axis of length `dimension`, in the
            order of `labels()`.

        Raises:
            NetworkError: when the parameters are not of this group's network.
        """
        leaves, rest = self.leaves(params)
        parts = self.split([jnp.asarray(leaf) for leaf in leaves])
        stacks = [
            jax.vmap(functools.partial(flow.field, parts))(typed(flow.basis, parts[0]))
            for flow in self.flows
        ]
        joined = [jnp.concatenate(part) for part in zip(*stacks, strict=True)] or [
            jnp.zeros((0, *part.shape), part.dtype) for part in parts
        ]
        shaped = [x.reshape(len(x), *shape) for x, shape in zip(joined, self.shapes, strict=True)]
        return self.rebuilt(shaped, rest)

    def labels(self) -> list[str]:
        """Names of the generators: `scaling of layer0, unit 3`."""
        return [label for flow in self.flows for label in flow.labels()]

    def leaves(self, params: PyTree, argument: str = "params") -> tuple[list[Any], PyTree]:
        """Arrays of parameters, and what of the pytree is none.

        Raises:
            NetworkError: when there are others than the group is of.
        """
        leaves, treedef, rest = arrays_of(params)
        shapes = tuple(np.shape(leaf) for leaf in leaves)
        if treedef != self.treedef or shapes != self.shapes:
            given = arrays_in_words(named(params)[0], shapes)
            raise NetworkError(
                f"`{argument}` has the arrays {given}; this group is of a network with "
                f"{arrays_in_words(self.names, self.shapes)}: call `symmetry` for the network that "
                "the parameters belong to."
            )
        return leaves, rest

    def rebuilt(self, leaves: Sequence[Any], rest: PyTree) -> PyTree:
        """The pytree of arrays, and of what was none."""
        arrays = jax.tree.unflatten(self.treedef, leaves)
        return jax.tree.map(
            lambda x, y: y if x is None else x, arrays, rest, is_leaf=lambda x: x is None
        )

    def split(self, leaves: Sequence[Any]) -> list[Any]:
        """The arrays with an axis for each factor."""
        return [x.reshape(factors) for x, factors in zip(leaves, self.factors, strict=True)]

    def __repr__(self) -> str:
        several = [units for units in self.units if units.size > 1]
        exchanges = " x ".join(f"S{units.size}" for units in several) or "no exchanges"
        every = [units.name for units in self.units]
        parts = [
            exchanges,
            _of_units("a sign", [u.name for u in self.units if u.signs], every),
            _of("a sign of all of", [u.name for u in self.units if u.together]),
            _of_units("a scaling", self._named("scaling", every), every),
            _of("scalings of", [f.name for f in self.flows if f.kind == "scaling" and not f.shape]),
            _of("mixtures of", self._named("mixing", every)),
            _of("rotations of", self._named("rotation", every)),
            _of("translations of", self._named("translation")),
        ]
        digits = self.log_order / math.log(10.0)
        count = f"{self.order:,}" if digits < 9 else f"10^{digits:.1f}"
        noun = "element" if count == "1" else "elements"
        size = f"{count} {noun}" + (f" and {self.dimension} dimensions" if self.flows else "")
        unknown = ", ".join(f"'{name}'" for name in self.unknown)
        less = f"; a subgroup, as {unknown} is not understood" if unknown else ""
        return f"{', '.join(filter(None, parts))}: {size}; proven to {self.defect:.0e}{less}"

    def _named(self, kind: str, among: Sequence[str] | None = None) -> list[str]:
        names = dict.fromkeys(flow.name for flow in self.flows if flow.kind == kind)
        return [name for name in names if among is None or name in among]


def _of(words: str, names: Sequence[str]) -> str:
    return f"{words} {' and '.join(names)}" if names else ""


def _of_units(words: str, names: Sequence[str], every: Sequence[str]) -> str:
    return f"{words} a unit" if names and [*names] == [*every] else _of(f"{words} a unit of", names)


@dataclass(frozen=True, eq=False)
class Element:
    """An element of a group: a map of parameters, called with them.

    Attributes:
        group: the group.
        orders: by set of units, the old places of the units in their new order.
        signs: by set of units, a sign for each of its changes of sign and each unit, turned before
            the exchange.
        together: likewise, of all units at once.
        amounts: by family, of continuous symmetries, which come first.
    """

    group: Group
    orders: tuple[np.ndarray, ...]
    signs: tuple[np.ndarray, ...]
    together: tuple[np.ndarray, ...]
    amounts: tuple[np.ndarray, ...] = ()

    def __call__(self, params: PyTree) -> PyTree:
        """The parameters that it takes `params` to.

        Raises:
            NetworkError: when they are not of the group's network.
        """
        leaves, rest = self.group.leaves(params)
        return self.group.rebuilt(self.of_leaves(leaves), rest)

    def of_leaves(self, leaves: Sequence[Any]) -> list[Any]:
        """Its values of arrays in the order of the pytree."""
        parts = self.group.split(leaves)
        for flow, amounts in zip(self.group.flows, self.amounts, strict=False):
            if np.any(amounts):
                parts = flow.moved(parts, typed(amounts, parts[0]))
        for number, units in enumerate(self.group.units):
            signs = self.member_signs(number)
            for (leaf, place), turned in zip(units.members, signs, strict=True):
                part = parts[leaf]
                if np.any(turned < 0.0):
                    shape = (*(1,) * place, -1, *(1,) * (part.ndim - place - 1))
                    part = part * turned.astype(part.dtype).reshape(shape)
                parts[leaf] = part[(*(slice(None),) * place, self.orders[number])]
        return [x.reshape(shape) for x, shape in zip(parts, self.group.shapes, strict=True)]

    def at(
        self, number: int, order: np.ndarray, signs: np.ndarray, together: np.ndarray
    ) -> "Element":
        """The same with other exchanges and signs of one set of units."""

        def put(values: tuple[np.ndarray, ...], new: np.ndarray) -> tuple[np.ndarray, ...]:
            return (*values[:number], new, *values[number + 1 :])

        parts = put(self.orders, order), put(self.signs, signs), put(self.together, together)
        return Element(self.group, *parts, self.amounts)

    def member_signs(self, number: int) -> list[np.ndarray]:
        """Signs of the units in each array that they are an axis of."""
        units = self.group.units[number]
        found = [np.ones(units.size) for _ in units.members]
        for turned, sign in (
            *zip(units.signs, self.signs[number], strict=True),
            *zip(units.together, self.together[number], strict=True),
        ):
            for member in turned:
                found[member] = found[member] * sign
        return found


def independent(sets: Iterable[Iterable[int]]) -> tuple[tuple[int, ...], ...]:
    """A basis of sets under symmetric difference, each with a least element that no other has."""
    basis: list[set[int]] = []
    for one in sets:
        left = set(one)
        for known in basis:
            if min(known) in left:
                left ^= known
        if left:
            basis = [known ^ left if min(left) in known else known for known in basis] + [left]
    return tuple(tuple(sorted(known)) for known in sorted(basis, key=min))


def arrays_in_words(names: Sequence[str], shapes: Sequence[tuple[int, ...]], lead: str = "") -> str:
    """Arrays by name and shape, for messages."""
    each = (f"{n}[{lead}{', '.join(map(str, s))}]" for n, s in zip(names, shapes, strict=True))
    return ", ".join(each) or "none"


def is_array(leaf: Any) -> bool:
    """Tell whether a leaf of a pytree is an array of parameters."""
    return isinstance(leaf, np.ndarray | jax.Array)


def arrays_of(params: PyTree) -> tuple[list[Any], Any, PyTree]:
    """The arrays of a pytree, their structure, and the pytree of what is none."""
    leaves, treedef = jax.tree.flatten(jax.tree.map(lambda x: x if is_array(x) else None, params))
    return leaves, treedef, jax.tree.map(lambda x: None if is_array(x) else x, params)


def named(params: PyTree) -> tuple[tuple[str, ...], list[Any]]:
    """Names and values of the arrays of a pytree."""
    arrays = jax.tree.map(lambda x: x if is_array(x) else None, params)
    found, _ = jax.tree_util.tree_flatten_with_path(arrays)
    keys = (jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in found)
    return tuple(key or "params" for key in keys), [leaf for _, leaf in found]
