"""Every functional by every method against the dense matrix: also below one, singular, 1x1."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose
from tests.operators.problems import FAMILIES, PARAMS, X

import volform as vf
from volform.errors import IndefiniteError
from volform.linalg import (
    DenseOperator,
    Exact,
    Krylov,
    XTrace,
    condition_number,
    diagonal,
    effective_dimension,
    eigenvalues,
    logdet,
    spectral_density,
    structure_of,
    trace,
    under_metric,
)
from volform.operators import fisher, hessian


def with_spectrum(values, seed=0):
    """A dense operator with given eigenvalues."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
    return DenseOperator(jnp.asarray((q * values) @ q.T), jnp.zeros(len(values)))


POSITIVE = {
    "below one": with_spectrum(np.geomspace(1e-3, 0.5, 40)),
    "above one": with_spectrum(np.geomspace(2.0, 300.0, 40)),
    "both": with_spectrum(np.geomspace(0.1, 20.0, 40)),
    "twice the identity": 2.0 * lx.IdentityLinearOperator(structure_of(jnp.zeros(40))),
    "two eigenvalues": with_spectrum(np.repeat([0.5, 3.0], 20)),
    "1x1": DenseOperator(jnp.array([[0.2]]), jnp.zeros(())),
    "diagonal": lx.DiagonalLinearOperator({"a": jnp.array(0.5), "b": jnp.array([3.0, 0.1])}),
}
INDEFINITE = with_spectrum(np.array([-2.0, -0.5, 1.0, 4.0, 9.0]))
SINGULAR = with_spectrum(np.array([0.0, 0.0, 1.0, 4.0, 9.0]))
every = pytest.mark.parametrize("name", POSITIVE)


def damped(operator, damping):
    return operator + damping * lx.IdentityLinearOperator(operator.in_structure())


def by(probes=60, depth=40, seed=0):
    return Krylov(jax.random.key(seed), probes=probes, depth=depth)


def within(estimate, expected, sigmas=4.0):
    """Within some standard errors, and rounding."""
    slack = sigmas * np.asarray(estimate.error) + 1e-9 * (1.0 + abs(expected))
    assert (np.abs(estimate.value - expected) <= slack).all(), (estimate, expected)


@every
def test_exact(name):
    matrix = POSITIVE[name].as_matrix()
    values = np.linalg.eigvalsh(matrix)
    assert_allclose(trace(POSITIVE[name], by=Exact()).value, np.trace(matrix), rtol=1e-12)
    assert_allclose(logdet(POSITIVE[name]).value, np.log(values).sum(), rtol=1e-9)
    assert_allclose(condition_number(POSITIVE[name]).value, values[-1] / values[0], rtol=1e-9)
    found = effective_dimension(POSITIVE[name], 0.3)
    assert_allclose(found.value, (values / (values + 0.3)).sum(), rtol=1e-10)
    assert found.error == 0.0
    assert_allclose(ravel_pytree(diagonal(POSITIVE[name]).value)[0], np.diag(matrix), rtol=1e-12)


def test_logdets_of_both_signs_are_tested():
    signs = {int(np.sign(logdet(operator).value)) for operator in POSITIVE.values()}
    assert signs == {-1, 1}


@pytest.mark.parametrize("seed", range(3))
@every
@pytest.mark.rank_promotion  # matfree, in XTrace
def test_krylov_within_its_error(name, seed):
    operator, values = POSITIVE[name], np.linalg.eigvalsh(POSITIVE[name].as_matrix())
    within(trace(operator, by=by(seed=seed)), values.sum())
    within(trace(operator, by=XTrace(jax.random.key(seed), probes=12)), values.sum())
    within(logdet(operator, by=by(seed=seed)), np.log(values).sum())
    within(effective_dimension(operator, 0.3, by=by(seed=seed)), (values / (values + 0.3)).sum())


@every
def test_quadrature_of_full_depth_is_exact_for_each_probe(name):
    """So that the standard error is all the error there is."""
    operator, matrix = POSITIVE[name], POSITIVE[name].as_matrix()
    from volform.linalg.checkpoint import quadratures
    from volform.linalg.lanczos import signs
    from volform.linalg.pencil import pencil

    method = by(probes=3, depth=len(matrix))
    found = quadratures(pencil(operator, "test"), method)
    values, vectors = np.linalg.eigh(matrix)
    for probe, nodes, weights in zip(signs(method, jnp.zeros(len(matrix))), *found, strict=True):
        for f in (np.log, np.sqrt, np.reciprocal):
            expected = np.sum((vectors.T @ probe) ** 2 * f(values)) / len(matrix)
            seen = weights > 0
            assert_allclose(np.sum(weights[seen] * f(nodes[seen])), expected, rtol=1e-9)


@every
def test_top_eigenvalues(name):
    values = np.linalg.eigvalsh(POSITIVE[name].as_matrix())[::-1]
    k = min(3, len(values))
    for method in (Exact(), by(depth=40)):
        found = eigenvalues(POSITIVE[name], k=k, by=method)
        assert_allclose(found.values, values[:k], rtol=1e-9)
        assert (found.residuals < 1e-8 * values[0]).all()
    lowest = eigenvalues(-POSITIVE[name], k=1)
    assert_allclose(-lowest.values[0], values[-1], rtol=1e-9)


def test_residuals_bound_the_error():
    operator = with_spectrum(np.linspace(0.0, 1.0, 300))
    exact = np.linspace(0.0, 1.0, 300)
    found = eigenvalues(operator, k=4, by=Krylov(jax.random.key(1), depth=8))
    distance = np.abs(exact[None] - np.asarray(found.values)[:, None]).min(1)
    assert (found.residuals > 1e-6).any()
    assert (distance <= found.residuals * (1 + 1e-8)).all()
    number = condition_number(damped(operator, 0.5), by=by(depth=60))
    assert abs(number.value - 3.0) <= number.error + 1e-9


def test_residuals_are_true():
    found = eigenvalues(POSITIVE["both"], k=4, by=Krylov(jax.random.key(1), depth=1))
    images = found.vectors @ POSITIVE["both"].as_matrix()
    residual = np.linalg.norm(images - found.values[:, None] * found.vectors, axis=1)
    assert_allclose(found.residuals, residual, rtol=1e-6, atol=1e-12)


def test_spectral_density():
    values = np.linalg.eigvalsh(POSITIVE["both"].as_matrix())
    at = np.linspace(-2.0, 24.0, 600)
    kernel = np.exp(-0.5 * ((at[:, None] - values) / 0.4) ** 2) / (0.4 * np.sqrt(2 * np.pi))
    exact = spectral_density(POSITIVE["both"])(at, width=0.4)
    assert_allclose(exact.value, kernel.mean(1), rtol=1e-9, atol=1e-12)
    estimate = spectral_density(POSITIVE["both"], by=by())(at, width=0.4)
    assert (np.abs(estimate.value - exact.value) <= 5 * estimate.error + 1e-9).all()
    assert_allclose(np.trapezoid(estimate.value, at), 1.0, rtol=1e-3)


def test_diagonal_by_probes():
    operator = POSITIVE["both"]
    found = diagonal(operator, by=by(probes=400))
    within(found, np.diag(operator.as_matrix()), sigmas=5.0)


@pytest.mark.parametrize("operator", [INDEFINITE, SINGULAR], ids=["indefinite", "singular"])
@pytest.mark.parametrize("method", [Exact(), by()], ids=["exact", "Krylov"])
def test_no_logdet_where_there_is_none(operator, method):
    count = "2 are negative and 0 are zero" if operator is INDEFINITE else "0 are negative and 2"
    said = f"of its 5 eigenvalues {count}" if isinstance(method, Exact) else "smallest Ritz value"
    with pytest.raises(IndefiniteError, match=rf"`operator` of logdet.*{said}.*add damping"):
        logdet(operator, by=method)
    with pytest.raises(IndefiniteError, match=r"`operator` of condition_number.*add damping"):
        condition_number(operator, by=method)


@pytest.mark.parametrize("operator", [INDEFINITE, SINGULAR], ids=["indefinite", "singular"])
def test_under_jit_it_is_nan(operator):
    for method in (Exact(), by()):
        assert jnp.isnan(
            jax.jit(lambda m, by=method: logdet(DenseOperator(m, m[0]), by=by).value)(
                operator.matrix
            )
        )
    assert_allclose(
        jax.jit(lambda m: logdet(damped(DenseOperator(m, m[0]), 2.5)).value)(operator.matrix),
        np.log(np.linalg.eigvalsh(operator.matrix) + 2.5).sum(),
        rtol=1e-10,
    )


def test_an_even_number_of_negative_eigenvalues():
    """Whose determinant is positive, and log |det| would be found without complaint."""
    with pytest.raises(IndefiniteError, match=r"2 are negative"):
        logdet(lx.DiagonalLinearOperator(jnp.array([-1.0, -2.0, 3.0])))
    with pytest.raises(IndefiniteError, match=r"3 are negative"):
        effective_dimension(with_spectrum(np.array([-3.0, -2.0, -1.5, 4.0])), 1.0)
    with pytest.raises(IndefiniteError, match=r"smallest Ritz value is -2"):
        effective_dimension(with_spectrum(np.array([-3.0, -2.0, 1.5, 4.0])), 1.0, by=by())


def test_units_make_no_operator_singular():
    scales = jnp.array([1e-9, 1.0, 1e9])
    matrix = scales[:, None] * (jnp.eye(3) + 0.5) * scales[None]
    expected = np.log(np.linalg.det(np.eye(3) + 0.5)) + 2 * np.log(scales).sum()
    assert_allclose(logdet(DenseOperator(matrix, scales)).value, expected, rtol=1e-10, atol=1e-10)


# --- The dual form


def gram_and_prior(name, factor):
    net, likelihood, y, _ = FAMILIES[name]
    gram = fisher(net, likelihood, PARAMS, (X, y))
    prior = lx.DiagonalLinearOperator(jax.tree.map(lambda a: factor * (1.0 + a**2), PARAMS))
    return gram, prior


@pytest.mark.parametrize("factor", [1e-2, 1.0, 100.0])
@pytest.mark.parametrize("name", ["Normal", "Categorical"])
def test_dual_form(name, factor):
    """7 rows against 14 parameters, and 14 against 14; as the dense matrix has it."""
    gram, prior = gram_and_prior(name, factor)
    for total in (
        prior + gram,
        gram + prior,
        prior + 0.5 * gram,
        gram + 0.3,
        gram / 2 + gram + prior,
    ):
        expected = np.linalg.slogdet(total.as_matrix())[1]
        assert_allclose(logdet(total).value, expected, rtol=1e-9, atol=1e-9)
        assert_allclose(
            eqx.filter_jit(lambda t: logdet(t).value)(total), expected, rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize(
    "metric",
    [vf.Euclidean(0.3), vf.geometry.MatrixField(lambda **p: 2.0 * jnp.eye(14) + 0.5)],
    ids=["diagonal", "dense"],
)
def test_dual_form_under_a_metric(metric):
    gram, _ = gram_and_prior("Normal", 1.0)
    E = under_metric(gram, metric, PARAMS)
    matrix = np.linalg.solve(metric(PARAMS).as_matrix(), gram.as_matrix())
    expected = np.linalg.slogdet(matrix + 0.2 * np.eye(14))[1]
    assert_allclose(logdet(E + 0.2).value, expected, rtol=1e-9)
    with pytest.raises(IndefiniteError, match=r"0 are negative and 7 are zero"):
        logdet(E)


def test_dual_form_is_not_taken_where_it_does_not_hold():
    """A negative multiple of the Gram matrix, and a diagonal that is not positive."""
    gram, prior = gram_and_prior("Normal", 100.0)
    total = prior - 1e-3 * gram
    assert_allclose(logdet(total).value, np.linalg.slogdet(total.as_matrix())[1], rtol=1e-9)
    with pytest.raises(IndefiniteError, match=r"are negative"):
        logdet(gram - 0.1)


def test_large_diagonal_without_a_matrix():
    """A million coordinates and two rows: by the dual form, or not at all."""
    n = 1_000_000
    gram = fisher(
        lambda w, x: jnp.sum(w) * x, lambda z: dist.Normal(z, 1.0), jnp.ones(n), (jnp.ones(2),) * 2
    )
    assert_allclose(logdet(gram + 0.5).value, n * np.log(0.5) + np.log(1 + 4 * n), rtol=1e-12)
    assert_allclose(trace(gram, by=Exact()).value, 2 * n, rtol=1e-12)


# --- Transformations


def test_derivatives():
    """In what the loss depends on, forward and reverse."""

    def loss(x, a):
        return jnp.sum(jnp.cosh(x * jnp.arange(1.0, 5.0)) * a) + 0.3 * (jnp.sum(x) - a) ** 2

    def function(which):
        def value(a):
            H = hessian(lambda x: loss(x, a), jnp.linspace(0.1, 0.4, 4))
            return which(H).value

        return value

    method = Krylov(jax.random.key(0), probes=4, depth=3)
    for which in (
        logdet,
        lambda H: logdet(H, by=method),
        lambda H: effective_dimension(H, 1.0),
    ):
        value, at = function(which), 0.7
        above, below = jax.jit(jax.vmap(value))(jnp.array([at + 1e-5, at - 1e-5]))
        slope = (above - below) / 2e-5
        assert_allclose(jax.grad(value)(at), slope, rtol=1e-6)
        assert_allclose(jax.jvp(value, (at,), (1.0,))[1], slope, rtol=1e-6)


def test_vmap():
    def value(a):
        H = hessian(lambda x: jnp.sum(a * x**2) + jnp.prod(x), jnp.ones(3))
        return logdet(H).value, eigenvalues(H, k=1).values[0]

    stacked = jax.vmap(value)(jnp.array([2.0, 3.0]))
    for i, a in enumerate((2.0, 3.0)):
        assert_allclose([part[i] for part in stacked], value(jnp.array(a)), rtol=1e-10)


def test_repr():
    assert repr(trace(POSITIVE["1x1"])) == "Estimate(0.2)"
    assert " ± " in repr(trace(POSITIVE["both"], by=by()))
    assert repr(eigenvalues(POSITIVE["1x1"], k=1)).startswith("Eigenpairs(0.2 ±")
    shown = []
    jax.jit(lambda: shown.append(repr(trace(POSITIVE["both"]))) or 0)()
    jax.jit(lambda m: shown.append(repr(eigenvalues(DenseOperator(m, m[0]), k=1))) or 0)(jnp.eye(2))
    assert all(
        "ShapedArray" in text or "JitTracer" in text or "Estimate(" in text for text in shown
    )


@pytest.mark.leaks
def test_operators_pass_through_jit():
    H = hessian(jax.tree_util.Partial(lambda a, x: jnp.sum(a * x**4), 2.0), jnp.ones(3))
    assert_allclose(eqx.filter_jit(lambda H: trace(H).value)(H), 72.0)


@pytest.mark.float32
def test_float32():
    values = np.geomspace(0.05, 20.0, 30)
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))
    operator = DenseOperator(
        jnp.asarray((q * values) @ q.T, jnp.float32), jnp.zeros(30, jnp.float32)
    )
    expected = np.log(values).sum()
    for estimate in (logdet(operator), logdet(operator, by=by())):
        assert estimate.value.dtype == jnp.float32
        assert abs(estimate.value - expected) <= 4 * estimate.error + 1e-3
    assert_allclose(trace(operator).value, values.sum(), rtol=1e-5)
    assert_allclose(eigenvalues(operator, k=2, by=by()).values, values[:-3:-1], rtol=1e-4)
    net, likelihood, y, _ = FAMILIES["Normal"]
    params = jax.tree.map(lambda a: a.astype(jnp.float32), PARAMS)
    gram = fisher(net, likelihood, params, (X, y))
    assert vf.operators.ggn(net, likelihood, params, (X, y)).row_count() == 7
    expected = np.linalg.slogdet(np.asarray(gram.as_matrix(), float) + 0.5 * np.eye(14))[1]
    assert_allclose(logdet(gram + 0.5).value, expected, rtol=1e-4)


def test_convolutions_step_by_step():
    """Outside of `jit` products and Lanczos steps of convolutions are no loop of XLA's."""
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 12)))

    def loss(kernel):
        z = jax.lax.conv_general_dilated(image, kernel, (1,), "VALID")
        return jnp.sum(jnp.cosh(z)) + jnp.sum(kernel**2)

    at = 0.1 * jnp.ones((2, 1, 5))
    H = vf.operators.hessian(loss, at)
    by = Krylov(jax.random.key(1), probes=4, depth=6, batch=3)
    for functional in (trace, diagonal):
        inside = jax.jit(lambda at: functional(vf.operators.hessian(loss, at), by=by).value)(at)  # noqa: B023
        assert_allclose(functional(H, by=by).value, inside, rtol=1e-10)
    outside = logdet(H, by=by)
    inside = jax.jit(lambda: logdet(H, by=by).value)()
    assert_allclose(outside.value, inside, rtol=1e-10)
    top = eigenvalues(H, 3, by=by).values
    inside = jax.jit(lambda: eigenvalues(H, 3, by=by).values)()
    assert_allclose(top, inside, rtol=1e-10)
