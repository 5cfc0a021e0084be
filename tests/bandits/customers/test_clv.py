"""Lifetime value: published estimates, published formulae, and customers made to measure."""

from datetime import date

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
from numpy.typing import NDArray

from bandits import artefact
from bandits.backend import jax_backend
from bandits.customers import clv, clv_fit
from bandits.customers.clv import Buying, History, Spending
from tests.bench.policies import data

#: Weeks since the first purchase, until the day that the published estimates are of.
UNTIL = date(1997, 9, 30).toordinal()
KNOWN = Buying(np.array([0.243, 4.414, 0.793, 2.426]), np.eye(4), np.zeros(()))


@pytest.fixture(scope="module")
def cdnow() -> History:
    rows = data.columns("cdnow")
    return clv.history(rows["customer"], rows["day"], rows["spend"], until=UNTIL, unit=7.0)[1]


@pytest.fixture(scope="module")
def buying(cdnow: History) -> Buying:
    return clv.fit_buying(cdnow)


@pytest.fixture(scope="module")
def spending(cdnow: History) -> Spending:
    return clv.fit_spending(cdnow)


def test_the_published_buying_to_three_decimals(cdnow: History, buying: Buying) -> None:
    assert len(cdnow.age) == 2357
    np.testing.assert_allclose(buying.estimate, [0.243, 4.414, 0.793, 2.426], atol=5e-4)
    assert float(buying.log_likelihood) == pytest.approx(-9582.4, abs=0.05)


def test_the_published_spending(cdnow: History, spending: Spending) -> None:
    """The v = 15.44 of the publication and of the purchases, 15.45 of the published table."""
    np.testing.assert_allclose(spending.estimate, [6.25, 3.74, 15.44], atol=5e-3)
    table = History(**data.columns("cdnow_customers"))
    np.testing.assert_allclose(clv.fit_spending(table).estimate, [6.25, 3.74, 15.45], atol=5e-3)
    np.testing.assert_allclose(
        clv.fit_buying(table).estimate, [0.243, 4.414, 0.793, 2.426], atol=5e-4
    )
    assert float(spending.correlation) == pytest.approx(0.11, abs=5e-3)


def test_purchases_are_added_up_by_day() -> None:
    customer = np.array([7, 3, 7, 7, 7, 3])
    day = np.array([10, 5, 24, 24, 31, 99])
    spend = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    who, found = clv.history(customer, day, spend, until=38, unit=7.0)
    assert who.tolist() == [3, 7]
    np.testing.assert_allclose(found.frequency, [0, 2])
    np.testing.assert_allclose(found.recency, [0, 3])
    np.testing.assert_allclose(found.age, [33 / 7, 4])
    np.testing.assert_allclose(found.spend, [0, 6])
    nobody = clv.history(customer, day, spend, until=0)
    assert len(nobody[0]) == len(nobody[1].age) == 0


def test_expected_purchases_are_the_published_formula() -> None:
    """Also where a buyer's hundreds of purchases overflow it in floating point, and where a = 1."""
    x, last, age = (
        np.array(v) for v in ([0.0, 1, 4, 60, 700], [0.0, 9, 30, 38, 50.9], [39.0] * 4 + [51])
    )
    for a in (0.793, 1.0, 2.5):
        known = KNOWN._replace(estimate=np.array([0.243, 4.414, a, 2.426]))
        for ahead in (0.5, 39.0, 520.0):
            found = clv.purchases(known, History(x, last, age, x * 0), ahead)
            for i in range(len(x)):
                exact = _published(known.estimate, x[i], last[i], age[i], ahead)
                assert found[i] == pytest.approx(exact, rel=2e-5 if a == 1 else 1e-9)


def _published(estimate: NDArray[np.float64], x: float, last: float, age: float, t: float) -> float:
    r, alpha, a, b = map(float, estimate)
    with mpmath.workdps(60):
        r, alpha, b, x, last, age, t = map(mpmath.mpf, (r, alpha, b, x, last, age, t))
        a = mpmath.mpf(a) + (mpmath.mpf(10) ** -25 if a == 1 else 0)
        f = mpmath.hyp2f1(r + x, b + x, a + b + x - 1, t / (alpha + age + t))
        shrunk = ((alpha + age) / (alpha + age + t)) ** (r + x)
        gone = a / (b + x - 1) * ((alpha + age) / (alpha + last)) ** (r + x) if x else 0
        return float((a + b + x - 1) / (a - 1) * (1 - shrunk * f) / (1 + gone))


def test_predictions_hold_for_the_weeks_that_followed(cdnow: History, buying: Buying) -> None:
    """The next 39 weeks of the same customers, which the estimates have not seen."""
    rows = data.columns("cdnow")
    later = clv.history(rows["customer"], rows["day"], rows["spend"], until=UNTIL + 273, unit=7.0)[
        1
    ]
    came = later.frequency - cdnow.frequency
    said = clv.purchases(buying, cdnow, 39.0)
    # 12 % too few: they came more often in these weeks than a model of those before can know.
    assert said.sum() == pytest.approx(came.sum(), rel=0.15)
    assert np.corrcoef(said, came)[0, 1] > 0.6
    probably, hardly = clv.alive(buying, cdnow) > 0.8, clv.alive(buying, cdnow) < 0.3
    repeated = cdnow.frequency > 0
    assert (came[probably & repeated] > 0).mean() > 2.5 * (came[hardly & repeated] > 0).mean()


def test_what_made_the_customers_is_found_again() -> None:
    truth = np.array([0.6, 5.0, 0.9, 2.0])
    seen, later, gone = _customers(7_000, truth, ahead=20.0, seed=1)
    found = clv.fit_buying(seen)
    off = (found.estimate - truth) / np.sqrt(np.diag(found.covariance))
    assert np.abs(off).max() < 3.5
    said = clv.purchases(found, seen, 20.0)
    assert said.mean() == pytest.approx(later.mean(), abs=4 * later.std() / np.sqrt(len(later)))
    for often in (seen.frequency == 1, seen.frequency >= 3):
        there = clv.alive(found, seen)[often]
        error = 4 * 0.5 / np.sqrt(len(there))
        assert there.mean() == pytest.approx(1 - gone[often].mean(), abs=error)


def _customers(
    count: int, truth: NDArray[np.float64], *, ahead: float, seed: int
) -> tuple[History, NDArray[np.float64], NDArray[np.float64]]:
    """Customers of a BG/NBD: their histories, purchases afterwards, and who had left by then."""
    rng = np.random.default_rng(seed)
    r, alpha, a, b = truth
    rate, leaves = rng.gamma(r, 1 / alpha, count), rng.beta(a, b, count)
    age = rng.uniform(10.0, 50.0, count)
    x, last, later = np.zeros(count), np.zeros(count), np.zeros(count)
    time, there, gone = np.zeros(count), np.ones(count, bool), np.zeros(count, bool)
    while there.any():
        time = time + rng.exponential(1 / np.maximum(rate, 1e-12))
        there &= time < age + ahead
        seen = there & (time < age)
        x += seen
        last = np.where(seen, time, last)
        later += there & ~seen
        left = there & (rng.random(count) < leaves)
        gone |= left & seen
        there &= ~left
    return History(x, last, age, np.where(x > 0, 20.0, 0.0)), later, gone


def test_value_is_spend_times_purchases_times_margin(
    cdnow: History, buying: Buying, spending: Spending
) -> None:
    plain = clv.value(buying, spending, cdnow, horizon=52.0, margin=0.3)
    expected = 0.3 * clv.spend(spending, cdnow) * clv.purchases(buying, cdnow, 52.0)
    np.testing.assert_allclose(plain, expected, rtol=1e-12)
    less = clv.value(buying, spending, cdnow, horizon=52.0, margin=0.3, discount=0.01)
    assert (less < plain).all()
    assert (less > plain * 1.01**-52).all()
    fine = clv.value(buying, spending, cdnow, horizon=52.0, margin=0.3, discount=0.01, steps=200)
    np.testing.assert_allclose(less, fine, rtol=1e-3)
    alone = clv.spend(spending, History(*(np.zeros(1) for _ in range(4))))[0]
    p, q, v = spending.estimate
    assert alone == pytest.approx(p * v / (q - 1))


def test_the_unit_of_time_and_money_changes_nothing_else(cdnow: History, buying: Buying) -> None:
    days = cdnow._replace(recency=cdnow.recency * 7, age=cdnow.age * 7)
    found = clv.fit_buying(days)
    np.testing.assert_allclose(found.estimate, buying.estimate * [1, 7, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(
        clv.purchases(found, days, 70.0), clv.purchases(buying, cdnow, 10.0), rtol=1e-6
    )


def test_a_fit_is_stored_like_any_state(buying: Buying, spending: Spending) -> None:
    for fitted in (buying, spending):
        kept = artefact.to_bytes(fitted, policy="clv")
        back = artefact.from_bytes(kept, like=fitted)
        assert artefact.digest(back) == artefact.digest(fitted)


def test_the_likelihoods_lower_for_a_gpu() -> None:
    jax_backend()
    rows, weight = np.ones((3, 8)), np.full(8, 1 / 8)
    for likelihood, columns, width in (
        (clv_fit._buying, rows, 4),
        (clv_fit._spending, rows[:2], 3),
    ):
        traced = clv_fit._loss.trace(likelihood, np.zeros(width), columns, weight)
        assert traced.lower(lowering_platforms=("cuda",)).as_text()


def test_what_cannot_be_fitted_is_refused(cdnow: History) -> None:
    new = History(np.zeros(9), np.zeros(9), np.arange(9.0), np.zeros(9))
    with pytest.raises(ValueError, match="nobody came back"):
        clv.fit_buying(new)
    with pytest.raises(ValueError, match="too few"):
        clv.fit_spending(new)
    with pytest.raises(ValueError, match="recency <= age"):
        clv.fit_buying(cdnow._replace(recency=cdnow.recency + 99))
    with pytest.raises(ValueError, match="finite"):
        clv.fit_buying(cdnow._replace(age=cdnow.age * np.nan))
    always = History(*(np.full(50, v) for v in (10.0, 38.0, 39.0, 5.0)))
    with pytest.raises(ValueError, match="no maximum"):
        clv.fit_buying(always)
