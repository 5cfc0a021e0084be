"""Flask behind a web worker's loop: every request in one of a few threads (ASGI to WSGI).

Hot routes are answered in front of it (`service.protocol`). Small bodies are read before a thread
is taken, so that a client which sends half of one occupies none; larger ones, such as files, as the
view asks for them (WSGI: PEP 3333).
"""

import asyncio
import io
import sys
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from flask import Flask

from service.hot import refused

THREADS = 16
MAX_WAITING = 256
"""How many requests may wait for a thread, or be in one."""
WHOLE_BYTES = 1 << 20
"""Bodies up to this size are read, and sent, in one piece."""
BODY_SECONDS = 30.0
"""How long a client may take to send the next piece of a body."""
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
log = structlog.get_logger()


class Gateway:
    """One worker's application (ASGI); make it in the worker."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._waiting = 0
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="flask")

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if self._waiting >= MAX_WAITING:
            status, headers, body = refused("Too much is asked at once; try again in a second.")
            lines = headers.strip().split(b"\r\n")
            pairs = [tuple(line.split(b": ", 1)) for line in lines]
            await send({"type": "http.response.start", "status": status, "headers": pairs})
            await send({"type": "http.response.body", "body": body})
            return
        self._waiting += 1
        try:
            await self._flask(scope, receive, send)
        finally:
            self._waiting -= 1

    async def _flask(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        source: Any = _Body(receive, loop)
        if _small(scope):
            try:
                source = io.BytesIO(await _whole(receive))
            except (TimeoutError, ConnectionError):
                return  # it is gone, or too slow: nobody is there to be told
        call = _Call(self._app, _environ(scope, source), send, loop)
        answer = await loop.run_in_executor(self._threads, call)
        if answer is not None:
            start, body = answer
            await send(start)
            await send({"type": "http.response.body", "body": body})


class _Call:
    """One request to Flask, in a thread of its own."""

    def __init__(self, app: Flask, environ: dict[str, Any], send: Send, loop: Any) -> None:
        self._app, self._environ, self._send, self._loop = app, environ, send, loop
        self._start: dict[str, Any] = {}

    def __call__(self) -> tuple[dict[str, Any], bytes] | None:
        """Return the answer, or send it piece by piece where it is long or its length unknown."""
        try:
            parts = self._app.wsgi_app(self._environ, self._begin)
        except Exception:
            log.exception("request_lost")
            self._begin("500", [("content-length", "0")])
            return self._start, b""
        try:
            lengths = [int(v) for k, v in self._start["headers"] if k == b"content-length"]
            if lengths and lengths[0] <= WHOLE_BYTES:
                return self._start, b"".join(parts)
            self._stream(parts)
        finally:
            if hasattr(parts, "close"):
                parts.close()
        return None

    def _begin(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        pairs = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers]
        self._start = {"type": "http.response.start", "status": int(status[:3]), "headers": pairs}

    def _stream(self, parts: Iterable[bytes]) -> None:
        def told(message: dict[str, Any]) -> None:
            asyncio.run_coroutine_threadsafe(_told(self._send, message), self._loop).result()

        told(self._start)
        for part in parts:
            if part:
                told({"type": "http.response.body", "body": part, "more_body": True})
        told({"type": "http.response.body", "body": b""})


async def _told(send: Send, message: dict[str, Any]) -> None:
    await send(message)


class _Body(io.RawIOBase):
    """A long body as a file: the loop reads on when a view does."""

    def __init__(self, receive: Receive, loop: asyncio.AbstractEventLoop) -> None:
        self._receive, self._loop = receive, loop
        self._left, self._more = b"", True

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with what comes next; 0 at the end."""
        while not self._left and self._more:
            piece = asyncio.run_coroutine_threadsafe(_next(self._receive), self._loop)
            self._left, self._more = piece.result(BODY_SECONDS)
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


async def _next(receive: Receive) -> tuple[bytes, bool]:
    """Return the next piece of a body and whether there is more.

    Raises:
        ConnectionError: the client has gone.
    """
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ConnectionError("the client has gone")
    return message["body"], message["more_body"]


async def _whole(receive: Receive) -> bytes:
    """Return a whole body; raises `TimeoutError` where its next piece does not come in time."""
    parts, more = [], True
    while more:
        part, more = await asyncio.wait_for(_next(receive), BODY_SECONDS)
        parts.append(part)
    return b"".join(parts)


def _small(scope: dict[str, Any]) -> bool:
    """Tell whether a request's body is known to be small, or not there."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length")
    if length is None:
        return b"transfer-encoding" not in headers
    return bool(length.isdigit() and int(length) <= WHOLE_BYTES)


def _environ(scope: dict[str, Any], source: Any) -> dict[str, Any]:
    """Return the WSGI environment of a request (PEP 3333)."""
    host, port = scope["server"] or ("localhost", 80)
    client = scope["client"] or ("", 0)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": scope["path"].encode("utf-8", "surrogateescape").decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "REMOTE_ADDR": client[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": source,
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name, value in scope["headers"]:
        if b"_" in name:
            continue  # it would pass for the header with a hyphen
        key, text = name.decode("latin-1").upper().replace("-", "_"), value.decode("latin-1")
        key = key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"
        separator = "; " if key == "HTTP_COOKIE" else ","
        environ[key] = f"{environ[key]}{separator}{text}" if key in environ else text
    return environ
