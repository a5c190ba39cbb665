"""-log q^G as the loss of a model's outputs and the rest: Gauss-Newton, exact or as products."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float
from numpyro.distributions import Unit

from volform.errors import ModelError
from volform.geometry.connection import christoffel_along
from volform.inference.modes.expansion import hessian_of
from volform.linalg.under_metric import whitening_maps
from volform.models.data_checks import core_of
from volform.models.layout import Site
from volform.models.posterior import Posterior
from volform.networks.hooks import LayerHooks, LayerRecord

SiteOutputs = Any  # by site: the floating-point leaves of its distribution, and its value
HessianProduct = Callable[[Float[Array, " d"]], Float[Array, " d"]]


class DataPriorSplit(eqx.Module):
    """`-log q^G = loss(outputs) + rest` at u, and the curvature of the two.

    Attributes:
        posterior: the posterior.
        u: where, in unconstrained coordinates.
        names: observed sites whose loss is taken apart; without any, everything is the rest.
    """

    posterior: Posterior
    u: Float[Array, " d"]
    names: tuple[str, ...] = eqx.field(static=True)

    def outputs(
        self, u: Float[Array, " d"], added: Any = None
    ) -> tuple[SiteOutputs, list[LayerRecord]]:
        """Parameters of the observed sites' distributions, and the layers of networks.

        Args:
            u: where.
            added: what to add to the outputs of each layer.
        """
        hooks, program = LayerHooks(added), self.posterior.program
        program.require_unchanged()  # a recording does not hear the hooks
        with hooks:
            trace = program.run_python(self.posterior.values(u)).trace
        return self._split(trace)[0], hooks.layers

    def losses(self) -> Callable[[SiteOutputs], Float[Array, ""]]:
        """`-log p(y | outputs)` as a function of the outputs."""
        trace = self.posterior.program.run(self.posterior.values(self.u))
        _, (fixed, scales) = self._split(trace)

        def loss(z: SiteOutputs) -> Float[Array, ""]:
            sites = eqx.combine(z, fixed)
            terms = [
                (1.0 if scales[name] is None else scales[name]) * jnp.sum(fn.log_prob(value))
                for name, (fn, value) in sites.items()
            ]
            return -sum(terms, jnp.zeros((), self.u.dtype))

        return loss

    def rest(self) -> Callable[[Float[Array, " d"]], Float[Array, ""]]:
        """Priors, volume and factors, as a function of u."""
        posterior = self.posterior

        def rest(u: Float[Array, " d"]) -> Float[Array, ""]:
            values, log_det = posterior.layout.constrain_with_log_det(u)
            densities = posterior.program.site_densities(values)
            others = [density for name, density in densities.items() if name not in self.names]
            return posterior.log_volume(u) - log_det - sum(others, jnp.zeros((), u.dtype))

        return rest

    def data_product(self) -> HessianProduct:
        """`v -> J^T L J v`; everything that does not depend on v is computed once."""
        loss = self.losses()
        z, push = jax.linearize(self.parameters, self.u)
        pull = jax.linear_transpose(push, self.u)
        _, output_hessian = jax.linearize(jax.grad(loss), z)
        return lambda v: pull(output_hessian(push(v)))[0]

    def rest_product(self) -> HessianProduct:
        """`v -> (d^2 rest - Gamma^k d_k rest) v`, the covariant Hessian of the rest."""
        slope, push = jax.linearize(jax.grad(self.rest()), self.u)
        down, up = whitening_maps(self.posterior.metric(self.u))
        raised = up(down(slope))
        _, along = jax.linearize(lambda u: self.posterior.metric(u).mv(raised), self.u)
        across = jax.linear_transpose(along, self.u)

        def turned(v: Float[Array, " d"]) -> Float[Array, " d"]:
            return jax.jvp(lambda u: self.posterior.metric(u).mv(v), (self.u,), (raised,))[1]

        return lambda v: push(v) - 0.5 * (along(v) + across(v)[0] - turned(v))

    def rest_matrix(self) -> Float[Array, "d d"]:
        """The covariant Hessian of the rest, formed."""
        metric = self.posterior.metric(self.u)
        _, slope, plain = hessian_of(self.rest(), self.u)
        raised = cho_solve((jnp.linalg.cholesky(metric.as_matrix()), True), slope)
        return plain - christoffel_along(self.posterior.metric, self.u, raised)

    def parameters(self, u: Float[Array, " d"]) -> SiteOutputs:
        """Parameters of the observed sites' distributions; the model's Python is not run."""
        return self._split(self.posterior.program.run(self.posterior.values(u)))[0]

    def _split(self, trace: dict[str, Any]) -> tuple[SiteOutputs, Any]:
        sites = {name: (trace[name]["fn"], trace[name]["value"]) for name in self.names}
        scales = {name: trace[name]["scale"] for name in self.names}
        moving, fixed = eqx.partition(sites, _is_floating)
        return jax.tree.map(jnp.asarray, moving), (fixed, scales)


def data_sites(posterior: Posterior, u: Float[Array, " d"]) -> tuple[str, ...]:
    """Observed sites with a distribution, `numpyro.factor` left out."""
    found: list[str] = []

    def look(u: Float[Array, " d"]) -> None:
        trace = posterior.program.run(posterior.values(u))
        names = posterior.observed
        found.extend(n for n in names if not isinstance(core_of(trace[n]["fn"]), Unit))

    jax.eval_shape(look, u)  # run as it is, a model compiles each of its operations by itself
    return tuple(found)


@eqx.filter_jit
def gauss_newton(split: DataPriorSplit, batch: int = 64) -> Float[Array, "d d"]:
    """`J^T L J` and the covariant Hessian of the rest."""
    columns = columns_of(split.data_product(), split.u, 0, split.u.size, batch)
    return 0.5 * (columns + columns.T) + split.rest_matrix()


@eqx.filter_jit
def blocks_of_data(split: DataPriorSplit, sites: tuple[Site, ...]) -> list[Float[Array, "s s"]]:
    """The blocks of `J^T L J` for each of the sites."""
    return _blocks(split.data_product(), split.u, sites)


@eqx.filter_jit
def blocks_of(split: DataPriorSplit, sites: tuple[Site, ...]) -> list[Float[Array, "s s"]]:
    """The blocks of `J^T L J` and of the rest for each of the sites."""
    data, rest = split.data_product(), split.rest_product()
    return _blocks(lambda v: data(v) + rest(v), split.u, sites)


def _blocks(
    product: HessianProduct, like: Float[Array, " d"], sites: tuple[Site, ...]
) -> list[Float[Array, "s s"]]:
    rows = [columns_of(product, like, s.start, s.size)[:, s.segment] for s in sites]
    return [0.5 * (block + block.T) for block in rows]


def columns_of(
    product: HessianProduct, like: Float[Array, " d"], start: int, size: int, batch: int = 64
) -> Float[Array, "size d"]:
    """The products with `size` unit vectors from `start` on, `batch` at a time."""

    def column(index: Array) -> Float[Array, " d"]:
        return product(jnp.zeros_like(like).at[index].set(1.0))

    return jax.lax.map(column, start + jnp.arange(size), batch_size=min(batch, size))


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating)


class Curvature(eqx.Module):
    """A symmetric matrix in place of the Hessian, as a value: `vf.laplace(fit, curvature=...)`."""

    @abc.abstractmethod
    def matrix(self, posterior: Posterior, u: Float[Array, " d"]) -> Float[Array, "d d"]:
        """The matrix in unconstrained coordinates at u."""

    @abc.abstractmethod
    def split(self, posterior: Posterior, u: Float[Array, " d"]) -> DataPriorSplit:
        """Split of -log q^G into data and the rest, for a `Structure`."""


class GGN(Curvature):
    """Generalized Gauss-Newton: the Hessian with the curvature of the model's map left out.

    With z(theta) the parameters of the distributions of the observed sites, as the model computes
    them, and J = dz/du,

        H = J^T L J + covariant Hessian of the rest,    L = - d^2 log p(y | z) / dz^2

    The rest (priors, volume, `numpyro.factor`) is taken exactly, and covariantly since its own
    gradient does not vanish at a mode: so the evidence is invariant at every point. Where z is
    linear this is the Hessian itself; in a network it is not, and their evidences may be tens of
    nats apart. L is positive semi-definite where the likelihood is log-concave in z, as for logits,
    log rates and the mean of a normal: then H is positive definite at the ends of a training that
    are no modes, too.

    References:
        Schraudolph (2002), Fast curvature matrix-vector products; Martens (2020), New insights and
        perspectives on the natural gradient method, section 8.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(a**2, 1.0), obs=y)
    >>> posterior = vf.condition(model, jnp.array([1.5]))
    >>> approx = vf.laplace(posterior, at={"a": 1.0}, curvature=vf.GGN())
    >>> approx.at.hessian.round(6).tolist()  # 4 a^2 + 1 at a = 1; the Hessian itself is 4
    [[5.0]]
    """

    def matrix(self, posterior: Posterior, u: Float[Array, " d"]) -> Float[Array, "d d"]:
        """`J^T L J` and the covariant Hessian of the rest.

        Raises:
            ModelError: when no site is observed.
        """
        return gauss_newton(self.split(posterior, u))

    def split(self, posterior: Posterior, u: Float[Array, " d"]) -> DataPriorSplit:
        """The likelihoods of all observed sites, and the rest.

        Raises:
            ModelError: when no site is observed.
        """
        names = data_sites(posterior, u)
        if not names:
            raise ModelError(
                "`curvature=GGN()` needs an observed site, `numpyro.sample(..., obs=...)`; the "
                f"posterior of `{posterior.program.name}` has none (a `numpyro.factor` has no "
                "distribution). Leave `curvature` out."
            )
        return DataPriorSplit(posterior, u, names)
