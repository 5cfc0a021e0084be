"""The carrier: what goes up is never lost, and what comes down never holds up a decision."""

import contextlib
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select

from service import customers, db, queries
from service.carrier import Carrier
from service.config import Config
from service.imports import load
from service.models import Decision
from service.spool import Spool
from tests.loop import Loop, running


@pytest.fixture
def loop(config: Config, engine: Engine) -> Iterator[Loop]:
    with running(config, engine) as made:
        yield made


def test_a_log_restored_from_a_backup_loses_nothing_new(
    config: Config, engine: Engine, tmp_path: Path
) -> None:
    """Its positions were carried once before, for other entries."""
    with running(config, engine) as loop:
        loop.launch()
        loop.shop(10)
        loop.carry()
        while loop.runtime.spool.index():
            pass
    backup = tmp_path / "spool.sqlite"
    with contextlib.closing(sqlite3.connect(config.data / "spool.sqlite")) as connection:
        connection.execute("VACUUM INTO ?", (str(backup),))
    shutil.copytree(config.data / "log", tmp_path / "log")
    with running(config, engine) as loop:
        loop.carry()
        loop.shop(20)
        loop.carry()
    for old in config.data.glob("spool.sqlite*"):
        old.unlink()
    shutil.copy(backup, config.data)
    shutil.rmtree(config.data / "log")
    shutil.copytree(tmp_path / "log", config.data / "log")
    with running(config, engine) as loop:
        loop.carrier.ship()
        loop.runtime.catalogue.refresh()
        (reply,) = loop.decide("ana")
        loop.carry()
    with engine.connect() as connection:
        assert connection.scalar(select(Decision.id).where(Decision.id == reply.decision_id))
        assert connection.scalar(select(func.count()).select_from(Decision)) == 31


def test_stored_attributes_come_down_in_small_pieces(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    store = Spool.store_customers

    def counted(spool: Spool, rows: Any) -> None:
        sizes.append(len(rows))
        store(spool, rows)

    monkeypatch.setattr(Spool, "store_customers", counted)
    monkeypatch.setattr("service.carrier.PIECE_ROWS", 100)
    monkeypatch.setattr("service.carrier.ATTRIBUTE_SECONDS", 60.0)
    units = [loop.runtime.pseudonym(str(number)) for number in range(1050)]
    with db.transaction(loop.engine) as session:
        customers.upsert(session, [(unit, {"age": 30}) for unit in units], actor="test")
    loop.carry()
    assert (max(sizes), sum(sizes)) == (100, 1050)
    assert loop.runtime.spool.attributes(units[7]) == b'[{"age":30},{},null]'
    loop.carry()
    sizes.clear()
    loop.carry()
    assert sizes == [], "what has been seen is not written again"
    with db.transaction(loop.engine) as session:
        customers.upsert(session, [(units[7], {"age": 31})], actor="test")
    loop.carry()
    assert loop.runtime.spool.attributes(units[7]) == b'[{"age":31},{},null]'


def test_a_long_list_of_attributes_does_not_hold_up_snapshots(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refit touches most of the catalogue, and learning goes on."""
    monkeypatch.setattr("service.carrier.PIECE_ROWS", 100)
    monkeypatch.setattr("service.carrier.ATTRIBUTE_SECONDS", 0.0)
    loop.launch()
    load.products(loop.engine, [load.ProductRow(f"p{n}", None, None, None, n) for n in range(950)])
    kept = []
    for _ in range(12):
        loop.carrier.refresh()
        kept.append(sum(loop.runtime.spool.product(f"p{n}") is not None for n in range(950)))
    assert kept[0] == 100
    assert kept == sorted(kept)
    assert kept[-1] == 950
    loop.carry()
    assert not loop.carrier.step(), "it comes to an end"


def test_states_that_are_here_already_are_not_fetched_again(loop: Loop) -> None:
    campaign = loop.launch()
    loop.shop(10)
    loop.carry()
    loop.learn(campaign)
    loop.carry()
    asked: list[str] = []
    event.listen(
        loop.engine, "before_cursor_execute", lambda *told: asked.append(str(told[2]).lower())
    )
    loop.carrier.refresh()
    assert asked
    assert not [one for one in asked if "snapshots.state" in one]
    fresh = Carrier(loop.runtime.spool, loop.engine)
    generation = loop.runtime.spool.generation()
    fresh.refresh()
    assert loop.runtime.spool.generation() == generation, "nothing was new"


def test_snapshots_of_very_many_campaigns_come_down_at_once(loop: Loop) -> None:
    campaign = loop.launch()
    loop.shop(5)
    loop.carry()
    loop.learn(campaign)
    places = [(campaign + place, 1) for place in range(20_000)]
    with loop.engine.connect() as connection:
        found = connection.execute(queries.snapshot_states(places)).all()
        assert [row.campaign_id for row in found] == [campaign]
        assert connection.execute(queries.fitted_states(places)).all() == []


def test_two_carriers_of_one_log_carry_every_entry_once(loop: Loop, config: Config) -> None:
    """As when somebody starts one by hand beside a server: each finds out what the other did."""
    loop.launch()
    spools = [Spool(config.data) for _ in range(3)]
    carriers = [Carrier(spool, loop.engine) for spool in spools]
    stop = threading.Event()

    def carry(one: Carrier) -> None:
        while not stop.is_set():
            one.ship()

    with ThreadPoolExecutor(len(carriers)) as pool:
        going = [pool.submit(carry, one) for one in carriers]
        made = [loop.shop(20) for _ in range(10)]
        stop.set()
        for one in going:
            one.result()
    loop.carry()
    for spool in spools:
        spool.close()
    with loop.engine.connect() as connection:
        found = connection.scalars(select(Decision.id).order_by(Decision.position)).all()
    assert found == [reply.decision_id for replies in made for reply in replies]
    assert loop.runtime.spool.rejected() == 0
