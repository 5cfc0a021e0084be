"""What one process that decides holds: the local log, the catalogue, the key of pseudonyms."""

from collections.abc import Callable
from pathlib import Path

from service.catalogue import Catalogue
from service.config import Config
from service.pseudonyms import Pseudonyms
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
