"""Numbers of parameters at which another method takes over, in one place.

Beside each stands what it costs on either side: processor seconds of a later call of
`benchmarks/limits.py` (two cores, CPU; logistic regression of 200 rows), or where the number comes
from if not from a time. Results say in their `regime` on which side they were computed.
"""

# Tensor grids of about a hundred nodes a parameter: 10^6 densities at three, 10^8 at four.
QUADRATURE_UP_TO = 3
# Of `Automatic`, which asks for NUTS next: 10^4 densities at two parameters against 10^5 gradients.
AUTOMATIC_QUADRATURE_UP_TO = 2
# Hessians at 14 d points against the program of fourth derivatives. First call and later, under
# JointFisher(): .2 and .2 s against 3.6 and .3 at 10, 1.4 and 1.4 against 15 and .9 at 20, 4.4 and
# 4.6 against 18 and 2.8 at 30.
DIFFERENCES_UP_TO = 30
# The correction contracts fourth derivatives along d^2 / 2 pairs of directions: 1,800 at 60.
SECOND_ORDER_UP_TO = 60
# Of tempering: 80 moves of a random walk left log Z of 100 normal numbers low by 2 errors, and by
# 5 after 20; 4 trajectories did not. Of many modes in 3 dimensions trajectories stay in theirs.
RANDOM_WALK_UP_TO = 20
# Of `Automatic`: of 100 normal numbers, one of them squared, a run of 10^5 gradients spreads by .1.
TEMPERED_UP_TO = 100
# Newton's method from four starts and from one: .007 and .003 s at 64, .47 and .19 at 128, 1.3 and
# .26 at 256. From 40 starts .56 s at 60, with no BFGS to compile before.
NEWTON_FROM_ALL_UP_TO = 60
# With a curvature that needs no Hessian: those of three starts at 256 take about a second (above),
# and grow as d^3.
HESSIAN_UP_TO = 200
# NUTS multiplies a dense mass matrix with a vector at each leapfrog step, d^2 numbers, and adapts
# d^2 / 2 of them from a thousand draws of the warm-up: no more than 20,000.
DENSE_MASS_UP_TO = 200
# `condition` of a reparametrized model by its Jacobian .40 s at 256, by probing .11 at 512.
JACOBIANS_UP_TO = 256
# `condition` with a matrix to look at .03 s at 512, 2 MiB; without a look .02 at 1,024.
METRIC_EVALUATED_UP_TO = 512
# From four starts BFGS takes .005 s at 200, .15 at 1,000 and .56 at 2,000, and conjugate gradients
# .002, .010 and .012; but those need the metric, and its root, at every point.
BFGS_UP_TO = 1000
# The Gauss-Newton matrix and its factor take .17 s at 1,000 and .84 at 2,000; the 200 rows of the
# Jacobian .28 and .20.
MATRIX_UP_TO = 1000
# log det by `Exact()` and by `Krylov(key)`: .20 and .54 s at 1,024, .52 and 1.4 at 2,048; at 4,096
# Exact() takes 2.4 and has no error, but 16 times the memory of 1,024.
EXACT_UP_TO = 2048
# A Cholesky factor of 2,000 rows only to print a table: .5 s (above), 32 MiB.
EXPLAINED_UP_TO = 2000
# 32,768 x 32,768 numbers of float64: half the memory of a common machine.
DENSE_GIB = 8.0
