"""Alternating least squares: each half step against dense arithmetic, and the published figure."""

import numpy as np
import pytest

from bandits import artefact
from bandits.recommender import als_explicit, als_implicit, blocks, metrics, popularity
from bandits.recommender.factors import EMPTY
from bandits.recommender.interactions import by_item, by_user, folds
from tests.bandits.recommender.worlds import dense, halves, tastes
from tests.bench.recommender import data


def test_blocks_hold_every_entry_once() -> None:
    events = tastes()
    rows = by_user(events)
    table = np.zeros((events.users + 1, events.items + 1))
    for block in blocks.blocks(rows, np.full(events.users, 2.0), entries=256):
        np.add.at(table, (np.asarray(block.row)[:, None], block.index), np.asarray(block.value))
        assert block.index.size <= 256
        assert set(np.asarray(block.ridge)[np.asarray(block.row) < events.users]) == {2.0}
    np.testing.assert_array_equal(table[:-1, :-1], dense(events))
    assert not table[-1].any()
    assert not table[:, -1].any()


def test_implicit_vectors_solve_the_normal_equations() -> None:
    events = tastes()
    fitted = als_implicit.fit(
        events, factors=6, confidence=3.0, regularization=7.0, scaling=0.5, iterations=150
    )
    value, x, y = dense(events), fitted.users.astype(float), fitted.items.astype(float)
    for table, mine, theirs in ((value, x, y), (value.T, y, x)):
        weight = table.shape[1] + 3.0 * table.sum(axis=1)
        ridge = 7.0 * np.sqrt(weight / weight.mean())
        for row in range(len(table)):
            confidence = 1.0 + 3.0 * table[row]
            matrix = (theirs.T * confidence) @ theirs + ridge[row] * np.eye(6)
            right = theirs.T @ (confidence * (table[row] > 0))
            np.testing.assert_allclose(mine[row], np.linalg.solve(matrix, right), atol=2e-3)


def test_explicit_vectors_solve_the_normal_equations() -> None:
    draw = np.random.default_rng(5)
    events = tastes()._replace(value=draw.integers(1, 6, len(tastes().user)).astype(np.float32))
    fitted = als_explicit.fit(events, factors=3, regularization=0.2, iterations=4)
    rows = by_item(events)
    for item in range(events.items):
        who = rows.row(item)
        design = np.concatenate([fitted.users[who], np.ones((len(who), 1))], axis=1).astype(float)
        value = rows.value[rows.start[item] : rows.start[item + 1]]
        target = value - fitted.mean - fitted.user_bias[who]
        matrix = design.T @ design + 0.2 * len(who) * np.eye(4)
        wanted = np.linalg.solve(matrix, design.T @ target)
        np.testing.assert_allclose(fitted.items[item], wanted[:3], atol=1e-3)
        assert fitted.item_bias[item] == pytest.approx(wanted[3], abs=1e-3)


def test_biases_and_20_factors_reach_the_published_error_on_movielens() -> None:
    """Five folds at 0.925 or less; the figure that DATA was given is 0.924."""
    events = data.movielens()
    errors = [
        metrics.rmse(als_explicit.fit(past, factors=20, iterations=8), fold, bounds=(1.0, 5.0))
        for past, fold in folds(events, count=5, seed=0)
    ]
    assert np.mean(errors) <= 0.925


def test_implicit_finds_what_popularity_cannot() -> None:
    past, future = halves()
    fitted = als_implicit.fit(past, factors=6, confidence=5.0, regularization=10.0)
    mine = metrics.ranking(fitted, past, future, count=10)
    base = metrics.ranking(popularity.fit(past), past, future, count=10)
    assert metrics.interval(mine.ndcg - base.ndcg).low > 0.05
    assert metrics.interval(mine.recall - base.recall).low > 0.05


def test_a_fit_repeats_and_goes_on_from_a_model() -> None:
    events = tastes()
    whole = als_implicit.fit(events, factors=6, iterations=4, seed=3)
    again = als_implicit.fit(events, factors=6, iterations=4, seed=3)
    half = als_implicit.fit(events, factors=6, iterations=2, seed=3)
    rest = als_implicit.fit(events, factors=6, iterations=2, start=half)
    np.testing.assert_array_equal(whole.users, again.users)
    np.testing.assert_allclose(whole.users, rest.users, atol=1e-5)


def test_a_model_is_an_artefact() -> None:
    fitted = als_implicit.fit(tastes(), factors=6, iterations=1)
    back = artefact.from_bytes(artefact.to_bytes(fitted, policy="als_implicit"), like=EMPTY)
    assert artefact.digest(back) == artefact.digest(fitted)
