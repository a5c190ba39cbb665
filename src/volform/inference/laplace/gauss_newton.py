"""-log q^G as the loss of a model's outputs and the rest: Gauss-Newton, exact or as products."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float

from volform.checks import require_whole
from volform.compilation import Remembering, remembered, steady
from volform.errors import ModelError, StructureError
from volform.geometry.connection import christoffel_along
from volform.inference.laplace.observed_sites import ObservedSites, SiteOutputs
from volform.inference.laplace.sums import (
    batches_of,
    comes_in_batches,
    over_batches,
    over_chunks,
    plus,
    require_batch,
    require_independent,
    without_data,
)
from volform.inference.modes.expansion import FirstOrder, expand_first, hessian_of
from volform.linalg.under_metric import whitening_maps
from volform.models.layout import Site
from volform.models.posterior import Posterior

OutputProduct = Callable[[SiteOutputs], SiteOutputs]
HessianProduct = Callable[[Float[Array, " d"]], Float[Array, " d"]]


class Curvature(eqx.Module):
    """A symmetric matrix in place of the Hessian, as a value: `vf.laplace(fit, curvature=...)`.

    With z(theta) the parameters of the distributions of the observed sites, as the model computes
    them, and J = dz/du, it is `J^T L J` and the covariant Hessian of the rest. One of your own
    says `at_outputs`: what L is.

    Args:
        chunk: examples worked on at once, as of `GGN`.
    """

    chunk: int | None = eqx.field(static=True, default=None, kw_only=True)

    def __check_init__(self) -> None:
        if self.chunk is not None:
            require_whole(self.chunk, "chunk", type(self).__name__, ModelError)

    def matrix(self, posterior: Posterior, u: Float[Array, " d"]) -> Float[Array, "d d"]:
        """`J^T L J` and the covariant Hessian of the rest.

        Raises:
            ModelError: when no site is observed.
        """
        return gauss_newton(self.split(posterior, u))

    def split(self, posterior: Posterior, u: Float[Array, " d"]) -> "DataPriorSplit":
        """The likelihoods of all observed sites, and the rest.

        Raises:
            ModelError: when no site is observed.
            StructureError: when the examples of a `chunk` are not independent of the others.
        """
        names = posterior.data_sites
        if not names:
            raise ModelError(
                f"`curvature={self}` needs an observed site, `numpyro.sample(..., obs=...)`; the "
                f"posterior of `{posterior.program.name}` has none (a `numpyro.factor` has no "
                "distribution). Leave `curvature` out."
            )
        split = DataPriorSplit(posterior, u, names, self, self.chunk)
        require_independent(split)
        return split

    def of_chunk(self, number: Any) -> "Curvature":
        """The curvature for one chunk of the examples, with draws of its own if it has draws."""
        return self

    def expand(self, posterior: Posterior, u: Float[Array, " d"]) -> FirstOrder:
        """-log q^G to first order at u, chunk by chunk."""
        is_whole = self.chunk is None and not posterior.in_batches
        return expand_first(posterior, u) if is_whole else _expanded(self.split(posterior, u))

    def __repr__(self) -> str:
        fields = [(f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self)]
        given = [f"{name}={value}" for name, value, default in fields if value is not default]
        return f"{type(self).__name__}({', '.join(given)})"

    @abc.abstractmethod
    def at_outputs(self, split: "DataPriorSplit", z: SiteOutputs) -> OutputProduct:
        """`dz -> L dz` at the outputs z."""

    def scores(self, split: "DataPriorSplit", z: SiteOutputs) -> SiteOutputs | None:
        """Columns of a root of L, along a leading axis, where they are known; else None.

        An example has its own part of each column: L is the sum over columns and examples.
        """
        return None


class DataPriorSplit(Remembering):
    """`-log q^G = loss(outputs) + rest` at u, and the curvature of the two.

    Attributes:
        posterior: the posterior.
        u: where, in unconstrained coordinates.
        names: observed sites whose loss is taken apart; without any, everything is the rest.
        curvature: of the outputs; None without any.
        chunk: examples that sums over them take at once; None for all.
    """

    posterior: Posterior
    u: Float[Array, " d"]
    names: tuple[str, ...] = eqx.field(static=True)
    curvature: Curvature | None = None
    chunk: int | None = eqx.field(static=True, default=None)

    @remembered
    def count(self) -> int:
        """Number of the examples.

        Raises:
            StructureError: when the observed sites are not of as many independent data each.
        """
        found: list[tuple[int, ...]] = []

        def look(split: DataPriorSplit) -> None:
            sites = split.observed().sites(split.parameters(split.u)).values()
            found.extend(jnp.shape(fn.log_prob(value)) for fn, value in sites)

        eqx.filter_eval_shape(look, self)
        if len({shape[:1] for shape in found}) != 1 or not found[0]:
            raise StructureError(
                f"`chunk` needs data of one number along the first axis, each with a likelihood of "
                f"its own; the log likelihoods of the sites {list(self.names)} have the shapes "
                f"{found}. Leave `chunk` out."
            )
        return found[0][0]

    def observed(self) -> ObservedSites:
        """The observed sites at u as functions of the outputs."""
        trace = self.posterior.program.run(self.posterior.values(self.u))
        return ObservedSites(*self._split(trace)[1])

    def output_product(self, z: SiteOutputs) -> OutputProduct:
        """`dz -> L dz` at the outputs z."""
        if self.curvature is None:
            return lambda dz: jax.tree.map(jnp.zeros_like, dz)
        return self.curvature.at_outputs(self, z)

    def rest(self) -> Callable[[Float[Array, " d"]], Float[Array, ""]]:
        """Priors, volume and factors, as a function of u."""
        posterior = without_data(self).posterior

        def rest(u: Float[Array, " d"]) -> Float[Array, ""]:
            values, log_det = posterior.layout.constrain_with_log_det(u)
            densities = posterior.program.site_densities(values)
            others = [density for name, density in densities.items() if name not in self.names]
            return posterior.log_volume(u) - log_det - sum(others, jnp.zeros((), u.dtype))

        return rest

    def data_product(self) -> HessianProduct:
        """`v -> J^T L J v`; what does not depend on v is computed once, but in chunks.

        Raises:
            StructureError: of data in batches.
        """
        if comes_in_batches(self):
            raise StructureError(
                "`structure` multiplies the curvature of all data into one vector after the other, "
                "for each of which the `Batches` would be read again; use `Kronecker()`, "
                "`Diagonal()`, `Full()`, `BySite()`, or one of them within `LastLayer`."
            )
        if self.chunk is not None:
            return lambda v: over_chunks(self, lambda part: part.data_product()(v))
        z, push = jax.linearize(self.parameters, self.u)
        pull = jax.linear_transpose(push, self.u)
        weigh = self.output_product(z)
        return lambda v: pull(weigh(push(v)))[0]

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

    def loss(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """`-log p(y | u)`."""
        densities = self.posterior.program.site_densities(self.posterior.values(u))
        return -sum((densities[name] for name in self.names), jnp.zeros((), u.dtype))

    def parameters(self, u: Float[Array, " d"]) -> SiteOutputs:
        """Parameters of the observed sites' distributions."""
        return self.of_values(self.posterior.values(u))[0]

    def of_values(self, values: dict[str, Array]) -> tuple[SiteOutputs, list[int]]:
        """The same for values of the latent sites, and the lengths of the sites' data."""
        trace = self.posterior.program.run(values)
        shapes = [jnp.shape(trace[name]["value"]) for name in self.names]
        return self._split(trace)[0], [shape[0] for shape in shapes if shape]

    def _split(self, trace: dict[str, Any]) -> tuple[SiteOutputs, Any]:
        sites = {name: (trace[name]["fn"], trace[name]["value"]) for name in self.names}
        scales = {name: trace[name]["scale"] for name in self.names}
        # Not by `eqx.partition`: NumPyro takes the answer about an array that masks for the mask.
        moving = jax.tree.map(lambda x: jnp.asarray(x) if _is_floating(x) else None, sites)
        fixed = jax.tree.map(lambda x: None if _is_floating(x) else x, sites)
        return moving, (fixed, scales)


def _expanded(split: DataPriorSplit) -> FirstOrder:
    if not comes_in_batches(split):
        return _with_rest(split, *_data_to_first_order(split))
    total, first = None, float(_rest_of(without_data(split)))
    for own in batches_of(split):
        found = _data_to_first_order(own)
        require_batch(own, float(found[0]), float(_rest_of(own)), first)
        total = found if total is None else plus(total, found)
    assert total is not None  # there is a batch
    return _with_rest(split, *total)


@steady
def _rest_of(split: DataPriorSplit) -> Array:
    return split.rest()(split.u)


@steady
def _data_to_first_order(split: DataPriorSplit) -> tuple[Array, Array]:
    return over_chunks(split, lambda part: jax.value_and_grad(part.loss)(part.u))


@steady
def _with_rest(split: DataPriorSplit, value: Array, gradient: Array) -> FirstOrder:
    value, gradient = plus((value, gradient), jax.value_and_grad(split.rest())(split.u))
    return FirstOrder.of(split.posterior, split.u, value, gradient)


def gauss_newton(split: DataPriorSplit) -> Float[Array, "d d"]:
    """`J^T L J` and the covariant Hessian of the rest."""
    if comes_in_batches(split):
        return over_batches(split, _matrix_of_data) + _matrix_of_rest(split)
    return _matrix(split)


@steady
def _matrix(split: DataPriorSplit) -> Float[Array, "d d"]:
    return _matrix_of_data(split) + split.rest_matrix()


@steady
def _matrix_of_data(split: DataPriorSplit) -> Float[Array, "d d"]:
    columns = columns_of(split.data_product(), split.u, 0, split.u.size)
    return 0.5 * (columns + columns.T)


@steady
def _matrix_of_rest(split: DataPriorSplit) -> Float[Array, "d d"]:
    return split.rest_matrix()


def blocks_of_data(split: DataPriorSplit, sites: tuple[Site, ...]) -> list[Float[Array, "s s"]]:
    """The blocks of `J^T L J` for each of the sites."""
    return over_batches(split, lambda part: _blocks_of_data(part, sites)) if sites else []


def blocks_of(split: DataPriorSplit, sites: tuple[Site, ...]) -> list[Float[Array, "s s"]]:
    """The blocks of `J^T L J` and of the rest for each of the sites."""
    if comes_in_batches(split):
        return plus(blocks_of_data(split, sites), _blocks_of_rest(split, sites))
    return _blocks_of(split, sites)


@steady
def _blocks_of(split: DataPriorSplit, sites: tuple[Site, ...]) -> list[Float[Array, "s s"]]:
    data, rest = split.data_product(), split.rest_product()
    return _blocks(lambda v: data(v) + rest(v), split.u, sites)


@steady
def _blocks_of_data(split: DataPriorSplit, sites: tuple[Site, ...]) -> list[Float[Array, "s s"]]:
    return _blocks(split.data_product(), split.u, sites)


@steady
def _blocks_of_rest(split: DataPriorSplit, sites: tuple[Site, ...]) -> list[Float[Array, "s s"]]:
    return _blocks(split.rest_product(), split.u, sites)


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


def rest_diagonal(split: DataPriorSplit) -> Float[Array, " d"] | None:
    """The diagonal of the rest if it is diagonal, else None.

    A diagonal matrix D has `s * D s` the same for all vectors s of signs; any other has it for 16
    random ones with a chance of one in 32,768.
    """
    found = _against_signs(split)
    gap = jnp.abs(found - found[:1])
    close = gap <= 1e3 * jnp.finfo(found.dtype).eps * jnp.abs(found[:1])
    return found[0] if bool(jnp.all(close)) else None


@steady
def _against_signs(split: DataPriorSplit) -> Float[Array, "k d"]:
    signs = jax.random.rademacher(jax.random.key(0), (16, split.u.size), split.u.dtype)
    return signs * jax.vmap(split.rest_product())(signs)


def diagonal_entries(split: DataPriorSplit, indices: Array, *, of_rest: bool) -> Float[Array, " k"]:
    """Entries of the diagonal of `J^T L J`, or of the rest, by a product for each."""
    if of_rest:
        return _entries(split, indices, of_rest)
    return over_batches(split, lambda part: _entries(part, indices, of_rest))


@steady
def _entries(split: DataPriorSplit, indices: Array, of_rest: bool) -> Float[Array, " k"]:
    product: HessianProduct = split.rest_product() if of_rest else split.data_product()

    def entry(index: Array) -> Float[Array, ""]:
        return product(jnp.zeros_like(split.u).at[index].set(1.0))[index]

    return jax.lax.map(entry, indices, batch_size=min(64, indices.size))


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating)
