"""Pictures of results hold what they say: densities, intervals, bands, weights, frequencies."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from matplotlib.colors import same_color
from numpy.testing import assert_allclose
from numpyro.infer import MCMC, NUTS
from scipy import stats

import volform as vf
from volform.errors import DataError, ModelError, OperatorError, UnknownSiteError
from volform.inference import smoothed
from volform.plot import canvas

Y = np.array([1.1, 0.3, 2.5, 0.9, 1.7])
KEY = jax.random.key(0)
X0 = np.zeros(1)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def normal(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def known(y):
    w = numpyro.sample("w", dist.Normal(jnp.zeros(2), 2.0).to_event(1))
    numpyro.sample("y", dist.Normal(w, 1.0).to_event(1), obs=y)


@pytest.fixture(scope="module")
def approx() -> Any:
    return vf.laplace(vf.condition(vf.attach(normal, vf.Unconstrained()), Y))


@pytest.fixture(scope="module")
def draws(approx: Any) -> Any:
    return approx.sample(KEY, 4000)


@pytest.fixture(scope="module")
def exact() -> Any:
    """Means .8 and 1.6, standard deviations sqrt(.8)."""
    return vf.evidence(vf.condition(known, jnp.array([1.0, 2.0])), by=vf.Quadrature())


def heights(ax: Any, color: Any) -> Any:
    (found,) = [p for p in ax.patches if same_color(p.get_edgecolor(), color)]
    return found.get_data()


# --- marginals


def test_laplace_marginals_are_the_closed_forms(approx):
    mu, sigma = vf.plot.marginals(approx)
    sd, center = np.sqrt(np.diag(approx.covariance)), np.asarray(approx.at.u)
    laws = stats.norm(center[0], sd[0]), stats.lognorm(sd[1], scale=np.exp(center[1]))
    for ax, law in zip((mu, sigma), laws, strict=True):
        x, density = ax.lines[0].get_data()
        assert_allclose(density, law.pdf(x), rtol=1e-10)
        assert_allclose(
            ax.get_xlim()[0] + ax.get_xlim()[1], sum(law.ppf([0.005, 0.995])), rtol=1e-6
        )
    assert [ax.get_xlabel() for ax in (mu, sigma)] == ["mu", "sigma"]


def test_a_marginal_that_an_edge_cuts_off():
    def gamma():
        numpyro.sample("x", dist.Gamma(2.0, 1.0))

    approx = vf.laplace(vf.condition(gamma))  # N(1, 1) on x > 0
    x, density = vf.plot.marginals(approx)[0].lines[0].get_data()
    assert x.min() == 0.0
    assert_allclose(density, stats.truncnorm(-1.0, np.inf, 1.0, 1.0).pdf(x), rtol=1e-8)


def test_histograms_of_draws_and_prior(approx, draws):
    given = {"Laplace": approx, "draws": draws, "raw": {"mu": draws["mu"], "sigma": draws["sigma"]}}
    axes = vf.plot.marginals(given, ["sigma"], prior=True)
    (ax,) = axes
    of_draws, of_raw = heights(ax, canvas.COLORS[1]), heights(ax, canvas.COLORS[2])
    assert_allclose(of_draws.values, of_raw.values, rtol=1e-10)
    middle = 0.5 * (of_draws.edges[1:] + of_draws.edges[:-1])
    sd, center = np.sqrt(np.diag(approx.covariance)), np.asarray(approx.at.u)
    law = stats.lognorm(sd[1], scale=np.exp(center[1]))
    inside = np.diff(law.cdf(of_draws.edges))
    errors = np.sqrt(inside * (1.0 - inside) / 4000)
    assert (np.abs(of_draws.values * np.diff(of_draws.edges) - inside) < 4.5 * errors).all()
    assert of_draws.edges[0] >= draws["sigma"].min()  # not over the edge at zero
    assert middle.size > 8
    (prior,) = [p.get_data() for p in ax.patches if p.get_label() == "prior"]
    inside = np.diff(stats.halfnorm.cdf(prior.edges))
    assert_allclose(prior.values * np.diff(prior.edges), inside, atol=0.02)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["prior", "Laplace", "draws", "raw"]


def test_nodes_of_quadrature_are_no_comb(exact):
    axes = vf.plot.marginals(exact)
    for ax, mean in zip(axes, (0.8, 1.6), strict=True):
        shown = heights(ax, canvas.BLUE)
        expected = np.diff(stats.norm.cdf(shown.edges, mean, 0.8**0.5)) / np.diff(shown.edges)
        assert_allclose(shown.values, expected, atol=0.01)


def test_elements_and_given_axes(exact):
    _, axes = plt.subplots(1, 2)
    drawn = vf.plot.marginals(exact, ["w[1]", "w[0]"], axes=axes)
    assert drawn == list(axes)
    assert [ax.get_xlabel() for ax in axes] == ["w[1]", "w[0]"]


@pytest.mark.standard_promotion  # NUTS mixes dtypes
def test_chains_of_numpyro(exact):
    unrun = MCMC(NUTS(known), num_warmup=10, num_samples=10, progress_bar=False)
    with pytest.raises(ModelError, match="holds an `MCMC` that was not run"):
        vf.plot.forest({"NUTS": unrun})
    unrun.run(KEY, jnp.array([1.0, 2.0]))
    ax = vf.plot.forest({"exact": exact, "NUTS": unrun})
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["exact", "NUTS"]


# --- forest


def test_intervals_are_those_of_the_summary(exact):
    ax = vf.plot.forest(exact, probability=0.8)
    thin = [line for line in ax.lines if line.get_linewidth() == 1.2 and len(line.get_xdata()) == 2]
    table = exact.summary(0.8)
    drawn = np.array([line.get_xdata() for line in thin])
    assert_allclose(drawn, np.transpose([table.lower["w"], table.upper["w"]]))
    assert_allclose(drawn[0], 0.8 + np.array([-1, 1]) * 1.2816 * 0.8**0.5, atol=0.005)
    dots = [float(line.get_xdata()[0]) for line in ax.lines if len(line.get_xdata()) == 1]
    assert_allclose(dots, table.mean["w"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["w[0]", "w[1]"]
    assert "80 % intervals" in ax.get_title(loc="left").replace("\n", " ")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"results": 3}, ModelError, "should be a result of `vf.laplace` .* got int"),
        ({"results": {}}, ModelError, "should be a result .* got dict"),
        ({"results": {"x": np.zeros((3, 0))}}, DataError, "holds draws of the shapes"),
        ({"results": {"x": np.array([1.0, np.nan])}}, DataError, "they should be finite"),
        ({"results": {"x": np.ones(3), "z": np.ones(4)}}, DataError, "as many of each site"),
        (
            {"results": {"x": np.ones(3)}, "sites": ["z"]},
            UnknownSiteError,
            "holds 'z'; all",
        ),
        ({"results": {"x": np.ones(3)}, "sites": []}, ModelError, "are 0 numbers; choose 1 to 60"),
        ({"results": {"x": np.ones((3, 61))}}, ModelError, "are 61 numbers; choose 1 to 60"),
        ({"results": {"x": np.ones(3)}, "prior": True}, ModelError, "`prior` .* needs a model"),
        ({"results": {"x": np.ones(3)}, "axes": [1, 2]}, ModelError, "2 axes; it should hold 1"),
    ],
)
def test_misuse_of_marginals(given, error, message):
    with pytest.raises(error, match=message):
        vf.plot.marginals(**given)


def test_misuse_of_forest(exact):
    with pytest.raises(ModelError, match=r"`probability` of plot.forest is 90"):
        vf.plot.forest(exact, probability=90)
    with pytest.raises(ModelError, match="an evidence by quadrature, which has no draws"):
        vf.plot.forest(dataclasses.replace(exact, draws=None))


def test_an_improper_prior_is_not_drawn():
    def flat(y):
        mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    approx = vf.laplace(vf.condition(flat, Y), allow_improper=True)
    with pytest.raises(ModelError, match=r"`prior` of plot.marginals is improper at `mu`"):
        vf.plot.marginals(approx, prior=True)


# --- predictions


def bands(ax: Any) -> Any:
    """Lower and upper ends of the bands at each x, the widest first."""
    found = []
    for part in ax.collections:
        x, y = part.get_paths()[0].vertices.T
        found.append({at: (y[x == at].min(), y[x == at].max()) for at in np.unique(x)})
    return found


def test_bands_are_quantiles():
    x = np.array([2.0, 0.0, 1.0])
    mean = np.array([5.0, -1.0, 0.5])
    ax = vf.plot.predictive_band(x, dist.Normal(mean, 2.0), data=([0.5], [1.0]), probability=0.8)
    outer, inner = bands(ax)
    for at, m in zip(x, mean, strict=True):
        assert_allclose(outer[at], stats.norm.ppf([0.1, 0.9], m, 2.0), rtol=1e-5)
        assert_allclose(inner[at], stats.norm.ppf([0.25, 0.75], m, 2.0), rtol=1e-5)
    assert_allclose(ax.lines[0].get_data(), [np.sort(x), mean[np.argsort(x)]], atol=1e-6)
    assert_allclose(ax.lines[1].get_data(), [[0.5], [1.0]])
    joint = dist.MultivariateNormal(mean, 4.0 * np.eye(3))
    assert_allclose(bands(vf.plot.predictive_band(x, joint, probability=0.8))[0][0.0], outer[0.0])
    draws = np.random.default_rng(0).normal(mean, 2.0, (200, 3))
    of_draws = bands(vf.plot.predictive_band(x, draws))[0]
    assert_allclose(of_draws[1.0], np.quantile(draws[:, 2], [0.05, 0.95]))
    counts = vf.plot.predictive_band(x, dist.Poisson(np.array([2.0, 3.0, 50.0])))  # no icdf
    assert_allclose(counts.lines[0].get_ydata()[1], 50.0, atol=1.0)


def test_probabilities_of_classes():
    x = np.array([0.0, 1.0])
    labels = np.array([[0, 1], [2, 1], [0, 1], [1, 1]])
    ax = vf.plot.predictive_band(x, labels, classes=("a", "b", "c"), data=([0.5, 0.7], [2, 0]))
    shares = {line.get_label(): line.get_ydata() for line in ax.lines[:3]}
    assert_allclose([shares[name] for name in "abc"], [[0.5, 0.0], [0.25, 1.0], [0.25, 0.0]])
    two = np.array([[0.2, 0.9], [0.4, 0.7]])
    ax = vf.plot.predictive_band(x, two, classes=("no", "yes"))
    assert_allclose(ax.lines[0].get_ydata(), [0.3, 0.8])
    assert_allclose(bands(ax)[0][1.0], np.quantile([0.9, 0.7], [0.05, 0.95]))
    assert ax.get_title(loc="left") == "probability of yes, 90 % of draws"
    of_law = vf.plot.predictive_band(x, dist.Bernoulli(two[0]), classes=("no", "yes"))
    assert_allclose(of_law.lines[0].get_ydata(), two[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": [[1.0]], "predicted": np.ones((3, 1))}, "`x` of plot.predictive_band has the shape"),
        ({"x": [np.nan], "predicted": np.ones((3, 1))}, "one finite number for each prediction"),
        ({"x": [1.0], "predicted": np.ones((3, 2))}, r"draws of the shape \(2,\); expected was"),
        ({"x": [1.0], "predicted": np.ones(3)}, r"draws of the shape \(3,\)"),
        ({"x": [1.0], "predicted": np.full((3, 1), np.nan)}, "is empty or not finite everywhere"),
        ({"x": [1.0], "predicted": dist.Normal(np.zeros(2), 1.0)}, "is a distribution of"),
        ({"x": [1.0], "predicted": np.ones((3, 1)), "data": ([1.0], [1.0, 2.0])}, "has the shapes"),
        ({"x": [1.0], "predicted": [[2], [1]], "classes": ("a", "b")}, "labels that are not"),
        ({"x": [1.0], "predicted": [[1.5], [1.0]], "classes": ("a", "b")}, "from -0.5 to 1.5"),
        ({"x": [1.0], "predicted": dist.Normal(X0, 1.0), "classes": ("a", "b")}, "no `probs`"),
    ],
)  # fmt: skip
def test_misuse_of_bands(given, message):
    with pytest.raises(DataError, match=message):
        vf.plot.predictive_band(**given)


# --- weights


def test_k_hat_of_draws(draws):
    left, right = vf.plot.k_hat(draws)
    log_weights = np.asarray(draws.log_p) - np.asarray(draws.log_q)
    numbers, shapes = left.lines[0].get_data()
    assert numbers[-1] == 4000
    assert_allclose(shapes[-1], smoothed(log_weights)[1], rtol=1e-6)
    assert_allclose(shapes[3], smoothed(log_weights[: int(numbers[3])])[1], rtol=1e-6)
    raw = np.sort(np.exp(log_weights - log_weights.max()))[::-1]
    assert_allclose(right.lines[0].get_ydata()[:5], raw[:5] / raw.mean(), rtol=1e-6)
    assert left.get_title(loc="left") == f"k-hat {canvas.number(shapes[-1])}"


def test_equal_weights_have_no_tail():
    approx = vf.laplace(vf.condition(known, jnp.array([1.0, 2.0])))
    left, _ = vf.plot.k_hat(approx.sample(KEY, 200))  # exact: the posterior is Gaussian
    assert "k-hat" in left.get_title(loc="left")


def test_misuse_of_k_hat(exact, draws, approx):
    with pytest.raises(ModelError, match="is an evidence by quadrature, without draws from"):
        vf.plot.k_hat(exact)
    with pytest.raises(ModelError, match="has 20 draws; give 50 or more"):
        vf.plot.k_hat(approx.sample(KEY, 20))
    with pytest.raises(ModelError, match="holds 3 axes; it should hold two"):
        vf.plot.k_hat(draws, axes=plt.subplots(1, 3)[1])
    bare = dataclasses.replace(draws, posterior=None)
    with pytest.raises(ModelError, match="was pickled, without its model or densities"):
        vf.plot.k_hat(bare)


# --- reliability


def test_frequencies_and_their_errors():
    random = np.random.default_rng(1)
    p = random.uniform(size=4000)
    ax = vf.plot.reliability(p, random.uniform(size=4000) < p, bins=8)
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert len(dots) == 8
    own = p <= np.quantile(p, 1 / 8)
    (bar,) = [line for line in ax.lines if line.get_linewidth() == 4
              and line.get_xdata()[0] == pytest.approx(p[own].mean())]  # fmt: skip
    deviation = np.sqrt(np.sum(p[own] * (1 - p[own]))) / own.sum()
    assert_allclose(bar.get_ydata(), p[own].mean() + np.array([-2, 2]) * deviation)
    assert sum(same_color(dot.get_markerfacecolor(), "white") for dot in dots) <= 2
    wrong = vf.plot.reliability(p**3, random.uniform(size=4000) < p, bins=8)
    marks = [line for line in wrong.lines if line.get_marker() == "o"]
    assert sum(same_color(dot.get_markerfacecolor(), "white") for dot in marks) >= 6


def test_reliability_of_several_classes():
    chances = np.tile([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], (50, 1))
    labels = np.tile([0, 2], 50)
    ax = vf.plot.reliability(chances, labels)
    dots = [line.get_data() for line in ax.lines if line.get_marker() == "o"]
    assert_allclose(np.ravel(dots), [0.7, 1.0, 0.8, 1.0])
    assert ax.get_title(loc="left").startswith("calibration error 0.250, ")


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.ones(3), np.ones(4), r"have the shapes \(3,\) and \(4,\)"),
        (np.ones(0), np.ones(0), "with a datum or more"),
        (np.array([0.5, 1.2]), np.ones(2), "should lie between 0 and 1"),
        (np.array([[0.5, 0.2]]), np.ones(1), "sum to one over classes"),
        (np.array([0.5, np.nan]), np.ones(2), "should lie between 0 and 1"),
        (np.array([0.5, 0.2]), np.array([0, 2]), r"whole numbers from 0 to 1; got \[0.0, 2.0\]"),
    ],
)
def test_misuse_of_reliability(probabilities, labels, message):
    with pytest.raises(DataError, match=message):
        vf.plot.reliability(probabilities, labels)


def test_bins_are_whole():
    with pytest.raises(OperatorError, match=r"`bins` of plot.reliability"):
        vf.plot.reliability(np.ones(3), np.ones(3), bins=0)


# --- the course of a search


def test_course_of_a_search():
    y = jnp.array([3.0, 2.5])

    def model(y, scale):
        mu = numpyro.sample("mu", dist.Normal(0.0, scale).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=y)

    found = vf.maximize_evidence(
        lambda h: vf.condition(model, y, h["scale"]),
        {"scale": 0.1},
        supports={"scale": dist.constraints.positive},
    )
    scales = np.asarray(found.path["scale"])
    expected = [stats.norm.logpdf(y, 0.0, np.sqrt(1.0 + s**2)).sum() for s in scales]
    assert_allclose(found.history, expected, rtol=1e-9)  # the closed form at every step
    assert_allclose(scales[0], 0.1)
    assert_allclose(scales[-1], found.hyperparameters["scale"])
    assert found.history[-1] > found.history[0] + 1.0
    top, bottom = vf.plot.evidence_trace(found)
    assert_allclose(top.lines[0].get_ydata(), found.history)
    assert_allclose(bottom.lines[0].get_ydata(), scales)
    assert top.get_title(loc="left") == f"log Z {canvas.number(expected[-1])}, converged"
    with pytest.raises(ModelError, match="holds 3 axes; it should hold 2, for log Z, scale"):
        vf.plot.evidence_trace(found, axes=plt.subplots(1, 3)[1])
    with pytest.raises(ModelError, match=r"`found` of plot.evidence_trace is of type int"):
        vf.plot.evidence_trace(3)


# --- titles


def inside(ax: Any, dpi: float = 100.0) -> bool:
    figure = canvas.figure_of(ax)
    figure.set_dpi(dpi)
    figure.draw_without_rendering()
    text = ax.get_title(loc="left")
    (title,) = [t for t in ax.get_children() if getattr(t, "get_text", str)() == text]
    box = title.get_window_extent()
    return box.x0 >= 0.0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_titles_are_not_cut(exact):
    def a_model_whose_name_is_longer_than_the_picture_is_wide_by_some_letters(y):
        return known(y)

    long = vf.JointFisher(a_model_whose_name_is_longer_than_the_picture_is_wide_by_some_letters)
    fit = vf.find_map(vf.condition(vf.attach(known, long), jnp.array([1.0, 2.0])))
    assert inside(vf.plot.spectrum(fit))
    name = "a model of a name that takes more than one half of the picture"
    assert inside(vf.plot.evidence(vf.compare({name: exact, "other": exact})))
    ax = vf.plot.evidence(vf.compare({"scale 10.0": exact, "other": exact}))
    assert all(inside(ax, dpi) for dpi in (72.0, 80.0, 110.0, 150.0))
    assert inside(vf.plot.forest(exact))
    ax = canvas.new_axes(1, 2.0, 2.0)[0]
    canvas.title(ax, "of several words that do not go into one line of two inches")
    assert inside(ax)
    assert ax.get_title(loc="left").count("\n") >= 1
