"""The elasticity of a log: unbiased where shares moved with the results, at any time."""

import numpy as np
import pytest

from bandits.evaluation import aipw, demand

DEPTH = np.array([0.0, 0.1, 0.25])


def test_shares_that_follow_results_do_not_mislead() -> None:
    draw, truth, rows = np.random.default_rng(7), -2.0, 20_000
    demand_then = np.where(np.arange(rows) < rows // 2, 0.05, 0.2)  # demand rises as depth does
    early, late = [0.8, 0.1, 0.1], [0.1, 0.1, 0.8]
    simplex = np.where((np.arange(rows) < rows // 2)[:, None], early, late)
    arm = (draw.random(rows)[:, None] > simplex.cumsum(axis=1)).sum(axis=1)
    bought = (draw.random(rows) < demand_then * (1 - DEPTH[arm]) ** truth).astype(np.int64)
    known = aipw.scores(arm, simplex, bought)
    found = demand.elasticity(known, simplex, DEPTH)
    assert found.lower <= truth <= found.upper < 0
    naive = np.array([bought[arm == k].mean() for k in range(3)])
    share = np.bincount(arm) / rows
    assert demand.curve(naive, share, DEPTH).elasticity < found.lower - 0.5

    without = demand.elasticity(known, simplex, np.array([0.0, np.nan, 0.25]))
    assert without.lower <= truth <= without.upper


def test_too_little_is_said_so() -> None:
    arm = np.array([0] * 100 + [1] * 10)
    known = aipw.scores(arm, np.full((110, 2), 0.5), np.arange(110) % 2)
    found = demand.elasticity(known, np.full((110, 2), 0.5), np.array([0.0, 0.2]))
    assert found.lower == -np.inf, "ten customers of an arm are too few"
    for mean, depth, said in (
        ([0.1, 0.1], [0.2, 0.2], "not all equal"),
        ([0.1, 0.1], [0.2, 1.0], "below 1"),
        ([0.0, 0.0], [0.0, 0.2], "sold nothing"),
    ):
        with pytest.raises(ValueError, match=said):
            demand.curve(np.array(mean), np.array([0.5, 0.5]), np.array(depth))
