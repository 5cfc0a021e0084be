"""P(arm is best): against mpmath, against closed forms, on both backends, and at the edges."""

import json
import random
import time
import tracemalloc
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import integrate, special, stats

from bandits import backend
from bandits.posteriors import best, graded
from tests.bandits import best_oracle

Floats = NDArray[np.float64]


def table() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(best_oracle.TABLE.read_text(encoding="utf-8"))
    return rows


def _row(state: dict[str, Any], field: str, width: int, fill: float) -> Floats:
    values = state[field]
    return np.array([values + [fill] * (width - len(values))], dtype=np.float64)


def probabilities(
    state: dict[str, Any], space: backend.Backend, *, width: int | None = None
) -> Floats:
    """The raw probabilities, padded with masked arms to ``width`` so that JAX compiles once."""
    arms = len(state["p"])
    width = width or arms
    mask = np.arange(width)[None, :] < arms
    if state["kind"] == "student":
        mean, scale = _row(state, "mean", width, 0.0), _row(state, "scale", width, 1.0)
        freedom = _row(state, "freedom", width, 2.0)
        p = best.raw_student(mean, scale, freedom, mask, backend=space)
    else:
        a, b = _row(state, "a", width, 1.0), _row(state, "b", width, 1.0)
        value = _row(state, "value", width, 1.0) if state["kind"] == "value" else None
        p = best.raw(a, b, mask, value=value, backend=space)
    out = np.asarray(p)[0]
    assert (out[arms:] == 0).all()
    kept: Floats = out[:arms]
    return kept


def test_the_table_reaches_the_sizes_that_matter() -> None:
    states = table()
    counts = [max(s["freedom"]) for s in states if "freedom" in s]
    counts += [max(map(sum, zip(s["a"], s["b"], strict=True))) for s in states if "a" in s]
    assert len(states) == best_oracle.STATES
    assert max(len(s["p"]) for s in states) >= 45
    assert max(counts) > 1e6
    assert {s["kind"] for s in states} == {"beta", "value", "student"}


def test_numpy_agrees_with_mpmath_on_every_state() -> None:
    errors, sums = [], []
    for state in table():
        raw = probabilities(state, backend.numpy_backend())
        errors.append(np.abs(raw - state["p"]).max())
        sums.append(abs(raw.sum() - 1))
    assert max(errors) <= 1e-6
    assert np.median(errors) <= 1e-9
    assert max(sums) <= 1e-9


def test_jax_agrees_with_numpy_and_mpmath() -> None:
    space = backend.jax_backend()
    states = [s for s in table() if len(s["p"]) <= 8]
    for state in states[::5]:
        raw = probabilities(state, space, width=8)
        assert np.abs(raw - state["p"]).max() <= 1e-6
        assert np.abs(raw - probabilities(state, backend.numpy_backend())).max() <= 1e-9
        assert abs(raw.sum() - 1) <= 1e-9


@pytest.mark.parametrize("index", [4, 7, 9])
def test_the_table_is_what_the_oracle_computes(index: int) -> None:
    state = best_oracle.random_state(random.Random(index))
    known = table()[index]
    assert {**state, "p": known["p"]} == known
    np.testing.assert_allclose(
        [float(x) for x in best_oracle.probabilities(state)], known["p"], atol=1e-13
    )


def test_the_oracle_agrees_with_mpmaths_own_quadrature() -> None:
    state = {"kind": "value", "a": [3.5, 1.0], "b": [2.0, 9.0], "value": [3.0, 7.0]}
    slow = [float(x) for x in best_oracle.direct(state)]
    quick = [float(x) for x in best_oracle.probabilities(state)]
    np.testing.assert_allclose(quick, slow, atol=1e-9)


def test_two_gaussians_have_a_closed_form() -> None:
    rng = np.random.default_rng(1)
    mean, sd = rng.normal(0, 3, (200, 2)), 10 ** rng.uniform(-3, 2, (200, 2))
    p = best.gaussian(mean, sd, np.ones((200, 2), dtype=bool))
    exact = stats.norm.cdf((mean[:, 0] - mean[:, 1]) / np.hypot(sd[:, 0], sd[:, 1]))
    np.testing.assert_allclose(p[:, 0], exact, atol=1e-9)


def test_two_betas_have_a_closed_form() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        a, c = rng.integers(1, 400, 2)
        b, d = rng.integers(1, 4000, 2)
        i = np.arange(c)
        logs = special.betaln(a + i, b + d) - np.log(d + i)
        logs -= special.betaln(1 + i, d) + special.betaln(a, b)
        p = best.beta(
            np.array([[a, c]], dtype=float),
            np.array([[b, d]], dtype=float),
            np.ones((1, 2), dtype=bool),
        )
        assert abs(p[0, 1] - np.exp(logs).sum()) <= 1e-9


@pytest.mark.parametrize(("least", "tolerance"), [(1.0, 1e-7), (1.3, 1e-7), (0.5, 5e-5)])
def test_an_arm_that_ends_below_a_better_payer(least: float, tolerance: float) -> None:
    """The hardest case, an algebraic singularity inside the range: so b >= 1 is asked for."""
    a, b, m = [0.5, 3.5, 0.5], [least, 6.0, least], [1.0, 3.0, 2.0]
    p = best.beta(np.array([a]), np.array([b]), np.ones((1, 3), dtype=bool), value=np.array([m]))

    def integrand(y: float) -> float:
        others = stats.beta.cdf(y, 0.5, least) * stats.beta.cdf(y / 2, 0.5, least)
        return float(stats.beta.pdf(y / 3, 3.5, 6.0) / 3 * others)

    exact, _ = integrate.quad(integrand, 0, 3, points=[1, 2], epsabs=1e-11, limit=500)
    assert abs(p[0, 1] - exact) <= tolerance


def test_extremes_give_a_simplex_and_no_warning() -> None:
    a = np.array([[0.5, 1e9, 0.5, 2e6], [0.5, 0.5, 0.5, 0.5], [1e9, 1e9, 1.0, 1.0]])
    b = np.array([[1e9, 0.5, 0.5, 2e6], [1e9, 1e9, 1e9, 1e9], [1e9, 1e9, 1.0, 1e6]])
    value = np.array([[1e-3, 1e9, 1.0, 1e5]] * 3)
    mask = np.ones((3, 4), dtype=bool)
    for p in (best.beta(a, b, mask), best.beta(a, b, mask, value=value)):
        assert np.isfinite(p).all()
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-9)
    mean = np.array([[-1e9, 0.0, 1e9, 1e9]])
    scale, freedom = np.array([[1e-3, 1e9, 1e-6, 1e9]]), np.array([[2.0, 1e9, 4.0, 2.0]])
    p = best.student(mean, scale, freedom, mask[:1])
    assert abs(p.sum() - 1) <= 1e-9


def test_a_raw_sum_off_by_more_than_the_tolerance_falls_back_to_equal_shares() -> None:
    raw = np.array([[0.5, 0.4, 0.0], [0.7, 0.3 + 5e-7, 0.0], [np.nan, 0.5, 0.0]])
    mask = np.array([[True, True, False]] * 3)
    p = best._settle(raw, mask, backend.numpy_backend())
    np.testing.assert_allclose(p[[0, 2]], [[0.5, 0.5, 0]] * 2)
    np.testing.assert_allclose(p[1].sum(), 1, atol=1e-15)


def test_float32_is_refused() -> None:
    mask = np.ones((1, 2), dtype=bool)
    single = np.ones((1, 2), dtype=np.float32)
    with pytest.raises(TypeError, match="float64"):
        best.beta(single, single, mask)
    with pytest.raises(TypeError, match="float64"):
        best.student(single, single, single, mask, backend=backend.jax_backend())


def test_many_rows_are_computed_in_pieces() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.uniform(1, 50, (200, 6)), rng.uniform(1, 500, (200, 6))
    mask = np.ones((200, 6), dtype=bool)
    together = best.beta(a, b, mask)
    alone = np.concatenate([best.beta(a[i : i + 1], b[i : i + 1], mask[:1]) for i in range(200)])
    np.testing.assert_allclose(together, alone, atol=1e-14)
    space = backend.jax_backend()
    jax = space.jit(partial(best.beta, backend=space))(a, b, mask)
    np.testing.assert_allclose(together, np.asarray(jax), atol=1e-12)


def _many(kind: str, arms: int, seed: int) -> tuple[Floats, ...]:
    """Arms of widths from 1 to a millionth, tails down to Cauchy's, and ends inside the range."""
    rng = np.random.default_rng(seed)
    if kind == "student":
        width = rng.choice([0.0, -1.0, -3.0, -6.0])
        tails = [(6.0, 6.0), (1.5, 3.0), (0.3, 1.0), (0.0, 0.2)][seed % 4]
        mean = rng.normal(size=(1, arms)) * rng.choice([0.1, 1.0, 10.0])
        scale = 10 ** rng.uniform(width, 0, (1, arms))
        return mean, scale, 10 ** rng.uniform(*tails, (1, arms))
    trials = 10 ** rng.uniform(0, [1, 3, 6][seed % 3], (1, arms))
    rate = np.minimum(rng.choice([0.01, 0.3]) * np.exp(0.3 * rng.normal(size=(1, arms))), 0.9)
    value = 10 ** rng.uniform(0, 1 if kind == "value" else 0, (1, arms))
    return 1 + trials * rate, 1 + trials * (1 - rate), value


def _raw(kind: str, parameters: tuple[Floats, ...], mask: NDArray[np.bool_]) -> Floats:
    one, two, three = parameters
    p: Floats
    if kind == "student":
        p = best.raw_student(one, two, three, mask)
    else:
        p = best.raw(one, two, mask, value=None if kind == "beta" else three)
    return p


@pytest.mark.parametrize("kind", ["student", "beta", "value"])
@pytest.mark.parametrize("arms", [best.FEW + 1, 120])
def test_shared_cuts_give_what_every_arms_cuts_give(
    kind: str, arms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graded, "NEAR", np.inf)
    for seed in range(12):
        parameters = _many(kind, arms, seed)
        mask = np.random.default_rng(seed).random((1, arms)) < 0.9
        shared = _raw(kind, parameters, mask)
        with monkeypatch.context() as patch:
            patch.setattr(best, "FEW", arms)
            own = _raw(kind, parameters, mask)
        assert np.abs(shared - own).max() <= 1e-6
        assert abs(shared.sum() - 1) <= 1e-7
        assert (shared[~mask] == 0).all()


def test_many_arms_agree_on_jax() -> None:
    mean, scale, freedom = _many("student", 40, 1)
    mask = np.arange(40)[None, :] != 7
    p = best.student(mean, scale, freedom, mask)
    q = best.student(mean, scale, freedom, mask, backend=backend.jax_backend())
    np.testing.assert_allclose(p, np.asarray(q), atol=1e-9)


def _nearly_gaussian(seed: int) -> tuple[Floats, ...]:
    """2 to 40 arms, scales within 2 to 300,000 of each other, degrees of freedom from 30 to inf."""
    rng = np.random.default_rng(seed)
    arms = int(rng.integers(2, 41))
    scale = np.exp(rng.uniform(0, 1, (1, arms)) * np.log([2.0, 20.0, 3e3, 3e5][seed % 4]))
    mean = rng.normal(size=(1, arms)) * scale * rng.choice([0.01, 0.3, 1.0, 3.0])
    freedom = 10 ** rng.uniform(1.5, [2.0, 5.0, 9.0][seed % 3], (1, arms))
    if seed % 5 == 0:
        freedom = np.full((1, arms), rng.choice([30.0, 1e3, 2e5, np.inf]))
    return mean + 1e3 * (seed % 2), scale, freedom


def test_widening_panels_give_what_every_arms_cuts_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best, "FEW", 40)
    for seed in range(200):
        mean, scale, freedom = _nearly_gaussian(seed)
        mask = np.random.default_rng(seed).random(mean.shape) < 0.9
        mask[0, 0] = True
        graded_shares = graded.shares(mean[mask], scale[mask], freedom[mask])
        assert graded_shares is not None
        p = best.raw_student(mean, scale, freedom, mask)
        np.testing.assert_array_equal(p[mask], graded_shares)
        assert (p[~mask] == 0).all()
        with monkeypatch.context() as patch:
            patch.setattr(graded, "NEAR", np.inf)
            own = best.raw_student(mean, scale, freedom, mask)
        np.testing.assert_allclose(p, own, atol=1e-9)


def test_widening_panels_hold_for_thousands_of_arms_alike() -> None:
    """Equal arms have equal shares, and a better one of many has what scipy integrates."""
    arms = 5000
    mean, scale, freedom = np.zeros((1, arms)), np.ones((1, arms)), np.full((1, arms), np.inf)
    mask = np.ones((1, arms), dtype=bool)
    np.testing.assert_allclose(best.gaussian(mean, scale, mask), 1 / arms, rtol=1e-9)
    mean[0, 7] = 2.0

    def integrand(y: float) -> float:
        return float(stats.norm.pdf(y - 2.0) * stats.norm.cdf(y) ** (arms - 1))

    exact, _ = integrate.quad(integrand, 0, 12, epsabs=1e-13, limit=500)
    p = best.raw_student(mean, scale, freedom, mask)
    assert abs(p[0, 7] - exact) <= 1e-10
    assert abs(p.sum() - 1) <= 1e-7


def test_rows_that_widening_panels_do_not_serve_go_the_other_way() -> None:
    mean = np.array([[0.0, 1.0], [0.0, 1.0], [np.nan, 1.0], [0.0, 1.0]])
    scale = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1e9]])
    freedom = np.array([[29.0, 50.0], [30.0, 50.0], [50.0, 50.0], [50.0, 50.0]])
    served = [graded.shares(*row) is not None for row in zip(mean, scale, freedom, strict=True)]
    assert served == [False, True, False, False]
    p = best.student(mean, scale, freedom, np.ones((4, 2), dtype=bool))
    np.testing.assert_allclose(p[0], p[1], atol=1e-3)
    np.testing.assert_allclose(p[2:], 0.5, atol=1e-6)


def test_an_arm_far_below_changes_nothing_but_has_nothing() -> None:
    rng = np.random.default_rng(8)
    mean, scale, freedom = rng.normal(size=(1, 6)), np.ones((1, 6)), np.full((1, 6), 200.0)
    alone = best.student(mean, scale, freedom, np.ones((1, 6), dtype=bool))
    mean, scale = np.append(mean, [[-50.0]], axis=1), np.append(scale, [[1e-6]], axis=1)
    more = best.student(mean, scale, np.full((1, 7), 200.0), np.ones((1, 7), dtype=bool))
    np.testing.assert_allclose(more[0, :6], alone[0], atol=1e-15)
    assert more[0, 6] == 0


def test_a_row_of_a_batch_is_what_it_is_alone() -> None:
    """By another rule, to nine digits; in every bit where arms have tails that no other takes."""
    rng = np.random.default_rng(9)
    mean, scale = rng.normal(size=(50, 5)), np.exp(rng.normal(size=(50, 5)))
    mask = np.arange(5)[None, :] != rng.integers(0, 5, (50, 1))
    for free, tolerance in ((500.0, 2e-9), (100.0, 0.0)):
        freedom = np.full((50, 5), free)
        many = best.student(mean, scale, freedom, mask)
        for row in range(50):
            part = slice(row, row + 1)
            alone = best.student(mean[part], scale[part], freedom[part], mask[part])
            assert abs(many[part] - alone).max() <= tolerance


def test_time_and_memory_are_linear_in_the_arms() -> None:
    """Four times the arms: well below the sixteen of a square, on a busy machine too."""
    took, held = [], []
    for arms in (1000, 4000):
        parameters = _many("student", arms, 1)
        mask = np.ones((1, arms), dtype=bool)
        tracemalloc.start()
        p = _raw("student", parameters, mask)
        held.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert abs(p.sum() - 1) <= 1e-7
        times = []
        for _ in range(3):
            start = time.perf_counter()
            _raw("student", parameters, mask)
            times.append(time.perf_counter() - start)
        took.append(min(times))
    assert took[1] < 8 * took[0]
    assert held[1] < 5 * held[0]


def test_ten_arms_take_about_a_millisecond() -> None:
    """A loose bound for busy machines; README.md gives the measured figure."""
    a, b = np.full((1, 10), 30.0) + np.arange(10), np.full((1, 10), 900.0)
    mask = np.ones((1, 10), dtype=bool)
    times = []
    for _ in range(30):
        start = time.perf_counter()
        best.beta(a, b, mask)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.01
