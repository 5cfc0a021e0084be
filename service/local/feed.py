"""Between a local client and the server: campaigns and snapshots down, its log up.

Down: every campaign is asked for with the ETag of what is kept, so that one that has not changed
costs a 304. Up: entries go in the order of the log, and how far it has been told is noted after
the server has confirmed; a crash in between tells some again, which their ids make harmless.

Several processes may use one folder. One of them, whichever holds the lock, does all this.
"""

import base64
import fcntl
import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from service.client.transport import Request, Response, Transport, TransportError
from service.pseudonyms import Pseudonyms
from service.runtime import Host
from service.spool import DECISION, SpoolError

BATCH, BATCH_BYTES = 1_000, 900_000
TICK_SECONDS, RETRY_SECONDS, PRUNE_SECONDS = 0.1, 1.0, 60.0
KEEP_SECONDS = 86_400.0
TIMEOUT_SECONDS = 30.0
REFUSED = (400, 413, 422)
"""Answers that name a fault of what was sent: it would be refused again."""
log = logging.getLogger("barter.client")
Entry = tuple[int, int, bytes]


class Feed:
    """Follows campaigns, and tells the server what was decided."""

    def __init__(
        self, host: Host, transport: Transport, api_key: str, campaigns: Sequence[str], *,
        folder: Path, refresh_seconds: float,
    ) -> None:  # fmt: skip
        self._host, self._spool, self._transport = host, host.spool, transport
        self._headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
        self._campaigns, self._refresh_seconds = campaigns, refresh_seconds
        self._lock_path, self._lock = folder / "feed.lock", -1
        self._stop, self._thread = (
            threading.Event(),
            threading.Thread(target=self._run, name="feed"),
        )
        self._thread.daemon = True
        self._noted: dict[str, float] = {}
        self._heard: dict[str, float] = {}
        self.waiting, self.refused = 0, 0

    def start(self) -> None:
        """Take what is kept, and begin to follow."""
        self._recall()
        self._thread.start()

    def stop(self) -> None:
        """Stop; what has not been told stays in the log for the next time."""
        self._stop.set()
        self._thread.join()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def age(self, campaign: str) -> float:
        """Return for how many seconds nothing has been heard of a campaign."""
        return time.monotonic() - self._heard.get(campaign, -1e9)

    def told(self) -> int:
        """Return the number of the last entry of the log that the server has confirmed."""
        shipped = int(self._spool.read("shipped") or b"0")
        # A log that was lost began anew: its numbers count from one again.
        return shipped if shipped <= self._spool.last() else 0

    def _run(self) -> None:
        refresh_at = prune_at = 0.0
        while not self._stop.is_set():
            wait = TICK_SECONDS
            try:
                self._recall()
                if self._leads():
                    now = time.monotonic()
                    if now >= refresh_at:
                        refresh_at = now + self._refresh_seconds
                        self.refresh()
                    while self.ship() and not self._stop.is_set():
                        pass
                    self._spool.index()
                    if now >= prune_at:
                        prune_at = now + PRUNE_SECONDS
                        self._spool.prune(self.told(), before=time.time() - KEEP_SECONDS)
            except (TransportError, SpoolError) as error:
                log.warning("the server is not heard: %s", error)
                wait = RETRY_SECONDS
            except Exception:
                log.exception("following the server failed")
                wait = RETRY_SECONDS
            self._stop.wait(wait)
        self._transport.close()

    def _leads(self) -> bool:
        """Whether this process is the one of its folder that talks to the server."""
        if self._lock < 0:
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                return False
            self._lock = descriptor
        return True

    def _recall(self) -> None:
        """Take over when each campaign was last heard of, by whatever process of the folder."""
        self._recall_key()
        noted: dict[str, float] = orjson.loads(self._spool.read("heard") or b"{}")
        now, clock = time.time(), time.monotonic()
        for campaign, at in noted.items():
            if at != self._noted.get(campaign):
                # A clock that has been put back must not make the past look like the present.
                self._heard[campaign] = clock - max(0.0, now - at)
        self._noted = noted

    def refresh(self) -> None:
        """Bring down what has changed.

        Raises:
            TransportError: no answer came; what is kept goes on.
        """
        kept = _Kept(self._spool.read("brought"))
        changed: dict[str, bytes] = {}
        heard: dict[str, tuple[float, float]] = {}
        for campaign in self._campaigns:
            headers = self._headers | {"If-None-Match": kept.tags.get(campaign, "none")}
            path = f"/v1/local/campaigns/{quote(campaign)}"
            reply = self._transport.send(Request("GET", path, headers), TIMEOUT_SECONDS)
            if reply.status == 200:
                changed |= kept.take(campaign, reply)
            elif reply.status == 404:
                kept.drop(campaign)
            elif reply.status != 304:
                log.error("campaign %s not brought: status %d", campaign, reply.status)
                continue
            heard[campaign] = time.time(), time.monotonic()
        if kept.changed:
            self._spool.write({**changed, "catalogue": kept.catalogue(), "brought": kept.text()})
            self._recall_key()
            self._host.catalogue.refresh()
        # Only now: what counts as heard of can be decided by.
        self._noted |= {campaign: at for campaign, (at, _) in heard.items()}
        self._heard |= {campaign: at for campaign, (_, at) in heard.items()}
        self._spool.note("heard", orjson.dumps(self._noted))

    def _recall_key(self) -> None:
        if (key := self._spool.read("unit_key")) and self._host.pseudonym.key != key:
            self._host.pseudonym = Pseudonyms(key)

    def ship(self) -> int:
        """Tell the server of the next entries; return how many.

        Raises:
            TransportError: no answer came, or none that says what is wrong with them.
        """
        told = self.told()
        entries = _fitting(self._spool.after(told, limit=BATCH))
        self.waiting = self._spool.last() - told
        if entries:
            for kind, path, name in _ROUTES:
                mine = [entry for entry in entries if (entry[1] == DECISION) == kind]
                if mine:
                    self._send(path, name, mine)
            self._spool.note("shipped", str(entries[-1][0]).encode())
            self.waiting -= len(entries)
        return len(entries)

    def _send(self, path: str, name: str, entries: Sequence[Entry]) -> None:
        written = [body if kind == DECISION else _outcome(body) for _, kind, body in entries]
        told = b'{"%b":[%b]}' % (name.encode(), b",".join(written))
        request = Request("POST", path, self._headers, told)
        reply = self._transport.send(request, TIMEOUT_SECONDS)
        if reply.status < 300:
            return
        if reply.status not in REFUSED:
            raise TransportError(f"{path}: {reply.status}")
        if len(entries) > 1:
            # One entry that will never be taken must not hold back all the others.
            middle = len(entries) // 2
            self._send(path, name, entries[:middle])
            self._send(path, name, entries[middle:])
            return
        ((number, kind, body),) = entries
        error = reply.body[:2000].decode("utf-8", "replace")
        log.error("entry %d refused: %s", number, error)
        self._spool.reject(number, kind, body, error)
        self.refused += 1


_ROUTES = (
    (True, "/v1/local/decisions", "decisions"),
    (False, "/v1/outcomes", "outcomes"),
)


class _Kept:
    """What has been brought down: rows of the catalogue and ETags, by the campaign's key."""

    def __init__(self, text: bytes) -> None:
        kept = orjson.loads(text or b"{}")
        self.rows: dict[str, Any] = kept.get("rows", {})
        self.tags: dict[str, str] = kept.get("tags", {})
        self.changed = False

    def take(self, campaign: str, reply: Response) -> dict[str, bytes]:
        """Take a campaign over; return the values to be kept beside the catalogue.

        Raises:
            TransportError: the answer is none of Barter's.
        """
        try:
            found = orjson.loads(reply.body)
            names = ("id", "revision", "state", "killed", "seed", "definition")
            row = {name: found[name] for name in names}
            state, fitted = (base64.b64decode(found[name] or "") for name in ("learnt", "fitted"))
            values = {"unit_key": bytes.fromhex(found["unit_key"])}
            values[f"snapshot:{row['id']}"] = found["snapshot"].to_bytes(8, "big") + state
            values[f"fitted:{row['id']}"] = fitted
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TransportError(f"the answer about {campaign} is not Barter's: {error}") from error
        self.rows[campaign], self.tags[campaign] = row, reply.headers.get("etag", "none")
        self.changed = True
        return values

    def drop(self, campaign: str) -> None:
        """Forget a campaign that is no longer there."""
        self.tags.pop(campaign, None)
        self.changed |= self.rows.pop(campaign, None) is not None

    def catalogue(self) -> bytes:
        """Return the document that `service.catalogue` reads."""
        return orjson.dumps({"campaigns": list(self.rows.values()), "keys": []})

    def text(self) -> bytes:
        """Return all of it, to be kept."""
        return orjson.dumps({"rows": self.rows, "tags": self.tags})


def _fitting(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Return as many as fit one request, at least one."""
    size = 0
    for count, (_, _, body) in enumerate(entries):
        size += len(body)
        if size > BATCH_BYTES and count:
            return entries[:count]
    return entries


def _outcome(body: bytes) -> bytes:
    """Return an outcome out of the log as the server takes it."""
    row = orjson.loads(body)
    return orjson.dumps(
        {name: value for name, value in row.items()
         if value is not None and name not in ("campaign_id", "received_at")}
    )  # fmt: skip
