"""Which products to offer: a list for every customer, and everyone's favourites for all others.

Left out is what is out of stock or not in the catalogue, and of a customer's list what the customer
has bought or looked at before, as `service.traits.recommend` leaves it out. A list says what may be
wanted, not what a discount on it would change: that is for the campaign to find out.
"""

import numpy as np
from numpy.typing import NDArray

from bandits.recommender import factors
from bandits.recommender.factors import Factors
from bandits.recommender.interactions import Interactions
from service.definition import LISTED
from service.traits.history import Ints

AMONG = 10_000
"""Lists are made among so many products, those of the most customers: scoring all of a large
catalogue would take many times as long."""
BLOCK = 1_000


def favourites(events: Interactions, on_sale: NDArray[np.bool_]) -> Ints:
    """Return the products (at most `AMONG`) that are on sale, those of the most customers first."""
    customers = np.bincount(events.item, minlength=len(on_sale)) * on_sale
    order = np.argsort(-customers, kind="stable")[:AMONG]
    return order[customers[order] > 0].astype(np.int64)


def recommended(model: Factors, events: Interactions, among: Ints) -> Ints:
    """Return each customer's products (U, up to `LISTED`) out of ``among``, best first.

    Ends in -1 where too few are left that the customer does not know.
    """
    if len(among) == 0:
        return np.zeros((len(model.users), 0), dtype=np.int64)
    column = np.full(events.items, -1, dtype=np.int64)
    column[among] = np.arange(len(among))
    order = np.argsort(events.user, kind="stable")
    user, known = events.user[order], column[events.item[order]]
    blocks = [np.zeros((0, min(LISTED, len(among))), np.int64)]
    for start in range(0, len(model.users), BLOCK):
        score = model.users[start : start + BLOCK] @ model.items[among].T + model.item_bias[among]
        here = slice(*np.searchsorted(user, (start, start + BLOCK)))
        seen = known[here] >= 0
        score[user[here][seen] - start, known[here][seen]] = -np.inf
        best = factors.ranked(score, LISTED)
        left = np.take_along_axis(score, best, axis=1) > -np.inf
        blocks.append(np.where(left, among[best], -1))
    return np.concatenate(blocks)
