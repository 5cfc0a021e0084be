"""What of the log is kept for how long, and what must have happened before any of it may go.

The log goes in whole partitions (`service.partitions`), oldest first, never row by row. What had
been learnt stays: no snapshot changes. What can no longer be recounted is told: a campaign knows up
to which position its decisions are gone, the audit log knows when they went.

A partition of decisions may go when all of them are older than the log is kept, and attribution
windows of their campaigns are over; when all campaigns have learnt from them and from what is known
of them, rivals too; and when what they reserved of budgets has been settled. Outcomes go once no
decision that is still there has any in the partition: a decision is worth what all of its outcomes
add up to, so they must be there as long as it is.
"""

import datetime as dt
import threading

import structlog
from sqlalchemy import Connection, Engine, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError

from service import partitions, queries
from service.models import AuditEntry
from service.partitions import Partition

STEP_SECONDS = 60.0
PARTS = 4
"""How many partitions the time that the log is kept is divided into, at least."""
log = structlog.get_logger()

FIRST = {
    "decisions": text(
        "SELECT decided_at FROM decisions WHERE position >= :start AND position < :end"
        " ORDER BY position LIMIT 1"
    ),
    "outcomes": text(
        "SELECT received_at FROM outcomes WHERE position >= :start AND position < :end"
        " ORDER BY position LIMIT 1"
    ),
}
"""When the first row of a partition was made; none if it is empty."""

LAST = text(
    "SELECT decided_at FROM decisions WHERE position >= :start AND position < :end"
    " ORDER BY position DESC LIMIT 1"
)
NEWEST = text("SELECT max(decided_at) FROM decisions WHERE position >= :start AND position < :end")
"""The last is about the newest; this one reads the whole partition, to know."""

WINDOW = text("""
    SELECT max((c.definition->>'attribution_seconds')::bigint) FROM campaigns AS c
    WHERE EXISTS (SELECT FROM decisions AS d WHERE d.campaign_id = c.id
        AND d.position >= :start AND d.position < :end)
""")
"""The longest attribution window, in seconds, of campaigns that have decisions in a partition."""

NEEDED = text("""
    WITH place AS (
        SELECT c.id, c.state, c.definition->>'budget_minor' IS NOT NULL AS budgeted,
            coalesce(s.decision_position, 0) AS decision, coalesce(s.outcome_position, 0) AS outcome
        FROM campaigns AS c LEFT JOIN LATERAL (
            SELECT decision_position, outcome_position FROM snapshots
            WHERE campaign_id = c.id ORDER BY version DESC LIMIT 1
        ) AS s ON true
        WHERE c.state <> 'draft'
    )
    SELECT 'not learnt from yet' WHERE EXISTS (
        SELECT FROM place JOIN decisions AS d ON d.campaign_id = place.id
            AND d.position > place.decision AND d.position >= :start AND d.position < :end)
    UNION ALL SELECT 'told of by news' WHERE EXISTS (
        SELECT FROM place JOIN outcomes AS o ON o.campaign_id = place.id
            AND o.position > place.outcome
        JOIN decisions AS d ON d.id = o.decision_id AND d.position >= :start AND d.position < :end)
    UNION ALL SELECT 'not learnt from by a rival yet' WHERE EXISTS (
        SELECT FROM place JOIN rivals AS r ON r.campaign_id = place.id AND place.state <> 'ended'
        JOIN decisions AS d ON d.campaign_id = place.id
            AND d.position > r.decision_position AND d.position >= :start AND d.position < :end)
    UNION ALL SELECT 'not settled yet' WHERE EXISTS (
        SELECT FROM place LEFT JOIN budgets AS b ON b.campaign_id = place.id
        JOIN decisions AS d ON d.campaign_id = place.id AND d.reserved_minor > 0
            AND d.position > coalesce(b.settled_position, 0)
            AND d.position >= :start AND d.position < :end
        WHERE place.budgeted)
    LIMIT 1
""")
"""What a partition of decisions is still needed for, if anything."""

NOTE_DROPPED = text("""
    UPDATE campaigns SET dropped_position = :end - 1
    WHERE id IN (SELECT campaign_id FROM decisions WHERE position >= :start AND position < :end)
""")

DROP_REWARDS = text("""
    DELETE FROM rewards USING decisions AS d
    WHERE d.id = rewards.decision_id AND d.position >= :start AND d.position < :end
""")

TOLD_OF = text("""
    SELECT EXISTS (SELECT FROM outcomes AS o JOIN decisions AS d ON d.id = o.decision_id
        WHERE o.position >= :start AND o.position < :end)
""")
"""Whether a partition of outcomes has any of a decision that is still there."""


def shorten(engine: Engine, keep: dt.timedelta, *, now: dt.datetime | None = None) -> list[str]:
    """Drop the oldest partitions if they are no longer kept; return their names.

    One of decisions and one of outcomes at most. Partitions that were begun a quarter of that time
    ago are finished, so that a shop with few decisions does not keep the first for ever.

    Raises:
        sqlalchemy.exc.OperationalError: others kept a table busy; nothing of it was dropped.
    """
    moment = now or dt.datetime.now(dt.UTC)
    for table in partitions.UNIQUE:
        _finish(engine, table, keep / PARTS, moment)
    found = (_drop_decisions(engine, keep, moment), _drop_outcomes(engine))
    return [part.name for part in found if part is not None]


def _finish(engine: Engine, table: str, after: dt.timedelta, now: dt.datetime) -> None:
    with engine.begin() as connection:
        position = partitions.given(connection, table)
        for part in partitions.partitions(connection, table):
            if part.end is not None and part.start <= position < part.end - 1:
                first = connection.scalar(FIRST[table], _bounds(part))
                if first is not None and now - first > after:
                    connection.execute(queries.LOCK_LOG)
                    partitions.finish(connection, part)


def _drop_decisions(engine: Engine, keep: dt.timedelta, now: dt.datetime) -> Partition | None:
    with engine.begin() as connection:
        part = _oldest(connection, "decisions")
        if part is None or not _old(connection, part, keep, now):
            return None
        bounds = _bounds(part)
        if needed := connection.scalar(NEEDED, bounds):
            log.warning("log_not_dropped", partition=part.name, because=needed)
            return None
        connection.execute(NOTE_DROPPED, bounds)
        connection.execute(DROP_REWARDS, bounds)
        _drop(connection, part)
        return part


def _old(connection: Connection, part: Partition, keep: dt.timedelta, now: dt.datetime) -> bool:
    """Tell whether all decisions of a partition are so old that they are no longer kept."""
    bounds = _bounds(part)
    last = connection.scalar(LAST, bounds)
    if last is None:
        return True
    if last > now - keep:
        return False
    window = dt.timedelta(seconds=connection.scalar(WINDOW, bounds) or 0)
    newest: dt.datetime | None = connection.scalar(NEWEST, bounds)
    return newest is None or newest <= now - max(keep, window)


def _drop_outcomes(engine: Engine) -> Partition | None:
    with engine.begin() as connection:
        decisions = partitions.partitions(connection, "decisions")
        part = _oldest(connection, "outcomes")
        # Before any decision has gone, all outcomes are of decisions that are there.
        if part is None or decisions[0].start == 0:
            return None
        if connection.scalar(TOLD_OF, _bounds(part)):
            return None
        _drop(connection, part)
        return part


def _oldest(connection: Connection, table: str) -> Partition | None:
    """Return the oldest partition of a table, unless rows may still come into it."""
    part = next(iter(partitions.partitions(connection, table)), None)
    if part is None or part.end is None:
        return None
    return part if partitions.given(connection, table) >= part.end - 1 else None


def _drop(connection: Connection, part: Partition) -> None:
    detail = {"from": part.start, "to": part.end}
    connection.execute(
        insert(AuditEntry).values(
            actor="clock", action="log.drop", subject=f"log:{part.table}", detail=detail
        )
    )
    partitions.drop(connection, part)


def _bounds(part: Partition) -> dict[str, object]:
    return {"start": part.start, "end": part.end}


class Keeper:
    """A thread of the learner's process: it makes partitions ahead, and drops what is not kept.

    keep: how long decisions are kept at least; None keeps them for ever.
    """

    def __init__(self, engine: Engine, *, keep: dt.timedelta | None) -> None:
        self._engine, self._keep = engine, keep

    def run(self, stop: threading.Event) -> None:
        """Go on until stopped; what fails is tried again a minute later."""
        while True:
            try:
                self.step()
            except SQLAlchemyError as error:
                log.warning("partitions_wait", error=type(error).__name__)
            except Exception:
                log.exception("partitions_wait")
            if stop.wait(STEP_SECONDS):
                return

    def step(self) -> None:
        """Make the partitions that are nearly needed, and drop the oldest ones."""
        for table in partitions.UNIQUE:
            if (added := partitions.extend(self._engine, table)) is not None:
                log.info("partition_added", partition=added.name)
        if self._keep is not None:
            for name in shorten(self._engine, self._keep):
                log.info("partition_dropped", partition=name)
