"""Signature of a posterior: of which model, metric and data it is, across processes."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from volform.compilation import QUICK, Compiled
from volform.errors import ModelError
from volform.models.digests import digest_of

SAME_DENSITY = 1e-6  # relative difference of densities that another machine's rounding may make


class Signature(NamedTuple):
    """Marks by which a posterior is known again, without its model.

    Attributes:
        model: name of the model's function.
        sites: name and shape of each latent site.
        metric: the metric in words.
        data: digest of the arrays among the model's arguments.
        log_density: log q^G at a point, which holds model, data and metric together.
        point: that point, in unconstrained coordinates.
    """

    model: str
    sites: tuple[tuple[str, tuple[int, ...]], ...]
    metric: str
    data: str
    log_density: float
    point: np.ndarray

    @property
    def sites_in_words(self) -> str:
        """Names and shapes of the latent sites."""
        return ", ".join(f"{name}{list(shape) or ''}" for name, shape in self.sites)

    def require(self, posterior: Any, what: str) -> None:
        """Check that a posterior is the one.

        Args:
            posterior: the posterior.
            what: what was kept, in words.

        Raises:
            ModelError: when it is of other sites, another metric, other data or another density.
        """
        given = signature_of(posterior, self.point if self.sites == _sites(posterior) else None)
        advice = "Condition the same model on the same data, with the same metric."
        for word, mine, its in (
            ("latent sites", self.sites_in_words, given.sites_in_words),
            ("metric", self.metric, given.metric),
            ("data of digest", self.data, given.data),
        ):
            if mine != its:
                raise ModelError(
                    f"`posterior` of `{given.model}` has {word} {its} and {what}, of "
                    f"`{self.model}`, has {mine}. {advice}"
                )
        if not np.isclose(
            self.log_density,
            given.log_density,
            rtol=SAME_DENSITY,
            atol=SAME_DENSITY,
            equal_nan=True,
        ):
            raise ModelError(
                f"`posterior` of `{given.model}` has log q^G {given.log_density:.6f} where {what} "
                f"has {self.log_density:.6f}, at the same point: its model, or a global, closure "
                f"or object that it reads, has changed since. {advice}"
            )


def signature_of(posterior: Any, point: Any = None) -> Signature:
    """The marks of a posterior. Cost: one density.

    Args:
        posterior: the posterior.
        point: where its density is taken, in u; the origin by default.
    """
    u = np.zeros(posterior.dim) if point is None else np.asarray(point)
    at = jnp.asarray(u, jnp.result_type(float))
    if posterior.in_batches:
        arrays, value = [str(posterior.program.given.digest)], _over_batches(posterior, at)
    else:
        arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(posterior.program.arrays)]
        value = float(_log_density(posterior, at))
    name = posterior.program.name
    return Signature(name, _sites(posterior), posterior.metric_name, digest_of(arrays), value, u)


_log_density = Compiled(lambda posterior, u: posterior.log_density(u), QUICK)


def _over_batches(posterior: Any, u: Any) -> float:
    """Log q^G by a pass through the batches."""
    parts = [
        np.asarray(_parts(dataclasses.replace(posterior, program=program), u))
        for program in posterior.program.each()
    ]
    return float(parts[0][0] + sum(likelihood for _, likelihood in parts))


@functools.partial(Compiled, options=QUICK)
def _parts(posterior: Any, u: Any) -> Any:
    prior, likelihood = posterior.bound_model.log_prior_and_likelihood(u)
    return jnp.stack([prior - posterior.log_volume(u), likelihood])


def _sites(posterior: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((site.name, site.shape) for site in posterior.layout.sites)
