"""Empirical Bayes: hyperparameters of highest evidence."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.constraints import Constraint

from volform.checks import key_of, require_whole
from volform.errors import ModelError
from volform.geometry import held
from volform.inference.laplace.approximation import LaplaceApproximation, laplace
from volform.inference.laplace.correction import correction
from volform.inference.laplace.log_evidence import first_order
from volform.inference.modes.expansion import hessian_of, objective
from volform.inference.modes.mode import default_tolerance
from volform.inference.modes.newton import newton
from volform.inference.modes.search import find_map
from volform.linalg.structured import exact_logdet
from volform.models.posterior import Posterior
from volform.progress import waiting

if TYPE_CHECKING:
    import optimistix as optx

INNER_STEPS = 100  # Newton steps to the mode, for each value of the hyperparameters


class EmpiricalBayes(eqx.Module):
    """Hyperparameters of highest evidence; built by `maximize_evidence`.

    Attributes:
        hyperparameters: their values, by name.
        approx: the Laplace approximation there, with the evidence.
        gradient_norm: norm of the gradient of log evidence in unconstrained hyperparameters.
        steps: steps of the outer search.
        converged: whether it ended where the gradient vanishes; of a training, where log Z has
            settled.
        history: log Z at the start and after each step of the search that changed the
            hyperparameters; of a training after each round.
        path: the hyperparameters there, each with an axis for the steps first.
    """

    hyperparameters: dict[str, Array]
    approx: LaplaceApproximation
    gradient_norm: float
    steps: int
    converged: bool
    history: Float[Array, " steps"] | None = None
    path: dict[str, Array] | None = None

    def __repr__(self) -> str:
        log_z = float(first_order(self.approx.at, exact_logdet(self.approx.precision)))
        rows = [f"Highest evidence: log Z {log_z:.6f}, first order"]
        rows += [
            f"  {name:<12} {np.array2string(np.asarray(value), precision=6, threshold=12)}"
            for name, value in self.hyperparameters.items()
        ]
        more = "max_steps" if self.history is None else "rounds"
        end = "converged" if self.converged else f"not converged: more `{more}` may help"
        rows.append(f"  |gradient|   {self.gradient_norm:.1e} after {self.steps} steps, {end}")
        return "\n".join(rows)


def maximize_evidence(
    build: Callable[[dict[str, Any]], Posterior],
    hyperparameters: Mapping[str, Any],
    *,
    supports: Mapping[str, Constraint] | None = None,
    second_order: bool = False,
    key: PRNGKeyArray | None = None,
    solver: "optx.AbstractMinimiser | None" = None,
    tolerance: float = 1e-6,
    max_steps: int = 200,
    allow_improper: bool = False,
) -> EmpiricalBayes:
    """Maximize the Laplace evidence over hyperparameters, by its exact gradient.

    `log Z(h) = -l(u*; h) + d/2 log(2 pi) - 1/2 log det H + 1/2 log det G` at the mode u*(h). The
    gradient goes through the mode by the implicit function theorem, `du*/dh = -H^-1 d^2 l / du dh`,
    and through both determinants: prior scales, noise, kernel and metric parameters alike.

    Args:
        build: from hyperparameters to a `Posterior`, by `vf.condition`; it is traced by JAX.
        hyperparameters: starting values, by name.
        supports: NumPyro constraint of each hyperparameter that is not free on the real line,
            such as `constraints.positive`.
        second_order: whether to maximize the second-order evidence, up to some ten parameters.
        key: key of the search for the first mode; `jax.random.key(0)` by default.
        solver: an optimistix minimizer, BFGS by default; `optx.OptaxMinimiser` takes any of optax.
        tolerance: norm of the gradient that counts as zero, in nats.
        max_steps: bound on the steps of the search.
        allow_improper: whether priors may be improper: the maximum is where it is, log Z means
            nothing.

    Returns:
        An `EmpiricalBayes`.

    Raises:
        ModelError: an improper prior; a support of an unknown name.
        ConvergenceError: no strict mode at the first or the last hyperparameters.

    References:
        MacKay (1992), Bayesian interpolation, Neural Computation 4, 415.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> y = jnp.array([0.5, 1.5, 2.0])
    >>> def model(y, scale):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, scale))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> found = vf.maximize_evidence(
    ...     lambda h: vf.condition(model, y, h["scale"]),
    ...     {"scale": 1.0},
    ...     supports={"scale": dist.constraints.positive},
    ... )
    >>> round(float(found.hyperparameters["scale"]) ** 2, 4)  # mean(y)^2 - 1/3
    1.4444
    """
    charts = charts_of(hyperparameters, supports)
    values = {name: jnp.asarray(v, jnp.result_type(float)) for name, v in hyperparameters.items()}
    start, unravel = ravel_pytree({name: charts[name].inv(v) for name, v in values.items()})

    def posterior_at(flat: Float[Array, " k"]) -> Posterior:
        return build({name: charts[name](u) for name, u in unravel(flat).items()})

    first = build(values)
    first.provenance.require_proper(allow_improper)
    key = key_of(key, "maximize_evidence", ModelError)
    require_whole(max_steps, "max_steps", "maximize_evidence", ModelError)
    fit = laplace(find_map(first, key=key)).fit
    solver = _bfgs() if solver is None else solver

    def negative(flat: Float[Array, " k"], u: Float[Array, " d"]) -> tuple[Any, Any]:
        log_z = evidence_at(posterior_at(flat), u, second_order)
        return -log_z, (log_z, flat)

    with waiting("maximize_evidence", show=True) as phase:
        phase(f"{type(solver).__name__} over {start.size} hyperparameters")
        end, gradient, *kept, steps = eqx.filter_jit(_search)(
            negative, solver, start, fit.at.u, max_steps
        )
    history, flats = _changes(np.asarray(kept[0]), np.asarray(kept[1]), int(steps))
    found = {name: charts[name](u) for name, u in unravel(end).items()}
    last = find_map(build(found), key=key, initial=fit.values)
    norm = float(jnp.linalg.norm(gradient))
    approx = laplace(last, allow_improper=allow_improper)
    path = path_of(flats, charts, unravel)
    return EmpiricalBayes(found, approx, norm, int(steps), norm < tolerance, history, path)


def charts_of(hyperparameters: Mapping[str, Any], supports: Any) -> dict[str, Any]:
    """From the real line to each hyperparameter.

    Raises:
        ModelError: for a support of an unknown name.
    """
    supports = {} if supports is None else supports
    unknown = [name for name in supports if name not in hyperparameters]
    if unknown:
        raise ModelError(
            f"`supports` names {unknown}, which are no hyperparameters; those are "
            f"{list(hyperparameters)}."
        )
    free = [name for name in hyperparameters if name not in supports]
    charts = {name: biject_to(support) for name, support in supports.items()}
    return charts | {name: biject_to(constraints.real) for name in free}


def _bfgs() -> "optx.AbstractMinimiser":
    import optimistix as optx  # noqa: PLC0415 - .1 s, which not every `import volform` should take

    return optx.BFGS(rtol=1e-10, atol=1e-10)


def _search(
    negative: Callable, solver: "optx.AbstractMinimiser", start: Any, u: Any, max_steps: int
) -> tuple[Any, ...]:
    """The end, the gradient there, log Z and hyperparameters by step, and the number of steps."""
    import optimistix as optx  # noqa: PLC0415

    from volform.inference.evidence.recorded_search import Recorded  # noqa: PLC0415

    recorded = Recorded(solver, max_steps)
    found = optx.minimise(
        negative, recorded, start, args=u, has_aux=True, max_steps=max_steps, throw=False
    )
    (_, last), gradient = jax.value_and_grad(negative, has_aux=True)(found.value, u)
    kept = jax.tree.map(lambda all, now: jnp.append(all, now[None], 0), found.state.kept, last)
    return found.value, gradient, *kept, found.stats["num_steps"]


def _changes(
    history: Float[np.ndarray, " m"], flats: Float[np.ndarray, "m k"], steps: int
) -> tuple[Any, Any]:
    """Log Z and hyperparameters where these changed; optimistix repeats them where it rejects."""
    kept = np.r_[np.arange(steps), len(history) - 1]
    changed = np.r_[True, (np.diff(flats[kept], axis=0) != 0.0).any(1)]
    return jnp.asarray(history[kept][changed]), jnp.asarray(flats[kept][changed])


def path_of(
    flats: Float[Array, "m k"], charts: dict[str, Any], unravel: Callable
) -> dict[str, Array]:
    """Hyperparameters by name, of unconstrained points, with an axis for these first."""
    named = jax.vmap(lambda flat: {name: charts[name](u) for name, u in unravel(flat).items()})
    return named(flats)


def evidence_at(
    posterior: Posterior, u: Float[Array, " d"], second_order: bool = False
) -> Float[Array, ""]:
    """Log evidence at the mode that is reached from u, differentiable in the posterior.

    First order, or second; NaN where there is no strict mode.
    """
    return laplace_at(posterior, u, second_order)[0]


def laplace_at(
    posterior: Posterior, u: Float[Array, " d"], second_order: bool = False
) -> tuple[Float[Array, ""], Float[Array, " d"], Float[Array, "d d"]]:
    """`evidence_at`, the mode, and the lower Cholesky factor of the Hessian there."""
    still = held(posterior)
    tolerance = default_tolerance(u.dtype)
    at = newton(still, jax.lax.stop_gradient(u), tolerance, INNER_STEPS).at
    # The derivative of one Newton step, H^-1 held, is that of the mode: at the mode the step is 0.
    factor = jax.lax.stop_gradient(jnp.linalg.cholesky(at.hessian))
    gradient = jax.grad(objective)(jax.lax.stop_gradient(at.u), posterior)
    mode = jax.lax.stop_gradient(at.u) - cho_solve((factor, True), gradient)
    value, _, hessian = hessian_of(lambda u: objective(u, posterior), mode)
    lower = jnp.linalg.cholesky(hessian)
    log_det = jnp.sum(jnp.log(jnp.diagonal(lower)))
    log_z = -value + 0.5 * u.size * jnp.log(2.0 * jnp.pi) - log_det + posterior.log_volume(mode)
    if not second_order:
        return log_z, mode, lower
    whitener = solve_triangular(lower.T, jnp.eye(u.size, dtype=u.dtype), lower=False)
    return log_z + jnp.log1p(correction(posterior, mode, whitener)), mode, lower
