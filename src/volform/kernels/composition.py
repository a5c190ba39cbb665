"""How layers are put together: one after the other, and side by side."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from volform.errors import NetworkError
from volform.kernels.layer import Layer, Place, State
from volform.kernels.linear import Identity


class Serial(Layer):
    """Layers one after the other; built by `serial`."""

    layers: tuple[Layer, ...]

    @property
    def has_weights(self) -> bool:
        """Whether one of the layers has."""
        return any(layer.has_weights for layer in self.layers)

    @property
    def is_centered(self) -> bool:
        """Whether the last layer that does something is."""
        acting = [layer for layer in self.layers if not isinstance(layer, Identity)]
        return bool(acting) and acting[-1].is_centered

    def propagate(self, state: State, place: Place) -> State:
        """Each layer's kernels from those of the layer before."""
        for layer, where in zip(self.layers, self._places(place), strict=True):
            state = layer.propagate(state, where)
        return state

    def draw(
        self, key: PRNGKeyArray, shape: tuple[int, ...], place: Place
    ) -> tuple[tuple[Any, ...], tuple[int, ...]]:
        """The layers' parameters in order."""
        params = []
        keys = jax.random.split(key, len(self.layers))
        for layer, where, own in zip(self.layers, self._places(place), keys, strict=True):
            drawn, shape = layer.draw(own, shape, where)
            params.append(drawn)
        return tuple(params), shape

    def forward(self, params: tuple[Any, ...], x: Float[Array, "n ..."], place: Place) -> Array:
        """Each layer applied to the outputs of the layer before."""
        for layer, own, where in zip(self.layers, params, self._places(place), strict=True):
            x = layer.forward(own, x, where)
        return x

    def _places(self, place: Place) -> list[Place]:
        weighted = [layer.has_weights for layer in self.layers]
        return [
            place._replace(
                is_first=place.is_first and not any(weighted[:i]),
                is_last=place.is_last and not any(weighted[i + 1 :]),
            )
            for i in range(len(self.layers))
        ]


class Summed(Layer):
    """The sum of the outputs of branches on the same inputs; built by `summed`."""

    branches: tuple[Layer, ...]

    @property
    def has_weights(self) -> bool:
        """Whether one of the branches has."""
        return any(branch.has_weights for branch in self.branches)

    @property
    def is_centered(self) -> bool:
        """Whether all branches are."""
        return all(branch.is_centered for branch in self.branches)

    def propagate(self, state: State, place: Place) -> State:
        """The sum of both kernels over the branches."""
        first, *rest = [branch.propagate(state, place) for branch in self.branches]
        for other in rest:
            _require_shape(first.shape, other.shape)
            first = State(
                first.moments.plus(other.moments),
                first.ntk + other.ntk,
                first.shape,
                first.is_gaussian and other.is_gaussian,
            )
        return first

    def draw(
        self, key: PRNGKeyArray, shape: tuple[int, ...], place: Place
    ) -> tuple[tuple[Any, ...], tuple[int, ...]]:
        """The branches' parameters in order."""
        keys = jax.random.split(key, len(self.branches))
        drawn = [b.draw(own, shape, place) for b, own in zip(self.branches, keys, strict=True)]
        for _, other in drawn:
            _require_shape(drawn[0][1], other)
        return tuple(params for params, _ in drawn), drawn[0][1]

    def forward(self, params: tuple[Any, ...], x: Float[Array, "n ..."], place: Place) -> Array:
        """The sum of the branches' outputs."""
        pairs = zip(self.branches, params, strict=True)
        return jnp.sum(jnp.stack([b.forward(own, x, place) for b, own in pairs]), 0)


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
    one of them end in a dense layer, which is checked.

    Raises:
        NetworkError: when one of them is no layer, there is none, or two of them do not end in a
            dense layer.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> net = k.serial(k.Dense(64), k.summed(k.Identity(), k.serial(k.Relu(), k.Dense(64))))
    >>> net.kernel(jnp.array([[1.0]])).nngp.tolist()
    [[1.5]]
    """
    branches = _require_layers(branches, "branches")
    loose = [branch for branch in branches if not branch.is_centered]
    if len(loose) > 1:
        raise NetworkError(
            f"`branches` {' and '.join(type(branch).__name__ for branch in loose)} of summed do "
            "not end in a dense layer, so that they are correlated and the kernels do not add; "
            "end all of them but one in `Dense(width)`."
        )
    return Summed(branches)


def _require_layers(layers: tuple[Any, ...], argument: str) -> tuple[Layer, ...]:
    wrong = [layer for layer in layers if not isinstance(layer, Layer)]
    if wrong or not layers:
        raise NetworkError(
            f"`{argument}` holds {wrong or 'nothing'}; each should be a layer such as `Dense(64)` "
            "or `Relu()`; a function becomes one as `Elementwise(jnp.tanh)`."
        )
    return layers


def _require_shape(first: tuple[int, ...], other: tuple[int, ...]) -> None:
    if first != other:
        raise NetworkError(
            f"`branches` of summed have outputs of shapes {first} and {other}; give their last "
            "dense layers the same width."
        )
