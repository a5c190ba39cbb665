"""Gaussian processes and trained networks: dense formulas in numpy, limits, and refitting."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from tests.kernels.nets import X2, X, around, dense

from volform import kernels as k, networks as nn
from volform.errors import DataError, KernelError
from volform.kernels import checks, iterative
from volform.linalg import Krylov
from volform.networks import SP

NET = around(nn.Erf())
SEEDS = range(3)
NOISE = 0.3


def data(seed, n=6, outputs=None):
    rng = np.random.default_rng(seed)
    shape = (n,) if outputs is None else (n, outputs)
    return rng.normal(size=(n, 4)), rng.normal(size=shape), rng.normal(size=(3, 4))


def require_law(found, mean, covariance, rtol=1e-10):
    np.testing.assert_allclose(found.mean, mean, rtol=rtol, atol=1e-11)
    np.testing.assert_allclose(found.covariance, covariance, rtol=rtol, atol=1e-11)


# --- Regression


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("outputs", [None, 1, 3])
@pytest.mark.parametrize("extra", [{"noise": NOISE}, {"noise": 1e-3, "jitter": 0.2}, {}])
def test_evidence_and_prediction_are_those_of_the_formulas(seed, outputs, extra):
    x, y, new = data(seed, outputs=outputs)
    kernel = np.asarray(k.kernel(NET, np.r_[x, new]).nngp)
    added = extra.get("noise", 0.0) ** 2 + extra.get("jitter", 0.0)
    noisy = kernel[:6, :6] + added * np.eye(6)
    columns = y.reshape(6, -1)
    density = scipy.stats.multivariate_normal(np.zeros(6), noisy).logpdf(columns.T)
    np.testing.assert_allclose(k.evidence(NET, x, y, **extra).log_z, np.sum(density), rtol=1e-10)
    gain = np.linalg.solve(noisy, kernel[:6, 6:]).T
    expected = gain @ y, kernel[6:, 6:] - gain @ kernel[:6, 6:]
    require_law(k.predict(NET, x, y, new, **extra), *expected, rtol=1e-8)


@pytest.mark.parametrize("seed", SEEDS)
def test_linear_network_is_bayesian_linear_regression(seed):
    """By the posterior of the weights, prior variance w_std^2 / 4, and of the bias."""
    x, y, new = data(seed)
    features, at = (np.c_[x * 1.4 / 2.0, 0.2 * np.ones(len(x))] for x in (x, new))
    precision = np.eye(5) + features.T @ features / NOISE**2
    mean = at @ np.linalg.solve(precision, features.T @ y) / NOISE**2
    found = k.predict(dense(), x, y, new, noise=NOISE)
    require_law(found, mean, at @ np.linalg.solve(precision, at.T))
    # Trained for ever with the same ridge, the mean is the same one: here K is T.
    trained = k.predict_trained(dense(), x, y, new, noise=NOISE)
    np.testing.assert_allclose(trained.mean, mean, rtol=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_data_in_any_order_and_in_two_parts(seed):
    x, y, new = data(seed)
    at_once = k.predict(NET, x, y, new, noise=NOISE)
    order = np.random.default_rng(seed).permutation(6)
    require_law(k.predict(NET, x[order], y[order], new, noise=NOISE), *at_once)
    np.testing.assert_allclose(
        k.evidence(NET, x[order], y[order], noise=NOISE).log_z,
        k.evidence(NET, x, y, noise=NOISE).log_z,
        rtol=1e-13,
    )
    # The posterior of the first half at the rest and at new points is the prior of the second.
    first = k.predict(NET, x[:3], y[:3], np.r_[x[3:], new], noise=NOISE)
    noisy = first.covariance[:3, :3] + NOISE**2 * np.eye(3)
    gain = np.linalg.solve(noisy, first.covariance[:3, 3:]).T
    mean = first.mean[3:] + gain @ (y[3:] - first.mean[:3])
    require_law(at_once, mean, first.covariance[3:, 3:] - gain @ first.covariance[:3, 3:])


@pytest.mark.parametrize("seed", SEEDS)
def test_data_never_add_to_the_covariance(seed):
    """Prior, less data, more data, less noise: each covariance is below the one before."""
    x, y, new = data(seed)
    laws = [
        k.predict(NET, x[:n], y[:n], new, noise=noise).covariance
        for n, noise in ((3, 1.0), (6, 1.0), (6, 0.1))
    ]
    chain = [k.kernel(NET, new).nngp, *laws, np.zeros((3, 3))]
    for larger, smaller in pairwise(chain):
        assert np.linalg.eigvalsh(larger - smaller)[0] > -1e-10


def test_prediction_without_noise_goes_through_the_data():
    x, y, _ = data(0)
    require_law(k.predict(NET, x, y, x), y, np.zeros((6, 6)), rtol=1e-8)


# --- Training


@pytest.mark.parametrize("noise", [None, NOISE])
@pytest.mark.parametrize("scaling", [None, SP()])
def test_training_has_not_begun_at_time_zero(noise, scaling):
    x, y, new = data(0)
    found = k.predict_trained(NET, x, y, new, time=0.0, noise=noise, parametrization=scaling)
    require_law(found, np.zeros(3), k.kernel(NET, new).nngp)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scaling", [None, SP()])
def test_training_goes_on_from_where_it_was(seed, scaling):
    """What is left of targets decays like exp(-T t): half the time twice is all of it."""
    x, y, new = data(seed)
    train = partial(k.predict_trained, NET, x, parametrization=scaling)
    half = train(y, np.r_[x, new], time=0.7).mean
    more = train(y - half[:6], np.r_[x, new], time=0.7).mean
    whole = train(y, np.r_[x, new], time=1.4)
    np.testing.assert_allclose(half + more, whole.mean, rtol=1e-9, atol=1e-11)
    # At the data the whole law is exp(-T t) times that of the beginning.
    kernel = k.kernel(NET, x, parametrization=scaling)
    left = scipy.linalg.expm(-1.4 * np.asarray(kernel.ntk))
    covariance = whole.covariance[:6, :6]
    np.testing.assert_allclose(y - whole.mean[:6], left @ y, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(covariance, left @ kernel.nngp @ left, rtol=1e-9, atol=1e-11)


def test_speed_of_training():
    """`dm/dt = T(new, x) exp(-T t) y`, by autodiff in the time."""
    x, y, new = data(1)
    mean = lambda t: k.predict_trained(NET, x, y, new, time=t).mean  # noqa: E731
    kernel = np.asarray(k.kernel(NET, np.r_[x, new]).ntk)
    for time in (0.0, 0.4, 3.0):
        speed = jax.jit(jax.jacfwd(mean))(time)
        expected = kernel[6:, :6] @ scipy.linalg.expm(-time * kernel[:6, :6]) @ y
        np.testing.assert_allclose(speed, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("seed", SEEDS)
def test_training_is_linear_in_the_targets(seed):
    x, y, new = data(seed, outputs=2)
    both = k.predict_trained(NET, x, y, new, time=0.5)
    for column in (0, 1):
        one = k.predict_trained(NET, x, y[:, column], new, time=0.5)
        np.testing.assert_allclose(both.mean[:, column], one.mean, rtol=1e-12)
        np.testing.assert_allclose(both.covariance, one.covariance, rtol=1e-12)
    total = k.predict_trained(NET, x, y @ np.array([2.0, -0.5]), new, time=0.5).mean
    np.testing.assert_allclose(total, both.mean @ np.array([2.0, -0.5]), rtol=1e-10)


def test_a_network_of_one_layer_is_trained_to_its_posterior():
    """Where K = T gradient descent from the prior samples the posterior."""
    x, y, new = data(2, n=3)
    require_law(
        k.predict_trained(dense(), x, y, new), *k.predict(dense(), x, y, new), rtol=1e-9
    )  # and nowhere else
    trained = k.predict_trained(NET, x, y, new).covariance
    assert np.abs(trained - k.predict(NET, x, y, new).covariance).max() > 1e-3


# --- Products in place of factors


@pytest.mark.parametrize("outputs", [None, 2])
@pytest.mark.parametrize("net", [around(nn.Relu()), nn.serial(dense(), nn.LayerNorm(), dense())])
def test_conjugate_gradients_are_cholesky(net, outputs):
    """Of 40 examples in 4 dimensions, all of which the preconditioner sees."""
    x, y, new = data(3, n=40, outputs=outputs)
    by = Krylov(jax.random.key(1), probes=4)
    found = k.predict(net, x, y, new, noise=NOISE, by=by)
    require_law(found, *k.predict(net, x, y, new, noise=NOISE), rtol=1e-8)
    by_products = k.evidence(net, x, y, noise=NOISE, by=by)
    exact = k.evidence(net, x, y, noise=NOISE).log_z
    np.testing.assert_allclose(by_products.log_z, exact, rtol=1e-9)  # nothing is left to probes
    assert by_products.error < 1e-8 * abs(exact)


@pytest.mark.parametrize("rank", [1, 3, 5, 8])
def test_partial_factors_approach_from_below(rank):
    """The rest is semidefinite, zero at the pivots, and its trace falls with the rank."""
    matrix = jnp.asarray(k.kernel(NET, data(4, n=8)[0]).nngp)
    column, diagonal = lambda i: matrix[:, i], jnp.diagonal(matrix)
    factors = [iterative.partial_cholesky(column, diagonal, r) for r in (rank, min(rank + 1, 8))]
    rests = [matrix - factor @ factor.T for factor in factors]
    for rest in rests:
        assert np.linalg.eigvalsh(rest)[0] > -1e-14 * np.trace(matrix)
    assert np.trace(rests[1]) <= np.trace(rests[0])
    assert np.sum(np.abs(np.diagonal(rests[0])) < 1e-14) >= rank


def test_preconditioned_covariance():
    """Symmetric, its determinant with that of P is that of C, and with all columns it is 1."""
    x, net = data(5, n=30)[0], around(nn.Relu())
    covariance = np.asarray(k.kernel(net, x).nngp) + NOISE**2 * np.eye(30)
    white = iterative.whitened(net, x, NOISE, 0.0)
    np.testing.assert_allclose(white.as_matrix(), np.eye(30), rtol=0, atol=1e-10)
    few = iterative.Whitened(white.gram, white.variance, white.basis[:, -4:], white.spectrum[-4:])
    matrix = np.asarray(few.as_matrix())
    np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=1e-12 * np.abs(matrix).max())
    log_det = np.linalg.slogdet(matrix)[1] + few.log_det_p()
    np.testing.assert_allclose(log_det, np.linalg.slogdet(covariance)[1], rtol=1e-11)
    # The square of the whitener is the inverse of P.
    root = np.asarray(jax.vmap(few.whiten)(jnp.eye(30)))
    p = few.basis @ np.diag(few.spectrum) @ few.basis.T + few.variance * np.eye(30)
    np.testing.assert_allclose(root @ p @ root.T, np.eye(30), rtol=0, atol=1e-11)


@pytest.mark.parametrize("make", [k.nngp_operator, k.ntk_operator])
def test_operators_are_symmetric_and_semidefinite(make):
    x, (u, v) = data(6)[0], np.random.default_rng(0).normal(size=(2, 6))
    operator = make(around(nn.Relu()), x, tile=4)
    np.testing.assert_allclose(u @ operator.mv(v), v @ operator.mv(u), rtol=1e-13)
    assert u @ operator.mv(u) > 0
    np.testing.assert_allclose(
        operator.mv(2.0 * u - v), 2.0 * operator.mv(u) - operator.mv(v), rtol=1e-12, atol=1e-13
    )
    assert operator.transpose() is operator


# --- Rows that are held out


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("outputs", [None, 2])
def test_one_row_at_a_time_in_closed_form(seed, outputs):
    """With P the inverse covariance, `y_i - (P y)_i / P_ii` and `1 / P_ii`, whatever the key.

    Rasmussen & Williams (2006), Eq. (5.12).
    """
    x, y, _ = data(seed, outputs=outputs)
    inverse = np.linalg.inv(k.kernel(NET, x).nngp + NOISE**2 * np.eye(6))
    variance = (1 / np.diag(inverse)).reshape(-1, *[1] * (y.ndim - 1))
    error = (inverse @ y) * variance
    density = scipy.stats.norm(0.0, np.sqrt(variance)).logpdf(error)
    for key in (None, jax.random.key(seed)):
        predictor = partial(k.predict, NET, noise=NOISE)
        found = k.held_out(predictor, x, y, noise=NOISE, folds=6, key=key)
        np.testing.assert_allclose(found.rmse, np.sqrt(np.mean(error**2)), rtol=1e-10)
        np.testing.assert_allclose(found.log_density, np.mean(density), rtol=1e-10)


@pytest.mark.parametrize("folds", [2, 4])
@pytest.mark.parametrize("function", [k.predict, partial(k.predict_trained, time=2.0)])
def test_folds_are_refitted(function, folds):
    """Every row is predicted once, from none of its own fold; rows count the same."""
    x, y, _ = data(7, n=7)
    asked = []

    def predictor(seen, targets, new):
        seen, new = np.asarray(seen), np.asarray(new)
        asked.append((seen, new))
        np.testing.assert_array_equal(
            targets, y[[np.flatnonzero((x == r).all(1))[0] for r in seen]]
        )
        return function(NET, seen, targets, new, noise=NOISE)

    found = k.held_out(predictor, x, y, noise=NOISE, folds=folds)
    rows = np.concatenate([new for _, new in asked])
    np.testing.assert_array_equal(np.sort(rows, 0), np.sort(x, 0))
    sizes = [len(new) for _, new in asked]
    assert len(sizes) == folds
    assert max(sizes) - min(sizes) <= 1
    squares = []
    for seen, new in asked:
        assert len(seen) + len(new) == 7
        held = [np.flatnonzero((x == row).all(1))[0] for row in new]
        rest = np.setdiff1d(np.arange(7), held)
        law = function(NET, x[rest], y[rest], x[held], noise=NOISE)
        squares.append((law.mean - y[held]) ** 2)
    np.testing.assert_allclose(found.rmse, np.sqrt(np.mean(np.concatenate(squares))), rtol=1e-10)


@pytest.mark.parametrize("folds", [1, 7, 2.0])
def test_number_of_folds(folds):
    x, y, _ = data(0)
    with pytest.raises(KernelError, match=rf"`folds` is {folds}; .* from 2 to .* rows, 6"):
        k.held_out(partial(k.predict, NET, noise=NOISE), x, y, noise=NOISE, folds=folds)


# --- Finite networks


@pytest.mark.parametrize("outputs", [1, 3])
def test_tangent_kernel_of_a_linear_function(outputs):
    """`x . x'`, whatever the parameters; and of a scaled function its square times that."""
    weights = np.random.default_rng(0).normal(size=(4, outputs))
    found = k.empirical_ntk(lambda w, x: 3.0 * (x @ w), weights, X, X2)
    np.testing.assert_allclose(found, 9.0 * X @ X2.T, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("seed", SEEDS)
def test_tangent_kernel_of_two_lists_in_either_order(seed):
    params = NET.init(jax.random.key(seed), X.shape)
    kernel = k.empirical_ntk(NET.apply, params, np.concatenate([X, X2]))
    cross = k.empirical_ntk(NET.apply, params, X, X2)
    np.testing.assert_allclose(cross, kernel[:6, 6:], rtol=1e-12)
    np.testing.assert_allclose(k.empirical_ntk(NET.apply, params, X2, X), cross.T, rtol=1e-12)


# --- What is asked of arguments


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (np.ones(3), r"`new` has shape \(3,\).*`x\[:, None\]`"),
        (np.ones((0, 3)), r"`new` has shape \(0, 3\) and is empty"),
        (np.ones((2, 3), complex), r"`new` has dtype complex128.*`new.astype\(float\)`"),
        (np.array([[1.0, np.nan], [-np.inf, 2.0]]), "`new` holds 2 entries that are NaN"),
    ],
)
def test_inputs(value, match):
    with pytest.raises(DataError, match=match):
        nn.require_inputs(value, "new")


@pytest.mark.parametrize("y", [np.ones(5), np.ones((6, 2, 1)), np.ones(())])
def test_targets(y):
    with pytest.raises(DataError, match=r"`y` has shape \(.*\) and `x` has 6 rows"):
        checks.require_targets(y, 6)


def test_what_passes_is_what_was_given():
    np.testing.assert_array_equal(nn.require_inputs(X, "x"), X)
    np.testing.assert_array_equal(checks.require_targets(X, 6), X)
    assert jax.jit(lambda x: checks.require_finite(x, "x"))(jnp.array([np.nan])).shape == (1,)
    assert checks.require_pair(X, X2) is None


def test_training_is_refused_where_rounding_decides():
    """In float32 the means were .03, 4 and 1,400 off at these times, without a word."""
    x, new = np.linspace(-np.pi, np.pi, 100)[:, None], np.linspace(-3.5, 3.5, 7)[:, None]
    layer = nn.Dense(64, 1.5, 0.05)
    net = nn.serial(layer, nn.Erf(), layer, nn.Erf(), nn.Dense(1, 1.5, 0.05))
    single = [array.astype(np.float32) for array in (x, np.sin(x[:, 0]), new)]
    for time in (1e3, 1e5, 1e8):
        with pytest.raises(KernelError, match=r"not positive definite .*compute in float64"):
            k.predict_trained(net, *single, time=np.float32(time))
        lawful = k.predict_trained(net, *single, time=np.float32(time), noise=np.float32(0.3))
        exact = k.predict_trained(net, x, np.sin(x[:, 0]), new, time=time, noise=0.3)
        np.testing.assert_allclose(lawful.mean, exact.mean, atol=1e-3)
        assert k.predict_trained(net, x, np.sin(x[:, 0]), new, time=time).mean.dtype == np.float64
    soon = k.predict_trained(net, *single, time=np.float32(100.0))
    exact = k.predict_trained(net, x, np.sin(x[:, 0]), new, time=100.0)
    np.testing.assert_allclose(soon.mean, exact.mean, atol=5e-3)
    np.testing.assert_allclose(soon.covariance, exact.covariance, atol=1e-4)


@pytest.mark.parametrize("time", [-1.0, "a", None, np.nan])
def test_no_duration(time):
    with pytest.raises(KernelError, match=r"`time` is .*; it should be the duration"):
        k.predict_trained(NET, X, X[:, 0], X, time=time)
