"""Simulated logs that the evaluation tests share: Bernoulli arms under Thompson sampling."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits import simplex
from bandits.posteriors import best

Floats = NDArray[np.float64]


class Logs(NamedTuple):
    """``runs`` campaigns side by side, R rows each.

    Attributes:
        arm: (runs, R) int64.
        simplex: (runs, R, A) float64.
        reward: (runs, R) int64, 0 or 1.
    """

    arm: NDArray[np.int64]
    simplex: Floats
    reward: NDArray[np.int64]


def thompson_logs(
    rates: list[float],
    *,
    runs: int,
    batches: int,
    size: int,
    floor: float,
    seed: int,
    drift: float = 0.0,
) -> Logs:
    """Campaigns that update after every batch; all rates grow by ``drift`` over a campaign."""
    rng = np.random.default_rng(seed)
    arms = len(rates)
    trials, conversions = np.zeros((runs, arms)), np.zeros((runs, arms))
    mask = np.ones((runs, arms), dtype=bool)
    logs = []
    for batch in range(batches):
        raw = best.beta(1 + conversions, 1 + trials - conversions, mask)
        p = simplex.guard(raw, mask, floor=floor)
        u = rng.random((runs, size))
        arm = np.minimum((p.cumsum(axis=1)[:, None, :] <= u[..., None]).sum(axis=-1), arms - 1)
        rate = np.asarray(rates)[arm] * (1 + drift * batch / batches)
        reward = (rng.random((runs, size)) < rate).astype(np.int64)
        for k in range(arms):
            trials[:, k] += (arm == k).sum(axis=1)
            conversions[:, k] += ((arm == k) * reward).sum(axis=1)
        logs.append((arm, np.repeat(p[:, None, :], size, axis=1), reward))
    arm, p, reward = (np.concatenate(part, axis=1) for part in zip(*logs, strict=True))
    return Logs(arm, p, reward)
