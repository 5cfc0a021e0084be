"""Deciding in the caller's process: the server's answers, its log, and what it cannot know."""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import Engine, func, select

from service import db, decide, keys
from service.client import (
    Decision,
    LocalClient,
    RefusedError,
    Request,
    Response,
    TransportError,
    UnavailableError,
    WsgiTransport,
)
from service.config import Config
from service.messages import DecisionReply, DecisionRequest
from service.models import Decision as Row
from service.models import Outcome as Event
from service.spool import DECISION, Entry, Spool
from service.verify import verify
from tests.web import Web, fields, problem, serving

FEATURES: list[dict[str, Any]] = [
    {"kind": "number", "key": "visits", "name": "Visits", "centre": 10, "scale": 5},
    {"kind": "category", "key": "channel", "name": "Channel", "values": ["app", "web"]},
    {"kind": "boolean", "key": "member", "name": "Member"},
]
KINDS: dict[str, dict[str, Any]] = {
    "beta": {"policy": {"name": "thompson_beta"}, "objective": "conversion", "segments": []},
    "hierarchical": {"holdout": 0.2},
    "linear": {"policy": {"name": "linear_thompson"}, "features": FEATURES, "holdout": 0.1},
}
STEP = 0.05


class Line(WsgiTransport):
    """The way to the application, which can be cut."""

    def __init__(self, web: Web) -> None:
        super().__init__(web.app)
        self.up, self.statuses = True, list[int]()

    def send(self, request: Request, timeout_seconds: float) -> Response:
        if not self.up:
            raise TransportError("the line is cut")
        reply = super().send(request, timeout_seconds)
        self.statuses.append(reply.status)
        return reply


class Shop:
    """An app server with a client of its own."""

    def __init__(self, web: Web, folder: Path) -> None:
        self.web, self.line, self.folder = web, Line(web), folder
        scopes = ["local", "decide", "reward"]
        with db.transaction(web.engine) as session:
            self.key = keys.create(session, name="shop", scopes=scopes, actor="test")[1]
        web.loop.carry()

    def client(self, **options: Any) -> LocalClient:
        defaults: dict[str, Any] = {"refresh_seconds": STEP, "timeout": 10.0}
        made = LocalClient(
            "http://in-process", self.key, ["spring"], folder=self.folder,
            transport=self.line, **(defaults | options),
        )  # fmt: skip
        assert made.ready(10) or not self.line.up
        return made

    def moved(self) -> None:
        """Wait until the client has heard what there is now."""
        before = len(self.line.statuses)
        while len(self.line.statuses) < before + 3:
            time.sleep(0.01)


@pytest.fixture
def shop(config: Config, engine: Engine, tmp_path: Path) -> Iterator[Shop]:
    with serving(config, engine) as web:
        yield Shop(web, tmp_path / "local")


def asked(number: int, rng: random.Random) -> DecisionRequest:
    told: dict[str, Any] = {
        "visits": rng.choice([rng.randint(0, 40), rng.uniform(-1e6, 1e6)]),
        "channel": rng.choice(["app", "web", "shop"]),
        "member": rng.random() < 0.5,
        "recency_days": rng.randint(0, 30),
    }
    return DecisionRequest(
        campaign="spring",
        unit=f"unit-{rng.randrange(500)}",
        attributes=told,
        request_id=f"request-{number}",
        exclude_arms=("ten",) if rng.random() < 0.1 else (),
        product="p1" if rng.random() < 0.1 else None,
    )


def same(local: Decision, reply: DecisionReply) -> bool:
    told = reply.model_dump(mode="json")
    names = ("decision_id", "campaign", "arm", "offer", "propensity", "reason", "segment",
             "snapshot")  # fmt: skip
    return all(getattr(local, name) == told[name] for name in names)


@pytest.mark.parametrize("kind", KINDS)
def test_its_answers_are_the_servers_on_random_requests(shop: Shop, kind: str) -> None:
    loop, rng = shop.web.loop, random.Random(11)
    number = loop.launch(**KINDS[kind])
    loop.shop(150)
    loop.carry()
    loop.learn(number)
    loop.carry()
    requests = [asked(place, rng) for place in range(400)]
    replies = decide.decide(loop.runtime, requests)
    with shop.client() as barter:
        for request, reply in zip(requests, replies, strict=True):
            decision = barter.decide(
                "spring", request.unit, request.attributes, request_id=request.request_id,
                exclude_arms=request.exclude_arms, product=request.product,
            )  # fmt: skip
            assert same(decision, reply), (decision, reply)
        assert {reply.snapshot for reply in replies} != {0}
        assert barter.flush(20)
        assert barter.status().refused == 0
    assert loop.runtime.spool.last() < 1_000, "what the server had already it does not keep again"


def test_what_is_decided_arrives_once_and_is_learnt_from(shop: Shop) -> None:
    loop = shop.web.loop
    number = loop.launch(**KINDS["linear"])
    with shop.client(acknowledge="memory") as barter:
        made = [
            barter.decide("spring", f"u{n}", {"visits": n, "channel": "app", "member": True,
                                              "recency_days": n})
            for n in range(60)
        ]  # fmt: skip
        for decision in made:
            assert barter.outcome(decision.decision_id, "purchased", revenue_minor=3000)
        assert not barter.outcome(None, "exposed")
        assert barter.flush(20)
        # As if the answers had been lost: all of it is told again.
        barter._host.spool.note("shipped", b"0")
        assert barter.flush(20)
        assert barter.status().refused == 0
    loop.carry()
    with db.transaction(loop.engine) as session:
        assert session.scalar(select(func.count()).select_from(Row)) == 60
        assert session.scalar(select(func.count()).select_from(Event)) == 60
        ids = {str(id) for id in session.scalars(select(Row.id))}
    assert ids == {decision.decision_id for decision in made}
    assert {decision.reason for decision in made} == {"policy", "holdout"}
    loop.learn(number)
    checked = verify(loop.engine, "spring", sample=60)
    assert checked.holds
    assert checked.replayed == 60


def test_without_the_server_it_goes_on_until_it_is_stale(shop: Shop) -> None:
    shop.web.loop.launch(segments=[])
    with shop.client(stale_seconds=1.0) as barter:
        first = barter.decide("spring", "ana", request_id="cart-1")
        shop.line.up = False
        assert barter.decide("spring", "bea").reason == "policy"
        time.sleep(1.1)
        late = barter.decide("spring", "bea")
        assert (late.reason, late.arm, late.decision_id) == ("unavailable", "none", None)
        assert "too long" in str(late.error)
    # Another process, still without the server: what was brought down is there.
    with shop.client(stale_seconds=60.0) as barter:
        assert barter.decide("spring", "ana", request_id="cart-1") == first
        shop.line.up = True
        assert barter.flush(20)
    assert shop.web.loop.runtime.spool.last() == 2


def test_an_acknowledged_decision_is_on_disk(shop: Shop) -> None:
    shop.web.loop.launch(segments=[])
    with shop.client() as barter:
        shop.line.up = False
        decision = barter.decide("spring", "ana")
        kept = Spool(shop.folder).after(0, limit=10)
        ((_, kind, body),) = kept
        assert (kind, orjson.loads(body)["decision_id"]) == (DECISION, decision.decision_id)
        assert "ana" not in body.decode()


def test_a_stop_reaches_it_and_what_has_not_changed_costs_nothing(shop: Shop) -> None:
    loop = shop.web.loop
    loop.launch(segments=[])
    with shop.client() as barter:
        shop.moved()
        assert set(shop.line.statuses[1:]) == {304}
        loop.transition("kill")
        shop.moved()
        assert barter.decide("spring", "ana").reason == "killed"


@pytest.mark.parametrize(
    "changes",
    [
        {"budget_minor": 100_000, "arms": [
            {"key": "none", "name": "None", "offer": {"kind": "none"}},
            {"key": "ten", "name": "Ten", "offer": {"kind": "amount", "amount_minor": 10}}]},
        {"sticky_seconds": 3600},
        {"arms": [
            {"key": "none", "name": "None", "offer": {"kind": "none"}},
            {"key": "list", "name": "List", "offer": {
                "kind": "recommended", "tiers": [{"items": 3, "percent": 20}]}}]},
        {"features": FEATURES, "segments": []},
    ],
    ids=["budget", "sticky", "recommended", "stored attributes"],
)  # fmt: skip
def test_what_it_cannot_know_it_asks_of_the_server(shop: Shop, changes: dict[str, Any]) -> None:
    loop = shop.web.loop
    loop.launch(**({"segments": []} | changes))
    with shop.client(timeout=2.0) as barter:
        decision = barter.decide("spring", "ana")
        assert decision.reason == "policy"
        assert loop.runtime.spool.last() == 1
        assert barter._host.spool.last() == 0
        shop.line.up = False
        alone = barter.decide("spring", "ana")
        assert (alone.reason, alone.arm, alone.is_default) == ("unavailable", "none", True)


def test_a_campaign_that_reads_the_clock_is_decided_here(shop: Shop) -> None:
    rules = [{"attribute": "hour", "op": ">=", "value": 0}]
    shop.web.loop.launch(segments=[{"key": "always", "name": "Always", "rules": rules}])
    with shop.client() as barter:
        shop.line.up = False
        assert barter.decide("spring", "ana").segment == "always"


def test_bad_input_is_told_as_the_server_tells_it(shop: Shop) -> None:
    shop.web.loop.launch(segments=[])
    with shop.client(raise_errors=True, timeout=2.0) as barter:
        for unit, attributes in (
            ("", {}), ("a\x00b", {}), ("x" * 201, {}), ("ana", {"a": float("nan")}),
            ("ana", {"a": 2**60}), ("ana", {"a": [1]}), ("ana", {"a": "\x01"}),
        ):  # fmt: skip
            with pytest.raises(RefusedError):
                barter.decide("spring", unit, attributes)
        with pytest.raises(RefusedError):
            barter.outcome("no-id", "purchased")
        with pytest.raises(RefusedError, match="no campaign"):
            barter.decide("autumn", "ana")
        barter.decide("spring", "ana", request_id="one")
        with pytest.raises(RefusedError, match="409"):
            barter.decide("spring", "bea", request_id="one")
        assert barter.decide("spring", "ünï", {"täg": "ö"}).reason == "policy"
        shop.line.up = False
        with pytest.raises(UnavailableError):
            barter.decide("autumn", "ana")
    with shop.client() as barter:
        fallen = barter.decide("spring", "")
        assert (fallen.arm, fallen.is_default) == ("none", True)
    for wrong in ({"acknowledge": "never"}, {"stale_seconds": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            shop.client(**wrong)


def made_here(shop: Shop, **told: Any) -> dict[str, Any]:
    """Return a decision as a client would tell it, without telling it."""
    with shop.client() as barter:
        shop.line.up = False
        barter.decide("spring", "ana", {"recency_days": 3}, **told)
        ((_, _, body),) = barter._host.spool.after(0, limit=10)
    found: dict[str, Any] = json.loads(body)
    return found


def other(id: str) -> str:
    return f"{id[:-1]}{'0' if id[-1] != '0' else '1'}"


FORGED: dict[str, Any] = {
    "arm": lambda d: {"arm": (d["arm"] + 1) % 3},
    "simplex": lambda d: {"simplex": [0.0, 0.0, 1.0]},
    "propensity": lambda d: {"propensity": d["propensity"] + 1e-16 * 4},
    "snapshot": lambda d: {"snapshot": 99},
    "revision": lambda d: {"revision": 99},
    "decision_id": lambda d: {"decision_id": "0000ffff" + d["decision_id"][8:]},
    "mask": lambda d: {"mask": 1 << 3},
    "masked": lambda d: {"mask": 3},
    "segment": lambda d: {"segment": 2},
    "context": lambda d: {"context": [1]},
    "reason": lambda d: {"reason": "holdout"},
    "decided_at": lambda d: {"decided_at": "2099-01-01T00:00:00Z"},
    "filled": lambda d: {"filled": ["visits"]},
}


@pytest.mark.parametrize("field", FORGED)
def test_a_forged_decision_is_refused(shop: Shop, field: str) -> None:
    shop.web.loop.launch()
    true = made_here(shop)
    forged = true | FORGED[field](true)
    body = {"decisions": [true, forged]}
    refused = shop.web.call("POST", "/v1/local/decisions", scope="local", json=body)
    assert fields(refused) == [f"decisions[1].{field}"]
    assert shop.web.loop.runtime.spool.last() == 0, "nothing of the list is kept"
    told = shop.web.call("POST", "/v1/local/decisions", scope="local", json={"decisions": [true]})
    assert told.get_json() == {"accepted": 1, "duplicates": 0}


def test_another_id_draws_another_arm_sooner_or_later(shop: Shop) -> None:
    shop.web.loop.launch()
    true = made_here(shop)
    statuses = {
        shop.web.call("POST", "/v1/local/decisions", scope="local", json={"decisions": [
            true | {"decision_id": f"{true['decision_id'][:-4]}{n:04x}"}]}).status_code
        for n in range(40)
    }  # fmt: skip
    assert statuses == {202, 422}


def test_decisions_by_what_is_past_are_looked_up(shop: Shop) -> None:
    loop = shop.web.loop
    number = loop.launch()
    old = made_here(shop)
    for reply in loop.decide(*"abcdefgh"):
        loop.outcome(reply)
    loop.carry()
    loop.learn(number)
    loop.carry()
    assert loop.live.version > old["snapshot"]
    told = shop.web.call("POST", "/v1/local/decisions", scope="local", json={"decisions": [old]})
    assert told.get_json() == {"accepted": 1, "duplicates": 0}
    again = shop.web.call("POST", "/v1/local/decisions", scope="local", json={"decisions": [old]})
    assert again.get_json() == {"accepted": 0, "duplicates": 1}
    loop.carry()
    assert verify(loop.engine, "spring", sample=20).holds


def test_a_request_id_used_here_and_asked_of_the_server_repeats_or_conflicts(shop: Shop) -> None:
    shop.web.loop.launch()
    told = made_here(shop, request_id="cart-3")
    shop.web.call("POST", "/v1/local/decisions", scope="local", json={"decisions": [told]})
    ask = {"campaign": "spring", "unit": "ana", "attributes": {"recency_days": 3},
           "request_id": "cart-3"}  # fmt: skip
    again = shop.web.call("POST", "/v1/decisions", scope="decide", json=ask).get_json()
    assert (again["decision_id"], again["propensity"]) == (told["decision_id"], told["propensity"])
    clash = shop.web.call("POST", "/v1/decisions", scope="decide", json=ask | {"unit": "bea"})
    problem(clash, 409)


def test_one_entry_that_is_refused_holds_back_no_other(shop: Shop) -> None:
    loop = shop.web.loop
    loop.launch(segments=[])
    with shop.client() as barter:
        shop.line.up = False
        barter.decide("spring", "ana")
        bad = json.loads(barter._host.spool.after(0, limit=1)[0][2])
        bad |= {"decision_id": other(bad["decision_id"]), "propensity": 0.123}
        entry = Entry(DECISION, b"x" * 16, orjson.dumps(bad))
        barter._host.spool.append([entry])
        barter.decide("spring", "bea")
        shop.line.up = True
        assert barter.flush(20)
        assert barter.status().refused == 1
        assert barter._host.spool.rejected() == 1
    assert loop.runtime.spool.last() == 2


def test_who_may_not_have_it_does_not_get_it(shop: Shop) -> None:
    shop.web.loop.launch()
    for scope in ("decide", "read", "manage", "reward"):
        problem(shop.web.call("GET", "/v1/local/campaigns/spring", scope=scope), 403)
    problem(shop.web.call("GET", "/v1/local/campaigns/autumn", scope="local"), 404)
    found = shop.web.call("GET", "/v1/local/campaigns/spring", scope="local")
    assert found.headers["Cache-Control"] == "no-store"
