"""Pages that list, create, edit, review, launch, pause and end campaigns."""

import datetime as dt
import zoneinfo
from dataclasses import dataclass, fields
from typing import Any

import flask
from flask import request
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from bandits import policies
from service import campaigns, queries
from service.contexts import CLOCK, HOLIDAYS
from service.definition import AUTO, OPERATORS, CampaignDefinition, money
from service.errors import BarterError, Conflict, Invalid, NotFound, PreconditionFailed
from service.history import policy_now
from service.models import Campaign, CampaignRevision, Decision, Snapshot
from service.products import ATTRIBUTES
from service.traits import stored
from service.traits.vectors import TRAITS, responses
from service.views import console_features as features
from service.views import console_forms as forms
from service.views import console_policy
from service.views import console_words as words
from service.views.console_admin import audit_page
from service.views.console_base import (
    Reply,
    actor,
    database,
    field_messages,
    now,
    page,
    posted,
    render,
    runtime,
)
from service.views.console_reader import Reader, Values

COUNTED = 50_000
KNOWN_ATTRIBUTES = (
    *TRAITS.items(),
    *((name, "by the clock, in the campaign’s zone") for name in CLOCK),
    *((name, f"{meaning}, where a request names it") for name, meaning in ATTRIBUTES.items()),
    *((name, "by the holidays of the campaign’s country") for name in HOLIDAYS),
)
OBJECTIVES = {
    "profit": ("Profit", "Margin minus the discount: nothing is given away for nothing."),
    "revenue": ("Revenue", "Sales, whatever the discounts cost."),
    "conversion": ("Purchases", "How many customers buy, whatever the discounts cost."),
}
_ROW_VERBS = ("add-", "remove-", "raise-")
_FROZEN = {"arms": "arms", "segments": "segments"}


# ---------------------------------------------------------------- the list


@dataclass(frozen=True)
class Share:
    """An arm's part of today's decisions, from ``start`` on, both as shares of one."""

    name: str
    place: int
    start: float
    share: float


@dataclass(frozen=True)
class Row:
    """One campaign of the list."""

    key: str
    name: str
    subtitle: str
    state: str
    decisions: str
    shares: tuple[Share, ...]
    leader: str
    budget: str
    budget_share: float | None
    promised: str
    health: str
    health_text: str
    learnt: str


@page("/campaigns", needs="read")
def campaign_list() -> Reply:
    """List the campaigns with state, traffic, budget and health."""
    chosen = request.args.get("state", "")
    with database() as session:
        found = session.scalars(select(Campaign).order_by(Campaign.updated_at.desc())).all()
        states = {campaign.key: shown_state(campaign) for campaign in found}
        wanted = [one for one in found if chosen in ("", states[one.key])]
        rows = [_row(session, campaign, states[campaign.key]) for campaign in wanted]
    order = {"running": 0, "paused": 1, "scheduled": 2, "draft": 3, "killed": 4, "ended": 5}
    rows.sort(key=lambda row: order[row.state])
    return render(
        "campaigns.html",
        rows=rows,
        total=len(found),
        chosen=chosen,
        filters=_filters(list(states.values()), chosen),
    )


def shown_state(campaign: Campaign) -> str:
    """Return a campaign's state by the clock; one that was killed says so."""
    return "killed" if campaign.killed_at else campaigns.state_now(campaign)


def _filters(states: list[str], chosen: str) -> list[tuple[str, str, int]]:
    found = [
        (name, title, states.count(name))
        for name, title in words.STATES.items()
        if name in states or name == chosen
    ]
    return [("", "All", len(states)), *found]


def _row(session: Session, campaign: Campaign, state: str) -> Row:
    plan = campaigns.definition(campaign)
    counts = _decisions_today(session, campaign, plan)
    newest = select(Snapshot.created_at).where(Snapshot.campaign_id == campaign.id)
    learnt = session.scalar(newest.order_by(Snapshot.version.desc()).limit(1))
    promised = runtime().spool.committed(campaign.id)
    budget, share, held = _budget(plan, campaign.discount_minor, promised)
    health, told = _health(state, sum(counts.values()), share, learnt)
    total = sum(counts.values())
    return Row(
        key=campaign.key,
        name=plan.name,
        subtitle=subtitle(plan),
        state=state,
        decisions=words.count(total) + ("+" if total >= COUNTED else ""),
        shares=_shares(plan, counts),
        leader=_leader(plan, counts),
        budget=budget,
        budget_share=share,
        promised=held,
        health=health,
        health_text=told,
        learnt=f"learnt {words.ago(learnt, now())}" if learnt else "nothing learnt yet",
    )


def subtitle(plan: CampaignDefinition) -> str:
    """Return what a campaign is about in half a line."""
    segments = len(plan.segments) + 1
    parts = [f"{len(plan.arms)} offers", OBJECTIVES[plan.objective][0].lower()]
    if segments > 1:
        parts.insert(1, f"{segments} segments")
    if plan.features:
        parts.insert(-1, f"{len(plan.features)} feature{'s' if len(plan.features) > 1 else ''}")
    return " · ".join(parts)


def _decisions_today(
    session: Session, campaign: Campaign, plan: CampaignDefinition
) -> dict[int, int]:
    """Count today's decisions by arm, in the campaign's zone, among the newest `COUNTED`."""
    midnight = now().astimezone(words.zone(plan.zone)).replace(hour=0, minute=0, second=0)
    newest = (
        select(Decision.arm, Decision.decided_at)
        .where(*queries.span(Decision, campaign.id))
        .order_by(*queries.newest(Decision))
        .limit(COUNTED)
        .subquery()
    )
    query = (
        select(newest.c.arm, func.count())
        .where(newest.c.decided_at >= midnight)
        .group_by(newest.c.arm)
    )
    return {int(arm): int(number) for arm, number in session.execute(query)}


def _shares(plan: CampaignDefinition, counts: dict[int, int]) -> tuple[Share, ...]:
    total, start = sum(counts.values()), 0.0
    found = []
    for place, arm in enumerate(plan.arms):
        share = counts.get(place, 0) / total if total else 0.0
        if share:
            found.append(Share(arm.name, place, start, share))
        start += share
    return tuple(found)


def _leader(plan: CampaignDefinition, counts: dict[int, int]) -> str:
    shares = _shares(plan, counts)
    if not shares:
        return ""
    most = max(shares, key=lambda part: part.share)
    return f"{most.name}, {words.percent(most.share, 0)}"


def _budget(plan: CampaignDefinition, spent: int, promised: int) -> tuple[str, float | None, str]:
    given = words.count(spent / 100)
    if plan.budget_minor is None:
        return f"{given} {plan.currency}", None, ""
    whole = f"{words.count(plan.budget_minor / 100)} {plan.currency}"
    share = max(spent, promised) / plan.budget_minor
    # Offers that customers may still use count too: the budget holds even if all are used.
    held = f"{words.percent(share, 0)} with open offers" if promised > spent else ""
    return f"{given} of {whole}", share, held


def _health(
    state: str, decisions: int, budget: float | None, learnt: dt.datetime | None
) -> tuple[str, str]:
    """Return how a campaign is doing: a kind of badge, and why in a few words."""
    if state in ("draft", "scheduled", "paused", "ended", "killed"):
        return "idle", "Not serving"
    if budget is not None and budget >= 0.995:
        return "bad", "Budget used up"
    if decisions == 0:
        return "warn", "No requests today"
    if learnt is None:
        return "warn", "Nothing learnt yet"
    if budget is not None and budget >= 0.9:
        return "warn", "Budget nearly used up"
    return "good", "Healthy"


# ---------------------------------------------------------------- create and edit


@page("/campaigns/new", needs="edit", methods=("GET", "POST"))
def new_campaign() -> Reply:
    """Create a draft."""
    if request.method != "POST":
        return _form(forms.blank())
    values, action = posted(), request.form.get("action", "review")
    if action.startswith(_ROW_VERBS):
        return _form(forms.change_rows(values, action))
    checked = forms.check(values)
    if checked.definition is None:
        return _form(values, checked.errors), 422
    try:
        with database() as session:
            made = campaigns.create(session, checked.definition, actor=actor())
    except Conflict as error:
        return _form(values, _messages(error, values)), 422
    return _onward(made.key, action, "The draft is saved.")


@page("/campaigns/<key:key>/edit", needs="edit", methods=("GET", "POST"))
def edit_campaign(key: str) -> Reply:
    """Change a campaign; what its learning counts by stays once it was launched."""
    with database() as session:
        campaign = campaigns.get(session, key)
    if request.method != "POST":
        values = forms.fill(campaigns.definition(campaign))
        return _form(values, campaign=campaign, revision=campaign.revision)
    return _edited(campaign, posted(), request.form.get("action", "review"))


def _edited(campaign: Campaign, values: Values, action: str) -> Reply:
    revision = _number(request.form.get("revision"), campaign.revision)
    launched = campaign.state != "draft"
    if action == "show" or (action.startswith(_ROW_VERBS) and not launched):
        changed = values if action == "show" else forms.change_rows(values, action)
        return _form(changed, campaign=campaign, revision=revision)
    checked = forms.check(values, key=campaign.key)
    errors = dict(checked.errors)
    if checked.definition is not None:
        refused = campaigns.frozen(
            campaigns.definition(campaign), checked.definition, launched=launched
        )
        errors |= _messages(Invalid("", errors=refused), values) if refused else {}
    if checked.definition is None or errors:
        return _form(values, errors, campaign=campaign, revision=revision), 422
    if launched and action != "save":
        return _review_changes(campaign, checked.definition, values, revision)
    return _save(campaign, checked.definition, values, revision, action)


def _save(
    campaign: Campaign,
    wanted: CampaignDefinition,
    values: Values,
    revision: int,
    action: str,
) -> Reply:
    try:
        with database() as session:
            campaigns.update(session, campaign.key, wanted, actor=actor(), revision=revision)
    except PreconditionFailed:
        return _conflict(campaign.key, wanted, values), 409
    except (Conflict, Invalid) as error:
        errors = _messages(error, values)
        return _form(values, errors, campaign=campaign, revision=revision), 422
    if campaign.state != "draft":
        return _onward(campaign.key, "save", "The changes are live.")
    return _onward(campaign.key, action, "The draft is saved.")


def _onward(key: str, action: str, said: str) -> Reply:
    if action == "save":
        flask.flash(said, "good")
    target = "plan" if action == "save" else "review_campaign"
    return flask.redirect(flask.url_for(f"console.{target}", key=key))


@page("/campaigns/check", needs="edit", methods=("POST",))
def check_campaign() -> Reply:
    """Answer what is wrong with the form as it stands, for messages while people type."""
    return flask.jsonify(forms.check(posted(), key=request.args.get("key")).errors)


def _number(written: str | None, default: int) -> int:
    fine = written is not None and written.isascii() and written.isdigit() and len(written) < 10
    return int(written or 0) if fine else default


def _messages(error: BarterError, values: Values) -> dict[str, str]:
    names = {part.field: forms.field_name(part.field, values) for part in error.errors}
    return field_messages(error, names)


def _form(
    values: Values,
    errors: dict[str, str] | None = None,
    *,
    campaign: Campaign | None = None,
    revision: int | None = None,
) -> str:
    filled = _usable(values)
    title = f"Edit {campaigns.definition(campaign).name}" if campaign else "New campaign"
    steps: list[tuple[str, str | None]] = [("Campaigns", flask.url_for("console.campaign_list"))]
    if campaign:
        address = flask.url_for("console.live", key=campaign.key)
        steps.append((campaigns.definition(campaign).name, address))
    return render(
        "campaign_form.html",
        title=title,
        steps=[*steps, ("Edit" if campaign else "New", None)],
        action=request.path,
        form=filled,
        errors=errors or {},
        summary=_summary(errors or {}, filled),
        existing=campaign is not None,
        launched=campaign is not None and campaign.state != "draft",
        revision=revision,
        currency=filled["currency"] or "¤",
        kinds=list(forms.KINDS.items()),
        operators=OPERATORS,
        objectives=OBJECTIVES,
        groups=_policies(filled, errors or {}),
        feature_kinds=list(features.KINDS.items()),
        max_features=features.MAX_FEATURES,
        overridden=_overridden(filled),
        tiers_shown=forms.tiers_shown,
        basket_share=forms.BASKET_SHARE,
        attributes=_known_attributes(),
        zones=sorted(zone for zone in zoneinfo.available_timezones() if "/" in zone),
    )


def _known_attributes() -> list[tuple[str, str]]:
    """Return the attributes that rules and features may name, with their meanings."""
    with database() as session:
        found = stored.newest(session)
    return [*KNOWN_ATTRIBUTES, *responses({} if found is None else found.summary).items()]


def _usable(values: Values) -> Values:
    """Return the form with everything that the page relies on, whatever was sent."""
    reader = Reader(values)
    blank = forms.blank()
    filled = {name: blank[name] for name in _RELIED_ON} | values
    filled["arms-count"] = str(reader.count("arms-count", 50))
    filled["segments-count"] = str(reader.count("segments-count", 200))
    filled["features-count"] = str(len(features.rows(reader)))
    for row in features.rows(reader):
        kind = f"features-{row}-kind"
        filled[kind] = values[kind] if values.get(kind) in features.KINDS else "number"
    for row in range(int(filled["segments-count"])):
        _usable_rules(reader, filled, f"segments-{row}-rules", least=1)
    for row in range(int(filled["arms-count"])):
        _usable_rules(reader, filled, f"arms-{row}-only_if", least=0)
    if filled["objective"] not in OBJECTIVES:
        filled["objective"] = "profit"
    return filled


def _usable_rules(reader: Reader, filled: Values, part: str, *, least: int) -> None:
    count = max(least, reader.count(f"{part}-count", forms.MOST_RULES))
    filled[f"{part}-count"] = str(count)
    for place in range(count):
        op = f"{part}-{place}-op"
        filled[op] = filled[op] if filled.get(op) in OPERATORS else "=="


_RELIED_ON = ("currency", "key", "name", "objective", "policy-kept", "policy-options")


def _overridden(values: Values) -> list[bool]:
    """Tell for each segment whether it changes any offer, so that the page opens that part."""
    return [
        any(
            values.get(f"segments-{row}-arms-{arm}-mode", "same") != "same"
            for arm in range(int(values["arms-count"]))
        )
        for row in range(int(values["segments-count"]))
    ]


_GROUPS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("", "", (forms.USUAL, AUTO)),
    (
        "For each customer, by features",
        "Two customers of one segment can get different offers. These need at least one feature,"
        " declared above, and more customers to learn from.",
        (
            *("linear_thompson", "linear_ucb", "logistic_thompson", "trees_thompson"),
            *("neural_linear", "neural_ensemble", "neural_epinet", "squarecb", "fastcb"),
        ),
    ),
    (
        "For special cases and comparison",
        "",
        ("thompson_profit", "thompson_beta", "fixed_split", "epsilon_greedy", "ucb1", "gradient"),
    ),
)


@dataclass(frozen=True)
class WayGroup:
    """Ways of sharing customers out that belong together on the form."""

    title: str
    about: str
    ways: tuple[dict[str, Any], ...]
    open: bool


def _policies(form: Values, errors: dict[str, str]) -> list[WayGroup]:
    """Return the ways of sharing customers out, the recommended one first."""
    chosen = form.get("policy", forms.USUAL)
    usual, by_features, special = (list(names) for _, _, names in _GROUPS)
    for one in policies.catalogue():
        if one.contextual and one.name not in by_features:
            by_features.append(one.name)
    if chosen in policies.NAMES and chosen not in by_features + special:
        special.append(chosen)
    return [
        WayGroup(title, about, tuple(_policy(name, form, errors) for name in names), opened)
        for (title, about, _), names, opened in zip(
            _GROUPS,
            (usual, by_features, special),
            (True, True, chosen in special),
            strict=True,
        )
    ]


def _policy(name: str, form: Values, errors: dict[str, str]) -> dict[str, Any]:
    told, objectives = words.USUAL_WAY, list(OBJECTIVES)
    if name != forms.USUAL:
        told = words.policy(name)
    if name in policies.NAMES:
        objectives = list(policies.describe(name).objectives)
    if name == "thompson_profit":
        objectives = ["profit"]  # its prior is the profit of a sale: see `build_policy`
    fields = [f"policy-{name}-{option.name}" for option in forms.options_of(name)]
    return {
        "name": name,
        "told": told,
        "objectives": " ".join(objectives),
        "options": [_option(option, form) for option in forms.options_of(name)],
        "open": any(form.get(one) or one in errors for one in fields),
    }


def _option(option: policies.Option, form: Values) -> dict[str, str]:
    """Return what the form says of an option: its name, label, hint and unit."""
    if option.name == "half_life":
        return {
            "name": option.name,
            "label": "What was learnt counts half after",
            "hint": "For tastes that change with time. Empty: nothing is forgotten.",
            "unit": f"× {words.duration(forms.bucket_seconds(form))}",
        }
    usually = "" if option.default is None else f" Usually {option.default:g}."
    label = option.name.replace("_", " ").capitalize()
    return {"name": option.name, "label": label, "hint": option.help + usually, "unit": ""}


def _summary(errors: dict[str, str], values: Values) -> list[tuple[str, str, str]]:
    return [(name, _label(name), said) for name, said in errors.items() if name != "form"]


def _label(name: str) -> str:
    """Return what a field is called, for a list of messages."""
    parts = name.split("-")
    what = parts[-1].replace("_", " ")
    if parts[0] == "features" and len(parts) > 2:
        return f"Feature {int(parts[1]) + 1}, {features.LABELS.get(parts[2], what)}"
    if parts[0] in ("arms", "segments") and len(parts) > 2 and parts[1].isdigit():
        row = f"{'Offer' if parts[0] == 'arms' else 'Segment'} {int(parts[1]) + 1}"
        return f"{row}, {what}"
    titles = {"starts_at": "Starts", "ends_at": "Ends", "arms": "Offers", "segments": "Segments"}
    return titles.get(name, what.capitalize())


# ---------------------------------------------------------------- review and conflict


@dataclass(frozen=True)
class Difference:
    """One part of two definitions that differs, in words."""

    name: str
    before: str
    after: str


def differences(before: CampaignDefinition, after: CampaignDefinition) -> list[Difference]:
    """Return what differs between two definitions, part by part, in words."""
    found = []
    for name in CampaignDefinition.model_fields:
        if getattr(before, name) != getattr(after, name):
            found += _difference(name, before, after)
    return found


def _difference(
    name: str, before: CampaignDefinition, after: CampaignDefinition
) -> list[Difference]:
    if name != "arms":
        return [Difference(_title(name), _value(before, name), _value(after, name))]
    told = [[_arm(plan, place) for place in range(len(plan.arms))] for plan in (before, after)]
    longest = max(map(len, told))
    pairs = zip(*(part + ["—"] * (longest - len(part)) for part in told), strict=True)
    return [
        Difference(f"Offer {row + 1}", old, new)
        for row, (old, new) in enumerate(pairs)
        if old != new
    ]


def _arm(plan: CampaignDefinition, place: int) -> str:
    arm = plan.arms[place]
    told = f"{arm.name}: {arm.offer.label(plan.currency)}"
    told += "" if arm.cap is None else f", at most {words.percent(arm.cap)}"
    told += words.only_if(arm)
    return told if arm.enabled else f"{told}, switched off"


def _title(name: str) -> str:
    plain = name.removesuffix("_minor").removesuffix("_seconds").removesuffix("_at")
    titles = {
        "segments": "Segments",
        "default_arm": "Usual offer",
        "floor": "Least share of every offer",
        "offer": "An offer stays valid",
        "sticky": "A customer keeps the offer",
        "attribution": "Purchases count for",
        "margin_rate": "Margin",
        "basket": "Typical basket",
        "description": "Notes",
    }
    return titles.get(plain, plain.replace("_", " ").capitalize())


def _value(plan: CampaignDefinition, name: str) -> str:
    value = getattr(plan, name)
    if value is None or value == "":
        return "—"
    if name.endswith("_minor"):
        return money(value, plan.currency)
    if name.endswith("_seconds"):
        return words.duration(value)
    if isinstance(value, dt.datetime):
        return words.long_moment(value, plan.zone)
    if name in ("floor", "holdout", "margin_rate"):
        return words.percent(value, 2)
    if name == "segments":
        return " ".join(words.review(plan, now())[3].sentences)
    if name == "features":
        return "; ".join(features.sentence(one) for one in value) or "None"
    if name == "policy":
        return words.policy(value.name).how
    if name == "default_arm":
        return plan.arms[plan.default_index].name
    return str(value)


def warnings(plan: CampaignDefinition) -> list[str]:
    """Return what a careful colleague would point out before the launch."""
    found = []
    if plan.holdout == 0:
        found.append("There is no holdout: you will not be able to say what the campaign earned.")
    if all(arm.offer.kind != "none" for arm in plan.arms):
        found.append(
            "No offer is “No discount”: you will not see who would have bought at full price."
        )
    margin = round(plan.basket_minor * plan.margin_rate)
    for arm in plan.arms:
        if arm.enabled and arm.offer.discount_minor(plan.basket_minor) > margin:
            found.append(f"“{arm.name}” costs more than the margin of a typical basket.")
    if plan.recommends and not runtime().catalogue.popular:
        found.append(
            "Which products customers may want is not known yet, so offers on them take nothing"
            " off: import receipts or interactions first."
        )
    if plan.features and not plan.contextual and plan.policy.name != AUTO:
        found.append(
            "The features are written down but not looked at: choose a way “by features” if offers"
            " should differ by them."
        )
    if plan.ends_at and plan.ends_at <= now():
        found.append("The end lies in the past: move it before you launch.")
    return found


@page("/campaigns/<key:key>/review", needs="edit", methods=("GET", "POST"))
def review_campaign(key: str) -> Reply:
    """Tell in plain words what a draft will do, then launch it."""
    with database() as session:
        campaign = campaigns.get(session, key)
    if campaign.state != "draft":
        return flask.redirect(flask.url_for("console.live", key=key))
    if request.method != "POST":
        return _review(campaign)
    if _number(request.form.get("revision"), 0) != campaign.revision:
        said = "Someone has changed the campaign meanwhile. This is how it is now."
        return _review(campaign, said), 409
    try:
        with database() as session:
            launched = campaigns.transition(session, key, "launch", actor=actor())
    except Conflict as error:
        return _review(campaign, error.detail), 409
    plan = campaigns.definition(campaign)
    starts = plan.starts_at
    if launched.state == "scheduled" and starts is not None:
        flask.flash(f"Planned: it starts on {words.long_moment(starts, plan.zone)}.", "good")
    else:
        flask.flash("Launched. The first customers appear here within a second.", "good")
    return flask.redirect(flask.url_for("console.live", key=key))


def _review(campaign: Campaign, error: str = "") -> str:
    plan = campaigns.definition(campaign)
    later = plan.starts_at is not None and plan.starts_at > now()
    return render(
        "review.html",
        plan=plan,
        topics=words.review(plan, now()),
        warnings=warnings(plan),
        differences=None,
        revision=campaign.revision,
        launch="Schedule it" if later else "Launch now",
        errors={"form": error} if error else {},
    )


def _review_changes(
    campaign: Campaign, wanted: CampaignDefinition, values: Values, revision: int
) -> str:
    return render(
        "review.html",
        plan=wanted,
        topics=words.review(wanted, now(), launched=True),
        warnings=warnings(wanted),
        differences=differences(campaigns.definition(campaign), wanted),
        form=values | {"revision": str(revision)},
    )


def _conflict(key: str, wanted: CampaignDefinition, values: Values) -> str:
    with database() as session:
        campaign = campaigns.get(session, key)
        author = session.scalar(
            select(CampaignRevision.author).where(
                CampaignRevision.campaign_id == campaign.id,
                CampaignRevision.revision == campaign.revision,
            )
        )
    theirs = campaigns.definition(campaign)
    return render(
        "conflict.html",
        plan=theirs,
        author=(author or "Someone").removeprefix("user:"),
        differences=differences(theirs, wanted),
        revision=campaign.revision,
        form=values,
    )


# ---------------------------------------------------------------- plan, history, actions


def frame(campaign: Campaign, tab: str) -> dict[str, Any]:
    """Return what every page about one campaign shows around its own part."""
    plan = campaigns.definition(campaign)
    return {
        "campaign": campaign,
        "plan": plan,
        "state": shown_state(campaign),
        "possible": campaigns.possible(campaign),
        "subtitle": _when(campaign, plan),
        "tab": tab,
    }


def _when(campaign: Campaign, plan: CampaignDefinition) -> str:
    state, city = shown_state(campaign), words.place(plan.zone)
    told = {
        "draft": "A draft: nobody gets its offers yet",
        "scheduled": f"Starts {words.moment(plan.starts_at, plan.zone)} ({city})",
        "running": f"Running since {words.moment(campaign.started_at, plan.zone)} ({city})",
        "paused": f"Paused: everyone gets “{plan.arms[plan.default_index].name}”",
        "ended": f"Ended {words.moment(campaign.ended_at or plan.ends_at, plan.zone)} ({city})",
        "killed": f"Stopped {words.moment(campaign.killed_at, plan.zone)} ({city})",
    }[state]
    if state in ("running", "scheduled") and plan.ends_at:
        told += f", until {words.moment(plan.ends_at, plan.zone)}"
    return f"{told} · {subtitle(plan)}"


@page("/campaigns/<key:key>/plan", needs="read")
def plan(key: str) -> Reply:
    """Show a campaign's definition in plain words."""
    with database() as session:
        campaign = campaigns.get(session, key)
        serving = policy_now(session, campaign) if campaign.state != "draft" else None
    shown = frame(campaign, "plan")
    auto = shown["plan"].policy.name == AUTO or (serving and serving.change)
    chosen = console_policy.review(shown["plan"], serving) if serving and auto else ()
    topics = words.review(shown["plan"], now(), launched=campaign.state != "draft")
    return render("plan.html", **shown, topics=topics, chosen=chosen)


@page("/campaigns/<key:key>/history", needs="read")
def history(key: str) -> Reply:
    """Show who changed a campaign and when."""
    with database() as session:
        campaign = campaigns.get(session, key)
    return render("history.html", **frame(campaign, "history"), **audit_page(f"campaign:{key}"))


@dataclass(frozen=True)
class Question:
    """What is asked before an action, and what follows from it."""

    question: str
    button: str
    consequences: tuple[tuple[str, str], ...]
    said: str
    dangerous: bool = False


def _questions(plan: CampaignDefinition) -> dict[str, Question]:
    usual = plan.arms[plan.default_index].name
    learnt = ("What was learnt", "Stays, and goes on with purchases that still arrive.")
    return {
        "pause": Question(
            f"Pause “{plan.name}”?",
            "Pause",
            (("At once", f"Everyone gets “{usual}”."), learnt, ("Undo", "Resume at any time.")),
            f"Paused: everyone gets “{usual}”. Resume whenever you like.",
        ),
        "resume": Question(
            f"Resume “{plan.name}”?",
            "Resume",
            (("At once", "Customers get offers again, from where it left off."), learnt),
            "Running again, from where it left off.",
        ),
        "end": Question(
            f"End “{plan.name}”?",
            "End campaign",
            (
                ("At once", f"Everyone gets “{usual}”."),
                ("Report", "Stays open, and takes in purchases that still arrive."),
                ("Undo", "An ended campaign cannot run again, but you can duplicate it."),
            ),
            "Ended. The report takes in purchases that still arrive.",
        ),
        "kill": Question(
            f"Stop “{plan.name}” now?",
            "Stop now",
            (
                ("At once", f"Everyone gets “{usual}”, on every server."),
                ("Marked", "The campaign is marked as stopped because something went wrong."),
                ("Undo", "It cannot run again, but you can duplicate it."),
            ),
            "Stopped. Nobody gets its offers any more.",
            dangerous=True,
        ),
        "delete": Question(
            f"Delete the draft “{plan.name}”?",
            "Delete draft",
            (
                ("At once", "The draft is gone. No customer has ever got its offers."),
                ("Undo", "Cannot be undone; the audit log keeps what it said."),
            ),
            "The draft is deleted.",
            dangerous=True,
        ),
        "duplicate": Question(
            f"Duplicate “{plan.name}”",
            "Make a copy",
            (
                ("You get", "A new draft with the same offers, segments and guardrails."),
                ("Without", "The schedule, and anything that was learnt."),
            ),
            "This is the copy: a draft, with everything but the schedule.",
        ),
    }


@page(
    "/campaigns/<key:key>/<any(pause,resume,end,kill,delete,duplicate):action>",
    needs="edit",
    methods=("GET", "POST"),
)
def confirm(key: str, action: str) -> Reply:
    """Ask, then pause, resume, end, stop, delete or duplicate a campaign."""
    with database() as session:
        campaign = campaigns.get(session, key)
    current = campaigns.definition(campaign)
    asked = _questions(current)[action]
    if request.method != "POST":
        form = {"name": f"{current.name[:112]} (copy)", "key": f"{key[:58]}-copy"}
        return _ask(current, action, asked, form)
    try:
        target = _act(key, action)
    except (Conflict, Invalid) as error:
        return _ask(current, action, asked, posted(), field_messages(error)), 409
    flask.flash(asked.said, "good")
    return flask.redirect(target)


def _ask(
    plan: CampaignDefinition,
    action: str,
    asked: Question,
    form: dict[str, str],
    errors: dict[str, str] | None = None,
) -> str:
    back = flask.url_for("console.live", key=plan.key)
    shown = {part.name: getattr(asked, part.name) for part in fields(asked)}
    return render(
        "confirm.html",
        **shown,
        back=back,
        steps=(
            ("Campaigns", flask.url_for("console.campaign_list")),
            (plan.name, back),
            (asked.button, None),
        ),
        wants_key=action == "duplicate",
        form=form,
        errors=errors or {},
    )


def _act(key: str, action: str) -> str:
    with database() as session:
        if action == "delete":
            campaigns.delete(session, key, actor=actor())
            return flask.url_for("console.campaign_list")
        if action == "duplicate":
            name = request.form.get("name", "").strip()
            copied = forms.check_key(request.form.get("key", "") or forms.slug(name))
            made = campaigns.duplicate(session, key, copied, actor=actor(), name=name or None)
            return flask.url_for("console.edit_campaign", key=made.key)
        for known in campaigns.ACTIONS:
            if known == action:
                campaigns.transition(session, key, known, actor=actor())
                return flask.url_for("console.live", key=key)
    raise NotFound()
