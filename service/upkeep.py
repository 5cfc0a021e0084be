"""What the clock asks for: campaigns that begin and end, and offers whose time is over.

The learner's process does this every second. Decisions need not wait for it: they read the clock
themselves (`service.eligibility.state_at`), and a reservation that is not given back yet only makes
a budget seem smaller than it is.
"""

import datetime as dt

from sqlalchemy import Connection, Engine, func, select, update
from sqlalchemy.dialects.postgresql import insert

from service import queries
from service.definition import CampaignDefinition
from service.eligibility import state_at
from service.models import AuditEntry, Budget, Campaign

SETTLE_ROWS = 5_000
SETTLE_GRACE = dt.timedelta(minutes=10)


def settle(engine: Engine, campaign_id: int, *, now: dt.datetime | None = None) -> int:
    """Give back what expired offers had reserved of the budget and did not cost; return how much.

    Decisions are settled in the order of the log, each once, a grace after its offer ended and
    when all that Postgres knows about it has been learnt. What becomes known later is charged as
    it is learnt (`service.learner`). An offer that cost more than its reservation takes the rest
    out of what is left, so what is given back may be negative.
    """
    moment = (now or dt.datetime.now(dt.UTC)) - SETTLE_GRACE
    with engine.begin() as connection:
        if not connection.scalar(queries.TRY_LOCK, {"id": campaign_id}):
            return 0
        learnt = connection.execute(queries.newest_snapshot(campaign_id)).one_or_none()
        row = connection.execute(queries.budget_row(campaign_id)).one_or_none()
        start, before = (0, 0) if row is None else row
        if learnt is None or learnt.decision_position <= start:
            return 0
        position, released = start, before
        query = queries.reservations_between(
            campaign_id, start, learnt.decision_position, learnt=learnt.outcome_position,
            limit=SETTLE_ROWS,
        )  # fmt: skip
        for one in connection.execute(query):
            if one.expires_at > moment or one.news:
                break
            position = one.position
            released += one.reserved_minor - one.discount_minor
        if position > start:
            _keep_settled(connection, campaign_id, position, released)
    return int(released - before)


def _keep_settled(connection: Connection, campaign_id: int, position: int, released: int) -> None:
    settled = {"settled_position": position, "released_minor": released}
    statement = insert(Budget).values(campaign_id=campaign_id, **settled)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["campaign_id"], set_=settled)
    )
    connection.execute(select(func.pg_notify("barter", "budgets")))


def keep_schedule(engine: Engine, *, now: dt.datetime | None = None) -> int:
    """Store the states that start and end times have brought about; return how many."""
    moment = now or dt.datetime.now(dt.UTC)
    changed = 0
    with engine.begin() as connection:
        for row in connection.execute(queries.due_campaigns(moment)).all():
            definition = CampaignDefinition.model_validate(row.definition)
            state = state_at(row.state, definition.starts_at, definition.ends_at, moment)
            stamp = {"running": "started_at", "ended": "ended_at"}[state]
            # Nothing is locked beforehand: if somebody was quicker, their word holds.
            moved = connection.execute(
                update(Campaign)
                .where(
                    Campaign.id == row.id,
                    Campaign.state == row.state,
                    Campaign.revision == row.revision,
                )
                .values(state=state, **{stamp: moment})
            )
            if moved.rowcount:
                connection.execute(
                    insert(AuditEntry).values(
                        actor="clock", action=f"campaign.{state}", subject=f"campaign:{row.key}"
                    )
                )
                changed += 1
        if changed:
            connection.execute(select(func.pg_notify("barter", "campaigns")))
    return changed
