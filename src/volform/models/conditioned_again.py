"""Posteriors of the model of another one: sites held, arguments changed, handlers around it."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from volform.errors import UnknownSiteError
from volform.models.attaching import FixedSites, without_handlers
from volform.models.model_with_batches import first_of, given_arguments
from volform.models.posterior import Posterior, conditioned, names_in, with_attached


def with_sites_fixed(
    posterior: Posterior, u: Float[Array, " d"], names: Sequence[str]
) -> Posterior:
    """The posterior of the model with some latent sites as constants, without their priors.

    Metrics of values that depend on these sites alone are dropped; others measure what is left.

    Args:
        posterior: the posterior.
        u: where the values of the constants are taken.
        names: latent sites, not all of them.
    """
    tangent = jax.random.normal(jax.random.key(0), u.shape, u.dtype)
    for name in names:
        tangent = tangent.at[posterior.layout.site(name).segment].set(0.0)

    first = dataclasses.replace(posterior, program=first_of(posterior.program))

    def reals(u: Float[Array, " d"]) -> dict[str, Any]:
        found = first.values(u, posterior.known)
        return {n: v for n, v in found.items() if jnp.issubdtype(jnp.result_type(v), jnp.floating)}

    _, moved = jax.jvp(reals, (u,), (tangent,))
    fixed = frozenset(name for name, by in moved.items() if not jnp.any(by != 0.0))
    groups = {n for a in posterior.attachments if a.sites for n in names_in(a.sites)}
    values = {name: value for name, value in posterior.values(u).items() if name in names}
    fixed_model = FixedSites(posterior.model, values, shown=groups)
    model = with_attached(fixed_model, posterior.attachments)
    posterior.program.require_unchanged()
    args, kwargs = given_arguments(posterior.program)
    return conditioned(model, args, kwargs, fixed, posterior.labels)


def with_model(posterior: Posterior, model: Callable, **more: Any) -> Posterior:
    """The posterior of another spelling of the model, on the same data and with the same metrics.

    Args:
        posterior: the posterior.
        model: a handler around its model.
        **more: keyword arguments that the handler takes beside those of the model.
    """
    posterior.program.require_unchanged()
    args, kwargs = given_arguments(posterior.program)
    attached = with_attached(model, posterior.attachments)
    return conditioned(attached, args, {**kwargs, **more}, frozenset(), posterior.labels)


def with_arguments(posterior: Posterior, arguments: Mapping[str, Any]) -> Posterior:
    """The posterior of the same model and metric with other values of some arguments.

    The values may be traced.

    Args:
        posterior: the posterior.
        arguments: of the model, by their names.

    Raises:
        UnknownSiteError: when the model has no argument of a name.
    """
    posterior.program.require_unchanged()
    args, kwargs = given_arguments(posterior.program)
    if posterior.in_batches and any(name not in kwargs for name in arguments):
        raise UnknownSiteError(
            f"`{posterior.program.name}` has its arguments {list(arguments)} in `Batches`, or has "
            f"none of such a name; what can be changed goes by keyword: {list(kwargs)}."
        )
    places = _parameters(posterior.model)
    unknown = [name for name in arguments if name not in places and name not in kwargs]
    if unknown:
        raise UnknownSiteError(
            f"`{posterior.program.name}` has no argument {unknown[0]!r}; it has "
            f"{list(dict.fromkeys([*places, *kwargs]))}. What it reads from elsewhere, make an "
            "argument."
        )
    changed = list(args)
    for name, value in arguments.items():
        if name not in kwargs and places.index(name) < len(args):
            changed[places.index(name)] = value
        else:
            kwargs = {**kwargs, name: value}
    model = with_attached(posterior.model, posterior.attachments)
    return conditioned(model, tuple(changed), kwargs, frozenset(), posterior.labels)


def _parameters(model: Any) -> list[str]:
    """Names of the arguments of a model's function, under whatever handlers, in order."""
    try:
        return list(inspect.signature(without_handlers(model)).parameters)
    except (TypeError, ValueError):
        return []
