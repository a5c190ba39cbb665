"""The abstract structure of a precision matrix."""

import abc

import equinox as eqx
import lineax as lx

from volform.inference.laplace.gauss_newton import DataPriorSplit
from volform.inference.modes.expansion import Expand
from volform.inference.modes.mode import ExpansionPoint
from volform.results import Regime


class Structure(eqx.Module):
    """Part of `P = J^T L J + rest` that is kept, as a value: `vf.laplace(..., structure=...)`.

    The rest (priors, volume, factors) is the covariant Hessian that `GGN` speaks of.
    """

    @abc.abstractmethod
    def precision(self, split: DataPriorSplit) -> lx.AbstractLinearOperator:
        """The precision matrix as an operator on flat unconstrained vectors."""

    def restricted(self, place: ExpansionPoint, expand: Expand) -> ExpansionPoint:
        """The place in the posterior of those sites that are not held fixed, expanded there."""
        return place

    def regime(self, precision: lx.AbstractLinearOperator) -> Regime:
        """The way in which `precision` was computed, which the number of parameters may decide."""
        return Regime(f"matrix with {self}")
