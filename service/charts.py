"""The charts of the console as Vega-Lite specs: plain dicts, one for page, PNG and notebook.

`charts` gives those of a campaign; `days`, `amounts` and `spend` those of imported data. A spec
holds no colours; `theme` is the Vega configuration that gives them, light or dark. Rows go into
the named data set ``rows``, so a page can replace them without drawing the chart anew.
"""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from service.reports.fields import Densities, Estimate, Regret, Report, Traffic

Spec = dict[str, Any]
Rows = list[dict[str, Any]]
Theme = Literal["light", "dark"]

HEIGHT = 250
MOST_BARS = 731
_KINDS = ("usual", "outlier")
_ARMS: dict[Theme, list[str]] = {
    "light": [
        *("#6d6c65", "#0b7d5a", "#c2620a", "#2b62c9"),
        *("#a8246f", "#6b3fc0", "#0a7f96", "#7f6a00"),
    ],
    "dark": [
        *("#a3a299", "#4cc596", "#f2a057", "#86aef7"),
        *("#ec83bd", "#b698f5", "#5cc6da", "#cdb648"),
    ],
}
_INK: dict[Theme, dict[str, str]] = {
    "light": {"text": "#4d4d46", "line": "#e2e1db", "accent": "#0b6b4d", "other": "#8b5a00"},
    "dark": {"text": "#c0bfb6", "line": "#2e2f2b", "accent": "#62d3a6", "other": "#ecc069"},
}


def theme(name: Theme) -> Spec:
    """Return the Vega-Lite configuration of a theme."""
    ink = _INK[name]
    axis = {
        "labelColor": ink["text"],
        "titleColor": ink["text"],
        "gridColor": ink["line"],
        "domainColor": ink["line"],
        "tickColor": ink["line"],
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelPadding": 6,
        "titlePadding": 10,
        "ticks": False,
        "domain": False,
    }
    return {
        "background": "transparent",
        "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif",
        "padding": 4,
        "view": {"stroke": None},
        "axis": axis,
        "axisX": {"grid": False, "labelOverlap": True},
        "range": {"category": _ARMS[name], "diverging": [ink["accent"], ink["other"]]},
        "style": {
            "zero": {"color": ink["text"], "strokeDash": [4, 4]},
            "interval": {"color": ink["accent"], "strokeWidth": 3, "strokeCap": "round"},
            "dot": {"color": ink["accent"], "size": 110, "opacity": 1},
            "figure": {"color": ink["text"], "fontSize": 12},
            "bars": {"color": ink["accent"]},
            "gap": {"color": ink["other"], "opacity": 0.28},
        },
    }


def charts(
    report: Report, *, zone: dt.tzinfo = dt.UTC, segment: str | None = None
) -> dict[str, Spec]:
    """Return all charts of a report by name, rows included.

    Times are the clock's in ``zone``, wherever the reader sits. The posterior densities are
    those of one segment: the largest unless ``segment`` names one.
    """
    arms = [arm.name for arm in report.arms]
    unit = _unit(report)
    return {
        "traffic": _with(_traffic(arms), traffic_rows(report.traffic, report, zone)),
        "posterior": _with(_posterior(arms, unit), posterior_rows(report, segment)),
        "regret": _with(_regret(unit), regret_rows(report.regret, report, zone)),
        "value": _with(_value(unit), value_rows(report)),
        "elasticity": elasticity(elasticity_rows(report)),
    }


def days(
    rows: Sequence[tuple[dt.date, int]], gaps: Sequence[tuple[dt.date, dt.date]], *, what: str
) -> Spec:
    """Return the chart of rows per day, days without rows included, with its gaps marked.

    ``rows`` are (day, rows) without a day left out, ``gaps`` (first day, last day); ``what`` is
    what the rows are called. More than two years are summed by week.
    """
    return _with(_days(gaps, what), day_rows(rows))


def amounts(
    bins: Sequence[tuple[float, float, int]], *, fence: float, title: str, what: str
) -> Spec:
    """Return the chart of how amounts are spread, on a logarithmic axis, with the fence marked.

    ``bins`` are (from, below, rows); what begins at ``fence`` counts as that much where features
    are made. ``title`` is of the axis, with its unit.
    """
    # A step's edge may differ from the fence in its last bit.
    edge = fence * (1 - 1e-9)
    rows = [
        {"low": low, "high": high, "rows": count, "kind": _KINDS[low >= edge]}
        for low, high, count in bins
    ]
    return _with(_amounts(fence, title, what), rows)


def spend(months: Sequence[tuple[dt.date, float]], *, title: str) -> Spec:
    """Return the chart of what a customer spent by month, given as (first day, amount)."""
    rows = [{"at": f"{month:%Y-%m-%d}T00:00:00", "spend": value} for month, value in months]
    return _with(_spend(title), rows)


def elasticity(rows: Sequence[Mapping[str, Any]]) -> Spec:
    """Return the chart of elasticities by group, with intervals: group, estimate, low, high."""
    shown = [{name: row[name] for name in ("group", "estimate", "low", "high")} for row in rows]
    return _with(
        _intervals("Price elasticity of each group with its interval", "Elasticity"), shown
    )


def foresight(rows: Rows) -> Spec:
    """Return the chart of how many of 100 products each ranking foresaw: group, estimate, ends."""
    title = "Foreseen of 100"
    return _with(_intervals("Products foreseen by each ranking, with intervals", title), rows)


def calibration(predicted: Sequence[float], observed: Sequence[float]) -> Spec:
    """Return the chart of what customers with like chances did, beside what they were told to."""
    rows = [
        {"told": 100 * told, "came": 100 * came}
        for told, came in zip(predicted, observed, strict=True)
    ]
    return _with(_calibration(), rows)


def themed(spec: Spec, name: Theme, *, width: int = 640) -> Spec:
    """Return a spec that stands alone, for PNG and SVG: coloured, at a width in pixels."""
    return spec | {"config": theme(name), "width": width}


# ---------------------------------------------------------------- rows


def traffic_rows(traffic: Traffic, report: Report, zone: dt.tzinfo = dt.UTC) -> Rows:
    """One row per stretch of time and arm: the arm's share of the decisions drawn."""
    return [
        {"at": _clock(at, zone), "arm": arm.name, "place": place, "share": shares[step]}
        for place, arm in enumerate(report.arms)
        if (shares := traffic.shares.get(arm.key))
        for step, at in enumerate(traffic.at)
        if shares[step] is not None
    ]


def posterior_rows(report: Report, segment: str | None = None) -> Rows:
    """One row per grid point and arm: how plausible each reward is for the arm."""
    densities = _densities(report, segment)
    if densities is None:
        return []
    scale = _scale(report)
    return [
        {"value": value * scale, "arm": arm.name, "place": place, "density": curve[step] / scale}
        for place, arm in enumerate(report.arms)
        if (curve := densities.curves.get(arm.key))
        for step, value in enumerate(densities.grid)
    ]


def regret_rows(regret: Regret, report: Report, zone: dt.tzinfo = dt.UTC) -> Rows:
    """One row per time and strategy: cumulative regret with its 90 % band."""
    scale = _scale(report, total=True)
    parts = (("This campaign", regret.bands), ("Equal split", regret.equal_split))
    return [
        {
            "at": _clock(at, zone),
            "strategy": name,
            "mean": bands[0].mean[step] * scale,
            "low": bands[0].low[step] * scale,
            "high": bands[0].high[step] * scale,
        }
        for name, bands in parts
        if bands
        for step, at in enumerate(regret.at)
    ]


def value_rows(report: Report) -> Rows:
    """One row per comparison: what a customer is worth more with the campaign than without."""
    value, scale = report.value, _scale(report)
    compared: Iterable[tuple[str, Estimate]] = (
        ("Against the holdout", value.difference),
        ("Against an equal split", value.against_equal_split),
    )
    return [
        {
            "against": name,
            "mean": gain.mean * scale,
            "low": gain.low * scale,
            "high": gain.high * scale,
        }
        for name, gain in compared
        if gain.mean is not None and gain.low is not None and gain.high is not None
    ]


def elasticity_rows(report: Report) -> Rows:
    """One row per segment: the elasticity that drawn depths show, where it is known."""
    return [
        {
            "group": part.name,
            "estimate": part.elasticity.estimate.mean,
            "low": part.elasticity.estimate.low,
            "high": part.elasticity.estimate.high,
        }
        for part in report.segments
        if part.elasticity is not None and part.elasticity.estimate.mean is not None
    ]


def day_rows(rows: Sequence[tuple[dt.date, int]]) -> Rows:
    """One row per day, or per week where there are more than two years of them."""
    step = 1 if len(rows) <= MOST_BARS else 7
    return [
        {
            "at": f"{rows[place][0]}T00:00:00",
            "end": f"{rows[place][0] + dt.timedelta(days=step)}T00:00:00",
            "rows": sum(count for _, count in rows[place : place + step]),
        }
        for place in range(0, len(rows), step)
    ]


def _densities(report: Report, segment: str | None) -> Densities | None:
    """The densities of a segment; of the one with most decisions unless named."""
    parts = [part for part in report.segments if part.densities is not None]
    if segment is not None:
        parts = [part for part in parts if part.key == segment]
    return max(parts, key=lambda part: part.decisions).densities if parts else None


def _scale(report: Report, *, total: bool = False) -> float:
    """What a reward is multiplied with to be read: major units, or per cent."""
    if report.header.objective != "conversion":
        return 0.01
    return 1.0 if total else 100.0


def _unit(report: Report) -> Mapping[str, str]:
    if report.header.objective == "conversion":
        return {"each": "Conversion, %", "total": "Conversions", "short": "%"}
    kind = "Profit" if report.header.objective == "profit" else "Revenue"
    money = report.header.currency
    return {"each": f"{kind} per customer, {money}", "total": f"{kind}, {money}", "short": money}


def _clock(at: dt.datetime, zone: dt.tzinfo) -> str:
    """Return the time on the clock of a zone, without its offset: a chart then shows it as is."""
    return at.astimezone(zone).replace(tzinfo=None).isoformat()


# ---------------------------------------------------------------- specs


def _with(spec: Spec, rows: Rows) -> Spec:
    return spec | {"data": {"name": "rows", "values": rows}}


def _base(description: str) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": description,
        "width": "container",
        "height": HEIGHT,
        "autosize": {"type": "fit", "contains": "padding"},
    }


def _time() -> Spec:
    written = {
        "milliseconds": "%H:%M:%S",
        "seconds": "%H:%M:%S",
        "minutes": "%H:%M",
        "hours": "%H:%M",
        "day": "%-d %b",
        "date": "%-d %b",
        "week": "%-d %b",
        "month": "%b",
        "quarter": "%b",
        "year": "%Y",
    }
    axis = {"tickCount": 5, "format": written}
    return {"field": "at", "type": "temporal", "title": None, "axis": axis}


def _colour(names: Sequence[str], field: str = "arm") -> Spec:
    return {"field": field, "type": "nominal", "scale": {"domain": list(names)}, "legend": None}


def _traffic(arms: Sequence[str]) -> Spec:
    share = {"title": "Share of customers", "axis": {"format": ".0%", "tickCount": 5}}
    return _base("Share of customers by offer over time") | {
        "mark": {"type": "area", "interpolate": "monotone", "opacity": 0.9, "tooltip": True},
        "encoding": {
            "x": _time(),
            "y": {"field": "share", "type": "quantitative", "stack": "normalize"} | share,
            "color": _colour(arms),
            "order": {"field": "place"},
        },
    }


def _posterior(arms: Sequence[str], unit: Mapping[str, str]) -> Spec:
    x = {"field": "value", "type": "quantitative", "title": unit["each"], "axis": {"tickCount": 6}}
    y = {"field": "density", "type": "quantitative", "title": None, "axis": None, "stack": None}
    return _base("How plausible each result is, by offer") | {
        "encoding": {"x": x | {"scale": {"zero": False}}, "y": y, "color": _colour(arms)},
        "layer": [
            {"mark": {"type": "area", "opacity": 0.14}},
            {"mark": {"type": "line", "strokeWidth": 2}},
        ],
    }


def _regret(unit: Mapping[str, str]) -> Spec:
    names = ["This campaign", "Equal split"]
    scale = {"scale": {"domain": names, "range": "diverging"}}
    title = f"Given up so far, {unit['total'].split(', ')[-1]}"
    y = {"type": "quantitative", "title": title, "axis": {"tickCount": 5}}
    return _base("Estimated cumulative regret of the campaign and of an equal split") | {
        "encoding": {"x": _time(), "color": _colour(names, "strategy") | scale},
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.18},
                "encoding": {"y": {"field": "low"} | y, "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": {"y": {"field": "mean"} | y},
            },
        ],
    }


def _value(unit: Mapping[str, str]) -> Spec:
    title = f"{unit['each'].split(',')[0]}: gained, {unit['short']}"
    x = {"type": "quantitative", "title": title, "axis": {"tickCount": 6, "format": "+,~r"}}
    y = {"field": "against", "type": "nominal", "title": None, "sort": None}
    wide = {"axis": {"labelLimit": 150, "labelFontSize": 13}}
    rows = {"y": y | wide}
    return _base("Gain per customer against the holdout and against an equal split") | {
        "layer": [
            {"mark": {"type": "rule", "style": "zero"}, "encoding": {"x": {"datum": 0} | x}},
            {
                "mark": {"type": "rule", "style": "interval"},
                "encoding": rows | {"x": {"field": "low"} | x, "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True, "style": "dot"},
                "encoding": rows | {"x": {"field": "mean"} | x},
            },
            {
                "mark": {"type": "text", "style": "figure", "dy": -16},
                "encoding": rows
                | {
                    "x": {"field": "mean"} | x,
                    "text": {"field": "mean", "format": "+.2f"},
                },
            },
        ],
    }


def _days(gaps: Sequence[tuple[dt.date, dt.date]], what: str) -> Spec:
    marked = [
        {"from": f"{first}T00:00:00", "to": f"{last + dt.timedelta(days=1)}T00:00:00"}
        for first, last in gaps
    ]
    missing = {
        "data": {"values": marked},
        "mark": {"type": "rect", "style": "gap"},
        "encoding": {"x": _time() | {"field": "from"}, "x2": {"field": "to"}},
    }
    bars = {
        "mark": {"type": "rect", "style": "bars", "tooltip": True},
        "encoding": {"x": _time(), "x2": {"field": "end"}} | _rows(what),
    }
    return _base("Rows by day; days without any are marked") | {
        "layer": [missing, bars] if marked else [bars]
    }


def _amounts(fence: float, title: str, what: str) -> Spec:
    axis = {"tickCount": 6, "format": ",.12~g", "grid": False}
    x = {"type": "quantitative", "scale": {"type": "log"}, "title": title, "axis": axis}
    scale = {"scale": {"domain": list(_KINDS), "range": "diverging"}}
    bars = {
        "mark": {"type": "rect", "tooltip": True},
        "encoding": {"x": {"field": "low"} | x, "x2": {"field": "high"}}
        | {"color": _colour(_KINDS, "kind") | scale}
        | _rows(what),
    }
    rule = {"mark": {"type": "rule", "style": "zero"}, "encoding": {"x": {"datum": fence} | x}}
    return _base("How amounts are spread, and from where on they count as outliers") | {
        "layer": [bars, rule]
    }


def _rows(what: str) -> Spec:
    axis = {"tickCount": 5, "format": "~s", "tickMinStep": 1}
    y = {"field": "rows", "type": "quantitative", "title": what, "axis": axis}
    y["scale"] = {"nice": True}
    return {"y": y, "y2": {"datum": 0}}


def _spend(title: str) -> Spec:
    y = {"field": "spend", "type": "quantitative", "title": title, "axis": {"tickCount": 5}}
    x = _time() | {"timeUnit": "yearmonth"}
    return _base("What the customer spent by month") | {
        "mark": {"type": "bar", "style": "bars", "tooltip": True},
        "encoding": {"x": x, "y": y},
    }


def _intervals(description: str, title: str) -> Spec:
    x = {"type": "quantitative", "title": title, "axis": {"tickCount": 5}}
    y = {"field": "group", "type": "nominal", "title": None, "sort": None}
    wide = {"axis": {"labelLimit": 190}}
    rows = {"y": y | wide}
    return _base(description) | {
        "layer": [
            {"mark": {"type": "rule", "style": "zero"}, "encoding": {"x": {"datum": 0} | x}},
            {
                "mark": {"type": "rule", "style": "interval"},
                "encoding": rows | {"x": {"field": "low"} | x, "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True, "style": "dot"},
                "encoding": rows | {"x": {"field": "estimate"} | x},
            },
        ],
    }


def _calibration() -> Spec:
    def axis(field: str, title: str) -> Spec:
        scale = {"scale": {"domain": [0, 100]}, "axis": {"values": [0, 25, 50, 75, 100]}}
        return {"field": field, "type": "quantitative", "title": title} | scale

    x, y = axis("told", "Chance to buy, %"), axis("came", "Bought, %")
    ends = [{"told": 0, "came": 0}, {"told": 100, "came": 100}]
    return _base("What share of customers with like chances bought") | {
        "encoding": {"x": x, "y": y},
        "layer": [
            {"data": {"values": ends}, "mark": {"type": "line", "style": "zero"}},
            {"mark": {"type": "point", "filled": True, "style": "dot", "tooltip": True}},
        ],
    }
