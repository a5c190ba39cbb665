"""Parameters of the same function: symmetries, dimension, search, walks, barriers between them."""

from volform.equivalence.alignment import (
    Ambiguous as Ambiguous,
    Match as Match,
    Representatives as Representatives,
    match as match,
    representatives as representatives,
)
from volform.equivalence.balance import (
    Balanced as Balanced,
    balance as balance,
    quotient as quotient,
)
from volform.equivalence.canonical import (
    Stabilizer as Stabilizer,
)
from volform.equivalence.copies import (
    Copies as Copies,
    copies as copies,
)
from volform.equivalence.dimension import (
    FunctionalDimension as FunctionalDimension,
    functional_dimension as functional_dimension,
)
from volform.equivalence.flows import (
    FlowFamily as FlowFamily,
)
from volform.equivalence.group import (
    Element as Element,
    Group as Group,
    Units as Units,
)
from volform.equivalence.isometries import (
    Isometry as Isometry,
    is_invariant as is_invariant,
    is_isometry as is_isometry,
    preserving as preserving,
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
from volform.equivalence.proving import (
    symmetry as symmetry,
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
