"""Linear arms over very many features: sums against Python's, beliefs against plain regression."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bandits import artefact, backend, features, policies
from bandits.regressors import linear, linear_diagonal
from bandits.types import FEATURE_LIMIT, REWARD_LIMIT, Batch, Contexts

SPACE = backend.numpy_backend()


def _batch(rows: int, width: int, *, seed: int = 0, limits: bool = False) -> Batch:
    rng = np.random.default_rng(seed)
    x = features.quantise(rng.normal(size=(rows, width)))
    arm = rng.integers(0, 2, rows).astype(np.int32)
    value = features.values(x)
    reward = np.rint(100 * (value[:, 0] - 2 * value[:, 1] * arm) + 30 * rng.normal(size=rows))
    if limits:
        x = rng.choice([-FEATURE_LIMIT, FEATURE_LIMIT, 1], size=(rows, width))
        reward = rng.choice([-REWARD_LIMIT, REWARD_LIMIT - 7], size=rows)
    one = np.ones(rows, np.int64)
    contexts = Contexts(rng.integers(0, 2, rows).astype(np.int32), x)
    return Batch(contexts, arm, np.full((rows, 2), 0.5), one, reward.astype(np.int64), one)


def _model(width: int, *, space: backend.Backend = SPACE, **options: Any) -> Any:
    return linear_diagonal.regressor(arms=2, segments=2, features=width, space=space, **options)


def _columns(contexts: Contexts) -> NDArray[np.int64]:
    x: NDArray[np.int64] = linear.design(contexts, segments=2, space=SPACE)[:, 1:]
    return x


@pytest.mark.parametrize("name", ["numpy", "jax"])
def test_sums_are_pythons_in_any_order_and_leave_no_trace(name: str) -> None:
    space, batch = backend.named(name), _batch(60, 4, limits=True)
    model = _model(4, space=space)
    state = model.update(model.init(), batch)
    x, r = _columns(batch.contexts).astype(object), batch.reward.astype(object)
    for a in (0, 1):
        mine = batch.arm == a
        np.testing.assert_array_equal(state.first[a], x[mine].sum(axis=0))
        np.testing.assert_array_equal(state.second[a], (x[mine] ** 2).sum(axis=0))
        np.testing.assert_array_equal(state.moment[a], (x[mine] * r[mine, None]).sum(axis=0))

    def some(rows: Any, sign: int = 1) -> Batch:
        where = Contexts(*(field[rows] for field in batch.contexts))
        rest = (batch.arm, batch.simplex, batch.conversions, batch.reward, batch.sign * sign)
        return Batch(where, *(field[rows] for field in rest))

    order = np.random.default_rng(1).permutation(60)
    other = model.init()
    for shard in np.array_split(order, 5):
        other = model.update(other, some(shard))
    other = model.update(model.update(other, some(order[:12])), some(order[:12], -1))
    assert artefact.digest(other) == artefact.digest(state)


def test_every_column_is_a_ridge_regression_of_its_own() -> None:
    batch = _batch(300, 3)
    model = _model(3, precision=2.0, spread=50.0)
    belief = model.believe(model.update(model.init(), batch))
    x = _columns(batch.contexts) / features.ONE
    for a in (0, 1):
        mine, paid = x[batch.arm == a], batch.reward[batch.arm == a]
        around, wanted = mine - mine.mean(axis=0), paid - paid.mean()
        theta = (around * wanted[:, None]).sum(axis=0) / ((around**2).sum(axis=0) + 2.0)
        np.testing.assert_allclose(belief.mean[a], theta, rtol=1e-9)
    found = model.predict(belief, batch.contexts)
    width = 1.0 / ((batch.arm == 0).sum() + 1.0) + x**2 @ belief.inverse[0]
    np.testing.assert_allclose(found.scale[:, 0], 50.0 * np.sqrt(width), rtol=1e-9)


def test_independent_features_are_learnt_as_the_full_model_learns_them() -> None:
    batch = _batch(20_000, 5)
    means = []
    for model in (_model(5), linear.regressor(arms=2, segments=2, features=5, space=SPACE)):
        belief = model.believe(model.update(model.init(), batch))
        means.append(model.predict(belief, batch.contexts).mean)
    error = np.sqrt(np.mean((means[0] - means[1]) ** 2))
    assert error < 0.03 * means[1].std()


def test_two_features_that_say_the_same_are_counted_twice() -> None:
    """What the module says of its approximation."""
    batch = _batch(5000, 2)
    x = batch.contexts.features[:, [0, 0]]
    batch = batch._replace(
        contexts=batch.contexts._replace(features=x), reward=np.rint(x[:, 0] / 10).astype(np.int64)
    )
    model = _model(2)
    mean = model.predict(model.believe(model.update(model.init(), batch)), batch.contexts).mean
    slope = np.polyfit(x[:, 0] / 10.0, mean[:, 0], 1)[0]
    assert 1.9 < slope < 2.1


def test_ten_million_rows_leave_no_drift() -> None:
    rows, times = 100_000, 100
    batch, model = _batch(rows, 2, limits=True), _model(2, precision=1.0)
    state = model.init()
    for _ in range(times):
        state = model.update(state, batch)
    x, r = _columns(batch.contexts).astype(object), batch.reward.astype(object)
    assert int(state.trials.sum()) == rows * times
    for a in (0, 1):
        mine = batch.arm == a
        moment = (x[mine] * r[mine, None]).sum(axis=0) * times
        np.testing.assert_array_equal(state.moment[a].astype(object), moment)
        np.testing.assert_array_equal(
            state.second[a].astype(object), (x[mine] ** 2).sum(axis=0) * times
        )
    assert np.isfinite(model.believe(state).mean).all()


@pytest.mark.parametrize("name", ["linear_thompson", "linear_ucb"])
def test_a_hundred_thousand_hashed_features(name: str) -> None:
    """100 towns and a colour, 100,000 buckets: the arm that a town wants is found."""
    rng, width = np.random.default_rng(2), 100_000
    policy = policies.make(name, arms=2, segments=1, features=width, covariance="diagonal")
    towns = np.stack(
        [features.hashed({"town": f"town {t}", "colour": "red"}, buckets=width) for t in range(100)]
    )
    wants, state = np.arange(100) % 2, policy.init()
    for _ in range(20):
        town = rng.integers(0, 100, 50)
        arm = rng.integers(0, 2, 50).astype(np.int32)
        won = (rng.random(50) < np.where(arm == wants[town], 0.9, 0.1)).astype(np.int64)
        contexts = Contexts(np.zeros(50, np.int32), towns[town])
        batch = Batch(contexts, arm, np.full((50, 2), 0.5), won, won, won * 0 + 1)
        state = policy.update(state, batch)
    assert sum(field.nbytes for field in state) < 3 * 2 * 8 * width + 1000
    contexts = Contexts(np.zeros(100, np.int32), towns)
    p = policy.probabilities(policy.believe(state), contexts, np.ones((100, 2), bool))
    assert p[np.arange(100), wants].mean() > 0.9


def test_a_hash_is_the_same_everywhere_and_fair() -> None:
    """A known answer: logs of one machine are read on another."""
    x = features.hashed({"town": "Ulm", "age": 0.5}, buckets=1000)
    known = {int(place): int(x[place]) for place in np.flatnonzero(x)}
    assert known == {53: 2048, 54: -4096}
    many = np.stack([features.hashed({"id": str(i)}, buckets=64) for i in range(4000)])
    assert (np.abs(many).sum(axis=1) == features.ONE).all()
    assert abs(np.sign(many).sum()) < 4 * 4000**0.5
    counts = np.abs(many).sum(axis=0) / features.ONE
    assert ((counts - 62.5) ** 2 / 62.5).sum() < 120  # χ² of 63: mean 63, sd 11
    crowd = features.hashed({f"n{i}": 15.9 for i in range(50)}, buckets=1)
    assert abs(int(crowd[0])) <= FEATURE_LIMIT
    with pytest.raises(ValueError, match=r"^buckets: "):
        features.hashed({}, buckets=0)


def test_a_diagonal_is_not_shared() -> None:
    with pytest.raises(ValueError, match=r"^covariance: "):
        policies.make(
            "linear_ucb", arms=2, segments=1, features=1,
            covariance="diagonal", sharing="shared", depth=np.array([0.0, 0.1]),
        )  # fmt: skip
