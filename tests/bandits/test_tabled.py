"""P(best) by a table, beside the rules that are proven against mpmath."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from bandits import kernels
from bandits.posteriors import best, graded, tabled

FREEDOM = (250.0, 251.5, 400.0, 3e3, 2e5, 1e12, np.inf)
Rows = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]


def _rows(arms: int, *, spread: float, widest: float) -> Rows:
    rng = np.random.default_rng(7)
    mask = rng.random((40, arms)) < 0.8
    mask[:, 0] = True
    return rng.normal(size=(40, arms)) * spread, rng.uniform(1.0, widest, (40, arms)), mask


@pytest.mark.parametrize("freedom", FREEDOM)
def test_the_table_is_students_distribution(freedom: float) -> None:
    t = np.linspace(-graded.HIGH, graded.HIGH, 10_008)
    logs, slopes = np.zeros(len(t)), np.empty((1, len(t)))
    step = 2 * graded.HIGH / (len(t) - 1) * tabled.CELLS
    begin = (tabled.REACH - graded.HIGH) * tabled.CELLS
    kernels._read(tabled._cubics(freedom), begin, step, len(t), logs, slopes, 0)
    assert abs(np.exp(logs) - stats.t.cdf(t, freedom)).max() < 1e-11
    density = np.exp(logs) * slopes[0] * tabled.CELLS
    assert abs(density - stats.t.pdf(t, freedom)).max() < 1e-9


@pytest.mark.parametrize("freedom", FREEDOM)
@pytest.mark.parametrize(("spread", "widest"), [(0.1, 1.0), (1.0, 1.3), (1.0, 6.0), (4.0, 20.0)])
def test_rows_agree_with_widening_panels(freedom: float, spread: float, widest: float) -> None:
    for arms in (2, 3, 10, 32):
        mean, scale, mask = _rows(arms, spread=spread, widest=widest)
        p = tabled.shares(mean, scale, freedom, mask)
        for place in range(40):
            on, one = mask[place], slice(place, place + 1)
            exact = graded.shares(mean[place, on], scale[place, on], np.full(on.sum(), freedom))
            assert exact is not None
            assert abs(p[place, on] - exact).max() < 3e-9
            assert (p[place, ~on] == 0.0).all()
            assert (tabled.shares(mean[one], scale[one], freedom, mask[one]) == p[one]).all()


def test_a_row_alone_is_what_student_gives() -> None:
    """Of all arms and of some; and where the table does not serve, by what does."""
    cases: list[tuple[float, Any]] = [(2e3, 1.0), (20.0, 1.0), (np.inf, [1.0, 1e-4, 1.0, 1.0])]
    for freedom, widths in cases:
        mean, scale = np.array([0.1, 0.0, 0.3, -0.2]), np.ones(4) * widths
        for mask in (np.ones(4, bool), np.array([True, False, True, True])):
            p = best.row(mean, scale, freedom, mask)
            free = np.full((1, 4), freedom)
            wanted = best.student(mean[None], scale[None], free, mask[None])[0]
            assert abs(p - wanted).max() < 1e-8
            assert p.sum() == pytest.approx(1.0, abs=1e-12)
            assert (p[~mask] == 0.0).all()


def test_what_it_does_not_fit_is_left_to_others() -> None:
    assert not tabled.applies(249.0, 3)
    assert not tabled.applies(math.nan, 3)
    assert not tabled.applies(1e4, tabled.ARMS + 1)
    mean, scale, mask = np.zeros((3, 3)), np.ones((3, 3)), np.ones((3, 3), bool)
    mean[1, 1], scale[2, 2] = np.nan, 1e-4
    p = tabled.shares(mean, scale, 1e4, mask)
    assert np.isnan(p).any(axis=1).tolist() == [False, True, True]
    # An arm without a spread, far below: nothing is divided by it.
    far = np.array([[0.0, 0.1, -99.0]]), np.array([[1.0, 1.0, 0.0]]), mask[:1]
    assert np.isnan(tabled.shares(far[0], far[1], 1e4, far[2])).all()
    # One that is not eligible may be anything.
    off = np.array([[True, True, False]])
    assert tabled.shares(far[0], far[1], 1e4, off)[0, 2] == 0.0
    free = np.full((3, 3), 1e4)
    served = best.student(mean[[0, 2]], scale[[0, 2]], free[:2], mask[:2])
    for place, row in enumerate((0, 2)):
        one = slice(row, row + 1)
        wanted = best.student(mean[one], scale[one], free[:1], mask[:1])
        assert abs(served[place] - wanted[0]).max() < 2e-9


def test_one_eligible_arm_is_certain() -> None:
    mask = np.zeros((20, 4), bool)
    mask[:, 2] = True
    p = best.student(np.zeros((20, 4)), np.ones((20, 4)), np.full((20, 4), 1e3), mask)
    assert (p == mask).all()


@pytest.mark.parametrize("freedom", [300.0, np.inf])
def test_rows_that_want_too_many_points_go_by_widening_panels(freedom: float) -> None:
    rng = np.random.default_rng(3)
    mean, scale = rng.normal(size=(60, 4)), rng.uniform(0.5, 2.0, (60, 4))
    scale[::2, 0] = 0.005
    mask, nu = np.ones((60, 4), bool), np.full((60, 4), freedom)
    table = tabled.shares(mean, scale, freedom, mask)
    assert (np.isnan(table).all(axis=1) == (np.arange(60) % 2 == 0)).all()
    p = best.student(mean, scale, nu, mask)
    alone = [best.student(*(one[row : row + 1] for one in (mean, scale, nu, mask)))[0]
             for row in range(60)]  # fmt: skip
    assert abs(p - alone).max() < 4e-9
