"""The errors and warnings of volform: one class for each thing that a user can put right."""


class VolformError(ValueError):
    """Base class of every error that volform raises on bad input."""


class MetricError(VolformError):
    """A metric returned something that is no metric: wrong shape, not symmetric, not finite."""


class SingularMetricError(MetricError):
    """A metric (or its pull-back) is not positive definite, so it has no volume form."""


class GeodesicError(VolformError):
    """A geodesic that cannot be: from a point to itself, or along a vector of another layout."""


class TensorError(VolformError):
    """Tensors that do not meet: of two kinds, points or charts; says which metric is missing."""


class ModelError(VolformError):
    """A NumPyro model that has no density on R^d: discrete, subsampled or empty."""


class UnknownSiteError(ModelError):
    """A metric was attached to a site that the model does not have."""


class DataError(VolformError):
    """Data that no posterior can be conditioned on: NaN, infinite, empty or of unequal length."""


class NetworkError(VolformError):
    """A neural network whose sizes, parameters or parametrization cannot be."""


class KernelError(VolformError):
    """A Gaussian process that cannot be: its covariance is not positive definite, or its noise."""


class OptimizerError(VolformError):
    """An update of an optimizer that cannot be: no loss, gradients of another layout, or NaN."""


class ConvergenceError(VolformError):
    """An iteration did not converge: no mode to expand around was found, or no solution."""


class SaddleError(ConvergenceError):
    """The stationary point is not a strict minimum of -log q^G."""


class StructureError(VolformError):
    """A structure of the precision matrix that the model does not have."""


class OperatorError(VolformError):
    """An operator that cannot be made or asked: wrong structure, not symmetric, not finite."""


class IndefiniteError(OperatorError):
    """A log-determinant or condition number of an operator that is not positive definite."""


class SizeError(OperatorError, MemoryError):
    """A matrix that would not fit into the memory allowed for it."""


class PrecisionWarning(UserWarning):
    """float32 is too coarse for a Hessian of this conditioning."""


class TrustWarning(UserWarning):
    """A result exists, but one of its gauges says that it cannot be relied on."""


class MovedError(VolformError, ImportError):
    """A public name stands elsewhere now; the message says where.

    An `ImportError` and no `AttributeError`, since Python replaces the message of that one where it
    comes from `from volform.room import name`.
    """
