"""Steady state of the Laplace approximation, beside NumPyro's: run with `make bench`."""

import pytest
from problems import by_numpyro, by_volform


@pytest.mark.standard_promotion
@pytest.mark.parametrize("solver", [by_volform, by_numpyro])
@pytest.mark.parametrize("problem", ["eight schools", "logistic, 1000 parameters"])
def test_steady_state(benchmark, problem, solver):
    benchmark.group = problem
    run = solver(problem)
    run()  # compiles
    benchmark.pedantic(run, rounds=5, iterations=1)
