"""Walks among parameters of the same function: continuation along the surface that they form."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.checks import require_positive
from volform.compilation import steady
from volform.equivalence.dimension import dimension_at
from volform.equivalence.on_inputs import OnInputs, flat_params, function_on
from volform.errors import NetworkError

CORRECTORS = 4  # Gauss-Newton steps after each step along the tangent
ALONG = 1e-6  # share of the direction that has to lie in the null space
LEFT = 1e6  # squares of rounding, above which the walk has left the surface


@dataclass(frozen=True, repr=False)
class Walk:
    """A curve of parameters with the same outputs.

    Attributes:
        params: the pytree with a leading axis, from the start on.
        relative_loss: `mean |f - f*|^2 / mean |f*|^2` at each point.
        length: of the curve, in the Euclidean distance of all parameters.
        asked: the length that was asked for.
    """

    params: Any
    relative_loss: Float[np.ndarray, " n"]
    length: float
    asked: float

    @property
    def is_complete(self) -> bool:
        """Tell whether the walk is as long as it was asked to be."""
        return self.length > 0.99 * self.asked

    def __repr__(self) -> str:
        text = f"walk of length {self.length:.3g}"
        if not self.is_complete:
            text += f" of {self.asked:.3g}: the surface ends there, or changes its dimension"
        return f"{text}; relative loss at most {self.relative_loss.max():.0e}"


def walk(
    f: Callable[[Any, Any], Any],
    params: Any,
    x: Any,
    direction: Any,
    *,
    length: float,
    step: float = 0.02,
) -> Walk:
    """Walk along the parameters with the same outputs on x, as straight as their surface allows.

    Each step goes along the last direction, projected on the null space of the Jacobian, and is
    brought back by four steps of Gauss and Newton, so that the outputs stay as they are to
    rounding; a step along the tangent alone drifts off as its square.

    Args:
        f: function of parameters and inputs.
        params: pytree of floating-point arrays; the start.
        x: inputs, shape (n, ...), or a pytree of such.
        direction: pytree like `params`; its part in the null space is taken, such as
            `functional_dimension(f, params, x).direction(0)`.
        length: of the walk.
        step: length of a step; as small as the surface is curved.

    Returns:
        A `Walk`, shorter than asked where the surface ends.

    Raises:
        NetworkError: a direction that changes the outputs, or of another shape than `params`.
        DataError: no inputs or too few to tell, a function that is zero on them.

    Cost: five Jacobians and singular value decompositions a step.

    >>> import jax.numpy as jnp
    >>> from volform import equivalence
    >>> x = jnp.linspace(-1.0, 1.0, 20)
    >>> product = lambda p, x: p["a"] * p["b"] * x
    >>> start = {"a": jnp.array(1.0), "b": jnp.array(1.0)}
    >>> away = {"a": jnp.array(1.0), "b": jnp.array(-1.0)}
    >>> found = equivalence.walk(product, start, x, away, length=2.0)
    >>> bool(jnp.allclose(found.params["a"] * found.params["b"], 1.0, atol=1e-14))
    True
    """
    require_positive(length, "length", "of the walk")
    require_positive(step, "step", "shorter than the length")
    outputs = function_on(f, params, x, "walk")
    outputs.require_outputs("walk")
    toward, _ = flat_params(direction, "direction", "walk")
    if jax.tree.structure(direction) != jax.tree.structure(params) or toward.shape != (
        outputs.point.shape
    ):
        raise NetworkError(
            f"`direction` has {toward.size} numbers in {jax.tree.structure(direction)}; it should "
            "be a pytree like `params`, such as `functional_dimension(...).direction(0)`."
        )
    found, _, vectors = dimension_at(outputs)
    toward = toward.astype(outputs.point.dtype)
    inside = vectors[found.rank :].T @ (vectors[found.rank :] @ np.asarray(toward))
    if not np.linalg.norm(inside) > ALONG * np.linalg.norm(toward) > 0.0:
        raise NetworkError(
            "`direction` of walk has no part in the null space: every step along it changes the "
            f"outputs. {found}"
        )
    count = max(1, round(length / step))
    points, losses = _walked(outputs, jnp.asarray(inside), found.rank, count, length / count)
    points, losses = np.asarray(points), np.asarray(losses)
    limit = LEFT * outputs.target.size * np.finfo(points.dtype).eps ** 2
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    is_out = ~(losses <= limit)
    is_out[1:] |= ~((steps > 0.5 * length / count) & (steps < 2.0 * length / count))
    kept = int(np.argmax(is_out)) if is_out.any() else len(points)
    return Walk(
        jax.vmap(outputs.unravel)(jnp.asarray(points[:kept])),
        losses[:kept],
        float(steps[: kept - 1].sum()),
        float(length),
    )


@steady
def _walked(
    outputs: OnInputs, toward: Float[Array, " d"], rank: int, count: int, step: float
) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
    def split(flat: Float[Array, " d"]) -> tuple[Array, Array, Array]:
        left, values, right = jnp.linalg.svd(outputs.jacobian(flat), full_matrices=False)
        return left[:, :rank], values[:rank], right[:rank]

    def correct(flat: Float[Array, " d"], _: None) -> tuple[Array, None]:
        left, values, right = split(flat)
        return flat - right.T @ ((left.T @ (outputs(flat) - outputs.target)) / values), None

    def advance(carry: tuple[Array, Array], _: None) -> tuple[Any, Array]:
        flat, toward = carry
        right = split(flat)[2]
        toward = toward - right.T @ (right @ toward)
        toward = toward / jnp.linalg.norm(toward)
        moved, _ = jax.lax.scan(correct, flat + step * toward, None, CORRECTORS)
        return (moved, toward), moved

    start = outputs.point
    _, points = jax.lax.scan(advance, (start, toward), None, count)
    points = jnp.concatenate([start[None], points])
    return points, jax.lax.map(outputs.relative_loss, points)
