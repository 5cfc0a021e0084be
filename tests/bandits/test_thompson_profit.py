"""Profit per conversion: a wrong guess at the basket must not flatter arms that sold little."""

import numpy as np
import pytest

from bandits import ledger
from bandits.posteriors.beta import value_per_conversion
from bandits.types import ArmSums


def sold(conversions: list[int], reward: list[int]) -> ArmSums:
    empty = ledger.zeros(segments=1, arms=len(conversions))
    return empty._replace(
        trials=np.array([[10_000] * len(conversions)]),
        conversions=np.array([conversions]),
        reward=np.array([reward]),
    )


@pytest.mark.parametrize("guess", [0.1, 1.0, 10.0])
def test_sales_of_one_arm_tell_the_basket_of_all(guess: float) -> None:
    """Margin 400 and 200 of a basket of 1,000; the guess at that basket is off by a factor."""
    prior = guess * np.array([[400.0, 200.0]])
    found = value_per_conversion(np, sold([1000, 0], [400_000, 0]), prior=prior, weight=100.0)
    assert found == pytest.approx(np.array([[400.0, 200.0]]), rel=0.12)


def test_without_sales_the_prior_stands() -> None:
    prior = np.array([[400.0, -50.0, 0.0]])
    found = value_per_conversion(np, sold([0, 0, 0], [0, 0, 0]), prior=prior, weight=100.0)
    np.testing.assert_allclose(found, prior)


def test_an_arms_own_sales_win_in_the_end() -> None:
    prior = np.array([[400.0, 200.0]])
    many = sold([100_000, 100_000], [10_000_000, 30_000_000])
    found = value_per_conversion(np, many, prior=prior, weight=100.0)
    np.testing.assert_allclose(found, [[100.0, 300.0]], rtol=0.01)


def test_losses_and_returns_never_turn_the_scale_round() -> None:
    prior = np.array([[400.0, 200.0]])
    found = value_per_conversion(np, sold([50, 0], [-90_000, 0]), prior=prior, weight=100.0)
    assert found[0, 0] < 0 < found[0, 1] < 200.0
