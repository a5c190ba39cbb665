"""Bad input gets a typed error that names the argument and says what helps."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

import volform as vf
from volform.errors import DataError, MetricError, OperatorError, SingularMetricError, SizeError
from volform.linalg import (
    Exact,
    Krylov,
    XTrace,
    condition_number,
    diagonal,
    effective_dimension,
    eigenvalues,
    logdet,
    spectral_density,
    trace,
    under_metric,
)
from volform.operators import (
    empirical_fisher,
    fisher,
    ggn,
    hessian,
    monte_carlo_fisher,
    optimizer_metric,
    sharpness,
)

KEY = jax.random.key(0)
W, X, Y = jnp.array([0.5, -1.0]), jnp.ones((4, 2)), jnp.ones(4)


def loss(w):
    return jnp.sum(w**2)


def network(w, x):
    return w @ x


def normal(z):
    return dist.Normal(z, 1.0)


H = hessian(loss, W)
sums = pytest.mark.parametrize(
    "of",
    [
        ggn,
        fisher,
        empirical_fisher,
        lambda *args, **options: monte_carlo_fisher(*args, key=KEY, **options),
    ],
    ids=["ggn", "fisher", "empirical", "Monte Carlo"],
)


# --- Parameters, losses


@pytest.mark.parametrize(
    "bad",
    [jnp.arange(3), jnp.ones(3, jnp.float16), jnp.ones(3, jnp.bfloat16), jnp.ones(3, complex)],
    ids=lambda a: str(a.dtype),
)
def test_dtypes_of_parameters(bad):
    for make in (lambda p: hessian(loss, p), lambda p: fisher(network, normal, p, (X, Y))):
        with pytest.raises(OperatorError, match=r"`params\['w'\]` of (hessian|fisher) has.*cast"):
            make({"w": bad})


def test_no_parameters():
    with pytest.raises(OperatorError, match=r"`params` of hessian is {} and holds no array"):
        hessian(loss, {})


def test_loss_that_is_no_scalar():
    for bad in (lambda w: w**2, lambda w: (jnp.sum(w), 1.0)):
        with pytest.raises(OperatorError, match=r"`loss` of hessian returned.*sum or average"):
            hessian(bad, W)


def test_loss_that_is_not_finite():
    nowhere = hessian(lambda w: jnp.sum(jnp.log(w)), W - 5.0)
    undefined = hessian(lambda w: jnp.sum(jnp.sqrt(w)), 0.0 * W)
    assert trace(nowhere).value < 0  # log of a negative number: its derivatives exist
    krylov = Krylov(KEY, probes=2, depth=2)
    for functional in (
        trace,
        logdet,
        diagonal,
        eigenvalues_of_two,
        condition_number,
        spectral_density,
        lambda H, by: effective_dimension(H, 1.0, by=by),
    ):
        for by in (Exact(), krylov):
            with pytest.raises(OperatorError, match=r"`operator` of .* not finite; check.*loss"):
                functional(undefined, by=by)


def eigenvalues_of_two(operator, by):
    return eigenvalues(operator, 2, by=by)


def of_example(w, example):
    return jnp.sum(w * example[0]) ** 2 * example[1]


def test_loss_of_one_example():
    for bad in (0, -3, 2.0, True):
        with pytest.raises(OperatorError, match=rf"`chunk` of hessian is {bad}.*at least one"):
            hessian(of_example, W, (X, Y), chunk=bad)
    with pytest.raises(
        OperatorError, match=r"`chunk` of hessian is 2 but there is no `data`.*give"
    ):
        hessian(loss, W, chunk=2)
    with pytest.raises(DataError, match=r"`data` of hessian .* length \[0\].*at least one"):
        hessian(of_example, W, (X[:0], Y[:0]))
    with pytest.raises(DataError, match=r"`data` of hessian .* length \[3, 4\]"):
        hessian(of_example, W, (X, Y[:3]))
    with pytest.raises(DataError, match=r"`data` of hessian .* length \[\]"):
        hessian(of_example, W, ())
    with pytest.raises(OperatorError, match=r"`loss` of hessian returned \(2,\)"):
        hessian(lambda w, example: w * example[0], W, (X, Y))


def test_arithmetic_with_what_is_no_number():
    for bad, role in (
        (lambda: H + W, "added to"),
        (lambda: "0.1" + H, "added to"),
        (lambda: (H + 0.1) + [0.2], "added to"),
        (lambda: H * W, "multiplied with"),
        (lambda: H / None, "the divisor of"),
    ):
        with pytest.raises(OperatorError, match=rf"was to be {role} an operator.*a number"):
            bad()


# --- Networks, likelihoods, data


@sums
@pytest.mark.parametrize("chunk", [0, -3, 2.0, True])
def test_chunk(of, chunk):
    with pytest.raises(OperatorError, match=rf"`chunk` of .* is {chunk}.*at least one"):
        of(network, normal, W, (X, Y), chunk=chunk)


@sums
def test_data(of):
    with pytest.raises(DataError, match=r"`data` of .* leading axes of length \[3, 4\]"):
        of(network, normal, W, (X, Y[:3]))
    with pytest.raises(DataError, match=r"`data` of .* length \[0\].*at least one"):
        of(network, normal, W, (X[:0], Y[:0]))
    with pytest.raises(DataError, match=r"`data` of .* length \[4, None\]"):
        of(network, normal, W, (X, 1.0))
    with pytest.raises(DataError, match=r"`data` of .* should be a pair `\(x, y\)`.*got ndarray"):
        of(network, normal, W, np.ones((4, 2)))


@sums
def test_likelihood_that_does_not_fit(of):
    with pytest.raises(OperatorError, match=r"`likelihood` of .* shape \(\).*`y` has \[\(2,\)\]"):
        of(network, normal, W, (X, jnp.ones((4, 2))))
    with pytest.raises(OperatorError, match=r"`likelihood` of .* shape \(2,\).*`y` has \[\(\)\]"):
        of(lambda w, x: w * x, normal, W, (X, Y))
    with pytest.raises(OperatorError, match=r"`likelihood` of .* does not take the output"):
        of(network, lambda a, b: dist.Normal(a, b), W, (X, Y))
    with pytest.raises(OperatorError, match=r"`likelihood` of .* returned .*NumPyro distribution"):
        of(network, lambda z: z**2, W, (X, Y))


@sums
def test_network_that_does_not_fit(of):
    with pytest.raises(OperatorError, match=r"`network` of .* for one example x.*float64\[2\]"):
        of(lambda w, x: x @ w[:1], normal, W, (X, Y))
    with pytest.raises(OperatorError, match=r"`network` of .* should be real numbers"):
        of(lambda w, x: jnp.argmax(w * x), normal, W, (X, Y))


def test_draws():
    with pytest.raises(OperatorError, match=r"`draws` of monte_carlo_fisher is 0"):
        monte_carlo_fisher(network, normal, W, (X, Y), key=KEY, draws=0)


def two_counts(z):
    each = dist.Poisson(jnp.exp(z)[..., None] * jnp.array([1.0, 3.0]))
    return dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), each)


def test_fisher_without_a_form_or_key():
    operator = fisher(network, two_counts, W, (X, Y))
    with pytest.raises(MetricError, match=r"give a key for Monte Carlo"):
        operator.mv(W)


# --- Metrics


def test_metric_of_another_structure():
    with pytest.raises(MetricError, match=r"`metric` of under_metric acts on .* and `operator` on"):
        under_metric(H, vf.Euclidean(), {"w": W})
    with pytest.raises(MetricError, match=r"`opt_state` of optimizer_metric was made for"):
        under_metric(H, optimizer_metric(adam(jnp.ones(3))), W)


def test_metric_that_is_none():
    for bad in (3.0, lambda w: w**2):
        with pytest.raises(
            MetricError, match=r"`metric` of under_metric is .*function from `params`"
        ):
            under_metric(H, bad, W)


def test_singular_metric():
    for weight in (0.0, -1.0):
        with pytest.raises(SingularMetricError, match=r"`metric` of under_metric is not positive"):
            under_metric(H, lambda w, a=weight: lx.DiagonalLinearOperator(a * w**2), W)


def test_form_that_is_not_symmetric():
    E = under_metric(H, vf.Euclidean(2.0), W)
    with pytest.raises(
        OperatorError, match=r"`operator` of under_metric is UnderMetric.*symmetric"
    ):
        under_metric(E, vf.Euclidean(2.0), W)
    skewed = lx.MatrixLinearOperator(jnp.array([[1.0, 2.0], [0.0, 1.0]]))
    with pytest.raises(
        OperatorError, match=r"`operator` of trace has the term Matrix.*under_metric"
    ):
        trace(skewed)


def test_terms_under_different_metrics():
    E, F = (under_metric(H, vf.Euclidean(scale), W) for scale in (2.0, 3.0))
    for bad in (E + F, E + H):
        with pytest.raises(OperatorError, match=r"`operator` of logdet .*different metrics.*H1"):
            logdet(bad)
    assert trace(E + 0.5 + E).value == 2 * trace(E).value + 1.0


def test_metric_by_products_only():
    n = 50_000
    W = jnp.ones(n)
    H = hessian(loss, W)
    with pytest.raises(SizeError, match=r"\(50000, 50000\), would take 18.6 GiB.*Krylov"):
        under_metric(H, lambda w: hessian(loss, w), W)


# --- Methods


@pytest.mark.parametrize("probes", [1, 0, 2.5, True])
def test_probes(probes):
    for method in (Krylov, XTrace):
        with pytest.raises(OperatorError, match=rf"`probes` of .* is {probes}; a standard error"):
            method(KEY, probes=probes)


def test_depth_and_batch():
    with pytest.raises(OperatorError, match=r"`depth` of Krylov is 0"):
        Krylov(KEY, depth=0)
    with pytest.raises(OperatorError, match=r"`batch` of Krylov is -1"):
        Krylov(KEY, batch=-1)
    with pytest.raises(OperatorError, match=r"`batch` of mm is 0"):
        H.mm(jnp.ones((3, 2)), batch=0)


def test_by_is_no_method():
    for bad in ("exact", Exact, 3):
        with pytest.raises(
            OperatorError, match=r"`by` is .* should be a method such as `Exact\(\)`"
        ):
            trace(H, by=bad)


@pytest.mark.parametrize(
    "functional", [logdet, diagonal, eigenvalues_of_two, condition_number, spectral_density]
)
def test_xtrace_is_for_traces(functional):
    with pytest.raises(OperatorError, match=r"`by` of .* is `XTrace`, which estimates traces only"):
        functional(H, by=XTrace(KEY))


def test_what_is_no_operator():
    with pytest.raises(OperatorError, match=r"`operator` of trace is .*lineax operator"):
        trace(jnp.eye(2))


def test_too_large_for_a_matrix():
    n = 40_000
    H = hessian(loss, jnp.ones(n))
    for ask in (
        H.as_matrix,
        lambda: logdet(H, by=Exact()),
        lambda: eigenvalues(H, by=Exact()),
        lambda: effective_dimension(H, 1.0, by=Exact()),
        lambda: fisher(lambda w, x: jnp.sum(w) * x, normal, jnp.ones(n), (Y, Y)).as_matrix(),
    ):
        with pytest.raises(
            SizeError, match=r"\(40000, 40000\), would take 11.9 GiB.*8 GiB.*Krylov"
        ):
            ask()
    assert issubclass(SizeError, MemoryError)
    assert trace(H, by=Krylov(KEY, probes=2)).value == 2 * n
    assert eigenvalues(H, k=1, by=Krylov(KEY, depth=1)).values[0] == pytest.approx(2.0)


def test_numbers():
    with pytest.raises(OperatorError, match=r"`k` of eigenvalues is 0"):
        eigenvalues(H, 0)
    with pytest.raises(OperatorError, match=r"`k` of eigenvalues is 3, but the operator has 2"):
        eigenvalues(H, 3)
    with pytest.raises(OperatorError, match=r"`damping` of effective_dimension is 0.0"):
        effective_dimension(H, 0.0)
    with pytest.raises(OperatorError, match=r"`width` of a spectral density is -1.0"):
        spectral_density(H)(W, width=-1.0)


# --- Optimizers


def adam(params, count=1):
    squares = jax.tree.map(jnp.ones_like, params)
    return optax.ScaleByAdamState(count=jnp.array(count), mu=squares, nu=squares)


@pytest.mark.parametrize(
    ("state", "name"),
    [
        (optax.lion(0.1).init(W), "ScaleByLionState"),
        (optax.lbfgs(0.1).init(W), "ScaleByLBFGSState"),
        (optax.sm3(0.1).init(W), "ScaleBySM3State"),
        ({"adam": 3}, "dict"),
        ((optax.EmptyState(), (None,)), "NoneType"),
    ],
)
def test_state_of_another_optimizer(state, name):
    with pytest.raises(
        OperatorError, match=f"`opt_state` of optimizer_metric holds a {name}.*Known are"
    ):
        optimizer_metric(state)


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (optax.lion(0.1), "Lion steps by signs"),
        (optax.rprop(0.1), "Rprop steps by signs"),
        (optax.contrib.muon(0.1), "steepest in the spectral norm"),
        (optax.adafactor(0.1), "to a factor for each array only"),
        (optax.novograd(0.1), "NovoGrad normalizes"),
        (optax.adadelta(0.1), "AdaDelta scales by its own past steps"),
        (optax.lbfgs(0.1), "the metric of L-BFGS is no diagonal one"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_optimizers_without_a_metric_say_why(optimizer, reason):
    with pytest.raises(OperatorError, match=f"metric is not known: .*{reason}"):
        optimizer_metric(optimizer.init({"w": jnp.ones((3, 2))}))


def test_state_before_the_first_step():
    with pytest.raises(
        OperatorError, match=r"`opt_state` of optimizer_metric .*after at least one step"
    ):
        optimizer_metric(adam(0.0 * W, count=0))


def test_state_of_two_optimizers():
    with pytest.raises(
        OperatorError, match=r"`opt_state` of optimizer_metric holds 2 running averages"
    ):
        optimizer_metric((adam(W), adam(W)))


def test_sharpness_passes_errors_on():
    with pytest.raises(OperatorError, match=r"`loss` of hessian returned"):
        sharpness(lambda w: w, W)
    with pytest.raises(MetricError, match=r"`metric` of under_metric is"):
        sharpness(loss, W, metric=3.0)
