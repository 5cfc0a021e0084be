"""Customer lifetime value: how often a customer will buy (BG/NBD), for how much (Gamma-Gamma).

**BG/NBD.** While active a customer buys at a rate λ ~ Gamma(r, α); after any purchase he is gone
for good with probability p ~ Beta(a, b). With x repeat purchases, the last at t_x, in the time T
since the first one::

    L = Γ(r+x) α^r / Γ(r) · B(a, b+x) / B(a, b)
        · [(α+T)^-(r+x) + 1{x>0} · a/(b+x-1) · (α+t_x)^-(r+x)]

**Gamma-Gamma.** What a customer spends per purchase is Gamma(p, ν) with ν ~ Gamma(q, v), however
often he buys. With mean spend z over x repeat purchases::

    L = Γ(px+q) / (Γ(px) Γ(q)) · v^q z^(px-1) x^px / (v+xz)^(px+q)
    E[spend | x, z] = p (v + xz) / (px + q - 1)

Both are fitted by maximum likelihood (:mod:`bandits.customers.clv_fit`, in JAX); the predictions
here are numpy. **What they assume:** spend is independent of frequency (``correlation`` of the
fitted spend says how far that is from true), and discounts change neither: a customer who was
lured by promotions looks better than he is.

Source: Fader, Hardie and Lee, Marketing Science 24 (2005); Fader and Hardie, "The Gamma-Gamma
model of monetary value" (2013); 2F1 after Euler's transformation, Abramowitz and Stegun 15.3.3.

Letters: ``N`` customers; times are in any one unit, the same throughout.

>>> x, last, age = np.array([2.0, 0.0]), np.array([30.43, 0.0]), np.array([38.86, 38.86])
>>> history = History(x, last, age, spend=np.array([22.35, 0.0]))
>>> buying = Buying(np.array([0.243, 4.414, 0.793, 2.426]), np.eye(4), np.array(-9582.4))
>>> alive(buying, history).round(3), purchases(buying, history, 39.0).round(3)
(array([0.727, 1.   ]), array([1.226, 0.195]))
"""

import importlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]

#: Where a is this close to 1 the expected purchases are computed beside it: at 1 they are a limit.
_NEAR_ONE = 1e-6


class History(NamedTuple):
    """What is kept of a customer's purchases; several on one day (or other step) are one.

    Attributes:
        frequency: (N,) float64, x, repeat purchases: all but the first.
        recency: (N,) float64, t_x, time from the first purchase to the last; 0 where x = 0.
        age: (N,) float64, T, time from the first purchase until now.
        spend: (N,) float64, z, mean spend of the repeat purchases; 0 where x = 0.
    """

    frequency: Floats
    recency: Floats
    age: Floats
    spend: Floats


class Buying(NamedTuple):
    """A fitted BG/NBD.

    Attributes:
        estimate: (4,) r, α, a, b; α in the unit of the times.
        covariance: (4, 4) of the estimate, asymptotic: its diagonal's roots are standard errors.
        log_likelihood: () at the estimate.
    """

    estimate: Floats
    covariance: Floats
    log_likelihood: Floats


class Spending(NamedTuple):
    """A fitted Gamma-Gamma.

    Attributes:
        estimate: (3,) p, q, v; v in the unit of the spend.
        covariance: (3, 3) of the estimate, asymptotic.
        log_likelihood: () at the estimate.
        correlation: () between frequency and mean spend of those who came back; the model takes
            it to be 0.
    """

    estimate: Floats
    covariance: Floats
    log_likelihood: Floats
    correlation: Floats


def history(
    customer: NDArray[np.integer], step: NDArray[np.integer], spend: Floats, *, until: int,
    unit: float = 1.0,
) -> tuple[NDArray[np.integer], History]:  # fmt: skip
    """The customers in ascending order, and the history of each, out of transactions.

    Args:
        customer: (R,) whose transaction it is.
        step: (R,) when, in whole steps such as days; those after ``until`` are left out.
        spend: (R,) for how much; what is spent in one step is added up.
        until: the step that is now.
        unit: steps in a unit of time: 7 for weeks out of days.

    Raises:
        ValueError: the arrays differ in length, or the unit is not above 0.
    """
    if not len(customer) == len(step) == len(spend):
        raise ValueError("customer, step and spend must all be (R,)")
    if unit <= 0:
        raise ValueError("unit: must be above 0")
    kept = np.flatnonzero(step <= until)
    kept = kept[np.lexsort((step[kept], customer[kept]))]
    who, when = customer[kept], step[kept]
    fresh = np.diff(who, prepend=who[:1] - 1) != 0
    visit = np.flatnonzero(fresh | (np.diff(when, prepend=when[:1] - 1) != 0))
    if not len(visit):
        return who, History(*(np.zeros(0) for _ in History._fields))
    paid = np.add.reduceat(np.asarray(spend, np.float64)[kept], visit)
    first = np.flatnonzero(fresh[visit])
    last = np.append(first[1:], len(visit)) - 1
    when, x = when[visit].astype(np.float64), (last - first).astype(np.float64)
    total = np.add.reduceat(paid, first) - paid[first]
    mean = np.where(x > 0, total / np.maximum(x, 1), 0.0)
    age = (until - when[first]) / unit
    return who[visit[first]], History(x, (when[last] - when[first]) / unit, age, mean)


def fit_buying(history: History) -> Buying:
    """The BG/NBD of greatest likelihood.

    Raises:
        ValueError: a history is impossible, or the likelihood has no maximum (nobody came back, or
            nobody stayed away).
    """
    _checked(history)
    found: Buying = importlib.import_module("bandits.customers.clv_fit").buying(history)
    return found


def fit_spending(history: History) -> Spending:
    """The Gamma-Gamma of greatest likelihood, over those who came back and spent something.

    Raises:
        ValueError: as for :func:`fit_buying`.
    """
    _checked(history)
    found: Spending = importlib.import_module("bandits.customers.clv_fit").spending(history)
    return found


def alive(buying: Buying, history: History) -> Floats:
    """P(still a customer) (N,); 1 for who has not come back yet, as nobody leaves before that."""
    r, alpha, a, b = buying.estimate
    x = history.frequency
    since = np.log((alpha + history.age) / (alpha + history.recency))
    odds = np.log(a / (b + np.maximum(x, 1.0) - 1.0)) + (r + x) * since
    return np.where(x > 0, special.expit(-odds), 1.0)


def purchases(buying: Buying, history: History, horizon: float | Floats) -> Floats:
    """Expected purchases (N,) in the next ``horizon``, which is one time or one per customer."""
    r, alpha, a, b = buying.estimate
    a = a if abs(a - 1.0) > _NEAR_ONE else 1.0 + _NEAR_ONE
    x, ahead = history.frequency, np.asarray(horizon, np.float64)
    later = alpha + history.age + ahead
    z = ahead / later
    # (1-z)^(r+x) 2F1(r+x, b+x; a+b+x-1; z), with the powers of x taken together: neither is finite
    # alone where x is in the hundreds.
    gone = (1.0 - z) ** (a - 1.0) * special.hyp2f1(a + b - 1.0 - r, a - 1.0, a + b + x - 1.0, z)
    out: Floats = (a + b + x - 1.0) / (a - 1.0) * (1.0 - gone) * alive(buying, history)
    return np.maximum(out, 0.0)


def spend(spending: Spending, history: History) -> Floats:
    """Expected spend per purchase (N,); everybody's mean for who has not come back yet."""
    p, q, v = spending.estimate
    x = history.frequency
    out: Floats = p * (v + x * history.spend) / (p * x + q - 1.0)
    return out


def value(
    buying: Buying, spending: Spending, history: History, *, horizon: float, margin: float,
    discount: float = 0.0, steps: int = 12,
) -> Floats:  # fmt: skip
    """Expected profit (N,) from the next ``horizon``, discounted to now.

    Args:
        buying: fitted to these or to like customers.
        spending: the same.
        history: of the customers that are valued.
        horizon: how far to look, in the unit of the times.
        margin: profit per unit of spend.
        discount: per unit of time: money after t counts ``(1 + discount)**-t``.
        steps: parts of the horizon; money of a part counts as in its middle.

    Raises:
        ValueError: ``horizon`` or ``steps`` is not above 0, or ``discount`` not above -1.
    """
    if not (horizon > 0 and steps > 0 and discount > -1.0):
        raise ValueError("horizon and steps must be above 0, discount above -1")
    total, before = np.zeros(len(history.age)), np.zeros(len(history.age))
    for step in range(1, steps + 1):
        so_far = purchases(buying, history, horizon * step / steps)
        total += (so_far - before) * (1.0 + discount) ** (-horizon * (step - 0.5) / steps)
        before = so_far
    return margin * spend(spending, history) * total


def _checked(history: History) -> None:
    x, last, age, mean = history
    if not len(x) == len(last) == len(age) == len(mean):
        raise ValueError("history: all fields must be (N,)")
    if not all(np.isfinite(field).all() for field in history):
        raise ValueError("history: every number must be finite")
    if not ((x >= 0) & (last >= 0) & (last <= age) & (mean >= 0)).all():
        raise ValueError("history: must have frequency, spend >= 0 and 0 <= recency <= age")
    if ((x > 0) != (last > 0)).any():
        raise ValueError("history: recency must be above 0 exactly where frequency is")
