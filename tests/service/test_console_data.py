"""The console's pages of data: files taken in, what was found in them, customers and products."""

import datetime as dt
import io
import json
import re
import threading
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Engine, func, select, update
from werkzeug.datastructures import FileStorage
from werkzeug.test import TestResponse, encode_multipart

from service import customers, db, shop
from service.config import Config
from service.imports import command, jobs, kinds, load
from service.models import IMPORTS, CompetitorPrice, Import, Interaction, Product, Transaction
from service.pseudonyms import pseudonym
from service.views import console_base
from service.views.console_data import KINDS
from tests.loop import Loop, running
from tests.service.test_console import Browser
from tests.service.test_import_files import HEADER, good

NEVER = threading.Event()


def upload(browser: Browser, text: str | bytes, **fields: Any) -> TestResponse:
    body = text.encode() if isinstance(text, str) else text
    values = {"kind": "transactions", "file": FileStorage(io.BytesIO(body), "march.csv")} | fields
    # As bytes: the test client would leave the file open that it writes a large form to.
    boundary, sent = encode_multipart(values | {"csrf_token": browser.token})
    kind = f"multipart/form-data; boundary={boundary}"
    return browser.client.post("/data", data=sent, content_type=kind)


def read(engine: Engine, config: Config) -> None:
    """Read what waits, as the carrier's process does."""
    command.waiting(engine, config, NEVER)


def test_a_file_is_taken_read_shown_and_taken_back(
    app: Flask, engine: Engine, config: Config
) -> None:
    browser = Browser(app).log_in("marketer")
    assert "Nothing imported yet" in browser.get("/data").text
    sent = upload(browser, HEADER + good(40) + "u,p,b,1,-1,0,2026-03-01\n")
    assert (sent.status_code, sent.headers["Location"]) == (302, "/data/1")
    waiting = browser.get("/data/1").text
    assert "Waiting to be read" in waiting
    assert '<meta http-equiv="refresh"' in waiting
    assert "Verdict" not in waiting
    assert browser.get("/data/1/progress.json").get_json()["moving"] is True
    assert browser.get("/data/progress.json").get_json()["moving"] is True
    read(engine, config)
    seen = browser.get("/data/progress.json").get_json()
    assert seen["moving"] is False
    assert "40 stored, 1 refused" in seen["parts"]["import-1"]
    shown = browser.get("/data/1").text
    assert "1 of 41 rows were refused: paid is negative" in shown
    assert '<meta http-equiv="refresh"' not in shown
    assert re.search(r"<td class=\"number\">42</td><td><code>paid</code>", shown)
    assert "line,field,reason" in browser.get("/data/1/refused.csv").text

    confirm = browser.get("/data/1/undo").text
    assert "The 40 receipt lines that this file added" in confirm
    assert browser.post("/data/1/undo").status_code == 302
    assert "taken back" in browser.get("/data/1").text
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(Transaction)) == 0
    assert upload(browser, HEADER + good(40)).status_code == 302, "it may come again"


def test_bad_files_are_told_at_the_form_which_keeps_what_was_typed(
    app: Flask, engine: Engine, config: Config
) -> None:
    browser = Browser(app).log_in("admin")
    browser.get("/data")
    typed = {"zone": "Europe/Madrid", "decimals": "0", "columns": "Kunde=customer"}
    wrong = upload(browser, "Kunde,b\n1,2\n", **typed)
    assert wrong.status_code == 422
    assert "No column holds product_id" in wrong.text
    assert re.search(r'id="zone"[^>]*value="Europe/Madrid"', wrong.text)
    assert '<option value="0" selected>' in wrong.text
    assert "Kunde=customer</textarea>" in wrong.text
    for fields, place, said in (
        ({"zone": "Mars"}, "zone", "Europe/Berlin"),
        ({"decimals": "x"}, "decimals", "from 0 to 4"),
        ({"encoding": "ebcdic"}, "encoding", "one of utf-8"),
        ({"columns": "Kunde"}, "columns", "NAME=FIELD"),
        ({"kind": "ghosts"}, "kind", "what the rows"),
        ({"file": FileStorage(io.BytesIO(b""), "")}, "file", "Choose the file"),
    ):
        reply = upload(browser, HEADER + good(1), **fields)
        assert reply.status_code == 422, place
        assert re.search(rf'data-error="{place}">[^<]*{said}', reply.text), place
    with db.transaction(engine) as session:
        assert jobs.listing(session, before=None, limit=5) == []
    assert list(jobs.folder(config).iterdir()) == []


def test_the_same_file_is_read_again_only_when_asked(app: Flask, engine: Engine) -> None:
    browser = Browser(app).log_in("admin")
    browser.get("/data")
    assert upload(browser, HEADER + good(3)).status_code == 302
    again = upload(browser, HEADER + good(3))
    assert again.status_code == 422
    assert "this very file was imported on" in again.text.lower()
    assert upload(browser, HEADER + good(3), again="on").status_code == 302
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(Import)) == 2


def test_a_file_too_large_is_refused_with_the_remedy(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_base, "MAX_FILE_BYTES", 1 << 20)
    browser = Browser(app).log_in("marketer")
    browser.get("/data")
    large = HEADER + good(30_000)
    assert len(large) > 1 << 20
    assert upload(browser, large).status_code == 302, "beyond what other forms may send"
    refused = upload(browser, b"x" * (2 << 20))
    assert refused.status_code == 413
    assert "barter import" in refused.text
    # Who may not import sends no large file either.
    assert upload(Browser(app).log_in("analyst"), b"x" * (3 << 19)).status_code == 413


def test_looking_needs_less_than_importing(app: Flask) -> None:
    browser = Browser(app).log_in("analyst")
    page = browser.get("/data").text
    assert 'enctype="multipart/form-data"' not in page
    assert "marketer or admin" in page
    assert upload(browser, HEADER + good(1)).status_code == 403


@pytest.mark.parametrize("kind", IMPORTS)
def test_the_example_of_each_kind_can_be_imported(kind: str) -> None:
    header = KINDS[kind][2].split(",")
    found = kinds.plan(kinds.kind(kind), header, kinds.Settings(), dt.datetime.now(dt.UTC))
    assert found.unused == ()


FIRST = dt.date(2026, 1, 1)
QUALITY = HEADER + "".join(
    f"u{n % 9},p{n % 5},b{n},{'' if n % 10 == 0 else 1},{2 + n % 7}.00,0.25,"
    f"{FIRST + dt.timedelta(days=n)}\n"
    for n in range(120)
    if not 40 <= n < 50
)


def _specs(page: str) -> dict[str, Any]:
    found = re.search(r'id="specs">(.*?)</script>', page)
    assert found
    told: dict[str, Any] = json.loads(found[1])
    assert set(told["themes"]) == {"light", "dark"}
    charts: dict[str, Any] = told["charts"]
    return charts


def test_the_quality_of_a_file_is_told_in_charts_and_fields(
    app: Flask, engine: Engine, config: Config
) -> None:
    browser = Browser(app).log_in("admin")
    browser.get("/data")
    upload(browser, QUALITY + "u1,p1,b999,1,90000.00,0,2026-03-01\n")
    read(engine, config)
    page = browser.get("/data/1").text
    charts = _specs(page)
    assert set(charts) == {"days", "quantity", "paid_minor", "discount_minor"}
    days = {row["at"][:10]: row["rows"] for row in charts["days"]["data"]["values"]}
    assert len(days) == 120
    assert (days["2026-01-01"], days["2026-02-10"], days["2026-03-01"]) == (1, 0, 2)
    assert charts["days"]["layer"][0]["data"]["values"] == [
        {"from": "2026-02-10T00:00:00", "to": "2026-02-20T00:00:00"}
    ]
    assert "10 of 120 days have no rows" in page
    paid = charts["paid_minor"]
    rule = paid["layer"][-1]["encoding"]["x"]["datum"]
    (beyond,) = [row for row in paid["data"]["values"] if row["kind"] == "outlier"]
    assert beyond["rows"] == 1
    assert rule < beyond["low"] <= 90_000 < beyond["high"]
    assert "1 value of paid above" in page
    assert "winsorised" in page
    quantity = page[page.index("<code>quantity</code>") :]
    assert re.search(r"11</span></div></td>\s*<td data-label=\"Instead\">taken to be 1<", quantity)
    for name in charts:
        drawn = browser.get(f"/data/1/charts/{name}.svg?theme=dark")
        assert drawn.mimetype == "image/svg+xml"
        assert "<svg" in drawn.text
    assert browser.get("/data/1/charts/ghost.svg").status_code == 404
    assert browser.get("/data/2").status_code == 404


def test_an_import_that_replaces_says_that_it_stays(
    app: Flask, engine: Engine, config: Config
) -> None:
    browser = Browser(app).log_in("admin")
    browser.get("/data")
    upload(browser, "id,name,price,cost,stock\nA,Tea,4.99,2.10,9\nB,Pot,12,,\n", kind="products")
    read(engine, config)
    page = browser.get("/data/1").text
    assert "/data/1/undo" not in page
    assert "cannot be taken back" in page
    assert "All 2 rows were taken, and are plausible." in page
    assert "Stock is missing in 1 rows (50.0%)" in page
    assert set(_specs(page)) == {"price_minor", "unit_cost_minor", "stock"}
    assert browser.get("/data/1/undo").status_code == 409
    assert browser.post("/data/1/undo").status_code == 409


def test_a_file_that_fails_says_what_stays(app: Flask, engine: Engine, config: Config) -> None:
    browser = Browser(app).log_in("admin")
    browser.get("/data")
    upload(browser, HEADER + good(2))
    with db.transaction(engine) as session:
        jobs.get(session, 1).attempts = jobs.ATTEMPTS
    read(engine, config)
    page = browser.get("/data/1").text
    assert "ended the process that read it" in page
    assert "they stay" in page


# ---------------------------------------------------------------- customers and products


@pytest.fixture
def stocked(config: Config, engine: Engine) -> None:
    """A shop with two customers, three items, receipts over four months and a review."""
    at = dt.datetime(2026, 6, 1, 10, tzinfo=dt.UTC)
    load.products(engine, [
        load.ProductRow("A", "Drinks", "Tea", "Green tea", 499, 210, 12),
        load.ProductRow("B", "Drinks", "Coffee", "Espresso_100%", 999, 1200, 500),
        load.ProductRow("C", None, None, None, None),
    ])  # fmt: skip
    load.transactions(engine, config, [
        load.TransactionRow(f"l{n}", "ana", "A" if n % 2 else "B", f"b{n // 2}", 1, 499, 100,
                            at + dt.timedelta(days=6 * n))
        for n in range(16)
    ])  # fmt: skip
    hidden = pseudonym(config.key("unit"), "ana")
    with db.transaction(engine) as session:
        session.get_one(Product, "A").pace = 12 / 135
        for competitor, price, age in (("Acme", 399, 1), ("Bolt", 459, 1), ("Cut", 1, 8)):
            seen = dt.datetime.now(dt.UTC) - dt.timedelta(days=age)
            session.add(CompetitorPrice(
                product_id="A", competitor=competitor, price_minor=price, at=seen
            ))  # fmt: skip
        session.get_one(Product, "A").pace_at = dt.datetime.now(dt.UTC)
        customers.upsert(session, [(hidden, {"age": 41, "vip": True})], actor="test")
        session.add(Interaction(id="i1", unit=hidden, product_id="A", kind="review", value=4.5,
                                at=at))  # fmt: skip


def test_a_customer_is_found_by_identifier_which_is_kept_nowhere(
    app: Flask, config: Config, stocked: None, capfd: pytest.CaptureFixture[str]
) -> None:
    browser = Browser(app).log_in("marketer")
    browser.get("/customers")
    found = browser.post("/customers", {"unit": " ana "})
    hidden = pseudonym(config.key("unit"), "ana").hex()
    assert (found.status_code, found.headers["Location"]) == (302, f"/customers/{hidden}")
    page = browser.get(f"/customers/{hidden}").text
    for said in ("41", "yes", "Green tea", "4.5", "79.84", "Offers given", "No decision yet"):
        assert said in page, said
    months = {row["at"][:7]: row["spend"] for row in _specs(page)["spend"]["data"]["values"]}
    assert len(months) == 12
    assert (months["2026-06"], months["2026-05"]) == (pytest.approx(24.95), 0)
    assert "<svg" in browser.get(f"/customers/{hidden}/spend.svg").text

    nobody = browser.post("/customers", {"unit": "berta-secret"})
    assert nobody.status_code == 404
    assert "letter by letter" in nobody.text
    assert "berta-secret" not in nobody.text
    assert browser.post("/customers", {"unit": ""}).status_code == 422
    for other in ("0" * 32, "z" * 32):
        assert browser.get(f"/customers/{other}").status_code == 404
    assert "berta-secret" not in "".join(capfd.readouterr())


def test_a_customers_offers_are_listed(config: Config, engine: Engine, app: Flask) -> None:
    with running(config, engine) as loop:
        loop.launch(holdout=0.0)
        unit = _decided(loop)
    browser = Browser(app).log_in("analyst")
    browser.get("/customers")
    address = browser.post("/customers", {"unit": unit}).headers["Location"]
    page = browser.get(address).text
    assert "Spring" in page
    assert "/decisions/" in page
    assert address in browser.get("/decisions").text, "the log leads to the customer"
    assert "No receipt yet" in page


def _decided(loop: Loop) -> str:
    loop.decide("customer-7")
    loop.carry()
    return "customer-7"


def test_products_show_margin_and_cover(app: Flask, engine: Engine, stocked: None) -> None:
    browser = Browser(app).log_in("analyst")
    page = browser.get("/products").text
    assert "lasts 135 days" in page
    assert "58 %" in page
    assert "Acme, we ask 25 % more" in page
    assert "Sold at a loss, −20 %" in page
    assert "Espresso" not in browser.get("/products?search=tea").text
    assert "Espresso" in browser.get("/products?search=0%25").text
    assert "No product fits" in browser.get("/products?search=%25%25").text
    assert "Green tea" in browser.get("/products?search=a").text
    with db.transaction(engine) as session:
        session.execute(update(Product).values(stock_at=func.now() - dt.timedelta(days=45)))
    assert "told 45 d ago" in browser.get("/products").text


def test_the_catalogue_is_paged_without_a_gap(app: Flask, engine: Engine) -> None:
    names = sorted(f"item {n} & co" for n in range(120))
    load.products(engine, [load.ProductRow(one, None, None, None, 100) for one in names])
    browser = Browser(app).log_in("analyst")
    address, seen = "/products", []
    while address:
        page = browser.get(address).text
        seen += re.findall(r'class="lead">(item \d+) &amp; co', page)
        onward = re.search(r'href="([^"]+)" rel="next"', page)
        address = onward[1].replace("&amp;", "&") if onward else ""
    assert [f"{one} & co" for one in seen] == _in_the_databases_order(engine)


def _in_the_databases_order(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(select(Product.id).order_by(Product.id)))


def test_large_tables_are_estimated_not_counted(
    engine: Engine, config: Config, stocked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with db.transaction(engine) as session:
        assert shop.counts(session)["transactions"] == shop.Count(16, exact=True)
    at = dt.datetime(2026, 8, 1, tzinfo=dt.UTC)
    load.transactions(engine, config, (
        load.TransactionRow(f"m{n}", f"u{n % 500}", "A", f"m{n}", 1, 499, 0, at)
        for n in range(20_000)
    ))  # fmt: skip
    monkeypatch.setattr(shop, "COUNTED", 1_000)
    with db.transaction(engine) as session:
        rows, known = shop.counts(session)["transactions"]
        assert not known
        assert 10_000 < rows < 40_000
