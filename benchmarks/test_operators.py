"""Operators of curvature, beside plain JAX and matfree: run with `make bench`."""

import jax
import pytest
from curvature import CASES


@pytest.mark.standard_promotion
@pytest.mark.parametrize("which", [0, 1], ids=["volform", "other"])
@pytest.mark.parametrize("name", CASES)
def test_curvature(benchmark, name, which):
    benchmark.group = name
    run = CASES[name]()[which]
    jax.block_until_ready(run())  # compiles
    benchmark.pedantic(lambda: jax.block_until_ready(run()), rounds=5, iterations=1)
