"""Whether the recommender foresees what customers buy next, and which options do so best.

The history is cut at a day. What a refit would have known before is fitted, and its lists of twenty
are set against what the same customers chose afterwards and never had before, beside the best
sellers of that time and the recommender published last. That one has seen nothing of what it is
judged by: where it knows too much, the cut lies halfway through what came in since.

    recall = hits / products that were new to the customer afterwards, mean over customers

Options are searched (`bandits.recommender.search`) at the first fit, and again once the catalogue
has doubled; vectors keep their length then, because tastes hang on it. Half of the customers choose
the options and the other half judge, so that the figures are not flattered by the choice. All of it
looks at no more than `LINES` lines of customers drawn at random, whatever the size of the shop.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits import recommender
from bandits.recommender import fold_in, interactions, metrics, search
from bandits.recommender.factors import Factors
from bandits.recommender.interactions import Interactions, Rows
from service.traits import taste
from service.traits.history import Deeds, Ints, Receipts, Shop
from service.traits.taste import Published
from service.traits.vectors import POPULARITY, TASTE, TASTES

COUNT = 20
SHARE = 0.1
LINES = 1_000_000
JUDGES, FEWEST = 1_000, 50
CHOOSERS, DRAWS, ITERATIONS = 500, 6, 3
GROWN = 2


class Split(NamedTuple):
    """A history cut in two, the same customers and products on both sides.

    ``future`` holds what was new to a customer, of customers ``choosing`` (V,) options, nobody
    where there are few, and of those ``judging`` (W,); ``day`` is its first one.
    """

    past: Interactions
    future: Interactions
    choosing: NDArray[np.intp]
    judging: NDArray[np.intp]
    day: int


def plan(shop: Shop, last: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a refit keeps of the last one's summary ``last``, before anything is judged."""
    return {
        "options": dict(last.get("options", {})),
        "searched_products": last.get("searched_products", 0),
        "until": int(max(shop.receipts.day.max(initial=0), shop.deeds.day.max(initial=0))),
        "served": TASTE,
    }


def run(
    shop: Shop, published: Published | None, last: Mapping[str, Any], found: dict[str, Any]
) -> None:
    """Choose options and judge; what comes out goes into ``found``, which began as `plan` says.

    Raises:
        ValueError: too few customers came back.
    """
    sample, products = _sampled(shop), shop.products.tolist()
    until = last.get("until") if published else None
    parts = _cut(sample, until)
    if len(parts.choosing) and len(products) >= GROWN * found["searched_products"]:
        size = None if published is None else published[0].factors.items.shape[1]
        started = time.monotonic()
        found["options"] = _best(parts, products, found["options"], size)
        found["search_seconds"] = round(time.monotonic() - started, 1)
        found["searched_products"] = len(products)
    fair = published if until is not None and until < parts.day else None
    model = taste.fitted(parts.past, products, fair, found["options"])
    found |= _compared(parts, model, fair, products)
    found["after"] = parts.day
    if found["judged"][TASTE]["recall"] <= found["judged"][POPULARITY]["recall"]:
        found["served"] = POPULARITY


# ---------------------------------------------------------------- cutting


def _sampled(shop: Shop) -> Shop:
    """Return the history of customers drawn at random, as many as `LINES` lines hold."""
    size = len(shop.units)
    lines = np.bincount(shop.receipts.unit, minlength=size)
    lines += np.bincount(shop.deeds.unit, minlength=size)
    order = np.random.default_rng(0).permutation(size)
    chosen = order[np.cumsum(lines[order]) <= LINES]
    place = np.full(size, -1, dtype=np.int64)
    place[chosen] = np.arange(len(chosen))
    found = shop._replace(
        units=shop.units[chosen],
        receipts=shop.receipts._replace(unit=place[shop.receipts.unit]),
        deeds=shop.deeds._replace(unit=place[shop.deeds.unit]),
    )
    return _picked(found, found.receipts.unit >= 0, found.deeds.unit >= 0)


def _cut(shop: Shop, until: int | None) -> Split:
    """Return the history cut where its latest `SHARE` begins, or where the last model is judged."""
    days = np.sort(np.concatenate([shop.receipts.day, shop.deeds.day]))
    day = _day(days, 1.0 - SHARE)
    if until is not None and until >= day:
        later = _day(days[days > until], 0.5)
        try:
            return _split(shop, later)
        except ValueError:  # too little has come since: the last model is left out
            pass
    return _split(shop, day)


def _day(days: Ints, share: float) -> int:
    """Return the day before which at least ``share`` of sorted ``days`` lie, never the first."""
    return int(days[int(len(days) * share)]) if len(days) else 0


def _split(shop: Shop, day: int) -> Split:
    lines, deeds = shop.receipts.day < day, shop.deeds.day < day
    past = taste.events(_picked(shop, lines, deeds))
    later = taste.events(_picked(shop, ~lines, ~deeds))
    width = np.int64(max(past.items, 1))
    had = np.isin(later.user * width + later.item, past.user * width + past.item)
    future = interactions.chosen(later, ~had)
    known, new = np.unique(past.user), np.unique(future.user)
    who = np.random.default_rng(1).permutation(np.intersect1d(known, new)).astype(np.intp)
    if len(who) < FEWEST:
        raise ValueError(
            f"{len(who)} customers chose something new after they were known; {FEWEST} needed"
        )
    half = len(who) // 2 if len(who) >= 2 * FEWEST else 0
    return Split(past, future, np.sort(who[:half][:CHOOSERS]), np.sort(who[half:][:JUDGES]), day)


def _picked(shop: Shop, lines: NDArray[np.bool_], deeds: NDArray[np.bool_]) -> Shop:
    return shop._replace(
        receipts=Receipts._make(column[lines] for column in shop.receipts),
        deeds=Deeds._make(column[deeds] for column in shop.deeds),
    )


# ---------------------------------------------------------------- choosing options


def _best(
    parts: Split, products: list[str], kept: Mapping[str, Any], size: int | None
) -> dict[str, Any]:
    """Return the options that foresaw best, those in use among them."""
    most = size or taste.most_factors(products)
    sizes = [size] if size else sorted({max(most // 2, TASTES), most})
    space: dict[str, Sequence[Any]] = dict(search.SPACES[taste.MODEL]) | {"factors": sizes}
    wanted = np.isin(parts.future.user, parts.choosing)
    trials = search.search(
        taste.MODEL,
        parts.past,
        space=space,
        also=[{"factors": most} | dict(kept)],
        draws=DRAWS,
        iterations=ITERATIONS,
        count=COUNT,
        split=(parts.past, interactions.chosen(parts.future, wanted)),
    )
    return {name: value for name, value in trials[0].options.items() if name != "iterations"}


# ---------------------------------------------------------------- judging


def _compared(
    parts: Split, model: Factors, fair: Published | None, products: list[str]
) -> dict[str, Any]:
    """Return each model's figures, and what the recommender's recall is more than the others'."""
    known, wanted = interactions.by_user(parts.past), interactions.by_user(parts.future)
    models = {
        TASTE: _folded(model, known, parts.judging),
        POPULARITY: recommender.fit("popularity", parts.past),
    }
    if fair is not None:
        models["last"] = _folded(_moved(fair, products), known, parts.judging)
    recall, judged = {}, {}
    for name, one in models.items():
        lists = metrics.recommended(one, parts.judging, known, COUNT)
        recall[name], ndcg = metrics.accuracy(lists, wanted, parts.judging)
        spread = metrics.interval(recall[name])
        diversity = metrics.diversity(lists, model.items)
        judged[name] = {
            "recall": spread.mean,
            "low": spread.low,
            "high": spread.high,
            "ndcg": float(ndcg.mean()),
            "coverage": metrics.coverage(lists, len(products)),
            "diversity": diversity if np.isfinite(diversity) else None,
        }
    more = {
        name: metrics.interval(recall[TASTE] - recall[name])._asdict()
        for name in models
        if name != TASTE
    }
    return {"judged": judged, "more_than": more, "customers": len(parts.judging)}


def _folded(model: Factors, known: Rows, who: NDArray[np.intp]) -> Factors:
    """Return the model with customers' vectors as they are served: folded in."""
    users = np.zeros((len(known.degree), model.items.shape[1]), np.float32)
    for user in who.tolist():
        row = slice(known.start[user], known.start[user + 1])
        users[user] = fold_in.customer(model, known.column[row], known.value[row]).vector
    return model._replace(users=users)


def _moved(published: Published, products: list[str]) -> Factors:
    """Return a published recommender over today's products; what it did not know is at zero."""
    before = published[0].factors
    here = {name: place for place, name in enumerate(products)}
    items = np.zeros((len(products), before.items.shape[1]), np.float32)
    bias = np.zeros(len(products), np.float32)
    for place, name in enumerate(published[1]):
        if name in here:
            items[here[name]] = before.items[place]
            bias[here[name]] = before.item_bias[place]
    return before._replace(items=items, item_bias=bias)
