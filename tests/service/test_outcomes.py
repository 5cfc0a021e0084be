"""What the outcomes of one decision add up to."""

import datetime as dt
from typing import Any

import pytest

from service.definition import CampaignDefinition
from service.outcomes import Credit, Event, credit
from tests.loop import definition

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
PERCENTAGE = {"kind": "percentage", "percent": 10}
CAPPED = {"kind": "percentage", "percent": 10, "max_discount_minor": 500}
AMOUNT = {"kind": "amount", "amount_minor": 500}
THRESHOLD = {"kind": "spend_threshold", "threshold_minor": 8_000, "amount_minor": 500}


def offering(offer: dict[str, Any]) -> CampaignDefinition:
    """Return a campaign whose second arm has this offer."""
    return definition(
        arms=[
            {"key": "none", "name": "No discount", "offer": {"kind": "none"}},
            {"key": "some", "name": "Some", "offer": offer},
        ]
    )


def worth(offer: dict[str, Any], *events: tuple[Any, int]) -> Credit:
    """Return the credit of purchases and returns of these list values, half of them margin."""
    found = [Event(kind, amount, amount // 2, NOW) for kind, amount in events]
    return credit(offering(offer), segment=1, arm=1, decided_at=NOW, events=found)


@pytest.mark.parametrize("offer", [CAPPED, AMOUNT, THRESHOLD])
def test_a_part_that_comes_back_gives_back_its_share_of_the_discount(offer: dict[str, Any]) -> None:
    assert worth(offer, ("purchased", 10_000)).discount_minor == 500
    told = worth(offer, ("purchased", 10_000), ("returned", 4_000))
    assert told == Credit(1, 6_000, 300, 2_700, 0)


def test_a_percentage_costs_what_it_costs_on_the_rest() -> None:
    told = worth(PERCENTAGE, ("purchased", 10_000), ("returned", 2_500), ("returned", 2_500))
    assert told == Credit(1, 5_000, 500, 2_000, 0)


@pytest.mark.parametrize("returned", [10_000, 12_000])
def test_all_that_comes_back_leaves_no_conversion_and_no_discount(returned: int) -> None:
    told = worth(AMOUNT, ("purchased", 10_000), ("returned", returned))
    assert (told.conversions, told.discount_minor) == (0, 0)


def test_what_was_taken_off_counts_where_a_purchase_says_it() -> None:
    """Even after the offer, and whatever the offer would have cost; the rest is computed."""
    late = NOW + dt.timedelta(days=2)
    events = [
        Event("purchased", 10_000, 5_000, NOW, 730),
        Event("purchased", 4_000, 2_000, NOW, 0),
        Event("purchased", 1_000, 500, NOW),
        Event("purchased", 5_000, 2_500, late, 20),
        Event("returned", 10_000, 5_000, late),
    ]
    told = credit(offering(PERCENTAGE), segment=1, arm=1, decided_at=NOW, events=events)
    assert told == Credit(1, 10_000, 425, 4_575, 0)


def test_a_purchase_after_the_offer_has_no_discount() -> None:
    late = NOW + dt.timedelta(days=2)
    event = Event("purchased", 10_000, None, late)
    told = credit(offering(AMOUNT), segment=1, arm=1, decided_at=NOW, events=[event])
    assert told == Credit(1, 10_000, 0, 4_000, 0)


def test_a_long_window_counts_what_a_customer_brings_later() -> None:
    days = (0, 40, 399, 401)
    events = [Event("purchased", 10_000, None, NOW + dt.timedelta(days=day)) for day in days]
    long = offering(AMOUNT).model_copy(update={"attribution_seconds": 400 * 86_400})
    told = credit(long, segment=1, arm=1, decided_at=NOW, events=events)
    assert told == Credit(1, 30_000, 500, 11_500, 1), "one discount, three margins, one too late"
