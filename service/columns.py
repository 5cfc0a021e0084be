"""Attributes of many units at once, and what rules and features make of them.

The vector forms of `service.eligibility.holds` and `service.contexts.encode`: whatever is not a
column of numbers is looked at value by value with those very functions, each distinct value once.
So both paths agree by construction, and a column of numbers takes a few operations on arrays.

Letters: ``B`` rows, ``W`` distinct words, ``D`` encoded features.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits.backend import kernels
from bandits.features import ONE
from bandits.types import FEATURE_LIMIT
from service import contexts
from service.definition import CampaignDefinition, Feature, NumberFeature, Rule
from service.eligibility import COMPARE, holds

Flags = NDArray[np.bool_]
MAX_BITS = 62
MOST = 2.0**53
"""Numbers beyond are not used as features; see `service.contexts.fits`."""
TABLE = 1 << 12
"""So many numbers have a table of all of them, rather than being sorted."""


class Numbers(NamedTuple):
    """A column of numbers (B,) float64 and which of them are known (B,); the others are 0.

    ``sound`` says of all at once that they are known, and within the range of a feature.
    """

    values: NDArray[np.float64]
    known: Flags
    sound: bool = False

    def at(self, row: int) -> object:
        """Return the value of a row that is known."""
        return float(self.values[row])


class Words(NamedTuple):
    """A column of anything else: (B,) places in ``words``, -1 where it is not known."""

    codes: NDArray[np.int32]
    words: Sequence[object]

    @property
    def known(self) -> Flags:
        """Which rows are known (B,)."""
        return self.codes >= 0

    def at(self, row: int) -> object:
        """Return the value of a row that is known."""
        return self.words[self.codes[row]]


Column = Numbers | Words
Columns = Mapping[str, Column]
ABSENT = object()
"""Stands for a value that is not known."""


def gathered(rows: Sequence[Mapping[str, object]], wanted: Iterable[str]) -> dict[str, Column]:
    """Return those attributes of rows that are wanted, column by column."""
    return {name: column([row.get(name, ABSENT) for row in rows]) for name in wanted}


def column(values: Sequence[object]) -> Column:
    """Return values of JSON as a column; one that is missing is `ABSENT`."""
    kinds = set(map(type, values))
    if kinds <= {int, float}:
        return numbers(np.array(values, dtype=np.float64))
    if kinds <= {int, float, object}:
        known = np.array([value is not ABSENT for value in values], dtype=bool)
        found = [0.0 if value is ABSENT else value for value in values]
        return Numbers(np.array(found, dtype=np.float64), known)
    # By type too: 1, 1.0 and True are equal, and not the same.
    places: dict[tuple[type, object], int] = {}
    codes = [
        -1 if value is ABSENT else places.setdefault((type(value), value), len(places))
        for value in values
    ]
    return Words(np.array(codes, dtype=np.int32), [word for _, word in places])


def numbers(values: NDArray[np.float64]) -> Numbers:
    """Return numbers (B,) that are all known as a column."""
    # Of NaN this is not true either.
    sound = bool(np.abs(values).max(initial=0.0) <= MOST)
    return Numbers(values, np.ones(len(values), dtype=bool), sound)


def at(columns: Columns, row: int) -> dict[str, object]:
    """Return what is known of one row."""
    return {name: one.at(row) for name, one in columns.items() if one.known[row]}


def fitting(rule: Rule, columns: Columns, rows: int) -> Flags:
    """Tell for which rows a rule holds (B,): `service.eligibility.holds` of each."""
    found = columns.get(rule.attribute)
    if found is None:
        return np.full(rows, holds(rule, {}))
    if isinstance(found, Words):
        # A code of -1 finds the last: what is true where nothing is known.
        each = [holds(rule, {rule.attribute: word}) for word in found.words]
        fit: Flags = np.array([*each, holds(rule, {})], dtype=bool)[found.codes]
        return fit
    if rule.op == "exists":
        return found.known if rule.value else ~found.known
    fit = found.known & _compared(rule, found.values)
    return fit


def _compared(rule: Rule, values: NDArray[np.float64]) -> Flags:
    """Compare a rule's value with numbers; one of another type never fits."""
    wanted = rule.value if isinstance(rule.value, tuple) else (rule.value,)
    numbers = [one for one in wanted if isinstance(one, int | float) and not isinstance(one, bool)]
    if rule.op in COMPARE:
        if not numbers:
            return np.zeros(len(values), dtype=bool)
        return np.asarray(COMPARE[rule.op](values, numbers[0]), dtype=bool)
    equal: Flags = np.isin(values, np.array(numbers, dtype=np.float64))
    return ~equal if rule.op == "!=" else equal


_NOUGHT = np.zeros(1, dtype=np.int64)


class Distinct(NamedTuple):
    """The distinct ones of some numbers, in order.

    Attributes:
        numbers: (K,) they themselves.
        firsts: (K,) where each comes first.
        places: (B,) which of them each number is.
    """

    numbers: NDArray[np.int64]
    firsts: NDArray[np.int64]
    places: NDArray[np.int64]


def distinct(numbers: NDArray[np.int64], below: int) -> Distinct:
    """Return what is distinct of numbers (B,) from 0 to ``below``; quick where that is small."""
    if below == 1 and len(numbers):
        return Distinct(_NOUGHT, _NOUGHT, np.zeros(len(numbers), dtype=np.int64))
    if below > TABLE:
        found, firsts, places = np.unique(numbers, return_index=True, return_inverse=True)
        return Distinct(found, firsts.astype(np.int64), places.astype(np.int64))
    first = np.full(below, -1, dtype=np.int64)
    # Of several that have one place the last is kept.
    first[numbers[::-1]] = np.arange(len(numbers) - 1, -1, -1)
    found = np.flatnonzero(first >= 0)
    place = np.zeros(below, dtype=np.int64)
    place[found] = np.arange(len(found))
    return Distinct(found, first[found], place[numbers])


def signs(definition: CampaignDefinition, columns: Columns, held: Flags) -> Distinct:
    """Number the rows so that those of one number get the same segment, mask and reasons.

    And the same features filled in: whatever is decided or told without their values. ``held``
    (B,) says who is in the holdout; of two numbers that differ in nothing else it has the latter.
    """
    rows = len(held)
    segments = [rule for segment in definition.segments for rule in segment.rules]
    own = [rule for arm in definition.arms for rule in arm.only_if]
    bits = [fitting(rule, columns, rows) for rule in (*segments, *own)]
    # An arm's reason says, too, whether the attribute was known.
    told = {rule.attribute for rule in own} & columns.keys()
    bits += [columns[name].known for name in sorted(told)]
    bits += [
        _fits(feature, columns, rows)
        for feature in definition.features
        if not (isinstance(feature, NumberFeature) and complete(columns.get(feature.key)))
    ]
    return numbered([*bits, held], rows)


def numbered(bits: Iterable[Flags], rows: int) -> Distinct:
    """Number rows (B,) from 0 without a gap: those of the same bits get the same number."""
    found, width = np.zeros(rows, dtype=np.int64), 0
    for bit in bits:
        if bit.all() or not bit.any():
            continue  # it tells nobody from another
        if width == MAX_BITS:
            found = distinct(found, 1 << width).places
            width = int(found.max(initial=0)).bit_length()
        found, width = found << 1 | bit, width + 1
    return distinct(found, 1 << width)


def _fits(feature: Feature, columns: Columns, rows: int) -> Flags:
    """Tell for which rows a feature's own value is used (B,), not its default."""
    found = columns.get(feature.key)
    if found is None:
        return np.zeros(rows, dtype=bool)
    if isinstance(found, Words):
        each = [contexts.fits(feature, word) for word in found.words]
        return np.array([*each, False], dtype=bool)[found.codes]
    if not isinstance(feature, NumberFeature):
        return np.zeros(rows, dtype=bool)
    fit: Flags = found.known & (np.abs(found.values) <= MOST)
    return fit


def complete(column: Column | None) -> bool:
    """Tell whether a column is of numbers that are known of every row, without a look at them."""
    return isinstance(column, Numbers) and column.sound


def encoded(definition: CampaignDefinition, columns: Columns, rows: int) -> NDArray[np.int64]:
    """Return the contexts (B, D): `service.contexts.encode` of each row."""
    width = definition.feature_width
    made, place = np.empty((width, rows)), 0
    centres, scales, out = np.zeros(width), np.ones(width), np.empty((rows, width), np.int64)
    for feature in definition.features:
        found = columns.get(feature.key)
        if isinstance(found, Numbers) and isinstance(feature, NumberFeature):
            made[place] = found.values
            if not found.sound:
                made[place, ~_fits(feature, columns, rows)] = feature.default
            centres[place], scales[place] = feature.centre, feature.scale
        else:
            words: Sequence[object] = found.words if isinstance(found, Words) else ()
            table = [contexts.numbers_of(feature, word) for word in (*words, None)]
            codes = found.codes if isinstance(found, Words) else np.full(rows, -1)
            made[place : place + feature.width] = np.array(table, dtype=np.float64)[codes].T
        place += feature.width
    if width:
        kernels().quantise_columns(made, centres, scales, ONE, FEATURE_LIMIT, out)
    return out
