"""Inference on a `Posterior`: invariant MAP, Laplace approximation, evidence."""

from volform.inference.approximation import (
    LaplaceApproximation as LaplaceApproximation,
    laplace as laplace,
)
from volform.inference.evidence import Evidence as Evidence
from volform.inference.exporting import to_arviz as to_arviz
from volform.inference.mode import MAP as MAP, find_map as find_map
from volform.inference.warmstart import nuts as nuts
