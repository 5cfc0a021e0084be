"""Bayesian personalised ranking: a chosen item should score above one that was not chosen.

    maximise Σ log σ(x_u · (y_i - y_j) + b_i - b_j) - λ (|x|² + |y|² + b²)

over random interactions (u, i) and items j, drawn evenly, that u has not chosen. Stochastic
gradients in minibatches; every row's steps shrink with the gradients it has seen (one number per
row), so that rare and popular items learn at their own pace. Pairs whose j turns out to be chosen
count for nothing.

Sources: Rendle, Freudenthaler, Gantner and Schmidt-Thieme, UAI 2009; Duchi, Hazan and Singer,
JMLR 2011 (Adagrad).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bandits.recommender.factors import Factors
from bandits.recommender.interactions import Interactions, Rows, by_user
from bandits.types import Array

#: Interactions of a step.
ROWS = 2048
#: At the most likely score of all, 0, σ' is a quarter and the gradient's factor a half.
CURVATURE = 0.5


class Tables(NamedTuple):
    """What is learnt: vectors with the bias as last column, and squared gradients so far.

    Attributes:
        users: (U, K + 1); the last column is a constant 1, whose partner is the item's bias.
        items: (I, K + 1).
        of_users: (U,) mean squared gradients, added up.
        of_items: (I,).
    """

    users: Array
    items: Array
    of_users: Array
    of_items: Array


class History(NamedTuple):
    """The interactions on the device.

    Attributes:
        user: (N,) int32, ascending.
        item: (N,) int32, ascending for each customer.
        start: (U + 1,) int32.
    """

    user: Array
    item: Array
    start: Array


def fit(
    events: Interactions,
    *,
    factors: int = 64,
    regularization: float = 0.01,
    rate: float = 0.1,
    iterations: int = 30,
    seed: int = 0,
) -> Factors:
    """Fits the model; an iteration draws as many interactions as there are."""
    rows = by_user(events)
    draw = np.random.default_rng(seed)
    sizes = (events.users, events.items)
    users, items = (draw.normal(0, 0.1 / np.sqrt(factors), (n, factors + 1)) for n in sizes)
    users[:, -1], items[:, -1] = 1.0, 0.0
    tables = Tables(*(jnp.asarray(t, jnp.float32) for t in (users, items, *map(np.zeros, sizes))))
    steps = jnp.int32(max(1, len(rows.column) // ROWS))
    options = jnp.float32(rate), jnp.float32(regularization)
    history, key = _history(rows), jax.random.key(seed)
    for number in range(iterations if len(rows.column) else 0):
        tables = _epoch(tables, history, jax.random.fold_in(key, number), steps, *options)
    found = np.asarray(tables.items)
    return Factors.ranking(
        np.asarray(tables.users)[:, :-1], found[:, :-1], found[:, -1],
        chance=np.ones(events.items), curvature=CURVATURE,
    )  # fmt: skip


def _history(rows: Rows) -> History:
    user = np.repeat(np.arange(len(rows.degree), dtype=np.int32), rows.degree)
    return History(
        jnp.asarray(user), jnp.asarray(rows.column), jnp.asarray(rows.start.astype(np.int32))
    )


@functools.partial(jax.jit, donate_argnums=0)
def _epoch(
    tables: Tables, history: History, key: Array, steps: Array, rate: Array, ridge: Array
) -> Tables:
    def step(number: Array, now: Tables) -> Tables:
        which, other = jax.random.split(jax.random.fold_in(key, number))
        event = jax.random.randint(which, (ROWS,), 0, history.user.shape[0], jnp.int32)
        j = jax.random.randint(other, (ROWS,), 0, now.items.shape[0], jnp.int32)
        u, i = history.user[event], history.item[event]
        return _stepped(now, u, i, j, ~_has_chosen(history, u, j), rate, ridge)

    learnt: Tables = jax.lax.fori_loop(0, steps, step, tables)
    return learnt


def _stepped(
    now: Tables, u: Array, i: Array, j: Array, counts: Array, rate: Array, ridge: Array
) -> Tables:
    """The tables after one step on the triples (u, i, j) that count."""
    x, gap = now.users[u], now.items[i] - now.items[j]
    pull = jax.nn.sigmoid(-(x * gap).sum(axis=1))[:, None]
    moves = (
        pull * gap - ridge * x,
        pull * x - ridge * now.items[i],
        -pull * x - ridge * now.items[j],
    )
    moved, better, worse = (move * counts[:, None] for move in moves)
    moved = moved.at[:, -1].set(0.0)
    of_users = now.of_users.at[u].add((moved**2).mean(axis=1))
    both, change = jnp.concatenate([i, j]), jnp.concatenate([better, worse])
    of_items = now.of_items.at[both].add((change**2).mean(axis=1))
    pace_u = rate * jax.lax.rsqrt(of_users[u] + 1e-8)[:, None]
    pace_i = rate * jax.lax.rsqrt(of_items[both] + 1e-8)[:, None]
    return Tables(
        now.users.at[u].add(pace_u * moved), now.items.at[both].add(pace_i * change),
        of_users, of_items,
    )  # fmt: skip


def _has_chosen(history: History, user: Array, item: Array) -> Array:
    """(B,) whether each customer has chosen the item: a binary search in the customer's row."""
    last = history.item.shape[0] - 1

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) // 2
        below = history.item[jnp.minimum(middle, last)] < item
        open_ = low < high
        return jnp.where(open_ & below, middle + 1, low), jnp.where(open_ & ~below, middle, high)

    ends = history.start[user], history.start[user + 1]
    place, _ = jax.lax.fori_loop(0, 32, halve, ends)
    found: Array = (place < ends[1]) & (history.item[jnp.minimum(place, last)] == item)
    return found
