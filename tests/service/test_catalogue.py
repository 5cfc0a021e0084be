"""What serving knows: one whole picture, that trouble with one campaign does not spoil."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine

from service import campaigns, db
from service.config import Config
from service.runtime import Runtime
from service.snapshots import LiveCampaign
from tests.loop import Loop, definition, running
from tests.service.test_bulk import FEATURES


@pytest.fixture
def loop(config: Config, engine: Engine) -> Iterator[Loop]:
    with running(config, engine) as made:
        yield made


def damage(loop: Loop, campaign: int) -> None:
    loop.runtime.spool.write({f"snapshot:{campaign}": (9).to_bytes(8, "big") + b"damaged"})


def test_a_campaign_is_killed_even_when_its_snapshot_cannot_be_read(loop: Loop) -> None:
    campaign = loop.launch()
    damage(loop, campaign)
    loop.runtime.catalogue.refresh()
    assert loop.decide("ana")[0].reason == "policy", "the last good snapshot goes on serving"
    damage(loop, campaign)
    loop.transition("kill")
    assert {(one.reason, one.arm) for one in loop.decide(*"abcdefgh")} == {("killed", "none")}


def test_a_process_that_starts_on_a_damaged_snapshot_serves_as_if_nothing_were_learnt(
    loop: Loop, config: Config
) -> None:
    campaign = loop.launch()
    damage(loop, campaign)
    again = Runtime(config)
    again.catalogue.refresh()
    live = again.catalogue.campaign("spring")
    assert live is not None
    assert live.version == 0
    again.stop()


def test_an_edit_reloads_the_edited_campaign_only(loop: Loop) -> None:
    """Reading a definition takes milliseconds: with hundreds, decisions would notice."""
    loop.launch(key="summer")
    loop.launch()
    summer, spring = loop.runtime.catalogue.campaign("summer"), loop.live
    with db.transaction(loop.engine) as session:
        campaigns.update(session, "spring", definition(name="Other"), actor="test")
    loop.carry()
    assert loop.runtime.catalogue.campaign("summer") is summer
    assert loop.live is not spring
    assert loop.live.definition.name == "Other"


def test_a_campaign_that_has_been_brought_stays_while_another_thread_looks(
    loop: Loop, config: Config
) -> None:
    """As a local client's two do: the one that brings news, and the one that looks for them."""
    loop.launch()
    made = Runtime(config)
    changed, looked = made.spool.changed, threading.Event()

    def put_aside(since: int) -> dict[str, int]:
        found = changed(since)
        if threading.current_thread() is follower:
            looked.set()
            time.sleep(0.3)
        return found

    made.spool.changed = put_aside  # type: ignore[method-assign]
    follower = threading.Thread(target=made.catalogue.refresh)
    follower.start()
    looked.wait()
    made.catalogue.refresh()
    seen = [made.catalogue.campaign("spring")]
    while follower.is_alive():
        seen.append(made.catalogue.campaign("spring"))
    made.stop()
    assert None not in seen


def test_a_kill_is_heard_while_the_first_campaign_by_contexts_is_loaded(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine code may take seconds; campaigns that are known go on in their new states."""
    loop.launch()
    loop.launch(key="summer", features=FEATURES)
    catalogue = loop.runtime.catalogue
    catalogue._warm, go_on = False, threading.Event()
    rehearse, begun = LiveCampaign._rehearse, threading.Event()

    def compiling(live: LiveCampaign) -> None:
        if live.key in ("summer", "wide"):
            begun.set()
            assert go_on.wait(60)
        rehearse(live)

    monkeypatch.setattr(LiveCampaign, "_rehearse", compiling)
    catalogue.start()
    catalogue._warm = False
    with db.transaction(loop.engine) as session:
        plan = definition(key="wide", features=FEATURES, policy={"name": "linear_thompson"})
        campaigns.create(session, plan, actor="test")
        campaigns.transition(session, "wide", "launch", actor="test")
        later = definition(key="summer", name="Late", features=FEATURES)
        campaigns.update(session, "summer", later, actor="test")
    loop.carrier.refresh()
    assert begun.wait(60)
    with db.transaction(loop.engine) as session:
        campaigns.create(session, definition(key="winter"), actor="test")
        campaigns.transition(session, "winter", "launch", actor="test")
        campaigns.transition(session, "spring", "kill", actor="test")
        campaigns.transition(session, "summer", "kill", actor="test")
    loop.carrier.refresh()
    until(lambda: catalogue.campaign("winter") is not None)
    seen = {one.key: one.killed for one in catalogue.campaigns()}
    assert seen == {"spring": True, "summer": True, "winter": False}
    summer = catalogue.campaign("summer")
    assert summer is not None
    assert summer.definition.name != "Late"
    go_on.set()
    until(lambda: catalogue.campaign("wide") is not None)
    seen = {one.key: one.killed for one in catalogue.campaigns()}
    assert seen == {"spring": True, "summer": True, "winter": False, "wide": False}
    summer = catalogue.campaign("summer")
    assert summer is not None
    assert (summer.definition.name, summer.killed) == ("Late", True)
    assert not catalogue._later
    catalogue.stop()


def until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)
