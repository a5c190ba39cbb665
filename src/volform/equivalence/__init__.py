"""Parameters of the same function: their dimension, search, walks, and barriers between them."""

from volform.equivalence.dimension import (
    FunctionalDimension as FunctionalDimension,
    functional_dimension as functional_dimension,
)
from volform.equivalence.on_inputs import (
    OnInputs as OnInputs,
    function_on as function_on,
)
from volform.equivalence.paths import (
    Barrier as Barrier,
    Line as Line,
    Path as Path,
    String as String,
    barrier as barrier,
)
from volform.equivalence.searching import (
    Equivalents as Equivalents,
    search as search,
)
from volform.equivalence.slices import (
    Slice as Slice,
    through as through,
)
from volform.equivalence.walking import (
    Walk as Walk,
    walk as walk,
)
