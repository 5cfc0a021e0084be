"""P(arm is best) of arms that are nearly Gaussian: many rows at once, on evenly spaced points.

As in :mod:`bandits.posteriors.best`, ``p_k = ∫ f_k(y) ∏_{j≠k} F_j(y) dy``. The integrand is smooth
and vanishes at both ends, so the trapezoidal rule converges faster than any power of its step: with
``STEP`` scales of the narrowest arm its error is below 1e-9, and forty points are enough where arms
are equally wide. Distribution functions are not integrated but evaluated, by Hart's rational
function of the normal tail and the series of Student's t around it (three terms in 1/ν).

The ends are those of :mod:`bandits.posteriors.graded`, which does one row in fewer calls; there is
nothing to gain here for fewer than a dozen rows. How many points a row needs depends on its values,
so the rows are sorted.

Sources: trapezoidal rule, Trefethen and Weideman, SIAM Review 56 (2014); the tail, Hart et al.
(1968) 5666; the series, Abramowitz and Stegun 26.7.5.
"""

import numpy as np
from numpy.typing import NDArray

from bandits.posteriors.graded import HIGH, LOW, SLACK
from bandits.types import Array

Floats = NDArray[np.float64]

#: Distance of the points in scales of the narrowest arm; they are counted in multiples.
STEP, GRAIN = 0.45, 8
#: Up to so many arms; the product of more rises more steeply, and needs a smaller step.
SMOOTH = 8
#: Least degrees of freedom: below, three terms of the series are off by more than 2e-9.
NEAR = 250.0
#: Most points of a row: arms whose scales differ by a factor of fifty need as many.
POINTS = 2048
#: Most arms: of more, the product is looked for where it is not nothing, which is not done here.
ARMS = 32
#: Elements (rows x arms x points) that are worked on at a time: they stay within the cache.
BLOCK = 1 << 14
#: Up to such a reciprocal of the freedom, log1p is its first three terms, and the series two.
FEW = 1e-4

_ROOT_TAU = np.sqrt(2.0 * np.pi)
_ABOVE = (
    3.52624965998911e-02, 0.700383064443688, 6.37396220353165, 33.912866078383,
    112.079291497871, 221.213596169931, 220.206867912376,
)  # fmt: skip
_UNDER = (
    8.83883476483184e-02, 1.75566716318264, 16.064177579207, 86.7807322029461,
    296.564248779674, 637.333633378831, 793.826512519948, 440.413735824752,
)  # fmt: skip


def shares(mean: Floats, scale: Floats, freedom: Floats, mask: NDArray[np.bool_]) -> Floats:
    """P(arm is best) of every row (R, A), NaN in the rows to which this rule does not apply.

    Args:
        mean: (R, A) float64.
        scale: (R, A) float64 > 0.
        freedom: (R, A) float64; ``inf`` gives the Gaussian.
        mask: (R, A) bool, True = eligible; at least one per row.

    Returns:
        (R, A) float64; the sum of a row is one up to the error of the quadrature, and is its check.
    """
    out = np.full(mean.shape, np.nan)
    if mean.shape[1] > ARMS:
        return out
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        nu = np.where(mask, freedom, np.inf).min(axis=1)
        slack = np.where(nu >= NEAR, SLACK / nu, np.inf)[:, None]
        low = np.where(mask, mean - (LOW + slack) * scale, -np.inf).max(axis=1)
        ends = mean + (HIGH + slack) * scale
        top = np.where(mask, ends, -np.inf).max(axis=1)
        live = mask & (ends > low[:, None])
        unit = np.where(live, scale, np.inf).min(axis=1)
        step = min(STEP, STEP * (SMOOTH / mean.shape[1]) ** 0.5)
        wanted = np.ceil((top - low) / (step * unit * GRAIN)) * GRAIN + 1
        points = np.where(np.isfinite(wanted) & (wanted <= POINTS), wanted, 0).astype(np.int64)
    inverse = 1.0 / freedom
    for count in np.unique(points[points > 0]).tolist():
        rows = np.flatnonzero(points == count)
        size = max(1, BLOCK // (count * mean.shape[1]))
        for begin in range(0, len(rows), size):
            some = rows[begin : begin + size]
            step = (top[some] - low[some]) / (count - 1)
            terms = _terms(float(inverse[some].max()))
            out[some] = _rule(
                mean[some], scale[some], inverse[some], live[some], low[some], step, count, terms
            )
    return out


def _terms(inverse: float) -> int:
    """Return how many terms of the series in 1/ν count: none of a Gaussian."""
    return 0 if inverse == 0.0 else 2 if inverse <= FEW else 3


def _rule(
    mean: Array, scale: Array, inverse: Array, live: Array, low: Array, step: Array,
    count: int, terms: int,
) -> Array:  # fmt: skip
    y = low[:, None] + step[:, None] * np.arange(count)
    t = (y[:, None, :] - mean[..., None]) / scale[..., None]
    f, below = _student(t, inverse[..., None], terms)
    if not live.all():
        f = np.where(live[..., None], f, 0.0)
        below = np.where(live[..., None], below, 1.0)
    # 1e-200 keeps the quotient finite; what it adds is far under the rule's own error.
    below = np.maximum(below, 1e-200)
    f /= below
    mass = np.einsum("rak,rk->ra", f, np.prod(below, axis=1))
    return mass * step[:, None] / scale


def _student(t: Array, inverse: Array, terms: int) -> tuple[Array, Array]:
    """Density and distribution function of Student's t at t, by the reciprocal of its freedom."""
    square = t * t
    normal = np.exp(-0.5 * square)
    size = np.abs(t)
    tail = normal * _polynomial(size, _ABOVE)
    tail /= _polynomial(size, _UNDER)
    below = np.where(t > 0.0, 1.0 - tail, tail)
    if not terms:
        return normal / _ROOT_TAU, below
    series = _polynomial(square, (3.0, -7.0, -5.0, -3.0)) / 96.0
    if terms > 2:
        series += _polynomial(square, (1.0, -11.0, 14.0, 6.0, -3.0, -15.0)) * (inverse / 384.0)
    series *= inverse
    series += (square + 1.0) / 4.0
    normal *= t
    normal *= inverse / _ROOT_TAU
    below -= normal * series
    ratio = square * inverse
    if terms == 2:
        exponent = square * (-0.5 - 0.5 * inverse) * (ratio * (ratio / 3.0 - 0.5) + 1.0)
    else:
        exponent = np.log1p(ratio) * (-0.5 / np.maximum(inverse, 1e-15) - 0.5)
    # The constant by the series of its logarithm, as in `graded`.
    exponent += inverse * (-0.25 + inverse * inverse / 24.0)
    return np.exp(exponent) / _ROOT_TAU, below


def _polynomial(x: Array, coefficients: tuple[float, ...]) -> Array:
    out = coefficients[0] * x
    for one in coefficients[1:-1]:
        out += one
        out *= x
    out += coefficients[-1]
    return out
