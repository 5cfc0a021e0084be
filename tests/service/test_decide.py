"""The checkout path: who gets what, with which probability, and what is kept of it."""

import datetime as dt
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare
from sqlalchemy import Engine, select

from bandits.types import Contexts
from service import campaigns, contexts, db, products
from service.config import Config
from service.decide import campaign_number, decide, draw, prepared
from service.eligibility import segment_of
from service.errors import IdempotencyConflict, UnknownCampaign
from service.imports import load
from service.messages import DecisionRequest
from service.models import Decision
from service.snapshots import LiveCampaign
from service.spool import SpoolError
from service.verify import verify
from tests.loop import DEFINITION, Loop, definition, running

NOW = dt.datetime.now(dt.UTC)
HOUR = dt.timedelta(hours=1)


@pytest.fixture
def loop(config: Config, engine: Engine) -> Iterator[Loop]:
    with running(config, engine) as made:
        yield made


def test_a_reply_carries_arm_offer_and_the_exact_propensity(loop: Loop) -> None:
    number = loop.launch()
    (reply,) = loop.decide("ana")
    assert reply.reason == "policy"
    assert reply.offer == loop.live.definition.offer(1, ["none", "ten", "twenty"].index(reply.arm))
    assert campaign_number(reply.decision_id) == number
    assert reply.decision_id.version == 8
    loop.carry()
    with loop.engine.connect() as connection:
        row = connection.execute(select(Decision.__table__)).one()
    assert row.id == reply.decision_id
    assert row.simplex[row.arm] == row.propensity == reply.propensity
    assert b"ana" not in bytes(row.unit)


def test_an_unknown_campaign_is_refused_and_nothing_is_kept(loop: Loop) -> None:
    loop.launch()
    wanted = [
        DecisionRequest(campaign="spring", unit="ana"),
        DecisionRequest(campaign="autumn", unit="ana"),
    ]
    with pytest.raises(UnknownCampaign):
        decide(loop.runtime, wanted)
    assert loop.runtime.spool.last() == 0


def test_a_request_id_returns_the_stored_decision(loop: Loop) -> None:
    loop.launch()
    (first,) = loop.decide("ana", request_id="order-1")
    (again,) = loop.decide("ana", request_id="order-1")
    assert again == first
    assert loop.runtime.spool.last() == 1
    with pytest.raises(IdempotencyConflict):
        loop.decide("bea", request_id="order-1")


@pytest.mark.parametrize(
    ("changes", "action", "reason"),
    [
        ({"starts_at": (NOW + HOUR).isoformat()}, None, "scheduled"),
        ({}, "pause", "paused"),
        ({}, "end", "ended"),
        ({}, "kill", "killed"),
    ],
)
def test_a_campaign_that_does_not_run_serves_its_default_arm(
    loop: Loop, changes: dict[str, Any], action: str | None, reason: str
) -> None:
    loop.launch(**changes)
    if action:
        loop.transition(action)
    for reply in loop.decide(*"abcdefgh"):
        assert (reply.reason, reply.arm, reply.propensity) == (reason, "none", 1.0)


def test_the_clock_starts_and_ends_a_campaign_without_anybody(loop: Loop) -> None:
    loop.launch(starts_at=(NOW + HOUR).isoformat(), ends_at=(NOW + 2 * HOUR).isoformat())
    wanted = [DecisionRequest(campaign="spring", unit="ana")]
    told = [decide(loop.runtime, wanted, now=NOW + hours * HOUR)[0].reason for hours in (0, 1, 2)]
    assert told == ["scheduled", "policy", "ended"]


def test_the_holdout_is_its_share_of_units_for_good(loop: Loop) -> None:
    loop.launch(holdout=0.2)
    units = [f"unit-{number}" for number in range(3000)]
    first = [reply.reason == "holdout" for reply in loop.decide(*units)]
    again = [reply.reason == "holdout" for reply in loop.decide(*units)]
    assert first == again
    assert abs(np.mean(first) - 0.2) < 0.025
    assert {r.arm for r in loop.decide(*units) if r.reason == "holdout"} == {"none"}


def test_masked_arms_are_never_served_and_say_why(loop: Loop) -> None:
    loop.launch(
        segments=[
            {
                "key": "loyal",
                "name": "Loyal",
                "rules": [{"attribute": "recency_days", "op": "<=", "value": 14}],
                "arms": {"twenty": {"exclude": True}},
            }
        ]
    )
    units = [f"unit-{number}" for number in range(300)]
    loyal = loop.decide(*units, attributes={"recency_days": 3}, exclude_arms=("ten",))
    assert {reply.arm for reply in loyal} == {"none"}
    assert {reply.propensity for reply in loyal} == {1.0}
    nobody = loop.decide("ana", attributes={"recency_days": 3}, exclude_arms=("ten", "none"))
    assert [(reply.arm, reply.reason) for reply in nobody] == [("none", "no_eligible_arm")]
    loop.carry()
    with loop.engine.connect() as connection:
        row = connection.execute(select(Decision.__table__).limit(1)).one()
    assert row.why == {
        "masked": {"ten": "excluded by the request", "twenty": "excluded for the segment"}
    }
    assert row.mask == 0b001


def test_an_arm_with_rules_of_its_own_is_served_only_where_they_hold(loop: Loop) -> None:
    """Deep discounts clear overstock, and none is given on what is scarce or unknown."""
    arms = definition().model_dump(mode="json")["arms"]
    arms[1]["only_if"] = [{"attribute": "product_stock", "op": ">=", "value": 5}]
    arms[2]["only_if"] = [
        {"attribute": "product_category", "op": "in", "value": ["Tea"]},
        {"attribute": "product_stock_cover_days", "op": ">", "value": 60},
    ]
    loop.launch(arms=arms)
    rows = [("few", 4, 365), ("some", 5, 9), ("many", 900, 9)]
    now = dt.datetime.now(dt.UTC)
    loop.runtime.spool.store_products(
        [(id, products.known(stock, 499, "Tea", stock / cover, now)) for id, stock, cover in rows]
    )
    units = [f"unit-{number}" for number in range(250)]  # an arm of one in nine is among them
    wanted = {"few": {"none", "twenty"}, "some": {"none", "ten"}, "many": {"none", "ten"}}
    for product, arms_given in wanted.items():
        assert {reply.arm for reply in loop.decide(*units, product=product)} == arms_given
    told = loop.decide(*units, product="some", attributes={"product_stock_cover_days": 60.5})
    assert {reply.arm for reply in told} == {"none", "ten", "twenty"}
    assert {reply.arm for reply in loop.decide(*units)} == {"none"}
    loop.carry()
    with loop.engine.connect() as connection:
        last = connection.execute(select(Decision.why).order_by(Decision.position.desc())).first()
        first = connection.execute(select(Decision.why).order_by(Decision.position)).first()
    assert first is not None
    assert last is not None
    assert first.why["masked"] == {"ten": "only if product_stock is at least 5"}
    assert last.why["masked"] == {
        "ten": "only if product_stock is at least 5, which was not known",
        "twenty": "only if product_category is one of Tea, which was not known",
    }
    assert verify(loop.engine, "spring", sample=20).holds


def test_a_sticky_unit_keeps_its_arm_and_its_propensity(loop: Loop) -> None:
    campaign = loop.launch(sticky_seconds=3600)
    first = {reply.decision_id: reply for reply in loop.decide(*"abcdefghij")}
    loop.shop(200)
    loop.carry()
    loop.learn(campaign)
    loop.carry()
    for before, after in zip(first.values(), loop.decide(*"abcdefghij"), strict=True):
        assert after.reason == "sticky"
        assert (after.arm, after.propensity) == (before.arm, before.propensity)
        assert after.decision_id != before.decision_id


def test_a_sticky_arm_that_is_no_longer_eligible_is_drawn_anew(loop: Loop) -> None:
    loop.launch(sticky_seconds=3600)
    (first,) = loop.decide("ana")
    (second,) = loop.decide("ana", exclude_arms=(first.arm,))
    assert second.reason == "policy"
    assert second.arm != first.arm
    (third,) = loop.decide("ana")
    assert (third.reason, third.arm) == ("sticky", second.arm)


def test_stored_attributes_choose_the_segment(loop: Loop) -> None:
    loop.launch()
    unit = loop.runtime.pseudonym("ana")
    assert loop.decide("ana")[0].segment == "everyone"
    loop.runtime.spool.store_customers([(unit, b'{"recency_days": 2}')])
    loop.runtime.catalogue.refresh()
    assert loop.decide("ana")[0].segment == "loyal"
    assert loop.decide("bea")[0].segment == "everyone"
    assert loop.decide("ana", attributes={"recency_days": 20})[0].segment == "everyone"


def test_a_full_disk_still_gets_an_answer(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.launch()

    def refuse(_entries: object) -> None:
        raise SpoolError("database or disk is full")

    monkeypatch.setattr(loop.runtime.spool, "append", refuse)
    (reply,) = loop.decide("ana")
    assert (reply.reason, reply.arm) == ("unavailable", "none")


def test_a_restarted_process_serves_from_its_disk(loop: Loop, config: Config) -> None:
    from service.runtime import Runtime

    campaign = loop.launch()
    loop.shop(100)
    loop.carry()
    loop.learn(campaign)
    loop.carry()
    expected = loop.live.simplex(0, 0b111)
    again = Runtime(config)
    again.catalogue.refresh()
    assert again.catalogue.loaded
    restarted = again.catalogue.campaign("spring")
    assert restarted is not None
    np.testing.assert_array_equal(restarted.simplex(0, 0b111), expected)
    again.stop()


def test_a_million_draws_do_not_reject_the_logged_propensities(loop: Loop) -> None:
    campaign = loop.launch()
    loop.shop(150)
    loop.carry()
    loop.learn(campaign)
    loop.carry()
    live = loop.live
    chances = live.simplex(0, 0b111)
    drawn = Counter(
        live.draw(0, 0b111, number.to_bytes(16, "big")).arm for number in range(1_000_000)
    )
    assert 0.01 <= chances.min() < chances.max() < 1
    counts = [drawn[arm] for arm in range(3)]
    assert chisquare(counts, 1_000_000 * chances).pvalue > 0.001


def test_a_draft_that_was_asked_may_still_change_its_arms(loop: Loop) -> None:
    with db.transaction(loop.engine) as session:
        campaign = campaigns.create(session, definition(), actor="test").id
    loop.carry()
    (drafted,) = loop.decide("ana", request_id="early")
    assert drafted.reason == "draft"
    loop.carry()
    loop.learn(campaign)
    loop.carry()
    arms = definition().model_dump(mode="json")["arms"]
    more = {"key": "five", "name": "5.00 off", "offer": {"kind": "amount", "amount_minor": 500}}
    with db.transaction(loop.engine) as session:
        wanted = definition(arms=[more, *arms])
        campaigns.update(session, "spring", wanted, actor="test")
        campaigns.transition(session, "spring", "launch", actor="test")
    loop.carry()
    assert {reply.reason for reply in loop.decide(*"abcdefgh")} == {"policy"}
    assert loop.decide("ana", request_id="early") == [drafted], "as it was told the first time"
    loop.carry()
    learnt = loop.learn(campaign)
    assert learnt is not None
    assert learnt.decisions == 9
    assert verify(loop.engine, "spring", sample=20).holds


def test_a_repeat_tells_the_offer_as_it_was_told(loop: Loop) -> None:
    loop.launch()
    units = [f"unit-{number}" for number in range(20)]
    told = [loop.decide(unit, request_id=unit)[0] for unit in units]
    arms = definition().model_dump(mode="json")["arms"]
    arms[1]["offer"]["percent"] = arms[2]["offer"]["percent"] = 15
    with db.transaction(loop.engine) as session:
        campaigns.update(session, "spring", definition(arms=arms), actor="test")
    loop.carry()
    assert [loop.decide(unit, request_id=unit)[0] for unit in units] == told


def test_what_is_kept_of_a_request_does_not_betray_its_unit(loop: Loop, config: Config) -> None:
    """A plain hash of a request would let anybody with the file try out every customer number."""
    loop.launch()
    request = DecisionRequest(campaign="spring", unit="ana", request_id="cart-1")
    loop.decide("ana", request_id="cart-1")
    kept = b"".join(file.read_bytes() for file in (config.data / "log").iterdir())
    assert b'"fingerprint"' in kept
    assert b"ana" not in kept
    asked = request.model_dump_json(exclude={"unit"}, exclude_none=True)
    for whole in (request.model_dump_json(), request.model_dump_json(exclude_none=True), asked):
        plain = hashlib.blake2b(whole.encode(), digest_size=12).hexdigest()
        assert plain.encode() not in kept


@pytest.mark.parametrize("read", ["attributes", "committed", "assignment"])
def test_a_disk_that_cannot_be_read_still_gets_an_answer(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    arms = definition().model_dump(mode="json")["arms"]
    for arm in arms[1:]:
        arm["offer"]["max_discount_minor"] = 500
    loop.launch(arms=arms, budget_minor=50_000, sticky_seconds=60)
    loop.runtime.spool.store_customers([(bytes(16), b"{}")])
    loop.runtime.catalogue.refresh()

    def refuse(*_: object) -> None:
        raise SpoolError("disk I/O error")

    monkeypatch.setattr(loop.runtime.spool, read, refuse)
    (reply,) = loop.decide("ana")
    assert (reply.reason, reply.arm, reply.propensity) == ("unavailable", "none", 1.0)


def test_a_policy_that_fails_still_gets_an_answer(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.launch()

    def fail(*_: object) -> None:
        raise FloatingPointError("underflow")

    monkeypatch.setattr(loop.live, "policy", loop.live.policy._replace(probabilities=fail))
    assert {(r.reason, r.arm) for r in loop.decide(*"abcd")} == {("unavailable", "none")}


def _but_one(_belief: object, contexts: Contexts, mask: Any) -> Any:
    if (contexts.features == 7 * 4096).any():
        raise FloatingPointError("underflow")
    return mask / mask.sum(axis=1, keepdims=True)


def test_a_policy_that_fails_for_many_at_once_fails_for_nobody(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature = {"kind": "number", "key": "visits", "name": "Visits"}
    loop.launch(features=[feature], policy={"name": "linear_thompson"})
    asked = [DecisionRequest(campaign="spring", unit=unit) for unit in "abc"]
    drafts = [prepared(loop.runtime, one, NOW) for one in asked]
    assert all(made.due for made in drafts)

    def fail(*_: object) -> None:
        raise FloatingPointError("underflow")

    wrong = loop.live.policy._replace(probabilities=fail, single=fail)
    monkeypatch.setattr(loop.live, "policy", wrong)
    draw(loop.runtime, drafts)
    told = {(made.reason, made.arm, made.due, made.together) for made in drafts}
    assert told == {("unavailable", "none", False, False)}
    # What fails for one row of several is not the others' concern.
    drafts = [prepared(loop.runtime, one, NOW) for one in asked]
    monkeypatch.setattr(loop.live, "policy", wrong._replace(single=None, probabilities=_but_one))
    drafts[1].context = np.array([7 * 4096])
    draw(loop.runtime, drafts)
    assert [made.reason for made in drafts] == ["policy", "unavailable", "policy"]


def test_a_clock_that_was_set_back_still_gets_an_answer(loop: Loop) -> None:
    """An assignment that has ended by the decision's clock is alive by the log's."""
    loop.launch(sticky_seconds=60)
    loop.decide("ana")
    wanted = [DecisionRequest(campaign="spring", unit="ana")]
    (reply,) = decide(loop.runtime, wanted, now=NOW + HOUR)
    assert (reply.reason, reply.arm) == ("unavailable", "none")


@pytest.mark.parametrize(
    ("cap", "shares"), [(None, [0.107, 0.107, 0.786]), (1.0, [0.107, 0.107, 0.786]),
                        (0.4, [0.3, 0.3, 0.4])],
)  # fmt: skip
def test_a_cap_holds_and_what_it_takes_is_shared_out(
    cap: float | None, shares: list[float]
) -> None:
    arms = [arm | {"cap": cap if arm["key"] == "twenty" else None} for arm in DEFINITION["arms"]]
    policy = {"name": "fixed_split", "options": {"shares": [0.1, 0.1, 0.8]}}
    live = LiveCampaign(
        id=1, revision=1, state="running", killed=False, seed=b"s",
        definition=definition(arms=arms, policy=policy),
    )  # fmt: skip
    assert live.simplex(0, 0b111).tolist() == pytest.approx(shares)


def test_the_clock_tells_features_that_nobody_else_tells(loop: Loop) -> None:
    """In the campaign's zone; what the store or the request says goes before it."""
    features = [
        {"kind": "number", "key": "hour", "name": "Hour", "centre": 0, "scale": 1},
        {"kind": "boolean", "key": "weekend", "name": "Weekend"},
        {"kind": "category", "key": "weekday", "name": "Day", "values": ["saturday", "sunday"]},
    ]
    number = loop.launch(features=features, zone="Asia/Tokyo", starts_at=None)
    unit = loop.runtime.pseudonym("bea")
    loop.runtime.spool.store_customers([(unit, b'{"hour": 3}')])
    loop.runtime.catalogue.refresh()
    saturday = dt.datetime(2026, 11, 27, 16, 30, tzinfo=dt.UTC)  # half past one in Tokyo
    wanted = [
        DecisionRequest(campaign="spring", unit="ana"),
        DecisionRequest(campaign="spring", unit="bea"),
        DecisionRequest(campaign="spring", unit="cleo", attributes={"weekend": False}),
    ]
    decide(loop.runtime, wanted, now=saturday)
    loop.carry()
    with db.transaction(loop.engine) as session:
        rows = session.scalars(
            select(Decision).where(Decision.campaign_id == number).order_by(Decision.position)
        )
        found = {bytes(row.unit): (row.context, row.why["filled"]) for row in rows}
    one = 4096
    assert found[loop.runtime.pseudonym("ana")] == ([one, one, one, 0], [])
    assert found[unit] == ([3 * one, one, one, 0], [])
    assert found[loop.runtime.pseudonym("cleo")] == ([one, 0, one, 0], [])


def test_the_lowest_price_of_a_competitor_within_a_week_counts() -> None:
    day, now = 86_400, round(NOW.timestamp())
    seen = [(400, now - 7 * day - 9), (550, now - 6 * day), (500, now - 6 * day)]
    kept = products.known(None, 600, None, None, None, seen)
    found = {"product_price_minor": 600, "competitor_price_minor": 500, "competitor_gap": 0.2}
    assert products.recalled(kept, NOW) == pytest.approx(found)
    assert products.recalled(kept, NOW + 25 * HOUR) == {"product_price_minor": 600}


def test_a_price_and_a_stock_that_were_told_long_ago_are_unknown() -> None:
    told = NOW - dt.timedelta(days=20)
    kept = products.known(
        80, 499, "Tea", 2.0, NOW, [(500, round(NOW.timestamp()))], price_at=told, stock_at=NOW
    )
    assert products.recalled(kept, NOW)["product_price_minor"] == 499
    late = products.recalled(kept, NOW + dt.timedelta(days=10, seconds=1))
    assert (late["product_stock"], late["product_stock_cover_days"]) == (80, 40)
    assert not late.keys() & {"product_price_minor", "competitor_gap"}
    assert products.recalled(kept, NOW + dt.timedelta(days=31)) == {"product_category": "Tea"}
    before = b'[80,499,"Tea",null,null,[]]'  # as an earlier release kept it
    assert products.recalled(before, NOW)["product_stock"] == 80


def test_a_named_product_goes_after_the_request_and_before_the_store(loop: Loop) -> None:
    keys = ("product_stock", "product_price_minor", "product_stock_cover_days")
    features = [{"kind": "number", "key": key, "name": key, "default": -1} for key in keys]
    rules = [{"attribute": "product_category", "op": "==", "value": "Tea"}]
    loop.launch(features=features, segments=[{"key": "tea", "name": "Tea", "rules": rules}])
    load.products(loop.engine, [load.ProductRow("p1", None, "Tea", None, 5, None, 12)])
    loop.carry()
    unit = loop.runtime.pseudonym("ana")
    loop.runtime.spool.store_customers([(unit, b'{"product_stock": 2, "product_price_minor": 4}')])

    def told(**request: Any) -> tuple[str, list[int], Any]:
        (reply,) = loop.decide("ana", **request)
        loop.carry()
        with db.transaction(loop.engine) as session:
            made = session.scalars(select(Decision).where(Decision.id == reply.decision_id)).one()
            context = [number // 4096 for number in made.context]
            return reply.segment, context, made.why.get("product")

    assert told(product="p1") == ("tea", [12, 5, -1], "p1")
    assert told(product="p1", attributes={"product_stock": 3}) == ("tea", [3, 5, -1], "p1")
    assert told(product="ghost") == ("everyone", [2, 4, -1], "ghost")
    assert told() == ("everyone", [2, 4, -1], None)


@pytest.mark.parametrize(
    ("country", "zone", "moment", "holiday", "days"),
    [
        ("DE-BY", "Europe/Berlin", "2027-01-06T12:00", True, 0),  # Epiphany, kept in Bavaria
        ("DE", "Europe/Berlin", "2027-01-06T12:00", False, 30),
        ("US", "America/New_York", "2026-11-24T12:00", False, 2),  # Thanksgiving is on a Thursday
        ("US", "America/New_York", "2026-12-26T04:59", True, 0),  # still Christmas in New York
        ("US", "America/New_York", "2026-12-26T05:00", False, 6),
        ("US", "Asia/Tokyo", "2026-12-24T15:00", True, 0),  # the country's days, the zone's dates
        (None, "Europe/Berlin", "2026-12-25T12:00", None, None),
    ],
)
def test_the_clock_knows_the_holidays_of_a_country(
    country: str | None, zone: str, moment: str, holiday: bool | None, days: int | None
) -> None:
    rules = [{"attribute": "days_to_holiday", "op": "<", "value": 3}]
    plan = definition(
        country=country,
        zone=zone,
        features=[{"kind": "boolean", "key": "holiday", "name": "Holiday"}],
        segments=[{"key": "soon", "name": "Soon", "rules": rules}],
    )
    now = dt.datetime.fromisoformat(moment).replace(tzinfo=dt.UTC)
    wanted = {} if country is None else {"holiday": holiday, "days_to_holiday": days}
    assert contexts.clock(plan, now) == wanted
    assert segment_of(plan, wanted) == (0 if days is not None and days < 3 else 1)
