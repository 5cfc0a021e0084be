"""The two sets that recommenders are compared on: MovieLens 100k, and a large made one.

MovieLens 100k (943 customers, 1,682 films, 100,000 ratings) is read out of the package ``recbole``;
GroupLens allows research with it, and neither commercial use nor redistribution without leave. The
large set has 100,000 customers in 200 groups of one taste each, 20,000 items with a popularity that
falls as a power of their rank, and 5.5 million distinct pairs.
"""

import numpy as np

from bandits.recommender.interactions import Interactions, interactions
from tests.bench.policies import data


def movielens() -> Interactions:
    """The ratings, 1 to 5, with their times in seconds.

    Raises:
        DataUnavailableError: the package could not be had.
    """
    kept = data.cache() / "data" / "movielens.npz"
    if not kept.exists():
        lines = data.fetched("movielens").decode().splitlines()[1:]
        table = np.array([[float(word) for word in line.split("\t")] for line in lines])
        user, item = (np.unique(column, return_inverse=True)[1] for column in table.T[:2])
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            kept, user=user, item=item, value=table[:, 2], at=table[:, 3].astype(np.int64)
        )
    with np.load(kept) as found:
        return interactions(found["user"], found["item"], found["value"], found["at"])


def power_law(
    *, users: int = 100_000, items: int = 20_000, pairs: int = 5_000_000, seed: int = 7
) -> Interactions:
    """Customers of 200 groups choose by their group's taste and the items' popularity.

    How much a customer chooses is log-normal (10 to 2,000, before doubles are left out); the chance
    of an item is (rank + 10)^-0.8 exp(1.5 v·c), v its 16 properties and c the group's taste.
    """
    draw = np.random.default_rng(seed)
    popularity = 1.0 / (np.arange(items) + 10.0) ** 0.8
    draw.shuffle(popularity)
    groups = 200
    properties = draw.normal(size=(items, 16))
    taste = draw.normal(size=(groups, 16)) / 4.0
    group = draw.integers(0, groups, users)
    wanted = np.clip(draw.lognormal(3.9, 0.7, users), 10, 2000)
    wanted = (wanted * (pairs * 1.22 / wanted.sum())).astype(int)
    keys = []
    for one in range(groups):
        weight = np.cumsum(popularity * np.exp(1.5 * (properties @ taste[one])))
        members = np.flatnonzero(group == one)
        who = np.repeat(members, wanted[members])
        what = np.searchsorted(weight / weight[-1], draw.uniform(size=len(who)))
        keys.append(who * items + what.clip(max=items - 1))
    key = np.unique(np.concatenate(keys))
    return interactions(key // items, key % items, users=users, items=items)
