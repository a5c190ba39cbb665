"""The pictures hold what they say: curves, modes, eigenvalues."""

import dataclasses
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from matplotlib.colors import same_color

import volform as vf
from volform.plot import canvas

Y = np.array([1.1, 0.3, 2.5, 0.9, 1.7])


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def gamma():
    numpyro.sample("x", dist.Gamma(3.0, 1.0))


def normal(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def weights():
    numpyro.sample("w", dist.Normal(jnp.array([0.5, -2.0]), 1.0).to_event(1))
    numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))


@pytest.fixture(scope="module")
def of_gamma() -> vf.inference.MAP:
    return vf.find_map(vf.condition(gamma), key=jax.random.key(0))


@pytest.fixture(scope="module")
def of_normal() -> vf.inference.MAP:
    posterior = vf.condition(vf.attach(normal, vf.LikelihoodFisher()), Y)
    return vf.find_map(posterior, key=jax.random.key(0))


def curve(ax, color):
    """The curve of that color."""
    return max((line for line in ax.lines if same_color(line.get_color(), color)),
               key=lambda line: len(line.get_xdata()))  # fmt: skip


def mode(ax, color) -> float:
    """The abscissa of the dot on top of the curve of that color."""
    tops = [
        line
        for line in ax.lines
        if same_color(line.get_color(), color)
        and line.get_marker() == "o"
        and line.get_ydata()[0] == 1
    ]
    return float(tops[0].get_xdata()[0])


# --- density


def test_mode_of_p_moves_and_that_of_q_does_not(of_gamma):
    figure = vf.plot.density(of_gamma, "x")
    value, log = figure.axes
    assert [ax.get_xlabel() for ax in figure.axes] == ["x", "log x"]
    # Gamma(3, 1): mode 2 with respect to dx; with respect to d(log x) x = 3. q^G is flat in x.
    assert mode(value, canvas.VERMILION) == pytest.approx(2.0, abs=1e-4)
    assert mode(log, canvas.VERMILION) == pytest.approx(np.log(3.0), abs=1e-4)
    assert mode(value, canvas.BLUE) == pytest.approx(2.0, abs=1e-5)
    assert mode(log, canvas.BLUE) == pytest.approx(np.log(2.0), abs=1e-5)


def test_curves_are_the_densities(of_gamma):
    value, log = vf.plot.density(of_gamma, "x").axes
    for ax, power in ((value, 2), (log, 3)):
        line = curve(ax, canvas.VERMILION)
        x = line.get_xdata() if ax is value else np.exp(line.get_xdata())
        expected = x**power * np.exp(-x)
        np.testing.assert_allclose(line.get_ydata(), expected / expected.max(), rtol=1e-6)
    same = [curve(ax, canvas.BLUE).get_ydata() for ax in (value, log)]
    np.testing.assert_array_equal(*same)  # q^G is a function on the manifold


@pytest.mark.parametrize(
    ("transform", "label"), [(jnp.sqrt, "sqrt(x)"), (lambda x: x**-2, "transform(x)")]
)
def test_transform(of_gamma, transform, label):
    other = vf.plot.density(of_gamma, "x", transform=transform).axes[1]
    assert other.get_xlabel() == label
    assert mode(other, canvas.BLUE) == pytest.approx(float(transform(2.0)), rel=1e-5)
    # p(s) = p(x) |dx/ds|: mode at x = 2.5 for s = sqrt x, and at x = 5 for s = x^-2
    at = {"sqrt(x)": np.sqrt(2.5), "transform(x)": 5.0**-2}[label]
    assert mode(other, canvas.VERMILION) == pytest.approx(at, rel=1e-4)


def test_conditional_says_what_is_held(of_normal):
    figure = vf.plot.density(of_normal, "sigma")
    assert "sigma, given mu at the mode" in figure.get_suptitle()
    assert "G = LikelihoodFisher()" in figure.get_suptitle()
    sigma = float(of_normal.values["sigma"])
    assert mode(figure.axes[0], canvas.BLUE) == pytest.approx(sigma, rel=1e-5)
    assert mode(figure.axes[1], canvas.BLUE) == pytest.approx(np.log(sigma), rel=1e-5)


def test_real_parameter_gets_a_second_coordinate(of_normal):
    figure = vf.plot.density(of_normal, "mu")
    value, other = figure.axes
    assert other.get_xlabel() == "asinh(mu / 0.4)"
    mu = float(of_normal.values["mu"])
    assert mode(value, canvas.BLUE) == pytest.approx(mu, rel=1e-5)
    assert mode(other, canvas.BLUE) == pytest.approx(np.arcsinh(mu / 0.4), rel=1e-5)


def test_entries_of_vectors_and_given_axes():
    fit = vf.find_map(vf.condition(weights), key=jax.random.key(0))
    figure, axes = plt.subplots(1, 2)
    assert vf.plot.density(fit, "w[1]", axes=axes) is figure
    assert mode(axes[0], canvas.BLUE) == pytest.approx(-2.0)
    assert figure.get_suptitle() == ""
    assert "the rest of w, p at" in vf.plot.density(fit, "w[1]").get_suptitle()
    with pytest.raises(vf.errors.UnknownSiteError, match=r"`site` .* \['w\[0\]', 'w\[1\]'\]"):
        vf.plot.density(fit, "p[0]")
    with pytest.raises(vf.errors.VolformError, match="holds 3 axes; it should hold two"):
        vf.plot.density(fit, "w[0]", axes=plt.subplots(1, 3)[1])


def test_transform_must_be_monotonic(of_gamma):
    with pytest.raises(vf.errors.VolformError, match="`transform` should be a strictly monotonic"):
        vf.plot.density(of_gamma, "x", transform=lambda x: (x - 2.0) ** 2)


def test_density_of_nothing_finite(of_gamma):
    broken = eqx.tree_at(lambda fit: fit.at.u, of_gamma, jnp.array([jnp.nan]))
    with pytest.raises(vf.errors.VolformError, match="`x` is NaN or infinite on the whole line"):
        vf.plot.density(broken, "x")


def test_posterior_and_laplace_will_do(of_gamma):
    for target in (of_gamma.posterior, vf.laplace(of_gamma)):
        figure = vf.plot.density(target, "x")
        assert mode(figure.axes[0], canvas.BLUE) == pytest.approx(2.0, abs=1e-5)


def test_no_global_setting_is_changed(of_gamma):
    before = dict(mpl.rcParams)
    vf.plot.density(of_gamma, "x")
    vf.plot.spectrum(of_gamma)
    assert dict(mpl.rcParams) == before


# --- spectrum


def drawn(ax) -> np.ndarray:
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    return np.concatenate([line.get_ydata() for line in dots])


def test_spectrum(of_normal):
    ax = vf.plot.spectrum(of_normal)
    np.testing.assert_allclose(drawn(ax), of_normal.eigenvalues)
    assert ax.get_yscale() == "linear"
    texts = [text.get_text() for text in ax.texts]
    low, high = map(float, of_normal.eigenvalues)
    assert texts == [f"{canvas.number(low)}: sigma", f"{canvas.number(high)}: mu"]


@pytest.mark.parametrize(("eigenvalues", "scale"), [([0.01, 3.0], "log"), ([-1.0, 3.0], "linear")])
def test_spectrum_scales(of_normal, eigenvalues, scale):
    matrices = jnp.diag(jnp.array(eigenvalues)), jnp.eye(2)
    fit = eqx.tree_at(lambda fit: (fit.at.hessian, fit.at.gram), of_normal, matrices)
    _, given = plt.subplots()
    assert vf.plot.spectrum(fit, ax=given) is given
    assert given.get_yscale() == scale
    np.testing.assert_allclose(sorted(drawn(given)), eigenvalues)
    low, high = given.get_ylim()
    assert low < eigenvalues[0] < eigenvalues[1] < high


def test_spectrum_of_one_parameter(of_gamma):
    ax = vf.plot.spectrum(of_gamma)
    assert [text.get_text().partition(": ")[2] for text in ax.texts] == ["x"]


# --- import


def test_import_brings_no_plotting():
    program = (
        "import sys, volform; volform.plot.density; "
        "assert not {'matplotlib', 'arviz'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# --- Compared models


def test_evidences_of_compared_models():
    def model(y, scale):
        mu = numpyro.sample("mu", dist.Normal(0.0, scale))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    models = {name: vf.condition(model, Y, s) for name, s in (("wide", 50.0), ("narrow", 1.0))}
    table = vf.compare(models, by=vf.Quadrature(), loo=False)
    ax = vf.plot.evidence(table)
    labels = {
        label.get_text(): height
        for label, height in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)
    }
    assert labels["narrow"] > labels["wide"]  # the best on top
    marks = [line for line in ax.lines if line.get_marker() == "o"]
    drawn = sorted(float(line.get_xdata()[0]) for line in marks)
    assert drawn == pytest.approx([float(row.evidence.log_z) for row in table.rows][::-1])
    assert all(same_color(line.get_markerfacecolor(), canvas.BLUE) for line in marks)
    assert ax.get_xlabel() == "log evidence"


def test_evidences_that_are_nan_are_left_out():
    good = vf.evidence(vf.condition(normal, Y), by=vf.Laplace())
    nan = dataclasses.replace(good, log_z=jnp.array(jnp.nan))
    ax = vf.plot.evidence(vf.compare({"bad": nan, "good": good}))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["good"]


def test_marks_of_evidences_without_good_trust_are_open():
    table = vf.compare({"one": vf.condition(gamma)}, by=vf.Laplace(), loo=False)
    ax = vf.plot.evidence(table)
    (mark,) = [line for line in ax.lines if line.get_marker() == "o"]
    assert same_color(mark.get_markerfacecolor(), "white")
