"""Which policy serves an ``auto`` campaign now, since when and why, in plain words."""

from collections.abc import Mapping
from typing import Any

from service.definition import CampaignDefinition
from service.history import PolicyNow, RivalNow
from service.views import console_words as words
from service.views.console_words import Topic

_VERDICTS = {
    "better": "It does better and takes over.",
    "worse": "It does worse so far.",
    "cannot tell yet": "Too early to tell.",
}


def review(plan: CampaignDefinition, now: PolicyNow) -> tuple[Topic, ...]:
    """Return what there is to say of the policy that serves and of those that may replace it."""
    since = words.moment(now.since, plan.zone)
    begun = f"“{words.policy(now.policy).title}”" + (f", since {since}." if now.since else ".")
    topics = [Topic("Serving now", (begun, _why(plan, now.change)))]
    if now.rivals:
        told = tuple(_standing(plan, one) for one in now.rivals)
        topics.append(Topic("Compared with it", (*told, _when(plan))))
    return tuple(topics)


def _why(plan: CampaignDefinition, change: Mapping[str, Any] | None) -> str:
    if change is None:
        return "The campaign began with it."
    before = f"“{words.policy(change['from']).title}”"
    if change["why"] == "named":
        return f"Somebody chose it instead of {before}."
    gain, low, high = (_reward(plan, change[name]) for name in ("gain", "low", "high"))
    return (
        f"It took over from {before}, because {words.count(change['decisions'])} decisions showed"
        f" that it does better: by {gain} per customer, between {low} and {high}. The chance of"
        f" being wrong in this was at most {words.percent(change['level'])}."
    )


def _standing(plan: CampaignDefinition, one: RivalNow) -> str:
    title = f"“{words.policy(one.policy).title}”"
    if one.gain is None or one.low is None or one.high is None:
        return f"{title}: not enough decisions yet."
    gain, low, high = (_reward(plan, value) for value in (one.gain, one.low, one.high))
    return (
        f"{title}: {gain} per customer, between {low} and {high}, after"
        f" {words.count(one.decisions)} decisions. {_VERDICTS[one.verdict]}"
    )


def _when(plan: CampaignDefinition) -> str:
    window = words.duration(plan.attribution_seconds)
    return f"A decision counts here when the {window} in which a purchase is credited are over."


def _reward(plan: CampaignDefinition, value: float) -> str:
    return words.reward(value, plan.objective, plan.currency, signed=True)
