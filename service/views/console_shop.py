"""Pages of the shop: what is stored of one customer, and the catalogue."""

import datetime as dt
from dataclasses import dataclass
from typing import Any

import flask
from flask import request
from sqlalchemy import select

from service import charts as drawn
from service import shop
from service.errors import NotFound
from service.models import Campaign, Product
from service.products import LONGEST_COVER_DAYS, TOLD_LAST, cover_days, gap
from service.shop import CustomerFile, Money, Purchases
from service.traits import stored
from service.views import console_words as words
from service.views.console_admin import address
from service.views.console_base import PAGE_SIZE, Reply, database, may, now, page, render, runtime
from service.views.console_data import drawable, picture
from service.views.console_live import Chart, Figure, Table
from service.views.console_log import table as decision_rows
from service.views.console_traits import chance_chart, chance_specs, insights

MOST_MONTHS = 24
NAMED_ITEMS = 3
SHORT_COVER_DAYS = 7


@page("/customers", needs="read")
def find_customer() -> Reply:
    """Ask which customer to look at, and show how far chances to buy can be relied on."""
    return _search()


@page("/customers/chance.svg", needs="read")
def chance_picture() -> Reply:
    """Draw chances to buy on the server, for browsers without scripts."""
    with database() as session:
        return picture(chance_specs(stored.newest(session)).get("chance"))


def _search(errors: dict[str, str] | None = None) -> str:
    with database() as session:
        found = stored.newest(session)
    specs = chance_specs(found)
    return render(
        "customer_search.html",
        errors=errors or {},
        chart=chance_chart(found) if specs else None,
        specs=drawable(specs),
    )


@page("/customers", needs="read", methods=("POST",))
def search_customer() -> Reply:
    """Lead to a customer by the plain identifier, which is hashed and kept nowhere."""
    unit = request.form.get("unit", "").strip()
    if not unit or len(unit) > 200:
        said = {"unit": "Enter an identifier of at most 200 characters."}
        return _search(said), 422
    pseudonym = runtime().pseudonym(unit)
    with database() as session:
        found = shop.customer(session, pseudonym)
    if found.empty:
        said = {
            "unit": "Nothing is stored of this customer. Identifiers are compared letter by letter:"
            " enter it as your shop writes it, capitals and leading zeros included."
        }
        return _search(said), 404
    return flask.redirect(flask.url_for("console.customer", unit=pseudonym.hex()))


@page("/customers/<string(length=32):unit>", needs="read")
def customer(unit: str) -> Reply:
    """Show what is stored of one customer, named by pseudonym."""
    with database() as session:
        held = shop.customer(session, _pseudonym(unit))
        money = shop.money(session)
        known = session.scalars(select(Campaign)).all() if held.decisions else []
        decisions = decision_rows(session, held.decisions, known)
        insight = insights(session, _pseudonym(unit), money)
    if held.empty:
        raise NotFound("Nothing is stored of this customer.")
    return render(
        "customer.html",
        unit=unit,
        held=held,
        age=words.ago(held.updated_at, now()),
        figures=_figures(held, money),
        chart=_spend(held.purchases, money) if held.purchases else None,
        specs=drawable(_specs(held, money)),
        receipts=[_receipt(one, money) for one in held.receipts],
        rows=decisions if may("decisions") else [],
        many=True,
        **insight,
    )


@page("/customers/<string(length=32):unit>/spend.svg", needs="read")
def customer_picture(unit: str) -> Reply:
    """Draw a customer's spending on the server, for browsers without scripts."""
    with database() as session:
        held = shop.customer(session, _pseudonym(unit))
        money = shop.money(session)
    return picture(_specs(held, money).get("spend"))


def _pseudonym(written: str) -> bytes:
    try:
        return bytes.fromhex(written)
    except ValueError:
        raise NotFound("Nothing is stored of this customer.") from None


def amount(minor: float, money: Money) -> str:
    """Return money as a figure, such as ``99.00 EUR``.

    >>> amount(9_900, Money("EUR", 2)), amount(5, Money("", 0))
    ('99.00 EUR', '5')
    """
    figure = f"{minor / 10**money.decimals:,.{money.decimals}f}".replace(",", "\u202f")
    return f"{figure} {money.currency}".rstrip()


# ---------------------------------------------------------------- one customer


def _figures(held: CustomerFile, money: Money) -> tuple[Figure, ...]:
    bought = held.purchases
    if bought is None:
        return ()
    listed = bought.paid_minor + bought.discount_minor
    saved = bought.discount_minor / listed if listed else 0.0
    return (
        Figure(
            "Spent", amount(bought.paid_minor, money), f"since {words.day(bought.first.date())}"
        ),
        Figure(
            "Receipts",
            words.count(bought.receipts),
            f"{amount(bought.paid_minor / bought.receipts, money)} each",
        ),
        Figure("Last purchase", words.day(bought.last.date()), words.ago(bought.last, now())),
        Figure("Saved by discounts", words.percent(saved), amount(bought.discount_minor, money)),
    )


def _specs(held: CustomerFile, money: Money) -> dict[str, drawn.Spec]:
    if held.purchases is None:
        return {}
    title = f"Spent, {money.currency}" if money.currency else "Spent"
    months = [(month, paid / 10**money.decimals) for month, paid in _months(held.purchases)]
    return {"spend": drawn.spend(months, title=title)}


def _months(bought: Purchases) -> list[tuple[dt.date, int]]:
    """Return the last two years of a customer by month, those without a purchase included."""
    known = dict(bought.months)
    found: list[tuple[dt.date, int]] = []
    month = bought.months[-1][0]
    while len(found) < MOST_MONTHS:
        found.append((month, known.get(month, 0)))
        month = (month - dt.timedelta(days=1)).replace(day=1)
        if month < bought.months[0][0] and len(found) >= MOST_MONTHS // 2:
            break
    return found[::-1]


def _spend(bought: Purchases, money: Money) -> Chart:
    months = _months(bought)
    active = sum(1 for _, paid in months if paid)
    rows = tuple((f"{month:%B %Y}", amount(paid, money)) for month, paid in reversed(months))
    return Chart(
        name="spend",
        title="Spent by month",
        reading=f"Bought in {active} of the {len(months)} months up to {months[-1][0]:%B %Y}.",
        caption="What was paid, after discounts. Months are UTC.",
        waiting="",
        table=Table(("Month", "Spent"), rows),
    )


def _receipt(one: shop.Receipt, money: Money) -> dict[str, Any]:
    more = len(one.items) - NAMED_ITEMS
    named = ", ".join(one.items[:NAMED_ITEMS])
    return {
        "at": one.at,
        "items": f"{named} and {more} more" if more > 0 else named,
        "pieces": words.count(one.pieces),
        "paid": amount(one.paid_minor, money),
        "saved": amount(one.discount_minor, money) if one.discount_minor else "—",
    }


# ---------------------------------------------------------------- the catalogue


@dataclass(frozen=True)
class ProductRow:
    """One item as the page shows it; ``margin_share`` is of the price, None where unknown.

    ``rival`` is the lowest price of a competitor, ``rival_note`` whose it is and how far ours is.
    """

    id: str
    name: str
    place: str
    price: str
    cost: str
    margin: str
    margin_share: float | None
    rival: str
    rival_note: str
    stock: str
    cover: str
    short: bool


@page("/products", needs="read")
def products() -> Reply:
    """Show the catalogue, item by item."""
    search = request.args.get("search", "").strip()[:200]
    after = request.args.get("after", "")[:200]
    with database() as session:
        found = shop.products(session, search=search, after=after, limit=PAGE_SIZE + 1)
        money = shop.money(session)
        rivals = shop.cheapest(session, [one.id for one in found], now())
    older = address(after=found[PAGE_SIZE - 1].id) if len(found) > PAGE_SIZE else None
    rows = [_product(one, money, rivals.get(one.id)) for one in found[:PAGE_SIZE]]
    return render(
        "products.html",
        rows=rows,
        paced=any(row.cover for row in rows),
        rivals=bool(rivals),
        newer=address(after=None) if after else None,
        older=older,
        form={"search": search},
    )


def _product(one: Product, money: Money, rival: shop.Rival | None) -> ProductRow:
    priced = one.price_minor is not None and one.unit_cost_minor is not None and one.price_minor
    margin = (one.price_minor or 0) - (one.unit_cost_minor or 0) if priced else None
    share = None if margin is None else margin / (one.price_minor or 1)
    old = one.stock is not None and now() - one.stock_at >= TOLD_LAST
    days = None if old else cover_days(one.stock, one.pace, one.pace_at, now())
    cover = "" if days is None else _cover(days)
    return ProductRow(
        id=one.id,
        name=one.name or one.id,
        place=" / ".join(part for part in (one.department, one.category) if part),
        price="—" if one.price_minor is None else amount(one.price_minor, money),
        cost="—" if one.unit_cost_minor is None else amount(one.unit_cost_minor, money),
        margin="—" if share is None else _percent(share),
        margin_share=share,
        rival="—" if rival is None else amount(rival.price_minor, money),
        rival_note="" if rival is None else _beside(one.price_minor, rival),
        stock=words.count(one.stock),
        cover=f"told {words.ago(one.stock_at, now())}" if old else cover,
        short=one.stock == 0 or (days is not None and days < SHORT_COVER_DAYS),
    )


def _beside(price_minor: int | None, rival: shop.Rival) -> str:
    """Return whose price it is, and how ours lies beside it.

    >>> day = dt.datetime(2026, 11, 29)
    >>> _beside(550, shop.Rival("Acme", 500, day)), _beside(None, shop.Rival("Acme", 500, day))
    ('Acme, we ask 10 % more', 'Acme')
    """
    ours = gap(price_minor, rival.price_minor)
    if ours is None:
        return rival.competitor
    if ours == 0:
        return f"{rival.competitor}, as we do"
    return f"{rival.competitor}, we ask {_percent(abs(ours))} {'more' if ours > 0 else 'less'}"


def _percent(share: float) -> str:
    """Return a margin in per cent, with a digit after the point where it is small.

    >>> _percent(0.416), _percent(-0.0046)
    ('42 %', '−0.5 %')
    """
    return words.percent(share, 0 if abs(share) >= 0.1 else 1).replace("-", "−")


def _cover(days: float) -> str:
    """Return how long the stock lasts, in words.

    >>> _cover(0.0), _cover(1.2), _cover(45.6), _cover(LONGEST_COVER_DAYS)
    ('sold out', 'lasts 1 day', 'lasts 46 days', 'lasts a year or more')
    """
    if days == 0:
        return "sold out"
    if days >= LONGEST_COVER_DAYS:
        return "lasts a year or more"
    whole = max(round(days), 1)
    return f"lasts {whole} day{'s' if whole > 1 else ''}"
