"""The ledger: exact int64 sums per segment and arm.

``update(state, batch)`` of every arm-level policy is ``add(state, contribution(batch))``. Integer
sums do not depend on the order or the grouping of the rows, and a row with sign -1 takes back
exactly what the same row with sign +1 added: late conversions, refunds, duplicates and erasures
are entries, and the digest equals that of a rebuild from the remaining rows.

Bounds. ``|reward| <= 1e9`` per row, so ``reward**2 <= 1e18`` fits an int64. Sums stay exact while,
per segment and arm: ``trials < 2**31`` (for ``square_low``, whose rows are below 2**32) and
``sum |reward| < 2**63 / 2**20 = 8.8e12`` (for ``score_reward``): two thousand million decisions,
or 88 thousand million of a currency with two decimals.

:func:`add` and :func:`negate` take any named tuple of sums: linear policies keep others.
:mod:`bandits.artefact` gives a state's digest and its bytes.

>>> state = zeros(segments=1, arms=2)
>>> int(add(state, negate(state)).trials.sum())
0
"""

from typing import Any, TypeVar

import numpy as np

from bandits.backend import Backend, is_traced, numpy_backend, require_double
from bandits.types import REWARD_LIMIT, SCORE_BITS, ArmSums, Array, Batch

_LOW = (1 << 32) - 1

S = TypeVar("S", bound=tuple[Any, ...])


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


def add(a: S, b: S) -> S:
    """The field-wise sum of two ledgers of one kind and shape."""
    if type(a) is not type(b) or [x.shape for x in a] != [x.shape for x in b]:
        shapes = [getattr(x[0], "shape", None) for x in (a, b)]
        raise ValueError(f"ledgers of shapes {shapes[0]} and {shapes[1]} cannot be added")
    return type(a)(*(x + y for x, y in zip(a, b, strict=True)))


def negate(state: S) -> S:
    """The ledger that takes ``state`` back when added."""
    return type(state)(*(-x for x in state))


def total(state: ArmSums) -> ArmSums:
    """The sums over all segments, every field (1, A)."""
    return ArmSums(*(x.sum(axis=0, keepdims=True) for x in state))


def square(state: ArmSums) -> Array:
    """The sums of squared rewards, (S, A) float64 (exact to its 53 bits)."""
    return state.square_high * 2.0**32 + state.square_low


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
