"""Parametrizations: multipliers, priors, and the metrics that go with them."""

import math

import jax.numpy as jnp
import pytest
from numpy.testing import assert_allclose

from volform.errors import NetworkError
from volform.networks import NTP, SP, Fans, ImprovedSP, MuP, WithPrior

FIRST = Fans(3, 8, is_first=True)
HIDDEN = Fans(8, 32)
LAST = Fans(32, 2, is_last=True)
STD = 1.3

# multiplier and standard deviation of the coordinate for each layer
CASES = {
    "SP": (SP(), [(1, STD / 3**0.5), (1, STD / 8**0.5), (1, STD / 32**0.5)]),
    "NTP": (NTP(), [(STD / 3**0.5, 1), (STD / 8**0.5, 1), (STD / 32**0.5, 1)]),
    "MuP": (MuP(), [(8**0.5, STD / 24**0.5), (1, STD / 8**0.5), (32**-0.5, STD / 32**0.5)]),
    "ImprovedSP": (ImprovedSP(8), [(1, STD / 3**0.5), (1, STD / 8**0.5), (0.5, STD / 8**0.5)]),
    "SP, prior of NTP": (WithPrior(SP(), NTP()), [(1, 1)] * 3),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_weights(name):
    parametrization, expected = CASES[name]
    for fans, (multiplier, deviation) in zip((FIRST, HIDDEN, LAST), expected, strict=True):
        scaling = parametrization.weight(fans, STD)
        assert_allclose(scaling.multiplier, multiplier, rtol=1e-14)
        assert_allclose(scaling.deviation, deviation, rtol=1e-14)


@pytest.mark.parametrize(
    ("parametrization", "multipliers"),
    [
        (SP(), (1.0, 1.0, 1.0)),
        (NTP(), (STD, STD, STD)),
        (MuP(), (8**0.5, 32**0.5, 1.0)),
        (ImprovedSP(8), (1.0, 1.0, 1.0)),
    ],
)
def test_biases_have_one_law_in_all(parametrization, multipliers):
    for fans, multiplier in zip((FIRST, HIDDEN, LAST), multipliers, strict=True):
        scaling = parametrization.bias(fans, STD)
        assert_allclose(scaling.multiplier, multiplier, rtol=1e-14)
        assert_allclose(scaling.weight_deviation, STD, rtol=1e-14)


@pytest.mark.parametrize("fans", [FIRST, HIDDEN, LAST])
@pytest.mark.parametrize("other", [NTP(), ImprovedSP(4), ImprovedSP(8)])
def test_one_law_of_functions(fans, other):
    expected = SP().weight(fans, STD).weight_deviation
    assert_allclose(other.weight(fans, STD).weight_deviation, expected, rtol=1e-14)


def test_maximal_update_has_a_smaller_last_layer():
    ratio = MuP().weight(LAST, STD).weight_deviation / SP().weight(LAST, STD).weight_deviation
    assert_allclose(ratio, 32**-0.5, rtol=1e-14)
    for fans in (FIRST, HIDDEN, Fans(3, 2, is_first=True, is_last=True)):
        expected = SP().weight(fans, STD).weight_deviation
        assert_allclose(MuP().weight(fans, STD).weight_deviation, expected, rtol=1e-14)


def test_maximal_update_learning_rates():
    """Tensor Programs V, table 3, for SGD: fan_out, 1 and 1 / fan_in; fan_out for biases."""
    rates = [MuP().weight(fans, STD).multiplier ** 2 for fans in (FIRST, HIDDEN, LAST)]
    assert_allclose(rates, [8.0, 1.0, 1 / 32], rtol=1e-14)
    assert_allclose(MuP().bias(HIDDEN, STD).multiplier ** 2, 32.0, rtol=1e-14)


@pytest.mark.parametrize("fans", [FIRST, HIDDEN, LAST])
def test_neural_tangent_metric_in_standard_coordinates(fans):
    """ERRATA of the source: (fan_in / w_std^2) I, the metric of u = sqrt(fan_in) W / w_std."""
    matrix = NTP().weight(fans, STD).metric(jnp.zeros(2)).as_matrix()
    assert_allclose(matrix, fans.fan_in / STD**2 * jnp.eye(2), rtol=1e-14)
    assert_allclose(SP().weight(fans, STD).metric(jnp.zeros(2)).as_matrix(), jnp.eye(2))


def test_the_printed_prior_is_another_model():
    """Figure 4, sigma = 1 and h = 4: the prior N(0, 1/4) of psi = theta / 2 is N(0, 1) of theta."""
    fans = Fans(4, 1, is_last=True)
    assert SP().weight(fans, 1.0).deviation ** 2 == 1 / 4
    printed = WithPrior(NTP(), SP()).weight(fans, 1.0)
    assert printed.deviation**2 / printed.multiplier**2 == 1.0  # pulled back by theta / 2
    assert printed.weight_deviation**2 == 1 / 16  # what the functions of the printed form see


def test_a_standard_deviation_may_be_traced():
    scaling = NTP().weight(LAST, jnp.asarray(STD))
    assert_allclose(scaling.weight_deviation, STD / math.sqrt(32), rtol=1e-14)


def test_bad_input():
    with pytest.raises(NetworkError, match="`base_width` of ImprovedSP is 0; it should be a posi"):
        ImprovedSP(0)
    with pytest.raises(NetworkError, match="`prior` is 'SP', which is no parametrization"):
        WithPrior(NTP(), "SP")  # pyright: ignore
