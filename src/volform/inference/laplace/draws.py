"""Draws from the Laplace approximation."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from volform.checks import require_key
from volform.errors import ConvergenceError, ModelError
from volform.inference.laplace.gaussian_chart import GaussianChart, sampling_chart
from volform.linalg.under_metric import whitening_maps
from volform.models.posterior import Posterior


class Samples(eqx.Module):
    """Draws from a Laplace approximation.

    Attributes:
        values: draws of the latent sites, each of shape (n, ...).
        u: draws in unconstrained coordinates, shape (n, d).
        outside: number of draws that fell outside the support and were replaced.
    """

    values: dict[str, Array]
    u: Float[Array, "n d"]
    outside: int

    def __getitem__(self, name: str) -> Array:
        """Draws of the site called `name`, shape (n, ...)."""
        return self.values[name]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {np.shape(v)}" for name, v in self.values.items())
        return f"{len(self.u)} draws ({shapes}), {self.outside} replaced outside the support"


class TangentGaussian(eqx.Module):
    """The Gaussian of a precision matrix in the tangent space at u, in coordinates w.

    Attributes:
        posterior: the posterior.
        chart: the coordinates w.
        u: the center.
        precision: an operator on flat tangent vectors at u.
    """

    posterior: Posterior
    chart: GaussianChart
    u: Float[Array, " d"]
    precision: lx.AbstractLinearOperator

    def sample(self, key: PRNGKeyArray, draws: int) -> Float[Array, "n d"]:
        """Draws in w."""
        normal = jax.random.normal(key, (draws, self.u.size), self.u.dtype)
        _, up = whitening_maps(self.precision)
        center, push = jax.linearize(lambda u: self.chart.flatten(self.posterior, u)[0], self.u)
        return center[None] + jax.vmap(lambda z: push(up(z)))(normal)


def draw(posterior: Posterior, proposal: TangentGaussian, key: PRNGKeyArray, draws: int) -> Samples:
    """`draws` draws of a Gaussian inside the support, with a count of those that were not.

    Raises:
        ConvergenceError: when fewer than one in a thousand falls inside the support.
    """
    kept, outside, tried = [], 0, 0
    while sum(map(len, kept)) < draws:
        key, now = jax.random.split(key)
        u, inside = _points(posterior, proposal, now, draws)
        kept.append(np.asarray(u)[np.asarray(inside)])
        outside += int(draws - inside.sum())
        tried += draws
        if tried > 1000 * (sum(map(len, kept)) + 1):
            raise ConvergenceError(
                f"Fewer than one in a thousand of {tried} draws lies inside the support; the "
                "Gaussian in `chart` does not fit it. Use a metric such as `Unconstrained()`."
            )
    u = jnp.asarray(np.concatenate(kept)[:draws])
    return Samples(jax.vmap(posterior.values)(u), u, outside)


@eqx.filter_jit
def samples_at(posterior: Posterior, w: Float[Array, "n d"]) -> Samples:
    """The draws at points w, in the support, of the chart that the metric is flat in."""
    chart = sampling_chart(posterior)
    u = jax.vmap(lambda w: chart.unflatten(posterior, w)[0])(w)
    return Samples(jax.vmap(posterior.values)(u), u, 0)


@eqx.filter_jit
def _points(posterior: Posterior, proposal: TangentGaussian, key: PRNGKeyArray, draws: int) -> Any:
    return jax.vmap(lambda w: proposal.chart.unflatten(posterior, w))(proposal.sample(key, draws))


def key_and_arguments(args: tuple) -> tuple[Any, tuple]:
    """Take the key of `predictive(key, *args)` off its arguments; a ModelError without one."""
    if args:
        first = args[0]
        is_typed = isinstance(first, Array) and jnp.issubdtype(first.dtype, jax.dtypes.prng_key)
        if is_typed or (isinstance(first, Array) and first.dtype == jnp.uint32):
            require_key(first, "key", "predictive", ModelError)
            return first, args[1:]
    raise ModelError(
        f"`predictive` got {'no argument' if not args else type(args[0]).__name__} where draws "
        "need a key first: `predictive(jax.random.key(0), x)`, or give `by=Linearized()`."
    )
