"""Read one campaign's log into numpy columns.

A row of the log is needed by its numbers only, so the server packs the binary forms of the
columns side by side and sends them as a few long byte strings, which numpy reads in place: one
pass, no Python object per decision (a quarter of the time that fetching rows takes: 1,000,000
decisions of 5 arms in about 5 s on two shared cores), one stretch in memory beside the result.

Letters: `N` decisions in the order of position, `A` arms and `S` segments of the definition in
force.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    LargeBinary,
    Select,
    SmallInteger,
    case,
    func,
    literal,
    select,
    type_coerce,
)
from sqlalchemy import cast as as_sql
from sqlalchemy.orm import Session

from service import queries
from service.definition import CampaignDefinition
from service.models import CampaignRevision, Decision, Outcome, Reward
from service.packed import SIMPLEX, Bytes, joined, sent

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

POLICY, STICKY, HOLDOUT, OTHER = 0, 1, 2, 3
KINDS = {"policy": POLICY, "sticky": STICKY, "holdout": HOLDOUT}
STRETCH = 1 << 17
FIXED: tuple[tuple[str, str], ...] = (
    *(("position", ">i8"), ("time", ">i8"), ("unit", ">i8"), ("mask", ">i8")),
    *(("segment", ">i2"), ("arm", ">i2"), ("kind", ">i2"), ("conversions", ">i2")),
    *(("revenue", ">i8"), ("discount", ">i8"), ("profit", ">i8"), ("late", ">i2")),
    ("propensity", ">f8"),
)


@dataclass(frozen=True, kw_only=True)
class Log:
    """The decisions of a campaign with what their outcomes came to, in order of position."""

    position: Ints
    time: Ints  # (N,) microseconds since EPOCH
    unit: Ints  # (N,) the first eight bytes of the keyed pseudonym
    segment: Ints  # (N,) place in the definition in force
    arm: Ints  # (N,) place in the definition in force
    kind: Ints  # (N,) POLICY, STICKY, HOLDOUT or OTHER
    revision: Ints
    holdout: Floats  # (N,) the chance with which the unit was held out under that revision
    masked: Bools  # (N,) whether some arm of that revision was not eligible
    simplex: Floats  # (N, A) as logged
    propensity: Floats
    conversions: Ints
    revenue: Ints  # (N,) minor units, as are discount and profit
    discount: Ints
    profit: Ints
    late: Ints
    unread: int  # decisions whose arm or segment the definition in force does not have

    def __len__(self) -> int:
        return len(self.position)

    def where(self, chosen: Bools) -> "Log":
        """Return the decisions that are chosen, still in order."""
        if chosen.all():
            return self
        columns = {
            field.name: getattr(self, field.name)[chosen]
            for field in dataclasses.fields(self)
            if field.name != "unread"
        }
        return Log(**columns, unread=self.unread)

    def possible(self) -> Bools:
        """Return (N,) whether the logged simplex gives the served arm a chance."""
        possible: Bools = self.simplex[np.arange(len(self)), self.arm] > 0
        return possible

    def folded(self, target: Ints) -> "Log":
        """Add what decisions earned to the decision that `target` (N,) names, and keep those."""
        own = target == np.arange(len(target))
        earned = ("conversions", "revenue", "discount", "profit", "late")
        sums: dict[str, Any] = {name: np.zeros(len(target), np.int64) for name in earned}
        for name, total in sums.items():
            np.add.at(total, target, getattr(self, name))
        return dataclasses.replace(self, **sums).where(own)

    def reward(self, objective: str) -> Ints:
        """Return (N,) the objective's reward of every decision, before any contact cost."""
        by_name = {"conversion": self.conversions, "revenue": self.revenue, "profit": self.profit}
        return by_name[objective]


def read(session: Session, campaign_id: int, definition: CampaignDefinition) -> Log:
    """Read the log of one campaign, mapped by key to the definition in force.

    Decisions of revisions whose arm or segment has since gone are counted in ``unread``.

    Raises:
        sqlalchemy.exc.OperationalError: one stretch took the server longer than the session's
            statement_timeout (see `service.db`).
    """
    width = len(definition.arms)
    here = select(Decision.position).where(*queries.span(Decision, campaign_id)).limit(1)
    # In this order, a revision that is made meanwhile has no decision up to `last`.
    first = session.scalar(here.order_by(*queries.place(Decision))) or 0
    last = session.scalar(here.order_by(*queries.newest(Decision))) or -1
    places = _places(session, campaign_id, definition)
    parts = [
        _part(packed, revision, places[revision], width)
        for start in range(first, last + 1, STRETCH)
        for revision, packed in session.execute(_packed(campaign_id, start, last))
    ]
    return _join(parts, width)


def outcome_counts(session: Session, campaign_id: int) -> Mapping[str, int]:
    """Count the outcome events of a campaign's decisions, by kind."""
    query = (
        select(Outcome.kind, func.count())
        .where(Outcome.campaign_id == campaign_id)
        .group_by(Outcome.kind)
    )
    return dict(session.execute(query).all())


def _row() -> Bytes:
    """One decision as bytes: the columns of FIXED in their order, then the simplex."""

    def big(column: Any) -> Bytes:
        return sent("int8send", func.coalesce(column, 0))

    def small(column: Any) -> Bytes:
        return sent("int2send", as_sql(func.coalesce(column, 0), SmallInteger))

    padded = Decision.unit.op("||")(literal(bytes(8)))
    columns = [
        *(big(Decision.position), sent("timestamptz_send", Decision.decided_at)),
        *(func.substring(padded, 1, 8, type_=LargeBinary), big(Decision.mask)),
        *(small(Decision.segment), small(Decision.arm)),
        *(small(case(KINDS, value=Decision.reason, else_=OTHER)), small(Reward.conversions)),
        *(big(Reward.revenue_minor), big(Reward.discount_minor), big(Reward.profit_minor)),
        *(small(Reward.late), sent("float8send", Decision.propensity)),
        type_coerce(Decision.simplex, LargeBinary),
    ]
    return joined(columns)


def _packed(campaign_id: int, start: int, last: int) -> Select[int, bytes]:
    """One stretch of the log as (revision, packed decisions), in no order.

    Sorting wide rows is what would take the server longest; numpy sorts the positions instead.
    """
    end = min(start + STRETCH - 1, last)
    return (
        select(Decision.revision, func.string_agg(_row(), literal(b""), type_=LargeBinary))
        .outerjoin(Reward, Reward.decision_id == Decision.id)
        .where(*queries.span(Decision, campaign_id, start - 1, end))
        .group_by(Decision.revision)
    )


@dataclass(frozen=True)
class _Places:
    """Where the arms and segments of one revision are in the definition in force; -1 is gone."""

    arms: Ints
    segments: Ints
    holdout: float = 0.0


def _places(session: Session, campaign_id: int, now: CampaignDefinition) -> dict[int, _Places]:
    """Map every revision of a campaign to the definition in force, by key."""
    query = select(CampaignRevision.revision, CampaignRevision.definition).where(
        CampaignRevision.campaign_id == campaign_id
    )
    segments = {key: place for place, key in enumerate(now.segment_keys)}
    places = {}
    for revision, document in session.execute(query):
        then = CampaignDefinition.model_validate(document)
        places[revision] = _Places(
            np.array([now.arm_index.get(arm.key, -1) for arm in then.arms]),
            np.array([segments.get(key, -1) for key in then.segment_keys]),
            then.holdout,
        )
    return places


def _part(packed: bytes, revision: int, places: _Places, width: int) -> Log:
    """Unpack one stretch, mapped to the definition in force, which has `width` arms."""
    arms = len(places.arms)
    row = np.dtype([*FIXED, ("simplex", SIMPLEX, (arms,))])
    rows = np.frombuffer(packed, dtype=row)
    columns = {name: rows[name].astype(np.int64) for name, _ in FIXED if name != "propensity"}
    bits = (columns.pop("mask")[:, None] >> np.arange(arms)) & 1
    columns["segment"] = places.segments[columns["segment"]]
    columns["arm"] = places.arms[columns["arm"]]
    read = (columns["segment"] >= 0) & (columns["arm"] >= 0)
    log = Log(
        **columns,
        revision=np.full(len(rows), revision),
        holdout=np.full(len(rows), places.holdout),
        masked=(bits == 0).any(axis=1),
        simplex=_spread(rows["simplex"].astype(float), places.arms, width),
        propensity=rows["propensity"].astype(float),
        unread=int(np.count_nonzero(~read)),
    )
    return log if read.all() else log.where(read)


def _spread(columns: NDArray[Any], places: Ints, width: int) -> NDArray[Any]:
    """Put column k at its place; places without a column are zero."""
    if width == columns.shape[1] and np.array_equal(places, np.arange(width)):
        return columns
    spread = np.zeros((len(columns), width), columns.dtype)
    spread[:, places[places >= 0]] = columns[:, places >= 0]
    return spread


def _join(parts: list[Log], width: int) -> Log:
    """Put the stretches together, in order of position."""
    parts = parts or [_part(b"", 0, _Places(np.arange(width), np.zeros(1, np.int64)), width)]
    names = [field.name for field in dataclasses.fields(Log) if field.name != "unread"]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    order = np.argsort(columns["position"], kind="stable")
    unread = sum(part.unread for part in parts)
    return Log(**{name: column[order] for name, column in columns.items()}, unread=unread)
