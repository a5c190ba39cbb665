"""Networks of the tests, with reference numbers of an independent program.

functional_dimension.json: exact ranks by elimination modulo 2^61 - 1. two_units.json: closed form
of `c ReLU(a x) + d ReLU(b x)`, after Lengyel et al. (2020), GENNI.
"""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

FOLDER = Path(__file__).parent
RANKS = json.loads((FOLDER / "functional_dimension.json").read_text())["cases"]
TWO_UNITS = json.loads((FOLDER / "two_units.json").read_text())["cases"]

# Half of the mean square on either side of zero, as of N(0, 1): J is then the closed form, exactly.
SIDE = np.random.default_rng(0).uniform(0.2, 2.0, 40)
SIDE = SIDE / np.sqrt(np.mean(SIDE**2))
X = jnp.asarray(np.concatenate([SIDE, -SIDE]))[:, None]


def dense(params, x):
    """A network of ReLU units, weights with one unit a row."""
    for i, (w, b) in enumerate(params):
        x = x @ w.T + b[None]
        x = jnp.maximum(x, 0.0) if i < len(params) - 1 else x
    return x


def units(params, x):
    """c ReLU(a x) + d ReLU(b x) with a, b in `w` and c, d in `c`."""
    return jnp.maximum(x * params["w"][None], 0.0) @ params["c"]


def tanh_units(params, x):
    return jnp.tanh(x @ params["w"]) @ params["c"]


def split(theta):
    theta = jnp.asarray(theta)
    half = theta.size // 2
    return {"w": theta[:half], "c": theta[half:]}


def sides(params):
    """p and q: slopes of the function on either side of zero."""
    w, c = np.asarray(params["w"]), np.asarray(params["c"])
    return (c * np.maximum(w, 0.0)).sum(-1), (c * np.maximum(-w, 0.0)).sum(-1)
