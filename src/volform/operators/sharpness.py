"""Sharpness of a minimum in the metric of the optimizer that found it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree

from volform.errors import IndefiniteError, MetricError, OperatorError
from volform.geometry.metric import Euclidean, Metric
from volform.linalg.functionals import logdet, trace
from volform.linalg.methods import Estimate, Method
from volform.linalg.operator import is_known
from volform.linalg.spectrum import eigenvalues
from volform.linalg.structured import Point
from volform.linalg.under_metric import under_metric
from volform.operators.hessian import hessian


class Sharpness(eqx.Module):
    """Invariants of `E = G^-1 H`; made by `sharpness`.

    Attributes:
        trace: tr E.
        logdet: log det E, NaN where H is not positive definite.
        top: the largest eigenvalue of E, its error the residual.
        learning_rate: that of the optimizer, or None.
        stability: `learning_rate * top`, or None. Plain gradient descent in the metric G is stable
            where it is below 2.
    """

    trace: Estimate
    logdet: Estimate
    top: Estimate
    learning_rate: Any
    stability: Estimate | None

    def __repr__(self) -> str:
        if not is_known(self.logdet.value):
            return f"Sharpness(trace={self.trace}, logdet={self.logdet}, top={self.top})"
        undefined = bool(jnp.isnan(self.logdet.value))
        lines = [
            f"trace    {self.trace}",
            f"log det  {'undefined: H is not positive definite' if undefined else self.logdet}",
            f"top      {self.top}",
        ]
        if self.stability is not None:
            lines.append(f"learning rate x top  {self.stability}")
        return "\n".join(["Sharpness of E = G^-1 H", *("  " + line for line in lines)])


def sharpness(
    loss: Callable[[Any], Float[Array, ""]],
    params: PyTree,
    *,
    metric: Callable[[Point], lx.AbstractLinearOperator] | None = None,
    learning_rate: Any = None,
    by: Method | None = None,
) -> Sharpness:
    """Trace, log det and largest eigenvalue of `E = G^-1 H`, H the Hessian of the loss.

    The trace of H itself is no property of a minimum: with theta written as 2 psi it is four times
    as large. Those of E are the same numbers in all coordinates if the metric is carried along;
    with the same key, also as estimates under changes of scale.

    (c G, c * learning rate) is the same optimizer as (G, learning rate), while E becomes E / c. So
    compare optimizers by `stability` = learning rate x top, or under one common metric.

    Args:
        loss: from a pytree like `params` to a scalar.
        params: a minimum, or any point of the search.
        metric: `optimizer_metric(opt_state)`, or any metric; `vf.Euclidean()` by default.
        learning_rate: the learning rate of the optimizer.
        by: as for `trace`.

    Returns:
        The three numbers, each with its error.

    Raises:
        OperatorError: as for `hessian` and `trace`.
        MetricError: as for `under_metric`.

    References:
        Kristiadi, Dangel & Hennig (2023), section 5.3, compared by learning rate x trace; Cohen et
        al. (2021), Gradient descent on neural networks typically occurs at the edge of stability.

    >>> import jax.numpy as jnp, volform as vf
    >>> vf.sharpness(lambda x: x[0] ** 2 + 4 * x[1] ** 2, jnp.zeros(2), learning_rate=0.1)
    Sharpness of E = G^-1 H
      trace    Estimate(10)
      log det  Estimate(2.772589)
      top      Estimate(8)
      learning rate x top  Estimate(0.8)
    """
    E = under_metric(hessian(loss, params), Euclidean() if metric is None else metric, params)
    total = trace(E, by=by)
    try:
        volume = logdet(E, by=by)
    except IndefiniteError:
        volume = Estimate(jnp.full_like(total.value, jnp.nan), jnp.full_like(total.value, jnp.nan))
    pairs = eigenvalues(E, 1, by=by)
    top = Estimate(pairs.values[0], pairs.residuals[0])
    if learning_rate is None:
        return Sharpness(total, volume, top, None, None)
    rate = jnp.asarray(learning_rate, top.value.dtype)
    return Sharpness(total, volume, top, rate, Estimate(rate * top.value, rate * top.error))


class Preconditioner(Metric):
    """The constant diagonal metric whose entries are `weights`; made by `optimizer_metric`."""

    weights: PyTree

    def __call__(self, point: Point) -> lx.AbstractLinearOperator:
        """`diag(weights)`, whatever the point."""
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (self.weights, point)]
        if jax.tree.structure(self.weights) != jax.tree.structure(point) or shapes[0] != shapes[1]:
            raise MetricError(
                f"`params` have the shapes {shapes[1]}, but `opt_state` of optimizer_metric was "
                f"made for {shapes[0]}; they should be those of one optimizer."
            )
        return lx.DiagonalLinearOperator(
            jax.tree.map(lambda w, p: w.astype(jnp.result_type(p)), self.weights, point)
        )


def optimizer_metric(opt_state: Any, *, decay: float = 0.999, eps: float = 1e-8) -> Metric:
    """The metric in which an optax optimizer descends: `step = learning rate * G^-1 gradient`.

    | optimizer | metric |
    |---|---|
    | Adam, AdamW, NAdam, Yogi | `G = diag(sqrt(v / (1 - decay^t)) + eps)` |
    | AdaBelief | the same of squared distances of gradients from their average |
    | AMSGrad | `G = diag(sqrt(w) + eps)`, w the largest `v / (1 - decay^t)` so far |
    | RMSProp | `G = diag(sqrt(v + eps))` |
    | Adagrad | the same with the sum of squared gradients |
    | SGD, momentum | `G = I` |

    v is the running average of squared gradients. Momentum, schedules, clipping and weight decay
    do not enter. The metric depends on the path of the search, and is no tensor of the model: in
    other coordinates the optimizer has another path. To compare coordinates, carry it along.
    AdaMax and RAdam have states of the type of Adam's, and other steps: of them write the metric.

    Args:
        opt_state: the state of an optax optimizer, after at least one step; nested as `chain`,
            `inject_hyperparams`, `MultiSteps`, `masked` or `apply_if_finite` nest it.
        decay: the optimizer's decay of v, which its state does not hold; by default that of
            optax's Adam, `b2` = 0.999. Read off the state of `inject_hyperparams`.
        eps: the optimizer's eps, likewise. For optimizers with `eps_root` or
            `eps_in_sqrt=False`, write the metric with `volform.geometry.DiagonalField`.

    Returns:
        A metric on pytrees like the parameters.

    Raises:
        OperatorError: for a state of another optimizer, which says why it has no metric where that
            is known (Lion, Muon, Adafactor, L-BFGS), for one before the first step, and for more
            than one Adam or RMSProp in it.

    References:
        Kingma & Ba (2015), Adam; Kristiadi, Dangel & Hennig (2023), section 5.3.

    >>> import jax.numpy as jnp, optax, volform as vf
    >>> squares = jnp.array([0.00025, 0.004])  # 0.001 g^2 after one step with g = (0.5, 2)
    >>> state = optax.ScaleByAdamState(count=jnp.array(1), mu=jnp.zeros(2), nu=squares)
    >>> vf.optimizer_metric(state)(jnp.ones(2)).as_matrix().round(6).tolist()
    [[0.5, 0.0], [0.0, 2.0]]
    """
    # optax takes .05 s to import, and is there where somebody has the state of an optimizer
    from volform.operators.optimizer_states import Settings, weights_of  # noqa: PLC0415

    found = weights_of(opt_state, Settings(decay, eps))
    if len(found) > 1:
        raise OperatorError(
            f"`opt_state` of optimizer_metric holds {len(found)} running averages of squared "
            "gradients; give the state of one optimizer on all parameters."
        )
    if not found:
        return Euclidean()
    known = is_known(found[0])
    if known and not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found[0])):
        raise OperatorError(
            "`opt_state` of optimizer_metric has averages that are not finite once their bias is "
            "corrected; take it after at least one step, of finite gradients."
        )
    return Preconditioner(found[0])
