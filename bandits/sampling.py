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
    digest = blake2b(message, key=secret, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * _UNIT


def keyed(seed: bytes) -> Callable[[bytes], float]:
    """:func:`uniform` of one seed, as a function of the key: what hangs on the seed is done once.

    Raises:
        ValueError: as for :func:`uniform`.
    """
    uniform(seed, b"")
    fresh = blake2b(key=seed, digest_size=8).copy

    def number(key: bytes) -> float:
        hashed = fresh()
        hashed.update(key)
        return (int.from_bytes(hashed.digest(), "big") >> 11) * _UNIT

    return number


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


def sums(simplex: Sequence[float]) -> list[float]:
    """Cumulative sums of a simplex (A,), for which ``bisect_right(sums, u)`` is :func:`draw`.

    They are what :func:`draw` adds up, in its order: an arm of probability 0 repeats the sum before
    it, and so is never the first above ``u``; none lies beyond the last arm that can be drawn.

    Raises:
        ValueError: as for :func:`draw`.
    """
    last = draw(simplex, 1.0)
    added = list(itertools.accumulate(max(float(p), 0.0) for p in simplex))
    added[last:] = [math.inf] * (len(added) - last)
    return added


def draws(simplices: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.int32]:
    """:func:`draw` for every row: simplices (B, A) and u (B,) give arms (B,) int32."""
    p = np.asarray(simplices, dtype=np.float64)
    if p.ndim != 2 or u.shape != p.shape[:1]:
        raise ValueError(f"simplices (B, A) and u (B,) expected, not {p.shape} and {u.shape}")
    cumulative = np.cumsum(p, axis=1)
    if bool(np.any(cumulative[:, -1] <= 0.0)):
        raise ValueError("simplex has no arm of positive probability")
    below = (cumulative <= u[:, None]).sum(axis=1)
    last = p.shape[1] - 1 - np.argmax(p[:, ::-1] > 0.0, axis=1)
    arms: NDArray[np.int32] = np.minimum(below, last).astype(np.int32)
    return arms


def _secret(seed: str | bytes) -> bytes:
    secret = seed.encode() if isinstance(seed, str) else seed
    if not 1 <= len(secret) <= 64:
        raise ValueError("seed must have 1 to 64 bytes")
    return secret
