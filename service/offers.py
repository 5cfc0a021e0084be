"""Offers for a whole file of customers: Parquet in, Parquet out, each decision in the log.

    a chunk of rows → arms, drawn as ever (`service.bulk`) → a part of the output, on disk
        → the decisions and how far the run has come, in one transaction of PostgreSQL
    all parts → the output; all decisions → the log (`service.pending`)

A decision's id derives from its run and its row, and a run advances with its decisions: one that is
killed, wherever, goes on where it stood, and no row is decided twice. A chunk's part of the output
is written before, so it is there whenever its decisions are; a part without decisions is written
again. Few chunks are in memory, whatever the size of the file: those that are being computed, one
that is being kept, and one that waits for that.

The decisions go straight into PostgreSQL, not through a host's local log: what is there is durable
already. So the command needs the database, and a campaign whose decisions hang on nothing else: no
budget, no sticky arms, no recommended products.
"""

import contextlib
import datetime as dt
import fcntl
import hashlib
import os
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Engine

from service import arrow, audit, bulk, columnar, contexts, copying, pending, queries
from service.campaigns import get
from service.columnar import Bytes
from service.db import transaction
from service.definition import CampaignDefinition
from service.errors import BarterError, Conflict, FieldError, Invalid
from service.models import Campaign, Run
from service.pseudonyms import Pseudonyms, Units, split
from service.snapshots import LiveCampaign, whole

CHUNK = 20_000
LONG = 1_000_000
"""So many rows are worth the time that it takes to have their units hashed side by side."""
DECIDERS = min(2, os.cpu_count() or 1)
"""How many chunks are computed at a time."""
TOKEN_BITS, ROW_BYTES = 50, 5
ENDS_BYTES = 1 << 20
Progress = Callable[[int], None]


class TakenOver(Conflict):
    """Another process is deciding about this file just now."""


@dataclass(frozen=True)
class Job:
    """A run: of which campaign, from which file to which, and how its columns are called."""

    run: Run
    input: Path
    output: Path
    unit: str

    @property
    def parts(self) -> Path:
        """The folder of what has been written so far."""
        return self.output.with_name(f"{self.output.name}.run-{self.run.id}")


def begin(
    engine: Engine, key: str, given: Path, output: Path, *, unit: str, actor: str,
    again: bool = False,
) -> Job:  # fmt: skip
    """Check a file and return its run: the one that was cut short, or a new one.

    Raises:
        BarterError: the campaign, the file or the place of the output do not do; nothing changed.
    """
    total, digest = check(given, unit), described(given)
    if output.exists():
        raise Conflict(f"{output} is there already; name another file, or remove it.")
    if not output.parent.is_dir():
        raise Invalid(f"There is no folder {output.parent}.")
    with transaction(engine) as session:
        campaign = get(session, key, lock=True)
        _check_campaign(campaign)
        run = session.scalar(queries.run_of(campaign.id, digest))
        # One that was killed at the very end has its decisions, but not its output.
        open_run = run is not None and (
            run.finished_at is None or Job(run, given, output, unit).parts.is_dir()
        )
        if run is not None and not open_run and not again:
            raise Conflict(
                f"This file was decided about on {run.finished_at:%Y-%m-%d %H:%M} UTC"
                f" (run {run.id}); --again decides anew."
            )
        if run is None or not open_run:
            run = Run(
                campaign_id=campaign.id, token=secrets.randbits(TOKEN_BITS), digest=digest,
                name=given.name, total=total, actor=actor,
            )  # fmt: skip
            session.add(run)
            session.flush()
            session.refresh(run)
            detail = {"run": run.id, "rows": total}
            audit.record(session, actor=actor, action="decide", subject=f"campaign:{key}",
                         detail=detail)  # fmt: skip
    job = Job(run, given, output, unit)
    if run.rows and not job.parts.is_dir():
        raise Conflict(
            f"Run {run.id} has decided about {run.rows:,} rows, and {job.parts} is missing:"
            " name the output as you did then, or decide anew with --again."
        )
    job.parts.mkdir(mode=0o700, exist_ok=True)
    return job


def _check_campaign(campaign: Campaign) -> None:
    definition = CampaignDefinition.model_validate(campaign.definition)
    for what, there in (
        ("a budget", definition.budget_minor is not None),
        ("sticky arms", bool(definition.sticky_seconds)),
        ("offers on recommended products", definition.recommends),
    ):
        if there:
            raise Conflict(
                f"{definition.key} has {what}, which one host's local log keeps: send lists to"
                " POST /v1/decisions instead."
            )


def described(path: Path) -> str:
    """Return what tells files apart without reading them whole: size, footer and both ends."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(ENDS_BYTES)
        file.seek(max(0, size - ENDS_BYTES))
        return hashlib.blake2b(head + file.read(), key=size.to_bytes(8, "big")).hexdigest()[:64]


def check(path: Path, unit: str) -> int:
    """Look through a file before anything is decided; return how many rows it has.

    Raises:
        Invalid: it is not such a file; the error names the column, and the row.
    """
    import pyarrow as pa

    file = opened(path)
    names = file.schema_arrow.names
    if unit not in names:
        shown = ", ".join(names[:12])
        raise _invalid(unit, f"is not a column of the file, which has {shown}; say --unit COLUMN")
    if not file.metadata.num_rows:
        raise Invalid("The file has no rows.")
    row = 0
    try:
        empty = file.schema_arrow.empty_table()
        arrow.attributes_of(
            {name: empty.column(name).combine_chunks() for name in names if name != unit}
        )
        for batch in file.iter_batches(CHUNK, columns=[unit]):
            _units(unit, batch.column(unit), row)
            row += batch.num_rows
    except (pa.ArrowException, OSError):
        raise Invalid(f"The file is damaged after row {row:,}.") from None
    return row


def opened(path: Path) -> Any:
    """Open a file of Parquet; raises `Invalid` where it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without this all that has been read stays in memory.
        return pq.ParquetFile(path, pre_buffer=False)
    except FileNotFoundError:
        raise Invalid(f"There is no file {path}.") from None
    except (pa.ArrowException, OSError):
        raise Invalid(f"{path.name} is not a whole file of Parquet.") from None


def _units(name: str, array: Any, before: int) -> Units:
    """Return the units of some rows; whole numbers stand for their digits."""
    import pyarrow as pa

    if pa.types.is_integer(array.type):
        array = array.cast(pa.string())
    try:
        return arrow.texts(name, array)
    except Invalid as error:
        text = error.errors[0].message
        row = error.errors[0].field.removeprefix("decisions[").partition("]")[0]
        if row.isdigit():
            raise _invalid(name, f"row {before + int(row) + 1:,} {text}") from None
        raise


def _invalid(name: str, text: str) -> Invalid:
    return Invalid(f"{name}: {text}.", errors=[FieldError(name, text)])


class _Chunk(NamedTuple):
    """Rows whose part of the output is written, and whose decisions are not in PostgreSQL yet."""

    since: int
    until: int
    decisions: columnar.Packed


def work(
    engine: Engine, job: Job, pseudonym: Pseudonyms, *, progress: Progress = lambda _: None,
    entering: Progress = lambda _: None,
) -> None:  # fmt: skip
    """Decide about the rows that are left, write the output, and enter the decisions in the log.

    ``progress`` hears how many rows are done, and then, when the output is there, ``entering`` how
    many decisions the log has not got yet. Either may raise to stop.

    Raises:
        BarterError: the campaign does not run any more, or another process is at it.
    """
    if job.run.total >= LONG:
        pseudonym.prepare()
    with _alone(engine, job):
        rows = job.run.rows
        progress(rows)
        stored: Future[None] | None = None
        with ThreadPoolExecutor(1) as storing:
            try:
                for chunk in _decided(engine, job, pseudonym, rows):
                    if stored is not None:
                        stored.result()
                        progress(rows)
                    stored, rows = storing.submit(_keep, engine, job.run, chunk), chunk.until
            finally:
                if stored is not None:
                    stored.result()
        progress(rows)
        _join(job)
    while left := pending.waiting(engine, job.run.id):
        entering(left)
        pending.enter(engine)
    entering(0)


@contextlib.contextmanager
def _alone(engine: Engine, job: Job) -> Iterator[None]:
    """Keep other processes off a run's parts; those that ran ahead of the log are removed.

    Raises:
        TakenOver: another process is at it, or has been since the job began.
    """
    with (job.parts / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TakenOver() from None
        with transaction(engine) as session:
            if session.get_one(Run, job.run.id).rows != job.run.rows:
                raise TakenOver()
        for part in job.parts.glob("*.parquet"):
            if int(part.stem) >= job.run.rows:
                part.unlink()
        yield


def _decided(engine: Engine, job: Job, pseudonym: Pseudonyms, rows: int) -> Iterator[_Chunk]:
    """Yield the rest of the chunks in their order; several are computed at a time."""
    live: LiveCampaign | None = None
    made: deque[Future[_Chunk]] = deque()
    with ThreadPoolExecutor(DECIDERS) as deciding:
        for table in _tables(job.input, rows):
            live = _live(engine, job.run.campaign_id, live)
            made.append(deciding.submit(_decide, engine, job, pseudonym, live, table, rows))
            rows += table.num_rows
            if len(made) >= DECIDERS:
                yield made.popleft().result()
        while made:
            yield made.popleft().result()


def _decide(
    engine: Engine, job: Job, pseudonym: Pseudonyms, live: LiveCampaign, table: Any, since: int
) -> _Chunk:
    """Decide about the rows of a table, and write their part of the output."""
    import pyarrow as pa

    names = table.schema.names
    known = arrow.attributes_of(
        {name: table.column(name) for name in names if name in live.definition.reads}
    )
    customers, now = table.column(job.unit), dt.datetime.now(dt.UTC)
    units = pseudonym.many(_units(job.unit, customers, since))
    told = bulk.completed(_stored(engine), live.definition, units, known, now)
    ids = derived_ids(live.id, job.run.token, since, len(units))
    batch = bulk.chosen(live, ids, units, told, now)
    offered = arrow.table_of(batch.answers())
    _write(job, since, offered.add_column(0, "unit", customers.cast(pa.string())))
    return _Chunk(since, since + len(units), batch.packed())


def _tables(path: Path, rows: int) -> Iterator[Any]:
    """Yield a file's rows from one on, chunk by chunk."""
    import pyarrow as pa

    file, skip = opened(path), rows
    if rows == file.metadata.num_rows:
        return
    groups: list[int] = []
    for number in range(file.metadata.num_row_groups):
        size = file.metadata.row_group(number).num_rows
        if skip >= size and not groups:
            skip -= size
        else:
            groups.append(number)
    try:
        for batch in file.iter_batches(CHUNK, row_groups=groups):
            rest = batch.slice(skip)
            skip -= batch.num_rows - rest.num_rows
            if rest.num_rows:
                yield rest
                rows += rest.num_rows
    except (pa.ArrowException, OSError):
        raise Invalid(f"The file is damaged after row {rows:,}.") from None


def derived_ids(campaign: int, token: int, first: int, rows: int) -> Bytes:
    """Return the ids (B, 16) of a run's rows: a campaign's number, the run's token, the row."""
    ids = np.empty((rows, copying.ID_BYTES), dtype=np.uint8)
    ids[:, :4] = np.frombuffer(campaign.to_bytes(4, "big"), np.uint8)
    # 50 bits around the places that say that it is a UUIDv8 (RFC 9562).
    tail = token >> 34 << 48 | 0x8 << 44 | (token >> 22 & 0xFFF) << 32 | 0x2 << 30
    tail |= (token >> 16 & 0x3F) << 24 | (token & 0xFFFF) << 8
    ids[:, 4:11] = np.frombuffer(tail.to_bytes(8, "big"), np.uint8)[:7]
    numbers = np.arange(first, first + rows, dtype=">u8").view(np.uint8).reshape(rows, 8)
    ids[:, 11:] = numbers[:, -ROW_BYTES:]
    return ids


def _live(engine: Engine, id: int, known: LiveCampaign | None) -> LiveCampaign:
    """Return the campaign as it is now; raises `Conflict` where it does not run any more.

    While it runs at the same revision its decisions go by the snapshot that they began with.
    """
    with engine.connect() as connection:
        row = connection.execute(queries.campaign_row(id)).one()
        if known is not None and known.revision == row.revision:
            live = known.moved(row.state, killed=row.killed_at is not None)
        else:
            newest = connection.execute(queries.newest_snapshot(id)).one_or_none()
            document = connection.scalar(queries.revision_definition(id, row.revision))
            live = LiveCampaign(
                id=id, revision=row.revision, state=row.state, killed=row.killed_at is not None,
                seed=row.seed, definition=CampaignDefinition.model_validate(document),
                version=newest.version if newest else 0,
                stored=whole(newest.state, newest.fitted) if newest else None,
            )  # fmt: skip
    state = live.state_at(dt.datetime.now(dt.UTC))
    if state != "running":
        raise Conflict(f"The campaign is {state}: nobody is offered anything while it is.")
    return live


def _stored(engine: Engine) -> Callable[[bytes], dict[bytes, bytes]]:
    def attributes_of(units: bytes) -> dict[bytes, bytes]:
        named = split(np.frombuffer(units, np.uint8))
        with engine.connect() as connection:
            found = connection.execute(queries.customers_of(named))
            return {
                bytes(row.unit): contexts.known(row.attributes, row.traits, row.traits_at)
                for row in found
            }

    return attributes_of


def _write(job: Job, since: int, table: Any) -> None:
    """Write the part of the output from a row on."""
    import pyarrow.parquet as pq

    path = job.parts / f"{since:015d}.parquet"
    pq.write_table(table, path.with_suffix(".new"), compression="zstd")
    _synchronised(path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


def _keep(engine: Engine, run: Run, chunk: _Chunk) -> None:
    """Keep a chunk's decisions, to be entered in the log, and the run's progress.

    Only the last is waited for until it is on PostgreSQL's disk, and all before it then are: should
    PostgreSQL lose some, the run goes on where they end.
    """
    place = {"id": run.id, "since": chunk.since, "until": chunk.until}
    with engine.begin() as connection:
        if chunk.until < run.total:
            connection.execute(queries.WITHOUT_DISK)
        if connection.execute(queries.ADVANCE_RUN, place).rowcount != 1:
            raise TakenOver()
        pending.keep(connection, run.id, chunk.decisions)


def _synchronised(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _join(job: Job) -> None:
    """Make one file of the parts; what was there of an earlier try is written anew."""
    import pyarrow.parquet as pq

    parts = sorted(job.parts.glob("*.parquet"))
    whole_path = job.parts / "whole.new"
    count = 0
    with pq.ParquetWriter(whole_path, pq.read_schema(parts[0]), compression="zstd") as writer:
        for part in parts:
            if int(part.stem) != count:
                raise BarterError(f"The part of the output from row {count:,} on is missing.")
            table = pq.read_table(part)
            writer.write_table(table)
            count += table.num_rows
    if count != job.run.total:
        raise BarterError(f"The output has {count:,} rows; the file has {job.run.total:,}.")
    _synchronised(whole_path)
    whole_path.rename(job.output)
    shutil.rmtree(job.parts)
