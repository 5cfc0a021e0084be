"""Whether the arms have come to compare differently: a change point in sums per time bucket.

For every split of the stored buckets into before and after, and every arm k, ``d_k`` is how much
its mean reward rose, within segments, and ``v_k`` the variance of that. What all arms share (a
weekday, a holiday, growing demand) is no reason to forget, so the common rise
``c = Σ(d_k/v_k)/Σ(1/v_k)`` is taken off, and ``Σ (d_k - c)²/v_k`` is a χ² with one degree of
freedom less than there are arms that were served often enough on both sides. The change is at the
split where it is least likely by chance.

A campaign is looked at once per bucket, so the level is shared out over ``looks`` looks and all
splits of each (Bonferroni): the chance of any false alarm in that many looks is at most ``delta``
as far as the χ² is right, which takes some :data:`LEAST` rows of an arm on either side.

Source: generalised likelihood ratio, Besson, Kaufmann, Maillard and Seznec, JMLR 23 (2022), here
for Gaussian means over buckets and arms together; METHODS section 6 on pooling and the intercept.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bandits import ledger
from bandits.types import ArmSums

Floats = NDArray[np.float64]

#: Rows that an arm must have on either side of a split to count there.
LEAST = 100


class Change(NamedTuple):
    """The most likely change.

    Attributes:
        bucket: the first bucket after it.
        p_value: of no change at all, after sharing out the level over splits and looks.
    """

    bucket: int
    p_value: float


def detect(state: Any, *, looks: int = 90) -> Change | None:
    """The most likely change in a bucketed arm-level state since its last reset.

    Args:
        state: what :func:`bandits.forgetting.wrap` keeps of an arm-level policy, in numpy.
        looks: how often a campaign will be looked at, for which ``p_value`` makes up.

    Returns:
        The change, or None while there are too few rows; reset at its bucket when the p-value is
        at most the chance of a false alarm that you allow in all looks.

    Raises:
        TypeError: the state is of another kind.
    """
    if state._fields != (*ArmSums._fields, "bucket", "since"):
        raise TypeError("only arm-level sums per time bucket can be searched for a change")
    number, since = np.asarray(state.bucket), int(state.since)
    order = np.argsort(number)
    order = order[number[order] >= max(since, 0)]
    if len(order) < 2:
        return None
    count, total, variance = _residuals(state, order)
    found = [_split(count, total, variance, at) for at in range(1, len(order))]
    at = int(np.argmin(found))
    p = min(1.0, found[at] * len(found) * looks)
    # Split i of the list has i + 1 buckets before it.
    return None if found[at] > 1.0 else Change(int(number[order[at + 1]]), p)


def _residuals(state: Any, order: NDArray[np.intp]) -> tuple[Floats, Floats, Floats]:
    """Rows and sums of residuals (T, A) around each cell's mean, and their variance (A,)."""
    rows = np.asarray(state.trials)[order].astype(np.float64)
    reward = np.asarray(state.reward)[order].astype(np.float64)
    cells = ArmSums(*(np.asarray(field)[order].sum(axis=0) for field in state[:-2]))
    mean = cells.reward / np.maximum(cells.trials, 1)
    count, total = rows.sum(axis=1), (reward - rows * mean).sum(axis=1)
    within = (ledger.square(cells) - mean * cells.reward).sum(axis=0)
    everyone = within.sum() / max(count.sum(), 1.0)
    variance = (within + LEAST * everyone) / (count.sum(axis=0) + LEAST)
    return count, total, variance


def _split(count: Floats, total: Floats, variance: Floats, at: int) -> float:
    """The p-value of one split; 2, which is none, where fewer than two arms can be compared."""
    n, m = count[:at].sum(axis=0), count[at:].sum(axis=0)
    use = (n >= LEAST) & (m >= LEAST) & (variance > 0)
    if use.sum() < 2:
        return 2.0
    n, m, variance = n[use], m[use], variance[use]
    rise = total[at:, use].sum(axis=0) / m - total[:at, use].sum(axis=0) / n
    v = variance * (1.0 / n + 1.0 / m)
    common = (rise / v).sum() / (1.0 / v).sum()
    return float(stats.chi2.sf(((rise - common) ** 2 / v).sum(), use.sum() - 1))
