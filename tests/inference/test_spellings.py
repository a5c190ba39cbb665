"""One model, one metric, every spelling: mode, q^G, evidence, `c` and spectrum are the same.

`LAWS` holds the models, each with its data, metrics and the values that every spelling has;
`SPELLINGS` other programs for them: NumPyro's reparametrizations, and priors written by hand in
other coordinates. `Scalars` lists what has to agree, to 1e-8. Random models in random charts are
the rest, in `spellings.py`. That log q^G agrees at any point, over all of NumPyro's strategies, is
in `tests/models/test_strategies.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import Phase, given, settings, strategies as st
from numpy.testing import assert_allclose
from numpyro import handlers
from numpyro.distributions import constraints, transforms
from numpyro.infer.reparam import (
    ExplicitReparam,
    HaarReparam,
    LocScaleReparam,
    TransformReparam,
)
from scipy.special import logsumexp

import volform as vf
from volform.geometry import DiagonalField

from .spellings import (
    in_positive_theta,
    in_psi,
    in_psi_for_positive_theta,
    in_theta,
    random_metric,
    random_problem,
)


@dataclass(frozen=True, eq=False)
class Law:
    """A model, the values that all of its spellings have, its data, and metrics on the values."""

    model: Callable
    values: tuple[str, ...]
    data: Callable[[], tuple]
    metrics: tuple[Any, ...] = ({},)
    first: tuple[float, ...] = ()  # numbers of this spelling, before the data


# --- The scalars


class Scalars(eqx.Module):
    """The invariants of a model with a metric, and u at the mode, which is none."""

    values: dict[str, Any]
    log_density: float
    log_z: Any
    log_z_second_order: Any
    correction: Any
    eigenvalues: Any
    u: Any


def scalars_of(model: Callable, values: tuple[str, ...], *data: Any) -> Scalars:
    """Everything about `model`, with its metrics attached, at its mode."""
    posterior = vf.condition(model, *data)
    fit = vf.find_map(posterior, key=jax.random.key(0), starts=1)
    assert fit.converged
    assert fit.gradient_norm < 1e-8
    # Several of the models are densities in `numpyro.factor` over a flat prior.
    evidence = vf.laplace(fit, allow_improper=True).evidence
    return Scalars(
        {name: np.asarray(v) for name, v in posterior.values(fit.at.u, values).items()},
        fit.log_density,
        evidence.log_z,
        evidence.log_z_second_order,
        evidence.correction,
        np.asarray(fit.eigenvalues),
        np.asarray(fit.at.u),
    )


def require_same(a: Scalars, b: Scalars, rtol: float = 1e-8) -> None:
    """The scalars agree, and the spellings are different ones: u at the mode does not."""
    for name, value in a.values.items():
        largest = np.abs(value).max()
        assert_allclose(b.values[name], value, rtol=rtol, atol=rtol * largest, err_msg=name)
    assert_allclose(b.log_density, a.log_density, rtol=rtol)
    assert_allclose(b.log_z, a.log_z, rtol=rtol)
    assert_allclose(b.log_z_second_order, a.log_z_second_order, rtol=rtol)
    assert_allclose(b.correction, a.correction, rtol=rtol, atol=rtol)
    assert_allclose(b.eigenvalues, a.eigenvalues, rtol=rtol)
    for whole in (np.prod, np.sum):  # det and trace of E
        assert_allclose(whole(b.eigenvalues), whole(a.eigenvalues), rtol=rtol)
    assert a.u.shape == b.u.shape
    assert np.abs(a.u - b.u).max() > 1e-3


@cache
def found(law: Law, model: Callable, *first: float) -> list[Scalars]:
    """The scalars of a spelling under each metric of its law; `first` comes before the data."""
    data = (*map(jnp.asarray, first), *law.data())
    return [scalars_of(vf.attach(model, metric), law.values, *data) for metric in law.metrics]


# --- Hierarchical models: scale and location


def groups(y: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    log_tau = [transforms.AffineTransform(0.0, 0.4), transforms.ExpTransform()]
    tau = numpyro.sample("tau", dist.TransformedDistribution(dist.Normal(0.0, 1.0), log_tau))
    with numpyro.plate("group", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


GROUPS = Law(groups, ("mu", "tau", "theta"), lambda: (jnp.array([0.9, -0.3, 2.1]),))
UNITS: dict = {"theta": LocScaleReparam(centered=0.2), "tau": TransformReparam()}

# --- Regression


def logistic(x: Any, y: Any) -> None:
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(4), 2.0).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


def _twenty() -> tuple:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(20, 4)) + 0.5)
    return x, jnp.asarray(rng.integers(0, 2, 20))


# The likelihood's metric belongs to no spelling.
LOGISTIC = Law(logistic, ("beta",), _twenty, (vf.LikelihoodFisher(),))

# --- Embedded supports


def proportions(counts: Any) -> None:
    p = numpyro.sample("p", dist.Dirichlet(jnp.array([2.0, 1.5, 1.0, 3.0])))
    numpyro.sample("counts", dist.Multinomial(30, p), obs=counts)


def proportions_by_sticks(counts: Any) -> None:
    """The same law: each stick breaks off a Beta-distributed share of what is left."""
    concentration = jnp.array([2.0, 1.5, 1.0, 3.0])
    rest = jnp.cumsum(concentration[::-1])[::-1]
    with numpyro.plate("stick", 3):
        v = numpyro.sample("v", dist.Beta(concentration[:-1], rest[1:]))
    left = jnp.concatenate([jnp.ones(1), jnp.cumprod(1.0 - v)])
    p = numpyro.deterministic("p", left * jnp.concatenate([v, jnp.ones(1)]))
    numpyro.sample("counts", dist.Multinomial(30, p), obs=counts)


# The simplex as it lies in R^4.
PROPORTIONS = Law(
    proportions, ("p",), lambda: (jnp.array([9, 4, 5, 12]),), ({"p": vf.Euclidean()},)
)


def _loadings(tril: Any, x: Any, y: Any) -> None:
    numpyro.sample("y", dist.Normal(x @ tril.T, 0.5), obs=y)


def loadings(x: Any, y: Any) -> None:
    _loadings(numpyro.sample("tril", dist.LKJCholesky(3, 2.0)), x, y)


def loadings_by_angles(x: Any, y: Any) -> None:
    """The same law, in other coordinates of the partial correlations."""
    a = numpyro.sample("a", dist.ImproperUniform(constraints.real_vector, (), (3,)))
    bent = jnp.sinh(a) + 0.3 * a
    to_tril = transforms.CorrCholeskyTransform()
    tril = numpyro.deterministic("tril", to_tril(bent))
    log_det = to_tril.log_abs_det_jacobian(bent, tril) + jnp.sum(jnp.log(jnp.cosh(a) + 0.3))
    numpyro.factor("prior", dist.LKJCholesky(3, 2.0).log_prob(tril) + log_det)
    _loadings(tril, x, y)


def _correlated() -> tuple:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(8, 3))
    tril = np.linalg.cholesky(np.array([[1.0, 0.6, -0.2], [0.6, 1.0, 0.1], [-0.2, 0.1, 1.0]]))
    y = x @ tril.T + 0.5 * rng.normal(size=(8, 3))
    return jnp.asarray(x), jnp.asarray(y)


# The factors as they lie in R^(3 x 3).
LOADINGS = Law(loadings, ("tril",), _correlated, ({"tril": vf.Euclidean()},))

# --- Mixture


def _mixture(mu: Any, y: Any) -> None:
    weight = numpyro.sample("weight", dist.Beta(3.0, 3.0))
    mixing = dist.Categorical(probs=jnp.stack([weight, 1.0 - weight]))
    with numpyro.plate("datum", len(y)):
        component = dist.Normal(mu, 0.8)
        numpyro.sample("y", dist.MixtureSameFamily(mixing, component), obs=y)


def mixture(y: Any) -> None:
    base = dist.Normal(jnp.array([-1.0, 0.5]), 1.0).to_event(1)
    ordered = dist.TransformedDistribution(base, transforms.OrderedTransform())
    _mixture(numpyro.sample("mu", ordered), y)


def mixture_by_gap(y: Any) -> None:
    """The same law, in the midpoint and the square root of the gap."""
    middle = numpyro.sample("middle", dist.ImproperUniform(constraints.real, (), ()))
    root = numpyro.sample("root", dist.ImproperUniform(constraints.softplus_positive, (), ()))
    gap = root**2
    mu = numpyro.deterministic("mu", jnp.stack([middle - gap / 2.0, middle + gap / 2.0]))
    prior = dist.Normal(-1.0, 1.0).log_prob(mu[0]) + dist.LogNormal(0.5, 1.0).log_prob(gap)
    numpyro.factor("prior", prior + jnp.log(2.0 * root))
    _mixture(mu, y)


def _two_humps() -> tuple:
    rng = np.random.default_rng(2)
    return (jnp.asarray(np.concatenate([rng.normal(-1.5, 0.8, 12), rng.normal(1.5, 0.8, 18)])),)


MIXTURE = Law(mixture, ("mu", "weight"), _two_humps, ({"mu": vf.Euclidean()},))

# --- Cartesian, polar and log-polar coordinates of one weight vector

FLAT = dist.ImproperUniform(dist.constraints.real, (), ())
POSITIVE = dist.ImproperUniform(dist.constraints.positive, (), ())


def _at_polar(problem: Any, r: Any, angle: Any, log_jacobian: Any) -> None:
    theta = r * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    numpyro.deterministic("theta", theta)
    numpyro.factor("density", problem.log_density(theta) + log_jacobian)


def in_polar(problem: Any) -> None:
    r = numpyro.sample("r", POSITIVE)
    _at_polar(problem, r, numpyro.sample("angle", FLAT), jnp.log(r))


def in_log_polar(problem: Any) -> None:
    log_r = numpyro.sample("log_r", FLAT)
    _at_polar(problem, jnp.exp(log_r), numpyro.sample("angle", FLAT), 2.0 * log_r)


WEIGHTS = Law(
    in_theta, ("theta",), lambda: (random_problem(2, 2),), ({"theta": random_metric(2, 5)},)
)

# --- One prior law of a scale, written in many ways


def scale(exponent: Any, y: Any) -> None:
    """sigma, its variance, its precision: the latent value is a power of sigma."""
    power = transforms.PowerTransform(exponent)
    x = numpyro.sample("x", dist.TransformedDistribution(dist.HalfNormal(1.0), power))
    sigma = numpyro.deterministic("sigma", power.inv(x))
    numpyro.sample("y", dist.Normal(0.0, sigma), obs=y)


def scale_as_probability(y: Any) -> None:
    u = numpyro.sample("u", dist.Uniform(0.0, 1.0))
    sigma = numpyro.deterministic("sigma", np.sqrt(2.0) * jax.lax.erf_inv(u))
    numpyro.sample("y", dist.Normal(0.0, sigma), obs=y)


def plain_scale(y: Any) -> None:
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(0.0, sigma), obs=y)


stretched_log = [transforms.ExpTransform().inv, transforms.AffineTransform(1.0, 2.0)]
scale_as_logarithm = handlers.reparam(plain_scale, config={"sigma": ExplicitReparam(stretched_log)})


class Power(eqx.Module):
    """The metric c sigma^p: |d sigma|^2, |d sigma^2|^2, ... by the choice of numbers."""

    factor: Any
    power: Any

    def __call__(self, sigma: Any) -> Any:
        return self.factor * sigma**self.power


POWERS = {
    "|d sigma|^2": (1.0, 0.0),
    "Fisher, 40 |d log sigma|^2": (40.0, -2.0),
    "|d sigma^2|^2": (4.0, 2.0),
    "|d sigma^-2|^2": (4.0, -6.0),
}


@cache
def scale_law(squares: float) -> Law:
    """Under each of `POWERS`, for 20 draws, of which the likelihood knows the squares only."""
    powers = [Power(*map(jnp.asarray, numbers)) for numbers in POWERS.values()]
    metrics = tuple({"sigma": DiagonalField(power)} for power in powers)
    return Law(scale, ("sigma",), lambda: (jnp.full(20, np.sqrt(squares / 20)),), metrics, (1.0,))


SCALE = scale_law(7.4239)

# --- The table


def other(name: str, law: Law, model: Callable, *first: float, marks: Any = ()) -> Any:
    """A row: another spelling of a law, and what comes before the data in it."""
    return pytest.param(law, model, first, id=name, marks=marks)


mixes_dtypes = pytest.mark.standard_promotion
slow = pytest.mark.slow
in_haar = handlers.reparam(logistic, config={"beta": HaarReparam(dim=-1)})
SPELLINGS = [
    other("groups, noncentered", GROUPS, handlers.reparam(groups, config=UNITS), marks=slow),
    other("logistic, Haar", LOGISTIC, in_haar, marks=[slow, mixes_dtypes]),
    other("simplex, sticks", PROPORTIONS, proportions_by_sticks, marks=[slow, mixes_dtypes]),
    other("Cholesky factor, angles", LOADINGS, loadings_by_angles, marks=[slow, mixes_dtypes]),
    other("mixture, gap", MIXTURE, mixture_by_gap, marks=[slow, mixes_dtypes]),
    other("weights, polar", WEIGHTS, in_polar, marks=slow),
    other("weights, log-polar", WEIGHTS, in_log_polar, marks=slow),
    other("scale, variance", SCALE, scale, 2.0, marks=slow),
    other("scale, precision", SCALE, scale, -2.0),
    other("scale, logarithm", SCALE, scale_as_logarithm),
    other("scale, probability", SCALE, scale_as_probability, marks=slow),
]


@pytest.mark.parametrize(("law", "model", "first"), SPELLINGS)
def test_every_scalar_is_the_same(law: Law, model: Callable, first: tuple[float, ...]) -> None:
    native = found(law, law.model, *law.first)
    for one, scalars in zip(native, found(law, model, *first), strict=True):
        require_same(one, scalars)


# --- Random models in random charts

CHARTS = dict.fromkeys(range(1, 9), (in_theta, in_psi))
CHARTS[3] = (in_positive_theta, in_psi_for_positive_theta)
# The others show nothing else, at ten seconds each.
DIMENSIONS = [pytest.param(d, marks=[slow] * (d != 3)) for d in CHARTS]


@pytest.mark.parametrize("d", DIMENSIONS)
@settings(max_examples=3, phases=[Phase.explicit, Phase.generate])  # a seed does not shrink
@given(seed=st.integers(0, 2**31 - 1))
def test_every_scalar_is_the_same_in_a_random_chart(d: int, seed: int) -> None:
    problem, metric = random_problem(d, seed), random_metric(d, seed + 1)
    models = (vf.attach(model, {"theta": metric}) for model in CHARTS[d])
    require_same(*(scalars_of(model, ("theta",), problem) for model in models))


@pytest.mark.parametrize("d", [2])
@settings(max_examples=1, phases=[Phase.explicit, Phase.generate])
@given(seed=st.integers(0, 2**31 - 1))
def test_evidence_by_any_estimator_is_the_same_in_a_random_chart(d: int, seed: int) -> None:
    problem, metric = random_problem(d, seed), random_metric(d, seed + 1)
    for by in (vf.Laplace(), vf.Quadrature()):
        one, other = (
            vf.evidence(
                vf.condition(vf.attach(m, {"theta": metric}), problem), by=by, allow_improper=True
            )
            for m in CHARTS[d]
        )
        assert_allclose(other.log_z, one.log_z, rtol=1e-8)


# --- What the spellings of a scale agree on


def exact_log_z(squares: float) -> float:
    nodes, weights = np.polynomial.legendre.leggauss(200)
    sigma = np.sqrt(squares / 20) * np.exp(3.0 * nodes)
    log_prior = 0.5 * np.log(2.0 / np.pi) - 0.5 * sigma**2
    log_likelihood = -0.5 * squares / sigma**2 - 20 * np.log(np.sqrt(2.0 * np.pi) * sigma)
    return logsumexp(log_prior + log_likelihood + np.log(3.0 * sigma), b=weights)


def test_modes_of_a_scale_belong_to_the_metric() -> None:
    # With NumPyro's AutoDelta they belong to the spelling: these are the modes of sigma in the
    # model written in sigma, log sigma, sigma^2 and sigma^-2.
    modes = [scalars.values["sigma"] for scalars in found(SCALE, scale, 1.0)]
    assert_allclose(modes, [0.6038, 0.6189, 0.5897, 0.6527], atol=6e-5)


# Sum of squares, exact log Z, and under |d sigma|^2 and Fisher: log Z of first and second order.
@pytest.mark.parametrize(
    ("squares", "exact", "euclidean", "fisher"),
    [
        (7.4239, -20.2835, (-20.3262, None), (-20.2901, None)),
        (43.786038, -38.12531, (-38.15437, -38.12533), (-38.12627, -38.12495)),
    ],
)
def test_evidence_of_a_scale(squares: float, exact: float, euclidean: tuple, fisher: tuple) -> None:
    under = found(scale_law(squares), scale, 1.0)
    assert abs(exact_log_z(squares) - exact) < 1e-4
    for scalars, (first, second) in zip(under, (euclidean, fisher), strict=False):
        assert abs(scalars.log_z - first) < 1e-4
        assert second is None or abs(scalars.log_z_second_order - second) < 1e-5
    for scalars in under:
        errors = np.array([scalars.log_z, scalars.log_z_second_order]) - exact_log_z(squares)
        assert abs(errors[1]) < max(0.1 * abs(errors[0]), 5e-4)
