"""Price elasticity in every segment, from the campaign's own randomised decisions."""

import numpy as np

from bandits.evaluation import aipw, demand
from service.definition import (
    AmountOffer,
    CampaignDefinition,
    NoOffer,
    PercentageOffer,
    SpendThresholdOffer,
    TieredOffer,
)
from service.reports import fields
from service.reports.estimates import ALPHA, TARGET_ROWS
from service.reports.fields import UNKNOWN, Estimate
from service.reports.log import Bools, Floats, Log

PRICES = (NoOffer, PercentageOffer, AmountOffer, SpendThresholdOffer, TieredOffer)
"""Offers that change what a basket costs, and nothing else."""
CHEAPER = 0.9
TOO_LITTLE = (
    "Cannot tell yet what a lower price does: that takes 30 customers drawn to every depth, and"
    " sales."
)


def elasticity(definition: CampaignDefinition, log: Log, segment: int) -> fields.Elasticity | None:
    """Return what depths drawn by chance say of a segment; None where prices do not differ.

    ``log`` holds the draws. Depth is what an offer takes off a typical basket. Arms that were never
    possible here stay out, and so do decisions in which one of the others was not.
    """
    here = log.where(log.segment == segment)
    depth = _depths(definition, segment)
    possible = (here.simplex > 0).any(axis=0)
    depth[~possible & bool(len(here))] = np.nan
    priced = np.isfinite(depth)
    if len(np.unique(depth[priced])) < 2:
        return None
    every: Bools = np.asarray((here.simplex[:, priced] > 0).all(axis=1))
    estimate = _estimate(here, every, depth)
    return fields.Elasticity(
        estimate=estimate, decisions=int(every.sum()), sentence=_sentence(estimate)
    )


def _depths(definition: CampaignDefinition, segment: int) -> Floats:
    """Return each arm's depth (A,), not a number where it changes something else than a price."""
    offers = [definition.offer(segment, arm) for arm in range(len(definition.arms))]
    depth = np.array(definition.depths()[segment])
    depth[[not isinstance(offer, PRICES) for offer in offers]] = np.nan
    depth[depth >= 1] = np.nan
    return depth


def _estimate(here: Log, every: Bools, depth: Floats) -> Estimate:
    if not every.any():
        return UNKNOWN
    known = aipw.scores(here.arm, here.simplex, here.conversions)
    rows = aipw.Scores._make(column[every] for column in known)
    try:
        found = demand.elasticity(
            rows, here.simplex[every], depth, alpha=ALPHA, target_rows=TARGET_ROWS
        )
    except ValueError:
        return UNKNOWN
    if not np.isfinite(found.lower):
        return UNKNOWN
    return Estimate(mean=found.mean, low=found.lower, high=found.upper)


def _sentence(estimate: Estimate) -> str:
    if estimate.mean is None or estimate.low is None or estimate.high is None:
        return TOO_LITTLE
    at, most, least = (_gain(end) for end in (estimate.mean, estimate.low, estimate.high))
    if estimate.low <= 0 <= estimate.high:
        return (
            "Cannot tell yet whether more customers buy at a lower price: at 10 % less, between"
            f" {-least:.0f} % fewer and {most:.0f} % more do."
        )
    if estimate.high < 0:
        more = f"{at:.0f} % more customers buy (between {least:.0f} and {most:.0f} %)"
        return f"At a price 10 % lower, {more}."
    fewer = f"{-at:.0f} % fewer customers buy (between {-most:.0f} and {-least:.0f} %)"
    return f"At a price 10 % lower, {fewer}."


def _gain(elasticity: float) -> float:
    """Return by how many per cent more customers buy where the price is a tenth lower."""
    return float(100 * (CHEAPER**elasticity - 1))
