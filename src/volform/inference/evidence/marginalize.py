"""Latent sites of a NumPyro model integrated out by Laplace's method, inside the model."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import numpyro
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.primitives import Messenger

from volform.checks import require_key
from volform.compilation import STEADY, Compiled
from volform.errors import ConvergenceError, ModelError, UnknownSiteError
from volform.geometry.dependence import dependence, moves
from volform.geometry.metric import Metric
from volform.inference.arviz_compat import smoothed
from volform.inference.evidence.empirical_bayes import evidence_at, laplace_at
from volform.inference.laplace.gaussian_chart import LEBESGUE
from volform.inference.laplace.samples import Samples
from volform.linalg.structured import exact_logdet
from volform.models.attaching import attach
from volform.models.layout import Layout
from volform.models.posterior import Posterior, condition


def marginalize(
    model: Callable,
    sites: str | Sequence[str],
    *,
    metric: Metric | None = None,
    second_order: bool = False,
) -> "Marginalized":
    """Integrate latent sites out of a NumPyro model, by the invariant Laplace evidence.

    Of sites theta given all other latent sites phi, at the mode theta* of `q^G(theta | phi)`,

        log p(y | phi) = log q^G(theta*, y | phi) + d/2 log 2 pi - 1/2 log det(G^-1 H)

    takes the place of theta and of the likelihood: a NumPyro model of phi alone, whose density NUTS
    and `vf.condition` take, differentiable in phi through the mode. Exact where theta given phi and
    y is Gaussian in coordinates that the metric is flat in. Where there is no strict mode the
    factor is -inf, which NUTS counts among its divergences.

    Each density costs some ten Hessians of log q^G in d dimensions, O(d^3); a gradient one more,
    and its derivative.

    Args:
        model: a NumPyro model.
        sites: latent sites to integrate out, all of what depends on them included.
        metric: of the sites; by default that which is attached to the model.
        second_order: whether to add `log(1 + c)`: for some ten coordinates.

    Returns:
        A NumPyro model of the other latent sites; `.draws` gives the sites back.

    Raises:
        ModelError: when run: a site that is left depends on one that is integrated out.
        UnknownSiteError: when run: the model has no such latent site.

    References:
        Tierney & Kadane (1986), JASA 81, 82. Rue, Martino & Chopin (2009), JRSS B 71, 319.
        Margossian et al. (2020), Hamiltonian Monte Carlo using an adjoint-differentiated Laplace
        approximation.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    ...     with numpyro.plate("group", 3):
    ...         theta = numpyro.sample("theta", dist.Normal(0.0, tau))
    ...         numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)
    >>> marginal = vf.marginalize(model, "theta")  # y is Normal(0, sqrt(1 + tau^2))
    >>> y, values = jnp.array([0.5, 1.5, -1.0]), {"tau": jnp.array(1.0)}
    >>> round(float(numpyro.infer.util.log_density(marginal, (y,), {}, values)[0]), 3)
    -5.715
    """
    names = (sites,) if isinstance(sites, str) else sites
    is_list = isinstance(names, Sequence) and all(isinstance(name, str) for name in names)
    if not is_list or not names or len(set(names)) < len(names):
        raise ModelError(
            f"`sites` of marginalize is {sites!r}; it should be the name of a latent site to "
            "integrate out, or several, each of them once."
        )
    return Marginalized(model, tuple(names), metric, second_order)


class Marginalized:
    """A NumPyro model with some latent sites integrated out; built by `marginalize`.

    Args:
        model: the model of all sites.
        sites: those that are integrated out.
        metric: their metric; None for what is attached to the model.
        second_order: whether the evidence holds the correction.
    """

    def __init__(
        self, model: Callable, sites: tuple[str, ...], metric: Metric | None, second_order: bool
    ):
        self.model = attach(model, {} if metric is None else metric)
        self.sites, self.second_order = sites, second_order
        self.__name__ = getattr(model, "__name__", type(model).__name__)
        self._joint: tuple[tuple[Any, list[Any]], Posterior] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Samples what is left, and adds the log evidence of what is not as a factor."""
        with handlers.block():
            joint = self.joint(*args, **kwargs)
        outer = _Outer(self.model, self.sites, self._left(joint))
        with handlers.block(hide_fn=outer.hides):
            outer(*args, **kwargs)
        with handlers.block():
            conditional = _conditional(joint, outer.left, self.sites)
            log_z = evidence_at(conditional, conditional.origin, self.second_order)
        factor = jnp.where(jnp.isfinite(log_z), log_z, -jnp.inf)
        numpyro.factor(f"{'_'.join(self.sites)}_log_evidence", factor)

    def joint(self, *args: Any, **kwargs: Any) -> Posterior:
        """The posterior of all sites, conditioned once for the same arguments.

        Args:
            *args: the model's arguments.
            **kwargs: the model's keyword arguments.

        Raises:
            ModelError: when a site that is left depends on one that is integrated out.
            UnknownSiteError: when the model has no such latent site.
        """
        leaves, structure = jax.tree.flatten((args, kwargs))
        if any(isinstance(leaf, Tracer) for leaf in leaves):
            return self._checked(condition(self.model, *args, **kwargs))
        with jax.ensure_compile_time_eval():  # within a trace of its density, as of NUTS
            if self._joint is not None and _are_same(self._joint[0], (structure, leaves)):
                with suppress(ModelError):  # a global that the model reads has changed
                    self._joint[1].program.require_unchanged()
                    return self._joint[1]
            joint = self._checked(condition(self.model, *args, **kwargs))
        kept = [np.array(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
        self._joint = (structure, kept), joint
        return joint

    def _left(self, joint: Posterior) -> list[str]:
        return [name for name in joint.names if name not in self.sites]

    def draws(self, key: PRNGKeyArray, samples: Any, *args: Any, **kwargs: Any) -> Samples:
        """Draw the sites, one for each draw of those that are left.

        Each from the Gaussian of its own mode and Hessian, with the weight
        `p(theta, y | phi) / (p(y | phi) q(theta))`: weighted, they are draws of the model itself,
        whatever the error of Laplace's method. Their k-hat tells how large it is.

        Args:
            key: key of the draws.
            samples: draws of the sites that are left, `mcmc.get_samples()`, or the `MCMC` itself.
            *args: the model's arguments.
            **kwargs: the model's keyword arguments.

        Returns:
            Weighted draws of all latent sites.

        Raises:
            ConvergenceError: when some draw has no strict mode.
            UnknownSiteError: when `samples` lacks a site.
        """
        require_key(key, "key", "draws", ModelError)
        joint = self.joint(*args, **kwargs)
        found = samples.get_samples() if hasattr(samples, "get_samples") else samples
        left = self._left(joint)
        missing = [name for name in left if name not in found]
        if missing:
            raise UnknownSiteError(
                f"`samples` of draws lacks {missing}; it has {sorted(found)}. Give draws of all "
                "latent sites that are left in the model."
            )
        values = {name: jnp.asarray(found[name]) for name in left}
        keys = jax.random.split(key, len(values[left[0]]))

        def one(drawn: tuple[PRNGKeyArray, dict[str, Array]]) -> tuple[Array, ...]:
            return _drawn(_conditional(joint, drawn[1], self.sites), drawn[0], self.second_order)

        program = Compiled(lambda drawn: jax.lax.map(one, drawn), STEADY)
        u, log_weights = map(np.asarray, program((keys, values)))
        broken = int(np.sum(~np.isfinite(log_weights)))
        if broken:
            raise ConvergenceError(
                f"`samples` has {broken} draws of {len(keys)} at which `{_named(self.sites)}` has "
                "no strict mode, so that there is no Gaussian to draw from. Try another `metric`, "
                "or leave the sites in the model."
            )
        smooth, k_hat = smoothed(log_weights)
        smooth = smooth - np.logaddexp.reduce(smooth)
        return Samples(joint, LEBESGUE, u, log_weights=smooth, k_hat=k_hat)

    def _checked(self, joint: Posterior) -> Posterior:
        missing = [name for name in self.sites if name not in joint.names]
        if missing:
            raise UnknownSiteError(
                f"`sites` of marginalize names {missing}, and the latent sites of "
                f"`{self.__name__}` are {list(joint.names)}. Sites that are observed or "
                "deterministic are not integrated out."
            )
        left = self._left(joint)
        if not left:
            raise ModelError(
                f"`sites` of marginalize names all latent sites of `{self.__name__}`, so that "
                "nothing is left to sample; `vf.evidence` integrates over all of them."
            )
        values = joint.values(jnp.zeros(joint.dim))

        def densities(moving: dict[str, Array]) -> dict[str, Array]:
            found = joint.program.site_densities({**values, **moving})
            return {name: found[name] for name in left}

        flags = dependence(densities, {name: values[name] for name in self.sites})
        bound = [name for name, flag in flags.items() if moves(flag)]
        if bound:
            raise ModelError(
                f"`{_named(bound)}` of `{self.__name__}` depends on `{_named(self.sites)}`, which "
                "`vf.marginalize` is to integrate out. Name it in `sites` too."
            )
        return joint

    def __repr__(self) -> str:
        return f"marginalize({self.__name__}, {list(self.sites)})"


class _Conditional(eqx.Module):
    """The posterior of some sites theta given the others phi, on the fiber where phi is fixed.

    Attributes:
        joint: the posterior of all sites.
        base: a point of the fiber, in u of the joint posterior.
        sites: names of theta.
    """

    joint: Posterior
    base: Float[Array, " D"]
    sites: tuple[str, ...] = eqx.field(static=True)

    @property
    def layout(self) -> Layout:
        """That of theta."""
        own = [site for site in self.joint.layout.sites if site.name in self.sites]
        return Layout(tuple(own))

    @property
    def origin(self) -> Float[Array, " d"]:
        """The origin of the coordinates of theta."""
        return jnp.zeros(len(self._entries), self.base.dtype)

    @property
    def _entries(self) -> np.ndarray:
        """Those of theta, in u of the joint posterior."""
        all_entries = np.arange(self.joint.dim)
        return np.concatenate([all_entries[site.segment] for site in self.layout.sites])

    def point(self, u: Float[Array, " d"]) -> Float[Array, " D"]:
        """The point of the joint posterior."""
        return self.base.at[self._entries].set(u)

    def log_density_lebesgue(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """log p(y, theta | phi) with respect to Lebesgue measure in u."""
        joint, point = self.joint, self.point(u)
        values = joint.layout.constrain(point)
        total = jnp.zeros((), u.dtype)
        for site in joint.layout.sites_at(values):
            if site.name in self.sites:
                part = site.part(point)
                total += jnp.sum(site.chart.log_abs_det_jacobian(part, site.chart(part)))
        found = joint.program.site_densities(values)
        left = set(joint.names) - set(self.sites)
        return total + sum(density for name, density in found.items() if name not in left)

    def metric(self, u: Float[Array, " d"]) -> lx.AbstractLinearOperator:
        """The metric of the fiber."""
        whole, entries = self.joint.metric(self.point(u)), self._entries
        if lx.is_diagonal(whole):
            return lx.DiagonalLinearOperator(lx.diagonal(whole)[entries])
        matrix = whole.as_matrix()[np.ix_(entries, entries)]
        return lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)

    def log_volume(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """1/2 log det G."""
        return 0.5 * exact_logdet(self.metric(u))

    def log_density(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """log q^G."""
        return self.log_density_lebesgue(u) - self.log_volume(u)


def _conditional(
    joint: Posterior, left: Mapping[str, Any], sites: tuple[str, ...]
) -> Any:  # searched like a `Posterior`, which it is no subclass of
    origin = jnp.zeros(joint.dim, jnp.result_type(float))
    base = joint.unconstrain({**joint.values(origin), **left})
    # Supports of theta may move with phi: the origin is that of its coordinates.
    theta = [site.segment for site in joint.layout.sites if site.name in sites]
    for segment in theta:
        base = base.at[segment].set(0.0)
    return _Conditional(joint, base, sites)


class _Outer(Messenger):
    """The model with placeholders for the sites that are integrated out.

    Args:
        fn: the model.
        sites: names of these sites.
        names: of the latent sites that are left.
    """

    def __init__(self, fn: Callable, sites: tuple[str, ...], names: list[str]):
        self.sites, self.names = sites, names
        self.left: dict[str, Any] = {}
        self._open, self._is_past = "", False  # a site that is left; the first placeholder
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        """Gives a site that is integrated out a value, which nothing that is seen depends on."""
        if msg["type"] != "sample" or self._open:
            return
        if msg["name"] in self.names:
            self._open = msg["name"]
        elif msg["name"] in self.sites:
            chart = biject_to(msg["fn"].support)
            shape = chart.inverse_shape(msg["fn"].shape(msg["kwargs"]["sample_shape"]))
            msg["value"] = chart(jnp.zeros(shape))
            self._is_past = True

    def postprocess_message(self, msg: Any) -> None:
        """Notes the values of what is left, whatever handlers around have made of the sites."""
        if self._open and msg.get("name") == self._open:
            self.left[self._open] = msg["value"]
            self._open = ""

    def hides(self, msg: Any) -> bool:
        """Tell whether a site is hidden: all of these and the likelihood, and what comes later.

        While a site that is left is open, others come from handlers around: NumPyro's samplers put
        the log determinant of its chart there as a factor, `reparam` the site in its place.
        """
        if self._open:
            return False
        if msg["type"] == "sample":
            return msg["is_observed"] or msg["name"] in self.sites
        return msg["type"] == "deterministic" and self._is_past


def _drawn(
    conditional: Any, key: PRNGKeyArray, second_order: bool
) -> tuple[Float[Array, " D"], Float[Array, ""]]:
    """A draw of the Gaussian at the mode, in u of the joint posterior, and its log weight."""
    log_z, mode, lower = laplace_at(conditional, conditional.origin, second_order)
    normal = jax.random.normal(key, mode.shape, mode.dtype)
    u = mode + jax.scipy.linalg.solve_triangular(lower.T, normal, lower=False)
    height = jnp.sum(jnp.log(jnp.diagonal(lower))) - 0.5 * u.size * jnp.log(2.0 * jnp.pi)
    log_q = height - 0.5 * jnp.sum(normal**2)
    return conditional.point(u), conditional.log_density_lebesgue(u) - log_z - log_q


def _are_same(known: tuple[Any, list[Any]], given: tuple[Any, list[Any]]) -> bool:
    """Tell whether arguments are those known: by identity, and arrays of NumPy by their values."""

    def is_same(one: Any, other: Any) -> bool:
        if isinstance(other, np.ndarray):
            return isinstance(one, np.ndarray) and np.array_equal(one, other, equal_nan=False)
        return one is other

    return known[0] == given[0] and all(map(is_same, known[1], given[1]))


def _named(sites: Sequence[str]) -> str:
    return "`, `".join(sites)
