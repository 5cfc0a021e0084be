"""Tastes: the recommender's vectors of customers, brought to a few directions that keep.

A refit begins at the last one's items and is turned onto them (`bandits.recommender.alignment`),
and the directions are kept, so that what a campaign has learnt of a taste still holds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandits import recommender
from bandits.recommender import alignment, interactions
from bandits.recommender.factors import Factors
from service.traits.history import Shop
from service.traits.vectors import TASTES, WEIGHTS, Taste, Tastes

MODEL = "als_implicit"
FACTORS = 32
REFIT_ITERATIONS = 6
FEWEST_EVENTS = 100
Published = tuple[Taste, Sequence[str]]
"""A recommender that is served, and its products in its order."""


def events(shop: Shop) -> interactions.Interactions:
    """Return all that says something of taste: pairs of customer and product, weights added up."""
    lines, deeds = shop.receipts, shop.deeds
    unit = np.concatenate([lines.unit, deeds.unit])
    product = np.concatenate([lines.product, deeds.product])
    weight = np.concatenate([np.full(len(lines.unit), WEIGHTS["purchase"]), deeds.weight])
    day = np.concatenate([lines.day, deeds.day])
    pair, place = np.unique(unit * max(len(shop.products), 1) + product, return_inverse=True)
    latest = np.full(len(pair), -1, dtype=np.int64)
    np.maximum.at(latest, place, day)
    return interactions.interactions(
        pair // max(len(shop.products), 1),
        pair % max(len(shop.products), 1),
        np.log1p(np.bincount(place, weight, minlength=len(pair))),
        latest,
        users=len(shop.units),
        items=len(shop.products),
    )


def fit(
    shop: Shop,
    found: interactions.Interactions,
    last: Published | None,
    summary: dict[str, Any],
    *,
    options: Mapping[str, Any] | None = None,
) -> Taste:
    """Fit the recommender to events, from the last one on; it still has its customers.

    Raises:
        ValueError: there is too little to fit.
    """
    products = shop.products.tolist()
    factors = fitted(found, products, last, options or {})
    if last is None or not (shared := _shared(products, last[1])):
        return Taste(factors, _directions(factors.users))
    new, old = _sides(shared)
    summary["moved"] = _moved(factors, last[0].factors, new, old)
    return Taste(factors, last[0].tastes)


def fitted(
    found: interactions.Interactions,
    products: list[str],
    last: Published | None,
    options: Mapping[str, Any],
) -> Factors:
    """Return the recommender of a history, with vectors of as many factors as the last one had.

    Raises:
        ValueError: there is too little to fit.
    """
    if len(found.user) < FEWEST_EVENTS:
        raise ValueError(f"{len(found.user)} pairs of customer and product; {FEWEST_EVENTS} needed")
    shared = [] if last is None else _shared(products, last[1])
    if last is None or not shared:
        return recommender.fit(MODEL, found, **{"factors": most_factors(products)} | dict(options))
    return _refitted(found, last[0].factors, *_sides(shared), options)


def most_factors(products: list[str]) -> int:
    """Return how many factors are fitted unless told: more would learn a few products by heart."""
    return min(max(len(products) // 8, TASTES), FACTORS)


def _shared(products: list[str], before: Sequence[str]) -> list[tuple[int, int]]:
    """Return the places, now and before, of the products that both know."""
    here = {name: place for place, name in enumerate(products)}
    return [(here[name], place) for place, name in enumerate(before) if name in here]


def _sides(shared: list[tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    new, old = np.array(shared, dtype=np.int64).T
    return new, old


def _refitted(
    found: interactions.Interactions,
    before: Factors,
    new: NDArray[np.integer],
    old: NDArray[np.integer],
    options: Mapping[str, Any],
) -> Factors:
    """Return a fit that begins at the last one's items and is turned onto them."""
    size = before.items.shape[1]
    items = np.random.default_rng(0).normal(0.0, 0.01, (found.items, size))
    items[new] = before.items[old]
    start = Factors.make(np.zeros((found.users, size)), items, kind=int(before.kind))
    kept = dict(options) | {"factors": size, "iterations": REFIT_ITERATIONS}
    factors = recommender.fit(MODEL, found, **kept, start=start)
    return alignment.aligned(factors, before, shared=(new, old))


def _directions(users: NDArray[np.float32]) -> Tastes:
    """Return the customers' mean vector, and the directions in which they differ most."""
    centre = users.mean(axis=0)
    away = (users - centre).astype(np.float64)
    spread, turn = np.linalg.eigh(away.T @ away / max(len(users), 1))
    best = np.argsort(-spread)[:TASTES]
    scale = 1.0 / np.sqrt(np.maximum(spread[best], 1e-12))
    return Tastes(centre, (turn[:, best] * scale).astype(np.float32))


def _moved(
    new: Factors, old: Factors, here: NDArray[np.integer], there: NDArray[np.integer]
) -> float:
    """Return how far the shared items' vectors moved, as a share of their length."""
    away = np.linalg.norm(new.items[here] - old.items[there])
    return float(away / max(float(np.linalg.norm(old.items[there])), 1e-12))


def without_users(factors: Factors) -> Factors:
    """Return a recommender without its customers' vectors, which are folded in when needed."""
    return factors._replace(
        users=np.zeros((0, factors.users.shape[1]), np.float32), user_bias=np.zeros(0, np.float32)
    )
