"""The study of context finds what a set is worth where that is known, and nothing elsewhere."""

import numpy as np
import pytest

from bandits import features
from bandits.customers.response import Response
from service.demo.households import DEPTH, Category
from tests.bench import context_value as bench
from tests.bench.context_value import Campaign

HOUSEHOLDS, DAYS = 60, 40


@pytest.fixture(scope="module")
def campaign() -> Campaign:
    """Half the households need the deepest discount, which `told` says and `noise` does not."""
    rng = np.random.default_rng(0)
    hunts = np.arange(HOUSEHOLDS) % 2 == 0
    conversion = np.where(hunts[:, None], 0.05 + 2.5 * DEPTH, 0.4 + 0.1 * DEPTH)
    level, tilt = rng.normal(size=(2, HOUSEHOLDS))
    own = Response(0.0, level, tilt, np.zeros((2, HOUSEHOLDS)), np.eye(2), np.zeros(1))
    day, visits = np.repeat(np.arange(DAYS), HOUSEHOLDS), np.tile(np.arange(HOUSEHOLDS), DAYS)
    truth = Category(
        "CAKE", np.arange(HOUSEHOLDS), conversion, np.full(100, 500), visits, day, own, own, own
    )
    told = np.where(hunts, 1.0, -1.0)[:, None]
    sets = {
        "none": np.zeros((HOUSEHOLDS, 0)),
        "told": told,
        "noise": rng.normal(size=(HOUSEHOLDS, 1)),
        "constant": np.zeros((HOUSEHOLDS, 1)),
    }
    quantised = {name: features.quantise(values) for name, values in sets.items()}
    segment = np.zeros(HOUSEHOLDS, np.int64)
    return Campaign(truth, segment, quantised, {"none": segment, "told": hunts.astype(np.int64)})


def test_what_tells_the_best_arm_saves_regret_and_noise_costs(campaign: Campaign) -> None:
    records = bench.study([campaign], seeds=3, copies=4, systems=["linear_ucb"])
    told, noise, constant = (
        bench.saved(records, system="linear_ucb", name=name)
        for name in ("told", "noise", "constant")
    )
    without = bench.mean(records, "regret", set="none")
    assert (told > 0.7 * without).all()
    assert (noise < 0.3 * told).all()
    np.testing.assert_allclose(constant, 0.0, atol=1e-6)
    assert bench.could_be_had(campaign, "told") == pytest.approx(1.0)
    assert bench.could_be_had(campaign, "noise") < 0.5
    assert "CAKE" in bench.table(records, [campaign], command="so").upper()


def test_traits_as_segments_save_regret(campaign: Campaign) -> None:
    records = bench.study([campaign], seeds=2, copies=4, systems=[bench.HIERARCHICAL])
    without = bench.mean(records, "regret", set="none")
    assert bench.mean(records, "regret", set="told") < 0.6 * without


def test_the_policy_learns_daily_and_then_ever_less_often() -> None:
    days = bench.lessons(140)
    assert days[:15].tolist() == list(range(15))
    assert days[-1] < 140
    assert (np.diff(days) >= 1).all()
    assert np.diff(days)[-1] > 8


def test_interval_is_students() -> None:
    assert bench.interval(np.array([1.0, 3.0])) == "2 (-11 to 15)"
