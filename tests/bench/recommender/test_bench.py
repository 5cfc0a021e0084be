"""The comparison itself: what is judged, how customers are matched, and the table."""

import json

import numpy as np
import pytest

from bandits import recommender
from bandits.recommender import metrics
from bandits.recommender.interactions import by_user
from tests.bandits.recommender.worlds import halves
from tests.bench.recommender import __main__ as bench
from tests.bench.recommender import data, systems


def test_the_large_set_is_what_it_says() -> None:
    events = data.power_law(users=2000, items=500, pairs=60_000)
    degree = np.sort(by_user(events).degree)
    assert (events.users, events.items) == (2000, 500)
    assert 45_000 < len(events.user) < 75_000
    assert degree[-20:].mean() > 3 * degree.mean()
    counts = np.sort(np.bincount(events.item, minlength=500))
    assert counts[-50:].sum() > 0.25 * counts.sum()
    assert len(np.unique(events.user * np.int64(500) + events.item)) == len(events.user)


def test_a_system_is_judged_as_the_metrics_say() -> None:
    past, future = halves()
    whom = bench.judged(future, 0)
    options = {"factors": 6, "confidence": 5.0, "regularization": 10.0, "iterations": 3}
    outcome = systems.run("Barter als_implicit", options, past, future, whom, seed=0)
    assert outcome.iteration.shape == (3, 2)
    assert outcome.seconds >= outcome.iteration[:, 0].sum() > 0
    model = recommender.fit("als_implicit", past, **options, seed=0)
    wanted = metrics.ranking(model, past, future)
    np.testing.assert_allclose(outcome.ndcg, wanted.ndcg)
    assert outcome.coverage == wanted.coverage


def test_splits_are_averaged_customer_by_customer() -> None:
    def outcome(*ndcg: float) -> systems.Outcome:
        values = np.array(ndcg)
        return systems.Outcome(values / 2, values, 0.0, 0.0, np.zeros((0, 2)))

    found = bench._per_customer(
        [outcome(1.0, 0.5), outcome(0.0, 0.2)], [np.array([0, 3]), np.array([0, 1])], 4
    )
    np.testing.assert_allclose(found, [[0.25, 0.1, 0.25], [0.5, 0.2, 0.5]])


def test_the_table_on_record_is_made_of_the_results_on_record() -> None:
    results = json.loads(bench.RESULTS.read_text())
    text = bench.RESULTS.with_suffix(".md").read_text()
    assert bench.report(results) == text
    for name in bench.TITLES:
        ours = [one for system, one in results[name].items() if system.startswith("Barter")]
        best = max(ours, key=lambda one: float(one["ndcg"][0]))
        for peer in best["less"]:
            recall, ndcg = best["less"][peer]
            assert recall[0] >= 0 <= ndcg[0], (name, peer)


@pytest.mark.parametrize("name", bench.TITLES)
def test_every_system_has_settings(name: str) -> None:
    assert set(systems.SETTINGS[name]) <= {*systems.PEERS, *systems.OURS}
    assert set(systems.PEERS) <= set(systems.SETTINGS[name])
