"""Put a report together: one pass over the log, then one function per part."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from bandits.evaluation import aipw, regret, srm
from bandits.posteriors.summary import curves
from service import packed, queries
from service.definition import CampaignDefinition, money
from service.errors import UnknownCampaign
from service.models import Campaign, Snapshot
from service.reports import demand, estimates, fields, log, verdicts
from service.reports.estimates import ALPHA, Belief, Slice
from service.reports.fields import UNKNOWN, Estimate
from service.reports.log import HOLDOUT, OTHER, POLICY, STICKY, Bools, Floats, Ints, Log
from service.reports.verdicts import Circumstances, Evidence

BUCKETS = 60
CURVE_POINTS = 161
CURVE_NUMBERS = 40_000  # in all, so that a campaign of many arms and segments stays readable
RECENT = dt.timedelta(days=7)
REGRET_ALPHA = 0.1
SRM_ALARM = 0.01
GOOD_SAMPLE = 1000
OBJECTIVES = {
    "profit": "profit (margin less discount, returns and contact cost)",
    "revenue": "revenue",
    "conversion": "conversions",
}


@dataclass(frozen=True, kw_only=True)
class Material:
    """What every part of the report is made from."""

    campaign: Campaign
    definition: CampaignDefinition
    snapshot: Snapshot | None
    trouble: str | None
    """Why the newest retraining failed."""
    outcomes: Mapping[str, int]
    log: Log
    drawn: Log
    """The randomised decisions."""
    reward: Ints
    """(N,) of the randomised decisions, before contact cost."""
    assigned: Log
    """The draws, with what sticky decisions repeated folded in."""
    draws: Slice
    """What they tell."""
    slices: tuple[Slice, ...]
    """The same by segment."""
    belief: Belief
    now: dt.datetime

    @property
    def cost(self) -> float:
        """Contact cost of one decision, in the unit of the objective."""
        definition = self.definition
        return definition.contact_cost_minor if definition.objective == "profit" else 0.0


def campaign_report(session: Session, key: str, *, now: dt.datetime | None = None) -> fields.Report:
    """Return the report on one campaign as of now.

    Raises:
        UnknownCampaign: there is no campaign with this key.
        sqlalchemy.exc.OperationalError: the database is away, or took longer than its time limit.
    """
    material = gather(session, key, now or dt.datetime.now(dt.UTC))
    segments = _segments(material)
    overall = _verdict(material, material.draws)
    return fields.Report(
        header=_header(material),
        verdict=verdicts.with_segments(overall, [segment.verdict for segment in segments]),
        arms=_arms(material, material.draws),
        segments=segments,
        traffic=_traffic(material),
        regret=_regret(material),
        value=_value(material),
        health=_health(material),
        budget=_budget(material),
    )


def gather(session: Session, key: str, now: dt.datetime) -> Material:
    """Read everything that a report needs."""
    campaign = session.scalar(select(Campaign).where(Campaign.key == key))
    if campaign is None:
        raise UnknownCampaign(key)
    definition = CampaignDefinition.model_validate(campaign.definition)
    newest = select(Snapshot).where(Snapshot.campaign_id == campaign.id)
    tried = session.execute(queries.newest_retraining(campaign.id)).one_or_none()
    whole = log.read(session, campaign.id, definition)
    drawn = whole.where((whole.kind == POLICY) | (whole.kind == STICKY))
    reward = drawn.reward(definition.objective)
    # A log that says an arm without a chance was drawn is the health check's to report.
    assigned = estimates.assignments(drawn.where(drawn.possible()))
    earned = assigned.reward(definition.objective)
    scores = estimates.scores(assigned, earned)
    return Material(
        campaign=campaign,
        definition=definition,
        snapshot=session.scalar(newest.order_by(Snapshot.version.desc()).limit(1)),
        trouble=tried.error if tried else None,
        outcomes=log.outcome_counts(session, campaign.id),
        log=whole,
        drawn=drawn,
        reward=reward,
        assigned=assigned,
        draws=estimates.cut(assigned, earned, scores, None),
        slices=tuple(
            estimates.cut(assigned, earned, scores, segment)
            for segment in range(len(definition.segment_keys))
        ),
        belief=estimates.belief(drawn, reward, definition),
        now=now,
    )


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _shifted(estimate: Estimate, cost: float) -> Estimate:
    """Return an estimate of a mean with the contact cost taken off."""
    ends = (estimate.mean, estimate.low, estimate.high)
    low = [None if end is None else end - cost for end in ends]
    return Estimate(mean=low[0], low=low[1], high=low[2])


# ---------------------------------------------------------------- header


def _header(material: Material) -> fields.Header:
    campaign, definition, counts = material.campaign, material.definition, material.outcomes
    times = material.log.time
    purchases, returns = counts.get("purchased", 0), counts.get("returned", 0)
    return fields.Header(
        campaign=campaign.key,
        name=definition.name,
        state=campaign.state,
        revision=campaign.revision,
        objective=definition.objective,
        currency=definition.currency,
        policy=definition.policy.name,
        estimand=_estimand(definition),
        started_at=campaign.started_at,
        ended_at=campaign.ended_at,
        first_decision_at=packed.moment(times.min()) if len(times) else None,
        last_decision_at=packed.moment(times.max()) if len(times) else None,
        decisions=len(material.log) + material.log.unread,
        randomised=len(material.drawn),
        holdout=int(np.count_nonzero(material.log.kind == HOLDOUT)),
        outcomes=sum(counts.values()),
        purchases=purchases,
        returns=returns,
        returns_share=_share(returns, purchases),
        maturity=_maturity(material),
        snapshot=material.snapshot.version if material.snapshot else None,
        learnt_at=material.snapshot.created_at if material.snapshot else None,
        generated_at=material.now,
    )


def _estimand(definition: CampaignDefinition) -> str:
    money = definition.objective != "conversion"
    unit = f" in minor units of {definition.currency}" if money else ""
    return (
        f"Mean {OBJECTIVES[definition.objective]} per randomised decision{unit}, had every such"
        " decision been given the arm; the benchmark of regret is the best arm of each segment."
    )


def _maturity(material: Material) -> float | None:
    window = dt.timedelta(seconds=material.definition.attribution_seconds)
    ripe = material.drawn.time <= packed.microseconds(material.now - window)
    return _share(int(np.count_nonzero(ripe)), len(ripe))


# ---------------------------------------------------------------- arms and verdicts


def _evidence(material: Material, cut: Slice) -> Evidence:
    arms = material.definition.arms
    return Evidence(
        names=[arm.name for arm in arms],
        keys=[arm.key for arm in arms],
        mean=cut.means.mean - material.cost,
        comparison=cut.comparison,
        counts=cut.means.chosen,
        conversions=cut.conversions,
    )


def _verdict(material: Material, cut: Slice) -> fields.Verdict:
    definition = material.definition
    circumstances = Circumstances(
        state=material.campaign.state,
        currency=None if definition.objective == "conversion" else definition.currency,
        per_day=_per_day(cut.time, material.now),
        ends_at=definition.ends_at,
        now=material.now,
    )
    return verdicts.verdict(_evidence(material, cut), circumstances)


def _per_day(times: Ints, now: dt.datetime) -> float:
    """Return decisions per day over the last week, or since the first one if that is later."""
    since = packed.microseconds(now - RECENT)
    recent = times[times >= since]
    if not len(recent):
        return 0.0
    start = max(since, int(times.min()))
    span = dt.timedelta(microseconds=max(packed.microseconds(now) - start, 1))
    return len(recent) / (span / dt.timedelta(days=1))


def _arms(material: Material, cut: Slice) -> tuple[fields.ArmRow, ...]:
    observed = _observed(material, cut.segment)
    posterior, best = _posterior(material, cut.segment)
    ruled_out = _evidence(material, cut).ruled_out()
    total = float(observed["decisions"].sum())
    rows = []
    for place, arm in enumerate(material.definition.arms):
        seen = {name: float(sums[place]) for name, sums in observed.items()}
        row = fields.ArmRow(
            key=arm.key,
            name=arm.name,
            offer=_offer(material.definition, cut.segment, place),
            decisions=int(seen["decisions"]),
            share=_share(seen["decisions"], total),
            conversions=int(seen["conversions"]),
            conversion_rate=_share(seen["conversions"], seen["decisions"]),
            reward_mean=_share(seen["reward"], seen["decisions"]),
            estimate=_shifted(_interval(cut.means, place), material.cost),
            ruled_out=bool(ruled_out[place]),
            best=_known(best[place]),
            posterior=_shifted(posterior[place], material.cost),
            discount_minor=int(seen["discount"]),
        )
        rows.append(row)
    return tuple(rows)


def _interval(means: aipw.Estimate, arm: int) -> Estimate:
    """Return one arm's estimate; an arm that was never eligible has none."""
    if not means.rows[arm]:
        return UNKNOWN
    ends = (means.mean[arm], means.lower[arm], means.upper[arm])
    mean, low, high = (_known(end) for end in ends)
    return Estimate(mean=mean, low=low, high=high)


def _observed(material: Material, segment: int | None) -> dict[str, Floats]:
    """Return sums by arm of the randomised decisions, sticky ones too."""
    drawn, width = material.drawn, len(material.definition.arms)
    chosen = np.ones(len(drawn), bool) if segment is None else drawn.segment == segment
    columns = {
        "decisions": np.ones(len(drawn)),
        "conversions": drawn.conversions,
        "reward": material.reward - material.cost,
        "discount": drawn.discount,
    }
    return {
        name: np.bincount(drawn.arm[chosen], column[chosen], minlength=width).astype(float)
        for name, column in columns.items()
    }


def _posterior(material: Material, segment: int | None) -> tuple[list[Estimate], Floats]:
    """Return each arm's posterior mean with its interval, and its P(best)."""
    belief = material.belief
    if segment is None:
        draws, best = estimates.overall(belief)
        low, high = np.quantile(draws, [ALPHA / 2, 1 - ALPHA / 2], axis=0)
        mean = draws.mean(axis=0)
    else:
        best = belief.best[segment]
        low, high = (belief.own.quantile(level)[segment] for level in (ALPHA / 2, 1 - ALPHA / 2))
        mean = belief.own.mean[segment]
        if not belief.sums.trials[segment].any():
            best = np.full(len(best), np.nan)
    shown = [
        Estimate(mean=_known(mean[arm]), low=_known(low[arm]), high=_known(high[arm]))
        if np.isfinite(best[arm])
        else UNKNOWN
        for arm in range(len(best))
    ]
    return shown, best


def _offer(definition: CampaignDefinition, segment: int | None, arm: int) -> str:
    offer = definition.arms[arm].offer if segment is None else definition.offer(segment, arm)
    return offer.label(definition.currency)


def _segments(material: Material) -> tuple[fields.SegmentReport, ...]:
    densities = _densities(material)
    return tuple(
        _segment(material, place, densities[place])
        for place in range(len(material.definition.segment_keys))
    )


def _segment(
    material: Material, place: int, densities: fields.Densities | None
) -> fields.SegmentReport:
    definition, cut = material.definition, material.slices[place]
    count = int(np.count_nonzero(material.drawn.segment == place))
    named = place < len(definition.segments)
    return fields.SegmentReport(
        key=definition.segment_keys[place],
        name=definition.segments[place].name if named else "Everyone else",
        decisions=count,
        share=_share(count, len(material.drawn)),
        verdict=_verdict(material, cut),
        arms=_arms(material, cut),
        densities=densities,
        elasticity=demand.elasticity(definition, material.assigned, place),
    )


def _densities(material: Material) -> list[fields.Densities | None]:
    belief, arms = material.belief, material.definition.arms
    points = int(np.clip(CURVE_NUMBERS // belief.allowed.size, 41, CURVE_POINTS))
    grids, heights = curves(belief.own, points=points)
    return [
        fields.Densities(
            grid=_rounded(grid - material.cost),
            curves={
                arm.key: _rounded(height[place]) for place, arm in enumerate(arms) if allowed[place]
            },
        )
        if trials.any() and allowed.any()
        else None
        for grid, height, allowed, trials in zip(
            grids, heights, belief.allowed, belief.sums.trials, strict=True
        )
    ]


def _rounded(values: Floats) -> tuple[float, ...]:
    """Six significant digits: pictures need no more."""
    return tuple(float(f"{value:.6g}") for value in np.nan_to_num(values).tolist())


# ---------------------------------------------------------------- over time


@dataclass(frozen=True)
class Buckets:
    """Stretches of equal time: where each ends, and which one every drawn decision is in."""

    ends: tuple[dt.datetime, ...]
    of: Ints


def _buckets(material: Material) -> Buckets:
    time = material.drawn.time
    if not len(time):
        return Buckets((), np.zeros(0, np.int64))
    first, last = int(time.min()), int(time.max()) + 1
    count = min(BUCKETS, last - first)
    edges = first + (np.arange(1, count + 1) * (last - first)) // count
    ends = tuple(packed.moment(int(edge)) for edge in edges)
    return Buckets(ends, np.searchsorted(edges, time, "right"))


def _counts(material: Material, buckets: Buckets) -> Ints:
    """Return (T, S, A) randomised decisions."""
    segments, arms = material.belief.allowed.shape
    drawn = material.drawn
    cell = (buckets.of * segments + drawn.segment) * arms + drawn.arm
    flat = np.bincount(cell, minlength=len(buckets.ends) * segments * arms)
    return flat.reshape(-1, segments, arms)


def _traffic(material: Material) -> fields.Traffic:
    buckets = _buckets(material)
    cells = _counts(material, buckets).sum(axis=1)
    totals = cells.sum(axis=1)
    return fields.Traffic(
        at=buckets.ends,
        decisions=tuple(int(total) for total in totals),
        shares={
            arm.key: tuple(
                _share(count, total) for count, total in zip(column, totals, strict=True)
            )
            for arm, column in zip(material.definition.arms, cells.T, strict=True)
        },
    )


def _regret(material: Material) -> fields.Regret:
    belief, buckets = material.belief, _buckets(material)
    counts = _counts(material, buckets)
    if not len(counts) or not len(material.draws.time):
        return fields.Regret(
            at=(), decisions=(), bands=(), equal_split=(), prior_free=UNKNOWN,
            sentence="No decisions yet, so learning has cost nothing.",
        )  # fmt: skip
    equal = regret.equal_split(counts, mask=belief.allowed)
    bands, splits = (
        tuple(_band(name, draws, cells, belief.allowed) for name, draws in belief.priors.items())
        for cells in (counts, equal)
    )  # fmt: skip
    return fields.Regret(
        at=buckets.ends,
        decisions=tuple(int(total) for total in np.cumsum(counts.sum(axis=(1, 2)))),
        bands=bands,
        equal_split=splits,
        prior_free=_prior_free(material),
        sentence=_cost_in_words(material, bands[0], splits[0]),
    )


def _band(prior: str, draws: Floats, counts: Ints | Floats, allowed: Bools) -> fields.RegretBand:
    found = regret.estimate(draws, counts, mask=allowed)
    mean, low, high = (_rounded(line) for line in found[:3])
    return fields.RegretBand(
        prior=prior, assumption=fields.ASSUMPTIONS[prior], mean=mean, low=low, high=high
    )


def _prior_free(material: Material) -> Estimate:
    """Bound the regret by what every arm would have earned; a 90 % bracket, as the bands are."""
    low, high = regret.bracket(
        [cut.scores for cut in material.slices],
        alpha=REGRET_ALPHA,
        target_rows=estimates.TARGET_ROWS,
    )
    return Estimate(low=_known(low), high=_known(high))


def _cost_in_words(material: Material, band: fields.RegretBand, split: fields.RegretBand) -> str:
    mine, low, high, theirs = (
        _amount(material.definition, line[-1])
        for line in (band.mean, band.low, band.high, split.mean)
    )
    nearly = (
        " Some offers are too close to call: the true cost may be well below this."
        if band.low[-1] < band.mean[-1] / 3
        else ""
    )
    return (
        f"Learning has cost about {mine} so far (90 % likely between {low} and {high}); an equal"
        f" split of the same visitors would have cost about {theirs}.{nearly}"
    )


def _amount(definition: CampaignDefinition, reward: float) -> str:
    if definition.objective == "conversion":
        return f"{reward:,.1f} conversions"
    return money(round(reward), definition.currency)


# ---------------------------------------------------------------- value, health, budget


def _value(material: Material) -> fields.Value:
    unit, held, reward = _compared(material)
    difference = estimates.holdout_difference(unit, held, reward)
    cut = material.draws
    equal = estimates.equal_split_scores(material.assigned, cut.scores)
    told = bool(np.isfinite(cut.means.upper[cut.means.rows > 0]).all())
    shown = [float(reward[side].mean()) - material.cost if side.any() else None
             for side in (~held, held)]  # fmt: skip
    return fields.Value(
        campaign_mean=shown[0],
        holdout_mean=shown[1],
        holdout_units=len(np.unique(unit[held])),
        difference=difference,
        equal_split=_shifted(estimates.mean(equal, told=told), material.cost),
        against_equal_split=estimates.mean(cut.reward - equal, told=told),
        sentence=_value_in_words(material, difference, held),
    )


def _compared(material: Material) -> tuple[Ints, Bools, Ints]:
    """Return unit, whether held out, and reward, of decisions made at today's holdout share.

    Had the share changed, pooling would compare different times with each other.
    """
    whole, share = material.log, material.definition.holdout
    chosen = (whole.kind != OTHER) & (whole.holdout == share)
    reward = whole.reward(material.definition.objective)
    return whole.unit[chosen], whole.kind[chosen] == HOLDOUT, reward[chosen]


def _value_in_words(material: Material, difference: Estimate, held: Bools) -> str:
    definition = material.definition
    if definition.holdout == 0:
        return "There is no holdout, so what the campaign adds cannot be measured."
    if difference.mean is None or difference.low is None or difference.high is None:
        return "Too early to compare with the holdout."
    if difference.low <= 0 <= difference.high:
        return "Cannot tell yet whether the campaign earns more than the holdout."
    low, high = sorted((abs(difference.low), abs(difference.high)))
    word = "more" if difference.low > 0 else "less"
    return (
        f"A visitor earns {_each(definition, abs(difference.mean))} {word} than in the holdout"
        f" (between {_each(definition, low)} and {_each(definition, high)})."
    )


def _each(definition: CampaignDefinition, reward: float) -> str:
    if definition.objective == "conversion":
        return f"{100 * reward:.2f} percentage points"
    return money(round(reward), definition.currency)


def _health(material: Material) -> fields.Health:
    drawn, definition = material.drawn, material.definition
    fresh = drawn.where(drawn.kind == POLICY)
    ratio = srm.test(fresh.arm, fresh.simplex)
    alarm = ratio.p_value < SRM_ALARM
    sample = _effective(material)
    notes = _notes(material, alarm, sample)
    return fields.Health(
        ok=not alarm and material.trouble is None,
        srm_p_value=ratio.p_value if len(fresh) else None,
        srm_alarm=alarm,
        effective_sample_size=sample,
        smallest_propensity=float(drawn.propensity.min()) if len(drawn) else None,
        floor=definition.floor,
        late_outcomes=int(material.log.late.sum()),
        masked_decisions=int(np.count_nonzero(drawn.masked)),
        unread_decisions=material.log.unread,
        notes=notes,
    )


def _effective(material: Material) -> float | None:
    """Return (Σw)²/Σw² of the weights that give an equal split its value."""
    draws = material.assigned
    if not len(draws):
        return None
    weight = 1 / ((draws.simplex > 0).sum(axis=1) * draws.propensity)
    return float(weight.sum() ** 2 / np.sum(weight**2))


def _notes(material: Material, alarm: bool, sample: float | None) -> tuple[str, ...]:
    maturity, definition = _maturity(material), material.definition
    conditions = {
        f"The policy could not be retrained: {material.trouble}. What was learnt before serves on;"
        " it is tried again every few minutes.": material.trouble is not None,
        "Arms were not served as often as the logged probabilities say: something changes offers"
        " after they are drawn, or logs wrongly. Estimates cannot be trusted.": alarm,
        "Some visitors can still buy within the attribution window; figures may rise. Offers that"
        " make people buy sooner look better for now.": maturity is not None and maturity < 0.9,
        "Few decisions were given to some arms: estimates of what everybody would have done under"
        " them are uncertain.": sample is not None and sample < GOOD_SAMPLE,
        "The policy forgets: recent decisions weigh more in what it serves. Everything here counts"
        " all decisions alike.": definition.forgets,
        "The floor is 0: an arm may stop being tried, and nothing new is learnt of it.":
            definition.floor == 0,
        "Visitors keep their offer for a while: estimates count each draw once, with all it"
        " earned.": definition.sticky_seconds > 0,
        "Decisions of earlier revisions, for arms or segments that are no more, are left out.":
            material.log.unread > 0,
    }  # fmt: skip
    return tuple(note for note, holds in conditions.items() if holds)


def _budget(material: Material) -> fields.Budget:
    spent, budget = int(material.log.discount.sum()), material.definition.budget_minor
    return fields.Budget(
        spent_minor=spent, budget_minor=budget, share=_share(spent, budget) if budget else None
    )
