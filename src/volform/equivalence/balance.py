"""Balanced parameters, of least prior energy, and metrics of the functions alone."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from volform.equivalence.assignment import unit_lengths
from volform.equivalence.flows import FlowFamily
from volform.equivalence.group import Group
from volform.equivalence.isometries import is_isometry
from volform.errors import MetricError, NetworkError
from volform.geometry.metric import Metric

_SWEEPS = 1000  # over the scalings; of a network of one layer the first is exact
_BALANCED = 1e-14  # change of the energy, relative, at which the sweeps end


class Balanced(NamedTuple):
    """Parameters of least prior energy with the same function.

    Attributes:
        params: the parameters.
        energy: `1/2 sum (w / deviation)^2`.
        before: the energy of the parameters that were given.
    """

    params: PyTree
    energy: float
    before: float


def balance(group: Group, params: PyTree, deviations: Any = 1.0) -> Balanced:
    """The parameters of least prior energy among all scalings of units, in closed form.

    A ReLU unit with squared weights S_in before and S_out behind it, in prior standard deviations,
    computes the same with `alpha w_in, w_out / alpha`; the prior `1/2 (alpha^2 S_in + S_out /
    alpha^2)` is least at `alpha^4 = S_out / S_in`, where it is `sqrt(S_in S_out)`. At every mode of
    a posterior with Gaussian priors units are balanced, so that one step improves any other point.
    Units of several layers are balanced in turns, to the one minimum.

    Args:
        group: symmetries of the network, with scalings.
        params: its parameters.
        deviations: standard deviations of the prior: a number, or a pytree of numbers or arrays.

    Raises:
        NetworkError: when the parameters are not of this group's network, or it has no scalings.
        DataError: when `deviations` do not fit.

    >>> import jax.numpy as jnp, volform as vf
    >>> from volform import equivalence as eq
    >>> params = {"a": jnp.array(4.0), "c": jnp.array(1.0)}
    >>> group = eq.symmetry(lambda p, x: p["a"] * p["c"] * x, params, jnp.ones(3))
    >>> found = eq.balance(group, params)
    >>> found.params["a"].round(6).item(), found.before, round(found.energy, 6)
    (2.0, 8.5, 4.0)
    """
    leaves, rest = group.leaves(params)
    scales = unit_lengths(group, deviations, leaves)
    parts = group.split([np.asarray(leaf, float) for leaf in leaves])
    units = [np.broadcast_to(s, shape).reshape(part.shape) if np.ndim(s) else s
             for s, shape, part in zip(scales, group.shapes, parts, strict=True)]  # fmt: skip
    flows = [f for f in group.flows if all(t.kind == "scale" for t in f.used)]
    flows = [f for f in flows if len({w for w in f.weights if w}) == 2]
    if not flows:
        raise NetworkError(
            f"`group` of balance, {group!r}, has no scalings of one part against another: its "
            "function changes with the size of every unit, as behind tanh."
        )
    before = last = energy = _energy(parts, units)
    for _ in range(_SWEEPS):
        for flow in flows:
            amounts = _amounts(flow, parts, units)
            for term, weight in zip(flow.terms, flow.weights, strict=True):
                if weight:
                    parts[term.leaf] = term.of(parts, np.exp(weight * amounts))
        energy = _energy(parts, units)
        if energy >= last * (1.0 - _BALANCED):
            break
        last = energy
    moved = [
        part.reshape(shape).astype(leaf.dtype)
        for part, shape, leaf in zip(parts, group.shapes, leaves, strict=True)
    ]
    return Balanced(group.rebuilt([jnp.asarray(x) for x in moved], rest), energy, before)


def _energy(parts: Sequence[np.ndarray], units: Sequence[Any]) -> float:
    return 0.5 * math.fsum(float(np.sum((x / s) ** 2)) for x, s in zip(parts, units, strict=True))


def _amounts(flow: FlowFamily, parts: Sequence[np.ndarray], units: Sequence[Any]) -> np.ndarray:
    """Amounts t of least `sum S_p exp(2 p t) + S_q exp(2 q t)`; none where a sum vanishes."""
    high, low = (f({w for w in flow.weights if w}) for f in (max, min))
    sums = {high: np.zeros(flow.shape), low: np.zeros(flow.shape)}
    for term, weight in zip(flow.terms, flow.weights, strict=True):
        if weight:
            square = (parts[term.leaf] / units[term.leaf]) ** 2
            others = tuple(axis for axis in range(square.ndim) if axis not in term.places)
            order = np.argsort(np.argsort(term.places))
            sums[weight] = sums[weight] + square.sum(others).transpose(order)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(-low * sums[low] / (high * sums[high])) / (2.0 * (high - low))
    return np.where(np.isfinite(found), found, 0.0)


def quotient(
    metric: Metric, group: Group, invariants: Callable[[PyTree], Array], params: PyTree
) -> Float[Array, "m m"]:
    """The metric of what the group leaves open: `(J G^-1 J^T)^-1`, J = d invariants / d params.

    Of all vectors that change the invariants alike the shortest counts, that has no part along the
    orbit. It is a metric of the functions only if it is the same at all copies: the metric of the
    parameters has to be invariant, which is checked.

    Args:
        metric: a metric on the parameters, invariant under the group.
        group: symmetries of the function.
        invariants: a map of parameters whose values are coordinates of the functions, m of them.
        params: where.

    Raises:
        MetricError: when the metric is not invariant: names the symmetry and the change.
        NetworkError: when the parameters are not of this group's network, or the group changes the
            invariants.

    >>> import jax.numpy as jnp, volform as vf
    >>> from volform import equivalence as eq
    >>> params = {"a": jnp.array(4.0), "c": jnp.array(0.2)}
    >>> group = eq.symmetry(lambda p, x: p["a"] * p["c"] * x, params, jnp.ones(3))
    >>> scale_free = vf.geometry.DiagonalField(lambda a, c: {"a": a**-2, "c": c**-2})
    >>> eq.quotient(scale_free, group, lambda p: p["a"] * p["c"], params).round(6).tolist()
    [[0.78125]]
    """
    verdict = is_isometry(metric, group, params)
    if not verdict.holds:
        raise MetricError(
            f"`metric` of quotient, {metric!r}, changes by {verdict.defect:.2g} under the "
            f"{verdict.worst}, so that it says different things of copies of one function; take "
            "one that is invariant, as the pull-back of a metric on the outputs."
        )
    flat, unravel = ravel_pytree(params)

    def values(u: Array) -> Array:
        return ravel_pytree(invariants(unravel(u)))[0]

    here = values(flat)
    there = values(ravel_pytree(group.drawn(np.random.default_rng(8))(params))[0])
    if not np.allclose(here, there, rtol=1e-6, atol=1e-6 * float(jnp.max(jnp.abs(here)))):
        raise NetworkError(
            "`invariants` of quotient change under the group; they should be functions of the "
            "network's outputs, such as products of weights along the paths."
        )
    jacobian = jax.jacobian(values)(flat)
    return jnp.linalg.inv(jacobian @ jnp.linalg.solve(metric(params).as_matrix(), jacobian.T))
