"""From what is believed of the arms to a simplex over them: the rules of exploration.

Every rule takes a :class:`~bandits.regressors.regressor.Prediction` with fields (B, A) and a mask
(B, A), and returns a simplex (B, A) that is exactly 0 where the mask is False, in closed form or by
quadrature: nothing is drawn here, so the propensity is exact.

Sources: Thompson, Biometrika 25 (1933); Li et al., WWW 2010 (LinUCB); Abe and Long, ICML 1999, and
Foster and Rakhlin, ICML 2020 (SquareCB); Foster and Krishnamurthy, NeurIPS 2021 (FastCB).

>>> import numpy as np
>>> belief = Prediction(np.array([[0.2, 0.5, 0.9]]))
>>> squarecb(belief, np.array([[True, True, False]]), gamma=10.0).round(3)
array([[0.2, 0.8, 0. ]])
"""

from collections.abc import Callable

from bandits import simplex
from bandits.backend import Backend, namespace
from bandits.posteriors import best
from bandits.regressors.regressor import Prediction
from bandits.types import Array


def greedy(prediction: Prediction, mask: Array) -> Array:
    """Equal shares of the eligible arms with the greatest expected reward."""
    return _best(prediction.mean, mask)


def ucb(prediction: Prediction, mask: Array, *, alpha: float) -> Array:
    """Equal shares of the eligible arms with the greatest ``mean + alpha · scale`` (LinUCB)."""
    return _best(prediction.mean + alpha * prediction.scale, mask)


def thompson(prediction: Prediction, mask: Array, *, backend: Backend | None = None) -> Array:
    """P(arm is best): by quadrature for independent arms, else the share of the frozen draws."""
    if prediction.draws is not None:
        return frozen(prediction.draws, mask)
    return best.student(
        prediction.mean, prediction.scale, prediction.freedom, mask, backend=backend
    )


def widened(prediction: Prediction, factor: float) -> Prediction:
    """Beliefs that are ``factor`` times as wide around the same means."""
    draws = prediction.draws
    if draws is not None:
        draws = prediction.mean[:, None, :] + factor * (draws - prediction.mean[:, None, :])
    return Prediction(prediction.mean, prediction.scale * factor, prediction.freedom, draws)


def thompson_alone(factor: float) -> Callable[[Prediction, Array], Array]:
    """`thompson` of beliefs `widened` by a factor, of one row (A,) of independent arms in numpy."""

    def alone(prediction: Prediction, mask: Array) -> Array:
        return best.row(prediction.mean, prediction.scale * factor, prediction.freedom, mask)

    return alone


def frozen(draws: Array, mask: Array, *, known: Array | None = None) -> Array:
    """Share of the draws (B, M, A) in which each eligible arm is the greatest, ties split.

    Arms that ``known`` (A,) bool leaves out have no draws: each has an equal share of the eligible
    arms, and the draws share out the rest.
    """
    xp = namespace(draws)
    drawn = mask if known is None else mask & known
    eligible = xp.where(drawn[:, None, :], draws, -xp.inf)
    top = drawn[:, None, :] & (eligible == eligible.max(axis=-1, keepdims=True))
    shares = (top / xp.maximum(top.sum(axis=-1, keepdims=True), 1)).mean(axis=1)
    if known is None:
        return shares
    new = (mask & ~known) / mask.sum(axis=1, keepdims=True)
    return new + (1.0 - new.sum(axis=1, keepdims=True)) * shares


def squarecb(prediction: Prediction, mask: Array, *, gamma: Array) -> Array:
    """Inverse gap weighting: ``1 / (K + γ (best - mean))``; the best arm has what is left.

    Args:
        prediction: with means in any unit; γ is in its inverse.
        mask: (B, A) bool.
        gamma: scalar or (B, 1), at least 0; 0 is uniform.
    """
    xp = namespace(prediction.mean)
    eligible = xp.where(mask, prediction.mean, -xp.inf)
    top = eligible.max(axis=-1, keepdims=True)
    gap = xp.where(mask, top - prediction.mean, 0.0)
    count = mask.sum(axis=-1, keepdims=True)
    return _rest_to_best(xp.where(mask, 1.0 / (count + gamma * gap), 0.0), eligible, mask)


def fastcb(prediction: Prediction, mask: Array, *, gamma: Array, high: Array) -> Array:
    """FastCB: inverse gap weighting that explores less where the least loss is small.

    With losses ``l = (high - mean)``, in [0, 1] once divided by the range of rewards, an arm other
    than the best has ``l_best / (K l_best + γ (l - l_best))``, and the best the rest.

    Args:
        prediction: with means in units of the range of rewards.
        mask: (B, A) bool.
        gamma: scalar or (B, 1), at least 0.
        high: scalar or (B, 1), the greatest reward there can be, in the same units.
    """
    xp = namespace(prediction.mean)
    eligible = xp.where(mask, prediction.mean, -xp.inf)
    top = eligible.max(axis=-1, keepdims=True)
    least = xp.clip(high - top, 1e-6, 1.0)
    gap = xp.where(mask, top - prediction.mean, 0.0)
    count = mask.sum(axis=-1, keepdims=True)
    shares = xp.where(mask, least / (count * least + gamma * gap), 0.0)
    return _rest_to_best(shares, eligible, mask)


def _rest_to_best(shares: Array, score: Array, mask: Array) -> Array:
    """Give what ``shares`` (B, A) leave to one to the arms of the greatest score, in equal parts.

    Their own entries count as left: an arm that is best alone gets 1 less what the others have.
    """
    xp = namespace(shares)
    top = mask & (score == score.max(axis=-1, keepdims=True))
    others = xp.where(top, 0.0, shares)
    left = 1.0 - others.sum(axis=-1, keepdims=True)
    return xp.where(top, left / xp.maximum(top.sum(axis=-1, keepdims=True), 1), others)


def _best(score: Array, mask: Array) -> Array:
    xp = namespace(score)
    eligible = xp.where(mask, score, -xp.inf)
    top = mask & (eligible == eligible.max(axis=-1, keepdims=True))
    return simplex.uniform(xp.asarray(top))
