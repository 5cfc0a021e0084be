"""Barter's policies, the peers and the yardsticks on the same work, side by side.

    python -m tests.bench.policies                          all that is not finished yet
    python -m tests.bench.policies --quick                  a minute, without peers or downloads
    python -m tests.bench.policies --tasks digits,wheel-95 --systems 'Barter*,uniform'
    python -m tests.bench.policies --add 'squarecb gamma=30' --tasks adult
    python -m tests.bench.policies --policy my_policy.py    your own, beside the others' results
    python -m tests.bench.policies --report                 tables and figures, nothing is run

Every finished (task, system, seed) is stored at once and not run again while its settings are the
same; Ctrl-C loses the seed that is running. Peers are installed into environments of their own in
the cache folder (BARTER_BENCH_CACHE, else ~/.cache/barter-bench), from pinned versions, when first
needed; the tables of the classification tasks are downloaded there.

A policy of your own is a module with SPEC and policy(...), as in bandits/policies; the page on it
is in bandits/README.md. Its results go to the cache folder; the committed ones stay as they are.
"""

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console

from tests.bench.policies import barter, data, report, suite
from tests.bench.policies.results import FOLDER, Results
from tests.bench.policies.systems import Contender, contenders
from tests.bench.policies.tasks import TASKS, Task

#: What `--quick` runs: (task, rows), three seeds each, Barter and yardsticks only.
QUICK = {"bernoulli": 1500, "linear": 1500, "wheel-90": 3000}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    lines = (__doc__ or "").splitlines()
    found = argparse.ArgumentParser(
        prog="python -m tests.bench.policies",
        description="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"tasks: {', '.join(TASKS)}",
    )
    add = found.add_argument
    add("--tasks", default="", help="names, with commas; all when left out")
    add("--systems", default="", help="patterns of names as in the table, with commas")
    add(
        "--add",
        action="append",
        default=[],
        metavar="'NAME OPTION=VALUE'",
        help="one more setting of a registered policy",
    )
    add("--policy", action="append", default=[], metavar="FILE", help="a policy of your own")
    add("--seeds", type=int, help="how many; the task's own number when left out")
    add("--rows", type=int, help="at most so many rows (use with --results)")
    add("--quick", action="store_true", help="small sizes, no peers, results thrown away")
    add("--again", action="store_true", help="run what is finished too")
    add("--report", action="store_true", help="only write tables and figures")
    add("--results", type=Path, help="folder of the results; the committed one when left out")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; 1 when a system failed, 2 when what is asked for makes no sense."""
    chosen, console = parser().parse_args(arguments), Console()
    try:
        tasks = _tasks(chosen)
        files = {str(Path(path).resolve()): _file(Path(path)) for path in chosen.policy}
    except ValueError as error:
        console.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        return 2
    with tempfile.TemporaryDirectory(prefix="barter-bench-") as scratch:
        results = _results(chosen, Path(scratch))
        pairs = [(task, one) for task in tasks for one in _systems(task, chosen, files)]
        failures = [] if chosen.report else _run(pairs, results, chosen, console)
        for task in tasks:
            console.print(report.terminal(task, results.measured(task)))
        if results.folder == FOLDER and not chosen.policy:
            report.write(results)
    for failure in failures:
        console.print(
            f"failed: {failure}", style="red", highlight=False, markup=False, soft_wrap=True
        )
    return 1 if failures else 0


def _run(
    pairs: list[tuple[Task, Contender]],
    results: Results,
    chosen: argparse.Namespace,
    console: Console,
) -> list[str]:
    if chosen.again:
        for task, contender in pairs:
            results.forget(task, contender.name)
    seeds, failures = chosen.seeds or (3 if chosen.quick else None), []
    rows = QUICK if chosen.quick else dict.fromkeys(TASKS, chosen.rows) if chosen.rows else {}
    jobs = suite.unfinished(pairs, results, seeds=seeds, rows=rows)
    for name in dict.fromkeys(job.task.name for job in jobs):
        try:  # the table of a task is fetched before anything of it is run
            TASKS[name].problem(0, rows=1)
        except data.DataUnavailableError as error:
            failures.append(str(error))
            jobs = [job for job in jobs if job.task.name != name]
    return failures + (suite.run(jobs, results, console) if jobs else [])


def _results(chosen: argparse.Namespace, scratch: Path) -> Results:
    if chosen.results:
        return Results(chosen.results)
    if chosen.quick:
        return Results(scratch)
    if chosen.policy:
        return Results(data.cache() / "results", below=FOLDER)
    return Results()


def _tasks(chosen: argparse.Namespace) -> list[Task]:
    names = [name for name in chosen.tasks.split(",") if name]
    if unknown := [name for name in names if name not in TASKS]:
        raise ValueError(f"no task {unknown[0]!r} (there are: {', '.join(TASKS)})")
    if chosen.quick:
        return [TASKS[name] for name in QUICK if not names or name in names]
    return [task for task in TASKS.values() if not names or task.name in names]


def _file(path: Path) -> str:
    """The file's digest, by which a changed policy is run again."""
    if not path.exists():
        raise ValueError(f"{path}: there is no such file")
    barter.module_of(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _systems(task: Task, chosen: argparse.Namespace, files: dict[str, str]) -> list[Contender]:
    found = []
    for one in contenders(task, added=chosen.add, files=files):
        path = one.settings.get("file")
        if path:
            one = one._replace(settings=one.settings | {"digest": files[path]})
        asked = not chosen.systems or any(
            fnmatch(one.name, pattern.strip()) for pattern in chosen.systems.split(",")
        )
        plugged = bool(path) or not files
        quick = not chosen.quick or one.kind != "peer"
        if asked and plugged and quick:
            found.append(one)
    return found


if __name__ == "__main__":
    sys.exit(main())
