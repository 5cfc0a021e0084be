"""Logistic regression of conversions, one model per arm, exact over integer sums.

The log odds that arm a converts are ``x·θ_a``. The likelihood has no sufficient statistics, but
its second-order expansion about an arm's overall rate p_a has: there every row has the same weight
``p_a (1 - p_a)``, so ``Σ x xᵀ`` and ``Σ y x`` say all, and these are the integer sums of
:mod:`bandits.regressors.linear`. The belief is one Newton step from that rate with the curvature
there (a Laplace approximation whose mode is one step old): order-free, reversible, mergeable, and
never refitted. Effects that move the log odds by much more than one are drawn somewhat to zero.

The prior is ``N(m, 1/λ)`` around the log odds m of all arms together (slopes around 0); one λ for
all arms maximises the evidence over a grid.

Source: Fisher scoring and the Laplace approximation, Bishop (2006) sections 4.3.3 and 4.5;
polynomial approximate sufficient statistics, Huggins, Adams and Broderick, NIPS 2017.
"""

import math
from typing import NamedTuple

from bandits import ledger
from bandits.backend import Backend
from bandits.features import ONE
from bandits.regressors import linear
from bandits.regressors.linear import LinearSums
from bandits.regressors.regressor import Prediction, Regressor
from bandits.types import FEATURE_BITS, Array, Batch, Contexts

#: Rows of the common rate that an arm's own rate starts from.
RATE_WEIGHT = 2.0


class LogisticBelief(NamedTuple):
    """The Gaussian posterior of every arm's coefficients, in log odds.

    Attributes:
        mean: (A, P) float64.
        root: (A, P, P) float64, ``root rootᵀ`` is the covariance, lower triangular in numpy.
        precision: () float64, λ.
    """

    mean: Array
    root: Array
    precision: Array


def regressor(
    *, arms: int, segments: int, features: int, space: Backend, precision: float | None = None
) -> Regressor:
    """The regressor. What it predicts are log odds: they order the arms as their rates do.

    Args:
        arms: A.
        segments: S.
        features: D.
        space: the namespace.
        precision: λ; the evidence chooses when None.
    """
    width = linear.columns(segments=segments, features=features)

    def init() -> LinearSums:
        return linear.zeros(arms=arms, width=width)

    def update(state: LinearSums, batch: Batch) -> LinearSums:
        x = linear.design(batch.contexts, segments=segments, space=space)
        converted = batch._replace(reward=batch.conversions)
        return ledger.add(state, linear.contribution(x, converted, arms=arms, space=space))

    def believe(state: LinearSums) -> LogisticBelief:
        return posterior(state, space=space, precision=precision)

    def predict(belief: LogisticBelief, contexts: Contexts) -> Prediction:
        x = linear.design(contexts, segments=segments, space=space) / float(ONE)
        return predicted(belief, x, space=space)

    def point(belief: LogisticBelief, segment: int, row: Array) -> Prediction:
        found = linear.scores_alone(segment, row, belief.mean, belief.root, 0.0, 1.0)
        return Prediction(*found, math.inf)

    alone = point if space.name == "numpy" else None
    return Regressor("logistic", init, update, space.jit(believe), predict, point=alone)


def posterior(
    sums: LinearSums, *, space: Backend, precision: float | None = None
) -> LogisticBelief:
    """The belief that sums over conversions amount to; see the module for the model."""
    xp = space.xp
    trials, conversions = (
        xp.maximum(xp.asarray(field) * 1.0, 0.0) for field in (sums.trials, sums.conversions)
    )
    common = (conversions.sum() + 0.5) / (trials.sum() + 1.0)
    rate = (conversions + RATE_WEIGHT * common) / (trials + RATE_WEIGHT)
    centre, start = (xp.log(p / (1.0 - p)) for p in (common, rate))
    products = xp.asarray(sums.gram) / 2.0 ** (2 * FEATURE_BITS)
    moment = xp.asarray(sums.moment) / 2.0**FEATURE_BITS
    weight = (rate * (1.0 - rate))[:, None]
    pull = (
        moment
        - rate[:, None] * products[:, 0]
        + weight * products[:, 0] * ((start - centre)[:, None])
    )
    values, vectors = xp.linalg.eigh(products * weight[..., None])
    values = xp.maximum(values, 0.0)
    along = xp.einsum("apq,ap->aq", vectors, pull)
    if precision is None:
        grid = xp.asarray(linear.PRECISIONS)
        chosen = grid[xp.argmax(_evidence(values, along, grid, xp))]
    else:
        chosen = xp.asarray(float(precision))
    shrunk = values + chosen
    first = xp.asarray([1.0] + [0.0] * (products.shape[-1] - 1))
    mean = xp.einsum("apq,aq->ap", vectors, along / shrunk) + centre * first
    root = linear.lower(vectors / xp.sqrt(shrunk)[:, None, :], space=space)
    return LogisticBelief(linear.arms_last(mean, space=space), root, chosen)


def predicted(belief: LogisticBelief, x: Array, *, space: Backend) -> Prediction:
    """The log odds of rows x (B, P), float64: Gaussian, independent between arms."""
    mean, scale = linear.scores(x, belief.mean, belief.root, 0.0, 1.0, space=space)
    return Prediction(mean, scale, space.xp.full(mean.shape, space.xp.inf))


def _evidence(values: Array, along: Array, grid: Array, xp: Array) -> Array:
    """Log evidence (L,) of every λ under the expansion, up to a term that they share."""
    shrunk = values[None] + grid[:, None, None]
    spent = xp.log(grid)[:, None, None] - xp.log(shrunk)
    return 0.5 * (spent + along[None] ** 2 / shrunk).sum(axis=(1, 2))
