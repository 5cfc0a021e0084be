"""What is stored of a shop, for people to look at: how much, one customer, the catalogue.

Nothing here reads a large table whole: counts of large tables are PostgreSQL's own estimates, a
customer's rows are found by index, and the pace of sales has been computed (`service.traits`).
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Integer, func, or_, select, text
from sqlalchemy.orm import Session

from service.models import (
    Campaign,
    CompetitorPrice,
    Customer,
    Decision,
    Import,
    Interaction,
    Product,
    Transaction,
)
from service.products import COMPETITORS_LAST

COUNTED = 100_000
"""Tables of more rows than this are not counted but estimated."""
LATEST = 20
_TABLES: dict[str, Any] = {
    "customers": Customer,
    "products": Product,
    "interactions": Interaction,
    "transactions": Transaction,
}


class Count(NamedTuple):
    """How many rows a table has; an estimate unless ``exact``."""

    rows: int
    exact: bool


class Money(NamedTuple):
    """How amounts are written: the currency's code, or nothing, and its digits."""

    currency: str
    decimals: int


def counts(session: Session) -> dict[str, Count]:
    """Return how much of each kind is stored."""
    return {name: _count(session, table) for name, table in _TABLES.items()}


def _count(session: Session, table: Any) -> Count:
    # The planner scales its last count to the table's present size.
    planned = session.scalar(text(f"EXPLAIN (FORMAT JSON) SELECT FROM {table.__tablename__}"))
    estimate = int(planned[0]["Plan"]["Plan Rows"]) if planned else 0
    if estimate > COUNTED:
        return Count(estimate, exact=False)
    return Count(session.scalar(select(func.count()).select_from(table)) or 0, exact=True)


def money(session: Session) -> Money:
    """Return how to write amounts: in the currency of all campaigns, with the last file's digits.

    Tables hold minor units and no currency; where campaigns have several, none is named.
    """
    code = Campaign.definition["currency"].astext
    codes = session.scalars(select(code).distinct().limit(2)).all()
    newest = session.scalars(
        select(Import.settings["decimals"].astext.cast(Integer))
        .where(Import.kind.not_in(("customers", "interactions")), Import.state != "undone")
        .order_by(Import.id.desc())
        .limit(1)
    ).first()
    return Money(codes[0] if len(codes) == 1 else "", 2 if newest is None else newest)


# ---------------------------------------------------------------- one customer


@dataclass(frozen=True)
class Receipt:
    """One receipt of a customer: pieces, what was paid and saved, and the names of its items."""

    at: dt.datetime
    pieces: int
    paid_minor: int
    discount_minor: int
    items: tuple[str, ...]


@dataclass(frozen=True)
class Purchases:
    """What a customer bought over the whole time, in minor units; ``months`` are first days."""

    receipts: int
    paid_minor: int
    discount_minor: int
    first: dt.datetime
    last: dt.datetime
    months: tuple[tuple[dt.date, int], ...]


@dataclass(frozen=True)
class Deed:
    """One interaction of a customer."""

    at: dt.datetime
    kind: str
    item: str
    value: float | None


@dataclass(frozen=True)
class CustomerFile:
    """What is stored of one customer; ``deeds`` counts interactions by kind."""

    attributes: dict[str, Any]
    updated_at: dt.datetime | None
    purchases: Purchases | None
    receipts: tuple[Receipt, ...]
    deeds: dict[str, int]
    interactions: tuple[Deed, ...]
    decisions: tuple[Decision, ...]

    @property
    def empty(self) -> bool:
        """Whether nothing at all is stored."""
        return not (self.updated_at or self.purchases or self.deeds or self.decisions)


def customer(session: Session, unit: bytes) -> CustomerFile:
    """Return what is stored of a customer, by pseudonym; the newest of everything that is long."""
    found = session.get(Customer, unit)
    kinds = (
        select(Interaction.kind, func.count())
        .where(Interaction.unit == unit)
        .group_by(Interaction.kind)
        .order_by(Interaction.kind)
    )
    decisions = (
        select(Decision)
        .where(Decision.unit == unit)
        .order_by(Decision.position.desc())
        .limit(LATEST)
    )
    return CustomerFile(
        attributes=dict(found.attributes) if found else {},
        updated_at=found.updated_at if found else None,
        purchases=_purchases(session, unit),
        receipts=_receipts(session, unit),
        deeds={row[0]: row[1] for row in session.execute(kinds)},
        interactions=_interactions(session, unit),
        decisions=tuple(session.scalars(decisions)),
    )


def _purchases(session: Session, unit: bytes) -> Purchases | None:
    month = func.date_trunc("month", Transaction.bought_at, "UTC")
    rows = session.execute(
        select(
            month,
            func.sum(Transaction.paid_minor),
            func.sum(Transaction.discount_minor),
            func.min(Transaction.bought_at),
            func.max(Transaction.bought_at),
        )
        .where(Transaction.unit == unit)
        .group_by(month)
        .order_by(month)
    ).all()
    if not rows:
        return None
    number = select(func.count(Transaction.basket.distinct())).where(Transaction.unit == unit)
    return Purchases(
        receipts=session.scalar(number) or 0,
        paid_minor=int(sum(row[1] for row in rows)),
        discount_minor=int(sum(row[2] for row in rows)),
        first=rows[0][3],
        last=rows[-1][4],
        months=tuple((row[0].astimezone(dt.UTC).date(), int(row[1])) for row in rows),
    )


def _receipts(session: Session, unit: bytes) -> tuple[Receipt, ...]:
    newest = func.max(Transaction.bought_at)
    named = func.coalesce(Product.name, Transaction.product_id)
    rows = session.execute(
        select(
            newest,
            func.sum(Transaction.quantity),
            func.sum(Transaction.paid_minor),
            func.sum(Transaction.discount_minor),
            func.array_agg(named.distinct()),
        )
        .outerjoin(Product, Product.id == Transaction.product_id)
        .where(Transaction.unit == unit)
        .group_by(Transaction.basket)
        .order_by(newest.desc(), Transaction.basket)
        .limit(LATEST)
    )
    return tuple(
        Receipt(at, int(pieces), int(paid), int(saved), tuple(items))
        for at, pieces, paid, saved, items in rows
    )


def _interactions(session: Session, unit: bytes) -> tuple[Deed, ...]:
    rows = session.execute(
        select(
            Interaction.at,
            Interaction.kind,
            func.coalesce(Product.name, Interaction.product_id),
            Interaction.value,
        )
        .outerjoin(Product, Product.id == Interaction.product_id)
        .where(Interaction.unit == unit)
        .order_by(Interaction.at.desc(), Interaction.id)
        .limit(LATEST)
    )
    return tuple(Deed(*row) for row in rows)


# ---------------------------------------------------------------- the catalogue


def products(
    session: Session, *, search: str = "", after: str = "", limit: int = 50
) -> Sequence[Product]:
    """Return items in the order of their identifiers, those after ``after``.

    ``search`` is a part of the name, the category or the department, or how an identifier begins.
    """
    query = select(Product).order_by(Product.id).limit(limit)
    if search:
        parts = (Product.name, Product.category, Product.department)
        query = query.where(
            or_(
                Product.id.istartswith(search, autoescape=True),
                *(part.icontains(search, autoescape=True) for part in parts),
            )
        )
    return session.scalars(query.where(Product.id > after) if after else query).all()


class Rival(NamedTuple):
    """What a competitor asks for an item, and when that was seen."""

    competitor: str
    price_minor: int
    at: dt.datetime


def cheapest(session: Session, items: Sequence[str], now: dt.datetime) -> dict[str, Rival]:
    """Return who asks least for each of these items, among prices that still count."""
    rows = session.execute(
        select(
            CompetitorPrice.product_id, CompetitorPrice.competitor, CompetitorPrice.price_minor,
            CompetitorPrice.at,
        )
        .where(CompetitorPrice.product_id.in_(items), CompetitorPrice.at > now - COMPETITORS_LAST)
        .order_by(CompetitorPrice.price_minor.desc())
    )  # fmt: skip
    # Of each item the last one stays: the cheapest.
    return {row.product_id: Rival(*row[1:]) for row in rows}
