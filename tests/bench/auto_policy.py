"""What a campaign with the policy ``auto`` keeps or loses against one that stays with the default.

    python -m tests.bench.auto_policy --worlds taste types --seeds 20 --decisions 16000
    python -m tests.bench.auto_policy --worlds alike jagged unmoved --seeds 50 --decisions 8000

A shop of four segments and five depths (0 to 30 % off; half of a basket is margin; baskets are
log-normal around 50) and two numbers known of every customer decides for profit, at a floor of 2 %.
The policies, their priors, blocks of 250, the test and its level are those of the
service (`service.auto`); all policies learn after every block, and rewards are known at once, so
in a real campaign a change comes an attribution window later. In one seed all runs meet the same
customers, who would buy the same; until a change ``auto`` is the run that stays, bit for bit.

Earnings are expected ones: the served simplex against the truth. A change is harmful where ``auto``
then earned less than staying, to the end of the run. The worlds were written down before the first
run, and nothing was tuned to them; only ``types`` was added after the row of ``taste``. Rows go to
``tests/bench/auto_policy.md``, one per world.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from bandits import features, sampling, simplex
from bandits.evaluation import choice
from bandits.types import Batch, Contexts
from service.auto import BLOCK
from service.definition import LEVEL, CampaignDefinition

Floats = NDArray[np.float64]

DEPTHS = np.array([0.0, 0.05, 0.10, 0.20, 0.30])
SEGMENTS = 4
BASKET = 5_000
MARGIN = 0.5
RICH = "linear_thompson"

PLAN = CampaignDefinition.model_validate(
    {
        "key": "study",
        "name": "Study",
        "arms": [
            {"key": "d0", "name": "Nothing", "offer": {"kind": "none"}},
            *(
                {"key": f"d{d}", "name": f"{d} %", "offer": {"kind": "percentage", "percent": d}}
                for d in (5, 10, 20, 30)
            ),
        ],
        "default_arm": "d0",
        "segments": [
            {
                "key": f"s{place}",
                "name": f"S{place}",
                "rules": [{"attribute": "group", "op": "==", "value": place}],
            }
            for place in range(SEGMENTS - 1)
        ],
        "features": [
            {"kind": "number", "key": "x", "name": "X"},
            {"kind": "number", "key": "y", "name": "Y"},
        ],
        "policy": {"name": "auto"},
        "margin_rate": MARGIN,
        "basket_minor": BASKET,
        "floor": 0.02,
    }
)


TABLE = Path(__file__).with_suffix(".md")
HEAD = (
    "`python -m tests.bench.auto_policy`; its docstring says what the columns mean.",
    "",
    "| world | decisions | campaigns that changed (to what) | decisions until the first change,"
    " 10/50/90 % | earned more than staying | linear_thompson from the start | harmful changes |",
    "|-|-:|-|-|-|-|-:|",
)


class Truth(NamedTuple):
    """Rates of a world: (B, A) conversions of customers with these segments and numbers."""

    rates: Callable[[NDArray[np.int32], Floats], Floats]


def taste(rng: np.random.Generator) -> Truth:
    """How much a discount does hangs on a number known of the customer."""
    level = rng.normal(special.logit(0.06), 0.3, SEGMENTS)

    def rates(segment: NDArray[np.int32], x: Floats) -> Floats:
        slope = 4.0 + 5.0 * x[:, :1]
        return np.asarray(special.expit(level[segment][:, None] + slope * DEPTHS))

    return Truth(rates)


def types(rng: np.random.Generator) -> Truth:
    """Half of the customers, known by a number, buy at any price, the others from 20 % off on."""
    level = rng.normal(0.0, 0.3, SEGMENTS)
    loyal = special.logit(np.full(len(DEPTHS), 0.12))
    bargain = special.logit(np.where(DEPTHS < 0.2, 0.01, 0.25))

    def rates(segment: NDArray[np.int32], x: Floats) -> Floats:
        own = np.where(x[:, :1] < 0, loyal, bargain)
        return np.asarray(special.expit(level[segment][:, None] + own))

    return Truth(rates)


def alike(rng: np.random.Generator) -> Truth:
    """Conversion is logistic in depth, and customers differ by segment alone."""
    level = rng.normal(special.logit(0.05), 0.3, SEGMENTS)
    slope = rng.normal(5.0, 1.0, SEGMENTS)

    def rates(segment: NDArray[np.int32], x: Floats) -> Floats:
        return np.asarray(special.expit(level[segment][:, None] + np.outer(slope, DEPTHS)[segment]))

    return Truth(rates)


def jagged(rng: np.random.Generator) -> Truth:
    """Depth says nothing: every arm of every segment has a rate of its own."""
    table = special.expit(rng.normal(special.logit(0.08), 0.5, (SEGMENTS, len(DEPTHS))))

    def rates(segment: NDArray[np.int32], x: Floats) -> Floats:
        return np.asarray(table[segment])

    return Truth(rates)


def unmoved(rng: np.random.Generator) -> Truth:
    """No discount makes anybody buy."""
    level = special.expit(rng.normal(special.logit(0.06), 0.3, SEGMENTS))

    def rates(segment: NDArray[np.int32], x: Floats) -> Floats:
        return np.repeat(level[segment][:, None], len(DEPTHS), axis=1)

    return Truth(rates)


WORLDS: dict[str, Callable[[np.random.Generator], Truth]] = {
    "taste": taste,
    "types": types,
    "alike": alike,
    "jagged": jagged,
    "unmoved": unmoved,
}


class Run(NamedTuple):
    """Expected earnings per block, and each change: after which block, to what, with what evidence.

    Attributes:
        earned: (blocks,) minor units.
        changes: (blocks decided before it, new policy, evidence).
    """

    earned: Floats
    changes: list[tuple[int, str, choice.Evidence]]


def run(world: str, seed: int, *, blocks: int, first: str, choosing: bool) -> Run:
    """Decide, learn and, if ``choosing``, look after every block."""
    truth = WORLDS[world](np.random.default_rng([seed, 0]))
    policies = {name: PLAN.served_by(name).build_policy() for name in PLAN.choices}
    if not choosing:
        policies = {first: policies[first]}
    states = {name: policy.init() for name, policy in policies.items()}
    serving, judged, changes = first, _afresh(policies, first), []
    earned = np.zeros(blocks)
    for block in range(blocks):
        rng = np.random.default_rng([seed, 1, block])
        contexts, value, bought, basket = _customers(truth, rng)
        wanted = {
            name: _simplexes(policies[name], states[name], contexts) for name in (serving, *judged)
        }
        arm = sampling.draws(wanted[serving], rng.random(BLOCK))
        earned[block] = float((wanted[serving] * value).sum())
        batch = _learnt(contexts, arm, wanted[serving], bought, basket)
        for name, before in judged.items():
            judged[name] = choice.bet(before, arm, batch.simplex, wanted[name], batch.reward)
        states = {name: policies[name].update(states[name], batch) for name in policies}
        winner = _winner(judged)
        if winner is not None:
            changes.append((block + 1, winner, judged[winner]))
            serving, judged = winner, _afresh(policies, winner)
    return Run(earned, changes)


def _afresh(policies: dict[str, Any], serving: str) -> dict[str, choice.Evidence]:
    return {name: choice.start(floor=PLAN.floor) for name in policies if name != serving}


def _winner(judged: dict[str, choice.Evidence]) -> str | None:
    better = [
        name
        for name, one in judged.items()
        if choice.verdict(one, alpha=LEVEL, candidates=len(judged)) == "better"
    ]
    return max(better, key=lambda name: choice.lower(judged[name]), default=None)


def _customers(
    truth: Truth, rng: np.random.Generator
) -> tuple[Contexts, Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Return contexts, and (B, A) expected profit and purchases under each arm, (B,) baskets."""
    segment = rng.integers(0, SEGMENTS, BLOCK).astype(np.int32)
    x = rng.normal(size=(BLOCK, 2))
    rates = truth.rates(segment, x)
    basket = np.rint(BASKET * rng.lognormal(-0.125, 0.5, BLOCK)).astype(np.int64)
    bought = (rng.random(BLOCK)[:, None] < rates).astype(np.int64)
    value = rates * BASKET * (MARGIN - DEPTHS)
    return Contexts(segment, features.quantise(x)), value, bought, basket


def _simplexes(policy: Any, state: Any, contexts: Contexts) -> Floats:
    mask = np.ones((BLOCK, len(DEPTHS)), dtype=bool)
    raw = policy.probabilities(policy.believe(state), contexts, mask)
    return np.asarray(simplex.guard(np.asarray(raw), mask, floor=PLAN.floor))


def _learnt(
    contexts: Contexts, arm: NDArray[Any], p: Floats, bought: NDArray[Any], basket: NDArray[Any]
) -> Batch:
    won = bought[np.arange(BLOCK), arm]
    profit = won * np.rint(basket * (MARGIN - DEPTHS[arm])).astype(np.int64)
    return Batch(contexts, arm.astype(np.int32), p, won, profit, np.ones(BLOCK, np.int64))


def study(world: str, seeds: int, *, blocks: int) -> str:
    """Run a world over the seeds and return its row of the table."""
    usual = PLAN.choices[0]
    autos = [run(world, s, blocks=blocks, first=usual, choosing=True) for s in range(seeds)]
    stays = [
        run(world, s, blocks=blocks, first=usual, choosing=False) if auto.changes else auto
        for s, auto in enumerate(autos)
    ]
    changed = [auto for auto in autos if auto.changes]
    riches = [
        run(world, s, blocks=blocks, first=RICH, choosing=False) for s in range(seeds) if changed
    ]
    kept, rich = _more(autos, stays), _more(riches, stays)
    harmful = int((kept < 0).sum())
    times = [auto.changes[0][0] * BLOCK for auto in changed]
    spans = "/".join(f"{t:,.0f}" for t in np.quantile(times, [0.1, 0.5, 0.9])) if times else "—"
    to = {name: sum(c[1] == name for a in autos for c in a.changes) for name in PLAN.choices}
    told = ", ".join(f"{name} {count}" for name, count in to.items() if count) or "—"
    return (
        f"| {world} | {blocks * BLOCK:,} | {len(changed)} of {seeds} ({told}) | {spans}"
        f" | {_interval(kept)} | {_interval(rich)} | {harmful} |"
    )


def _more(runs: list[Run], stays: list[Run]) -> Floats:
    """Return (seeds,) what runs earned more than staying, in per cent of it."""
    both = zip(runs, stays, strict=False)
    return np.array([100 * (one.earned.sum() / stay.earned.sum() - 1) for one, stay in both])


def _interval(values: Floats) -> str:
    if not values.any():
        return "—"
    error = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():+.2f} ± {error:.2f} %"


def main() -> None:
    """Print the rows of some worlds, and put them into the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--decisions", type=int, default=20_000)
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    asked = parser.parse_args()
    before = TABLE.read_text().splitlines()[len(HEAD) :] if TABLE.exists() else []
    rows = {row.split("|")[1].strip(): row for row in before}
    for world in asked.worlds:
        started = time.perf_counter()
        rows[world] = study(world, asked.seeds, blocks=asked.decisions // BLOCK)
        print(rows[world], f"({time.perf_counter() - started:.0f} s)", flush=True)
        TABLE.write_text("\n".join((*HEAD, *rows.values())) + "\n")


if __name__ == "__main__":
    main()
