"""The learner: it turns the log into snapshots, exactly once. This is how a reward comes back.

    outcomes in Postgres → decisions they touch → what each is worth now, less what it was credited
    with before → signed integer contributions → new snapshot, with its place in the log

An event's id made a repeat harmless before it came here (`service.spool`, and once more in
Postgres). What a decision is worth (`service.outcomes.credit`) is a pure function of all its events
so far: a return subtracts, an event after the attribution window only counts as late, and their
order does not matter. Positions in the log become visible in their order (`service.carrier`).

One transaction per campaign and chunk does all of it, under an advisory lock: several learners may
run, one works per campaign, and a crash anywhere leaves the last snapshot and the place it had
learnt through. The state is a pure function of the log up to (decision_position,
outcome_position): `rebuild` computes it from nothing, and `barter verify` compares the digests.

The arithmetic runs in JAX, on whatever device it finds; the sums are int64 (the JAX backend
switches 64-bit mode on), so they are the same on every device and in every order.
"""

import datetime as dt
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError

from bandits import artefact, simplex
from bandits.types import Batch, Contexts, State
from service import credits, queries, upkeep
from service.credits import Credits, batch_of, credits_of
from service.definition import CampaignDefinition
from service.models import Budget, Snapshot
from service.snapshots import LiveCampaign, served, whole
from service.stretch import Stretch, definition_of, read

CHUNK = 20_000
SIZES = (256, 2048, CHUNK)
IDLE_SECONDS = 0.5
UPKEEP_SECONDS = 1.0
PACE_SECONDS = 0.1
QUIET_SECONDS = 1.0
"""How long decisions without outcomes wait to be counted: each by itself moves next to nothing."""
CHECKED = 8
Backend = Literal["numpy", "jax"]
log = structlog.get_logger()


class Place(NamedTuple):
    """How far in the log a state has learnt."""

    decision: int
    outcome: int


class Learnt(NamedTuple):
    """One step of the learner: the new snapshot and how much went into it."""

    version: int
    digest: str
    decisions: int
    outcomes: int
    place: Place


class NotPublished(Exception):
    """The new state would serve something that is not a simplex; the last good one stays."""


def learn(engine: Engine, campaign_id: int, *, backend: Backend = "jax") -> Learnt | None:
    """Learn the next part of a campaign's log; ``None`` when there is nothing or another is at it.

    Raises:
        NotPublished: the new state is unusable; nothing was changed.
    """
    repeatable = engine.execution_options(isolation_level="REPEATABLE READ")
    with repeatable.begin() as connection:
        if not connection.scalar(queries.TRY_LOCK, {"id": campaign_id}):
            return None
        return _learn(connection, campaign_id, backend)


def rebuild(
    connection: Connection, campaign_id: int, place: Place, *, fitted: bytes | None = None,
    backend: Backend = "numpy",
) -> State:  # fmt: skip
    """Return the state that the log up to a place adds up to, from nothing.

    It is that of the policy that the newest snapshot is of, and counts on from the same retraining,
    unless ``fitted`` is the state of another.
    """
    newest = connection.execute(queries.newest_snapshot(campaign_id)).one_or_none()
    plan = campaign_of(connection, campaign_id, newest).served
    state = plan.build_policy().init()
    fitted = fitted or (newest.fitted if newest else None)
    if fitted is not None:
        state = artefact.from_bytes(fitted, like=state)
    last = 0
    while True:
        query = queries.decisions_after(campaign_id, last, place.decision, CHUNK)
        rows = read(connection, query, plan)
        if not len(rows):
            return state
        last = int(rows.position[-1])
        earned = credits_of(connection, campaign_id, rows, place.outcome)
        state = _add(plan, state, rows, earned, sign=1, backend=backend)


def advance(
    connection: Connection, campaign_id: int, plan: CampaignDefinition, state: State,
    seen: Place, until: Place, *, backend: Backend = "numpy",
) -> tuple[State, Place]:  # fmt: skip
    """Take a policy's state at ``seen`` up to a chunk further towards a later place.

    ``plan`` names the policy. The state at any place equals a rebuild there, bit for bit.
    """
    query = queries.decisions_after(campaign_id, seen.decision, until.decision, CHUNK)
    fresh = read(connection, query, plan)
    events = connection.execute(
        queries.outcomes_after(campaign_id, seen.outcome, until.outcome, CHUNK)
    ).one()
    place = Place(
        int(fresh.position[-1]) if len(fresh) == CHUNK else until.decision,
        events.position if events.number == CHUNK else until.outcome,
    )
    touched = _touched(connection, campaign_id, plan, seen, place)
    before = credits_of(connection, campaign_id, touched, seen.outcome)
    after = credits_of(connection, campaign_id, touched + fresh, place.outcome)
    state = _add(plan, state, touched, before, sign=-1, backend=backend)
    state = _add(plan, state, touched + fresh, after, sign=1, backend=backend)
    return state, place


def _touched(
    connection: Connection, campaign_id: int, plan: CampaignDefinition, seen: Place, place: Place
) -> Stretch:
    """Return decisions that have been learnt from, and that newer outcomes are about."""
    query = queries.decisions_told_of(campaign_id, seen.outcome, place.outcome, seen.decision)
    return read(connection, query, plan)


def _learn(connection: Connection, campaign_id: int, backend: Backend) -> Learnt | None:
    """Learn one chunk. Decisions come in three kinds:

    touched, already in the state and now with new outcomes: corrected by the difference;
    fresh, not in the state yet: added with what is known of them now;
    not read yet: their outcomes wait in the log, to be found when they are fresh.
    """
    previous = connection.execute(queries.newest_snapshot(campaign_id)).one_or_none()
    live = campaign_of(connection, campaign_id, previous)
    if live.state == "draft":
        # Its arms may still change, and nothing of it was randomised: it learns from the launch on.
        return None
    seen = (
        Place(0, 0)
        if previous is None
        else Place(previous.decision_position, previous.outcome_position)
    )
    query = queries.decisions_after(campaign_id, seen.decision, None, CHUNK)
    fresh = read(connection, query, live.served)
    events = connection.execute(
        queries.outcomes_after(campaign_id, seen.outcome, None, CHUNK)
    ).one()
    if not len(fresh) and not events.number:
        return None
    place = Place(
        int(fresh.position[-1]) if len(fresh) else seen.decision,
        events.position or seen.outcome,
    )
    state = state_of(live, previous)
    touched = _touched(connection, campaign_id, live.served, seen, place)
    state = _correct(connection, live, state, touched, place, backend)
    earned = credits_of(connection, campaign_id, fresh, place.outcome)
    state = _add(live.served, state, fresh, earned, sign=1, backend=backend)
    credits.store(connection, campaign_id, fresh, None, earned)
    version = 1 if previous is None else previous.version + 1
    digest = publish(
        connection, check(live, state, fresh), version, place,
        learnt_until=events.received_at,
        retraining=previous.retraining if previous else None,
        fitted=previous.fitted if previous else None,
    )  # fmt: skip
    return Learnt(version, digest, len(fresh), events.number, place)


def state_of(live: LiveCampaign, snapshot: Any) -> State:
    """Return the state of a row of `queries.newest_snapshot`, or the first one for None."""
    start = live.policy.init()
    if snapshot is None:
        return start
    return artefact.from_bytes(whole(snapshot.state, snapshot.fitted), like=start)


def _correct(
    connection: Connection, live: LiveCampaign, state: State, touched: Stretch,
    place: Place, backend: Backend,
) -> State:  # fmt: skip
    """Take back what touched decisions were credited with and add what they are worth now."""
    if not len(touched):
        return state
    before = credits.stored(connection, touched)
    after = credits_of(connection, live.id, touched, place.outcome)
    differs = (before.amounts != after.amounts).any(axis=1)
    changed, before, after = touched.where(differs), before.where(differs), after.where(differs)
    state = _add(live.served, state, changed, before, sign=-1, backend=backend)
    state = _add(live.served, state, changed, after, sign=1, backend=backend)
    credits.store(connection, live.id, changed, before, after)
    _charge(connection, live.id, changed, before, after)
    return state


def _charge(
    connection: Connection, campaign_id: int, changed: Stretch, before: Credits, after: Credits
) -> None:  # fmt: skip
    """Charge to the budget what changed about discounts of offers that were settled already."""
    row = connection.execute(queries.budget_row(campaign_id)).one_or_none()
    settled = changed.position <= (row.settled_position if row else 0)
    more = after.column("discount_minor") - before.column("discount_minor")
    if charge := int(more[settled].sum()):
        charged = update(Budget).where(Budget.campaign_id == campaign_id)
        connection.execute(charged.values(released_minor=Budget.released_minor - charge))
        connection.execute(select(func.pg_notify("barter", "budgets")))


def _add(
    plan: CampaignDefinition, state: State, stretch: Stretch, earned: Credits, *,
    sign: int, backend: Backend,
) -> State:  # fmt: skip
    """Add (or take back) decisions that were randomised, with what they earned."""
    batch = batch_of(plan, stretch, earned, sign=sign)
    if not len(batch.arm):
        return state
    updated = _update(plan, backend)(state, _padded(batch))
    return type(state)(*(np.asarray(field) for field in updated))


def _padded(batch: Batch, least: int = 0) -> Batch:
    """Fill a batch up to one of a few sizes with rows of sign 0, which add nothing.

    JAX compiles once for each size that it meets.
    """
    length = len(batch.arm)
    size = next((size for size in SIZES if size >= max(length, least)), length)

    def fill(array: NDArray[Any] | None) -> NDArray[Any] | None:
        if array is None:
            return None
        return np.concatenate([array, np.repeat(array[:1], size - length, axis=0)])

    filled: Batch = Batch(Contexts(*map(fill, batch.contexts)), *map(fill, batch[1:]))
    return filled._replace(sign=np.where(np.arange(size) < length, filled.sign, 0))


def _blank(definition: CampaignDefinition, size: int) -> Batch:
    """Return a batch of a size of `SIZES` that adds nothing."""
    arms = len(definition.arms)
    zero = np.zeros(1, dtype=np.int64)
    features = np.zeros((1, definition.feature_width), dtype=np.int64)
    contexts = Contexts(zero.astype(np.int32), features)
    equal = np.full((1, arms), 1 / arms)
    bucket = zero if definition.forgets else None
    blank: Batch = Batch(contexts, zero.astype(np.int32), equal, zero, zero, zero, bucket)
    return _padded(blank, size)


def check(live: LiveCampaign, state: State, sample: Stretch | None) -> LiveCampaign:
    """Return a campaign at a state that may be published.

    It is asked for a simplex of all arms in every segment without features, and for the newest
    contexts of the log.

    Raises:
        NotPublished: that is none.
    """
    definition = live.definition
    segment = np.arange(len(definition.segment_keys), dtype=np.int64)
    features = np.zeros((len(segment), definition.feature_width), dtype=np.int64)
    if sample is not None:
        newest = sample.where(slice(-CHECKED, None))
        segment = np.concatenate([segment, newest.segment])
        features = np.concatenate([features, newest.context])
    eligible = np.ones((len(segment), len(definition.arms)), dtype=bool)
    contexts = Contexts(segment.astype(np.int32), features)
    try:
        ready = live.at(state)
        simplex.check(live.policy.probabilities(ready.belief, contexts, eligible), eligible)
        ready.usual()
    except (ValueError, ArithmeticError) as error:
        raise NotPublished(f"campaign {definition.key}: {error}") from error
    return ready


def publish(
    connection: Connection, live: LiveCampaign, version: int, place: Place, *,
    learnt_until: dt.datetime | None, retraining: int | None, fitted: bytes | None,
) -> str:  # fmt: skip
    """Store the state of a campaign (see `check`) as the next snapshot; return its digest.

    It is announced. What is the same in its retraining, whose state is ``fitted``, is not stored
    again.
    """
    digest = artefact.digest(live.learnt)
    stored = artefact.to_bytes(live.learnt, policy=live.policy.name)
    connection.execute(
        insert(Snapshot).values(
            campaign_id=live.id,
            version=version,
            revision=live.revision,
            state=stored if fitted is None else artefact.without(stored, fitted),
            usual=live.usual() or None,
            digest=digest,
            decision_position=place.decision,
            outcome_position=place.outcome,
            learnt_until=learnt_until,
            retraining=retraining,
        )
    )
    connection.execute(select(func.pg_notify("barter", f"snapshot:{live.id}")))
    return digest


def campaign_of(connection: Connection, campaign_id: int, snapshot: Any) -> LiveCampaign:
    """Return a campaign with the policy that serves a snapshot, but nothing learnt.

    The snapshot is a row of `queries.newest_snapshot`, or None.
    """
    stored = whole(snapshot.state, snapshot.fitted) if snapshot else None
    row = connection.execute(queries.campaign_row(campaign_id)).one()
    return LiveCampaign(
        id=row.id,
        revision=row.revision,
        state=row.state,
        killed=row.killed_at is not None,
        seed=row.seed,
        definition=served(definition_of(connection, row.id, row.revision), stored),
    )


_updates: dict[tuple[Any, ...], Callable[[State, Batch], State]] = {}


def _update(definition: CampaignDefinition, backend: Backend) -> Callable[[State, Batch], State]:
    """Return the update of a definition's policy, kept together with what was compiled for it.

    What an update adds hangs on the policy's name and on the shape alone (options weigh the sums
    when they are read; those of contextual policies and of forgetting may shape the state), so
    hundreds of campaigns share a few compilations. Policies that forget update in numpy, which
    touches the few buckets that a batch has; compiled code would touch all.
    """
    name, options = definition.policy.name, definition.policy.options
    shape = (len(definition.segment_keys), len(definition.arms), definition.feature_width)
    shaping = definition.contextual or definition.forgets
    own = repr(sorted(options.items())) if shaping else ""
    backend = "numpy" if definition.forgets else backend
    key = (name, *shape, own, backend)
    if key not in _updates:
        update = definition.build_policy(backend).update
        if backend == "jax":
            import jax

            update = jax.jit(update)
        _updates[key] = update
    return _updates[key]


class Learner:
    """The process: it learns whatever campaigns have news, until it is told to stop."""

    def __init__(self, engine: Engine, *, backend: Backend = "jax") -> None:
        self._engine, self._backend = engine, backend
        self._upkeep_at = -UPKEEP_SECONDS
        self._warmed: set[tuple[int, int]] = set()
        self._learnt_at: dict[int, float] = {}
        self.wake = threading.Event()

    def run(self, stop: threading.Event) -> None:
        """Learn until stopped; trouble with one campaign or with Postgres never ends it."""
        while not stop.is_set():
            self.wake.clear()
            try:
                busy = self.step()
            except Exception:
                log.exception("learner_waits")
                busy = False
                stop.wait(1.0)
            if busy:
                # Every step publishes: without a pause it would be a snapshot for a few decisions.
                stop.wait(PACE_SECONDS)
            else:
                self.wake.wait(IDLE_SECONDS)

    def _warm(self) -> None:
        """Compile ahead all but the largest batch, so that no reward has to wait for it."""
        with self._engine.connect() as connection:
            for row in connection.execute(queries.running_campaigns()):
                if (row.id, row.revision) not in self._warmed:
                    self._warmed.add((row.id, row.revision))
                    definition = served(definition_of(connection, row.id, row.revision), None)
                    state = definition.build_policy().init()
                    for size in SIZES[:-1]:
                        _update(definition, self._backend)(state, _blank(definition, size))

    def _upkeep(self) -> None:
        """Do what is due every second: compile ahead, move states, settle budgets."""
        self._upkeep_at = time.monotonic()
        self._warm()
        upkeep.keep_schedule(self._engine)
        with self._engine.connect() as connection:
            budgeted = connection.scalars(queries.campaigns_with_budget()).all()
        for campaign_id in budgeted:
            upkeep.settle(self._engine, campaign_id)

    def step(self) -> bool:
        """Learn all that is news of every campaign; tell whether outcomes may follow soon."""
        if time.monotonic() - self._upkeep_at > UPKEEP_SECONDS:
            try:
                self._upkeep()
            except Exception as error:
                self._go_on("upkeep_failed", error)
        busy = False
        with self._engine.connect() as connection:
            waiting = connection.execute(queries.campaigns_with_news()).all()
        for campaign_id, told in waiting:
            since = time.monotonic() - self._learnt_at.get(campaign_id, -QUIET_SECONDS)
            if not told and since < QUIET_SECONDS:
                continue
            self._learnt_at[campaign_id] = time.monotonic()
            try:
                busy |= self._learn(campaign_id) and told
            except Exception as error:
                # One campaign's trouble leaves its last good snapshot serving and the others
                # learning; it is tried again with every step, until a person has mended it.
                self._go_on("learning_failed", error, campaign=campaign_id)
        return busy

    def _learn(self, campaign_id: int) -> bool:
        """Learn of a campaign until a chunk is not full; tell whether there was anything."""
        learnt, busy = None, False
        while learnt is None or CHUNK in (learnt.decisions, learnt.outcomes):
            started = time.perf_counter()
            learnt = learn(self._engine, campaign_id, backend=self._backend)
            if learnt is None:
                break
            busy = True
            log.debug(
                "learnt", campaign=campaign_id, version=learnt.version,
                decisions=learnt.decisions, outcomes=learnt.outcomes,
                milliseconds=round(1000 * (time.perf_counter() - started), 1),
            )  # fmt: skip
        return busy

    def _go_on(self, event: str, error: Exception, **about: object) -> None:
        """Log an error and go on with the others, unless there is no database to go on with."""
        log.error(event, exc_info=error, **about)
        if isinstance(error, SQLAlchemyError):
            self._engine.connect().close()
