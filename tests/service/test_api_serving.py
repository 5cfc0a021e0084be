"""Decisions and outcomes over HTTP: one and many, idempotent, without Postgres, counted."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine

from bandits import policies
from bandits.features import ONE
from bandits.types import Contexts, Policy
from service.config import Config
from tests.loop import DEFINITION
from tests.web import Web, fields, problem, serving


@pytest.fixture
def web(config: Config, engine: Engine) -> Iterator[Web]:
    with serving(config, engine) as made:
        made.loop.launch()
        yield made


def decide(web: Web, body: dict[str, Any], **request: Any) -> Any:
    return web.call("POST", "/v1/decisions", scope="decide", json=body, **request)


def report(web: Web, body: dict[str, Any]) -> Any:
    return web.call("POST", "/v1/outcomes", scope="reward", json=body)


def kept(web: Web) -> int:
    return web.loop.runtime.spool.last()


def test_one_unit_gets_an_arm_with_its_propensity(web: Web) -> None:
    reply = decide(web, {"campaign": "spring", "unit": "u1", "attributes": {"recency_days": 3}})
    assert reply.status_code == 200
    made = reply.get_json()
    assert made["campaign"] == "spring"
    assert made["segment"] == "loyal"
    assert made["reason"] == "policy"
    assert 0 < made["propensity"] < 1
    assert made["offer"]["kind"] in ("none", "percentage")
    assert made["expires_at"].endswith("Z")


def test_arms_share_what_they_learn_by_the_depth_of_their_offers(web: Web) -> None:
    """Nobody has to say how deep the offers are, and what is said wins."""
    member = {"kind": "boolean", "key": "member", "name": "Member"}
    plan = DEFINITION | {"segments": [], "features": [member], "floor": 0.0, "objective": "revenue"}
    depths = {"by-offer": [0.0, 0.1, 0.2], "by-hand": [0.2, 0.0, 0.1]}
    for key, depth in depths.items():
        options = {"sharing": "shared"} | ({"depth": depth} if key == "by-hand" else {})
        policy = {"name": "linear_thompson", "options": options}
        made = web.call("POST", "/v1/campaigns", json=plan | {"key": key, "policy": policy})
        assert made.status_code == 201, made.json
        assert web.call("POST", f"/v1/campaigns/{key}/launch").status_code == 200
    web.loop.carry()
    for key, depth in depths.items():
        asked = [
            {"campaign": key, "unit": f"u{n}", "attributes": {"member": n % 2 == 0}}
            for n in range(90)
        ]
        served = decide(web, {"decisions": asked}).get_json()["decisions"]
        bought = [
            {"event_id": f"{key}-{n}", "decision_id": one["decision_id"], "kind": "purchased",
             "revenue_minor": 3000}
            for n, one in enumerate(served) if n % (3 if one["arm"] == "ten" else 4) == 0
        ]  # fmt: skip
        assert report(web, {"outcomes": bought}).status_code == 202
        web.loop.carry()
        live = web.loop.runtime.catalogue.campaign(key)
        assert live is not None
        web.loop.learn(live.id)
        web.loop.carry()
        (last,) = decide(web, {"decisions": [asked[0] | {"unit": "last"}]}).get_json()["decisions"]
        web.loop.carry()
        live = web.loop.runtime.catalogue.campaign(key)
        assert live is not None
        model, other = (_linear(one) for one in (depth, [0.1, 0.0, 0.25]))
        belief = model.believe(live.learnt)
        assert not np.allclose(belief.mean, other.believe(live.learnt).mean), "depths matter"
        contexts = Contexts(np.zeros(1, np.int32), np.array([[ONE]]))
        p = model.probabilities(belief, contexts, np.ones((1, 3), bool))[0]
        assert last["propensity"] == pytest.approx(p[["none", "ten", "twenty"].index(last["arm"])])
        why = web.call("GET", f"/v1/decisions/{last['decision_id']}", scope="read").get_json()
        assert [arm["probability"] for arm in why["arms"]] == pytest.approx(p.tolist())
        assert why["replay"]["same"] is True


def _linear(depth: list[float]) -> Policy:
    """Arms that share, told their depths."""
    return policies.make(
        "linear_thompson", arms=3, segments=1, features=1, sharing="shared", depth=depth
    )


def test_a_list_is_answered_in_its_order(web: Web) -> None:
    wanted = [{"campaign": "spring", "unit": f"u{n}", "request_id": f"r{n}"} for n in range(50)]
    first = decide(web, {"decisions": wanted}).get_json()["decisions"]
    again = decide(web, {"decisions": wanted[::-1]}).get_json()["decisions"]
    assert first == again[::-1]
    assert kept(web) == 50, "a repeat keeps nothing"
    too_many = [{"campaign": "spring", "unit": "u"}] * 1001
    assert fields(decide(web, {"decisions": too_many})) == ["decisions"]
    assert fields(decide(web, {"decisions": []})) == ["decisions"]


def test_an_idempotency_key_is_the_request_id_of_one_decision(web: Web) -> None:
    body = {"campaign": "spring", "unit": "u1"}
    header = {"Idempotency-Key": "cart-1"}
    first = decide(web, body, headers=header).get_json()
    assert decide(web, body, headers=header).get_json() == first
    assert decide(web, body | {"request_id": "cart-1"}).get_json() == first
    other = decide(web, body | {"unit": "u2"}, headers=header)
    assert fields(other, 409) == ["request_id"]
    both = decide(web, body | {"request_id": "cart-2"}, headers=header)
    assert fields(both) == ["Idempotency-Key"]
    assert fields(decide(web, {"decisions": [body]}, headers=header)) == ["Idempotency-Key"]
    long = decide(web, body, headers={"Idempotency-Key": "k" * 201})
    assert fields(long) == ["Idempotency-Key"]


def test_an_unknown_campaign_refuses_all_and_names_itself(web: Web) -> None:
    body = {"campaign": "nope", "unit": "u"}
    assert fields(decide(web, body), 404) == ["campaign"]
    many = {"decisions": [{"campaign": "spring", "unit": "u"}, body]}
    assert fields(decide(web, many), 404) == ["decisions[1].campaign"]
    assert kept(web) == 0


def test_a_bad_field_deep_in_a_list_is_named(web: Web) -> None:
    good = {"campaign": "spring", "unit": "u"}
    bad = [
        good,
        good | {"unit": 7},
        good | {"attributes": {"age": [1]}},
        {"campaign": "spring"},
        good | {"extra": 1},
        good | {"campaign": "Not a key"},
        good | {"exclude_arms": ["none", ""]},
    ]
    assert fields(decide(web, {"decisions": bad})) == [
        "decisions[1].unit",
        "decisions[2].attributes.age",
        "decisions[3].unit",
        "decisions[4].extra",
        "decisions[5].campaign",
        "decisions[6].exclude_arms[1]",
    ]
    assert kept(web) == 0


def test_outcomes_are_taken_once(web: Web) -> None:
    made = decide(web, {"campaign": "spring", "unit": "u1"}).get_json()
    event = {"event_id": "e1", "decision_id": made["decision_id"], "kind": "purchased",
             "revenue_minor": 3000, "occurred_at": "2026-03-02T18:21:05+01:00"}  # fmt: skip
    taken = report(web, event)
    assert (taken.status_code, taken.get_json()) == (202, {"accepted": 1, "duplicates": 0})
    more = {"outcomes": [event, event | {"event_id": "e2", "kind": "returned"}]}
    assert report(web, more).get_json() == {"accepted": 1, "duplicates": 1}
    changes: list[dict[str, Any]] = [
        {"revenue_minor": 12.5}, {"occurred_at": "yesterday"}, {"occurred_at": 1700000000},
        {"kind": "stolen"}, {"margin_minor": 10**12}, {"occurred_at": "2026-01-01T00:00:00"},
    ]  # fmt: skip
    bad = [event | change for change in changes]
    assert fields(report(web, {"outcomes": bad})) == [
        "outcomes[0].revenue_minor", "outcomes[1].occurred_at", "outcomes[2].occurred_at",
        "outcomes[3].kind", "outcomes[4].margin_minor", "outcomes[5].occurred_at",
    ]  # fmt: skip


def test_ids_that_no_decision_has_are_refused(web: Web) -> None:
    for foreign in (
        "00000000-0000-0000-0000-000000000000",
        "2f1c8e0a-77f4-4a52-9d1e-3a2b1c0d9e8f",
        "ffffffff-7c4b-8f1a-9a53-52b1a5b5d0c4",
    ):
        event = {"event_id": "e", "decision_id": foreign, "kind": "clicked"}
        assert fields(report(web, {"outcomes": [event]})) == ["outcomes[0].decision_id"]
    early = {"event_id": "e", "decision_id": "00000001-7c4b-8f1a-9a53-52b1a5b5d0c4",
             "kind": "clicked"}  # fmt: skip
    assert report(web, early).status_code == 202, "it may come before its decision"
    web.loop.carry()
    assert web.loop.runtime.spool.rejected() == 0


def test_stored_attributes_choose_the_segment_unless_the_request_says_otherwise(web: Web) -> None:
    body = {"customers": [{"unit": "u1", "attributes": {"recency_days": 2}}]}
    assert web.call("POST", "/v1/customers", json=body).get_json() == {"stored": 1}
    web.loop.carry()
    ask = {"campaign": "spring", "unit": "u1"}
    assert decide(web, ask).get_json()["segment"] == "loyal"
    old = decide(web, ask | {"attributes": {"recency_days": 90}}).get_json()
    assert old["segment"] == "everyone"


def test_serving_goes_on_while_postgres_is_away(web: Web, database_url: str) -> None:
    web.app.extensions["barter.engine"].dispose()
    web.app.extensions["barter.engine"] = _nowhere()
    made = decide(web, {"campaign": "spring", "unit": "u1"})
    assert made.status_code == 200
    event = {"event_id": "e", "decision_id": made.get_json()["decision_id"], "kind": "clicked"}
    assert report(web, event).status_code == 202
    refused = web.call("GET", "/v1/campaigns", scope="read")
    assert problem(refused, 503)["title"] == "Temporarily unavailable"
    assert int(refused.headers["Retry-After"]) > 0
    assert web.call("GET", "/readyz", scope=None).status_code == 200


def _nowhere() -> Engine:
    from service import db

    return db.engine("postgresql://nobody@127.0.0.1:1/none", connect_timeout_seconds=2)


def test_what_was_served_is_counted(web: Web) -> None:
    def counted() -> tuple[float, str]:
        text = web.call("GET", "/metrics", scope="read").get_data(as_text=True)
        lines = [one for one in text.splitlines() if one.startswith("bandit_decisions_total{")]
        return sum(float(one.split()[-1]) for one in lines if 'campaign="spring"' in one), text

    before, _ = counted()
    for number in range(3):
        decide(web, {"campaign": "spring", "unit": f"u{number}"})
    after, text = counted()
    assert after == before + 3
    assert 'bandit_request_seconds_bucket{le="0.001",operation="create_decisions"' in text


def test_health_and_readiness(web: Web) -> None:
    assert web.call("GET", "/healthz", scope=None).get_json() == {"status": "ok"}
    ready = web.call("GET", "/readyz", scope=None).get_json()
    assert ready["status"] == "ready"
    assert ready["catalogue"]["campaigns"] == 1
