"""How often regret bands cover the truth, by world and estimator.

    python -m tests.bandits.regret_coverage [--runs 60] [--decisions 20000] [--world demo ...]

Every run is a campaign under `thompson_profit` with a 1 % floor, learnt after every 200 decisions,
whose true expected profits are known. Bands are nominally 90 %.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from bandits import policies, simplex
from bandits.evaluation import aipw, regret
from bandits.posteriors import shared
from bandits.posteriors.summary import Prior, posterior
from bandits.types import ArmSums, Batch, Contexts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PERCENT = np.array([0.0, 5.0, 10.0, 20.0, 30.0])
MARGIN = 0.45
TYPICAL = 650.0
#: Baskets of one mean, spread about as a shop's: the standard deviation is 1.2 times the mean.
BASKETS = np.exp(0.95 * special.ndtri((np.arange(200) + 0.5) / 200))
BASKETS = BASKETS / BASKETS.mean() * TYPICAL
SHARE = np.array([0.03, 0.49, 0.26, 0.12, 0.10])
SIZE = 200


class Truth(NamedTuple):
    """One campaign's hidden truth.

    Attributes:
        conversion: (S, A).
        percent: (A,) discount.
        share: (S,) of the visits.
        growth: how much of itself a basket grows by, per unit of depth.
    """

    conversion: Floats
    percent: Floats
    share: Floats
    growth: float = 0.0

    @property
    def sale(self) -> Ints:
        """Profit of a sale (A, Q), in minor units, by basket."""
        basket = np.rint(BASKETS * (1 + self.growth * self.percent[:, None] / 100))
        off = np.rint(basket * self.percent[:, None] / 100)
        earned: Ints = (np.rint(basket * MARGIN) - off).astype(np.int64)
        return earned

    @property
    def profit(self) -> Floats:
        """Expected profit per visit (S, A)."""
        out: Floats = self.conversion * self.sale.mean(axis=1)
        return out

    @property
    def depth(self) -> Floats:
        """(S, A) discount as a share of the basket."""
        return np.tile(self.percent / 100, (len(self.conversion), 1))


def demo(rng: np.random.Generator) -> Truth:
    """The demo's segments: nearly tied at the top, smooth in depth."""
    base = special.logit([0.100, 0.119, 0.094, 0.104, 0.081])
    slope = np.array([2.33, 2.76, 2.75, 2.28, 3.67])
    return Truth(special.expit(base[:, None] + np.outer(slope, PERCENT / 100)), PERCENT, SHARE)


def steep(rng: np.random.Generator) -> Truth:
    """Smooth in depth and widely spaced: some segments want none, some the deepest."""
    base = special.logit([0.05, 0.06, 0.04, 0.10, 0.08])
    slope = np.array([9.0, 8.0, 0.5, 1.0, 5.0])
    return Truth(special.expit(base[:, None] + np.outer(slope, PERCENT / 100)), PERCENT, SHARE)


def jump(rng: np.random.Generator) -> Truth:
    """Nothing happens below 20 %, then half as many again buy."""
    base = np.array([0.10, 0.12, 0.09, 0.10, 0.08])
    return Truth(np.outer(base, [1.0, 1.0, 1.0, 1.9, 1.95]), PERCENT, SHARE)


def peaked(rng: np.random.Generator) -> Truth:
    """Not monotone: 10 % sells best, deeper discounts put people off."""
    base = np.array([0.10, 0.12, 0.09, 0.10, 0.08])
    return Truth(np.outer(base, [1.0, 1.1, 1.7, 1.2, 1.3]), PERCENT, SHARE)


def stocking(rng: np.random.Generator) -> Truth:
    """As the demo, but baskets grow too: by 60 % at 30 % off."""
    return demo(rng)._replace(growth=2.0)


def jagged(rng: np.random.Generator) -> Truth:
    """Arms that are not ordered by depth at all, afresh in every run and segment."""
    level = rng.normal(special.logit(0.10), 0.2, (5, 1))
    return Truth(special.expit(level + rng.normal(0, 0.4, (5, 5))), PERCENT, SHARE)


def smooth(rng: np.random.Generator) -> Truth:
    """Smooth in depth, level and slopes afresh in every run, small residuals."""
    level = rng.normal(special.logit(0.10), 0.3, (5, 1))
    slope = rng.normal(rng.normal(3, 1.5), 1.0, (5, 1))
    rough = rng.normal(0, 0.05, (5, 5))
    return Truth(special.expit(level + slope * PERCENT / 100 + rough), PERCENT, SHARE)


def messages(rng: np.random.Generator) -> Truth:
    """Four banners without any discount, different in every run."""
    level = rng.normal(special.logit(0.10), 0.3, (5, 1))
    rates = special.expit(level + rng.normal(0, 0.15, (1, 4)) + rng.normal(0, 0.05, (5, 4)))
    return Truth(rates, np.zeros(4), SHARE)


def equal(rng: np.random.Generator) -> Truth:
    """Four banners that make no difference: the regret is 0."""
    return Truth(np.tile([[0.10], [0.12], [0.09], [0.10], [0.08]], (1, 4)), np.zeros(4), SHARE)


WORLDS: dict[str, Callable[[np.random.Generator], Truth]] = {
    world.__name__: world
    for world in (demo, smooth, steep, stocking, jump, peaked, jagged, messages, equal)
}


class Run(NamedTuple):
    """One finished campaign.

    Attributes:
        truth: what was hidden.
        state: the ledger (S, A).
        segment: (N,).
        arm: (N,).
        simplex: (N, A).
        reward: (N,).
    """

    truth: Truth
    state: ArmSums
    segment: Ints
    arm: Ints
    simplex: Floats
    reward: Ints

    @property
    def regret(self) -> float:
        """The true regret of the arms served, minor units."""
        profit = self.truth.profit
        return float((self.state.trials * (profit.max(axis=1, keepdims=True) - profit)).sum())

    @property
    def value(self) -> Floats:
        """(S, A) profit per conversion as the campaign's figures have it."""
        return np.round(TYPICAL * (MARGIN - self.truth.depth))

    @property
    def offers(self) -> shared.Offers:
        """The same, and how it follows the basket."""
        return shared.Offers(self.value, TYPICAL * (MARGIN - self.truth.depth))


def campaigns(
    world: Callable[[np.random.Generator], Truth], *, runs: int, decisions: int, seed: int
) -> Iterator[Run]:
    """Campaigns side by side: every run's segments are segments of one policy."""
    rng = np.random.default_rng(seed)
    truths = [world(rng) for _ in range(runs)]
    segments, arms = truths[0].conversion.shape
    value = np.round(TYPICAL * (MARGIN - truths[0].depth))
    policy = policies.make(
        "thompson_profit", arms=arms, segments=runs * segments,
        value=np.tile(value, (runs, 1)).tolist(),
    )  # fmt: skip
    conversion = np.concatenate([truth.conversion for truth in truths])
    every = np.arange(runs * segments, dtype=np.int32)
    contexts = Contexts(every, np.zeros((len(every), 0), np.int64))
    mask = np.ones((len(every), arms), bool)
    state, logs, sale = policy.init(), [], truths[0].sale
    for _ in range(decisions // SIZE):
        table = simplex.guard(policy.probabilities(state, contexts, mask), mask, floor=0.01)
        place = rng.choice(segments, (runs, SIZE), p=truths[0].share)
        place += segments * np.arange(runs)[:, None]
        p = np.asarray(table)[place]
        drawn = (p.cumsum(axis=-1) <= rng.random((runs, SIZE, 1))).sum(axis=-1)
        arm = np.minimum(drawn, arms - 1)
        bought = (rng.random((runs, SIZE)) < conversion[place, arm]).astype(np.int64)
        reward = bought * sale[arm, rng.integers(0, sale.shape[1], (runs, SIZE))]
        logs.append((place, arm, p, reward))
        flat = Contexts(place.ravel().astype(np.int32), np.zeros((place.size, 0), np.int64))
        batch = Batch(
            flat, arm.ravel().astype(np.int32), p.reshape(-1, arms), bought.ravel(),
            reward.ravel(), np.ones(place.size, np.int64),
        )  # fmt: skip
        state = policy.update(state, batch)
    place, arm, p, reward = (np.concatenate(part, axis=1) for part in zip(*logs, strict=True))
    for run, truth in enumerate(truths):
        own = ArmSums(*(np.asarray(f)[run * segments : (run + 1) * segments] for f in state))
        yield Run(truth, own, place[run] - run * segments, arm[run], p[run], reward[run])


def estimators(run: Run, *, draws: int = 1000) -> dict[str, Floats]:
    """Draws (M, S, A) of the mean profits, by the name of the prior."""

    def independent(objective: str, prior: Prior) -> Floats:
        return posterior(objective, run.state, prior=prior).draws(draws, seed=1)

    about = regret.matched_prior(run.state)._replace(value=run.value)
    return {
        "smooth in depth": shared.draws(
            "profit", run.state, count=draws, seed=1, depth=run.truth.depth, offers=run.offers
        ),
        "similar arms": shared.draws("profit", run.state, count=draws, seed=1, offers=run.offers),
        "policy's own": independent("profit", Prior(value=run.value)),
        "campaign's rate": independent("profit", about),
        "observed spread": independent("revenue", Prior()),
    }


def bracket(run: Run, *, alpha: float = 0.1) -> tuple[float, float]:
    """Bounds on the regret without a prior."""
    known = aipw.scores(run.arm, run.simplex, run.reward, segment=run.segment)
    segments = range(len(run.truth.share))
    return regret.bracket(
        [aipw.Scores._make(column[run.segment == s] for column in known) for s in segments],
        alpha=alpha,
    )


def table(names: list[str], *, runs: int, decisions: int, seed: int = 0) -> None:
    """Print one line per world and estimator, amounts in major units."""
    for name in names:
        rows: dict[str, list[tuple[float, float, float, float]]] = {}
        for run in campaigns(WORLDS[name], runs=runs, decisions=decisions, seed=seed):
            truth, counts = run.regret, run.state.trials[None]
            for prior, means in estimators(run).items():
                found = regret.estimate(means, counts)
                rows.setdefault(prior, []).append(
                    (truth, found.mean[0], found.lower[0], found.upper[0])
                )
            rows.setdefault("none: bracket", []).append((truth, np.nan, *bracket(run)))
        for prior, figures in rows.items():
            truth, mean, low, high = np.array(figures).T / 100
            slack = 1e-9
            covered = (low <= truth + slack) & (truth <= high + slack)
            print(
                f"| {name} | {prior} | {truth.mean():.0f} | {mean.mean():.0f} |"
                f" {low.mean():.0f} to {high.mean():.0f} | {covered.mean():.0%} |"
                f" {(truth < low - slack).mean():.0%} / {(truth > high + slack).mean():.0%} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--decisions", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--world", nargs="*", default=list(WORLDS), choices=list(WORLDS))
    chosen = parser.parse_args()
    print("| world | prior | true | estimate | band (means) | covers | truth below / above |")
    print("|-|-|-:|-:|-:|-:|-:|")
    table(chosen.world, runs=chosen.runs, decisions=chosen.decisions, seed=chosen.seed)


if __name__ == "__main__":
    main()
