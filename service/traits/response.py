"""How strongly each customer answers to discounts, by category: what pays most as context.

For the kinds of a category (products of one name) a row is a customer who has bought the kind at
some time and comes in a week in which it was sold; it counts as bought when the customer bought it
then. The depth of a week is what discounts took off the kind's products, which weigh by all that
was ever sold of them, not by what was sold then: that would shift towards what is discounted. Every
customer has a level and a slope of their own (`bandits.customers.response`), drawn to what their
other traits foretell, so that a customer who never bought of the category has one too.

The trait is a fifth, 1 who answers least to 5 who answers most: it keeps its meaning from refit to
refit, and five segments are few enough to be learnt. Promotions were not randomised: see `prices`.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from bandits.customers import response
from bandits.customers.response import Response
from service.traits.history import Floats, Ints, Receipts, Shop

CATEGORIES, KINDS = 6, 40
FEWEST_LINES = 1_000
LEAST_SPREAD = 0.02
LEAST_APART = 0.05
"""Where the last fifth buys no more of this than the first at 10 % off, fifths tell nothing."""
MOST_ROWS = 100_000
"""More rows are not fitted to: customers beyond have what their traits foretell."""
FIFTHS = 5
TOLD_AT = 0.1
AMOUNTS = ("recency_days", "orders", "spend_minor", "basket_minor", "value_minor")
SHARES = ("discount_share", "alive")


class Rows(NamedTuple):
    """What a response is fitted to: (R,) each."""

    unit: Ints
    kind: Ints
    week: Ints
    depth: Floats
    bought: NDArray[np.bool_]


def name_of(category: str) -> str:
    """Return the trait of a category.

    >>> name_of("Soft drinks"), name_of("飲料")
    ('response_soft_drinks', 'response_飲料')
    """
    return "response_" + re.sub(r"\W+", "_", category.casefold()).strip("_")[:40]


class Found(NamedTuple):
    """What was found: every customer's fifth (U,) by trait, and rows for people by category.

    ``left_out`` are the categories that were looked at in vain, each with the reason.
    """

    traits: dict[str, Ints]
    told: list[dict[str, Any]]
    left_out: list[dict[str, str]]


def by_category(shop: Shop, traits: Mapping[str, NDArray[Any]]) -> Found:
    """Return how customers answer in the largest categories."""
    category = shop.categories[shop.receipts.product]
    names, count = np.unique(category[category != ""], return_counts=True)
    large = names[count >= FEWEST_LINES][np.argsort(-count[count >= FEWEST_LINES], kind="stable")]
    numbers = np.hstack(list(by_kind(traits).values()))
    found = Found({}, [], [])
    for name in large[:CATEGORIES].tolist():
        trait = name_of(name)
        try:
            if trait in found.traits:
                raise ValueError("its name differs from a larger category's in punctuation only")
            fifth, more = _answers(_rows(shop, category == name), len(shop.units), numbers)
        except ValueError as error:
            found.left_out.append({"category": name, "why": str(error)})
        else:
            found.traits[trait] = fifth
            found.told.append({"category": name, "trait": trait} | more)
    return found


def _answers(rows: Rows, units: int, traits: Floats) -> tuple[Ints, dict[str, float]]:
    """Return every customer's fifth, and how much more often the first and the last one buy.

    Raises:
        ValueError: these rows do not tell customers apart, with the reason for people.
    """
    if len(rows.unit) == 0 or rows.depth.std() < LEAST_SPREAD:
        raise ValueError("discounts on it hardly ever changed")
    try:
        fitted = fit(rows, units=units, traits=traits)
    except (ValueError, np.linalg.LinAlgError):
        raise ValueError("too little of it was bought to tell customers apart") from None
    fifth = _fifth(fitted.tilt)
    more = _at_ten_percent(fitted, fifth)
    if more["most"] - more["least"] < LEAST_APART:
        most, least = (f"{100 * more[end]:+.0f} %".replace("-", "−") for end in ("most", "least"))
        raise ValueError(
            f"customers are too alike: at 10 % off, purchases change by {most} in the fifth that"
            f" answers most and by {least} in the one that answers least"
        )
    return fifth, more


def by_kind(traits: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
    """Return the numbers (U, D) that traits are as what foretells, by what they tell."""
    persona = np.array([str(name) for name in traits.get("persona", traits["orders"]).tolist()])
    groups = np.unique(persona)[1:] if "persona" in traits else np.zeros(0, persona.dtype)
    price = [traits["elasticity"]] if "elasticity" in traits else []
    value = [np.log1p(traits[name]) for name in AMOUNTS if name in traits]
    value += [traits[name] for name in SHARES if name in traits]
    tastes = [traits[name] for name in traits if name.startswith("taste")]
    return {
        "lifetime value": _beside(value, len(persona)),
        "persona": (persona[:, None] == groups).astype(np.float64),
        "elasticity": _beside(price, len(persona)),
        "taste": _beside(tastes, len(persona)),
    }


def standard(values: NDArray[Any]) -> Floats:
    """Return values with mean 0 and variance 1; unknown ones are in the middle."""
    found = values.astype(np.float64)
    inside = np.isfinite(found)
    if not inside.any():
        return np.zeros(len(found))
    middle, width = found[inside].mean(), found[inside].std()
    out: Floats = np.where(inside, (found - middle) / (width if width > 1e-9 else 1.0), 0.0)
    return out


def fit(rows: Rows, *, units: int, traits: Floats) -> Response:
    """Return the response of all customers (U), from the rows of one category."""
    kind, week = (np.unique(part, return_inverse=True)[1] for part in (rows.kind, rows.week))
    return response.fit(
        rows.unit, rows.depth, rows.bought, units=units, fixed=[kind, week], traits=traits
    )


def _beside(columns: list[NDArray[Any]], units: int) -> Floats:
    return np.stack([standard(one) for one in columns], axis=1) if columns else np.zeros((units, 0))


def _rows(shop: Shop, inside: NDArray[np.bool_]) -> Rows:
    """Return who could have bought what when, of the kinds sold most of the lines ``inside``."""
    lines, units = shop.receipts, len(shop.units)
    week = lines.day // 7 - lines.day.min() // 7
    weeks = int(week.max()) + 1
    kinds, kind = np.unique(shop.kinds[lines.product[inside]].astype(str), return_inverse=True)
    often = np.argsort(-np.bincount(kind), kind="stable")[:KINDS]
    kept = np.isin(kind, often)
    of_kept = Receipts._make(part[inside][kept] for part in lines)
    who, kind, when = of_kept.unit, kind[kept], week[inside][kept]
    depth = depths(
        of_kept.product, kind, when, of_kept.paid + of_kept.discount, of_kept.discount,
        shape=(len(kinds), weeks),
    )  # fmt: skip
    usual, visit = np.unique(who * len(kinds) + kind), np.unique(lines.unit * weeks + week)
    visits = np.bincount(visit // weeks, minlength=units)
    chosen = _sampled(np.bincount(usual // len(kinds), minlength=units) * visits)
    usual = usual[chosen[usual // len(kinds)]]
    owner = usual // len(kinds)
    # Each usual kind by each of its customer's visits, which lie side by side in `visit`.
    times = visits[owner]
    at = np.repeat((np.cumsum(visits) - visits)[owner] - np.cumsum(times) + times, times)
    came = visit[at + np.arange(len(at))] % weeks
    unit, of = np.divmod(np.repeat(usual, times), len(kinds))
    code = (who * len(kinds) + kind) * weeks + when
    bought = np.isin((unit * len(kinds) + of) * weeks + came, code)
    sold = np.isfinite(depth[of, came])
    return Rows(*(part[sold] for part in (unit, of, came, depth[of, came], bought)))


def _sampled(rows: Ints) -> NDArray[np.bool_]:
    """Return customers (U,), drawn once, who have `MOST_ROWS` rows together at most."""
    order = np.random.default_rng(0).permutation(len(rows))
    out = np.zeros(len(rows), np.bool_)
    out[order[np.cumsum(rows[order]) <= MOST_ROWS]] = True
    return out


def depths(
    product: Ints, kind: Ints, week: Ints, whole: Floats, off: Floats, *, shape: tuple[int, int],
    until: int | None = None,
) -> Floats:  # fmt: skip
    """Return the discount in force of kinds in weeks (K, W); not a number where nothing was sold.

    Of each line (N,): its product, kind and week from 0, the list value, and what was taken off.
    A product weighs by the list value of all that was sold of it, or in weeks before ``until``.
    """
    products, first, item = np.unique(product, return_index=True, return_inverse=True)
    cell, cells = item * shape[1] + week, len(products) * shape[1]
    value, given = (
        np.bincount(cell, part, minlength=cells).reshape(-1, shape[1]) for part in (whole, off)
    )
    sold = value > 0
    weight = np.where(sold, value[:, :until].sum(axis=1, keepdims=True), 0.0)
    index, total = np.zeros(shape), np.zeros(shape)
    np.add.at(index, kind[first], weight * (given / np.where(sold, value, 1.0)))
    np.add.at(total, kind[first], weight)
    out: Floats = np.where(total > 0, index / np.where(total > 0, total, 1.0), np.nan)
    return out


def _fifth(tilt: Floats) -> Ints:
    cuts = np.quantile(tilt, np.arange(1, FIFTHS) / FIFTHS)
    return np.searchsorted(cuts, tilt, side="right").astype(np.int64) + 1


def _at_ten_percent(fitted: Response, fifth: Ints) -> dict[str, float]:
    """Return how much more often the first and the last fifth buy at 10 % off, as a share."""
    base = np.quantile(fitted.base, (np.arange(20) + 0.5) / 20)
    more = {}
    for name, group in (("least", 1), ("most", FIFTHS)):
        level, tilt = (float(part[fifth == group].mean()) for part in (fitted.level, fitted.tilt))
        odds = base + level
        off = special.expit(odds + (fitted.slope + tilt) * TOLD_AT).mean()
        more[name] = float(off / special.expit(odds).mean() - 1.0)
    return more
