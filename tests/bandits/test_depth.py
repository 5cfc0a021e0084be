"""A simplex over a ladder of depths is a density: drawn by inversion, evaluated by its ratio."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from bandits import depth, policies, sampling, simplex
from bandits.evaluation import ope
from bandits.types import Contexts

DEPTHS = depth.ladder(0.3, arms=31)
EDGES = depth.cells(DEPTHS)
NARROW = depth.cells(np.array([0.0, 0.02, 0.1, 0.3]))


def _masses(rows: int, arms: int, *, seed: int = 0) -> Any:
    return np.random.default_rng(seed).dirichlet(np.full(arms, 0.4), rows)


def test_cells_meet_halfway_and_cover_the_range() -> None:
    np.testing.assert_allclose(np.diff(EDGES)[[0, 1, 15, 30]], [0.005, 0.01, 0.01, 0.005])
    assert EDGES[0] == 0.0
    assert EDGES[-1] == pytest.approx(0.3)


def test_the_arm_is_the_samplers_and_the_depth_lies_in_its_cell_with_its_density() -> None:
    p, u = _masses(2_000, 31), np.random.default_rng(1).random(2_000)
    found = depth.drawn(p, u, EDGES)
    np.testing.assert_array_equal(found.arm, sampling.draws(p, u))
    assert (found.depth >= EDGES[found.arm]).all()
    assert (found.depth < EDGES[found.arm + 1]).all()
    np.testing.assert_allclose(found.density, depth.density(p, found.depth, EDGES))
    again = depth.drawn(p[7:8], u[7:8], EDGES)
    assert again.depth[0] == found.depth[7]  # replay, alone and in every bit


def test_depths_are_distributed_as_the_density_says() -> None:
    """Kolmogorov and Smirnov against the piecewise linear distribution function."""
    masses = _masses(1, 3, seed=4)
    u = sampling.uniforms("campaign", [f"decision {n}" for n in range(20_000)])
    found = depth.drawn(np.repeat(masses, len(u), axis=0), u, NARROW[[0, 1, 3, 4]])
    edges, below = NARROW[[0, 1, 3, 4]], np.concatenate([[0.0], masses[0].cumsum()])
    assert stats.kstest(found.depth, lambda d: np.interp(d, edges, below)).pvalue > 1e-3


def test_a_u_at_the_end_of_rounded_sums_stays_in_the_range() -> None:
    p = np.array([[0.1] * 10])
    edges = depth.cells(depth.ladder(0.3, arms=10))
    found = depth.drawn(p, np.array([1.0 - 2.0**-53]), edges)
    assert found.arm[0] == 9
    assert 0.2999 < found.depth[0] < 0.3
    np.testing.assert_array_equal(depth.density(p, found.depth, edges), found.density)


def test_masses_move_between_cells_without_loss() -> None:
    p, both = _masses(50, 31), depth.meet(EDGES, NARROW)
    fine = depth.spread(p, EDGES, both)
    np.testing.assert_allclose(fine.sum(axis=1), 1.0)
    np.testing.assert_allclose(depth.spread(fine, both, EDGES), p, atol=1e-12)
    middle = np.full(50, 0.0712)
    np.testing.assert_allclose(
        depth.density(fine, middle, both), depth.density(p, middle, EDGES), rtol=1e-9
    )


def test_a_policy_over_other_depths_is_evaluated_by_the_ratio_of_densities() -> None:
    """Logged over 31 cells; the target is one over three: its truth is an integral."""
    rng, rows = np.random.default_rng(5), 40_000
    p = np.repeat(simplex.guard(_masses(1, 31), np.ones((1, 31), bool), floor=0.01), rows, axis=0)
    given = depth.drawn(p, rng.random(rows), EDGES)
    rate = 0.1 + 2.0 * given.depth - 5.0 * given.depth**2
    reward = (rng.random(rows) < rate).astype(np.int64)
    edges = np.array([0.0, 0.075, 0.155, 0.3])
    target = np.tile([0.1, 0.7, 0.2], (rows, 1))
    onto = depth.meet(EDGES, edges)
    log = depth.logged(given.depth, p, reward, EDGES, onto)
    wide = depth.spread(target, edges, onto)
    ratio = depth.density(target, given.depth, edges) / given.density
    np.testing.assert_allclose(ope.weights(log, wide), ratio, rtol=1e-9)
    at = np.linspace(0.0, 0.3, 300_001)
    masses = np.diff(np.interp(at, edges, [0.0, 0.1, 0.8, 1.0]))
    truth = (masses * (0.1 + 2.0 * at[1:] - 5.0 * at[1:] ** 2)).sum()
    for found in (ope.ips(log, wide), ope.snips(log, wide)):
        assert abs(found.mean - truth) < 3.5 * found.error
        assert found.error < 0.01


def test_the_default_policy_is_smooth_over_31_depths() -> None:
    """One percent more is nearly the same: what one depth learns, its neighbours know."""
    value = np.rint((0.4 - DEPTHS) * 10_000)[None]
    policy = policies.make(
        "thompson_hierarchical", arms=31, segments=1, depth=DEPTHS[None], value=value
    )
    rng, trials = np.random.default_rng(6), np.full((1, 31), 400)
    rate = 1.0 / (1.0 + np.exp(3.0 - 8.0 * DEPTHS))
    won = rng.binomial(trials, rate)
    reward = value.astype(np.int64)
    state = policy.init()._replace(
        trials=trials, conversions=won, reward=won * reward, square_low=won * reward**2
    )
    belief = policy.believe(state).reward[0]
    away = np.abs(belief.mean(axis=0) - rate * value[0]).max()
    alone = np.abs(won[0] / 400 * value[0] - rate * value[0]).max()
    assert away < 0.4 * alone
    contexts = Contexts(np.zeros(1, np.int32), np.zeros((1, 0), np.int64))
    p = policy.probabilities(policy.believe(state), contexts, np.ones((1, 31), bool))
    assert p.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: depth.ladder(0.0, arms=3), "most"),
        (lambda: depth.cells(np.array([0.1, 0.1])), "depths"),
        (lambda: depth.drawn(np.ones((1, 2)), np.zeros(1), EDGES), "simplex"),
        (lambda: depth.density(_masses(1, 31), np.array([0.31]), EDGES), "depth"),
        (lambda: depth.spread(_masses(1, 31), EDGES, NARROW[1:]), "onto"),
    ],
)
def test_bad_input_is_named(call, match: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=match):
        call()
