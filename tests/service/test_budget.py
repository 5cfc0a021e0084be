"""A budget is never promised twice, and what expired offers did not cost comes back."""

import datetime as dt
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import Engine, func, select

from service.config import Config
from service.learner import SETTLE_GRACE, settle
from service.models import Decision, Reward
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
    "floor": 0.1,
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
