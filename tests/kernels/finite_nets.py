"""Functions of parameters and a batch, and of their kernels: by all Jacobians."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import volform as vf
from volform import networks as nn
from volform.geometry import Product
from volform.networks import NTP, SP, MuP

VECTORS = np.random.default_rng(0).normal(size=(5, 6))
TOKENS = np.random.default_rng(1).normal(size=(5, 4, 6))
IMAGES = np.random.default_rng(2).normal(size=(5, 8, 8, 2))


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def of_net(parametrization):
    net = nn.serial(
        nn.Dense(7, 1.4, 0.2), nn.Relu(), nn.Dense(5, 1.1, 0.3), nn.Erf(), nn.Dense(3, 1.4)
    )
    params = net.init(jax.random.key(0), VECTORS.shape, parametrization=parametrization)
    return lambda p, x: net.apply(p, x, parametrization=parametrization), params, VECTORS


def of_images():
    net = nn.serial(nn.Conv(3, (3, 3), 1.4, 0.2), nn.Relu(), nn.Flatten(), nn.Dense(2))
    return net.apply, net.init(jax.random.key(0), IMAGES.shape), IMAGES


def of_windows():
    net = nn.serial(
        nn.ConvTranspose(3, (3, 2), 1.4, 0.2, strides=(1, 2)), nn.Erf(), nn.SumPool((2, 4)),
        nn.ConvLocal(2, (2, 2), 1.4, 0.2, strides=(2, 2)), nn.Erf(), nn.Flatten(), nn.Dense(2),
    )  # fmt: skip
    x = IMAGES[:, :4, :4]
    return net.apply, net.init(jax.random.key(0), x.shape), x


def of_tokens():
    net = nn.serial(nn.Embedding(7, 3, 1.4), nn.Conv(2, (2,)), nn.Erf(), nn.Flatten(), nn.Dense(2))
    x = np.random.default_rng(3).integers(0, 7, size=(5, 4))
    return net.apply, net.init(jax.random.key(0), x.shape), x


def plain():
    params = [(normal(0, 6, 9), normal(1, 9)), (normal(2, 9, 3), normal(3, 3))]

    def f(p, x):
        (w1, b1), (w2, b2) = p
        return jnp.tanh(x @ w1 + b1) @ (0.3 * w2 / jnp.sqrt(9.0)) + 2.0 * b2

    return f, params, VECTORS


def conv(x, w, strides=(1, 1), padding="SAME", groups=1):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=layout, feature_group_count=groups
    )


def pooled(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def lenet():
    params = {
        "c1": normal(0, 3, 3, 2, 4), "b1": normal(1, 4), "c2": normal(2, 3, 3, 4, 5),
        "b2": normal(3, 5), "w3": normal(4, 20, 7), "b3": normal(5, 7), "w4": normal(6, 7, 3),
    }  # fmt: skip

    def f(p, x):
        x = pooled(jax.nn.relu(conv(x, p["c1"]) + p["b1"]))
        x = pooled(jax.nn.relu(conv(x, p["c2"]) + p["b2"]))
        return jnp.tanh(x.reshape(len(x), -1) @ p["w3"] + p["b3"]) @ p["w4"]

    return f, params, IMAGES


def strided():
    """Convolutions that end at one pixel and at few; channels first; one of two groups."""
    params = {
        "c1": normal(0, 4, 2, 3, 3), "c2": normal(1, 3, 3, 2, 6), "c3": normal(2, 4, 4, 6, 8),
        "b": normal(3, 8),
    }  # fmt: skip

    def f(p, x):
        first = ("NCHW", "OIHW", "NHWC")
        x = jax.lax.conv_general_dilated(
            jnp.moveaxis(x, -1, 1), p["c1"], (1, 1), [(2, 1), (1, 1)], dimension_numbers=first,
            rhs_dilation=(2, 1),
        )  # fmt: skip
        x = conv(jnp.tanh(x), p["c2"], (2, 2), groups=2)
        x = conv(jnp.tanh(x), p["c3"], padding="VALID")
        return jnp.mean(jnp.tanh(x + p["b"]), (1, 2))

    return f, params, IMAGES


def residual():
    params = {
        "in": normal(0, 6, 5),
        "a": normal(1, 5, 8),
        "b": normal(2, 8, 5),
        "out": normal(3, 5),
    }

    def f(p, x):
        x = x @ p["in"]
        x = x + jax.checkpoint(lambda x: jax.nn.gelu(x @ p["a"]) @ p["b"])(x)
        return x @ p["out"]

    return f, params, VECTORS


def transformer():
    """Attention of two heads, LayerNorm with gain, and a mean over tokens."""
    params = {
        "q": normal(0, 6, 2, 3), "k": normal(1, 6, 2, 3), "v": normal(2, 6, 2, 3),
        "o": normal(3, 2, 3, 6), "gain": normal(4, 6), "shift": normal(5, 6),
        "up": normal(6, 11, 6), "down": normal(7, 2, 11), "position": normal(8, 4, 6),
    }  # fmt: skip

    def f(p, x):
        x = x + p["position"]
        centered = x - x.mean(-1, keepdims=True)
        h = p["gain"] * centered / jnp.sqrt(jnp.var(x, -1, keepdims=True) + 1e-5) + p["shift"]
        q, key, v = (jnp.einsum("ntd,dhe->nhte", h, p[name]) for name in "qkv")
        weights = jax.nn.softmax(jnp.einsum("nhte,nhse->nhts", q, key) / jnp.sqrt(3.0))
        x = x + jnp.einsum("nhts,nhse,hed->ntd", weights, v, p["o"])
        return jnp.mean(jax.nn.silu(x @ p["up"].T) @ p["down"].T, 1)

    return f, params, TOKENS


def batched_weights():
    """Each head, and each token, with weights of its own."""
    params = {"a": normal(0, 4, 6, 3), "b": normal(1, 2, 3, 4)}

    def f(p, x):
        h = jnp.tanh(jnp.einsum("ntd,tde->nte", x, p["a"]))
        return jnp.einsum("nte,oet->no", h, p["b"])

    return f, params, TOKENS


def shared():
    """One matrix in two layers, one in a loop, tied weights, and a product of two matrices."""
    params = {
        "w": normal(0, 6, 6),
        "r": normal(1, 6, 6),
        "t": normal(2, 6, 3),
        "u": normal(3, 3, 6),
    }

    def f(p, x):
        x = jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"].T)
        x = jax.lax.scan(lambda x, _: (jnp.tanh(x @ (p["r"] / 3)), None), x, None, length=3)[0]
        h = jnp.tanh(x @ p["t"])
        return h @ p["t"].T + x @ (p["t"] @ p["u"])

    return f, params, VECTORS


def not_linear():
    """Weights that enter otherwise: normalized, masked, squared, stopped, gathered, unused."""
    params = {
        "n": normal(0, 6, 4), "m": normal(1, 6, 4), "s": normal(2, 6, 4), "stop": normal(3, 6),
        "table": normal(4, 7), "unused": normal(5, 2), "scale": normal(6),
    }  # fmt: skip
    mask = (normal(7, 6, 4) > 0).astype(float)

    def f(p, x):
        normed = p["n"] / jnp.linalg.norm(p["n"], axis=0)
        x1 = x @ normed + x @ (p["m"] * mask) + x @ p["s"] ** 2
        x1 = x1 + (x @ jax.lax.stop_gradient(p["stop"]))[:, None]
        return p["scale"] * x1 + p["table"][jnp.argmax(x, 1)][:, None]

    return f, params, VECTORS


def scaled_by_values():
    """Weights times a number: of another parameter, of the example, broadcast to an array."""
    params = {"w": normal(0, 6, 4), "g": normal(1), "v": normal(2, 1, 4), "b": normal(3, 4)}

    def f(p, x):
        h = jnp.tanh(x @ (p["w"] * jnp.exp(p["g"]) / jnp.full((6, 4), 2.0)))
        size = jnp.sum(x**2)  # of the batch, which is one example where the kernel is computed
        return h @ (p["v"].T * jnp.where(jnp.size(x) == 6, size, size)) + h @ (-p["b"])[:, None]

    return f, params, VECTORS[:1]


def biases():
    """Sums that look like biases: along positions, of each of them, reversed, scaled."""
    params = {
        "w": normal(0, 6, 4), "along": normal(1, 4), "v": normal(2, 4, 4), "each": normal(3, 4, 4),
        "u": normal(4, 4, 4), "turned": normal(5, 4), "t": normal(6, 4, 4), "behind": normal(7, 4),
        "z": normal(8, 4, 4), "zero": normal(9, 4), "one": normal(10),
    }  # fmt: skip

    def f(p, x):
        x = jnp.tanh(x @ p["w"] + p["along"][:, None])  # (n, 4, 4): as many tokens as units
        x = jnp.tanh(x @ p["v"] + p["each"])
        x = jnp.tanh(-0.7 * (x @ p["u"]) / 1.1 + jnp.flip(3.0 * p["turned"]))
        x = jnp.tanh(0.5 * jnp.swapaxes(x @ p["t"], 1, 2) + p["behind"][:, None])
        return jnp.mean(jnp.swapaxes(x @ p["z"], 1, 2) + p["zero"][:, None] + p["one"], 2)

    return f, params, TOKENS


def control_flow():
    """Branches, loops, compiled functions and random masks."""
    params = {"w": normal(0, 6, 6), "e": normal(1, 6, 6), "v": normal(2, 6, 3)}
    params["l"] = normal(3, 2, 6, 6)

    def f(p, x):
        mask = jax.random.bernoulli(jax.random.key(0), 0.5, (6,)).astype(x.dtype)
        x = jnp.tanh(x @ p["w"]) * mask
        x = jax.lax.cond(x.sum() > 0, lambda x: x @ p["e"], lambda x: 2 * x, x)
        x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["l"])[0]
        x = jax.lax.fori_loop(0, 2, lambda _, x: jnp.sin(x), x)
        return jax.jit(lambda x: x @ p["v"])(x)

    return f, params, VECTORS


def of_equinox():
    model = eqx.nn.MLP(6, 3, 7, 2, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, VECTORS


def images_out():
    params = {"c": normal(0, 3, 3, 2, 3), "b": normal(1, 3)}
    return lambda p, x: jnp.tanh(conv(x, p["c"], (4, 4)) + p["b"]), params, IMAGES


CASES: dict[str, Any] = {
    "NTP": lambda: of_net(NTP()), "SP": lambda: of_net(SP()), "MuP": lambda: of_net(MuP()),
    "images": of_images, "windows": of_windows, "tokens": of_tokens,
    "plain": plain, "lenet": lenet, "strided": strided, "residual": residual,
    "transformer": transformer, "batched weights": batched_weights, "shared": shared,
    "not linear": not_linear, "scaled": scaled_by_values, "equinox": of_equinox,
    "images out": images_out, "biases": biases, "control flow": control_flow,
}  # fmt: skip


def jacobian(f, params, x):
    """(n, k, parameters), in `ravel_pytree` order."""
    flat, unravel = ravel_pytree(params)

    def one(p, example):
        return ravel_pytree(f(unravel(p), example[None]))[0]

    return np.asarray(jax.jit(jax.vmap(jax.jacfwd(one), (None, 0)))(flat, x))


def full_kernel(f, params, x1, x2, metric=None):
    """(n1, n2, k, k), by the inverse of the whole matrix of the metric."""
    size = ravel_pytree(params)[0].size
    matrix = np.eye(size) if metric is None else np.asarray(metric(params).as_matrix())
    left, right = jacobian(f, params, x1), jacobian(f, params, x2)
    return np.einsum("iop,pq,jrq->ijor", left, np.linalg.inv(matrix), right, optimize=True)


def leafwise(params):
    """A metric with another number for each entry of a dict."""
    return 2.0 * Product({name: vf.Euclidean(0.5 + i) for i, name in enumerate(params)})
