"""Draws of a posterior: with weights, in chains, or as the nodes of a quadrature rule."""

import dataclasses
from collections.abc import ItemsView, Iterator, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.diagnostics import effective_sample_size

from volform.checks import require_key, require_whole
from volform.compilation import compiled
from volform.errors import ModelError
from volform.generators import generator
from volform.inference.axis_names import names_of_elements
from volform.inference.laplace.gaussian_chart import (
    GaussianChart,
    UnconstrainedChart,
    densities_at,
)
from volform.inference.laplace.weighing import (
    around_direction,
    notes_on_angles,
    quantiles_of_cells,
    weighted_quantiles,
    widening,
)
from volform.inference.summary import Summary, require_probability
from volform.models.posterior import Posterior

MAPPED_AT_ONCE = 1000  # mapped to values at once; bounds the memory, and one program serves all
RESAMPLING = 7  # of a key, whose other streams are those of searches and estimators
FEWEST_FOR_TIMES = 8  # draws of a chain below which no autocorrelation is estimated


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Samples:
    """Draws of a posterior, with weights where they do not count alike.

    Kept as NumPy arrays in coordinates of a chart. Values, u and log densities are computed when
    they are first asked for. Pickled, they are kept and the posterior is not.

    A mapping from sites to draws, which NumPyro's `Predictive(model, draws)` takes; those with
    weights, of which it knows nothing, as `draws.resampled(key)`. As a pytree each leaf has the
    draws along its first axis, so that whatever maps over that axis sees one draw, by its sites.

    Attributes:
        posterior: the posterior; None of draws that were unpickled.
        chart: the coordinates w that the draws are kept in.
        points: the draws in w, shape (n, d), one chain after the other.
        chains: number of chains or runs, of equal length.
        outside: number of draws that fell outside the support: replaced, or of weight zero.
        log_weights: log of the weights, which sum to one, shape (n,); None where all count alike.
        log_q_points: log density with respect to dw of what the draws are from; None where it is
            not known.
        k_hat: Pareto's shape of the tail of the weights, by which they were smoothed.
        cells: of nodes of a quadrature rule, which have no random error, the standard deviation of
            each one's cell along each axis of w, shape (n, d); None of draws.
    """

    posterior: Posterior
    chart: GaussianChart
    points: Float[np.ndarray, "n d"]
    chains: int = 1
    outside: int = 0
    log_weights: Float[np.ndarray, " n"] | None = None
    log_q_points: Float[np.ndarray, " n"] | None = None
    k_hat: float | None = None
    cells: Float[np.ndarray, "n d"] | None = None

    @property
    def u(self) -> Float[np.ndarray, "n d"]:
        """The draws in unconstrained coordinates."""
        return self.points if self._is_in_u else self._located[0]

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """Draws of the latent sites, each of shape (n, ...)."""
        return self._located[2]

    @cached_property
    def log_p_points(self) -> Float[np.ndarray, " n"]:
        """Log joint density with respect to dw."""
        return densities_at(self.posterior, self.chart, self.points)[0]

    @property
    def log_p(self) -> Float[np.ndarray, " n"]:
        """Log joint density of data and draw, with respect to Lebesgue measure in u.

        That of NumPyro's samplers, and of `posterior.log_density_lebesgue`. Cost: the first time
        one density for each draw.
        """
        return self.log_p_points + self._log_det

    @property
    def log_q(self) -> Float[np.ndarray, " n"] | None:
        """Log density of what the draws are from, with respect to Lebesgue measure in u.

        Of importance sampling the proposal, of a Laplace approximation its Gaussian, whose mass
        outside of the support is not divided out; None of chains, particles and nodes.
        """
        return None if self.log_q_points is None else self.log_q_points + self._log_det

    @cached_property
    def weights(self) -> Float[np.ndarray, " n"]:
        """The weights, which sum to one."""
        n = len(self.points)
        if self.log_weights is None:
            return np.full(n, 1.0 / n)
        weights = np.exp(np.asarray(self.log_weights, float))
        return weights / weights.sum()

    @property
    def effective(self) -> float:
        """Effective number of draws by their weights, `1 / sum of squares`."""
        return float(1.0 / np.sum(self.weights**2))

    def resampled(self, key: PRNGKeyArray, draws: int = 1000) -> "Samples":
        """Draws that count alike, drawn again by their weights, with replacement.

        Args:
            key: key of the draws.
            draws: number of draws; below a tenth of `effective` hardly any comes twice.
        """
        require_key(key, "key", "resampled", ModelError)
        require_whole(draws, "draws", "resampled", ModelError)
        chosen = generator(key, RESAMPLING).choice(len(self.points), size=draws, p=self.weights)
        log_q = None if self.log_q_points is None else self.log_q_points[chosen]
        found = Samples(
            self.posterior, self.chart, self.points[chosen], log_q_points=log_q, k_hat=self.k_hat
        )
        for name in {"_located", "log_p_points"} & set(vars(self)):
            vars(found)[name] = jax.tree.map(lambda part: part[chosen], getattr(self, name))
        return found

    def summary(
        self, probability: float = 0.9, *, title: str = "", notes: Sequence[str] = ()
    ) -> Summary:
        """Mean, standard deviation and credible interval of every parameter.

        The standard error of a mean is by the autocorrelation of chains, or by the delta method
        of weighted draws, and no less than by the spread of runs; with weights of k-hat above .3 it
        is widened as that of log Z. Angles are taken around their mean direction.

        Args:
            probability: of the intervals.
            title: of the table.
            notes: lines below it.

        Raises:
            ModelError: when `probability` is not between 0 and 1.
        """
        require_probability(probability, "summary")
        ends, turned = (0.5 - 0.5 * probability, 0.5 + 0.5 * probability), []
        found: dict[str, dict[str, Any]] = {name: {} for name in _COLUMNS}
        for name, (shape, is_angle) in self._sites.items():
            x = self._columns(name)
            turned += [name] * is_angle
            numbers = *self._moments(x), *self._quantiles(name, x, ends)
            for column, number in zip(_COLUMNS, numbers, strict=True):
                found[column][name] = number.reshape(shape)
        notes = (*notes, *notes_on_angles(turned, found))
        return Summary(
            **found,
            probability=float(probability),
            title=title,
            notes=notes,
            names=names_of_elements(self.posterior),
        )

    def marginal(self, name: str) -> tuple[Float[np.ndarray, "n ..."], Float[np.ndarray, " n"]]:
        """Draws of one site and their weights, all positive.

        Angles are taken around their mean direction.

        Args:
            name: a latent site.
        """
        kept = self.weights > 0.0
        return self._columns(name)[kept].reshape(-1, *self._sites[name][0]), self.weights[kept]

    def quantiles(self, name: str, at: Sequence[float]) -> Float[np.ndarray, "q ..."]:
        """Quantiles of each element of one site, the weight of nodes spread over their cells.

        Args:
            name: a latent site.
            at: probabilities, shape (q,).
        """
        found = np.asarray(self._quantiles(name, self._columns(name), at))
        return found.reshape(len(at), *self._sites[name][0])

    def _columns(self, name: str) -> Float[np.ndarray, "n k"]:
        """Draws of the elements of a site; zero outside of the support, where they mean nothing."""
        kept = self.weights > 0.0
        x = np.reshape(self.values[name], (len(kept), -1)).astype(float)
        x = np.where(kept[:, None], x, 0.0)
        return around_direction(x, self.weights) if self._sites[name][1] else x

    def expectation(
        self, x: Float[np.ndarray, "n k"]
    ) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Means over the posterior of numbers at each draw, and their standard errors.

        Args:
            x: the numbers, shape (n, k); those of draws without weight are of no account.

        Returns:
            Means, and standard errors as those of `summary`: NaN of nodes.
        """
        mean, _, error = self._moments(np.where(self.weights[:, None] > 0.0, x, 0.0))
        return mean, error

    def _quantiles(self, name: str, x: Float[np.ndarray, "n k"], at: Sequence[float]) -> Any:
        """Quantiles of each element of a site, shape (q, k)."""
        if self.log_weights is None:
            return np.quantile(x, at, axis=0)
        kept = self.weights > 0.0
        weights, columns = self.weights[kept], x[kept].T
        if self.cells is None:
            return np.array([weighted_quantiles(x, weights, at) for x in columns]).T
        cells = np.reshape(self._located[3][name], x.shape)[kept].T
        pairs = zip(columns, cells, strict=True)
        return np.array([quantiles_of_cells(x, weights, cell, at) for x, cell in pairs]).T

    def _moments(self, x: Float[np.ndarray, "n k"]) -> tuple[np.ndarray, ...]:
        """Means, standard deviations, and standard errors of the means."""
        n, weights = len(x), self.weights
        mean = weights @ x
        varies = np.ptp(x[weights > 0.0], axis=0) > 1e-12 * np.abs(mean)
        x = np.where(varies, x, mean)  # of a constant rounding is no deviation
        sd = np.sqrt(weights @ (x - mean) ** 2)
        if self.cells is not None:
            return mean, sd, np.full_like(mean, np.nan)
        if self.log_weights is None:
            sd = sd * np.sqrt(n / max(n - 1, 1))
            return mean, sd, sd / np.sqrt(self._effective_of(x))
        parts = weights[:, None] * (x - mean)
        variance = (parts**2).sum(0) * n / max(n - 1, 1)
        if self.chains > 1:
            of_runs = parts.reshape(self.chains, -1, parts.shape[1]).sum(1)
            spread = (of_runs**2).sum(0) * self.chains / (self.chains - 1)
            variance = np.maximum(variance, spread)
        return mean, sd, np.sqrt(variance) * widening(self.k_hat or 0.0, n)

    def _effective_of(self, x: Float[np.ndarray, "n k"]) -> Any:
        by_chain = x.reshape(self.chains, -1, x.shape[1])
        if by_chain.shape[1] < FEWEST_FOR_TIMES:
            return len(x)
        with np.errstate(invalid="ignore", divide="ignore"):  # of a constant
            return effective_sample_size(by_chain)

    @cached_property
    def _located(self) -> Any:
        """u, `log |det dw/du|`, the values, and the deviations of their cells."""
        return _in_pieces(self.posterior, self.chart, self.points, self.cells)

    @property
    def _log_det(self) -> Any:
        return 0.0 if self._is_in_u else self._located[1]

    @property
    def _is_in_u(self) -> bool:
        return isinstance(self.chart, UnconstrainedChart)

    @cached_property
    def _sites(self) -> dict[str, tuple[tuple[int, ...], bool]]:
        """Shape of each latent site, and whether it is an angle."""
        return {site.name: (site.shape, site.circular) for site in self.posterior.layout.sites}

    def keys(self) -> tuple[str, ...]:
        """Names of the latent sites."""
        return tuple(self._sites)

    def items(self) -> ItemsView[str, np.ndarray]:
        """Sites with their draws, which count alike.

        Raises:
            ModelError: draws with weights, which whoever takes draws by site would leave out.
        """
        if self.log_weights is not None:
            raise ModelError(
                "`draws` have weights, and by site they would count alike: take "
                "`draws.resampled(key)`, or `draws.values` beside `draws.weights`."
            )
        return self.values.items()

    def get(self, name: str, default: Any = None) -> Any:
        """Draws of the site called `name`, or the default where there is none."""
        return self.values.get(name, default)

    def __getitem__(self, name: str) -> np.ndarray:
        """Draws of the site called `name`, shape (n, ...)."""
        return self.values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._sites

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __getstate__(self) -> dict[str, Any]:
        # A posterior holds what cannot be pickled: functions of its model.
        _ = self._located, self.log_p_points, self._sites
        return {n: part for n, part in vars(self).items() if n != "values"} | {"posterior": None}

    def tree_flatten_with_keys(self) -> Any:
        """Leaves, which have the draws along their first axis, and the rest."""
        children = [(GetAttrKey(name), getattr(self, name)) for name in _BY_DRAW]
        return children, _Rest({n: getattr(self, n) for n in _NOT_BY_DRAW})

    @classmethod
    def tree_unflatten(cls, rest: "_Rest", children: Any) -> "Samples":
        """The draws again."""
        made = object.__new__(cls)
        vars(made).update(rest.parts, **dict(zip(_BY_DRAW, children, strict=True)))
        return made

    def __repr__(self) -> str:
        n = len(self.points)
        shapes = ", ".join(f"{name} {(n, *shape)}" for name, (shape, _) in self._sites.items())
        text = f"{n} {'draws' if self.cells is None else 'nodes'} ({shapes})"
        if self.log_weights is not None:
            return f"{text}, {self.effective:.0f} effective by their weights"
        if self.chains > 1:
            return f"{text} in {self.chains} chains"
        return f"{text}, {self.outside} replaced outside the support"


_BY_DRAW = ("points", "log_weights", "log_q_points", "cells", "values")
_NOT_BY_DRAW = ("posterior", "chart", "chains", "outside", "k_hat", "_sites")


class _Rest:
    """Parts of draws that are no leaves of their pytree, equal where all are the same."""

    def __init__(self, parts: dict[str, Any]):
        self.parts = parts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rest) and self._ids == other._ids

    def __hash__(self) -> int:
        return hash(self._ids)

    @property
    def _ids(self) -> tuple[int, ...]:
        return tuple(map(id, self.parts.values()))


_COLUMNS = ("mean", "sd", "error", "lower", "upper")


def _in_pieces(
    posterior: Posterior, chart: GaussianChart, w: Float[np.ndarray, "n d"], cells: Any
) -> Any:
    """u, `log |det dw/du|`, values and cells, by one program of a fixed number of points."""
    size, found = min(len(w), MAPPED_AT_ONCE), []
    given = (w,) if cells is None else (w, cells)
    for start in range(0, len(w), size):
        pieces = [np.asarray(part[start : start + size], jnp.result_type(float)) for part in given]
        missing = size - len(pieces[0])
        padded = [np.concatenate([p, np.repeat(p[:1], missing, axis=0)]) for p in pieces]
        found.append(jax.tree.map(np.asarray, _located_at(posterior, chart, *padded)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(w)], *found)


@compiled
def _located_at(
    posterior: Posterior, chart: GaussianChart, w: Float[Array, "n d"], cells: Any = None
) -> Any:
    def at(w: Float[Array, " d"]) -> Any:
        u, log_det, _ = chart.placed(posterior, w)
        return u, log_det, posterior.values(u)

    def cell_at(w: Float[Array, " d"], cell: Float[Array, " d"]) -> Any:
        # Of few parameters, as every quadrature rule is.
        slopes = jax.jacfwd(lambda w: at(w)[2])(w)
        return jax.tree.map(lambda part: jnp.linalg.norm(part * cell, axis=-1), slopes)

    located = jax.vmap(at)(w)
    return located if cells is None else (*located, jax.vmap(cell_at)(w, cells))
