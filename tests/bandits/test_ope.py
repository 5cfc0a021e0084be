"""Off-policy values: on a log with real propensities, by the book, and against known truths."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from bandits.evaluation import aipw, ope
from bandits.posteriors import best
from tests.bandits import open_bandit
from tests.bandits.worlds import thompson_logs

Floats = NDArray[np.float64]


def _open_bandit() -> tuple[ope.Log, Floats, open_bandit.Rows]:
    try:
        sdist = open_bandit.fetch(open_bandit.cache())
    except RuntimeError as error:
        pytest.fail(f"the Open Bandit sample is needed for this test: {error}")
    rows = open_bandit.rows(sdist, "random")
    shares = open_bandit.simulated(sdist)
    return ope.Log(rows.arm, rows.propensity, rows.click), shares.T[rows.position], rows


@pytest.mark.slow
def test_the_open_bandit_figures_come_out() -> None:
    """The figures that obp publishes and gave in a run of ours, to their last digit."""
    log, target, rows = _open_bandit()
    by_weight = ope.ips(log, target)
    assert round(by_weight.mean / rows.click.mean(), 6) == 1.198126
    assert round(by_weight.mean, 6) == 0.004553
    assert round(ope.snips(log, target).mean, 6) == 0.004776
    assert rows.click.sum() == 38
    own = open_bandit.rows(open_bandit.fetch(open_bandit.cache()), "bts").click.mean()
    assert own == 0.0042
    assert by_weight.lower < own < by_weight.upper
    assert by_weight.usable


@pytest.mark.slow
def test_exact_shares_are_what_the_simulation_approaches() -> None:
    """P(best) by quadrature over 80 arms, against 100,000 draws of the first position."""
    _open_bandit()
    sdist = open_bandit.fetch(open_bandit.cache())
    alpha, beta = open_bandit.prior(sdist)
    exact = best.beta(alpha[None], beta[None], np.ones((1, open_bandit.ARMS), bool))[0]
    drawn = open_bandit.simulated(sdist)[:, 0]
    error = np.sqrt(np.maximum(exact * (1 - exact), 1e-6) / 100_000)
    assert np.abs((drawn - exact) / error).max() < 4.5


def _log(seed: int, rows: int = 4000) -> tuple[ope.Log, Floats, Floats, float]:
    """Three arms, a context that matters, a known value of the target."""
    rng = np.random.default_rng(seed)
    x = rng.random(rows)
    mean = np.column_stack([0.2 + 0 * x, 0.6 * x, 0.5 - 0.4 * x])
    p = np.full((rows, 3), 0.1) + 0.7 * np.eye(3)[rng.integers(0, 3, rows)]
    arm = np.array([rng.choice(3, p=row) for row in p])
    reward = (rng.random(rows) < mean[np.arange(rows), arm]).astype(np.int64)
    target = 0.05 + 0.85 * np.eye(3)[mean.argmax(axis=1)]
    return ope.Log(arm, p[np.arange(rows), arm], reward), target, mean, float((target * mean).sum())


def test_every_estimator_is_its_formula() -> None:
    log, target, mean, _ = _log(0, rows=500)
    each = np.arange(500)
    w = target[each, log.arm] / log.propensity
    r, q = log.reward, (target * mean).sum(axis=1)
    left = r - mean[each, log.arm]
    cut, tau, lam = np.minimum(w, 3), np.where(w <= 4, w, 0), 5 * w / (w**2 + 5)
    for found, expected in (
        (ope.ips(log, target), w * r),
        (ope.ips(log, target, clip=3.0), cut * r),
        (ope.snips(log, target), w * r / w.mean()),
        (ope.direct(log, target, mean), q),
        (ope.robust(log, target, mean), q + w * left),
        (ope.robust(log, target, mean, clip=3.0), q + cut * left),
        (ope.switch(log, target, mean, tau=4.0), q + tau * left),
        (ope.shrunk(log, target, mean, strength=5.0), q + lam * left),
    ):
        assert found.mean == pytest.approx(expected.mean())
    found = ope.ips(log, target)
    assert found.error == pytest.approx((w * r).std(ddof=1) / 500**0.5)
    assert found.effective == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert found.largest == pytest.approx(w.max() / w.sum())
    assert found.weight == pytest.approx(w.mean())
    assert not found.usable
    everything = ope.shrunk(log, target, mean, strength=1e12).mean
    assert everything == pytest.approx(ope.robust(log, target, mean).mean)
    nothing = ope.switch(log, target, mean, tau=0.0).mean
    assert nothing == pytest.approx(ope.direct(log, target, mean).mean)


def test_intervals_cover_and_a_prediction_shortens_them() -> None:
    held, width = np.zeros(3), np.zeros(3)
    runs = 200
    for seed in range(runs):
        log, target, mean, total = _log(seed, rows=1000)
        truth = total / 1000
        for k, found in enumerate(
            (ope.ips(log, target), ope.snips(log, target), ope.robust(log, target, mean))
        ):
            held[k] += found.lower <= truth <= found.upper
            width[k] += found.upper - found.lower
    assert (held / runs >= 0.9).all()
    assert width[2] < width[1] < width[0]


def test_a_wrong_prediction_misleads_the_direct_method_alone() -> None:
    log, target, mean, total = _log(1, rows=20_000)
    truth, wrong = total / 20_000, mean[:, ::-1] + 0.3
    assert not abs(ope.direct(log, target, wrong).mean - truth) < 0.1
    found = ope.robust(log, target, wrong)
    assert found.lower <= truth <= found.upper


@pytest.mark.slow
def test_intervals_hold_on_logs_of_a_policy_that_learns() -> None:
    """Thompson sampling with a 5 % floor, 500 logs, predictions from earlier rows only."""
    rates = np.array([0.1, 0.15, 0.12])
    logs = thompson_logs(list(rates), runs=500, batches=40, size=100, floor=0.05, seed=21)
    held = 0
    for arm, p, reward in zip(*logs, strict=True):
        each = np.arange(len(arm))
        predicted = aipw.running_means(arm, reward, 0 * arm, arms=3)
        target = np.tile([0.1, 0.2, 0.7], (len(arm), 1))
        found = ope.robust(ope.Log(arm, p[each, arm], reward), target, predicted)
        held += found.lower <= target[0] @ rates <= found.upper
    assert held / 500 >= 0.92


def test_what_is_wrong_is_named() -> None:
    log, target, mean, _ = _log(2, rows=50)
    calls: tuple[tuple[Callable[[], ope.Value], str], ...] = (
        (lambda: ope.ips(log._replace(propensity=0 * log.propensity), target), "propensity"),
        (lambda: ope.ips(log, target[:-1]), "same N"),
        (lambda: ope.ips(log, target * 2), "simplex"),
        (lambda: ope.ips(log, target, clip=0.0), "clip"),
        (lambda: ope.robust(log, target, mean[:, :2]), "predicted"),
        (lambda: ope.switch(log, target, mean, tau=-1.0), "tau"),
        (lambda: ope.shrunk(log, target, mean, strength=0.0), "strength"),
    )
    for call, match in calls:
        with pytest.raises(ValueError, match=match):
            call()
    unseen = ope.snips(log._replace(arm=0 * log.arm), np.tile([0.0, 0.5, 0.5], (50, 1)))
    assert np.isnan(unseen.mean)
    assert not unseen.usable
