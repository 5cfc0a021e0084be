"""The one sampler: a keyed uniform number and the arm it selects.

``uniform(seed, key)`` is a keyed BLAKE2b hash, so a logged decision can be replayed bit for bit
from its campaign's seed and its own key; ``draw`` walks the cumulative sums of the simplex from
the first arm. The vector forms give exactly the same numbers as the scalar forms.

>>> u = uniform("campaign-seed", "decision-1")
>>> draw([0.25, 0.5, 0.25], u) == draws(np.array([[0.25, 0.5, 0.25]]), np.array([u]))[0]
np.True_
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_UNIT = 2.0**-53


def uniform(seed: str | bytes, key: str | bytes) -> float:
    """A number in [0, 1) with 53 random bits, a function of ``seed`` and ``key`` only.

    Args:
        seed: the campaign's secret, 1 to 64 bytes (UTF-8 when a string).
        key: what the number is for, such as a decision's or a unit's key.

    Raises:
        ValueError: the seed is empty or longer than 64 bytes.
    """
    secret = _secret(seed)
    message = key.encode() if isinstance(key, str) else key
    return number(blake2b(message, key=secret, digest_size=8).digest())


def keyed(seed: bytes, prefix: bytes = b"") -> Callable[[bytes], bytes]:
    """The 8 bytes that :func:`uniform` of one seed and ``prefix + key`` is, as a function of key.

    What hangs on seed and prefix is done once. Such bytes are compared with :func:`below` of a
    share as the numbers would be with the share, which need not be made of them then.

    Raises:
        ValueError: as for :func:`uniform`.
    """
    started = blake2b(key=_secret(seed), digest_size=8)
    started.update(prefix)
    fresh = started.copy

    def hashed(key: bytes) -> bytes:
        one = fresh()
        one.update(key)
        return one.digest()

    return hashed


def number(hashed: bytes) -> float:
    """The number in [0, 1) that 8 bytes of :func:`keyed` are."""
    return (int.from_bytes(hashed, "big") >> 11) * _UNIT


def below(share: float) -> bytes:
    """The bytes that those of :func:`keyed` are less than where their number is below a share."""
    # A product with a power of two is exact, and no whole number lies between it and its ceiling.
    bound = max(math.ceil(share * 2.0**53), 0)
    return bytes([255] * 9) if bound >= 1 << 53 else (bound << 11).to_bytes(8, "big")


def uniforms(seed: str | bytes, keys: Iterable[str | bytes]) -> NDArray[np.float64]:
    """:func:`uniform` of every key, as a (B,) array."""
    fresh = blake2b(key=_secret(seed), digest_size=8).copy
    digests = []
    for key in keys:
        hashed = fresh()
        hashed.update(key.encode() if isinstance(key, str) else key)
        digests.append(hashed.digest())
    bits = np.frombuffer(b"".join(digests), ">u8") >> 11
    return bits.astype(np.float64) * _UNIT


def uniforms_by_block(seed: str | bytes, keys: NDArray[np.uint8]) -> NDArray[np.float64]:
    """A number in [0, 1) for every key (B, K) of K bytes, as a (B,) array.

    Other numbers than :func:`uniform`'s, of the same quality: keys that differ in their last three
    bits only, a block, have theirs from one BLAKE2b hash of 64 bytes, eight bytes each. So numbers
    for keys that count up take an eighth of the time.
    """
    lane, blocks = keys[:, -1] & 7, keys.copy()
    blocks[:, -1] -= lane
    begins = np.ones(len(keys), dtype=bool)
    whole = blocks.view(f"V{keys.shape[1]}")[:, 0]
    begins[1:] = whole[1:] != whole[:-1]
    # The length of a hash is part of what is hashed: none of these is the beginning of another's.
    fresh = blake2b(key=_secret(seed)).copy
    digests = []
    for block in whole[begins].tolist():
        hashed = fresh()
        hashed.update(block)
        digests.append(hashed.digest())
    eight = np.frombuffer(b"".join(digests), ">u8").reshape(-1, 8)
    bits: NDArray[np.uint64] = eight[np.cumsum(begins) - 1, lane] >> 11
    return bits.astype(np.float64) * _UNIT


def uniform_by_block(seed: str | bytes, key: bytes) -> float:
    """:func:`uniforms_by_block` of one key."""
    return float(uniforms_by_block(seed, np.frombuffer(key, np.uint8)[None])[0])


def draw(simplex: Sequence[float] | NDArray[np.float64], u: float) -> int:
    """The first arm whose cumulative probability exceeds ``u``.

    Args:
        simplex: (A,) probabilities. An arm of probability 0 is never drawn.
        u: a number in [0, 1). When rounding leaves the sum at or below ``u``, the last arm of
            positive probability is drawn.

    Raises:
        ValueError: no arm has positive probability.
    """
    total, last = 0.0, -1
    for arm, p in enumerate(simplex):
        if p > 0.0:
            total += float(p)
            last = arm
            if u < total:
                return arm
    if last < 0:
        raise ValueError("simplex has no arm of positive probability")
    return last


def bounds(simplex: Sequence[float]) -> list[bytes]:
    """For a simplex (A,), what ``bisect_right(bounds, keyed(seed)(key))`` is :func:`draw` by.

    They are :func:`below` of the sums that :func:`draw` adds up, in its order: an arm of
    probability 0 repeats the bound before it, and so is never the first above; the last arm that
    can be drawn, and all after it, have one above any number.

    Raises:
        ValueError: as for :func:`draw`.
    """
    last = draw(simplex, 1.0)
    sums = list(itertools.accumulate(max(float(p), 0.0) for p in simplex))
    return [below(one) for one in sums[:last]] + [below(1.0)] * (len(sums) - last)


def draws(simplices: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.int32]:
    """:func:`draw` for every row: simplices (B, A) and u (B,) give arms (B,) int32."""
    p = np.asarray(simplices, dtype=np.float64)
    if p.ndim != 2 or u.shape != p.shape[:1]:
        raise ValueError(f"simplices (B, A) and u (B,) expected, not {p.shape} and {u.shape}")
    # Arm by arm: there are few, and numpy's sums along a short axis are slow.
    total, arms = np.zeros(len(p)), np.zeros(len(p), dtype=np.int32)
    for chance in p.T:
        total += chance
        arms += total <= u
    if not (total > 0.0).all():
        raise ValueError("simplex has no arm of positive probability")
    over = np.flatnonzero(arms == p.shape[1])
    if len(over):  # rounding left their sums at or below their numbers
        arms[over] = p.shape[1] - 1 - np.argmax(p[over, ::-1] > 0.0, axis=1)
    return arms


def _secret(seed: str | bytes) -> bytes:
    secret = seed.encode() if isinstance(seed, str) else seed
    if not 1 <= len(secret) <= 64:
        raise ValueError("seed must have 1 to 64 bytes")
    return secret
