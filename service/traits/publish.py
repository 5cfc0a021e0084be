"""One version of models and traits into the database, and the last one out of it to go on from."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, delete, func, select
from sqlalchemy.orm import Session

from bandits import artefact
from bandits.customers.personas import Personas
from service.models import Model
from service.queries import POPULAR
from service.traits import stored
from service.traits.fit import BEHAVIOUR, Fitted, Last
from service.traits.history import Shop
from service.traits.stored import BEST_SELLERS, DIRECTION, SUMMARY, TASTE, newest_version

PERSONAS = "personas"
ROWS = 20_000
KEPT = 3
_DIGITS = 5
_ROW, _TABLE = np.zeros(0), np.zeros((0, 0))
_NO_PERSONAS = Personas(_ROW, _ROW, _ROW, _TABLE, _TABLE, _ROW)


def publish(engine: Engine, shop: Shop, fitted: Fitted) -> int:
    """Store traits and products to offer, products' paces, and the models as the next version.

    Returns the version. Traits and paces are stored in pieces, each a transaction, and the version
    last: a run that is cut short counts for nothing, and the refit is still due.
    """
    names, columns = _columns(fitted)
    for start in range(0, len(shop.units), ROWS):
        with engine.begin() as connection:
            piece = slice(start, start + ROWS)
            _store_traits(connection, _rows(shop, fitted, names, columns, piece))
    sold = np.flatnonzero(np.isfinite(fitted.pace))
    for start in range(0, len(sold), ROWS):
        with engine.begin() as connection:
            _store_paces(connection, shop, fitted, sold[start : start + ROWS])
    return _store_models(engine, shop, fitted)


def last(session: Session) -> Last:
    """Return the models that were published last, as far as there are any."""
    version, told = newest_version(session), stored.newest(session)
    summary = {} if told is None else told.summary
    return Last(
        stored.taste_of(session, version),
        tuple(stored.products(session, version)),
        stored.model(session, PERSONAS, version, like=_NO_PERSONAS),
        tuple(summary.get("persona_features", BEHAVIOUR)),
        summary.get("recommender", {}),
    )


def _store_models(engine: Engine, shop: Shop, fitted: Fitted) -> int:
    taste = fitted.taste
    parts: dict[str, Any] = {PERSONAS: fitted.personas, BEST_SELLERS: fitted.best_sellers}
    if taste is not None:
        parts |= {TASTE: taste.factors, DIRECTION: taste.tastes}
    with Session(engine) as session, session.begin():
        version = newest_version(session) + 1
        session.add(_row(SUMMARY, version, None, summary=fitted.summary))
        popular = shop.products[fitted.favourites].tolist()
        session.add(_row(POPULAR, version, None, keys=popular))
        for name, part in parts.items():
            if part is not None:
                keys = shop.products.tolist() if name == TASTE else []
                session.add(_row(name, version, part, keys=keys))
        session.execute(delete(Model).where(Model.version <= version - KEPT))
    return version


def _row(
    name: str,
    version: int,
    part: Any,
    *,
    keys: Sequence[str] = (),
    summary: Mapping[str, Any] | None = None,
) -> Model:
    data = b"" if part is None else artefact.to_bytes(part, policy=name)
    return Model(
        name=name, version=version, artefact=data, keys=list(keys), summary=dict(summary or {})
    )


def _columns(fitted: Fitted) -> tuple[list[str], list[list[Any]]]:
    """Return the names of the traits, and their values as JSON holds them."""
    names = list(fitted.traits)
    columns = []
    for name in names:
        values = fitted.traits[name]
        if values.dtype.kind == "f":
            columns.append([rounded(value) for value in values.tolist()])
        else:
            columns.append(values.tolist())
    return names, columns


def rounded(value: float) -> float | None:
    """Return a number to five digits: contexts hold no more, and every decision reads them."""
    if not math.isfinite(value):
        return None
    if value == 0.0:
        return 0.0
    return round(value, _DIGITS - 1 - math.floor(math.log10(abs(value))))


def _rows(
    shop: Shop, fitted: Fitted, names: list[str], columns: list[list[Any]], piece: slice
) -> Iterator[tuple[bytes, str, list[str]]]:
    units, lists = shop.units[piece].tolist(), fitted.recommended[piece]
    products = shop.products[lists].tolist()
    count = (lists >= 0).sum(axis=1).tolist()
    parts = (column[piece] for column in columns)
    for unit, listed, left, *values in zip(units, products, count, *parts, strict=True):
        held = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        yield bytes.fromhex(unit), orjson.dumps(held).decode(), listed[:left]


def _store_traits(connection: Connection, rows: Iterator[tuple[bytes, str, list[str]]]) -> None:
    raw: Any = connection.connection.driver_connection
    cursor = raw.cursor()
    cursor.execute(
        "CREATE TEMPORARY TABLE fresh (unit bytea, traits jsonb, recommended text[]) ON COMMIT DROP"
    )
    with cursor.copy("COPY fresh (unit, traits, recommended) FROM STDIN") as stream:
        for row in rows:
            stream.write_row(row)
    cursor.execute(
        "INSERT INTO customers (unit, attributes, traits, recommended, traits_at)"
        " SELECT unit, '{}', traits, recommended, clock_timestamp() FROM fresh ORDER BY unit"
        " ON CONFLICT (unit) DO UPDATE SET traits = excluded.traits,"
        " recommended = excluded.recommended,"
        " traits_at = excluded.traits_at, updated_at = clock_timestamp()"
    )
    connection.execute(select(func.pg_notify("barter", "customers")))


def _store_paces(
    connection: Connection, shop: Shop, fitted: Fitted, places: NDArray[np.integer]
) -> None:
    raw: Any = connection.connection.driver_connection
    cursor = raw.cursor()
    cursor.execute("CREATE TEMPORARY TABLE fresh (id text, pace double precision) ON COMMIT DROP")
    ids, paces = shop.products[places].tolist(), fitted.pace[places].tolist()
    with cursor.copy("COPY fresh (id, pace) FROM STDIN") as stream:
        for row in zip(ids, paces, strict=True):
            stream.write_row(row)
    # In the order in which imports take them, so that neither waits for the other in a circle.
    cursor.execute(
        "WITH known AS (SELECT id FROM products JOIN fresh USING (id) ORDER BY id"
        " FOR UPDATE OF products)"
        " UPDATE products SET pace = fresh.pace, pace_at = clock_timestamp(),"
        " updated_at = clock_timestamp() FROM fresh JOIN known USING (id)"
        " WHERE products.id = fresh.id"
    )
    connection.execute(select(func.pg_notify("barter", "products")))
