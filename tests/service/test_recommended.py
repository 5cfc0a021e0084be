"""Offers on recommended products: which products, for whom, and that others pay nothing for it."""

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import Engine, select

from service import db, recommended
from service.client import Client, OfferedProduct, WsgiTransport
from service.config import Config
from service.decide import decide
from service.definition import RecommendedOffer
from service.messages import DecisionReply, DecisionRequest
from service.models import Decision, Product
from service.spool import Spool
from service.verify import verify
from tests.loop import DEFINITION
from tests.web import Web, fields, serving

TIERS = [{"items": 1, "percent": 20}, {"items": 2, "percent": 10}]
OFFER: dict[str, Any] = {"kind": "recommended", "tiers": TIERS}
ARMS = [
    {"key": "none", "name": "No discount", "offer": {"kind": "none"}},
    {"key": "steep", "name": "Steep", "offer": OFFER},
]
ALWAYS = {"name": "fixed_split", "options": {"shares": [0, 1]}}
NOW = dt.datetime.now(dt.UTC)


@pytest.mark.parametrize(
    ("listed", "named", "told"),  # capitals are sold out
    [
        ("abcd", None, {"a": 20, "b": 10, "c": 10}),
        ("ab", None, {"a": 20, "b": 10}),
        ("", None, {}),
        ("abcd", "xdyab", {"a": 20, "b": 10, "d": 10}),
        ("abcd", "xdyx", {"d": 20, "x": 10, "y": 10}),
        ("abcd", "", {}),
        ("AbcD", None, {"b": 20, "c": 10}),
        ("ABCDEFGHIJab", None, {"a": 20, "b": 10}),
        ("aBcd", "XxyBa", {"a": 20, "x": 10, "y": 10}),
    ],
)
def test_tiers_take_what_there_is_the_customers_own_first(
    listed: str, named: str | None, told: dict[str, int]
) -> None:
    asked: list[str] = []

    def sold_out(some: Sequence[str]) -> set[str]:
        asked.extend(some)
        return {one for one in some if one.isupper()}

    found = recommended.tiered(RecommendedOffer.model_validate(OFFER), listed, named, sold_out)
    assert len(asked) == len(set(asked))
    assert {one.product_id: one.percent for one in found} == told
    assert [one.product_id for one in found] == list(told)


@pytest.fixture
def web(config: Config, engine: Engine) -> Iterator[Web]:
    """A campaign that always serves three products, one customer's list, and everyone's."""
    with serving(config, engine) as made:
        made.loop.launch(arms=ARMS, segments=[], policy=ALWAYS, floor=0)
        spool, unit = made.loop.runtime.spool, made.loop.runtime.pseudonym("ana")
        spool.store_recommended([(unit, recommended.kept(["p1", "p2", "p3", "p4"], NOW))])
        spool.write({"popular": b'["q1","q2","q3"]'})
        made.loop.runtime.catalogue.refresh()
        yield made


def named(reply: DecisionReply) -> list[str]:
    return [one.product_id for one in reply.products]


def test_known_and_unknown_customers_get_products_by_the_newest_lists(web: Web) -> None:
    (ana,) = web.loop.decide("ana")
    assert [(one.product_id, one.percent) for one in ana.products] == [
        ("p1", 20), ("p2", 10), ("p3", 10),
    ]  # fmt: skip
    assert named(web.loop.decide("bea")[0]) == ["q1", "q2", "q3"]
    (late,) = decide(
        web.loop.runtime,
        [DecisionRequest(campaign="spring", unit="ana")],
        now=NOW + dt.timedelta(days=31),
    )
    assert named(late) == ["q1", "q2", "q3"], "what was computed long ago counts as unknown"
    assert named(web.loop.decide("ana", products=("x", "p3"))[0]) == ["p3", "x"]


def test_what_sells_out_is_left_out_as_soon_as_the_catalogue_says_so(web: Web) -> None:
    stock = {"p1": 4, "p2": 0, "q1": None, "q2": 0}
    with db.transaction(web.engine) as session:
        session.add_all(Product(id=key, stock=left) for key, left in stock.items())
    web.loop.carry()
    assert named(web.loop.decide("ana")[0]) == ["p1", "p3", "p4"]
    assert named(web.loop.decide("bea")[0]) == ["q1", "q3"]
    assert named(web.loop.decide("bea", products=("p2", "p1"))[0]) == ["p1"]


def test_a_repeat_names_the_same_products_and_the_log_has_them(web: Web) -> None:
    (first,) = web.loop.decide("ana", request_id="cart-1", products=("p4", "x"))
    unit = web.loop.runtime.pseudonym("ana")
    web.loop.runtime.spool.store_recommended([(unit, recommended.kept(["z"], NOW))])
    assert web.loop.decide("ana", request_id="cart-1", products=("p4", "x")) == [first]
    assert named(web.loop.decide("ana")[0]) == ["z"]
    other = {"campaign": "spring", "unit": "ana", "request_id": "cart-1", "products": ["p4"]}
    reply = web.call("POST", "/v1/decisions", scope="decide", json=other)
    assert fields(reply, 409) == ["request_id"]
    web.loop.carry()
    why = web.call("GET", f"/v1/decisions/{first.decision_id}", scope="read").get_json()
    assert why["products"] == [
        {"product_id": "p4", "percent": 20.0}, {"product_id": "x", "percent": 10.0},
    ]  # fmt: skip
    assert why["replay"]["same"] is True
    assert verify(web.engine, "spring", sample=9).holds


def test_the_client_names_products_and_tells_the_discount(web: Web) -> None:
    keys = {scope: web.keys[scope] for scope in ("decide", "reward")}
    client = Client(
        "http://barter", keys["decide"], transport=WsgiTransport(web.app), raise_errors=True
    )
    made = client.decide("spring", "ana", products=["p2", "x"])
    assert made.products == (OfferedProduct("p2", 20.0), OfferedProduct("x", 10.0))
    assert client.decide("spring", "ana", products=[]).products == ()
    till = Client(
        "http://barter", keys["reward"], transport=WsgiTransport(web.app), raise_errors=True
    )
    assert till.outcome(
        made.decision_id, "purchased", revenue_minor=4000, discount_minor=310, event_id="o-1"
    )
    web.loop.carry()
    live = web.loop.runtime.catalogue.campaign("spring")
    assert live is not None
    web.loop.learn(live.id)
    why = web.call("GET", f"/v1/decisions/{made.decision_id}", scope="read").get_json()
    assert why["outcomes"][0]["discount_minor"] == 310
    assert (why["reward"]["discount_minor"], why["reward"]["profit_minor"]) == (310, 1290)


def test_what_makes_no_sense_is_refused_with_its_field(web: Web) -> None:
    ask = {"campaign": "spring", "unit": "ana", "products": ["p"] * 201}
    assert fields(web.call("POST", "/v1/decisions", scope="decide", json=ask)) == ["products"]
    (made,) = web.loop.decide("ana")
    event = {"event_id": "e", "decision_id": str(made.decision_id), "kind": "returned",
             "revenue_minor": 100, "discount_minor": 5}  # fmt: skip
    reply = web.call("POST", "/v1/outcomes", scope="reward", json=event)
    assert fields(reply) == ["discount_minor"]


def test_other_campaigns_read_no_list(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a list was read")

    monkeypatch.setattr(Spool, "recommended", refuse)
    plan = DEFINITION | {"key": "plain", "segments": []}
    assert web.call("POST", "/v1/campaigns", json=plan).status_code == 201
    assert web.call("POST", "/v1/campaigns/plain/launch").status_code == 200
    web.loop.carry()
    (made,) = decide(web.loop.runtime, [DecisionRequest(campaign="plain", unit="ana")])
    assert (made.reason, made.products) == ("policy", ())
    web.loop.carry()
    with web.engine.connect() as connection:
        assert connection.scalar(select(Decision.why)) == {"masked": {}}
