"""A request's attributes as a context: the features that a campaign declares, as integers.

A pure function of the definition and the attributes. Each feature takes one place (a category one
per value), in the order of the definition, quantised once (`bandits.features`) and logged with the
decision: what learns and what replays reads the log, never the attributes again. What is missing
or of another type becomes the feature's default, and nothing here fails a checkout.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from bandits import features
from service.definition import BooleanFeature, CampaignDefinition, CategoryFeature, Feature


def encode(definition: CampaignDefinition, attributes: Mapping[str, object]) -> tuple[int, ...]:
    """Return the context: D integers in 2**-12, none where no features are declared."""
    if not definition.features:
        return ()
    found = [
        number
        for feature in definition.features
        for number in _numbers(feature, attributes.get(feature.key))
    ]
    return tuple(features.quantise(np.array(found, dtype=np.float64)).tolist())


def told(definition: CampaignDefinition, context: Sequence[int]) -> list[tuple[str, str]]:
    """Return a logged context in words: each feature's name, and the value that was used."""
    words, place = [], 0
    for feature in definition.features:
        part = [one / features.ONE for one in context[place : place + feature.width]]
        place += feature.width
        if len(part) == feature.width:
            words.append((feature.name, _words(feature, part)))
    return words


def _numbers(feature: Feature, value: object) -> list[float]:
    if isinstance(feature, CategoryFeature):
        return [float(isinstance(value, str) and value == one) for one in feature.values]
    if isinstance(feature, BooleanFeature):
        return [float(value if isinstance(value, bool) else feature.default)]
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 2**53
    number = float(value) if known else feature.default  # type: ignore[arg-type]
    return [(number - feature.centre) / feature.scale]


def _words(feature: Feature, part: list[float]) -> str:
    if isinstance(feature, CategoryFeature):
        return feature.values[part.index(1.0)] if 1.0 in part else "none of its values"
    if isinstance(feature, BooleanFeature):
        return "yes" if part[0] else "no"
    return f"{part[0] * feature.scale + feature.centre:.4g}"
