"""The client: `Client` with its four calls, and the values they take and return."""

import datetime as dt
import json
import logging
import random
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import quote

from service.client.transport import (
    HttpTransport,
    Request,
    Response,
    Transport,
    TransportError,
)

Kind = Literal["exposed", "clicked", "purchased", "returned"]
Row = TypeVar("Row")
MAX_LIST = 1000
ONCE = "once-"
"""How a request id begins that serves the retries of one call, and that nobody will ask elsewhere
in order to compare: such decisions may be computed together with others, in less time."""
_RETRIED = frozenset((408, 429, 500, 502, 503, 504))
_log = logging.getLogger("barter.client")
# Nothing is printed unless the application sets up logging.
_log.addHandler(logging.NullHandler())


class ClientError(Exception):
    """A call brought no usable answer. Only raised with ``raise_errors=True``."""


class UnavailableError(ClientError):
    """Barter did not answer in time."""


class RefusedError(ClientError):
    """Barter refused the request: it will not help to repeat it.

    Attributes:
        status: the HTTP status.
        problem: the problem document (RFC 9457); its ``errors`` name the fields.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        """Take the status and the problem document."""
        text = problem.get("detail") or problem.get("title") or "refused"
        super().__init__(f"{status}: {text}")
        self.status, self.problem = status, dict(problem)


class Ask(NamedTuple):
    """One request of `Client.decide_many`; the fields are those of `Client.decide`."""

    campaign: str
    unit: str
    attributes: Mapping[str, Any] = {}
    exclude_arms: Sequence[str] = ()
    request_id: str | None = None
    product: str | None = None
    products: Sequence[str] | None = None


class OfferedProduct(NamedTuple):
    """One product of an offer on recommended products, and what is taken off it."""

    product_id: str
    percent: float


class Outcome(NamedTuple):
    """One event of `Client.outcomes`; the fields are those of `Client.outcome`."""

    decision_id: str | None
    kind: Kind
    revenue_minor: int = 0
    margin_minor: int | None = None
    event_id: str | None = None
    occurred_at: dt.datetime | None = None
    discount_minor: int | None = None


class Decision(NamedTuple):
    """The arm to serve, and why.

    Attributes:
        decision_id: what outcomes refer to; None when Barter was not reached.
        campaign: the campaign's key.
        arm: the arm's key. Serve this.
        offer: the typed discount, such as ``{"kind": "percentage", "percent": 10.0}``; None when
            Barter was not reached.
        propensity: the probability that the arm was drawn with.
        reason: ``policy``, ``sticky``, ``holdout``, ``paused``..., or ``unavailable``.
        segment: the segment's key; None when Barter was not reached.
        snapshot: the policy's version; None when Barter was not reached.
        expires_at: when the offer ends (UTC); None when Barter was not reached.
        products: what an offer of the kind ``recommended`` takes off which product.
        is_default: True when the client fell back on its own default arm.
        error: why it did, in words.
    """

    decision_id: str | None
    campaign: str
    arm: str
    offer: dict[str, Any] | None
    propensity: float
    reason: str
    segment: str | None
    snapshot: int | None
    expires_at: dt.datetime | None
    is_default: bool = False
    error: str | None = None
    products: tuple[OfferedProduct, ...] = ()


class Client:
    """A connection to Barter; make one per process and use it from any thread."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        timeout: float = 0.3,
        default_arm: str = "none",
        raise_errors: bool = False,
        transport: Transport | None = None,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            base_url: where Barter listens, such as ``https://barter.shop.example``.
            api_key: a key with the scopes ``decide`` and ``reward``.
            timeout: seconds that a whole call may take, retries included.
            default_arm: the arm to serve when Barter cannot be reached: give the campaign's own.
            raise_errors: raise `ClientError` instead of falling back.
            transport: another way to travel than HTTP (see `service.client.transport`).
        """
        if not timeout > 0:
            raise ValueError("timeout must be positive, in seconds")
        self._transport = transport or HttpTransport(base_url)
        self._headers = {
            "Authorization": f"Bearer {api_key}",
            "Content-Type": "application/json",
            "Accept": "application/json",
        }
        self._timeout, self._default_arm, self._raise = timeout, default_arm, raise_errors

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
        """Return the arm for one unit.

        Args:
            campaign: the campaign's key.
            unit: customer, device or session; Barter stores a keyed pseudonym of it only.
            attributes: what segment rules and features may read, besides what Barter has stored of
                the unit.
            exclude_arms: arms that must not be served now, for example out of stock.
            request_id: repeat it and you get the stored decision again. A fresh one is made when
                left out, which begins with `ONCE`, so that the retries within this call are safe.
            product: the product that it is about, by its identifier in Barter's catalogue.
            default_arm: instead of the client's, for this call.
            products: ids of the products that may be offered, at most 200, for example those on
                the page; any that are recommended when left out.
        """
        ask = Ask(campaign, unit, attributes or {}, exclude_arms, request_id, product, products)
        try:
            document = self._call("POST", "/v1/decisions", _asked(ask), self._deadline())
            return _decision(document)
        except ClientError as error:
            if self._raise:
                raise
            return self._default(ask, error, default_arm)

    def decide_many(self, asks: Iterable[Ask]) -> list[Decision]:
        """Return the arms for many units, in their order: one request per thousand.

        The time-out is that of the whole call; those not answered in time get the default arm.
        """
        deadline, decisions = self._deadline(), []
        for part in _parts(list(asks)):
            body = {"decisions": [_asked(ask) for ask in part]}
            try:
                document = self._call("POST", "/v1/decisions", body, deadline)
                decisions += _decisions(document, len(part))
            except ClientError as error:
                if self._raise:
                    raise
                decisions += [self._default(ask, error, None) for ask in part]
        return decisions

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
        """Tell Barter what the customer did; return whether it is safely stored there.

        Args:
            decision_id: of the decision; with None (a default decision) nothing is sent.
            kind: ``exposed``, ``clicked``, ``purchased`` or ``returned``.
            revenue_minor: list value of the basket, before the discount, in minor units (cents).
            margin_minor: margin before the discount; the campaign's margin rate when left out.
            event_id: your own number of the event, such as the order's. An event is counted once,
                however often you send it; give one whenever you might send it again after False.
            occurred_at: when, with its time zone; now when left out.
            discount_minor: what was taken off a purchase; computed from the offer when left out,
                which for offers on recommended products is a guess.
        """
        event = Outcome(
            decision_id, kind, revenue_minor, margin_minor, event_id, occurred_at, discount_minor
        )
        return self.outcomes([event])

    def outcomes(self, events: Iterable[Outcome]) -> bool:
        """Tell Barter of many events, a thousand per request; True when all are stored there.

        Events of default decisions (``decision_id`` None) are left out and make it False.
        """
        given = list(events)
        known = [event for event in given if event.decision_id is not None]
        deadline = self._deadline()
        stored = len(known) == len(given)
        for part in _parts(known):
            body = {"outcomes": [_told(event) for event in part]}
            try:
                self._call("POST", "/v1/outcomes", body, deadline)
            except ClientError as error:
                if self._raise:
                    raise
                _log.warning("%d outcomes not stored: %s", len(part), error)
                stored = False
        return stored

    def request(self, method: str, path: str, document: Any = None) -> Any:
        """Call any other route of the API and return its document; raises `ClientError`.

        >>> Client("http://127.0.0.1:1", "key").request("GET", "/v1/campaigns")
        Traceback (most recent call last):
            ...
        service.client.sdk.UnavailableError: [Errno 111] Connection refused
        """
        safe = quote(path, safe="/?&=%:.,~-_")
        return self._call(method, safe, document, self._deadline(), retried=method == "GET")

    def close(self) -> None:
        """Close this thread's connection."""
        self._transport.close()

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout

    def _call(
        self, method: str, path: str, document: Any, deadline: float, *, retried: bool = True
    ) -> Any:
        """Send until there is an answer, it is refused, or the time is up."""
        body = b"" if document is None else _json(document)
        request = Request(method, path, self._headers, body)
        pause, reason = 0.005, "no time left"
        while (left := deadline - time.monotonic()) > 0:
            try:
                reply = self._transport.send(request, left)
            except TransportError as error:
                reason = str(error)
            else:
                if reply.status < 300:
                    return _read(reply)
                if reply.status not in _RETRIED:
                    raise RefusedError(reply.status, _problem(reply))
                reason = f"{reply.status}: {_problem(reply).get('detail', 'no detail')}"
            pause *= 2
            # Jitter keeps many clients from coming back at the same moment.
            wait = pause * (0.5 + random.random())
            if not retried or time.monotonic() + wait >= deadline:
                break
            time.sleep(wait)
        raise UnavailableError(reason)

    def _default(self, ask: Ask, error: ClientError, arm: str | None) -> Decision:
        _log.warning("decision of %s is the default arm: %s", ask.campaign, error)
        return Decision(
            decision_id=None,
            campaign=ask.campaign,
            arm=arm or self._default_arm,
            offer=None,
            propensity=1.0,
            reason="unavailable",
            segment=None,
            snapshot=None,
            expires_at=None,
            is_default=True,
            error=str(error),
        )


def _asked(ask: Ask) -> dict[str, Any]:
    document: dict[str, Any] = {
        "campaign": ask.campaign,
        "unit": ask.unit,
        "request_id": ask.request_id or ONCE + uuid.uuid4().hex,
    }
    if ask.attributes:
        document["attributes"] = dict(ask.attributes)
    if ask.product is not None:
        document["product"] = ask.product
    if ask.exclude_arms:
        document["exclude_arms"] = list(ask.exclude_arms)
    if ask.products is not None:
        document["products"] = list(ask.products)
    return document


def _told(event: Outcome) -> dict[str, Any]:
    document: dict[str, Any] = {
        "event_id": event.event_id or uuid.uuid4().hex,
        "decision_id": event.decision_id,
        "kind": event.kind,
    }
    if event.revenue_minor:
        document["revenue_minor"] = event.revenue_minor
    if event.margin_minor is not None:
        document["margin_minor"] = event.margin_minor
    if event.occurred_at is not None:
        document["occurred_at"] = event.occurred_at.isoformat()
    if event.discount_minor is not None:
        document["discount_minor"] = event.discount_minor
    return document


def _json(document: Any) -> bytes:
    try:
        return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise RefusedError(400, {"detail": f"cannot be sent as JSON: {error}"}) from error


def _read(reply: Response) -> Any:
    if not reply.body:
        return None
    try:
        return json.loads(reply.body)
    except ValueError as error:
        raise UnavailableError("the answer is not JSON") from error


def _problem(reply: Response) -> dict[str, Any]:
    try:
        document = json.loads(reply.body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _decision(document: Any) -> Decision:
    try:
        return Decision(
            decision_id=str(document["decision_id"]),
            campaign=document["campaign"],
            arm=document["arm"],
            offer=document["offer"],
            propensity=document["propensity"],
            reason=document["reason"],
            segment=document["segment"],
            snapshot=document["snapshot"],
            expires_at=dt.datetime.fromisoformat(document["expires_at"]),
            products=tuple(OfferedProduct(**one) for one in document.get("products", ())),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnavailableError("the answer is not a decision") from error


def _decisions(document: Any, count: int) -> list[Decision]:
    rows = document.get("decisions") if isinstance(document, dict) else None
    if not isinstance(rows, list) or len(rows) != count:
        raise UnavailableError("the answer does not hold one decision per request")
    return [_decision(row) for row in rows]


def _parts(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    return (rows[start : start + MAX_LIST] for start in range(0, len(rows), MAX_LIST))
