"""How each customer responds to a discount: a level and a slope of one's own, by empirical Bayes.

Of a row (a customer who could have bought something at some depth of discount)::

    P(buys) = sigmoid(fixed effects + level[u] + (slope + tilt[u]) * depth)
    (level, tilt) ~ N(0, V)

``V`` is learnt from all customers, so who was seen little is drawn to everyone's response, and
estimates of one customer are no wider apart than customers are. The fit is Laplace's approximation
in an EM loop: modes of customers, then of what they share, then ``V``.

As with every fit to prices of the past, ``slope`` is what went with a discount; a shop that
advertises what it discounts has both in it (:mod:`bandits.customers.elasticity`).

Source: Breslow and Clayton, JASA 88 (1993); Stiratelli, Laird and Ware, Biometrics 40 (1984).

Letters: ``R`` rows, ``U`` customers, ``A`` depths.

>>> rng = np.random.default_rng(0)
>>> unit, depth = np.repeat(np.arange(200), 100), rng.choice([0.0, 0.3], 20_000)
>>> odds = -1.0 + rng.normal(size=200)[unit] + 4.0 * depth
>>> found = fit(unit, depth, rng.random(20_000) < special.expit(odds), units=200)
>>> bool(abs(found.slope - 4.0) < 0.3), found.level.shape
(True, (200,))
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]

RIDGE = 1e-3
TOLERANCE = 2e-3
ROUNDS = 150
START = np.diag([0.5, 2.0])


class Response(NamedTuple):
    """What was fitted.

    Attributes:
        slope: change of the log odds per unit of depth, of the customer in the middle.
        level: (U,) each customer's departure in log odds; 0 where nothing was seen.
        tilt: (U,) each customer's departure from ``slope``; 0 where nothing was seen.
        spread: (2, 2) covariance of (level, tilt) between customers.
        base: (R,) log odds of every row at depth 0, without the customer's own level.
    """

    slope: float
    level: Floats
    tilt: Floats
    spread: Floats
    base: Floats


def fit(
    unit: Ints, depth: Floats, bought: NDArray[np.bool_], *, units: int, fixed: Sequence[Ints] = ()
) -> Response:
    """Return the response of every customer.

    Args:
        unit: (R,) the customer of each row, ``0 <= unit < units``.
        depth: (R,) the discount in force, 0 to 1.
        bought: (R,) whether the row became a purchase.
        units: U.
        fixed: codes (R,) from 0 of what moves all customers, such as the product and the week.

    Raises:
        ValueError: no rows, or all or none of them bought.
    """
    if not len(unit) or bought.all() or not bought.any():
        raise ValueError("response: purchases and rows without a purchase are both needed")
    y, x = bought.astype(np.float64), _design(depth, fixed)
    shared, level, tilt = np.zeros(x.shape[1]), np.zeros(units), np.zeros(units)
    seen = np.bincount(unit, minlength=units) > 0
    spread = START.copy()
    for _ in range(ROUNDS):
        shared = _shared_step(x, y, shared, level[unit] + tilt[unit] * depth)
        level, tilt, within = _own_step(unit, depth, y, x @ shared, level, tilt, spread)
        own = np.stack([level, tilt])[:, seen]
        new = (own @ own.T + within[:, :, seen].sum(axis=2)) / seen.sum()
        if np.abs(np.diag(new) / np.diag(spread) - 1.0).max() < TOLERANCE:
            break
        # Twice the step of EM, which is slow where a customer's rows say little of depth.
        spread = new @ np.linalg.solve(spread, new)
    return Response(float(shared[0]), level, tilt, spread, x @ shared - shared[0] * depth)


def chance(found: Response, depth: Floats, *, base: Floats) -> Floats:
    """Return each customer's chance of a purchase (U, A), averaged over ``base`` (log odds)."""
    slope = (found.slope + found.tilt)[:, None] * depth
    odds = (found.level[:, None] + slope)[:, :, None] + base
    out: Floats = special.expit(odds).mean(axis=2)
    return out


def _design(depth: Floats, fixed: Sequence[Ints]) -> sparse.csr_matrix:
    """Return depth, then an intercept, then one column per value of every fixed effect."""
    rows = len(depth)
    blocks = [sparse.csr_matrix(depth[:, None]), sparse.csr_matrix(np.ones((rows, 1)))]
    for codes in fixed:
        place = (np.arange(rows), codes)
        blocks.append(sparse.csr_matrix((np.ones(rows), place), shape=(rows, int(codes.max()) + 1)))
    return sparse.csr_matrix(sparse.hstack(blocks))


def _shared_step(x: sparse.csr_matrix, y: Floats, shared: Floats, own: Floats) -> Floats:
    """Take two Newton steps of what all customers share; a faint ridge keeps them finite."""
    ridge = RIDGE * np.eye(x.shape[1])
    for _ in range(2):
        p = special.expit(x @ shared + own)
        information = (x.T @ x.multiply((p * (1 - p))[:, None])).toarray() + ridge
        shared = shared + np.linalg.solve(information, x.T @ (y - p) - RIDGE * shared)
    return shared


def _own_step(
    unit: Ints, depth: Floats, y: Floats, base: Floats, level: Floats, tilt: Floats, spread: Floats
) -> tuple[Floats, Floats, Floats]:
    """Take two Newton steps of all customers at once; return modes and covariances (2, 2, U)."""
    units = len(level)
    prior = np.linalg.inv(spread)

    def total(values: Floats) -> Floats:
        out: Floats = np.bincount(unit, values, minlength=units).astype(np.float64)
        return out

    for _ in range(2):
        p = special.expit(base + level[unit] + tilt[unit] * depth)
        weight, rest = p * (1 - p), y - p
        up = total(rest) - prior[0, 0] * level - prior[0, 1] * tilt
        along = total(rest * depth) - prior[0, 1] * level - prior[1, 1] * tilt
        a = total(weight) + prior[0, 0]
        c = total(weight * depth) + prior[0, 1]
        e = total(weight * depth**2) + prior[1, 1]
        size = a * e - c * c
        level, tilt = level + (e * up - c * along) / size, tilt + (a * along - c * up) / size
    return level, tilt, np.array([[e, -c], [-c, a]]) / size
