"""Recommenders beside their peers on the same splits, in one run.

    python -m tests.bench.recommender                       both sets; about a quarter of an hour
    python -m tests.bench.recommender --data movielens      a minute
    python -m tests.bench.recommender --timing              seconds of an iteration, in turn

A fifth of the events is held back at random. On MovieLens 100k there are three splits and all
customers; on the power law one split, and 10,000 customers drawn at random are judged. Recall and
NDCG at 20 are means over customers (over a customer's splits first); differences to a peer are
paired by customer, with 95 % bootstrap intervals over customers. Peers run in environments of
their own, with two threads; settings and how they were chosen are in ``systems.py``.

``--timing`` fits alternating least squares of both kinds with the same 64 factors, α = 20 and
λ = 300 on the power law, in turn, and compares medians of an iteration: wall and processor seconds,
the first (which compiles) left out. Results replace those of the same set in ``recommender.json``;
``recommender.md`` is the table.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandits.recommender.interactions import Interactions, by_user, split_by_chance
from bandits.recommender.metrics import Interval, interval
from tests.bench.recommender import data
from tests.bench.recommender.systems import PEERS, SETTINGS, Outcome, run

RESULTS = Path(__file__).parent.with_name("recommender.json")
SEEDS = {"movielens": (0, 1, 2), "power_law": (0,)}
TITLES = {
    "movielens": "MovieLens 100k",
    "power_law": "Power law: 100,000 customers, 20,000 items, 5.5 M interactions",
}
JUDGED = 10_000
HEAD = """# Recommenders beside their peers

Made by `python -m tests.bench.recommender`, whose docstring says what is measured. Means over
customers with 95 % intervals; Δ is NDCG less the peer's, paired by customer.

"""


def events(name: str) -> Interactions:
    """The set, every interaction counting one."""
    found = data.movielens() if name == "movielens" else data.power_law()
    return found._replace(value=np.ones_like(found.value))


def judged(future: Interactions, seed: int) -> NDArray[np.intp]:
    """The customers whose lists are judged: some of those who have something held back."""
    whom = np.flatnonzero(by_user(future).degree)
    if len(whom) > JUDGED:
        whom = np.sort(np.random.default_rng(seed).choice(whom, JUDGED, replace=False))
    return whom


def compare(name: str) -> Iterator[dict[str, Any]]:
    """All systems of a set, as far as they are finished: intervals, and differences to peers."""
    whole = events(name)
    found: dict[str, dict[str, Any]] = {}
    by_customer: dict[str, NDArray[np.float64]] = {}
    splits = []
    for seed in SEEDS[name]:
        past, future = split_by_chance(whole, share=0.2, seed=seed)
        splits.append((seed, past, future, judged(future, seed)))
    for system, options in SETTINGS[name].items():
        outcomes = [
            run(system, options, past, future, whom, seed=seed)
            for seed, past, future, whom in splits
        ]
        print(name, system, *(f"{o.ndcg.mean():.4f}" for o in outcomes), flush=True)
        by_customer[system] = _per_customer(outcomes, [whom for *_, whom in splits], whole.users)
        found[system] = {
            "options": options,
            "recall": interval(by_customer[system][0]),
            "ndcg": interval(by_customer[system][1]),
            "coverage": float(np.mean([o.coverage for o in outcomes])),
            "fit_seconds": float(np.median([o.seconds for o in outcomes])),
        }
        for one, entry in found.items():
            entry["less"] = {
                peer: [interval(by_customer[one][k] - by_customer[peer][k]) for k in (0, 1)]
                for peer in PEERS
                if peer in found and peer != one
            }
        yield found


def _per_customer(
    outcomes: list[Outcome], whom: list[NDArray[np.intp]], users: int
) -> NDArray[np.float64]:
    """(2, V) recall and NDCG of every customer who was judged, mean over the splits."""
    total, times = np.zeros((2, users)), np.zeros(users)
    for outcome, judged_ in zip(outcomes, whom, strict=True):
        total[:, judged_] += outcome.recall, outcome.ndcg
        times[judged_] += 1
    return total[:, times > 0] / times[times > 0]


def timing(rounds: int = 2, iterations: int = 5) -> dict[str, Any]:
    """Median seconds of an iteration, of both kinds in turn on the power law, and their NDCG."""
    past, future = split_by_chance(events("power_law"), share=0.2, seed=0)
    whom = judged(future, 0)
    seconds: dict[str, list[Any]] = {"implicit": [], "Barter als_implicit": []}
    ndcg: dict[str, float] = {}
    for turn in range(rounds):
        for system, kept in seconds.items():
            options = SETTINGS["power_law"][system] | {"iterations": iterations}
            outcome = run(system, options, past, future, whom, seed=turn)
            kept.extend(outcome.iteration[1:])
            ndcg[system] = float(outcome.ndcg.mean())
            print("timing", system, outcome.iteration.round(2).tolist(), flush=True)
    return {
        system: {
            "wall": float(np.median(np.array(kept)[:, 0])),
            "processor": float(np.median(np.array(kept)[:, 1])),
            "ndcg": ndcg[system],
        }
        for system, kept in seconds.items()
    }


def report(results: dict[str, Any]) -> str:
    """The table."""
    text = HEAD
    for name, title in TITLES.items():
        if name not in results:
            continue
        text += f"## {title}\n\n"
        text += "| | recall@20 | NDCG@20 | Δ implicit | Δ LightFM | coverage | fit, s |\n"
        text += "|---|---|---|---|---|---|---|\n"
        for system, one in sorted(results[name].items(), key=lambda pair: -pair[1]["ndcg"][0]):
            gaps = [_signed(one["less"][peer][1]) if peer in one["less"] else "" for peer in PEERS]
            text += f"| {system} | {_spread(one['recall'])} | {_spread(one['ndcg'])} | "
            text += f"{gaps[0]} | {gaps[1]} | {one['coverage']:.2f} | {one['fit_seconds']:.1f} |\n"
        text += "\n"
    if "timing" in results:
        text += "## Seconds of an iteration of implicit ALS on the power law, 64 factors\n\n"
        text += "| | wall | processor | NDCG@20 after as many iterations |\n|---|---|---|---|\n"
        for system, one in results["timing"].items():
            text += (
                f"| {system} | {one['wall']:.2f} | {one['processor']:.2f} | {one['ndcg']:.4f} |\n"
            )
        text += "\n"
    return text + (
        "Two cores that other work shares, so seconds of a fit are of that day; rows of one table\n"
        "are of one run.\n"
    )


def _spread(given: Interval) -> str:
    mean, low, high = given
    return f"{mean:.4f} ({low:.4f} to {high:.4f})"


def _signed(given: Interval) -> str:
    mean, low, high = given
    return f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"


def main() -> None:
    """The command line."""
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(description=lines[0])
    parser.add_argument("--data", default="movielens,power_law", help="sets, by commas")
    parser.add_argument("--timing", action="store_true", help="only the seconds of an iteration")
    given = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if given.timing:
        _write(results | {"timing": timing()})
        return
    for name in given.data.split(","):
        for found in compare(name):
            results[name] = found
            _write(results)


def _write(results: dict[str, Any]) -> None:
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(report(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
