"""Linear operators with structure, and numbers read off them: the ground of the package."""

from volform.linalg.by_matrix import without_xtrace as without_xtrace
from volform.linalg.functionals import (
    diagonal as diagonal,
    effective_dimension as effective_dimension,
    logdet as logdet,
    trace as trace,
)
from volform.linalg.generalized import (
    capacitance_root as capacitance_root,
    cholesky_or_nan as cholesky_or_nan,
    generalized_eigh as generalized_eigh,
    is_above as is_above,
    singular_below as singular_below,
    solve_lower as solve_lower,
    unit_diagonal as unit_diagonal,
    whitened_form as whitened_form,
)
from volform.linalg.matrix_functions import soft_absolute as soft_absolute
from volform.linalg.methods import (
    Estimate as Estimate,
    Exact as Exact,
    Krylov as Krylov,
    Method as Method,
    XTrace as XTrace,
    chosen as chosen,
)
from volform.linalg.operator import (
    Combination as Combination,
    Operator as Operator,
    dtype_of as dtype_of,
    fits as fits,
    gib_of as gib_of,
    is_known as is_known,
    linearized as linearized,
    mapped as mapped,
    register_operator as register_operator,
    require_dense as require_dense,
    require_params as require_params,
)
from volform.linalg.precision import (
    KroneckerSum as KroneckerSum,
    LowRankUpdate as LowRankUpdate,
    RotatedDiagonal as RotatedDiagonal,
)
from volform.linalg.spectrum import (
    Eigenpairs as Eigenpairs,
    SpectralDensity as SpectralDensity,
    condition_number as condition_number,
    eigenvalues as eigenvalues,
    spectral_density as spectral_density,
)
from volform.linalg.squared_rows import SquaredRows as SquaredRows
from volform.linalg.structured import (
    BlockDiagonal as BlockDiagonal,
    DenseOperator as DenseOperator,
    FlatBlocks as FlatBlocks,
    Point as Point,
    added as added,
    dense_logdet as dense_logdet,
    exact_logdet as exact_logdet,
    flat_blocks as flat_blocks,
    identity as identity,
    positive_inverse as positive_inverse,
    scaled as scaled,
    size_of as size_of,
    structure_of as structure_of,
    whiten as whiten,
)
from volform.linalg.under_metric import (
    UnderMetric as UnderMetric,
    under_metric as under_metric,
    whitening_maps as whitening_maps,
)
