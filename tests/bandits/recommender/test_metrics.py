"""Figures of lists, against the definitions written out pair by pair."""

import numpy as np
import pytest

from bandits.recommender import factors, metrics, popularity
from bandits.recommender.factors import RATING, Factors
from bandits.recommender.interactions import by_user, interactions
from tests.bandits.recommender.worlds import dense, halves


def _random_model() -> Factors:
    draw = np.random.default_rng(3)
    past, _ = halves()
    return Factors.make(
        draw.normal(size=(past.users, 4)), draw.normal(size=(past.items, 4)), kind=RATING
    )


def test_recall_and_ndcg_by_their_definitions() -> None:
    past, future = halves()
    model, count = _random_model(), 7
    found = metrics.ranking(model, past, future, count=count)
    table = factors.scores(model, model.users).astype(np.float64)
    table[dense(past) > 0] = -np.inf
    for place, user in enumerate(found.user):
        best = np.argsort(-table[user], kind="stable")[:count].tolist()
        wanted = set(by_user(future).row(user).tolist())
        hits = [item in wanted for item in best]
        gain = sum(hit / np.log2(rank + 2) for rank, hit in enumerate(hits))
        ideal = sum(1 / np.log2(rank + 2) for rank in range(min(count, len(wanted))))
        assert found.recall[place] == pytest.approx(sum(hits) / len(wanted))
        assert found.ndcg[place] == pytest.approx(gain / ideal)


def test_coverage_and_diversity() -> None:
    lists = np.array([[0, 1], [1, 2]])
    assert metrics.coverage(lists, 6) == 0.5
    vectors = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
    assert metrics.diversity(lists, vectors) == pytest.approx(0.5)  # cosines 0 and 1


def test_rmse_and_its_bounds() -> None:
    events = interactions([0, 1], [0, 0], [1.0, 5.0])
    model = Factors.make(np.zeros((2, 1)), np.zeros((1, 1)), kind=RATING, mean=6.0)
    assert metrics.rmse(model, events) == pytest.approx(np.sqrt((25 + 1) / 2))
    assert metrics.rmse(model, events, bounds=(1, 5)) == pytest.approx(np.sqrt(16 / 2))


def test_an_interval_covers_the_mean_and_narrows() -> None:
    draw = np.random.default_rng(0)
    few, many = metrics.interval(draw.normal(size=100)), metrics.interval(draw.normal(size=10_000))
    assert few.low < few.mean < few.high
    assert many.high - many.low < 0.2 * (few.high - few.low)


def test_popularity_ranks_by_customers_and_repeats_nothing_seen() -> None:
    events = interactions([0, 0, 0, 1, 2], [0, 0, 1, 1, 2])  # item 0 twice by one customer
    model = popularity.fit(events)
    np.testing.assert_allclose(model.item_bias, np.array([1, 2, 1]) / 3, rtol=1e-6)
    assert factors.top(model, model.users[0], 3, seen=np.array([1])).tolist() == [0, 2]
    assert factors.top(model, model.users[0], 3, seen=np.arange(3)).tolist() == []
