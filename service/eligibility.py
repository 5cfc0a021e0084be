"""Who may be served what: state, schedule, segment, holdout and the mask of eligible arms.

Pure functions of a definition and a request; every arm that is masked has a reason, which is
logged with the decision.
"""

import datetime as dt
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from bandits import sampling
from service.definition import Arm, CampaignDefinition, Rule, Segment

COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
State = Literal["draft", "scheduled", "running", "paused", "ended"]


def state_at(
    state: State, starts_at: dt.datetime | None, ends_at: dt.datetime | None, now: dt.datetime
) -> State:
    """Return the state that a campaign is in now: the clock moves scheduled and running ones."""
    if state in ("scheduled", "running", "paused") and ends_at is not None and now >= ends_at:
        return "ended"
    if state == "scheduled" and (starts_at is None or now >= starts_at):
        return "running"
    return state


def holds(rule: Rule, attributes: Mapping[str, object]) -> bool:
    """Tell whether a rule holds; an attribute that is absent or of another type never fits."""
    present = rule.attribute in attributes
    if rule.op == "exists":
        return present == rule.value
    if not present:
        return False
    found, wanted = attributes[rule.attribute], rule.value
    if rule.op == "in":
        return isinstance(wanted, tuple) and any(_same(found, one) for one in wanted)
    if rule.op == "==":
        return _same(found, wanted)
    if rule.op == "!=":
        return not _same(found, wanted)
    if not _number(found) or not _number(wanted):
        return False
    return bool(COMPARE[rule.op](found, wanted))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(found: object, wanted: object) -> bool:
    return isinstance(found, bool) == isinstance(wanted, bool) and found == wanted


def segment_of(definition: CampaignDefinition, attributes: Mapping[str, object]) -> int:
    """Return the place of the first segment whose rules all hold; the last one takes the rest."""
    for place, segment in enumerate(definition.segments):
        if all(holds(rule, attributes) for rule in segment.rules):
            return place
    return len(definition.segments)


def holdout(definition: CampaignDefinition, seed: bytes) -> Callable[[bytes], bool]:
    """Return what tells whether a unit belongs to the holdout: a fixed draw of campaign and unit.

    ``seed`` is the campaign's.
    """
    if not definition.holdout > 0:
        return lambda _: False
    hashed, least = sampling.keyed(seed, b"holdout"), sampling.below(definition.holdout)
    return lambda unit: hashed(unit) < least


def masked(
    definition: CampaignDefinition,
    segment: int,
    excluded: Collection[str],
    attributes: Mapping[str, object],
    committed: int = 0,
) -> dict[str, str]:
    """Return the arms that must not be served, by key, each with its reason.

    Reasons go into the log, so they name attributes and never tell their values. ``committed`` is
    what is spent or promised of the budget already, in minor units.
    """
    reasons: dict[str, str] = {}
    rules: Segment | None = (
        definition.segments[segment] if segment < len(definition.segments) else None
    )
    for arm in definition.arms:
        if not arm.enabled:
            reasons[arm.key] = "disabled"
        elif rules is not None and arm.key in rules.arms and rules.arms[arm.key].exclude:
            reasons[arm.key] = "excluded for the segment"
        elif arm.key in excluded:
            reasons[arm.key] = "excluded by the request"
        elif arm.only_if and (broken := _broken(arm, attributes)):
            reasons[arm.key] = broken
    if definition.budget_minor is not None:
        left = definition.budget_minor - committed
        for place, arm in enumerate(definition.arms):
            if (definition.offer(segment, place).worst_minor() or 0) > left:
                reasons.setdefault(arm.key, "the budget no longer covers it")
    return reasons


def _broken(arm: Arm, attributes: Mapping[str, object]) -> str | None:
    """Return the first of an arm's own rules that does not hold, in words, if there is one."""
    for rule in arm.only_if:
        if not holds(rule, attributes):
            unknown = "" if rule.attribute in attributes else ", which was not known"
            return f"only if {rule.words}{unknown}"
    return None


def mask_bits(definition: CampaignDefinition, reasons: Collection[str]) -> int:
    """Return the mask as an integer: bit ``a`` is set when arm ``a`` is eligible."""
    return sum(1 << place for place, arm in enumerate(definition.arms) if arm.key not in reasons)
