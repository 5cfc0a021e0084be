"""The promise of integer sums, for every policy that keeps nothing else: one log, one digest.

Whatever the order of the rows, however they are split over shards, whatever was added twice and
taken back, the state equals the one rebuilt from the rows that are left, in every bit.
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bandits import artefact, features, ledger, policies
from bandits.backend import numpy_backend
from bandits.regressors import linear
from bandits.types import FEATURE_LIMIT, REWARD_LIMIT, Batch, Contexts, Policy

ARMS, SEGMENTS, FEATURES, ROWS = 4, 3, 5, 3500

COUNTING = [
    name
    for name in policies.NAMES
    if policies.make(name, arms=2, segments=1, features=1).retrain is None
]
each_policy = pytest.mark.parametrize("name", COUNTING)


def _log(*, seed: int = 0, rows: int = ROWS) -> Batch:
    rng = np.random.default_rng(seed)
    x = features.quantise(rng.normal(size=(rows, FEATURES)))
    contexts = Contexts(rng.integers(0, SEGMENTS, rows).astype(np.int32), x)
    reward = rng.integers(-REWARD_LIMIT, REWARD_LIMIT + 1, rows)
    return Batch(
        contexts, rng.integers(0, ARMS, rows).astype(np.int32), rng.dirichlet(np.ones(ARMS), rows),
        rng.integers(0, 2, rows), reward, np.ones(rows, np.int64),
    )  # fmt: skip


def _rows(batch: Batch, index: NDArray[Any], *, sign: int = 1) -> Batch:
    contexts = Contexts(*(field[index] for field in batch.contexts))
    fields = (batch.arm, batch.simplex, batch.conversions, batch.reward)
    arm, simplex, conversions, reward = (field[index] for field in fields)
    signs = np.full(len(index), sign, np.int64)
    return Batch(contexts, arm, simplex, conversions, reward, signs)


def _built(policy: Policy, *batches: Batch) -> Any:
    state = policy.init()
    for batch in batches:
        state = policy.update(state, batch)
    return state


@each_policy
@pytest.mark.parametrize("backend", ["numpy", "jax"])
def test_order_shards_repeats_and_reversals_leave_no_trace(name: str, backend: str) -> None:
    policy = policies.make(name, arms=ARMS, segments=SEGMENTS, features=FEATURES, backend=backend)
    log, rng = _log(), np.random.default_rng(1)
    order = rng.permutation(ROWS)
    # Of few sizes: for each JAX compiles anew.
    erased, kept = order[: ROWS // 7], order[ROWS // 7 :]
    rebuilt = artefact.digest(_built(policy, _rows(log, np.sort(kept))))
    shards = [_built(policy, _rows(log, part)) for part in np.array_split(order, 7)]
    merged = shards[0]
    for shard in shards[1:]:
        merged = ledger.add(merged, shard)
    assert artefact.digest(merged) == artefact.digest(_built(policy, log))
    doubled = rng.choice(ROWS, ROWS // 7)
    for batch in (
        _rows(log, doubled),
        _rows(log, erased, sign=-1),
        _rows(log, doubled, sign=-1),
    ):
        merged = policy.update(merged, batch)
    assert artefact.digest(merged) == rebuilt


def test_the_float_products_are_the_integer_ones_at_the_limits() -> None:
    rng = np.random.default_rng(2)
    x = rng.choice([-FEATURE_LIMIT, FEATURE_LIMIT], size=(5000, 3)).astype(np.int64)
    log = _log(rows=5000)
    extreme = np.where(np.arange(5000) % 2 == 0, REWARD_LIMIT, -REWARD_LIMIT + 1)
    log = log._replace(reward=extreme, contexts=Contexts(log.contexts.segment, x))
    sums = linear.contribution(x, log, arms=ARMS, space=numpy_backend())
    for arm in range(ARMS):
        mine = log.arm == arm
        exact = x[mine].astype(object)
        np.testing.assert_array_equal(sums.gram[arm], (exact.T @ exact).astype(np.int64))
        moment = exact.T @ log.reward[mine].astype(object)
        np.testing.assert_array_equal(sums.moment[arm], moment.astype(np.int64))
