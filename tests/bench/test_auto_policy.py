"""The study of ``auto``: pairs of runs differ by the choosing alone."""

import numpy as np

from tests.bench import auto_policy as bench


def test_until_a_change_auto_is_the_run_that_stays() -> None:
    usual = bench.PLAN.choices[0]
    stays, auto = (
        bench.run("types", 3, blocks=3, first=usual, choosing=choosing)
        for choosing in (False, True)
    )
    assert auto.changes == []
    np.testing.assert_array_equal(auto.earned, stays.earned)
    rich = bench.run("types", 3, blocks=3, first=bench.RICH, choosing=False)
    assert rich.earned[0] != stays.earned[0]


def test_every_world_gives_rates_of_every_arm_to_every_customer() -> None:
    segment = np.arange(8, dtype=np.int32) % bench.SEGMENTS
    x = np.linspace(-2, 2, 16).reshape(8, 2)
    for name, world in bench.WORLDS.items():
        rates = world(np.random.default_rng(0)).rates(segment, x)
        assert rates.shape == (8, len(bench.DEPTHS)), name
        assert ((rates > 0) & (rates < 1)).all(), name
