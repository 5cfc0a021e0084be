"""What crosses the wire in management: requests, replies, pages, the problem document."""

import datetime as dt
import uuid
from typing import Annotated, Any, Literal

from pydantic import Field

from bandits.evaluation import choice
from service import campaigns, customers, history
from service.definition import Attributes, CampaignDefinition, Document, Key, Label, Short
from service.history import Explanation, Influence
from service.messages import OfferedProduct
from service.models import (
    ApiKey,
    AuditEntry,
    Campaign,
    CampaignRevision,
    Decision,
    Reward,
    Snapshot,
    User,
)

State = Literal["draft", "scheduled", "running", "paused", "ended"]
ActionName = Literal["launch", "pause", "resume", "end", "kill"]
ScopeName = Literal["decide", "reward", "manage", "read", "local"]
RoleName = Literal["marketer", "analyst", "developer", "admin"]
ReasonName = Literal[
    "policy", "sticky", "holdout", "draft", "scheduled", "paused", "ended", "killed",
    "no_eligible_arm",
]  # fmt: skip
Cursor = Annotated[
    str | None,
    Field(description="Continues a list: the `next` of the page before.", max_length=400),
]
Password = Annotated[str, Field(min_length=10, max_length=200)]
MAX_UNITS = 1000


class FieldProblem(Document):
    """One field that was refused."""

    field: str = Field(description="Path in the request, such as `decisions[3].unit`.")
    message: str = Field(description="What is wrong with it and what would be right.")


class Problem(Document):
    """Why a request was refused (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: tuple[FieldProblem, ...] = Field(description="The fields at fault, if it was fields.")
    instance: str = Field(description="Identifies this occurrence in the service's log.")


class Page(Document):
    """Which part of a list is wanted."""

    cursor: Cursor = None
    limit: Annotated[int, Field(ge=1, le=500, description="At most so many on a page.")] = 100


class DecisionsPage(Page):
    """Which decisions of a campaign are wanted, newest first."""

    arm: Key | None = Field(None, description="Only decisions for this arm.")
    segment: Key | None = Field(None, description="Only decisions in this segment.")
    reason: ReasonName | None = Field(None, description="Only decisions with this reason.")
    unit: Short | None = Field(None, description="Only decisions about this unit, in plain.")


class AuditPage(Page):
    """Which deeds are wanted, newest first."""

    subject: Short | None = Field(None, description="Such as `campaign:spring-sale`.")
    actor: Short | None = Field(None, description="Such as `user:ana@shop.example`.")


class ReportFormat(Document):
    """How a report is wanted."""

    format: Literal["json", "csv"] | None = Field(None, description="Overrides the Accept header.")


class UnitQuery(Document):
    """Which unit is meant."""

    unit: Short = Field(description="Customer, device or session, in plain.")


class CampaignReply(Document):
    """A campaign: its definition, its state now, and what can be done with it."""

    key: str
    state: State = Field(description="By the clock: schedules need no action to take effect.")
    possible: tuple[ActionName, ...] = Field(description="The actions that it can take now.")
    revision: int = Field(description="Counts edits; also the ETag.")
    definition: CampaignDefinition
    created_at: dt.datetime
    updated_at: dt.datetime
    started_at: dt.datetime | None
    ended_at: dt.datetime | None
    killed_at: dt.datetime | None

    @classmethod
    def of(cls, campaign: Campaign) -> "CampaignReply":
        """Return the reply about a campaign."""
        return cls(
            key=campaign.key,
            state=campaigns.state_now(campaign),
            possible=campaigns.possible(campaign),
            revision=campaign.revision,
            definition=campaigns.definition(campaign),
            created_at=utc(campaign.created_at),
            updated_at=utc(campaign.updated_at),
            started_at=_utc(campaign.started_at),
            ended_at=_utc(campaign.ended_at),
            killed_at=_utc(campaign.killed_at),
        )


class CampaignList(Document):
    """Campaigns, newest first."""

    campaigns: tuple[CampaignReply, ...]
    next: str | None = Field(description="Cursor of the next page; null on the last.")


class DuplicateRequest(Document):
    """What the copy of a campaign is called."""

    key: Key
    name: Label | None = None


class RevisionReply(Document):
    """A definition that a campaign once had."""

    revision: int
    author: str
    created_at: dt.datetime
    definition: CampaignDefinition

    @classmethod
    def of(cls, kept: CampaignRevision) -> "RevisionReply":
        """Return the reply about a revision."""
        return cls(
            revision=kept.revision,
            author=kept.author,
            created_at=utc(kept.created_at),
            definition=CampaignDefinition.model_validate(kept.definition),
        )


class RevisionList(Document):
    """Revisions, newest first."""

    revisions: tuple[RevisionReply, ...]
    next: str | None


class SnapshotReply(Document):
    """What a policy knew at one point of the log."""

    version: int
    revision: int
    digest: str = Field(description="SHA-256 of the state: equal to that of a rebuild.")
    decision_position: int
    outcome_position: int
    learnt_until: dt.datetime | None
    created_at: dt.datetime

    @classmethod
    def of(cls, snapshot: Snapshot) -> "SnapshotReply":
        """Return the reply about a snapshot."""
        return cls(
            version=snapshot.version,
            revision=snapshot.revision,
            digest=snapshot.digest,
            decision_position=snapshot.decision_position,
            outcome_position=snapshot.outcome_position,
            learnt_until=_utc(snapshot.learnt_until),
            created_at=utc(snapshot.created_at),
        )


class SnapshotList(Document):
    """Snapshots, newest first."""

    snapshots: tuple[SnapshotReply, ...]
    next: str | None


class LoggedDecision(Document):
    """One line of the decision log."""

    decision_id: uuid.UUID
    decided_at: dt.datetime
    expires_at: dt.datetime
    unit: str = Field(description="The keyed pseudonym, in hexadecimal.")
    segment: str
    arm: str
    propensity: float
    reason: str
    revision: int
    snapshot: int
    context: tuple[int, ...] = Field(
        description="The features as they were encoded, in 2**-12 and in the order of the"
        " definition, one place per value of a category; empty where none are declared."
    )

    @classmethod
    def of(cls, decision: Decision, definition: CampaignDefinition) -> "LoggedDecision":
        """Return the line of a decision."""
        return cls(
            decision_id=decision.id,
            decided_at=utc(decision.decided_at),
            expires_at=utc(decision.expires_at),
            unit=decision.unit.hex(),
            segment=definition.segment_keys[decision.segment],
            arm=definition.arms[decision.arm].key,
            propensity=decision.propensity,
            reason=decision.reason,
            revision=decision.revision,
            snapshot=decision.snapshot,
            context=tuple(decision.context),
        )


class DecisionLog(Document):
    """Decisions, newest first."""

    decisions: tuple[LoggedDecision, ...]
    next: str | None


class ArmChanceReply(Document):
    """One arm in one decision."""

    key: str
    name: str
    probability: float
    eligible: bool
    masked: str | None = Field(description="Why it could not be served.")


class FeatureReply(Document):
    """One feature in one decision."""

    key: str
    name: str
    value: bool | float | str | None = Field(
        description="The value that was used, to the precision of its encoding; null for a category"
        " that was none of its values."
    )
    filled: bool | None = Field(
        description="Whether the default was used, because the attribute was missing or of another"
        " type; null for decisions that were logged without saying."
    )
    probability_without: float | None = Field(
        description="What the served arm's probability would have been with this feature alone"
        " unknown; null where the policy did not draw by the context."
    )


class OutcomeReply(Document):
    """One event about a decision."""

    event_id: str
    kind: str
    revenue_minor: int
    margin_minor: int | None
    occurred_at: dt.datetime
    received_at: dt.datetime
    discount_minor: int | None


class RewardReply(Document):
    """What a decision's outcomes add up to, as the learner has credited it."""

    conversions: int
    revenue_minor: int
    discount_minor: int
    profit_minor: int
    late: int

    @classmethod
    def of(cls, reward: Reward) -> "RewardReply":
        """Return the reply about a reward."""
        return cls(**{name: getattr(reward, name) for name in cls.model_fields})


class ReplayReply(Document):
    """What recomputing the decision from the log gave."""

    possible: bool = Field(description="Whether all that it was made from is still stored.")
    same: bool | None = Field(description="Whether arm and probabilities agree bit for bit.")
    arm: str | None
    propensity: float | None
    note: str | None = Field(description="What is missing, if it could not be recomputed.")


class ExplanationReply(Document):
    """Why a decision fell as it did, and what came of it."""

    decision: LoggedDecision
    campaign: str
    because: str
    arms: tuple[ArmChanceReply, ...]
    product: str | None = Field(description="The product that the request named.")
    context: tuple[FeatureReply, ...] = Field(description="The features, in words.")
    origin: uuid.UUID | None = Field(description="The decision whose arm the unit keeps.")
    products: tuple[OfferedProduct, ...] = Field(
        description="What an offer on recommended products took off which product."
    )
    snapshot_digest: str | None
    attribution_ends_at: dt.datetime
    outcomes: tuple[OutcomeReply, ...]
    reward: RewardReply | None
    replay: ReplayReply

    @classmethod
    def of(
        cls, found: Explanation, replay: ReplayReply, influence: Influence | None
    ) -> "ExplanationReply":
        """Return the reply about a decision."""
        return cls(
            decision=LoggedDecision.of(found.decision, found.definition),
            campaign=found.campaign.key,
            because=found.because,
            arms=tuple(
                ArmChanceReply(
                    key=arm.key,
                    name=arm.name,
                    probability=arm.probability,
                    eligible=arm.eligible,
                    masked=arm.masked,
                )
                for arm in found.arms
            ),
            product=found.product,
            context=tuple(
                FeatureReply(
                    key=one.key,
                    name=one.name,
                    value=one.value,
                    filled=None if found.filled is None else one.key in found.filled,
                    probability_without=influence.without[place] if influence else None,
                )
                for place, one in enumerate(found.context)
            ),
            origin=found.decision.origin,
            products=found.products,
            snapshot_digest=found.snapshot.digest if found.snapshot else None,
            attribution_ends_at=utc(history.outcomes_until(found)),
            outcomes=tuple(
                OutcomeReply(
                    event_id=one.event_id,
                    kind=one.kind,
                    revenue_minor=one.revenue_minor,
                    margin_minor=one.margin_minor,
                    occurred_at=utc(one.occurred_at),
                    received_at=utc(one.received_at),
                    discount_minor=one.discount_minor,
                )
                for one in found.outcomes
            ),
            reward=RewardReply.of(found.reward) if found.reward else None,
            replay=replay,
        )


class KeyRequest(Document):
    """An API key that is wanted."""

    name: Label = Field(description="What it is for, such as `checkout`.")
    scopes: Annotated[tuple[ScopeName, ...], Field(min_length=1, max_length=5)]


class KeyReply(Document):
    """An API key, without its secret."""

    id: str
    name: str
    scopes: tuple[ScopeName, ...]
    created_by: str
    created_at: dt.datetime
    revoked_at: dt.datetime | None

    @classmethod
    def of(cls, key: ApiKey) -> "KeyReply":
        """Return the reply about a key."""
        return cls(**_key_fields(key))


class NewKeyReply(KeyReply):
    """An API key with its secret, which is shown only now."""

    api_key: str = Field(description="Keep it: only its SHA-256 is stored.")

    @classmethod
    def made(cls, key: ApiKey, text: str) -> "NewKeyReply":
        """Return the reply about a new key."""
        return cls(**_key_fields(key), api_key=text)


def _key_fields(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.public_id,
        "name": key.name,
        "scopes": tuple(key.scopes),
        "created_by": key.created_by,
        "created_at": utc(key.created_at),
        "revoked_at": _utc(key.revoked_at),
    }


class KeyList(Document):
    """All API keys, newest first."""

    keys: tuple[KeyReply, ...]


class UserRequest(Document):
    """A console user who is wanted."""

    email: Short
    name: Label
    role: RoleName
    password: Password


class UserChange(Document):
    """What changes about a user; what is left out stays."""

    role: RoleName | None = None
    disabled: bool | None = None


class PasswordChange(Document):
    """A user's present password and the one that replaces it."""

    current: Annotated[str, Field(max_length=200)]
    new: Password


class UserReply(Document):
    """A console user."""

    id: int
    email: str
    name: str
    role: RoleName
    created_at: dt.datetime
    disabled_at: dt.datetime | None

    @classmethod
    def of(cls, user: User) -> "UserReply":
        """Return the reply about a user."""
        role: Any = user.role
        return cls(
            id=user.id,
            email=user.email,
            name=user.name,
            role=role,
            created_at=utc(user.created_at),
            disabled_at=_utc(user.disabled_at),
        )


class UserList(Document):
    """All users, by e-mail address."""

    users: tuple[UserReply, ...]


class AuditReply(Document):
    """One deed."""

    id: int
    at: dt.datetime
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]

    @classmethod
    def of(cls, entry: AuditEntry) -> "AuditReply":
        """Return the reply about a deed."""
        return cls(
            id=entry.id,
            at=utc(entry.at),
            actor=entry.actor,
            action=entry.action,
            subject=entry.subject,
            detail=entry.detail,
        )


class AuditLog(Document):
    """Deeds, newest first."""

    entries: tuple[AuditReply, ...]
    next: str | None


class CustomerAttributes(Document):
    """One unit and what is to be stored about it."""

    unit: Short
    attributes: Attributes


class CustomerImport(Document):
    """Up to a thousand units at once; each replaces what was stored about its unit."""

    customers: Annotated[tuple[CustomerAttributes, ...], Field(min_length=1, max_length=MAX_UNITS)]


class ImportReply(Document):
    """How many units were stored."""

    stored: int


class CustomerReply(Document):
    """What is stored about a unit."""

    unit: str = Field(description="The keyed pseudonym, in hexadecimal.")
    attributes: Attributes
    updated_at: dt.datetime

    @classmethod
    def of(cls, unit: bytes, found: customers.Attributes) -> "CustomerReply":
        """Return the reply about a unit."""
        return cls(unit=unit.hex(), attributes=found.values, updated_at=utc(found.updated_at))


class PolicyOption(Document):
    """One option of a policy."""

    name: str
    kind: Literal["number", "choice", "per_arm", "per_segment_arm"]
    default: float | str | None
    minimum: float | None
    maximum: float | None
    open: bool = Field(description="Whether the minimum itself is excluded.")
    help: str
    choices: tuple[str, ...] = Field(description="The words that a choice is made from.")


class PolicyReply(Document):
    """A policy that a campaign may choose."""

    name: str
    title: str
    summary: str
    objectives: tuple[str, ...]
    randomised: bool
    options: tuple[PolicyOption, ...]
    contextual: bool = Field(description="Whether it decides by the campaign's features.")
    pooled: bool = Field(description="Whether segments learn from each other.")


class RivalReply(Document):
    """What the log has said so far of a policy that may take over; gains are per decision."""

    policy: str
    decisions: int = Field(description="Of the present policy, judged so far.")
    gain: float | None = Field(description="Estimated, in the units of the objective's reward.")
    low: float | None = Field(description="Lower end of an interval that holds at every look.")
    high: float | None = Field(description="Upper end of the same interval.")
    verdict: choice.Verdict

    @classmethod
    def of(cls, rival: history.RivalNow) -> "RivalReply":
        """Return the reply about a rival."""
        return cls(
            policy=rival.policy,
            decisions=rival.decisions,
            gain=rival.gain,
            low=rival.low,
            high=rival.high,
            verdict=rival.verdict,
        )


class PolicyNowReply(Document):
    """The policy that serves a campaign, and why."""

    policy: str
    since: dt.datetime | None
    change: dict[str, Any] | None = Field(
        description="How it came to serve: the detail of the audit entry `campaign.policy`."
    )
    rivals: tuple[RivalReply, ...] = Field(description="Empty unless the policy is `auto`.")

    @classmethod
    def of(cls, found: history.PolicyNow) -> "PolicyNowReply":
        """Return the reply about a campaign's policy."""
        return cls(
            policy=found.policy,
            since=_utc(found.since),
            change=dict(found.change) if found.change else None,
            rivals=tuple(RivalReply.of(one) for one in found.rivals),
        )


class PolicyList(Document):
    """All policies."""

    policies: tuple[PolicyReply, ...]


class HealthReply(Document):
    """The process answers."""

    status: Literal["ok"] = "ok"


class ReadyReply(Document):
    """The process can decide: it knows the campaigns and keys."""

    status: Literal["ready"] = "ready"
    catalogue: dict[str, Any] = Field(description="How old is what decisions are made from.")


def utc(moment: dt.datetime) -> dt.datetime:
    """Return a moment in UTC, whatever zone the database connection speaks."""
    return moment.astimezone(dt.UTC)


def _utc(moment: dt.datetime | None) -> dt.datetime | None:
    return None if moment is None else utc(moment)
