"""What estimators and draws that cannot be used are met with."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import volform as vf
from volform.errors import ConvergenceError, DataError, ModelError

KEY = jax.random.key(0)
Y = jnp.array([0.4, 1.3, -0.2, 0.8, 1.1])


def scale(y: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    sigma = numpyro.sample("sigma", dist.Gamma(2.0, 2.0))
    numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def wide(y: Any) -> None:
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    numpyro.sample("y", dist.Normal(jnp.sum(x), 1.0), obs=y)


@pytest.fixture(scope="module")
def fit() -> vf.inference.MAP:
    return vf.find_map(vf.condition(scale, Y), key=KEY, starts=2)


def draws(chains: int = 4, each: int = 100) -> dict[str, Any]:
    """Draws that look like those of `scale`."""
    one, other = jax.random.split(KEY)
    mu = 0.6 + 0.3 * jax.random.normal(one, (chains, each))
    return {"mu": mu, "sigma": 0.6 + 0.05 * jax.random.normal(other, (chains, each))}


def bridged(fit: vf.inference.MAP, samples: Any) -> vf.results.Evidence:
    return vf.evidence(fit, by=vf.Bridge(samples=samples))


# --- Estimators


@pytest.mark.parametrize("by", ["bridge", vf.Bridge, 3], ids=repr)
def test_no_estimator(fit: vf.inference.MAP, by: Any) -> None:
    with pytest.raises(ModelError, match=r"`by` should be an estimator such as `vf.Laplace\(\)`"):
        vf.evidence(fit, by=by)


@pytest.mark.parametrize("target", [scale, None, 3.0], ids=["function", "None", "float"])
def test_no_target(target: Any) -> None:
    with pytest.raises(ModelError, match=r"`target` should be a Posterior from `vf.condition`"):
        vf.evidence(target)


def test_quadrature_in_many_dimensions() -> None:
    with pytest.raises(ModelError, match=r"at most 3 parameters.*has 4; use `vf.Importance\(\)`"):
        vf.evidence(vf.condition(wide, Y), by=vf.Quadrature())


@pytest.mark.parametrize("count", [0, -2, 2.0, "two"])
def test_number_of_equivalent_modes(fit: vf.inference.MAP, count: Any) -> None:
    with pytest.raises(ModelError, match=r"`equivalent_modes` in the call is .* positive integer"):
        vf.evidence(fit, equivalent_modes=count)


def test_declared_number_of_equivalent_modes() -> None:
    def model(y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0), infer={"equivalent_modes": 0})
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ModelError, match=r"`equivalent_modes` in `infer` of the site `mu` is 0"):
        vf.evidence(vf.condition(model, Y))


def test_options_of_importance() -> None:
    with pytest.raises(ModelError, match=r"`draws` of Importance is 50: too few.*at least 100"):
        vf.Importance(draws=50)
    with pytest.raises(ModelError, match=r"`df` of Importance is 0.0; it should be positive"):
        vf.Importance(df=0.0)


@pytest.mark.parametrize(
    "options", [{"repeats": 0}, {"chains": 0}, {"draws": 2.5}, {"warmup": True}]
)
def test_options_of_bridge(options: dict[str, int]) -> None:
    with pytest.raises(
        ModelError, match=r"of Bridge is .*; it should be a whole number of at least one"
    ):
        vf.Bridge(**options)


def test_improper_prior() -> None:
    def model(y: Any) -> None:
        mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    posterior = vf.condition(model, Y)
    with pytest.raises(ModelError, match=r"prior of `mu` is improper.*`allow_improper=True`"):
        vf.evidence(posterior)
    with pytest.raises(ModelError, match="prior of `mu` is improper"):
        _ = vf.laplace(posterior).evidence
    found = vf.evidence(posterior, by=vf.Laplace(), allow_improper=True)
    assert "formal integral: the prior of mu is improper" in found.note


def no_mode() -> None:
    numpyro.sample("x", dist.Exponential(1.0))


@pytest.mark.parametrize("by", [vf.Laplace(), vf.Importance()], ids=repr)
def test_no_mode(by: Any) -> None:
    with pytest.raises(ConvergenceError, match="is no strict mode"):
        vf.evidence(vf.condition(no_mode), by=by)


def test_quadrature_needs_no_mode() -> None:
    found = vf.evidence(vf.condition(no_mode), by=vf.Quadrature())
    assert abs(float(found.log_z)) < 1e-8
    assert found.trust.level.value == "good"


# --- Draws


def test_too_few_draws(fit: vf.inference.MAP) -> None:
    with pytest.raises(DataError, match=r"has 40 draws.*It needs at least 48, and 8 in each"):
        bridged(fit, draws(4, 10))
    with pytest.raises(DataError, match=r"has 200 draws .* 8 in each chain"):
        bridged(fit, draws(50, 4))
    with pytest.raises(DataError, match="has 20 draws"):
        vf.evidence(fit, by=vf.Bridge(draws=20, warmup=10))


def test_draws_of_other_sites(fit: vf.inference.MAP) -> None:
    renamed = {"mu": draws()["mu"], "tau": draws()["sigma"]}
    with pytest.raises(DataError, match=r"no draws of the sites \['sigma'\].*\['mu', 'tau'\]"):
        bridged(fit, renamed)


def test_draws_of_other_shapes(fit: vf.inference.MAP) -> None:
    vectors = draws() | {"mu": jnp.zeros((4, 100, 3))}
    with pytest.raises(DataError, match=r"`mu` have shape \(4, 100, 3\).*another model"):
        bridged(fit, vectors)


def test_draws_without_chains(fit: vf.inference.MAP) -> None:
    flat = {name: values.reshape(-1) for name, values in draws().items()}
    with pytest.raises(DataError, match=r"have shape \(400,\).*\(chains, draws\)"):
        bridged(fit, flat)


def test_draws_of_unequal_length(fit: vf.inference.MAP) -> None:
    unequal = draws() | {"mu": jnp.zeros((4, 90))}
    with pytest.raises(DataError, match=r"`samples` .* of different numbers of chains or draws"):
        bridged(fit, unequal)


@pytest.mark.parametrize("bad", [-0.5, np.nan])
def test_draws_outside_the_support(fit: vf.inference.MAP, bad: float) -> None:
    samples = draws()
    samples["sigma"] = samples["sigma"].at[2, 17].set(bad)
    with pytest.raises(DataError, match="NaN or outside the support of their sites"):
        bridged(fit, samples)


@pytest.mark.parametrize("samples", [3, [1.0, 2.0], {"mu": [[0.1, 0.2]]}, {}], ids=repr)
def test_no_draws(fit: vf.inference.MAP, samples: Any) -> None:
    with pytest.raises(DataError, match=r"`samples` (should be a NumPyro MCMC|has no draws)"):
        bridged(fit, samples)


def test_draws_that_do_not_move(fit: vf.inference.MAP) -> None:
    still = {"mu": jnp.full((4, 100), 0.5), "sigma": jnp.full((4, 100), 0.6)}
    with pytest.raises(DataError, match="`samples` do not vary"):
        bridged(fit, still)


def test_chains_that_did_not_mix(fit: vf.inference.MAP) -> None:
    apart = draws(2, 200)
    apart["mu"] = apart["mu"] + jnp.array([[0.0], [6.0]])
    found = bridged(fit, apart)
    assert found.trust.level.value == "poor"
    assert found.trust.reason.startswith("chains have not mixed: R-hat ")
    assert found.trust.reason.endswith("of mu")


@pytest.mark.standard_promotion
def test_one_chain_cannot_show_that_it_mixed(fit: vf.inference.MAP) -> None:
    found = vf.evidence(fit, by=vf.Bridge(draws=400, chains=1, warmup=200))
    assert found.trust.level.value != "good"
    assert "one chain cannot show whether it mixes" in found.trust.reason
