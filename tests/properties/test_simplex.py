"""Simplex operations on whatever Hypothesis can think of."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bandits import backend, simplex

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("steady")

Case = tuple[NDArray[np.float64], NDArray[np.bool_]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Weights (B, A), some of them zero, and masks with an eligible arm in every row."""
    rows, arms = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    weight = st.one_of(st.just(0.0), st.floats(1e-300, 1e-3), st.floats(1e-3, 1.0))
    p = np.array(draw(st.lists(weight, min_size=rows * arms, max_size=rows * arms)))
    mask = np.array(draw(st.lists(st.booleans(), min_size=rows * arms, max_size=rows * arms)))
    p, mask = p.reshape(rows, arms), mask.reshape(rows, arms)
    sure = draw(st.lists(st.integers(0, arms - 1), min_size=rows, max_size=rows))
    mask[np.arange(rows), sure] = True
    return p, mask


probability = st.floats(0.0, 1.0)


@given(cases())
def test_mask_gives_a_simplex_in_proportion(case: Case) -> None:
    p, mask = case
    q = simplex.mask(p, mask)
    simplex.check(q, mask)
    total = np.where(mask, p, 0).sum(axis=1, keepdims=True)
    some = total[:, 0] > 0
    expected = (np.where(mask, p, 0) / np.where(total > 0, total, 1))[some]
    np.testing.assert_allclose(q[some], expected, rtol=1e-12)


@given(cases(), probability)
def test_floor_is_kept_and_order_too(case: Case, floor: float) -> None:
    p, mask = case
    q = simplex.mask(p, mask)
    out = simplex.floor(q, mask, floor=floor)
    simplex.check(out, mask)
    least = np.minimum(floor, 1 / mask.sum(axis=1))
    assert (np.where(mask, out, 1).min(axis=1) >= least).all()
    for before, after, allowed in zip(q, out, mask, strict=True):
        assert (np.diff(after[allowed][np.argsort(before[allowed])]) >= -1e-15).all()


@given(cases(), probability)
def test_cap_is_kept_where_it_can_hold(case: Case, cap: float) -> None:
    p, mask = case
    out = simplex.cap(simplex.mask(p, mask), mask, cap=cap)
    simplex.check(out, mask)
    possible = np.maximum(cap, 1 / mask.sum(axis=1))
    assert (out.max(axis=1) <= possible + 1e-12).all()


@given(cases(), st.lists(probability, min_size=7, max_size=7), probability)
def test_guard_keeps_floor_and_caps_by_arm(case: Case, caps: list[float], floor: float) -> None:
    p, mask = case
    cap = np.array(caps[: p.shape[1]])
    out = simplex.guard(p, mask, floor=floor, cap=cap)
    simplex.check(out, mask)
    least = np.minimum(floor, 1 / mask.sum(axis=1, keepdims=True))
    assert (out >= np.where(mask, least, 0) - 1e-12).all()
    limit = np.where(mask, np.maximum(cap, least), 0)
    feasible = limit.sum(axis=1) >= 1
    assert (out <= limit + 1e-12)[feasible].all()


@given(cases())
def test_an_idle_guard_changes_nothing(case: Case) -> None:
    p, mask = case
    q = simplex.mask(p, mask)
    np.testing.assert_allclose(simplex.guard(q, mask, floor=0.0, cap=1.0), q, atol=1e-15)


@given(cases(), probability)
def test_water_filling_keeps_the_proportions_of_uncapped_arms(case: Case, cap: float) -> None:
    p, mask = case
    q = simplex.mask(p, mask)
    out = simplex.cap(q, mask, cap=cap)
    for before, after, allowed in zip(q, out, mask, strict=True):
        free = allowed & (before > 1e-6) & (after < cap - 1e-9)
        placed = (after[before <= 1e-6] <= 1e-4).all()
        if placed and free.sum() > 1 and cap * allowed.sum() > 1:
            ratio = after[free] / before[free]
            np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)


@given(cases(), probability)
def test_mix_stays_between(case: Case, weight: float) -> None:
    p, mask = case
    q, u = simplex.mask(p, mask), simplex.uniform(mask)
    out = simplex.mix(q, u, weight=weight)
    simplex.check(out, mask)
    assert (out <= np.maximum(q, u) + 1e-15).all()
    assert (out >= np.minimum(q, u) - 1e-15).all()


def test_jax_gives_the_same() -> None:
    space = backend.jax_backend()
    rng = np.random.default_rng(0)
    p, mask = rng.dirichlet(np.full(6, 0.2), 300), rng.random((300, 6)) < 0.6
    mask[:, 2] = True
    jitted = space.jit(simplex.guard)
    for floor, cap in ((0.0, 1.0), (0.02, 0.5), (0.3, 0.1), (0.0, 0.3)):
        mine = simplex.guard(p, mask, floor=floor, cap=cap)
        theirs = jitted(p, mask, floor=floor, cap=cap)
        np.testing.assert_allclose(mine, np.asarray(theirs), atol=1e-12)


def test_check_names_what_is_wrong() -> None:
    mask = np.array([True, True, False])
    for p, match in (
        ([0.5, np.nan, 0.0], "finite"),
        ([1.5, -0.5, 0.0], "negative"),
        ([0.5, 0.4, 0.1], "masked"),
        ([0.5, 0.4, 0.0], "sum"),
    ):
        with pytest.raises(ValueError, match=match):
            simplex.check(np.array(p), mask)


@settings(deadline=None)
@given(cases(), st.floats(0, 0.5))
def test_a_guard_made_for_a_mask_gives_the_same_numbers(case: Case, floor: float) -> None:
    p, mask = case
    expected = simplex.guard(p, mask, floor=floor)
    np.testing.assert_array_equal(simplex.guarding(mask, floor=floor)(p), expected)
