"""Points and precision matrices that a Laplace approximation can be made of."""

import dataclasses

import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float

from volform.compilation import steady
from volform.errors import ConvergenceError, ModelError, SaddleError
from volform.inference.laplace.gauss_newton import Curvature
from volform.inference.laplace.structure import Structure
from volform.inference.modes.expansion import FirstOrder, SecondOrder
from volform.inference.modes.mode import MAP, ExpansionPoint
from volform.inference.modes.verdicts import Edge, Flat, Minimum, Saddle, Stationary
from volform.linalg.structured import DenseOperator, exact_logdet

compiled_logdet = steady(exact_logdet)


def note_on(target: ExpansionPoint, curvature: Curvature | None, given: bool, refuse: bool) -> str:
    """Note on the point for the reader.

    Args:
        target: the point.
        curvature: what takes the place of the Hessian, which may be definite at a saddle too.
        given: whether the user gave the point.
        refuse: whether one that cannot be expanded at is refused.

    Raises:
        ConvergenceError: when it is no strict mode, and a `SaddleError` at a saddle.
    """
    verdict = target.verdict
    if isinstance(verdict, Minimum):
        return ""
    if isinstance(verdict, Stationary):
        return str(verdict)
    is_indefinite = isinstance(verdict, Saddle | Flat)
    accepted = curvature is not None if is_indefinite else given
    if refuse and not accepted:
        other = (
            "or `curvature=GGN()`, which is positive definite at saddles of networks too"
            if curvature is None
            else "or train the model yourself and give the end in `at=`"
        )
        asked = ""
        if isinstance(verdict, Flat):
            asked = (
                "A continuous symmetry? Rotations of an axis of whole sites are found in float64, "
                "and integrated along where the metric does not change under them either; others, "
                "as of each slice of a plate by itself, or of two axes of one site, are not: fix a "
                "convention in the model, as triangular loadings. "
            )
        advice = f"Try more `starts=` or `max_steps=` in `find_map`, another metric, {other}"
        if isinstance(verdict, Edge):
            advice = (
                f"Another metric may have a mode, as `vf.JointFisher()` of a hierarchy, or "
                f"`vf.Unconstrained()` for `{'`, `'.join(verdict.sites)}`; or take "
                "`vf.evidence(posterior)`, which falls back on methods that need no mode"
            )
        raise (SaddleError if is_indefinite else ConvergenceError)(
            f"The MAP under `{target.posterior.metric_name}` is no strict mode, so the Laplace "
            f"evidence is not defined there ({verdict}). {asked}{advice}; `refuse=False` goes on "
            "and says so in the result."
        )
    return str(verdict)


def expanded(mode: ExpansionPoint, precision: lx.AbstractLinearOperator) -> FirstOrder:
    """The point with `precision` for its Hessian, where that is a matrix."""
    at = mode.at
    if not isinstance(precision, DenseOperator):
        return at
    if isinstance(at, SecondOrder):
        # The expansion of the search itself knows its factor already.
        is_own = precision.matrix is at.hessian
        return at if is_own else dataclasses.replace(at, hessian=precision.matrix)
    gram = mode.posterior.metric(at.u).as_matrix()
    found = at.u, at.value, at.gradient, at.gradient_norm, at.log_volume
    return SecondOrder(*found, precision.matrix, gram)


def require_values(target: object, at: object, curvature: object, structure: object) -> None:
    """Check that the arguments of `laplace` are what their names say.

    Raises:
        ModelError: when they are not.
    """
    if curvature is not None and not isinstance(curvature, Curvature):
        raise ModelError(f"`curvature` should be a value such as `GGN()`; got {curvature!r}.")
    if not isinstance(structure, Structure):
        raise ModelError(f"`structure` should be a value such as `Kronecker()`; got {structure!r}.")
    if at is not None and isinstance(target, MAP):
        raise ModelError(
            "`at` is for a Posterior; the `target` is a MAP, which is a point already: give one."
        )


def require_definite(
    log_det: Float[Array, ""],
    precision: lx.AbstractLinearOperator,
    mode: ExpansionPoint,
    curvature: Curvature | None,
    structure: object,
) -> None:
    """Check that a precision matrix, of which log det is known, is positive definite.

    Raises:
        SaddleError: when it is not.
    """
    if np.isfinite(np.asarray(log_det)):
        return
    found, at = "", expanded(mode, precision)
    if isinstance(at, SecondOrder) and isinstance(precision, DenseOperator):
        eigenvalues = at.eigenvalues
        negative = int(jnp.sum(eigenvalues <= 0.0))
        found = (
            f": {negative} of {at.u.size} eigenvalues under the metric are not positive, the "
            f"lowest {float(eigenvalues[0]):.3g}"
        )
    if curvature is None:
        name = "The Hessian"
        reason = (
            "At a point that is no mode, as the end of a training, it seldom is: take "
            "`curvature=GGN()`, or `ExpectedFisher()` where a network gives a scale too; or search "
            "the mode, `find_map(posterior, initial=...)`."
        )
    else:
        name = f"`curvature={curvature}`"
        reason = (
            "A likelihood that is not log-concave in its parameters, as where a network gives the "
            "scale of its data, or a flat prior, makes it so; use "
            "`curvature=ExpectedFisher()`, the Hessian, or a proper prior."
        )
    raise SaddleError(
        f"{name} with `structure={structure}` is not positive definite at the mode{found}. {reason}"
    )
