"""Who did what with which item: one compact structure, read by customer or by item, split by time.

Letters: N interactions, U customers ("users"), I items, K factors. A pair that occurs more than
once is one entry of :func:`by_user` and :func:`by_item`, with its values added up.

>>> events = interactions([0, 0, 1, 1, 1], [2, 0, 2, 1, 1], at=[5, 1, 2, 3, 4])
>>> by_user(events).column
array([0, 2, 1, 2], dtype=int32)
>>> past, future = split_by_time(events, share=0.4)
>>> past.at.tolist(), future.at.tolist()
([1, 2, 3], [5, 4])
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


class Interactions(NamedTuple):
    """Events between customers and items, in any order.

    Attributes:
        user: (N,) int32, 0 to ``users`` - 1.
        item: (N,) int32, 0 to ``items`` - 1.
        value: (N,) float32, greater than 0: a rating, a count, or a weight of the kind of event.
        at: (N,) int64, when; any unit.
        users: how many customers there are, with events or without.
        items: how many items there are.
    """

    user: Ints
    item: Ints
    value: Floats
    at: NDArray[np.int64]
    users: int
    items: int


class Rows(NamedTuple):
    """A sparse matrix by rows, columns ascending in each (compressed sparse rows).

    Attributes:
        start: (R + 1,) int64; row r is ``column[start[r]:start[r + 1]]``.
        column: (N,) int32.
        value: (N,) float32.
        columns: how many columns there are.
    """

    start: NDArray[np.int64]
    column: Ints
    value: Floats
    columns: int

    @property
    def degree(self) -> NDArray[np.int64]:
        """(R,) entries of each row."""
        return np.diff(self.start)

    def row(self, number: int) -> Ints:
        """The columns of one row."""
        return self.column[self.start[number] : self.start[number + 1]]


def interactions(
    user: ArrayLike,
    item: ArrayLike,
    value: ArrayLike | None = None,
    at: ArrayLike | None = None,
    *,
    users: int | None = None,
    items: int | None = None,
) -> Interactions:
    """Events from arrays; every value is 1 and every time 0 unless given.

    Raises:
        ValueError: lengths differ, an index lies outside, or a value is not finite and positive.
    """
    who, what = np.asarray(user), np.asarray(item)
    values = np.ones(who.shape) if value is None else np.asarray(value)
    times = np.zeros(who.shape, np.int64) if at is None else np.asarray(at)
    if not who.shape == what.shape == values.shape == times.shape or who.ndim != 1:
        raise ValueError("user, item, value and at must be one-dimensional and equally long")
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError("every value must be finite and greater than 0")
    rows = _count("user", who, users)
    columns = _count("item", what, items)
    return Interactions(
        who.astype(np.int32), what.astype(np.int32), values.astype(np.float32),
        times.astype(np.int64), rows, columns,
    )  # fmt: skip


def by_user(events: Interactions) -> Rows:
    """One row per customer."""
    return _rows(events.user, events.item, events.value, (events.users, events.items))


def by_item(events: Interactions) -> Rows:
    """One row per item."""
    return _rows(events.item, events.user, events.value, (events.items, events.users))


def chosen(events: Interactions, which: NDArray[np.bool_] | NDArray[np.intp]) -> Interactions:
    """The events that a mask or an index picks, among the same customers and items."""
    return events._replace(
        user=events.user[which], item=events.item[which],
        value=events.value[which], at=events.at[which],
    )  # fmt: skip


def split_by_time(events: Interactions, *, share: float) -> tuple[Interactions, Interactions]:
    """The past, and the latest ``share`` of all events: what a model would have had to foresee.

    Raises:
        ValueError: ``share`` is not between 0 and 1.
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"share must lie between 0 and 1, not {share}")
    order = np.argsort(events.at, kind="stable")
    late = np.zeros(len(order), bool)
    late[order[len(order) - int(len(order) * share) :]] = True
    return chosen(events, ~late), chosen(events, late)


def split_by_chance(
    events: Interactions, *, share: float, seed: int
) -> tuple[Interactions, Interactions]:
    """Each event is held back with probability ``share``, whenever it happened."""
    kept = np.random.default_rng(seed).random(len(events.user)) < 1.0 - share
    return chosen(events, kept), chosen(events, ~kept)


def folds(
    events: Interactions, *, count: int, seed: int
) -> Iterator[tuple[Interactions, Interactions]]:
    """``count`` pairs (rest, fold) for cross-validation; every event is in one fold."""
    where = np.random.default_rng(seed).permutation(len(events.user)) % count
    for fold in range(count):
        yield chosen(events, where != fold), chosen(events, where == fold)


def _count(what: str, index: NDArray[np.generic], given: int | None) -> int:
    if index.size and not np.issubdtype(index.dtype, np.integer):
        raise ValueError(f"{what} must be whole numbers, not {index.dtype}")
    least, most = (int(index.min()), int(index.max())) if index.size else (0, -1)
    count = most + 1 if given is None else given
    if least < 0 or most >= count:
        raise ValueError(f"{what} must lie between 0 and {count - 1}")
    return count


def _rows(row: Ints, column: Ints, value: Floats, shape: tuple[int, int]) -> Rows:
    matrix = sparse.csr_array((value, (row, column)), shape=shape)
    matrix.sum_duplicates()
    return Rows(
        matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32),
        matrix.data.astype(np.float32), shape[1],
    )  # fmt: skip
