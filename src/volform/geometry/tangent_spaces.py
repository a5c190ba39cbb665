"""Tensors that know their kind, their point and their chart, and refuse what has no meaning there.

They are optional: all functions take plain pytrees, which know nothing of it. What needs a metric
is an error without one, where plain numbers would be others in every chart.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from volform.checks import require_names
from volform.errors import TensorError
from volform.geometry.connection import generalized_eigenvalues, raise_index
from volform.geometry.metric import Metric, call_at
from volform.geometry.tensor_arithmetic import Tensor, applied_to, components_at
from volform.geometry.tensor_checks import (
    finite_or_traced,
    floats,
    floats_like,
    is_alike,
    metric_for,
    nan_unless,
    point_in_words,
    positive,
    require_moved,
    require_no_derivative,
    require_takes,
    square_matrix,
    witness_of,
)
from volform.geometry.tensors import (
    Matrix,
    Scalar,
    Typed,
    flat,
    push_bilinear,
    push_covector,
    push_operator,
    pushforward,
    scalar_of,
    sharp,
)
from volform.linalg.structured import Point

Change = Callable[..., Any]


class TangentSpace(Typed):
    """The tangent space at a point of a chart, which makes the tensors that live there.

    Given as the point of `gradient`, `covariant_hessian`, `sharp`, `flat` and `raise_index` it
    makes their results tensors as well. Points that are traced are compared as the program runs,
    and where tensors of different points met there the result is NaN.

    Args:
        point: a pytree of floating-point arrays.
        chart: name of the coordinates, such as "minutes" or "log sigma".
        witness: left out but by `.to`: what maps have made of a vector that is always the same.

    Raises:
        TensorError: for a point without numbers or not finite, and a chart that is no text.

    >>> import jax.numpy as jnp, volform as vf
    >>> minutes = jnp.array(2.0)
    >>> here = vf.geometry.TangentSpace(minutes, "minutes")
    >>> slope = here.differential(lambda minutes: (minutes - 5.0) ** 2)
    >>> slope
    Covector(-6.) at 2., chart minutes
    >>> minutes - 0.1 * slope
    Traceback (most recent call last):
    volform.errors.TensorError: `Covector` is no step ...
    >>> float(minutes - 0.1 * slope.sharp(vf.Euclidean()))
    2.6
    """

    point: Point
    chart: str | None = eqx.field(static=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    # Tensors go by the Jacobian alone, so that charts which agree on it at a point, and so on what
    # it makes of a vector without symmetries, are one there. `jax.grad` returns zeros here.
    witness: Point
    is_named_by_map: bool = eqx.field(static=True)

    def __init__(self, point: Point, chart: str | None = None, *, witness: Point | None = None):
        if chart is not None:
            require_names([chart], "chart", "TangentSpace", TensorError)
        if isinstance(point, Typed):
            raise TensorError(
                f"`point` of TangentSpace is {point!r}; it should be a plain pytree of arrays, and "
                "`.to(phi, chart)` leads to another chart."
            )
        self.point = floats(point, "point", "TangentSpace")
        self.chart = chart
        self.shapes = _shapes(self.point)
        self.witness = witness_of(self.point) if witness is None else witness
        self.is_named_by_map = witness is not None

    @property
    def space(self) -> "TangentSpace":
        """Itself."""
        return self

    def vector(self, components: PyTree) -> "TangentVector":
        """Tangent vector of components laid out like the point, such as a velocity."""
        return self._made(TangentVector, components)

    def covector(self, components: PyTree) -> "Covector":
        """Covector of components laid out like the point, such as `jax.grad` returns."""
        return self._made(Covector, components)

    def form(self, components: Any) -> "BilinearForm":
        """Symmetric bilinear form of a matrix in `ravel_pytree` order, or that of a metric here.

        Second derivatives are one at critical points only; elsewhere `covariant_hessian` is.
        """
        if isinstance(components, Metric):
            components = components(self.point)
        if isinstance(components, lx.AbstractLinearOperator):
            components = components.as_matrix()
        return self._made(BilinearForm, components)

    def operator(self, components: Any) -> "Endomorphism":
        """Linear operator on tangent vectors, of a matrix in `ravel_pytree` order."""
        return self._made(Endomorphism, components)

    def differential(self, function: Callable[..., Scalar]) -> "Covector":
        """Differential `dL` of a function of the point, with the numbers that `jax.grad` returns.

        The function takes the point whole, `function(point)`, as a loss in `vf.optimizers`.

        >>> import jax.numpy as jnp, volform as vf
        >>> vf.geometry.TangentSpace(jnp.array([1.0, 2.0])).differential(lambda x: x @ x)
        Covector([2., 4.]) at [1., 2.]
        """
        self.require_single()
        return Covector(self, jax.grad(scalar_of(function, "differential"))(self.point))

    def to(self, phi: Change, chart: str | None = None) -> "TangentSpace":
        """The tangent space at `phi(point)`, in the chart that phi leads to.

        Args:
            phi: a diffeomorphism from these coordinates to others, called as by `vf.pullback`: the
                entries of a dict by name, those of a tuple one by one.
            chart: name of the others; by default it is made of the name of phi.

        >>> import jax.numpy as jnp, volform as vf
        >>> vf.geometry.TangentSpace(jnp.array(1.0), "sigma").to(jnp.log)
        TangentSpace at 0., chart log(sigma)
        """
        self.require_single()
        name = getattr(phi, "__name__", type(phi).__name__)
        is_named = name.isidentifier() and not isinstance(phi, partial)
        if not callable(phi) or (chart is None and not is_named):
            raise TensorError(
                f"`phi` of `to` is {phi!r} and names no chart; give a function and the name of the "
                "coordinates that it leads to, as `.to(lambda minutes: 60.0 * minutes, 'seconds')`."
            )
        require_takes(phi, self.point)
        if chart is not None:
            return TangentSpace(call_at(phi, self.point), chart)
        chart = name if self.chart is None else f"{name}({self.chart})"
        end, witness = jax.jvp(lambda x: call_at(phi, x), (self.point,), (self.witness,))
        require_moved(witness)
        return TangentSpace(end, chart, witness=witness)

    def at(self, point: Point) -> "TangentSpace":
        """The tangent space of the same chart at another point, plain and laid out alike."""
        witness = self.witness if self.is_named_by_map else None
        return TangentSpace(point, self.chart, witness=witness)

    def require_single(self) -> None:
        """Check that this is one point, and no batch out of `jax.vmap`.

        Raises:
            TensorError: when it is a batch.
        """
        if _shapes(self.point) != self.shapes:
            raise TensorError(
                f"`point` has the shapes {_shapes(self.point)}, and had {self.shapes} where its "
                "tangent space was made: it is a batch, or an element of one. Make the space, and "
                "ask for what you want of it, inside of `jax.vmap`."
            )
        require_no_derivative(self.witness)

    def _made(self, kind: Any, components: Any) -> Any:
        if isinstance(components, Typed):
            components = components_at(self, kind, components, "What is given for `components`")
        return kind(self, components)

    @property
    def where(self) -> str:
        """Point and chart, in words."""
        chart = "" if self.chart is None else f", chart {self.chart}"
        return f" at {point_in_words(self.point)}{chart}"

    def __repr__(self) -> str:
        return f"TangentSpace{self.where}"


class TangentVector(Tensor):
    """A tangent vector, such as a velocity or a step: under a change of coordinates it is `J v`.

    Made by `TangentSpace.vector`, `gradient` and `sharp`. `point + vector` is a plain point, where
    a step that is straight in the chart at hand ends.

    >>> import jax.numpy as jnp, volform as vf
    >>> v = vf.geometry.TangentSpace(jnp.array(3.0), "x").vector(jnp.array(1.0))
    >>> v.to(jnp.square)
    TangentVector(6.) at 9., chart square(x)
    >>> float(v.flat(vf.Euclidean(0.5))(2.0 * v))
    8.0
    """

    @classmethod
    def checked(cls, space: Any, components: Any) -> PyTree:
        """Components laid out like the point."""
        return floats_like(components, space.point, "components", "TangentVector")

    def flat(self, metric: Metric) -> "Covector":
        """The covector `G v` that the vector is in a metric."""
        return Covector(self.space, flat(metric_for(metric, "flat"), self.point, self.components))

    def to(self, phi: Change, chart: str | None = None) -> "TangentVector":
        """The same vector in other coordinates, `J v`; arguments as of `TangentSpace.to`."""
        space = self.space.to(phi, chart)
        return TangentVector(space, pushforward(phi, self.point, self.components))

    def __call__(self, other: Any) -> NoReturn:
        """Refuse: two vectors make no number without a metric."""
        raise TensorError(
            f"`TangentVector` takes no argument, and {type(other).__name__} was given: a metric is "
            "missing for the two, `vector.flat(metric)(other)`. `covector(vector)` needs none."
        )

    def __radd__(self, point: Any) -> Point:
        start = self.space.at(point)
        held = components_at(start, TangentVector, self, "The step from `point`")
        return jax.tree.map(jnp.add, start.point, held)


class Covector(Tensor):
    """A covector, such as a differential: of a vector it makes a number. In other charts `J^-T w`.

    Made by `TangentSpace.differential`, `TangentSpace.covector` and `flat`.

    >>> import jax.numpy as jnp, volform as vf
    >>> here = vf.geometry.TangentSpace(jnp.array([1.0, 2.0]))
    >>> slope = here.differential(lambda x: x @ x)
    >>> float(slope(here.vector(jnp.array([1.0, 0.0]))))
    2.0
    >>> slope.sharp(vf.Euclidean(2.0))
    TangentVector([ 8., 16.]) at [1., 2.]
    """

    @classmethod
    def checked(cls, space: Any, components: Any) -> PyTree:
        """Components laid out like the point."""
        return floats_like(components, space.point, "components", "Covector")

    def sharp(self, metric: Metric) -> TangentVector:
        """The vector `G^-1 w` that the covector is in a metric; of a differential the gradient."""
        raised = sharp(metric_for(metric, "sharp"), self.point, self.components)
        return TangentVector(self.space, raised)

    def to(self, phi: Change, chart: str | None = None) -> "Covector":
        """The same covector in other coordinates, `J^-T w`; arguments as of `TangentSpace.to`."""
        space = self.space.to(phi, chart)
        return Covector(space, push_covector(phi, self.point, self.components))

    def __call__(self, vector: TangentVector) -> Scalar:
        """The number `w(v)`, the same in all charts."""
        held = components_at(self.space, TangentVector, vector, "The argument of `Covector`")
        return jnp.vdot(ravel_pytree(self.components)[0], ravel_pytree(held)[0])


class BilinearForm(Tensor):
    """A symmetric bilinear form, such as a covariant Hessian: in other charts `J^-T B J^-1`.

    Made by `covariant_hessian` and `TangentSpace.form`. Trace, log determinant and eigenvalues are
    those of `G^-1 B` with a metric G: by itself a form has none that all charts share.

    >>> import jax.numpy as jnp, volform as vf
    >>> here, metric = vf.geometry.TangentSpace(jnp.array([1.0, 2.0])), vf.Euclidean(2.0)
    >>> form = vf.geometry.covariant_hessian(metric, lambda x: x[0] ** 2 + 2.0 * x[1] ** 2, here)
    >>> form.eigenvalues(metric).tolist()
    [8.0, 16.0]
    >>> v = here.vector(jnp.array([1.0, 1.0]))
    >>> form(v), float(form(v, v))
    (Covector([2., 4.]) at [1., 2.], 6.0)
    """

    @classmethod
    def checked(cls, space: Any, components: Any) -> Matrix:
        """A symmetric matrix with a row for each coordinate."""
        matrix = square_matrix(space.point, components, "BilinearForm")
        return nan_unless(
            is_alike(matrix, matrix.T),
            matrix,
            lambda: (
                "`components` of BilinearForm are not symmetric, as metrics and Hessians are; "
                "give `0.5 * (B + B.T)`, or make an operator, `space.operator(E)`."
            ),
        )

    def under(self, metric: Metric) -> "Endomorphism":
        """The operator `G^-1 B` that the form is under a metric."""
        raised = raise_index(metric_for(metric, "under"), self.point, self.components)
        return Endomorphism(self.space, raised)

    def trace(self, metric: Metric | None = None) -> Scalar:
        """Trace under a metric, of `G^-1 B`."""
        return self.under(metric_for(metric, "trace")).trace()

    def eigenvalues(self, metric: Metric | None = None) -> Float[Array, " n"]:
        """Eigenvalues under a metric, of `G^-1 B`, in ascending order."""
        self.space.require_single()
        given = metric_for(metric, "eigenvalues")
        values = generalized_eigenvalues(given, self.point, self.components)
        return finite_or_traced([values], "eigenvalues", "BilinearForm")[0]

    def logdet(self, metric: Metric | None = None) -> Scalar:
        """Log determinant under a metric, of `G^-1 B`.

        Raises:
            IndefiniteError: where B is not positive definite; under `jit` the result is NaN.
        """
        values = self.eigenvalues(metric_for(metric, "logdet"))
        return jnp.sum(jnp.log(positive(values, "The smallest eigenvalue under `metric`")))

    def to(self, phi: Change, chart: str | None = None) -> "BilinearForm":
        """The same form in other coordinates; arguments as of `TangentSpace.to`."""
        space = self.space.to(phi, chart)
        return BilinearForm(space, push_bilinear(phi, self.point, self.components))

    def __call__(self, left: TangentVector, right: TangentVector | None = None) -> Any:
        """The number `B(v, w)`; of one vector the covector `B(v, .)`."""
        lowered = Covector(self.space, applied_to(self, TangentVector, left))
        return lowered if right is None else lowered(right)


class Endomorphism(Tensor):
    """A linear operator on tangent vectors, such as `G^-1 H`: in other charts `J E J^-1`.

    Made by `BilinearForm.under`, `raise_index` and `TangentSpace.operator`. Its trace and
    determinant are the same in all charts.

    >>> import jax.numpy as jnp, volform as vf
    >>> here = vf.geometry.TangentSpace(jnp.array([1.0, 2.0]))
    >>> twice = here.operator(2.0 * jnp.eye(2))
    >>> float((twice @ twice).trace()), twice(here.vector(jnp.ones(2)))
    (8.0, TangentVector([2., 2.]) at [1., 2.])
    """

    @classmethod
    def checked(cls, space: Any, components: Any) -> Matrix:
        """A matrix with a row for each coordinate."""
        return square_matrix(space.point, components, "Endomorphism")

    def trace(self) -> Scalar:
        """Trace `tr E`."""
        self.space.require_single()
        return jnp.trace(self.components)

    def logdet(self) -> Scalar:
        """Log determinant `log det E`.

        Raises:
            IndefiniteError: where det E is not positive; under `jit` the result is NaN.
        """
        self.space.require_single()
        sign, value = jnp.linalg.slogdet(self.components)
        return value + jnp.log(positive(sign, "The sign of the determinant"))

    def to(self, phi: Change, chart: str | None = None) -> "Endomorphism":
        """The same operator in other coordinates; arguments as of `TangentSpace.to`."""
        space = self.space.to(phi, chart)
        return Endomorphism(space, push_operator(phi, self.point, self.components))

    def __call__(self, vector: TangentVector) -> TangentVector:
        """The vector `E v`."""
        return TangentVector(self.space, applied_to(self, TangentVector, vector))

    def __matmul__(self, other: Any) -> "Endomorphism":
        if not isinstance(other, Tensor):
            return super().__matmul__(other)
        held = components_at(self.space, Endomorphism, other, "The right side of `@`")
        return Endomorphism(self.space, self.components @ held)


def _shapes(point: Point) -> tuple[tuple[int, ...], ...]:
    return tuple(np.shape(leaf) for leaf in jax.tree.leaves(point))
