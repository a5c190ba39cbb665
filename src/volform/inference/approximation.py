"""The invariant Laplace approximation."""

from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro import handlers
from numpyro.infer import Predictive

from volform.errors import ConvergenceError, SaddleError
from volform.inference.correction import correction
from volform.inference.diagnosis import Flat, Minimum, Saddle
from volform.inference.evidence import Evidence
from volform.inference.local import Expansion, volume_error
from volform.inference.mode import MAP, find_map
from volform.inference.progress import waiting
from volform.inference.sampling import Chart, Samples, draw, sampling_chart
from volform.models import Posterior

SECOND_ORDER_LIMIT = 60  # parameters; the contraction costs O(d^3) evaluations of the model


class LaplaceApproximation(eqx.Module):
    """Gaussian approximation in the tangent space at the mode of q^G; built by `laplace`.

    Attributes:
        mode: the invariant MAP that it is centered on.
        second_order: whether the evidence holds the second-order correction.
        note: what a reader must know of it, empty where there is nothing.
    """

    mode: MAP
    second_order: bool
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
        whitener = self.mode.at.frame / jnp.sqrt(self.mode.at.eigenvalues)
        return whitener @ whitener.T

    @cached_property
    def evidence(self) -> Evidence:
        """First-order evidence, and the second-order correction up to 60 parameters."""
        at, posterior = self.mode.at, self.posterior
        name, dim, notes = posterior.metric_name, posterior.dim, [self.note]
        c = None
        if self.second_order and dim <= SECOND_ORDER_LIMIT and self.mode.converged:
            with waiting("evidence", show=True) as phase:
                phase(f"second-order correction in {dim} dimensions")
                c = _correction(posterior, at)
            notes.append(_warning(float(c)))
        elif self.second_order and dim > SECOND_ORDER_LIMIT:
            notes.append(
                f"no second-order correction: {dim} parameters, it is computed up to "
                f"{SECOND_ORDER_LIMIT}"
            )
        error = volume_error(posterior, at.u)
        if error is not None:
            notes.append(f"log volume by Monte Carlo, standard error {float(error):.2g}")
        note = "; ".join(note for note in notes if note)
        has_none = isinstance(self.mode.verdict, Saddle | Flat)
        log_z = jnp.full_like(at.value, jnp.nan) if has_none else log_evidence(at)
        return Evidence(log_z, c, name, dim, note)

    def sample(self, key: PRNGKeyArray, draws: int = 1000) -> Samples:
        """Draw from the Gaussian in the tangent space, mapped back by `chart`.

        Draws that fall outside the support are replaced and counted in `Samples.outside`.

        Args:
            key: key of the draws.
            draws: number of draws n.
        """
        return draw(self.posterior, self.mode.at, self.chart, key, draws)

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
        if self.note:
            rows.append(self.note)
        return "\n".join([*rows, repr(self.mode)])


def laplace(
    target: MAP | Posterior,
    *,
    key: PRNGKeyArray | None = None,
    second_order: bool = True,
    refuse: bool = True,
) -> LaplaceApproximation:
    """The invariant Laplace approximation at the mode of q^G.

    `log Z = log q^G(theta*) + d/2 log(2 pi) - 1/2 log det(G^-1 H)`: the Laplace integral in
    normal coordinates, so that mode, spectrum and evidence are invariant under every
    reparametrization. With `Unconstrained()` it is NumPyro's `AutoLaplaceApproximation`.

    Args:
        target: a `MAP`, or a `Posterior` whose mode is found first.
        key: key of the random starts, for a `Posterior`; `jax.random.key(0)` by default.
        second_order: whether the evidence should hold the correction c; it is computed when
            `evidence` is first read.
        refuse: whether a point that is no strict mode is refused. With False a point that has
            not converged is used and the evidence says so; at a saddle log Z is NaN.

    Returns:
        A `LaplaceApproximation`: evidence, covariance, samples, predictive.

    Raises:
        ConvergenceError: when the MAP has not converged.
        SaddleError: when it is a saddle or has flat directions.

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
    """
    if not isinstance(target, MAP):
        target = find_map(target, key=jax.random.key(0) if key is None else key)
    verdict = target.verdict
    if isinstance(verdict, Minimum):
        return LaplaceApproximation(target, second_order)
    if refuse:
        kind = SaddleError if isinstance(verdict, Saddle | Flat) else ConvergenceError
        raise kind(
            f"The MAP under `{target.posterior.metric_name}` is no strict mode, so the Laplace "
            f"evidence is not defined there ({verdict}). Try more `starts=` or `max_steps=` in "
            "`find_map`, or another metric; `refuse=False` goes on and says so in the result."
        )
    return LaplaceApproximation(target, second_order, note=str(verdict))


def log_evidence(at: Expansion) -> Float[Array, ""]:
    """First-order log evidence from an expansion of -log q^G; NaN where it is no minimum."""
    d = at.u.size
    log_det = jnp.sum(jnp.log(at.eigenvalues))
    return -at.value + 0.5 * d * jnp.log(2.0 * jnp.pi) - 0.5 * log_det


def _correction(posterior: Posterior, at: Expansion) -> Float[Array, ""]:
    # Fourth derivatives are long programs that run once: below 30 parameters compiling them
    # quickly matters more than running them quickly.
    return (_correction_small if posterior.dim <= 30 else _correction_large)(posterior, at)


_correction_large = eqx.filter_jit(correction)
_quick: Any = {"compiler_options": {"xla_backend_optimization_level": 0}}
_correction_small = eqx.filter_jit(correction, **_quick)


def _warning(c: float) -> str:
    if not c > -1.0:
        return f"the expansion breaks down, 1 + c = {1.0 + c:.2f} <= 0: do not use log Z"
    return "|c| is large: log Z may be off by that much and more" if abs(c) > 0.3 else ""
