"""The log's tables in partitions: made ahead of what is appended, and cut off at their beginning.

A partition holds a range of positions. PostgreSQL gives a row its position when it is appended, so
a row always has a place, whatever any clock, id or backdated event says, and what is appended goes
into the small indexes of one partition, however long the log is. Names tell the bounds:
``decisions_1200000`` holds positions from 1,200,000 up to where the next one begins. The last is
open-ended, so that nothing is refused if nobody should make another in time, and it is empty if
somebody does.

A partition takes twice as many rows as came before it was needed, within `ROWS`: a long log has few
partitions, which looking up an id has to go through, and a short one can be dropped in small parts.
"""

import itertools
from typing import NamedTuple

from psycopg import sql
from sqlalchemy import Connection, Engine, text

ROWS = (100_000, 16_000_000)
"""The fewest and the most rows that a partition is made for."""
AHEAD = 0.1
"""The share of a partition that is left when the one after the next is made."""

UNIQUE = {"decisions": "id", "outcomes": "event_id"}
"""The tables, and what is unique in each partition of theirs."""

NAMES = text(
    "SELECT part.relname FROM pg_inherits JOIN pg_class AS part ON part.oid = inhrelid"
    " WHERE inhparent = to_regclass(:table)"
)

GIVEN = text(
    "SELECT coalesce(pg_sequence_last_value("
    "CAST(pg_get_serial_sequence(:table, 'position') AS regclass)), 0)"
)
"""The last position that was given to a row of a table."""

SKIP = text("SELECT setval(pg_get_serial_sequence(:table, 'position'), :position)")

PATIENCE = text("SET LOCAL lock_timeout = '1s'")
"""Nobody can use a table while one waits to change it, so one does not wait for long."""


class Partition(NamedTuple):
    """Part of a table of the log: positions from ``start`` up to before ``end``; None is open."""

    table: str
    start: int
    end: int | None

    @property
    def name(self) -> str:
        """The partition's own table."""
        return f"{self.table}_{self.start}"


def partitions(connection: Connection, table: str) -> list[Partition]:
    """Return the partitions of a table, oldest first; none before it has been divided."""
    names = connection.scalars(NAMES, {"table": table})
    starts = sorted(int(name.removeprefix(f"{table}_")) for name in names)
    return [Partition(table, *both) for both in itertools.zip_longest(starts, starts[1:])]


def given(connection: Connection, table: str) -> int:
    """Return the last position that was given to a row of a table."""
    return int(connection.scalar(GIVEN, {"table": table}) or 0)


def extend(engine: Engine, table: str) -> Partition | None:
    """Give the last partition an end and make one after it, if it is nearly needed; return that.

    Raises:
        sqlalchemy.exc.OperationalError: others kept the table busy; try again later.
    """
    with engine.connect() as connection:
        if not _nearly_needed(connection, table):
            return None
    with engine.begin() as connection:
        hold(connection, table)
        # Nobody appends now, and nobody else may have been quicker.
        if not _nearly_needed(connection, table):
            return None
        *_, before, last = partitions(connection, table)
        position = given(connection, table)
        end = max(last.start, position + 1) + _rows(connection, before)
        added = Partition(table, end, None)
        # If this comes late, what lies in the last partition is read once to see that it fits.
        _do(connection, "ALTER TABLE {} DETACH PARTITION {}", table, last.name)
        fits = sql.SQL("FOR VALUES FROM ({}) TO ({})").format(last.start, end)
        _do(connection, "ALTER TABLE {} ATTACH PARTITION {} {}", table, last.name, fits)
        rest = sql.SQL("FOR VALUES FROM ({}) TO (MAXVALUE)").format(end)
        _do(connection, "CREATE TABLE {} PARTITION OF {} {}", added.name, table, rest)
        _do(connection, "ALTER TABLE {} ADD UNIQUE ({})", added.name, UNIQUE[table])
        return added


def _nearly_needed(connection: Connection, table: str) -> bool:
    found = partitions(connection, table)
    if not found:
        return False
    *_, before, last = found
    left = last.start - given(connection, table)
    return left < AHEAD * (last.start - before.start)


def _rows(connection: Connection, before: Partition) -> int:
    """Return for how many rows to make a partition: twice those that have come since ``before``."""
    newest = "SELECT max(position) FROM {} WHERE position >= :start"
    named = sql.SQL(newest).format(sql.Identifier(before.table)).as_string(None)
    last = connection.scalar(text(named), {"start": before.start})
    fewest, most = ROWS
    return min(max(2 * ((last or 0) - before.start), fewest), most)


def finish(connection: Connection, part: Partition) -> None:
    """Have further rows go into the next partition, whatever room is left in this one.

    Positions that are skipped are missing from the log, which only goes by their order. The
    transaction has to hold the log's lock.
    """
    assert part.end is not None
    if part.start <= given(connection, part.table) < part.end - 1:
        connection.execute(SKIP, {"table": part.table, "position": part.end - 1})


def drop(connection: Connection, part: Partition) -> None:
    """Drop a partition with all its rows; raises as `extend` does."""
    hold(connection, part.table)
    _do(connection, "DROP TABLE {}", part.name)


def hold(connection: Connection, table: str) -> None:
    """Keep everybody from a table until the end of the transaction; raises as `extend` does."""
    connection.execute(PATIENCE)
    _do(connection, "LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", table)


def _do(connection: Connection, statement: str, *parts: str | sql.Composed) -> None:
    """Execute a statement with the names of tables, or other parts of it, in their places."""
    named = [sql.Identifier(part) if isinstance(part, str) else part for part in parts]
    connection.execute(text(sql.SQL(statement).format(*named).as_string(None)))
