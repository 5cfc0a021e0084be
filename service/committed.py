"""Acknowledged means committed in PostgreSQL: who waits for the carrier, and for how long.

With ``BARTER_ACKNOWLEDGE=database`` what is on this host's disk (`service.spool`) is answered only
once the carrier has committed it. The carrier tells how far it has come in a small file (`Mark`);
in every process that appends, one thread (`Waiting`) looks at it while anything waits, and lets all
go that are covered: they share a transaction, as those who wait for the disk share a write.

Nobody waits longer than `LIMIT_SECONDS`. Once one has waited in vain, PostgreSQL is away or slow,
and the others are let go at once, as late, until the carrier has come to where that one stands: an
outage costs a checkout one second at its beginning, not one for every request.
"""

import contextlib
import os
import queue
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog

LIMIT_SECONDS = 1.0
POLL_SECONDS = 0.001
_TWICE = struct.Struct("=QQ")
log = structlog.get_logger()


class Mark:
    """A number in a file that one process writes and many read: how far the log is committed.

    It stands there twice, so that who reads while it is written sees that the two differ. A power
    cut may bring an older one back, which only means to wait for the carrier's next word.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, number: int) -> None:
        """Say how far; raises `OSError` where the disk refuses."""
        os.pwrite(self._file, _TWICE.pack(number, number), 0)

    def read(self) -> int:
        """Return how far; 0, which covers nothing, where nobody has said so whole."""
        found = os.pread(self._file, _TWICE.size, 0)
        if len(found) < _TWICE.size:
            return 0
        one, two = _TWICE.unpack(found)
        return int(one) if one == two else 0

    def __del__(self) -> None:
        """Close the file, where it could be opened."""
        with contextlib.suppress(AttributeError):
            os.close(self._file)


Then = Callable[[bool], None]


class _Waiter(NamedTuple):
    number: int
    until: float
    then: Then


class Waiting:
    """Those of one process who wait until a place in the log is committed."""

    def __init__(self, mark: Mark) -> None:
        self._mark = mark
        self._new: queue.SimpleQueue[_Waiter | None] = queue.SimpleQueue()
        self._behind = 0
        self._thread = threading.Thread(target=self._run, name="committed", daemon=True)
        self._thread.start()

    @property
    def behind(self) -> bool:
        """Whether answers are late: somebody waited in vain, and is not covered yet."""
        return self._mark.read() < self._behind

    def add(self, number: int, then: Then) -> None:
        """Call ``then`` once the log is committed up to a number: with True where that is late."""
        self._new.put(_Waiter(number, time.monotonic() + LIMIT_SECONDS, then))

    def close(self) -> None:
        """Let all go that wait, by their time at the latest, and stop."""
        self._new.put(None)
        self._thread.join()

    def _run(self) -> None:
        waiting: list[_Waiter] = []
        stopping = False
        while waiting or not stopping:
            with contextlib.suppress(queue.Empty):
                # With nobody waiting there is nothing to look at until somebody comes.
                while not stopping:
                    one = self._new.get_nowait() if waiting else self._new.get()
                    if one is None:
                        stopping = True
                    else:
                        waiting.append(one)
            waiting = self._looked(waiting)
            if waiting:
                time.sleep(POLL_SECONDS)

    def _looked(self, waiting: list[_Waiter]) -> list[_Waiter]:
        """Let go who is covered, or late; return the others."""
        reached, now = self._mark.read(), time.monotonic()
        left = []
        for one in waiting:
            if one.number <= reached:
                _tell(one, late=False)
            elif now >= one.until or reached < self._behind:
                if reached >= self._behind:
                    log.warning("database_is_behind", committed=reached, wanted=one.number)
                    self._behind = one.number
                _tell(one, late=True)
            else:
                left.append(one)
        return left


def _tell(one: _Waiter, *, late: bool) -> None:
    try:
        one.then(late)
    except Exception:
        log.exception("nobody_to_tell")
