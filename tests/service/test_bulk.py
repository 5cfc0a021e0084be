"""Lists by columns: the same decisions as one by one, in fewer records, in the same log."""

import datetime as dt
import random
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from bandits import sampling
from service import bulk, columnar, columns, db, decide
from service.config import Config
from service.errors import IdempotencyConflict
from service.messages import MAX_LIST, DecisionList, DecisionRequest, PlainList
from service.models import Customer, Decision
from service.pseudonyms import Units
from service.snapshots import TOGETHER
from service.spool import DECISIONS
from service.verify import verify
from tests import copied
from tests.loop import DEFINITION, Loop, running
from tests.web import Web, fields, serving

NOW = dt.datetime(2026, 11, 27, 9, 30, 0, 123456, dt.UTC)
SEGMENTS = [
    {"key": "close", "name": "Close", "rules": [
        {"attribute": "recency_days", "op": "<=", "value": 14},
        {"attribute": "country", "op": "in", "value": ["DE", "FR", 7]}]},
    {"key": "members", "name": "Members", "rules": [
        {"attribute": "member", "op": "==", "value": True},
        {"attribute": "recency_days", "op": "!=", "value": 3}],
     "arms": {"ten": {"exclude": True}}},
    {"key": "silent", "name": "Silent", "rules": [
        {"attribute": "visits", "op": "exists", "value": False}]},
]  # fmt: skip
ARMS = [
    DEFINITION["arms"][0],
    DEFINITION["arms"][1] | {"only_if": [{"attribute": "visits", "op": ">", "value": 2}]},
    DEFINITION["arms"][2] | {"only_if": [{"attribute": "country", "op": "!=", "value": "FR"}]},
]
FEATURES = [
    {"kind": "number", "key": "visits", "name": "Visits", "scale": 3, "centre": 1, "default": 0.7},
    {"kind": "category", "key": "country", "name": "Country", "values": ["DE", "FR", "ES"]},
    {"kind": "boolean", "key": "member", "name": "Member", "default": True},
    {"kind": "number", "key": "hour", "name": "Hour", "scale": 8},
    {"kind": "number", "key": "value", "name": "Value", "scale": 1e-3},
]
ODD: list[Any] = [
    0,
    1,
    1.0,
    True,
    False,
    3,
    3.5,
    -0.0,
    14,
    15,
    2**53,
    "DE",
    "FR",
    "7",
    "",
    7,
    1e-300,
]
POLICIES: dict[str, dict[str, Any]] = {
    "thompson_beta": {},
    "linear_thompson": {"policy": {"name": "linear_thompson"}},
}


@pytest.fixture
def loop(config: Config, engine: Engine) -> Iterator[Loop]:
    with running(config, engine) as made:
        yield made


def attributes(rng: random.Random) -> dict[str, Any]:
    """Return what a request might say: often sensible, sometimes of another type, or nothing."""
    usual: dict[str, Any] = {
        "recency_days": rng.randint(0, 30), "country": rng.choice(["DE", "FR", "ES", "IT"]),
        "member": rng.random() < 0.5, "visits": rng.randint(0, 9), "value": rng.gauss(0, 1),
    }  # fmt: skip
    kept = {name: value for name, value in usual.items() if rng.random() < 0.8}
    if rng.random() < 0.3:
        kept[rng.choice([*usual, "hour", "other"])] = rng.choice(ODD)
    return kept


def scalar(loop: Loop, request: DecisionRequest, id: uuid.UUID) -> dict[str, Any]:
    """Return the row of the log that a single decision of this id has."""
    made = decide.begun(loop.runtime, request, NOW)
    made.key, made.name = id.bytes, str(id)
    if decide._choose(loop.runtime, made):
        decide.draw(loop.runtime, [made])
    return copied.row(made.entry().body)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("sensible", [True, False])
def test_a_list_decides_as_single_requests_do(loop: Loop, policy: str, sensible: bool) -> None:
    """In every field of the log, in every bit, but for the number that draws the arm.

    Simplexes by features are computed together, so those agree to eight digits.
    """
    with db.transaction(loop.engine) as session:
        for number in range(0, 60, 3):
            kept = {"visits": number, "hour": "late", "country": "ES"}
            session.add(Customer(unit=loop.runtime.pseudonym(f"u{number}"), attributes=kept))
    loop.launch(
        segments=SEGMENTS, arms=ARMS, features=FEATURES, holdout=0.1, zone="Europe/Berlin",
        **POLICIES[policy],
    )  # fmt: skip
    loop.shop(30)
    loop.carry()
    loop.learn(loop.live.id)
    loop.carry()
    rng, units = random.Random(7), [f"u{n}" for n in range(120)]
    told = [attributes(rng) for _ in units]
    if sensible:  # columns of numbers
        told = [
            {
                "recency_days": 2,
                "visits": rng.choice([1, 2.5, 4]),
                "member": n % 2 == 0,
                "country": "DE",
                "value": rng.random(),
                "hour": n % 24,
            }
            for n in range(120)
        ]
    asked = [DecisionRequest(campaign="spring", unit=unit, attributes=one)
             for unit, one in zip(units, told, strict=True)]  # fmt: skip
    found = columns.gathered(told, loop.live.definition.reads)
    batch = bulk.decided(loop.runtime, loop.live, Units.of(units), found, NOW)
    assert batch is not None
    found_rows = {row["id"]: row for row in copied.rows(columnar.copy_stream(batch.packed()))}
    ids = [uuid.UUID(bytes=one.tobytes()) for one in batch.ids]
    rows = [found_rows[id] for id in ids]
    wanted = [scalar(loop, request, id) for request, id in zip(asked, ids, strict=True)]
    if policy != "thompson_beta":
        for row, one in zip(rows, wanted, strict=True):
            assert row["why"].pop("together") is True
            assert row["simplex"] == pytest.approx(one["simplex"], abs=TOGETHER)
            one["simplex"] = row["simplex"]
    for row, one in zip(rows, wanted, strict=True):
        if row["reason"] == "policy":
            assert row["why"].pop("block") is True
            drawn = sampling.uniform_by_block(loop.live.seed, row["id"].bytes)
            one["arm"] = sampling.draw(row["simplex"], drawn)
        one["propensity"] = row["simplex"][one["arm"]]
    assert rows == wanted
    if not sensible:
        assert len({row["segment"] for row in rows}) == 4
        assert {"policy", "holdout"} <= {row["reason"] for row in rows}


@pytest.mark.parametrize("policy", POLICIES)
def test_the_log_has_them_as_any_other_decision(loop: Loop, policy: str) -> None:
    """One record on disk; in PostgreSQL rows like others, which learn, replay and verify."""
    number = loop.launch(features=FEATURES, segments=SEGMENTS, **POLICIES[policy])
    rng = random.Random(3)
    asked = [DecisionRequest(campaign="spring", unit=f"u{n}", attributes=attributes(rng))
             for n in range(300)]  # fmt: skip
    answers = bulk.answer(loop.runtime, asked)
    ((_, kind, body),) = loop.runtime.spool.after(0, limit=10)
    assert kind == DECISIONS
    loop.carry()
    stream = columnar.copy_stream(columnar.decode(body))
    wanted = {row["id"]: row for row in copied.rows(stream)}
    with loop.engine.connect() as connection:
        found = connection.execute(select(Decision.__table__)).all()
    assert len(found) == len(wanted) == 300
    for row in found:
        for name in copied.COLUMNS:
            assert getattr(row, name) == wanted[row.id][name], name
    assert {row.id.bytes for row in found} == {one.tobytes() for one in answers.ids}
    loop.learn(number)
    assert verify(loop.engine, "spring", sample=300).holds


def test_a_log_that_is_carried_again_adds_nothing(loop: Loop) -> None:
    loop.launch()
    asked = [DecisionRequest(campaign="spring", unit=f"u{n}") for n in range(50)]
    bulk.answer(loop.runtime, asked)
    loop.carry()
    loop.runtime.spool.renew()
    loop.carrier._shipped = None
    loop.decide("ana")
    loop.carry()
    with loop.engine.connect() as connection:
        assert len(connection.execute(select(Decision.id)).all()) == 51
    assert loop.runtime.spool.rejected() == 0


def test_what_is_looked_up_one_by_one_is_answered_in_its_place(loop: Loop) -> None:
    loop.launch()
    asked = [DecisionRequest(campaign="spring", unit=f"u{n}",
                             request_id=f"r{n}" if n % 3 == 0 else None,
                             exclude_arms=("ten", "twenty") if n % 5 == 0 else ())
             for n in range(30)]  # fmt: skip
    first, again = bulk.answer(loop.runtime, asked), bulk.answer(loop.runtime, asked)
    same = (first.ids == again.ids).all(axis=1)
    assert same.tolist() == [n % 3 == 0 for n in range(30)]
    arms = [first.kinds[one].arm for one in first.told]
    assert {arms[n] for n in range(0, 30, 5)} == {"none"}
    bad = DecisionRequest(campaign="spring", unit="somebody else", request_id="r3")
    with pytest.raises(IdempotencyConflict):
        bulk.answer(loop.runtime, [asked[1], bad])


def test_ids_of_the_sdk_in_a_list_are_drawn_together(loop: Loop) -> None:
    """And looked up as any other; under an id of the caller's each is what it is alone."""
    loop.launch(features=FEATURES, **POLICIES["linear_thompson"])
    loop.shop(30)
    loop.carry()
    loop.learn(loop.live.id)
    loop.carry()
    rng = random.Random(5)
    told = [attributes(rng) for _ in range(40)]
    requests = [
        DecisionRequest(campaign="spring", unit=f"u{n}", attributes=known,
                        request_id=f"{'once' if n % 2 else 'cart'}-{n}")
        for n, known in enumerate(told)
    ]  # fmt: skip
    first = bulk.answer(loop.runtime, requests, now=NOW).documents()
    assert bulk.answer(loop.runtime, requests, now=NOW).documents() == first
    # Each three times in one list: all three are told of one decision.
    new = [one.model_copy(update={"request_id": f"{one.request_id}-new"}) for one in requests]
    thrice = bulk.answer(loop.runtime, new * 3, now=NOW).documents()
    assert thrice[:40] == thrice[40:80] == thrice[80:]
    assert len(set(thrice)) == 40
    loop.carry()
    with loop.engine.connect() as connection:
        query = select(Decision.__table__).order_by(Decision.position.desc()).limit(2 * len(told))
        rows = {row.id: row for row in connection.execute(query)}
    for n, (request, text) in enumerate(zip(requests, first, strict=True)):
        row = rows[uuid.UUID(orjson.loads(text)["decision_id"])]
        assert bool(row.why.get("together")) == bool(n % 2)
        alone = decide.draft(loop.runtime, request, NOW)
        assert alone.key == row.id.bytes
        assert list(alone.choice.simplex) == pytest.approx(row.simplex, abs=TOGETHER)
        if not n % 2:
            assert (list(alone.choice.simplex), alone.choice.arm) == (row.simplex, row.arm)


def test_a_full_disk_gives_all_the_default_arm(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.launch(policy={"name": "linear_thompson"}, features=FEATURES)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("service.segments._write", full)
    asked = [DecisionRequest(campaign="spring", unit=f"u{n}") for n in range(9)]
    answers = bulk.answer(loop.runtime, asked)
    assert {(one.arm, one.reason, one.propensity) for one in answers.kinds} == {
        ("none", "unavailable", 1.0)
    }
    # In front of Flask the answer is written before the disk refuses: it must not be that one.
    worked = bulk.plainly(loop.runtime, asked)
    assert worked is not None
    told = orjson.loads(worked[1])["decisions"]
    assert [(one["arm"], one["reason"], one["propensity"]) for one in told] == [
        ("none", "unavailable", 1.0)
    ] * 9
    assert sum(worked[0].tally().values()) == worked[0].tally()["spring", "none", "unavailable"]


def test_ids_are_those_of_decisions(loop: Loop) -> None:
    ids = bulk.random_ids(77, 1000)
    for one in ids:
        id = uuid.UUID(bytes=one.tobytes())
        assert (id.version, id.variant) == (8, uuid.RFC_4122)
        assert decide.campaign_number(id) == 77
    assert len(np.unique(ids, axis=0)) == 1000


@pytest.fixture
def web(config: Config, engine: Engine) -> Iterator[Web]:
    with serving(config, engine) as made:
        made.loop.launch(segments=SEGMENTS, arms=ARMS, features=FEATURES)
        yield made


def test_a_plain_list_is_answered_as_any_other(web: Web) -> None:
    """White space makes a list that the quick reader leaves to the models."""
    rng = random.Random(5)
    wanted = {"decisions": [{"campaign": "spring", "unit": f"u{n}", "attributes": attributes(rng)}
                            for n in range(40)]}  # fmt: skip
    plain = orjson.dumps(wanted).replace(b',"attributes":{}', b"")
    assert PlainList.read(plain) is not None
    spaced = plain.replace(b'":', b'" :')
    assert PlainList.read(spaced) is None
    first, second = (
        web.call("POST", "/v1/decisions", scope="decide", data=body,
                 content_type="application/json").get_json()["decisions"]
        for body in (plain, spaced)
    )  # fmt: skip
    assert [one["segment"] for one in first] == [one["segment"] for one in second]
    assert [one.keys() for one in first] == [one.keys() for one in second]
    one = wanted["decisions"][0]
    single = web.call("POST", "/v1/decisions", scope="decide", json=one).get_json()
    assert single.keys() == first[0].keys()
    assert single["offer"].keys() >= {"kind"}
    assert {type(value) for value in single.values()} == {type(v) for v in first[0].values()}


def test_a_plain_list_refuses_what_the_models_refuse(web: Web) -> None:
    good = {"campaign": "spring", "unit": "u"}
    for bad, field, status in (
        (good | {"campaign": "Not a key"}, "decisions[1].campaign", 422),
        (good | {"campaign": "nope"}, "decisions[1].campaign", 404),
        (good | {"attributes": {"a": 2**54}}, "decisions[1].attributes.a", 422),
    ):
        reply = web.call("POST", "/v1/decisions", scope="decide", json={"decisions": [good, bad]})
        assert fields(reply, status) == [field]
    assert PlainList.read(orjson.dumps({"decisions": [good] * (MAX_LIST + 1)})) is None
    assert PlainList.read(b'{"decisions":[{"campaign":"a","unit":"u","unit":"v"}]}') is None
    assert web.loop.runtime.spool.last() == 0
    read = PlainList.read(orjson.dumps({"decisions": [good]}))
    assert read is not None
    full = DecisionList(decisions=tuple(one.full() for one in read.decisions))
    assert full == DecisionList.model_validate({"decisions": [good]})


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.sampled_from([31, 1 << 20]))
@example([0, 0], 1)
def test_numbers_are_told_apart_as_by_sorting(numbers: list[int], below: int) -> None:
    found = columns.distinct(np.array(numbers), below)
    wanted = np.unique(np.array(numbers), return_index=True, return_inverse=True)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(0, 70), st.randoms())
def test_rows_of_the_same_bits_have_the_same_number(
    rows: int, width: int, rng: random.Random
) -> None:
    """Also of more bits than a number has, and of some that all rows have."""
    kinds = [[rng.random() < 0.5 for _ in range(width)] for _ in range(4)]
    chosen = [rng.choice(kinds) for _ in range(rows)]
    bits = [np.array([one[place] for one in chosen]) for place in range(width)]
    found = columns.numbered(bits, rows)
    for row, place in enumerate(found.places.tolist()):
        assert chosen[found.firsts[place]] == chosen[row]
        assert chosen.index(chosen[row]) == found.firsts[place]
    assert len({tuple(one) for one in chosen}) == len(found.firsts)
