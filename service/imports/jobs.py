"""An import from its file to its end: begun, read in chunks, taken up again, undone.

Each chunk is one transaction with the place that has been reached, so a crash at any point repeats
nothing and loses nothing, and two processes at one import cannot both take a chunk. The file lies
in the data folder of the host that took it, open to nobody else, until it has been read.
"""

import contextlib
import datetime as dt
import hashlib
import itertools
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, NamedTuple

import structlog
from sqlalchemy import Engine, delete, func, insert, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service import audit
from service.config import Config
from service.db import transaction
from service.errors import Conflict, FieldError, Invalid, NotFound, TooLarge, Unavailable
from service.imports import files, kinds, load
from service.imports.files import BadFile, Damage, Row
from service.imports.kinds import Plan, Refused, Settings, UnfitHeader
from service.imports.quality import Quality
from service.models import Import, ImportReject, Interaction, Transaction

CELLS_PER_CHUNK = 400_000
KEPT_REJECTS = 10_000
ATTEMPTS = 5
"""So many processes may die of a file, one after the other and without a row stored in between."""
BLOCK = 1 << 20
ORPHAN_SECONDS = 86_400.0
UNDOABLE = ("interactions", "transactions")
log = structlog.get_logger()

Progress = Callable[[Import], None]
OnRefused = Callable[[int, str, str], None]


class UnknownImport(NotFound):
    """There is no such import."""


class TakenOver(Exception):
    """Another process reads this import; this one lets go."""


class Received(NamedTuple):
    """A file that was taken in: where it is, how long, and its SHA-256."""

    path: Path
    size: int
    digest: str


def folder(config: Config) -> Path:
    """Return where files wait to be read, made on first use."""
    found = config.data / "imports"
    found.mkdir(mode=0o700, exist_ok=True)
    return found


def too_large(limit: int) -> TooLarge:
    """Return the refusal of a file of more than ``limit`` bytes, with the remedy."""
    return TooLarge(
        f"The file is larger than {limit:,} bytes; split it, or use barter import"
        " on the command line, which takes files of any size."
    )


def receive(config: Config, stream: IO[bytes], *, limit: int) -> Received:
    """Take a file in from a stream; what fails keeps nothing.

    Raises TooLarge beyond ``limit`` bytes, and Unavailable where this host's disk cannot take it.
    """
    path = folder(config) / f"receiving-{secrets.token_hex(8)}"
    digest, size = hashlib.sha256(), 0
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            while block := stream.read(BLOCK):
                size += len(block)
                if size > limit:
                    raise too_large(limit)
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            log.error("file_not_taken_in", error=error.strerror)
            _hear_out(stream, limit - size)
            raise Unavailable("This server's disk cannot take the file just now.") from None
        raise
    return Received(path, size, digest.hexdigest())


def _hear_out(stream: IO[bytes], most: int) -> None:
    """Read the rest of what is being sent: who still sends does not hear that it is refused."""
    with contextlib.suppress(OSError):
        while most > 0 and (block := stream.read(BLOCK)):
            most -= len(block)


def tidy(config: Config) -> None:
    """Drop files that a process died of while it took them in: they may name customers."""
    for path in folder(config).glob("receiving-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > ORPHAN_SECONDS:
                path.unlink()


def described(path: Path) -> Received:
    """Return a file that is already here with its size and SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Received(path, path.stat().st_size, digest)


def check(path: Path, kind: str, settings: Settings) -> Plan:
    """Return how a file would be read; raises Invalid with what is wrong with it."""
    wanted = kinds.kind(kind)
    try:
        with files.opened(
            path, encoding=settings.encoding, suits=_suits(wanted, settings)
        ) as table:
            return kinds.plan(wanted, table.header, settings, dt.datetime.now(dt.UTC))
    except (BadFile, UnfitHeader) as error:
        told = _told(error)
        raise Invalid(told, errors=[FieldError("file", told)]) from None


def accept(
    engine: Engine, config: Config, received: Received, *, kind: str, name: str,
    settings: Settings, actor: str,
) -> Import:  # fmt: skip
    """Put a received file in line to be read; raises Invalid and drops it if it cannot be."""
    try:
        check(received.path, kind, settings)
        with transaction(engine) as session:
            made = begin(session, received, kind=kind, name=name, settings=settings, actor=actor)
            # Before the commit: a row that others see has its file.
            received.path.rename(folder(config) / str(made.id))
            session.execute(select(func.pg_notify("barter", "imports")))
            return made
    except BaseException:
        received.path.unlink(missing_ok=True)
        raise


def begin(
    session: Session, received: Received, *, kind: str, name: str, settings: Settings, actor: str
) -> Import:
    """Add the record of an import that nothing has been read of yet."""
    made = Import(
        kind=kind,
        name=name[:200],
        bytes=received.size,
        digest=received.digest,
        settings=asdict(settings),
        actor=actor,
    )
    session.add(made)
    session.flush()
    session.refresh(made)
    audit.record(
        session,
        actor=actor,
        action="import.begin",
        subject=f"import:{made.id}",
        detail={"kind": kind, "file": made.name},
    )
    return made


def earlier(session: Session, received: Received, *, kind: str) -> Import | None:
    """Return the newest import of the same file as the same kind, if any."""
    return session.scalars(
        select(Import)
        .where(Import.digest == received.digest, Import.kind == kind, Import.state != "undone")
        .order_by(Import.id.desc())
        .limit(1)
    ).first()


def silent(_: Import) -> None:
    """Report progress to nobody."""


def kept_nowhere(_line: int, _field: str, _message: str) -> None:
    """Do nothing more with a refused row."""


def work(
    engine: Engine,
    config: Config,
    id: int,
    path: Path,
    *,
    progress: Progress = silent,
    refused: OnRefused = kept_nowhere,
) -> Import:
    """Read an import on from where it stands to its end, and return it as it then is.

    ``progress`` is called after each chunk with the import as stored, ``refused`` for each refused
    row with its line, field and reason. A file that cannot be read on fails the import; what was
    stored before stays. Raises TakenOver where another process is at it.
    """
    with transaction(engine) as session:
        job = get(session, id)
        if job.state in ("done", "undone"):
            return job
        job.attempts += 1
    if job.attempts > ATTEMPTS:
        return _end(engine, id, "failed", "The file ended the process that read it, several times.")
    settings = Settings(**job.settings)
    wanted = kinds.kind(job.kind)
    try:
        with files.opened(
            path, encoding=settings.encoding, suits=_suits(wanted, settings)
        ) as table:
            plan = kinds.plan(wanted, table.header, settings, dt.datetime.now(dt.UTC))
            size = max(1_000, CELLS_PER_CHUNK // len(table.header))
            reading = _Reading(config, job, plan)
            rows = itertools.islice(table.rows, job.rows, None)
            while True:
                chunk = reading.chunk(itertools.islice(rows, size), refused)
                progress(_store(engine, job, chunk, reading.quality, table.progress()))
                if chunk.read < size:
                    break
    except (BadFile, UnfitHeader) as error:
        return _end(engine, id, "failed", _told(error))
    except MemoryError:
        return _end(engine, id, "failed", "The file needs more memory than an import may have.")
    except OperationalError:
        # The database is away, or its disk is full: no fault of the file, which waits for it.
        with transaction(engine) as session:
            get(session, id).attempts -= 1
        raise
    return _end(engine, id, "done", None)


class Chunk(NamedTuple):
    """What one chunk came to: rows read, rows to store, (line, field, message) of the refused."""

    read: int
    rows: list[tuple[Any, ...]]
    refused: list[tuple[int, str, str]]


class _Reading:
    """Makes rows to store out of rows of a file, and counts what it sees."""

    def __init__(self, config: Config, job: Import, plan: Plan) -> None:
        self._plan = plan
        self._make = kinds.maker(plan.kind, config.key("unit"), job.id)
        self.quality = Quality.of(job.quality)
        self.quality.unused, self.quality.personal = list(plan.unused), list(plan.personal)
        told = (field.name for _, field, _ in plan.fields)
        self.quality.fields = [*told, *(key for _, key in plan.attributes)]

    def chunk(self, rows: Iterable[Row], on_refused: OnRefused) -> Chunk:
        """Return what the next rows come to."""
        made: list[tuple[Any, ...]] = []
        refused: list[tuple[int, str, str]] = []
        read, counts = 0, self.quality
        for line, cells in rows:
            read += 1
            try:
                if isinstance(cells, Damage):
                    raise Refused("row", cells.message)
                made.append(self._make(kinds.read(self._plan, cells, counts.imputed, counts.gaps)))
            except Refused as error:
                refused.append((line, error.field, error.message))
                counts.refuse(error.field, error.message)
                on_refused(line, error.field, error.message)
        self._measure(made)
        return Chunk(read, made, refused)

    def _measure(self, made: Sequence[tuple[Any, ...]]) -> None:
        kind = self._plan.kind
        for column in kind.measured:
            place = kind.columns.index(column)
            self.quality.measure(column, (row[place] for row in made))
        if kind.moment is not None:
            place = kind.columns.index(kind.moment)
            self.quality.see(row[place] for row in made)


def _store(engine: Engine, job: Import, chunk: Chunk, quality: Quality, progress: float) -> Import:
    """Store a chunk and the place reached, in one transaction."""
    with transaction(engine) as session:
        # The place is taken first: it locks the import against everybody else.
        moved = session.execute(
            update(Import)
            .where(
                Import.id == job.id,
                Import.rows == job.rows,
                Import.state.in_(("waiting", "reading", "failed")),
            )
            .values(rows=Import.rows + chunk.read, state="reading", attempts=0, error=None)
        )
        if moved.rowcount == 0:  # type: ignore[attr-defined]
            raise TakenOver()
        news = load.take(session.connection(), job.kind, chunk.rows) if chunk.rows else 0
        kept = chunk.refused[: max(KEPT_REJECTS - job.rejected, 0)]
        if kept:
            names = ("import_id", "line", "field", "message")
            rows = [dict(zip(names, (job.id, *one), strict=True)) for one in kept]
            session.execute(insert(ImportReject), rows)
        session.execute(
            update(Import)
            .where(Import.id == job.id)
            .values(
                stored=Import.stored + news,
                known=Import.known + len(chunk.rows) - news,
                rejected=Import.rejected + len(chunk.refused),
                quality=quality.to_dict(),
                progress=progress,
            )
        )
        session.execute(select(func.pg_notify("barter", "imports")))
    with transaction(engine) as session:
        fresh = get(session, job.id)
    job.rows, job.rejected = fresh.rows, fresh.rejected
    return fresh


def _end(engine: Engine, id: int, state: str, error: str | None) -> Import:
    with transaction(engine) as session:
        job = get(session, id)
        if job.state == "undone":
            return job
        job.state, job.error, job.finished_at = state, error, dt.datetime.now(dt.UTC)
        if state == "done":
            job.progress = 1.0
        session.execute(select(func.pg_notify("barter", "imports")))
    log.info("import_ended", id=id, state=state, rows=job.rows, rejected=job.rejected)
    return job


def undo(session: Session, id: int, *, actor: str) -> Import:
    """Take back what an import added; what was there before, or came since, stays.

    Raises UnknownImport, and Conflict where an import replaced values.
    """
    job = session.get(Import, id, with_for_update=True)
    if job is None:
        raise UnknownImport()
    check_undoable(job)
    if job.state == "undone":
        return job
    table = Transaction if job.kind == "transactions" else Interaction
    session.execute(delete(table).where(table.import_id == id))
    job.state, job.finished_at = "undone", dt.datetime.now(dt.UTC)
    audit.record(
        session, actor=actor, action="import.undo", subject=f"import:{id}",
        detail={"kind": job.kind, "file": job.name},
    )  # fmt: skip
    session.flush()
    return job


def check_undoable(job: Import) -> None:
    """Raise Conflict for an import whose earlier values are gone."""
    if job.kind not in UNDOABLE:
        rows = job.kind.replace("_", " ")
        raise Conflict(
            f"An import of {rows} replaces values and cannot be undone; import the right ones."
        )


def get(session: Session, id: int) -> Import:
    """Return an import; raises UnknownImport."""
    found = session.get(Import, id)
    if found is None:
        raise UnknownImport()
    return found


def listing(session: Session, *, before: int | None, limit: int) -> list[Import]:
    """Return imports, newest first."""
    query = select(Import).order_by(Import.id.desc()).limit(limit)
    if before is not None:
        query = query.where(Import.id < before)
    return list(session.scalars(query))


def rejects(session: Session, id: int) -> Iterator[ImportReject]:
    """Yield the refused rows of an import in the order of the file, the first 10,000 of them."""
    yield from session.scalars(
        select(ImportReject)
        .where(ImportReject.import_id == id)
        .order_by(ImportReject.line)
        .execution_options(yield_per=1_000)
    )


def waiting(config: Config, engine: Engine) -> list[tuple[int, Path]]:
    """Return the imports whose files wait on this host, oldest first; drops files of no use.

    A file without its record is one whose record is just being committed, unless it is old.
    """
    found = []
    for path in sorted(folder(config).iterdir(), key=lambda one: one.name.zfill(12)):
        if not path.name.isdigit():
            continue
        with transaction(engine) as session:
            job = session.get(Import, int(path.name))
            if job is not None and job.state in ("waiting", "reading"):
                found.append((job.id, path))
                continue
        if job is not None or time.time() - path.stat().st_mtime > ORPHAN_SECONDS:
            path.unlink(missing_ok=True)
    return found


def _suits(kind: kinds.Kind, settings: Settings) -> Callable[[str], bool]:
    return lambda column: kind.field_of(column, settings.columns) is not None


def _told(error: ValueError) -> str:
    if isinstance(error, BadFile):
        return f"The file {error}."
    told = str(error)
    return f"{told[:1].upper()}{told[1:]}."
