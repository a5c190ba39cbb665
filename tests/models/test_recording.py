"""A posterior is of the model as it was when it was conditioned, and says when that is no model."""

import dataclasses
import itertools
import threading
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from numpyro.infer.util import log_density

import volform as vf
from volform.errors import ModelError
from volform.models.digests import digest_of
from volform.models.prior_draws import prior_draws

DATA = np.array([1.0, 2.0, 3.0])
SCALES = (0.1, 1.0, 10.0)
scale_of_prior: float = 1.0
settings: dict[str, float] = {}
KEY = jax.random.key(0)


def normal(y: Any, scale: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, scale))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def log_joint(mu: float, y: Any, scale: float) -> float:
    terms = -0.5 * ((y - mu) ** 2 + np.log(2.0 * np.pi))
    return float(terms.sum() - 0.5 * (mu / scale) ** 2 - 0.5 * np.log(2.0 * np.pi * scale**2))


# --- Ways to change what a model reads: each gives a model, its arguments and a way to set a scale


def by_global() -> Any:
    def model(y: Any) -> None:
        normal(y, scale_of_prior)

    def change(scale: float) -> None:
        globals()["scale_of_prior"] = scale

    return model, (DATA,), change


def by_dict() -> Any:
    return lambda y: normal(y, settings["scale"]), (DATA,), lambda s: settings.update(scale=s)


def by_closure() -> Any:
    scale = 1.0

    def change(new: float) -> None:
        nonlocal scale
        scale = new

    return lambda y: normal(y, scale), (DATA,), change


@dataclasses.dataclass
class Callable:
    scale: float = 1.0

    def __call__(self, y: Any) -> None:
        normal(y, self.scale)


def by_attribute() -> Any:
    model = Callable()
    return model, (DATA,), lambda scale: setattr(model, "scale", scale)


def by_array() -> Any:
    held = np.ones(1)
    return lambda y: normal(y, jnp.asarray(held[0])), (DATA,), lambda s: held.__setitem__(0, s)


def by_table() -> Any:
    table = pd.DataFrame({"y": DATA, "scale": 1.0})
    model = lambda: normal(jnp.asarray(table["y"]), table["scale"][0])  # noqa: E731
    return model, (), lambda scale: table.__setitem__("scale", scale)


WAYS = [by_global, by_dict, by_closure, by_attribute, by_array, by_table]
ways = pytest.mark.parametrize("way", WAYS)
density = eqx.filter_jit(lambda posterior, u: posterior.log_density_lebesgue(u))


@ways
def test_a_posterior_is_of_the_model_as_it_was(way: Any) -> None:
    """Conditioned before a change or after, eagerly or compiled."""
    model, args, change = way()
    posteriors = {}
    for scale in SCALES:
        change(scale)
        posteriors[scale] = vf.condition(model, *args)
    change(0.5)
    u = jnp.array([0.7])
    for scale, posterior in posteriors.items():
        expected = log_joint(0.7, DATA, scale)
        assert_allclose(posterior.log_density_lebesgue(u), expected, rtol=1e-12)
        assert_allclose(density(posterior, u), expected, rtol=1e-12)
        assert_allclose(jnp.std(prior_draws(posterior.bound_model, KEY, 400)), scale, rtol=0.2)


def test_compare_in_a_loop() -> None:
    """Exact evidences of the conjugate Normal, one for each scale."""
    model, args, change = by_dict()
    models = {}
    for scale in SCALES:
        change(scale)
        models[str(scale)] = vf.condition(model, *args)
    found = vf.compare(models, by=vf.Laplace(), loo=False)
    for scale in SCALES:
        covariance = np.eye(3) + scale**2
        exact = -0.5 * (DATA @ np.linalg.solve(covariance, DATA) + np.linalg.slogdet(covariance)[1])
        assert_allclose(found[str(scale)].evidence.log_z, exact - 1.5 * np.log(2.0 * np.pi))


@ways
def test_equal_models_share_their_programs(way: Any) -> None:
    """Other data of the same shapes, or another function with the same content."""
    traces = 0

    @eqx.filter_jit
    def counted(posterior: Any) -> Any:
        nonlocal traces
        traces += 1
        return posterior.log_density_lebesgue(jnp.zeros(1))

    for model, args, change in (way(), way()):
        for scale in (1.0, 2.0, 1.0):
            change(scale)
            found = counted(vf.condition(model, *args))
            assert_allclose(found, log_joint(0.0, DATA, scale))
    assert traces == 2


def test_arrays_are_copied() -> None:
    """Large arrays of NumPy would share their memory with JAX's."""
    y = np.ones(100_000)
    posterior = vf.condition(normal, y, 1.0)
    before = posterior.log_density_lebesgue(jnp.zeros(1))
    y += 1.0
    assert posterior.log_density_lebesgue(jnp.zeros(1)) == before


def test_no_python_of_the_model_after_condition() -> None:
    runs = 0

    def model(y: Any) -> None:
        nonlocal runs
        runs += 1
        normal(y, 1.0)

    posterior = vf.condition(model, DATA)
    runs = 0
    fit = vf.find_map(posterior, key=KEY, starts=4)
    assert vf.evidence(fit, by=vf.Laplace()).provenance.data
    assert runs == 0
    assert fit.posterior.model is model


def test_the_model_that_comes_out_is_the_one_that_went_in() -> None:
    first, second = (lambda y: normal(y, 1.0)), (lambda y: normal(y, 1.0))
    fits = [vf.find_map(vf.condition(m, DATA), key=KEY, starts=1) for m in (first, second)]
    assert [fit.posterior.model for fit in fits] == [first, second]


def test_other_dtypes_run_the_model_as_it_is() -> None:
    model, args, change = by_closure()
    posterior = vf.condition(model, *args)
    u = jnp.zeros(1, jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        assert_allclose(posterior.log_density_lebesgue(u), log_joint(0.0, DATA, 1.0), rtol=1e-6)
        change(3.0)
        with pytest.raises(ModelError, match=r"another function than at `vf.condition`"):
            posterior.log_density_lebesgue(u)


@pytest.mark.leaks
def test_data_that_are_not_known_yet() -> None:
    """Conditioned under `jit` and `vmap`, with a closure over traced values."""
    scales, u = jnp.array([0.5, 2.0]), jnp.array([0.3])

    def by_argument(scale: Any) -> Any:
        return vf.condition(normal, DATA, scale).log_density_lebesgue(u)

    def by_closed_over(scale: Any) -> Any:
        return vf.condition(lambda y: normal(y, scale), DATA).log_density_lebesgue(u)

    expected = [log_joint(0.3, DATA, float(scale)) for scale in scales]
    for function in (by_argument, by_closed_over):
        assert_allclose(jax.jit(jax.vmap(function))(scales), expected, rtol=1e-12)


def counted_by_data(y: Any) -> None:
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))
    numpyro.sample("y", dist.Multinomial(total_count=jnp.sum(y), probs=p), obs=y)


def sized_by_data(n: Any, y: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0).expand([int(n)]).to_event(1))
    numpyro.sample("y", dist.Normal(jnp.sum(jnp.asarray(mu)), 1.0), obs=y)


@pytest.mark.standard_promotion
@pytest.mark.parametrize(
    ("model", "args"),
    [(counted_by_data, (np.array([1, 2, 3]),)), (sized_by_data, (np.array(2), DATA))],
    ids=["counts in the treedef", "data as constants"],
)
def test_models_that_are_hard_to_record(model: Any, args: Any) -> None:
    posterior = vf.condition(model, *args)
    u = jnp.array([0.2, -0.4])
    joint, _ = log_density(numpyro.handlers.seed(model, 0), args, {}, posterior.values(u))
    _, log_det = posterior.layout.constrain_with_log_det(u)
    assert_allclose(posterior.log_density_lebesgue(u), joint + log_det, rtol=1e-12)
    assert_allclose(density(posterior, u), joint + log_det, rtol=1e-12)


def test_threads() -> None:
    """NumPyro has one stack of handlers, on which two models would mix."""
    found: dict[int, float] = {}

    def work(n: int) -> None:
        model = lambda y: normal(y, float(n))  # noqa: E731
        found[n] = float(vf.condition(model, DATA).log_density_lebesgue(jnp.zeros(1)))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(1, 7):
        assert_allclose(found[n], log_joint(0.0, DATA, float(n)), rtol=1e-12)


# --- Models that are another function each time


def random_of_numpy(y: Any) -> None:
    normal(y, 1.0 + np.random.default_rng().uniform())


def counter() -> Any:
    counts = itertools.count(1)
    return lambda y: normal(y, float(next(counts)))


@pytest.mark.parametrize("model", [random_of_numpy, counter()], ids=["random", "counter"])
def test_another_function_each_time(model: Any) -> None:
    with pytest.raises(ModelError, match=r"another function each time.*as an argument"):
        vf.condition(model, DATA)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (np.ones(2), np.ones((2, 1))),
        (np.zeros(1), np.zeros(1, np.float32)),
        ((1, (2, 3)), ((1, 2), 3)),
        ({"a": 1}, {"b": 1}),
        (Callable(1.0), Callable(2.0)),
        (*(jax.make_jaxpr(lambda x, c=c: x * c)(1.0) for c in (np.ones(3), 2 * np.ones(3))),),
        (*(jax.make_jaxpr(f)(1.0) for f in (jnp.sin, jnp.cos)),),
        (*(jax.make_jaxpr(jax.jit(f))(1.0) for f in (lambda x: x + 1.0, lambda x: x + 2.0)),),
        (*((lambda x, c=c: x + c) for c in (1.0, 2.0)),),
        (object(), object()),
    ],
    ids=map(str, range(11)),
)
def test_digests_tell_apart(one: Any, other: Any) -> None:
    assert digest_of(one) == digest_of(one)
    assert digest_of(one) != digest_of(other)
