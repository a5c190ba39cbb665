"""Results that pictures of parameters are drawn of, by their labels."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpyro.infer import MCMC

from volform.errors import DataError, ModelError, UnknownSiteError
from volform.inference.axis_names import names_of_elements
from volform.inference.laplace.approximation import LaplaceApproximation
from volform.inference.laplace.samples import Samples
from volform.inference.summary import element_labels
from volform.results import Evidence

MOST_PANELS = 60  # of one picture; more are not read

# A result as the user has it: `Mapping` is a dictionary of draws by site, as of `get_samples()`.
Result = LaplaceApproximation | Evidence | Samples | MCMC | Mapping[str, Any]
Drawn = LaplaceApproximation | Samples | dict[str, np.ndarray]


class Element(NamedTuple):
    """One number of a site: its label, the site, and its place among the site's numbers."""

    label: str
    site: str
    place: int


def labeled(results: Any, function: str) -> dict[str, Drawn]:
    """Results by their labels; of one result alone the method.

    Raises:
        ModelError: for what has no draws, or is no result.
        DataError: draws that are empty, not finite, or of unequal number.
    """
    if isinstance(results, Mapping) and any(_is_result(part) for part in results.values()):
        return {str(label): _drawn(part, function) for label, part in results.items()}
    return {_method(results): _drawn(results, function)}


def _is_result(part: Any) -> bool:
    return isinstance(part, LaplaceApproximation | Evidence | Samples | MCMC | Mapping)


def _method(result: Any) -> str:
    if isinstance(result, LaplaceApproximation):
        return "Laplace"
    return result.method if isinstance(result, Evidence) else "draws"


def _drawn(result: Any, function: str) -> Drawn:
    if isinstance(result, Evidence):
        if result.draws is None:
            raise ModelError(
                f"`results` of plot.{function} holds an evidence by {result.method}, which has no "
                "draws; give `vf.laplace(posterior)`, or an evidence by `vf.Importance()`."
            )
        return result.draws
    if isinstance(result, LaplaceApproximation | Samples):
        return result
    if isinstance(result, MCMC):
        if result.post_warmup_state is None and result.last_state is None:
            raise ModelError(f"`results` of plot.{function} holds an `MCMC` that was not run.")
        result = result.get_samples()
    if not isinstance(result, Mapping) or not result:
        raise ModelError(
            f"`results` of plot.{function} should be a result of `vf.laplace` or `vf.evidence`, an "
            "`MCMC`, a dictionary of draws, or several by their labels; got "
            f"{type(result).__name__}."
        )
    found = {name: np.asarray(draws, float) for name, draws in result.items()}
    if any(x.ndim == 0 or not x.size or not np.isfinite(x).all() for x in found.values()) or (
        len({len(x) for x in found.values()}) != 1
    ):
        shapes = {name: x.shape for name, x in found.items()}
        raise DataError(
            f"`results` of plot.{function} holds draws of the shapes {shapes}; they should be "
            "finite, and as many of each site, along the first axis."
        )
    return found


def elements_of(
    drawn: Mapping[str, Drawn], sites: Sequence[str] | None, function: str
) -> list[Element]:
    """Elements that are to be shown: of sites that all results have, or of those given.

    Raises:
        UnknownSiteError: for a site or element that there is not.
        ModelError: when there are none, or too many to be read.
    """
    shapes = [_shapes(part) for part in drawn.values()]
    common = {
        name: shape
        for name, shape in shapes[0].items()
        if all(s.get(name) == shape for s in shapes)
    }
    plain = {name: element_labels(name, np.empty(shape)) for name, shape in common.items()}
    shown = plain | {name: own for name, own in _names(drawn).items() if name in common}
    every = [Element(label, n, place) for n in common for place, label in enumerate(shown[n])]
    if sites is None:
        chosen = every
    else:
        names = [sites] if isinstance(sites, str) else list(sites)
        known = {n for e in every for n in (e.site, e.label, plain[e.site][e.place])}
        if unknown := [name for name in names if name not in known]:
            raise UnknownSiteError(
                f"`sites` of plot.{function} holds {unknown[0]!r}; all results have the sites "
                f"{list(common)}, and elements such as {[e.label for e in every][-1:]}."
            )
        also = [(e, {e.site, e.label, plain[e.site][e.place]}) for e in every]
        chosen = [e for name in names for e, called in also if name in called]
    if not 0 < len(chosen) <= MOST_PANELS:
        raise ModelError(
            f"`sites` of plot.{function} are {len(chosen):,} numbers; choose 1 to {MOST_PANELS}, "
            f"as by `sites={[e.label for e in every][:2]}`."
        )
    return chosen


def _names(drawn: Mapping[str, Drawn]) -> dict[str, list[str]]:
    """Names of elements by the labels of the data, of the first result that has some."""
    known = [names_of_elements(d.posterior) for d in drawn.values() if not isinstance(d, dict)]
    return next(filter(None, known), {})


def _shapes(drawn: Drawn) -> dict[str, tuple[int, ...]]:
    if isinstance(drawn, dict):
        return {name: x.shape[1:] for name, x in drawn.items()}
    return {site.name: site.shape for site in drawn.posterior.layout.sites}


def middle_and_ends(
    drawn: Drawn, probabilities: Sequence[float]
) -> dict[str, Float[np.ndarray, "1+2p k"]]:
    """Mean, and ends of the interval of each probability, of each number of every site."""
    if isinstance(drawn, dict):
        tails = [0.5 + side * 0.5 * p for p in probabilities for side in (-1.0, 1.0)]
        flat = {name: x.reshape(len(x), -1) for name, x in drawn.items()}
        return {
            name: np.concatenate([x.mean(0)[None], np.quantile(x, tails, axis=0)])
            for name, x in flat.items()
        }
    tables = [drawn.summary(p) for p in probabilities]
    rows = {
        name: [tables[0].mean[name], *(end for t in tables for end in t.interval[name])]
        for name in tables[0].mean
    }
    return {name: np.array([np.ravel(part) for part in parts]) for name, parts in rows.items()}
