"""Reads what is to be copied into PostgreSQL, by the format's own description."""

import datetime as dt
import struct
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from service import copying

EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)


def whole(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)


def number(value: bytes) -> float:
    found: float = struct.unpack(">d", value)[0]
    return found


def moment(value: bytes) -> dt.datetime:
    return EPOCH + dt.timedelta(microseconds=whole(value))


def chances(value: bytes) -> list[float]:
    return list(struct.unpack(f">{len(value) // 8}d", value))


def features(value: bytes) -> list[int]:
    return list(struct.unpack(f">{len(value) // 4}i", value))


def named(value: bytes) -> uuid.UUID:
    return uuid.UUID(bytes=value)


COLUMNS = [name.removeprefix("packed_") for name in copying.COLUMNS]
"""As the model calls them."""
READ: dict[str, Callable[[bytes], Any]] = {
    "id": named, "origin": named, "unit": bytes, "simplex": chances, "context": features,
    "propensity": number, "reason": bytes.decode, "why": orjson.loads,
    "decided_at": moment, "expires_at": moment,
}  # fmt: skip


def rows(stream: bytes) -> Iterator[dict[str, Any]]:
    """Yield the rows of a stream."""
    assert stream[:11] == b"PGCOPY\n\xff\r\n\0"
    at = 19
    while (count := whole(stream[at : at + 2])) != -1:
        assert count == len(copying.COLUMNS)
        at += 2
        row = {}
        for name in COLUMNS:
            size = whole(stream[at : at + 4])
            value = stream[at + 4 : at + 4 + max(size, 0)]
            row[name] = None if size < 0 else READ.get(name, whole)(value)
            at += 4 + max(size, 0)
        yield row
    assert at + 2 == len(stream)


def row(body: bytes) -> dict[str, Any]:
    """Return the row of one decision's log entry."""
    (found,) = rows(copying.stream([body]))
    return found
