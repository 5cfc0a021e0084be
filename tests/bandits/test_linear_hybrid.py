"""Hybrid linear arms: against ridge regression over both parts, and many joint draws."""

from typing import Any

import numpy as np
import pytest

from bandits import artefact, features, policies
from bandits.backend import numpy_backend
from bandits.regressors import linear, linear_hybrid, linear_shared
from bandits.types import Batch, Contexts
from tests.bandits.test_linear_sharing import (
    ARMS,
    DEPTH,
    FEATURES,
    SEGMENTS,
    Floats,
    _batch,
    _columns,
)

SPACE = numpy_backend()
KINDS = 3
TIES = np.array([0.0, 0.1, 0.1, 0.1, 0.2, 0.3])


def _make(name: str = "linear_thompson", *, depth: Floats = DEPTH, **options: Any) -> Any:
    return policies.make(
        name, arms=ARMS, segments=SEGMENTS, features=FEATURES,
        sharing="hybrid", depth=depth, **options,
    )  # fmt: skip


def _both(contexts: Contexts, arm: Any) -> Floats:
    """The design of both parts, written out: what is shared, then a block per arm."""
    x = linear.design(contexts, segments=SEGMENTS, space=SPACE) / features.ONE
    own = (np.eye(ARMS)[arm][:, :, None] * x[:, None, :]).reshape(len(arm), -1)
    return np.concatenate([_columns(contexts, arm), own], axis=1)


def _precisions(own: float) -> Floats:
    width = linear.columns(segments=SEGMENTS, features=FEATURES)
    shared = np.full(KINDS * width, linear_shared.PRECISION)
    return np.concatenate([shared, np.full(ARMS * width, own)])


def test_the_posterior_is_ridge_regression_over_both_parts() -> None:
    batch = _batch(400)
    policy = linear_hybrid.regressor(
        arm_features=linear_shared.powers(DEPTH), depth=DEPTH, segments=SEGMENTS,
        features=FEATURES, space=SPACE, precision=2.0, spread=50.0,
    )  # fmt: skip
    found = policy.predict(policy.believe(policy.update(policy.init(), batch)), batch.contexts)
    z = _both(batch.contexts, batch.arm)
    inverse = np.linalg.inv(z.T @ z + np.diag(_precisions(2.0)))
    theta = inverse @ z.T @ batch.reward
    for a in range(ARMS):
        mine = _both(batch.contexts, np.full(400, a, np.int32))
        np.testing.assert_allclose(found.mean[:, a], mine @ theta, rtol=1e-8, atol=1e-6)
        scale = 50.0 * np.sqrt(np.einsum("bp,pq,bq->b", mine, inverse, mine))
        np.testing.assert_allclose(found.scale[:, a], scale, rtol=1e-8)


def test_the_evidence_is_that_of_the_whole_regression() -> None:
    """Differences between two λ, from determinants of the covariance of all rewards."""
    batch = _batch(80)
    state = _make().update(_make().init(), batch)
    numbers = linear_hybrid._numbers(state, SPACE, centred=False)
    f, z = linear_shared.powers(DEPTH), _both(batch.contexts, batch.arm)

    def whole(own: float) -> float:
        covariance = np.eye(80) + z @ np.diag(1 / _precisions(own)) @ z.T
        left = batch.reward @ np.linalg.solve(covariance, batch.reward.astype(np.float64))
        spent = 0.5 * np.linalg.slogdet(covariance)[1]
        return float(-spent - numbers.shape * np.log(numbers.guess + 0.5 * left))

    ours = [float(linear_hybrid._evidence(numbers, f, np.float64(one), np)) for one in (0.1, 30.0)]
    assert ours[1] - ours[0] == pytest.approx(whole(30.0) - whole(0.1), rel=1e-6)


def test_the_state_is_the_one_of_disjoint_arms_in_every_bit() -> None:
    batch = _batch(300)
    disjoint = policies.make("linear_ucb", arms=ARMS, segments=SEGMENTS, features=FEATURES)
    one, two = (p.update(p.init(), batch) for p in (disjoint, _make("linear_ucb")))
    assert artefact.digest(one) == artefact.digest(two)


@pytest.mark.parametrize("rows", [0, 6, 60])
def test_shares_are_those_of_many_joint_draws(rows: int) -> None:
    """Few rows too, where χ² matters: 200,000 draws of a Student t, arms correlated."""
    policy, batch = _make(explore=1.0), _batch(max(rows, 1))
    state = policy.update(policy.init(), batch) if rows else policy.init()
    belief = policy.believe(state).arms
    contexts = Contexts(*(field[:4] for field in _batch(4, seed=9).contexts))
    p = policy.probabilities(policy.believe(state), contexts, np.ones((4, ARMS), bool))
    z = _both(batch.contexts, batch.arm)[: rows or 0]
    precision = z.T @ z + np.diag(_precisions(float(belief.precision)))
    theta = np.linalg.solve(precision, z.T @ batch.reward[: rows or 0])
    root = np.linalg.inv(np.linalg.cholesky(precision)).T
    rng = np.random.default_rng(1)
    drawn = rng.normal(size=(200_000, len(theta)))
    drawn /= np.sqrt(rng.chisquare(float(belief.freedom), size=(200_000, 1)) / belief.freedom)
    drawn = theta + float(belief.noise) * drawn @ root.T
    for row in range(4):
        here = Contexts(*(np.repeat(field[row : row + 1], ARMS, axis=0) for field in contexts))
        best = (drawn @ _both(here, np.arange(ARMS)).T).argmax(axis=1)
        np.testing.assert_allclose(p[row], np.bincount(best, minlength=ARMS) / 200_000, atol=0.03)


@pytest.mark.parametrize(
    ("name", "depth"),
    [("linear_thompson", DEPTH), ("linear_thompson", TIES), ("linear_ucb", TIES)],
)
def test_backends_agree_and_the_order_of_arms_is_nobodys_business(name: str, depth: Floats) -> None:
    batch, mask = _batch(40), np.random.default_rng(3).random((40, ARMS)) < 0.7
    mask[:, 2] = True
    order = np.array([3, 0, 5, 4, 2, 1])
    moved = batch._replace(arm=np.argsort(order)[batch.arm].astype(np.int32))
    numpy, other = _make(name, depth=depth), _make(name, depth=depth[order])
    jax = _make(name, depth=depth, backend="jax")
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


def _error(model: Any, batch: Batch, rates: Floats) -> float:
    """How far off what each depth earns beyond the mean of them is, in the first 100 contexts."""
    few = Contexts(*(field[:100] for field in batch.contexts))
    mean = model.predict(model.believe(model.update(model.init(), batch)), few).mean
    rates = rates[:100]
    off = mean - mean.mean(axis=1, keepdims=True) - (rates - rates.mean(axis=1, keepdims=True))
    return float(np.sqrt(np.mean(off**2)))


@pytest.mark.parametrize("departs", [0.0, 0.15])
def test_it_is_near_the_better_of_shared_and_disjoint_arms(departs: float) -> None:
    """Over 12 depths that bend as the model says, or of which each departs from that by itself."""
    depth, errors = np.linspace(0.0, 0.33, 12), []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rows, own = 2_400, departs * rng.normal(size=12)
        x = features.quantise(rng.normal(size=(rows, 2)))
        pull = np.clip(features.values(x)[:, :1], -1.5, 1.5)
        rates = 0.4 - 4.0 * (depth - 0.15) ** 2 + 0.5 * (depth - 0.15) * pull + own
        rates = np.clip(rates, 0.0, 1.0)
        arm = rng.integers(0, 12, rows).astype(np.int32)
        won = (rng.random(rows) < rates[np.arange(rows), arm]).astype(np.int64)
        contexts, one = Contexts(np.zeros(rows, np.int32), x), np.ones(rows, np.int64)
        batch = Batch(contexts, arm, np.full((rows, 12), 1 / 12), won, won, one)
        sizes: dict[str, Any] = {"segments": 1, "features": 2, "space": SPACE}
        traits: dict[str, Any] = {"arm_features": linear_shared.powers(depth)}
        models = (
            linear_hybrid.regressor(**traits, depth=depth, **sizes),
            linear_shared.regressor(**traits, **sizes),
            linear.regressor(arms=12, **sizes),
        )
        errors.append([_error(model, batch, rates) for model in models])
    hybrid, shared, disjoint = np.array(errors).mean(axis=0)
    assert hybrid < 1.25 * min(shared, disjoint), (hybrid, shared, disjoint)
    assert hybrid < 0.8 * max(shared, disjoint), (hybrid, shared, disjoint)
