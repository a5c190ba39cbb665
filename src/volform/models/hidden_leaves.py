"""Functions and metrics inside the pytrees of NumPyro's distributions and transforms."""

from typing import Any

import equinox as eqx
import jax


class HiddenLeaves(eqx.Module):
    """A pytree whose leaves that are no arrays, such as functions, are part of its structure.

    Two of them are of one program under `jit` where their functions are the same.

    Attributes:
        arrays: the leaves that are arrays, None in place of others.
        others: the others, and the structure.
    """

    arrays: tuple[Any, ...]
    others: Any = eqx.field(static=True)

    @classmethod
    def of(cls, tree: Any) -> "HiddenLeaves":
        """That of a pytree."""
        leaves, treedef = jax.tree.flatten(tree)
        arrays = tuple(leaf if eqx.is_array(leaf) else None for leaf in leaves)
        others = tuple(None if eqx.is_array(leaf) else leaf for leaf in leaves)
        return cls(arrays, (others, treedef))

    def shown(self) -> Any:
        """The pytree."""
        others, treedef = self.others
        pairs = zip(self.arrays, others, strict=True)
        leaves = [other if array is None else array for array, other in pairs]
        return jax.tree.unflatten(treedef, leaves)
