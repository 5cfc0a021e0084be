"""A state as one file: self-describing, versioned, checksummed, and free of pickle.

Layout: magic, length of the header (4 bytes, little endian), header (JSON), the arrays one after
another in C order and little endian, SHA-256 of all that. The header names the policy and the
format, and gives every array's name, shape and type, so that a reader in another language needs
no more than this paragraph. Ledgers of the first release (magic ``BLEDGER1``) are still read.

>>> import numpy as np
>>> from bandits import ledger
>>> state = ledger.zeros(segments=1, arms=2)
>>> data = to_bytes(state, policy="thompson_beta")
>>> describe(data)["policy"], digest(from_bytes(data, like=state)) == digest(state)
('thompson_beta', True)
>>> from_bytes(data[:-1], like=state)
Traceback (most recent call last):
ValueError: artefact is damaged: its checksum differs
"""

import hashlib
import json
import struct
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

#: What this release writes; it reads this and what is listed in ``_READABLE``.
FORMAT = 2

_MAGIC = b"BARTER\r\n"
_FIRST = b"BLEDGER1"
_READABLE = (1, 2)
_CHECKSUM = 32
_TYPES = ("<i8", "<i4", "<f8", "<f4", "|b1")

S = TypeVar("S", bound=tuple[Any, ...])


def to_bytes(state: Any, *, policy: str) -> bytes:
    """The file of ``state``, a named tuple of arrays (int64, int32, float64, float32 or bool).

    Raises:
        TypeError: a field is not an array of one of these types.
    """
    fields = [
        ({"name": name, "shape": list(array.shape), "type": array.dtype.str}, array.tobytes())
        for name, array in _arrays(state).items()
    ]
    return _sealed(policy, fields)


def from_bytes(data: bytes, *, like: S) -> S:
    """The state that :func:`to_bytes` wrote.

    Args:
        data: the file.
        like: a state with the fields, types and shapes that are expected (a policy's ``init()``);
            a field of ``like`` with a dimension of 0 there may have any size in it.

    Raises:
        ValueError: not an artefact, damaged, of a format that this release cannot read, or of
            another policy's fields or another campaign's shapes; the message says which.
    """
    header, offset = _header(data)
    wanted, found = _arrays(like), {entry["name"]: entry for entry in header["fields"]}
    if list(found) != list(wanted):
        raise ValueError(f"artefact holds {list(found)}, not {list(wanted)}")
    fields = []
    for name, array in wanted.items():
        shape, kind = tuple(found[name]["shape"]), found[name]["type"]
        if kind not in _TYPES or kind != array.dtype.str:
            raise ValueError(f"artefact field {name} has type {kind}, not {array.dtype.str}")
        if not _fits(shape, array.shape):
            raise ValueError(f"artefact field {name} has shape {shape}, not {array.shape}")
        count = int(np.prod(shape, dtype=np.int64))
        values = np.frombuffer(data, dtype=kind, count=count, offset=offset)
        fields.append(values.reshape(shape).copy())
        offset += count * np.dtype(kind).itemsize
    return type(like)(*fields)


def without(data: bytes, base: bytes) -> bytes:
    """The file less the fields that are the same in the file ``base``; both are of one policy.

    What two states of a policy share (a network, trees) needs to be kept once. The header names
    ``base`` by its checksum, and ``completed(without(data, base), base) == data``.

    Raises:
        ValueError: as for :func:`from_bytes`.
    """
    theirs, mine = _fields(base), _fields(data)
    own = [field for name, field in mine.items() if theirs.get(name) != field]
    return _sealed(describe(data)["policy"], own, base=base[-_CHECKSUM:].hex())


def completed(data: bytes, base: bytes) -> bytes:
    """The file with what :func:`without` left out; ``data`` itself where it left out nothing.

    Raises:
        ValueError: it was made from another base; else as for :func:`from_bytes`.
    """
    header = describe(data)
    if "base" not in header:
        return data
    if header["base"] != base[-_CHECKSUM:].hex():
        raise ValueError("artefact leaves out what another base has, not this one")
    theirs, mine = _fields(base), _fields(data)
    return _sealed(header["policy"], [mine.get(name, theirs[name]) for name in theirs])


def describe(data: bytes) -> dict[str, Any]:
    """The header: format, policy, and the fields with name, shape and type.

    Raises:
        ValueError: as for :func:`from_bytes`.
    """
    return _header(data)[0]


def digest(state: Any) -> str:
    """SHA-256 (hex) over field names, shapes and little-endian bytes."""
    sha = hashlib.sha256()
    for name, array in _arrays(state).items():
        kind = "" if array.dtype == np.int64 else array.dtype.str
        sha.update(f"{name}:{'x'.join(map(str, array.shape))}{kind};".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


#: An entry of the header, and the bytes of its array.
Field = tuple[dict[str, Any], bytes]


def _sealed(policy: str | None, fields: Sequence[Field], *, base: str | None = None) -> bytes:
    """The file of some fields, of all or of those that are not as in a base."""
    about: dict[str, Any] = {"format": FORMAT, "policy": policy} | ({"base": base} if base else {})
    about["fields"] = [entry for entry, _ in fields]
    header = json.dumps(about, separators=(",", ":")).encode()
    start = [_MAGIC, struct.pack("<I", len(header)), header]
    body = b"".join([*start, *(raw for _, raw in fields)])
    return body + hashlib.sha256(body).digest()


def _fields(data: bytes) -> dict[str, Field]:
    """The fields of a file, by name."""
    header, offset = _header(data)
    fields = {}
    for entry in header["fields"]:
        count = int(np.prod(entry["shape"], dtype=np.int64))
        size = count * np.dtype(entry["type"]).itemsize
        fields[entry["name"]] = (entry, data[offset : offset + size])
        offset += size
    return fields


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    """The header and where the arrays begin."""
    magic = data[: len(_MAGIC)]
    if magic not in (_MAGIC, _FIRST):
        raise ValueError("not an artefact: it does not begin as one")
    body, checksum = data[:-_CHECKSUM], data[-_CHECKSUM:]
    if hashlib.sha256(body).digest() != checksum:
        raise ValueError("artefact is damaged: its checksum differs")
    start = len(magic) + 4
    (length,) = struct.unpack("<I", body[len(magic) : start])
    header: dict[str, Any] = json.loads(body[start : start + length])
    if magic == _FIRST:
        header = {
            "format": 1,
            "policy": None,
            "fields": [
                {"name": name, "shape": header["shape"], "type": header["type"]}
                for name in header["fields"]
            ],
        }
    if header["format"] not in _READABLE:
        raise ValueError(
            f"artefact has format {header['format']}; this release reads {_READABLE}: "
            "read it with the release that wrote it, or rebuild the state from the log"
        )
    return header, start + length


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    if len(shape) != len(wanted):
        return False
    return all(w in (0, s) for s, w in zip(shape, wanted, strict=True))


def _arrays(state: Any) -> dict[str, NDArray[Any]]:
    arrays = {}
    for name, value in zip(state._fields, state, strict=True):
        array = np.asarray(value)
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(
            array.shape
        )
        if array.dtype.str not in _TYPES:
            raise TypeError(f"field {name} must be an array of numbers, not {array.dtype}")
        arrays[name] = array
    return arrays
