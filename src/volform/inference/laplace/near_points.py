"""Points near a mode along each axis, which differences of the Hessian and slices share."""

import numpy as np

# Points on either side near the mode, for derivatives along each axis: differences of order 14.
POINTS = 7
# Their distance, in standard deviations: the error of truncation falls as its 14th power, and of
# rounding grows as 10^-13 / h^2. Of nine models (Student t, LKJ, negative binomial, Dirichlet,
# logistic, ...) eight had c to 10^-12 here, and a Cauchy likelihood of four data at the half of it.
WIDEST = 0.12
NEAR_OFFSETS = WIDEST * np.concatenate([np.arange(-POINTS, 0), np.arange(1, POINTS + 1)])
