"""What a browser posted, read field by field, with one message for each that cannot be read."""

import datetime as dt
import decimal
import re
import zoneinfo
from collections.abc import Mapping
from typing import Any

from service.definition import MAX_MINOR

Values = dict[str, str]

UNITS = {"seconds": 1, "minutes": 60, "hours": 3_600, "days": 86_400}


class Reader:
    """Reads typed values out of the form and keeps a message for each that cannot be read."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = values
        self.errors: dict[str, str] = {}

    def text(self, name: str, default: str = "") -> str:
        """Return the field without surrounding blanks."""
        return self.values.get(name, default).strip()

    def count(self, name: str, limit: int) -> int:
        """Return how many rows a repeated part has."""
        written = self.text(name, "0")
        return min(int(written), limit) if written.isascii() and written.isdigit() else 0

    def number(self, name: str, *, low: float, high: float, unit: str = "") -> float | None:
        """Return a number between two bounds (inclusive), or None if it is empty or wrong."""
        written = self.text(name).replace("\u00a0", "").replace(" ", "").removesuffix("%")
        if not written:
            return None
        value = _decimal(written)
        if value is None:
            self.errors[name] = "Write a plain number such as 12.50, without thousands separators."
        elif not low <= value <= high:
            tail = f" {unit}" if unit else ""
            self.errors[name] = f"Must lie between {low:g} and {high:,.10g}{tail}."
        return None if name in self.errors else value

    def needed(self, name: str, value: Any) -> Any:
        """Record that a field is missing, unless something else is already wrong with it."""
        if value is None and name not in self.errors:
            self.errors[name] = "Fill this in."
        return value

    def money(self, name: str, *, least: int = 0) -> int | None:
        """Return an amount in minor units, written in major units."""
        value = self.number(name, low=least / 100, high=MAX_MINOR / 100)
        return None if value is None else round(value * 100)

    def share(self, name: str, *, high: float = 100, least: float = 0) -> float | None:
        """Return a share of one, written in per cent."""
        value = self.number(name, low=least, high=high, unit="%")
        return None if value is None else round(value / 100, 12)

    def seconds(self, name: str, *, least: int) -> int | None:
        """Return a duration in seconds, written as a number and a unit."""
        unit = UNITS.get(self.text(f"{name}-unit", "days"), 86_400)
        most = 400 * 86_400 / unit
        value = self.number(name, low=0, high=most)
        if value is not None and round(value * unit) < least:
            self.errors[name] = "Must be longer than nothing."
        return None if value is None else round(value * unit)

    def moment(self, name: str, zone: str) -> str | None:
        """Return a local time of a zone as RFC 3339 UTC."""
        written = self.text(name)
        if not written:
            return None
        try:
            local = dt.datetime.fromisoformat(written)
        except ValueError:
            self.errors[name] = "Write a date and a time, for example 2026-12-01T09:00."
            return None
        aware = local.replace(tzinfo=zone_of(zone))
        utc = aware.astimezone(dt.UTC)
        if utc.astimezone(aware.tzinfo).replace(tzinfo=None) != local:
            self.errors[name] = f"The clocks of {zone} skip this time that night; choose another."
            return None
        return utc.isoformat()


def _decimal(written: str) -> float | None:
    if re.fullmatch(r"\d+,\d{1,2}", written):
        written = written.replace(",", ".")
    return float(written) if re.fullmatch(r"-?(\d{1,16}(\.\d*)?|\.\d+)", written) else None


def zone_of(name: str) -> dt.tzinfo:
    """Return a time zone; UTC if this host does not know it."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        return dt.UTC


def plain(value: Any) -> str:
    """Return a number exactly, without an exponent.

    >>> plain(0.00001), plain(12.5), plain(5.0)
    ('0.00001', '12.5', '5')
    """
    written = format(decimal.Decimal(repr(value)), "f")
    return written.rstrip("0").rstrip(".") if "." in written else written
