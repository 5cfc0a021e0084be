"""The local durable log of one host: what is acknowledged is on this disk first.

One SQLite file (write-ahead log, ``synchronous=FULL``) holds

* ``entries``: decisions and outcomes in the order in which they were accepted, unique by id;
* ``assignments``: which arm a sticky unit keeps, and until when;
* ``cache``: what the carrier brought from Postgres (campaigns, keys, snapshots), so that serving
  starts and goes on without a database;
* ``customers``: stored attributes by pseudonym, and in ``recommended`` the products to offer, apart
  because few decisions read them;
* ``products``: what is known of each product, by its identifier;
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
from typing import Any, Final, Literal, NamedTuple

import orjson

DECISION: Final = 0
OUTCOME: Final = 1
BUSY_SECONDS = 10.0
MAX_GROUP = 4096
PRUNE_ROWS = 2_000
WAL_BYTES = 64 << 20  # what a burst may leave of the write-ahead log

SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, kind INTEGER NOT NULL, id BLOB NOT NULL,
    body BLOB NOT NULL, at REAL NOT NULL, UNIQUE (kind, id));
CREATE TABLE IF NOT EXISTS assignments (
    campaign INTEGER NOT NULL, unit BLOB NOT NULL, body BLOB NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (campaign, unit)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS assignments_until ON assignments (until);
CREATE TABLE IF NOT EXISTS cache (
    name TEXT PRIMARY KEY, version INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS customers (unit BLOB PRIMARY KEY, attributes BLOB NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS recommended (unit BLOB PRIMARY KEY, products BLOB NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS products (id TEXT PRIMARY KEY, attributes BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS budgets (
    campaign INTEGER PRIMARY KEY, reserved INTEGER NOT NULL, released INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS rejected (
    seq INTEGER PRIMARY KEY, kind INTEGER NOT NULL, body BLOB NOT NULL, error TEXT NOT NULL);
"""
COMMITTED = "SELECT reserved - released FROM budgets WHERE campaign = ?"
FORGET_ENTRIES = """
DELETE FROM entries WHERE seq < coalesce(
    (SELECT seq FROM entries WHERE seq <= :upto AND at >= :before ORDER BY seq LIMIT 1),
    :upto + 1)
"""
FORGET_ASSIGNMENTS = """
DELETE FROM assignments WHERE (campaign, unit) IN (
    SELECT campaign, unit FROM assignments WHERE until < :before ORDER BY until LIMIT :rows)
"""


class SpoolError(Exception):
    """The local log cannot be read or written: nothing was acknowledged."""


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


class _Connection(sqlite3.Connection):
    """One thread's connection, which closes itself when that thread has ended."""

    def __del__(self) -> None:
        self.close()


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
        done: Future[list[Stored]] = Future()
        self._queue.put(_Job(entries, done))
        # In this order: a writer that ends meanwhile has either answered us or is replaced.
        self._ensure_writer()
        return done.result()

    def find(self, kind: Literal[0, 1], id: bytes) -> bytes | None:
        """Return the body stored under an id within the retention, if there is one."""
        row = self._row("SELECT body FROM entries WHERE kind = ? AND id = ?", kind, id)
        return None if row is None else bytes(row[0])

    def assignment(self, campaign: int, unit: bytes, now: float) -> bytes | None:
        """Return the arm that a unit still keeps, if any."""
        row = self._row(
            "SELECT body FROM assignments WHERE campaign = ? AND unit = ? AND until > ?",
            campaign, unit, now,
        )  # fmt: skip
        return None if row is None else bytes(row[0])

    def attributes(self, unit: bytes) -> bytes | None:
        """Return the stored attributes of a unit (JSON), if any."""
        row = self._row("SELECT attributes FROM customers WHERE unit = ?", unit)
        return None if row is None else bytes(row[0])

    def recommended(self, unit: bytes) -> bytes | None:
        """Return the products to offer a unit (`service.recommended`), if any are kept."""
        row = self._row("SELECT products FROM recommended WHERE unit = ?", unit)
        return None if row is None else bytes(row[0])

    def product(self, id: str) -> bytes | None:
        """Return what is known of a product (JSON), if it is known."""
        row = self._row("SELECT attributes FROM products WHERE id = ?", id)
        return None if row is None else bytes(row[0])

    def products(self, ids: Sequence[str]) -> list[tuple[str, bytes]]:
        """Return what is known of those products that are known: (identifier, JSON)."""
        return self._rows(
            "SELECT id, attributes FROM products WHERE id IN (SELECT value FROM json_each(?))",
            orjson.dumps(ids).decode(),
        )

    def committed(self, campaign: int) -> int:
        """Return how much of a campaign's budget is spent or promised, in minor units."""
        row = self._row(COMMITTED, campaign)
        return 0 if row is None else int(row[0])

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
        return self._rows(
            "SELECT seq, kind, body FROM entries WHERE seq > ? ORDER BY seq LIMIT ?", seq, limit
        )

    def last(self) -> int:
        """Return the position of the newest entry, 0 when there has been none."""
        row = self._row("SELECT seq FROM sqlite_sequence WHERE name = 'entries'")
        return 0 if row is None else int(row[0])

    def prune(self, shipped: int, *, before: float) -> int:
        """Forget entries that Postgres has and that are older than the idempotency window.

        Decisions wait while we write: it goes from the oldest on, stops at the first that is kept,
        and does at most so many at a time.
        """
        with self._writing() as connection:
            (oldest,) = connection.execute("SELECT min(seq) FROM entries").fetchone()
            upto = min(shipped, (oldest or 0) + PRUNE_ROWS - 1)
            cursor = connection.execute(FORGET_ENTRIES, {"upto": upto, "before": before})
            connection.execute(FORGET_ASSIGNMENTS, {"before": before, "rows": PRUNE_ROWS})
            return cursor.rowcount

    def reject(self, seq: int, kind: int, body: bytes, error: str) -> None:
        """Set aside an entry that Postgres will never take, so that the others can pass."""
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO rejected VALUES (?, ?, ?, ?)", (seq, kind, body, error)
            )

    def rejected(self) -> int:
        """Return how many entries were set aside; anything but 0 needs a person."""
        row = self._row("SELECT count(*) FROM rejected")
        return 0 if row is None else int(row[0])

    def read(self, name: str) -> bytes:
        """Return a cached value, empty when there is none."""
        row = self._row("SELECT value FROM cache WHERE name = ?", name)
        return b"" if row is None else bytes(row[0])

    def versions(self) -> dict[str, int]:
        """Return the version of every cached value, by name."""
        return dict(self._rows("SELECT name, version FROM cache"))

    def generation(self) -> int:
        """Return a number that grows with every change of the cache."""
        row = self._row("SELECT version FROM cache WHERE name = 'generation'")
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

    def renew(self) -> None:
        """Take a new name: under the old one Postgres would think that it has our entries."""
        self.id = uuid.uuid4()
        self.note("spool", self.id.bytes)

    def store_customers(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep the attributes of units: (pseudonym, JSON)."""
        with self._writing() as connection:
            connection.executemany("INSERT OR REPLACE INTO customers VALUES (?, ?)", rows)

    def store_recommended(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep the products to offer units: (pseudonym, JSON)."""
        if not rows:
            return
        with self._writing() as connection:
            connection.executemany("INSERT OR REPLACE INTO recommended VALUES (?, ?)", rows)

    def store_products(self, rows: Sequence[tuple[str, bytes]]) -> None:
        """Keep what is known of products: (identifier, JSON)."""
        with self._writing() as connection:
            connection.executemany("INSERT OR REPLACE INTO products VALUES (?, ?)", rows)

    def close(self) -> None:
        """Let the writer finish what it has taken and stop."""
        with self._start_lock:
            while (writer := self._writer) is not None:
                self._queue.put(None)
                writer.join()
                self._writer = None
                if not self._queue.empty():
                    self._start_writer()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
        )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        return connection

    @property
    def _reader(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
        return connection

    def _row(self, query: str, *values: object) -> tuple[Any, ...] | None:
        rows = self._rows(query, *values)
        return rows[0] if rows else None

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._reader.execute(query, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            raise SpoolError(f"the local log cannot be read: {error}") from error

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
        try:
            connection = connection or self._reader
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
                    self._start_writer()

    def _start_writer(self) -> None:
        target = self._write_groups
        self._writer = threading.Thread(target=target, name="spool-writer", daemon=True)
        self._writer.start()

    def _write_groups(self) -> None:
        try:
            opened = self._connect()
        except (sqlite3.Error, OSError) as error:
            self._refuse_all(error)
            return
        with contextlib.closing(opened) as connection:
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

    def _refuse_all(self, error: Exception) -> None:
        """Answer those who wait when there is no log to write to; the next append tries again."""
        self._writer = None
        while not self._queue.empty():
            if (job := self._queue.get()) is not None:
                job.done.set_exception(SpoolError(f"the local log cannot be opened: {error}"))

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
    row = connection.execute(COMMITTED, (campaign,)).fetchone()
    return 0 if row is None else int(row[0])
