"""Groups of the ArviZ object: of chains of NumPyro, the prior, and of compared models."""

from typing import Any

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from numpyro.infer import MCMC, NUTS

import volform as vf
from volform.errors import DataError, ModelError

NAMES = ["Uppsala", "Lund", "Visby"]
Y = pd.Series([2.0, -1.0, 0.5], index=pd.Index(NAMES, name="town"))


def towns(sigma: Any, y: Any = None) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    with numpyro.plate("row", 3):
        theta = numpyro.sample("theta", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


@pytest.fixture(scope="module")
def posterior() -> Any:
    return vf.condition(towns, 1.5, y=Y)


@pytest.fixture(scope="module")
def mcmc() -> MCMC:
    sizes: Any = {"num_warmup": 50, "num_samples": 40, "num_chains": 2}
    found = MCMC(NUTS(towns), chain_method="sequential", progress_bar=False, **sizes)
    found.run(jax.random.key(0), 1.5, y=Y.to_numpy())  # NumPyro takes no pandas
    return found


def test_chains_with_their_posterior(mcmc: MCMC, posterior: Any) -> None:
    data = vf.to_arviz(mcmc, posterior=posterior, predictive=True)
    theta = data["posterior"]["theta"]
    assert theta.dims == ("chain", "draw", "town")
    assert theta.coords["town"].values.tolist() == NAMES
    assert_allclose(theta.values, mcmc.get_samples(group_by_chain=True)["theta"])
    assert data["sample_stats"]["diverging"].shape == (2, 40)
    assert data["posterior_predictive"]["y"].dims == ("chain", "draw", "town")
    assert np.ravel(data["constant_data"]["sigma"]).tolist() == [1.5]
    # log p(y | theta) and the log joint density, in closed form.
    chains = {name: np.asarray(data["posterior"][name]) for name in ("mu", "theta")}
    likelihood = dist.Normal(chains["theta"], 1.5).log_prob(Y.to_numpy())
    assert_allclose(data["log_likelihood"]["y"].values, likelihood)
    prior = dist.Normal(chains["mu"][..., None], 1.0).log_prob(chains["theta"])
    joint = (likelihood + prior).sum(-1) + dist.Normal(0.0, 5.0).log_prob(chains["mu"])
    assert_allclose(data["sample_stats"]["lp"].values, joint)
    assert f"theta[{NAMES[1]}]" in list(arviz.summary(data).index)


def test_chains_alone_have_plates_and_a_likelihood(mcmc: MCMC) -> None:
    data = vf.to_arviz(mcmc)
    assert data["posterior"]["theta"].dims == ("chain", "draw", "row")
    assert data["log_likelihood"]["y"].shape == (2, 40, 3)  # ArviZ 1.x leaves it out by default


def test_draws_by_site(mcmc: MCMC, posterior: Any) -> None:
    draws = mcmc.get_samples()
    data = vf.to_arviz(draws, posterior=posterior)
    assert data["posterior"]["mu"].shape == (1, 80)
    assert_allclose(data["posterior"]["mu"].values[0], draws["mu"])


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"predictive": True}, ModelError, "`predictive` and `prior` of to_arviz need the model"),
        ({"prior": True}, ModelError, r"give `posterior=vf.condition\(model, ...\)`"),
        ({"posterior": "model"}, ModelError, "`posterior` of to_arviz should be the result of"),
    ],
)
def test_what_chains_alone_do_not_know(mcmc: MCMC, given: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        vf.to_arviz(mcmc, **given)


def test_draws_of_another_model(mcmc: MCMC) -> None:
    def other(y: Any) -> None:
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    with pytest.raises(ModelError, match="should hold draws, on a first axis"):
        vf.to_arviz(mcmc, posterior=vf.condition(other, jnp.ones(2)))


def test_the_prior_is_drawn(posterior: Any) -> None:
    """Deviations 5 of mu, and root of 25 + 1 + 2.25 of data."""
    data = vf.to_arviz(vf.laplace(posterior), draws=4000, prior=True)
    assert_allclose(data["prior"]["mu"].std(), 5.0, rtol=0.05)
    assert data["prior"]["theta"].dims == ("chain", "draw", "town")
    again = data["prior_predictive"]["y"]
    assert again.shape == (1, 4000, 3)
    assert_allclose(np.std(again.values, axis=(0, 1)), np.sqrt(28.25), rtol=0.05)


def test_no_draws_of_an_improper_prior() -> None:
    def model(y: Any) -> None:
        mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    approx = vf.laplace(vf.condition(model, jnp.array([0.5, 1.5])))
    with pytest.raises(ModelError, match="`prior` of to_arviz is improper at `mu`"):
        vf.to_arviz(approx, prior=True)


def test_k_hat_of_weighted_draws(posterior: Any) -> None:
    found = vf.evidence(posterior, by=vf.Importance())
    data = vf.to_arviz(found)
    assert data["sample_stats"].attrs["k_hat"] == found.draws.k_hat


def test_compared_models_go_into_arvizs_comparison(posterior: Any) -> None:
    wide = vf.condition(towns, 3.0, y=Y)
    models = {"right": vf.evidence(posterior, by=vf.Importance()), "wide": vf.laplace(wide)}
    table = vf.compare(models, loo=False)
    data = vf.to_arviz(table, draws=200)
    assert list(data) == [row.name for row in table.rows]
    assert data["wide"]["posterior"]["theta"].dims == ("chain", "draw", "town")
    with pytest.raises(ModelError, match="The model 'closed' of this comparison has an evidence"):
        vf.to_arviz(vf.compare({"closed": vf.laplace(wide).evidence}))


@pytest.mark.filterwarnings("ignore")  # of high k-hat, and of pandas in ArviZ
def test_arvizs_comparison(posterior: Any) -> None:
    table = vf.compare({"a": vf.laplace(posterior), "b": posterior}, by=vf.Laplace(), loo=False)
    found: Any = arviz.compare(vf.to_arviz(table, draws=200))
    assert set(found.index) == {"a", "b"}


def test_text_is_no_data() -> None:
    text = pd.Series(["a", "b", "a"])

    def line(x: Any, y: Any) -> None:
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    with pytest.raises(DataError, match=r"no numbers: give codes, `pd.factorize\(x\)\[0\]`"):
        vf.condition(line, text, Y)


def test_values_of_nan_have_no_density(posterior: Any) -> None:
    with pytest.raises(DataError, match=r"`values` of \['mu'\] hold NaN"):
        vf.laplace(posterior).log_prob({"mu": np.nan, "theta": np.zeros(3)})
