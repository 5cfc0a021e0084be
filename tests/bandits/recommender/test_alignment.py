"""Refits turned onto the last model: the same scores, and vectors that mean the same."""

import numpy as np
import pytest

from bandits.recommender import alignment, als_implicit, factors, fold_in
from bandits.recommender.factors import Factors
from tests.bandits.recommender.worlds import halves, tastes


def _fit(seed: int) -> Factors:
    return als_implicit.fit(
        tastes(), factors=6, confidence=5.0, regularization=10.0, iterations=40, seed=seed
    )


def _cosines(one: Factors, other: Factors) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    dot = (one.items * other.items).sum(axis=1)
    size = np.linalg.norm(one.items, axis=1) * np.linalg.norm(other.items, axis=1)
    found: np.ndarray[tuple[int], np.dtype[np.float64]] = (dot / size).astype(np.float64)
    return found


def test_scores_stay_and_vectors_come_close() -> None:
    last, refit = _fit(0), _fit(1)
    same = alignment.aligned(refit, last)
    before, after = (factors.scores(model, model.users) for model in (refit, same))
    np.testing.assert_allclose(after, before, atol=2e-6)
    assert np.median(np.abs(_cosines(refit, last))) < 0.8
    assert np.median(_cosines(same, last)) > 0.99


def test_newcomers_turn_with_the_model() -> None:
    last, refit = _fit(0), _fit(1)
    same = alignment.aligned(refit, last)
    told = np.array([3, 8, 40])
    plain, turned = (fold_in.customer(model, told).vector for model in (refit, same))
    np.testing.assert_allclose(
        factors.scores(same, turned[None]), factors.scores(refit, plain[None]), atol=2e-5
    )
    assert not np.allclose(plain, turned, atol=1e-3)


def test_items_are_matched_by_who_they_are() -> None:
    """The refit knows the items in another order, and some that the last one did not."""
    last, refit = _fit(0), _fit(1)
    order = np.random.default_rng(0).permutation(len(refit.items))
    shuffled = refit._replace(items=refit.items[order])
    kept = order < 90
    same = alignment.aligned(shuffled, last, shared=(np.flatnonzero(kept), order[kept]))
    wanted = alignment.aligned(refit, last)
    assert np.median(np.abs(same.users - wanted.users)) < 0.02


def test_an_older_history_gives_vectors_that_a_bandit_can_go_on_with() -> None:
    past, _ = halves()
    last = als_implicit.fit(past, factors=6, confidence=5.0, regularization=10.0, iterations=40)
    grown = als_implicit.fit(
        tastes(), factors=6, confidence=5.0, regularization=10.0, iterations=40, seed=9
    )
    assert np.median(_cosines(alignment.aligned(grown, last), last)) > 0.9
    assert np.median(np.abs(_cosines(grown, last))) < 0.8


def test_other_numbers_of_factors_are_refused() -> None:
    with pytest.raises(ValueError, match="same factors, not 6 and 4"):
        alignment.aligned(
            *(Factors.make(np.zeros((2, k)), np.zeros((3, k)), kind=0) for k in (6, 4))
        )
