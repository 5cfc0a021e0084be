"""Traits: computed from receipts and interactions, published, read by decisions; and newcomers."""

import datetime as dt
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine, delete, insert, select

from bandits.customers import clv
from service import db, products, recommended
from service.config import Config
from service.contexts import recalled
from service.imports import load
from service.models import Arrival, Customer, Decision, Import, Model, Product, Transaction
from service.pseudonyms import pseudonym
from service.spool import Spool
from service.traits import arrivals, history, publish, response, schedule, stored
from service.traits.fit import fit
from service.traits.recommend import Recommender
from service.traits.taste import events
from service.traits.vectors import NAMES, TRAITS
from tests.loop import DEFINITION
from tests.web import Web, fields, serving

DAY0 = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
HALVES = 20


def receipts(customers: int = 240, *, start: int = 0) -> Iterator[load.TransactionRow]:
    """Two kinds of customers, each buying from a half of the products, some for long, some not."""
    rng = np.random.default_rng(start)
    for customer in range(start, start + customers):
        half = customer % 2
        for visit in range(1 + int(rng.geometric(0.25))):
            at = DAY0 + dt.timedelta(days=int(rng.integers(0, 100)))
            for line in range(4):
                item = f"p{half * HALVES + int(rng.integers(HALVES))}"
                paid = int(rng.integers(100, 900))
                key, basket = f"{customer}-{visit}-{line}", f"b{customer}-{visit}"
                yield load.TransactionRow(
                    key, f"u{customer}", item, basket, 1, paid, paid // 10, at
                )


@pytest.fixture
def shop(engine: Engine, config: Config) -> Engine:
    load.transactions(engine, config, receipts())
    return engine


def traits_of(engine: Engine, config: Config, unit: str) -> dict[str, Any]:
    with db.transaction(engine) as session:
        found = session.get_one(Customer, pseudonym(config.key("unit"), unit))
        return dict(found.traits)


def test_traits_are_what_the_receipts_say(shop: Engine, config: Config) -> None:
    assert schedule.refresh(shop) == 1
    rows = [row for row in receipts() if row.unit == "u3"]
    days = sorted({row.bought_at.date() for row in rows})
    newest = max(row.bought_at for row in receipts()).date()
    found = traits_of(shop, config, "u3")
    assert set(found) <= set(TRAITS)
    assert found["orders"] == len(days)
    assert found["recency_days"] == (newest - days[-1]).days
    paid = sum(row.paid_minor for row in rows)
    assert found["spend_minor"] == pytest.approx(paid, rel=1e-4)
    assert found["basket_minor"] == pytest.approx(paid / len(days), rel=1e-4)
    assert found["discount_share"] == pytest.approx(1 / 11, rel=0.01)
    assert 0 <= found["alive"] <= 1

    lines = history.read(shop).receipts
    until = int(lines.day.max())
    _, every = clv.history(lines.unit, lines.day, lines.paid, until=until, unit=7.0)
    buying = clv.fit_buying(every)
    with db.transaction(shop) as session:
        summary = stored.newest(session)
        assert summary is not None
        assert summary.summary["lifetime"]["buying"]["r"] == pytest.approx(buying.estimate[0])
        # 100 days are too few for a chance, and discounts never differ in this shop.
        assert set(summary.summary["failed"]) == {"purchase_chance", "response"}
        groups = summary.summary["personas"]
    assert sum(one["size"] for one in groups) == 240
    assert found["persona"] in {one["key"] for one in groups}
    assert all(one["name"] for one in groups)


def test_tastes_tell_the_two_kinds_of_customers_apart_and_stay_where_they_are(
    shop: Engine, config: Config
) -> None:
    schedule.refresh(shop)

    def all_tastes() -> NDArray[np.float64]:
        return np.array(
            [[traits_of(shop, config, f"u{n}")[name] for name in NAMES] for n in range(40)]
        )

    first = all_tastes()
    apart = np.abs(first[::2].mean(axis=0) - first[1::2].mean(axis=0))
    assert apart.max() > 1.5, "one direction parts them, in standard deviations"
    load.transactions(shop, config, receipts(60, start=240))
    with db.transaction(shop) as session:
        session.add(Arrival(unit=b"u", at=DAY0))
    assert schedule.refresh(shop) == 2
    with db.transaction(shop) as session:
        assert not session.scalars(select(Arrival)).all(), "the refit has read what came in"
    again = all_tastes()
    parting = int(apart.argmax())
    moved = np.abs(again - first)[:, parting].mean()
    assert moved < 0.3 * apart[parting], "a feature keeps its meaning from refit to refit"
    with db.transaction(shop) as session:
        model = stored.newest(session)
        assert model is not None
        assert 0 < model.summary["moved"] < 1


def test_the_pace_of_sales_tells_how_long_stock_lasts(shop: Engine, config: Config) -> None:
    rows = [load.ProductRow(f"p{n}", None, "Tea", None, 499, None, 80) for n in (1, 2, 999)]
    load.products(shop, rows)
    at = max(row.bought_at for row in receipts()) - dt.timedelta(days=9)
    load.transactions(shop, config, [load.TransactionRow("l", "u", "p2", "b", 1, 1, 0, at)])
    with db.transaction(shop) as session:
        session.execute(
            delete(Transaction).where(Transaction.product_id == "p2", Transaction.id != "l")
        )
    schedule.refresh(shop)
    with serving(config, shop) as web:
        web.loop.carry()
        kept = [web.loop.runtime.spool.product(row.id) for row in rows]
    now = dt.datetime.now(dt.UTC)
    sold = [row for row in receipts() if row.product_id == "p1"]
    last = max(row.bought_at for row in receipts()).date()
    recent = sum(1 for row in sold if (last - row.bought_at.date()).days < 91)
    told = [products.recalled(one or b"", now) for one in kept]
    assert told[0]["product_stock_cover_days"] == pytest.approx(80 * 91 / recent)
    assert told[1]["product_stock_cover_days"] == pytest.approx(365), (
        "one in the ten days it is sold"
    )
    assert told[2] == {"product_stock": 80, "product_price_minor": 499, "product_category": "Tea"}
    late = products.recalled(kept[0] or b"", now + dt.timedelta(days=31))
    assert late == {"product_category": "Tea"}, "an old pace is no pace"


def test_what_was_told_goes_before_what_was_computed(shop: Engine, config: Config) -> None:
    load.customers(shop, config, [("u3", {"orders": 99, "age": 40})], actor="test")
    schedule.refresh(shop)
    unit = pseudonym(config.key("unit"), "u3")
    with db.transaction(shop) as session:
        assert session.get_one(Customer, unit).attributes == {"orders": 99, "age": 40}
    with serving(config, shop) as web:
        web.loop.carry()
        known = web.loop.runtime.spool.attributes(unit)
    assert known is not None
    now = dt.datetime.now(dt.UTC)
    found = recalled(known, now)
    assert (found["orders"], found["age"]) == (99, 40)
    assert "recency_days" in found
    late = recalled(known, now + dt.timedelta(days=31))
    assert late == {"orders": 99, "age": 40}, "old traits count as unknown"


def test_products_to_offer_are_new_to_the_customer_and_on_sale(
    shop: Engine, config: Config
) -> None:
    catalogue = {f"p{n}": {"stock": 5 if n % 4 else None} for n in range(2 * HALVES - 1)}
    catalogue["p1"]["stock"] = 0
    with shop.begin() as connection:
        connection.execute(
            insert(Product), [{"id": key, **held} for key, held in catalogue.items()]
        )
    schedule.refresh(shop)
    unit = pseudonym(config.key("unit"), "u3")
    with serving(config, shop) as web:
        web.loop.carry()
        kept = web.loop.runtime.spool.recommended(unit)
        popular = web.loop.runtime.catalogue.popular
    assert kept is not None
    listed = recommended.recalled(kept, dt.datetime.now(dt.UTC))
    bought = {row.product_id for row in receipts() if row.unit == "u3"}
    assert len(listed) == min(30, len(catalogue.keys() - bought - {"p1"}))
    assert not {*bought, "p1", "p39"} & set(listed), "known, out of stock, not in the catalogue"
    of_its_kind = {f"p{n}" for n in range(HALVES, 2 * HALVES - 1)} - bought
    assert set(listed[: len(of_its_kind)]) == of_its_kind
    assert not {"p1", "p39"} & set(popular)
    customers = Counter(pair[1] for pair in {(row.unit, row.product_id) for row in receipts()})
    counts = [customers[key] for key in popular]
    assert counts == sorted(counts, reverse=True)
    assert len(counts) == 30
    assert recommended.recalled(kept, dt.datetime.now(dt.UTC) + dt.timedelta(days=31)) == []


def test_too_little_to_fit_says_why_and_the_rest_goes_on(engine: Engine, config: Config) -> None:
    rows = [row for row in receipts(6) if row.id.split("-")[1] == "0"]
    load.transactions(engine, config, rows)
    schedule.refresh(engine)
    assert traits_of(engine, config, "u0")["orders"] == 1
    with db.transaction(engine) as session:
        model = stored.newest(session)
        assert model is not None
        assert set(model.summary["failed"]) == {
            "lifetime", "personas", "elasticity", "purchase_chance", "taste", "backtest",
            "response",
        }  # fmt: skip
        assert "100 needed" in model.summary["failed"]["taste"]


def test_a_refit_is_due_when_enough_has_come_in(shop: Engine, config: Config) -> None:
    def due(days: float = 0.0) -> bool:
        with db.transaction(shop) as session:
            return schedule.due(session, now=dt.datetime.now(dt.UTC) + dt.timedelta(days=days))

    def wait_for(rows: int) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with db.transaction(shop) as session:
                if schedule.arrived(session) >= rows:
                    return
            time.sleep(0.1)
        raise AssertionError("the database has not counted the rows")

    size = sum(1 for _ in receipts())
    wait_for(size)
    assert due()
    with db.transaction(shop) as session:
        session.add(Import(kind="transactions", name="f", state="reading", bytes=1, digest="d",
                           settings={}, actor="test"))  # fmt: skip
    assert not due(), "a file is being read: there will be more in a moment"
    with db.transaction(shop) as session:
        session.scalars(select(Import)).one().state = "done"
    schedule.refresh(shop)
    assert not due()
    assert not due(2.0), "nothing has come in since"
    load.transactions(shop, config, receipts(5, start=240))
    wait_for(size + 1)
    assert not due()
    assert due(2.0), "a day later a little is enough"
    load.transactions(shop, config, receipts(300, start=300))
    wait_for(2 * size)
    assert not due(), "the last one has just been"
    assert due(0.5)


def test_only_the_last_versions_are_kept(shop: Engine) -> None:
    found = history.read(shop)
    fitted = fit(found)
    for _ in range(5):
        publish.publish(shop, found, fitted)
    with db.transaction(shop) as session:
        versions = set(session.scalars(select(Model.version)))
    assert versions == {3, 4, 5}


def test_a_publication_that_is_cut_short_is_still_due(
    shop: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object) -> None:
        raise RuntimeError

    found = history.read(shop)
    monkeypatch.setattr(publish, "_store_paces", cut)
    with pytest.raises(RuntimeError):
        publish.publish(shop, found, fit(found))
    with db.transaction(shop) as session:
        assert stored.newest_version(session) == 0


def test_interactions_count_by_what_they_say(engine: Engine, config: Config) -> None:
    now = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    deeds = [("a", "view"), ("a", "cart"), ("b", "return"), ("b", "view")]
    with engine.begin() as connection:
        load.take(connection, "interactions", [
            (f"e{n}", b"u" * 16, product, kind, None, now, None)
            for n, (product, kind) in enumerate(deeds)
        ])  # fmt: skip
    found = history.read(engine)
    pairs = events(found)
    weight = dict(zip(found.products[pairs.item].tolist(), pairs.value.tolist(), strict=True))
    assert weight == {"a": pytest.approx(np.log1p(3.0)), "b": pytest.approx(np.log1p(1.0))}


@pytest.fixture
def web(config: Config, shop: Engine) -> Iterator[Web]:
    schedule.refresh(shop)
    with serving(config, shop) as made:
        yield made


def _recommended(web: Web, unit: str, **query: object) -> dict[str, object]:
    reply = web.call(
        "GET", "/v1/recommendations", scope="decide", query_string={"unit": unit} | query
    )
    assert reply.status_code == 200, reply.get_data(as_text=True)
    found: dict[str, object] = reply.get_json()
    return found


def _of_half(found: dict[str, object], half: int) -> int:
    products = found["products"]
    assert isinstance(products, list)
    return sum(int(one["product_id"][1:]) // HALVES == half for one in products)


def test_a_newcomer_is_known_by_three_clicks_at_once(web: Web) -> None:
    unknown = _recommended(web, "nobody")
    assert (unknown["version"], unknown["events"]) == (1, 0)
    assert isinstance(unknown["products"], list)
    assert len(unknown["products"]) == 10
    for half in (0, 1):
        clicks = [
            {"unit": f"new-{half}", "product_id": f"p{half * HALVES + n}", "kind": "click",
             "at": "2026-03-01T10:00:00Z"} for n in range(3)
        ]  # fmt: skip
        web.call("POST", "/v1/interactions", scope="reward", json={"interactions": clicks})
        found = _recommended(web, f"new-{half}", count=5)
        assert found["events"] == 3
        assert _of_half(found, half) == 5
        seen = {f"p{half * HALVES + n}" for n in range(3)}
        assert isinstance(found["products"], list)
        assert not seen & {one["product_id"] for one in found["products"]}
        again = _recommended(web, f"new-{half}", count=40, bought=True)
        assert isinstance(again["products"], list)
        assert seen <= {one["product_id"] for one in again["products"]}
    assert fields(web.call("GET", "/v1/recommendations?unit=a&count=0", scope="decide")) == [
        "count"
    ]


def _click(web: Web, unit: str, *products: str) -> None:
    clicks = [
        {"unit": unit, "product_id": product, "kind": "click", "at": "2026-03-01T10:00:00Z"}
        for product in products
    ]
    reply = web.call("POST", "/v1/interactions", scope="reward", json={"interactions": clicks})
    assert reply.status_code == 200


def test_a_newcomers_clicks_reach_decisions_without_a_refit(web: Web) -> None:
    keys = NAMES[:2]
    features = [
        {"kind": "number", "key": key, "name": key, "centre": 0, "scale": 1} for key in keys
    ]
    offer = {"kind": "recommended", "tiers": [{"items": 30, "percent": 10}]}
    arms = [DEFINITION["arms"][0], {"key": "tiers", "name": "Tiers", "offer": offer}]
    web.loop.launch(arms=arms, segments=[], features=features)

    def decided() -> Decision:
        web.loop.carry()
        (made,) = web.loop.decide("new")
        web.loop.carry()
        with db.transaction(web.engine) as session:
            return session.scalars(select(Decision).where(Decision.id == made.decision_id)).one()

    recommender = Recommender()
    before = decided()
    assert before.why["filled"] == list(keys)
    assert arrivals.fold_in(web.engine, recommender) == 0
    _click(web, "new", "p0", "p1", "p2")
    assert arrivals.fold_in(web.engine, recommender) == 1
    assert arrivals.fold_in(web.engine, recommender) == 0
    after = decided()
    tastes = _recommended(web, "new")["tastes"]
    assert isinstance(tastes, dict)
    assert after.why["filled"] == []
    assert [one / 2**12 for one in after.context] == pytest.approx(
        [tastes[key] for key in keys], abs=0.001
    )
    kept = web.loop.runtime.spool.recommended(web.loop.runtime.pseudonym("new"))
    listed = recommended.recalled(kept or b"", dt.datetime.now(dt.UTC))
    assert len(listed) == 30
    assert {int(one[1:]) // HALVES for one in listed[:5]} == {0}
    assert not {"p0", "p1", "p2"} & set(listed)


def test_of_a_known_customer_news_change_what_is_told_by_taste_and_nothing_else(
    web: Web, config: Config
) -> None:
    before = traits_of(web.engine, config, "u3")
    with db.transaction(web.engine) as session:
        session.add_all(Product(id=f"p{n}", stock=n) for n in range(2 * HALVES - 1))
        moment = arrivals.read_until(session)
    _click(web, "u3", *(f"p{n}" for n in range(1, 12)))
    recommender = Recommender()
    assert arrivals.fold_in(web.engine, recommender) == 1
    after = traits_of(web.engine, config, "u3")
    assert {name for name in after if after[name] != before[name]} == set(NAMES)
    with db.transaction(web.engine) as session:
        listed = session.get_one(Customer, pseudonym(config.key("unit"), "u3")).recommended
    assert "p12" in listed
    assert not {"p0", "p39"} & set(listed), "out of stock, not in the catalogue"
    arrivals.settle(web.engine, moment)
    assert arrivals.fold_in(web.engine, recommender) == 1, "came while the refit was at it"
    arrivals.settle(web.engine, dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1))
    assert arrivals.fold_in(web.engine, recommender) == 0, "the refit has read it"


def test_what_was_found_can_be_read(web: Web) -> None:
    found = web.call("GET", "/v1/traits", scope="read").get_json()
    assert found["version"] == 1
    assert found["traits"] == TRAITS
    assert sum(one["size"] for one in found["found"]["personas"]) == 240


def test_a_newcomers_products_and_tastes_take_less_than_five_milliseconds(web: Web) -> None:
    recommender = Recommender()
    with db.transaction(web.engine) as session:
        recommender.for_unit(session, b"x" * 16, 10)
    deeds = [("p1", "click"), ("p2", "view"), ("p3", "cart")]
    seconds = []
    for _ in range(200):
        started = time.perf_counter()
        found = recommender.fold_in(deeds, 10)
        seconds.append(time.perf_counter() - started)
    assert len(found.products) == 10
    assert tuple(found.tastes) == NAMES
    assert float(np.median(seconds)) < 0.005


def test_a_restart_of_the_local_file_brings_the_traits_back(shop: Engine, config: Config) -> None:
    schedule.refresh(shop)
    with serving(config, shop) as web:
        web.loop.carry()
    unit = pseudonym(config.key("unit"), "u3")
    again = Spool(config.data)
    try:
        known = again.attributes(unit)
        assert known is not None
        assert b'"recency_days"' in known
    finally:
        again.close()


def test_serving_processes_import_nothing_that_fits() -> None:
    code = (
        "import sys, service.app;"
        "print([name for name in ('jax', 'lightgbm', 'pyarrow', 'scipy.stats', 'scipy.optimize',"
        " 'bandits.customers.clv', 'service.traits.fit', 'holidays') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "[]"


def _answering(
    rng: np.random.Generator, *, weeks: int = 40
) -> tuple[history.Shop, NDArray[np.bool_]]:
    """Customers who buy bread weekly, half of whom buy more where it is discounted; 20 never do."""
    units, kinds = 120, 4
    eager, buys = np.arange(units) % 2 == 0, np.arange(units) < 100
    depth = rng.choice([0.0, 0.1, 0.3], (kinds, weeks))
    odds = -1.5 + np.where(eager, 6.0, 1.0)[:, None, None] * depth
    bought = buys[:, None, None] & (rng.random((units, kinds, weeks)) < 1 / (1 + np.exp(-odds)))
    unit, product, week = np.nonzero(bought)
    came, when = np.nonzero(np.ones((units, weeks)))
    # Everybody comes every week, if only for product 4, which is in no category.
    lines = history.Receipts(
        np.concatenate([unit, came]),
        np.concatenate([product, np.full(len(came), kinds)]),
        np.ones(len(unit) + len(came)),
        np.concatenate([100 * (1 - depth[product, week]), np.full(len(came), 100.0)]),
        np.concatenate([100 * depth[product, week], np.zeros(len(came))]),
        np.concatenate([week, when]) * 7,
    )
    category = np.array(["Bread"] * kinds + [""], dtype=object)
    names = np.array([f"p{n}" for n in range(kinds + 1)])
    none = np.zeros(0, np.int64)
    shop = history.Shop(
        np.array([f"{n:032x}" for n in range(units)]), names, category, category, names,
        np.ones(kinds + 1, np.bool_), lines, history.Deeds(none, none, np.zeros(0), none),
    )  # fmt: skip
    return shop, eager


def test_who_answers_to_discounts_is_told_by_category_and_by_all_other_traits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shop, eager = _answering(np.random.default_rng(0))
    traits = {
        "orders": np.full(120, 40.0),
        "taste_1": eager + np.random.default_rng(1).normal(size=120) / 5,
    }
    found, told, left_out = response.by_category(shop, traits)
    assert left_out == []
    assert [one["trait"] for one in told] == list(found) == ["response_bread"]
    fifth = found["response_bread"]
    assert np.bincount(fifth, minlength=6)[1:].tolist() == [24] * 5
    assert fifth[eager].min() >= 3 >= fifth[~eager].max()
    # The last 20 never bought bread: their other traits foretell it.
    assert fifth[100:][eager[100:]].mean() > fifth[100:][~eager[100:]].mean() + 1
    assert 0.6 < told[0]["most"] < 1.2
    assert 0.0 < told[0]["least"] < 0.3
    monkeypatch.setattr(response, "MOST_ROWS", 8_000)
    few = response.by_category(shop, traits)[0]["response_bread"]
    assert few[eager].mean() > few[~eager].mean() + 1.5
    flat = shop.receipts._replace(discount=np.zeros_like(shop.receipts.discount))
    left_out = response.by_category(shop._replace(receipts=flat), traits).left_out
    assert left_out == [{"category": "Bread", "why": "discounts on it hardly ever changed"}]
    monkeypatch.setattr(response, "LEAST_APART", 9.0)
    found, told, left_out = response.by_category(shop, traits)
    assert (found, told) == ({}, [])
    assert "too alike: at 10 % off, purchases change by +" in left_out[0]["why"]
    shop.categories[0] = "bread!"
    monkeypatch.setattr(response, "LEAST_APART", 0.0)
    monkeypatch.setattr(response, "FEWEST_LINES", 100)
    found, _, left_out = response.by_category(shop, traits)
    assert list(found) == ["response_bread"]
    assert "in punctuation only" in left_out[0]["why"]
