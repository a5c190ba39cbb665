"""What a posterior's evidence means: proper or not, normalized or not, of which data."""

import hashlib
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpyro.distributions import ImproperUniform, Unit

from volform.errors import ModelError
from volform.models.attaching import Observer
from volform.models.observations import core_of, on_host
from volform.models.posterior import Posterior
from volform.models.priors import VolumeDensity
from volform.models.program import Program


class Facts(NamedTuple):
    """What one trace of a model says of its evidence.

    Attributes:
        improper: latent sites whose prior is improper or known only up to a factor.
        factors: `numpyro.factor` sites, by which the density need not be normalized.
        equivalent_modes: product of `infer={"equivalent_modes": n}` over the sites; None where
            no site declares one.
        data: shape and digest of the values of each observed site, sorted; names do not enter,
            nor do axes of length one.
    """

    improper: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()
    equivalent_modes: int | None = None
    data: tuple[tuple[tuple[int, ...], str], ...] = ()

    def require_proper(self, allow_improper: bool) -> None:
        """Check that there is an evidence.

        Raises:
            ModelError: when a prior is improper, unless that is allowed.
        """
        if self.improper and not allow_improper:
            raise ModelError(
                f"The prior of `{'`, `'.join(self.improper)}` is improper or known only up to a "
                "factor, so that the evidence is defined only up to a factor too: it cannot be "
                "compared. Give a proper prior; `allow_improper=True` gives the formal integral, "
                "which is right if a `numpyro.factor` completes the prior."
            )

    def with_equivalent_modes(self, count: int) -> "Facts":
        """The same facts with a given number of equivalent modes.

        Raises:
            ModelError: when it is no positive integer.
        """
        return self._replace(equivalent_modes=_checked(count, "the call"))

    def notes(self) -> list[str]:
        """What a reader of the evidence must know."""
        notes = []
        if self.improper:
            notes.append(f"formal integral: the prior of {', '.join(self.improper)} is improper")
        if self.factors:
            names = ", ".join(self.factors)
            notes.append(f"integral of a density that {names} may leave unnormalized")
        return notes


def facts_of(posterior: Posterior) -> Facts:
    """The facts of a conditioned model.

    Raises:
        ModelError: when a declared number of equivalent modes is no positive integer.
    """
    # A site that `handlers.reparam` rewrote has lost its settings by the time it is traced.
    observer = Observer(posterior.model)
    program = Program(observer, posterior.program.data)
    trace = program.run(posterior.values(jnp.zeros(posterior.dim)))
    sites = {name: trace[name] for name in (*posterior.names, *posterior.observed)}
    improper = (ImproperUniform, VolumeDensity)
    counts = [
        _checked(count, f"`infer` of the site `{name}`")
        for name, count in observer.equivalent_modes.items()
    ]
    data = [name for name in posterior.observed if not isinstance(core_of(sites[name]["fn"]), Unit)]
    return Facts(
        tuple(n for n in posterior.names if isinstance(core_of(sites[n]["fn"]), improper)),
        tuple(name for name in posterior.observed if name not in data),
        math.prod(counts) if counts else None,
        tuple(sorted(fingerprint(sites[name]["value"]) for name in data)),
    )


def _checked(count: object, where: str) -> int:
    if not isinstance(count, int) or count < 1:
        raise ModelError(
            f"`equivalent_modes` in {where} is {count!r}; it should be a positive integer, such "
            "as `math.factorial(k)` for k exchangeable components."
        )
    return count


def fingerprint(value: object) -> tuple[tuple[int, ...], str]:
    """Shape and digest of observed values: (n,) and (n, 1) numbers are the same data."""
    array = np.ascontiguousarray(on_host(value), dtype=float)
    return np.squeeze(array).shape, hashlib.sha256(array.tobytes()).hexdigest()[:16]
