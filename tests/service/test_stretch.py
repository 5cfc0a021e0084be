"""The log as columns says what its rows say."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, select

from service import db, queries
from service.config import Config
from service.credits import credits_of
from service.decide import RANDOMISED
from service.models import Campaign, Decision
from service.packed import microseconds
from service.stretch import Stretch, read
from tests.loop import DEFINITION, Loop, definition, running

FEATURES = [
    {"key": "recency_days", "name": "Recency", "kind": "number", "default": 0},
    {"key": "loyal", "name": "Loyal", "kind": "boolean"},
]


@pytest.fixture
def loop(config: Config, engine: Engine) -> Iterator[Loop]:
    with running(config, engine) as made:
        yield made


def stretch_of(loop: Loop, campaign: int, **changes: Any) -> Stretch:
    query = queries.decisions_after(campaign, 0, None, 1000)
    with loop.engine.connect() as connection:
        return read(connection, query, definition(**changes))


def test_columns_say_what_the_rows_say(loop: Loop) -> None:
    changes: dict[str, Any] = {"features": FEATURES, "holdout": 0.3, "sticky_seconds": 60}
    campaign = loop.launch(**changes)
    loop.shop(60)
    for _ in range(2):
        loop.decide(*(f"again-{n}" for n in range(20)))
    loop.carry()
    stretch = stretch_of(loop, campaign, **changes)
    with db.transaction(loop.engine) as session:
        rows = session.scalars(select(Decision).order_by(Decision.position)).all()
        assert {"holdout", "policy", "sticky"} == {row.reason for row in rows}
        assert stretch.ids == [row.id.bytes for row in rows]
        for name in ("position", "revision", "segment", "arm", "snapshot"):
            assert getattr(stretch, name).tolist() == [getattr(row, name) for row in rows]
        assert stretch.decided_at.tolist() == [microseconds(row.decided_at) for row in rows]
        drawn = [row for row in rows if row.reason in RANDOMISED]
        assert stretch.randomised.sum() == len(drawn)
        assert stretch.simplex[stretch.randomised].tolist() == [row.simplex for row in drawn]
        assert stretch.context[stretch.randomised].tolist() == [row.context for row in drawn]
        assert not stretch.simplex[~stretch.randomised].any()


def test_decisions_of_a_draft_with_other_arms_are_read_past(loop: Loop) -> None:
    arms = [*DEFINITION["arms"], DEFINITION["arms"][2] | {"key": "thirty", "name": "30 %"}]
    campaign = loop.launch()
    with db.transaction(loop.engine) as session:
        session.get_one(Campaign, campaign).state = "draft"
    loop.carry()
    loop.decide("early")
    loop.carry()
    stretch = stretch_of(loop, campaign, arms=arms)
    assert stretch.simplex.shape == (1, 4)
    assert stretch.randomised.tolist() == [False]


def test_nothing_is_read_of_an_empty_log(loop: Loop) -> None:
    campaign = loop.launch()
    stretch = stretch_of(loop, campaign)
    assert (len(stretch), stretch.ids, stretch.simplex.shape) == (0, [], (0, 3))
    with loop.engine.connect() as connection:
        assert len(credits_of(connection, campaign, stretch, 10).told) == 0


def test_stretches_are_put_together_in_order(loop: Loop) -> None:
    campaign = loop.launch()
    loop.shop(20)
    loop.carry()
    whole = stretch_of(loop, campaign)
    parts = whole.where(slice(None, 7)) + whole.where(slice(7, None))
    assert parts.ids == whole.ids
    assert np.array_equal(parts.simplex, whole.simplex)
