"""A campaign's definition: the one document that API, console, database and replay share.

Everything here is a plain value, validated on the way in; a message always names the field and
what would be right instead. `Offer` is the typed discount with its cost model.
"""

import datetime as dt
import re
import unicodedata
import zoneinfo
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from bandits import policies
from bandits.policies import time_options
from bandits.types import Policy
from service import holidays
from service.names import KEY_PATTERN

MAX_MINOR = 1_000_000_000
LISTED = 30
"""How many products are kept for each customer to offer (`service.traits.lists`)."""
EVERYONE = "everyone"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d", re.ASCII)


def has_control(value: str) -> bool:
    """Tell whether a text has control characters."""
    return _CONTROL.search(value) is not None


def _printable(value: str) -> str:
    if has_control(value):
        raise ValueError("must not contain control characters")
    return value


def _currency(value: str) -> str:
    if not (len(value) == 3 and value.isascii() and value.isalpha() and value.isupper()):
        raise ValueError("must be a three-letter ISO 4217 code such as EUR")
    return value


def _zone(value: str) -> str:
    try:
        zoneinfo.ZoneInfo(value)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise ValueError("must be an IANA time zone such as Europe/Madrid") from None
    return value


def _moment(value: Any) -> Any:
    """Accept RFC 3339 text and datetimes only: numbers would be read as epoch seconds."""
    if isinstance(value, dt.datetime):
        return value
    if isinstance(value, str) and _RFC_3339.match(value):
        try:
            return dt.datetime.fromisoformat(value.upper())
        except ValueError:
            pass
    raise ValueError("must be an RFC 3339 time such as 2026-12-01T09:00:00Z")


def _aware(value: dt.datetime) -> dt.datetime:
    if value.tzinfo is None:
        raise ValueError("must name its UTC offset, for example 2026-12-01T09:00:00Z")
    if not 1970 <= value.year <= 9000:
        raise ValueError("must lie between the years 1970 and 9000")
    return value.astimezone(dt.UTC)


Key = Annotated[str, Field(pattern=KEY_PATTERN, max_length=64)]
Label = Annotated[str, Field(min_length=1, max_length=120), AfterValidator(_printable)]
Prose = Annotated[str, Field(max_length=4000), AfterValidator(_printable)]
Short = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Minor = Annotated[int, Field(ge=0, le=MAX_MINOR)]
PositiveMinor = Annotated[int, Field(gt=0, le=MAX_MINOR)]
Percent = Annotated[float, Field(gt=0, le=100)]
Currency = Annotated[str, AfterValidator(_currency)]
Zone = Annotated[str, Field(max_length=64), AfterValidator(_zone)]
Country = Annotated[str, AfterValidator(holidays.checked)]
Moment = Annotated[dt.datetime, BeforeValidator(_moment), AfterValidator(_aware)]
Scalar = (
    Annotated[bool, Field(strict=True)]
    | Annotated[int, Field(strict=True, ge=-(2**53), le=2**53)]
    | Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-(2**53), le=2**53)]
    | Annotated[str, Field(strict=True, max_length=500), AfterValidator(_printable)]
)
Real = Annotated[float, Field(ge=-(2**53), le=2**53)]
MAX_ATTRIBUTES = 64
Attributes = Annotated[dict[Short, Scalar], Field(max_length=MAX_ATTRIBUTES)]


class Document(BaseModel):
    """The base of every request, reply and stored document: strict, closed, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def money(minor: int, currency: str) -> str:
    """Return an amount in words.

    >>> money(1250, "EUR")
    '12.50 EUR'
    """
    return f"{minor / 100:,.2f} {currency}"


def _percent(value: float) -> str:
    return f"{value:g} %"


class NoOffer(Document):
    """No discount: the zero arm, which tells what would have been bought anyway."""

    kind: Literal["none"] = "none"

    def discount_minor(self, basket_minor: int) -> int:
        """Return what the offer costs on a basket of this list value, in minor units."""
        return 0

    def worst_minor(self) -> int | None:
        """Return the most that the offer can cost, in minor units; None where nothing limits it."""
        return 0

    def label(self, currency: str) -> str:
        """Return the offer in a few words."""
        return "No discount"


class PercentageOffer(Document):
    """A percentage off the basket, with an optional ceiling."""

    kind: Literal["percentage"] = "percentage"
    percent: Percent
    max_discount_minor: PositiveMinor | None = None

    def discount_minor(self, basket_minor: int) -> int:
        """Return what the offer costs on a basket of this list value, in minor units."""
        discount = round(basket_minor * self.percent / 100)
        return (
            discount if self.max_discount_minor is None else min(discount, self.max_discount_minor)
        )

    def worst_minor(self) -> int | None:
        """Return the most that the offer can cost, in minor units; None where nothing limits it."""
        return self.max_discount_minor

    def label(self, currency: str) -> str:
        """Return the offer in a few words."""
        if self.max_discount_minor is None:
            return f"{_percent(self.percent)} off"
        return f"{_percent(self.percent)} off, at most {money(self.max_discount_minor, currency)}"


class AmountOffer(Document):
    """A fixed amount off the basket, never more than the basket."""

    kind: Literal["amount"] = "amount"
    amount_minor: PositiveMinor

    def discount_minor(self, basket_minor: int) -> int:
        """Return what the offer costs on a basket of this list value, in minor units."""
        return min(self.amount_minor, basket_minor)

    def worst_minor(self) -> int | None:
        """Return the most that the offer can cost, in minor units; None where nothing limits it."""
        return self.amount_minor

    def label(self, currency: str) -> str:
        """Return the offer in a few words."""
        return f"{money(self.amount_minor, currency)} off"


class SpendThresholdOffer(Document):
    """Spend X, get Y off."""

    kind: Literal["spend_threshold"] = "spend_threshold"
    threshold_minor: PositiveMinor
    amount_minor: PositiveMinor

    @model_validator(mode="after")
    def _below_threshold(self) -> Self:
        if self.amount_minor > self.threshold_minor:
            raise ValueError("amount_minor must not exceed threshold_minor")
        return self

    def discount_minor(self, basket_minor: int) -> int:
        """Return what the offer costs on a basket of this list value, in minor units."""
        return self.amount_minor if basket_minor >= self.threshold_minor else 0

    def worst_minor(self) -> int | None:
        """Return the most that the offer can cost, in minor units; None where nothing limits it."""
        return self.amount_minor

    def label(self, currency: str) -> str:
        """Return the offer in a few words."""
        spend, off = money(self.threshold_minor, currency), money(self.amount_minor, currency)
        return f"Spend {spend}, get {off} off"


class Tier(Document):
    """One step of a tiered offer."""

    threshold_minor: Minor
    percent: Percent


class TieredOffer(Document):
    """The more is spent, the deeper the percentage: the highest tier reached applies."""

    kind: Literal["tiered"] = "tiered"
    tiers: Annotated[tuple[Tier, ...], Field(min_length=1, max_length=10)]

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        steps = [tier.threshold_minor for tier in self.tiers]
        if steps != sorted(set(steps)):
            raise ValueError("tiers must have strictly ascending threshold_minor")
        return self

    def discount_minor(self, basket_minor: int) -> int:
        """Return what the offer costs on a basket of this list value, in minor units."""
        reached = [tier for tier in self.tiers if basket_minor >= tier.threshold_minor]
        return round(basket_minor * reached[-1].percent / 100) if reached else 0

    def worst_minor(self) -> int | None:
        """Return the most that the offer can cost, in minor units; None where nothing limits it."""
        return None

    def label(self, currency: str) -> str:
        """Return the offer in a few words."""
        steps = (
            f"{_percent(tier.percent)} from {money(tier.threshold_minor, currency)}"
            for tier in self.tiers
        )
        return "; ".join(steps)


class ProductTier(Document):
    """One step of a discount on recommended products."""

    items: Annotated[int, Field(ge=1, le=LISTED)] = Field(description="How many products.")
    percent: Percent


class RecommendedOffer(Document):
    """A percentage off the products that a customer may want most, tier by tier.

    Which these are is looked up with each decision (`service.recommended`). Purchases report what
    was taken off; where they do not, and beforehand, the products are taken to make up
    ``basket_share`` of every basket, in equal parts.
    """

    kind: Literal["recommended"] = "recommended"
    tiers: Annotated[tuple[ProductTier, ...], Field(min_length=1, max_length=10)] = Field(
        description="The first tier takes the first products, the next one those that follow."
    )
    basket_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.3, description="What share of a typical basket these products make up."
    )
    max_discount_minor: PositiveMinor | None = None

    @field_validator("tiers")
    @classmethod
    def _listed(cls, tiers: tuple[ProductTier, ...]) -> tuple[ProductTier, ...]:
        items = sum(tier.items for tier in tiers)
        if items > LISTED:
            raise ValueError(
                f"take {items} products together, and {LISTED} are kept of each customer:"
                " lower items"
            )
        return tiers

    def discount_minor(self, basket_minor: int) -> int:
        """Return what the offer costs on a basket of this list value, in minor units."""
        items = sum(tier.items for tier in self.tiers)
        percent = sum(tier.items * tier.percent for tier in self.tiers) / items
        discount = round(basket_minor * self.basket_share * percent / 100)
        return (
            discount if self.max_discount_minor is None else min(discount, self.max_discount_minor)
        )

    def worst_minor(self) -> int | None:
        """Return the most that the offer can cost, in minor units; None where nothing limits it."""
        return self.max_discount_minor

    def label(self, currency: str) -> str:
        """Return the offer in a few words."""
        first, *rest = self.tiers
        said = [f"{_percent(first.percent)} off the first {_products(first.items)}"]
        said += [f"{_percent(tier.percent)} off the next {tier.items}" for tier in rest]
        if self.max_discount_minor is not None:
            said.append(f"at most {money(self.max_discount_minor, currency)}")
        return ", ".join(said)


def _products(count: int) -> str:
    return "recommended product" if count == 1 else f"{count} recommended products"


class GiftOffer(Document):
    """A gift with the purchase, at its cost to the shop."""

    kind: Literal["gift"] = "gift"
    gift: Label
    cost_minor: Minor

    def discount_minor(self, basket_minor: int) -> int:
        """Return what the offer costs on a basket of this list value, in minor units."""
        return self.cost_minor

    def worst_minor(self) -> int | None:
        """Return the most that the offer can cost, in minor units; None where nothing limits it."""
        return self.cost_minor

    def label(self, currency: str) -> str:
        """Return the offer in a few words."""
        return f"Gift: {self.gift}"


class FreeShippingOffer(Document):
    """Free shipping, at what the shop pays for it."""

    kind: Literal["free_shipping"] = "free_shipping"
    cost_minor: Minor
    threshold_minor: Minor = 0

    def discount_minor(self, basket_minor: int) -> int:
        """Return what the offer costs on a basket of this list value, in minor units."""
        return self.cost_minor if basket_minor >= self.threshold_minor else 0

    def worst_minor(self) -> int | None:
        """Return the most that the offer can cost, in minor units; None where nothing limits it."""
        return self.cost_minor

    def label(self, currency: str) -> str:
        """Return the offer in a few words."""
        if self.threshold_minor == 0:
            return "Free shipping"
        return f"Free shipping from {money(self.threshold_minor, currency)}"


Offer = Annotated[
    NoOffer
    | PercentageOffer
    | AmountOffer
    | SpendThresholdOffer
    | TieredOffer
    | RecommendedOffer
    | GiftOffer
    | FreeShippingOffer,
    Field(discriminator="kind"),
]


OPERATORS = {
    "==": "is",
    "!=": "is not",
    "<": "is less than",
    "<=": "is at most",
    ">": "is more than",
    ">=": "is at least",
    "in": "is one of",
    "exists": "is known",
}


class Rule(Document):
    """One condition on a unit's attributes, such as ``recency_days <= 14``."""

    attribute: Short
    op: Literal["==", "!=", "<", "<=", ">", ">=", "in", "exists"]
    value: Scalar | Annotated[tuple[Scalar, ...], Field(max_length=100)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.op == "in" and not isinstance(self.value, tuple):
            raise ValueError('value must be a list when op is "in"')
        if self.op == "exists" and not isinstance(self.value, bool):
            raise ValueError('value must be true or false when op is "exists"')
        if self.op in ("<", "<=", ">", ">="):
            if isinstance(self.value, bool) or not isinstance(self.value, int | float):
                raise ValueError(f"value must be a number when op is {self.op}")
        elif self.op in ("==", "!=") and (self.value is None or isinstance(self.value, tuple)):
            raise ValueError(f"value must be one text, number or true/false when op is {self.op}")
        return self

    @cached_property
    def words(self) -> str:
        """The rule in words, such as ``recency_days is at most 14``."""
        if self.op == "exists":
            return f"{self.attribute} is {'known' if self.value else 'not known'}"
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        written = ", ".join(
            ("yes" if value else "no") if isinstance(value, bool) else str(value)
            for value in values
        )
        return f"{self.attribute} {OPERATORS[self.op]} {written}"


class Arm(Document):
    """One choice of a campaign."""

    key: Key
    name: Label
    offer: Offer
    enabled: bool = True
    cap: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="The largest probability this arm may be served with."
    )
    only_if: Annotated[tuple[Rule, ...], Field(max_length=20)] = Field(
        (),
        description="It may be served only where all of these hold, for example where"
        " `product_stock_cover_days` is above 60; where an attribute is unknown, they do not.",
    )


class ArmOverride(Document):
    """What a segment changes about an arm."""

    exclude: bool = False
    offer: Offer | None = None


class Segment(Document):
    """A group of units by rule: all rules must hold; the first segment that fits is taken."""

    key: Key
    name: Label
    rules: Annotated[tuple[Rule, ...], Field(min_length=1, max_length=20)]
    arms: dict[Key, ArmOverride] = {}


def _trimmed(value: str) -> str:
    if value != value.strip():
        raise ValueError("must not begin or end with a blank")
    return value


FeatureKey = Annotated[
    Short,
    AfterValidator(_trimmed),
    Field(description="The attribute that is read, spelt as requests and the store have it."),
]
FeatureName = Annotated[Label, AfterValidator(_trimmed)]


class NumberFeature(Document):
    """A number as a feature: ``(value - centre) / scale``; the default where none is known.

    Values further from the centre than 16 times the scale count as if they were just there.
    """

    kind: Literal["number"] = "number"
    key: FeatureKey
    name: FeatureName
    centre: Real = 0.0
    scale: Real = 1.0
    default: Real = Field(
        default_factory=lambda chosen: chosen.get("centre", 0.0),
        description="Used where the attribute is missing or not a number; the centre if left out.",
    )

    @field_validator("scale")
    @classmethod
    def _divides(cls, scale: float) -> float:
        if not scale > 0:
            raise ValueError("must be greater than 0, for example how much the values differ")
        return scale

    @property
    def width(self) -> int:
        """How many places of the context it takes."""
        return 1


class CategoryFeature(Document):
    """One of a few texts as a feature: a place per value, all zero for any other."""

    kind: Literal["category"] = "category"
    key: FeatureKey
    name: FeatureName
    values: Annotated[tuple[Short, ...], Field(min_length=1, max_length=64)]

    @field_validator("values")
    @classmethod
    def _differ(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(values)) < len(values):
            twice = next(value for value in values if values.count(value) > 1)
            raise ValueError(f'must differ from each other: remove one of the two "{twice}"')
        return values

    @property
    def width(self) -> int:
        """How many places of the context it takes."""
        return len(self.values)


class BooleanFeature(Document):
    """True or false as a feature: one or zero; the default where neither is known."""

    kind: Literal["boolean"] = "boolean"
    key: FeatureKey
    name: FeatureName
    default: bool = False

    @property
    def width(self) -> int:
        """How many places of the context it takes."""
        return 1


def as_seen(word: str) -> str:
    """Return what a word looks like: the same for all ways in which Unicode can write it."""
    return unicodedata.normalize("NFKC", word)


Feature = Annotated[NumberFeature | CategoryFeature | BooleanFeature, Field(discriminator="kind")]


class PolicyChoice(Document):
    """Which policy chooses, with its options.

    ``auto`` begins with the usual policy and lets the log choose another (`service.auto`).
    """

    name: Key
    options: dict[Key, float | int | str | bool | list[float]] = Field(
        default_factory=dict,
        description="The policy's own options, and those of forgetting, which count in pieces of"
        " time of bucket_seconds, a day unless told: half_life, window, buckets.",
    )


DAY = 86_400
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MAX_WIDTH = 256
BUCKET = "bucket_seconds"
SHORTEST_BUCKET = 60
POLICY_FOR = {
    "profit": "thompson_hierarchical",
    "revenue": "thompson_gaussian",
    "conversion": "thompson_hierarchical",
}
AUTO = "auto"
RIVALS = {
    "profit": ("thompson_profit",),
    "revenue": ("thompson_hierarchical",),
    "conversion": ("thompson_beta",),
}
"""What ``auto`` may choose instead, the weaker assumption beside the stronger one."""
RIVALS_BY_FEATURES = ("linear_thompson",)
LEVEL = 0.05
"""The chance that ``auto`` ever replaces a policy wrongly."""


class CampaignDefinition(Document):
    """Everything a marketer decides about a campaign."""

    key: Key
    name: Label
    description: Prose = ""
    currency: Currency = "USD"
    zone: Zone = "UTC"
    country: Country | None = Field(
        None,
        description="Whose public holidays `holiday` and `days_to_holiday` tell: an ISO 3166 code"
        " such as US, or US-CA for a part of a country.",
    )
    starts_at: Moment | None = None
    ends_at: Moment | None = None
    arms: Annotated[tuple[Arm, ...], Field(min_length=2, max_length=50)]
    default_arm: Key
    segments: Annotated[tuple[Segment, ...], Field(max_length=200)] = ()
    features: Annotated[tuple[Feature, ...], Field(max_length=64)] = Field(
        (), description="What a contextual policy may know of a customer, besides the segment."
    )
    objective: Literal["conversion", "revenue", "profit"] = "profit"
    policy: PolicyChoice = Field(
        default_factory=lambda chosen: PolicyChoice(name=POLICY_FOR[chosen["objective"]]),
        description="Thompson sampling that fits the objective, unless another policy is named."
        " `auto` begins with it and moves to another one when the log shows that it earns more.",
    )
    floor: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.01, description="The least probability every eligible arm keeps."
    )
    holdout: Annotated[float, Field(ge=0, le=0.9)] = Field(
        0.05, description="The share of units that always get the default arm, for comparison."
    )
    attribution_seconds: Annotated[int, Field(ge=1, le=400 * DAY)] = 7 * DAY
    offer_seconds: Annotated[int, Field(ge=1, le=400 * DAY)] = DAY
    sticky_seconds: Annotated[int, Field(ge=0, le=400 * DAY)] = Field(
        0, description="How long a unit keeps its arm; 0 draws afresh for every decision."
    )
    margin_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        0.4, description="Margin as a share of revenue before discount, where none is reported."
    )
    basket_minor: PositiveMinor = Field(
        3000, description="A typical basket, used until purchases tell the real one."
    )
    contact_cost_minor: Minor = 0
    budget_minor: PositiveMinor | None = Field(
        None, description="The most that may be given away in discounts."
    )

    @field_validator("segments")
    @classmethod
    def _segment_keys(cls, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
        keys = [segment.key for segment in segments]
        if len(set(keys)) < len(keys):
            raise ValueError("segment keys must differ")
        if EVERYONE in keys:
            raise ValueError(f'"{EVERYONE}" names the segment of all others; choose another key')
        return segments

    @field_validator("features")
    @classmethod
    def _feature_keys(cls, features: tuple[Feature, ...]) -> tuple[Feature, ...]:
        for part in ("key", "name"):
            words = [as_seen(getattr(feature, part)) for feature in features]
            twice = next((word for word in words if words.count(word) > 1), None)
            if twice is not None:
                raise ValueError(f'{part}s must differ: remove or rename one of the two "{twice}"')
        width = sum(feature.width for feature in features)
        if width > MAX_WIDTH:
            raise ValueError(
                f"take {width} places, at most {MAX_WIDTH} are possible: list fewer values"
            )
        return features

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        keys = [arm.key for arm in self.arms]
        if len(set(keys)) < len(keys):
            raise ValueError("arms: keys must differ")
        if self.default_arm not in keys:
            raise ValueError(f"default_arm: must be one of the arms: {', '.join(keys)}")
        if self.arms[self.default_index].only_if:
            raise ValueError("default_arm: must be there for everyone: leave out its only_if")
        for segment in self.segments:
            for key in segment.arms:
                if key not in keys:
                    raise ValueError(f"segments: {segment.key} overrides an unknown arm {key}")
        if self.floor * len(keys) > 1:
            raise ValueError(f"floor: {len(keys)} arms leave at most {1 / len(keys):.4f} each")
        if any(arm.cap is not None and arm.cap < self.floor for arm in self.arms):
            raise ValueError("arms: a cap must not lie below the floor")
        if sum(1.0 if arm.cap is None else arm.cap for arm in self.arms if arm.enabled) < 1:
            raise ValueError("arms: the caps leave some customers without an arm; raise one")
        self._limit_offers()
        if self.starts_at and self.ends_at and self.ends_at <= self.starts_at:
            raise ValueError("ends_at: must come after starts_at")
        self._check_policy()
        return self

    def _check_policy(self) -> None:
        if self.policy.name == AUTO and self.policy.options:
            raise ValueError(
                f"policy: auto has no options: leave out {min(self.policy.options)},"
                " or name the policy that it belongs to"
            )
        if self.policy.name == AUTO and self.floor == 0:
            raise ValueError(
                "floor: must be above 0 with the policy auto, which compares policies by the"
                " customers that every arm still gets; 0.01 is usual"
            )
        try:
            self._check_forgetting()
            for name in self.choices:
                (self.served_by(name) if self.policy.name == AUTO else self).build_policy()
        except ValueError as error:
            raise ValueError(f"policy: {error}") from None

    def _check_forgetting(self) -> None:
        options = self.policy.options
        if "kept" in options:
            raise ValueError(
                "kept: weighs what was learnt before a reset, and campaigns are not reset;"
                " leave it out"
            )
        if BUCKET not in options:
            return
        if not self.forgets:
            raise ValueError(f"{BUCKET}: goes with half_life, window or buckets; name one of them")
        seconds: Any = options[BUCKET]
        number = type(seconds) in (int, float)  # true is neither
        if not number or seconds % 1 or not SHORTEST_BUCKET <= seconds <= 400 * DAY:
            raise ValueError(
                f"{BUCKET}: must be a whole number from {SHORTEST_BUCKET} to {400 * DAY}"
            )

    def _limit_offers(self) -> None:
        """Make sure that a budget can be kept: every offer has a ceiling, the default is free."""
        if self.budget_minor is None:
            return
        for segment in range(len(self.segment_keys)):
            if self.offer(segment, self.default_index).worst_minor() != 0:
                raise ValueError("default_arm: must cost nothing, because a budget is set")
            for place, arm in enumerate(self.arms):
                if self.offer(segment, place).worst_minor() is None:
                    raise ValueError(
                        f"arms: {arm.key} needs max_discount_minor, because a budget is set"
                        " (tiered offers have none: use spend_threshold)"
                    )

    @cached_property
    def arm_index(self) -> dict[str, int]:
        """The place of every arm, by key."""
        return {arm.key: index for index, arm in enumerate(self.arms)}

    @cached_property
    def segment_keys(self) -> tuple[str, ...]:
        """The keys of all segments in order; ``everyone`` is always the last."""
        return (*(segment.key for segment in self.segments), EVERYONE)

    @cached_property
    def reads(self) -> frozenset[str]:
        """The attributes that features and the rules of segments and arms read."""
        rules = [rule for segment in self.segments for rule in segment.rules]
        rules += [rule for arm in self.arms for rule in arm.only_if]
        return frozenset(
            (*(rule.attribute for rule in rules), *(feature.key for feature in self.features))
        )

    @cached_property
    def feature_width(self) -> int:
        """D, how many places the features take together."""
        return sum(feature.width for feature in self.features)

    @property
    def recommends(self) -> bool:
        """Whether an offer, in whatever segment, is on recommended products."""
        return any(
            isinstance(self.offer(segment, arm), RecommendedOffer)
            for segment in range(len(self.segment_keys))
            for arm in range(len(self.arms))
        )

    @property
    def choices(self) -> tuple[str, ...]:
        """The policies that may serve: the one named, or those of ``auto``, its first one first."""
        if self.policy.name != AUTO:
            return (self.policy.name,)
        more = RIVALS_BY_FEATURES if self.features else ()
        return (POLICY_FOR[self.objective], *RIVALS[self.objective], *more)

    def served_by(self, policy: str) -> Self:
        """Return this definition with a policy named, as its defaults are."""
        return self.model_copy(update={"policy": PolicyChoice(name=policy)})

    @property
    def contextual(self) -> bool:
        """Whether the policy (that of ``auto``: the first) looks at the features."""
        return policies.describe(self.choices[0]).contextual

    @property
    def forgets(self) -> bool:
        """Whether the policy weighs what it has learnt by the time bucket it was decided in."""
        return not time_options.NAMES.isdisjoint(self.policy.options)

    @property
    def bucket_seconds(self) -> int:
        """How long a time bucket is."""
        seconds: Any = self.policy.options.get(BUCKET, DAY)
        return int(seconds)

    def bucket(self, moment: dt.datetime) -> int:
        """Return the number of the time bucket that a moment lies in, counted from 1970 UTC."""
        return (moment - EPOCH) // dt.timedelta(seconds=self.bucket_seconds)

    @property
    def own_options(self) -> dict[str, Any]:
        """The policy's options without those of forgetting."""
        timed = time_options.NAMES | {BUCKET}
        return {name: value for name, value in self.policy.options.items() if name not in timed}

    @cached_property
    def retrains(self) -> bool:
        """Whether a policy that may serve does not learn by counting alone."""
        auto = self.policy.name == AUTO
        plans = [self.served_by(name) for name in self.choices] if auto else [self]
        return any(plan.build_policy().retrain is not None for plan in plans)

    @property
    def default_index(self) -> int:
        """The place of the default arm."""
        return self.arm_index[self.default_arm]

    def offer(self, segment: int, arm: int) -> Offer:
        """Return the offer of an arm in a segment, by their places."""
        chosen = self.arms[arm]
        if segment < len(self.segments):
            override = self.segments[segment].arms.get(chosen.key)
            if override is not None and override.offer is not None:
                return override.offer
        return chosen.offer

    def profit_of_sale(self, segment: int, arm: int, basket_minor: int) -> int:
        """Return margin less discount of one sale at this list value, in minor units."""
        return round(basket_minor * self.margin_rate) - self.offer(segment, arm).discount_minor(
            basket_minor
        )

    def build_policy(self, backend: Literal["numpy", "jax"] = "numpy") -> Policy:
        """Return the policy that this definition names, for its arms and segments.

        For ``auto`` it is the one that it begins with; `service.snapshots.served` tells which one
        a snapshot is of.
        """
        name = self.choices[0]
        wanted = {
            "thompson_profit": "profit",
            "thompson_beta": "conversion",
            "logistic_thompson": "conversion",
        }
        objective = wanted.get(name, self.objective)
        if objective != self.objective:
            raise ValueError(f"{name} needs the objective {objective}")
        if not self.features and name in policies.NAMES and self.contextual:
            raise ValueError(
                f"{name} decides by features: declare some in features,"
                f" or choose {POLICY_FOR[self.objective]}"
            )
        chosen = {key: value for key, value in self.policy.options.items() if key != BUCKET}
        return policies.make(
            name,
            arms=len(self.arms),
            segments=len(self.segment_keys),
            features=self.feature_width,
            backend=backend,
            **(self.prior_options(name) | chosen),
        )

    def depths(self) -> list[list[float]]:
        """Return (S, A) what offers cost on a typical basket, as a share of it."""
        basket = self.basket_minor
        return [
            [self.offer(s, a).discount_minor(basket) / basket for a in range(len(self.arms))]
            for s in range(len(self.segment_keys))
        ]

    def sale_values(self, basket_minor: int) -> list[list[float]]:
        """Return (S, A) what a sale at this list value earns, by the objective, in minor units."""
        arms, segments = range(len(self.arms)), range(len(self.segment_keys))
        if self.objective != "profit":
            return [[float(basket_minor) for _ in arms] for _ in segments]
        return [[float(self.profit_of_sale(s, a, basket_minor)) for a in arms] for s in segments]

    def gains(self) -> list[list[float]]:
        """Return (S, A) what a sale earns more when the basket grows by its own size.

        Half as much again less half as much: the slope over baskets as they come.
        """
        small, large = (self.sale_values(round(self.basket_minor * part)) for part in (0.5, 1.5))
        return [
            [more - less for less, more in zip(*rows, strict=True)]
            for rows in zip(small, large, strict=True)
        ]

    def prior_options(self, policy: str) -> dict[str, Any]:
        """Return what the definition itself says about a policy's prior.

        The profit of a sale at a typical basket, and the depths of the offers (the arms' own, where
        a policy has one per arm, as those have whose arms may share what they learn); or the spread
        of rewards if one visitor in ten bought such a basket: basket times the root of 0.1 x 0.9.
        """
        basket = self.basket_minor
        if policy == "thompson_profit":
            return {"value": self.sale_values(basket)}
        if policy == "thompson_hierarchical":
            # A gift may cost more than a basket: giving all of it away is as deep as depth goes.
            depth = [[min(one, 1.0) for one in row] for row in self.depths()]
            terms: dict[str, Any] = {"depth": depth}
            if self.objective != "conversion":
                terms |= {"value": self.sale_values(basket), "gain": self.gains()}
            return terms
        if policy == "thompson_gaussian":
            earned = basket * (self.margin_rate if self.objective == "profit" else 1.0)
            return {"sd": max(1.0, 0.3 * earned)}
        kinds = {option.name: option.kind for option in policies.describe(policy).options}
        if kinds.get("depth") == "per_arm":
            return {"depth": [arm.offer.discount_minor(basket) / basket for arm in self.arms]}
        return {}
