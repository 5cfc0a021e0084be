"""Which products an offer on recommended products is on: pure functions of lists in memory.

Every customer's list is computed and published with the traits (`service.traits.lists`), and the
list of everyone's favourites serves those of whom nothing is known, or was long ago. The arm is
drawn before anybody looks at a list, so what is drawn, and its replay, never hang on one.
"""

import datetime as dt
from collections.abc import Sequence

import orjson

from service.contexts import TRAITS_LAST
from service.definition import RecommendedOffer
from service.messages import OfferedProduct


def kept(products: Sequence[str], computed_at: dt.datetime) -> bytes:
    """Return what a host keeps of a unit's products: when they were computed (seconds), and ids."""
    return orjson.dumps([round(computed_at.timestamp()), *products])


def recalled(kept: bytes, now: dt.datetime) -> list[str]:
    """Return a unit's products from what `kept` kept, best first; none that are too old."""
    at, *products = orjson.loads(kept)
    fresh = now.timestamp() - at < TRAITS_LAST.total_seconds()
    return products if fresh else []


def tiered(
    offer: RecommendedOffer, listed: Sequence[str], named: Sequence[str] | None
) -> tuple[OfferedProduct, ...]:
    """Return the products of every tier, best first, as far as there are any.

    Of ``named``, the only ones that may be offered, those that are ``listed`` go first.
    """
    ranked = listed
    if named is not None:
        allowed = set(named)
        ranked = list(dict.fromkeys([*(one for one in listed if one in allowed), *named]))
    found, start = [], 0
    for tier in offer.tiers:
        end = start + tier.items
        found += [OfferedProduct(one, tier.percent) for one in ranked[start:end]]
        start = end
    return tuple(found)
