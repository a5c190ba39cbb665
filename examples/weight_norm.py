"""Weight normalization and the Laplace evidence: the paper's Table 1, taken apart.

A network of one hidden layer of 50 tanh units is trained on 150 noisy points of a sine, without
weight decay, from ten initial values. At each end the Laplace evidence is computed four times:

- in the weights themselves;
- in (g, v), `w = g v / |v|`, as weight normalization is coded: one coordinate too many for each
  row, and the prior Normal(0, 1) written down anew for g and for v;
- in polar coordinates (r, s) and (log r, s) of each row, a chart of the weights, with prior and
  metric carried along.

The curvature is the generalized Gauss-Newton matrix of the likelihood plus that of the prior: the
ends are no modes, and at some of them the exact Hessian is indefinite.

    python examples/weight_norm.py

Source of the task: Kristiadi, Dangel & Hennig (2023), The geometry of neural nets' parameter spaces
under reparametrization, section 5.2. Their table: -212.7 +- 3.4 and -227.1 +- 3.6.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from rich.console import Console
from rich.table import Table

from volform import networks

jax.config.update("jax_enable_x64", True)

# x ~ Uniform(0, 8), y = sin x + 0.3 Normal(0, 1), 150 points. `fits`: weights of the first layer,
# its biases, weights of the second, its bias, after 1000 steps of Adam at rate 0.01 on all data,
# from ten initial values uniform on +-1 / sqrt(fan_in), in PyTorch and float64. `reported`: the log
# likelihood that a training loop prints last, of the weights before the last step (from training
# over again, in NumPy).
DATA = Path(__file__).with_suffix(".npz")

UNIT_PRIOR = networks.WithPrior(networks.SP(), networks.NTP())  # Normal(0, 1) on plain weights
NET = networks.MLP(widths=(50,), parametrization=UNIT_PRIOR, w_std=1.0, b_std=1.0)
WEIGHTS = ("layer0.w", "layer1.w")
EXACT = 1e-8


class Laplace(NamedTuple):
    """Terms of one evidence, `log_z = log_likelihood + rest`."""

    log_likelihood: jax.Array
    log_z: jax.Array


def evidence(coordinates, weights_of, penalized, metric_of, x, y) -> Laplace:
    """Laplace's evidence in some coordinates of the network, Gauss-Newton curvature.

    Likelihood and prior are sums of squares, of y - f and of `penalized`: values with the prior
    Normal(0, 1). The metric `|d metric_of|^2` is the one whose volume the prior is a density of;
    without one, the coordinates' own Lebesgue measure is meant.
    """
    flat, unravel = ravel_pytree(coordinates)

    def residuals(z):
        point = unravel(z)
        f = NET.apply(weights_of(point), x)
        return jnp.concatenate([(y - f).ravel(), ravel_pytree(penalized(point))[0]])

    def measured(z):
        return ravel_pytree(metric_of(unravel(z)))[0]

    found, jacobian = residuals(flat), jax.jacfwd(residuals)(flat)
    log_joint = -0.5 * (found @ found + found.size * jnp.log(2.0 * jnp.pi))
    root = jax.jacfwd(measured)(flat)  # G = root^T root
    # log q^G + d/2 log 2 pi - 1/2 log det(G^-1 H): with the prior a density with respect to the
    # volume of G, no volume is left to divide by but that in the determinant.
    _, log_det_h = jnp.linalg.slogdet(jacobian.T @ jacobian)
    _, log_det_g = jnp.linalg.slogdet(root.T @ root)
    log_z = log_joint + 0.5 * (flat.size * jnp.log(2.0 * jnp.pi) - log_det_h + log_det_g)
    squares = found[: y.size] @ found[: y.size]
    return Laplace(-0.5 * (squares + y.size * jnp.log(2.0 * jnp.pi)), log_z)


def itself(point):
    return point


def in_weights(params, x, y):
    return evidence(params, itself, itself, itself, x, y)


def in_scale_and_direction(params, x, y):
    """(g, v) at v = w, g = |w|, with the prior Normal(0, 1) on both."""
    point = dict(params)
    for name in WEIGHTS:
        point[name] = {"g": jnp.linalg.norm(params[name], axis=1), "v": params[name]}

    def weights_of(point):
        norm = lambda v: jnp.linalg.norm(v, axis=1, keepdims=True)  # noqa: E731
        rows = {n: point[n]["g"][:, None] * point[n]["v"] / norm(point[n]["v"]) for n in WEIGHTS}
        return {**point, **rows}

    return evidence(point, weights_of, itself, itself, x, y)


def in_chart(make):
    """Coordinates by a chart about the trained weights; prior and metric are those of weights."""

    def computed(params, x, y):
        charts = {name: make(params[name]) for name in WEIGHTS}
        point = {**params, **{name: chart.inv(params[name]) for name, chart in charts.items()}}

        def weights_of(point):
            return {**point, **{name: chart(point[name]) for name, chart in charts.items()}}

        return evidence(point, weights_of, weights_of, weights_of, x, y)

    return computed


def negative_directions(params, x, y) -> jax.Array:
    """Of the exact Hessian of the negative log posterior in the weights."""
    flat, unravel = ravel_pytree(params)

    def loss(z):
        gap = y - NET.apply(unravel(z), x)
        return 0.5 * (jnp.sum(gap**2) + z @ z)

    return jnp.sum(jnp.linalg.eigvalsh(jax.hessian(loss)(flat)) < 0.0)


class Trained(NamedTuple):
    """Ten sets of weights, stacked, the data, and the ten log likelihoods printed last."""

    fits: dict[str, jax.Array]
    x: jax.Array
    y: jax.Array
    reported: np.ndarray


def trained() -> Trained:
    with np.load(DATA) as data:
        w0, b0, w1, b1 = jnp.split(jnp.asarray(data["fits"]), (50, 100, 150), axis=1)
        fits = {"layer0.w": w0[..., None], "layer0.b": b0, "layer1.w": w1[:, None], "layer1.b": b1}
        return Trained(fits, jnp.asarray(data["x"]), jnp.asarray(data["y"]), data["reported"])


WAYS = {
    "weights w": in_weights,
    "(g, v), new prior": in_scale_and_direction,
    "polar (r, s)": in_chart(networks.PolarTransform),
    "polar (log r, s)": in_chart(networks.log_polar),
}


def mean(values: np.ndarray) -> str:
    return f"{values.mean():.2f} ± {values.std(ddof=1) / np.sqrt(len(values)):.2f}"


def main() -> None:
    fits, x, y, reported = trained()
    made = Table(
        title="Laplace evidence of a network under weight normalization, ten fits\n"
        "(curvature: generalized Gauss-Newton)",
        title_justify="left",
    )
    for column in ("coordinates", "log likelihood", "the rest", "log Z"):
        made.add_column(column, justify="left" if column == "coordinates" else "right")

    def at_each_fit(function):
        return jax.tree.map(np.asarray, jax.jit(jax.vmap(function, (0, None, None)))(fits, x, y))

    found = {name: at_each_fit(way) for name, way in WAYS.items()}
    for name, (log_likelihood, log_z) in found.items():
        made.add_row(name, mean(log_likelihood), mean(log_z - log_likelihood), mean(log_z))
    weights, naive = found["weights w"], found["(g, v), new prior"]
    gap = naive.log_z - weights.log_z
    squares = sum(np.sum(np.square(fits[name]), (1, 2)) for name in WEIGHTS)
    negative = at_each_fit(negative_directions).tolist()
    printed = [mean(row.log_z - row.log_likelihood + reported) for row in (weights, naive)]

    console = Console(width=100, highlight=False)
    console.print(made)
    console.print(f"(g, v) less w: {mean(gap)}, which is -1/2 |W|^2: the prior counted twice")
    console.print(
        f"with the log likelihood that training printed last, one step before, {mean(reported)}:\n"
        f"  weights {printed[0]}, (g, v) {printed[1]}"
    )
    console.print(f"negative directions of the exact Hessian at the ten fits: {negative}")

    assert mean(weights.log_z) == "-212.71 ± 3.37"
    assert mean(weights.log_z - weights.log_likelihood) == "-69.29 ± 3.38"
    assert printed == ["-212.68 ± 3.38", "-227.04 ± 3.63"]
    assert np.abs(gap + 0.5 * squares).max() < EXACT
    for name in ("polar (r, s)", "polar (log r, s)"):
        assert np.abs(found[name].log_z / weights.log_z - 1.0).max() < EXACT, name
    assert sum(count > 0 for count in negative) == 4
    assert max(negative) == 36


if __name__ == "__main__":
    main()
