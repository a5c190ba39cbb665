"""Tensors that know where they live: the same in all charts, and refused where they are not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.distributions.transforms import ExpTransform

import volform as vf
from volform.errors import GeodesicError, IndefiniteError, MetricError, TensorError, VolformError
from volform.geometry import (
    BilinearForm,
    Covector,
    Endomorphism,
    TangentSpace,
    TangentVector,
    covariant_hessian,
    distance,
    exp,
    flat,
    generalized_eigenvalues,
    gradient,
    inner,
    norm,
    raise_index,
    sharp,
    transport,
)

from .laws import COVECTOR, CURVED, HESSIAN, PHI, POINT, VECTOR, close, law

# --- Laws: every operation commutes with every change of coordinates


def psi(thing, s):
    return thing.to(s.f, "psi")


def tensors(space, s):
    """Of each kind two, definite or with a positive determinant where that is asked for."""
    (v, u, w), (a, b) = s.vectors, s.matrices
    identity = jnp.eye(len(v))
    return (
        (space.vector(v), space.vector(u)),
        (space.covector(w), space.covector(u)),
        (space.form(a @ a.T + identity), space.form(b + b.T)),
        (space.operator(a @ a + identity), space.operator(b)),
    )


def results(pairs, metric, function):
    """All that can be asked for without leaving a chart: tensors, and numbers with their sizes."""
    (v, u), (w, a), (form, other), (operator, last) = pairs
    found = [
        *(2.0 * v - u / 3.0, w.sharp(metric), operator(u), form.under(metric)(v), last @ operator),
        *(gradient(metric, function, v.space), w - 0.5 * a, v.flat(metric), other(u)),
        *(v.space.differential(function), form + other, -form, other.under(metric)),
        *(covariant_hessian(metric, function, v.space), operator + 2.0 * last),
    ]
    numbers = [w(v), form(v, u), other(u, u), other.trace(metric), last.trace()]
    return found, (numbers, form.eigenvalues(metric), jnp.exp(form.logdet(metric)))


@law(rtol=1e-8)
def test_tensors_of_two_charts(s):
    pairs = tensors(TangentSpace(s.x, "theta"), s)
    here, _ = results(pairs, s.metric, s.function)
    moved = [[psi(tensor, s) for tensor in pair] for pair in pairs]
    there, _ = results(moved, s.carried_metric, s.carried_function)
    return [t.components for t in there], [psi(t, s).components for t in here]


@law(rtol=1e-8)
def test_numbers_of_two_charts(s):
    pairs = tensors(TangentSpace(s.x, "theta"), s)
    moved = [[psi(tensor, s) for tensor in pair] for pair in pairs]
    _, here = results(pairs, s.metric, s.function)
    _, there = results(moved, s.carried_metric, s.carried_function)
    matrices = jnp.abs(s.matrices).sum() + 1.0
    return there, here, matrices**2 * jnp.sum(s.vectors**2)


@law(rtol=1e-8)
def test_determinants_of_two_charts(s):
    _, _, (form, other), (operator, last) = tensors(TangentSpace(s.x, "theta"), s)
    here = [t.under(s.metric) for t in (form, other)] + [operator, last]
    there = [psi(t, s).under(s.carried_metric) for t in (form, other)]
    there += [psi(operator, s), psi(last, s)]
    # Of squares, whose determinants are positive.
    return [(t @ t).logdet() for t in there], [(t @ t).logdet() for t in here], 10.0


@law(rtol=1e-8)
def test_there_and_back(s):
    pairs = tensors(TangentSpace(s.x, "theta"), s)
    every = [tensor for pair in pairs for tensor in pair]
    back = [psi(tensor, s).to(s.f.inv, "theta") for tensor in every]
    # The sum is NaN if the points differ.
    return [(b + t).components for b, t in zip(back, every, strict=True)], [
        2.0 * t.components for t in every
    ]


def test_against_matrices_written_out():
    here = TangentSpace(POINT, "theta")
    j, g = jax.jacobian(PHI)(POINT), np.asarray(CURVED(POINT).as_matrix())
    v, w, h = here.vector(VECTOR), here.covector(COVECTOR), here.form(HESSIAN)
    e, back = np.linalg.solve(g, HESSIAN), np.linalg.inv(j)
    close(v.to(PHI).components, j @ VECTOR)
    close(w.to(PHI).components, back.T @ COVECTOR)
    close(h.to(PHI).components, back.T @ HESSIAN @ back)
    close(h.under(CURVED).to(PHI).components, j @ e @ back)
    close(h.under(CURVED).components, e)
    close(w.sharp(CURVED).components, np.linalg.solve(g, COVECTOR))
    close(v.flat(CURVED).components, g @ VECTOR)
    assert_allclose([w(v), h(v, v), h(v)(v)], [0.73, *[VECTOR @ HESSIAN @ VECTOR] * 2])
    assert_allclose(h.trace(CURVED), np.trace(e))
    assert_allclose(h.logdet(CURVED), np.log(np.linalg.det(e)))
    assert_allclose(h.under(CURVED).logdet(), np.log(np.linalg.det(e)))
    assert_allclose(h.eigenvalues(CURVED), np.sort(np.linalg.eigvals(e)))
    close((here.operator(e) @ here.operator(g)).components, e @ g)
    close(here.form(CURVED).components, g)
    close(here.form(CURVED(POINT)).components, g)


def test_minutes_and_seconds():
    """The gradient 60, the update 3,600, and with the metric carried along 1."""
    to_seconds = lambda minutes: 60.0 * minutes  # noqa: E731
    here = TangentSpace(jnp.array(2.0), "minutes")
    there = here.to(to_seconds, "seconds")
    ours = here.differential(lambda minutes: (minutes - 5.0) ** 2)
    theirs = there.differential(lambda seconds: (seconds / 60.0 - 5.0) ** 2)
    close((ours.to(to_seconds, "seconds") - theirs).components, 0.0, size=1e-12)
    assert_allclose(ours.components / theirs.components, 60.0)
    # Euclidean in each: two metrics.
    steps = ours.sharp(vf.Euclidean()), theirs.sharp(vf.Euclidean())
    back = steps[1].to(lambda seconds: seconds / 60.0, "minutes")
    assert_allclose(steps[0].components / back.components, 3600.0)
    # One metric.
    step = theirs.sharp(vf.Euclidean(60.0)).to(lambda seconds: seconds / 60.0, "minutes")
    assert_allclose(steps[0].components / step.components, 1.0)


# --- Functions of the room, given typed things and plain ones


def test_functions_type_their_results():
    here = TangentSpace(POINT, "theta")
    v, w, h = here.vector(VECTOR), here.covector(COVECTOR), here.form(HESSIAN)
    of_plain = {
        TangentVector: sharp(CURVED, POINT, COVECTOR),
        Covector: flat(CURVED, POINT, VECTOR),
        Endomorphism: raise_index(CURVED, POINT, HESSIAN),
    }
    for point in (here, POINT, v):  # what is typed is seen in any argument
        typed = sharp(CURVED, point, w), flat(CURVED, point, v), raise_index(CURVED, point, h)
        for tensor in typed:
            assert tensor.chart == "theta"
            close(tensor.components, of_plain[type(tensor)])
        assert_allclose(inner(CURVED, point, v, v), inner(CURVED, POINT, VECTOR, VECTOR))
        assert_allclose(norm(CURVED, point, v), norm(CURVED, POINT, VECTOR))
        assert_allclose(
            generalized_eigenvalues(CURVED, point, h),
            generalized_eigenvalues(CURVED, POINT, HESSIAN),
        )
    assert isinstance(sharp(CURVED, here, COVECTOR), TangentVector)  # plain, at a typed point
    assert isinstance(gradient(CURVED, jnp.sum, here), TangentVector)
    assert isinstance(covariant_hessian(CURVED, jnp.sum, here), BilinearForm)
    assert isinstance(gradient(CURVED, jnp.sum, POINT), jax.Array)


def test_vectors_go_along_geodesics():
    here = TangentSpace(POINT, "theta")
    v = here.vector(VECTOR)
    path = exp(CURVED, here, v)
    close(path.end, exp(CURVED, POINT, VECTOR).end)
    moved = transport(CURVED, path, v)
    close(moved.components, transport(CURVED, path, VECTOR))
    assert_allclose(norm(CURVED, path.end, moved), norm(CURVED, POINT, v))
    assert_allclose((moved + TangentSpace(path.end, "theta").vector(VECTOR)).point, path.end)


# --- Points of all kinds; jit, vmap, grad


def cost(point):
    """Of the point whole, where a change of coordinates is given its entries."""
    loc, scale = jax.tree.leaves(point)
    return jnp.log(scale) ** 2 + loc**2 / scale


def logarithms(loc, scale):
    return {"loc": loc, "log": jnp.log(scale)}


POINTS = {
    "dict": {"loc": jnp.array(0.3), "scale": jnp.array(2.0)},
    "tuple": (jnp.array(0.3), jnp.array(2.0)),
    "floats": {"loc": 0.3, "scale": 2.0},
}


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_pytrees(point):
    family, here = vf.Fisher(dist.Normal), TangentSpace(point)
    like = jax.tree.structure(point)
    back = vf.pullback(family, lambda loc, log: like.unflatten([loc, jnp.exp(log)]))
    slope = here.differential(cost)
    step = slope.sharp(family)
    there = slope.to(logarithms)
    close(there.components["log"], 2.0 * jax.tree.leaves(slope.components)[1])
    close(there.sharp(back).components, step.to(logarithms).components)
    tx = vf.optimizers.damped_newton()  # the same function, as its loss
    tx.update(slope.components, tx.init(here.point), here.point, value_fn=cost)
    moved = point - 0.1 * step
    expected = jax.tree.map(lambda x, v: x - 0.1 * v, here.point, step.components)
    close(moved, expected)
    hessian = covariant_hessian(family, cost, here)
    assert_allclose(hessian(step, step), hessian.to(logarithms)(*[step.to(logarithms)] * 2))
    assert_allclose(hessian.trace(family), hessian.to(logarithms).trace(back))


def test_scalars():
    here = TangentSpace(0.5, "sigma")
    v, h = here.vector(2.0), here.form(jnp.array([[3.0]]))
    assert v.to(ExpTransform()).chart == "ExpTransform(sigma)"
    assert_allclose([float(h(v, v)), h.trace(vf.Euclidean(2.0)), 0.5 + v], [12.0, 12.0, 2.5])


def test_under_jit_vmap_and_grad():
    w = TangentSpace(POINT, "theta").covector(COVECTOR)
    steepest = jax.jit(lambda w: w.sharp(CURVED))
    close(steepest(w).components, sharp(CURVED, POINT, COVECTOR))
    points = POINT + np.linspace(0, 1, 4)[:, None]

    def length(x):
        slope = TangentSpace(x, "theta").differential(lambda t: jnp.sum(t**3))
        return slope(slope.sharp(CURVED))

    values = jax.jit(jax.vmap(length))(points)
    assert_allclose(values[2], length(points[2]))
    h = 1e-6 * np.eye(2)
    differences = [(length(POINT + e) - length(POINT - e)) / 2e-6 for e in h]
    assert_allclose(jax.grad(length)(POINT), differences, rtol=1e-7)
    # Tensors go in and out of maps, and those of a batch are asked there.
    slopes = jax.vmap(lambda x: TangentSpace(x, "theta").differential(jnp.sum))(points)
    vectors = jax.vmap(lambda w: w.sharp(CURVED))(slopes)
    paired = jax.vmap(lambda w, v: w(v))(slopes, vectors)
    assert_allclose(paired[1], np.linalg.inv(CURVED(points[1]).as_matrix()).sum())
    total, _ = jax.lax.scan(lambda c, _: (c + 0.5 * w, None), w, None, 2)
    close(total.components, 2.0 * COVECTOR)


def test_derivatives_by_a_tensor():
    """What `jax.grad` returns is laid out like the tensor, of another kind and at no point."""
    here = TangentSpace(POINT, "theta")
    v = here.vector(VECTOR)

    def energy(v):
        return 0.5 * inner(CURVED, v.space, v, v)

    # The advice of the message: the momentum of a velocity, the velocity of a momentum.
    momentum = here.covector(jax.grad(lambda c: energy(here.vector(c)))(v.components))
    close(momentum.components, v.flat(CURVED).components)

    def of_momentum(c):
        w = here.covector(c)
        return 0.5 * w(w.sharp(CURVED))

    close(here.vector(jax.grad(of_momentum)(momentum.components)).components, VECTOR)
    found = jax.grad(energy)(v)
    assert repr(found) == "<derivative by the components of a TangentVector, and none itself>"
    uses = {
        "added": lambda: v + found,
        "a step": lambda: POINT + found,
        "lowered": lambda: found.flat(CURVED),
        "carried": lambda: found.to(PHI),
        "halved": lambda: 0.5 * found,
        "of a space": lambda: jax.grad(lambda s: s.differential(jnp.sum)(v))(here).vector(VECTOR),
        "of a covector": lambda: jax.grad(lambda w: w(v))(v.flat(CURVED))(v),
        "of a form": lambda: jax.grad(lambda h: h(v, v))(here.form(HESSIAN)).trace(CURVED),
        "of an operator": lambda: jax.grad(lambda e: e.trace())(here.operator(HESSIAN)).trace(),
    }
    for name, use in uses.items():
        with pytest.raises(TensorError, match=r"came out of `jax.grad`.*`space.covector\(jax.grad"):
            print(name, use())
    assert jnp.isnan(jax.jit(lambda v: jax.grad(energy)(v).flat(CURVED).components)(v)).all()
    origin = TangentSpace(jnp.zeros(2)).vector(VECTOR)  # whose derivative by the point is there too
    assert jnp.isnan(jax.jit(lambda v: (v + jax.grad(energy)(v)).components)(origin)).all()


def scaled_by(factor):
    def scaled(x):
        return factor @ x if np.ndim(factor) else factor * x

    return scaled


def test_maps_of_one_name():
    """Charts that are named by maps are one where the maps have one Jacobian, as far as it goes."""
    v = TangentSpace(jnp.zeros(2), "minutes").vector(VECTOR)  # zero is zero in all of them
    minute, hour = scaled_by(60.0), scaled_by(3600.0)
    seconds, again = v.to(minute), v.to(scaled_by(60.0))
    close((seconds + again).components, 120.0 * VECTOR)
    close((seconds.to(minute) + v.to(hour).to(scaled_by(1.0))).components, 7200.0 * VECTOR)
    close(jnp.zeros(2) + seconds, 60.0 * VECTOR)
    by_hand = TangentSpace(jnp.zeros(2), "scaled(minutes)").vector(VECTOR)  # the name is trusted
    close((seconds + by_hand).components, 61.0 * VECTOR)
    swap = scaled_by(jnp.array([[0.0, 1.0], [1.0, 0.0]]))
    two = [lambda: seconds + v.to(hour), lambda: v.to(minute).to(hour) + v.to(minute).to(minute)]
    for case in two:
        with pytest.raises(TensorError, match=r"maps of one name.*`.to\(phi, chart\)`"):
            case()
    assert jnp.isnan(jax.jit(lambda a, b: a + b)(seconds, v.to(hour)).components).all()
    close((v.to(minute, "a") - v.to(minute, "a")).components, 0.0, size=1.0)
    assert v.to(swap).chart == "scaled(minutes)"
    close(sharp(vf.Euclidean(), jnp.zeros(2), seconds.flat(vf.Euclidean())).components, 60 * VECTOR)


def test_points_that_are_traced_are_compared_as_the_program_runs():
    v, w = TangentSpace(POINT).vector(VECTOR), TangentSpace(POINT + 1.0).covector(COVECTOR)
    again = TangentSpace(PHI.inv(PHI(POINT))).covector(COVECTOR)  # the same, but for rounding
    pair, add = jax.jit(lambda w, v: w(v)), jax.jit(lambda w, v: w.sharp(CURVED) + v)
    assert_allclose(pair(again, v), again(v))
    assert jnp.isnan(pair(w, v))
    assert jnp.isnan(add(w, v).components).all()
    assert jnp.isnan(jax.jit(lambda x, v: x + v)(POINT + 1.0, v)).all()
    close(jax.jit(lambda x, v: x + v)(POINT, v), POINT + VECTOR)
    asymmetric = jax.jit(lambda m: TangentSpace(POINT).form(m).trace(CURVED))
    assert jnp.isnan(asymmetric(jnp.array([[1.0, 2.0], [0.0, 1.0]])))
    logdet = jax.jit(lambda m: TangentSpace(POINT).form(m).logdet(CURVED))
    assert jnp.isnan(logdet(-jnp.eye(2)))
    of_operator = jax.jit(lambda m: TangentSpace(POINT).operator(m).logdet())
    assert jnp.isnan(of_operator(jnp.diag(jnp.array([1.0, -1.0]))))


@pytest.mark.float32
def test_single_precision():
    here = TangentSpace(jnp.array([0.7, -0.4]), "theta")
    there = here.to(PHI)
    metric = vf.Euclidean(2.0)
    slope = here.differential(lambda t: t[0] ** 2 + jnp.sin(t[1]))
    step = slope.sharp(metric)
    assert step.components.dtype == jnp.float32
    assert_allclose(slope.to(PHI)(step.to(PHI)), slope(step), rtol=1e-5)
    assert (there.vector(VECTOR) + step.to(PHI)).components.dtype == jnp.float32
    h = covariant_hessian(metric, lambda t: t[0] ** 2 + t[1] ** 2 + t[0] * t[1], here)
    moved = vf.pullback(metric, PHI.inv)
    assert_allclose(h.to(PHI).logdet(moved), h.logdet(metric), rtol=1e-4)


def test_shown():
    here = TangentSpace({"mu": 0.5, "sigma": 2.0}, "mu, sigma")
    assert repr(here) == "TangentSpace at mu = 0.5, sigma = 2., chart mu, sigma"
    assert str(here) == repr(here)
    w = here.covector({"mu": 1.0, "sigma": -1.0})
    assert repr(w) == "Covector(mu = 1., sigma = -1.) at mu = 0.5, sigma = 2., chart mu, sigma"
    form = TangentSpace(jnp.ones(2)).form(jnp.eye(2))
    assert repr(form) == "BilinearForm([[1.0, 0.0], [0.0, 1.0]]) at [1., 1.]"
    large = TangentSpace(jnp.ones(20)).operator(jnp.eye(20))
    assert repr(large).startswith("Endomorphism(20 by 20) at [1., 1., 1., ...")
    seen = []
    jax.jit(lambda v: seen.append(repr(v)) or v)(w)
    assert seen == ["Covector(traced) at traced, chart mu, sigma"]


# --- Refusals

HERE, THERE = TangentSpace(POINT, "theta"), TangentSpace(POINT + 1.0, "theta")
V, W, H = HERE.vector(VECTOR), HERE.covector(COVECTOR), HERE.form(HESSIAN)
E = HERE.operator(HESSIAN)
FLAT = vf.Euclidean()
SINGULAR = vf.geometry.DiagonalField(lambda x: jnp.array([1.0, 0.0]))
BATCH = jax.vmap(lambda x: TangentSpace(x).operator(jnp.eye(2)))(jnp.ones((2, 2)))

SHARP = r"a metric is missing, `covector.sharp\(metric\)`"
UNDER = r"a metric is missing, `form.under\(metric\)`"
REFUSED = {
    # two vectors, two covectors
    "v(w)": (lambda: V(V), TensorError, r"metric is missing.*`vector.flat\(metric\)\(other\)`"),
    "v @ w": (lambda: V @ V, TensorError, r"missing for two vectors, `v.flat\(metric\)\(w\)`"),
    "v * w": (lambda: V * V, TensorError, "missing for two vectors"),
    "w(w)": (lambda: W(W), TensorError, rf"Covector where `TangentVector` should be: {SHARP}"),
    "form(w)": (lambda: H(W), TensorError, rf"argument of `BilinearForm` is Covector.*{SHARP}"),
    "form(v, w)": (lambda: H(V, W), TensorError, rf"argument of `Covector`.*{SHARP}"),
    "operator(w)": (lambda: E(W), TensorError, rf"argument of `Endomorphism`.*{SHARP}"),
    "operator @ form": (lambda: E @ H, TensorError, rf"right side of `@` is.*{UNDER}"),
    "operator @ v": (lambda: E @ V, TensorError, "right side of `@` is TangentVector.*not meet"),
    "operator @ array": (lambda: E @ HESSIAN, TensorError, "`@` of Endomorphism and ndarray"),
    # sums
    "v + w": (lambda: V + W, TensorError, rf"added to `TangentVector` is Covector.*{SHARP}"),
    "w - v": (lambda: W - V, TensorError, r"metric is missing, `vector.flat\(metric\)`"),
    "form + operator": (lambda: H + E, TensorError, "metric is missing that would make a form"),
    "operator + form": (lambda: E + H, TensorError, UNDER),
    "form + metric": (lambda: H + FLAT, TensorError, r"is Euclidean where.*`space.form\(\.\.\.\)`"),
    "v + array": (lambda: V + VECTOR, TensorError, r"is ndarray where.*`space.vector\("),
    # steps
    "x + dL": (lambda: POINT + W, TensorError, rf"`Covector` is no step from a point.*{SHARP}"),
    "x - dL": (lambda: jnp.asarray(POINT) - 0.1 * W, TensorError, rf"no step.*{SHARP}"),
    "x + form": (lambda: POINT + H, TensorError, "`BilinearForm` is no step.*only a TangentVector"),
    "y + v": (lambda: POINT + 1.0 + V, TensorError, "The step from `point` lives at .*transport"),
    # forms without a metric
    "trace": (lambda: H.trace(), MetricError, "`metric` of `trace` is None: a metric is missing"),
    "logdet": (lambda: H.logdet(), MetricError, "`metric` of `logdet`.*every chart"),
    "eigenvalues": (lambda: H.eigenvalues(), MetricError, "`metric` of `eigenvalues`"),
    "a number for a metric": (lambda: W.sharp(2.0), MetricError, r"`metric` of `sharp` is 2\.0"),
    "a class for a metric": (lambda: V.flat(vf.Euclidean), MetricError, "`metric` of `flat`"),
    # points and charts
    "two points": (
        lambda: V + THERE.vector(VECTOR),
        TensorError,
        r"lives at \[1.7, 0.6\], .* should live at \[ 0.7, -0.4\].*missing.*transport",
    ),
    "paired at two points": (lambda: W(THERE.vector(VECTOR)), TensorError, "between two points"),
    "two charts": (lambda: W + W.to(PHI), TensorError, r"chart Phi\(theta\).*`.to\(phi, chart\)`"),
    "named and not": (lambda: W(TangentSpace(POINT).vector(VECTOR)), TensorError, "two charts"),
    "two layouts": (
        lambda: W(TangentSpace((1.0, 2.0), "theta").vector((1.0, 2.0))),
        TensorError,
        "two charts",
    ),
    "a step of another layout": (lambda: 1.0 + V, TensorError, "The step from `point`"),
    "a batch": (lambda: BATCH.trace(), TensorError, r"shapes \(\(2, 2\),\).*inside of `jax.vmap`"),
    "sum of a batch": (lambda: BATCH + BATCH, TensorError, "it is a batch"),
    # making them
    "a vector as covector": (lambda: HERE.covector(V), TensorError, r"`vector.flat\(metric\)`"),
    "sharp of a vector": (lambda: sharp(FLAT, HERE, V), TensorError, r"`vector.flat\(metric\)`"),
    "flat of a covector": (lambda: flat(FLAT, POINT, W), TensorError, SHARP),
    "sharp elsewhere": (lambda: sharp(FLAT, POINT + 1.0, W), TensorError, "between two points"),
    "inner with a covector": (lambda: inner(FLAT, POINT, V, W), TensorError, SHARP),
    "another layout": (
        lambda: HERE.vector(jnp.ones(3)),
        TensorError,
        r"laid out as \(3,\).*\(2,\)",
    ),
    "text": (lambda: HERE.vector(np.array(["a", "b"])), TensorError, "made of real numbers"),
    "complex": (lambda: HERE.covector(1j * VECTOR), TensorError, "made of real numbers"),
    "NaN": (
        lambda: HERE.vector(np.array([0.0, np.nan])),
        TensorError,
        "`components` of Tan.*finite",
    ),
    "no matrix": (lambda: HERE.form(VECTOR), TensorError, r"the shape \(2,\).*\(2, 2\)"),
    "asymmetric": (
        lambda: HERE.form(np.array([[1.0, 2.0], [0.0, 1.0]])),
        TensorError,
        r"not symmetric.*`space.operator\(E\)`",
    ),
    "no space": (lambda: Covector(POINT, COVECTOR), TensorError, "should be a tangent space"),
    "a point of integers": (
        lambda: TangentSpace(np.array([1, 2])),
        TensorError,
        "`point` of .*float",
    ),
    "a point without numbers": (lambda: TangentSpace({}), TensorError, "`point` of .* is {}"),
    "a point that is infinite": (lambda: TangentSpace(jnp.inf), TensorError, "`point` of.*finite"),
    "a point that is a space": (
        lambda: TangentSpace(HERE),
        TensorError,
        "`point` of.*TangentSpace",
    ),
    "a chart that is no text": (
        lambda: TangentSpace(POINT, 3),
        TensorError,
        "`chart` of Tang.*text",
    ),
    # changes of coordinates and metrics
    "a chart without a name": (lambda: V.to(lambda x: x), TensorError, "names no chart"),
    "no change of coordinates": (lambda: V.to(2.0, "psi"), TensorError, r"`phi` of `to` is 2\.0"),
    "no diffeomorphism": (lambda: W.to(jnp.sum), VolformError, "maps 2 coordinates to 1"),
    "a singular Jacobian": (
        lambda: TangentSpace(0.0).covector(1.0).to(jnp.square, "square"),
        TensorError,
        "`components` of Covector.*Jacobian",
    ),
    "a Jacobian of zeros": (
        lambda: TangentSpace(0.0).vector(1.0).to(jnp.square),
        TensorError,
        "`phi` of `to` has a Jacobian of zeros",
    ),
    "outside of a chart": (lambda: V.to(jnp.log), TensorError, "`point` of TangentSpace.*finite"),
    "a singular metric": (lambda: W.sharp(SINGULAR), TensorError, "where a metric is singular"),
    # geodesics
    "exp of a covector": (lambda: exp(FLAT, POINT, W), TensorError, SHARP),
    "exp elsewhere": (lambda: exp(FLAT, POINT + 1.0, V), TensorError, "between two points"),
    "geodesics of spaces": (
        lambda: distance(FLAT, HERE, THERE),
        GeodesicError,
        "`end` of distance.*`space.point`",
    ),
    "its eigenvalues": (lambda: H.eigenvalues(SINGULAR), TensorError, "`eigenvalues` of.*singular"),
    "an indefinite form": (lambda: (-H).logdet(FLAT), IndefiniteError, "smallest eigenvalue.*-3.1"),
    "a reflection": (
        lambda: HERE.operator(np.diag([1.0, -1.0])).logdet(),
        IndefiniteError,
        "sign of the determinant is -1",
    ),
    # multiples
    "times an array": (lambda: VECTOR * V, TensorError, "one finite real number.* `factor` is"),
    "times None": (lambda: V * None, TensorError, "`factor` is None"),
    "times text": (lambda: V * "2", TensorError, "`factor` is '2'"),
    "over a vector": (lambda: V / V, TensorError, "missing for two vectors, `v.flat"),
    "divided by zero": (lambda: V / 0, TensorError, "where that is not 0, and `factor` is 0"),
    "by a zero array": (lambda: V / jnp.array(0.0), TensorError, r"`factor` is Array\(0"),
    "by infinity": (lambda: V / np.inf, TensorError, "`factor` is inf"),
    "times NaN": (lambda: np.nan * W, TensorError, "one finite real number.*`factor` is nan"),
    "a power": (lambda: V**2, TensorError, r"`tensor \*\* 2` of Tang.*`vector.flat\(metric\)\(v"),
    "its length": (
        lambda: abs(V),
        TensorError,
        r"`abs\(tensor\)` of TangentVec.*`vf.geometry.norm",
    ),
    "one over it": (
        lambda: 1.0 / W,
        TensorError,
        "`1 / tensor` of Covector is not defined.*metric",
    ),
    "array @ v": (lambda: HESSIAN @ V, TensorError, "`@` of ndarray and TangentVector"),
    "JAX's array @ v": (lambda: jnp.eye(2) @ V, TensorError, "`@` of ArrayImpl and TangentVec"),
    # forms where something else should be
    "sharp of a form": (lambda: sharp(FLAT, HERE, H), TensorError, r"`form.under\(metric\)`"),
    "flat of a form": (lambda: flat(FLAT, HERE, H), TensorError, r"`form.under\(metric\)`, and"),
    "sharp of an operator": (lambda: sharp(FLAT, HERE, E), TensorError, r"`operator\(vector\)`"),
    "flat of an operator": (lambda: flat(FLAT, HERE, E), TensorError, r"`operator\(vector\)`"),
    "a form for a metric": (lambda: H.trace(H), MetricError, "`metric` of `trace` is Bilin.*point"),
    "sharp by a form": (lambda: W.sharp(H), MetricError, r"`metric` of `sharp`.*`space.form\("),
    # functions that have no differential
    "a map": (lambda: HERE.differential(PHI), TensorError, r"differential` is float64\[2\].*sum"),
    "two values": (
        lambda: gradient(FLAT, lambda x: (x[0], x[1]), HERE),
        TensorError,
        "`function` of `gradient` is of type tuple.*pushforward",
    ),
    "a whole number": (lambda: HERE.differential(lambda x: 3), TensorError, "is of type int"),
    "integers": (
        lambda: gradient(FLAT, lambda x: jnp.argmax(x), POINT),
        TensorError,
        r"`gradient` is int64\[\]",
    ),
    "Hessian of a map": (
        lambda: covariant_hessian(FLAT, PHI, POINT),
        TensorError,
        r"`function` of `covariant_hessian` is float64\[2\]",
    ),
    "no function": (lambda: HERE.differential(3.0), TensorError, r"is 3\.0, no function"),
    "a function of entries": (
        lambda: TangentSpace({"a": 1.0, "b": 2.0}).differential(lambda a, b: a * b),
        TensorError,
        r"argument: 'b': it is called with the point whole, `function\(point\)`",
    ),
    "a map of the point whole": (
        lambda: TangentSpace({"a": 1.0}).to(lambda p: p, "psi"),
        TensorError,
        "`phi` of `to` does not fit the point.*entries of a dict by name",
    ),
    "times a space": (lambda: V * HERE, TensorError, "TangentVector and TangentSpace"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    case, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        case()


@pytest.mark.float32
def test_points_differ_entry_by_entry_in_float32():
    """Half of the digits of a large coordinate are no distance of a small one."""
    one, other = (TangentSpace(jnp.array([1000.0, sigma])) for sigma in (0.1, 0.4))
    ones = jnp.ones(2)
    with pytest.raises(TensorError, match="should live at"):
        one.vector(ones) + other.vector(ones)
    with pytest.raises(TensorError, match="are not symmetric"):
        one.form(jnp.array([[1e4, 2.0], [0.0, 1e-3]]))


def test_points_differ_entry_by_entry():
    one, other = (TangentSpace(jnp.array([1e8, sigma])) for sigma in (1.0, 2.0))
    with pytest.raises(TensorError, match="should live at"):
        one.vector(jnp.ones(2)) + other.vector(jnp.ones(2))


def test_a_map_without_a_name_names_no_chart():
    with pytest.raises(TensorError, match="names no chart"):
        TangentSpace(jnp.zeros(2), "x").to(partial(jnp.multiply, 60.0))
