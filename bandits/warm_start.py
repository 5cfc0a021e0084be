"""Beginning a campaign with what is known already: a log from elsewhere, or another campaign.

A policy that learns by counting starts from the sums of no rows. Here it starts from other sums:
those of a past log (:func:`from_log`, :func:`counted`), or another campaign's state with its arms
and segments renamed (:func:`carried`), scaled so that they count for a stated number of rows
(:func:`at_most`). :func:`begin` makes them the policy's ``init``. They are rounded to integers
once and are then part of the state like anything learnt: order, merging, reversal and the digest
are as exact as before, relative to that ``init``, which has to be kept with the campaign.

How much the past counts is the one opinion here. With n rows, a campaign whose world has changed
must outvote n rows of the old one; where it has not changed, n rows of exploration are saved.

**Without propensities** a log's simplex is estimated by how often its arms were served in each
segment. That is right where the segment is all that the choice depended on, and wrong otherwise:
such a log is marked ``estimated``, is no basis for off-policy evaluation, and its sums by arm are
those of an observational comparison. Only the gradient policy reads the simplex: with these shares
its ``Σ (e_a - p)`` vanish, and its preferences are ``n_a`` times how much the arm's mean lies
above its segment's mean.

Where discounts, and not arms, are what campaigns have in common, :func:`slope` says what earlier
ones found of the effect of a discount's depth; it is an option of ``thompson_hierarchical``.

Policies with a ``retrain`` learn from a past log by being retrained on it, and are refused here.

>>> from bandits import policies
>>> policy = policies.make("thompson_beta", arms=2, segments=1)
>>> past = from_log(
...     arm=np.repeat([0, 1], 500), reward=np.tile([0, 0, 0, 1], 250), arms=2, segments=1
... )
>>> warm = begin(policy, at_most(counted(policy, past.batch), rows=100))
>>> past.estimated, warm.init().trials, warm.init().conversions
(True, array([[50, 50]]), array([[13, 13]]))
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits.posteriors import shared
from bandits.posteriors.shared import Slope
from bandits.regressors.linear import LinearSums
from bandits.types import ArmSums, Batch, Contexts, Policy, State

#: What is a time and not a sum in the state of a policy that forgets.
_TIMES = ("bucket", "since")


class Past(NamedTuple):
    """A log from elsewhere as rows that a policy can learn.

    Attributes:
        batch: the rows, all of sign +1.
        estimated: whether the simplex is an estimate; then it is no basis for weighting.
    """

    batch: Batch
    estimated: bool


def from_log(
    *,
    arm: NDArray[np.integer],
    reward: NDArray[np.integer],
    arms: int,
    segments: int,
    segment: NDArray[np.integer] | None = None,
    features: NDArray[np.int64] | None = None,
    conversions: NDArray[np.integer] | None = None,
    simplex: NDArray[np.float64] | None = None,
    bucket: NDArray[np.integer] | None = None,
) -> Past:
    """The rows of a log.

    Args:
        arm: (N,) the arm served.
        reward: (N,) integer units.
        arms: A of the campaign.
        segments: S of the campaign.
        segment: (N,); None puts all rows into segment 0.
        features: (N, D), quantised (:mod:`bandits.features`).
        conversions: (N,) 0 or 1; None counts a reward other than 0 as one.
        simplex: (N, A) as logged; None estimates it by the shares of the arms in each segment.
        bucket: (N,) time buckets, for a policy that forgets.

    Raises:
        ValueError: shapes disagree, or an index is out of range.
    """
    rows = len(arm)
    where = np.zeros(rows, np.int32) if segment is None else np.asarray(segment, np.int32)
    if where.shape != (rows,) or reward.shape != (rows,):
        raise ValueError("arm, reward and segment must all be (N,)")
    for name, index, size in (("arm", arm, arms), ("segment", where, segments)):
        if rows and not 0 <= index.min() <= index.max() < size:
            raise ValueError(f"{name}: must be in [0, {size})")
    x = np.zeros((rows, 0), np.int64) if features is None else features
    won = (reward != 0) if conversions is None else conversions
    count = np.zeros((segments, arms))
    np.add.at(count, (where, arm), 1)
    share = count / np.maximum(count.sum(axis=1, keepdims=True), 1)
    return Past(
        Batch(
            Contexts(where, x),
            np.asarray(arm, np.int32),
            share[where] if simplex is None else simplex,
            np.asarray(won, np.int64),
            np.asarray(reward, np.int64),
            np.ones(rows, np.int64),
            bucket,
        ),
        estimated=simplex is None,
    )


def renamed(batch: Batch, *, arms: Sequence[int | None], segments: Sequence[int | None]) -> Batch:
    """Another campaign's rows in this campaign's words, for a policy of any kind.

    Rows of arms or segments that this campaign does not have are left out. The simplex becomes
    that of an arm given that it is one of those carried over.

    Args:
        batch: the other campaign's rows.
        arms: for each arm of this campaign the other's index, or None for a new one.
        segments: the same for segments.

    Raises:
        ValueError: an index is named twice or does not exist.
    """
    arm, segment = np.asarray(batch.arm), np.asarray(batch.contexts.segment)
    simplex = np.asarray(batch.simplex)
    to_arm = _backwards("arms", arms, simplex.shape[1])
    to_segment = _backwards("segments", segments, int(segment.max(initial=-1)) + 1)
    keep = np.flatnonzero((to_arm[arm] >= 0) & (to_segment[segment] >= 0))
    shares = np.zeros((len(keep), len(arms)))
    for new, old in enumerate(arms):
        if old is not None:
            shares[:, new] = simplex[keep, old]
    shares /= shares.sum(axis=1, keepdims=True)
    contexts = Contexts(
        to_segment[segment[keep]].astype(np.int32), np.asarray(batch.contexts.features)[keep]
    )
    won, reward, sign = (
        np.asarray(field)[keep] for field in (batch.conversions, batch.reward, batch.sign)
    )
    bucket = None if batch.bucket is None else np.asarray(batch.bucket)[keep]
    return Batch(contexts, to_arm[arm[keep]].astype(np.int32), shares, won, reward, sign, bucket)


def carried(
    state: Any,
    *,
    arms: Sequence[int | None],
    segments: Sequence[int | None] | None = None,
    new: Literal["nothing", "mean"] = "nothing",
) -> Any:
    """Another campaign's sums in this campaign's words, where its log is not at hand.

    Args:
        state: :class:`~bandits.types.ArmSums` or ``LinearSums``, in numpy.
        arms: for each arm of this campaign the other's index, or None for a new one.
        segments: the same for segments; None where they are the same. Linear sums know segments
            only as columns, so theirs cannot be renamed: use :func:`renamed`.
        new: what a new arm or segment starts from: nothing, or the mean over those carried over,
            as if it had had its share of their decisions.

    Raises:
        ValueError: an index does not exist, or nothing is carried over for a mean.
        TypeError: the state is of another kind.
    """
    if isinstance(state, LinearSums):
        if segments is not None:
            raise ValueError("segments: linear sums cannot be renamed by segment")
        return LinearSums(*(_taken(np.asarray(field), arms, 0, new) for field in state))
    if not isinstance(state, ArmSums):
        raise TypeError(f"{type(state).__name__} cannot be carried over; rename its log instead")
    rows = range(state.trials.shape[0]) if segments is None else segments
    fields = (_taken(np.asarray(field), arms, 1, new) for field in state)
    return ArmSums(*(_taken(field, rows, 0, new) for field in fields))


def counted(policy: Policy, batch: Batch) -> State:
    """The sums of a past log, as ``policy`` counts them."""
    return policy.update(policy.init(), batch)


def at_most(state: Any, *, rows: int) -> Any:
    """The sums scaled down, in integers, so that they count for ``rows`` rows (up to rounding).

    Every sum is multiplied by rows / Σ trials and rounded to the nearest integer, the two halves of
    the squared rewards together; sums of fewer rows stay as they are.

    Raises:
        ValueError: ``rows`` is below 0.
    """
    if rows < 0:
        raise ValueError("rows: must be at least 0")
    total = int(np.asarray(state.trials).sum())
    if total <= rows:
        return state
    fields = {
        name: field if name in _TIMES else _scaled(np.asarray(field), rows, total)
        for name, field in zip(state._fields, state, strict=True)
    }
    whole = np.asarray(state.square_high).astype(object) * 2**32 + np.asarray(
        state.square_low
    ).astype(object)
    square = _rounded(whole, rows, total)
    fields["square_high"] = (square // 2**32).astype(np.int64)
    fields["square_low"] = (square % 2**32).astype(np.int64)
    return type(state)(**fields)


class Earlier(NamedTuple):
    """An earlier campaign.

    Attributes:
        sums: its ledger, fields (S, A).
        depth: (S, A) the discount of each arm as a share of a typical basket.
    """

    sums: ArmSums
    depth: NDArray[np.float64]


def slope(campaigns: Sequence[Earlier], *, differ: float = 1.0) -> Slope:
    """What earlier campaigns say of the effect of depth in the next one.

    Each campaign's own slope is known as far as its decisions go, and campaigns differ: by what the
    moments of their slopes say (DerSimonian and Laird, 1986), and by ``differ`` at least, as few
    campaigns say little of how much they differ.

    Args:
        campaigns: any arms, depths and segments; at least one campaign.
        differ: the least standard deviation between campaigns, log odds per unit of depth.

    Raises:
        ValueError: there is no campaign, or one whose depths are all equal.
    """
    if not campaigns:
        raise ValueError("campaigns: at least one is needed")
    found = [shared.common_slope(one.sums, one.depth) for one in campaigns]
    mean = np.array([one.mean for one in found])
    within = np.array([one.spread for one in found]) ** 2
    weight = 1.0 / within
    spread = weight @ (mean - weight @ mean / weight.sum()) ** 2
    room = weight.sum() - (weight**2).sum() / weight.sum()
    between = max((spread - len(mean) + 1) / room if len(mean) > 1 else 0.0, differ**2)
    weight = 1.0 / (within + between)
    middle = float(weight @ mean / weight.sum())
    return Slope(middle, float(np.sqrt(between + 1.0 / weight.sum())))


def begin(policy: Policy, state: State) -> Policy:
    """``policy`` with ``state`` as what it starts from.

    Raises:
        ValueError: the policy is fitted by ``retrain``, or the state is not of its kind and shapes.
    """
    if policy.retrain is not None:
        raise ValueError(f"{policy.name} is fitted to rows: retrain it on the past log")
    empty = policy.init()
    if type(empty) is not type(state) or [x.shape for x in empty] != [x.shape for x in state]:
        raise ValueError(f"the state is not one that {policy.name} starts from")
    # Adding to the empty state puts the sums on the policy's own backend.
    kept = type(empty)(
        *(
            (field * 0 + np.asarray(past)).astype(field.dtype)
            for field, past in zip(empty, state, strict=True)
        )
    )
    return policy._replace(init=lambda: kept)


def _taken(
    field: NDArray[np.int64], index: Sequence[int | None], axis: int, new: str
) -> NDArray[np.int64]:
    """The field with the chosen entries along ``axis``, new ones as told."""
    size = field.shape[axis]
    known = [old for old in index if old is not None]
    if any(not 0 <= old < size for old in known):
        raise ValueError(f"an index is not in [0, {size})")
    if new == "mean" and not known:
        raise ValueError("new: nothing is carried over that could be averaged")
    shape = (*field.shape[:axis], 1, *field.shape[axis + 1 :])
    fresh = np.zeros(shape, np.int64)
    if new == "mean":
        fresh = _rounded(
            field.take(known, axis).astype(object).sum(axis=axis, keepdims=True), 1, len(known)
        ).astype(np.int64)
    parts = [fresh if old is None else field.take([old], axis) for old in index]
    return np.concatenate(parts, axis=axis)


def _backwards(name: str, index: Sequence[int | None], size: int) -> NDArray[np.int64]:
    """For each old index the new one, -1 where it is not carried over."""
    known = [old for old in index if old is not None]
    if len(set(known)) < len(known) or any(old < 0 for old in known):
        raise ValueError(f"{name}: every index may be named once and must exist")
    to = np.full(max([size - 1, *known], default=-1) + 1, -1)
    for new, old in enumerate(index):
        if old is not None:
            to[old] = new
    if name == "arms" and len(to) > size:
        raise ValueError(f"{name}: must be in [0, {size})")
    return to


def _scaled(field: NDArray[np.int64], rows: int, total: int) -> NDArray[np.int64]:
    found: NDArray[np.int64] = _rounded(field.astype(object), rows, total).astype(np.int64)
    return found


def _rounded(field: Any, numerator: int, denominator: int) -> Any:
    """``field · numerator / denominator`` to the nearest integer, in integers of any size."""
    return (2 * field * numerator + denominator) // (2 * denominator)
