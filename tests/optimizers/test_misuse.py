"""Bad input to the optimizers: typed errors that name it and say what helps."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from tests.geometry.laws import CURVED

import volform as vf
from volform.errors import (
    ConvergenceError,
    MetricError,
    OptimizerError,
    SingularMetricError,
    SizeError,
    VolformError,
)
from volform.optimizers import (
    AdaptiveDamping,
    Bregman,
    KullbackLeibler,
    SquaredDistance,
    along_geodesics,
    compare_paths,
    damped_newton,
    gradient_flow,
    implicit_gradient_descent,
    mirror_descent,
    natural_gradient,
    negative_entropy,
    output_space_descent,
    precondition,
    proximal_point,
    trust_region,
)

FLAT = vf.Euclidean()
X = jnp.array([1.0, 2.0])
ONES = jnp.ones(2)
INDEFINITE = vf.geometry.MatrixField(lambda x: jnp.diag(jnp.array([1.0, -1.0])))
SINGULAR = vf.geometry.MatrixField(lambda x: jnp.diag(jnp.array([1.0, 0.0])))
FLAT_64 = vf.geometry.DiagonalField(lambda x: jnp.array([1.0, 4.0]))
CONCAVE = Bregman(lambda x: -jnp.sum(x**2))


def bowl(x):
    return jnp.sum(x**2)


def updated(tx, grads=ONES, params=X, **extra):
    return tx.update(grads, tx.init(X), params, **extra)


CASES = {
    "a number for a metric": (lambda: precondition(2.0), MetricError, r"2.0 \* vf.Euclidean"),
    "an operator for a metric": (lambda: precondition(FLAT(X)), MetricError, "should be a metric"),
    "a number for damping": (
        lambda: natural_gradient(FLAT, 0.1, damping=0.1),
        MetricError,
        r"`damping`.*0.1 \* vf.Euclidean",
    ),
    "a metric on other parameters": (
        lambda: precondition(vf.geometry.Product({"a": FLAT})).init({"b": X}),
        MetricError,
        r"\['b'\].*\['a'\]",
    ),
    "a matrix of another size": (
        lambda: precondition(CURVED).init(jnp.ones(3)),
        MetricError,
        r"shape \(2, 2\).*3 coordinates",
    ),
    "an operator on other parameters": (
        lambda: precondition(lambda x: FLAT(jnp.ones(3))).init(X),
        MetricError,
        "`metric` of precondition acts on",
    ),
    "a metric of other names": (
        lambda: precondition(vf.Fisher(dist.Normal)).init({"a": X}),
        MetricError,
        r"Fisher\(Normal\), cannot be taken at `params`.*'a'.*by their names",
    ),
    "a function that returns no operator": (
        lambda: precondition(lambda x: x).init(X),
        MetricError,
        "lineax operator",
    ),
    "indefinite damping": (
        lambda: natural_gradient(3.0 * FLAT, damping=INDEFINITE).init(X),
        SingularMetricError,
        "`damping` of natural_gradient.*is indefinite.*-1",
    ),
    "an indefinite metric": (
        lambda: precondition(INDEFINITE).init(X),
        SingularMetricError,
        "`metric` of precondition.*indefinite",
    ),
    "a singular metric": (
        lambda: precondition(SINGULAR).init(X),
        SingularMetricError,
        "singular.*damping=",
    ),
    "a metric that becomes singular": (
        lambda: updated(
            precondition(vf.geometry.DiagonalField(lambda x: x)), params=jnp.array([1.0, 0.0])
        ),
        SingularMetricError,
        "at `params`",
    ),
    "no parameters": (lambda: updated(precondition(FLAT), params=None), OptimizerError, "`params`"),
    "gradients laid out otherwise": (
        lambda: updated(precondition(FLAT), grads=jnp.ones(3)),
        OptimizerError,
        "laid? ?out|layout",
    ),
    "a gradient that is NaN": (
        lambda: updated(precondition(FLAT), grads=jnp.array([1.0, jnp.nan])),
        OptimizerError,
        "NaN.*apply_if_finite",
    ),
    "a gradient that is infinite": (
        lambda: precondition(FLAT).update({"w": ONES * jnp.inf}, optax.EmptyState(), {"w": X}),
        OptimizerError,
        r"`updates\['w'\]`",
    ),
    "whole numbers": (
        lambda: precondition(FLAT).init({"n": jnp.array(3)}),
        OptimizerError,
        r"`params\['n'\]`.*int.*masked",
    ),
    "a solver that is none": (
        lambda: precondition(FLAT, solve="cg"),
        OptimizerError,
        "lineax.CG",
    ),
    "a matrix of 26 GiB": (
        lambda: precondition(lambda p: vf.operators.hessian(bowl, p), damping=FLAT).init(
            jnp.zeros(60_000)
        ),
        SizeError,
        "60,000 parameters.*solve=lineax.CG",
    ),
    "a learning rate that is none": (
        lambda: natural_gradient(FLAT, jnp.nan),
        OptimizerError,
        "`learning_rate`.*schedule",
    ),
    "adaptive damping without a loss": (
        lambda: updated(natural_gradient(FLAT, damping=AdaptiveDamping(FLAT))),
        OptimizerError,
        "value_fn=loss",
    ),
    "Newton without a loss": (
        lambda: updated(damped_newton()),
        OptimizerError,
        "`value_fn` of damped_newton is None",
    ),
    "a region without a loss": (
        lambda: updated(trust_region(FLAT)),
        OptimizerError,
        "`value_fn` of trust_region",
    ),
    "a proximal point without a loss": (
        lambda: updated(proximal_point(SquaredDistance(), 1.0)),
        OptimizerError,
        "`value_fn` of proximal_point",
    ),
    "damping that starts at zero": (
        lambda: AdaptiveDamping(FLAT, start=0.0),
        OptimizerError,
        "`start` is 0.0",
    ),
    "a radius below zero": (lambda: trust_region(FLAT, -1.0), OptimizerError, "`radius` is -1.0"),
    "a strength below zero": (
        lambda: proximal_point(SquaredDistance(), -1.0),
        OptimizerError,
        "`strength` is -1.0",
    ),
    "a rate of zero": (lambda: implicit_gradient_descent(0.0), OptimizerError, "`learning_rate`"),
    "a metric for a dissimilarity": (
        lambda: mirror_descent(FLAT, 0.1),
        OptimizerError,
        "SquaredDistance",
    ),
    "a solver of roots": (
        lambda: proximal_point(SquaredDistance(), 1.0, solver=3),
        OptimizerError,
        "optimistix.BFGS",
    ),
    "a concave generator": (
        lambda: mirror_descent(CONCAVE, 0.1).init(X),
        OptimizerError,
        "not convex at `params`.*-2",
    ),
    "a concave generator of a proximal point": (
        lambda: proximal_point(CONCAVE, 1.0).init(X),
        OptimizerError,
        "not convex",
    ),
    "a point outside of the domain": (
        lambda: mirror_descent(negative_entropy(), 0.1).init(jnp.array([-0.5, 1.5])),
        OptimizerError,
        "outside of the domain",
    ),
    "no solution of mirror descent": (
        lambda: updated(mirror_descent(Bregman(lambda x: jnp.sum(jnp.exp(x))), 50.0)),
        ConvergenceError,
        "smaller learning rate",
    ),
    "a loss without a minimum": (
        lambda: updated(proximal_point(SquaredDistance(), 1.0), value_fn=lambda x: -bowl(x)),
        ConvergenceError,
        "bounded below",
    ),
    "outputs that cannot be reached": (
        lambda: updated(output_space_descent(jnp.log, jnp.sum, jnp.inf)),
        OptimizerError,
        "`learning_rate`",
    ),
    "a generator that is none": (lambda: Bregman(3.0), OptimizerError, "`generator`"),
    "a family that is none": (lambda: KullbackLeibler(3.0), OptimizerError, "`family`"),
    "a family without a divergence": (
        lambda: KullbackLeibler(dist.StudentT)((3.0, 0.0, 1.0), (3.0, 1.0, 1.0)),
        OptimizerError,
        "`key`",
    ),
    "an optimizer that is none": (lambda: along_geodesics(FLAT, FLAT), OptimizerError, "`tx`"),
    "geodesics of a function": (
        lambda: along_geodesics(optax.sgd(0.1), lambda x: FLAT(x)),
        MetricError,
        "differentiated",
    ),
    "a step over the edge": (
        lambda: updated(
            along_geodesics(optax.sgd(3.0), vf.geometry.DiagonalField(lambda x: x)),
            grads=jnp.array([1.0, 1.0]),
        ),
        VolformError,
        "singular",
    ),
    "times that fall": (
        lambda: gradient_flow(bowl, FLAT, X, [0.0, 1.0, 0.5]),
        OptimizerError,
        "`times`.*increasing",
    ),
    "one time": (lambda: gradient_flow(bowl, FLAT, X, [1.0]), OptimizerError, "at least two"),
    "a start that is NaN": (
        lambda: gradient_flow(bowl, FLAT, X * jnp.nan, [0.0, 1.0]),
        OptimizerError,
        "`params`",
    ),
    "a flow under an indefinite metric": (
        lambda: gradient_flow(bowl, INDEFINITE, X, [0.0, 1.0]),
        SingularMetricError,
        "gradient_flow",
    ),
    "half precision": (
        lambda: precondition(FLAT).init(X.astype(jnp.bfloat16)),
        OptimizerError,
        r"`params` of precondition has dtype bfloat16.*astype\(jnp.float32\)",
    ),
    "nothing": (lambda: precondition(FLAT).init({}), OptimizerError, "`params`.*at least one"),
    "a function among the parameters": (
        lambda: precondition(FLAT).init({"a": jnp.sin}),
        OptimizerError,
        r"`params\['a'\]`.*PjitFunction",
    ),
    "parameters that are NaN": (
        lambda: updated(trust_region(FLAT), params=X * jnp.nan, value_fn=bowl),
        OptimizerError,
        "`params` of trust_region.*start from finite",
    ),
    "a loss that is NaN": (
        lambda: updated(
            natural_gradient(FLAT, damping=AdaptiveDamping(FLAT)), value_fn=lambda x: jnp.nan * x[0]
        ),
        OptimizerError,
        "the loss is not finite at `params`",
    ),
    "a loss with auxiliary values": (
        lambda: updated(trust_region(FLAT), value_fn=lambda x: (bowl(x), 1)),
        OptimizerError,
        "loss.*of trust_region returned.*without auxiliary",
    ),
    "a loss in a row": (
        lambda: updated(damped_newton(), value_fn=lambda x: bowl(x)[None]),
        OptimizerError,
        r"of damped_newton returned shapes \(1,\)",
    ),
    "a Hessian that is singular": (
        lambda: updated(damped_newton(), value_fn=lambda x: x[0] ** 2 + x[1]),
        OptimizerError,
        "Hessian is singular at `params`: add `damping=`",
    ),
    "conjugate gradients of an indefinite form": (
        lambda: updated(damped_newton(solve=lx.CG(1e-3, 1e-8)), value_fn=bowl),
        OptimizerError,
        "`solve`.*lineax.GMRES",
    ),
    "an indefinite metric of a batch": (
        lambda: updated(natural_gradient(FLAT), metric=INDEFINITE),
        SingularMetricError,
        "`metric` of natural_gradient.*indefinite",
    ),
    "a number as the metric of a batch": (
        lambda: updated(natural_gradient(FLAT), metric=3.0),
        MetricError,
        r"3.0 \* vf.Euclidean",
    ),
    "a scale of another shape": (
        lambda: natural_gradient(vf.Euclidean(scale=jnp.ones(3))).init(X),
        MetricError,
        "cannot be taken at `params`",
    ),
    "a metric in another precision": (
        lambda: natural_gradient(FLAT_64).init(X.astype(jnp.float32)),
        MetricError,
        "dtypes.*float64.*astype",
    ),
    "adaptive damping with a rate": (
        lambda: natural_gradient(FLAT, 0.1, damping=AdaptiveDamping(FLAT)),
        OptimizerError,
        "`learning_rate`.*AdaptiveDamping.*leave it at 1",
    ),
    "a rate that is text": (lambda: natural_gradient(FLAT, "a"), OptimizerError, "`learning_rate`"),
    "a rate that is a dict": (lambda: damped_newton({}), OptimizerError, "`learning_rate`"),
    "a rate that is complex": (lambda: damped_newton(1j), OptimizerError, "`learning_rate`"),
    "a region of 26 GiB": (
        lambda: trust_region(FLAT).init(jnp.zeros(60_000)),
        SizeError,
        "trust_region.*60,000 parameters.*damped_newton",
    ),
    "a family of other names": (
        lambda: mirror_descent(KullbackLeibler(lambda p: dist.Normal(p, 1.0)), 0.1).init({"a": X}),
        OptimizerError,
        "`family` of KullbackLeibler.*by their names",
    ),
    "probabilities in a dict": (
        lambda: mirror_descent(negative_entropy(), 0.1).init({"a": X}),
        OptimizerError,
        "`params` of negative_entropy.*array of probabilities",
    ),
    "one probability": (
        lambda: mirror_descent(negative_entropy(), 0.1).init(X[0]),
        OptimizerError,
        "array of probabilities",
    ),
    "an indefinite distance": (
        lambda: mirror_descent(SquaredDistance(INDEFINITE), 0.1).init(X),
        SingularMetricError,
        "`dissimilarity` of mirror_descent.*indefinite",
    ),
    "times that are text": (
        lambda: gradient_flow(bowl, FLAT, X, "a"),
        OptimizerError,
        "`times` of gradient_flow is 'a'",
    ),
    "a flow of a vector": (
        lambda: gradient_flow(lambda x: x, FLAT, X, [0.0, 1.0]),
        OptimizerError,
        "loss.*gradient_flow returned",
    ),
    "no flow": (lambda: compare_paths(X, X), OptimizerError, "`flow` of compare_paths"),
}


@pytest.mark.parametrize("case", CASES)
def test_typed_errors(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=f"(?s){message}"):
        call()


@pytest.mark.slow
def test_a_flow_that_ends():
    with pytest.raises(ConvergenceError, match="followed to t = 1"):
        gradient_flow(lambda x: jnp.sum(jnp.sqrt(x)), FLAT, X, [0.0, 1.0, 8.0])


def test_flows_that_do_not_fit():
    flow = vf.optimizers.FlowPath(FLAT, X, jnp.stack([X, 2.0 * X]), ONES, ONES)
    later = vf.optimizers.FlowPath(FLAT, X + 1.0, flow.path, ONES, ONES)
    with pytest.raises(OptimizerError, match="different times"):
        compare_paths(flow, later)
    with pytest.raises(OptimizerError, match="`through` gives"):
        compare_paths(flow, flow, through=lambda x: jnp.concatenate([x, x]))
    with pytest.raises(ConvergenceError, match="no place in the coordinates"):
        compare_paths(flow, flow, through=lambda x: -jnp.exp(x))


def test_under_jit_it_is_nan_and_no_error():
    tx = precondition(vf.geometry.DiagonalField(lambda x: x))
    found = jax.jit(lambda x: tx.update(ONES, optax.EmptyState(), x)[0])(jnp.array([1.0, -1.0]))
    assert np.isnan(found[1])
