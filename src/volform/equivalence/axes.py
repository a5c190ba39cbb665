"""Axes of arrays as products of factors, and which of them are one: union-find."""

from typing import TypeAlias


class Factor:
    """A factor of an axis: a range of indices that run together in all arrays that share it.

    Attributes:
        size: number of indices.
        parts: major and minor factor, where a reshape split it.
        fixed: whether its indices have names, as inputs and outputs do.
    """

    __slots__ = ("_parent", "fixed", "parts", "size")

    def __init__(self, size: int, fixed: bool = False):
        self.size, self.fixed = size, fixed
        self.parts: tuple[Factor, Factor] | None = None
        self._parent: Factor | None = None

    @property
    def root(self) -> "Factor":
        """The factor that stands for all that were tied to this one."""
        found = self
        while found._parent is not None:
            found = found._parent
        return found

    def split(self, major: int) -> "tuple[Factor, Factor]":
        """Major and minor part, of a root that has none."""
        self.parts = Factor(major, self.fixed), Factor(self.size // major, self.fixed)
        return self.parts

    def join(self, other: "Factor") -> None:
        """Make another root of the same size one with this root."""
        other._parent = self
        self.fixed |= other.fixed


Axis: TypeAlias = tuple[Factor, ...]  # the major factor first; nothing for a length of one


def new_axis(size: int, fixed: bool = False) -> Axis:
    """An axis that is tied to nothing."""
    return () if size == 1 else (Factor(size, fixed),)


def new_axes(shape: tuple[int, ...], fixed: bool = False) -> tuple[Axis, ...]:
    """Axes of an array that are tied to nothing."""
    return tuple(new_axis(size, fixed) for size in shape)


def atoms(axis: Axis) -> list[Factor]:
    """The roots that an axis is the product of, none of them split."""
    found = []
    for factor in axis:
        root = factor.root
        found += [root] if root.parts is None else atoms(root.parts)
    return found


def fix(*axes: Axis) -> None:
    """Keep every index of the axes where it is."""
    for axis in axes:
        for factor in atoms(axis):
            factor.fixed = True


def tie(one: Axis, other: Axis) -> None:
    """Make two axes of one length the same; where their factors do not fit, they are fixed."""
    left, right = list(reversed(one)), list(reversed(other))
    while left and right:
        a, b = left.pop().root, right.pop().root
        if a is b:
            continue
        if a.parts or b.parts:
            left += (a,) if a.parts is None else a.parts[::-1]
            right += (b,) if b.parts is None else b.parts[::-1]
        elif a.size == b.size:
            a.join(b)
        elif max(a.size, b.size) % min(a.size, b.size):
            fix((a, b, *left), (*right,))
            return
        else:
            small, large = sorted((a, b), key=lambda factor: factor.size)
            large.split(small.size)
            left.append(a)
            right.append(b)
