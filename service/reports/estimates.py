"""From columns of the log to estimates: the library's estimators, put to the report's questions.

Everything here is in the raw units of the ledger; a contact cost, the same for every arm, changes
no difference and is taken off where means are shown.

Letters: `N` decisions, `A` arms, `S` segments, `T` buckets of time, `M` posterior draws.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandits import ledger, policies
from bandits.evaluation import aipw
from bandits.evaluation.aipw import Scores
from bandits.evaluation.regret import matched_prior
from bandits.posteriors import shared
from bandits.posteriors.summary import ArmPosterior, Prior, posterior
from bandits.types import REWARD_LIMIT, ArmSums, Batch, Contexts
from service.definition import CampaignDefinition
from service.reports.fields import OVERALL, OWN, SIMILAR, SMOOTH, SPREAD, UNKNOWN, Estimate
from service.reports.log import STICKY, Bools, Floats, Ints, Log

ALPHA = 0.05
TARGET_ROWS = 10_000
LEAST_UNITS = 30  # on either side of the holdout, before their spread can be trusted
DRAWS = 2000
MOST_NUMBERS = 5_000_000  # in the draws under one prior
MODELS = {
    "thompson_beta": "conversion",
    "thompson_profit": "profit",
    "thompson_gaussian": "revenue",
}
POLICIES = {model: policy for policy, model in MODELS.items()}


# ---------------------------------------------------------------- scores


def assignments(log: Log) -> Log:
    """Fold every sticky decision into the draw it repeats; rewards are added up.

    A unit that keeps its arm was drawn once, so it counts once; what it repeats is its unit's
    latest draw.
    """
    fresh = log.kind != STICKY
    if fresh.all():
        return log
    order = np.lexsort((log.position, log.unit))
    drawn = np.where(fresh[order], np.arange(len(order)), -1)
    origin = np.maximum.accumulate(drawn)
    known = (origin >= 0) & (log.unit[order] == log.unit[order][np.maximum(origin, 0)])
    target = np.empty(len(order), np.int64)
    target[order] = np.where(known, order[np.maximum(origin, 0)], order)
    return log.folded(target)


def scores(log: Log, reward: Ints) -> Scores:
    """The AIPW scores of randomised decisions; predictions are made within segments."""
    return aipw.scores(log.arm, log.simplex, reward, segment=log.segment)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The arm that looks best, against every other arm.

    All intervals hold together at any time, for whichever arm looks best: the error rate is
    shared among all pairs of arms.

    Attributes:
        best: the arm whose interval begins highest, or whose mean is highest while none is known.
        difference: (A,) reward of that arm less the other's, over the decisions in which both
            were eligible; NaN where they never were.
        half: (A,) half the interval of the difference.
        decisions: (A,) decisions that a difference rests on.
        alpha: the level of each interval.
    """

    best: int
    difference: Floats
    half: Floats
    decisions: Floats
    alpha: float


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Some draws of the log with what is estimated from them.

    Attributes:
        segment: the segment they are of; None for all.
        time: (N,) when they were made.
        reward: (N,) what they earned.
        conversions: how many converted.
        scores: their AIPW scores.
        means: the mean reward of each arm.
        comparison: the best-looking arm against the others; None without two arms to compare.
    """

    segment: int | None
    time: Ints
    reward: Ints
    conversions: int
    scores: Scores
    means: aipw.Estimate
    comparison: Comparison | None


def cut(log: Log, reward: Ints, known: Scores, segment: int | None) -> Slice:
    """Estimate from the draws of one segment, or from all."""
    chosen = slice(None) if segment is None else np.flatnonzero(log.segment == segment)
    scores = Scores._make(column[chosen] for column in known)
    means = aipw.means(scores, alpha=ALPHA, target_rows=TARGET_ROWS)
    return Slice(
        segment=segment,
        time=log.time[chosen],
        reward=reward[chosen],
        conversions=int(log.conversions[chosen].sum()),
        scores=scores,
        means=means,
        comparison=_compare(scores, means),
    )


def _compare(known: Scores, means: aipw.Estimate) -> Comparison | None:
    met = np.flatnonzero(means.rows > 0)
    if len(met) < 2:
        return None
    told = np.isfinite(means.lower[met]).any()
    best = int(met[np.argmax((means.lower if told else means.mean)[met])])
    found = _against(known, best, met)
    for _ in met:
        beaten = found.difference + found.half < 0
        if not beaten.any():
            break
        best = int(np.argmin(np.where(beaten, found.difference, np.inf)))
        found = _against(known, best, met)
    return found


def _against(known: Scores, best: int, met: NDArray[np.intp]) -> Comparison:
    arms = known.score.shape[1]
    difference, half = np.full(arms, np.nan), np.full(arms, np.inf)
    decisions = np.zeros(arms)
    alpha = ALPHA / (arms * (arms - 1) // 2)
    for arm in met[met != best]:
        found = aipw.contrast(
            known, arm=best, against=int(arm), alpha=alpha, target_rows=TARGET_ROWS
        )
        difference[arm], decisions[arm] = found.mean, found.rows
        half[arm] = found.upper - found.mean if np.isfinite(found.upper) else np.inf
    return Comparison(best=best, difference=difference, half=half, decisions=decisions, alpha=alpha)


def narrowing(rows: float, more: float, alpha: float) -> float:
    """By what factor an interval narrows when its decisions grow from `rows` to `more`."""
    widths = _half_width(np.array([rows, more]), np.ones(2), alpha)
    return float(widths[1] / widths[0])


def _half_width(rows: NDArray[Any], sd: Floats, alpha: float) -> Floats:
    return aipw.half_width(rows, sd, alpha=alpha, target_rows=TARGET_ROWS)


def mean(values: Floats, *, told: bool) -> Estimate:
    """The mean of scores with its anytime-valid interval, if that can be told."""
    if not len(values):
        return UNKNOWN
    centre = float(values.mean())
    if not told:
        return Estimate(mean=centre)
    half = float(_half_width(np.array(len(values)), np.array(values.std()), ALPHA))
    return Estimate(mean=centre, low=centre - half, high=centre + half)


def equal_split_scores(log: Log, known: Scores) -> Floats:
    """(N,) the score of giving every eligible arm the same chance."""
    scored: Floats = known.score.sum(axis=1) / (log.simplex > 0).sum(axis=1)
    return scored


def holdout_difference(unit: Ints, held: Bools, reward: Ints) -> Estimate:
    """Reward per decision outside the holdout less inside it.

    Units, not decisions, were put into the holdout, and decisions of one unit resemble each
    other: the spread is that of the units' sums about their side's mean.
    """
    if not held.any() or held.all():
        return UNKNOWN
    _, of = np.unique(unit, return_inverse=True)
    total = int(of.max()) + 1
    averages = [float(reward[side].mean()) for side in (~held, held)]
    difference = averages[0] - averages[1]
    effect = np.zeros(total)
    for side, average, sign in ((~held, averages[0], 1.0), (held, averages[1], -1.0)):
        pull = sign * (reward[side] - average) / np.count_nonzero(side)
        effect += np.bincount(of[side], pull, minlength=total)
    inside = np.count_nonzero(np.bincount(of, held, minlength=total))
    if min(inside, total - inside) < LEAST_UNITS:
        return Estimate(mean=difference)
    sd = np.sqrt(total * np.sum(effect**2))
    half = float(_half_width(np.array(total), np.array(sd), ALPHA))
    return Estimate(mean=difference, low=difference - half, high=difference + half)


# ---------------------------------------------------------------- posteriors


@dataclass(frozen=True, kw_only=True)
class Belief:
    """The posterior of every segment's arms, under the policy's own prior and others.

    Attributes:
        sums: (S, A) the ledger of the log.
        allowed: (S, A) the arms that a segment may be served.
        own: the posterior that the policy acts on.
        priors: (M, S, A) draws by the name of their prior: the best calibrated first.
        best: (S, A) P(arm is best); NaN in segments without a choice.
        draws: (M, S, A) draws from `own`.
    """

    sums: ArmSums
    allowed: Bools
    own: ArmPosterior
    priors: dict[str, Floats]
    best: Floats
    draws: Floats


def sums_of(log: Log, reward: Ints, definition: CampaignDefinition) -> ArmSums:
    """The ledger of some decisions: what the learner's state is once it has caught up."""
    batch = Batch(
        Contexts(log.segment, np.zeros((len(log), 0), np.int64)),
        log.arm,
        log.simplex,
        np.clip(log.conversions, 0, 1),
        np.clip(reward, -REWARD_LIMIT, REWARD_LIMIT),
        np.ones(len(log), np.int64),
    )
    return ledger.contribution(
        batch, segments=len(definition.segment_keys), arms=len(definition.arms)
    )


def allowed_arms(definition: CampaignDefinition) -> Bools:
    """(S, A) the arms that are enabled and that the segment does not exclude."""
    table = np.tile([arm.enabled for arm in definition.arms], (len(definition.segment_keys), 1))
    for place, segment in enumerate(definition.segments):
        for key, override in segment.arms.items():
            table[place, definition.arm_index[key]] &= not override.exclude
    return table


def belief(log: Log, reward: Ints, definition: CampaignDefinition) -> Belief:
    """What the log says about every arm of every segment, before and beside any interval."""
    sums, allowed = sums_of(log, reward, definition), allowed_arms(definition)
    model = MODELS.get(definition.policy.name, definition.objective)
    own = posterior(model, sums, prior=_own_prior(definition, model))
    return Belief(
        sums=sums,
        allowed=allowed,
        own=own,
        priors=_by_prior(sums, definition, model, own),
        best=_best(sums, allowed, definition, model),
        draws=own.draws(DRAWS, seed=0),
    )


def _own_options(definition: CampaignDefinition, model: str) -> dict[str, Any]:
    """The prior's options: the policy's own, or the defaults of the objective's Thompson policy."""
    name = POLICIES[model]
    options: dict[str, Any] = {
        option.name: option.default
        for option in policies.describe(name).options
        if option.default is not None
    }
    options |= definition.prior_options(name)
    if definition.policy.name == name:
        # Reports are about the whole log: nothing in them is forgotten.
        options |= definition.own_options
    return options


def _own_prior(definition: CampaignDefinition, model: str) -> Prior:
    options = _own_options(definition, model)
    if "value" in options:
        options["value"] = np.asarray(options["value"], float)
    if "shape" in options:
        # Below 2 a mean reward that was never seen has no variance to speak of.
        options["shape"] = max(options["shape"], 2.0)
    return Prior(**options)


def _by_prior(
    sums: ArmSums, definition: CampaignDefinition, model: str, own: ArmPosterior
) -> dict[str, Floats]:
    """Draws under every prior of `fields.ASSUMPTIONS` that applies, in that order."""
    count = min(DRAWS, max(500, MOST_NUMBERS // sums.trials.size))
    depth, offers = np.array(definition.depths()), _offers(definition)
    known: dict[str, Floats] = {}
    if np.ptp(depth) > 0:
        known[SMOOTH] = shared.draws(
            definition.objective, sums, count=count, seed=0, depth=depth, offers=offers
        )
    known[SIMILAR] = shared.draws(definition.objective, sums, count=count, seed=0, offers=offers)
    if model != "conversion":
        known[SPREAD] = posterior("revenue", sums).draws(count, seed=0)
    if model != "revenue":
        about = matched_prior(sums)
        if model == "profit":
            about = about._replace(value=np.array(definition.sale_values(definition.basket_minor)))
        known[OVERALL] = posterior(model, sums, prior=about).draws(count, seed=0)
    known[OWN] = own.draws(count, seed=0)
    return known


def _offers(definition: CampaignDefinition) -> shared.Offers | None:
    """What a conversion earns at a typical basket, and how that follows the basket."""
    if definition.objective == "conversion":
        return None
    value = np.array(definition.sale_values(definition.basket_minor))
    return shared.Offers(value, np.array(definition.gains()))


def _best(sums: ArmSums, allowed: Bools, definition: CampaignDefinition, model: str) -> Floats:
    segments, arms = allowed.shape
    best = np.full((segments, arms), np.nan)
    some = allowed.any(axis=1)
    if not some.any():
        return best
    thompson = policies.make(
        POLICIES[model], arms=arms, segments=segments, **_own_options(definition, model)
    )
    chosen = np.flatnonzero(some)
    contexts = Contexts(chosen.astype(np.int32), np.zeros((len(chosen), 0), np.int64))
    best[chosen] = np.asarray(thompson.probabilities(sums, contexts, allowed[chosen]))
    return np.where(allowed, best, np.nan)


def overall(known: Belief) -> tuple[Floats, Floats]:
    """Draws (M, A) of each arm's mean over the traffic, and (A,) P(it is the best single arm).

    Only arms that every segment with traffic may be served can be the best single arm; the
    others have NaN.
    """
    traffic = known.sums.trials.sum(axis=1)
    arms = known.allowed.shape[1]
    if not traffic.sum():
        return np.full((1, arms), np.nan), np.full(arms, np.nan)
    everywhere = known.allowed[traffic > 0].all(axis=0)
    draws = np.einsum("s,msa->ma", traffic / traffic.sum(), known.draws)
    draws = np.where(everywhere, draws, np.nan)
    best = np.full(arms, np.nan)
    if everywhere.any():
        winners = np.argmax(np.where(everywhere, draws, -np.inf), axis=1)
        best = np.where(everywhere, np.bincount(winners, minlength=arms) / len(draws), np.nan)
    return draws, best
