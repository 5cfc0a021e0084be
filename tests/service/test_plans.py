"""What PostgreSQL does for hot paths and pages on a log that has grown: it never reads it whole.

The statements are those that the code really executes, with their values: they are recorded while
it learns, carries, settles and shows pages, and explained afterwards.
"""

import datetime as dt
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import orjson
import pytest
from flask import Flask
from sqlalchemy import Engine, event, select, text

from service import campaigns, db, history, partitions, queries, upkeep
from service.config import Config
from service.learner import Learner
from service.messages import DecisionReply
from service.models import Campaign, Decision
from tests.loop import Loop, definition, running
from tests.service.test_console import Browser

LOG = re.compile(r"(decisions|outcomes|rewards)(_\d+)?$")
SMALL = 1000
NOW = dt.datetime(2026, 11, 30, tzinfo=dt.UTC)
"""Rows of a table that is as well read whole."""
ARMS = [
    {"key": "none", "name": "None", "offer": {"kind": "none"}},
    {"key": "ten", "name": "0.10", "offer": {"kind": "amount", "amount_minor": 10}},
    {"key": "twenty", "name": "0.20", "offer": {"kind": "amount", "amount_minor": 20}},
]
FILL = """
INSERT INTO decisions (id, campaign_id, revision, snapshot, unit, segment, mask, packed_simplex,
    arm,
    propensity, reason, why, decided_at, expires_at)
SELECT gen_random_uuid(), :campaign + n % 50, 1, 0, substr(sha256(n::text::bytea), 1, 16), n % 2, 7,
    float8send(.5) || float8send(.3) || float8send(.2), n % 3, .3, 'policy',
    '{"masked":{}}', now(), now() + interval '1 hour'
FROM generate_series(1, 10000) AS n;
INSERT INTO outcomes (event_id, campaign_id, decision_id, kind, revenue_minor, occurred_at,
    received_at)
SELECT id::text, campaign_id, id, 'purchased', 3000, decided_at, decided_at
FROM decisions WHERE position > :since;
"""
REWARDS = """
INSERT INTO rewards (decision_id, campaign_id, conversions, revenue_minor, discount_minor,
    profit_minor) SELECT decision_id, campaign_id, 1, 3000, 300, 900 FROM outcomes
"""
LEARNT = """
INSERT INTO snapshots (campaign_id, version, revision, state, digest, decision_position,
    outcome_position)
SELECT c.id, 100, 1, s.state, s.digest, (SELECT max(position) FROM decisions), (SELECT max(position)
FROM outcomes) FROM campaigns AS c, snapshots AS s WHERE s.version = 1
"""
CAMPAIGNS = """
INSERT INTO campaigns (key, state, definition, seed)
SELECT 'other-' || n, 'running', jsonb_set(definition, '{key}', to_jsonb('other-' || n)), seed
FROM campaigns, generate_series(1, 49) AS n;
INSERT INTO campaign_revisions (campaign_id, revision, definition, author)
SELECT id, 1, definition, 'test' FROM campaigns ON CONFLICT DO NOTHING;
"""


class Asked(NamedTuple):
    """A statement as the driver was given it, and what asked for it."""

    by: str
    statement: str
    values: Any


class Record:
    """The statements about the log that engines have executed."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.by = ""

    def listen(self, engine: Engine) -> None:
        event.listen(engine, "before_cursor_execute", self._note)

    @contextmanager
    def of(self, by: str) -> Iterator[None]:
        self.by, before = by, len(self.asked)
        yield
        self.by = ""
        assert len(self.asked) > before, f"{by} asked the log nothing"

    def _note(self, _: Any, __: Any, statement: str, values: Any, *___: Any) -> None:
        verb = statement.lstrip().split(maxsplit=1)[0].upper()
        about = re.search(r"\b(decisions|outcomes|rewards)\b", statement)
        if self.by and about and verb in ("SELECT", "INSERT", "WITH", "UPDATE", "DELETE"):
            self.asked.append(Asked(self.by, statement, values))


@pytest.fixture
def grown(config: Config, engine: Engine) -> Iterator[Loop]:
    """A host with 50 campaigns and a log of 20,000 decisions in two partitions."""
    with running(config, engine) as loop:
        campaign = loop.launch(budget_minor=10**9, arms=ARMS)
        loop.shop(20)
        loop.carry()
        loop.learn(campaign)
        with engine.begin() as connection:
            for statement in CAMPAIGNS.split(";")[:-1]:
                connection.execute(text(statement))
            for since in (0, 100_000):
                for statement in FILL.split(";")[:-1]:
                    values = {"campaign": campaign, "since": since}
                    connection.execute(text(statement).bindparams(
                        **{name: values[name] for name in values if f":{name}" in statement}
                    ))  # fmt: skip
                for table in partitions.UNIQUE:
                    first = partitions.partitions(connection, table)[0]
                    partitions.finish(connection, first)
            connection.execute(text(REWARDS + " ON CONFLICT DO NOTHING"))
            connection.execute(text(LEARNT))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ANALYZE"))
        loop.carry()
        yield loop


def scans(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the nodes of a plan that read a table or an index."""
    if "Relation Name" in node or "Index Name" in node:
        yield node
    for below in node.get("Plans", ()):
        yield from scans(below)


def explained(
    engine: Engine, asked: list[Asked], *, apart: float = 1.1
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (who asked, a scan of its plan).

    ``apart`` is what rows here and there cost beside rows in a row: little more on a disk without
    a head, or in memory.
    """
    with engine.connect() as connection:
        connection.execute(text(f"SET random_page_cost = {apart}"))
        for one in asked:
            found = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {one.statement}", one.values)
            for scan in scans(found.scalar_one()[0]["Plan"]):
                yield one.by, scan


def rows_of(engine: Engine) -> dict[str, float]:
    """Return how many rows each table has."""
    with engine.connect() as connection:
        return dict(connection.execute(text("SELECT relname, reltuples FROM pg_class")).all())


def reads_whole(scan: dict[str, Any], sizes: dict[str, float]) -> bool:
    """Tell whether a table of the log that is not small is read from its beginning."""
    table = scan.get("Relation Name", "")
    return scan["Node Type"] == "Seq Scan" and bool(LOG.match(table)) and sizes[table] > SMALL


def shown(
    app: Flask, record: Record, campaign: Campaign, made: list[DecisionReply], unit: bytes
) -> None:
    """Open every page that shows the log."""
    record.listen(app.extensions["barter.engine"])
    browser = Browser(app).log_in("admin")
    key = campaign.key
    log, one = f"/campaigns/{key}/decisions", f"/decisions/{made[0].decision_id}"
    every = ("/decisions", "/decisions?reason=killed", f"/decisions?campaign={key}", one)
    of_one = (log, f"{log}?arm=ten", f"{log}?reason=killed", f"/campaigns/{key}")
    for page in ("/campaigns", f"/customers/{unit.hex()}", *every, *of_one):
        with record.of(page):
            assert browser.client.get(page).status_code == 200, page


def hot(loop: Loop, record: Record, campaign: int) -> list[DecisionReply]:
    """Carry, learn and settle."""
    made = loop.shop(20)
    again = loop.outcome(made[0])
    assert again.accepted == 1
    with record.of("carrier"):
        loop.carry()
    with record.of("learner"):
        Learner(loop.engine, backend="numpy").step()
    loop.outcome(made[1], kind="returned", revenue_minor=100)
    loop.carry()
    with record.of("learner, of what was learnt"):
        loop.learn(campaign)
    with record.of("settling"):
        later = dt.datetime.now(dt.UTC) + dt.timedelta(days=100)
        upkeep.settle(loop.engine, campaign, now=later)
    with record.of("lists"), loop.engine.connect() as connection:
        connection.execute(queries.decisions_there(), {"ids": f"{{{made[0].decision_id}}}"})
    return made


def test_no_hot_path_and_no_page_reads_the_log_whole(
    grown: Loop, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that it is few of all that there are.
    monkeypatch.setattr(upkeep, "SETTLE_ROWS", 100)
    monkeypatch.setattr(history, "LOOKED", 100)
    record = Record()
    record.listen(grown.engine)
    with db.transaction(grown.engine) as session:
        campaign = campaigns.get(session, definition().key)
        unit = session.scalars(select(Decision.unit).limit(1)).one()
        made = hot(grown, record, campaign.id)
        shown(app, record, campaign, made, unit)
        with record.of("a unit's decisions"):
            history.decisions(session, campaign, history.Filters(unit=unit))
    with grown.engine.connect() as connection:
        columns: dict[str, str] = dict(connection.execute(text(
            "SELECT indexname, regexp_replace(tablename, '_[0-9]+$', '') || ' '"
            " || substring(indexdef FROM '\\((.*)\\)') FROM pg_indexes"
        )).all())  # fmt: skip
    whole, used, sizes = set(), set(), rows_of(grown.engine)
    for by, scan in explained(grown.engine, record.asked):
        if reads_whole(scan, sizes):
            whole.add((by, scan["Relation Name"]))
        if "Index Name" in scan:
            used.add(columns[scan["Index Name"]])
    assert whole == set(), whole
    # An index that none of these needs costs every row that is appended.
    assert {one for one in columns.values() if LOG.match(one.split()[0])} - used == set()


QUIET = 60
"""Pages that are as well read: those of indexes, down to where a campaign's rows would be."""


@pytest.fixture
def lopsided(config: Config, engine: Engine) -> Iterator[tuple[Engine, Campaign]]:
    """All rows are of one campaign, as PostgreSQL knows; another has none and is given."""
    with running(config, engine) as loop:
        loop.launch()
        for key in ("quiet", "silent"):
            with db.transaction(engine) as session:
                quiet = campaigns.create(session, definition(key=key), actor="test")
                campaigns.transition(session, key, "launch", actor="test")
                session.flush()
                session.expunge(quiet)
        with engine.begin() as connection:
            for statement in FILL.replace(" + n % 50", "").split(";")[:-1]:
                values = {"campaign": loop.live.id, "since": 0}
                connection.execute(text(statement).bindparams(
                    **{name: values[name] for name in values if f":{name}" in statement}
                ))  # fmt: skip
            connection.execute(text(LEARNT.replace("c.id, 100", "c.id, 1").replace(
                "WHERE s.version = 1", f"WHERE c.id = {loop.live.id}")))  # fmt: skip
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
        yield engine, quiet


def test_a_campaign_without_rows_costs_nothing_beside_one_that_has_all(
    lopsided: tuple[Engine, Campaign], app: Flask
) -> None:
    """Read is what is read, not what a plan says: an index on positions alone is one, too."""
    engine, quiet = lopsided
    record = Record()
    record.listen(engine)
    with record.of("the learner's look"), engine.connect() as connection:
        connection.execute(queries.campaigns_with_news())
    with record.of("learning"), engine.connect() as connection:
        connection.execute(queries.decisions_after(quiet.id, 0, None, 1000))
        connection.execute(queries.decisions_after(quiet.id, 0, 10**12, 1000))
        connection.execute(queries.outcomes_after(quiet.id, 0, None, 1000))
        connection.execute(queries.randomised_before(quiet.id, 10**9, ("policy",), 1000))
        connection.execute(queries.randomised_count(quiet.id, 0, 10**9, ("policy",), 1000))
        connection.execute(queries.reservations_between(quiet.id, 0, 10**9, learnt=0, limit=1000))
    record.listen(app.extensions["barter.engine"])
    browser = Browser(app).log_in("admin")
    every = "decisions", "decisions?reason=killed", "decisions?arm=ten", ""
    for page in ("/decisions?campaign=quiet", *(f"/campaigns/silent/{one}" for one in every)):
        with record.of(page):
            assert browser.client.get(page.rstrip("/")).status_code == 200, page
    with record.of("deleting a draft"), db.transaction(engine) as session:
        campaigns.create(session, definition(key="draft"), actor="test")
        campaigns.delete(session, "draft", actor="test")
    dear = {}
    with engine.connect() as connection:
        for one in record.asked:
            if not one.statement.lstrip().startswith(("SELECT", "WITH")):
                continue
            explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {one.statement}"
            plan = connection.exec_driver_sql(explain, one.values).scalar_one()[0]["Plan"]
            pages = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
            if pages > QUIET:
                dear[one.by] = pages
    assert dear == {}


def test_hundreds_of_ids_are_found_by_their_index(lopsided: tuple[Engine, Campaign]) -> None:
    """To PostgreSQL it looks cheaper to read a whole partition, again and again, while it grows."""
    engine, quiet = lopsided
    record = Record()
    record.listen(engine)
    events = [{"event_id": f"e{n}", "kind": "clicked", "campaign_id": quiet.id} for n in range(300)]
    with engine.connect() as connection:
        some = connection.execute(select(Decision.id, Decision.campaign_id).limit(300)).all()
        ids = {"ids": f"{{{','.join(str(row.id) for row in some)}}}"}
        told = [event | {"decision_id": row.id, "revenue_minor": 0, "occurred_at": NOW,
                         "received_at": NOW}
                for event, row in zip(events, some, strict=True)]  # fmt: skip
        with record.of("what is known"):
            assert len(connection.execute(queries.decisions_there(), ids).all()) == 300
        with record.of("outcomes"):
            assert connection.scalar(queries.outcomes_of(), ids | {"until": 10**12})
        with record.of("rewards"):
            connection.execute(queries.rewards_of(), ids)
        with record.of("what was learnt"):
            query = queries.decisions_told_of(some[0].campaign_id, 0, 300, 10**12)
            assert len(connection.execute(query).all()) == 300
        with record.of("new outcomes"):
            rows = orjson.dumps(told).decode()
            assert connection.execute(queries.INSERT_OUTCOMES, {"rows": rows}).rowcount == 300
        connection.rollback()
    # What PostgreSQL thinks if nobody tells it about the disk.
    sizes, found = rows_of(engine), explained(engine, record.asked, apart=4.0)
    assert [by for by, scan in found if reads_whole(scan, sizes)] == []
