"""Choosing between policies from one's log: rarely wrong at any look, and right before long."""

import json
import math

import numpy as np
import pytest

from bandits import policies
from bandits.evaluation import choice
from bandits.types import Batch, Contexts
from tests.bandits.choosing import alarms, found
from tests.bandits.worlds import thompson_logs


def _batches(seed: int, *, rows: int = 2000, size: int = 250) -> list[Batch]:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(rows // size):
        segment = rng.integers(0, 2, size)
        arm = rng.integers(0, 2, size)
        won = (rng.random(size) < np.where(arm == segment, 0.4, 0.1)).astype(np.int64)
        contexts = Contexts(segment.astype(np.int32), np.zeros((size, 0), np.int64))
        one = np.ones(size, np.int64)
        half = np.full((size, 2), 0.5)
        out.append(Batch(contexts, arm.astype(np.int32), half, won, 700 * won, one))
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "floor", "drift", "money"),
    [(0.03, 0.05, 0.9, False), (0.03, 0.01, 0.0, False), (0.05, 0.01, 0.0, True)],
)
def test_equal_arms_are_rarely_told_apart_at_any_look(
    rate: float, floor: float, drift: float, money: bool
) -> None:
    """250 logs of Thompson sampling, 60 looks each, two candidates: at most 5 % and its error."""
    better, worse = alarms(
        rate=rate, floor=floor, size=100, runs=250, seed=9, drift=drift, money=money
    )
    assert better <= 0.05
    assert worse <= 0.05


def test_looking_ahead_would_be_seen() -> None:
    """The same check fails for a candidate that has learnt the rows it is judged by."""
    logs = thompson_logs([0.1] * 2, runs=100, batches=40, size=50, floor=0.05, seed=3)
    called = 0
    for arm, p, reward in zip(*logs, strict=True):
        evidence = choice.start(floor=0.05, low=0, high=1, baseline=0.1)
        for begin in range(0, len(arm), 50):
            part = slice(begin, begin + 50)
            mean = np.bincount(arm[part], reward[part], minlength=2)
            peeked = 0.05 + 0.9 * np.eye(2)[mean.argmax()]
            evidence = choice.bet(
                evidence, arm[part], p[part], np.tile(peeked, (50, 1)), reward[part]
            )
        called += choice.verdict(evidence) == "better"
    assert called > 50


def test_the_bounds_hold_for_an_average_that_changes_sign() -> None:
    """Gains at first, losses later: bounds for a constant mean would miss the average."""
    rng = np.random.default_rng(4)
    runs, size, looks = 200, 100, 30
    missed = [0, 0]
    for _ in range(runs):
        evidence = choice.start(floor=0.1, low=0, high=1, baseline=0.3)
        true, wrong = 0.0, [False, False]
        for look in range(looks):
            p = np.full((size, 2), 0.5)
            rate = np.array([0.3, 0.6 if look < 10 else 0.2])
            q = rng.uniform(0.1, 0.9, size)
            target = np.column_stack([1 - q, q])
            arm = rng.integers(0, 2, size)
            reward = (rng.random(size) < rate[arm]).astype(np.int64)
            true += float(((target - p) @ rate).sum())
            evidence = choice.bet(evidence, arm, p, target, reward)
            if look % 3:
                continue
            average = true / evidence.rows
            wrong[0] |= choice.lower(evidence) > average
            wrong[1] |= choice.upper(evidence) < average
        missed = [m + w for m, w in zip(missed, wrong, strict=True)]
    assert max(missed) <= 0.05 * runs


@pytest.mark.slow
@pytest.mark.parametrize("floor", [0.05, 0.01])
def test_a_policy_that_uses_the_context_is_found(floor: float) -> None:
    needed = [found(floor=floor, seed=seed)[0] for seed in range(10)]
    assert np.median([n or math.inf for n in needed]) <= 6000


def test_the_poorer_policy_is_never_chosen_instead() -> None:
    for seed in range(5):
        needed, bound, _ = found(floor=0.05, seed=seed, reverse=True, decisions=10_000)
        assert needed is None
        assert bound < 0


def test_stopping_and_going_on_gives_the_same_evidence() -> None:
    candidates = {
        "apart": policies.make("thompson_beta", arms=2, segments=2),
        "equal": policies.make("fixed_split", arms=2, segments=2),
    }
    batches = _batches(5)
    whole = choice.compare(candidates, batches, floor=0.05)
    known: dict[str, choice.Candidate] = {}
    for batch in batches:
        known = choice.compare(candidates, [batch], floor=0.05, begun=known)
        stored = {name: json.dumps(one.evidence._asdict()) for name, one in known.items()}
        known = {
            name: one._replace(evidence=choice.restored(json.loads(stored[name])))
            for name, one in known.items()
        }
    for name in candidates:
        assert known[name].evidence == whole[name].evidence
    assert choice.verdict(whole["apart"].evidence, candidates=2) == "better"
    assert choice.verdict(whole["equal"].evidence, candidates=2) == "cannot tell yet"
    assert whole["equal"].evidence.total == 0.0
    first = whole["apart"].evidence
    assert first.rows == first.seen - choice.FIRST
    assert (first.low, first.high) == (0.0, 1400.0)
    # Serving by segment earns 0.4·700 = 280 with 95 %, against 175 for the equal split.
    assert choice.lower(first) < 0.45 * 210 < choice.upper(first)
    assert choice.estimate(first) == pytest.approx(0.45 * 210, rel=0.25)
    assert 0 < choice.effective_rows(first) < first.rows


def test_the_log_e_value_is_the_mixture_of_bets() -> None:
    arm, reward = np.array([0, 1, 1]), np.array([0, 1, 0])
    p, q = np.full((3, 2), 0.5), np.tile([0.25, 0.75], (3, 1))
    evidence = choice.bet(choice.start(floor=0.25, low=0, high=1, baseline=0.5), arm, p, q, reward)
    gain = (q[[0, 1, 2], arm] / 0.5 - 1) * (reward - 0.5)
    limit = max(0.5, (1 / 0.25 - 1) * 0.5)
    products = [np.prod(1 + stake * gain / limit) for stake in choice.STAKES]
    assert choice.e_value(evidence) == pytest.approx(np.mean(products))
    assert evidence.total == pytest.approx(gain.sum())
    bound = choice.lower(evidence, alpha=0.5)
    shrunk = [
        p / (1 + s * bound / limit) ** 3 for s, p in zip(choice.STAKES, products, strict=True)
    ]
    assert np.mean(shrunk) == pytest.approx(2.0, rel=1e-6)


def test_rows_that_cannot_be_judged_are_left_out_or_refused() -> None:
    arm, reward = np.array([0, 1]), np.array([1, 1])
    p = np.array([[0.99, 0.01], [0.5, 0.5]])
    half = np.full((2, 2), 0.5)
    evidence = choice.start(floor=0.05, low=0, high=1)
    assert choice.bet(evidence, arm, p, half, reward).skipped == 1
    nothing = choice.bet(choice.start(floor=0.05), arm[:0], p[:0], half[:0], reward[:0])
    assert (choice.lower(nothing), choice.upper(nothing)) == (-math.inf, math.inf)
    assert choice.verdict(nothing) == "cannot tell yet"
    assert math.isnan(choice.estimate(nothing))
    with pytest.raises(ValueError, match="not eligible"):
        choice.bet(evidence, np.array([0, 0]), np.array([[1.0, 0.0]] * 2), half, reward)
    with pytest.raises(ValueError, match="propensity 0"):
        choice.bet(evidence, np.array([1, 1]), np.array([[1.0, 0.0]] * 2), half, reward)
    with pytest.raises(ValueError, match="agree"):
        choice.bet(evidence, arm, p, half[:1], reward)
    for wrong, match in (({"floor": 0.0}, "floor"), ({"floor": 0.1, "low": 0.0}, "both ends")):
        with pytest.raises(ValueError, match=match):
            choice.start(**wrong)
    with pytest.raises(ValueError, match="below high"):
        choice.start(floor=0.1, low=1.0, high=1.0)
    batch = _batches(6, rows=250)[0]
    policy = {"one": policies.make("thompson_beta", arms=2, segments=2)}
    with pytest.raises(ValueError, match="sign"):
        choice.compare(policy, [batch._replace(sign=-batch.sign)], floor=0.05)
    filled = choice.compare(policy, [batch._replace(sign=0 * batch.sign)], floor=0.05)
    assert filled["one"].evidence.seen == 0
