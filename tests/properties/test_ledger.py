"""The ledger's promise: any order, any grouping, any reversal gives the same bytes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bandits import artefact, backend, ledger
from bandits.types import ArmSums, Batch, Contexts

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("steady")

SEGMENTS, ARMS = 3, 4


def _rows(batch: Batch, index: NDArray[Any]) -> Batch:
    contexts = Contexts(*(x[index] for x in batch.contexts))
    return Batch(contexts, *(x[index] for x in batch[1:-1]))


def _joined(*batches: Batch) -> Batch:
    contexts = Contexts(
        *(np.concatenate(x) for x in zip(*(b.contexts for b in batches), strict=True))
    )
    rest = zip(*(b[1:-1] for b in batches), strict=True)
    return Batch(contexts, *(np.concatenate(x) for x in rest))


def _built(*batches: Batch) -> ArmSums:
    state = ledger.zeros(segments=SEGMENTS, arms=ARMS)
    for batch in batches:
        state = ledger.add(state, ledger.contribution(batch, segments=SEGMENTS, arms=ARMS))
    return state


@st.composite
def batches(draw: st.DrawFn, *, least: int = 0) -> Batch:
    """Up to 40 rows with rewards up to the limit and arbitrary simplices."""
    rows = draw(st.integers(least, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.sampled_from([1, 1000, 10**9]))
    return Batch(
        Contexts(rng.integers(0, SEGMENTS, rows).astype(np.int32), np.zeros((rows, 0), np.int64)),
        rng.integers(0, ARMS, rows).astype(np.int32),
        rng.dirichlet(np.full(ARMS, 0.3), rows).reshape(rows, ARMS),
        rng.integers(0, 2, rows),
        rng.integers(-size, size + 1, rows),
        np.ones(rows, dtype=np.int64),
    )


@given(batches(), st.randoms(use_true_random=False), st.integers(1, 5))
def test_any_order_and_any_split_give_the_same_digest(
    batch: Batch, random: Any, pieces: int
) -> None:
    order = list(range(len(batch.arm)))
    random.shuffle(order)
    shuffled = _rows(batch, np.array(order, dtype=np.int64))
    parts = [_rows(shuffled, part) for part in np.array_split(np.arange(len(batch.arm)), pieces)]
    assert artefact.digest(_built(batch)) == artefact.digest(_built(*parts))


@given(batches(least=1), st.data())
def test_duplicates_taken_back_leave_the_digest_of_a_rebuild(batch: Batch, data: Any) -> None:
    """Erasure: what is taken back leaves the very bytes of never having been there."""
    some = st.lists(st.integers(0, len(batch.arm) - 1), unique=True)
    doubled = _rows(batch, np.array(data.draw(some), dtype=np.int64))
    erased = np.array(data.draw(some), dtype=np.int64)
    kept = np.setdiff1d(np.arange(len(batch.arm)), erased)
    entries = _joined(
        batch,
        doubled,
        doubled._replace(sign=-doubled.sign),
        _rows(batch, erased)._replace(sign=-np.ones(len(erased), dtype=np.int64)),
    )
    order = np.array(data.draw(st.permutations(range(len(entries.arm)))))
    left, rebuilt = _built(_rows(entries, order)), _built(_rows(batch, kept))
    assert artefact.digest(left) == artefact.digest(rebuilt)


@given(batches())
def test_bytes_come_back_and_damage_is_seen(batch: Batch) -> None:
    state = _built(batch)
    data = artefact.to_bytes(state, policy="test")
    assert artefact.digest(artefact.from_bytes(data, like=state)) == artefact.digest(state)
    for place in (0, 9, len(data) // 2, len(data) - 1):
        damaged = bytearray(data)
        damaged[place] ^= 1
        with pytest.raises(ValueError, match="artefact"):
            artefact.from_bytes(bytes(damaged), like=state)
    with pytest.raises(ValueError, match="artefact"):
        artefact.from_bytes(data[:-5], like=state)


@given(batches())
def test_sums_are_what_python_integers_give(batch: Batch) -> None:
    state = _built(batch)
    for s in range(SEGMENTS):
        for a in range(ARMS):
            here = (batch.contexts.segment == s) & (batch.arm == a)
            rewards = [int(r) for r in batch.reward[here]]
            square = (int(state.square_high[s, a]) << 32) + int(state.square_low[s, a])
            assert state.trials[s, a] == here.sum()
            assert state.conversions[s, a] == batch.conversions[here].sum()
            assert int(state.reward[s, a]) == sum(rewards)
            assert square == sum(r * r for r in rewards)
    total = ledger.total(state)
    assert total.trials.sum() == len(batch.arm)
    assert artefact.digest(ledger.add(state, ledger.negate(state))) == artefact.digest(_built())


@settings(max_examples=5)
@given(batches(least=1))
def test_jax_gives_the_same_bytes(batch: Batch) -> None:
    full = _joined(*[batch] * 40)
    fixed = _rows(full, np.arange(40))
    space = backend.jax_backend()
    theirs = ledger.contribution(fixed, segments=SEGMENTS, arms=ARMS, backend=space)
    assert artefact.digest(theirs) == artefact.digest(_built(fixed))


def test_rows_of_sign_zero_only_fill_up() -> None:
    rng = np.random.default_rng(0)
    rows = 8
    batch = Batch(
        Contexts(np.zeros(rows, np.int32), np.zeros((rows, 0), np.int64)),
        np.zeros(rows, np.int32),
        rng.dirichlet(np.ones(ARMS), rows),
        np.ones(rows, np.int64),
        rng.integers(0, 99, rows),
        np.zeros(rows, np.int64),
    )
    assert artefact.digest(_built(batch)) == artefact.digest(_built())


BAD: dict[str, tuple[str, Any]] = {
    "segment": ("contexts", Contexts(np.array([SEGMENTS], np.int32), np.zeros((1, 0), np.int64))),
    "arm": ("arm", np.array([-1], dtype=np.int32)),
    "conversions": ("conversions", np.array([2])),
    "sign": ("sign", np.array([5])),
    "reward": ("reward", np.array([np.iinfo(np.int64).min])),
    "simplex": ("simplex", np.array([[np.nan, 0.0, 0.0, 1.0]])),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named(name: str) -> None:
    one = np.ones(1, dtype=np.int64)
    contexts = Contexts(np.zeros(1, np.int32), np.zeros((1, 0), np.int64))
    good = Batch(contexts, np.zeros(1, np.int32), np.full((1, ARMS), 0.25), one, one, one)
    field, value = BAD[name]
    with pytest.raises(ValueError, match=name):
        _built(good._replace(**{field: value}))
    with pytest.raises(TypeError, match="float64"):
        _built(good._replace(simplex=good.simplex.astype(np.float32)))
    with pytest.raises(ValueError, match="shape"):
        _built(good._replace(reward=np.ones(2, dtype=np.int64)))
