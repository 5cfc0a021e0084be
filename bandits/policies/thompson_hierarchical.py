"""Hierarchical Thompson sampling for discounts: arms are depths, and segments resemble each other.

The log odds of a conversion rise with the depth of the discount, each segment by a line of its own
that is drawn to what segments share; arms may depart from the line by as much as the evidence says,
so a stepped or jagged response is learnt too. What a conversion earns follows from the offers' own
terms and the baskets seen (:mod:`bandits.posteriors.shared` has the whole model). Without depths it
is a model of arms that resemble each other.

The belief is M frozen joint draws of every arm's mean reward, made from the sums alone, always with
the same noise. The simplex is the share of draws in which an arm is best: exact by construction.
``explore`` draws the draws together around their mean; at 1 it is Thompson's rule, and 0.5 lost
less on average in trials (README.md, Decisions, says how far they went). One draw in ten keeps its
full width, so that an arm is explored at least a tenth as much as by Thompson's rule, and a segment
that was misled by its first customers comes back.

The draws are made on the host, in numpy, on either backend; arms and segments are put in an order
that only their terms and sums decide, so a permutation of the campaign's arms permutes the simplex.

What earlier campaigns say of the effect of a discount is told by ``slope`` and ``slope_spread``
(:func:`bandits.warm_start.slope` finds both).

Source: Hong et al., AISTATS 2022 (HierTS); Chapelle and Li, NIPS 2011 (posterior reshaping).

>>> import numpy as np
>>> from bandits import policies
>>> from bandits.types import Contexts
>>> terms = {"depth": [[0.0, 0.1]], "value": [[900.0, 600.0]]}
>>> thompson = policies.make("thompson_hierarchical", arms=2, segments=1, **terms)
>>> contexts = Contexts(np.zeros(1, np.int32), np.zeros((1, 0), np.int64))
>>> p = thompson.probabilities(thompson.believe(thompson.init()), contexts, np.ones((1, 2), bool))
>>> bool(p[0, 0] > p[0, 1]), float(p.sum())
(True, 1.0)
"""

from typing import NamedTuple

import numpy as np

from bandits import backend as backends
from bandits import explore, ledger
from bandits.backend import Backend, is_traced
from bandits.policies import arm_level
from bandits.policies.spec import Option, OptionValue, PolicySpec, checked
from bandits.posteriors import shared
from bandits.posteriors.shared import Floats, Offers
from bandits.types import ArmSums, Array, Batch, Contexts, Policy

#: Every tenth draw keeps its full width: see `explore` above.
FULL = 10
#: Draws, and how many numbers they may hold together (2 MB): large campaigns have fewer.
DRAWS, FEWEST, _NUMBERS = 2048, 256, 1 << 18
#: How many numbers of a segment's draws are compared at once; the draws of 1,024 arms are as many.
_BLOCK = 1 << 18

SPEC = PolicySpec(
    name="thompson_hierarchical",
    title="Hierarchical Thompson sampling (discount depth)",
    summary="Learns how conversion rises with depth, and lets segments learn from each other.",
    objectives=("conversion", "profit", "revenue"),
    randomised=True,
    options=(
        Option(
            "depth", "per_segment_arm", None, -1.0, 1.0, False,
            "Discount of each arm as a share of a typical basket; arms have no order without it.",
        ),
        Option(
            "value", "per_segment_arm", None, -1e9, 1e9, False,
            "Reward of a conversion at a typical basket, in minor units; 1 when left out.",
        ),
        Option(
            "gain", "per_segment_arm", None, -1e9, 1e9, False,
            "What a basket of twice the size earns more; as much as the value when left out.",
        ),
        Option(
            "explore", "number", 0.5, 0.0, 10.0, True,
            "How wide beliefs are taken to be: 1 is Thompson's rule, less explores less.",
        ),
        Option(
            "slope", "number", 0.0, -1e3, 1e3, False,
            "Expected effect of depth, log odds of a conversion per 100 % off: by 5, 10 % off sells"
            " about 1.6 times as often where few buy.",
        ),
        Option(
            "slope_spread", "number", shared.COMMON_SLOPE_SD, 0.0, 1e3, True,
            "How sure that is: its standard deviation. Earlier campaigns say both.",
        ),
    ),
    pooled=True,
    hosted=True,
)  # fmt: skip


class Draws(NamedTuple):
    """The belief: frozen joint draws.

    Attributes:
        reward: (S, M, A) float64, mean reward per decision.
    """

    reward: Array


def policy(*, arms: int, segments: int, backend: str = "numpy", **options: OptionValue) -> Policy:
    """The policy; options as in :data:`SPEC`."""
    chosen = checked(SPEC, options, segments=segments, arms=arms)
    space = backends.named(backend)
    one = np.ones((segments, arms))
    value = one if chosen["value"] is None else chosen["value"]
    offers = Offers(value, value if chosen["gain"] is None else chosen["gain"])
    depth = np.zeros((segments, arms)) if chosen["depth"] is None else chosen["depth"]
    conversion = chosen["value"] is None
    slope = shared.Slope(chosen["slope"], chosen["slope_spread"])

    def init() -> ArmSums:
        return ledger.zeros(segments=segments, arms=arms)

    def update(state: ArmSums, batch: Batch) -> ArmSums:
        more = ledger.contribution(batch, segments=segments, arms=arms, backend=space)
        return ledger.add(state, more)

    def believe(state: ArmSums) -> Draws:
        sums = ArmSums(*(np.asarray(field) for field in state))
        drawn = _draws(sums, depth, None if conversion else offers, slope)
        mean = drawn.mean(axis=0)
        width = np.full(len(drawn), chosen["explore"])
        width[::FULL] = max(1.0, chosen["explore"])
        spread = mean + width[:, None, None] * (drawn - mean)
        return Draws(np.ascontiguousarray(spread.transpose(1, 0, 2)))

    return Policy(SPEC.name, init, update, believe, _probabilities(arms, segments, space))


def _probabilities(arms: int, segments: int, space: Backend) -> arm_level.Probabilities:
    def rows(reward: Array, segment: Array, mask: Array) -> Array:
        return explore.frozen(space.xp.asarray(reward)[segment], mask)

    compiled = space.jit(rows) if space.name == "jax" else _in_blocks

    def probabilities(belief: Draws, contexts: Contexts, mask: Array) -> Array:
        arm_level.check_shapes(contexts, mask, arms=arms)
        if is_traced(contexts.segment, mask, *belief):
            return rows(belief.reward, contexts.segment, mask)
        segment, allowed = np.asarray(contexts.segment), np.asarray(mask)
        arm_level.check_values(segment, allowed, segments=segments)
        first, inverse = arm_level.distinct(segment, allowed)
        padded = arm_level.padded(first) if space.name == "jax" else first
        return compiled(belief.reward, segment[padded], allowed[padded])[inverse]

    return probabilities


def _in_blocks(reward: Array, segment: Array, mask: Array) -> Array:
    """Shares (B, A), draws of many arms worked off in blocks that a cache holds: linear in arms."""
    count, arms = reward.shape[1:]
    step = max(1, _BLOCK // arms)
    if count <= step:
        return explore.frozen(reward[segment], mask)
    shares = np.zeros(mask.shape)
    for row, draws in enumerate(reward[number] for number in segment):
        for first in range(0, count, step):
            block = draws[None, first : first + step]
            shares[row] += explore.frozen(block, mask[row : row + 1])[0] * (block.shape[1] / count)
    return shares


def _draws(sums: ArmSums, depth: Floats, offers: Offers | None, slope: shared.Slope) -> Floats:
    """Draws (M, S, A) that do not depend on the order in which arms and segments are named."""
    terms = [depth] if offers is None else [depth, offers.value, offers.gain]
    columns = [np.sort(table, axis=0) for table in (*terms, *sums)]
    arms = np.lexsort(np.concatenate(columns))
    rows = np.lexsort(np.concatenate([table[:, arms] for table in (*terms, *sums)], axis=1).T)
    there = np.ix_(rows, arms)
    count = int(np.clip(_NUMBERS // max(1, depth.size), FEWEST, DRAWS))
    drawn = shared.draws(
        "conversion" if offers is None else "profit",
        ArmSums(*(field[there] for field in sums)),
        count=count,
        seed=0,
        depth=depth[there],
        offers=None if offers is None else Offers(offers.value[there], offers.gain[there]),
        slope=slope,
    )
    out = np.empty_like(drawn)
    out[:, rows[:, None], arms] = drawn
    return out
