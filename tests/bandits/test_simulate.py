"""The response world: exact means, shared randomness, seeds that repeat."""

from typing import Any

import numpy as np
import pytest

from bandits import simulate
from bandits.simulate import World

WORLD = simulate.checked(
    World(
        conversion=np.array([[0.1, 0.3, 0.5], [0.4, 0.41, 0.42]]),
        basket_minor=np.array([[105, 215, 995], [1000, 2000, 3000]]),
        percent=np.array([0.0, 10.0, 30.0]),
        margin_rate=0.45,
        share=np.array([0.25, 0.75]),
    )
)


def sent(seed: int, count: int) -> simulate.Visits:
    segment = np.array([0, 1, 1])
    return simulate.visits(seed, count, segment_of_unit=segment, weight=np.array([1.0, 2.0, 1.0]))


def test_expected_profit_is_what_reactions_average_to() -> None:
    visits = sent(1, 400_000)
    profit = simulate.profit_minor(WORLD)
    for arm in range(3):
        found = simulate.react(WORLD, visits, np.full(400_000, arm))
        earned = found.margin_minor - found.discount_minor
        for segment in range(2):
            mine = earned[visits.segment == segment]
            error = mine.std() / np.sqrt(mine.size)
            assert abs(mine.mean() - profit[segment, arm]) < 4 * error


def test_a_sale_is_rounded_as_the_service_rounds_it() -> None:
    basket, arm = np.array([105, 215, 995]), np.array([1, 1, 2])
    assert simulate.discount_minor(WORLD, basket, arm).tolist() == [
        round(105 * 10.0 / 100),
        round(215 * 10.0 / 100),
        round(995 * 30.0 / 100),
    ]
    assert simulate.margin_minor(WORLD, basket).tolist() == [
        round(value * 0.45) for value in (105, 215, 995)
    ]


def test_visits_repeat_and_a_longer_run_begins_like_a_shorter_one() -> None:
    short, long = sent(7, 100), sent(7, 5_000)
    for one, other in zip(short, simulate.some(long, slice(100)), strict=True):
        assert (one == other).all()
    assert (sent(8, 100).u_buy != short.u_buy).all()
    share = np.bincount(long.unit) / 5_000
    assert np.abs(share - [0.25, 0.5, 0.25]).max() < 0.03


def test_whoever_buys_at_a_lower_conversion_buys_at_a_higher_one() -> None:
    visits = sent(3, 2_000)
    shallow = simulate.react(WORLD, visits, np.zeros(2_000, np.int64))
    deep = simulate.react(WORLD, visits, np.full(2_000, 2))
    assert (deep.bought >= shallow.bought).all()
    assert deep.bought.sum() > shallow.bought.sum()
    both = shallow.bought & deep.bought
    assert (shallow.revenue_minor[both] == deep.revenue_minor[both]).all()
    assert not deep.revenue_minor[~deep.bought].any()


def test_regret_is_measured_against_the_best_arm_of_the_segment() -> None:
    profit = simulate.profit_minor(WORLD)
    segment, arm = np.array([0, 0, 1, 1]), np.array([0, 2, 0, 2])
    gaps = simulate.regret_minor(WORLD, segment, arm)
    assert gaps == pytest.approx(
        [profit[s].max() - profit[s, a] for s, a in zip(segment, arm, strict=False)]
    )
    assert (gaps >= 0).all()
    split = simulate.equal_split_regret_minor(WORLD, np.array([0, 1]))
    assert split == pytest.approx(profit.max(axis=1) - profit.mean(axis=1))
    fixed = WORLD.share @ profit
    assert simulate.best_fixed_arm(WORLD) == int(fixed.argmax())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("share", np.array([0.5, 0.6])),
        ("conversion", np.array([[0.1, 0.3, 1.5], [0.4, 0.41, np.nan]])),
        ("basket_minor", np.array([[1, 2], [3, -4]])),
        ("percent", np.array([0.0, 10.0])),
        ("margin_rate", 1.2),
    ],
)
def test_an_impossible_world_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field.split("_")[0]):
        simulate.checked(WORLD._replace(**{field: value}))
