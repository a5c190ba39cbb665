"""The evidence of a model, with its error and how far it can be trusted."""

import enum
import html
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.errors import ModelError


def scalar(value: float, dtype: Any = float) -> Float[Array, ""]:
    """A number as an array of JAX, for which `jnp.asarray` would compile a program."""
    return jax.device_put(np.asarray(value, jnp.result_type(dtype)))


class Level(enum.Enum):
    """Degree to which a result can be trusted, in one word."""

    GOOD = "good"
    FAIR = "fair"
    POOR = "poor"
    UNCHECKED = "unchecked"


class Trust(eqx.Module):
    """A verdict on a result, with its reason.

    "good" says that a global check was passed: Pareto k-hat, chains that mixed, or quadrature
    that converged; or that there is a closed form. "fair" says that only a local check was passed,
    or a global one with reservations; "poor" that a check failed; "unchecked" that there was none.
    """

    level: Level = eqx.field(static=True)
    reason: str = eqx.field(static=True)

    def but(self, reservations: Sequence[str]) -> "Trust":
        """The same verdict, no longer good where there are reservations."""
        if not reservations:
            return self
        level = Level.FAIR if self.level is Level.GOOD else self.level
        return Trust(level, "; ".join([self.reason, *reservations]))

    def given(self, condition: str) -> "Trust":
        """The same verdict; if it is good, with what it rests on and no check of it can see."""
        if self.level is not Level.GOOD:
            return self
        return Trust(self.level, f"{self.reason}; {condition}")

    def __str__(self) -> str:
        return f"{self.level.value}: {self.reason}"


class Cost(eqx.Module):
    """Evaluations of the model.

    Attributes:
        densities: evaluations of the log density alone.
        gradients: evaluations of its gradient; a Hessian in d dimensions counts as d of them.
    """

    densities: int = eqx.field(static=True, default=0)
    gradients: int = eqx.field(static=True, default=0)

    def __add__(self, other: "Cost") -> "Cost":
        """Both together."""
        return Cost(self.densities + other.densities, self.gradients + other.gradients)

    def __sub__(self, other: "Cost") -> "Cost":
        """This without the other."""
        return Cost(self.densities - other.densities, self.gradients - other.gradients)

    def __str__(self) -> str:
        return f"{self.densities:,} densities, {self.gradients:,} gradients"


class Regime(NamedTuple):
    """The way in which a result was computed, which the number of parameters may decide.

    Attributes:
        method: in words, such as "dense Hessian".
        above: number of parameters above which it is computed so, zero where that is the usual
            way, or was asked for.
    """

    method: str
    above: int = 0

    def __str__(self) -> str:
        return f"{self.method} (above {self.above:,} parameters)" if self.above else self.method


def in_words(regimes: Sequence[Regime]) -> str:
    """Those of the regimes that the number of parameters decided; empty where there are none."""
    return "; ".join(str(regime) for regime in regimes if regime.above)


def text_table(rows: Sequence[Sequence[str]], *, to_the_right: bool = False) -> list[str]:
    """Lines of a table of text: titles in the first row, a name first in each.

    Args:
        rows: texts.
        to_the_right: whether cells end under each other, as numbers do, and do not begin so.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    place = str.rjust if to_the_right else str.ljust
    lines = ("  ".join(map(place, row, widths)) for row in rows)
    return [line.rstrip() for line in lines]


def html_table(rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """A table as HTML, its texts escaped here: titles first, a name first in each row; notes."""
    titles, *body = [[html.escape(cell) for cell in row] for row in rows]
    head = "".join(f"<th>{title}</th>" for title in titles)
    lines = [
        f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for name, *cells in body
    ]
    below = html_notes(notes)
    thead, tbody = f"<thead><tr>{head}</tr></thead>", f"<tbody>{''.join(lines)}</tbody>"
    return f"<table>{thead}{tbody}</table>{below}"


def html_notes(notes: Sequence[str]) -> str:
    """Lines of text as HTML, escaped here."""
    return "".join(f"<div>{html.escape(note)}</div>" for note in notes)


PRNG_KEY = "numpyro.prng_key()"  # stands among what is held, beside names of sites


def notes_on_held(held: Sequence[str]) -> list[str]:
    """Notes on what a density depends on though it is neither a latent site nor an argument."""
    params = [name for name in held if name != PRNG_KEY]
    notes = []
    if params:
        notes.append(
            f"held at the start, and in no integral: the `numpyro.param` {', '.join(params)}; "
            "give it a prior by `handlers.lift`, or make it an argument and use "
            "`vf.maximize_evidence`"
        )
    if PRNG_KEY in held:
        notes.append(
            f"held at one draw: what `{PRNG_KEY}` is used for; draw outside the model and pass the "
            "result as an argument"
        )
    return notes


class Provenance(NamedTuple):
    """Provenance of an evidence, as one trace of the model tells it.

    Attributes:
        improper: latent sites whose prior is improper or known only up to a factor, masked or
            scaled ones among them.
        factors: `numpyro.factor` sites, by which the density need not be normalized.
        equivalent_modes: product of `infer={"equivalent_modes": n}` over the sites; None where
            no site declares one.
        data: shape and digest of the values of each observed site, sorted; names do not enter,
            nor do axes of length one, nor what is masked; powers do. The digest is empty where
            the values depend on the parameters.
        by_factor: those of the `factors` that arrays among the model's arguments enter: data that
            nothing is known of.
        powers: observed sites whose likelihood is taken to a power, with the power in digits.
        masked: observed sites of which some values are masked, with how many in words.
        held: `numpyro.param` sites that the density depends on, and `PRNG_KEY` where it depends
            on `numpyro.prng_key`.
        unobserved: whether the model observes nothing.
        uncounted: sites with `infer={"equivalent_modes": None}`: they may have equivalent modes,
            and nobody counted them.
    """

    improper: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()
    equivalent_modes: int | None = None
    data: tuple[tuple[tuple[int, ...], str], ...] = ()
    by_factor: tuple[str, ...] = ()
    powers: tuple[tuple[str, str], ...] = ()
    masked: tuple[tuple[str, str], ...] = ()
    held: tuple[str, ...] = ()
    unobserved: bool = False
    uncounted: tuple[str, ...] = ()

    @property
    def is_of_known_data(self) -> bool:
        """True if no observed value depends on the parameters."""
        return all(digest for _, digest in self.data)

    def require_proper(self, allow_improper: bool) -> None:
        """Check that there is an evidence.

        Raises:
            ModelError: when a prior is improper, unless that is allowed.
        """
        if self.improper and not allow_improper:
            raise ModelError(
                f"The prior of `{'`, `'.join(self.improper)}` is improper or known only up to a "
                "factor, so that the evidence is defined only up to a factor too: it cannot be "
                "compared. Give a proper prior, without `mask` and `handlers.scale`; "
                "`allow_improper=True` gives the formal integral, which is right if a "
                "`numpyro.factor` completes the prior."
            )

    def with_equivalent_modes(self, count: int) -> "Provenance":
        """The same provenance with a given number of equivalent modes.

        Raises:
            ModelError: when it is no positive integer.
        """
        count = require_count(count, "the call")
        return self._replace(equivalent_modes=count, uncounted=())

    def notes(self) -> list[str]:
        """Notes that a reader of the evidence needs."""
        notes = []
        if self.unobserved:
            notes.append(
                "nothing is observed, so that log Z is 0, of the prior alone: were the data passed?"
            )
        if self.improper:
            notes.append(f"formal integral: the prior of {', '.join(self.improper)} is improper")
        alone = [name for name in self.factors if name not in self.by_factor]
        if alone:
            notes.append(f"integral of a density that {', '.join(alone)} may leave unnormalized")
        if self.by_factor:
            notes.append(f"likelihood by `numpyro.factor` ({', '.join(self.by_factor)})")
        notes += [
            f"likelihood to the power {power} at `{name}`: not an evidence of these data"
            for name, power in self.powers
        ]
        notes += [f"{count} values of `{name}` are masked" for name, count in self.masked]
        return notes + notes_on_held(self.held)


def require_count(count: object, where: str) -> int:
    """A number of equivalent modes; raises ModelError unless it is a positive integer."""
    if not isinstance(count, int) or count < 1:
        raise ModelError(
            f"`equivalent_modes` in {where} is {count!r}; it should be a positive integer, such "
            "as `math.factorial(k)` for k exchangeable components."
        )
    return count


class Evidence(eqx.Module):
    """Log evidence, log Z = log of the integral of p(data, theta), by any estimator.

    By the invariant Laplace approximation,
    `log_z = log q^G(theta*) + d/2 log(2 pi) - 1/2 log det(G^-1 H)` at the mode theta* of q^G, and
    `log_z_second_order = log_z + log(1 + correction)`. Both are the same in every parametrization;
    both depend on the metric, at relative order 1/n.

    Attributes:
        log_z: log evidence.
        error: standard error in nats for a Monte Carlo estimate; for quadrature, the change at
            the last refinement; for Laplace, the size of the next term of its expansion, which
            bounds nothing. Zero for a closed form, NaN where it is not known.
        correction: c, Laplace's built-in gauge. None for other estimators, and where it was not
            computed; `note` then says why.
        metric: the metric, as it was attached: for the whole model, or by site; None where none
            had a part in it. `metric_name` is its text.
        dim: number of parameters d; zero where all are integrated out in closed form.
        method: the estimator in words.
        trust: a verdict in words, with its reason.
        diagnostics: the numbers behind the verdict, by name.
        cost: evaluations of the model.
        note: what a reader must know, empty where there is nothing.
        provenance: of which data it is, and whether priors and factors leave it comparable.
        terms: the summands of log Z by name, of Laplace's method: `"log q^G at the mode"`,
            `"d/2 log 2 pi"`, `"-1/2 log det(G^-1 H)"`; where they were counted `"other modes"` and
            `"equivalent modes"`; and `"log(1 + c)"` where there is a correction. All together are
            `log_z_second_order`, and without the last `log_z`; where no correction is given they
            are `log_z`. Empty for estimators that have no such summands.
        regimes: how the mode was searched, and how the matrix or the draws were computed.
        draws: the draws of the posterior that the estimator made, weighted ones or chains, or the
            nodes of quadrature with their weights; None where there are none, as by Laplace.
    """

    log_z: Float[Array, ""]
    error: Float[Array, ""]
    correction: Float[Array, ""] | None
    metric: Any
    dim: int = eqx.field(static=True)
    method: str = eqx.field(static=True)
    trust: Trust
    diagnostics: dict[str, float]
    cost: Cost
    note: str = eqx.field(static=True, default="")
    provenance: Provenance = eqx.field(static=True, default=Provenance())
    terms: OrderedDict[str, Float[Array, ""]] = eqx.field(default_factory=OrderedDict)
    regimes: tuple[Regime, ...] = eqx.field(static=True, default=())
    draws: Any = None

    def summary(self, probability: float = 0.9) -> Any:
        """Mean, standard deviation and credible interval of every parameter, by the draws.

        Args:
            probability: of the interval between quantiles that leave out as much on either side.

        Returns:
            A `Summary`: printed as a table, `.to_dataframe()`.

        Raises:
            ModelError: when the estimator has no draws, or `probability` is not between 0 and 1.

        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> found = vf.evidence(vf.condition(model, jnp.array([0.5, 1.5])))
        >>> print(found.summary())  # exact: mean 2/3, sd 1/sqrt(3), 2/3 ± 1.645/sqrt(3)
        Posterior by quadrature
             mean     sd      5%    95%
        mu  0.667  0.577  -0.283  1.616
        """
        if self.draws is None:
            raise ModelError(
                f"The evidence by {self.method} has no draws to give a `summary` of. Take "
                "`vf.laplace(posterior).summary()`, of its Gaussian, or an estimator that has: "
                "`vf.evidence(posterior, by=vf.Importance()).summary()`."
            )
        notes = [] if self.trust.level is Level.GOOD else [f"trust {self.trust}"]
        return self.draws.summary(probability, title=f"Posterior by {self.method}", notes=notes)

    @property
    def metric_name(self) -> str:
        """The metric in words, empty where there is none."""
        return "" if self.metric is None else repr(self.metric)

    @property
    def log_z_second_order(self) -> Float[Array, ""] | None:
        """`log_z + log(1 + c)`; NaN where c <= -1, None where there is no c."""
        if self.correction is None:
            return None
        c = float(self.correction)
        second = float(self.log_z) + (math.log1p(c) if c > -1.0 else math.nan)
        return scalar(second, jnp.result_type(self.log_z))

    def to_dataframe(self) -> Any:
        """A pandas DataFrame of one row, with the columns that a comparison has of each model."""
        import pandas as pd  # noqa: PLC0415 - comes with arviz, and takes long to import

        row = {
            "log_z": float(self.log_z),
            "error": float(self.error),
            "method": self.method,
            "k_hat": self.diagnostics.get("k_hat", math.nan),
            "trust": self.trust.level.value,
            "reason": self.trust.reason,
            "metric": self.metric_name,
            "parameters": self.dim,
            "densities": self.cost.densities,
            "gradients": self.cost.gradients,
        }
        return pd.DataFrame([row])

    def __repr__(self) -> str:
        text = f"log Z {float(self.log_z):z.3f}"
        if self.correction is not None and self.log_z_second_order is not None:
            text += (
                f", second order {float(self.log_z_second_order):z.3f}"
                f", correction c = {float(self.correction):+.3f}"
            )
        elif float(self.error) == 0.0:
            text += f", {self.method}"
        elif math.isfinite(float(self.error)):
            text += f" ± {_short(float(self.error))} by {self.method}"
        elif self.method != "Laplace":
            text += f" by {self.method}"
        metric = f", metric {self.metric_name.replace('()', '')}" if self.metric_name else ""
        text += f"{metric}, {self.dim} parameters"
        rows = text, f"trust {self.trust}", self.note, in_words(self.regimes)
        return "\n".join(row for row in rows if row)

    def _repr_html_(self) -> str:
        second = self.log_z_second_order
        rows = [
            ("", self.method),
            ("log Z", f"{float(self.log_z):z.3f}"),
            *([] if second is None else [("second order", f"{float(second):z.3f}")]),
            ("error", _short(float(self.error))),
            ("metric", self.metric_name.replace("()", "")),
            ("parameters", f"{self.dim:,}"),
            ("trust", str(self.trust)),
        ]
        return html_table(rows, [note for note in (self.note, in_words(self.regimes)) if note])


def _short(error: float) -> str:
    return f"{error:.3f}" if error >= 0.0005 else f"{error:.1g}"
