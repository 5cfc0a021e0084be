"""What a web worker serves: Granian's own interface (RSGI) in front of Flask.

Hot routes are answered by `service.hot` on the worker's loop, where waiting for the disk occupies
no thread. What they leave, and everything else, goes to Flask by WSGI (PEP 3333), in one of a few
threads. Small bodies are read before; larger ones, such as files, as the view asks for them.
"""

import asyncio
import io
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from flask import Flask

from service.hot import Answer, Headers, Route, refused
from service.webserver import RETIRE, SERVING, take_no_more

THREADS = 16
MAX_WAITING = 256
"""How many requests may wait for a thread, or be in one."""
WHOLE_BYTES = 1 << 20
"""Bodies up to this size are read, and sent, in one piece."""
BODY_SECONDS = 30.0
log = structlog.get_logger()


class Gateway:
    """One worker's application; make it in the worker, after the fork.

    ``routes`` are what is answered in front of Flask, by path; all are POST.
    """

    def __init__(self, app: Flask, routes: Mapping[str, Route]) -> None:
        self._app, self._routes = app, routes
        self._waiting = 0
        self._retiring = False
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="flask")

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell the server that this worker serves; it will say when another one does instead."""
        loop.add_signal_handler(RETIRE, self._retire)
        SERVING.set()

    def _retire(self) -> None:
        self._retiring = True
        take_no_more()

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """Answer one request."""
        if scope.proto != "http":
            protocol.close(1003)
            return
        body = None
        if _small(scope):
            body = await protocol()
            route = self._routes.get(scope.path)
            if route is not None and scope.method == "POST":
                answer = await self._answered(route, scope, body)
                if answer is not None:
                    protocol.response_bytes(*self._last(answer))
                    return
        await self._flask(scope, protocol, body)

    async def _answered(self, route: Route, scope: Any, body: bytes) -> Answer | None:
        try:
            return await route(scope.headers, scope.query_string, body)
        except Exception:
            log.exception("hot_route_failed")
            return None

    async def _flask(self, scope: Any, protocol: Any, body: bytes | None) -> None:
        loop = asyncio.get_running_loop()
        source = io.BytesIO(body) if body is not None else _Body(protocol, loop)
        environ = _environ(scope, source)
        call = _Call(self._app, environ, protocol, loop)
        if self._waiting >= MAX_WAITING:
            protocol.response_bytes(*refused("Too much is asked at once; try again in a second."))
            return
        self._waiting += 1
        try:
            answer = await loop.run_in_executor(self._threads, call)
        finally:
            self._waiting -= 1
        if answer is not None:
            protocol.response_bytes(*self._last(answer))

    def _last(self, answer: Answer) -> Answer:
        """Ask the client to connect anew for what it asks next, once another worker serves."""
        if not self._retiring:
            return answer
        status, headers, body = answer
        return status, [*headers, ("connection", "close")], body


class _Call:
    """One request to Flask, in a thread of its own."""

    def __init__(self, app: Flask, environ: dict[str, Any], protocol: Any, loop: Any) -> None:
        self._app, self._environ, self._protocol, self._loop = app, environ, protocol, loop
        self._status = 500
        self._headers: Headers = []

    def __call__(self) -> Answer | None:
        """Return the answer, or send it piece by piece where it is long or its length unknown."""
        try:
            parts = self._app.wsgi_app(self._environ, self._start)
        except Exception:
            log.exception("request_lost")
            return 500, [], b""
        try:
            length = next((int(v) for k, v in self._headers if k == "content-length"), None)
            if length is not None and length <= WHOLE_BYTES:
                return self._status, self._headers, b"".join(parts)
            self._stream(parts)
        finally:
            if hasattr(parts, "close"):
                parts.close()
        return None

    def _start(self, status: str, headers: Headers, exc_info: Any = None) -> Any:
        self._status = int(status[:3])
        self._headers = [(name.lower(), value) for name, value in headers]

    def _stream(self, parts: Iterable[bytes]) -> None:
        async def begin() -> Any:
            return self._protocol.response_stream(self._status, self._headers)

        transport = asyncio.run_coroutine_threadsafe(begin(), self._loop).result()

        async def send(part: bytes) -> None:
            await transport.send_bytes(part)

        for part in parts:
            if part:
                asyncio.run_coroutine_threadsafe(send(part), self._loop).result()


class _Body(io.RawIOBase):
    """A long body as a file: the loop reads on when a view does."""

    def __init__(self, protocol: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._pieces: AsyncIterator[bytes] = aiter(protocol)
        self._loop = loop
        self._left = b""

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with what comes next; 0 at the end."""
        if not self._left:
            piece = asyncio.run_coroutine_threadsafe(self._next(), self._loop)
            self._left = piece.result(BODY_SECONDS)
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size

    async def _next(self) -> bytes:
        # Not `async for`, which would ask for the iterator anew: Granian gives it once.
        try:
            while not (piece := await self._pieces.__anext__()):
                pass
        except StopAsyncIteration:
            return b""
        return piece


def _small(scope: Any) -> bool:
    """Tell whether a request's body is known to be small, or not there."""
    length = scope.headers.get("content-length")
    if length is None:
        return "transfer-encoding" not in scope.headers
    return length.isdigit() and int(length) <= WHOLE_BYTES


def _environ(scope: Any, source: Any) -> dict[str, Any]:
    """Return the WSGI environment of a request (PEP 3333)."""
    host, _, port = scope.server.rpartition(":")
    environ = {
        "REQUEST_METHOD": scope.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": scope.path.encode("utf-8", "surrogateescape").decode("latin-1"),
        "QUERY_STRING": scope.query_string,
        "SERVER_NAME": host or "localhost",
        "SERVER_PORT": port or "80",
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "REMOTE_ADDR": scope.client.rpartition(":")[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.scheme,
        "wsgi.input": source,
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name, value in scope.headers.items():
        if "_" in name:
            continue  # it would pass for the header with a hyphen
        key = name.upper().replace("-", "_")
        key = key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"
        separator = "; " if key == "HTTP_COOKIE" else ","
        environ[key] = f"{environ[key]}{separator}{value}" if key in environ else value
    return environ
