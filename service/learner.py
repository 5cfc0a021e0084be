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
import uuid
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
from service import queries, upkeep
from service.decide import RANDOMISED
from service.definition import CampaignDefinition
from service.models import Budget, Reward, Snapshot
from service.outcomes import Credit, Event, credit, reward
from service.queries import Log
from service.snapshots import LiveCampaign, served, whole

CHUNK = 20_000
SIZES = (256, 2048, CHUNK)
IDLE_SECONDS = 0.5
UPKEEP_SECONDS = 1.0
PACE_SECONDS = 0.25
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
        rows = connection.execute(
            queries.decisions_after(campaign_id, last, place.decision, CHUNK)
        ).all()
        if not rows:
            return state
        last = rows[-1].position
        credits = credits_of(connection, rows, place.outcome)
        state = _add(plan, state, rows, credits, sign=1, backend=backend)


def advance(
    connection: Connection, campaign_id: int, plan: CampaignDefinition, state: State,
    seen: Place, until: Place, *, backend: Backend = "numpy",
) -> tuple[State, Place]:  # fmt: skip
    """Take a policy's state at ``seen`` up to a chunk further towards a later place.

    ``plan`` names the policy. The state at any place equals a rebuild there, bit for bit.
    """
    fresh = connection.execute(
        queries.decisions_after(campaign_id, seen.decision, until.decision, CHUNK)
    ).all()
    later = connection.execute(queries.outcomes_after(campaign_id, seen.outcome, CHUNK)).all()
    events = [event for event in later if event.position <= until.outcome]
    place = Place(
        fresh[-1].position if len(fresh) == CHUNK else until.decision,
        events[-1].position if len(events) == CHUNK else until.outcome,
    )
    touched = connection.execute(
        queries.decisions_by_id([event.decision_id for event in events], seen.decision)
    ).all()
    before = credits_of(connection, touched, seen.outcome)
    after = credits_of(connection, [*touched, *fresh], place.outcome)
    state = _add(plan, state, touched, before, sign=-1, backend=backend)
    state = _add(plan, state, [*touched, *fresh], after, sign=1, backend=backend)
    return state, place


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
    fresh = connection.execute(
        queries.decisions_after(campaign_id, seen.decision, None, CHUNK)
    ).all()
    events = connection.execute(queries.outcomes_after(campaign_id, seen.outcome, CHUNK)).all()
    if not fresh and not events:
        return None
    place = Place(
        fresh[-1].position if fresh else seen.decision,
        events[-1].position if events else seen.outcome,
    )
    state = state_of(live, previous)
    touched = connection.execute(
        queries.decisions_by_id([event.decision_id for event in events], seen.decision)
    ).all()
    state = _correct(connection, live, state, touched, place, backend)
    credits = credits_of(connection, fresh, place.outcome)
    state = _add(live.served, state, fresh, credits, sign=1, backend=backend)
    _store(connection, campaign_id, fresh, credits)
    version = 1 if previous is None else previous.version + 1
    check(live, state, fresh)
    digest = publish(
        connection, live, state, version, place,
        learnt_until=max((event.received_at for event in events), default=None),
        retraining=previous.retraining if previous else None,
        fitted=previous.fitted if previous else None,
    )  # fmt: skip
    return Learnt(version, digest, len(fresh), len(events), place)


def state_of(live: LiveCampaign, snapshot: Any) -> State:
    """Return the state of a row of `queries.newest_snapshot`, or the first one for None."""
    start = live.policy.init()
    if snapshot is None:
        return start
    return artefact.from_bytes(whole(snapshot.state, snapshot.fitted), like=start)


def _correct(
    connection: Connection, live: LiveCampaign, state: State, touched: Log,
    place: Place, backend: Backend,
) -> State:  # fmt: skip
    """Take back what touched decisions were credited with and add what they are worth now."""
    if not touched:
        return state
    before = {
        row.decision_id: Credit(
            row.conversions, row.revenue_minor, row.discount_minor, row.profit_minor, row.late
        )
        for row in connection.execute(queries.rewards_of([row.id for row in touched]))
    }
    after = credits_of(connection, touched, place.outcome)
    changed = [
        row for row in touched if after.get(row.id, Credit()) != before.get(row.id, Credit())
    ]
    state = _add(live.served, state, changed, before, sign=-1, backend=backend)
    state = _add(live.served, state, changed, after, sign=1, backend=backend)
    _store(connection, live.id, changed, after)
    _charge(connection, live.id, changed, before, after)
    return state


def _charge(
    connection: Connection, campaign_id: int, changed: Log,
    before: dict[uuid.UUID, Credit], after: dict[uuid.UUID, Credit],
) -> None:  # fmt: skip
    """Charge to the budget what changed about discounts of offers that were settled already."""
    row = connection.execute(queries.budget_row(campaign_id)).one_or_none()
    more = sum(
        after.get(one.id, Credit()).discount_minor - before.get(one.id, Credit()).discount_minor
        for one in changed
        if row is not None and one.position <= row.settled_position
    )
    if more:
        charged = update(Budget).where(Budget.campaign_id == campaign_id)
        connection.execute(charged.values(released_minor=Budget.released_minor - more))
        connection.execute(select(func.pg_notify("barter", "budgets")))


def credits_of(connection: Connection, decisions: Log, until: int) -> dict[uuid.UUID, Credit]:
    """Return what each decision with outcomes is worth at a place in the log."""
    by_id = {row.id: row for row in decisions}
    events: dict[uuid.UUID, list[Event]] = {}
    for row in connection.execute(queries.outcomes_of(list(by_id), until)):
        event = Event(
            row.kind, row.revenue_minor, row.margin_minor, row.occurred_at, row.discount_minor
        )
        events.setdefault(row.decision_id, []).append(event)
    credits = {}
    for id, found in events.items():
        decision = by_id[id]
        definition = definition_of(connection, decision.campaign_id, decision.revision)
        credits[id] = credit(
            definition,
            segment=decision.segment,
            arm=decision.arm,
            decided_at=decision.decided_at,
            events=found,
        )
    return credits


def _add(
    plan: CampaignDefinition, state: State, decisions: Log,
    credits: dict[uuid.UUID, Credit], *, sign: int, backend: Backend,
) -> State:  # fmt: skip
    """Add (or take back) decisions that were randomised, with what they earned."""
    rows = [row for row in decisions if row.reason in RANDOMISED]
    if not rows:
        return state
    batch = batch_of(plan, rows, credits, sign=sign)
    updated = _update(plan, backend)(state, _padded(batch))
    return type(state)(*(np.asarray(field) for field in updated))


def batch_of(
    definition: CampaignDefinition, rows: Log, credits: dict[uuid.UUID, Credit], *, sign: int = 1
) -> Batch:
    """Return randomised decisions with what they earned, as policies read them."""
    earned = [credits.get(row.id, Credit()) for row in rows]
    return Batch(
        contexts=Contexts(
            segment=np.array([row.segment for row in rows], dtype=np.int32),
            features=_features(definition, rows),
        ),
        arm=np.array([row.arm for row in rows], dtype=np.int32),
        simplex=np.array([row.simplex for row in rows], dtype=np.float64),
        conversions=np.array([one.conversions for one in earned], dtype=np.int64),
        reward=np.array([reward(definition.objective, one) for one in earned], dtype=np.int64),
        sign=np.full(len(rows), sign, dtype=np.int64),
        bucket=_buckets(definition, rows),
    )


def _buckets(definition: CampaignDefinition, rows: Log) -> NDArray[np.int64] | None:
    """Return when each row was decided (B,), for policies that forget.

    By the log alone: what is late, or taken back, belongs where its decision does.
    """
    if not definition.forgets:
        return None
    return np.array([definition.bucket(row.decided_at) for row in rows], dtype=np.int64)


def _features(definition: CampaignDefinition, rows: Log) -> NDArray[np.int64]:
    """Return the logged contexts (B, D)."""
    width = definition.feature_width
    return np.array([row.context for row in rows], dtype=np.int64).reshape(len(rows), width)


def _padded(batch: Batch) -> Batch:
    """Fill a batch up to one of a few sizes with rows of sign 0, which add nothing.

    JAX compiles once for each size that it meets.
    """
    length = len(batch.arm)
    size = next((size for size in SIZES if size >= length), length)

    def fill(array: NDArray[Any] | None) -> NDArray[Any] | None:
        if array is None:
            return None
        return np.concatenate([array, np.repeat(array[:1], size - length, axis=0)])

    filled: Batch = Batch(Contexts(*map(fill, batch.contexts)), *map(fill, batch[1:]))
    return filled._replace(sign=np.where(np.arange(size) < length, filled.sign, 0))


def _blank(definition: CampaignDefinition) -> Batch:
    """Return a batch of the smallest compiled size that adds nothing."""
    arms = len(definition.arms)
    zero = np.zeros(1, dtype=np.int64)
    features = np.zeros((1, definition.feature_width), dtype=np.int64)
    contexts = Contexts(zero.astype(np.int32), features)
    equal = np.full((1, arms), 1 / arms)
    bucket = zero if definition.forgets else None
    return _padded(Batch(contexts, zero.astype(np.int32), equal, zero, zero, zero, bucket))


def _store(
    connection: Connection, campaign_id: int, decisions: Log,
    credits: dict[uuid.UUID, Credit],
) -> None:  # fmt: skip
    """Keep what every decision with outcomes has been credited with."""
    rows = [
        {"decision_id": row.id, "campaign_id": campaign_id, **credits[row.id]._asdict()}
        for row in decisions
        if row.id in credits
    ]
    if rows:
        statement = insert(Reward)
        replaced = {name: statement.excluded[name] for name in Credit._fields}
        connection.execute(
            statement.on_conflict_do_update(index_elements=["decision_id"], set_=replaced), rows
        )


def check(live: LiveCampaign, state: State, sample: Log) -> None:
    """Refuse a state that gives no valid simplex when all arms are eligible.

    It is asked for every segment without features, and for the newest contexts of the log.
    """
    definition = live.definition
    places = np.arange(len(definition.segment_keys), dtype=np.int32)
    segment = np.concatenate([places, [row.segment for row in sample[-CHECKED:]]])
    zero = np.zeros((len(places), definition.feature_width), dtype=np.int64)
    features = np.concatenate([zero, _features(definition, sample[-CHECKED:])])
    eligible = np.ones((len(segment), len(definition.arms)), dtype=bool)
    contexts = Contexts(segment.astype(np.int32), features)
    try:
        belief = live.policy.believe(state)
        simplex.check(live.policy.probabilities(belief, contexts, eligible), eligible)
    except (ValueError, ArithmeticError) as error:
        raise NotPublished(f"campaign {definition.key}: {error}") from error


def publish(
    connection: Connection, live: LiveCampaign, state: State, version: int, place: Place, *,
    learnt_until: dt.datetime | None, retraining: int | None, fitted: bytes | None,
) -> str:  # fmt: skip
    """Store a state as the next snapshot and announce it; return its digest.

    What is the same in its retraining, whose state is ``fitted``, is not stored again.
    """
    digest = artefact.digest(state)
    stored = artefact.to_bytes(state, policy=live.policy.name)
    connection.execute(
        insert(Snapshot).values(
            campaign_id=live.id,
            version=version,
            revision=live.revision,
            state=stored if fitted is None else artefact.without(stored, fitted),
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


def definition_of(connection: Connection, campaign_id: int, revision: int) -> CampaignDefinition:
    """Return a revision's definition; revisions never change, so the connection keeps them."""
    kept: dict[tuple[int, int], CampaignDefinition] = connection.info.setdefault("definitions", {})
    key = (campaign_id, revision)
    if key not in kept:
        document = connection.scalar(queries.revision_definition(campaign_id, revision))
        kept[key] = CampaignDefinition.model_validate(document)
    return kept[key]


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
        """Compile the smallest batch ahead, so that the first reward does not wait for it."""
        with self._engine.connect() as connection:
            for row in connection.execute(queries.running_campaigns()):
                if (row.id, row.revision) not in self._warmed:
                    self._warmed.add((row.id, row.revision))
                    definition = served(definition_of(connection, row.id, row.revision), None)
                    state, batch = definition.build_policy().init(), _blank(definition)
                    _update(definition, self._backend)(state, batch)

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
        """Learn one chunk of every campaign with news; tell whether anything was learnt."""
        if time.monotonic() - self._upkeep_at > UPKEEP_SECONDS:
            try:
                self._upkeep()
            except Exception as error:
                self._go_on("upkeep_failed", error)
        busy = False
        with self._engine.connect() as connection:
            waiting = connection.scalars(queries.campaigns_with_news()).all()
        for campaign_id in waiting:
            started = time.perf_counter()
            try:
                learnt = learn(self._engine, campaign_id, backend=self._backend)
            except Exception as error:
                # One campaign's trouble leaves its last good snapshot serving and the others
                # learning; it is tried again with every step, until a person has mended it.
                self._go_on("learning_failed", error, campaign=campaign_id)
                continue
            if learnt is not None:
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
