"""The contract of the library: what a policy is, what it reads, what it learns from.

A **policy** is a pair of pure functions, ``update(state, batch)`` and
``probabilities(belief, contexts, mask)``. What lies between them, ``believe(state)``, is all that
can be computed once per snapshot: a factorisation, a posterior, frozen draws. One sampler
(:mod:`bandits.sampling`) draws from the simplex that ``probabilities`` returns, after the
guardrails of :mod:`bandits.simplex`. Nothing here does I/O, reads a clock or keeps global state.

A **state** is a named tuple of arrays. What is learnt by counting is int64 in it, whatever the
policy: exact, hence order-free, mergeable and reversible (:mod:`bandits.ledger`). Some policies
also hold float arrays that only ``retrain`` changes: the weights of a network, the nodes of trees.

Letters, used in every shape: ``A`` arms, ``S`` segments, ``B`` batch rows, ``D`` features,
``M`` posterior draws (reports draw; policies never do).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

#: A numpy or a JAX array: functions that accept both are written once, against either namespace.
Array: TypeAlias = Any

#: A named tuple of arrays, as a policy's ``init`` returns it.
State: TypeAlias = Any

#: What a policy's ``believe`` returns.
Belief: TypeAlias = Any

#: Largest absolute reward of one row, in integer units; :mod:`bandits.ledger` says why.
REWARD_LIMIT = 1_000_000_000

#: Fractional bits of the fixed-point score sums.
SCORE_BITS = 20

#: Fractional bits of a quantised feature, and the largest magnitude of its integer: a feature lies
#: in (-16, 16) in steps of 2**-12, so that a product of two fits 2**32, and a sum over 2**31 rows
#: an int64.
FEATURE_BITS = 12
FEATURE_LIMIT = (1 << 16) - 1


class Contexts(NamedTuple):
    """What is known about each row before an arm is chosen.

    Attributes:
        segment: (B,) int32, index of the segment, ``0 <= segment < S``.
        features: (B, D) int64 in 2**-12 (:mod:`bandits.features`), quantised once when decided
            and logged so; ``D`` may be 0.
    """

    segment: Array
    features: Array


class Batch(NamedTuple):
    """Decisions with what came of them, to be added to (or taken back from) a state.

    Attributes:
        contexts: the contexts as they were when the arm was drawn, B rows.
        arm: (B,) int32, the arm that was served.
        simplex: (B, A) float64, the logged simplex that the sampler drew from.
        conversions: (B,) int64, 0 or 1.
        reward: (B,) int64, the objective in integer units (minor money units, or 0/1).
        sign: (B,) int64, +1 adds the row, -1 takes back a row added before, 0 only
            fills the batch up to a size that is compiled already.
        bucket: (B,) int64 >= 0, the numbered piece of time in which the row was decided, for
            policies that forget (:mod:`bandits.forgetting`); None where none is asked for.
    """

    contexts: Contexts
    arm: Array
    simplex: Array
    conversions: Array
    reward: Array
    sign: Array
    bucket: Array | None = None


class ArmSums(NamedTuple):
    """The integer ledger: exact sums per segment and arm, the state of every arm-level policy.

    Integer addition is exact, hence order-free, mergeable and reversible. Every field is (S, A)
    int64.

    Attributes:
        trials: number of decisions.
        conversions: number of decisions that converted.
        reward: sum of rewards r.
        square_high: sum of ``r*r >> 32``.
        square_low: sum of ``r*r & (2**32 - 1)``.
        score: sum of ``fix(e_a - p)``: chosen-arm indicator minus logged simplex, in 2**-20.
        score_reward: sum of ``r * fix(e_a - p)``, in 2**-20.
    """

    trials: Array
    conversions: Array
    reward: Array
    square_high: Array
    square_low: Array
    score: Array
    score_reward: Array


class Policy(NamedTuple):
    """A policy as a tuple of pure functions, built by :func:`bandits.policies.make`.

    Attributes:
        name: the registered name.
        init: ``() -> state`` with nothing learnt.
        update: ``(state, batch) -> state``, the ledger's sum with the batch's contribution.
        believe: ``state -> belief``, a function of the state alone: whoever holds the same state
            gets the same belief, in every bit on one backend. The arm-level policies' belief is
            the state itself.
        probabilities: ``(belief, contexts, mask) -> (B, A) float64``, a simplex per row that is
            exactly 0 where ``mask`` is False. ``mask`` is (B, A) bool, True = eligible; a row
            without an eligible arm is a ``ValueError`` (never reached under ``jax.jit``).
        retrain: ``(state, batch, seed) -> state``: what is not learnt by counting is fitted to the
            rows, starting from what it was, and the sums are counted afresh over the same rows.
            None where there is nothing to retrain.
        single: ``(belief, segment, features, mask) -> (A,) float64``: ``probabilities`` of one row
            (an int, (D,) int64 as quantised, (A,) bool) in half the time, to eight digits; None
            where that would save nothing.
    """

    name: str
    init: Callable[[], State]
    update: Callable[[State, Batch], State]
    believe: Callable[[State], Belief]
    probabilities: Callable[[Belief, Contexts, Array], Array]
    retrain: Callable[[State, Batch, int], State] | None = None
    single: Callable[[Belief, int, Array, Array], Array] | None = None
