"""Append-only files of checksummed records: what the local log (`service.spool`) is made of.

A folder of segments, each named by the number of its first record. A record is

    mark (4 bytes) · CRC-32 of the rest · length of the payload · number · payload

with the integers little-endian, 4, 4 and 8 bytes long. One process at a time, the one that holds
the folder's lock, reads what the others have appended and appends its own; then it lets go and
synchronises the disk, so that several processes wait for the disk side by side.

What a power cut or a killed writer leaves behind the last whole record was acknowledged to nobody
and is cut off. A damaged record before others is passed over and told: it costs itself alone.
"""

import contextlib
import fcntl
import itertools
import os
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import structlog

MARK = b"\xb4rt\n"
_HEADER = struct.Struct("<4sIIQ")
_BEGUN = struct.Struct("<4sI")
_CHECKED = struct.Struct("<IQ")
SEGMENT_BYTES = 64 << 20
READ_BYTES = 1 << 20
SETTLED_NS = 1_000_000_000
LOOK_NS = 200_000_000
log = structlog.get_logger()


class Place(NamedTuple):
    """Between two records: the segment, by its first number; the byte in it; the next number."""

    segment: int
    offset: int
    number: int


class Record(NamedTuple):
    """One record: its payload, and where it begins.

    Records are counted from 1, and no ``number`` is given twice.
    """

    number: int
    payload: bytes
    segment: int
    offset: int

    @property
    def place(self) -> Place:
        """The place before it."""
        return Place(self.segment, self.offset, self.number)

    @property
    def following(self) -> Place:
        """The place after it."""
        end = self.offset + _HEADER.size + len(self.payload)
        return Place(self.segment, end, self.number + 1)


class Segments:
    """The segments of one folder; not for several threads at once."""

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._segment_bytes = folder, segment_bytes
        self._reading, self._appending, self._lock = _File(), _File(), _File()
        self._names: list[int] = []
        self._looked_ns = self._listed_ns = 0
        self._torn = False
        self._named = -1, folder  # the path that was made last: making one takes a while

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who appends, of all processes of the host."""
        descriptor = self._lock.opened(self._folder / "lock", os.O_CREAT)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    def names(self) -> list[int]:
        """Return the first number of every segment, oldest first."""
        changed_ns = os.stat(self._folder).st_mtime_ns
        if changed_ns != self._listed_ns:
            self._names = sorted(int(path.stem) for path in self._folder.glob("*.log"))
            # Two changes in one tick of the file system's clock bear the same time.
            settled = time.time_ns() - changed_ns > SETTLED_NS
            self._listed_ns = changed_ns if settled else 0
        return self._names

    def begin(self, number: int) -> None:
        """Make the first segment, if there is none; its first record will have this number."""
        with self.locked():
            if not self.names():
                self._create(number)

    def reaches(self, place: Place) -> bool:
        """Tell whether there is such a place."""
        path = self._path(place.segment)
        return place.segment == 0 or (path.exists() and path.stat().st_size >= place.offset)

    def place(self, number: int) -> Place:
        """Return the place of a record, or of the next after it, by reading its segment."""
        names = self.names()
        segment = max((name for name in names if name <= number), default=names[0])
        place = Place(segment, 0, segment)
        while place.number < number:
            records, following = self.read(place)
            for record in records:
                if record.number >= number:
                    return record.place
            if following == place:
                break
            place = following
        return place

    def read(self, place: Place, *, most: int = READ_BYTES) -> tuple[list[Record], Place]:
        """Return whole records from a place on, and the place after them.

        At most about so many bytes at once; none when nothing whole is there yet.

        Raises:
            OSError: the disk refused.
        """
        # Looked for first: once there is another segment, this one does not grow any more.
        following = self._following(place)
        while True:
            data = self._bytes(place, most)
            records, end = _records(data, place)
            if records or len(data) < most:
                break
            most *= 2  # a record longer than what was read, or damage
        if records or following is None:
            self._torn = bool(data) and not records
            return records, end
        if data:
            log.error("log_damaged", segment=place.segment, offset=place.offset, bytes=len(data))
        return self.read(Place(following, 0, following), most=most)

    def append(self, end: Place, payloads: Sequence[bytes]) -> Place:
        """Append records at the end that `read` has come to, under the lock; return the new end.

        Whatever is there behind ``end`` is cut off: nobody can have acknowledged it.

        Raises:
            OSError: the disk refused; nothing was appended.
        """
        if end.offset >= self._segment_bytes:
            self.sync(end)
            end = self._create(end.number)
        descriptor = self._appending.opened(self._path(end.segment))
        if self._torn:
            log.warning("log_tail_cut", segment=end.segment, offset=end.offset)
            os.ftruncate(descriptor, end.offset)
        data = b"".join([_framed(end.number + n, payload) for n, payload in enumerate(payloads)])
        try:
            _write(descriptor, data, end.offset)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, end.offset)
            raise
        return Place(end.segment, end.offset + len(data), end.number + len(payloads))

    def sync(self, end: Place) -> None:
        """Wait until everything before a place is on the disk, whoever has written it.

        Older segments are: who begins a segment waits for the one before.

        Raises:
            OSError: the disk refused; what was appended may be lost.
        """
        os.fdatasync(self._appending.opened(self._path(end.segment)))

    def drop(self, number: int, *, before: float) -> int:
        """Delete whole segments of records up to a number that were last written before a moment.

        The newest segment always stays. Returns the first number that is left.
        """
        names = list(self.names())
        for name, following in itertools.pairwise(names):
            path = self._path(name)
            if following > number + 1 or path.stat().st_mtime >= before:
                return name
            path.unlink()
        return names[-1]

    def close(self) -> None:
        """Close what is open."""
        for file in (self._reading, self._appending, self._lock):
            file.close()

    def _following(self, place: Place) -> int | None:
        """Return the segment after a place's, if there is one; asked often, it looks now and then.

        One that is not full is followed only where its end has been damaged.
        """
        now = time.monotonic_ns()
        if 0 < place.offset < self._segment_bytes and now - self._looked_ns < LOOK_NS:
            return None
        self._looked_ns = now
        return next((name for name in self.names() if name > place.segment), None)

    def _path(self, segment: int) -> Path:
        if segment != self._named[0]:
            self._named = segment, self._folder / f"{segment:020d}.log"
        return self._named[1]

    def _create(self, number: int) -> Place:
        os.close(os.open(self._path(number), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return Place(number, 0, number)

    def _bytes(self, place: Place, most: int) -> bytes:
        try:
            return os.pread(self._reading.opened(self._path(place.segment)), most, place.offset)
        except FileNotFoundError:
            return b""  # it was dropped: its records are in Postgres


class _File:
    """One open file at a time."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._descriptor = -1

    def opened(self, path: Path, flags: int = 0) -> int:
        """Return the descriptor of a file, opened if it is another than before."""
        if path is not self._path and path != self._path:
            descriptor = os.open(path, os.O_RDWR | flags, 0o600)
            self.close()
            self._path, self._descriptor = path, descriptor
        return self._descriptor

    def close(self) -> None:
        """Close it, if it is open."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._path, self._descriptor = None, -1


def _framed(number: int, payload: bytes) -> bytes:
    checked = _CHECKED.pack(len(payload), number) + payload
    return _BEGUN.pack(MARK, zlib.crc32(checked)) + checked


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _records(data: bytes, place: Place) -> tuple[list[Record], Place]:
    """Return the whole records at the front of what was read, and the place after the last."""
    records: list[Record] = []
    view, position, (segment, offset, number) = memoryview(data), 0, place
    while True:
        found = _whole(view, position)
        if found is None:
            position = _next_whole(data, position, place)
            if position < 0:
                break
            continue
        end, number = found
        payload = data[position + _HEADER.size : end]
        records.append(Record(number, payload, segment, offset + position))
        position = end
    return (records, records[-1].following) if records else ([], place)


def _whole(view: memoryview, position: int) -> tuple[int, int] | None:
    """Return the end and the number of the record at a position, if it is whole."""
    if position + _HEADER.size > len(view):
        return None
    mark, crc, length, number = _HEADER.unpack_from(view, position)
    end = position + _HEADER.size + length
    if mark != MARK or end > len(view) or zlib.crc32(view[position + _BEGUN.size : end]) != crc:
        return None
    return end, number


def _next_whole(data: bytes, position: int, place: Place) -> int:
    """Return where the next whole record behind damage begins, -1 where none does."""
    damaged, view = position, memoryview(data)
    while (position := data.find(MARK, position + 1)) >= 0:
        if _whole(view, position) is not None:
            log.error("log_damaged", segment=place.segment, offset=place.offset + damaged,
                      bytes=position - damaged)  # fmt: skip
            return position
    return -1
