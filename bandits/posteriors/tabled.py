"""P(arm is best) of one or a few rows of arms that are nearly Gaussian, by a table.

As in :mod:`bandits.posteriors.even`, ``p_k = ∫ f_k(y) ∏_{j≠k} F_j(y) dy`` is summed on evenly
spaced points. Written as ``∫ (log F_k)' exp(Σ log F_j) dy`` it needs one function only, the
logarithm of Student's distribution function, and its slope: both are read from cubics between
points ``1 / CELLS`` apart (Hermite's). So ten arms take some forty calls of numpy on four hundred
numbers, and a further row next to nothing but its numbers; the rules agree to 2e-9.

The cubics depend on the degrees of freedom ν, which change with every row that is learnt from. They
are themselves polynomials in 1/ν, whose coefficients are computed once.

Numpy only: how many points a row needs depends on its values, which ``jax.jit`` does not allow.
"""

import functools
import math

import numpy as np
from numpy.typing import NDArray

from bandits.posteriors.even import ARMS, NEAR, SMOOTH, STEP
from bandits.posteriors.graded import HIGH, LOW, SLACK, rule

Floats = NDArray[np.float64]

#: Points of the table per unit of t, and how far it goes to either side.
CELLS, REACH = 128, HIGH + SLACK / NEAR + 0.5
#: Degrees of freedom at which cubics are computed, to be joined by a polynomial in 1/ν.
ORDER = 6
#: Most points of a row: where scales differ so much that it wants more, other rules are quicker.
POINTS = 160
#: Arms of rows that are worked on at a time: what they need stays within the cache.
BLOCK = 1600
#: Where more than so many are wanted, it is looked whether an arm that cannot be best wants them.
FEW = 48
#: Where the table has cells (`_cubics`), counted from 0; the last one is for all beyond.
_CELLS = math.ceil(2 * REACH * CELLS)
_MIDDLE = REACH * CELLS
_PLACES = np.arange(POINTS + 1.0)
_LINES, _ONES = np.stack([_PLACES, np.ones_like(_PLACES)]), np.ones(ARMS)
#: Distances between points, for so many arms, in scales of the narrowest.
STEPS = [min(STEP, STEP * (SMOOTH / max(arms, 1)) ** 0.5) for arms in range(ARMS + 1)]


def applies(freedom: float, arms: int) -> bool:
    """Whether the rule applies to arms of these degrees of freedom, and to so many."""
    return freedom >= NEAR and arms <= ARMS


def row(mean: Floats, scale: Floats, freedom: float) -> Floats | None:
    """P(arm is best) of one row of eligible arms, or None where this rule does not apply.

    Args:
        mean: (A,) float64.
        scale: (A,) float64 > 0.
        freedom: of all arms; ``inf`` for Gaussians.

    Returns:
        (A,) float64; the sum is one up to the error of the quadrature, and is its check.
    """
    arms = len(mean)
    if not applies(freedom, arms):
        return None
    below, above = _ends(freedom)
    # Of some ten numbers Python's own functions are quicker.
    means, scales = mean.tolist(), scale.tolist()
    low = max([m + below * s for m, s in zip(means, scales, strict=True)])
    ends = [m + above * s for m, s in zip(means, scales, strict=True)]
    if math.isnan(sum(ends)):
        return None
    span, step = max(ends) - low, STEPS[arms] * min(scales)
    if not span < FEW * step:
        # An arm that ends below cannot be best, and need not be followed closely.
        live = [s for s, end in zip(scales, ends, strict=True) if end > low]
        step = STEPS[arms] * min(live, default=0.0)
        if not (span < (POINTS - 1) * step and min(scales) > 0.0):
            return None
    count = int(span / step) + 2
    cells = CELLS * span / (count - 1)
    # From place to place, and the first: what numpy would do in several calls.
    lines = np.array(
        [(cells / s, (low - m) * CELLS / s + _MIDDLE) for m, s in zip(means, scales, strict=True)]
    )
    logs, slopes = _read(_cubics(freedom), lines @ _LINES[:, :count])
    out: Floats = slopes @ np.exp(_ONES[:arms] @ logs)
    out *= lines[:, 0]
    return out


def shares(mean: Floats, scale: Floats, freedom: float, mask: NDArray[np.bool_]) -> Floats:
    """The same of many rows (R, A), where ``mask`` is True; NaN in rows that it does not serve.

    To `applies` the rule must; at least one arm of every row is eligible.
    """
    rows, arms = mean.shape
    size = max(1, BLOCK // arms)
    parts = [slice(begin, begin + size) for begin in range(0, rows, size)]
    found = [_shares(mean[part], scale[part], freedom, mask[part]) for part in parts]
    return found[0] if len(found) == 1 else np.concatenate(found)


def _shares(mean: Floats, scale: Floats, freedom: float, mask: NDArray[np.bool_]) -> Floats:
    below, above = _ends(freedom)
    step = STEPS[mean.shape[1]]
    low = np.where(mask, mean + below * scale, -np.inf).max(axis=1)
    ends = np.where(mask, mean + above * scale, -np.inf)
    span = ends.max(axis=1) - low
    narrow = np.where(ends > low[:, None], scale, np.inf).min(axis=1)
    fits = span < (POINTS - 1) * step * narrow  # false also where something is not a number
    span, narrow = np.where(fits, span, step), np.where(fits, narrow, 1.0)
    count = int((span / (step * narrow)).max()) + 2
    units = CELLS / scale
    on = mask & fits[:, None]
    steps = np.where(on, units * (span / (count - 1))[:, None], 0.0)
    # Whoever is left out lies beyond the table all the way.
    begin = np.where(on, (low[:, None] - mean) * units + _MIDDLE, _CELLS)
    places = steps[:, :, None] * _PLACES[:count]
    places += begin[:, :, None]
    logs, slopes = _read(_cubics(freedom), places)
    product = np.exp(np.add.reduce(logs, axis=1))
    out: Floats = np.matmul(slopes, product[:, :, None])[:, :, 0]
    out *= steps
    out[~fits] = np.nan
    return out


def _ends(freedom: float) -> tuple[float, float]:
    """Where an arm begins and ends, in scales from its middle."""
    return -LOW - SLACK / freedom, HIGH + SLACK / freedom


def _read(cubics: Floats, places: Floats) -> tuple[Floats, Floats]:
    """The logarithm and its slope per cell at places in cells, of their shape; overwrites them."""
    cell = places.astype(np.intp)
    places -= cell
    zero, one, two, three = cubics
    # Beyond the table is the last cell, where nothing changes any more; before it lies nothing.
    cube = three.take(cell, mode="clip")
    cube *= places
    square = two.take(cell, mode="clip")
    square += cube
    first = one.take(cell, mode="clip")
    logs = square * places
    logs += first
    logs *= places
    logs += zero.take(cell, mode="clip")
    # The slope is 1 + 2 x + 3 x², in their coefficients: twice the square's bracket and the cube.
    square += square
    square += cube
    square *= places
    square += first
    return logs, square


@functools.lru_cache(maxsize=64)
def _cubics(freedom: float) -> Floats:
    """Coefficients of log F in every cell, (4, cells), from the constant on; zero in the last."""
    powers = (NEAR / freedom) ** np.arange(ORDER)
    made: Floats = (powers @ _polynomials()).reshape(4, -1)
    return made


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
