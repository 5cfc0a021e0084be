"""What it is worth to be told the effect of depth by earlier campaigns, where segments are few.

    python -m tests.bench.earlier_campaigns --seeds 40

Two segments choose among six depths (:mod:`.discount_worlds`) for 1,000 decisions each. The default
begins as it does, or is told what three earlier campaigns of 48 segments and 1,000 evenly shared
decisions per segment say (:func:`bandits.warm_start.slope`), from worlds of the same or of another
kind. Regret is expected, in major units per segment; savings are paired, with 95 % intervals of the
seeds relative to the mean regret of the default.
"""

import argparse

import numpy as np
from rich.progress import track

from bandits import ledger, policies, warm_start
from bandits.posteriors.shared import ANY_SLOPE, Slope
from bandits.types import ArmSums, Contexts
from tests.bench import discount_worlds as worlds
from tests.bench.discount_worlds import Counts, Floats

SEGMENTS, DECISIONS, CAMPAIGNS = 2, 1_000, 3
#: The world, and the world that the earlier campaigns met.
PAIRS = (
    ("similar", "similar"), ("varied", "varied"), ("alike", "alike"), ("related", "related"),
    ("alike", "varied"), ("similar", "two_kinds"), ("own_steps", "alike"), ("jagged", "alike"),
)  # fmt: skip
MAKERS = {make.__name__: make for kind in worlds.WORLDS.values() for make in kind}
VALUE, DEPTHS = worlds.VALUE[:SEGMENTS], worlds.DEPTHS[:SEGMENTS]
EVERY = Contexts(np.arange(SEGMENTS, dtype=np.int32), np.zeros((SEGMENTS, 0), np.int64))
ALL = np.ones(VALUE.shape, bool)


def earlier(world: str, seed: int) -> list[warm_start.Earlier]:
    """Three campaigns that shared their decisions out evenly."""
    found = []
    for campaign in range(CAMPAIGNS):
        rng = np.random.default_rng([seed, campaign])
        truth = MAKERS[world](rng)
        trials = np.full(truth.shape, DECISIONS // truth.shape[1])
        found.append(
            warm_start.Earlier(worlds._sums(trials, rng.binomial(trials, truth)), worlds.DEPTHS)
        )
    return found


def lost(truth: Floats, *, seed: int, slope: Slope = ANY_SLOPE) -> float:
    """Regret per segment of the default that expects this slope."""
    policy = policies.make(
        worlds.DEFAULT, arms=truth.shape[1], segments=SEGMENTS, value=VALUE, depth=DEPTHS,
        slope=slope.mean, slope_spread=slope.spread,
    )  # fmt: skip
    worth = truth * VALUE / 100
    gap = worth.max(axis=1, keepdims=True) - worth
    rng, sums, regret = np.random.default_rng([seed, 7]), policy.init(), 0.0
    for size in worlds.batches(DECISIONS):
        p = np.asarray(policy.probabilities(policy.believe(sums), EVERY, ALL))
        regret += size * float((p * gap).sum()) / SEGMENTS
        trials = np.stack([rng.multinomial(size, row / row.sum()) for row in p])
        sums = ledger.add(sums, _sums(trials, rng.binomial(trials, truth)))
    return regret


def _sums(trials: Counts, conversions: Counts) -> ArmSums:
    reward = np.rint(VALUE).astype(np.int64)
    return ledger.zeros(segments=SEGMENTS, arms=trials.shape[1])._replace(
        trials=trials, conversions=conversions, reward=conversions * reward,
        square_low=conversions * reward**2,
    )  # fmt: skip


def pair(world: str, before: str, seeds: range) -> Floats:
    """Regret (seeds, 2) of the default, and of the default that was told."""
    found = []
    for seed in track(seeds, f"{world} after {before}", transient=True):
        truth = MAKERS[world](np.random.default_rng([seed, 1]))[:SEGMENTS]
        slope = warm_start.slope(earlier(before, seed))
        found.append((lost(truth, seed=seed), lost(truth, seed=seed, slope=slope)))
    return np.array(found)


def main() -> None:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=40, help="seeds per row (40)")
    count = parser.parse_args().seeds
    print("| world | earlier campaigns | default | told | saved |\n|---|---|-:|-:|-:|")
    for world, before in PAIRS:
        regret = pair(world, before, range(count))
        usual, told = regret.mean(axis=0)
        saved = regret[:, 0] - regret[:, 1]
        half = 1.96 * saved.std(ddof=1) / np.sqrt(count)
        print(
            f"| {world} | {before} | {usual:.0f} | {told:.0f}"
            f" | {100 * saved.mean() / usual:.0f} ± {100 * half / usual:.0f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
