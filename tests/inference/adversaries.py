"""Densities that estimators of evidence get wrong, each with its exact log evidence."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints
from scipy.integrate import quad
from scipy.stats import norm

import volform as vf


class Adversary(NamedTuple):
    """A model and the exact log of its integral."""

    model: Callable
    log_z: float

    def posterior(self) -> vf.models.Posterior:
        return vf.condition(self.model)


def funnel() -> None:
    """Neal's funnel in ten dimensions."""
    v = numpyro.sample("v", dist.Normal(0.0, 3.0))
    numpyro.sample("x", dist.Normal(0.0, jnp.exp(0.5 * v)).expand([9]).to_event(1))


def banana() -> None:
    x = numpyro.sample("x", dist.Normal(0.0, 3.0))
    numpyro.sample("y", dist.Normal(x**2, 1.0))


def _flat(d: int) -> Any:
    return numpyro.sample("x", dist.ImproperUniform(constraints.real_vector, (), (d,)))


def _log_sum(*parts: Any) -> Any:
    """Logarithm of a sum, in a spelling whose summands the search does not take apart."""
    top = jax.lax.stop_gradient(jnp.max(jnp.stack(parts)))
    return top + jnp.log(sum(jnp.exp(part - top) for part in parts))


def _two_wells(x: Any) -> Any:
    """0.3 at 0 and 0.7 at a distance of 10, of unit variance; normalized."""
    near, far = (jnp.sum(dist.Normal(c, 1.0).log_prob(x)) for c in (0.0, 10.0 / math.sqrt(x.size)))
    return _log_sum(jnp.log(0.3) + near, jnp.log(0.7) + far)


def wells(d: int) -> Callable:
    def model() -> None:
        x = _flat(d)
        numpyro.factor("wells", _two_wells(x))

    return model


def wells_under_a_wide_prior() -> None:
    x = numpyro.sample("x", dist.Normal(0.0, 30.0).expand([2]).to_event(1))
    prior = jnp.sum(dist.Normal(0.0, 30.0).log_prob(x))
    numpyro.factor("wells", _two_wells(x) - prior)


def far_wells() -> None:
    """The same in one dimension at a distance of 400, under a prior that has both."""
    x = numpyro.sample("x", dist.Normal(0.0, 300.0))
    near, far = (dist.Normal(center, 1.0).log_prob(x) for center in (-200.0, 200.0))
    wells = jnp.logaddexp(jnp.log(0.3) + near, jnp.log(0.7) + far)
    numpyro.factor("wells", wells - dist.Normal(0.0, 300.0).log_prob(x))


def three_labels() -> None:
    """Three exchangeable coordinates at 0, 8 and 16: six copies of one mode."""
    prior = dist.Normal(8.0, 20.0).expand([3]).to_event(1)
    x = numpyro.sample("x", prior, infer={"equivalent_modes": 6})
    each = [
        jnp.sum(dist.Normal(jnp.array(centers), 1.0).log_prob(x))
        for centers in itertools.permutations((0.0, 8.0, 16.0))
    ]
    labels = _log_sum(*each) - math.log(6.0)
    numpyro.factor("labels", labels - jnp.asarray(prior.log_prob(x)))


def cauchy() -> None:
    """Student's t with one degree of freedom in two dimensions, times e^2."""
    x = _flat(2)
    tail = dist.MultivariateStudentT(1.0, jnp.zeros(2), jnp.eye(2)).log_prob(x)
    numpyro.factor("tail", jnp.asarray(tail) + 2.0)


def spike_and_slab() -> None:
    """A narrow mode and a wide one at the same place, in six dimensions."""
    x = _flat(6)
    narrow, wide = (jnp.sum(dist.Normal(0.0, s).log_prob(x)) for s in (0.05, 1.0))
    numpyro.factor("mixture", jnp.logaddexp(jnp.log(0.2) + narrow, jnp.log(0.8) + wide))


def at_the_boundary() -> None:
    """Two positive rates that the datum wants to be negative."""
    x = numpyro.sample("x", dist.Exponential(1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(jnp.sum(x), 0.5), obs=-1.0)


def _at_the_boundary_exact() -> float:
    # The sum of two is of density s e^-s.
    return math.log(quad(lambda s: s * np.exp(-s) * norm.pdf(-1.0, s, 0.5), 0.0, 20.0)[0])


ADVERSARIES = {
    "funnel": Adversary(funnel, 0.0),
    "banana": Adversary(banana, 0.0),
    "wells, flat prior": Adversary(wells(2), 0.0),
    "wells in 6-D, flat prior": Adversary(wells(6), 0.0),
    "wells, wide prior": Adversary(wells_under_a_wide_prior, 0.0),
    "wells at a distance of 400": Adversary(far_wells, 0.0),
    "three labels": Adversary(three_labels, 0.0),
    "Cauchy": Adversary(cauchy, 2.0),
    "spike and slab": Adversary(spike_and_slab, 0.0),
    "boundary": Adversary(at_the_boundary, _at_the_boundary_exact()),
    "boundary, log x": Adversary(
        vf.attach(at_the_boundary, vf.Unconstrained()), _at_the_boundary_exact()
    ),
}
