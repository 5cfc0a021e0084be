"""What one process that decides holds: the local log, the catalogue, the key of pseudonyms."""

import hashlib
import hmac
from collections.abc import Callable, Iterable
from pathlib import Path

from service.catalogue import Catalogue
from service.config import Config
from service.spool import Spool


class Host:
    """All that a decision is made from and kept in; start it after the process has been forked."""

    def __init__(
        self, folder: Path, unit_key: bytes, *, late: Callable[[int], object] | None = None
    ) -> None:
        self.spool = Spool(folder, late=late)
        self.catalogue = Catalogue(self.spool)
        self.pseudonym = Pseudonyms(unit_key)

    def start(self) -> None:
        """Load the catalogue and begin to follow it."""
        self.catalogue.start()

    def stop(self) -> None:
        """Stop the threads; what was acknowledged is on disk already."""
        self.catalogue.stop()
        self.spool.close()


class Runtime(Host):
    """The serving side of one process of the service."""

    def __init__(self, config: Config) -> None:
        # Not at the top: who decides in their own process (`service.local`) has no metrics.
        from service import metrics

        late = metrics.LATE.inc if config.acknowledge == "database" else None
        super().__init__(config.data, config.key("unit"), late=late)
        self.config = config


class Pseudonyms:
    """The keyed pseudonyms (16 bytes) under which units are stored.

    HMAC-SHA-256 (RFC 2104), cut; what depends on the key alone is computed once.
    """

    def __init__(self, key: bytes) -> None:
        self.key = key
        block = key.ljust(64, b"\0") if len(key) <= 64 else hashlib.sha256(key).digest()
        block = block.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block)).copy
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block)).copy

    def __call__(self, unit: str) -> bytes:
        """Return the pseudonym of a unit."""
        inner, outer = self._inner(), self._outer()
        inner.update(unit.encode())
        outer.update(inner.digest())
        return outer.digest()[:16]

    def many(self, units: Iterable[str]) -> list[bytes]:
        """Return the pseudonyms of many units, each in less time."""
        inner_copy, outer_copy = self._inner, self._outer
        names = []
        for unit in units:
            inner, outer = inner_copy(), outer_copy()
            inner.update(unit.encode())
            outer.update(inner.digest())
            names.append(outer.digest()[:16])
        return names


def pseudonym(key: bytes, unit: str) -> bytes:
    """Return the pseudonym of one unit."""
    return hmac.digest(key, unit.encode(), "sha256")[:16]
