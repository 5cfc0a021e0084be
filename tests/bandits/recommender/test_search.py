"""The search for options: what it tries, what it holds back, and that it finds the better ones."""

import numpy as np
import pytest

from bandits import recommender
from bandits.recommender import search
from bandits.recommender.interactions import Interactions
from tests.bandits.recommender.worlds import halves, tastes


def test_it_finds_the_better_options() -> None:
    space = {"factors": (6,), "confidence": (5.0,), "regularization": (3e3, 1e4, 1e5)}
    trials = search.search(
        "als_implicit", tastes(), space=space, draws=3, iterations=2, split=halves(),
        also=[{"factors": 6, "confidence": 5.0, "regularization": 10.0}],
    )  # fmt: skip
    assert trials[0].options == {
        "factors": 6, "confidence": 5.0, "regularization": 10.0, "iterations": 8,
    }  # fmt: skip
    assert [trial.options["iterations"] for trial in trials] == [8, 4, 4, 2, 2, 2, 2]
    assert trials[1].score >= trials[2].score


def test_it_holds_back_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Interactions] = []

    def fit(name: str, events: Interactions, **options: object) -> object:
        seen.append(events)
        return original("popularity", events)

    original = recommender.fit
    monkeypatch.setattr(recommender, "fit", fit)
    search.search("nmf", tastes(), draws=3, share=0.25)
    latest = np.sort(tastes().at)[-len(tastes().at) // 4 :]
    assert len(seen) == 4  # three, then the best of them
    assert all(not np.isin(events.at, latest[1:]).any() for events in seen)


def test_ratings_are_judged_by_their_error() -> None:
    value = np.random.default_rng(0).integers(1, 6, len(tastes().user)).astype(np.float32)
    events = tastes()._replace(value=value)
    space = {"factors": (3,), "regularization": (1.0, 1e-4)}
    trials = search.search("als_explicit", events, space=space, draws=2, iterations=4)
    assert trials[0].options["regularization"] == 1.0
    assert -2.0 < trials[0].score < -1.2
