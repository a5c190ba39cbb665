"""Compilation of functions with options that suit how long they run, and traces read by hand."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Literal,
    get_opaque_trace_state,
    jaxpr_as_fun,
)

# YNNPACK's products in single precision may crash the process: jaxlib 0.10.2 on two processors did
# in 4 of 6 runs of the likelihood of a LeNet on 200 images, and in none of 14 without them.
SAFE: dict[str, Any] = {"xla_cpu_experimental_ynn_fusion_type": ""}
# XLA's emitters of fusions take half of the time of compilation, and small loops run no faster by
# them: the expansion of eight schools is compiled in 3.5 s with them and 1.8 without, and runs .08
# ms either way (processor time, jaxlib 0.10).
# LLVM's second level, in place of its third: programs run as fast, with the same digits, and the
# moves of particles are compiled in 1.0 s instead of 3.4, others in a quarter less.
STEADY = SAFE | {
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_backend_optimization_level": 2,
}
# Without LLVM's optimizations .7 s, and .15 ms: for what runs for a second at most.
QUICK = STEADY | {"xla_backend_optimization_level": 0}
# Numbers that a program reads up to which it is compiled quickly. A search reads them some ten
# thousand times, at 5 ns of a number and operation more: above, a second is lost that was gained.
QUICK_UP_TO = 10_000
_OUTSIDE = get_opaque_trace_state()  # of all traces
WORTH_KEEPING = 0.1  # seconds of a compilation, of which reading the program back takes a third
T = TypeVar("T")


class Remembering(eqx.Module):
    """A module with properties that are `remembered`."""

    __slots__ = ("_found",)  # beside `__dict__`

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)  # a copy finds them itself


class remembered(functools.cached_property[T]):  # noqa: N801 - as functools writes it
    """A property of a `Remembering` module that is computed when it is first asked for.

    `functools.cached_property` leaves its value in `__dict__`. Equinox takes a module with more in
    there than its fields for a function's wrapper, of another tree structure: after
    `posterior.provenance` all programs of a posterior were compiled once more.
    """

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """The value; of the class, the property itself."""
        if instance is None:
            return self
        if not hasattr(instance, "_found"):
            object.__setattr__(instance, "_found", {})
        found, name = instance._found, self.attrname
        if name not in found:
            found[name] = self.func(instance)
        return found[name]


class Compiled:
    """A function under `equinox.filter_jit` with options of the compiler, on a CPU.

    Inside a trace of the user's, where JAX allows no options, it is the plain one.

    Args:
        fn: the function.
        options: of XLA; those that the installed one does not know are left out.
    """

    def __init__(self, fn: Callable[..., Any], options: Mapping[str, Any]):
        self._plain, self._options = eqx.filter_jit(fn), options
        functools.update_wrapper(self, fn)

    @functools.cached_property
    def _with_options(self) -> Callable[..., Any]:
        known = _known(tuple(self._options.items()))
        extra: Any = {"compiler_options": known} if known else {}
        return eqx.filter_jit(self.__wrapped__, **extra)  # pyright: ignore[reportAttributeAccessIssue]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function's value."""
        if jax.default_backend() != "cpu" or is_traced(args, kwargs):
            return self._plain(*args, **kwargs)
        try:
            return self._with_options(*args, **kwargs)
        except ValueError as error:  # of values within a trace that are computed while it is made
            if "compiler_options" not in str(error):
                raise
            return self._plain(*args, **kwargs)


def safe(fn: Callable[..., Any]) -> Compiled:
    """Compile a function as JAX does, but for what crashes: for long loops over large arrays."""
    return Compiled(fn, SAFE)


def steady(fn: Callable[..., Any]) -> Compiled:
    """Compile a function to run fast, without what takes long to compile."""
    return Compiled(fn, STEADY)


def by_numbers(fn: Callable[..., Any]) -> Callable[[float], Compiled]:
    """The function compiled quickly, or to run fast: which, by the numbers that it reads."""
    quick, steady = Compiled(fn, QUICK), Compiled(fn, STEADY)
    return lambda numbers: quick if numbers <= QUICK_UP_TO else steady


def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function quickly if what it reads is small, and else to run fast.

    Args:
        fn: a function of pytrees, the first of which holds the data. Where that has an attribute
            `numbers_read`, it tells how many are read that are no leaves.
    """
    programs = by_numbers(fn)

    @functools.wraps(fn)
    def chosen(data: Any, *args: Any, **kwargs: Any) -> Any:
        return programs(numbers_in(data))(data, *args, **kwargs)

    return chosen


def numbers_in(data: Any) -> float:
    """Numbers in the arrays of a pytree, and those that it says are read besides."""
    leaves = (leaf for leaf in jax.tree.leaves(data) if eqx.is_array(leaf))
    return sum(leaf.size for leaf in leaves) + getattr(data, "numbers_read", 0)


def keep_compiled() -> None:
    """Keep compiled programs of this process in the user's cache folder, for the next one.

    Unless JAX is told of another folder already, as by `JAX_COMPILATION_CACHE_DIR`. The command
    line does so; an import does not.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "volform"
    kept = getattr(jax.config, "jax_compilation_cache_dir", None) or str(folder)
    jax.config.update("jax_compilation_cache_dir", kept)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_KEEPING)


def is_traced(*values: Any) -> bool:
    """Tell whether an array of these pytrees is traced, or whatever is computed here is."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values)):
        return True
    if get_opaque_trace_state() == _OUTSIDE:  # a hundredth of the time of what follows
        return False
    return isinstance(jax.device_put(np.float32(0.0)), Tracer)


def evaluate_equation(jaxpr: Jaxpr, eqn: JaxprEqn, given: Sequence[Any]) -> list[Any]:
    """Results of one equation of a jaxpr, of the values of its inputs."""
    # A variable that is given twice is one input of the program of this equation.
    pairs = zip(eqn.invars, given, strict=True)
    inputs = {v: value for v, value in pairs if not isinstance(v, Literal)}
    one = jaxpr.replace(constvars=[], invars=[*inputs], outvars=[*eqn.outvars], eqns=[eqn])
    return jaxpr_as_fun(ClosedJaxpr(one, ()))(*inputs.values())


def as_closed(program: Jaxpr | ClosedJaxpr) -> ClosedJaxpr:
    """A program that stands in an equation, with its constants: JAX 0.12 has one class of both."""
    return program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())


def parts_of_scan(eqn: JaxprEqn) -> tuple[int, int]:
    """Numbers of constants and of carries among the inputs of a loop, before what it goes over.

    By their axes, of which a slice has one less: JAX has other names for the parts in each release.
    """
    body = as_closed(eqn.params["jaxpr"]).jaxpr
    ndims = lambda variables: [len(v.aval.shape) for v in variables]  # noqa: E731
    outer, inner = ndims(eqn.invars), ndims(body.invars)
    sliced = sum(a != b for a, b in zip(outer, inner, strict=True))
    carries = sum(a == b for a, b in zip(ndims(eqn.outvars), ndims(body.outvars), strict=True))
    return len(outer) - sliced - carries, carries


@functools.cache
def _known(options: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """Those options that this XLA has: jaxlib 0.12 has no choice of emitters."""
    trial: Any = jax.jit(lambda x: x, compiler_options=dict(options))
    try:
        trial.lower(np.float32(0.0)).compile()
    except jax.errors.JaxRuntimeError:
        if len(options) == 1:
            return {}
        return {name: value for option in options for name, value in _known((option,)).items()}
    return dict(options)
