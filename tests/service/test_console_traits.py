"""The console's pages of what was found in receipts: personas, elasticities, and a customer's."""

import re
from collections.abc import Iterator

from flask import Flask
from sqlalchemy import Engine

from service import db
from service.config import Config
from service.imports import load
from service.models import Model
from service.pseudonyms import pseudonym
from service.traits import schedule, stored
from tests.service.test_console import Browser
from tests.service.test_traits import receipts


def test_before_anything_was_computed_the_pages_say_how_to_begin(app: Flask) -> None:
    browser = Browser(app).log_in("analyst")
    assert "No personas yet" in browser.get("/personas").text
    assert "No elasticities yet" in browser.get("/elasticities").text
    assert "No recommender yet" in browser.get("/recommendations").text
    for picture in ("/elasticities/departments.svg", "/recommendations/foresight.svg"):
        assert browser.client.get(picture).status_code == 404


def _eager() -> Iterator[load.TransactionRow]:
    """Receipts in weeks at 0, 10 or 20 % off; half the customers buy little at the full price."""
    for row in receipts():
        tenths = row.bought_at.isocalendar().week % 3
        if tenths or row.id.endswith("-0") or int(row.unit[1:]) % 4 < 2:
            yield row._replace(discount_minor=row.paid_minor * tenths // 10)


def test_personas_prices_and_a_customers_page_show_what_was_found(
    app: Flask, engine: Engine, config: Config
) -> None:
    goods = [
        load.ProductRow(f"p{n}", "Tea" if n < 20 else "Pots", None, f"Item {n}", 500)
        for n in range(40)
    ]
    load.products(engine, goods)
    load.transactions(engine, config, _eager())
    schedule.refresh(engine)
    with db.transaction(engine) as session:
        found = stored.newest(session)
        assert found is not None
        groups, told = found.summary["personas"], found.summary["elasticity"]

    browser = Browser(app).log_in("analyst")
    page = browser.get("/personas").text
    for one in groups:
        assert one["name"].capitalize() in page
        assert f"persona is {one['key']}" in page
    assert page.count("<h2") == len(groups)

    page = browser.get("/elasticities").text
    assert {one["group"] for one in told["departments"]} == {"Tea", "Pots"}
    for one in (*told["departments"], *told["personas"]):
        figure = f"{one['estimate']:.2f} ({one['low']:.2f} to {one['high']:.2f})"
        assert figure.replace("-", "−") in page
    answers = {one["trait"]: one for one in found.summary["response"]}
    assert answers.keys() == {"response_tea", "response_pots"}
    for trait, one in answers.items():
        assert f"<code>{trait}</code>" in page
        for end in ("least", "most"):
            assert f"{one[end]:+.0%}".replace("-", "−").replace("%", " %") in page
    picture = browser.client.get("/elasticities/departments.svg?theme=dark")
    assert picture.mimetype == "image/svg+xml"
    assert b"Tea" in picture.data

    judged = found.summary["recommender"]["judged"]
    page = browser.get("/recommendations").text
    assert re.search(r'href="/data"[^>]*aria-current', page), "it is a page of data"
    for one in judged.values():
        assert f"{100 * one['recall']:.1f} ({100 * one['low']:.1f} to" in page
    assert "Taste foresees" in page
    assert b"Best sellers" in browser.client.get("/recommendations/foresight.svg").data

    unit = pseudonym(config.key("unit"), "u3").hex()
    page = browser.get(f"/customers/{unit}").text
    assert "Expected to spend" in page
    assert "May want next" in page
    assert "persona-" in page
    assert page.count("<li><strong>Item") == 8


def test_a_category_without_a_trait_says_why(app: Flask, engine: Engine) -> None:
    told = {"response": [], "response_left_out": [{"category": "BEEF", "why": "too few"}],
            "failed": {}}  # fmt: skip
    with db.transaction(engine) as session:
        session.add(Model(name=stored.SUMMARY, version=1, artefact=b"", keys=[], summary=told))
    page = Browser(app).log_in("analyst").get("/elasticities").text
    assert "No elasticities yet" in page
    assert re.search(r">Beef</th><td[^>]*>Left out: too few\.<", page)


def test_the_campaign_form_offers_what_is_computed(app: Flask, engine: Engine) -> None:
    told = {"response": [{"category": "TEA", "trait": "response_tea"}]}
    with db.transaction(engine) as session:
        session.add(Model(name=stored.SUMMARY, version=1, artefact=b"", keys=[], summary=told))
    page = Browser(app).log_in("marketer").get("/campaigns/new").text
    assert '<option value="response_tea">how strongly discounts on “tea” work' in page
    for name in ("value_minor", "persona", "taste_1", "weekday"):
        assert f'<option value="{name}">' in page
