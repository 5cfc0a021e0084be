"""Households one by one: what is known comes from before, the truth from after."""

import numpy as np
import pyarrow as pa
import pytest

from service.demo import households, panel
from service.demo.households import Category, Known
from service.demo.panel import Panel
from service.demo.segments import CUT_WEEK

NAME = "SOFT DRINKS"


@pytest.fixture(scope="module")
def shop() -> Panel:
    return panel.synthetic(households=250)


@pytest.fixture(scope="module")
def known(shop: Panel) -> Known:
    return households.known(shop)


@pytest.fixture(scope="module")
def campaign(shop: Panel, known: Known) -> Category:
    return households.category(shop, known, NAME)


def _without(shop: Panel, *, late: bool) -> Panel:
    """A panel that lost two thirds of the lines of one half."""
    week, line = shop.column("week"), np.arange(shop.lines.num_rows)
    keep = ((week > CUT_WEEK) != late) | (line % 3 == 0)
    return shop._replace(lines=shop.lines.filter(pa.array(keep)))


def test_the_truth_has_everybody_who_may_come(campaign: Category, known: Known) -> None:
    assert campaign.conversion.shape == (len(campaign.row), len(households.DEPTH))
    assert ((campaign.conversion > 0) & (campaign.conversion < 1)).all()
    assert set(campaign.visits.tolist()) == set(range(len(campaign.row)))
    assert (np.diff(campaign.day) >= 0).all()
    sets = households.contexts(known, campaign)
    assert {name: features.shape[0] for name, features in sets.items()} == dict.fromkeys(
        sets, len(campaign.row)
    )
    assert sets["none"].shape[1] == 0


def test_what_is_known_hangs_on_nothing_that_came_later(
    shop: Panel, known: Known, campaign: Category
) -> None:
    other = _without(shop, late=True)
    again = households.known(other)
    for name, values in known.traits.items():
        if name != "persona":
            np.testing.assert_allclose(again.traits[name].astype(float), values.astype(float))
    assert again.traits["persona"].tolist() == known.traits["persona"].tolist()
    moved = households.category(other, again, NAME)
    np.testing.assert_allclose(moved.earlier.tilt, campaign.earlier.tilt)
    assert np.abs(moved.later.level - campaign.later.level).max() > 0.1


def test_the_truth_hangs_on_no_price_that_was_paid_before(
    shop: Panel, known: Known, campaign: Category
) -> None:
    """Early receipts say which kinds a household may be offered and weigh items, no more."""
    early = shop.column("week") <= CUT_WEEK
    paid = np.where(early, shop.column("list_minor"), shop.column("paid_minor"))
    place = shop.lines.schema.get_field_index("paid_minor")
    other = shop._replace(lines=shop.lines.set_column(place, "paid_minor", pa.array(paid)))
    moved = households.category(other, known, NAME)
    np.testing.assert_array_equal(moved.conversion, campaign.conversion)
    assert np.abs(moved.earlier.tilt - campaign.earlier.tilt).max() > 0.1
