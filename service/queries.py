"""The queries of the log, each named and described, in one place.

Every one walks an index from a remembered position; none scans history.
"""

import datetime as dt
import functools
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    DateTime,
    Integer,
    LargeBinary,
    Row,
    Select,
    String,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    tuple_,
)
from sqlalchemy.exc import DataError, IntegrityError, OperationalError

from service import copying
from service.definition import AUTO
from service.models import (
    OUTCOMES,
    ApiKey,
    AuditEntry,
    Budget,
    Campaign,
    CampaignRevision,
    CompetitorPrice,
    Customer,
    Decision,
    Model,
    Outcome,
    Product,
    Retraining,
    Reward,
    Rival,
    Run,
    Snapshot,
)
from service.packed import joined, sent

POPULAR = "popular"
"""The model whose keys are the products to offer where nothing is known of a unit."""
Query = Select[*tuple[Any, ...]]
Log = Sequence[Row[*tuple[Any, ...]]]
"""Rows of the log, with the columns that the query of that name selects."""

TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(7310013, :id)")
"""Take a learner's lock on one campaign until the end of the transaction, if it is free."""

TRY_RETRAINING = text("SELECT pg_try_advisory_lock(7310015, :id)")
"""Be the only one who retrains a campaign, until `END_RETRAINING` or the connection ends."""

END_RETRAINING = text("SELECT pg_advisory_unlock(7310015, :id)")

TRY_CHOICE = text("SELECT pg_try_advisory_xact_lock(7310016, :id)")
"""Be the only one who chooses a campaign's policy until the end of the transaction, if possible."""

LOCK_LOG = text("SELECT pg_advisory_xact_lock(7310014)")
"""Be the only one who appends to the log, so that positions become visible in their order."""

SHIPPED = text(
    "INSERT INTO spools (id, shipped) VALUES (:id, 0)"
    " ON CONFLICT (id) DO UPDATE SET id = excluded.id RETURNING shipped"
)
"""How far a local log has been carried; a new one starts at 0."""

SET_SHIPPED = text(
    "WITH spool AS (UPDATE spools SET shipped = :shipped, updated_at = now() WHERE id = :id"
    " RETURNING id) SELECT pg_notify('barter', :news) FROM spool"
)
"""Advance the watermark, in the transaction that carries the entries, and announce them."""


def _copy_into(table: str, columns: Sequence[str]) -> sql.Composed:
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)")
    named = sql.SQL(", ").join(map(sql.Identifier, columns))
    return statement.format(sql.Identifier(table), named)


COPY_DECISIONS = _copy_into("decisions", copying.COLUMNS)
"""Append decisions that are new, all at once; one that is not refuses them all."""

PIECE_BYTES = 1 << 18


def _driver(connection: Connection) -> psycopg.Connection[Any]:
    """Return psycopg's own connection, for what SQLAlchemy does not know."""
    return connection.connection.driver_connection  # type: ignore[return-value]


def copy(connection: Connection, statement: sql.Composed, stream: bytes) -> None:
    """Append the rows of a stream in PostgreSQL's binary form.

    Raises:
        IntegrityError: a row is there already, or does not fit the others; none was added.
    """
    view = memoryview(stream)
    try:
        with _driver(connection).cursor() as cursor, cursor.copy(statement) as sink:
            for start in range(0, len(view), PIECE_BYTES):
                sink.write(view[start : start + PIECE_BYTES])
    except psycopg.IntegrityError as error:
        raise IntegrityError("COPY", None, error) from error
    except psycopg.DataError as error:
        raise DataError("COPY", None, error) from error
    except psycopg.Error as error:
        raise OperationalError("COPY", None, error) from error


INSERT_OUTCOMES = text(
    """
    INSERT INTO outcomes (event_id, campaign_id, decision_id, kind, revenue_minor, margin_minor,
        occurred_at, received_at, discount_minor)
    SELECT o.event_id, o.campaign_id, o.decision_id, o.kind, o.revenue_minor, o.margin_minor,
        o.occurred_at, o.received_at, o.discount_minor
    FROM ROWS FROM (json_to_recordset(CAST(:rows AS json)) AS (event_id text, campaign_id int,
        decision_id uuid, kind text, revenue_minor bigint, margin_minor bigint,
        occurred_at timestamptz, received_at timestamptz, discount_minor bigint))
        WITH ORDINALITY AS o (event_id, campaign_id, decision_id, kind, revenue_minor,
        margin_minor, occurred_at, received_at, discount_minor, place)
    WHERE (SELECT true FROM outcomes AS known WHERE known.event_id = o.event_id LIMIT 1) IS NULL
    ORDER BY o.place
    ON CONFLICT DO NOTHING
    """
)
"""Append outcomes in their order; a repeated event id adds nothing.

Who holds the log's lock may look first: no partition's index knows the ids of the others. Repeats
within the statement are that index's to find. One by one: as ``NOT EXISTS`` it may read the table.
"""


AMOUNTS = ("conversions", "revenue_minor", "discount_minor", "profit_minor", "late")
REWARDS = ("decision_id", "campaign_id", *AMOUNTS)

COPY_REWARDS = _copy_into("rewards", REWARDS)
"""Keep what decisions have been credited with that had not been credited with anything."""

CHANGE_REWARDS = text(
    """
    UPDATE rewards SET conversions = r.conversions, revenue_minor = r.revenue_minor,
        discount_minor = r.discount_minor, profit_minor = r.profit_minor, late = r.late
    FROM unnest(CAST(:ids AS uuid[]), CAST(:conversions AS smallint[]),
        CAST(:revenue_minor AS bigint[]), CAST(:discount_minor AS bigint[]),
        CAST(:profit_minor AS bigint[]), CAST(:late AS smallint[]))
        AS r (id, conversions, revenue_minor, discount_minor, profit_minor, late)
    WHERE rewards.decision_id = r.id
    """
)
"""Keep what decisions have been credited with instead."""

GIVE = text("UPDATE campaigns SET discount_minor = discount_minor + :more WHERE id = :id")
"""Add to what a campaign's discounts have cost: pages need not add up its whole history."""

DECISION = (
    *(Decision.position, Decision.id, Decision.revision, Decision.snapshot, Decision.decided_at),
    *(Decision.segment, Decision.arm, Decision.simplex, Decision.reason, Decision.context),
)
"""What is learnt from of a decision; `service.stretch` reads it."""


def span(
    log: type[Decision | Outcome], campaign: Any, after: Any = 0, until: Any = None
) -> list[ColumnElement[bool]]:
    """Return what selects a campaign's rows of the log after a position, and up to another.

    Together with the order of `place` it is in the words of the index on both columns, and of no
    other. Where one campaign has most of the rows, PostgreSQL takes equality and a position for as
    well served by the table itself or by the index on positions alone, and then reads all of those
    rows for another campaign, which has none.
    """
    column, here = log.campaign_id, tuple_(*place(log))
    # Positions outgrow what a number of Python is taken for by itself, 31 bits.
    after, until = (literal(one, BigInteger) if isinstance(one, int) else one
                    for one in (after, until))  # fmt: skip
    ends = column <= campaign if until is None else here <= tuple_(campaign, until)
    # Positions by themselves say which partitions need not be looked at.
    among = [log.position > after] + ([] if until is None else [log.position <= until])
    return [here > tuple_(campaign, after), ends, *among]


def place(log: type[Decision | Outcome]) -> tuple[Any, Any]:
    """Return the columns by which the rows of a `span` are ordered: oldest first."""
    return log.campaign_id, log.position


def newest(log: type[Decision | Outcome]) -> tuple[Any, Any]:
    """Return the same, newest first."""
    return log.campaign_id.desc(), log.position.desc()


def any_in(log: type[Decision | Outcome], campaign: Any, after: Any = 0) -> ColumnElement[bool]:
    """Return whether a campaign has rows after a position.

    As ``EXISTS`` it would lose its order, and the table's first rows would be thought to do.
    """
    first = select(log.position).where(*span(log, campaign, after)).order_by(*place(log)).limit(1)
    return first.scalar_subquery().is_not(None)


def decisions_after(campaign_id: int, position: int, until: int | None, limit: int) -> Query:
    """Return a campaign's decisions after a position, oldest first."""
    rows = select(*DECISION).where(*span(Decision, campaign_id, position, until))
    return rows.order_by(*place(Decision)).limit(limit)


def randomised_before(campaign_id: int, position: int, reasons: Any, limit: int) -> Query:
    """Return a campaign's decisions of some reasons up to a position, newest first."""
    query = decisions_after(campaign_id, 0, position, limit).where(Decision.reason.in_(reasons))
    return query.order_by(None).order_by(*newest(Decision))


def randomised_count(
    campaign_id: int, position: int, until: int, reasons: Any, limit: int
) -> Query:
    """Count a campaign's decisions of some reasons after a position, no further than a limit."""
    some = (
        select(Decision.position)
        .where(*span(Decision, campaign_id, position, until), Decision.reason.in_(reasons))
        .order_by(*place(Decision))
        .limit(limit)
    )
    return select(func.count().label("count")).select_from(some.subquery())


_ITS_RETRAINING = and_(
    Retraining.campaign_id == Snapshot.campaign_id, Retraining.number == Snapshot.retraining
)


def newest_retraining(campaign_id: int) -> Query:
    """Return a campaign's newest attempt at retraining, and how long ago it ended or began."""
    last = func.coalesce(Retraining.finished_at, Retraining.started_at)
    return (
        select(
            Retraining.number, Retraining.started_at, Retraining.error,
            Retraining.state.is_not(None).label("fitted"), (func.now() - last).label("ago"),
        )
        .where(Retraining.campaign_id == campaign_id)
        .order_by(Retraining.number.desc())
        .limit(1)
    )  # fmt: skip


def retrained_at(campaign_id: int) -> Query:
    """Return the newest snapshot's place, and the rows and place of what it counts on from."""
    return (
        select(
            Snapshot.decision_position, func.coalesce(Retraining.rows, 0).label("rows"),
            func.coalesce(Retraining.decision_position, 0).label("since"),
        )
        .outerjoin(Retraining, _ITS_RETRAINING)
        .where(Snapshot.campaign_id == campaign_id)
        .order_by(Snapshot.version.desc())
        .limit(1)
    )  # fmt: skip


def decisions_to_judge(
    campaign_id: int, position: int, until: int, *, since: int, before: dt.datetime, limit: int
) -> Query:
    """Return decisions that snapshots from ``since`` on drew before a moment, oldest first."""
    return decisions_after(campaign_id, position, until, limit).where(
        Decision.reason == "policy", Decision.snapshot >= since, Decision.decided_at <= before
    )


def rivals(campaign_id: int) -> Query:
    """Return the policies that may take over a campaign, but not their states."""
    return select(
        Rival.policy, Rival.decision_position, Rival.outcome_position, Rival.incumbent,
        Rival.since, Rival.judged_position, Rival.evidence,
    ).where(Rival.campaign_id == campaign_id).order_by(Rival.policy)  # fmt: skip


def rival_state(campaign_id: int, policy: str) -> Query:
    """Return what a policy that may take over a campaign has learnt."""
    return select(Rival.state).where(Rival.campaign_id == campaign_id, Rival.policy == policy)


def campaigns_to_choose_for() -> Query:
    """Return the campaigns whose policy is ``auto``, or has been since they were created."""
    once = CampaignRevision.definition["policy"]["name"].as_string() == AUTO
    return select(Campaign.id, Campaign.revision).where(
        Campaign.state.not_in(("draft", "ended")),
        exists().where(CampaignRevision.campaign_id == Campaign.id, once),
    )


def last_audit(subject: str, action: str) -> Query:
    """Return when a deed was last done to a subject, and its detail."""
    query = select(AuditEntry.at, AuditEntry.detail).where(
        AuditEntry.subject == subject, AuditEntry.action == action
    )
    return query.order_by(AuditEntry.id.desc()).limit(1)


def reservations_between(
    campaign_id: int, position: int, until: int, *, learnt: int, limit: int
) -> Query:
    """Return what decisions after a position reserved and gave, oldest first.

    ``news`` tells whether a decision has outcomes after the place that was ``learnt``.
    """
    newer = exists().where(Outcome.decision_id == Decision.id, Outcome.position > learnt)
    return (
        select(
            Decision.position, Decision.expires_at, Decision.reserved_minor,
            func.coalesce(Reward.discount_minor, 0).label("discount_minor"), newer.label("news"),
        )
        .outerjoin(Reward, Reward.decision_id == Decision.id)
        .where(*span(Decision, campaign_id, position, until))
        .order_by(*place(Decision))
        .limit(limit)
    )  # fmt: skip


def budget_row(campaign_id: int) -> Query:
    """Return how far a campaign's reservations have been settled."""
    return select(Budget.settled_position, Budget.released_minor).where(
        Budget.campaign_id == campaign_id
    )


def run_of(campaign_id: int, digest: str) -> Query:
    """Return the newest run of a file."""
    return (
        select(Run)
        .where(Run.campaign_id == campaign_id, Run.digest == digest)
        .order_by(Run.id.desc())
        .limit(1)
    )


WITHOUT_DISK = text("SET LOCAL synchronous_commit TO off")
"""Do not wait until this transaction is on disk; it is when a later one has been waited for."""

ADVANCE_RUN = text(
    "UPDATE runs SET rows = :until, finished_at = CASE WHEN :until = total THEN now() END"
    " WHERE id = :id AND rows = :since"
)
"""Advance a run in the transaction that appends its decisions, unless another process did."""


KEEP_PENDING = text(
    "INSERT INTO pending_decisions (run_id, rows, packed) VALUES (:run, :rows, :packed)"
)
PENDING_ROWS = text("SELECT sum(rows) FROM pending_decisions WHERE run_id = :run")
PENDING_DUE = text("""
    SELECT max(created_at) < now() - interval '2 seconds'
        OR min(created_at) < now() - interval '10 minutes' FROM pending_decisions
""")
"""Whether decisions have to be entered in the log: not while more of them come, unless for long."""


def take_pending(connection: Connection) -> bytes | None:
    """Take the oldest pending decisions; for who holds the log's lock, or two take the same.

    As bytes, which SQLAlchemy would have sent as hexadecimal digits.
    """
    try:
        with _driver(connection).cursor(binary=True) as cursor:
            row = cursor.execute(_TAKE_PENDING).fetchone()
    except psycopg.Error as error:
        raise OperationalError("DELETE", None, error) from error
    return None if row is None else row[0]


_TAKE_PENDING = """
    DELETE FROM pending_decisions WHERE id = (SELECT min(id) FROM pending_decisions)
    RETURNING packed
"""


def customers_of(units: Sequence[bytes]) -> Query:
    """Return what is stored about some units."""
    wanted = literal(units, ARRAY(LargeBinary))
    return select(Customer.unit, Customer.attributes, Customer.traits, Customer.traits_at).where(
        Customer.unit == any_(wanted)
    )


def budgets() -> Query:
    """Return what expired offers have given back, per campaign."""
    return select(Budget.campaign_id, Budget.released_minor)


def decisions_told_of(campaign_id: int, after: int, upto: int, learnt: int) -> Query:
    """Return the decisions up to a position that outcomes in a span of positions are about."""
    told_of = select(Outcome.decision_id).where(*span(Outcome, campaign_id, after, upto))
    told = told_of.distinct().subquery("told")
    its = Decision.id == told.c.decision_id
    here = Decision.campaign_id == campaign_id, Decision.position <= learnt
    return _for_each(told, select(*DECISION).where(its, *here))


def outcomes_after(campaign_id: int, position: int, until: int | None, limit: int) -> Query:
    """Return how many outcomes of a campaign are next, the last one's position, and until when.

    ``received_at`` is when the newest of them came in; both are null where there is none.
    """
    rows = select(Outcome.position, Outcome.received_at).where(
        *span(Outcome, campaign_id, position, until)
    )
    some = rows.order_by(*place(Outcome)).limit(limit).subquery().c
    return select(
        func.count().label("number"),
        func.max(some.position).label("position"),
        func.max(some.received_at).label("received_at"),
    )


UNTOLD = -(1 << 62)
"""Stands for a margin or a discount that an event does not tell."""
EVENT = (
    *(("place", "int8send", ">i8"), ("kind", "int4send", ">i4")),
    *((name, "int8send", ">i8") for name in ("revenue_minor", "margin_minor", "discount_minor")),
    ("occurred_at", "timestamptz_send", ">i8"),
)
"""What an outcome tells of one of N decisions, ``place`` among them: name, how the server packs it,
how numpy reads that. Its kind is the place in `models.OUTCOMES`."""
CREDIT = (
    ("place", "int8send", ">i8"), *((name, "int8send", ">i8") for name in AMOUNTS),
)  # fmt: skip
"""What one of N decisions has been credited with, likewise."""


def packed(row: Any) -> ColumnElement[bytes]:
    """Return many rows in their binary forms, one after the other, in any order."""
    return func.string_agg(row, literal(b"", LargeBinary), type_=LargeBinary)


def _for_each(wanted: Any, rows: Query) -> Query:
    """Return the rows that a table has for each of those that are wanted, found by its index.

    Each by itself: left to join as it likes, PostgreSQL reads whole partitions for some hundred.
    """
    one = rows.offset(0).correlate(wanted).lateral("one")
    return select(*one.c).select_from(wanted).join(one, text("true"))


def _places() -> Any:
    """Return the table of the ids of an array, ``ids``, each with its place, counted from 1."""
    # Read once as a table: as `= ANY` the text would be read for every row of a scan.
    told = func.unnest(cast(bindparam("ids", type_=String), ARRAY(Uuid)))
    return told.table_valued("id", with_ordinality="place", name="wanted").render_derived()


@functools.cache
def outcomes_of() -> Query:
    """Return all outcomes of the decisions ``ids`` up to ``until``, packed rows of `EVENT`.

    Built once, as it is asked many times a second: the ids come as the text of an array.
    """
    wanted = _places()
    values = {
        "place": wanted.c.place - 1,
        "kind": case({kind: code for code, kind in enumerate(OUTCOMES)}, value=Outcome.kind),
        "revenue_minor": Outcome.revenue_minor,
        "margin_minor": func.coalesce(Outcome.margin_minor, UNTOLD),
        "discount_minor": func.coalesce(Outcome.discount_minor, UNTOLD),
        "occurred_at": Outcome.occurred_at,
    }
    row = joined([sent(function, values[name]) for name, function, _ in EVENT]).label("row")
    upto = Outcome.position <= bindparam("until", type_=BigInteger)
    rows = _for_each(wanted, select(row).where(Outcome.decision_id == wanted.c.id, upto))
    return select(packed(rows.subquery().c.row))


@functools.cache
def rewards_of() -> Query:
    """Return what the decisions ``ids`` have been credited with, packed rows of `CREDIT`."""
    wanted = _places()
    values = {name: getattr(Reward, name) for name in AMOUNTS}
    values["place"] = wanted.c.place - 1
    row = joined([sent(function, values[name]) for name, function, _ in CREDIT]).label("row")
    rows = _for_each(wanted, select(row).where(Reward.decision_id == wanted.c.id))
    return select(packed(rows.subquery().c.row))


def newest_snapshot(campaign_id: int) -> Query:
    """Return a campaign's newest snapshot; ``fitted`` is the state of its retraining, if any."""
    return (
        select(
            Snapshot.version, Snapshot.state, Snapshot.digest, Snapshot.decision_position,
            Snapshot.outcome_position, Snapshot.learnt_until, Snapshot.retraining,
            Retraining.state.label("fitted"),
        )
        .outerjoin(Retraining, _ITS_RETRAINING)
        .where(Snapshot.campaign_id == campaign_id)
        .order_by(Snapshot.version.desc())
        .limit(1)
    )  # fmt: skip


def newest_versions() -> Query:
    """Return the newest snapshot of every campaign that has one: version and retraining."""
    newest = (
        select(Snapshot.version, Snapshot.retraining)
        .where(Snapshot.campaign_id == Campaign.id)
        .order_by(Snapshot.version.desc())
        .limit(1)
        .lateral()
    )
    columns = (Campaign.id, newest.c.version, newest.c.retraining)
    return select(*columns).select_from(Campaign).join(newest, text("true"))


def snapshot_place(campaign_id: int, version: int) -> Query:
    """Return how far in the log a snapshot has learnt."""
    return select(Snapshot.decision_position, Snapshot.outcome_position).where(
        Snapshot.campaign_id == campaign_id, Snapshot.version == version
    )


def _those(places: Sequence[tuple[int, int]]) -> Any:
    """Return a table of pairs: a campaign, and the number of one of its snapshots or retrainings.

    As arrays, of any length: PostgreSQL takes a list of some thousand pairs for too complex.
    """
    campaigns, numbers = zip(*places, strict=True)
    arrays = literal(campaigns, ARRAY(Integer)), literal(numbers, ARRAY(BigInteger))
    return func.unnest(*arrays).table_valued("id", "number", name="wanted").render_derived()


def snapshot_states(places: Sequence[tuple[int, int]]) -> Query:
    """Return some snapshots as they are stored, by (campaign, version)."""
    those = _those(places)
    that = and_(Snapshot.campaign_id == those.c.id, Snapshot.version == those.c.number)
    return select(
        Snapshot.campaign_id, Snapshot.version, Snapshot.revision, Snapshot.state, Snapshot.usual,
    ).join_from(those, Snapshot, that)  # fmt: skip


def fitted_states(places: Sequence[tuple[int, int]]) -> Query:
    """Return what some retrainings fitted, by (campaign, number)."""
    those = _those(places)
    that = and_(Retraining.campaign_id == those.c.id, Retraining.number == those.c.number)
    return select(Retraining.campaign_id, Retraining.state).join_from(those, Retraining, that)


@functools.cache
def campaigns_with_news() -> Query:
    """Return campaigns that have something not yet learnt from: id, and whether outcomes are.

    Built once, as it is asked many times a second.
    """
    learnt = (
        select(Snapshot.decision_position, Snapshot.outcome_position)
        .where(Snapshot.campaign_id == Campaign.id)
        .order_by(Snapshot.version.desc())
        .limit(1)
        .lateral()
    )
    decided = any_in(Decision, Campaign.id, func.coalesce(learnt.c.decision_position, 0))
    told = any_in(Outcome, Campaign.id, func.coalesce(learnt.c.outcome_position, 0))
    return (
        select(Campaign.id, told.label("told"))
        .select_from(Campaign)
        .outerjoin(learnt, text("true"))
        .where(Campaign.state != "draft", or_(decided, told))
        .order_by(Campaign.id)
    )


def campaigns_there(ids: Sequence[int]) -> Query:
    """Return those of some campaigns that are there; until the log's lock is let go, they stay."""
    return select(Campaign.id).where(Campaign.id == any_(literal(ids, ARRAY(Integer))))


@functools.cache
def decisions_there() -> Query:
    """Return those of the decisions ``ids`` that are in the log; asked as `outcomes_of` is."""
    wanted = _places()
    return _for_each(wanted, select(Decision.id).where(Decision.id == wanted.c.id))


def campaign_row(campaign_id: int) -> Query:
    """Return what a learner needs of a campaign."""
    return select(
        Campaign.id, Campaign.key, Campaign.revision, Campaign.state, Campaign.seed,
        Campaign.killed_at,
    ).where(Campaign.id == campaign_id)  # fmt: skip


def revision_definition(campaign_id: int, revision: int) -> Query:
    """Return a campaign's definition as it was at a revision."""
    return select(CampaignRevision.definition).where(
        CampaignRevision.campaign_id == campaign_id, CampaignRevision.revision == revision
    )


CATALOGUE_STAMP = text(
    "SELECT md5(string_agg(concat_ws(' ', id, revision, state, killed_at), ',' ORDER BY id))"
    " FROM campaigns"
)
"""What differs whenever `catalogue_rows` do: another definition has another revision."""


def catalogue_rows() -> Query:
    """Return every campaign as serving processes need it."""
    return select(
        Campaign.id, Campaign.revision, Campaign.state, Campaign.seed, Campaign.killed_at,
        Campaign.definition,
    ).order_by(Campaign.id)  # fmt: skip


def live_keys() -> Query:
    """Return the API keys that have not been revoked."""
    return select(ApiKey.public_id, ApiKey.name, ApiKey.secret_sha256, ApiKey.scopes).where(
        ApiKey.revoked_at.is_(None)
    )


def customers_since(moment: Any) -> Query:
    """Return units of which what is known changed at or after a moment, oldest first."""
    columns = (
        Customer.unit, Customer.attributes, Customer.traits, Customer.traits_at,
        Customer.recommended, Customer.updated_at,
    )  # fmt: skip
    return _since(Customer.updated_at, moment, columns).order_by(Customer.updated_at)


def products_since(moment: Any) -> Query:
    """Return products of which what is known changed at or after a moment, oldest first."""
    seen = cast(func.extract("epoch", CompetitorPrice.at), BigInteger)
    prices = (
        select(func.json_agg(func.json_build_array(CompetitorPrice.price_minor, seen)))
        .where(CompetitorPrice.product_id == Product.id)
        .scalar_subquery()
    )
    columns = (
        Product.id, Product.stock, Product.price_minor, Product.category, Product.pace,
        Product.pace_at, prices.label("competitors"), Product.price_at, Product.stock_at,
        Product.updated_at,
    )  # fmt: skip
    return _since(Product.updated_at, moment, columns).order_by(Product.updated_at)


def news(changed: Any, moment: Any) -> Query:
    """Return how many rows changed at or after a moment, when the last one did, and the time.

    ``changed`` is the column of a table that says when a row changed.
    """
    columns = (
        func.count().label("number"), func.max(changed).label("newest"), func.now().label("now")
    )  # fmt: skip
    return _since(changed, moment, columns)


def _since(changed: Any, moment: Any, columns: Sequence[Any]) -> Select[Any]:
    query = select(*columns).select_from(changed.class_)
    return query if moment is None else query.where(changed >= moment)


def popular_products() -> Query:
    """Return the ids of the products to offer where nothing is known of a unit, best first."""
    query = select(Model.keys).where(Model.name == POPULAR)
    return query.order_by(Model.version.desc()).limit(1)


def campaigns_with_budget() -> Query:
    """Return the ids of campaigns that have a budget and may still have open offers."""
    return select(Campaign.id).where(
        Campaign.definition["budget_minor"].as_integer().is_not(None), Campaign.state != "draft"
    )


def running_campaigns() -> Query:
    """Return the campaigns that decide now."""
    return select(Campaign.id, Campaign.revision).where(Campaign.state == "running")


def due_campaigns(now: dt.datetime) -> Query:
    """Return the campaigns whose state the clock moves by now."""
    starts, ends = (
        cast(Campaign.definition[name].as_string(), DateTime(timezone=True))
        for name in ("starts_at", "ends_at")
    )
    return select(
        Campaign.id, Campaign.key, Campaign.revision, Campaign.state, Campaign.definition
    ).where(
        or_(
            and_(Campaign.state.in_(("scheduled", "running", "paused")), ends <= now),
            and_(Campaign.state == "scheduled", func.coalesce(starts, now) <= now),
        )
    )
