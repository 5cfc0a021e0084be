"""Segments from recency, frequency and spend: rules over the attributes that Barter stores.

Every household of the panel gets three attributes from its receipts of weeks 1-20:

``recency_days``  days from its last receipt to the end of week 20
``frequency``     number of receipts
``spend_minor``   what it paid, in minor units

The thresholds are round numbers near the panel's quartiles. The first segment whose rules all hold
is taken; whoever fits none is in ``everyone``, here the occasional small shoppers.
"""

from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from service.demo.panel import Panel

CUT_WEEK = 20
Ints = NDArray[np.int64]

SEGMENTS: tuple[dict[str, Any], ...] = (
    {
        "key": "lapsing",
        "name": "Lapsing",
        "rules": [{"attribute": "recency_days", "op": ">", "value": 28}],
    },
    {
        "key": "loyal",
        "name": "Loyal",
        "rules": [
            {"attribute": "frequency", "op": ">=", "value": 20},
            {"attribute": "spend_minor", "op": ">=", "value": 100_000},
        ],
    },
    {
        "key": "regular",
        "name": "Regular",
        "rules": [{"attribute": "frequency", "op": ">=", "value": 20}],
    },
    {
        "key": "big-basket",
        "name": "Big baskets",
        "rules": [{"attribute": "spend_minor", "op": ">=", "value": 40_000}],
    },
)
KEYS = (*(segment["key"] for segment in SEGMENTS), "everyone")
_COMPARE = {">": np.greater, ">=": np.greater_equal, "<": np.less, "<=": np.less_equal}


class Households(NamedTuple):
    """The households seen up to week 20, with their attributes. ``N`` rows, by ascending id.

    Attributes:
        id: (N,) int64, the panel's household number.
        recency_days: (N,) int64.
        frequency: (N,) int64.
        spend_minor: (N,) int64.
    """

    id: Ints
    recency_days: Ints
    frequency: Ints
    spend_minor: Ints

    def attributes(self, row: int) -> dict[str, int]:
        """Return one household's attributes, as an app server sends them."""
        return {
            "recency_days": int(self.recency_days[row]),
            "frequency": int(self.frequency[row]),
            "spend_minor": int(self.spend_minor[row]),
        }


def unit_of(household: int) -> str:
    """Return the unit under which an app server knows a household."""
    return f"household-{household}"


def households(panel: Panel) -> Households:
    """Return the attributes of every household with a receipt in weeks 1-20."""
    before = pc.less_equal(panel.lines.column("week"), CUT_WEEK)
    lines = panel.lines.filter(before)
    receipts = lines.group_by(["household", "basket"]).aggregate(
        [("paid_minor", "sum"), ("bought_at", "max")]
    )
    table = (
        receipts.group_by("household")
        .aggregate([("basket", "count"), ("paid_minor_sum", "sum"), ("bought_at_max", "max")])
        .sort_by("household")
    )
    last = table.column("bought_at_max_max").to_numpy().astype("datetime64[s]")
    day = np.timedelta64(1, "D")
    end = last.max().astype("datetime64[D]") + day
    return Households(
        id=table.column("household").to_numpy(),
        recency_days=((end - last) // day).astype(np.int64),
        frequency=table.column("basket_count").to_numpy(),
        spend_minor=table.column("paid_minor_sum_sum").to_numpy(),
    )


def segment_of(known: Households) -> Ints:
    """Return the (N,) index into ``KEYS`` of every household: the first segment that fits."""
    chosen = np.full(known.id.size, len(SEGMENTS), np.int64)
    for index in reversed(range(len(SEGMENTS))):
        fits = np.ones(known.id.size, np.bool_)
        for rule in SEGMENTS[index]["rules"]:
            value = getattr(known, rule["attribute"])
            fits &= _COMPARE[rule["op"]](value, rule["value"])
        chosen[fits] = index
    return chosen
