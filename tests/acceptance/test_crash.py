"""Nothing acknowledged is lost or doubled, whatever is killed and however long Postgres is away.

Real processes, real HTTP, real PostgreSQL, under load: the learner, the carrier, a web worker and
the postmaster are killed with SIGKILL, and PostgreSQL is stopped for six seconds. Afterwards the
log is compared with what the load generator was told, and the learnt state with a rebuild.
"""

import contextlib
import http.client
import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import Engine, select

from service import arrow, campaigns, db, embedded, keys
from service.config import Config
from service.models import Decision, Outcome
from service.supervisor import Barter
from service.verify import verify
from tests.acceptance.clients import (
    CLIENTS,
    Clients,
    Load,
    children,
    count_and_last,
    free_port,
    hang,
    kill,
    renew,
    shares,
    until,
    wait_until_learnt,
    web_workers,
)
from tests.conftest import SECRET
from tests.loop import definition

OUTAGE_SECONDS = 6.0
CONTEXTS, LIST = "contexts", 100

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(300)]


def test_nothing_acknowledged_is_lost_or_doubled(
    own_database: Config, own_url: str, own_engine: Engine, data_folder: Path
) -> None:
    config = Config(
        data=data_folder, secret=SECRET, database_url=own_url, port=free_port(), workers=2
    )
    db.migrate(own_url)
    with db.transaction(own_engine) as session:
        campaigns.create(session, definition(), actor="test")
        campaigns.transition(session, "spring", "launch", actor="test")
        _, key = keys.create(session, name="load", scopes=["decide", "reward"], actor="test")
    with Barter(config, quiet=True) as barter:
        workers = web_workers(barter.pids()["web"])
        until(lambda: min(shares(config.port, workers, connections=8)) >= 2)
        with Load(config.port, key) as load:
            time.sleep(2)
            renew(barter)
            assert load.broken == [], "a rolling restart fails no request"
            stopped = embedded.status(own_database).pid
            hang(stopped, signal.SIGSTOP)
            before = len(load.decided)
            time.sleep(3)
            assert len(load.decided) > before + 30, "a database that hangs holds up no checkout"
            hang(stopped, signal.SIGCONT)
            assert load.broken == []
            for part in ("learn", "carry"):
                kill(barter.pids()[part])
                time.sleep(1.5)
            workers = web_workers(barter.pids()["web"])
            assert len(workers) >= 2
            kill(workers[-1])
            time.sleep(2)
            server = barter.pids()["web"]
            for process in (server, *children(server)):
                kill(process)
            time.sleep(3)
            kill(embedded.status(own_database).pid)
            time.sleep(1)
            embedded.start(own_database)
            time.sleep(2)
            embedded.stop(own_database)
            load.outage.set()
            time.sleep(OUTAGE_SECONDS)
            load.outage.clear()
            embedded.start(own_database)
            time.sleep(3)
        print(
            f"{len(load.decided)} decisions and {len(load.reported)} outcomes acknowledged,"
            f" {load.answers_during_outage} decisions while PostgreSQL was away,"
            f" longest wait for an answer {load.longest:.2f} s"
        )
        assert load.wrong == []
        assert load.answers_during_outage > 100
        wait_until_learnt(own_engine, len(load.decided), len(load.reported))
        found = verify(own_engine, "spring", sample=200)
        assert found.holds, found
        with own_engine.connect() as connection:
            decided = {
                str(row.id): row
                for row in connection.execute(
                    select(Decision.id, Decision.arm, Decision.propensity)
                )
            }
            reported = set(connection.scalars(select(Outcome.event_id)))
    arms = [arm.key for arm in definition().arms]
    for reply in load.decided.values():
        row = decided[str(reply["decision_id"])]
        assert (arms[row.arm], row.propensity) == (reply["arm"], reply["propensity"])
    assert load.reported <= reported
    assert len(reported) - len(load.reported) <= CLIENTS, "an unacknowledged last request each"
    assert len(decided) - len(load.decided) <= CLIENTS


def decisions(engine: Engine) -> int:
    """Return how many decisions PostgreSQL has."""
    with engine.connect() as connection:
        found: int = connection.execute(count_and_last(Decision)).one().number
    return found


class Lists(Clients):
    """Clients that ask for lists, every other one by tables, of two campaigns.

    A list has no id: one that is not answered is asked anew, and its decisions are others.
    """

    def __init__(self, port: int, key: str) -> None:
        super().__init__()
        self._port, self._headers = port, {"Authorization": f"Bearer {key}"}
        self.decided: dict[str, dict[str, Any]] = {}
        self.broken = 0
        self.wrong: list[str] = []

    def _shop(self, number: int) -> None:
        chance = random.Random(number)
        while not self._stop.is_set():
            rows = [
                {"campaign": CONTEXTS if number % 3 else "spring", "unit": f"u{chance.random()}",
                 "attributes": {"visits": chance.randint(0, 9)}}
                for _ in range(LIST)
            ]  # fmt: skip
            try:
                status, raw = self._asked(rows, table=number % 2 == 0)
            except (OSError, http.client.HTTPException):
                self.broken += 1
                time.sleep(0.05)
                continue
            if status != 200:
                self.wrong.append(f"{status} {raw[:200]!r}")
                continue
            found = pa.ipc.open_stream(raw).read_all().to_pylist() if number % 2 == 0 else None
            for one in found or json.loads(raw)["decisions"]:
                self.decided[one["decision_id"]] = one
            time.sleep(0.03)

    def _asked(self, rows: list[dict[str, Any]], *, table: bool) -> tuple[int, bytes]:
        kind, body = "application/json", json.dumps({"decisions": rows}).encode()
        if table:
            kind, sink = arrow.MEDIA, pa.BufferOutputStream()
            made = pa.table(
                {"campaign": [one["campaign"] for one in rows],
                 "unit": [one["unit"] for one in rows],
                 "visits": [float(one["attributes"]["visits"]) for one in rows]}
            )  # fmt: skip
            with pa.ipc.new_stream(sink, made.schema) as writer:
                writer.write_table(made)
            body = sink.getvalue().to_pybytes()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        with contextlib.closing(connection):
            connection.request(
                "POST", "/v1/decisions", body, self._headers | {"Content-Type": kind}
            )
            reply = connection.getresponse()
            return reply.status, reply.read()


def test_lists_are_in_the_log_as_they_were_answered(
    own_database: Config, own_url: str, own_engine: Engine, data_folder: Path
) -> None:
    """Those in front of Flask too: whoever of the host, or PostgreSQL, is killed meanwhile."""
    config = Config(
        data=data_folder, secret=SECRET, database_url=own_url, port=free_port(), workers=2
    )
    db.migrate(own_url)
    contextual = definition(
        key=CONTEXTS, policy={"name": "linear_thompson"},
        features=[{"kind": "number", "key": "visits", "name": "Visits", "scale": 3}],
    )  # fmt: skip
    with db.transaction(own_engine) as session:
        for plan in (definition(), contextual):
            campaigns.create(session, plan, actor="test")
            campaigns.transition(session, plan.key, "launch", actor="test")
        _, key = keys.create(session, name="load", scopes=["decide"], actor="test")
    with Barter(config, quiet=True) as barter:
        with Lists(config.port, key) as lists:
            until(lambda: len(lists.decided) > 20 * LIST)
            assert lists.broken == 0

            def hit() -> bool:
                for worker in web_workers(barter.pids()["web"])[:1]:
                    kill(worker)
                time.sleep(1)
                return lists.broken > 0

            until(hit)
            kill(barter.pids()["carry"])
            time.sleep(1)
            server = barter.pids()["web"]
            for process in (server, *children(server)):
                kill(process)
            before = len(lists.decided)
            until(lambda: len(lists.decided) > before + 10 * LIST)
            kill(embedded.status(own_database).pid)
            time.sleep(2)
            embedded.start(own_database)
            renew(barter)
            time.sleep(1)
        assert lists.wrong == []
        until(lambda: decisions(own_engine) >= len(lists.decided))
        for one in ("spring", CONTEXTS):
            found = verify(own_engine, one, sample=200)
            assert found.holds, found
        with own_engine.connect() as connection:
            rows = connection.execute(select(Decision.id, Decision.arm, Decision.propensity)).all()
    logged = {str(row.id): row for row in rows}
    assert len(rows) == len(logged)
    arms = [arm.key for arm in contextual.arms]
    for id, reply in lists.decided.items():
        assert (arms[logged[id].arm], logged[id].propensity) == (reply["arm"], reply["propensity"])
    assert len(logged) - len(lists.decided) <= LIST * lists.broken


def test_the_supervisor_brings_its_own_database_back(data_folder: Path) -> None:
    config = Config(data=data_folder, secret=SECRET, port=free_port(), workers=1)
    with Barter(config, quiet=True) as barter:
        engine = db.engine(barter.database_url)
        with db.transaction(engine) as session:
            campaigns.create(session, definition(), actor="test")
        before = embedded.status(config).pid
        kill(before)
        deadline = time.monotonic() + 20
        while not (now := embedded.status(config)).running and time.monotonic() < deadline:
            time.sleep(0.1)
        assert now.running
        assert now.pid != before
        engine.dispose()
        with db.transaction(engine) as session:
            assert campaigns.get(session, "spring").state == "draft"
        engine.dispose()
