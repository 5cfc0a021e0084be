"""How demand falls with the price, from a log whose depths were drawn by chance.

A curve exp(c + ε ln(1 - depth)) is laid through the arms' mean outcomes, each arm weighted as it
was served: with constant propensities that is Poisson regression. The means are AIPW scores
(:mod:`bandits.evaluation.aipw`), so neither who got which depth nor how shares moved misleads it,
and no arm needs to have sold anything. ε is the price elasticity: by how many per cent demand rises
where the price is one per cent higher, a number below 0 as a rule.

The interval is the confidence sequence of the scores' weighted sum that moves ε to first order
(the delta method); it may be looked at after every row, and as the sequence it is asymptotic.

Source: Waudby-Smith et al., Time-uniform central limit theory and asymptotic confidence sequences
(2021), which has asymptotically linear estimates, too.

Letters: ``R`` rows, ``A`` arms.
"""

from typing import NamedTuple

import numpy as np

from bandits.evaluation import aipw
from bandits.evaluation.aipw import Floats, Scores

#: Newton steps, and the change that ends them.
STEPS, SETTLED = 100, 1e-10


class Curve(NamedTuple):
    """A demand curve.

    Attributes:
        elasticity: ε.
        mean: (A,) outcome of each arm on the curve.
        weight: (A,) by how much ε moves with an arm's mean outcome.
    """

    elasticity: float
    mean: Floats
    weight: Floats


class Elasticity(NamedTuple):
    """An elasticity with its confidence sequence at the present row.

    Attributes:
        mean: ε.
        lower: -inf while it cannot be told.
        upper: +inf while it cannot be told.
    """

    mean: float
    lower: float
    upper: float


def curve(mean: Floats, served: Floats, depth: Floats) -> Curve:
    """The curve through the mean outcomes (A,) of arms that were served with shares ``served``.

    Raises:
        ValueError: depths are all equal or reach 1, or nothing was sold, or too little.
    """
    if np.ptp(depth) <= 1e-9 or np.max(depth) >= 1:
        raise ValueError("depth: must be below 1, and not all equal")
    if not served @ mean > 0:
        raise ValueError("outcome: a group sold nothing, which says nothing of an elasticity")
    x = np.stack([np.ones(len(depth)), np.log1p(-np.asarray(depth, np.float64))], axis=1)
    at = np.array([np.log(served @ mean), 0.0])
    for _ in range(STEPS):
        fitted = np.exp(np.clip(x @ at, -30.0, 30.0))
        bend = x.T @ ((served * fitted)[:, None] * x)
        step = np.linalg.solve(bend, x.T @ (served * (mean - fitted)))
        at = at + np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < SETTLED:
            break
    else:
        raise ValueError("outcome: a group sold too little for an elasticity")
    return Curve(float(at[1]), fitted, served * (x @ np.linalg.inv(bend))[:, 1])


def elasticity(
    known: Scores, simplex: Floats, depth: Floats, *, alpha: float = 0.05, target_rows: int = 10_000
) -> Elasticity:
    """ε over rows in which every arm had a chance, with an interval that holds at any time.

    Args:
        known: the scores of those rows.
        simplex: (R, A) as logged.
        depth: (A,) of the arms, as a share of the price, below 1; not a number for an arm that
            changes something else, which stays out of the curve.
        alpha: level of the interval.
        target_rows: where the interval is tightest.

    Raises:
        ValueError: as :func:`curve`.
    """
    priced = np.flatnonzero(np.isfinite(depth))
    score = known.score[:, priced]
    found = curve(score.mean(axis=0), simplex[:, priced].mean(axis=0), depth[priced])
    weight = np.zeros(len(depth))
    weight[priced] = found.weight
    sd = aipw.spread(known, weight)
    rows = np.array(len(score))
    half = float(aipw.half_width(rows, np.array(sd), alpha=alpha, target_rows=target_rows))
    return Elasticity(found.elasticity, found.elasticity - half, found.elasticity + half)
