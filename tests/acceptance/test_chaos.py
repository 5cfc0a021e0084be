"""Faults that hosts live through: no database at their start, an old schema, a flood, a lost disk.

Real processes, real HTTP, a real PostgreSQL. `tests.acceptance.test_crash` kills them one by one.
"""

import http.client
import json
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config as Alembic
from sqlalchemy import Engine, select

from service import db, embedded
from service.committed import LIMIT_SECONDS
from service.config import Config
from service.models import Decision, Outcome
from service.supervisor import Barter
from tests.acceptance.clients import (
    CLIENTS,
    Host,
    Load,
    free_port,
    hang,
    launched,
    until,
    wait_until_learnt,
)
from tests.conftest import SECRET

REPEATS = 100
pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def config(own_url: str, data_folder: Path) -> Config:
    return Config(
        data=data_folder, secret=SECRET, database_url=own_url, port=free_port(), workers=2
    )


@pytest.fixture
def key(own_url: str, own_engine: Engine) -> str:
    return launched(own_url, own_engine)


def asked(load: Load, unit: str) -> dict[str, object]:
    """Ask for a decision over a new connection."""
    load.local.connection = None
    return load.send("/v1/decisions", {"campaign": "spring", "unit": unit})


def test_a_flood_of_repeats_and_a_start_without_a_database(
    own_database: Config, config: Config, key: str, own_engine: Engine
) -> None:
    load = Load(config.port, key)
    with Barter(config, quiet=True):
        until(lambda: asked(load, "ana")["reason"] == "policy")
        first = asked(load, "ana")
        tell_at_once(load, {"event_id": "once", "decision_id": first["decision_id"],
                            "kind": "purchased", "revenue_minor": 4_000})  # fmt: skip
    own_engine.dispose()
    embedded.stop(own_database)
    with Barter(config, quiet=True):
        made = [asked(load, f"unit-{number}") for number in range(20)]
        assert {one["reason"] for one in made} == {"policy"}, "what was known before serves"
        event = {"event_id": "e", "decision_id": made[0]["decision_id"], "kind": "clicked"}
        assert load.send("/v1/outcomes", event) == {"accepted": 1, "duplicates": 0}
        embedded.start(own_database)
        wait_until_learnt(own_engine, 22, 2)
    with own_engine.connect() as connection:
        kept = {str(id) for id in connection.scalars(select(Decision.id))}
        assert sorted(connection.scalars(select(Outcome.event_id))) == ["e", "once"]
    assert {str(one["decision_id"]) for one in (first, *made)} <= kept


def tell_at_once(load: Load, event: Mapping[str, object]) -> None:
    """Report one event a hundred times at once: one report is new."""
    gate = threading.Barrier(REPEATS)

    def tell(_: int) -> object:
        load.local.connection = None
        gate.wait()
        return load.send("/v1/outcomes", event)["accepted"]

    with ThreadPoolExecutor(REPEATS) as threads:
        accepted = list(threads.map(tell, range(REPEATS)))
    assert load.wrong == load.broken == []
    assert (accepted.count(1), accepted.count(0)) == (1, REPEATS - 1)


def test_a_migration_under_load_loses_nothing(
    config: Config, own_url: str, key: str, own_engine: Engine
) -> None:
    with own_engine.begin() as connection:
        older = Alembic()
        older.set_main_option("script_location", "migrations")
        older.attributes["connection"] = connection
        command.downgrade(older, "0017")
    with Barter(config, quiet=True):
        with Load(config.port, key) as load:
            time.sleep(2)
            db.migrate(own_url)
            time.sleep(2)
        assert load.wrong == load.broken == []
        assert load.longest < 5
        wait_until_learnt(own_engine, len(load.decided), len(load.reported))
    with own_engine.connect() as connection:
        kept = {str(id) for id in connection.scalars(select(Decision.id))}
    assert {str(one["decision_id"]) for one in load.decided.values()} <= kept
    assert len(kept) - len(load.decided) <= CLIENTS


class Shop(threading.Thread):
    """A client that asks and tells until its host is gone; it keeps what was acknowledged."""

    def __init__(self, port: int, key: str) -> None:
        super().__init__(daemon=True)
        self._port, self._key = port, key
        self.decided: set[uuid.UUID] = set()
        self.reported: set[str] = set()
        self.longest = 0.0
        self.late = 0

    def run(self) -> None:
        while True:
            try:
                self._buy()
            except (OSError, http.client.HTTPException):
                return

    def _buy(self) -> None:
        status, told = self.post("/v1/decisions", {"campaign": "spring", "unit": uuid.uuid4().hex})
        assert status == 200, told
        if "acknowledged" in told:
            self.late += 1
            return
        self.decided.add(uuid.UUID(told["decision_id"]))
        event = {
            "event_id": uuid.uuid4().hex,
            "decision_id": told["decision_id"],
            "kind": "clicked",
        }
        status, told = self.post("/v1/outcomes", event)
        if status == 202:
            self.reported.add(event["event_id"])

    def post(self, path: str, body: Mapping[str, object]) -> tuple[int, Any]:
        """Send one request; return its status and what it says."""
        started = time.monotonic()
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request("POST", path, json.dumps(body), headers)
            reply = connection.getresponse()
            found = reply.status, json.loads(reply.read())
            assert reply.status != 503 or reply.headers["Retry-After"]
        finally:
            connection.close()
        self.longest = max(self.longest, time.monotonic() - started)
        return found


@pytest.mark.chaos
def test_a_host_that_is_lost_with_its_disk_loses_nothing_that_it_acknowledged(
    own_database: Config, config: Config, key: str, own_engine: Engine
) -> None:
    """It acknowledges what PostgreSQL has committed; while that hangs, it says that it cannot."""
    config = replace(config, data=config.data / "host", acknowledge="database")
    host, shops = Host(config), [Shop(config.port, key) for _ in range(CLIENTS)]
    asks = Shop(config.port, key)
    wanted = {"campaign": "spring", "unit": "ana", "request_id": "r"}
    try:
        until(lambda: answers(asks, wanted).get("reason") == "policy")
        for shop in shops:
            shop.start()
        time.sleep(1.5)
        postmaster = embedded.status(own_database).pid
        hang(postmaster, signal.SIGSTOP)
        time.sleep(LIMIT_SECONDS + 0.5)
        asks.longest = 0.0
        _, told = asks.post("/v1/decisions", wanted | {"request_id": "q"})
        assert (told["acknowledged"], told["reason"]) == ("disk", "policy")
        event = {"event_id": "e", "decision_id": told["decision_id"], "kind": "purchased"}
        assert asks.post("/v1/outcomes", event)[0] == 503
        assert asks.longest < LIMIT_SECONDS, "only the first have to wait"
        hang(postmaster, signal.SIGCONT)
        until(lambda: asks.post("/v1/outcomes", event)[0] == 202)
        until(lambda: "acknowledged" not in answers(asks, wanted | {"request_id": "q"}))
        before = sum(len(shop.decided) for shop in shops)
        time.sleep(1)
    finally:
        host.kill()
        shutil.rmtree(config.data)
    for shop in shops:
        shop.join(20)
    assert sum(len(shop.decided) for shop in shops) > before > 0
    assert max(shop.longest for shop in shops) < LIMIT_SECONDS + 1
    assert sum(shop.late for shop in shops) >= CLIENTS
    with own_engine.connect() as connection:
        assert set().union(*(shop.decided for shop in shops)) <= set(
            connection.scalars(select(Decision.id))
        )
        assert {"e"}.union(*(shop.reported for shop in shops)) <= set(
            connection.scalars(select(Outcome.event_id))
        )


def answers(shop: Shop, wanted: Mapping[str, object]) -> dict[str, Any]:
    """Return what a host answers, nothing while it does not."""
    try:
        told: dict[str, Any] = shop.post("/v1/decisions", wanted)[1]
    except OSError:
        return {}
    return told
