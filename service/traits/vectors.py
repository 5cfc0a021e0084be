"""What serving knows of traits: their names, and how a recommender's vector becomes tastes."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits.recommender.factors import Factors

TASTES = 8
NAMES = tuple(f"taste_{place}" for place in range(1, TASTES + 1))
TRAITS = {
    "recency_days": "days since the last purchase",
    "span_days": "days from the first purchase to the last",
    "orders": "days with a purchase in two years",
    "spend_minor": "spent in two years, in minor units",
    "basket_minor": "spent per day with a purchase, in minor units",
    "discount_share": "share of the list value that discounts took off",
    "alive": "chance of still being a customer (BG/NBD)",
    "purchase_chance": "chance to buy within 30 days after the newest receipt",
    "value_minor": "expected spend in the next year, in minor units (BG/NBD and Gamma-Gamma)",
    "persona": "the group of customers that behave alike, such as persona-1",
    "elasticity": "price elasticity of the persona's purchases, drawn to that of all",
    **dict.fromkeys(NAMES, "a direction in which the recommender's customers differ"),
}
"""What can be known of a customer, and what it means; `responses` has those of categories."""

WEIGHTS = {"view": 1.0, "click": 1.0, "cart": 2.0, "review": 2.0, "purchase": 3.0}
"""How much an interaction of each kind says of a customer's taste; a receipt's line is a purchase,
and what came back counts as nothing."""

TASTE: Final = "taste"
POPULARITY: Final = "popularity"
"""What products are ranked by for a customer."""


def responses(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return the traits of how customers answer to discounts, one per category, in words."""
    return {
        one["trait"]: f"how strongly discounts on “{one['category'].lower()}” work: 1 least, 5 most"
        for one in summary.get("response", ())
    }


class Tastes(NamedTuple):
    """How a customer's vector becomes tastes, kept from refit to refit.

    ``direction`` (K, T) takes the vector, less ``centre`` (K,), to T tastes of variance about 1.
    """

    centre: NDArray[np.float32]
    direction: NDArray[np.float32]


class Taste(NamedTuple):
    """A recommender as it is served, without its customers: these are folded in."""

    factors: Factors
    tastes: Tastes


def tastes(taste: Taste, vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Return the tastes (B, T) of customers' vectors (B, K)."""
    found: NDArray[np.float32] = (
        np.asarray(vectors) - taste.tastes.centre
    ) @ taste.tastes.direction
    return found
