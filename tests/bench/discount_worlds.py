"""The default against independent Thompson sampling where arms are depths of a discount.

    python -m tests.bench.discount_worlds --seeds 10 --output tests/bench/discount_worlds.md

48 segments choose among six depths, 0 to 30 % off. A decision earns conversion times (margin less
depth) times price. Every policy is made by :func:`bandits.policies.make` and told the same:
each arm's depth and profit per conversion. All segments are served in one call, the sampler draws,
and the policy learns after every 25 decisions per segment up to 1,000, then in batches of 5 % of
what was decided (25, 52, ... 500). ``pooled`` is Thompson sampling that takes all segments for one.

Regret is expected: the served simplex against the segment's best depth, in major units per segment.
A seed draws a world's truth and everything after it; every policy meets the same truths. Savings
are relative to ``thompson_profit`` in the same seed and world, with t intervals over the seeds.

The worlds stand as they were first committed, before the policy was tuned; it was tuned on seeds
from 1,000 upwards, and the reported seeds begin at 0.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]

SEGMENTS = 48
DEPTH = np.linspace(0.0, 0.3, 6)
MARGIN = 0.40
#: Minor units.
PRICE = 10_000


def _line(level: Floats, slope: Floats) -> Floats:
    """(S, A) conversion that is logistic in depth; nobody buys less for a discount."""
    out: Floats = special.expit(level[:, None] + np.outer(np.maximum(slope, 0.0), DEPTH))
    return out


def similar(rng: np.random.Generator) -> Floats:
    """Smooth: segments resemble each other."""
    level = rng.normal(special.logit(0.045), 0.3, SEGMENTS)
    return _line(level, rng.normal(5.0, 1.0, SEGMENTS))


def varied(rng: np.random.Generator) -> Floats:
    """Smooth: segments differ much, in level and in slope."""
    level = rng.normal(special.logit(0.04), 0.35, SEGMENTS)
    return _line(level, rng.normal(4.5, 1.8, SEGMENTS))


def related(rng: np.random.Generator) -> Floats:
    """Smooth: who buys less without a discount reacts more to one."""
    level = rng.normal(special.logit(0.055), 0.4, SEGMENTS)
    slope = 4.5 - 3.5 * (level - special.logit(0.055)) + rng.normal(0.0, 0.7, SEGMENTS)
    return _line(level, slope)


def two_kinds(rng: np.random.Generator) -> Floats:
    """Smooth: half the segments hunt for bargains, half hardly notice them."""
    hunts = rng.random(SEGMENTS) < 0.5
    level = np.where(hunts, special.logit(0.035), special.logit(0.09))
    slope = np.where(hunts, 7.0, 2.5)
    return _line(level + rng.normal(0.0, 0.2, SEGMENTS), slope + rng.normal(0.0, 0.5, SEGMENTS))


def one_step(rng: np.random.Generator) -> Floats:
    """Stepped: nothing happens below 18 % off, in any segment."""
    return _step(rng, np.full(SEGMENTS, 0.18))


def own_steps(rng: np.random.Generator) -> Floats:
    """Stepped: every segment has a threshold of its own, at 12, 18 or 24 % off."""
    return _step(rng, rng.choice([0.12, 0.18, 0.24], SEGMENTS))


def _step(rng: np.random.Generator, threshold: Floats) -> Floats:
    level = rng.normal(special.logit(0.05), 0.3, SEGMENTS)
    height = np.maximum(rng.normal(1.2, 0.3, SEGMENTS), 0.0)
    above = threshold[:, None] <= DEPTH + 1e-9
    out: Floats = special.expit(level[:, None] + height[:, None] * above)
    return out


def peaked(rng: np.random.Generator) -> Floats:
    """Not monotone: a segment buys most at its own depth, and less beyond it."""
    level = rng.normal(special.logit(0.05), 0.3, SEGMENTS)
    peak, height = rng.uniform(0.06, 0.20, SEGMENTS), rng.normal(1.0, 0.25, SEGMENTS)
    bump = np.exp(-0.5 * ((DEPTH - peak[:, None]) / 0.07) ** 2)
    out: Floats = special.expit(level[:, None] + height[:, None] * bump)
    return out


def jagged(rng: np.random.Generator) -> Floats:
    """Not monotone: depth says nothing, every arm of every segment is drawn by itself."""
    level = rng.normal(special.logit(0.08), 0.3, (SEGMENTS, 1))
    out: Floats = special.expit(level + rng.normal(0.0, 0.4, (SEGMENTS, len(DEPTH))))
    return out


#: Conversion (S, A) of a world, by the kind of its truth.
WORLDS: dict[str, tuple[Callable[[np.random.Generator], Floats], ...]] = {
    "smooth": (similar, varied, related, two_kinds),
    "stepped": (one_step, own_steps),
    "not monotone": (peaked, jagged),
}
