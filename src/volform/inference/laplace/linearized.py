"""The predictive distribution of a model that is linear in its parameters around the mode."""

from collections.abc import Callable
from functools import singledispatch
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from numpyro import handlers

from volform.errors import DataError, ModelError
from volform.linalg.under_metric import whitening_maps
from volform.models.data_checks import core_of
from volform.models.model_with_data import ModelWithData, make_program
from volform.models.posterior import Posterior


class Linearized(eqx.Module):
    """Predictive distributions in closed form: `approx.predictive(x, by=Linearized())`.

    With f the mean of a Normal or the logits of a Bernoulli or Categorical, J = df/du at the mode
    and P the precision, f(x) is Gaussian with variance `s^2 = diag(J P^-1 J^T)`, and y is

        Normal(f, sqrt(scale^2 + s^2)),    Categorical(logits = f / sqrt(1 + pi s^2 / 8)).

    The first is exact for the linearized model, the second an approximation of its integral
    (probit), which for several classes leaves out how their logits vary together. Any other
    parameter, a latent scale for one, is taken as it is at the mode.

    Args:
        chunk: examples worked on at once, which bounds the memory.

    References:
        MacKay (1992), The evidence framework applied to classification networks; Khan et al.
        (2019), Approximate inference turns deep networks into Gaussian processes; Immer, Korzepa &
        Bauer (2021), Improving predictions of Bayesian neural nets via local linearization.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(x, y=None):
    ...     a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(a * x, 1.0), obs=y)
    >>> posterior = vf.condition(model, jnp.ones(3), jnp.ones(3))
    >>> approx = vf.laplace(posterior, at={"a": 0.75}, curvature=vf.GGN())
    >>> found = approx.predictive(jnp.array([0.0, 2.0]), by=vf.Linearized())["y"]
    >>> found.mean.tolist(), found.variance.round(6).tolist()  # 1 + x^2 / 4
    ([0.0, 1.5], [1.0, 2.0])
    """

    chunk: int = eqx.field(static=True, default=32)

    def __check_init__(self) -> None:
        if isinstance(self.chunk, bool) or not isinstance(self.chunk, int) or self.chunk < 1:
            raise DataError(
                f"`chunk` of Linearized is {self.chunk!r}; it should be the number of examples to "
                "work on at once, at least one."
            )


def linearized_predictive(
    posterior: Posterior,
    u: Float[Array, " d"],
    precision: lx.AbstractLinearOperator,
    arguments: tuple[tuple, dict[str, Any]],
    chunk: int,
) -> dict[str, dist.Distribution]:
    """The predictive distribution of each observed site, for a model on these arguments."""
    program = make_program(handlers.uncondition(posterior.model), *arguments)
    trace = program.run(posterior.values(u))
    found = {}
    for name in posterior.observed:
        fn = trace[name]["fn"]
        center = _linear(core_of(fn), name)
        function = _Outputs(posterior, u, program.model, program.data, name)
        variance = _variance(function, precision, center, chunk)
        found[name] = _spread(core_of(fn), center, variance)
    return found


@singledispatch
def _linear(fn: Any, name: str = "") -> Float[Array, "..."]:
    """Parameters of a distribution that are linearized."""
    raise ModelError(
        f"`by=Linearized()` has no closed form for {type(fn).__name__}, the distribution of "
        f"`{name}`; it knows Normal, and Bernoulli and Categorical of logits. Use draws, "
        "`approx.predictive(key, ...)`."
    )


@_linear.register(dist.Normal)
def _(fn: Any, name: str = "") -> Float[Array, "..."]:
    return jnp.broadcast_to(fn.loc, fn.batch_shape)


@_linear.register(dist.BernoulliLogits)
@_linear.register(dist.CategoricalLogits)
def _(fn: Any, name: str = "") -> Float[Array, "..."]:
    return fn.logits


@singledispatch
def _spread(fn: Any, center: Float[Array, "..."], variance: Float[Array, "..."]) -> Any:
    """The distribution with what is linearized integrated out."""
    return type(fn)(logits=center / jnp.sqrt(1.0 + jnp.pi / 8.0 * variance))


@_spread.register(dist.Normal)
def _(fn: Any, center: Float[Array, "..."], variance: Float[Array, "..."]) -> Any:
    return dist.Normal(center, jnp.sqrt(fn.scale**2 + variance))


def _variance(function: "_Outputs", precision: Any, whole: Array, chunk: int) -> Array:
    """`diag(J P^-1 J^T)`, an example at a time where they do not see each other."""
    arrays = [leaf for leaf in jax.tree.leaves(function.data) if eqx.is_array(leaf)]
    if whole.ndim and arrays and all(leaf.shape[:1] == whole.shape[:1] for leaf in arrays):
        variance, each = _by_example(function, precision, chunk)
        if each.shape == whole.shape and jnp.allclose(each, whole, rtol=1e-5, atol=1e-5):
            return variance
    return _together(function, precision, chunk)


class _Outputs(eqx.Module):
    """Linearized parameters of one site, as a function of u and of the model's arguments."""

    posterior: Posterior
    u: Float[Array, " d"]
    model: Callable = eqx.field(static=True)
    data: Any
    name: str = eqx.field(static=True)

    def __call__(self, u: Float[Array, " d"], data: Any) -> Float[Array, "..."]:
        trace = ModelWithData(self.model, data).run(self.posterior.values(u))
        return _linear(core_of(trace[self.name]["fn"]), self.name)


@eqx.filter_jit
def _by_example(function: _Outputs, precision: Any, chunk: int) -> tuple[Array, Array]:
    moving, fixed = eqx.partition(function.data, eqx.is_array)
    down, _ = whitening_maps(precision)

    def of_one(example: Any) -> tuple[Array, Array]:
        data = eqx.combine(jax.tree.map(lambda leaf: leaf[None], example), fixed)
        value, pull = jax.vjp(lambda u: function(u, data)[0], function.u)
        return _squares(value, pull, down), value

    return jax.lax.map(of_one, moving, batch_size=chunk)


@eqx.filter_jit
def _together(function: _Outputs, precision: Any, chunk: int) -> Array:
    value, pull = jax.vjp(lambda u: function(u, function.data), function.u)
    return _squares(value, pull, whitening_maps(precision)[0], chunk)


def _squares(value: Array, pull: Callable, down: Callable, chunk: int = 64) -> Array:
    flat, unravel = ravel_pytree(value)

    def of_entry(index: Array) -> Float[Array, ""]:
        (row,) = pull(unravel(jnp.zeros_like(flat).at[index].set(1.0)))
        return jnp.sum(down(row) ** 2)

    entries = jax.lax.map(of_entry, jnp.arange(flat.size), batch_size=min(chunk, flat.size))
    return entries.reshape(value.shape)
