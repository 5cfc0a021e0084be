"""Choosing for the user: the policy of a campaign whose policy is ``auto``.

It begins with the usual policy of its objective. Beside it, each policy that might do better (a
*rival*) learns the same log without deciding anything, and is judged by the decisions that the
incumbent drew: what it would have chosen, knowing what the incumbent knew then, against what was
chosen and earned (`bandits.evaluation.choice`). Only draws count: the holdout and decisions that
repeat a sticky one are passed over. When that evidence says "better", at a level that
holds however often it is asked, the rival takes over with the next snapshot.

Nothing of this is on the way of a decision or of a reward. A look does one bounded piece of work
in one transaction, so it can be killed anywhere and goes on where it was:

    learn    a rival's state moves up to a chunk of the log further, never past what the incumbent
             knew of the next decisions to be judged
    judge    the next `BLOCK` decisions whose attribution window has ended are bet on
    take over    the state is brought to where the newest snapshot is and becomes the next one,
             with an audit entry that holds the evidence; rivals begin afresh, against the new one

Which policy serves is therefore told by the newest snapshot alone (`service.snapshots.served`), and
decisions replay by theirs. No evidence is used twice: what a policy lost by cannot bring it back.
The same road is taken when a person names a policy that keeps other sums than the one that ``auto``
has chosen; it needs no evidence then.
"""

import datetime as dt
import math
import threading
from typing import Any, NamedTuple

import numpy as np
import structlog
from sqlalchemy import Connection, Engine, delete, func, update
from sqlalchemy.dialects.postgresql import insert

from bandits import artefact, simplex
from bandits.evaluation import choice
from bandits.evaluation.choice import Evidence
from bandits.types import Batch, State
from service import learner, queries
from service.credits import batch_of, credits_of
from service.definition import AUTO, LEVEL, CampaignDefinition
from service.learner import Place
from service.models import AuditEntry, Rival
from service.snapshots import LiveCampaign
from service.stretch import definition_of, read

BLOCK = 250
IDLE_SECONDS = 5.0
PACE_SECONDS = 0.1
BASELINE = 0.1
"""The conversion rate that bets assume; a wrong one only makes evidence a little slower."""
log = structlog.get_logger()


class Standing(NamedTuple):
    """How a campaign stands: its definition, what serves it, and its newest snapshot."""

    definition: CampaignDefinition
    live: LiveCampaign
    newest: Any
    place: Place

    @property
    def incumbent(self) -> str:
        """The name of the policy that serves."""
        return self.live.served.policy.name

    @property
    def rivals(self) -> tuple[str, ...]:
        """The names of the policies that may take over."""
        if self.definition.policy.name == AUTO:
            return tuple(name for name in self.definition.choices if name != self.incumbent)
        named = self.definition.policy.name
        return () if named == self.incumbent else (named,)

    @property
    def floor(self) -> float:
        """The least propensity of an eligible arm; a named policy needs none, and no evidence."""
        return self.definition.floor or 1.0

    def plan(self, rival: str) -> CampaignDefinition:
        """Return the definition with a rival named."""
        if self.definition.policy.name == AUTO:
            return self.definition.served_by(rival)
        return self.definition


class Challenge(NamedTuple):
    """A rival, less its state; see `service.models.Rival`."""

    policy: str
    place: Place
    incumbent: str
    since: int
    judged: int
    evidence: Evidence


class Chooser:
    """Looks at every campaign that chooses for itself, until it is told to stop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._settled: set[tuple[int, int]] = set()

    def run(self, stop: threading.Event) -> None:
        """Look until stopped; trouble with one campaign or with Postgres never ends it."""
        while not stop.is_set():
            try:
                busy = self.step()
            except Exception:
                log.exception("choosing_waits")
                busy = False
            stop.wait(PACE_SECONDS if busy else IDLE_SECONDS)

    def step(self, *, now: dt.datetime | None = None) -> bool:
        """Take a look at each campaign; tell whether there may be more to do at once."""
        busy = False
        with self._engine.connect() as connection:
            rows = connection.execute(queries.campaigns_to_choose_for()).all()
        for row in rows:
            if (row.id, row.revision) in self._settled:
                continue
            try:
                more = look(self._engine, row.id, now=now)
            except Exception as error:
                # Its incumbent goes on serving, and it is looked at again the next time.
                log.error("choosing_failed", exc_info=error, campaign=row.id)
                continue
            if more is None:
                self._settled.add((row.id, row.revision))
            busy = bool(more) or busy
        return busy


def look(engine: Engine, campaign_id: int, *, now: dt.datetime | None = None) -> bool | None:
    """Do a piece of the work on one campaign; tell whether there may be more to do at once.

    ``None`` means that there will be nothing to do before its definition changes.

    Raises:
        NotPublished: a state that should take over is unusable; the incumbent goes on.
    """
    moment = now or dt.datetime.now(dt.UTC)
    repeatable = engine.execution_options(isolation_level="REPEATABLE READ")
    with repeatable.begin() as connection:
        if not connection.scalar(queries.TRY_CHOICE, {"id": campaign_id}):
            return False
        standing = _standing(connection, campaign_id)
        challenges = _challenges(connection, standing)
        if not challenges:
            return False if standing.definition.policy.name == AUTO else None
        winner = _winner(standing, challenges)
        if winner is None:
            judged = [_judge(connection, standing, one, moment) for one in challenges]
            return any(judged)
        _learn(connection, standing, winner, standing.place)
    with repeatable.begin() as connection:
        # The lock comes first, so that the newest snapshot is still the newest when we add ours.
        locks = (queries.TRY_LOCK, queries.TRY_CHOICE)
        if all(connection.scalar(lock, {"id": campaign_id}) for lock in locks):
            _take_over(connection, _standing(connection, campaign_id), winner.policy)
    return True


def _standing(connection: Connection, campaign_id: int) -> Standing:
    newest = connection.execute(queries.newest_snapshot(campaign_id)).one_or_none()
    live = learner.campaign_of(connection, campaign_id, newest)
    definition = definition_of(connection, campaign_id, live.revision)
    place = Place(newest.decision_position, newest.outcome_position) if newest else Place(0, 0)
    return Standing(definition, live, newest, place)


def _challenges(connection: Connection, standing: Standing) -> list[Challenge]:
    """Return the rivals; new ones and those against another incumbent begin, old ones end."""
    campaign_id, wanted = standing.live.id, standing.rivals
    found = {row.policy: row for row in connection.execute(queries.rivals(campaign_id))}
    if found.keys() - set(wanted):
        ended = Rival.policy.not_in(wanted)
        connection.execute(delete(Rival).where(Rival.campaign_id == campaign_id, ended))
    challenges = []
    for name in wanted:
        row = found.get(name)
        one = _begun(connection, standing, name) if row is None else _read(row)
        if (one.incumbent, one.evidence.floor) != (standing.incumbent, standing.floor):
            one = _afresh(standing, one)
            _keep(connection, campaign_id, one)
        challenges.append(one)
    return challenges


def _begun(connection: Connection, standing: Standing, name: str) -> Challenge:
    """Store and return a rival that has learnt nothing."""
    nothing = Challenge(name, Place(0, 0), "", 0, 0, choice.start(floor=1.0))
    one = _afresh(standing, nothing)
    first = standing.plan(name).build_policy().init()
    state = artefact.to_bytes(first, policy=name)
    row = {"campaign_id": standing.live.id, "policy": name, "state": state, **_columns(one)}
    connection.execute(insert(Rival).values(**row))
    return one


def _afresh(standing: Standing, one: Challenge) -> Challenge:
    """Return a rival against which nothing has been said yet: only news will be judged."""
    if standing.definition.objective == "conversion":
        evidence = choice.start(floor=standing.floor, low=0, high=1, baseline=BASELINE)
    else:
        evidence = choice.start(floor=standing.floor)
    return one._replace(
        incumbent=standing.incumbent,
        since=standing.newest.version if standing.newest else 0,
        judged=standing.place.decision,
        evidence=evidence,
    )


def _winner(standing: Standing, challenges: list[Challenge]) -> Challenge | None:
    """Return who takes over: whoever a person named, or of those who are better the safest."""
    if standing.definition.policy.name != AUTO:
        return challenges[0]
    better = [
        one
        for one in challenges
        if choice.verdict(one.evidence, alpha=LEVEL, candidates=len(challenges)) == "better"
    ]
    return max(better, key=lambda one: choice.lower(one.evidence), default=None)


def _judge(connection: Connection, standing: Standing, one: Challenge, now: dt.datetime) -> bool:
    """Bet on the next decisions whose rewards are in; tell whether there may be more."""
    window = dt.timedelta(seconds=standing.definition.attribution_seconds)
    plan = standing.plan(one.policy)
    query = queries.decisions_to_judge(
        standing.live.id, one.judged, standing.place.decision, since=one.since,
        before=now - window, limit=BLOCK,
    )  # fmt: skip
    rows = read(connection, query, plan)
    if len(rows) < BLOCK:
        return False
    known = _known(connection, standing.live.id, int(rows.snapshot.min()))
    one, state = _learn(connection, standing, one, known)
    if one.place.decision < known.decision or one.place.outcome < known.outcome:
        return True
    earned = credits_of(connection, standing.live.id, rows, standing.place.outcome)
    batch = batch_of(plan, rows, earned)
    wanted = _simplexes(plan, state, batch)
    evidence = choice.bet(one.evidence, batch.arm, batch.simplex, wanted, batch.reward)
    judged = one._replace(judged=int(rows.position[-1]), evidence=evidence)
    _keep(connection, standing.live.id, judged)
    return True


def _known(connection: Connection, campaign_id: int, version: int) -> Place:
    """Return how far the log was known to a snapshot."""
    if version == 0:
        return Place(0, 0)
    row = connection.execute(queries.snapshot_place(campaign_id, version)).one()
    return Place(row.decision_position, row.outcome_position)


def _learn(
    connection: Connection, standing: Standing, one: Challenge, until: Place
) -> tuple[Challenge, State]:
    """Return a rival up to a chunk nearer to a place of the log, with its state."""
    campaign_id, plan = standing.live.id, standing.plan(one.policy)
    stored = connection.execute(queries.rival_state(campaign_id, one.policy)).one().state
    state = artefact.from_bytes(stored, like=plan.build_policy().init())
    goal = Place(max(one.place.decision, until.decision), max(one.place.outcome, until.outcome))
    if one.place == goal:
        return one, state
    state, place = learner.advance(connection, campaign_id, plan, state, one.place, goal)
    one = one._replace(place=place)
    _keep(connection, campaign_id, one, state)
    return one, state


def _simplexes(plan: CampaignDefinition, state: State, batch: Batch) -> Any:
    """Return (B, A) what a rival would have served to these customers, guardrails included."""
    policy, mask = plan.build_policy(), batch.simplex > 0
    raw = np.asarray(policy.probabilities(policy.believe(state), batch.contexts, mask))
    caps = np.array([1.0 if arm.cap is None else arm.cap for arm in plan.arms])
    return simplex.guard(raw, mask, floor=plan.floor, cap=caps)


def _take_over(connection: Connection, standing: Standing, name: str) -> None:
    """Let a rival serve from the next snapshot on, if nothing has changed that it won by."""
    challenges = _challenges(connection, standing)
    winner = _winner(standing, challenges) if challenges else None
    if winner is None or winner.policy != name:
        return
    winner, state = _learn(connection, standing, winner, standing.place)
    if winner.place != standing.place:
        return
    old = standing.live
    live = LiveCampaign(
        id=old.id, revision=old.revision, state=old.state, killed=old.killed, seed=old.seed,
        definition=standing.plan(name),
    )  # fmt: skip
    live = learner.check(live, state, None)
    version = standing.newest.version + 1 if standing.newest else 1
    learner.publish(
        connection, live, version, standing.place,
        learnt_until=standing.newest.learnt_until if standing.newest else None,
        retraining=None, fitted=None,
    )  # fmt: skip
    connection.execute(
        insert(AuditEntry).values(
            actor=AUTO,
            action="campaign.policy",
            subject=f"campaign:{standing.definition.key}",
            detail=_told(standing, winner, rivals=len(challenges)) | {"snapshot": version},
        )
    )
    connection.execute(delete(Rival).where(Rival.campaign_id == live.id))


def _told(standing: Standing, winner: Challenge, *, rivals: int) -> dict[str, Any]:
    """Return why a rival takes over, for the audit log; gains are per decision."""
    detail: dict[str, Any] = {"from": standing.incumbent, "to": winner.policy}
    if standing.definition.policy.name != AUTO:
        return detail | {"why": "named"}
    evidence, level = winner.evidence, LEVEL / rivals
    return detail | {
        "why": "better",
        "decisions": evidence.rows,
        "gain": round(choice.estimate(evidence), 6),
        "low": round(choice.lower(evidence, alpha=level), 6),
        "high": round(choice.upper(evidence, alpha=level), 6),
        "level": level,
        "e_value": float(f"{min(choice.e_value(evidence), 1e12):.4g}"),
        "effective_rows": math.floor(choice.effective_rows(evidence)),
    }


def _read(row: Any) -> Challenge:
    place = Place(row.decision_position, row.outcome_position)
    evidence = choice.restored(row.evidence)
    return Challenge(row.policy, place, row.incumbent, row.since, row.judged_position, evidence)


def _columns(one: Challenge) -> dict[str, Any]:
    return {
        "decision_position": one.place.decision,
        "outcome_position": one.place.outcome,
        "incumbent": one.incumbent,
        "since": one.since,
        "judged_position": one.judged,
        "evidence": one.evidence._asdict(),
    }


def _keep(
    connection: Connection, campaign_id: int, one: Challenge, state: State | None = None
) -> None:
    """Store where a rival has come to."""
    values = _columns(one)
    if state is not None:
        values["state"] = artefact.to_bytes(state, policy=one.policy)
    rival = (Rival.campaign_id == campaign_id, Rival.policy == one.policy)
    connection.execute(update(Rival).where(*rival).values(updated_at=func.now(), **values))
