"""What a decision costs as campaigns and the log grow.

First, campaigns: with 1 to 10,000 of them running, each with a snapshot, a decision in a serving
process, and what the processes beside it do every second whether or not anybody asks. Then the log:
with 10^4 to 10^7 decisions, what PostgreSQL does to append a list by COPY and a batch of single
decisions, and what a learner's step and pages take. The log is filled by SQL
(``generate_series``), not by deciding; what is measured goes through the service's own code::

    python -m tests.bench.growth --decisions 1000000

Figures are processor time, of this process and of PostgreSQL's, because others may share the
machine; the least of several rounds.
"""

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import Engine, event, select, text

from service import (
    campaigns,
    carrier,
    copying,
    db,
    decide,
    embedded,
    history,
    partitions,
    queries,
    upkeep,
)
from service.config import Config
from service.learner import learn
from service.messages import DecisionRequest
from service.models import Campaign, Decision
from tests.loop import Loop, running

CAMPAIGNS = (1, 10, 100, 1_000, 10_000)
LIST, BATCH, ROUNDS = 10_000, 2_000, 5
MORE = """
INSERT INTO campaigns (key, state, definition, seed)
SELECT 'other-' || n, 'running', jsonb_set(definition, '{{key}}', to_jsonb('other-' || n)), seed
FROM campaigns, generate_series({since:d}, {until:d}) AS n WHERE key = 'spring';
INSERT INTO campaign_revisions (campaign_id, revision, definition, author)
SELECT id, 1, definition, 'bench' FROM campaigns ON CONFLICT DO NOTHING;
INSERT INTO snapshots (campaign_id, version, revision, state, digest, decision_position,
    outcome_position, usual)
SELECT c.id, 1, 1, s.state, s.digest, s.decision_position, s.outcome_position, s.usual
FROM campaigns AS c, (SELECT * FROM snapshots ORDER BY version DESC LIMIT 1) AS s
ON CONFLICT DO NOTHING;
"""
ROWS = """
SELECT gen_random_uuid() AS id, {campaign} AS campaign_id, 1 AS revision, 0::bigint AS snapshot,
    substr(sha256(({since:d} + n)::text::bytea), 1, 16) AS unit, (n % 2)::smallint AS segment,
    7::bigint AS mask, float8send(.5) || float8send(.3) || float8send(.2) AS simplex,
    (n % 3)::smallint AS arm,
    .3::float8 AS propensity, 'policy'::text AS reason, NULL::uuid AS origin,
    '{{"masked":{{}}}}'::json AS why, 0::bigint AS reserved_minor, now() AS decided_at,
    now() + interval '1 hour' AS expires_at, ''::bytea AS context
FROM generate_series(1, {rows:d}) AS n
"""
MANY = "1 + n % 100"
"""A campaign of a hundred."""
COLUMNS = ", ".join(copying.COLUMNS)


class Clock:
    """Processor seconds of this process and of the database connections that an engine made."""

    def __init__(self, engine: Engine) -> None:
        self._pids: set[int] = set()
        event.listen(engine, "checkout", self._note)

    def _note(self, connection: Any, *_: object) -> None:
        self._pids.add(connection.info.backend_pid)

    def seconds(self) -> tuple[float, float]:
        """Return (this process, PostgreSQL)."""
        tick, used = os.sysconf("SC_CLK_TCK"), 0
        for pid in self._pids:
            path = Path(f"/proc/{pid}/stat")
            if path.exists():
                fields = path.read_text().rsplit(")", 1)[1].split()
                used += int(fields[11]) + int(fields[12])
        return time.process_time(), used / tick

    def least(self, deed: Callable[[], object], *, rounds: int = ROUNDS, each: int = 1) -> float:
        """Return the fewest microseconds, of both, that one of ``each`` repeats of a deed took."""
        found = []
        for _ in range(rounds):
            before = sum(self.seconds())
            for _ in range(each):
                deed()
            found.append((sum(self.seconds()) - before) / each * 1e6)
        return min(found)


def execute(engine: Engine, statements: str) -> None:
    """Execute statements that are separated by semicolons."""
    with engine.begin() as connection:
        for statement in statements.split(";")[:-1]:
            connection.exec_driver_sql(statement.replace("%", "%%"))


def grow_campaigns(loop: Loop, clock: Clock, sizes: Sequence[int]) -> None:
    """Print what campaigns cost."""
    print("| campaigns | a decision, us | serving hears of a snapshot, ms | carrier's look, ms |"
          " learner's look, ms | upkeep, ms |\n|-:|-:|-:|-:|-:|-:|")  # fmt: skip
    since = 1
    for size in sizes:
        execute(loop.engine, MORE.format(since=since, until=size - 1))
        since = size
        execute(loop.engine, "ANALYZE campaigns; ANALYZE snapshots;")
        loop.carry()
        keys = [one.definition.key for one in loop.runtime.catalogue.campaigns()]
        assert len(keys) == size
        figures = (
            clock.least(functools.partial(asked, loop, keys), each=5) / 100,
            clock.least(lambda: heard(loop), each=5) / 1e3,
            clock.least(loop.carrier.refresh, each=5) / 1e3,
            clock.least(lambda: looked(loop.engine), each=5) / 1e3,
            clock.least(lambda: upkeep.keep_schedule(loop.engine), each=5) / 1e3,
        )
        print(f"| {size:,} | " + " | ".join(f"{one:,.1f}" for one in figures) + " |", flush=True)


def asked(loop: Loop, keys: Sequence[str]) -> None:
    """Make a hundred decisions of as many campaigns, one at a time."""
    for place in range(100):
        key = keys[place * 7919 % len(keys)]
        request = DecisionRequest(campaign=key, unit=f"unit-{place}")
        decide.decide(loop.runtime, [request])


def heard(loop: Loop) -> None:
    """Bring a snapshot of one campaign to a serving process."""
    name = f"snapshot:{loop.live.id}"
    loop.runtime.spool.write({name: loop.runtime.spool.read(name)})
    loop.runtime.catalogue.refresh()


def looked(engine: Engine) -> None:
    """Look which campaigns have something to learn from."""
    with engine.connect() as connection:
        connection.execute(queries.campaigns_with_news()).all()


def grow_log(loop: Loop, clock: Clock, sizes: Sequence[int]) -> None:
    """Print what the log costs."""
    names = ("decisions", "partitions", "GB", "COPY, us", "single, us", "learning, us", "page, ms",
             "rare reason, ms", "by id, ms", "by unit, ms")  # fmt: skip
    print(f"\n| {' | '.join(names)} |\n|{'-:|' * len(names)}")
    there = 0
    for size in sizes:
        fill(loop.engine, there, size)
        there = size
        with loop.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE decisions")
        figures = (copied(loop, clock, size), inserted(loop, clock), learnt(loop, clock))
        pages = shown(loop, clock)
        with loop.engine.connect() as connection:
            count = len(partitions.partitions(connection, "decisions"))
            size_of = (
                "SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('decisions')"
            )
            gigabytes = float(connection.scalar(text(size_of)) or 0) / 1e9
        print(f"| {size:,} | {count} | {gigabytes:.2f} | "
              + " | ".join(f"{one:,.1f}" for one in figures) + " | "
              + " | ".join(f"{one:,.2f}" for one in pages) + " |", flush=True)  # fmt: skip


def fill(engine: Engine, there: int, size: int) -> None:
    """Fill the log up to a size, making partitions as upkeep does."""
    while there < size:
        rows = min(size - there, 50_000)
        insert = f"INSERT INTO decisions ({COLUMNS}) " + ROWS.format(
            campaign=MANY, since=there, rows=rows
        )
        execute(engine, insert + ";")
        partitions.extend(engine, "decisions")
        there += rows


def copied(loop: Loop, clock: Clock, size: int) -> float:
    """Return the processor microseconds of a decision of a list that is copied in."""
    streams = []
    with loop.engine.connect() as connection:
        driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
        for number in range(ROUNDS):
            rows = ROWS.format(campaign=MANY, since=10**9 + size + number * LIST, rows=LIST)
            made = f"COPY ({rows}) TO STDOUT (FORMAT binary)"
            with driver.cursor() as cursor, cursor.copy(made.encode()) as copy:
                streams.append(b"".join(map(bytes, copy)))
    left = iter(streams)

    def copy_in() -> None:
        with loop.engine.begin() as connection:
            connection.execute(queries.LOCK_LOG)
            queries.copy(connection, queries.COPY_DECISIONS, next(left))

    return clock.least(copy_in) / LIST


def inserted(loop: Loop, clock: Clock) -> float:
    """Return the processor microseconds of a single decision, carried with others."""

    def bodies() -> list[bytes]:
        made = loop.decide(*(f"single-{place}" for place in range(BATCH)))
        assert len(made) == BATCH
        entries = loop.runtime.spool.after(loop.carrier._shipped or 0, limit=BATCH)
        loop.carrier._shipped = entries[-1][0]
        return [body for _, _, body in entries]

    left = iter([bodies() for _ in range(ROUNDS)])

    def carry() -> None:
        with loop.engine.begin() as connection:
            connection.execute(queries.LOCK_LOG)
            carrier._copy_single(connection, next(left))

    return clock.least(carry) / BATCH


def learnt(loop: Loop, clock: Clock) -> float:
    """Return the processor microseconds of learning from one of 2,000 new decisions."""
    campaign = loop.live.id
    found = []
    for _ in range(3):
        loop.learn(campaign)
        copies = ROWS.format(campaign=campaign, since=0, rows=BATCH)
        execute(loop.engine, f"INSERT INTO decisions ({COLUMNS}) {copies};")
        found.append(clock.least(lambda: learn(loop.engine, campaign, backend="numpy"), rounds=1))
    return min(found) / BATCH


def shown(loop: Loop, clock: Clock) -> list[float]:
    """Return the processor milliseconds of pages of the log."""
    with db.transaction(loop.engine) as session:
        campaign = campaigns.get(session, "spring")
        one = session.scalars(
            select(Decision).where(Decision.campaign_id == campaign.id).limit(1)
        ).one()
    id, unit = one.id, one.unit

    def page(**filters: Any) -> Callable[[], object]:
        def open_page() -> None:
            with db.transaction(loop.engine) as session:
                campaign = session.get_one(Campaign, loop.live.id)
                history.decisions(session, campaign, history.Filters(**filters))

        return open_page

    def explain() -> None:
        with db.transaction(loop.engine) as session:
            history.explain(session, id)

    deeds = (page(), page(reason="killed"), explain, page(unit=unit))
    return [clock.least(deed, each=10) / 1e3 for deed in deeds]


def powers(most: int, least: int = 10_000) -> list[int]:
    """Return the powers of ten from ``least`` up to a number, and that number."""
    found = []
    while least < most:
        found.append(least)
        least *= 10
    return [*found, most]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--campaigns", type=int, default=10_000, help="at most (10000)")
    parser.add_argument("--decisions", type=int, default=1_000_000, help="at most (1000000)")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="barter-bench-", dir="/tmp") as folder:
        config = Config(data=Path(folder), secret=os.urandom(32).hex().encode())
        url = embedded.start(config)
        try:
            db.migrate(url)
            engine = db.engine(url, statement_timeout_seconds=0)
            clock = Clock(engine)
            with running(config, engine) as loop:
                campaign = loop.launch()
                loop.shop(20)
                loop.carry()
                loop.learn(campaign)
                if chosen.decisions:
                    grow_log(loop, clock, powers(chosen.decisions))
                if chosen.campaigns:
                    grow_campaigns(loop, clock, powers(chosen.campaigns, 1))
            engine.dispose()
        finally:
            embedded.stop(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
