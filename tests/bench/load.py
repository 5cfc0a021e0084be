"""A load generator that costs little: one process, raw HTTP/1.1 over keep-alive connections.

`closed` asks again on every connection as soon as it has its answer: what a server can do.
`opened` asks at a fixed rate whatever the answers do, and counts a request's time from the moment
it was due, so a server that stalls is not spared the requests that would have come meanwhile
("coordinated omission"). Both tell what share of the machine the generator took itself.
"""

import asyncio
import itertools
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import uvloop

Request = tuple[str, str | bytes, dict[str, str]]
"""Path, body and headers of a POST."""


class Sample(NamedTuple):
    """One round: requests answered per second, latencies in milliseconds, the generator's share."""

    per_second: float
    p50: float
    p99: float
    own: float


class _Connection(asyncio.Protocol):
    """One connection with one request at a time; ``then`` is told how long each took."""

    def __init__(self, raws: Iterator[bytes], then: Callable[["_Connection", float], None]) -> None:
        self._raws, self._then = raws, then
        self._got = bytearray()
        self._since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, since: float) -> None:
        """Send the next request; it counts from ``since``."""
        self._since = since
        self._transport.write(next(self._raws))

    def data_received(self, data: bytes) -> None:
        self._got += data
        end = self._got.find(b"\r\n\r\n")
        if end < 0 or len(self._got) - end - 4 < _length(bytes(self._got[:end])):
            return
        if bytes(self._got[9:12]) not in (b"200", b"202"):
            raise RuntimeError(f"answered {bytes(self._got[:60])!r}")
        self._got = bytearray()
        self._then(self, time.perf_counter() - self._since)


def _length(head: bytes) -> int:
    at = head.lower().index(b"content-length:") + 15
    end = head.find(b"\r\n", at)
    return int(head[at : end if end >= 0 else len(head)])


def closed(port: int, request: Request, *, connections: int, seconds: float) -> Sample:
    """Ask without a pause on so many connections."""
    raws = itertools.repeat(_raw(request))
    return uvloop.run(_closed(port, raws, connections, seconds))


def opened(port: int, *requests: Request, connections: int, seconds: float, rate: float) -> Sample:
    """Ask ``rate`` times a second, one request after the other, on at most so many connections."""
    raws = itertools.cycle([_raw(request) for request in requests])
    return uvloop.run(_opened(port, raws, connections, seconds, rate))


def _raw(request: Request) -> bytes:
    path, body, headers = request
    raw = body.encode() if isinstance(body, str) else body
    lines = [f"POST {path} HTTP/1.1", "Host: bench", f"Content-Length: {len(raw)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + raw


async def _connected(
    port: int, raws: Iterator[bytes], number: int, then: Callable[[_Connection, float], None]
) -> list[_Connection]:
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: _Connection(raws, then), "127.0.0.1", port)
        for _ in range(number)
    ]
    return [protocol for _, protocol in made]


async def _closed(port: int, raws: Iterator[bytes], connections: int, seconds: float) -> Sample:
    took: list[float] = []
    ends = time.perf_counter() + seconds

    def then(connection: _Connection, latency: float) -> None:
        took.append(latency)
        if (now := time.perf_counter()) < ends:
            connection.ask(now)

    asking = await _connected(port, raws, connections, then)
    ends = time.perf_counter() + seconds
    used = time.process_time()
    for connection in asking:
        connection.ask(time.perf_counter())
    await asyncio.sleep(seconds)
    return _sample(took, seconds, time.process_time() - used)


async def _opened(
    port: int, raws: Iterator[bytes], connections: int, seconds: float, rate: float
) -> Sample:
    took: list[float] = []
    due: deque[float] = deque()
    # In turn: servers close a connection on which nothing is asked for half a minute.
    idle: deque[_Connection] = deque()

    def then(connection: _Connection, latency: float) -> None:
        took.append(latency)
        if due:
            connection.ask(due.popleft())
        else:
            idle.append(connection)

    idle += await _connected(port, raws, connections, then)
    used, start, asked = time.process_time(), time.perf_counter(), 0
    while (now := time.perf_counter()) < start + seconds:
        while start + asked / rate <= now:
            moment = start + asked / rate
            asked += 1
            if idle:
                idle.popleft().ask(moment)
            else:
                due.append(moment)
        # No shorter: an event loop spins through what is below its clock's resolution.
        await asyncio.sleep(max(0.001, start + asked / rate - time.perf_counter()))
    return _sample(took, seconds, time.process_time() - used)


def _sample(took: list[float], seconds: float, used: float) -> Sample:
    milliseconds = sorted(1000 * one for one in took)
    return Sample(
        len(took) / seconds,
        statistics.median(milliseconds),
        milliseconds[int(0.99 * len(milliseconds))],
        used / seconds / len(os.sched_getaffinity(0)),
    )
