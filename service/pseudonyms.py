"""Under which pseudonyms units are stored: HMAC-SHA-256 (RFC 2104), cut to 16 bytes."""

import hashlib
import hmac
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from service.columnar import Bytes
from service.copying import ID_BYTES

WIDE_ROWS = 64
"""From so many units on, and while all are short, they are hashed side by side."""
WIDE_BYTES = 55
"""The longest of them: `service.sha256.LONGEST`."""
log = structlog.get_logger()


class Units(NamedTuple):
    """The names of many units, in UTF-8.

    Attributes:
        text: (N,) the bytes of all, one name after another.
        starts: (B + 1,) where each begins, and the last ends.
    """

    text: Bytes
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, names: Sequence[str]) -> "Units":
        """Return names as such."""
        text = "".join(names)
        raw = text.encode()
        # The usual names have a byte for each letter.
        parts = names if len(raw) == len(text) else [name.encode() for name in names]
        starts = np.zeros(len(names) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, parts), np.int64, len(names)), out=starts[1:])
        return cls(np.frombuffer(raw, np.uint8), starts)

    def __len__(self) -> int:
        """Return how many they are."""
        return len(self.starts) - 1

    def at(self, row: int) -> str:
        """Return one of them."""
        return self.text[self.starts[row] : self.starts[row + 1]].tobytes().decode()

    def taken(self, rows: NDArray[np.intp]) -> "Units":
        """Return some of them."""
        return self if len(rows) == len(self) else Units.of([self.at(row) for row in rows.tolist()])


class Pseudonyms:
    """The pseudonyms of one key; what depends on that alone is computed once."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        block = key.ljust(64, b"\0") if len(key) <= 64 else hashlib.sha256(key).digest()
        block = block.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block)).copy
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block)).copy
        self._wide: Callable[[Bytes, NDArray[np.int64]], Bytes] | None = None
        self._preparing: threading.Thread | None = None

    def __call__(self, unit: str) -> bytes:
        """Return the pseudonym of a unit."""
        return self._one(unit.encode())

    def many(self, units: Units) -> Bytes:
        """Return the pseudonyms (B, 16) of many units, each in less time.

        Those of long lists in a fraction of it, once that is prepared.
        """
        wide = self._wide
        if wide is None or len(units) < WIDE_ROWS or np.diff(units.starts).max() > WIDE_BYTES:
            return self._narrow(units)
        return wide(units.text, units.starts)

    def expect(self, rows: int) -> None:
        """Have another thread `prepare` where so many units are worth it."""
        if rows >= WIDE_ROWS and self._preparing is None:
            self._preparing = threading.Thread(target=self.prepare, daemon=True)
            self._preparing.start()

    def prepare(self) -> None:
        """Load what hashes long lists (`service.sha256`): that may take seconds, and 50 MB."""
        try:
            from service import sha256

            wide = sha256.Hmac(self.key)
            wide(*Units.of(["any"]))
        except Exception:
            log.exception("long_lists_stay_slow")
        else:
            self._wide = wide

    def _narrow(self, units: Units) -> Bytes:
        text, starts = units.text.tobytes(), units.starts.tolist()
        inner_copy, outer_copy = self._inner, self._outer
        names = []
        for begin, end in itertools.pairwise(starts):
            inner, outer = inner_copy(), outer_copy()
            inner.update(text[begin:end])
            outer.update(inner.digest())
            names.append(outer.digest()[:ID_BYTES])
        return np.frombuffer(b"".join(names), np.uint8).reshape(-1, ID_BYTES)

    def _one(self, unit: bytes) -> bytes:
        inner, outer = self._inner(), self._outer()
        inner.update(unit)
        outer.update(inner.digest())
        return outer.digest()[:ID_BYTES]


def split(pseudonyms: Bytes) -> list[bytes]:
    """Return pseudonyms (B, 16) one by one."""
    raw = pseudonyms.tobytes()
    return [raw[at : at + ID_BYTES] for at in range(0, len(raw), ID_BYTES)]


def pseudonym(key: bytes, unit: str) -> bytes:
    """Return the pseudonym of one unit."""
    return hmac.digest(key, unit.encode(), "sha256")[:ID_BYTES]
