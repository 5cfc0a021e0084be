"""A change of which arm is best is found and dated; what all arms share is not one."""

import numpy as np
import pytest

from bandits import forgetting, policies
from bandits.evaluation import drift
from bandits.types import Batch, Contexts
from tests.bandits.changing import DAYS, false_resets, regrets, run


def _state(rates: list[list[float]], *, size: int = 2000, seed: int = 0) -> object:
    """Days of equal shares under these rates per arm."""
    rng = np.random.default_rng(seed)
    policy = policies.make("thompson_beta", arms=3, segments=1, buckets=len(rates))
    state, one = policy.init(), np.ones(size, np.int64)
    for day, rate in enumerate(rates):
        arm = rng.integers(0, 3, size).astype(np.int32)
        won = (rng.random(size) < np.array(rate)[arm]).astype(np.int64)
        contexts = Contexts(np.zeros(size, np.int32), np.zeros((size, 0), np.int64))
        batch = Batch(contexts, arm, np.full((size, 3), 1 / 3), won, 400 * won, one, day * one)
        state = policy.update(state, batch)
    return state


def test_a_change_is_found_and_dated() -> None:
    found = drift.detect(_state([[0.1, 0.2, 0.15]] * 12 + [[0.2, 0.1, 0.15]] * 8))
    assert found is not None
    assert found.bucket == 12
    assert found.p_value < 1e-6


def test_what_all_arms_share_is_no_change() -> None:
    wave = [[0.1 + lift, 0.2 + lift, 0.15 + lift] for lift in (0.0, 0.2, 0.0, 0.3) * 5]
    found = drift.detect(_state(wave))
    assert found is not None
    assert found.p_value > 0.05


def test_nothing_is_said_of_the_time_before_a_reset_or_of_few_rows() -> None:
    state = _state([[0.1, 0.2, 0.15]] * 12 + [[0.2, 0.1, 0.15]] * 8)
    found = drift.detect(forgetting.reset(state, 12))
    assert found is not None
    assert found.p_value > 0.05
    assert drift.detect(_state([[0.1, 0.2, 0.15]] * 4, size=30)) is None
    assert drift.detect(forgetting.reset(state, 19)) is None
    with pytest.raises(TypeError, match="arm-level"):
        drift.detect(policies.make("ucb1", arms=2, segments=1).init())


@pytest.mark.slow
def test_resets_are_rare_without_a_change_and_come_after_one() -> None:
    assert false_resets(runs=14) <= 0.05
    for seed in range(2):
        resets = run({"buckets": DAYS}, "seen", seed).resets
        assert resets
        assert all(day >= 45 for day in resets)


@pytest.mark.slow
def test_forgetting_pays_after_a_change() -> None:
    never, seen, window = (
        regrets(way, runs=4)[:, 1].mean()
        for way in ("never forgets", "reset when seen", "window 28 days")
    )
    assert seen < 0.8 * never
    assert window < 0.7 * never
