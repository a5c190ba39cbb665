"""What of a Hessian is a property of the minimum: the paper's appendix A, figure 2(c), footnote 1.

- L(theta) = |theta|^2 in the coordinates psi = 3 theta: det H becomes (2/9)^d, and the determinant
  of `E = G^-1 H` stays 2^d, for d = 1, 3 and 10.
- A minimum in two charts, psi a nonlinear function of theta, under a curved metric: the ellipses
  `v^T H v = 1`, and the spectra of H and of E.
- Footnote 1: at a minimum det E is the Gaussian curvature of the graph of L, if G is the metric
  induced on the graph. The curvature is computed from that metric alone.

    python examples/hessian_invariance.py [--out hessian-out]

Source: Kristiadi, Dangel & Hennig (2023), The geometry of neural nets' parameter spaces under
reparametrization, sections 3.1 and A; with G^-1 for the G that is printed in the determinant line
of their Eq. (2).
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from rich.console import Console
from rich.table import Table

import volform as vf
from volform import linalg, operators
from volform.plot import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

jax.config.update("jax_enable_x64", True)

EXACT = 1e-10
AT = jnp.array([0.7, -0.4])  # the minimum, in theta
SHAPE = jnp.array([[3.0, 0.4], [0.4, 1.5]])  # the Hessian there


class InChart(NamedTuple):
    """A loss at its minimum, and a metric, in one chart."""

    loss: Callable
    metric: vf.Metric
    at: jax.Array

    def hessian(self) -> np.ndarray:
        return np.asarray(operators.hessian(self.loss, self.at).as_matrix())

    def gram(self) -> np.ndarray:
        return np.asarray(self.metric(self.at).as_matrix())

    def invariant(self) -> linalg.UnderMetric:
        """The operator E."""
        H = operators.hessian(self.loss, self.at)
        return linalg.under_metric(H, self.metric, self.at)

    def determinants(self) -> tuple[float, float]:
        """Of H and of E."""
        H = operators.hessian(self.loss, self.at)
        found = [linalg.logdet(of).value for of in (H, self.invariant())]
        return tuple(float(jnp.exp(value)) for value in found)

    def elsewhere(self, phi: Callable, back: Callable) -> "InChart":
        """In the chart psi = phi(theta): loss and metric pulled back by its inverse."""
        return InChart(
            lambda psi: self.loss(back(psi)), vf.pullback(self.metric, back), phi(self.at)
        )


def stretched(d: int) -> tuple[InChart, InChart]:
    """|theta|^2 and psi = 3 theta, as in appendix A."""
    theta = InChart(lambda x: jnp.sum(x**2), vf.Euclidean(), jnp.zeros(d))
    return theta, theta.elsewhere(lambda x: 3.0 * x, lambda x: x / 3.0)


def bent() -> tuple[InChart, InChart]:
    """A minimum under a curved metric, in theta and in a nonlinear chart of the plane."""

    def loss(theta: jax.Array) -> jax.Array:
        gap = theta - AT
        return 0.5 * gap @ SHAPE @ gap + 0.3 * jnp.sum(gap**4)

    def gram(theta: jax.Array) -> jax.Array:
        a, b = theta
        return jnp.array([[2.0 + jnp.cos(a), 0.3 * b], [0.3 * b, 1.0 + a**2]])

    def phi(theta: jax.Array) -> jax.Array:
        a, b = theta
        return jnp.array([a + 0.3 * jnp.sin(b) + 0.2 * a**3, jnp.sinh(b)])

    def back(psi: jax.Array) -> jax.Array:
        b = jnp.arcsinh(psi[1])
        rest = psi[0] - 0.3 * jnp.sin(b)  # = a + 0.2 a^3, solved by Cardano's formula
        third = jnp.arcsinh(1.5 * np.sqrt(0.6) * rest) / 3.0
        return jnp.array([2.0 * np.sqrt(5.0 / 3.0) * jnp.sinh(third), b])

    theta = InChart(loss, vf.geometry.MatrixField(gram), AT)
    return theta, theta.elsewhere(phi, back)


def on_graph() -> tuple[float, float]:
    """At the minimum: det E under the metric of the graph, and the graph's Gaussian curvature."""
    loss = bent()[0].loss
    induced = vf.pullback(vf.Euclidean(), lambda theta: jnp.append(theta, loss(theta)))
    _, determinant = InChart(loss, induced, AT).determinants()
    return determinant, 0.5 * float(vf.geometry.scalar_curvature(induced, AT))


def spectra(chart: InChart) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of H and of E, ascending."""
    H = operators.hessian(chart.loss, chart.at)
    found = (linalg.eigenvalues(of, 2).values for of in (H, chart.invariant()))
    h, e = (np.sort(np.asarray(values)) for values in found)
    return h, e


def ellipse(form: np.ndarray) -> np.ndarray:
    """Points v of the plane with `v^T form v = 1`, shape (2, 200)."""
    angle = np.linspace(0.0, 2.0 * np.pi, 200)
    return np.linalg.solve(np.linalg.cholesky(form).T, np.stack([np.cos(angle), np.sin(angle)]))


def draw(charts: tuple[InChart, InChart], path: Path) -> None:
    """The forms H and G in both charts, and the spectra of H and E."""
    mpl.use("Agg")
    names = ("\N{GREEK SMALL LETTER THETA}", "\N{GREEK SMALL LETTER PSI}")
    *planes, right = canvas.new_axes(3, 3.6, 3.7)
    for ax, chart, name in zip(planes, charts, names, strict=True):
        _forms(ax, chart)
        ax.set_title(f"tangent plane in {name}", fontsize=10, loc="left")
    reach = 1.15 * max(np.abs(ax.dataLim.get_points()).max() for ax in planes)
    for ax in planes:
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    _spectra(right, charts, names)
    figure = canvas.figure_of(right)
    figure.legend(*planes[0].get_legend_handles_labels(), loc="outside lower left", ncols=3,
                  fontsize=9, frameon=False)  # fmt: skip
    figure.savefig(path, dpi=110)


def _forms(ax: "Axes", chart: InChart) -> None:
    ax.plot(*ellipse(chart.hessian()), color=canvas.VERMILION, label="$v^T H v = 1$")
    ax.plot(*ellipse(chart.gram()), color=canvas.BLUE, linestyle="--", label="$v^T G v = 1$")
    pairs = linalg.eigenvalues(chart.invariant(), 2)
    for i, vector in enumerate(np.asarray(pairs.vectors)):
        ends = np.stack([-vector, vector], axis=1)
        ax.plot(*ends, color=canvas.FAINT, linewidth=1, label=None if i else "eigenvectors of $E$")
    canvas.plain(ax)


def _spectra(ax: "Axes", charts: tuple[InChart, InChart], names: tuple[str, str]) -> None:
    found = [spectra(chart) for chart in charts]
    labels = []
    for which, label in enumerate(("$H$", "$E = G^{-1}H$")):
        color = (canvas.VERMILION, canvas.INK)[which]
        for name, values in zip(names, found, strict=True):
            ax.plot(values[which], [len(labels)] * 2, "o", color=color, markersize=7)
            labels.append(f"{label} in {name}")
    for value in found[0][1]:
        ax.plot([value] * 2, [2, 3], color=canvas.FAINT, linewidth=1, zorder=0)
    ax.set_xlim(0.0, 1.08 * max(values.max() for chart in found for values in chart))
    ax.set_ylim(3.5, -0.5)
    ax.set_yticks(range(4), labels)
    ax.set_title("eigenvalues", fontsize=10, loc="left")
    canvas.plain(ax)
    ax.tick_params(axis="y", length=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("hessian-out"), help="for the picture")
    out = parser.parse_args().out
    console = Console(width=100, highlight=False)

    stretch = Table(title="L = |theta|^2, psi = 3 theta (appendix A)", title_justify="left")
    for column in ("d", "det H in theta", "det H in psi", "det E in theta", "det E in psi"):
        stretch.add_column(column, justify="right")
    for d in (1, 3, 10):
        (h, e), (h_psi, e_psi) = (chart.determinants() for chart in stretched(d))
        stretch.add_row(str(d), *(f"{number:.6g}" for number in (h, h_psi, e, e_psi)))
        for found, expected in ((h, 2.0**d), (h_psi, (2 / 9) ** d), (e, 2.0**d), (e_psi, 2.0**d)):
            assert abs(found / expected - 1.0) < EXACT

    charts = bent()
    table = Table(title="A minimum in two charts (figure 2c)", title_justify="left")
    for column in ("chart", "det H", "eigenvalues of H", "det E", "eigenvalues of E"):
        table.add_column(column, justify="left" if column == "chart" else "right")
    for name, chart in zip(("theta", "psi"), charts, strict=True):
        (h, e), values = chart.determinants(), spectra(chart)
        shown = [", ".join(f"{value:.5f}" for value in of) for of in values]
        table.add_row(name, f"{h:.5f}", shown[0], f"{e:.5f}", shown[1])
    (h_theta, e_theta), (h_psi, e_psi) = (spectra(chart) for chart in charts)
    assert np.abs(e_psi / e_theta - 1.0).max() < EXACT
    assert np.abs(h_psi / h_theta - 1.0).max() > 0.1

    determinant, curvature = on_graph()
    assert abs(determinant / curvature - 1.0) < EXACT
    console.print(stretch)
    console.print(table)
    console.print(
        f"det E under the metric of the graph {determinant:.6f}, Gaussian curvature {curvature:.6f}"
    )
    out.mkdir(parents=True, exist_ok=True)
    draw(charts, out / "hessian_invariance.png")
    console.print(f"picture: {out / 'hessian_invariance.png'}")


if __name__ == "__main__":
    main()
