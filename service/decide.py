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
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import orjson
import structlog

from service import contexts, copying, products, recommended, security
from service.client.sdk import ONCE
from service.definition import Offer, RecommendedOffer
from service.eligibility import segment_of
from service.errors import IdempotencyConflict, UnknownCampaign
from service.messages import DecisionReply, DecisionRequest, OfferedProduct, PlainRequest
from service.packed import CONTEXT
from service.runtime import Host
from service.snapshots import Choice, LiveCampaign
from service.spool import DECISION, Assignment, Entry, Reservation, SpoolError, Stored

Asked = DecisionRequest | PlainRequest
RANDOMISED = ("policy", "sticky")
"""Reasons that policies learn from: a sticky repeat has its draw's propensity, its own reward."""
TRIES = 5
NOTHING_MASKED: Mapping[str, str] = {}
FAILURES = (SpoolError, ValueError, ArithmeticError)
"""What can be wrong with our disk, or with a policy's state: a checkout gets an answer anyhow."""
log = structlog.get_logger()


@dataclass(slots=True)
class Draft:
    """A decision that is being made and has not been kept yet.

    ``key`` is its id, 16 bytes, and ``name`` the same as text.
    """

    key: bytes
    name: str
    request: Asked
    campaign: LiveCampaign
    unit: bytes
    segment: int
    choice: Choice
    decided_at: dt.datetime
    snapshot: int
    reason: str = "unavailable"
    mask: int = 0
    masked: Mapping[str, str] = field(default_factory=dict)
    filled: Sequence[str] = ()
    context: contexts.Context = field(default_factory=lambda: contexts.NOTHING)
    origin: str | None = None
    assignment: Assignment | None = None
    products: tuple[OfferedProduct, ...] = ()
    mark: str | None = None
    """The `fingerprint` of a request that was made elsewhere (`service.adopt`)."""
    due: bool = False
    """Whether an arm is yet to be drawn (`draw`)."""
    together: bool = False
    """Whether it was drawn from a simplex that was computed together with others."""
    held: bytes | None = None
    """The assignment that an arm is drawn in place of, which the unit cannot keep."""

    @property
    def shares_draw(self) -> bool:
        """Whether it is drawn in less time with others, and may be.

        Under an id of the caller's own who repeats it elsewhere gets the same in every bit.
        """
        id = self.request.request_id
        return self.campaign.contextual and (id is None or id.startswith(ONCE))

    @property
    def id(self) -> uuid.UUID:
        """The decision's id."""
        return uuid.UUID(bytes=self.key)

    @property
    def offer(self) -> Offer:
        """The offer of the arm that was chosen, in the unit's segment."""
        return self.campaign.definition.offer(self.segment, self.choice.arm)

    @property
    def expires_at(self) -> dt.datetime:
        """When the offer ends."""
        return self.decided_at + self.campaign.offer_lasts

    @property
    def reserved_minor(self) -> int:
        """What this offer sets aside of the budget until it is settled: the most it can cost."""
        if self.campaign.definition.budget_minor is None:
            return 0
        return self.offer.worst_minor() or 0

    def entry(self, text: bytes = b"") -> Entry:
        """Return the log entry: the row of the table ``decisions``, and what a repeat is told.

        ``text`` is the reply as JSON, where it has been written already.
        """
        campaign, reserved = self.campaign, self.reserved_minor
        decided = copying.micros(self.decided_at)
        origin = None if self.origin is None else uuid.UUID(self.origin).bytes
        row = copying.row(
            self.key, campaign.id, campaign.revision, self.snapshot, self.unit, self.segment,
            self.mask, self.choice.row, copying.said(self.reason, origin, self.why()), reserved,
            decided, decided + campaign.offer_micros, self.context.astype(CONTEXT).tobytes(),
        )  # fmt: skip
        told = self.told(text)
        held = self._reservation() if reserved else None
        return Entry(DECISION, self.key, row, self.assignment, held, bool(told), told)

    def told(self, text: bytes = b"") -> bytes:
        """Return what a repeat of the request is told, as JSON; b"" if none can be repeated."""
        mark = self.marked()
        if mark is None:
            return b""
        return b'{"fingerprint":"%b","reply":%b}' % (mark.encode(), text or self.json())

    def marked(self) -> str | None:
        """Return the request's `fingerprint`, if it can be repeated."""
        if self.mark is None and self.request.request_id is not None:
            self.mark = fingerprint(self.request, self.unit)
        return self.mark

    def reply(self, *, late: bool = False) -> DecisionReply:
        """Return what the app server gets; ``late`` where it was on disk only by its time."""
        return DecisionReply.model_construct(
            decision_id=self.id,
            campaign=self.campaign.definition.key,
            arm=self.arm,
            offer=self.offer,
            propensity=self.choice.propensity,
            reason=self.reason,
            segment=self._segment,
            snapshot=self.snapshot,
            expires_at=self.expires_at,
            products=self.products,
            acknowledged="disk" if late else None,
        )

    def json(self) -> bytes:
        """Return the same as JSON, in a fraction of the time."""
        products = orjson.dumps(self.products).decode() if self.products else "[]"
        until = orjson.dumps(self.expires_at, option=orjson.OPT_UTC_Z).decode()
        return (
            f'{{"decision_id":"{self.name}","campaign":"{self.campaign.definition.key}",'
            f'{self._served},"propensity":{self.choice.number},"reason":"{self.reason}",'
            f'"segment":"{self._segment}","snapshot":{self.snapshot},"expires_at":{until},'
            f'"products":{products}}}'
        ).encode()

    def unavailable(self) -> "Draft":
        """Return the campaign's default arm instead: what is drawn was not kept."""
        choice = self.campaign.fallback
        return replace(self, choice=choice, reason="unavailable", products=())

    @property
    def arm(self) -> str:
        """The key of the arm that was chosen."""
        return self.campaign.arm_keys[self.choice.arm]

    @property
    def _segment(self) -> str:
        return self.campaign.segment_keys[self.segment]

    @property
    def _served(self) -> str:
        return self.campaign.served_json(self.segment, self.choice.arm)

    def _reservation(self) -> Reservation | None:
        budget = self.campaign.definition.budget_minor
        return Reservation(self.campaign.id, self.reserved_minor, budget) if budget else None

    def why(self) -> bytes:
        """Return what the log says besides, as JSON.

        That is why arms were masked, which features were filled in, the product it was about, and
        those that it is on.
        """
        features, product = self.campaign.definition.features, self.request.product
        if not (features or self.masked or self.products or self.together) and product is None:
            return b'{"masked":{}}'
        said: dict[str, Any] = {"masked": self.masked}
        if self.together:
            said["together"] = True
        if features:
            said["filled"] = self.filled
        if product is not None:
            said["product"] = product
        if self.products:
            said["products"] = self.products
        return orjson.dumps(said)


def decide(
    runtime: Host,
    requests: Sequence[Asked],
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
    drafts = [draft(runtime, request, moment, index) for index, request in enumerate(requests)]
    try:
        stored = runtime.spool.append([one.entry() for one in drafts])
    except SpoolError:
        log.exception("decisions_not_kept", count=len(drafts))
        return [one.unavailable().reply() for one in drafts]
    return [
        settle(runtime, one, told, index=index, tries=tries)
        for index, (one, told) in enumerate(zip(drafts, stored, strict=True))
    ]


def decision_key(campaign: LiveCampaign, request_id: str | None) -> tuple[bytes, str]:
    """Return the decision's id: a UUIDv8 (RFC 9562) that starts with the campaign's number.

    It comes as bytes, and as text.

    Then `security.tick` and random, or derived from the request id: a repeat of that meets the
    decision that was stored first, in this host's spool within a day, and in Postgres for good.
    """
    if request_id is None:
        tail, text = security.random_tail()
        return campaign.prefix + tail, campaign.prefix_text + text
    hashed = hashlib.blake2b(request_id.encode(), key=campaign.seed, digest_size=12).digest()
    tail = security.tail(hashed)
    return campaign.prefix + tail, campaign.prefix_text + security.tail_text(tail)


def campaign_number(decision: uuid.UUID) -> int:
    """Return the campaign's number out of a decision id."""
    return decision.int >> 96


def fingerprint(request: Asked, unit: bytes) -> str:
    """Return what tells two requests under one request id apart, without betraying the unit.

    The unit goes in as its pseudonym: a hash of its plain name could be found by trying names.
    """
    told = (
        request.campaign, request.attributes, request.product, request.request_id,
        request.exclude_arms, request.products,
    )  # fmt: skip
    return hashlib.blake2b(msgspec.json.encode(told), key=unit, digest_size=12).hexdigest()


def earlier_fingerprint(request: Asked, unit: bytes) -> str:
    """Return what the last release had for `fingerprint`, in several times the time."""
    document = request.full() if isinstance(request, PlainRequest) else request
    rest = document.model_dump_json(exclude={"unit"}, exclude_none=True).encode()
    return hashlib.blake2b(rest, key=unit, digest_size=12).hexdigest()


def draft(runtime: Host, request: Asked, now: dt.datetime, index: int = 0) -> Draft:
    """Make a decision that `decide` would keep; ``index`` is its place in the list.

    Raises:
        UnknownCampaign: the request names a campaign that does not exist.
    """
    made = prepared(runtime, request, now, index)
    if made.due:
        _draw_alone(runtime, made)
    return made


def drafts(runtime: Host, requests: Mapping[int, Asked], now: dt.datetime) -> list[Draft]:
    """Make `draft` of each place in a list, drawing together what may be.

    Raises:
        UnknownCampaign: a request names a campaign that does not exist.
    """
    made = [prepared(runtime, request, now, place) for place, request in requests.items()]
    together: dict[int, list[Draft]] = {}
    for one in made:
        if one.due and one.shares_draw:
            together.setdefault(id(one.campaign), []).append(one)
        elif one.due:
            _draw_alone(runtime, one)
    for some in together.values():
        draw(runtime, some)
    return made


def prepared(runtime: Host, request: Asked, now: dt.datetime, index: int = 0) -> Draft:
    """Make a decision up to its draw, if one is ``due``: `draw` is to follow.

    Raises:
        UnknownCampaign: the request names a campaign that does not exist.
    """
    made = begun(runtime, request, now, index)
    try:
        made.due = _choose(runtime, made)
        if not made.due and made.campaign.recommends:
            _with_products(runtime, made)
    except FAILURES:
        _fail(made)
    return made


def draw(runtime: Host, drafts: Sequence[Draft]) -> None:
    """Draw the arms that are due in decisions of one campaign.

    Where that decides by contexts, simplexes of more than one are computed together, in a fraction
    of the time: they agree with those of each alone to eight digits (`LiveCampaign.draws`).
    """
    if len(drafts) == 1:
        return _draw_alone(runtime, drafts[0])
    campaign = drafts[0].campaign
    try:
        choices = campaign.draws(
            [(made.segment, made.mask, made.key, made.context) for made in drafts]
        )
    except FAILURES:
        for made in drafts:  # one that fails is not the others' concern
            _draw_alone(runtime, made)
        return
    for made, choice in zip(drafts, choices, strict=True):
        made.together = campaign.contextual
        _serve(runtime, made, choice)


def _draw_alone(runtime: Host, made: Draft) -> None:
    try:
        choice = made.campaign.draw(made.segment, made.mask, made.key, made.context)
    except FAILURES:
        return _fail(made)
    _serve(runtime, made, choice)


def _serve(runtime: Host, made: Draft, choice: Choice) -> None:
    try:
        _take(made, choice)
        if made.campaign.recommends:
            _with_products(runtime, made)
    except FAILURES:
        _fail(made)


def _fail(made: Draft) -> None:
    """Serve the default arm: whatever is wrong with our disk or a policy's state, it is served."""
    log.exception("default_arm_served", campaign=made.campaign.definition.key)
    made.segment = segment_of(made.campaign.definition, made.request.attributes)
    made.choice = made.campaign.fallback
    made.reason, made.products = "unavailable", ()
    made.due = made.together = False


def begun(runtime: Host, request: Asked, now: dt.datetime, index: int = 0) -> Draft:
    """Return a decision before anything has been chosen: the default arm, as if unavailable.

    Raises:
        UnknownCampaign: the request names a campaign that does not exist.
    """
    campaign = runtime.catalogue.campaign(request.campaign)
    if campaign is None:
        raise UnknownCampaign(request.campaign, index)
    key, name = decision_key(campaign, request.request_id)
    return Draft(
        key, name, request, campaign, runtime.pseudonym(request.unit), campaign.elsewhere,
        campaign.fallback, now, campaign.version, masked=NOTHING_MASKED, context=contexts.NOTHING,
    )  # fmt: skip


def _choose(runtime: Host, made: Draft) -> bool:
    """Find out what is to be served; tell whether an arm is to be drawn."""
    campaign, request = made.campaign, made.request
    definition = campaign.definition
    attributes = _attributes(runtime, made) if definition.reads else request.attributes
    made.segment = segment = segment_of(definition, attributes) if definition.segments else 0
    committed = 0 if definition.budget_minor is None else runtime.spool.committed(campaign.id)
    made.masked, made.mask = campaign.masked(segment, request.exclude_arms, attributes, committed)
    if definition.features:
        made.context, made.filled = campaign.encode(attributes)
    made.reason = campaign.state_at(made.decided_at)
    if made.reason != "running":
        return False
    if campaign.held_out(made.unit):
        made.reason = "holdout"
        return False
    if made.mask == 0:
        made.reason = "no_eligible_arm"
        return False
    return _keep_or_due(runtime, made)


def _with_products(runtime: Host, made: Draft) -> None:
    """Name the products that the offer is on, if it is on recommended ones, and log them."""
    if not isinstance(offer := made.offer, RecommendedOffer):
        return
    kept = runtime.spool.recommended(made.unit)
    listed: Sequence[str] = recommended.recalled(kept, made.decided_at) if kept else []

    def sold_out(ids: Sequence[str]) -> set[str]:
        return {id for id, known in runtime.spool.products(ids) if products.sold_out(known)}

    listed = listed or runtime.catalogue.popular
    made.products = recommended.tiered(offer, listed, made.request.products, sold_out)


def _attributes(runtime: Host, made: Draft) -> Mapping[str, object]:
    """Return what is known: the request first, then the product, the unit's store, the clock."""
    request, definition, now = made.request, made.campaign.definition, made.decided_at
    if made.campaign.told_all(request.attributes):
        return request.attributes
    known = contexts.clock(definition, now) if made.campaign.timed else {}
    stored = runtime.spool.attributes(made.unit) if runtime.catalogue.knows_units else None
    if stored is not None:
        known |= contexts.recalled(stored, now)
    if request.product is not None and definition.reads & products.ATTRIBUTES.keys():
        kept = runtime.spool.product(request.product)
        if kept is not None:
            known |= products.recalled(kept, now)
    return known | request.attributes if known else request.attributes


def _keep_or_due(runtime: Host, made: Draft) -> bool:
    """Repeat the unit's assignment, or tell that an arm is to be drawn."""
    campaign = made.campaign
    if campaign.definition.sticky_seconds:
        held = runtime.spool.assignment(campaign.id, made.unit, made.decided_at.timestamp())
        if held is not None and _keeps(made, held):
            _stick(made, held)
            return False
        made.held = held
    return True


def _take(made: Draft, choice: Choice) -> None:
    """Take an arm that was drawn; the time of an assignment runs from its draw."""
    made.choice, made.reason, made.due = choice, "policy", False
    if sticky := made.campaign.definition.sticky_seconds:
        until = made.decided_at.timestamp() + sticky
        made.assignment = Assignment(
            made.campaign.id, made.unit, _assignment_body(made), until, made.held
        )


def _assignment_body(made: Draft) -> bytes:
    return orjson.dumps(
        {
            "origin": made.id,
            "snapshot": made.snapshot,
            "arm": made.choice.arm,
            "propensity": made.choice.propensity,
            "simplex": made.choice.simplex,
        }
    )


def _keeps(made: Draft, held: bytes) -> bool:
    return bool(made.mask >> orjson.loads(held)["arm"] & 1)


def _stick(made: Draft, held: bytes) -> None:
    """Repeat a unit's assignment, with the probabilities of its draw."""
    kept = orjson.loads(held)
    made.choice = Choice(kept["arm"], kept["propensity"], tuple(kept["simplex"]))
    made.reason, made.origin, made.snapshot = "sticky", kept["origin"], kept["snapshot"]


def settle(
    runtime: Host, made: Draft, told: Stored, *, index: int = 0, tries: int = TRIES
) -> DecisionReply:
    """Return the reply to a decision, given what became of it in the local log.

    Raises:
        IdempotencyConflict: its request id was used before for another request.
    """
    if told.known is not None:
        return _known(made, orjson.loads(told.known), index, late=told.late)
    if told.assigned is not None or told.exhausted:
        if tries <= 1:
            log.error("decision_not_kept", campaign=made.campaign.definition.key)
            return made.unavailable().reply()
        # While ours was being drawn, another request assigned this unit, or took what was left
        # of the budget. Nothing of ours was kept; a fresh look sees what is true now.
        (again,) = decide(runtime, [made.request], now=made.decided_at, tries=tries - 1)
        return again
    return made.reply(late=told.late)


def _known(made: Draft, row: dict[str, Any], index: int, *, late: bool) -> DecisionReply:
    known = row["fingerprint"]
    if known != fingerprint(made.request, made.unit) and known != earlier_fingerprint(
        made.request, made.unit
    ):
        raise IdempotencyConflict(index)
    reply: dict[str, Any] | None = row.get("reply")
    if reply is None:
        # An earlier release kept it: the row of the log as JSON, and what else it had replied.
        reply = {name: row[name] for name in ("propensity", "reason", "snapshot", "expires_at")}
        reply |= row["told"] | {"products": row["why"].get("products", ())}
        reply |= {"decision_id": made.id, "campaign": made.campaign.definition.key}
    return DecisionReply.model_validate(reply | {"acknowledged": "disk" if late else None})
