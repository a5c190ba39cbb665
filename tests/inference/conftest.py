from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_functions() -> Iterator[None]:
    """Every compiled function holds memory maps, of which a process may have 65530."""
    yield
    jax.clear_caches()
