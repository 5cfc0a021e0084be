"""What forgetting is worth when the world changes, and what it costs when it does not.

``python -m tests.bandits.changing`` (about three minutes) prints the figures of bandits/README.md.
"""

import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits import forgetting, policies, sampling, simplex
from bandits.evaluation import drift
from bandits.types import Batch, Contexts

ARMS, SEGMENTS, DAYS, FLOOR = 5, 2, 90, 0.02
RATES = np.array([[0.10, 0.08, 0.07, 0.06, 0.05], [0.06, 0.10, 0.05, 0.08, 0.07]])

#: What is compared: options of the policy, and how a reset comes about.
WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "never forgets": ({"buckets": DAYS}, "never"),
    "half-life 7 days": ({"half_life": 7.0}, "never"),
    "half-life 14 days": ({"half_life": 14.0}, "never"),
    "half-life 28 days": ({"half_life": 28.0, "buckets": DAYS}, "never"),
    "window 14 days": ({"window": 14}, "never"),
    "window 28 days": ({"window": 28}, "never"),
    "reset when seen": ({"buckets": DAYS}, "seen"),
    "reset when seen, kept 0.1": ({"buckets": DAYS, "kept": 0.1}, "seen"),
    "oracle restart": ({"buckets": DAYS}, "told"),
}


class Run(NamedTuple):
    """One campaign: lost conversions before and after the change, and the days of its resets."""

    before: float
    after: float
    resets: list[int]


def run(
    options: dict[str, Any], reset: str, seed: int, *, change: int | None = 45, size: int = 500,
    demand: float = 0.0,
) -> Run:  # fmt: skip
    """A quarter of Thompson sampling, learnt and looked at daily.

    On day ``change`` the arms swap their rates in reverse order. ``demand`` adds to every rate a
    weekly wave of that height, which is no change of what is best.
    """
    rng = np.random.default_rng(seed)
    policy = policies.make("thompson_beta", arms=ARMS, segments=SEGMENTS, **options)
    state, lost = policy.init(), np.zeros(2)
    resets: list[int] = []
    mask = np.ones((size, ARMS), bool)
    for day in range(DAYS):
        later = change is not None and day >= change
        rate = (RATES[:, ::-1] if later else RATES) + demand * (1 + np.sin(2 * np.pi * day / 7)) / 2
        if reset == "told" and day == change:
            state = forgetting.reset(state, day)
        segment = rng.integers(0, SEGMENTS, size)
        contexts = Contexts(segment.astype(np.int32), np.zeros((size, 0), np.int64))
        p = simplex.guard(
            policy.probabilities(policy.believe(state), contexts, mask), mask, floor=FLOOR
        )
        arm = sampling.draws(p, rng.random(size))
        won = (rng.random(size) < rate[segment, arm]).astype(np.int64)
        lost[int(later)] += float((rate.max(axis=1)[segment] - rate[segment, arm]).sum())
        one = np.ones(size, np.int64)
        state = policy.update(state, Batch(contexts, arm, p, won, won, one, day * one))
        if reset == "seen":
            found = drift.detect(state, looks=DAYS)
            if found is not None and found.p_value <= 0.05:
                state, resets = forgetting.reset(state, found.bucket), [*resets, day]
    return Run(float(lost[0]), float(lost[1]), resets)


def false_resets(*, runs: int, size: int = 500, demand: float = 0.0) -> float:
    """Share of quarters without a change in which a reset was made."""
    made = [
        bool(run({"buckets": DAYS}, "seen", s, change=None, size=size, demand=demand).resets)
        for s in range(runs)
    ]
    return float(np.mean(made))


def regrets(way: str, *, runs: int, change: int | None = 45) -> NDArray[np.float64]:
    """(runs, 2) regret before and after the change."""
    options, reset = WAYS[way]
    got = [run(options, reset, seed, change=change) for seed in range(runs)]
    return np.array([[one.before, one.after] for one in got])


def main() -> None:
    """Print every figure."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    oracle = regrets("oracle restart", runs=runs).sum(axis=1)
    for way in WAYS:
        all_ = regrets(way, runs=runs)
        still = regrets(way, runs=runs, change=None).sum(axis=1)
        ratio = all_.sum(axis=1).mean() / oracle.mean()
        print(
            f"{way}: {all_.sum(axis=1).mean():.0f} lost ({ratio:.2f} of the oracle restart's; "
            f"{all_[:, 1].mean():.0f} after the change), without a change {still.mean():.0f}"
        )
    seen = [run({"buckets": DAYS}, "seen", seed).resets for seed in range(runs)]
    first = [next((d - 45 for d in days if d >= 45), None) for days in seen]
    print(
        f"days until the change is seen: {first}; early resets: "
        f"{sum(d < 45 for days in seen for d in days)}"
    )
    for size, demand in ((500, 0.0), (500, 0.05), (100, 0.0)):
        share = false_resets(runs=200, size=size, demand=demand)
        print(f"false resets per quarter, {size} a day, wave {demand}: {share:.1%} of 200")


if __name__ == "__main__":
    main()
