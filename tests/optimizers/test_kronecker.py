"""Steps preconditioned by Kronecker factors: which rewritings of layers leave them alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose

import volform as vf
from volform.linalg import DenseOperator, FlatBlocks, KroneckerSum, RotatedDiagonal
from volform.optimizers import natural_gradient

SHAPES = {"w0": (4, 3), "w1": (2, 5)}
RNG = np.random.default_rng(0)
X, Y = jnp.asarray(RNG.normal(size=(30, 2))), jnp.asarray(RNG.normal(size=(30, 2)))
START = {name: jnp.asarray(RNG.normal(size=shape)) for name, shape in SHAPES.items()}


def network(weights, maps, x):
    """Two layers, with an affine map before each and another after it; biases are columns."""
    hidden = x
    for i, (before, after, shift) in enumerate(maps):
        ones = jnp.ones((len(x), 1))
        into = jnp.concatenate([jnp.tanh(hidden) if i else hidden, ones], axis=1) @ before.T
        hidden = into @ weights[f"w{i}"].T @ after.T + shift[None]
    return hidden


def model(x, y, maps, chart=jnp.array):
    weights = {}
    for name, shape in SHAPES.items():
        prior = dist.Normal(0.0, 1.0).expand(shape).to_event(2)  # of precision 1: a damping
        weights[name] = chart(numpyro.sample(name, prior))
    numpyro.sample("y", dist.Normal(network(weights, maps, x), 0.5).to_event(1), obs=y)


CURVED_MODEL = functools.partial(model, chart=jnp.sinh)


def random_maps(seed, *, orthogonal=False):
    """For each layer: a matrix on its inputs and a 1, a matrix on its outputs, and a shift."""
    rng = np.random.default_rng(seed)

    def matrix(n):
        found = rng.normal(size=(n, n)) + 2.0 * np.eye(n)
        return np.linalg.qr(found)[0] if orthogonal else found

    maps = []
    for units, fan_in in SHAPES.values():
        before = np.eye(fan_in)
        before[:-1, :-1] = matrix(fan_in - 1)
        before[:-1, -1] = 0.0 if orthogonal else rng.normal(size=fan_in - 1)
        maps.append((before, matrix(units), rng.normal(size=units)))
    return jax.tree.map(jnp.asarray, maps)


IDENTITY = [(jnp.eye(n), jnp.eye(m), jnp.zeros(m)) for m, n in SHAPES.values()]


def plain(weights, maps):
    """The weights that do the same without maps."""
    found = {}
    for (name, w), (before, after, shift) in zip(weights.items(), maps, strict=True):
        found[name] = (after @ w @ before).at[:, -1].add(shift)
    return found


def mapped(weights, maps):
    """The inverse of `plain`."""
    found = {}
    for (name, w), (before, after, shift) in zip(weights.items(), maps, strict=True):
        found[name] = jnp.linalg.inv(after) @ w.at[:, -1].add(-shift) @ jnp.linalg.inv(before)
    return found


def damped(weights, maps, structure=vf.Kronecker(), of=model):  # noqa: B008
    """KFAC and the precision of the prior, the identity in the weights at hand."""
    posterior = vf.condition(of, X, Y, maps)
    return vf.laplace(posterior, at=weights, curvature=vf.GGN(), structure=structure).precision


def undamped(weights, maps):
    """KFAC alone."""
    blocks = []
    for block in damped(weights, maps).blocks:
        zeros = jnp.zeros_like(block.left), jnp.zeros_like(block.right)
        blocks.append(KroneckerSum(*zeros, block.left, block.right))
    return FlatBlocks(tuple(blocks))


def carried(weights, maps):
    """KFAC damped by the identity of the plain weights, carried along: `|A W B|^2`."""
    blocks = []
    for block, (before, after, _) in zip(damped(weights, maps).blocks, maps, strict=True):
        base = after.T @ after, before @ before.T
        blocks.append(KroneckerSum(block.left, block.right, *base))
    return FlatBlocks(tuple(blocks))


def corrected(weights, maps):
    """EKFAC alone: the data's own diagonal in the eigenvectors of the factors."""
    blocks = damped(weights, maps, vf.Kronecker(corrected=True)).blocks
    return FlatBlocks(tuple(RotatedDiagonal(b.left, b.right, b.values - 1.0) for b in blocks))


@jax.jit
def slope_at(weights, maps):
    return jax.grad(lambda w: jnp.sum((Y - network(w, maps, X)) ** 2))(weights)


@jax.jit
def moved(weights, slope, operator, rate):
    """The weights after a step of the natural gradient in a metric."""
    (flat, unravel), slope = ravel_pytree(weights), ravel_pytree(slope)[0]
    tx = natural_gradient(lambda _: operator, rate)
    updates, _ = tx.update(slope, tx.init(flat), flat)
    return unravel(optax.apply_updates(flat, updates))


def defect(metric, maps, steps=2):
    """How far the weights of two networks that do the same are apart after steps, relatively."""
    here, there = START, mapped(START, maps)
    for _ in range(steps):
        here = moved(here, slope_at(here, IDENTITY), metric(here, IDENTITY), 0.5)
        there = moved(there, slope_at(there, maps), metric(there, maps), 0.5)
    ours, theirs, start = (ravel_pytree(w)[0] for w in (here, plain(there, maps), START))
    return float(jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(ours - start))


def test_the_two_networks_do_the_same():
    maps = random_maps(1)
    there = mapped(START, maps)
    assert_allclose(network(there, maps, X), network(START, IDENTITY, X), rtol=0, atol=1e-12)


def test_affine_maps_of_layers():
    """KFAC is invariant (Martens & Grosse 2015, theorem 1), and so is a damping that is carried.

    A damping by the identity of each is not, by a third of the way here; nor is EKFAC.
    """
    maps = random_maps(1)
    assert defect(undamped, maps) < 1e-8
    assert defect(carried, maps) < 1e-8
    assert_allclose(defect(damped, maps), 0.30, atol=0.01)
    assert defect(corrected, maps) > 0.1


def test_orthogonal_maps_of_layers():
    """All are invariant: an orthogonal map leaves the identity alone."""
    maps = random_maps(1, orthogonal=True)
    for metric in (undamped, carried, damped, corrected):
        assert defect(metric, maps) < 1e-8


def test_other_charts():
    """Of weights `sinh z` the direction is the same, and the step to the first order only."""
    z = jax.tree.map(jnp.arcsinh, START)
    total = damped(z, IDENTITY, of=CURVED_MODEL)
    flat = ravel_pytree(z)[0]
    operator = DenseOperator(total.as_matrix() - jnp.eye(flat.size), flat)
    slope = slope_at(START, IDENTITY)
    of_z = jax.tree.map(lambda w, z: w * jnp.cosh(z), slope, z)
    metric = undamped(START, IDENTITY)

    def step(rate):
        here = moved(START, slope, metric, rate)
        there = moved(z, of_z, operator, rate)
        return ravel_pytree(here)[0], ravel_pytree(there)[0]

    start = ravel_pytree(START)[0]
    direction, of_chart = (w - x for w, x in zip(step(1.0), (start, flat), strict=True))
    size = float(jnp.abs(direction).max())
    assert_allclose(of_chart * jnp.cosh(flat), direction, rtol=0, atol=1e-8 * size)

    def difference(rate):
        here, there = step(rate)
        return float(jnp.abs(here - jnp.sinh(there)).max())

    assert_allclose(np.log2(difference(0.02) / difference(0.01)), 2.0, atol=0.1)
