"""P(arm is best) of rows of arms that are nearly Gaussian and equally free, by a table.

As in :mod:`bandits.posteriors.best`, ``p_k = ∫ f_k(y) ∏_{j≠k} F_j(y) dy``. The integrand is smooth
and vanishes at both ends, so the trapezoidal rule converges faster than any power of its step: with
``STEPS`` its error is below 2e-9, and of arms that are equally wide three need some twenty points,
ten some thirty. The ends are those of :mod:`bandits.posteriors.graded`, but that the product of
several arms begins later than each of them.

Written as ``∫ (log F_k)' exp(Σ log F_j) dy`` it needs one function only, the logarithm of Student's
distribution function, and its slope: both are read from cubics between points ``1 / CELLS`` apart
(Hermite's). Three arms take 0.2 microseconds, ten 0.75 (:func:`bandits.kernels.best`); the rules
agree to 2e-9.

The cubics depend on the degrees of freedom ν, which change with every row that is learnt from. They
are themselves polynomials in 1/ν, whose coefficients are computed once.

Not for JAX: how many points a row needs depends on its values, which ``jax.jit`` does not allow.

Source: trapezoidal rule, Trefethen and Weideman, SIAM Review 56 (2014).
"""

import functools
import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from bandits.backend import kernels
from bandits.posteriors.graded import HIGH, LOW, SLACK, rule

Floats = NDArray[np.float64]

#: Distance of the points in scales of the narrowest arm, for one arm; see `STEPS`.
STEP = 0.82
#: Least degrees of freedom, where the polynomials in 1/ν end.
NEAR = 250.0
#: Most arms: of more, the product is looked for where it is not nothing, which is not done here.
ARMS = 32
#: Points of the table per unit of t, and how far it goes to either side.
CELLS, REACH = 128.0, HIGH + SLACK / NEAR + 0.5
#: Degrees of freedom at which cubics are computed, to be joined by a polynomial in 1/ν.
ORDER = 6
#: Most points of a row: arms whose scales differ by a factor of twenty need as many.
POINTS = 1024
#: Where the table has cells (`_cubics`), counted from 0; the last one is for all beyond.
_CELLS = math.ceil(2 * REACH * CELLS)
#: Distances between points, for so many arms, in scales of the narrowest: their product rises the
#: more steeply the more there are.
STEPS = STEP * np.maximum(np.arange(ARMS + 1), 1) ** -0.3
#: Where an arm begins that is one of so many, in scales from its middle, if Gaussian: where all of
#: them have come so far and no further, their product is what one is at ``-LOW``.
STARTS = np.array(
    [NormalDist().inv_cdf(NormalDist().cdf(-LOW) ** (1 / max(arms, 1))) for arms in range(ARMS + 1)]
)


def applies(freedom: float, arms: int) -> bool:
    """Whether the rule applies to arms of these degrees of freedom, and to so many."""
    return freedom >= NEAR and arms <= ARMS


def shares(
    mean: Floats, scale: Floats, freedom: float, mask: NDArray[np.bool_], tolerance: float = 0.0
) -> Floats:
    """P(arm is best) of every row, NaN in rows that the rule does not serve.

    To `applies` it must. A row gives the same bits alone and among others.

    Args:
        mean: (R, A) float64.
        scale: (R, A) float64 > 0.
        freedom: of all arms; ``inf`` for Gaussians.
        mask: (R, A) bool, True = eligible.
        tolerance: how far from one the sum of a row may be, which it is then divided by; 0 leaves
            it, and one up to the error of the quadrature, which it is the check of.

    Returns:
        (R, A) float64, 0 where not eligible.
    """
    out = np.empty(mean.shape)
    kernels().best(
        mean, scale, mask, STARTS - SLACK / freedom, HIGH + SLACK / freedom, STEPS,
        _cubics(freedom), CELLS, REACH * CELLS, POINTS, tolerance, out,
    )  # fmt: skip
    return out


@functools.lru_cache(maxsize=64)
def _cubics(freedom: float) -> Floats:
    """Coefficients of log F in every cell, (cells, 4), from the constant on; zero in the last."""
    powers = (NEAR / freedom) ** np.arange(ORDER)
    return np.ascontiguousarray((powers @ _polynomials()).reshape(4, -1).T)


@functools.cache
def _polynomials() -> Floats:
    """Coefficients (ORDER, 4 cells) in powers of ``NEAR / ν`` of what `_cubics` returns."""
    nodes = 0.5 - 0.5 * np.cos(np.pi * np.arange(ORDER) / (ORDER - 1))
    exact = np.array([_exact(float(one)).ravel() for one in nodes / NEAR])
    return np.linalg.solve(np.vander(nodes, increasing=True), exact)


def _exact(inverse: float) -> Floats:
    """The cubics (4, cells) at one reciprocal of the degrees of freedom."""
    one = rule(8)
    edges = np.arange(_CELLS + 1) / CELLS - REACH
    inside = edges[:-1, None] + one.nodes / CELLS
    masses = _density(inside, inverse) @ one.weights / CELLS
    # What lies below the first point, by the tail's own slope: some 1e-14, of which 2 % are wrong.
    begin = _density(edges[:1], inverse) / REACH
    upto = np.concatenate([begin, begin + np.cumsum(masses)])
    log = np.log(upto / (upto[-1] + begin[0]))
    slope = _density(edges, inverse) / upto / CELLS
    rise = log[1:] - log[:-1]
    square, cube = 3 * rise - 2 * slope[:-1] - slope[1:], slope[:-1] + slope[1:] - 2 * rise
    made = np.stack([log[:-1], slope[:-1], square, cube])
    return np.concatenate([made, np.zeros((4, 1))], axis=1)


def _density(t: Floats, inverse: float) -> Floats:
    """Student's density at t, up to a constant."""
    if inverse == 0.0:
        return np.exp(-0.5 * t * t)
    made: Floats = np.exp(-0.5 * (1.0 / inverse + 1.0) * np.log1p(t * t * inverse))
    return made
