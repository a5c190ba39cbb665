"""Dense layers, and how layers are put together."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from volform.errors import NetworkError
from volform.geometry import Fans
from volform.kernels.checking import require_positive
from volform.kernels.layer import Layer, Place, State
from volform.kernels.moments import constant


class Dense(Layer):
    """Every unit sees every input, `z = m w x + m' b`, multipliers and priors of the place.

    With `W = m w`: `K' = fan_in Var(W) K + Var(m' b)`, and
    `T' = fan_in Var(W) T + m^2 fan_in K + m'^2`.

    Args:
        width: number of units.
        w_std: standard deviation of `W sqrt(fan_in)`; a number or a traced value.
        b_std: standard deviation of the biases; no biases if None.

    Raises:
        NetworkError: when the width is no positive integer, `w_std` is not positive or `b_std`
            negative.
    """

    width: int = eqx.field(static=True)
    w_std: Any = 1.0
    b_std: Any = None

    def __check_init__(self) -> None:
        if not isinstance(self.width, int) or self.width < 1:
            raise NetworkError(
                f"`width` of Dense is {self.width!r}; it should be a positive integer, the number "
                "of units (of outputs in the last layer)."
            )
        require_positive(self.w_std, "w_std", "the standard deviation of weights times sqrt(n)")
        if self.b_std is not None and not _is_zero(self.b_std):
            require_positive(self.b_std, "b_std", "or None for a layer without biases")

    @property
    def has_weights(self) -> bool:
        """It has."""
        return True

    @property
    def is_centered(self) -> bool:
        """Its weights have zero mean."""
        return True

    def propagate(self, state: State, place: Place) -> State:
        """Scaled by the weights, plus a constant for the biases and a term for its gradients."""
        fans = self._fans(state.shape, place)
        weight = place.parametrization.weight(fans, self.w_std)
        spread = fans.fan_in * weight.weight_deviation**2
        moments, ntk = state.moments.times(spread), spread * state.ntk
        ntk += weight.multiplier**2 * fans.fan_in * state.moments.cross
        if self.b_std is not None:
            bias = place.parametrization.bias(fans, self.b_std)
            moments = moments.plus(constant(bias.weight_deviation**2, moments))
            ntk += bias.multiplier**2
        return State(moments, ntk, (self.width,), is_gaussian=True)

    def draw(
        self, key: PRNGKeyArray, shape: tuple[int, ...], place: Place
    ) -> tuple[dict[str, Array], tuple[int, ...]]:
        """Weights (width, fan_in) and biases (width,)."""
        fans = self._fans(shape, place)
        w_key, b_key = jax.random.split(key)
        deviation = place.parametrization.weight(fans, self.w_std).deviation
        params = {"w": deviation * jax.random.normal(w_key, (self.width, fans.fan_in))}
        if self.b_std is not None:
            deviation = place.parametrization.bias(fans, self.b_std).deviation
            params["b"] = deviation * jax.random.normal(b_key, (self.width,))
        return params, (self.width,)

    def forward(
        self, params: dict[str, Array], x: Float[Array, "n fan_in"], place: Place
    ) -> Float[Array, "n width"]:
        """`m x w^T + m' b`."""
        fans = self._fans(x.shape[1:], place)
        if params["w"].shape != (self.width, fans.fan_in):
            raise NetworkError(
                f"`params` holds weights of shape {params['w'].shape}; a layer of width "
                f"{self.width} on {fans.fan_in} features has weights of shape "
                f"({self.width}, {fans.fan_in}): give the inputs that `init` was told of."
            )
        z = place.parametrization.weight(fans, self.w_std).multiplier * (x @ params["w"].T)
        if self.b_std is None:
            return z
        return z + place.parametrization.bias(fans, self.b_std).multiplier * params["b"]

    def _fans(self, shape: tuple[int, ...], place: Place) -> Fans:
        if len(shape) != 1:
            raise NetworkError(
                f"`Dense({self.width})` got examples of shape {shape}; it takes a vector of "
                "features: put `Flatten()` before it."
            )
        return Fans(shape[0], self.width, place.is_first, place.is_last)


class Identity(Layer):
    """Outputs are inputs: a skip connection in `summed`."""

    @property
    def has_weights(self) -> bool:
        """It has none."""
        return False

    @property
    def is_centered(self) -> bool:
        """Its outputs have the mean of its inputs."""
        return False

    def propagate(self, state: State, place: Place) -> State:
        """The state itself."""
        return state

    def draw(
        self, key: PRNGKeyArray, shape: tuple[int, ...], place: Place
    ) -> tuple[tuple[()], tuple[int, ...]]:
        """Nothing."""
        return (), shape

    def forward(self, params: tuple[()], x: Float[Array, "n ..."], place: Place) -> Array:
        """The inputs."""
        return x


class Flatten(Layer):
    """Examples of any shape as vectors; the first layer for images."""

    @property
    def has_weights(self) -> bool:
        """It has none."""
        return False

    @property
    def is_centered(self) -> bool:
        """Its outputs have the mean of its inputs."""
        return False

    def propagate(self, state: State, place: Place) -> State:
        """The state, of vectors: moments are means over all features as they are."""
        return state._replace(shape=(math.prod(state.shape),))

    def draw(
        self, key: PRNGKeyArray, shape: tuple[int, ...], place: Place
    ) -> tuple[tuple[()], tuple[int, ...]]:
        """Nothing."""
        return (), (math.prod(shape),)

    def forward(self, params: tuple[()], x: Float[Array, "n ..."], place: Place) -> Array:
        """Each example as a vector."""
        return x.reshape(len(x), -1)


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


def _is_zero(value: Any) -> bool:
    return not isinstance(value, Tracer) and bool(np.all(np.asarray(value) == 0))
