"""A recommender as it is served, and the tastes that a customer's vector stands for."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits.recommender.factors import Factors

TASTES = 8
NAMES = tuple(f"taste_{place}" for place in range(1, TASTES + 1))
WEIGHTS = {"view": 1.0, "click": 1.0, "cart": 2.0, "review": 2.0, "purchase": 3.0}
"""How much an interaction of each kind says of a customer's taste; a receipt's line is a purchase,
and what came back counts as nothing."""


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
