"""What has to be the same in every spelling of a model."""

from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from numpy.testing import assert_allclose

import volform as vf


class Scalars(eqx.Module):
    """The invariants of a model with a metric, and u at the mode, which is none."""

    values: dict[str, Any]
    log_density: float
    log_z: Any
    log_z_second_order: Any
    correction: Any
    eigenvalues: Any
    u: Any

    @property
    def det_and_trace(self) -> tuple[Any, Any]:
        return np.prod(self.eigenvalues), np.sum(self.eigenvalues)


def scalars_of(model: Callable, sites: Iterable[str], *data: Any, **named_data: Any) -> Scalars:
    """Everything about `model` (with its metrics attached); `sites` name values at the mode."""
    posterior = vf.condition(model, *data, **named_data)
    fit = vf.find_map(posterior, key=jax.random.key(0), starts=1)
    assert fit.converged
    assert fit.gradient_norm < 1e-8
    # Several of the models are densities in `numpyro.factor` over a flat prior.
    evidence = vf.laplace(fit, allow_improper=True).evidence
    return Scalars(
        {name: np.asarray(v) for name, v in posterior.values(fit.at.u, tuple(sites)).items()},
        fit.log_density,
        evidence.log_z,
        evidence.log_z_second_order,
        evidence.correction,
        np.asarray(fit.eigenvalues),
        np.asarray(fit.at.u),
    )


def assert_same(a: Scalars, b: Scalars, rtol: float = 1e-8) -> None:
    for name, value in a.values.items():
        largest = np.abs(value).max()
        assert_allclose(b.values[name], value, rtol=rtol, atol=rtol * largest, err_msg=name)
    assert_allclose(b.log_density, a.log_density, rtol=rtol)
    assert_allclose(b.log_z, a.log_z, rtol=rtol)
    assert_allclose(b.log_z_second_order, a.log_z_second_order, rtol=rtol)
    assert_allclose(b.correction, a.correction, rtol=rtol, atol=rtol)
    assert_allclose(b.eigenvalues, a.eigenvalues, rtol=rtol)
    assert_allclose(b.det_and_trace, a.det_and_trace, rtol=rtol)


def assert_other_coordinates(a: Scalars, b: Scalars) -> None:
    """The spellings are different ones: one and the same mode has different coordinates u."""
    assert a.u.shape == b.u.shape
    assert np.abs(a.u - b.u).max() > 1e-3
