"""The contract that every registered policy keeps, on both backends."""

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from bandits import artefact, backend, features, policies, sampling, simplex
from bandits.types import ArmSums, Batch, Contexts, Policy

ARMS, SEGMENTS, FEATURES, ROWS = 5, 3, 2, 600

#: Options that change what is kept or how arms are compared: as good as policies of their own.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear_thompson, diagonal": ("linear_thompson", {"covariance": "diagonal"}),
    "linear_ucb, diagonal": ("linear_ucb", {"covariance": "diagonal"}),
    "linear_thompson, shared": ("linear_thompson", {"sharing": "shared"}),
    "linear_ucb, shared": ("linear_ucb", {"sharing": "shared"}),
}

each_policy = pytest.mark.parametrize("name", [*policies.NAMES, *VARIANTS])


def _contexts(segment: NDArray[Any]) -> Contexts:
    x = np.random.default_rng(len(segment)).normal(size=(len(segment), FEATURES))
    return Contexts(segment.astype(np.int32), features.quantise(x))


def _batch(*, seed: int = 0, rows: int = ROWS) -> Batch:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(ARMS), size=rows)
    arm = sampling.draws(p, rng.random(rows))
    conversions = (rng.random(rows) < 0.05 + 0.03 * arm).astype(np.int64)
    reward = conversions * rng.integers(200, 900, rows)
    segment = rng.integers(0, SEGMENTS, rows)
    return Batch(_contexts(segment), arm, p, conversions, reward, np.ones(rows, dtype=np.int64))


def _mask(*, seed: int = 1, rows: int = 40) -> NDArray[np.bool_]:
    rng = np.random.default_rng(seed)
    mask = rng.random((rows, ARMS)) < 0.6
    mask[np.arange(rows), rng.integers(0, ARMS, rows)] = True
    return mask


def _policy(name: str, *, space: str = "numpy", order: NDArray[Any] | None = None) -> Policy:
    """With options that differ by arm, given in ``order``."""
    order = np.arange(ARMS) if order is None else order
    name, fixed = VARIANTS.get(name, (name, {}))
    options: dict[str, Any] = dict(fixed)
    if "sharing" in options:
        options["depth"] = np.array([0.0, 0.1, 0.2, 0.05, 0.3])[order]
    if name == "fixed_split":
        options["shares"] = np.array([5.0, 1.0, 0.0, 2.0, 3.0])[order]
    if name == "thompson_hierarchical":
        options["depth"] = np.tile(np.array([0.0, 0.1, 0.2, 0.05, 0.3])[order], (3, 1))
    if name in ("thompson_profit", "thompson_hierarchical"):
        options["value"] = np.tile(np.array([900.0, 700.0, 400.0, 650.0, -5.0])[order], (3, 1))
    return policies.make(
        name, arms=ARMS, segments=SEGMENTS, features=FEATURES, backend=space, **options
    )


def _learnt(policy: Policy, batch: Batch) -> Any:
    """The state after a batch, with everything fitted that is fitted."""
    state = policy.update(policy.init(), batch)
    return state if policy.retrain is None else policy.retrain(state, batch, 0)


def _serve(policy: Policy, state: Any, contexts: Contexts, mask: Any) -> Any:
    return policy.probabilities(policy.believe(state), contexts, mask)


SEGMENT = np.arange(40) % SEGMENTS


@each_policy
def test_gives_a_simplex_and_nothing_to_masked_arms(name: str) -> None:
    policy, mask = _policy(name), _mask()
    for state in (policy.init(), _learnt(policy, _batch())):
        p = _serve(policy, state, _contexts(SEGMENT), mask)
        assert p.shape == mask.shape
        assert p.dtype == np.float64
        simplex.check(p, mask)


@each_policy
def test_one_row_alone_is_what_it_is_among_others(name: str) -> None:
    policy, mask = _policy(name), _mask()
    if policy.single is None:
        assert name not in ("linear_thompson", "logistic_thompson")
        return
    contexts = _contexts(SEGMENT)
    states = [policy.init(), *(_learnt(policy, _batch(rows=rows)) for rows in (30, 260))]
    for state in states:
        belief = policy.believe(state)
        p = policy.probabilities(belief, contexts, mask)
        for row in range(len(mask)):
            segment = int(contexts.segment[row])
            alone = policy.single(belief, segment, contexts.features[row], mask[row])
            np.testing.assert_allclose(alone, p[row], atol=1e-8)
            assert (alone[~mask[row]] == 0.0).all()
            # Of 250 outcomes and more all rows go by the table, in the same order of sums.
            assert state is not states[-1] or (alone == p[row]).all()
    for segment, width, arms, wrong in (
        (SEGMENTS, FEATURES, ARMS, "segment must be"), (-1, FEATURES, ARMS, "segment must be"),
        (0, FEATURES + 1, ARMS, "must be"), (0, FEATURES, ARMS - 1, "must be"),
        (0, FEATURES, 0, "must be"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=wrong):
            policy.single(belief, segment, np.zeros(width, np.int64), np.ones(arms, bool))
    with pytest.raises(ValueError, match="no eligible arm"):
        policy.single(belief, 0, np.zeros(FEATURES, np.int64), np.zeros(ARMS, bool))


@each_policy
def test_keeps_floor_and_cap_after_the_guard(name: str) -> None:
    policy, mask = _policy(name), _mask()
    state = _learnt(policy, _batch())
    p = _serve(policy, state, _contexts(SEGMENT), mask)
    guarded = simplex.guard(p, mask, floor=0.03, cap=0.6)
    simplex.check(guarded, mask)
    assert (guarded[mask] >= 0.03).all()
    free = mask.sum(axis=1) > 1
    assert (guarded[free] <= 0.6 + 1e-15).all()


@each_policy
def test_is_equivariant_under_permutation_of_the_arms(name: str) -> None:
    order = np.array([3, 0, 4, 2, 1])
    mask = _mask()
    batch = _batch()
    moved = batch._replace(
        arm=np.argsort(order)[batch.arm].astype(np.int32), simplex=batch.simplex[:, order]
    )
    one, two = _policy(name), _policy(name, order=order)
    p = _serve(one, _learnt(one, batch), _contexts(SEGMENT), mask)
    state = _learnt(two, moved)
    q = _serve(two, state, _contexts(SEGMENT), mask[:, order])
    np.testing.assert_allclose(q, p[:, order], atol=1e-12)


@pytest.mark.parametrize("name", [s.name for s in policies.catalogue() if not s.pooled])
def test_segments_do_not_see_each_other(name: str) -> None:
    policy = _policy(name)
    batch = _batch()
    elsewhere = batch._replace(contexts=_contexts(np.ones(ROWS)))
    state = _learnt(policy, elsewhere)
    mask = np.ones((1, ARMS), dtype=bool)
    fresh = _serve(policy, policy.init(), _contexts(np.array([2])), mask)
    later = _serve(policy, state, _contexts(np.array([2])), mask)
    np.testing.assert_array_equal(fresh, later)


@each_policy
def test_numpy_and_jax_agree(name: str) -> None:
    one, two = _policy(name), _policy(name, space="jax")
    batch, mask = _batch(), _mask()
    state, other = _learnt(one, batch), _learnt(two, batch)
    assert artefact.digest(state) == artefact.digest(other)
    p = _serve(one, state, _contexts(SEGMENT), mask)
    q = _serve(two, other, _contexts(SEGMENT), mask)
    assert str(q.dtype) == "float64"
    np.testing.assert_allclose(p, np.asarray(q), atol=1e-9)


@each_policy
def test_is_traced_once_under_jit(name: str) -> None:
    backend.jax_backend()
    import jax

    policy = _policy(name, space="jax")
    hosted = policies.describe(VARIANTS.get(name, (name, {}))[0]).hosted
    traces = 0

    def counted(state: ArmSums, contexts: Contexts, mask: Any) -> Any:
        nonlocal traces
        traces += 1
        if hosted:
            return policy.probabilities(state, contexts, mask)
        return _serve(policy, state, contexts, mask)

    jitted = jax.jit(counted)
    for seed in range(3):
        state = _learnt(policy, _batch(seed=seed))
        mask = _mask(seed=seed)
        inside = jitted(policy.believe(state) if hosted else state, _contexts(SEGMENT), mask)
        outside = _serve(policy, state, _contexts(SEGMENT), mask)
        np.testing.assert_allclose(np.asarray(inside), np.asarray(outside), atol=1e-12)
    assert traces == 1


@each_policy
def test_the_sampler_draws_what_the_simplex_says(name: str) -> None:
    """Invariant 1: chi-square of a million draws against the simplex, p > 0.001."""
    policy = _policy(name)
    state = _learnt(policy, _batch(rows=200))
    mask = np.ones((1, ARMS), dtype=bool)
    p = _serve(policy, state, _contexts(np.zeros(1)), mask)
    p = simplex.guard(p, mask, floor=0.01)
    u = np.random.default_rng(11).random(1_000_000)
    counts = np.bincount(sampling.draws(np.repeat(p, len(u), axis=0), u), minlength=ARMS)
    assert stats.chisquare(counts, p[0] * len(u)).pvalue > 0.001


@each_policy
def test_refuses_bad_input(name: str) -> None:
    policy = _policy(name)
    good = np.ones((1, ARMS), dtype=bool)
    one = _contexts(np.zeros(1))
    with pytest.raises(ValueError, match="eligible"):
        _serve(policy, policy.init(), one, ~good)
    with pytest.raises(ValueError, match="segment"):
        _serve(policy, policy.init(), _contexts(np.array([SEGMENTS])), good)
    with pytest.raises(TypeError, match="mask"):
        _serve(policy, policy.init(), one, good.astype(np.int64))
    with pytest.raises(ValueError, match="mask"):
        _serve(policy, policy.init(), one, good[:, :-1])


@pytest.mark.parametrize("name", policies.NAMES)
def test_describes_itself_and_checks_its_options(name: str) -> None:
    spec = policies.describe(name)
    assert spec.name == name
    assert spec.summary.endswith(".")
    told = spec.as_dict()
    assert [one["name"] for one in told["options"]] == [option.name for option in spec.options]
    assert json.loads(json.dumps(told, allow_nan=False)) == told | {
        "objectives": list(spec.objectives)
    }
    for option in spec.options:
        assert option.help.endswith(".")
        for bad in ("x", True, float("nan"), option.maximum * 2 + 1):
            wrong: dict[str, Any] = {option.name: bad}
            with pytest.raises(ValueError, match=f"^{option.name}: "):
                policies.make(name, arms=2, segments=1, **wrong)
    with pytest.raises(ValueError, match=r"^colour: "):
        policies.make(name, arms=2, segments=1, colour=1.0)


def test_the_registry_refuses_what_it_does_not_know() -> None:
    for match, call in {
        r"^name: ": {"name": "magic", "arms": 2, "segments": 1},
        "^arms: ": {"name": "ucb1", "arms": 0, "segments": 1},
        "^segments: ": {"name": "ucb1", "arms": 2, "segments": 0},
        "^backend: ": {"name": "ucb1", "arms": 2, "segments": 1, "backend": "torch"},
    }.items():
        with pytest.raises(ValueError, match=match):
            policies.make(**call)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^name: "):
        policies.describe("magic")
    assert [spec.name for spec in policies.catalogue()] == list(policies.NAMES)


@pytest.mark.parametrize("name", [n for n in policies.NAMES if _policy(n).retrain is not None])
def test_what_was_fitted_stays_when_its_rows_are_taken_back(name: str) -> None:
    """The service stores it so, and counts the log on from it."""
    policy, batch, more = _policy(name), _batch(), _batch(seed=3, rows=90)
    assert policy.retrain is not None
    state = policy.retrain(policy.update(policy.init(), more), batch, 0)
    fitted = policy.update(state, batch._replace(sign=-batch.sign))
    assert not any(np.any(getattr(fitted, sum)) for sum in ("trials", "reward", "square_low"))
    again = policy.update(policy.update(fitted, more), batch)
    back = policy.update(again, more._replace(sign=-more.sign))
    assert artefact.digest(back) == artefact.digest(state) != artefact.digest(again)
    assert type(back) is type(policy.init())
    artefact.from_bytes(artefact.to_bytes(back, policy=name), like=policy.init())
