"""The demonstration: one model in several spellings, without and with a metric.

Prints the tables of eight_schools_table.py, regression_table.py and architectures_table.py and
draws pictures.

    python examples/demo.py --out demo-out
"""

import argparse
import concurrent.futures
import math
import multiprocessing
import time
from pathlib import Path

import architectures_table as networks
import eight_schools_table as schools
import matplotlib.pyplot as plt
import regression_table as regression
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from rich.console import Console
from rich.progress import track

from volform.architectures import Survey
from volform.compilation import keep_compiled

BLUE, VERMILION = "#0072B2", "#D55E00"


def fit_all(quick: bool, out: Path) -> tuple[list[schools.Row], list[regression.Row], Survey]:
    """Every spelling of both models, two at a time, some of them with pictures; networks."""
    priors = list(schools.PRIORS)[:1] if quick else list(schools.PRIORS)
    spellings = ("sigma", "precision") if quick else tuple(regression.SPELLINGS)
    shown = {priors[0]: out, "sigma": out, "precision": out}
    with concurrent.futures.ProcessPoolExecutor(
        2,  # processes, since NumPyro's effect handlers are not safe in threads
        multiprocessing.get_context("spawn"),
        keep_compiled,
    ) as pool:
        of_networks = pool.submit(networks.survey, 20 if quick else 60, False, out, quick)
        of_schools = [
            pool.submit(schools.fit, prior, spelling, not quick, shown.get(prior))
            for prior in priors
            for spelling in schools.SPELLINGS
        ]
        of_noise = [
            pool.submit(regression.fit, spelling, 40, not quick, shown.get(spelling))
            for spelling in spellings
        ]
        jobs = [of_networks, *of_schools, *of_noise]
        for done in track(concurrent.futures.as_completed(jobs), "fitting", len(jobs)):
            done.result()
    fitted = [[job.result() for job in jobs] for jobs in (of_schools, of_noise)]
    return fitted[0], fitted[1], of_networks.result()


def draw_errors(ax: Axes, labels: list[str], rows: list, peer: str) -> None:
    """Errors of log Z in nats, one line for each spelling."""
    ax.set_xscale("log")
    series = {
        peer: ("o", VERMILION, [row.peer_log_z for row in rows]),
        "volform, first order": ("s", BLUE, [row.log_z for row in rows]),
    }
    if all(row.second_order is not None for row in rows):
        series["volform, second order"] = ("D", "white", [row.second_order for row in rows])
    heights = list(range(len(rows)))[::-1]
    for name, (marker, face, found) in series.items():
        errors = [abs(value - row.exact) for value, row in zip(found, rows, strict=True)]
        edge = VERMILION if name == peer else BLUE
        ax.plot(errors, heights, marker, color=edge, mfc=face, markersize=7, label=name)
    for height, row in zip(heights, rows, strict=True):
        if not math.isfinite(row.peer_log_z):
            ax.text(
                0.99,
                height,
                f"{peer.rpartition(' ')[2]}: no value",
                ha="right",
                va="center",
                fontsize=8.5,
                color=VERMILION,
                transform=ax.get_yaxis_transform(),
            )
    ax.set_yticks(heights, labels)
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.grid(axis="x", alpha=0.25)
    low, high = ax.get_xlim()
    subs = (1, 2, 5) if high < 50.0 * low else (1,)
    ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel("absolute error of log evidence, in nats")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=8.5)


def draw_evidence(
    path: Path, of_schools: list[schools.Row], of_noise: list[regression.Row]
) -> None:
    """The errors of both tables in one picture."""
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 3.8), layout="constrained")
    labels = [f"{row.spelling},\ntau ~ {row.prior}" for row in of_schools]
    draw_errors(axes[0], labels, of_schools, "NumPyro's AutoLaplace")
    axes[0].set_title("Eight schools", pad=52)
    labels = [row.spelling.replace("_", " ") for row in of_noise]
    draw_errors(axes[1], labels, of_noise, "NumPyro's AutoDelta with a Hessian")
    axes[1].set_title("Regression, by the writing of the noise", pad=52)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder of pictures")
    parser.add_argument("--quick", action="store_true", help="fewer of a kind, first order only")
    options = parser.parse_args()
    begin, console = time.monotonic(), Console(width=110)
    options.out.mkdir(parents=True, exist_ok=True)
    of_schools, of_noise, of_networks = fit_all(options.quick, options.out)
    console.print(schools.table(of_schools))
    schools.check(of_schools)
    console.print(regression.table(of_noise))
    regression.check(of_noise, 40)
    console.print("Neural networks on the diabetes data, the best first")
    console.print(repr(of_networks), markup=False, highlight=False, soft_wrap=True)
    draw_evidence(options.out / "evidence.png", of_schools, of_noise)
    console.print(f"{time.monotonic() - begin:.0f} seconds. Pictures in {options.out.resolve()}:")
    for path in sorted(options.out.glob("*.png")):
        console.print(f"  {path.name}", highlight=False)


if __name__ == "__main__":
    main()
