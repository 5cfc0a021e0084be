"""How often a better policy is found, and a worse or equal one is called better.

``python -m tests.bandits.choosing`` (about four minutes) prints the figures of bandits/README.md.
"""

import sys

import numpy as np
from numpy.typing import NDArray

from bandits import features, policies, sampling, simplex
from bandits.evaluation import aipw, choice, ope
from bandits.types import Batch, Contexts, Policy
from tests.bandits.worlds import thompson_logs


def alarms(
    *,
    rate: float,
    floor: float,
    size: int,
    runs: int,
    seed: int,
    drift: float = 0.0,
    money: bool = False,
    batches: int = 60,
) -> tuple[float, float]:
    """Shares of A/A logs in which a policy was ever called better / worse, looked at each batch.

    Three equal arms under Thompson sampling; the candidates are a policy that prefers one arm, and
    one that follows whatever arm has looked best so far in the very log it is judged by.
    """
    logs = thompson_logs(
        [rate] * 3, runs=runs, batches=batches, size=size, floor=floor, seed=seed, drift=drift
    )
    rng = np.random.default_rng(seed)
    better = worse = 0
    for arm, p, reward in zip(*logs, strict=True):
        if money:
            reward = reward * np.rint(rng.lognormal(7, 1, len(reward))).astype(np.int64) - 30
        range_ = {} if money else {"low": 0.0, "high": 1.0, "baseline": rate}
        one = choice.start(floor=floor, **range_)
        two = one
        called = set()
        for begin in range(0, len(arm), size):
            part = slice(begin, begin + size)
            fixed = simplex.guard(np.array([0.0, 1.0, 0.0]), np.ones(3, bool), floor=floor)
            count = np.bincount(arm[:begin], minlength=3)
            mean = np.bincount(arm[:begin], reward[:begin], minlength=3) / np.maximum(count, 1)
            leads = simplex.guard(np.eye(3)[mean.argmax()], np.ones(3, bool), floor=floor)
            row = (arm[part], p[part])
            one = choice.bet(one, *row, np.tile(fixed, (size, 1)), reward[part])
            two = choice.bet(two, *row, np.tile(leads, (size, 1)), reward[part])
            called |= {choice.verdict(e, candidates=2) for e in (one, two)}
        better += "better" in called
        worse += "worse" in called
    return better / runs, worse / runs


def found(
    *,
    floor: float,
    seed: int,
    spread: float = 0.5,
    decisions: int = 40_000,
    size: int = 500,
    reverse: bool = False,
) -> tuple[int | None, float, float]:
    """Decisions until a policy that uses the context is called better than one that does not.

    Three arms of 6 % on average; each is liked by those whose feature points its way, so that no
    arm is best for all (``reverse``: the running policy is the one that uses the context).

    Returns:
        Decisions needed (None: not within ``decisions``), the lower bound then, and the true gain
        per decision of the best choice by context over the best arm for all.
    """
    rng = np.random.default_rng(seed)
    angle = 2 * np.pi * np.arange(3) / 3
    plain = policies.make("thompson_beta", arms=3, segments=1)
    rich = policies.make("linear_thompson", arms=3, segments=1, features=2)
    running, other = (rich, plain) if reverse else (plain, rich)
    state, mask = running.init(), np.ones((size, 3), bool)
    known: dict[str, choice.Candidate] = {}
    rate = 0.0 * mask
    for begin in range(0, decisions, size):
        x = rng.normal(size=(size, 2))
        rate = 0.06 * np.exp(spread * (x @ np.array([np.cos(angle), np.sin(angle)])))
        rate = np.minimum(rate, 1.0)
        contexts = Contexts(np.zeros(size, np.int32), features.quantise(x))
        batch = _served(running, state, contexts, rate, floor=floor, rng=rng)
        known = choice.compare(
            {"other": other}, [batch], floor=floor, low=0, high=1, baseline=0.06, begun=known
        )
        state = running.update(state, batch)
        if choice.verdict(known["other"].evidence) == "better":
            gain = float(rate.max(axis=1).mean() - rate.mean(axis=0).max())
            return begin + size, choice.lower(known["other"].evidence), gain
    return None, choice.lower(known["other"].evidence), 0.0


def coverage(*, floor: float, parts: int = 4) -> NDArray[np.float64]:
    """How often the intervals of DR and IPS held, over 500 · ``parts`` logs of 10,000 rows."""
    rates, held = np.array([0.10, 0.15, 0.12]), np.zeros(2)
    for part in range(parts):
        logs = thompson_logs(
            list(rates), runs=500, batches=40, size=250, floor=floor, seed=30 + part
        )
        for arm, p, reward in zip(*logs, strict=True):
            log = ope.Log(arm, p[np.arange(len(arm)), arm], reward)
            target = np.tile([0.1, 0.2, 0.7], (len(arm), 1))
            predicted = aipw.running_means(arm, reward, 0 * arm, arms=3)
            both = (ope.robust(log, target, predicted), ope.ips(log, target))
            held += [one.lower <= target[0] @ rates <= one.upper for one in both]
    return held / (500 * parts)


def _served(
    policy: Policy, state: object, contexts: Contexts, rate: NDArray[np.float64], *,
    floor: float, rng: np.random.Generator,
) -> Batch:  # fmt: skip
    mask = np.ones(rate.shape, bool)
    p = simplex.guard(
        policy.probabilities(policy.believe(state), contexts, mask), mask, floor=floor
    )
    arm = sampling.draws(p, rng.random(len(p)))
    won = (rng.random(len(p)) < rate[np.arange(len(p)), arm]).astype(np.int64)
    return Batch(contexts, arm, p, won, won, np.ones(len(p), np.int64))


def main() -> None:
    """Print every figure."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    for rate, floor, drift, money in (
        (0.10, 0.05, 0.0, False), (0.03, 0.05, 0.9, False), (0.03, 0.01, 0.0, False),
        (0.05, 0.01, 0.0, True),
    ):  # fmt: skip
        a, b = alarms(rate=rate, floor=floor, size=200, runs=runs, seed=5, drift=drift, money=money)
        print(
            f"A/A {rate:.0%}, floor {floor:.0%}, drift {drift:+.0%}, money {money}: "
            f"better {a:.2%}, worse {b:.2%} of {runs}"
        )
    for floor in (0.05, 0.01):
        for spread in (1.0, 0.5):
            got = [found(floor=floor, seed=s, spread=spread) for s in range(20)]
            needed = [n or 10**9 for n, _, _ in got]
            spans = "/".join(f"{x:.0f}" for x in np.quantile(needed, [0.1, 0.5, 0.9]))
            gain = np.mean([g for _, _, g in got])
            print(f"floor {floor:.0%}, spread {spread}: found after {spans}, gain {gain:.4f}")
    for floor in (0.05, 0.01):
        by_dr, by_ips = coverage(floor=floor)
        print(
            f"95 % intervals on 2,000 learning logs, floor {floor:.0%}: "
            f"DR {by_dr:.1%}, IPS {by_ips:.1%}"
        )


if __name__ == "__main__":
    main()
