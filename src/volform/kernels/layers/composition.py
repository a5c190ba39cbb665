"""Composition of layers: one after the other, and side by side."""

import abc
from collections.abc import Sequence
from functools import reduce
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from volform.errors import NetworkError
from volform.kernels.layers.conv import Identity
from volform.kernels.layers.layer import Composite, Layer
from volform.kernels.propagation.moments import Moments
from volform.kernels.propagation.state import KernelState, LayerContext, Pairs


class Serial(Composite):
    """Layers one after the other; built by `serial`."""

    layers: tuple[Layer, ...]

    @property
    def has_weights(self) -> bool:
        """Tell whether one of the layers has."""
        return any(layer.has_weights for layer in self.layers)

    @property
    def is_centered(self) -> bool:
        """Tell whether the last layer that does something is."""
        acting = [layer for layer in self.layers if not isinstance(layer, Identity)]
        return bool(acting) and acting[-1].is_centered

    def pairs_needed(self, pairs: Pairs) -> Pairs:
        """Pairs that the layers need of each other, from the last to the first."""
        return reduce(lambda behind, layer: layer.pairs_needed(behind), self.layers[::-1], pairs)

    def propagate(self, state: KernelState, place: LayerContext) -> KernelState:
        """Each layer's kernels from those of the layer before."""
        for layer, where in zip(self.layers, self.places(place), strict=True):
            state = layer.propagate_needed(state, where)
        return state

    def draw(
        self, key: PRNGKeyArray, shape: tuple[int, ...], place: LayerContext
    ) -> tuple[tuple[Any, ...], tuple[int, ...]]:
        """The layers' parameters in order."""
        params = []
        keys = jax.random.split(key, len(self.layers))
        for layer, where, own in zip(self.layers, self.places(place), keys, strict=True):
            drawn, shape = layer.draw(own, shape, where)
            params.append(drawn)
        return tuple(params), shape

    def forward(
        self, params: tuple[Any, ...], x: Float[Array, "n ..."], place: LayerContext
    ) -> Array:
        """Each layer applied to the outputs of the layer before."""
        for layer, own, where in zip(self.layers, params, self.places(place), strict=True):
            x = layer.forward(own, x, where)
        return x

    def places(self, place: LayerContext) -> list[LayerContext]:
        """Context of each layer, in a network that stands at `place`."""
        weighted = [layer.has_weights for layer in self.layers]
        return [
            LayerContext(
                place.parametrization,
                is_first=place.is_first and not any(weighted[:i]),
                is_last=place.is_last and not any(weighted[i + 1 :]),
                pairs=Serial(self.layers[i + 1 :]).pairs_needed(place.pairs),
            )
            for i in range(len(self.layers))
        ]


class Parallel(Composite):
    """Branches on the same inputs, whose outputs are put together."""

    branches: eqx.AbstractVar[tuple[Layer, ...]]

    @abc.abstractmethod
    def joined(self, states: list[KernelState]) -> KernelState:
        """The kernels of what is put together from outputs with these kernels."""

    @abc.abstractmethod
    def joined_shape(self, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
        """Its shape, for outputs of these shapes."""

    @abc.abstractmethod
    def joined_outputs(self, outputs: list[Array]) -> Array:
        """Outputs put together."""

    @property
    def has_weights(self) -> bool:
        """Tell whether one of the branches has."""
        return any(branch.has_weights for branch in self.branches)

    @property
    def is_centered(self) -> bool:
        """Tell whether all branches are."""
        return all(branch.is_centered for branch in self.branches)

    def pairs_needed(self, pairs: Pairs) -> Pairs:
        """Pairs that one of the branches needs."""
        return max(branch.pairs_needed(pairs) for branch in self.branches)

    def propagate(self, state: KernelState, place: LayerContext) -> KernelState:
        """Those of the branches, put together."""
        states = [branch.propagate_needed(state, place) for branch in self.branches]
        shape = self.joined_shape([state.shape for state in states])
        return self.joined(states).replace(shape=shape)

    def draw(
        self, key: PRNGKeyArray, shape: tuple[int, ...], place: LayerContext
    ) -> tuple[tuple[Any, ...], tuple[int, ...]]:
        """The branches' parameters in order."""
        keys = jax.random.split(key, len(self.branches))
        drawn = [b.draw(own, shape, place) for b, own in zip(self.branches, keys, strict=True)]
        return tuple(params for params, _ in drawn), self.joined_shape([own for _, own in drawn])

    def forward(
        self, params: tuple[Any, ...], x: Float[Array, "n ..."], place: LayerContext
    ) -> Array:
        """The branches' outputs, put together."""
        pairs = zip(self.branches, params, strict=True)
        outputs = [branch.forward(own, x, place) for branch, own in pairs]
        self.joined_shape([output.shape[1:] for output in outputs])
        return self.joined_outputs(outputs)


class Summed(Parallel):
    """The sum of the outputs of branches on the same inputs; built by `summed`."""

    branches: tuple[Layer, ...]

    def joined(self, states: list[KernelState]) -> KernelState:
        """The sum of both kernels over the branches."""
        moments = _together(states, Moments.plus)
        is_gaussian = all(state.is_gaussian for state in states)
        ntk = sum((state.ntk for state in states[1:]), states[0].ntk)
        return moments.replace(ntk=ntk, is_gaussian=is_gaussian)

    def joined_shape(self, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
        """The one of all branches."""
        return _common(shapes, "summed")

    def joined_outputs(self, outputs: list[Array]) -> Array:
        """Their sum."""
        return jnp.sum(jnp.stack(outputs), 0)


class Concatenated(Parallel):
    """The outputs of branches side by side, as channels; built by `concatenated`."""

    branches: tuple[Layer, ...]

    def joined(self, states: list[KernelState]) -> KernelState:
        """Means of both kernels, weighted by the branches' widths."""
        widths = [state.shape[-1] for state in states]
        scaled = []
        for state, width in zip(states, widths, strict=True):
            part = width / sum(widths)
            own = state.map(lambda moments, part=part: moments.times(part))
            scaled.append(own.replace(ntk=part * state.ntk))
        # Products of two channels add up in a mean as those of uncorrelated units do in a sum.
        return Summed(self.branches).joined(scaled).replace(is_gaussian=False)

    def joined_shape(self, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
        """The channels of all branches."""
        pixels = _common([shape[:-1] for shape in shapes], "concatenated")
        return (*pixels, sum(shape[-1] for shape in shapes))

    def joined_outputs(self, outputs: list[Array]) -> Array:
        """All of them along the last axis."""
        return jnp.concatenate(outputs, -1)


class Multiplied(Parallel):
    """The product of the outputs of branches on the same inputs; built by `multiplied`."""

    branches: tuple[Layer, ...]

    def joined(self, states: list[KernelState]) -> KernelState:
        """The product of the covariances; of neural tangent kernels by the product rule."""
        total = states[0]
        for state in states[1:]:
            ntk = total.ntk * state.moments.cross + total.moments.cross * state.ntk
            total = _together([total, state], Moments.product).replace(ntk=ntk)
        return total.replace(is_gaussian=total.is_gaussian and len(states) == 1)

    def joined_shape(self, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
        """The one of all branches."""
        return _common(shapes, "multiplied")

    def joined_outputs(self, outputs: list[Array]) -> Array:
        """Their product."""
        return jnp.prod(jnp.stack(outputs), 0)


def serial(*layers: Layer) -> Serial:
    """Layers one after the other.

    Raises:
        NetworkError: when one of them is no layer, or there is none.

    >>> from volform import kernels as k
    >>> net = k.serial(k.Dense(512, w_std=1.4, b_std=0.2), k.Relu(), k.Dense(1))
    """
    return Serial(_require_layers(layers, "layers"))


def summed(*branches: Layer) -> Summed:
    """The sum of the outputs of branches, each applied to the same inputs.

    A residual block is `summed(Identity(), serial(Relu(), Dense(512)))`. The kernels of a sum are
    the sums of the kernels if the branches are uncorrelated under the prior; that is so if all but
    one of them end in a dense layer (or in one that has weights as well), which is checked.

    Raises:
        NetworkError: when one of them is no layer, there is none, or two of them do not end in a
            dense layer.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> net = k.serial(k.Dense(64), k.summed(k.Identity(), k.serial(k.Relu(), k.Dense(64))))
    >>> net.kernel(jnp.array([[1.0]])).nngp.tolist()
    [[1.5]]
    """
    return Summed(_require_unrelated(branches, "summed", "correlated and the kernels do not add"))


def concatenated(*branches: Layer) -> Concatenated:
    """The outputs of branches side by side, as channels, each applied to the same inputs.

    Both kernels are the means over the branches, weighted by their widths, whose ratio stays in the
    limit. Branches may be related. A dense or convolutional layer has to follow.

    Raises:
        NetworkError: when one of them is no layer, or there is none.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> net = k.serial(k.concatenated(k.Dense(16, 2.0), k.Dense(48)), k.Dense(1))
    >>> net.kernel(jnp.array([[1.0]])).nngp.tolist()
    [[1.75]]
    """
    return Concatenated(_require_layers(branches, "branches"))


def multiplied(*branches: Layer) -> Multiplied:
    """The product of the outputs of branches, unit by unit, each applied to the same inputs.

    With the kernels (K, T) and (K', T') of two branches: `(K K', T K' + K T')`. That takes branches
    that are independent under the prior; it is so if all but one of them end in a dense layer (or
    in one that has weights as well), which is checked. A gated layer is
    `multiplied(Dense(512), serial(Dense(512), Erf()))`. A dense or convolutional layer has to
    follow.

    Raises:
        NetworkError: when one of them is no layer, there is none, or two of them do not end in a
            dense layer.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> net = k.serial(k.multiplied(k.Dense(64, 2.0), k.Dense(64, 3.0)), k.Dense(1))
    >>> net.kernel(jnp.array([[1.0]])).nngp.tolist()
    [[36.0]]
    """
    why = "related and the kernels do not multiply"
    return Multiplied(_require_unrelated(branches, "multiplied", why))


def _together(states: list[KernelState], join: Any) -> KernelState:
    """The first state, with the moments of all of them joined."""
    every = [(state.moments, *state.self_moments) for state in states]
    moments, *within = [reduce(join, parts) for parts in zip(*every, strict=True)]
    return states[0].replace(moments=moments, self_moments=tuple(within))


def _require_layers(layers: tuple[Any, ...], argument: str) -> tuple[Layer, ...]:
    wrong = [layer for layer in layers if not isinstance(layer, Layer)]
    if wrong or not layers:
        raise NetworkError(
            f"`{argument}` holds {wrong or 'nothing'}; each should be a layer such as `Dense(64)` "
            "or `Relu()`; a function becomes one as `Elementwise(jnp.tanh)`."
        )
    return layers


def _require_unrelated(branches: tuple[Any, ...], name: str, why: str) -> tuple[Layer, ...]:
    branches = _require_layers(branches, "branches")
    loose = [branch for branch in branches if not branch.is_centered]
    if len(loose) > 1:
        raise NetworkError(
            f"`branches` {' and '.join(type(branch).__name__ for branch in loose)} of {name} do "
            f"not end in a dense layer, so that they are {why}; end all of them but one in "
            "`Dense(width)`."
        )
    return branches


def _common(shapes: Sequence[tuple[int, ...]], name: str) -> tuple[int, ...]:
    different = [shape for shape in shapes if shape != shapes[0]]
    if different:
        raise NetworkError(
            f"`branches` of {name} have outputs of shapes {shapes[0]} and {different[0]}; give "
            "them the same pixels, and their last dense layers the same width."
        )
    return shapes[0]
