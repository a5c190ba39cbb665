"""Networks and inputs that the tests of kernels share."""

import jax
import jax.numpy as jnp
import numpy as np

from volform import networks as nn

X = np.sin(1 + 0.7 * np.arange(6)[:, None] + 1.3 * np.arange(4))
X2 = np.cos(0.5 + 0.9 * np.arange(3)[:, None] - 0.4 * np.arange(4))
E1, E2 = np.eye(4)[:2]
EDGE = np.stack([E1, E1, -E1, E2, 0 * E1, 2 * E1])

N, H, W, C = np.ogrid[:4, :5, :5, :2]
IMAGES = np.sin(1 + 0.7 * N + 1.3 * H + 0.9 * W + 0.5 * C)
N, T, C = np.ogrid[:4, :6, :2]
SEQUENCES = np.sin(1 + 0.7 * N + 1.3 * T + 0.5 * C)
GRAPH = np.array([[0, 1, 0, 0, 2, 0], [1, 0, 1, 0, 0, 0], [0, 1, 0, 1, 0, 0], [0, 1, 0, 1, 0, 0]])
TOKENS = np.array([[0, 3, 3], [4, 3, 1], [0, 3, 2], [1, 1, 1]])


def dense(width=8, b_std=0.2):
    return nn.Dense(width, w_std=1.4, b_std=b_std)


def conv(shape=(3,), width=8, b_std=0.2, **window):
    return nn.Conv(width, shape, w_std=1.4, b_std=b_std, **window)


def spread(shape=(3,), width=8, b_std=0.2, **window):
    return nn.ConvTranspose(width, shape, w_std=1.4, b_std=b_std, **window)


def local(shape=(3,), width=8, b_std=0.2, **window):
    return nn.ConvLocal(width, shape, w_std=1.4, b_std=b_std, **window)


def around(*activations, b_std=0.2):
    """A dense layer, then each activation with a dense layer behind it."""
    behind = [layer for f in activations for layer in (f, dense(b_std=b_std))]
    return nn.serial(dense(b_std=b_std), *behind)


def finite(net, x, scaling, keys):
    """Products of outputs and `J J^T` of draws of a network with one output."""

    def one(key):
        params = net.init(key, x.shape, parametrization=scaling)

        def output(params):
            return net.apply(params, x, parametrization=scaling)[:, 0]

        value, jacobian = output(params), jax.jacrev(output)(params)
        rows = [leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(jacobian)]
        return value[:, None] * value[None], sum(jnp.matmul(row, row.T) for row in rows)

    return jax.jit(lambda keys: jax.lax.map(one, keys))(keys)


ACTIVATIONS = [
    nn.Relu(),
    nn.LeakyRelu(0.1),
    nn.Abs(),
    nn.Sign(),
    nn.RectifiedMonomial(0),
    nn.RectifiedMonomial(2),
    nn.RectifiedMonomial(3),
    nn.Erf(),
    nn.Gelu(),
    nn.Sin(),
    nn.Cos(),
    nn.Rbf(0.7),
    nn.Gaussian(),
    nn.Exp(),
    nn.Monomial(3),
    nn.Hermite(4),
    nn.Polynomial((1.0, -0.5, 0.0, 0.3)),
    nn.Elementwise(jnp.tanh),
]
NAMES = [f"{i}-{type(f).__name__}" for i, f in enumerate(ACTIVATIONS)]
