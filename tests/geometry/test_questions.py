"""Questions to metrics and maps: what each type answers, and what a new one registers."""

import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from numpyro.distributions import transforms

import volform as vf
from volform.geometry import (
    Coordinates,
    DiagonalField,
    MatrixField,
    Product,
    is_elementwise,
    is_flat_in,
    is_symmetric,
    name_of,
)

MATRIX = MatrixField(jnp.diag)
FISHER = vf.Fisher(dist.Normal)
VALUE, UNCONSTRAINED = Coordinates


class Own(vf.Metric):
    """A metric that answers no question."""

    def __call__(self, point):
        return vf.Euclidean()(point)


@pytest.mark.parametrize(
    ("metric", "flat", "symmetric"),
    [
        (vf.Euclidean(), VALUE, True),
        (vf.Euclidean(2.0), VALUE, True),
        (2.0 * vf.Euclidean() + vf.Euclidean(0.5), VALUE, True),
        (vf.Unconstrained(), UNCONSTRAINED, True),
        (2.0 * vf.Unconstrained(), UNCONSTRAINED, True),
        (vf.Euclidean() + vf.Unconstrained(), None, True),
        (DiagonalField(jnp.exp), None, True),
        (FISHER, None, True),
        (FISHER + vf.Euclidean(), None, True),
        (MATRIX, None, False),
        (FISHER + MATRIX, None, False),
        (vf.pullback(FISHER, jnp.exp), None, True),
        (vf.pullback(MATRIX, jnp.exp), None, False),
        (Product({"a": FISHER, "b": vf.Euclidean()}), None, True),
        (Product({"a": FISHER, "b": MATRIX}), None, False),
        (vf.JointFisher(), None, True),
        (vf.models.SoftAbs(1.0), None, True),
        (vf.models.ObservedInformation(), None, True),
        (Own(), None, False),
    ],
    ids=lambda x: name_of(x) if isinstance(x, vf.Metric) else "",
)
def test_flat_and_symmetric(metric, flat, symmetric):
    assert [c for c in Coordinates if is_flat_in(metric, c)] == ([flat] if flat else [])
    assert is_symmetric(metric) == symmetric


def test_a_new_metric_answers_for_itself():
    class Known(Own):
        pass

    is_symmetric.register(Known, lambda metric: True)
    is_flat_in.register(Known, lambda metric, coordinates: coordinates is VALUE)
    name_of.register(Known, lambda metric: "the known one")
    assert is_symmetric(2.0 * Known())
    assert is_flat_in(Known() + vf.Euclidean(), VALUE)
    assert not is_flat_in(Known(), UNCONSTRAINED)
    assert repr(0.5 * Known() + vf.Euclidean()) == "0.5 * the known one + Euclidean()"


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (transforms.ExpTransform(), True),
        (transforms.IndependentTransform(transforms.ExpTransform(), 1), True),
        (transforms.StickBreakingTransform(), False),
        (transforms.IndependentTransform(transforms.OrderedTransform(), 1), False),
        (jnp.exp, False),
        (transforms.ComposeTransform([]), True),
    ],
)
def test_elementwise(f, expected):
    assert is_elementwise(f) == expected


def test_names():
    assert name_of(vf.Euclidean(2.0)) == "Euclidean(scale=2.0)"
    assert name_of(test_names) == "test_names"


def test_names_of_composed_metrics():
    assert name_of(vf.pullback(vf.Fisher(dist.Normal), jnp.exp)) == "pullback(Fisher(Normal), exp)"
    product = vf.geometry.Product({"a": vf.Euclidean(), "b": 2.0 * vf.Euclidean()})
    assert name_of(product) == "Product(a: Euclidean(), b: 2.0 * Euclidean())"
