"""The campaign form: the flat fields that a browser posts, and the definition they stand for.

People write 12.50 and 5 % and 09:00 in Madrid; the definition holds minor units, shares of one and
UTC. Everything that can go wrong in between gets one message under the name of its field.
"""

import datetime as dt
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic

from bandits import policies
from bandits.policies import time_options
from service.definition import (
    BUCKET,
    DAY,
    LISTED,
    CampaignDefinition,
    Offer,
    RecommendedOffer,
    Rule,
    TieredOffer,
)
from service.errors import FieldError, Invalid
from service.names import KEY_PATTERN
from service.validation import field_errors
from service.views import console_features as features
from service.views.console_reader import UNITS, Reader, Values, plain, zone_of

USUAL = "usual"
"""What the form posts when no policy is named: the definition then takes its default."""
TIERS = 10
MOST_RULES = 20
TIERS_SHOWN = 4
STEPS = {"tiered": ("tier", "threshold"), "recommended": ("pick", "items")}
"""Kinds of offers in steps: how a step's fields begin, and the one besides the percentage."""
BASKET_SHARE = 30
"""Per cent of a basket that recommended products make up, where nothing is filled in."""
KINDS = {
    "none": "No discount",
    "percentage": "Percentage off",
    "amount": "Fixed amount off",
    "spend_threshold": "Spend X, get Y off",
    "tiered": "The more they spend, the more off",
    "recommended": "Off recommended products",
    "gift": "Free gift",
    "free_shipping": "Free shipping",
}
_MODEL_WORDS = (
    (re.compile(r"at least 1 character"), "Fill this in."),
    (re.compile(r"^is required$"), "Fill this in."),
    (
        re.compile(r"match pattern|at most 64 character"),
        "Use small letters, digits, dots and dashes, at most 64, starting with a letter or digit.",
    ),
    (re.compile(r"must have at most (\d+) character"), r"Use at most \1 characters."),
    (re.compile(r"at least 1 item"), "Fill this in."),
    (re.compile(r"at most 64 items"), "List at most 64."),
    (
        re.compile(r"take (\d+) products together, and (\d+)"),
        r"Together the steps take \1 products; \2 are listed for each customer: lower a number.",
    ),
    (
        re.compile(r"take (\d+) places, at most (\d+)"),
        r"Together they take \1 places, one for each number, yes or no, and listed word; at most"
        r" \2 are possible: list fewer words.",
    ),
    (
        re.compile(r"decides by features"),
        "This way looks at features: declare at least one under “Features” above, or choose another"
        " way.",
    ),
    (
        re.compile(r"must be there for everyone"),
        "The usual offer must be there for everyone: remove its conditions, or choose another.",
    ),
    (
        re.compile(r"needs the objective conversion"),
        "This way is for the aim “Purchases”: choose that aim, or another way.",
    ),
    (
        re.compile(r"needs the objective profit"),
        "This way is for the aim “Profit”: choose that aim, or another way.",
    ),
)
_SCALED = ("_minor", "_seconds")


@dataclass(frozen=True)
class Checked:
    """A form that was read: the definition if it is sound, else a message per field."""

    definition: CampaignDefinition | None
    errors: dict[str, str]


def slug(name: str) -> str:
    """Return a key for a name.

    >>> slug("Spring Sale — 10 %!")
    'spring-sale-10'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:64].strip("-")


# ---------------------------------------------------------------- form to definition


def check(values: Mapping[str, str], *, key: str | None = None) -> Checked:
    """Read the whole form; ``key`` is the key of a campaign that exists and keeps it."""
    reader = Reader(values)
    document = _document(reader, key)
    if document["budget_minor"] is not None:
        _need_ceilings(reader, document)
    try:
        definition = CampaignDefinition.model_validate_json(json.dumps(document))
    except pydantic.ValidationError as error:
        for found in field_errors(error, document):
            if not _echo(found.field, found.message, reader):
                place = field_name(found.field, values)
                name, message = _named(place, found.message, values.get("policy", ""))
                reader.errors.setdefault(name, _friendly(message))
        if "name" in reader.errors and not reader.text("key"):
            # The key is made from the name, so it has nothing to say of its own.
            reader.errors.pop("key", None)
        return Checked(None, reader.errors)
    return Checked(None if reader.errors else definition, reader.errors)


def _need_ceilings(reader: Reader, document: dict[str, Any]) -> None:
    """Ask for the ceilings that a budget needs, at the fields where they are missing."""
    offers = {f"arms-{row}-": arm["offer"] for row, arm in enumerate(document["arms"])}
    places = {arm["key"]: row for row, arm in enumerate(document["arms"])}
    for row, segment in enumerate(document["segments"]):
        for key, change in segment["arms"].items():
            if "offer" in change:
                offers[f"segments-{row}-arms-{places[key]}-"] = change["offer"]
    for at, offer in offers.items():
        if "max_discount_minor" in offer and offer["max_discount_minor"] is None:
            said = "With a budget, a percentage needs a ceiling: the most it may take off."
            reader.errors.setdefault(f"{at}max_discount", said)
        elif offer["kind"] == "tiered":
            said = "With a budget, use “Spend X, get Y off” instead: steps have no ceiling."
            reader.errors.setdefault(f"{at}kind", said)


def _echo(field: str, message: str, reader: Reader) -> bool:
    """Tell whether a message only repeats that some part of the same list is wrong."""
    if "default factory" in message:
        return True
    if "because a budget is set" in message and field == "arms":
        return any(name.endswith(("max_discount", "kind")) for name in reader.errors)
    if field == "features" and "s must differ" in message:
        return any(re.fullmatch(r"features-\d+-(key|name)", name) for name in reader.errors)
    short = field in ("arms", "segments") and "at least" in message
    return short and reader.count(f"{field}-count", 200) >= 2


def _named(field: str, message: str, policy: str) -> tuple[str, str]:
    """Move a message about one option of the policy to that option's field."""
    option = re.match(r"([a-z_]+): (.+)$", message, re.DOTALL)
    if field != "policy" or option is None:
        return field, message
    return f"policy-{policy}-{option[1]}", option[2]


def _document(reader: Reader, key: str | None) -> dict[str, Any]:
    arms = [_arm(reader, row) for row in range(reader.count("arms-count", 50))]
    zone = reader.text("zone", "UTC")
    chosen = reader.text("default_arm", "0")
    default = int(chosen) if chosen.isascii() and chosen.isdigit() else 0
    document = {
        "key": key or reader.text("key") or slug(reader.text("name")),
        "name": reader.text("name"),
        "description": reader.text("description"),
        "currency": reader.text("currency").upper(),
        "zone": zone,
        "country": reader.text("country").upper() or None,
        "starts_at": reader.moment("starts_at", zone),
        "ends_at": reader.moment("ends_at", zone),
        "arms": arms,
        "default_arm": arms[default]["key"] if default < len(arms) else "",
        "segments": _segments(reader, [arm["key"] for arm in arms]),
        "features": features.read(reader),
        "objective": reader.text("objective", "profit"),
    }
    return document | _policy(reader) | _guardrails(reader)


def _arm(reader: Reader, row: int) -> dict[str, Any]:
    at = f"arms-{row}-"
    name = reader.text(f"{at}name")
    return {
        "key": reader.text(f"{at}key") or slug(name) or f"arm-{row + 1}",
        "name": name,
        "offer": _offer(reader, at),
        "enabled": reader.text(f"{at}enabled") == "on",
        "cap": reader.share(f"{at}cap", least=0.01),
        "only_if": _rules(reader, f"{at}only_if"),
    }


def _offer(reader: Reader, at: str) -> dict[str, Any]:
    kind = reader.text(f"{at}kind", "none")
    offer: dict[str, Any] = {"kind": kind}
    if kind == "percentage":
        offer["percent"] = _percent(reader, f"{at}percent")
        offer["max_discount_minor"] = reader.money(f"{at}max_discount", least=1)
    elif kind in ("amount", "spend_threshold"):
        offer["amount_minor"] = _amount(reader, f"{at}amount", 1)
        if kind == "spend_threshold":
            offer["threshold_minor"] = _amount(reader, f"{at}threshold", 1)
    elif kind in STEPS:
        part, before = STEPS[kind]
        steps = _steps(reader.values, at, kind)
        offer["tiers"] = [_tier(reader, f"{at}{part}-{step}-", before) for step in steps]
        if kind == "recommended":
            share = reader.share(f"{at}basket_share", least=0.1)
            offer["basket_share"] = BASKET_SHARE / 100 if share is None else share
            offer["max_discount_minor"] = reader.money(f"{at}max_discount", least=1)
    elif kind == "gift":
        offer |= {"gift": reader.text(f"{at}gift"), "cost_minor": _amount(reader, f"{at}cost", 0)}
    elif kind == "free_shipping":
        offer["cost_minor"] = _amount(reader, f"{at}cost", 0)
        offer["threshold_minor"] = reader.money(f"{at}threshold") or 0
    return offer


def _percent(reader: Reader, name: str) -> float | None:
    value: float | None = reader.needed(name, reader.number(name, low=0.01, high=100, unit="%"))
    return value


def _amount(reader: Reader, name: str, least: int) -> int | None:
    value: int | None = reader.needed(name, reader.money(name, least=least))
    return value


def _steps(values: Mapping[str, str], at: str, kind: str) -> list[int]:
    """The tiers that were filled in at all."""
    part, before = STEPS[kind]
    rows = [f"{at}{part}-{step}-" for step in range(TIERS)]
    return [
        step
        for step, row in enumerate(rows)
        if any(values.get(row + one, "").strip() for one in (before, "percent"))
    ]


def tiers_shown(values: Mapping[str, str], at: str, kind: str) -> range:
    """Return the rows of tiers to draw: all that are filled in, and some more."""
    filled = _steps(values, at, kind)
    return range(min(TIERS, max(TIERS_SHOWN, filled[-1] + 2 if filled else 0)))


def _tier(reader: Reader, at: str, before: str) -> dict[str, Any]:
    first: dict[str, Any] = (
        {"items": _whole(reader, f"{at}items")}
        if before == "items"
        else {"threshold_minor": _amount(reader, f"{at}threshold", 0)}
    )
    return first | {"percent": _percent(reader, f"{at}percent")}


def _whole(reader: Reader, name: str) -> int | None:
    """Read how many products a step takes."""
    value = reader.needed(name, reader.number(name, low=1, high=LISTED))
    if value is not None and value % 1:
        reader.errors[name] = "Write a whole number."
    return None if value is None else int(value)


def _segments(reader: Reader, arms: list[str]) -> list[dict[str, Any]]:
    return [
        _segment(reader, f"segments-{row}-", row, arms)
        for row in range(reader.count("segments-count", 200))
    ]


def _segment(reader: Reader, at: str, row: int, arms: list[str]) -> dict[str, Any]:
    name = reader.text(f"{at}name")
    overrides: dict[str, Any] = {}
    for place, arm in enumerate(arms):
        mode = reader.text(f"{at}arms-{place}-mode", "same")
        if mode == "exclude":
            overrides[arm] = {"exclude": True}
        elif mode == "offer":
            overrides[arm] = {"offer": _offer(reader, f"{at}arms-{place}-")}
    return {
        "key": reader.text(f"{at}key") or slug(name) or f"segment-{row + 1}",
        "name": name,
        "rules": _rules(reader, f"{at}rules"),
        "arms": overrides,
    }


def _rules(reader: Reader, part: str) -> list[dict[str, Any]]:
    return [
        _rule(reader, f"{part}-{place}-")
        for place in range(reader.count(f"{part}-count", MOST_RULES))
    ]


def _rule(reader: Reader, at: str) -> dict[str, Any]:
    op, written = reader.text(f"{at}op", "=="), reader.text(f"{at}value")
    attribute = reader.text(f"{at}attribute")
    if not attribute:
        reader.errors[f"{at}attribute"] = "Name the attribute, for example recency_days."
    value: Any = _scalar(written)
    if op == "in":
        value = [_scalar(part.strip()) for part in written.split(",") if part.strip()]
    elif op == "exists":
        value = written.lower() not in ("no", "false")
    elif not written:
        reader.errors[f"{at}value"] = "Fill this in."
    elif op not in ("==", "!=") and (isinstance(value, bool | str)):
        reader.errors[f"{at}value"] = "Write a number to compare with."
    return {"attribute": attribute, "op": op, "value": value}


def _scalar(written: str) -> bool | int | float | str:
    """Read what was meant: 14 is a number, yes is true, "14" in quotes is text."""
    if len(written) > 1 and written[0] == written[-1] == '"':
        return written[1:-1]
    if written.lower() in ("yes", "true"):
        return True
    if written.lower() in ("no", "false"):
        return False
    if re.fullmatch(r"-?\d{1,15}", written):
        return int(written)
    if re.fullmatch(r"-?\d{1,15}\.\d+", written):
        return float(written)
    return written


def _policy(reader: Reader) -> dict[str, Any]:
    name = reader.text("policy", USUAL)
    if name == USUAL:
        return {}
    options = _kept_options(reader.values) if reader.text("policy-kept") == name else {}
    for option in options_of(name):
        value = reader.number(
            f"policy-{name}-{option.name}", low=option.minimum, high=option.maximum
        )
        options.pop(option.name, None)
        if value is not None:
            options[option.name] = value
    return {"policy": {"name": name, "options": options}}


def options_of(policy: str) -> list[policies.Option]:
    """Return the options of a policy that the form can show: those that are one number."""
    if policy not in policies.NAMES:
        return []
    return [
        option
        for option in policies.describe(policy).options
        if option.kind == "number" and option.name not in time_options.NAMES - {"half_life"}
    ]


def bucket_seconds(values: Mapping[str, str]) -> int:
    """Return how long a time bucket is, which forgetting counts in."""
    seconds = _kept_options(values).get(BUCKET, DAY)
    fine = isinstance(seconds, int | float) and 1 <= seconds <= 400 * DAY
    return int(seconds) if fine else DAY


def _kept_options(values: Mapping[str, str]) -> dict[str, Any]:
    """Return the options that a campaign had, those among them that the form does not show too."""
    try:
        options = json.loads(values.get("policy-options") or "{}")
    except ValueError:
        return {}
    return options if isinstance(options, dict) else {}


def _guardrails(reader: Reader) -> dict[str, Any]:
    needed = {
        "floor": reader.share("floor", high=50),
        "holdout": reader.share("holdout", high=90),
        "margin_rate": reader.share("margin_rate"),
        "basket_minor": reader.money("basket", least=1),
        "attribution_seconds": reader.seconds("attribution", least=1),
        "offer_seconds": reader.seconds("offer", least=1),
    }
    for name, value in needed.items():
        reader.needed(_flat(name), value)
    return needed | {
        "sticky_seconds": reader.seconds("sticky", least=0) or 0,
        "contact_cost_minor": reader.money("contact_cost") or 0,
        "budget_minor": reader.money("budget", least=1),
    }


# ---------------------------------------------------------------- messages to fields


def _flat(part: str) -> str:
    for ending in _SCALED:
        part = part.removesuffix(ending)
    return part


def field_name(path: str, values: Mapping[str, str]) -> str:
    """Return the form field that a path of the definition belongs to.

    >>> field_name("arms[1].offer.max_discount_minor", {})
    'arms-1-max_discount'
    """
    path = _overridden(path, values)
    name = path.replace("[", ".").replace("]", "").replace(".", "-")
    name = name.replace("-offer-", "-")
    tier = re.match(r"(.*-)tiers-(\d+)(-.*)$", name)
    if tier:
        kind = values[f"{tier.group(1)}kind"]
        kept = _steps(values, tier.group(1), kind)
        place = int(tier.group(2))
        step = kept[place] if place < len(kept) else place
        name = f"{tier.group(1)}{STEPS[kind][0]}-{step}{tier.group(3)}"
    name = re.sub(r"-(offer|tiers)$", "-kind", name)
    name = re.sub(r"^(features-\d+)$", r"\1-kind", name)
    name = re.sub(r"^(features-\d+-values)-\d+$", r"\1", name)
    name = re.sub(r"-(rules|only_if)$", r"-\1-0", name)
    name = re.sub(r"-(rules|only_if)-(\d+)$", r"-\1-\2-value", name)
    return _flat(name) or "form"


def _overridden(path: str, values: Mapping[str, str]) -> str:
    """Replace an arm's key inside a segment's overrides by its row."""
    found = re.match(r"(segments\[\d+\]\.arms)\.(.+)$", path)
    if not found:
        return path
    reader = Reader(values)
    for row in range(reader.count("arms-count", 50)):
        key = _arm(reader, row)["key"]
        if found.group(2) == key or found.group(2).startswith(f"{key}."):
            return f"{found.group(1)}[{row}]{found.group(2)[len(key) :]}"
    return path


def _friendly(message: str) -> str:
    for pattern, words in _MODEL_WORDS:
        found = pattern.search(message)
        if found:
            return found.expand(words)
    message = message.replace("amount_minor", "the amount off").replace(
        "threshold_minor", "the spend"
    )
    return message[:1].upper() + message[1:] + ("" if message.endswith(".") else ".")


# ---------------------------------------------------------------- definition to form


def blank(*, currency: str = "EUR", zone: str = "Europe/Madrid") -> Values:
    """Return the form of a new campaign, with sensible answers already given."""
    none = {"key": "none", "name": "No discount", "offer": {"kind": "none"}}
    ten = {"key": "ten", "name": "10 % off", "offer": {"kind": "percentage", "percent": 10}}
    document = {
        "key": "new",
        "name": "new",
        "currency": currency,
        "zone": zone,
        "arms": [none, ten],
        "default_arm": "none",
    }
    values = fill(CampaignDefinition.model_validate(document))
    return values | {"key": "", "name": ""}


def fill(definition: CampaignDefinition) -> Values:
    """Return the form fields of a definition."""
    values = {
        "key": definition.key,
        "name": definition.name,
        "description": definition.description,
        "currency": definition.currency,
        "zone": definition.zone,
        "country": definition.country or "",
        "starts_at": local_time(definition.starts_at, definition.zone),
        "ends_at": local_time(definition.ends_at, definition.zone),
        "objective": definition.objective,
        "default_arm": str(definition.default_index),
        "arms-count": str(len(definition.arms)),
        "segments-count": str(len(definition.segments)),
    }
    for row, arm in enumerate(definition.arms):
        at = f"arms-{row}-"
        values |= {f"{at}key": arm.key, f"{at}name": arm.name, f"{at}cap": _per_cent(arm.cap)}
        values[f"{at}enabled"] = "on" if arm.enabled else ""
        values |= _fill_offer(at, arm.offer) | _fill_rules(f"{at}only_if", arm.only_if)
    values |= _fill_segments(definition) | features.fill(definition.features)
    return values | _fill_policy(definition) | _fill_rest(definition)


def _fill_offer(at: str, offer: Offer) -> Values:
    values: Values = {f"{at}kind": offer.kind}
    for name, value in offer.model_dump(exclude={"kind", "tiers", "basket_share"}).items():
        written = major(value) if name.endswith("_minor") else value
        values[at + _flat(name)] = plain(written) if isinstance(written, float) else written or ""
    if isinstance(offer, RecommendedOffer):
        values[f"{at}basket_share"] = _per_cent(offer.basket_share)
        for step, pick in enumerate(offer.tiers):
            spot = f"{at}pick-{step}-"
            values |= {f"{spot}items": str(pick.items), f"{spot}percent": plain(pick.percent)}
    elif isinstance(offer, TieredOffer):
        for step, tier in enumerate(offer.tiers):
            spot = f"{at}tier-{step}-"
            values[f"{spot}threshold"] = major(tier.threshold_minor)
            values[f"{spot}percent"] = plain(tier.percent)
    return values


def _fill_segments(definition: CampaignDefinition) -> Values:
    values: Values = {}
    for row, segment in enumerate(definition.segments):
        at = f"segments-{row}-"
        values |= {f"{at}key": segment.key, f"{at}name": segment.name}
        values |= _fill_rules(f"{at}rules", segment.rules)
        for key, override in segment.arms.items():
            spot = f"{at}arms-{definition.arm_index[key]}-"
            if override.exclude:
                values[f"{spot}mode"] = "exclude"
            elif override.offer is not None:
                values |= {f"{spot}mode": "offer"} | _fill_offer(spot, override.offer)
    return values


def _fill_rules(part: str, rules: Sequence[Rule]) -> Values:
    values = {f"{part}-count": str(len(rules))}
    for place, rule in enumerate(rules):
        at = f"{part}-{place}-"
        values |= {f"{at}attribute": rule.attribute, f"{at}op": rule.op}
        values[f"{at}value"] = _written(rule.value)
    return values


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(_written(part) for part in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) and not (isinstance(_scalar(value), str) and value):
        return f'"{value}"'
    return plain(value) if isinstance(value, float) else str(value)


def _fill_policy(definition: CampaignDefinition) -> Values:
    chosen = definition.policy
    usual = CampaignDefinition.model_fields["policy"].get_default(
        call_default_factory=True, validated_data={"objective": definition.objective}
    )
    values = {
        "policy": USUAL if chosen == usual else chosen.name,
        "policy-kept": chosen.name,
        "policy-options": json.dumps(chosen.options),
    }
    for option in options_of(chosen.name):
        if option.name in chosen.options:
            values[f"policy-{chosen.name}-{option.name}"] = plain(chosen.options[option.name])
    return values


def _fill_rest(definition: CampaignDefinition) -> Values:
    values = {
        "floor": _per_cent(definition.floor),
        "holdout": _per_cent(definition.holdout),
        "margin_rate": _per_cent(definition.margin_rate),
        "basket": major(definition.basket_minor),
        "contact_cost": major(definition.contact_cost_minor),
        "budget": major(definition.budget_minor),
    }
    for name in ("attribution", "offer", "sticky"):
        seconds = getattr(definition, f"{name}_seconds")
        unit = next((u for u in ("days", "hours", "minutes") if seconds % UNITS[u] == 0), "seconds")
        values |= {name: str(seconds // UNITS[unit]), f"{name}-unit": unit}
    return values


def local_time(moment: dt.datetime | None, zone: str) -> str:
    """Return a time as a ``datetime-local`` field of a zone shows it."""
    if moment is None:
        return ""
    return moment.astimezone(zone_of(zone)).replace(tzinfo=None).isoformat(timespec="minutes")


def major(minor: int | None) -> str:
    """Return minor units as a person writes them.

    >>> major(1250), major(3000), major(None)
    ('12.50', '30', '')
    """
    if minor is None:
        return ""
    return f"{minor // 100}" if minor % 100 == 0 else f"{minor / 100:.2f}"


def _per_cent(share: float | None) -> str:
    return "" if share is None else plain(round(share * 100, 10))


# ---------------------------------------------------------------- adding and removing rows


CONDITIONS = {"rule": "segments-{}-rules", "condition": "arms-{}-only_if"}
"""What a button adds and removes, and the part of the form that lists them."""


def change_rows(values: Values, action: str) -> Values:
    """Return the form after a button such as ``add-arm`` or ``remove-segment-2``."""
    verb, _, rest = action.partition("-")
    part, *numbers = rest.split("-")
    rows = [int(number) for number in numbers if number.isascii() and number.isdigit()]
    lists = {"arm": "arms", "segment": "segments", "feature": "features"}
    if part in CONDITIONS and rows:
        return _change(values, CONDITIONS[part].format(rows[0]), verb, rows[1:])
    if part not in lists:
        return values
    changed = _change(values, lists[part], verb, rows)
    if part == "segment" and verb == "add":
        changed[f"segments-{int(changed['segments-count']) - 1}-rules-count"] = "1"
    if part == "arm" and verb == "add":
        changed[f"arms-{int(changed['arms-count']) - 1}-enabled"] = "on"
    if part == "arm" and verb == "remove" and rows:
        _forget_arm(values, changed, rows[0])
    return changed


def _change(values: Values, part: str, verb: str, rows: list[int]) -> Values:
    count = Reader(values).count(f"{part}-count", 200)
    order = list(range(count))
    if verb == "add":
        order.append(count)
    elif verb == "remove" and rows and rows[0] in order:
        order.remove(rows[0])
    elif verb == "raise" and rows and 0 < rows[0] < count:
        order.insert(rows[0] - 1, order.pop(rows[0]))
    return _reordered(values, part, order) | {f"{part}-count": str(len(order))}


def _reordered(values: Values, part: str, order: list[int]) -> Values:
    """Renumber the rows of a part: the new row i is the old row order[i]."""
    kept = {name: value for name, value in values.items() if not name.startswith(f"{part}-")}
    for new, old in enumerate(order):
        start = f"{part}-{old}-"
        for name, value in values.items():
            if name.startswith(start):
                kept[f"{part}-{new}-{name[len(start) :]}"] = value
    return kept


def _forget_arm(before: Values, after: Values, row: int) -> None:
    """Keep segments and the default arm pointing at the right arms when one is removed."""
    arms = Reader(before).count("arms-count", 50)
    order = [place for place in range(arms) if place != row]
    for segment in range(Reader(before).count("segments-count", 200)):
        part = f"segments-{segment}-arms"
        for name in [name for name in after if name.startswith(f"{part}-")]:
            del after[name]
        moved = _reordered(before, part, order)
        after |= {name: value for name, value in moved.items() if name.startswith(f"{part}-")}
    chosen = before.get("default_arm", "0")
    if chosen.isdigit() and int(chosen) >= row:
        after["default_arm"] = str(max(0, int(chosen) - 1))


def check_key(written: str) -> str:
    """Return a key as written; raises `Invalid` unless it can be one."""
    if re.fullmatch(KEY_PATTERN, written.strip()) is None:
        raise Invalid("", errors=[FieldError("key", _MODEL_WORDS[2][1].removesuffix("."))])
    return written.strip()
