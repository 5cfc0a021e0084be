"""Rows of the table ``decisions`` in the form in which PostgreSQL's binary COPY takes them.

A single decision is written so where it is made, and goes into the local log and on into PostgreSQL
as it is: nobody on its way reads it. As JSON it took PostgreSQL twice the time. `service.columnar`
writes the same rows for many decisions at once.

A row is its number of fields, then each field: its length in bytes, or -1 for null, and its value,
big-endian (PostgreSQL's manual, "COPY", "Binary Format").
"""

import datetime as dt
import functools
import struct
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson

from service.packed import CONTEXT, SIMPLEX

ID_BYTES = 16
COLUMNS = (
    "id", "campaign_id", "revision", "snapshot", "unit", "segment", "mask", "packed_simplex",
    "arm", "propensity", "reason", "origin", "why", "reserved_minor", "decided_at", "expires_at",
    "packed_context",
)  # fmt: skip
"""The columns, in the order of every row here."""
BEGINS, ENDS = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
"""What stands before the rows of a stream, and after them."""
EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
"""From when PostgreSQL counts."""
_HEAD = struct.pack(">hi", len(COLUMNS), ID_BYTES)
_ID = len(_HEAD)
_UNIT = _ID + ID_BYTES + 8 + 8 + 12 + 4
_SIMPLEX = _UNIT + ID_BYTES + 6 + 12 + 4
"""Where in a row some of its fields begin, each after its length."""
_ARRAY = struct.pack(">iii", 1, 0, 701)
"""With what a simplex begins where an earlier release made an array of it."""
_NULL = b"\xff\xff\xff\xff"
_size = struct.Struct(">i").pack
# Fields, then the length and value of: id, campaign, revision, snapshot, unit, segment, mask.
_start = struct.Struct(f">h i{ID_BYTES}s ii ii iq i{ID_BYTES}s ih iq").pack
_end = struct.Struct(">iq iq iq").pack


class Malformed(ValueError):
    """What was to become a row is no decision."""


def micros(moment: dt.datetime) -> int:
    """Return a moment as PostgreSQL counts it: microseconds since the year 2000."""
    since = moment - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def row(
    id: bytes, campaign: int, revision: int, snapshot: int, unit: bytes, segment: int, mask: int,
    chosen: bytes, said: bytes, reserved: int, decided: int, expires: int, context: bytes,
) -> bytes:  # fmt: skip
    """Return a decision; ``chosen`` and ``said`` are by these functions, times by `micros`.

    The context is as in its column (`packed.CONTEXT`).
    """
    start = _start(
        len(COLUMNS), ID_BYTES, id, 4, campaign, 4, revision, 8, snapshot, ID_BYTES, unit,
        2, segment, 8, mask,
    )  # fmt: skip
    times = _end(8, reserved, 8, decided, 8, expires)
    return b"".join((start, chosen, said, times, _size(len(context)), context))


def chosen(simplex: Sequence[float], arm: int, propensity: float) -> bytes:
    """Return what was drawn from (A probabilities), and what was drawn."""
    arms = len(simplex)
    return _drawn(arms)(8 * arms, *simplex, 2, arm, 8, propensity)


@functools.lru_cache(4096)
def said(reason: str, origin: bytes | None, why: bytes) -> bytes:
    """Return the reason, which decision is repeated, if any (its id), and a document of JSON."""
    named = reason.encode()
    told = _NULL if origin is None else _size(ID_BYTES) + origin
    return b"".join((_size(len(named)), named, told, _size(len(why)), why))


def id_of(row: bytes) -> bytes:
    """Return a decision's id."""
    return row[_ID : _ID + ID_BYTES]


def campaign_of(id: bytes) -> int:
    """Return the campaign's number, with which a decision's id begins."""
    return int.from_bytes(id[:4], "big")


def layout(length: int, arms: int, width: int) -> np.dtype[Any]:
    """Return where in a row of so many bytes lies what each decision has for itself."""
    arm = _SIMPLEX + 8 * arms + 4
    fields: dict[str, tuple[Any, int]] = {
        "id": ((np.uint8, ID_BYTES), _ID),
        "unit": ((np.uint8, ID_BYTES), _UNIT),
        "simplex": ((SIMPLEX, arms), _SIMPLEX),
        "arm": (">i2", arm),
        "propensity": (">f8", arm + 2 + 4),
        "context": ((CONTEXT, (width,)), length - 4 * width),
    }
    forms, offsets = zip(*fields.values(), strict=True)
    return np.dtype(
        {"names": list(fields), "formats": forms, "offsets": offsets, "itemsize": length}
    )


def stream(rows: Sequence[bytes]) -> bytes:
    """Return rows as a whole stream of ``COPY decisions (...) (FORMAT binary)``."""
    return b"".join((BEGINS, *rows, ENDS))


def read(body: bytes) -> bytes:
    """Return the row of a decision's entry in the local log, also of an earlier release's: JSON.

    Raises:
        Malformed: it is none.
    """
    if body.startswith(_HEAD):
        return _repacked(body) if body.startswith(_ARRAY, _SIMPLEX) else body
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
        told["reserved_minor"], decided, expires, np.array(told["context"], CONTEXT).tobytes(),
    )  # fmt: skip


def _repacked(row: bytes) -> bytes:
    """Return a row whose simplex and context are arrays of PostgreSQL, as an earlier release's."""
    fields, place = [], 2
    while place < len(row):
        size = int.from_bytes(row[place : place + 4], "big", signed=True)
        fields.append(row[place : (place := place + 4 + max(size, 0))])
    for name, form, wide in (
        ("packed_simplex", SIMPLEX, ">f8"),
        ("packed_context", CONTEXT, ">i8"),
    ):
        # Its own length, dimensions, nulls, type, number, first; then each number after its length.
        numbers = np.frombuffer(fields[COLUMNS.index(name)][24:], [("size", ">i4"), ("one", wide)])
        value = numbers["one"].astype(form).tobytes()
        fields[COLUMNS.index(name)] = _size(len(value)) + value
    return row[:2] + b"".join(fields)


@functools.cache
def _drawn(arms: int) -> Callable[..., bytes]:
    """Return what packs a simplex, an arm and its probability, each after its length."""
    return struct.Struct(f">i{arms}d ih id").pack
