"""The live page of a campaign: verdict, key figures, charts and the offers of every segment."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import flask
from flask import current_app, request
from markupsafe import escape

from service import campaigns, charts
from service.definition import AUTO, CampaignDefinition
from service.reports import Report, campaign_report
from service.reports.fields import ArmRow, Estimate, SegmentReport
from service.views import console_features as features
from service.views import console_words as words
from service.views.console_base import Recent, Reply, database, page, render
from service.views.console_campaigns import frame

_KINDS = {
    "leading": "good",
    "ended_winner": "good",
    "no_difference": "info",
    "cannot_tell": "warn",
}
_UNITS = {
    "profit": "Profit per customer",
    "revenue": "Revenue per customer",
    "conversion": "Share who buy",
}
TABLE_ROWS = 60
MOST_SAID = 3


@dataclass(frozen=True)
class Figure:
    """One key figure with what it means."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Table:
    """The numbers behind a chart."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Chart:
    """What stands around a chart: title, what it shows now, how to read it, its numbers."""

    name: str
    title: str
    reading: str
    caption: str
    waiting: str
    table: Table
    key: tuple[tuple[str, str], ...] = ()


@page("/campaigns/<key:key>", needs="read")
def live(key: str) -> Reply:
    """Show what a campaign does and what is known."""
    with database() as session:
        campaign = campaigns.get(session, key)
    shown = frame(campaign, "live")
    report = None if campaign.state == "draft" else _report(key)
    if report is None:
        return render("live.html", **shown, report=None)
    plan: CampaignDefinition = shown["plan"]
    attributes = json.dumps(features.example(plan.features), ensure_ascii=False)
    tailored = plan.contextual or (plan.policy.name == AUTO and bool(plan.features))
    view = _view(report, plan.zone)
    return render("live.html", **shown, **view, attributes=attributes, tailored=tailored)


@page("/campaigns/<key:key>/live.json", needs="read")
def live_data(key: str) -> Reply:
    """Send what changes on the live page: its parts as HTML and its charts as specs."""
    report, zone = _report(key), _zone(key)
    shown = _view(report, zone)
    parts = {name: render(f"live_{name}.html", **shown) for name in ("verdict", "figures", "arms")}
    for chart in shown["charts"]:
        parts[f"{chart.name}-reading"] = str(escape(chart.reading))
        parts[f"{chart.name}-table"] = render("live_table.html", table=chart.table)
    return flask.jsonify(
        parts=parts,
        charts=charts.charts(report, zone=words.zone(zone), segment=_segment(report).key),
        themes={name: charts.theme(name) for name in get_args(charts.Theme)},
        freshness=shown["freshness"],
    )


@page(
    "/campaigns/<key:key>/charts/<any(traffic,posterior,regret,value,elasticity):name>.svg",
    needs="read",
)
def chart_picture(key: str, name: str) -> Reply:
    """Draw one chart on the server, for browsers without scripts."""
    # vl-convert starts a JavaScript engine, which most processes never need.
    import vl_convert

    theme: charts.Theme = "dark" if request.args.get("theme") == "dark" else "light"
    report, zone = _report(key), words.zone(_zone(key))
    spec = charts.charts(report, zone=zone, segment=_segment(report).key)[name]
    picture = vl_convert.vegalite_to_svg(charts.themed(spec, theme))
    return flask.Response(picture, mimetype="image/svg+xml")


@page("/campaigns/<key:key>/report.csv", needs="read")
def report_csv(key: str) -> Reply:
    """Send the report's numbers, one row per offer and segment."""
    response = flask.Response(_report(key).to_csv(), mimetype="text/csv")
    response.headers["Content-Disposition"] = f'attachment; filename="{key}-report.csv"'
    return response


def _report(key: str) -> Report:
    def make() -> Report:
        with database() as session:
            return campaign_report(session, key)

    reports: Recent = current_app.extensions["barter.reports"]
    found: Report = reports.get(key, make)
    return found


def _zone(key: str) -> str:
    with database() as session:
        return campaigns.definition(campaigns.get(session, key)).zone


def _segment(report: Report) -> SegmentReport:
    """Return the group whose hills are drawn: the one asked for, else the largest."""
    asked = request.args.get("group")
    for segment in report.segments:
        if segment.key == asked:
            return segment
    return max(report.segments, key=lambda segment: segment.decisions)


def _view(report: Report, zone: str) -> dict[str, Any]:
    segment = _segment(report)
    return {
        "report": report,
        "verdict": _verdict(report),
        "figures": _figures(report),
        "charts": _charts(report, segment, zone),
        "groups": _groups(report),
        "group": segment.key,
        "unit": _UNITS[report.header.objective],
        "freshness": f"As of {report.header.generated_at.astimezone(words.zone(zone)):%H:%M:%S}"
        f" {words.place(zone)} time, by {words.count(report.header.decisions)} decisions",
    }


def _verdict(report: Report) -> dict[str, Any]:
    notes = () if report.health.ok else report.health.notes
    return {
        "kind": "bad" if report.health.srm_alarm else _KINDS.get(report.verdict.code, "info"),
        "sentence": report.verdict.sentence,
        "because": report.value.sentence,
        "notes": notes,
    }


# ---------------------------------------------------------------- figures


def _figures(report: Report) -> tuple[Figure, ...]:
    head, value = report.header, report.value
    note = f"{words.count(head.holdout)} of them holdout"
    return (
        Figure("Decisions", words.count(head.decisions), note),
        Figure(
            _UNITS[head.objective],
            _reward(report, value.campaign_mean),
            f"holdout {_reward(report, value.holdout_mean)}",
        ),
        Figure(
            "Gained per customer",
            _reward(report, value.difference.mean, signed=True),
            _between(report, value.difference),
        ),
        _regret_figure(report),
        Figure(
            "Discounts given",
            words.amount(report.budget.spent_minor, head.currency),
            "no budget set"
            if report.budget.share is None
            else f"{words.percent(report.budget.share, 0)} of the budget",
        ),
    )


def _regret_figure(report: Report) -> Figure:
    bands = report.regret.bands
    if not bands or not bands[0].mean:
        return Figure("Cost of learning", "—", "estimated once there are results")
    band = bands[0]
    low, high = _total(report, band.low[-1]), _total(report, band.high[-1])
    return Figure("Cost of learning", _total(report, band.mean[-1]), f"between {low} and {high}")


def _total(report: Report, value: float) -> str:
    if report.header.objective == "conversion":
        return f"{words.count(value)} sales"
    return words.amount(value, report.header.currency)


def _reward(report: Report, value: float | None, *, signed: bool = False) -> str:
    return words.reward(value, report.header.objective, report.header.currency, signed=signed)


def _bare(report: Report, value: float | None) -> str:
    """Return a reward without its unit, which the heading names."""
    return _reward(report, value).replace(f" {report.header.currency}", "")


def _between(report: Report, estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "too little data for an interval"
    low = _reward(report, estimate.low, signed=True)
    return f"between {low} and {_reward(report, estimate.high, signed=True)}"


# ---------------------------------------------------------------- charts


def _charts(report: Report, segment: SegmentReport, zone: str) -> tuple[Chart, ...]:
    return (
        _traffic(report, zone),
        _value(report),
        _posterior(report, segment),
        _regret(report, zone),
        *_elasticity(report),
    )


def _traffic(report: Report, zone: str) -> Chart:
    traffic = report.traffic
    rows = [
        (
            words.moment(at, zone),
            words.count(traffic.decisions[step]),
            *(words.percent(_at(traffic.shares.get(arm.key), step)) for arm in report.arms),
        )
        for step, at in enumerate(traffic.at)
    ]
    return Chart(
        name="traffic",
        title="Who gets which offer, over time",
        reading=_most(report),
        caption="Each colour is the share of customers drawn to that offer. The holdout is not"
        " in it.",
        waiting="Appears with the first customers.",
        table=Table(("Until", "Customers", *(arm.name for arm in report.arms)), _newest(rows)),
    )


def _most(report: Report) -> str:
    steps = [step for step, number in enumerate(report.traffic.decisions) if number]
    if not steps:
        return "No customer has been drawn yet."
    shares = {
        arm.name: _at(report.traffic.shares.get(arm.key), steps[-1]) or 0.0 for arm in report.arms
    }
    name = max(shares, key=lambda one: shares[one])
    return f"Lately {words.percent(shares[name], 0)} of customers got “{name}”."


def _at(values: tuple[float | None, ...] | None, step: int) -> float | None:
    return None if values is None else values[step]


def _value(report: Report) -> Chart:
    value = report.value
    compared = (
        ("Against the holdout", value.difference),
        ("Against an equal split", value.against_equal_split),
    )
    rows = tuple(
        (
            name,
            _reward(report, gain.mean, signed=True),
            _reward(report, gain.low, signed=True),
            _reward(report, gain.high, signed=True),
        )
        for name, gain in compared
        if gain.mean is not None
    )
    return Chart(
        name="value",
        title=f"{_UNITS[report.header.objective]}, gained by the campaign",
        reading=value.sentence,
        caption="The dot is the estimate; the line is where the truth lies with 95 % certainty,"
        " whenever you look. Right of the dashed line the campaign earns more.",
        waiting="Needs customers both in the campaign and in the holdout.",
        table=Table(("Compared", "Gain", "At least", "At most"), rows),
    )


def _posterior(report: Report, segment: SegmentReport) -> Chart:
    rows = tuple(
        (
            arm.name,
            _reward(report, arm.posterior.mean),
            _reward(report, arm.posterior.low),
            _reward(report, arm.posterior.high),
            words.percent(arm.best, 0),
        )
        for arm in segment.arms
        if arm.posterior.mean is not None
    )
    whole = "" if len(report.segments) == 1 else f" in the segment “{segment.name}”"
    return Chart(
        name="posterior",
        title=f"What each offer is worth{whole}",
        reading=segment.verdict.sentence,
        caption="A narrow, tall hill is a sure estimate. Hills that overlap cannot be told apart"
        " yet.",
        waiting="Appears as soon as something has been learnt.",
        table=Table(("Offer", "Best guess", "At least", "At most", "Chance of being best"), rows),
    )


def _regret(report: Report, zone: str) -> Chart:
    regret = report.regret
    named: Mapping[str, Any] = {"ours": regret.bands[:1], "equal": regret.equal_split[:1]}
    rows = [
        (
            words.moment(at, zone),
            *(
                _total(report, getattr(bands[0], part)[step])
                for bands in named.values()
                for part in (("mean", "low", "high") if bands is named["ours"] else ("mean",))
                if bands
            ),
        )
        for step, at in enumerate(regret.at)
    ]
    return Chart(
        name="regret",
        title="What finding out has cost",
        reading=regret.sentence,
        caption="Estimated sum given up against always giving every segment its best offer, with a"
        " 90 % band. A line that flattens has stopped paying for lessons.",
        waiting="Appears as soon as something has been learnt.",
        table=Table(
            ("Until", "This campaign", "At least", "At most", "Equal split"), _newest(rows)
        ),
        key=(("ours", "This campaign"), ("equal", "Equal split, for comparison")),
    )


def _elasticity(report: Report) -> tuple[Chart, ...]:
    known = [(part.name, part.elasticity) for part in report.segments if part.elasticity]
    if not known:
        return ()
    whole = len(report.segments) == 1
    said = [found.sentence if whole else f"{name}: {found.sentence}" for name, found in known]
    rows = tuple(
        (name, *(_slope(end) for end in (found.estimate.mean, found.estimate.low,
                                         found.estimate.high)), words.count(found.decisions))
        for name, found in known
    )  # fmt: skip
    return (
        Chart(
            name="elasticity",
            title="What a lower price does",
            reading=" ".join(said[:MOST_SAID]),
            caption="Price elasticity: at −2, about 20 % more customers buy for a price 10 % lower."
            " Randomised: chance drew who got which depth, so neither advertising nor who came when"
            " is behind it. Lines hold with 95 % certainty, whenever you look.",
            waiting="Needs customers and sales at several depths.",
            table=Table(("Segment", "Elasticity", "At least", "At most", "Decisions"), rows),
        ),
    )


def _slope(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}".replace("-", "−")


def _newest(rows: list[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    return tuple(reversed(rows[-TABLE_ROWS:]))


# ---------------------------------------------------------------- offers by group


def _groups(report: Report) -> list[dict[str, Any]]:
    whole = {
        "name": "All customers",
        "sentence": "",
        "arms": [_arm(report, arm, place) for place, arm in enumerate(report.arms)],
    }
    if len(report.segments) == 1:
        only = report.segments[0]
        arms = [_arm(report, arm, place) for place, arm in enumerate(only.arms)]
        return [whole | {"arms": arms}]
    return [whole, *(_group(report, segment) for segment in report.segments)]


def _group(report: Report, segment: SegmentReport) -> dict[str, Any]:
    name = "Everyone else" if segment.key == "everyone" else segment.name
    share = words.percent(segment.share, 0)
    return {
        "name": name,
        "sentence": f"{share} of customers. {segment.verdict.sentence}",
        "arms": [_arm(report, arm, place) for place, arm in enumerate(segment.arms)],
    }


def _arm(report: Report, arm: ArmRow, place: int) -> dict[str, Any]:
    estimate = arm.estimate
    known = estimate.low is not None and estimate.high is not None
    return {
        "place": place,
        "name": arm.name,
        "offer": arm.offer,
        "ruled_out": arm.ruled_out,
        "decisions": words.count(arm.decisions),
        "share_value": arm.share or 0.0,
        "share": words.percent(arm.share),
        "rate": words.percent(arm.conversion_rate, 2),
        "mean": _reward(report, estimate.mean if estimate.mean is not None else arm.reward_mean),
        "interval": f"{_bare(report, estimate.low)} to {_bare(report, estimate.high)}"
        if known
        else "—",
        "best_value": arm.best or 0.0,
        "best": words.percent(arm.best, 0),
    }
