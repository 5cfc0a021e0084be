"""Tables and figures of what has been measured, with paired intervals."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import vl_convert
from rich.table import Table
from scipy import stats

from service import charts
from tests.bench.policies import data, timing
from tests.bench.policies.protocol import Floats
from tests.bench.policies.results import Measured, Results
from tests.bench.policies.tasks import TASKS, Task

HERE = Path(__file__).parent
TABLE = HERE.parent / "policies.md"
FIGURES = HERE / "figures"

MEASURES = {
    "reward": "mean reward per row, greater is better",
    "regret": "expected regret in all, less is better",
    "share": "expected regret in % of the uniform policy's, less is better",
}
DIGITS = {"reward": 4, "regret": 1, "share": 2}
KINDS = {"barter": "Barter", "peer": "peer", "yardstick": "yardstick"}


class Interval(NamedTuple):
    """A mean with the ends of its 95 % t interval; the ends are nan for fewer than two values."""

    mean: float
    low: float
    high: float


class Row(NamedTuple):
    """One line of a table; ``peer`` and ``greedy`` say by how much it is better, None of itself."""

    name: str
    kind: str
    seeds: int
    score: Interval
    peer: Interval | None
    greedy: Interval | None


def interval(values: Floats) -> Interval:
    """The mean of (N,) values and its 95 % t interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, float("nan"), float("nan"))
    reach = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return Interval(mean, mean - reach, mean + reach)


def rows(task: Task, measured: list[Measured]) -> list[Row]:
    """The table, best first.

    By how much a system is better is the mean difference over the seeds that both have.
    """
    best = leader(measured)
    greedy = next((one for one in measured if one.name == "greedy"), None)
    sign = 1.0 if task.measure == "reward" else -1.0

    def better(one: Measured, other: Measured | None) -> Interval | None:
        if other is None or other.name == one.name:
            return None
        differences = sign * one.paired(other)
        return interval(differences) if len(differences) else None

    return [
        Row(
            one.name,
            one.kind,
            len(one.score),
            interval(np.array(list(one.score.values()))),
            better(one, best),
            better(one, greedy),
        )
        for one in measured
    ]


def leader(ordered: list[Measured]) -> Measured | None:
    """The best peer of those with as many seeds as any, which the others are compared with."""
    peers = [one for one in ordered if one.kind == "peer"]
    most = max((len(one.score) for one in peers), default=0)
    return next((one for one in peers if len(one.score) == most), None)


def best_peer(measured: list[Measured]) -> str:
    """The name of :func:`leader`, or a dash."""
    found = leader(measured)
    return found.name if found else "–"


def terminal(task: Task, measured: list[Measured]) -> Table:
    """A task's table for the terminal."""
    table = Table(title=f"{task.title}: {MEASURES[task.measure]}", title_justify="left")
    for column in ("", "seeds", "score", f"better than {best_peer(measured)} by", "than greedy by"):
        table.add_column(column, justify="left" if column == "" else "right")
    for row in rows(task, measured):
        style = {"barter": "green", "peer": "yellow"}.get(row.kind, "")
        table.add_row(*_cells(task, row), style=style)
    return table


def _cells(task: Task, row: Row) -> tuple[str, str, str, str, str]:
    digits = DIGITS[task.measure]
    reach = row.score.high - row.score.mean
    spread = "" if np.isnan(reach) else f" ± {reach:.{digits}f}"
    return (
        row.name,
        str(row.seeds),
        f"{row.score.mean:,.{digits}f}{spread}",
        _difference(row.peer, digits),
        _difference(row.greedy, digits),
    )


def _difference(found: Interval | None, digits: int) -> str:
    if found is None:
        return ""
    if np.isnan(found.low):
        return f"{found.mean:+,.{digits}f}"
    return f"{found.mean:+,.{digits}f} ({found.low:+,.{digits}f} to {found.high:+,.{digits}f})"


def write(results: Results, *, table: Path = TABLE, figures: Path = FIGURES) -> None:
    """Write the markdown tables and the figures of all tasks that have results."""
    found = {task.name: results.measured(task) for task in TASKS.values()}
    found = {name: measured for name, measured in found.items() if measured}
    parts = [_HEAD]
    for family in dict.fromkeys(TASKS[name].family for name in found):
        names = [name for name in found if TASKS[name].family == family]
        if family in ("classification", "wheel"):
            parts.append(summary(family, {name: found[name] for name in names}))
        figures.mkdir(parents=True, exist_ok=True)
        picture = figures / f"{family}.svg"
        picture.write_text(drawn({name: found[name] for name in names}))
        parts.append(f"![{family}](policies/figures/{family}.svg)")
        parts += [markdown(TASKS[name], found[name]) for name in names]
    if (stored := results.folder / timing.RESULT.name).exists():
        parts += [_TIMES, timing.table(json.loads(stored.read_text())["µs per row"])]
    terms = [line for line in (data.__doc__ or "").splitlines() if line.startswith("|")]
    parts.append("## Where the tables come from\n\n" + "\n".join(terms).replace("``", "`"))
    table.write_text("\n\n".join(parts) + "\n")


_HEAD = """# Policies on common work

Made by `make bench-policies` (`python -m tests.bench.policies --help` says how to run a part of it,
or a policy of your own); the numbers behind it are in `policies/results/`. Every system of a seed
meets the same contexts, noise and order. Scores are means over the seeds with 95 % t intervals;
"better by" is the paired difference to the best peer and to greedy (ridge regression per arm, no
exploration), positive where the system is better, with its 95 % interval. `numpy` rows are
yardsticks of a few lines. The peers' versions: `policies/environments.py`; all settings:
`policies/systems.py`."""


_TIMES = """## What a decision and its lesson cost

`python -m tests.bench.policies.timing`, medians of turns, one thread each: choosing, learning, and
turning rows into what a system reads. A group's first system is the unit of its ratios."""


def markdown(task: Task, measured: list[Measured]) -> str:
    """A task's heading and table."""
    head = (
        f"## {task.title}\n\n`{task.name}`: {MEASURES[task.measure]}. "
        f"Best peer: {best_peer(measured)}.\n\n"
        "| | seeds | score | better than the best peer by | than greedy by |\n|-|-:|-:|-:|-:|"
    )
    lines = ["| " + " | ".join(_cells(task, row)) + " |" for row in rows(task, measured)]
    return "\n".join([head, *lines])


def summary(family: str, found: dict[str, list[Measured]]) -> str:
    """A table of the systems that were run with one setting on every task of a family.

    The last columns are the mean over the tasks and by how much it is better than the best peer's,
    paired by seed: a seed is one order of every table.
    """
    each = [{one.name: one for one in measured} for measured in found.values()]
    task = TASKS[next(iter(found))]
    digits, sign = DIGITS[task.measure], 1.0 if task.measure == "reward" else -1.0
    means = {
        name: _mean([one[name] for one in each])
        for name in each[0]
        if all(name in one for one in each)
    }
    ordered = sorted(
        means, key=lambda name: -sign * float(np.mean(list(means[name].score.values())))
    )
    best = leader([means[name] for name in ordered])
    lines = []
    for name in ordered:
        values = [float(np.mean(list(one[name].score.values()))) for one in each]
        differences = sign * means[name].paired(best) if best and best.name != name else np.zeros(0)
        gain = interval(differences) if len(differences) else None
        cells = [f"{value:.{digits}f}" for value in [*values, float(np.mean(values))]]
        cells.insert(0, str(len(means[name].score)))
        lines.append(f"| {' | '.join([name, *cells, _difference(gain, digits)])} |")
    head = (
        f"## {family.capitalize()} at a glance\n\nOne setting on all of them: "
        f"{MEASURES[task.measure]}.\n\n"
        f"| | seeds | {' | '.join(found)} | mean | better than {best.name if best else '–'} by |\n"
        f"|-|{'-:|' * (len(found) + 3)}"
    )
    return "\n".join([head, *lines])


def _mean(parts: list[Measured]) -> Measured:
    """The mean score over several tasks, for every seed that all of them have."""
    seeds = set.intersection(*(set(one.score) for one in parts))
    score = {seed: float(np.mean([one.score[seed] for one in parts])) for seed in seeds}
    return parts[0]._replace(score=score)


# ---------------------------------------------------------------- figures


def shown(task: Task, measured: list[Measured]) -> list[Measured]:
    """What a figure has room for: the three best of ours and of the peers, and the yardsticks.

    Uniform is left to the table, and greedy on the wheel too: next to them nothing can be told.
    """
    left_out = {"uniform", "greedy"} if task.measure == "share" else {"uniform"}
    measured = [one for one in measured if one.name not in left_out]
    ours = [one for one in measured if one.kind == "barter"][:3]
    peers = [one for one in measured if one.kind == "peer"][:3]
    return ours + peers + [one for one in measured if one.kind == "yardstick"]


def drawn(found: dict[str, list[Measured]]) -> str:
    """An SVG: one row per task, learning curves to the left and intervals to the right."""
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "config": charts.theme("light") | {"background": "white"},
        "vconcat": [
            {"hconcat": [_curves(TASKS[name], all_), _intervals(TASKS[name], all_)]}
            for name, all_ in found.items()
        ],
        "resolve": {"scale": {"color": "shared"}},
    }
    picture: str = vl_convert.vegalite_to_svg(spec)
    return picture


_COLOUR = {
    "field": "kind",
    "type": "nominal",
    "title": None,
    "scale": {"domain": list(KINDS.values()), "range": ["#0b7d5a", "#c2620a", "#6d6c65"]},
    "legend": {"orient": "top"},
}


def _curves(task: Task, measured: list[Measured]) -> dict[str, Any]:
    values = []
    for one in shown(task, measured):
        mean = np.mean(list(one.curve.values()), axis=0)
        values += [
            {"rows": at, "regret": round(float(lost), 2), "name": one.name, "kind": KINDS[one.kind]}
            for at, lost in zip(one.at, mean, strict=True)
        ]
    return {
        "title": {"text": task.title, "anchor": "start", "fontSize": 13},
        "width": 330,
        "height": 230,
        "data": {"values": values},
        "mark": {"type": "line", "strokeWidth": 1.5},
        "encoding": {
            "x": {"field": "rows", "type": "quantitative", "title": "rows"},
            "y": {"field": "regret", "type": "quantitative", "title": "regret so far"},
            "color": _COLOUR,
            "detail": {"field": "name"},
        },
    }


def _intervals(task: Task, measured: list[Measured]) -> dict[str, Any]:
    kept = {one.name for one in shown(task, measured)}
    values = [
        {
            "name": row.name,
            "kind": KINDS[row.kind],
            "mean": row.score.mean,
            "low": row.score.mean if np.isnan(row.score.low) else row.score.low,
            "high": row.score.mean if np.isnan(row.score.high) else row.score.high,
        }
        for row in rows(task, measured)
        if row.name in kept
    ]
    title = {"reward": "mean reward", "regret": "regret", "share": "regret, % of uniform"}
    across = {"field": "mean", "type": "quantitative", "title": title[task.measure]}
    down = {"field": "name", "type": "nominal", "title": None, "sort": None}
    return {
        "width": 250,
        "height": 230,
        "data": {"values": values},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {
                    "x": across | {"field": "low", "scale": {"zero": False}},
                    "x2": {"field": "high"},
                    "y": down | {"axis": {"labelLimit": 260}},
                    "color": _COLOUR,
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 45},
                "encoding": {
                    "x": across | {"scale": {"zero": False}},
                    "y": down,
                    "color": _COLOUR,
                },
            },
        ],
    }
