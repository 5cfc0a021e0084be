"""Pages of what was found in receipts: personas, price elasticities, recommendations."""

import datetime as dt
from typing import Any

from flask import current_app
from sqlalchemy.orm import Session

from service import charts as drawn
from service import shop
from service.models import Customer, Model
from service.shop import Money
from service.traits import stored
from service.traits.recommend import Recommender, named
from service.traits.vectors import POPULARITY, TASTE
from service.views import console_words as words
from service.views.console_base import Reply, database, now, page, render
from service.views.console_data import drawable, picture
from service.views.console_live import Chart, Figure, Table

RECOMMENDED = 8
CAVEAT = (
    "What went with a lower price, not what it alone would do: receipts do not tell what was"
    " advertised or sold out, and people stock up in promotions. A campaign finds it out by trying."
)


@page("/personas", needs="read")
def personas() -> Reply:
    """Show the groups of customers that behave alike."""
    with database() as session:
        found, money = stored.newest(session), shop.money(session)
    groups = [] if found is None else found.summary.get("personas", [])
    return render(
        "personas.html",
        groups=_groups(groups, found, money),
        computed=_computed(found),
        failed=None if found is None else found.summary["failed"].get("personas"),
    )


@page("/elasticities", needs="read")
def elasticities() -> Reply:
    """Show how much more is sold where prices are lower."""
    with database() as session:
        found = stored.newest(session)
    told = _elasticities(found)
    return render(
        "elasticities.html",
        charts=[_chart(name, title, rows) for name, title, rows in told],
        specs=drawable(_specs(found)),
        computed=_computed(found),
        failed=None if found is None else found.summary["failed"].get("elasticity"),
        responses=_responses(found),
        left_out=[] if found is None else found.summary.get("response_left_out", []),
    )


@page("/elasticities/<chart>.svg", needs="read")
def elasticity_picture(chart: str) -> Reply:
    """Draw elasticities on the server, for browsers without scripts."""
    with database() as session:
        return picture(_specs(stored.newest(session)).get(chart))


@page("/recommendations", needs="read")
def recommendations() -> Reply:
    """Show how well the recommender foresees what customers choose next."""
    with database() as session:
        found = stored.newest(session)
    told = {} if found is None else found.summary.get("recommender", {})
    judged = "judged" in told
    return render(
        "recommendations.html",
        fitted=found is not None and "taste" not in found.summary["failed"],
        chart=_foresight(told) if judged else None,
        specs=drawable({"foresight": drawn.foresight(_foreseen(told))} if judged else {}),
        popular=told.get("served") == POPULARITY,
        options=_options(told),
        computed=_computed(found),
        failed=None if found is None else _why_not_judged(found),
    )


@page("/recommendations/foresight.svg", needs="read")
def foresight_picture() -> Reply:
    """Draw what was foreseen on the server, for browsers without scripts."""
    with database() as session:
        found = stored.newest(session)
    told = {} if found is None else found.summary.get("recommender", {})
    return picture(drawn.foresight(_foreseen(told)) if "judged" in told else None)


def insights(session: Session, unit: bytes, money: Money) -> dict[str, Any]:
    """Return what was computed of one customer, for their page: figures and recommendations."""
    held, found = session.get(Customer, unit), stored.newest(session)
    traits = {} if held is None else held.traits
    recommender: Recommender = current_app.extensions["barter.recommender"]
    best = recommender.for_unit(session, unit, RECOMMENDED)
    known = named(session, best)
    return {
        "insight_figures": _customer_figures(traits, found, money),
        "recommended": [
            {
                "id": key,
                "name": (known[key].name or known[key].category or key) if key in known else key,
                "place": known[key].department or "" if key in known else "",
            }
            for key, _ in best.products
        ],
        "events": best.events,
        "best_sellers": best.ranked_by == POPULARITY,
    }


def _customer_figures(
    traits: dict[str, Any], found: Model | None, money: Money
) -> tuple[Figure, ...]:
    figures = []
    names = {} if found is None else _names(found)
    if "persona" in traits:
        key = traits["persona"]
        figures.append(Figure("Persona", key, names.get(key, "")))
    if "value_minor" in traits:
        worth = shop_amount(traits["value_minor"], money)
        figures.append(Figure("Expected to spend", worth, "in the next year"))
    if "alive" in traits:
        still = words.percent(traits["alive"], 0)
        figures.append(Figure("Still a customer", still, "chance, by how they bought so far"))
    if "purchase_chance" in traits:
        soon = words.percent(traits["purchase_chance"], 0)
        figures.append(Figure("Buys within 30 days", soon, "chance, after the newest receipts"))
    return tuple(figures)


def _names(found: Model) -> dict[str, str]:
    return {one["key"]: one["name"] for one in found.summary.get("personas", [])}


def shop_amount(minor: float, money: Money) -> str:
    """Return money without its smallest units, as estimates are told."""
    figure = f"{minor / 10**money.decimals:,.0f}".replace(",", "\u202f")
    return f"{figure} {money.currency}".rstrip()


def _computed(found: Model | None) -> str:
    if found is None:
        return ""
    lines = words.count(found.summary.get("receipt_lines"))
    return f"Computed {words.ago(found.created_at, now())} from {lines} receipt lines."


# ---------------------------------------------------------------- personas

_SHOWN = (
    ("orders", "Days with a purchase"),
    ("recency_days", "Days since the last one"),
    ("spend_minor", "Spent"),
    ("discount_share", "Saved by discounts"),
    ("value_minor", "Expected next year"),
)


def _groups(
    groups: list[dict[str, Any]], found: Model | None, money: Money
) -> list[dict[str, Any]]:
    total = sum(one["size"] for one in groups) or 1
    most = {
        name: max((one["medians"].get(name, 0.0) for one in groups), default=0.0) or 1.0
        for name, _ in _SHOWN
    }
    slopes = {} if found is None else _slopes(found)
    return [
        {
            "key": one["key"],
            "name": one["name"],
            "size": words.count(one["size"]),
            "share": one["size"] / total,
            "percent": words.percent(one["size"] / total, 0),
            "elasticity": slopes.get(one["key"]),
            "medians": [
                {
                    "title": title,
                    "text": _median(name, one["medians"][name], money),
                    "share": one["medians"][name] / most[name],
                }
                for name, title in _SHOWN
                if name in one["medians"]
            ],
        }
        for one in groups
    ]


def _slopes(found: Model) -> dict[str, str]:
    rows = found.summary.get("elasticity", {}).get("personas", [])
    return {one["group"]: _figure(one) for one in rows}


def _median(name: str, value: float, money: Money) -> str:
    if name.endswith("_minor"):
        return shop_amount(value, money)
    if name == "discount_share":
        return words.percent(value, 0)
    return words.count(round(value))


# ---------------------------------------------------------------- elasticities


def _elasticities(found: Model | None) -> list[tuple[str, str, list[dict[str, Any]]]]:
    if found is None:
        return []
    told = found.summary.get("elasticity", {})
    names = _names(found)
    parts = (("departments", "By department"), ("personas", "By persona"))
    return [
        (name, title, [one | {"group": names.get(one["group"], one["group"])} for one in rows])
        for name, title in parts
        if (rows := sorted(told.get(name, []), key=lambda one: one["estimate"]))
    ]


def _specs(found: Model | None) -> dict[str, drawn.Spec]:
    return {name: drawn.elasticity(rows) for name, _, rows in _elasticities(found)}


def _chart(name: str, title: str, rows: list[dict[str, Any]]) -> Chart:
    most, least = rows[0], rows[-1]
    more = -most["estimate"] * 10
    return Chart(
        name=name,
        title=title,
        reading=f"“{most['group'].capitalize()}” reacts most: about {more:.0f} % more pieces where"
        f" the price is 10 % lower. “{least['group'].capitalize()}” reacts least.",
        caption=CAVEAT,
        waiting="",
        table=Table(
            ("Group", "Elasticity, 95 % interval"),
            tuple((one["group"], _figure(one)) for one in rows),
        ),
    )


def _responses(found: Model | None) -> list[dict[str, str]]:
    """Return how strongly discounts work on the first and the last fifth of customers."""
    return [
        {
            "category": one["category"].capitalize(),
            "trait": one["trait"],
            **{
                end: f"{one[end]:+.0%}".replace("-", "−").replace("%", " %")
                for end in ("least", "most")
            },
        }
        for one in ([] if found is None else found.summary.get("response", []))
    ]


def _figure(one: dict[str, Any]) -> str:
    text = f"{one['estimate']:.2f} ({one['low']:.2f} to {one['high']:.2f})"
    return text.replace("-", "−")


# ---------------------------------------------------------------- chances to buy


def chance_specs(found: Model | None) -> dict[str, drawn.Spec]:
    """Return the chart of how chances to buy came true, if there are any."""
    told = {} if found is None else found.summary.get("purchase_chance", {})
    return {"chance": drawn.calibration(told["predicted"], told["observed"])} if told else {}


def chance_chart(found: Model | None) -> Chart | None:
    """Return what stands around that chart."""
    told = {} if found is None else found.summary.get("purchase_chance", {})
    if not told:
        return None
    share = words.percent(told["bought"] / told["customers"], 0)
    return Chart(
        name="chance",
        title="Chances to buy, and who bought",
        reading=f"{share} of {words.count(told['customers'])} customers bought within the last 30"
        f" days. Chances told from what was known before were off by"
        f" {100 * told['calibration_error']:.1f} points on average, and of a buyer and another"
        f" customer the buyer had the higher one in {100 * told['auc']:.0f} of 100 cases.",
        caption="Each dot is a tenth of the customers: on the dashed line, chances come true. Told"
        f" by {_MODELS[told['model']]} that had not seen these customers. It goes by how customers"
        " bought with offers as they were, and does not say whom an offer would move.",
        waiting="",
        table=Table(
            ("Chance to buy", "Bought", "Customers"),
            tuple(
                (words.percent(chance), words.percent(came), words.count(round(rows)))
                for chance, came, rows in zip(
                    told["predicted"], told["observed"], told["rows"], strict=True
                )
            ),
        ),
    )


_MODELS = {"logistic": "a logistic regression", "trees": "boosted trees"}

# ---------------------------------------------------------------- recommendations

_RANKED = (
    (TASTE, "Taste"),
    ("last", "Taste, before"),
    (POPULARITY, "Best sellers"),
)


def _foreseen(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Return how many of 100 products each ranking foresaw, with intervals."""
    return [
        {"group": title, "estimate": 100 * one["recall"]}
        | {end: 100 * one[end] for end in ("low", "high")}
        for name, title in _RANKED
        if (one := told["judged"].get(name))
    ]


def _foresight(told: dict[str, Any]) -> Chart:
    judged = told["judged"]
    day = words.day(dt.date(1970, 1, 1) + dt.timedelta(days=told["after"]))
    return Chart(
        name="foresight",
        title="Foreseen of what customers chose next",
        reading=f"Of 100 products that customers chose from {day} on and never had before,"
        f" {100 * judged[TASTE]['recall']:.1f} were among the twenty that their taste names, and"
        f" {100 * judged[POPULARITY]['recall']:.1f} among twenty best sellers. {_better(told)}",
        caption=f"Judged by {words.count(told['customers'])} customers, with what was known the day"
        " before. “Taste, before” is what was served until this computation. Bars hold the mean"
        " with 95 % confidence. Twenty names cannot hold all that somebody buys in weeks: compare"
        " the rankings, not with 100.",
        waiting="",
        table=Table(
            ("Ranking", "Of 100", "NDCG", "Products named", "Unlike"),
            tuple(_ranking(title, judged[name]) for name, title in _RANKED if name in judged),
        ),
    )


def _better(told: dict[str, Any]) -> str:
    more = told["more_than"][POPULARITY]
    low, high = (f"{100 * abs(more[end]):.1f}" for end in ("low", "high"))
    if more["low"] > 0:
        return f"Taste foresees {low} to {high} more."
    if more["high"] < 0:
        return f"Taste foresees {high} to {low} fewer."
    return f"Which is better cannot be told yet: {low} fewer to {high} more by taste."


def _ranking(title: str, one: dict[str, Any]) -> tuple[str, ...]:
    unlike = one["diversity"]
    return (
        title,
        f"{100 * one['recall']:.1f} ({100 * one['low']:.1f} to {100 * one['high']:.1f})",
        f"{one['ndcg']:.3f}",
        words.percent(one["coverage"], 1),
        "—" if unlike is None else words.percent(unlike, 0),
    )


def _options(told: dict[str, Any]) -> str:
    kept = told.get("options")
    if not kept or not told.get("searched_products"):
        return ""
    listed = ", ".join(f"{name} {value:g}" for name, value in sorted(kept.items()))
    return (
        f"Options ({listed}) were chosen by what they foresaw when there were"
        f" {words.count(told['searched_products'])} products; they are kept until there are twice"
        " as many."
    )


def _why_not_judged(found: Model) -> str | None:
    failed = found.summary["failed"]
    why: str | None = failed.get("taste") or failed.get("backtest")
    return why
