"""The predictive distribution of a model that is linear in its parameters around the mode."""

from collections.abc import Callable
from functools import singledispatch
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, Float
from numpyro import handlers

from volform.compilation import steady
from volform.errors import DataError, ModelError, SizeError, VolformError
from volform.inference.laplace.links import Link, Probit
from volform.inference.laplace.output_covariance import OutputPrecision, covariance_by_factors
from volform.linalg.operator import fits, gib_of
from volform.linalg.under_metric import whitening_maps
from volform.models.constant import ById
from volform.models.data_checks import advice_on, core_of
from volform.models.model_with_data import UNTRACEABLE, ModelWithData, make_program
from volform.models.posterior import Posterior


class Linearized(eqx.Module):
    """Predictive distributions in closed form: `approx.predictive(x, by=Linearized())`.

    With f the mean of a Normal or the logits of a Bernoulli or Categorical, J = df/du at the mode
    and P the precision, f(x) is Gaussian with variance `s^2 = diag(J P^-1 J^T)`; by default y is

        Normal(f, sqrt(scale^2 + s^2)),    Categorical(logits = f / sqrt(1 + pi s^2 / 8)).

    The first is exact for the linearized model, the second an approximation of its integral
    (probit), which for several classes leaves out how their logits vary together. Any other
    parameter, a latent scale for one, is taken as it is at the mode.

    Args:
        chunk: examples worked on at once, which bounds the memory.
        link: probabilities of classes from the logits' covariance `J P^-1 J^T`: `Probit()` as
            above, `LaplaceBridge()`, `MeanField(order)`, `LogitDraws(key)`.
        joint: whether y of all examples is one `MultivariateNormal`, of the outputs in a row, with
            what they share in its covariance `J P^-1 J^T`; of Normal sites alone. It takes the
            square of the number of outputs, and a row of J for each.

    With `Kronecker()`, `Diagonal()` and a layer's own blocks the covariance is that of the factors,
    from what flows through the layers forth and back, and with `FunctionSpace()` and `Nystrom()`
    that of the kernel between new and old examples: no row of J is formed. Elsewhere it takes a row
    for each output of each example.

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
    link: Link = Probit()
    joint: bool = eqx.field(static=True, default=False, kw_only=True)

    def __check_init__(self) -> None:
        if not isinstance(self.joint, bool):
            raise ModelError(
                f"`joint` of Linearized is {self.joint!r}; it should be True or False."
            )
        if isinstance(self.chunk, bool) or not isinstance(self.chunk, int) or self.chunk < 1:
            raise DataError(
                f"`chunk` of Linearized is {self.chunk!r}; it should be the number of examples to "
                "work on at once, at least one."
            )
        if not isinstance(self.link, Link):
            raise ModelError(
                f"`link` of Linearized is {self.link!r}; it should be a value such as `Probit()`, "
                "`LaplaceBridge()`, `MeanField()` or `LogitDraws(key)`."
            )


def linearized_predictive(
    posterior: Posterior,
    u: Float[Array, " d"],
    precision: lx.AbstractLinearOperator,
    arguments: tuple[tuple, dict[str, Any]],
    by: Linearized,
) -> dict[str, dist.Distribution]:
    """The predictive distribution of each observed site, for a model on these arguments.

    Args:
        posterior: the posterior.
        u: the mode.
        precision: the precision matrix, quickest with `rotated_blocks`.
        arguments: of the model.
        by: chunk and link.

    Raises:
        DataError: when the model cannot be run on the arguments, or predicts nothing or NaN.
        ModelError: when there is no closed form.
    """
    program, found = make_program(posterior.model, *arguments), {}
    for name in posterior.observed:
        outputs = _Outputs(posterior, u, ById(posterior.model), program.data, name)
        fn = _likelihood(outputs, program)
        center = _linear(fn, name)
        _require_known(center, name, program)
        if by.joint:
            found[name] = _jointly(outputs, precision, fn, center)
            continue
        is_joint = isinstance(fn, dist.CategoricalLogits) and by.link.is_joint
        covariance = _covariance(outputs, precision, center, by.chunk, is_joint)
        _require_known(covariance, name, program)
        found[name] = _spread_out(fn, center, covariance, by.link)
    return found


def _jointly(outputs: "_Outputs", precision: Any, fn: Any, center: Array) -> Any:
    """The predictive distribution of all outputs of a site together.

    Raises:
        ModelError: when the site is no Normal.
        SizeError: when the rows of the Jacobian do not fit.
    """
    if not isinstance(fn, dist.Normal):
        raise ModelError(
            f"`joint=True` of Linearized is for a Normal, and `{outputs.name}` is a "
            f"{type(fn).__name__}; of classes take draws, `approx.predictive(key, ...)`, which are "
            "of all examples together."
        )
    if not fits(center.size, outputs.u.size, center.dtype):
        raise SizeError(
            f"`joint=True` of {center.size:,} outputs of `{outputs.name}` takes a row of the "
            f"Jacobian for each, {gib_of(center.size, outputs.u.size, center.dtype):.3g} GiB "
            "together: predict fewer examples at once, or take draws."
        )
    covariance = _together(outputs, precision, 1, max(center.size, 1))[0]
    scale: Any = fn.scale
    noise = jnp.broadcast_to(scale, center.shape).ravel() ** 2
    return dist.MultivariateNormal(center.ravel(), covariance + jnp.diag(noise))


def _likelihood(outputs: "_Outputs", program: ModelWithData) -> Any:
    try:
        return outputs.likelihood()
    except VolformError:
        raise
    except (*UNTRACEABLE, ZeroDivisionError) as error:  # the last by JAX, of no examples
        advice = advice_on(str(error), program.model, *program.arguments())
        raise DataError(
            f"`predictive` could not run `{program.name}` {program.data_in_words()}. "
            f"{type(error).__name__}: {str(error).rstrip('.')}. {advice}"
        ) from error


def _require_known(found: Array, name: str, program: ModelWithData) -> None:
    """Refuse no predictions and NaN; infinite logits are those of classes that cannot be."""
    if found.size == 0:
        raise DataError(
            f"`predictive` has no examples, {program.data_in_words()}: the predictions of "
            f"`{name}` have shape {found.shape}. Give at least one."
        )
    if isinstance(found, Tracer) or not bool(jnp.any(jnp.isnan(found))):
        return
    bad = np.isnan(np.asarray(found))
    where = tuple(int(i) for i in np.argwhere(bad)[0])
    raise DataError(
        f"`predictive` finds {int(bad.sum())} of the {found.size} linearized predictions of "
        f"`{name}` to be NaN, the first at index {where}, {program.data_in_words()}. Drop inputs "
        "that are NaN or infinite."
    )


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


@steady
def _spread_out(fn: Any, center: Float[Array, "..."], covariance: Array, link: Link) -> Any:
    return _spread(fn, center, covariance, link)


@singledispatch
def _spread(fn: Any, center: Float[Array, "..."], covariance: Array, link: Link) -> Any:
    """The distribution with what is linearized integrated out."""
    return link.classes(center, covariance)


@_spread.register(dist.Normal)
def _(fn: Any, center: Float[Array, "..."], covariance: Array, link: Link) -> Any:
    return dist.Normal(center, jnp.sqrt(fn.scale**2 + covariance))


@_spread.register(dist.BernoulliLogits)
def _(fn: Any, center: Float[Array, "..."], covariance: Array, link: Link) -> Any:
    return link.binary(center, covariance)


class _Outputs(eqx.Module):
    """Linearized parameters of one site, as a function of the latent values, on some data."""

    posterior: Posterior
    u: Float[Array, " d"]
    model: ById = eqx.field(static=True)  # what runs: equal recordings may differ on new data
    data: Any
    name: str = eqx.field(static=True)

    @eqx.filter_jit
    def likelihood(self) -> Any:
        """The distribution of the site."""
        return self._core(self.posterior.values(self.u))

    def of_values(self, values: dict[str, Array]) -> tuple[Array, list[int]]:
        """The parameters, and the number of examples."""
        found = _linear(self._core(values), self.name)
        return found, list(found.shape[:1])

    def at(self, u: Float[Array, " d"]) -> Float[Array, "..."]:
        """The parameters, as a function of u."""
        return self.of_values(self.posterior.values(u))[0]

    def _core(self, values: dict[str, Array]) -> Any:
        program = ModelWithData(handlers.uncondition(self.model.value), self.data)
        return core_of(program.run(values)[self.name]["fn"])


def _covariance(
    outputs: _Outputs, precision: Any, whole: Array, chunk: int, is_joint: bool
) -> Float[Array, "..."]:
    """`J P^-1 J^T`: variances, shape (...), or with the last axis in pairs, (..., k, k).

    Of each example by itself where they do not see each other: by the kernel or the factors where
    those go with the layers, else by a row of J for each output.
    """
    group = whole.shape[-1] if is_joint else 1
    shape = (*whole.shape, group) if is_joint else whole.shape
    arrays = [leaf for leaf in jax.tree.leaves(outputs.data) if eqx.is_array(leaf)]
    if whole.ndim and arrays and all(leaf.shape[:1] == whole.shape[:1] for leaf in arrays):
        for route in (_by_kernel, _by_factors, _by_example):
            found = route(outputs, precision, chunk, group)
            if found is None:
                continue
            covariance, each, is_all = found
            same = jnp.allclose(each.reshape(whole.shape), whole, rtol=1e-5, atol=1e-5)
            if bool(same & is_all):
                return covariance.reshape(shape)
    return _together(outputs, precision, chunk, group).reshape(shape)


@steady
def _by_kernel(outputs: _Outputs, precision: Any, chunk: int, group: int) -> Any:
    if not isinstance(precision, OutputPrecision):
        return None
    known = precision.prepared()
    return _in_batches(outputs, chunk, lambda own: precision.covariance_of(own, known, group))


@steady
def _by_factors(outputs: _Outputs, precision: Any, chunk: int, group: int) -> Any:
    return _in_batches(outputs, chunk, lambda own: covariance_by_factors(own, precision, group))


def _in_batches(outputs: _Outputs, chunk: int, of_outputs: Callable[[_Outputs], Any]) -> Any:
    """Covariance, outputs and whether this is all, of a batch after the other."""
    moving, fixed = eqx.partition(outputs.data, eqx.is_array)
    count = jax.tree.leaves(moving)[0].shape[0]
    chunk = max(2, min(chunk, count))  # of one the axis of the examples could not be told
    batches = -(-count // chunk)

    def in_batches(leaf: Array) -> Array:
        numbers = np.minimum(np.arange(batches * chunk), count - 1)
        return leaf[numbers].reshape(batches, chunk, *leaf.shape[1:])

    def of_batch(data: Any) -> Any:
        return of_outputs(eqx.tree_at(lambda o: o.data, outputs, eqx.combine(data, fixed)))

    found = jax.lax.map(of_batch, jax.tree.map(in_batches, moving))
    if found is None:
        return None
    covariance, each, is_all = found
    flat = [part.reshape(batches * chunk, *part.shape[2:])[:count] for part in (covariance, each)]
    return *flat, jnp.all(is_all)


@steady
def _by_example(outputs: _Outputs, precision: Any, chunk: int, group: int) -> Any:
    moving, fixed = eqx.partition(outputs.data, eqx.is_array)
    down, _ = whitening_maps(precision)

    def of_one(example: Any) -> tuple[Array, Array]:
        data = eqx.combine(jax.tree.map(lambda leaf: leaf[None], example), fixed)
        own = eqx.tree_at(lambda o: o.data, outputs, data)
        value, pull = jax.vjp(lambda u: own.at(u).reshape(-1, group), own.u)
        return jax.vmap(lambda number: _gram(value, pull, down, number))(
            np.arange(len(value))
        ), value

    covariance, each = jax.lax.map(of_one, moving, batch_size=chunk)
    return covariance, each, jnp.ones((), bool)


@steady
def _together(outputs: _Outputs, precision: Any, chunk: int, group: int) -> Array:
    value, pull = jax.vjp(lambda u: outputs.at(u).reshape(-1, group), outputs.u)
    down, _ = whitening_maps(precision)
    of_group = lambda number: _gram(value, pull, down, number)  # noqa: E731
    return jax.lax.map(of_group, jnp.arange(len(value)), batch_size=min(chunk, len(value)))


def _gram(
    value: Float[Array, "t k"], pull: Callable, down: Callable, number: Any
) -> Float[Array, "k k"]:
    """`J P^-1 J^T` of one group of outputs."""

    def row(entry: Array) -> Float[Array, " d"]:
        return down(pull(jnp.zeros_like(value).at[number, entry].set(1.0))[0])

    rows = jax.vmap(row)(jnp.arange(value.shape[1]))
    return rows @ rows.T
