"""The local log: durable, unique, ordered, and readable by several processes."""

import contextlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import segments
from service.spool import (
    DECISION,
    FRESH,
    OUTCOME,
    Assignment,
    Entry,
    Reservation,
    Spool,
    SpoolError,
    Stored,
)


def entry(name: str, body: bytes = b"{}", assignment: Assignment | None = None) -> Entry:
    return Entry(DECISION, name.encode(), body, assignment)


def test_entries_keep_their_order_and_their_first_body(data_folder: Path) -> None:
    spool = Spool(data_folder)
    assert spool.append([entry("a", b"1"), entry("b", b"2")])[0].known is None
    assert spool.append([entry("a", b"other")])[0].known == b"1"
    assert [(seq, body) for seq, _, body in spool.after(0, limit=9)] == [(1, b"1"), (2, b"2")]
    assert spool.append([Entry(OUTCOME, b"a", b"3")])[0].known is None
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
    assert len(spool.after(0, limit=9)) == 1
    replacing = entry("c", assignment=Assignment(1, b"u", b"arm 3", until, replaces=b"arm 1"))
    assert spool.append([replacing])[0].assigned is None
    assert spool.assignment(1, b"u", time.time()) == b"arm 3"
    assert spool.assignment(1, b"u", until + 1) is None
    spool.close()


@pytest.mark.parametrize("indexed", [False, True])
def test_what_is_known_is_known_to_every_process(data_folder: Path, *, indexed: bool) -> None:
    """By heart, or by the tables that the carrier keeps."""
    first, second = Spool(data_folder), Spool(data_folder)
    until = time.time() + 60
    made = Assignment(1, b"u", b"arm 1", until)
    first.append(
        [entry("a", b"1", made), Entry(DECISION, b"b", b"2", None, Reservation(1, 60, 100))]
    )
    if indexed:
        assert first.index() == 2
        assert first.index() == 0
    told = second.append(
        [
            entry("a", b"other"),
            entry("c", b"3", made._replace(body=b"arm 2")),
            Entry(DECISION, b"d", b"4", None, Reservation(1, 60, 100)),
            Entry(DECISION, b"e", b"5", None, Reservation(1, 40, 100)),
        ]
    )
    known = Stored(known=b"1", number=1 if indexed else 0)
    assert told == [known, Stored(assigned=b"arm 1"), Stored(exhausted=True), Stored()]
    assert second.assignment(1, b"u", time.time()) == b"arm 1"
    assert first.append([entry("e")]) == [Stored(known=b"5")]
    assert first.committed(1) == second.committed(1) == 100
    first.close()
    second.close()


def numbered(n: int, body: bytes, other: int = 0) -> Entry:
    return Entry(OUTCOME if (n + other) % 2 else DECISION, b"%d" % n, body)


@given(st.sets(st.integers(0, 999), max_size=700))
@settings(deadline=None, max_examples=20)
def test_many_ids_are_looked_up_at_once(again: set[int]) -> None:
    """Of two kinds, some of them known, and in another group of other numbers every time."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        first, second = Spool(Path(folder)), Spool(Path(folder))
        entries = [numbered(n, b"%d" % n) for n in range(500)]
        first.append(entries)
        while first.index():
            pass
        asked = [numbered(n, b"other") for n in sorted(again)]
        # Under the other kind nobody has used these.
        wrong = [numbered(n, b"new", 1) for n in sorted(again)]
        told = second.append([*asked, *wrong])
        number = {n: place for place, n in enumerate(range(500), start=1)}
        assert told[: len(asked)] == [
            Stored(known=b"%d" % n, number=number[n]) if n < 500 else FRESH for n in sorted(again)
        ]
        assert told[len(asked) :] == [FRESH] * len(wrong)
        first.close()
        second.close()


def test_only_what_was_shipped_and_is_old_is_forgotten(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments.Segments.__init__, "__kwdefaults__", {"segment_bytes": 1})
    spool = Spool(data_folder)
    for name in "abc":
        spool.append([entry(name)])
    while spool.index():
        pass
    spool.prune(2, before=time.time() - 60)
    assert [number for number, _, _ in spool.after(0, limit=9)] == [1, 2, 3]
    spool.prune(2, before=time.time() + 60)
    assert [number for number, _, _ in spool.after(0, limit=9)] == [3]
    assert spool.last() == 3, "a position is never given twice"
    spool.close()
    again = Spool(data_folder)
    assert again.append([entry("a"), entry("c")]) == [Stored(), Stored(known=b"{}", number=3)]
    again.close()


def test_a_torn_end_is_cut_off_also_when_a_repeat_is_looked_up(data_folder: Path) -> None:
    spool = Spool(data_folder)
    spool.append([entry("a", b"1"), entry("b", b"2")])
    while spool.index():
        pass
    spool.close()
    (path,) = (data_folder / "log").glob("*.log")
    with path.open("ab") as file:
        file.write(b"half a record, longer than what comes next" * 20)
    again = Spool(data_folder)
    assert again.append([entry("a"), entry("c", b"3")]) == [Stored(known=b"1", number=1), Stored()]
    assert [body for _, _, body in again.after(0, limit=9)] == [b"1", b"2", b"3"]
    assert not path.read_bytes().endswith(b"next")
    again.close()


def test_a_disk_that_refuses_acknowledges_nothing(data_folder: Path) -> None:
    spool = Spool(data_folder)
    spool.append([entry("a")])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(SpoolError, match="large"):
            spool.append([entry("b", os.urandom(200_000))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [body for _, _, body in spool.after(0, limit=9)] == [b"{}"]
    assert spool.append([entry("b")])[0].known is None
    spool.close()


def test_an_earlier_release_left_its_entries_in_sqlite(data_folder: Path) -> None:
    data_folder.mkdir(exist_ok=True)
    with contextlib.closing(sqlite3.connect(data_folder / "spool.sqlite")) as connection:
        connection.execute("CREATE TABLE entries (seq, kind, id, body, at)")
        connection.execute(
            "INSERT INTO entries VALUES (7, 0, x'61', x'31', 1), (8, 1, x'62', x'32', 2)"
        )
        connection.commit()
    spool = Spool(data_folder)
    assert spool.after(0, limit=9) == [(7, 0, b"1"), (8, 1, b"2")]
    assert spool.append([entry("a")])[0].known == b"1"
    assert Spool(data_folder).last() == 8
    spool.close()


def test_a_log_that_cannot_be_opened_refuses_instead_of_waiting(data_folder: Path) -> None:
    spool = Spool(data_folder)
    original = spool._connect

    def gone() -> sqlite3.Connection:
        raise sqlite3.OperationalError("unable to open database file")

    spool._connect = gone  # type: ignore[method-assign]
    told: list[object] = []

    def send(number: int) -> None:
        try:
            told.append(spool.append([entry("a")]) if number else spool.read("spool"))
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
    pipes = [child.stdout for child in children if child.stdout]
    acknowledged = [pipe.readline().strip() for _ in range(10) for pipe in pipes]
    for child in children:
        child.send_signal(signal.SIGKILL)
    acknowledged += [
        line for child in children for line in child.communicate()[0].split(b"\n")[:-1]
    ]
    spool = Spool(data_folder)
    stored = [body for _, _, body in spool.after(0, limit=1_000_000)]
    assert len(acknowledged) >= 20
    assert set(acknowledged) <= set(stored)
    assert len(stored) == len(set(stored))
    assert len(stored) <= len(acknowledged) + 2, "at most one unacknowledged entry per process"
    spool.close()
