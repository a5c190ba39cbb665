import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.distributions import transforms

import volform as vf
from volform.errors import MetricError
from volform.geometry import DiagonalField, MatrixField, Product, log_volume
from volform.linalg import BlockDiagonal, DenseOperator, exact_logdet

from .laws import CURVED, PHI, POINT, close, law

X = jnp.array([0.3, -1.2, 2.0])
NAMED = {"b": jnp.array([0.3, -1.2]), "a": jnp.array(2.0)}
GROUP = (jnp.array(0.5), jnp.array([1.0, 2.0]))

FISHER = vf.Fisher(lambda x: dist.Gamma(jnp.exp(x[:2]), jnp.exp(x[2])))
SQUARES = DiagonalField(lambda x: 1.0 + x**2)
BLOCKS = Product({"a": vf.Euclidean(0.5), "b": MatrixField(lambda b: jnp.eye(2) + jnp.outer(b, b))})


class OfModel(vf.Metric):
    """A metric that is read off a model, as a metric on the unconstrained points."""

    posterior: vf.models.Posterior

    def __call__(self, u):
        return self.posterior.metric(u)


class Damped(vf.models.ModelMetric):
    """A user's own: the squared log likelihood's slope, and the identity."""

    def gram(self, model, u):
        slope = jax.grad(model.log_likelihood)(u)
        return jnp.eye(u.size) + jnp.outer(slope, slope)


def counts(table):
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    numpyro.sample("y", dist.Poisson(jnp.exp(table @ weights)), obs=jnp.array([1, 0, 3, 2]))


def of_model(metric):
    table = jnp.array([[0.5, -0.2, 0.1], [0.3, 0.4, 0.7], [-0.6, 0.1, 0.2], [0.2, 0.3, -0.5]])
    return OfModel(vf.condition(vf.attach(counts, metric), table))


# Every kind of metric, with a point of it and the type of its operator there.
METRICS = {
    "Euclidean": (vf.Euclidean(), X, lx.IdentityLinearOperator),
    "Euclidean, scale": (vf.Euclidean(2.0), X, lx.DiagonalLinearOperator),
    "Euclidean, scales": (vf.Euclidean(jnp.array([1.0, 2.0, 3.0])), X, lx.DiagonalLinearOperator),
    "Euclidean, named": (vf.Euclidean(2.0), NAMED, lx.DiagonalLinearOperator),
    "DiagonalField": (SQUARES, X, lx.DiagonalLinearOperator),
    "DiagonalField, group": (
        DiagonalField(lambda a, b: (1.0 + a**2, 2.0 + b)),
        GROUP,
        lx.DiagonalLinearOperator,
    ),
    "MatrixField": (MatrixField(lambda x: jnp.eye(3) + jnp.outer(x, x)), X, DenseOperator),
    "MatrixField, named": (
        MatrixField(lambda a, b: jnp.eye(3) * (1 + a**2 + b @ b)),
        NAMED,
        DenseOperator,
    ),
    "Fisher": (FISHER, X, DenseOperator),
    "Product": (BLOCKS, NAMED, BlockDiagonal),
    "sum, diagonal": (vf.Euclidean() + SQUARES, X, lx.DiagonalLinearOperator),
    "sum, dense": (FISHER + vf.Euclidean(), X, DenseOperator),
    "sum, blocks": (BLOCKS + BLOCKS, NAMED, BlockDiagonal),
    "sum, blocks and diagonal": (BLOCKS + vf.Euclidean(), NAMED, BlockDiagonal),
    "sum, diagonal and blocks": (vf.Euclidean() + BLOCKS, NAMED, BlockDiagonal),
    "multiple of the identity": (3.0 * vf.Euclidean(), X, lx.DiagonalLinearOperator),
    "multiple, diagonal": (SQUARES * 3.0, X, lx.DiagonalLinearOperator),
    "multiple, dense": (0.1 * FISHER, X, DenseOperator),
    "multiple, blocks": (0.1 * BLOCKS, NAMED, BlockDiagonal),
    "pull-back": (vf.pullback(SQUARES, jnp.sinh), X, DenseOperator),
    "pull-back, elementwise": (
        vf.pullback(SQUARES, jnp.sinh, elementwise=True),
        X,
        lx.DiagonalLinearOperator,
    ),
    "pull-back, group": (
        vf.pullback(vf.Euclidean(), lambda a, b: jnp.append(jnp.exp(a) * b, a)),
        GROUP,
        DenseOperator,
    ),
    "pull-back, named": (
        vf.pullback(SQUARES, lambda a, b: jnp.append(a * b, a)),
        NAMED,
        DenseOperator,
    ),
    "read off a model, joint": (of_model(vf.JointFisher()), X, lx.MatrixLinearOperator),
    "read off a model, likelihood": (of_model(vf.LikelihoodFisher()), X, lx.MatrixLinearOperator),
    "read off a model, soft": (of_model(vf.models.SoftAbs(2.0)), X, lx.MatrixLinearOperator),
    "read off a model, observed": (
        of_model(vf.models.ObservedInformation()),
        X,
        lx.MatrixLinearOperator,
    ),
    "read off a model, own": (of_model(Damped()), X, lx.MatrixLinearOperator),
}
every_metric = pytest.mark.parametrize(
    ("metric", "point", "operator"), METRICS.values(), ids=METRICS
)


def operator_at(metric, point):
    """The operator, as it comes out of a compiled function."""
    return jax.jit(lambda point: metric(point))(point)


# --- Laws of every metric


@every_metric
def test_symmetric_positive_definite_and_of_its_structure(metric, point, operator):
    found = operator_at(metric, point)
    assert type(found) is operator
    like = jax.tree.map(lambda leaf: leaf.shape, found.in_structure())
    assert like == jax.tree.map(jnp.shape, point)
    matrix = np.asarray(found.as_matrix())
    assert_allclose(matrix, matrix.T, rtol=1e-14)
    assert np.linalg.eigvalsh(matrix).min() > 0
    volume = jax.jit(lambda point: log_volume(metric, point))(point)
    assert_allclose(volume, 0.5 * np.linalg.slogdet(matrix)[1], rtol=1e-12)


@every_metric
def test_under_jit_vmap_and_grad(metric, point, operator):
    volume = jax.jit(lambda point: log_volume(metric, point))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 0.1]), point)
    volumes = jax.jit(jax.vmap(volume))(stacked)
    assert_allclose(volumes[0], volume(point), rtol=1e-12)

    def shifted(t):
        return volume(jax.tree.map(lambda leaf: leaf + t, point))

    pulled = jax.jit(jax.grad(volume))(point)
    slope = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(pulled))
    assert_allclose(slope, (shifted(1e-5) - shifted(-1e-5)) / 2e-5, atol=1e-8)


# --- Algebra


@law((1, 3))
def test_sums_and_multiples(s):
    other = vf.pullback(vf.Euclidean(), s.g)
    g, h = s.metric(s.x).as_matrix(), other(s.x).as_matrix()
    combined = 2.0 * (s.metric + 3.0 * other) + s.metric
    return combined(s.x).as_matrix(), 3.0 * g + 6.0 * h


@law((1, 3))
def test_pullback_composes(s):
    """(g o f)^* G = f^* g^* G."""
    once = vf.pullback(s.metric, lambda x: s.g(s.f(x)))
    twice = vf.pullback(vf.pullback(s.metric, s.g), s.f)
    return twice(s.x).as_matrix(), once(s.x).as_matrix()


@law((1, 3))
def test_pullback_is_linear(s):
    other = vf.pullback(vf.Euclidean(), s.g)
    one = vf.pullback(s.metric + 2.0 * other, s.f)
    two = vf.pullback(s.metric, s.f) + 2.0 * vf.pullback(other, s.f)
    return one(s.x).as_matrix(), two(s.x).as_matrix()


@law((1, 3))
def test_pullback_by_inverse_is_inverse(s):
    there_and_back = vf.pullback(vf.pullback(s.metric, s.f.inv), s.f)
    return there_and_back(s.x).as_matrix(), s.metric(s.x).as_matrix()


@law((1, 3))
def test_volume_of_a_pullback(s):
    """dV of f^* G is |det J| times dV of G at f(x)."""
    stretch = jnp.linalg.slogdet(jax.jacobian(s.f)(s.x))[1]
    expected = log_volume(s.metric, s.y) + stretch
    return log_volume(vf.pullback(s.metric, s.f), s.x), expected, 1.0 + jnp.abs(expected)


@law((1, 3))
def test_multiples_scale_the_volume(s):
    d = s.x.size
    expected = log_volume(s.metric, s.x) - 0.5 * d * jnp.log(50.0)
    return log_volume(0.02 * s.metric, s.x), expected, 1.0 + jnp.abs(expected)


@pytest.mark.leaks
def test_multiple_by_an_array_under_jit():
    matrix = jax.jit(lambda c: (c * SQUARES)(X).as_matrix())(2.0)
    close(matrix, 2.0 * SQUARES(X).as_matrix())


def test_products_are_block_diagonal():
    b = NAMED["b"]
    expected = np.zeros((3, 3))
    expected[0, 0], expected[1:, 1:] = 4.0, np.eye(2) + np.outer(b, b)
    close(BLOCKS(NAMED).as_matrix(), expected)
    close(exact_logdet(BLOCKS(NAMED)), np.log(4.0 * (1.0 + b @ b)))


def test_units():
    """A length in meters with scale 2 is the same length in centimeters with scale 200."""
    in_centimeters = vf.pullback(vf.Euclidean(200.0), lambda x: 100.0 * x)
    close(in_centimeters(X).as_matrix(), vf.Euclidean(2.0)(X).as_matrix())


# --- Pull-backs by NumPyro transforms

ELEMENTWISE = {
    "exp": transforms.ExpTransform(),
    "sigmoid": transforms.SigmoidTransform(),
    "softplus": transforms.SoftplusTransform(),
    "affine": transforms.AffineTransform(2.0, 3.0),
    "power": transforms.PowerTransform(2.0),
    "chain": transforms.ComposeTransform(
        [transforms.AffineTransform(2.0, 3.0), transforms.ExpTransform()]
    ),
    "inverse": transforms.ExpTransform().inv,
    "of a site with to_event": transforms.IndependentTransform(transforms.ExpTransform(), 1),
}
VECTOR = {
    "stick breaking": transforms.StickBreakingTransform(),
    "ordered": transforms.OrderedTransform(),
    "lower triangular": transforms.LowerCholeskyTransform(),
    "correlation": transforms.CorrCholeskyTransform(),
    "lower affine": transforms.LowerCholeskyAffine(
        jnp.zeros(3), jnp.eye(3) + 0.5 * jnp.eye(3, k=-1)
    ),
}


@pytest.mark.parametrize("transform", ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_elementwise_transforms_keep_diagonal_metrics_diagonal(transform):
    x = jnp.array([0.3, 1.2])
    j = jax.jit(jax.jacobian(transform))(x)
    for metric in (vf.Euclidean(), SQUARES):
        operator = operator_at(vf.pullback(metric, transform), x)
        assert isinstance(operator, lx.DiagonalLinearOperator)
        expected = j.T @ operator_at(metric, transform(x)).as_matrix() @ j
        close(np.asarray(operator.as_matrix()), np.asarray(expected))
    assert isinstance(operator_at(vf.pullback(CURVED, transform), x), DenseOperator)


@pytest.mark.parametrize("transform", VECTOR.values(), ids=VECTOR)
def test_embeddings_give_the_gram_form(transform):
    j = jax.jit(jax.jacobian(lambda x: jnp.ravel(transform(x))))(X)
    operator = operator_at(vf.pullback(vf.Euclidean(), transform), X)
    assert isinstance(operator, DenseOperator)
    close(operator.as_matrix(), j.T @ j)


def test_elementwise_maps_of_named_values():
    metric = vf.pullback(vf.Euclidean(), lambda a, b: {"a": a**3, "b": 2.0 * b}, elementwise=True)
    operator = metric(NAMED)
    assert isinstance(operator, lx.DiagonalLinearOperator)
    close(operator.diagonal, {"a": jnp.array(144.0), "b": jnp.array([4.0, 4.0])})


def test_elementwise_is_kept_to_diagonal_metrics():
    """A dense metric stays dense, and right, under an elementwise map."""
    metric = MatrixField(lambda x: jnp.eye(3) + jnp.outer(x, x))
    dense = vf.pullback(metric, jnp.sinh)(X).as_matrix()
    close(vf.pullback(metric, jnp.sinh, elementwise=True)(X).as_matrix(), dense)


def test_curved_metric_in_the_worked_chart():
    psi = PHI(POINT)
    j_inv = jax.jacobian(PHI.inv)(psi)
    expected = j_inv.T @ CURVED(POINT).as_matrix() @ j_inv
    close(vf.pullback(CURVED, PHI.inv)(psi).as_matrix(), expected)


def test_flow_is_metric_learning():
    """A map to a flat space gives the flat metric J^T J, whose volume is |det J|."""
    metric = vf.pullback(vf.Euclidean(), PHI)
    j = jax.jacobian(PHI)(POINT)
    close(metric(POINT).as_matrix(), j.T @ j)
    close(log_volume(metric, POINT), np.linalg.slogdet(j)[1])


def test_polar_coordinates_of_a_weight_vector():
    """dr^2 + r^2 dOmega, with as many coordinates as the vector."""

    def weights(r, angles):
        t, p = angles
        direction = jnp.stack([jnp.cos(t), jnp.sin(t) * jnp.cos(p), jnp.sin(t) * jnp.sin(p)])
        return r * direction

    point = (jnp.array(2.5), jnp.array([0.7, -0.3]))
    matrix = vf.pullback(vf.Euclidean(), weights)(point).as_matrix()
    assert_allclose(matrix, np.diag([1.0, 2.5**2, (2.5 * np.sin(0.7)) ** 2]), atol=1e-14)


def test_too_many_coordinates_are_singular():
    """Weight normalization with a free scale has one coordinate too many."""
    metric = vf.pullback(vf.Euclidean(), lambda g, v: g * v / jnp.sqrt(v @ v))
    point = (jnp.array(1.3), jnp.array([0.4, -1.0]))
    assert np.linalg.matrix_rank(metric(point).as_matrix()) == 2
    assert not log_volume(metric, point) > -15.0
    damped = metric + 0.1 * vf.Euclidean()
    assert jnp.isfinite(log_volume(damped, point))


# --- Large points


def test_a_million_parameters():
    n = 1_000_000  # a matrix would take 8 TB
    point = {"a": jnp.linspace(0.5, 1.5, n), "b": jnp.zeros(n), "c": jnp.ones(())}
    metric = Product(
        {"a": DiagonalField(lambda a: a**-2), "b": vf.Euclidean(2.0), "c": vf.Euclidean()}
    )
    below = float(-2.0 * np.sum(np.log(point["a"])) - 2.0 * n * np.log(2.0))
    assert_allclose(exact_logdet(metric(point)), below, rtol=1e-12)
    assert_allclose(
        exact_logdet((4.0 * metric)(point)), below + (2 * n + 1) * np.log(4.0), rtol=1e-12
    )
    mixed = (metric + vf.Euclidean())(point)
    assert isinstance(mixed, lx.DiagonalLinearOperator)
    pulled = vf.pullback(vf.Euclidean(), transforms.ExpTransform())(point["a"])
    assert_allclose(exact_logdet(pulled), 2.0 * np.sum(point["a"]), rtol=1e-12)


# --- Errors and appearance


def test_diagonal_field_of_another_layout():
    with pytest.raises(MetricError, match=r"`field` of DiagonalField returned .* laid out like"):
        DiagonalField(lambda x: (x, x))(X)


def test_diagonal_field_of_another_shape():
    with pytest.raises(MetricError, match=r"weights of shape \[\(\)\].*one weight for each"):
        DiagonalField(lambda x: jnp.sum(x))(X)


@pytest.mark.parametrize(
    "field", [lambda x: x, lambda x: jnp.eye(2), lambda x: 1.0], ids=["vector", "small", "number"]
)
def test_matrix_field_of_another_shape(field):
    with pytest.raises(MetricError, match=r"`field` of MatrixField .* so .* shape \(3, 3\)"):
        MatrixField(field)(X)


def test_product_of_other_entries():
    with pytest.raises(MetricError, match=r"`point` .*\['a', 'c'\].*\['a', 'b'\]"):
        BLOCKS({"a": X, "c": X})


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_only_positive_multiples(factor):
    with pytest.raises(MetricError, match="multiplied by `factor` > 0 only"):
        factor * vf.Euclidean()


def test_only_metrics_add_and_only_numbers_multiply():
    with pytest.raises(TypeError, match="unsupported operand"):
        vf.Euclidean() + 1.0
    with pytest.raises(TypeError, match="unsupported operand"):
        vf.Euclidean() * vf.Euclidean()


def test_repr():
    g = vf.Euclidean() + 0.1 * vf.Euclidean(2.0) + vf.Fisher(dist.Normal)
    assert repr(g) == "Euclidean() + 0.1 * Euclidean(scale=2.0) + Fisher(Normal)"
    assert repr(2.0 * g) == f"2.0 * ({g!r})"


def test_pull_back_by_a_transform_that_broadcasts():
    broadcast = transforms.AffineTransform(0.0, jnp.array([1.0, 2.0, 2.0]))
    matrix = vf.pullback(vf.Euclidean(), broadcast)(jnp.array(0.7)).as_matrix()
    assert_allclose(matrix, [[9.0]], rtol=1e-14)


def test_a_finished_metric_is_not_overridden():
    with pytest.raises(MetricError, match="`Skew` overrides `__call__` of `Euclidean`"):

        class Skew(vf.Euclidean):
            def __call__(self, point):
                return DenseOperator(jnp.array([[1.0, 0.5], [0.0, 1.0]]), point)

    class Renamed(vf.Euclidean):  # what is known of it stays true
        pass

    assert_allclose(Renamed(0.5)(jnp.array(1.0)).as_matrix(), [[4.0]])


@pytest.mark.parametrize("factor", [jnp.ones(2), np.ones(2), jnp.inf, 1j, "2", None, True])
def test_factors_that_are_no_positive_number(factor):
    with pytest.raises(MetricError, match="`factor` > 0 only, one finite number"):
        factor * vf.Euclidean()
