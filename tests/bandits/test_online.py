"""The loop that keeps its arrays in place learns and chooses what the policy does."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bandits import artefact, features, policies
from bandits.online import OnlineLinUCB
from bandits.types import REWARD_LIMIT, Batch, Contexts

ARMS, FEATURES = 4, 6


def _stream(rows: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    x, theta = rng.normal(size=(rows, FEATURES)), rng.normal(size=(FEATURES, ARMS))
    return x, np.rint(1000 * (x @ theta + rng.normal(size=(rows, ARMS)))).astype(np.int64)


def _policy_state(x: NDArray[np.float64], arm: NDArray[Any], reward: NDArray[np.int64]) -> Any:
    policy = policies.make("linear_ucb", arms=ARMS, segments=1, features=FEATURES)
    rows = len(arm)
    contexts = Contexts(np.zeros(rows, np.int32), features.quantise(x))
    one, simplex = np.ones(rows, np.int64), np.full((rows, ARMS), 1 / ARMS)
    batch = Batch(contexts, arm.astype(np.int32), simplex, (reward > 0) * one, reward, one)
    return policy.update(policy.init(), batch)


def test_its_sums_are_the_policys_in_every_bit() -> None:
    x, rewards = _stream(600)
    rewards[7] = REWARD_LIMIT
    online = OnlineLinUCB(arms=ARMS, features=FEATURES)
    arms = []
    for row in range(300):
        arm = online.choose(x[row])
        online.learn(x[row], arm, int(rewards[row, arm]))
        arms.append(arm)
    for begin in range(300, 600, 100):
        part = slice(begin, begin + 100)
        chosen = online.choose_batch(x[part])
        online.learn_batch(x[part], chosen, rewards[part][np.arange(100), chosen])
        arms += chosen.tolist()
    served = np.array(arms)
    expected = _policy_state(x, served, rewards[np.arange(600), served])
    assert artefact.digest(online.state) == artefact.digest(expected)


def test_between_two_beliefs_it_stays_at_the_exact_posterior() -> None:
    x, rewards = _stream(5000)
    slow, fresh = (OnlineLinUCB(arms=ARMS, features=FEATURES, refresh=g) for g in (9.0, 9.0))
    for row in range(5000):
        arm = row % ARMS
        slow.learn(x[row], arm, int(rewards[row, arm]))
        fresh.learn(x[row], arm, int(rewards[row, arm]))
    # What thousands of rank-one updates leave, against the same posterior solved from the sums.
    for arm in range(ARMS):
        fresh._settle(arm)
    np.testing.assert_allclose(slow._mean, fresh._mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(slow._covariance, fresh._covariance, rtol=1e-6, atol=1e-12)


def test_it_chooses_what_the_policy_chooses_after_a_belief() -> None:
    x, rewards = _stream(400)
    online = OnlineLinUCB(arms=ARMS, features=FEATURES, refresh=0.0)
    policy = policies.make("linear_ucb", arms=ARMS, segments=1, features=FEATURES)
    for row in range(200):
        arm = online.choose(x[row])
        online.learn(x[row], arm, int(rewards[row, arm]))
    contexts = Contexts(np.zeros(200, np.int32), features.quantise(x[200:]))
    simplex = policy.probabilities(
        policy.believe(online.state), contexts, np.ones((200, ARMS), bool)
    )
    np.testing.assert_array_equal(simplex.argmax(axis=1), [online.choose(one) for one in x[200:]])
    np.testing.assert_array_equal(simplex.argmax(axis=1), online.choose_batch(x[200:]))


def test_a_first_batch_tries_every_arm() -> None:
    online = OnlineLinUCB(arms=ARMS, features=FEATURES)
    chosen = online.choose_batch(_stream(40)[0])
    assert np.bincount(chosen, minlength=ARMS).tolist() == [10, 10, 10, 10]


def test_bad_input_is_refused_by_name() -> None:
    for name, call in {
        "arms": {"arms": 0, "features": 1},
        "features": {"arms": 1, "features": -1},
        "alpha": {"arms": 1, "features": 1, "alpha": -1.0},
        "refresh": {"arms": 1, "features": 1, "refresh": float("nan")},
    }.items():
        with pytest.raises(ValueError, match=f"^{name}: "):
            OnlineLinUCB(**call)  # type: ignore[arg-type]
    online = OnlineLinUCB(arms=1, features=1)
    with pytest.raises(ValueError, match=r"^reward: "):
        online.learn(np.zeros(1), 0, REWARD_LIMIT + 1)
    with pytest.raises(ValueError, match=r"^reward: "):
        online.learn_batch(np.zeros((1, 1)), np.zeros(1, np.intp), np.array([-REWARD_LIMIT - 1]))
    assert online.rows == 0
