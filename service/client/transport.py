"""How the client's requests travel: over HTTP, or straight into a WSGI application.

A transport has one method, ``send(request, timeout_seconds) -> Response``, and one exception,
`TransportError`, for everything that kept an answer from coming.
"""

import contextlib
import http.client
import io
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, urlsplit

MAX_REPLY_BYTES = 8 << 20
_CHUNK_BYTES = 1 << 16


class Request(NamedTuple):
    """What is sent. ``path`` starts with a slash and may hold a query."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


class Response(NamedTuple):
    """What came back. ``headers`` have lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes


class TransportError(Exception):
    """No answer came: refused, broken off, too late, or not HTTP."""


class Transport(Protocol):
    """Anything that carries a request to Barter and its answer back."""

    def send(self, request: Request, timeout_seconds: float) -> Response:
        """Return the answer; raises `TransportError` if there is none in time."""

    def close(self) -> None:
        """Let go of connections."""


class HttpTransport:
    """HTTP/1.1 with one kept connection per thread; safe across threads and forks."""

    def __init__(self, base_url: str, *, most_bytes: int = MAX_REPLY_BYTES) -> None:
        """Take a base URL such as ``https://barter.shop.example`` (a path prefix is kept).

        A reply of more than ``most_bytes`` counts as none.

        Raises:
            ValueError: it is not an http or https URL.
        """
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url must look like https://barter.example or http://host:8080")
        secure = parts.scheme == "https"
        self._connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._host, self._port = parts.hostname, parts.port
        self._prefix = quote(parts.path.rstrip("/"), safe="/%")
        self._local, self._most_bytes = threading.local(), most_bytes

    def send(self, request: Request, timeout_seconds: float) -> Response:
        """Return the answer; raises `TransportError` if there is none in time."""
        deadline = time.monotonic() + timeout_seconds
        connection, kept = self._connection()
        try:
            return self._exchange(connection, request, deadline)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            # A kept connection may have been closed by the server just before we wrote to it.
            stale = kept and isinstance(error, ConnectionError | http.client.BadStatusLine)
            if not stale or time.monotonic() >= deadline:
                raise TransportError(_words(error)) from error
        except BaseException:
            self.close()
            raise
        return self.send(request, deadline - time.monotonic())

    def _connection(self) -> tuple[http.client.HTTPConnection, bool]:
        held: tuple[int, http.client.HTTPConnection] | None = getattr(self._local, "held", None)
        # A connection made before a fork belongs to the parent.
        if held is not None and held[0] == os.getpid():
            return held[1], True
        connection = self._connect(self._host, self._port)
        self._local.held = os.getpid(), connection
        return connection, False

    def _exchange(
        self, connection: http.client.HTTPConnection, request: Request, deadline: float
    ) -> Response:
        connection.timeout = _left(deadline)
        if connection.sock is None:
            connection.connect()
        socket = connection.sock
        socket.settimeout(_left(deadline))
        connection.request(
            request.method, self._prefix + request.path, request.body, request.headers
        )
        socket.settimeout(_left(deadline))
        reply = connection.getresponse()
        body = bytearray()
        while chunk := reply.read1(_CHUNK_BYTES):
            body += chunk
            if len(body) > self._most_bytes:
                raise http.client.HTTPException("the reply is too long")
            socket.settimeout(_left(deadline))
        reply.read()  # nothing is left, but only this ends the exchange for http.client
        if reply.will_close:
            self.close()
        headers = {name.lower(): value for name, value in reply.getheaders()}
        return Response(reply.status, headers, bytes(body))

    def close(self) -> None:
        """Close this thread's connection; the next request opens another."""
        held = getattr(self._local, "held", None)
        self._local.held = None
        if held is not None:
            with contextlib.suppress(OSError):
                held[1].close()


class WsgiTransport:
    """Calls a WSGI application in this process: for tests, without a socket or a server."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        """Take the application."""
        self._app = app

    def send(self, request: Request, timeout_seconds: float) -> Response:
        """Return the answer. The application runs in this thread and cannot be cut short."""
        path, _, query = request.path.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": request.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_LENGTH": str(len(request.body)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(request.body),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        for name, value in request.headers.items():
            key = name.upper().replace("-", "_")
            environ[key if key == "CONTENT_TYPE" else f"HTTP_{key}"] = value
        started: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(
            status: str, headers: list[tuple[str, str]], exc_info: Any = None
        ) -> Callable[[bytes], object]:
            started[:] = [(status, headers)]
            return lambda data: None

        parts = self._app(environ, start_response)
        try:
            body = b"".join(parts)
        finally:
            close = getattr(parts, "close", None)
            if close is not None:
                close()
        ((status, headers),) = started
        return Response(int(status[:3]), {name.lower(): text for name, text in headers}, body)

    def close(self) -> None:
        """Do nothing: there is no connection."""


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer in time")
    return left


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
