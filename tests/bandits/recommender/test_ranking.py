"""Models that rank, and non-negative factors: their steps, and what they find in a known world."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandits import recommender
from bandits.recommender import bpr, factors, fold_in, metrics, nmf, popularity, two_tower
from bandits.recommender.factors import Factors
from bandits.recommender.interactions import by_user, chosen, interactions
from tests.bandits.recommender.worlds import GROUPS, dense, halves, tastes

OPTIONS: dict[str, dict[str, Any]] = {
    "bpr": {"factors": 6, "iterations": 60},
    "nmf": {"factors": 6, "iterations": 30},
    "two_tower": {"factors": 6, "regularization": 1.0},
}


@functools.cache
def _fitted(name: str) -> Factors:
    return recommender.fit(name, halves()[0], **OPTIONS[name])


@pytest.mark.parametrize("name", OPTIONS)
def test_it_finds_what_popularity_cannot(name: str) -> None:
    past, future = halves()
    mine = metrics.ranking(_fitted(name), past, future, count=10)
    base = metrics.ranking(popularity.fit(past), past, future, count=10)
    assert metrics.interval(mine.ndcg - base.ndcg).low > 0.05
    assert metrics.interval(mine.recall - base.recall).low > 0.05


@pytest.mark.parametrize("name", OPTIONS)
def test_a_newcomer_of_a_group_is_shown_what_the_group_likes(name: str) -> None:
    model = _fitted(name)
    for group in range(GROUPS):
        told = np.arange(40, 60)[np.arange(40, 60) % GROUPS == group][:3]
        best = factors.top(model, fold_in.customer(model, told).vector, 5, seen=told)
        assert (best % GROUPS == group).sum() >= 3


@pytest.mark.parametrize("name", ["bpr", "two_tower"])
def test_nobody_is_the_mean_customer(name: str) -> None:
    model = _fitted(name)
    nobody = fold_in.customer(model, np.zeros(0, np.intp))
    np.testing.assert_allclose(nobody.vector, model.user_mean, atol=1e-6)
    item = fold_in.item(model, np.arange(0, 80, GROUPS))  # liked by the first group
    liking = model.users @ item.vector
    assert liking[::GROUPS].mean() > liking[1::GROUPS].mean() + liking.std()


def test_chosen_items_are_found_in_their_rows() -> None:
    events = tastes()
    history = bpr._history(by_user(events))
    user, item = (index.ravel() for index in np.indices((events.users, events.items)))
    found = bpr._has_chosen(history, jnp.asarray(user), jnp.asarray(item))
    np.testing.assert_array_equal(found, dense(events).ravel() > 0)


def test_a_step_of_bpr_follows_the_gradient() -> None:
    draw = np.random.default_rng(0)
    users, items = draw.normal(size=(3, 5)), draw.normal(size=(4, 5))
    users[:, -1] = 1.0

    def objective(x: Any, y: Any) -> Any:
        score = x[1] @ (y[2] - y[0])
        prior = (x[1, :-1] ** 2).sum() + (y[2] ** 2).sum() + (y[0] ** 2).sum()
        return jax.nn.log_sigmoid(score) - 0.5 * 0.1 * prior

    start = bpr.Tables(*map(jnp.asarray, (users, items, np.zeros(3), np.zeros(4))))
    u, i, j = (jnp.array([one]) for one in (1, 2, 0))
    options = jnp.float32(0.01), jnp.float32(0.1)
    after = bpr._stepped(start, u, i, j, jnp.array([True]), *options)
    for before, now, slope in zip(
        start[:2], after[:2], jax.grad(objective, (0, 1))(*start[:2]), strict=True
    ):
        slope = np.asarray(slope).copy()
        slope[:, -1] *= before is start.items  # the customers' constant does not move
        moved = np.asarray(now - before)
        size = np.sqrt((slope**2).mean(axis=1, keepdims=True))
        np.testing.assert_allclose(moved, 0.01 * slope / np.where(size > 0, size, 1), atol=1e-5)
    left = bpr._stepped(start, u, i, j, jnp.array([False]), *options)
    np.testing.assert_array_equal(left.users, start.users)


def test_non_negative_factors_stay_so_and_fit_better_with_every_iteration() -> None:
    events = tastes()
    table, losses = dense(events), []
    for iterations in (1, 3, 10, 30):
        found = nmf.fit(events, factors=6, regularization=0.5, iterations=iterations)
        assert (found.users >= 0).all()
        assert (found.items >= 0).all()
        missed = ((table - found.users @ found.items.T) ** 2).sum()
        losses.append(missed + 0.5 * ((found.users**2).sum() + (found.items**2).sum()))
    assert (np.diff(losses) < 0).all()
    assert losses[-1] < 0.9 * losses[0]


def test_sampled_and_exact_softmax_agree() -> None:
    past, future = halves()
    sampled = two_tower.fit(past, factors=6, regularization=1.0, candidates=60)
    found = [metrics.ranking(m, past, future, count=10) for m in (sampled, _fitted("two_tower"))]
    gap = metrics.interval(found[0].ndcg - found[1].ndcg)
    assert abs(gap.mean) < 0.05


def test_features_place_items_that_nobody_chose_yet() -> None:
    """The last 20 items are taken out of the history; only their features tell their group."""
    events = tastes()
    known = chosen(events, events.item < 100)
    features = np.eye(GROUPS)[np.arange(events.items) % GROUPS]
    model = two_tower.fit(known, factors=6, regularization=1.0, item_features=features)
    new = model.users @ model.items[100:].T
    mine = np.arange(events.users)[:, None] % GROUPS == np.arange(100, 120) % GROUPS
    assert new[mine].mean() > new[~mine].mean() + new.std()


def test_rows_without_events_are_zero_and_models_grow() -> None:
    events = interactions([0, 1, 1], [0, 0, 2], users=3, items=4)
    for name in ("als_implicit", "nmf"):
        model = recommender.fit(name, events, factors=2, iterations=2)
        assert not model.users[2].any()
        assert not model.items[[1, 3]].any()
    larger = factors.grown(model, users=5, items=6)
    np.testing.assert_array_equal(larger.users[4], model.user_mean)
    np.testing.assert_array_equal(larger.users[:3], model.users)
    assert larger.items.shape == (6, 2)
    with pytest.raises(ValueError, match="grow"):
        factors.grown(larger, users=5, items=4)
    with pytest.raises(ValueError, match="model must be one of"):
        recommender.fit("als", events)
