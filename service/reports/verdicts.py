"""What may be said about a campaign or a segment: a code and one plain sentence.

An arm is ruled out only when the anytime-valid interval of its difference to another arm excludes
zero, with the error rate shared among all pairs: whoever reads the page however often is told of
a winner among equal arms at most once in twenty campaigns. Probabilities of being best are shown
beside it and never decide. Two arms are called equal when the interval of their difference lies
within `RELEVANCE` of what the better one earns.
"""

import dataclasses
import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.definition import money
from service.reports.estimates import Comparison, narrowing
from service.reports.fields import Verdict

Floats = NDArray[np.float64]

RELEVANCE = 0.05  # smaller differences, as a share of the best arm's reward, do not matter
PATIENCE_DAYS = 90.0  # what would take longer cannot be told
LEAST_DECISIONS = 30  # of every arm, before a variance can be trusted
LEAST_CONVERSIONS = 20  # in all, for the same reason


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a verdict rests on; arms that were never eligible have NaN.

    Attributes:
        names: the arms' names, A of them.
        keys: the arms' keys.
        mean: (A,) estimated reward per decision.
        comparison: the arm that looks best against every other; None without two to compare.
        counts: (A,) decisions of each arm.
        conversions: conversions in all.
    """

    names: Sequence[str]
    keys: Sequence[str]
    mean: Floats
    comparison: Comparison | None
    counts: NDArray[np.int64]
    conversions: int

    @property
    def compared(self) -> NDArray[np.bool_]:
        """(A,) the arms that can be compared at all."""
        return np.isfinite(self.mean)

    def ruled_out(self) -> NDArray[np.bool_]:
        """(A,) the arms that another arm is better than, beyond reasonable doubt."""
        if self.comparison is None or not self.enough():
            return np.zeros(len(self.keys), bool)
        return np.asarray(self.comparison.difference - self.comparison.half > 0)

    def enough(self) -> bool:
        """Whether there are the decisions and conversions that the intervals need."""
        counts = self.counts[self.compared]
        return (
            len(counts) > 0
            and int(counts.min()) >= LEAST_DECISIONS
            and self.conversions >= LEAST_CONVERSIONS
        )


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """When the verdict is given."""

    state: str
    currency: str | None
    """None where the reward is a share of decisions, not money."""
    per_day: float
    """Randomised decisions per day, lately."""
    ends_at: dt.datetime | None
    now: dt.datetime


def verdict(evidence: Evidence, circumstances: Circumstances) -> Verdict:
    """Return what may be said."""
    if circumstances.state in ("draft", "scheduled") and not evidence.counts.sum():
        return Verdict(code="not_started", sentence="Not started yet.")
    if not evidence.counts.sum():
        return Verdict(code="no_data", sentence="No randomised decisions yet.")
    comparison = evidence.comparison
    if comparison is None:
        return _alone(evidence)
    others = evidence.compared & ~evidence.ruled_out()
    others[comparison.best] = False
    rivals = np.flatnonzero(others)
    if not len(rivals):
        return _winner(evidence, circumstances, comparison)
    if evidence.enough() and _equal(evidence, comparison, rivals):
        return _no_difference(evidence, comparison, rivals)
    return _open(evidence, circumstances, comparison, rivals)


def with_segments(overall: Verdict, segments: Sequence[Verdict]) -> Verdict:
    """Return the verdict on a campaign, with the number of its segments that have a winner."""
    found = sum(one.code in ("leading", "ended_winner") for one in segments)
    served = sum(one.code not in ("not_started", "no_data") for one in segments)
    if served < 2 or not found:
        return overall
    have = f"In {found} of {served} segments one offer is clearly the best."
    return dataclasses.replace(overall, sentence=f"{overall.sentence} {have}")


def _alone(evidence: Evidence) -> Verdict:
    return Verdict(
        code="cannot_tell",
        sentence="Cannot tell: only one offer can be served here, so there is nothing to compare.",
        candidates=tuple(np.array(evidence.keys)[evidence.compared].tolist()),
    )


def _winner(evidence: Evidence, circumstances: Circumstances, comparison: Comparison) -> Verdict:
    name, key = evidence.names[comparison.best], evidence.keys[comparison.best]
    ended = circumstances.state == "ended"
    money = circumstances.currency is not None
    verb = ("earned" if money else "converted") if ended else ("earns" if money else "converts")
    least = float(np.nanmin(comparison.difference - comparison.half))
    amount = _reward(least, circumstances)
    # A lead below the smallest unit would read as none at all.
    by = "" if amount == _reward(0.0, circumstances) else f"at least {amount} "
    return Verdict(
        code="ended_winner" if ended else "leading",
        sentence=f"{name} {'won' if ended else 'leads'}: it {verb} {by}more per visitor than any"
        " other offer.",
        arm=key,
        candidates=(key,),
    )


def _reward(amount: float, circumstances: Circumstances) -> str:
    if circumstances.currency is None:
        return f"{100 * amount:.2f} percentage points"
    return money(round(amount), circumstances.currency)


def _margin(evidence: Evidence, best: int) -> float:
    return RELEVANCE * abs(float(evidence.mean[best]))


def _equal(evidence: Evidence, comparison: Comparison, rivals: NDArray[np.intp]) -> bool:
    reach = np.abs(comparison.difference) + comparison.half
    return bool(np.all(reach[rivals] <= _margin(evidence, comparison.best)))


def _told(
    evidence: Evidence, comparison: Comparison, rivals: NDArray[np.intp]
) -> tuple[str, tuple[str, ...]]:
    """Return the arms still in question, as words and as keys."""
    places = sorted([comparison.best, *rivals.tolist()])
    names = [evidence.names[place] for place in places]
    return _listed(names), tuple(evidence.keys[place] for place in places)


def _no_difference(evidence: Evidence, comparison: Comparison, rivals: NDArray[np.intp]) -> Verdict:
    names, keys = _told(evidence, comparison, rivals)
    return Verdict(
        code="no_difference",
        sentence=f"No difference that matters: {names} are within {100 * RELEVANCE:g} % of each"
        " other.",
        arm=evidence.keys[comparison.best],
        candidates=keys,
    )


def _open(
    evidence: Evidence,
    circumstances: Circumstances,
    comparison: Comparison,
    rivals: NDArray[np.intp],
) -> Verdict:
    names, keys = _told(evidence, comparison, rivals)
    over = circumstances.state == "ended"
    days = None if over else days_left(evidence, circumstances, comparison, rivals)
    hopeless = days is None or days > PATIENCE_DAYS or _ends_before(circumstances, days)
    stuck = over or (evidence.enough() and hopeless)
    return Verdict(
        code="cannot_tell" if stuck else "too_early",
        sentence=_open_in_words(evidence, comparison, names, days, over=over, stuck=stuck),
        arm=evidence.keys[comparison.best] if evidence.enough() else None,
        candidates=keys,
        days_left=days,
    )


def _open_in_words(
    evidence: Evidence,
    comparison: Comparison,
    names: str,
    days: float | None,
    *,
    over: bool,
    stuck: bool,
) -> str:
    if over:
        return f"Cannot tell: the campaign ended before {names} could be told apart."
    if not evidence.enough():
        if days is None:
            return "Too early to compare offers, and there is no traffic now."
        return f"Too early: about {in_words(days)} at this traffic before offers can be compared."
    ahead = f"; {evidence.names[comparison.best]} is ahead so far"
    if days is None:
        return f"Cannot tell: there is no traffic now{ahead}."
    if stuck:
        return f"Cannot tell: {names} would take {in_words(days)} to tell apart{ahead}."
    return f"Too early: about {in_words(days)} at this traffic{ahead}."


def _ends_before(circumstances: Circumstances, days: float) -> bool:
    if circumstances.ends_at is None:
        return False
    return circumstances.now + dt.timedelta(days=days) > circumstances.ends_at


def days_left(
    evidence: Evidence,
    circumstances: Circumstances,
    comparison: Comparison,
    rivals: NDArray[np.intp],
) -> float | None:
    """Return about how many more days will tell the arms apart; None without traffic.

    With the estimates as they are, the best arm and a rival are told apart once half the
    interval is below their difference, or called equal once it is below what is missing from the
    difference to a relevant one, whichever comes first. Before there is enough to estimate from,
    it is the time until there is.
    """
    if circumstances.per_day <= 0:
        return None
    if not evidence.enough():
        return _decisions_for_variance(evidence) / circumstances.per_day
    need = 0.0
    margin = _margin(evidence, comparison.best)
    for arm in rivals:
        gap, rows = abs(float(comparison.difference[arm])), float(comparison.decisions[arm])
        if rows > 0:
            narrower = max(gap, margin - gap) / float(comparison.half[arm])
            need = max(need, _more(rows, narrower, comparison.alpha))
    return need / circumstances.per_day if math.isfinite(need) else None


def _decisions_for_variance(evidence: Evidence) -> float:
    """Return about how many more decisions bring the least counts that intervals need."""
    total = float(evidence.counts.sum())
    counts = np.maximum(evidence.counts[evidence.compared], 1)
    factor = max(
        LEAST_DECISIONS / float(counts.min()), LEAST_CONVERSIONS / max(evidence.conversions, 1)
    )
    return max(1.0, (factor - 1.0) * total)


def _more(rows: float, narrower: float, alpha: float) -> float:
    """Return how many more decisions narrow an interval by a factor."""
    low, high = 0.0, 40.0  # in powers of two
    for _ in range(50):
        middle = (low + high) / 2
        wide = narrowing(rows, rows * 2.0**middle, alpha) > narrower
        low, high = (middle, high) if wide else (low, middle)
    return float(rows * (2.0**high - 1))


def in_words(days: float) -> str:
    """Return a stretch of time in words.

    >>> in_words(2.2), in_words(0.1), in_words(30)
    ('2 more days', '2 more hours', '4 more weeks')
    """
    units = ((1 / 24, "minute", 1 / 1440), (1.0, "hour", 1 / 24), (14.0, "day", 1.0))
    word, unit = next(((word, unit) for end, word, unit in units if days < end), ("week", 7.0))
    count = max(1, round(days / unit))
    return f"{count} more {word}{'' if count == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    """Return names as a list in words.

    >>> _listed(["A", "B", "C"])
    'A, B and C'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
