"""What learning cost: posterior estimates of the regret, with their bands, and a bracket without.

Regret against the best fixed arm of each segment, ``Σ_s Σ_k n_sk (max_j μ_sj - μ_sk)``, in units
of reward. The truth μ is unknown; given the data it has a posterior, and so has the regret. Its
mean errs on the high side where arms are nearly tied: the greatest of several uncertain means
looks greater than it is. A band of the posterior's own quantiles then lies above the truth as a
whole. So the lower end does without a maximum over what is uncertain: it is a quantile of the
regret against the arms that look best, and no fixed choice of arms has more regret than the best
ones. The upper end keeps the maximum. Both ends err outwards.

How often the band covers still depends on the prior. :mod:`bandits.posteriors.shared` has the one
that held in all of ``tests/bandits/regret_coverage.py``'s worlds; :func:`bracket` bounds the
regret without any.

>>> draws = np.array([[[0.1, 0.2]], [[0.1, 0.3]]])
>>> estimate(draws, np.array([[[60, 40]], [[10, 90]]])).mean
array([ 9. , 10.5])
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits.evaluation import aipw
from bandits.evaluation.aipw import Scores
from bandits.posteriors.summary import Prior, posterior
from bandits.types import ArmSums

Floats = NDArray[np.float64]


class Regret(NamedTuple):
    """Cumulative regret at the end of each time bucket, in units of reward.

    Attributes:
        mean: (T,) float64, the posterior mean.
        lower: (T,) float64, of the regret against the arms that look best; at least 0.
        upper: (T,) float64, of the regret against the best arms.
        level: posterior probability of the band, or more.
    """

    mean: Floats
    lower: Floats
    upper: Floats
    level: float


def estimate(
    draws: Floats,
    counts: NDArray[np.integer] | Floats,
    *,
    mask: NDArray[np.bool_] | None = None,
    level: float = 0.9,
) -> Regret:
    """Posterior regret of the decisions in ``counts``.

    Args:
        draws: (M, S, A) draws of the mean reward per decision, from the *latest* state.
        counts: (T, S, A) decisions in each time bucket, not cumulated.
        mask: (S, A) bool, arms that the segment allows; the best arm is one of them. None for all.
        level: posterior probability that the band holds at each bucket.
    """
    if counts.ndim != 3 or draws.ndim != 3 or counts.shape[1:] != draws.shape[1:]:
        raise ValueError(f"draws (M, S, A) and counts (T, S, A): {draws.shape}, {counts.shape}")
    total = np.cumsum(counts.reshape(len(counts), -1), axis=0).T.astype(np.float64)
    tail = 0.5 * (1.0 - level)
    paths = _gap(draws, mask).reshape(len(draws), -1) @ total
    fixed = _against_best_looking(draws, mask).reshape(len(draws), -1) @ total
    lower = np.maximum(np.quantile(fixed, tail, axis=0), 0.0)
    upper = np.quantile(paths, 1.0 - tail, axis=0)
    return Regret(paths.mean(axis=0), lower, upper, level)


def equal_split(counts: NDArray[np.integer], *, mask: NDArray[np.bool_] | None = None) -> Floats:
    """The (T, S, A) counts of a policy that shares each segment's decisions equally."""
    allowed = np.ones(counts.shape[1:], dtype=bool) if mask is None else mask
    share = allowed / np.maximum(allowed.sum(axis=-1, keepdims=True), 1)
    out: Floats = counts.sum(axis=-1, keepdims=True) * share
    return out


def by_prior(
    objective: str,
    state: ArmSums,
    counts: NDArray[np.integer] | Floats,
    priors: Mapping[str, Prior],
    *,
    mask: NDArray[np.bool_] | None = None,
    level: float = 0.9,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Regret]:
    """:func:`estimate` under each of several named priors, with the same seed."""
    return {
        name: estimate(
            posterior(objective, state, prior=prior).draws(draws, seed=seed),
            counts,
            mask=mask,
            level=level,
        )
        for name, prior in priors.items()
    }


def matched_prior(state: ArmSums, *, strength: float = 20.0) -> Prior:
    """A conversion prior about the campaign's own overall rate, worth ``strength`` decisions."""
    trials = max(int(np.asarray(state.trials).sum()), 1)
    rate = (int(np.asarray(state.conversions).sum()) + 0.5) / (trials + 1.0)
    return Prior(alpha=max(strength * rate, 0.5), beta=max(strength * (1.0 - rate), 0.5))


def bracket(
    segments: Sequence[Scores], *, alpha: float = 0.1, target_rows: int = 10_000
) -> tuple[float, float]:
    """Bounds on the regret without any prior, from what every arm would have added.

    In a segment, ``Γ_tj - r_t`` (:mod:`bandits.evaluation.aipw`) has mean ``μ_j - Σ_k p_tk μ_k``
    given the past: what row t gave up by not being served arm j, whatever the policy did. Most of
    the noise of the reward cancels where j was served with a high propensity. Each segment's
    regret is the greatest of these over j, so it lies between the greatest lower and the greatest
    upper bound; α is shared among all arms of all segments. Asymptotic, as those intervals are.

    Args:
        segments: the scores of each segment's rows, in their order.
        alpha: how often the bracket may miss, at any look.
        target_rows: where intervals are tightest.

    Returns:
        Lower and upper bound in units of reward; 0 and inf where nothing can be told.
    """
    some = [known for known in segments if len(known.arm)]
    cells = sum(known.score.shape[1] for known in segments)
    low = high = 0.0
    for known in some:
        ends = aipw.shortfall(known, alpha=alpha / cells, target_rows=target_rows)
        met = ends.rows > 0
        low += len(known.arm) * max(0.0, float(ends.lower[met].max()))
        high += len(known.arm) * max(0.0, float(ends.upper[met].max()))
    return low, high


def _gap(draws: Floats, mask: NDArray[np.bool_] | None) -> Floats:
    allowed = draws if mask is None else np.where(mask, draws, -np.inf)
    best = allowed.max(axis=-1, keepdims=True)
    # An arm that is no longer allowed may have been better than the best allowed one: the
    # benchmark is a choice one could have kept, so such a decision cost nothing.
    gap: Floats = np.maximum(best - draws, 0.0)
    return gap


def _against_best_looking(draws: Floats, mask: NDArray[np.bool_] | None) -> Floats:
    """(M, S, A) what each arm gives up against the allowed arm of the greatest posterior mean."""
    mean = draws.mean(axis=0)
    allowed = mean if mask is None else np.where(mask, mean, -np.inf)
    looks = np.argmax(allowed, axis=-1)
    best = np.take_along_axis(draws, looks[None, :, None], axis=-1)
    some = np.isfinite(allowed.max(axis=-1))[:, None]
    gap: Floats = np.where(some, best - draws, 0.0)
    return gap
