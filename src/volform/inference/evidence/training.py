"""Hyperparameters of a network learned by the evidence while it is trained."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from numpyro.distributions.constraints import Constraint

from volform.checks import require_whole
from volform.compilation import steady
from volform.errors import ConvergenceError
from volform.inference.evidence.empirical_bayes import EmpiricalBayes, charts_of, path_of
from volform.inference.laplace.approximation import laplace
from volform.inference.laplace.curvatures import GGN
from volform.inference.laplace.gauss_newton import Curvature
from volform.inference.laplace.log_evidence import first_order
from volform.inference.modes.expansion import expand_first, objective
from volform.linalg.structured import DenseOperator, exact_logdet
from volform.models.posterior import Posterior
from volform.progress import waiting

if TYPE_CHECKING:
    import optax


def train_by_evidence(
    build: Callable[[dict[str, Any]], Posterior],
    hyperparameters: Mapping[str, Any],
    at: Mapping[str, Any],
    *,
    supports: Mapping[str, Constraint] | None = None,
    curvature: Curvature | None = None,
    optimizer: "optax.GradientTransformation | None" = None,
    outer: "optax.GradientTransformation | None" = None,
    rounds: int = 100,
    steps: int = 50,
    updates: int = 5,
    tolerance: float = 0.05,
    progress: bool = True,
) -> EmpiricalBayes:
    """Train the parameters, and every few steps let the evidence move the hyperparameters.

    Each round takes `steps` steps of `optimizer` down -log q^G in the parameters u, and `updates`
    steps of `outer` up

        log Z(h) = log q^G(u; h) + d/2 log(2 pi) - 1/2 log det P(u; h) + 1/2 log det G

    in the hyperparameters h, with u held. No mode is needed on the way, which is what makes it fit
    networks; `maximize_evidence` goes through the mode, and is exact where there is one.

    Args:
        build: from hyperparameters to a `Posterior`, by `vf.condition`; it is traced by JAX.
        hyperparameters: starting values, by name: prior scales of each layer, noise.
        at: starting values of the latent sites, such as `network.init(key, inputs)`.
        supports: NumPyro constraint of each hyperparameter that is not free on the real line.
        curvature: what takes the place of the Hessian; `GGN()` if left out. A matrix of all
            parameters is formed.
        optimizer: of the parameters; `optax.adam(1e-2)` if left out.
        outer: of the hyperparameters, unconstrained; `optax.adam(5e-2)` if left out.
        rounds: number of rounds.
        steps: steps of `optimizer` in each.
        updates: steps of `outer` in each.
        tolerance: change of log Z over the last tenth of the rounds, in nats, up to which it
            counts as settled.
        progress: whether to show how far it is, when it takes long.

    Returns:
        An `EmpiricalBayes` whose `history` is log Z after each round.

    Raises:
        ModelError: an improper prior; a support of an unknown name.
        UnknownSiteError: when `at` lacks a latent site.
        ConvergenceError: when log Z or its gradient is not finite.
        OperatorError: when `rounds`, `steps` or `updates` is no positive whole number.

    References:
        Immer et al. (2021), Scalable marginal likelihood estimation for model selection in deep
        learning, algorithm 1.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax, volform as vf
    >>> def model(y, scale):
    ...     a = numpyro.sample("a", dist.Normal(0.0, scale))
    ...     numpyro.sample("y", dist.Normal(a, 1.0), obs=y)
    >>> build = lambda h: vf.condition(model, jnp.array([3.0]), h["scale"])
    >>> positive = {"scale": dist.constraints.positive}
    >>> steps = {"optimizer": optax.sgd(0.1), "outer": optax.sgd(0.1)}
    >>> found = vf.inference.train_by_evidence(
    ...     build, {"scale": 1.0}, {"a": 0.0}, supports=positive, **steps
    ... )
    >>> bool(abs(found.hyperparameters["scale"] ** 2 - 8.0) < 0.1)  # variance 1 + scale^2 = 3^2
    True
    """
    for argument, number in {"rounds": rounds, "steps": steps, "updates": updates}.items():
        require_whole(number, argument, "train_by_evidence")
    charts = charts_of(hyperparameters, supports)
    values = {name: jnp.asarray(v, jnp.result_type(float)) for name, v in hyperparameters.items()}
    flat, unravel = ravel_pytree({name: charts[name].inv(v) for name, v in values.items()})

    def named(flat: Float[Array, " k"]) -> dict[str, Array]:
        return {name: charts[name](u) for name, u in unravel(flat).items()}

    first = build(values)
    first.provenance.require_proper(allow_improper=False)
    curvature = GGN() if curvature is None else curvature
    inner = _Descent(_adam(1e-2) if optimizer is None else optimizer, steps)
    ascent = _Descent(_adam(5e-2) if outer is None else outer, updates)

    def loss(u: Float[Array, " d"], flat: Float[Array, " k"]) -> Float[Array, ""]:
        return objective(u, build(named(flat)))

    def cost(flat: Float[Array, " k"], u: Float[Array, " d"]) -> Float[Array, ""]:
        return -held_evidence(build(named(flat)), u, curvature)

    u = first.layout.unconstrain(at, "at")
    states = inner.start(u), ascent.start(flat)
    history, flats, slope = [], [], jnp.zeros_like(flat)
    with waiting("train_by_evidence", progress) as phase:
        for number in range(rounds):
            reached = f"log Z {float(history[-1]):.3f}" if history else "the first steps"
            phase(reached, number + 1, rounds)
            u, inside = inner.run(loss, u, flat, states[0])
            flat, outside = ascent.run(cost, flat, u, states[1])
            states = inside, outside
            value, slope = _valued(cost, flat, u)
            if not bool(jnp.isfinite(value) & jnp.all(jnp.isfinite(slope))):
                raise ConvergenceError(
                    f"log Z is {-float(value)} with `hyperparameters` {named(flat)} in round "
                    f"{number + 1}, or its gradient is not finite; take smaller steps in "
                    "`optimizer` or `outer`, or start elsewhere."
                )
            history.append(-value)
            flats.append(flat)
    last = build(named(flat))
    approx = laplace(last, at=last.values(u), curvature=curvature)
    trace = jnp.stack(history)
    is_settled = float(jnp.abs(trace[-1] - trace[-1 - rounds // 10])) <= tolerance
    norm = float(jnp.linalg.norm(slope))
    path = path_of(jnp.stack(flats), charts, unravel)
    return EmpiricalBayes(named(flat), approx, norm, rounds * updates, is_settled, trace, path)


def held_evidence(
    posterior: Posterior, u: Float[Array, " d"], curvature: Curvature
) -> Float[Array, ""]:
    """First-order log evidence at u, wherever that is; differentiable in the posterior."""
    precision = DenseOperator(curvature.matrix(posterior, u), u)
    return first_order(expand_first(posterior, u), exact_logdet(precision))


def _adam(learning_rate: float) -> "optax.GradientTransformation":
    import optax  # noqa: PLC0415 - .05 s, which not every `import volform` should take

    return optax.adam(learning_rate)


class _Descent(eqx.Module):
    """Some steps of an optimizer, compiled together."""

    optimizer: "optax.GradientTransformation" = eqx.field(static=True)
    steps: int = eqx.field(static=True)

    def start(self, x: Array) -> Any:
        return self.optimizer.init(x)

    @eqx.filter_jit
    def run(self, function: Callable, x: Array, other: Array, state: Any) -> tuple[Array, Any]:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            x, state = carry
            slope = jax.grad(function)(x, other)
            change, state = self.optimizer.update(slope, state, x)
            return (eqx.apply_updates(x, change), state), None

        return jax.lax.scan(step, (x, state), None, self.steps)[0]


@steady
def _valued(function: Callable, x: Array, other: Array) -> tuple[Array, Array]:
    return jax.value_and_grad(function)(x, other)
