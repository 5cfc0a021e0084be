"""Propensity to buy: fitted as it should be, calibrated, judged on new customers."""

import importlib
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, special

from bandits import artefact
from bandits.customers import folds, propensity
from bandits.customers.propensity import SETTINGS, Calibration, Found

Floats = NDArray[np.float64]
Kind = Literal["logistic", "trees", "neural"]
#: One setting each: what is tested is not the search.
ONE: dict[Kind, Any] = {
    "logistic": ({"penalty": 1.0},),
    "trees": ({"trees": 60, "leaves": 8},),
    "neural": ({"units": 16, "decay": 1e-3},),
}


def _world(count: int, *, seed: int = 0) -> tuple[Floats, Floats, NDArray[np.int64], Floats]:
    """Table, what was bought, customers of five rows each, and the true chance.

    Some customers react to depth and others do not, which no line says.
    """
    rng = np.random.default_rng(seed)
    customer = np.repeat(np.arange(count // 5), 5)
    person = rng.normal(size=(count // 5, 2))[customer]
    item, depth = rng.normal(size=(count, 1)), rng.choice([0.0, 0.1, 0.2, 0.3], count)
    odds = -1.5 + 0.8 * item[:, 0] - np.abs(person[:, 0]) + 8.0 * depth * (person[:, 1] > 0)
    chance = special.expit(odds)
    x = propensity.rows(person, item, depth)
    return x, (rng.random(count) < chance).astype(float), customer, chance


@pytest.fixture(scope="module")
def fitted() -> dict[Kind, Found]:
    x, bought, customer, _ = _world(6000)
    return {
        kind: propensity.fit(x, bought, customer=customer, seed=0, model=kind, settings=ONE[kind])
        for kind in ONE
    }


@pytest.mark.parametrize("kind", list(ONE))
def test_new_customers_are_predicted_as_reported(fitted: dict[Kind, Found], kind: Kind) -> None:
    found = fitted[kind]
    x, bought, _, chance = _world(20_000, seed=1)
    said = propensity.predict(found.model, x)
    new = propensity.quality(said, bought)
    assert new.log_loss == pytest.approx(found.quality.log_loss, abs=0.025)
    assert new.auc == pytest.approx(found.quality.auc, abs=0.025)
    assert new.calibration_error < 0.025
    assert new.log_loss < new.base_loss - 0.04
    assert propensity.quality(chance, bought).log_loss < new.log_loss
    single = propensity.predict(found.model, x[:1])
    assert single[0] == pytest.approx(said[0], rel=1e-12)


def test_what_bends_is_seen_by_trees_and_networks(fitted: dict[Kind, Found]) -> None:
    line = fitted["logistic"].quality.log_loss
    assert fitted["trees"].quality.log_loss < line - 0.02
    assert fitted["neural"].quality.log_loss < line - 0.02


def test_logistic_regression_is_the_penalised_maximum() -> None:
    x, bought, customer, _ = _world(2000)
    weight = np.random.default_rng(0).uniform(0.5, 2.0, 2000)
    found = propensity.fit(
        x, bought, customer=customer, seed=0, model="logistic", weight=weight,
        settings=({"penalty": 20.0},), calibration="sigmoid",
    )  # fmt: skip
    assert isinstance(found.model, propensity.Logistic)
    scale = x.std(axis=0)

    def loss(at: Floats) -> float:
        score = at[0] + x @ at[1:]
        each = np.logaddexp(0.0, score) - bought * score
        return float(weight @ each + 10.0 * np.square(at[1:] * scale).sum())

    exact = optimize.minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-5}).x
    np.testing.assert_allclose(found.model.weight, exact, atol=1e-4)


def test_trees_are_walked_as_lightgbm_does() -> None:
    lightgbm = importlib.import_module("lightgbm")
    x, bought, _, _ = _world(3000)
    setting = {"trees": 30, "leaves": 15}
    model = propensity._fit_trees(x, bought, np.ones(3000), setting, False, 0)
    kept: list[Any] = []
    train = lightgbm.train

    def keeping(*arguments: Any) -> Any:
        kept.append(train(*arguments))
        return kept[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lightgbm, "train", keeping)
        again = propensity._fit_trees(x, bought, np.ones(3000), setting, False, 0)
    raw = kept[0].predict(x, raw_score=True)
    np.testing.assert_allclose(propensity._walked(model, x), raw, atol=1e-12)
    assert artefact.digest(again) == artefact.digest(model)


def test_a_network_is_what_flax_computes() -> None:
    network = importlib.import_module("bandits.customers.propensity_network")
    x, bought, _, _ = _world(6000)
    one, two, last = network.layers(x, bought, np.ones(6000), units=16, decay=0.0, seed=1)
    names = ("Dense_0", "Dense_1", "Dense_2")
    parts = (one, two, last[:, None])
    parameters = {
        name: {"bias": part[0], "kernel": part[1:]} for name, part in zip(names, parts, strict=True)
    }
    odds = network.Odds(16).apply({"params": parameters}, x)
    model = propensity.Network(np.zeros(4), np.ones(4), one, two, last, *Calibration())
    np.testing.assert_allclose(propensity._score(model, x), np.asarray(odds), atol=1e-5)


def test_the_network_lowers_for_a_gpu() -> None:
    network = importlib.import_module("bandits.customers.propensity_network")
    jax = importlib.import_module("jax")
    x, y = np.ones((8, 3), np.float32), np.ones(8, np.float32)
    traced = network._fit.trace(x, y, y, 8, jax.random.key(0), 5, 0.1, units=4)
    assert traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("kind", ["isotonic", "sigmoid"])
def test_calibration_mends_what_is_too_sure(kind: Literal["isotonic", "sigmoid"]) -> None:
    rng = np.random.default_rng(2)
    truth = rng.normal(-2.0, 1.0, 8000)
    bought = (rng.random(8000) < special.expit(truth)).astype(float)
    sure = 3.0 * truth + 2.0
    fold = folds.by_cluster(np.arange(8000), 5, seed=0)
    said = propensity._calibrated_unseen(sure, bought, np.ones(8000), fold, kind)
    before, after = (propensity.quality(p, bought) for p in (special.expit(sure), said))
    assert before.calibration_error > 0.05
    assert after.calibration_error < 0.015
    assert after.log_loss < propensity.quality(special.expit(truth), bought).log_loss + 0.005
    assert after.predicted.tolist() == sorted(after.predicted.tolist())


def test_scores_that_say_nothing_become_the_rate() -> None:
    rng = np.random.default_rng(3)
    bought = (rng.random(4000) < 0.1).astype(float)
    for kind in ("isotonic", "sigmoid"):
        fold = folds.by_cluster(np.arange(4000), 5, seed=0)
        said = propensity._calibrated_unseen(
            -4 * rng.normal(size=4000), bought, np.ones(4000), fold, kind
        )
        found = propensity.quality(said, bought)
        assert found.log_loss < found.base_loss + 0.005
        assert (said > 0).all()
        assert (said < 0.5).mean() > 0.99


@pytest.mark.parametrize("kind", ["logistic", "trees"])
def test_rising_with_depth_where_asked(kind: Kind) -> None:
    """A world in which deep discounts went to those who do not buy."""
    rng = np.random.default_rng(4)
    x = propensity.rows(rng.normal(size=(3000, 1)), rng.normal(size=(3000, 1)), rng.random(3000))
    bought = rng.random(3000) < special.expit(x[:, 0] - 2.0 * x[:, 2])
    customer = np.arange(3000) // 3
    grid = np.repeat(x[:200], 11, axis=0)
    grid[:, 2] = np.tile(np.linspace(0, 1, 11), 200)
    falls = {}
    for rising in (False, True):
        found = propensity.fit(
            x, bought, customer=customer, seed=0, model=kind, rising=rising, settings=ONE[kind]
        )
        said = propensity.predict(found.model, grid).reshape(200, 11)
        falls[rising] = float(np.diff(said, axis=1).min())
    assert falls[False] < -0.01
    assert falls[True] >= -1e-12


def test_weights_undo_targeting() -> None:
    """Keen customers rarely got the discount; by inverse propensity its effect is found."""
    rng = np.random.default_rng(5)
    keen = rng.random(30_000) < 0.5
    chance = np.where(keen, 0.2, 0.8)
    given = (rng.random(30_000) < chance).astype(float)
    bought = rng.random(30_000) < special.expit(-2.0 + 2.0 * keen + 1.0 * given)
    x = propensity.rows(np.zeros((30_000, 1)), np.zeros((30_000, 1)), given)
    weight = 1 / np.where(given > 0, chance, 1 - chance)
    both = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    effect = []
    for w in (None, weight):
        found = propensity.fit(
            x, bought, customer=np.arange(30_000), seed=0, model="logistic", weight=w,
            calibration="sigmoid", settings=ONE["logistic"],
        )  # fmt: skip
        effect.append(np.diff(propensity.predict(found.model, both))[0])
    truth = np.mean([special.expit(v + 1) - special.expit(v) for v in (-2.0, 0.0)])
    assert effect[0] < truth / 3
    assert effect[1] == pytest.approx(truth, abs=0.03)


def test_no_customer_is_in_two_folds() -> None:
    rng = np.random.default_rng(6)
    customer = rng.zipf(1.5, 5000) % 300
    fold = folds.by_cluster(customer, 5, seed=1)
    for one in np.unique(customer):
        assert len(np.unique(fold[customer == one])) == 1
    sizes = np.bincount([fold[customer == one][0] for one in np.unique(customer)])
    assert sizes.max() - sizes.min() <= 1
    # A column that names the customer predicts nothing of new ones: the report must say so.
    person = np.repeat(np.arange(400), 10)
    bought = (rng.random(400) < 0.5)[person] & (rng.random(4000) < 0.95)
    names = rng.normal(size=400)[person, None]
    found = propensity.fit(
        propensity.rows(names, names, np.zeros(4000)), bought, customer=person, seed=0,
        settings=ONE["trees"],
    )  # fmt: skip
    assert found.quality.auc < 0.6
    assert found.quality.log_loss > found.quality.base_loss - 0.01


def test_the_setting_with_the_least_loss_is_taken() -> None:
    x, bought, customer, _ = _world(1500, seed=7)
    found = propensity.fit(x, bought, customer=customer, seed=0, model="logistic")
    assert [setting for setting, _ in found.tried] == list(SETTINGS["logistic"])
    assert found.setting == min(found.tried, key=lambda one: one[1])[0]
    assert found.before.log_loss == pytest.approx(min(loss for _, loss in found.tried))


def test_the_figures_of_a_report() -> None:
    chance, bought = np.array([0.1, 0.2, 0.8, 0.8]), np.array([0.0, 1.0, 1.0, 0.0])
    found = propensity.quality(chance, bought)
    assert found.log_loss == pytest.approx(-np.log([0.9, 0.2, 0.8, 0.2]).mean())
    assert found.base_loss == pytest.approx(np.log(2))
    assert found.brier == pytest.approx((0.01 + 0.64 + 0.04 + 0.64) / 4)
    assert found.auc == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert found.rows.sum() == 4


@pytest.mark.parametrize("kind", list(ONE))
def test_stored_like_any_state(fitted: dict[Kind, Found], kind: Kind) -> None:
    model = fitted[kind].model
    kept = artefact.to_bytes(model, policy="propensity")
    back = artefact.from_bytes(kept, like=propensity.EMPTY[kind])
    x, bought, customer, _ = _world(6000)
    again = propensity.fit(x, bought, customer=customer, seed=0, model=kind, settings=ONE[kind])
    assert artefact.digest(back) == artefact.digest(model) == artefact.digest(again.model)


def test_what_cannot_be_fitted_is_refused() -> None:
    x, bought, customer, _ = _world(200)
    for wrong, says in (
        ({"x": x[:5]}, r"x must be \(R, D\)"),
        ({"x": x * np.nan}, "finite"),
        ({"bought": bought * 0}, "some of each"),
        ({"bought": bought + 0.5}, "0 or 1"),
        ({"weight": bought - 1}, "at least 0"),
        ({"customer": customer * 0}, "number of clusters"),
        ({"model": "neural", "rising": True}, "cannot promise"),
    ):
        options: dict[str, Any] = {"x": x, "bought": bought, "customer": customer, **wrong}
        with pytest.raises(ValueError, match=says):
            propensity.fit(options.pop("x"), options.pop("bought"), seed=0, **options)
