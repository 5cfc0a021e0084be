"""The ledger: exact int64 sums per segment and arm, with a digest and a byte form.

``update(state, batch)`` of every arm-level policy is ``add(state, contribution(batch))``. Integer
sums do not depend on the order or the grouping of the rows, and a row with sign -1 takes back
exactly what the same row with sign +1 added: late conversions, refunds, duplicates and erasures
are entries, and the digest equals that of a rebuild from the remaining rows.

Bounds. ``|reward| <= 1e9`` per row, so ``reward**2 <= 1e18`` fits an int64. Sums stay exact while,
per segment and arm: ``trials < 2**31`` (for ``square_low``, whose rows are below 2**32) and
``sum |reward| < 2**63 / 2**20 = 8.8e12`` (for ``score_reward``): two thousand million decisions,
or 88 thousand million of a currency with two decimals.

>>> state = zeros(segments=1, arms=2)
>>> digest(state)[:12]
'7a0ad8f5a799'
"""

import hashlib
import json
import struct

import numpy as np
from numpy.typing import NDArray

from bandits.backend import Backend, is_traced, numpy_backend, require_double
from bandits.types import REWARD_LIMIT, SCORE_BITS, ArmSums, Array, Batch

_MAGIC = b"BLEDGER1"
_LOW = (1 << 32) - 1


def zeros(*, segments: int, arms: int) -> ArmSums:
    """A ledger with no rows: every field (S, A) int64 zero, in numpy."""
    if segments < 1 or arms < 1:
        raise ValueError("segments and arms must be at least 1")
    return ArmSums(*(np.zeros((segments, arms), dtype=np.int64) for _ in ArmSums._fields))


def contribution(
    batch: Batch, *, segments: int, arms: int, backend: Backend | None = None
) -> ArmSums:
    """The sums of one batch, every field (S, A) int64.

    Raises:
        ValueError: shapes disagree, an index is out of range, a conversion is not 0 or 1, a sign
            is not +1, -1 or 0 (a row that only fills the batch up), a reward exceeds 1e9, or a
            simplex entry is outside [0, 1]. Values are not looked at while JAX traces.
        TypeError: the simplex is not float64, or an integer field is not an integer array.
    """
    backend = backend or numpy_backend()
    _check(batch, segments=segments, arms=arms)
    xp = backend.xp
    segment = xp.asarray(batch.contexts.segment).astype(xp.int64)
    arm, sign = (xp.asarray(x).astype(xp.int64) for x in (batch.arm, batch.sign))
    reward, conversions = (
        xp.asarray(x).astype(xp.int64) for x in (batch.reward, batch.conversions)
    )
    square = reward * reward
    cell = segment * arms + arm
    every = xp.arange(arms, dtype=xp.int64)
    cells = (segment[:, None] * arms + every[None, :]).reshape(-1)
    chosen = (arm[:, None] == every[None, :]).astype(xp.float64)
    score = xp.rint((chosen - xp.asarray(batch.simplex)) * 2.0**SCORE_BITS).astype(xp.int64)
    score = score * sign[:, None]
    empty = xp.zeros(segments * arms, dtype=xp.int64)

    def summed(index: Array, values: Array) -> Array:
        return backend.scatter_add(empty, index, values).reshape(segments, arms)

    return ArmSums(
        trials=summed(cell, sign),
        conversions=summed(cell, sign * conversions),
        reward=summed(cell, sign * reward),
        square_high=summed(cell, sign * (square >> 32)),
        square_low=summed(cell, sign * (square & _LOW)),
        score=summed(cells, score.reshape(-1)),
        score_reward=summed(cells, (score * reward[:, None]).reshape(-1)),
    )


def add(a: ArmSums, b: ArmSums) -> ArmSums:
    """The field-wise sum of two ledgers of one shape."""
    if a.trials.shape != b.trials.shape:
        raise ValueError(f"ledgers of shapes {a.trials.shape} and {b.trials.shape} cannot be added")
    return ArmSums(*(x + y for x, y in zip(a, b, strict=True)))


def negate(state: ArmSums) -> ArmSums:
    """The ledger that takes ``state`` back when added."""
    return ArmSums(*(-x for x in state))


def total(state: ArmSums) -> ArmSums:
    """The sums over all segments, every field (1, A)."""
    return ArmSums(*(x.sum(axis=0, keepdims=True) for x in state))


def square(state: ArmSums) -> Array:
    """The sums of squared rewards, (S, A) float64 (exact to its 53 bits)."""
    return state.square_high * 2.0**32 + state.square_low


def digest(state: ArmSums) -> str:
    """SHA-256 (hex) over field names, shapes and little-endian int64 bytes."""
    sha = hashlib.sha256()
    for name, array in zip(state._fields, _arrays(state), strict=True):
        sha.update(f"{name}:{array.shape[0]}x{array.shape[1]};".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def to_bytes(state: ArmSums) -> bytes:
    """A self-describing form: magic with version, header length, JSON header, int64s, SHA-256."""
    arrays = _arrays(state)
    header = json.dumps(
        {"fields": list(state._fields), "shape": list(arrays[0].shape), "type": "<i8"},
        separators=(",", ":"),
    ).encode()
    body = b"".join(
        [_MAGIC, struct.pack("<I", len(header)), header, *(a.tobytes() for a in arrays)]
    )
    return body + hashlib.sha256(body).digest()


def from_bytes(data: bytes) -> ArmSums:
    """The ledger that :func:`to_bytes` wrote.

    Raises:
        ValueError: not a ledger, another version, cut short, or damaged.
    """
    body, checksum = data[:-32], data[-32:]
    if data[: len(_MAGIC)] != _MAGIC:
        raise ValueError("not a ledger of this version")
    if hashlib.sha256(body).digest() != checksum:
        raise ValueError("ledger is damaged: checksum differs")
    start = len(_MAGIC) + 4
    (length,) = struct.unpack("<I", body[len(_MAGIC) : start])
    header = json.loads(body[start : start + length])
    segments, arms = header["shape"]
    if header["fields"] != list(ArmSums._fields) or header["type"] != "<i8":
        raise ValueError("ledger has other fields than this version reads")
    values = np.frombuffer(body, dtype="<i8", offset=start + length)
    stacked = values.reshape(len(ArmSums._fields), segments, arms).astype(np.int64)
    return ArmSums(*stacked)


def _arrays(state: ArmSums) -> list[NDArray[np.int64]]:
    """The fields as contiguous little-endian int64 arrays of one (S, A) shape."""
    arrays = []
    for name, value in zip(state._fields, state, strict=True):
        array = np.asarray(value)
        if array.dtype != np.int64 or array.ndim != 2 or array.shape != state.trials.shape:
            raise TypeError(f"ledger field {name} must be (S, A) int64")
        arrays.append(np.ascontiguousarray(array, dtype="<i8"))
    return arrays


def _check(batch: Batch, *, segments: int, arms: int) -> None:
    rows = batch.arm.shape[0] if batch.arm.ndim == 1 else -1
    vectors = {
        "segment": batch.contexts.segment,
        "arm": batch.arm,
        "conversions": batch.conversions,
        "reward": batch.reward,
        "sign": batch.sign,
    }
    for name, vector in vectors.items():
        if vector.shape != (rows,):
            raise ValueError(f"{name} must have shape (B,) = ({rows},), not {vector.shape}")
        if vector.dtype.kind != "i":
            raise TypeError(f"{name} must be a signed integer array, not {vector.dtype}")
    if batch.simplex.shape != (rows, arms):
        raise ValueError(f"simplex must have shape {(rows, arms)}, not {batch.simplex.shape}")
    require_double(batch.simplex, what="simplex")
    if not is_traced(batch.simplex, *vectors.values()):
        _check_values(batch, segments=segments, arms=arms)


def _check_values(batch: Batch, *, segments: int, arms: int) -> None:
    segment, arm = np.asarray(batch.contexts.segment), np.asarray(batch.arm)
    p = np.asarray(batch.simplex)
    if bool(np.any((segment < 0) | (segment >= segments))):
        raise ValueError(f"segment must be in [0, {segments})")
    if bool(np.any((arm < 0) | (arm >= arms))):
        raise ValueError(f"arm must be in [0, {arms})")
    if not bool(np.all(np.isin(np.asarray(batch.conversions), (0, 1)))):
        raise ValueError("conversions must be 0 or 1")
    if not bool(np.all(np.isin(np.asarray(batch.sign), (-1, 0, 1)))):
        raise ValueError("sign must be +1, -1 or 0")
    reward = np.asarray(batch.reward)
    if bool(np.any((reward > REWARD_LIMIT) | (reward < -REWARD_LIMIT))):
        raise ValueError(f"reward must be within ±{REWARD_LIMIT}")
    if not bool(np.all((p >= 0.0) & (p <= 1.0))):
        raise ValueError("simplex entries must be in [0, 1]")
