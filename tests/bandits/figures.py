"""The figures of bandits/README.md: ``python -m tests.bandits.figures`` (about four minutes)."""

import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from bandits import backend, policies
from bandits.evaluation import aipw, srm
from bandits.features import quantise
from bandits.posteriors import best, graded
from bandits.types import Batch, Contexts
from tests.bandits.test_best import probabilities, table
from tests.bandits.worlds import thompson_logs


def accuracy() -> None:
    """Error of P(best) against the committed mpmath table."""
    states = table()
    for name in ("numpy", "jax"):
        space = backend.named(name)
        chosen = states if name == "numpy" else [s for s in states if len(s["p"]) <= 8]
        raws = [probabilities(s, space, width=None if name == "numpy" else 8) for s in chosen]
        errors = [np.abs(r - s["p"]).max() for r, s in zip(raws, chosen, strict=True)]
        sums = [abs(r.sum() - 1) for r in raws]
        print(
            f"P(best), {name}, {len(chosen)} states: median {np.median(errors):.1e}, "
            f"worst {max(errors):.1e}, worst |sum - 1| {max(sums):.1e}"
        )


def latency() -> None:
    """Milliseconds of one uncached decision row, numpy path."""
    rng = np.random.default_rng(0)
    contexts = Contexts(np.zeros(1, np.int32), np.zeros((1, 0), np.int64))
    for arms in (5, 10, 50):
        rows = 20_000
        arm = rng.integers(0, arms, rows).astype(np.int32)
        won = (rng.random(rows) < 0.05).astype(np.int64)
        one = np.ones(rows, dtype=np.int64)
        where = Contexts(np.zeros(rows, np.int32), np.zeros((rows, 0), np.int64))
        reward = won * rng.integers(500, 2000, rows)
        batch = Batch(where, arm, np.full((rows, arms), 1 / arms), won, reward, one)
        for name in ("thompson_beta", "thompson_gaussian", "thompson_profit"):
            policy = policies.make(name, arms=arms, segments=1)
            state, mask = policy.update(policy.init(), batch), np.ones((1, arms), dtype=bool)
            taken = _fastest(partial(policy.probabilities, state, contexts, mask))
            print(f"{name}, {arms} arms: {1e3 * taken:.2f} ms")


def linear_decision(*, rounds: int = 200) -> None:
    """Microseconds of processor time of one decision, 64 features and 10 arms, by both rules.

    The rules take turns: ratios hold on a busy machine, too.
    """
    rng, rows = np.random.default_rng(0), 2000
    arm = rng.integers(0, 10, rows).astype(np.int32)
    x = quantise(rng.normal(size=(rows, 64)))
    won = (rng.random(rows) < 0.05 + 0.1 * (x[:, 0] > 0) * (arm % 7 == 3)).astype(np.int64)
    where, one = Contexts(np.zeros(rows, np.int32), x), np.ones(rows, dtype=np.int64)
    policy = policies.make("linear_thompson", arms=10, segments=1, features=64)
    batch = Batch(where, arm, np.full((rows, 10), 0.1), won, won * 700, one)
    belief = policy.believe(policy.update(policy.init(), batch))
    mask, near = np.ones((1, 10), dtype=bool), graded.NEAR
    taken: dict[str, list[float]] = {"widening panels": [], "every arm's cuts": []}
    for index in range(rounds):
        now = Contexts(*(field[index : index + 1] for field in where))
        for name, least in zip(taken, (near, np.inf), strict=True):
            graded.NEAR = least
            start = time.thread_time()
            for _ in range(5):
                policy.probabilities(belief, now, mask)
            taken[name].append(1e6 * (time.thread_time() - start) / 5)
    graded.NEAR = near
    new, old = (np.array(times) for times in taken.values())
    for name, times in taken.items():
        print(f"linear_thompson, {name}: least {min(times):.0f}, median {np.median(times):.0f} us")
    print(f"old / new, one context at a time: median {np.median(old / new):.1f}")


def bernoulli_regret(*, runs: int = 100, size: int = 25) -> None:
    """Mean regret of exact Thompson shares on the ten-arm task, 10,000 steps in batches."""
    rates = np.array([0.10] + [0.05] * 3 + [0.02] * 3 + [0.01] * 3)
    rng = np.random.default_rng(2026)
    trials, won = np.zeros((runs, 10)), np.zeros((runs, 10))
    mask = np.ones((runs, 10), dtype=bool)
    for _ in range(10_000 // size):
        p = best.beta(1 + won, 1 + trials - won, mask)
        served = rng.multinomial(size, p / p.sum(axis=1, keepdims=True))
        trials += served
        won += rng.binomial(served, rates)
    paid = (trials * (rates.max() - rates)).sum(axis=1)
    error = paid.std() / runs**0.5
    print(f"regret, ten Bernoulli arms, batches of {size}: {paid.mean():.1f} ± {error:.1f}")


def false_alarms(*, runs: int = 400) -> None:
    """Share of A/A campaigns with any alarm in sixty looks, Thompson sampling, 5 % floor."""
    worlds = [(0.1, 50, 0.0, 2), (0.03, 200, 0.0, 2), (0.03, 200, 0.9, 2), (0.03, 200, 0.0, 3)]
    for rate, size, drift, arms in worlds:
        logs = thompson_logs(
            [rate] * arms, runs=runs, batches=60, size=size, floor=0.05, seed=1, drift=drift
        )
        ends = np.arange(1, 61) * size
        alarms = mismatches = 0
        for arm, p, reward in zip(*logs, strict=True):
            path = aipw.contrast_path(aipw.scores(arm, p, reward), ends, arm=1, against=0)
            alarms += bool((path.p_value < 0.05).any())
            mismatches += srm.test(arm, p).p_value < 0.05
        print(
            f"A/A, {arms} arms at {rate:.0%}, looks every {size}, drift {drift:+.0%}: "
            f"contrast {alarms / runs:.1%}, sample ratio {mismatches / runs:.1%}"
        )


def bulk() -> None:
    """Seconds for a million rows of five arms."""
    rng = np.random.default_rng(7)
    p = rng.dirichlet(np.ones(5), 1_000_000) * 0.9 + 0.02
    arm, reward = rng.integers(0, 5, len(p)), rng.integers(0, 2000, len(p))
    segment = rng.integers(0, 6, len(p))
    known = aipw.scores(arm, p, reward, segment=segment)
    for name, call in {
        "scores": lambda: aipw.scores(arm, p, reward, segment=segment),
        "means": lambda: aipw.means(known),
        "contrast": lambda: aipw.contrast(known, arm=1, against=0),
        "sample ratio": lambda: srm.test(arm, p),
    }.items():
        print(f"a million rows, {name}: {_fastest(call, times=3):.2f} s")


def _fastest(call: Callable[[], object], *, times: int = 50) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def main() -> None:
    """Print every figure, or those named on the command line."""
    sections = (accuracy, latency, linear_decision, bulk, false_alarms, bernoulli_regret)
    for section in sections:
        if len(sys.argv) == 1 or section.__name__ in sys.argv[1:]:
            section()


if __name__ == "__main__":
    main()
