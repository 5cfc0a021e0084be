"""A decision, from request to reply. This file is the checkout path, in the order it happens.

    request → known already? → campaign, unit, segment → running? holdout? sticky?
            → mask → simplex → draw → durable on this host's disk → reply

Everything is in memory or in the local log (`service.spool`); nothing here waits for Postgres. A
decision is a function of (campaign seed, decision id, snapshot, segment, mask): `service.replay`
recomputes it from the log. What was not randomised (not running, holdout, nothing eligible) gets
the default arm with propensity 1 and says so in ``reason``; learning ignores it.
"""

import datetime as dt
import hashlib
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
import structlog

from service.eligibility import held_out, mask_bits, masked, segment_of
from service.errors import IdempotencyConflict, UnknownCampaign
from service.messages import DecisionReply, DecisionRequest
from service.runtime import Runtime
from service.snapshots import Choice, LiveCampaign
from service.spool import DECISION, Assignment, Entry, Reservation, SpoolError, Stored

RANDOMISED = ("policy", "sticky")
log = structlog.get_logger()


@dataclass(frozen=True)
class Draft:
    """A decision that has been made but not yet kept."""

    id: uuid.UUID
    request: DecisionRequest
    campaign: LiveCampaign
    unit: bytes
    segment: int
    mask: int
    why: dict[str, Any]
    choice: Choice
    reason: str
    decided_at: dt.datetime
    origin: str | None = None
    snapshot: int = 0
    assignment: Assignment | None = None

    @property
    def expires_at(self) -> dt.datetime:
        """When the offer ends."""
        return self.decided_at + dt.timedelta(seconds=self.campaign.definition.offer_seconds)

    @property
    def reserved_minor(self) -> int:
        """What this offer sets aside of the budget until it ends: the most that it can cost."""
        definition = self.campaign.definition
        if definition.budget_minor is None:
            return 0
        return definition.offer(self.segment, self.choice.arm).worst_minor() or 0

    def _reservation(self) -> Reservation | None:
        budget = self.campaign.definition.budget_minor
        if budget is None or self.reserved_minor == 0:
            return None
        return Reservation(self.campaign.id, self.reserved_minor, budget)

    def entry(self) -> Entry:
        """Return the log entry: the row of the table ``decisions``, and what a reply needs."""
        row = {
            "id": self.id,
            "campaign_id": self.campaign.id,
            "revision": self.campaign.revision,
            "snapshot": self.snapshot,
            "unit": f"\\x{self.unit.hex()}",
            "segment": self.segment,
            "mask": self.mask,
            "simplex": self.choice.simplex,
            "arm": self.choice.arm,
            "propensity": self.choice.propensity,
            "reason": self.reason,
            "origin": self.origin,
            "why": self.why,
            "reserved_minor": self.reserved_minor,
            "decided_at": self.decided_at,
            "expires_at": self.expires_at,
            "fingerprint": fingerprint(self.request),
        }
        return Entry(
            DECISION, self.id.bytes, orjson.dumps(row), self.assignment, self._reservation()
        )

    def reply(self) -> DecisionReply:
        """Return what the app server gets."""
        return _reply(
            self.campaign, self.id, self.segment, self.choice.arm, self.choice.propensity,
            self.reason, self.snapshot, self.expires_at,
        )  # fmt: skip


def decide(
    runtime: Runtime, requests: Sequence[DecisionRequest], *, now: dt.datetime | None = None
) -> list[DecisionReply]:
    """Choose an arm for every request, durably, all with one synchronisation of the disk.

    Should the local log refuse, every reply is the campaign's default arm with the reason
    ``unavailable``: a checkout always gets an answer.

    Raises:
        UnknownCampaign: a request names a campaign that does not exist; nothing is kept.
        IdempotencyConflict: a request id was used before for another request.
    """
    moment = now or dt.datetime.now(dt.UTC)
    drafts = [_draft(runtime, request, place, moment) for place, request in enumerate(requests)]
    try:
        stored = runtime.spool.append([draft.entry() for draft in drafts])
    except SpoolError:
        log.exception("decisions_not_kept", count=len(drafts))
        return [_unavailable(draft) for draft in drafts]
    return [
        _settle(runtime, draft, result, moment, place)
        for place, (draft, result) in enumerate(zip(drafts, stored, strict=True))
    ]


def decision_id(campaign: LiveCampaign, request_id: str | None) -> uuid.UUID:
    """Return a new id: a UUIDv8 (RFC 9562) that starts with the campaign's number.

    A request id always yields the same decision id, on every host, so that a repeat meets the
    decision that was stored first.
    """
    if request_id is None:
        tail = os.urandom(12)
    else:
        tail = hashlib.blake2b(request_id.encode(), key=campaign.seed, digest_size=12).digest()
    number = int.from_bytes(campaign.id.to_bytes(4, "big") + tail, "big")
    number = number & ~(0xF << 76) | 0x8 << 76
    return uuid.UUID(int=number & ~(0x3 << 62) | 0x2 << 62)


def campaign_number(decision: uuid.UUID) -> int:
    """Return the campaign's number out of a decision id."""
    return decision.int >> 96


def fingerprint(request: DecisionRequest) -> str:
    """Return what tells two requests under one request id apart, without storing the unit."""
    return hashlib.blake2b(request.model_dump_json().encode(), digest_size=12).hexdigest()


def _draft(runtime: Runtime, request: DecisionRequest, place: int, now: dt.datetime) -> Draft:
    campaign = runtime.catalogue.campaign(request.campaign)
    if campaign is None:
        raise UnknownCampaign(request.campaign, place)
    definition, unit = campaign.definition, runtime.pseudonym(request.unit)
    segment = segment_of(definition, _attributes(runtime, request, unit))
    limited = definition.budget_minor is not None
    committed = runtime.spool.committed(campaign.id) if limited else 0
    reasons = masked(definition, segment, request.exclude_arms, committed)
    mask = mask_bits(definition, reasons)
    draft = Draft(
        id=decision_id(campaign, request.request_id),
        request=request,
        campaign=campaign,
        unit=unit,
        segment=segment,
        mask=mask,
        why={"masked": reasons},
        choice=campaign.certain(definition.default_index),
        reason=campaign.state_at(now),
        decided_at=now,
        snapshot=campaign.version,
    )
    if draft.reason != "running":
        return draft
    if held_out(definition, campaign.seed, unit):
        return replace(draft, reason="holdout")
    if mask == 0:
        return replace(draft, reason="no_eligible_arm")
    return _randomise(runtime, draft)


def _attributes(runtime: Runtime, request: DecisionRequest, unit: bytes) -> Mapping[str, object]:
    stored = runtime.spool.attributes(unit)
    return request.attributes if stored is None else orjson.loads(stored) | request.attributes


def _randomise(runtime: Runtime, draft: Draft) -> Draft:
    sticky = draft.campaign.definition.sticky_seconds
    held = None
    if sticky:
        held = runtime.spool.assignment(draft.campaign.id, draft.unit, draft.decided_at.timestamp())
        if held is not None and _keeps(draft, held):
            return _stick(draft, held)
    choice = draft.campaign.draw(draft.segment, draft.mask, draft.id.bytes)
    drawn = replace(draft, choice=choice, reason="policy")
    if not sticky:
        return drawn
    until = draft.decided_at.timestamp() + sticky
    return replace(
        drawn,
        assignment=Assignment(
            draft.campaign.id, draft.unit, _assignment_body(drawn), until, replaces=held
        ),
    )


def _assignment_body(drawn: Draft) -> bytes:
    return orjson.dumps(
        {
            "origin": drawn.id,
            "snapshot": drawn.snapshot,
            "arm": drawn.choice.arm,
            "propensity": drawn.choice.propensity,
            "simplex": drawn.choice.simplex,
        }
    )


def _keeps(draft: Draft, held: bytes) -> bool:
    return bool(draft.mask >> orjson.loads(held)["arm"] & 1)


def _stick(draft: Draft, held: bytes) -> Draft:
    """Return the decision that repeats a unit's assignment, with the probabilities of its draw."""
    kept = orjson.loads(held)
    choice = Choice(kept["arm"], kept["propensity"], tuple(kept["simplex"]))
    return replace(
        draft, choice=choice, reason="sticky", origin=kept["origin"], snapshot=kept["snapshot"],
        assignment=None,
    )  # fmt: skip


def _settle(
    runtime: Runtime, draft: Draft, stored: Stored, now: dt.datetime, place: int
) -> DecisionReply:
    if stored.known is not None:
        return _known(runtime, draft, orjson.loads(stored.known), place)
    if stored.assigned is not None or stored.exhausted:
        # While ours was being drawn, another request assigned this unit, or took what was left
        # of the budget. Nothing of ours was kept; a fresh look sees what is true now.
        (again,) = decide(runtime, [draft.request], now=now)
        return again
    return draft.reply()


def _known(runtime: Runtime, draft: Draft, row: dict[str, Any], place: int) -> DecisionReply:
    if row["fingerprint"] != fingerprint(draft.request):
        raise IdempotencyConflict(place)
    return _reply(
        draft.campaign, draft.id, row["segment"], row["arm"], row["propensity"], row["reason"],
        row["snapshot"], dt.datetime.fromisoformat(row["expires_at"]),
    )  # fmt: skip


def _unavailable(draft: Draft) -> DecisionReply:
    default = draft.campaign.definition.default_index
    return replace(draft, choice=draft.campaign.certain(default), reason="unavailable").reply()


def _reply(
    campaign: LiveCampaign, id: uuid.UUID, segment: int, arm: int, propensity: float, reason: str,
    snapshot: int, expires_at: dt.datetime,
) -> DecisionReply:  # fmt: skip
    definition = campaign.definition
    return DecisionReply.model_construct(
        decision_id=id,
        campaign=definition.key,
        arm=definition.arms[arm].key,
        offer=definition.offer(segment, arm),
        propensity=propensity,
        reason=reason,
        segment=definition.segment_keys[segment],
        snapshot=snapshot,
        expires_at=expires_at,
    )
