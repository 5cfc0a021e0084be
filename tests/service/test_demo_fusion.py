"""What is foretold of households, by every way, hangs on weeks 1-20 alone."""

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from service.demo import fusion, panel
from service.demo.fusion import Chosen, Half
from service.demo.panel import Panel
from service.demo.segments import CUT_WEEK

pytestmark = pytest.mark.slow
NAMES = ["SOFT DRINKS", "BREAD"]
STEPS = 20


@pytest.fixture(scope="module")
def shop() -> Panel:
    return panel.synthetic(households=150)


@pytest.fixture(scope="module")
def told(shop: Panel) -> Chosen:
    return fusion.chosen(shop, NAMES, steps=STEPS, precisions=(3.0, 30.0), weights=(1.0,))


@pytest.fixture(scope="module")
def known(shop: Panel) -> Half:
    return fusion.half(shop, NAMES)


def _until(shop: Panel, week: int) -> Panel:
    """A panel of which two thirds of the lines after a week are lost."""
    keep = (shop.column("week") <= week) | (np.arange(shop.lines.num_rows) % 3 == 0)
    return shop._replace(lines=shop.lines.filter(pa.array(keep)))


def test_the_split_chooses_the_settings_that_foretell_best(told: Chosen) -> None:
    alone = {setting: found for setting, found in told.tried.items() if setting[0] == 0.0}
    assert told.tried[0.0, told.alone] == max(alone.values())
    assert told.weight == 1.0
    assert told.tried[told.weight, told.precision] == max(told.tried[1.0, p] for p in (3.0, 30.0))
    assert len(told.says) == len(fusion.MEMBERS)
    assert (told.says >= 0.0).all()


def test_rows_and_choices_hang_on_nothing_that_came_later(shop: Panel, known: Half) -> None:
    again = fusion.half(_until(shop, CUT_WEEK), NAMES, before=known.before)
    for one, other in zip(again.rows, known.rows, strict=True):
        assert all((x == y).all() for x, y in zip(one, other, strict=True))
    assert (again.choices.item == known.choices.item).all()


def test_every_way_foretells_everybody(known: Half, told: Chosen) -> None:
    slopes, both = fusion.foretold(known, told, steps=STEPS)
    households = len(known.before.segment)
    assert {slope.shape for slope in slopes.values()} == {(households, len(NAMES))}
    assert all(np.isfinite(slope).all() for slope in slopes.values())
    assert both.factors.users.shape[0] == households
    one = fusion.MEMBERS.index("taste")
    says = np.eye(len(fusion.MEMBERS))[one]
    alone, _ = fusion.foretold(known, told._replace(says=says), steps=STEPS)
    who = np.unique(known.rows[0].unit)
    assert np.corrcoef(alone["stacked"][who, 0], slopes["taste"][who, 0])[0, 1] > 0.999


def test_without_a_weight_what_was_bought_elsewhere_has_no_say(known: Half) -> None:
    events = known.choices
    others = known._replace(choices=events._replace(item=events.item[::-1]))

    def slope(half: Half, weight: float) -> NDArray[np.float64]:
        return fusion.network(half, weight=weight, precision=10.0, steps=STEPS).slope

    assert (slope(known, 0.0) == slope(others, 0.0)).all()
    assert (slope(known, 1.0) != slope(others, 1.0)).any()


def test_agreement_is_the_mean_correlation_of_who_came() -> None:
    slope = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [9.0, 9.0]])
    later = np.array([[2.0, 1.0], [4.0, 2.0], [6.0, 3.0], [np.nan, np.nan]])
    assert fusion.agreement(slope, later) == pytest.approx(0.0)
    assert fusion.agreement(slope[:, :1], later[:, :1]) == pytest.approx(1.0)
