"""What can be imported: five kinds of rows, their fields, and how a row of each is made.

A field may be told under several names; a column that fits none of them is left out (of customers
it becomes an attribute). A row without a key of its own gets one from what it says, so that the
same file twice adds nothing.
"""

import datetime as dt
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import orjson

from service.errors import FieldError, Invalid
from service.imports.files import ENCODINGS
from service.imports.values import (
    Reader,
    Unreadable,
    attribute,
    minor,
    missing,
    moment,
    money,
    number,
    one_of,
    text,
    whole,
)
from service.models import DEEDS
from service.pseudonyms import pseudonym
from service.validation import printable

KindName = Literal["customers", "products", "competitor_prices", "interactions", "transactions"]
QUANTITY = 100_000
STOCK = 10**9
MAX_ATTRIBUTES = 100
PERSONAL = ("email", "mail", "phone", "mobile", "address", "street", "surname", "name", "iban")
"""Words in a column's name that say that it identifies a person."""


@dataclass(frozen=True)
class Settings:
    """How a file's values are meant.

    ``decimals`` are the currency's digits after the point, ``zone`` the IANA time zone of times
    without one, ``columns`` the names of columns that are called otherwise than here.
    """

    decimals: int = 2
    zone: str = "UTC"
    columns: Mapping[str, str] = field(default_factory=dict)
    encoding: str = "utf-8"


def settings_of(columns: Sequence[str], *, decimals: int, zone: str, encoding: str) -> Settings:
    """Return settings out of what people type, ``columns`` as NAME=FIELD.

    Raises:
        Invalid: with the setting at fault.
    """
    pairs = {}
    for pair in columns:
        name, found, field = pair.partition("=")
        if not (name.strip() and found and field.strip()):
            raise _wrong("columns", f"{printable(pair)} must be NAME=FIELD, such as Kunde=unit")
        pairs[name.strip()] = field.strip()
    if not 0 <= decimals <= 4:
        raise _wrong("decimals", "must be from 0 to 4; most currencies have 2")
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise _wrong("zone", "must name a time zone such as Europe/Berlin") from None
    if encoding not in ENCODINGS:
        raise _wrong("encoding", f"must be one of {', '.join(ENCODINGS)}")
    return Settings(decimals=decimals, zone=zone, columns=pairs, encoding=encoding)


def _wrong(field: str, message: str) -> Invalid:
    return Invalid(f"{field} {message}", errors=[FieldError(field, message)])


@dataclass(frozen=True)
class Field:
    """One field of a kind: what it is called, whether it must be there, what it is otherwise.

    ``default`` is used for a missing value and counted as imputed; without one the row keeps the
    gap, or is refused where the field is ``required``.
    """

    name: str
    told: str
    also: tuple[str, ...] = ()
    required: bool = False
    default: Any = None
    is_text: bool = False


@dataclass(frozen=True)
class Kind:
    """One kind of rows: the table's columns, and the fields that a file may tell.

    ``measured`` are the columns that hold amounts, ``moment`` the one that holds the time, if any.
    Of ``one_of`` a file has to tell one field at least. ``known`` is said of rows that are no news,
    ``outliers`` of what values far from the rest count as.
    """

    name: KindName
    told: str
    columns: tuple[str, ...]
    fields: tuple[Field, ...]
    measured: tuple[str, ...] = ()
    moment: str | None = None
    one_of: tuple[str, ...] = ()
    known: str = "were stored before, or repeat a row: each counts once"
    outliers: str = "what they say"

    def field_of(self, column: str, names: Mapping[str, str]) -> Field | None:
        """Return the field that a column holds, under its own name or one that it is told by."""
        plain = _plain(names.get(column, column))
        for one in self.fields:
            if plain in (one.name, *one.also):
                return one
        return None


class Refused(ValueError):
    """A row that cannot be taken: the field at fault and why."""

    def __init__(self, field: str, message: str) -> None:
        self.field, self.message = field, message
        super().__init__(f"{field} {message}")


_UNIT = Field(
    "unit", "the customer's identifier, kept as a pseudonym only",
    ("customer", "customer_id", "customerid", "user", "user_id", "userid", "household",
     "household_id", "client_id"),
    required=True, is_text=True,
)  # fmt: skip
_PRODUCT = Field(
    "product_id", "the item's identifier",
    ("product", "item", "item_id", "itemid", "productid", "sku", "article"),
    required=True, is_text=True,
)  # fmt: skip
_RETURNS = "send what came back as an interaction of kind return"

_KINDS: dict[str, Kind] = {
    "customers": Kind(
        "customers", "who buys: every further column becomes an attribute",
        ("unit", "attributes"), (_UNIT,),
    ),
    "products": Kind(
        "products", "what is sold",
        ("id", "department", "category", "name", "price_minor", "unit_cost_minor", "stock"),
        (
            Field("id", "the item's identifier", (*_PRODUCT.also, "product_id"), required=True,
                  is_text=True),
            Field("department", "its department", is_text=True),
            Field("category", "its category", ("group", "product_category"), is_text=True),
            Field("name", "what people call it", ("title", "product_name", "description"),
                  is_text=True),
            Field("price", "list price, such as 12.99", ("list_price", "unit_price")),
            Field("price_minor", "list price in minor units, such as 1299"),
            Field("unit_cost", "what it costs the shop", ("cost", "cost_price")),
            Field("unit_cost_minor", "the same in minor units"),
            Field("stock", "pieces in stock", ("inventory", "stock_level", "on_hand")),
        ),
        measured=("price_minor", "unit_cost_minor", "stock"),
    ),
    "competitor_prices": Kind(
        "competitor_prices", "what competitors ask for the same items",
        ("product_id", "competitor", "price_minor", "at"),
        (
            _PRODUCT,
            Field("competitor", "who asks it", ("seller", "shop", "retailer", "merchant", "store"),
                  required=True, is_text=True),
            Field("price", "what they ask, such as 12.99", ("competitor_price", "unit_price")),
            Field("price_minor", "the same in minor units, such as 1299"),
            Field("at", "when it was seen",
                  ("time", "timestamp", "date", "seen_at", "observed_at"), required=True),
        ),
        measured=("price_minor",),
        moment="at",
        one_of=("price", "price_minor"),
        known="are no newer than what was known: of each item and competitor the newest counts",
    ),
    "interactions": Kind(
        "interactions", "what customers do besides buying",
        ("id", "unit", "product_id", "kind", "value", "at", "import_id"),
        (
            Field("id", "the event's own key", ("event_id", "interaction_id"), is_text=True),
            _UNIT,
            _PRODUCT,
            Field("kind", ", ".join(DEEDS), ("event", "event_type", "type", "action"),
                  required=True),
            Field("value", "of a review: its stars or score", ("rating", "score", "stars")),
            Field("at", "when", ("time", "timestamp", "date", "occurred_at", "event_time"),
                  required=True),
        ),
        moment="at",
    ),
    "transactions": Kind(
        "transactions", "what customers bought, one row per line of a receipt",
        ("id", "unit", "product_id", "basket", "quantity", "paid_minor", "discount_minor",
         "bought_at", "import_id"),
        (
            Field("id", "the line's own key", ("line_id", "transaction_id", "order_line"),
                  is_text=True),
            _UNIT,
            _PRODUCT,
            Field("basket", "the receipt's or order's key",
                  ("basket_id", "order", "order_id", "receipt", "invoice", "invoiceno"),
                  is_text=True),
            Field("quantity", "pieces", ("qty", "units", "pieces"), default=1),
            Field("paid", "paid for the line after the discount, such as 25.98",
                  ("sales_value", "amount", "total", "revenue")),
            Field("paid_minor", "the same in minor units"),
            Field("price", "list price of one piece, where paid is not told",
                  ("unit_price", "list_price")),
            Field("discount", "saved on the line", ("discount_value", "rebate"), default=0),
            Field("discount_minor", "the same in minor units"),
            Field("bought_at", "when", ("date", "time", "timestamp", "at", "order_date",
                  "invoicedate", "purchased_at"), required=True),
        ),
        measured=("quantity", "paid_minor", "discount_minor"),
        moment="bought_at",
        one_of=("paid", "paid_minor", "price"),
        outliers="that much where features are made of them (winsorised)",
    ),
}  # fmt: skip


def kind(name: str) -> Kind:
    """Return a kind by its name; raises KeyError."""
    return _KINDS[name]


def _plain(column: str) -> str:
    return "_".join(column.strip().lower().replace("-", " ").split())


@dataclass(frozen=True)
class Plan:
    """How the cells of one file become fields: which are read, which make attributes, which not.

    ``fields`` are (place, field, reader); ``attributes`` are (place, key).
    """

    kind: Kind
    fields: tuple[tuple[int, Field, Reader], ...]
    attributes: tuple[tuple[int, str], ...]
    unused: tuple[str, ...]
    personal: tuple[str, ...]


class UnfitHeader(ValueError):
    """A file whose columns do not make the rows that it is said to hold."""


def plan(kind: Kind, header: Sequence[str], settings: Settings, now: dt.datetime) -> Plan:
    """Return how a file with this header is read.

    Raises:
        UnfitHeader: a field is told twice, or one that is needed is not told at all.
    """
    found: dict[str, int] = {}
    attributes: list[tuple[int, str]] = []
    unused, personal = [], []
    for place, column in enumerate(header):
        known = kind.field_of(column, settings.columns)
        if known is not None:
            if known.name in found:
                both = f"{header[found[known.name]]!r} and {column!r}"
                raise UnfitHeader(f"the columns {both} both hold {known.name}; remove one")
            found[known.name] = place
        elif kind.name == "customers" and column.strip():
            key = _plain(settings.columns.get(column, column))[:64]
            if set(key.split("_")) & set(PERSONAL):
                personal.append(column)
            else:
                attributes.append((place, key))
        else:
            unused.append(column)
    _check(kind, found, header, attributes)
    readers = _readers(kind, settings, now)
    fields = tuple(
        (found[one.name], one, readers[one.name]) for one in kind.fields if one.name in found
    )
    return Plan(kind, fields, tuple(attributes), tuple(unused), tuple(personal))


def _check(
    kind: Kind,
    found: Mapping[str, int],
    header: Sequence[str],
    attributes: Sequence[tuple[int, str]],
) -> None:
    wanted: list[tuple[str, ...]] = [(one.name,) for one in kind.fields if one.required]
    if kind.one_of:
        wanted.append(kind.one_of)
    for names in wanted:
        if not set(names) & set(found):
            has = ", ".join(column or "(empty)" for column in list(header)[:12])
            more = f" and {len(header) - 12} more" if len(header) > 12 else ""
            rows = kind.name.replace("_", " ")
            raise UnfitHeader(
                f"no column holds {' or '.join(names)}, which {rows} need; the file has: {has}"
                f"{more}. Rename a column, or say which one it is"
            )
    keys = [key for _, key in attributes]
    for key in keys:
        if keys.count(key) > 1:
            raise UnfitHeader(f"the column {key!r} is there twice; remove one")
    if len(keys) > MAX_ATTRIBUTES:
        raise UnfitHeader(
            f"{len(keys):,} columns would become attributes of customers, of which at most"
            f" {MAX_ATTRIBUTES} fit; keep those that segments or features read"
        )


def _readers(kind: Kind, settings: Settings, now: dt.datetime) -> dict[str, Reader]:
    amount = money(settings.decimals)
    given = {
        "price": amount, "unit_cost": amount, "discount": amount,
        "paid": money(settings.decimals, remedy=_RETURNS),
        "price_minor": minor, "unit_cost_minor": minor, "discount_minor": minor,
        "paid_minor": minor,
        "stock": whole(0, STOCK), "quantity": whole(1, QUANTITY),
        "kind": one_of(*DEEDS), "value": number(-1e6, 1e6),
        "at": moment(settings.zone, now), "bought_at": moment(settings.zone, now),
    }  # fmt: skip
    return {one.name: given.get(one.name, text) for one in kind.fields}


Make = Callable[[Mapping[str, Any]], tuple[Any, ...]]


def maker(kind: Kind, key: bytes, import_id: int | None) -> Make:
    """Return the function from a row's values to what is stored; ``key`` hides the units."""
    hidden = lru_cache(maxsize=65_536)(lambda unit: pseudonym(key, unit))

    def customers(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return hidden(row["unit"]), orjson.dumps(row["attributes"]).decode()

    def products(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return (
            row["id"], row.get("department"), row.get("category"), row.get("name"),
            _first(row, "price_minor", "price"), _first(row, "unit_cost_minor", "unit_cost"),
            row.get("stock"),
        )  # fmt: skip

    def competitor_prices(row: Mapping[str, Any]) -> tuple[Any, ...]:
        price = _first(row, "price_minor", "price")
        if not price:
            raise Refused("price", "is missing" if price is None else "must be more than 0")
        return row["product_id"], row["competitor"], price, row["at"]

    def interactions(row: Mapping[str, Any]) -> tuple[Any, ...]:
        unit = hidden(row["unit"])
        held = (row["product_id"], row["kind"], row.get("value"), row["at"])
        return row.get("id") or _derived(unit, *held), unit, *held, import_id

    def transactions(row: Mapping[str, Any]) -> tuple[Any, ...]:
        unit = hidden(row["unit"])
        paid, discount = _amounts(row)
        at = row["bought_at"]
        basket = row.get("basket") or _derived(unit, at.date())
        held = (row["product_id"], basket, row.get("quantity", 1), paid, discount, at)
        return row.get("id") or _derived(unit, *held), unit, *held, import_id

    return {
        "customers": customers,
        "products": products,
        "competitor_prices": competitor_prices,
        "interactions": interactions,
        "transactions": transactions,
    }[kind.name]


def read(
    plan: Plan, cells: Sequence[Any], imputed: dict[str, int], gaps: dict[str, int]
) -> dict[str, Any]:
    """Return a row's values by field; counts what was imputed and what is missing.

    Raises:
        Refused: a value cannot be read, or one that is needed is missing.
    """
    row: dict[str, Any] = {}
    for place, one, reader in plan.fields:
        value = cells[place]
        if missing(value, text=one.is_text):
            if one.required:
                raise Refused(one.name, "is missing")
            counts = gaps if one.default is None else imputed
            counts[one.name] = counts.get(one.name, 0) + 1
            row[one.name] = one.default
            continue
        try:
            row[one.name] = reader(value)
        except Unreadable as error:
            raise Refused(one.name, str(error)) from None
    if plan.kind.name == "customers":
        row["attributes"] = _attributes(plan, cells, gaps)
    return row


def _attributes(plan: Plan, cells: Sequence[Any], gaps: dict[str, int]) -> dict[str, Any]:
    held = {}
    for place, key in plan.attributes:
        if missing(cells[place], text=False):
            gaps[key] = gaps.get(key, 0) + 1
            continue
        try:
            held[key] = attribute(cells[place])
        except Unreadable as error:
            raise Refused(key, str(error)) from None
    return held


def _amounts(row: Mapping[str, Any]) -> tuple[int, int]:
    discount = _first(row, "discount_minor", "discount") or 0
    paid = _first(row, "paid_minor", "paid")
    if paid is None:
        price = row.get("price")
        if price is None:
            raise Refused("paid", "is missing")
        paid = price * (row.get("quantity") or 1) - discount
        if paid < 0:
            raise Refused("discount", "is more than the line's list value")
    return paid, discount


def _first(row: Mapping[str, Any], *names: str) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _derived(*parts: Any) -> str:
    """Return a key made of what a row says, the same for the same row."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
