"""SHA-256 (FIPS 180-4) of many short texts at once, for the pseudonyms of long lists.

`hashlib` takes one text at a time, and most of what that costs is Python's calls. Here `LANES`
texts go side by side through plain loops, which Numba makes the processor's wide instructions of:
in a sixth of the time. Nothing else is to use it: whoever hashes one text, or checks a secret,
calls `hashlib`, and its bytes are what the tests compare these with.

Importing Numba takes half a second and 50 MB, and the first import after an installation compiles
for some seconds, so `service.pseudonyms` has a thread do so when there are long lists.
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from bandits.kernels import compiled

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint32]
LANES = 16
LONGEST = 55
"""Bytes of a text that a block has room for, beside the mark of its end and its length."""
BLOCK = 64
_U = np.uint32
_PRIMES = [n for n in range(2, 320) if all(n % d for d in range(2, n))][:64]

# The constants are the first bits after the point of roots of primes.
_K = np.array([int(n ** (1 / 3) % 1 * 2**32) for n in _PRIMES], np.uint32)
_START = np.array([math.isqrt(n << 64) % 2**32 for n in _PRIMES[:8]], np.uint32)
_MARK, _LENGTH = _U(1 << 31), _U(8 * (BLOCK + 32))


@compiled
def _turned(x: _U, by: int) -> _U:
    return _U(x >> _U(by)) | _U(x << _U(32 - by))


@compiled
def _step(a: _U, b: _U, c: _U, d: _U, e: _U, f: _U, g: _U, h: _U, word: _U) -> tuple[_U, _U]:
    """Return what follows d and h."""
    turned = _turned(e, 6) ^ _turned(e, 11) ^ _turned(e, 25)
    first = _U(_U(h + word) + _U(turned + _U((e & f) ^ (~e & g))))
    turned = _turned(a, 2) ^ _turned(a, 13) ^ _turned(a, 22)
    return _U(d + first), _U(first + _U(turned + _U((a & b) ^ (a & c) ^ (b & c))))


@compiled
def _eight(state: Words, words: Words, constants: Words) -> None:
    """Do eight steps with the state (8 LANES,), words (8 LANES,) and constants (8,)."""
    n = LANES
    for x in range(n):
        a, b, c, d = state[x], state[n + x], state[2 * n + x], state[3 * n + x]
        e, f, g, h = state[4 * n + x], state[5 * n + x], state[6 * n + x], state[7 * n + x]
        d, h = _step(a, b, c, d, e, f, g, h, _U(constants[0] + words[x]))
        c, g = _step(h, a, b, c, d, e, f, g, _U(constants[1] + words[x + n]))
        b, f = _step(g, h, a, b, c, d, e, f, _U(constants[2] + words[x + 2 * n]))
        a, e = _step(f, g, h, a, b, c, d, e, _U(constants[3] + words[x + 3 * n]))
        h, d = _step(e, f, g, h, a, b, c, d, _U(constants[4] + words[x + 4 * n]))
        g, c = _step(d, e, f, g, h, a, b, c, _U(constants[5] + words[x + 5 * n]))
        f, b = _step(c, d, e, f, g, h, a, b, _U(constants[6] + words[x + 6 * n]))
        e, a = _step(b, c, d, e, f, g, h, a, _U(constants[7] + words[x + 7 * n]))
        state[x], state[n + x], state[2 * n + x], state[3 * n + x] = a, b, c, d
        state[4 * n + x], state[5 * n + x], state[6 * n + x], state[7 * n + x] = e, f, g, h


@compiled
def _compress(state: Words, words: Words) -> None:
    """Take one block of each lane into the state (8 LANES,); words are (64 LANES,), 16 given."""
    n = LANES
    for t in range(16, 64):
        for x in range(t * n, (t + 1) * n):
            a, b = words[x - 15 * n], words[x - 2 * n]
            a = _turned(a, 7) ^ _turned(a, 18) ^ _U(a >> _U(3))
            b = _turned(b, 17) ^ _turned(b, 19) ^ _U(b >> _U(10))
            words[x] = _U(_U(words[x - 16 * n] + a) + _U(words[x - 7 * n] + b))
    before = state.copy()
    for t in range(0, 64, 8):
        _eight(state, words[t * n : (t + 8) * n], _K[t : t + 8])
    for x in range(8 * n):
        state[x] = _U(state[x] + before[x])


@compiled
def _hmacs(
    text: Bytes, starts: NDArray[np.int64], inner: Words, outer: Words,
    out: Words,
) -> None:  # fmt: skip
    """Fill ``out`` (B, 4): see `Hmac`; ``inner`` and ``outer`` are states (8,) after the key."""
    words, state = np.zeros(64 * LANES, np.uint32), np.zeros(8 * LANES, np.uint32)
    for first in range(0, len(out), LANES):
        count = min(LANES, len(out) - first)
        words[: 16 * LANES] = 0
        for x in range(count):
            begin, size = starts[first + x], starts[first + x + 1] - starts[first + x]
            for word in range(size // 4):
                at = begin + 4 * word
                both = _U(_U(text[at]) << _U(24)) | _U(_U(text[at + 1]) << _U(16))
                words[word * LANES + x] = both | _U(_U(text[at + 2]) << _U(8)) | _U(text[at + 3])
            last = _U(_MARK >> _U(8 * (size & 3)))
            for place in range(size & ~3, size):
                last |= _U(_U(text[begin + place]) << _U(24 - 8 * (place & 3)))
            words[(size >> 2) * LANES + x] = last
            words[15 * LANES + x] = _U(8 * (BLOCK + size))
        for word in range(8):
            state[word * LANES : (word + 1) * LANES] = inner[word]
        _compress(state, words)
        words[: 8 * LANES] = state
        words[8 * LANES : 9 * LANES] = _MARK
        words[9 * LANES : 15 * LANES] = 0
        words[15 * LANES : 16 * LANES] = _LENGTH
        for word in range(8):
            state[word * LANES : (word + 1) * LANES] = outer[word]
        _compress(state, words)
        for x in range(count):
            for word in range(4):
                out[first + x, word] = state[word * LANES + x]


class Hmac:
    """HMAC-SHA-256 (RFC 2104) of one key, cut to 16 bytes."""

    def __init__(self, key: bytes) -> None:
        block = (key if len(key) <= BLOCK else hashlib.sha256(key).digest()).ljust(BLOCK, b"\0")
        self._inner, self._outer = (_after(bytes(x ^ pad for x in block)) for pad in (0x36, 0x5C))

    def __call__(self, text: Bytes, starts: NDArray[np.int64]) -> Bytes:
        """Return the HMACs (B, 16) of texts of at most `LONGEST` bytes.

        Args:
            text: the bytes of all of them.
            starts: (B + 1,) where each begins, and the last ends.
        """
        text = text[:]
        text.flags.writeable = False  # the machine code is of such as are not written to
        out = np.empty((len(starts) - 1, 4), np.uint32)
        _hmacs(text, starts, self._inner, self._outer, out)
        return out.astype(">u4").view(np.uint8)


def _after(block: bytes) -> Words:
    """Return the state (8,) after one block."""
    state = np.repeat(_START, LANES)
    words = np.zeros(64 * LANES, np.uint32)
    words[: 16 * LANES] = np.repeat(np.frombuffer(block, ">u4").astype(np.uint32), LANES)
    _compress(state, words)
    return state[::LANES].copy()
