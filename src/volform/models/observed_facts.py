"""Facts of observed data: their digest, and how many of them a mask or a power changes."""

import hashlib
import math
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
        self._rows, self._rest = 0, None
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
        if not np.all(used):
            event = value.shape[value.ndim - events :]
            value, powers = (array[used].reshape(-1, *event) for array in (value, powers))
        self._rows += value.shape[0] if value.ndim else 1
        self._rest = value.shape[1:] if value.ndim else None
        for digest, array in ((self._values, value), (self._weights, powers)):
            digest.update(_bytes_of(array))

    @property
    def shape(self) -> tuple[int, ...]:
        """That of all values that enter the density, without axes of length one."""
        whole = () if self._rest is None else (self._rows, *self._rest)
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


class ObservedFacts:
    """Facts of all observed sites of data that come in batches.

    Args:
        names: the observed sites.
    """

    def __init__(self, names: tuple[str, ...]):
        self.names, self.batches, self.rows = names, 0, 0
        self.sites: dict[str, SiteFacts] = {}

    def add(self, name: str, *parts: Any) -> None:
        """Adds the data of a site in one batch, as `SiteFacts.add`."""
        self.sites.setdefault(name, SiteFacts()).add(*parts)

    def end_batch(self, rows: int) -> None:
        """Counts the batch."""
        self.batches, self.rows = self.batches + 1, self.rows + rows

    def in_words(self) -> str:
        """The number of the batches and of the examples."""
        return f"data in {self.batches:,} batches, {self.rows:,} examples"


def _bytes_of(array: np.ndarray) -> bytes:
    return (np.ascontiguousarray(array, dtype=float) + 0.0).tobytes()  # which makes 0.0 of -0.0
