"""The local durable log of one host: what is acknowledged is on this disk first.

One SQLite file (write-ahead log, ``synchronous=FULL``) holds

* ``entries``: decisions and outcomes in the order in which they were accepted, unique by id;
* ``assignments``: which arm a sticky unit keeps, and until when;
* ``cache``: what the carrier brought from Postgres (campaigns, keys, snapshots), so that serving
  starts and goes on without a database;
* ``customers``: stored attributes by pseudonym;
* ``budgets``: what offers have reserved of a campaign's budget, and what expired ones gave back.

SQLite gives us torn-write recovery, checksums, uniqueness and readers that never wait, across the
processes of a host; we add the group commit: requests that arrive while one commit is being
synchronised share the next one. A file lock, fairer than SQLite's own back-off, orders the writers
of several processes.
"""

import contextlib
import fcntl
import os
import queue
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final, Literal, NamedTuple

DECISION: Final = 0
OUTCOME: Final = 1
BUSY_SECONDS = 10.0
MAX_GROUP = 4096

SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, kind INTEGER NOT NULL, id BLOB NOT NULL,
    body BLOB NOT NULL, at REAL NOT NULL, UNIQUE (kind, id));
CREATE TABLE IF NOT EXISTS assignments (
    campaign INTEGER NOT NULL, unit BLOB NOT NULL, body BLOB NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (campaign, unit)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cache (
    name TEXT PRIMARY KEY, version INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS customers (unit BLOB PRIMARY KEY, attributes BLOB NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS budgets (
    campaign INTEGER PRIMARY KEY, reserved INTEGER NOT NULL, released INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS rejected (
    seq INTEGER PRIMARY KEY, kind INTEGER NOT NULL, body BLOB NOT NULL, error TEXT NOT NULL);
"""


class SpoolError(Exception):
    """The local log cannot be written: nothing was acknowledged."""


class Reservation(NamedTuple):
    """Money set aside for an offer: the budget is never promised twice, in minor units."""

    campaign: int
    amount_minor: int
    budget_minor: int


class Assignment(NamedTuple):
    """The arm that a sticky unit keeps until a moment (seconds since 1970).

    ``replaces`` is the live assignment that no longer holds, because its arm is not eligible now.
    """

    campaign: int
    unit: bytes
    body: bytes
    until: float
    replaces: bytes | None = None


class Entry(NamedTuple):
    """One thing to be kept: a decision or an outcome, with the assignment it makes, if any."""

    kind: Literal[0, 1]
    id: bytes
    body: bytes
    assignment: Assignment | None = None
    reservation: Reservation | None = None


class Stored(NamedTuple):
    """What became of an entry.

    ``known`` is the body that had been stored under this id before; ``assigned`` is the live
    assignment of somebody quicker, and ``exhausted`` says that the budget no longer covers the
    offer; in both cases nothing was stored.
    """

    known: bytes | None = None
    assigned: bytes | None = None
    exhausted: bool = False


class _Job(NamedTuple):
    entries: Sequence[Entry]
    done: "Future[list[Stored]]"


class Spool:
    """The local log; any number of threads and processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = folder / "spool.sqlite"
        self._lock_path = folder / "spool.lock"
        self._local = threading.local()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._start_lock = threading.Lock()
        with self._exclusive(), contextlib.closing(self._connect()) as connection:
            os.chmod(self._path, 0o600)
            connection.executescript(SCHEMA)
            connection.execute(
                "INSERT OR IGNORE INTO cache VALUES ('spool', 0, ?)", (uuid.uuid4().bytes,)
            )
        self.id = uuid.UUID(bytes=self.read("spool"))

    def append(self, entries: Sequence[Entry]) -> list[Stored]:
        """Keep entries durably and tell what became of each; returns once they are on disk.

        Raises:
            SpoolError: the disk refused (full, read-only, gone); nothing of it was kept.
        """
        self._ensure_writer()
        done: Future[list[Stored]] = Future()
        self._queue.put(_Job(entries, done))
        return done.result()

    def find(self, kind: Literal[0, 1], id: bytes) -> bytes | None:
        """Return the body stored under an id within the retention, if there is one."""
        row = self._reader.execute(
            "SELECT body FROM entries WHERE kind = ? AND id = ?", (kind, id)
        ).fetchone()
        return None if row is None else bytes(row[0])

    def assignment(self, campaign: int, unit: bytes, now: float) -> bytes | None:
        """Return the arm that a unit still keeps, if any."""
        row = self._reader.execute(
            "SELECT body FROM assignments WHERE campaign = ? AND unit = ? AND until > ?",
            (campaign, unit, now),
        ).fetchone()
        return None if row is None else bytes(row[0])

    def attributes(self, unit: bytes) -> bytes | None:
        """Return the stored attributes of a unit (JSON), if any."""
        row = self._reader.execute(
            "SELECT attributes FROM customers WHERE unit = ?", (unit,)
        ).fetchone()
        return None if row is None else bytes(row[0])

    def committed(self, campaign: int) -> int:
        """Return how much of a campaign's budget is spent or promised, in minor units."""
        return _committed(self._reader, campaign)

    def release(self, released: dict[int, int]) -> None:
        """Take over from Postgres what expired offers of each campaign have given back so far."""
        with self._writing() as connection:
            connection.executemany(
                "INSERT INTO budgets VALUES (?, 0, ?)"
                " ON CONFLICT (campaign) DO UPDATE SET released = excluded.released",
                released.items(),
            )

    def after(self, seq: int, *, limit: int) -> list[tuple[int, int, bytes]]:
        """Return entries after a position: (seq, kind, body), oldest first."""
        return self._reader.execute(
            "SELECT seq, kind, body FROM entries WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit)
        ).fetchall()

    def last(self) -> int:
        """Return the position of the newest entry, 0 when there has been none."""
        row = self._reader.execute(
            "SELECT seq FROM sqlite_sequence WHERE name = 'entries'"
        ).fetchone()
        return 0 if row is None else int(row[0])

    def prune(self, shipped: int, *, before: float) -> int:
        """Forget entries that Postgres has and that are older than the idempotency window."""
        with self._writing() as connection:
            cursor = connection.execute(
                "DELETE FROM entries WHERE seq <= ? AND at < ?", (shipped, before)
            )
            connection.execute("DELETE FROM assignments WHERE until < ?", (before,))
            return cursor.rowcount

    def reject(self, seq: int, kind: int, body: bytes, error: str) -> None:
        """Set aside an entry that Postgres will never take, so that the others can pass."""
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO rejected VALUES (?, ?, ?, ?)", (seq, kind, body, error)
            )

    def rejected(self) -> int:
        """Return how many entries were set aside; anything but 0 needs a person."""
        row = self._reader.execute("SELECT count(*) FROM rejected").fetchone()
        return int(row[0])

    def read(self, name: str) -> bytes:
        """Return a cached value, empty when there is none."""
        row = self._reader.execute("SELECT value FROM cache WHERE name = ?", (name,)).fetchone()
        return b"" if row is None else bytes(row[0])

    def versions(self) -> dict[str, int]:
        """Return the version of every cached value, by name."""
        return dict(self._reader.execute("SELECT name, version FROM cache"))

    def generation(self) -> int:
        """Return a number that grows with every change of the cache."""
        row = self._reader.execute("SELECT version FROM cache WHERE name = 'generation'").fetchone()
        return 0 if row is None else int(row[0])

    def write(self, values: dict[str, bytes]) -> None:
        """Replace cached values and advance the generation, all at once."""
        with self._writing() as connection:
            connection.executemany(
                "INSERT INTO cache VALUES (?, 1, ?) ON CONFLICT (name) DO UPDATE"
                " SET version = version + 1, value = excluded.value",
                [*values.items(), ("generation", b"")],
            )

    def note(self, name: str, value: bytes) -> None:
        """Replace a cached value that nobody waits for: the generation stays."""
        with self._writing() as connection:
            connection.execute("INSERT OR REPLACE INTO cache VALUES (?, 0, ?)", (name, value))

    def store_customers(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep the attributes of units: (pseudonym, JSON)."""
        with self._writing() as connection:
            connection.executemany("INSERT OR REPLACE INTO customers VALUES (?, ?)", rows)

    def close(self) -> None:
        """Let the writer finish what it has taken and stop."""
        with self._start_lock:
            if self._writer is not None:
                self._queue.put(None)
                self._writer.join()
                self._writer = None

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    @property
    def _reader(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
        return connection

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _writing(
        self, connection: sqlite3.Connection | None = None
    ) -> Iterator[sqlite3.Connection]:
        connection = connection or self._reader
        try:
            with self._exclusive():
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
        except (sqlite3.Error, OSError) as error:
            raise SpoolError(f"the local log cannot be written: {error}") from error

    def _ensure_writer(self) -> None:
        if self._writer is None or not self._writer.is_alive():
            with self._start_lock:
                if self._writer is None or not self._writer.is_alive():
                    self._writer = threading.Thread(
                        target=self._write_groups, name="spool-writer", daemon=True
                    )
                    self._writer.start()

    def _write_groups(self) -> None:
        with contextlib.closing(self._connect()) as connection:
            while (job := self._queue.get()) is not None:
                group, size = [job], len(job.entries)
                stopping = False
                while size < MAX_GROUP and not self._queue.empty():
                    if (more := self._queue.get()) is None:
                        stopping = True
                        break
                    group.append(more)
                    size += len(more.entries)
                self._commit(connection, group)
                if stopping:
                    return

    def _commit(self, connection: sqlite3.Connection, group: list[_Job]) -> None:
        try:
            with self._writing(connection):
                results = [[_insert(connection, entry) for entry in job.entries] for job in group]
        except Exception as error:
            for job in group:
                job.done.set_exception(error)
        else:
            for job, result in zip(group, results, strict=True):
                job.done.set_result(result)


def _insert(connection: sqlite3.Connection, entry: Entry) -> Stored:
    now = time.time()
    known = connection.execute(
        "SELECT body FROM entries WHERE kind = ? AND id = ?", (entry.kind, entry.id)
    ).fetchone()
    if known is not None:
        return Stored(known=bytes(known[0]))
    if entry.assignment is not None:
        live = connection.execute(
            "SELECT body FROM assignments WHERE campaign = ? AND unit = ? AND until > ?",
            (entry.assignment.campaign, entry.assignment.unit, now),
        ).fetchone()
        if live is not None and bytes(live[0]) != entry.assignment.replaces:
            return Stored(assigned=bytes(live[0]))
    if entry.reservation is not None and not _reserve(connection, entry.reservation):
        return Stored(exhausted=True)
    if entry.assignment is not None:
        connection.execute(
            "INSERT OR REPLACE INTO assignments VALUES (?, ?, ?, ?)", entry.assignment[:4]
        )
    connection.execute(
        "INSERT INTO entries (kind, id, body, at) VALUES (?, ?, ?, ?)",
        (entry.kind, entry.id, entry.body, now),
    )
    return Stored()


def _reserve(connection: sqlite3.Connection, wanted: Reservation) -> bool:
    committed = _committed(connection, wanted.campaign)
    if committed + wanted.amount_minor > wanted.budget_minor:
        return False
    connection.execute(
        "INSERT INTO budgets VALUES (?, ?, 0)"
        " ON CONFLICT (campaign) DO UPDATE SET reserved = reserved + excluded.reserved",
        (wanted.campaign, wanted.amount_minor),
    )
    return True


def _committed(connection: sqlite3.Connection, campaign: int) -> int:
    row = connection.execute(
        "SELECT reserved - released FROM budgets WHERE campaign = ?", (campaign,)
    ).fetchone()
    return 0 if row is None else int(row[0])
