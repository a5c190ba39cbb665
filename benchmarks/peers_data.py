"""The problems that volform and its peers are timed on, as NumPy arrays: no JAX, no torch.

Weights of a layer have the shape (fan_in, fan_out), kernels (height, width, in, out).
"""

import time
from collections.abc import Callable

import numpy as np

POINTS, NOISE = 150, 0.3  # of the regression; its prior precision is one
IMAGES, PROBES = 512, 100
TURN = 0.1  # seconds
DAMPING, LANCZOS_PROBES, DEPTH = 0.1, 10, 20

Layers = list[tuple[np.ndarray, np.ndarray]]


def turn(run: Callable[[], float]) -> tuple[float, float, float]:
    """Runs for a tenth of a second, or once: mean time on the clock, of all processors, the value.

    A single run of a millisecond would find the caches as the other solvers have left them.
    """
    clock, cpu, count, value = time.perf_counter(), time.process_time(), 0, 0.0
    while count == 0 or time.perf_counter() - clock < TURN:
        value, count = run(), count + 1
    return (time.perf_counter() - clock) / count, (time.process_time() - cpu) / count, value


def regression(width: int) -> tuple[Layers, np.ndarray, np.ndarray]:
    """A network of one hidden layer, inputs (150, 1) and targets (150, 1), in float64."""
    x = np.linspace(0.0, 8.0, POINTS)[:, None]
    return _layers([(1, width), (width, 1)], width), x, np.sin(x)


def images() -> tuple[np.ndarray, np.ndarray]:
    """512 images of 28 by 28, in float32, and their labels."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(IMAGES, 28, 28)).astype(np.float32), rng.integers(10, size=IMAGES)


def lenet() -> Layers:
    """61,706 parameters: two convolutions of 5 by 5, three dense layers."""
    shapes = [(5, 5, 1, 6), (5, 5, 6, 16), (400, 120), (120, 84), (84, 10)]
    return _layers(shapes, 0, np.float32)


def dense() -> Layers:
    """61,455 parameters in three dense layers."""
    return _layers([(784, 75), (75, 30), (30, 10)], 0, np.float32)


def _layers(shapes: list[tuple[int, ...]], seed: int, dtype: type = np.float64) -> Layers:
    rng = np.random.default_rng(seed)
    return [
        (
            (rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(dtype),
            (0.1 * rng.normal(size=shape[-1])).astype(dtype),
        )
        for shape in shapes
    ]
