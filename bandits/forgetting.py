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

A policy with a last layer that counts, over weights that only its ``retrain`` changes, forgets in
that layer: the weights (fields :data:`FITTED`) are kept once, beside the ring. Its ``retrain`` is
given rows with buckets, fits the weights to those that weigh :data:`FIT_WEIGHT` at least (a fit
does not weigh rows), and counts all rows afresh in their buckets.

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
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandits.backend import Backend, is_traced, named, namespace
from bandits.types import Array, Batch, Belief, Contexts, Policy, State

__all__ = ["Batch", "Contexts", "advance", "fits", "merge", "negate", "now", "reset", "wrap"]

#: Fields of a state that are no sums, but what ``retrain`` fitted.
FITTED = frozenset({"weights"})
#: Weight that a row must have to be fitted to: two half-lives.
FIT_WEIGHT = 0.25
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
        The policy. Its state has the base's fields, sums with a leading axis T, then ``bucket``
        (T,) int64, the number of the bucket in each slot (negative ones have not come yet), and
        ``since`` () int64, the bucket of the last reset.

    Raises:
        ValueError: the base does not fit, or an argument is out of range.
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
        ring = _each(empty, lambda field: xp.zeros((buckets, *np.shape(field)), dtype=xp.int64))
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
        return base.believe(base_kind(*_each(state, lambda field: _weighted(weight, field, xp))))

    def retrain(state: State, batch: Batch, seed: int) -> State:
        _check(state, batch, buckets=buckets)
        host = type(state)(*(np.asarray(field) for field in state))
        moved = _advanced(host, np.asarray(batch.bucket).max(initial=-1), np)
        weight = _weights(moved, half_life=half_life, window=window, kept=kept, xp=np)
        rows = np.asarray(batch.bucket)
        there = moved.bucket[rows % buckets] == rows
        recent = np.flatnonzero(there & (weight[rows % buckets] >= FIT_WEIGHT))
        sums = base_kind(*_each(moved, lambda field: _weighted(weight, field, np)))
        found = base.retrain(sums, _part(batch, recent), seed)  # type: ignore[misc]
        fitted = {name: getattr(found, name) for name in FITTED}
        nothing = type(state)(*_each(moved, np.zeros_like), moved.bucket, moved.since)
        return update(nothing._replace(**fitted), batch)

    again = None if base.retrain is None else retrain
    return Policy(base.name, init, update, believe, base.probabilities, again, base.single)


def fits(base: Policy) -> bool:
    """Whether a policy goes on learning by int64 sums, which begin at 0, over fixed weights."""
    state = base.init()
    return all(
        name in FITTED or (np.dtype(field.dtype) == np.int64 and not np.any(field))
        for name, field in zip(state._fields, state, strict=True)
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
    if any(
        not np.array_equal(getattr(a, name), getattr(b, name)) for name in FITTED & {*a._fields}
    ):
        raise ValueError("states under different weights cannot be merged")
    one, two = _advanced(a, now(b), xp), _advanced(b, now(a), xp)
    sums = _each(one, lambda x, y: x + y, two)
    return type(a)(*sums, one.bucket, xp.maximum(a.since, b.since))


def negate(state: State) -> State:
    """The state that takes ``state`` back when merged."""
    return type(state)(*_each(state, lambda field: -field), state.bucket, state.since)


def _each(state: State, function: Callable[..., Array], *others: State) -> list[Array]:
    """``function`` of every field of sums; what was fitted as it is, and no times."""
    names = [name for name in state._fields if name not in ("bucket", "since")]
    return [
        state[n] if name in FITTED else function(state[n], *(other[n] for other in others))
        for n, name in enumerate(names)
    ]


def _part(batch: Batch, index: NDArray[np.intp]) -> Batch:
    """Some rows of a batch, for a policy that knows of no buckets."""
    contexts = Contexts(*(np.asarray(field)[index] for field in batch.contexts))
    return Batch(contexts, *(np.asarray(field)[index] for field in batch[1:-1]))


def _nothing(base: Policy, state: State) -> State:
    """The base's state with nothing counted, under the weights of ``state``."""
    empty = base.init()
    return empty._replace(**{name: getattr(state, name) for name in FITTED & {*empty._fields}})


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
    sums = _each(state, lambda field: _aligned(same, field) * field)
    return type(state)(*sums, number, state.since)


def _learnt(base: Policy, state: State, batch: Batch, space: Backend) -> State:
    """The ring with the rows added, bucket after bucket; ``state`` is a fresh one."""
    size = state.bucket.shape[0]
    newest = int(now(state))
    ring = type(state)(*_each(state, np.array), state.bucket, state.since)
    rows = np.asarray(batch.bucket)
    for bucket in np.unique(rows):
        part = _part(batch, np.flatnonzero(rows == bucket))
        more = base.update(_nothing(base, state), part)
        if bucket > newest - size:
            for name, field in zip(more._fields, more, strict=True):
                if name not in FITTED:
                    getattr(ring, name)[bucket % size] += np.asarray(field)
    return type(state)(*_each(ring, space.xp.asarray), state.bucket, state.since)


def _learnt_traced(base: Policy, state: State, batch: Batch, space: Backend) -> State:
    """The same without looking at values: every slot learns all rows, others' at sign 0."""
    xp, empty = space.xp, _nothing(base, state)
    counted = [name for name in empty._fields if name not in FITTED]
    shapes = [np.shape(getattr(empty, name)) for name in counted]

    def slot(number: Array) -> Array:
        mine = batch._replace(sign=batch.sign * (batch.bucket == number[0]), bucket=None)
        more = base.update(empty, mine)
        return xp.concatenate([getattr(more, name).reshape(-1) for name in counted])[None]

    flat = space.map_rows(slot, (state.bucket,), 1)
    ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])
    parts = dict(zip(counted, (flat[:, a:b] for a, b in itertools.pairwise(ends)), strict=True))
    fields = {name: getattr(state, name) for name in counted}
    sums = {name: fields[name] + parts[name].reshape(fields[name].shape) for name in counted}
    return state._replace(**sums)


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
