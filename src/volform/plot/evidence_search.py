"""The course of a search for the hyperparameters of highest evidence."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from volform.errors import ModelError
from volform.inference.evidence.empirical_bayes import EmpiricalBayes
from volform.plot import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LINES = 50  # of the elements of one hyperparameter


def evidence_trace(found: EmpiricalBayes, *, axes: "Sequence[Axes] | None" = None) -> "list[Axes]":
    """Draw log Z and the hyperparameters by the step of their search.

    Args:
        found: from `vf.maximize_evidence`, or `vf.inference.train_by_evidence`.
        axes: matplotlib axes, one for log Z and one for each hyperparameter; by default a new
            figure.

    Returns:
        The axes, that of log Z first.

    Raises:
        ModelError: another result, one without a course, or axes of another number.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y, scale):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, scale))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> y = jnp.array([0.5, 1.5, 2.0])
    >>> found = vf.maximize_evidence(lambda h: vf.condition(model, y, h["scale"]), {"scale": 0.3})
    >>> [ax.get_ylabel() for ax in vf.plot.evidence_trace(found)]
    ['log Z', 'scale']
    """
    if not isinstance(found, EmpiricalBayes) or found.history is None or not found.path:
        raise ModelError(
            f"`found` of plot.evidence_trace is of type {type(found).__name__}; it should be the "
            "result of `vf.maximize_evidence`, with its `history` and `path`."
        )
    names = ["log Z", *found.path]
    wanted = f"{len(names)}, for {', '.join(names)}"
    panels = (
        canvas.new_axes(len(names), 2.9, 2.3, columns=2)
        if axes is None
        else canvas.given_axes(axes, len(names), "evidence_trace", wanted)
    )
    steps = np.arange(len(found.history))
    for ax, name, line in zip(panels, names, [found.history, *found.path.values()], strict=True):
        lines = np.reshape(np.asarray(line), (len(steps), -1))[:, :MOST_LINES]
        color = canvas.BLUE if name == "log Z" else canvas.VERMILION
        mark = "o-" if len(steps) <= 60 else "-"
        ax.plot(steps, lines, mark, color=color, markersize=3.5, linewidth=1.3)
        if name != "log Z" and (lines > 0.0).all() and lines.max() > 20.0 * lines.min():
            ax.set_yscale("log")
        ax.set_xlabel("step", color=canvas.INK)
        ax.set_ylabel(name, color=canvas.INK)
        ax.locator_params(axis="x", integer=True)
        canvas.plain(ax)
    end = "converged" if found.converged else "not converged"
    last = canvas.number(float(found.history[-1]))
    panels[0].set_title(f"log Z {last}, {end}", fontsize=10, loc="left", color=canvas.INK)
    return panels
