"""The mode of q^G: expansions of -log q^G, searches, and what kind of point they ended at."""

from volform.inference.modes.expansion import (
    FirstOrder as FirstOrder,
    SecondOrder as SecondOrder,
    expand_first as expand_first,
    hessian_of as hessian_of,
    objective as objective,
    volume_error as volume_error,
)
from volform.inference.modes.given_point import map_at as map_at, place_at as place_at
from volform.inference.modes.mode import (
    MAP as MAP,
    ExpansionPoint as ExpansionPoint,
    default_tolerance as default_tolerance,
    require_room as require_room,
)
from volform.inference.modes.newton import (
    newton as newton,
)
from volform.inference.modes.search import (
    find_map as find_map,
    stationary_point as stationary_point,
)
from volform.inference.modes.verdicts import (
    Flat as Flat,
    Minimum as Minimum,
    NotConverged as NotConverged,
    Saddle as Saddle,
    Stationary as Stationary,
)
