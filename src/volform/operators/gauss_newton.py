"""Curvature of a network's likelihood: the generalized Gauss-Newton and three Fisher matrices."""

import jax
from jaxtyping import PRNGKeyArray, PyTree

from volform.checks import require_key, require_whole
from volform.operators.gram import DrawnRoot, FisherRoot, Gram, OutputHessian, ScoreRoot
from volform.operators.per_example import (
    Family,
    NetworkFunction,
    checked,
    is_canonical,
    structure_of_one,
)


def ggn(
    network: NetworkFunction,
    likelihood: Family,
    params: PyTree,
    data: tuple[PyTree, PyTree],
    *,
    chunk: int | None = None,
) -> Gram | OutputHessian:
    """Generalized Gauss-Newton matrix `sum_n J_n^T L_n J_n`, L_n = -d^2 log p(y_n | z) / dz^2.

    The Hessian of the negative log likelihood with the curvature of the network left out. Where
    L_n does not depend on y (Normal of fixed scale, Bernoulli and Categorical of logits, Poisson
    of the log rate: canonical links) this is the Fisher matrix, and returned as the `Gram` that
    `fisher` makes. That is found by comparing the two at random outputs; where the likelihood holds
    a value traced by `jit` it cannot be, so call `fisher` there. Elsewhere (Student t, both
    parameters of a Normal) they differ, and L_n may be indefinite.

    Args:
        network: `network(params, x)` is the output z for *one* example: an array of any shape, or
            a tuple or dict of arrays. volform does the batching.
        likelihood: from z to a NumPyro distribution of one label: `likelihood(z)`, for a tuple
            `likelihood(*z)`, for a dict `likelihood(**z)`, as `volform.Fisher` has it.
        params: a pytree of float32 or float64 arrays.
        data: the pair (x, y), pytrees of arrays with one example along each leading axis.
        chunk: examples worked on at once, which bounds the memory; all of them by default.

    Returns:
        A symmetric operator on pytrees like `params`: a sum over the examples, not their mean.

    Raises:
        OperatorError: where network, likelihood, parameters and labels do not fit, or `chunk` < 1.
        DataError: for data that are empty or of unequal length.

    References:
        Schraudolph (2002), Fast curvature matrix-vector products; Martens (2020), New insights and
        perspectives on the natural gradient method, section 8.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, volform as vf
    >>> x, y = jnp.array([1.0, 2.0]), jnp.array([0.5, 0.0])
    >>> network, likelihood = (lambda w, x: w * x), (lambda z: dist.Normal(z, 0.5))
    >>> G = vf.operators.ggn(network, likelihood, jnp.array(1.0), (x, y))
    >>> G.as_matrix().tolist()
    [[20.0]]
    """
    params, data = checked("ggn", network, likelihood, params, data, chunk)
    z = jax.eval_shape(network, params, structure_of_one(data[0]))
    if is_canonical(likelihood, z):
        return Gram(network, params, data, root=FisherRoot(likelihood), chunk=chunk)
    return OutputHessian(network, params, data, likelihood=likelihood, chunk=chunk)


def fisher(
    network: NetworkFunction,
    likelihood: Family,
    params: PyTree,
    data: tuple[PyTree, PyTree],
    *,
    key: PRNGKeyArray | None = None,
    draws: int = 1024,
    chunk: int | None = None,
) -> Gram:
    """Fisher matrix `sum_n J_n^T F_n J_n`, F_n = E_{y ~ p(.|z_n)}[s s^T], s = d log p(y | z) / dz.

    The labels of `data` do not enter. F_n is that of `volform.Fisher`: in closed form for the
    common families, else by Kullback-Leibler divergence, enumeration, or Monte Carlo with `key`.

    Args:
        network: as for `ggn`.
        likelihood: as for `ggn`.
        params: as for `ggn`.
        data: as for `ggn`.
        key: for families whose F_n has no exact form.
        draws: number of draws for those.
        chunk: as for `ggn`.

    Returns:
        A positive semi-definite operator on pytrees like `params`, a sum over the examples.

    Raises:
        OperatorError: as for `ggn`.
        DataError: as for `ggn`.
        MetricError: where only Monte Carlo would do and there is no `key`.

    References:
        Martens (2020), New insights and perspectives on the natural gradient method, section 5.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, volform as vf
    >>> x, y = jnp.array([1.0, 2.0]), jnp.array([3.0, 0.0])
    >>> network, likelihood = (lambda w, x: w * x), (lambda z: dist.StudentT(3.0, z))
    >>> F = vf.operators.fisher(network, likelihood, jnp.array(1.0), (x, y))
    >>> F.as_matrix().round(6).tolist()
    [[3.333333]]
    """
    params, data = checked("fisher", network, likelihood, params, data, chunk)
    return Gram(network, params, data, root=FisherRoot(likelihood, key, draws), chunk=chunk)


def empirical_fisher(
    network: NetworkFunction,
    likelihood: Family,
    params: PyTree,
    data: tuple[PyTree, PyTree],
    *,
    chunk: int | None = None,
) -> Gram:
    """Second moment of the scores of the data, `sum_n g_n g_n^T`, g_n = d log p(y_n | x_n) / dp.

    Not the Fisher matrix: the labels are those of the data and not drawn from the model, so that
    it vanishes where the fit is perfect. It is no approximation of the Hessian in general.

    Args:
        network: as for `ggn`.
        likelihood: as for `ggn`.
        params: as for `ggn`.
        data: as for `ggn`.
        chunk: as for `ggn`.

    Returns:
        A positive semi-definite operator on pytrees like `params`, a sum over the examples.

    Raises:
        OperatorError: as for `ggn`.
        DataError: as for `ggn`.

    References:
        Kunstner, Balles & Hennig (2019), Limitations of the empirical Fisher approximation.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, volform as vf
    >>> x, y = jnp.array([1.0, 2.0]), jnp.array([3.0, 0.0])
    >>> network, likelihood = (lambda w, x: w * x), (lambda z: dist.Normal(z, 1.0))
    >>> F = vf.operators.empirical_fisher(network, likelihood, jnp.array(1.0), (x, y))
    >>> F.as_matrix().tolist()
    [[20.0]]
    """
    params, data = checked("empirical_fisher", network, likelihood, params, data, chunk)
    return Gram(network, params, data, root=ScoreRoot(likelihood), chunk=chunk)


def monte_carlo_fisher(
    network: NetworkFunction,
    likelihood: Family,
    params: PyTree,
    data: tuple[PyTree, PyTree],
    *,
    key: PRNGKeyArray,
    draws: int = 1,
    chunk: int | None = None,
) -> Gram:
    """Fisher matrix with labels drawn from the model, `sum_n 1/S sum_s g_ns g_ns^T`.

    Unbiased for `fisher`, and of rank at most S for each example: cheaper for large outputs.

    Args:
        network: as for `ggn`.
        likelihood: as for `ggn`.
        params: as for `ggn`.
        data: as for `ggn`.
        key: key of the labels; the same key draws the same labels whatever `chunk` is.
        draws: labels S drawn for each example.
        chunk: as for `ggn`.

    Returns:
        A positive semi-definite operator on pytrees like `params`, a sum over the examples.

    Raises:
        OperatorError: as for `ggn`, and for `draws` < 1.
        DataError: as for `ggn`.

    References:
        Martens & Grosse (2015), Optimizing neural networks with Kronecker-factored approximate
        curvature, section 5.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, volform as vf
    >>> x, y = jnp.ones(1000), jnp.zeros(1000)
    >>> network, likelihood = (lambda w, x: w * x), (lambda z: dist.Normal(z, 1.0))
    >>> F = vf.operators.monte_carlo_fisher(
    ...     network, likelihood, jnp.array(1.0), (x, y), key=jax.random.key(0)
    ... )
    >>> 900 < F.as_matrix().item() < 1100
    True
    """
    require_key(key, "key", "monte_carlo_fisher")
    require_whole(draws, "draws", "monte_carlo_fisher")
    params, data = checked("monte_carlo_fisher", network, likelihood, params, data, chunk)
    return Gram(network, params, data, root=DrawnRoot(likelihood, key, draws), chunk=chunk)
