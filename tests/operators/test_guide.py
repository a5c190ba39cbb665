"""The code of the guide runs as it stands."""

import re
from pathlib import Path

import jax.numpy as jnp
import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "operators.md"


@pytest.mark.standard_promotion  # optax
def test_snippets(capsys):
    names = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, names)
    assert "learning rate x top" in capsys.readouterr().out
    assert jnp.isfinite(names["log_det"].value)
