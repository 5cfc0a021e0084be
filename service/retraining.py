"""Retraining: what a policy does not learn by counting is fitted to the log, now and then.

    enough new decisions → the newest rows of the log → the policy's `retrain`
    → the log counted afresh → the next snapshot

Between two retrainings the learner counts as for any other policy (`service.learner`). A campaign
is due when the decisions that were randomised and learnt since the last retraining are as many as
half of those that it was fitted to, and `FEWEST` at least; it is fitted to the newest `MOST`, as
the log has them up to the newest snapshot's place, starting from what was fitted before.

What was fitted is an input, as a definition is: nobody promises the same bits twice. It is stored
with nothing counted (the table ``retrainings``), and the sums of every snapshot after it are again
a pure function of it and the log, which `barter verify` counts afresh.

Nothing waits for it: decisions, outcomes and learning go on, and what was learnt meanwhile is
counted on top. Learners may be many: a lock of the session lets one retrain a campaign, and goes
with the process that held it. A retraining that was killed has changed nothing. One that fails (a
library is missing, numbers are not finite) says why in the log and in the report; the last good
snapshot serves on, and after `RETRY_SECONDS` it is tried again.
"""

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import structlog
from sqlalchemy import Connection, Engine, func, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from bandits import artefact
from bandits.types import Batch, Contexts, State
from service import learner, queries
from service.credits import batch_of, credits_of
from service.decide import RANDOMISED
from service.definition import CampaignDefinition
from service.learner import Backend, NotPublished, Place
from service.models import Retraining
from service.stretch import definition_of, read

FEWEST = 200
MOST = 100_000
RETRY_SECONDS = 300.0
LOOK_SECONDS = 1.0
WAIT_SECONDS = 0.05
log = structlog.get_logger()


class Retrained(NamedTuple):
    """A retraining that was done: its number, the snapshot it made, and the rows fitted to."""

    number: int
    version: int
    rows: int


class Task(NamedTuple):
    """What is to be retrained: a policy, its state to start from, and its place in the log."""

    campaign_id: int
    number: int
    started_at: dt.datetime
    definition: CampaignDefinition
    state: State
    place: Place


class Superseded(Exception):
    """The campaign went on to another policy, or another learner retrained it meanwhile."""


def retrain(engine: Engine, campaign_id: int, *, backend: Backend = "jax") -> Retrained | None:
    """Retrain a campaign's policy; ``None`` where that is not due, failed or another is at it.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database is away; nothing was changed.
    """
    with _alone(engine, campaign_id) as alone:
        task = _begin(engine, campaign_id) if alone else None
        if task is None:
            return None
        try:
            fitted, rows = _fit(engine, task, backend)
            return _take_over(engine, task, fitted, rows, backend)
        except SQLAlchemyError:
            raise
        except Exception as error:
            # Whatever the library that fits has met, the last good snapshot serves on.
            log.error("retraining_failed", campaign=campaign_id, exc_info=error)
            _fail(engine, task, error)
            return None


def due(connection: Connection, campaign_id: int) -> bool:
    """Tell whether a campaign has learnt enough since it was last retrained."""
    tried = connection.execute(queries.newest_retraining(campaign_id)).one_or_none()
    if tried is not None and not tried.fitted and tried.ago < dt.timedelta(seconds=RETRY_SECONDS):
        return False
    place = connection.execute(queries.retrained_at(campaign_id)).one_or_none()
    if place is None:
        return False
    enough = max(FEWEST, place.rows // 2)
    more = connection.scalar(
        queries.randomised_count(
            campaign_id, place.since, place.decision_position, RANDOMISED, enough
        )
    )
    return bool(more is not None and more >= enough)


@contextlib.contextmanager
def _alone(engine: Engine, campaign_id: int) -> Iterator[bool]:
    """Hold the lock of a campaign's retraining; give whether it was free.

    Outside of any transaction: fitting may take longer than one may sit idle.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        free = bool(connection.scalar(queries.TRY_RETRAINING, {"id": campaign_id}))
        try:
            yield free
        finally:
            if free:
                # Where the connection is gone, so is its lock.
                with contextlib.suppress(SQLAlchemyError):
                    connection.execute(queries.END_RETRAINING, {"id": campaign_id})


def _begin(engine: Engine, campaign_id: int) -> Task | None:
    """Put down that a retraining begins: one that kills its process is not begun again at once."""
    with _reading(engine).begin() as connection:
        if not due(connection, campaign_id):
            return None
        newest = connection.execute(queries.newest_snapshot(campaign_id)).one()
        live = learner.campaign_of(connection, campaign_id, newest)
        if live.policy.retrain is None:
            return None
        tried = connection.execute(queries.newest_retraining(campaign_id)).one_or_none()
        number = 1 if tried is None else tried.number + bool(tried.fitted)
        place = _place(newest)
        begun: dict[str, Any] = {
            "decision_position": place.decision,
            "outcome_position": place.outcome,
            "started_at": func.now(),
            "finished_at": None,
        }
        if tried is not None and not tried.fitted and tried.error is None:
            begun["error"] = "the learner was killed at it"
        statement = insert(Retraining).values(campaign_id=campaign_id, number=number, **begun)
        # An attempt that came to nothing gives its number to the next one.
        again = statement.on_conflict_do_update(
            index_elements=["campaign_id", "number"], set_=begun
        )
        started_at = connection.scalars(again.returning(Retraining.started_at)).one()
        state = learner.state_of(live, newest)
        return Task(campaign_id, number, started_at, live.served, state, place)


def _fit(engine: Engine, task: Task, backend: Backend) -> tuple[State, int]:
    """Return what the policy fits to the newest rows, with nothing counted, and how many rows."""
    with _reading(engine).begin() as connection:
        batch = _rows(connection, task)
    fit = task.definition.build_policy(backend).retrain
    assert fit is not None
    # A network that came to nothing would be rounded to integers without a word.
    with np.errstate(invalid="raise"):
        found = fit(task.state, batch, task.number)
    counted = type(task.state)(*(np.asarray(field) for field in found))
    # Sums are exact: taking back the rows that were counted leaves what was fitted.
    fitted = task.definition.build_policy().update(counted, batch._replace(sign=-batch.sign))
    for name, field in zip(fitted._fields, fitted, strict=True):
        if not np.all(np.isfinite(field)):
            raise NotPublished(f"{name}: not all numbers that were fitted are finite")
    return fitted, len(batch.arm)


def _rows(connection: Connection, task: Task) -> Batch:
    """Return the newest randomised decisions with what they earned up to the task's place."""
    parts: list[Batch] = []
    position, left = task.place.decision, MOST
    while left > 0:
        found = queries.randomised_before(
            task.campaign_id, position, RANDOMISED, min(left, learner.CHUNK)
        )
        rows = read(connection, found, task.definition)
        if not len(rows):
            break
        earned = credits_of(connection, task.campaign_id, rows, task.place.outcome)
        parts.insert(0, batch_of(task.definition, rows, earned))
        position, left = int(rows.position[0]) - 1, left - len(rows)
    return _joined(parts)


def _joined(parts: Sequence[Batch]) -> Batch:
    """Return several batches as one."""

    def join(fields: Sequence[Any]) -> Any:
        return None if fields[0] is None else np.concatenate(fields)

    contexts = zip(*(part.contexts for part in parts), strict=True)
    rest = zip(*(part[1:] for part in parts), strict=True)
    return Batch(Contexts(*map(join, contexts)), *map(join, rest))


def _take_over(engine: Engine, task: Task, fitted: State, rows: int, backend: Backend) -> Retrained:
    """Count the whole log afresh, and what was learnt meanwhile, and make that the next snapshot.

    Raises:
        Superseded: what was fitted is not wanted any more.
        NotPublished: it would serve something that is not a simplex.
    """
    data = artefact.to_bytes(fitted, policy=task.definition.policy.name)
    with _reading(engine).begin() as connection:
        newest = connection.execute(queries.newest_snapshot(task.campaign_id)).one()
        place = _place(newest)
        state = learner.rebuild(connection, task.campaign_id, place, fitted=data, backend=backend)
    while True:
        # A learner that was quicker by a hair has taken the version: then ours is the next one.
        with contextlib.suppress(IntegrityError), _reading(engine).begin() as connection:
            if connection.scalar(queries.TRY_LOCK, {"id": task.campaign_id}):
                version = _publish(connection, task, data, state, place, rows, backend)
                return Retrained(task.number, version, rows)
        time.sleep(WAIT_SECONDS)


def _publish(
    connection: Connection, task: Task, data: bytes, state: State, place: Place, rows: int,
    backend: Backend,
) -> int:  # fmt: skip
    """Take a recount up to where the newest snapshot is, and store it as the next one."""
    newest = connection.execute(queries.newest_snapshot(task.campaign_id)).one()
    tried = connection.execute(queries.newest_retraining(task.campaign_id)).one()
    live = learner.campaign_of(connection, task.campaign_id, newest)
    mine = (tried.number, tried.started_at) == (task.number, task.started_at)
    if not mine or live.served.policy.name != task.definition.policy.name:
        raise Superseded("the policy was changed or retrained by another meanwhile")
    while place != _place(newest):
        state, place = learner.advance(
            connection, live.id, live.served, state, place, _place(newest), backend=backend
        )
    recent = queries.randomised_before(live.id, place.decision, RANDOMISED, learner.CHECKED)
    ready = learner.check(live, state, read(connection, recent, live.served))
    _finish(connection, task, state=data, error=None, rows=rows)
    learner.publish(
        connection, ready, newest.version + 1, place,
        learnt_until=newest.learnt_until, retraining=task.number, fitted=data,
    )  # fmt: skip
    return int(newest.version) + 1


def _place(snapshot: Any) -> Place:
    return Place(snapshot.decision_position, snapshot.outcome_position)


def _fail(engine: Engine, task: Task, error: Exception) -> None:
    with engine.begin() as connection:
        _finish(connection, task, error=str(error) or type(error).__name__)


def _finish(connection: Connection, task: Task, **end: Any) -> None:
    mine = (
        Retraining.campaign_id == task.campaign_id,
        Retraining.number == task.number,
        Retraining.started_at == task.started_at,
    )
    # The clock's time, not the transaction's, which is that of its beginning.
    connection.execute(
        update(Retraining).where(*mine).values(finished_at=func.clock_timestamp(), **end)
    )


def _reading(engine: Engine) -> Engine:
    return engine.execution_options(isolation_level="REPEATABLE READ")


class Retrainer:
    """A thread of the learner's process: it retrains what is due, until it is told to stop."""

    def __init__(self, engine: Engine, *, backend: Backend = "jax") -> None:
        self._engine, self._backend = engine, backend

    def run(self, stop: threading.Event) -> None:
        """Retrain until stopped; trouble with a campaign or with Postgres never ends it."""
        while not stop.wait(LOOK_SECONDS):
            try:
                self.step()
            except Exception:
                log.exception("retrainer_waits")

    def step(self) -> int:
        """Retrain every running campaign that is due; return how many were retrained."""
        done = 0
        with self._engine.connect() as connection:
            waiting = [
                row.id
                for row in connection.execute(queries.running_campaigns()).all()
                if definition_of(connection, row.id, row.revision).retrains
                and due(connection, row.id)
            ]
        for campaign_id in waiting:
            started = time.perf_counter()
            retrained = retrain(self._engine, campaign_id, backend=self._backend)
            if retrained is not None:
                done += 1
                log.info(
                    "retrained", campaign=campaign_id, **retrained._asdict(),
                    seconds=round(time.perf_counter() - started, 1),
                )  # fmt: skip
        return done
