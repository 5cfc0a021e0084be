"""Decisions that local clients have made: recomputed, then kept like any other.

A local client (`service.local`) decides by what this server gave it, serves the arm at once and
tells of it later. Nothing is believed: the campaign is taken at the revision and the snapshot that
the decision names, from memory or from Postgres, and `LiveCampaign` is asked for simplex and draw
again, as `service.replay` does. What differs in a bit was not made by our code from our data.

What cannot be found out is which of several ids the client tried, or what attributes it was told:
a key of the scope ``local`` is for servers that are trusted as much as this one.
"""

import datetime as dt
from collections.abc import Sequence

import numpy as np

from bandits.types import FEATURE_LIMIT
from service import metrics, outcomes
from service.catalogue import Catalogue
from service.decide import Draft
from service.eligibility import state_at
from service.errors import FieldError, Invalid, Unavailable
from service.messages import LocalDecision, LocalReceipt, PlainRequest
from service.replay import Irreproducible, Past
from service.runtime import Host
from service.snapshots import Choice, LiveCampaign
from service.spool import SpoolError

AHEAD = dt.timedelta(hours=1)
"""How far the clock of a client may be ahead of ours."""
AGE = dt.timedelta(days=30)
"""How long a client may keep decisions before it tells of them."""
MAX_ERRORS = 20
NOT_KEPT = "Decisions cannot be kept at the moment; send them again."


class Refused(Exception):
    """A decision cannot have been made by our code from our data: the field, and why not."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field, self.why = field, why


def adopt(
    host: Host, made: Sequence[LocalDecision], *, past: Past, now: dt.datetime | None = None
) -> LocalReceipt:
    """Check decisions and keep them durably, each once; tell how many were new.

    Raises:
        Invalid: some are not what they claim to be; nothing of the list is kept.
        Unavailable: the local log refused, or PostgreSQL did not commit in time where that is
            waited for; a repeat adds nothing.
    """
    moment = now or dt.datetime.now(dt.UTC)
    find = _Finder(host.catalogue, past)
    drafts, errors = [], []
    for index, one in enumerate(made):
        try:
            drafts.append(checked(one, find(one), moment))
        except Refused as refused:
            errors.append(FieldError(f"decisions[{index}].{refused.field}", refused.why))
    if errors:
        raise Invalid(f"{errors[0].field}: {errors[0].message}", errors=errors[:MAX_ERRORS])
    try:
        stored = host.spool.append([draft.entry() for draft in drafts])
    except SpoolError as error:
        raise Unavailable(NOT_KEPT) from error
    if any(told.late for told in stored):
        raise Unavailable(outcomes.NOT_COMMITTED)
    fresh = [draft for draft, told in zip(drafts, stored, strict=True) if told.known is None]
    for draft in fresh:
        metrics.count_decision(draft.campaign.definition.key, draft.arm, draft.reason)
    return LocalReceipt(accepted=len(fresh), duplicates=len(drafts) - len(fresh))


class _Finder:
    """Campaigns as they were when the decisions of one list were made, each looked up once."""

    def __init__(self, catalogue: Catalogue, past: Past) -> None:
        self._newest = {one.id: one for one in catalogue.campaigns()}
        self._found: dict[tuple[int, int, int], LiveCampaign] = {}
        self._past = past

    def __call__(self, made: LocalDecision) -> LiveCampaign:
        place = made.decision_id.int >> 96, made.revision, made.snapshot
        known = self._found.get(place)
        if known is None:
            known = self._found[place] = self._look(*place)
        return known

    def _look(self, campaign: int, revision: int, snapshot: int) -> LiveCampaign:
        newest = self._newest.get(campaign)
        if newest is None:
            raise Refused("decision_id", "is of a campaign that this server does not know")
        if (newest.revision, newest.version) == (revision, snapshot):
            return newest
        try:
            return self._past(campaign, revision, snapshot)
        except Irreproducible as error:
            field = "revision" if "revision" in str(error) else "snapshot"
            raise Refused(field, f"{error}: take what this server gives") from None


def checked(made: LocalDecision, live: LiveCampaign, now: dt.datetime) -> Draft:
    """Return a decision as we would have made it.

    Raises:
        Refused: it is another than the one that was told.
    """
    if live.shared is not None:
        raise Refused("decision_id", f"hangs on {live.shared}, which only the server can know")
    _check_time(made, now)
    _check_eligible(made, live)
    _check_context(made, live)
    unit = bytes.fromhex(made.unit)
    expected = _expected(made, live, unit)
    for field in ("simplex", "arm", "propensity"):
        if getattr(made, field) != getattr(expected, field):
            what = "the default arm for certain" if made.reason != "policy" else "another"
            raise Refused(field, f"snapshot {live.version} gives {what}: it was not drawn by it")
    return Draft(
        made.decision_id.bytes,
        str(made.decision_id),
        PlainRequest(live.definition.key, made.unit, product=made.product),
        live,
        unit,
        made.segment,
        expected,
        made.decided_at.astimezone(dt.UTC),
        live.version,
        made.reason,
        made.mask,
        made.masked,
        made.filled,
        np.array(made.context, dtype=np.int64),
        # Also without one: whoever asks for this id later has asked for something else.
        mark=made.fingerprint or "",
    )


def _check_time(made: LocalDecision, now: dt.datetime) -> None:
    if made.decided_at > now + AHEAD:
        raise Refused("decided_at", "lies ahead by more than an hour: set the host's clock")
    if made.decided_at < now - AGE:
        raise Refused("decided_at", f"lies back by more than {AGE.days} days: it is too old")


def _check_eligible(made: LocalDecision, live: LiveCampaign) -> None:
    definition = live.definition
    if made.segment > len(definition.segments):
        raise Refused("segment", f"is none of the {len(definition.segments) + 1} of the campaign")
    if made.mask >> len(definition.arms):
        raise Refused("mask", f"names more arms than the {len(definition.arms)} of the campaign")
    left_out = {arm.key for place, arm in enumerate(definition.arms) if not made.mask >> place & 1}
    if made.masked.keys() != left_out:
        raise Refused("masked", "must say why of exactly the arms that the mask leaves out")
    overrides = (
        definition.segments[made.segment].arms if made.segment < len(definition.segments) else {}
    )
    for arm in definition.arms:
        override = overrides.get(arm.key)
        barred = not arm.enabled or (override is not None and override.exclude)
        if barred and arm.key not in left_out:
            raise Refused("mask", f"has the arm {arm.key}, which is not served in this segment")


def _check_context(made: LocalDecision, live: LiveCampaign) -> None:
    width = live.definition.feature_width
    if len(made.context) != width:
        raise Refused("context", f"must have {width} numbers")
    if any(abs(number) > FEATURE_LIMIT for number in made.context):
        raise Refused("context", f"must be within ±{FEATURE_LIMIT}")
    if not set(made.filled) <= {feature.key for feature in live.definition.features}:
        raise Refused("filled", "names what is no feature of the campaign")


def _expected(made: LocalDecision, live: LiveCampaign, unit: bytes) -> Choice:
    """Return what the decision's reason gives, if it can have been the reason."""
    default = live.certain(live.default)
    if made.reason in ("policy", "holdout", "no_eligible_arm"):
        _check_running(made, live)
        if live.held_out(unit) != (made.reason == "holdout"):
            raise Refused("reason", "is not what the unit's place in the holdout gives")
        if made.reason != "holdout" and (made.mask == 0) != (made.reason == "no_eligible_arm"):
            raise Refused("reason", "is not what the mask gives")
    if made.reason != "policy":
        return default
    try:
        return live.draw(made.segment, made.mask, made.decision_id.bytes, made.context)
    except (ValueError, ArithmeticError):
        raise Refused("context", f"cannot be decided by snapshot {live.version}") from None


def _check_running(made: LocalDecision, live: LiveCampaign) -> None:
    """Refuse what the campaign's schedule rules out; a stop by hand may not have been known."""
    definition = live.definition
    state = state_at("scheduled", definition.starts_at, definition.ends_at, made.decided_at)
    if state != "running":
        raise Refused("decided_at", f"is when the campaign was {state}, so nothing was drawn")
