"""Preferences by alternating least squares: who chose what, and how surely the rest was not.

    minimise Σ_ui c_ui (p_ui - x_u · y_i)² + Σ_u λ_u |x_u|² + Σ_i λ_i |y_i|²
    p = 1 and c = 1 + α value where there is an interaction, p = 0 and c = 1 elsewhere

Each half step solves all customers (then all items) by a few conjugate-gradient steps from where
they were; nothing is ever summed over pairs without interaction, because YᵀY says all of them.
``scaling`` ν lets the ridge grow with what a row has to fit: λ_u = λ (s_u / mean s)^ν with
s_u = I + α Σ value, which is the weight of all of the row's terms.

Sources: Hu, Koren and Volinsky, ICDM 2008; Takács, Pilászy and Tikk, RecSys 2011 (conjugate
gradients); Rendle, Krichene, Zhang and Koren, RecSys 2022 (scaling).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from bandits.recommender.blocks import Block, blocks, emptied, padded, updated
from bandits.recommender.factors import PREFERENCE, Factors
from bandits.recommender.interactions import Interactions, Rows, by_item, by_user
from bandits.types import Array

#: Conjugate-gradient steps of a half step.
STEPS = 3
#: What a length is at least where one divides by it.
TINY = 1e-30


def fit(
    events: Interactions,
    *,
    factors: int = 64,
    confidence: float = 20.0,
    regularization: float = 1.0,
    scaling: float = 0.0,
    iterations: int = 15,
    seed: int = 0,
    start: Factors | None = None,
    each: Callable[[int], None] | None = None,
) -> Factors:
    """Fits the model.

    Args:
        events: the interactions; customers and items without any end at zero.
        factors: K.
        confidence: α.
        regularization: λ.
        scaling: ν, 0 for one ridge for all.
        iterations: how often both sides are solved.
        seed: of the random start.
        start: a model to go on from (the same customers, items and K), instead of a random one.
        each: is called with the iteration's number after each.
    """
    people, things = by_user(events), by_item(events)
    x, y = _first(people, things, factors, seed, start)
    of_people, of_things = (
        blocks(rows, _ridge(rows, confidence, regularization, scaling)) for rows in (people, things)
    )
    for number in range(iterations):
        x = _half(x, y, of_people, confidence)
        y = _half(y, x, of_things, confidence)
        if each is not None:
            y.block_until_ready()
            each(number)
    users, items = np.asarray(x)[:-1], np.asarray(y)[:-1]
    ridge = np.eye(factors) * regularization
    return Factors.make(
        users, items, kind=PREFERENCE, confidence=confidence,
        user_prior=items.T @ items + ridge, item_prior=users.T @ users + ridge,
    )  # fmt: skip


def _first(
    people: Rows, things: Rows, factors: int, seed: int, start: Factors | None
) -> tuple[Array, Array]:
    """Where both sides begin; rows without entries, which no half step touches, at zero."""
    draw, tables = np.random.default_rng(seed), []
    given = None if start is None else (start.users, start.items)
    for side, rows in enumerate((people, things)):
        shape = (len(rows.degree), factors)
        table = draw.normal(0.0, 0.1 / np.sqrt(factors), shape) if given is None else given[side]
        there = (rows.degree > 0)[:, None]
        tables.append(padded(jnp.asarray((table * there).astype(np.float32))))
    return tables[0], tables[1]


def _ridge(
    rows: Rows, confidence: float, regularization: float, scaling: float
) -> NDArray[np.float64]:
    """(R,) the ridge of every row."""
    total = np.concatenate([[0.0], np.cumsum(rows.value, dtype=np.float64)])
    weight = rows.columns + confidence * np.diff(total[rows.start])
    ridge: NDArray[np.float64] = regularization * (weight / max(weight.mean(), 1.0)) ** scaling
    return ridge


def _half(x: Array, y: Array, of_rows: list[Block], confidence: float) -> Array:
    y = emptied(y)
    return updated(_solve, x, y, of_rows, _gram(y), jnp.float32(confidence))


@jax.jit
def _gram(y: Array) -> Array:
    return y.T @ y


@jax.jit
def _solve(now: Array, theirs: Array, block: Block, gram: Array, confidence: Array) -> Array:
    """The rows (B, K) of one block after ``STEPS`` steps from where they are ``now``."""
    weight = confidence * block.value
    ridge = block.ridge[:, None]

    def times(p: Array) -> Array:
        inner = jnp.einsum("blk,bk->bl", theirs, p) * weight
        return p @ gram + ridge * p + jnp.einsum("blk,bl->bk", theirs, inner)

    # What is left of the right-hand side, less times(now), in one pass over ``theirs``.
    missing = 1.0 + weight * (1.0 - jnp.einsum("blk,bk->bl", theirs, now))
    left = jnp.einsum("blk,bl->bk", theirs, missing) - now @ gram - ridge * now
    direction, size = left, _square(left)
    for step in range(STEPS):
        image = times(direction)
        reach = size / jnp.maximum((direction * image).sum(axis=1, keepdims=True), TINY)
        now = now + reach * direction
        if step + 1 < STEPS:
            left = left - reach * image
            fresh = _square(left)
            direction = left + fresh / jnp.maximum(size, TINY) * direction
            size = fresh
    return now


def _square(rows: Array) -> Array:
    """(B, 1) the squared length of each row."""
    return (rows * rows).sum(axis=1, keepdims=True)
