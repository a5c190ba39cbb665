"""NumPyro models with data, one for each thing that a model may do."""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

Y = np.array([0.3, -0.5, 1.2])


@dataclass(frozen=True)
class Case:
    """A model and what it is conditioned on."""

    model: Callable
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


CASES: list[Any] = []


def case(*args: Any, marks: Any = (), **kwargs: Any) -> Callable:
    """Decorator: adds a model with its data to `CASES`."""

    def add(model: Callable) -> Callable:
        CASES.append(pytest.param(Case(model, args, kwargs), id=model.__name__, marks=marks))
        return model

    return add


# --- Statements


@case(np.full((2, 3), 0.3))
def nested_plates(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 2, dim=-2):
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        with numpyro.plate("columns", 3, dim=-1):
            z = numpyro.sample("z", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Normal(z, 0.5), obs=y)


@case(Y)
def deterministic_and_factor(y):
    log_scale = numpyro.sample("log_scale", dist.Normal(0.0, 1.0))
    scale = numpyro.deterministic("scale", jnp.exp(log_scale))
    numpyro.factor("quartic", -0.5 * log_scale**4)
    numpyro.sample("y", dist.Normal(0.0, scale), obs=y)


@case(Y)
def to_event(y):
    a = numpyro.sample("a", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    numpyro.sample("y", dist.Normal(a, 1.0).to_event(1), obs=y)


@case(Y)
def expanded_and_sample_shape(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    b = numpyro.sample("b", dist.Gamma(2.0, 1.0), sample_shape=(3,))
    numpyro.sample("y", dist.Normal(a.sum(0), b), obs=y)


@case(np.array([0.3, np.nan, 1.2]))
def masked(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    with handlers.mask(mask=~jnp.isnan(y)):
        numpyro.sample("y", dist.Normal(a, 1.0), obs=y)


@case(np.array([0.3, np.nan, 1.2]))
def imputed(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", 3):
        numpyro.sample("y", dist.Normal(a, 1.0), obs=y, obs_mask=~jnp.isnan(y))


@case(Y)
def masked_prior(y):
    with handlers.mask(mask=False):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a, 1.0), obs=y)


@case(Y)
def scaled(y):
    with handlers.scale(scale=2.5), numpyro.plate("n", 3) as index:
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(a, 1.0), obs=y[index])


@case(Y)
def improper(y):
    a = numpyro.sample("a", dist.ImproperUniform(constraints.real, (), ()))
    b = numpyro.sample("b", dist.ImproperUniform(constraints.positive, (), event_shape=(3,)))
    numpyro.sample("y", dist.Normal(a, b), obs=y)


@case(Y)
def condition_inside(y):
    def inner():
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Normal(a, 1.0))
        numpyro.sample("y", dist.Normal(b, 1.0).expand([3]))

    handlers.condition(inner, {"y": y, "a": 0.3})()


@case(Y)
def scoped(y):
    def inner():
        return numpyro.sample("a", dist.Normal(0.0, 1.0))

    total = handlers.scope(inner, "one")() + handlers.scope(inner, "two")()
    numpyro.sample("y", dist.Normal(total, 1.0), obs=y)


@case(Y)
def param_and_prng_key(y):
    noise = 0.1 * jax.random.normal(numpyro.prng_key())
    scale = numpyro.param("scale", 1.5, constraint=constraints.positive)
    a = numpyro.sample("a", dist.Normal(0.0, scale))
    numpyro.sample("y", dist.Normal(a + noise, 1.0), obs=y)


@case(Y)
def scanned(y):
    start = numpyro.sample("start", dist.Normal(0.0, 1.0))
    step = numpyro.sample("step", dist.LogNormal(0.0, 0.5))

    def move(x, y):
        x = numpyro.sample("x", dist.Normal(x, step))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(move, start, y)


@case(Y)
def scanned_with_bounds(y):
    """The bounds of the support come out of the loop as arrays; they are constants all the same."""

    def move(x, y):
        x = numpyro.sample("x", dist.Uniform(-1.0, 2.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(move, 0.0, y)


@case(Y)
def censored(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    above = y > 1.0
    with handlers.mask(mask=~above):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    with handlers.mask(mask=above):
        numpyro.factor("censored", jnp.log1p(-dist.Normal(mu, 1.0).cdf(y)))


# --- Supports


@case(np.array([3.0, 4.0, 5.0]))
def simplex(y):
    p = numpyro.sample("p", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])))
    numpyro.sample("y", dist.Multinomial(total_count=12, probs=p), obs=y)


@case()
def plate_of_simplexes():
    with numpyro.plate("groups", 2):
        p = numpyro.sample("p", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])))
    numpyro.factor("peak", jnp.sum(p[:, 0] * p[:, 1]))


@case(Y)
def simplexes_in_one_event(y):
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(p.sum(0), 1.0), obs=y)


@case(Y)
def ordered(y):
    loc = numpyro.sample(
        "loc",
        dist.TransformedDistribution(
            dist.Normal(0.0, 1.0).expand([3]), dist.transforms.OrderedTransform()
        ),
    )
    numpyro.sample("y", dist.Normal(loc, 1.0), obs=y)


@case(Y, marks=pytest.mark.standard_promotion)
def correlation_cholesky(y):
    factor = numpyro.sample("factor", dist.LKJCholesky(3, 2.0))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(3), scale_tril=factor), obs=y)


@case(marks=pytest.mark.standard_promotion)
def correlation_matrix():
    numpyro.sample("matrix", dist.LKJ(3, 2.0))


@case(marks=pytest.mark.standard_promotion)
def wishart():
    numpyro.sample("matrix", dist.Wishart(5.0, scale_matrix=jnp.eye(2)))


@case(marks=pytest.mark.standard_promotion)
def positive_definite():
    flat = dist.ImproperUniform(constraints.positive_definite, (), event_shape=(2, 2))
    matrix = numpyro.sample("matrix", flat)
    numpyro.factor("trace", jnp.linalg.slogdet(matrix)[1] - jnp.trace(matrix))


@case()
def lower_cholesky():
    flat = dist.ImproperUniform(constraints.lower_cholesky, (), event_shape=(2, 2))
    factor = numpyro.sample("factor", flat)
    numpyro.factor("norm", -jnp.sum(factor**2))


@case()
def sphere():
    flat = dist.ImproperUniform(constraints.sphere, (), event_shape=(3,))
    direction = numpyro.sample("direction", flat)
    numpyro.factor("pull", direction @ jnp.array([1.0, 2.0, 3.0]))


@case()
def plate_of_directions():
    with numpyro.plate("n", 2):
        numpyro.sample("direction", dist.ProjectedNormal(jnp.array([1.0, 2.0, 3.0])))


@case(Y, marks=pytest.mark.standard_promotion)
def intervals(y):
    a = numpyro.sample("a", dist.TruncatedNormal(0.0, 1.0, low=-1.0, high=2.0))
    b = numpyro.sample("b", dist.Uniform(-2.0, 3.0))
    c = numpyro.sample("c", dist.Beta(2.0, 3.0))
    numpyro.sample("y", dist.Normal(a * b * c, 1.0), obs=y)


@case(Y)
def zero_sum(y):
    effect = numpyro.sample("effect", dist.ZeroSumNormal(1.0, (3,)))
    numpyro.sample("y", dist.Normal(effect, 1.0), obs=y)


@case(Y)
def gaussian_process(y):
    length = numpyro.sample("length", dist.InverseGamma(3.0, 2.0))
    x = jnp.arange(3.0)
    kernel = jnp.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + 1e-4 * jnp.eye(3)
    f = numpyro.sample("f", dist.MultivariateNormal(jnp.zeros(3), kernel))
    numpyro.sample("y", dist.Normal(f, 1.0), obs=y)


# --- Data


Table = namedtuple("Table", "x group")


@case(2.0, 3)
def python_scalars(y, scale):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a, float(scale)), obs=y)


@case({"x": Y, "pair": (Y, [Y, 2.0])})
def pytree(data):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    y, (_, scale) = data["pair"]
    numpyro.sample("y", dist.Normal(a * data["x"], scale), obs=y)


@case(Table(Y, np.array([0, 1, 1])), options={"likelihood": "normal"})
def control_flow_on_data(table, *, options):
    with numpyro.plate("groups", int(table.group.max()) + 1):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    if table.x.mean() > 0 and options["likelihood"] == "normal":
        with numpyro.plate("n", len(table.x)) as index:
            numpyro.sample("y", dist.Normal(mu[table.group][index], 1.0), obs=table.x[index])


@case(y=Y, robust=True)
def keyword_only(*, y, robust):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    family = dist.StudentT(3.0, a, 1.0) if robust else dist.Normal(a, 1.0)
    numpyro.sample("y", family, obs=y)


@case(np.array(["b", "a", "b"]), Y)
def strings(names, y):
    _, index = np.unique(names, return_inverse=True)
    a = numpyro.sample("a", dist.Normal(0.0, 1.0).expand([2]))
    numpyro.sample("y", dist.Normal(a[index], 1.0), obs=y)


@case(np.array([1, 0, 1]))
def integers(y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Poisson(jnp.exp(slope)), obs=y)


@case()
def data_in_the_closure():
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a * jnp.arange(3.0), 1.0), obs=Y)
