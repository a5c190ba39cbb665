"""The invariant Laplace approximation."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import equinox as eqx
import jax
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from volform.checks import key_of, require_key, require_whole
from volform.compilation import Remembering, remembered
from volform.errors import ModelError, VolformError
from volform.inference.laplace.acceptance import (
    compiled_logdet,
    expanded,
    note_on,
    require_definite,
    require_values,
)
from volform.inference.laplace.draws import (
    TangentGaussian,
    draw,
    key_and_arguments,
    log_prob_of_values,
    predicted,
)
from volform.inference.laplace.explanation import Explanation, explained
from volform.inference.laplace.gauss_newton import Curvature
from volform.inference.laplace.gaussian_chart import GaussianChart, sampling_chart
from volform.inference.laplace.geodesic_chart import ExponentialMap
from volform.inference.laplace.guide import LaplaceGuide
from volform.inference.laplace.linearized import Linearized, linearized_predictive
from volform.inference.laplace.log_evidence import (
    curved_evidence,
    laplace_evidence,
    note_on_others,
)
from volform.inference.laplace.marginals import summary_of
from volform.inference.laplace.output_covariance import rotated_blocks
from volform.inference.laplace.samples import Samples
from volform.inference.laplace.structure import Structure
from volform.inference.laplace.structures import Full, precision_of
from volform.inference.modes.expansion import FirstOrder, SecondOrder, expand_first
from volform.inference.modes.given_point import map_at, place_at
from volform.inference.modes.mode import MAP, ExpansionPoint
from volform.inference.modes.search import find_map, stationary_point
from volform.inference.summary import Summarized, Summary
from volform.limits import HESSIAN_UP_TO
from volform.models.posterior import Posterior
from volform.results import Evidence, Regime, html_notes, in_words


class LaplaceApproximation(Remembering, Summarized):
    """Gaussian approximation in the tangent space at the mode of q^G; built by `laplace`.

    Attributes:
        mode: the invariant MAP that it is centered on, or the place that was given.
        precision: the precision matrix, an operator on flat unconstrained vectors.
        second_order: whether the evidence holds the second-order correction.
        allow_improper: whether the evidence may be a formal integral over an improper prior.
        curvature: what takes the place of the Hessian, None for the Hessian itself.
        structure: what of it is kept.
        note: what a reader must know of it, empty where there is nothing.
    """

    mode: ExpansionPoint
    precision: lx.AbstractLinearOperator
    second_order: bool
    allow_improper: bool = eqx.field(static=True, default=False)
    curvature: Curvature | None = None
    structure: Structure = Full()
    note: str = eqx.field(static=True, default="")

    @property
    def fit(self) -> MAP:
        """The mode as a `MAP`, with its Hessian.

        Raises:
            ModelError: when values were given and no Hessian was formed at them.
        """
        if not isinstance(self.mode, MAP):
            raise ModelError(
                f"`approx` with `{self.title}` holds a place whose Hessian was not formed; give "
                "`laplace` the MAP of `find_map`, or leave `curvature` and `structure` out."
            )
        return self.mode

    @property
    def posterior(self) -> Posterior:
        """The posterior that is approximated."""
        return self.mode.posterior

    @property
    def values(self) -> dict[str, Any]:
        """Values of the latent sites at the mode."""
        return self.mode.values

    @property
    def chart(self) -> GaussianChart:
        """Coordinates in which draws are Gaussian: those the metric is flat in, if known."""
        return sampling_chart(self.posterior)

    @remembered
    def at(self) -> FirstOrder:
        """-log q^G at the mode, with the precision for its Hessian where that is a matrix."""
        return expanded(self.mode, self.precision)

    @property
    def covariance(self) -> Float[Array, "d d"]:
        """The inverse of the precision matrix, in u; a SizeError above 8 GiB."""
        return self.gaussian.covariance

    @remembered
    def evidence(self) -> Evidence:
        """First-order evidence at this mode, and the second-order correction up to 60 parameters.

        A ModelError with improper priors unless `laplace` was given `allow_improper`.
        """
        provenance = self.posterior.provenance
        provenance.require_proper(self.allow_improper)
        notes = [self.note, note_on_others(self.mode, provenance)]
        at = self.mode.at if self.title else self.at  # which forms the metric's matrix
        if self.title or not isinstance(self.mode, MAP) or not isinstance(at, SecondOrder):
            words = self.title, notes, self.regimes
            return curved_evidence(self.mode, self._log_det, provenance, *words)
        return laplace_evidence(
            self.mode, [at], provenance, second_order=self.second_order, notes=notes
        )

    def explain(self) -> Explanation:
        """The terms of the evidence, and the part of each site in them.

        Of each prior, likelihood and factor in log q^G at the mode, and of each latent site in the
        determinants of metric and precision. Cost: that of `evidence`, and O(d^3) at most; raises
        what `evidence` does.

        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> found = vf.laplace(vf.condition(model, jnp.array([0.5, 1.5]))).explain()
        >>> found.evidence.terms["log q^G at the mode"].round(3).tolist()
        -3.34
        >>> round(found["mu"].half_log_det, 3)  # -1/2 log 3: one of the prior, two of the data
        -0.549
        """
        return explained(self.mode, self.precision, self.evidence)

    @property
    def regimes(self) -> tuple[Regime, ...]:
        """Regimes of the search, and of the precision matrix where it is not the Hessian."""
        return self.mode.regime, *([self.structure.regime(self.precision)] if self.title else [])

    @property
    def title(self) -> str:
        """Curvature and structure in words, empty for the Hessian whole."""
        curvature = [] if self.curvature is None else [repr(self.curvature)]
        structure = [] if isinstance(self.structure, Full) else [repr(self.structure)]
        return ", ".join(curvature + structure)

    def sample(
        self, key: PRNGKeyArray, draws: int = 1000, *, along: ExponentialMap | None = None
    ) -> Samples:
        """Draw from the Gaussian in the tangent space, mapped back by `chart`.

        Draws that fall outside the support are replaced and counted in `Samples.outside`. Of a
        mode along an orbit each is turned by a random rotation.

        Args:
            key: of the draws.
            draws: their number n.
            along: `ExponentialMap()` for draws along geodesics; straight in `chart` if left out.
        """
        require_key(key, "key", "sample", ModelError)
        require_whole(draws, "draws", "sample", ModelError)
        return draw(self.posterior, self.gaussian.carried(along), key, draws)

    @remembered
    def _log_det(self) -> Float[Array, ""]:
        return compiled_logdet(self.precision)

    @remembered
    def _rotated(self) -> lx.AbstractLinearOperator:
        return rotated_blocks(self.precision)

    @property
    def gaussian(self) -> TangentGaussian:
        """The Gaussian in the tangent space, which `sample` draws from."""
        place = self.at.u, self.precision, self.mode.orbit
        return TangentGaussian(self.posterior, self.chart, *place)

    def guide(self) -> LaplaceGuide:
        """NumPyro guide that begins as this approximation, in unconstrained coordinates."""
        return LaplaceGuide(self.gaussian, self.values)

    def summary(self, probability: float = 0.9) -> Summary:
        """Mode, mean, standard deviation and credible interval of every parameter, in its values.

        Of the Gaussian that `sample` draws from, on the support. In closed form or by quadrature;
        by 10,000 draws, with their error, where a chart mixes elements or an edge cuts one off.

        Args:
            probability: of the interval between quantiles that leave out as much on either side.

        Raises:
            ModelError: when `probability` is not between 0 and 1.
            ConvergenceError: when draws are needed, and hardly any lies inside the support.

        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> approx = vf.laplace(vf.condition(model, jnp.array([0.5, 1.5])))
        >>> approx.summary()
        Laplace approximation under Euclidean()
             mode   mean     sd      5%    95%
        mu  0.667  0.667  0.577  -0.283  1.616
        """
        modes = len(self.mode.modes) if isinstance(self.mode, MAP) else 1
        title = f"Laplace approximation under {self.posterior.metric_name}"
        return summary_of(
            self.gaussian,
            lambda count: self.sample(jax.random.key(0), count),
            probability,
            title=f"{title}, {self.title}" if self.title else title,
            notes=[f"of the best of {modes} modes"] * (modes > 1) + [self.note] * bool(self.note),
        )

    def log_prob(
        self, values: Mapping[str, Any], *, along: ExponentialMap | None = None
    ) -> np.ndarray:
        """Log density of the approximation at values of all latent sites.

        With respect to the measure of NumPyro's own densities, so that
        `log p(data, values) - log_prob(values)` is the log weight of importance sampling. What lies
        outside the support is no part of the values, and its mass is not divided out.

        Args:
            values: value of each latent site, or draws of it, with the same axes first.
            along: `ExponentialMap()` for that of draws along geodesics.

        Returns:
            The log density, of the shape of those axes; minus infinity outside of the support.

        Raises:
            UnknownSiteError: when a latent site is missing.
            DataError: when a value has the wrong shape.
            ModelError: along an orbit, where the density has no closed form.
        """
        return log_prob_of_values(self.gaussian.carried(along), values)

    def predictive(
        self, *args: Any, by: Linearized | None = None, draws: int = 1000, **kwargs: Any
    ) -> dict[str, Any]:
        """Posterior predictive draws, by NumPyro's `Predictive`, or distributions in closed form.

        Args:
            *args: for draws a key first; then arguments of the model, by default those it was
                conditioned on.
            by: `Linearized()` for distributions in closed form; draws if left out.
            draws: number of draws n.
            **kwargs: keyword arguments of the model.

        Returns:
            Draws of the observed and deterministic sites, each of shape (n, ...); with
            `Linearized()` a NumPyro distribution for each observed site.

        Raises:
            ModelError: when the key is missing, or `Linearized()` has no closed form.
        """
        key: Any = None
        if by is None:
            key, args = key_and_arguments(args)
        if not args and not kwargs:
            args, kwargs = self.posterior.program.arguments()
        if by is not None:
            arguments = args, kwargs
            return linearized_predictive(self.posterior, self.at.u, self._rotated, arguments, by)
        inner, outer = jax.random.split(key)
        return predicted(self.posterior, self.sample(inner, draws).values, outer, args, kwargs)

    def __repr__(self) -> str:
        table = self._table()
        return "\n".join([*self._facts(), *self.mode.described(table and table.lines)])

    def _repr_html_(self) -> str:
        if (table := self._table()) is None:
            return self.mode._repr_html_() + html_notes(self._facts())
        return table._repr_html_() + html_notes([*self._facts(), *self.mode.described([])[1:]])

    def _facts(self) -> list[str]:
        rows = [f"Laplace approximation in {self.posterior.dim} dimensions, {self.chart}"]
        rows += [f"curvature {self.title}"] if self.title else []
        note = "" if self.note == str(self.mode.verdict) else self.note
        return rows + [text for text in (note, in_words(self.regimes[1:])) if text]

    def _table(self) -> Summary | None:
        with suppress(VolformError):  # print shows what there is
            return self.summary() if self.posterior.dim <= HESSIAN_UP_TO else None


def laplace(
    target: MAP | Posterior,
    *,
    key: PRNGKeyArray | None = None,
    at: Mapping[str, Any] | None = None,
    curvature: Curvature | None = None,
    structure: Structure | None = None,
    second_order: bool = True,
    refuse: bool = True,
    allow_improper: bool = False,
    progress: bool = True,
) -> LaplaceApproximation:
    """The invariant Laplace approximation at the mode of q^G.

    `log Z = log q^G(theta*) + d/2 log(2 pi) - 1/2 log det(G^-1 H)`: the Laplace integral in
    normal coordinates, so that mode, spectrum and evidence are invariant under every
    reparametrization. With `Unconstrained()` it is NumPyro's `AutoLaplaceApproximation`.

    Args:
        target: a `MAP`, or a `Posterior` whose mode is found first: by `find_map`; but with a
            `curvature`, of more than 200 parameters, by Newton's method with conjugate gradients,
            which forms no Hessian (Steihaug 1983), and tells no mode from a saddle.
        key: key of the random starts, for a `Posterior`; `jax.random.key(0)` by default.
        at: values of the latent sites to expand at, for a `Posterior`, in place of a search: the
            end of a training done elsewhere. Where it is no strict mode, the result says so.
        curvature: in place of the Hessian: `GGN()`, or a Fisher matrix, with which saddles are
            accepted too. The evidence names it, and has no correction c.
        structure: what of the curvature is kept: `Full()`, `BySite()`, `Diagonal()`,
            `Kronecker()`, `LowRank(rank)`, or for some of the sites `LastLayer()`,
            `Subset(sites)`. The evidence names it, and has no correction c. Where values are given
            in `at`, only `Full()` forms a matrix of all parameters.
        second_order: whether the evidence should hold the correction c; it is computed when
            `evidence` is first read.
        refuse: whether a point that is no strict mode is refused. With False a point that has
            not converged is used and the evidence says so; at a saddle log Z is NaN.
        allow_improper: whether `evidence` is given for an improper or unnormalized prior, where
            it is a formal integral and its size means nothing; it says so.
        progress: whether to show a spinner while a search for the mode takes long.

    Returns:
        A `LaplaceApproximation`: evidence, covariance, samples, predictive.

    Raises:
        ConvergenceError: when the MAP has not converged.
        SaddleError: when it is a saddle or has flat directions, or the matrix is indefinite.
        UnknownSiteError: when `at` lacks a latent site, or `structure` names none.
        ModelError: when `curvature` or `structure` is none, or `at` is given for a MAP.
        StructureError: when the model does not have the `structure`.

    References:
        Kristiadi, Dangel & Hennig (2023), section 5.2, with the sign and factor of Eq. (5)
        corrected: + d/2 log(2 pi) - 1/2 log det H.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> approx = vf.laplace(vf.condition(model, jnp.array([0.5, 1.5])))
    >>> print(approx.evidence)  # exact here: the posterior is Gaussian
    log Z -2.970, second order -2.970, correction c = +0.000, metric Euclidean, 1 parameters
    trust fair: |c| is small; other modes and heavy tails are not seen from one mode
    """
    structure = Full() if structure is None else structure
    require_values(target, at, curvature, structure)
    is_exact = curvature is None and isinstance(structure, Full)
    expand = expand_first if curvature is None else curvature.expand
    if isinstance(target, MAP):
        place: ExpansionPoint = target
    elif at is None:
        key = key_of(key, "laplace", ModelError)
        is_large = curvature is not None and getattr(target, "dim", 0) > HESSIAN_UP_TO
        place = (stationary_point if is_large else find_map)(target, key=key, progress=progress)
    else:
        place = map_at(target, at) if is_exact else place_at(target, at, expand)
    note = note_on(place, curvature, at is not None, refuse)
    mode = structure.restricted(place, expand)
    precision = precision_of(mode, curvature, structure)
    settings = second_order, allow_improper, curvature, structure, note
    found = LaplaceApproximation(mode, precision, *settings)
    if refuse and not (is_exact and at is None):
        require_definite(found._log_det, precision, mode, curvature, structure)
    return found
