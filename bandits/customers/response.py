"""How each customer responds to a discount: a level and a slope of one's own, by empirical Bayes.

Of a row (a customer who could have bought something at some depth of discount)::

    P(buys) = sigmoid(fixed effects + level[u] + (slope + tilt[u]) * depth)
    (level, tilt)[u] ~ N(z[u] B, V)

``V`` is learnt from all customers, so who was seen little is drawn to the response that their
traits ``z`` (tastes, a persona, lifetime value) foretell, to everyone's where there are none, and
estimates of one customer are no wider apart than customers are. How much traits say is learnt as
well: the columns of ``B`` are drawn to 0 by as much as the evidence says. The fit is Laplace's
approximation in an EM loop: modes of customers, then of what they share, ``B`` and ``V``.

As with every fit to prices of the past, ``slope`` is what went with a discount; a shop that
advertises what it discounts has both in it (:mod:`bandits.customers.elasticity`).

Source: Breslow and Clayton, JASA 88 (1993); Stiratelli, Laird and Ware, Biometrics 40 (1984); how
much traits say: MacKay, Neural Computation 4 (1992).

Letters: ``R`` rows, ``U`` customers, ``D`` traits, ``A`` depths.

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
#: Customers who differ in nothing have variances of 0, which the next step would divide by.
SMALLEST = 1e-6


class Response(NamedTuple):
    """What was fitted.

    Attributes:
        slope: change of the log odds per unit of depth, of the customer in the middle.
        level: (U,) each customer's departure in log odds; ``foretold`` where nothing was seen.
        tilt: (U,) each customer's departure from ``slope``; ``foretold`` where nothing was seen.
        foretold: (2, U) what traits alone say of level and tilt; 0 without traits.
        spread: (2, 2) covariance of (level, tilt) between customers of the same traits.
        base: (R,) log odds of every row at depth 0, without the customer's own level.
    """

    slope: float
    level: Floats
    tilt: Floats
    foretold: Floats
    spread: Floats
    base: Floats


@np.errstate(over="ignore", divide="ignore", invalid="ignore")
def fit(
    unit: Ints,
    depth: Floats,
    bought: NDArray[np.bool_],
    *,
    units: int,
    fixed: Sequence[Ints] = (),
    traits: Floats | None = None,
) -> Response:
    """Return the response of every customer.

    Args:
        unit: (R,) the customer of each row, ``0 <= unit < units``.
        depth: (R,) the discount in force, 0 to 1.
        bought: (R,) whether the row became a purchase.
        units: U.
        fixed: codes (R,) from 0 of what moves all customers, such as the product and the week.
        traits: (U, D) finite; standardised here, over the customers that were seen.

    Raises:
        ValueError: no rows, or all or none of them bought; traits that are not finite; a spread
            that grows without end, as where depth hardly differs.
    """
    if not len(unit) or bought.all() or not bought.any():
        raise ValueError("response: purchases and rows without a purchase are both needed")
    y, x = bought.astype(np.float64), _design(depth, fixed)
    seen = np.bincount(unit, minlength=units) > 0
    z = _standardised(traits, seen, units)
    shared, foretold, own = np.zeros(x.shape[1]), np.zeros((2, units)), np.zeros((2, units))
    spread, says = START.copy(), np.diag(START) / max(z.shape[1], 1)
    for _ in range(ROUNDS):
        shared = _shared_step(x, y, shared, _odds(foretold + own, unit, depth))
        base = x @ shared + _odds(foretold, unit, depth)
        own, within = _own_step(unit, depth, y, base, own, spread)
        whole = foretold + own
        foretold, says = _foretold(z, whole, seen, np.diag(spread), says)
        own = np.where(seen, whole - foretold, 0.0)
        new = (own[:, seen] @ own[:, seen].T + within[:, :, seen].sum(axis=2)) / seen.sum()
        new += SMALLEST * np.eye(2)
        if not np.isfinite(new).all():
            raise ValueError("response: these rows do not tell how far customers differ")
        if np.abs(np.diag(new) / np.diag(spread) - 1.0).max() < TOLERANCE:
            break
        # Twice the step of EM, which is slow where a customer's rows say little of depth.
        spread = new @ np.linalg.solve(spread, new)
    level, tilt = foretold + own
    return Response(float(shared[0]), level, tilt, foretold, spread, x @ shared - shared[0] * depth)


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


def _standardised(traits: Floats | None, seen: NDArray[np.bool_], units: int) -> Floats:
    if traits is None:
        return np.zeros((units, 0))
    z = np.asarray(traits, np.float64)
    if len(z) != units or not np.isfinite(z).all():
        raise ValueError("response: traits must be finite, one row per customer")
    width = z[seen].std(axis=0)
    differs = width > 1e-9
    out: Floats = (z - z[seen].mean(axis=0))[:, differs] / width[differs]
    return out


def _odds(own: Floats, unit: Ints, depth: Floats) -> Floats:
    """Return what levels and tilts (2, U) add to the log odds of every row (R,)."""
    out: Floats = own[0][unit] + own[1][unit] * depth
    return out


def _foretold(
    z: Floats, whole: Floats, seen: NDArray[np.bool_], spread: Floats, says: Floats
) -> tuple[Floats, Floats]:
    """Return what traits foretell (2, U), and the variance (2,) of their weights that follows."""
    if not z.shape[1]:
        return np.zeros_like(whole), says
    values, turn = np.linalg.eigh(z[seen].T @ z[seen])
    pull, out, new = turn.T @ (z[seen].T @ whole[:, seen].T), np.empty_like(whole), np.empty(2)
    for row in range(2):
        precision = values / spread[row] + 1.0 / says[row]
        weight = pull[:, row] / spread[row] / precision
        new[row] = (weight @ weight + (1.0 / precision).sum()) / len(values)
        out[row] = z @ (turn @ weight)
    return out, new


def _own_step(
    unit: Ints, depth: Floats, y: Floats, base: Floats, own: Floats, spread: Floats
) -> tuple[Floats, Floats]:
    """Take two Newton steps of all customers; return modes (2, U) and covariances (2, 2, U)."""
    (level, tilt), units = own, own.shape[1]
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
    return np.array([level, tilt]), np.array([[e, -c], [-c, a]]) / size
