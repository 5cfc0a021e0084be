"""Many decisions of one campaign, column by column: one record in the local log.

A list of a thousand decisions has few distinct segments, masks, reasons and explanations. What is
the same is kept once, as a `Kind`; the rest lies in packed arrays, little-endian, in the order of
the list. So a thousand decisions cost one record, one checksum and some microseconds, and become
rows of PostgreSQL's binary COPY without a loop over them.

Letters: ``B`` decisions, ``A`` arms, ``D`` encoded features.
"""

import datetime as dt
import struct
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from service import copying
from service.copying import ID_BYTES

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_EPOCH_MICROS = (copying.EPOCH - EPOCH) // dt.timedelta(microseconds=1)

_ID = np.dtype([("size", ">i4"), ("value", "u1", (ID_BYTES,))])

Bytes = NDArray[np.uint8]


class Kind(NamedTuple):
    """What some decisions of a list have in common.

    ``why`` is the JSON of that column. ``simplex`` has the A float64 of a simplex that hangs on
    segment and mask alone; it is empty where every decision has its own.
    """

    segment: int
    mask: int
    reason: str
    why: bytes
    simplex: bytes


class Packed(NamedTuple):
    """Decisions of one campaign at one revision and snapshot; times are microseconds since 1970.

    Attributes:
        kind: (B,) uint16, which of ``kinds``.
        ids, units: (B, 16) bytes.
        arm: (B,) int16.
        simplexes: (B, A) float64; empty where each kind has one.
        contexts: (B, D) int32.
    """

    campaign_id: int
    revision: int
    snapshot: int
    decided_at: int
    expires_at: int
    arms: int
    kinds: list[Kind]
    kind: bytes
    ids: bytes
    units: bytes
    arm: bytes
    simplexes: bytes
    contexts: bytes


class Arrays(NamedTuple):
    """The arrays of a `Packed`, to be read: shapes as there."""

    kind: NDArray[np.uint16]
    ids: Bytes
    units: Bytes
    arm: NDArray[np.int16]
    simplexes: NDArray[np.float64]
    contexts: NDArray[np.int32]

    def taken(self, chosen: NDArray[np.intp]) -> "Arrays":
        """Return some of the rows."""
        return Arrays._make(field[chosen] for field in self)


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Packed).decode


def micros(moment: dt.datetime) -> int:
    """Return a moment as microseconds since 1970."""
    return (moment - EPOCH) // dt.timedelta(microseconds=1)


def arrays(packed: Packed) -> Arrays:
    """Return the arrays of packed decisions, without copying them."""
    count = len(packed.arm) // 2
    kind = np.frombuffer(packed.kind, "<u2")
    if packed.simplexes:
        simplexes = np.frombuffer(packed.simplexes, "<f8").reshape(count, packed.arms)
    else:
        each = [np.frombuffer(one.simplex, "<f8") for one in packed.kinds]
        simplexes = np.stack(each)[kind]
    return Arrays(
        kind,
        np.frombuffer(packed.ids, np.uint8).reshape(count, ID_BYTES),
        np.frombuffer(packed.units, np.uint8).reshape(count, ID_BYTES),
        np.frombuffer(packed.arm, "<i2"),
        simplexes,
        np.frombuffer(packed.contexts, "<i4").reshape(count, -1 if packed.contexts else 0),
    )


def copy_stream(packed: Packed) -> bytes:
    """Return the decisions as a whole stream of ``COPY decisions (...) (FORMAT binary)``.

    Kind by kind, each in the order of the list.
    """
    found = arrays(packed)
    parts = []
    for place, one in enumerate(packed.kinds):
        chosen = np.flatnonzero(found.kind == place)
        if len(chosen):
            parts.append(_rows(packed, one, found.taken(chosen)))
    return copying.stream(parts)


def _rows(packed: Packed, kind: Kind, found: Arrays) -> bytes:
    """Return rows of one kind: they are of one length, so they are columns of one matrix."""
    count, arms = found.simplexes.shape
    width = found.contexts.shape[1]
    said = copying.said(kind.reason, None, kind.why)
    decided, expires = packed.decided_at - _EPOCH_MICROS, packed.expires_at - _EPOCH_MICROS
    layout = np.dtype(
        [
            ("fields", ">i2"),
            ("id", _ID),
            ("same", "u1", (4 + 4 + 4 + 4 + 4 + 8,)),
            ("unit", _ID),
            ("placed", "u1", (4 + 2 + 4 + 8,)),
            ("simplex", _array(">f8", arms)),
            ("arm", [("size", ">i4"), ("value", ">i2")]),
            ("propensity", [("size", ">i4"), ("value", ">f8")]),
            ("said", "u1", (len(said) + 3 * (4 + 8),)),
            ("context", _array(">i8", width)),
        ]
    )
    made = np.empty(count, layout)
    made["fields"] = len(copying.COLUMNS)
    made["same"] = _constant(
        _field(">i", packed.campaign_id), _field(">i", packed.revision),
        _field(">q", packed.snapshot),
    )  # fmt: skip
    made["placed"] = _constant(_field(">h", kind.segment), _field(">q", kind.mask))
    made["said"] = _constant(said, _field(">q", 0), _field(">q", decided), _field(">q", expires))
    for name, values in (("id", found.ids), ("unit", found.units)):
        made[name]["size"], made[name]["value"] = ID_BYTES, values
    made["arm"]["size"], made["arm"]["value"] = 2, found.arm
    propensity = found.simplexes[np.arange(count), found.arm]
    made["propensity"]["size"], made["propensity"]["value"] = 8, propensity
    _fill(made["simplex"], found.simplexes, copying.FLOAT8)
    _fill(made["context"], found.contexts, copying.INT8)
    return made.tobytes()


def _array(kind: str, length: int) -> np.dtype[Any]:
    """Return the layout of a one-dimensional array: an empty one has no dimension at all."""
    head: list[Any] = [("size", ">i4"), ("dimensions", ">i4"), ("nulls", ">i4"), ("type", ">i4")]
    if length:
        element = np.dtype([("size", ">i4"), ("value", kind)])
        head += [("length", ">i4"), ("first", ">i4"), ("elements", element, (length,))]
    return np.dtype(head)


def _fill(made: NDArray[Any], values: NDArray[Any], kind: int) -> None:
    length = values.shape[1]
    made["size"] = made.dtype.itemsize - 4
    made["dimensions"], made["nulls"], made["type"] = int(length > 0), 0, kind
    if length:
        made["length"], made["first"] = length, 1
        made["elements"]["size"], made["elements"]["value"] = 8, values


def _field(form: str, value: int) -> bytes:
    return struct.pack(">i", struct.calcsize(form)) + struct.pack(form, value)


def _constant(*parts: bytes) -> Bytes:
    return np.frombuffer(b"".join(parts), np.uint8)
