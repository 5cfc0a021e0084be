"""Decisions that are in PostgreSQL, and not in the log yet.

A row of the log costs PostgreSQL several times what it costs to keep the decision: it has indexes,
of which that of units is all over the place. So the decisions of a file (`service.offers`) are kept
as they were packed, a chunk in a row of ``pending_decisions``, with their run's progress. When the
offers are there the command enters them in the log, oldest first, each chunk in one transaction.
Where it was stopped the learner's process does so, `Enterer`. Outcomes may come before: they wait
for their decisions, as for those that a host has not carried up yet.
"""

import threading

import structlog
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from service import columnar, queries

LOOK_SECONDS = 1.0
log = structlog.get_logger()


def keep(connection: Connection, run: int, decisions: columnar.Packed) -> None:
    """Keep a run's decisions, which are new."""
    chunk = {"run": run, "rows": len(decisions.arm) // 2, "packed": columnar.encode(decisions)}
    connection.execute(queries.KEEP_PENDING, chunk)


def waiting(engine: Engine, run: int) -> int:
    """Return how many decisions of a run have not been entered in the log."""
    with engine.connect() as connection:
        return connection.scalar(queries.PENDING_ROWS, {"run": run}) or 0


def enter(engine: Engine) -> bool:
    """Enter the oldest chunk of all in the log; return whether there was any.

    What is entered is on PostgreSQL's disk already, so nobody waits for that a second time.
    """
    with engine.begin() as connection:
        connection.execute(queries.WITHOUT_DISK)
        connection.execute(queries.LOCK_LOG)
        packed = queries.take_pending(connection)
        if packed is None:
            return False
        stream = columnar.copy_stream(columnar.decode(packed))
        queries.copy(connection, queries.COPY_DECISIONS, stream)
        connection.execute(select(func.pg_notify("barter", "log")))
    return True


class Enterer:
    """A thread of the learner's process: it enters in the log what no command enters."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def run(self, stop: threading.Event) -> None:
        """Go on until stopped; what fails is tried again a second later."""
        while not stop.wait(LOOK_SECONDS):
            try:
                while self._due() and not stop.is_set():
                    enter(self._engine)
            except SQLAlchemyError as error:
                log.warning("decisions_not_entered", error=type(error).__name__)
            except Exception:
                log.exception("decisions_not_entered")

    def _due(self) -> bool:
        with self._engine.connect() as connection:
            return bool(connection.scalar(queries.PENDING_DUE))
