"""The log in partitions: nothing is lost or doubled at bounds, and what goes is not needed."""

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
from alembic import command
from alembic.config import Config as Alembic
from sqlalchemy import Connection, Engine, func, select, text, update
from sqlalchemy.exc import OperationalError

from service import db, partitions, queries, retention
from service.config import Config
from service.models import AuditEntry, Campaign, Decision, Outcome, Reward, Snapshot
from service.partitions import Partition
from service.verify import verify
from tests.loop import Loop, running

DAY = dt.timedelta(days=1)
KEEP = 40 * DAY
ROWS = """
INSERT INTO decisions (id, campaign_id, revision, snapshot, unit, segment, mask, {0}, arm,
    propensity, reason, why, decided_at, expires_at)
SELECT gen_random_uuid(), 1, 1, 1, '\\x00', 0, 1, {1}, 0, 1, 'policy', '{{}}', now(), now()
FROM generate_series(1, 50);
INSERT INTO outcomes (event_id, campaign_id, decision_id, kind, revenue_minor, occurred_at,
    received_at) SELECT position::text, 1, id, 'purchased', 1, now(), now() FROM decisions
"""
ROWS, EARLIER = ROWS.format("packed_simplex", "float8send(1)"), ROWS.format("simplex", "'{1}'")
"""The same before simplexes were bytes."""


@pytest.fixture
def loop(config: Config, engine: Engine) -> Iterator[Loop]:
    with running(config, engine) as made:
        yield made


def parts(engine: Engine, table: str = "decisions") -> list[Partition]:
    with engine.connect() as connection:
        return partitions.partitions(connection, table)


def skip(engine: Engine, position: int, table: str = "decisions") -> None:
    """Have the next row be given the position after one."""
    with engine.begin() as connection:
        connection.execute(partitions.SKIP, {"table": table, "position": position})


def rows(connection: Connection) -> list[list[tuple[Any, ...]]]:
    """Return all decisions and all outcomes, in their order."""
    queries = (f"SELECT * FROM {table} ORDER BY position" for table in partitions.UNIQUE)
    return [[tuple(row) for row in connection.execute(text(query))] for query in queries]


def test_a_log_of_before_becomes_the_first_partition_and_back(empty_database_url: str) -> None:
    made = db.engine(empty_database_url)
    with made.connect() as connection:
        alembic = Alembic()
        alembic.set_main_option("script_location", "migrations")
        alembic.attributes["connection"] = connection
        command.upgrade(alembic, "0015")
        connection.execute(text(EARLIER))
        connection.commit()
        before = rows(connection)
        command.upgrade(alembic, "0016")
        assert rows(connection) == before
        connection.commit()
        assert parts(made) == [
            Partition("decisions", 0, 100_050),
            Partition("decisions", 100_050, None),
        ]
        connection.execute(text(EARLIER.split(";")[0]))
        connection.commit()
        both = rows(connection)
        assert [row[0] for row in both[0]] == list(range(1, 101))
        command.downgrade(alembic, "0015")
        assert rows(connection) == both
        connection.execute(text(EARLIER.split(";")[0]))
        assert connection.scalar(text("SELECT max(position) FROM decisions")) == 150
    made.dispose()


def test_partitions_are_made_ahead_while_empty(engine: Engine) -> None:
    assert partitions.extend(engine, "decisions") is None
    skip(engine, 89_000)
    assert partitions.extend(engine, "decisions") is None
    skip(engine, 91_000)
    with engine.begin() as connection:
        connection.execute(text(ROWS.split(";")[0]))
    assert partitions.extend(engine, "decisions") == Partition("decisions", 282_100, None)
    assert partitions.extend(engine, "decisions") is None
    assert [part.start for part in parts(engine)] == [0, 100_000, 282_100]


def test_rows_find_a_place_though_nobody_made_one(engine: Engine) -> None:
    skip(engine, 150_000)
    with engine.begin() as connection:
        connection.execute(text(ROWS))
        before = rows(connection)
    assert partitions.extend(engine, "decisions") == Partition("decisions", 450_151, None)
    with engine.connect() as connection:
        assert rows(connection) == before
        assert connection.scalar(text("SELECT count(*) FROM decisions_100000")) == 50


def test_a_busy_table_is_left_alone(engine: Engine) -> None:
    skip(engine, 95_000)
    with engine.connect() as reader:
        reader.execute(text("SELECT count(*) FROM decisions"))
        with pytest.raises(OperationalError, match="lock timeout"):
            partitions.extend(engine, "decisions")
    assert len(parts(engine)) == 2
    assert partitions.extend(engine, "decisions") is not None


def test_repeats_add_nothing_whatever_partition_the_first_is_in(loop: Loop) -> None:
    loop.launch()
    (reply,) = loop.decide("ann", request_id="one")
    loop.outcome(reply, event_id="bought")
    loop.decide(*(f"unit-{place}" for place in range(20)))
    loop.carry()
    with loop.engine.connect() as connection:
        before = rows(connection)
    for table in partitions.UNIQUE:
        skip(loop.engine, 100_000, table)
    # The same local log under another name: a backup that was restored.
    loop.runtime.spool.renew()
    loop.carrier._shipped = None
    loop.carry()
    with loop.engine.connect() as connection:
        assert rows(connection) == before
    (later,) = loop.decide("ben")
    loop.carry()
    with loop.engine.connect() as connection:
        place = select(Decision.position).where(Decision.id == later.decision_id)
        assert (connection.scalar(place) or 0) >= 100_000


def later(engine: Engine, start: int, days: int) -> None:
    """Have the decisions from a position on be made later than they were."""
    with engine.begin() as connection:
        moved = {"decided_at": Decision.decided_at + days * DAY}
        connection.execute(update(Decision).where(Decision.position >= start).values(**moved))


def test_what_is_no_longer_kept_goes_and_what_was_learnt_stays(loop: Loop) -> None:
    campaign = loop.launch()
    old = loop.shop(60)
    loop.outcome(old[0], event_id="last")
    loop.outcome(next(one for one in old if one.arm == "twenty"))
    loop.carry()
    loop.learn(campaign)
    now = dt.datetime.now(dt.UTC)
    # A quarter of the time after it was begun, a partition is finished.
    assert retention.shorten(loop.engine, KEEP, now=now + 9 * DAY) == []
    assert retention.shorten(loop.engine, KEEP, now=now + 11 * DAY) == []
    for table in partitions.UNIQUE:
        partitions.extend(loop.engine, table)
    young = loop.shop(40)
    bought = loop.outcome(young[0], revenue_minor=5000)
    assert bought.accepted == 1
    loop.carry()
    learnt = loop.learn(campaign)
    assert learnt is not None
    later(loop.engine, 100_000, 35)
    with loop.engine.connect() as connection:
        spent = connection.scalar(select(func.sum(Reward.discount_minor)))
    assert retention.shorten(loop.engine, KEEP, now=now + 39 * DAY) == []
    gone = retention.shorten(loop.engine, KEEP, now=now + 41 * DAY)
    assert gone == ["decisions_0", "outcomes_0"]
    assert retention.shorten(loop.engine, KEEP, now=now + 41 * DAY) == []

    with db.transaction(loop.engine) as session:
        assert set(session.scalars(select(Decision.id))) == {one.decision_id for one in young}
        kept = session.get_one(Campaign, campaign)
        assert kept.dropped_position == 99_999
        left = session.scalar(select(func.sum(Reward.discount_minor))) or 0
        assert spent is not None
        assert left < spent
        assert kept.discount_minor == spent
        newest = session.execute(queries.newest_snapshot(campaign)).one()
        assert newest.digest == learnt.digest
        deeds = session.scalars(select(AuditEntry.detail).where(AuditEntry.action == "log.drop"))
        assert list(deeds) == [{"from": 0, "to": 100_000}] * 2

    # A late return of what is gone changes nothing; one of what is there does.
    loop.outcome(old[0], event_id="late", kind="returned")
    loop.carry()
    unmoved = loop.learn(campaign)
    assert unmoved is not None
    assert unmoved.digest == learnt.digest
    loop.outcome(young[0], kind="returned", revenue_minor=5000)
    loop.carry()
    moved = loop.learn(campaign)
    assert moved is not None
    assert moved.digest != learnt.digest
    with db.transaction(loop.engine) as session:
        now_left = session.scalar(select(func.sum(Reward.discount_minor))) or 0
        total = session.get_one(Campaign, campaign).discount_minor
    assert total == spent - left + now_left
    found = verify(loop.engine, "spring", sample=40)
    assert (found.dropped, found.recounted, found.holds) == (99_999, False, True)
    assert (found.replayed, found.differing) == (40, ())


@pytest.mark.parametrize("until", ["told", "settled"])
def test_what_is_still_needed_stays(loop: Loop, until: str) -> None:
    budget = {"budget_minor": 10_000_000} if until == "settled" else {}
    arms = [
        {"key": "none", "name": "None", "offer": {"kind": "none"}},
        {"key": "five", "name": "5.00", "offer": {"kind": "amount", "amount_minor": 500}},
    ]
    campaign = loop.launch(arms=arms, **budget)
    replies = loop.decide(*(f"unit-{place}" for place in range(30)))
    loop.carry()
    now = dt.datetime.now(dt.UTC) + 100 * DAY
    assert retention.shorten(loop.engine, KEEP, now=now) == []
    if until == "told":
        assert retention.shorten(loop.engine, KEEP, now=now) == []  # not learnt from yet
        loop.learn(campaign)
        loop.outcome(replies[0])
        loop.carry()
        assert retention.shorten(loop.engine, KEEP, now=now) == []
    loop.learn(campaign)
    if until == "settled":
        from service.upkeep import settle

        assert retention.shorten(loop.engine, KEEP, now=now) == []
        settle(loop.engine, campaign, now=now)
    assert retention.shorten(loop.engine, KEEP, now=now) == [
        "decisions_0",
        *(["outcomes_0"] if until == "told" else []),
    ]


def test_outcomes_stay_as_long_as_their_decision(loop: Loop) -> None:
    campaign = loop.launch()
    loop.shop(10)
    loop.carry()
    with loop.engine.begin() as connection:
        partitions.finish(connection, partitions.partitions(connection, "decisions")[0])
    (young,) = loop.decide("young")
    loop.outcome(young, event_id="early")
    loop.carry()
    loop.learn(campaign)
    later(loop.engine, 100_000, 50)
    now = dt.datetime.now(dt.UTC) + 60 * DAY
    assert retention.shorten(loop.engine, KEEP, now=now) == ["decisions_0"]
    assert retention.shorten(loop.engine, KEEP, now=now) == []
    with loop.engine.connect() as connection:
        told = select(func.count()).where(Outcome.decision_id == young.decision_id)
        assert connection.scalar(told) == 1
        assert connection.scalar(select(func.count()).select_from(Snapshot))


def test_the_keeper_makes_partitions_and_drops_none_unless_told(loop: Loop) -> None:
    skip(loop.engine, 99_999)
    retention.Keeper(loop.engine, keep=None).step()
    assert [part.start for part in parts(loop.engine)] == [0, 100_000, 200_000]
    retention.Keeper(loop.engine, keep=KEEP).step()
    assert [part.start for part in parts(loop.engine)] == [100_000, 200_000]


def test_a_repeat_of_what_is_gone_is_told_and_is_no_difference(loop: Loop) -> None:
    campaign = loop.launch(sticky_seconds=90 * 86_400)
    loop.decide("ann")
    loop.carry()
    with loop.engine.begin() as connection:
        partitions.finish(connection, partitions.partitions(connection, "decisions")[0])
    (again,) = loop.decide("ann")
    assert again.reason == "sticky"
    loop.carry()
    loop.learn(campaign)
    later(loop.engine, 100_000, 50)
    now = dt.datetime.now(dt.UTC) + 60 * DAY
    assert retention.shorten(loop.engine, KEEP, now=now) == ["decisions_0"]
    found = verify(loop.engine, "spring", sample=10)
    assert (found.replayed, found.lost, found.holds) == (0, 1, True)
