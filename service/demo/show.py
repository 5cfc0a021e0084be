"""What the demo says while it works: progress bars on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

Report = Callable[[int, int], None]
PLAIN_STEPS = 4
PLAIN_WIDTH = 120


class _Count(ProgressColumn):
    """How many of how many, once that is known."""

    def render(self, task: Task) -> Text:
        """Return the text."""
        return Text(f"{task.completed:,.0f} of {task.total:,.0f}" if task.total else "")


class Show:
    """One screen. Every step is a `task`, and everything else goes through `say` and `table`."""

    def __init__(self, console: Console | None = None) -> None:
        """Write to a console of rich's, or to standard output."""
        self._console = console or Console(highlight=False)
        if not self._console.is_terminal:
            self._console.width = PLAIN_WIDTH
        self._live = self._console.is_terminal

    def say(self, text: str = "") -> None:
        """Print one line."""
        if self._live:
            self._console.print(text)
        else:
            print(text, file=self._console.file, flush=True)

    def heading(self, text: str) -> None:
        """Print a line that starts a part."""
        self.say(f"\n[bold]{text}[/bold]" if self._live else f"\n{text}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; all columns but the first are figures."""
        table = Table(box=None, pad_edge=False, header_style="dim")
        for place, name in enumerate(columns):
            table.add_column(name, justify="right" if place else "left", no_wrap=place > 0)
        for row in rows:
            table.add_row(*row)
        self._console.print(table)

    @contextmanager
    def task(self, label: str) -> Iterator[Report]:
        """Show a step while it runs; call what is yielded with (done, total) as it goes."""
        started = time.monotonic()
        if self._live:
            with self._bars() as bars:
                yield self._bar(bars, bars.add_task(label, total=None))
        else:
            self.say(f"{label} ...")
            yield self._steps(label)
        self.say(f"{label}: {time.monotonic() - started:.1f} s")

    def _bars(self) -> Progress:
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            _Count(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )

    @staticmethod
    def _bar(bars: Progress, task: TaskID) -> Report:
        def report(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total or None)

        return report

    def _steps(self, label: str) -> Report:
        said = 0

        def report(done: int, total: int) -> None:
            nonlocal said
            step = done * PLAIN_STEPS // total if total else 0
            if said < step < PLAIN_STEPS:
                said = step
                self.say(f"{label}: {done:,} of {total:,}")

        return report


def warn(text: str) -> None:
    """Say on standard error what went wrong."""
    print(f"barter demo: {text}", file=sys.stderr, flush=True)
