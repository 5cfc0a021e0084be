"""An outcome, from request to receipt, and what outcomes are worth.

`record` keeps events durably in the local log; it neither knows nor asks whether the decision is
in Postgres yet. `credit` is the arithmetic that the learner applies to all outcomes of a decision:
it starts from all of them every time, so late, repeated, refunded or reordered events lead to the
same sums.
"""

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import orjson

from service.decide import campaign_number
from service.definition import CampaignDefinition, Offer
from service.errors import Unavailable
from service.messages import OutcomeReceipt, OutcomeRequest
from service.runtime import Host
from service.spool import OUTCOME, Entry, SpoolError

MAX_LATE = 32_767
NOT_KEPT = "Outcomes cannot be kept at the moment; send them again."
NOT_COMMITTED = "PostgreSQL has not committed this in time; send it again under the same ids."


class Event(NamedTuple):
    """One stored outcome, as `credit` needs it."""

    kind: Literal["exposed", "clicked", "purchased", "returned"]
    revenue_minor: int
    margin_minor: int | None
    occurred_at: dt.datetime
    discount_minor: int | None = None


class Credit(NamedTuple):
    """What one decision's outcomes add up to; amounts in minor units."""

    conversions: int = 0
    revenue_minor: int = 0
    discount_minor: int = 0
    profit_minor: int = 0
    late: int = 0


def record(
    runtime: Host, events: Sequence[OutcomeRequest], *, now: dt.datetime | None = None
) -> OutcomeReceipt:
    """Keep events on disk and tell how many were known already.

    Raises:
        Unavailable: the local log refused, or PostgreSQL did not commit in time where that is
            waited for; the caller should try again, under the same ids.
    """
    received = now or dt.datetime.now(dt.UTC)
    try:
        stored = runtime.spool.append([entry(event, received) for event in events])
    except SpoolError as error:
        raise Unavailable(NOT_KEPT) from error
    if any(told.late for told in stored):
        raise Unavailable(NOT_COMMITTED)
    duplicates = sum(result.known is not None for result in stored)
    return OutcomeReceipt(accepted=len(events) - duplicates, duplicates=duplicates)


def entry(event: OutcomeRequest, received: dt.datetime) -> Entry:
    """Return the log entry of an event: the row of the table ``outcomes``."""
    row = {
        "event_id": event.event_id,
        "campaign_id": campaign_number(event.decision_id),
        "decision_id": event.decision_id,
        "kind": event.kind,
        "revenue_minor": event.revenue_minor,
        "margin_minor": event.margin_minor,
        "occurred_at": event.occurred_at or received,
        "received_at": received,
        "discount_minor": event.discount_minor,
    }
    return Entry(OUTCOME, event.event_id.encode(), orjson.dumps(row))


def credit(
    definition: CampaignDefinition,
    *,
    segment: int,
    arm: int,
    decided_at: dt.datetime,
    events: Iterable[Event],
) -> Credit:
    """Return what a decision earned: purchases less discount, less what was returned.

    The discount is what the purchase says, else what the offer costs on a basket of its value.
    Events after the attribution window are counted as late and earn nothing. A purchase after the
    offer's expiry earns its full margin unless it says otherwise: the discount was no longer given.
    """
    offer = definition.offer(segment, arm)
    window_ends = decided_at + dt.timedelta(seconds=definition.attribution_seconds)
    offer_ends = decided_at + dt.timedelta(seconds=definition.offer_seconds)
    found = list(events)
    bought = [one for one in found if one.kind == "purchased" and one.occurred_at <= window_ends]
    late = sum(one.kind == "purchased" for one in found) - len(bought)
    if not bought:
        return Credit(late=min(late, MAX_LATE))
    returned = [one for one in found if one.kind == "returned"]
    revenue = sum(one.revenue_minor for one in bought) - sum(one.revenue_minor for one in returned)
    margin = sum(_margin(definition, one) for one in bought)
    margin -= sum(_margin(definition, one) for one in returned)
    discount = sum(_discount(offer, one, offer_ends) for one in bought)
    kept = not returned or revenue > 0
    # What comes back gives back its share of the discount: recomputing the offer on a part would
    # return all of a fixed amount for it, or nothing below a threshold.
    spent = sum(one.revenue_minor for one in bought)
    discount = -(-discount * revenue // spent) if kept and returned else discount * kept
    return Credit(int(kept), revenue, discount, margin - discount, min(late, MAX_LATE))


def _discount(offer: Offer, event: Event, ends: dt.datetime) -> int:
    if event.discount_minor is not None:
        return event.discount_minor
    return offer.discount_minor(event.revenue_minor) if event.occurred_at <= ends else 0


def _margin(definition: CampaignDefinition, event: Event) -> int:
    if event.margin_minor is not None:
        return event.margin_minor
    return round(event.revenue_minor * definition.margin_rate)
