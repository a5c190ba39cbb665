"""Checks of single arguments that all rooms make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from volform.checks import (
    key_of,
    require_key,
    require_names,
    require_positive,
    require_untraced,
    require_whole,
)
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
    require_whole(np.int64(1), "chunk", "hessian")


@pytest.mark.parametrize(
    "value",
    [0, "a", np.zeros(2), np.zeros((3, 2), np.uint32), [1, 2], None],
    ids=["number", "text", "floats", "raw batch", "list", "none"],
)
def test_what_is_no_key(value):
    with pytest.raises(NetworkError, match=r"`key` of init is .*it should be one random key: such"):
        require_key(value, "key", "init", NetworkError)


def test_keys():
    keys = jax.random.split(jax.random.key(0), 3)
    with pytest.raises(OperatorError, match=r"is a batch of keys of shape \(3,\)"):
        require_key(keys, "key", "Krylov")
    jax.vmap(lambda key: require_key(key, "key", "Krylov"))(keys)
    jax.jit(lambda key: require_key(key, "key", "Krylov"))(keys[0])
    for key in (keys[0], jax.random.PRNGKey(0), jax.random.key(0, impl="rbg")):
        assert key_of(key, "Krylov") is key
    assert key_of(None, "Krylov") == jax.random.key(0)


def test_traced_arrays():
    require_untraced({"y": jnp.ones(2)}, "data", "search", "wait")
    with pytest.raises(KernelError, match=r"`data` of search holds traced arrays.*; wait"):
        jax.jit(lambda y: require_untraced([y], "data", "search", "wait", KernelError))(jnp.ones(2))


@pytest.mark.parametrize("name", [1, "", " ", None, ("a",)], ids=repr)
def test_names_that_are_no_text(name):
    with pytest.raises(OperatorError, match="`models` of compare has the name"):
        require_names(["a", name], "models", "compare")
