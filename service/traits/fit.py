"""From a shop's history to models and to every customer's traits.

What cannot be fitted (too few customers came back, say) is left out and says why in the summary;
the rest goes on without it.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits import recommender
from bandits.customers import clv, personas
from bandits.customers.personas import Personas
from bandits.recommender.factors import Factors
from bandits.recommender.interactions import Interactions
from service.definition import LISTED
from service.traits import (
    backtest,
    chance,
    demographics,
    lists,
    prices,
    response,
    taste,
    vectors,
)
from service.traits.demographics import Columns
from service.traits.history import Floats, Ints, Shop
from service.traits.vectors import Taste

WEEK, YEAR_WEEKS = 7.0, 52.0
FEWEST_CUSTOMERS = 50
PACE_DAYS = 91
BEHAVIOUR = {
    "gap": personas.GAP,
    "recency": personas.RECENCY,
    "spend": personas.SPEND,
    "discount_share": personas.DISCOUNT_SHARE,
}
"""What personas are made of whatever is known of customers; see `_features`."""


class Last(NamedTuple):
    """What was published before: new fits keep its directions and its personas' names."""

    taste: Taste | None = None
    products: tuple[str, ...] = ()
    personas: Personas | None = None
    persona_features: tuple[str, ...] = tuple(BEHAVIOUR)
    recommender: Mapping[str, Any] = MappingProxyType({})


class Fitted(NamedTuple):
    """What was fitted: traits by name (U,), paces (P,), the models, products to offer, and figures
    for people.

    ``favourites`` are products by their place in the shop, best first, and ``recommended`` (U, N)
    those of each customer, -1 where there are no more. ``best_sellers`` is what products are ranked
    by where the recommender foresaw no better.
    """

    traits: dict[str, NDArray[Any]]
    pace: Floats
    taste: Taste | None
    personas: Personas | None
    favourites: Ints
    recommended: Ints
    summary: dict[str, Any]
    best_sellers: Factors | None = None


def fit(shop: Shop, *, last: Last | None = None, judge: bool = False) -> Fitted:
    """Fit everything there is enough for; with ``judge``, the recommender as it foresees best."""
    before = last or Last()
    summary: dict[str, Any] = {
        "customers": len(shop.units),
        "products": len(shop.products),
        "receipt_lines": len(shop.receipts.unit),
        "interactions": len(shop.deeds.unit),
        "failed": {},
    }
    traits: dict[str, NDArray[Any]] = {}
    groups = None
    if len(shop.receipts.unit):
        _try("purchases", summary, lambda: traits.update(_buying(shop, summary)))
        groups = _try("personas", summary, lambda: _personas(shop, traits, before, summary))
        _try("elasticity", summary, lambda: _elasticities(shop, traits, summary))
        found = _try("purchase_chance", summary, lambda: chance.fit(shop, summary))
        traits |= {} if found is None else {"purchase_chance": found}
    events = taste.events(shop)
    favourites = lists.favourites(events, shop.on_sale)
    recommended = np.zeros((len(shop.units), 0), dtype=np.int64)
    liked, popular = _recommender(shop, events, before, summary, judge=judge)
    if liked is not None:
        recommended = lists.recommended(popular or liked.factors, events, favourites)
        popular = None if popular is None else taste.without_users(popular)
        places = vectors.tastes(liked, liked.factors.users)
        traits |= {name: places[:, place] for place, name in enumerate(vectors.NAMES)}
        liked = liked._replace(factors=taste.without_users(liked.factors))
    _try("response", summary, lambda: _responses(shop, traits, summary))
    return Fitted(
        traits, _pace(shop), liked, groups, favourites[:LISTED], recommended, summary, popular
    )


def _try(name: str, summary: dict[str, Any], make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (ValueError, np.linalg.LinAlgError) as error:
        summary["failed"][name] = str(error)
        return None


def _recommender(
    shop: Shop, events: Interactions, last: Last, summary: dict[str, Any], *, judge: bool
) -> tuple[Taste | None, Factors | None]:
    """Return the recommender, and the best sellers if these are to be served instead."""
    old = None if last.taste is None else (last.taste, last.products)
    told = summary["recommender"] = backtest.plan(shop, last.recommender)
    if judge:
        _try("backtest", summary, lambda: backtest.run(shop, old, last.recommender, told))
    found: Taste | None = _try(
        "taste", summary, lambda: taste.fit(shop, events, old, summary, options=told["options"])
    )
    popular = told["served"] == vectors.POPULARITY
    return found, recommender.fit("popularity", events) if popular else None


# ---------------------------------------------------------------- purchases


def _buying(shop: Shop, summary: dict[str, Any]) -> dict[str, Floats]:
    lines, size = shop.receipts, len(shop.units)
    until = int(lines.day.max())
    who, history = clv.history(lines.unit, lines.day, lines.paid, until=until, unit=WEEK)
    paid = np.bincount(lines.unit, lines.paid, minlength=size)
    saved = np.bincount(lines.unit, lines.discount, minlength=size)
    orders = _spread_out(history.frequency + 1, who, size)
    found = {
        "recency_days": _spread_out((history.age - history.recency) * WEEK, who, size),
        "span_days": _spread_out(history.recency * WEEK, who, size),
        "orders": orders,
        "spend_minor": paid,
        "basket_minor": paid / orders,
        "discount_share": saved / np.maximum(paid + saved, 1.0),
    }
    _try("lifetime", summary, lambda: found.update(_lifetime(history, who, size, summary)))
    return found


def _lifetime(
    history: clv.History, who: NDArray[Any], size: int, summary: dict[str, Any]
) -> dict[str, Floats]:
    buying, spending = clv.fit_buying(history), clv.fit_spending(history)
    summary["lifetime"] = {
        "buying": dict(zip(("r", "alpha", "a", "b"), buying.estimate.tolist(), strict=True)),
        "spending": dict(zip(("p", "q", "v"), spending.estimate.tolist(), strict=True)),
        "correlation": float(spending.correlation),
    }
    ahead = clv.purchases(buying, history, YEAR_WEEKS) * clv.spend(spending, history)
    return {
        "alive": _spread_out(clv.alive(buying, history), who, size),
        "value_minor": _spread_out(ahead, who, size),
    }


def _spread_out(values: NDArray[Any], who: NDArray[Any], size: int) -> Floats:
    """Return one value per unit, not a number where there is none."""
    found = np.full(size, np.nan)
    found[who] = values
    return found


def _pace(shop: Shop) -> Floats:
    """Return how many pieces of each product are sold a day (P,); not a number if never sold.

    Over the last `PACE_DAYS` of the receipts, or since it was first sold: what is new in the shop
    has not sold slowly before.
    """
    lines, size = shop.receipts, len(shop.products)
    newest = lines.day.max(initial=0)
    first = np.full(size, newest + 1)
    np.minimum.at(first, lines.product, lines.day)
    since = np.maximum(first, newest + 1 - PACE_DAYS)
    recent = lines.day >= since[lines.product]
    sold = np.bincount(lines.product[recent], lines.quantity[recent], minlength=size)
    days = np.where(first > newest, np.nan, newest + 1 - since)
    pace: Floats = sold / days
    return pace


# ---------------------------------------------------------------- personas and prices


def _personas(
    shop: Shop, traits: dict[str, NDArray[Any]], last: Last, summary: dict[str, Any]
) -> Personas:
    known = np.flatnonzero(np.isfinite(traits["orders"]))
    if len(known) < FEWEST_CUSTOMERS:
        raise ValueError(f"{len(known)} customers bought something; {FEWEST_CUSTOMERS} needed")
    features = _features(shop, traits, known)
    found = personas.fit(features.values, seed=0)
    groups = found.personas
    if last.personas is not None and last.persona_features == features.names:
        groups = personas.aligned(groups, last.personas)
    place = personas.assign(groups, features.values)
    names = np.full(len(traits["orders"]), None, dtype=object)
    names[known] = [f"persona-{number + 1}" for number in place.tolist()]
    traits["persona"] = names
    told = personas.describe(groups, features.traits)
    summary["personas"] = [
        {"key": f"persona-{number + 1}", "name": told[number]}
        | _typical(traits, known[place == number])
        for number in range(len(told))
    ]
    summary["persona_features"] = features.names
    summary["personas_tried"] = [one._asdict() for one in found.tried]
    return groups


def _features(shop: Shop, traits: dict[str, NDArray[Any]], known: NDArray[np.integer]) -> Columns:
    """Return what personas are made of: purchases, and what is known of browsing and people."""
    between = (traits["recency_days"] + 1 + traits["span_days"]) / traits["orders"]
    columns = [
        np.log(np.maximum(between, 1.0)),
        np.log1p(traits["recency_days"]),
        np.log1p(traits["spend_minor"]),
        traits["discount_share"],
    ]
    words = dict(BEHAVIOUR)
    if len(shop.deeds.unit):
        columns.append(np.log1p(np.bincount(shop.deeds.unit, minlength=len(shop.units))))
        words["browsing"] = personas.BROWSING
    told = demographics.columns([shop.told[place] for place in known] if len(shop.told) else [])
    values = np.stack(columns, axis=1)[known]
    if told.names:
        values = np.hstack([values, told.values])
    return Columns(values, (*words, *told.names), (*words.values(), *told.traits))


def _typical(traits: dict[str, NDArray[Any]], members: NDArray[np.integer]) -> dict[str, Any]:
    """Return a persona's size and its customers' medians."""
    shown = ("orders", "recency_days", "spend_minor", "basket_minor", "discount_share",
             "alive", "value_minor")  # fmt: skip
    medians = {
        name: float(np.nanmedian(traits[name][members]))
        for name in shown
        if name in traits and len(members)
    }
    return {"size": len(members), "medians": medians}


def _elasticities(shop: Shop, traits: dict[str, NDArray[Any]], summary: dict[str, Any]) -> None:
    """Put what prices did to quantities into the summary, and the personas' into the traits."""
    summary["elasticity"] = {"departments": prices.by_department(shop)}
    if "persona" not in traits:
        return
    found = prices.by_persona(shop, traits["persona"])
    summary["elasticity"]["personas"] = found
    of = {one["group"]: one["shrunk"] for one in found}
    traits["elasticity"] = np.array(
        [of.get(name, np.nan) for name in traits["persona"].tolist()], dtype=np.float64
    )


def _responses(shop: Shop, traits: dict[str, NDArray[Any]], summary: dict[str, Any]) -> None:
    """Put how customers answer to discounts into their traits, told by all that is known."""
    if "orders" not in traits:
        raise ValueError("no receipts")
    found = response.by_category(shop, traits)
    summary["response"], summary["response_left_out"] = found.told, found.left_out
    traits |= found.traits
    if not found.told and not found.left_out:
        raise ValueError(f"no category has {response.FEWEST_LINES:,} receipt lines")
