"""Linear regression, one model per arm, exact over integer sums.

The reward of arm a is ``x·θ_a`` plus noise, where x holds an intercept, which segment (where there
are several) and the features. The state is integers: ``Σ x xᵀ``, ``Σ r x``, ``Σ r²`` per arm, so it
does not depend on the order or the grouping of the rows, forgets a row exactly, and does not drift
however many rows were added. Products of quantised features are below 2**32, so a float64 matrix
product over 2**20 rows has no rounding: the fast product *is* the exact one, on every backend.

The prior is ``θ_a ~ N(0, σ²/λ)`` with one σ and one λ for all arms, both learnt: λ maximises the
evidence of all rows over a grid, σ² is inverse-gamma and integrated out, which makes the belief a
Student t. One eigendecomposition per arm gives the evidence for every λ, and the posterior.

Source: normal-inverse-gamma regression and evidence, Bishop (2006) sections 3.3 and 3.5; disjoint
linear arms, Li et al., WWW 2010.

Letters: ``P`` columns of the design, ``L`` points of the grid, else as in :mod:`bandits.types`.
"""

from typing import NamedTuple

import numpy as np

from bandits import ledger
from bandits.backend import Backend, kernels
from bandits.features import ONE
from bandits.regressors.regressor import Prediction, Regressor
from bandits.types import FEATURE_BITS, Array, Batch, Contexts

#: λ that the evidence chooses from, for standardised features and in units of the noise.
PRECISIONS = 10.0 ** np.arange(-2.0, 3.1, 0.5)
#: Rows that the noise's prior counts for, and its guess: a share of the rewards' own variance.
NOISE_WEIGHT, NOISE_SHARE = 2.0, 0.25
#: Rows whose products a float64 adds up without rounding: 2**20 · 2**32 < 2**53.
EXACT_ROWS = 1 << 20
#: Rewards are split here, so that each part times a feature stays below 2**32.
SPLIT = 15


class LinearSums(NamedTuple):
    """The integer ledger of linear policies.

    Sums stay exact while an arm has fewer than 2**31 rows and ``Σ |reward| < 2**47``.

    Attributes:
        trials: (A,) int64, number of decisions.
        conversions: (A,) int64, number of decisions that converted.
        reward: (A,) int64, Σ r.
        square_high: (A,) int64, Σ ``r*r >> 32``.
        square_low: (A,) int64, Σ ``r*r & (2**32 - 1)``.
        gram: (A, P, P) int64, Σ x xᵀ in 2**-24.
        moment: (A, P) int64, Σ r x in 2**-12.
    """

    trials: Array
    conversions: Array
    reward: Array
    square_high: Array
    square_low: Array
    gram: Array
    moment: Array


class LinearBelief(NamedTuple):
    """The posterior of every arm's coefficients.

    Attributes:
        mean: (A, P) float64, posterior mean of θ.
        root: (A, P, P) float64, ``root rootᵀ`` is the posterior covariance in units of σ², lower
            triangular in numpy; None where only the mean is asked for.
        noise: () float64, σ.
        freedom: () float64, degrees of freedom of the Student t.
        offset: () float64, what is added to every prediction (0 where arms start from nothing).
        precision: () float64, λ.
    """

    mean: Array
    root: Array
    noise: Array
    freedom: Array
    offset: Array
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
    uncertain: bool = True,
) -> Regressor:
    """The regressor; :mod:`bandits.policies.linear_options` says what the options mean.

    Where the rule does not ask how ``uncertain`` a prediction is, the factors are not kept: a
    decision is then linear in the features.
    """
    width = columns(segments=segments, features=features)

    def init() -> LinearSums:
        return zeros(arms=arms, width=width)

    def update(state: LinearSums, batch: Batch) -> LinearSums:
        x = design(batch.contexts, segments=segments, space=space)
        return ledger.add(state, contribution(x, batch, arms=arms, space=space))

    def believe(state: LinearSums) -> LinearBelief:
        belief = posterior(
            state, space=space, precision=precision, spread=spread, centred=start == "mean"
        )
        return belief if uncertain else belief._replace(root=None)

    def predict(belief: LinearBelief, contexts: Contexts) -> Prediction:
        x = design(contexts, segments=segments, space=space) / float(ONE)
        return predicted(belief, x, space=space)

    def point(belief: LinearBelief, segment: int, row: Array) -> Prediction:
        found = scores_alone(segment, row, belief.mean, belief.root, belief.offset, belief.noise)
        return Prediction(*found, float(belief.freedom))

    alone = point if uncertain and space.name == "numpy" else None
    return Regressor("linear", init, update, space.jit(believe), predict, point=alone)


def columns(*, segments: int, features: int) -> int:
    """P, the columns of the design: an intercept, segments but the first, features."""
    return segments + features


def design(contexts: Contexts, *, segments: int, space: Backend) -> Array:
    """The integer design (B, P) in 2**-12: an intercept, which segment (from 1 on), features."""
    xp = space.xp
    if space.name == "numpy":
        rows, width = contexts.features.shape
        shape = rows, columns(segments=segments, features=width)
        made = np.empty(shape, contexts.features.dtype)
        made[:, 0] = ONE
        if segments > 1:
            made[:, 1:segments] = (contexts.segment[:, None] == np.arange(1, segments)) * ONE
        made[:, segments:] = contexts.features
        return made
    features = xp.asarray(contexts.features)
    parts = [xp.full((features.shape[0], 1), ONE, dtype=features.dtype), features]
    if segments > 1:
        every = xp.arange(1, segments, dtype=features.dtype)
        which = (xp.asarray(contexts.segment)[:, None] == every).astype(features.dtype) * ONE
        parts.insert(1, which)
    return xp.concatenate(parts, axis=1)


def zeros(*, arms: int, width: int) -> LinearSums:
    """Sums of no rows."""
    count = np.zeros(arms, np.int64)
    gram, moment = np.zeros((arms, width, width), np.int64), np.zeros((arms, width), np.int64)
    return LinearSums(count, count, count, count, count, gram, moment)


def contribution(x: Array, batch: Batch, *, arms: int, space: Backend) -> LinearSums:
    """The sums of one batch over a design x (B, P) of int64 in 2**-12.

    Raises:
        ValueError, TypeError: as for :func:`bandits.ledger.contribution`.
    """
    xp = space.xp
    flat = batch._replace(contexts=batch.contexts._replace(segment=batch.contexts.segment * 0))
    sums = ledger.contribution(flat, segments=1, arms=arms, backend=space)
    arm, sign, reward = (xp.asarray(field) for field in (batch.arm, batch.sign, batch.reward))
    gram = xp.zeros((arms, x.shape[1], x.shape[1]), dtype=xp.int64)
    moment = xp.zeros((arms, x.shape[1]), dtype=xp.int64)
    for begin in range(0, x.shape[0], EXACT_ROWS):
        part = slice(begin, begin + EXACT_ROWS)
        more = _products(x[part], arm[part], sign[part], reward[part], arms=arms, space=space)
        gram, moment = gram + more[..., :-1], moment + more[..., -1]
    return LinearSums(
        sums.trials[0], sums.conversions[0], sums.reward[0],
        sums.square_high[0], sums.square_low[0], gram, moment,
    )  # fmt: skip


def _products(
    x: Array, arm: Array, sign: Array, reward: Array, *, arms: int, space: Backend
) -> Array:
    """Σ x xᵀ and Σ r x of each arm side by side, (A, P, P + 1) int64."""
    xp = space.xp
    high = reward >> SPLIT
    low = reward - (high << SPLIT)
    wide = xp.concatenate([x, high[:, None], low[:, None]], axis=1).astype(xp.float64)
    signed = (x * sign[:, None]).astype(xp.float64)

    def one(which: Array) -> Array:
        if space.name == "numpy":
            mine = arm == which[0]
            product = (signed[mine].T @ wide[mine])[None]
        else:
            product = ((signed * (arm == which[0])[:, None]).T @ wide)[None]
        exact = product.astype(xp.int64)
        moment = (exact[..., -2:-1] << SPLIT) + exact[..., -1:]
        return xp.concatenate([exact[..., :-2], moment], axis=-1)

    return space.map_rows(one, (xp.arange(arms),), 1)


def posterior(
    sums: LinearSums, *, space: Backend, precision: float | None = None,
    spread: float | None = None, centred: bool = False,
) -> LinearBelief:  # fmt: skip
    """The belief that sums amount to; see the module for the model."""
    xp = space.xp
    trials = xp.asarray(sums.trials) * 1.0
    reward = xp.asarray(sums.reward) * 1.0
    square = xp.asarray(sums.square_high) * 2.0**32 + xp.asarray(sums.square_low)
    rows = trials.sum()
    mean = reward.sum() / xp.maximum(rows, 1.0)
    offset = mean if centred else mean * 0.0
    gram = xp.asarray(sums.gram) / 2.0 ** (2 * FEATURE_BITS)
    moment = xp.asarray(sums.moment) / 2.0**FEATURE_BITS - offset * gram[:, 0, :]
    total = (square - 2.0 * offset * reward + offset**2 * trials).sum()
    values, vectors = xp.linalg.eigh(gram)
    values = xp.maximum(values, 0.0)
    along = xp.einsum("apq,ap->aq", vectors, moment)
    shape = 0.5 * (NOISE_WEIGHT + rows)
    guess = 0.5 * NOISE_WEIGHT * NOISE_SHARE * variance(square.sum(), mean, rows, xp)
    if precision is None:
        grid = xp.asarray(PRECISIONS)
        chosen = grid[xp.argmax(_evidence(values, along, total, guess, shape, grid, xp))]
    else:
        chosen = xp.asarray(float(precision))
    shrunk = values + chosen
    left = xp.maximum(total - (along**2 / shrunk).sum(), 0.0)
    noise = xp.sqrt((guess + 0.5 * left) / shape) if spread is None else xp.asarray(float(spread))
    freedom = 2.0 * shape if spread is None else xp.asarray(np.inf)
    root = lower(vectors / xp.sqrt(shrunk)[:, None, :], space=space)
    return LinearBelief(
        arms_last(xp.einsum("apq,aq->ap", vectors, along / shrunk), space=space),
        root,
        noise,
        freedom,
        offset,
        chosen,
    )


def lower(root: Array, *, space: Backend) -> Array:
    """Factors (A, P, P) of the same covariances, in numpy lower triangular, and `arms_last`."""
    if space.name != "numpy":
        return root
    return arms_last(np.linalg.qr(root.swapaxes(1, 2)).R.swapaxes(1, 2), space=space)


def arms_last(array: Array, *, space: Backend) -> Array:
    """The same (A, ...), in numpy with the arms side by side in memory, as `scores` reads it."""
    if space.name != "numpy":
        return array
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 0, -1)), -1, 0)


def predicted(belief: LinearBelief, x: Array, *, space: Backend) -> Prediction:
    """What a belief says of rows x (B, P), float64."""
    xp = space.xp
    if belief.root is None:
        return Prediction(x @ xp.asarray(belief.mean).T + belief.offset)
    mean, scale = scores(x, belief.mean, belief.root, belief.offset, belief.noise, space=space)
    return Prediction(mean, scale, xp.full(mean.shape, belief.freedom))


def scores(
    x: Array, mean: Array, root: Array, offset: Array, noise: Array, *, space: Backend
) -> tuple[Array, Array]:
    """Means ``x·mean + offset`` and scales ``noise √(x root rootᵀ xᵀ)`` (B, A), the latter above 0.

    In numpy a row has the same bits alone and among others.

    Args:
        x: (B, P) float64.
        mean: (A, P) float64, `arms_last`.
        root: (A, P, F) float64, `arms_last`; those with as many columns as rows are `lower`.
        offset: () float64.
        noise: () float64.
        space: the namespace.
    """
    xp = space.xp
    if space.name == "numpy":
        out = np.empty((2, len(x), len(mean)))
        x = np.ascontiguousarray(x)
        kernels().scores(x, mean.T, _flat(root), float(offset), float(noise), out)
        return out[0], out[1]
    along = xp.matmul(x, xp.asarray(root))
    scale = noise * xp.sqrt(xp.maximum((along * along).sum(axis=-1), 1e-300)).T
    return x @ xp.asarray(mean).T + offset, scale


def scores_alone(
    segment: int, row: Array, mean: Array, root: Array, offset: Array, noise: Array
) -> tuple[Array, Array]:
    """`scores` (A,) of the design of one segment and features (D,): numpy, in one call."""
    out = np.empty((2, 1, len(mean)))
    offset, noise = float(offset), float(noise)
    kernels().scores_alone(segment, row, ONE, mean.T, _flat(root), offset, noise, out)
    return out[0, 0], out[1, 0]


def _flat(root: Array) -> Array:
    """Factors (A, P, F) that are `arms_last` as (P, F A)."""
    return root.transpose(1, 2, 0).reshape(root.shape[1], -1)


def variance(square: Array, mean: Array, rows: Array, xp: Array) -> Array:
    """The rewards' variance with one row more, of their own size; 1 while all rewards are 0."""
    size = square / xp.maximum(rows, 1.0)
    around = xp.maximum(square - rows * mean**2, 0.0)
    return xp.where(square > 0, (around + size) / (rows + 1.0), 1.0)


def _evidence(
    values: Array, along: Array, total: Array, guess: Array, shape: Array, grid: Array, xp: Array
) -> Array:
    """Log evidence (L,) of every λ, up to a term that they share."""
    shrunk = values[None] + grid[:, None, None]
    left = xp.maximum(total - (along[None] ** 2 / shrunk).sum(axis=(1, 2)), 0.0)
    spent = 0.5 * (xp.log(grid)[:, None, None] - xp.log(shrunk)).sum(axis=(1, 2))
    return spent - shape * xp.log(guess + 0.5 * left)
