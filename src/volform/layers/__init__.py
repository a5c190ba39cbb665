"""Metrics through the layers of a network: pulled back from the last to the first."""

from volform.layers.expected import (
    mean_metric as mean_metric,
)
from volform.layers.field import (
    LayerField as LayerField,
)
from volform.layers.latent import (
    LatentPath as LatentPath,
    frechet_mean as frechet_mean,
    shortest_path as shortest_path,
)
from volform.layers.planes import (
    Plane as Plane,
    plane as plane,
    principal as principal,
)
from volform.layers.sequence import (
    LayerSequence as LayerSequence,
    layerwise as layerwise,
    momentum as momentum,
)
