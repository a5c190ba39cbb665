"""Checks of single arguments that all rooms make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from volform.checks import require_positive, require_whole
from volform.errors import KernelError, NetworkError, OperatorError


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, np.array([1.0, 0.0]), "1", None, 1j])
def test_numbers_that_are_not_positive(value):
    with pytest.raises(NetworkError, match=r"`w_std` is .* should be a positive number, of what"):
        require_positive(value, "w_std", "of what it may be")
    with pytest.raises(KernelError, match=r"`noise` is .*; it should be a positive number"):
        require_positive(value, "noise", "of what it may be", KernelError)


@pytest.mark.parametrize("value", [2, 0.5, np.float32(1e-3), jnp.array(3.0), jnp.ones(1)])
def test_positive_numbers(value):
    require_positive(value, "noise", "of what it may be")
    jax.jit(lambda v: require_positive(-v, "noise", "known later only"))(value)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, None, "3"])
def test_numbers_that_are_not_whole(value):
    with pytest.raises(OperatorError, match=r"`chunk` of hessian is .* whole number"):
        require_whole(value, "chunk", "hessian")


def test_whole_numbers():
    require_whole(1, "chunk", "hessian")
