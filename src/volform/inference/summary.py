"""Tables of parameters: mean, standard deviation, and a credible interval of each."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from volform.errors import ModelError, UnknownSiteError
from volform.results import html_table

ROWS_SHOWN = 10  # elements of a site in print; a data frame has all of them
SHOWN_DIGITS = 3  # of the standard deviation, which decides the decimals of a row


class Column(NamedTuple):
    """One number for every element of every site."""

    title: str
    values: dict[str, Float[np.ndarray, "..."]]


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean, standard deviation and credible interval of every parameter, in its own values.

    Printed with three digits of the standard deviation, and with the first ten elements of each
    site; `to_dataframe()` has all. Each of the dicts has an array of the site's shape by its name.

    Attributes:
        mean: posterior means.
        sd: posterior standard deviations.
        lower: lower ends of the intervals, the quantiles at `(1 - probability) / 2`.
        upper: upper ends, the quantiles at `(1 + probability) / 2`.
        error: standard errors of the means where they are estimated from draws, NaN where they are
            known in closed form or by quadrature.
        probability: of the intervals.
        title: of what this is, in words.
        mode: the mode of q^G; None of draws.
        notes: what a reader must know.
        names: of the elements of those sites whose axes have labels: `theta[Lund]`.
    """

    mean: dict[str, Any]
    sd: dict[str, Any]
    lower: dict[str, Any]
    upper: dict[str, Any]
    error: dict[str, Any]
    probability: float
    title: str = ""
    mode: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    names: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)

    def __getitem__(self, site: str) -> "Summary":
        """The rows of one site alone.

        Raises:
            UnknownSiteError: when there is no such site.
        """
        if site not in self.mean:
            raise UnknownSiteError(
                f"`summary` has no site {site!r}; it has {', '.join(map(repr, self.mean))}."
            )
        names = ("mean", "sd", "lower", "upper", "error", "mode")
        parts = {name: getattr(self, name) for name in names}
        return dataclasses.replace(
            self, **{name: part and {site: part[site]} for name, part in parts.items()}
        )

    @property
    def interval(self) -> dict[str, tuple[Any, Any]]:
        """Lower and upper ends of the interval of each site."""
        return {name: (self.lower[name], self.upper[name]) for name in self.mean}

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns with their titles; modes and errors where there are any."""
        tail = 50.0 * (1.0 - self.probability)
        columns = [
            Column("mean", self.mean),
            Column("sd", self.sd),
            Column(f"{tail:.4g}%", self.lower),
            Column(f"{100.0 - tail:.4g}%", self.upper),
        ]
        if self.mode is not None:
            columns.insert(0, Column("mode", self.mode))
        if any(np.isfinite(error).any() for error in self.error.values()):
            columns.append(Column("mcse_mean", self.error))
        return tuple(columns)

    def to_dataframe(self) -> Any:
        """A pandas DataFrame, one row for each element of each site: `theta[0]`, `theta[Lund]`."""
        import pandas as pd  # noqa: PLC0415 - comes with arviz, and takes long to import

        labels = [label for name in self.mean for label in self._names_of(name)]
        return pd.DataFrame(
            {
                title: np.concatenate([np.ravel(v) for v in part.values()])
                for title, part in self.columns
            },
            index=labels,
        )

    def _names_of(self, site: str) -> list[str]:
        return self.names.get(site) or element_labels(site, self.mean[site])

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Texts of the printed rows, titles first."""
        columns = self.columns
        yield "", *(column.title for column in columns)
        for name in self.mean:
            labels = self._names_of(name)
            for index, label in enumerate(labels[:ROWS_SHOWN]):
                numbers = [float(np.ravel(part[name])[index]) for _, part in columns]
                decimals = _decimals(float(np.ravel(self.sd[name])[index]))
                cells = [
                    _short(number) if title == "mcse_mean" else _number(number, decimals)
                    for (title, _), number in zip(columns, numbers, strict=True)
                ]
                yield label, *cells
            if len(labels) > ROWS_SHOWN:
                more = f"{name}: {len(labels) - ROWS_SHOWN:,} more"
                yield more, *([""] * len(columns))

    @property
    def lines(self) -> list[str]:
        """The printed table, without title and notes."""
        names, *columns = map(list, zip(*self.rows(), strict=True))
        texts = [_left(names), *map(_at_the_point, columns)]
        return ["  ".join(row).rstrip() for row in zip(*texts, strict=True)]

    def __repr__(self) -> str:
        return "\n".join([*filter(None, [self.title]), *self.lines, *self.notes])

    def _repr_html_(self) -> str:
        return html_table(list(self.rows()), [*filter(None, [self.title]), *self.notes])


def require_probability(probability: Any, function: str) -> None:
    """Check that the probability of an interval lies between 0 and 1.

    Raises:
        ModelError: for anything else.
    """
    is_number = isinstance(probability, float | int | np.number)
    if not is_number or not 0.0 < float(probability) < 1.0:
        raise ModelError(
            f"`probability` of {function} is {probability!r}; it should be a number between 0 and "
            "1, such as 0.9 for an interval that leaves out 5 % on either side."
        )


class Summarized:
    """A result with a `summary`, and the columns of it by name."""

    summary: Callable[..., Summary]

    @property
    def mean(self) -> dict[str, np.ndarray]:
        """Means of the latent sites, as in `summary`."""
        return self.summary().mean

    @property
    def std(self) -> dict[str, np.ndarray]:
        """Standard deviations of the latent sites, as in `summary`."""
        return self.summary().sd

    def interval(self, probability: float = 0.9) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Ends of the credible interval of each latent site, as in `summary`."""
        return self.summary(probability).interval

    def to_dataframe(self) -> Any:
        """A pandas DataFrame of the `summary`, one row for each element of each site."""
        return self.summary().to_dataframe()


def element_labels(name: str, values: Any) -> list[str]:
    """Names of the elements, as ArviZ writes them."""
    shape = np.shape(values)
    return [f"{name}[{', '.join(map(str, i))}]" for i in np.ndindex(shape)] if shape else [name]


def _decimals(sd: float) -> int | None:
    """Decimals that show three digits of a standard deviation; None for powers of ten."""
    if not math.isfinite(sd) or sd <= 0.0 or not 1e-4 <= sd < 1e6:
        return None
    return max(SHOWN_DIGITS - 1 - math.floor(math.log10(sd)), 0)


def _number(number: float, decimals: int | None) -> str:
    if decimals is None:
        return f"{number:.4g}"
    return f"{number:z.{decimals}f}"


def _short(error: float) -> str:
    if not math.isfinite(error) or error == 0.0:
        return ""
    return np.format_float_positional(error, precision=2, fractional=False, trim="k").rstrip(".")


def _left(column: list[str]) -> list[str]:
    width = max(map(len, column))
    return [cell.ljust(width) for cell in column]


def _at_the_point(column: list[str]) -> list[str]:
    """A column with its decimal points below each other."""
    title, *cells = column
    after = [len(cell) - cell.find(".") if "." in cell else 0 for cell in cells]
    most = max(after, default=0)
    padded = [cell + " " * (most - n) for cell, n in zip(cells, after, strict=True)]
    width = max(map(len, [title, *padded]))
    return [cell.rjust(width) for cell in (title, *padded)]
