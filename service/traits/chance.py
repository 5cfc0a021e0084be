"""Each customer's chance to buy within the next thirty days, out of receipts and interactions.

The history is cut thirty days before its end. What was known of a customer then is set against
whether they bought since; logistic regression and boosted trees are fitted to that, judged on
customers they have not seen, calibrated (`bandits.customers.propensity`), and the better one is
asked with what is known today. What is known always reaches back equally far, so that a customer
looks the same on both days. Fitted to `CUSTOMERS` at most, drawn at random.

The chance goes by how customers bought when offers were as they were. It does not say what an offer
would change: that is a campaign's work.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits.customers import propensity
from service.traits.history import Floats, Ints, Shop

DAYS, LONGER = 30, 90
CUSTOMERS = 20_000
FEWEST, FEWEST_EACH, ISOTONIC = 200, 20, 500
"""Customers, buyers and others alike, and those of each that an isotonic calibration needs."""
SETTINGS: dict[Literal["logistic", "trees"], tuple[propensity.Setting, ...]] = {
    "logistic": ({"penalty": 1.0}, {"penalty": 30.0}),
    "trees": ({"trees": 60, "leaves": 4}, {"trees": 60, "leaves": 15}),
}


class Known(NamedTuple):
    """What is known on a day: customers (C,) by their place in the shop, and columns (C, D)."""

    unit: Ints
    columns: Floats


def fit(shop: Shop, summary: dict[str, Any]) -> Floats:
    """Return each customer's chance (U,), not a number for who never bought.

    Raises:
        ValueError: there is too little history, or too few bought or stayed away.
    """
    lines = shop.receipts
    first, last = int(lines.day.min()), int(lines.day.max())
    reach = last - first - DAYS
    if reach < LONGER:
        raise ValueError(f"receipts of {last - first} days; {LONGER + DAYS} needed")
    then = known(shop, last - DAYS, reach)
    bought = np.isin(then.unit, lines.unit[lines.day > last - DAYS])
    found = _better(then, bought)
    now = known(shop, last, reach)
    summary["purchase_chance"] = {"after": last - DAYS, **found.told}
    chance = np.full(len(shop.units), np.nan)
    chance[now.unit] = propensity.predict(found.model, now.columns)
    return chance


def known(shop: Shop, day: int, reach: int) -> Known:
    """Return what receipts and interactions of ``reach`` days said of customers on ``day``."""
    lines, deeds, size = shop.receipts, shop.deeds, len(shop.units)
    inside = (lines.day > day - reach) & (lines.day <= day)
    unit, at = lines.unit[inside], lines.day[inside]
    paid, saved = (
        np.bincount(unit, part[inside], minlength=size) for part in (lines.paid, lines.discount)
    )
    oldest, newest = np.full(size, day), np.full(size, day - reach)
    np.minimum.at(oldest, unit, at)
    np.maximum.at(newest, unit, at)
    span = np.maximum(newest - oldest, 0)
    visitor, visited = np.unique(np.stack([unit, at]), axis=1)

    def count(who: Ints, when: Ints, days: int) -> NDArray[np.int64]:
        return np.bincount(who[(when > day - days) & (when <= day)], minlength=size)

    orders = count(visitor, visited, reach)
    columns = np.stack(
        [
            np.log1p(day - newest),
            np.log1p(span),
            np.log1p(span / np.maximum(orders, 1)),
            *(np.log1p(count(visitor, visited, days)) for days in (DAYS, LONGER, reach)),
            np.log1p(paid),
            np.log1p(paid / np.maximum(orders, 1)),
            saved / np.maximum(paid + saved, 1.0),
            *(np.log1p(count(deeds.unit, deeds.day, days)) for days in (DAYS, reach)),
        ],
        axis=1,
    )
    who = np.flatnonzero(orders)
    return Known(who, columns[who])


class _Found(NamedTuple):
    model: propensity.Model
    told: dict[str, Any]


def _better(then: Known, bought: NDArray[np.bool_]) -> _Found:
    """Return the model that predicts best, and its figures for people."""
    picked = np.random.default_rng(0).permutation(len(then.unit))[:CUSTOMERS]
    x, y, who = then.columns[picked], bought[picked], then.unit[picked]
    least = int(min(y.sum(), (~y).sum()))
    if len(who) < FEWEST or least < FEWEST_EACH:
        raise ValueError(
            f"{int(y.sum())} of {len(who)} customers bought within {DAYS} days;"
            f" {FEWEST} needed, {FEWEST_EACH} that bought and {FEWEST_EACH} that did not"
        )
    kind: Literal["isotonic", "sigmoid"] = "isotonic" if least >= ISOTONIC else "sigmoid"
    found = {
        name: propensity.fit(
            x, y, customer=who, seed=0, model=name, calibration=kind, settings=settings
        )
        for name, settings in SETTINGS.items()
    }
    name = min(found, key=lambda name: found[name].quality.log_loss)
    quality = found[name].quality
    told: dict[str, Any] = {"model": name, "calibration": kind, "customers": len(who)}
    told |= {"setting": dict(found[name].setting), "bought": int(y.sum())}
    told |= {
        part: value.tolist() if isinstance(value, np.ndarray) else value
        for part, value in quality._asdict().items()
    }
    return _Found(found[name].model, told)
