"""A decision, from request to reply. This file is the checkout path, in the order it happens.

    request → campaign, unit, segment, context → mask of eligible arms
            → running? holdout? anything eligible?
            → the arm that the unit keeps (sticky), else the simplex and a draw
            → which products, if its offer is on recommended ones
            → durable in the spool, where a repeated request id meets its first decision → reply

Everything is in memory or in the spool (`service.spool`), this host's durable log; nothing here
waits for Postgres. A drawn decision is a function of (campaign seed, decision id, revision,
snapshot, segment, mask, context), a sticky one repeats the decision named in ``origin``:
`service.replay` recomputes both. What was not randomised (not running, holdout, nothing
eligible) gets the default arm with propensity 1 and says so in ``reason``; no policy learns from
it.
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

from service import contexts, products, recommended
from service.definition import CampaignDefinition, Offer, RecommendedOffer
from service.eligibility import held_out, mask_bits, masked, segment_of
from service.errors import IdempotencyConflict, UnknownCampaign
from service.messages import DecisionReply, DecisionRequest, OfferedProduct
from service.runtime import Runtime
from service.snapshots import Choice, LiveCampaign
from service.spool import DECISION, Assignment, Entry, Reservation, SpoolError, Stored

RANDOMISED = ("policy", "sticky")
"""Reasons that policies learn from: a sticky repeat has its draw's propensity, its own reward."""
TRIES = 5
TOLD = {"arm", "offer", "segment"}
"""What a repeated request must be told again, whatever has been edited meanwhile."""
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
    context: tuple[int, ...] = ()
    origin: str | None = None
    snapshot: int = 0
    assignment: Assignment | None = None
    products: tuple[OfferedProduct, ...] = ()

    @property
    def offer(self) -> Offer:
        """The offer of the arm that was chosen, in the unit's segment."""
        return self.campaign.definition.offer(self.segment, self.choice.arm)

    @property
    def expires_at(self) -> dt.datetime:
        """When the offer ends."""
        return self.decided_at + dt.timedelta(seconds=self.campaign.definition.offer_seconds)

    @property
    def reserved_minor(self) -> int:
        """What this offer sets aside of the budget until it is settled: the most it can cost."""
        if self.campaign.definition.budget_minor is None:
            return 0
        return self.offer.worst_minor() or 0

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
            "unit": f"\\x{self.unit.hex()}",  # bytea in PostgreSQL's text form
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
            "context": self.context,
            "fingerprint": fingerprint(self.request, self.unit),
            "told": self.reply().model_dump(mode="json", include=TOLD),
        }
        return Entry(
            DECISION,
            self.id.bytes,
            orjson.dumps(row),
            self.assignment,
            self._reservation(),
            unique=self.request.request_id is not None,
        )

    def reply(self) -> DecisionReply:
        """Return what the app server gets."""
        definition = self.campaign.definition
        return DecisionReply.model_construct(
            decision_id=self.id,
            campaign=definition.key,
            arm=definition.arms[self.choice.arm].key,
            offer=self.offer,
            propensity=self.choice.propensity,
            reason=self.reason,
            segment=definition.segment_keys[self.segment],
            snapshot=self.snapshot,
            expires_at=self.expires_at,
            products=self.products,
        )


def decide(
    runtime: Runtime,
    requests: Sequence[DecisionRequest],
    *,
    now: dt.datetime | None = None,
    tries: int = TRIES,
) -> list[DecisionReply]:
    """Choose an arm for every request, durably, all with one synchronisation of the disk.

    Should the local log refuse, or others be quicker every one of ``tries`` times, the reply is
    the campaign's default arm with the reason ``unavailable``: a checkout always gets an answer.
    Such a reply is not kept: its id is unknown to the log, and outcomes for it earn nothing.

    Raises:
        UnknownCampaign: a request names a campaign that does not exist; nothing is kept.
        IdempotencyConflict: a request id was used before for another request; the other requests
            of the list are kept.
    """
    moment = now or dt.datetime.now(dt.UTC)
    drafts = [_draft(runtime, request, index, moment) for index, request in enumerate(requests)]
    try:
        stored = runtime.spool.append([draft.entry() for draft in drafts])
    except SpoolError:
        log.exception("decisions_not_kept", count=len(drafts))
        return [_unavailable(draft) for draft in drafts]
    return [
        _settle(runtime, draft, result, moment, index, tries)
        for index, (draft, result) in enumerate(zip(drafts, stored, strict=True))
    ]


def decision_id(campaign: LiveCampaign, request_id: str | None) -> uuid.UUID:
    """Return the decision's id: a UUIDv8 (RFC 9562) that starts with the campaign's number.

    Random, or derived from the request id: then a repeat meets the decision that was stored first,
    in this host's spool within a day, and in Postgres for good.
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


def fingerprint(request: DecisionRequest, unit: bytes) -> str:
    """Return what tells two requests under one request id apart, without betraying the unit.

    The unit goes in as its pseudonym: a hash of its plain name could be found by trying names.
    """
    rest = request.model_dump_json(exclude={"unit"}, exclude_none=True)
    return hashlib.blake2b(rest.encode(), key=unit, digest_size=12).hexdigest()


def _draft(runtime: Runtime, request: DecisionRequest, index: int, now: dt.datetime) -> Draft:
    campaign = runtime.catalogue.campaign(request.campaign)
    if campaign is None:
        raise UnknownCampaign(request.campaign, index)
    definition = campaign.definition
    default = Draft(
        id=decision_id(campaign, request.request_id),
        request=request,
        campaign=campaign,
        unit=runtime.pseudonym(request.unit),
        segment=segment_of(definition, request.attributes),
        mask=0,
        why={"masked": {}},
        choice=campaign.certain(definition.default_index),
        reason="unavailable",
        decided_at=now,
        snapshot=campaign.version,
    )
    try:
        return _with_products(runtime, _choose(runtime, default))
    except (SpoolError, ValueError, ArithmeticError):
        # Whatever is wrong with our disk or with a policy's state, a checkout gets an answer.
        log.exception("default_arm_served", campaign=definition.key)
        return default


def _choose(runtime: Runtime, default: Draft) -> Draft:
    campaign, request, definition = default.campaign, default.request, default.campaign.definition
    attributes = _attributes(runtime, default)
    segment = segment_of(definition, attributes)
    limited = definition.budget_minor is not None
    committed = runtime.spool.committed(campaign.id) if limited else 0
    reasons = masked(definition, segment, request.exclude_arms, attributes, committed)
    mask = mask_bits(definition, reasons)
    draft = replace(
        default,
        segment=segment,
        mask=mask,
        context=contexts.encode(definition, attributes),
        why=_why(definition, request, reasons, attributes),
        # Stands if the campaign does not run; "running" is replaced below.
        reason=campaign.state_at(default.decided_at),
    )
    if draft.reason != "running":
        return draft
    if held_out(definition, campaign.seed, draft.unit):
        return replace(draft, reason="holdout")
    if mask == 0:
        return replace(draft, reason="no_eligible_arm")
    return _randomise(runtime, draft)


def _with_products(runtime: Runtime, draft: Draft) -> Draft:
    """Name the products that the offer is on, if it is on recommended ones, and log them."""
    offer = draft.offer
    if not isinstance(offer, RecommendedOffer):
        return draft
    kept = runtime.spool.recommended(draft.unit)
    listed: Sequence[str] = recommended.recalled(kept, draft.decided_at) if kept else []

    def sold_out(ids: Sequence[str]) -> set[str]:
        return {id for id, known in runtime.spool.products(ids) if products.sold_out(known)}

    listed = listed or runtime.catalogue.popular
    found = recommended.tiered(offer, listed, draft.request.products, sold_out)
    return replace(draft, products=found, why=draft.why | {"products": found})


def _why(
    definition: CampaignDefinition,
    request: DecisionRequest,
    reasons: Mapping[str, str],
    attributes: Mapping[str, object],
) -> dict[str, Any]:
    """Return what the log says besides.

    That is why arms were masked, which features were filled in, and the product it was about.
    """
    said: dict[str, Any] = {"masked": reasons}
    if definition.features:
        said["filled"] = contexts.filled(definition, attributes)
    if request.product is not None:
        said["product"] = request.product
    return said


def _attributes(runtime: Runtime, draft: Draft) -> Mapping[str, object]:
    """Return what is known: the request first, then the product, the unit's store, the clock."""
    request, definition, now = draft.request, draft.campaign.definition, draft.decided_at
    known = contexts.clock(definition, now)
    stored = runtime.spool.attributes(draft.unit)
    if stored is not None:
        known |= contexts.recalled(stored, now)
    if request.product is not None and definition.reads & products.ATTRIBUTES.keys():
        kept = runtime.spool.product(request.product)
        if kept is not None:
            known |= products.recalled(kept, now)
    return known | request.attributes if known else request.attributes


def _randomise(runtime: Runtime, draft: Draft) -> Draft:
    """Repeat the unit's assignment or draw; the time of an assignment runs from its draw."""
    sticky = draft.campaign.definition.sticky_seconds
    held = None
    if sticky:
        held = runtime.spool.assignment(draft.campaign.id, draft.unit, draft.decided_at.timestamp())
        if held is not None and _keeps(draft, held):
            return _stick(draft, held)
    choice = draft.campaign.draw(draft.segment, draft.mask, draft.id.bytes, draft.context)
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
        draft, choice=choice, reason="sticky", origin=kept["origin"], snapshot=kept["snapshot"]
    )


def _settle(
    runtime: Runtime, draft: Draft, stored: Stored, now: dt.datetime, index: int, tries: int
) -> DecisionReply:
    if stored.known is not None:
        return _known(draft, orjson.loads(stored.known), index)
    if stored.assigned is not None or stored.exhausted:
        if tries <= 1:
            log.error("decision_not_kept", campaign=draft.campaign.definition.key)
            return _unavailable(draft)
        # While ours was being drawn, another request assigned this unit, or took what was left
        # of the budget. Nothing of ours was kept; a fresh look sees what is true now.
        (again,) = decide(runtime, [draft.request], now=now, tries=tries - 1)
        return again
    return draft.reply()


def _known(draft: Draft, row: dict[str, Any], index: int) -> DecisionReply:
    if row["fingerprint"] != fingerprint(draft.request, draft.unit):
        raise IdempotencyConflict(index)
    same = {name: row[name] for name in ("propensity", "reason", "snapshot", "expires_at")}
    return DecisionReply.model_validate(
        {
            "decision_id": draft.id,
            "campaign": draft.campaign.definition.key,
            "products": row["why"].get("products", ()),
            **same,
            **row["told"],
        }
    )


def _unavailable(draft: Draft) -> DecisionReply:
    default = draft.campaign.definition.default_index
    choice = draft.campaign.certain(default)
    return replace(draft, choice=choice, reason="unavailable", products=()).reply()
