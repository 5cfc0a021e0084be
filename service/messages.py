"""What crosses the wire on the decision path: requests and replies of decisions and outcomes."""

import datetime as dt
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from service.definition import (
    MAX_ATTRIBUTES,
    MAX_MINOR,
    Attributes,
    CampaignDefinition,
    Document,
    Key,
    Moment,
    Offer,
    Short,
)

MAX_LIST = 1000

MAX_PRODUCTS = 200
MAX_CAMPAIGN = 2**31 - 1


def _ours(decision: uuid.UUID) -> uuid.UUID:
    """Refuse ids that no Barter has made: they begin with a campaign's number (UUIDv8)."""
    if decision.version != 8 or not 0 < decision.int >> 96 <= MAX_CAMPAIGN:
        raise ValueError("is not the decision_id of a decision")
    return decision


DecisionId = Annotated[
    uuid.UUID, AfterValidator(_ours), Field(description="The `decision_id` of the reply.")
]
EventId = Annotated[
    Short, Field(description="Unique per event: a repeat is acknowledged, not counted.")
]


class DecisionRequest(Document):
    """An app server asks which arm a unit gets."""

    campaign: Key
    unit: Short = Field(
        description="Customer, device or session; stored only as a keyed pseudonym."
    )
    attributes: Attributes = Field(
        default={},
        description="What segment rules and features may read; what is missing or of another"
        " type counts as unknown, never as an error.",
    )
    product: Short | None = Field(
        default=None,
        description="The product that it is about, by its identifier in the catalogue: what is"
        " known of its stock, price and category is then told to rules and features.",
    )
    exclude_arms: Annotated[tuple[Key, ...], Field(max_length=50)] = Field(
        default=(), description="Arms that must not be served now, for example out of stock."
    )
    request_id: Short | None = Field(
        default=None,
        description="Repeating it returns the stored decision (idempotency). Under one that begins"
        " with `once-`, for the retries of one call, a decision may be computed together with"
        " others, in less time; under another it is the same in every bit wherever it is asked.",
    )
    products: Annotated[tuple[Short, ...], Field(max_length=MAX_PRODUCTS)] | None = Field(
        default=None,
        description="Products that may be offered, such as those on the page: an offer on"
        " recommended products then names these alone, the customer's own recommendations first,"
        " then in the order given.",
    )


_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
MAX_NUMBER = 2**53
_NUMBERS = frozenset((int, float))
_Bounds = msgspec.Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)
_Scalar = (
    bool
    | Annotated[int, _Bounds]
    | Annotated[float, _Bounds]
    | Annotated[str, msgspec.Meta(max_length=500)]
)
_Scalars = Annotated[dict[_Text, _Scalar], msgspec.Meta(max_length=MAX_ATTRIBUTES)]


class PlainRequest(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A `DecisionRequest` of the usual kind, which is read in a tenth of the time.

    It holds nothing that could hold it, so the collector of such circles need not look at it.
    """

    campaign: str
    unit: _Text
    attributes: _Scalars = {}
    product: _Text | None = None
    request_id: _Text | None = None

    exclude_arms = ()
    products = None

    @classmethod
    def read(cls, raw: bytes) -> "PlainRequest | None":
        """Return the request in a body that says it plainly, else None.

        No escapes, so no control characters; as many names as there are pairs, so none twice. What
        is read here `DecisionRequest` takes too, and as the same.
        """
        if b"\\" in raw:
            return None
        try:
            found = _read_plain(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return found if raw.count(b'":') == _names(found) else None

    @classmethod
    def of(
        cls, campaign: str, unit: str, attributes: Mapping[str, object],
        product: str | None, request_id: str | None, *, named: bool = False,
    ) -> "PlainRequest | None":  # fmt: skip
        """Return the request that arguments say plainly, else None; see `read`.

        ``named`` says that every attribute has a name that a campaign reads: these are plain.
        """
        if not (
            _plain_text(unit)
            and (request_id is None or _plain_text(request_id))
            and (product is None or _plain_text(product))
        ):
            return None
        if attributes and not (named and _few_numbers(attributes.values())):
            try:
                attributes = msgspec.convert({"of": attributes}, _Attributes).of
            except (msgspec.ValidationError, UnicodeEncodeError):
                return None
            types = set(map(type, attributes.values()))
            # What is not plain ASCII is looked at, and NaN, the number that is not itself.
            if str in types:
                if not all(map(_plain_value, attributes.values())):
                    return None
            elif (total := sum(attributes.values())) != total:  # type: ignore[arg-type]
                return None
        return cls(campaign, unit, attributes, product, request_id)  # type: ignore[arg-type]

    def full(self) -> DecisionRequest:
        """Return the same as the document that it is."""
        return DecisionRequest.model_construct(
            campaign=self.campaign,
            unit=self.unit,
            attributes=self.attributes,
            product=self.product,
            request_id=self.request_id,
        )


def _few_numbers(values: Collection[Any]) -> bool:
    """Tell whether these are numbers that may be told, none of them NaN, and not too many."""
    return (
        len(values) <= MAX_ATTRIBUTES
        and _NUMBERS.issuperset(map(type, values))
        and max(values) <= MAX_NUMBER
        and min(values) >= -MAX_NUMBER
        and (total := sum(values)) == total
    )


class _Attributes(msgspec.Struct):
    """What arguments say, to be converted: of a bare type the whole would be built every time."""

    of: _Scalars


def _plain_text(text: object) -> bool:
    return type(text) is str and 0 < len(text) <= 200 and text.isascii() and text.isprintable()


def _plain_value(value: object) -> bool:
    if type(value) is str:
        return value.isascii() and value.isprintable()
    return value == value


_read_plain = msgspec.json.Decoder(PlainRequest).decode


class PlainList(msgspec.Struct, forbid_unknown_fields=True):
    """A `DecisionList` of plain requests."""

    decisions: Annotated[list[PlainRequest], msgspec.Meta(min_length=1, max_length=MAX_LIST)]

    @classmethod
    def read(cls, raw: bytes) -> "PlainList | None":
        """Return the list in a body that says it plainly, else None; as `PlainRequest.read`."""
        if b"\\" in raw:
            return None
        try:
            found = _read_plain_list(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        names = 1 + sum(map(_names, found.decisions))
        return found if raw.count(b'":') == names else None


_read_plain_list = msgspec.json.Decoder(PlainList).decode


def _names(found: PlainRequest) -> int:
    """Return how many names a plain request of JSON has."""
    names = 2 + (found.product is not None) + (found.request_id is not None)
    return names + 1 + len(found.attributes) if found.attributes else names


class DecisionList(Document):
    """Up to a thousand requests at once."""

    decisions: Annotated[tuple[DecisionRequest, ...], Field(min_length=1, max_length=MAX_LIST)]


@dataclass(frozen=True, slots=True)
class OfferedProduct:
    """One product that an offer is on."""

    # No `Document`: thirty of these in a decision would take as long as the decision itself.

    product_id: str
    percent: float


class DecisionReply(Document):
    """The arm to serve, the exact probability it was drawn with, and why."""

    decision_id: uuid.UUID
    campaign: str
    arm: str
    offer: Offer
    propensity: float
    reason: str
    segment: str
    snapshot: int
    expires_at: dt.datetime
    products: tuple[OfferedProduct, ...] = Field(
        default=(),
        description="What an offer of the kind `recommended` takes off which product, best first;"
        " empty for other offers, and where no product is known.",
    )
    acknowledged: Literal["disk"] | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="There only where answers wait for PostgreSQL (BARTER_ACKNOWLEDGE=database) and"
        " it did not commit in time: the decision is on one host's disk, and is carried later.",
    )


class DecisionReplies(Document):
    """Replies in the order of the requests."""

    decisions: tuple[DecisionReply, ...]


class LocalCampaign(Document):
    """A campaign with all that a local client decides by; see `service/README.md` on who may."""

    id: int
    revision: int
    state: Literal["draft", "scheduled", "running", "paused", "ended"]
    killed: bool
    seed: str = Field(description="Hexadecimal. Whoever knows it can foretell every draw.")
    definition: CampaignDefinition
    snapshot: int = Field(description="The version of what has been learnt; 0 for nothing yet.")
    learnt: str | None = Field(description="The policy's state (`bandits.artefact`) in base64.")
    fitted: str | None = Field(description="What that state leaves out, in base64, if anything.")
    unit_key: str = Field(description="Hexadecimal: the key of the pseudonyms of units.")


_Tiny = Annotated[int, Field(strict=True, ge=0, le=2**15 - 1)]
_Large = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
_Chance = Annotated[float, Field(ge=0, le=1)]


class LocalDecision(Document):
    """A decision that a local client has made and served, as its log holds it."""

    decision_id: DecisionId
    revision: Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
    snapshot: _Large
    unit: Annotated[str, Field(pattern="^[0-9a-f]{32}$", description="Its pseudonym.")]
    segment: _Tiny
    mask: _Large
    context: Annotated[tuple[Annotated[int, Field(strict=True)], ...], Field(max_length=4096)] = ()
    simplex: Annotated[tuple[_Chance, ...], Field(min_length=1, max_length=64)]
    arm: _Tiny
    propensity: _Chance
    reason: Literal[
        "policy", "holdout", "draft", "scheduled", "paused", "ended", "killed",
        "no_eligible_arm",
    ]  # fmt: skip
    masked: Annotated[dict[Key, Short], Field(max_length=64)] = Field(
        default={}, description="The arms that were not eligible, each with its reason."
    )
    filled: Annotated[tuple[Short, ...], Field(max_length=64)] = ()
    product: Short | None = None
    decided_at: Moment
    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{24}$")] | None = Field(
        default=None, description="Tells requests under one request id apart."
    )


class LocalDecisions(Document):
    """Up to a thousand decisions that a local client has made."""

    decisions: Annotated[tuple[LocalDecision, ...], Field(min_length=1, max_length=MAX_LIST)]


class LocalReceipt(Document):
    """How many decisions were new, and how many had been told before."""

    accepted: int
    duplicates: int


class OutcomeRequest(Document):
    """An app server reports what the customer did."""

    event_id: EventId
    decision_id: DecisionId
    kind: Literal["exposed", "clicked", "purchased", "returned"]
    revenue_minor: Annotated[int, Field(strict=True, ge=0, le=MAX_MINOR)] = Field(
        default=0, description="List value of the basket before the discount, in minor units."
    )
    margin_minor: Annotated[int, Field(strict=True, ge=-MAX_MINOR, le=MAX_MINOR)] | None = Field(
        default=None, description="Margin before the discount; the campaign's rate where absent."
    )
    occurred_at: Moment | None = Field(default=None, description="When; now where absent.")
    discount_minor: Annotated[int, Field(strict=True, ge=0, le=MAX_MINOR)] | None = Field(
        default=None,
        description="What was taken off the purchase; computed from the offer where absent, which"
        " for offers on recommended products is a guess.",
    )

    @field_validator("discount_minor")
    @classmethod
    def _of_a_purchase(cls, value: int | None, told: ValidationInfo) -> int | None:
        if value is not None and told.data.get("kind", "purchased") != "purchased":
            raise ValueError(
                "belongs to purchases: leave it out, what comes back gives back its share"
            )
        return value


class OutcomeList(Document):
    """Up to a thousand events at once."""

    outcomes: Annotated[tuple[OutcomeRequest, ...], Field(min_length=1, max_length=MAX_LIST)]


class OutcomeReceipt(Document):
    """How many events are now on disk, and how many of them were known already."""

    accepted: int
    duplicates: int
