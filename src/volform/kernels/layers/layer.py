"""Layers of infinitely wide networks: functions, draws from the prior, and kernels at once."""

import abc
import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from volform.checks import require_key
from volform.compilation import STEADY, Compiled
from volform.errors import NetworkError
from volform.kernels.checks import require_inputs, require_pair
from volform.kernels.propagation.inputs import Examples
from volform.kernels.propagation.sizes import cut, filled, floats_as_arrays
from volform.kernels.propagation.state import (
    KernelState,
    LayerContext,
    Pairs,
    in_pairs,
    of_examples,
)
from volform.kernels.propagation.tiles import Spread, matrices, require_tile, spread_of
from volform.networks.parametrization import NTP, Parametrization, require_parametrization

_FEW = 2**14  # pairs, of which a gradient may keep what all layers give


class Kernel(NamedTuple):
    """The two kernels of an infinitely wide network.

    Attributes:
        nngp: covariance of an output under the prior, `E[f(x1) f(x2)]`, shape (n1, n2).
        ntk: neural tangent kernel `E[df(x1) G^-1 df(x2)]` of an output, with G the flat metric of
            the parametrization's coordinates, shape (n1, n2).
    """

    nngp: Float[Array, "n1 n2"]
    ntk: Float[Array, "n1 n2"]


class Layer(eqx.Module):
    """A layer, or a network of layers: `init`, `apply` and `kernel`.

    The kernels are those of the limit of infinite width under the prior of the parametrization;
    the layers' own widths are used by `init` and `apply`, and where the parametrization has no
    limit.
    """

    @property
    @abc.abstractmethod
    def has_weights(self) -> bool:
        """Tell whether it has parameters."""

    @property
    @abc.abstractmethod
    def is_centered(self) -> bool:
        """Tell whether outputs have zero mean given anything outside: a dense layer comes last."""

    @abc.abstractmethod
    def pairs_needed(self, pairs: Pairs) -> Pairs:
        """The pairs of pixels of its inputs on which these ones of its outputs depend."""

    @abc.abstractmethod
    def propagate(self, state: KernelState, place: LayerContext) -> KernelState:
        """The kernels of its outputs, from those of its inputs."""

    @abc.abstractmethod
    def draw(
        self, key: PRNGKeyArray, shape: tuple[int, ...], place: LayerContext
    ) -> tuple[Any, tuple[int, ...]]:
        """Parameters from the prior for examples of this shape, and the outputs' shape."""

    @abc.abstractmethod
    def forward(self, params: Any, x: Float[Array, "n ..."], place: LayerContext) -> Array:
        """Outputs for a batch of examples."""

    def propagate_needed(self, state: KernelState, place: LayerContext) -> KernelState:
        """`propagate`, of no more pairs of pixels than the layers from here on look at."""
        seen = state.restricted(self.pairs_needed(place.pairs))
        if isinstance(self, Composite):
            return self.propagate(seen, place).restricted(place.pairs)
        return _propagated(*_split(self, place), seen).restricted(place.pairs)

    def kernel(
        self,
        x1: Float[Array, "n1 ..."],
        x2: Float[Array, "n2 ..."] | None = None,
        *,
        parametrization: Parametrization | None = None,
        widths: Sequence[int] | None = None,
        tile: int | None = None,
    ) -> Kernel:
        """NNGP and neural tangent kernels of an output, to leading order in the width.

        A dense layer takes `(K, T)` to `(w_std^2 K + b_std^2, K' + w_std^2 T)` with K' its own
        NNGP in `NTP`; an activation f takes it to `(E[f(u) f(v)], T E[f'(u) f'(v)])`, (u, v)
        centered Gaussian with covariance K. The inputs' K is `x1 . x2 / features`. Of images, K and
        T are those of pairs of pixels, and `x1 . x2 / channels` to begin with.

        Under `NTP` both are limits, in which widths do not occur. Under `SP` the NNGP is the same,
        and the neural tangent kernel is the leading order at the layers' own widths, with which it
        grows. Under `MuP` the NNGP is of order 1 / width. The inputs count as given numbers: a
        parametrization looks at their number of features.

        Cost O(n1 n2 (features + layers)), half of it if x1 = x2. Memory is that of the result and
        of one tile. Images of P pixels take P times as much, and P^2 times in front of layers that
        look at all pairs (`GlobalAvgPool`). Where x1 is `volform.operators.sharded`, each device
        computes the rows of its examples, and holds them. Differentiable in
        inputs, `w_std` and `b_std`; where two inputs coincide the neural tangent kernel of a kinked
        activation has a kink, and the derivative given is the mean of both sides.

        Args:
            x1: examples, shape (n1, features), or images, (n1, height, width, channels).
            x2: examples, of shape (n2, ...); x1 if left out, and then the kernels are symmetric
                to the last bit.
            parametrization: `NTP()` if left out.
            widths: numbers of units of the hidden layers, in place of their own; they matter where
                the parametrization makes them.
            tile: examples of each list that are worked on at once; by default few enough for the
                cache. The result does not depend on it but for rounding.

        Returns:
            Both kernels, of shape (n1, n2).

        Raises:
            DataError: when inputs are empty, not finite, of integers or of the wrong shape.
            KernelError: when `tile` is no positive whole number.
            NetworkError: when an activation gets values that are not Gaussian, a layer gets inputs
                of another shape than it takes, `widths` are not one for each hidden layer, or the
                network ends in images.

        References:
            Lee et al. (2018), Deep neural networks as Gaussian processes; Jacot, Gabriel & Hongler
            (2018), Neural tangent kernel; Sohl-Dickstein et al. (2020).

        >>> import jax.numpy as jnp
        >>> from volform import kernels as k
        >>> net = k.serial(k.Dense(64), k.Relu(), k.Dense(1))
        >>> net.kernel(jnp.array([[3.0, 4.0]])).nngp.tolist()
        [[6.25]]
        """
        is_same = x2 is None or x2 is x1
        x1 = require_inputs(x1, "x1")
        x2 = x1 if x2 is None else require_inputs(x2, "x2")
        require_pair(x1, x2)
        net, place = self if widths is None else _with_widths(self, widths), whole(parametrization)
        side = require_tile(tile, net.pairs_of_pixels(x1, place))
        # To a program two arguments are two lists, and both would be prepared.
        lists = filled((x1,) if is_same else (x1, x2), side, net, place)
        found = _kernel(floats_as_arrays(net), place, lists, side, spread_of(x1))
        return Kernel(*(cut(part, len(x1), len(x2)) for part in found))

    def side(self, x: Float[Array, "n ..."]) -> int:
        """Examples along each side of a tile."""
        return require_tile(None, self.pairs_of_pixels(x, whole(None)))

    def in_pairs(
        self, x1: Float[Array, "n1 ..."], x2: Float[Array, "n2 ..."], place: LayerContext
    ) -> tuple[Examples, Examples]:
        """Two lists of examples of which `block` takes parts."""
        return in_pairs(x1, x2, self.pairs_needed(place.pairs))

    def block(self, x1: Examples, x2: Examples, place: LayerContext, *, is_same: Any) -> Kernel:
        """Both kernels, all entries at once; `is_same` may be traced where n1 = n2."""
        state = of_examples(x1, x2, self.pairs_needed(place.pairs), is_same=is_same)
        end = self.propagate_needed(state, place)
        if end.has_pixels:
            raise NetworkError(
                f"`net` ends in images of shape {end.shape}, which have a kernel for each pair of "
                "pixels; end it in `Flatten()` or `GlobalAvgPool()`, and a `Dense(width)`."
            )
        kernel = Kernel(end.moments.cross, end.ntk)
        if isinstance(is_same, bool) and is_same:
            return Kernel(*((part + part.T) / 2 for part in kernel))
        return kernel

    def pairs_of_pixels(self, x: Float[Array, "n ..."], place: LayerContext) -> int:
        """Entries of the first layer's kernels for one pair of examples."""
        pixels = math.prod(x.shape[1:-1])
        return 1 if pixels == 1 else pixels ** int(self.pairs_needed(place.pairs))

    def init(
        self,
        key: PRNGKeyArray,
        shape: tuple[int, ...],
        *,
        parametrization: Parametrization | None = None,
    ) -> Any:
        """Parameters drawn from the prior.

        Args:
            key: a random key.
            shape: shape of a batch of inputs, (n, features); n is not used.
            parametrization: `NTP()` if left out.

        Returns:
            A tuple with one entry for each layer: of a dense layer a dict with "w" of shape
            (width, fan_in) and, unless `b_std` is None, "b" of shape (width,).

        >>> import jax
        >>> from volform import kernels as k
        >>> k.Dense(3, b_std=1.0).init(jax.random.key(0), (1, 2))["w"].shape
        (3, 2)
        """
        require_key(key, "key", "init", NetworkError)
        return self.draw(key, tuple(shape[1:]), whole(parametrization))[0]

    def apply(
        self,
        params: Any,
        x: Float[Array, "n ..."],
        *,
        parametrization: Parametrization | None = None,
    ) -> Array:
        """The network's function, at finite width.

        Args:
            params: as `init` returns them.
            x: examples, shape (n, features).
            parametrization: `NTP()` if left out; that of `init`.

        Returns:
            Outputs, shape (n, width of the last layer).
        """
        return self.forward(params, require_inputs(x, "x"), whole(parametrization))


class Composite(Layer):
    """A layer that is made of layers."""


class Wide(Layer):
    """A layer with a number of units of its own."""

    width: eqx.AbstractVar[int]


class Weightless(Layer):
    """A layer without parameters, whose outputs are not said to have zero mean."""

    @property
    def has_weights(self) -> bool:
        """It has none."""
        return False

    @property
    def is_centered(self) -> bool:
        """Outputs have a mean, or depend on other layers' units: end a branch in a dense layer."""
        return False

    def draw(
        self, key: PRNGKeyArray, shape: tuple[int, ...], place: LayerContext
    ) -> tuple[tuple[()], tuple[int, ...]]:
        """Nothing."""
        return (), self.shape_of(shape)

    @abc.abstractmethod
    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of its output for an example of this shape."""


class Pointwise(Weightless):
    """A layer that treats each pixel by itself, and keeps the shape."""

    def pairs_needed(self, pairs: Pairs) -> Pairs:
        """The same pairs, and pixels rather than means."""
        return max(pairs, Pairs.EQUAL)

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The same."""
        return shape


# Like layers are traced once, however deep the network; and their numbers are traced, so that
# another w_std is not compiled anew.
@partial(jax.jit, static_argnums=1)
def _propagated(
    traced: tuple[Layer, LayerContext], rest: tuple[Layer, LayerContext], state: KernelState
) -> KernelState:
    layer, place = eqx.combine(traced, rest)
    return layer.propagate(state, place)


def _with_widths(net: Layer, widths: Sequence[int]) -> Layer:
    layers, structure = jax.tree.flatten(net, is_leaf=lambda layer: isinstance(layer, Wide))
    wide = [index for index, layer in enumerate(layers) if isinstance(layer, Wide)]
    if not isinstance(widths, Sequence) or len(widths) != len(wide) - 1:
        raise NetworkError(
            f"`widths` is {widths}, while the network has {len(wide) - 1} hidden layers; it "
            "should hold a number of units for each, and none for the last layer."
        )
    for index, width in zip(wide, widths, strict=False):
        layers[index] = dataclasses.replace(layers[index], width=width)
    return jax.tree.unflatten(structure, layers)


@partial(Compiled, options=STEADY)
def _kernel(
    net: Layer,
    place: LayerContext,
    lists: Sequence[Array],
    tile: int,
    spread: Spread | None,
) -> Kernel:
    is_same, x1, x2 = len(lists) == 1, lists[0], lists[-1]
    if spread is None and max(len(x1), len(x2)) <= tile and len(x1) * len(x2) <= _FEW:
        return net.block(x1, x2, place, is_same=is_same)

    def block(rows: Examples, columns: Examples, is_same: Any) -> Kernel:
        return net.block(rows, columns, place, is_same=is_same)

    return matrices(block, *net.in_pairs(x1, x2, place), tile, is_same=is_same, spread=spread)


def _split(
    layer: Layer, place: LayerContext
) -> tuple[tuple[Layer, LayerContext], tuple[Layer, LayerContext]]:
    """Parts that are traced, and parts that a program is compiled for."""
    traced, rest = eqx.partition(layer, _is_number)
    own, where = eqx.partition(place, _is_array)
    return (traced, own), (rest, where)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, float) or _is_array(leaf)


def whole(parametrization: Parametrization | None) -> LayerContext:
    """The place of a network that is no part of another; `NTP()` if nothing is said."""
    chosen = NTP() if parametrization is None else parametrization
    require_parametrization(chosen, "parametrization")
    return LayerContext(chosen, is_first=True, is_last=True, pairs=Pairs.NONE)
