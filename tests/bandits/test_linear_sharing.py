"""Linear arms that share coefficients: against plain ridge regression and many joint draws."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bandits import artefact, features, policies
from bandits.backend import numpy_backend
from bandits.regressors import linear, linear_shared
from bandits.types import Batch, Contexts

SPACE = numpy_backend()
DEPTH = np.array([0.0, 0.05, 0.1, 0.15, 0.2, 0.3])
ARMS, FEATURES, SEGMENTS = len(DEPTH), 3, 2
Floats = NDArray[np.float64]


def _batch(rows: int, *, seed: int = 0) -> Batch:
    """Rewards that bend with depth, by how much depends on the second feature."""
    rng = np.random.default_rng(seed)
    x = features.quantise(rng.normal(size=(rows, FEATURES)))
    arm = rng.integers(0, ARMS, rows).astype(np.int32)
    value, d = features.values(x), DEPTH[arm]
    mean = 0.3 * value[:, 0] + 3 * d * value[:, 1] - 8 * (d - 0.1) ** 2
    reward = np.rint(1000 * mean + 300 * rng.normal(size=rows)).astype(np.int64)
    one = np.ones(rows, np.int64)
    contexts = Contexts((np.arange(rows) % SEGMENTS).astype(np.int32), x)
    return Batch(contexts, arm, np.full((rows, ARMS), 1 / ARMS), one, reward, one)


def _make(name: str = "linear_thompson", *, depth: Floats = DEPTH, **options: Any) -> Any:
    return policies.make(
        name, arms=ARMS, segments=SEGMENTS, features=FEATURES,
        sharing="shared", depth=depth, **options,
    )  # fmt: skip


def _columns(contexts: Contexts, arm: NDArray[np.int32]) -> Floats:
    """The design (B, K · P) of the arms that were served, written out."""
    x = linear.design(contexts, segments=SEGMENTS, space=SPACE) / features.ONE
    f = linear_shared.powers(DEPTH)[arm]
    columns: Floats = (f[:, :, None] * x[:, None, :]).reshape(len(arm), -1)
    return columns


def test_the_posterior_is_ridge_regression_over_pairs_of_features() -> None:
    batch = _batch(400)
    model = linear_shared.regressor(
        arm_features=linear_shared.powers(DEPTH), segments=SEGMENTS, features=FEATURES,
        space=SPACE, precision=2.0, spread=50.0,
    )  # fmt: skip
    belief = model.believe(model.update(model.init(), batch))
    found = model.predict(belief, batch.contexts)
    z = _columns(batch.contexts, batch.arm)
    inverse = np.linalg.inv(z.T @ z + 2.0 * np.eye(z.shape[1]))
    theta = inverse @ z.T @ batch.reward
    for a in range(ARMS):
        mine = _columns(batch.contexts, np.full(400, a, np.int32))
        np.testing.assert_allclose(found.mean[:, a], mine @ theta, rtol=1e-9, atol=1e-7)
        scale = 50.0 * np.sqrt(np.einsum("bp,pq,bq->b", mine, inverse, mine))
        np.testing.assert_allclose(found.scale[:, a], scale, rtol=1e-9)


def test_the_state_is_the_one_of_disjoint_arms_in_every_bit() -> None:
    batch = _batch(300)
    disjoint = policies.make("linear_ucb", arms=ARMS, segments=SEGMENTS, features=FEATURES)
    shared = _make("linear_ucb")
    one, two = (p.update(p.init(), batch) for p in (disjoint, shared))
    assert artefact.digest(one) == artefact.digest(two)


@pytest.mark.parametrize("rows", [0, 6, 60])
def test_shares_are_those_of_many_joint_draws(rows: int) -> None:
    """Few rows too, where χ² matters: 400,000 draws of a Student t, arms correlated."""
    policy = _make(explore=1.0)
    batch = _batch(max(rows, 1))
    state = policy.update(policy.init(), batch) if rows else policy.init()
    belief = policy.believe(state)
    contexts = Contexts(*(field[:4] for field in _batch(4, seed=9).contexts))
    p = policy.probabilities(belief, contexts, np.ones((4, ARMS), bool))
    rng = np.random.default_rng(1)
    freedom = float(belief.freedom)
    z = rng.normal(size=(400_000, belief.root.shape[1]))
    z /= np.sqrt(rng.chisquare(freedom, size=(400_000, 1)) / freedom)
    theta = belief.mean[0] + belief.noise * z @ belief.root[0].T
    for row in range(4):
        here = Contexts(*(np.repeat(field[row : row + 1], ARMS, axis=0) for field in contexts))
        scores = theta @ _columns(here, np.arange(ARMS, dtype=np.int32)).T
        drawn = np.bincount(scores.argmax(axis=1), minlength=ARMS) / len(scores)
        np.testing.assert_allclose(p[row], drawn, atol=0.015)


@pytest.mark.parametrize("name", ["linear_thompson", "linear_ucb"])
def test_backends_agree_and_the_order_of_arms_is_nobodys_business(name: str) -> None:
    batch, mask = _batch(200), np.random.default_rng(3).random((200, ARMS)) < 0.7
    mask[:, 2] = True
    order = np.array([3, 0, 5, 4, 2, 1])
    moved = batch._replace(arm=np.argsort(order)[batch.arm].astype(np.int32))
    numpy, jax, other = _make(name), _make(name, backend="jax"), _make(name, depth=DEPTH[order])
    p, q, r = (
        np.asarray(policy.probabilities(policy.believe(policy.update(policy.init(), b)), *asked))
        for policy, b, asked in (
            (numpy, batch, (batch.contexts, mask)),
            (jax, batch, (batch.contexts, mask)),
            (other, moved, (batch.contexts, mask[:, order])),
        )
    )
    assert (p[~mask] == 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-9)
    np.testing.assert_allclose(p, q, atol=1e-9)
    np.testing.assert_allclose(r, p[:, order], atol=1e-9)


def test_the_points_are_a_standard_normals() -> None:
    z = linear_shared.normal_points(4)
    np.testing.assert_allclose(z.mean(axis=0), 0.0, atol=0.02)
    np.testing.assert_allclose(np.cov(z.T), np.eye(4), atol=0.05)


def test_arms_alike_share_alike_and_depth_is_asked_for() -> None:
    policy = _make(depth=np.array([0.0, 0.1, 0.1, 0.2, 0.2, 0.2]))
    state = policy.update(policy.init(), _batch(100))
    contexts = Contexts(*(field[:3] for field in _batch(3, seed=4).contexts))
    p = policy.probabilities(policy.believe(state), contexts, np.ones((3, ARMS), bool))
    np.testing.assert_array_equal(p[:, 1], p[:, 2])
    np.testing.assert_array_equal(p[:, 3], p[:, 5])
    with pytest.raises(ValueError, match=r"^sharing: .*depth"):
        policies.make("linear_ucb", arms=3, segments=1, features=1, sharing="shared")


def test_sharing_knows_a_depth_that_bends_from_fewer_rows() -> None:
    """600 rows over 12 depths: the error of what each depth earns more than their mean."""
    depth, errors = np.linspace(0.0, 0.33, 12), []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x = features.quantise(rng.normal(size=(600, 2)))
        pull = np.clip(features.values(x)[:, :1], -1.5, 1.5)
        rates = 0.3 - 4.0 * (depth - 0.15) ** 2 + 0.5 * (depth - 0.15) * pull
        arm = rng.integers(0, 12, 600).astype(np.int32)
        won = (rng.random(600) < rates[np.arange(600), arm]).astype(np.int64)
        contexts, one = Contexts(np.zeros(600, np.int32), x), np.ones(600, np.int64)
        batch = Batch(contexts, arm, np.full((600, 12), 1 / 12), won, won, one)
        sizes: dict[str, Any] = {"segments": 1, "features": 2, "space": SPACE}
        traits = linear_shared.powers(depth)
        for model in (
            linear_shared.regressor(arm_features=traits, **sizes),
            linear.regressor(arms=12, **sizes),
        ):
            mean = model.predict(model.believe(model.update(model.init(), batch)), contexts).mean
            off = (mean - mean.mean(axis=1, keepdims=True)) - (
                rates - rates.mean(axis=1, keepdims=True)
            )
            errors.append(float(np.sqrt(np.mean(off**2))))
    shared, disjoint = np.array(errors).reshape(5, 2).T
    assert shared.mean() < 0.7 * disjoint.mean(), (shared, disjoint)
