"""The hot routes, answered in front of Flask's dispatch: one decision, one outcome.

Most requests are plain: a known key, a small JSON body without a mistake, one decision or event.
These are answered here, on the worker's loop; while the disk is synchronised the loop takes the
next ones. So are lists, of JSON or of Arrow, that are decided as a whole, in threads of their own.
Whatever is not plain gets None, and Flask answers it as it would have anyhow: there are all errors
and their words. The answers here are the same byte for byte, but for ids.
"""

import asyncio
import datetime as dt
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import orjson
import structlog
from flask import Flask

from service import arrow, bulk, decide, metrics, outcomes, security, validation
from service.app import REQUEST_ID, SECURITY_HEADERS
from service.catalogue import KeyView
from service.errors import BarterError, Unavailable
from service.messages import (
    DecisionReply,
    DecisionRequest,
    OutcomeReceipt,
    OutcomeRequest,
    PlainList,
    PlainRequest,
)
from service.spool import FRESH, LATE, Entry, SpoolError, Stored
from service.views.api import with_key
from service.views.contract import PROBLEM

Headers = Mapping[bytes, bytes]
Answer = tuple[int, bytes, bytes]
"""Status, headers as they are sent (without the body's length), body."""
Then = Callable[[Answer | None], None]
"""What is told the answer, on the loop, or None where Flask is to give it."""
Route = Callable[[Headers, bytes, Then], None]
Work = Callable[[bytes], bulk.Worked]
"""What decides about a list, or gives None where Flask is to do so."""
Kept = Callable[[Stored | None], None]
"""What is told what became of an entry, on the loop, or None where the disk refused."""
log = structlog.get_logger()


LIST = b'{"decisions"'
JSON, TABLE = b"application/json", arrow.MEDIA.encode()
LISTS = 4
"""How many lists a worker decides at a time: while the disk has some, others are computed."""
MAX_LISTS = 64
"""How many may wait for their turn, or have it."""
FLUSH_SECONDS = 0.25
MAX_PROVEN = 10_000
AT_ONCE = 8
"""So many entries are handed to the writer at once: each hand-over may wake its thread. More would
leave the disk idle while they are gathered."""
MAX_WAITING = 1_000
"""How many may wait for the disk. More would wait in vain: they get the default arm at once."""


def _lines(headers: Mapping[str, str]) -> bytes:
    return "".join([f"{name.lower()}: {value}\r\n" for name, value in headers.items()]).encode()


_SAFE = SECURITY_HEADERS | {"Cache-Control": "no-store"}
_HEADS = {kind: _lines(_SAFE | {"Content-Type": kind.decode()}) for kind in (JSON, TABLE)}


def _public_id(authorization: bytes) -> str:
    """Return which key an ``Authorization`` header names, empty where it names none."""
    try:
        return security.credentials(authorization.decode("latin-1")).public_id
    except BarterError:
        return ""


def refused(detail: str) -> Answer:
    """Return the answer to what cannot be taken just now."""
    error = Unavailable(detail, retry_after_seconds=1)
    headers = _SAFE | {"Content-Type": PROBLEM} | dict(error.headers)
    return error.status, _lines(headers), orjson.dumps(error.problem())


FAILED = refused("This failed on our side; it is safe to try again under the same request id.")


class Hot:
    """The hot routes of one worker."""

    def __init__(self, app: Flask) -> None:
        self._runtime = app.extensions["barter"]
        self._told, self._tallied = _Told(), metrics.Tallied()
        self._waiting = self._listed = 0
        self._lists = ThreadPoolExecutor(LISTS, thread_name_prefix="list")
        self._due: list[_Due] = []
        self._unkept: list[tuple[Entry, Kept]] = []
        self._flushing = False
        # Who has shown a key, for as long as the catalogue has that very key: hashing costs more.
        self._proven: dict[bytes, tuple[str, KeyView | None]] = {}
        self.routes: dict[str, Route] = {
            "/v1/decisions": self.decision,
            "/v1/outcomes": self.outcome,
        }

    def decision(self, headers: Headers, body: bytes, then: Then) -> None:
        """Answer a request for one decision, or for a list of them, if it is plain."""
        started = time.perf_counter()
        if headers.get(b"content-type") == TABLE:
            return self._list(TABLE, self._table, headers, body, started, then)
        if body.startswith(LIST):
            return self._list(JSON, self._documents, headers, body, started, then)
        if not self._let_in("decide", headers):
            return then(None)
        given = headers.get(b"idempotency-key")
        key = None if given is None else given.decode("latin-1")
        request: decide.Asked | None = None if key is not None else PlainRequest.read(body)
        now, busy = dt.datetime.now(dt.UTC), self._waiting >= MAX_WAITING
        try:
            if request is None:
                request = with_key(validation.parse(DecisionRequest, body), key)
            made = (decide.begun if busy else decide.prepared)(self._runtime, request, now)
        except BarterError:
            return then(None)
        if busy:
            return then(self._decided(made, made.json(), headers, started))
        if made.due and made.shares_draw:
            return self._draw_with_others(_Due(made, headers, started, then))
        if made.due:
            decide.draw(self._runtime, [made])
        self._keep_decision(made, headers, started, then)

    def _list(
        self, kind: bytes, work: Work, headers: Headers, body: bytes, started: float, then: Then
    ) -> None:
        """Answer a list of requests, if all of it is plain."""
        plain = b"idempotency-key" not in headers and self._let_in("decide", headers, kind)
        other = headers.get(b"accept", kind) not in (kind, b"*/*")
        if other or not plain or self._listed >= MAX_LISTS:
            return then(None)

        def answered(done: asyncio.Future[bulk.Worked]) -> None:
            self._listed -= 1
            if isinstance(error := done.exception(), BarterError):
                return then(None)
            if error is not None:
                log.error("list_not_answered", exc_info=error)
                return then(FAILED)
            if (made := done.result()) is None:
                return then(None)
            answers, text = made
            metrics.count_tally(answers.tally())
            then(self._answer("create_decisions", 200, headers, text, started, kind))

        self._listed += 1
        loop = asyncio.get_running_loop()
        loop.run_in_executor(self._lists, work, body).add_done_callback(answered)

    def _table(self, body: bytes) -> bulk.Worked:
        return arrow.plainly(self._runtime, body)

    def _documents(self, body: bytes) -> bulk.Worked:
        found = PlainList.read(body)
        return None if found is None else bulk.plainly(self._runtime, found.decisions)

    def _draw_with_others(self, one: "_Due") -> None:
        """Draw once all requests are taken that came with this one: together it is quicker."""
        self._due.append(one)
        if len(self._due) == 1:
            asyncio.get_running_loop().call_soon(self._draw)

    def _draw(self) -> None:
        due, self._due = self._due, []
        campaigns: dict[int, list[decide.Draft]] = {}
        for one in due:
            campaigns.setdefault(id(one.made.campaign), []).append(one.made)
        for drafts in campaigns.values():
            try:
                decide.draw(self._runtime, drafts)
            except Exception:
                log.exception("not_drawn")
        for one in due:
            try:
                if one.made.due:
                    one.then(FAILED)
                else:
                    self._keep_decision(*one)
            except Exception:
                log.exception("not_kept")
                one.then(FAILED)

    def _keep_decision(
        self, made: decide.Draft, headers: Headers, started: float, then: Then
    ) -> None:
        """Keep a decision, and answer with it."""
        # Written before it is kept, while all of it is at hand.
        text = made.json()

        def kept(told: Stored | None) -> None:
            if told is None:
                default = made.unavailable()
                then(self._decided(default, default.json(), headers, started))
            elif told is FRESH:
                then(self._decided(made, text, headers, started))
            elif told is LATE:
                late = text[:-1] + b',"acknowledged":"disk"}'
                then(self._decided(made, late, headers, started))
            else:
                self._settle(made, told, headers, started, then)

        self._keep(made.entry(text), kept)

    def _decided(self, made: decide.Draft, text: bytes, headers: Headers, started: float) -> Answer:
        self._tallied.decision(made.campaign.definition.key, made.arm, made.reason)
        return self._answer("create_decisions", 200, headers, text, started)

    def _settle(
        self, made: decide.Draft, told: Stored, headers: Headers, started: float, then: Then
    ) -> None:
        """Answer where the id was known, or somebody was quicker: that may take more tries."""

        def settled(done: asyncio.Future[DecisionReply]) -> None:
            if isinstance(error := done.exception(), BarterError):
                return then(None)
            if error is not None:
                log.error("not_settled", exc_info=error)
                return then(FAILED)
            reply = done.result()
            metrics.count_decisions([reply])
            text = reply.model_dump_json().encode()
            then(self._answer("create_decisions", 200, headers, text, started))

        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(None, lambda: decide.settle(self._runtime, made, told))
        work.add_done_callback(settled)

    def outcome(self, headers: Headers, body: bytes, then: Then) -> None:
        """Answer a report of one outcome, if it is plain."""
        started = time.perf_counter()
        if b"idempotency-key" in headers or not self._let_in("reward", headers):
            return then(None)
        event = validation.plain(OutcomeRequest, body)
        if event is None:
            return then(None)
        if self._waiting >= MAX_WAITING:
            return then(refused(outcomes.NOT_KEPT))

        def kept(told: Stored | None) -> None:
            if told is None:
                return then(refused(outcomes.NOT_KEPT))
            if told.late:
                return then(refused(outcomes.NOT_COMMITTED))
            known = told.known is not None
            receipt = OutcomeReceipt.model_construct(accepted=int(not known), duplicates=int(known))
            metrics.count_outcomes(receipt)
            text = receipt.model_dump_json().encode()
            then(self._answer("create_outcomes", 202, headers, text, started))

        self._keep(outcomes.entry(event, dt.datetime.now(dt.UTC)), kept)

    def _let_in(self, scope: str, headers: Headers, kind: bytes = JSON) -> bool:
        """Tell whether a request has the right key and form."""
        if headers.get(b"content-type") != kind:
            return False
        text = headers.get(b"authorization", b"")
        name, proven = self._proven.get(text, ("", None))
        key = self._runtime.catalogue.api_key(name or _public_id(text))
        if key is None or scope not in key.scopes:
            return False
        if key is not proven:
            given = security.credentials(text.decode("latin-1"))
            if not security.proves(given.secret, key.secret_sha256):
                return False
            if len(self._proven) >= MAX_PROVEN:
                self._proven.clear()
            self._proven[text] = given.public_id, key
        return True

    def _keep(self, entry: Entry, then: Kept) -> None:
        """Keep an entry on disk, with others of this turn of the loop."""
        self._waiting += 1
        self._unkept.append((entry, then))
        if len(self._unkept) >= AT_ONCE:
            self._submit()
        elif len(self._unkept) == 1:
            asyncio.get_running_loop().call_soon(self._submit)

    def _submit(self) -> None:
        unkept, self._unkept = self._unkept, []
        if not unkept:
            return
        loop = asyncio.get_running_loop()

        def kept(told: list[Stored] | SpoolError) -> None:
            self._waiting -= len(unkept)
            if isinstance(told, SpoolError):
                log.error("not_kept", count=len(unkept), error=str(told))
            for place, (_, then) in enumerate(unkept):
                try:
                    then(None if isinstance(told, SpoolError) else told[place])
                except Exception:
                    log.exception("answer_lost")

        entries = [entry for entry, _ in unkept]
        self._runtime.spool.submit(entries, lambda told: self._told.add(loop, kept, told))

    def _answer(
        self, operation: str, status: int, headers: Headers, text: bytes, started: float,
        kind: bytes = JSON,
    ) -> Answer:  # fmt: skip
        given = headers.get(b"x-request-id")
        if given is None or not REQUEST_ID.fullmatch(given.decode("latin-1")):
            given = security.random_bytes(16).hex().encode()
        self._tallied.observe(operation, status, time.perf_counter() - started)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)
        return status, b"%bx-request-id: %b\r\n" % (_HEADS[kind], given), text

    def _flush(self) -> None:
        self._flushing = False
        self._tallied.flush()


class _Due(NamedTuple):
    """A decision whose arm is yet to be drawn, and what its answer needs."""

    made: decide.Draft
    headers: Headers
    started: float
    then: Then


class _Told:
    """Answers of the writer's thread on their way to the loop, which is woken once for many."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[Callable[[Any], None], Any]] = []

    def add(self, loop: Any, kept: Callable[[Any], None], told: Any) -> None:
        """Hand an answer over."""
        with self._lock:
            self._waiting.append((kept, told))
            first = len(self._waiting) == 1
        if first:
            loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for kept, told in waiting:
            try:
                kept(told)
            except Exception:
                log.exception("answer_lost")
