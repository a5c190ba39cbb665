"""Provenance of an evidence: of which data, of what prior, with what held."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro import handlers

import volform as vf
from volform.errors import ModelError, TrustWarning

Y = np.array([0.3, -0.5, 0.9, 0.0])
SOME = np.array([True, False, True, True])


def regression(y: Any, prior: Any = (), data: Any = ()) -> None:
    """A mean with handlers around its prior and its data."""
    with contexts(prior):
        mu = jnp.asarray(numpyro.sample("mu", dist.Normal(0.0, 1.0).expand([2])))
    with contexts(data):
        numpyro.sample("y", dist.Normal(mu[0] + mu[1], 1.0), obs=y)


class contexts:  # noqa: N801 - used like a function
    def __init__(self, handlers: Any):
        self.handlers = handlers

    def __enter__(self) -> None:
        for handler in self.handlers:
            handler.__enter__()

    def __exit__(self, *error: Any) -> None:
        for handler in reversed(self.handlers):
            handler.__exit__(*error)


def posterior_of(y: Any = Y, **around: Any) -> vf.models.Posterior:
    return vf.condition(lambda y: regression(y, **around), y)


def masked(on: Any) -> Any:
    return (handlers.mask(mask=on),)


def scaled(by: Any) -> Any:
    return (handlers.scale(scale=by),)


# --- Priors


IMPROPER = {
    "masked": masked(False),
    "partly masked": masked(jnp.array([True, False])),
    "scaled": scaled(0.5),
    "some scaled": scaled(jnp.array([1.0, 2.0])),
}
PROPER = {
    "plain": (),
    "mask of ones": masked(jnp.array([True, True])),
    "scale of one": scaled(1.0),
    "scales of one": scaled(jnp.ones(2)),
}


@pytest.mark.parametrize("name", IMPROPER)
def test_a_prior_known_up_to_a_factor_is_refused(name: str) -> None:
    posterior = posterior_of(prior=IMPROPER[name])
    assert posterior.provenance.improper == ("mu",)
    with pytest.raises(ModelError, match="prior of `mu` is improper or known only up to a factor"):
        vf.evidence(posterior)


@pytest.mark.parametrize("name", PROPER)
def test_a_proper_prior_is_not(name: str) -> None:
    assert posterior_of(prior=PROPER[name]).provenance == posterior_of().provenance


# --- Data


def data_of(y: Any = Y, **around: Any) -> Any:
    return posterior_of(y, **around).provenance.data


def test_equal_data() -> None:
    assert data_of(Y * np.array([1.0, 1.0, 1.0, -1.0])) == data_of()  # 0.0 is -0.0
    assert data_of(data=masked(True)) == data_of(data=scaled(1.0)) == data_of()
    assert data_of(data=masked(SOME)) == data_of(Y[SOME])
    assert data_of(data=masked(SOME)) == data_of(np.where(SOME, Y, 7.0), data=masked(SOME))
    assert data_of(data=scaled(0.5)) == data_of(data=scaled(0.5 * np.ones(4)))


def test_other_data() -> None:
    different = [
        data_of(),
        data_of(Y[:3]),
        data_of(Y + 1e-9),
        data_of(data=masked(SOME)),
        data_of(data=masked(~SOME)),
        data_of(data=scaled(0.5)),
        data_of(data=scaled(2.0)),
        data_of(data=scaled(np.array([0.5, 1.0, 1.0, 1.0]))),
        data_of(data=(*masked(SOME), *scaled(0.5))),
    ]
    assert len(set(different)) == len(different)


@pytest.mark.parametrize(
    ("around", "note"),
    [
        (scaled(0.5), "likelihood to the power 0.5 at `y`: not an evidence of these data"),
        (scaled(np.array([1.0, 2.0, 1.0, 1.0])), "likelihood to the power 1 to 2 at `y`"),
        (masked(SOME), "1 of 4 values of `y` are masked"),
    ],
    ids=["power", "powers", "masked"],
)
def test_notes_on_data(around: Any, note: str) -> None:
    assert note in vf.evidence(posterior_of(data=around), by=vf.Laplace()).note


# --- Models that do not say of what data they are


def shifted(y: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y - mu)


def by_factor(y: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.factor("ll", dist.Normal(mu, 1.0).log_prob(y).sum())


def soft(y: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.factor("bound", -(mu**2))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def cautions(models: dict[str, Any]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return "\n".join(vf.compare(models, by=vf.Laplace(), loo=False).cautions)


def test_values_made_of_parameters_are_not_other_data() -> None:
    models = {"plain": posterior_of(), "shifted": vf.condition(shifted, Y)}
    assert "data" not in cautions(models)


def test_likelihoods_by_factor() -> None:
    found = cautions({str(n): vf.condition(by_factor, jnp.ones(n)) for n in (3, 30)})
    assert "same data cannot be told of likelihoods by `numpyro.factor` (3: ll; 30: ll)" in found
    assert "unnormalized" not in found


def test_factors_without_data() -> None:
    found = cautions({"soft": vf.condition(soft, Y), "plain": posterior_of()})
    assert "cannot be told" not in found
    assert "soft: integral of a density that bound may leave unnormalized" in found


# --- What is held


def with_param(y: Any) -> None:
    scale = numpyro.param("scale", 2.0)
    mu = numpyro.sample("mu", dist.Normal(0.0, scale))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def with_idle_param(y: Any) -> None:
    numpyro.param("idle", 2.0)
    numpyro.prng_key()
    soft(y)


def with_key(y: Any) -> None:
    key = numpyro.prng_key()
    assert key is not None
    noise = jax.random.normal(key)
    mu = numpyro.sample("mu", dist.Normal(noise, 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "note"),
    [
        (with_param, "in no integral: the `numpyro.param` scale; give it a prior by"),
        (with_key, "held at one draw: what `numpyro.prng_key()` is used for"),
    ],
    ids=["param", "key"],
)
def test_what_is_held_is_said(model: Any, note: str) -> None:
    with pytest.warns(TrustWarning, match="held at"):
        posterior = vf.condition(model, Y)
    assert note in repr(posterior)
    assert note in vf.evidence(posterior, by=vf.Laplace()).note


def test_what_moves_nothing_is_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vf.condition(with_idle_param, Y).held == ()


def test_lifted_params_are_latent() -> None:
    lifted = handlers.lift(with_param, prior={"scale": dist.HalfNormal(1.0)})
    posterior = vf.condition(lifted, Y)
    assert posterior.held == ()
    assert_allclose(posterior.values(jnp.zeros(posterior.dim))["scale"], 1.0)
