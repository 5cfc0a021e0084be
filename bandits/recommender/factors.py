"""What every model is once it is fitted: vectors and biases of customers and items.

    score(u, i) = mean + user_bias[u] + item_bias[i] + users[u] · items[i]

A named tuple of arrays, so ``bandits.artefact`` writes it as it stands. Nothing here imports JAX.

>>> model = Factors.without_vectors(np.array([3.0, 1.0, 2.0]), users=2)
>>> top(model, np.zeros(0), 2, seen=np.array([0]))
array([2, 1])
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

#: What a model's scores say, which decides how a newcomer is folded in (``fold_in.py``).
RATING, PREFERENCE, RANKING = 0, 1, 2


class Factors(NamedTuple):
    """A fitted model.

    Attributes:
        users: (U, K) float32.
        items: (I, K) float32.
        user_bias: (U,) float32.
        item_bias: (I,) float32.
        mean: () float32, what every score starts from.
        kind: () int32, ``RATING`` (the score is a value), ``PREFERENCE`` (near 1 where there is
            an interaction, near 0 elsewhere) or ``RANKING`` (only differences mean something).
        confidence: () float32, the weight α of an interaction over none (``PREFERENCE``).
        user_mean: (K,) float32, where a customer without interactions is.
        item_mean: (K,) float32, the same for an item.
        user_prior: (K, K) float32, what a customer's normal equations hold before any interaction.
        item_prior: (K, K) float32, the same for an item.
        user_step: (K, K) float32, what each interaction adds to them, whatever it is with.
        item_step: (K, K) float32, the same for an item.
        centre: (K,) float32, the item that a chosen one is compared with (``RANKING``).
    """

    users: Floats
    items: Floats
    user_bias: Floats
    item_bias: Floats
    mean: Floats
    kind: NDArray[np.int32]
    confidence: Floats
    user_mean: Floats
    item_mean: Floats
    user_prior: Floats
    item_prior: Floats
    user_step: Floats
    item_step: Floats
    centre: Floats

    @classmethod
    def make(
        cls,
        users: NDArray[Any],
        items: NDArray[Any],
        *,
        kind: int,
        user_bias: NDArray[Any] | None = None,
        item_bias: NDArray[Any] | None = None,
        mean: float = 0.0,
        confidence: float = 0.0,
        user_prior: NDArray[Any] | None = None,
        item_prior: NDArray[Any] | None = None,
        user_step: NDArray[Any] | None = None,
        item_step: NDArray[Any] | None = None,
        centre: NDArray[Any] | None = None,
    ) -> "Factors":
        """A model with zeros for what is not given, everything in float32."""
        k = users.shape[1]

        def real(array: NDArray[Any] | None, *shape: int) -> Floats:
            return np.zeros(shape, np.float32) if array is None else np.asarray(array, np.float32)

        return cls(
            real(users), real(items),
            real(user_bias, len(users)), real(item_bias, len(items)),
            np.asarray(mean, np.float32), np.asarray(kind, np.int32),
            np.asarray(confidence, np.float32),
            real(_mean(users)),
            real(_mean(items)),
            real(user_prior, k, k), real(item_prior, k, k),
            real(user_step, k, k), real(item_step, k, k), real(centre, k),
        )  # fmt: skip

    @classmethod
    def ranking(
        cls,
        users: NDArray[Any],
        items: NDArray[Any],
        item_bias: NDArray[Any],
        *,
        chance: NDArray[Any],
        curvature: float,
    ) -> "Factors":
        """A RANKING model, with what folds newcomers in.

        Args:
            users: (U, K).
            items: (I, K).
            item_bias: (I,).
            chance: (I,) how often each item is what a chosen one is compared with.
            curvature: how much of the items' covariance an interaction adds to the equations.
        """
        share = chance / chance.sum()
        centre = share @ items
        people = _covariance(users, np.full(len(users), 1.0 / max(len(users), 1)), _mean(users))
        things = _covariance(items, share, centre)
        return cls.make(
            users, items, kind=RANKING, item_bias=item_bias, centre=centre,
            user_prior=np.linalg.inv(people), item_prior=np.linalg.inv(things),
            user_step=curvature * things, item_step=curvature * people,
        )  # fmt: skip

    @classmethod
    def without_vectors(cls, item_bias: NDArray[Any], *, users: int) -> "Factors":
        """A model that says the same to every customer."""
        empty = np.zeros((users, 0), np.float32), np.zeros((len(item_bias), 0), np.float32)
        return cls.make(*empty, kind=RANKING, item_bias=item_bias)


def grown(model: Factors, *, users: int, items: int) -> Factors:
    """The model for more customers and items than it was fitted to: the last one, on new data.

    A new customer is the mean one; a new item scores like the least liked of the known ones.
    """
    extra = users - len(model.users), items - len(model.items)
    if min(extra) < 0:
        raise ValueError("a model can grow, not shrink")
    people = np.concatenate([model.users, np.tile(model.user_mean, (extra[0], 1))])
    things = np.pad(model.items, ((0, extra[1]), (0, 0)))
    lowest = model.item_bias.min() if len(model.item_bias) else 0.0
    return model._replace(
        users=people.astype(np.float32), items=things,
        user_bias=np.pad(model.user_bias, (0, extra[0])),
        item_bias=np.pad(model.item_bias, (0, extra[1]), constant_values=lowest),
    )  # fmt: skip


def _mean(rows: NDArray[Any]) -> NDArray[Any]:
    """(K,) the mean of the rows that say anything: those without events are zero."""
    told = rows[(rows != 0).any(axis=1)]
    mean: NDArray[Any] = told.mean(axis=0) if len(told) else np.zeros(rows.shape[1])
    return mean


def _covariance(rows: NDArray[Any], share: NDArray[Any], mean: NDArray[Any]) -> NDArray[Any]:
    """(K, K) the weighted covariance of ``rows`` (R, K), made a little rounder to be inverted."""
    away = rows - mean
    found = (away.T * share) @ away
    ridge = 1e-3 * (np.trace(found) / max(len(found), 1) + 1e-6)
    rounder: NDArray[Any] = found + ridge * np.eye(len(found))
    return rounder


#: What ``artefact.from_bytes`` expects.
EMPTY = Factors.make(np.zeros((0, 0)), np.zeros((0, 0)), kind=RATING)


def scores(model: Factors, vectors: NDArray[Any]) -> Floats:
    """(B, I) scores of all items for customers' vectors (B, K), less the customers' own biases.

    A customer's bias moves all items alike, so it is left out here; :func:`predicted` has it.
    """
    found: Floats = np.asarray(vectors, np.float32) @ model.items.T + model.item_bias
    return found


def predicted(
    model: Factors, user: NDArray[np.integer], item: NDArray[np.integer]
) -> NDArray[np.float32]:
    """(N,) scores of pairs."""
    pairs = np.einsum("nk,nk->n", model.users[user], model.items[item])
    found: Floats = model.mean + model.user_bias[user] + model.item_bias[item] + pairs
    return found


def top(
    model: Factors,
    vector: NDArray[Any],
    count: int,
    *,
    seen: NDArray[np.integer] | None = None,
) -> NDArray[np.intp]:
    """The ``count`` best items for one customer's vector (K,), best first, without ``seen``.

    Fewer where fewer are left.
    """
    found = scores(model, np.asarray(vector)[None])[0]
    if seen is not None:
        found[seen] = -np.inf
    best = ranked(found[None], count)[0]
    left: NDArray[np.intp] = best[found[best] > -np.inf]
    return left


def ranked(table: NDArray[Any], count: int) -> NDArray[np.intp]:
    """(B, count) columns of the greatest entries of each row, greatest first."""
    count = min(count, table.shape[1])
    falling = -np.asarray(table)
    best = np.sort(np.argpartition(falling, count - 1, axis=1)[:, :count], axis=1)
    order = np.argsort(np.take_along_axis(falling, best, axis=1), axis=1, kind="stable")
    found: NDArray[np.intp] = np.take_along_axis(best, order, axis=1)
    return found
