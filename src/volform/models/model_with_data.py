"""A NumPyro model with its data: traced at given values, as a pure function of arrays."""

import contextlib
import functools
import inspect
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro import handlers
from numpyro.infer import init_to_sample
from numpyro.infer.util import compute_log_probs

from volform.errors import DataError, ModelError, VolformError
from volform.geometry.dependence import dependence, holds_open_loop, moves, numbers_computed
from volform.models.constant import ById, Eager
from volform.models.data_checks import advice_on, all_inside, require_no_table, value_in_words
from volform.models.observing import Observer
from volform.models.recording import Recording, recorded
from volform.results import PRNG_KEY

# Errors by which JAX, NumPyro and NumPy say that a model cannot be run on abstract values.
UNTRACEABLE = (
    jax.errors.JAXTypeError,
    jax.errors.JAXIndexError,
    TypeError,
    ValueError,
    NotImplementedError,
    AttributeError,
    LookupError,
)
_ONE_STACK = threading.RLock()  # NumPyro's stack of handlers is one for all threads


class Source:
    """Origin of the densities of a model: a recording of its trace, or else its Python.

    Under `jit` it is static, and compared by its content: a recording by its digest, a model that
    could not be recorded by identity.

    Args:
        model: the model.
        trace: from latent values and data to `Findings`.
        prior: from a key and data to latent values.
        is_shared: whether another model with equal recordings is the same; it is not where they
            hold objects of which nothing is known.
        bounded: observed sites whose support moves; their density vanishes outside of it.
    """

    def __init__(
        self,
        model: Callable,
        trace: Recording | None = None,
        prior: Recording | None = None,
        *,
        is_shared: bool = False,
        bounded: frozenset[str] = frozenset(),
    ):
        self.model, self.trace, self.prior, self.bounded = model, trace, prior, bounded
        exact = [ById(model)]
        if trace is not None:
            exact = [trace.digest] if is_shared else [ById(model), trace.kind]
        self.numbers_read = 0.0 if trace is None else _numbers_read(trace)
        self._key = (model_name(model), *exact, None if prior is None else prior.kind, bounded)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source) and self._key == other._key


def _numbers_read(trace: Recording) -> float:
    """Numbers that a run reads besides its arguments, or as many as it computes tenfold.

    A solver reads at each step: a search by `odeint` takes 120 s, and 47 if optimized. A Gaussian
    process computes more than it reads: with 64 data an expansion takes 86 ms, and 43 optimized.
    """
    program, held = trace.jaxpr.jaxpr, sum(const.size for const in trace.jaxpr.consts)
    return math.inf if holds_open_loop(program) else max(held, numbers_computed(program) / 10)


class Findings(NamedTuple):
    """Findings of one trace of a model.

    Attributes:
        densities: log density of each sample site, its elements summed.
        trace: NumPyro's trace.
        metrics: what `infer={"metric": ...}` said, by site.
        equivalent_modes: what `infer={"equivalent_modes": ...}` said, by site.
        asks_for_keys: whether the model calls `numpyro.prng_key`.
    """

    densities: dict[str, Float[Array, ""]]
    trace: dict[str, Any]
    metrics: dict[str, Any]
    equivalent_modes: dict[str, Any]
    asks_for_keys: bool


class ModelWithData(eqx.Module):
    """A model with its arguments: arrays are leaves, everything else is static.

    A model that needs its arrays as constants (for shapes or Python control flow) gets them so.
    Once it is recorded (`record`), its Python runs no more: globals, closures and objects that it
    reads may change without a change of its densities.
    """

    source: Source = eqx.field(static=True)
    data: Any

    def __init__(self, model: Callable | Source, data: Any):
        self.source = model if isinstance(model, Source) else Source(model)
        self.data = data

    @property
    def model(self) -> Callable:
        """The NumPyro model."""
        return self.source.model

    @property
    def name(self) -> str:
        """The name of the model's function, under whatever handlers."""
        return model_name(self.model)

    def arguments(self) -> tuple[tuple, dict[str, Any]]:
        """`(args, kwargs)` as the model takes them."""
        data = self.data.value if isinstance(self.data, ById) else self.data
        is_wrapped = lambda leaf: isinstance(leaf, ById)  # noqa: E731
        return jax.tree.map(lambda x: x.value if is_wrapped(x) else x, data, is_leaf=is_wrapped)

    def run(self, values: dict[str, Any]) -> dict[str, Any]:
        """The trace of the model with its latent sites set to `values`."""
        return self.outputs(values, lambda found: found.trace)

    def log_density(self, values: dict[str, Any]) -> Float[Array, ""]:
        """Log joint density with respect to Lebesgue measure on the values."""
        return jnp.asarray(sum(self.site_densities(values).values(), start=0.0))

    def site_densities(self, values: dict[str, Any]) -> dict[str, Float[Array, ""]]:
        """Log density of each sample site, its elements summed."""
        return self.outputs(values, lambda found: found.densities)

    def outputs(self, values: dict[str, Any], select: Callable[[Findings], Any]) -> Any:
        """`select` of what a trace with latent sites set to `values` finds."""
        recording = self.source.trace
        if recording is None:
            return select(self.run_python(values))
        if not recording.fits(values, self.arrays):
            self.require_unchanged()
            return select(self.run_python(values))
        return recording(select, values, self.arrays)

    def run_python(self, values: dict[str, Any], seed: Any = 0) -> Findings:
        """The findings of a trace of the model itself, with whatever handlers are around.

        Args:
            values: of the latent sites, and of whatever other sites are to be replaced.
            seed: a number or key for `numpyro.prng_key`.
        """
        args, kwargs = self.arguments()
        observer = Observer(self.model)
        fixed = handlers.substitute(observer, data=values)
        with self.staging():
            # Latent sites are set before the seed sees them.
            seeded = handlers.seed(fixed, rng_seed=seed)
            densities, trace = compute_log_probs(seeded, args, kwargs, {})
        for name in self.source.bounded:  # NumPyro's densities go on beyond their support
            inside = all_inside(trace[name]["fn"], trace[name]["value"])
            densities[name] = jnp.where(inside, densities[name], -jnp.inf)
        modes = observer.equivalent_modes
        return Findings(densities, trace, observer.metrics, modes, observer.asks_for_keys)

    def prior_draw(self, key: PRNGKeyArray) -> dict[str, Any]:
        """Values of the latent sites drawn from the prior; uniform in u where it has no sampler."""
        recording = self.source.prior
        if recording is not None and recording.fits(key, self.arrays):
            return recording(lambda values: values, key, self.arrays)
        self.require_unchanged()
        return self._draw(key)

    def _draw(self, key: PRNGKeyArray) -> dict[str, Any]:
        seeded = handlers.seed(self.model, key)
        trace = self.trace(handlers.substitute(seeded, substitute_fn=init_to_sample))
        sites = [s for s in trace.values() if s["type"] == "sample" and not s["is_observed"]]
        return {site["name"]: site["value"] for site in sites}

    def record(self, values: dict[str, Any]) -> "ModelWithData":
        """The same with its trace recorded; itself where that cannot be.

        Args:
            values: of the latent sites, or their shapes; they are traced as abstract ones.

        Raises:
            ModelError: when a second trace finds another density, of random numbers or counters.
        """
        trace = recorded(self._outputs_of, values, self.arrays)
        if trace is None:
            return self
        again = trace.again(self._outputs_of)
        is_shared = again is not None and again.digest == trace.digest
        if again is not None and not is_shared and again.kind != trace.kind:
            raise ModelError(
                f"`{self.name}` is another function each time it is run, by random numbers of "
                "NumPy or Python, or by something that it counts; a posterior would keep what one "
                "run happened to find. Draw or count outside the model, and pass the result to it "
                "as an argument."
            )
        try:
            prior = recorded(self._draw_of, jax.eval_shape(jax.random.key, 0), self.arrays)
        except UNTRACEABLE:  # said where draws are asked for
            prior = None
        bounded = self.source.bounded
        source = Source(self.model, trace, prior, is_shared=is_shared, bounded=bounded)
        return ModelWithData(source, self.data)

    def held(self, values: dict[str, Any]) -> tuple[str, ...]:
        """Values besides latent sites and data that the density depends on, held at one.

        Args:
            values: of the latent sites, anywhere.

        Returns:
            Names of `numpyro.param` sites, and `PRNG_KEY`.
        """
        params, asks_for_keys = self.outputs(
            values, lambda found: (_params(found.trace), found.asks_for_keys)
        )

        def moved_by(run: Callable[[Any], Findings], start: Any) -> bool:
            try:
                return moves(dependence(lambda x: run(x).densities, start))
            except UNTRACEABLE:  # read in Python
                return True

        held = [n for n, start in params.items() if moved_by(self._with_site(values, n), start)]
        if asks_for_keys and moved_by(lambda key: self.run_python(values, key), jax.random.key(0)):
            held.append(PRNG_KEY)
        return tuple(held)

    def _with_site(self, values: dict[str, Any], name: str) -> Callable[[Any], Findings]:
        return lambda value: self.run_python({**values, name: value})

    def require_unchanged(self) -> None:
        """Check that the model computes what it did when it was recorded.

        Raises:
            ModelError: when it does not.
        """
        trace = self.source.trace
        # Under a plain `jit` integers among the arguments are traced, and laid out otherwise.
        if trace is None or not trace.is_of(self.arrays):
            return
        again = trace.again(self._outputs_of)
        if again is None or again.digest == trace.digest:
            return
        if again.kind != trace.kind:
            raise ModelError(
                f"`{self.name}` is another function than at `vf.condition`: a global, a closure, "
                "an object or a table that it reads has changed since, and this needs to run it "
                "again. Condition it again, and pass what changes as an argument."
            )

    @property
    def arrays(self) -> Any:
        """The arrays among the arguments that are leaves."""
        return None if isinstance(self.data, ById) else eqx.filter(self.data, eqx.is_array)

    def with_arrays(self, arrays: Any) -> "ModelWithData":
        """The same with other arrays in the arguments, of the same shapes."""
        if isinstance(self.data, ById):
            return self
        static = eqx.filter(self.data, eqx.is_array, inverse=True)
        return ModelWithData(self.source, eqx.combine(arrays, static))

    def _outputs_of(self, values: dict[str, Any], arrays: Any) -> Findings:
        return self.with_arrays(arrays).run_python(values)

    def _draw_of(self, key: PRNGKeyArray, arrays: Any) -> dict[str, Any]:
        return self.with_arrays(arrays)._draw(key)

    def trace(self, model: Callable) -> dict[str, Any]:
        """The trace of `model`, this one with handlers around it, on the same arguments."""
        args, kwargs = self.arguments()
        with self.staging():
            return handlers.trace(model).get_trace(*args, **kwargs)

    @contextlib.contextmanager
    def staging(self) -> Iterator[None]:
        """Context to run the model in: no other thread does, for NumPyro has one stack of handlers.

        Functions of data that are `Eager` stay concrete under `jit` and `lax.map`.
        """
        is_eager = isinstance(self.data, ById) and self.data.is_eager
        with (
            _ONE_STACK,
            jax.ensure_compile_time_eval() if is_eager else contextlib.nullcontext(),
        ):
            yield

    def first_trace(self, model: Callable, initial: Callable) -> dict[str, Any]:
        """One concrete trace with latent sites set by `initial(site)`.

        Raises:
            DataError: when the model cannot be run on its data.
        """
        seeded = handlers.seed(handlers.substitute(model, substitute_fn=initial), rng_seed=0)
        try:
            return self.trace(seeded)
        except VolformError:
            raise
        except AssertionError as error:
            raise ModelError(
                f"NumPyro refuses the model `{self.name}` as it is written: {error}"
            ) from error
        except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            advice = advice_on(str(error), self.model, *self.arguments())
            raise DataError(
                f"`{self.name}` could not be run {self.data_in_words()}. "
                f"{type(error).__name__}: {str(error).rstrip('.')}. {advice}"
            ) from error

    def data_in_words(self) -> str:
        """The arguments by name with their shapes, and how many of their values are NaN."""
        args, kwargs = self.arguments()
        try:
            bound = inspect.signature(self.model).bind_partial(*args, **kwargs).arguments
        except (TypeError, ValueError):
            bound = {"args": args, "kwargs": kwargs}
        if not bound:
            return "without arguments"
        return "with " + ", ".join(
            f"`{name}` {value_in_words(value)}" for name, value in bound.items()
        )


def _params(trace: dict[str, Any]) -> dict[str, Any]:
    return {name: site["value"] for name, site in trace.items() if site["type"] == "param"}


def model_name(model: Callable) -> str:
    """The name of the model's function, under whatever handlers and partial applications."""
    while isinstance(model, functools.partial):
        model = model.func
    return getattr(model, "__name__", None) or type(model).__name__


def make_program(model: Callable, args: tuple, kwargs: dict[str, Any]) -> ModelWithData:
    """The model with its data, arrays turned into JAX arrays.

    Raises:
        DataError: for a table as an argument, which may be meant in two ways.
    """
    return ModelWithData(_static(model), jax.tree.map(_leaf, (args, kwargs)))


def with_constant_data(program: ModelWithData, kind: type[ById] = Eager) -> ModelWithData:
    """The same program with its arrays as constants; `Eager` ones where it reads what it computes.

    `ById` is enough for NumPy's functions of the data, and spares compiling each operation on
    constants: the model of NumPyro's example of admissions, with an LKJ prior, is conditioned in
    2.5 s instead of 8.4.
    """
    return ModelWithData(program.model, kind(program.arguments()))


def _static(model: Callable) -> Callable:
    """The model as something that is hashed by identity: a pytree or dataclass may not be."""
    try:
        hash(model)
    except TypeError:
        return functools.partial(model)
    leaves = jax.tree.leaves(model)
    is_leaf = len(leaves) == 1 and leaves[0] is model
    return model if is_leaf else functools.partial(model)


def _leaf(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return leaf
    if isinstance(leaf, Mapping) and hasattr(leaf, "data_vars"):  # an xarray Dataset
        return {name: _leaf(leaf[name]) for name in leaf}
    if hasattr(leaf, "__array__"):  # of NumPy, pandas, polars, xarray
        require_no_table(leaf)
        array = np.asarray(leaf)
        if array.dtype.kind in "biufc":
            # A copy: large arrays would go on sharing memory. By NumPy it needs no compilation.
            return jax.device_put(np.array(array))
    try:
        hash(leaf)
    except TypeError:
        return ById(leaf)
    return leaf
