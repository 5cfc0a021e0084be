"""Runs what is not finished yet, one process at a time, the short ones first."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tests.bench.policies import environments
from tests.bench.policies.results import Results
from tests.bench.policies.systems import Contender
from tests.bench.policies.tasks import Problem, Task, curve, score

ROOT = Path(__file__).parents[3]

#: One thread each, so that what is measured does not hang on the machine's other cores.
PINNED = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}


class Job(NamedTuple):
    """A system on a task, with the seeds that are not finished."""

    task: Task
    contender: Contender
    rows: int
    seeds: list[int]

    def seconds(self) -> float:
        """About what a seed takes."""
        return self.rows * self.contender.cost_us / 1e6 + 1


class SystemFailedError(Exception):
    """A system's process ended without an answer; the message is its last line of complaint."""


def unfinished(
    pairs: Iterable[tuple[Task, Contender]],
    results: Results,
    *,
    seeds: int | None = None,
    rows: Mapping[str, int] = MappingProxyType({}),
) -> list[Job]:
    """What there is to run, the shortest first; ``rows`` of a task are at most so many."""
    jobs = []
    for task, contender in pairs:
        size = min(task.rows, rows.get(task.name, task.rows))
        wanted = set(range(seeds or task.seeds)) - results.seeds(task, contender, size)
        if wanted:
            jobs.append(Job(task, contender, size, sorted(wanted)))
    return sorted(jobs, key=lambda job: job.seconds() * len(job.seeds))


def run(jobs: list[Job], results: Results, console: Console) -> list[str]:
    """Run the jobs and store every seed as it is finished; what failed, in words."""
    failures = []
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )
    with bar:
        whole = bar.add_task("all", total=sum(job.seconds() * len(job.seeds) for job in jobs))
        for job in jobs:
            what = f"{job.task.name}: {job.contender.name}"
            bar.update(whole, description=what)
            left = len(job.seeds)
            try:
                for seed, record in outcomes(job):
                    results.put(job.task, job.contender, job.rows, seed, record)
                    bar.advance(whole, job.seconds())
                    left -= 1
            except (SystemFailedError, environments.EnvironmentUnavailableError) as error:
                failures.append(f"{what}: {error}")
                bar.advance(whole, job.seconds() * left)
    return failures


def outcomes(job: Job) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every seed with what the system reached, as they come.

    Raises:
        SystemFailedError: the process failed.
        EnvironmentUnavailableError: the peer could not be installed.
        DataUnavailableError: the task's table could not be had.
    """
    library = job.contender.library
    python = environments.python(library) if library else Path(sys.executable)
    problems = {seed: job.task.problem(seed, rows=job.rows) for seed in job.seeds}
    with tempfile.TemporaryDirectory(prefix="barter-bench-") as folder:
        paths = [(seed, written(problem, Path(folder), seed)) for seed, problem in problems.items()]
        asked = {"settings": job.contender.settings, "problems": paths}
        for answer in asked_of([str(python), "-m", job.contender.module], asked):
            problem, arms = problems[answer["seed"]], np.array(answer["arms"])
            at, lost = curve(problem, arms)
            yield (
                answer["seed"],
                {
                    "score": round(score(job.task, problem, arms), 6),
                    "seconds": round(answer["seconds"], 2),
                    "at": at,
                    "curve": [round(float(value), 1) for value in lost],
                },
            )


def written(problem: Problem, folder: Path, seed: int) -> str:
    """The file with what a system may see of a problem."""
    path = folder / f"{seed}.npz"
    np.savez(path, contexts=problem.contexts, reward=problem.reward)
    return str(path)


def asked_of(command: list[str], asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines of JSON that a process answers with; it is ended when the caller stops.

    Raises:
        SystemFailedError: it failed.
    """
    with tempfile.TemporaryFile("w+") as complaint:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | PINNED,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaint,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.close()
            for line in process.stdout:
                if line.startswith("{"):  # some libraries print
                    yield json.loads(line)
            if process.wait() != 0:
                complaint.seek(0)
                last = complaint.read().strip().splitlines()[-1:] or ["no reason was given"]
                raise SystemFailedError(last[0])
        finally:
            if process.poll() is None:
                process.kill()
            process.stdout.close()
            process.wait()
