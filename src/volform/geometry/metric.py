"""Riemannian metrics as values: functions from a point to a positive-definite operator."""

import abc
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from volform.checks import is_positive_number
from volform.errors import MetricError
from volform.geometry.questions import (
    Coordinates,
    is_elementwise,
    is_flat_in,
    is_symmetric,
    name_of,
)
from volform.linalg.structured import (
    BlockDiagonal,
    DenseOperator,
    Point,
    added,
    exact_logdet,
    identity,
    scaled,
    size_of,
    structure_of,
)


class Metric(eqx.Module):
    """A Riemannian metric: a function from a point to a positive-definite linear operator.

    `metric(point)` is the symmetric bilinear form G(point) on tangent vectors at `point`, as a
    lineax operator from tangent vectors to covectors. A point is any pytree of floating-point
    arrays: one array for one site, a tuple for a group of sites, a dict for named values.
    Sums and positive multiples of metrics are metrics: `m1 + 0.1 * m2`.

    To define your own, subclass and write `__call__`, or use `DiagonalField` or `MatrixField`.

    >>> import jax.numpy as jnp, volform as vf
    >>> g = vf.Euclidean() + 3.0 * vf.Euclidean()
    >>> g(jnp.zeros(2)).as_matrix().tolist()
    [[4.0, 0.0], [0.0, 4.0]]
    """

    @abc.abstractmethod
    def __call__(self, point: Point) -> lx.AbstractLinearOperator:
        """G(point) as an operator on tangent vectors at `point`."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuses to override the matrix of a finished metric, whose other answers would stay."""
        super().__init_subclass__(**options)
        for method in {"__call__", "gram"} & set(vars(cls)):
            for base in cls.__mro__[1:]:
                if method in vars(base) and not inspect.isabstract(base) and base is not Metric:
                    raise MetricError(
                        f"`{cls.__name__}` overrides `{method}` of `{base.__name__}`, and would "
                        "inherit answers (that it is flat, symmetric) which need not hold: derive "
                        "from `Metric` or `ModelMetric`, and hold the other as a field."
                    )

    __array_ufunc__ = None  # an array times a metric is one metric, and not an array of them

    def __add__(self, other: "Metric") -> "Metric":
        if not isinstance(other, Metric):
            return NotImplemented
        return Sum((*_terms(self), *_terms(other)))

    def __mul__(self, factor: Any) -> "Metric":
        if isinstance(factor, Metric):
            return NotImplemented
        if not isinstance(factor, Tracer) and (np.ndim(factor) or not is_positive_number(factor)):
            raise MetricError(
                f"A metric can be multiplied by `factor` > 0 only, one finite number; got {factor}."
            )
        return Scaled(self, factor)

    __rmul__ = __mul__


class Euclidean(Metric):
    """The flat metric of the value's own coordinates, `ds^2 = |dv|^2 / scale^2`.

    Args:
        scale: length unit, in the units of the value; a number or an array like the value. The
            metric of a value measured in other units is the same metric with `scale` converted.

    >>> import jax.numpy as jnp, volform as vf
    >>> float(vf.Euclidean(scale=0.5)(jnp.array(1.0)).as_matrix()[0, 0])
    4.0
    """

    scale: Any = 1.0

    def __call__(self, point: Point) -> lx.AbstractLinearOperator:
        """`I / scale^2`."""
        if isinstance(self.scale, float | int) and self.scale == 1.0:
            return identity(point)
        return lx.DiagonalLinearOperator(
            jax.tree.map(
                lambda p: jnp.broadcast_to(
                    jnp.asarray(self.scale, jnp.result_type(p)) ** -2, jnp.shape(p)
                ),
                point,
            )
        )

    def __repr__(self) -> str:
        is_one = isinstance(self.scale, float | int) and self.scale == 1.0
        return "Euclidean()" if is_one else f"Euclidean(scale={self.scale})"


class DiagonalField(Metric):
    """A diagonal metric `G(v) = diag(field(v))`.

    Args:
        field: maps the point to positive weights of the same shape. Called as `field(value)`, for
            a group of sites as `field(a, b)`, for named values as `field(a=..., b=...)`.

    >>> import jax.numpy as jnp, volform as vf
    >>> g = vf.geometry.DiagonalField(lambda sigma: 2.0 / sigma**2)
    >>> float(g(jnp.array(0.5)).as_matrix()[0, 0])
    8.0
    """

    field: Callable[..., Any]

    def __call__(self, point: Point) -> lx.AbstractLinearOperator:
        """`diag(field(point))`."""
        weights = call_at(self.field, point)
        if jax.tree.structure(weights) != jax.tree.structure(point):
            raise MetricError(
                f"`field` of DiagonalField returned {jax.tree.structure(weights)}; it should "
                f"return weights laid out like the point, {jax.tree.structure(point)}."
            )
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(weights)]
        wanted = [jnp.shape(leaf) for leaf in jax.tree.leaves(point)]
        if shapes != wanted:
            raise MetricError(
                f"`field` of DiagonalField returned weights of shape {shapes}; it should return "
                f"one weight for each coordinate, shape {wanted}."
            )
        return lx.DiagonalLinearOperator(weights)

    def __repr__(self) -> str:
        return f"DiagonalField({name_of(self.field)})"


class MatrixField(Metric):
    """A metric given by a symmetric positive-definite matrix at every point.

    Args:
        field: maps the point to an (n, n) array, n the number of coordinates of the point in
            `ravel_pytree` order. Called like the field of `DiagonalField`.

    >>> import jax.numpy as jnp, volform as vf
    >>> g = vf.geometry.MatrixField(lambda x: jnp.eye(2) * (1 + x @ x))
    >>> float(g(jnp.ones(2)).as_matrix()[1, 1])
    3.0
    """

    field: Callable[..., Any]

    def __call__(self, point: Point) -> lx.AbstractLinearOperator:
        """`field(point)`."""
        matrix = jnp.asarray(call_at(self.field, point))
        n = size_of(point)
        if matrix.shape != (n, n):
            raise MetricError(
                f"`field` of MatrixField returned an array of shape {matrix.shape}; the point has "
                f"{n} coordinates, so it should return shape ({n}, {n})."
            )
        return DenseOperator(matrix, point)

    def __repr__(self) -> str:
        return f"MatrixField({name_of(self.field)})"


class Sum(Metric):
    """The sum of metrics, `G_1 + G_2 + ...`; built by `+`."""

    terms: tuple[Metric, ...]

    def __call__(self, point: Point) -> lx.AbstractLinearOperator:
        """The sum of the operators, in the least general structure that holds them."""
        total = self.terms[0](point)
        for term in self.terms[1:]:
            total = added(total, term(point))
        return total

    def __repr__(self) -> str:
        return " + ".join(name_of(term) for term in self.terms)


class Scaled(Metric):
    """A positive multiple of a metric, `factor * G`; built by `*`."""

    metric: Metric
    factor: Any

    def __call__(self, point: Point) -> lx.AbstractLinearOperator:
        """`factor * G(point)`."""
        return scaled(self.factor, self.metric(point))

    def __repr__(self) -> str:
        inner = name_of(self.metric)
        return f"{self.factor} * ({inner})" if " + " in inner else f"{self.factor} * {inner}"


class Product(Metric):
    """The product metric of named values: one metric for each entry of a dict point.

    >>> import jax.numpy as jnp, volform as vf
    >>> g = vf.geometry.Product({"mu": vf.Euclidean(), "sigma": vf.Euclidean(2.0)})
    >>> float(vf.linalg.exact_logdet(g({"mu": jnp.zeros(3), "sigma": jnp.ones(())})))
    -1.386...
    """

    metrics: Mapping[str, Metric]

    def __call__(self, point: Point) -> lx.AbstractLinearOperator:
        """The block-diagonal operator."""
        if set(point) != set(self.metrics):
            raise MetricError(
                f"`point` of a Product metric has entries {sorted(point)}; the metric has "
                f"{sorted(self.metrics)}: they should be the same."
            )
        return BlockDiagonal({name: metric(point[name]) for name, metric in self.metrics.items()})

    def __repr__(self) -> str:
        each = ", ".join(f"{name}: {name_of(metric)}" for name, metric in self.metrics.items())
        return f"Product({each})"


class Pullback(Metric):
    """The metric `(f^* G)(x) = J(x)^T G(f(x)) J(x)`; built by `pullback`."""

    metric: Metric
    map: Callable[[Any], Any]
    elementwise: bool = eqx.field(static=True, default=False)

    def __call__(self, point: Point) -> lx.AbstractLinearOperator:
        """`J^T G J` at `point`."""
        return pulled_back(self.metric, self.map, point, elementwise=self.elementwise)

    def __repr__(self) -> str:
        return f"pullback({name_of(self.metric)}, {name_of(self.map)})"


def pullback(metric: Metric, f: Callable[[Any], Any], *, elementwise: bool = False) -> Metric:
    """Pull a metric back by a smooth map: `(f^* G)(x) = J(x)^T G(f(x)) J(x)`, J = df/dx.

    For an embedding (more outputs than inputs) this is the Gram form. Where J has not full column
    rank the result is singular, which `find_map` and `laplace` report with the sites involved.

    Args:
        metric: a metric on the values of `f`.
        f: a smooth map, for example a NumPyro `Transform`; no inverse is needed. Called as
            `f(value)`, for a group of sites as `f(a, b)`, for named values as `f(a=..., b=...)`.
        elementwise: declares that f acts on each coordinate by itself, so that a diagonal metric
            stays diagonal. Not checked: wrong answers if false. NumPyro transforms tell it
            themselves.

    Returns:
        A metric on the domain of `f`.

    References:
        Kristiadi, Dangel & Hennig (2023), The geometry of neural nets' parameter spaces under
        reparametrization, rule (d), with G evaluated at f(x).

    >>> import jax.numpy as jnp, volform as vf
    >>> g = vf.pullback(vf.Euclidean(), jnp.exp)
    >>> float(g(jnp.array(1.0)).as_matrix()[0, 0])
    7.389...
    """
    return Pullback(metric, f, elementwise or is_elementwise(f))


def pulled_back(
    metric: Metric, f: Callable[[Any], Any], point: Point, *, elementwise: bool
) -> lx.AbstractLinearOperator:
    """`J^T G J` at `point` for the map `f`, diagonal where G is diagonal and f elementwise."""
    if elementwise:
        ones = jax.tree.map(jnp.ones_like, point)
        value, slope = jax.jvp(lambda x: call_at(f, x), (point,), (ones,))
        operator = metric(value)
        if structure_of(slope) != structure_of(ones):  # f broadcasts: R to R^3, say
            operator = None
        if isinstance(operator, lx.IdentityLinearOperator):
            return lx.DiagonalLinearOperator(jax.tree.map(jnp.square, slope))
        if isinstance(operator, lx.DiagonalLinearOperator):
            return lx.DiagonalLinearOperator(
                jax.tree.map(lambda g, j: g * j**2, operator.diagonal, slope)
            )
    value, jacobian = jacobian_of(lambda x: call_at(f, x), point)
    return DenseOperator(congruence(metric(value), jacobian), point)


def jacobian_of(f: Callable[[Any], Any], point: Point) -> tuple[Any, Float[Array, "m n"]]:
    """The value of f at `point` and its Jacobian as a matrix in `ravel_pytree` order."""
    flat, unravel = ravel_pytree(point)

    def flat_f(x: Float[Array, " n"]) -> tuple[Array, Any]:
        value = f(unravel(x))
        return ravel_pytree(value)[0], value

    jacobian, value = jax.jacfwd(flat_f, has_aux=True)(flat)
    return value, jacobian


def congruence(
    operator: lx.AbstractLinearOperator, jacobian: Float[Array, "m n"]
) -> Float[Array, "n n"]:
    """`J^T G J` without forming G where it is diagonal; symmetric to the last bit."""
    if isinstance(operator, lx.IdentityLinearOperator):
        return jacobian.T @ jacobian
    if isinstance(operator, lx.DiagonalLinearOperator):
        half = jnp.sqrt(ravel_pytree(operator.diagonal)[0])[:, None] * jacobian
        return half.T @ half
    product = jacobian.T @ operator.as_matrix() @ jacobian
    return 0.5 * (product + product.T)


def call_at(f: Callable[..., Any], point: Point) -> Any:
    """`f(*point)` for a group of sites, `f(**point)` for named values, else `f(point)`."""
    if isinstance(point, tuple):
        return f(*point)
    if isinstance(point, dict):
        return f(**point)
    return f(point)


def _terms(metric: Metric) -> tuple[Metric, ...]:
    return metric.terms if isinstance(metric, Sum) else (metric,)


def log_volume(metric: Metric, point: Point) -> Float[Array, ""]:
    """`1/2 log det G(point)`: log of the volume element dV_G against Lebesgue measure.

    If log p is a log density with respect to Lebesgue measure in the coordinates of `point`, then
    `log p - log_volume` is the log density q^G with respect to dV_G, which transforms as a
    function (Kristiadi et al. 2023, Eqs. 3-4).

    >>> import jax.numpy as jnp, volform as vf
    >>> float(vf.geometry.log_volume(vf.Euclidean(0.5), jnp.zeros(2)))
    1.386...
    """
    return 0.5 * exact_logdet(metric(point))


# --- What these metrics answer


@is_symmetric.register
def _(metric: Euclidean | DiagonalField) -> bool:
    return True


@is_symmetric.register
def _(metric: Scaled | Pullback) -> bool:
    return is_symmetric(metric.metric)


@is_symmetric.register
def _(metric: Sum) -> bool:
    return all(is_symmetric(term) for term in metric.terms)


@is_symmetric.register
def _(metric: Product) -> bool:
    return all(is_symmetric(factor) for factor in metric.metrics.values())


@is_flat_in.register
def _(metric: Euclidean, coordinates: Coordinates) -> bool:
    return coordinates is Coordinates.VALUE


@is_flat_in.register
def _(metric: Scaled, coordinates: Coordinates) -> bool:
    return is_flat_in(metric.metric, coordinates)


@is_flat_in.register
def _(metric: Sum, coordinates: Coordinates) -> bool:
    return all(is_flat_in(term, coordinates) for term in metric.terms)
