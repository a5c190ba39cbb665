"""What an estimate cannot see by itself: kinks, needles, edges, other regions, one datum.

Right values: in closed form, by dense sums, or of densities that are normalized by construction.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy.special import gammaln
from scipy.stats import betabinom, nbinom, norm

import volform as vf
from volform.errors import ConvergenceError, ModelError
from volform.inference import Automatic
from volform.results import Level

KEY = jax.random.key(0)


# --- Modes that are known, or could be


@pytest.mark.parametrize(
    ("weight", "place", "width"), [(0.05, 15.0, 0.1), (0.02, 8.0, 0.03), (0.002, 8.0, 0.003)]
)
def test_quadrature_is_fine_enough_for_every_mode(
    weight: float, place: float, width: float
) -> None:
    def model(weight: Any, place: Any, width: Any) -> None:
        x = numpyro.sample("x", dist.Normal(0.0, 20.0))
        broad = jnp.log(1.0 - weight) + dist.Normal(0.0, 1.0).log_prob(x)
        narrow = jnp.log(weight) + dist.Normal(place, width).log_prob(x)
        both = jnp.logaddexp(broad, narrow)
        numpyro.factor("mixture", both - dist.Normal(0.0, 20.0).log_prob(x))

    found = vf.evidence(vf.condition(model, weight, place, width), by=vf.Quadrature())
    assert found.trust.level is Level.GOOD
    assert abs(float(found.log_z)) < 1e-9


def test_a_needle_too_fine_for_nodes_is_said() -> None:
    def normal(place: float, width: float) -> Any:
        return dist.Normal(jnp.full(2, place), width).to_event(1)

    def model() -> None:
        x = numpyro.sample("x", normal(0.0, 20.0))
        broad, narrow = normal(0.0, 1.0).log_prob(x), normal(8.0, 1e-3).log_prob(x)
        both = jnp.logaddexp(math.log(0.9) + broad, math.log(0.1) + narrow)
        numpyro.factor("mixture", both - normal(0.0, 20.0).log_prob(x))

    found = vf.evidence(vf.condition(model), by=vf.Quadrature(nodes=200_000))
    assert found.trust.level is not Level.GOOD
    assert "nodes are sparse at another mode" in found.trust.reason


@pytest.mark.parametrize("d", [2, 5])
@pytest.mark.parametrize("spelling", ["logaddexp", "logsumexp"])
def test_summands_are_searched_in_both_spellings(spelling: str, d: int) -> None:
    def normal(place: float, width: float) -> Any:
        return dist.Normal(jnp.full(d, place), width).to_event(1)

    def model() -> None:
        x = numpyro.sample("x", normal(0.0, 10.0))
        parts = [normal(0.0, 1.0).log_prob(x), normal(15.0, 0.2).log_prob(x)]
        both = (
            jnp.logaddexp(*parts) if spelling == "logaddexp" else jax.nn.logsumexp(jnp.stack(parts))
        )
        numpyro.factor("mixture", both - math.log(2.0) - normal(0.0, 10.0).log_prob(x))

    found = vf.evidence(vf.condition(model), by=vf.Importance())
    assert found.trust.level is Level.GOOD
    assert abs(float(found.log_z)) < 3.0 * float(found.error)


@pytest.mark.parametrize("d", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("spelling", ["weights", "sum in a sum", "mixture in a mixture"])
def test_summands_of_other_spellings_are_searched(spelling: str, d: int) -> None:
    """Weights inside logsumexp, and a needle that is a summand of a summand."""

    def normal(place: float, width: float) -> Any:
        return dist.Normal(jnp.full(d, place), width).to_event(1)

    places = [(0.0, 1.0), (-9.0, 2.0), (15.0, 0.1)]
    weights = jnp.array([0.3, 0.2, 0.5])

    def model() -> None:
        x = numpyro.sample("x", normal(0.0, 10.0))
        a, b, c = (normal(*place).log_prob(x) for place in places)
        if spelling == "weights":
            found = jax.nn.logsumexp(jnp.stack([a, b, c]), b=weights)
        elif spelling == "sum in a sum":
            a, b, c = jnp.stack([a, b, c]) + jnp.log(weights)
            found = jnp.logaddexp(jnp.logaddexp(c, b), a)
        else:
            inner = jax.nn.logsumexp(jnp.stack([b, c]) + jnp.log(weights[1:]))
            found = jax.nn.logsumexp(jnp.stack([a + jnp.log(0.3), inner]))
        numpyro.factor("mixture", found - normal(0.0, 10.0).log_prob(x))

    found = vf.evidence(vf.condition(model), by=vf.Importance())
    assert found.trust.level is Level.GOOD
    assert abs(float(found.log_z)) < 3.0 * float(found.error)


@pytest.mark.parametrize("d", [6, pytest.param(8, marks=pytest.mark.slow)])
def test_modes_that_no_start_found_are_in_the_error(d: int) -> None:
    """Signs of each coordinate are free, but no two elements of the data are equal."""
    y = 3.0 + np.linspace(0.0, 1.0, d)

    def model(y: Any) -> None:
        x = numpyro.sample("x", dist.Normal(jnp.zeros(d), jnp.linspace(1.0, 1.5, d)).to_event(1))
        numpyro.sample("y", dist.Normal(x**2 + 0.1 * x, 0.5).to_event(1), obs=y)

    t = np.linspace(-12.0, 12.0, 100_001)
    exact = 0.0
    for scale, datum in zip(np.linspace(1.0, 1.5, d), y, strict=True):
        density = norm.pdf(t, 0.0, scale) * norm.pdf(datum, t**2 + 0.1 * t, 0.5)
        exact += math.log(np.trapezoid(density, t))
    found = vf.evidence(vf.condition(model, jnp.asarray(y)), by=vf.Importance())
    off = abs(float(found.log_z) - exact)
    assert off < 3.0 * float(found.error), found
    assert found.trust.level is not Level.GOOD or off < 0.05, found


@pytest.mark.parametrize("scale", [-9.0, pytest.param(-14.0, marks=pytest.mark.slow)])
def test_tempering_reaches_every_known_mode_or_says_so(scale: float) -> None:
    """A mode at a small scale with 90 % of the mass, where no draw of the prior comes."""

    def model() -> None:
        s = numpyro.sample("s", dist.HalfNormal(1.0))
        tiny = math.log(0.9) + dist.LogNormal(scale, 0.05).log_prob(s)
        plain = math.log(0.1) + dist.LogNormal(-1.0, 0.5).log_prob(s)
        both = jnp.logaddexp(tiny, plain)
        numpyro.factor("likelihood", both - dist.HalfNormal(1.0).log_prob(s))

    posterior = vf.condition(model)
    alone = vf.evidence(posterior, by=vf.Tempered())
    assert "if no region of less than" in alone.trust.reason
    found = vf.evidence(posterior)
    off = abs(float(found.log_z))
    assert off < 3.0 * float(found.error) or found.trust.level is Level.POOR, found
    assert off < 0.05


# --- Edges


@pytest.mark.parametrize("by", [vf.Quadrature(nodes=50_000), vf.Bridge(draws=1000, warmup=300)])
@pytest.mark.standard_promotion
def test_mass_that_an_edge_swallows_is_said(by: Any) -> None:
    def model(a: Any) -> None:
        numpyro.sample("x", dist.Beta(a, a))

    found = vf.evidence(vf.condition(model, 0.05), by=by)
    assert found.trust.level is not Level.GOOD
    assert "so near to an edge of x that numbers do not tell it from the edge" in found.trust.reason


def test_an_edge_at_zero_keeps_its_digits() -> None:
    def model(a: Any) -> None:
        numpyro.sample("x", dist.Gamma(a, 1.0))

    found = vf.evidence(vf.condition(model, 0.05), by=vf.Quadrature())
    assert found.trust.level is Level.GOOD
    assert abs(float(found.log_z)) < 1e-9


@pytest.mark.standard_promotion
@pytest.mark.parametrize("name", ["ends", "spike", "box"])
def test_tempering_keeps_what_lies_at_an_edge_or_is_rare(name: str) -> None:
    def ends(y: Any) -> None:
        p = numpyro.sample("p", dist.Beta(0.01, 0.01))
        numpyro.sample("y", dist.Binomial(20, p), obs=y)

    def spike(y: Any) -> None:
        rate = numpyro.sample("rate", dist.Gamma(0.01, 0.01))
        numpyro.sample("y", dist.Poisson(rate), obs=y)

    def box(y: Any) -> None:
        x = numpyro.sample("x", dist.Uniform(jnp.zeros(5), 1.0).to_event(1))
        numpyro.factor("box", jnp.where((jnp.abs(x - 0.5) < 0.1).all(), y * x[0], -jnp.inf))

    inside = math.log((math.exp(0.6) - math.exp(0.4)) * 0.2**4)
    model, y, exact = {
        "ends": (ends, 20.0, betabinom.logpmf(20, 20, 0.01, 0.01)),
        "spike": (spike, 0.0, nbinom.logpmf(0, 0.01, 0.01 / 1.01)),
        "box": (box, 1.0, inside),
    }[name]
    found = vf.evidence(vf.condition(model, jnp.asarray(y)), by=vf.Tempered())
    assert abs(float(found.log_z) - exact) < 3.0 * float(found.error), found


@pytest.mark.float32
def test_quadrature_ends_where_rounding_begins() -> None:
    def model(y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = jnp.asarray(np.random.default_rng(0).normal(size=5000), jnp.float32)
    found = vf.evidence(vf.condition(model, y), by=vf.Quadrature())
    assert found.cost.densities < 10_000
    assert float(found.error) > 1e-3  # of which log Z = -7,000 has no more digits


# --- Tempering, which starts from no mode


def shell(d: int) -> Callable[[], None]:
    """A Gaussian shell of radius 2 and width .1 in a box (Feroz, Hobson & Bridges 2009)."""

    def model() -> None:
        x = numpyro.sample("x", dist.Uniform(-6.0, 6.0).expand([d]).to_event(1))
        numpyro.factor("shell", dist.Normal(2.0, 0.1).log_prob(jnp.linalg.norm(x)))

    return model


def box() -> None:
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    numpyro.factor("box", jnp.where(jnp.all(jnp.abs(x) < 0.5), 0.0, -jnp.inf))


def direction() -> None:
    x = numpyro.sample("x", dist.Uniform(-jnp.pi, jnp.pi))
    numpyro.sample("y", dist.VonMises(x, 20.0), obs=3.1)


def log_area(d: int, radius: float) -> float:
    return (
        math.log(2.0) + 0.5 * d * math.log(math.pi) - gammaln(0.5 * d) + (d - 1) * math.log(radius)
    )


GRID = np.linspace(0.5, 4.0, 40_001)
SHELL = np.exp(-0.5 * ((GRID - 2.0) / 0.1) ** 2) / (0.1 * math.sqrt(2.0 * math.pi))
WITHOUT_MODES: dict[str, tuple[Callable[[], None], float]] = {
    f"shell in {d}-D": (
        shell(d),
        math.log(np.trapezoid(SHELL * np.exp([log_area(d, r) for r in GRID]), GRID))
        - d * math.log(12.0),
    )
    for d in (2, 5)
}
WITHOUT_MODES["box"] = box, 3.0 * math.log(math.erf(0.5 / math.sqrt(2.0)))
WITHOUT_MODES["direction"] = direction, -math.log(2.0 * math.pi)


@pytest.mark.parametrize("name", WITHOUT_MODES)
def test_tempering_needs_no_mode(name: str) -> None:
    model, exact = WITHOUT_MODES[name]
    posterior = vf.condition(model)
    for seed in range(2):
        found = vf.evidence(posterior, by=vf.Tempered(), key=jax.random.key(seed))
        assert found.trust.level in {Level.GOOD, Level.FAIR}, found
        assert abs(float(found.log_z) - exact) < 3.0 * float(found.error), found
    assert "of the prior's mass matters" in str(found.trust)


def test_tempering_moves_by_trajectories_in_many_dimensions() -> None:
    def model(y: Any) -> None:
        x = numpyro.sample("x", dist.Normal(jnp.zeros(30), 1.0).to_event(1))
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    y = np.linspace(-1.0, 1.0, 30)
    exact = np.sum(-0.5 * y**2 / 1.25 - 0.5 * math.log(2.0 * math.pi * 1.25))
    found = vf.evidence(vf.condition(model, y), by=vf.Tempered())
    assert abs(float(found.log_z) - exact) < 3.0 * float(found.error)
    assert found.trust.level is Level.GOOD
    assert found.cost.gradients > found.cost.densities
    assert any("Hamiltonian" in str(regime) for regime in found.regimes)


def test_tempering_refuses_what_it_cannot_begin_with() -> None:
    def improper() -> None:
        x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=0.5)

    posterior = vf.condition(improper)
    with pytest.raises(ModelError, match=r"Tempered.*begins with draws.*\['x'\]"):
        vf.evidence(posterior, by=vf.Tempered(), allow_improper=True)

    def impossible() -> None:
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("never", jnp.where(x > 100.0, 0.0, -jnp.inf))

    with pytest.raises(ConvergenceError, match="None of 100,000 draws from the prior has"):
        vf.evidence(vf.condition(impossible), by=vf.Tempered())
    with pytest.raises(ModelError, match="`runs` of Tempered is 1"):
        vf.Tempered(runs=1)
    with pytest.raises(ModelError, match=r"`particles` of Tempered is 1,500; .* multiple of"):
        vf.Tempered(particles=1500)
    with pytest.raises(ModelError, match=r"call it, `vf.Tempered\(\)`"):
        vf.evidence(posterior, by=vf.Tempered)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ModelError, match="`particles`"):
        vf.Tempered(particles=2.5)  # pyright: ignore[reportArgumentType]


def test_a_prior_alone_has_an_evidence_of_one_and_is_said() -> None:
    def model(y: Any = None) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    found = vf.evidence(vf.condition(model), by=vf.Tempered())
    assert abs(float(found.log_z)) < 1e-12
    assert "nothing is observed" in found.note
    assert "nothing is observed" not in vf.evidence(vf.condition(model, 0.3)).note


@pytest.mark.slow
@pytest.mark.standard_promotion
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_biased_draws_come_after_others(seed: int) -> None:
    """Separated data under Cauchy priors: importance sampling is low by two of its errors."""
    x = np.array([-2.0, -1.5, -0.7, -0.2, 0.3, 0.9, 1.2, 2.0])

    def model(x: Any, y: Any) -> None:
        a = numpyro.sample("a", dist.Cauchy(0.0, 10.0))
        b = numpyro.sample("b", dist.Cauchy(0.0, 2.5))
        numpyro.sample("y", dist.Bernoulli(logits=a + b * x), obs=y)

    posterior = vf.condition(vf.attach(model, vf.JointFisher()), x, (x > 0.0).astype(int))
    found = vf.evidence(posterior, by=Automatic(), key=jax.random.key(seed))
    # On a grid of 1,500 x 1,500 quantiles of the prior.
    assert abs(float(found.log_z) + 3.1341) < 3.0 * float(found.error)
    assert "importance" not in found.method


@pytest.mark.standard_promotion
@pytest.mark.parametrize("d", [1, pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_plateau_under_a_bounded_prior_has_an_evidence(d: int) -> None:
    def model(side: Any) -> None:
        x = numpyro.sample("x", dist.Uniform(jnp.zeros(d), 1.0).to_event(1))
        numpyro.factor("inside", jnp.where((x < side).all(), 0.0, -jnp.inf))

    found = vf.evidence(vf.condition(model, 0.3))
    off = abs(float(found.log_z) - d * math.log(0.3))
    assert off < 3.0 * float(found.error), found
    with pytest.raises(ConvergenceError, match=r"(mode|density above zero)"):
        vf.evidence(vf.condition(model, 0.3), by=vf.Importance())


# --- Leave-one-out of what cannot be left out


def test_loo_counts_its_data() -> None:
    y = np.array([1.2, 0.3, -0.4, 2.2, 0.9])

    def each(y: Any) -> None:
        a = numpyro.sample("a", dist.Normal(0.0, 2.0))
        with numpyro.plate("n", 5):
            numpyro.sample("y", dist.Normal(a, 1.0), obs=y)

    def event(y: Any) -> None:
        a = numpyro.sample("a", dist.Normal(0.0, 2.0))
        numpyro.sample("y", dist.Normal(a, 1.0).expand([5]).to_event(1), obs=y)

    def pairs(y: Any) -> None:
        a = numpyro.sample("a", dist.Normal(0.0, 2.0))
        numpyro.sample("y", dist.Normal(a, 1.0).expand([2, 5]).to_event(1), obs=jnp.stack([y, y]))

    table = vf.compare({m.__name__: vf.condition(m, y) for m in (each, event)})
    covariance = 4.0 + np.eye(5)
    inverse = np.linalg.inv(covariance)
    variance = 1.0 / np.diagonal(inverse)
    exact = np.sum(-0.5 * ((inverse @ y) ** 2 * variance + np.log(2.0 * np.pi * variance)))
    loo = table["each"].loo
    assert loo is not None
    assert loo.data == 5
    assert_allclose(loo.elpd, exact, atol=0.1)
    assert table["event"].loo is None
    assert any("event has no LOO: `y` is one datum" in text for text in table.cautions)
    models = {m.__name__: vf.condition(m, y) for m in (each, pairs)}
    with pytest.warns(vf.errors.TrustWarning, match="different data"):
        table = vf.compare(models, by=vf.Laplace())
    assert any("LOO is of different numbers of data" in text for text in table.cautions)


def test_an_element_of_an_event_outside_the_support_is_named() -> None:
    def model(y: Any) -> None:
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        numpyro.sample("y", dist.Poisson(rate).expand([5]).to_event(1), obs=y)

    with pytest.raises(vf.errors.DataError, match=r"Poisson on .* first at index \(2,\)"):
        vf.condition(model, jnp.array([1, 2, -1, 3, 0]))


def test_arguments_that_do_not_fit_are_told_the_signature() -> None:
    def model(x: Any, y: Any = None) -> None:
        a = numpyro.sample("a", dist.Normal(0.0, 2.0))
        numpyro.sample("y", dist.Normal(a * x, 1.0), obs=y)

    with pytest.raises(vf.errors.DataError, match=r"It takes \(x: .*, y: "):
        vf.condition(model, np.ones(3), Y=np.ones(3))
    with pytest.raises(vf.errors.DataError, match=r"Pass arrays, `jnp.asarray\(...\)`, in place"):
        vf.condition(lambda x: model(x + 1.0, x), [1.0, 2.0])
