"""What a serving process knows: campaigns with their snapshots, and API keys, in memory.

It is read from the local file that the carrier keeps (see `service.carrier`), never from Postgres,
so a process starts and serves when the database is away. A thread looks for a new generation every
few milliseconds; readers always see one whole, immutable picture.

The first campaign by contexts takes a second, or several after an installation, in which its
machine code is loaded (`bandits.kernels`). That thread does not wait for it: another one does, and
what stops or begins meanwhile is heard.
"""

import sys
import threading
import time
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog

from service.snapshots import LiveCampaign, whole
from service.spool import Spool

POLL_SECONDS = 0.02
KERNELS = "bandits.kernels"
log = structlog.get_logger()


@dataclass(frozen=True)
class KeyView:
    """An API key as the hot path sees it."""

    public_id: str
    name: str
    secret_sha256: bytes
    scopes: frozenset[str]


@dataclass(frozen=True)
class _Picture:
    generation: int = -1
    names: frozenset[str] = frozenset()
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    campaigns: dict[str, LiveCampaign] = field(default_factory=dict)
    keys: dict[str, KeyView] = field(default_factory=dict)
    popular: tuple[str, ...] = ()


class Catalogue:
    """The newest picture of campaigns, snapshots and keys."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._picture = _Picture()
        # Two that load at once would each begin from what the other has just replaced.
        self._loading = threading.Lock()
        self._warm, self._rehearsed = False, set[int]()
        self._later: dict[int, dict[str, Any]] = {}
        self._rehearsal: threading.Thread | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def loaded(self) -> bool:
        """Whether the carrier has ever brought a catalogue to this host."""
        return "catalogue" in self._picture.names

    def campaign(self, key: str) -> LiveCampaign | None:
        """Return a campaign by its key."""
        return self._picture.campaigns.get(key)

    def campaigns(self) -> list[LiveCampaign]:
        """Return all campaigns."""
        return list(self._picture.campaigns.values())

    @property
    def knows_units(self) -> bool:
        """Whether the local file has stored attributes of any unit."""
        return "units" in self._picture.names

    @property
    def popular(self) -> tuple[str, ...]:
        """The ids of the products to offer where nothing is known of a unit, best first."""
        return self._picture.popular

    def api_key(self, public_id: str) -> KeyView | None:
        """Return a live API key by its public id."""
        return self._picture.keys.get(public_id)

    def status(self) -> dict[str, object]:
        """Return what the health page shows: how old is what we serve from."""
        heartbeat = self._spool.read("heartbeat")
        carried = orjson.loads(heartbeat) if heartbeat else {}
        seen = carried.get("at")
        return {
            "loaded": self.loaded,
            "campaigns": len(self._picture.campaigns),
            "carrier_seconds_ago": None if seen is None else round(time.time() - seen, 1),
            "database": bool(carried.get("database")) and time.time() - (seen or 0) < 10,
            "unshipped": self._spool.last() - int(carried.get("shipped", 0)),
            "rejected": self._spool.rejected(),
            "acknowledges": self._spool.acknowledges,
        }

    def start(self) -> None:
        """Load what there is and follow it from now on."""
        self.refresh()
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="catalogue", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop following."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def refresh(self) -> None:
        """Take the newest generation if there is one; wait for a thread that is at it."""
        with self._loading:
            if self._spool.generation() != self._picture.generation or self._later:
                self._picture = self._load(wait=True)
                self._warm |= KERNELS in sys.modules

    def _follow(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                with self._loading:
                    self._look()
            except Exception:
                # The last good picture goes on serving; the next look may find a better one.
                log.exception("catalogue_refresh_failed")
                self._stop.wait(1.0)

    def _look(self) -> None:
        """Take what is news; have campaigns rehearsed that take long to be loaded."""
        resting = self._rehearsal is None or not self._rehearsal.is_alive()
        if self._spool.generation() != self._picture.generation or (self._later and resting):
            self._picture = self._load(wait=False)
        if self._later and resting:
            rows = list(self._later.values())
            self._rehearsal = threading.Thread(target=self._rehearse, args=(rows,), daemon=True)
            self._rehearsal.start()

    def _rehearse(self, rows: Iterable[dict[str, Any]]) -> None:
        """Load campaigns once, to have the machine code that they need; next time it is quick."""
        for row in rows:
            try:
                self._load_campaign(row, f"snapshot:{row['id']}", None, same=False)
            except Exception:
                log.exception("campaign_not_rehearsed", campaign=row["id"])
            self._rehearsed.add(row["id"])
        self._warm |= KERNELS in sys.modules

    def _load(self, *, wait: bool) -> _Picture:
        generation, old = self._spool.generation(), self._picture
        changed = self._spool.changed(old.generation).keys()
        rows = old.rows | self._later if self._later else old.rows
        keys, popular = old.keys, old.popular
        listed = "catalogue" in changed or bool(self._later)
        if "catalogue" in changed:
            document = orjson.loads(self._spool.read("catalogue"))
            rows = {row["id"]: row for row in document["campaigns"]}
            keys = {row["public_id"]: _key(row) for row in document["keys"]}
        if "popular" in changed:
            popular = tuple(orjson.loads(self._spool.read("popular")))
        names = old.names | (changed & {"catalogue", "units"})
        if not listed and len(rows) == len(old.campaigns):
            return _Picture(generation, names, rows, self._with_news(changed), keys, popular)
        campaigns, self._later = self._all(rows, changed, wait=wait)
        # Those rows are not in the picture yet: what is there of them is as it was before.
        known = {id: old.rows[id] if id in self._later else row for id, row in rows.items()
                 if id not in self._later or id in old.rows}  # fmt: skip
        return _Picture(generation, names, known, campaigns, keys, popular)

    def _with_news(self, changed: Set[str]) -> dict[str, LiveCampaign]:
        """Return the campaigns of before, with their new snapshots: few of many."""
        campaigns = dict(self._picture.campaigns)
        for name in changed:
            kind, _, id = name.partition(":")
            row = self._picture.rows.get(int(id)) if kind == "snapshot" else None
            if row is not None:
                key = row["definition"]["key"]
                loaded = self._load_campaign(row, name, campaigns[key], same=True)
                campaigns[key] = loaded or campaigns[key]
        return campaigns

    def _all(
        self, rows: dict[int, dict[str, Any]], changed: Set[str], *, wait: bool
    ) -> tuple[dict[str, LiveCampaign], dict[int, dict[str, Any]]]:
        """Return the campaigns of a new list, loading what is not as it was.

        And, unless they are waited for, the rows of those that take long: they are loaded later,
        and what is known of them goes on in its new state.
        """
        old = self._picture
        by_id = {campaign.id: campaign for campaign in old.campaigns.values()}
        campaigns: dict[str, LiveCampaign] = {}
        later: dict[int, dict[str, Any]] = {}
        for id, row in rows.items():
            name, known, same = f"snapshot:{id}", by_id.get(id), old.rows.get(id) == row
            new = known is None or not same
            if new and not wait and self._cold(row):
                later[id] = row
                known = known and known.moved(row["state"], killed=row["killed"])
            elif new or name in changed:
                known = self._load_campaign(row, name, known, same=same)
            if known is not None:
                campaigns[row["definition"]["key"]] = known
        return campaigns, later

    def _cold(self, row: dict[str, Any]) -> bool:
        """Tell whether a campaign may need machine code that this process has not loaded yet."""
        return (
            not self._warm
            and row["id"] not in self._rehearsed
            and bool(row["definition"].get("features"))
        )

    def _load_campaign(
        self, row: dict[str, Any], name: str, known: LiveCampaign | None, *, same: bool
    ) -> LiveCampaign | None:
        """Load a campaign; one that cannot be read takes no other down and still obeys a stop.

        What is known of it goes on in its new state, or else it starts as if nothing were learnt.
        """
        stored = self._spool.read(name)
        version, state = int.from_bytes(stored[:8], "big"), stored[8:]
        fitted = self._spool.read(f"fitted:{row['id']}") or None
        definition = known.definition if known and same else None
        try:
            # Should the carrier have written between the two, they do not fit each other: what is
            # known goes on, and the next look finds both.
            state = whole(state, fitted) if state else state
            usual = self._usual(row["id"], stored[:8], row["revision"])
            return LiveCampaign.load(row, state, version, definition=definition, usual=usual)
        except ValueError:
            log.exception("campaign_not_loaded", campaign=row["id"])
        if known is not None:
            return known.moved(row["state"], killed=row["killed"])
        try:
            return LiveCampaign.load(row, None, 0)
        except ValueError:
            return None

    def _usual(self, id: int, version: bytes, revision: int) -> bytes:
        """Return what most decisions of a snapshot are drawn from, if it was made at a revision."""
        stored = self._spool.read(f"usual:{id}")
        return stored[12:] if stored[:12] == version + revision.to_bytes(4, "big") else b""


def _key(row: dict[str, Any]) -> KeyView:
    secret = bytes.fromhex(row["secret_sha256"])
    return KeyView(row["public_id"], row["name"], secret, frozenset(row["scopes"]))
