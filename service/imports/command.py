"""``barter import``: a file of any size from the command line, with a bar and a summary."""

import argparse
import csv
import resource
import sys
import threading
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from service.config import Config
from service.db import transaction
from service.errors import BarterError, Invalid
from service.imports import jobs, kinds
from service.imports.quality import Quality, findings
from service.models import Import

MEMORY_BYTES = 4 << 30
SIGNS = {"good": "✓", "info": "·", "warn": "!", "bad": "✗"}


def run(
    engine: Engine, config: Config, arguments: argparse.Namespace, stop: threading.Event
) -> int:
    """Import one file, or whatever waits on this host; return the exit status."""
    # A file made to fill the memory ends this process and nothing else.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    if arguments.kind == "waiting":
        return waiting(engine, config, stop)
    if not arguments.file:
        raise Invalid(f"Name the file: barter import {arguments.kind} FILE")
    path = Path(arguments.file)
    if not path.is_file():
        raise Invalid(f"There is no file {path}.")
    return _one(engine, config, arguments, path, stop)


def waiting(engine: Engine, config: Config, stop: threading.Event) -> int:
    """Read the files that were taken in by this host, oldest first."""
    for id, path in jobs.waiting(config, engine):
        try:
            jobs.work(engine, config, id, path, progress=lambda _: _let_go(stop))
        except (jobs.TakenOver, _Stopped):
            return 0
        path.unlink(missing_ok=True)
    return 0


class _Stopped(Exception):
    """The process was told to end; the import goes on where it stands."""


def _let_go(stop: threading.Event) -> None:
    if stop.is_set():
        raise _Stopped()


def _one(
    engine: Engine,
    config: Config,
    arguments: argparse.Namespace,
    path: Path,
    stop: threading.Event,
) -> int:
    settings = kinds.settings_of(
        arguments.column, decimals=arguments.decimals, zone=arguments.zone,
        encoding=arguments.encoding,
    )  # fmt: skip
    kind = arguments.kind
    plan = jobs.check(path, kind, settings)
    received = jobs.described(path)
    with transaction(engine) as session:
        before = jobs.earlier(session, received, kind=kind)
        if before is not None and before.state == "done" and not arguments.again:
            print(f"This file was imported on {before.finished_at:%Y-%m-%d %H:%M} UTC; "
                  "nothing to do. --again reads it anyway.")  # fmt: skip
            return 0
        resumed = before is not None and before.state in ("waiting", "reading", "failed")
        job = before if resumed and before is not None else jobs.begin(
            session, received, kind=kind, name=path.name, settings=settings, actor="command line"
        )  # fmt: skip
    if resumed and job.rows:
        print(f"Goes on after {job.rows:,} rows.")
    if plan.unused:
        print(f"Not used: {', '.join(plan.unused[:12])}")
    try:
        done = _read(engine, config, job, path, arguments.rejects, stop)
    except _Stopped:
        print("Interrupted; run the same command again to go on.")
        return 130
    print_summary(done)
    return 0 if done.state == "done" else 1


def _read(
    engine: Engine,
    config: Config,
    job: Import,
    path: Path,
    rejects: str | None,
    stop: threading.Event,
) -> Import:
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[rows]:,} rows"), TimeRemainingColumn(),
        console=Console(stderr=True),
    )  # fmt: skip
    with bar, open(rejects or "/dev/null", "w", newline="", encoding="utf-8") as file:
        refused = csv.writer(file)
        refused.writerow(("line", "field", "reason"))
        task = bar.add_task(path.name, total=1.0, rows=job.rows)

        def show(now: Import) -> None:
            bar.update(task, completed=now.progress, rows=now.rows)
            _let_go(stop)

        try:
            return jobs.work(
                engine, config, job.id, path, progress=show,
                refused=lambda *row: refused.writerow(row),
            )  # fmt: skip
        except jobs.TakenOver:
            raise BarterError("Another process is reading this file just now.") from None
        except OperationalError:
            raise BarterError(
                "The database is away. Run the same command again: it goes on where it stands."
            ) from None


def print_summary(job: Import) -> None:
    """Say what an import came to, and what there is to know about its data."""
    print(f"{job.stored:,} rows stored, {job.known:,} known before, {job.rejected:,} refused.")
    if job.error:
        print(job.error, file=sys.stderr)
    told = findings(
        Quality.of(job.quality), rows=job.rows, stored=job.stored, known=job.known,
        rejected=job.rejected, kind=kinds.kind(job.kind),
        decimals=job.settings["decimals"],
    )  # fmt: skip
    for one in told:
        print(f"  {SIGNS[one.kind]} {one.text}")
