"""Symmetries of a function: permutations from its program, all else and the proof by evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from volform.compilation import compiled
from volform.equivalence.algebra import flows_of
from volform.equivalence.group import Group, arrays_of, is_array, named
from volform.equivalence.signs import defects, group_of, rounding_of, with_signs
from volform.equivalence.tracing import traced
from volform.errors import NetworkError

_INPUTS = 16  # examples that a symmetry is proven on, at several points
_POINTS = 4  # at which signs are tried
_AT_ONCE = 8  # points evaluated by one call of one program


def symmetry(f: Callable[[Any, Any], Any], params: PyTree, x: Any) -> Group:
    """The symmetries of `f(params, x)` in its parameters: of any JAX function, found by tracing.

    Units that may be exchanged are read off the program: axes of arrays that run together in all
    of its operations, and are tied to no input and no output. Changes of sign, scalings (relu),
    translations (softmax) and mixtures of units (GL(n) between two linear maps, as queries and
    keys) are found by linear algebra and evaluation. All are proven by evaluation at random
    parameters on the scale of `params`, never at these: there a dead unit fakes symmetries.

    A primitive that is not understood keeps the axes that it touches where they are, and is named;
    what is found is then a subgroup.

    Args:
        f: a pure function from parameters and inputs to outputs, such as `net.apply`.
        params: any pytree with arrays of float32 or float64; gives shapes and scales.
        x: inputs, of which up to 16 examples are used; every output has its own place.

    Returns:
        The group: it acts on parameters, draws elements, and has generators.

    Raises:
        NetworkError: when `params` has integer arrays or none, `x` is empty, `f` is not the same
            function each time, reads values in Python, is not finite, or does not depend on its
            parameters at these inputs.

    >>> import jax, jax.numpy as jnp, volform as vf
    >>> from volform import equivalence as eq
    >>> net = vf.networks.MLP(widths=(4, 3))
    >>> eq.symmetry(net.apply, net.init(jax.random.key(0), inputs=2), jnp.ones((5, 2)))
    S4 x S3, a sign a unit: 18,432 elements; proven to ...
    """
    names, leaves = _checked(params)
    _, treedef, rest = arrays_of(params)

    def outputs(leaves: Sequence[Any], x: Any) -> Any:
        arrays = jax.tree.unflatten(treedef, leaves)
        whole = jax.tree.map(lambda a, b: b if a is None else a, arrays, rest, is_leaf=_is_none)
        return [out for out in jax.tree.leaves(f(whole, x)) if is_array(out)]

    few = _few(outputs, leaves, x)

    def flat(leaves: Sequence[Any]) -> Array:
        found = [jnp.ravel(out) for out in outputs(leaves, few)]
        return jnp.concatenate([out.astype(found[0].dtype) for out in found])

    factors, unknown = traced(_program(outputs, leaves, few), len(leaves))
    group = group_of(names, leaves, treedef, factors, unknown)
    probe = _Probe(flat, leaves)
    with jax.default_matmul_precision("highest"):
        points = [probe.random() for _ in range(_POINTS)]
        group = replace(group, flows=flows_of(group, factors, probe))
        group = with_signs(group, points, probe.values)
        return _proven(group, probe)


class _Probe:
    """Values and derivatives of a function at random parameters, by one small program.

    Args:
        flat: from arrays to a vector of outputs.
        leaves: arrays whose scale the random ones have.
    """

    def __init__(self, flat: Callable[[Sequence[Any]], Array], leaves: Sequence[Any]):
        self._generator = np.random.default_rng(1)
        self._scales = [_scale(np.asarray(leaf)) for leaf in leaves]
        self._like = [np.asarray(leaf) for leaf in leaves]

        def both(pair: tuple[list[Array], list[Array]]) -> tuple[Array, Array]:
            return jax.jvp(flat, (pair[0],), (pair[1],))

        self._program = compiled(lambda pairs: jax.lax.map(both, pairs))

    def random(self) -> list[np.ndarray]:
        """Random arrays; positive where all of the given ones are, as of scales and variances."""
        return [
            (_signed(like, self._generator.normal(size=like.shape)) * scale).astype(like.dtype)
            for like, scale in zip(self._like, self._scales, strict=True)
        ]

    @property
    def tolerance(self) -> float:
        """Relative change that is taken for rounding."""
        return rounding_of(self._like)

    def values(self, points: list[list[Any]]) -> np.ndarray:
        """Values at points, (points, m)."""
        still = [np.zeros_like(x) for x in self._like]
        return self._by_chunks([(at, still) for at in points], 0)

    def along(self, at: list[Any], moves: list[list[Any]]) -> np.ndarray:
        """Derivatives along moves, (moves, m)."""
        return self._by_chunks([(at, move) for move in moves], 1)

    def _by_chunks(self, pairs: list[tuple[list[Any], list[Any]]], which: int) -> np.ndarray:
        found = []
        for start in range(0, len(pairs), _AT_ONCE):
            chunk = pairs[start : start + _AT_ONCE]
            filled = chunk + [chunk[0]] * (_AT_ONCE - len(chunk))
            stacks = jax.tree.map(lambda *parts: np.stack(parts), *filled)
            found.append(np.asarray(self._program(stacks)[which])[: len(chunk)])
        result = np.concatenate(found)
        if not np.all(np.isfinite(result)):
            raise NetworkError(
                "`f` of symmetry is not finite at random parameters on the scale of `params`; give "
                "`params` at which it is finite on all sides, such as a draw from the prior."
            )
        return result


def _signed(like: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    if like.size and np.all(like > 0.0):
        return np.exp(0.3 * drawn)
    return drawn


def _scale(leaf: np.ndarray) -> float:
    """The size of an array's entries; of zeros what a network's weights have."""
    size = float(np.sqrt(np.mean(np.square(leaf)))) if leaf.size else 1.0
    usual = max(leaf.size, 1) ** (-0.25 if leaf.ndim > 1 else 0.0)
    return size if np.isfinite(size) and size > 1e-3 * usual else usual


def _proven(group: Group, probe: _Probe) -> Group:
    """The group with its defect; what does not pass is left out, set by set."""
    generator = np.random.default_rng(2)

    def defect(some: Group) -> float:
        found = []
        for _ in range(2):
            at = probe.random()
            before, after = probe.values([at, some.drawn(generator).of_leaves(at)])
            found.append(defects(after[None], before)[0])
        return float(max(found))

    found = defect(group)
    if found > probe.tolerance:

        def holds(some: Group) -> bool:
            return defect(some) <= probe.tolerance

        units = (u for u in group.units if holds(replace(group, units=(u,), flows=())))
        flows = (f for f in group.flows if holds(replace(group, units=(), flows=(f,))))
        group = replace(group, units=tuple(units), flows=tuple(flows))
        found = defect(group)
    return replace(group, defect=found)


def _checked(params: PyTree) -> tuple[tuple[str, ...], list[Any]]:
    names, leaves = named(params)
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        raise NetworkError(
            "`params` of symmetry holds traced arrays, as inside `jax.jit` or `jax.grad`; find the "
            "group outside, once, since it does not depend on the values."
        )
    if not leaves:
        raise NetworkError(
            f"`params` of symmetry is {params!r}, which holds no array; give a pytree of arrays, "
            "such as `net.init(key, inputs=3)`."
        )
    for name, leaf in zip(names, leaves, strict=True):
        if leaf.dtype not in (np.float32, np.float64):
            raise NetworkError(
                f"`{name}` in `params` of symmetry is of dtype {leaf.dtype}; parameters should be "
                "float32 or float64: close over what is none, `lambda params, x: f(params, n, x)`."
            )
    return names, leaves


def _few(outputs: Callable[[Any, Any], Any], leaves: list[Any], x: Any) -> Any:
    """The first examples, where the first axis of inputs and outputs is that of the examples."""
    if any(np.size(leaf) == 0 for leaf in jax.tree.leaves(x) if is_array(leaf)):
        raise NetworkError(
            f"`x` of symmetry has the shape {np.shape(x)}, without an entry; give a few inputs, "
            "such as the first rows of the data."
        )
    if not is_array(x) or np.ndim(x) == 0 or len(x) <= _INPUTS:
        return x
    try:
        whole, part = (jax.eval_shape(outputs, leaves, inputs) for inputs in (x, x[:_INPUTS]))
    except (TypeError, ValueError):  # of a function of one number of examples
        return x
    lengths = [np.shape(out)[:1] for out in (*whole, *part)]
    return x[:_INPUTS] if lengths == [(len(x),)] * len(whole) + [(_INPUTS,)] * len(part) else x


def _program(outputs: Callable[[Any, Any], Any], leaves: Sequence[Any], x: Any) -> Any:
    """The function's program, the same when it is traced again."""
    try:
        inputs, rest = eqx.partition(x, is_array)  # constants that are all alike would not be fixed
        first, again = (
            jax.make_jaxpr(lambda leaves, x: outputs(leaves, eqx.combine(x, rest)))(leaves, inputs)
            for _ in range(2)
        )
    except jax.errors.ConcretizationTypeError as error:
        raise NetworkError(
            "`f` of symmetry reads values of its arguments in Python, by `if`, `float()` or "
            "NumPy; use `jnp.where`, `jax.lax.cond` and `jax.numpy`."
        ) from error
    same = str(first) == str(again) and all(
        np.array_equal(a, b) for a, b in zip(first.consts, again.consts, strict=True)
    )
    if not any(jnp.issubdtype(aval.dtype, jnp.floating) for aval in first.out_avals):
        raise NetworkError(
            "`f` of symmetry returns no floating-point array; it should return the outputs of the "
            "network, such as `net.apply(params, x)`."
        )
    if not same:
        raise NetworkError(
            "`f` of symmetry is another function each time it is traced, by random numbers of "
            "NumPy or Python, or by something that it counts; pass what changes as an argument, "
            "and evaluate dropout and batch norm as at prediction."
        )
    return first


def _is_none(leaf: Any) -> bool:
    return leaf is None
