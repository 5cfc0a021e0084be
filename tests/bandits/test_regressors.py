"""What the regressors predict, against references computed another way."""

import numpy as np
import pytest
from numpy.typing import NDArray

from bandits import features, policies, sampling
from bandits.backend import numpy_backend
from bandits.regressors import linear, logistic, trees
from bandits.types import Batch, Contexts

SPACE = numpy_backend()


def _batch(x: NDArray[np.float64], arm: NDArray[np.int32], reward: NDArray[np.int64]) -> Batch:
    rows = len(arm)
    contexts = Contexts(np.zeros(rows, np.int32), features.quantise(x))
    one = np.ones(rows, np.int64)
    return Batch(
        contexts, arm, np.full((rows, arm.max() + 1), 0.5), (reward > 0) * one, reward, one
    )


def test_the_posterior_is_ridge_regressions() -> None:
    rng = np.random.default_rng(0)
    x, arm = rng.normal(size=(300, 3)), rng.integers(0, 2, 300).astype(np.int32)
    reward = np.rint(100 * (x[:, 0] + arm) + rng.normal(size=300)).astype(np.int64)
    model = linear.regressor(
        arms=2, segments=1, features=3, space=SPACE, precision=2.0, spread=50.0
    )
    batch = _batch(x, arm, reward)
    belief = model.believe(model.update(model.init(), batch))
    found = model.predict(belief, batch.contexts)
    design = np.hstack([np.ones((300, 1)), features.values(batch.contexts.features)])
    for a in (0, 1):
        mine = design[arm == a]
        inverse = np.linalg.inv(mine.T @ mine + 2.0 * np.eye(4))
        theta = inverse @ mine.T @ reward[arm == a]
        np.testing.assert_allclose(found.mean[:, a], design @ theta, rtol=1e-10)
        scale = 50.0 * np.sqrt(np.einsum("bp,pq,bq->b", design, inverse, design))
        np.testing.assert_allclose(found.scale[:, a], scale, rtol=1e-10)


@pytest.mark.parametrize(("size", "expected"), [(0.03, 100.0), (0.3, 1.0)])
def test_the_evidence_finds_how_large_coefficients_are(size: float, expected: float) -> None:
    """σ²/λ is the coefficients' variance: λ is near (σ / size)², σ = 0.3."""
    rng = np.random.default_rng(1)
    x, arm = rng.normal(size=(4000, 60)), rng.integers(0, 2, 4000).astype(np.int32)
    theta = size * rng.normal(size=(2, 60))
    mean = np.einsum("bp,bp->b", x, theta[arm])
    reward = np.rint(1000 * (mean + 0.3 * rng.normal(size=4000))).astype(np.int64)
    model = linear.regressor(arms=2, segments=1, features=60, space=SPACE)
    sums = model.update(model.init(), _batch(x, arm, reward))
    free = model.believe(sums)
    truth = np.c_[np.zeros(2), theta]

    def error(precision: float | None) -> float:
        found = linear.posterior(sums, space=SPACE, precision=precision)
        return float(np.linalg.norm(found.mean / 1000 - truth))

    assert abs(free.noise / 300 - 1) < 0.05
    assert error(None) < 1.02 * min(error(expected / 30), error(expected), error(expected * 30))


def test_ten_million_rows_leave_no_drift() -> None:
    """A hundred batches of 100,000 rows, at the limits of rewards: the sums are Python's."""
    rng = np.random.default_rng(5)
    rows, times = 100_000, 100
    x, arm = rng.normal(size=(rows, 3)), (np.arange(rows) % 2).astype(np.int32)
    reward = rng.integers(-(10**9), 10**9 + 1, rows)
    model = linear.regressor(arms=2, segments=1, features=3, space=SPACE, precision=2.0)
    batch, state = _batch(x, arm, reward), model.init()
    for _ in range(times):
        state = model.update(state, batch)
    assert state.trials.sum() == rows * times
    exact = np.hstack([np.full((rows, 1), features.ONE), batch.contexts.features]).astype(object)
    belief = model.believe(state)
    for a in (0, 1):
        mine, paid = exact[arm == a], reward[arm == a].astype(object)
        gram, moment = mine.T @ mine * times, mine.T @ paid * times
        np.testing.assert_array_equal(state.gram[a], gram.astype(np.int64))
        np.testing.assert_array_equal(state.moment[a], moment.astype(np.int64))
        curved = gram.astype(np.float64) / features.ONE**2 + 2.0 * np.eye(4)
        theta = np.linalg.solve(curved, moment.astype(np.float64) / features.ONE)
        np.testing.assert_allclose(belief.mean[a], theta, rtol=1e-9)
        covariance = belief.root[a] @ belief.root[a].T
        np.testing.assert_allclose(covariance @ curved, np.eye(4), atol=1e-9)


def _clicks(rows: int, *, slope: float) -> tuple[Batch, NDArray[np.float64]]:
    """Two arms whose log odds are linear in three features, and their true coefficients (2, 4)."""
    rng = np.random.default_rng(6)
    theta = np.array([[-2.0, slope, 0.0, -slope], [-1.0, 0.0, slope, 0.0]])
    x, arm = rng.normal(size=(rows, 3)), rng.integers(0, 2, rows).astype(np.int32)
    odds = np.einsum("bp,bp->b", np.hstack([np.ones((rows, 1)), x]), theta[arm])
    return _batch(x, arm, (rng.random(rows) < 1 / (1 + np.exp(-odds))).astype(np.int64)), theta


def test_logistic_arms_are_one_newton_step_from_the_maximum_where_effects_are_small() -> None:
    batch, theta = _clicks(200_000, slope=0.2)
    model = logistic.regressor(arms=2, segments=1, features=3, space=SPACE, precision=1.0)
    belief = model.believe(model.update(model.init(), batch))
    np.testing.assert_allclose(belief.mean, theta, atol=0.06)
    x = np.hstack([np.ones((200_000, 1)), features.values(batch.contexts.features)])
    for a in (0, 1):
        mine = x[batch.arm == a]
        p = 1 / (1 + np.exp(-mine @ belief.mean[a]))
        curved = (mine * (p * (1 - p))[:, None]).T @ mine + np.eye(4)
        covariance = belief.root[a] @ belief.root[a].T
        np.testing.assert_allclose(np.diag(covariance @ curved), 1.0, atol=0.1)


def test_logistic_arms_order_as_their_rates_and_read_conversions_not_rewards() -> None:
    batch, theta = _clicks(20_000, slope=1.0)
    model = logistic.regressor(arms=2, segments=1, features=3, space=SPACE)
    state = model.update(model.init(), batch)
    paid = model.update(model.init(), batch._replace(reward=batch.reward * 777))
    for field, other in zip(state, paid, strict=True):
        np.testing.assert_array_equal(field, other)
    found = model.predict(model.believe(state), batch.contexts)
    x = np.hstack([np.ones((20_000, 1)), features.values(batch.contexts.features)])
    truth = x @ theta.T
    clear = np.abs(truth[:, 0] - truth[:, 1]) > 0.5
    assert np.mean((found.mean.argmax(axis=1) == truth.argmax(axis=1))[clear]) > 0.97


def test_logistic_arms_never_tried_or_never_converting_stay_finite() -> None:
    batch, _ = _clicks(500, slope=1.0)
    for conversions in (batch.conversions * 0, batch.conversions * 0 + 1):
        model = logistic.regressor(arms=3, segments=1, features=3, space=SPACE)
        wide = batch._replace(conversions=conversions, simplex=np.full((500, 3), 1 / 3))
        found = model.predict(model.believe(model.update(model.init(), wide)), batch.contexts)
        assert np.isfinite(found.mean).all()
        assert (found.scale > 0).all()


def test_trees_predict_what_lightgbm_predicts() -> None:
    import lightgbm

    rng = np.random.default_rng(2)
    x, arm = rng.normal(size=(1000, 4)), rng.integers(0, 2, 1000).astype(np.int32)
    reward = (900 * ((x[:, 0] > 0.3) & (x[:, 1] < 0)) + 100 * arm).astype(np.int64)
    model = trees.regressor(arms=2, segments=1, features=4, space=SPACE)
    batch = _batch(x, arm, reward)
    state = model.retrain(model.init(), batch, 3)  # type: ignore[misc]
    found = model.predict(state, batch.contexts).mean
    inputs = batch.contexts.features.astype(np.float64)
    unit = np.sqrt(np.mean(reward.astype(float) ** 2))
    for a in (0, 1):
        mine = arm == a
        options = {
            "objective": "regression", "learning_rate": trees.RATE, "num_leaves": trees.LEAVES,
            "max_depth": trees.DEPTH, "min_data_in_leaf": trees.LEAF_ROWS, "min_data_in_bin": 1,
            "lambda_l2": 1.0, "num_threads": 1, "deterministic": True, "seed": 3, "verbose": -1,
            "force_row_wise": True,
        }  # fmt: skip
        data = lightgbm.Dataset(inputs[mine], reward[mine] / unit)
        theirs = lightgbm.train(options, data, trees.TREES).predict(inputs)
        np.testing.assert_allclose(found[:, a], theirs * unit, atol=1e-9 * unit)
    np.testing.assert_array_equal(state.trials, np.bincount(arm))


def _regret(name: str, options: dict[str, str], *, seed: int, steps: int = 3000) -> float:
    """Steps world: arm 1 earns more where both features are positive, arm 0 elsewhere."""
    rng = np.random.default_rng(seed)
    policy = policies.make(name, arms=2, segments=1, features=2, **options)
    x = rng.normal(size=(steps, 2))
    both = (x > 0).all(axis=1)
    rates = np.stack([np.where(both, 0.1, 0.4), np.where(both, 0.7, 0.2)], axis=1)
    contexts = Contexts(np.zeros(steps, np.int32), features.quantise(x))
    state, lost = policy.init(), 0.0
    arms = np.zeros(steps, np.int32)
    served, rewards = np.zeros((steps, 2)), np.zeros(steps, np.int64)
    for begin in range(0, steps, 100):
        part = slice(begin, begin + 100)
        now = Contexts(*(field[part] for field in contexts))
        p = policy.probabilities(policy.believe(state), now, np.ones((100, 2), bool))
        served[part], arms[part] = p, sampling.draws(p, rng.random(100))
        earned = rates[np.arange(steps), arms][part]
        rewards[part] = rng.random(100) < earned
        lost += float((rates[part].max(axis=1) - earned).sum())

        def log(rows: slice) -> Batch:
            where = Contexts(*(field[rows] for field in contexts))
            r, one = rewards[rows], np.ones(len(arms[rows]), np.int64)
            return Batch(where, arms[rows], served[rows], r, r, one)

        state = policy.update(state, log(part))
        if policy.retrain is not None and begin in (100, 200, 400, 800, 1600):
            state = policy.retrain(state, log(slice(begin + 100)), 0)
    return lost


@pytest.mark.parametrize(
    ("name", "options", "share"),
    [
        ("linear_thompson", {}, 0.45),
        ("linear_ucb", {}, 0.45),
        ("logistic_thompson", {}, 0.45),
        ("trees_thompson", {}, 0.35),
        ("squarecb", {"regressor": "trees"}, 0.5),
        ("fastcb", {"regressor": "trees"}, 0.5),
        ("squarecb", {}, 0.6),
    ],
)
def test_they_learn_where_an_arm_is_better(
    name: str, options: dict[str, str], share: float
) -> None:
    uniform = 3000 * (0.25 * 0.3 + 0.75 * 0.1)
    lost = np.mean([_regret(name, options, seed=seed) for seed in range(3)])
    assert lost < share * uniform, lost / uniform
