"""What was told of customers (age, income, region …) as columns that personas can be made of.

Attributes are whatever a shop has imported, so each is looked at: numbers, yes or no, and a few
words are taken where at least half of the customers have them; free text and identifiers are not.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bandits.customers.personas import Trait
from service.traits.history import Floats

KNOWN = 0.5
"""The share of customers that must have an attribute."""
MOST, LEVELS = 4, 6
"""How many attributes are taken, the best known ones, and of how many words one may be."""
LEAST = 0.02
"""The share of customers from which on a word is a column."""
WORDS = {"age": Trait("young", "older"), "household_size": Trait("small households", "families")}
"""Attributes that have better words than "low" and "high"."""


class Columns(NamedTuple):
    """Features (N, D) of customers, with the name and the words of each."""

    values: Floats
    names: tuple[str, ...]
    traits: tuple[Trait, ...]


def columns(told: Sequence[Mapping[str, object] | None]) -> Columns:
    """Return the features that the attributes of N customers make, none where nothing fits."""
    rows = [one or {} for one in told]
    known = Counter(name for one in rows for name, value in one.items() if value is not None)
    found: list[tuple[str, Trait, Floats]] = []
    taken = 0
    for name, number in sorted(known.items(), key=lambda item: (-item[1], item[0])):
        if number < KNOWN * len(rows) or taken == MOST:
            break
        made = _columns(name, [one.get(name) for one in rows])
        taken += bool(made)
        found += made
    values = [column for _, _, column in found]
    return Columns(
        np.stack(values, axis=1) if values else np.zeros((len(rows), 0)),
        tuple(name for name, _, _ in found),
        tuple(trait for _, trait, _ in found),
    )


def _columns(name: str, values: list[object]) -> list[tuple[str, Trait, Floats]]:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return _words(name, values, {True: name.replace("_", " ")}, f"not {name}")
    if kinds <= {int, float}:
        return _number(name, values)
    if kinds == {str}:
        counts = Counter(value for value in values if value is not None)
        if 2 <= len(counts) <= LEVELS:
            label = name.removesuffix("_minor").replace("_", " ")
            often = [word for word, count in counts.items() if count >= LEAST * len(values)]
            return _words(
                name, values, {word: f"{label} {word}" for word in sorted(map(str, often))}
            )
    return []


def _number(name: str, values: list[object]) -> list[tuple[str, Trait, Floats]]:
    """Return a number, cut at its outer hundredths; who has none is like the average."""
    found = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    low, high = np.nanquantile(found, [0.01, 0.99])
    cut = np.clip(np.where(np.isnan(found), np.nanmean(found), found), low, high)
    label = name.removesuffix("_minor").replace("_", " ")
    trait = WORDS.get(name, Trait(f"low {label}", f"high {label}"))
    return [(name, trait, cut)] if high > low else []


def _words(
    name: str, values: list[object], words: Mapping[Any, str], opposite: str = ""
) -> list[tuple[str, Trait, Floats]]:
    """Return a column for each word, as far as customers differ in it."""
    made = []
    for word, text in words.items():
        column = np.array([value == word for value in values], dtype=np.float64)
        if 0 < column.mean() < 1:
            trait = Trait(opposite.replace("_", " ") or f"seldom {text}", text)
            made.append((f"{name}={word}", trait, column))
    return made
