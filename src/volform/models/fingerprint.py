"""Provenance of a posterior's evidence: of which data, proper or not, normalized or not."""

import hashlib
import math

import jax.numpy as jnp
import numpy as np
from numpyro.distributions import ImproperUniform, Unit

from volform.models.attaching import Observer
from volform.models.data_checks import core_of, on_host
from volform.models.model_with_data import ModelWithData
from volform.models.posterior import Posterior
from volform.models.priors import VolumeDensity
from volform.results import Provenance, require_count


def provenance_of(posterior: Posterior) -> Provenance:
    """The provenance of a conditioned model.

    Raises:
        ModelError: when a declared number of equivalent modes is no positive integer.
    """
    # A site that `handlers.reparam` rewrote has lost its settings by the time it is traced.
    observer = Observer(posterior.model)
    program = ModelWithData(observer, posterior.program.data)
    trace = program.run(posterior.values(jnp.zeros(posterior.dim)))
    sites = {name: trace[name] for name in (*posterior.names, *posterior.observed)}
    improper = (ImproperUniform, VolumeDensity)
    counts = [
        require_count(count, f"`infer` of the site `{name}`")
        for name, count in observer.equivalent_modes.items()
    ]
    data = [name for name in posterior.observed if not isinstance(core_of(sites[name]["fn"]), Unit)]
    return Provenance(
        tuple(n for n in posterior.names if isinstance(core_of(sites[n]["fn"]), improper)),
        tuple(name for name in posterior.observed if name not in data),
        math.prod(counts) if counts else None,
        tuple(sorted(fingerprint(sites[name]["value"]) for name in data)),
    )


def fingerprint(value: object) -> tuple[tuple[int, ...], str]:
    """Shape and digest of observed values: (n,) and (n, 1) numbers are the same data."""
    array = np.ascontiguousarray(on_host(value), dtype=float)
    return np.squeeze(array).shape, hashlib.sha256(array.tobytes()).hexdigest()[:16]
