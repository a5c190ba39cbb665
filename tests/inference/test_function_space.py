"""Laplace in function space: against matrices written out, and against all parameters."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import volform as vf
from volform import networks as nn
from volform.errors import SizeError, StructureError
from volform.inference import (
    ExpectedFisher,
    FunctionSpace,
    LaplaceBridge,
    LastLayer,
    Linearized,
    Nystrom,
    PerLayer,
)
from volform.inference.laplace.function_space import _leverages, _prepared
from volform.inference.laplace.jacobian_rows import (
    JacobianRows,
    jacobian_update,
    kernel_between,
    squared_lengths,
)

RNG = np.random.default_rng(5)
X = jnp.asarray(RNG.normal(size=(12, 2)))
NEW = jnp.asarray(RNG.normal(size=(5, 2)))
NET = nn.MLP(widths=(6,), outputs=3, w_std=1.5, b_std=0.5)
AT = NET.init(jax.random.key(1), 2)


@functools.cache
def of_classes() -> vf.models.Posterior:
    return vf.condition(nn.classification(NET), X, jnp.arange(12) % 3)


def curved(a, x, y=None):
    """No network: what multiplies the data is no multiple of a site."""
    w: Any = numpyro.sample("w", dist.Normal(jnp.zeros(3), jnp.asarray([0.5, 1.0, 2.0])))
    numpyro.sample("y", dist.Normal(a * jnp.tanh(w[0]) + x * w[1] * w[2], 0.3), obs=y)


def fourier(x, y=None):
    """Two outputs, linear in 30 features of an interval."""
    w: Any = numpyro.sample("w", dist.Normal(jnp.zeros((30, 2)), 1.0).to_event(2))
    k = jnp.arange(1.0, 31.0)
    features = jnp.cos(x[:, None] * k[None]) / k[None]
    numpyro.sample("y", dist.Normal(features @ w, jnp.asarray([0.3, 0.1])), obs=y)


def of_one(posterior, at, structure, curvature=None):
    return vf.laplace(posterior, at=at, curvature=curvature or vf.GGN(), structure=structure)


def covariances(approx, x):
    """The joint covariance of the logits, in the parameters of a Dirichlet distribution."""
    return approx.predictive(x, by=Linearized(link=LaplaceBridge()))["y"].probs


@pytest.mark.parametrize("structure", [FunctionSpace(), Nystrom(36)])
def test_it_is_the_whole_matrix(structure):
    """Evidence, predictions of classes by their joint covariance, and the covariance itself."""
    full, found = of_one(of_classes(), AT, None), of_one(of_classes(), AT, structure)
    assert_allclose(found.evidence.log_z, full.evidence.log_z, rtol=1e-10)
    assert_allclose(covariances(found, NEW), covariances(full, NEW), rtol=1e-9)
    assert_allclose(found.covariance, full.covariance, rtol=1e-8, atol=1e-10)
    v = jnp.asarray(RNG.normal(size=of_classes().dim))
    assert_allclose(found.precision.mv(v), full.precision.mv(v), rtol=1e-9)


def test_chunks_are_the_whole():
    whole, chunked = (of_one(of_classes(), AT, FunctionSpace(), vf.GGN(chunk=c)) for c in (None, 5))
    assert_allclose(chunked.evidence.log_z, whole.evidence.log_z, rtol=1e-11)
    assert_allclose(covariances(chunked, NEW), covariances(whole, NEW), rtol=1e-9)
    v = jnp.asarray(RNG.normal(size=of_classes().dim))
    assert_allclose(chunked.precision.mv(v), whole.precision.mv(v), rtol=1e-10)


def test_draws_have_the_covariance_of_all_parameters():
    full, found = of_one(of_classes(), AT, None), of_one(of_classes(), AT, FunctionSpace())
    root = vf.linalg.whitening_maps(found.precision)[0]
    half = jax.vmap(root)(jnp.eye(of_classes().dim))
    assert_allclose(half @ half.T, full.covariance, rtol=1e-8, atol=1e-10)
    assert found.sample(jax.random.key(0), 7).values["layer0.w"].shape == (7, 6, 2)


def test_the_process_of_a_linear_model_in_closed_form():
    """Bayesian linear regression: mean and variance of a Gaussian process with a linear kernel."""
    x, noise = jnp.asarray(RNG.normal(size=(7, 20))), 0.4
    y = jnp.asarray(RNG.normal(size=7))

    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(jnp.zeros(20), 1.5).to_event(1))
        numpyro.sample("y", dist.Normal(x @ w, noise), obs=y)

    K = 1.5**2 * x @ x.T + noise**2 * jnp.eye(7)
    at = {"w": 1.5**2 * x.T @ jnp.linalg.solve(K, y)}
    found = of_one(vf.condition(model, x, y), at, FunctionSpace())
    exact = dist.MultivariateNormal(jnp.zeros(7), K).log_prob(y)
    assert_allclose(found.evidence.log_z, exact, rtol=1e-11)
    new = jnp.asarray(RNG.normal(size=(4, 20)))
    cross = 1.5**2 * new @ x.T
    variance = 1.5**2 * jnp.sum(new**2, 1) + noise**2
    variance -= jnp.sum(cross * jnp.linalg.solve(K, cross.T).T, 1)
    assert_allclose(found.predictive(new, by=Linearized())["y"].variance, variance, rtol=1e-11)


def test_a_model_without_layers():
    a, x = X[:, 0], X[:, 1]
    at = {"w": jnp.asarray([0.3, 0.7, -0.4])}
    posterior = vf.condition(curved, a, x, jnp.sin(x))
    full, found = of_one(posterior, at, None), of_one(posterior, at, FunctionSpace())
    precision: Any = found.precision
    assert precision.rows.uniform is None
    assert_allclose(found.evidence.log_z, full.evidence.log_z, rtol=1e-11)
    ours, theirs = (f.predictive(a, x, by=Linearized())["y"].variance for f in (found, full))
    assert_allclose(ours, theirs, rtol=1e-9)


def images(x, y=None):
    """A convolution, the last of whose sites has a prior scale for each entry."""
    w: Any = numpyro.sample("w", dist.Normal(jnp.zeros((2, 1, 3, 3)), 0.5))
    v: Any = numpyro.sample(
        "v", dist.Normal(jnp.zeros((2, 2)), jnp.asarray([[1.0, 2.0], [0.5, 1.0]]))
    )
    h = jax.lax.conv(x, w, (1, 1), "VALID")
    numpyro.sample("y", dist.Normal(jnp.tanh(h).mean((2, 3)) @ v, 0.3), obs=y)


def sequences(x, y=None):
    """A table of rows, at two positions of which one may be the same, and a layer of both."""
    e: Any = numpyro.sample("e", dist.Normal(jnp.zeros((5, 3)), 0.5))
    w: Any = numpyro.sample("w", dist.Normal(jnp.zeros((3, 2)), 2.0))
    numpyro.sample("y", dist.Normal((jnp.tanh(e[x]) @ w).mean(1), 0.3), obs=y)


def written(model):
    """Data, a posterior, a random point, and J of the mean by `jacrev`, scaled to one noise."""
    x = jnp.asarray(RNG.normal(size=(6, 1, 5, 5)))
    if model is sequences:
        x = jnp.asarray(RNG.integers(0, 5, size=(6, 2)))
    posterior = vf.condition(model, x, jnp.zeros((6, 2)))
    u = jnp.asarray(RNG.normal(size=posterior.dim))
    split = vf.GGN().split(posterior, u)

    def mean(u: Any) -> Any:
        trace: Any = numpyro.handlers.trace(
            numpyro.handlers.substitute(model, data=posterior.values(u))
        ).get_trace(x, jnp.zeros((6, 2)))
        return trace["y"]["fn"].loc.ravel()

    jacobian: Any = jax.jit(jax.jacrev(mean))
    return split, jacobian(u) / 0.3


@pytest.mark.parametrize("model", [images, sequences])
@pytest.mark.parametrize("by_layers", [True, False])
def test_the_kernel_is_that_of_the_jacobian(model, by_layers):
    split, J = written(model)
    rest, uniform = _prepared(FunctionSpace(), split)
    assert uniform == {images: {"w"}, sequences: {"e", "w"}}[model]
    rows = JacobianRows(split, None, uniform if by_layers else None)
    found = eqx.filter_jit(kernel_between)(rows, rows, 1.0 / rest)
    # The root is one up to a rotation of each example's columns, here of a multiple of one.
    found = sorted_by_columns(found)
    assert_allclose(found, sorted_by_columns((J / rest) @ J.T), rtol=1e-9, atol=1e-11)
    squares = eqx.filter_jit(squared_lengths)(rows, 1.0 / rest)
    assert_allclose(squares, jnp.diagonal(eqx.filter_jit(kernel_between)(rows, rows, 1.0 / rest)))


def sorted_by_columns(kernel):
    """Invariants of the blocks of pairs of examples under rotations of their columns."""
    blocks = kernel.reshape(6, 2, 6, 2).transpose(0, 2, 1, 3)
    return jnp.linalg.svd(blocks, compute_uv=False)


def smoother():
    """A split, and log det P and the diagonal of `K (I + K)^-1` from the Jacobian written out.

    Columns of the root of L are in ascending order, the output of smaller noise last.
    """
    x = jnp.linspace(0.0, 3.0, 20)
    posterior = vf.condition(fourier, x, jnp.stack([jnp.sin(x), x], 1))
    split = vf.GGN().split(posterior, jnp.zeros(posterior.dim))
    J = jax.jit(jax.jacrev(lambda u: split.parameters(u)["y"][0].loc))(split.u)
    C = (J / jnp.asarray([0.3, 0.1])[None, :, None]).reshape(40, -1)
    K, one = C @ C.T, jnp.eye(40)
    return split, jnp.linalg.slogdet(one + K)[1], jnp.diagonal(jnp.linalg.solve(one + K, K))


def test_more_features_come_nearer_to_all():
    """log Z is an upper bound that falls; the error of the variances falls to rounding."""
    split, log_det, variances = smoother()
    found = [Nystrom(n).precision(split) for n in (4, 20, 40)]
    logs = [float(vf.linalg.exact_logdet(precision)) for precision in found]
    assert logs[0] < logs[1] < log_det
    assert_allclose(logs[2], log_det, rtol=1e-9)
    gaps = [float(jnp.max(jnp.abs(_leverages(p, split) / variances - 1.0))) for p in found]
    assert gaps[0] > 1.0
    assert gaps[1] < 0.2 * gaps[0]
    assert gaps[2] < 1e-6


def test_leverage_is_the_diagonal_of_the_smoother():
    split, _, variances = smoother()
    rest, uniform = _prepared(FunctionSpace(), split)
    for known in (uniform, None):  # by layers, and by products
        found = jacobian_update(rest, JacobianRows(split, None, known))
        assert_allclose(_leverages(found, split), variances, rtol=1e-8)
    # Rows of the output whose noise is small are chosen oftener than the half of a uniform choice.
    chosen: list[Any] = [
        Nystrom(8, jax.random.key(k), leverage=True).precision(split).rows.columns
        for k in range(20)
    ]
    share = float(np.mean(chosen))
    expected = float(variances.reshape(20, 2)[:, 1].sum() / variances.sum())
    assert 0.5 + 0.5 * (expected - 0.5) < share


def columns_of(precision: Any) -> jax.Array:
    return precision.rows.columns


def test_tuning_is_that_of_the_whole_matrix():
    full, found = (
        vf.tune(of_one(of_classes(), AT, s), scales=PerLayer()) for s in (None, FunctionSpace())
    )
    assert_allclose(found.log_z, full.log_z, rtol=1e-9)
    assert_allclose(found.approx.evidence.log_z, full.approx.evidence.log_z, rtol=1e-9)


def test_the_last_layer():
    full, found = (
        of_one(of_classes(), AT, LastLayer(s)) for s in (vf.inference.Full(), FunctionSpace())
    )
    assert_allclose(found.evidence.log_z, full.evidence.log_z, rtol=1e-10)


def test_no_array_is_of_the_size_of_the_jacobian():
    """60 examples and 40,601 parameters: 2.4 million entries of J; the program holds none such."""
    net = nn.MLP(widths=(200, 200), w_std=1.0, b_std=1.0)
    x = jnp.asarray(RNG.normal(size=(60, 2)))
    posterior = vf.condition(nn.regression(net, 0.3), x, x[:, :1])
    u = posterior.unconstrain(net.init(jax.random.key(0), 2))
    split = vf.GGN().split(posterior, u)
    rest, uniform = _prepared(FunctionSpace(), split)

    def factor(split):
        return jacobian_update(rest, JacobianRows(split, None, uniform)).factor

    jaxpr = eqx.filter_make_jaxpr(factor)(split)[0]
    assert largest(jaxpr.jaxpr) <= 4 * u.size


def largest(jaxpr) -> int:
    """Entries of the largest array of a program."""
    sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars if hasattr(v.aval, "size")]
    inner = []
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            own = getattr(value, "jaxpr", value)
            inner += [largest(own)] if hasattr(own, "eqns") else []
    return max([*sizes, *inner], default=0)


@pytest.mark.float32
def test_single_precision():
    full, found = of_one(of_classes(), AT, None), of_one(of_classes(), AT, FunctionSpace())
    assert_allclose(found.evidence.log_z, full.evidence.log_z, rtol=1e-5)
    assert_allclose(covariances(found, NEW), covariances(full, NEW), rtol=1e-4)


@pytest.mark.float32
def test_a_kernel_that_single_precision_cannot_factorize():
    x = jnp.ones((40, 2)) + 1e-3 * jnp.asarray(RNG.normal(size=(40, 2)))
    posterior = vf.condition(nn.regression(nn.MLP(widths=(40,)), 1e-6), x, x[:, :1])
    at = nn.MLP(widths=(40,)).init(jax.random.key(0), 2)
    with pytest.raises(StructureError, match="is beyond the digits of float32"):
        of_one(posterior, at, FunctionSpace())


def two(x, y=None):
    """Location and scale by a network: GGN is indefinite."""
    w: Any = numpyro.sample("w", dist.Normal(jnp.zeros((2, 2)), 1.0).to_event(2))
    z = x @ w
    numpyro.sample("y", dist.Normal(z[:, 0], jnp.exp(z[:, 1])), obs=y)


def test_a_network_that_says_its_noise():
    posterior, at = vf.condition(two, X, X[:, 0] - X[:, 1]), {"w": jnp.full((2, 2), 0.3)}
    with pytest.raises(StructureError, match=r"log-concave.*ExpectedFisher"):
        of_one(posterior, at, FunctionSpace())
    full, found = (of_one(posterior, at, s, ExpectedFisher()) for s in (None, FunctionSpace()))
    assert_allclose(found.evidence.log_z, full.evidence.log_z, rtol=1e-10)


def correlated(x, y=None):
    w: Any = numpyro.sample(
        "w", dist.MultivariateNormal(jnp.zeros(2), jnp.asarray([[1.0, 0.5], [0.5, 1]]))
    )
    numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def scalar(y):
    w: Any = numpyro.sample("w", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(w, 1.0), obs=y)


def held(y):
    w: Any = numpyro.sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    numpyro.sample("y", dist.Normal(X @ w, 1.0), obs=y)


def closed():
    w: Any = numpyro.sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    numpyro.sample("y", dist.Normal(X @ w, 1.0), obs=X[:, 0])


def joint(x, y=None):
    w: Any = numpyro.sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    numpyro.sample("y", dist.MultivariateNormal(x @ w, 0.5 * jnp.eye(12) + 0.5), obs=y)


def wide(y):
    w: Any = numpyro.sample("w", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(w * jnp.ones(40_000), 1.0).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("model", "data", "structure", "message"),
    [
        (correlated, (X, X[:, 0]), FunctionSpace(), "covariant Hessian is diagonal"),
        (scalar, (jnp.asarray(1.0),), FunctionSpace(), "shape"),
        (held, (X[:, 0],), Nystrom(4), "here it raises ValueError"),
        (closed, (), Nystrom(4), "gives all of them"),
        (joint, (X, X[:, 0]), FunctionSpace(), "examples are coupled"),
    ],
)
def test_models_that_do_not_fit(model, data, structure, message):
    posterior = vf.condition(model, *data)
    at = {name: jnp.zeros(posterior.layout.site(name).shape) for name in posterior.names}
    with pytest.raises(StructureError, match=message):
        of_one(posterior, at, structure)


def test_too_many_rows():
    posterior = vf.condition(wide, jnp.zeros(40_000))
    with pytest.raises(SizeError, match=r"kernel of 40,000 rows.*Nystrom"):
        of_one(posterior, {"w": 0.0}, FunctionSpace())


def test_what_is_refused():
    with pytest.raises(StructureError, match="needs `curvature=GGN"):
        vf.laplace(of_classes(), at=AT, structure=FunctionSpace(), refuse=False)
    batches = vf.condition(nn.classification(NET), vf.Batches.of(X, jnp.arange(12) % 3, size=6))
    with pytest.raises(StructureError, match="`Batches`"):
        of_one(batches, AT, FunctionSpace())
    for bad in (0, 2.5, True):
        with pytest.raises(StructureError, match="`features`"):
            Nystrom(bad)  # pyright: ignore
    with pytest.raises(StructureError, match="`key`"):
        Nystrom(3, key=7)  # pyright: ignore
    with pytest.raises(StructureError, match="`leverage`"):
        Nystrom(3, leverage="yes")  # pyright: ignore


@pytest.mark.float32
def test_digits_that_precise_data_take_are_missed_before_they_are_gone() -> None:
    """With noise .01 variances would be off by 2 %, with .001 negative."""
    net = nn.MLP(widths=(6,), activation=jnp.tanh, w_std=1.5, b_std=0.5)
    x = jax.random.normal(jax.random.key(0), (40, 2))
    at = net.init(jax.random.key(0), 2)
    structure = FunctionSpace()
    for noise in (0.1, 0.01, 0.001):
        posterior = vf.condition(nn.regression(net, noise), x, net.apply(at, x))
        if noise < 0.1:
            with pytest.raises(StructureError, match="is beyond the digits of float32"):
                vf.laplace(posterior, at=at, curvature=vf.GGN(), structure=structure)
            continue
        approx = vf.laplace(posterior, at=at, curvature=vf.GGN(), structure=structure)
        assert_allclose(approx.evidence.log_z, 19.202, atol=1e-3)  # of float64


@pytest.mark.float32
def test_digits_are_missed_of_an_odd_function_at_inputs_on_both_sides_of_zero() -> None:
    """The largest eigenvector of the kernel is odd, at right angles to all that is even."""
    net = nn.MLP(widths=(6,), activation=jnp.tanh, w_std=1.5)
    x = jax.random.normal(jax.random.key(0), (20, 2))
    x, at = jnp.concatenate([x, -x]), net.init(jax.random.key(0), 2)
    posterior = vf.condition(nn.regression(net, 0.003), x, net.apply(at, x))
    with pytest.raises(StructureError, match="is beyond the digits of float32"):
        vf.laplace(posterior, at=at, curvature=vf.GGN(), structure=FunctionSpace())
