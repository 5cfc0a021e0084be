"""What people do with campaigns: create, edit, launch, pause, resume, end, kill, duplicate.

Every function works in the caller's transaction and writes the audit log in it: the caller commits
once, and raising rolls everything back. Serving processes are told by NOTIFY at commit.

After the launch the ledger counts by the places of segments and arms. What gives those places
their meaning is frozen from then on; to change it, duplicate the campaign.
"""

import datetime as dt
import secrets
from typing import Any, Literal, get_args

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service import audit, queries
from service.definition import AUTO, CampaignDefinition, Segment
from service.eligibility import State, state_at
from service.errors import (
    Conflict,
    FieldError,
    Invalid,
    PreconditionFailed,
    UnknownCampaign,
)
from service.models import Campaign, CampaignRevision, Decision

Action = Literal["launch", "pause", "resume", "end", "kill"]
ACTIONS: tuple[Action, ...] = get_args(Action)
POSSIBLE: dict[str, tuple[Action, ...]] = {
    "draft": ("launch",),
    "scheduled": ("pause", "end", "kill"),
    "running": ("pause", "end", "kill"),
    "paused": ("resume", "end", "kill"),
    "ended": (),
}
REMEDY = (
    "cannot change after the launch, because what was learnt counts by it; duplicate the campaign"
)


def get(session: Session, key: str, *, lock: bool = False) -> Campaign:
    """Return a campaign by key; raises `UnknownCampaign`. ``lock`` holds it to the commit."""
    query = select(Campaign).where(Campaign.key == key)
    # The weaker lock: appending to the log refers to campaigns and need not wait for an editor.
    campaign = session.scalar(query.with_for_update(key_share=True) if lock else query)
    if campaign is None:
        raise UnknownCampaign(key)
    return campaign


def definition(campaign: Campaign) -> CampaignDefinition:
    """Return a campaign's present definition."""
    return CampaignDefinition.model_validate(campaign.definition)


def state_now(campaign: Campaign, *, now: dt.datetime | None = None) -> State:
    """Return the state that a campaign is in by the clock (see `service.eligibility`)."""
    plan = definition(campaign)
    moment = now or dt.datetime.now(dt.UTC)
    stored: Any = campaign.state
    return state_at(stored, plan.starts_at, plan.ends_at, moment)


def possible(campaign: Campaign, *, now: dt.datetime | None = None) -> tuple[Action, ...]:
    """Return the actions that a campaign can take now."""
    return POSSIBLE[state_now(campaign, now=now)]


def create(session: Session, wanted: CampaignDefinition, *, actor: str) -> Campaign:
    """Store a new draft; raises `Conflict` when its key is taken."""
    campaign = Campaign(
        key=wanted.key,
        definition=wanted.model_dump(mode="json"),
        seed=secrets.token_bytes(32),
    )
    session.add(campaign)
    try:
        session.flush()
    except IntegrityError:
        text = f'There is a campaign with the key "{wanted.key}" already; choose another key.'
        raise Conflict(text, errors=[FieldError("key", "is taken already")]) from None
    session.refresh(campaign)
    _keep_revision(session, campaign, actor=actor)
    _note(session, campaign, "create", actor=actor, detail={"revision": campaign.revision})
    return campaign


def update(
    session: Session,
    key: str,
    wanted: CampaignDefinition,
    *,
    actor: str,
    revision: int | None = None,
    now: dt.datetime | None = None,
) -> Campaign:
    """Replace a campaign's definition and return it at its next revision.

    ``revision`` is the one that the editor has seen.

    Raises:
        PreconditionFailed: somebody else has edited it since.
        Conflict: the campaign has ended.
        Invalid: a part is frozen by the launch; every such field is named.
    """
    campaign = get(session, key, lock=True)
    if revision is not None and revision != campaign.revision:
        raise PreconditionFailed(
            f"The campaign is at revision {campaign.revision}, not {revision}:"
            " read it again, then repeat your change."
        )
    if state_now(campaign, now=now) == "ended":
        raise Conflict("The campaign has ended and cannot be edited; duplicate it instead.")
    before = definition(campaign)
    refused = frozen(before, wanted, launched=campaign.state != "draft")
    if refused:
        raise Invalid(f"{refused[0].field}: {refused[0].message}", errors=refused)
    changed = [
        name
        for name in before.model_fields_set | wanted.model_fields_set
        if getattr(before, name) != getattr(wanted, name)
    ]
    if not changed:
        return campaign
    campaign.definition = wanted.model_dump(mode="json")
    campaign.revision += 1
    campaign.updated_at = func.now()
    _keep_revision(session, campaign, actor=actor)
    _note(
        session,
        campaign,
        "edit",
        actor=actor,
        detail={"revision": campaign.revision, "changed": sorted(changed)},
    )
    return campaign


def frozen(
    before: CampaignDefinition, wanted: CampaignDefinition, *, launched: bool
) -> list[FieldError]:
    """Return the fields that an edit must leave alone, and why; empty when the edit is fine."""
    if before.key != wanted.key:
        return [FieldError("key", "cannot change; duplicate the campaign under the new key")]
    if not launched:
        return []
    found = [
        FieldError(name, REMEDY)
        for name in ("currency", "objective")
        if getattr(before, name) != getattr(wanted, name)
    ]
    if [arm.key for arm in before.arms] != [arm.key for arm in wanted.arms]:
        found.append(FieldError("arms", f"keys and order: {REMEDY}"))
    if [_meaning(one) for one in before.segments] != [_meaning(one) for one in wanted.segments]:
        found.append(FieldError("segments", f"keys, order and rules: {REMEDY}"))
    if before.forgets and before.bucket_seconds != wanted.bucket_seconds:
        found.append(FieldError("policy", f"bucket_seconds {REMEDY}"))
    if before.features != wanted.features:
        found.append(FieldError("features", REMEDY))
    elif not found and not _follows(before, wanted):
        same = "the new policy keeps other sums than the old one"
        found.append(FieldError("policy", f"{same}, so it {REMEDY}"))
    return found


def _follows(before: CampaignDefinition, wanted: CampaignDefinition) -> bool:
    """Tell whether the wanted policy can go on: from the sums, or from a state of its own.

    A policy that counts gets the latter where it takes over from ``auto`` (`service.auto`).
    """
    old, new = before.policy.name, wanted.policy.name
    if new == AUTO and old in wanted.choices:
        return _layout(before) == _layout(wanted.served_by(old))
    if old == AUTO and new in before.choices:
        return _layout(before.served_by(new)) == _layout(wanted)
    counts = wanted.build_policy().retrain is None
    return _layout(before) == _layout(wanted) or (old == AUTO and counts)


def _layout(plan: CampaignDefinition) -> list[tuple[str, Any, str]]:
    """What a state of the campaign's policy looks like: fields, shapes and types."""
    state = plan.build_policy().init()
    return [
        (name, np.shape(field), np.asarray(field).dtype.str)
        for name, field in zip(state._fields, state, strict=True)
    ]


def _meaning(segment: Segment) -> tuple[Any, ...]:
    return segment.key, segment.rules


def transition(
    session: Session,
    key: str,
    action: Action,
    *,
    actor: str,
    now: dt.datetime | None = None,
) -> Campaign:
    """Launch, pause, resume, end or kill a campaign, and return it in its new state.

    Ending lets outcomes of decisions made so far be learnt; killing besides marks the campaign
    as one that went wrong. Both serve the default arm to everyone from the commit on.

    Raises:
        Conflict: not possible in the present state; says what is.
    """
    moment = now or dt.datetime.now(dt.UTC)
    campaign = get(session, key, lock=True)
    state = state_now(campaign, now=moment)
    if action not in POSSIBLE[state]:
        able = ", ".join(POSSIBLE[state]) or "nothing more (duplicate it to run it again)"
        raise Conflict(f"A campaign that is {state} cannot {action}; possible now: {able}.")
    plan = definition(campaign)
    if action in ("launch", "resume"):
        _begin(campaign, plan, moment)
    elif action == "pause":
        campaign.state = "paused"
    else:
        campaign.state, campaign.ended_at = "ended", moment
        campaign.killed_at = moment if action == "kill" else None
    campaign.updated_at = func.now()
    _note(session, campaign, action, actor=actor, detail={"from": state, "to": campaign.state})
    return campaign


def _begin(campaign: Campaign, plan: CampaignDefinition, moment: dt.datetime) -> None:
    if plan.ends_at is not None and plan.ends_at <= moment:
        text = f"ends_at lies in the past ({plan.ends_at:%Y-%m-%d %H:%M} UTC); move it first."
        raise Conflict(text, errors=[FieldError("ends_at", "lies in the past")])
    if plan.starts_at is not None and plan.starts_at > moment:
        campaign.state = "scheduled"
    else:
        campaign.state = "running"
        campaign.started_at = campaign.started_at or moment


def duplicate(
    session: Session, key: str, new_key: str, *, actor: str, name: str | None = None
) -> Campaign:
    """Create a draft like this campaign under another key, without its schedule or learning."""
    original = definition(get(session, key))
    copied = original.model_dump(mode="json") | {
        "key": new_key,
        "name": name or f"{original.name[:112]} (copy)",
        "starts_at": None,
        "ends_at": None,
    }
    return create(session, CampaignDefinition.model_validate(copied), actor=actor)


def delete(session: Session, key: str, *, actor: str, revision: int | None = None) -> None:
    """Delete a draft that has never been asked for a decision; raises `Conflict` otherwise."""
    campaign = get(session, key, lock=True)
    if revision is not None and revision != campaign.revision:
        raise PreconditionFailed()
    if campaign.state != "draft":
        raise Conflict(
            f"A campaign that is {state_now(campaign)} cannot be deleted, because its log must"
            " stay readable; end it instead."
        )
    # Whoever appends decisions holds this lock, too, and looks for their campaign.
    session.execute(queries.LOCK_LOG)
    if session.scalar(select(queries.any_in(Decision, campaign.id))):
        raise Conflict(
            "App servers have asked this draft for decisions, so its log must stay readable."
        )
    _note(session, campaign, "delete", actor=actor, detail={"definition": campaign.definition})
    for kept in session.scalars(
        select(CampaignRevision).where(CampaignRevision.campaign_id == campaign.id)
    ):
        session.delete(kept)
    session.flush()
    session.delete(campaign)
    session.flush()


def _keep_revision(session: Session, campaign: Campaign, *, actor: str) -> None:
    session.add(
        CampaignRevision(
            campaign_id=campaign.id,
            revision=campaign.revision,
            definition=campaign.definition,
            author=actor,
        )
    )


def _note(
    session: Session, campaign: Campaign, action: str, *, actor: str, detail: dict[str, Any]
) -> None:
    audit.record(
        session,
        actor=actor,
        action=f"campaign.{action}",
        subject=f"campaign:{campaign.key}",
        detail=detail,
    )
    session.execute(select(func.pg_notify("barter", "campaigns")))
    session.flush()
