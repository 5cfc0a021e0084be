"""The decision log: every offer that was given, and why this one."""

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flask
from flask import request
from sqlalchemy import select
from sqlalchemy.orm import Session

from service import campaigns, contexts, history, replay, security
from service.definition import EVERYONE, CampaignDefinition, RecommendedOffer
from service.errors import UnknownDecision
from service.models import Campaign, Decision, Product, Reward
from service.views import console_words as words
from service.views.console_admin import address
from service.views.console_base import PAGE_SIZE, Reply, database, page, render, runtime
from service.views.console_campaigns import frame

_ANY = ("", "Any")
NOTABLE = 0.01
"""A difference between probabilities that is worth a word."""
_MASKS = {
    "disabled": "Switched off",
    "excluded for the segment": "Not for this segment",
    "excluded by the request": "Ruled out by the request",
    "the budget no longer covers it": "Budget too small",
}


@page("/campaigns/<key:key>/decisions", needs="decisions")
def campaign_decisions(key: str) -> Reply:
    """Show the decisions of one campaign, newest first."""
    chosen = _chosen("arm", "segment", "reason", "id")
    if chosen["id"]:
        return _to_decision(chosen["id"])
    with database() as session:
        campaign = campaigns.get(session, key)
        filters = history.Filters(
            arm=chosen["arm"] or None,
            segment=chosen["segment"] or None,
            reason=chosen["reason"] or None,
        )
        listing = f"console decisions {campaign.id} {filters.name}"
        found = history.decisions(
            session, campaign, filters, before=_before(listing), limit=PAGE_SIZE
        )
        shown = _page(session, found, listing, [campaign])
    plan = campaigns.definition(campaign)
    return render(
        "campaign_decisions.html",
        **frame(campaign, "campaign_decisions"),
        **shown,
        form=chosen,
        filtered=any(chosen.values()),
        arms=[_ANY, *((arm.key, arm.name) for arm in plan.arms)],
        segments=[_ANY, *((one, segment_name(plan, one)) for one in plan.segment_keys)],
        reasons=[_ANY, *words.REASONS.items()],
        many=False,
    )


@page("/decisions", needs="decisions")
def decision_log() -> Reply:
    """Show the decisions of all campaigns, newest first."""
    chosen = _chosen("campaign", "reason", "id")
    if chosen["id"]:
        return _to_decision(chosen["id"])
    with database() as session:
        known = session.scalars(select(Campaign).order_by(Campaign.key)).all()
        listing = f"console decisions {chosen['campaign']} {chosen['reason']}"
        ids = {one.key: one.id for one in known}
        only = ids.get(chosen["campaign"], 0) if chosen["campaign"] else None
        query = history.listed(only, before=_before(listing))
        wanted = {"reason": chosen["reason"]} if chosen["reason"] else {}
        found = history.page(session, query, wanted, limit=PAGE_SIZE)
        shown = _page(session, found, listing, known)
    names = [(one.key, campaigns.definition(one).name) for one in known]
    return render(
        "decisions.html",
        **shown,
        form=chosen,
        filtered=any(chosen.values()),
        campaigns=[_ANY, *names],
        reasons=[_ANY, *words.REASONS.items()],
        many=True,
    )


def _chosen(*names: str) -> dict[str, str]:
    return {name: request.args.get(name, "").strip()[:200] for name in names}


def _to_decision(written: str) -> Reply:
    """Lead to a decision by its id, however it was written."""
    try:
        found = uuid.UUID(written)
    except ValueError:
        raise UnknownDecision(f"with the id “{written[:40]}”") from None
    return flask.redirect(flask.url_for("console.decision", decision_id=found))


def _before(listing: str) -> int | None:
    cursor = request.args.get("cursor")
    if not cursor:
        return None
    return security.read_cursor(runtime().config.key("cursor"), listing, cursor)


def _page(
    session: Session, found: history.Page, listing: str, known: Sequence[Campaign]
) -> dict[str, Any]:
    older = None
    if found.older is not None:
        key = runtime().config.key("cursor")
        older = address(cursor=security.sign_cursor(key, listing, found.older))
    return {
        "rows": table(session, found.decisions, known),
        "newer": address(cursor=None) if request.args.get("cursor") else None,
        "older": older,
    }


def table(
    session: Session, shown: Sequence[Decision], known: Sequence[Campaign]
) -> list[dict[str, Any]]:
    """Return the rows of decisions as ``decisions_table.html`` shows them."""
    rewards = {
        reward.decision_id: reward
        for reward in session.scalars(
            select(Reward).where(Reward.decision_id.in_([one.id for one in shown]))
        )
    }
    plans = {one.id: campaigns.definition(one) for one in known}
    return [_row(one, plans[one.campaign_id], rewards.get(one.id)) for one in shown]


def _row(decision: Decision, plan: CampaignDefinition, reward: Reward | None) -> dict[str, Any]:
    arms, segments = plan.arms, plan.segment_keys
    known = decision.segment < len(segments)
    return {
        "id": decision.id,
        "at": decision.decided_at,
        "zone": plan.zone,
        "campaign": plan.name,
        "arm": arms[decision.arm].name if decision.arm < len(arms) else "—",
        "arm_place": decision.arm,
        "propensity": words.percent(decision.propensity),
        "reason": words.REASONS.get(decision.reason, decision.reason),
        "segment": segment_name(plan, segments[decision.segment]) if known else "—",
        "unit": decision.unit.hex(),
        "result": _result(reward, plan.currency),
    }


def _result(reward: Reward | None, currency: str) -> str:
    if reward is None or not (reward.conversions or reward.revenue_minor):
        return "—"
    return f"Bought, {words.amount(reward.revenue_minor, currency)}"


def segment_name(plan: CampaignDefinition, key: str) -> str:
    """Return what people call a segment."""
    if key == EVERYONE:
        return "Everyone else" if plan.segments else "Everyone"
    return next(segment.name for segment in plan.segments if segment.key == key)


# ---------------------------------------------------------------- one decision


@page("/decisions/<uuid:decision_id>", needs="decisions")
def decision(decision_id: uuid.UUID) -> Reply:
    """Show why one decision fell as it did, and repeat its draw."""
    with database() as session:
        told = history.explain(session, decision_id)
        repeated, said = _repeat(session, decision_id)
        products = _products(session, told)
        influence = None
        if repeated is not None and repeated.same:
            influence = history.influence(told, repeated.live)
    made, plan = told.decision, told.definition
    return render(
        "decision.html",
        plan=plan,
        chosen=plan.arms[made.arm],
        sentence=_why(told),
        arms=_chances(told),
        draw=_draw(told, repeated),
        products=products,
        context=_context(told, influence),
        facts=_facts(told, repeated),
        outcomes=told.outcomes,
        counts_until=history.outcomes_until(told),
        replay=said,
    )


def _why(told: history.Explanation) -> str:
    made, plan = told.decision, told.definition
    if made.reason not in ("policy", "sticky"):
        return (
            history.REASONS.get(made.reason, "")
            .replace("default arm", "usual offer")
            .replace("unit", "customer")
        )
    group = segment_name(plan, plan.segment_keys[made.segment])
    learnt = (
        "before anything was learnt"
        if made.snapshot == 0
        else f"by what snapshot {made.snapshot} knew"
    )
    start = "The customer keeps an earlier draw: it" if made.reason == "sticky" else "It"
    return (
        f"{start} had a chance of {words.percent(made.propensity, 2)} in the segment “{group}”,"
        f" {learnt}, and it was drawn."
    )


@dataclass(frozen=True)
class Draw:
    """The number that drew the arm, and the stretch between 0 and 1 that it fell into."""

    number: float
    low: float
    high: float
    origin: uuid.UUID | None
    """The earlier decision whose draw the customer keeps."""


def _draw(told: history.Explanation, repeated: replay.Replay | None) -> Draw | None:
    """Return the draw of a decision; None where nothing was drawn or it cannot be repeated."""
    if repeated is None or repeated.number is None or not repeated.same:
        return None
    made = told.decision
    low = sum(made.simplex[: made.arm])
    origin = repeated.drawn_as if repeated.drawn_as != made.id else None
    return Draw(repeated.number, low, low + made.propensity, origin)


def _products(session: Session, told: history.Explanation) -> list[dict[str, str | None]] | None:
    """Return the products that the offer was on; None where it was not on recommended ones."""
    made = told.decision
    if not isinstance(told.definition.offer(made.segment, made.arm), RecommendedOffer):
        return None
    ids = [one.product_id for one in told.products]
    rows = session.execute(select(Product.id, Product.name).where(Product.id.in_(ids)))
    names = {row.id: row.name for row in rows}
    return [
        {"id": one.product_id, "name": names.get(one.product_id), "off": f"{one.percent:g} %"}
        for one in told.products
    ]


@dataclass(frozen=True)
class Context:
    """What was known: a sentence, and a row per feature."""

    reading: str
    rows: tuple[dict[str, Any], ...]
    compared: bool
    """Whether the rows say what the chance would have been without them."""


def _context(told: history.Explanation, influence: history.Influence | None) -> Context | None:
    if not told.context:
        return None
    rows = tuple(
        {
            "name": one.name,
            "key": one.key,
            "value": one.words if isinstance(one.value, float | str) else one.words.capitalize(),
            "note": _note(one, told.filled),
            "without": influence.without[place] if influence else 0.0,
            "percent": f"{100 * influence.without[place]:.2f} %" if influence else "",
        }
        for place, one in enumerate(told.context)
    )
    return Context(_reading(told, influence), rows, influence is not None)


def _note(one: contexts.Told, filled: frozenset[str] | None) -> str:
    if filled is not None and one.key in filled:
        return "Not told: taken as if unknown"
    return "Beyond what counts: cut off here" if one.cut else ""


def _reading(told: history.Explanation, influence: history.Influence | None) -> str:
    if told.decision.reason == "sticky":
        return "Written down, but not looked at: the customer keeps an earlier draw."
    if told.decision.reason != "policy":
        return "Written down, but not looked at: nothing was drawn."
    if influence is None:
        return "Written down, but this way of sharing customers out does not look at it."
    chance, offer = told.decision.propensity, told.definition.arms[told.decision.arm].name
    gains = [chance - without for without in influence.without]
    best = max(range(len(gains)), key=gains.__getitem__)
    blind = f"Knowing none of this, the chance would have been {words.percent(influence.blind)}."
    if gains[best] >= NOTABLE:
        one = told.context[best]
        return (
            f"“{one.name}: {one.words}” spoke most for “{offer}”: without it, the chance would have"
            f" been {words.percent(influence.without[best])} instead of {words.percent(chance)}."
            f" {blind}"
        )
    if min(gains) <= -NOTABLE:
        return f"What was known spoke against “{offer}”, and it was drawn all the same. {blind}"
    return f"No single feature moved the chance of “{offer}” by a percentage point. {blind}"


def _chances(told: history.Explanation) -> list[dict[str, Any]]:
    made = told.decision
    found, start = [], 0.0
    for place, arm in enumerate(told.arms):
        offer = told.definition.offer(made.segment, place)
        masked = arm.masked or ("" if arm.eligible else "Not eligible")
        found.append(
            {
                "place": place,
                "name": arm.name,
                "offer": offer.label(told.definition.currency),
                "value": arm.probability,
                "start": start,
                "probability": f"{100 * arm.probability:.2f} %",
                "chosen": place == made.arm,
                "masked": _MASKS.get(masked, masked[:1].upper() + masked[1:]),
            }
        )
        start += arm.probability
    return found


def _facts(told: history.Explanation, repeated: replay.Replay | None) -> list[tuple[str, str]]:
    made, plan = told.decision, told.definition
    policy = (repeated.live.served if repeated else plan).policy.name
    facts = [
        ("When", words.moment(made.decided_at, plan.zone, seconds=True)),
        ("How", words.REASONS.get(made.reason, made.reason)),
        ("Holdout", "Yes" if made.reason == "holdout" else "No"),
        ("Segment", segment_name(plan, plan.segment_keys[made.segment])),
        *([("Product", told.product)] if told.product is not None else []),
        ("Offer valid until", words.moment(made.expires_at, plan.zone)),
        ("Policy", f"{words.policy(policy).title} ({policy})"),
        ("Snapshot", _version(told)),
        ("Revision of the plan", str(made.revision)),
        ("Customer", f"{made.unit.hex()} (pseudonym)"),
        ("Decision id", str(made.id)),
    ]
    if told.reward is not None and told.reward.conversions:
        profit = words.amount(told.reward.profit_minor, plan.currency, signed=True)
        facts.insert(3, ("Profit credited", profit))
    return facts


def _version(told: history.Explanation) -> str:
    if told.decision.snapshot == 0 or told.snapshot is None:
        return f"{told.decision.snapshot}, before anything was learnt"
    when = _time(told.snapshot.created_at, told.definition.zone)
    return f"{told.snapshot.version}, learnt {when}"


def _time(when: dt.datetime, zone: str) -> str:
    return words.moment(when, zone, seconds=True)


def _repeat(
    session: Session, decision_id: uuid.UUID
) -> tuple[replay.Replay | None, dict[str, str]]:
    """Recompute the draw, and say in a sentence whether it comes out the same."""
    try:
        repeated = replay.replay(session, decision_id)
    except replay.Irreproducible as error:
        return None, {"kind": "warn", "sentence": f"It cannot be repeated: {error}."}
    if not repeated.same:
        kind = "bad"
        said = "Repeating it gives another result. Show this to whoever runs Barter."
    elif repeated.drawn_as is None:
        kind, said = "good", "Nothing was drawn, and repeating it agrees."
    else:
        kind = "good"
        said = (
            "Repeated just now from what is stored: the same offer, and the same probabilities to"
            " the last bit."
        )
    return repeated, {"kind": kind, "sentence": said}
