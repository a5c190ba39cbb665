"""Metrics, volume forms, Fisher information, and the rules by which they change coordinates."""

from volform.geometry.connection import (
    christoffel as christoffel,
    christoffel_along as christoffel_along,
    covariant_hessian as covariant_hessian,
    generalized_eigenvalues as generalized_eigenvalues,
    raise_index as raise_index,
)
from volform.geometry.dependence import (
    dependence as dependence,
    has_open_loop as has_open_loop,
    holds_open_loop as holds_open_loop,
    moves as moves,
    numbers_computed as numbers_computed,
)
from volform.geometry.fisher import (
    Fisher as Fisher,
)
from volform.geometry.fisher_routes import (
    MonteCarlo as MonteCarlo,
    NoInformation as NoInformation,
    choose_route as choose_route,
)
from volform.geometry.flow_coordinates import (
    FlowCoordinates as FlowCoordinates,
)
from volform.geometry.geodesic_motion import (
    REACHED as REACHED,
    framed as framed,
    spread as spread,
)
from volform.geometry.geodesics import (
    Geodesic as Geodesic,
    distance as distance,
    exp as exp,
    geodesic as geodesic,
    log as log,
    transport as transport,
)
from volform.geometry.jacobi import (
    exp_determinant as exp_determinant,
    jacobi_field as jacobi_field,
)
from volform.geometry.jacobians import (
    along_coordinates as along_coordinates,
    held as held,
    lacks_forward_mode as lacks_forward_mode,
)
from volform.geometry.metric import (
    DiagonalField as DiagonalField,
    Euclidean as Euclidean,
    MatrixField as MatrixField,
    Metric as Metric,
    Product as Product,
    Pullback as Pullback,
    Scaled as Scaled,
    Sum as Sum,
    call_at as call_at,
    congruence as congruence,
    log_volume as log_volume,
    pullback as pullback,
    pulled_back as pulled_back,
)
from volform.geometry.questions import (
    Coordinates as Coordinates,
    flat_coordinates as flat_coordinates,
    is_elementwise as is_elementwise,
    is_flat_in as is_flat_in,
    is_symmetric as is_symmetric,
    name_of as name_of,
)
from volform.geometry.riemann import (
    ricci_curvature as ricci_curvature,
    riemann_curvature as riemann_curvature,
    scalar_curvature as scalar_curvature,
    sectional_curvature as sectional_curvature,
)
from volform.geometry.score_quadrature import (
    has_quadrature as has_quadrature,
    line_nodes as line_nodes,
)
from volform.geometry.scores import (
    CENSORED as CENSORED,
    Route as Route,
    ScoreTangents as ScoreTangents,
    tangent_like as tangent_like,
    unwrapped as unwrapped,
)
from volform.geometry.shooting import (
    shoot as shoot,
)
from volform.geometry.tangent_spaces import (
    BilinearForm as BilinearForm,
    Covector as Covector,
    Endomorphism as Endomorphism,
    TangentSpace as TangentSpace,
    TangentVector as TangentVector,
)
from volform.geometry.tensors import (
    flat as flat,
    gradient as gradient,
    implied_metric as implied_metric,
    inner as inner,
    norm as norm,
    pull_covector as pull_covector,
    push_bilinear as push_bilinear,
    push_covector as push_covector,
    push_operator as push_operator,
    pushforward as pushforward,
    sharp as sharp,
)
from volform.moved import moved_from as _moved_from

__getattr__ = _moved_from(__name__)
