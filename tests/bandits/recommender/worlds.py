"""A small history with a taste to find, and its table for arithmetic without tricks."""

import functools

import numpy as np
from numpy.typing import NDArray

from bandits.recommender.interactions import Interactions, interactions, split_by_chance

#: Groups of customers, each of which likes items of its own beside the popular ones.
GROUPS = 4


@functools.cache
def tastes(users: int = 240, items: int = 120, seed: int = 0) -> Interactions:
    """Customers choose about 25 items each, most from the quarter that their group likes."""
    draw = np.random.default_rng(seed)
    popularity = 1.0 / (np.arange(items) + 5.0)
    group = np.arange(users) % GROUPS
    who, what = list[NDArray[np.intp]](), list[NDArray[np.intp]]()
    for user in range(users):
        liked = np.where(np.arange(items) % GROUPS == group[user], 12.0, 1.0) * popularity
        chosen = draw.choice(items, draw.integers(15, 35), replace=False, p=liked / liked.sum())
        who.append(np.full(len(chosen), user))
        what.append(chosen)
    at = draw.permutation(sum(map(len, what)))
    return interactions(np.concatenate(who), np.concatenate(what), at=at, users=users, items=items)


@functools.cache
def halves() -> tuple[Interactions, Interactions]:
    """A past and a future of :func:`tastes`."""
    return split_by_chance(tastes(), share=0.25, seed=1)


def dense(events: Interactions) -> NDArray[np.float64]:
    """(U, I) the values, 0 where there is nothing."""
    table = np.zeros((events.users, events.items))
    np.add.at(table, (events.user, events.item), events.value.astype(np.float64))
    return table
