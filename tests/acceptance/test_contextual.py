"""A contextual campaign over HTTP and PostgreSQL: it learns, replays bit for bit and verifies."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, select

from bandits import features
from service.config import Config
from service.contexts import encode, filled, told
from service.db import transaction
from service.models import Decision
from service.replay import replay
from service.verify import verify
from tests.loop import DEFINITION, definition
from tests.web import Web, fields, serving

FEATURES: list[dict[str, Any]] = [
    {"kind": "category", "key": "channel", "name": "Channel", "values": ["app", "web"]},
    {"kind": "number", "key": "visits", "name": "Visits", "centre": 10, "scale": 5},
    {"kind": "boolean", "key": "member", "name": "Member"},
]
WANTS = {"app": "none", "web": "twenty"}


@pytest.fixture
def web(config: Config, engine: Engine) -> Iterator[Web]:
    with serving(config, engine) as made:
        yield made


def _serve(web: Web, rng: random.Random, visits: int) -> float:
    """Send customers of two types and tell how many got the arm that their type wants."""
    right = 0
    for _ in range(visits):
        channel = rng.choice(sorted(WANTS))
        asked = {"channel": channel, "visits": rng.randint(0, 20), "member": rng.random() < 0.5}
        unit = f"unit-{rng.random()}"
        body = {"campaign": "spring", "unit": unit, "attributes": asked}
        reply = web.call("POST", "/v1/decisions", scope="decide", json=body)
        assert reply.status_code == 200, reply.get_data(as_text=True)
        decision: dict[str, Any] = reply.get_json()
        wanted = decision["arm"] == WANTS[channel]
        right += wanted
        if rng.random() < (0.6 if wanted else 0.1):
            event: dict[str, Any] = {"event_id": unit, "decision_id": decision["decision_id"]}
            event |= {"kind": "purchased", "revenue_minor": 3000}
            kept = web.call("POST", "/v1/outcomes", scope="reward", json=event)
            assert kept.status_code == 202, kept.get_data(as_text=True)
    return right / visits


def test_two_customer_types_get_the_arms_that_they_want(web: Web) -> None:
    campaign = web.loop.launch(
        objective="conversion", policy={"name": "linear_thompson"}, features=FEATURES
    )
    rng = random.Random(3)
    shares = []
    for _ in range(6):
        shares.append(_serve(web, rng, 80))
        web.loop.carry()
        assert web.loop.learn(campaign) is not None
        web.loop.carry()
    assert shares[0] < 0.6
    assert shares[-1] > 0.75
    found = verify(web.engine, "spring", sample=60)
    assert found.holds
    assert found.replayed == 60
    with transaction(web.engine) as session:
        contexts = set(map(tuple, session.scalars(select(Decision.context))))
        assert {context[:2] for context in contexts} == {(4096, 0), (0, 4096)}
        # The replay depends on the logged context: another one gives another simplex.
        newest = session.scalars(select(Decision).order_by(Decision.position.desc())).first()
        assert newest is not None
        assert replay(session, newest.id).same
        newest.context = [newest.context[1], newest.context[0], *newest.context[2:]]
        session.flush()
        assert not replay(session, newest.id).same
        session.rollback()


def test_attributes_that_are_missing_or_bad_become_defaults() -> None:
    plan = definition(features=FEATURES)
    one = features.ONE
    assert plan.feature_width == 4
    assert encode(plan, {}) == (0, 0, 0, 0)
    assert encode(plan, {"channel": "web", "visits": 15, "member": True}) == (0, one, one, one)
    bad = {"channel": 7, "visits": "many", "member": "yes"}
    assert encode(plan, bad) == (0, 0, 0, 0)
    assert encode(plan, {"visits": True}) == encode(plan, {"visits": 10**400}) == (0, 0, 0, 0)
    assert encode(plan, {"visits": float("nan")}) == (0, 0, 0, 0)
    assert encode(plan, {"visits": 10**9})[2] == 65_535, "cut off, not refused"
    assert encode(definition(), {"visits": 3}) == ()


def test_a_context_is_told_by_name_and_value() -> None:
    plan = definition(features=FEATURES)
    asked = {"channel": "web", "visits": 15, "member": "yes"}
    found = told(plan, encode(plan, asked))
    assert [(one.name, one.value, one.words) for one in found] == [
        ("Channel", "web", "web"), ("Visits", 15.0, "15"), ("Member", False, "no"),
    ]  # fmt: skip
    assert filled(plan, asked) == ["member"]
    other = told(plan, encode(plan, {"channel": "tv", "visits": 1000}))
    assert [(one.value, one.words) for one in other[:1]] == [(None, "none of its values")]
    assert (other[1].words, other[1].cut) == ("90 or more", True)
    assert filled(plan, {"channel": "tv", "visits": float("nan")}) == ["visits", "member"]


def test_the_log_tells_the_context_in_numbers_and_in_words(web: Web) -> None:
    web.loop.launch(policy={"name": "linear_thompson"}, objective="conversion", features=FEATURES)
    body = {"campaign": "spring", "unit": "ana", "attributes": {"channel": "web", "visits": 1e9}}
    made = web.call("POST", "/v1/decisions", scope="decide", json=body)
    web.loop.carry()
    address = f"/v1/decisions/{made.get_json()['decision_id']}"
    found = web.call("GET", address, scope="read").get_json()
    assert found["decision"]["context"] == [0, 4096, 65_535, 0]
    # Rows are redrawn together here, which may differ in the last bit.
    share = pytest.approx(found["decision"]["propensity"], abs=1e-12)
    assert found["context"] == [
        {"key": "channel", "name": "Channel", "value": "web", "filled": False,
         "probability_without": share},
        {"key": "visits", "name": "Visits", "value": 10 + 5 * 65_535 / 4096, "filled": False,
         "probability_without": share},
        {"key": "member", "name": "Member", "value": False, "filled": True,
         "probability_without": share},
    ]  # fmt: skip
    listed = web.call("GET", "/v1/campaigns/spring/decisions", scope="read").get_json()
    assert listed["decisions"][0]["context"] == [0, 4096, 65_535, 0]


def test_a_log_from_before_says_that_it_does_not_know_what_was_filled_in(web: Web) -> None:
    web.loop.launch(features=FEATURES)
    body = {"campaign": "spring", "unit": "ana"}
    made = web.call("POST", "/v1/decisions", scope="decide", json=body).get_json()
    web.loop.carry()
    with transaction(web.engine) as session:
        row = session.scalars(select(Decision)).one()
        row.why = {"masked": row.why["masked"]}
    found = web.call("GET", f"/v1/decisions/{made['decision_id']}", scope="read").get_json()
    assert [one["filled"] for one in found["context"]] == [None, None, None]
    assert [one["probability_without"] for one in found["context"]] == [None, None, None]


@pytest.mark.parametrize(
    ("changes", "field", "remedy"),
    [
        ({"policy": {"name": "linear_ucb"}}, "policy", "declare some in features"),
        ({"features": [FEATURES[0], FEATURES[0]]}, "features", "remove or rename one"),
        ({"features": [FEATURES[1] | {"scale": 0}]}, "features[0].scale", "greater than 0"),
        ({"features": [FEATURES[1] | {"scale": "wide"}]}, "features[0].scale", "number"),
        ({"features": [FEATURES[0] | {"values": ["a", "a"]}]}, "features[0].values", "remove one"),
        ({"features": [FEATURES[0] | {"values": []}]}, "features[0].values", "at least 1"),
        ({"features": [{"kind": "text", "key": "a", "name": "A"}]}, "features[0].kind", "number"),
        ({"features": [FEATURES[2] | {"key": f"k{n}"} for n in range(65)]}, "features", "64"),
    ],
)
def test_a_wrong_feature_is_refused_by_name_with_the_remedy(
    web: Web, changes: dict[str, Any], field: str, remedy: str
) -> None:
    reply = web.call("POST", "/v1/campaigns", json=DEFINITION | changes)
    assert field in fields(reply)
    assert remedy in reply.get_data(as_text=True)


def test_features_are_frozen_at_launch(web: Web) -> None:
    web.loop.launch(features=FEATURES)
    body = definition(features=FEATURES[:1]).model_dump(mode="json")
    reply = web.call("PUT", "/v1/campaigns/spring", json=body, headers={"If-Match": '"1"'})
    assert fields(reply) == ["features"]
    other = definition(features=FEATURES, policy={"name": "linear_ucb"}).model_dump(mode="json")
    reply = web.call("PUT", "/v1/campaigns/spring", json=other, headers={"If-Match": '"1"'})
    assert fields(reply) == ["policy"]
