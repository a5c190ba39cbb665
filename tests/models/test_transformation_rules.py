"""`check_invariance` names the rule of every kind of statistic, and none where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import transforms
from numpyro.distributions.transforms import Transform

import volform as vf

Y = np.array([0.3, 1.2, -0.4, 2.0])


class SinhTransform(Transform):
    """Sinh on the line, which no chart of NumPyro makes linear."""

    domain = codomain = dist.constraints.real

    def __call__(self, x):
        return jnp.sinh(x)

    def _inverse(self, y):
        return jnp.arcsinh(y)

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        return jnp.log(jnp.cosh(x))

    def tree_flatten(self):
        return (), ((), {})


PHI = {"mu": SinhTransform(), "s": transforms.ComposeTransform([transforms.PowerTransform(-2.0)])}


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3))
    s = numpyro.sample("s", dist.HalfNormal(2.0))
    numpyro.sample("y", dist.Normal(mu, s), obs=y)


METRICS = {
    "default": None,
    "joint": vf.JointFisher(),
    "likelihood": vf.LikelihoodFisher(),
    "site": {"s": 2.0 * vf.Euclidean()},
    "group": {("mu", "s"): vf.Fisher(dist.Normal)},
}


def natural(p, u):
    return jnp.linalg.solve(p.metric(u).as_matrix(), jax.grad(p.log_density)(u))


def operator(p, u):
    matrix = p.metric(u).as_matrix()
    gradient = jax.grad(p.log_density)(u)
    return jnp.linalg.solve(matrix, jnp.outer(gradient, gradient))


STATISTICS = {
    "function": lambda p, u: p.log_density(u),
    "log density": lambda p, u: p.log_density_lebesgue(u),
    "density": lambda p, u: jnp.exp(p.log_density_lebesgue(u)),
    "vector": natural,
    "covector": lambda p, u: jax.grad(p.log_density)(u),
    "bilinear form": lambda p, u: p.metric(u).as_matrix(),
    "operator": operator,
    "inverse form": lambda p, u: jnp.linalg.inv(p.metric(u).as_matrix()),
}


_SLOW = ("likelihood", "site", "group")


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[pytest.mark.slow] * (n in _SLOW)) for n in METRICS],
)
def posterior(request):
    metric = METRICS[request.param]
    return vf.condition(model if metric is None else vf.attach(model, metric), Y)


def test_each_rule_is_found(posterior):
    for rule, statistic in STATISTICS.items():
        found = vf.check_invariance(statistic, posterior, PHI, points=1)
        assert found.obeyed == (rule,), (rule, found)
        assert found.rule == rule
        assert found.holds
        assert found.defects[rule] < 1e-8
        others = [defect for name, defect in found.defects.items() if name != rule]
        assert min(others) > 1e-3


def test_modes():
    posterior = vf.condition(model, Y)
    mode = vf.check_invariance(lambda p, u: vf.find_map(p).at.u, posterior, PHI, points=1)
    assert mode.rule == "point"
    assert mode.defects["point"] < 1e-8


@pytest.mark.slow
def test_evidence():
    posterior = vf.condition(vf.attach(model, vf.JointFisher()), Y)
    log_z = vf.check_invariance(lambda p, u: vf.laplace(p).evidence.log_z, posterior, PHI, points=1)
    assert log_z.rule == "function"
    assert log_z.defects["function"] < 1e-8


def test_naive_statistics_obey_no_rule():
    posterior = vf.condition(model, Y)
    naive = vf.check_invariance(
        lambda p, u: jnp.sum(jax.grad(p.log_density)(u) ** 2), posterior, PHI, points=1
    )
    assert not naive.holds
    assert naive.obeyed == ()
    assert "none; nearest is that of a" in repr(naive)
    # of the coordinates themselves, so that it cannot be carried
    own = vf.condition(vf.attach(model, vf.Unconstrained()), Y)
    assert vf.check_invariance(STATISTICS["function"], own, PHI, points=1).obeyed == (
        "log density",
    )


def test_linear_phi_says_so():
    posterior = vf.condition(model, Y)
    found = vf.check_invariance(
        lambda p, u: natural(p, u), posterior, {"s": transforms.PowerTransform(2.0)}, points=1
    )
    assert found.obeyed == ("point", "vector")
    assert "does not tell these apart" in repr(found)


@pytest.mark.parametrize(
    ("phi", "statistic", "error", "match"),
    [
        ({"z": SinhTransform()}, STATISTICS["function"], vf.errors.UnknownSiteError, "'z'"),
        ({"y": SinhTransform()}, STATISTICS["function"], vf.errors.UnknownSiteError, "'y'"),
        ({"mu": jnp.sinh}, STATISTICS["function"], vf.errors.ModelError, "should be a bijection"),
        ({}, STATISTICS["function"], vf.errors.ModelError, "`phi` is empty"),
        ([1], STATISTICS["function"], vf.errors.ModelError, "should be a dictionary"),
        (
            {"mu": transforms.AbsTransform()},
            STATISTICS["function"],
            vf.errors.ModelError,
            "is no bijection there",
        ),
        (PHI, lambda p, u: "text", vf.errors.DataError, "finite numbers; got 'text'"),
        (PHI, lambda p, u: jnp.nan, vf.errors.DataError, "finite numbers; got nan"),
        (PHI, lambda p, u: np.ones(len(p.names[0])), vf.errors.DataError, "the shape"),
    ],
)
def test_refused(phi, statistic, error, match):
    posterior = vf.condition(model, Y)
    with pytest.raises(error, match=match):
        vf.check_invariance(statistic, posterior, phi)


def test_at_values():
    posterior = vf.condition(model, Y)
    seen = []
    vf.check_invariance(
        lambda p, u: seen.append(p.values(u)) or 0.0, posterior, PHI, at={"mu": 0.3, "s": 1.5}
    )
    assert float(seen[0]["s"]) == pytest.approx(1.5)
    assert float(seen[1]["s_in_chart"]) == pytest.approx(1.5**-2)


def test_a_large_constant_hides_no_rule():
    posterior = vf.condition(model, Y)
    phi = {"s": transforms.PowerTransform(-2.0)}
    found = vf.check_invariance(
        lambda p, u: 1e9 + p.log_density_lebesgue(u), posterior, phi, points=1
    )
    assert found.obeyed == ("log density",)
