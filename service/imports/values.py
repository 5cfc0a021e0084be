"""One value of an import: text or a typed value in, what the table holds out, or why not.

Every reader takes a value that is not missing and returns what is stored, or raises `Unreadable`
with a message that follows the field's name and says what would be right.
"""

import datetime as dt
import math
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo

Reader = Callable[[Any], Any]
TEXT_LENGTH = 200
LARGEST_MINOR = 10**15
FIRST_YEAR = 1970
_CURRENCY = str.maketrans("", "", "€$£¥\u00a0 '")
_DECIMAL_COMMA = re.compile(r"-?\d+,\d{1,2}|-?\d{1,3}(\.\d{3})+,\d{1,2}")
_THOUSANDS = re.compile(r"-?\d{1,3}(,\d{3})+\.\d{1,2}")
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d{1,3})?")
_CANONICAL = re.compile(r"-?(0|[1-9]\d{0,14})(\.\d{1,12})?")
_MISSING = frozenset(("null", "none", "nan", "n/a", "na", "nil", "\\n", "-", "?"))


class Unreadable(ValueError):
    """A value that a field cannot take; the message follows the field's name."""


def missing(value: Any, *, text: bool) -> bool:
    """Tell whether a cell says nothing; in fields that hold no text, "NA" and the like do not."""
    if value is None or value == "":
        return True
    if isinstance(value, str):
        told = value.strip()
        return not told or (not text and told.lower() in _MISSING)
    return isinstance(value, float) and math.isnan(value)


def text(value: Any) -> str:
    """Read an identifier or a name: 1 to 200 characters of text, or a whole number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bytes):
        raise Unreadable("holds bytes; write it as text")
    found = str(value).strip()
    if len(found) > TEXT_LENGTH:
        raise Unreadable(f"has {len(found)} characters; at most {TEXT_LENGTH} fit")
    if not found.isprintable():
        raise Unreadable("holds a character that is no text")
    return found


def one_of(*allowed: str) -> Reader:
    """Return a reader of one word out of a list, in any case."""

    def read(value: Any) -> str:
        found = str(value).strip().lower()
        if found not in allowed:
            raise Unreadable(f"must be one of {', '.join(allowed)}")
        return found

    return read


def whole(low: int, high: int) -> Reader:
    """Return a reader of whole numbers from ``low`` to ``high``."""

    def read(value: Any) -> int:
        if isinstance(value, str) and value.isdecimal() and len(value) < 18:
            number: int | Decimal = int(value)
        else:
            number = decimal(value)
        if number != int(number):
            raise Unreadable("must be a whole number")
        if not low <= number <= high:
            raise Unreadable(f"must be from {low:,} to {high:,}")
        return int(number)

    return read


def number(low: float, high: float) -> Reader:
    """Return a reader of numbers from ``low`` to ``high``."""

    def read(value: Any) -> float:
        found = float(decimal(value))
        if not low <= found <= high:
            raise Unreadable(f"must be from {low:g} to {high:g}")
        return found

    return read


def money(decimals: int, *, remedy: str = "") -> Reader:
    """Return a reader of amounts in major units, such as 12.99, as whole minor units.

    Takes a decimal point or comma, thousands separators beside it and a currency sign. More digits
    than the currency has are rounded half to even. ``remedy`` is what a negative amount is told.
    """
    scale = 10**decimals

    def read(value: Any) -> int:
        if isinstance(value, str):
            major, _, rest = value.partition(".")
            if major.isdecimal() and len(rest) <= decimals and (not rest or rest.isdecimal()):
                return _minor(int(major) * scale + int((rest or "0").ljust(decimals, "0") or "0"))
        found = decimal(value)
        if found < 0:
            raise Unreadable("is negative" + (f"; {remedy}" if remedy else ""))
        return _minor(int((found * scale).to_integral_value()))

    return read


def minor(value: Any) -> int:
    """Read an amount in whole minor units, such as 1299."""
    found = decimal(value)
    if found < 0:
        raise Unreadable("is negative")
    if found != found.to_integral_value():
        raise Unreadable("must be a whole number of minor units, such as 1299 for 12.99")
    return _minor(int(found))


def moment(zone: str, now: dt.datetime) -> Reader:
    """Return a reader of times: ISO 8601, a date, or seconds since 1970.

    Times without a zone are in ``zone``. Refuses what lies before 1970, or more than a day after
    ``now``.
    """
    place = ZoneInfo(zone)
    latest = now + dt.timedelta(days=1)
    first = dt.datetime(FIRST_YEAR, 1, 1, tzinfo=dt.UTC)

    def read(value: Any) -> dt.datetime:
        found = _time(value)
        if found.tzinfo is None:
            found = found.replace(tzinfo=place)
        if not first <= found <= latest:
            raise Unreadable("lies in the future" if found > latest else f"is before {FIRST_YEAR}")
        return found.astimezone(dt.UTC)

    return read


def attribute(value: Any) -> str | int | float | bool:
    """Read a customer's attribute: true or false, a number in its usual form, or text.

    What only looks like a number, such as a postcode with a leading zero, stays text.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float | Decimal):
        found = float(value)
        if not math.isfinite(found) or abs(found) > 2**53:
            raise Unreadable("is too large a number")
        return int(found) if found.is_integer() else found
    told = text(value.isoformat() if isinstance(value, dt.date) else value)
    if told.lower() in ("true", "false"):
        return told.lower() == "true"
    if _CANONICAL.fullmatch(told):
        return float(told) if "." in told else int(told)
    return told


def decimal(value: Any) -> Decimal:
    """Read a number in any of the forms that people export."""
    if isinstance(value, bool):
        raise Unreadable("must be a number")
    if isinstance(value, int | Decimal):
        found = Decimal(value)
    elif isinstance(value, float):
        # What was meant is what is shown: 0.1, not its binary neighbour.
        found = Decimal(repr(value))
    else:
        found = _decimal(str(value).translate(_CURRENCY))
    if not found.is_finite() or abs(found) > LARGEST_MINOR:
        raise Unreadable("is too large a number")
    return found


def _decimal(told: str) -> Decimal:
    if _DECIMAL_COMMA.fullmatch(told):
        told = told.replace(".", "").replace(",", ".")
    elif _THOUSANDS.fullmatch(told):
        told = told.replace(",", "")
    elif not _NUMBER.fullmatch(told):
        hint = "; write 1299 or 1299.00, not 1,299" if "," in told else ""
        raise Unreadable(f"must be a number{hint}")
    try:
        return Decimal(told)
    except InvalidOperation:
        raise Unreadable("must be a number") from None


def _minor(found: int) -> int:
    if found > LARGEST_MINOR:
        raise Unreadable("is too large an amount")
    return found


def _time(value: Any) -> dt.datetime:
    if isinstance(value, dt.datetime):
        return value
    if isinstance(value, dt.date):
        return dt.datetime(value.year, value.month, value.day)
    told = str(value).strip()
    try:
        if told.isascii() and told.isdigit() and len(told) in (10, 13):
            return dt.datetime.fromtimestamp(int(told) / (1 if len(told) == 10 else 1000), dt.UTC)
        return dt.datetime.fromisoformat(told)
    except (ValueError, OverflowError, OSError):
        raise Unreadable("must be a time such as 2026-11-24 or 2026-11-24T18:30:00+01:00") from None
