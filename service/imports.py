"""Bulk import: products, customers and transactions, by COPY, repeatable without doubling.

Rows arrive in chunks through a temporary table, and from there only what is new or changed is
taken over, one transaction per chunk: an import that was cut short is taken up by running it
again. Customers are known by their keyed pseudonym only; the plain unit is never stored.

Every function takes ``report``, called with (rows so far, rows in all) after each chunk.
"""

import datetime as dt
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from psycopg import sql
from sqlalchemy import Engine

from service import customers as stored
from service.config import Config
from service.db import transaction
from service.runtime import pseudonym

CHUNK_ROWS = 50_000
CUSTOMER_ROWS = 1_000
Report = Callable[[int, int], None]
Row = TypeVar("Row")


class ProductRow(NamedTuple):
    """One item of the catalogue; ``price_minor`` is its list price in minor units."""

    id: str
    department: str | None
    category: str | None
    name: str | None
    price_minor: int | None


class TransactionRow(NamedTuple):
    """One line of a till receipt.

    ``id`` is the line's own key, unique for good. ``paid_minor`` and ``discount_minor`` are minor
    units and add up to the list value; ``bought_at`` has a time zone.
    """

    id: str
    unit: str
    product_id: str
    basket: str
    quantity: int
    paid_minor: int
    discount_minor: int
    bought_at: dt.datetime


def silent(done: int, total: int) -> None:
    """Report progress to nobody."""


def products(
    engine: Engine, rows: Iterable[ProductRow], *, total: int = 0, report: Report = silent
) -> int:
    """Add or update items; return how many were new or changed."""
    changed = "(products.department, products.category, products.name, products.price_minor)"
    newer = "(excluded.department, excluded.category, excluded.name, excluded.price_minor)"
    return _load(
        engine,
        "products",
        ProductRow._fields,
        rows,
        on_conflict=f"DO UPDATE SET (department, category, name, price_minor) = {newer}"
        f" WHERE {changed} IS DISTINCT FROM {newer}",
        total=total,
        report=report,
    )


def transactions(
    engine: Engine,
    config: Config,
    rows: Iterable[TransactionRow],
    *,
    total: int = 0,
    report: Report = silent,
) -> int:
    """Add receipt lines under their units' pseudonyms; return how many were new."""
    key = config.key("unit")
    # A receipt has many lines of one unit, one after the other.
    known = lru_cache(maxsize=65_536)(lambda unit: pseudonym(key, unit))
    hidden = ((row[0], known(row[1]), *row[2:]) for row in rows)
    return _load(
        engine,
        "transactions",
        TransactionRow._fields,
        hidden,
        on_conflict="DO NOTHING",
        total=total,
        report=report,
    )


def customers(
    engine: Engine,
    config: Config,
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    *,
    actor: str,
    total: int = 0,
    report: Report = silent,
) -> int:
    """Replace the attributes of units, given as (unit, attributes); return how many."""
    key = config.key("unit")
    done = 0
    for chunk in _chunks(rows, CUSTOMER_ROWS):
        hidden = [(pseudonym(key, unit), attributes) for unit, attributes in chunk]
        with transaction(engine) as session:
            stored.upsert(session, hidden, actor=actor)
        done += len(chunk)
        report(done, max(total, done))
    return done


def _load(
    engine: Engine,
    table: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    on_conflict: str,
    total: int,
    report: Report,
) -> int:
    """Copy rows into a table, chunk by chunk; return how many of them it took."""
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    target = sql.Identifier(table)
    staging = sql.SQL(
        "CREATE TEMPORARY TABLE staging ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA"
    ).format(names, target)
    copy = sql.SQL("COPY staging ({}) FROM STDIN").format(names)
    # One row per id: an upsert may not touch the same row twice in one statement.
    take = sql.SQL(
        "INSERT INTO {table} ({names}) SELECT DISTINCT ON (id) {names} FROM staging"
        " ON CONFLICT (id) {rule}"
    ).format(table=target, names=names, rule=sql.SQL(on_conflict))
    done = taken = 0
    for chunk in _chunks(rows, CHUNK_ROWS):
        with engine.begin() as connection:
            raw: Any = connection.connection.driver_connection
            cursor = raw.cursor()
            cursor.execute(staging)
            with cursor.copy(copy) as stream:
                for row in chunk:
                    stream.write_row(row)
            taken += cursor.execute(take).rowcount
        done += len(chunk)
        report(done, max(total, done))
    return taken


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    source = iter(rows)
    while chunk := list(itertools.islice(source, size)):
        yield chunk
