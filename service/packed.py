"""PostgreSQL's binary forms: the server packs many rows into one string, numpy reads them there.

What has many numbers lies in columns of bytes in the same form, big-endian: as arrays of
PostgreSQL they take twice the room, and the server looks at each number of every row.
"""

import datetime as dt
import functools
from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import ColumnElement, LargeBinary, func

Bytes = ColumnElement[bytes]

EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
"""From when timestamps count microseconds."""
SIMPLEX, CONTEXT = ">f8", ">i4"
"""How the numbers of a decision's simplex and context lie in their columns."""


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
