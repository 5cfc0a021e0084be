"""The local durable log of one host: what is acknowledged is on this disk first.

Decisions and outcomes are appended to checksummed files (`service.segments`), in the order in which
they were accepted; requests that arrive while the disk is being synchronised share the next
synchronisation. Where acknowledged is to mean more, they then wait for the carrier
(`service.committed`). Beside them lies one SQLite file, which can be made again from elsewhere:

* ``known`` and ``assignments``: where in the log an id that may be repeated is, and which arm a
  sticky unit keeps, until when. Every process knows by heart what has been appended since the
  carrier last brought these tables up to date (`Spool.index`);
* ``cache``: what the carrier brought from Postgres (campaigns, keys, snapshots), so that serving
  starts and goes on without a database;
* ``customers``: stored attributes by pseudonym, and in ``recommended`` the products to offer, apart
  because few decisions read them;
* ``products``: what is known of each product, by its identifier;
* ``budgets``: what offers have reserved of a campaign's budget, and what expired ones gave back;
* ``rejected``: entries that Postgres will never take.

Only the carrier writes SQLite, and nobody who decides waits for it.
"""

import contextlib
import os
import queue
import sqlite3
import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec
import orjson
import structlog

from service.committed import Mark, Waiting
from service.copying import ID_BYTES
from service.segments import Place, Record, Segments

DECISION: Final = 0
OUTCOME: Final = 1
DECISIONS: Final = 2
"""Many decisions in one entry: `service.columnar`."""
KINDS = (DECISION, OUTCOME, DECISIONS)
BUSY_SECONDS = 10.0
MANY, GATHER_SECONDS = 12, 0.0005
"""After a group of so many entries the next is given that long to gather: there is a queue, and
each group costs both threads a dozen changes of turns. With few clients nobody waits."""
MAX_GROUP = 4096
PRUNE_ROWS = 20_000
INDEX_BYTES = 4 << 20
FORGET_SECONDS = 0.2
RECORD_BYTES = 16 << 10
LOOKED_UP = 256
SHIP_BYTES = 8 << 20
WAL_BYTES = 64 << 20  # what a burst may leave of SQLite's write-ahead log

SCHEMA = """
CREATE TABLE IF NOT EXISTS known (
    number INTEGER PRIMARY KEY, segment INTEGER NOT NULL, offset INTEGER NOT NULL,
    kind INTEGER NOT NULL, id BLOB NOT NULL, UNIQUE (kind, id));
CREATE TABLE IF NOT EXISTS assignments (
    campaign INTEGER NOT NULL, unit BLOB NOT NULL, body BLOB NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (campaign, unit)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS assignments_until ON assignments (until);
CREATE TABLE IF NOT EXISTS cache (
    name TEXT PRIMARY KEY, version INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS cache_version ON cache (version);
CREATE TABLE IF NOT EXISTS customers (unit BLOB PRIMARY KEY, attributes BLOB NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS recommended (unit BLOB PRIMARY KEY, products BLOB NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS products (id TEXT PRIMARY KEY, attributes BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS budgets (
    campaign INTEGER PRIMARY KEY, reserved INTEGER NOT NULL, released INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS rejected (
    seq INTEGER PRIMARY KEY, kind INTEGER NOT NULL, body BLOB NOT NULL, error TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS indexed (
    one INTEGER PRIMARY KEY CHECK (one = 1), segment INTEGER NOT NULL, offset INTEGER NOT NULL,
    number INTEGER NOT NULL);
"""
NEXT = "(SELECT coalesce(max(version), 0) + 1 FROM cache WHERE name = 'generation')"
"""The generation that what is being written belongs to: its version in the cache."""
HOLDS_UNITS = (
    f"INSERT OR IGNORE INTO cache SELECT 'units', {NEXT}, x''"
    " WHERE EXISTS (SELECT 1 FROM customers)"
)
"""Note that there are stored attributes: until there are, no decision needs to look for any."""
ADVANCE = """
INSERT INTO cache VALUES ('generation', 1, x'') ON CONFLICT (name) DO UPDATE
SET version = version + 1
"""
INDEXED = "SELECT segment, offset, number FROM indexed"
COMMITTED = """
SELECT indexed.number, coalesce(reserved - released, 0)
FROM indexed LEFT JOIN budgets ON campaign = ?
"""
ASSIGNED = "SELECT body FROM assignments WHERE campaign = ? AND unit = ? AND until > ?"
ATTRIBUTES_OF = """
WITH RECURSIVE places (place) AS (
    SELECT 0 WHERE ?1 > 0 UNION ALL SELECT place + 1 FROM places WHERE place + 1 < ?1)
SELECT unit, attributes FROM places
CROSS JOIN customers ON unit = substr(?2, 16 * place + 1, 16)
"""
"""Units come as one string of bytes: a statement for each takes ten times as long."""
KNOWN = "SELECT id, segment, offset, number FROM known WHERE kind = ? AND id IN ({})"
"""With as many marks as there are ids: of many, each is found in a third of the time of one."""
FORGET_LOG = """
DELETE FROM known; UPDATE budgets SET reserved = 0;
UPDATE indexed SET segment = 0, offset = 0, number = 0;
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
    """What is kept as one: a decision, many or an outcome; the assignment that it makes, if any.

    ``unique`` is false where the id was made up just now: nobody can have used it before, nor will
    anybody repeat it, so nothing is looked up. ``told`` is what is told whoever does.
    """

    kind: Literal[0, 1, 2]
    id: bytes
    body: bytes
    assignment: Assignment | None = None
    reservation: Reservation | None = None
    unique: bool = True
    told: bytes = b""

    @property
    def known(self) -> bytes:
        """What a repeat is told; the body, where nothing else is said."""
        return self.told or self.body


class Stored(NamedTuple):
    """What became of an entry.

    ``known`` is what a repeat of an id is told that had been stored before; ``assigned`` is the
    live assignment of somebody quicker, and ``exhausted`` says that the budget no longer covers the
    offer; in both cases nothing was stored. ``late`` says that it is on this disk, but was not seen
    committed in PostgreSQL in time, where that is waited for.
    """

    known: bytes | None = None
    assigned: bytes | None = None
    exhausted: bool = False
    late: bool = False
    number: int = 0
    """Where in the log it had been stored before, if that was looked up."""


class _Connection(sqlite3.Connection):
    """One thread's connection, which closes itself when that thread has ended."""

    def __del__(self) -> None:
        self.close()


class _Kept(NamedTuple):
    """The payload of a record: an entry and when it was accepted (seconds since 1970)."""

    at: float
    entry: Entry


log = structlog.get_logger()
NOWHERE = Place(0, 0, 0)
FRESH, LATE = Stored(), Stored(late=True)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Kept).decode
PLAIN = b"\xc1"
"""A byte that MessagePack never begins with. It stands before what is only to be shipped: no id
that may be repeated, no assignment, no reservation. What follows is the entry's kind, one byte, and
its body; an earlier release wrote all of the entry here, too."""
_PLAIN_OF = {kind: PLAIN + bytes([kind]) for kind in KINDS}


def _payload(kept: _Kept) -> bytes:
    _, entry = kept
    if not entry.unique and entry.assignment is None and entry.reservation is None:
        return _PLAIN_OF[entry.kind] + entry.body
    return _encode(kept)


def _shipped(payload: bytes) -> tuple[int, bytes]:
    """Return what is shipped of a record: kind and body."""
    if payload[:1] == PLAIN and payload[1] in _PLAIN_OF:
        return payload[1], payload[2:]
    _, entry = _decode(payload.removeprefix(PLAIN))
    return entry.kind, entry.body


def _entry(payload: bytes) -> Entry:
    return _decode(payload).entry


_Places = dict[tuple[int, bytes], Place]
Then = Callable[[list[Stored] | SpoolError], object]


class _Job(NamedTuple):
    entries: Sequence[Entry]
    then: Then


class _Tail:
    """What a process knows by heart: the entries that are not in the tables of SQLite yet."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, bytes], bytes] = {}
        self._assigned: dict[tuple[int, bytes], Assignment] = {}
        self._reserved: dict[int, int] = {}
        self._order: deque[tuple[int, Entry]] = deque()

    def learn(self, number: int, entry: Entry) -> None:
        """Add an entry."""
        if not entry.unique and entry.assignment is None and entry.reservation is None:
            return
        self._order.append((number, entry))
        if entry.unique:
            self._known[entry.kind, entry.id] = entry.known
        if (made := entry.assignment) is not None:
            self._assigned[made.campaign, made.unit] = made
        if (wanted := entry.reservation) is not None:
            self._reserved[wanted.campaign] = self.reserved(wanted.campaign) + wanted.amount_minor

    def forget(self, before: int) -> None:
        """Drop the entries before a number: they are in the tables."""
        while self._order and self._order[0][0] < before:
            _, entry = self._order.popleft()
            if entry.unique:
                self._known.pop((entry.kind, entry.id), None)
            if (made := entry.assignment) is not None:
                place = (made.campaign, made.unit)
                if self._assigned.get(place) is made:
                    del self._assigned[place]
            if (wanted := entry.reservation) is not None:
                self._reserved[wanted.campaign] -= wanted.amount_minor

    def known(self, kind: int, id: bytes) -> bytes | None:
        """Return what a repeat of an entry is told."""
        return self._known.get((kind, id))

    def assigned(self, campaign: int, unit: bytes) -> Assignment | None:
        """Return the newest assignment of a unit."""
        return self._assigned.get((campaign, unit))

    def reserved(self, campaign: int) -> int:
        """Return what these entries set aside of a budget, in minor units."""
        return self._reserved.get(campaign, 0)


class Spool:
    """The local log; any number of threads and processes may use it at once.

    With ``late``, which is told how many answers were, it answers only what the carrier has
    committed in PostgreSQL, or what has waited for that too long.
    """

    def __init__(self, folder: Path, *, late: Callable[[int], object] | None = None) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._path = folder, folder / "spool.sqlite"
        self._local = threading.local()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._start_lock = threading.Lock()
        # What the writer thread alone appends with, and what the others read with, in turn.
        self._log, self._reading = Segments(folder / "log"), Segments(folder / "log")
        self._reading_lock, self._tail_lock = threading.Lock(), threading.Lock()
        self._shipping = self._newest = NOWHERE
        self._tail, self._end, self._forgot_at = _Tail(), NOWHERE, 0.0
        with contextlib.closing(self._connect()) as connection:
            os.chmod(self._path, 0o600)
            connection.executescript(SCHEMA)
            connection.execute(
                "INSERT OR IGNORE INTO cache VALUES ('spool', 0, ?)", (uuid.uuid4().bytes,)
            )
            connection.execute("INSERT OR IGNORE INTO indexed VALUES (1, ?, ?, ?)", NOWHERE)
            connection.execute(HOLDS_UNITS)
            self._adopt(connection)
        self.id = uuid.UUID(bytes=self.read("spool"))
        self._mark, self._told_late = Mark(folder / "committed"), late
        self._waiting: Waiting | None = None
        if late is not None:
            if self._mark.read() > self.last():
                # The log is older than the mark: what comes next would pass for committed.
                self._mark.write(0)
            self._waiting = Waiting(self._mark)

    @property
    def acknowledges(self) -> str:
        """Where that is which is answered just now: in the ``database``, or on ``disk``."""
        return "disk" if self._waiting is None or self._waiting.behind else "database"

    def append(self, entries: Sequence[Entry]) -> list[Stored]:
        """Keep entries durably and tell what became of each; returns once they are on disk.

        Or once they are in PostgreSQL as well, for at most `service.committed.LIMIT_SECONDS`.

        Raises:
            SpoolError: the disk refused (full, read-only, gone); nothing of it was kept.
        """
        return self.appending(entries).result()

    def appending(self, entries: Sequence[Entry]) -> Future[list[Stored]]:
        """Begin with what `append` does; the future gives what it would."""
        done: Future[list[Stored]] = Future()

        def then(told: list[Stored] | SpoolError) -> None:
            if isinstance(told, SpoolError):
                done.set_exception(told)
            else:
                done.set_result(told)

        self.submit(entries, then)
        return done

    def submit(self, entries: Sequence[Entry], then: Then) -> None:
        """Do what `append` does without waiting; ``then`` is called by another thread."""
        self._queue.put(_Job(entries, then))
        # In this order: a writer that ends meanwhile has either answered us or is replaced.
        self._ensure_writer()

    def assignment(self, campaign: int, unit: bytes, now: float) -> bytes | None:
        """Return the arm that a unit still keeps, if any."""
        newest = self._tail.assigned(campaign, unit)
        if newest is not None:
            return newest.body if newest.until > now else None
        row = self._row(ASSIGNED, campaign, unit, now)
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

    def attributes_of(self, units: bytes) -> dict[bytes, bytes]:
        """Return the stored attributes (JSON) of those units that have some, by unit.

        They are given one after another, 16 bytes each.
        """
        rows = self._rows(ATTRIBUTES_OF, len(units) // ID_BYTES, units)
        return {bytes(unit): bytes(attributes) for unit, attributes in rows}

    def products(self, ids: Sequence[str]) -> list[tuple[str, bytes]]:
        """Return what is known of those products that are known: (identifier, JSON)."""
        return self._rows(
            "SELECT id, attributes FROM products WHERE id IN (SELECT value FROM json_each(?))",
            orjson.dumps(ids).decode(),
        )

    def committed(self, campaign: int) -> int:
        """Return how much of a campaign's budget is spent or promised, in minor units."""
        with self._tail_lock:
            return self._committed(campaign)

    def release(self, released: dict[int, int]) -> None:
        """Take over from Postgres what expired offers of each campaign have given back so far."""
        with self._writing() as connection:
            connection.executemany(
                "INSERT INTO budgets VALUES (?, 0, ?)"
                " ON CONFLICT (campaign) DO UPDATE SET released = excluded.released",
                released.items(),
            )

    def after(self, number: int, *, limit: int) -> list[tuple[int, int, bytes]]:
        """Return entries after a position: (number, kind, body), oldest first.

        Of large ones fewer than ``limit``, so that they fit into memory.
        """
        found: list[Record] = []
        size = 0
        with self._for_reading() as log:
            place = self._shipping
            if place.number != number + 1:
                place = log.place(number + 1)
            while len(found) < limit and size < SHIP_BYTES:
                records, place = log.read(place)
                if not records:
                    break
                found += records[: limit - len(found)]
                size += sum(len(record.payload) for record in records)
            if found:
                self._shipping = found[-1].following
        return [(record.number, *_shipped(record.payload)) for record in found]

    def shipped(self, number: int) -> None:
        """Say that PostgreSQL has committed the entries up to this one."""
        try:
            self._mark.write(number)
        except OSError as error:
            raise SpoolError(f"the local log cannot be written: {error}") from error

    def last(self) -> int:
        """Return the number of the newest entry, 0 when there has been none."""
        with self._for_reading() as log:
            self._newest = max(self._newest, self._indexed())
            while True:
                records, self._newest = log.read(self._newest)
                if not records:
                    return self._newest.number - 1

    def index(self) -> int:
        """Bring the tables up to date with the log; return how many entries were looked at.

        One process of the host does so, often: until then the others keep the entries in memory.
        """
        with self._for_reading() as log:
            start = self._indexed()
            records, end = log.read(start, most=INDEX_BYTES)
        if not records:
            return 0
        telling = [record for record in records if not record.payload.startswith(PLAIN)]
        kept = [(record, _entry(record.payload)) for record in telling]
        made = [entry.assignment for _, entry in kept if entry.assignment is not None]
        with self._writing() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO known VALUES (?, ?, ?, ?, ?)",
                [
                    (record.number, record.segment, record.offset, entry.kind, entry.id)
                    for record, entry in kept
                    if entry.unique
                ],
            )
            connection.executemany(
                "INSERT OR REPLACE INTO assignments VALUES (?, ?, ?, ?)",
                [one[:4] for one in made],
            )
            connection.executemany(
                "INSERT INTO budgets VALUES (?, ?, 0)"
                " ON CONFLICT (campaign) DO UPDATE SET reserved = reserved + excluded.reserved",
                [entry.reservation[:2] for _, entry in kept if entry.reservation is not None],
            )
            connection.execute("INSERT OR REPLACE INTO indexed VALUES (1, ?, ?, ?)", end)
        return len(records)

    def prune(self, shipped: int, *, before: float) -> None:
        """Forget what Postgres has and what is older than the idempotency window.

        Whole segments go; of ids and assignments at most so many at a time.
        """
        with self._for_reading() as log:
            start = self._indexed().number
            left = log.drop(min(shipped, start - 1), before=before)
        with self._writing() as connection:
            connection.execute(
                "DELETE FROM known WHERE number IN"
                " (SELECT number FROM known WHERE number < ? ORDER BY number LIMIT ?)",
                (left, PRUNE_ROWS),
            )
            connection.execute(FORGET_ASSIGNMENTS, {"before": before, "rows": PRUNE_ROWS})

    def reject(self, number: int, kind: int, body: bytes, error: str) -> None:
        """Set aside an entry that Postgres will never take, so that the others can pass."""
        self._reader.execute("PRAGMA synchronous = FULL")
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO rejected VALUES (?, ?, ?, ?)", (number, kind, body, error)
            )

    def rejected(self) -> int:
        """Return how many entries were set aside; anything but 0 needs a person."""
        row = self._row("SELECT count(*) FROM rejected")
        return 0 if row is None else int(row[0])

    def read(self, name: str) -> bytes:
        """Return a cached value, empty when there is none."""
        row = self._row("SELECT value FROM cache WHERE name = ?", name)
        return b"" if row is None else bytes(row[0])

    def changed(self, since: int) -> dict[str, int]:
        """Return names of cached values that were written after a generation, and in which."""
        return dict(self._rows("SELECT name, version FROM cache WHERE version > ?", since))

    def generation(self) -> int:
        """Return a number that grows with every change of the cache."""
        row = self._row("SELECT version FROM cache WHERE name = 'generation'")
        return 0 if row is None else int(row[0])

    def write(self, values: dict[str, bytes]) -> None:
        """Replace cached values and advance the generation, all at once."""
        with self._writing() as connection:
            connection.executemany(
                f"INSERT INTO cache VALUES (?, {NEXT}, ?) ON CONFLICT (name) DO UPDATE"
                " SET version = excluded.version, value = excluded.value",
                values.items(),
            )
            connection.execute(ADVANCE)

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
            if connection.execute(HOLDS_UNITS).rowcount:
                connection.execute(ADVANCE)

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
            if self._waiting is not None:
                self._waiting.close()
            self._log.close()
            with self._reading_lock:
                self._reading.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
        )
        connection.execute("PRAGMA journal_mode = WAL")
        # A power cut may take the newest changes: they are made again from the log and Postgres.
        connection.execute("PRAGMA synchronous = NORMAL")
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
    def _writing(self) -> Iterator[sqlite3.Connection]:
        connection = self._reader
        try:
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

    @contextlib.contextmanager
    def _for_reading(self) -> Iterator[Segments]:
        with self._reading_lock:
            try:
                yield self._reading
            except (sqlite3.Error, OSError) as error:
                raise SpoolError(f"the local log cannot be read: {error}") from error

    def _indexed(self) -> Place:
        """Return the place up to which the tables are up to date."""
        return Place(*self._reader.execute(INDEXED).fetchone())

    def _adopt(self, connection: sqlite3.Connection) -> None:
        """Begin the log, with the entries that an earlier release kept in SQLite, if any."""
        indexed = self._indexed()
        if not self._log.reaches(indexed):
            # The log is not the one that the tables were made from: a backup, or its end was lost.
            connection.executescript(FORGET_LOG)
        tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'entries'").fetchone()
        if tables is None:
            self._log.begin(max(1, indexed.number))
            return
        rows = connection.execute("SELECT seq, kind, id, body, at FROM entries ORDER BY seq")
        kept = [(seq, _Kept(at, Entry(kind, id, body))) for seq, kind, id, body, at in rows]
        self._log.begin(kept[0][0] if kept else 1)
        with self._log.locked():
            self._catch_up()
            self._end = self._log.append(self._end, [_encode(one) for _, one in kept])
            self._log.sync(self._end)
            connection.execute("DROP TABLE entries")
        self._end = NOWHERE

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
        size = 0
        while (job := self._queue.get()) is not None:
            if size >= MANY:
                time.sleep(GATHER_SECONDS)
            group, size = [job], len(job.entries)
            stopping = False
            while size < MAX_GROUP and not self._queue.empty():
                if (more := self._queue.get()) is None:
                    stopping = True
                    break
                group.append(more)
                size += len(more.entries)
            for job, told in zip(group, self._commit(group), strict=True):
                if self._waiting is None or isinstance(told, SpoolError):
                    _tell(job, told)
                else:
                    self._wait(self._waiting, job, told)
            if stopping:
                return

    def _wait(self, waiting: Waiting, job: _Job, told: list[Stored]) -> None:
        """Tell a job once PostgreSQL has all that it is told of, or it has waited too long."""

        def then(late: bool) -> None:
            if late and self._told_late is not None:
                self._told_late(len(told))
            _tell(job, [_late(one) for one in told] if late else told)

        newest = self._end.number - 1
        waiting.add(max((one.number or newest for one in told), default=0), then)

    def _commit(self, group: list[_Job]) -> Sequence[list[Stored] | SpoolError]:
        """Append a group and wait for the disk; tell every job what became of its entries."""
        payloads: list[bytes] = []
        now = time.time()
        try:
            with self._log.locked():
                self._catch_up()
                entries = [entry for job in group for entry in job.entries]
                with self._tail_lock:
                    stored = self._stored(entries)
                    told = [
                        [self._accept(e, now, payloads, stored) for e in job.entries]
                        for job in group
                    ]
                if payloads:
                    self._end = self._log.append(self._end, payloads)
            # Also for entries of other processes that we have seen and told of.
            self._log.sync(self._end)
        except Exception as error:
            # What was accepted is not there: next time all is read anew.
            self._tail, self._end = _Tail(), NOWHERE
            reason = SpoolError(f"the local log cannot be written: {error}")
            reason.__cause__ = error
            return [reason] * len(group)
        return told

    def _catch_up(self) -> None:
        """Learn what others have appended; now and then forget what the tables know."""
        now = time.monotonic()
        if self._end is NOWHERE or now - self._forgot_at > FORGET_SECONDS:
            self._forgot_at = now
            indexed = self._indexed()
            with self._tail_lock:
                self._tail.forget(indexed.number)
                if self._end.number < indexed.number:
                    self._tail, self._end = _Tail(), indexed
        while True:
            records, self._end = self._log.read(self._end)
            if not records:
                return
            with self._tail_lock:
                for record in records:
                    if not record.payload.startswith(PLAIN):
                        self._tail.learn(record.number, _entry(record.payload))

    def _accept(self, entry: Entry, now: float, payloads: list[bytes], stored: _Places) -> Stored:
        """Add an entry's payload, unless it is known or somebody was quicker."""
        if entry.unique and (known := self._known(entry, stored)) is not None:
            return known
        if (made := entry.assignment) is not None:
            live = self.assignment(made.campaign, made.unit, now)
            if live is not None and live != made.replaces:
                return Stored(assigned=live)
        if (wanted := entry.reservation) is not None:
            committed = self._committed(wanted.campaign)
            if committed + wanted.amount_minor > wanted.budget_minor:
                return Stored(exhausted=True)
        self._tail.learn(self._end.number + len(payloads), entry)
        payloads.append(_payload(_Kept(now, entry)))
        return FRESH

    def _stored(self, entries: Sequence[Entry]) -> _Places:
        """Return where in the log the tables know ids of these entries to be: all by one look."""
        wanted = defaultdict[int, list[bytes]](list)
        for entry in entries:
            if entry.unique:
                wanted[entry.kind].append(entry.id)
        found: _Places = {}
        for kind, ids in wanted.items():
            for begin in range(0, len(ids), LOOKED_UP):
                some = ids[begin : begin + LOOKED_UP]
                # Few lengths: each statement has to be prepared once.
                some += some[-1:] * ((1 << (len(some) - 1).bit_length()) - len(some))
                query = KNOWN.format(", ".join("?" * len(some)))
                rows = self._reader.execute(query, (kind, *some))
                found |= {(kind, id): Place(*place) for id, *place in rows}
        return found

    def _known(self, entry: Entry, stored: _Places) -> Stored | None:
        """Return what was stored under an entry's id before, if there is anything."""
        newest = self._tail.known(entry.kind, entry.id)
        if newest is not None:
            return Stored(known=newest)
        place = stored.get((entry.kind, entry.id))
        if place is None:
            return None
        with self._for_reading() as log:
            records, _ = log.read(place, most=RECORD_BYTES)
        if not records or records[0].number != place.number:
            return None  # it is in Postgres, and older than the idempotency window
        return Stored(known=_entry(records[0].payload).known, number=place.number)

    def _committed(self, campaign: int) -> int:
        number, stored = self._reader.execute(COMMITTED, (campaign,)).fetchone()
        # Read with the tables, so that no entry counts twice or not at all.
        self._tail.forget(number)
        return int(stored) + self._tail.reserved(campaign)


def _tell(job: _Job, told: list[Stored] | SpoolError) -> None:
    try:
        job.then(told)
    except Exception:
        log.exception("nobody_to_tell")


def _late(one: Stored) -> Stored:
    return LATE if one is FRESH else one._replace(late=True)
