"""Facts of observed data: their digest, and how many of them a mask or a power changes."""

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

Fingerprint = tuple[tuple[int, ...], str]


class SiteFacts:
    """Facts of the data of one site, which may come in parts along the first axis.

    Attributes:
        size: how many values there are.
        hidden: how many of them a mask leaves out.
        powers: the least and the largest power of a density, by `handlers.scale`.
    """

    def __init__(self) -> None:
        self.size = self.hidden = 0
        self.powers = (math.inf, -math.inf)
        self._rows, self._rest, self._event = 0, None, ()
        self._values, self._weights = hashlib.sha256(), hashlib.sha256()

    def add(self, value: np.ndarray, used: np.ndarray, powers: np.ndarray, events: int = 0) -> None:
        """Adds the next part.

        Args:
            value: the data.
            used: which of them enter the density, of their shape.
            powers: of the densities, of their shape.
            events: number of the axes of a single datum.
        """
        self.size += used.size
        self.hidden += int(used.size - np.sum(used))
        low, high = self.powers
        self.powers = (
            min(low, np.min(powers, initial=math.inf)),
            max(high, np.max(powers, initial=-math.inf)),
        )
        self._rows += value.shape[0] if value.ndim else 1
        self._rest = value.shape[1:] if value.ndim else None
        self._event = value.shape[value.ndim - events :]
        for digest, array in ((self._values, value), (self._weights, powers)):
            digest.update(_bytes_of(array if np.all(used) else array[used]))

    @property
    def shape(self) -> tuple[int, ...]:
        """That of all values that enter the density, without axes of length one."""
        whole = () if self._rest is None else (self._rows, *self._rest)
        if self.hidden:
            whole = ((self.size - self.hidden) // max(1, math.prod(self._event)), *self._event)
        return tuple(length for length in whole if length != 1)

    @property
    def has_powers(self) -> bool:
        """Tell whether a power is another than one."""
        return self.size > 0 and self.powers != (1.0, 1.0)

    @property
    def fingerprint(self) -> Fingerprint:
        """Shape and digest: (n,) and (n, 1) numbers are the same data."""
        own = self._values.hexdigest()[:16]
        return self.shape, f"{own}^{self._weights.hexdigest()[:16]}" if self.has_powers else own

    @property
    def powers_in_words(self) -> str:
        """The range of the powers."""
        low, high = self.powers
        return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


class RowDigest:
    """A digest of rows of arrays that does not depend on the order of the rows.

    The sum of one number for each row, modulo 2^64; those of arrays of one length are of their rows
    side by side.

    Attributes:
        rows: their number, of the longest array.
    """

    def __init__(self) -> None:
        self.rows, self._total = 0, 0

    def add(self, arrays: Iterable[Any]) -> None:
        """Adds the rows of some arrays."""
        sums: dict[int, np.ndarray] = {}
        for number, array in enumerate(arrays):
            words = _words_of(np.atleast_1d(np.asarray(array)))
            odd = np.random.default_rng(number).integers(
                2**63, size=words.shape[1], dtype=np.uint64
            )
            own = (words * (2 * odd + 1)).sum(1, dtype=np.uint64)
            sums[len(own)] = sums.get(len(own), np.uint64(0)) + own
        for each in sums.values():  # mixed, so that the sum of rows is no sum of their entries
            for shift in (30, 27, 31):
                each ^= each >> np.uint64(shift)
                each *= np.uint64(0xBF58476D1CE4E5B9)
            self._total = (self._total + int(each.sum(dtype=np.uint64))) % 2**64
        self.rows += max(sums, default=0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowDigest) and str(self) == str(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]  (rows are added)

    def __str__(self) -> str:
        return f"{self.rows}:{self._total:016x}"


def _words_of(array: np.ndarray) -> np.ndarray:
    """The bytes of each row as whole numbers of eight of them."""
    rows = np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)
    filled = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8)))
    return np.ascontiguousarray(filled).view(np.uint64)


def _bytes_of(array: np.ndarray) -> bytes:
    return (np.ascontiguousarray(array, dtype=float) + 0.0).tobytes()  # which makes 0.0 of -0.0
