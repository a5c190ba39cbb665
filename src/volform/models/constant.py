"""Values that are constants of a program: compared by identity, whatever they hold."""

from typing import Any


class ById:
    """Hashes an object by identity, so that it can be static under `jit`."""

    is_eager = False

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and self.value is other.value


class Eager(ById):
    """Arguments whose functions are computed while the model is traced, operation by operation."""

    is_eager = True
