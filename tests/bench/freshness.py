"""How soon a reward moves the probabilities, and how fast a learner works off a backlog.

`live` runs the whole service: an open loop reports so many outcomes a second over HTTP, about
decisions that were asked for just before, and a process that follows the local log as a serving
one does takes the time from when a report was sent to when it holds a snapshot that has learnt from
it. `backlog` stops at nothing but the learner: outcomes that wait in PostgreSQL, of decisions that
wait with them, then of decisions that have been learnt from; it also tells whose processor time it
took. Everything shares the machine::

    python -m tests.bench.freshness --rate 2000 --seconds 20 --backlog 200000
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Engine, text

from service import campaigns, db, embedded, learner
from service.config import Config
from tests.loop import definition

DECISIONS = text("""
    INSERT INTO decisions (id, campaign_id, revision, snapshot, unit, segment, mask, simplex, arm,
        propensity, reason, why, decided_at, expires_at)
    SELECT CAST(lpad(to_hex(CAST(:campaign AS int)), 8, '0') || lpad(to_hex(n), 24, '0') AS uuid),
        :campaign, 1, 0, decode(md5(CAST(n AS text)), 'hex'), n % 2, 7, '{0.25,0.25,0.5}', n % 3,
        CASE n % 3 WHEN 2 THEN 0.5 ELSE 0.25 END, 'policy', '{"masked":{}}', now(),
        now() + interval '1 day'
    FROM generate_series(CAST(:first AS int), :last) AS n
""")
OUTCOMES = text("""
    INSERT INTO outcomes (event_id, campaign_id, decision_id, kind, revenue_minor, occurred_at,
        received_at)
    SELECT :name || n, :campaign,
        CAST(lpad(to_hex(CAST(:campaign AS int)), 8, '0') || lpad(to_hex(n), 24, '0') AS uuid),
        CASE n % 4 WHEN 3 THEN 'clicked' ELSE 'purchased' END,
        CASE n % 4 WHEN 3 THEN 0 ELSE 500 + n * 7919 % 9000 END, now(), now()
    FROM generate_series(CAST(:first AS int), :last) AS n
""")


class Pace(NamedTuple):
    """How fast a backlog went: outcomes a second, and microseconds of two processes for each."""

    rate: float
    learner_us: float
    database_us: float


def work_off(engine: Engine, campaign: int, outcomes: int) -> Pace:
    """Learn until there is nothing left, and take the time."""
    with engine.connect() as connection:
        # One thread asks one thing after the other: the pool gives it this connection each time.
        backend = connection.scalar(text("SELECT pg_backend_pid()"))
    before, mine, started = computed(backend), time.process_time(), time.perf_counter()
    while learner.learn(engine, campaign) is not None:
        pass
    took = time.perf_counter() - started
    spent = time.process_time() - mine, computed(backend) - before
    return Pace(outcomes / took, *(1e6 * one / outcomes for one in spent))


def computed(process: int) -> float:
    """Return for how many seconds a process has computed."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def backlog(engine: Engine, waiting: int) -> dict[str, Pace]:
    """Return how fast outcomes are learnt that wait with their decisions, and that come later."""
    wanted = definition(key="backlog")
    with db.transaction(engine) as session:
        campaign = campaigns.create(session, wanted, actor="bench")
        campaigns.transition(session, wanted.key, "launch", actor="bench")
        number = campaign.id
    # What is compiled is compiled once in a learner's life: not a part of any pace.
    first, last = learner.CHUNK + 1, learner.CHUNK + waiting
    fill(engine, number, 1, learner.CHUNK, decisions=True, name="warm-")
    work_off(engine, number, learner.CHUNK)
    told: dict[str, Pace] = {}
    fill(engine, number, first, last, decisions=True, name="first-")
    told["with their decisions"] = work_off(engine, number, waiting)
    fill(engine, number, first, last, decisions=False, name="second-")
    told["of decisions learnt from"] = work_off(engine, number, waiting)
    return told


def fill(
    engine: Engine, campaign: int, first: int, last: int, *, decisions: bool, name: str
) -> None:
    """Put outcomes into the log, and the decisions that they are about."""
    about = {"campaign": campaign, "first": first, "last": last}
    with engine.begin() as connection:
        if decisions:
            connection.execute(DECISIONS, about)
        connection.execute(OUTCOMES, about | {"name": name})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE decisions, outcomes"))


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(
        prog="tests.bench.freshness", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--backlog", type=int, default=200_000, help="outcomes that wait")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="barter-bench-", dir="/tmp") as folder:
        config = Config(data=Path(folder), secret=os.urandom(32))
        url = embedded.start(config)
        try:
            db.migrate(url)
            for name, pace in backlog(db.engine(url), given.backlog).items():
                print(
                    f"{name}: {pace.rate:,.0f} outcomes/s; learner {pace.learner_us:.1f} us, "
                    f"PostgreSQL {pace.database_us:.1f} us each"
                )
        finally:
            embedded.stop(config)


if __name__ == "__main__":
    main()
