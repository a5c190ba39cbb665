"""The neural tangent kernel layer by layer, and how each part grows with the width."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.architectures.architecture import Architecture
from volform.compilation import by_numbers
from volform.errors import NetworkError
from volform.kernels.layers.rules import pairs_needed, propagate_needed
from volform.kernels.propagation.sizes import floats_as_arrays
from volform.kernels.propagation.state import LayerContext, Pairs, of_examples
from volform.networks.composition import Serial
from volform.networks.layer import whole
from volform.networks.parametrization import NTP, Parametrization, require_parametrization

# The leading order is a power of the width but for biases of the last layer: far out two widths do.
WIDTHS = (2**20, 2**24)


def ntk_by_layer(
    net: Serial, x: Float[Array, "n ..."], *, parametrization: Parametrization | None = None
) -> Float[Array, "layers n n"]:
    """The parts of the neural tangent kernel, one for each layer with weights, in order.

    `T = sum_l J_l G_l^-1 J_l^T`, J_l the Jacobian with respect to the parameters of layer l, to
    leading order in the width. A layer's kernel is affine in that of the layer before, so that
    its constant is the layer's own part, and derivatives carry the parts of the others onward.

    Args:
        net: a network built by `serial`.
        x: examples, shape (n, features).
        parametrization: `NTP()` if left out.

    Returns:
        The parts; their sum is `kernel(net, x, parametrization=...).ntk`.

    Raises:
        DataError: when inputs are empty, not finite, of integers or of the wrong shape.
        NetworkError: when `net` was not built by `serial`, or as for `volform.kernels.kernel`.

    >>> import jax.numpy as jnp
    >>> import volform as vf
    >>> from volform import networks as nn
    >>> net = nn.serial(nn.Dense(64), nn.Relu(), nn.Dense(1))
    >>> x = jnp.array([[3.0, 4.0]])
    >>> vf.architectures.ntk_by_layer(net, x, parametrization=nn.SP()).ravel().tolist()
    [12.5, 400.0]
    """
    if not isinstance(net, Serial):
        raise NetworkError(
            f"`net` is a {type(net).__name__}, which has no layers one after the other; build it "
            "by `serial(Dense(512), Relu(), Dense(1))`."
        )
    scaling = NTP() if parametrization is None else parametrization
    require_parametrization(scaling, "parametrization")
    x = net.require_examples(x, "x")
    return _programs(len(x) ** 2)(floats_as_arrays(net), scaling, x)


def _parts(
    net: Serial, scaling: Parametrization, x: Float[Array, "n ..."]
) -> Float[Array, "layers n n"]:
    state = of_examples(x, x, pairs_needed(net, Pairs.NONE), is_same=True)
    places = net.places(whole(scaling))
    parts: list[Array] = []
    for i, (layer, place) in enumerate(zip(net.layers, places, strict=True)):
        context = LayerContext(place, pairs_needed(Serial(net.layers[i + 1 :]), Pairs.NONE))

        def onward(ntk: Array, layer=layer, context=context, state=state) -> Array:
            return propagate_needed(layer, state.replace(ntk=ntk), context).ntk

        zero = jnp.zeros_like(state.ntk)
        parts = [jax.jvp(onward, (zero,), (part,))[1] for part in parts]
        if layer.has_weights:
            parts.append(onward(zero))
        state = propagate_needed(layer, state, context)
    return jnp.stack(parts)


_programs = by_numbers(_parts)


def ntk_growth(
    architecture: Architecture,
    x: Float[Array, "n ..."],
    *,
    parametrization: Parametrization | None = None,
) -> tuple[float, ...]:
    """The exponents by which the layers' parts of the neural tangent kernel grow with the width.

    The slope of `log tr T_l` against the log of the width, to leading order. Zero in every layer
    is a kernel that has a limit (`NTP`, `MuP`); under `SP` it is 0 in the first layer and 1 in
    all others.

    Args:
        architecture: depth, activation and prior.
        x: examples, shape (n, features).
        parametrization: `NTP()` if left out.

    Returns:
        One exponent for each layer, from the inputs on.

    Raises:
        DataError: when inputs are empty, not finite, of integers or of the wrong shape.

    >>> import jax.numpy as jnp
    >>> import volform as vf
    >>> from volform import networks as nn
    >>> architecture = vf.architectures.Architecture(depth=2, activation=nn.Relu())
    >>> growth = vf.architectures.ntk_growth(architecture, jnp.eye(3), parametrization=nn.SP())
    >>> tuple(round(rate, 4) for rate in growth)
    (0.0, 1.0, 1.0)
    """
    low, high = (
        np.trace(
            ntk_by_layer(architecture.layers(width), x, parametrization=parametrization),
            axis1=1,
            axis2=2,
        )
        for width in WIDTHS
    )
    slopes = np.log(high / low) / np.log(WIDTHS[1] / WIDTHS[0])
    return tuple(float(slope) for slope in slopes)
