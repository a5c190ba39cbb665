"""`volform layers`: what each layer of a network does to distances."""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from rich.console import Console
from rich.table import Table

from volform.cli.data_files import Data, inputs_of, listed, load_data, value_of
from volform.cli.loading import load_function
from volform.cli.options import seed, whole
from volform.cli.output import output_folder
from volform.errors import DataError, MetricError, NetworkError
from volform.geometry.fisher import Fisher
from volform.geometry.metric import Euclidean, Metric
from volform.layers.field import LayerField
from volform.layers.sequence import LayerSequence, layerwise
from volform.networks.layer import Layer
from volform.networks.network import Network
from volform.plot.canvas import figure_of
from volform.plot.layer_pictures import distinguishable, layers

OUTPUTS: dict[str, Metric] = {
    "euclidean": Euclidean(),
    "categorical": Fisher(lambda z: dist.CategoricalLogits(z)),
    "bernoulli": Fisher(lambda z: dist.BernoulliLogits(z)),
}
COLUMNS = ("layer", "map", "coordinates", "rank", "log volume", "condition")

EXAMPLE = """\
example:
  model.py holds the layers of a network, each a function of one example:

    import jax.numpy as jnp

    def net():
        w, b = jnp.array([[0.8, -0.5], [0.3, 0.9]]), jnp.array([0.1, 0.0])
        return [lambda x: x + jnp.tanh(w @ x + b), lambda h: jnp.array([1.0, -1.0]) @ h]

  $ volform layers model.py:net --data moons.csv --labels class --until 1 --out pictures
"""


def add_layers(commands: Any) -> None:
    """Add the command to the parser's."""
    command = commands.add_parser(
        "layers",
        help="the metric of a network's outputs, pulled back through its layers",
        description="Volume, rank and condition of the metric that the outputs of a network give "
        "to each of its layers, and pictures of it; in float64.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run_layers, reference=None)
    add = command.add_argument
    add(
        "model",
        metavar="model.py:net",
        help="a network of volform (its parameters are drawn), an equinox.nn.Sequential, or a "
        "function without arguments that returns one, a list of functions, or (network, params)",
    )
    add("--data", type=Path, required=True, metavar="FILE", help="inputs: columns, or an array x")
    add("--labels", metavar="COLUMN", help="the class of each example, no input")
    add("--without", default="", metavar="COLUMNS", help="other columns that are no inputs")
    add(
        "--metric",
        default="euclidean",
        metavar="NAME",
        help=f"of the outputs: {', '.join(OUTPUTS)} (Fisher's, of logits); default: euclidean",
    )
    add(
        "--until",
        type=lambda text: whole(text, 1, 10**6, "layer 0 is the input"),
        metavar="LAYER",
        help="measure behind this layer; those that follow are the classifier",
    )
    add("--seed", type=seed, default=0, help="seed of parameters that are drawn (default: 0)")
    add("--out", type=Path, metavar="DIR", help="write layers.csv and PNG pictures to this folder")


def run_layers(options: argparse.Namespace, console: Console) -> None:
    """`volform layers`: pull back, print, draw."""
    with output_folder(options.out) as folder:
        written = _layers(options, console, folder)
    for path in written:
        where = options.out / path.name
        console.print(f"wrote {where}", markup=False, highlight=False, soft_wrap=True)


def _layers(options: argparse.Namespace, console: Console, folder: Path | None) -> list[Path]:
    """Print the table; the files that were written to `folder`."""
    if options.metric not in OUTPUTS:
        raise MetricError(
            f"`--metric {options.metric}` is not known; it should be one of {listed(OUTPUTS)}."
        )
    data, source = load_data(options.data), f"`{options.data}`"
    labels = _labels(data, source, options.labels)
    left_out = [name for name in (options.without, options.labels) if name]
    x = jnp.asarray(inputs_of(data, source, ",".join(left_out)))
    if labels is not None and labels.shape != x.shape[:1]:
        raise DataError(
            f"{source}: `{options.labels}` has shape {labels.shape}; it should hold one class for "
            f"each of the {len(x)} examples."
        )
    whole_net = _sequence(options, x.shape[1:])
    sequence, classifier = _parts(whole_net, options.until)
    metric = OUTPUTS[options.metric]
    if classifier is None and options.metric != "euclidean":
        classifier = _logits
    rows = _rows(sequence, sequence.pull_back(metric, x))
    title = f"{options.metric} metric behind layer {len(sequence.maps)}, {len(x)} examples"
    table = Table(*COLUMNS, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print("log volume and condition are medians over the examples", style="dim")
    names = [name for name in data if name not in ",".join(left_out).split(",")]
    console.print(f"inputs: {', '.join(names)}", style="dim", markup=False, highlight=False)
    if folder is None:
        return []
    return _write(folder, rows, sequence, x, labels, metric, classifier)


def _rows(sequence: LayerSequence, field: LayerField) -> list[tuple[str, ...]]:
    """The cells of the table, a row for each layer."""
    volume, condition = np.median(field.log_volume, 1), np.median(field.condition, 1)
    rows = []
    for layer, name in enumerate(("input", *sequence.names)):
        ranks = sorted({int(field.rank[layer].min()), int(field.rank[layer].max())})
        numbers = (f"{volume[layer]:.3f}", f"{condition[layer]:.3g}")
        width = str(field.rows[layer].shape[2])
        rows.append((str(layer), name, width, " to ".join(map(str, ranks)), *numbers))
    return rows


def _write(
    folder: Path,
    rows: list[tuple[str, ...]],
    sequence: LayerSequence,
    x: Any,
    labels: np.ndarray | None,
    metric: Metric,
    classifier: Callable | None,
) -> list[Path]:
    """Write layers.csv, and the pictures where the inputs have a plane; returns their paths."""
    import matplotlib.pyplot as plt  # noqa: PLC0415

    written = [folder / "layers.csv"]
    with written[0].open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    if x[0].size < 2:  # one coordinate: nothing to draw in
        return written
    pictures = {
        "layers.png": layers(sequence, x, labels, metric=metric, logits=classifier)[0],
        "distinguishable.png": distinguishable(sequence, x, labels, metric=metric),
    }
    for name, ax in pictures.items():
        figure_of(ax).savefig(folder / name, dpi=150)
        plt.close(figure_of(ax))
    return written + [folder / name for name in pictures]


def _parts(whole_net: LayerSequence, until: int | None) -> tuple[LayerSequence, Callable | None]:
    """The layers to measure, and the classifier behind them."""
    count = len(whole_net.maps)
    if until is None or until == count:
        return whole_net, None
    if until > count:
        raise NetworkError(
            f"`--until {until}` should be a layer of the network, which has {count}: "
            f"{', '.join(whole_net.names)}."
        )
    first = LayerSequence(whole_net.maps[:until], whole_net.names[:until])
    return first, whole_net.behind(until)


def _logits(z: Array) -> Array:
    return z


def _labels(data: Data, source: str, name: str | None) -> np.ndarray | None:
    if name is None:
        return None
    if name not in data:
        raise DataError(f"`--labels {name}` should be a column of {source}: {listed(data)}.")
    values = np.asarray(value_of(source, name, data[name])[0])
    if values.dtype.kind in "iu":
        return values
    if np.any(values != np.round(values)):
        raise DataError(f"{source}: `{name}` holds numbers that are no classes, as {values[0]}.")
    return values.astype(int)


def _sequence(options: argparse.Namespace, inputs: tuple[int, ...]) -> LayerSequence:
    """The layers that `options.model` names, for examples of the shape `inputs`."""
    values = (LayerSequence, Layer, Network, eqx.nn.Sequential, list, tuple)
    found = load_function(options.model, values)
    if not isinstance(found, values):
        try:
            found = found()
        except TypeError as error:
            raise NetworkError(
                f"`{options.model}` should be a network, or a function without arguments that "
                f"returns one, a list of functions, or (network, params): {error}"
            ) from error
    if isinstance(found, LayerSequence):
        return found
    if isinstance(found, Layer | Network):
        shape = inputs if isinstance(found, Network) else (1, *inputs)
        found = found, found.init(jax.random.key(options.seed), shape)
    # A pair of a network and its parameters, which a list of two functions is not.
    if isinstance(found, tuple) and len(found) == 2 and not callable(found[1]):
        network, params = found
        return layerwise(network, params, inputs=inputs if isinstance(network, Network) else None)
    return layerwise(found)
