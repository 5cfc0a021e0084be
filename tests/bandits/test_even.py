"""P(best) of many rows at once, beside the rules that are proven against mpmath."""

import numpy as np
import pytest

from bandits.posteriors import best, even, tabled


def reference(mean: object, scale: object, freedom: object, mask: np.ndarray) -> np.ndarray:
    """Row by row, which the rule that is tested does not take."""
    arrays = [np.asarray(one) for one in (mean, scale, freedom, mask)]
    rows = [best.student(*(one[row : row + 1] for one in arrays)) for row in range(len(mask))]
    return np.concatenate(rows)


@pytest.mark.parametrize("freedom", [250.0, 400.0, 3e3, 2e5, 1e12, np.inf])
@pytest.mark.parametrize(("spread", "widest"), [(0.1, 1.0), (1.0, 1.3), (1.0, 6.0), (4.0, 20.0)])
def test_rows_agree_with_single_ones(freedom: float, spread: float, widest: float) -> None:
    rng = np.random.default_rng(7)
    for arms in (2, 3, 10, 32):
        mean = rng.normal(size=(40, arms)) * spread
        scale = rng.uniform(1.0, widest, (40, arms))
        mask = rng.random((40, arms)) < 0.8
        mask[:, 0] = True
        nu = np.full((40, arms), freedom)
        p = even.shares(mean, scale, nu, mask)
        total = p.sum(axis=1, keepdims=True)
        assert abs(total - 1.0).max() < 2e-8
        assert abs(p / total - reference(mean, scale, nu, mask)).max() < 4e-9
        assert (p[~mask] == 0.0).all()


def test_rows_that_it_does_not_fit_are_left_to_others() -> None:
    mean, scale = np.zeros((4, 3)), np.ones((4, 3))
    nu = np.array([[249.0] * 3, [1e4] * 3, [1e4, 1e4, 2.0], [np.nan] * 3])
    scale[1] = [1.0, 1e-4, 1.0]
    mask = np.ones((4, 3), bool)
    assert np.isnan(even.shares(mean, scale, nu, mask)).all()
    assert np.isnan(even.shares(np.zeros((1, 40)), np.ones((1, 40)), np.full((1, 40), np.inf),
                                np.ones((1, 40), bool))).all()  # fmt: skip
    many = best.student(*(np.repeat(one[:3], 9, axis=0) for one in (mean, scale, nu, mask)))
    few = reference(mean[:3], scale[:3], nu[:3], mask[:3])
    assert abs(many[::9] - few).max() < 1e-12


def test_one_eligible_arm_is_certain() -> None:
    mask = np.zeros((20, 4), bool)
    mask[:, 2] = True
    p = best.student(np.zeros((20, 4)), np.ones((20, 4)), np.full((20, 4), 1e3), mask)
    assert (p == mask).all()


@pytest.mark.parametrize("freedom", [300.0, np.inf])
def test_rows_that_the_table_is_too_short_for_go_by_it(freedom: float) -> None:
    rng = np.random.default_rng(3)
    mean, scale = rng.normal(size=(60, 4)), rng.uniform(0.5, 2.0, (60, 4))
    scale[::2, 0] = 0.02
    mask, nu = np.ones((60, 4), bool), np.full((60, 4), freedom)
    table = tabled.shares(mean, scale, freedom, mask)
    assert (np.isnan(table).all(axis=1) == (np.arange(60) % 2 == 0)).all()
    p = best.student(mean, scale, nu, mask)
    assert abs(p - reference(mean, scale, nu, mask)).max() < 4e-9
