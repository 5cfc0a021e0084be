"""Nothing acknowledged is lost or doubled, whatever is killed and however long Postgres is away.

Real processes, real HTTP, real PostgreSQL, under load: the learner, the carrier, a web worker and
the postmaster are killed with SIGKILL, and PostgreSQL is stopped for six seconds. Afterwards the
log is compared with what the load generator was told, and the learnt state with a rebuild.
"""

import signal
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from service import campaigns, db, embedded, keys
from service.config import Config
from service.models import Decision, Outcome
from service.supervisor import Barter
from service.verify import verify
from tests.acceptance.clients import (
    CLIENTS,
    Load,
    children,
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
