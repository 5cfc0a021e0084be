"""The decision log as people read it: pages of it, and why one decision fell as it did.

API and console share these functions. Pages run backwards in time by ``position`` (a keyset), so a
page stays the same however many decisions arrive meanwhile.
"""

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, aliased

from bandits.evaluation import choice
from service import contexts, queries
from service.definition import AUTO, LEVEL, CampaignDefinition
from service.errors import FieldError, Invalid, UnknownDecision
from service.messages import OfferedProduct
from service.models import (
    AuditEntry,
    Campaign,
    CampaignRevision,
    Decision,
    Outcome,
    Reward,
    Snapshot,
)
from service.snapshots import LiveCampaign, served, whole

REASONS = {
    "policy": "The policy drew this arm.",
    "sticky": "The unit keeps the arm that was drawn for it before.",
    "holdout": "The unit belongs to the holdout, which always gets the default arm.",
    "draft": "The campaign was a draft, so everyone got the default arm.",
    "scheduled": "The campaign had not begun, so everyone got the default arm.",
    "paused": "The campaign was paused, so everyone got the default arm.",
    "ended": "The campaign had ended, so everyone got the default arm.",
    "killed": "The campaign was killed, so everyone got the default arm.",
    "no_eligible_arm": "No arm was eligible, so the unit got the default arm.",
    "unavailable": "The decision could not be kept, so the unit got the default arm.",
}


LOOKED = 20_000
"""How many decisions a page looks through for those that are wanted."""


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which decisions of a campaign are wanted; ``None`` wants all.

    arm, segment: keys. reason: one of `REASONS`. unit: a pseudonym.
    """

    arm: str | None = None
    segment: str | None = None
    reason: str | None = None
    unit: bytes | None = None

    @property
    def name(self) -> str:
        """What tells this selection from others, for cursors."""
        return repr((self.arm, self.segment, self.reason, self.unit))


class Page(NamedTuple):
    """Some decisions, newest first, and the position before which there may be older ones."""

    decisions: Sequence[Decision]
    older: int | None


def decisions(
    session: Session,
    campaign: Campaign,
    filters: Filters,
    *,
    before: int | None = None,
    limit: int = 100,
) -> Page:
    """Return decisions of a campaign, newest first, older than position ``before``.

    Raises:
        Invalid: the campaign has no such arm or segment.
    """
    plan = CampaignDefinition.model_validate(campaign.definition)
    wanted: dict[str, Any] = {}
    if filters.arm is not None:
        wanted["arm"] = _place("arm", filters.arm, list(plan.arm_index))
    if filters.segment is not None:
        wanted["segment"] = _place("segment", filters.segment, plan.segment_keys)
    if filters.reason is not None:
        wanted["reason"] = filters.reason
    query = listed(campaign.id, before=before)
    if filters.unit is not None:
        query = query.where(Decision.unit == filters.unit)
    return page(session, query, wanted, limit=limit)


def listed(campaign_id: int | None, *, before: int | None) -> Select[Decision]:
    """Return the decisions of a campaign, or of all, newest first, before a position if given."""
    if campaign_id is not None:
        until = None if before is None else before - 1
        query = select(Decision).where(*queries.span(Decision, campaign_id, until=until))
        return query.order_by(*queries.newest(Decision))
    query = select(Decision).order_by(Decision.position.desc())
    return query if before is None else query.where(Decision.position < before)


def page(
    session: Session, newest: Select[Decision], wanted: Mapping[str, Any], *, limit: int = 100
) -> Page:
    """Return a page of the decisions that a query lists and whose columns are as wanted.

    It is the query that has an index. What is wanted besides may be as rare as can be, so it is
    looked for among the next `LOOKED` only: a page may be empty and still not the last.
    """
    chosen = newest
    if wanted:
        one = aliased(Decision, newest.limit(LOOKED).subquery())
        chosen = select(one).where(*(getattr(one, name) == value for name, value in wanted.items()))
        chosen = chosen.order_by(one.position.desc())
    rows = session.scalars(chosen.limit(limit + 1)).all()
    if len(rows) > limit:
        return Page(rows[:limit], rows[limit - 1].position)
    if not wanted:
        return Page(rows, None)
    looked = newest.with_only_columns(Decision.position).offset(LOOKED - 1).limit(1)
    return Page(rows, session.scalar(looked))


def _place(field: str, key: str, keys: Sequence[str]) -> int:
    if key not in keys:
        message = f"the campaign has no such {field}; it has {', '.join(keys)}"
        raise Invalid(f"{field}: {message}", errors=[FieldError(field, message)])
    return keys.index(key)


@dataclass(frozen=True)
class ArmChance:
    """One arm in one decision: its probability, or why it could not be served."""

    key: str
    name: str
    probability: float
    eligible: bool
    masked: str | None


@dataclass(frozen=True)
class Explanation:
    """Everything that is known about one decision."""

    decision: Decision
    campaign: Campaign
    definition: CampaignDefinition
    because: str
    arms: tuple[ArmChance, ...]
    outcomes: tuple[Outcome, ...]
    reward: Reward | None
    snapshot: Snapshot | None
    context: tuple[contexts.Told, ...]
    filled: frozenset[str] | None
    """Keys of the features whose default was used; None where the log does not say."""
    product: str | None
    """The product that the request was about, by its identifier."""

    @property
    def products(self) -> tuple[OfferedProduct, ...]:
        """What an offer on recommended products took off which product."""
        return tuple(OfferedProduct(**one) for one in self.decision.why.get("products", ()))


def explain(session: Session, decision_id: uuid.UUID) -> Explanation:
    """Return why a decision fell as it did and what came of it; raises `UnknownDecision`."""
    decision = session.scalar(select(Decision).where(Decision.id == decision_id))
    if decision is None:
        raise UnknownDecision(decision_id)
    campaign = session.get_one(Campaign, decision.campaign_id)
    plan = definition_at(session, campaign, decision.revision)
    outcomes = session.scalars(
        select(Outcome).where(Outcome.decision_id == decision.id).order_by(Outcome.position)
    ).all()
    return Explanation(
        decision=decision,
        campaign=campaign,
        definition=plan,
        because=because(decision, plan),
        arms=chances(decision, plan),
        outcomes=tuple(outcomes),
        reward=session.get(Reward, decision.id),
        snapshot=session.get(Snapshot, (decision.campaign_id, decision.snapshot)),
        context=tuple(contexts.told(plan, decision.context)),
        filled=frozenset(decision.why["filled"]) if "filled" in decision.why else None,
        product=decision.why.get("product"),
    )


@dataclass(frozen=True)
class Influence:
    """What a context did for the arm that was drawn: its probability, had less been known.

    ``without`` has one entry per feature, in the order of the definition: that feature alone is
    taken to be unknown. ``blind`` takes all of them to be unknown.
    """

    without: tuple[float, ...]
    blind: float


def influence(explanation: Explanation, live: LiveCampaign) -> Influence | None:
    """Recompute the draw as it would have been had features been unknown.

    ``live`` is the campaign as it was then (`service.replay`). None where the policy did not draw
    by the context.
    """
    made, plan = explanation.decision, explanation.definition
    if made.reason != "policy" or not live.served.contextual:
        return None
    unknown = contexts.encode(plan, {})

    def chance(context: Sequence[int]) -> float:
        return float(live.simplex(made.segment, made.mask, context)[made.arm])

    without, place = [], 0
    for feature in plan.features:
        end = place + feature.width
        without.append(chance((*made.context[:place], *unknown[place:end], *made.context[end:])))
        place = end
    return Influence(tuple(without), chance(unknown))


def definition_at(session: Session, campaign: Campaign, revision: int) -> CampaignDefinition:
    """Return a campaign's definition as it was at a revision."""
    kept = session.get(CampaignRevision, (campaign.id, revision))
    return CampaignDefinition.model_validate((kept or campaign).definition)


def chances(decision: Decision, plan: CampaignDefinition) -> tuple[ArmChance, ...]:
    """Return every arm with the probability that this decision gave it."""
    reasons: dict[str, Any] = decision.why.get("masked", {})
    return tuple(
        ArmChance(
            key=arm.key,
            name=arm.name,
            probability=decision.simplex[place],
            eligible=bool(decision.mask >> place & 1),
            masked=reasons.get(arm.key),
        )
        for place, arm in enumerate(plan.arms)
    )


def because(decision: Decision, plan: CampaignDefinition) -> str:
    """Return in a sentence or two why this arm was served."""
    said = REASONS.get(decision.reason, "")
    if decision.reason not in ("policy", "sticky"):
        return said
    eligible = decision.mask.bit_count()
    segment = plan.segment_keys[decision.segment]
    return (
        f"{said} In the segment {segment} it had a chance of {decision.propensity:.2%} among"
        f" {eligible} eligible arm{'' if eligible == 1 else 's'}, by what had been learnt in"
        f" snapshot {decision.snapshot}."
    )


@dataclass(frozen=True, kw_only=True)
class RivalNow:
    """What a campaign's log has said so far of a policy that may take over.

    gain, low and high are per decision, in units of the reward; None before anything is known.
    """

    policy: str
    decisions: int
    gain: float | None
    low: float | None
    high: float | None
    verdict: choice.Verdict


@dataclass(frozen=True, kw_only=True)
class PolicyNow:
    """The policy that serves a campaign, since when, by which change, and what may replace it."""

    policy: str
    since: dt.datetime | None
    change: Mapping[str, Any] | None
    rivals: tuple[RivalNow, ...]


def policy_now(session: Session, campaign: Campaign) -> PolicyNow:
    """Return the policy that serves a campaign now, and why."""
    plan = CampaignDefinition.model_validate(campaign.definition)
    newest = session.execute(queries.newest_snapshot(campaign.id)).one_or_none()
    stored = whole(newest.state, newest.fitted) if newest else None
    policy = served(plan, stored).policy.name
    subject = f"campaign:{campaign.key}"
    change = session.execute(queries.last_audit(subject, "campaign.policy")).one_or_none()
    known = change is not None and change.detail["to"] == policy
    found = session.execute(queries.rivals(campaign.id)).all() if plan.policy.name == AUTO else []
    rivals = tuple(_rival(row, of=len(found)) for row in found if row.incumbent == policy)
    return PolicyNow(
        policy=policy,
        since=change.at if change and known else campaign.started_at,
        change=change.detail if change and known else None,
        rivals=rivals,
    )


def _rival(row: Any, *, of: int) -> RivalNow:
    evidence, level = choice.restored(row.evidence), LEVEL / of
    known = evidence.rows > 0
    return RivalNow(
        policy=row.policy,
        decisions=evidence.rows,
        gain=choice.estimate(evidence) if known else None,
        low=choice.lower(evidence, alpha=level) if known else None,
        high=choice.upper(evidence, alpha=level) if known else None,
        verdict=choice.verdict(evidence, alpha=LEVEL, candidates=of),
    )


def revisions(
    session: Session, campaign: Campaign, *, before: int | None = None, limit: int = 100
) -> Sequence[CampaignRevision]:
    """Return a campaign's revisions, newest first."""
    query = select(CampaignRevision).where(CampaignRevision.campaign_id == campaign.id)
    if before is not None:
        query = query.where(CampaignRevision.revision < before)
    return session.scalars(query.order_by(CampaignRevision.revision.desc()).limit(limit)).all()


def snapshots(
    session: Session, campaign: Campaign, *, before: int | None = None, limit: int = 100
) -> Sequence[Snapshot]:
    """Return a campaign's snapshots, newest first."""
    query = select(Snapshot).where(Snapshot.campaign_id == campaign.id)
    if before is not None:
        query = query.where(Snapshot.version < before)
    return session.scalars(query.order_by(Snapshot.version.desc()).limit(limit)).all()


def audit_log(
    session: Session,
    *,
    subject: str | None = None,
    actor: str | None = None,
    before: int | None = None,
    limit: int = 100,
) -> Sequence[AuditEntry]:
    """Return deeds, newest first, of one subject or actor if given."""
    query = select(AuditEntry)
    if subject is not None:
        query = query.where(AuditEntry.subject == subject)
    if actor is not None:
        query = query.where(AuditEntry.actor == actor)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    return session.scalars(query.order_by(AuditEntry.id.desc()).limit(limit)).all()


def campaigns(
    session: Session, *, before: int | None = None, limit: int = 100
) -> Sequence[Campaign]:
    """Return campaigns, newest first."""
    query = select(Campaign)
    if before is not None:
        query = query.where(Campaign.id < before)
    return session.scalars(query.order_by(Campaign.id.desc()).limit(limit)).all()


def outcomes_until(explanation: Explanation) -> dt.datetime:
    """Return when the attribution window of a decision closes."""
    window = dt.timedelta(seconds=explanation.definition.attribution_seconds)
    return explanation.decision.decided_at + window
