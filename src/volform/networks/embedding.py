"""Vectors of tokens, which are given by whole numbers."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from volform.checks import require_positive
from volform.errors import NetworkError
from volform.networks.inputs import require_tokens
from volform.networks.layer import ParameterArray, Place, Wide
from volform.networks.parametrization import Fans


class Embedding(Wide):
    """A vector for each token: rows of a table, by inputs that are integers.

    Inputs have the shape (n, tokens), outputs (n, tokens, width). It is a dense layer of vectors
    that have a one at the token and zeros elsewhere. One of its inputs is not zero: `fan_in` is 1,
    and the covariance of two tokens is `w_std^2` where they agree, else 0.

    Args:
        count: number of tokens, which are 0 to count - 1.
        width: number of entries of a vector.
        w_std: standard deviation of an entry; a number or a traced value.

    Raises:
        NetworkError: when `count` or the width is no positive integer, or `w_std` not positive.
        DataError: when it is given inputs that are no integers, or not below `count`.

    >>> import jax, jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> net = nn.serial(nn.Embedding(5, 16), nn.Conv(16, (2,)), nn.Relu(), nn.GlobalAvgPool())
    >>> words = jnp.array([[0, 3, 3], [4, 3, 1]])
    >>> net.init(jax.random.key(0), words.shape)[0]["w"].shape
    (5, 16)
    >>> first = nn.serial(nn.Embedding(5, 16, w_std=2.0), nn.Flatten())
    >>> k.kernel(first, words).nngp.round(4).tolist()  # one of three places agrees
    [[4.0, 1.3333], [1.3333, 4.0]]
    """

    count: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    w_std: Any = 1.0

    def __check_init__(self) -> None:
        numbers = {"count": self.count, "width": self.width}
        for name, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise NetworkError(
                    f"`{name}` of Embedding is {number!r}; it should be a positive integer, as in "
                    "`Embedding(1000, 64)` for a thousand tokens and vectors of 64 entries."
                )
        require_positive(self.w_std, "w_std", "the standard deviation of an entry of a vector")

    @property
    def takes_tokens(self) -> bool:
        """They are."""
        return True

    def fans(self, place: Place) -> Fans:
        """One input, as of a vector of zeros and a one."""
        return Fans(1, self.width, place.is_first, place.is_last)

    def require_examples(self, x: Any, argument: str) -> Int[Array, "n ..."]:
        """`x` as an array of tokens.

        Raises:
            DataError: when it is empty, of other numbers than integers, or not below `count`.
        """
        return require_tokens(x, argument, self.count)

    def parameters(
        self, shape: tuple[int, ...], place: Place
    ) -> tuple[dict[str, ParameterArray], tuple[int, ...]]:
        """ParameterArray "w", (count, width): a row for each token."""
        scaling = place.parametrization.weight(self.fans(place), self.w_std)
        return {"w": ParameterArray((self.count, self.width), scaling)}, (*shape, self.width)

    def forward(
        self, params: dict[str, Array], x: Int[Array, "n ..."], place: Place
    ) -> Float[Array, "n ... width"]:
        """The row of each token; NaN for one that is none, where `jit` hides it from the check.

        Raises:
            NetworkError: when inputs are no integers, as those of another layer.
        """
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise NetworkError(
                f"`Embedding({self.count}, {self.width})` got values of dtype {x.dtype}; it takes "
                "integers, which no layer returns: let it be the first layer."
            )
        multiplier = place.parametrization.weight(self.fans(place), self.w_std).multiplier
        known = jnp.where(x < 0, self.count, x)  # or -1 would be the last token
        return jnp.take(multiplier * params["w"], known, axis=0, mode="fill")
