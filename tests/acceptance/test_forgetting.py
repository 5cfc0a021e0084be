"""Campaigns that forget: by the log's own times, so that states rebuild and decisions replay."""

import datetime as dt
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sqlalchemy import Engine

from bandits import artefact, forgetting
from service import campaigns, decide, queries
from service.config import Config
from service.db import transaction
from service.learner import Place, learn, rebuild
from service.messages import DecisionReply, DecisionRequest
from service.reports import build, estimates
from service.verify import verify
from tests.loop import Loop, definition, running

HOUR = dt.timedelta(hours=1)
START = dt.datetime(2026, 3, 1, 12, 30, tzinfo=dt.UTC)
FEATURES: list[dict[str, Any]] = [{"kind": "boolean", "key": "app", "name": "App"}]
HOURLY: dict[str, Any] = {"bucket_seconds": 3600}


@pytest.fixture
def loop(config: Config, engine: Engine) -> Iterator[Loop]:
    with running(config, engine) as made:
        yield made


def launch(loop: Loop, name: str, **options: Any) -> int:
    return loop.launch(
        objective="conversion", policy={"name": name, "options": HOURLY | options},
        features=FEATURES, segments=[],
    )  # fmt: skip


def serve(loop: Loop, at: dt.datetime, visits: int, *, best: str) -> list[DecisionReply]:
    """Send customers at a time, all of whom buy when they are given the best arm."""
    replies = []
    for _ in range(visits):
        unit = f"unit-{loop.random.random()}"
        wanted = DecisionRequest(campaign="spring", unit=unit)
        (reply,) = decide.decide(loop.runtime, [wanted], now=at)
        if reply.arm == best:
            loop.outcome(reply, occurred_at=at)
        replies.append(reply)
    return replies


def learnt(loop: Loop, campaign: int) -> Any:
    """Learn all there is; return the newest state, which is that of a rebuild."""
    loop.carry()
    loop.learn(campaign)
    loop.carry()
    with loop.engine.connect() as connection:
        row = connection.execute(queries.newest_snapshot(campaign)).one()
        place = Place(row.decision_position, row.outcome_position)
        again = rebuild(connection, campaign, place)
    assert row.digest == artefact.digest(loop.live.learnt) == artefact.digest(again)
    return again


def chances(loop: Loop) -> list[float]:
    found: list[float] = loop.live.simplex(0, 0b111, (0,)).tolist()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("thompson_beta", {"half_life": 0.5}),
        ("thompson_hierarchical", {"window": 2}),
        ("linear_thompson", {"half_life": 0.5}),
    ],
)
def test_a_campaign_that_forgets_follows_what_changes_and_replays(
    loop: Loop, name: str, options: dict[str, Any]
) -> None:
    campaign = launch(loop, name, **options)
    for hour in range(4):
        serve(loop, START + hour * HOUR, 60, best="twenty")
        learnt(loop, campaign)
    assert chances(loop)[2] > 0.8
    for hour in range(4, 8):
        serve(loop, START + hour * HOUR, 200, best="none")
        learnt(loop, campaign)
    assert chances(loop)[0] > 0.8
    found = verify(loop.engine, "spring", sample=60)
    assert found.holds
    assert found.replayed == 60


def test_time_passes_by_decisions_and_nothing_else(loop: Loop) -> None:
    campaign = launch(loop, "thompson_beta", window=1)
    serve(loop, START, 60, best="twenty")
    state = learnt(loop, campaign)
    assert forgetting.now(state) == START.timestamp() // 3600
    before = chances(loop)
    assert before[2] > 0.8
    serve(loop, START + 29 / 60 * HOUR, 1, best="none")
    learnt(loop, campaign)
    assert chances(loop)[2] > 0.8, "the same hour of the clock"
    serve(loop, START + HOUR / 2, 1, best="nothing")
    learnt(loop, campaign)
    assert chances(loop) == pytest.approx([1 / 3] * 3, abs=0.2)
    assert loop.live.learnt.trials.sum() == 1, "a ring of one bucket"


def test_what_is_late_or_taken_back_belongs_to_the_hour_of_its_decision(loop: Loop) -> None:
    campaign = launch(loop, "thompson_beta", window=2, buckets=3)
    early = [serve(loop, START + hour * HOUR, 20, best="nothing") for hour in range(3)]
    learnt(loop, campaign)
    for replies in early:
        loop.outcome(replies[0], occurred_at=START + 3 * HOUR)
    late = START + 3 * HOUR
    first, *_ = serve(loop, late, 20, best="nothing")
    state = learnt(loop, campaign)

    def by_hour(sums: Any) -> dict[int, int]:
        hours = sums.bucket - int(START.timestamp() // 3600)
        each = sums.conversions.sum(axis=(1, 2)).tolist()
        return dict(zip(hours.tolist(), each, strict=True))

    assert by_hour(state) == {1: 1, 2: 1, 3: 0}, "the first hour has left the ring"
    loop.outcome(early[0][0], kind="returned", occurred_at=late)
    loop.outcome(early[2][0], kind="returned", occurred_at=late)
    loop.outcome(first, occurred_at=late)
    assert by_hour(learnt(loop, campaign)) == {1: 1, 2: 0, 3: 1}


def test_other_pieces_and_backends_give_the_same_bits(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = launch(loop, "linear_thompson", half_life=1)
    monkeypatch.setattr("service.learner.CHUNK", 7)
    for hour in (0, 3, 1, 2):
        serve(loop, START + hour * HOUR, 15, best="ten")
    learnt(loop, campaign)
    serve(loop, START + 30 * HOUR, 1, best="ten")
    loop.carry()
    last = learn(loop.engine, campaign, backend="jax")
    assert last is not None
    with loop.engine.connect() as connection:
        assert last.digest == artefact.digest(rebuild(connection, campaign, last.place))
    assert verify(loop.engine, "spring", sample=61).holds


def test_reports_forget_nothing(loop: Loop) -> None:
    campaign = launch(loop, "thompson_beta", window=1)
    for hour in range(3):
        serve(loop, START + hour * HOUR, 30, best="ten")
    assert learnt(loop, campaign).trials.sum() == 30
    with transaction(loop.engine) as session:
        material = build.gather(session, "spring", START + 3 * HOUR)
        report = build.campaign_report(session, "spring", now=START + 3 * HOUR)
    assert material.belief.sums.trials.sum() == 90
    assert sum(arm.decisions for arm in report.arms) == 90
    plain = material.definition.served_by("thompson_beta")
    same = estimates.belief(material.drawn, material.reward, plain)
    np.testing.assert_array_equal(material.belief.best, same.best)
    np.testing.assert_array_equal(material.belief.own.mean, same.own.mean)
    assert any("forgets" in note for note in report.health.notes)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("thompson_beta", {"kept": 0.5, "window": 2}, "kept: .* not reset"),
        ("thompson_beta", {"bucket_seconds": 3600}, "name one of them"),
        ("thompson_beta", {"window": 2, "bucket_seconds": 1}, "from 60 to"),
        ("thompson_beta", {"window": 2, "bucket_seconds": "day"}, "whole number"),
        ("thompson_beta", {"window": 2.5}, "window: must be a whole number"),
        ("thompson_beta", {"half_life": 0}, "half_life: must be"),
        ("trees_thompson", {"half_life": 2}, "does not learn by counting alone"),
    ],
)
def test_a_wrong_option_of_forgetting_is_refused_by_name(
    name: str, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValidationError, match=told):
        definition(
            objective="conversion", policy={"name": name, "options": options}, features=FEATURES
        )


def test_what_buckets_mean_is_frozen_at_launch() -> None:
    def changed(**options: Any) -> list[str]:
        before, after = (
            definition(policy={"name": "thompson_gaussian", "options": chosen})
            for chosen in ({"half_life": 2, "buckets": 20, **HOURLY}, options)
        )
        return [one.field for one in campaigns.frozen(before, after, launched=True)]

    assert changed(half_life=3, buckets=20, **HOURLY) == []
    assert changed(half_life=2, buckets=20) == ["policy"]
    assert changed(half_life=2, buckets=21, **HOURLY) == ["policy"]
    assert changed() == ["policy"]
