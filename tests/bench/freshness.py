"""How soon a reward moves the probabilities, and how fast a learner works off a backlog.

`live` runs the whole service: an open loop reports so many outcomes a second over HTTP, about
decisions that were asked for just before, and a process that follows the local log as a serving
one does takes the time from when a report was sent to when it holds a snapshot that has learnt from
it. `backlog` is a learner alone: outcomes wait in PostgreSQL, with their decisions, then of
decisions that have been learnt from; it also tells whose processor time each took. Everything
shares the machine::

    python -m tests.bench.freshness --rate 2000 --seconds 20 --backlog 200000
"""

import argparse
import bisect
import http.client
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sqlalchemy import Engine, text

from service import campaigns, db, embedded, keys, learner
from service.catalogue import Catalogue
from service.config import Config
from service.spool import Spool
from service.supervisor import Barter
from tests.bench import load
from tests.bench.serving import free_port
from tests.loop import definition

DECISIONS = text("""
    INSERT INTO decisions (id, campaign_id, revision, snapshot, unit, segment, mask, packed_simplex,
    arm,
        propensity, reason, why, decided_at, expires_at)
    SELECT CAST(lpad(to_hex(CAST(:campaign AS int)), 8, '0') || lpad(to_hex(n), 24, '0') AS uuid),
        :campaign, 1, 0, decode(md5(CAST(n AS text)), 'hex'), n % 2, 7,
        float8send(0.25) || float8send(0.25) || float8send(0.5), n % 3,
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
RECEIVED = text("""
    SELECT position, CAST(extract(epoch FROM received_at) AS float8) FROM outcomes
    WHERE campaign_id = :campaign ORDER BY position
""")
LEARNT = text("SELECT version, outcome_position FROM snapshots WHERE campaign_id = :campaign")


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


class Follower:
    """Follows the local log of a host as a serving process does; ``taken`` has (version, when)."""

    def __init__(self, folder: Path, key: str) -> None:
        self._catalogue, self._key = Catalogue(Spool(folder)), key
        self.taken: list[tuple[int, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Follower":
        self._catalogue.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._catalogue.stop()

    def _follow(self) -> None:
        while not self._stop.wait(0.005):
            live = self._catalogue.campaign(self._key)
            if live is not None and (not self.taken or live.version > self.taken[-1][0]):
                self.taken.append((live.version, time.time()))


def live(config: Config, url: str, rate: float, seconds: float) -> tuple[load.Sample, list[float]]:
    """Report outcomes to a running service; return how it answered, and how old rewards became.

    That is the time from when each was received to when it has moved the probabilities, in seconds.
    """
    engine, wanted = db.engine(url), definition(key="live")
    with db.transaction(engine) as session:
        number = campaigns.create(session, wanted, actor="bench").id
        campaigns.transition(session, wanted.key, "launch", actor="bench")
        _, key = keys.create(session, name="bench", scopes=["decide", "reward"], actor="bench")
    time.sleep(5)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    made = decided(config.port, headers, round(rate * seconds))
    events = [
        {"event_id": str(place), "decision_id": id, "kind": "purchased", "revenue_minor": 3_000}
        for place, id in enumerate(made)
    ]
    asked = [("/v1/outcomes", json.dumps(event), headers) for event in events]
    time.sleep(2)  # until what was decided has been learnt
    with Follower(config.data, wanted.key) as follower:
        answered = load.opened(config.port, *asked, connections=256, seconds=seconds, rate=rate)
        time.sleep(3)
    with engine.connect() as connection:
        moments = connection.execute(RECEIVED, {"campaign": number}).all()
        learnt = dict(map(tuple, connection.execute(LEARNT, {"campaign": number})))
    places = [learnt[version] for version, _ in follower.taken]
    taken = [follower.taken[bisect.bisect_left(places, position)][1] for position, _ in moments]
    return answered, [when - received for when, (_, received) in zip(taken, moments, strict=True)]


def decided(port: int, headers: dict[str, str], number: int) -> list[str]:
    """Ask for decisions, a thousand in a request; return their ids."""
    found: list[str] = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while len(found) < number:
        units = range(len(found), min(number, len(found) + 1_000))
        wanted = [{"campaign": "live", "unit": str(unit)} for unit in units]
        connection.request("POST", "/v1/decisions", json.dumps({"decisions": wanted}), headers)
        found += [one["decision_id"] for one in json.load(connection.getresponse())["decisions"]]
    return found


def embedded_backlog(waiting: int) -> dict[str, Pace]:
    """Run `backlog` on a PostgreSQL of its own."""
    with tempfile.TemporaryDirectory(prefix="barter-bench-", dir="/tmp") as folder:
        config = Config(data=Path(folder), secret=os.urandom(32).hex().encode())
        url = embedded.start(config)
        try:
            db.migrate(url)
            return backlog(db.engine(url), waiting)
        finally:
            embedded.stop(config)


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.freshness", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rate", type=float, default=2_000, help="outcomes a second (2000)")
    parser.add_argument("--seconds", type=float, default=20, help="for how long (20)")
    parser.add_argument("--backlog", type=int, default=200_000, help="outcomes that wait (200000)")
    parser.add_argument("--rounds", type=int, default=5, help="medians of so many (5)")
    given = parser.parse_args()
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory(prefix="barter-bench-", dir="/tmp") as folder:
            config = Config(
                data=Path(folder), secret=os.urandom(32).hex().encode(), port=free_port(), workers=2
            )
            with Barter(config, quiet=True) as barter:
                answered, old = live(config, barter.database_url, given.rate, given.seconds)
        print(
            f"{answered.per_second:,.0f} outcomes/s, p99 {answered.p99:.0f} ms; in probabilities"
            f" after {np.median(old):.2f} s, p99 {np.quantile(old, 0.99):.2f}, at most"
            f" {max(old):.2f}; generator {answered.own:.0%} of the machine",
            flush=True,
        )
    for _ in range(given.rounds):
        for name, pace in embedded_backlog(given.backlog).items():
            print(
                f"{name}: {pace.rate:,.0f} outcomes/s; learner {pace.learner_us:.1f} us,"
                f" PostgreSQL {pace.database_us:.1f} us each",
                flush=True,
            )


if __name__ == "__main__":
    main()
