"""What a decision and its lesson cost: Barter beside its peers, one thread each.

    python -m tests.bench.policies.timing          about ten minutes, best on an idle machine

Every system goes through the same rows in a fresh process, chooses and learns; what is timed is
both, with whatever the system needs its input to be turned into (text for Vowpal Wabbit, integers
for Barter). The systems take turns; a figure is the median of five turns, and a ratio is the median
of the turns' own ratios. Vowpal Wabbit's native program reads the rows from a file that was written
before: with ``--cbify`` it chooses itself, without it learns from a log of uniform choices.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track

from tests.bench.policies import environments, suite
from tests.bench.policies.results import FOLDER
from tests.bench.policies.tasks import TASKS

RESULT = FOLDER / "timing.json"

BATCHED = {"share": 1e9, "most": 100}


class Case(NamedTuple):
    """One system on one stream of rows."""

    group: str
    name: str
    task: str
    rows: int
    module: str
    library: str | None
    settings: dict[str, Any]


def _ours(group: str, name: str, task: str, rows: int, settings: dict[str, Any]) -> Case:
    return Case(group, name, task, rows, "tests.bench.policies.barter", None, settings)


def _peer(group: str, name: str, task: str, rows: int, settings: dict[str, Any]) -> Case:
    library = settings["library"].split()[-1]
    return Case(group, name, task, rows, "tests.bench.policies.peers", library, settings)


def cases() -> list[Case]:
    """Everything that is timed; the first of a group is what the others are compared with."""
    one, many = "one at a time", "in batches of 100"
    ucb, online = {"policy": "linear_ucb", "unit": 1000}, {"unit": 1000}
    vw = {"library": "vowpalwabbit", "options": "--squarecb --cb_min_cost -4 --cb_max_cost 4"}
    bayes = {"library": "bayesianbandits", "learner": "normal", "precision": 4.0}
    found = [
        _ours(one, "Barter OnlineLinUCB", "linear", 3000, online | {"online": 1}),
        _ours(one, "Barter linear_ucb, the policy", "linear", 2000, ucb | {"most": 1}),
        _peer(one, "MABWiser LinUCB", "linear", 800, _linucb("mabwiser")),
        _peer(one, "contextualbandits LinUCB", "linear", 800, _linucb("contextualbandits")),
        _peer(one, "bayesianbandits Thompson", "linear", 500, bayes),
        _peer(one, "VW squarecb, Python", "linear", 3000, vw),
        _ours(many, "Barter OnlineLinUCB", "linear", 10_000, online | {"online": 100}),
        _ours(many, "Barter linear_ucb, the policy", "linear", 10_000, ucb | BATCHED),
        _peer(many, "MABWiser LinUCB", "linear", 10_000, _linucb("mabwiser", 100)),
        _peer(
            many, "contextualbandits LinUCB", "linear", 10_000, _linucb("contextualbandits", 100)
        ),
        _peer(many, "bayesianbandits Thompson", "linear", 5000, bayes | {"batch": 100}),
        _peer(many, "VW squarecb, native, from a log", "linear", 10_000, _native("-q sa")),
    ]
    for task, arms in (("shuttle", 7), ("adult", 2)):
        group = f"{many}, {task}"
        classes, ucb, square = (
            _native(f"--cbify {arms}"),
            {"policy": "linear_ucb"},
            {"policy": "squarecb"},
        )
        found += [
            _ours(group, "Barter OnlineLinUCB", task, 10_000, {"online": 100}),
            _ours(group, "Barter linear_ucb, the policy", task, 10_000, ucb | BATCHED),
            _ours(group, "Barter squarecb, the policy", task, 10_000, square | BATCHED),
            _peer(group, "VW squarecb, native", task, 10_000, classes),
        ]
    return found


def _linucb(library: str, batch: int = 1) -> dict[str, Any]:
    return {"library": library, "policy": "LinUCB", "alpha": 1.0, "batch": batch}


def _native(more: str) -> dict[str, Any]:
    return {"library": "native vowpalwabbit", "options": f"--cb_explore_adf --squarecb {more}"}


def microseconds(case: Case) -> float:
    """Time per row of one fresh process, choosing and learning."""
    python = environments.python(case.library) if case.library else Path(sys.executable)
    problem = TASKS[case.task].problem(0, rows=case.rows)
    with tempfile.TemporaryDirectory(prefix="barter-bench-") as folder:
        path = suite.written(problem, Path(folder), 0)
        asked = {"settings": case.settings, "problems": [(0, path)]}
        (answer,) = suite.asked_of([str(python), "-m", case.module], asked)
    return 1e6 * float(answer["seconds"]) / case.rows


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """A markdown table per group, with ratios to its first system."""
    parts = []
    for group, systems in found.items():
        first = next(iter(systems.values()))
        parts.append(f"| {group} | µs per row | least to greatest | ÷ the first |\n|-|-:|-:|-:|")
        for name, values in systems.items():
            ratio = statistics.median(a / b for a, b in zip(values, first, strict=True))
            spread = f"{min(values):,.1f} to {max(values):,.1f}"
            parts[-1] += (
                f"\n| {name} | {statistics.median(values):,.1f} | {spread} | {ratio:,.2f} |"
            )
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables and store the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5, help="of every system (default 5)")
    parser.add_argument("--group", default="", help="only groups that begin so")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the numbers are stored")
    chosen = parser.parse_args(arguments)
    kept = [case for case in cases() if case.group.startswith(chosen.group)]
    found: dict[str, dict[str, list[float]]] = {}
    turns = [case for _ in range(chosen.turns) for case in kept]
    for case in track(turns, console=Console(stderr=True)):
        values = found.setdefault(case.group, {}).setdefault(case.name, [])
        values.append(round(microseconds(case), 2))
    print(table(found))
    machine = {"python": platform.python_version(), "machine": platform.machine()}
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps({"machine": machine, "µs per row": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
