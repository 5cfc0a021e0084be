"""P(arm is best) in multiple precision, for 500 random states: the oracle of test_best.py.

``python -m tests.bandits.best_oracle`` writes ``best_oracle.json`` beside this file (about twenty
minutes on one core; ``--states 20`` for a quick look). It shares nothing with the library: 20 or
more digits, other variables (the fourth root of the payoff, so that Beta(½, ·) is smooth at 0),
other cuts (means and standard deviations), 20 nodes, and densities with their analytic constants,
so that each distribution function must reach 1 by itself: a state whose masses or whose sum of
probabilities miss 1 by more than 1e-11 is an error. ``direct`` is a second oracle for small
states, by mpmath's adaptive quadrature over mpmath's incomplete beta function.
"""

import argparse
import functools
import json
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import mpmath  # type: ignore[import-untyped]
from mpmath import mp

TABLE = Path(__file__).with_name("best_oracle.json")
STATES = 500
DIGITS = 20
ORDER = 20
STEPS = (0.0, 1.5, 3.5, 6.0, 10.0)
LONG_STEPS = (15.0, 24.0, 40.0)


class Arm(NamedTuple):
    """A density in the variable of integration and the cuts that resolve it."""

    log_density: Callable[[Any, Any], Any]
    cuts: list[Any]


def random_state(rng: random.Random) -> dict[str, Any]:
    """A state: kind and per-arm numbers, with counts up to 2e6 and 2 to 50 arms."""
    size = rng.random()
    low, high = (2, 8) if size < 0.72 else (9, 16) if size < 0.96 else (17, 50)
    arms = rng.randint(low, high)
    kind = rng.choice(["beta", "beta", "value", "student"])
    top = 10 ** rng.uniform(0.5, 6.301)
    close = rng.random() < 0.6
    base = 10 ** rng.uniform(-3, -0.3)
    state: dict[str, Any] = {"kind": kind}
    counts = [int(top ** rng.uniform(0.3 if close else 0.0, 1)) for _ in range(arms)]
    if kind == "student":
        return state | _random_student(rng, counts, close=close)
    prior = rng.choice([0.5, 1.0, 1.0, 1.0])
    value = [round(10 ** rng.uniform(2, 3.5), 2) for _ in counts]
    if close and kind == "value":
        value = [round(1000 * rng.uniform(0.7, 1.4), 2) for _ in counts]
    state["a"], state["b"] = [], []
    for n, m in zip(counts, value, strict=True):
        rate = base if close else 10 ** rng.uniform(-3, -0.1)
        rate *= 1000 / m if kind == "value" and close else 1
        rate += rng.gauss(0, 1.5) * (rate * (1 - min(rate, 0.9)) / (n + 1)) ** 0.5
        successes = min(n, max(0, round(n * rate)))
        state["a"].append(prior + successes)
        state["b"].append(prior + n - successes)
    if kind == "value":
        state["value"] = value
    return state


def _random_student(rng: random.Random, counts: Sequence[int], *, close: bool) -> dict[str, Any]:
    spread = [round(10 ** rng.uniform(1, 3), 3) for _ in counts]
    scale = [s / (n + 1) ** 0.5 for n, s in zip(counts, spread, strict=True)]
    mean = [rng.gauss(0, 1.5 * s if close else 300) for s in scale]
    return {
        "mean": [float(f"{x:.6g}") for x in mean],
        "scale": [float(f"{x:.6g}") for x in scale],
        "freedom": [2.0 + n for n in counts],
    }


def probabilities(state: dict[str, Any]) -> list[Any]:
    """The arms' probabilities of being best, by composite Gauss-Legendre in 20 or 60 digits."""
    with mp.workdps(60 if min(state.get("b", [1])) < 1 else DIGITS):
        return _probabilities(state)


def _probabilities(state: dict[str, Any]) -> list[Any]:
    arms = _student_arms(state) if state["kind"] == "student" else _beta_arms(state)
    cuts = sorted({cut for arm in arms for cut in arm.cuts})
    nodes, weights, inner = _rule()
    zero = mp.mpf(0)
    out, below = [zero] * len(arms), [zero] * len(arms)
    for left, right in pairwise(cuts):
        width = right - left
        points = [left + width * x for x in nodes]
        logs = [_shared(state, point) for point in points]
        density, within = [], []
        for k, arm in enumerate(arms):
            f, inside = [zero] * ORDER, [below[k]] * ORDER
            if _matters(state, arm, left, right):
                values = zip(points, logs, strict=True)
                f = [width * mp.exp(arm.log_density(y, log)) for y, log in values]
                inside = [below[k] + mp.fdot(row, f) for row in inner]
                below[k] += mp.fdot(weights, f)
            density.append(f)
            within.append(inside)
        for i, weight in enumerate(weights):
            for k, rest in enumerate(_without_each([column[i] for column in within])):
                out[k] += weight * density[k][i] * rest
    worst = max(abs(mass - 1) for mass in [*below, mp.fsum(out)])
    if worst > mp.mpf("1e-11"):
        raise ArithmeticError(f"oracle did not resolve a state: off by {mp.nstr(worst, 3)}")
    return out


def _matters(state: dict[str, Any], arm: Arm, left: Any, right: Any) -> bool:
    """Whether a density is above e^-70 somewhere in a panel: one peak, at or beside a cut."""
    ends = [y for y in (left, right) if y != 0 or state["kind"] == "student"]
    return any(arm.log_density(y, _shared(state, y)) > -70 for y in ends)


def direct(state: dict[str, Any]) -> list[Any]:
    """The same by ``mpmath.quad`` and ``mpmath.betainc``; Beta arms, few and of small counts."""
    a, b = state["a"], state["b"]
    value = state.get("value", [1.0] * len(a))
    cuts = sorted({m * mp.mpf(i) / 16 for m in value for i in range(17)})

    def cdf(j: int, y: Any) -> Any:
        x = min(mp.mpf(1), y / value[j])
        return mp.betainc(a[j], b[j], 0, x, regularized=True)

    def integrand(k: int, y: Any) -> Any:
        x = y / value[k]
        if not 0 < x < 1:
            return mp.mpf(0)
        f = x ** (a[k] - 1) * (1 - x) ** (b[k] - 1) / (mp.beta(a[k], b[k]) * value[k])
        return f * mp.fprod(cdf(j, y) for j in range(len(a)) if j != k)

    return [
        mp.quad(lambda y, k=k: integrand(k, y), [c for c in cuts if c <= value[k]])
        for k in range(len(a))
    ]


def _beta_arms(state: dict[str, Any]) -> list[Arm]:
    value = [mp.mpf(m) for m in state.get("value", [1.0] * len(state["a"]))]
    top = max(value)
    triples = zip(state["a"], state["b"], value, strict=True)
    return [_beta_arm(mp.mpf(a), mp.mpf(b), m / top) for a, b, m in triples]


def _beta_arm(a: Any, b: Any, ratio: Any) -> Arm:
    """Density of x with payoff ÷ greatest value = x**4; ``ratio`` = own value ÷ greatest."""
    constant = mp.log(4) - mp.log(mp.beta(a, b)) - a * mp.log(ratio)
    mean, n = a / (a + b), a + b
    sd = mp.sqrt(mean * (1 - mean) / (n + 1))
    steps = STEPS if min(a, b) > 50 else STEPS + LONG_STEPS
    points = {mean + side * step * sd for step in steps for side in (-1, 1)}
    points |= {mean * mp.mpf(4) ** -k for k in range(1, 7 if a < 20 else 1)}
    # Beta(·, ½) is singular at 1: cuts go on until no mass of 1e-13 is left beyond them.
    nearest = 45 if b < 1 else 9 if b < 3 else 3 if b < 20 else 1
    points |= {1 - (1 - mean) * mp.mpf(4) ** -k for k in range(1, nearest)} | {0, 1}
    cuts = [(y * ratio) ** mp.mpf("0.25") for y in points if 0 <= y <= 1]

    def log_density(x: Any, log_x: Any) -> Any:
        left = 1 - x**4 / ratio
        if left <= 0:
            return mp.ninf
        return constant + (4 * a - 1) * log_x + (b - 1) * mp.log(left)

    return Arm(log_density, cuts)


def _student_arms(state: dict[str, Any]) -> list[Arm]:
    triples = zip(state["mean"], state["scale"], state["freedom"], strict=True)
    return [_student_arm(mp.mpf(m), mp.mpf(s), mp.mpf(f)) for m, s, f in triples]


def _student_arm(mean: Any, scale: Any, freedom: Any) -> Arm:
    half = (freedom + 1) / 2
    constant = mp.loggamma(half) - mp.loggamma(freedom / 2) - mp.log(mp.pi * freedom) / 2
    constant -= mp.log(scale)
    furthest = min(mp.mpf(10) ** (15 / freedom) * mp.sqrt(freedom), mp.mpf("1e9"))
    steps, step = [mp.mpf("0.6"), mp.mpf("1.2"), mp.mpf(2), mp.mpf(3), mp.mpf("4.5")], mp.mpf(7)
    while step < max(furthest, 12):
        steps.append(step)
        step *= 2
    cuts = [mean, *(mean + side * scale * t for t in [*steps, step] for side in (-1, 1))]

    def log_density(y: Any, _: Any) -> Any:
        return constant - half * mp.log1p(((y - mean) / scale) ** 2 / freedom)

    return Arm(log_density, cuts)


def _shared(state: dict[str, Any], point: Any) -> Any:
    return mp.zero if state["kind"] == "student" else mp.log(point)


def _without_each(values: Sequence[Any]) -> list[Any]:
    """The product of all the others, for each place."""
    out, before = [], mp.mpf(1)
    for value in values:
        out.append(before)
        before *= value
    after = mp.mpf(1)
    for k in range(len(values) - 1, -1, -1):
        out[k] *= after
        after *= values[k]
    return out


@functools.cache
def _rule() -> tuple[list[Any], list[Any], list[list[Any]]]:
    """Nodes and weights on [0, 1], and the matrix that integrates from 0 to each node."""
    with mp.workdps(60):
        guesses = [mp.cos(mp.pi * (i + mp.mpf("0.75")) / (ORDER + 0.5)) for i in range(ORDER)]
        roots = [
            mp.findroot(lambda x: mp.legendre(ORDER, x), (x, x + mp.mpf("1e-5"))) for x in guesses
        ]
        nodes = sorted((x + 1) / 2 for x in roots)
        powers = mp.matrix(ORDER, ORDER)
        for i, x in enumerate(nodes):
            for d in range(ORDER):
                powers[d, i] = x**d
        inverse = powers**-1

        def integrated(x: Any) -> list[Any]:
            moments = [x ** (d + 1) / (d + 1) for d in range(ORDER)]
            return [mp.fdot(inverse[j, :], moments) for j in range(ORDER)]

        return nodes, integrated(mp.mpf(1)), [integrated(x) for x in nodes]


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=STATES)
    count = parser.parse_args().states
    rows = []
    for index in range(count):
        state = random_state(random.Random(index))
        p = probabilities(state)
        rows.append(state | {"p": [float(mpmath.nstr(x, 14)) for x in p]})
        if index % 10 == 9:
            print(f"{index + 1}/{count}", flush=True)
    text = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    TABLE.write_text(f"[\n{text}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
