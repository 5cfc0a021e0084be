"""Receipts and interactions out of the database as arrays, fast enough for millions of rows."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from service.imports import quality
from service.traits.vectors import WEIGHTS

DAYS = 730
"""Receipts and interactions older than this, before the newest, are left out."""
_RECEIPTS = f"""
COPY (
    SELECT encode(unit, 'hex'), product_id, quantity, paid_minor, discount_minor,
           (extract(epoch FROM bought_at) / 86400)::int
    FROM transactions
    WHERE bought_at > (SELECT max(bought_at) FROM transactions) - interval '{DAYS} days'
) TO STDOUT (FORMAT csv)
"""
_DEEDS = f"""
COPY (
    SELECT encode(unit, 'hex'), product_id, kind, (extract(epoch FROM at) / 86400)::int
    FROM interactions
    WHERE kind <> 'return' AND at > (SELECT max(at) FROM interactions) - interval '{DAYS} days'
) TO STDOUT (FORMAT csv)
"""

_TOLD = """
COPY (SELECT encode(unit, 'hex'), attributes FROM customers WHERE attributes <> '{}') TO STDOUT
"""
_CATALOGUE = """
COPY (
    SELECT id, coalesce(department, category, ''), coalesce(category, department, ''),
           coalesce(name, id), coalesce((stock > 0)::int, 1)
    FROM products
) TO STDOUT (FORMAT csv)
"""
_AMOUNTS = ("quantity", "paid", "discount")
_TEXTS = ("unit", "product", "kind", "department", "category")
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Receipts(NamedTuple):
    """Lines of receipts: (N,) arrays; units and products by their place in `Shop`, days since 1970.

    ``quantity``, ``paid`` and ``discount`` (minor units) are winsorised: no value counts for more
    than the fence of its column (`service.imports.quality.spread`).
    """

    unit: Ints
    product: Ints
    quantity: Floats
    paid: Floats
    discount: Floats
    day: Ints


class Deeds(NamedTuple):
    """Interactions: (M,) arrays; how much each says of taste in ``weight``."""

    unit: Ints
    product: Ints
    weight: Floats
    day: Ints


class Shop(NamedTuple):
    """What a shop's customers bought and did.

    ``units`` (U,) are pseudonyms in hexadecimal, ``products`` (P,) ids. Of each product (P,) the
    catalogue knows its department, else its category; its category, else its department; and its
    kind, which is what products of one name are. ``on_sale`` (P,) tells which are in the catalogue
    and not out of stock: all of them where there is no catalogue. ``told`` (U,) are the attributes
    that were imported of customers; it is empty where none were.
    """

    units: NDArray[np.str_]
    products: NDArray[np.str_]
    departments: NDArray[Any]
    categories: NDArray[Any]
    kinds: NDArray[Any]
    on_sale: NDArray[np.bool_]
    receipts: Receipts
    deeds: Deeds
    told: Sequence[Mapping[str, object] | None] = ()


def read(engine: Engine) -> Shop:
    """Return the shop's recent history."""
    lines = _table(engine, _RECEIPTS, ("unit", "product", *_AMOUNTS, "day"))
    deeds = _table(engine, _DEEDS, ("unit", "product", "kind", "day"))
    units, unit = _coded(lines["unit"], deeds["unit"])
    products, product = _coded(lines["product"], deeds["product"])
    own = len(lines["unit"])
    quantity, paid, discount = (_winsorised(lines[name]) for name in _AMOUNTS)
    receipts = Receipts(
        unit[:own], product[:own], quantity, paid, discount, lines["day"].astype(np.int64)
    )
    weight = np.array([WEIGHTS[kind] for kind in deeds["kind"].tolist()], dtype=np.float64)
    return Shop(
        units,
        products,
        *_catalogue(engine, products),
        receipts,
        Deeds(unit[own:], product[own:], weight, deeds["day"].astype(np.int64)),
        _told(engine, units),
    )


def _told(engine: Engine, units: NDArray[np.str_]) -> Sequence[Mapping[str, object] | None]:
    """Return the attributes that were imported of each customer."""
    with engine.connect() as connection:
        raw: Any = connection.connection.driver_connection
        with raw.cursor() as cursor, cursor.copy(_TOLD) as stream:
            stream.set_types(["text", "json"])
            found = dict(stream.rows())
    return [found.get(unit) for unit in units.tolist()] if found else ()


def _catalogue(
    engine: Engine, products: NDArray[np.str_]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """Return the department, category and kind of each product, and whether it is on sale."""
    columns = ("department", "category", "kind", "stock")
    table = _table(engine, _CATALOGUE, ("product", *columns))
    place = {name: number for number, name in enumerate(table["product"].tolist())}
    at = np.array([place.get(product, -1) for product in products.tolist()], dtype=np.int64)
    known = at >= 0
    missing: tuple[Any, ...] = ("", "", products.astype(object), int(not place))
    department, category, kind, stock = (
        np.where(known, np.append(table[name].astype(object), [""])[at], other)
        for name, other in zip(columns, missing, strict=True)
    )
    return department, category, kind, stock.astype(np.bool_)


def _table(engine: Engine, command: str, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    # Arrow parses a million lines in a fraction of a second; serving processes never load it.
    from pyarrow import csv, string

    text = io.BytesIO()
    with engine.connect() as connection:
        raw: Any = connection.connection.driver_connection
        with raw.cursor() as cursor, cursor.copy(command) as stream:
            for block in stream:
                text.write(block)
    if not text.tell():
        return {name: np.zeros(0, dtype=object) for name in names}
    text.seek(0)
    table = csv.read_csv(
        text,
        csv.ReadOptions(column_names=list(names)),
        convert_options=csv.ConvertOptions(
            column_types={name: string() for name in _TEXTS},
            strings_can_be_null=False,
        ),
    )
    return {name: table.column(name).to_numpy() for name in names}


def _coded(*parts: NDArray[Any]) -> tuple[NDArray[np.str_], Ints]:
    """Return the distinct texts of all parts, and each text's place among them."""
    import pyarrow as pa

    whole = pa.array(np.concatenate(parts), pa.string()).dictionary_encode()
    names = np.array(whole.dictionary.to_pylist(), dtype=np.str_)
    return names, whole.indices.to_numpy().astype(np.int64)


def _winsorised(values: NDArray[Any]) -> Floats:
    """Return values, none above the fence."""
    found = values.astype(np.float64)
    counts = quality.Quality()
    counts.measure("value", found.tolist())
    amounts = quality.spread(counts, "value")
    return found if amounts is None else np.minimum(found, amounts.fence)
