"""Arms that resemble each other: what is shared, what is not, and whether regret bands cover."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, special

from bandits import ledger
from bandits.evaluation import regret
from bandits.posteriors import shared
from bandits.posteriors.summary import Prior, posterior
from bandits.types import ArmSums
from tests.bandits.regret_coverage import WORLDS, Run, campaigns

Floats = NDArray[np.float64]
DEPTH = np.array([0.0, 0.05, 0.1, 0.2, 0.3])


def sums(trials: NDArray[Any], conversions: NDArray[Any], sale: int = 0) -> ArmSums:
    """Return a ledger of conversions that all earned the same."""
    n, c = (np.asarray(field).astype(np.int64) for field in (trials, conversions))
    zero = ledger.zeros(segments=n.shape[0], arms=n.shape[1])
    return zero._replace(trials=n, conversions=c, reward=c * sale, square_low=c * sale * sale)


def test_the_gaussian_algebra_is_that_of_the_whole_covariance() -> None:
    """Against the plain formulas on all S A observations at once."""
    rng = np.random.default_rng(0)
    depth = np.tile(DEPTH, (3, 1))
    x = shared.features(depth, segments=3, arms=5)
    tau = np.array([0.0, 0.3])
    common = np.concatenate(
        [np.tile([2.0, 5.0], (2, 1)), np.sqrt(shared.SHARED) * np.repeat(tau[:, None], 5, axis=1)],
        axis=1,
    )
    between = np.array([[[1.0, 0.0], [0.0, 2.25]], [[1.0, -0.9], [-0.9, 2.25]]])
    centre = np.array([-2.0, 0.0])
    scales = shared.Scales(tau, between, common, centre, np.zeros(2))
    seen, weight = rng.normal(-2, 1, (2, 3, 5)), rng.uniform(1, 50, (2, 3, 5))
    found = shared._solve(seen, weight, x, scales)
    flat, of = x.reshape(15, 2), np.repeat(np.arange(3), 5)
    same_segment = of[:, None] == of
    same_arm = np.tile(np.eye(5), (3, 3))
    for g in range(2):
        prior = flat @ np.diag(common[g, :2] ** 2) @ flat.T
        prior += flat @ between[g] @ flat.T * same_segment
        prior += tau[g] ** 2 * same_arm * np.where(same_segment, 1.0, shared.SHARED)
        y, noise = seen[g].ravel(), np.diag(1 / weight[g].ravel())
        off = y - flat @ centre
        mean = flat @ centre + prior @ np.linalg.solve(prior + noise, off)
        np.testing.assert_allclose(found.mode[g].ravel(), mean, rtol=1e-8)
        _, size = np.linalg.slogdet(prior + noise)
        evidence = -0.5 * (
            size + np.log(weight[g]).sum() + off @ np.linalg.solve(prior + noise, off)
        )
        assert found.log_evidence[g] == pytest.approx(evidence)
        at = slice(g, g + 1)
        only = shared.Scales(tau[at], between[at], common[at], centre, np.zeros(1))
        one = shared._solve(seen[at], weight[at], x, only)
        drawn = shared._sample(one, seen[at], weight[at], x, only, 40_000, rng)
        spread = prior - prior @ np.linalg.solve(prior + noise, prior)
        covariance = np.cov(drawn.reshape(-1, 15).T)
        np.testing.assert_allclose(drawn.mean(axis=0).ravel(), mean, atol=0.02)
        np.testing.assert_allclose(covariance, spread, atol=0.03 * spread.max())


@pytest.mark.parametrize("rising", [0.0, 1e-9])
def test_a_ladders_residuals_are_interpolated_between_knots(rising: float) -> None:
    """Against the plain formulas; a slope that hardly ever must rise is as free as any."""
    rng = np.random.default_rng(0)
    depth = np.tile(np.linspace(0.0, 0.3, 13), (2, 1))
    x = shared.features(depth, segments=2, arms=13)
    assert x.shape == (2, 13, 2 + shared.KNOTS)
    np.testing.assert_allclose(x[..., 2:].sum(axis=-1), 1.0)
    every = shared.rate_scales(sums(np.full((2, 13), 50), np.full((2, 13), 5)), x, shared.ANY_SLOPE)
    g = int(np.flatnonzero(np.isclose(every.between[:, 2, 2], 0.5 * 0.32**2))[0])
    scales = shared._at(every, np.arange(len(every.residual)) == g)
    seen, weight = rng.normal(-2, 1, (1, 2, 13)), rng.uniform(1, 50, (1, 2, 13))
    flat, of = x.reshape(26, -1), np.repeat(np.arange(2), 13)
    same_segment = of[:, None] == of
    line = flat[:, :2] @ np.diag([shared.COMMON_LEVEL_SD, shared.COMMON_SLOPE_SD]) ** 2
    prior = line @ flat[:, :2].T
    prior += flat[:, :2] @ scales.between[0, :2, :2] @ flat[:, :2].T * same_segment
    bends = 0.32**2 * flat[:, 2:] @ flat[:, 2:].T
    prior += bends * np.where(same_segment, 1.0, shared.SHARED)
    y, noise = seen[0].ravel() - flat @ scales.centre, np.diag(1 / weight[0].ravel())
    mean = flat @ scales.centre + prior @ np.linalg.solve(prior + noise, y)
    fitted = shared._solve(seen, weight, x, scales)
    np.testing.assert_allclose(fitted.mode[0].ravel(), mean, rtol=1e-6)
    drawn = shared._sample(fitted, seen, weight, x, scales, 20_000, rng, rising=rising)
    spread = prior - prior @ np.linalg.solve(prior + noise, prior)
    np.testing.assert_allclose(drawn.mean(axis=0).ravel(), mean, atol=0.02)
    covariance = np.cov(drawn.reshape(-1, 26).T)
    np.testing.assert_allclose(covariance, spread, atol=0.04 * spread.max())


def test_what_is_no_ladder_keeps_a_residual_per_arm() -> None:
    few, uneven = np.linspace(0.0, 0.3, 12)[None], np.linspace(0.0, 0.6, 13)[None] ** 2
    for depth in (few, uneven, np.repeat(few, 2, axis=1)):
        assert shared.features(depth, segments=1, arms=depth.shape[1]).shape[-1] == 2


def test_smooth_arms_share_and_others_are_left_alone() -> None:
    depth = DEPTH[None]
    trials = np.array([[20_000, 20_000, 100, 20_000, 20_000]])
    line = special.expit(-2.2 + 3 * depth)
    known = shared.draws("conversion", sums(trials, trials * line), count=2000, seed=1, depth=depth)
    alone = posterior("conversion", sums(trials, trials * line)).draws(2000, seed=1)
    # A hundred visitors would not tell; its neighbours do.
    assert known.std(axis=0)[0, 2] < 0.4 * alone.std(axis=0)[0, 2]
    assert known.mean(axis=0)[0, 2] == pytest.approx(line[0, 2], rel=0.05)
    odd = np.array([[0.10, 0.19, 0.11, 0.20, 0.09]])
    trials = np.full((1, 5), 20_000)
    loose = shared.draws("conversion", sums(trials, trials * odd), count=2000, seed=1, depth=depth)
    np.testing.assert_allclose(loose.mean(axis=0), odd, rtol=0.02)
    again = shared.draws("conversion", sums(trials, trials * odd), count=2000, seed=1, depth=depth)
    np.testing.assert_array_equal(loose, again)


def test_a_deeper_discount_is_not_thought_to_sell_less_unless_it_does() -> None:
    depth = DEPTH[None]
    trials = np.full((1, 5), 20_000)
    nothing = shared.draws("conversion", sums(0 * trials, trials), count=2000, seed=1, depth=depth)
    assert (nothing[:, 0, -1] > nothing[:, 0, 0]).mean() > 0.75
    falls = special.expit(-2.2 - 4 * depth)
    known = shared.draws(
        "conversion", sums(trials, trials * falls), count=2000, seed=1, depth=depth
    )
    np.testing.assert_allclose(known.mean(axis=0), falls, rtol=0.05)


def test_slopes_far_below_zero_leave_no_zero_divided_by_zero() -> None:
    depth = np.tile(DEPTH, (6, 1))
    trials = np.full((6, 5), 3_000_000)
    steep = sums(trials, trials * special.expit(-1.0 - 60 * depth))
    with np.errstate(all="raise", under="ignore"):
        drawn = shared.draws("conversion", steep, count=500, seed=1, depth=depth)
    assert np.isfinite(drawn).all()
    assert (drawn[..., 0] > drawn[..., -1]).all()


def test_who_buys_less_without_a_discount_is_expected_to_react_more_where_others_do() -> None:
    """Two segments without a visitor at the deepest arms, in a world where level and slope go
    together, and in one where they do not.
    """
    rng, depth = np.random.default_rng(4), np.tile(DEPTH, (40, 1))
    trials = np.full((40, 5), 3000)
    trials[:2, 1:] = 0

    def reacts(follow: float) -> Floats:
        level = rng.normal(-2.5, 0.5, 40)
        level[:2] = -3.2, -1.8
        slope = 5.0 + follow * (level + 2.5)
        truth = special.expit(level[:, None] + slope[:, None] * depth)
        state = sums(trials, rng.binomial(trials, truth))
        drawn = special.logit(
            shared.draws("conversion", state, count=1000, seed=1, depth=depth)
        ).mean(axis=0)
        out: Floats = (drawn[:2, -1] - drawn[:2, 0]) / (DEPTH[-1] - DEPTH[0])
        return out

    together, apart = reacts(-4.0), reacts(0.0)
    assert together[0] - together[1] > 3.0
    assert abs(apart[0] - apart[1]) < 1.0


def test_points_of_the_grid_are_given_up_only_where_they_count_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng, depth = np.random.default_rng(5), np.tile(DEPTH, (6, 1))
    trials = np.full((6, 5), 4000)
    state = sums(trials, rng.binomial(trials, special.expit(-2.5 + 4.0 * depth)))
    sifted = shared.draws("conversion", state, count=4000, seed=1, depth=depth)
    monkeypatch.setattr(shared, "SIFT_BEHIND", np.inf)
    whole = shared.draws("conversion", state, count=4000, seed=1, depth=depth)
    error = whole.std(axis=0) / np.sqrt(4000)
    assert (np.abs(sifted.mean(axis=0) - whole.mean(axis=0)) < 6 * error).all()
    np.testing.assert_allclose(sifted.std(axis=0), whole.std(axis=0), rtol=0.1)


@pytest.mark.parametrize("depth", [None, np.tile(DEPTH, (4, 1)), np.zeros((4, 5))])
def test_nothing_is_ever_not_a_number(depth: Floats | None) -> None:
    rng = np.random.default_rng(2)
    trials = rng.integers(0, 50, (4, 5))
    trials[0] = 0
    for conversions in (trials * 0, trials, rng.binomial(trials, 0.1), trials + 5, -trials):
        state = sums(trials, conversions, sale=300)
        for offers in (None, shared.Offers(np.zeros((4, 5)), np.zeros((4, 5)))):
            for objective in ("conversion", "profit"):
                found = shared.draws(objective, state, count=50, seed=3, depth=depth, offers=offers)
                assert found.shape == (50, 4, 5)
                assert np.isfinite(found).all()
    refunded = state._replace(reward=-state.reward)
    assert np.isfinite(shared.draws("profit", refunded, count=50, seed=3, depth=depth)).all()


def test_the_newton_steps_end_at_the_mode() -> None:
    """Where residuals are certain to be large, one arm's mode is its own penalised rate."""
    n, c = np.array([[1000, 1000]]), np.array([[100, 300]])
    x = shared.features(None, segments=1, arms=2)
    scales = shared.Scales(
        np.array([0.64]), np.array([[[1.0]]]), np.array([[2.0, 0.45, 0.45]]), np.array([-1.4]),
        np.zeros(1),
    )  # fmt: skip
    z = np.full((1, 1, 2), -1.4)
    for _ in range(30):
        weight, seen = shared._working(z, n.astype(float), c.astype(float))
        z = shared._solve(seen, weight, x, scales).mode
    prior = 5.0 + np.eye(2) * (0.45**2 + (1 - shared.SHARED) * 0.64**2)

    def loss(point: Floats) -> float:
        off = point + 1.4
        fit = (n * np.logaddexp(0, point) - c * point).sum()
        return float(fit + 0.5 * off @ np.linalg.solve(prior, off))

    best = optimize.minimize(loss, np.full(2, -1.0), tol=1e-10).x
    np.testing.assert_allclose(z[0, 0], best, atol=1e-4)


def held(runs: list[Run]) -> float:
    """Return the share of campaigns whose band under the shared prior holds the true regret."""
    covered = []
    for run in runs:
        known = shared.draws(
            "profit", run.state, count=800, seed=1, depth=run.truth.depth, offers=run.offers
        )
        found = regret.estimate(known, run.state.trials[None])
        covered.append(found.lower[0] <= run.regret <= found.upper[0])
    return float(np.mean(covered))


@pytest.mark.parametrize("name", ["jump", "jagged", "messages"])
def test_the_residuals_save_the_band_where_arms_are_not_smooth(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ninety per cent is promised; forty campaigns allow for chance."""
    runs = list(campaigns(WORLDS[name], runs=40, decisions=6000, seed=11))
    share = held(runs)
    assert share >= 0.85
    monkeypatch.setattr(shared, "EXACT_LINE", 1 - 1e-12)
    monkeypatch.setattr(shared, "EXACT_LEVEL", 1 - 1e-12)
    assert held(runs) < share - 0.05


def test_the_band_holds_where_arms_are_nearly_tied_and_independent_priors_fail() -> None:
    runs = list(campaigns(WORLDS["demo"], runs=40, decisions=6000, seed=11))
    assert held(runs) >= 0.85
    errors, covered = [], []
    for run in runs:
        counts = run.state.trials[None]
        alone = posterior("profit", run.state, prior=Prior(value=run.value)).draws(800, seed=1)
        known = shared.draws(
            "profit", run.state, count=800, seed=1, depth=run.truth.depth, offers=run.offers
        )
        own, ours = regret.estimate(alone, counts), regret.estimate(known, counts)
        covered.append(own.lower[0] <= run.regret <= own.upper[0])
        errors.append((abs(own.mean[0] - run.regret), abs(ours.mean[0] - run.regret)))
    assert np.mean(covered) < 0.7
    theirs, mine = np.mean(errors, axis=0)
    assert mine < 0.6 * theirs
