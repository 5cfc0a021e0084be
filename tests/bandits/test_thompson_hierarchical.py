"""The default saves regret where depth orders the arms, and is not lost where it does not."""

import numpy as np
import pytest

from bandits import ledger, policies
from bandits.policies import thompson_hierarchical
from bandits.types import Contexts
from tests.bench import discount_worlds as bench

SEEDS = (2000, 2001)


def _saved(world: str, *, decisions: int) -> float:
    """What the default saves of independent Thompson sampling's regret, over two seeds."""
    makers = {make.__name__: make for worlds in bench.WORLDS.values() for make in worlds}
    serving, lost = bench.servers(), {bench.BASE: 0.0, bench.DEFAULT: 0.0}
    for seed in SEEDS:
        truth = makers[world](np.random.default_rng(seed))
        for name in lost:
            lost[name] += bench.run(truth, serving[name], seed=seed, decisions=decisions)[decisions]
    return 1.0 - lost[bench.DEFAULT] / lost[bench.BASE]


@pytest.mark.parametrize(("world", "least"), [("unlike", 0.4), ("own_steps", -0.05)])
def test_it_saves_regret_and_is_not_misled(world: str, least: float) -> None:
    assert _saved(world, decisions=400) >= least


def test_segments_learn_from_each_other() -> None:
    """A segment without decisions serves what has sold in the others."""
    value = np.tile([400, 300, 200], (4, 1))
    depth = np.tile([0.0, 0.1, 0.2], (4, 1))
    policy = policies.make("thompson_hierarchical", arms=3, segments=4, depth=depth, value=value)
    trials = np.zeros((4, 3), np.int64)
    trials[:3] = 2000
    conversions = np.rint(trials * np.array([0.02, 0.08, 0.09])).astype(np.int64)
    sums = ledger.zeros(segments=4, arms=3)._replace(
        trials=trials, conversions=conversions, reward=conversions * value,
        square_low=conversions * value**2,
    )  # fmt: skip
    contexts = Contexts(np.array([3], np.int32), np.zeros((1, 0), np.int64))
    before, after = (
        policy.probabilities(policy.believe(state), contexts, np.ones((1, 3), bool))[0]
        for state in (policy.init(), sums)
    )
    assert after[1] > 0.6 > before[1]


def test_the_belief_is_a_function_of_the_sums() -> None:
    policy = policies.make("thompson_hierarchical", arms=3, segments=2)
    one, two = policy.believe(policy.init()), policy.believe(policy.init())
    np.testing.assert_array_equal(one.reward, two.reward)
    assert one.reward.shape == (2, 2048, 3)


def test_no_arm_is_given_up_that_may_still_be_best() -> None:
    """An arm with an unlucky start keeps a tenth of Thompson's probability."""
    sums = ledger.zeros(segments=1, arms=2)._replace(
        trials=np.array([[4000, 40]]), conversions=np.array([[800, 3]])
    )
    contexts = Contexts(np.zeros(1, np.int32), np.zeros((1, 0), np.int64))

    def served(explore: float) -> float:
        policy = policies.make("thompson_hierarchical", arms=2, segments=1, explore=explore)
        belief = policy.believe(sums)
        return float(policy.probabilities(belief, contexts, np.ones((1, 2), bool))[0, 1])

    assert served(0.01) > 0.05 * served(1.0) > 0.0


def test_many_arms_are_worked_off_in_blocks_and_share_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arms, segments = 60, 2
    depth = np.tile(np.linspace(0.0, 0.3, arms), (segments, 1)).tolist()
    made = policies.make("thompson_hierarchical", arms=arms, segments=segments, depth=depth)
    belief = made.believe(made.init())
    contexts = Contexts(np.array([0, 1, 1], np.int32), np.zeros((3, 0), np.int64))
    mask = np.random.default_rng(0).random((3, arms)) < 0.7
    whole = made.probabilities(belief, contexts, mask)
    monkeypatch.setattr(thompson_hierarchical, "_BLOCK", 7 * arms)
    parts = made.probabilities(belief, contexts, mask)
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-12)
    assert (parts[~mask] == 0).all()
