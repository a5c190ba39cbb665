"""The evidence of a model, with its error and how far it can be trusted."""

import enum
import math
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from volform.models.facts import Facts


class Level(enum.Enum):
    """How far a result can be trusted, in one word."""

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
        metric: the metric in words, empty where none had a part in it.
        dim: number of parameters d; zero where all are integrated out in closed form.
        method: the estimator in words.
        trust: a verdict in words, with its reason.
        diagnostics: the numbers behind the verdict, by name.
        cost: evaluations of the model.
        note: what a reader must know, empty where there is nothing.
        facts: of which data it is, and whether priors and factors leave it comparable.
    """

    log_z: Float[Array, ""]
    error: Float[Array, ""]
    correction: Float[Array, ""] | None
    metric: str = eqx.field(static=True)
    dim: int = eqx.field(static=True)
    method: str = eqx.field(static=True)
    trust: Trust
    diagnostics: dict[str, float]
    cost: Cost
    note: str = eqx.field(static=True, default="")
    facts: Facts = eqx.field(static=True, default=Facts())

    @property
    def log_z_second_order(self) -> Float[Array, ""] | None:
        """`log_z + log(1 + c)`; NaN where c <= -1, None where there is no c."""
        return None if self.correction is None else self.log_z + jnp.log1p(self.correction)

    def __repr__(self) -> str:
        text = f"log Z {float(self.log_z):.3f}"
        if self.correction is not None and self.log_z_second_order is not None:
            text += (
                f", second order {float(self.log_z_second_order):.3f}"
                f", correction c = {float(self.correction):+.3f}"
            )
        elif float(self.error) == 0.0:
            text += f", {self.method}"
        elif math.isfinite(float(self.error)):
            text += f" ± {_short(float(self.error))} by {self.method}"
        elif self.method != "Laplace":
            text += f" by {self.method}"
        metric = f", metric {self.metric.removesuffix('()')}" if self.metric else ""
        text += f"{metric}, {self.dim} parameters"
        return "\n".join(line for line in (text, f"trust {self.trust}", self.note) if line)


def _short(error: float) -> str:
    return f"{error:.3f}" if error >= 0.0005 else f"{error:.1g}"
