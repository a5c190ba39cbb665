"""Riemannian Hamiltonian Monte Carlo as a kernel of NumPyro's `MCMC`."""

import warnings
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from volform.errors import ConvergenceError, DataError, ModelError, TrustWarning
from volform.inference.modes.verdicts import require_positive_definite_at
from volform.inference.samplers.leapfrog import Target, travel
from volform.inference.samplers.search_time import WarmUp, begin, learned
from volform.models.posterior import Posterior
from volform.models.prior_draws import tempered, weighed_draws

MOST_POINTS = 1024  # of a trajectory
TOO_SMALL = 0.02  # a step size at which metric and coordinates do not fit: its scale is 1
FEWEST_WARMUP = 100  # a tenth leads from the prior to the posterior
BITS = 24  # of the sequence that jitters times


class RMHMCState(NamedTuple):
    """The state of a chain, or of several with their axis in front.

    Attributes:
        i: number of draws before.
        z: the draw in unconstrained coordinates, by site.
        potential_energy: `-log q^G` there.
        energy: that and the kinetic energy.
        num_steps: gradients of the log density, each with a metric and its derivative.
        metric_evaluations: evaluations of the metric, those of implicit steps included.
        accept_prob: probability with which the end of the trajectory is accepted.
        diverging: whether its energy went out of bounds; it was rejected then.
        nonreversible: whether an implicit step had no solution, or was not undone by the same step
            back; it was rejected then.
        adapt_state: step size and time of the trajectories, and how they were found.
        rng_key: key of the next draw.
    """

    i: Int[Array, ""]
    z: dict[str, Array]
    potential_energy: Float[Array, ""]
    energy: Float[Array, ""]
    num_steps: Int[Array, ""]
    metric_evaluations: Int[Array, ""]
    accept_prob: Float[Array, ""]
    diverging: Bool[Array, ""]
    nonreversible: Bool[Array, ""]
    adapt_state: WarmUp
    rng_key: PRNGKeyArray


class RMHMC(MCMCKernel):
    """Hamiltonian Monte Carlo in the metric of the posterior, for `numpyro.infer.MCMC`.

    `H = -log q^G(u) + 1/2 p^T G(u)^-1 p`, followed by the generalized leapfrog. Draws have the law
    of the posterior whatever the metric, which makes directions alike: where hierarchies have
    funnels, `JointFisher()` does, in their centered spelling. There is nothing to tune: the step
    size and the time of the trajectories are found in the warm-up, by acceptance and by doubling.

    Args:
        posterior: from `condition`, with its data: `mcmc.run(key)` takes no other. Every gradient
            costs O(d^3) beside the model. `chain_method="vectorized"` lets chains share step size
            and time, and run in step.

    Warns:
        TrustWarning: after the warm-up, when the step size went below 0.02: the metric is then not
            one that makes the posterior smooth in these coordinates.

    Raises:
        ModelError: when `posterior` is none.
        SingularMetricError: when its metric is not positive definite at a likely start.
        DataError: when `mcmc.run` is given data, or starts of other sites.
        ConvergenceError: when no draw from the prior has a likelihood.

    References:
        Girolami & Calderhead (2011), Riemann manifold Langevin and Hamiltonian Monte Carlo methods,
        https://doi.org/10.1111/j.1467-9868.2010.00765.x.

    >>> import jax, numpyro, numpyro.distributions as dist, volform as vf
    >>> from numpyro.infer import MCMC
    >>> def funnel():
    ...     v = numpyro.sample("v", dist.Normal(0.0, 3.0))
    ...     numpyro.sample("x", dist.Normal(0.0, jax.numpy.exp(v / 2)))
    >>> kernel = vf.RMHMC(vf.condition(vf.attach(funnel, vf.JointFisher())))
    >>> mcmc = MCMC(kernel, num_warmup=100, num_samples=100, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), extra_fields=("nonreversible",))
    >>> mcmc.get_samples()["v"].shape, int(mcmc.get_extra_fields()["nonreversible"].sum())
    ((100,), 0)
    """

    def __init__(self, posterior: Posterior):
        if not isinstance(posterior, Posterior):
            raise ModelError(
                f"`posterior` of RMHMC is of the type {type(posterior).__name__}; give the result "
                "of `vf.condition(model, ...)`, which has data and a metric."
            )
        self.posterior = posterior
        self._warmup = 0
        self._starts = draws, weights = self._pool  # before a trace
        # A metric that is singular everywhere rejects every step, and draws would stay where it is.
        require_positive_definite_at(posterior, jnp.asarray(draws[np.argmax(weights)]))

    @property
    def model(self) -> Callable[[], Any]:
        """The NumPyro model with its data, by which ArviZ computes log likelihoods."""
        args, kwargs = self.posterior.program.arguments()
        return partial(self.posterior.model, *args, **kwargs)

    @property
    def sample_field(self) -> str:
        """The name of the draws in the state."""
        return "z"

    @property
    def default_fields(self) -> Any:
        """Fields that NumPyro keeps of every draw."""
        return ("z", "diverging", "nonreversible")

    def get_diagnostics_str(self, state: RMHMCState) -> Any:
        """The line beside NumPyro's progress bar."""
        adapt, steps = state.adapt_state, np.mean(state.num_steps)
        size, time = np.mean(adapt.step_size), np.mean(adapt.time)
        return f"{steps:.0f} steps of size {size:.2g}, time {time:.3g}. acc. prob=" + (
            f"{np.mean(state.accept_prob):.2f}"
        )

    def postprocess_fn(self, model_args: Any, model_kwargs: Any) -> Any:
        """The map from draws to values of all sites, deterministic ones included."""
        posterior = self.posterior

        def values(z: dict[str, Array]) -> dict[str, Any]:
            return posterior.values(_flat(posterior, z), posterior.known)

        return values

    def init(
        self,
        rng_key: PRNGKeyArray,
        num_warmup: int,
        init_params: Any = None,
        model_args: Any = (),
        model_kwargs: Any = None,
    ) -> RMHMCState:
        """The state before the first draw: at a prior draw, taken by a power of the likelihood.

        Args:
            rng_key: a key, or one for each of several chains.
            num_warmup: number of warm-up draws.
            init_params: unconstrained coordinates by site, to start at them.
            model_args: none: the posterior has its data.
            model_kwargs: none, likewise.
        """
        if model_args or model_kwargs:
            raise DataError(
                "`mcmc.run` was given data, which the posterior of RMHMC has already; call "
                "`mcmc.run(key)`, and condition the model on other data by `vf.condition`."
            )
        if num_warmup < FEWEST_WARMUP:
            warnings.warn(
                f"`num_warmup` is {num_warmup}, of which RMHMC has to come from the prior to the "
                "posterior, and to find the time of its trajectories and the size of its steps: "
                "the first draws may be none of the posterior. Give it 1,000.",
                TrustWarning,
                stacklevel=2,
            )
        self._warmup = num_warmup
        several = not is_prng_key(rng_key)
        keys = rng_key if several else rng_key[None]
        split = jax.vmap(jax.random.split)(keys)
        if init_params is None:
            draws, weights = self._starts
            chosen = jax.vmap(lambda key: jax.random.categorical(key, weights))(split[:, 1])
            u = jnp.asarray(draws)[chosen]
        else:
            u = self._given(init_params, several)
        chains, dim = u.shape
        adapt = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (chains, *jnp.shape(leaf))),
            begin(dim, num_warmup, u.dtype),
        )
        zero, count, no = (
            jnp.zeros(chains, u.dtype),
            jnp.zeros(chains, int),
            jnp.zeros(chains, bool),
        )
        state = RMHMCState(
            count,
            _by_site(self.posterior, u),
            zero,
            zero,
            count,
            count,
            zero,
            no,
            no,
            adapt,
            split[:, 0],
        )
        return state if several else jax.tree.map(lambda leaf: leaf[0], state)

    def sample(self, state: RMHMCState, model_args: Any, model_kwargs: Any) -> RMHMCState:
        """The state after one more draw."""
        if not state.i.ndim:
            several = jax.tree.map(lambda leaf: leaf[None], state)
            return jax.tree.map(lambda leaf: leaf[0], self._drawn(several))
        return self._drawn(state)

    def _drawn(self, state: RMHMCState) -> RMHMCState:
        i, adapt = jax.tree.map(lambda leaf: leaf[0], (state.i, state.adapt_state))
        keys = jax.vmap(lambda key: jax.random.split(key, 3))(state.rng_key)
        u = jax.vmap(lambda z: _flat(self.posterior, z))(state.z)
        noise = jax.vmap(lambda key: jax.random.normal(key, u.shape[1:], u.dtype))(keys[:, 1])
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (), u.dtype))(keys[:, 2])
        steps = jnp.ceil(adapt.time * (0.5 + van_der_corput(i, u.dtype)) / adapt.step_size)
        steps = jnp.clip(steps, 1.0, MOST_POINTS).astype(int)
        end = travel(self._target, u, noise, adapt.step_size, steps)
        accept = jnp.exp(jnp.minimum(end.start_energy - end.energy, 0.0))
        accept = jnp.where(end.is_lost | jnp.isnan(accept), 0.0, accept)
        is_taken = uniform < accept
        moved = jnp.where(is_taken[:, None], end.u, u)
        start_potential = end.start_energy - 0.5 * jnp.sum(noise**2, axis=1)
        adapt = jax.lax.cond(
            i < self._warmup,
            lambda: learned(adapt, i, self._warmup, u, moved, accept, end.steps),
            lambda: adapt,
        )
        jax.lax.cond(
            (i + 1 == self._warmup) & (adapt.step_size < TOO_SMALL),
            lambda: jax.debug.callback(_warn_of_steps, adapt.step_size),
            lambda: None,
        )
        return RMHMCState(
            state.i + 1,
            _by_site(self.posterior, moved),
            jnp.where(is_taken, end.potential, start_potential),
            jnp.where(is_taken, end.energy, end.start_energy),
            end.steps,
            end.metrics,
            accept,
            end.diverging,
            end.nonreversible,
            jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(u), *leaf.shape)), adapt),
            keys[:, 0],
        )

    @cached_property
    def _target(self) -> Target:
        posterior = self.posterior
        return Target(posterior.log_density_lebesgue, lambda u: posterior.metric(u).as_matrix())

    @cached_property
    def _pool(self) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"]]:
        """Prior draws to start at, and log weights by a power of the likelihood."""
        draws, fit = map(np.asarray, weighed_draws(self.posterior.bound_model, jax.random.key(0)))
        if not np.isfinite(fit).any():
            raise ConvergenceError(
                f"None of {len(fit)} draws from the prior of `{self.posterior.program.name}` has a "
                "likelihood that is finite and not zero; give starts, "
                "`mcmc.run(key, init_params=...)`, or a prior that allows the data."
            )
        return draws, tempered(fit)

    def _given(self, init_params: Any, several: bool) -> Float[Array, "c d"]:
        """Starts of the user's, checked."""
        wanted = {site.name: site.coordinates for site in self.posterior.layout.sites}
        lead = 1 if several else 0
        is_dict = isinstance(init_params, dict)
        found = {k: np.shape(v)[lead:] for k, v in init_params.items()} if is_dict else {}
        if found != wanted:
            raise DataError(
                f"`init_params` of mcmc.run has the shapes {found}; they should be unconstrained "
                f"coordinates of every site, {wanted}, with the axis of chains in front of several."
            )
        z = {k: jnp.asarray(v, jnp.result_type(float)) for k, v in init_params.items()}
        z = z if several else jax.tree.map(lambda leaf: leaf[None], z)
        return jax.vmap(lambda z: _flat(self.posterior, z))(z)


def _flat(posterior: Posterior, z: dict[str, Array]) -> Float[Array, " d"]:
    return jnp.concatenate([jnp.ravel(z[site.name]) for site in posterior.layout.sites])


def _by_site(posterior: Posterior, u: Float[Array, "c d"]) -> dict[str, Array]:
    return {site.name: jax.vmap(site.part)(u) for site in posterior.layout.sites}


def van_der_corput(i: Int[Array, ""], dtype: Any) -> Float[Array, ""]:
    """The i-th number of a sequence that fills (0, 1) evenly: the binary digits of i, mirrored."""
    places = jnp.arange(BITS)
    digits = jnp.right_shift(i + 1, places) & 1
    return jnp.sum(digits.astype(dtype) * 0.5 ** (places + 1).astype(dtype))


def _warn_of_steps(step_size: Any) -> None:
    warnings.warn(
        f"RMHMC's step size went down to {float(step_size):.1e}, where 0.1 to 1 is usual: the "
        "metric and the coordinates of the model do not fit, and draws are dear. Write the model "
        "centered, or attach `JointFisher(reference=...)` of its centered spelling; where the "
        "metric is flat in other coordinates, write the model in these and use NumPyro's NUTS.",
        TrustWarning,
        stacklevel=2,
    )
