"""The local log: durable, unique, ordered, and readable by several processes."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from service.spool import DECISION, OUTCOME, Assignment, Entry, Spool, SpoolError


def entry(name: str, body: bytes = b"{}", assignment: Assignment | None = None) -> Entry:
    return Entry(DECISION, name.encode(), body, assignment)


def test_entries_keep_their_order_and_their_first_body(data_folder: Path) -> None:
    spool = Spool(data_folder)
    assert spool.append([entry("a", b"1"), entry("b", b"2")])[0].known is None
    assert spool.append([entry("a", b"other")])[0].known == b"1"
    assert [(seq, body) for seq, _, body in spool.after(0, limit=9)] == [(1, b"1"), (2, b"2")]
    assert spool.find(DECISION, b"a") == b"1"
    assert spool.find(OUTCOME, b"a") is None
    spool.close()


def test_the_same_entry_from_many_threads_is_kept_once(data_folder: Path) -> None:
    spool = Spool(data_folder)
    new = []
    barrier = threading.Barrier(32)

    def send(body: bytes) -> None:
        barrier.wait()
        if spool.append([entry("same", body)])[0].known is None:
            new.append(body)

    threads = [threading.Thread(target=send, args=(str(n).encode(),)) for n in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(new) == 1
    assert [body for _, _, body in spool.after(0, limit=99)] == new
    spool.close()


def test_an_assignment_belongs_to_whoever_was_first(data_folder: Path) -> None:
    spool = Spool(data_folder)
    until = time.time() + 60
    first = entry("a", assignment=Assignment(1, b"u", b"arm 1", until))
    second = entry("b", assignment=Assignment(1, b"u", b"arm 2", until))
    assert spool.append([first])[0].assigned is None
    assert spool.append([second])[0].assigned == b"arm 1"
    assert spool.find(DECISION, b"b") is None
    replacing = entry("c", assignment=Assignment(1, b"u", b"arm 3", until, replaces=b"arm 1"))
    assert spool.append([replacing])[0].assigned is None
    assert spool.assignment(1, b"u", time.time()) == b"arm 3"
    assert spool.assignment(1, b"u", until + 1) is None
    spool.close()


def test_only_what_was_shipped_and_is_old_is_forgotten(data_folder: Path) -> None:
    spool = Spool(data_folder)
    spool.append([entry("a"), entry("b"), entry("c")])
    assert spool.prune(2, before=time.time() - 60) == 0
    assert spool.prune(2, before=time.time() + 60) == 2
    assert [seq for seq, _, _ in spool.after(0, limit=9)] == [3]
    assert spool.last() == 3, "a position is never given twice"
    spool.close()


def test_a_disk_that_refuses_acknowledges_nothing(data_folder: Path) -> None:
    spool = Spool(data_folder)
    spool.append([entry("a")])
    blocker = sqlite3.connect(data_folder / "spool.sqlite", isolation_level=None)
    blocker.execute("PRAGMA max_page_count = 1")
    limit = Spool(data_folder)
    limit._ensure_writer()
    original = limit._connect

    def full() -> sqlite3.Connection:
        connection = original()
        connection.execute("PRAGMA max_page_count = 1")
        return connection

    limit.close()
    limit._connect = full  # type: ignore[method-assign]
    with pytest.raises(SpoolError, match="full"):
        limit.append([entry("b", os.urandom(200_000))])
    assert spool.find(DECISION, b"b") is None
    assert spool.append([entry("c")])[0].known is None
    limit.close()
    spool.close()
    blocker.close()


def test_a_log_that_cannot_be_opened_refuses_instead_of_waiting(data_folder: Path) -> None:
    spool = Spool(data_folder)
    original = spool._connect

    def gone() -> sqlite3.Connection:
        raise sqlite3.OperationalError("unable to open database file")

    spool._connect = gone  # type: ignore[method-assign]
    told: list[object] = []

    def send(number: int) -> None:
        try:
            told.append(spool.append([entry("a")]) if number else spool.find(DECISION, b"a"))
        except SpoolError as error:
            told.append(error)

    threads = [threading.Thread(target=send, args=(n,), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert [type(one) for one in told] == [SpoolError] * 4
    spool._connect = original  # type: ignore[method-assign]
    assert spool.append([entry("a")])[0].known is None
    spool.close()


def test_forgetting_looks_only_at_what_it_forgets(data_folder: Path) -> None:
    """Writers wait meanwhile, so it must not walk through a day's entries and assignments."""
    spool = Spool(data_folder)
    until = time.time() + 3600
    spool.append(
        [entry(str(n), assignment=Assignment(1, str(n).encode(), b"", until)) for n in range(3000)]
    )
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    spool._reader.set_progress_handler(count, 100)
    assert spool.prune(3000, before=time.time() - 60) == 0
    spool._reader.set_progress_handler(None, 0)
    assert steps < 10, "3,000 rows take far more than 1,000 instructions to walk through"
    assert spool.prune(2000, before=time.time() + 60) == 2000
    spool.close()


def test_a_copy_of_the_log_gets_a_name_of_its_own(data_folder: Path) -> None:
    spool = Spool(data_folder)
    before = spool.id
    spool.renew()
    assert spool.id != before
    assert Spool(data_folder).id == spool.id
    spool.close()


WRITER = """
import sys
from pathlib import Path
from service.spool import DECISION, Entry, Spool
spool = Spool(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    name = f"{sys.argv[2]}-{number}"
    spool.append([Entry(DECISION, name.encode(), name.encode())])
    print(name, flush=True)
"""


@pytest.mark.crash
def test_what_two_killed_processes_acknowledged_is_there(data_folder: Path) -> None:
    Spool(data_folder).close()
    children = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(data_folder), name], stdout=subprocess.PIPE
        )
        for name in ("x", "y")
    ]
    time.sleep(2.0)
    for child in children:
        child.send_signal(signal.SIGKILL)
    acknowledged = [line for child in children for line in child.communicate()[0].split(b"\n")[:-1]]
    spool = Spool(data_folder)
    stored = [body for _, _, body in spool.after(0, limit=1_000_000)]
    assert len(acknowledged) > 20
    assert set(acknowledged) <= set(stored)
    assert len(stored) == len(set(stored))
    assert len(stored) <= len(acknowledged) + 2, "at most one unacknowledged entry per process"
    spool.close()
