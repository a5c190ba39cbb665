"""Continuous symmetries: affine vector fields on the parameters, and their flows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

_SERIES = 40  # terms of the exponential of a field; amounts are of order one
Kind: TypeAlias = Literal["scaling", "mixing", "rotation", "translation"]
_LETTERS = "abcdefghijklmnopqrstuvwxy"


class FieldTerm(NamedTuple):
    """One array's part of an affine vector field, linear in the amounts t.

    Attributes:
        kind: `scale` multiplies by t, `shift` adds t, `mix` multiplies by the matrix t along the
            last place, `unmix` by its transpose, `carry` adds another array times t, summed along
            the last place.
        leaf: number of the array.
        places: factors that t runs along, of the array or, of `carry`, of the other one.
        source: number of the other array.
    """

    kind: Literal["scale", "shift", "mix", "unmix", "carry"]
    leaf: int
    places: tuple[int, ...] = ()
    source: int = -1

    def of(self, leaves: Sequence[Any], amounts: Any) -> Any:
        """Its values; arrays of NumPy give one of NumPy."""
        value = leaves[self.source if self.kind == "carry" else self.leaf]
        of_numpy = isinstance(value, np.ndarray | np.generic) and isinstance(amounts, np.ndarray)
        xp: Any = np if of_numpy else jnp
        own = _LETTERS[: value.ndim]
        along = "".join(own[place] for place in self.places)
        match self.kind:
            case "scale":
                return xp.einsum(f"{own},{along}->{own}", value, amounts)
            case "shift":
                return xp.einsum(f"{own},{along}->{own}", xp.ones_like(value), amounts)
            case "carry":
                return xp.einsum(f"{own},{along}->{own.replace(along[-1], '')}", value, amounts)
        pair = f"z{along[-1]}" if self.kind == "mix" else f"{along[-1]}z"
        result = own.replace(along[-1], "z")
        return xp.einsum(f"{own},{along[:-1]}{pair}->{result}", value, amounts)


@dataclass(frozen=True)
class FlowFamily:
    """A family of continuous symmetries, one for each entry of the amounts.

    Attributes:
        name: its units or arrays.
        kind: `scaling` (of each unit), `mixing` or `rotation` (of pairs of units i < j), or
            `translation`.
        shape: of the amounts; of pairs two axes of units, of which the upper triangle counts.
        terms: parts of the vector field.
        weights: their coefficients.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    terms: tuple[FieldTerm, ...]
    weights: tuple[float, ...]

    @property
    def used(self) -> tuple[FieldTerm, ...]:
        """The terms that have a part in it."""
        return tuple(t for t, weight in zip(self.terms, self.weights, strict=True) if weight)

    def field(self, leaves: Sequence[Any], amounts: Any, linear: bool = False) -> list[Any]:
        """The vector field at arrays in factors; without its constant part if `linear`."""
        found: list[Any] = [0.0 * leaf for leaf in leaves]
        for term, weight in zip(self.terms, self.weights, strict=True):
            if weight and not (linear and term.kind == "shift"):
                found[term.leaf] = found[term.leaf] + weight * term.of(leaves, amounts)
        return found

    def moved(self, leaves: Sequence[Any], amounts: Any) -> list[Any]:
        """The arrays at time one of the flow: the exponential series of an affine field."""
        step = self.field(leaves, amounts)
        found = [leaf + change for leaf, change in zip(leaves, step, strict=True)]
        for order in range(2, _SERIES):
            step = [change / order for change in self.field(step, amounts, linear=True)]
            found = [leaf + change for leaf, change in zip(found, step, strict=True)]
        return found

    @property
    def basis(self) -> np.ndarray:
        """Amounts of each generator, (count, *shape)."""
        if not self._is_of_pairs:
            size = math.prod(self.shape)
            return np.eye(size).reshape(size, *self.shape)
        *blocks, units, _ = self.shape
        pairs = np.argwhere(np.triu(np.ones((units, units)), 1))
        found = np.zeros((math.prod(blocks), len(pairs), math.prod(blocks), units, units))
        for block in range(len(found)):
            for number, (i, j) in enumerate(pairs):
                found[block, number, block, i, j] = 1.0
        return found.reshape(-1, *self.shape)

    @property
    def count(self) -> int:
        """Number of generators."""
        if not self._is_of_pairs:
            return math.prod(self.shape)
        return math.prod(self.shape[:-2]) * math.comb(self.shape[-1], 2)

    def labels(self) -> list[str]:
        """A name for each generator, units counted from 0."""
        if not self.shape:
            return [f"{self.kind} of {self.name}"]
        # Of the two families of GL(n) the second is led by the transpose.
        index = [np.argwhere(t)[0] for t in self.basis]
        order = [*range(len(self.shape))]
        if self.used[0].kind == "unmix":
            order[-2:] = order[:-3:-1]
        return [f"{self.kind} of {self.name}, unit {', '.join(map(str, i[order]))}" for i in index]

    @property
    def _is_of_pairs(self) -> bool:
        return self.kind in ("mixing", "rotation")

    def amounts(self, random: np.random.Generator) -> np.ndarray:
        """Amounts of a random element near the identity."""
        drawn = 0.3 * random.normal(size=self.shape)
        if self._is_of_pairs:
            return np.triu(drawn, 1) / math.sqrt(self.shape[-1])
        return drawn


def typed(amounts: np.ndarray, like: Array | np.ndarray) -> Any:
    """Amounts in the dtype of the arrays."""
    return amounts.astype(like.dtype)
