"""Many decisions at once: the checkout path of `service.decide`, column by column.

Rows of one campaign that get the same segment, mask and explanation are decided together. They have
the simplexes of single decisions, bit for bit, but for policies that decide by features, whose
simplexes are computed together and agree to eight digits (`LiveCampaign.simplexes`); their
explanation says ``together``. Their ids count up, so that their numbers come eight from a hash
(`sampling.uniforms_by_block`); the explanation says ``block``. `service.replay` knows both. A list
is one record in the local log (`service.columnar`) for each campaign that it names.

What has to be looked up or kept one by one goes the other way: request ids, products, arms that a
request excludes; campaigns that are sticky, have a budget, or offer recommended products.
"""

import datetime as dt
import functools
import itertools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import orjson
import structlog
from numpy.typing import NDArray

from bandits import sampling
from service import columnar, columns, contexts, decide, security
from service.columnar import Bytes, Kind
from service.columns import Column, Columns
from service.copying import ID_BYTES
from service.definition import CampaignDefinition
from service.eligibility import segment_of
from service.errors import UnknownCampaign
from service.messages import DecisionReply
from service.pseudonyms import Units, split
from service.runtime import Runtime
from service.snapshots import LiveCampaign
from service.spool import DECISIONS, FRESH, Entry, SpoolError, Stored

RANDOM_BYTES = 10
ID_TEXT = 36
Places = NDArray[np.intp]
"""Where rows stand among the requests, in order."""
log = structlog.get_logger()


class Told(NamedTuple):
    """What some replies have in common; ``propensity`` is None where each has its own."""

    campaign: str
    arm: str
    offer: bytes
    propensity: float | None
    reason: str
    segment: str
    snapshot: int
    expires_at: dt.datetime
    products: bytes = b"[]"
    late: bool = False


class Answers(NamedTuple):
    """Replies in the order of the requests.

    Attributes:
        ids: (B, 16) bytes.
        told: (B,) which of ``kinds``.
        propensity: (B,) float64.
    """

    kinds: list[Told]
    ids: Bytes
    told: NDArray[np.int64]
    propensity: NDArray[np.float64]

    def tally(self) -> Counter[tuple[str, str, str]]:
        """Count the replies by campaign, arm and reason."""
        found: Counter[tuple[str, str, str]] = Counter()
        for one, number in zip(self.kinds, np.bincount(self.told).tolist(), strict=False):
            found[one.campaign, one.arm, one.reason] += number
        return found

    def id_texts(self) -> Bytes:
        """Return the ids as text: (B, 36) letters."""
        made = np.full((len(self.ids), ID_TEXT), ord("-"), dtype=np.uint8)
        digits = np.frombuffer(self.ids.tobytes().hex().encode(), np.uint8)
        digits = digits.reshape(-1, 2 * ID_BYTES)
        for dashes, (begin, end) in enumerate(itertools.pairwise((0, 8, 12, 16, 20, 32))):
            made[:, begin + dashes : end + dashes] = digits[:, begin:end]
        return made

    def json(self) -> bytes:
        """Return all as one document of JSON."""
        return b'{"decisions":[%b]}' % b",".join(self.documents())

    def documents(self) -> list[bytes]:
        """Return each reply as JSON."""
        ends = [_end(one) for one in self.kinds]
        ids = self.id_texts().tobytes()
        starts = range(0, len(ids), ID_TEXT)
        kinds = self.told.tolist()
        if all(one.propensity is not None for one in self.kinds):
            return [
                b'{"decision_id":"%b%b' % (ids[at : at + ID_TEXT], ends[kind][1])
                for at, kind in zip(starts, kinds, strict=True)
            ]
        shares = orjson.dumps(self.propensity.tolist())[1:-1].split(b",")
        return [
            b'{"decision_id":"%b%b%b%b'
            % (ids[at : at + ID_TEXT], ends[kind][0], share, ends[kind][2])
            for at, kind, share in zip(starts, kinds, shares, strict=True)
        ]


def _end(told: Told) -> tuple[bytes, bytes, bytes]:
    """Return a reply after its id: up to the propensity, all of it, and from there on."""
    first = b'","campaign":%b,"arm":%b,"offer":%b,"propensity":' % (
        orjson.dumps(told.campaign), orjson.dumps(told.arm), told.offer,
    )  # fmt: skip
    last = orjson.dumps(
        {
            "reason": told.reason,
            "segment": told.segment,
            "snapshot": told.snapshot,
            "expires_at": told.expires_at,
            "products": orjson.Fragment(told.products),
        },
        option=orjson.OPT_UTC_Z,
    )
    last = b"," + last[1:]
    if told.late:
        last = last[:-1] + b',"acknowledged":"disk"}'
    return first, first + orjson.dumps(told.propensity) + last, last


Worked = tuple[Answers, bytes] | None
"""Decisions of a list and the body of their answer; None where it is not decided as a whole."""


@dataclass(slots=True)
class Batch:
    """Decisions of one campaign that are being made.

    ``simplexes`` is (B, A) where each decision has its own, else empty: then its kind has it.
    """

    campaign: LiveCampaign
    decided_at: dt.datetime
    ids: Bytes
    units: bytes
    kinds: list[Kind]
    kind: NDArray[np.int64]
    arm: NDArray[np.int64]
    simplexes: NDArray[np.float64]
    contexts: NDArray[np.int64]

    def packed(self) -> columnar.Packed:
        """Return the decisions as the log keeps them."""
        expires = self.decided_at + self.campaign.offer_lasts
        return columnar.Packed(
            self.campaign.id,
            self.campaign.revision,
            self.campaign.version,
            columnar.micros(self.decided_at),
            columnar.micros(expires),
            len(self.campaign.definition.arms),
            self.kinds,
            self.kind.astype("<u2").tobytes(),
            self.ids.tobytes(),
            self.units,
            self.arm.astype("<i2").tobytes(),
            self.simplexes.astype("<f8").tobytes(),
            self.contexts.astype("<i4").tobytes(),
        )

    def entry(self) -> Entry:
        """Return the log entry of all."""
        body = columnar.encode(self.packed())
        return Entry(DECISIONS, self.ids[0].tobytes(), body, unique=False)

    def answers(self, *, late: bool = False) -> Answers:
        """Return what the app server gets; ``late`` where it was on disk only by its time."""
        arms = len(self.campaign.definition.arms)
        most = len(self.kinds) * arms
        combined, _, told = columns.distinct(self.kind * arms + self.arm, most)
        kinds = [self._told(*divmod(one, arms)) for one in combined.tolist()]
        if late:
            kinds = [one._replace(late=True) for one in kinds]
        if self.simplexes.size:
            propensity = self.simplexes[np.arange(len(self.arm)), self.arm]
        else:
            propensity = np.array([one.propensity for one in kinds])[told]
        return Answers(kinds, self.ids, told, propensity)

    def _told(self, kind: int, arm: int) -> Told:
        campaign, one = self.campaign, self.kinds[kind]
        definition = campaign.definition
        own = self.simplexes.size > 0
        return Told(
            definition.key,
            definition.arms[arm].key,
            definition.offer(one.segment, arm).model_dump_json().encode(),
            None if own else float(np.frombuffer(one.simplex, "<f8")[arm]),
            one.reason,
            definition.segment_keys[one.segment],
            campaign.version,
            self.decided_at + campaign.offer_lasts,
        )

    def unavailable(self) -> "Batch":
        """Return the campaign's default arm for all instead: what was drawn was not kept."""
        default = self.campaign.definition.default_index
        simplex = np.array(self.campaign.certain(default).simplex).astype("<f8").tobytes()
        kinds = [one._replace(reason="unavailable", simplex=simplex) for one in self.kinds]
        return Batch(
            self.campaign, self.decided_at, self.ids, self.units, kinds, self.kind,
            np.full_like(self.arm, default), np.empty((0, 0)), self.contexts,
        )  # fmt: skip


def answer(
    runtime: Runtime, requests: Sequence[decide.Asked], *, now: dt.datetime | None = None
) -> Answers:
    """Choose an arm for every request, durably: `service.decide.decide`, in a fraction of the time.

    Raises:
        UnknownCampaign, IdempotencyConflict: as there.
    """
    moment = now or dt.datetime.now(dt.UTC)
    made, single = _made(runtime, requests, moment)
    return kept(runtime, requests, made, single, moment)


def plainly(runtime: Runtime, requests: Sequence[decide.Asked]) -> Worked:
    """Do what `answer` does; None, and nothing is kept, where a request is looked at by itself.

    Raises:
        UnknownCampaign: as there; nothing is kept.
    """
    made, single = _made(runtime, requests, dt.datetime.now(dt.UTC))
    return None if single else keep_and_write(runtime, made, Answers.json)


def _made(
    runtime: Runtime, requests: Sequence[decide.Asked], now: dt.datetime
) -> tuple[list[tuple[Places, Batch]], list[int]]:
    """Decide about all requests that can be decided together; return those, and which can not."""
    grouped, single = _sorted(runtime, requests)
    made: list[tuple[Places, Batch]] = []
    for campaign, places in grouped:
        asked = [requests[place] for place in places]
        wanted = campaign.definition.reads
        found = columns.gathered([one.attributes for one in asked], wanted) if wanted else {}
        units = Units.of([one.unit for one in asked])
        batch = decided(runtime, campaign, units, found, now)
        if batch is None:
            single += places
        else:
            made.append((np.array(places), batch))
    return made, sorted(single)


def kept(
    runtime: Runtime,
    requests: Mapping[int, decide.Asked] | Sequence[decide.Asked],
    made: Sequence[tuple[Places, Batch]],
    single: Sequence[int],
    now: dt.datetime,
) -> Answers:
    """Keep decisions that were made, and make and keep those of single requests, at once.

    Each batch says where its rows stand among the replies.
    """
    drafts = decide.drafts(runtime, {place: requests[place] for place in single}, now)
    entries = [batch.entry() for _, batch in made] + [one.entry() for one in drafts]
    try:
        stored = runtime.spool.append(entries)
    except SpoolError:
        log.exception("decisions_not_kept", count=sum(len(p) for p, _ in made) + len(single))
        replies = [one.unavailable().reply() for one in drafts]
        return _joined(_unkept(made), single, replies)
    replies = [
        decide.settle(runtime, one, told, index=place)
        for place, one, told in zip(single, drafts, stored[len(made) :], strict=True)
    ]
    return _joined(_parts(made, stored), single, replies)


def keep_and_write(
    runtime: Runtime, made: Sequence[tuple[Places, Batch]], write: Callable[[Answers], bytes]
) -> tuple[Answers, bytes]:
    """Keep decisions that were made, and write the answer while the disk takes them."""
    appending = runtime.spool.appending([batch.entry() for _, batch in made])
    answers = _joined(_parts(made, [FRESH] * len(made)))
    text = write(answers)
    try:
        stored = appending.result()
    except SpoolError:
        log.exception("decisions_not_kept", count=sum(len(places) for places, _ in made))
        answers = _joined(_unkept(made))
    else:
        if not any(told.late for told in stored):
            return answers, text
        answers = _joined(_parts(made, stored))
    return answers, write(answers)


def _parts(
    made: Sequence[tuple[Places, Batch]], stored: Sequence[Stored]
) -> list[tuple[Places, Answers]]:
    return [
        (places, batch.answers(late=told.late))
        for (places, batch), told in zip(made, stored, strict=False)
    ]


def _unkept(made: Sequence[tuple[Places, Batch]]) -> list[tuple[Places, Answers]]:
    return [(places, batch.unavailable().answers()) for places, batch in made]


def _joined(
    parts: Sequence[tuple[Places, Answers]],
    single: Sequence[int] = (),
    replies: Sequence[DecisionReply] = (),
) -> Answers:
    """Put the replies of batches and single ones into the order of the requests."""
    if len(parts) == 1 and not replies:
        return parts[0][1]
    rows = sum(len(places) for places, _ in parts) + len(single)
    out = Answers(
        [], np.empty((rows, ID_BYTES), np.uint8), np.empty(rows, np.int64), np.empty(rows)
    )
    for places, part in parts:
        out.ids[places], out.propensity[places] = part.ids, part.propensity
        out.told[places] = part.told + len(out.kinds)
        out.kinds.extend(part.kinds)
    for place, reply in zip(single, replies, strict=True):
        out.ids[place] = np.frombuffer(reply.decision_id.bytes, np.uint8)
        out.propensity[place], out.told[place] = reply.propensity, len(out.kinds)
        out.kinds.append(
            Told(
                reply.campaign, reply.arm, reply.offer.model_dump_json().encode(),
                reply.propensity, reply.reason, reply.segment, reply.snapshot,
                reply.expires_at, orjson.dumps(reply.products), reply.acknowledged is not None,
            )
        )  # fmt: skip
    return out


def plain(campaign: LiveCampaign) -> bool:
    """Tell whether nothing of a campaign's decisions is looked up or kept one by one."""
    definition = campaign.definition
    return not (definition.sticky_seconds or definition.budget_minor or campaign.recommends)


def _sorted(
    runtime: Runtime, requests: Sequence[decide.Asked]
) -> tuple[list[tuple[LiveCampaign, list[int]]], list[int]]:
    """Return the places of plain requests by campaign, and those of all others."""
    grouped: dict[str, list[int]] = {}
    found: dict[str, LiveCampaign] = {}
    single: list[int] = []
    for place, one in enumerate(requests):
        if one.campaign not in found:
            campaign = runtime.catalogue.campaign(one.campaign)
            if campaign is None:
                raise UnknownCampaign(one.campaign, place)
            found[one.campaign] = campaign
            grouped[one.campaign] = [] if plain(campaign) else single
        usual = (
            one.request_id is None
            and one.product is None
            and not one.exclude_arms
            and one.products is None
        )
        (grouped[one.campaign] if usual else single).append(place)
    return [
        (found[key], places) for key, places in grouped.items() if places and places is not single
    ], single


def decided(
    runtime: Runtime,
    campaign: LiveCampaign,
    units: Units,
    told: Columns,
    now: dt.datetime,
) -> Batch | None:
    """Decide about many units of one campaign; None where each has to be looked at by itself.

    That is where something is wrong with our disk or the policy's state.
    """
    runtime.pseudonym.expect(len(units))
    try:
        names = runtime.pseudonym.many(units)
        stored = runtime.spool.attributes_of if runtime.catalogue.knows_units else _nothing
        known = completed(stored, campaign.definition, names, told, now)
        return chosen(campaign, random_ids(campaign.id, len(units)), names, known, now)
    except (SpoolError, ValueError, ArithmeticError):
        log.exception("decided_one_by_one", campaign=campaign.definition.key)
        return None


def _nothing(units: bytes) -> dict[bytes, bytes]:
    """Return what a host knows of units that has stored nothing of any."""
    return {}


def chosen(
    campaign: LiveCampaign,
    ids: Bytes,
    units: Bytes,
    known: Columns,
    now: dt.datetime,
) -> Batch:
    """Choose an arm for every unit (pseudonyms (B, 16)), given all that is known of them."""
    definition, rows = campaign.definition, len(units)
    kinds, kind = _kinds(campaign, units, known, now)
    encoded = columns.encoded(definition, known, rows)
    arm = np.full(rows, definition.default_index, dtype=np.int64)
    own = np.empty((0, 0))
    drawn = [place for place, one in enumerate(kinds) if one.reason == "policy"]
    numbers = sampling.uniforms_by_block(campaign.seed, ids) if drawn else np.empty(0)
    if drawn and campaign.served.contextual:
        own = np.tile(campaign.certain(definition.default_index).simplex, (rows, 1))
        where = slice(None) if len(drawn) == len(kinds) else np.flatnonzero(np.isin(kind, drawn))
        segments = np.array([one.segment for one in kinds])[kind[where]]
        masks = np.array([one.mask for one in kinds])[kind[where]]
        chances = campaign.simplexes(segments, masks, encoded[where])
        own[where], arm[where] = chances, sampling.draws(chances, numbers[where])
    else:
        for place in drawn:
            where = np.flatnonzero(kind == place)
            arm[where] = _drawn(np.frombuffer(kinds[place].simplex, "<f8"), numbers[where])
    return Batch(campaign, now, ids, units.tobytes(), kinds, kind, arm, own, encoded)


def _drawn(simplex: NDArray[np.float64], numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return `sampling.draw` of one simplex (A,) for many numbers (B,)."""
    last = np.flatnonzero(simplex > 0.0)[-1]
    below = np.searchsorted(np.cumsum(simplex), numbers, side="right")
    arms: NDArray[np.int64] = np.minimum(below, last)
    return arms


def _kinds(
    campaign: LiveCampaign, units: Bytes, known: Columns, now: dt.datetime
) -> tuple[list[Kind], NDArray[np.int64]]:
    """Return what the decisions have in common, and which is each one's (B,)."""
    definition, state = campaign.definition, campaign.state_at(now)
    held = np.zeros(len(units), dtype=bool)
    if state == "running" and definition.holdout:
        held = np.array([campaign.held_out(unit) for unit in split(units)])
    _, firsts, kind = columns.signs(definition, known, held)
    kinds = [
        _kind(campaign, columns.at(known, row), state, held=bool(held[row]))
        for row in firsts.tolist()
    ]
    return kinds, kind


def _kind(
    campaign: LiveCampaign, attributes: Mapping[str, object], state: str, *, held: bool
) -> Kind:
    """Return segment, mask and reason of units of which this is known: `decide` of one."""
    definition = campaign.definition
    segment = segment_of(definition, attributes)
    reasons, mask = campaign.masked(segment, (), attributes, 0)
    said: dict[str, object] = {"masked": reasons}
    if definition.features:
        said["filled"] = contexts.filled(definition, attributes)
    if campaign.served.contextual:
        said["together"] = True
    simplex = np.array(campaign.certain(definition.default_index).simplex)
    if state != "running":
        reason = state
    elif held:
        reason = "holdout"
    elif mask == 0:
        reason = "no_eligible_arm"
    else:
        reason, said["block"] = "policy", True
        if not campaign.served.contextual:
            simplex = campaign.simplex(segment, mask)
    return Kind(segment, mask, reason, orjson.dumps(said), simplex.astype("<f8").tobytes())


def completed(
    attributes_of: Callable[[bytes], Mapping[bytes, bytes]],
    definition: CampaignDefinition,
    units: Bytes,
    told: Columns,
    now: dt.datetime,
) -> Columns:
    """Return all that is known: what was told, then what is stored of a unit, then the clock.

    ``attributes_of`` gives what is stored about units (16 bytes each, one after another), by unit,
    as `service.contexts.known` keeps it.
    """
    rows = len(units)
    missing = {
        name: ~told[name].known if name in told else np.ones(rows, dtype=bool)
        for name in definition.reads
        if not columns.complete(told.get(name))
    }
    open_rows = functools.reduce(np.logical_or, missing.values(), np.zeros(rows, dtype=bool))
    if not open_rows.any():
        return told
    stored = attributes_of(units[open_rows].tobytes())
    clock = contexts.clock(definition, now)
    if not stored and not clock:
        return told
    recalled = {unit: contexts.recalled(body, now) for unit, body in stored.items()}
    names, more = split(units), dict[str, Column](told)
    for name, where in missing.items():
        if where.any():
            more[name] = _filled(name, told.get(name), where, names, recalled, clock)
    return more


def _filled(
    name: str,
    told: Column | None,
    where: NDArray[np.bool_],
    units: Sequence[bytes],
    recalled: Mapping[bytes, Mapping[str, object]],
    clock: Mapping[str, object],
) -> Column:
    values: list[object] = []
    for row, (unit, absent) in enumerate(zip(units, where.tolist(), strict=True)):
        if not absent and told is not None:
            values.append(told.at(row))
        else:
            values.append(recalled.get(unit, {}).get(name, clock.get(name, columns.ABSENT)))
    return columns.column(values)


def random_ids(campaign: int, rows: int) -> Bytes:
    """Return as many new decision ids (B, 16): of a random one, and of those that follow it.

    They have the form of `decide.decision_id` without a request id. Where they begin hangs on so
    many random bits as are left of 74 when the rows have been counted.
    """
    ids = np.empty((rows, ID_BYTES), dtype=np.uint8)
    random = np.frombuffer(os.urandom(RANDOM_BYTES), np.uint8)
    ids[:, :6] = np.frombuffer(campaign.to_bytes(4, "big") + security.tick(), np.uint8)
    ids[:, 6], ids[:, 7] = random[0] & 0x0F | 0x80, random[1]
    start = int.from_bytes(random[2:].tobytes(), "big") & (1 << 62) - 1 | 1 << 63
    start = start >> rows.bit_length() << rows.bit_length()
    numbers = np.arange(rows, dtype=np.uint64) + np.uint64(start)
    ids[:, 8:] = numbers.astype(">u8").view(np.uint8).reshape(rows, 8)
    return ids
