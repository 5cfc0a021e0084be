"""Sums per time bucket keep the ledger's promise, and read as the rows that still count."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bandits import artefact, backend, features, forgetting, policies, simplex
from bandits.types import Batch, Contexts

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("steady")

SEGMENTS, ARMS, WIDTH, RING = 2, 3, 2, 4
COUNTING = [
    name
    for name in policies.NAMES
    if forgetting.fits(policies.make(name, arms=2, segments=1, features=1))
]
each_policy = pytest.mark.parametrize("name", COUNTING)
some_policies = pytest.mark.parametrize("name", ["thompson_profit", "gradient", "linear_thompson"])


def _make(name: str, *, space: str = "numpy", **options: Any) -> Any:
    return policies.make(
        name, arms=ARMS, segments=SEGMENTS, features=WIDTH, backend=space, **options
    )


def _rows(batch: Batch, index: NDArray[Any]) -> Batch:
    contexts = Contexts(*(x[index] for x in batch.contexts))
    return Batch(contexts, *(np.asarray(x)[index] for x in batch[1:]))


def _joined(*parts: Batch) -> Batch:
    contexts = Contexts(*map(np.concatenate, zip(*(b.contexts for b in parts), strict=True)))
    return Batch(contexts, *map(np.concatenate, zip(*(b[1:] for b in parts), strict=True)))


def _batch(seed: int, rows: int, *, last: int = 9, size: int = 1000) -> Batch:
    rng = np.random.default_rng(seed)
    won = rng.integers(0, 2, rows)
    return Batch(
        Contexts(
            rng.integers(0, SEGMENTS, rows).astype(np.int32),
            features.quantise(rng.normal(size=(rows, WIDTH))),
        ),
        rng.integers(0, ARMS, rows).astype(np.int32),
        rng.dirichlet(np.ones(ARMS), rows).reshape(rows, ARMS),
        won,
        won * rng.integers(1, size + 1, rows),
        np.ones(rows, dtype=np.int64),
        rng.integers(0, last + 1, rows),
    )


def _learnt(policy: Any, *parts: Batch, at: int = 9) -> Any:
    state = policy.init()
    for part in parts:
        state = policy.update(state, part)
    return forgetting.advance(state, at)


@some_policies
@given(st.integers(0, 2**32), st.integers(0, 40), st.randoms(use_true_random=False), st.data())
def test_any_order_split_merge_and_reversal_is_the_rebuild(
    name: str, seed: int, rows: int, random: Any, data: Any
) -> None:
    policy, batch = _make(name, buckets=RING), _batch(seed, rows)
    erased = np.array(
        data.draw(st.lists(st.integers(0, max(rows - 1, 0)), unique=True, max_size=rows)), np.int64
    )
    kept = np.setdiff1d(np.arange(rows), erased)
    back = _rows(batch, erased)
    entries = _joined(batch, back._replace(sign=-back.sign))
    order = np.arange(len(entries.arm))
    random.shuffle(order)
    pieces = [_rows(entries, part) for part in np.array_split(order, 7)]
    rebuilt = artefact.digest(_learnt(policy, _rows(batch, kept)))
    assert artefact.digest(_learnt(policy, *pieces)) == rebuilt
    shards = [
        _learnt(policy, piece, at=int(np.asarray(piece.bucket).max(initial=0))) for piece in pieces
    ]
    whole = policy.init()
    for shard in shards:
        whole = forgetting.merge(whole, shard)
    assert artefact.digest(forgetting.advance(whole, 9)) == rebuilt
    undone = forgetting.merge(whole, forgetting.negate(whole))
    nothing = forgetting.advance(policy.init(), int(forgetting.now(whole)))
    assert artefact.digest(undone) == artefact.digest(nothing)


@each_policy
def test_a_window_believes_what_its_rows_alone_say(name: str) -> None:
    batch, plain = _batch(1, 300), _make(name)
    for window in (1, 3, RING):
        policy = _make(name, buckets=RING, window=window)
        inside = _rows(batch, np.flatnonzero(np.asarray(batch.bucket) > 9 - window))._replace(
            bucket=None
        )
        expected = plain.believe(plain.update(plain.init(), inside))
        found = policy.believe(_learnt(policy, batch))
        assert type(found) is type(expected)
        for one, two in zip(_leaves(found), _leaves(expected), strict=True):
            np.testing.assert_array_equal(one, two)


@each_policy
def test_rows_that_weigh_a_half_are_half_as_many_rows(name: str) -> None:
    """Twice the rows one half-life ago say what the rows say today, whatever their size."""
    batch, plain = _batch(2, 200, last=0), _make(name)
    policy = _make(name, half_life=2.0, buckets=6)
    old = policy.update(policy.init(), _joined(batch, batch))
    faded = policy.believe(forgetting.advance(old, 2))
    today = plain.believe(plain.update(plain.init(), batch._replace(bucket=None)))
    contexts, mask = _batch(3, 20).contexts, np.ones((20, ARMS), bool)
    p = policy.probabilities(faded, contexts, mask)
    simplex.check(p, mask)
    np.testing.assert_allclose(p, plain.probabilities(today, contexts, mask), atol=1e-9)


@pytest.mark.parametrize("name", ["epsilon_greedy", "thompson_gaussian", "gradient", "ucb1"])
def test_fewer_than_one_row_keeps_its_mean(name: str) -> None:
    """A mean of faded rows is their mean: dividing by at least 1 would call it a loss."""
    one = np.ones(2, np.int64)
    contexts = Contexts(np.zeros(2, np.int32), np.zeros((2, WIDTH), np.int64))
    arms = np.array([0, 1], np.int32)
    reward = np.array([90, 10])
    row = Batch(contexts, arms, np.full((2, ARMS), 1 / ARMS), one, reward, one, 0 * one)
    policy = _make(name, half_life=1.0, buckets=8)
    state = policy.believe(forgetting.advance(policy.update(policy.init(), row), 3))
    trials, total = np.asarray(state.trials)[0, :2], np.asarray(state.reward)[0, :2]
    np.testing.assert_allclose(trials, 0.125)
    np.testing.assert_allclose(total / trials, reward)
    if name == "epsilon_greedy":
        from bandits.policies.arm_level import mean_reward

        np.testing.assert_allclose(mean_reward(np, state)[0, :2], reward)
    mask = np.tile([True, True, False], (1, 1))
    p = policy.probabilities(state, Contexts(*(x[:1] for x in contexts)), mask)
    assert p[0, 0] > 0.5


@each_policy
def test_both_backends_store_the_same_bytes(name: str) -> None:
    backend.jax_backend()
    import jax

    one, two = (_make(name, space=space, half_life=1.5, buckets=RING) for space in ("numpy", "jax"))
    batch = _batch(4, 120)
    state = _learnt(one, batch)
    other = forgetting.advance(jax.jit(two.update)(two.init(), batch), 9)
    assert artefact.digest(state) == artefact.digest(other)
    assert artefact.digest(state) == artefact.digest(_learnt(two, batch))
    contexts, mask = batch.contexts, np.ones((120, ARMS), bool)
    p = one.probabilities(one.believe(state), contexts, mask)
    q = two.probabilities(two.believe(other), contexts, mask)
    np.testing.assert_allclose(p, np.asarray(q), atol=1e-9)
    lowered = jax.jit(two.update).trace(other, batch).lower(lowering_platforms=("cuda",))
    assert "f32" not in lowered.as_text()


def test_a_reset_weighs_down_what_came_before_it() -> None:
    batch = _batch(5, 400)
    for kept, kind in ((0.0, np.int64), (0.25, np.float64)):
        policy = _make("thompson_beta", buckets=10, kept=kept)
        state = forgetting.reset(_learnt(policy, batch), 6)
        found = policy.believe(state)
        assert found.trials.dtype == kind
        old = (np.asarray(batch.bucket) < 6).sum()
        assert found.trials.sum() == pytest.approx(400 - old + kept * old)
        again = forgetting.merge(state, policy.init())
        assert artefact.digest(forgetting.reset(again, 3)) == artefact.digest(state)


def _alike(one: Any, two: Any) -> None:
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("options", [{"window": 3}, {"half_life": 1.0}])
def test_a_retraining_fits_what_still_counts_and_counts_all_rows(
    options: dict[str, Any],
) -> None:
    """Buckets 7 to 9 of 9: those in the window, or those that weigh a quarter or more."""
    plain, batch = _make("neural_linear"), _batch(11, 300)
    policy = _make("neural_linear", **options)
    assert policy.retrain is not None
    found = policy.retrain(policy.init(), batch, 3)
    recent = np.flatnonzero(np.asarray(batch.bucket) >= 7)
    expected = plain.retrain(plain.init(), _rows(batch, recent)._replace(bucket=None), 3)
    np.testing.assert_array_equal(found.weights, expected.weights)
    assert not np.array_equal(found.weights, plain.init().weights)
    under = policy.init()._replace(weights=found.weights)
    _alike(found, policy.update(under, batch))
    erased = policy.update(found, batch._replace(sign=-batch.sign))
    assert all(not np.any(getattr(erased, name)) for name in ("trials", "gram", "moment"))
    data = artefact.to_bytes(found, policy="neural_linear")
    assert artefact.digest(artefact.from_bytes(data, like=policy.init())) == artefact.digest(found)
    with pytest.raises(ValueError, match="different weights"):
        forgetting.merge(found, policy.init())


def test_a_last_layer_forgets_a_change_that_it_would_else_average() -> None:
    """Arms exchange what they earn; only the layer that fades has noticed."""
    rng, simplices = np.random.default_rng(12), []
    choices: list[dict[str, Any]] = [{}, {"half_life": 1.0}]
    for options in choices:
        policy = _make("neural_linear", **options)
        state = policy.init()
        for day in range(8):
            batch = _batch(day, 100)
            better = np.asarray(batch.arm) == (0 if day < 5 else 1)
            won = (rng.random(100) < np.where(better, 0.8, 0.2)).astype(np.int64)
            bucket = np.full(100, day) if options else None
            state = policy.update(state, batch._replace(conversions=won, reward=won, bucket=bucket))
        contexts, mask = _batch(99, 50).contexts, np.ones((50, ARMS), bool)
        simplices.append(policy.probabilities(policy.believe(state), contexts, mask))
    never, fading = (p.mean(axis=0) for p in simplices)
    assert never[0] > 0.5
    assert fading[1] > 0.8


def test_states_survive_as_artefacts() -> None:
    policy = _make("linear_ucb", window=3)
    state = _learnt(policy, _batch(6, 50))
    data = artefact.to_bytes(state, policy=policy.name)
    back = artefact.from_bytes(data, like=policy.init())
    assert artefact.digest(back) == artefact.digest(state)
    assert policy.update(back, _batch(7, 5)).bucket.max() == 9


def test_what_is_wrong_is_named() -> None:
    policy, batch = _make("thompson_beta", window=2), _batch(8, 3)
    buckets = np.asarray(batch.bucket)
    for wrong, match in (
        (batch._replace(bucket=None), "bucket"),
        (batch._replace(bucket=buckets - 10), "bucket"),
        (batch._replace(bucket=buckets[:2]), "bucket"),
        (batch._replace(arm=batch.arm + ARMS), "arm"),
    ):
        with pytest.raises(ValueError, match=match):
            policy.update(policy.init(), wrong)
    with pytest.raises(TypeError, match="bucket"):
        policy.update(policy.init(), batch._replace(bucket=buckets * 1.0))
    for options, match in (
        ({"window": 2.5}, "^window: .*whole"),
        ({"buckets": 2, "window": 3}, "^window: "),
        ({"kept": 0.5}, "^kept: needs"),
        ({"half_life": 0.0}, "^half_life: "),
    ):
        with pytest.raises(ValueError, match=match):
            _make("ucb1", **options)
    with pytest.raises(ValueError, match=r"^window: trees_thompson"):
        _make("trees_thompson", window=2)
    with pytest.raises(ValueError, match="cannot be merged"):
        forgetting.merge(policy.init(), _make("thompson_beta", window=3).init())


def _leaves(belief: Any) -> list[Any]:
    if isinstance(belief, tuple):
        return [leaf for part in belief for leaf in _leaves(part)]
    return [np.asarray(belief)]
