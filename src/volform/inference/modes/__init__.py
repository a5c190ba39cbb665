"""The mode of q^G: expansions of -log q^G, searches, and what kind of point they ended at."""

from volform.inference.modes.expansion import (
    Expand as Expand,
    FirstOrder as FirstOrder,
    OnOrbit as OnOrbit,
    SecondOrder as SecondOrder,
    expand_first as expand_first,
    hessian_of as hessian_of,
    lies_within as lies_within,
    objective as objective,
    volume_error as volume_error,
)
from volform.inference.modes.given_point import map_at as map_at, place_at as place_at
from volform.inference.modes.images import (
    MOST_IMAGES as MOST_IMAGES,
    with_images as with_images,
)
from volform.inference.modes.mode import (
    MAP as MAP,
    SEEN_ONCE as SEEN_ONCE,
    ExpansionPoint as ExpansionPoint,
    Mode as Mode,
    default_tolerance as default_tolerance,
    require_room as require_room,
    seen_once as seen_once,
)
from volform.inference.modes.newton import (
    expansions as expansions,
    has_quick_hessians as has_quick_hessians,
    newton as newton,
)
from volform.inference.modes.search import (
    find_map as find_map,
    stationary_point as stationary_point,
)
from volform.inference.modes.turning import turned_draws as turned_draws
from volform.inference.modes.verdicts import (
    Edge as Edge,
    Flat as Flat,
    Minimum as Minimum,
    NotConverged as NotConverged,
    Orbit as Orbit,
    Saddle as Saddle,
    Stationary as Stationary,
    gram_at as gram_at,
    require_positive_definite_at as require_positive_definite_at,
)
