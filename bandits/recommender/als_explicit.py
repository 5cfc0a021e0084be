"""Ratings by alternating least squares: a mean, biases of customers and items, and K factors.

    minimise Σ_ui (r_ui - mean - a_u - b_i - x_u · y_i)²
             + λ Σ_u n_u (|x_u|² + a_u²) + λ Σ_i n_i (|y_i|² + b_i²)

over the ratings that there are. A row's bias and factors are solved together, as one ridge
regression on the other side's factors and a column of ones; the ridge grows with the n_u ratings
of the row, so that a row of many is not overfitted either.

Source: Zhou, Wilkinson, Schreiber and Pan, AAIM 2008 (weighted λ); Koren, KDD 2008 (biases).
"""

import jax
import jax.numpy as jnp
import numpy as np

from bandits.recommender.blocks import Block, blocks, emptied, padded, updated
from bandits.recommender.factors import RATING, Factors
from bandits.recommender.interactions import Interactions, by_item, by_user
from bandits.types import Array


def fit(
    events: Interactions,
    *,
    factors: int = 20,
    regularization: float = 0.1,
    iterations: int = 10,
    seed: int = 0,
) -> Factors:
    """Fits the model; customers and items without ratings keep bias 0 and vector 0."""
    mean = float(events.value.mean(dtype=np.float64)) if len(events.value) else 0.0
    centred = events._replace(value=events.value - np.float32(mean))
    of_people, of_things = (
        blocks(rows, regularization * rows.degree) for rows in (by_user(centred), by_item(centred))
    )
    draw = np.random.default_rng(seed).normal(0.0, 0.1, (events.items, factors))
    y = padded(jnp.asarray(np.pad(draw, ((0, 0), (0, 1))).astype(np.float32)))
    x = jnp.zeros((events.users + 1, factors + 1), jnp.float32)
    for _ in range(iterations):
        x = updated(_solve, x, emptied(y), of_people, events.items)
        y = updated(_solve, y, emptied(x), of_things, events.users)
    users, items = np.asarray(x)[:-1], np.asarray(y)[:-1]
    step = np.eye(factors) * regularization
    return Factors.make(
        users[:, :-1], items[:, :-1], kind=RATING, mean=mean,
        user_bias=users[:, -1], item_bias=items[:, -1], user_step=step, item_step=step,
    )  # fmt: skip


@jax.jit
def _solve(now: Array, theirs: Array, block: Block, columns: Array) -> Array:
    """The rows (B, K + 1) of one block, the last column their bias."""
    there = (block.index < columns).astype(jnp.float32)
    design = jnp.concatenate([theirs[..., :-1], there[..., None]], axis=2)
    target = (block.value - theirs[..., -1]) * there
    unit = jnp.eye(now.shape[1], dtype=jnp.float32)
    matrix = jnp.einsum("blk,blm->bkm", design, design) + block.ridge[:, None, None] * unit
    right = jnp.einsum("blk,bl->bk", design, target)
    factor = jax.scipy.linalg.cho_factor(matrix)
    return jax.scipy.linalg.cho_solve(factor, right[..., None])[..., 0]
