"""`volform equivalence`: which parameters of a network give the same function."""

import argparse
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from volform.cli.data_files import inputs_of, load_data
from volform.cli.loading import load_function
from volform.cli.options import seed
from volform.equivalence.dimension import functional_dimension
from volform.equivalence.proving import symmetry
from volform.errors import NetworkError
from volform.networks.network import Network

LOG_10 = math.log(10.0)
MOST_PARAMETERS = 2000  # of the functional dimension, whose singular values cost d^2 n

EXAMPLE = """\
example:
  net.py holds a network, or a function that returns (f, params) of any f(params, x):

    from volform import networks as nn

    net = nn.MLP(widths=(5, 4), b_std=1.0)

  $ volform equivalence net.py:net --data inputs.csv
"""


def add_equivalence(commands: Any) -> None:
    """Add the command to the parser's."""
    command = commands.add_parser(
        "equivalence",
        help="which parameters of a network give the same function",
        description="The symmetries of a network, read off its program and proven by evaluation; "
        "how many parameters its function has at random ones; in float64.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run_equivalence, model=(), reference=None)
    add = command.add_argument
    add("network", metavar="net.py:net", help="a network of volform, or a function that builds one")
    add("--data", type=Path, required=True, metavar="FILE", help="inputs: columns, or an array x")
    add(
        "--without", default="", metavar="COLUMNS", help="columns that are no inputs, as the target"
    )
    add("--seed", type=seed, default=0, help="seed of the parameters (default: 0)")


def run_equivalence(options: argparse.Namespace, console: Console) -> None:
    """`volform equivalence`: trace, prove, print."""
    x = jnp.asarray(inputs_of(load_data(options.data), f"`{options.data}`", options.without))
    f, params = _network(options, x)
    group = symmetry(f, params, x)
    table = Table(show_header=False)
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    table.add_row("parameters", f"{count:,}")
    table.add_row("symmetries", str(group))
    table.add_row("their dimension", f"{group.dimension:,}")
    modes = f"{group.order:,}" if group.order < 10**9 else f"10^{group.log_order / LOG_10:.1f}"
    table.add_row("equivalent modes", modes)
    table.add_row("at random ones", _dimension(f, params, x, group, count))
    console.print(table)


def _dimension(f: Any, params: Any, x: Any, group: Any, count: int) -> str:
    if count > MOST_PARAMETERS:
        return f"their dimension is computed up to {MOST_PARAMETERS:,} parameters"
    try:
        return str(functional_dimension(f, params, x, group=group))
    except NetworkError as error:  # too few inputs to tell: the group is known all the same
        return str(error)


def _network(options: argparse.Namespace, x: Any) -> tuple[Any, Any]:
    found: Any = load_function(options.network)
    if isinstance(found, Network):
        return found.apply, found.init(jax.random.key(options.seed), x.shape[1:])
    try:
        f, params = found()
    except (TypeError, ValueError) as error:
        raise NetworkError(
            f"`{options.network}` should be a network of volform, or a function without arguments "
            f"that returns (f, params) of a function f(params, x): {error}"
        ) from error
    return f, params
