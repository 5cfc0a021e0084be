"""Public holidays of countries and their parts, from the library `holidays` (vacanza).

A country is written as ISO 3166 has it: ``DE``, or ``DE-BY`` for a part with holidays of its own.
The library takes a tenth of a second and 20 MB to load, so it is loaded where a country is named
and nowhere else; what it says of a day is kept, and a decision looks it up.
"""

import datetime as dt
import re
from functools import lru_cache
from typing import Any

SOON_DAYS = 30
"""Holidays further away than this count as this far."""
_WRITTEN = re.compile(r"([A-Z]{2})(?:-([A-Z0-9]{1,3}))?", re.ASCII)


def checked(country: str) -> str:
    """Return a country whose holidays are known; raises ValueError with the remedy."""
    written = _WRITTEN.fullmatch(country)
    if written is None:
        raise ValueError("must be an ISO 3166 code such as US, US-CA or DE-BY")
    code, part = written.groups()
    known = _library().list_supported_countries(include_aliases=False)
    if code not in known:
        raise ValueError(f"no holidays of {code} are known; leave it out, and send them yourself")
    if part is not None and part not in known[code]:
        parts = ", ".join(known[code])
        remedy = f"use {code}, or one of its parts {parts}" if parts else f"use {code}"
        raise ValueError(f"no holidays of {country} are known: {remedy}")
    return country


@lru_cache(maxsize=4_096)
def is_holiday(country: str, day: dt.date) -> bool:
    """Tell whether a day is a public holiday, observed ones included."""
    return day in _year(country, day.year)


@lru_cache(maxsize=4_096)
def days_to_holiday(country: str, day: dt.date) -> int:
    """Return in how many days the next public holiday is: 0 on one, at most `SOON_DAYS`."""
    ahead = (day + dt.timedelta(days) for days in range(SOON_DAYS))
    return next((days for days, one in enumerate(ahead) if is_holiday(country, one)), SOON_DAYS)


@lru_cache(maxsize=1_024)
def _year(country: str, year: int) -> frozenset[dt.date]:
    # The library's own object fills in years as they are asked for, which threads must not share.
    code, _, part = country.partition("-")
    return frozenset(
        _library().country_holidays(code, subdiv=part or None, years=year, expand=False)
    )


def _library() -> Any:
    import holidays

    return holidays
