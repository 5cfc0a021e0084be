"""What a dense ladder of depths gains over six, where any depth from 0 to 30 % may be given.

    python -m tests.bench.depth_ladders --seeds 10 --output tests/bench/depth_ladders.md

The worlds are those of :mod:`.discount_worlds`, as curves over all depths, but with 24 segments,
which learn as there, by the default policy (``thompson_hierarchical``), with 6 or with 31 arms at
equal distances (a step of 6 or of 1 %). Regret is expected, in major units per
segment, against the best of **all** depths (in steps of 0.05 %), whatever depths a policy has. What
the best of six or of 31 depths lacks at every decision is part of it, and is given beside it.

A seed draws a truth and everything after it; every ladder meets the same truths. Differences are
paired, with 95 % t intervals over the seeds.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from scipy import stats

from bandits import ledger, policies
from bandits.types import ArmSums, Contexts
from tests.bench import discount_worlds as worlds
from tests.bench.discount_worlds import DEFAULT, MARGIN, PRICE, Floats

#: Depths (601,) in steps of 0.05 %: every sixth and every thirty-first are among them.
FINE = np.linspace(0.0, 0.3, 601)
LADDERS = (6, 31)
SEGMENTS = 24
MARKS = (1_000, 10_000)


def any_steps(rng: np.random.Generator, depth: Floats) -> Floats:
    """Stepped: every segment has a threshold of its own, anywhere from 9 to 27 % off."""
    return worlds._step(rng, rng.uniform(0.09, 0.27, worlds.SEGMENTS), depth)


MAKERS = (worlds.alike, worlds.varied, worlds.two_kinds, any_steps, worlds.peaked)
EVERY = Contexts(np.arange(SEGMENTS, dtype=np.int32), np.zeros((SEGMENTS, 0), np.int64))


def run(truth: Floats, *, arms: int, seed: int) -> dict[str, float]:
    """Expected regret per segment at every mark, and ``lack``: of the best arm, per decision.

    Args:
        truth: (S, 601) conversion at every depth of :data:`FINE`.
        arms: A, depths at equal distances.
        seed: of customers and sampler.
    """
    among = np.linspace(0, len(FINE) - 1, arms).round().astype(int)
    depths = np.tile(FINE[among], (SEGMENTS, 1))
    value = np.rint((MARGIN - depths) * PRICE)
    policy = policies.make(DEFAULT, arms=arms, segments=SEGMENTS, value=value, depth=depths)
    worth = truth * (MARGIN - FINE) * PRICE / 100
    gap = worth.max(axis=1, keepdims=True) - worth[:, among]
    found = {"lack": float(gap.min(axis=1).mean())}
    rng, sums, lost, done = np.random.default_rng([seed, 7]), policy.init(), 0.0, 0
    for size in worlds.batches(MARKS[-1]):
        p = np.asarray(policy.probabilities(policy.believe(sums), EVERY, depths >= 0))
        lost += size * float((p * gap).sum()) / SEGMENTS
        done += size
        trials = np.stack([rng.multinomial(size, row / row.sum()) for row in p])
        sums = ledger.add(sums, _sums(trials, rng.binomial(trials, truth[:, among]), value))
        if done in MARKS:
            found[str(done)] = lost
    return found


def _sums(trials: NDArray[np.int64], conversions: NDArray[np.int64], value: Floats) -> ArmSums:
    reward = value.astype(np.int64)
    square, zero = reward * reward, np.zeros_like(trials)
    return ArmSums(
        trials, conversions, conversions * reward, conversions * (square >> 32),
        conversions * (square & ((1 << 32) - 1)), zero, zero,
    )  # fmt: skip


def study(*, seeds: int, first: int = 0) -> list[dict[str, Any]]:
    """One record per world, seed and ladder."""
    records = []
    for seed in track(range(first, first + seeds), "seeds", transient=True):
        for make in MAKERS:
            key = sum(map(ord, make.__name__))
            truth = make(np.random.default_rng([seed, key]), FINE)[:SEGMENTS]
            for arms in LADDERS:
                began = time.process_time()
                found = run(truth, arms=arms, seed=seed)
                records.append(
                    {"world": make.__name__, "seed": seed, "arms": arms}
                    | {mark: round(lost, 5) for mark, lost in found.items()}
                    | {"seconds": round(time.process_time() - began, 2)}
                )
    return records


def table(records: list[dict[str, Any]]) -> str:
    """The study as markdown."""
    seeds = len({record["seed"] for record in records})
    lines = [
        "# Ladders of depths",
        "",
        f"`python -m tests.bench.depth_ladders --seeds {seeds}`: profit regret per segment (major"
        f" units) against the best of all depths from 0 to 30 %, mean of {seeds} seeds; in brackets"
        " what the best of the ladder's own depths lacks. The last column is what 31 depths lose"
        " less than six, paired, as a share of what six lose.",
        "",
        "| world | decisions | 6 depths | 31 depths | 31 save |",
        "|---|-:|-:|-:|-:|",
    ]
    for make in MAKERS:
        few, many = (_chosen(records, world=make.__name__, arms=arms) for arms in LADDERS)
        for mark in MARKS:
            cells = [
                f"{_mean(part, str(mark)):.0f} ({mark * _mean(part, 'lack'):.1f})"
                for part in (few, many)
            ]
            lost = [np.array([record[str(mark)] for record in part]) for part in (few, many)]
            lines.append(
                f"| {make.__name__} | {mark} | " + " | ".join(cells) + f" | {interval(*lost)} |"
            )
    slowest = [np.mean([r["seconds"] for r in records if r["arms"] == arms]) for arms in LADDERS]
    lines += ["", f"A run took {slowest[0]:.1f} and {slowest[1]:.1f} s of processor time (mean)."]
    return "\n".join(lines) + "\n"


def interval(few: Floats, many: Floats) -> str:
    """What ``many`` (seeds,) lose less than ``few``, in per cent of the latter's mean."""
    share = 100 * (few - many) / few.mean()
    if len(share) < 2:
        return f"{share.mean():.0f} %"
    half = stats.t.ppf(0.975, len(share) - 1) * share.std(ddof=1) / np.sqrt(len(share))
    return f"{share.mean():.0f} ± {half:.0f} %"


def _chosen(records: list[dict[str, Any]], **wanted: object) -> list[dict[str, Any]]:
    found = [one for one in records if all(one[key] == value for key, value in wanted.items())]
    return sorted(found, key=lambda record: record["seed"])


def _mean(records: list[dict[str, Any]], name: str) -> float:
    return float(np.mean([record[name] for record in records]))


def main() -> None:
    """Run the study and write its table and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="seeds per world (10)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--output", type=Path, help="markdown file; records go beside it as JSON")
    options = parser.parse_args()
    records = study(seeds=options.seeds, first=options.first)
    text = table(records)
    print(text)
    if options.output:
        options.output.write_text(text)
        options.output.with_suffix(".json").write_text(
            "[\n" + ",\n".join(json.dumps(record) for record in records) + "\n]\n"
        )


if __name__ == "__main__":
    main()
