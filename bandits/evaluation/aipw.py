"""Arm means and contrasts from adaptive logs, with intervals that hold whenever they are opened.

Averages of what each arm happened to receive are biased when the shares follow the results. The
augmented inverse-propensity score is not: with the logged propensity ``p`` and any prediction
``m̂`` made from earlier rows only, ``Γ_tk = m̂_tk + 1{A_t = k} (r_t - m̂_tk) / p_tk`` has mean
E[r | arm k] given the past, whatever the policy did and however demand drifts. Here ``m̂`` is the
running mean of the arm in the row's segment, shrunk by one row towards the segment's.

The interval after n rows is the asymptotic confidence sequence
``± σ̂ √(2 (nρ² + 1) / (n²ρ²) · ln(√(nρ² + 1) / α))``: it may be looked at after every row, and
its inversion is an always-valid p-value. ρ makes it tightest near ``target_rows``, which must be
chosen without looking at the data. Every interval holds at its own level; for all of A arms at
once ask for α / A.

It is asymptotic, and σ̂ is where that shows: while an arm served with propensity 0.05 has few
conversions, the spread of its scores looks far too small, and with it alone 14 % of A/A campaigns
under Thompson sampling raised a false alarm. So σ̂² is the greater of that spread and
``Σ_k v̂_k mean(1/p_k)``, the variance that the known propensities imply, with each arm's residual
variance v̂ shrunk by :data:`SHRINKAGE` rows towards the campaign's. Both tend to the same limit.
:data:`MINIMUM_CHOSEN` rows of an arm are asked for before its interval is finite.

Source: Robins, Rotnitzky and Zhao, JASA 89 (1994); Hadad et al., PNAS 118 (2021); Waudby-Smith et
al., Time-uniform central limit theory and asymptotic confidence sequences (2021), as in METHODS
section 8. Rows are weighted equally (h = 1) and not by √p, because then the estimand is the mean
over the traffic as it was, also under drift.

>>> rng = np.random.default_rng(0)
>>> arm = rng.integers(0, 2, 20_000)
>>> reward = (rng.random(20_000) < np.array([0.1, 0.2])[arm]).astype(np.int64)
>>> known = scores(arm, np.full((20_000, 2), 0.5), reward)
>>> found = contrast(known, arm=1, against=0)
>>> bool(found.lower < 0.1 < found.upper), found.p_value < 1e-9
(True, True)
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Rows that the campaign's residual variance counts for in an arm's.
SHRINKAGE = 200.0

#: Rows in which an arm must have been chosen before its interval is finite.
MINIMUM_CHOSEN = 30


class Scores(NamedTuple):
    """Per-row scores, from which all estimates are averages.

    Attributes:
        score: (N, A) float64, Γ; 0 where not eligible.
        inverse: (N, A) float64, 1 / p; 0 where not eligible.
        arm: (N,) integer, the arm served.
        residual: (N,) float64, r - m̂ of the arm served.
    """

    score: Floats
    inverse: Floats
    arm: NDArray[np.integer]
    residual: Floats


class Estimate(NamedTuple):
    """Mean reward of each arm over the rows in which it was eligible.

    Attributes:
        mean: (A,) float64, reward per decision; nan without rows.
        lower: (A,) float64, -inf while it cannot be told.
        upper: (A,) float64, +inf while it cannot be told.
        rows: (A,) int64, rows in which the arm was eligible.
        chosen: (A,) int64, rows in which it was served.
        effective: (A,) float64, effective sample size (Σw)² / Σw² with w = 1{A = k} / p_k.
        alpha: the level that each interval misses with at most.
    """

    mean: Floats
    lower: Floats
    upper: Floats
    rows: NDArray[np.int64]
    chosen: NDArray[np.int64]
    effective: Floats
    alpha: float


class Path(NamedTuple):
    """:class:`Contrast` after each of L prefixes of the log.

    Attributes:
        mean: (L,) float64; nan without rows.
        lower: (L,) float64.
        upper: (L,) float64.
        p_value: (L,) float64, always-valid.
        rows: (L,) int64.
        alpha: the level at which the whole path misses the truth anywhere.
    """

    mean: Floats
    lower: Floats
    upper: Floats
    p_value: Floats
    rows: NDArray[np.int64]
    alpha: float


class Contrast(NamedTuple):
    """Difference of mean rewards of two arms over the rows in which both were eligible.

    Attributes:
        mean: reward per decision, ``arm`` minus ``against``; nan without rows.
        lower: lower bound; -inf while it cannot be told.
        upper: upper bound; +inf while it cannot be told.
        p_value: always-valid p-value of no difference.
        rows: number of rows.
        alpha: the level that the interval misses with at most.
    """

    mean: float
    lower: float
    upper: float
    p_value: float
    rows: int
    alpha: float


def scores(
    arm: NDArray[np.integer],
    simplex: Floats,
    reward: NDArray[np.integer],
    *,
    segment: NDArray[np.integer] | None = None,
) -> Scores:
    """The AIPW scores of a log in the order in which it was decided.

    Args:
        arm: (N,) integer, the arm served.
        simplex: (N, A) float64 as logged; 0 marks an arm that was not eligible.
        reward: (N,) integer units.
        segment: (N,) integer >= 0, within which predictions are made; None for one.

    Raises:
        ValueError: shapes disagree, or an arm was served with propensity 0.
    """
    rows, arms = simplex.shape
    if arm.shape != (rows,) or reward.shape != (rows,):
        raise ValueError("arm (N,), simplex (N, A) and reward (N,) must have the same N")
    each = np.arange(rows)
    served = simplex[each, arm]
    if not bool(np.all(served > 0)):
        raise ValueError("an arm was served with propensity 0")
    group = np.zeros(rows, dtype=np.int64) if segment is None else np.asarray(segment)
    score = running_means(arm, reward, group, arms=arms)
    residual = reward - score[each, arm]
    score[each, arm] += residual / served
    eligible = simplex > 0
    inverse = np.divide(1.0, simplex, out=np.zeros(simplex.shape), where=eligible)
    return Scores(score * eligible, inverse, arm, residual)


def means(known: Scores, *, alpha: float = 0.05, target_rows: int = 10_000) -> Estimate:
    """Each arm's mean reward with its confidence sequence at the present row."""
    end = np.array([len(known.arm)])
    arms = known.score.shape[1]
    paths = [
        _path(known, end, (k,), known.score[:, k], alpha=alpha, target_rows=target_rows)
        for k in range(arms)
    ]
    mean, lower, upper = (np.concatenate([path[i] for path in paths]) for i in range(3))
    rows = np.concatenate([path.rows for path in paths])
    weight = known.inverse[np.arange(end[0]), known.arm]
    total = np.bincount(known.arm, weight, minlength=arms)
    squared = np.bincount(known.arm, weight**2, minlength=arms)
    effective = total**2 / np.where(squared > 0, squared, 1.0)
    chosen = np.bincount(known.arm, minlength=arms)
    return Estimate(mean, lower, upper, rows, chosen, effective, alpha)


def shortfall(known: Scores, *, alpha: float = 0.05, target_rows: int = 10_000) -> Estimate:
    """What each arm would have earned per row beyond what was earned, with its sequence.

    The mean of ``Γ_tk - r_t``, paired by row: where the arm was served with a propensity near 1
    its own noise cancels. Otherwise as :func:`means`, one segment at a time.
    """
    rows, arms = known.score.shape
    each = np.arange(rows)
    weight = known.inverse[each, known.arm]
    reward = known.score[each, known.arm] - known.residual * (weight - 1.0)
    count = np.bincount(known.arm, minlength=arms)
    total = np.bincount(known.arm, known.residual**2, minlength=arms)
    pooled = total.sum() / max(rows, 1)
    variance = (total + SHRINKAGE * pooled) / (count + SHRINKAGE)
    p = np.divide(1.0, known.inverse, out=np.zeros(known.inverse.shape), where=known.inverse > 0)
    mean, half, eligible = np.full(arms, np.nan), np.full(arms, np.inf), known.inverse > 0
    for k in range(arms):
        here = eligible[:, k]
        n = int(here.sum())
        if not n:
            continue
        value = known.score[here, k] - reward[here]
        # Had every row its arm's residual variance: p (1/p - 1)² for k, and p for the others.
        own = variance[k] * (known.inverse[here, k] + p[here, k] - 2.0)
        implied = float((own + p[here] @ variance - p[here, k] * variance[k]).mean())
        mean[k] = value.mean()
        if count[k] >= MINIMUM_CHOSEN:
            sd = np.sqrt(np.maximum(value.var(), implied))
            half[k] = half_width(np.array(n), sd, alpha=alpha, target_rows=target_rows)
    effective = np.bincount(known.arm, weight, minlength=arms) ** 2 / np.maximum(
        np.bincount(known.arm, weight**2, minlength=arms), 1.0
    )
    found = np.where(eligible.any(axis=0), mean, np.nan)
    return Estimate(found, mean - half, mean + half, eligible.sum(axis=0), count, effective, alpha)


def spread(known: Scores, weight: Floats) -> float:
    """Standard deviation of a row's ``score @ weight`` (A,), no less than propensities imply.

    Infinite while an arm of weight other than 0 was chosen in fewer than :data:`MINIMUM_CHOSEN`
    rows.
    """
    rows, arms = known.score.shape
    count = np.bincount(known.arm, minlength=arms)
    if rows == 0 or (count[weight != 0] < MINIMUM_CHOSEN).any():
        return math.inf
    square = known.residual**2
    total = np.bincount(known.arm, square, minlength=arms)
    variance = (total + SHRINKAGE * square.mean()) / (count + SHRINKAGE)
    implied = weight**2 @ (variance * known.inverse.mean(axis=0))
    return float(np.sqrt(max((known.score @ weight).var(), implied)))


def contrast(
    known: Scores, *, arm: int, against: int, alpha: float = 0.05, target_rows: int = 10_000
) -> Contrast:
    """``arm`` minus ``against``, paired by row, with its confidence sequence and p-value."""
    end = np.array([len(known.arm)])
    path = contrast_path(known, end, arm=arm, against=against, alpha=alpha, target_rows=target_rows)
    mean, lower, upper, p = (float(x[0]) for x in path[:4])
    return Contrast(mean, lower, upper, p, int(path.rows[0]), alpha)


def contrast_path(
    known: Scores,
    ends: NDArray[np.integer],
    *,
    arm: int,
    against: int,
    alpha: float = 0.05,
    target_rows: int = 10_000,
) -> Path:
    """:func:`contrast` as it stood after the first ``ends`` (L,) rows of the log."""
    difference = known.score[:, arm] - known.score[:, against]
    return _path(known, ends, (arm, against), difference, alpha=alpha, target_rows=target_rows)


def holdout_contrast(
    held: NDArray[np.bool_],
    reward: NDArray[np.integer],
    *,
    share: float,
    segment: NDArray[np.integer] | None = None,
    alpha: float = 0.05,
    target_rows: int = 10_000,
) -> Contrast:
    """Policy minus holdout, reward per decision, when rows are held out with probability ``share``.

    Args:
        held: (N,) bool, True = held out.
        reward: (N,) integer units, by the same rule for both.
        share: probability of being held out, in (0, 1), the same in every row.
        segment: (N,) integer, within which predictions are made; None for one.
        alpha: level of the interval.
        target_rows: where the interval is tightest.

    A holdout by unit keeps a unit on its side: rows of one unit then count as independent only
    as far as units come once.
    """
    if not 0.0 < share < 1.0:
        raise ValueError("share must be in (0, 1)")
    pair = np.tile([1.0 - share, share], (len(held), 1))
    known = scores(held.astype(np.int64), pair, reward, segment=segment)
    return contrast(known, arm=0, against=1, alpha=alpha, target_rows=target_rows)


def running_means(
    arm: NDArray[np.integer],
    reward: NDArray[np.integer],
    segment: NDArray[np.integer],
    *,
    arms: int,
) -> Floats:
    """Predictions (N, A) from earlier rows of the same segment only.

    ``(Σ r_k + m̄) / (n_k + 1)`` with m̄ the mean of all earlier rows of the segment (0 at first).
    """
    rows = len(arm)
    order = np.argsort(segment, kind="stable")
    sorted_segment, sorted_arm = segment[order], arm[order]
    sorted_reward = reward[order].astype(np.float64)
    start = np.searchsorted(sorted_segment, sorted_segment)
    before = np.arange(rows) - start
    pooled = _before(sorted_reward, start) / np.maximum(before, 1)
    out = np.empty((rows, arms))
    for k in range(arms):
        chosen = (sorted_arm == k).astype(np.float64)
        count = _before(chosen, start)
        total = _before(chosen * sorted_reward, start)
        out[order, k] = (total + pooled) / (count + 1.0)
    return out


def half_width(rows: NDArray[np.integer], sd: Floats, *, alpha: float, target_rows: int) -> Floats:
    """Half width of the confidence sequence after ``rows`` scores of standard deviation ``sd``."""
    rho2 = tightest(alpha=alpha, target_rows=target_rows)
    n = np.maximum(rows, 1)
    inner = n * rho2 + 1.0
    out: Floats = sd * np.sqrt(2.0 * inner / (n * n * rho2) * np.log(np.sqrt(inner) / alpha))
    return np.where(rows > 0, out, np.inf)


def p_value(
    mean: Floats, sd: Floats, rows: NDArray[np.integer], *, alpha: float, target_rows: int
) -> Floats:
    """The smallest level at which the confidence sequence with the same ρ excludes 0."""
    rho2 = tightest(alpha=alpha, target_rows=target_rows)
    inner = rows * rho2 + 1.0
    z = np.where(sd > 0, mean * rows / np.where(sd > 0, sd, 1.0), 0.0)
    log: Floats = 0.5 * np.log(inner) - z * z * rho2 / (2.0 * inner)
    return np.exp(np.minimum(0.0, log))


def tightest(*, alpha: float, target_rows: int) -> float:
    """The ρ² for which the sequence is (nearly) narrowest after ``target_rows`` rows."""
    if not 0.0 < alpha < 1.0 or target_rows < 1:
        raise ValueError("alpha must be in (0, 1) and target_rows at least 1")
    level = -2.0 * math.log(alpha)
    return (level + math.log(level + 1.0)) / target_rows


def _upto(values: NDArray[Any], ends: NDArray[np.integer]) -> NDArray[Any]:
    """Sums of the first ``ends`` values."""
    through = np.concatenate([[0], np.cumsum(values)])
    out: NDArray[Any] = through[ends]
    return out


def _path(
    known: Scores,
    ends: NDArray[np.integer],
    arms: tuple[int, ...],
    value: Floats,
    *,
    alpha: float,
    target_rows: int,
) -> Path:
    """The confidence sequence of the mean ``value`` of rows in which all ``arms`` are eligible."""
    eligible = np.all(known.inverse[:, arms] > 0, axis=1)
    value = np.where(eligible, value, 0.0)
    rows = _upto(eligible, ends)
    some = np.maximum(rows, 1)
    mean = _upto(value, ends) / some
    spread = _upto(value**2, ends) / some - mean**2
    square = known.residual**2
    pooled = _upto(square, ends) / np.maximum(ends, 1)
    implied, fewest = np.zeros(len(ends)), np.full(len(ends), MINIMUM_CHOSEN)
    for k in arms:
        served = known.arm == k
        count = _upto(served, ends)
        own = (_upto(square * served, ends) + SHRINKAGE * pooled) / (count + SHRINKAGE)
        implied += own * _upto(known.inverse[:, k] * eligible, ends) / some
        fewest = np.minimum(fewest, count)
    sd = np.sqrt(np.maximum(spread, implied))
    ready = (fewest >= MINIMUM_CHOSEN) & (rows > 0)
    half = half_width(rows, sd, alpha=alpha, target_rows=target_rows)
    half = np.where(ready, half, np.inf)
    p = np.where(ready, p_value(mean, sd, rows, alpha=alpha, target_rows=target_rows), 1.0)
    return Path(np.where(rows > 0, mean, np.nan), mean - half, mean + half, p, rows, alpha)


def _before(values: Floats, start: NDArray[np.integer]) -> Floats:
    """Sum of the earlier values of the same segment, for sorted segments beginning at ``start``."""
    through = np.concatenate([[0.0], np.cumsum(values)])
    out: Floats = through[:-1] - through[start]
    return out
