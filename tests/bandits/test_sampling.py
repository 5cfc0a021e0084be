"""The sampler: replayable, the same in both forms, and never an arm of probability zero."""

import bisect
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from bandits import sampling


def test_uniforms_are_a_fixed_function_of_seed_and_key() -> None:
    """Decisions logged by any version must replay: these numbers may never change."""
    assert sampling.uniform("seed", "key") == sampling.uniform(b"seed", b"key")
    assert sampling.uniform("seed", "key") == 0.07867938181929379
    assert sampling.uniform("seed", "key") != sampling.uniform("other", "key")
    for bad in ("", "x" * 65):
        with pytest.raises(ValueError, match="seed"):
            sampling.uniform(bad, "key")


def counted(first: int, rows: int) -> NDArray[np.uint8]:
    numbers = np.arange(first, first + rows, dtype=">u8").view(np.uint8).reshape(rows, 8)
    return np.hstack([np.full((rows, 8), 7, np.uint8), numbers])


def test_numbers_by_block_hang_on_seed_and_key_only() -> None:
    keys = counted(250, 1000)
    u = sampling.uniforms_by_block("seed", keys)
    assert len(set(u)) == 1000
    mixed = np.random.default_rng(1).permutation(1000)
    np.testing.assert_array_equal(sampling.uniforms_by_block(b"seed", keys[mixed]), u[mixed])
    alone = [sampling.uniform_by_block("seed", key.tobytes()) for key in keys[:20]]
    assert alone == u[:20].tolist()
    assert not set(u) & set(sampling.uniforms_by_block("other", keys))
    assert not set(u) & set(sampling.uniforms("seed", [key.tobytes() for key in keys]))
    assert sampling.uniform_by_block("seed", bytes(16)) == 0.15206428201909472
    assert len(sampling.uniforms_by_block("seed", keys[:0])) == 0
    with pytest.raises(ValueError, match="seed"):
        sampling.uniform_by_block("", b"key")


def test_numbers_by_block_are_uniform_and_independent_within_blocks() -> None:
    u = sampling.uniforms_by_block("seed", counted(0, 160_000))
    assert stats.kstest(u, "uniform").pvalue > 0.001
    lanes = u.reshape(-1, 8)
    for lane in lanes.T:
        assert stats.kstest(lane, "uniform").pvalue > 0.0001
    off = np.asarray(np.corrcoef(lanes.T))[np.triu_indices(8, 1)] * np.sqrt(len(lanes))
    assert np.abs(off).max() < 4.5
    assert abs(np.asarray(np.corrcoef(u[1:], u[:-1]))[0, 1]) < 0.01


def test_uniforms_are_uniform() -> None:
    u = sampling.uniforms("seed", (f"decision-{i}" for i in range(100_000)))
    assert ((u >= 0) & (u < 1)).all()
    assert stats.kstest(u, "uniform").pvalue > 0.001


def test_both_forms_agree_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(7, 0.3), 5000)
    p[rng.random(p.shape) < 0.3] = 0
    p[:, 3] += 1e-12
    p /= p.sum(axis=1, keepdims=True)
    edges = np.cumsum(p, axis=1)[np.arange(5000), rng.integers(0, 7, 5000)]
    for u in (rng.random(5000), np.minimum(edges, 1 - 2**-53), np.zeros(5000)):
        together = sampling.draws(p, u)
        alone = [sampling.draw(row, x) for row, x in zip(p, u, strict=True)]
        np.testing.assert_array_equal(together, alone)
        assert (p[np.arange(5000), together] > 0).all()


def test_rounding_and_nonsense() -> None:
    assert sampling.draw([0.3, 0.3, 0.3, 0.0], 0.95) == 2
    assert sampling.draws(np.array([[0.3, 0.3, 0.3, 0.0]]), np.array([0.95])).tolist() == [2]
    with pytest.raises(ValueError, match="positive"):
        sampling.draw([0.0, 0.0], 0.5)
    with pytest.raises(ValueError, match="positive"):
        sampling.draws(np.zeros((1, 2)), np.array([0.5]))
    with pytest.raises(ValueError, match="expected"):
        sampling.draws(np.ones((1, 2)), np.zeros(2))


def test_what_is_prepared_once_gives_the_same_numbers_and_arms() -> None:
    rng = np.random.default_rng(9)
    hashed, after = sampling.keyed(b"seed"), sampling.keyed(b"seed", b"prefix")
    for arms in (1, 2, 10, 50):
        p = rng.dirichlet(np.ones(arms)) * (rng.random(arms) < 0.7)
        p[rng.integers(arms)] += 0.1
        bounds = sampling.bounds(p.tolist())
        for turn in range(500):
            key = turn.to_bytes(4, "big")
            u = sampling.number(hashed(key))
            assert u == sampling.uniform(b"seed", key)
            assert bisect.bisect_right(bounds, hashed(key)) == sampling.draw(p, u)
            assert sampling.number(after(key)) == sampling.uniform(b"seed", b"prefix" + key)
        for edge in (0.0, *np.cumsum(p).tolist(), 1.0):
            for bits in (math.ceil(edge * 2**53) + step for step in (-2, -1, 0, 1)):
                if 0 <= bits < 1 << 53:
                    bytes_ = (bits << 11 | 5).to_bytes(8, "big")
                    u = sampling.number(bytes_)
                    assert bisect.bisect_right(bounds, bytes_) == sampling.draw(p, u)
                    assert (bytes_ < sampling.below(edge)) == (u < edge)
    assert sampling.below(0.0) == sampling.below(-1.0) == bytes(8)
    assert sampling.below(1.0) == sampling.below(7.0) > b"\xff" * 8
    with pytest.raises(ValueError, match="positive"):
        sampling.bounds([0.0, 0.0])
    with pytest.raises(ValueError, match="seed"):
        sampling.keyed(b"")
