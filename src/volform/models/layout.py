"""The latent sites of a model and the map from flat unconstrained points to named values."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import IdentityTransform, Transform

from volform.compilation import QUICK, Compiled
from volform.errors import DataError, UnknownSiteError
from volform.models.model_with_data import ModelWithData


class Site(eqx.Module):
    """One latent site: its chart and its segment of the flat unconstrained vector.

    Attributes:
        name: name of the site.
        chart: NumPyro's transform from unconstrained coordinates to the site's value.
        shape: shape of the value.
        coordinates: shape of the unconstrained coordinates (smaller for embedded supports).
        start: first entry in the flat vector.
        circular: whether the value is an angle. The chart then has its cut opposite to the data's
            direction, where NumPyro cuts the circle at pi, through whatever lies there.
        moving: whether the support depends on sites before it. The chart is then the one at the
            origin of u, and `Layout.sites_at` gives the others.
    """

    name: str = eqx.field(static=True)
    chart: Transform
    shape: tuple[int, ...] = eqx.field(static=True)
    coordinates: tuple[int, ...] = eqx.field(static=True)
    start: int = eqx.field(static=True)
    circular: bool = eqx.field(static=True, default=False)
    moving: bool = eqx.field(static=True, default=False)

    @property
    def size(self) -> int:
        """Number of unconstrained coordinates."""
        return math.prod(self.coordinates)

    @property
    def is_line(self) -> bool:
        """Tell whether the values are their own unconstrained coordinates."""
        chart = getattr(self.chart, "base_transform", self.chart)  # of an IndependentTransform
        return isinstance(chart, IdentityTransform)

    @property
    def segment(self) -> slice:
        """The site's entries of the flat vector."""
        return slice(self.start, self.start + self.size)

    def part(self, u: Float[Array, " d"]) -> Array:
        """The site's unconstrained coordinates in their own shape."""
        return u[self.segment].reshape(self.coordinates)

    def value(self, u: Float[Array, " d"]) -> Array:
        """The site's value at a flat unconstrained point; angles in [-pi, pi)."""
        value = jnp.asarray(self.chart(self.part(u)))
        return jnp.mod(value + jnp.pi, 2.0 * jnp.pi) - jnp.pi if self.circular else value

    def coordinates_of(self, value: Any, argument: str) -> Float[Array, " n"]:
        """The unconstrained coordinates of a value, flat.

        Raises:
            DataError: when the value has the wrong shape or is outside the support; under `jit`
                the latter is NaN or a point whose value is another.
        """
        value = jnp.asarray(value, jnp.result_type(float))
        try:
            value = jnp.broadcast_to(value, self.shape)
        except ValueError as error:
            raise DataError(
                f"The value of `{self.name}` in `{argument}` has shape {value.shape}; the site has "
                f"shape {self.shape}."
            ) from error
        if self.circular:
            middle = self.chart(jnp.zeros(self.coordinates, value.dtype))
            value = middle + jnp.mod(value - middle + jnp.pi, 2.0 * jnp.pi) - jnp.pi
        u = jnp.asarray(self.chart.inv(value))
        if not isinstance(u, Tracer) and not _is_inverse(self.chart, u, value):
            raise DataError(
                f"The value of `{self.name}` in `{argument}` is not inside its support, "
                f"{self.chart.codomain}: {np.array2string(np.asarray(value), threshold=6)}."
            )
        return jnp.ravel(u)


def _is_floating(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)


def _is_inverse(chart: Transform, u: Array, value: Array) -> bool:
    # Not the constraint's own check: its absolute tolerances refuse float32 and large matrices.
    # On the host, where each operation takes a twentieth of the time of one of JAX.
    given, back = np.asarray(value), np.asarray(chart(u))
    gap = np.max(np.abs(back - given), initial=0.0)
    close = gap <= 1e-3 * np.max(np.abs(given), initial=1e-30)
    return bool(np.all(np.isfinite(np.asarray(u))) and close)


class Layout(eqx.Module):
    """The latent sites of a model in the order in which it samples them.

    u to values is a triangular map: where a support moves, the chart of its site is that of the
    values before it, and dv/du has the determinants of the charts on its diagonal.

    Attributes:
        sites: the sites.
        program: the model, which knows the supports that move; None where all are fixed.
    """

    sites: tuple[Site, ...]
    program: ModelWithData | None = None

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates d."""
        return sum(site.size for site in self.sites)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the latent sites."""
        return tuple(site.name for site in self.sites)

    def rows(self) -> list[list[str]]:
        """A table of name, shape and number of coordinates of each site, titles first."""
        rows = [[site.name, str(site.shape), str(site.size)] for site in self.sites]
        return [["", "shape", "parameters"], *rows]

    def to_dataframe(self) -> Any:
        """A pandas DataFrame, one row for each site: its shape and number of coordinates."""
        import pandas as pd  # noqa: PLC0415 - comes with arviz, and takes long to import

        rows = [(site.shape, site.size) for site in self.sites]
        return pd.DataFrame(rows, index=list(self.names), columns=["shape", "parameters"])

    @property
    def point(self) -> jax.ShapeDtypeStruct:
        """An abstract unconstrained point, for traces that evaluate nothing."""
        return jax.ShapeDtypeStruct((self.dim,), jnp.result_type(float))

    @property
    def lines(self) -> Bool[np.ndarray, " d"]:
        """Coordinates that are values themselves, of sites on the whole line."""
        return np.concatenate([np.full(site.size, site.is_line) for site in self.sites])

    def site(self, name: str) -> Site:
        """The latent site called `name`."""
        return self.sites[self.names.index(name)]

    @property
    def moving(self) -> tuple[str, ...]:
        """Names of the sites whose support depends on sites before them."""
        return tuple(site.name for site in self.sites if site.moving)

    def sites_at(self, values: Mapping[str, Any]) -> tuple[Site, ...]:
        """The sites with their charts at given values of all of them."""
        return tuple(self._site_at(site, values) for site in self.sites)

    def _site_at(self, site: Site, values: Mapping[str, Any]) -> Site:
        """A site with its chart at given values of the sites before it."""
        if not site.moving or self.program is None:
            return site
        origin = jnp.zeros(self.dim)
        known = {
            s.name: jnp.broadcast_to(jnp.asarray(values[s.name], origin.dtype), s.shape)
            if s.start < site.start
            else s.value(origin)  # not looked at
            for s in self.sites
        }
        fn: Any = self.program.outputs(known, lambda found: found.trace[site.name]["fn"])
        return dataclasses.replace(site, chart=biject_to(fn.support))

    def constrain(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """Values of the latent sites at the flat unconstrained point u.

        Raises:
            DataError: when u is no vector of d floating-point numbers.
        """
        self.require_point(u)
        return (_values if isinstance(u, Tracer) else _constrained)(self, u)

    def constrain_with_log_det(
        self, u: Float[Array, " d"]
    ) -> tuple[dict[str, Array], Float[Array, ""]]:
        """Values, and the sum of `log |det dv/du|` over the charts."""
        self.require_point(u)
        values, total = {}, jnp.zeros((), u.dtype)
        for fixed in self.sites:
            site, part = self._site_at(fixed, values), fixed.part(u)
            values[site.name] = site.value(u)
            total += jnp.sum(site.chart.log_abs_det_jacobian(part, site.chart(part)))
        return values, total

    def require_point(self, u: Any) -> None:
        """Check that u is an unconstrained point of this model.

        Raises:
            DataError: when u is no vector of d floating-point numbers.
        """
        shape, dtype = np.shape(u), getattr(u, "dtype", type(u).__name__)
        if shape != (self.dim,) or not _is_floating(u):
            raise DataError(
                f"`u` has shape {shape} and dtype {dtype}; an unconstrained point of this model is "
                f"a floating-point vector of shape ({self.dim},), as `posterior.unconstrain` gives."
            )

    def unconstrain(
        self, values: Mapping[str, Any], argument: str = "values"
    ) -> Float[Array, " d"]:
        """The flat unconstrained point of the latent values; errors call them `argument`.

        Raises:
            UnknownSiteError: when a latent site is missing from `values`.
            DataError: when a value has the wrong shape or is outside its support.
        """
        if not isinstance(values, Mapping):
            raise DataError(
                f"`{argument}` is {type(values).__name__}; it should be a dict of the values of "
                f"{list(self.names)}. Of a network by `from_function` it is `network.values(net)`; "
                "of `nn.Network(body)` draw it by `network.init(key, inputs)`, or take the leaves "
                "of `body.init` by layer, whose sites are `layer0.w`, `layer0.b` and so on."
            )
        missing = [name for name in self.names if name not in values]
        if missing:
            raise UnknownSiteError(
                f"`{argument}` lacks the latent sites {missing}; it should hold all of "
                f"{list(self.names)}."
            )
        parts = [
            self._site_at(site, values).coordinates_of(values[site.name], argument)
            for site in self.sites
        ]
        return jnp.concatenate(parts)

    def labels(self) -> list[str]:
        """One name for each entry of the flat vector: `theta[3]`."""
        return [
            f"{site.name}[{','.join(map(str, index))}]" if site.coordinates else site.name
            for site in self.sites
            for index in np.ndindex(site.coordinates)
        ]


def _values(layout: Layout, u: Float[Array, " d"]) -> dict[str, Array]:
    values: dict[str, Array] = {}
    for site in layout.sites:
        values[site.name] = layout._site_at(site, values).value(u)
    return values


_constrained = Compiled(_values, QUICK)  # operation by operation a program for each of them


def named_values(
    layout: Layout, program: ModelWithData, u: Float[Array, " d"], names: tuple[str, ...]
) -> dict[str, Any]:
    """Values of `names` at u; the model is traced only when one of them is deterministic."""
    latent = layout.constrain(u)
    if all(name in latent for name in names):
        return {name: latent[name] for name in names}
    trace = program.run(latent)
    missing = [name for name in names if name not in trace]
    if missing:
        raise UnknownSiteError(
            f"`names` holds {missing}, which are no sites of the model; it has {list(trace)}."
        )
    return {name: trace[name]["value"] for name in names}
