"""Time to the first result in a fresh process, and steady state, beside NumPyro's AutoLaplace.

    python benchmarks/first_result.py

Each measurement runs in a process of its own, the two packages by turns; medians over three
processes. Times include compilation and the first trace, and leave out the imports.
"""

import statistics
import subprocess
import sys
import time

ROUNDS = 3
PROBLEMS = ("eight schools", "logistic, 1000 parameters")


def measure(problem: str, solver: str) -> None:
    """Print seconds to the first result and the median of five more."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import problems

    run = getattr(problems, solver)(problem)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    print(times[0], statistics.median(times[1:]))


def main() -> None:
    print(f"{'':28}{'first result, s':>24}{'steady state, s':>24}")
    print(
        f"{'':28}{'volform':>8}{'NumPyro':>8}{'ratio':>8}{'volform':>8}{'NumPyro':>8}{'ratio':>8}"
    )
    for problem in PROBLEMS:
        found = {"by_volform": [], "by_numpyro": []}
        for _ in range(ROUNDS):
            for solver, results in found.items():
                command = [sys.executable, __file__, problem, solver]
                out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                results.append([float(x) for x in out.split()])
        ours, theirs = (
            [statistics.median(c) for c in zip(*r, strict=True)] for r in found.values()
        )
        cells = [f"{a:8.3f}{b:8.3f}{a / b:8.2f}" for a, b in zip(ours, theirs, strict=True)]
        print(f"{problem:28}{''.join(cells)}", flush=True)


if __name__ == "__main__":
    measure(*sys.argv[1:]) if len(sys.argv) > 1 else main()
