"""Generalized linear models with varying effects, from a formula and a data frame."""

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

from volform.errors import DataError, ModelError
from volform.models.attaching import Attached, attach
from volform.models.fisher_metrics import JointFisher
from volform.models.labels import LabeledModel, axis_of

_WIDE = 2.5  # standard deviations of the response, of an effect of one of the predictor


class LinearModel(LabeledModel):
    """A NumPyro model of a formula on its data frame, or on another; built by `glm`.

    Args:
        design: the matrices, of formulae.
        family: from the linear predictor to the distribution of the response.
        scale: unit of the linear predictor.
        center: where the intercept is expected.
        observed: the response.
        rows: labels of the rows of the data frame, None where they count from zero.
    """

    def __init__(
        self,
        design: Any,
        family: Callable,
        scale: float,
        center: float,
        observed: Any,
        rows: np.ndarray | None,
    ):
        self.design, self.family, self.observed, self.rows = design, family, observed, rows
        self.scale, self.center = scale, center
        self.__name__ = f"glm of {design.response.name}"

    @property
    def coords(self) -> dict[str, Any]:
        """Labels of the groups and of the rows, for `to_arviz`."""
        terms = {} if self.design.group is None else self.design.group.terms
        found: dict[str, Any] = {self._plate(t): list(map(str, t.groups)) for t in terms.values()}
        return found if self.rows is None else found | {"row": self.rows}

    @property
    def dims(self) -> dict[str, list[str]]:
        """Names of the plates that a varying effect and the response are in."""
        terms = {} if self.design.group is None else self.design.group.terms
        found = {name: [self._plate(term)] for name, term in terms.items()}
        return found | {self.design.response.name: ["row"]}

    def __call__(self, frame: Any = None) -> None:
        """Sample the effects and the response; with a data frame that of its rows, unobserved."""
        parts = self.design.common, self.design.group
        if frame is not None:
            parts = tuple(_of_rows(part, _pandas(frame)) for part in parts)
        common, group = parts
        eta: Any = 0.0
        if common is not None:
            for name, columns in common.slices.items():
                x = np.asarray(common.design_matrix, float)[:, columns]
                is_offset = self.design.common.terms[name].kind == "offset"
                eta = eta + (jnp.asarray(x[:, 0]) if is_offset else self._common(name, x))
        if group is not None:
            matrix = group.design_matrix.toarray()
            for name, columns in group.slices.items():
                eta = eta + self._varying(name, matrix[:, columns])
        fn = self.family(eta)  # outside of the plate: it may have parameters of its own
        with numpyro.plate("row", len(eta)):
            observed = self.observed if frame is None else None
            numpyro.sample(self.design.response.name, fn, obs=observed)

    def _common(self, name: str, x: Float[np.ndarray, "n k"]) -> Float[Array, " n"]:
        spread = self._spreads(name)
        loc = self.center if self._is_intercept(name) else 0.0
        if x.shape[1] == 1:
            return jnp.asarray(x[:, 0], float) * numpyro.sample(
                name, dist.Normal(loc, float(spread[0]))
            )
        prior = dist.Normal(jnp.zeros(len(spread)), jnp.asarray(spread)).to_event(1)
        return jnp.asarray(x, float) @ numpyro.sample(name, prior)

    def _spreads(self, name: str) -> Float[np.ndarray, " k"]:
        """Prior standard deviations, in units of the predictors of the first data frame."""
        common = self.design.common
        x = np.asarray(common.design_matrix, float)
        deviation = x.std(axis=0)
        deviation = np.where(deviation > 0.0, deviation, 1.0)
        if self._is_intercept(name):  # which is at the mean of the predictors, carried to zero
            held = [np.arange(x.shape[1])[common.slices[n]] for n in (name, *_offsets_of(common))]
            moved = np.delete(x.mean(axis=0) / deviation, np.concatenate(held))
            return np.array([_WIDE * self.scale * np.sqrt(1.0 + np.sum(moved**2))])
        return _WIDE * self.scale / deviation[common.slices[name]]

    def _is_intercept(self, name: str) -> bool:
        return self.design.common.terms[name].kind == "intercept"

    def _varying(self, name: str, x: Float[np.ndarray, "n k"]) -> Float[Array, " n"]:
        group = self.design.group
        term, first = group.terms[name], group.design_matrix.toarray()[:, group.slices[name]]
        unit = float(np.sqrt(np.mean(np.sum(first**2, axis=1))))  # one, of an intercept
        deviation = numpyro.sample(f"{name}_sd", dist.Exponential(unit / self.scale))
        prior, width = dist.Normal(0.0, deviation), x.shape[1] // len(term.groups)
        with numpyro.plate(self._plate(term), len(term.groups)):
            fn = prior if width == 1 else prior.expand([width]).to_event(1)
            return jnp.asarray(x, float) @ jnp.ravel(numpyro.sample(name, fn))

    def _plate(self, term: Any) -> str:
        common = self.design.common
        taken = common is not None and term.factor.name in common.slices
        return f"{term.factor.name}{'_group' * taken}"


def glm(formula: str, data: Any, family: Callable[..., Any] = dist.Normal) -> Attached:
    """Make a generalized linear model with varying effects from a formula and a data frame.

    A NumPyro model with the metric `JointFisher()`, for `condition(model)`; with another data frame
    as its argument, as in `approx.predictive(key, frame)`, it predicts. Its sites are the terms:
    `Intercept`, `x`, and for `(x | group)` the effects `1|group` and `x|group`, independent, with
    their standard deviations `1|group_sd` and `x|group_sd`.

    Priors are weak, in units of the data: `Normal(0, 2.5 s_y / s_x)` for an effect, with s the
    standard deviations of the response and the predictor (s_y is 1 but for `dist.Normal`), the
    intercept at the mean of the predictors likewise about the mean of the response, and for
    standard deviations the PC prior `Exponential(1 / s_y)`.

    Args:
        formula: in the language of R's lme4, parsed by the package formulae: `pip install
            'volform[formula]'`. `offset(x)` has the coefficient one.
        data: a data frame of pandas or polars, an xarray Dataset, or a dict of columns.
        family: `dist.Normal`, `dist.Bernoulli` (logit) or `dist.Poisson` (log); or a function from
            the linear predictor to a NumPyro distribution, which may sample parameters of its own.

    Raises:
        ModelError: without formulae; when the family is no function.
        DataError: a formula that cannot be read, a column that is not there, missing values, a
            response of more than two levels, or one that the family cannot have.

    >>> import numpy as np, numpyro.distributions as dist, volform as vf
    >>> data = {"y": np.array([1.0, 2.1, 2.9, 4.2]), "x": np.arange(4.0), "g": list("aabb")}
    >>> vf.condition(vf.glm("y ~ x + (1 | g)", data, family=dist.Normal)).names
    ('Intercept', 'x', '1|g_sd', '1|g', 'sigma')
    """
    is_known = family in (dist.Normal, dist.Bernoulli, dist.BernoulliLogits, dist.Poisson)
    is_class = isinstance(family, type) and issubclass(family, dist.Distribution)
    if not callable(family) or isinstance(family, dist.Distribution) or (is_class and not is_known):
        raise ModelError(
            f"`family` of glm is {family!r}; it should be `dist.Normal`, `dist.Bernoulli`, "
            "`dist.Poisson`, or a function from the linear predictor to a distribution, as "
            "`lambda eta: dist.Gamma(2.0, 2.0 * jnp.exp(-eta))`."
        )
    frame = _pandas(data)
    design = _design(formula, frame)
    y = np.asarray(design.response.design_matrix)
    if y.ndim > 1 and y.shape[1] != 2:
        raise DataError(
            f"The response `{design.response.name}` has {y.shape[1]} levels; it should be numbers, "
            "or have two levels."
        )
    is_text = y.ndim > 1
    y = y[:, 1] if is_text else y  # one for the second level
    _require_response(design.response.name, y, family, is_text)
    scale, center, offset = 1.0, 0.0, _mean_offset(design.common)
    if family is dist.Normal:
        scale, center = float(np.std(y)) or 1.0, float(np.mean(y) - offset)
    elif family is dist.Poisson:
        center = float(np.log(np.mean(y) or 1.0) - offset)
    link = _link(family, scale)
    observed = jnp.asarray(y, None if family is dist.Poisson else float)
    rows = axis_of(None, frame.index).labels
    return attach(LinearModel(design, link, scale, center, observed, rows), JointFisher())


def _offsets_of(common: Any) -> tuple[str, ...]:
    """Names of the terms whose coefficient is one."""
    return tuple(name for name, term in common.terms.items() if term.kind == "offset")


def _mean_offset(common: Any) -> float:
    if common is None:
        return 0.0
    found = (common.design_matrix[:, common.slices[name]] for name in _offsets_of(common))
    return sum(float(np.mean(column)) for column in found)


def _of_rows(part: Any, frame: Any) -> Any:
    """The matrices of another data frame."""
    if part is None:
        return None
    try:
        return part.evaluate_new_data(frame)
    except KeyError as error:
        raise DataError(
            f"`frame` for prediction has no column {error.args[0]!r}, which the formula takes; "
            f"it has {list(frame.columns)}."
        ) from error
    except ValueError as error:
        raise DataError(
            f"`frame` for prediction does not fit the model: {error}. Levels and groups "
            "should be among those that the model was made with."
        ) from error


def _require_response(name: str, y: Any, family: Any, is_text: bool) -> None:
    """Check that a family can have the response.

    Raises:
        DataError: when it cannot.
    """
    if not np.all(np.isfinite(y)):
        raise DataError(f"The response `{name}` holds infinite values; leave those rows out.")
    if family is dist.Poisson and np.any(y < 0):
        raise DataError(
            f"The response `{name}` holds {np.min(y):g}; `dist.Poisson` is of counts from zero on."
        )
    if is_text and family not in {dist.Bernoulli, dist.BernoulliLogits}:
        raise DataError(
            f"The response `{name}` is text of two levels, and `family` is not `dist.Bernoulli`; "
            "give that, or numbers."
        )


def _link(family: Callable[..., Any], scale: float) -> Callable[[Any], Any]:
    if family is dist.Normal:
        return lambda eta: dist.Normal(eta, numpyro.sample("sigma", dist.Exponential(1.0 / scale)))
    if family in {dist.Bernoulli, dist.BernoulliLogits}:
        return lambda eta: dist.BernoulliLogits(eta)
    return (lambda eta: dist.Poisson(jnp.exp(eta))) if family is dist.Poisson else family


def _design(formula: str, frame: Any) -> Any:
    try:
        formulae = importlib.import_module("formulae")
    except ImportError as error:
        raise ModelError(
            "`glm` needs the package formulae, which is not there: `pip install "
            "'volform[formula]'`, or write the model in NumPyro."
        ) from error
    try:
        design = formulae.design_matrices(formula, frame, na_action="error")
    except KeyError as error:
        name = str(error.args[0])
        near = difflib.get_close_matches(name, frame.columns, n=3)
        advice = f"did you mean {near}?" if near else f"it has {list(frame.columns)}."
        raise DataError(
            f"`formula` has {name!r}, which is no column of the data; {advice}"
        ) from error
    except Exception as error:  # formulae's own are of no common class
        raise DataError(
            f"`formula` {formula!r} cannot be read with these data: {error}. It should be like "
            "'y ~ x + (1 | group)', without missing values."
        ) from error
    if design.response is None:
        raise DataError(
            f"`formula` {formula!r} has no response; it should be like 'y ~ x + (1 | group)'."
        )
    return design


def _pandas(data: Any) -> Any:
    pandas = importlib.import_module("pandas")
    if isinstance(data, pandas.DataFrame):
        return data
    if hasattr(data, "to_dataframe"):  # an xarray Dataset
        return data.to_dataframe().reset_index()
    if not isinstance(data, Mapping) and not hasattr(data, "columns"):
        raise DataError(
            f"`data` of glm is a {type(data).__name__}; it should be a data frame of pandas or "
            "polars, an xarray Dataset, or a dict of columns."
        )
    names = getattr(data, "columns", None) or data
    return pandas.DataFrame({name: np.asarray(data[name]) for name in names})
