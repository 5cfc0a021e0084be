"""`LocalClient`: the calls of the SDK's `Client`, answered in this process where it can be."""

import datetime as dt
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import orjson

from service import outcomes
from service.client.sdk import (
    Ask,
    Client,
    ClientError,
    Decision,
    Kind,
    OfferedProduct,
    Outcome,
    RefusedError,
    UnavailableError,
)
from service.client.transport import HttpTransport, Transport
from service.contexts import CLOCK, HOLIDAYS
from service.decide import Asked, Draft, draft, settle
from service.errors import BarterError
from service.local.feed import Feed
from service.messages import DecisionReply, DecisionRequest, OutcomeRequest, PlainRequest
from service.runtime import Host
from service.spool import DECISION, FRESH, Entry, SpoolError, Stored
from service.validation import validate

MAX_PENDING = 50_000
"""So many entries wait in memory for the disk; who brings more waits for it."""
FLUSH_SECONDS = 0.01
MOST_BYTES = 256 << 20
BY_THE_CLOCK = frozenset((*CLOCK, *HOLIDAYS))
log = logging.getLogger("barter.client")


@dataclass(frozen=True, kw_only=True)
class Status:
    """How things stand.

    Attributes:
        campaigns: for how many seconds nothing has been heard of each; None before the first time.
        waiting: entries of the log that the server has not confirmed yet.
        pending: entries that are in memory only.
        refused: entries of this process that the server would not take; they are set aside.
    """

    campaigns: Mapping[str, float | None]
    waiting: int
    pending: int
    refused: int


class LocalClient:
    """Decides in the caller's process; make one per process, after it has been forked.

    It answers as the server would: the same request id gives the same decision, down to the bit.
    Like `Client` it never raises into a checkout unless ``raise_errors`` is given.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        campaigns: Sequence[str],
        *,
        folder: Path | str,
        acknowledge: Literal["disk", "memory"] = "disk",
        stale_seconds: float = 300.0,
        refresh_seconds: float = 1.0,
        timeout: float = 0.3,
        default_arm: str = "none",
        raise_errors: bool = False,
        transport: Transport | None = None,
    ) -> None:
        """Take what is kept in ``folder``, and begin to follow the server in the background.

        Args:
            base_url: where Barter listens, such as ``https://barter.shop.example``.
            api_key: a key with the scopes ``local``, ``decide`` and ``reward``.
            campaigns: the keys of the campaigns to decide here; all others are asked of the server.
            folder: of this client alone, open to nobody else: it holds the log of what was decided,
                the campaigns' seeds and the key of pseudonyms. Processes of one host may share it.
            acknowledge: ``disk`` answers once a decision is on this host's disk; ``memory`` answers
                at once and writes some 10 ms later, so that a crash loses the last of them.
                Decisions with a ``request_id`` wait for the disk either way: it is looked up there.
            stale_seconds: for so long decisions go on while the server is not heard. After that it
                is the default arm, with the reason ``unavailable``. A campaign that was stopped
                meanwhile is served for that long.
            refresh_seconds: how often the server is asked for what is new.
            timeout: seconds that a call may take for which the server has to be asked.
            default_arm: served where not even the campaign is known.
            raise_errors: raise `ClientError` instead of falling back.
            transport: another way to travel than HTTP (see `service.client.transport`).

        Raises:
            ValueError: an argument cannot be used; the message names it.
        """
        if acknowledge not in ("disk", "memory"):
            raise ValueError("acknowledge must be 'disk' or 'memory'")
        if not (stale_seconds > 0 and refresh_seconds > 0):
            raise ValueError("stale_seconds and refresh_seconds must be positive, in seconds")
        way = transport or HttpTransport(base_url, most_bytes=MOST_BYTES)
        self._server = Client(
            base_url, api_key, timeout=timeout, default_arm=default_arm,
            raise_errors=True, transport=transport,
        )  # fmt: skip
        # Until the server has told the key there is no campaign either, so nothing is decided.
        self._host = Host(Path(folder), b"")
        self._feed = Feed(
            self._host, way, api_key, campaigns, folder=Path(folder),
            refresh_seconds=refresh_seconds,
        )  # fmt: skip
        self._campaigns, self._stale_seconds = tuple(campaigns), stale_seconds
        self._default_arm, self._raise = default_arm, raise_errors
        self._in_memory = acknowledge == "memory"
        # Drafts become entries when they are written: whoever asked need not wait for that.
        self._pending: list[Entry | Draft] = []
        self._flushing, self._stop = threading.Lock(), threading.Event()
        self._flusher = threading.Thread(target=self._flush_often, name="flusher", daemon=True)
        self._feed.start()
        self._host.start()
        if self._in_memory:
            self._flusher.start()

    def decide(
        self,
        campaign: str,
        unit: str,
        attributes: Mapping[str, Any] | None = None,
        *,
        exclude_arms: Sequence[str] = (),
        request_id: str | None = None,
        product: str | None = None,
        default_arm: str | None = None,
        products: Sequence[str] | None = None,
    ) -> Decision:
        """Return the arm for one unit; arguments as for `Client.decide`."""
        told = attributes or {}
        try:
            made = self._drafted(
                campaign, unit, told, exclude_arms, request_id, product, products
            )  # fmt: skip
            if made is not None:
                return self._kept(made)
            return self._server.decide(
                campaign, unit, told, exclude_arms=exclude_arms, request_id=request_id,
                product=product, products=products,
            )  # fmt: skip
        except ClientError as error:
            if self._raise:
                raise
            return self._default(campaign, error, default_arm)

    def decide_many(self, asks: Iterable[Ask]) -> list[Decision]:
        """Return the arms for many units, in their order; the disk is waited for once."""
        given = list(asks)
        found: dict[int, Decision] = {}
        drafts: list[tuple[int, Draft]] = []
        for place, ask in enumerate(given):
            try:
                if (made := self._drafted(*ask)) is not None:
                    drafts.append((place, made))
            except ClientError as error:
                if self._raise:
                    raise
                found[place] = self._default(ask.campaign, error, None)
        drafted = {place for place, _ in drafts}
        others = [place for place in range(len(given)) if place not in found.keys() | drafted]
        found |= self._both(given, drafts, others)
        return [found[place] for place in range(len(given))]

    def outcome(
        self,
        decision_id: str | None,
        kind: Kind,
        *,
        revenue_minor: int = 0,
        margin_minor: int | None = None,
        event_id: str | None = None,
        occurred_at: dt.datetime | None = None,
        discount_minor: int | None = None,
    ) -> bool:
        """Tell what the customer did; arguments as for `Client.outcome`.

        True means that it is in this host's log (with ``acknowledge="memory"``: about to be), from
        where it is told to the server, whenever that can be reached.
        """
        event = Outcome(
            decision_id, kind, revenue_minor, margin_minor, event_id, occurred_at, discount_minor
        )
        return self.outcomes([event])

    def outcomes(self, events: Iterable[Outcome]) -> bool:
        """Tell of many events; those of default decisions (``decision_id`` None) make it False."""
        given = list(events)
        known = [event for event in given if event.decision_id is not None]
        now = dt.datetime.now(dt.UTC)
        try:
            entries = [outcomes.entry(_event(event, now), now) for event in known]
            if self._in_memory and len(self._pending) < MAX_PENDING:
                self._pending.extend(entries)
            elif entries:
                self._host.spool.append(entries)
        except (SpoolError, ClientError) as error:
            if self._raise:
                raise error if isinstance(error, ClientError) else _unavailable(error) from error
            log.warning("%d outcomes not kept: %s", len(known), error)
            return False
        return len(known) == len(given)

    def ready(self, timeout_seconds: float) -> bool:
        """Wait until every campaign has been heard of; return whether that was so in time."""
        deadline = time.monotonic() + timeout_seconds
        while any(self._feed.age(key) > self._stale_seconds for key in self._campaigns):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until the server has confirmed all that has been kept; return whether it has."""
        deadline = time.monotonic() + timeout_seconds
        self._flush()
        while self._pending or self._feed.told() < self._host.spool.last():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def status(self) -> Status:
        """Return how things stand."""
        ages = {key: self._feed.age(key) for key in self._campaigns}
        return Status(
            campaigns={key: None if age > 1e8 else age for key, age in ages.items()},
            waiting=self._host.spool.last() - self._feed.told(),
            pending=len(self._pending),
            refused=self._feed.refused,
        )

    def close(self) -> None:
        """Write what is in memory, and stop; what the server has not confirmed is kept."""
        self._stop.set()
        if self._in_memory:
            self._flusher.join()
        self._flush()
        self._feed.stop()
        self._server.close()
        self._host.stop()

    def __enter__(self) -> "LocalClient":
        """Use it in a ``with`` statement, which closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _both(
        self, asks: Sequence[Ask], drafts: Sequence[tuple[int, Draft]], others: Sequence[int]
    ) -> dict[int, Decision]:
        """Keep what was decided here, and ask the server of the others; by place."""
        found: dict[int, Decision] = {}
        try:
            if others:
                asked = self._server.decide_many([asks[place] for place in others])
                found |= dict(zip(others, asked, strict=True))
        except ClientError as error:
            if self._raise:
                raise
            found |= {one: self._default(asks[one].campaign, error, None) for one in others}
        try:
            kept = self._kept_many([made for _, made in drafts])
            found |= {place: one for (place, _), one in zip(drafts, kept, strict=True)}
        except ClientError as error:
            if self._raise:
                raise
            found |= {
                place: self._default(made.campaign.definition.key, error, None)
                for place, made in drafts
            }
        return found

    def _drafted(
        self, campaign: str, unit: str, attributes: Mapping[str, Any],
        exclude_arms: Sequence[str], request_id: str | None, product: str | None,
        products: Sequence[str] | None,
    ) -> Draft | None:  # fmt: skip
        """Decide here; the arguments are those of `Ask`. None where the server has to be asked.

        Raises:
            ClientError: it cannot be decided, here or there.
        """
        live = self._host.catalogue.campaign(campaign)
        if live is None or live.shared:
            return None
        reads, every = live.definition.reads, live.told_all(attributes)
        if not every and reads - attributes.keys() - BY_THE_CLOCK:
            return None  # it may be stored at the server
        if self._feed.age(campaign) > self._stale_seconds:
            raise UnavailableError(f"nothing was heard of {campaign} for too long")
        request: Asked | None = None
        if not exclude_arms and products is None:
            named = every and len(attributes) == len(reads)
            request = PlainRequest.of(
                campaign, unit, attributes, product, request_id, named=named
            )  # fmt: skip
        if request is None:
            ask = Ask(campaign, unit, attributes, exclude_arms, request_id, product, products)
            request = _document(ask)
        made = draft(self._host, request, dt.datetime.now(dt.UTC))
        if made.reason == "unavailable":
            raise UnavailableError(f"{campaign} cannot be decided: see this process's log")
        return made

    def _kept(self, made: Draft) -> Decision:
        if self._in_memory and _plain(made) and len(self._pending) < MAX_PENDING:
            self._pending.append(made)
            return _decision(made)
        try:
            (told,) = self._host.spool.append([_entry(made)])
        except SpoolError as error:
            raise _unavailable(error) from error
        return self._settled(made, told)

    def _kept_many(self, drafts: Sequence[Draft]) -> list[Decision]:
        if self._in_memory and all(map(_plain, drafts)) and len(self._pending) < MAX_PENDING:
            self._pending.extend(drafts)
            return [_decision(made) for made in drafts]
        try:
            stored = self._host.spool.append([_entry(made) for made in drafts]) if drafts else []
        except SpoolError as error:
            raise _unavailable(error) from error
        return [self._settled(made, told) for made, told in zip(drafts, stored, strict=True)]

    def _settled(self, made: Draft, told: Stored) -> Decision:
        if told is FRESH:
            return _decision(made)
        try:
            return _replied(settle(self._host, made, told))
        except BarterError as error:
            raise RefusedError(error.status, error.problem()) from error

    def _flush_often(self) -> None:
        while not self._stop.wait(FLUSH_SECONDS):
            if self._pending:
                self._flush()

    def _flush(self) -> None:
        """Write what waits in memory; what the disk refuses goes on waiting."""
        with self._flushing:
            waiting = self._pending
            if not waiting:
                return
            count = len(waiting)
            entries = [one if isinstance(one, Entry) else _entry(one) for one in waiting[:count]]
            try:
                self._host.spool.append(entries)
            except SpoolError as error:
                log.error("%d entries not written yet: %s", count, error)
                self._stop.wait(1.0)
                return
            del waiting[:count]

    def _default(self, campaign: str, error: ClientError, arm: str | None) -> Decision:
        log.warning("decision of %s is the default arm: %s", campaign, error)
        live = self._host.catalogue.campaign(campaign)
        own = None if live is None else live.definition.default_arm
        return Decision(
            decision_id=None,
            campaign=campaign,
            arm=arm or own or self._default_arm,
            offer=None,
            propensity=1.0,
            reason="unavailable",
            segment=None,
            snapshot=None,
            expires_at=None,
            is_default=True,
            error=str(error),
        )


def _plain(made: Draft) -> bool:
    """Whether nobody may ask for the same decision again, so that it need not be looked up."""
    return made.request.request_id is None


def _entry(made: Draft) -> Entry:
    """Return what a local client's log keeps: a decision as the server takes it.

    That is a `messages.LocalDecision`, written piece by piece: a document that is built and then
    encoded takes three times as long. No piece holds what JSON would have to escape.
    """
    told, mark = made.told(), made.marked()
    # Members of what the log says besides stand beside the others here.
    why = made.why().decode()[1:-1]
    context = orjson.dumps(made.context.tolist()).decode()
    at = orjson.dumps(made.decided_at).decode()
    marked = "" if mark is None else f',"fingerprint":"{mark}"'
    body = (
        f'{{"decision_id":"{made.name}","revision":{made.campaign.revision},'
        f'"snapshot":{made.snapshot},"unit":"{made.unit.hex()}","segment":{made.segment},'
        f'"mask":{made.mask},{made.choice.text},"reason":"{made.reason}",{why},'
        f'"decided_at":{at},"context":{context}{marked}}}'
    )
    return Entry(DECISION, made.key, body.encode(), unique=bool(told), told=told)


def _decision(made: Draft) -> Decision:
    campaign, segment, choice = made.campaign, made.segment, made.choice
    arm = choice.arm
    return Decision(
        made.name, campaign.key, campaign.arm_keys[arm], campaign.offer_document(segment, arm),
        choice.propensity, made.reason, campaign.segment_keys[segment], made.snapshot,
        made.decided_at + campaign.offer_lasts,
    )  # fmt: skip


def _replied(reply: DecisionReply) -> Decision:
    """Return what a repeat was told."""
    return Decision(
        str(reply.decision_id), reply.campaign, reply.arm, reply.offer.model_dump(mode="json"),
        reply.propensity, reply.reason, reply.segment, reply.snapshot, reply.expires_at,
        products=tuple(OfferedProduct(one.product_id, one.percent) for one in reply.products),
    )  # fmt: skip


Made = TypeVar("Made")


def _document(ask: Ask) -> DecisionRequest:
    """Return a request that is checked as the server checks it; raises `RefusedError`."""
    told = {name: value for name, value in ask._asdict().items() if value is not None}
    told["attributes"] = dict(ask.attributes)
    return _checked(lambda: validate(DecisionRequest, told))


def _event(event: Outcome, now: dt.datetime) -> OutcomeRequest:
    told = {name: value for name, value in event._asdict().items() if value is not None}
    told["event_id"] = event.event_id or uuid.uuid4().hex
    told["occurred_at"] = (event.occurred_at or now).isoformat()
    return _checked(lambda: validate(OutcomeRequest, told))


def _checked(make: Callable[[], Made]) -> Made:
    try:
        return make()
    except BarterError as error:
        raise RefusedError(error.status, error.problem()) from error
    except (TypeError, ValueError) as error:
        raise RefusedError(400, {"detail": f"cannot be sent as JSON: {error}"}) from error


def _unavailable(error: Exception) -> UnavailableError:
    return UnavailableError(str(error))
