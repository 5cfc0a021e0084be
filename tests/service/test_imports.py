"""Bulk import: repeatable, pseudonymous, and progress that adds up."""

import datetime as dt
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, func, select, update

from service.config import Config
from service.imports import kinds, load
from service.imports.load import ProductRow, TransactionRow
from service.models import Customer, Product, Transaction
from service.pseudonyms import pseudonym

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
OLD = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "CHUNK_ROWS", 100)
    monkeypatch.setattr(load, "CUSTOMER_ROWS", 10)


def lines(count: int, *, start: int = 0) -> Iterator[TransactionRow]:
    for n in range(start, start + count):
        unit, basket = f"unit-{n % 7}", f"basket-{n // 3}"
        yield TransactionRow(f"line-{n}", unit, f"item-{n}", basket, 2, 150 + n, n, NOON)


def test_receipt_lines_are_imported_once_and_under_pseudonyms(
    engine: Engine, config: Config
) -> None:
    seen: list[tuple[int, int]] = []
    took = load.transactions(
        engine, config, lines(250), total=250, report=lambda *now: seen.append(now)
    )
    assert took == 250
    assert seen == [(100, 250), (200, 250), (250, 250)]
    assert load.transactions(engine, config, lines(300, start=50)) == 100, "only the new ones"
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(Transaction)) == 350
        row = connection.execute(
            select(Transaction.__table__).where(Transaction.id == "line-8")
        ).one()
    assert bytes(row.unit) == pseudonym(config.key("unit"), "unit-1")
    assert (row.quantity, row.paid_minor, row.discount_minor) == (2, 158, 8)
    assert row.bought_at == NOON
    assert row.basket == "basket-2"
    assert row.product_id == "item-8"


def test_an_import_that_breaks_off_keeps_whole_chunks_and_can_be_repeated(
    engine: Engine, config: Config
) -> None:
    def broken() -> Iterator[TransactionRow]:
        yield from lines(150)
        raise OSError("the file ends here")

    with pytest.raises(OSError, match="ends here"):
        load.transactions(engine, config, broken())
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(Transaction)) == 100
    assert load.transactions(engine, config, lines(150)) == 50


def test_products_are_added_and_updated(engine: Engine) -> None:
    first = [
        ProductRow("a", "GROCERY", "TEA", None, 199),
        ProductRow("b", None, None, "Ümlaut", None),
    ]
    assert load.products(engine, first) == 2
    assert load.products(engine, first) == 0, "nothing has changed"
    assert load.products(engine, [first[0]._replace(price_minor=249), first[1]]) == 1
    with engine.begin() as connection:
        connection.execute(update(Product).values(price_at=OLD, stock_at=OLD))
    again = [
        first[0]._replace(price_minor=249, stock=None),
        ProductRow("b", None, None, None, None, None, 7),
    ]
    assert load.products(engine, again) == 1
    with engine.connect() as connection:
        told = select(Product.price_at > OLD, Product.stock_at > OLD).order_by(Product.id)
        assert connection.execute(told).all() == [(True, False), (False, True)], (
            "no older than that"
        )
    with engine.connect() as connection:
        columns = [Product.__table__.c[name] for name in kinds.kind("products").columns]
        rows = connection.execute(select(*columns).order_by(Product.id)).all()
    assert [tuple(row) for row in rows] == [
        ("a", "GROCERY", "TEA", None, 249, None, None),
        ("b", None, None, "Ümlaut", None, None, 7),
    ]


def test_customers_get_their_latest_attributes(engine: Engine, config: Config) -> None:
    rows = [(f"unit-{n}", {"spend_minor": n}) for n in range(25)]
    seen: list[tuple[int, int]] = []
    assert (
        load.customers(
            engine, config, rows, actor="test", total=25, report=lambda *now: seen.append(now)
        )
        == 25
    )
    assert seen[-1] == (25, 25)
    load.customers(engine, config, [("unit-3", {"spend_minor": 99})], actor="test")
    with engine.connect() as connection:
        found = {
            bytes(row.unit): row.attributes
            for row in connection.execute(select(Customer.__table__))
        }
    assert len(found) == 25
    assert found[pseudonym(config.key("unit"), "unit-3")] == {"spend_minor": 99}
    assert not any(b"unit" in unit for unit in found)
