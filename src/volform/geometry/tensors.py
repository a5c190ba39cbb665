"""Transformation rules of tensors under a diffeomorphism, and of one into another by a metric.

A point, a tangent vector and a covector are pytrees laid out alike; which of them a pytree is
stands in the name of the function. Dense matrices are in `ravel_pytree` order. A function L takes
the point whole, `L(point)`, as losses of optimizers do. A map f takes its entries, as that of
`pullback` does: `f(value)`, for a group of sites `f(a, b)`, for named values `f(a=..., b=...)`.
For a map `f: theta -> psi` with Jacobian `J = d psi / d theta`, everything is evaluated at
`theta = f^-1(psi)`:

| object | in psi |
|---|---|
| function h | h o f^-1 |
| tangent vector v | J v |
| covector w | J^-T w |
| bilinear form B | J^-T B J^-1 |
| linear operator E | J E J^-1 |

Source: Kristiadi, Dangel & Hennig (2023), The geometry of neural nets' parameter spaces under
reparametrization, section 2.2, with rule (d) and Example 3(b) read as above.
"""

import abc
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from volform.errors import TensorError, VolformError
from volform.geometry.metric import Euclidean, Metric, call_at, jacobian_of, pullback
from volform.linalg.structured import Point, whiten

Matrix = Float[Array, "n n"]
Scalar = Float[Array, ""]


class Typed(eqx.Module):
    """A point that gives types to what lives there, a `TangentSpace`, or a tensor that has one.

    Attributes:
        space: the `TangentSpace`.
    """

    space: eqx.AbstractVar[Any]

    @abc.abstractmethod
    def to(self, phi: Callable[..., Any], chart: str | None = None) -> Any:
        """The same in other coordinates."""


def space_of(point: Point, *tensors: Any) -> Any:
    """The tangent space of typed arguments, at the point that is given; None where all are plain.

    Args:
        point: a point, plain or typed.
        tensors: what lives there.
    """
    spaces = (each.space for each in (point, *tensors) if isinstance(each, Typed))
    space = next(spaces, None)
    if space is None or isinstance(point, Typed):
        return space
    return space.at(point)


def scalar_of(function: Callable[[Any], Any], owner: str) -> Callable[[Any], Scalar]:
    """A function of a point, with a sentence where it cannot be differentiated.

    Args:
        function: L, called with the point whole.
        owner: of the argument, for errors.

    Raises:
        TensorError: for what cannot be called with one argument; when it is called, for a value
            that is no real number.
    """
    takes = "it is called with the point whole, `function(point)`, also where that is a dict"
    if not callable(function):
        raise TensorError(f"`function` of `{owner}` is {function!r}, no function; {takes}.")
    try:
        inspect.signature(function).bind(None)
    except TypeError as error:
        raise TensorError(f"`function` of `{owner}` does not fit, {error}: {takes}.") from error
    except ValueError:
        pass  # of some builtins there is no signature

    def checked(point: Any) -> Scalar:
        value: Any = function(point)
        is_array = isinstance(value, jax.Array | np.ndarray | np.generic | float)
        if (
            not is_array
            or np.shape(value)
            or not jnp.issubdtype(jnp.result_type(value), jnp.floating)
        ):
            gives = (
                f"{jnp.result_type(value)}{list(np.shape(value))}"
                if is_array
                else (f"of type {type(value).__name__}")
            )
            raise TensorError(
                f"The value of `function` of `{owner}` is {gives}, and only a real number, of "
                "shape (), has a differential: sum or average a loss, and of a map take "
                "`vf.geometry.pushforward`."
            )
        return jnp.asarray(value)

    return checked


def pushforward(f: Callable[..., Any], point: Point, vector: PyTree) -> PyTree:
    """Push a tangent vector forward, `J v`, without forming J.

    Args:
        f: a smooth map of pytrees; it need not be invertible.
        point: theta, where the vector lives.
        vector: tangent vector at `point`, laid out like `point`.

    Returns:
        Tangent vector at `f(point)`, laid out like `f(point)`.

    >>> import jax.numpy as jnp, volform as vf
    >>> float(pushforward(jnp.square, jnp.array(3.0), jnp.array(1.0)))
    6.0
    """
    return jax.jvp(partial(call_at, f), (point,), (vector,))[1]


def pull_covector(f: Callable[..., Any], point: Point, covector: PyTree) -> PyTree:
    """Pull a covector back from psi to theta, `J^T w`, without forming J.

    The differential of `L o f` is the pull-back of the differential of L.

    Args:
        f: a smooth map of pytrees; it need not be invertible.
        point: theta.
        covector: covector at `f(point)`, laid out like `f(point)`.

    Returns:
        Covector at `point`, laid out like `point`.

    >>> import jax.numpy as jnp, volform as vf
    >>> float(pull_covector(jnp.square, jnp.array(3.0), jnp.array(0.5)))
    3.0
    """
    return jax.vjp(partial(call_at, f), point)[1](covector)[0]


def push_covector(f: Callable[..., Any], point: Point, covector: PyTree) -> PyTree:
    """Carry a covector from theta to psi, `J^-T w`; the inverse of `pull_covector`.

    Args:
        f: a diffeomorphism; where J is singular the result is not finite. Costs O(n^3).
        point: theta.
        covector: covector at `point`, laid out like `point`.

    Returns:
        Covector at `f(point)`, laid out like `f(point)`.

    Raises:
        VolformError: when f maps n coordinates to another number of them.

    >>> import jax.numpy as jnp, volform as vf
    >>> float(push_covector(jnp.square, jnp.array(3.0), jnp.array(3.0)))
    0.5
    """
    value, jacobian = _square_jacobian(f, point)
    flat, _ = ravel_pytree(covector)
    return ravel_pytree(value)[1](jnp.linalg.solve(jacobian.T, flat))


def push_bilinear(f: Callable[..., Any], point: Point, bilinear: Matrix) -> Matrix:
    """Carry a bilinear form (a metric, a covariant Hessian) from theta to psi, `J^-T B J^-1`.

    Args:
        f: a diffeomorphism; where J is singular the result is not finite. Costs O(n^3).
        point: theta.
        bilinear: B at `point`, shape (n, n).

    Returns:
        The form at `f(point)`, shape (n, n).

    Raises:
        VolformError: when f maps n coordinates to another number of them.

    >>> import jax.numpy as jnp, volform as vf
    >>> push_bilinear(lambda x: 3.0 * x, jnp.zeros(1), 2.0 * jnp.eye(1)).item()
    0.222...
    """
    transpose = _square_jacobian(f, point)[1].T
    return jnp.linalg.solve(transpose, jnp.linalg.solve(transpose, bilinear).T).T


def push_operator(f: Callable[..., Any], point: Point, operator: Matrix) -> Matrix:
    """Carry a linear operator on tangent vectors from theta to psi, `J E J^-1`.

    Determinant, trace and eigenvalues stay; eigenvectors change as tangent vectors.

    Args:
        f: a diffeomorphism; where J is singular the result is not finite. Costs O(n^3).
        point: theta.
        operator: E at `point`, shape (n, n).

    Returns:
        The operator at `f(point)`, shape (n, n).

    Raises:
        VolformError: when f maps n coordinates to another number of them.

    >>> import jax.numpy as jnp, volform as vf
    >>> push_operator(lambda x: 3.0 * x, jnp.zeros(1), 2.0 * jnp.eye(1)).item()
    2.0
    """
    jacobian = _square_jacobian(f, point)[1]
    return jnp.linalg.solve(jacobian.T, (jacobian @ operator).T).T


def implied_metric(f: Callable[..., Any]) -> Metric:
    """The metric that optimization in the coordinates psi = f(theta) implies in theta: `J^T J`.

    Gradient descent on `L o f^-1`, as everyone writes it in psi, is steepest in the Euclidean
    metric of psi. In theta that is this metric, and the descent its natural gradient.

    Args:
        f: a smooth map of pytrees from theta to psi.

    Returns:
        `pullback(Euclidean(), f)`.

    References:
        Kristiadi, Dangel & Hennig (2023), section 3.1.

    >>> import jax.numpy as jnp
    >>> implied_metric(jnp.log)(jnp.array(0.5)).as_matrix().tolist()  # of optimizing log sigma
    [[4.0]]
    """
    return pullback(Euclidean(), f)


def flat(metric: Metric, point: Point, vector: PyTree) -> PyTree:
    """Lower a tangent vector to a covector, `G v`.

    Args:
        metric: a metric.
        point: where the vector lives.
        vector: tangent vector, laid out like `point`.

    Returns:
        Covector laid out like `point`; a `Covector` at a `TangentSpace`.

    >>> import jax.numpy as jnp, volform as vf
    >>> float(flat(vf.Euclidean(0.5), jnp.array(0.0), jnp.array(1.0)))
    4.0
    """
    if (space := space_of(point, vector)) is not None:
        return space.vector(vector).flat(metric)
    return metric(point).mv(vector)


def sharp(metric: Metric, point: Point, covector: PyTree) -> PyTree:
    """Raise a covector to a tangent vector, `G^-1 w`; the inverse of `flat`.

    Costs what the structure of G costs: O(n) where it is diagonal, Cholesky where it is dense.
    Not finite where G is not positive definite.

    Args:
        metric: a metric.
        point: where the covector lives.
        covector: covector, laid out like `point`.

    Returns:
        Tangent vector laid out like `point`; a `TangentVector` at a `TangentSpace`.

    >>> import jax.numpy as jnp, volform as vf
    >>> float(sharp(vf.Euclidean(0.5), jnp.array(0.0), jnp.array(4.0)))
    1.0
    """
    if (space := space_of(point, covector)) is not None:
        return space.covector(covector).sharp(metric)
    operator = metric(point)
    # G^-1 w is the differential of half the cometric |L^-1 w|^2, which knows G's structure.
    return jax.grad(lambda w: 0.5 * jnp.sum(whiten(operator, w) ** 2))(covector)


def inner(metric: Metric, point: Point, left: PyTree, right: PyTree) -> Scalar:
    """Inner product of two tangent vectors, `v^T G w`.

    Args:
        metric: a metric.
        point: where both vectors live.
        left: tangent vector v, laid out like `point`.
        right: tangent vector w, laid out like `point`.

    Returns:
        A scalar, the same in all coordinates.

    >>> import jax.numpy as jnp, volform as vf
    >>> v = jnp.array([3.0, 4.0])
    >>> float(inner(vf.Euclidean(), jnp.zeros(2), v, v))
    25.0
    """
    if (space := space_of(point, left, right)) is not None:
        return space.vector(right).flat(metric)(space.vector(left))
    return jnp.vdot(ravel_pytree(left)[0], ravel_pytree(flat(metric, point, right))[0])


def norm(metric: Metric, point: Point, vector: PyTree) -> Scalar:
    """Length of a tangent vector, `sqrt(v^T G v)`.

    Args:
        metric: a metric.
        point: where the vector lives.
        vector: tangent vector, laid out like `point`.

    Returns:
        A scalar, the same in all coordinates.

    >>> import jax.numpy as jnp, volform as vf
    >>> float(norm(vf.Euclidean(), jnp.zeros(2), jnp.array([3.0, 4.0])))
    5.0
    """
    return jnp.sqrt(inner(metric, point, vector, vector))


def gradient(metric: Metric, function: Callable[..., Scalar], point: Point) -> PyTree:
    """Riemannian gradient `grad L = G^-1 dL`, a tangent vector (the natural gradient).

    Args:
        metric: a metric.
        function: L, from a point to a scalar, called as `L(point)`.
        point: where to evaluate it.

    Returns:
        Tangent vector laid out like `point`; a `TangentVector` at a `TangentSpace`.

    Raises:
        TensorError: for a function of several arguments, or whose value is no real number.

    References:
        Amari (1998), Natural gradient works efficiently in learning,
        https://doi.org/10.1162/089976698300017746.

    >>> import jax.numpy as jnp, volform as vf
    >>> float(gradient(vf.Euclidean(0.5), jnp.square, jnp.array(2.0)))
    1.0
    """
    if (space := space_of(point)) is not None:
        return space.vector(gradient(metric, function, space.point))
    return sharp(metric, point, jax.grad(scalar_of(function, "gradient"))(point))


def _square_jacobian(f: Callable[..., Any], point: Point) -> tuple[Any, Matrix]:
    value, jacobian = jacobian_of(partial(call_at, f), point)
    outputs, inputs = jacobian.shape
    if outputs != inputs:
        raise VolformError(
            f"`f` maps {inputs} coordinates to {outputs}, so it is no diffeomorphism and nothing "
            "can be carried along it; use a chart with as many coordinates as its domain."
        )
    return value, jacobian
