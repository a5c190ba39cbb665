"""The invariant Laplace approximation."""

import dataclasses
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro import handlers
from numpyro.infer import Predictive

from volform.errors import ConvergenceError, ModelError, SaddleError
from volform.inference.asymptotic import curved_evidence, laplace_evidence
from volform.inference.coordinates import Chart, sampling_chart
from volform.inference.curvature import Curvature
from volform.inference.diagnosis import Flat, Minimum, Saddle
from volform.inference.evidence import Evidence
from volform.inference.local import Expansion
from volform.inference.mode import MAP, find_map, map_at
from volform.inference.proposal import proposal_at
from volform.inference.sampling import Samples, draw
from volform.models import Posterior
from volform.models.facts import facts_of


class LaplaceApproximation(eqx.Module):
    """Gaussian approximation in the tangent space at the mode of q^G; built by `laplace`.

    Attributes:
        mode: the invariant MAP that it is centered on.
        at: -log q^G there to second order, with the curvature that was asked for.
        second_order: whether the evidence holds the second-order correction.
        allow_improper: whether the evidence may be a formal integral over an improper prior.
        curvature: what takes the place of the Hessian, None for the Hessian itself.
        note: what a reader must know of it, empty where there is nothing.
    """

    mode: MAP
    at: Expansion
    second_order: bool
    allow_improper: bool = eqx.field(static=True, default=False)
    curvature: Curvature | None = None
    note: str = eqx.field(static=True, default="")

    @property
    def posterior(self) -> Posterior:
        """The posterior that is approximated."""
        return self.mode.posterior

    @property
    def values(self) -> dict[str, Any]:
        """Values of the latent sites at the mode."""
        return self.mode.values

    @property
    def chart(self) -> Chart:
        """Coordinates in which draws are Gaussian: those the metric is flat in, if known."""
        return sampling_chart(self.posterior)

    @property
    def covariance(self) -> Float[Array, "d d"]:
        """H^-1 at the mode, in unconstrained coordinates u."""
        whitener = self.at.whitener
        return whitener @ whitener.T

    @cached_property
    def evidence(self) -> Evidence:
        """First-order evidence at this mode, and the second-order correction up to 60 parameters.

        Raises:
            ModelError: when a prior is improper, unless `allow_improper` was given to `laplace`.
        """
        facts = facts_of(self.posterior)
        facts.require_proper(self.allow_improper)
        others = len(self.mode.modes) - 1
        uncounted = f"{others} other modes are not counted; `vf.evidence` sums them"
        notes = [self.note, uncounted if others > 0 else ""]
        if self.curvature is not None:
            return curved_evidence(self.mode, self.at, facts, self.curvature, notes)
        return laplace_evidence(
            self.mode, [self.at], facts, second_order=self.second_order, notes=notes
        )

    def sample(self, key: PRNGKeyArray, draws: int = 1000) -> Samples:
        """Draw from the Gaussian in the tangent space, mapped back by `chart`.

        Draws that fall outside the support are replaced and counted in `Samples.outside`.

        Args:
            key: key of the draws.
            draws: number of draws n.
        """
        one = jnp.zeros(1, self.at.u.dtype)
        proposal = proposal_at(self.posterior, self.chart, [self.at], one, math.inf)
        return draw(self.posterior, proposal, key, draws)

    def predictive(
        self, key: PRNGKeyArray, *args: Any, draws: int = 1000, **kwargs: Any
    ) -> dict[str, Array]:
        """Posterior predictive draws, by NumPyro's `Predictive`.

        Args:
            key: key of the draws.
            *args: arguments of the model; by default those it was conditioned on.
            draws: number of draws n.
            **kwargs: keyword arguments of the model.

        Returns:
            Draws of the observed and deterministic sites, each of shape (n, ...).
        """
        inner, outer = jax.random.split(key)
        values = self.sample(inner, draws).values
        if not args and not kwargs:
            args, kwargs = self.posterior.program.arguments()
        model = handlers.uncondition(self.posterior.model)
        with self.posterior.program.staging():
            return Predictive(model, values)(outer, *args, **kwargs)

    def __repr__(self) -> str:
        rows = [f"Laplace approximation in {self.posterior.dim} dimensions, {self.chart}"]
        if self.curvature is not None:
            rows.append(f"curvature {self.curvature}")
        if self.note:
            rows.append(self.note)
        return "\n".join([*rows, repr(self.mode)])


def laplace(
    target: MAP | Posterior,
    *,
    key: PRNGKeyArray | None = None,
    at: Mapping[str, Any] | None = None,
    curvature: Curvature | None = None,
    second_order: bool = True,
    refuse: bool = True,
    allow_improper: bool = False,
) -> LaplaceApproximation:
    """The invariant Laplace approximation at the mode of q^G.

    `log Z = log q^G(theta*) + d/2 log(2 pi) - 1/2 log det(G^-1 H)`: the Laplace integral in
    normal coordinates, so that mode, spectrum and evidence are invariant under every
    reparametrization. With `Unconstrained()` it is NumPyro's `AutoLaplaceApproximation`.

    Args:
        target: a `MAP`, or a `Posterior` whose mode is found first.
        key: key of the random starts, for a `Posterior`; `jax.random.key(0)` by default.
        at: values of the latent sites to expand at, for a `Posterior`, in place of a search: the
            end of a training that was done elsewhere. Where it is no strict mode, the result says
            so.
        curvature: what takes the place of the Hessian: `GGN()`, with which saddles are accepted
            too. The evidence names it, and has no correction c.
        second_order: whether the evidence should hold the correction c; it is computed when
            `evidence` is first read.
        refuse: whether a point that is no strict mode is refused. With False a point that has
            not converged is used and the evidence says so; at a saddle log Z is NaN.
        allow_improper: whether `evidence` is given for an improper or unnormalized prior, where
            it is a formal integral and its size means nothing; it says so.

    Returns:
        A `LaplaceApproximation`: evidence, covariance, samples, predictive.

    Raises:
        ConvergenceError: when the MAP has not converged.
        SaddleError: when it is a saddle or has flat directions, or when `curvature` is not
            positive definite there.
        UnknownSiteError: when `at` lacks a latent site.
        ModelError: when `curvature` is none, or `at` is given for a MAP.

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
    if curvature is not None and not isinstance(curvature, Curvature):
        raise ModelError(f"`curvature` should be a value such as `GGN()`; got {curvature!r}.")
    if at is not None and isinstance(target, MAP):
        raise ModelError(
            "`at` is for a Posterior; the `target` is a MAP, which is a point already: give one."
        )
    if not isinstance(target, MAP):
        search = jax.random.key(0) if key is None else key
        target = find_map(target, key=search) if at is None else map_at(target, at)
    verdict, note = target.verdict, ""
    if not isinstance(verdict, Minimum):
        is_indefinite = isinstance(verdict, Saddle | Flat)
        accepted = curvature is not None if is_indefinite else at is not None
        if refuse and not accepted:
            raise (SaddleError if is_indefinite else ConvergenceError)(
                f"The MAP under `{target.posterior.metric_name}` is no strict mode, so the Laplace "
                f"evidence is not defined there ({verdict}). Try more `starts=` or `max_steps=` in "
                "`find_map`, another metric, or `curvature=GGN()`, which is positive definite at "
                "saddles of networks too; `refuse=False` goes on and says so in the result."
            )
        note = str(verdict)
    here = target.at
    if curvature is not None:
        matrix = curvature.matrix(target.posterior, here.u)
        here = dataclasses.replace(here, hessian=matrix)
        if refuse and not bool(jnp.isfinite(here.log_det)):
            negative = int(jnp.sum(here.eigenvalues <= 0.0))
            raise SaddleError(
                f"`curvature={curvature}` is not positive definite at the mode: {negative} of "
                f"{here.u.size} eigenvalues under the metric are not positive, the lowest "
                f"{float(here.eigenvalues[0]):.3g}. A likelihood that is not log-concave in its "
                "parameters, or a flat prior, makes it so; use the Hessian, or a proper prior."
            )
    return LaplaceApproximation(target, here, second_order, allow_improper, curvature, note)
