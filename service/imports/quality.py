"""What an import learns about its data on the way, in memory that does not grow with the file.

Counts add up chunk by chunk, so what was found before an interruption is not lost. Amounts are
kept as a histogram of equal steps in the logarithm, twenty to a factor of ten: quantiles read from
it are within 6 %.
"""

import datetime as dt
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from service.imports.kinds import Kind

STEPS = 20
FENCE = 3.0
"""Outliers lie so many interquartile ranges of the logarithm above the upper quartile."""
LEAST_SPREAD = 0.5
MOST_DAYS = 20_000
MOST_REASONS = 200


@dataclass
class Quality:
    """Counts of one import: gaps and imputed values by field, refusals by reason, amounts, days.

    ``fields`` are those that the file has columns of; ``unused`` and ``personal`` name the others.
    """

    gaps: dict[str, int] = field(default_factory=dict)
    imputed: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    amounts: dict[str, dict[int, int]] = field(default_factory=dict)
    zeros: dict[str, int] = field(default_factory=dict)
    days: dict[str, int] = field(default_factory=dict)
    fields: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    personal: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "Quality":
        """Return the counts that `to_dict` gave."""
        made = cls(**{name: value for name, value in stored.items() if name != "amounts"})
        for name, bins in stored.get("amounts", {}).items():
            made.amounts[name] = {int(step): count for step, count in bins.items()}
        return made

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        amounts = {
            name: {str(step): count for step, count in sorted(bins.items())}
            for name, bins in self.amounts.items()
        }
        return {**vars(self), "amounts": amounts}

    def refuse(self, field: str, message: str) -> None:
        """Count a refused row under its reason."""
        reason = f"{field} {message}".strip()
        if reason not in self.reasons and len(self.reasons) >= MOST_REASONS:
            reason = "other reasons"
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def measure(self, name: str, values: Iterable[int | None]) -> None:
        """Count a chunk's amounts (minor units, pieces) of one field."""
        known = np.array([value for value in values if value is not None], dtype=np.float64)
        self.zeros[name] = self.zeros.get(name, 0) + int((known <= 0).sum())
        positive = known[known > 0]
        bins = self.amounts.setdefault(name, {})
        steps, counts = np.unique(np.floor(np.log10(positive) * STEPS), return_counts=True)
        for step, count in zip(steps.tolist(), counts.tolist(), strict=True):
            bins[int(step)] = bins.get(int(step), 0) + count

    def see(self, moments: Iterable[dt.datetime]) -> None:
        """Count a chunk's rows by day."""
        for moment in moments:
            day = moment.date().isoformat()
            if day in self.days or len(self.days) < MOST_DAYS:
                self.days[day] = self.days.get(day, 0) + 1


class Amounts(NamedTuple):
    """How one field's amounts are spread; ``fence`` is where outliers begin."""

    name: str
    zeros: int
    median: float
    low: float
    high: float
    fence: float
    outliers: int


def spread(quality: Quality, name: str) -> Amounts | None:
    """Return how a field's amounts are spread, or None where it has none above zero."""
    bins = quality.amounts.get(name, {})
    if not bins:
        return None
    steps = np.array(sorted(bins))
    counts = np.array([bins[int(step)] for step in steps])
    shares = np.cumsum(counts) / counts.sum()

    def quantile(share: float) -> float:
        place = int(np.searchsorted(shares, share - 1e-12))
        return float(steps[min(place, steps.size - 1)] + 0.5) / STEPS

    quartiles = quantile(0.25), quantile(0.75)
    reach = max(quartiles[1] - quartiles[0], LEAST_SPREAD)
    # The fence is a step's upper edge, so that the count beyond it is exact.
    last = math.floor((quartiles[1] + FENCE * reach) * STEPS)
    return Amounts(
        name,
        quality.zeros.get(name, 0),
        10 ** quantile(0.5),
        10 ** quantile(0.01),
        10 ** quantile(0.99),
        10 ** ((last + 1) / STEPS),
        int(counts[steps > last].sum()),
    )


class Bin(NamedTuple):
    """So many rows with a value from ``low`` on and below ``high``."""

    low: float
    high: float
    rows: int


def histogram(quality: Quality, name: str) -> list[Bin]:
    """Return how often a field's amounts above zero lie in each step, the lowest step first."""
    return [
        Bin(10 ** (step / STEPS), 10 ** ((step + 1) / STEPS), count)
        for step, count in sorted(quality.amounts.get(name, {}).items())
    ]


class FieldCounts(NamedTuple):
    """One field of a file: rows without it, rows that got its default, rows refused for it."""

    name: str
    missing: int
    imputed: int
    refused: int


def by_field(quality: Quality) -> list[FieldCounts]:
    """Return the counts of every field that the file has, or that rows were refused for."""
    refused: dict[str, int] = {}
    for reason, count in quality.reasons.items():
        name = reason.partition(" ")[0]
        refused[name] = refused.get(name, 0) + count
    names = dict.fromkeys((*quality.fields, *quality.gaps, *quality.imputed, *refused))
    return [
        FieldCounts(
            name, quality.gaps.get(name, 0), quality.imputed.get(name, 0), refused.get(name, 0)
        )
        for name in names
    ]


class Gap(NamedTuple):
    """Days in a row on which nothing happened, both included."""

    first: dt.date
    last: dt.date

    @property
    def days(self) -> int:
        """How many days that are."""
        return (self.last - self.first).days + 1


def time_gaps(days: Mapping[str, int], *, most: int = 5) -> list[Gap]:
    """Return the longest runs of empty days where nearly every day has rows, longest first.

    Where fewer than nine days in ten have rows, an empty day says nothing: then only runs that are
    five times as long as usual count.
    """
    seen = sorted(dt.date.fromisoformat(day) for day in days)
    if len(seen) < 3:
        return []
    one = dt.timedelta(days=1)
    gaps = [
        Gap(before + one, after - one)
        for before, after in itertools.pairwise(seen)
        if after - before > one
    ]
    covered = len(seen) / ((seen[-1] - seen[0]).days + 1)
    usual = float(np.median([gap.days for gap in gaps])) if gaps else 0.0
    least = 1 if covered >= 0.9 else max(5 * usual, 7)
    return sorted((gap for gap in gaps if gap.days >= least), key=lambda gap: -gap.days)[:most]


def filled(days: Mapping[str, int]) -> list[tuple[dt.date, int]]:
    """Return the rows of every day from the first to the last, those without any included."""
    if not days:
        return []
    first, last = (dt.date.fromisoformat(day) for day in (min(days), max(days)))
    every = (first + dt.timedelta(days=place) for place in range((last - first).days + 1))
    return [(day, days.get(day.isoformat(), 0)) for day in every]


class Finding(NamedTuple):
    """One sentence about the data: ``kind`` is good, info, warn or bad."""

    kind: str
    text: str


def findings(
    quality: Quality, *, rows: int, stored: int, known: int, rejected: int,
    kind: Kind, decimals: int = 2,
) -> list[Finding]:  # fmt: skip
    """Return what there is to say about an import, the worst first.

    ``decimals`` are the digits of the currency.
    """
    found = [
        *_refused(quality, rows, rejected),
        *_outliers(quality, kind, decimals),
        *_days(quality),
        *_missing(quality, rows),
        *_columns(quality),
    ]
    if known:
        found.append(Finding("info", f"{known:,} rows {kind.known}."))
    if not found:
        found.append(Finding("good", f"All {stored:,} rows are complete and plausible."))
    return sorted(found, key=lambda one: ("bad", "warn", "info", "good").index(one.kind))


def _refused(quality: Quality, rows: int, rejected: int) -> list[Finding]:
    if not rejected:
        return []
    worst = sorted(quality.reasons.items(), key=lambda item: -item[1])[:5]
    reasons = "; ".join(f"{reason} ({count:,})" for reason, count in worst)
    kind = "bad" if rejected * 10 > rows else "warn"
    return [Finding(kind, f"{rejected:,} of {rows:,} rows were refused: {reasons}.")]


def _outliers(quality: Quality, kind: Kind, decimals: int) -> list[Finding]:
    found = []
    for name in kind.measured:
        amounts = spread(quality, name)
        if amounts is None or not amounts.outliers:
            continue
        values = "value" if amounts.outliers == 1 else "values"
        fence, median = (
            in_units(name, value, decimals) for value in (amounts.fence, amounts.median)
        )
        text = (
            f"{amounts.outliers:,} {values} of {name.removesuffix('_minor')} above {fence}, far"
            f" from the rest (median {median}). They are kept as they are, and count as"
            f" {kind.outliers}."
        )
        found.append(Finding("warn", text))
    return found


def in_units(name: str, value: float, decimals: int) -> str:
    """Return a column's amount as people write it: minor units as money, pieces as they are.

    >>> in_units("paid_minor", 129_900, 2), in_units("stock", 1200, 2)
    ('1,299.00', '1,200')
    """
    if name.endswith("_minor"):
        return f"{value / 10**decimals:,.{decimals}f}"
    return f"{value:,.0f}"


def _days(quality: Quality) -> list[Finding]:
    gaps = time_gaps(quality.days)
    if not gaps:
        return []
    told = ", ".join(
        f"{gap.first} to {gap.last} ({gap.days} days)" if gap.days > 1 else f"{gap.first}"
        for gap in gaps
    )
    return [Finding("warn", f"Nothing happened on: {told}. Is a file missing?")]


def _missing(quality: Quality, rows: int) -> list[Finding]:
    found = [
        Finding("info", f"{name} is missing in {count:,} rows ({count / max(rows, 1):.1%}).")
        for name, count in sorted(quality.gaps.items(), key=lambda item: -item[1])[:8]
    ]
    found += [
        Finding("info", f"{name} was missing in {count:,} rows and was taken to be its default.")
        for name, count in sorted(quality.imputed.items())
    ]
    return found


def _columns(quality: Quality) -> list[Finding]:
    found = []
    if quality.personal:
        found.append(Finding("info", "Left out, because they may name a person: "
                     + ", ".join(quality.personal[:10])
                     + ". Rename a column that does not."))  # fmt: skip
    if quality.unused:
        more = f" and {len(quality.unused) - 10} more" if len(quality.unused) > 10 else ""
        found.append(Finding("info", f"Not used: {', '.join(quality.unused[:10])}{more}."))
    return found
