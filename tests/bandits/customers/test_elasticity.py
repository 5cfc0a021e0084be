"""Elasticities: the orange-juice figures, and worlds in which the truth is known."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bandits import ledger, policies
from bandits.customers import elasticity, fixed_effects
from bandits.customers.elasticity import Elasticity
from bandits.posteriors import shared
from tests.bench.policies import data

Floats = NDArray[np.float64]
#: The brands of the published table, as the package numbers them.
TROPICANA, MINUTE_MAID, DOMINICKS = 1, 5, 10


@pytest.fixture(scope="module")
def juice() -> dict[str, Floats]:
    """Three brands: quantity, price, brand, store, week and featured (R,)."""
    rows = data.columns("orange_juice")
    rows = {name: column[np.isin(rows["brand"], (1, 5, 10))] for name, column in rows.items()}
    prices = np.stack([rows[f"price{brand}"] for brand in (1, 5, 10)], axis=1)
    place = np.searchsorted((1, 5, 10), rows["brand"])
    price = prices[np.arange(len(place)), place]
    kept = {name: rows[name] for name in ("brand", "store", "week")}
    featured = (rows["feat"] > 0).astype(float)
    return kept | {"quantity": np.exp(rows["logmove"]), "price": price, "featured": featured}


def test_orange_juice_pooled(juice: dict[str, Floats]) -> None:
    q, p, brand = juice["quantity"], juice["price"], juice["brand"]
    assert len(q) == 28_947
    found = elasticity.log_log(q, p, fixed=[brand])
    assert found.estimate[0] == pytest.approx(-3.139, abs=5e-4)
    assert found.error[0] == pytest.approx(0.025, abs=5e-4)
    assert found.featuring == "unknown"
    by_store = elasticity.log_log(q, p, fixed=[brand], cluster=juice["store"])
    assert by_store.estimate[0] == pytest.approx(found.estimate[0], abs=1e-12)
    assert by_store.error[0] > 1.5 * found.error[0]
    assert by_store.clusters == 83


def test_orange_juice_by_brand_and_featuring(juice: dict[str, Floats]) -> None:
    q, p, brand, featured = (juice[name] for name in ("quantity", "price", "brand", "featured"))
    found = elasticity.log_log(q, p, group=brand)
    assert found.group.tolist() == [TROPICANA, MINUTE_MAID, DOMINICKS]
    np.testing.assert_allclose(found.estimate, [-2.712, -3.321, -3.378], atol=5e-4)
    found = elasticity.log_log(q, p, group=10 * brand + featured)
    unfeatured, while_featured = found.estimate[::2], found.estimate[1::2]
    np.testing.assert_allclose(unfeatured, [-2.038, -1.991, -2.774], atol=5e-4)
    np.testing.assert_allclose(while_featured, [-3.495, -3.571, -3.245], atol=5e-4)
    held = elasticity.log_log(q, p, group=brand, featured=featured)
    assert held.featuring == "held constant"
    assert (held.estimate > [-2.712, -3.321, -3.378]).all()


def test_crossed_effects_are_dummies_never_written_out() -> None:
    rng = np.random.default_rng(0)
    store, week = rng.integers(0, 12, 600), rng.integers(0, 9, 600)
    x = rng.normal(size=(600, 2)) + store[:, None] / 5
    y = x @ [1.5, -2.0] + np.sin(store) + week**2 / 20 + rng.normal(size=600)
    weight = rng.uniform(0.5, 2.0, 600)
    effects = fixed_effects.effects([store, week], rows=600)
    found = fixed_effects.least_squares(y, x, effects, cluster=None, weight=weight)
    full = np.column_stack([x, np.eye(12)[store], np.eye(9)[week][:, 1:]])
    root = np.sqrt(weight)
    exact = np.linalg.lstsq(full * root[:, None], y * root, rcond=None)[0]
    np.testing.assert_allclose(found.estimate, exact[:2], atol=1e-9)
    np.testing.assert_allclose(found.residual, y - full @ exact, atol=1e-8)


def test_clusters_widen_what_hangs_together() -> None:
    """The spread of 200 estimates is what one estimate says of itself, clustered, and not else."""
    rng = np.random.default_rng(1)
    store = np.repeat(np.arange(30), 20)
    found = []
    for _ in range(200):
        price = np.exp(0.2 * rng.normal(size=30)[store] + 0.1 * rng.normal(size=600))
        noise = 0.5 * rng.normal(size=30)[store] + 0.2 * rng.normal(size=600)
        q = np.exp(1.0 - 2.0 * np.log(price) + noise)
        one = elasticity.log_log(q, price, cluster=store)
        found.append((one.estimate[0], one.error[0], elasticity.log_log(q, price).error[0]))
    estimate, error, plain = np.array(found).T
    assert estimate.std() == pytest.approx(np.median(error), rel=0.2)
    assert estimate.std() > 2 * np.median(plain)
    reach = elasticity.interval(one)[0]
    assert reach[1] - reach[0] > 2 * 1.96 * one.error[0]


def _sales(
    seed: int, *, rows: int = 6000, dispersion: float = 0.0, truth: float = -2.0
) -> tuple[Floats, Floats, Floats, NDArray[Any]]:
    """Counts with zeros, prices that follow the store, and the store."""
    rng = np.random.default_rng(seed)
    store = rng.integers(0, 40, rows)
    price = np.exp(store / 60 + rng.normal(size=rows) / 5)
    mean = np.exp(store / 20 - 1.0 + truth * np.log(price))
    if dispersion:
        mean = mean * rng.gamma(1 / dispersion, dispersion, rows)
    return rng.poisson(mean).astype(float), price, mean, store


def test_counts_with_zeros() -> None:
    q, price, _, store = _sales(2)
    found = elasticity.counts(q, price, fixed=[store])
    assert found.model == "Poisson"
    assert abs(found.estimate[0] + 2.0) < 3 * found.error[0] < 0.3
    logs = elasticity.log_log(q + 1, price, fixed=[store])
    assert logs.estimate[0] > -1.6  # what adding one to zeros does


def test_overdispersed_counts_are_negative_binomial() -> None:
    q, price, _, store = _sales(3, dispersion=0.8)
    found = elasticity.counts(q, price, fixed=[store])
    assert found.model == "negative binomial"
    assert found.dispersion == pytest.approx(0.8, rel=0.15)
    assert abs(found.estimate[0] + 2.0) < 3 * found.error[0] < 0.5
    poisson = elasticity.counts(q, price, fixed=[store], family="poisson")
    assert poisson.dispersion == 0
    assert found.error[0] < poisson.error[0]


def test_a_level_without_a_sale_says_nothing() -> None:
    q, price, _, store = _sales(4, rows=2000)
    more = np.concatenate([q, np.zeros(50)])
    found = elasticity.counts(
        more, np.concatenate([price, price[:50]]), fixed=[np.concatenate([store, np.full(50, 99)])]
    )
    assert found.rows == 2000
    without = elasticity.counts(q, price, fixed=[store])
    assert found.estimate[0] == pytest.approx(without.estimate[0], abs=1e-9)


@pytest.mark.parametrize("nuisance", ["ridge", "trees"])
def test_double_ml_removes_what_confounds(nuisance: Any) -> None:
    """A price that is set by demand, along a curve: least squares errs, trees do not."""
    rng = np.random.default_rng(5)
    w = rng.normal(size=(2500, 4))
    season = w[:, 0] if nuisance == "ridge" else np.cos(2 * w[:, 0])
    persona = rng.integers(0, 2, 2500)
    log_price = 0.3 * season + 0.2 * rng.normal(size=2500)
    truth = np.array([-1.5, -3.0])[persona]
    q = np.exp(1.5 * season + truth * log_price + 0.3 * rng.normal(size=2500))
    plain = elasticity.log_log(q, np.exp(log_price), group=persona)
    assert (np.abs(plain.estimate - [-1.5, -3.0]) > 0.5).all()
    found = elasticity.double_ml(q, np.exp(log_price), w, group=persona, nuisance=nuisance)
    # Trees leave a little of the season over: 0.15 at most.
    slack = 3 * found.error + (0.15 if nuisance == "trees" else 0.0)
    assert (np.abs(found.estimate - [-1.5, -3.0]) < slack).all()
    assert (found.error < 0.07).all()


def test_a_randomised_log_is_unbiased_where_targeting_misleads() -> None:
    """Deep discounts went to those who buy little anyway; propensities undo it, with cover."""
    rng = np.random.default_rng(6)
    depth, truth = np.array([0.0, 0.1, 0.2, 0.3]), -2.5
    found, naive = [], []
    for _ in range(40):
        keen = rng.random(6000) < 0.5
        p = np.where(keen[:, None], [0.55, 0.25, 0.1, 0.1], [0.1, 0.1, 0.25, 0.55])
        arm = (rng.random(6000)[:, None] > p.cumsum(axis=1)).sum(axis=1)
        chance = np.where(keen, 0.25, 0.05)[:, None] * (1 - depth) ** truth
        bought = (rng.random(6000) < chance[np.arange(6000), arm]).astype(float)
        one = elasticity.randomised(arm, bought, p, depth)
        found.append((one.estimate[0], *elasticity.interval(one)[0]))
        flat = np.full(p.shape, 0.25)
        naive.append(elasticity.randomised(arm, bought, flat, depth).estimate[0])
        better = elasticity.randomised(arm, bought, p, depth, prediction=chance)
        assert better.error[0] < one.error[0]
    estimate, low, high = np.array(found).T
    assert estimate.mean() == pytest.approx(truth, abs=4 * estimate.std() / np.sqrt(40))
    assert ((low < truth) & (truth < high)).mean() > 0.85
    assert np.mean(naive) > truth + 1.0
    assert one.featuring == "randomised"


def test_constant_propensities_make_it_poisson_regression() -> None:
    rng = np.random.default_rng(7)
    depth, p = np.array([0.0, 0.2, 0.4]), np.array([0.5, 0.3, 0.2])
    arm = rng.choice(3, 5000, p=p)
    q = rng.poisson(0.2 * (1 - depth[arm]) ** -2.0).astype(float)
    shares = np.bincount(arm) / 5000
    found = elasticity.randomised(arm, q, np.tile(shares, (5000, 1)), depth)
    poisson = elasticity.counts(q, 1 - depth[arm], family="poisson")
    assert found.estimate[0] == pytest.approx(poisson.estimate[0], abs=1e-6)
    assert found.error[0] == pytest.approx(poisson.error[0], rel=0.02)


def _groups(estimate: list[float], error: list[float]) -> Elasticity:
    names = np.arange(len(estimate))
    covariance = np.diag(np.square(error))
    return Elasticity(names, np.array(estimate), covariance, 99, 99, "log-log", "unknown")


def test_uncertain_groups_are_drawn_to_the_others() -> None:
    rng = np.random.default_rng(8)
    truth = rng.normal(-2.0, 0.5, 400)
    error = rng.choice([0.1, 1.0], 400)
    seen = truth + error * rng.normal(size=400)
    near, spread = elasticity.shrunk(_groups(list(seen), list(error)))
    poor = error == 1.0
    assert np.square(near - truth)[poor].mean() < 0.4 * np.square(seen - truth)[poor].mean()
    np.testing.assert_allclose(near[~poor], seen[~poor], atol=0.15)
    assert (np.abs(near - truth) < 1.96 * spread).mean() == pytest.approx(0.95, abs=0.04)
    alike = elasticity.shrunk(_groups([-2.0, -2.1, -1.9], [0.5, 0.5, 0.5]))[0]
    np.testing.assert_allclose(alike, -2.0, atol=1e-9)


def test_an_elasticity_foretells_the_slope_that_a_campaign_finds() -> None:
    """Large campaigns in worlds of one elasticity, read by the policy's own model."""
    depth, rate = np.array([0.0, 0.05, 0.1, 0.2, 0.3]), 0.06
    rng = np.random.default_rng(9)
    for truth in (-1.0, -2.5, -4.0):
        prior = elasticity.depth_slope(_groups([truth], [0.1]), depth=depth, rate=rate)
        chance = np.tile(rate * (1 - depth) ** truth, (2, 1))
        trials = np.full((2, 5), 40_000)
        sums = ledger.zeros(segments=2, arms=5)._replace(
            trials=trials, conversions=rng.binomial(trials, chance)
        )
        found = shared.common_slope(sums, np.tile(depth, (2, 1)))
        assert abs(found.mean - prior.mean) < 2 * np.hypot(found.spread, 0.1)
        assert 1.0 < prior.spread < 1.1
    wide = elasticity.depth_slope(_groups([-1.0, -4.0], [0.1, 0.1]), depth=depth, rate=rate)
    assert wide.spread > 2.0


def test_a_steep_demand_has_deep_discounts_tried_first() -> None:
    """Before a single sale, what discounts are believed to earn follows the elasticity."""
    depth = np.array([[0.0, 0.1, 0.2, 0.3]])
    value = 400 * (1 - depth) - 200
    ratio = []
    for truth in (-5.0, -0.2):
        slope = elasticity.depth_slope(_groups([truth], [0.2]), depth=depth[0], rate=0.05)
        policy = policies.make(
            "thompson_hierarchical", arms=4, segments=1, depth=depth, value=value,
            slope=slope.mean, slope_spread=slope.spread,
        )  # fmt: skip
        mean = np.asarray(policy.believe(policy.init()).reward)[0].mean(axis=0)
        ratio.append(mean[2] / mean[0])
    assert ratio[0] > 1.25 * ratio[1]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda q, p: elasticity.log_log(q * 0, p), "quantity: must be"),
        (lambda q, p: elasticity.log_log(q, p * 0 + 2.0), "does not vary"),
        (lambda q, p: elasticity.log_log(q, p, fixed=[p]), "does not vary"),
        (lambda q, p: elasticity.log_log(q, p, group=np.zeros(3)), "group: must be"),
        (lambda q, p: elasticity.log_log(q, p, cluster=p * 0), "at least two"),
        (lambda q, p: elasticity.counts(q * 0, p), "above 0 somewhere"),
        (lambda q, p: elasticity.double_ml(q, p, np.log(p)[:, None]), "nothing of it is left"),
        (lambda q, p: elasticity.double_ml(q, p, q[:, None], folds=1), "folds"),
        (
            lambda q, p: elasticity.randomised(
                np.zeros(50, int), q, np.full((50, 2), 0.5), np.ones(2) / 2
            ),
            "not all equal",
        ),
        (
            lambda q, p: elasticity.randomised(
                np.zeros(50, int), q * 0, np.full((50, 2), 0.5), np.array([0, 0.5])
            ),
            "sold nothing",
        ),
    ],
)
def test_what_says_nothing_is_refused(wrong: Any, says: str) -> None:
    rng = np.random.default_rng(10)
    with pytest.raises(ValueError, match=says):
        wrong(rng.uniform(1, 2, 50), rng.uniform(1, 2, 50))
