"""Attributes as contexts: the encoder that works on many at once says what one by one says."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service import contexts
from tests.loop import definition

FEATURES: list[dict[str, Any]] = [
    {"kind": "number", "key": "visits", "name": "Visits", "centre": 10, "scale": 5},
    {"kind": "category", "key": "channel", "name": "Channel", "values": ["app", "web"]},
    {"kind": "number", "key": "spend", "name": "Spend", "scale": 0.3, "default": 1.5},
    {"kind": "boolean", "key": "member", "name": "Member", "default": True},
]
TINY: dict[str, Any] = {"kind": "number", "key": "tiny", "name": "Tiny", "scale": 1e-300}
numbers = (
    st.floats(allow_nan=True, allow_infinity=True)
    | st.integers(-(2**54), 2**54)
    | st.sampled_from([2**53, 2**53 + 1, -(2**53) - 1, 10**400])
)
attributes = st.fixed_dictionaries(
    {},
    optional={
        "visits": numbers | st.booleans() | st.text(max_size=3),
        "channel": st.sampled_from(["app", "web", "shop"]) | numbers,
        "spend": numbers,
        "member": st.booleans() | numbers,
        "tiny": st.floats(-1, 1),
    },
)


@settings(deadline=None, max_examples=300)
@given(attributes, st.sampled_from([FEATURES, FEATURES[::2], FEATURES[:1], [TINY], []]))
def test_the_encoder_says_what_one_by_one_says(
    told: dict[str, object], features: list[dict[str, Any]]
) -> None:
    made = definition(features=features)
    context, missing = contexts.Encoder(made)(told)
    assert context.dtype == np.int64
    assert tuple(context.tolist()) == contexts.encode(made, told)
    assert missing == contexts.filled(made, told)
