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
        self._unit_key = config.key("unit")

    def start(self) -> None:
        """Load the catalogue and begin to follow it."""
        self.catalogue.start()

    def stop(self) -> None:
        """Stop the threads; what was acknowledged is on disk already."""
        self.catalogue.stop()
        self.spool.close()

    def pseudonym(self, unit: str) -> bytes:
        """Return the keyed pseudonym (16 bytes) under which a unit is stored."""
        return pseudonym(self._unit_key, unit)


def pseudonym(key: bytes, unit: str) -> bytes:
    """Return HMAC-SHA-256 (RFC 2104) of a unit, cut to 16 bytes."""
    return hmac.digest(key, unit.encode(), hashlib.sha256)[:16]
