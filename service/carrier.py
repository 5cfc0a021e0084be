"""The carrier: between the local log of one host and Postgres, in both directions.

Up: entries are copied in their order. The watermark (how far this local log has been carried)
advances in the same transaction, so a crash at any point repeats nothing and loses nothing; one
transaction-wide lock orders all hosts, so the log's positions become visible in their order.

Down: campaigns, keys, snapshots, stored attributes and products to offer come back into the local
file, from which serving processes read. When Postgres is away both directions wait, and serving
goes on.
"""

import datetime as dt
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import orjson
import structlog
from sqlalchemy import Connection, Engine, Row
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from service import columnar, copying, products, queries, recommended
from service.contexts import known
from service.models import Customer, Product
from service.spool import DECISION, DECISIONS, KINDS, OUTCOME, Spool, SpoolError

BATCH = 2_000
PIECE_ROWS = 1_000
ATTRIBUTE_SECONDS = 0.3
IDLE_SECONDS = 0.02
PACE_SECONDS = 0.05
"""How long entries gather: one transaction for a few costs Postgres and us as much as for many."""
AWAITED_SECONDS = 0.002
"""How long new entries lie before they are seen, where their callers wait for PostgreSQL."""
INDEX_SECONDS = 0.1
FAULT_SECONDS = 5.0
REFRESH_SECONDS = 1.0
KEEP_SECONDS = 86_400.0
PRUNE_SECONDS = 1.0
log = structlog.get_logger()

OVERLAP = dt.timedelta(seconds=60)
NEWS = ("campaigns", "keys", "customers", "products", "snapshot", "budgets")
"""What, when it is announced, is brought down at once."""
NEWS_OF = {False: "log", True: "outcomes"}
"""What is announced of what was carried up, by whether outcomes are among it: they are learnt from
at once."""

Entries = Sequence[tuple[int, int, bytes]]


def keep_index(spool: Spool, stop: threading.Event) -> None:
    """Bring the local log's tables up to date until stopped, whether Postgres answers or not."""
    while not stop.is_set():
        try:
            looked = spool.index()
        except SpoolError:
            log.exception("log_not_indexed")
            looked = 0
            stop.wait(FAULT_SECONDS)
        stop.wait(IDLE_SECONDS if looked else INDEX_SECONDS)


class _Followed:
    """A table whose rows are brought down as they change.

    ``changed`` is its column that says when a row did, ``rows`` the query of those that changed
    at or after a moment, oldest first.
    """

    def __init__(self, changed: Any, rows: Callable[[Any], queries.Query]) -> None:
        self._changed, self._rows = changed, rows
        self._since: dt.datetime | None = None
        self._seen: tuple[int, dt.datetime] | None = None
        self._reached: dt.datetime | None = None

    @property
    def behind(self) -> bool:
        """Whether the last look had to stop before its end."""
        return self._reached is not None

    def news(self, connection: Connection, *, until: float) -> Iterator[Sequence[Row[Any]]]:
        """Yield rows that are news; the last minute is read again, for overlapping writers.

        In small pieces, to be kept one by one: decisions want the local log meanwhile. After
        ``until`` (`time.monotonic`) it stops, and goes on there when it is asked again.
        """
        since = self._since
        number, newest, now = connection.execute(queries.news(self._changed, since)).one()
        if newest is None:
            return
        if (number, newest) != self._seen:
            begun = self._reached or since
            query = self._rows(begun).execution_options(yield_per=PIECE_ROWS)
            with connection.execute(query) as found:
                for rows in found.partitions():
                    yield rows
                    # Rows of one moment stay together: a stop among them would never end.
                    if time.monotonic() > until and rows[-1].updated_at != begun:
                        self._reached = rows[-1].updated_at
                        return
            self._seen, self._reached = (number, newest), None
        overlap = OVERLAP if now - newest < OVERLAP else dt.timedelta(0)
        self._since = newest - overlap


class Carrier:
    """Carries one host's log up and the catalogue down."""

    def __init__(self, spool: Spool, engine: Engine) -> None:
        self._spool, self._engine = spool, engine
        self.changed = threading.Event()
        self._shipped: int | None = None
        self._told: int | None = None
        self._behind = False
        self._ships = threading.Lock()
        self._released: dict[int, int] = {}
        self._customers = _Followed(Customer.updated_at, queries.customers_since)
        self._products = _Followed(Product.updated_at, queries.products_since)
        self._newest: dict[int, tuple[int, int | None]] = {}
        self._listed: tuple[Any, ...] = ()
        self._refreshed_at = self._pruned_at = 0.0

    def run(self, stop: threading.Event) -> None:
        """Carry until stopped; an absent database or a full disk only makes it wait."""
        while not stop.is_set():
            try:
                busy = self.step()
            except (SQLAlchemyError, SpoolError) as error:
                log.warning("carrier_waits", error=type(error).__name__)
                self._beat(database=False)
                self._engine.dispose()
                busy = False
                stop.wait(0.5)
            if not busy:
                stop.wait(IDLE_SECONDS)
            elif not self._behind:
                self.changed.wait(PACE_SECONDS)

    def keep_shipping(self, stop: threading.Event) -> None:
        """Carry up whatever comes at once, until stopped: somebody waits for it.

        Beside `run`, in which entries wait for what comes down.
        """
        while not stop.is_set():
            try:
                carried = self.ship()
            except (SQLAlchemyError, SpoolError):
                stop.wait(0.5)  # `run` meets the same, and tells it
            else:
                if not carried:
                    stop.wait(AWAITED_SECONDS)

    def step(self) -> bool:
        """Carry what there is, both ways; tell whether there may be more to carry at once."""
        carried = self.ship()
        now = time.monotonic()
        if self.changed.is_set() or now - self._refreshed_at > REFRESH_SECONDS:
            self.changed.clear()
            self.refresh()
            self._refreshed_at = now
            self._beat(database=True)
        if now - self._pruned_at > PRUNE_SECONDS:
            self._spool.prune(self._shipped or 0, before=time.time() - KEEP_SECONDS)
            self._pruned_at = now
        return carried > 0 or self.changed.is_set()

    def ship(self) -> int:
        """Carry the next entries up, exactly once; return how many."""
        with self._ships:
            carried = self._ship_next()
            self._behind = carried == BATCH
            if self._shipped is not None and self._shipped != self._told:
                self._spool.shipped(self._shipped)
                self._told = self._shipped
            return carried

    def _ship_next(self) -> int:
        if self._shipped is None:
            self._shipped = self._watermark()
            if self._shipped > self._spool.last():
                # This file is older than what was carried from it: a backup. Its next entries
                # would pass for those; under a new name all are carried, and repeats add nothing.
                log.error("local_log_was_restored", shipped=self._shipped)
                self._spool.renew()
                self._shipped = self._watermark()
        entries = self._spool.after(self._shipped or 0, limit=BATCH)
        if entries:
            self._ship(entries)
        return len(entries)

    def _watermark(self) -> int:
        with self._engine.begin() as connection:
            return connection.scalar(queries.SHIPPED, {"id": self._spool.id}) or 0

    def _ship(self, entries: Entries) -> None:
        try:
            self._shipped = self._copy(entries)
        except (DataError, IntegrityError, copying.Malformed) as error:
            # One entry that the database will never take must not hold back all the others:
            # halve until it stands alone, then set it aside where a person will find it.
            self._shipped = None
            if len(entries) > 1:
                middle = len(entries) // 2
                self._ship(entries[:middle])
                self._ship(entries[middle:])
                return
            ((seq, kind, body),) = entries
            reason = getattr(error, "orig", error)
            log.error("entry_rejected", seq=seq, error=type(reason).__name__)
            self._spool.reject(seq, kind, body, str(reason))
            self._shipped = self._copy([], upto=seq)

    def _copy(self, entries: Entries, *, upto: int = 0) -> int:
        with self._engine.begin() as connection:
            connection.execute(queries.LOCK_LOG)
            shipped: int = connection.scalar(queries.SHIPPED, {"id": self._spool.id}) or 0
            fresh = [entry for entry in entries if entry[0] > shipped]
            of = {kind: [body for _, own, body in fresh if own == kind] for kind in KINDS}
            if of[DECISION]:
                _copy_single(connection, of[DECISION])
            if of[OUTCOME]:
                told = b"[" + b",".join(of[OUTCOME]) + b"]"
                connection.execute(queries.INSERT_OUTCOMES, {"rows": told.decode()})
            for body in of[DECISIONS]:
                _copy_list(connection, columnar.decode(body))
            last = max(shipped, upto, *(entry[0] for entry in entries))
            moved = {"id": self._spool.id, "shipped": last, "news": NEWS_OF[bool(of[OUTCOME])]}
            connection.execute(queries.SET_SHIPPED, moved)
        return last

    def refresh(self) -> None:
        """Bring campaigns, keys, snapshots and stored attributes down; write only what changed."""
        with self._engine.connect() as connection:
            listed, catalogue = self._catalogue(connection)
            newest = {
                row.id: (row.version, row.retraining)
                for row in connection.execute(queries.newest_versions())
            }
            snapshots = self._states(connection, newest)
            released: dict[int, int] = {
                row.campaign_id: row.released_minor for row in connection.execute(queries.budgets())
            }
            popular = connection.scalar(queries.popular_products())
        values = snapshots
        if catalogue is not None:
            values["catalogue"] = catalogue
        if popular is not None:
            values["popular"] = orjson.dumps(popular)
        changed = {name: value for name, value in values.items() if self._spool.read(name) != value}
        if changed:
            self._spool.write(changed)
        self._newest, self._listed = newest, listed
        if released != self._released:
            self._spool.release(released)
            self._released = released
        with self._engine.connect() as connection:
            self._keep_attributes(connection)

    def _catalogue(self, connection: Connection) -> tuple[tuple[Any, ...], bytes | None]:
        """Return what campaigns and keys are told apart by, and all of them, if that is news.

        Ten thousand campaigns take more than a second to be read, so that is only done then.
        """
        stamp = connection.scalar(queries.CATALOGUE_STAMP)
        keys = [
            {
                "public_id": row.public_id,
                "name": row.name,
                "secret_sha256": row.secret_sha256.hex(),
                "scopes": row.scopes,
            }
            for row in connection.execute(queries.live_keys())
        ]
        if (stamp, keys) == self._listed:
            return (stamp, keys), None
        campaigns = [
            {
                "id": row.id,
                "revision": row.revision,
                "state": row.state,
                "killed": row.killed_at is not None,
                "seed": row.seed.hex(),
                "definition": row.definition,
            }
            for row in connection.execute(queries.catalogue_rows())
        ]
        return (stamp, keys), orjson.dumps({"campaigns": campaigns, "keys": keys})

    def _states(
        self, connection: Connection, newest: dict[int, tuple[int, int | None]]
    ) -> dict[str, bytes]:
        """Return the snapshots that have not been brought down yet, as they are cached.

        With what they count on from, where that is new: both go into the cache at once.
        """
        wanted, fitted = [], []
        for id, (version, retraining) in newest.items():
            before = self._newest.get(id, (0, None))
            if version != before[0]:
                wanted.append((id, version))
            if retraining not in (None, before[1]):
                fitted.append((id, retraining))
        if not wanted:
            return {}
        states = {}
        for row in connection.execute(queries.snapshot_states(wanted)):
            version, usual = row.version.to_bytes(8, "big"), row.usual or b""
            states[f"snapshot:{row.campaign_id}"] = version + row.state
            states[f"usual:{row.campaign_id}"] = version + row.revision.to_bytes(4, "big") + usual
        if fitted:
            for row in connection.execute(queries.fitted_states(fitted)):
                states[f"fitted:{row.campaign_id}"] = row.state
        return states

    def _keep_attributes(self, connection: Connection) -> None:
        """Keep what is news of units and products, for so long that snapshots need not wait."""
        until = time.monotonic() + ATTRIBUTE_SECONDS
        for rows in self._customers.news(connection, until=until):
            self._spool.store_customers(
                [
                    (bytes(row.unit), known(row.attributes, row.traits, row.traits_at))
                    for row in rows
                ]
            )
            self._spool.store_recommended(
                [
                    (bytes(row.unit), recommended.kept(row.recommended, row.traits_at))
                    for row in rows
                    if row.traits_at is not None
                ]
            )
        for rows in self._products.news(connection, until=until):
            self._spool.store_products(
                [
                    (row.id, products.known(row.stock, row.price_minor, row.category, row.pace,
                                            row.pace_at, row.competitors, price_at=row.price_at,
                                            stock_at=row.stock_at))
                    for row in rows
                ]
            )  # fmt: skip
        if self._customers.behind or self._products.behind:
            self.changed.set()

    def _beat(self, *, database: bool) -> None:
        """Leave word for the health page of how things stand."""
        try:
            beat = {"at": time.time(), "database": database, "shipped": self._shipped or 0}
            self._spool.note("heartbeat", orjson.dumps(beat))
        except SpoolError:
            log.warning("heartbeat_not_written")


def _copy_single(connection: Connection, bodies: Sequence[bytes]) -> None:
    """Append decisions in their order; a repeat, or one of a deleted draft, adds nothing.

    Who holds the log's lock may look first: no partition's index knows the ids of the others.
    """
    rows: dict[bytes, bytes] = {}
    for row in map(copying.read, bodies):
        rows.setdefault(copying.id_of(row), row)
    campaigns = _there(connection, {copying.campaign_of(id) for id in rows})
    known = _known(connection, rows)
    fresh = [row for id, row in rows.items()
             if id not in known and copying.campaign_of(id) in campaigns]  # fmt: skip
    if fresh:
        queries.copy(connection, queries.COPY_DECISIONS, copying.stream(fresh))


def _there(connection: Connection, campaigns: Collection[int]) -> set[int]:
    return set(connection.scalars(queries.campaigns_there(list(campaigns))))


def _known(connection: Connection, ids: Iterable[bytes]) -> set[bytes]:
    listed = "{" + ",".join([id.hex() for id in ids]) + "}"
    return {id.bytes for id in connection.scalars(queries.decisions_there(), {"ids": listed})}


def _copy_list(connection: Connection, found: columnar.Packed) -> None:
    """Append the decisions of one list, unless they are there already.

    They are new, so all are copied in at once; only where the log is carried a second time under
    another name they are there, all of them, because a list is appended as a whole: its first id
    tells. Those of a deleted draft are left out.
    """
    first = found.ids[: copying.ID_BYTES]
    if not _there(connection, [found.campaign_id]) or _known(connection, [first]):
        return
    queries.copy(connection, queries.COPY_DECISIONS, columnar.copy_stream(found))
