"""The learner: exactly once, in any order, and equal to a rebuild from the log."""

import datetime as dt
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.exc import OperationalError

from bandits import artefact
from bandits.types import ArmSums
from service import campaigns, db, queries
from service.carrier import Carrier
from service.config import Config
from service.decide import decide
from service.learner import (
    Backend,
    Learner,
    Learnt,
    Place,
    _update,
    learn,
    rebuild,
)
from service.messages import DecisionRequest
from service.models import AuditEntry, Campaign, Decision, Outcome, Reward, Snapshot, Spool
from service.spool import OUTCOME, Entry
from service.upkeep import keep_schedule
from tests.loop import Loop, definition, running

HOUR = dt.timedelta(hours=1)


@pytest.fixture
def loop(config: Config, engine: Engine) -> Iterator[Loop]:
    with running(config, engine) as made:
        yield made


def state(loop: Loop, campaign: int) -> ArmSums:
    with loop.engine.connect() as connection:
        row = connection.execute(queries.newest_snapshot(campaign)).one()
        place = Place(row.decision_position, row.outcome_position)
        again = rebuild(connection, campaign, place)
    learnt: ArmSums = artefact.from_bytes(row.state, like=again)
    assert row.digest == artefact.digest(learnt) == artefact.digest(again)
    return learnt


@pytest.mark.parametrize(
    "policy", ["thompson_gaussian", "thompson_profit", "thompson_hierarchical", "ucb1"]
)
def test_a_snapshot_brings_what_most_decisions_are_drawn_from(loop: Loop, policy: str) -> None:
    """To the bit what its state gives, so that no serving process computes a belief for it."""
    campaign = loop.launch(policy={"name": policy}, floor=0.02)
    loop.shop(120)
    loop.carry()
    loop.learn(campaign)
    loop.carry()
    taken = loop.live
    usual = [taken.simplex(place, 0b111) for place in range(len(taken.definition.segment_keys))]
    assert "belief" not in vars(taken)
    computed = taken.at(taken.learnt)
    assert [row.tobytes() for row in usual] == [
        computed.simplex(place, 0b111).tobytes() for place in range(len(usual))
    ]
    assert taken.simplex(0, 0b101)[1] == 0, "fewer arms: computed when a request asks"
    assert "belief" in vars(taken)
    with pytest.raises(ValueError, match="eligible"):
        taken.simplex(0, 0)


def test_another_revision_draws_from_what_it_computes_itself(loop: Loop) -> None:
    campaign = loop.launch(floor=0.02)
    loop.shop(60)
    loop.carry()
    loop.learn(campaign)
    with db.transaction(loop.engine) as session:
        campaigns.update(session, "spring", definition(floor=0.2), actor="test")
    loop.carry()
    assert loop.live.version == 1
    assert loop.live.simplex(0, 0b111).min() >= 0.2


def test_rewards_move_the_probabilities(loop: Loop) -> None:
    campaign = loop.launch()
    before = loop.live.simplex(0, 0b111).copy()
    loop.shop(400)
    loop.carry()
    loop.learn(campaign)
    loop.carry()
    after = loop.live.simplex(0, 0b111)
    assert np.abs(after - before).max() > 0.05
    sums = state(loop, campaign)
    assert sums.trials.sum() == 400
    with loop.engine.connect() as connection:
        earned = connection.execute(
            select(func.sum(Reward.conversions), func.sum(Reward.profit_minor))
        ).one()
    assert (sums.conversions.sum(), sums.reward.sum()) == tuple(earned)


def test_holdout_and_default_never_enter_learning(loop: Loop) -> None:
    campaign = loop.launch(holdout=0.5)
    for reply in loop.shop(200):
        if reply.reason == "holdout":
            loop.outcome(reply)
    loop.carry()
    loop.learn(campaign)
    with loop.engine.connect() as connection:
        randomised = connection.scalar(
            select(func.count()).select_from(Decision).where(Decision.reason == "policy")
        )
        held = connection.scalar(
            select(func.count())
            .select_from(Reward)
            .join(Decision, Decision.id == Reward.decision_id)
            .where(Decision.reason == "holdout")
        )
    assert state(loop, campaign).trials.sum() == randomised
    assert (randomised or 0) < 200
    assert held, "the holdout's rewards are kept for the comparison"


def test_profit_is_margin_less_discount_and_returns(loop: Loop) -> None:
    campaign = loop.launch()
    replies = loop.decide(*[f"unit-{n}" for n in range(50)])
    percent = {"none": 0, "ten": 10, "twenty": 20}
    for reply in replies:
        loop.outcome(reply, revenue_minor=5000, margin_minor=2100)
    loop.carry()
    loop.learn(campaign)
    expected = sum(2100 - 5000 * percent[reply.arm] // 100 for reply in replies)
    assert state(loop, campaign).reward.sum() == expected
    loop.outcome(replies[0], kind="returned", revenue_minor=5000, margin_minor=2100)
    loop.carry()
    loop.learn(campaign)
    sums = state(loop, campaign)
    assert sums.reward.sum() == expected - (2100 - 5000 * percent[replies[0].arm] // 100)
    assert sums.conversions.sum() == 49
    assert sums.trials.sum() == 50


def test_a_repeated_event_counts_once(loop: Loop) -> None:
    campaign = loop.launch()
    (reply,) = loop.decide("ana")
    receipts = [loop.outcome(reply, event_id="order-7") for _ in range(3)]
    assert [(one.accepted, one.duplicates) for one in receipts] == [(1, 0), (0, 1), (0, 1)]
    loop.carry()
    loop.learn(campaign)
    assert state(loop, campaign).conversions.sum() == 1


def test_a_late_event_is_kept_but_earns_nothing(loop: Loop) -> None:
    campaign = loop.launch(attribution_seconds=3600)
    first, second = loop.decide("ana", "bea")
    now = dt.datetime.now(dt.UTC)
    loop.outcome(first, occurred_at=now + 2 * HOUR)
    loop.outcome(second, occurred_at=now + HOUR / 2)
    loop.carry()
    loop.learn(campaign)
    assert state(loop, campaign).conversions.sum() == 1
    with loop.engine.connect() as connection:
        rows = connection.execute(select(Reward.decision_id, Reward.late)).all()
    assert {row.decision_id: row.late for row in rows} == {
        first.decision_id: 1,
        second.decision_id: 0,
    }


def test_an_outcome_may_come_before_its_decision(loop: Loop, config: Config) -> None:
    """Another host ships the outcome first; the decision's host follows later."""
    from dataclasses import replace
    from pathlib import Path

    campaign = loop.launch()
    (reply,) = loop.decide("ana")
    other = Path(config.data) / "other"
    with running(replace(config, data=other), loop.engine) as away:
        away.outcome(reply)
        away.carry()
        assert loop.learn(campaign) is not None
        loop.carry()
    loop.learn(campaign)
    assert state(loop, campaign).conversions.sum() == 1


def test_learning_in_other_pieces_gives_the_same_state(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = loop.launch()
    monkeypatch.setattr("service.learner.CHUNK", 7)
    replies = loop.shop(60)
    loop.carry()
    loop.learn(campaign)
    for reply in replies[::5]:
        loop.outcome(reply, kind="returned")
    loop.carry()
    assert loop.learn(campaign) is not None
    with loop.engine.connect() as connection:
        versions = connection.scalar(select(func.max(Snapshot.version)))
    assert (versions or 0) >= 9
    state(loop, campaign)


def test_jax_and_numpy_learn_the_same_bits(loop: Loop) -> None:
    campaign = loop.launch()
    loop.shop(120)
    loop.carry()
    learnt = learn(loop.engine, campaign, backend="jax")
    assert learnt is not None
    with loop.engine.connect() as connection:
        again = rebuild(connection, campaign, learnt.place, backend="numpy")
    assert learnt.digest == artefact.digest(again)


def test_several_learners_count_everything_once(loop: Loop) -> None:
    campaign = loop.launch()
    stop = threading.Event()
    learners = [Learner(loop.engine, backend="numpy") for _ in range(3)]
    threads = [threading.Thread(target=one.run, args=(stop,)) for one in learners]
    for thread in threads:
        thread.start()
    for _ in range(20):
        loop.shop(15)
        loop.carry()
        for one in learners:
            one.wake.set()
    stop.set()
    for one, thread in zip(learners, threads, strict=True):
        one.wake.set()
        thread.join()
    loop.learn(campaign)
    assert state(loop, campaign).trials.sum() == 300


def test_a_campaign_in_trouble_does_not_stop_the_others(loop: Loop) -> None:
    campaign = loop.launch()
    loop.shop(20)
    loop.carry()
    loop.learn(campaign)
    loop.carry()
    with loop.engine.begin() as connection:
        connection.execute(update(Snapshot).values(state=b"BLEDGER1 damaged"))
    loop.shop(20)
    loop.carry()
    with pytest.raises(ValueError, match="damaged"):
        learn(loop.engine, campaign, backend="numpy")
    before = loop.live.version
    loop.launch(key="summer")
    assert Learner(loop.engine, backend="numpy").step() is False
    assert loop.live.version == before == 1
    assert loop.decide("ana")[0].reason == "policy"


def test_the_clock_is_written_down_with_an_audit_entry(loop: Loop) -> None:
    now = dt.datetime.now(dt.UTC)
    loop.launch(starts_at=(now + HOUR).isoformat(), ends_at=(now + 3 * HOUR).isoformat())
    assert keep_schedule(loop.engine, now=now) == 0
    assert keep_schedule(loop.engine, now=now + HOUR) == 1
    assert keep_schedule(loop.engine, now=now + 3 * HOUR) == 1
    with loop.engine.connect() as connection:
        assert connection.scalar(select(Campaign.state)) == "ended"
        told = connection.scalars(
            select(AuditEntry.action).where(AuditEntry.actor == "clock").order_by(AuditEntry.id)
        ).all()
    assert told == ["campaign.running", "campaign.ended"]


def test_the_carrier_repeats_nothing_after_a_crash(loop: Loop) -> None:
    """A carrier that dies after its commit starts again from the watermark in Postgres."""
    loop.launch()
    loop.shop(50)
    loop.carry()
    again = Carrier(loop.runtime.spool, loop.engine)
    while again.ship():
        pass
    loop.shop(5)
    while again.ship():
        pass
    with loop.engine.connect() as connection:
        count = connection.scalar(select(func.count()).select_from(Decision))
        shipped = connection.scalar(select(Spool.shipped))
    assert count == 55
    assert shipped == loop.runtime.spool.last()


def test_an_entry_that_postgres_refuses_is_set_aside_alone(loop: Loop) -> None:
    loop.launch()
    loop.shop(10)
    loop.runtime.spool.append([Entry(OUTCOME, b"bad", b'{"event_id": "bad", "kind": "purred"}')])
    loop.shop(10)
    loop.carry()
    assert loop.runtime.spool.rejected() == 1
    with loop.engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(Decision)) == 20
        assert connection.scalar(select(func.count()).where(Outcome.event_id == "bad")) == 0
    assert loop.runtime.spool.last() == loop.carrier._shipped


def test_the_clock_never_waits_for_the_carrier(loop: Loop, database_url: str) -> None:
    """Appending decisions shares a lock on their campaigns' keys; both ways round it deadlocked."""
    now = dt.datetime.now(dt.UTC)
    campaign = loop.launch(ends_at=(now + HOUR).isoformat())
    impatient = db.engine(database_url, statement_timeout_seconds=2)
    with loop.engine.connect() as carrying:
        query = select(Campaign.id).where(Campaign.id == campaign)
        carrying.execute(query.with_for_update(read=True, key_share=True))
        assert keep_schedule(impatient, now=now) == 0
        assert keep_schedule(impatient, now=now + HOUR) == 1
    impatient.dispose()


def test_a_query_that_fails_for_one_campaign_does_not_stop_the_others(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = loop.launch()
    second = loop.launch(key="summer")
    loop.shop(5)
    decide(loop.runtime, [DecisionRequest(campaign="summer", unit="ana")])
    loop.carry()

    def fail_first(engine: Engine, campaign: int, *, backend: Backend) -> Learnt | None:
        if campaign == first:
            raise OperationalError("SELECT", {}, Exception("canceling statement due to timeout"))
        return learn(engine, campaign, backend=backend)

    monkeypatch.setattr("service.learner.learn", fail_first)
    Learner(loop.engine, backend="numpy").step()
    assert state(loop, second).trials.sum() == 1


def test_outcomes_are_learnt_from_at_once_and_decisions_alone_when_there_are_some(
    loop: Loop,
) -> None:
    campaign = loop.launch()
    learner = Learner(loop.engine, backend="numpy")
    made = loop.shop(5)
    loop.outcome(made[0])
    loop.carry()
    assert learner.step() is True
    before = state(loop, campaign).trials.sum()
    loop.decide("ana")
    loop.carry()
    assert learner.step() is False
    assert state(loop, campaign).trials.sum() == before
    loop.outcome(made[0], kind="clicked")
    loop.carry()
    assert learner.step() is True
    assert state(loop, campaign).trials.sum() == before + 1


def test_campaigns_of_one_shape_share_what_was_compiled() -> None:
    assert _update(definition(), "jax") is _update(definition(name="Other", floor=0.1), "jax")
    wider = definition(segments=[])
    assert _update(definition(), "jax") is not _update(wider, "jax")


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_an_hour_off_costs_no_decision_and_no_reward(
    loop: Loop, hours: int
) -> None:
    """One host's clock is wrong; the outcome comes through another host, whose clock is right."""
    campaign = loop.launch()
    there = dt.datetime.now(dt.UTC) + dt.timedelta(hours=hours)
    wanted = [DecisionRequest(campaign="spring", unit=f"u{n}") for n in range(10)]
    made = decide(loop.runtime, wanted, now=there)
    assert {one.reason for one in made} == {"policy"}
    for one in made:
        loop.outcome(one)
    loop.carry()
    loop.learn(campaign)
    with loop.engine.connect() as connection:
        rewards = connection.execute(select(Reward.conversions, Reward.late)).all()
    assert [tuple(one) for one in rewards] == [(1, 0)] * 10
