"""HTTP on one connection: uvicorn's protocol, with the hot routes answered in front of it.

A plain POST to a hot route (`service.hot`) becomes neither an ASGI message nor a task: its body
goes to the route when it is whole, and the answer to the connection when the disk has it. An app
server asks under the same head every time but for the body's length, so a head that has been
parsed is known by its bytes. All else, also what a hot route leaves, takes uvicorn's way to the
application. Everything happens on the worker's loop, so no other thread has to be waited for, as
with servers that read in threads.
"""

import asyncio
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import structlog
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from service.hot import FAILED, Answer, Headers, Route

WHOLE_BYTES = 1 << 20
"""Bodies up to this size are read in one piece."""
HEAD_BYTES = 64 << 10
"""What the headers of a request may come to."""
MAX_HEADS = 1_000
"""How many heads a worker knows. Those that name their request differ every time."""
READ_SECONDS = 30.0
"""How long a client may take to send its headers, or the body for a hot route."""
IDLE_SECONDS = 75.0
"""How long a connection may be kept without a request; more than load balancers keep theirs."""
log = structlog.get_logger()


class _Done:
    """What `HttpToolsProtocol` wakes; nobody waits for a hot route's."""

    def set(self) -> None:
        """Do nothing."""


_DONE = _Done()


class _Hot:
    """One request to a hot route, in the place of uvicorn's cycle of one request."""

    __slots__ = (
        *("route", "headers", "keep_alive", "parts"),
        *("message_event", "response_complete", "disconnected"),
    )

    def __init__(self, route: Route, headers: Headers, keep_alive: bool, body: bytes = b"") -> None:
        self.route, self.headers, self.keep_alive = route, headers, keep_alive
        self.parts = [body] if body else []
        self.message_event = _DONE
        self.response_complete = self.disconnected = False

    @property
    def body(self) -> bytes:
        """What has come of the request's body."""
        if len(self.parts) != 1:
            self.parts = [b"".join(self.parts)]
        return self.parts[0]


class Protocol(HttpToolsProtocol):
    """One connection; make a subclass with the routes of one worker (`with_routes`)."""

    cycle: Any
    routes: Mapping[bytes, Route] = {}
    heads: ClassVar[dict[bytes, tuple[Route, Headers, bool, int]]] = {}
    """Heads of requests to hot routes: what was read of each, and the length of its body."""
    retiring = False
    """Whether another worker serves instead: clients are asked to connect anew."""

    @classmethod
    def with_routes(cls, routes: Mapping[str, Route]) -> type["Protocol"]:
        """Return the protocol of a worker that has these hot routes, by path; all are POST."""
        known = {path.encode(): route for path, route in routes.items()}
        return type("WorkerProtocol", (cls,), {"routes": known, "heads": {}})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(transport)
        self.since, self.reading, self._head = self.loop.time(), True, 0
        self._between = True

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        idle = self._between and (self.cycle is None or self.cycle.response_complete)
        end = data.find(b"\r\n\r\n") if idle else -1
        if end > 0:
            known = self.heads.get(data[:end])
            if known is not None and len(data) == end + 4 + known[3]:
                self._unset_keepalive_if_required()
                self.cycle = _Hot(*known[:3], data[end + 4 :])
                self._hand_on(self.cycle)
                return
        self._head += len(data)
        super().data_received(data)
        if self.reading and self.cycle is None and self._head > HEAD_BYTES:
            self.send_400_response(f"The headers are longer than {HEAD_BYTES} bytes.")
        elif end > 0 and self._between and isinstance(self.cycle, _Hot):
            self._remember(data, end, self.cycle)

    def _remember(self, data: bytes, end: int, hot: _Hot) -> None:
        """Know the head of a request again that came whole and by itself."""
        if len(data) == end + 4 + len(hot.body):
            if len(self.heads) >= MAX_HEADS:
                self.heads.clear()
            self.heads[data[:end]] = (hot.route, hot.headers, hot.keep_alive, len(hot.body))

    def overdue(self, now: float) -> bool:
        """Tell whether the client has been silent for too long to wait any more."""
        if self.reading:
            return now - self.since > READ_SECONDS
        idle = self.cycle is None or self.cycle.response_complete
        return idle and now - self.since > IDLE_SECONDS

    def on_message_begin(self) -> None:
        """Begin a request; its scope is made only if it goes to the application."""
        self.url, self.headers = b"", []
        self.expect_100_continue = self._between = False
        self.since, self.reading = self.loop.time(), True

    def on_headers_complete(self) -> None:
        """Choose the way."""
        self._head = 0
        hot = self._hot()
        if hot is not None:
            self.cycle = hot
            return
        self.reading = False
        url, headers = self.url, self.headers
        expects = self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expects
        self.scope["headers"] = headers
        super().on_headers_complete()
        if self.retiring:
            self.cycle.keep_alive = False

    def _hot(self) -> _Hot | None:
        """Return the request if it is one for a hot route, and none before it is unanswered."""
        route = self.routes.get(self.url)
        busy = self.cycle is not None and not self.cycle.response_complete
        if route is None or busy or self.expect_100_continue:
            return None
        headers = dict(self.headers)
        length = headers.get(b"content-length", b"")
        small = length.isdigit() and int(length) <= WHOLE_BYTES
        once = len(headers) == len(self.headers) and b"upgrade" not in headers
        if not (small and once and self.parser.get_method() == b"POST"):
            return None
        keep = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        return _Hot(route, headers, keep)

    def on_body(self, body: bytes) -> None:
        """Take a piece of a request's body."""
        if isinstance(self.cycle, _Hot):
            self.cycle.parts.append(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Hand a request on that has come whole."""
        self.reading, self._between = False, True
        if isinstance(self.cycle, _Hot):
            self._hand_on(self.cycle)
        else:
            super().on_message_complete()

    def _hand_on(self, hot: _Hot) -> None:
        try:
            hot.route(hot.headers, hot.body, functools.partial(self._answer, hot))
        except Exception:
            log.exception("hot_route_failed")
            self._answer(hot, FAILED)

    def _answer(self, hot: _Hot, answer: Answer | None) -> None:
        if hot.disconnected:
            return
        if answer is None:
            self._leave(hot)
        else:
            self._write(hot, answer)

    def _leave(self, hot: _Hot) -> None:
        """Have the application answer what a hot route left, as if it had come to it at once."""
        path = next(path for path, route in self.routes.items() if route == hot.route)
        cycle = RequestResponseCycle(
            scope=self._scope(path, list(hot.headers.items())),
            transport=self.transport, flow=self.flow,
            logger=self.logger, access_logger=self.access_logger, access_log=False,
            default_headers=self.server_state.default_headers, message_event=asyncio.Event(),
            expect_100_continue=False, keep_alive=hot.keep_alive and not self.retiring,
            on_response=self.on_response_complete,
        )  # fmt: skip
        cycle.body, cycle.more_body = bytearray(hot.body), False
        cycle.message_event.set()
        if self.cycle is hot:
            self.cycle = cycle
        self._start_asgi_task(cycle, self.app)

    def _scope(self, path: bytes, headers: list[tuple[bytes, bytes]]) -> Any:
        return {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": "POST",
            "root_path": "",
            "path": path.decode(),
            "raw_path": path,
            "query_string": b"",
            "headers": headers,
            "state": {},
        }

    def _write(self, hot: _Hot, answer: Answer) -> None:
        status, headers, body = answer
        keep = hot.keep_alive and not self.retiring
        parts = [STATUS_LINE[status], headers]
        parts += [b"date: %b\r\n" % value for name, value in self.server_state.default_headers]
        parts += [b"content-length: %d\r\n" % len(body)]
        parts += [b"\r\n" if keep else b"connection: close\r\n\r\n", body]
        self.transport.write(b"".join(parts))
        hot.response_complete, self.since = True, self.loop.time()
        if not keep:
            self.transport.close()
        elif self.pipeline:
            self.on_response_complete()
