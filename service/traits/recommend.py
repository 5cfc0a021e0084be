"""Products for one customer, newcomers included: the newest recommender and one fold-in, in numpy.

A customer's vector is solved from what they bought and did so far (`bandits.recommender.fold_in`),
so an interaction counts with the very next question, without a refit.
"""

import threading
import time
from typing import Literal, NamedTuple

import numpy as np
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from bandits.recommender import factors, fold_in
from bandits.recommender.factors import Factors
from service.models import Product
from service.traits import stored
from service.traits.vectors import NAMES, POPULARITY, TASTE, WEIGHTS, Taste, tastes

LOOK_SECONDS = 2.0
MOST_EVENTS = 1_000

_OF_UNIT = text("""
    (SELECT product_id, 'purchase' AS kind FROM transactions WHERE unit = :unit
     ORDER BY bought_at DESC LIMIT :most)
    UNION ALL
    (SELECT product_id, kind FROM interactions WHERE unit = :unit AND kind <> 'return'
     ORDER BY at DESC LIMIT :most)
""")


class Recommended(NamedTuple):
    """Products for a customer, best first, and what is known of the customer's taste.

    ``version`` is the recommender's, 0 where there is none yet; ``events`` is how many purchases
    and interactions with known products there were; ``ranked_by`` says whether products are in the
    order of the customer's taste, or in that of best sellers because these foresaw better.
    """

    version: int
    events: int
    products: list[tuple[str, float]]
    tastes: dict[str, float]
    ranked_by: Literal["taste", "popularity"] = TASTE


class Recommender:
    """The newest recommender of the database, kept in memory by one serving process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looked_at = -LOOK_SECONDS
        self._version = 0
        self._taste: Taste | None = None
        self._best_sellers: Factors | None = None
        self._keys: list[str] = []
        self._place: dict[str, int] = {}

    def for_unit(
        self, session: Session, unit: bytes, count: int, *, bought: bool = False
    ) -> Recommended:
        """Return ``count`` products for a unit; with ``bought``, also those bought before."""
        self._look(session)
        rows = session.execute(_OF_UNIT, {"unit": unit, "most": MOST_EVENTS}).all()
        return self.fold_in([(row.product_id, row.kind) for row in rows], count, bought=bought)

    def fold_in(
        self, events: list[tuple[str, str]], count: int, *, bought: bool = False
    ) -> Recommended:
        """Return ``count`` products for who did ``events``: pairs of product and kind."""
        taste = self._taste
        if taste is None:
            return Recommended(self._version, 0, [], {})
        weight: dict[int, float] = {}
        for product, kind in events:
            place = self._place.get(product)
            if place is not None:
                weight[place] = weight.get(place, 0.0) + WEIGHTS[kind]
        items = np.fromiter(weight, dtype=np.int64, count=len(weight))
        values = np.log1p(np.fromiter(weight.values(), dtype=np.float64, count=len(weight)))
        vector = fold_in.customer(taste.factors, items, values).vector
        popular = self._best_sellers
        if popular is None:
            # Matrix times vector: as a product of two matrices it waits for a second thread.
            score = taste.factors.items @ vector + taste.factors.item_bias
        else:
            score = popular.item_bias.copy()
        if not bought:
            score[items] = -np.inf
        best = factors.ranked(score[None], count)[0]
        found = tastes(taste, vector[None])[0].tolist()
        return Recommended(
            self._version,
            len(weight),
            [
                (self._keys[place], float(score[place]))
                for place in best.tolist()
                if score[place] > -np.inf
            ],
            dict(zip(NAMES, found, strict=True)),
            TASTE if popular is None else POPULARITY,
        )

    def _look(self, session: Session) -> None:
        """Load a newer version, if there is one, at most every other second."""
        if time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        with self._lock:
            version = stored.newest_version(session)
            if version != self._version:
                self._taste = stored.taste_of(session, version)
                self._best_sellers = stored.best_sellers(session, version)
                self._keys = stored.products(session, version)
                self._place = {key: place for place, key in enumerate(self._keys)}
                self._version = version
            self._looked_at = time.monotonic()


def named(session: Session, found: Recommended) -> dict[str, Product]:
    """Return what the catalogue says of recommended products, by their ids."""
    wanted = [key for key, _ in found.products]
    rows = session.scalars(select(Product).where(Product.id.in_(wanted)))
    return {row.id: row for row in rows}
