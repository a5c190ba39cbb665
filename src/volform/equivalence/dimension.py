"""The functional dimension of parameters: directions in which a function changes at all."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from volform.equivalence.on_inputs import OnInputs, function_on
from volform.errors import DataError, NetworkError
from volform.linalg import require_dense

CLEAR = 1000.0  # times the next largest step of the spectrum; relu networks have 1e9 and more
MOVED = 1e-6  # largest change of outputs along the orbit of a symmetry, relative to other changes


@dataclass(frozen=True, repr=False)
class FunctionalDimension:
    """The rank of the derivative of a function's outputs in its parameters, and its null space.

    Attributes:
        rank: directions of the parameters in which some output changes.
        parameters: number of parameters d.
        gap: smallest singular value that counts over the largest that does not; rounding stands
            in for zeros.
        is_clear: whether the gap is 1,000 times any other step of the spectrum. If not, the rank is
            that above `tolerance`, and another one at another tolerance: see `rank_above`.
        tolerance: singular values below it, relative to the largest, are rounding.
        singular_values: all d of them, descending.
        null_basis: orthonormal directions in which no output changes: the parameters' pytree with a
            leading axis of length `nullity`.
        by_group: dimension of the orbit of the group that was given; None without one.
    """

    rank: int
    parameters: int
    gap: float
    is_clear: bool
    tolerance: float
    singular_values: Float[np.ndarray, " d"]
    null_basis: Any
    by_group: int | None = None

    @property
    def nullity(self) -> int:
        """Dimension of the null space, `d - rank`."""
        return self.parameters - self.rank

    @property
    def hidden(self) -> int | None:
        """Null directions that the group does not explain; None without a group."""
        return None if self.by_group is None else self.nullity - self.by_group

    def rank_above(self, tolerance: float) -> int:
        """Number of singular values above `tolerance` times the largest."""
        return int(np.sum(self.singular_values > tolerance * self.singular_values[0]))

    def direction(self, number: int) -> Any:
        """One of the null directions, for `walk`."""
        return jax.tree.map(lambda leaf: leaf[number], self.null_basis)

    def __repr__(self) -> str:
        text = f"dimension {self.rank} of {self.parameters}"
        if self.nullity:
            text += f", {self.nullity} directions change nothing"
        if self.by_group is not None:
            text += f": {self.by_group} by the group, {self.hidden} hidden"
        if self.is_clear:
            return f"{text}; gap {self.gap:.0e}, clear"
        above = [t for t in (1e-3, 1e-6, 1e-9) if t > self.tolerance]
        ranks = ", ".join(f"{self.rank_above(t)} at {t:.0e}" for t in above)
        return (
            f"{text}; no gap in the spectrum: the rank is {self.rank} at a tolerance of "
            f"{self.tolerance:.0e}, {ranks}"
        )


def functional_dimension(
    f: Callable[[Any, Any], Any], params: Any, x: Any, *, group: Any = None
) -> FunctionalDimension:
    """Dimension of the functions that parameters near `params` give on x.

    The rank of J = d f(params, x) / d params is read off a *gap* in its singular values, since
    a threshold alone decides nothing: networks of ReLU units have a gap of nine decades, those of
    analytic activations none, and then the result says so. Where the rank is constant, the
    parameters with the same outputs are a surface of dimension `d - rank`.

    Args:
        f: function of parameters and inputs.
        params: pytree of floating-point arrays, d numbers.
        x: inputs, shape (n, ...), or a pytree of such; random ones tell more than data.
        group: a group of symmetries of f, whose `generators(params)` are its orbit's directions;
            what it does not explain is hidden symmetry at `params`.

    Returns:
        A `FunctionalDimension`: rank, gap, null basis.

    Raises:
        NetworkError: a function that is not deterministic, parameters that are no floats, a group
            that moves the outputs.
        DataError: no inputs, or too few to tell.
        SizeError: when a (d, d) matrix does not fit into memory.

    Cost: d derivatives of the outputs and a singular value decomposition, d^2 (m + d) for m
    outputs; memory d^2 and 64 MiB, as the rows are reduced by QR a block at a time.

    References:
        Grigsby, Lindsey, Meyerhoff & Wu (2022), Functional dimension of feedforward ReLU networks.

    >>> import jax.numpy as jnp
    >>> from volform import equivalence
    >>> x = jnp.linspace(-1.0, 1.0, 20)[:, None]
    >>> net = lambda p, x: jnp.maximum(x @ p["w"], 0.0) @ p["c"]
    >>> params = {"w": jnp.array([[1.0, -0.7]]), "c": jnp.array([0.8, -0.7])}
    >>> equivalence.functional_dimension(net, params, x)  # w and c of a unit only as a product
    dimension 2 of 4, 2 directions change nothing; gap 3e+15, clear
    """
    outputs = function_on(f, params, x, "functional_dimension")
    found, rows, _ = dimension_at(outputs)
    if group is None:
        return found
    tangents = np.asarray(jax.vmap(lambda t: ravel_pytree(t)[0])(group.generators(params)))
    if tangents.shape[1] != found.parameters:
        raise NetworkError(
            f"`group` has generators of {tangents.shape[1]} numbers, and `params` "
            f"{found.parameters}: it is the group of another network."
        )
    scales = found.singular_values[0] * np.linalg.norm(tangents, axis=1)
    changes = np.linalg.norm(tangents @ rows.T, axis=1) / np.maximum(scales, 1e-300)
    if np.max(changes, initial=0.0) > MOVED:
        raise NetworkError(
            f"`group` moves the outputs of `f` along its orbit, by {np.max(changes):.1e} of their "
            "largest change: it is no symmetry of `f` at `params`. Is it of another network?"
        )
    by_group = int(np.linalg.matrix_rank(tangents)) if len(tangents) else 0
    return dataclasses.replace(found, by_group=by_group)


def dimension_at(outputs: OnInputs) -> tuple[FunctionalDimension, np.ndarray, np.ndarray]:
    """The dimension, a matrix with the Gram matrix of the Jacobian, and right singular vectors.

    Raises:
        DataError: where the number of outputs bounds the rank.
    """
    d, m = outputs.point.size, outputs.target.size
    require_dense(d, d, outputs.point.dtype)
    parts = outputs.parts()
    rows = np.zeros((0, d), outputs.point.dtype)
    for part in parts:
        rows = np.concatenate([rows, np.asarray(part.jacobian(outputs.point))])
        rows = np.asarray(np.linalg.qr(rows, mode="r")) if len(rows) > d else rows
    _, values, vectors = np.linalg.svd(rows, full_matrices=True)
    seen = verdict(values, m, d)
    if seen.rank == m < d:
        raise DataError(
            f"`x` gives {m} outputs and `params` has {d} numbers; the rank is {m} too, which tells "
            f"of `x` and not of `f`. Give more inputs, for {d} outputs or more."
        )
    values = np.concatenate([values, np.zeros(d - len(values), values.dtype)])
    basis = jax.vmap(outputs.unravel)(jnp.asarray(vectors[seen.rank :]))
    found = FunctionalDimension(
        seen.rank, d, seen.gap, seen.is_clear, seen.tolerance, values, basis
    )
    return found, rows, vectors


class RankVerdict(NamedTuple):
    """Rank, gap, whether it is clear, and the tolerance below which all is rounding."""

    rank: int
    gap: float
    is_clear: bool
    tolerance: float


def verdict(values: Float[np.ndarray, " k"], m: int, d: int) -> RankVerdict:
    """The rank of an (m, d) matrix by the one step of its spectrum that dwarfs all others.

    Args:
        values: singular values, descending; those beyond them are zero.
        m: number of rows.
        d: number of columns.
    """
    eps = float(np.finfo(values.dtype).eps)
    tolerance = max(m, d) * eps
    if not values[0] > 0.0:
        return RankVerdict(0, np.inf, True, tolerance)
    floor = tolerance * values[0]
    floored = np.append(np.maximum(values, floor), floor)
    steps = floored[:-1] / floored[1:]
    largest = int(np.argmax(steps))
    runner_up = np.max(np.delete(steps, largest), initial=1.0)
    # What is dropped has to be rounding: small units of one parameter are no symmetry.
    is_rounding = largest + 1 == len(values) or values[largest + 1] <= floor
    is_clear = bool(is_rounding and steps[largest] > CLEAR * runner_up)
    rank = largest + 1 if is_clear else int(np.sum(values > floor))
    below = values[rank] if rank < len(values) else 0.0
    gap = float(values[rank - 1] / max(below, eps * values[0]))
    return RankVerdict(rank, gap, is_clear, tolerance)
