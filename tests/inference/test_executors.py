"""Models compared elsewhere: the same numbers, and a model that fails there costs itself alone."""

import contextlib
import multiprocessing
import os
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from dask.distributed import Client, LocalCluster

import volform as vf
from volform.errors import ModelError

Y = jnp.array([0.5, 1.5, 0.2])


def models_of(y):
    """Models that are no part of a module, as those of a notebook."""

    def normal(y, scale):
        mu = numpyro.sample("mu", dist.Normal(0.0, scale))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def improper(y):
        mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    proper = {f"{scale:g}": vf.condition(normal, y, scale) for scale in (1.0, 100.0)}
    return proper, vf.condition(improper, y)


class Lost:
    """An executor whose workers die with their first task."""

    def submit(self, run, *args):
        future = Future()
        future.set_exception(RuntimeError("the worker died"))
        return future


@pytest.fixture(scope="module")
def models():
    return models_of(Y)[0]


@contextlib.contextmanager
def cluster():
    """Two workers of dask, in processes of their own."""
    arguments = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**arguments) as workers, Client(workers) as client:
        yield client.get_executor()


@pytest.mark.slow
@pytest.mark.parametrize(
    "executor",
    [lambda: ProcessPoolExecutor(2, multiprocessing.get_context("spawn")), cluster],
    ids=["processes", "dask"],
)
def test_other_processes_give_the_same_numbers(models, key, executor):
    here = vf.compare(models, key=key, by=vf.Importance(draws=1000))
    mixed = models | {"improper": models_of(Y)[1]}
    with executor() as pool:
        there = vf.compare(models, key=key, by=vf.Importance(draws=1000), executor=pool)
        partly = vf.compare(mixed, key=key, by=vf.Importance(draws=1000), executor=pool)
    assert [row.name for row in partly.rows] == [row.name for row in here.rows]
    assert any(c.startswith("improper is left out") for c in partly.cautions)
    assert str(here) == str(there)
    for one, other in zip(here.rows, there.rows, strict=True):
        assert float(one.evidence.log_z) == pytest.approx(float(other.evidence.log_z), rel=1e-12)
        assert other.evidence.log_z.dtype == one.evidence.log_z.dtype
        assert other.evidence.draws.posterior is models[other.name]
    found = there.predictive(key, draws=10)
    assert len(found["y"]) == 10


def test_a_model_that_fails_there_is_left_out(models, key):
    mixed = models | {"improper": models_of(Y)[1]}
    with ThreadPoolExecutor(1) as pool:
        table = vf.compare(mixed, by=vf.Laplace(), loo=False, executor=pool)
    assert [row.name for row in table.rows] == ["1", "100"]
    assert any(c.startswith("improper is left out: The model 'improper'") for c in table.cautions)
    assert len(table.predictive(key, draws=5)["y"]) == 5
    with pytest.raises(ModelError, match="improper"):  # as without an executor
        vf.compare(mixed, by=vf.Laplace(), loo=False)


def test_where_none_comes_back_the_reason_is_raised(models):
    with pytest.raises(RuntimeError, match="the worker died") as raised:
        vf.compare(models, executor=Lost())
    assert raised.value.__notes__ == ["The model '1' of `models` cannot be compared."]


@pytest.mark.parametrize("before", [False, True])
def test_a_worker_that_dies(models, before):
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        dies = pool.submit(os._exit, 3)
        if before:
            assert isinstance(dies.exception(), BrokenExecutor)
        with pytest.raises(ModelError, match=r"model '1' of `models` .* a worker of `exec.* died"):
            vf.compare(models, executor=pool)


def test_misuse(models):
    for bad in (2, ProcessPoolExecutor):
        with pytest.raises(ModelError, match=r"`executor` of compare is .* should be an executor"):
            vf.compare(models, executor=bad)

    class NotSent:
        def __reduce__(self):
            raise TypeError("a lock")

        def __call__(self, y):
            numpyro.sample("mu", dist.Normal(jnp.mean(y), 1.0))

    lost = {"a": vf.condition(NotSent(), Y)}
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(ModelError, match=r"model 'a' of `models` cannot be sent .*: a lock"),
    ):
        vf.compare(lost, executor=pool)
