"""Propagation of second moments from layer to layer, of units and of pairs of pixels."""

from volform.kernels.propagation.inputs import (
    Examples as Examples,
)
from volform.kernels.propagation.moments import (
    Moments as Moments,
    constant as constant,
    of_one as of_one,
    of_products as of_products,
    ratio as ratio,
    root as root,
)
from volform.kernels.propagation.sizes import (
    cut as cut,
    filled as filled,
    floats_as_arrays as floats_as_arrays,
    stepped as stepped,
)
from volform.kernels.propagation.state import (
    KernelState as KernelState,
    LayerContext as LayerContext,
    Pairs as Pairs,
    are_tokens as are_tokens,
    dtype_of_kernels as dtype_of_kernels,
    in_pairs as in_pairs,
    of_examples as of_examples,
)
from volform.kernels.propagation.tiles import (
    Spread as Spread,
    gathered as gathered,
    matrices as matrices,
    product as product,
    require_tile as require_tile,
    rows_times as rows_times,
    spread_of as spread_of,
)
from volform.kernels.propagation.window_means import (
    mixed as mixed,
    pool as pool,
    uncorrelated as uncorrelated,
    window_mean as window_mean,
)
