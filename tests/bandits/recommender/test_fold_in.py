"""Newcomers: the solve, how quickly, without JAX, and better than popularity."""

import os
import subprocess
import sys

import numpy as np
import pytest

from bandits.recommender import als_explicit, als_implicit, factors, fold_in, metrics, popularity
from bandits.recommender.interactions import by_item, by_user, chosen
from tests.bandits.recommender.worlds import GROUPS, dense, tastes

SERVING = """
import sys
import numpy as np
from bandits import recommender
from bandits.recommender import alignment, factors, fold_in, interactions, metrics, popularity
model = popularity.fit(interactions.interactions([0, 1], [1, 1]))
newcomer = fold_in.customer(model, np.array([0]))
assert factors.top(model, newcomer.vector, 2).tolist() == [1, 0]
assert not {"jax", "flax", "optax"} & set(sys.modules)
"""

#: Among 20,000 items with 64 factors: the vector, and the 20 best items.
NEWCOMER = """
import time
import numpy as np
from bandits.recommender import factors, fold_in
items = np.random.default_rng(0).normal(size=(20_000, 64)).astype(np.float32)
model = factors.Factors.make(
    np.zeros((1, 64)), items, kind=factors.PREFERENCE, confidence=20.0, user_prior=items.T @ items
)
told, spent = np.array([3, 500, 19_000]), []
for _ in range(20):
    began = time.perf_counter()
    newcomer = fold_in.customer(model, told)
    assert len(factors.top(model, newcomer.vector, 20, seen=told)) == 20
    spent.append(time.perf_counter() - began)
assert np.median(spent) < 0.005, spent
"""


def test_serving_does_not_import_jax() -> None:
    subprocess.run([sys.executable, "-c", SERVING], check=True, timeout=60)


def test_folding_in_a_fitted_customer_or_item_gives_its_vector() -> None:
    events = tastes()
    fitted = als_implicit.fit(events, factors=6, confidence=3.0, regularization=7.0, iterations=150)
    for user in range(0, events.users, 40):
        found = fold_in.customer(fitted, by_user(events).row(user), shrink=0.0)
        np.testing.assert_allclose(found.vector, fitted.users[user], atol=2e-3)
    for item in range(0, events.items, 40):
        found = fold_in.item(fitted, by_item(events).row(item), shrink=0.0)
        np.testing.assert_allclose(found.vector, fitted.items[item], atol=2e-3)


def test_folding_in_an_item_of_a_rating_model_gives_its_vector_and_bias() -> None:
    draw = np.random.default_rng(5)
    value = draw.integers(1, 6, len(tastes().user)).astype(np.float32)
    events = tastes()._replace(value=value)
    fitted = als_explicit.fit(events, factors=3, iterations=3)
    rows = by_item(events)
    for item in range(0, events.items, 40):
        given = rows.value[rows.start[item] : rows.start[item + 1]]
        found = fold_in.item(fitted, rows.row(item), given)
        np.testing.assert_allclose(found.vector, fitted.items[item], atol=1e-3)
        assert found.bias == pytest.approx(fitted.item_bias[item], abs=1e-3)


def test_three_interactions_beat_popularity_and_none_ranks_by_it() -> None:
    """Customers 200 and up are unknown to the model; three of their choices are told."""
    events = tastes()
    known = chosen(events, events.user < 200)
    fitted = als_implicit.fit(known, factors=6, confidence=5.0, regularization=10.0)
    base = popularity.fit(known)
    gain = []
    for user in range(200, events.users):
        items = np.random.default_rng(user).permutation(by_user(events).row(user))
        told, held = items[:3], items[3:]
        newcomer = fold_in.customer(fitted, told)
        mine = factors.top(fitted, newcomer.vector, 10, seen=told)
        theirs = factors.top(base, base.users[0], 10, seen=told)
        gain.append(np.isin(mine, held).sum() - np.isin(theirs, held).sum())
    assert metrics.interval(np.array(gain, np.float64)).low > 0.5
    nobody = fold_in.customer(fitted, np.zeros(0, np.intp))
    cold = factors.top(fitted, nobody.vector, 10)
    assert np.isin(cold, factors.top(base, base.users[0], 15)).sum() >= 9


def test_a_newcomer_of_a_group_is_shown_what_the_group_likes() -> None:
    fitted = als_implicit.fit(tastes(), factors=6, confidence=5.0, regularization=10.0)
    told = np.array([40, 44, 48])  # what the first group likes
    best = factors.top(fitted, fold_in.customer(fitted, told).vector, 5, seen=told)
    assert (best % GROUPS == 0).all()
    assert dense(tastes())[::GROUPS, told].sum() > 0


def test_a_new_customer_is_served_within_five_milliseconds() -> None:
    """With one thread of BLAS: two that share busy cores wait for each other."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", NEWCOMER], check=True, timeout=60, env=environment)
