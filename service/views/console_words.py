"""Campaigns in plain words: durations, money, times of a zone, and the sentences of the review."""

import datetime as dt
import zoneinfo
from dataclasses import dataclass
from typing import NamedTuple

from bandits import policies
from service.contexts import HOLIDAYS
from service.definition import AUTO, Arm, CampaignDefinition, Segment, money
from service.products import ATTRIBUTES
from service.views import console_features

OBJECTIVES = {
    "profit": "profit: margin minus the discount, so nothing is given away for nothing",
    "revenue": "revenue, whatever the discounts cost",
    "conversion": "the number of customers who buy, whatever the discounts cost",
}


class Way(NamedTuple):
    """A way of sharing customers out: what people call it, what it does, and when to use it."""

    title: str
    how: str
    when: str


USUAL_WAY = Way(
    "Learn and earn",
    "More and more customers get what does best, as fast as the evidence allows.",
    "Use it unless you know better: it needs no settings, and few customers to learn from.",
)
POLICIES = {
    "auto": Way(
        "Learn and earn, and change to what does better",
        "Barter starts with “Learn and earn”. Beside it, other ways learn from the same customers,"
        " those by features too where there are features; one takes over when the campaign’s own"
        " log shows that it does better.",
        "For campaigns with many customers. Every change is in the history, with its evidence.",
    ),
    "thompson_hierarchical": Way(
        "Learn and earn, by depth of discount",
        "Barter learns how sales rise with the discount and lets segments learn from each other,"
        " so customers move towards the offers that do best as fast as the evidence allows.",
        "For discounts of different depth, with or without segments.",
    ),
    "thompson_profit": Way(
        "Learn and earn, each offer by itself",
        "Barter shifts customers towards the offers that earn more, as fast as the evidence"
        " allows. It assumes nothing about offers, and segments do not learn from each other.",
        "For a few offers that have no order, such as a gift or free shipping.",
    ),
    "thompson_gaussian": Way(
        "Learn and earn, each offer by itself",
        "Barter shifts customers towards the offers that bring more, as fast as the evidence"
        " allows.",
        "For a few offers that have no order, such as a gift or free shipping.",
    ),
    "thompson_beta": Way(
        "Learn and earn, each offer by itself",
        "Barter shifts customers towards the offers that convert more, as fast as the evidence"
        " allows. It assumes nothing about offers, and segments do not learn from each other.",
        "For a few offers that have no order, such as a gift or free shipping.",
    ),
    "linear_thompson": Way(
        "By features, as often as likely best",
        "Barter learns how each offer’s result changes with the features, and gives each customer"
        " an offer as often as it is likely to be the best one for them.",
        "The first choice once you have features: promising offers keep a real chance, so the log"
        " can later tell what another way would have earned.",
    ),
    "linear_ucb": Way(
        "By features, always the most promising",
        "Barter learns how each offer’s result changes with the features, and gives each customer"
        " the offer that could be best for them, so what is uncertain gets tried.",
        "When only the result counts: like customers get the same offer, so the log tells less"
        " about other ways.",
    ),
    "logistic_thompson": Way(
        "By features, for purchases",
        "Barter learns how each offer’s chance of a purchase changes with the features, and gives"
        " each customer an offer as often as it is likely to be the best one for them.",
        "When purchases should grow, and offers differ much in how often they are bought.",
    ),
    "trees_thompson": Way(
        "By features, in steps and combinations",
        "Barter fits decision trees to the log now and then, and gives each customer an offer as"
        " often as it is likely to be the best one for them.",
        "When what matters comes in steps or combinations, such as newcomers who use the app, and"
        " there are many customers.",
    ),
    "neural_linear": Way(
        "By features, along curves",
        "Barter fits a neural network to the log now and then, and goes on learning from its last"
        " layer in between.",
        "When results rise and fall again along a feature, and there are many customers.",
    ),
    "neural_ensemble": Way(
        "By features, along curves, by several networks",
        "Barter fits several neural networks to the log now and then, and shares customers out as"
        " the networks disagree.",
        "As the one before, where new kinds of customers keep coming: networks disagree about what"
        " they have not seen.",
    ),
    "neural_epinet": Way(
        "By features, along curves, with a second network for its doubt",
        "Barter fits a neural network to the log now and then, and a second one that learns how"
        " unsure the first one is.",
        "As the one before, with two networks in place of several.",
    ),
    "squarecb": Way(
        "By features, shares by the distance",
        "Barter predicts each offer’s result from the features; the best gets most customers, each"
        " other the fewer, the further it is predicted to fall behind.",
        "When every share must be explained: it follows from the predictions by one formula.",
    ),
    "fastcb": Way(
        "By features, shares by the distance, trying less",
        "As shares by the distance, but others are tried less where the best offer leaves little"
        " to be gained.",
        "When the best offers already do nearly as well as can be.",
    ),
    "fixed_split": Way(
        "A/B test",
        "Every offer keeps the same share of customers throughout.",
        "For a test whose shares must not move. Nothing is earned while it runs.",
    ),
    "epsilon_greedy": Way(
        "Best so far, and some chance",
        "Most customers get the best offer so far; a fixed share keeps trying the others.",
        "When a fixed part of customers must always be random, or as a yardstick.",
    ),
    "ucb1": Way(
        "Optimism",
        "Barter favours offers that earn well or have been tried little.",
        "As a yardstick from the literature.",
    ),
    "gradient": Way(
        "Step by step",
        "Barter moves shares step by step towards offers that do better than average.",
        "As a yardstick from the literature.",
    ),
}
REASONS = {
    "policy": "Drawn",
    "sticky": "Kept",
    "holdout": "Holdout",
    "draft": "Campaign is a draft",
    "scheduled": "Not started yet",
    "paused": "Campaign is paused",
    "ended": "Campaign has ended",
    "killed": "Campaign was stopped",
    "no_eligible_arm": "No arm was eligible",
    "unavailable": "Log unavailable",
}
STATES = {
    "draft": "Draft",
    "scheduled": "Scheduled",
    "running": "Running",
    "paused": "Paused",
    "ended": "Ended",
    "killed": "Stopped",
}
ROLES = {
    "marketer": "Creates and runs campaigns",
    "analyst": "Reads campaigns, reports and the decision log",
    "developer": "Manages API keys, reads campaigns and logs",
    "admin": "Everything, people included",
}
SCOPES = {
    "decide": "Ask which offer a customer gets",
    "reward": "Report what customers did",
    "read": "Read campaigns, reports and logs",
    "manage": "Change campaigns, keys and people",
    "local": "Decide in its own process: holds the key of pseudonyms and what policies have learnt",
}


@dataclass(frozen=True)
class Topic:
    """One part of the review: what it is about, and its sentences."""

    name: str
    sentences: tuple[str, ...]


def zone(name: str) -> dt.tzinfo:
    """Return a time zone; UTC if this host does not know it."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        return dt.UTC


def place(name: str) -> str:
    """Return a zone's city in words.

    >>> place("America/Argentina/Buenos_Aires"), place("UTC")
    ('Buenos Aires', 'UTC')
    """
    return name.rsplit("/", 1)[-1].replace("_", " ")


def moment(when: dt.datetime | None, zone_name: str, *, seconds: bool = False) -> str:
    """Return a time in a zone, such as ``Mon 1 Dec 2026, 09:00``."""
    if when is None:
        return "—"
    local = when.astimezone(zone(zone_name))
    told = f"{local:%a} {local.day} {local:%b %Y, %H:%M}"
    return f"{told}:{local:%S}" if seconds else told


def long_moment(when: dt.datetime, zone_name: str) -> str:
    """Return a time for a sentence, such as ``Monday 1 December 2026, 09:00 Madrid time``."""
    local = when.astimezone(zone(zone_name))
    return f"{local:%A} {local.day} {local:%B %Y, %H:%M} {place(zone_name)} time"


def day(date: dt.date) -> str:
    """Return a day, such as ``1 Dec 2026``."""
    return f"{date.day} {date:%b %Y}"


def ago(when: dt.datetime | None, now: dt.datetime) -> str:
    """Return how long ago something was, such as ``3 min ago``."""
    if when is None:
        return "never"
    seconds = (now - when).total_seconds()
    if seconds < 5:
        return "just now"
    for size, word in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {word} ago"
    return f"{int(seconds)} s ago"


def duration(seconds: int) -> str:
    """Return a duration in its largest whole unit.

    >>> duration(604800), duration(3600), duration(90)
    ('7 days', '1 hour', '90 seconds')
    """
    for size, word in ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")):
        if seconds % size == 0:
            count = seconds // size
            return f"{count} {word}{'' if count == 1 else 's'}"
    raise AssertionError("every whole number of seconds is divisible by one")


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share of one in per cent.

    >>> percent(0.05), percent(0.123456)
    ('5 %', '12.3 %')
    """
    return "—" if share is None else f"{round(share * 100, digits):g} %"


def count(number: float | None) -> str:
    """Return a whole number with thin thousands separators, which no language misreads."""
    return "—" if number is None else f"{round(number):,}".replace(",", "\u202f")


def amount(minor: float | None, currency: str, *, signed: bool = False) -> str:
    """Return money as a figure, such as ``1 250.00 EUR``."""
    if minor is None:
        return "—"
    sign = "−" if minor < 0 else "+" if signed and minor > 0 else ""
    return f"{sign}{abs(minor) / 100:,.2f} {currency}".replace(",", "\u202f")


def reward(value: float | None, objective: str, currency: str, *, signed: bool = False) -> str:
    """Return a reward per customer in the objective's unit."""
    if value is None or objective != "conversion":
        return amount(value, currency, signed=signed)
    sign = "−" if value < 0 else "+" if signed and value > 0 else ""
    return f"{sign}{abs(value) * 100:.2f} %"


def review(
    plan: CampaignDefinition, now: dt.datetime, *, launched: bool = False
) -> tuple[Topic, ...]:
    """Return what a campaign will do or does, as a marketer would tell a colleague."""
    topics = [
        Topic("When", _when(plan, now, launched)),
        Topic("Who gets what", _who(plan)),
        Topic("The offers", _offers(plan)),
        Topic("Segments", _groups(plan)),
        Topic("Features", _features(plan)),
        Topic("Known facts", (*_holidays(plan), *_products(plan))),
        Topic("The aim", _aim(plan)),
        Topic("Limits", _limits(plan)),
        Topic("Counting", _counting(plan)),
    ]
    return tuple(topic for topic in topics if topic.sentences)


def _when(plan: CampaignDefinition, now: dt.datetime, launched: bool) -> tuple[str, ...]:
    if plan.starts_at is None or plan.starts_at <= now:
        start = "Was launched" if launched else "Starts as soon as you launch it"
    else:
        start = f"Starts on {long_moment(plan.starts_at, plan.zone)}"
    if plan.ends_at is None:
        return (f"{start} and runs until you end it.",)
    return (f"{start} and ends on {long_moment(plan.ends_at, plan.zone)}.",)


def _who(plan: CampaignDefinition) -> tuple[str, ...]:
    default = plan.arms[plan.default_index].name
    if plan.holdout == 0:
        return (
            f"All customers take part. Without a holdout you cannot tell how much better this is"
            f" than giving everybody “{default}”.",
        )
    return (
        f"{percent(1 - plan.holdout)} of customers get the offer that Barter chooses;"
        f" {percent(plan.holdout)} always get “{default}”, so that you can compare.",
        f"“{default}” is also what customers get while the campaign is paused or has ended.",
    )


def _offers(plan: CampaignDefinition) -> tuple[str, ...]:
    return tuple(
        f"“{arm.name}”{_offered(arm, plan.currency)}"
        + ("" if arm.cap is None else f", to at most {percent(arm.cap)} of customers")
        + only_if(arm)
        + ("." if arm.enabled else " — switched off, nobody gets it.")
        for arm in plan.arms
    )


def _offered(arm: Arm, currency: str) -> str:
    """Return what an arm gives, unless its name says so already."""
    told = arm.offer.label(currency)
    return "" if told == arm.name else f": {told}"


def only_if(arm: Arm) -> str:
    """Return where an arm may be given, as the end of a sentence; empty where everywhere."""
    return f", only if {' and '.join(one.words for one in arm.only_if)}" if arm.only_if else ""


def _groups(plan: CampaignDefinition) -> tuple[str, ...]:
    if not plan.segments:
        return ("Barter learns one answer for all customers together.",)
    told = [_group(plan, segment) for segment in plan.segments]
    pooled = policies.describe(plan.choices[0]).pooled
    how = "and lets segments learn from each other" if pooled else "apart from the others"
    return (*told, f"Everyone else is a segment of their own. Barter learns for each, {how}.")


def _group(plan: CampaignDefinition, segment: Segment) -> str:
    names = {arm.key: arm.name for arm in plan.arms}
    told = f"“{segment.name}”: customers whose {' and '.join(one.words for one in segment.rules)}"
    left_out = [names[key] for key, change in segment.arms.items() if change.exclude]
    if left_out:
        told += f"; never {' or '.join(f'“{name}”' for name in left_out)}"
    for key, change in segment.arms.items():
        if change.offer is not None:
            told += f"; “{names[key]}” becomes {change.offer.label(plan.currency)}"
    return f"{told}."


def _features(plan: CampaignDefinition) -> tuple[str, ...]:
    told = tuple(f"{console_features.sentence(one)}." for one in plan.features)
    if not told:
        return ()
    if plan.contextual:
        use = "Within a segment, offers are chosen by these facts:"
    elif plan.policy.name == AUTO:
        use = (
            "These facts are written down with every decision; offers are"
            " chosen by them once a way “by features” has taken over:"
        )
    else:
        use = (
            "These facts are written down with every decision, but this way of"
            " sharing customers out does not look at them:"
        )
    return (use, *told)


def _holidays(plan: CampaignDefinition) -> tuple[str, ...]:
    read = sorted(plan.reads & HOLIDAYS.keys())
    if not read:
        return ()
    if plan.country is None:
        told = "are" if len(read) > 1 else "is"
        return (
            f"{' and '.join(read)} {told} known only where requests say so, because no country is"
            " named under “Schedule”.",
        )
    return (f"Holidays are those of {plan.country}.",)


def _products(plan: CampaignDefinition) -> tuple[str, ...]:
    read = sorted(plan.reads & ATTRIBUTES.keys())
    if not read:
        return ()
    told = "are" if len(read) > 1 else "is"
    return (f"{' and '.join(read)} {told} known where requests name the product they are about.",)


def policy(name: str) -> Way:
    """Return what people call a policy; what it says of itself where there are no words here."""
    if name in POLICIES:
        return POLICIES[name]
    spec = policies.describe(name)
    return Way(spec.title, spec.summary, "")


def _aim(plan: CampaignDefinition) -> tuple[str, ...]:
    aim = f"The aim is {OBJECTIVES[plan.objective]}."
    how = policy(plan.policy.name).how
    if plan.floor == 0:
        return (aim, how)
    return (
        aim,
        f"{how} Every offer keeps at least {percent(plan.floor, 2)}, so that a change of taste"
        " is noticed.",
    )


def _limits(plan: CampaignDefinition) -> tuple[str, ...]:
    spend = (
        "There is no limit on the discounts given in all."
        if plan.budget_minor is None
        else f"At most {money(plan.budget_minor, plan.currency)} is given away in discounts; what"
        " the rest no longer covers is not offered any more."
    )
    worst = _costliest(plan)
    return spend, worst


def _costliest(plan: CampaignDefinition) -> str:
    costs = [
        (arm.offer.discount_minor(plan.basket_minor), arm.name) for arm in plan.arms if arm.enabled
    ]
    cost, name = max(costs, default=(0, ""))
    margin = round(plan.basket_minor * plan.margin_rate)
    told = (
        f"On a typical basket of {money(plan.basket_minor, plan.currency)} your margin is"
        f" {money(margin, plan.currency)}; the dearest offer, “{name}”, costs"
        f" {money(cost, plan.currency)} of it."
    )
    return (
        f"{told} That is more than the margin: such a sale loses money." if cost > margin else told
    )


def _counting(plan: CampaignDefinition) -> tuple[str, ...]:
    keep = (
        "A customer who comes back may get another offer."
        if plan.sticky_seconds == 0
        else f"A customer keeps the same offer for {duration(plan.sticky_seconds)}."
    )
    return (
        f"An offer stays valid for {duration(plan.offer_seconds)}. A purchase counts when it comes"
        f" within {duration(plan.attribution_seconds)} of the offer.",
        keep,
    )
