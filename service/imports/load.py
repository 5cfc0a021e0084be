"""Rows into the database by COPY, repeatable without doubling.

Rows arrive in chunks through a temporary table, and from there only what is new or changed is
taken over, one transaction per chunk: an import that was cut short is taken up by running it
again. Customers are known by their keyed pseudonym only; the plain unit is never stored.

Every function on whole iterables takes ``report``, called with (rows so far, rows in all) after
each chunk.
"""

import datetime as dt
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from psycopg import sql
from sqlalchemy import Connection, Engine, func, select

from service import customers as stored
from service.config import Config
from service.db import transaction
from service.imports import kinds
from service.pseudonyms import pseudonym

CHUNK_ROWS = 50_000
CUSTOMER_ROWS = 1_000
FEW_ROWS = 1_000
"""What comes in no more rows at a time is folded in at once; more is a matter for the refit."""
Report = Callable[[int, int], None]
Item = TypeVar("Item")
_ITEM = ("department", "category", "name", "price_minor", "unit_cost_minor", "stock")
_TOLD = ", ".join(f"coalesce(excluded.{one}, products.{one})" for one in _ITEM)
_HELD = ", ".join(f"products.{one}" for one in _ITEM)


class Taking(NamedTuple):
    """How rows of a kind are taken over: what names a row, which of several counts, and the rest.

    ``first`` orders rows of one key, ``rule`` is what happens to a row that is there.
    """

    key: tuple[str, ...]
    rule: str
    first: str = "ctid DESC"


_TAKE = {
    "customers": Taking(
        ("unit",),
        "DO UPDATE SET attributes = customers.attributes || excluded.attributes,"
        " updated_at = clock_timestamp() WHERE NOT customers.attributes @> excluded.attributes",
    ),
    "products": Taking(
        ("id",),
        f"DO UPDATE SET ({', '.join(_ITEM)}, updated_at) = ({_TOLD}, clock_timestamp()),"
        " price_at = CASE WHEN excluded.price_minor IS NULL THEN products.price_at"
        " ELSE clock_timestamp() END, stock_at = CASE WHEN excluded.stock IS NULL"
        " THEN products.stock_at ELSE clock_timestamp() END"
        f" WHERE ({_HELD}) IS DISTINCT FROM ({_TOLD})",
    ),
    "competitor_prices": Taking(
        ("product_id", "competitor"),
        "DO UPDATE SET (price_minor, at) = (excluded.price_minor, excluded.at)"
        " WHERE excluded.at > competitor_prices.at",
        first="at DESC, ctid DESC",
    ),
    "interactions": Taking(("id",), "DO NOTHING"),
    "transactions": Taking(("id",), "DO NOTHING"),
}
"""What is told wins, gaps do not; of competitors' prices the newest."""
_RETELL = """
UPDATE products SET updated_at = clock_timestamp(),
    price_at = CASE WHEN price THEN clock_timestamp() ELSE price_at END,
    stock_at = CASE WHEN told.stock THEN clock_timestamp() ELSE stock_at END
FROM (SELECT id, bool_or(price_minor IS NOT NULL) AS price, bool_or(stock IS NOT NULL) AS stock
      FROM staging GROUP BY id) AS told
WHERE products.id = told.id AND (
    price AND price_at < clock_timestamp() - interval '1 day'
    OR told.stock AND stock_at < clock_timestamp() - interval '1 day')
"""
"""What is told again as it was is no news, but it is no older than today either."""
_TOUCH = """
WITH touched AS (
    SELECT id FROM products WHERE id IN (SELECT product_id FROM staging) ORDER BY id FOR UPDATE)
UPDATE products SET updated_at = clock_timestamp() FROM touched WHERE products.id = touched.id
"""
"""Products whose competitors are news are news themselves, to those who follow the catalogue."""

_ARRIVE = "INSERT INTO arrivals (unit) SELECT DISTINCT unit FROM staging"
_FOLDED_IN = ("interactions", "transactions")
_ANNOUNCED = {"customers": "customers", "products": "products", "competitor_prices": "products"}
"""What hosts are told of, so that they bring it down at once."""


class ProductRow(NamedTuple):
    """One item of the catalogue; amounts are minor units, ``stock`` is pieces."""

    id: str
    department: str | None
    category: str | None
    name: str | None
    price_minor: int | None
    unit_cost_minor: int | None = None
    stock: int | None = None


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
    return _all(engine, "products", rows, total=total, report=report)


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
    hidden = ((row[0], known(row[1]), *row[2:], None) for row in rows)
    return _all(engine, "transactions", hidden, total=total, report=report)


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
    for chunk in chunks(rows, CUSTOMER_ROWS):
        hidden = [(pseudonym(key, unit), attributes) for unit, attributes in chunk]
        with transaction(engine) as session:
            stored.upsert(session, hidden, actor=actor)
        done += len(chunk)
        report(done, max(total, done))
    return done


def _all(
    engine: Engine, kind: str, rows: Iterable[Sequence[Any]], *, total: int, report: Report
) -> int:
    """Copy rows, a transaction per chunk; return how many of them were taken."""
    done = taken = 0
    for chunk in chunks(rows, CHUNK_ROWS):
        with engine.begin() as connection:
            taken += take(connection, kind, chunk)
        done += len(chunk)
        report(done, max(total, done))
    return taken


def take(connection: Connection, kind: str, rows: Sequence[Sequence[Any]]) -> int:
    """Copy one chunk of a kind's rows, as `kinds.maker` makes them; return how many were news.

    Of rows with the same key the last one counts, of competitors' prices the newest.
    """
    names = sql.SQL(", ").join(map(sql.Identifier, kinds.kind(kind).columns))
    target, taking = sql.Identifier(kind), _TAKE[kind]
    key = sql.SQL(", ").join(map(sql.Identifier, taking.key))
    raw: Any = connection.connection.driver_connection
    cursor = raw.cursor()
    cursor.execute("DROP TABLE IF EXISTS staging")
    cursor.execute(
        sql.SQL(
            "CREATE TEMPORARY TABLE staging ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA"
        ).format(names, target)
    )
    with cursor.copy(sql.SQL("COPY staging ({}) FROM STDIN").format(names)) as stream:
        for row in rows:
            stream.write_row(row)
    # One row per key: an upsert may not touch the same row twice in one statement.
    cursor.execute(
        sql.SQL(
            "INSERT INTO {table} ({names}) SELECT DISTINCT ON ({key}) {names} FROM staging"
            " ORDER BY {key}, {first} ON CONFLICT ({key}) {rule}"
        ).format(
            table=target, names=names, key=key, first=sql.SQL(taking.first),
            rule=sql.SQL(taking.rule),
        )
    )  # fmt: skip
    news, again = int(cursor.rowcount), 0
    if kind == "competitor_prices" and news:
        cursor.execute(_TOUCH)
    if kind == "products":
        cursor.execute(_RETELL)
        again = cursor.rowcount
    if kind in _FOLDED_IN and news and len(rows) <= FEW_ROWS:
        cursor.execute(_ARRIVE)
    if kind in _ANNOUNCED and (news or again):
        connection.execute(select(func.pg_notify("barter", _ANNOUNCED[kind])))
    return news


def chunks(rows: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield rows in lists of at most ``size``."""
    source = iter(rows)
    while chunk := list(itertools.islice(source, size)):
        yield chunk
