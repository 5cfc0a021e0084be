"""The rows of the campaign form that declare features, and the definition that they stand for.

A category's values are written one per line or with commas between; one that holds a comma, a line
break or blanks at its ends stands in quotes, as JSON writes it.
"""

import contextlib
import json
import math
import re
from typing import Any

from service.definition import BooleanFeature, CategoryFeature, Feature, NumberFeature, as_seen
from service.views.console_reader import Reader, Values, plain

MAX_FEATURES = 64
KINDS = {
    "number": "A number",
    "category": "One of a few words",
    "boolean": "Yes or no",
}
LABELS = {
    "key": "attribute",
    "kind": "kind",
    "name": "name",
    "centre": "typical value",
    "scale": "usual distance from it",
    "default": "if unknown",
    "values": "words",
}
_VALUE = re.compile(r'\s*("(?:[^"\\]|\\.)*")\s*(?=[,\n]|$)|[^,\n]+')


def read(reader: Reader) -> list[dict[str, Any]]:
    """Return the features that the form declares, as documents."""
    found = [_one(reader, f"features-{row}-", row) for row in rows(reader)]
    for part, what in (("name", "name"), ("key", "attribute")):
        _tell_repeated(reader, part, what, [as_seen(feature[part]) for feature in found])
    return found


def rows(reader: Reader) -> range:
    """Return the rows of the form."""
    return range(reader.count("features-count", MAX_FEATURES))


def _one(reader: Reader, at: str, row: int) -> dict[str, Any]:
    key = reader.text(f"{at}key")
    if not key:
        reader.errors[f"{at}key"] = "Name the attribute, for example visits."
    kind = reader.text(f"{at}kind", "number")
    name = reader.text(f"{at}name") or called(key)[:120] or f"Feature {row + 1}"
    feature = {"kind": kind, "key": key, "name": name}
    if kind == "category":
        return feature | {"values": split(reader.text(f"{at}values"))}
    if kind == "boolean":
        return feature | {"default": reader.text(f"{at}unknown") == "yes"}
    numbers = {part: _number(reader, at + part) for part in ("centre", "scale", "default")}
    for part in ("centre", "scale"):
        reader.needed(at + part, numbers[part])
    # Left out, the default is the centre.
    return feature | {part: number for part, number in numbers.items() if number is not None}


def _number(reader: Reader, name: str) -> float | None:
    return reader.number(name, low=-math.inf, high=math.inf)


def _tell_repeated(reader: Reader, part: str, what: str, words: list[str]) -> None:
    for row, word in enumerate(words):
        first = words.index(word)
        # A name that was left empty is made from the attribute, so it says nothing of its own.
        if first < row and reader.text(f"features-{row}-{part}"):
            reader.errors[f"features-{row}-{part}"] = (
                f"Feature {first + 1} has this {what} already: remove or rename one of the two."
            )


def called(key: str) -> str:
    """Return what people may call an attribute.

    >>> called("days_since_visit")
    'Days since visit'
    """
    words = re.sub(r"[_.\s-]+", " ", key).strip()
    return words[:1].upper() + words[1:]


def split(written: str) -> list[str]:
    r"""Return the values that are written one per line, or with commas between.

    >>> split('app, web\n"in store, till"')
    ['app', 'web', 'in store, till']
    """
    found = []
    for match in _VALUE.finditer(written):
        value = match.group().strip()
        if match.group(1) is not None:
            with contextlib.suppress(ValueError):
                value = json.loads(match.group(1))
        if value:
            found.append(value)
    return found


def joined(values: tuple[str, ...]) -> str:
    """Return values as `split` reads them, one per line."""
    return "\n".join(
        json.dumps(value, ensure_ascii=False)
        if value != value.strip() or value.startswith('"') or any(c in value for c in ",\n\r")
        else value
        for value in values
    )


def fill(features: tuple[Feature, ...]) -> Values:
    """Return the form fields of a campaign's features."""
    values: Values = {"features-count": str(len(features))}
    for row, feature in enumerate(features):
        at = f"features-{row}-"
        values |= {f"{at}{part}": getattr(feature, part) for part in ("kind", "key", "name")}
        values |= {f"{at}{part}": written for part, written in _written(feature).items()}
    return values


def _written(feature: Feature) -> dict[str, str]:
    if isinstance(feature, CategoryFeature):
        return {"values": joined(feature.values)}
    if isinstance(feature, BooleanFeature):
        return {"unknown": "yes" if feature.default else "no"}
    default = "" if feature.default == feature.centre else plain(feature.default)
    return {"centre": plain(feature.centre), "scale": plain(feature.scale), "default": default}


def sentence(feature: Feature) -> str:
    """Return a feature in words, for a list of them."""
    name = (
        feature.name if feature.name == called(feature.key) else f"{feature.name} ({feature.key})"
    )
    if isinstance(feature, CategoryFeature):
        return f"{name}: {_or(feature.values)}"
    if isinstance(feature, BooleanFeature):
        return f"{name}: yes or no, {'yes' if feature.default else 'no'} if unknown"
    told = f"{name}: a number, typically {feature.centre:g} ± {feature.scale:g}"
    return told if feature.default == feature.centre else f"{told}, {feature.default:g} if unknown"


def _or(values: tuple[str, ...], most: int = 6) -> str:
    shown = [f"“{value}”" for value in values[:most]]
    if len(values) > most:
        return f"{', '.join(shown)} or one of {len(values) - most} more"
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def example(features: tuple[Feature, ...]) -> dict[str, Any]:
    """Return attributes that a request may send for these features."""
    return {feature.key: _sent(feature) for feature in features}


def _sent(feature: Feature) -> float | str | bool:
    if isinstance(feature, CategoryFeature):
        return feature.values[0]
    if isinstance(feature, NumberFeature):
        return int(feature.centre) if feature.centre.is_integer() else feature.centre
    return True
