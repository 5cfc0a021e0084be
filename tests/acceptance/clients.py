"""What tests of faults share: clients under load, and ways to hurt what serves them."""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from sqlalchemy import Engine, Select, func, select

from service import campaigns, db, keys
from service.config import Config
from service.models import Decision, Outcome, Snapshot
from service.supervisor import Barter
from tests.loop import BUYS, definition

CLIENTS = 6
PAUSE_SECONDS = 0.01
"""Between two purchases: enough load to be hit by every fault, little enough to check it all."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def children(pid: int) -> list[int]:
    told = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in told.stdout.split()]


def web_workers(parent: int) -> list[int]:
    """Return the workers of their parent, which may have started a compiler as well."""
    found = []
    for one in children(parent):
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            if Path(f"/proc/{one}/cmdline").read_bytes().endswith(b"\0worker\0"):
                found.append(one)
    return found


def launched(url: str, engine: Engine) -> str:
    """Launch the campaign; return a key that may ask it."""
    db.migrate(url)
    with db.transaction(engine) as session:
        campaigns.create(session, definition(), actor="test")
        campaigns.transition(session, "spring", "launch", actor="test")
        return keys.create(session, name="load", scopes=["decide", "reward"], actor="test")[1]


class Clients:
    """Threads that ask from entering to leaving, each by its number."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._shop, args=(n,)) for n in range(CLIENTS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _shop(self, number: int) -> None:
        raise NotImplementedError


class Load(Clients):
    """Clients that repeat a request under the same id until it is acknowledged."""

    def __init__(self, port: int, key: str) -> None:
        super().__init__()
        self.port, self.key = port, key
        self.decided: dict[str, dict[str, object]] = {}
        self.reported: set[str] = set()
        self.answers_during_outage = 0
        self.outage = threading.Event()
        self.longest = 0.0
        self.wrong: list[str] = []
        self.broken: list[str] = []
        self.local = threading.local()

    def _shop(self, number: int) -> None:
        chance = random.Random(number)
        with contextlib.closing(self._connection()) as connection:
            # Every other client keeps its connection, the rest open one for every request.
            self.local.connection = connection if number % 2 == 0 else None
            while not self._stop.is_set():
                self._buy(chance)
                time.sleep(PAUSE_SECONDS)

    def _buy(self, chance: random.Random) -> None:
        request_id = uuid.uuid4().hex
        wanted = {"campaign": "spring", "unit": f"u{chance.random()}", "request_id": request_id}
        reply = self.send("/v1/decisions", wanted)
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
            self.send("/v1/outcomes", event)
            self.reported.add(f"buy-{request_id}")

    def send(self, path: str, body: Mapping[str, object]) -> dict[str, object]:
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
        kept: http.client.HTTPConnection | None = self.local.connection
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


def shares(port: int, workers: Sequence[int], *, connections: int) -> list[int]:
    """Return how many of some connections, opened one after the other, each worker has taken."""
    before = [_sockets(worker) for worker in workers]
    with contextlib.ExitStack() as stack:
        for _ in range(connections):
            kept = stack.enter_context(
                contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20))
            )
            kept.request("GET", "/healthz")
            kept.getresponse().read()
        return [_sockets(one) - old for one, old in zip(workers, before, strict=True)]


def _sockets(process: int) -> int:
    files = [os.readlink(one) for one in Path(f"/proc/{process}/fd").iterdir() if one.is_symlink()]
    return sum(one.startswith("socket:") for one in files)


def kill(pid: int | None) -> None:
    assert pid
    os.kill(pid, signal.SIGKILL)


def renew(barter: Barter) -> None:
    """Replace the web workers and wait until all are new."""
    old = set(web_workers(barter.pids()["web"]))
    barter.renew()
    until(lambda: not old & set(web_workers(barter.pids()["web"])))


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


class Host:
    """`barter serve` as a machine has it: a group of processes, which may all be killed at once.

    ``prefix`` is put before the command, such as `ip netns exec host-1`.
    """

    def __init__(
        self, config: Config, *, prefix: Sequence[str] = (), parts: Sequence[str] = ("serve",),
        environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.config = config
        self._processes = [
            subprocess.Popen(
                [*prefix, sys.executable, "-m", "service.cli", part],
                env=os.environ | config.environment() | dict(environment or {}),
                start_new_session=True, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for part in parts
        ]  # fmt: skip

    def kill(self) -> None:
        """End all its processes, as a power cut would."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
