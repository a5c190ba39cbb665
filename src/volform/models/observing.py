"""Notes on what a model says besides its densities, taken while it runs."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.primitives import Messenger


class Observer(Messenger):
    """Notes what the model wrote as `numpyro.sample`, whatever handlers made of it.

    `handlers.reparam`, around the model or inside it, makes a deterministic site of a sample site
    and drops its settings before a handler further out sees it. But while it does so it samples an
    auxiliary site, and then the message that it is working on is there to be read on Python's
    call stack.

    Attributes:
        metrics: what `infer={"metric": ...}` said, by site.
        equivalent_modes: what `infer={"equivalent_modes": ...}` said, by site.
        asks_for_keys: whether the model calls `numpyro.prng_key`.
    """

    def __init__(self, fn: Callable):
        self._rewritten: list[str] = []
        self._auxiliary: set[Any] = set()
        self.metrics: dict[str, Any] = {}
        self.equivalent_modes: dict[str, Any] = {}
        self.asks_for_keys = False
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        """Notes the site; NumPyro hands `note` into the body of `scan` and `cond`."""
        if msg["type"] == "control_flow":
            msg["kwargs"]["substitute_stack"].append(("substitute", self.note))
        else:
            self.note(msg)

    def note(self, msg: Any) -> None:
        """Notes a sample site, and those that are being rewritten in terms of it."""
        for origin in _being_rewritten():
            self._auxiliary.add(msg.get("name"))
            self._rewritten.append(origin["name"])
            self._note_settings(origin)
        if msg["type"] == "sample":
            self._note_settings(msg)
            if msg["is_observed"] and _is_numpy(msg["value"]):
                # NumPyro checks a support in NumPy if the value is, and NumPy cannot be traced.
                msg["value"] = jnp.asarray(msg["value"])
        self.asks_for_keys |= msg["type"] == "prng_key"

    @property
    def rewritten(self) -> tuple[str, ...]:
        """Names of the sample sites that were made deterministic, without auxiliary ones."""
        return tuple(name for name in self._rewritten if name not in self._auxiliary)

    def _note_settings(self, msg: Any) -> None:
        if "equivalent_modes" in msg["infer"]:
            self.equivalent_modes[msg["name"]] = msg["infer"]["equivalent_modes"]
        metric = msg["infer"].get("metric")
        if metric is not None:
            self.metrics[msg["name"]] = metric


def _is_numpy(value: Any) -> bool:
    of_numpy = isinstance(value, int | float | np.ndarray | np.number)
    return of_numpy and np.asarray(value).dtype.kind in "biuf"


def _being_rewritten() -> Iterator[dict[str, Any]]:
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is handlers.reparam.process_message.__code__:
            yield frame.f_locals["msg"]
        frame = frame.f_back
