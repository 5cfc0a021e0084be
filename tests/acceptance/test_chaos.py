"""Faults that a host lives through: no database at its start, an old schema, a flood of repeats.

Real processes, real HTTP, a real PostgreSQL. `tests.acceptance.test_crash` kills them one by one.
"""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config as Alembic
from sqlalchemy import Engine, select

from service import campaigns, db, embedded, keys
from service.config import Config
from service.models import Decision, Outcome
from service.supervisor import Barter
from tests.acceptance.clients import CLIENTS, Load, free_port, until, wait_until_learnt
from tests.conftest import SECRET
from tests.loop import definition

REPEATS = 100
pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def config(own_url: str, data_folder: Path) -> Config:
    return Config(
        data=data_folder, secret=SECRET, database_url=own_url, port=free_port(), workers=2
    )


@pytest.fixture
def key(own_url: str, own_engine: Engine) -> str:
    """Launch the campaign; return a key that may ask it."""
    db.migrate(own_url)
    with db.transaction(own_engine) as session:
        campaigns.create(session, definition(), actor="test")
        campaigns.transition(session, "spring", "launch", actor="test")
        return keys.create(session, name="load", scopes=["decide", "reward"], actor="test")[1]


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
        command.downgrade(older, "-1")
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
