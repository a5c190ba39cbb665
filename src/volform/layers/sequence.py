"""A network as a sequence of maps, and what they do to points, tangents and metrics."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.compilation import is_traced, safe
from volform.errors import NetworkError
from volform.geometry.metric import Metric
from volform.layers.field import LayerField
from volform.models import require_metric
from volform.networks.inputs import require_inputs
from volform.networks.layer import Layer
from volform.networks.network import Network
from volform.networks.parametrization import Parametrization

CHUNK = 512  # examples at once: bounds the memory, and one program serves all their numbers


class LayerSequence(eqx.Module):
    """Maps one after the other, each of a single example; built by `layerwise` and `momentum`.

    Attributes:
        maps: from the activations of a layer to those of the next.
        names: a word for each.
    """

    maps: tuple[Callable[[Array], Array], ...]
    names: tuple[str, ...] = eqx.field(static=True)

    def __call__(self, x: Float[Array, "..."]) -> Array:
        """The network's output for a single example."""
        for layer in self.maps:
            x = layer(x)
        return x

    def behind(self, layer: int) -> "LayerSequence":
        """The rest of the network behind a layer: 0 for all of it, `len(maps)` for nothing.

        Raises:
            NetworkError: when there is no such layer.
        """
        if not 0 <= layer <= len(self.maps):
            raise NetworkError(f"`layer` is {layer}; layers go from 0 to {len(self.maps)}.")
        return LayerSequence(self.maps[layer:], self.names[layer:])

    def is_pair(self, layer: int) -> bool:
        """Tell whether the activations behind a layer are `(x_l, x_{l-1})`, as `momentum` has."""
        return layer > 0 and isinstance(self.maps[layer - 1], _Entry | _Pair)

    def activations(self, x: Float[Array, "n ..."]) -> tuple[Array, ...]:
        """The examples, and their activations behind each layer, n of each.

        Args:
            x: examples, shape (n, ...).
        """
        return self.carry(x, None)[0]

    def carry(
        self, x: Float[Array, "n ..."], tangents: Float[Array, "k ..."] | None
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Examples and tangent vectors, carried through the layers: `v` becomes `J v`.

        Args:
            x: examples, shape (n, ...).
            tangents: k tangent vectors, the same at each example, shape (k, ...); None for none.

        Returns:
            At the input and behind each layer the points, shape (n, ...), and the tangent vectors,
            shape (n, k, ...).
        """
        x = require_inputs(x, "x")
        tangents = jnp.zeros((0, *x.shape[1:]), x.dtype) if tangents is None else tangents
        return _carried(self.maps, x, jnp.asarray(tangents, x.dtype))

    def pull_back(self, metric: Metric, x: Float[Array, "n ..."]) -> LayerField:
        """The metric of the outputs pulled back to every layer, at every example.

        `G_l = J_l^T G J_l` with the Jacobian J_l of the layers behind l, as the Gram matrix of rows
        `R_l = R J_l`, `R^T R = G`: one sweep from the last layer to the first, a product with the
        transpose of each layer's Jacobian for each row.

        Args:
            metric: of the outputs of a single example: `Euclidean()`, or `Fisher` of a likelihood.
            x: examples, shape (n, ...).

        Returns:
            A metric at the input and behind each layer, with its eigenvalues, volume and rank.

        Raises:
            DataError: when `x` is empty, not finite, or of integers.
            NetworkError: when the outputs are no point of the metric, or activations or derivatives
                are not finite.

        References:
            Hauser & Ray (2017), Principles of Riemannian geometry in neural networks.

        >>> import jax.numpy as jnp, volform as vf
        >>> layers = vf.layers.layerwise([jnp.tanh, lambda h: 3.0 * h])
        >>> field = layers.pull_back(vf.Euclidean(), jnp.zeros((1, 2)))
        >>> field.log_volume[:, 0].round(3).tolist()  # log 9, behind the last layer 0
        [2.197, 2.197, 0.0]
        """
        x = require_inputs(x, "x")
        require_metric(metric, "`metric` of pull_back")
        try:
            points, rows = _swept(self.maps, metric, x)
        except (TypeError, ValueError) as error:
            shape = self._output_shape(x)
            raise NetworkError(
                f"`metric` {metric!r} has no matrix at outputs of shape {shape}: {error}. It "
                "should be a metric on the output of one example, as `vf.Euclidean()` is."
            ) from error
        if not is_traced(points, rows):
            self._require_finite(points, rows)
        return LayerField(self, metric, points, rows)

    def _require_finite(self, points: tuple[Array, ...], rows: tuple[Array, ...]) -> None:
        """Raises NetworkError with the first layer whose activations or metric are not."""
        for number, (each, own) in enumerate(zip(points, rows, strict=True)):
            flat = np.asarray(each).reshape(len(each), -1), np.asarray(own).reshape(len(own), -1)
            bad = np.asarray(~np.isfinite(np.concatenate(flat, 1)).all(1))
            if bad.any():
                raise NetworkError(
                    f"`x` leads to values or derivatives that are NaN or infinite at layer "
                    f"{number} ({('the input', *self.names)[number]}) in {bad.sum()} of "
                    f"{len(bad)} examples, the first of them number {int(np.argmax(bad))}. Leave "
                    "these out, or look where that layer overflows."
                )

    def _output_shape(self, x: Array) -> tuple[int, ...]:
        """Raises NetworkError with the layer that does not take what it is given."""
        found = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        for number, (layer, name) in enumerate(zip(self.maps, self.names, strict=True), 1):
            try:
                found = jax.eval_shape(layer, found)
            except Exception as error:
                raise NetworkError(
                    f"`x` has examples of shape {x.shape[1:]}, and layer {number}, {name}, does "
                    f"not take what reaches it, of shape {found.shape}: {error}"
                ) from error
        return found.shape

    def __repr__(self) -> str:
        return f"LayerSequence of {len(self.maps)}: {', '.join(self.names)}"


def layerwise(
    network: Any,
    params: Any = None,
    *,
    inputs: int | tuple[int, ...] | None = None,
    parametrization: Parametrization | None = None,
) -> LayerSequence:
    """The layers of a network as maps of a single example.

    Args:
        network: layers or a `Network` of the package; a list of functions of a single example; or
            an `equinox.nn.Sequential`. Of other networks write the list, activations included.
        params: of a network of the package, as `init` or a posterior's values give them.
        inputs: of a `Network`, the number of features or the shape of an image.
        parametrization: of layers of the package; `NTP()` if left out. A `Network` has its own.

    Returns:
        The maps in order.

    Raises:
        NetworkError: when it is none of these, or parameters are missing.

    >>> import jax, volform as vf
    >>> from volform import networks as nn
    >>> net = nn.serial(nn.Dense(3), nn.Relu(), nn.Dense(1))
    >>> vf.layers.layerwise(net, net.init(jax.random.key(0), (4, 2)))
    LayerSequence of 3: Dense, ABRelu, Dense
    """
    if isinstance(network, Layer | Network):
        if params is None or (isinstance(network, Network) and inputs is None):
            raise NetworkError(
                f"`params` or `inputs` of layerwise is missing: {type(network).__name__} is a "
                "network without its parameters. Write `layerwise(layers, params)`, or of a "
                "`Network` `layerwise(network, params, inputs=x.shape[1:])`."
            )
        if isinstance(network, Network):
            steps = network.maps(params, inputs or ())
        else:
            steps = network.maps(params, parametrization=parametrization)
        names = [type(getattr(step, "layer", step)).__name__ for step in steps]
        return LayerSequence(tuple(map(_Single, steps)), tuple(names))
    # Of other objects `layers` need not be all: those of `equinox.nn.MLP` lack its activations.
    found = network.layers if isinstance(network, eqx.nn.Sequential) else network
    if not isinstance(found, list | tuple) or not found or not all(map(callable, found)):
        raise NetworkError(
            f"`network` is a {type(network).__name__}; it should be a network of "
            "`vf.networks` with its parameters, an `equinox.nn.Sequential`, or a list of functions "
            "of a single example: all that the network does, activations included."
        )
    names = [getattr(layer, "__name__", type(layer).__name__) for layer in found]
    return LayerSequence(tuple(found), tuple(names))


def momentum(functions: Sequence[Callable[[Array], Array]]) -> LayerSequence:
    """A network with momentum ("C2"), as maps of pairs `(x_l, x_{l-1})` joined in one vector.

    `x_1 = x_0 + f_0(x_0)`, `x_{l+1} = 2 x_l - x_{l-1} + f_l(x_l)`; the output is the last x. The
    outputs have half as many coordinates as a pair, so that what is pulled back to a pair is
    singular: a metric at the input alone.

    Args:
        functions: f_0, f_1, ..., each from a vector to one of the same length.

    >>> import jax.numpy as jnp, volform as vf
    >>> layers = vf.layers.momentum([jnp.tanh, jnp.tanh])
    >>> layers(jnp.zeros(2)).tolist()
    [0.0, 0.0]
    """
    if not functions or not all(map(callable, functions)):
        raise NetworkError(f"`functions` is {functions!r}; it should be a list of functions.")
    first, *rest = functions
    maps = (_Entry(first), *map(_Pair, rest), _last_half)
    return LayerSequence(maps, ("enter", *["momentum"] * len(rest), "leave"))


class _Single(eqx.Module):
    """A function of a batch, of one example."""

    function: Callable[[Array], Array]

    def __call__(self, x: Array) -> Array:
        return self.function(x[None])[0]


class _Entry(eqx.Module):
    function: Callable[[Array], Array]

    def __call__(self, x: Array) -> Array:
        return jnp.concatenate([x + _change(self.function, x), x])


class _Pair(eqx.Module):
    function: Callable[[Array], Array]

    def __call__(self, pair: Array) -> Array:
        now, before = jnp.split(pair, 2)
        return jnp.concatenate([2.0 * now - before + _change(self.function, now), now])


def _change(function: Callable[[Array], Array], x: Array) -> Array:
    """The change of x, which has its shape.

    Raises:
        NetworkError: when it has another.
    """
    found = jnp.asarray(function(x))
    if found.shape != x.shape:
        raise NetworkError(
            f"`functions` of momentum takes {x.shape} to {found.shape}; each should be from a "
            "vector to one of the same length. A layer that changes it goes before or behind, as "
            "in `layerwise([widen, *momentum(...).maps])`."
        )
    return found


def _last_half(pair: Array) -> Array:
    return jnp.split(pair, 2)[0]


@safe
def _carried(
    maps: tuple[Callable, ...], x: Float[Array, "n ..."], tangents: Float[Array, "k ..."]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    def at(point: Array) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        points, pushed = [point], [tangents]
        for layer in maps:
            point, push = jax.linearize(layer, point)
            points.append(point)
            pushed.append(jax.vmap(push)(pushed[-1]))
        return tuple(points), tuple(pushed)

    return jax.lax.map(at, x, batch_size=CHUNK)


@safe
def _swept(
    maps: tuple[Callable, ...], metric: Metric, x: Float[Array, "n ..."]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    def at(point: Array) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        points, pulls = [point], []
        for layer in maps:
            point, pull = jax.vjp(layer, point)
            points.append(point)
            pulls.append(pull)
        root = _root(metric(point).as_matrix())
        rows = [root.reshape(-1, *point.shape)]
        for pull in reversed(pulls):
            rows.append(jax.vmap(lambda row, pull=pull: pull(row)[0])(rows[-1]))
        return tuple(points), tuple(row.reshape(len(row), -1) for row in reversed(rows))

    return jax.lax.map(at, x, batch_size=CHUNK)


def _root(matrix: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """R with `R^T R` the matrix, and rows of zeros where it is singular, as of logits."""
    values, vectors = jnp.linalg.eigh(matrix)
    floor = 8.0 * values.size * jnp.finfo(values.dtype).eps * values[-1]
    return jnp.sqrt(jnp.where(values > floor, values, 0.0))[:, None] * vectors.T
