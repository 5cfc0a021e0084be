"""What a decision costs PostgreSQL: log and disk in bytes, and time in which no other host appends.

Decisions, and an outcome for one in ten, are made in this process and carried by one carrier into
an embedded PostgreSQL: in full batches, as after an outage, then a few at a time, as they come, and
as lists. The write-ahead log is counted without the images of whole pages that follow a
checkpoint: how many there are hangs on how large the indexes are and how often one is made
(`service/SCALE.md`). Most of a carrier's pass is under the log's lock, so their rate is about what
one PostgreSQL takes of all hosts together; on a busy machine the processor times tell more::

    python -m tests.bench.postgres --decisions 20000
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psycopg
from sqlalchemy import Engine, text

from service import bulk, db, decide, embedded, outcomes
from service.carrier import BATCH
from service.config import Config
from service.messages import DecisionRequest, OutcomeRequest
from tests.acceptance.clients import children
from tests.loop import Loop, running

FEATURES = 8
TABLES = ("decisions", "outcomes")


def make(loop: Loop, number: int, *, listed: bool) -> None:
    """Make decisions, each of a customer of its own, and an outcome for one in ten."""
    told: dict[str, bool | int | float | str] = {f"visits_{n}": n for n in range(FEATURES)}
    asked = [
        DecisionRequest(campaign="spring", unit=os.urandom(8).hex(), attributes=told)
        for _ in range(number)
    ]
    if listed:
        found = bulk.answer(loop.runtime, asked)
        ids = [uuid.UUID(bytes=one.tobytes()) for one in found.ids]
    else:
        ids = [one.decision_id for one in decide.decide(loop.runtime, asked)]
    events = [
        OutcomeRequest.model_validate({"event_id": os.urandom(8).hex(), "kind": "purchased",
                                       "decision_id": id, "revenue_minor": 3_000})
        for id in ids[::10]
    ]  # fmt: skip
    outcomes.record(loop.runtime, events)


def written(engine: Engine) -> int:
    """Return how many bytes of write-ahead log there have been."""
    with engine.connect() as connection:
        query = text("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
        return int(connection.scalar(query) or 0)


def sizes(engine: Engine) -> int:
    """Return how many bytes the tables of the log take, with their indexes."""
    query = text(
        "SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree(:table)"
        " UNION ALL SELECT pg_total_relation_size(:table) ORDER BY 1 DESC NULLS LAST LIMIT 1"
    )
    with engine.connect() as connection:
        return sum(int(connection.scalar(query, {"table": name}) or 0) for name in TABLES)


def kept(config: Config) -> int:
    """Return how many bytes the local log has."""
    return sum(path.stat().st_size for path in (config.data / "log").glob("*.log"))


class Spent(NamedTuple):
    """What carrying took: seconds, those of the carrier's processor and of PostgreSQL's, bytes."""

    seconds: float
    ours: float
    theirs: float
    log: float


def carried(loop: Loop, number: int, at_once: int, postmaster: int, *, listed: bool) -> Spent:
    """Carry so many decisions, so many at once."""
    took = ours = 0.0
    before, theirs = written(loop.engine), worked(postmaster)
    for _ in range(0, number, at_once):
        make(loop, at_once, listed=listed)
        started, used = time.perf_counter(), time.process_time()
        while loop.carrier.ship():
            pass
        took += time.perf_counter() - started
        ours += time.process_time() - used
    return Spent(took, ours, worked(postmaster) - theirs, written(loop.engine) - before)


def worked(postmaster: int) -> float:
    """Return the processor time of PostgreSQL's processes in seconds, for as long as they live."""
    ticks = 0
    for process in (postmaster, *children(postmaster)):
        with contextlib.suppress(FileNotFoundError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--decisions", type=int, default=20_000, help="of each kind (default 20000)"
    )
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="barter-bench-", dir="/tmp") as folder:
        config = Config(data=Path(folder), secret=os.urandom(32).hex().encode())
        url = embedded.start(config)
        db.migrate(url)
        engine = db.engine(url)
        superuser = url.replace("//barter@", f"//{embedded.SUPERUSER}@")
        features = [
            {"kind": "number", "key": f"visits_{place}", "name": f"Visits {place}", "scale": 3}
            for place in range(FEATURES)
        ]
        with psycopg.connect(superuser, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET full_page_writes = off")
            connection.execute("SELECT pg_reload_conf()")
        postmaster = embedded.status(config).pid
        assert postmaster
        print("| at once | decisions/s | processor us: carrier | PostgreSQL | WAL bytes each"
              " | on disk | in the host's log |\n|-|-:|-:|-:|-:|-:|-:|")  # fmt: skip
        with running(config, engine) as loop:
            loop.launch(features=features)
            carried(loop, 2 * BATCH, BATCH, postmaster, listed=False)
            for at_once, listed in ((BATCH, False), (100, False), (10, False), (1_000, True)):
                number = chosen.decisions // (1 if at_once >= 100 else 10)
                before, local = sizes(engine), kept(config)
                spent = carried(loop, number, at_once, postmaster, listed=listed)
                each = [
                    number / spent.seconds, 1e6 * spent.ours / number, 1e6 * spent.theirs / number,
                    spent.log / number, (sizes(engine) - before) / number,
                    (kept(config) - local) / number,
                ]  # fmt: skip
                name = f"a list of {at_once:,}" if listed else f"{at_once:,}"
                print(f"| {name} | {' | '.join(f'{one:,.0f}' for one in each)} |", flush=True)
        engine.dispose()
        embedded.stop(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
