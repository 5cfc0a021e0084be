"""Histories: both ways of reading them, and what is held back."""

import numpy as np
import pytest

from bandits.recommender import interactions as history
from tests.bandits.recommender.worlds import dense, tastes


def test_both_ways_of_reading_say_the_same() -> None:
    events = tastes()
    table = dense(events)
    for rows, wanted in ((history.by_user(events), table), (history.by_item(events), table.T)):
        found = np.zeros_like(wanted)
        for number in range(len(wanted)):
            assert (np.diff(rows.row(number)) > 0).all()
            found[number, rows.row(number)] = rows.value[
                rows.start[number] : rows.start[number + 1]
            ]
        np.testing.assert_array_equal(found, wanted)


def test_pairs_that_come_twice_are_added_up() -> None:
    rows = history.by_user(history.interactions([0, 0, 1], [1, 1, 0], [2.0, 3.0, 1.0]))
    assert rows.column.tolist() == [1, 0]
    assert rows.value.tolist() == [5.0, 1.0]


def test_the_future_is_later_than_the_past() -> None:
    past, future = history.split_by_time(tastes(), share=0.2)
    assert past.at.max() < future.at.min()
    assert len(future.user) == len(tastes().user) // 5
    assert len(past.user) + len(future.user) == len(tastes().user)


def test_folds_hold_every_event_back_once() -> None:
    events = tastes()
    held = np.concatenate([fold.at for _, fold in history.folds(events, count=5, seed=0)])
    assert np.sort(held).tolist() == np.arange(len(events.at)).tolist()


@pytest.mark.parametrize(
    ("user", "item", "value", "users", "words"),
    [
        ([0, 1], [0], None, None, "equally long"),
        ([0, 5], [0, 1], None, 5, "user must lie between 0 and 4"),
        ([-1], [0], None, None, "user must lie"),
        ([0], [0.5], None, None, "item must be whole numbers"),
        ([0], [0], [0.0], None, "greater than 0"),
        ([0], [0], [np.nan], None, "finite"),
    ],
)
def test_bad_events_are_named(
    user: list[int], item: list[int], value: list[float] | None, users: int | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        history.interactions(user, item, value, users=users)
    with pytest.raises(ValueError, match="share"):
        history.split_by_time(tastes(), share=1.0)
