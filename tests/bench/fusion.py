"""What it is worth to train the recommender together with the policy's knowledge, and to ensemble.

    python -m tests.bench.fusion --seeds 20 --output tests/bench/fusion.md

The protocol, the categories and the customers are those of :mod:`tests.bench.context_value`, whose
records of no traits (``none``), of all four traits and of own purchases are taken over: a seed is
the same customers. ``thompson_hierarchical`` has five segments, the fifths of everybody's slope as
it is foretold from weeks 1-20: by traits without embeddings, by embeddings, by a network that
learns from answers alone or jointly from what is bought, by ensembles (:mod:`service.demo.fusion`).
``by chance`` is the control. All settings were chosen inside weeks 1-20, by a rule that was fixed
before the last six categories were run, once.

``linear_thompson`` reads the joint network's vector as features (two categories): a neural-linear
policy whose last layer learns during the campaign.
"""

import argparse
import functools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bandits import features
from service.config import Config
from service.demo import fusion, households, panel
from service.demo.run import cache_folder
from service.traits.response import standard
from tests.bench import context_value
from tests.bench.context_value import HIERARCHICAL, NONE, Campaign, Record

BORROWED = (NONE, "by chance", "all four", "own response")
WAYS = ("no taste", "taste", "response network", "joint network", "mean", "stacked")
LINEAR, LINEAR_SEEDS = "linear_thompson", 10
#: Pairs that are compared with each other: what is asked, and against what.
PAIRS = (
    ("taste", "no taste"),
    ("all four", "no taste"),
    ("joint network", "response network"),
    ("joint network", "taste"),
    ("joint network", "all four"),
    ("mean", "all four"),
    ("stacked", "all four"),
    ("stacked", "own response"),
    ("stacked", "joint network"),
)


class Prepared(NamedTuple):
    """The campaigns with the groups of every way, and what the split chose."""

    found: list[Campaign]
    told: fusion.Chosen


def campaigns(data: panel.Panel, before: households.Known, found: list[Campaign]) -> Prepared:
    """Return the study's campaigns with their households' fifths, by every way."""
    names = [campaign.truth.name for campaign in found]
    told = fusion.chosen(data, names)
    slopes, both = fusion.foretold(fusion.half(data, names, before=before), told)
    vectors = np.stack([standard(one) for one in both.factors.users.T], axis=1)
    out = []
    for place, campaign in enumerate(found):
        row = campaign.truth.row
        groups = {name: campaign.groups[name] for name in BORROWED}
        groups |= {name: households.fifths(slopes[name][row, place]) for name in WAYS}
        sets = {NONE: campaign.sets[NONE], "joint network": features.quantise(vectors[row])}
        out.append(campaign._replace(sets=sets, groups=groups))
    return Prepared(out, told)


def borrowed(systems: tuple[str, ...] = (HIERARCHICAL, LINEAR)) -> list[Record]:
    """Return the records of the other study that this one compares with."""
    kept = Path(context_value.__file__).with_suffix(".json")
    records: list[Record] = json.loads(kept.read_text())
    return [r for r in records if r["set"] in BORROWED and r["system"] in systems]


def complete(records: list[Record]) -> list[Record]:
    """Return the records of those seeds of a category that every way was run on."""
    needed = {HIERARCHICAL: {*BORROWED, *WAYS}, LINEAR: {NONE, "joint network"}}
    ran: dict[tuple[Any, ...], set[str]] = {}
    for one in records:
        ran.setdefault((one["category"], one["system"], one["seed"]), set()).add(one["set"])
    full = {key for key, sets in ran.items() if sets >= needed[key[1]]}
    found = (r for r in records if (r["category"], r["system"], r["seed"]) in full)
    return [r for r in found if r["set"] in needed[r["system"]]]


def table(records: list[Record], ready: Prepared, *, command: str) -> str:
    """Return the study as markdown."""
    records = complete(records)
    whole = context_value.table(records, ready.found, command=command)
    head, cut, rest = whole.replace("# What context is", "# What fusion is", 1).partition("\n## ")
    parts = [_chosen(ready.told), *_pairs(records, ready.found)]
    return head + "\n" + "\n".join(parts) + cut + rest


def _chosen(told: fusion.Chosen) -> str:
    """Return what the split inside weeks 1-20 found and chose."""
    lines = [
        "## Chosen inside weeks 1-20",
        "",
        "Correlation of slopes foretold from weeks 1-12 with those of weeks 13-20, mean over"
        " categories.",
        "",
        "| way | precision | correlation |",
        "|---|-:|-:|",
    ]
    for setting, found in told.tried.items():
        if isinstance(setting, str):
            lines.append(f"| {setting} | | {found:.3f} |")
        else:
            weight, precision = setting
            name = f"joint network, weight {weight:g}" if weight else "response network"
            lines.append(f"| {name} | {precision:g} | {found:.3f} |")
    says = ", ".join(f"{n} {w:.2f}" for n, w in zip(fusion.MEMBERS, told.says, strict=True))
    lines += [
        "",
        f"Chosen: response network with precision {told.alone:g}; joint network with weight"
        f" {told.weight:g} and precision {told.precision:g}; stacked: {says}.",
        "",
    ]
    return "\n".join(lines)


def _pairs(records: list[Record], found: list[Campaign]) -> list[str]:
    """Return what one way saves against another, on either part of the categories."""
    parts = {
        "nothing had been tried on": [c for c in found if c.untouched],
        "it was developed on": [c for c in found if not c.untouched],
    }
    parts = {title: some for title, some in parts.items() if some}
    lines = ["## One way against another", "", "Regret that the first saves, paired by seed.", ""]
    lines.append("| | " + " | ".join(f"{len(s)} categories {t}" for t, s in parts.items()) + " |")
    lines.append("|---|" + "-:|" * len(parts))
    for name, than in PAIRS:
        cells = []
        for some in parts.values():
            names = {campaign.truth.name for campaign in some}
            here = [r for r in records if r["category"] in names]
            saved = context_value.saved(here, system=HIERARCHICAL, name=name, than=than)
            cells.append(context_value.interval(saved))
        lines.append(f"| {name} against {than} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def run(
    found: list[Campaign], records: list[Record], *, seeds: int,
    keep: Callable[[list[Record]], None],
) -> list[Record]:  # fmt: skip
    """Return the records with those that are missing."""
    study: Any = functools.partial(context_value.study, copies=4, keep=keep)
    records = study(found, seeds=seeds, systems=[HIERARCHICAL], records=records)
    linear = {r["category"] for r in records if r["system"] == LINEAR}
    few = [campaign for campaign in found if campaign.truth.name in linear]
    more: list[Record] = study(
        few, seeds=min(seeds, LINEAR_SEEDS), systems=[LINEAR], records=records
    )
    return more


def prepared(cache: Path, kept: Path | None) -> Prepared:
    """Return the campaigns, from a file that an earlier run has kept where there is one."""
    if kept is not None and kept.exists():
        ready: Prepared = pickle.loads(kept.read_bytes())
        return ready
    data = panel.load(panel.fetch(cache))
    before = households.known(data)
    ready = campaigns(data, before, context_value.campaigns(data, before))
    if kept is not None:
        kept.write_bytes(pickle.dumps(ready))
    return ready


def main() -> None:
    """Run the study and write its table and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="seeds per category (20)")
    parser.add_argument("--table", action="store_true", help="run nothing, only write the table")
    parser.add_argument("--keep", type=Path, help="file to keep traits and truth in between runs")
    parser.add_argument(
        "--output",
        type=Path,
        help="markdown file; beside it records as JSON, which are gone on from",
    )
    options = parser.parse_args()
    ready = prepared(cache_folder(Config.from_env()), options.keep)
    kept = options.output and options.output.with_suffix(".json")
    others = [r for r in borrowed() if r["seed"] < options.seeds]
    records = others + (json.loads(kept.read_text()) if kept and kept.exists() else [])

    def keep(records: list[Record]) -> None:
        own = [json.dumps(one) for one in records if one not in others]
        if kept:
            kept.write_text("[\n" + ",\n".join(own) + "\n]\n")

    if not options.table:
        records = run(ready.found, records, seeds=options.seeds, keep=keep)
    text = table(records, ready, command=f"python -m tests.bench.fusion --seeds {options.seeds}")
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
