"""What many decisions are worth, all at once, is what each is worth by itself."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service import queries
from service.credits import PURCHASED, RETURNED, credited
from service.definition import MAX_MINOR
from service.models import OUTCOMES
from service.outcomes import MAX_LATE, Credit, Event, credit
from service.packed import moment
from service.stretch import Stretch
from tests.loop import DEFINITION, definition

SECOND = 1_000_000
AT = 800_000_000 * SECOND
OFFERS: list[dict[str, Any]] = [
    {"kind": "none"},
    {"kind": "percentage", "percent": 12.5, "max_discount_minor": 700},
    {"kind": "amount", "amount_minor": 500},
    {"kind": "spend_threshold", "threshold_minor": 8_000, "amount_minor": 500},
    {"kind": "gift", "gift": "Cup", "cost_minor": 99},
]
ARMS = [
    {"key": "none" if place == 0 else f"arm-{place}", "name": "Arm", "offer": offer}
    for place, offer in enumerate(OFFERS)
]
REVISIONS = {
    number: definition(
        arms=ARMS, margin_rate=rate, offer_seconds=3_600, attribution_seconds=86_400,
        segments=[*DEFINITION["segments"]],
    )
    for number, rate in ((1, 0.37), (2, 1.0))
}  # fmt: skip

amounts = st.one_of(st.integers(0, 20_000), st.integers(0, MAX_MINOR))
untold = st.just(queries.UNTOLD)
events = st.fixed_dictionaries({
    "place": st.integers(0, 5),
    "kind": st.one_of(st.just(PURCHASED), st.sampled_from([PURCHASED, RETURNED, 0, 1])),
    "revenue_minor": amounts,
    "margin_minor": st.one_of(untold, st.integers(-MAX_MINOR, MAX_MINOR)),
    "discount_minor": st.one_of(untold, amounts),
    "occurred_at": st.one_of(
        st.integers(-10, 90_000).map(lambda seconds: AT + seconds * SECOND),
        st.sampled_from([AT + 3_600 * SECOND, AT + 3_600 * SECOND + 1, AT + 86_400 * SECOND,
                         AT + 86_400 * SECOND + 1]),
    ),
})  # fmt: skip
decisions = st.lists(
    st.tuples(st.sampled_from([1, 2]), st.integers(0, 1), st.integers(0, len(OFFERS) - 1)),
    min_size=6, max_size=6,
)  # fmt: skip


def told(event: dict[str, int]) -> Event:
    """Return an event as `credit` reads it."""
    margin, discount = (
        None if event[name] == queries.UNTOLD else event[name]
        for name in ("margin_minor", "discount_minor")
    )
    return Event(
        OUTCOMES[event["kind"]], event["revenue_minor"], margin, moment(event["occurred_at"]),
        discount,
    )  # fmt: skip


def stretch(made: list[tuple[int, int, int]]) -> Stretch:
    """Return decisions of one moment: revision, segment and arm of each."""
    revision, segment, arm = np.array(made, np.int64).T
    zero = np.zeros(len(made), np.int64)
    return Stretch(
        position=zero, id=np.zeros(len(made), "V16"), snapshot=zero, decided_at=zero + AT,
        revision=revision, segment=segment, arm=arm, randomised=np.ones(len(made), bool),
        simplex=np.zeros((len(made), len(OFFERS))), context=np.zeros((len(made), 0), np.int64),
    )  # fmt: skip


def test_late_purchases_are_counted_as_far_as_a_column_goes() -> None:
    rows = np.zeros(MAX_LATE + 9, [(name, kind) for name, _, kind in queries.EVENT])
    rows["kind"], rows["occurred_at"] = PURCHASED, AT + 90_000 * SECOND
    for number, late in ((MAX_LATE - 1, MAX_LATE - 1), (MAX_LATE + 9, MAX_LATE)):
        earned = credited(stretch([(1, 0, 1)]), rows[:number].tobytes(), REVISIONS.__getitem__)
        assert Credit(*earned.amounts[0].tolist()) == Credit(late=late)


@settings(deadline=None)
@given(decisions, st.lists(events, max_size=30))
def test_all_at_once_is_one_by_one(
    made: list[tuple[int, int, int]], found: list[dict[str, int]]
) -> None:
    rows = np.zeros(len(found), [(name, kind) for name, _, kind in queries.EVENT])
    for name in rows.dtype.names or ():
        rows[name] = [event[name] for event in found]
    earned = credited(stretch(made), rows.tobytes(), REVISIONS.__getitem__)
    for place, (number, where, which) in enumerate(made):
        own = [told(event) for event in found if event["place"] == place]
        alone = credit(
            REVISIONS[number], segment=where, arm=which, decided_at=moment(AT), events=own
        )
        assert Credit(*earned.amounts[place].tolist()) == alone
        assert earned.told[place] == bool(own)
        assert earned.rewards("conversion")[place] == alone.conversions
        for objective, amount in (("revenue", alone.revenue_minor), ("profit", alone.profit_minor)):
            assert earned.rewards(objective)[place] == min(max(amount, -MAX_MINOR), MAX_MINOR)
