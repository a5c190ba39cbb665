"""Structures of the precision matrix in Laplace's method: what of the curvature is kept."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PRNGKeyArray

from volform.errors import StructureError, UnknownSiteError
from volform.inference.laplace.gauss_newton import (
    Curvature,
    DataPriorSplit,
    blocks_of,
    gauss_newton,
    rest_diagonal,
)
from volform.inference.laplace.layer_moments import shaped
from volform.inference.laplace.structure import Structure
from volform.inference.laplace.sums import comes_in_batches
from volform.inference.laplace.woodbury import woodbury_precision
from volform.inference.modes.expansion import Expand, SecondOrder
from volform.inference.modes.given_point import place_at
from volform.inference.modes.mode import ExpansionPoint, require_room
from volform.limits import MATRIX_UP_TO
from volform.linalg.methods import Krylov
from volform.linalg.operator import require_dense
from volform.linalg.precision import LowRankUpdate as LowRankOperator
from volform.linalg.spectrum import eigenvalues
from volform.linalg.structured import DenseOperator, FlatBlocks, exact_logdet
from volform.linalg.under_metric import UnderMetric
from volform.models.conditioned_again import with_sites_fixed
from volform.results import Regime


class Full(Structure):
    """All of it: invariant under every reparametrization.

    A dense matrix, but above 1,000 parameters by the rows of J where those are at most a quarter
    and the rest is diagonal, as with independent priors: exact too, in O(rows^2 parameters).
    """

    def precision(self, split: DataPriorSplit) -> lx.AbstractLinearOperator:
        """The matrix, or the rest with a direction for each row of J.

        Raises:
            SizeError: when the matrix would take more than 8 GiB, from 32,768 parameters on.
        """
        by_rows = split.names and split.u.size > MATRIX_UP_TO and not comes_in_batches(split)
        rest = rest_diagonal(split) if by_rows else None
        few = None if rest is None else woodbury_precision(split, rest)
        if few is not None:
            return few
        require_room(split.posterior)
        return DenseOperator(gauss_newton(split), split.u)

    def regime(self, precision: lx.AbstractLinearOperator) -> Regime:
        """The rows of the Jacobian, or a dense matrix."""
        if isinstance(precision, LowRankOperator):
            return Regime("matrix by the rows of the Jacobian", MATRIX_UP_TO)
        return Regime("dense matrix")


class BySite(Structure):
    """A dense block for each latent site, without what couples them.

    Invariant where each site is reparametrized by itself.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     a = numpyro.sample("a", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    ...     b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(a.sum() + b, 1.0), obs=y)
    >>> posterior, at = vf.condition(model, jnp.array([1.5])), {"a": jnp.zeros(2), "b": 0.0}
    >>> by_site = vf.inference.BySite()
    >>> approx = vf.laplace(posterior, at=at, curvature=vf.GGN(), structure=by_site)
    >>> approx.precision.as_matrix().tolist()
    [[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 2.0]]
    """

    def precision(self, split: DataPriorSplit) -> lx.AbstractLinearOperator:
        """The blocks, by as many products as there are parameters."""
        sites = split.posterior.layout.sites
        for site in sites:
            require_dense(site.size, site.size, split.u.dtype)
        return FlatBlocks(
            tuple(DenseOperator(block, block[0]) for block in blocks_of(split, sites))
        )


class LowRank(Structure):
    """The k directions in which the data say most beside the rest, and the rest.

    With `J^T L J v = lambda R v` and R the rest: `P = R + R V diag(lambda) V^T R` for the k largest
    lambda. Invariant under every reparametrization, since R is.

    Args:
        rank: number k of directions.
        key: key of the first vector of Lanczos' method; `jax.random.key(0)` if left out.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     a = numpyro.sample("a", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    ...     numpyro.sample("y", dist.Normal(jnp.array([2.0, 1.0]) * a, 1.0), obs=y)
    >>> posterior, at = vf.condition(model, jnp.array([1.5, 0.5])), {"a": jnp.zeros(2)}
    >>> one = vf.inference.LowRank(1)
    >>> approx = vf.laplace(posterior, at=at, curvature=vf.GGN(), structure=one)
    >>> abs(approx.precision.as_matrix()).round(6).tolist()  # 4 and 1 of the data, 1 of the prior
    [[5.0, 0.0], [0.0, 1.0]]
    """

    rank: int = eqx.field(static=True)
    key: PRNGKeyArray | None = None

    def __check_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise StructureError(
                f"`rank` of LowRank is {self.rank!r}; it should be the number of directions to "
                "keep, a whole number of at least one."
            )

    def precision(self, split: DataPriorSplit) -> lx.AbstractLinearOperator:
        """The rest with k directions added."""
        if not split.names:
            raise StructureError(
                f"`structure={self}` needs `curvature=GGN()`, which takes the data apart from the "
                "rest; of the Hessian, which the curvature is here, all would be rest."
            )
        base = self._base(split)
        like = jax.ShapeDtypeStruct(split.u.shape, split.u.dtype)
        data = lx.FunctionLinearOperator(_DataProduct(split), like, lx.symmetric_tag)
        rank = min(self.rank, split.u.size)
        key = jax.random.key(0) if self.key is None else self.key
        found = eigenvalues(UnderMetric(data, base), rank, by=Krylov(key, depth=2 * rank + 32))
        return LowRankOperator(base, found.vectors, found.values)

    def _base(self, split: DataPriorSplit) -> lx.AbstractLinearOperator:
        entries = rest_diagonal(split)
        if entries is None:
            require_dense(split.u.size, split.u.size, split.u.dtype)
            base = DenseOperator(split.rest_matrix(), split.u)
        else:
            base = lx.DiagonalLinearOperator(entries)
        if not bool(jnp.isfinite(exact_logdet(base)) & jnp.all(lx.diagonal(base) > 0.0)):
            raise StructureError(
                f"`structure={self}` adds directions to the curvature of the priors, which is not "
                "positive definite here; give every site a proper, log-concave prior, or use "
                "another structure."
            )
        return base


class Subset(Structure):
    """Some latent sites, with the others held at their values.

    The evidence is that of the model in which the other sites are constants without a prior,
    `p(y | others)`: invariant under every reparametrization of the others, and of the sites what
    `structure` is.

    Args:
        sites: names of the sites that stay uncertain.
        structure: of their precision; `Full()` if left out.

    References:
        Daxberger et al. (2021), Bayesian deep learning via subnetwork inference.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    ...     b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)
    >>> posterior, at = vf.condition(model, jnp.array([1.5])), {"a": 0.0, "b": 1.0}
    >>> only_a = vf.inference.Subset(("a",))
    >>> approx = vf.laplace(posterior, at=at, curvature=vf.GGN(), structure=only_a)
    >>> approx.posterior.names, approx.precision.as_matrix().tolist()
    (('a',), [[2.0]])
    """

    sites: tuple[str, ...] = eqx.field(static=True)
    structure: Structure = Full()

    def precision(self, split: DataPriorSplit) -> lx.AbstractLinearOperator:
        """That of the structure."""
        return self.structure.precision(split)

    def regime(self, precision: lx.AbstractLinearOperator) -> Regime:
        """That of the structure."""
        return self.structure.regime(precision)

    def restricted(self, place: ExpansionPoint, expand: Expand) -> ExpansionPoint:
        """The place in the posterior of the sites."""
        names = place.posterior.names
        sites = (self.sites,) if isinstance(self.sites, str) else tuple(self.sites)
        unknown = [name for name in sites if name not in names]
        if unknown or not sites:
            raise UnknownSiteError(
                f"`sites` of Subset names {unknown or 'nothing'}; it should name some of the "
                f"latent sites {list(names)}."
            )
        return _without(place, expand, [name for name in names if name not in sites])


class LastLayer(Structure):
    """The weights and biases of the network's last layer, with all else held at its values.

    What `Subset` is for the sites that the last layer's arrays depend on.

    Args:
        structure: of their precision; `Full()` if left out.

    References:
        Kristiadi, Hein & Hennig (2020), Being Bayesian, even just a bit, fixes overconfidence in
        ReLU networks.

    >>> import jax, jax.numpy as jnp, volform as vf
    >>> network, x = vf.networks.MLP(widths=(3,)), jnp.array([[0.5], [1.0], [2.0]])
    >>> posterior = vf.condition(vf.networks.regression(network, 0.1), x, jnp.sin(x))
    >>> at, last = network.init(jax.random.key(0), 1), vf.inference.LastLayer()
    >>> vf.laplace(posterior, at=at, curvature=vf.GGN(), structure=last).posterior.names
    ('layer2.w',)
    """

    structure: Structure = Full()

    def precision(self, split: DataPriorSplit) -> lx.AbstractLinearOperator:
        """That of the structure."""
        return self.structure.precision(split)

    def regime(self, precision: lx.AbstractLinearOperator) -> Regime:
        """That of the structure."""
        return self.structure.regime(precision)

    def restricted(self, place: ExpansionPoint, expand: Expand) -> ExpansionPoint:
        """The place in the posterior of the last layer's sites."""
        split = DataPriorSplit(place.posterior, place.at.u, place.posterior.data_sites)
        names = shaped(split).last
        if not names:
            raise StructureError(
                f"`structure={self}` needs a model with layers, which multiply matrices of "
                "parameters into activations, with the examples along the first axis of the data; "
                "this one has no layer. Use `Subset(sites)`."
            )
        return _without(
            place, expand, [name for name in place.posterior.names if name not in names]
        )


def _without(place: ExpansionPoint, expand: Expand, names: list[str]) -> ExpansionPoint:
    posterior = with_sites_fixed(place.posterior, place.at.u, names)
    found = place_at(posterior, place.values, expand)
    return dataclasses.replace(found, regime=place.regime)


class _DataProduct(eqx.Module):
    split: DataPriorSplit

    def __call__(self, v: Float[Array, " d"]) -> Float[Array, " d"]:
        return self.split.data_product()(v)


def precision_of(
    mode: ExpansionPoint, curvature: Curvature | None, structure: Structure
) -> lx.AbstractLinearOperator:
    """The precision matrix of a curvature at a point, as far as a structure keeps it."""
    posterior, at = mode.posterior, mode.at
    if curvature is None and isinstance(structure, Full) and isinstance(at, SecondOrder):
        return DenseOperator(at.hessian, at.u)
    split = (
        DataPriorSplit(posterior, at.u, ())
        if curvature is None
        else curvature.split(posterior, at.u)
    )
    return structure.precision(split)
