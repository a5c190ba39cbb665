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


# By the name of the state: why the step is no `G^-1 gradient`, with a diagonal G or with any.
_NO_METRIC = {
    "ScaleByLionState": "Lion steps by signs, steepest in the norm max |x|, which has no metric",
    "ScaleByRpropState": "Rprop steps by signs, steepest in the norm max |x|, which has no metric",
    "MuonState": "Muon is steepest in the spectral norm of each matrix, which has no metric",
    "FactoredState": "Adafactor scales each array by its own size too, so that its metric is known "
    "to a factor for each array only",
    "ScaleByNovogradState": "NovoGrad normalizes gradients before it averages them, so that its "
    "step is linear in none of them",
    "ScaleByAdaDeltaState": "AdaDelta scales by its own past steps too, which no metric knows",
    "ScaleByLBFGSState": "the metric of L-BFGS is no diagonal one, but the curvature of its last "
    "steps: `vf.operators.hessian` has that of all directions",
}


@singledispatch
def weights_of(state: Any, settings: Settings) -> list[PyTree]:
    """The diagonal metrics that a state implies."""
    name = type(state).__name__
    raise OperatorError(
        f"`opt_state` of optimizer_metric holds a {name}, whose metric is not known"
        f"{f': {_NO_METRIC[name]}' if name in _NO_METRIC else ''}. Known are the states of Adam, "
        "AMSGrad, AdaBelief, Adagrad, RMSProp, SGD and momentum. Write another metric with "
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
def _(state: optax.transforms.PartitionState, settings: Settings) -> list[PyTree]:
    return weights_of(tuple(state.inner_states.values()), settings)


@weights_of.register
def _(state: optax.MultiStepsState, settings: Settings) -> list[PyTree]:
    return weights_of(state.inner_opt_state, settings)


@weights_of.register(optax.InjectHyperparamsState)
@weights_of.register(optax.InjectStatefulHyperparamsState)
def _(state: Any, settings: Settings) -> list[PyTree]:
    held = state.hyperparams
    read = Settings(held.get("b2", settings.decay), held.get("eps", settings.eps))
    return weights_of(state.inner_state, read)


@weights_of.register(optax.ScaleByAdamState)
@weights_of.register(optax.ScaleByBeliefState)
def _(state: Any, settings: Settings) -> list[PyTree]:
    def root(v: Array) -> Array:
        decay, eps = (jnp.asarray(number, v.dtype) for number in settings)
        return jnp.sqrt(v / (1.0 - decay ** jnp.asarray(state.count, v.dtype))) + eps

    return [jax.tree.map(root, state.nu)]


@weights_of.register
def _(state: optax.ScaleByAmsgradState, settings: Settings) -> list[PyTree]:
    # The largest averages so far, each with its bias corrected when it was found.
    return [jax.tree.map(lambda v: jnp.sqrt(v) + jnp.asarray(settings.eps, v.dtype), state.nu_max)]


@weights_of.register
def _(state: optax.ScaleByRmsState, settings: Settings) -> list[PyTree]:
    return _roots(state.nu, settings)


@weights_of.register
def _(state: optax.ScaleByRssState, settings: Settings) -> list[PyTree]:
    return _roots(state.sum_of_squares, settings)


def _roots(squares: PyTree, settings: Settings) -> list[PyTree]:
    return [jax.tree.map(lambda v: jnp.sqrt(v + jnp.asarray(settings.eps, v.dtype)), squares)]
