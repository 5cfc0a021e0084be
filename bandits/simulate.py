"""A response world: what customers would do under every arm, known exactly.

A simulation needs a truth that the policy cannot see. Here it is a table: in segment ``s`` arm
``a`` converts with probability ``conversion[s, a]``, and a purchase is worth one of the ``Q``
equally likely list values ``basket_minor[s, :]``. A sale under a discount of ``percent[a]`` earns
``round(margin_rate * basket) - round(basket * percent / 100)``, in integer minor units, so that
the expected profit of every arm is a finite sum and not an estimate::

    profit[s, a] = conversion[s, a] * mean_q(margin(basket[s, q]) - discount(basket[s, q], a))
    regret of a decision = max_a profit[s, a] - profit[s, chosen]

Every visit carries its own two uniform numbers, drawn ahead from the seed: what a visitor would
do under an arm is a function of (seed, visit), whoever asks and in whatever order
(counterfactuals share their randomness).

>>> world = World(
...     conversion=np.array([[0.1, 0.5]]), basket_minor=np.array([[1000, 3000]]),
...     percent=np.array([0.0, 10.0]), margin_rate=0.4, share=np.array([1.0]))
>>> profit_minor(world)
array([[ 80., 300.]])
>>> regret_minor(world, np.array([0, 0]), np.array([0, 1]))
array([220.,   0.])
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class World(NamedTuple):
    """The truth of a simulation. Letters: ``S`` segments, ``A`` arms, ``Q`` list values.

    Attributes:
        conversion: (S, A) float64, probability that a visit ends in a purchase.
        basket_minor: (S, Q) int64, equally likely list values of a purchase, in minor units.
        percent: (A,) float64, discount of every arm in percent of the list value.
        margin_rate: margin as a share of the list value, before discount.
        share: (S,) float64, share of the visits that each segment makes; sums to 1.
    """

    conversion: Floats
    basket_minor: Ints
    percent: Floats
    margin_rate: float
    share: Floats


class Visits(NamedTuple):
    """Visitors as they come, before anybody has chosen an arm for them. ``B`` visits.

    Attributes:
        unit: (B,) int64, index of the visitor.
        segment: (B,) int64, the visitor's segment.
        u_buy: (B,) float64 in [0, 1): buys under an arm when below its conversion.
        u_basket: (B,) float64 in [0, 1): picks the list value.
    """

    unit: Ints
    segment: Ints
    u_buy: Floats
    u_basket: Floats


class Reaction(NamedTuple):
    """What the visits came to under the arms they were given. All (B,).

    Attributes:
        bought: bool.
        revenue_minor: int64, list value before discount; 0 without a purchase.
        margin_minor: int64, margin before discount; 0 without a purchase.
        discount_minor: int64, what the offer cost; 0 without a purchase.
    """

    bought: NDArray[np.bool_]
    revenue_minor: Ints
    margin_minor: Ints
    discount_minor: Ints


def checked(world: World) -> World:
    """Return the world, or raise ``ValueError`` naming what makes it impossible."""
    segments, arms = world.conversion.shape
    if world.percent.shape != (arms,) or world.share.shape != (segments,):
        raise ValueError("percent must be (A,) and share (S,), to match conversion (S, A)")
    if world.basket_minor.ndim != 2 or world.basket_minor.shape[0] != segments:
        raise ValueError("basket_minor must be (S, Q)")
    if np.any(~((world.conversion >= 0) & (world.conversion <= 1))):
        raise ValueError("conversion must lie in [0, 1]")
    if np.any(world.basket_minor < 0) or not 0 <= world.margin_rate <= 1:
        raise ValueError("basket_minor must not be negative, and margin_rate must lie in [0, 1]")
    if np.any(world.share < 0) or abs(float(world.share.sum()) - 1) > 1e-9:
        raise ValueError("share must be non-negative and sum to 1")
    return world


def margin_minor(world: World, basket_minor: Ints) -> Ints:
    """Return the margin before discount of baskets of these list values, in minor units."""
    margin: Ints = np.rint(basket_minor * world.margin_rate).astype(np.int64)
    return margin


def discount_minor(world: World, basket_minor: Ints, arm: Ints) -> Ints:
    """Return what the arms' discounts cost on baskets of these list values, in minor units."""
    discount: Ints = np.rint(basket_minor * world.percent[arm] / 100).astype(np.int64)
    return discount


def profit_minor(world: World) -> Floats:
    """Return the (S, A) expected profit per visit, in minor units."""
    arms = np.arange(world.percent.size)
    basket = world.basket_minor[:, None, :]
    sale = margin_minor(world, basket) - discount_minor(world, basket, arms[None, :, None])
    profit: Floats = world.conversion * sale.mean(axis=2)
    return profit


def regret_minor(world: World, segment: Ints, arm: Ints) -> Floats:
    """Return the (B,) expected profit given up by choosing ``arm`` instead of the best arm."""
    profit = profit_minor(world)
    gap: Floats = profit.max(axis=1)[segment] - profit[segment, arm]
    return gap


def equal_split_regret_minor(world: World, segment: Ints) -> Floats:
    """Return the (B,) expected regret of an equal split on visits of these segments."""
    profit = profit_minor(world)
    gap: Floats = (profit.max(axis=1) - profit.mean(axis=1))[segment]
    return gap


def best_fixed_arm(world: World) -> int:
    """Return the one arm that earns most when every segment gets it (the first of equals)."""
    return int(np.argmax(world.share @ profit_minor(world)))


def visits(seed: int, count: int, *, segment_of_unit: Ints, weight: Floats) -> Visits:
    """Return ``count`` visits, a function of ``seed`` only; a longer run begins like a shorter.

    Args:
        seed: any non-negative integer.
        count: B, how many visits.
        segment_of_unit: (N,) the segment of every possible visitor.
        weight: (N,) relative frequency with which each of them visits.
    """
    if segment_of_unit.shape != weight.shape or weight.size == 0:
        raise ValueError("segment_of_unit and weight must both be (N,), with N > 0")
    # Row by row from one counter-based stream, so that a prefix does not depend on the count.
    draws = np.random.Generator(np.random.Philox(key=seed)).random((count, 3))
    edges = np.cumsum(weight) / weight.sum()
    unit = np.minimum(np.searchsorted(edges, draws[:, 0], side="right"), weight.size - 1)
    return Visits(unit, segment_of_unit[unit], draws[:, 1], draws[:, 2])


def some(visit: Visits, rows: slice | Ints) -> Visits:
    """Return the chosen rows."""
    return Visits(visit.unit[rows], visit.segment[rows], visit.u_buy[rows], visit.u_basket[rows])


def react(world: World, visit: Visits, arm: Ints) -> Reaction:
    """Return what the visits come to under ``arm`` (B,)."""
    bought = visit.u_buy < world.conversion[visit.segment, arm]
    column = (visit.u_basket * world.basket_minor.shape[1]).astype(np.int64)
    basket = np.where(bought, world.basket_minor[visit.segment, column], 0)
    return Reaction(bought, basket, margin_minor(world, basket), discount_minor(world, basket, arm))
