"""A load generator that costs little: one process, raw HTTP/1.1 over keep-alive connections.

`closed` asks again on every connection as soon as it has its answer: what a server can do.
`opened` asks at a fixed rate whatever the answers do, and counts a request's time from the moment
it was due, so a server that stalls is not spared the requests that would have come meanwhile
("coordinated omission"). Both tell what share of the machine the generator took itself: it shares
the processors with what it measures, so it asks and reads by system calls alone.
"""

import itertools
import os
import select
import socket
import statistics
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

Request = tuple[str, str | bytes, dict[str, str]]
"""Path, body and headers of a POST."""
FRESH = "f" * 32
"""Where a body has this, each request has another number in its place."""
READ_BYTES = 1 << 16
TICK_SECONDS = 0.001
TIMEOUT_SECONDS = 60.0


class Sample(NamedTuple):
    """One round: requests answered per second, latencies in milliseconds, the generator's share."""

    per_second: float
    p50: float
    p99: float
    own: float


class _Connection:
    """One connection with one request at a time."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._got, self._wanted = b"", 0
        self.since = 0.0

    def fileno(self) -> int:
        return self._socket.fileno()

    def ask(self, raw: bytes, since: float) -> None:
        """Send a request; it counts from ``since``."""
        self.since = since
        self._socket.sendall(raw)

    def answered(self) -> bool:
        """Read what has come; tell whether the answer is whole.

        Raises:
            RuntimeError: it is no 200 or 202, or the connection has ended.
        """
        got = self._socket.recv(READ_BYTES)
        if self._got:
            got = self._got + got
        if not self._wanted:
            end = got.find(b"\r\n\r\n")
            if got[9:12] not in (b"200", b"202"):
                raise RuntimeError(f"answered {got[:60]!r}")
            if end >= 0:
                self._wanted = end + 4 + _length(got[:end])
        whole = 0 < self._wanted <= len(got)
        self._got = b"" if whole else got
        if whole:
            self._wanted = 0
        return whole

    def close(self) -> None:
        self._socket.close()


def _length(head: bytes) -> int:
    at = head.lower().index(b"content-length:") + 15
    end = head.find(b"\r\n", at)
    return int(head[at : end if end >= 0 else len(head)])


class _Asking:
    """Connections to a server, what they ask in turn, and how long each answer took."""

    def __init__(self, port: int, requests: Iterator[bytes], connections: int) -> None:
        self._requests = requests
        # In turn: servers close a connection on which nothing is asked for half a minute.
        self.idle = deque(_Connection(port) for _ in range(connections))
        self._of = {one.fileno(): one for one in self.idle}
        self._poll = select.epoll()
        for number in self._of:
            self._poll.register(number, select.EPOLLIN)
        self.took: list[float] = []

    def ask(self, since: float) -> None:
        """Ask on an idle connection."""
        self.idle.popleft().ask(next(self._requests), since)

    def wait(self, seconds: float) -> None:
        """Take the answers that come, for at most so long if there are none."""
        for number, _ in self._poll.poll(seconds):
            connection = self._of[number]
            if connection.answered():
                self.took.append(time.perf_counter() - connection.since)
                self.idle.append(connection)

    def close(self) -> None:
        """Hang up, whatever has not been answered."""
        self._poll.close()
        for one in self._of.values():
            one.close()


def closed(port: int, request: Request, *, connections: int, seconds: float) -> Sample:
    """Ask without a pause on so many connections."""
    asking = _Asking(port, _repeated(request), connections)
    used, ends = time.process_time(), time.perf_counter() + seconds
    while (now := time.perf_counter()) < ends:
        while asking.idle:
            asking.ask(now)
        asking.wait(ends - now)
    return _sample(asking, seconds, time.process_time() - used)


def opened(port: int, *requests: Request, connections: int, seconds: float, rate: float) -> Sample:
    """Ask ``rate`` times a second, one request after the other, on at most so many connections."""
    raws = itertools.cycle([_raw(request) for request in requests])
    asking = _Asking(port, raws, connections)
    used, start, asked = time.process_time(), time.perf_counter(), 0
    while (now := time.perf_counter()) < start + seconds:
        while asking.idle and (due := start + asked / rate) <= now:
            asking.ask(due)
            asked += 1
        # No shorter: it would wake for every request, and take of the machine what it measures.
        asking.wait(max(TICK_SECONDS, start + asked / rate - now) if asking.idle else 1.0)
    return _sample(asking, seconds, time.process_time() - used)


def _repeated(request: Request) -> Iterator[bytes]:
    raw = _raw(request)
    before, fresh, after = raw.partition(FRESH.encode())
    if not fresh:
        return itertools.repeat(raw)
    numbers = itertools.count(int.from_bytes(os.urandom(12), "big"))
    return (b"%b%032x%b" % (before, number, after) for number in numbers)


def _raw(request: Request) -> bytes:
    path, body, headers = request
    raw = body.encode() if isinstance(body, str) else body
    lines = [f"POST {path} HTTP/1.1", "Host: bench", f"Content-Length: {len(raw)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + raw


def _sample(asking: _Asking, seconds: float, used: float) -> Sample:
    asking.close()
    milliseconds = sorted(1000 * one for one in asking.took)
    return Sample(
        len(milliseconds) / seconds,
        statistics.median(milliseconds),
        milliseconds[int(0.99 * len(milliseconds))],
        used / seconds / len(os.sched_getaffinity(0)),
    )
