"""Linear arms over very many features: as if the features were independent of each other.

A matrix per arm cannot be kept for 100,000 columns. Kept are, per arm and column, ``Σ x``, ``Σ x²``
and ``Σ r x``, in integers: exact, order-free, reversible, as steady after 10⁷ rows as after ten.
Each column's coefficient is the ridge regression of the rewards on that column alone, both taken
from the arm's own means:

    θ_j = (Σ r x_j − r̄ Σ x_j) / (Σ x_j² − (Σ x_j)²/n + λ)

**The approximation:** where features are independent, that is what the full regression tends to;
where two say the same, each takes the whole effect, and the prediction counts it twice. Hashed
categories (:func:`bandits.features.hashed`) that hang together should be crossed before hashing, or
the full model used. The noise is the rewards' variance, with nothing taken off for what is
explained: beliefs are rather too wide than too narrow.

One λ for all arms and columns maximises the evidence under the same approximation.

Source: ridge regression, Hoerl and Kennard, Technometrics 12 (1970); diagonal posteriors for large
sparse models, Chapelle and Li, NIPS 2011; hashed features, Weinberger et al., ICML 2009.
"""

from typing import NamedTuple

import numpy as np

from bandits import ledger
from bandits.backend import Backend
from bandits.features import ONE
from bandits.regressors import linear
from bandits.regressors.regressor import Prediction, Regressor
from bandits.types import FEATURE_BITS, Array, Batch, Contexts

#: Rows that an arm's starting mean counts for.
MEAN_WEIGHT = 1.0


class DiagonalSums(NamedTuple):
    """The integer ledger; P columns: segments but the first, then features. No intercept.

    Attributes:
        trials: (A,) int64, number of decisions.
        conversions: (A,) int64, number of decisions that converted.
        reward: (A,) int64, Σ r.
        square_high: (A,) int64, Σ ``r*r >> 32``.
        square_low: (A,) int64, Σ ``r*r & (2**32 - 1)``.
        first: (A, P) int64, Σ x in 2**-12.
        second: (A, P) int64, Σ x² in 2**-24.
        moment: (A, P) int64, Σ r x in 2**-12.
    """

    trials: Array
    conversions: Array
    reward: Array
    square_high: Array
    square_low: Array
    first: Array
    second: Array
    moment: Array


class DiagonalBelief(NamedTuple):
    """The posterior.

    Attributes:
        base: (A,) float64, what an arm earns where all columns are 0.
        mean: (A, P) float64, posterior mean of θ.
        inverse: (A, P) float64, posterior variance of θ in units of σ².
        base_inverse: (A,) float64, that of the arm's mean.
        noise: () float64, σ.
        freedom: () float64, degrees of freedom of the Student t.
        precision: () float64, λ.
    """

    base: Array
    mean: Array
    inverse: Array
    base_inverse: Array
    noise: Array
    freedom: Array
    precision: Array


def regressor(
    *,
    arms: int,
    segments: int,
    features: int,
    space: Backend,
    precision: float | None = None,
    spread: float | None = None,
    start: str = "nothing",
) -> Regressor:
    """The regressor; :mod:`bandits.policies.linear_options` says what the options mean."""
    width = linear.columns(segments=segments, features=features) - 1

    def init() -> DiagonalSums:
        count, wide = np.zeros(arms, np.int64), np.zeros((arms, width), np.int64)
        return DiagonalSums(count, count, count, count, count, wide, wide, wide)

    def update(state: DiagonalSums, batch: Batch) -> DiagonalSums:
        x = linear.design(batch.contexts, segments=segments, space=space)[:, 1:]
        return ledger.add(state, contribution(x, batch, arms=arms, space=space))

    def believe(state: DiagonalSums) -> DiagonalBelief:
        return posterior(
            state, space=space, precision=precision, spread=spread, centred=start == "mean"
        )

    def predict(belief: DiagonalBelief, contexts: Contexts) -> Prediction:
        xp = space.xp
        x = linear.design(contexts, segments=segments, space=space)[:, 1:] / float(ONE)
        mean = xp.asarray(belief.base) + x @ xp.asarray(belief.mean).T
        width = xp.asarray(belief.base_inverse) + (x * x) @ xp.asarray(belief.inverse).T
        return Prediction(mean, belief.noise * xp.sqrt(width), xp.full(mean.shape, belief.freedom))

    return Regressor("linear_diagonal", init, update, space.jit(believe), predict)


def contribution(x: Array, batch: Batch, *, arms: int, space: Backend) -> DiagonalSums:
    """The sums of one batch over columns x (B, P) of int64 in 2**-12.

    Raises:
        ValueError, TypeError: as for :func:`bandits.ledger.contribution`.
    """
    xp = space.xp
    flat = batch._replace(contexts=batch.contexts._replace(segment=batch.contexts.segment * 0))
    sums = ledger.contribution(flat, segments=1, arms=arms, backend=space)
    arm, sign, reward = (xp.asarray(field) for field in (batch.arm, batch.sign, batch.reward))
    high = reward >> linear.SPLIT
    low = reward - (high << linear.SPLIT)
    totals = [xp.zeros((arms, x.shape[1]), dtype=xp.int64) for _ in range(4)]
    for begin in range(0, x.shape[0], linear.EXACT_ROWS):
        part = slice(begin, begin + linear.EXACT_ROWS)
        mine = (arm[part] == xp.arange(arms)[:, None]) * sign[part]
        # Products below 2**32, whose sums float64 holds without rounding: see regressors/linear.py.
        for index, factor in enumerate((None, x[part], high[part, None], low[part, None])):
            terms = x[part] if factor is None else x[part] * factor
            more = mine.astype(xp.float64) @ terms.astype(xp.float64)
            totals[index] = totals[index] + more.astype(xp.int64)
    first, second, upper, lower = totals
    return DiagonalSums(
        sums.trials[0], sums.conversions[0], sums.reward[0], sums.square_high[0],
        sums.square_low[0], first, second, (upper << linear.SPLIT) + lower,
    )  # fmt: skip


def posterior(
    sums: DiagonalSums, *, space: Backend, precision: float | None = None,
    spread: float | None = None, centred: bool = False,
) -> DiagonalBelief:  # fmt: skip
    """The belief that sums amount to; see the module for the model."""
    xp = space.xp
    trials, reward = xp.asarray(sums.trials) * 1.0, xp.asarray(sums.reward) * 1.0
    square = xp.asarray(sums.square_high).sum() * 2.0**32 + xp.asarray(sums.square_low).sum()
    rows = trials.sum()
    everyone = reward.sum() / xp.maximum(rows, 1.0)
    noise = xp.sqrt(linear.variance(square, everyone, rows, xp)) if spread is None else spread
    offset = everyone if centred else 0.0
    count = xp.maximum(trials, 1.0)[:, None]
    first = xp.asarray(sums.first) / 2.0**FEATURE_BITS
    squares = xp.asarray(sums.second) / 2.0 ** (2 * FEATURE_BITS) - first**2 / count
    along = xp.asarray(sums.moment) / 2.0**FEATURE_BITS - (reward[:, None] / count) * first
    squares = xp.maximum(squares, 0.0)
    if precision is None:
        grid = xp.asarray(linear.PRECISIONS)
        told = xp.stack([_evidence(squares, along / noise, one, xp) for one in grid])
        chosen = grid[xp.argmax(told)]
    else:
        chosen = xp.asarray(float(precision))
    inverse = 1.0 / (squares + chosen)
    mean = along * inverse
    level = offset + (reward - offset * trials) / (trials + MEAN_WEIGHT)
    return DiagonalBelief(
        level - (first / count * mean).sum(axis=1),
        mean,
        inverse,
        1.0 / (trials + MEAN_WEIGHT),
        xp.asarray(noise) * 1.0,
        xp.asarray(np.inf) if spread is not None else linear.NOISE_WEIGHT + rows,
        chosen,
    )


def _evidence(squares: Array, along: Array, precision: Array, xp: Array) -> Array:
    """Log evidence () of one λ with the noise as it is, up to a term that all share."""
    shrunk = squares + precision
    return 0.5 * (xp.log(precision / shrunk) + along**2 / shrunk).sum()
