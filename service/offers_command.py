"""``barter decide``: offers for a file of customers from the command line, with a bar."""

import argparse
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from service import offers
from service.config import Config
from service.errors import BarterError
from service.pseudonyms import Pseudonyms


class _Stopped(Exception):
    """The process was told to end; the message says what is left."""


def run(
    engine: Engine, config: Config, arguments: argparse.Namespace, stop: threading.Event
) -> int:
    """Decide about one file; return the exit status."""
    job = offers.begin(
        engine, arguments.campaign, Path(arguments.input), Path(arguments.output),
        unit=arguments.unit, actor="command line", again=arguments.again,
    )  # fmt: skip
    if job.run.rows:
        print(f"Goes on after {job.run.rows:,} rows.")
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.completed:,.0f} decisions"), TimeRemainingColumn(),
        console=Console(stderr=True),
    )  # fmt: skip
    waiting = (
        f"{job.output} is whole; decisions wait in PostgreSQL to be entered in the log, which"
        " barter serve does by itself."
    )
    began, first, total = time.monotonic(), job.run.rows, job.run.total
    with bar:
        deciding = bar.add_task(job.run.name, total=total, completed=first)
        logging = bar.add_task("into the log", total=total, visible=False)

        def show(rows: int) -> None:
            bar.update(deciding, completed=rows)
            if stop.is_set() and rows < total:
                raise _Stopped("Interrupted; run the same command again to go on.")

        def entered(left: int) -> None:
            bar.update(logging, completed=total - left, visible=True)
            if stop.is_set() and left:
                raise _Stopped(f"Interrupted; {left:,} decisions are not in the log. {waiting}")

        try:
            offers.work(
                engine, job, Pseudonyms(config.key("unit")), progress=show, entering=entered
            )
        except _Stopped as stopped:
            print(stopped)
            return 130
        except OperationalError:
            again = "Run the same command again: it goes on where it stands."
            # The output is there when entering begins, and not before.
            raise BarterError(
                f"The database is away. {waiting if job.output.exists() else again}"
            ) from None
    made, seconds = job.run.total - first, time.monotonic() - began
    print(f"{made:,} decisions in {seconds:,.1f} s, in the log and in {job.output}.")
    return 0
