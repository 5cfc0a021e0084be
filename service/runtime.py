"""What one serving process holds: configuration, the local log, the catalogue."""

import hashlib
import hmac

from service.catalogue import Catalogue
from service.config import Config
from service.spool import Spool


class Runtime:
    """The serving side of one process; start it after the process has been forked."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.spool = Spool(config.data)
        self.catalogue = Catalogue(self.spool)
        self.pseudonym = Pseudonyms(config.key("unit"))

    def start(self) -> None:
        """Load the catalogue and begin to follow it."""
        self.catalogue.start()

    def stop(self) -> None:
        """Stop the threads; what was acknowledged is on disk already."""
        self.catalogue.stop()
        self.spool.close()


class Pseudonyms:
    """The keyed pseudonyms (16 bytes) under which units are stored.

    HMAC-SHA-256 (RFC 2104), cut; what depends on the key alone is computed once.
    """

    def __init__(self, key: bytes) -> None:
        block = key.ljust(64, b"\0") if len(key) <= 64 else hashlib.sha256(key).digest()
        block = block.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def __call__(self, unit: str) -> bytes:
        """Return the pseudonym of a unit."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(unit.encode())
        outer.update(inner.digest())
        return outer.digest()[:16]


def pseudonym(key: bytes, unit: str) -> bytes:
    """Return the pseudonym of one unit."""
    return hmac.digest(key, unit.encode(), "sha256")[:16]
