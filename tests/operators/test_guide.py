"""The code of the guide runs as it stands."""

import jax.numpy as jnp
import pytest
from tests.code_blocks import code_of


@pytest.mark.standard_promotion  # optax
def test_snippets(capsys):
    names = {}
    for block in code_of("docs/operators.md"):
        exec(block, names)
    assert "learning rate x top" in capsys.readouterr().out
    assert jnp.isfinite(names["log_det"].value)
