"""PostgreSQL's binary forms: the server packs many rows into one string, numpy reads them there."""

import datetime as dt
import functools
from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import ColumnElement, LargeBinary, func

Bytes = ColumnElement[bytes]

EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
"""From when timestamps count microseconds."""
ARRAY_HEADER_BYTES, EMPTY_ARRAY_BYTES = 20, 12
"""An array of one dimension: five words of header, then (length, value) each; an empty one has
three words and nothing more."""


def sent(function: str, value: Any) -> Bytes:
    """Return a value in the binary form that a function of PostgreSQL gives it."""
    return cast(Bytes, getattr(func, function)(value, type_=LargeBinary))


def joined(parts: Iterable[Bytes]) -> Bytes:
    """Return parts of a row, one after the other."""
    return functools.reduce(lambda left, right: left.op("||")(right), parts)


def moment(microseconds: int) -> dt.datetime:
    """Return a packed time as a datetime."""
    return EPOCH + dt.timedelta(microseconds=int(microseconds))


def microseconds(time: dt.datetime) -> int:
    """Return a datetime as a packed time."""
    return (time - EPOCH) // dt.timedelta(microseconds=1)
