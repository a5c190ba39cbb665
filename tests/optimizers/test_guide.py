"""The code of the guide runs as it stands."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from tests.code_blocks import code_of


@pytest.mark.slow
@pytest.mark.standard_promotion  # optax
def test_snippets(capsys):
    names = {}
    for block in code_of("docs/optimizers.md"):
        exec(block, names)
    out = capsys.readouterr().out.splitlines()
    ratios = [float(line) for line in out[:3]]
    assert_allclose(ratios, [60.0, 3600.0, 1.0])
    assert float(names["comparison"].largest) < 1e-11
    assert float(names["loss"](names["w"])) < 1e-2
    assert names["value"] < -1.0  # of a standard deviation of .1, about -1.38 where it fits
    assert_allclose(
        names["start"] + names["updates"], names["inverse"](0.7 * names["outputs"](names["start"])),
        rtol=1e-10,
    )  # fmt: skip
    assert np.all(np.isfinite(names["params"]["w"]))
