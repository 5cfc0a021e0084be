"""A request's attributes as a context: the features that a campaign declares, as integers.

A pure function of the definition and the attributes. Each feature takes one place (a category one
per value), in the order of the definition, quantised once (`bandits.features`) and logged with the
decision: what learns and what replays reads the log, never the attributes again. What is missing
or of another type becomes the feature's default, which the log says too, and nothing here fails a
checkout.
"""

import datetime as dt
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import orjson
from numpy.typing import NDArray

from bandits import features
from bandits.backend import kernels
from bandits.types import FEATURE_LIMIT
from service import holidays
from service.definition import (
    BooleanFeature,
    CampaignDefinition,
    CategoryFeature,
    Feature,
    NumberFeature,
)

Context = NDArray[np.int64]
"""The encoded features (D,)."""
NOTHING: Context = np.empty(0, dtype=np.int64)


class Told(NamedTuple):
    """One feature of a logged context: the value that was used, and the same in words.

    ``value`` is None for a category that was none of its values; ``cut`` says that a number lay
    beyond what a feature can hold, so the nearest that it can was used.
    """

    key: str
    name: str
    value: float | str | bool | None
    words: str
    cut: bool


TRAITS_LAST = dt.timedelta(days=30)
"""Traits that were computed longer ago count as unknown: features take their defaults."""
LEAST_SCALE = 1e-250
"""Numbers over a smaller scale may leave the range of a double, and are looked at one by one."""
MOST = 2.0**40
"""Scales and centres up to here: a number that is within its feature's limit is below 2**53."""
_PLAIN = frozenset((int, float))
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
CLOCK: Mapping[str, Callable[[dt.datetime], object]] = {
    "hour": lambda now: now.hour,
    "weekday": lambda now: DAYS[now.weekday()],
    "weekend": lambda now: now.weekday() >= 5,
    "day_of_month": lambda now: now.day,
    "month": lambda now: now.month,
}
"""Attributes that the clock tells, in the campaign's zone, where nothing else tells them."""
HOLIDAYS: Mapping[str, Callable[[str, dt.date], object]] = {
    "holiday": holidays.is_holiday,
    "days_to_holiday": holidays.days_to_holiday,
}
"""The same of the campaign's country, where it names one."""


def known(
    told: Mapping[str, object], traits: Mapping[str, object], computed_at: dt.datetime | None
) -> bytes:
    """Return what a host keeps of a unit: what was told, what was computed, and when (seconds)."""
    at = None if computed_at is None else round(computed_at.timestamp())
    return orjson.dumps([told, traits, at])


def recalled(kept: bytes, now: dt.datetime) -> dict[str, object]:
    """Return the attributes of a unit from what `known` kept; what was told goes first."""
    held = orjson.loads(kept)
    if isinstance(held, dict):  # kept by a release that knew no traits
        return held
    told, traits, at = held
    fresh = at is not None and now.timestamp() - at < TRAITS_LAST.total_seconds()
    found: dict[str, object] = traits | told if fresh else told
    return found


def clock(definition: CampaignDefinition, now: dt.datetime) -> dict[str, object]:
    """Return what the clock says of those of its attributes that the campaign reads."""
    wanted, days = definition.reads & CLOCK.keys(), definition.reads & HOLIDAYS.keys()
    if not wanted and not days:
        return {}
    here, country = now.astimezone(ZoneInfo(definition.zone)), definition.country
    told = {key: CLOCK[key](here) for key in wanted}
    if country is not None:
        told |= {key: HOLIDAYS[key](country, here.date()) for key in days}
    return told


def encode(definition: CampaignDefinition, attributes: Mapping[str, object]) -> tuple[int, ...]:
    """Return the context: D integers in 2**-12, none where no features are declared."""
    if not definition.features:
        return ()
    found = [
        number
        for feature in definition.features
        for number in numbers_of(feature, attributes.get(feature.key))
    ]
    return tuple(features.quantise(np.array(found, dtype=np.float64)).tolist())


def filled(definition: CampaignDefinition, attributes: Mapping[str, object]) -> list[str]:
    """Return the keys of the features whose default was used, because nothing fit was told."""
    return [
        feature.key
        for feature in definition.features
        if not fits(feature, attributes.get(feature.key))
    ]


class Encoder:
    """`encode` and `filled` of one definition, many times: numbers are encoded all at once."""

    def __init__(self, definition: CampaignDefinition) -> None:
        self._definition, self._others = definition, list[tuple[slice, Feature]]()
        numbers, places, place = list[NumberFeature](), list[int](), 0
        for feature in definition.features:
            if isinstance(feature, NumberFeature):
                numbers.append(feature)
                places.append(place)
            else:
                self._others.append((slice(place, place + feature.width), feature))
            place += feature.width
        self._keys = [feature.key for feature in numbers]
        self._places = np.array(places, dtype=np.intp) if self._others else slice(None)
        self._centres = np.array([feature.centre for feature in numbers])
        self._scales = np.array([feature.scale for feature in numbers])
        # One key alone would come without a list around it.
        self._told = operator.itemgetter(*self._keys) if len(numbers) > 1 else None
        self._sound = all(
            LEAST_SCALE < feature.scale <= MOST and abs(feature.centre) <= MOST
            for feature in numbers
        )

    def __call__(self, attributes: Mapping[str, object]) -> tuple[Context, list[str]]:
        """Return the context (D,) and the keys of the features whose default was used."""
        definition = self._definition
        if not definition.features:
            return NOTHING, []
        told = self._numbers(attributes) if self._sound else None
        if told is None:
            return self._slowly(attributes)
        numbers = np.empty(len(told), dtype=np.int64)
        if len(told):
            greatest = kernels().quantise(told, self._centres, self._scales, features.ONE, numbers)
            if not greatest < FEATURE_LIMIT:  # cut off one by one
                return self._slowly(attributes)
        if not self._others:
            return numbers, []
        missing = list[str]()
        context = np.empty(definition.feature_width, dtype=np.int64)
        context[self._places] = numbers
        for place, feature in self._others:
            value = attributes.get(feature.key)
            context[place] = np.multiply(numbers_of(feature, value), features.ONE)
            if not fits(feature, value):
                missing.append(feature.key)
        return context, missing

    def _slowly(self, attributes: Mapping[str, object]) -> tuple[Context, list[str]]:
        context = np.array(encode(self._definition, attributes), dtype=np.int64)
        return context, filled(self._definition, attributes)

    def _numbers(self, attributes: Mapping[str, object]) -> NDArray[np.float64] | None:
        """Return the values of the features that are numbers, if all were plainly told."""
        try:
            if self._told is not None:
                told = self._told(attributes)
            else:
                told = [attributes[key] for key in self._keys]
            if not _PLAIN.issuperset(map(type, told)):
                return None
            return np.array(told, dtype=np.float64)
        except (KeyError, OverflowError):
            return None


def told(definition: CampaignDefinition, context: Sequence[int]) -> list[Told]:
    """Return a logged context in words, feature by feature."""
    found, place = [], 0
    for feature in definition.features:
        part = context[place : place + feature.width]
        place += feature.width
        if len(part) == feature.width:
            found.append(_told(feature, part))
    return found


def fits(feature: Feature, value: object) -> bool:
    """Tell whether a value is used, and not the feature's default."""
    if isinstance(feature, CategoryFeature):
        return isinstance(value, str)
    if isinstance(feature, BooleanFeature):
        return isinstance(value, bool)
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 2**53


def numbers_of(feature: Feature, value: object) -> list[float]:
    """Return the places of one feature, before they are quantised."""
    if isinstance(feature, CategoryFeature):
        return [float(isinstance(value, str) and value == one) for one in feature.values]
    if isinstance(feature, BooleanFeature):
        return [float(value if isinstance(value, bool) else feature.default)]
    number = float(value) if fits(feature, value) else feature.default  # type: ignore[arg-type]
    return [(number - feature.centre) / feature.scale]


def _told(feature: Feature, part: Sequence[int]) -> Told:
    key, name = feature.key, feature.name
    if isinstance(feature, CategoryFeature):
        value = feature.values[part.index(features.ONE)] if features.ONE in part else None
        return Told(key, name, value, value or "none of its values", cut=False)
    if isinstance(feature, BooleanFeature):
        return Told(key, name, bool(part[0]), "yes" if part[0] else "no", cut=False)
    number = part[0] / features.ONE * feature.scale + feature.centre
    cut = abs(part[0]) >= FEATURE_LIMIT
    beyond = (" or more" if part[0] > 0 else " or less") if cut else ""
    return Told(key, name, number, f"{number:.4g}{beyond}", cut)
