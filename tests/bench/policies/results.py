"""What has been measured: one JSON file per task, which several runs may write at once."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.bench.policies.protocol import Floats
from tests.bench.policies.systems import Contender, version
from tests.bench.policies.tasks import Task

#: Results that are committed.
FOLDER = Path(__file__).parent / "results"


class Measured(NamedTuple):
    """What one system reached on one task.

    Attributes:
        name: as in the table.
        kind: "barter", "peer" or "yardstick".
        score: seed -> the task's measure.
        curve: seed -> cumulative expected regret at the task's points.
        at: rows at those points.
    """

    name: str
    kind: str
    score: dict[int, float]
    curve: dict[int, list[float]]
    at: list[int]

    def paired(self, other: "Measured") -> Floats:
        """Differences (seeds,) of the scores, over the seeds that both have."""
        seeds = sorted(set(self.score) & set(other.score))
        return np.array([self.score[seed] - other.score[seed] for seed in seeds])


class Results:
    """A folder of results.

    Args:
        folder: made when missing.
        below: a folder whose results are read too, and never written.
    """

    def __init__(self, folder: Path = FOLDER, *, below: Path | None = None) -> None:
        self.folder, self.below = folder, below

    def seeds(self, task: Task, contender: Contender, rows: int) -> set[int]:
        """The seeds that are finished under the same settings and number of rows."""
        entry = self._read(self.folder, task.name).get(contender.name, {})
        if entry.get("settings") != contender.settings or entry.get("rows") != rows:
            return set()
        return {int(seed) for seed in entry["seeds"]}

    def put(
        self, task: Task, contender: Contender, rows: int, seed: int, record: dict[str, Any]
    ) -> None:
        """Store one finished seed, at once and for good."""
        with self._locked(task.name) as systems:
            same = {
                "kind": contender.kind,
                "settings": contender.settings,
                "version": version(contender),
                "rows": rows,
            }
            entry = systems.get(contender.name, {})
            if any(entry.get(key) != value for key, value in same.items()):
                entry = same | {"at": record["at"], "seeds": {}}
            kept = {key: record[key] for key in ("score", "seconds", "curve")}
            entry["seeds"] = entry["seeds"] | {str(seed): kept}
            systems[contender.name] = entry

    def forget(self, task: Task, name: str) -> None:
        """Drop what a system reached, so that it is run again."""
        with self._locked(task.name) as systems:
            systems.pop(name, None)

    def measured(self, task: Task) -> list[Measured]:
        """All systems of a task, best first."""
        found = self._read(self.below, task.name) | self._read(self.folder, task.name)
        systems = [
            Measured(
                name,
                entry["kind"],
                {int(seed): one["score"] for seed, one in entry["seeds"].items()},
                {int(seed): one["curve"] for seed, one in entry["seeds"].items()},
                entry["at"],
            )
            for name, entry in found.items()
        ]
        sign = -1 if task.measure == "reward" else 1
        return sorted(systems, key=lambda one: sign * float(np.mean(list(one.score.values()))))

    def _read(self, folder: Path | None, task: str) -> dict[str, Any]:
        path = folder / f"{task}.json" if folder else None
        if path is None or not path.exists():
            return {}
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    @contextmanager
    def _locked(self, task: str) -> Iterator[dict[str, Any]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder, os.O_RDONLY)  # closing it unlocks
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            systems = self._read(self.folder, task)
            yield systems
            path = self.folder / f"{task}.json"
            fresh = path.with_suffix(".new")
            fresh.write_text(_compact(systems))
            os.replace(fresh, path)
        finally:
            os.close(lock)


def _compact(systems: dict[str, Any]) -> str:
    """JSON with one line per seed, so that a commit shows what was run."""
    parts = []
    for name, entry in sorted(systems.items()):
        head = {key: value for key, value in entry.items() if key != "seeds"}
        seeds = sorted(entry["seeds"].items(), key=lambda item: int(item[0]))
        lines = ",\n".join(f"  {json.dumps(seed)}: {json.dumps(one)}" for seed, one in seeds)
        inner = json.dumps(head, ensure_ascii=False)[:-1]
        parts.append(f'{json.dumps(name, ensure_ascii=False)}: {inner}, "seeds": {{\n{lines}}}}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"
