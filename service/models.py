"""The tables of Barter.

Constraints and defaults live in the database, so that whatever writes to it keeps the rules.
Money is integer minor units of the campaign's currency; every time is UTC.

The log is three append-only tables read in the order of ``position``: ``decisions`` (what was
chosen and with what probabilities), ``outcomes`` (what the customer then did) and ``snapshots``
(what the policy knew, by itself or counting on from one of ``retrainings``). ``rewards`` is the
learner's sum of one decision's outcomes: it can be rebuilt from the log at any time. Only a shipper
writes to the log, one transaction at a time, so positions become visible in their own order and a
reader that remembers the last position it has seen misses nothing.

``decisions`` and ``outcomes`` are partitioned by position (`service.partitions`). A decision's id
and an event's id are unique within each partition by an index of its own, and in all of them
because who appends looks first, which only one does at a time.
"""

import datetime as dt
import struct
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    TypeDecorator,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSON, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from service.names import KEY_PATTERN
from service.packed import CONTEXT, SIMPLEX

Position = Annotated[int, mapped_column(BigInteger, Identity(always=True), primary_key=True)]
Small = Annotated[int, mapped_column(SmallInteger)]
Big = Annotated[int, mapped_column(BigInteger)]
Name = Annotated[str, mapped_column(Text)]
When = Annotated[dt.datetime, mapped_column(DateTime(timezone=True))]
Now = Annotated[dt.datetime, mapped_column(DateTime(timezone=True), server_default=func.now())]
Document = Annotated[dict[str, Any], mapped_column(JSONB)]


class Numbers(TypeDecorator[Sequence[float]]):
    """Numbers of one form (`service.packed`), one after the other as bytes."""

    impl = LargeBinary
    cache_ok = True

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self._letter = {SIMPLEX: "d", CONTEXT: "i"}[form]

    def process_bind_param(self, value: Sequence[float] | None, dialect: Any) -> bytes | None:
        """Return numbers as bytes."""
        if value is None:
            return None
        return struct.pack(f">{len(value)}{self._letter}", *value)

    def process_result_value(self, value: Any, dialect: Any) -> list[float] | None:
        """Return bytes as numbers."""
        if value is None:
            return None
        count = len(value) // struct.calcsize(self._letter)
        return list(struct.unpack(f">{count}{self._letter}", value))


STATES = ("draft", "scheduled", "running", "paused", "ended")
ROLES = ("marketer", "analyst", "developer", "admin")
SCOPES = ("decide", "reward", "manage", "read", "local")
OUTCOMES: Final = ("exposed", "clicked", "purchased", "returned")
DEEDS = ("view", "click", "cart", "purchase", "review", "return")
IMPORTS = ("customers", "products", "competitor_prices", "interactions", "transactions")
IMPORT_STATES = ("waiting", "reading", "done", "failed", "undone")


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


class Base(DeclarativeBase):
    """The base of every table; its metadata is what the migrations must add up to."""


class User(Base):
    """A person who may log in to the console."""

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint(_one_of("role", ROLES), name="users_role"),
        CheckConstraint("email = lower(email)", name="users_email_lower"),
    )

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    email: Mapped[Name] = mapped_column(unique=True)
    name: Mapped[Name]
    role: Mapped[Name]
    password_hash: Mapped[Name]
    created_at: Mapped[Now]
    disabled_at: Mapped[When | None]


class ApiKey(Base):
    """A key of an app server: ``bk_live_<public id>_<secret>``, of which only the hash is kept."""

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint(
            "scopes <@ ARRAY['decide','reward','manage','read','local']::text[]"
            " AND cardinality(scopes) > 0",
            name="api_keys_scopes",
        ),
    )

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    public_id: Mapped[Name] = mapped_column(unique=True)
    name: Mapped[Name]
    secret_sha256: Mapped[bytes] = mapped_column(LargeBinary)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_by: Mapped[Name]
    created_at: Mapped[Now]
    revoked_at: Mapped[When | None]


class Campaign(Base):
    """An experiment. Its definition is the document that the API and the console edit.

    Its decisions up to ``dropped_position`` have been dropped from the log (`service.retention`).
    ``discount_minor`` is what the learner has credited to all that there ever were (`Reward`).
    """

    __tablename__ = "campaigns"
    __table_args__ = (
        CheckConstraint(_one_of("state", STATES), name="campaigns_state"),
        CheckConstraint(f"key ~ '{KEY_PATTERN}'", name="campaigns_key"),
        CheckConstraint("octet_length(seed) = 32", name="campaigns_seed"),
        CheckConstraint("killed_at IS NULL OR state = 'ended'", name="campaigns_killed"),
    )

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    key: Mapped[Name] = mapped_column(unique=True)
    state: Mapped[Name] = mapped_column(server_default=text("'draft'"))
    revision: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    definition: Mapped[Document]
    seed: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[Now]
    updated_at: Mapped[Now]
    started_at: Mapped[When | None]
    ended_at: Mapped[When | None]
    killed_at: Mapped[When | None]
    dropped_position: Mapped[Big] = mapped_column(server_default=text("0"))
    discount_minor: Mapped[Big] = mapped_column(server_default=text("0"))


class CampaignRevision(Base):
    """Every definition that a campaign ever had: what replay and audit read."""

    __tablename__ = "campaign_revisions"

    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id"), primary_key=True)
    revision: Mapped[int] = mapped_column(Integer, primary_key=True)
    definition: Mapped[Document]
    author: Mapped[Name]
    created_at: Mapped[Now]


class AuditEntry(Base):
    """Who did what, when: written in the transaction of the deed itself."""

    __tablename__ = "audit_log"
    __table_args__ = (Index("audit_log_subject", "subject", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[Now]
    actor: Mapped[Name]
    action: Mapped[Name]
    subject: Mapped[Name]
    detail: Mapped[Document] = mapped_column(server_default=text("'{}'"))


class Customer(Base):
    """What is known of one unit, under its keyed pseudonym.

    ``attributes`` is what was told, ``traits`` what was computed from receipts and interactions
    (`service.traits`) at ``traits_at``; where both name something, what was told counts.
    ``recommended`` are ids of products to offer, best first, computed at the same time.
    """

    __tablename__ = "customers"
    __table_args__ = (Index("customers_updated_at", "updated_at"),)

    unit: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    attributes: Mapped[Document]
    updated_at: Mapped[Now]
    traits: Mapped[Document] = mapped_column(server_default=text("'{}'"))
    traits_at: Mapped[When | None]
    recommended: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))


class Model(Base):
    """One version of a model of the shop: how traits were computed, and what was found.

    ``artefact`` holds its arrays (`bandits.artefact`), ``keys`` what their rows are, ``summary``
    figures for people.
    """

    __tablename__ = "models"

    name: Mapped[Name] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True)
    artefact: Mapped[bytes] = mapped_column(LargeBinary)
    keys: Mapped[list[Any]] = mapped_column(JSONB)
    summary: Mapped[Document]
    created_at: Mapped[Now]


class Product(Base):
    """One item of the catalogue.

    ``pace`` is how many pieces are sold a day, as computed from receipts (`service.traits`) at
    ``pace_at``; None where it was never sold. ``price_at`` and ``stock_at`` say when price and
    stock were last told, if at all, to the day.
    """

    __tablename__ = "products"
    __table_args__ = (Index("products_updated_at", "updated_at"),)

    id: Mapped[Name] = mapped_column(primary_key=True)
    department: Mapped[Name | None]
    category: Mapped[Name | None]
    name: Mapped[Name | None]
    price_minor: Mapped[Big | None]
    unit_cost_minor: Mapped[Big | None]
    stock: Mapped[Big | None]
    pace: Mapped[float | None] = mapped_column(Double)
    pace_at: Mapped[When | None]
    updated_at: Mapped[When] = mapped_column(server_default=func.clock_timestamp())
    price_at: Mapped[When] = mapped_column(server_default=func.clock_timestamp())
    stock_at: Mapped[When] = mapped_column(server_default=func.clock_timestamp())


class CompetitorPrice(Base):
    """What a competitor asked for an item when it was last seen."""

    __tablename__ = "competitor_prices"
    __table_args__ = (CheckConstraint("price_minor > 0", name="competitor_prices_price"),)

    product_id: Mapped[Name] = mapped_column(primary_key=True)
    competitor: Mapped[Name] = mapped_column(primary_key=True)
    price_minor: Mapped[Big]
    at: Mapped[When]


class Transaction(Base):
    """One line of a till receipt; ``id`` is the import's own line key, so a repeat adds nothing."""

    __tablename__ = "transactions"
    __table_args__ = (
        Index("transactions_unit", "unit"),
        # Rows of one import lie together, so a few pages' bounds find them.
        Index("transactions_import", "import_id", postgresql_using="brin"),
    )

    id: Mapped[Name] = mapped_column(primary_key=True)
    unit: Mapped[bytes] = mapped_column(LargeBinary)
    product_id: Mapped[Name]
    basket: Mapped[Name]
    quantity: Mapped[int] = mapped_column(Integer)
    paid_minor: Mapped[Big]
    discount_minor: Mapped[Big]
    bought_at: Mapped[When]
    import_id: Mapped[int | None] = mapped_column(Integer)


class Interaction(Base):
    """What a customer did with an item besides buying it; ``value`` is a review's score."""

    __tablename__ = "interactions"
    __table_args__ = (
        CheckConstraint(_one_of("kind", DEEDS), name="interactions_kind"),
        Index("interactions_unit", "unit"),
        Index("interactions_import", "import_id", postgresql_using="brin"),
    )

    id: Mapped[Name] = mapped_column(primary_key=True)
    unit: Mapped[bytes] = mapped_column(LargeBinary)
    product_id: Mapped[Name]
    kind: Mapped[Name]
    value: Mapped[float | None] = mapped_column(Double)
    at: Mapped[When]
    import_id: Mapped[int | None] = mapped_column(Integer)


class Arrival(Base):
    """A customer of whom something has come in that no refit of traits has read yet.

    ``folded_in`` once tastes and products to offer go by it (`service.traits.arrivals`).
    """

    __tablename__ = "arrivals"
    __table_args__ = (Index("arrivals_fresh", "id", postgresql_where=text("NOT folded_in")),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    unit: Mapped[bytes] = mapped_column(LargeBinary)
    at: Mapped[When] = mapped_column(server_default=func.clock_timestamp())
    folded_in: Mapped[bool] = mapped_column(server_default=text("false"))


class Import(Base):
    """One file's way into the database: how far it has been read, and what was found in it.

    ``rows`` are the rows read so far, in the transaction that stored them: an import that was cut
    short goes on there. ``attempts`` are the starts since the last rows were stored. The file
    itself lies on the host that took it, until it has been read.
    """

    __tablename__ = "imports"
    __table_args__ = (
        CheckConstraint(_one_of("kind", IMPORTS), name="imports_kind"),
        CheckConstraint(_one_of("state", IMPORT_STATES), name="imports_state"),
        Index("imports_digest", "digest"),
    )

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    kind: Mapped[Name]
    name: Mapped[Name]
    state: Mapped[Name] = mapped_column(server_default=text("'waiting'"))
    bytes: Mapped[Big]
    digest: Mapped[Name]
    settings: Mapped[Document]
    attempts: Mapped[Small] = mapped_column(server_default=text("0"))
    progress: Mapped[float] = mapped_column(Double, server_default=text("0"))
    rows: Mapped[Big] = mapped_column(server_default=text("0"))
    stored: Mapped[Big] = mapped_column(server_default=text("0"))
    known: Mapped[Big] = mapped_column(server_default=text("0"))
    rejected: Mapped[Big] = mapped_column(server_default=text("0"))
    quality: Mapped[Document] = mapped_column(server_default=text("'{}'"))
    error: Mapped[Name | None]
    actor: Mapped[Name]
    created_at: Mapped[Now]
    finished_at: Mapped[When | None]


class ImportReject(Base):
    """A row that an import refused, with the field at fault; never with the row's contents.

    A refused row may name a customer in plain, so it stays in the file that it came from.
    """

    __tablename__ = "import_rejects"

    import_id: Mapped[int] = mapped_column(
        ForeignKey("imports.id", ondelete="CASCADE"), primary_key=True
    )
    line: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    field: Mapped[Name]
    message: Mapped[Name]


class Decision(Base):
    """One choice, immutable: with its simplex, the number that was sampled with, and why.

    Its campaign is there, without a foreign key, which would look for it with every row: who
    appends, and who deletes a campaign, holds the log's lock.
    """

    __tablename__ = "decisions"
    __table_args__ = (
        CheckConstraint("propensity > 0 AND propensity <= 1", name="decisions_propensity"),
        CheckConstraint(
            "octet_length(packed_simplex) > 8 * arm AND arm >= 0", name="decisions_arm"
        ),
        Index("decisions_campaign", "campaign_id", "position"),
        Index("decisions_unit", "unit"),
        {"postgresql_partition_by": "RANGE (position)"},
    )

    position: Mapped[Position]
    id: Mapped[uuid.UUID] = mapped_column(Uuid)
    campaign_id: Mapped[int] = mapped_column(Integer)
    revision: Mapped[int] = mapped_column(Integer)
    snapshot: Mapped[Big]
    unit: Mapped[bytes] = mapped_column(LargeBinary)
    segment: Mapped[Small]
    mask: Mapped[Big]
    simplex: Mapped[list[float]] = mapped_column("packed_simplex", Numbers(SIMPLEX), key="simplex")
    arm: Mapped[Small]
    propensity: Mapped[float] = mapped_column(Double)
    reason: Mapped[Name]
    origin: Mapped[uuid.UUID | None] = mapped_column(Uuid)
    why: Mapped[dict[str, Any]] = mapped_column(JSON)
    reserved_minor: Mapped[Big] = mapped_column(server_default=text("0"))
    decided_at: Mapped[When]
    expires_at: Mapped[When]
    context: Mapped[list[int]] = mapped_column(
        "packed_context", Numbers(CONTEXT), key="context", server_default=text("''")
    )


class Run(Base):
    """A file of customers that a campaign is asked about: how many of its rows have been decided.

    ``rows`` advances in the transaction that appends their decisions, whose ids derive from
    ``token`` and the row's number: a run that was cut short goes on there, and repeats none.
    """

    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint("rows BETWEEN 0 AND total", name="runs_rows"),
        Index("runs_file", "campaign_id", "digest"),
    )

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id"))
    token: Mapped[Big]
    digest: Mapped[Name]
    name: Mapped[Name]
    total: Mapped[Big]
    rows: Mapped[Big] = mapped_column(server_default=text("0"))
    actor: Mapped[Name]
    created_at: Mapped[Now]
    finished_at: Mapped[When | None]


class PendingDecisions(Base):
    """Decisions of a run that are not in the log yet, packed as in a local log: a chunk in a row.

    See `service.pending`; ``packed`` is a `service.columnar.Packed`, which is not compressed.
    """

    __tablename__ = "pending_decisions"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"))
    rows: Mapped[int] = mapped_column(Integer)
    packed: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[Now]


class Outcome(Base):
    """One event about a decision, unique by its event id; may be late, negative or early.

    ``campaign_id`` is read out of the decision's id, without a foreign key: an event may arrive
    before its decision does.
    """

    __tablename__ = "outcomes"
    __table_args__ = (
        CheckConstraint(_one_of("kind", OUTCOMES), name="outcomes_kind"),
        Index("outcomes_decision", "decision_id"),
        Index("outcomes_campaign", "campaign_id", "position"),
        {"postgresql_partition_by": "RANGE (position)"},
    )

    position: Mapped[Position]
    event_id: Mapped[Name]
    campaign_id: Mapped[int] = mapped_column(Integer)
    decision_id: Mapped[uuid.UUID] = mapped_column(Uuid)
    kind: Mapped[Name]
    revenue_minor: Mapped[Big]
    margin_minor: Mapped[Big | None]
    occurred_at: Mapped[When]
    received_at: Mapped[When]
    discount_minor: Mapped[Big | None]


class Reward(Base):
    """What one decision's outcomes add up to, as the learner has credited it; none adds up to 0.

    Its campaign is there, without a foreign key, as that of `Decision`.
    """

    __tablename__ = "rewards"

    decision_id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True)
    campaign_id: Mapped[int] = mapped_column(Integer)
    conversions: Mapped[Small]
    revenue_minor: Mapped[Big]
    discount_minor: Mapped[Big]
    profit_minor: Mapped[Big]
    late: Mapped[Small] = mapped_column(server_default=text("0"))


class Retraining(Base):
    """One attempt to fit what a campaign's policy does not learn by counting, or why it failed.

    ``state`` is what was fitted to ``rows`` decisions up to a place in the log, with nothing
    counted: the snapshots that name this retraining count on from it. Neither ``state`` nor
    ``error`` means that it is under way, or that the learner was killed at it.
    """

    __tablename__ = "retrainings"
    __table_args__ = (
        CheckConstraint("state IS NULL OR error IS NULL", name="retrainings_one_end"),
    )

    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id"), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    decision_position: Mapped[Big]
    outcome_position: Mapped[Big]
    rows: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    state: Mapped[bytes | None] = mapped_column(LargeBinary)
    error: Mapped[Name | None]
    started_at: Mapped[Now]
    finished_at: Mapped[When | None]


class Snapshot(Base):
    """An immutable policy state and the point in the log that it has learnt through.

    Where it counts on from a retraining, ``state`` leaves out what is the same there. ``usual`` is
    what most decisions are drawn from at ``revision`` (`service.snapshots.LiveCampaign.usual`).
    """

    __tablename__ = "snapshots"
    __table_args__ = (
        ForeignKeyConstraint(
            ["campaign_id", "retraining"],
            ["retrainings.campaign_id", "retrainings.number"],
            name="snapshots_retraining",
        ),
    )

    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id"), primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    revision: Mapped[int] = mapped_column(Integer)
    state: Mapped[bytes] = mapped_column(LargeBinary)
    digest: Mapped[Name]
    decision_position: Mapped[Big]
    outcome_position: Mapped[Big]
    learnt_until: Mapped[When | None]
    created_at: Mapped[Now]
    retraining: Mapped[Big | None]
    usual: Mapped[bytes | None] = mapped_column(LargeBinary)


class Rival(Base):
    """A policy that may take over a campaign: what it has learnt, and what the log says of it.

    Its state is at a place in the log; its evidence (`bandits.evaluation.choice`) is of decisions
    up to ``judged_position`` that ``incumbent`` made from its snapshot ``since`` on.
    """

    __tablename__ = "rivals"

    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id"), primary_key=True)
    policy: Mapped[Name] = mapped_column(primary_key=True)
    state: Mapped[bytes] = mapped_column(LargeBinary)
    decision_position: Mapped[Big]
    outcome_position: Mapped[Big]
    incumbent: Mapped[Name]
    since: Mapped[Big]
    judged_position: Mapped[Big]
    evidence: Mapped[Document]
    updated_at: Mapped[Now]


class Budget(Base):
    """What expired offers gave back of what was reserved for them, up to a place in the log."""

    __tablename__ = "budgets"

    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id"), primary_key=True)
    settled_position: Mapped[Big]
    released_minor: Mapped[Big]


class Spool(Base):
    """How far each local log has been carried into this database: the exactly-once watermark."""

    __tablename__ = "spools"

    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True)
    shipped: Mapped[Big]
    updated_at: Mapped[Now]
