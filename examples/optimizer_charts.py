"""Optimizers on Rosenbrock's function in two coordinate systems: carried, naive, and by geodesics.

The coordinates are (x, y) and `z = (x - 1, 10 (y - x^2))`, in which the function is `|z|^2`. Every
path is computed in one of them and drawn in both.

    python examples/optimizer_charts.py --out folder
"""

import argparse
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import volform as vf

START = np.array([-1.2, 1.0])  # arrays of JAX only once the precision is set
IN_XY, IN_Z = "#c2410c", "#1d4ed8"
LEVELS = [0.1, 1.0, 4.0, 12.0, 24.2, 60.0]


class Outputs:
    """z of (x, y), with its inverse."""

    def __call__(self, w):
        return jnp.stack([w[0] - 1.0, 10.0 * (w[1] - w[0] ** 2)])

    def inv(self, z):
        return jnp.stack([z[0] + 1.0, z[1] / 10.0 + (z[0] + 1.0) ** 2])


Z = Outputs()
FLAT = vf.Euclidean()
OF_Z = vf.geometry.implied_metric(Z)  # Euclidean in z, as it is in (x, y)
OF_XY = vf.geometry.implied_metric(Z.inv)


def of_z(z):
    return jnp.sum(z**2)


def of_xy(w):
    return of_z(Z(w))


def flows():
    """Each flow in the coordinates in which it was written, and in the others, carried."""
    slow = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-4, 8.0, 300)])
    fast = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-2, 3.0, 300)])
    flow = vf.optimizers.gradient_flow
    in_xy, in_z = flow(of_xy, FLAT, START, slow), flow(of_z, FLAT, Z(START), fast)
    carried_to_z = flow(of_z, OF_XY, Z(START), slow)
    carried_to_xy = flow(of_xy, OF_Z, START, fast)
    for one, other in ((in_xy, carried_to_z), (carried_to_xy, in_z)):
        apart = vf.optimizers.compare_paths(one, other, through=Z)
        print(apart)
        assert apart.largest < 1e-10
    return in_xy, in_z, carried_to_xy, carried_to_z


def iterates(tx, fn, start, steps):
    """Points of an optimizer, the start in front."""

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(jax.grad(fn)(x), state, x)
        return (x + updates, state), x + updates

    path = jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), None, steps)[1])(
        jnp.asarray(start)
    )
    return jnp.concatenate([jnp.asarray(start)[None], path])


def axes_of(plane, fn, across, down):
    """Level lines of a function in a plane of the picture."""
    a, b = np.meshgrid(np.linspace(*across, 200), np.linspace(*down, 200))
    values = jax.vmap(fn)(jnp.asarray(np.stack([a.ravel(), b.ravel()], 1))).reshape(a.shape)
    plane.contour(a, b, values, LEVELS, colors="0.75", linewidths=0.8)
    plane.set_xlim(*across)
    plane.set_ylim(*down)
    plane.spines[["top", "right"]].set_visible(False)


def draw_flows(path):
    in_xy, in_z, carried_to_xy, carried_to_z = flows()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.8), layout="constrained")
    axes_of(left, of_xy, (-1.6, 1.4), (-0.5, 1.6))
    axes_of(right, of_z, (-5.0, 1.6), (-5.0, 1.6))
    lift, drop = jax.vmap(Z.inv), jax.vmap(Z)
    line, ring = {"lw": 2.2}, {"ls": "", "marker": "o", "mfc": "none", "ms": 8, "markevery": 17}
    for plane, own, other, again in (
        (left, in_xy.path, lift(in_z.path), carried_to_xy.path),
        (right, drop(in_xy.path), in_z.path, carried_to_z.path),
    ):
        plane.plot(*own.T, color=IN_XY, **line, label="gradient descent in (x, y)")
        plane.plot(*other.T, color=IN_Z, **line, label="gradient descent in z")
        color = IN_Z if plane is left else IN_XY
        plane.plot(*again.T, color=color, **ring)
    right.plot([], [], color="black", **ring, label="from the other coordinates, metric carried")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    left.set(title="in the coordinates (x, y)", xlabel="x", ylabel="y")
    right.set(title="in the coordinates z", xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
    ends = (START, Z(START)), (jnp.ones(2), jnp.zeros(2))
    for marker, points in zip("s*", ends, strict=True):
        for plane, point in zip((left, right), points, strict=True):
            plane.plot(*point, marker, color="black", ms=9, zorder=5)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_steps(path):
    rate, steps = 0.15, 12
    natural = vf.optimizers.natural_gradient(OF_Z, rate)
    straight = iterates(natural, of_xy, START, steps)
    geodesic = iterates(vf.optimizers.along_geodesics(natural, OF_Z), of_xy, START, steps)
    in_z = iterates(vf.optimizers.natural_gradient(FLAT, rate), of_z, Z(START), steps)
    there = jax.vmap(Z.inv)(in_z)
    print(f"by exp {np.abs(geodesic - there).max():.1e} apart")
    print(f"straight {np.abs(straight - there).max():.2f} apart")
    assert np.abs(geodesic - there).max() < 1e-9
    figure, plane = plt.subplots(figsize=(6.8, 5.0), layout="constrained")
    axes_of(plane, of_xy, (-1.5, 1.3), (-1.0, 1.4))
    plane.plot(*straight.T, "o-", color=IN_XY, lw=1.6, ms=5, label="straight in (x, y)")
    part = np.linspace(0.0, 1.0, 20)[:, None]
    lines = [(1.0 - part) * a + part * b for a, b in itertools.pairwise(in_z)]
    curves = jax.vmap(Z.inv)(jnp.concatenate(lines))
    plane.plot(*curves.T, color=IN_Z, lw=1.6)
    plane.plot([], [], "o-", color=IN_Z, lw=1.6, ms=5, label="straight in z")
    plane.plot(*there.T, "o", color=IN_Z, ms=5)
    ring = {"ls": "", "marker": "o", "mfc": "none", "ms": 10}
    plane.plot(*geodesic.T, color="black", **ring, label="in (x, y), along geodesics")
    plane.plot(*START, "s", color="black", ms=9, zorder=5)
    plane.plot(1.0, 1.0, "*", color="black", ms=11, zorder=5)
    plane.set(xlabel="x", ylabel="y")
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    draw_flows(folder / "optimizer_flows.png")
    draw_steps(folder / "optimizer_steps.png")


if __name__ == "__main__":
    main()
