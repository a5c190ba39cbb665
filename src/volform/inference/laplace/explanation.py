"""An evidence by Laplace's method taken apart: its terms, and the part of each site in them."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float

from volform.compilation import steady
from volform.inference.laplace.gauss_newton import DataPriorSplit
from volform.inference.laplace.sums import comes_in_batches, over_batches, without_data
from volform.inference.modes.mode import ExpansionPoint
from volform.limits import EXPLAINED_UP_TO
from volform.linalg.structured import DenseOperator, FlatBlocks, exact_logdet
from volform.models.layout import Site
from volform.models.posterior import Posterior
from volform.results import Evidence, in_words

_DENSE = (DenseOperator, lx.MatrixLinearOperator)
_BY_BLOCK = "the block of each site, exact"
_IN_ORDER = "each site given those above it, by Cholesky in this order"
_COLUMNS = (
    "log density",
    "log |dv/du|",
    "1/2 log det G",
    "1/2 log det H",
    "log q^G",
    "-1/2 log det(G^-1 H)",
)


class SiteShare(NamedTuple):
    """The part of one site in the evidence, in nats.

    An observed site and a factor have a density and no coordinates: their other parts are zero.

    Attributes:
        name: name of the site.
        role: "prior", "likelihood" or "factor".
        has_coordinates: whether it is a latent site, a part of the space that is integrated over.
        log_density: log density of its value at the mode, in the model as it is written.
        log_jacobian: `log |det dv/du|` of its chart.
        half_log_det_metric: its part of `1/2 log det G`, in unconstrained coordinates.
        half_log_det_precision: its part of `1/2 log det H`, H the precision matrix.
    """

    name: str
    role: str
    has_coordinates: bool
    log_density: float
    log_jacobian: float = 0.0
    half_log_det_metric: float = 0.0
    half_log_det_precision: float = 0.0

    @property
    def log_q(self) -> float:
        """Its part of log q^G at the mode."""
        return self.log_density + self.log_jacobian - self.half_log_det_metric

    @property
    def half_log_det(self) -> float:
        """Its part of `-1/2 log det(G^-1 H)`."""
        return self.half_log_det_metric - self.half_log_det_precision


class Explanation(eqx.Module):
    """An evidence with its terms, and the part of each site; built by `approx.explain()`.

    `log q^G = sum of log densities + log |dv/du| - 1/2 log det G`, and the columns sum to the
    first and the third of the evidence's terms.

    Attributes:
        evidence: the evidence.
        sites: the part of each site, the latent ones in the order of u, then the observed ones.
        splits: how `log det G` and `log det H` were divided among the sites, in words.
        verdict: what kind of point the evidence was taken at.
    """

    evidence: Evidence
    sites: tuple[SiteShare, ...]
    splits: tuple[str, ...] = eqx.field(static=True)
    verdict: str = eqx.field(static=True)

    def __getitem__(self, name: str) -> SiteShare:
        """The part of the site called `name`; a KeyError where there is none."""
        return {site.name: site for site in self.sites}[name]

    def __repr__(self) -> str:
        table = _site_table(self.sites)
        notes = [*self.splits, in_words(self.evidence.regimes)]
        if any("?" in row for row in table):
            notes.append(f"?: not a number, or not divided among the sites ({self.verdict})")
        trust = f"trust {self.evidence.trust}"
        terms = [*_term_table(self.evidence), *filter(None, [self.evidence.note])]
        return "\n".join([*terms, "", *table, "", *filter(None, notes), trust])


def explained(
    place: ExpansionPoint, precision: lx.AbstractLinearOperator, evidence: Evidence
) -> Explanation:
    """The parts of the sites in a Laplace evidence at one point.

    `log det` of a block-diagonal matrix is the sum of those of its blocks. Of any other it is the
    sum over the sites of `log det` of the Schur complement of the earlier ones, by Cholesky in the
    order of u: what a site adds to the volume given those above it. Cost O(d^3) at most, and one
    run of the model; above 2,000 parameters no matrix is formed that was not there.

    Args:
        place: where.
        precision: the precision matrix there, in u.
        evidence: the evidence that it gave.
    """
    posterior = place.posterior
    split = DataPriorSplit(posterior, place.at.u, posterior.data_sites)
    densities, jacobians, metric = _parts(without_data(split).posterior, split.u)
    if comes_in_batches(split):
        densities |= over_batches(split, _densities_of_data)
    of_metric, split_of_metric = _half_log_dets(metric, posterior.layout.sites)
    of_precision, split_of_precision = _half_log_dets(precision, posterior.layout.sites)
    latent = [
        SiteShare(name, "prior", True, float(densities[name]), float(jacobians[name]), half, other)
        for name, half, other in zip(posterior.names, of_metric, of_precision, strict=True)
    ]
    factors = evidence.provenance.factors
    roles = {name: "factor" if name in factors else "likelihood" for name in posterior.observed}
    observed = [
        SiteShare(name, role, False, float(densities[name])) for name, role in roles.items()
    ]
    splits = {"log det G": split_of_metric, "log det H": split_of_precision}
    if split_of_metric == split_of_precision:
        splits = {"log det G and log det H": split_of_metric}
    lines = tuple(f"{name}: {split}" for name, split in splits.items())
    return Explanation(evidence, (*latent, *observed), lines, str(place.verdict))


@eqx.filter_jit  # outside of it NumPyro's validation raises an error of its own at NaN
def _parts(posterior: Posterior, u: Float[Array, " d"]) -> tuple[dict, dict, Any]:
    """Log densities by site, `log |dv/du|` by latent site, and the metric."""
    values = posterior.values(u)
    jacobians = {
        site.name: jnp.sum(site.chart.log_abs_det_jacobian(site.part(u), values[site.name]))
        for site in posterior.layout.sites_at(values)
    }
    return posterior.program.site_densities(values), jacobians, posterior.metric(u)


@steady
def _densities_of_data(split: DataPriorSplit) -> dict[str, Array]:
    found = split.posterior.program.site_densities(split.posterior.values(split.u))
    return {name: found[name] for name in split.names}


def _half_log_dets(operator: Any, sites: tuple[Site, ...]) -> tuple[list[float], str]:
    """Half the log determinant of a matrix in u, for each site, and how it was divided."""
    if isinstance(operator, lx.IdentityLinearOperator):
        return [0.0] * len(sites), _BY_BLOCK
    if isinstance(operator, lx.DiagonalLinearOperator):
        logs = jnp.log(operator.diagonal)
        return [0.5 * float(jnp.sum(logs[site.segment])) for site in sites], _BY_BLOCK
    if isinstance(operator, FlatBlocks) and _are_of(operator, sites):
        return [0.5 * float(exact_logdet(block)) for block in operator.blocks], _BY_BLOCK
    if not isinstance(operator, _DENSE) and operator.in_size() > EXPLAINED_UP_TO:
        whole = f"1/2 log det is {0.5 * float(exact_logdet(operator)):.3f} in all"
        reason = f"not divided: above {EXPLAINED_UP_TO:,} parameters no matrix is formed for it"
        return [math.nan] * len(sites), f"{reason}; {whole}"
    matrix = operator.as_matrix()
    units = jnp.sqrt(jnp.abs(jnp.diagonal(matrix)))
    units = jnp.where(units > 0.0, units, 1.0)
    lower = jnp.linalg.cholesky(matrix / jnp.outer(units, units))
    logs = jnp.log(jnp.diagonal(lower)) + jnp.log(units)
    halves = [float(jnp.sum(logs[site.segment])) for site in sites]
    return halves, _IN_ORDER if _is_coupled(np.asarray(matrix), sites) else _BY_BLOCK


def _are_of(operator: FlatBlocks, sites: tuple[Site, ...]) -> bool:
    """True if the blocks are those of the sites."""
    return [block.in_size() for block in operator.blocks] == [site.size for site in sites]


def _is_coupled(matrix: Float[np.ndarray, "d d"], sites: tuple[Site, ...]) -> bool:
    """True if it has entries outside the sites' blocks."""
    return any(np.any(matrix[site.segment, : site.start] != 0.0) for site in sites)


def _term_table(evidence: Evidence) -> list[str]:
    """The terms one below the other, with their sums."""
    terms = {name: _number(value) for name, value in evidence.terms.items()}
    correction = terms.pop("log(1 + c)", None)
    rows = {**terms, "log Z": _number(evidence.log_z)}
    if correction is not None:
        second = _number(evidence.log_z_second_order)
        rows |= {"log(1 + c)": correction, "log Z, second order": second}
    left, right = max(map(len, rows)), max(map(len, rows.values()))
    lines = [f"  {name.ljust(left)}  {value.rjust(right)}" for name, value in rows.items()]
    metric = f" under {evidence.metric_name}" if evidence.metric_name else ""
    return [f"log Z by {evidence.method}{metric}, {evidence.dim} parameters", *lines]


def _site_table(sites: tuple[SiteShare, ...]) -> list[str]:
    """The parts of the sites, with the sum of each column."""
    numbers = [
        (
            site.log_density,
            site.log_jacobian,
            site.half_log_det_metric,
            site.half_log_det_precision,
            site.log_q,
            site.half_log_det,
        )
        for site in sites
    ]
    sums = [math.fsum(column) for column in zip(*numbers, strict=True)]
    rows: list[tuple[str, ...]] = [("site", "role", *_COLUMNS)]
    for site, row in zip(sites, numbers, strict=True):
        # A site without coordinates has no part in what belongs to coordinates.
        shown = range(6) if site.has_coordinates else (0, 4)
        cells = [_number(value) if i in shown else "" for i, value in enumerate(row)]
        rows.append((site.name, site.role, *cells))
    rows.append(("sum", "", *map(_number, sums)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_aligned(row, widths)).rstrip() for row in rows]


def _aligned(row: tuple[str, ...], widths: list[int]) -> list[str]:
    """Words to the left, numbers to the right."""
    pairs = list(zip(row, widths, strict=True))
    return [c.ljust(w) for c, w in pairs[:2]] + [c.rjust(w) for c, w in pairs[2:]]


def _number(value: Any) -> str:
    text = f"{float(value):.3f}"
    return {"nan": "?", "-0.000": "0.000"}.get(text, text)
