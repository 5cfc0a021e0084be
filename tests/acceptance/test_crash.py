"""Nothing acknowledged is lost or doubled, whatever is killed and however long Postgres is away.

Real processes, real HTTP, real PostgreSQL, under load: the learner, the carrier, a web worker and
the postmaster are killed with SIGKILL, and PostgreSQL is stopped for ten seconds. Afterwards the
log is compared with what the load generator was told, and the learnt state with a rebuild.
"""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from sqlalchemy import Engine, Select, func, select

from service import campaigns, db, embedded, keys
from service.config import Config
from service.models import Decision, Outcome, Snapshot
from service.supervisor import Barter
from service.verify import verify
from tests.conftest import SECRET, folder
from tests.loop import BUYS, definition

OUTAGE_SECONDS = 10.0
CLIENTS = 6

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(300)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def children(pid: int) -> list[int]:
    told = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in told.stdout.split()]


class Load:
    """Clients that repeat a request under the same id until it is acknowledged."""

    def __init__(self, port: int, key: str) -> None:
        self.port, self.key = port, key
        self.decided: dict[str, dict[str, object]] = {}
        self.reported: set[str] = set()
        self.answers_during_outage = 0
        self.outage = threading.Event()
        self.longest = 0.0
        self.wrong: list[str] = []
        self.broken: list[str] = []
        self._stop = threading.Event()
        self._local = threading.local()
        self._threads = [
            threading.Thread(target=self._shop, args=(number,)) for number in range(CLIENTS)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _shop(self, number: int) -> None:
        chance = random.Random(number)
        with contextlib.closing(self._connection()) as connection:
            # Every other client keeps its connection, the rest open one for every request.
            self._local.connection = connection if number % 2 == 0 else None
            while not self._stop.is_set():
                self._buy(chance)

    def _buy(self, chance: random.Random) -> None:
        request_id = uuid.uuid4().hex
        wanted = {"campaign": "spring", "unit": f"u{chance.random()}", "request_id": request_id}
        reply = self._send("/v1/decisions", wanted)
        self.decided[request_id] = reply
        if self.outage.is_set():
            self.answers_during_outage += 1
        if chance.random() < BUYS[str(reply["arm"])]:
            event = {
                "event_id": f"buy-{request_id}",
                "decision_id": reply["decision_id"],
                "kind": "purchased",
                "revenue_minor": 3000,
            }
            self._send("/v1/outcomes", event)
            self.reported.add(f"buy-{request_id}")

    def _send(self, path: str, body: Mapping[str, object]) -> dict[str, object]:
        started = time.monotonic()
        while True:
            try:
                status, told = self._post(path, body)
            except (OSError, http.client.HTTPException) as error:
                # The worker that had the request was killed: send it again, under the same id.
                self.broken.append(repr(error))
            else:
                if status in (200, 202):
                    self.longest = max(self.longest, time.monotonic() - started)
                    return told
                self.wrong.append(f"{status} {told}")
            time.sleep(0.02)

    def _post(self, path: str, body: Mapping[str, object]) -> tuple[int, dict[str, object]]:
        """Ask over the connection that this client keeps, or over a new one."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        kept: http.client.HTTPConnection | None = self._local.connection
        connection = kept or self._connection()
        whole = False
        try:
            connection.request("POST", path, json.dumps(body), headers)
            reply = connection.getresponse()
            told = reply.status, json.loads(reply.read())
            whole = True
            return told
        finally:
            if kept is None or not whole:
                connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)


@pytest.fixture
def database() -> Iterator[Config]:
    """A PostgreSQL of this test's own, which it may kill."""
    with folder() as path:
        own = Config(data=path, secret=SECRET)
        embedded.start(own)
        try:
            yield own
        finally:
            embedded.stop(own)


def kill(pid: int | None) -> None:
    assert pid
    os.kill(pid, signal.SIGKILL)


def renew(barter: Barter) -> None:
    """Replace the web workers and wait until all are new."""
    old = set(children(barter.pids()["web"]))
    barter.renew()
    until(lambda: not old & set(children(barter.pids()["web"])))


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def hang(postmaster: int | None, number: signal.Signals) -> None:
    """Stop PostgreSQL, all its processes, or let it go on."""
    assert postmaster
    for process in (postmaster, *children(postmaster)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


@pytest.fixture
def url(database: Config) -> str:
    return embedded.start(database)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    made = db.engine(url)
    yield made
    made.dispose()


def test_nothing_acknowledged_is_lost_or_doubled(
    database: Config, url: str, engine: Engine, data_folder: Path
) -> None:
    config = Config(data=data_folder, secret=SECRET, database_url=url, port=free_port(), workers=2)
    db.migrate(url)
    with db.transaction(engine) as session:
        campaigns.create(session, definition(), actor="test")
        campaigns.transition(session, "spring", "launch", actor="test")
        _, key = keys.create(session, name="load", scopes=["decide", "reward"], actor="test")
    with Barter(config, quiet=True) as barter:
        with Load(config.port, key) as load:
            time.sleep(2)
            renew(barter)
            assert load.broken == [], "a rolling restart fails no request"
            stopped = embedded.status(database).pid
            hang(stopped, signal.SIGSTOP)
            before = len(load.decided)
            time.sleep(3)
            assert len(load.decided) > before + 30, "a database that hangs holds up no checkout"
            hang(stopped, signal.SIGCONT)
            assert load.broken == []
            for part in ("learn", "carry"):
                kill(barter.pids()[part])
                time.sleep(1.5)
            workers = children(barter.pids()["web"])
            assert len(workers) >= 2
            kill(workers[-1])
            time.sleep(2)
            server = barter.pids()["web"]
            for process in (server, *children(server)):
                kill(process)
            time.sleep(3)
            kill(embedded.status(database).pid)
            time.sleep(1)
            embedded.start(database)
            time.sleep(2)
            embedded.stop(database)
            load.outage.set()
            time.sleep(OUTAGE_SECONDS)
            load.outage.clear()
            embedded.start(database)
            time.sleep(3)
        print(
            f"{len(load.decided)} decisions and {len(load.reported)} outcomes acknowledged,"
            f" {load.answers_during_outage} decisions while PostgreSQL was away,"
            f" longest wait for an answer {load.longest:.2f} s"
        )
        assert load.wrong == []
        assert load.answers_during_outage > 100
        wait_until_learnt(engine, len(load.decided), len(load.reported))
        found = verify(engine, "spring", sample=1000)
        assert found.holds, found
        with engine.connect() as connection:
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


def wait_until_learnt(engine: Engine, decisions: int, outcomes: int) -> None:
    """Wait until everything acknowledged is in Postgres and the newest snapshot knows it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with engine.connect() as connection:
            decided = connection.execute(count_and_last(Decision)).one()
            told = connection.execute(count_and_last(Outcome)).one()
            known = connection.execute(
                select(func.max(Snapshot.decision_position), func.max(Snapshot.outcome_position))
            ).one()
        everything = decided.number >= decisions and told.number >= outcomes
        if everything and tuple(known) == (decided.last, told.last):
            return
        time.sleep(0.2)
    raise AssertionError(f"{decided} of {decisions} decisions, {told} of {outcomes} outcomes")


def count_and_last(table: type[Decision] | type[Outcome]) -> Select[int, int]:
    return select(func.count().label("number"), func.max(table.position).label("last"))
