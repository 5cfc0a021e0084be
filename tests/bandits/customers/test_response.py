"""Responses of single customers: found where they are, drawn together where little is known."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from bandits.customers import response

CUSTOMERS = 600
SPREAD = np.array([[1.0, -0.9], [-0.9, 4.0]])


def _fitted(rows_each: int) -> tuple[response.Response, NDArray[np.float64]]:
    rng = np.random.default_rng(3)
    own = rng.multivariate_normal([0.0, 0.0], SPREAD, CUSTOMERS)
    unit = np.repeat(np.arange(CUSTOMERS), rows_each)
    depth, week = rng.choice([0.0, 0.1, 0.3], len(unit)), rng.integers(0, 5, len(unit))
    odds = -1.0 + 0.3 * week + own[unit, 0] + (3.0 + own[unit, 1]) * depth
    bought = rng.random(len(unit)) < special.expit(odds)
    return response.fit(unit, depth, bought, units=CUSTOMERS + 1, fixed=[week]), own


def test_what_customers_share_and_how_they_differ_is_found() -> None:
    found, own = _fitted(120)
    assert found.slope == pytest.approx(3.0, abs=0.3)
    assert found.spread[0, 0] == pytest.approx(SPREAD[0, 0], rel=0.25)
    assert found.spread[1, 1] == pytest.approx(SPREAD[1, 1], rel=0.35)
    assert np.corrcoef(found.level[:-1], own[:, 0])[0, 1] > 0.9
    assert np.corrcoef(found.tilt[:-1], own[:, 1])[0, 1] > 0.6
    # A mode is the best guess of the truth: a line of the truth on it has slope one.
    guess = np.cov(own[:, 1], found.tilt[:-1])[0, 1] / found.tilt[:-1].var(ddof=1)
    assert guess == pytest.approx(1.0, abs=0.2)


def test_who_was_seen_little_is_taken_for_the_one_in_the_middle() -> None:
    little, much = _fitted(12)[0], _fitted(120)[0]
    assert little.tilt.std() < 0.7 * much.tilt.std()
    assert little.tilt[-1] == little.level[-1] == 0.0


def test_the_chance_of_a_purchase_is_the_mean_over_what_moves_everyone() -> None:
    found = response.Response(
        2.0, np.array([0.0, 1.0]), np.array([0.0, -2.0]), np.zeros((2, 2)), np.eye(2), np.zeros(1)
    )
    got = response.chance(found, np.array([0.0, 0.5]), base=np.array([-1.0, 1.0]))
    assert got[0] == pytest.approx([0.5, special.expit([0.0, 2.0]).mean()])
    assert got[1] == pytest.approx([special.expit([0.0, 2.0]).mean()] * 2)


def test_nothing_can_be_learnt_where_all_or_none_bought() -> None:
    rows = np.arange(4)
    for bought in (np.zeros(4, bool), np.ones(4, bool)):
        with pytest.raises(ValueError, match="both needed"):
            response.fit(rows, np.full(4, 0.1), bought, units=4)


def test_traits_foretell_customers_of_whom_nothing_was_seen_and_noise_does_not() -> None:
    rng = np.random.default_rng(4)
    customers = 300
    traits = rng.normal(size=(customers, 4)) * [1.0, 5.0, 1.0, 0.0] + 3.0
    told, seen = (traits[:, 1] - 3.0) / 5.0, customers - 50
    unit = np.repeat(np.arange(seen), 80)
    depth = rng.choice([0.0, 0.1, 0.3], len(unit))
    tilt = 2.0 * told[unit] + rng.normal(size=customers)[unit]
    bought = rng.random(len(unit)) < special.expit(-1.0 + (3.0 + tilt) * depth)

    def fit(traits: NDArray[np.float64]) -> response.Response:
        return response.fit(unit, depth, bought, units=customers, traits=traits)

    found = fit(traits)
    assert np.corrcoef(found.tilt[seen:], told[seen:])[0, 1] > 0.95
    assert (found.tilt[seen:] == found.foretold[1, seen:]).all()
    assert found.foretold[1].std() == pytest.approx(2.0, rel=0.25)
    assert found.spread[1, 1] < 0.5 * fit(traits[:, :0]).spread[1, 1]
    assert fit(rng.normal(size=(customers, 6))).foretold[1].std() < 0.25 * found.foretold[1].std()
    with pytest.raises(ValueError, match="one row per customer"):
        fit(traits[1:])
