"""Segment rules: what fits, and that what is absent or of another type never does."""

from typing import Any

import pytest

from service.definition import Rule
from service.eligibility import holds, segment_of
from tests.loop import definition


@pytest.mark.parametrize(
    ("rule", "attributes", "fits"),
    [
        ({"op": "<=", "value": 14}, {"a": 14}, True),
        ({"op": "<", "value": 14}, {"a": 14}, False),
        ({"op": ">", "value": 1.5}, {"a": 2}, True),
        ({"op": ">=", "value": 3}, {"a": "4"}, False),
        ({"op": ">=", "value": 1}, {"a": True}, False),
        ({"op": "==", "value": 1}, {"a": True}, False),
        ({"op": "==", "value": "gold"}, {"a": "gold"}, True),
        ({"op": "!=", "value": "gold"}, {"a": "silver"}, True),
        ({"op": "!=", "value": "gold"}, {}, False),
        ({"op": "in", "value": ["es", "fr"]}, {"a": "fr"}, True),
        ({"op": "in", "value": [1, 2]}, {"a": True}, False),
        ({"op": "exists", "value": True}, {"a": 0}, True),
        ({"op": "exists", "value": False}, {}, True),
        ({"op": "exists", "value": False}, {"a": 0}, False),
    ],
)
def test_a_rule_fits_or_not(rule: dict[str, Any], attributes: dict[str, Any], fits: bool) -> None:
    assert holds(Rule.model_validate({"attribute": "a"} | rule), attributes) is fits


def test_the_first_segment_that_fits_is_taken() -> None:
    def segment(key: str, most: int) -> dict[str, Any]:
        rules = [{"attribute": "days", "op": "<=", "value": most}]
        return {"key": key, "name": key, "rules": rules}

    plan = definition(segments=[segment("week", 7), segment("month", 30)])
    taken = [plan.segment_keys[segment_of(plan, {"days": days})] for days in (3, 20, 90)]
    assert taken == ["week", "month", "everyone"]
    assert segment_of(plan, {}) == 2
