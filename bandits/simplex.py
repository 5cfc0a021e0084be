"""Operations on the simplex that protect the business: mask, floor, cap, mix, and all of them.

Every function takes and returns arrays of shape (..., A), numpy or JAX, float64; sums run over the
last axis. ``mask`` is True where an arm is eligible. They are applied *before* the draw, so that
the number logged as propensity is the number that the sampler used.

>>> import numpy as np
>>> guard(np.array([0.9, 0.1, 0.0, 0.0]), np.array([True, True, True, False]), floor=0.05)
array([0.815, 0.135, 0.05 , 0.   ])
"""

import functools
import operator
from collections.abc import Callable

from bandits.backend import namespace
from bandits.types import Array

#: Tolerance within which a simplex sums to one.
SUM_TOLERANCE = 1e-9


def check(p: Array, mask: Array) -> None:
    """Raise ``ValueError`` unless ``p`` (..., A) is a simplex over the arms that ``mask`` allows.

    For concrete arrays only (it branches on values).
    """
    xp = namespace(p)
    p, mask = xp.asarray(p), xp.asarray(mask)
    if not bool(xp.all(xp.isfinite(p))) or bool(xp.any(p < 0)):
        raise ValueError("simplex has an entry that is negative or not finite")
    if bool(xp.any(xp.where(mask, 0.0, p) != 0)):
        raise ValueError("simplex gives probability to a masked arm")
    if bool(xp.any(xp.abs(p.sum(axis=-1) - 1.0) > SUM_TOLERANCE)):
        raise ValueError("simplex does not sum to one")


def uniform(mask: Array) -> Array:
    """Equal shares (..., A) over the eligible arms of ``mask``."""
    xp = namespace(mask)
    count = mask.sum(axis=-1, keepdims=True)
    return xp.where(mask, 1.0 / xp.maximum(count, 1), 0.0)


def mask(p: Array, mask: Array) -> Array:
    """Weights ``p`` (..., A) restricted to the eligible arms and rescaled to sum to one.

    Where no eligible arm has any weight, the eligible arms share equally.
    """
    xp = namespace(p)
    kept = xp.where(mask, p, 0.0)
    total = kept.sum(axis=-1, keepdims=True)
    some = total > 0
    return xp.where(some, kept / xp.where(some, total, 1.0), uniform(xp.asarray(mask)))


def mix(p: Array, q: Array, *, weight: float) -> Array:
    """``(1 - weight) p + weight q`` for two simplices (..., A) and ``0 <= weight <= 1``."""
    return (1.0 - weight) * p + weight * q


def floor(p: Array, mask: Array, *, floor: float) -> Array:
    """Give each of the K eligible arms at least ``floor``: ``f + (1 - K f) p``.

    A floor that K arms cannot all have (``K f > 1``) becomes ``1 / K``. Never clip and
    renormalise: that would break the floor again.
    """
    xp = namespace(p)
    share = xp.minimum(floor, uniform(xp.asarray(mask)))
    rest = xp.maximum(1.0 - share.sum(axis=-1, keepdims=True), 0.0)
    return xp.where(mask, share + rest * p, 0.0)


def cap(p: Array, mask: Array, *, cap: Array) -> Array:
    """Keep each arm at or below ``cap`` (scalar or (..., A)) by water-filling.

    Uncapped arms are scaled up by one common factor, so they keep their proportions and never
    fall. What that cannot place (the other arms have no weight) is spread over the headroom left.
    Caps whose sum over the eligible arms is below one cannot hold; they are raised in proportion.
    """
    xp = namespace(p)
    limit = xp.where(mask, xp.clip(xp.asarray(cap, dtype=p.dtype), 0.0, 1.0) + 0.0 * p, 0.0)
    total = limit.sum(axis=-1, keepdims=True)
    some = total > 0
    raised = xp.where(some, limit / xp.where(some, total, 1.0), uniform(xp.asarray(mask)))
    limit = xp.where(total < 1.0, raised, limit)
    filled = xp.minimum(_scale(p, limit) * p, limit)
    spare = limit - filled
    missing = xp.maximum(1.0 - filled.sum(axis=-1, keepdims=True), 0.0)
    room = spare.sum(axis=-1, keepdims=True)
    share = xp.minimum(missing / xp.where(room > 0, room, 1.0), 1.0)
    return xp.where(mask, xp.minimum(filled + share * spare, limit), 0.0)


def guard(p: Array, mask: Array, *, floor: float = 0.0, cap: Array | None = None) -> Array:
    """All guardrails in order: mask, floor, cap. Floors win over caps below them.

    Args:
        p: (..., A) weights of the policy.
        mask: (..., A) bool, True = eligible.
        floor: least probability of every eligible arm.
        cap: greatest probability, scalar or (..., A); None for no cap.
    """
    xp = namespace(p)
    out = _floor(_mask(p, mask), mask, floor=floor)
    if cap is None:
        return out
    least = xp.minimum(floor, uniform(xp.asarray(mask)))
    return _cap(out, mask, cap=xp.maximum(xp.asarray(cap, dtype=out.dtype), least))


def guarding(mask: Array, *, floor: float = 0.0) -> Callable[[Array], Array]:
    """:func:`guard` without caps for one numpy mask, as a function of ``p``: the same numbers.

    What depends on the mask alone is computed once; what is left takes a tenth of the time. A mask
    of one row holds for every row of ``p``.
    """
    xp, every = namespace(mask), bool(mask.all())
    share = xp.minimum(floor, uniform(mask))
    rest = xp.maximum(1.0 - share.sum(axis=-1, keepdims=True), 0.0)

    def guarded(p: Array) -> Array:
        kept = p if every else xp.where(mask, p, 0.0)
        total = _totals(kept)
        if not (total.item() > 0 if len(total) == 1 else (total > 0).all()):
            return guard(p, xp.broadcast_to(mask, p.shape), floor=floor)
        kept = kept / total
        kept *= rest
        kept += share
        return kept

    return guarded


def _totals(p: Array) -> Array:
    """The sums (B, 1) of rows (B, A) of numpy, to the bit of ``add.reduce`` along them.

    Which is slow along a short axis, and adds fewer than eight one after the other.
    """
    if len(p) > 1 and p.shape[-1] < 8:
        return functools.reduce(operator.add, p.T)[:, None]
    return namespace(p).add.reduce(p, axis=-1, keepdims=True)


# `mask`, `floor` and `cap` name both an operation and its argument; these reach the operation.
_mask, _floor, _cap = mask, floor, cap


def _scale(p: Array, limit: Array) -> Array:
    """The factor s >= 1 at which ``sum(min(s p, limit)) = 1``, or the largest useful one."""
    xp = namespace(p)
    # What is next to nothing cannot be scaled up within the range of a double: it counts as none.
    positive = p > 1e-200
    p = xp.where(positive, p, 0.0)
    ratio = xp.where(positive, limit / xp.where(positive, p, 1.0), xp.inf)
    order = xp.argsort(ratio, axis=-1)
    ratio = xp.take_along_axis(ratio, order, axis=-1)
    free = xp.take_along_axis(p, order, axis=-1)
    held = xp.take_along_axis(xp.where(positive, limit, 0.0), order, axis=-1)
    # With the first i arms (in order of ratio) at their limit, the others share what is left.
    full = xp.cumsum(held, axis=-1) - held
    rest = xp.flip(xp.cumsum(xp.flip(free, axis=-1), axis=-1), axis=-1)
    usable = rest > 0
    factor = xp.where(usable, (1.0 - full) / xp.where(usable, rest, 1.0), xp.inf)
    fits = usable & (factor <= ratio)
    place = xp.argmax(fits, axis=-1, keepdims=True)
    first = xp.take_along_axis(xp.where(fits, factor, xp.inf), place, axis=-1)
    last = xp.where(xp.isfinite(ratio), ratio, 0.0).max(axis=-1, keepdims=True)
    return xp.maximum(xp.where(xp.isfinite(first), first, last), 1.0)
