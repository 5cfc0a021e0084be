"""Forgetting: any policy whose state is sums, with those sums kept per bucket of time.

A bucket is a numbered piece of time (an hour, a day: whoever fills ``Batch.bucket`` decides). The
state holds the base policy's sums for each of the newest ``T`` buckets, in a ring: bucket ``b``
lies in slot ``b mod T``. Nothing is forgotten when learning; a weight per bucket is applied when
the state is read, and ``believe`` is the base policy's of the weighted sums:

- half-life h: a bucket that is ``age`` buckets old weighs ``2**(-age / h)``;
- window w: the newest w buckets weigh 1, older ones nothing;
- reset: what was learnt before the bucket of the last :func:`reset` weighs ``kept``.

"Now" is the newest bucket that the state has seen, in a row of any sign (rows of sign 0 and
:func:`advance` move the clock without learning). Rows older than the ring are dropped, also when
they are taken back, so after any order, grouping or reversal the state is that of a rebuild from
the remaining rows at the same "now", in every byte. Without 0/1 weights the sums that are read are
float64: every policy reads those as well.

Source: discounted Thompson sampling, Raj and Kalyani (2017, arXiv 1707.09727); sliding-window
Thompson sampling, Trovò et al., JAIR 68 (2020).

>>> from bandits import policies
>>> policy = policies.make("thompson_beta", arms=2, segments=1, window=2)
>>> one = np.ones(1, np.int64)
>>> contexts = Contexts(np.zeros(1, np.int32), np.zeros((1, 0), np.int64))
>>> row = Batch(contexts, np.zeros(1, np.int32), np.full((1, 2), 0.5), one, one, one, bucket=one)
>>> state = policy.update(policy.init(), row)
>>> policy.believe(state).conversions, policy.believe(advance(state, 3)).conversions
(array([[1, 0]]), array([[0, 0]]))
"""

import functools
import itertools
from collections import namedtuple
from typing import Any

import numpy as np

from bandits.backend import Backend, is_traced, named, namespace
from bandits.types import Array, Batch, Belief, Contexts, Policy, State

__all__ = ["Batch", "Contexts", "advance", "fits", "merge", "negate", "now", "reset", "wrap"]

#: Half-lives that the ring spans unless told: what is older weighs less than 2**-8.
HALF_LIVES = 8


def wrap(
    base: Policy,
    *,
    buckets: int,
    half_life: float | None = None,
    window: int | None = None,
    kept: float = 0.0,
    backend: str = "numpy",
) -> Policy:
    """``base`` with its sums per time bucket.

    Args:
        base: a policy that :func:`fits`.
        buckets: T, at least 1.
        half_life: in buckets, above 0; None for no fading.
        window: newest buckets that count; None for all T.
        kept: weight, in [0, 1], of what was learnt before a reset.
        backend: the base's.

    Returns:
        The policy. Its state has the base's fields with a leading axis T, then ``bucket`` (T,)
        int64, the number of the bucket in each slot (negative ones have not come yet), and
        ``since`` () int64, the bucket of the last reset.

    Raises:
        ValueError: the base's state is not int64 sums, or an argument is out of range.
    """
    if not fits(base):
        raise ValueError(f"{base.name} does not learn by counting alone: retrain it on newer rows")
    if buckets < 1 or (window is not None and window < 1):
        raise ValueError("buckets and window must be at least 1")
    if (half_life is not None and not half_life > 0) or not 0.0 <= kept <= 1.0:
        raise ValueError("half_life must be above 0 and kept in [0, 1]")
    space = named(backend)
    xp, empty = space.xp, base.init()
    base_kind: Any = type(empty)
    kind = _kind(base_kind)

    def init() -> State:
        ring = (xp.zeros((buckets, *np.shape(field)), dtype=xp.int64) for field in empty)
        return kind(*ring, xp.arange(-buckets, 0, dtype=xp.int64), xp.asarray(0, dtype=xp.int64))

    def update(state: State, batch: Batch) -> State:
        _check(state, batch, buckets=buckets)
        newest = xp.asarray(batch.bucket).max(initial=-1)
        moved = _advanced(state, newest, xp)
        traced = is_traced(*state, *batch[1:-1], *batch.contexts, batch.bucket)
        learn = _learnt_traced if traced else _learnt
        return learn(base, moved, batch, space)

    def believe(state: State) -> Belief:
        weight = _weights(state, half_life=half_life, window=window, kept=kept, xp=xp)
        return base.believe(base_kind(*(_weighted(weight, f, xp) for f in state[:-2])))

    return Policy(base.name, init, update, believe, base.probabilities)


def fits(base: Policy) -> bool:
    """Whether all that a policy learns is int64 sums, which begin at 0."""
    return base.retrain is None and all(
        np.dtype(field.dtype) == np.int64 and not np.any(field) for field in base.init()
    )


def now(state: State) -> Array:
    """The newest bucket () int64 that the state has seen; -1 before the first."""
    return state.bucket.max()


def advance(state: State, bucket: int) -> State:
    """The state at a time when ``bucket`` is the newest (unchanged when it is not)."""
    xp = namespace(state.bucket)
    return _advanced(state, xp.asarray(bucket, dtype=xp.int64), xp)


def reset(state: State, bucket: int) -> State:
    """The state after a change at the beginning of ``bucket``: what is older weighs ``kept``."""
    xp = namespace(state.bucket)
    return state._replace(since=xp.maximum(state.since, xp.asarray(bucket, dtype=xp.int64)))


def merge(a: State, b: State) -> State:
    """The state that has learnt what either has, at the later of their times."""
    if type(a) is not type(b) or [f.shape for f in a] != [f.shape for f in b]:
        raise ValueError("states of different policies, shapes or buckets cannot be merged")
    xp = namespace(a.bucket)
    one, two = _advanced(a, now(b), xp), _advanced(b, now(a), xp)
    sums = (x + y for x, y in zip(one[:-2], two[:-2], strict=True))
    return type(a)(*sums, one.bucket, xp.maximum(a.since, b.since))


def negate(state: State) -> State:
    """The state that takes ``state`` back when merged."""
    return type(state)(*(-field for field in state[:-2]), state.bucket, state.since)


@functools.cache
def _kind(base: Any) -> Any:
    """The named tuple of a bucketed state: one type per base, so that states compare by type."""
    fields: list[str] = [*base._fields, "bucket", "since"]
    return namedtuple(f"Bucketed{base.__name__}", fields)


def _advanced(state: State, bucket: Array, xp: Any) -> State:
    """The ring with ``bucket`` in it, slots of buckets that fall out of it emptied."""
    size = state.bucket.shape[0]
    newest = xp.maximum(state.bucket.max(), bucket)
    number = newest - (newest - xp.arange(size, dtype=xp.int64)) % size
    same = number == state.bucket
    sums = (_aligned(same, field) * field for field in state[:-2])
    return type(state)(*sums, number, state.since)


def _learnt(base: Policy, state: State, batch: Batch, space: Backend) -> State:
    """The ring with the rows added, bucket after bucket; ``state`` is a fresh one."""
    size = state.bucket.shape[0]
    newest = int(now(state))
    sums = [np.array(field) for field in state[:-2]]
    rows = np.asarray(batch.bucket)
    for bucket in np.unique(rows):
        index = np.flatnonzero(rows == bucket)
        part = Batch(
            Contexts(*(field[index] for field in batch.contexts)),
            *(field[index] for field in batch[1:-1]),
        )
        more = base.update(base.init(), part)
        if bucket > newest - size:
            for total, field in zip(sums, more, strict=True):
                total[bucket % size] += np.asarray(field)
    return type(state)(*(space.xp.asarray(field) for field in sums), state.bucket, state.since)


def _learnt_traced(base: Policy, state: State, batch: Batch, space: Backend) -> State:
    """The same without looking at values: every slot learns all rows, others' at sign 0."""
    xp, empty = space.xp, base.init()
    shapes = [np.shape(field) for field in empty]

    def slot(number: Array) -> Array:
        mine = batch._replace(sign=batch.sign * (batch.bucket == number[0]), bucket=None)
        more = base.update(empty, mine)
        return xp.concatenate([field.reshape(-1) for field in more])[None]

    flat = space.map_rows(slot, (state.bucket,), 1)
    ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])
    parts = [flat[:, a:b] for a, b in itertools.pairwise(ends)]
    sums = (f + part.reshape(f.shape) for f, part in zip(state[:-2], parts, strict=True))
    return type(state)(*sums, state.bucket, state.since)


def _weights(
    state: State, *, half_life: float | None, window: int | None, kept: float, xp: Any
) -> Array:
    """The weight (T,) of each slot: int64 where all weights are 0 or 1, else float64."""
    age = state.bucket.max() - state.bucket
    weight = xp.ones_like(age)
    if window is not None:
        weight = weight * (age < window)
    if half_life is not None:
        weight = weight * 2.0 ** (-age / half_life)
    before = state.bucket < state.since
    return xp.where(before, int(kept) if kept in (0.0, 1.0) else kept, 1) * weight


def _weighted(weight: Array, field: Array, xp: Any) -> Array:
    """Σ weight · field over the slots; int64 stays exact."""
    if np.dtype(weight.dtype) == np.int64:
        return (_aligned(weight, field) * field).sum(axis=0)
    return xp.tensordot(weight, field * 1.0, axes=1)


def _aligned(values: Array, field: Array) -> Array:
    return values.reshape(-1, *([1] * (field.ndim - 1)))


def _check(state: State, batch: Batch, *, buckets: int) -> None:
    if batch.bucket is None:
        raise ValueError("bucket: every row must say in which time bucket it was decided")
    if state.bucket.shape != (buckets,):
        raise ValueError(f"state.bucket must be {(buckets,)}, not {state.bucket.shape}")
    if batch.bucket.shape != batch.arm.shape:
        raise ValueError(f"bucket must have shape {batch.arm.shape}, not {batch.bucket.shape}")
    if batch.bucket.dtype.kind != "i":
        raise TypeError(f"bucket must be a signed integer array, not {batch.bucket.dtype}")
    if not is_traced(batch.bucket) and bool(np.any(np.asarray(batch.bucket) < 0)):
        raise ValueError("bucket must be at least 0")
