"""Densities with respect to volume forms. All integrals are Gauss-Legendre quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.distributions import transforms

import volform as vf
from volform.geometry import DiagonalField, log_volume, pushforward

from .laws import CURVED, PHI, POINT, law

# A density of R^2 and its push-forwards by the worked chart: to Lebesgue measure in psi, and, as
# a density q^G with respect to dV_G, a function.


def log_density(t):
    return dist.Normal(jnp.array([0.3, -0.2]), jnp.array([0.5, 0.4])).log_prob(t).sum()


def log_density_in_psi(p):
    return log_density(PHI.inv(p)) + jnp.linalg.slogdet(jax.jacobian(PHI.inv)(p))[1]


def log_q(t):
    return log_density(t) - log_volume(CURVED, t)


def log_q_in_psi(p):
    return log_density_in_psi(p) - log_volume(CURVED_IN_PSI, p)


CURVED_IN_PSI = vf.pullback(CURVED, PHI.inv)


def rule(low, high, nodes):
    t, w = np.polynomial.legendre.leggauss(nodes)
    return low + (high - low) * (t + 1.0) / 2.0, w * (high - low) / 2.0


def integral(log_f, low, high, nodes=240):
    """Integral of exp(log_f) over a square."""
    t, w = rule(low, high, nodes)
    points = np.stack(np.meshgrid(t, t), -1).reshape(-1, 2)
    return np.outer(w, w).ravel() @ np.exp(jax.jit(jax.vmap(log_f))(points))


def integral_on_line(log_f, low, high, nodes=400):
    t, w = rule(low, high, nodes)
    return w @ np.exp(jax.jit(jax.vmap(log_f))(t))


@pytest.mark.parametrize(
    ("log_f", "reach"),
    [
        (log_density, 4.0),
        (log_density_in_psi, 14.0),
        (lambda t: log_q(t) + log_volume(CURVED, t), 4.0),
        (lambda p: log_q(PHI.inv(p)) + log_volume(CURVED_IN_PSI, p), 14.0),
    ],
    ids=["theta", "psi", "theta, against dV_G", "psi, against dV_G"],
)
def test_densities_integrate_to_one(log_f, reach):
    assert_allclose(integral(log_f, -reach, reach), 1.0, rtol=1e-8)


def test_density_against_the_volume_is_a_function():
    t = np.array([POINT, [0.2, 0.1], [-1.3, 0.9]])

    @jax.jit
    @jax.vmap
    def at(t):
        return log_q(t), log_q_in_psi(PHI(t)), log_density(t) - log_density_in_psi(PHI(t))

    in_theta, in_psi, naive = at(t)
    assert_allclose(in_psi, in_theta, rtol=1e-12)
    assert np.abs(naive).min() > 0.02


@law()
def test_volume_is_chart_independent(s):
    """sqrt(det G) of the carried metric is sqrt(det G) / |det J|."""
    stretch = jnp.linalg.slogdet(jax.jacobian(s.f)(s.x))[1]
    expected = log_volume(s.metric, s.x)
    return log_volume(s.carried_metric, s.y) + stretch, expected, 1.0 + jnp.abs(expected)


@law()
def test_density_against_the_volume_is_invariant(s):
    """q^G of a density that is pushed forward is q^G o f^-1, for any metric."""

    def log_p_in_psi(y):
        return -s.carried_function(y) + jnp.linalg.slogdet(jax.jacobian(s.f.inv)(y))[1]

    in_theta = -s.function(s.x) - log_volume(s.metric, s.x)
    in_psi = log_p_in_psi(s.y) - log_volume(s.carried_metric, s.y)
    return in_psi, in_theta, 1.0 + jnp.abs(s.function(s.x)) + jnp.abs(in_theta)


def test_volume_of_a_region():
    """The unit disk of the hyperbolic half-plane, in two charts."""
    half_plane = DiagonalField(lambda p: jnp.full(2, p[1] ** -2))
    # The box 0 < x < 2, 1 < y < 3 has area 2 (1 - 1/3).
    t, w = rule(0.0, 1.0, 40)
    points = np.stack(np.meshgrid(2.0 * t, 1.0 + 2.0 * t), -1).reshape(-1, 2)
    weights = 4.0 * np.outer(w, w).ravel()
    volumes = jax.jit(jax.vmap(lambda p: log_volume(half_plane, p)))(points)
    assert_allclose(weights @ np.exp(volumes), 4.0 / 3.0, rtol=1e-12)
    in_logs = vf.pullback(half_plane, lambda p: jnp.stack([p[0], jnp.exp(p[1])]))
    points[:, 1] = np.log(3.0) * (points[:, 1] - 1.0) / 2.0
    volumes = jax.jit(jax.vmap(lambda p: log_volume(in_logs, p)))(points)
    assert_allclose(np.log(3.0) / 2.0 * weights @ np.exp(volumes), 4.0 / 3.0, rtol=1e-12)


def test_orthonormal_frames_span_unit_volume():
    """Vectors e_i with e_i . G e_j = 1 or 0 have |det(e)| sqrt(det G) = 1, in every chart."""
    frame = np.linalg.inv(np.linalg.cholesky(CURVED(POINT).as_matrix())).T
    spanned = np.log(np.abs(np.linalg.det(frame)))
    assert_allclose(spanned + log_volume(CURVED, POINT), 0.0, atol=1e-14)
    pushed = np.stack([pushforward(PHI, POINT, e) for e in frame.T], -1)
    spanned = np.log(np.abs(np.linalg.det(pushed)))
    assert_allclose(spanned + log_volume(CURVED_IN_PSI, PHI(POINT)), 0.0, atol=1e-14)


# --- Modes


def maximizer(log_f, start):
    """Newton's method on the gradient."""

    @jax.jit
    def found(x):
        def step(_, x):
            hessian = jnp.reshape(jax.hessian(log_f)(x), (x.size, x.size))
            return x - jnp.linalg.solve(hessian, jax.grad(log_f)(x).ravel()).reshape(x.shape)

        x = jax.lax.fori_loop(0, 30, step, x)
        return x, jax.grad(log_f)(x)

    x, slope = found(jnp.asarray(start))
    assert_allclose(slope, 0.0, atol=1e-11)
    return x


GAMMA = dist.Gamma(3.0, 1.0)
EXP = transforms.ExpTransform()


def log_gamma_in_log(u):
    return GAMMA.log_prob(jnp.exp(u)) + u


def test_mode_of_gamma():
    """2 in x, 3 through log x: the mode against Lebesgue measure moves with the chart."""
    assert_allclose(maximizer(GAMMA.log_prob, 1.7), 2.0, rtol=1e-12)
    assert_allclose(jnp.exp(maximizer(log_gamma_in_log, 0.8)), 3.0, rtol=1e-12)


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        (vf.Euclidean(), 2.0),
        (vf.Euclidean(5.0), 2.0),
        (DiagonalField(lambda x: x**-2), 3.0),
        (DiagonalField(lambda x: 1.0 + x**2), None),
    ],
    ids=["Euclidean", "in other units", "flat in log x", "curved line"],
)
def test_mode_against_the_volume_stays(metric, mode):
    carried = vf.pullback(metric, EXP)
    in_x = maximizer(lambda x: GAMMA.log_prob(x) - log_volume(metric, x), 1.2)
    in_log = maximizer(lambda u: log_gamma_in_log(u) - log_volume(carried, u), 0.2)
    assert_allclose(jnp.exp(in_log), in_x, rtol=1e-12)
    if mode is not None:
        assert_allclose(in_x, mode, rtol=1e-12)


def test_mode_in_two_dimensions_stays():
    in_theta = maximizer(log_q, np.zeros(2))
    in_psi = maximizer(log_q_in_psi, PHI(in_theta) + 0.01)
    assert_allclose(PHI.inv(in_psi), in_theta, atol=1e-10)
    naive = PHI.inv(maximizer(log_density_in_psi, PHI(in_theta)))
    assert jnp.abs(naive - np.array([0.3, -0.2])).max() > 0.05


# --- The volume form of the Fisher metric

BERNOULLI = vf.Fisher(dist.BernoulliProbs)


def test_jeffreys_density_of_bernoulli():
    """Beta(1/2, 1/2), which is the constant 1/pi against dV_F."""
    beta = dist.Beta(0.5, 0.5)
    p = jnp.array([0.01, 0.3, 0.5, 0.98])
    against_volume = jax.jit(jax.vmap(lambda p: beta.log_prob(p) - log_volume(BERNOULLI, p)))
    assert_allclose(jnp.exp(against_volume(p)), 1.0 / np.pi, rtol=1e-12)


@pytest.mark.parametrize(
    ("family", "chart", "low", "high"),
    [
        (dist.BernoulliProbs, lambda angle: jnp.sin(angle) ** 2, 0.0, np.pi / 2),
        (dist.BernoulliLogits, jnp.sinh, -5.5, 5.5),
    ],
    ids=["angle", "logit"],
)
def test_length_of_the_bernoulli_family(family, chart, low, high):
    """pi, in every chart."""
    metric = vf.pullback(vf.Fisher(family), chart)
    actual = integral_on_line(lambda t: log_volume(metric, t), low, high, 100)
    assert_allclose(actual, np.pi, rtol=1e-10)


def test_volume_of_location_scale_families_is_translation_and_scale_invariant():
    """sqrt(det F) of Normal(m, s) is sqrt(2) / s^2."""
    m, s = jnp.array([0.0, 5.0, -3.0]), jnp.array([1.0, 0.01, 100.0])
    volumes = jax.jit(jax.vmap(lambda *point: log_volume(vf.Fisher(dist.Normal), point)))
    assert_allclose(volumes(m, s), np.log(np.sqrt(2.0) / s**2), rtol=1e-12)
