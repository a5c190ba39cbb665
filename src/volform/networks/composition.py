"""Composition of layers: one after the other, and side by side."""

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from volform.errors import NetworkError
from volform.networks.layer import Composite, Identity, Layer, Place


class Serial(Composite):
    """Layers one after the other; built by `serial`."""

    layers: tuple[Layer, ...]

    def __check_init__(self) -> None:
        late = [layer for layer in self.layers[1:] if layer.takes_tokens]
        if late:
            raise NetworkError(
                f"`layers` has {type(late[0]).__name__} behind {type(self.layers[0]).__name__}; it "
                "takes integers, which no layer returns: let it be the first one."
            )

    @property
    def takes_tokens(self) -> bool:
        """Tell whether the inputs of the first layer are integers."""
        return bool(self.layers) and self.layers[0].takes_tokens

    @property
    def has_weights(self) -> bool:
        """Tell whether one of the layers has."""
        return any(layer.has_weights for layer in self.layers)

    @property
    def is_centered(self) -> bool:
        """Tell whether the last layer that does something is."""
        acting = [layer for layer in self.layers if not isinstance(layer, Identity)]
        return bool(acting) and acting[-1].is_centered

    def require_examples(self, x: Any, argument: str) -> Array:
        """`x` as an array of examples that the first layer takes.

        Raises:
            DataError: when it holds others.
        """
        return self.layers[0].require_examples(x, argument)

    def forward(self, params: tuple[Any, ...], x: Float[Array, "n ..."], place: Place) -> Array:
        """Each layer applied to the outputs of the layer before."""
        for layer, own, where in self.steps(params, place):
            x = layer.forward(own, x, where)
        return x

    def parameters(
        self, shape: tuple[int, ...], place: Place
    ) -> tuple[tuple[Any, ...], tuple[int, ...]]:
        """The layers' parameters in order."""
        found = []
        for layer, where in zip(self.layers, self.places(place), strict=True):
            own, shape = layer.parameters(shape, where)
            found.append(own)
        return tuple(found), shape

    def steps(self, params: tuple[Any, ...], place: Place) -> list[tuple[Layer, Any, Place]]:
        """Layers one after the other, their parameters and places.

        Raises:
            NetworkError: when parameters are not one entry for each layer.
        """
        _require_parts(params, len(self.layers))
        return list(zip(self.layers, params, self.places(place), strict=True))

    def places(self, place: Place) -> list[Place]:
        """Place of each layer, in a network that stands at `place`."""
        weighted = [layer.has_weights for layer in self.layers]
        return [
            place._replace(
                is_first=place.is_first and not any(weighted[:i]),
                is_last=place.is_last and not any(weighted[i + 1 :]),
            )
            for i in range(len(self.layers))
        ]


class Parallel(Composite):
    """Branches on the same inputs, whose outputs are put together."""

    branches: eqx.AbstractVar[tuple[Layer, ...]]

    @abc.abstractmethod
    def joined_shape(self, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
        """Its shape, for outputs of these shapes."""

    @abc.abstractmethod
    def joined_outputs(self, outputs: list[Array]) -> Array:
        """Outputs put together."""

    @property
    def takes_tokens(self) -> bool:
        """Tell whether the inputs of one of the branches are integers."""
        return any(branch.takes_tokens for branch in self.branches)

    @property
    def has_weights(self) -> bool:
        """Tell whether one of the branches has."""
        return any(branch.has_weights for branch in self.branches)

    @property
    def is_centered(self) -> bool:
        """Tell whether all branches are."""
        return all(branch.is_centered for branch in self.branches)

    def require_examples(self, x: Any, argument: str) -> Array:
        """`x` as an array of examples that all branches take.

        Raises:
            DataError: when it holds others.
        """
        return [branch.require_examples(x, argument) for branch in self.branches][-1]

    def parameters(
        self, shape: tuple[int, ...], place: Place
    ) -> tuple[tuple[Any, ...], tuple[int, ...]]:
        """The branches' parameters in order."""
        each = [branch.parameters(shape, place) for branch in self.branches]
        return tuple(own for own, _ in each), self.joined_shape([out for _, out in each])

    def forward(self, params: tuple[Any, ...], x: Float[Array, "n ..."], place: Place) -> Array:
        """The branches' outputs, put together."""
        _require_parts(params, len(self.branches))
        pairs = zip(self.branches, params, strict=True)
        outputs = [branch.forward(own, x, place) for branch, own in pairs]
        self.joined_shape([output.shape[1:] for output in outputs])
        return self.joined_outputs(outputs)


class Summed(Parallel):
    """The sum of the outputs of branches on the same inputs; built by `summed`."""

    branches: tuple[Layer, ...]

    def joined_shape(self, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
        """The one of all branches."""
        return _common(shapes, "summed")

    def joined_outputs(self, outputs: list[Array]) -> Array:
        """Their sum."""
        return jnp.sum(jnp.stack(outputs), 0)


class Concatenated(Parallel):
    """The outputs of branches side by side, as channels; built by `concatenated`."""

    branches: tuple[Layer, ...]

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

    >>> from volform import networks as nn
    >>> net = nn.serial(nn.Dense(512, w_std=1.4, b_std=0.2), nn.Relu(), nn.Dense(1))
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
    >>> from volform import kernels as k, networks as nn
    >>> net = nn.serial(nn.Dense(64), nn.summed(nn.Identity(), nn.serial(nn.Relu(), nn.Dense(64))))
    >>> k.kernel(net, jnp.array([[1.0]])).nngp.tolist()
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
    >>> from volform import kernels as k, networks as nn
    >>> net = nn.serial(nn.concatenated(nn.Dense(16, 2.0), nn.Dense(48)), nn.Dense(1))
    >>> k.kernel(net, jnp.array([[1.0]])).nngp.tolist()
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
    >>> from volform import kernels as k, networks as nn
    >>> net = nn.serial(nn.multiplied(nn.Dense(64, 2.0), nn.Dense(64, 3.0)), nn.Dense(1))
    >>> k.kernel(net, jnp.array([[1.0]])).nngp.tolist()
    [[36.0]]
    """
    why = "related and the kernels do not multiply"
    return Multiplied(_require_unrelated(branches, "multiplied", why))


def residual(*layers: Layer) -> Summed:
    """The inputs, plus what layers one after the other make of them.

    `summed(Identity(), serial(*layers))`; the last layer has as many units as the inputs.

    Raises:
        NetworkError: when one of them is no layer, or there is none.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> net = nn.serial(nn.Dense(64), nn.residual(nn.Relu(), nn.Dense(64)))
    >>> k.kernel(net, jnp.array([[1.0]])).nngp.tolist()
    [[1.5]]
    """
    return summed(Identity(), serial(*layers))


def _require_parts(params: Any, count: int) -> None:
    if not isinstance(params, tuple | list) or len(params) != count:
        size = f" of {len(params)}" if isinstance(params, tuple | list | dict) else ""
        raise NetworkError(
            f"`params` is a {type(params).__name__}{size}; it should be a tuple of {count} parts, "
            "one for each layer, as `init` returns them."
        )


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
