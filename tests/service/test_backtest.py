"""Judging the recommender by what came next: beside best sellers, beside the one before."""

import datetime as dt
from typing import Any

import numpy as np
import pytest
from flask import Flask
from sqlalchemy import Engine

from bandits import recommender
from service.config import Config
from service.traits import backtest, publish, taste
from service.traits.fit import Fitted
from service.traits.history import Deeds, Receipts, Shop
from service.traits.taste import Published
from tests.service.test_console import Browser
from tests.service.test_traits import receipts
from tests.web import serving

NONE = np.zeros(0, np.int64)
BY_FASHION = 80


@pytest.fixture(autouse=True)
def _short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backtest, "DRAWS", 2)
    monkeypatch.setattr(backtest, "ITERATIONS", 2)


def of_two_kinds(customers: int) -> Shop:
    """Return the receipts of customers who buy from one half of the products each."""
    rows = list(receipts(customers))
    units, unit = np.unique([row.unit for row in rows], return_inverse=True)
    products, product = np.unique([row.product_id for row in rows], return_inverse=True)
    day = np.array([row.bought_at.date().toordinal() for row in rows])
    return shop(units, products, unit, product, day - dt.date(1970, 1, 1).toordinal())


def of_one_fashion() -> Shop:
    """Return the receipts of customers without a taste: some products sell more, to everybody."""
    draw = np.random.default_rng(5)
    chance = 1.0 / np.arange(1, BY_FASHION + 1)
    unit = draw.integers(0, 200, 3_000)
    product = draw.choice(BY_FASHION, 3_000, p=chance / chance.sum())
    units, products = (np.array([f"{n:032x}" for n in range(size)]) for size in (200, BY_FASHION))
    return shop(units, products, unit, product, draw.integers(20_000, 20_100, 3_000))


def shop(
    units: np.ndarray, products: np.ndarray, unit: np.ndarray, product: np.ndarray, day: np.ndarray
) -> Shop:
    one = np.ones(len(unit))
    department = np.full(len(products), "Tea", dtype=object)
    lines = Receipts(unit, product, one, 500 * one, 0 * one, day)
    on_sale = np.ones(len(products), bool)
    deeds = Deeds(NONE, NONE, np.zeros(0), NONE)
    return Shop(units, products, department, department, products, on_sale, lines, deeds)


def before(found: Shop, day: int) -> Shop:
    kept = found.receipts.day < day
    return found._replace(receipts=Receipts._make(column[kept] for column in found.receipts))


def fitted(found: Shop, summary: dict[str, Any], traits: dict[str, Any], **models: Any) -> Fitted:
    """Return what a test fitted by itself, to be published."""
    pace, lists = np.full(len(found.products), np.nan), np.zeros((len(found.units), 0), np.int64)
    bare = Fitted(traits, pace, None, None, NONE, lists, summary)
    return bare._replace(**models)


def judged(found: Shop, published: Published | None, last: dict[str, Any]) -> dict[str, Any]:
    told = backtest.plan(found, last)
    backtest.run(found, published, last, told)
    return told


def test_taste_is_judged_beside_best_sellers_and_the_model_before() -> None:
    whole = of_two_kinds(600)
    days = np.sort(whole.receipts.day)
    early = before(whole, int(days[int(0.8 * len(days))]))
    told = judged(early, None, {})
    assert set(told["judged"]) == {"taste", "popularity"}
    assert told["more_than"]["popularity"]["low"] > 0, "it tells the two kinds apart"
    assert told["served"] == "taste"
    assert told["searched_products"] == len(whole.products)

    model = taste.fit(early, taste.events(early), None, {}, options=told["options"])
    published = (model, early.products.tolist())
    again = judged(whole, published, told)
    assert set(again["judged"]) == {"taste", "popularity", "last"}
    assert again["after"] > told["until"], "judged by what the last one had not seen"
    assert again["options"] == told["options"], "kept while the catalogue is about as large"
    assert "last" not in judged(whole, published, told | {"until": int(days[-1])})["judged"]


def test_the_judges_are_others_than_who_chose_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backtest, "LINES", 6_000)
    sample = backtest._sampled(of_two_kinds(600))
    assert 5_900 < len(sample.receipts.unit) <= 6_000
    assert len(np.unique(sample.receipts.unit)) == len(sample.units)
    parts = backtest._cut(sample, None)
    assert not set(parts.choosing.tolist()) & set(parts.judging.tolist())
    assert parts.past.at.max() < parts.day <= parts.future.at.min()


def test_best_sellers_are_served_where_they_foresee_as_much(
    app: Flask, engine: Engine, config: Config
) -> None:
    found = of_one_fashion()
    told = judged(found, None, {})
    assert told["judged"]["taste"]["recall"] <= told["judged"]["popularity"]["recall"]
    assert told["served"] == "popularity"
    pairs, summary = taste.events(found), {"failed": {}, "recommender": told}
    model = taste.fit(found, pairs, None, summary, options=told["options"])
    model = model._replace(factors=taste.without_users(model.factors))
    popular = taste.without_users(recommender.fit("popularity", pairs))
    made = fitted(found, summary, {}, taste=model, best_sellers=popular)
    publish.publish(engine, found, made)
    with serving(config, engine) as web:
        reply = web.call("GET", "/v1/recommendations?unit=anybody&count=5", scope="decide")
    sold = np.zeros(len(found.products))
    np.add.at(sold, pairs.item, 1)
    best = found.products[np.argsort(-sold, kind="stable")[:5]].tolist()
    answer = reply.get_json()
    assert answer["ranked_by"] == "popularity"
    assert [one["product_id"] for one in answer["products"]] == best
    assert len(answer["tastes"]) == 8
    page = Browser(app).log_in("analyst").get("/recommendations").text
    assert "tells best sellers until tastes foresee more" in page
