"""What the arm-level policies share: the ledger as state, and one computation per distinct row."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bandits import backend as backends
from bandits import ledger
from bandits.backend import Backend, is_traced, require_double
from bandits.types import ArmSums, Array, Batch, Contexts, Policy

#: ``(sums with fields (R, A), segment (R,), mask (R, A)) -> weights (R, A)``, a simplex per row.
Weights = Callable[[ArmSums, Array, Array], Array]

#: As of a policy.
Probabilities = Callable[[Any, Contexts, Array], Array]


def policy(
    name: str, weights: Callable[[Backend], Weights], *, arms: int, segments: int, backend: str
) -> Policy:
    """A policy whose rows depend on their segment's sums and mask only.

    Rows that agree in (segment, mask) are computed once, except while JAX traces, when values
    cannot be compared. The JAX path pads the distinct rows to a power of two, so that it compiles
    for few shapes.
    """
    space = backends.named(backend)
    rows = weights(space)

    def gathered(state: ArmSums, segment: Array, mask: Array) -> Array:
        return rows(ArmSums(*(field[segment] for field in state)), segment, mask)

    compiled = space.jit(gathered)

    def init() -> ArmSums:
        empty = ledger.zeros(segments=segments, arms=arms)
        return ArmSums(*(space.xp.asarray(field) for field in empty))

    def probabilities(state: ArmSums, contexts: Contexts, mask: Array) -> Array:
        _check(state, contexts, mask, segments=segments, arms=arms)
        if is_traced(contexts.segment, mask, *state):
            return gathered(state, contexts.segment, mask)
        segment, allowed = np.asarray(contexts.segment), np.asarray(mask)
        check_values(segment, allowed, segments=segments)
        first, inverse = distinct(segment, allowed)
        chosen = padded(first) if space.name == "jax" else first
        table = compiled(state, segment[chosen], allowed[chosen])
        return table[inverse]

    def update(state: ArmSums, batch: Batch) -> ArmSums:
        more = ledger.contribution(batch, segments=segments, arms=arms, backend=space)
        return ledger.add(state, more)

    return Policy(name, init, update, _the_same, probabilities)


def _the_same(state: ArmSums) -> ArmSums:
    return state


def mean_reward(xp: Array, sums: ArmSums) -> Array:
    """Mean reward per decision (R, A), 0 where an arm has no trials."""
    return sums.reward / xp.where(sums.trials > 0, sums.trials, 1)


def reward_scale(xp: Array, sums: ArmSums, fixed: float | None) -> Array:
    """The unit (R, 1) that rewards are measured in: ``fixed``, or max(1, root mean square).

    The root mean square is taken over all arms of the segment, so that it favours none.
    """
    if fixed is not None:
        return xp.full((sums.trials.shape[0], 1), fixed)
    trials = sums.trials.sum(axis=1, keepdims=True)
    trials = xp.where(trials > 0, trials, 1)
    squares = xp.maximum(ledger.square(sums).sum(axis=1, keepdims=True), 0.0)
    return xp.maximum(1.0, xp.sqrt(squares / trials))


def shared_among_best(xp: Array, score: Array, mask: Array) -> Array:
    """Equal shares (R, A) of the eligible arms whose score is the greatest."""
    eligible = xp.where(mask, score, -xp.inf)
    best = mask & (eligible == eligible.max(axis=1, keepdims=True))
    return best / xp.maximum(best.sum(axis=1, keepdims=True), 1)


def _check(state: ArmSums, contexts: Contexts, mask: Array, *, segments: int, arms: int) -> None:
    for name, field in zip(state._fields, state, strict=True):
        if field.shape != (segments, arms):
            raise ValueError(f"state.{name} must be {(segments, arms)}, not {field.shape}")
        require_double(field, what=f"state.{name}")
    check_shapes(contexts, mask, arms=arms)


def check_shapes(contexts: Contexts, mask: Array, *, arms: int) -> None:
    """Raise unless the shapes and types of a call to ``probabilities`` are right."""
    if contexts.segment.ndim != 1:
        raise ValueError("contexts.segment must have shape (B,)")
    if mask.shape != (contexts.segment.shape[0], arms):
        raise ValueError(f"mask must be (B, A) with A = {arms}, not {mask.shape}")
    if np.dtype(mask.dtype) != np.dtype(bool):
        raise TypeError(f"mask must be bool, not {mask.dtype}")


def check_values(segment: Array, mask: Array, *, segments: int) -> None:
    """Raise unless every row has a segment and an eligible arm."""
    if bool(np.any((segment < 0) | (segment >= segments))):
        raise ValueError(f"segment must be in [0, {segments})")
    if not bool(np.all(mask.any(axis=1))):
        raise ValueError("mask has a row without an eligible arm")


def distinct(segment: Array, mask: Array) -> tuple[Array, Array]:
    """Indices of the first row of each distinct (segment, mask), and each row's place therein."""
    rows = mask.shape[0]
    if rows == 1:
        return np.zeros(1, dtype=np.intp), np.zeros(1, dtype=np.intp)
    packed = np.packbits(mask, axis=1)
    width = packed.shape[1]
    if width > 4:
        key = np.hstack([packed, segment.astype("<i8")[:, None].view(np.uint8)])
        _, first, inverse = np.unique(key, axis=0, return_index=True, return_inverse=True)
        return first, inverse.reshape(-1)
    bits = np.zeros((rows, 4), dtype=np.uint8)
    bits[:, :width] = packed
    code = bits.view("<u4")[:, 0].astype(np.int64) + (segment.astype(np.int64) << 32)
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    return first, inverse.reshape(-1)


def padded(first: Array) -> Array:
    """``first`` (R,) filled up to a power of two, so that JAX compiles for few shapes."""
    size = 1 << max(0, len(first) - 1).bit_length()
    return np.concatenate([first, np.repeat(first[:1], size - len(first))])
