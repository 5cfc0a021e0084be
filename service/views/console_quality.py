"""What the page of an import shows: its verdict, figures, charts and fields, in plain words."""

from dataclasses import dataclass
from typing import Any

from service import charts as drawn
from service.imports import kinds, quality
from service.imports.quality import Finding, Quality
from service.models import Import
from service.views import console_words as words
from service.views.console_live import Chart, Figure, Table
from service.views.imports import findings_of

NAMES = {
    "price_minor": "Price",
    "unit_cost_minor": "Unit cost",
    "stock": "Stock",
    "quantity": "Quantity",
    "paid_minor": "Paid",
    "discount_minor": "Discount",
}
ROWS = {
    "customers": "Customers",
    "products": "Products",
    "competitor_prices": "Competitors’ prices",
    "interactions": "Interactions",
    "transactions": "Receipt lines",
}
SHOWN_DAYS = 60


@dataclass(frozen=True)
class FieldRow:
    """One field of a file: its meaning, what was missing, and what was done about it."""

    name: str
    told: str
    missing: str
    missing_share: float
    instead: str
    refused: str


def verdict(job: Import) -> dict[str, Any]:
    """Return the sentence that an import comes to, and what follows from it."""
    counted = f"{_rows(job, job.stored)} stored"
    if job.state == "undone":
        sentence = "This import was taken back: what it had added is gone."
        return _said("info", sentence, "The same file can be imported again.")
    if job.state == "failed":
        stays = f"{counted} before that, and they stay. Once the file is mended, import it again:"
        return _said("bad", job.error or "The file could not be read.",
                     f"{stays} what is stored already counts once.")  # fmt: skip
    worst = findings_of(job)[0]
    if worst.kind == "info":
        worst = Finding("good", f"All {words.count(job.rows)} rows were taken, and are plausible.")
    known = f", {words.count(job.known)} were known before" if job.known else ""
    refused = f", {words.count(job.rejected)} refused" if job.rejected else ""
    return _said(worst.kind, worst.text, f"{counted}{known}{refused}.")


def remarks(job: Import) -> list[Finding]:
    """Return what there is to say beyond the verdict."""
    found = findings_of(job) if job.state == "done" else []
    told = found if found and found[0].kind == "info" else found[1:]
    return [Finding(one.kind, one.text[:1].upper() + one.text[1:]) for one in told]


def _said(kind: str, sentence: str, because: str) -> dict[str, Any]:
    return {"kind": kind, "sentence": sentence, "because": because, "notes": ()}


def _rows(job: Import, number: int) -> str:
    return f"{words.count(number)} {ROWS[job.kind].lower()}"


def size(number: int) -> str:
    """Return a file's length as people say it.

    >>> size(900), size(1_250_000)
    ('900 bytes', '1.2 MB')
    """
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} bytes"


def figures(job: Import) -> tuple[Figure, ...]:
    """Return how many rows were read, stored, known and refused."""
    share = job.rejected / job.rows if job.rows else 0.0
    return (
        Figure("Rows read", words.count(job.rows), "of the file so far"
               if job.state in ("waiting", "reading") else "of the file"),
        Figure("Stored", words.count(job.stored), "new, or changed"),
        Figure("Known before", words.count(job.known), "or repeated in the file"),
        Figure("Refused", words.count(job.rejected), f"{words.percent(share, 2)} of the rows"),
    )  # fmt: skip


def fields(job: Import) -> list[FieldRow]:
    """Return the fields of a file with what was missing, imputed and refused."""
    known = {one.name: one for one in kinds.kind(job.kind).fields}
    found = []
    for one in quality.by_field(Quality.of(job.quality)):
        field = known.get(one.name)
        missing = one.missing + one.imputed
        found.append(
            FieldRow(
                name=one.name,
                told=field.told if field else _told(one.name, job),
                missing=words.count(missing) if missing else "none",
                missing_share=missing / job.rows if job.rows else 0.0,
                instead=_instead(one, field),
                refused=words.count(one.refused) if one.refused else "none",
            )
        )
    return found


def _told(name: str, job: Import) -> str:
    if name == "row":
        return "rows that do not fit the header"
    return "attribute of the customer" if job.kind == "customers" else ""


def _instead(counted: quality.FieldCounts, field: kinds.Field | None) -> str:
    if counted.imputed and field is not None:
        return f"taken to be {field.default}"
    return "left empty" if counted.missing else "—"


# ---------------------------------------------------------------- charts


def specs(job: Import, currency: str) -> dict[str, drawn.Spec]:
    """Return the charts of an import by name: rows per day, and every amount's spread."""
    counted, decimals = Quality.of(job.quality), job.settings["decimals"]
    found = {}
    days = quality.filled(counted.days)
    if days:
        gaps = [(gap.first, gap.last) for gap in quality.time_gaps(counted.days)]
        found["days"] = drawn.days(days, gaps, what=ROWS[job.kind])
    for name in kinds.kind(job.kind).measured:
        spread = quality.spread(counted, name)
        if spread is None:
            continue
        scale = 10**-decimals if name.endswith("_minor") else 1
        bins = [
            (one.low * scale, one.high * scale, one.rows)
            for one in quality.histogram(counted, name)
        ]
        found[name] = drawn.amounts(
            bins, fence=spread.fence * scale, title=_axis(name, currency), what=ROWS[job.kind]
        )
    return found


def _axis(name: str, currency: str) -> str:
    unit = (currency if name.endswith("_minor") else "pieces") or "in money"
    return f"{NAMES[name]}, {unit}"


def charts(job: Import, currency: str) -> list[Chart]:
    """Return what stands around the charts of an import, in the order of `specs`."""
    counted = Quality.of(job.quality)
    made = [_days(job, counted)] if counted.days else []
    for name in kinds.kind(job.kind).measured:
        spread = quality.spread(counted, name)
        if spread is not None:
            made.append(_amounts(job, counted, spread, currency))
    return made


def _days(job: Import, counted: Quality) -> Chart:
    days = quality.filled(counted.days)
    gaps = quality.time_gaps(counted.days)
    told = f"From {words.day(days[0][0])} to {words.day(days[-1][0])}"
    empty = sum(1 for _, count in days if not count)
    without = f"{words.count(empty)} of {words.count(len(days))} days have no rows"
    rows = tuple(
        (words.day(day), words.count(count)) for day, count in reversed(days[-SHOWN_DAYS:])
    )
    return Chart(
        name="days",
        title="Rows by day" if len(days) <= drawn.MOST_BARS else "Rows by week",
        reading=f"{told}, every day has rows." if not empty else f"{told}: {without}.",
        caption="The marked stretches are unusually long without any row: a file may be missing."
        if gaps
        else "No stretch is unusually long without a row. Days are UTC.",
        waiting="",
        table=Table(("Day", ROWS[job.kind]), rows),
    )


def _amounts(job: Import, counted: Quality, spread: quality.Amounts, currency: str) -> Chart:
    def told(value: float) -> str:
        return quality.in_units(spread.name, value, job.settings["decimals"])

    unit = f" {currency}" if currency and spread.name.endswith("_minor") else ""
    free = f" Not drawn: {words.count(spread.zeros)} at zero." if spread.zeros else ""
    beyond = (
        f"Beyond the dashed line at {told(spread.fence)}{unit}: {words.count(spread.outliers)}."
        f" They are kept, and count as {kinds.kind(job.kind).outliers}."
        if spread.outliers
        else f"None lies beyond {told(spread.fence)}{unit}, where outliers would begin."
    )
    rows = tuple(
        (f"{told(one.low)} to {told(one.high)}", words.count(one.rows))
        for one in quality.histogram(counted, spread.name)
    )
    return Chart(
        name=spread.name,
        title=f"{NAMES[spread.name]}: how it is spread",
        reading=f"Half are at most {told(spread.median)}{unit}; 98 in 100 lie between"
        f" {told(spread.low)} and {told(spread.high)}.{free}",
        caption=beyond,
        waiting="",
        table=Table((f"{NAMES[spread.name]}{',' if unit else ''}{unit}", ROWS[job.kind]), rows),
    )
