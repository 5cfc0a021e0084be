"""Keys, scopes and cursors: what a caller may do, checked without Postgres.

An API key is ``bk_live_<public id>_<secret>``. Only SHA-256 of the secret is stored: the secret
has 256 random bits, so a slow hash would protect nothing and would cost every request.

| scope | permits |
|---|---|
| ``decide`` | ask for arms |
| ``reward`` | report outcomes |
| ``read`` | read campaigns, decisions, reports, customers, metrics, the audit log |
| ``manage`` | change campaigns, customers, keys and users; list keys and users |

No scope contains another one: a key has exactly the scopes that it lists.
"""

import base64
import hashlib
import hmac
import os
import re
import secrets
import string
import threading
import time
from typing import NamedTuple

import orjson

from service.errors import FieldError, Invalid, Unauthorised

_ALPHABET = string.ascii_lowercase + string.digits
_BEARER = re.compile(r"[Bb]earer +bk_live_([a-z0-9]{8})_([A-Za-z0-9_-]{32,86})")
_CURSOR = re.compile(r"[A-Za-z0-9_-]{1,400}")
_TAG_BYTES = 16
POOL_BYTES = 8192


class Credentials(NamedTuple):
    """An API key in its two parts."""

    public_id: str
    secret: str

    @property
    def text(self) -> str:
        """The key as its owner keeps it."""
        return f"bk_live_{self.public_id}_{self.secret}"


class _Pool:
    """Bytes of the system's generator, fetched for many identifiers at once: a call takes 5 us."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()
        os.register_at_fork(after_in_child=self.clear)

    def clear(self) -> None:
        """Forget what is left: a forked process must not hand out the same."""
        self._bytes, self._place = b"", POOL_BYTES

    def take(self, size: int) -> bytes:
        """Return the next bytes; none is handed out twice."""
        with self._lock:
            if self._place + size > len(self._bytes):
                self._bytes, self._place = os.urandom(POOL_BYTES), 0
            start, self._place = self._place, self._place + size
            return self._bytes[start : self._place]


random_bytes = _Pool().take


def _table(kept: int, fixed: int) -> bytes:
    return bytes(byte & kept | fixed for byte in range(256))


_VERSION_8, _VARIANT = _table(0x0F, 0x80), _table(0x3F, 0x80)
TAIL_BYTES, TAILS = 12, 512


def tail(data: bytes) -> bytes:
    """Return the last 12 bytes of a UUIDv8 (RFC 9562): as given, but for those bits it fixes."""
    version, variant = data[2:3].translate(_VERSION_8), data[4:5].translate(_VARIANT)
    return data[:2] + version + data[3:4] + variant + data[5:]


def tail_text(tail: bytes) -> str:
    """Return the same 12 bytes as a UUID has them in its text, after its first eight digits."""
    text = tail.hex()
    return f"{text[:4]}-{text[4:8]}-{text[8:12]}-{text[12:]}"


def tick() -> bytes:
    """Return two bytes that count 8 seconds, for ids to begin with where nothing hangs on them.

    Neighbours in time are neighbours in an index then, which costs PostgreSQL a quarter of the time
    of a COPY less than random places all over it. They go round in six days, which does not matter.
    """
    return (int(time.time()) >> 3 & 0xFFFF).to_bytes(2, "big")


class _Tails:
    """Random tails after a tick, made many at a time: one would cost as much as an arm's draw."""

    def __init__(self) -> None:
        self.clear()
        os.register_at_fork(after_in_child=self.clear)

    def clear(self) -> None:
        """Forget what is left: a forked process must not hand out the same."""
        self._ready: list[tuple[bytes, str]] = []

    def take(self) -> tuple[bytes, str]:
        """Return one, as bytes and as `tail_text`; none is handed out twice, to whatever thread."""
        try:
            return self._ready.pop()
        except IndexError:
            first, *others = self._made()
            self._ready += others
            return first

    def _made(self) -> list[tuple[bytes, str]]:
        data = bytearray(os.urandom(TAIL_BYTES * TAILS))
        for place, byte in enumerate(tick()):
            data[place::TAIL_BYTES] = bytes([byte]) * TAILS
        data[2::TAIL_BYTES] = data[2::TAIL_BYTES].translate(_VERSION_8)
        data[4::TAIL_BYTES] = data[4::TAIL_BYTES].translate(_VARIANT)
        tails = [bytes(data[at : at + TAIL_BYTES]) for at in range(0, len(data), TAIL_BYTES)]
        return [(tail, tail_text(tail)) for tail in tails]


random_tail = _Tails().take


def new_credentials() -> Credentials:
    """Return a fresh key: 41 bits that name it and 256 bits that prove it."""
    public_id = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    return Credentials(public_id, secrets.token_urlsafe(32))


def credentials(authorization: str | None) -> Credentials:
    """Return the key in an ``Authorization`` header; raises `Unauthorised` if there is none."""
    found = _BEARER.fullmatch(authorization or "")
    if found is None:
        raise Unauthorised()
    return Credentials(*found.groups())


def digest(secret: str) -> bytes:
    """Return what is stored of a secret."""
    return hashlib.sha256(secret.encode()).digest()


def proves(secret: str, stored: bytes) -> bool:
    """Tell in constant time whether a secret is the one whose digest is stored."""
    return hmac.compare_digest(digest(secret), stored)


def sign_cursor(key: bytes, listing: str, place: int) -> str:
    """Return the cursor of the page after ``place`` of a listing.

    ``listing`` names the list and its filters, so a cursor only continues the list it came from.

    >>> read_cursor(b"k", "audit", sign_cursor(b"k", "audit", 41))
    41
    """
    payload = orjson.dumps([listing_id(listing), place])
    return base64.urlsafe_b64encode(_tag(key, payload) + payload).rstrip(b"=").decode()


def read_cursor(key: bytes, listing: str, cursor: str) -> int:
    """Return the place in a cursor; raises `Invalid` unless we signed it for this listing."""
    if _CURSOR.fullmatch(cursor):
        padding = "=" * (-len(cursor) % 4)
        try:
            raw = base64.urlsafe_b64decode(cursor + padding)
        except ValueError:
            raw = b""
        tag, payload = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
        if hmac.compare_digest(tag, _tag(key, payload)):
            name, place = orjson.loads(payload)
            if name == listing_id(listing):
                return int(place)
    message = "is not a cursor of this list; leave it out to start at the beginning"
    raise Invalid(f"cursor: {message}", errors=[FieldError("cursor", message)])


def listing_id(listing: str) -> str:
    """Return a short name of a listing with its filters."""
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def _tag(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, payload, hashlib.sha256)[:_TAG_BYTES]
