"""Data spread over devices, of one process or of several."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from volform.errors import DataError
from volform.operators.per_example import count_of


def sharded(data: PyTree, devices: Sequence[Any] | None = None) -> PyTree:
    """Data with an equal share of the examples on each device.

    What is computed from such data runs on all of the devices at once, with the same answers to
    rounding: operators and their functionals, and posteriors conditioned on them. Chunks of
    `chunk=` take from every device.

    With `jax.distributed.initialize(...)` the devices are those of all processes: each process
    calls this with the same data, and then runs the same program.

    Args:
        data: a pytree of arrays with one example along each leading axis, such as (x, y).
        devices: all that JAX knows, `jax.devices()`, if left out.

    Returns:
        The same pytree, of arrays that are sharded along the leading axis.

    Raises:
        DataError: when the number of examples is no multiple of the number of devices, arrays are
            of unequal length or none, or there is no device.

    >>> import jax.numpy as jnp, volform as vf
    >>> x, y = vf.operators.sharded((jnp.ones((4, 2)), jnp.zeros(4)))
    >>> x.shape
    (4, 2)
    """
    used = list(jax.devices() if devices is None else devices)
    if not used or not all(isinstance(device, jax.Device) for device in used):
        raise DataError(
            f"`devices` of sharded is {devices!r}; it should be a list of at least one device, "
            "such as `jax.devices()`."
        )
    _require_examples(data)
    count = count_of(data)
    if count % len(used):
        raise DataError(
            f"`data` has {count} examples for {len(used)} devices; each should get the same "
            f"number. Leave {count % len(used)} out, or give fewer `devices`."
        )
    sharding = NamedSharding(Mesh(np.array(used), ("examples",)), PartitionSpec("examples"))

    def placed(leaf: Any) -> jax.Array:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(placed, data)


def _require_examples(data: PyTree) -> None:
    """Check that all leaves are arrays of numbers with one leading axis of equal length."""
    leaves = [x if hasattr(x, "dtype") else np.asarray(x) for x in jax.tree.leaves(data)]
    if not leaves:
        raise DataError(
            f"`data` of sharded is {data!r}, which holds no array; give arrays with one example "
            "along each leading axis."
        )
    for leaf in leaves:
        if leaf.ndim == 0 or not (leaf.dtype == bool or jnp.issubdtype(leaf.dtype, np.number)):
            raise DataError(
                f"`data` of sharded holds a leaf of shape {leaf.shape} and dtype {leaf.dtype}; "
                "each should be an array of numbers with one example along its leading axis. Keep "
                "settings and scalars out of it."
            )
    lengths = sorted({len(leaf) for leaf in leaves})
    if len(lengths) > 1:
        raise DataError(
            f"`data` of sharded holds arrays of {', '.join(map(str, lengths))} examples; all "
            "should have the same number."
        )
