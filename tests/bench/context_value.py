"""What it is worth to know customers: the same policy with and without traits as context.

    python -m tests.bench.context_value --seeds 20 --output tests/bench/context_value.md

The households of the retail panel released by 84.51° (:mod:`service.demo.households`): traits from
weeks 1-20, the truth from weeks 21-40, one campaign per category that offers 0 to 30 % off. Every
household stands for ``--copies`` customers, drawn anew by seed, who come on its days. All that is
known in every campaign are the demo's five segments; the sets of features come on top.
``thompson_hierarchical``, which reads segments alone, takes five groups instead
(:func:`service.demo.households.groupings`): fifths of the slope that traits foretell, that own
purchases say, or both. A policy learns at the end of the day, daily for two weeks and then after a
tenth of the days so far.

Regret is expected profit given up against each household's own best arm (major units), from the
served simplex. All systems of a seed meet the same customers, buying chances and basket values;
differences are paired by seed, with t intervals. ``could be had`` is no policy: it says how much of
the regret of the best arm for all a linear rule over the set could save, told the other households'
truth (five folds by household).

The categories are those where a best arm of one's own is worth at least 4 % more profit than the
best arm for all; traits had no say in it. The fifths were found on those among the eight largest
categories. The others, down to the sixtieth in size, were run once with what had been found: their
table is the one to believe. All settings are the policies' own.
"""

import argparse
import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from scipy import stats

from bandits import policies, sampling
from bandits.types import Batch, Contexts, Policy
from service.config import Config
from service.demo import households, panel, world
from service.demo.households import DEPTH, Category
from service.demo.run import cache_folder

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Record = dict[str, Any]

ARMS, SEGMENTS = len(DEPTH), 5
HIERARCHICAL = "thompson_hierarchical"
SYSTEMS = ("linear_ucb", HIERARCHICAL, "linear_thompson")
#: Sets of features that the slower systems are run with.
CHIEF = ("none", "all four", "own response", "all and own response", "joint network")
SLOW = ("linear_thompson",)
#: Categories by size that the groups were found on, and down to which they were then tried.
FOUND_ON, DOWN_TO = 8, 60
LEAST_GAP = 0.04
FOLDS = 5
NONE = "none"


class Campaign(NamedTuple):
    """One category with its households' features (H, D), and groups (H,), by what they tell.

    ``untouched`` says that the groups were not found on it.
    """

    truth: Category
    segment: Ints
    sets: dict[str, Ints]
    groups: dict[str, Ints]
    untouched: bool = False


class Stream(NamedTuple):
    """Who comes (V,), on which day, and the chances of everything that happens to them."""

    who: Ints
    day: Ints
    serve: Floats
    buy: Floats
    value: Ints


def stream(truth: Category, *, seed: int, copies: int) -> Stream:
    """Return a seed's visits: each household stands for some customers, ``copies`` on average."""
    rng, count = np.random.default_rng([seed, 11]), len(truth.row)
    times = rng.multinomial(count * copies, np.full(count, 1.0 / count))
    who = np.repeat(truth.visits, times[truth.visits])
    rows = len(who)
    value = truth.value_minor[rng.integers(0, len(truth.value_minor), rows)]
    day = np.repeat(truth.day, times[truth.visits])
    return Stream(who, day, rng.random(rows), rng.random(rows), value)


def lessons(days: int) -> Ints:
    """Return the days on which the policy has learnt up to the day before, the first one too."""
    found = [0]
    while found[-1] < days:
        found.append(found[-1] + (1 if found[-1] < 14 else max(1, found[-1] // 10)))
    return np.array(found[:-1])


def run(campaign: Campaign, policy: Policy, features: Ints, visits: Stream) -> Floats:
    """Return the regret of every household's visits by lesson, major units (T,)."""
    gap = gaps(campaign.truth)
    cost = world.MARGIN_RATE - DEPTH
    start = lessons(int(visits.day[-1]) + 1)
    cuts = [*np.searchsorted(visits.day, start).tolist(), len(visits.day)]
    state, lost = policy.init(), []
    for first, last in itertools.pairwise(cuts):
        rows = slice(first, last)
        who, place = np.unique(visits.who[rows], return_inverse=True)
        known = Contexts(campaign.segment[who].astype(np.int32), features[who])
        mask = np.ones((len(who), ARMS), np.bool_)
        p = np.asarray(policy.probabilities(policy.believe(state), known, mask))
        lost.append(float((np.bincount(place)[:, None] * p * gap[who]).sum()))
        arm = sampling.draws(p[place], visits.serve[rows])
        bought = visits.buy[rows] < campaign.truth.conversion[visits.who[rows], arm]
        profit = np.where(bought, np.rint(cost[arm] * visits.value[rows]), 0.0)
        batch = Batch(
            Contexts(known.segment[place], known.features[place]), arm, p[place],
            bought.astype(np.int64), profit.astype(np.int64), np.ones(last - first, np.int64),
        )  # fmt: skip
        state = policy.update(state, batch)
    return np.array(lost)


def gaps(truth: Category) -> Floats:
    """Return what each arm gives up per visit of a household (H, A), major units."""
    worth = households.profit_minor(truth) / 100
    out: Floats = worth.max(axis=1, keepdims=True) - worth
    return out


def weights(truth: Category) -> Floats:
    """Return the share of the visits of every household (H,)."""
    count = np.bincount(truth.visits, minlength=len(truth.row))
    out: Floats = count / count.sum()
    return out


def oracle_gap(truth: Category) -> float:
    """Return by how much each household's best arm earns more than the best arm for all."""
    worth, share = households.profit_minor(truth), weights(truth)
    return float(share @ worth.max(axis=1) / (share @ worth).max() - 1.0)


def could_be_had(campaign: Campaign, name: str) -> float:
    """Return the part of the regret of the best arm for all that a linear rule saves, at best."""
    worth, share = households.profit_minor(campaign.truth), weights(campaign.truth)
    x = np.hstack([np.eye(SEGMENTS)[campaign.segment], campaign.sets[name] / 4096.0])
    fold = np.random.default_rng(0).integers(0, FOLDS, len(x))
    arm = np.zeros(len(x), np.int64)
    for out in range(FOLDS):
        inside = fold != out
        heavy = x[inside] * share[inside, None]
        gram = heavy.T @ x[inside] + 1e-9 * np.eye(x.shape[1])
        arm[~inside] = (x[~inside] @ np.linalg.solve(gram, heavy.T @ worth[inside])).argmax(axis=1)
    served, one = share @ worth[np.arange(len(x)), arm], (share @ worth).max()
    return float((served - one) / (share @ worth.max(axis=1) - one))


def campaigns(data: panel.Panel, before: households.Known) -> list[Campaign]:
    """Return the campaigns of the categories where best arms differ enough, the largest first."""
    found = []
    names = households.largest(data, DOWN_TO)
    for place, name in enumerate(track(names, "categories", transient=True)):
        try:
            truth = households.category(data, before, name)
        except (ValueError, np.linalg.LinAlgError):
            continue  # its weeks do not tell how far households differ
        if oracle_gap(truth) >= LEAST_GAP:
            sets = households.contexts(before, truth)
            groups = households.groupings(before, truth)
            segment = before.segment[truth.row]
            found.append(Campaign(truth, segment, sets, groups, untouched=place >= FOUND_ON))
    return found


def study(
    found: list[Campaign], *, seeds: int, copies: int, systems: list[str], first: int = 0,
    records: list[Record] | None = None, keep: Callable[[list[Record]], None] = lambda _: None,
) -> list[Record]:  # fmt: skip
    """One record per category, seed, system and set: regret, and that of fixed rules.

    Those among ``records`` are not run again; ``keep`` gets all there are, ever again.
    """
    records = list(records or [])
    done = {(r["category"], r["seed"], r["system"], r["set"]) for r in records}
    todo = [(c, seed, s) for s in systems for seed in range(first, first + seeds) for c in found]
    for campaign, seed, system in track(todo, "systems x seeds x categories", transient=True):
        key = campaign.truth.name, seed, system
        left = [name for name in told(campaign, system) if (*key, name) not in done]
        if not left:
            continue
        visits = stream(campaign.truth, seed=seed, copies=copies)
        lost = gaps(campaign.truth)[visits.who]
        for name in left:
            regret = _run(campaign, system, name, visits)
            records.append(
                {
                    "category": campaign.truth.name, "seed": seed, "system": system, "set": name,
                    "decisions": len(visits.who), "regret": round(float(regret.sum()), 2),
                    "uniform": round(float(lost.mean(axis=1).sum()), 2),
                    "best arm for all": round(float(lost.sum(axis=0).min()), 2),
                }
            )  # fmt: skip
        keep(records)
    return records


def told(campaign: Campaign, system: str) -> list[str]:
    """Return the names of the sets that a system is run with."""
    if system == HIERARCHICAL:
        return list(campaign.groups)
    return [name for name in campaign.sets if system not in SLOW or name in CHIEF]


def _run(campaign: Campaign, system: str, name: str, visits: Stream) -> Floats:
    if system != HIERARCHICAL:
        features = campaign.sets[name]
        policy = policies.make(system, arms=ARMS, segments=SEGMENTS, features=features.shape[1])
        return run(campaign, policy, features, visits)
    group = campaign.groups[name]
    shape = (int(group.max()) + 1, 1)
    value = (world.MARGIN_RATE - DEPTH) * campaign.truth.value_minor.mean()
    policy = policies.make(
        system,
        arms=ARMS,
        segments=shape[0],
        value=np.tile(value, shape),
        depth=np.tile(DEPTH, shape),
    )
    none = campaign.sets[NONE]
    return run(campaign._replace(segment=group), policy, none, visits)


def interval(values: Floats) -> str:
    """Return the mean of the seeds with its 95 % t interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():,.0f} ({values.mean() - half:,.0f} to {values.mean() + half:,.0f})"


def saved(records: list[Record], *, system: str, name: str, than: str = NONE) -> Floats:
    """Return what a set saves of the regret of another one, per seed, summed over categories."""
    total: dict[int, float] = {}
    for one in records:
        if one["system"] == system:
            sign = (one["set"] == than) - float(one["set"] == name)
            total[one["seed"]] = total.get(one["seed"], 0.0) + sign * one["regret"]
    return np.array([total[seed] for seed in sorted(total)])


def mean(records: list[Record], key: str, **of: str) -> float:
    """Return the mean of a figure over the seeds of some records."""
    return float(np.mean([r[key] for r in records if all(r[k] == v for k, v in of.items())]))


def table(records: list[Record], found: list[Campaign], *, command: str) -> str:
    """Return the study as markdown."""
    lines = ["# What context is worth", "", f"`{command}`; the module says what was done.", ""]
    parts = {
        "Categories that nothing had been tried on": [c for c in found if c.untouched],
        "Categories that the groups were found on": [c for c in found if not c.untouched],
    }
    for title, some in parts.items():
        if some:
            lines += _together(title, _within(records, some))
    for campaign in found:
        lines += _of_category(_within(records, [campaign]), campaign)
    return "\n".join(lines) + "\n"


def _within(records: list[Record], some: list[Campaign]) -> list[Record]:
    names = {campaign.truth.name for campaign in some}
    return [record for record in records if record["category"] in names]


def _together(title: str, here: list[Record]) -> list[str]:
    """Return what sets save over several categories, by system."""
    systems = _systems(here)
    lines = [
        f"## {title}",
        "",
        "Regret saved against no traits, paired by seed, the categories of a seed added up.",
        "",
        "| set | " + " | ".join(_extent(here, system) for system in systems) + " |",
        "|---|" + "-:|" * len(systems),
    ]
    for name in dict.fromkeys(str(r["set"]) for r in here):
        if name != NONE:
            cells = [_saved(here, s, name) for s in systems]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _saved(here: list[Record], system: str, name: str) -> str:
    """Return what a set saves, and as a share; nothing where it was not run."""
    if not _ran(here, system, name):
        return ""
    gain = saved(here, system=system, name=name)
    whole = sum(r["regret"] for r in here if r["system"] == system and r["set"] == NONE)
    return f"{interval(gain)}: {gain.sum() / whole:+.1%}"


def _systems(records: list[Record]) -> list[str]:
    return list(dict.fromkeys(str(r["system"]) for r in records))


def _extent(records: list[Record], system: str) -> str:
    """Return a system with how many categories and seeds it was run on, and its regret."""
    here = [r for r in records if r["system"] == system]
    many, seeds = len({r["category"] for r in here}), len({r["seed"] for r in here})
    without = sum(r["regret"] for r in here if r["set"] == NONE) / seeds
    return f"{system} ({many} categories, {seeds} seeds; {without:,.0f} without)"


def _ran(records: list[Record], system: str, name: str) -> bool:
    return any(r["system"] == system and r["set"] == name for r in records)


def _of_category(here: list[Record], campaign: Campaign) -> list[str]:
    truth = campaign.truth
    keeps = np.corrcoef(truth.earlier.tilt[truth.row], truth.later.tilt[truth.row])[0, 1]
    level = np.corrcoef(truth.earlier.level[truth.row], truth.later.level[truth.row])[0, 1]
    best = np.bincount(households.profit_minor(truth).argmax(1), weights(truth), ARMS)
    systems = _systems(here)
    lines = [
        f"## {truth.name.capitalize()}",
        "",
        f"{len(truth.row):,} households, {mean(here, 'decisions'):,.0f} decisions. Slope"
        f" {truth.later.slope:.2f}, standard deviation between households"
        f" {truth.later.spread[1, 1] ** 0.5:.2f}. Correlation of weeks 1-20 with weeks 21-40:"
        f" level {level:.2f}, slope {keeps:.2f}. Best arms (share of visits): "
        + ", ".join(f"{d:.0%} {b:.0%}" for d, b in zip(DEPTH, best, strict=True))
        + f". Own best arms earn {oracle_gap(truth):.1%} more than the best arm for all. Regret:"
        f" uniform {mean(here, 'uniform'):,.0f}, best arm for all"
        f" {mean(here, 'best arm for all'):,.0f}.",
        "",
        "| set | could be had | " + " | ".join(f"{s}: regret | saved" for s in systems) + " |",
        "|---|-:|" + "-:|" * (2 * len(systems)),
    ]
    for name in campaign.sets | campaign.groups:
        cells = [f"{could_be_had(campaign, name):.1%}" if name in campaign.sets else ""]
        for system in systems:
            if not _ran(here, system, name):
                cells += ["", ""]
                continue
            cells.append(f"{mean(here, 'regret', system=system, set=name):,.0f}")
            gain = saved(here, system=system, name=name)
            cells.append("" if name == NONE else interval(gain))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def prepared(cache: Path, kept: Path | None) -> list[Campaign]:
    """Return the campaigns, from a file that an earlier run has kept where there is one."""
    if kept is not None and kept.exists():
        found: list[Campaign] = pickle.loads(kept.read_bytes())
        return found
    data = panel.load(panel.fetch(cache))
    found = campaigns(data, households.known(data))
    if kept is not None:
        kept.write_bytes(pickle.dumps(found))
    return found


def main() -> None:
    """Run the study and write its table and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="seeds per category (20)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--copies", type=int, default=4, help="customers per household (4)")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="which policies")
    parser.add_argument("--keep", type=Path, help="file to keep traits and truth in between runs")
    parser.add_argument(
        "--output",
        type=Path,
        help="markdown file; beside it records as JSON, which are gone on from",
    )
    options = parser.parse_args()
    found = prepared(cache_folder(Config.from_env()), options.keep)
    kept = options.output and options.output.with_suffix(".json")

    def keep(records: list[Record]) -> None:
        if kept:
            kept.write_text("[\n" + ",\n".join(json.dumps(one) for one in records) + "\n]\n")

    records = study(
        found, seeds=options.seeds, copies=options.copies, first=options.first,
        systems=options.systems.split(","), keep=keep,
        records=json.loads(kept.read_text()) if kept and kept.exists() else None,
    )  # fmt: skip
    command = f"python -m tests.bench.context_value --seeds {options.seeds}"
    text = table(records, found, command=command)
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
