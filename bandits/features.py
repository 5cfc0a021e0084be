"""Features as integers: quantised once, when a decision is made, and logged so.

A feature x is stored as ``round(x · 2**12)``, an int64 within ±65,535: x lies in (-16, 16), in
steps of 0.00024. Sums of products of such integers are exact (:mod:`bandits.ledger`), the same on
every machine and in every order. Values beyond the range are cut off at it, and what is not a
number becomes 0, the centre: standardise features so that both are rare.

>>> quantise(np.array([[0.5, -100.0, float("nan")]]))
array([[  2048, -65535,      0]])
>>> values(quantise(np.array([[0.5]])))
array([[0.5]])
"""

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bandits.backend import namespace
from bandits.types import FEATURE_BITS, FEATURE_LIMIT, Array

#: One in a quantised feature.
ONE = 1 << FEATURE_BITS


def quantise(x: Array) -> Array:
    """Features (..., D), any float type, as int64 in 2**-12, cut off at ±FEATURE_LIMIT."""
    xp = namespace(x)
    scaled = xp.rint(xp.asarray(x) * ONE)
    # The limits cut infinities off too, and a comparison costs less than `nan_to_num`.
    scaled = xp.where(scaled == scaled, scaled, 0.0)
    return xp.minimum(xp.maximum(scaled, -FEATURE_LIMIT), FEATURE_LIMIT).astype(xp.int64)


def values(features: Array) -> Array:
    """What quantised features (..., D) stand for, float64."""
    return features / float(ONE)


def hashed(named: Mapping[str, str | float], *, buckets: int) -> NDArray[np.int64]:
    """Named values as D = ``buckets`` features (D,): for categories without a list of them.

    A word counts 1 in the bucket of "name=word", a number its value in the bucket of "name". Which
    bucket, and with which sign, is a hash (BLAKE2b) of those letters: the same on every machine.
    Names that fall into one bucket disturb each other, by signs in either direction alike; with n
    names, each meets another with a chance of about n / D.

    Source: Weinberger et al., ICML 2009.

    >>> x = hashed({"town": "Ulm", "age": 0.5}, buckets=8)
    >>> sorted(abs(x).tolist())
    [0, 0, 0, 0, 0, 0, 2048, 4096]

    Raises:
        ValueError: ``buckets`` is below 1.
    """
    if buckets < 1:
        raise ValueError("buckets: must be at least 1")
    out = np.zeros(buckets, dtype=np.int64)
    for name, value in named.items():
        word = isinstance(value, str)
        key = f"{name}={value}" if word else name
        code = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
        size = ONE if word else int(quantise(np.float64(value)))
        out[(code >> 1) % buckets] += size if code & 1 else -size
    return np.clip(out, -FEATURE_LIMIT, FEATURE_LIMIT)


def check(features: Array, *, rows: int, width: int) -> None:
    """Raise unless ``features`` is (rows, width) int64 within the limit.

    For concrete arrays only (it branches on values).
    """
    if features.shape != (rows, width):
        raise ValueError(f"contexts.features must be {(rows, width)}, not {features.shape}")
    if features.dtype != np.int64:
        raise TypeError(f"contexts.features must be int64, not {features.dtype}")
    if features.size and not -FEATURE_LIMIT <= features.min() <= features.max() <= FEATURE_LIMIT:
        raise ValueError(f"contexts.features must be within ±{FEATURE_LIMIT} (bandits.features)")
