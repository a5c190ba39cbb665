"""Precision, strictness and legs of the test suite; also applies to the doctests of the package."""

import gc
import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
# Nearly all of the time of the suite is compilation, of programs that run for milliseconds; and
# every worker has a processor of its own, on which threads only wait for each other.
# Without XLA's emitters of fusions it is half the time; jaxlib 0.12 has no such choice, and aborts.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} "
    "--xla_backend_optimization_level=0 --xla_cpu_multi_thread_eigen=false "
    "--xla_cpu_parallel_codegen_split_count=1 "
    f"{'--xla_cpu_use_fusion_emitters=false' if version('jaxlib').startswith('0.10.') else ''}"
)
# Compiled code is kept between runs, about a third of the time of a Hessian or a NUTS chain; and
# between the processes that a test starts, which compile the same again.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).resolve().parent / ".pytest_cache/jax")
# Small ones too: they are let go with each module, and a quarter of them or more come again in the
# next. Compiling one takes 15 ms, keeping it 2 and reading it 3.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent
X64 = os.environ.get("VOLFORM_TEST_X64", "1") != "0"
STRICT_RANKS = {
    "architectures", "equivalence", "geometry", "kernels", "layers", "linalg", "operators",
    "optimizers", "propagation",
}  # fmt: skip
SLOW = set((ROOT / "tests" / "slow.txt").read_text().splitlines())
LEAKS = os.environ.get("VOLFORM_TEST_LEAKS", "0") != "0"

# The same examples every time, so that a failure in CI is a failure at the desk. Look for new
# ones with HYPOTHESIS_PROFILE=search.
settings.register_profile(
    "ci",
    deadline=None,  # the first example compiles
    derandomize=True,
    max_examples=20,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("search", settings.get_profile("ci"), derandomize=False, max_examples=200)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config: pytest.Config) -> None:
    gc.set_threshold(100_000, 50, 100)  # traces make millions of small objects, few of them garbage
    jax.config.update("jax_enable_x64", X64)
    jax.config.update("jax_check_tracer_leaks", LEAKS)


@pytest.hookimpl(tryfirst=True)  # before `-m slow` selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wrong_leg = pytest.mark.skip(reason="belongs to the " + ("float32" if X64 else "x64") + " leg")
    slow = pytest.mark.skip(reason="takes minutes: run with -m slow")
    for item in items:
        if item.nodeid in SLOW:
            item.add_marker(pytest.mark.slow)
        if bool(item.get_closest_marker("float32")) == X64:
            item.add_marker(wrong_leg)
        if item.get_closest_marker("slow") and "slow" not in config.option.markexpr:
            item.add_marker(slow)


@pytest.fixture(autouse=True)
def strict_promotion(request: pytest.FixtureRequest):
    """Mixing dtypes is an error, except where NumPyro itself does it.

    NumPyro 0.22 mixes integer and float arrays in NUTS (for every model), in LKJCholesky, in
    Bernoulli(logits=...), in Geometric and in SVI. A test that runs those is marked
    standard_promotion; the example of `flow_metric`, which cannot be marked, runs SVI.
    """
    is_marked = request.node.get_closest_marker("standard_promotion")
    if is_marked or request.node.name.endswith(".flow_metric"):
        yield
    else:
        with jax.numpy_dtype_promotion("strict"):
            yield


@pytest.fixture(autouse=True)
def strict_ranks(request: pytest.FixtureRequest):
    """Broadcasting arrays of different ranks is an error, in the rooms that are arithmetic.

    A shape that is wrong by an axis then fails instead of giving an outer product. Scalars go with
    any array. Models are written with plates and families of vectors, where NumPyro broadcasts
    over ranks: the rooms that run them are not held to it, nor is a test marked rank_promotion.
    """
    room = Path(request.node.path).relative_to(ROOT).parent.name
    if room not in STRICT_RANKS or request.node.get_closest_marker("rank_promotion"):
        yield
    else:
        with jax.numpy_rank_promotion("raise"):
            yield


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """Programs and figures of a finished module are let go: the suite makes gigabytes of them."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # the command line sets it
    yield
    jax.clear_caches()
    if "matplotlib.pyplot" in sys.modules:  # which keeps figures, and warns of twenty
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def key() -> jax.Array:
    """A fixed random key."""
    return jax.random.key(0)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of reference numbers, which is not part of the repository."""
    beside = [ROOT / "shared" / "reference", ROOT.parent / "shared" / "reference"]
    named = os.environ.get("VOLFORM_REFERENCE")
    for folder in [Path(named)] if named else beside:
        if folder.is_dir():
            return folder
    pytest.skip("no folder of reference numbers: set VOLFORM_REFERENCE to its path")
