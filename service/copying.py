"""Rows of the table ``decisions`` in the form in which PostgreSQL's binary COPY takes them.

A single decision is written so where it is made, and goes into the local log and on into PostgreSQL
as it is: nobody on its way reads it. As JSON it took PostgreSQL twice the time. `service.columnar`
writes the same rows for many decisions at once.

A row is its number of fields, then each field: its length in bytes, or -1 for null, and its value,
big-endian; an array tells dimensions, nulls, the type and number of its elements and where they
begin, then each element like a field (PostgreSQL's manual, "COPY", "Binary Format").
"""

import datetime as dt
import functools
import struct
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import orjson

ID_BYTES = 16
COLUMNS = (
    "id", "campaign_id", "revision", "snapshot", "unit", "segment", "mask", "simplex", "arm",
    "propensity", "reason", "origin", "why", "reserved_minor", "decided_at", "expires_at",
    "context",
)  # fmt: skip
"""The columns, in the order of every row here."""
FLOAT8, INT8 = 701, 20
"""How PostgreSQL names the types of what an array holds."""
BEGINS, ENDS = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
"""What stands before the rows of a stream, and after them."""
EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
"""From when PostgreSQL counts."""
_HEAD = struct.pack(">hi", len(COLUMNS), ID_BYTES)
_ID = slice(len(_HEAD), len(_HEAD) + ID_BYTES)
_NULL = b"\xff\xff\xff\xff"
_size = struct.Struct(">i").pack
# Fields, then the length and value of: id, campaign, revision, snapshot, unit, segment, mask.
_start = struct.Struct(f">h i{ID_BYTES}s ii ii iq i{ID_BYTES}s ih iq").pack
_chosen = struct.Struct(">ih id").pack
_end = struct.Struct(">iq iq iq").pack


class Malformed(ValueError):
    """What was to become a row is no decision."""


def micros(moment: dt.datetime) -> int:
    """Return a moment as PostgreSQL counts it: microseconds since the year 2000."""
    since = moment - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def row(
    id: bytes, campaign: int, revision: int, snapshot: int, unit: bytes, segment: int, mask: int,
    chosen: bytes, said: bytes, reserved: int, decided: int, expires: int, context: Sequence[int],
) -> bytes:  # fmt: skip
    """Return a decision; ``chosen`` and ``said`` are by these functions, times by `micros`."""
    start = _start(
        len(COLUMNS), ID_BYTES, id, 4, campaign, 4, revision, 8, snapshot, ID_BYTES, unit,
        2, segment, 8, mask,
    )  # fmt: skip
    times = _end(8, reserved, 8, decided, 8, expires)
    return b"".join((start, chosen, said, times, _array(INT8, context)))


def chosen(simplex: Sequence[float], arm: int, propensity: float) -> bytes:
    """Return what was drawn from (A probabilities), and what was drawn."""
    return _array(FLOAT8, simplex) + _chosen(2, arm, 8, propensity)


@functools.lru_cache(4096)
def said(reason: str, origin: bytes | None, why: bytes) -> bytes:
    """Return the reason, which decision is repeated, if any (its id), and a document of JSON."""
    named = reason.encode()
    told = _NULL if origin is None else _size(ID_BYTES) + origin
    return b"".join((_size(len(named)), named, told, _size(len(why)), why))


def id_of(row: bytes) -> bytes:
    """Return a decision's id."""
    return row[_ID]


def campaign_of(id: bytes) -> int:
    """Return the campaign's number, with which a decision's id begins."""
    return int.from_bytes(id[:4], "big")


def stream(rows: Sequence[bytes]) -> bytes:
    """Return rows as a whole stream of ``COPY decisions (...) (FORMAT binary)``."""
    return b"".join((BEGINS, *rows, ENDS))


def read(body: bytes) -> bytes:
    """Return the row of a decision's entry in the local log, also of an earlier release's: JSON.

    Raises:
        Malformed: it is none.
    """
    if body.startswith(_HEAD):
        return body
    try:
        return _from(orjson.loads(body))
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise Malformed(f"not a decision: {type(error).__name__} {error}") from error


def _from(told: dict[str, Any]) -> bytes:
    origin = None if told["origin"] is None else uuid.UUID(told["origin"]).bytes
    decided, expires = (
        micros(dt.datetime.fromisoformat(told[name])) for name in ("decided_at", "expires_at")
    )
    return row(
        uuid.UUID(told["id"]).bytes, told["campaign_id"], told["revision"], told["snapshot"],
        bytes.fromhex(told["unit"].removeprefix("\\x")), told["segment"], told["mask"],
        chosen(told["simplex"], told["arm"], told["propensity"]),
        said(told["reason"], origin, orjson.dumps(told["why"])),
        told["reserved_minor"], decided, expires, told["context"],
    )  # fmt: skip


def _array(kind: int, values: Sequence[float]) -> bytes:
    if not values:
        return _size(12) + struct.pack(">iii", 0, 0, kind)
    cells: list[float] = [8] * (2 * len(values))
    cells[1::2] = values
    return _layout(kind, len(values))(*cells)


@functools.cache
def _layout(kind: int, length: int) -> Callable[..., bytes]:
    """Return what packs an array's elements, each after its length of 8 bytes."""
    head = struct.pack(">6i", 20 + 12 * length, 1, 0, kind, length, 1)
    cells = struct.Struct(">" + ("id" if kind == FLOAT8 else "iq") * length).pack

    def pack(*values: float) -> bytes:
        return head + cells(*values)

    return pack
