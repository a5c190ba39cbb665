"""NumPy's random numbers from JAX's keys, for draws that nothing is compiled for."""

import jax
import numpy as np
from jaxtyping import PRNGKeyArray


def generator(key: PRNGKeyArray, *numbers: int) -> np.random.Generator:
    """A generator whose numbers the key decides, other ones for each list of `numbers`.

    Args:
        key: a key of JAX, typed or of raw bits.
        *numbers: whole numbers that are folded in.
    """
    return np.random.default_rng([*np.asarray(jax.random.key_data(key)).tolist(), *numbers])
