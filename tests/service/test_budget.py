"""A budget is never promised twice, and what expired offers did not cost comes back."""

import datetime as dt
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import Engine, func, select, text, update

from service.config import Config
from service.learner import Learner
from service.messages import DecisionReply
from service.models import Decision, Reward
from service.upkeep import SETTLE_GRACE, settle
from tests.loop import Loop, definition, running

LIMITED: dict[str, Any] = {
    "arms": [
        {"key": "none", "name": "No discount", "offer": {"kind": "none"}},
        {
            "key": "ten",
            "name": "10 %",
            "offer": {"kind": "percentage", "percent": 10, "max_discount_minor": 500},
        },
        {"key": "five", "name": "5.00 off", "offer": {"kind": "amount", "amount_minor": 500}},
    ],
    "budget_minor": 5_000,
    # Equal shares: the budget is spent within a few dozen visits, whatever is drawn.
    "policy": {"name": "fixed_split"},
}


@pytest.fixture
def loop(config: Config, engine: Engine) -> Iterator[Loop]:
    with running(config, engine) as made:
        yield made


def test_a_budget_needs_offers_with_a_ceiling_and_a_free_default() -> None:
    with pytest.raises(ValidationError, match="ten needs max_discount_minor"):
        definition(budget_minor=1000)
    with pytest.raises(ValidationError, match="default_arm: must cost nothing"):
        definition(**LIMITED, default_arm="five")


def test_promises_never_exceed_the_budget_with_many_at_once(loop: Loop) -> None:
    loop.launch(**LIMITED)
    barrier = threading.Barrier(8)

    def shop(number: int) -> None:
        barrier.wait()
        for visit in range(20):
            loop.decide(f"unit-{number}-{visit}")

    threads = [threading.Thread(target=shop, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loop.carry()
    with loop.engine.connect() as connection:
        reserved = connection.scalar(select(func.sum(Decision.reserved_minor)))
        offered = connection.scalar(
            select(func.count()).select_from(Decision).where(Decision.arm > 0)
        )
    assert reserved == 5_000 == loop.runtime.spool.committed(1)
    assert offered == 10
    (reply,) = loop.decide("late")
    assert (reply.arm, reply.propensity) == ("none", 1.0)


def test_expired_offers_give_back_what_they_did_not_cost(loop: Loop) -> None:
    campaign = loop.launch(**LIMITED, offer_seconds=3600)
    replies = loop.decide(*[f"unit-{number}" for number in range(40)])
    offered = [reply for reply in replies if reply.arm != "none"]
    assert len(offered) == 10
    loop.outcome(offered[0], revenue_minor=4_000)
    loop.carry()
    loop.learn(campaign)
    now = dt.datetime.now(dt.UTC)
    assert settle(loop.engine, campaign, now=now) == 0
    with loop.engine.connect() as connection:
        cost = connection.scalar(select(func.sum(Reward.discount_minor)))
    later = now + dt.timedelta(hours=1) + SETTLE_GRACE
    assert settle(loop.engine, campaign, now=later) == 5_000 - (cost or 0)
    assert settle(loop.engine, campaign, now=later) == 0, "each offer gives back once"
    loop.carry()
    assert loop.runtime.spool.committed(campaign) == cost
    assert any(reply.arm != "none" for reply in loop.decide(*"abcdefghij"))


LATER = dt.timedelta(hours=1) + SETTLE_GRACE


def offers(loop: Loop) -> list[DecisionReply]:
    """Spend the whole budget on ten offers that last an hour."""
    replies = loop.decide(*[f"unit-{number}" for number in range(40)])
    offered = [reply for reply in replies if reply.arm != "none"]
    assert len(offered) == 10
    return offered


def cost(loop: Loop) -> int:
    """Return what the discounts have cost so far."""
    with loop.engine.connect() as connection:
        return connection.scalar(select(func.sum(Reward.discount_minor))) or 0


def test_a_discount_told_after_the_settlement_is_still_charged(loop: Loop) -> None:
    campaign = loop.launch(**LIMITED, offer_seconds=3600)
    offered = offers(loop)
    loop.carry()
    loop.learn(campaign)
    assert settle(loop.engine, campaign, now=dt.datetime.now(dt.UTC) + LATER) == 5_000
    for reply in offered[:4]:
        loop.outcome(reply, revenue_minor=4_000)
    loop.carry()
    loop.learn(campaign)
    loop.carry()
    assert loop.runtime.spool.committed(campaign) == cost(loop) > 0
    loop.outcome(offered[0], kind="returned", revenue_minor=4_000)
    loop.carry()
    loop.learn(campaign)
    loop.carry()
    assert loop.runtime.spool.committed(campaign) == cost(loop)


def test_what_an_offer_cost_beyond_its_reservation_is_charged(loop: Loop) -> None:
    campaign = loop.launch(**LIMITED, offer_seconds=3600)
    offered = offers(loop)
    for _ in range(3):
        loop.outcome(offered[0], revenue_minor=9_000)
    loop.carry()
    loop.learn(campaign)
    settle(loop.engine, campaign, now=dt.datetime.now(dt.UTC) + LATER)
    loop.carry()
    assert loop.runtime.spool.committed(campaign) == cost(loop) == 1_500


def test_settling_waits_for_what_is_not_learnt_but_not_for_traffic(loop: Loop) -> None:
    campaign = loop.launch(**LIMITED, offer_seconds=3600)
    offered = offers(loop)
    loop.carry()
    loop.learn(campaign)
    loop.outcome(offered[5], revenue_minor=4_000)
    loop.decide("somebody", "new")
    loop.carry()
    now = dt.datetime.now(dt.UTC) + LATER
    assert settle(loop.engine, campaign, now=now) == 5 * 500
    with loop.engine.begin() as connection:
        gone = dt.datetime.now(dt.UTC) - LATER
        connection.execute(update(Decision).values(expires_at=gone))
    loop.learn(campaign)
    loop.decide("always", "somebody")
    loop.carry()
    Learner(loop.engine, backend="numpy").step()
    loop.carry()
    assert loop.runtime.spool.committed(campaign) == cost(loop) > 0


def test_settling_nothing_writes_nothing(loop: Loop) -> None:
    campaign = loop.launch(**LIMITED, offer_seconds=3600)
    offers(loop)
    loop.carry()
    loop.learn(campaign)
    now = dt.datetime.now(dt.UTC) + LATER
    settle(loop.engine, campaign, now=now)
    with loop.engine.connect() as connection:
        query = text("SELECT xmin::text FROM budgets")
        before = connection.scalar(query)
        connection.rollback()
        assert settle(loop.engine, campaign, now=now) == 0
        assert connection.scalar(query) == before
