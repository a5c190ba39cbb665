"""Search for other parameters of the same function: Levenberg-Marquardt from many starts."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from volform.checks import require_key, require_positive, require_whole
from volform.compilation import steady
from volform.equivalence.dimension import dimension_at, verdict
from volform.equivalence.on_inputs import BLOCK, OnInputs, function_on
from volform.errors import ConvergenceError, NetworkError

ZERO = 1e10  # squares of rounding, as which a loss counts as zero: 1e-20 relative in float64
ALIKE = 1e-6  # relative distance of parameters that are one point


@dataclass(frozen=True, repr=False)
class Equivalents:
    """Parameters with the same outputs, the ones that most starts came to first.

    Attributes:
        params: the pytree with a leading axis, one entry for each distinct point.
        relative_loss: `mean |f - f*|^2 / mean |f*|^2` of each.
        dimension: of the surface of such parameters at each point, by the null space there.
        is_clear: whether that was read off a clear gap; at edges of surfaces it is not.
        copies: starts that came to the point, or to a copy of it by the group.
        starts: starts in all.
    """

    params: Any
    relative_loss: Float[np.ndarray, " k"]
    dimension: Int[np.ndarray, " k"]
    is_clear: Bool[np.ndarray, " k"]
    copies: Int[np.ndarray, " k"]
    starts: int

    def __len__(self) -> int:
        return len(self.copies)

    def __getitem__(self, number: int) -> Any:
        """Parameters of one point."""
        return jax.tree.map(lambda leaf: leaf[number], self.params)

    def __repr__(self) -> str:
        clear = Counter(self.dimension[self.is_clear].tolist())
        kinds = [f"{count} of dimension {dim}" for dim, count in sorted(clear.items())]
        if not np.all(self.is_clear):
            kinds.append(f"{np.sum(~self.is_clear)} without a clear gap")
        return (
            f"{self.copies.sum()} of {self.starts} starts came to the same function, at "
            f"{len(self)} distinct points: {', '.join(kinds)}\n"
            f"relative loss at most {self.relative_loss.max():.0e}"
        )


def search(
    f: Callable[[Any, Any], Any],
    params: Any,
    x: Any,
    *,
    key: PRNGKeyArray,
    starts: int = 200,
    spread: float = 1.0,
    steps: int = 60,
    group: Any = None,
) -> Equivalents:
    """Find parameters that give the same outputs on x, from random starts all at once.

    The relative loss `mean |f - f*|^2 / mean |f*|^2` is brought to rounding by Levenberg and
    Marquardt's method (optimistix); what ends elsewhere is left out, as it is no other parameter of
    the function but a local minimum. The share of the starts that succeed says nothing about f.

    Args:
        f: function of parameters and inputs.
        params: pytree of floating-point arrays.
        x: inputs, shape (n, ...), or a pytree of such.
        key: key of the starts.
        starts: number of starts, normal numbers of the size of each array in `params`.
        spread: factor of that size.
        steps: of each start, at most; ReLU units take 11 on the average, analytic ones hundreds.
        group: a group of symmetries, of whose copies `canonical(params)` is one; without it only
            points that are the same are removed.

    Returns:
        `Equivalents`: distinct points with loss, dimension and copies.

    Raises:
        NetworkError: a function that is not deterministic, parameters that are no floats.
        DataError: no inputs or too few to tell, a function that is zero on them.
        ConvergenceError: when no start came to the function.

    Cost: 200 starts of 4 parameters and 128 inputs take .07 s after 2 s of compilation.

    References:
        Lengyel et al. (2020), GENNI: visualising the geometry of equivalences for neural network
        identifiability, where each start is trained by gradient descent.

    >>> import jax, jax.numpy as jnp
    >>> from volform import equivalence
    >>> x = jnp.linspace(-1.0, 1.0, 20)[:, None]
    >>> net = lambda p, x: jnp.tanh(x @ p["w"]) @ p["c"]
    >>> params = {"w": jnp.array([[1.0]]), "c": jnp.array([0.8])}
    >>> found = equivalence.search(net, params, x, key=jax.random.key(0), starts=20)
    >>> sorted(found.params["c"].ravel().round(6).tolist())  # the unit, and both signs turned
    [-0.8, 0.8]
    """
    require_key(key, "key", "search", NetworkError)
    require_whole(starts, "starts", "search", NetworkError)
    require_whole(steps, "steps", "search", NetworkError)
    require_positive(spread, "spread", "a factor of the size of the starts")
    outputs = function_on(f, params, x, "search")
    outputs.require_outputs("search")
    dimension_at(outputs)  # which refuses too few inputs
    given = _starts(outputs, key, starts, spread)
    ends, losses, spectra = (np.asarray(part) for part in _ends(outputs, given, steps))
    limit = ZERO * outputs.target.size * np.finfo(ends.dtype).eps ** 2
    found = losses <= limit
    if not np.any(found):
        raise ConvergenceError(
            f"None of {starts} starts of `search` came to the function: the smallest relative loss "
            f"is {np.nanmin(losses):.1e}. Take more `steps` or `starts`, or another `spread`."
        )
    ends, losses, spectra = ends[found], losses[found], spectra[found]
    representatives = ends
    if group is not None:
        each = [group.canonical(outputs.unravel(jnp.asarray(end))) for end in ends]
        representatives = np.stack([ravel_pytree(params)[0] for params in each])
    firsts, copies = _distinct(representatives, float(np.median(np.abs(given))))
    d = ends.shape[1]
    seen = [verdict(values, outputs.target.size, d) for values in spectra[firsts]]
    return Equivalents(
        jax.vmap(outputs.unravel)(jnp.asarray(ends[firsts])),
        losses[firsts],
        np.array([d - each.rank for each in seen]),
        np.array([each.is_clear for each in seen]),
        copies,
        starts,
    )


def _starts(outputs: OnInputs, key: PRNGKeyArray, count: int, spread: float) -> Array:
    """Normal numbers as large as the arrays of the parameters, of size one where those are zero."""
    params = outputs.unravel(outputs.point)
    sizes = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.sqrt(jnp.mean(leaf**2))), params)
    size = ravel_pytree(sizes)[0]
    noise = jax.random.normal(key, (count, size.size), size.dtype)
    return spread * jnp.where(size > 0.0, size, 1.0)[None] * noise


@steady
def _ends(outputs: OnInputs, starts: Float[Array, "s d"], steps: int) -> tuple[Array, Array, Array]:
    import lineax as lx  # noqa: PLC0415
    import optimistix as optx  # noqa: PLC0415 - .1 s, which not every import should take

    # To rounding, which squares of the condition number do not spoil: each step is corrected by
    # the next. A QR decomposition of each Jacobian takes 2.5 times as long.
    method = optx.LevenbergMarquardt(1e-12, 1e-14, linear_solver=lx.Normal(lx.Cholesky()))

    def end(start: Float[Array, " d"]) -> tuple[Array, Array, Array]:
        found = optx.least_squares(
            lambda flat, _: outputs.change(flat), method, start, max_steps=steps, throw=False
        ).value
        values = jnp.linalg.svd(outputs.jacobian(found), compute_uv=False)
        return found, outputs.relative_loss(found), values

    batch = max(1, BLOCK // (starts.shape[1] * outputs.target.size))
    return jax.lax.map(end, starts, batch_size=min(batch, len(starts)))


def _distinct(points: Float[np.ndarray, "k d"], size: float) -> tuple[np.ndarray, np.ndarray]:
    """First of each group of equal points, and how many they are; the largest groups first.

    Equal relative to the largest number of a point, or to `size` where that is more: of a solution
    at zero only rounding is left.
    """
    firsts: list[int] = []
    copies: list[int] = []
    for number, point in enumerate(points):
        gaps = np.max(np.abs(points[firsts] - point), axis=1, initial=0.0)
        near = np.flatnonzero(gaps <= ALIKE * max(np.max(np.abs(point)), size))
        if near.size:
            copies[near[0]] += 1
        else:
            firsts.append(number)
            copies.append(1)
    order = np.argsort(copies, kind="stable")[::-1]
    return np.array(firsts)[order], np.array(copies)[order]
