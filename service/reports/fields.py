"""What an analyst report says: plain values, with a help text per field.

The texts are the ``description`` of each field: console, CSV and the OpenAPI document show the
same words. Amounts in ``_minor`` are minor units of the campaign's currency. A *reward* is in
the unit of the objective: minor units per decision for profit and revenue, conversions per
decision for conversion. What cannot be said yet is None, never NaN.
"""

import csv
import dataclasses
import datetime as dt
import io
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field
from pydantic.fields import FieldInfo

Code = Literal[
    "not_started",
    "no_data",
    "too_early",
    "leading",
    "no_difference",
    "cannot_tell",
    "ended_winner",
]

SMOOTH = "smooth in the depth of the discount"
SIMILAR = "arms resemble each other"
SPREAD = "the observed spread of rewards"
OVERALL = "the campaign's own conversion rate"
OWN = "the policy's own"
ASSUMPTIONS = {
    SMOOTH: "Assumes that conversion rises or falls smoothly with the depth of the discount, much"
    " alike in every segment, up to departures as large as the data suggest; and that baskets do"
    " so too.",
    SIMILAR: "Assumes that arms resemble each other as much as the data suggest, whatever their"
    " discount.",
    SPREAD: "Assumes nothing that arms share, and that rewards spread as observed. Errs on the"
    " high side where arms are nearly tied.",
    OVERALL: "Assumes conversion near the campaign's overall rate, arms unrelated, and the profit"
    " of a sale as known. Errs on the high side where arms are nearly tied.",
    OWN: "Assumes what the policy assumes: arms unrelated, and the profit of a sale as known. Errs"
    " on the high side where arms are nearly tied.",
}

Key = Annotated[str, Field(description="The key.")]
Name = Annotated[str, Field(description="The name.")]
Times = Annotated[
    tuple[dt.datetime, ...], Field(description="The end of each stretch of time, oldest first.")
]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with the interval that goes with it."""

    mean: Annotated[float | None, Field(description="The estimate itself.")] = None
    low: Annotated[float | None, Field(description="The lower end of the interval.")] = None
    high: Annotated[float | None, Field(description="The upper end of the interval.")] = None


UNKNOWN = Estimate()


@dataclass(frozen=True, kw_only=True)
class Header:
    """Which campaign, which data, which question."""

    campaign: Annotated[str, Field(description="The campaign's key.")]
    name: Annotated[str, Field(description="The campaign's name.")]
    state: Annotated[str, Field(description="The campaign's state when the report was made.")]
    revision: Annotated[int, Field(description="The revision of the definition in force.")]
    objective: Annotated[str, Field(description="What the campaign maximises.")]
    currency: Annotated[str, Field(description="The currency of every amount in minor units.")]
    policy: Annotated[str, Field(description="The policy that chooses.")]
    estimand: Annotated[str, Field(description="What the estimates estimate, in words.")]
    started_at: Annotated[dt.datetime | None, Field(description="When the campaign started.")]
    ended_at: Annotated[dt.datetime | None, Field(description="When the campaign ended.")]
    first_decision_at: Annotated[dt.datetime | None, Field(description="The first decision.")]
    last_decision_at: Annotated[dt.datetime | None, Field(description="The last decision.")]
    decisions: Annotated[int, Field(description="All decisions, randomised or not.")]
    randomised: Annotated[
        int, Field(description="Decisions drawn by the policy: the ones all estimates rest on.")
    ]
    holdout: Annotated[int, Field(description="Decisions of the holdout, kept separate.")]
    outcomes: Annotated[int, Field(description="Outcome events of this campaign's decisions.")]
    purchases: Annotated[int, Field(description="Purchase events among the outcomes.")]
    returns: Annotated[int, Field(description="Return events among the outcomes.")]
    returns_share: Annotated[
        float | None, Field(description="Return events as a share of purchase events.")
    ]
    maturity: Annotated[
        float | None,
        Field(description="Share of randomised decisions whose attribution window is over."),
    ]
    snapshot: Annotated[int | None, Field(description="The version of the latest snapshot.")]
    learnt_at: Annotated[dt.datetime | None, Field(description="When that snapshot was made.")]
    generated_at: Annotated[dt.datetime, Field(description="When this report was made.")]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the data allow one to say, in one sentence."""

    code: Annotated[Code, Field(description="The verdict as a word for programs.")]
    sentence: Annotated[str, Field(description="The verdict in plain words.")]
    arm: Annotated[str | None, Field(description="The arm that is ahead, if one is.")] = None
    candidates: Annotated[
        tuple[str, ...], Field(description="Arms that may still be the best.")
    ] = ()
    days_left: Annotated[
        float | None, Field(description="About how many more days this traffic needs.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """One arm, in the whole campaign or in one segment."""

    key: Key
    name: Name
    offer: Annotated[str, Field(description="The offer in a few words.")]
    decisions: Annotated[int, Field(description="Randomised decisions that drew this arm.")]
    share: Annotated[float | None, Field(description="Its share of the randomised decisions.")]
    conversions: Annotated[int, Field(description="Decisions of this arm that converted.")]
    conversion_rate: Annotated[float | None, Field(description="Conversions per decision.")]
    reward_mean: Annotated[
        float | None,
        Field(description="Observed reward per decision: biased, as the policy chose who got it."),
    ]
    estimate: Annotated[
        Estimate,
        Field(
            description="Reward per decision had everybody been given this arm (AIPW), with a"
            " 95 % interval that holds whenever it is read."
        ),
    ]
    ruled_out: Annotated[
        bool, Field(description="Whether another arm is better beyond reasonable doubt.")
    ]
    best: Annotated[
        float | None, Field(description="The posterior probability of being the best arm.")
    ]
    posterior: Annotated[
        Estimate, Field(description="Posterior mean reward with its 95 % credible interval.")
    ]
    discount_minor: Annotated[int, Field(description="Discount given by this arm.")]


@dataclass(frozen=True, kw_only=True)
class Densities:
    """Posterior densities of every arm's reward, for a picture."""

    grid: Annotated[tuple[float, ...], Field(description="Reward per decision.")]
    curves: Annotated[
        dict[str, tuple[float, ...]], Field(description="The density on the grid, by arm key.")
    ]


@dataclass(frozen=True, kw_only=True)
class Elasticity:
    """How the share of customers who buy moves with the price, by depths that were drawn."""

    estimate: Annotated[
        Estimate,
        Field(
            description="Price elasticity of the share of customers who buy: by how many per cent"
            " it rises where a typical basket costs 1 % more (below 0, as a rule). From randomised"
            " decisions and their logged probabilities (AIPW), with a 95 % interval that holds"
            " whenever it is read."
        ),
    ]
    decisions: Annotated[
        int, Field(description="Decisions in which every depth had a chance: what it rests on.")
    ]
    sentence: Annotated[str, Field(description="The same in plain words.")]


@dataclass(frozen=True, kw_only=True)
class SegmentReport:
    """One segment: its verdict, its arms and their posteriors."""

    key: Key
    name: Name
    decisions: Annotated[int, Field(description="Randomised decisions in this segment.")]
    share: Annotated[float | None, Field(description="Its share of the randomised decisions.")]
    verdict: Annotated[Verdict, Field(description="What may be said about this segment.")]
    arms: Annotated[tuple[ArmRow, ...], Field(description="The arms within this segment.")]
    densities: Annotated[
        Densities | None, Field(description="Posterior densities, once something was learnt.")
    ]
    elasticity: Annotated[
        Elasticity | None, Field(description="None where offers differ in no price.")
    ]


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """How the traffic was shared among the arms over time."""

    at: Times
    decisions: Annotated[tuple[int, ...], Field(description="Randomised decisions per stretch.")]
    shares: Annotated[
        dict[str, tuple[float | None, ...]],
        Field(description="Each arm's share per stretch, by arm key."),
    ]


@dataclass(frozen=True, kw_only=True)
class RegretBand:
    """Estimated cumulative regret under one prior, as of the end of each stretch."""

    prior: Annotated[str, Field(description="The prior that the estimate starts from.")]
    assumption: Annotated[str, Field(description="What that prior assumes, and how it may err.")]
    mean: Annotated[
        tuple[float, ...],
        Field(
            description="Posterior mean of the regret so far. It errs on the high side where arms"
            " are nearly tied: the best of several uncertain arms looks better than it is."
        ),
    ]
    low: Annotated[
        tuple[float, ...],
        Field(
            description="Lower end of the 90 % band: regret against the arms that look best, which"
            " can only be less than against the best ones."
        ),
    ]
    high: Annotated[
        tuple[float, ...],
        Field(description="Upper end of the 90 % band: regret against the best arms."),
    ]


@dataclass(frozen=True, kw_only=True)
class Regret:
    """What learning has cost: reward lost against the best arm of every segment."""

    at: Times
    decisions: Annotated[
        tuple[int, ...], Field(description="Randomised decisions up to the end of each stretch.")
    ]
    bands: Annotated[
        tuple[RegretBand, ...],
        Field(
            description="The campaign's regret under several priors; the first is the one whose"
            " bands held best in simulations of many kinds of arms."
        ),
    ]
    equal_split: Annotated[
        tuple[RegretBand, ...],
        Field(description="The regret an equal split would have had, under the same priors."),
    ]
    prior_free: Annotated[
        Estimate,
        Field(
            description="Bounds on the regret so far without any prior, from what every arm would"
            " have earned beyond what was earned (90 %, at any time). No upper end while some arm"
            " has hardly been tried in a segment."
        ),
    ]
    sentence: Annotated[str, Field(description="The cost of exploration in plain words.")]


@dataclass(frozen=True, kw_only=True)
class Value:
    """What the campaign is worth: against the holdout, and against an equal split."""

    campaign_mean: Annotated[
        float | None, Field(description="Observed reward per randomised decision.")
    ]
    holdout_mean: Annotated[
        float | None, Field(description="Observed reward per decision of the holdout.")
    ]
    holdout_units: Annotated[int, Field(description="Units in the holdout.")]
    difference: Annotated[
        Estimate,
        Field(description="Campaign less holdout per decision, 95 % interval valid at any time."),
    ]
    equal_split: Annotated[
        Estimate, Field(description="Estimated reward per decision of an equal split (AIPW).")
    ]
    against_equal_split: Annotated[
        Estimate, Field(description="Campaign less equal split per decision, 95 % interval.")
    ]
    sentence: Annotated[str, Field(description="The comparison in plain words.")]


@dataclass(frozen=True, kw_only=True)
class Health:
    """Whether the log can be trusted with these questions."""

    ok: Annotated[bool, Field(description="No alarm in any of the checks below.")]
    srm_p_value: Annotated[
        float | None,
        Field(
            description="Sample ratio: always-valid p-value that arms were drawn as the logged"
            " probabilities say."
        ),
    ]
    srm_alarm: Annotated[bool, Field(description="The sample ratio is not as logged (p < 0.01).")]
    effective_sample_size: Annotated[
        float | None,
        Field(description="Equally weighted decisions worth as much for the equal split's value."),
    ]
    smallest_propensity: Annotated[
        float | None, Field(description="The smallest probability that was drawn with.")
    ]
    floor: Annotated[float, Field(description="The least probability of every eligible arm.")]
    late_outcomes: Annotated[
        int, Field(description="Outcomes after the attribution window, not credited.")
    ]
    masked_decisions: Annotated[
        int, Field(description="Randomised decisions in which some arm was not eligible.")
    ]
    unread_decisions: Annotated[
        int, Field(description="Decisions of earlier revisions whose arm or segment is no more.")
    ]
    notes: Annotated[tuple[str, ...], Field(description="What to bear in mind, in plain words.")]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Discount given away, against what may be given."""

    spent_minor: Annotated[int, Field(description="Discount given, by every decision.")]
    budget_minor: Annotated[int | None, Field(description="The budget; None is no limit.")]
    share: Annotated[float | None, Field(description="The part of the budget that is spent.")]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The whole report on one campaign."""

    header: Header
    verdict: Annotated[Verdict, Field(description="What may be said about the campaign.")]
    arms: Annotated[tuple[ArmRow, ...], Field(description="The arms over all segments.")]
    segments: Annotated[tuple[SegmentReport, ...], Field(description="One part per segment.")]
    traffic: Traffic
    regret: Regret
    value: Value
    health: Health
    budget: Budget

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values: RFC 3339 times, None for what is unknown."""
        plain = _plain(self)
        assert isinstance(plain, dict)
        return plain

    def to_csv(self) -> str:
        """Return one row per arm: first over all segments (``segment`` empty), then in each.

        The regret is the campaign's, under the first prior, and the same in every row.
        """
        table = io.StringIO(newline="")
        writer = csv.writer(table)
        writer.writerow(CSV_COLUMNS)
        for arm in self.arms:
            writer.writerow(self._row("", arm))
        for segment in self.segments:
            for arm in segment.arms:
                writer.writerow(self._row(segment.key, arm))
        return table.getvalue()

    def _row(self, segment: str, arm: ArmRow) -> list[Any]:
        head = self.header
        cells = [head.campaign, head.revision, head.generated_at, head.objective, head.currency]
        cells += [segment, arm.key, arm.name, arm.offer, arm.decisions, arm.share]
        cells += [arm.conversions, arm.conversion_rate, arm.reward_mean]
        cells += [arm.estimate.mean, arm.estimate.low, arm.estimate.high, arm.ruled_out, arm.best]
        cells += [arm.posterior.mean, arm.posterior.low, arm.posterior.high, arm.discount_minor]
        return [_cell(_plain(cell)) for cell in [*cells, *self._regret_cells()]]

    def _regret_cells(self) -> list[Any]:
        regret = self.regret
        free = [regret.prior_free.low, regret.prior_free.high]
        if not regret.bands:
            return [None, None, None, None, None, *free]
        band, split = regret.bands[0], regret.equal_split[0]
        return [band.mean[-1], band.low[-1], band.high[-1], split.mean[-1], band.prior, *free]


CSV_COLUMNS = (
    *("campaign", "revision", "generated_at", "objective", "currency"),
    *("segment", "arm", "name", "offer", "decisions", "share"),
    *("conversions", "conversion_rate", "reward_mean"),
    *("estimate", "estimate_low", "estimate_high", "ruled_out", "p_best"),
    *("posterior_mean", "posterior_low", "posterior_high", "discount_minor"),
    *("campaign_regret", "campaign_regret_low", "campaign_regret_high"),
    *("equal_split_regret", "regret_prior", "prior_free_regret_low", "prior_free_regret_high"),
)


def help_texts(part: type) -> dict[str, str]:
    """Return the help text of every field of a part of the report, by field name.

    >>> help_texts(Budget)["spent_minor"]
    'Discount given, by every decision.'
    """
    texts = {}
    for name, hint in get_type_hints(part, include_extras=True).items():
        found = [note for note in getattr(hint, "__metadata__", ()) if isinstance(note, FieldInfo)]
        texts[name] = (found[0].description if found else None) or ""
    return texts


def _plain(value: Any) -> Any:
    """Return dataclasses, tuples and times as JSON values; a number that is none becomes None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _cell(value: Any) -> Any:
    """Keep spreadsheets from taking a name for a formula."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value
