"""Kronecker factors beside kfac-jax, and Adam: a small LeNet on the digits of scikit-learn.

    pip install kfac-jax==0.0.8 scikit-learn     # beside volform
    python benchmarks/kfac.py                    # prints the table
    python benchmarks/kfac.py --out docs/optimizers.md

All start from the same weights and take the same batches, in single precision. Rates, dampings and
momenta are the best of a grid, by the loss after 30 steps; kfac-jax also runs as it adapts
them itself. A loss is that of all 1,797 images. The processor time of a step is the median of 30,
taken in turns, once all is compiled. `--out` writes the table between two marks of the page.
"""

import argparse
import datetime
import itertools
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.flatten_util import ravel_pytree
from sklearn.datasets import load_digits

import volform as vf
from volform.errors import VolformError

# In the order of their names, which is that of the flat vector of both sides.
SHAPES = {
    "a_filter": (3, 3, 1, 6),
    "a_shift": (6,),
    "b_filter": (3, 3, 6, 16),
    "b_shift": (16,),
    "c_matrix": (64, 32),
    "c_shift": (32,),
    "d_matrix": (32, 10),
    "d_shift": (10,),
}
BATCH, L2 = 256, 1e-4
STOPS = (1, 3, 10, 30, 100)
TUNED_AT, TIMED = 30, 30
DAMPINGS = (0.03, 0.1, 0.3)
RATES = ((0.03, 0.9), (0.1, 0.9), (0.3, 0.9))  # with momentum
EVERY = 10  # steps between two sets of factors, in one of the rows
MARKS = "<!-- benchmarks/kfac.py -->\n", "<!-- end -->\n"

Params = dict[str, Any]
Batch = tuple[Any, Any]
Step = Callable[[Params, Any, Batch], tuple[Params, Any]]


class Runner(NamedTuple):
    """One optimizer: how its state begins, and a step of it."""

    init: Callable[[Params, Batch], Any]
    step: Step


def convolved(x, weights, shift):
    product = jax.lax.conv_general_dilated(
        x, weights, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return product + shift


def pooled(x):
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def network(w, x):
    hidden = pooled(jnp.tanh(convolved(x, w["a_filter"], w["a_shift"])))
    hidden = pooled(jnp.tanh(convolved(hidden, w["b_filter"], w["b_shift"])))
    hidden = jnp.tanh(hidden.reshape(len(x), -1) @ w["c_matrix"] + w["c_shift"])
    return hidden @ w["d_matrix"] + w["d_shift"]


def loss(w, batch):
    x, y = batch
    fit = optax.softmax_cross_entropy_with_integer_labels(network(w, x), y).mean()
    return fit + 0.5 * L2 * optax.tree.norm(w, squared=True)


def problem():
    """First weights, all the data, and batches without end."""
    digits = load_digits()
    x, y = np.float32(digits.images[..., None] / 16.0), np.int32(digits.target)
    rng = np.random.default_rng(0)
    w = {}
    for name, shape in SHAPES.items():
        fan_in = math.prod(shape[:-1])
        drawn = rng.normal(size=shape) / math.sqrt(fan_in)
        w[name] = jnp.asarray(drawn if len(shape) > 1 else np.zeros(shape), jnp.float32)

    def batches():
        rng = np.random.default_rng(1)
        while True:
            order = rng.permutation(len(x))
            for rows in np.split(order[: len(x) // BATCH * BATCH], len(x) // BATCH):
                yield jnp.asarray(x[rows]), jnp.asarray(y[rows])

    return w, (jnp.asarray(x), jnp.asarray(y)), batches


# --- The optimizers


def classifier(x, y, deviation):
    priors = {name: dist.Normal(0.0, deviation).expand(shape) for name, shape in SHAPES.items()}
    w = {name: numpyro.sample(name, prior.to_event()) for name, prior in priors.items()}
    numpyro.sample("y", dist.Categorical(logits=network(w, x)), obs=y)


def factors(w, batch, damping):
    """KFAC of the sum over a batch, beside a prior that is the regularization and the damping."""
    deviation = jnp.float32((BATCH * (L2 + damping)) ** -0.5)
    posterior = vf.condition(classifier, *batch, deviation)
    settings = {"curvature": vf.GGN(), "structure": vf.Kronecker(), "refuse": False}
    return vf.laplace(posterior, at=w, **settings).precision


@eqx.filter_jit
def moved(w, state, batch, precision, settings):
    """The weights after a step of the natural gradient; rate and momentum are no constants."""
    tx = chain(*settings)
    flat, unravel = ravel_pytree(w)
    slope = ravel_pytree(jax.grad(loss)(w, batch))[0] * jnp.float32(BATCH)
    updates, state = tx.update(slope, state, flat, metric=lambda _: precision)
    return unravel(flat + updates), state


def chain(rate, momentum):
    metric = vf.Euclidean()  # in place of which each step brings its own
    descend = optax.scale_by_learning_rate(rate)
    return optax.chain(vf.optimizers.precondition(metric), optax.trace(momentum), descend)


def ours(rate, momentum, damping, every=1):
    """The natural gradient by Kronecker factors of the batch at hand."""
    settings = jnp.float32(rate), jnp.float32(momentum)

    def init(w, batch):
        return chain(*settings).init(ravel_pytree(w)[0]), 0, None

    def step(w, state, batch):
        state, count, precision = state
        if count % every == 0:
            precision = factors(w, batch, damping)
        w, state = moved(w, state, batch, precision, settings)
        return w, (state, count + 1, precision)

    return Runner(init, step)


def adam(rate):
    tx = optax.adam(rate)

    @jax.jit
    def step(w, state, batch):
        updates, state = tx.update(jax.grad(loss)(w, batch), state)
        return optax.apply_updates(w, updates), state

    return Runner(lambda w, batch: tx.init(w), step)


def theirs(kfac_jax):
    """Makers of two kinds of runner: with a rate, momentum and damping; and as it adapts them."""

    def registered(w, batch):
        x, y = batch
        kfac_jax.register_softmax_cross_entropy_loss(network(w, x), y)
        return loss(w, batch)

    def optimizer(adapts):
        return kfac_jax.Optimizer(
            jax.value_and_grad(registered),
            l2_reg=L2,
            use_adaptive_learning_rate=adapts,
            use_adaptive_momentum=adapts,
            use_adaptive_damping=adapts,
            initial_damping=1.0 if adapts else None,
            num_burnin_steps=0,
        )

    def runner(optimizer, **settings):
        key = jax.random.key(0)

        def init(w, batch):
            return optimizer.init(w, jax.random.key_data(key), batch), 0

        def step(w, state, batch):
            state, count = state
            each = jax.random.key_data(jax.random.fold_in(key, count))
            w, state, _ = optimizer.step(w, state, each, batch=batch, **settings)
            return w, (state, count + 1)

        return Runner(init, step)

    fixed = optimizer(adapts=False)

    def tuned(rate, momentum, damping):
        numbers = {"learning_rate": rate, "momentum": momentum, "damping": damping}
        return runner(fixed, **{name: jnp.float32(value) for name, value in numbers.items()})

    return tuned, lambda: runner(optimizer(adapts=True))


def mended(kfac_jax):
    """kfac-jax with the one function of its own that does not run on JAX 0.10.

    There `get_bind_params` returns the parameters alone, before it was a pair with functions.
    """

    def eval_jaxpr_eqn(eqn, in_values):
        with jax.extend.source_info_util.user_context(eqn.source_info.traceback):
            output = eqn.primitive.bind(*in_values, **eqn.primitive.get_bind_params(eqn.params))
        return output if isinstance(output, list) else [output]

    sys.modules["kfac_jax._src.tag_graph_matcher"].eval_jaxpr_eqn = eval_jaxpr_eqn
    return kfac_jax


# --- Runs


def run(runner: Runner, steps: int, setting) -> tuple[list[float], tuple[Params, Any]]:
    """Losses of all the data at the stops, and weights and state at the end."""
    start, everything, batches = setting
    w = jax.tree.map(jnp.copy, start)  # which kfac-jax overwrites
    source, total = batches(), jax.jit(loss)
    state = runner.init(w, next(batches()))
    found = []
    for count, batch in enumerate(itertools.islice(source, steps), 1):
        w, state = runner.step(w, state, batch)
        if count in STOPS:
            found.append(float(total(w, everything)))
    for name, shape in SHAPES.items():
        assert w[name].shape == shape, (name, w[name].shape)
        assert w[name].dtype == jnp.float32, (name, w[name].dtype)
    return found, (w, state)


def best(make: Callable[..., Runner], grid, setting) -> tuple[Runner, Any]:
    """The runner with the lowest loss after the steps that settings are tuned at."""
    losses = {}
    for values in grid:
        try:
            final = run(make(*values), TUNED_AT, setting)[0][-1]
        except VolformError as error:  # of weights that have diverged
            print(f"  {values}: {error}")
            final = math.inf
        losses[values] = final if math.isfinite(final) else math.inf
    values = min(losses, key=losses.__getitem__)
    print(f"  {make.__name__}: {values}, of {losses}", flush=True)
    return make(*values), values


def timed(runners: dict[str, Runner], ends: dict[str, Any], batches) -> dict[str, float]:
    """Seconds of processor time of a step of each, in turns."""
    spent: dict[str, list[float]] = {name: [] for name in runners}
    for batch in itertools.islice(batches(), TIMED):
        for name, runner in runners.items():
            begun = time.process_time()
            ends[name] = runner.step(*ends[name], batch)
            jax.block_until_ready(ends[name][0])
            spent[name].append(time.process_time() - begun)
    middle = {name: float(np.median(times)) for name, times in spent.items()}
    # Factors are made in one step out of some.
    return {n: float(np.mean(spent[n])) if "every" in n else value for n, value in middle.items()}


def table(losses, seconds, kfac_version) -> str:
    """The table as Markdown."""
    head = "| loss after so many steps | " + " | ".join(map(str, STOPS)) + " | ms a step |"
    rows = [head, "|---" * (len(STOPS) + 2) + "|"]
    for name, values in losses.items():
        cells = " | ".join(f"{value:.4f}" for value in values)
        rows.append(f"| {name} | {cells} | {1e3 * seconds[name]:.1f} |")
    day = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    backend = jax.default_backend().upper()
    count = sum(math.prod(shape) for shape in SHAPES.values())
    rows.append(
        f"\n{day}, kfac-jax {kfac_version}, jax {jax.__version__}, float32 on both sides, "
        f"{count:,} weights,\nbatches of {BATCH}; processor time on a {backend}."
    )
    return "\n".join(rows) + "\n"


def main() -> None:
    """Tune, run, time, print, and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="page to write the table into")
    out = parser.parse_args().out
    try:
        import kfac_jax
    except ImportError:
        raise SystemExit(
            "kfac-jax is not installed: `pip install kfac-jax==0.0.8 scikit-learn` beside volform."
        ) from None
    from importlib.metadata import version

    kfac, adapting = theirs(mended(kfac_jax))
    setting = problem()
    w, everything, batches = setting
    posterior = vf.condition(classifier, *next(batches()), jnp.float32(1.0))
    assert jnp.all(posterior.unconstrain(w) == ravel_pytree(w)[0])
    grid = [(*rates, damping) for rates in RATES for damping in DAMPINGS]
    print("tuned, as (rate, momentum, damping):")
    of_adam, _ = best(adam, [(rate,) for rate in (3e-3, 1e-2, 3e-2, 1e-1)], setting)
    of_kfac, _ = best(kfac, grid, setting)
    of_us, values = best(ours, grid, setting)
    runners = {
        "volform, `Kronecker()`": of_us,
        f"volform, factors every {EVERY} steps": ours(*values, EVERY),
        "kfac-jax, tuned": of_kfac,
        "kfac-jax, as it adapts": adapting(),
        "Adam, tuned": of_adam,
    }
    losses, ends = {}, {}
    for name, runner in runners.items():
        losses[name], ends[name] = run(runner, STOPS[-1], setting)
    text = table(losses, timed(runners, ends, batches), version("kfac-jax"))
    print(f"loss at the start {float(loss(w, everything)):.4f}\n\n{text}")
    if out is not None:
        page = out.read_text()
        before, after = MARKS
        if before not in page or after not in page:
            raise SystemExit(f"`{out}` has no lines {before.strip()} and {after.strip()}.")
        start, rest = page.split(before)
        made = f"{start}{before}\n{text}\n{after}{rest.split(after, 1)[1]}"
        out.write_text(made)


if __name__ == "__main__":
    main()
