"""P(arm is best) of arms that are nearly Gaussian: one row, on panels that widen from the left.

As in :mod:`bandits.posteriors.best`, ``p_k = ∫ f_k(y) ∏_{j≠k} F_j(y) dy`` by Gauss-Legendre panels
on which densities alone are evaluated. For Student t of at least ``NEAR`` degrees of freedom the
panels need not follow the arms, because two facts fix them:

- Below ``low``, the greatest of the arms' lower ends, some arm is not yet begun and the product is
  nothing; an arm whose upper end lies below it cannot be best, and is left out.
- What an arm still changes at ``low + d`` began before ``low``, so it is at least ``d`` wide from
  end to end: panels may widen in proportion to ``d``, from those that the narrowest arm needs.

So the cuts are one fixed table, times the scale of the narrowest arm; only how many are used
depends on the row. Distribution functions are what lies above, taken from one, by the density's
known constant. Arms beyond what a cache holds are worked off in blocks: time and memory are linear
in the arms.

Numpy only: the number of panels depends on values, which ``jax.jit`` does not allow.
"""

import bisect
import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Gauss-Legendre nodes in each panel, and the first panels' width in scales of the narrowest arm.
NODES, WIDTH = 16, 3.2
#: Least degrees of freedom: below, the tails are too heavy for panels that no arm places.
NEAR = 30.0
#: An arm ends so many scales below and above its middle if Gaussian, and ``SLACK / freedom``
#: further as a Student t from NEAR on: outside lie 1.5e-10 and 1e-11 of it.
LOW, HIGH, SLACK = 6.3, 6.7, 120.0
#: Beyond so many arms panels are half as wide: their product rises more steeply than any of them.
FEW = 32
#: Log of how likely the best of many may lie below the first panel, and how closely that is sought.
LEAST_LOG, BISECTIONS = -27.0, 10
#: Panels in the table: enough for scales that differ by a factor of a million.
PANELS = 96
#: Elements (arms x nodes) that are worked on at a time: they stay within the cache, and below the
#: 128 KiB from which an allocator asks the system for fresh pages every time.
BLOCK = 1 << 13
#: From so many degrees of freedom on, log1p is its first three terms to the last digits.
MANY = 1e5

_ENDS, _BOTH = np.array([[-LOW], [HIGH]]), np.array([[-1.0], [1.0]])
_LOG_ROOT_TAU = 0.5 * np.log(2.0 * np.pi)


class Rule(NamedTuple):
    """Gauss-Legendre on [0, 1]."""

    nodes: Floats  # (N,)
    weights: Floats  # (N,)
    inner: Floats  # (N, N): integral from 0 to node i of the j-th Lagrange polynomial


def rule(count: int) -> Rule:
    """The rule of ``count`` nodes."""
    x, w = np.polynomial.legendre.leggauss(count)
    values = np.polynomial.legendre.legvander(x, count)
    degree = np.arange(count)
    # ∫ P_d = (P_{d+1} - P_{d-1}) / (2d + 1) from -1, with P_{-1} = -1 for d = 0.
    lower = np.hstack([-np.ones((count, 1)), values[:, : count - 1]])
    integrals = (values[:, 1:] - lower) / (2 * degree + 1)
    coefficients = (values[:, :count] * w[:, None]).T * (2 * degree[:, None] + 1) / 2
    return Rule((x + 1) / 2, w / 2, integrals @ coefficients / 2)


class _Table(NamedTuple):
    cuts: Floats  # (PANELS + 1,), from 0, in scales of the narrowest arm
    widths: Floats  # (PANELS, 1)
    points: Floats  # (PANELS * NODES,)
    weights: Floats  # (PANELS * NODES,)
    above: Floats  # (NODES, NODES + 1): from each node to the panel's end, and the whole panel
    later: Floats  # (PANELS, PANELS): sums the panels after each


def _table() -> _Table:
    one, cuts = rule(NODES), [0.0]
    ends = LOW + HIGH + 2.0 * SLACK / NEAR
    for _ in range(PANELS):
        cuts.append(cuts[-1] + WIDTH * max(1.0, cuts[-1] / ends))
    left, widths = np.array(cuts[:-1])[:, None], np.diff(cuts)[:, None]
    above = np.hstack([(one.weights - one.inner).T, one.weights[:, None]])
    return _Table(
        np.array(cuts), widths, (left + widths * one.nodes).ravel(),
        (widths * one.weights).ravel(), above, np.tri(PANELS, k=-1),
    )  # fmt: skip


_TABLE = _table()
_CUTS = _TABLE.cuts.tolist()


def shares(mean: Floats, scale: Floats, freedom: Floats) -> Floats | None:
    """P(arm is best) of one row of eligible arms, or None where this rule does not apply.

    Args:
        mean: (A,) float64.
        scale: (A,) float64 > 0.
        freedom: (A,) float64; below ``NEAR`` anywhere, the rule does not apply.

    Returns:
        (A,) float64; the sum is one up to the error of the quadrature, and is its check.
    """
    least = float(np.minimum.reduce(freedom))
    if not least >= NEAR:
        return None
    ends = _reach(least) * scale
    ends += mean
    low, top = np.maximum.reduce(ends, axis=1).tolist()
    if len(mean) > FEW:
        low = _raised(mean, scale, low, top)
    live = ends[1] > low
    count = np.count_nonzero(live)
    most = float(np.maximum.reduce(freedom))
    if count == len(mean):
        return _integrated(mean - low, scale, freedom, top - low, same=least == most)
    if count == 0:  # something is not a number
        return None
    left = freedom[live]
    same = least == most or float(np.minimum.reduce(left)) == float(np.maximum.reduce(left))
    some = _integrated(mean[live] - low, scale[live], left, top - low, same=same)
    if some is None:
        return None
    out = np.zeros(len(mean))
    out[live] = some
    return out


def _raised(mean: Floats, scale: Floats, low: float, top: float) -> float:
    """Where many arms together are begun: none of them is the best below, but for ``LEAST_LOG``."""
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + top)
        t = np.clip((middle - mean) / scale, -9.0, 9.0)
        tail = 0.5 * np.exp(-0.416 * t * t - 0.717 * np.abs(t))
        if np.log(np.where(t < 0.0, tail, 1.0 - tail)).sum() > LEAST_LOG:
            top = middle
        else:
            low = middle
    return low


@functools.lru_cache(maxsize=256)
def _reach(least: float) -> Floats:
    """Where arms of at least so many degrees of freedom begin and end, in scales: (2, 1)."""
    return _ENDS + _BOTH * (SLACK / least)


def _integrated(
    mean: Floats, scale: Floats, freedom: Floats, end: float, *, same: bool
) -> Floats | None:
    """The integral over [0, end]; None where the table does not reach so far.

    ``same`` says that all arms have the same degrees of freedom.
    """
    unit = float(np.minimum.reduce(scale)) * (0.5 if len(mean) > FEW else 1.0)
    panels = bisect.bisect_left(_CUTS, end / unit)
    if panels > PANELS:
        return None
    count = panels * NODES
    middle, units = (mean / scale)[:, None], (unit / scale)[:, None]
    nu: Floats | float = float(freedom[0]) if same else freedom[:, None]
    few = (nu if isinstance(nu, float) else float(np.minimum.reduce(freedom))) < MANY

    def factors(part: slice) -> tuple[Floats, Floats]:
        of = nu if isinstance(nu, float) else nu[part]
        f = _densities(middle[part], units[part], of, count, few=few)
        return f, _distributions(f, panels)

    size = max(1, BLOCK // count)
    parts = [slice(begin, begin + size) for begin in range(0, len(mean), size)]
    product = _TABLE.weights[:count]
    for part in parts:
        f, below = factors(part)
        product = np.multiply.reduce(below, axis=0) * product
    if len(parts) == 1:
        return np.divide(f, below, out=f) @ product
    # Computed twice, since keeping all of it would mean fresh memory, which costs more.
    return np.concatenate([f / below @ product for f, below in map(factors, parts)])


def _distributions(f: Floats, panels: int) -> Floats:
    """Distribution functions of densities f (a, panels · NODES) at the same points.

    What lies above a point is in the panels after its own, and in its own after the node.
    """
    inside = f.reshape(-1, panels, NODES) * _TABLE.widths[:panels]
    above = (inside.reshape(-1, NODES) @ _TABLE.above).reshape(-1, panels, NODES + 1)
    beyond = 1.0 - above[:, :, NODES] @ _TABLE.later[:panels, :panels]
    below = (beyond[:, :, None] - above[:, :, :NODES]).reshape(f.shape)
    # 1e-200 keeps the quotient finite; what it adds is far under the rule's own error.
    return np.maximum(below, 1e-200, out=below)


def _densities(
    middle: Floats, unit: Floats, nu: Floats | float, count: int, *, few: bool
) -> Floats:
    """Densities (a, count) of arms at the first points, by the arm's own middle and unit (a, 1).

    The constant is Γ((ν+1)/2) / (Γ(ν/2) √(πν)), by the series of its logarithm in 1/ν.
    """
    inverse = 1.0 / nu
    square = inverse * inverse
    series = inverse * (-0.25 + square * (1 / 24 - square * (1 / 20 - square * (17 / 112))))
    t = unit * _TABLE.points[:count]
    t -= middle
    t *= t
    if few:
        t *= inverse
        np.log1p(t, out=t)
        t *= -0.5 * (nu + 1.0)
    else:
        u = t * inverse
        t *= (-0.5 - 0.5 * inverse) * (u * (u / 3.0 - 0.5) + 1.0)
    np.exp(t, out=t)
    t *= unit * np.exp(series - _LOG_ROOT_TAU)
    return t
