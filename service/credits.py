"""What many decisions are worth, column by column: `service.outcomes.credit` of all at once.

A learner that works off a backlog has some 20 microseconds for each outcome, Postgres included.
Decisions of which something came back are few, and take the way of one by one.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection

from bandits.types import Batch, Contexts
from service import copying, queries
from service.definition import MAX_MINOR, CampaignDefinition
from service.models import OUTCOMES
from service.outcomes import MAX_LATE, Credit, Event, credit
from service.packed import EPOCH, moment
from service.queries import AMOUNTS
from service.stretch import Bools, Ints, Stretch, definition_of

Definitions = Callable[[int], CampaignDefinition]
"""Returns a campaign's definition at a revision."""
Events = dict[str, Ints]
"""Many events: columns (E,) by the names of `queries.EVENT`."""
EXPOSED, CLICKED, PURCHASED, RETURNED = range(len(OUTCOMES))
SECOND = 1_000_000


@dataclass(frozen=True)
class Credits:
    """What N decisions are worth.

    ``told`` (N,) says which have outcomes; ``amounts`` (N, 5) are the fields of `Credit`, in their
    order, and 0 where nothing was told.
    """

    told: Bools
    amounts: Ints

    @classmethod
    def none(cls, length: int) -> "Credits":
        """Return those of decisions of which nothing is known."""
        return cls(np.zeros(length, bool), np.zeros((length, len(AMOUNTS)), np.int64))

    def where(self, chosen: Any) -> "Credits":
        """Return those that an index or a mask chooses."""
        return Credits(self.told[chosen], self.amounts[chosen])

    def column(self, name: str) -> Ints:
        """Return one field of `Credit` (N,)."""
        return self.amounts[:, AMOUNTS.index(name)]

    def rewards(self, objective: str) -> Ints:
        """Return the rewards (N,) in the integer units of an objective."""
        name = "conversions" if objective == "conversion" else f"{objective}_minor"
        return self.column(name).clip(-MAX_MINOR, MAX_MINOR)


def credits_of(connection: Connection, campaign_id: int, stretch: Stretch, until: int) -> Credits:
    """Return what each decision is worth at a place in the log."""
    if not len(stretch):
        return Credits.none(0)
    told = {"ids": stretch.array_of_ids, "until": until}
    packed = connection.scalar(queries.outcomes_of(), told)
    known = functools.partial(definition_of, connection, campaign_id)
    return credited(stretch, packed or b"", known)


def stored(connection: Connection, stretch: Stretch) -> Credits:
    """Return what each decision has been credited with."""
    if not len(stretch):
        return Credits.none(0)
    packed = connection.scalar(queries.rewards_of(), {"ids": stretch.array_of_ids})
    rows = np.frombuffer(packed or b"", dtype=[(name, kind) for name, _, kind in queries.CREDIT])
    found = Credits.none(len(stretch))
    place = rows["place"].astype(np.int64)
    found.told[place] = True
    found.amounts[place] = np.stack([rows[name] for name in AMOUNTS], axis=1)
    return found


def store(
    connection: Connection, campaign_id: int, stretch: Stretch, before: Credits | None,
    after: Credits,
) -> None:  # fmt: skip
    """Keep what decisions have been credited with; ``before`` is what is stored of them.

    A decision that has earned nothing, as most that are only shown, needs no row.
    """
    known = np.zeros(len(stretch), bool) if before is None else before.told
    new, changed = after.amounts.any(axis=1) & ~known, known
    if new.any():
        stream = _copy_stream(campaign_id, stretch.where(new), after.where(new))
        queries.copy(connection, queries.COPY_REWARDS, stream)
    if changed.any():
        told = after.where(changed)
        # As text: psycopg takes ten times as long over a list.
        amounts = {name: "{" + ",".join(map(str, told.column(name).tolist())) + "}"
                   for name in AMOUNTS}  # fmt: skip
        ids = stretch.where(changed).array_of_ids
        connection.execute(queries.CHANGE_REWARDS, {"ids": ids, **amounts})
    more = int(after.column("discount_minor").sum())
    more -= 0 if before is None else int(before.column("discount_minor").sum())
    if more:
        connection.execute(queries.GIVE, {"id": campaign_id, "more": more})


def _copy_stream(campaign_id: int, stretch: Stretch, earned: Credits) -> bytes:
    """Return rows for `queries.COPY_REWARDS`."""
    kinds = ("V16", ">i4", ">i2", ">i8", ">i8", ">i8", ">i2")
    fields = [
        (name, [("size", ">i4"), ("value", kind)])
        for name, kind in zip(queries.REWARDS, kinds, strict=True)
    ]
    made = np.zeros(len(stretch), [("fields", ">i2"), *fields])
    made["fields"] = len(fields)
    columns = [stretch.id, campaign_id, *earned.amounts.T]
    for name, column in zip(queries.REWARDS, columns, strict=True):
        made[name]["size"] = made.dtype[name]["value"].itemsize
        made[name]["value"] = column
    return copying.stream([made.tobytes()])


def batch_of(
    definition: CampaignDefinition, stretch: Stretch, earned: Credits, *, sign: int = 1
) -> Batch:
    """Return the randomised decisions with what they earned, as policies read them."""
    rows, earned = stretch.where(stretch.randomised), earned.where(stretch.randomised)
    return Batch(
        contexts=Contexts(segment=rows.segment.astype(np.int32), features=rows.context),
        arm=rows.arm.astype(np.int32),
        simplex=rows.simplex,
        conversions=earned.column("conversions"),
        reward=earned.rewards(definition.objective),
        sign=np.full(len(rows), sign, dtype=np.int64),
        bucket=_buckets(definition, rows),
    )


def _buckets(definition: CampaignDefinition, rows: Stretch) -> Ints | None:
    """Return when each row was decided (N,), for policies that forget.

    By the log alone: what is late, or taken back, belongs where its decision does.
    """
    if not definition.forgets:
        return None
    since_1970 = rows.decided_at + round(EPOCH.timestamp()) * SECOND
    return since_1970 // (definition.bucket_seconds * SECOND)


def credited(decisions: Stretch, packed: bytes, definitions: Definitions) -> Credits:
    """Return what N decisions are worth, given all their events as rows of `queries.EVENT`."""
    rows = np.frombuffer(packed, dtype=[(name, kind) for name, _, kind in queries.EVENT])
    events: Events = {name: rows[name].astype(np.int64) for name, _, _ in queries.EVENT}
    found = Credits.none(len(decisions))
    found.told[events["place"]] = True
    for revision in np.unique(decisions.revision[found.told]):
        some = _those(events, decisions.revision[events["place"]] == revision)
        _credit(decisions, some, definitions(int(revision)), found.amounts)
    returned = events["place"][events["kind"] == RETURNED]
    some = _those(events, np.isin(events["place"], returned))
    some = _those(some, np.argsort(some["place"]))
    places, starts = np.unique(some["place"], return_index=True)
    ends = [*starts, len(some["place"])][1:]
    for place, start, end in zip(places, starts, ends, strict=True):
        one = _those(some, slice(start, end))
        found.amounts[place] = _one(decisions, int(place), one, definitions)
    return found


def _those(events: Events, chosen: Any) -> Events:
    """Return the events that an index or a mask chooses."""
    return {name: column[chosen] for name, column in events.items()}


def _credit(
    decisions: Stretch, events: Events, definition: CampaignDefinition, amounts: Ints
) -> None:
    """Write down what decisions of one revision are worth if nothing came back."""
    bought = _those(events, events["kind"] == PURCHASED)
    within = bought["occurred_at"] - decisions.decided_at[bought["place"]]
    late = within > definition.attribution_seconds * SECOND
    np.add.at(amounts[:, AMOUNTS.index("late")], bought["place"][late], 1)
    bought = _those(bought, ~late)
    revenue, told = bought["revenue_minor"], bought["margin_minor"]
    margin = np.where(told == queries.UNTOLD, np.rint(revenue * definition.margin_rate), told)
    given = within[~late] <= definition.offer_seconds * SECOND
    discount = _discounts(decisions, bought, given, definition)
    profit = margin.astype(np.int64) - discount
    for name, column in (("revenue_minor", revenue), ("discount_minor", discount),
                         ("profit_minor", profit)):  # fmt: skip
        np.add.at(amounts[:, AMOUNTS.index(name)], bought["place"], column)
    amounts[bought["place"], AMOUNTS.index("conversions")] = 1
    np.minimum(amounts[:, -1], MAX_LATE, out=amounts[:, -1])


def _discounts(
    decisions: Stretch, bought: Events, given: Bools, definition: CampaignDefinition
) -> Ints:
    """Return what each purchase was taken off: what it tells, else what the offer costs on it."""
    discounts = np.where(bought["discount_minor"] == queries.UNTOLD, 0, bought["discount_minor"])
    computed = np.flatnonzero((bought["discount_minor"] == queries.UNTOLD) & given)
    arms = len(definition.arms)
    offers = (decisions.segment * arms + decisions.arm)[bought["place"][computed]]
    for number in np.unique(offers):
        cost = definition.offer(*divmod(int(number), arms)).discount_minor
        own = computed[offers == number]
        discounts[own] = [cost(basket) for basket in bought["revenue_minor"][own].tolist()]
    return discounts


def _one(decisions: Stretch, place: int, events: Events, definitions: Definitions) -> Credit:
    """Return what one decision is worth, by `service.outcomes.credit`."""
    names = ("kind", "revenue_minor", "margin_minor", "occurred_at", "discount_minor")
    rows = zip(*(events[name].tolist() for name in names), strict=True)
    return credit(
        definitions(int(decisions.revision[place])),
        segment=int(decisions.segment[place]),
        arm=int(decisions.arm[place]),
        decided_at=moment(decisions.decided_at[place]),
        events=[
            Event(OUTCOMES[kind], revenue, _told(margin), moment(at), _told(discount))
            for kind, revenue, margin, at, discount in rows
        ],
    )


def _told(amount: int) -> int | None:
    return None if amount == queries.UNTOLD else amount
