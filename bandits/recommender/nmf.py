"""Non-negative factors of who chose what: parts that add up, and can be read one by one.

    minimise |A - X Yᵀ|² + λ (|X|² + |Y|²)   with X, Y >= 0 and A = 1 where there is an interaction

by hierarchical alternating least squares: one factor after another is set to the best value that
is not negative, all others held, which never makes the fit worse.

Sources: Lee and Seung, Nature 1999; Cichocki and Phan, IEICE Transactions 2009 (this algorithm).
Newcomers are folded in by the same equations without the bound.
"""

import jax
import jax.numpy as jnp
import numpy as np

from bandits.recommender.blocks import Block, blocks, emptied, padded, updated
from bandits.recommender.factors import PREFERENCE, Factors
from bandits.recommender.interactions import Interactions, by_item, by_user
from bandits.types import Array

#: How often a half step goes through the factors.
SWEEPS = 2
#: What a divisor is at least.
TINY = 1e-12


def fit(
    events: Interactions,
    *,
    factors: int = 32,
    regularization: float = 1.0,
    iterations: int = 30,
    seed: int = 0,
) -> Factors:
    """Fits the model; customers and items without interactions end at zero."""
    draw, tables, parts = np.random.default_rng(seed), [], []
    for rows in (by_user(events), by_item(events)):
        first = draw.random((len(rows.degree), factors)) * (rows.degree > 0)[:, None]
        tables.append(padded(jnp.asarray((first / np.sqrt(factors)).astype(np.float32))))
        parts.append(blocks(rows, np.full(len(rows.degree), regularization)))
    x, y = tables
    for _ in range(iterations):
        x = updated(_solve, x, y := emptied(y), parts[0], _gram(y))
        y = updated(_solve, y, x := emptied(x), parts[1], _gram(x))
    users, items = np.asarray(x)[:-1], np.asarray(y)[:-1]
    ridge = np.eye(factors) * max(regularization, 1e-6)
    return Factors.make(
        users, items, kind=PREFERENCE,
        user_prior=items.T @ items + ridge, item_prior=users.T @ users + ridge,
    )  # fmt: skip


@jax.jit
def _gram(y: Array) -> Array:
    return y.T @ y


@jax.jit
def _solve(now: Array, theirs: Array, block: Block, gram: Array) -> Array:
    """The rows (B, K) of one block after ``SWEEPS`` sweeps over their factors."""
    right = theirs.sum(axis=1)

    def one(step: Array, rows: Array) -> Array:
        k = step % gram.shape[0]
        curve = gram[k, k] + block.ridge
        slope = right[:, k] - rows @ gram[:, k] - block.ridge * rows[:, k]
        best = jnp.maximum(rows[:, k] + slope / jnp.maximum(curve, TINY), 0.0)
        return rows.at[:, k].set(best)

    solved: Array = jax.lax.fori_loop(0, SWEEPS * gram.shape[0], one, now)
    return solved
