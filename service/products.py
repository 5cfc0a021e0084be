"""What a decision knows of the product it is about: kept on its host, read when it is named.

The carrier brings the catalogue down product by product (`known`); a decision that names one and
whose campaign reads any of `ATTRIBUTES` gets them from there (`recalled`).
"""

import datetime as dt
from collections.abc import Sequence

import orjson

TOLD_LAST = dt.timedelta(days=30)
"""A price or a stock that the catalogue told longer ago counts as unknown. Long, because many shops
tell changes only, and what sells slowly keeps its stock; all of it has to be told once a month."""
PACE_LAST = dt.timedelta(days=30)
"""A pace of sales that was computed longer ago counts as unknown, as traits do."""
COMPETITORS_LAST = dt.timedelta(days=7)
"""A competitor's price that was seen longer ago counts as unknown."""
LONGEST_COVER_DAYS = 365.0
ATTRIBUTES = {
    "product_stock": "pieces of the product in stock",
    "product_stock_cover_days": "days that its stock lasts at the recent pace of sales",
    "product_price_minor": "its list price, in minor units",
    "product_category": "its category, as the catalogue has it",
    "competitor_price_minor": "the lowest price that a competitor asks for it, in minor units",
    "competitor_gap": "how far its price lies above that: 0.1 is 10 % dearer",
}
"""What can be known of a product, and what it means."""


def known(
    stock: int | None,
    price_minor: int | None,
    category: str | None,
    pace: float | None,
    pace_at: dt.datetime | None,
    competitors: Sequence[tuple[int, int]] | None = None,
    *,
    price_at: dt.datetime | None = None,
    stock_at: dt.datetime | None = None,
) -> bytes:
    """Return what a host keeps of a product.

    ``pace`` is in pieces a day; ``competitors`` are (price, when it was seen, in seconds); a price
    or a stock that was told at no known time does not age.
    """
    at, *told = (
        None if moment is None else round(moment.timestamp())
        for moment in (pace_at, price_at, stock_at)
    )
    return orjson.dumps([stock, price_minor, category, pace, at, competitors or [], *told])


def sold_out(kept: bytes) -> bool:
    """Tell whether a product is out of stock, from what `known` kept; until told otherwise."""
    return bool(orjson.loads(kept)[0] == 0)


def recalled(kept: bytes, now: dt.datetime) -> dict[str, object]:
    """Return the attributes of a product from what `known` kept, without those unknown now."""
    stock, price_minor, category, pace, at, competitors, *told = orjson.loads(kept)
    price_at, stock_at = told or (None, None)  # kept by a release that knew no ages
    oldest = (now - TOLD_LAST).timestamp()
    if price_at is not None and price_at <= oldest:
        price_minor = None
    if stock_at is not None and stock_at <= oldest:
        stock = None
    since = (now - COMPETITORS_LAST).timestamp()
    lowest = min((price for price, seen in competitors if seen > since), default=None)
    pace_at = None if at is None else dt.datetime.fromtimestamp(at, dt.UTC)
    found = {
        "product_stock": stock,
        "product_stock_cover_days": cover_days(stock, pace, pace_at, now),
        "product_price_minor": price_minor,
        "product_category": category,
        "competitor_price_minor": lowest,
        "competitor_gap": gap(price_minor, lowest),
    }
    return {name: value for name, value in found.items() if value is not None}


def gap(price_minor: int | None, competitor_minor: int | None) -> float | None:
    """Return how far a price lies above a competitor's, as a share of the latter.

    >>> gap(550, 500), gap(400, 500), gap(None, 500), gap(550, None)
    (0.10000000000000009, -0.19999999999999996, None, None)
    """
    if price_minor is None or competitor_minor is None:
        return None
    return price_minor / competitor_minor - 1.0


def cover_days(
    stock: int | None, pace: float | None, pace_at: dt.datetime | None, now: dt.datetime
) -> float | None:
    """Return how many days a stock lasts, at most `LONGEST_COVER_DAYS`; None where unknown."""
    if stock is None or pace is None or pace_at is None or now - pace_at >= PACE_LAST:
        return None
    if stock == 0:
        return 0.0
    return min(stock / pace, LONGEST_COVER_DAYS) if pace > 0 else LONGEST_COVER_DAYS
