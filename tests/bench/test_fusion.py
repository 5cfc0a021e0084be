"""The table of fusion compares seeds that every way was run on, and says what was chosen."""

import numpy as np
import pytest

from bandits.customers.response import Response
from service.demo.fusion import MEMBERS, Chosen
from service.demo.households import DEPTH, Category
from tests.bench import fusion as bench
from tests.bench.context_value import HIERARCHICAL, Campaign, Record
from tests.bench.fusion import BORROWED, WAYS, Prepared


def records() -> list[Record]:
    """Every way saves its place in the list, and a little by seed."""
    return [
        {
            "category": "CAKE", "seed": seed, "system": HIERARCHICAL, "set": name,
            "decisions": 9, "regret": 100.0 - place - 0.01 * seed * place, "uniform": 200.0,
            "best arm for all": 90.0,
        }
        for seed in range(3)
        for place, name in enumerate((*BORROWED, *WAYS))
    ]  # fmt: skip


@pytest.fixture
def ready() -> Prepared:
    draw = np.random.default_rng(0)
    households = 40
    level, tilt = draw.normal(size=(2, households))
    own = Response(1.0, level, tilt, np.zeros((2, households)), np.eye(2), np.zeros(1))
    rows = np.arange(households)
    truth = Category(
        "CAKE", rows, draw.uniform(0.1, 0.5, (households, len(DEPTH))), np.full(100, 500),
        rows, rows, own, own, own,
    )  # fmt: skip
    groups = dict.fromkeys((*BORROWED, *WAYS), rows % 5)
    campaign = Campaign(truth, rows % 5, {"none": np.zeros((households, 0), np.int64)}, groups)
    tried: dict[tuple[float, float] | str, float] = {"taste": 0.1, (0.0, 3.0): 0.2, (1.0, 3.0): 0.3}
    told = Chosen(3.0, 1.0, 3.0, np.full(len(MEMBERS), 0.25), tried)
    return Prepared([campaign], told)


def test_only_seeds_of_every_way_are_compared() -> None:
    some = [r for r in records() if not (r["seed"] == 2 and r["set"] == "stacked")]
    assert {r["seed"] for r in bench.complete(some)} == {0, 1}


def test_the_table_compares_ways_with_each_other(ready: Prepared) -> None:
    text = bench.table(records(), ready, command="so")
    assert text.startswith("# What fusion is worth\n\n`so`")
    assert "joint network with weight 1 and precision 3" in text
    ahead = (*BORROWED, *WAYS).index("joint network") - (*BORROWED, *WAYS).index("taste")
    assert f"| joint network against taste | {ahead} (" in text
