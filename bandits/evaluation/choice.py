"""Whether another policy would earn more than the one that is running, from the running one's log.

Row t was decided by the running policy with the logged simplex p_t. The candidate has learnt from
rows before t only, and would have used q_t (guardrails included). With the importance weight
``w_t = q_t[a_t] / p_t[a_t]`` of the arm served and a constant b, the gain of the row

    D_t = (w_t - 1) (r_t - b)

has, given everything before the draw, the mean of what the candidate's choice earns more than the
running policy's, whatever the running policy did with the past: E[w_t] = 1, so b only takes noise
away. ``μ̄_n`` is the average of these means over the n rows so far.

For a fixed λ with ``1 + λ D_t > 0`` the product ``M_n = ∏ (1 + λ D_t) / (1 + λ μ_t)`` is a
nonnegative martingale, and by the concavity of the logarithm ``∏ (1 + λ μ_t) <= (1 + λ μ̄_n)^n``.
So ``∏ (1 + λ D_t) / (1 + λ m)^n <= M_n`` wherever ``μ̄_n <= m``: a bet at a *fixed* stake is an
e-process for the average gain, also when gains come and go while both policies learn. Mixing over
:data:`STAKES` keeps that, and needs no guess of the right stake. By Ville's inequality the chance
that ``e_n`` ever reaches 1/α is at most α, at whichever looks are taken; the lower bound is the
least m with e_n(m) < 1/α, and holds for all n at once. The upper side is the same bet on ``-D_t``.

Rewards must lie in a known range ``[low, high]``. Where none is stated, the first rows say one:
they are not bet on, the range is twice what they showed, and what lies outside is cut off at it;
b is their mean. So for money **the estimate is the gain in rewards cut off at that range**.
Betting starts after :data:`FIRST` rows, and not before a reward other than 0 was seen.

Source: Waudby-Smith and Ramdas, JRSS B 86 (2024), on betting; Waudby-Smith et al., Anytime-valid
off-policy inference for contextual bandits (2022, arXiv 2210.10768), on logs of adaptive policies;
Ville (1939). That fixed stakes also serve an average that changes is the argument above.

>>> rng = np.random.default_rng(0)
>>> simplex = np.full((4000, 2), 0.5)
>>> arm = rng.integers(0, 2, 4000)
>>> reward = (rng.random(4000) < np.array([0.1, 0.3])[arm]).astype(np.int64)
>>> found = bet(start(floor=0.05), arm, simplex, np.tile([0.05, 0.95], (4000, 1)), reward)
>>> verdict(found), bool(0 < lower(found) < 0.09)
('better', True)
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandits import simplex as simplices
from bandits.types import Batch, Policy, State

Floats = NDArray[np.float64]
Verdict = Literal["better", "worse", "cannot tell yet"]

#: Stakes λ as shares of the greatest one allowed, which is 1 over the greatest possible loss.
STAKES = 0.9 * 2.0 ** -np.arange(16.0)

#: Rows that are not bet on where the range of rewards must be found, and their baseline.
FIRST = 500


class Evidence(NamedTuple):
    """What a log has said so far of one candidate: plain numbers, to be stored as JSON.

    Attributes:
        floor: least propensity of an eligible arm; rows below it are left out.
        low: least reward, below which rewards are cut off; None while it must be found.
        high: greatest reward.
        baseline: b.
        seen: rows read.
        skipped: rows left out, because an arm that the candidate wants had a propensity below
            ``floor``.
        first: number, sum, least and greatest reward of the rows not bet on.
        rows: n, rows bet on.
        total: Σ D_t, in units of the reward.
        square: Σ D_t².
        weight: Σ w_t.
        weight_square: Σ w_t².
        wins: log ∏ (1 + λ D_t) at each of :data:`STAKES`.
        losses: log ∏ (1 - λ D_t) at each.
    """

    floor: float
    low: float | None = None
    high: float | None = None
    baseline: float | None = None
    seen: int = 0
    skipped: int = 0
    first: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    rows: int = 0
    total: float = 0.0
    square: float = 0.0
    weight: float = 0.0
    weight_square: float = 0.0
    wins: tuple[float, ...] = (0.0,) * len(STAKES)
    losses: tuple[float, ...] = (0.0,) * len(STAKES)


class Candidate(NamedTuple):
    """A candidate in the middle of a comparison.

    Attributes:
        state: its state, having learnt the log so far (:mod:`bandits.artefact` stores it).
        evidence: what the log has said of it.
    """

    state: State
    evidence: Evidence


def start(
    *, floor: float, low: float | None = None, high: float | None = None, baseline: float = 0.0
) -> Evidence:
    """No evidence yet.

    Args:
        floor: least propensity of an eligible arm under the running policy, in (0, 1].
        low: least possible reward, with ``high``; None to find the range from the first rows.
        high: greatest possible reward.
        baseline: b, a guess of the mean reward made without the log; only with a stated range.

    Raises:
        ValueError: an argument is out of range, or only one end of the range is given.
    """
    if not 0.0 < floor <= 1.0:
        raise ValueError("floor: must be in (0, 1]")
    if (low is None) != (high is None):
        raise ValueError("low, high: give both ends of the range, or neither")
    if low is None or high is None:
        return Evidence(floor)
    if not low < high:
        raise ValueError("low: must be below high")
    return Evidence(floor, low, high, float(min(max(baseline, low), high)))


def bet(
    evidence: Evidence,
    arm: NDArray[np.integer],
    simplex: Floats,
    target: Floats,
    reward: NDArray[np.integer],
) -> Evidence:
    """The evidence after N more rows, in the order of their decisions.

    Args:
        evidence: before them.
        arm: (N,) the arm served.
        simplex: (N, A) as logged by the running policy; 0 marks an arm that was not eligible.
        target: (N, A) the candidate's simplex, from what it had learnt of earlier rows only.
        reward: (N,) integer units.

    Raises:
        ValueError: shapes disagree, an arm was served with propensity 0, or the candidate gives
            probability to an arm that was not eligible.
    """
    value, weight, fits = _weighed(arm, simplex, target, reward, floor=evidence.floor)
    evidence = evidence._replace(seen=evidence.seen + len(arm))
    begin = 0
    if evidence.low is None:
        begin = _rows_needed(evidence, value)
        evidence = _looked_at(evidence, value[:begin])
    if evidence.low is None or evidence.high is None or evidence.baseline is None:
        return evidence
    value, weight, fits = value[begin:], weight[begin:], fits[begin:]
    cut = np.clip(value[fits], evidence.low, evidence.high)
    weight = weight[fits]
    gain = (weight - 1.0) * (cut - evidence.baseline)
    most_lost, most_won = _limits(evidence)
    wins = np.log1p(np.outer(gain / most_lost, STAKES)).sum(axis=0)
    losses = np.log1p(np.outer(-gain / most_won, STAKES)).sum(axis=0)
    return evidence._replace(
        skipped=evidence.skipped + int((~fits).sum()),
        rows=evidence.rows + len(gain),
        total=evidence.total + float(gain.sum()),
        square=evidence.square + float((gain**2).sum()),
        weight=evidence.weight + float(weight.sum()),
        weight_square=evidence.weight_square + float((weight**2).sum()),
        wins=tuple(float(x) for x in wins + evidence.wins),
        losses=tuple(float(x) for x in losses + evidence.losses),
    )


def restored(fields: Mapping[str, Any]) -> Evidence:
    """The evidence whose ``_asdict()`` was stored as JSON: the very same numbers.

    Raises:
        TypeError: a field that evidence does not have.
    """
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return Evidence(**plain)


def e_value(evidence: Evidence) -> float:
    """The evidence, now, that the candidate's average gain is above 0: reject at α from 1/α on."""
    return math.exp(min(_log_e(evidence.wins, 0.0, evidence.rows, 1.0), 700.0))


def estimate(evidence: Evidence) -> float:
    """The mean gain per decision, in units of the reward; nan without rows."""
    return evidence.total / evidence.rows if evidence.rows else math.nan


def effective_rows(evidence: Evidence) -> float:
    """(Σ w)² / Σ w²: rows of the candidate's own that the log is worth."""
    return evidence.weight**2 / evidence.weight_square if evidence.weight_square else 0.0


def lower(evidence: Evidence, *, alpha: float = 0.05) -> float:
    """A bound below the average gain at all times at once, at level α; -inf before betting."""
    if not evidence.rows:
        return -math.inf
    most_lost, _ = _limits(evidence)
    return _inverted(evidence.wins, evidence.rows, most_lost, alpha=alpha)


def upper(evidence: Evidence, *, alpha: float = 0.05) -> float:
    """A bound above the average gain at all times at once, at level α; inf before betting."""
    if not evidence.rows:
        return math.inf
    _, most_won = _limits(evidence)
    return -_inverted(evidence.losses, evidence.rows, most_won, alpha=alpha)


def verdict(evidence: Evidence, *, alpha: float = 0.05, candidates: int = 1) -> Verdict:
    """What may be said now, however often it is asked.

    Args:
        evidence: of one candidate.
        alpha: chance of ever calling better, wrongly, any of the candidates that are compared; the
            same, separately, for worse.
        candidates: how many are compared.
    """
    threshold = math.log(candidates / alpha)
    if _log_e(evidence.wins, 0.0, evidence.rows, 1.0) >= threshold:
        return "better"
    if _log_e(evidence.losses, 0.0, evidence.rows, 1.0) >= threshold:
        return "worse"
    return "cannot tell yet"


def compare(
    candidates: Mapping[str, Policy],
    batches: Iterable[Batch],
    *,
    floor: float,
    low: float | None = None,
    high: float | None = None,
    baseline: float = 0.0,
    cap: float | None = None,
    begun: Mapping[str, Candidate] | None = None,
) -> dict[str, Candidate]:
    """Run the candidates through the running policy's log, batch after batch.

    Before each batch a candidate believes what it has learnt, says its simplex for every row (with
    the guardrails that it would be served under), is bet on, and then learns the batch. Smaller
    batches keep it more up to date. Arms with a logged probability of 0 count as not eligible.

    Args:
        candidates: by name.
        batches: the log in the order of its decisions, with the rewards that came of them; rows
            of sign 0 are passed over.
        floor: of the campaign, for both; ``K·floor <= 1`` for its K arms.
        low: least possible reward, as of :func:`start`.
        high: greatest possible reward.
        baseline: as of :func:`start`.
        cap: greatest probability of an arm, if any.
        begun: where an earlier call has stopped; candidates not in it begin afresh.

    Returns:
        Each candidate's state and evidence; hand them in as ``begun`` to continue.

    Raises:
        ValueError: a row takes another back (sign -1), or as for :func:`bet`.
    """
    running = {
        name: (begun or {}).get(name)
        or Candidate(policy.init(), start(floor=floor, low=low, high=high, baseline=baseline))
        for name, policy in candidates.items()
    }
    for batch in batches:
        rows = _decided(batch)
        if not len(rows.arm):
            continue
        for name, policy in candidates.items():
            state, evidence = running[name]
            target = _target(policy, state, rows, floor=floor, cap=cap)
            evidence = bet(evidence, rows.arm, rows.simplex, target, rows.reward)
            running[name] = Candidate(policy.update(state, rows), evidence)
    return running


def _target(policy: Policy, state: State, rows: Batch, *, floor: float, cap: float | None) -> Any:
    mask = rows.simplex > 0
    raw = policy.probabilities(policy.believe(state), rows.contexts, mask)
    return simplices.guard(np.asarray(raw), mask, floor=floor, cap=cap)


def _decided(batch: Batch) -> Batch:
    """The rows of sign +1, in numpy."""
    sign = np.asarray(batch.sign)
    if bool((sign < 0).any()):
        raise ValueError("sign: a log of decisions has no rows that take others back")
    index = np.flatnonzero(sign)
    contexts = type(batch.contexts)(*(np.asarray(x)[index] for x in batch.contexts))
    rest = (None if x is None else np.asarray(x)[index] for x in batch[1:])
    return Batch(contexts, *rest)


def _weighed(
    arm: NDArray[np.integer],
    simplex: Floats,
    target: Floats,
    reward: NDArray[np.integer],
    *,
    floor: float,
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Reward and weight (N,) of each row, and whether it may be bet on: known before the draw."""
    rows = len(arm)
    if simplex.shape != target.shape or len(simplex) != rows or reward.shape != (rows,):
        raise ValueError("arm (N,), simplex and target (N, A) and reward (N,) must agree")
    each = np.arange(rows)
    served = simplex[each, arm]
    if not bool(np.all(served > 0)):
        raise ValueError("an arm was served with propensity 0")
    if bool(np.any((simplex <= 0) & (target > 0))):
        raise ValueError("target gives probability to an arm that was not eligible")
    least = np.where(target > 0, simplex, 1.0).min(axis=1)
    fits: NDArray[np.bool_] = least >= floor * (1.0 - 1e-9)
    return reward.astype(np.float64), target[each, arm] / served, fits


def _rows_needed(evidence: Evidence, value: Floats) -> int:
    """How many of the next rows only show the range of rewards."""
    missing = max(FIRST - int(evidence.first[0]), 0)
    if evidence.first[2] == evidence.first[3] == 0.0:
        paid = np.flatnonzero(value != 0)
        missing = max(missing, int(paid[0]) + 1 if len(paid) else len(value))
    return min(missing, len(value))


def _looked_at(evidence: Evidence, value: Floats) -> Evidence:
    """The evidence with these rows looked at, and the range fixed once they are enough."""
    count, total, least, greatest = evidence.first
    count, total = count + len(value), total + float(value.sum())
    least, greatest = min(least, *value, 0.0), max(greatest, *value, 0.0)
    first = (float(count), total, float(least), float(greatest))
    evidence = evidence._replace(first=first)
    if count < FIRST or least == greatest:
        return evidence
    return evidence._replace(low=2.0 * first[2], high=2.0 * first[3], baseline=total / count)


def _limits(evidence: Evidence) -> tuple[float, float]:
    """The greatest loss and the greatest gain of a row, as (w - 1)(r - b) allows."""
    assert evidence.low is not None
    assert evidence.high is not None
    assert evidence.baseline is not None
    above, below = evidence.high - evidence.baseline, evidence.baseline - evidence.low
    most = (1.0 + 1e-9) / evidence.floor - 1.0
    tiny = 1e-9 * (evidence.high - evidence.low)
    return max(above, most * below, tiny), max(below, most * above, tiny)


def _log_e(wealth: tuple[float, ...], mean: float, rows: int, limit: float) -> float:
    """The log of the mixture's e-value against an average gain of at most ``mean``."""
    grown = np.asarray(wealth) - rows * np.log1p(STAKES * max(mean / limit, -1.0))
    top = float(grown.max())
    return top + math.log(float(np.exp(grown - top).mean()))


def _inverted(wealth: tuple[float, ...], rows: int, limit: float, *, alpha: float) -> float:
    """The least mean that is not rejected at level α, by bisection in (-limit, limit)."""
    threshold = math.log(1.0 / alpha)
    if _log_e(wealth, -limit, rows, limit) < threshold:
        return -limit
    below, above = -limit, limit
    while _log_e(wealth, above, rows, limit) >= threshold:
        above *= 2.0
    for _ in range(60):
        middle = 0.5 * (below + above)
        if _log_e(wealth, middle, rows, limit) >= threshold:
            below = middle
        else:
            above = middle
    return below
