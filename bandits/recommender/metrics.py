"""How good recommendations are: error of ratings, and accuracy, coverage and diversity of lists.

``recall`` is hits over the customer's held-back items; ``ndcg`` is binary and its ideal list holds
as many of them as fit. Both are per customer, so that two models can be compared customer by
customer; :func:`interval` gives the mean and a paired bootstrap does the rest.

Source: Järvelin and Kekäläinen, TOIS 2002 (NDCG).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits.recommender.factors import Factors, predicted, ranked, scores
from bandits.recommender.interactions import Interactions, Rows, by_user

Doubles = NDArray[np.float64]

#: Customers scored at once, and scores held at once.
AT_ONCE, SCORES = 1000, 8_000_000


class Interval(NamedTuple):
    """A mean over customers, and what it could have been with other customers.

    Attributes:
        mean: the mean.
        low: 2.5 % point of the bootstrap.
        high: 97.5 % point.
    """

    mean: float
    low: float
    high: float


class Ranking(NamedTuple):
    """What lists of K items are worth, for the customers with held-back items.

    Attributes:
        user: (V,) which customers.
        recall: (V,).
        ndcg: (V,).
        coverage: the share of all items that are in any list.
        diversity: 1 less the mean cosine of the vectors of two items of a list; not a number
            for a model without vectors.
    """

    user: NDArray[np.intp]
    recall: Doubles
    ndcg: Doubles
    coverage: float
    diversity: float


def rmse(
    model: Factors, events: Interactions, *, bounds: tuple[float, float] | None = None
) -> float:
    """Root of the mean squared error of ratings, cut off at ``bounds`` where given."""
    guess = predicted(model, events.user, events.item)
    if bounds is not None:
        guess = np.clip(guess, *bounds)
    return float(np.sqrt(np.mean((guess - events.value).astype(np.float64) ** 2)))


def ranking(
    model: Factors,
    past: Interactions,
    future: Interactions,
    *,
    count: int = 20,
    users: NDArray[np.intp] | None = None,
) -> Ranking:
    """The lists of ``count`` items, without those of the past, against what came.

    Args:
        model: a fitted model of the same customers and items.
        past: what lists leave out.
        future: what was held back.
        count: length of a list.
        users: which customers, all who have something held back unless given.
    """
    who = np.arange(past.users) if users is None else np.asarray(users)
    known, wanted = by_user(past), by_user(future)
    who = who[wanted.degree[who] > 0]
    lists = recommended(model, who, known, count)
    recall, ndcg = accuracy(lists, wanted, who)
    return Ranking(who, recall, ndcg, coverage(lists, past.items), diversity(lists, model.items))


def recommended(
    model: Factors, users: NDArray[np.intp], known: Rows, count: int
) -> NDArray[np.intp]:
    """(V, count) the lists of some customers, without what is ``known`` of them."""
    some = min(AT_ONCE, max(SCORES // max(len(model.items), 1), 1))
    blocks = [
        _block(model, users[first : first + some], known, count)
        for first in range(0, len(users), some)
    ]
    return np.concatenate(blocks or [np.zeros((0, count), np.intp)])


def _block(model: Factors, users: NDArray[np.intp], known: Rows, count: int) -> NDArray[np.intp]:
    table = scores(model, model.users[users])
    degree = known.degree[users]
    row = np.repeat(np.arange(len(users)), degree)
    first = np.repeat(known.start[users] - np.cumsum(degree) + degree, degree)
    table[row, known.column[first + np.arange(len(row))]] = -np.inf
    return ranked(table, count)


def accuracy(
    lists: NDArray[np.integer], wanted: Rows, users: NDArray[np.intp]
) -> tuple[Doubles, Doubles]:
    """(V,) recall and (V,) NDCG of lists (V, K) of customers who have held-back items."""
    count = lists.shape[1]
    row = np.repeat(np.arange(len(wanted.degree)), wanted.degree)
    pairs = row * np.int64(wanted.columns) + wanted.column
    hit = np.isin(users[:, None] * np.int64(wanted.columns) + lists, pairs)
    discount = 1.0 / np.log2(np.arange(2, count + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discount)])[np.minimum(wanted.degree[users], count)]
    return hit.sum(axis=1) / wanted.degree[users], hit @ discount / ideal


def coverage(lists: NDArray[np.integer], items: int) -> float:
    """The share of ``items`` that occur in any list."""
    return len(np.unique(lists)) / max(items, 1)


def diversity(lists: NDArray[np.integer], vectors: NDArray[Any]) -> float:
    """1 less the mean cosine of two different items of a list (V, K), by their vectors (I, D)."""
    size = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, size, out=np.zeros_like(vectors), where=size > 0)
    if unit.shape[1] == 0 or lists.shape[1] < 2 or not len(lists):
        return float("nan")
    count, total = lists.shape[1], 0.0
    for first in range(0, len(lists), AT_ONCE):
        chunk = unit[lists[first : first + AT_ONCE]].astype(np.float64)
        summed = chunk.sum(axis=1)
        total += float((summed**2).sum() - (chunk**2).sum())
    return float(1.0 - total / (len(lists) * count * (count - 1)))


def interval(values: Doubles, *, draws: int = 2000, seed: int = 0) -> Interval:
    """The mean of ``values`` (V,), one per customer, with a 95 % bootstrap interval.

    Given the differences of two models' values, the comparison is paired.
    """
    draw = np.random.default_rng(seed)
    means = [float(values[draw.integers(0, len(values), len(values))].mean()) for _ in range(draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))
