"""Ten trained networks of the toy regression of Kristiadi et al. (2023), Table 1, Cartesian."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

from volform.errors import IndefiniteError
from volform.linalg import eigenvalues, logdet
from volform.operators import ggn, hessian

pytestmark = pytest.mark.reference


def network(params, x):
    (w, b), (v, c) = params
    return (v @ jnp.tanh(w @ x + b) + c)[0]


def likelihood(z):
    return dist.Normal(z, 1.0)


@pytest.fixture(scope="module")
def problem(reference):
    data = np.load(reference / "table1_toy.npz")
    fits = [
        [
            tuple(jnp.asarray(data[f"fit{i}_{layer}.{part}"]) for part in ("weight", "bias"))
            for layer in (0, 2)
        ]
        for i in range(10)
    ]
    fits = jax.tree.map(lambda a: a.astype(float), fits)
    return jnp.asarray(data["X"], float), jnp.asarray(data["Y"], float)[:, 0], fits


def log_joint(params, x, y):
    """Up to the normalization of the prior, which cancels in the evidence."""
    z = jax.vmap(network, (None, 0))(params, x)
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return jnp.sum(likelihood(z).log_prob(y)) - 0.5 * squares


def test_evidence_by_gauss_newton(problem):
    """The Jacobian written out by hand, and the numbers printed in the paper."""
    x, y, fits = problem
    found = []
    for params in fits:
        volume = logdet(ggn(network, likelihood, params, (x, y)) + 1.0).value
        (w, b), (v, _) = (tuple(map(np.asarray, layer)) for layer in params)
        hidden = np.tanh(np.asarray(x) * w[:, 0] + b)
        slope = (1 - hidden**2) * v[0]
        rows = np.concatenate([slope * x, slope, hidden, np.ones((150, 1))], 1)
        assert_allclose(volume, np.linalg.slogdet(rows.T @ rows + np.eye(151))[1], rtol=1e-9)
        found.append(log_joint(params, x, y) - 0.5 * volume)
    assert round(np.mean(found), 1) == -212.7
    assert round(np.std(found, ddof=1) / np.sqrt(10), 1) == 3.4


def test_the_hessian_is_indefinite_at_four_of_them(problem):
    x, y, fits = problem
    negative = []
    for params in fits:
        H = hessian(jax.tree_util.Partial(negative_log_joint, x, y), params)
        values = eigenvalues(H, 151).values
        negative.append(int((values < 0).sum()))
        if negative[-1]:
            with pytest.raises(IndefiniteError, match=rf"151 eigenvalues {negative[-1]} are neg"):
                logdet(H)
    assert sum(count > 0 for count in negative) == 4
    assert max(negative) == 36


def negative_log_joint(x, y, params):
    return -log_joint(params, x, y)
