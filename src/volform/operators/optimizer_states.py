"""The diagonal metrics that states of optax optimizers imply."""

from functools import singledispatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from volform.errors import OperatorError


class Settings(NamedTuple):
    """Settings that the state of an optimizer does not hold."""

    decay: Any
    eps: Any


@singledispatch
def weights_of(state: Any, settings: Settings) -> list[PyTree]:
    """The diagonal metrics that a state implies."""
    raise OperatorError(
        f"`opt_state` of metric_of holds a {type(state).__name__}, whose metric is not known; "
        "known are the states of Adam, RMSProp, SGD and momentum. Write another metric with "
        "`volform.geometry.DiagonalField`."
    )


@weights_of.register
def _(state: tuple, settings: Settings) -> list[PyTree]:
    if type(state) is not tuple:
        return weights_of.dispatch(object)(state, settings)
    return [weights for part in state for weights in weights_of(part, settings)]


def _without_metric(state: Any, settings: Settings) -> list[PyTree]:
    return []


for _state in (optax.EmptyState, optax.TraceState, optax.ScaleByScheduleState, optax.ScaleState):
    weights_of.register(_state)(_without_metric)


def _of_inner(state: Any, settings: Settings) -> list[PyTree]:
    return weights_of(state.inner_state, settings)


for _state in (optax.MaskedState, optax.ApplyIfFiniteState):
    weights_of.register(_state)(_of_inner)


@weights_of.register
def _(state: optax.MultiStepsState, settings: Settings) -> list[PyTree]:
    return weights_of(state.inner_opt_state, settings)


@weights_of.register(optax.InjectHyperparamsState)
@weights_of.register(optax.InjectStatefulHyperparamsState)
def _(state: Any, settings: Settings) -> list[PyTree]:
    held = state.hyperparams
    read = Settings(held.get("b2", settings.decay), held.get("eps", settings.eps))
    return weights_of(state.inner_state, read)


@weights_of.register
def _(state: optax.ScaleByAdamState, settings: Settings) -> list[PyTree]:
    def root(v: Array) -> Array:
        decay, eps = (jnp.asarray(number, v.dtype) for number in settings)
        return jnp.sqrt(v / (1.0 - decay ** jnp.asarray(state.count, v.dtype))) + eps

    return [jax.tree.map(root, state.nu)]


@weights_of.register
def _(state: optax.ScaleByRmsState, settings: Settings) -> list[PyTree]:
    return [jax.tree.map(lambda v: jnp.sqrt(v + jnp.asarray(settings.eps, v.dtype)), state.nu)]
