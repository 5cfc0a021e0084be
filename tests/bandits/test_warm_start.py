"""A warm start saves exploration where the past is a guide, and costs little where it is not."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bandits import artefact, features, forgetting, ledger, policies, sampling, warm_start
from bandits.policies.arm_level import mean_reward
from bandits.types import Batch, Contexts, Policy

SEGMENTS, ARMS, WIDTH = 2, 3, 2
COUNTING = [
    name
    for name in policies.NAMES
    if (made := policies.make(name, arms=2, segments=1, features=1)).retrain is None
    and forgetting.fits(made)
]


def _batch(seed: int, rows: int, *, size: int = 900) -> Batch:
    rng = np.random.default_rng(seed)
    won = rng.integers(0, 2, rows)
    return Batch(
        Contexts(
            rng.integers(0, SEGMENTS, rows).astype(np.int32),
            features.quantise(rng.normal(size=(rows, WIDTH))),
        ),
        rng.integers(0, ARMS, rows).astype(np.int32),
        rng.dirichlet(np.ones(ARMS), rows),
        won,
        won * rng.integers(1, size + 1, rows),
        np.ones(rows, np.int64),
    )


def _make(name: str, **options: Any) -> Policy:
    return policies.make(name, arms=ARMS, segments=SEGMENTS, features=WIDTH, **options)


@pytest.mark.parametrize("size", [1, 900, 10**9])
@pytest.mark.parametrize("name", COUNTING)
def test_old_rows_count_for_as_many_as_told_and_say_the_same(name: str, size: int) -> None:
    policy = _make(name)
    full = warm_start.counted(policy, _batch(0, 3000, size=size))
    few = warm_start.at_most(full, rows=300)
    assert abs(int(few.trials.sum()) - 300) <= few.trials.size
    cells = few.trials.size
    np.testing.assert_allclose(few.trials * 10, full.trials, atol=5)
    np.testing.assert_allclose(few.reward * 10.0, full.reward, atol=5)

    def squares(state: Any) -> Any:
        return np.asarray(state.square_high).astype(object) * 2**32 + state.square_low

    assert (abs(squares(few) * 10 - squares(full)) <= 5).all()
    assert (few.square_low >= 0).all()
    assert (few.square_low < 2**32).all()
    assert artefact.digest(warm_start.at_most(few, rows=300 + cells)) == artefact.digest(few)
    assert int(warm_start.at_most(full, rows=0).trials.sum()) == 0


@pytest.mark.parametrize("options", [{}, {"half_life": 2.0, "buckets": 4}])
@pytest.mark.parametrize("name", COUNTING)
def test_what_is_learnt_afterwards_is_as_reversible_as_before(
    name: str, options: dict[str, Any]
) -> None:
    batch = _batch(1, 60)
    if options:
        batch = batch._replace(bucket=np.zeros(60, np.int64))
    policy = _make(name, **options)
    past = warm_start.at_most(warm_start.counted(policy, batch), rows=20)
    for space in ("numpy", "jax"):
        warm = warm_start.begin(_make(name, backend=space, **options), past)
        learnt = warm.update(warm.init(), batch)
        back = warm.update(learnt, batch._replace(sign=-batch.sign))
        assert artefact.digest(back) == artefact.digest(past)
        assert artefact.digest(back) == artefact.digest(warm.init())
        assert artefact.digest(learnt) != artefact.digest(back)
    assert options or not forgetting.fits(warm)


def test_propensities_that_are_missing_are_estimated_and_marked() -> None:
    rng = np.random.default_rng(2)
    segment = rng.integers(0, 2, 4000)
    arm = np.where(rng.random(4000) < np.array([0.2, 0.7])[segment], 1, 0)
    reward = (rng.random(4000) < np.array([0.1, 0.3])[arm]).astype(np.int64)
    past = warm_start.from_log(arm=arm, reward=reward, segment=segment, arms=2, segments=2)
    assert past.estimated
    np.testing.assert_allclose(past.batch.simplex[segment == 1, 1], 0.7, atol=0.03)
    policy = policies.make("gradient", arms=2, segments=2)
    sums = warm_start.counted(policy, past.batch)
    assert np.abs(sums.score).max() <= 4000  # rounding alone, in 2**-20
    mean = mean_reward(np, sums)
    pooled = sums.reward.sum(axis=1, keepdims=True) / sums.trials.sum(axis=1, keepdims=True)
    expected = sums.trials * (mean - pooled)
    np.testing.assert_allclose(sums.score_reward / 2.0**20, expected, atol=0.01)
    known = warm_start.from_log(
        arm=arm, reward=reward, segment=segment, arms=2, segments=2, simplex=past.batch.simplex
    )
    assert not known.estimated
    assert artefact.digest(warm_start.counted(policy, known.batch)) == artefact.digest(sums)


def test_a_log_and_its_sums_are_renamed_alike() -> None:
    batch = _batch(3, 500)
    old = warm_start.counted(_make("thompson_beta"), batch)
    arms, segments = [2, None, 0, 1], [None, 1, 0]
    rows = warm_start.renamed(batch, arms=arms, segments=segments)
    policy = policies.make("thompson_beta", arms=4, segments=3)
    found = warm_start.carried(old, arms=arms, segments=segments)
    assert artefact.digest(warm_start.counted(policy, rows)) == artefact.digest(found)
    some = warm_start.renamed(batch, arms=[1, 0], segments=[0])
    assert len(some.arm) == ((np.asarray(batch.arm) < 2) & (batch.contexts.segment == 0)).sum()
    np.testing.assert_allclose(some.simplex.sum(axis=1), 1)
    linear = _make("linear_ucb")
    moved = warm_start.renamed(batch, arms=[1, 2, 0], segments=[0, 1])
    assert artefact.digest(warm_start.counted(linear, moved)) == artefact.digest(
        warm_start.carried(warm_start.counted(linear, batch), arms=[1, 2, 0])
    )


def test_a_new_arm_may_start_from_the_mean_of_the_others() -> None:
    old = warm_start.counted(_make("thompson_beta"), _batch(4, 900))
    found = warm_start.carried(old, arms=[0, 1, 2, None], segments=[0, 1, None], new="mean")
    np.testing.assert_allclose(found.trials[:2, 3], old.trials.mean(axis=1), atol=0.5)
    np.testing.assert_allclose(found.reward[2, :3], old.reward.mean(axis=0), atol=0.5)
    nothing = warm_start.carried(old, arms=[0, 1, 2, None])
    assert not nothing.trials[:, 3].any()


def test_what_is_wrong_is_named() -> None:
    batch, policy = _batch(5, 20), _make("thompson_beta")
    state = warm_start.counted(policy, batch)
    bad: dict[str, Any] = {"arm": np.array([3]), "reward": np.array([1])}
    with pytest.raises(ValueError, match=r"^arm: "):
        warm_start.from_log(**bad, arms=3, segments=1)
    with pytest.raises(ValueError, match=r"^arms: "):
        warm_start.renamed(batch, arms=[0, 0], segments=[0])
    with pytest.raises(ValueError, match=r"^arms: "):
        warm_start.renamed(batch, arms=[7], segments=[0])
    with pytest.raises(ValueError, match="not in"):
        warm_start.carried(state, arms=[3])
    with pytest.raises(ValueError, match="averaged"):
        warm_start.carried(state, arms=[None], new="mean")
    with pytest.raises(TypeError, match="BucketedArmSums"):
        warm_start.carried(_make("ucb1", window=2).init(), arms=[0])
    with pytest.raises(ValueError, match=r"^segments: "):
        warm_start.carried(_make("linear_ucb").init(), arms=[0], segments=[0])
    with pytest.raises(ValueError, match="retrain it"):
        warm_start.begin(_make("trees_thompson"), _make("trees_thompson").init())
    with pytest.raises(ValueError, match="starts from"):
        warm_start.begin(policy, policies.make("ucb1", arms=2, segments=1).init())
    with pytest.raises(ValueError, match=r"^rows: "):
        warm_start.at_most(state, rows=-1)


def _regret(
    policy: Policy, rate: NDArray[np.float64], seed: int, *, decisions: int = 3000
) -> tuple[float, Any]:
    """Regret in conversions of a campaign of four segments, learnt every 100 decisions."""
    rng = np.random.default_rng(seed)
    segments, arms = rate.shape
    state, lost, size = policy.init(), 0.0, 100
    mask = np.ones((size, arms), bool)
    for _ in range(decisions // size):
        segment = rng.integers(0, segments, size)
        contexts = Contexts(segment.astype(np.int32), np.zeros((size, 0), np.int64))
        p = policy.probabilities(policy.believe(state), contexts, mask)
        arm = sampling.draws(p, rng.random(size))
        won = (rng.random(size) < rate[segment, arm]).astype(np.int64)
        lost += float((rate.max(axis=1)[segment] - rate[segment, arm]).sum())
        one = np.ones(size, np.int64)
        state = policy.update(state, Batch(contexts, arm, p, won, won, one))
    return lost, state


def regrets(*, similar: bool, rows: int, runs: int = 20) -> NDArray[np.float64]:
    """(runs, 2) regret of a cold and of a warm start, after another campaign's 4,000 decisions."""
    out = []
    for seed in range(runs):
        rng = np.random.default_rng(100 + seed)
        rate = rng.uniform(0.02, 0.2, (4, 5))
        before = np.clip(rate * rng.uniform(0.9, 1.1, rate.shape), 0, 1) if similar else 0.22 - rate
        cold = policies.make("thompson_beta", arms=5, segments=4)
        _, past = _regret(cold, before, 2 * seed, decisions=4000)
        warm = warm_start.begin(cold, warm_start.at_most(past, rows=rows))
        out.append([_regret(one, rate, 2 * seed + 1)[0] for one in (cold, warm)])
    return np.array(out)


@pytest.mark.slow
def test_a_warm_start_pays_in_a_similar_world_and_does_not_ruin_another() -> None:
    cold, warm = regrets(similar=True, rows=400).T
    saved = cold - warm
    assert saved.mean() > 2 * saved.std(ddof=1) / len(saved) ** 0.5
    assert warm.mean() < 0.85 * cold.mean()
    cold, warm = regrets(similar=False, rows=400).T
    assert warm.mean() < 1.5 * cold.mean()


def main() -> None:
    """Print the figures of bandits/README.md."""
    for similar in (True, False):
        for rows in (100, 400, 4000):
            cold, warm = regrets(similar=similar, rows=rows).T
            half = 1.96 * (cold - warm).std(ddof=1) / len(cold) ** 0.5
            print(
                f"similar {similar}, at most {rows} rows: cold {cold.mean():.1f}, "
                f"warm {warm.mean():.1f}, saved {(cold - warm).mean():.1f} ± {half:.1f}"
            )


if __name__ == "__main__":
    main()


def _rising(slope: float, *, seed: int, decisions: int = 20_000) -> warm_start.Earlier:
    rng, depth = np.random.default_rng(seed), np.tile(np.linspace(0.0, 0.3, 4), (5, 1))
    level = rng.normal(-3.0, 0.3, (5, 1))
    trials = np.full(depth.shape, decisions)
    sums = ledger.zeros(segments=5, arms=4)._replace(
        trials=trials, conversions=rng.binomial(trials, 1 / (1 + np.exp(-level - slope * depth)))
    )
    return warm_start.Earlier(sums, depth)


def test_earlier_campaigns_say_what_a_discount_does() -> None:
    alike = warm_start.slope([_rising(5.0, seed=seed) for seed in range(3)])
    assert alike.mean == pytest.approx(5.0, abs=0.7)
    assert 1.0 < alike.spread < 2.0
    unlike = warm_start.slope([_rising(slope, seed=1) for slope in (1.0, 5.0, 9.0)])
    assert unlike.spread > 2 * alike.spread
    few = warm_start.slope([_rising(5.0, seed=1, decisions=40)])
    assert few.spread > 1.5 * alike.spread
    with pytest.raises(ValueError, match="campaigns: at least one"):
        warm_start.slope([])
    flat = _rising(5.0, seed=1)
    with pytest.raises(ValueError, match=r"depth: .* all equal"):
        warm_start.slope([flat._replace(depth=flat.depth * 0)])


def test_a_campaign_that_is_told_of_the_slope_begins_where_the_others_ended() -> None:
    """Nothing learnt yet: the deep discount is worth trying where others rose steeply only."""
    value, depth = np.array([[40.0, 20.0]]), np.array([[0.0, 0.2]])
    contexts = Contexts(np.zeros(1, np.int32), np.zeros((1, 0), np.int64))

    def deep(slope: float) -> float:
        policy = policies.make(
            "thompson_hierarchical", arms=2, segments=1, value=value, depth=depth,
            slope=slope, slope_spread=1.0,
        )  # fmt: skip
        belief = policy.believe(policy.init())
        return float(policy.probabilities(belief, contexts, np.ones((1, 2), bool))[0, 1])

    steep, flat = deep(10.0), deep(0.5)
    assert steep > 2 * flat
