"""Many decisions of one campaign, column by column: one record in the local log.

A list of a thousand decisions has few distinct segments, masks, reasons and explanations. What is
the same is kept once, as a `Kind`; the rest lies in packed arrays, little-endian, in the order of
the list. So a thousand decisions cost one record, one checksum and some microseconds, and become
rows of PostgreSQL's binary COPY without a loop over them.

Letters: ``B`` decisions, ``A`` arms, ``D`` encoded features.
"""

import datetime as dt
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from service import copying
from service.copying import ID_BYTES
from service.packed import CONTEXT

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_EPOCH_MICROS = (copying.EPOCH - EPOCH) // dt.timedelta(microseconds=1)

CACHED_ROWS = 256
"""Rows of COPY that are written at a time: they stay within the processor's cache."""

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
            some = found if len(chosen) == len(found.kind) else found.taken(chosen)
            parts += _rows(packed, one, some)
    return copying.stream(parts)


def _rows(packed: Packed, kind: Kind, found: Arrays) -> list[bytes]:
    """Return rows of one kind: they are of one length, so they are columns of one matrix."""
    count, arms = found.simplexes.shape
    width = found.contexts.shape[1]
    sample = _sample(packed, kind, arms, width)
    propensity = found.simplexes[np.arange(count), found.arm]
    made = np.frombuffer(
        bytearray(sample * min(count, CACHED_ROWS)), copying.layout(len(sample), arms, width)
    )
    parts = []
    for begin in range(0, count, CACHED_ROWS):
        part = slice(begin, begin + CACHED_ROWS)
        some = made[: count - begin]
        some["id"], some["unit"] = found.ids[part], found.units[part]
        some["simplex"], some["context"] = found.simplexes[part], found.contexts[part]
        some["arm"], some["propensity"] = found.arm[part], propensity[part]
        parts.append(some.tobytes())
    return parts


def _sample(packed: Packed, kind: Kind, arms: int, width: int) -> bytes:
    """Return a row of a kind, with nothing in it that each decision has for itself."""
    decided, expires = packed.decided_at - _EPOCH_MICROS, packed.expires_at - _EPOCH_MICROS
    nothing = bytes(ID_BYTES)
    return copying.row(
        nothing, packed.campaign_id, packed.revision, packed.snapshot, nothing, kind.segment,
        kind.mask, copying.chosen([0.0] * arms, 0, 0.0), copying.said(kind.reason, None, kind.why),
        0, decided, expires, np.zeros(width, CONTEXT).tobytes(),
    )  # fmt: skip
