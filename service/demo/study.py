"""`make study`: the demo's campaign over many seeds, through the real server.

Each seed is a campaign of its own. The seeds take turns, one list of decisions and one of outcomes
per turn, as traffic of many hours comes to a learner that has time between two lists. The figures
are read from Postgres by SQL (`service.demo.figures`); from the simulator come the shoppers, and
the true expected profit of every arm.

    python -m service.demo.study --seeds 20 --decisions 100000 --output study.md
"""

import argparse
import datetime as dt
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Engine

from bandits import simulate
from service import db
from service.client import Ask, Client, Outcome
from service.config import Config
from service.demo import figures, shop, world
from service.demo.run import PATIENCE_SECONDS, cache_folder, load_panel, wait_until_served
from service.demo.segments import KEYS, unit_of
from service.demo.show import Show
from service.supervisor import Barter

LIST = 200
EARLY = 20_000
LATE_SHARE = 0.2
HOLDOUT = 0.05
LEARN_SECONDS = 5.0
Wait = Callable[[float], None]


class Seed(NamedTuple):
    """One seed's figures. Amounts are minor units; the bar is in the words of each field.

    Attributes:
        seed: the seed.
        decisions: randomised decisions in the log.
        regret: true regret of the first decisions (20,000, or fewer in a short run).
        split_regret: that of an equal split on the same visits.
        ratio: the first over the second; at most 0.5 is wanted on average.
        late_profit: true profit per visitor over the last fifth (80,000-100,000).
        late_best: that of the best arm of every segment, on the same visits.
        late_ratio: the first over the second; at least 0.95 is wanted.
        observed: profit per visitor over the last fifth as the learner credited it.
    """

    seed: int
    decisions: int
    regret: float
    split_regret: float
    ratio: float
    late_profit: float
    late_best: float
    late_ratio: float
    observed: float


class Runner:
    """One campaign and its visitors, sent list by list."""

    def __init__(self, client: Client, fit: world.Fit, seed: int, count: int) -> None:
        self.seed, self.count, self.sent = seed, count, 0
        self.last_decision: str | None = None
        self.last_event: str | None = None
        self._client, self._fit = client, fit
        self._visits = simulate.visits(seed, count, segment_of_unit=fit.segment, weight=fit.weight)
        self.campaign = shop.launch(client, fit, key=f"study-{seed}")

    @property
    def done(self) -> bool:
        """Whether all visitors have been sent."""
        return self.sent >= self.count

    def turn(self) -> int:
        """Send the next list of visitors and what they buy; return how many they were."""
        rows = np.arange(self.sent, min(self.sent + LIST, self.count))
        visits = simulate.some(self._visits, rows)
        decisions = self._client.decide_many(
            Ask(
                self.campaign,
                unit_of(int(self._fit.known.id[unit])),
                self._fit.known.attributes(int(unit)),
                request_id=f"{self.campaign}:{number}",
            )
            for number, unit in zip(rows, visits.unit, strict=True)
        )
        arms = np.array([shop.ARM_INDEX[decision.arm] for decision in decisions])
        found = simulate.react(self._fit.world, visits, arms)
        events = [
            Outcome(
                decisions[place].decision_id,
                "purchased",
                int(found.revenue_minor[place]),
                int(found.margin_minor[place]),
                event_id=f"{self.campaign}:{rows[place]}",
            )
            for place in np.flatnonzero(found.bought)
        ]
        if events:
            self._client.outcomes(events)
            self.last_event = events[-1].event_id
        self.last_decision = decisions[-1].decision_id
        self.sent += len(rows)
        return len(rows)


def visitors_for(decisions: int) -> int:
    """Return how many visitors to send for this many randomised decisions, holdout aside."""
    return math.ceil(decisions / (1 - HOLDOUT) * 1.02) + LIST


def study(
    runners: Sequence[Runner], engine: Engine, truth: simulate.World, *, decisions: int,
    show: Show, wait: Wait = time.sleep,
) -> list[Seed]:  # fmt: skip
    """Send every campaign its visitors in turns and return the figures, read from Postgres.

    ``decisions`` is how many randomised ones of each campaign are looked at; ``wait`` is what to
    do (for about so many seconds) while the learner is busy.
    """
    total = sum(runner.count for runner in runners)
    with show.task(f"Sending {total:,} visitors") as report:
        while any(not runner.done for runner in runners):
            for runner in runners:
                if not runner.done:
                    await_lesson(engine, runner, wait=wait, seconds=LEARN_SECONDS)
                    runner.turn()
            report(sum(runner.sent for runner in runners), total)
    with show.task("Waiting for the last rewards to be learnt") as report:
        for place, runner in enumerate(runners):
            if not await_lesson(engine, runner, wait=wait, seconds=PATIENCE_SECONDS):
                raise RuntimeError(f"{runner.campaign} was not learnt to its end")
            report(place + 1, len(runners))
    with show.task("Reading the figures") as report:
        rows = []
        for place, runner in enumerate(runners):
            rows.append(figures_of(engine, truth, runner.campaign, runner.seed, decisions))
            report(place + 1, len(runners))
    return rows


def await_lesson(engine: Engine, runner: Runner, *, wait: Wait, seconds: float) -> bool:
    """Wait until this campaign's last list has been learnt, as it would be in real traffic.

    Two hundred visitors take a shop minutes, and this study a fraction of a second. Returns
    whether it was learnt within the time.
    """
    return runner.last_decision is None or figures.learnt(
        engine,
        runner.campaign,
        decision=runner.last_decision,
        event=runner.last_event,
        timeout_seconds=seconds,
        wait=wait,
    )


def figures_of(
    engine: Engine, truth: simulate.World, campaign: str, seed: int, decisions: int
) -> Seed:
    """Return one seed's figures: the first 20,000 (or a fifth) and the last fifth."""
    early = min(EARLY, decisions)
    start = decisions - round(decisions * LATE_SHARE)
    first = figures.totals(engine, truth, campaign, until=early)
    last = figures.totals(engine, truth, campaign, after=start, until=decisions)
    whole = figures.totals(engine, truth, campaign, until=decisions)
    if whole.decisions < decisions:
        raise RuntimeError(f"{campaign} has {whole.decisions} randomised decisions of {decisions}")
    return Seed(
        seed=seed,
        decisions=whole.decisions,
        regret=first.regret,
        split_regret=first.split_regret,
        ratio=first.regret / first.split_regret,
        late_profit=last.profit / last.decisions,
        late_best=last.best / last.decisions,
        late_ratio=last.profit / last.best,
        observed=last.earned / last.decisions,
    )


def markdown(rows: Sequence[Seed], fit: world.Fit, *, source: str, decisions: int) -> str:
    """Return the table that is committed, with what it was made from."""
    ratio = np.array([row.ratio for row in rows])
    late = np.array([row.late_ratio for row in rows])
    early, start = min(EARLY, decisions), decisions - round(decisions * LATE_SHARE)
    lines = [
        f"# The demo's campaign over {len(rows)} seeds",
        "",
        f"Made by `make study` on {dt.datetime.now(dt.UTC):%Y-%m-%d}, {os.cpu_count()} cores"
        f" ({platform.machine()}). Shoppers respond as fitted to {source};"
        f" decisions went through the real server in lists of {LIST}, the figures were read from"
        " Postgres by SQL, the true means come from the simulator.",
        "",
        f"- True regret at {early:,} decisions ÷ that of an equal split: mean"
        f" **{ratio.mean():.3f}**, worst seed {ratio.max():.3f} (wanted: at most 0.5).",
        f"- Profit per visitor over decisions {start:,}-{decisions:,} ÷ the per-segment best arm's:"
        f" mean **{late.mean():.4f}**, worst seed {late.min():.4f} (wanted: at least 0.95).",
        "",
        f"| seed | true regret at {early:,} (USD) | equal split's (USD) | ratio | late profit per"
        " visitor (cents, true mean) | best arm's | ratio | late profit observed (cents) |",
        "|-:|-:|-:|-:|-:|-:|-:|-:|",
    ]
    lines += [
        f"| {row.seed} | {row.regret / 100:,.2f} | {row.split_regret / 100:,.2f} |"
        f" {row.ratio:.3f} | {row.late_profit:.2f} | {row.late_best:.2f} | {row.late_ratio:.4f} |"
        f" {row.observed:.2f} |"
        for row in rows
    ]
    return "\n".join([*lines, "", *_truth_table(fit), ""])


def _truth_table(fit: world.Fit) -> list[str]:
    profit = simulate.profit_minor(fit.world)
    header = " | ".join(f"{name}" for name in shop.ARM_NAMES)
    rows = [
        f"| {key} | {fit.world.share[s]:.1%} | "
        + " | ".join(
            f"{fit.world.conversion[s, a]:.3f} / {profit[s, a]:.2f}" for a in range(len(profit[s]))
        )
        + " |"
        for s, key in enumerate(KEYS)
    ]
    return [
        f"The truth ({fit.category.lower()}): conversion / expected profit per visitor in cents.",
        "",
        f"| segment | visits | {header} |",
        "|-|-:|" + "-:|" * len(shop.ARM_NAMES),
        *rows,
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study in a data folder of its own and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--decisions", type=int, default=100_000, help="per seed (default 100000)")
    parser.add_argument("--port", type=int, default=8099, help="where the server listens")
    parser.add_argument("--output", type=Path, default=Path("study.md"), help="the table")
    chosen = parser.parse_args(arguments)
    show = Show()
    settings = Config.from_env()
    data = load_panel(show, cache_folder(settings))
    with show.task("Fitting the response"):
        fit = world.fit(data)
    with tempfile.TemporaryDirectory(prefix="barter-study-") as folder:
        Path(folder).chmod(0o711)
        home = Config.from_env({**os.environ, "BARTER_DATA": f"{folder}/data"})
        with Barter(replace(home, port=chosen.port), quiet=True) as barter:
            engine = db.engine(barter.database_url, statement_timeout_seconds=600)
            access = shop.open_doors(engine)
            client = Client(barter.url, access.api_key, timeout=PATIENCE_SECONDS, raise_errors=True)
            count = visitors_for(chosen.decisions)
            with show.task("Launching the campaigns"):
                runners = [Runner(client, fit, seed, count) for seed in range(chosen.seeds)]
                wait_until_served(barter.config, runners[-1].campaign)
            rows = study(runners, engine, fit.world, decisions=chosen.decisions, show=show)
            engine.dispose()
    text = markdown(rows, fit, source=data.name, decisions=chosen.decisions)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(text)
    figures_file = chosen.output.with_suffix(".json")
    document: list[dict[str, Any]] = [row._asdict() for row in rows]
    figures_file.write_text(json.dumps(document, indent=1) + "\n")
    show.say(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
