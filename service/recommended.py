"""Which products an offer on recommended products is on: pure functions of lists in memory.

Every customer's list is computed and published with the traits (`service.traits.lists`), and the
list of everyone's favourites serves those of whom nothing is known, or was long ago. What has sold
out since is left out by the catalogue as the host has it. The arm is
drawn before anybody looks at a list, so what is drawn, and its replay, never hang on one.
"""

import datetime as dt
import math
from collections.abc import Callable, Collection, Sequence

import orjson

from service.contexts import TRAITS_LAST
from service.definition import RecommendedOffer
from service.messages import OfferedProduct

SPARE = 1.5
"""How many more products are looked up than are needed: a second look costs more than they do."""


def kept(products: Sequence[str], computed_at: dt.datetime) -> bytes:
    """Return what a host keeps of a unit's products: when they were computed (seconds), and ids."""
    return orjson.dumps([round(computed_at.timestamp()), *products])


def recalled(kept: bytes, now: dt.datetime) -> list[str]:
    """Return a unit's products from what `kept` kept, best first; none that are too old."""
    at, *products = orjson.loads(kept)
    fresh = now.timestamp() - at < TRAITS_LAST.total_seconds()
    return products if fresh else []


def tiered(
    offer: RecommendedOffer,
    listed: Sequence[str],
    named: Sequence[str] | None,
    sold_out: Callable[[Sequence[str]], Collection[str]],
) -> tuple[OfferedProduct, ...]:
    """Return the products of every tier, best first, as far as there are any.

    Of ``named``, the only ones that may be offered, those that are ``listed`` go first.
    ``sold_out`` tells which of some products are out of stock now; it is asked of few at a time.
    """
    ranked = listed
    if named is not None:
        allowed = set(named)
        ranked = list(dict.fromkeys([*(one for one in listed if one in allowed), *named]))
    percents = [tier.percent for tier in offer.tiers for _ in range(tier.items)]
    left, step = list[str](), math.ceil(SPARE * len(percents))
    for start in range(0, len(ranked), step):
        part = ranked[start : start + step]
        gone = sold_out(part)
        left += [one for one in part if one not in gone]
        if len(left) >= len(percents):
            break
    return tuple(map(OfferedProduct, left, percents))
